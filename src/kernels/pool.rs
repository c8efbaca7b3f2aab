//! Windows over channels-last images: what becomes of a window's elements, channel by channel. The loops are plain, a block of
//! channels in registers while a window's pixels go by.

use super::isa::{Isa, Visitor};
use super::simd::Simd;
use super::threads::{parts, split_rows};

/// The pixels of a window along one axis that lie inside the image: the first, and how many follow at steps of the dilation; and
/// how many there are with those of the padding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taps {
    pub first: usize,
    pub count: usize,
    pub padded: usize,
}

/// Windows over images: `rows` and `columns` say where they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows<R, C> {
    /// Height, width and channels of an image.
    pub image: [usize; 3],
    /// Windows down and across.
    pub out: [usize; 2],
    /// Pixels between those of a window.
    pub dilation: [usize; 2],
    /// The taps of a row of windows.
    pub rows: R,
    /// The taps of a column of windows.
    pub columns: C,
}

/// What becomes of the elements of a window.
pub(crate) trait Pooling: Copy + Sync {
    type In: Copy + Sync;
    type Sum: Copy;
    type Out: Send;
    /// What one window is finished by.
    type Finish: Copy;

    /// That of a window; not of where it is, only of its numbers of taps.
    fn window(self, rows: Taps, columns: Taps) -> Self::Finish;
    /// What a window without pixels comes to.
    fn start(self) -> Self::Sum;
    fn take(self, sum: Self::Sum, x: Self::In) -> Self::Sum;
    fn finish(self, by: Self::Finish, sum: Self::Sum) -> Self::Out;
}

/// The largest element. NaN is larger than all numbers; a window without pixels gives -∞, or 0 in codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Largest;

/// The largest code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LargestCode;

/// The sum, row by row in f32, divided by the number of pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mean {
    /// Whether those of the padding count.
    pub include_pad: bool,
}

/// The pixels of a window that count.
#[inline(always)]
pub(super) fn count(rows: Taps, columns: Taps, include_pad: bool) -> usize {
    if include_pad { rows.padded * columns.padded } else { rows.count * columns.count }
}

impl Pooling for Largest {
    type In = f32;
    type Sum = f32;
    type Out = f32;
    type Finish = ();

    #[inline(always)]
    fn window(self, _: Taps, _: Taps) {}

    #[inline(always)]
    fn start(self) -> f32 {
        f32::NEG_INFINITY
    }

    #[inline(always)]
    fn take(self, largest: f32, x: f32) -> f32 {
        // Not `max`: it would drop NaN. Not `||`: it would branch.
        if (x > largest) | x.is_nan() { x } else { largest }
    }

    #[inline(always)]
    fn finish(self, (): (), largest: f32) -> f32 {
        largest
    }
}

impl Pooling for LargestCode {
    type In = u8;
    type Sum = u8;
    type Out = u8;
    type Finish = ();

    #[inline(always)]
    fn window(self, _: Taps, _: Taps) {}

    #[inline(always)]
    fn start(self) -> u8 {
        0
    }

    #[inline(always)]
    fn take(self, largest: u8, x: u8) -> u8 {
        largest.max(x)
    }

    #[inline(always)]
    fn finish(self, (): (), largest: u8) -> u8 {
        largest
    }
}

impl Pooling for Mean {
    type In = f32;
    type Sum = f32;
    type Out = f32;
    type Finish = f32;

    #[inline(always)]
    fn window(self, rows: Taps, columns: Taps) -> f32 {
        count(rows, columns, self.include_pad) as f32
    }

