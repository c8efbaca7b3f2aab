//! The crate's only definition of rounding: clamp, round half to even, convert.

/// `x` clamped to `lo..=hi` and rounded to the nearest integer, ties to the even one; NaN becomes 0.
///
/// The order is the contract: the clamp comes first, in f32, so the conversion never sees a value outside `i32`,
/// and since `lo` and `hi` are integers, clamping before rounding gives the same code as clamping after.
/// This is the rounding of ONNX QuantizeLinear (IEEE 754 `roundTiesToEven`).
///
/// ```
/// use lowprec::num::round_clamped;
/// assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|x| round_clamped(x, -128, 127)), [0, 2, 2, 0, -2]);
/// assert_eq!(round_clamped(1e30, -128, 127), 127);
/// assert_eq!(round_clamped(f32::NAN, -128, 127), 0);
/// ```
///
/// # Panics
/// When `lo > hi`.
#[inline]
pub fn round_clamped(x: f32, lo: i32, hi: i32) -> i32 {
    // Code ranges are at most 16 bits wide where this matters, so both bounds are exact in f32; for wider ones (i32
    // codes) the saturating `as` finishes the job.
    (x.clamp(lo as f32, hi as f32).round_ties_even() as i32).clamp(lo, hi)
}

/// The code of `x`: `clamp(round(x / scale) + zero_point, qmin, qmax)`, by true division as ONNX has it.
///
/// NaN gets the zero point. The zero point is added after rounding, in integers: added before, it would move ties.
#[inline]
pub fn quantize(x: f32, scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    round_clamped(x / scale, qmin.saturating_sub(zero_point), qmax.saturating_sub(zero_point)) + zero_point
}

/// The value of a code: `scale * (code - zero_point)`, one rounding to f32.
#[inline]
pub fn dequantize(code: i32, scale: f32, zero_point: i32) -> f32 {
    scale * (code.wrapping_sub(zero_point)) as f32
}

/// The 8-bit code of an accumulator: `clamp(round(accumulator as f32 * multiplier) + zero_point, qmin, qmax)`.
///
/// Order of operations: the accumulator converts to f32 (nearest, ties to even, exact up to 2^24), one f32
/// multiplication, clamp, round half to even, integer addition of the zero point. No fused multiply-add anywhere.
#[inline]
pub fn requantize(accumulator: i32, multiplier: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    round_clamped(accumulator as f32 * multiplier, qmin.saturating_sub(zero_point), qmax.saturating_sub(zero_point)) + zero_point
}
