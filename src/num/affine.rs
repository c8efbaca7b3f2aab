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
/// - subnormal ranges: the scale, which has few bits there, is rounded up where rounding it to nearest (down to zero,
///   say) would shorten the range by more than 1/64 of a step;
/// - ranges near `f32::MAX`: the difference is taken in f64, and the scale kept so small that every code
///   dequantizes to a finite number (of a constant's grid, the codes of zero and of the constant do).
///
/// Both ends come back within half a step (and 1/64 more at subnormal scales), with one exception. An even number `2n` of codes has `n` on one side of the
/// middle and `n - 1` on the other. Where the longer side has to stay finite and the shorter one should reach beyond
/// `1 - 1/2n` of `f32::MAX` (both ends that large, or symmetric codes), the shorter one is cut by up to a step.
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
    let ends = (f64::from(lo), f64::from(hi));
    let (scale, zero_point) = if symmetric {
        let reach = (i64::from(middle) - i64::from(qmin)).min(i64::from(qmax) - i64::from(middle)).max(1);
        (step(hi.max(-lo), f64::from(hi.max(-lo)), reach), middle)
    } else {
        let steps = (i64::from(qmax) - i64::from(qmin)).max(1);
        let scale = step(hi - lo, ends.1 - ends.0, steps);
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
    let grid = Grid { qmin: i64::from(qmin), qmax: i64::from(qmax) };
    if (scale * grid.reach(zero_point)).is_finite() { (scale, zero_point) } else { grid.below_infinity(ends, scale, zero_point, symmetric) }
}

/// The share of a step by which rounding a scale may shorten the range. Scales of normal floats stay far below it for
/// grids of 16 bits and less.
const SHORT: f64 = 1.0 / 64.0;

/// `range / steps` in f32, from `exact` where `range` overflowed; the next float up where too few bits are left.
fn step(range: f32, exact: f64, steps: i64) -> f32 {
    let scale = if range.is_finite() { range / steps as f32 } else { (exact / steps as f64) as f32 };
    let short = f64::from(scale) * (steps as f64 + SHORT) < exact;
    if short { scale.next_up() } else { scale }
}

struct Grid {
    qmin: i64,
    qmax: i64,
}

impl Grid {
    /// Codes on the longer side of a zero point.
    fn reach(&self, zero_point: i32) -> f32 {
        (i64::from(zero_point) - self.qmin).max(self.qmax - i64::from(zero_point)) as f32
    }

    /// Scale and zero point, near those given, for which every code is finite and both ends are within half a step of one.
    fn below_infinity(&self, (lo, hi): (f64, f64), scale: f32, zero_point: i32, symmetric: bool) -> (f32, i32) {
        let ceiling = |zero_point: i32| {
            let reach = self.reach(zero_point);
            let limit = f32::MAX / reach;
            if (limit * reach).is_infinite() { limit.next_down() } else { limit }
        };
        // The smallest scale that leaves neither end more than half a step beyond its last code.
        let floor = |zero_point: i32| {
            let (below, above) = (i64::from(zero_point) - self.qmin, self.qmax - i64::from(zero_point));
            let exact = (-lo / (below as f64 + 0.5)).max(hi / (above as f64 + 0.5));
            if f64::from(exact as f32) < exact { (exact as f32).next_up() } else { exact as f32 }
        };
        // One code fewer on the longer side lets every step be longer, and one of half a step less reaches as far.
        let neighbours = [zero_point, zero_point.saturating_sub(1), zero_point.saturating_add(1)];
        let codes = neighbours.into_iter().take(if symmetric { 1 } else { 3 }).filter(|&z| (self.qmin..=self.qmax).contains(&i64::from(z)));
        match codes.into_iter().find(|&z| floor(z) <= ceiling(z)) {
            Some(z) => (scale.max(floor(z)).min(ceiling(z)), z),
            None => (ceiling(zero_point), zero_point),
        }
    }
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
                assert!((round_trip(x, (scale, zero_point), 0, 255) - x).abs() <= (0.5 + SHORT as f32) * scale, "{x:e} in {lo:e}..{hi:e}");
            }
        }
    }

    #[test]
    fn subnormal_ranges_are_not_cut() {
        // 1277 units over 255 steps are 5.008 each: five reach 1275, and the rounded zero point would cost another half step.
        let unit = |units: u32| f32::from_bits(units);
        let (scale, zero_point) = affine_qparams(-unit(503), unit(774), 0, 255, false);
        for x in [-unit(503), unit(774)] {
            assert!(
                (round_trip(x, (scale, zero_point), 0, 255) - x).abs() <= (0.5 + SHORT as f32) * scale,
                "{x:e} at {scale:e}, {zero_point}"
            );
        }
    }

    #[test]
    fn huge_ranges_stay_finite_and_within_half_a_step() {
        let ends = [0.0, 0.31, 0.5, 0.59774, 0.7, 0.9, 0.93, 0.99, 0.996, 0.9999, 1.0].map(|share| f32::MAX * share);
        for (&lo, &hi) in ends.iter().flat_map(|lo| ends.iter().map(move |hi| (lo, hi))).filter(|ends| *ends != (&0.0, &0.0)) {
            for (qmin, qmax, symmetric) in
                [(0, 255, false), (-128, 127, false), (-127, 127, true), (-128, 127, true), (0, 15, false), (0, 255, true), (-1, 1, false)]
            {
                let (scale, zero_point) = affine_qparams(-lo, hi, qmin, qmax, symmetric);
                for code in [qmin, qmax] {
                    assert!(dequantize(code, scale, zero_point).is_finite());
                }
                let steps = qmax - qmin;
                for x in [-lo, hi] {
                    let back = round_trip(x, (scale, zero_point), qmin, qmax);
                    let error = (f64::from(back) - f64::from(x)).abs() / f64::from(scale);
                    // The documented exception: of an even number of codes one side is a code shorter.
                    let reach = f64::from(steps) / f64::from(steps + 1) * f64::from(f32::MAX);
                    let shorter = if symmetric { hi } else { lo.min(hi) };
                    let cut = steps % 2 == 1 && f64::from(shorter) > reach;
                    assert!(error <= if cut { 1.0 } else { 0.5 } + 1e-4, "{x:e} of {lo:e}..{hi:e} is {error} steps off, {qmin}..={qmax}");
                }
            }
        }
    }
}
