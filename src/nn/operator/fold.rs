//! Folding tensors over some of their axes: what reductions have in common.

use super::broadcast::AXES;
use super::numbers::Number;
use crate::error::{Error, Result};
use crate::kernels::math::{GRAIN, parts, split_rows, vectorized};
use crate::num::reduce::lanes;

/// The axes of a tensor in memory, neighbours merged: lengths, and whether each is folded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folded {
    lengths: [usize; AXES],
    folds: [bool; AXES],
    rank: usize,
}

/// Rows that are summed by themselves before they join the others, and sums that are, so that errors hardly grow with the number
/// of rows.
const ROWS: usize = 32;
/// Elements of a contiguous line likewise.
const LINE: usize = 4096;
/// Columns that are folded at a time.
const COLUMNS: usize = 64;

impl Folded {
    /// # Errors
    /// [`Error::Unsupported`] when more than [`AXES`] axes remain.
    pub fn new(dims: &[usize], folds: &[bool]) -> Result<Self> {
        let mut folded = Folded { lengths: [1; AXES], folds: [false; AXES], rank: 0 };
        for (&length, &folds) in dims.iter().zip(folds).filter(|&(&length, _)| length != 1) {
            if folded.rank > 0 && folded.folds[folded.rank - 1] == folds {
                folded.lengths[folded.rank - 1] *= length;
                continue;
            }
            if folded.rank == AXES {
                let what = format!("a reduction over {dims:?}");
                return Err(Error::Unsupported { what, way_out: format!("merge axes until at most {AXES} remain") });
            }
            (folded.lengths[folded.rank], folded.folds[folded.rank]) = (length, folds);
            folded.rank += 1;
        }
        Ok(folded)
    }

    /// `y[..] = join of f(f(start, x), x) ..` over the folded axes; where nothing is folded, of one element each. The order is
    /// that of [`crate::num::reduce::sum`] within 4096 elements of a contiguous line, and of memory in blocks of rows else, whatever
    /// the threads.
    pub fn run<T: Number>(
        &self,
        x: &[T],
        y: &mut [T],
        start: T,
        f: impl Fn(T, T) -> T + Sync,
        join: impl Fn(T, T) -> T + Sync,
        threads: usize,
    ) {
        y.fill(start);
        if x.is_empty() {
            return;
        }
        if !T::VECTORS {
            return self.walk(x, y, start, &(&f as &dyn Fn(T, T) -> T), &(&join as &dyn Fn(T, T) -> T));
        }
        let cut = if self.rank > 1 && !self.folds[0] { parts(threads, x.len(), GRAIN) } else { 1 };
        let blocks = if cut > 1 { self.lengths[0] } else { 1 };
        let (row, whole) = (y.len() / blocks, x.len() / blocks);
        split_rows(y, row, cut, &|first, y: &mut [T]| {
            let mut part = *self;
            if cut > 1 {
                part.lengths[0] = y.len() / row;
            }
            let x = &x[first / row * whole..(first + y.len()) / row * whole];
            vectorized(
                #[inline(always)]
                || part.walk(x, y, start, &f, &join),
            );
        });
    }

    #[inline(always)]
    fn walk<T: Number>(&self, x: &[T], y: &mut [T], start: T, f: &impl Fn(T, T) -> T, join: &impl Fn(T, T) -> T) {
        let last = self.rank.saturating_sub(1);
        if self.rank > 0 && self.folds[last] {
            let length = self.lengths[last];
            self.outer(last, 1, |block, o| {
                let line = &x[block * length..(block + 1) * length];
                line.chunks(LINE).for_each(|line| y[o] = join(y[o], lanes(line, start, f, join)));
            });
            return;
        }
        let columns = if self.rank == 0 { 1 } else { self.lengths[last] };
        let rows = if last > 0 { self.lengths[last - 1] } else { 1 };
        self.outer(last.saturating_sub(1), columns, |block, o| {
            let (x, y) = (&x[block * rows * columns..(block + 1) * rows * columns], &mut y[o..o + columns]);
            if rows == 1 {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = join(*y, f(start, x)));
                return;
            }
            for first in (0..columns).step_by(COLUMNS) {
                let width = COLUMNS.min(columns - first);
                let y = &mut y[first..first + width];
                for blocks in x.chunks(ROWS * ROWS * columns) {
                    let mut total = [start; COLUMNS];
                    for rows in blocks.chunks(ROWS * columns) {
                        let mut sum = [start; COLUMNS];
                        let sum = &mut sum[..width];
                        for row in rows.chunks_exact(columns) {
                            sum.iter_mut().zip(&row[first..]).for_each(|(sum, &x)| *sum = f(*sum, x));
                        }
                        total.iter_mut().zip(sum).for_each(|(total, sum)| *total = join(*total, *sum));
                    }
                    y.iter_mut().zip(&total).for_each(|(y, &total)| *y = join(*y, total));
                }
            }
        });
    }

    /// Calls `f` for each index over the first `axes` axes, in order, with its number and where its results begin, which are
    /// `results` together.
    #[inline(always)]
    fn outer(&self, axes: usize, results: usize, mut f: impl FnMut(usize, usize)) {
        let (mut strides, mut step) = ([0; AXES], results);
        for axis in (0..axes).rev().filter(|&axis| !self.folds[axis]) {
            strides[axis] = step;
            step *= self.lengths[axis];
        }
        let count: usize = self.lengths[..axes].iter().product();
        let (mut at, mut o) = ([0; AXES], 0);
        for block in 0..count {
            f(block, o);
            for axis in (0..axes).rev() {
                at[axis] += 1;
                o += strides[axis];
                if at[axis] < self.lengths[axis] {
                    break;
                }
                at[axis] = 0;
                o -= strides[axis] * self.lengths[axis];
            }
        }
    }
}

/// What is left of an image that lies channels-last when folded axes disappear: `y`, in the order of memory, is put in the order
/// `[n, c, h, w]`. `kept` tells of `[n, h, w, c]` which axes are left, `dims` all lengths.
pub(super) fn channels_first<T: Copy>(y: &mut [T], dims: &[usize], kept: [bool; 4]) {
    if !kept[3] || !(kept[1] || kept[2]) {
        return;
    }
    let length = |axis: usize| if kept[axis] { dims[axis] } else { 1 };
    let (pixels, channels) = (length(1) * length(2), length(3));
    if pixels * channels == 0 {
        return;
    }
    let mut image = Vec::with_capacity(pixels * channels);
    for y in y.chunks_exact_mut(pixels * channels) {
        image.clear();
        image.extend((0..pixels * channels).map(|i| y[i % pixels * channels + i / pixels]));
        y.copy_from_slice(&image);
    }
}
