//! Fake quantization on plain slices, forwards and backwards: for any training framework. The formulas stand on the room's page.

use crate::error::{Error, Result};
use crate::kernels::math;

/// The smallest and the largest code.
pub type CodeBounds = (i32, i32);

/// Whether slices fit each other, and the numbers make a grid.
fn check(x: usize, others: &[(&'static str, usize)], scale: f32, (lo, hi): CodeBounds) -> Result<()> {
    if let Some((what, length)) = others.iter().find(|(_, length)| *length != x) {
        return Err(Error::length(*what, x, *length));
    }
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Scale { index: 0, value: scale });
    }
    if lo >= hi {
        return Err(Error::parameter("range of codes", (lo, hi), "must hold at least two codes"));
    }
    Ok(())
}

/// `y = scale · (clamp(round(x / scale) + zero_point, qmin, qmax) - zero_point)`.
///
/// ```
/// use lowprec::train::fake_quantize;
/// let mut y = [0.0; 4];
/// fake_quantize(&[-1.0, 0.3, 0.75, 9.0], 0.5, 1, (0, 3), &mut y)?;
/// assert_eq!(y, [-0.5, 0.5, 1.0, 1.0]);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`], [`Error::Scale`] for a scale that is not finite and above zero, [`Error::Parameter`] unless `qmin < qmax`.
pub fn fake_quantize(x: &[f32], scale: f32, zero_point: i32, codes: CodeBounds, y: &mut [f32]) -> Result<()> {
    check(x.len(), &[("output", y.len())], scale, codes)?;
    let (lo, hi) = steps(zero_point, codes);
    quantize_steps(x, scale, (lo, hi), 1, y);
    Ok(())
}

/// Codes as steps from the zero point.
fn steps(zero_point: i32, (lo, hi): CodeBounds) -> (f32, f32) {
    let step = |code: i32| (i64::from(code) - i64::from(zero_point)) as f32;
    (step(lo), step(hi))
}

/// `y = scale · round(clamp(x / scale, lo, hi))`, on threads.
pub(crate) fn quantize_steps(x: &[f32], scale: f32, (lo, hi): (f32, f32), threads: usize, y: &mut [f32]) {
    math::map(
        x,
        y,
        threads,
        #[inline(always)]
        move |x: f32| scale * (x / scale).clamp(lo, hi).round_ties_even(),
    );
}

/// The gradient of [`fake_quantize`] by `x`, straight through: `dx = dy` where `round(x / scale) + zero_point` is a code, codes at the
/// ends included; 0 where it is clipped.
///
/// # Errors
/// As [`fake_quantize`].
pub fn fake_quantize_backward(x: &[f32], scale: f32, zero_point: i32, codes: CodeBounds, dy: &[f32], dx: &mut [f32]) -> Result<()> {
    check(x.len(), &[("gradient", dy.len()), ("gradient to write", dx.len())], scale, codes)?;
    let (lo, hi) = steps(zero_point, codes);
    pass_steps(x, scale, (lo, hi), dy, dx);
    Ok(())
}

/// `dx = dy` where `lo <= round(x / scale) <= hi`.
pub(crate) fn pass_steps(x: &[f32], scale: f32, (lo, hi): (f32, f32), dy: &[f32], dx: &mut [f32]) {
    math::vectorized(
        #[inline(always)]
        || {
            for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                let step = (x / scale).round_ties_even();
                *dx = if (step >= lo) & (step <= hi) { dy } else { 0.0 };
            }
        },
    );
}

/// The gradients of `y = scale · clamp(round(x / scale), n, p)` (LSQ): `dx` is written, that by the scale returned.
///
/// `dx = dy` where `n <= x / scale <= p`, else 0. The scale's is not yet multiplied with LSQ's factor: see [`lsq_factor`].
///
/// ```
/// use lowprec::train::lsq_backward;
/// let mut dx = [0.0; 3];
/// let ds = lsq_backward(&[0.3, -9.0, 9.0], 1.0, (-2, 1), &[1.0, 1.0, 1.0], &mut dx)?;
/// assert_eq!(dx, [1.0, 0.0, 0.0]);
/// assert!((ds - (-0.3 - 2.0 + 1.0)).abs() < 1e-6);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// As [`fake_quantize`].
pub fn lsq_backward(x: &[f32], scale: f32, codes: CodeBounds, dy: &[f32], dx: &mut [f32]) -> Result<f64> {
    Ok(lsq_plus_backward(x, scale, 0.0, codes, dy, dx)?.0)
}

