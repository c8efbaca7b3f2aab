//! Softmax and normalization: rows that are read several times while they lie in the cache.

use super::math::{GRAIN, parts, split_rows, vectorized};
use crate::num::math;
use crate::num::reduce::{LANES, join, lanes};

/// f32, whose loops become vectors, and f64.
pub(crate) trait Real: num_traits::Float + bytemuck::Pod + Default + std::ops::AddAssign + Send + Sync {
    /// `e^x` of what is not above 0.
    fn exp_of_negative(self) -> Self;
    /// `e^x`.
    fn power(self) -> Self;
    /// `ln x`.
    fn natural_log(self) -> Self;
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Real for f32 {
    #[inline(always)]
    fn exp_of_negative(self) -> f32 {
        math::exp_of_negative(self)
    }

    #[inline(always)]
    fn power(self) -> f32 {
        math::exp(self)
    }

    #[inline(always)]
    fn natural_log(self) -> f32 {
        math::ln(self)
    }

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn exp_of_negative(self) -> f64 {
        self.exp()
    }

    fn power(self) -> f64 {
        self.exp()
    }

    fn natural_log(self) -> f64 {
        self.ln()
    }

    fn of(x: f64) -> f64 {
        x
    }

    fn wide(self) -> f64 {
        self
    }
}

#[inline(always)]
fn larger<T: Real>(a: T, b: T) -> T {
    if b > a { b } else { a }
}

/// The sum in the order of [`crate::num::reduce::sum`].
#[inline(always)]
pub(crate) fn sum<T: Real>(x: &[T]) -> T {
    lanes(x, T::zero(), |a, x| a + x, |a, b| a + b)
}

/// Along the middle axis of `(outer, length, inner)`: `e^(x - max) / Σ e^(x - max)`, or with `log` its logarithm
/// `x - max - ln Σ e^(x - max)`. A line with NaN, with `+∞`, or with nothing above `-∞` becomes NaN.
///
/// Along the last axis the sum runs in the order of [`crate::num::reduce::sum`], else in that of the axis.
///
/// # Panics
/// When the slices do not hold as many elements.
pub(crate) fn softmax<T: Real>(x: &[T], (outer, length, inner): (usize, usize, usize), log: bool, y: &mut [T], threads: usize) {
    assert!(x.len() == y.len() && x.len() == outer * length * inner);
    if x.is_empty() {
        return;
    }
    let plane = length * inner;
    split_rows(y, plane, parts(threads, x.len(), GRAIN / 4), &|start, y: &mut [T]| {
        let x = &x[start..start + y.len()];
        vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(plane).zip(y.chunks_exact_mut(plane)) {
                    if inner == 1 { softmax_row(x, log, y) } else { softmax_columns(x, inner, log, y) }
                }
            },
        );
    });
}

/// Along rows of `length`: the softmax of `x · scale + mask`, where `mask(row)` is what is added to a row, if anything is.
///
/// The sums run in the order of [`softmax`] along the last axis.
///
/// # Panics
/// When a slice does not hold whole rows of `length`.
pub(crate) fn masked_softmax<'m>(
    x: &[f32],
    length: usize,
    scale: f32,
    mask: &(dyn Fn(usize) -> Option<&'m [f32]> + Sync),
    y: &mut [f32],
    threads: usize,
) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(length.max(1)));
    if x.is_empty() {
        return;
    }
    split_rows(y, length, parts(threads, x.len(), GRAIN / 4), &|start, y: &mut [f32]| {
        let x = &x[start..start + y.len()];
        vectorized(
            #[inline(always)]
            || {
                for (i, (x, y)) in x.chunks_exact(length).zip(y.chunks_exact_mut(length)).enumerate() {
                    match mask(start / length + i) {
                        Some(mask) => y.iter_mut().zip(x).zip(mask).for_each(|((y, &x), &mask)| *y = x * scale + mask),
                        None => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * scale),
                    }
                    softmax_in_place(y);
                }
            },
        );
    });
}

#[inline(always)]
fn softmax_in_place(y: &mut [f32]) {
    let max = lanes(y, f32::NEG_INFINITY, larger, larger);
    let mut sums = [0.0; LANES];
    let (chunks, rest) = y.as_chunks_mut::<LANES>();
    for y in chunks {
        for l in 0..LANES {
            y[l] = (y[l] - max).exp_of_negative();
            sums[l] += y[l];
        }
    }
    for (y, sum) in rest.iter_mut().zip(&mut sums) {
        *y = (*y - max).exp_of_negative();
        *sum += *y;
    }
    let scale = 1.0 / join(sums, |a, b| a + b);
    y.iter_mut().for_each(|y| *y *= scale);
}

