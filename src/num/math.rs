//! Elementary functions of the crate's own: the same bits on every machine, with a stated error.
//!
//! The standard library's go to the platform's libm and differ from system to system. These use only f32 additions,
//! multiplications and divisions, none of them fused, in a fixed order and without a branch, so that a loop over a slice
//! becomes vectors. Polynomials are minimax fits on the stated interval.
// Coefficients are the shortest decimals of their f32.
#![allow(clippy::excessive_precision)]

/// Its product with integers of up to 9 bits is exact.
const LN2_HI: f32 = 0.693_145_75;
/// The rest of ln 2.
const LN2_LO: f32 = 1.428_606_8e-6;
/// Added to a number of less than 2^22, it leaves the nearest integer in the low bits.
const SHIFT: f32 = 12_582_912.0;

/// `c[0] + c[1] x + c[2] x² + …`
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    polynomial_by(x, c, rounded_twice)
}

/// [`polynomial`], each step by `mul_add`.
#[inline(always)]
fn polynomial_by<const N: usize>(x: f32, c: [f32; N], mul_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = mul_add(sum, x, c[i]);
    }
    sum
}

/// `a b + c`, the same on every machine.
#[inline(always)]
fn rounded_twice(a: f32, b: f32, c: f32) -> f32 {
    a * b + c
}

/// `x = k · ln 2 + r`: `e^r - 1` and `k`. Of NaN, NaN and any `k`. For |x| below 200.
#[inline(always)]
fn reduced(x: f32) -> (f32, i32) {
    reduced_by(x, rounded_twice)
}

/// [`reduced`], with `mul_add` for what may be fused.
#[inline(always)]
fn reduced_by(x: f32, mul_add: impl Fn(f32, f32, f32) -> f32 + Copy) -> (f32, i32) {
    let shifted = mul_add(x, std::f32::consts::LOG2_E, SHIFT);
    let k = shifted - SHIFT;
    let r = mul_add(-k, LN2_LO, mul_add(-k, LN2_HI, x));
    // |r| <= ln 2 / 2, error below 4e-9 of e^r.
    let p = polynomial_by(r, [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_717_5, 0.001_381_459_6], mul_add);
    (mul_add(r * r, p, r), shifted.to_bits().wrapping_sub(SHIFT.to_bits()) as i32)
}

/// `2^k` for -126..=127.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// `e^x` in f32, at most 1 unit in the last place from the exact value.
///
/// `x = k · ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial of degree 6 for `e^r`, and `2^k` by the exponent. Overflow gives
/// `+∞`, underflow goes through the subnormals to 0; NaN stays NaN.
///
/// ```
/// assert_eq!(lowprec::num::exp(0.0), 1.0);
/// assert_eq!(lowprec::num::exp(f32::NEG_INFINITY), 0.0);
/// ```
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // f32 ends at e^88.73 and e^-103.98; the bounds lie beyond, and let NaN pass.
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 89.5 { 89.5 } else { x };
    let (p, k) = reduced(x);
    // Two steps, since 2^k alone may be beyond f32 where the product is not. The first is exact, so only one rounds.
    let half = k >> 1;
    (1.0 + p) * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// [`exp`] of what is not above 0: the same bits, in fewer steps.
#[inline(always)]
pub(crate) fn exp_of_negative(x: f32) -> f32 {
    let x = if x < -105.0 { -105.0 } else { x };
    let (p, k) = reduced(x);
    (1.0 + p) * power_of_two(k.wrapping_add(64)) * power_of_two(-64)
}

/// `e^x` for x not above 0, at most 1 unit in the last place from the exact value down to `e^-87`, below which it is 0. `mul_add` is
/// `a b + c`, rounded once or twice: where it fuses, the result may differ in the last bits.
#[inline(always)]
pub(crate) fn exp_of_negative_by(x: f32, mul_add: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    let (p, k) = reduced_by(x, mul_add);
    let y = (1.0 + p) * power_of_two(k);
    // What came of numbers far below has no meaning.
    if x < -87.0 { 0.0 } else { y }
}

/// `e^x - 1` for x not above 0, at most 2 units in the last place from the exact value.
#[inline(always)]
pub(crate) fn exp_m1_of_negative(x: f32) -> f32 {
    // e^-18 is below half a unit of 1.
    let x = if x < -18.0 { -18.0 } else { x };
    let (p, k) = reduced(x);
    let scale = power_of_two(k);
    scale * p + (scale - 1.0)
}

