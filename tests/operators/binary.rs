//! Functions of several elements: broadcasting against walking over indices, arithmetic against hand-worked numbers.

use crate::nodes::{both, close, filled, node, noise, of, value};
use lowprec::nn::operator::{Binary, Clip, Pow, Variadic, Where};
use lowprec::num::{I4, bf16, f16};
use lowprec::tensor::Element;
use lowprec::{DType, Error, Value};

/// The element of `dims` under index `at` of an output of `out`.
fn under(dims: &[usize], out: &[usize], mut at: usize) -> usize {
    let (mut index, mut stride) = (0, 1);
    for axis in (0..out.len()).rev() {
        let i = at % out[axis];
        at /= out[axis];
        if let Some(own) = (axis + dims.len()).checked_sub(out.len()) {
            index += if dims[own] == 1 { 0 } else { i * stride };
            stride *= dims[own];
        }
    }
    index
}

/// A function and what it is.
type Function<T, Y> = (Binary, fn(T, T) -> Y);

/// Pairs of shapes and what they broadcast to.
const SHAPES: &[(&[usize], &[usize], &[usize])] = &[
    (&[2, 3, 4, 5], &[2, 3, 4, 5], &[2, 3, 4, 5]),
    (&[2, 3, 4, 5], &[], &[2, 3, 4, 5]),
    (&[1], &[2, 3, 4, 5], &[2, 3, 4, 5]),
    (&[2, 3, 4, 5], &[5], &[2, 3, 4, 5]),
    (&[3, 1, 1], &[2, 3, 4, 5], &[2, 3, 4, 5]),
    (&[2, 3, 4, 5], &[1, 3, 1, 1], &[2, 3, 4, 5]),
    (&[2, 1, 4, 1], &[3, 1, 5], &[2, 3, 4, 5]),
    (&[2, 3, 1, 1], &[2, 3, 4, 5], &[2, 3, 4, 5]),
    (&[4, 5], &[2, 3, 4, 1], &[2, 3, 4, 5]),
    (&[6, 7], &[6, 1], &[6, 7]),
    (&[6, 1], &[1, 7], &[6, 7]),
    (&[], &[], &[]),
    (&[1, 1], &[1], &[1, 1]),
    (&[0, 3], &[1, 3], &[0, 3]),
    (&[2, 1, 2, 1, 2, 1, 2, 1], &[3, 1, 3, 1, 3, 1, 3], &[2, 3, 2, 3, 2, 3, 2, 3]),
    (&[2, 1, 2, 3, 2], &[5, 1, 1, 2], &[2, 5, 2, 3, 2]),
];

#[test]
fn every_way_to_broadcast() {
    for &(a, b, out) in SHAPES {
        let (x, y) = (noise(a, 1), noise(b, 2));
        let floats: [Function<f64, f64>; 6] = [
            (Binary::Add, |a, b| a + b),
            (Binary::Sub, |a, b| a - b),
            (Binary::Mul, |a, b| a * b),
            (Binary::Div, |a, b| a / b),
            (Binary::Mod { fmod: true }, |a, b| a % b),
            (Binary::Mod { fmod: false }, |a, b| a - b * (a / b).floor()),
        ];
        let elements = out.iter().product();
        let pair = |i: usize| (of::<f32>(&x)[under(a, out, i)], of::<f32>(&y)[under(b, out, i)]);
        for (function, exact) in floats {
            let got = both(function, &[&x, &y]);
            assert_eq!(got.shape().dims(), out);
            let expected: Vec<f64> = (0..elements).map(pair).map(|(a, b)| exact(f64::from(a), f64::from(b))).collect();
            close(of(&got), &expected, 1e-6);
        }
        let truths: [Function<f32, bool>; 5] = [
            (Binary::Equal, |a, b| a == b),
            (Binary::Less, |a, b| a < b),
            (Binary::LessOrEqual, |a, b| a <= b),
            (Binary::Greater, |a, b| a > b),
            (Binary::GreaterOrEqual, |a, b| a >= b),
        ];
        for (function, exact) in truths {
            let expected: Vec<bool> = (0..elements).map(pair).map(|(a, b)| exact(a, b)).collect();
            assert_eq!(of::<bool>(&both(function, &[&x, &y])), expected, "{function:?} of {a:?} and {b:?}");
        }
        let condition = filled(out, |i| i % 3 == 1);
        let expected: Vec<f32> = (0..elements).map(|i| if i % 3 == 1 { pair(i).0 } else { pair(i).1 }).collect();
        assert_eq!(of::<f32>(&both(Where, &[&condition, &x, &y])), expected, "Where of {a:?} and {b:?}");
        if b.len() <= 4 {
            let condition = filled(b, |i| i % 2 == 0);
            let expected: Vec<f32> =
                (0..elements).map(|i| if under(b, out, i).is_multiple_of(2) { pair(i).0 } else { pair(i).1 }).collect();
            assert_eq!(of::<f32>(&both(Where, &[&condition, &x, &y])), expected);
        }
        let (doubled, expected) = (both(Variadic::Sum, &[&x, &y, &x]), (0..elements).map(pair).map(|(a, b)| f64::from(a + b + a)));
        close(of(&doubled), &expected.collect::<Vec<_>>(), 1e-6);
        let powers = both(Pow, &[&both(lowprec::nn::operator::Unary::Abs, &[&x]), &y]);
        let expected = (0..elements).map(pair).map(|(a, b)| f64::from(a.abs()).powf(f64::from(b)));
        close(of(&powers), &expected.collect::<Vec<_>>(), 1e-6);
    }
}

