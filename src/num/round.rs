//! The crate's only definition of rounding: clamp, round half to even, convert.

/// `x` clamped to `lo..=hi` and rounded to the nearest integer, ties to the even one; NaN becomes 0, or the bound next to it.
///
/// The order is the contract: the clamp comes first, in f32, so the conversion never sees a value outside its integers,
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
    round_between(x, i64::from(lo), i64::from(hi)) as i32
}

/// [`round_clamped`] between bounds of 33 bits, which differences of two codes can have.
#[inline]
fn round_between(x: f32, lo: i64, hi: i64) -> i64 {
    // Bounds of up to 24 bits are exact in f32; wider ones may round up there, and the integer clamp finishes the job.
    (x.clamp(lo as f32, hi as f32).round_ties_even() as i64).clamp(lo, hi)
}

/// The code whose rounded distance from the zero point is `x`: the zero point is added in integers, after rounding (added
/// before, it would move ties), and in 64 bits, so that it can't wrap.
#[inline]
fn code(x: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    let zero_point = i64::from(zero_point);
    (round_between(x, i64::from(qmin) - zero_point, i64::from(qmax) - zero_point) + zero_point) as i32
}

/// The code of `x`: `clamp(round(x / scale) + zero_point, qmin, qmax)`, by true division as ONNX has it.
///
/// NaN gets the zero point.
///
/// # Panics
/// When `qmin > qmax`.
#[inline]
pub fn quantize(x: f32, scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    code(x / scale, zero_point, qmin, qmax)
}

/// The value of a code: `scale * (code - zero_point)`. The difference is exact, at the bounds of `i32` too, then rounded to
/// f32 (24 bits and less stay exact), and the product is rounded once.
#[inline]
pub fn dequantize(code: i32, scale: f32, zero_point: i32) -> f32 {
    // The difference may need 33 bits, and neither i64 nor f64 is quick in vectors. Its halves fit: each is exact in f32, so
    // their sum is the difference, rounded once. The lower half is signed, which leaves 8-bit codes nothing above it.
    let high = |x: i32| ((x >> 15) + 1) >> 1;
    let low = |x: i32| x.wrapping_sub(high(x) << 16);
    scale * ((high(code) - high(zero_point)) as f32 * 65536.0 + (low(code) - low(zero_point)) as f32)
}

/// The code of an accumulator: `clamp(round(accumulator as f32 * multiplier) + zero_point, qmin, qmax)`.
///
/// Order of operations: the accumulator converts to f32 (nearest, ties to even, exact up to 2^24), one f32
/// multiplication, clamp, round half to even, integer addition of the zero point. No fused multiply-add anywhere.
///
/// # Panics
/// When `qmin > qmax`.
#[inline]
pub fn requantize(accumulator: i32, multiplier: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    code(accumulator as f32 * multiplier, zero_point, qmin, qmax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_wraps_at_the_bounds_of_i32() {
        let (min, max) = (i32::MIN, i32::MAX);
        assert_eq!(dequantize(min, 1.0, max), -4_294_967_295.0);
        assert_eq!(dequantize(-2, 1.0, max), -2_147_483_649.0);
        assert_eq!(dequantize(max, 0.5, min), 2_147_483_647.5);
        // The quotients are exact in f32; the codes lie where 32-bit differences would have wrapped or saturated.
        assert_eq!(quantize(-3e9, 1.0, max, min, max), -852_516_353);
        assert_eq!(quantize(3e9, 1.0, min, min, max), 852_516_352);
        assert_eq!((quantize(-1e30, 1.0, max, min, max), quantize(1e30, 1.0, max, min, max)), (min, max));
        assert_eq!(quantize(f32::NAN, 1.0, max, min, max), max);
        assert_eq!(requantize(min, 1.5, max, min, max), -1_073_741_825);
        assert_eq!(round_clamped(f32::INFINITY, min, max), max);
        assert_eq!(round_clamped(f32::NAN, 3, 5), 3);
    }

    #[test]
    fn differences_of_narrow_codes_are_exact() {
        for zero_point in [-128, -1, 0, 3, 127, 128, 255] {
            for code in -128..=255 {
                assert_eq!(dequantize(code, 0.1, zero_point).to_bits(), (0.1 * (code - zero_point) as f32).to_bits());
            }
        }
    }
}