/// The gradients of `y = scale · clamp(round((x - offset) / scale), n, p) + offset` (LSQ+): `dx` is written, those by scale and offset
/// returned, not yet multiplied with a factor.
///
/// # Errors
/// As [`fake_quantize`].
pub fn lsq_plus_backward(x: &[f32], scale: f32, offset: f32, codes: CodeBounds, dy: &[f32], dx: &mut [f32]) -> Result<(f64, f64)> {
    check(x.len(), &[("gradient", dy.len()), ("gradient to write", dx.len())], scale, codes)?;
    Ok(learned_steps(x, scale, offset, (codes.0 as f32, codes.1 as f32), dy, dx))
}

/// Elements whose gradients are added at a time: a sum in f32 of lanes, then in f64 of such sums.
const BLOCK: usize = 256;

pub(crate) fn learned_steps(x: &[f32], scale: f32, offset: f32, (lo, hi): (f32, f32), dy: &[f32], dx: &mut [f32]) -> (f64, f64) {
    const LANES: usize = 16;
    let (mut by_scale, mut by_offset) = (0.0f64, 0.0f64);
    for ((dx, x), dy) in dx.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).zip(dy.chunks(BLOCK)) {
        let (mut scales, mut offsets) = ([0.0f32; LANES], [0.0f32; LANES]);
        math::vectorized(
            #[inline(always)]
            || {
                for ((dx, x), dy) in dx.chunks_mut(LANES).zip(x.chunks(LANES)).zip(dy.chunks(LANES)) {
                    for (i, ((dx, &x), &dy)) in dx.iter_mut().zip(x).zip(dy).enumerate() {
                        let v = (x - offset) / scale;
                        let inside = (v >= lo) & (v <= hi);
                        *dx = if inside { dy } else { 0.0 };
                        let slope = v.clamp(lo, hi).round_ties_even() - if inside { v } else { 0.0 };
                        scales[i] += dy * slope;
                        offsets[i] += dy - *dx;
                    }
                }
            },
        );
        by_scale += scales.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        by_offset += offsets.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    (by_scale, by_offset)
}

/// LSQ's factor for the gradient of a scale, `1 / √(count · p)`: `count` are the elements that share the scale (of activations, those
/// of one sample), `p` the largest code.
pub fn lsq_factor(count: usize, largest: i32) -> f64 {
    1.0 / (count.max(1) as f64 * f64::from(largest.max(1))).sqrt()
}

/// `y = round(clip(x, 0, bound) / s) · s` with `s = bound / (2^bits - 1)` (PACT).
///
/// # Errors
/// [`Error::Length`], [`Error::Scale`] for a bound that makes no scale, [`Error::Parameter`] for bits other than 1 to 16.
pub fn pact(x: &[f32], bound: f32, bits: u32, y: &mut [f32]) -> Result<()> {
    let (scale, largest) = pact_scale(bound, bits)?;
    check(x.len(), &[("output", y.len())], scale, (0, largest))?;
    quantize_steps(x, scale, (0.0, largest as f32), 1, y);
    Ok(())
}

/// The gradients of [`pact`]: `dx = dy` where `0 <= x < bound`, else 0; that by the bound, `Σ dy` where `x >= bound`, is returned.
///
/// # Errors
/// As [`pact`].
pub fn pact_backward(x: &[f32], bound: f32, bits: u32, dy: &[f32], dx: &mut [f32]) -> Result<f64> {
    let (scale, largest) = pact_scale(bound, bits)?;
    check(x.len(), &[("gradient", dy.len()), ("gradient to write", dx.len())], scale, (0, largest))?;
    Ok(clipped_above(x, bound, dy, dx))
}

pub(crate) fn clipped_above(x: &[f32], bound: f32, dy: &[f32], dx: &mut [f32]) -> f64 {
    let mut by_bound = 0.0;
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = if x >= 0.0 && x < bound { dy } else { 0.0 };
        by_bound += if x >= bound { f64::from(dy) } else { 0.0 };
    }
    by_bound
}

fn pact_scale(bound: f32, bits: u32) -> Result<(f32, i32)> {
    match bits {
        1..=16 => {
            let largest = (1 << bits) - 1;
            Ok((bound / largest as f32, largest))
        }
        _ => Err(Error::parameter("bits", bits, "must be 1 to 16")),
    }
}
