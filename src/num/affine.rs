//! From a range to the parameters of an affine grid: the rules at the edges are decided here, once.

use super::round::{dequantize, quantize, round_clamped};

/// Scale and zero point of the grid `qmin..=qmax` over the values `min..=max`.
///
/// Asymmetric (ONNX DynamicQuantizeLinear, in f32): `lo = min(min, 0)`, `hi = max(max, 0)`,
/// `scale = (hi - lo) / (qmax - qmin)`, `zero_point = round(clamp(qmin - lo / scale))`.
/// Symmetric: `zero_point` is the middle code (0 for signed codes, 128 for 0..=255) and
/// `scale = max(|min|, |max|) / reach`, where `reach` is the number of codes on the shorter side, so nothing clips.
///
/// Zero always has a code of its own. At the edges:
/// - all zero (or empty, given as `0, 0`): scale 1;
/// - a constant (`min == max`): the rule above if the constant comes back exactly under it, else `scale = |constant|`,
///   one step from the zero point, which is always exact;
/// - subnormal ranges: the scale, which has few bits there, is rounded up where rounding it down (to zero, say) would
///   clip by more than half a step;
/// - ranges near `f32::MAX`: the difference is taken in f64, and the scale kept so small that every code
///   dequantizes to a finite number (of a constant's grid, the codes of zero and of the constant do).
///
/// Both ends must be finite and `min <= max`; other inputs give a grid of no meaning, not a panic.
///
/// ```
/// use lowprec::num::affine_qparams;
/// assert_eq!(affine_qparams(-3.0, 2.0, 0, 255, false), (5.0 / 255.0, 153));
/// assert_eq!(affine_qparams(-1.0, 0.5, -127, 127, true), (1.0 / 127.0, 0));
/// assert_eq!(affine_qparams(0.0, 0.0, 0, 255, false), (1.0, 0));
/// ```
pub fn affine_qparams(min: f32, max: f32, qmin: i32, qmax: i32, symmetric: bool) -> (f32, i32) {
    let (lo, hi) = (min.min(0.0), max.max(0.0));
    let middle = (i64::from(qmin) + i64::from(qmax) + 1).div_euclid(2) as i32;
    if lo == hi {
        return (1.0, if symmetric { middle } else { 0i32.clamp(qmin, qmax) });
    }
    let (scale, zero_point) = if symmetric {
        let reach = (i64::from(middle) - i64::from(qmin)).min(i64::from(qmax) - i64::from(middle)).max(1);
        (step(hi.max(-lo), f64::from(hi.max(-lo)), reach), middle)
    } else {
        let steps = (i64::from(qmax) - i64::from(qmin)).max(1);
        let scale = step(hi - lo, f64::from(hi) - f64::from(lo), steps);
        (scale, round_clamped(qmin as f32 - lo / scale, qmin, qmax))
    };
    if min == max {
        if dequantize(quantize(min, scale, zero_point, qmin, qmax), scale, zero_point) == min {
            return (scale, zero_point);
        }
        // 255 * (c / 255) misses c by an ulp for some c: one step of size |c| does not.
        let zero_point = match symmetric {
            true => middle,
            false if min > 0.0 => qmin,
            false => qmin.saturating_add(1).min(qmax),
        };
        return (min.abs(), zero_point);
    }
    let reach = (i64::from(zero_point) - i64::from(qmin)).max(i64::from(qmax) - i64::from(zero_point)) as f32;
    if (scale * reach).is_infinite() {
        let limit = f32::MAX / reach;
        return (if (limit * reach).is_infinite() { limit.next_down() } else { limit }, zero_point);
    }
    (scale, zero_point)
}

/// `range / steps` in f32, from `exact` where `range` overflowed; the next float up where too few bits are left.
fn step(range: f32, exact: f64, steps: i64) -> f32 {
    let scale = if range.is_finite() { range / steps as f32 } else { (exact / steps as f64) as f32 };
    if f64::from(scale) * (steps as f64 + 0.5) < exact { scale.next_up() } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(x: f32, (scale, zero_point): (f32, i32), qmin: i32, qmax: i32) -> f32 {
        dequantize(quantize(x, scale, zero_point, qmin, qmax), scale, zero_point)
    }

    #[test]
    fn onnx_vectors() {
        assert_eq!(affine_qparams(-3.0, 2.0, 0, 255, false), (0.019607844, 153));
        assert_eq!(affine_qparams(-4.0, -1.0, 0, 255, false), (0.015686275, 255));
    }

    #[test]
    fn constants_come_back_exact() {
        let mut bits = 1u32;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let c = f32::from_bits(bits);
            if !c.is_finite() {
                continue;
            }
            for (qmin, qmax, symmetric) in
                [(0, 255, false), (-128, 127, false), (-127, 127, true), (0, 255, true), (0, 15, false), (-1, 1, true)]
            {
                assert_eq!(
                    round_trip(c, affine_qparams(c, c, qmin, qmax, symmetric), qmin, qmax),
                    c,
                    "{c:e} on {qmin}..={qmax} symmetric {symmetric}"
                );
            }
        }
    }

    #[test]
    fn subnormal_ranges_keep_their_values() {
        for (lo, hi) in [(0.0, 1e-40), (0.0, f32::from_bits(382)), (-1e-44, 3e-44), (0.0, f32::from_bits(1)), (-1e-40, -1e-41)] {
            let (scale, zero_point) = affine_qparams(lo, hi, 0, 255, false);
            assert!(scale > 0.0);
            for x in [lo, hi, 0.0] {
                assert!((round_trip(x, (scale, zero_point), 0, 255) - x).abs() <= scale, "{x:e} in {lo:e}..{hi:e}");
            }
        }
    }

    #[test]
    fn huge_ranges_stay_finite() {
        for (lo, hi) in [(f32::MIN, f32::MAX), (0.0, f32::MAX), (f32::MIN, 0.0), (f32::MIN, 1.0), (-3e38, 3.4e38)] {
            for (qmin, qmax, symmetric) in [(0, 255, false), (-128, 127, false), (-128, 127, true), (0, 15, false), (0, 255, true)] {
                let (scale, zero_point) = affine_qparams(lo, hi, qmin, qmax, symmetric);
                for code in [qmin, qmax] {
                    assert!(dequantize(code, scale, zero_point).is_finite());
                }
                assert!((round_trip(hi, (scale, zero_point), qmin, qmax) / hi - 1.0).abs() < 0.2 || hi < scale);
            }
        }
    }
}
