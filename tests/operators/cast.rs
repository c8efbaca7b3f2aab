//! Every pair of element types.

use crate::nodes::{both, filled, node, noise, of, value};
use lowprec::nn::operator::Cast;
use lowprec::num::{F4E2M1, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E8M0, I2, I4, ScaleRounding, SmallFloat, U2, U4, bf16, f16};
use lowprec::tensor::Element;
use lowprec::{DType, Error, Value};

fn cast<T: Element + Copy, U: Element + Copy>(x: &[T]) -> Vec<U> {
    of::<U>(&both(Cast::new(U::DTYPE), &[&value(&[x.len()], x.to_vec())])).to_vec()
}

#[test]
fn small_numbers_survive_every_pair() {
    // 0 and 1 are in every type but one, which has no 0; 300 elements are more than a block.
    let truths = filled(&[300], |i| i % 3 == 1);
    let powers = both(Cast::new(DType::F8E8M0), &[&filled(&[300], |i| if i % 3 == 1 { 1f32 } else { 2.0 })]);
    for &from in DType::ALL {
        let start = if from == DType::F8E8M0 { &powers } else { &truths };
        let x = both(Cast::new(from), &[start]);
        assert_eq!(x.dtype(), from);
        for &to in DType::ALL.iter().filter(|&&to| to != DType::F8E8M0 && (to, from) != (DType::Bool, DType::F8E8M0)) {
            let y = both(Cast::new(to), &[&x]);
            assert_eq!((y.dtype(), y.shape().dims()), (to, &[300][..]));
            // 2 does not fit everywhere.
            if from == DType::F8E8M0 && matches!(to, DType::I2 | DType::Bool) {
                continue;
            }
            let back = of::<f32>(&both(Cast::new(DType::F32), &[&y])).to_vec();
            let rest = if from == DType::F8E8M0 { 2.0 } else { 0.0 };
            let expected: Vec<f32> = (0..300).map(|i| if i % 3 == 1 { 1.0 } else { rest }).collect();
            assert_eq!(back, expected, "{from} to {to}");
        }
    }
    let image = noise(&[2, 3, 4, 5], 1);
    assert_eq!(both(Cast::new(DType::F32), &[&image]), image);
    assert_eq!(both(Cast::new(DType::I16), &[&image]).dtype(), DType::I16);
}

#[test]
fn floats_lose_their_fraction_and_integers_their_high_bits() {
    let x = [1.9f32, -1.9, 300.7, -300.7, f32::NAN];
    assert_eq!(cast::<_, i64>(&x), [1, -1, 300, -300, 0]);
    assert_eq!(cast::<_, i32>(&x), [1, -1, 300, -300, 0]);
    assert_eq!(cast::<_, i8>(&x), [1, -1, 44, -44, 0]);
    assert_eq!(cast::<_, u8>(&x), [1, 255, 44, 212, 0]);
    assert_eq!(cast::<_, u16>(&x), [1, 65535, 300, 65236, 0]);
    assert_eq!(cast::<_, u64>(&[1e19f64, -1.0, 7.5]), [10_000_000_000_000_000_000, u64::MAX, 7]);
    assert_eq!(cast::<_, i8>(&[300i32, -129]), [44, 127]);
    assert_eq!(cast::<_, u32>(&[-1i64, 1 << 32]), [u32::MAX, 0]);
    assert_eq!(cast::<_, i64>(&[u64::MAX]), [-1]);
    let fours: Vec<i8> = cast::<_, I4>(&[8f32, -9.0, 1.5, -1.5]).iter().map(|x| x.code()).collect();
    assert_eq!(fours, [-8, 7, 1, -1]);
    let fours: Vec<u8> = cast::<_, U4>(&[17i32, -1, 15]).iter().map(|x| x.code()).collect();
    assert_eq!(fours, [1, 15, 15]);
    let twos: Vec<i8> = cast::<_, I2>(&[-3f32, -2.0, 1.0, 2.0, 3.0]).iter().map(|x| x.code()).collect();
    assert_eq!(twos, [1, -2, 1, -2, -1]);
    let twos: Vec<u8> = cast::<_, U2>(&[-3f32, 5.0]).iter().map(|x| x.code()).collect();
    assert_eq!(twos, [1, 1]);
    assert_eq!(cast::<_, bool>(&[0f32, -0.0, 0.1, f32::NAN]), [false, false, true, true]);
    assert_eq!(cast::<_, bool>(&[0i64, -7]), [false, true]);
    assert_eq!(cast::<_, bool>(&[0u16, 256]), [false, true]);
}