/// `tanh x` in f32, at most 2 units in the last place from the exact value; odd; ±1 at the infinities, NaN stays NaN.
///
/// `1 - 2e / (1 + e)` with `e = e^(-2|x|)`, and for `|x| < 0.625`, where that loses digits, an odd polynomial of degree 11.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let p = polynomial(z, [-0.333_332_8, 0.133_314_42, -0.053_739_71, 0.020_639_079, -0.005_704_978_5]);
    let e = exp_of_negative(-2.0 * a);
    let y = if a < 0.625 { a + a * (z * p) } else { 1.0 - 2.0 * e / (1.0 + e) };
    y.copysign(x)
}

/// `erf x = 2/√π ∫₀ˣ e^(-t²) dt` in f32, at most 2 units in the last place from the exact value; odd; ±1 at the infinities,
/// NaN stays NaN.
///
/// Below 0.925 an odd polynomial of degree 11, above it `1 - e^(-q)` with a polynomial of degree 6 for `q = -ln(1 - erf |x|)`.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let c = [0.128_379_15, -0.376_124_8, 0.112_816_826, -0.026_761_72, 0.004_985_940_2, -0.000_595_373_9];
    let near = a + a * polynomial(z, c);
    // From 3.92 on the result rounds to 1.
    let t = if a > 4.0 { 4.0 } else { a };
    let q = t * polynomial(t, [1.128_514_4, 0.635_718_3, 0.105_261_88, -0.022_889_987, 0.003_214_963, -0.000_213_985_93]);
    let far = 1.0 - exp_of_negative(-q);
    (if a < 0.925 { near } else { far }).copysign(x)
}

/// `ln x` in f32, at most 1 unit in the last place from the exact value: `-∞` at 0, NaN below.
///
/// `x = 2^k · m` with `m` in `√½..√2`, and `ln m` by the series of `atanh((m - 1) / (m + 1))`.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let bits = (if subnormal { x * 8_388_608.0 } else { x }).to_bits() as i32;
    let k = bits.wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(k << 23) as u32) - 1.0;
    let k = k as f32 - if subnormal { 23.0 } else { 0.0 };
    let s = f / (2.0 + f);
    let z = s * s;
    let r = z * polynomial(z, [0.666_666_63, 0.400_003_34, 0.285_372_8, 0.235_827_68]);
    let half = 0.5 * f * f;
    let y = k * LN2_HI + (f - (half - (s * (half + r) + k * LN2_LO)));
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// `ln(1 + x)` for x in 0..=1, at most 2 units in the last place from the exact value.
#[inline(always)]
fn ln_1p_of_unit(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let z = s * s;
    2.0 * (s + s * (z * polynomial(z, [0.333_333_37, 0.199_994_45, 0.143_082_99, 0.107_153_7, 0.121_447_81])))
}

/// `1 / (1 + e^(-x))`, at most 3 units in the last place from the exact value, also where it is nearly 0.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp_of_negative(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// `ln(1 + e^x)`, at most 3 units in the last place from the exact value.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    let tail = ln_1p_of_unit(exp_of_negative(-x.abs()));
    if x > 0.0 { x + tail } else { tail }
}

/// `x · tanh(ln(1 + e^x))`, at most 6 units in the last place from the exact value.
///
/// With `e = e^x` the factor is `n / (n + 2)`, `n = e (e + 2)`.
#[inline(always)]
pub(crate) fn mish(x: f32) -> f32 {
    // From 20 on the factor rounds to 1.
    let e = exp(if x > 20.0 { 20.0 } else { x });
    let n = e * (e + 2.0);
    let factor = n / (n + 2.0);
    // The factor is 0 at -∞, where the product is.
    if x == f32::NEG_INFINITY { 0.0 } else { x * factor }
}

/// `x · sigmoid(a x)`, at most 4 units in the last place from the exact value of the rounded `a x`.
#[inline(always)]
pub(crate) fn swish(x: f32, a: f32) -> f32 {
    let y = x * sigmoid(a * x);
    if x == f32::NEG_INFINITY && a > 0.0 { 0.0 } else { y }
}

