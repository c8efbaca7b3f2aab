//! exp, erf and tanh of the crate's own: the same bits on every machine, with a stated error.
//!
//! The standard library's go to the platform's libm and differ from system to system. These use only f32 and f64
//! additions, multiplications, divisions and roundings, none of them fused, in a fixed order.

/// `e^x` in f32, at most 1 unit in the last place from the exact value.
///
/// `x = k · ln 2 + r` with `|r| <= ln 2 / 2`, a Taylor polynomial of degree 9 in f64 for `e^r` (its remainder is below
/// 1e-11), and `2^k` by the exponent. Overflow gives `+∞`, underflow goes through the subnormals to 0; NaN stays NaN.
///
/// ```
/// assert_eq!(lowprec::num::exp(0.0), 1.0);
/// assert_eq!(lowprec::num::exp(f32::NEG_INFINITY), 0.0);
/// ```
#[inline]
pub fn exp(x: f32) -> f32 {
    exp_f64(f64::from(x)) as f32
}

/// `e^x` in f64 to about 1e-11 relative, for arguments whose result matters in f32 (clamped to -120..=120).
#[inline]
fn exp_f64(x: f64) -> f64 {
    const LN2: f64 = std::f64::consts::LN_2;
    // NaN passes through clamp, the polynomial and the product. f32 ends at e^88.7 and e^-103.97, f64 far beyond ±120.
    let x = x.clamp(-120.0, 120.0);
    let k = (x * (1.0 / LN2)).round_ties_even();
    let r = x - k * LN2;
    let c = [1.0, 1.0, 1.0 / 2.0, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0, 1.0 / 40320.0, 1.0 / 362_880.0];
    let mut p = c[9];
    for c in c[..9].iter().rev() {
        p = p * r + c;
    }
    // |k| <= 174: the exponent field stays in range. NaN converts to 0, and p is NaN already.
    p * f64::from_bits(((k as i64 + 1023) as u64) << 52)
}

/// `tanh x` in f32, at most 1 unit in the last place from the exact value; odd; ±1 at the infinities, NaN stays NaN.
///
/// `(e^2|x| - 1) / (e^2|x| + 1)` in f64, and for `|x| < 0.04`, where that loses digits, the Taylor series up to `x^9`.
pub fn tanh(x: f32) -> f32 {
    let a = f64::from(x.abs());
    let y = if a < 0.04 {
        let s = a * a;
        a * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))))
    } else {
        // Beyond 9.1 the result rounds to 1 in f32; the bound also keeps the exponential finite.
        let e = exp_f64(2.0 * if a > 20.0 { 20.0 } else { a });
        (e - 1.0) / (e + 1.0)
    };
    (y as f32).copysign(x)
}

/// `erf x = 2/√π ∫₀ˣ e^(-t²) dt` in f32, at most 1 unit in the last place from the exact value; odd; ±1 at the infinities,
/// NaN stays NaN.
///
/// In f64: below 2 the series `2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1))` (all terms positive, Abramowitz and
/// Stegun 7.1.6), above it `1 - e^(-x²)/(x√π) · 1/(1+1/(2x²)/(1+2/(2x²)/(1+…)))` (7.1.14) to depth 30.
pub fn erf(x: f32) -> f32 {
    const FRAC_2_SQRT_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI;
    let a = f64::from(x.abs());
    let y = if a < 2.0 {
        let (mut term, mut sum) = (a, a);
        // At 2 the terms fall below 1e-11 of the sum after 32 steps.
        for n in 1..40 {
            term = term * (2.0 * a * a) / f64::from(2 * n + 1);
            sum += term;
        }
        FRAC_2_SQRT_PI * exp_f64(-a * a) * sum
    } else if a < 4.5 {
        let v = 1.0 / (2.0 * a * a);
        let mut fraction = 1.0;
        for n in (1..=30).rev() {
            fraction = 1.0 + f64::from(n) * v / fraction;
        }
        1.0 - exp_f64(-a * a) * FRAC_2_SQRT_PI / (2.0 * a) / fraction
    } else if a.is_nan() {
        a
    } else {
        1.0
    };
    (y as f32).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `y` from the exact value, in units of the last place at `y`.
    fn ulps(y: f32, exact: f64) -> f64 {
        let unit = f64::from(y.abs().max(f32::MIN_POSITIVE).next_up()) - f64::from(y.abs().max(f32::MIN_POSITIVE));
        (f64::from(y) - exact).abs() / unit
    }

    #[test]
    fn exp_is_within_one_ulp() {
        let mut x = -104.5f32;
        while x < 88.8 {
            let exact = f64::from(x).exp();
            if exact < f64::from(f32::MAX) {
                assert!(ulps(exp(x), exact) <= 1.0, "exp({x}) = {} not {exact}", exp(x));
            }
            x += 0.000_731;
        }
        assert_eq!((exp(89.0), exp(f32::INFINITY), exp(f32::MAX)), (f32::INFINITY, f32::INFINITY, f32::INFINITY));
        assert_eq!((exp(-104.5), exp(f32::NEG_INFINITY), exp(f32::MIN)), (0.0, 0.0, 0.0));
        assert!(exp(-100.0) > 0.0 && exp(-100.0) < f32::MIN_POSITIVE);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_one_ulp() {
        let mut x = 1e-30f32;
        while x < 30.0 {
            for x in [x, -x] {
                assert!(ulps(tanh(x), f64::from(x).tanh()) <= 1.0, "tanh({x}) = {}", tanh(x));
            }
            x *= 1.000_97;
        }
        assert_eq!((tanh(0.0), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(tanh(-0.0).is_sign_negative() && tanh(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_one_ulp() {
        // To 16 digits, from the C library's erf in double precision.
        let known = [
            (0.0078125, 0.008_815_282_895_179_188),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (1.5, 0.966_105_146_475_310_7),
            (2.0, 0.995_322_265_018_952_7),
            (2.5, 0.999_593_047_982_555),
            (3.0, 0.999_977_909_503_001_4),
        ];
        for (x, exact) in known {
            assert!(ulps(erf(x), exact) <= 1.0, "erf({x}) = {} not {exact}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        // The two forms meet, and the function rises.
        let mut x = 0.0f32;
        while x < 6.0 {
            assert!(erf(x + 0.01) >= erf(x), "at {x}");
            x += 0.01;
        }
        // The derivative is 2/√π · e^(-x²): the integral over small steps, by Simpson, against the difference.
        for i in 0..440 {
            let (a, b) = (f64::from(i) * 0.01, f64::from(i + 1) * 0.01);
            let d = |x: f64| std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp();
            let integral = (b - a) / 6.0 * (d(a) + 4.0 * d((a + b) / 2.0) + d(b));
            let difference = f64::from(erf(b as f32)) - f64::from(erf(a as f32));
            assert!((difference - integral).abs() < 3e-7, "at {a}");
        }
        assert_eq!((erf(0.0), erf(f32::INFINITY), erf(f32::NEG_INFINITY), erf(10.0)), (0.0, 1.0, -1.0, 1.0));
        assert!(erf(f32::NAN).is_nan());
    }
}
