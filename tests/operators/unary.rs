//! Functions of one element, against the standard library's in f64.

use crate::nodes::{both, close, filled, node, noise, of, value};
use lowprec::nn::operator::{Logic, Unary};
use lowprec::num::{F8E4M3, F8E5M2, SmallFloat, bf16, f16};
use lowprec::{DType, Error, Value};

/// The error function by its definition: Simpson's rule over 2000 steps.
fn erf(x: f64) -> f64 {
    let (n, f) = (2000, |t: f64| std::f64::consts::FRAC_2_SQRT_PI * (-t * t).exp());
    let h = x / f64::from(n);
    (0..n).map(|i| h * f64::from(i)).map(|a| h / 6.0 * (f(a) + 4.0 * f(a + h / 2.0) + f(a + h))).sum()
}

fn softplus(x: f64) -> f64 {
    x.exp().ln_1p()
}

/// A function of floats and what it is in f64.
type Pair = (Unary, fn(f64) -> f64);

const FUNCTIONS: &[Pair] = &[
    (Unary::Abs, f64::abs),
    (Unary::Neg, |x| -x),
    (Unary::Ceil, f64::ceil),
    (Unary::Floor, f64::floor),
    (Unary::Round, f64::round_ties_even),
    (Unary::Sign, |x| if x == 0.0 { 0.0 } else { x.signum() }),
    (Unary::Sqrt, f64::sqrt),
    (Unary::Reciprocal, f64::recip),
    (Unary::Exp, f64::exp),
    (Unary::Log, f64::ln),
    (Unary::Erf, erf),
    (Unary::Sin, f64::sin),
    (Unary::Cos, f64::cos),
    (Unary::Tan, f64::tan),
    (Unary::Asin, f64::asin),
    (Unary::Acos, f64::acos),
    (Unary::Atan, f64::atan),
    (Unary::Sinh, f64::sinh),
    (Unary::Cosh, f64::cosh),
    (Unary::Asinh, f64::asinh),
    (Unary::Acosh, f64::acosh),
    (Unary::Atanh, f64::atanh),
    (Unary::Relu, |x| if x < 0.0 { 0.0 } else { x }),
    (Unary::LeakyRelu { alpha: 0.125 }, |x| if x < 0.0 { 0.125 * x } else { x }),
    (Unary::Elu { alpha: 1.5 }, |x| if x < 0.0 { 1.5 * (x.exp() - 1.0) } else { x }),
    (Unary::Selu { alpha: 1.5, gamma: 0.5 }, |x| 0.5 * if x < 0.0 { 1.5 * (x.exp() - 1.0) } else { x }),
    (Unary::Celu { alpha: 2.0 }, |x| if x < 0.0 { 2.0 * ((x / 2.0).exp() - 1.0) } else { x }),
    (Unary::ThresholdedRelu { alpha: 0.75 }, |x| if x > 0.75 { x } else { 0.0 }),
    (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
    (Unary::Tanh, f64::tanh),
    (Unary::HardSigmoid { alpha: 0.25, beta: 0.5 }, |x| (0.25 * x + 0.5).clamp(0.0, 1.0)),
    (Unary::HardSwish, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
    (Unary::Gelu, |x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))),
    (Unary::GeluTanh, |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())),
    (Unary::Softplus, softplus),
    (Unary::Softsign, |x| x / (1.0 + x.abs())),
    (Unary::Mish, |x| x * softplus(x).tanh()),
    (Unary::Swish { alpha: 0.5 }, |x| x / (1.0 + (-0.5 * x).exp())),
];

#[test]
fn floats_of_every_size() {
    for &(function, exact) in FUNCTIONS {
        // All vectors of a width, and what is left over.
        for dims in [&[2, 3, 5, 7][..], &[37], &[1, 1], &[0, 3], &[]] {
            let x = noise(dims, dims.len());
            let expected: Vec<f64> = of::<f32>(&x).iter().map(|&x| exact(f64::from(x))).collect();
            close(of(&both(function, &[&x])), &expected, 5e-7);
        }
        let x: Vec<f32> = (-24..=24).map(|i| i as f32 / 8.0).collect();
        let wide = filled(&[49], |i| f64::from(x[i]));
        let got: Vec<f64> = of::<f64>(&both(function, &[&wide])).to_vec();
        for (i, (&got, x)) in got.iter().zip(&x).enumerate() {
            let exact = exact(f64::from(*x));
            assert!((got - exact).abs() < 1e-12 || got == exact || got.is_nan() && exact.is_nan(), "{function:?} {i}: {got} not {exact}");
        }
        let expected: Vec<f64> = x.iter().map(|&x| exact(f64::from(x))).collect();
        let half = both(function, &[&filled(&[49], |i| f16::from_f32(x[i]))]);
        close(&of::<f16>(&half).iter().map(|y| y.to_f32()).collect::<Vec<_>>(), &expected, 1.0 / 2047.0);
        let half = both(function, &[&filled(&[49], |i| bf16::from_f32(x[i]))]);
        close(&of::<bf16>(&half).iter().map(|y| y.to_f32()).collect::<Vec<_>>(), &expected, 1.0 / 255.0);
    }
}