    #[inline(always)]
    fn start(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn take(self, sum: f32, x: f32) -> f32 {
        sum + x
    }

    #[inline(always)]
    fn finish(self, count: f32, sum: f32) -> f32 {
        sum / count
    }
}

/// Pools images that follow each other in `x` into `y`, on threads where a thread has at least `grain` elements to read and write.
///
/// # Panics
/// When a tap lies outside its image, or `x` has fewer images than `y`.
pub(crate) fn pool<P: Pooling, R: Fn(usize) -> Taps + Copy + Sync, C: Fn(usize) -> Taps + Copy + Sync>(
    pooling: P,
    x: &[P::In],
    windows: &Windows<R, C>,
    y: &mut [P::Out],
    (threads, grain): (usize, usize),
) {
    pool_for(Isa::best(), pooling, x, windows, y, (threads, grain));
}

/// [`pool`] on an instruction set that is there.
fn pool_for<P: Pooling, R: Fn(usize) -> Taps + Copy + Sync, C: Fn(usize) -> Taps + Copy + Sync>(
    isa: Isa,
    pooling: P,
    x: &[P::In],
    windows: &Windows<R, C>,
    y: &mut [P::Out],
    (threads, grain): (usize, usize),
) {
    if y.is_empty() {
        return;
    }
    let line = windows.out[1] * windows.image[2];
    split_rows(y, line, parts(threads, x.len() + y.len(), grain), &|start, y: &mut [P::Out]| {
        isa.visit(Lines { pooling, x, windows, first: start / line, y });
    });
}

/// Some lines of the output, those of all images counted.
struct Lines<'a, P: Pooling, R, C> {
    pooling: P,
    x: &'a [P::In],
    windows: &'a Windows<R, C>,
    first: usize,
    y: &'a mut [P::Out],
}

impl<P: Pooling, R: Fn(usize) -> Taps + Copy + Sync, C: Fn(usize) -> Taps + Copy + Sync> Visitor for Lines<'_, P, R, C> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Lines { pooling, x, windows, first, y } = self;
        simd.vectorize(
            #[inline(always)]
            || {
                let Windows { image: [h, w, c], out, dilation, rows, columns } = *windows;
                for (i, line) in y.chunks_exact_mut(out[1] * c).enumerate() {
                    let (image, oy) = ((first + i) / out[0], (first + i) % out[0]);
                    let (x, rows) = (&x[image * h * w * c..][..h * w * c], rows(oy));
                    let mut last = Taps::default();
                    let mut by = pooling.window(rows, last);
                    for (ox, y) in line.chunks_exact_mut(c).enumerate() {
                        let columns = columns(ox);
                        // Most windows are as their neighbours, and what they are finished by may take a division.
                        if (columns.count, columns.padded) != (last.count, last.padded) {
                            (by, last) = (pooling.window(rows, columns), columns);
                        }
                        let first = (rows.first * w + columns.first) * c;
                        let steps = [dilation[0] * w * c, dilation[1] * c];
                        let window = Window { pooling, by, x, first, steps, taps: [rows.count, columns.count] };
                        let mut done = 0;
                        done = window.blocks::<64>(done, y);
                        done = window.blocks::<32>(done, y);
                        done = window.blocks::<16>(done, y);
                        done = window.blocks::<8>(done, y);
                        window.blocks::<1>(done, y);
                    }
                }
            },
        );
    }
}

struct Window<'a, P: Pooling> {
    pooling: P,
    by: P::Finish,
    x: &'a [P::In],
    /// The first channel of the first tap, and elements from a tap to the next, down and across.
    first: usize,
    steps: [usize; 2],
    taps: [usize; 2],
}