#[test]
fn large_operands_are_cut_between_rows() {
    // 3 · 77 · 301 elements, in rows of 301 and of one long run.
    let (x, row, column) = (noise(&[3, 77, 301], 1), noise(&[301], 2), noise(&[77, 1], 3));
    for (other, dims) in [(&row, &[301][..]), (&column, &[77, 1]), (&x, &[3, 77, 301])] {
        let expected: Vec<f32> = (0..3 * 77 * 301).map(|i| of::<f32>(&x)[i] - of::<f32>(other)[under(dims, &[3, 77, 301], i)]).collect();
        assert_eq!(of::<f32>(&both(Binary::Sub, &[&x, other])), expected);
    }
}

fn integers<T: Element + Copy>(function: Binary, a: &[T], b: &[T]) -> Vec<T> {
    of::<T>(&both(function, &[&value(&[a.len()], a.to_vec()), &value(&[b.len()], b.to_vec())])).to_vec()
}

#[test]
fn integers_wrap_and_divide_towards_zero() {
    assert_eq!(integers(Binary::Add, &[i8::MAX, 1], &[1, -3]), [i8::MIN, -2]);
    assert_eq!(integers(Binary::Sub, &[0u8, 7], &[1, 3]), [255, 4]);
    assert_eq!(integers(Binary::Mul, &[i64::MAX, -3], &[2, 4]), [-2, -12]);
    assert_eq!(integers(Binary::Div, &[-7, 7, i32::MIN], &[2, -2, -1]), [-3, -3, i32::MIN]);
    assert_eq!(integers(Binary::Div, &[7u16, 9], &[2, 10]), [3, 0]);
    let (a, b) = ([-4i32, 7, 5, 4, -7, 8, i32::MIN], [2i32, -3, 8, -2, 3, 5, -1]);
    assert_eq!(integers(Binary::Mod { fmod: false }, &a, &b), [0, -2, 5, 0, 2, 3, 0]);
    assert_eq!(integers(Binary::Mod { fmod: true }, &a, &b), [0, 1, 5, 0, -1, 3, 0]);
    assert_eq!(integers(Binary::Mod { fmod: false }, &[250u8], &[7]), [5]);
    for function in [Binary::Div, Binary::Mod { fmod: true }] {
        let zero = node(function, &[Some(&value(&[1], vec![1i32])), Some(&value(&[2], vec![1i32, 0]))]);
        assert!(matches!(zero.unwrap_err().kind(), Error::Parameter { what: "divisor", .. }));
        assert!(node(function, &[Some(&value(&[0], Vec::<i32>::new())), Some(&value(&[1], vec![0i32]))]).is_ok());
    }
    assert_eq!(integers(Binary::PRelu, &[-3i32, 4], &[5, 5]), [-15, 4]);
}

#[test]
fn floats_of_other_sizes() {
    let (a, b) = ([1.5f32, -2.25, 3.0], [0.5f32, 4.0, -7.0]);
    let half = |x: [f32; 3]| filled(&[3], |i| f16::from_f32(x[i]));
    let brain = |x: [f32; 3]| filled(&[3], |i| bf16::from_f32(x[i]));
    let expected = [0.75, -9.0, -21.0];
    assert_eq!(of::<f16>(&both(Binary::Mul, &[&half(a), &half(b)])), expected.map(f16::from_f32));
    assert_eq!(of::<bf16>(&both(Binary::Mul, &[&brain(a), &brain(b)])), expected.map(bf16::from_f32));
    assert_eq!(of::<bool>(&both(Binary::Less, &[&half(a), &half(b)])), [false, true, false]);
    let wide = |x: [f32; 3]| filled(&[3], |i| f64::from(x[i]));
    assert_eq!(of::<f64>(&both(Binary::Div, &[&wide(a), &wide(b)])), [3.0, -0.5625, 3.0 / -7.0]);
    // One rounding: 1 + 2^-11 is halfway between neighbours in f16, and goes to the even one.
    let sum = both(Binary::Add, &[&half([1.0; 3]), &half([2f32.powi(-11); 3])]);
    assert_eq!(of::<f16>(&sum), [f16::from_f32(1.0); 3]);
    let nan = both(Binary::Equal, &[&value(&[2], vec![f32::NAN, 1.0]), &value(&[2], vec![f32::NAN, 1.0])]);
    assert_eq!(of::<bool>(&nan), [false, true]);
    let rest =
        both(Binary::Mod { fmod: false }, &[&value(&[4], vec![-4.3f32, 7.2, -6.0, 6.0]), &value(&[4], vec![2.1f32, -3.4, 3.0, -3.0])]);
    close(of(&rest), &[2.0, -3.0, 0.0, 0.0], 1e-6);
    assert!(of::<f32>(&rest)[3].is_sign_negative() && of::<f32>(&rest)[2].is_sign_positive());
}