/// `x / 2 · (1 + erf(x / √2))`; the error is below `1.5e-7 |x|`, and below `1.5e-7` for negative x.
///
/// It is `max(x, 0) - a · Q(a)` with `a = |x|` and `Q(a) = (1 - erf(a / √2)) / 2`, which falls from 1/2 to 0: `(5.75 - a)²` times a
/// polynomial of degree 16 around 1.5, and 0 beyond. Its terms there are small on both sides, and no exponential is needed.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    const END: f32 = 5.75;
    const Q: [f32; 17] = [
        3.698_669_1e-3,
        -5.429_971e-3,
        2.617_824_1e-3,
        3.866_523_5e-5,
        -4.627_692e-4,
        1.049_986_5e-4,
        3.847_501_3e-5,
        -1.852_545e-5,
        -1.056_018_5e-6,
        1.838_353_7e-6,
        -1.670_464_7e-7,
        -1.105_202_3e-7,
        2.709_471_6e-8,
        1.389_102_7e-9,
        -1.317_683_4e-9,
        1.873_853_6e-10,
        -9.018_924e-12,
    ];
    let a = x.abs();
    let a = if a > END { END } else { a };
    let rest = END - a;
    let q = polynomial(a - 1.5, Q) * rest * rest;
    (if x > 0.0 { x } else { 0.0 }) - a * q
}

/// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`, which is `x · sigmoid` of twice the argument; the error is below `3e-7 |x|`.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    const TWICE: f32 = 1.595_769_1;
    let y = x * sigmoid(TWICE * (x + 0.044_715 * (x * x * x)));
    if x == f32::NEG_INFINITY { 0.0 } else { y }
}