impl<P: Pooling> Window<'_, P> {
    /// `N` channels of `COUNT` taps beside each other, the first at `at`.
    #[inline(always)]
    fn line<const N: usize, const COUNT: usize>(&self, mut block: [P::Sum; N], at: usize) -> [P::Sum; N] {
        let x = &self.x[at..at + (COUNT - 1) * self.steps[1] + N];
        for i in 0..COUNT {
            let from: [P::In; N] = x[i * self.steps[1]..][..N].try_into().expect("as long as that");
            // Into another array: written in place, the block would stay in memory, behind masked stores.
            let mut next = block;
            for i in 0..N {
                next[i] = self.pooling.take(block[i], from[i]);
            }
            block = next;
        }
        block
    }

    /// Channels from `done` on, `N` at a time; how many are done then.
    #[inline(always)]
    fn blocks<const N: usize>(&self, mut done: usize, y: &mut [P::Out]) -> usize {
        let pooling = self.pooling;
        while done + N <= y.len() {
            let mut block = [pooling.start(); N];
            let mut row = self.first + done;
            for _ in 0..self.taps[0] {
                // Most windows have lines of two or three, which are taken without a loop.
                match self.taps[1] {
                    2 => block = self.line::<N, 2>(block, row),
                    3 => block = self.line::<N, 3>(block, row),
                    more => {
                        let mut at = row;
                        for _ in 0..more {
                            (block, at) = (self.line::<N, 1>(block, at), at + self.steps[1]);
                        }
                    }
                }
                row += self.steps[0];
            }
            for (y, sum) in y[done..done + N].iter_mut().zip(block) {
                *y = pooling.finish(self.by, sum);
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
    Isa::best().visit(Pixels { x, y });
}

struct Pixels<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Visitor for Pixels<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Pixels { x, y } = self;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{CodeMeans, reference};
    use crate::num::U8Grid;

    /// The taps of a window of three pixels, two apart, of an image padded by two.
    fn taps(i: usize, stride: usize, length: usize) -> Taps {
        let positions = (0..3).map(|tap| i * stride + 2 * tap).filter(|at| (2..length + 2).contains(at));
        Taps { first: positions.clone().next().map_or(0, |at| at - 2), count: positions.count(), padded: 3 }
    }

    #[test]
    fn every_instruction_set_pools_codes_alike() {
        for c in [1, 3, 8, 21, 64, 127] {
            let (image, out) = ([5, 7, c], [5, 4]);
            let x: Vec<u8> = (0..2 * 5 * 7 * c).map(|i| ((i * 7919) >> 4) as u8).collect();
            let windows = Windows { image, out, dilation: [2, 2], rows: |i| taps(i, 1, 5), columns: |i| taps(i, 2, 7) };
            let (grid, to) = (U8Grid::new(0.7, 200).unwrap(), U8Grid::new(0.4, 90).unwrap());
            let means = CodeMeans::new(grid, to).unwrap();
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let mut got = vec![[7u8; 2 * 5 * 4]; 5].into_iter().map(|y| y.repeat(c)).collect::<Vec<_>>();
                    pool_for(isa, LargestCode, &x, &windows, &mut got[0], (threads, 1));
                    pool_for(isa, means.narrow(false), &x, &windows, &mut got[1], (threads, 1));
                    pool_for(isa, means.narrow(true), &x, &windows, &mut got[2], (threads, 1));
                    pool_for(isa, means.wide(false), &x, &windows, &mut got[3], (threads, 1));
                    pool_for(isa, means.wide(true), &x, &windows, &mut got[4], (threads, 1));
                    for i in 0..2 * 5 * 4 * c {
                        let (channel, ox, oy, n) = (i % c, i / c % 4, i / c / 4 % 5, i / c / 20);
                        let (rows, columns) = (taps(oy, 1, 5), taps(ox, 2, 7));
                        let places = (0..rows.count).flat_map(|ky| (0..columns.count).map(move |kx| (ky, kx)));
                        let at = |(ky, kx)| ((n * 5 + rows.first + 2 * ky) * 7 + columns.first + 2 * kx) * c + channel;
                        let inside = places.map(|place| x[at(place)]);
                        let inner = reference::mean_code(inside.clone(), rows.count * columns.count, grid, to);
                        let padded = reference::mean_code(inside.clone(), 9, grid, to);
                        let expected = [inside.max().unwrap_or(0), inner, padded, inner, padded];
                        assert!((0..5).all(|k| got[k][i] == expected[k]), "{} {threads}, c {c}, element {i}", isa.name());
                    }
                }
            }
        }
    }
}