#[test]
fn bits_and_truth() {
    let (a, b) = (value(&[4], vec![false, false, true, true]), value(&[4], vec![false, true, false, true]));
    assert_eq!(of::<bool>(&both(Binary::And, &[&a, &b])), [false, false, false, true]);
    assert_eq!(of::<bool>(&both(Binary::Or, &[&a, &b])), [false, true, true, true]);
    assert_eq!(of::<bool>(&both(Binary::Xor, &[&a, &b])), [false, true, true, false]);
    assert_eq!(of::<bool>(&both(Binary::Equal, &[&a, &b])), [true, false, false, true]);
    assert_eq!(integers(Binary::BitwiseAnd, &[0b1100i16, -1], &[0b1010, 7]), [0b1000, 7]);
    assert_eq!(integers(Binary::BitwiseOr, &[0b1100u8, 1], &[0b1010, 128]), [0b1110, 129]);
    assert_eq!(integers(Binary::BitwiseXor, &[0b1100i64, -1], &[0b1010, 0]), [0b0110, -1]);
    assert_eq!(integers(Binary::BitShift { left: true }, &[16u8, 4, 1, 1], &[1, 2, 8, 255]), [32, 16, 0, 0]);
    assert_eq!(integers(Binary::BitShift { left: false }, &[16u64, 4, u64::MAX], &[1, 2, 64]), [8, 1, 0]);
}

#[test]
fn least_greatest_and_mean() {
    let (a, b, c) = (value(&[3], vec![3f32, 2.0, f32::NAN]), value(&[3], vec![1f32, f32::NAN, 4.0]), value(&[1], vec![2f32]));
    let nan = |value: &Value| of::<f32>(value).iter().map(|x| x.is_nan()).collect::<Vec<_>>();
    for function in [Variadic::Min, Variadic::Max] {
        assert_eq!(nan(&both(function, &[&a, &b, &c])), [false, true, true]);
    }
    assert_eq!(of::<f32>(&both(Variadic::Min, &[&a, &b, &c]))[0], 1.0);
    assert_eq!(of::<f32>(&both(Variadic::Max, &[&c, &b, &a]))[0], 3.0);
    assert_eq!(of::<f32>(&both(Variadic::Mean, &[&a, &b, &c]))[0], 2.0);
    assert_eq!(of::<f32>(&both(Variadic::Sum, &[&c])), [2.0]);
    assert_eq!(of::<f32>(&both(Variadic::Mean, &[&c, &c, &c, &c])), [2.0]);
    let (a, b) = (value(&[2, 1], vec![-1i8, 5]), value(&[1, 2], vec![0i8, 7]));
    assert_eq!(of::<i8>(&both(Variadic::Max, &[&a, &b])), [0, 7, 5, 7]);
    // Spread over the third, which has more axes than the others.
    assert_eq!(of::<i8>(&both(Variadic::Min, &[&a, &b, &value(&[2, 1, 1], vec![9i8, -9])])), [-1, -1, 0, 5, -9, -9, -9, -9]);
}