#[test]
fn large_slices_are_cut_anywhere() {
    let x = noise(&[100_003], 3);
    for &(function, _) in FUNCTIONS {
        let (whole, head) = (both(function, &[&x]), both(function, &[&value(&[17], of::<f32>(&x)[..17].to_vec())]));
        assert_eq!(of::<f32>(&head).iter().map(|y| y.to_bits()).collect::<Vec<_>>(), bits(&of::<f32>(&whole)[..17]), "{function:?}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn edges_of_floats() {
    let edges = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e38, -1e38];
    for &(function, exact) in FUNCTIONS {
        let got = node(function, &[Some(&value(&[7], edges.to_vec()))]).unwrap();
        for (&x, &y) in edges.iter().zip(of::<f32>(&got[0])) {
            let expected = match (function, x) {
                // What the formula tends to, where it reads 0 · ∞ or ∞ / ∞.
                (Unary::HardSwish | Unary::Gelu | Unary::GeluTanh | Unary::Mish | Unary::Swish { .. }, x) if x.abs() > 1e37 => {
                    match x < 0.0 {
                        true if x.is_infinite() && function == Unary::HardSwish => continue,
                        true => 0.0,
                        false => x,
                    }
                }
                (Unary::Softsign, x) if x.abs() > 1e37 => {
                    if x.is_infinite() {
                        f32::NAN
                    } else {
                        x.signum()
                    }
                }
                (Unary::Softplus | Unary::Mish, x) if x > 100.0 => x,
                (Unary::Erf, x) if x.abs() > 10.0 => x.signum(),
                (_, x) => exact(f64::from(x)) as f32,
            };
            let same = y == expected || y.is_nan() && expected.is_nan() || (y - expected).abs() <= 1e-6 * expected.abs();
            assert!(same, "{function:?} of {x} is {y}, not {expected}");
        }
    }
}

#[test]
fn integers() {
    let x = value(&[5], vec![i8::MIN, -3, 0, 2, i8::MAX]);
    let of_i8 = |function: Unary| of::<i8>(&both(function, &[&x])).to_vec();
    assert_eq!(of_i8(Unary::Abs), [i8::MIN, 3, 0, 2, 127]);
    assert_eq!(of_i8(Unary::Neg), [i8::MIN, 3, 0, -2, -127]);
    assert_eq!(of_i8(Unary::Sign), [-1, -1, 0, 1, 1]);
    assert_eq!(of_i8(Unary::Relu), [0, 0, 0, 2, 127]);
    assert_eq!(of_i8(Unary::Erf), [-1, 0, 0, 0, 1]);
    let x = value(&[3], vec![0, 7, u64::MAX]);
    assert_eq!(of::<u64>(&both(Unary::Sign, &[&x])), [0, 1, 1]);
    assert_eq!(of::<u64>(&both(Unary::Abs, &[&x])), of::<u64>(&x));
    assert_eq!(of::<u64>(&both(Logic::BitwiseNot, &[&x])), [u64::MAX, u64::MAX - 7, 0]);
    assert_eq!(of::<i16>(&both(Logic::BitwiseNot, &[&value(&[2], vec![5i16, -1])])), [-6, 0]);
    assert_eq!(of::<bool>(&both(Logic::Not, &[&value(&[2], vec![true, false])])), [false, true]);
}

#[test]
fn what_floats_are() {
    let x = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY];
    let ask = |question: Logic, x: &Value| of::<bool>(&node(question, &[Some(x)]).unwrap()[0]).to_vec();
    let (nan, any) = ([true, false, false, false], [false, false, true, true]);
    for x in [filled(&[4], |i| x[i]), filled(&[4], |i| f64::from(x[i])), filled(&[4], |i| f16::from_f32(x[i]))] {
        assert_eq!(ask(Logic::IsNaN, &x), nan);
        assert_eq!(ask(Logic::is_inf(), &x), any);
        assert_eq!(ask(Logic::IsInf { negative: true, positive: false }, &x), [false, false, false, true]);
        assert_eq!(ask(Logic::IsInf { negative: false, positive: true }, &x), [false, false, true, false]);
        assert_eq!(ask(Logic::IsInf { negative: false, positive: false }, &x), [false; 4]);
    }
    assert_eq!(ask(Logic::is_inf(), &filled(&[4], |i| F8E5M2::from_f32(x[i], false))), any);
    // Without infinities of its own, what is too large is NaN.
    assert_eq!(ask(Logic::IsNaN, &filled(&[4], |i| F8E4M3::from_f32(x[i], false))), [true, false, true, true]);
    assert_eq!(ask(Logic::is_inf(), &value(&[1], vec![1e300])), [false]);
}

#[test]
fn types_that_a_function_does_not_take() {
    let refused = |layer: lowprec::nn::Layer, x: Value| matches!(node(layer, &[Some(&x)]).unwrap_err().kind(), Error::Type { .. });
    assert!(refused(Unary::Exp.into(), value(&[1], vec![1i32])));
    assert!(refused(Unary::Neg.into(), value(&[1], vec![1u8])));
    assert!(refused(Logic::Not.into(), value(&[1], vec![1u8])));
    assert!(refused(Logic::BitwiseNot.into(), value(&[1], vec![true])));
    assert!(refused(Logic::IsNaN.into(), value(&[1], vec![1i64])));
    assert!(matches!(node(Unary::Abs, &[]).unwrap_err().kind(), Error::Length { .. }));
    assert_eq!(node(Logic::IsNaN, &[Some(&noise(&[3], 0))]).unwrap()[0].dtype(), DType::Bool);
}