/// `erf x` in f64, within 1e-14: for tensors of f64, one number at a time.
///
/// Below 3 the series `2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1))` (all terms positive, Abramowitz and Stegun 7.1.6),
/// above it the continued fraction `1 - e^(-x²)/(x√π) · 1/(1+1/(2x²)/(1+2/(2x²)/(1+…)))` (7.1.14).
pub(crate) fn erf_f64(x: f64) -> f64 {
    let a = x.abs();
    let y = if a.is_nan() {
        a
    } else if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        // At 3 the terms fall below 1e-17 of the sum after 72 steps.
        for n in 1..80 {
            term = term * (2.0 * a * a) / f64::from(2 * n + 1);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else if a < 6.0 {
        let v = 1.0 / (2.0 * a * a);
        let fraction = (1..=60).rev().fold(1.0, |fraction, n| 1.0 + f64::from(n) * v / fraction);
        1.0 - (-a * a).exp() * std::f64::consts::FRAC_2_SQRT_PI / (2.0 * a) / fraction
    } else {
        1.0
    };
    y.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `y` from the exact value, in units of the last place at `y`.
    fn ulps(y: f32, exact: f64) -> f64 {
        let unit = f64::from(y.abs().max(f32::MIN_POSITIVE).next_up()) - f64::from(y.abs().max(f32::MIN_POSITIVE));
        (f64::from(y) - exact).abs() / unit
    }

    /// Largest distance over numbers that grow by a thousandth from 1e-30 to `most`, of either sign where `both`.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, most: f32, both: bool) -> (f64, f32) {
        let (mut found, mut x) = ((0.0, 0.0), 1e-30f32);
        while x < most {
            for x in [x, if both { -x } else { x }] {
                let distance = ulps(f(x), exact(f64::from(x)));
                found = if distance > found.0 { (distance, x) } else { found };
            }
            x *= 1.000_97;
        }
        let mut x = -most;
        while x < most {
            if both || x > 0.0 {
                let distance = ulps(f(x), exact(f64::from(x)));
                found = if distance > found.0 { (distance, x) } else { found };
            }
            x += 0.000_731;
        }
        found
    }

    #[track_caller]
    fn within(bound: f64, (distance, at): (f64, f32)) {
        assert!(distance <= bound, "{distance} units at {at}");
    }

    #[test]
    fn exp_is_within_one_ulp() {
        let mut x = -104.5f32;
        while x < 88.8 {
            let exact = f64::from(x).exp();
            if exact < f64::from(f32::MAX) {
                assert!(ulps(exp(x), exact) <= 1.0, "exp({x}) = {} not {exact}", exp(x));
            }
            if x <= 0.0 {
                assert_eq!(exp(x).to_bits(), exp_of_negative(x).to_bits());
            }
            x += 0.000_731;
        }
        assert_eq!((exp(89.0), exp(f32::INFINITY), exp(f32::MAX)), (f32::INFINITY, f32::INFINITY, f32::INFINITY));
        assert_eq!((exp(-104.5), exp(f32::NEG_INFINITY), exp(f32::MIN)), (0.0, 0.0, 0.0));
        assert_eq!((exp_of_negative(f32::NEG_INFINITY), exp_m1_of_negative(f32::NEG_INFINITY)), (0.0, -1.0));
        assert!(exp(-100.0) > 0.0 && exp(-100.0) < f32::MIN_POSITIVE);
        for mul_add in [rounded_twice, f32::mul_add] {
            let mut x = -87.0f32;
            while x <= 0.0 {
                let y = exp_of_negative_by(x, mul_add);
                assert!(ulps(y, f64::from(x).exp()) <= 1.0, "e^{x} is not {y}");
                x += 0.000_731;
            }
            let of = |x| exp_of_negative_by(x, mul_add);
            assert_eq!((of(0.0), of(-87.1), of(-1e4), of(f32::MIN), of(f32::NEG_INFINITY)), (1.0, 0.0, 0.0, 0.0, 0.0));
            assert!(of(f32::NAN).is_nan());
        }
        assert!(exp(f32::NAN).is_nan() && exp_of_negative(f32::NAN).is_nan() && exp_m1_of_negative(f32::NAN).is_nan());
        within(2.0, worst(|x| exp_m1_of_negative(-x), |x| (-x).exp_m1(), 20.0, false));
    }

    #[test]
    fn tanh_is_within_two_ulps() {
        within(2.0, worst(tanh, f64::tanh, 30.0, true));
        assert_eq!((tanh(0.0), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(tanh(-0.0).is_sign_negative() && tanh(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_two_ulps() {
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
            assert!((erf_f64(x) - exact).abs() < 1e-14, "erf({x}) = {} not {exact}", erf_f64(x));
            assert_eq!(erf_f64(-x), -erf_f64(x));
        }
        // The two forms meet, and the derivative is 2/√π · e^(-x²): its integral, by Simpson, is the difference.
        for i in 0..700 {
            let (a, b) = (f64::from(i) * 0.01, f64::from(i + 1) * 0.01);
            let d = |x: f64| std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp();
            let integral = (b - a) / 6.0 * (d(a) + 4.0 * d((a + b) / 2.0) + d(b));
            assert!((erf_f64(b) - erf_f64(a) - integral).abs() < 1e-11, "at {a}");
        }
        within(2.0, worst(erf, erf_f64, 8.0, true));
        assert_eq!((erf(0.0), erf(f32::INFINITY), erf(f32::NEG_INFINITY), erf(10.0)), (0.0, 1.0, -1.0, 1.0));
        assert!(erf(f32::NAN).is_nan() && erf_f64(f64::NAN).is_nan());
    }

    #[test]
    fn ln_is_within_one_ulp() {
        let mut x = 1e-45f32;
        while x < 3e38 {
            assert!(ulps(ln(x), f64::from(x).ln()) <= 1.0, "ln({x}) = {}", ln(x));
            x = (x * 1.000_97).next_up();
        }
        assert_eq!((ln(1.0), ln(0.0), ln(f32::INFINITY)), (0.0, f32::NEG_INFINITY, f32::INFINITY));
        assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan() && ln(f32::NEG_INFINITY).is_nan());
    }

    #[test]
    fn activations_keep_their_bounds() {
        within(3.0, worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 100.0, true));
        within(3.0, worst(softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), 100.0, true));
        within(6.0, worst(mish, |x| x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(), 80.0, true));
        within(4.0, worst(|x| swish(x, 1.0), |x| x / (1.0 + (-x).exp()), 80.0, true));
        let mut x = -12.0f32;
        while x < 12.0 {
            let exact = f64::from(x);
            let error = (f64::from(gelu(x)) - 0.5 * exact * (1.0 + erf_f64(exact / 2f64.sqrt()))).abs();
            assert!(error < 1.5e-7 * if x < 0.0 { exact.abs().min(1.0) } else { exact } + 1e-30, "gelu({x}) is {error} off");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (exact + 0.044715 * exact * exact * exact);
            let error = (f64::from(gelu_tanh(x)) - 0.5 * exact * (1.0 + inner.tanh())).abs();
            assert!(error < 3e-7 * exact.abs() + 1e-30, "gelu_tanh({x}) is {error} off");
            x += 0.000_731;
        }
        for f in [sigmoid, mish, gelu, gelu_tanh, softplus, |x| swish(x, 1.0)] as [fn(f32) -> f32; 6] {
            assert!(f(f32::NAN).is_nan() && f(f32::NEG_INFINITY) == 0.0);
        }
        for f in [mish, gelu, gelu_tanh, softplus, |x| swish(x, 1.0)] as [fn(f32) -> f32; 5] {
            assert_eq!(f(f32::INFINITY), f32::INFINITY);
        }
    }
}