#[test]
fn floats_round_once() {
    // Halfway between neighbours in f32 but for the last bit of an i64: by way of f64 it would go to the even one.
    let x = (1i64 << 60) + (1 << 36) + 1;
    assert_eq!(cast::<_, f32>(&[x])[0], (1u64 << 60) as f32 + (1u64 << 37) as f32);
    assert_eq!(cast::<_, f32>(&[x as u64])[0], cast::<_, f32>(&[x])[0]);
    // Just above halfway in f16, which f32 doesn't see.
    let above = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
    assert_eq!(cast::<_, f16>(&[above]), [f16::from_f32(1.0 + 2f32.powi(-10))]);
    assert_eq!(cast::<_, bf16>(&[1.0 + 2f64.powi(-8) + 2f64.powi(-40)]), [bf16::from_f32(1.0 + 2f32.powi(-7))]);
    // Halfway itself goes to the even one, and so does what is below it to the lower; signs mirror.
    let (half, below) = (1.0 + 2f64.powi(-11), 1.0 + 2f64.powi(-11) - 2f64.powi(-40));
    assert_eq!(cast::<_, f16>(&[half, -below, -above]), [1.0, -1.0, -1.0 - 2f32.powi(-10)].map(f16::from_f32));
    assert_eq!(cast::<_, f16>(&[1e300, -1e-300, 65519.999, 65520.0]), [f16::INFINITY, -f16::ZERO, f16::MAX, f16::INFINITY]);
    assert_eq!(cast::<_, F8E4M3>(&[1.0625f64 + 2f64.powi(-40)])[0].to_f32(), 1.125);
    assert_eq!(cast::<_, f16>(&[65520f32, 1e-8]), [f16::INFINITY, f16::ZERO]);
    assert_eq!(cast::<_, f64>(&[f16::from_f32(-1.5)]), [-1.5]);
    assert_eq!(cast::<_, F4E2M1>(&[300i32, -7, 1]).iter().map(|x| x.to_f32()).collect::<Vec<_>>(), [6.0, -6.0, 1.0]);
}

#[test]
fn saturation_and_scales() {
    let x = [1e6f32, -1e6, f32::INFINITY, 0.48];
    let of_type = |cast: Cast, x: &[f32]| both(Cast::new(DType::F32), &[&both(cast, &[&value(&[x.len()], x.to_vec())])]);
    let codes = |cast: Cast| of::<f32>(&of_type(cast, &x)).to_vec();
    assert_eq!(codes(Cast::new(DType::F8E4M3)), [448.0, -448.0, 448.0, 0.46875]);
    assert_eq!(codes(Cast::new(DType::F8E5M2).with_saturation(false)), [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, 0.5]);
    assert!(codes(Cast::new(DType::F8E4M3).with_saturation(false))[..3].iter().all(|x| x.is_nan()));
    for (rounding, expected) in
        [(ScaleRounding::Up, [2.0, 0.25, 4.0]), (ScaleRounding::Down, [1.0, 0.125, 4.0]), (ScaleRounding::Nearest, [1.0, 0.125, 4.0])]
    {
        let scales = of_type(Cast::new(DType::F8E8M0).with_scale_rounding(rounding), &[1.1, 0.126, 4.0]);
        assert_eq!(of::<f32>(&scales), expected);
    }
    let half = value(&[2], vec![f16::from_f32(1e4), f16::from_f32(-2.0)]);
    assert_eq!(of::<F8E4M3>(&both(Cast::new(DType::F8E4M3), &[&half]))[0], F8E4M3::from_f32(1e4, true));
    assert_eq!(of::<F8E5M2>(&both(Cast::new(DType::F8E5M2), &[&half]))[1], F8E5M2::from_f32(-2.0, true));
    assert_eq!(of::<F8E8M0>(&both(Cast::new(DType::F8E8M0), &[&half]))[1].to_f32(), 2.0);
}

#[test]
fn like_another() {
    let (x, like) = (noise(&[2, 3], 1), value(&[1], vec![F8E4M3Fnuz::from_f32(0.0, true)]));
    assert_eq!(both(Cast::like(), &[&x, &like]), both(Cast::new(DType::F8E4M3Fnuz), &[&x]));
    assert!(matches!(node(Cast::like(), &[Some(&x)]).unwrap_err().kind(), Error::Length { .. }));
    let _: Value = both(Cast::like(), &[&like, &x]);
}