#[inline(always)]
fn softmax_row<T: Real>(x: &[T], log: bool, y: &mut [T]) {
    let max = lanes(x, T::neg_infinity(), larger, larger);
    if log {
        let shift = lanes(x, T::zero(), |sum, x| sum + (x - max).exp_of_negative(), |a, b| a + b).natural_log();
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - max) - shift);
        return;
    }
    let mut sums = [T::zero(); LANES];
    let ((x, x_rest), (y_chunks, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks_mut::<LANES>());
    for (x, y) in x.iter().zip(y_chunks) {
        for l in 0..LANES {
            y[l] = (x[l] - max).exp_of_negative();
            sums[l] += y[l];
        }
    }
    for ((&x, y), sum) in x_rest.iter().zip(y_rest).zip(&mut sums) {
        *y = (x - max).exp_of_negative();
        *sum += *y;
    }
    let scale = T::one() / join(sums, |a, b| a + b);
    y.iter_mut().for_each(|y| *y = *y * scale);
}

/// Columns of a matrix that are worked on at a time.
const BLOCK: usize = 64;

/// [`softmax_row`] down each column.
#[inline(always)]
fn softmax_columns<T: Real>(x: &[T], columns: usize, log: bool, y: &mut [T]) {
    for first in (0..columns).step_by(BLOCK) {
        let width = BLOCK.min(columns - first);
        let (mut max, mut sum) = ([T::neg_infinity(); BLOCK], [T::zero(); BLOCK]);
        let (max, sum) = (&mut max[..width], &mut sum[..width]);
        for row in x.chunks_exact(columns) {
            max.iter_mut().zip(&row[first..]).for_each(|(max, &x)| *max = larger(*max, x));
        }
        for (row, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            let lanes = y[first..].iter_mut().zip(&row[first..]).zip(max.iter().zip(sum.iter_mut()));
            for ((y, &x), (&max, sum)) in lanes {
                *y = (x - max).exp_of_negative();
                *sum += *y;
            }
        }
        sum.iter_mut().for_each(|sum| *sum = if log { sum.natural_log() } else { T::one() / *sum });
        for (row, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            for (((y, &x), &max), &sum) in y[first..].iter_mut().zip(&row[first..]).zip(max.iter()).zip(sum.iter()) {
                *y = if log { (x - max) - sum } else { *y * sum };
            }
        }
    }
}

/// How rows are normalized: `(x - mean) / √(mean of (x - mean)² + epsilon)`, or without the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Norm {
    pub epsilon: f64,
    /// Whether the mean is taken away first.
    pub centred: bool,
}

impl Norm {
    /// The mean (0 if not centred) and the factor `1 / √(variance + epsilon)` of a row.
    #[inline(always)]
    pub fn of<T: Real>(self, x: &[T]) -> (T, T) {
        let count = T::of(x.len() as f64);
        let mean = if self.centred { sum(x) / count } else { T::zero() };
        let squares = lanes(x, T::zero(), |sum, x| sum + (x - mean) * (x - mean), |a, b| a + b);
        (mean, T::one() / (squares / count + T::of(self.epsilon)).sqrt())
    }

    /// Each row of `length` elements, normalized, times `scale` plus `bias` (each as long as a row).
    ///
    /// # Panics
    /// When a slice is not as long.
    pub fn rows<T: Real>(self, x: &[T], length: usize, scale: &[T], bias: Option<&[T]>, y: &mut [T], threads: usize) {
        assert!(x.len() == y.len() && scale.len() == length && bias.is_none_or(|bias| bias.len() == length));
        if x.is_empty() {
            return;
        }
        split_rows(y, length, parts(threads, x.len(), GRAIN / 2), &|start, y: &mut [T]| {
            let x = &x[start..start + y.len()];
            vectorized(
                #[inline(always)]
                || {
                    for (x, y) in x.chunks_exact(length).zip(y.chunks_exact_mut(length)) {
                        let (mean, factor) = self.of(x);
                        let row = y.iter_mut().zip(x).zip(scale);
                        match bias {
                            Some(bias) => row.zip(bias).for_each(|(((y, &x), &w), &b)| *y = (x - mean) * factor * w + b),
                            None => row.for_each(|((y, &x), &w)| *y = (x - mean) * factor * w),
                        }
                    }
                },
            );
        });
    }
}
