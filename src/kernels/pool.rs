//! Windows over channels-last images: what becomes of a window's elements, channel by channel. The loops are plain, a block of
//! channels in registers while a window's pixels go by.

use super::isa::{Isa, Visitor};
use super::simd::Simd;
use super::threads::{parts, split_rows};

/// The pixels of a window along one axis that lie inside the image: the first, and how many follow at steps of the dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taps {
    pub first: usize,
    pub count: usize,
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

    /// That of the window of a row and column with so many pixels inside the image.
    fn window(self, row: usize, column: usize, inside: usize) -> Self::Finish;
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

/// The sum, row by row in f32, divided by the count of a row and column, given how many pixels lie inside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mean<N>(pub N);

impl Pooling for Largest {
    type In = f32;
    type Sum = f32;
    type Out = f32;
    type Finish = ();

    #[inline(always)]
    fn window(self, _: usize, _: usize, _: usize) {}

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
    fn window(self, _: usize, _: usize, _: usize) {}

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

impl<N: Fn(usize, usize, usize) -> usize + Copy + Sync> Pooling for Mean<N> {
    type In = f32;
    type Sum = f32;
    type Out = f32;
    type Finish = f32;

    #[inline(always)]
    fn window(self, row: usize, column: usize, inside: usize) -> f32 {
        (self.0)(row, column, inside) as f32
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
                    for (ox, y) in line.chunks_exact_mut(c).enumerate() {
                        let columns = columns(ox);
                        let by = pooling.window(oy, ox, rows.count * columns.count);
                        let window = Window { pooling, by, x, w, c, rows, columns, dilation };
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
    w: usize,
    c: usize,
    rows: Taps,
    columns: Taps,
    dilation: [usize; 2],
}

impl<P: Pooling> Window<'_, P> {
    /// Channels from `done` on, `N` at a time; how many are done then.
    #[inline(always)]
    fn blocks<const N: usize>(&self, mut done: usize, y: &mut [P::Out]) -> usize {
        let pooling = self.pooling;
        while done + N <= y.len() {
            let mut block = [pooling.start(); N];
            for ky in 0..self.rows.count {
                let row = (self.rows.first + ky * self.dilation[0]) * self.w;
                for kx in 0..self.columns.count {
                    let at = (row + self.columns.first + kx * self.dilation[1]) * self.c + done;
                    let from: [P::In; N] = self.x[at..at + N].try_into().expect("as long as that");
                    // Into another array: written in place, the block would stay in memory, behind masked stores.
                    let mut next = block;
                    for i in 0..N {
                        next[i] = pooling.take(block[i], from[i]);
                    }
                    block = next;
                }
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
