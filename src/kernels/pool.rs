//! Windows over a channels-last image: the largest value of each channel, or the mean. The loops are plain, a block of
//! channels in registers while a window's pixels go by.

use super::isa::{Isa, Visitor};
use super::simd::Simd;

/// The pixels of a window along one axis that lie inside the image: the first, and how many follow at steps of the dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taps {
    pub first: usize,
    pub count: usize,
}

/// The largest value of each channel in each window of `out` rows and columns, of an image `w` pixels wide of `c` channels.
/// NaN is larger than all numbers; a window without pixels gives -∞.
///
/// # Panics
/// When a tap lies outside the image, or `y` is not `out` pixels.
pub(crate) fn max_windows(
    x: &[f32],
    [w, c]: [usize; 2],
    y: &mut [f32],
    out: [usize; 2],
    dilation: [usize; 2],
    (rows, columns): (impl Fn(usize) -> Taps, impl Fn(usize) -> Taps),
) {
    assert_eq!(y.len(), out[0] * out[1] * c, "the output's pixels");
    Isa::best().visit(Windows::<_, _, _, true> { x, w, c, y, out, dilation, rows, columns, count: |_, _| 1 });
}

/// As [`max_windows`], the sum over a window's pixels, row by row in f32, divided by `count(row, column)`.
///
/// # Panics
/// As there.
pub(crate) fn mean_windows(
    x: &[f32],
    [w, c]: [usize; 2],
    y: &mut [f32],
    out: [usize; 2],
    dilation: [usize; 2],
    (rows, columns): (impl Fn(usize) -> Taps, impl Fn(usize) -> Taps),
    count: impl Fn(usize, usize) -> usize,
) {
    assert_eq!(y.len(), out[0] * out[1] * c, "the output's pixels");
    Isa::best().visit(Windows::<_, _, _, false> { x, w, c, y, out, dilation, rows, columns, count });
}

struct Windows<'a, R, C, N, const MAX: bool> {
    x: &'a [f32],
    w: usize,
    c: usize,
    y: &'a mut [f32],
    out: [usize; 2],
    dilation: [usize; 2],
    rows: R,
    columns: C,
    count: N,
}

impl<R: Fn(usize) -> Taps, C: Fn(usize) -> Taps, N: Fn(usize, usize) -> usize, const MAX: bool> Visitor for Windows<'_, R, C, N, MAX> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Windows { x, w, c, y, out, dilation, rows, columns, count } = self;
        if c == 0 {
            return;
        }
        simd.vectorize(
            #[inline(always)]
            || {
                for (oy, line) in y.chunks_exact_mut((out[1] * c).max(1)).enumerate() {
                    let rows = rows(oy);
                    for (ox, y) in line.chunks_exact_mut(c).enumerate() {
                        let window = Window { x, w, c, rows, columns: columns(ox), dilation, count: count(oy, ox) as f32 };
                        let mut done = 0;
                        done = window.blocks::<64, MAX>(done, y);
                        done = window.blocks::<16, MAX>(done, y);
                        done = window.blocks::<4, MAX>(done, y);
                        window.blocks::<1, MAX>(done, y);
                    }
                }
            },
        );
    }
}

struct Window<'a> {
    x: &'a [f32],
    w: usize,
    c: usize,
    rows: Taps,
    columns: Taps,
    dilation: [usize; 2],
    count: f32,
}

impl Window<'_> {
    /// Channels from `done` on, `N` at a time; how many are done then.
    #[inline(always)]
    fn blocks<const N: usize, const MAX: bool>(&self, mut done: usize, y: &mut [f32]) -> usize {
        while done + N <= y.len() {
            let mut block = [if MAX { f32::NEG_INFINITY } else { 0.0 }; N];
            for ky in 0..self.rows.count {
                let row = (self.rows.first + ky * self.dilation[0]) * self.w;
                for kx in 0..self.columns.count {
                    let at = (row + self.columns.first + kx * self.dilation[1]) * self.c + done;
                    let from: [f32; N] = self.x[at..at + N].try_into().expect("as long as that");
                    // Into another array: written in place, the block would stay in memory, behind masked stores.
                    let mut next = block;
                    for i in 0..N {
                        let (x, y) = (from[i], block[i]);
                        // Not `max`: it would drop NaN. Not `||`: it would branch.
                        let largest = if (x > y) | x.is_nan() { x } else { y };
                        next[i] = if MAX { largest } else { y + x };
                    }
                    block = next;
                }
            }
            for (y, x) in y[done..done + N].iter_mut().zip(block) {
                *y = if MAX { x } else { x / self.count };
            }
            done += N;
        }
        done
    }
}

/// The mean of each channel over all pixels of `x`; the sum runs in f64, pixel by pixel.
///
/// # Panics
/// When `x` is not a number of pixels of `y.len()` channels.
pub(crate) fn mean_pixels(x: &[f32], y: &mut [f32]) {
    assert!(x.len().is_multiple_of(y.len().max(1)), "whole pixels");
    Isa::best().visit(Mean { x, y });
}

struct Mean<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Visitor for Mean<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Mean { x, y } = self;
        if y.is_empty() {
            return;
        }
        simd.vectorize(
            #[inline(always)]
            || {
                let mut done = mean_blocks::<32>(x, 0, y);
                done = mean_blocks::<8>(x, done, y);
                mean_blocks::<1>(x, done, y);
            },
        );
    }
}

#[inline(always)]
fn mean_blocks<const N: usize>(x: &[f32], mut done: usize, y: &mut [f32]) -> usize {
    let pixels = (x.len() / y.len()) as f64;
    while done + N <= y.len() {
        let mut sums = [0f64; N];
        for pixel in x.chunks_exact(y.len()) {
            for (sum, &x) in sums.iter_mut().zip(&pixel[done..done + N]) {
                *sum += f64::from(x);
            }
        }
        y[done..done + N].iter_mut().zip(sums).for_each(|(y, sum)| *y = (sum / pixels) as f32);
        done += N;
    }
    done
}