#[test]
fn powers() {
    let x = noise(&[3, 5], 4);
    for exponent in [2.0, 3.0, 1.0, -1.0, 0.5, 1.7] {
        let expected: Vec<f64> = of::<f32>(&x).iter().map(|&x| f64::from(x).powf(f64::from(exponent as f32))).collect();
        close(of(&both(Pow, &[&x, &value(&[], vec![exponent as f32])])), &expected, 1e-6);
        close(of(&both(Pow, &[&x, &value(&[1], vec![exponent])])), &x_to(&x, exponent), 1e-6);
    }
    let edges = both(Pow, &[&value(&[2], vec![-0f32, f32::NEG_INFINITY]), &value(&[], vec![0.5f32])]);
    assert_eq!(of::<f32>(&edges), [0.0, f32::INFINITY]);
    assert!(of::<f32>(&edges)[0].is_sign_positive());
    let cubes = both(Pow, &[&value(&[3], vec![2i64, -3, 10]), &value(&[], vec![3i32])]);
    assert_eq!(of::<i64>(&cubes), [8, -27, 1000]);
    assert_eq!(of::<i32>(&both(Pow, &[&value(&[3], vec![2i32, -1, 1]), &value(&[1], vec![-3i64])])), [0, -1, 1]);
    assert_eq!(of::<i32>(&both(Pow, &[&value(&[2], vec![2i32, 9]), &value(&[1], vec![0.5f32])])), [1, 3]);
    assert_eq!(of::<f32>(&both(Pow, &[&value(&[2], vec![2f32, 9.0]), &value(&[2], vec![3u8, 0])])), [8.0, 1.0]);
    assert_eq!(of::<i32>(&both(Pow, &[&value(&[1], vec![3i32]), &value(&[1], vec![u64::MAX])])), [3i32.wrapping_pow(u32::MAX)]);
    let zero = node(Pow, &[Some(&value(&[1], vec![0i32])), Some(&value(&[1], vec![-1i32]))]);
    assert!(matches!(zero.unwrap_err().kind(), Error::Parameter { what: "base", .. }));
}

fn x_to(x: &Value, exponent: f64) -> Vec<f64> {
    of::<f32>(x).iter().map(|&x| f64::from(x).powf(exponent)).collect()
}

#[test]
fn bounds() {
    let x = value(&[4], vec![-3f32, 0.5, 9.0, f32::NAN]);
    let (min, max) = (value(&[], vec![-1f32]), value(&[], vec![2f32]));
    let clip = |clip: Clip, inputs: &[Option<&Value>]| of::<f32>(&node(clip, inputs).unwrap()[0])[..3].to_vec();
    assert_eq!(clip(Clip::new(), &[Some(&x), Some(&min), Some(&max)]), [-1.0, 0.5, 2.0]);
    assert_eq!(clip(Clip::new(), &[Some(&x), Some(&min)]), [-1.0, 0.5, 9.0]);
    assert_eq!(clip(Clip::new(), &[Some(&x), None, Some(&max)]), [-3.0, 0.5, 2.0]);
    assert_eq!(clip(Clip::new(), &[Some(&x)]), [-3.0, 0.5, 9.0]);
    assert_eq!(clip(Clip::new().with_bounds(Some(0.0), Some(6.0)), &[Some(&x)]), [0.0, 0.5, 6.0]);
    // The upper bound has the last word.
    assert_eq!(clip(Clip::new(), &[Some(&x), Some(&max), Some(&min)]), [-1.0, -1.0, -1.0]);
    assert!(of::<f32>(&node(Clip::new(), &[Some(&x), Some(&min), Some(&max)]).unwrap()[0])[3].is_nan());
    let codes = both(Clip::new(), &[&value(&[3], vec![1u8, 5, 200]), &value(&[], vec![2u8]), &value(&[], vec![100u8])]);
    assert_eq!(of::<u8>(&codes), [2, 5, 100]);
    let bound = node(Clip::new(), &[Some(&x), Some(&noise(&[2], 0))]);
    assert!(matches!(bound.unwrap_err().kind(), Error::Shape { .. }));
}

#[test]
fn what_does_not_go_together() {
    let (a, b) = (noise(&[2, 3], 0), noise(&[4], 0));
    assert!(matches!(node(Binary::Add, &[Some(&a), Some(&b)]).unwrap_err().kind(), Error::Shape { .. }));
    assert!(
        matches!(node(Binary::Add, &[Some(&a), None]).unwrap_err().kind(), Error::Parameter { what: "input", value, .. } if value == "1")
    );
    let mixed = node(Binary::Add, &[Some(&a), Some(&value(&[3], vec![1i32, 2, 3]))]);
    assert!(matches!(mixed.unwrap_err().kind(), Error::Type { .. }));
    assert!(matches!(node(Binary::PRelu, &[Some(&b), Some(&noise(&[2, 4], 0))]).unwrap_err().kind(), Error::Shape { .. }));
    assert!(matches!(node(Binary::BitShift { left: true }, &[Some(&a), Some(&a)]).unwrap_err().kind(), Error::Type { .. }));
    // Nine axes that alternate can't be walked over.
    let (odd, even): (Vec<usize>, Vec<usize>) = ((0..9).map(|i| 1 + i % 2).collect(), (0..9).map(|i| 2 - i % 2).collect());
    assert!(matches!(node(Binary::Add, &[Some(&noise(&odd, 0)), Some(&noise(&even, 0))]).unwrap_err().kind(), Error::Unsupported { .. }));
    let picked =
        both(Where, &[&value(&[2], vec![true, false]), &filled(&[2], |_| I4::new(-8).unwrap()), &filled(&[], |_| I4::new(7).unwrap())]);
    assert_eq!((picked.dtype(), picked.bytes()), (DType::I4, &[248, 7][..]));
}
