//! Properties of quantization, over every code type, granularity and sort of range.

use lowprec::num::{QuantElem, dequantize, quantize};
use lowprec::quant::{Affine, Quantizer};
use lowprec::{Error, Granularity, I2, I4, NonFinite, QParams, QuantizedTensor, Scheme, Shape, Tensor, U2, U4};
use proptest::prelude::*;

/// Values of one magnitude, with zeros, ties' neighbours and the magnitude itself among them.
fn values(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    let element = prop_oneof![6 => -1.0f32..1.0, 1 => Just(0.0f32), 1 => Just(1.0f32), 1 => Just(-1.0f32), 1 => Just(-0.0f32)];
    let magnitude = prop_oneof![Just(1e-44f32), Just(1e-38), Just(1e-20), Just(1e-3), Just(1.0), Just(77.0), Just(1e20), Just(3.4e38)];
    (proptest::collection::vec(element, len), magnitude, 0..3)
        .prop_map(|(x, magnitude, side)| x.into_iter().map(|x| magnitude * [x, x.abs(), -x.abs()][side as usize]).collect())
}

fn schemes() -> impl Strategy<Value = Scheme> {
    (2u32..=8, any::<bool>(), any::<bool>(), any::<bool>())
        // Two bits, unsigned, symmetric and narrow leave 1..=3 around 2: one code on each side, like all others.
        .prop_map(|(bits, signed, symmetric, narrow)| {
            Scheme::new(bits, signed).with_symmetric(symmetric).with_narrow_range(narrow && signed)
        })
}

/// Half a step, and what f32 adds when it divides, multiplies and stores.
fn bound(x: f32, scale: f32) -> f64 {
    0.5 * f64::from(scale) * (1.0 + 1e-5) + 3e-7 * f64::from(x.abs()) + f64::from(f32::from_bits(1))
}

proptest! {
    #[test]
    fn round_trip_error_is_half_a_step_inside_the_range(x in values(1..60), scheme in schemes()) {
        let x = Tensor::new([x.len()], x).unwrap();
        let quantizer = Affine::<i16>::fit(&x, &scheme).unwrap();
        let (scale, zero_point) = quantizer.qparams().at(0);
        let back = quantizer.quantize(&x).unwrap().dequantize();
        let (lo, hi) = (dequantize(scheme.qmin(), scale, zero_point), dequantize(scheme.qmax(), scale, zero_point));
        for (&x, &y) in x.as_slice().iter().zip(back.as_slice()) {
            prop_assert!(y.is_finite());
            if x < lo || x > hi {
                prop_assert_eq!(y, if x < lo { lo } else { hi });
            }
            // Beyond the last code too, by which an asymmetric zero point was rounded. The exceptions of `affine_qparams`: an even
            // number of codes, near f32::MAX, where the side with fewer codes is cut by up to a step, and 1/64 of a subnormal step.
            let steps = f64::from(scheme.qmax() - scheme.qmin());
            let cut = (x < lo || x > hi) && steps % 2.0 == 1.0 && f64::from(x.abs()) > steps / (steps + 1.0) * f64::from(f32::MAX);
            let short = if (x < lo || x > hi) && scale < f32::MIN_POSITIVE { f64::from(scale) / 64.0 } else { 0.0 };
            let bound = if cut { f64::from(scale) } else { bound(x, scale) + short };
            prop_assert!((f64::from(x) - f64::from(y)).abs() <= bound, "{x:e} became {y:e} at scale {scale:e}");
        }
    }

    #[test]
    fn zero_is_exact_and_codes_are_monotone_and_idempotent(x in values(2..40), scheme in schemes()) {
        let mut sorted = x;
        sorted.push(0.0);
        sorted.sort_by(f32::total_cmp);
        let x = Tensor::new([sorted.len()], sorted).unwrap();
        let quantizer = Affine::<i16>::fit(&x, &scheme).unwrap();
        let codes = quantizer.quantize(&x).unwrap();
        prop_assert!(codes.codes().windows(2).all(|pair| pair[0] <= pair[1]));
        let back = codes.dequantize();
        for (x, y) in x.as_slice().iter().zip(back.as_slice()) {
            prop_assert!(*x != 0.0 || *y == 0.0);
        }
        prop_assert_eq!(quantizer.quantize(&back).unwrap().codes(), codes.codes());
    }

    #[test]
    fn constants_come_back_exactly(c in any::<f32>().prop_filter("finite", |c| c.is_finite()), scheme in schemes(), len in 1usize..5) {
        let x = Tensor::full([len], c).unwrap();
        let quantizer = Affine::<i16>::fit(&x, &scheme).unwrap();
        prop_assert_eq!(quantizer.quantize(&x).unwrap().dequantize(), x);
    }

    #[test]
    fn every_element_uses_the_scale_of_its_group(
        dims in proptest::collection::vec(1usize..5, 1..4),
        axis in 0usize..3,
        size in 1usize..4,
        kind in 0..3,
        seed in values(256),
    ) {
        let axis = axis % dims.len();
        let mut dims = dims;
        let granularity = match kind {
            0 => Granularity::PerTensor,
            1 => Granularity::PerChannel { axis },
            _ => {
                dims[axis] *= size;
                Granularity::PerGroup { axis, size }
            }
        };
        let shape = Shape::new(dims.clone()).unwrap();
        let x = Tensor::new(dims.clone(), seed.iter().cycle().take(shape.elements()).copied().collect()).unwrap();
        let q = Affine::<i8>::fit(&x, &Scheme::INT8_ACTIVATION.with_granularity(granularity)).unwrap().quantize(&x).unwrap();
        // The element's index along each axis, from its flat index: nothing shared with the crate's own walk.
        let strides: Vec<usize> = (0..dims.len()).map(|a| dims[a + 1..].iter().product()).collect();
        for (i, &value) in x.as_slice().iter().enumerate() {
            let index: Vec<usize> = (0..dims.len()).map(|a| i / strides[a] % dims[a]).collect();
            let parameter = match granularity {
                Granularity::PerTensor => 0,
                Granularity::PerChannel { axis } => index[axis],
                Granularity::PerGroup { axis, size } => (0..dims.len()).fold(0, |at, a| {
                    let (length, index) = if a == axis { (dims[a] / size, index[a] / size) } else { (dims[a], index[a]) };
                    at * length + index
                }),
                _ => unreachable!(),
            };
            let (scale, zero_point) = q.params().at(parameter);
            prop_assert_eq!(q.code(i), Some(quantize(value, scale, zero_point, -128, 127)));
        }
        // A slice of the codes is the codes of a slice.
        for (axis, &length) in dims.iter().enumerate() {
            let unit = match granularity {
                Granularity::PerGroup { axis: grouped, size } if grouped == axis => size,
                _ => 1,
            };
            let range = unit.min(length - unit)..length;
            let part = q.slice(axis, range.clone()).unwrap();
            prop_assert_eq!(part.dequantize(), q.dequantize().slice(axis, range).unwrap());
            if unit > 1 {
                let cut = matches!(q.slice(axis, 0..unit - 1), Err(Error::Parameter { .. }));
                prop_assert!(cut);
            }
        }
    }

    #[test]
    fn packing_keeps_every_code(codes in proptest::collection::vec(any::<i32>(), 0..40)) {
        fn check<T: QuantElem>(codes: &[i32]) -> Result<(), TestCaseError> {
            let span = i64::from(T::QMAX) - i64::from(T::QMIN) + 1;
            let codes: Vec<i32> = codes.iter().map(|&c| (i64::from(T::QMIN) + i64::from(c).rem_euclid(span)) as i32).collect();
            let shape = Shape::new([codes.len()]).unwrap();
            let params = QParams::per_tensor(1.0, 0, T::QMIN, T::QMAX).unwrap();
            let q = QuantizedTensor::<T>::from_codes(&codes, shape.clone(), params.clone()).unwrap();
            prop_assert_eq!(q.codes(), codes.clone());
            let again = QuantizedTensor::<T>::from_storage(q.storage().to_vec(), shape, params).unwrap();
            prop_assert_eq!(&again, &q);
            // Bits of the codes rounded up to whole bytes, and one scale.
            prop_assert_eq!(q.bytes(), (codes.len() * T::BITS as usize).div_ceil(8) + 4);
            Ok(())
        }
        check::<i8>(&codes)?;
        check::<u8>(&codes)?;
        check::<i16>(&codes)?;
        check::<i32>(&codes)?;
        check::<I4>(&codes)?;
        check::<U4>(&codes)?;
        check::<I2>(&codes)?;
        check::<U2>(&codes)?;
    }
}

#[test]
fn codes_at_the_bounds_of_i32_keep_their_values() {
    let (min, max) = (i32::MIN, i32::MAX);
    let values = |zero_point: i32, codes: [i32; 2]| {
        let params = QParams::per_tensor(1.0, zero_point, min, max).unwrap();
        QuantizedTensor::<i32>::from_codes(&codes, Shape::new([2]).unwrap(), params).unwrap().dequantize().into_vec()
    };
    assert_eq!(values(max, [min, -2]), [-4_294_967_295.0, -2_147_483_649.0]);
    assert_eq!(values(min, [max, 0]), [4_294_967_295.0, 2_147_483_648.0]);
    // And there again: multiples of 2^10 are exact in f32 up to 2^34.
    let x = Tensor::new([4], vec![-4_000_000_000.0, -3_000_000_512.0, -1024.0, 1e10]).unwrap();
    let params = QParams::per_tensor(1.0, max, min, max).unwrap();
    let codes = QuantizedTensor::<i32>::quantize(&x, &params).unwrap();
    assert_eq!(codes.codes(), [-1_852_516_353, -852_516_865, max - 1024, max]);
    assert_eq!(codes.dequantize().as_slice(), [-4_000_000_000.0, -3_000_000_512.0, -1024.0, 0.0]);
}

#[test]
fn nan_and_infinities_are_refused_or_saturated() {
    let params = QParams::per_tensor(0.1, 3, 0, 255).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let x = Tensor::new([3], vec![0.0, bad, 1.0]).unwrap();
        assert!(matches!(QuantizedTensor::<u8>::quantize(&x, &params), Err(Error::NonFinite { index: 1, .. })));
        assert!(matches!(Affine::<u8>::fit(&x, &Scheme::UINT8_ACTIVATION), Err(Error::NonFinite { index: 1, .. })));
        // The range of 0 and 1, whatever stands between them.
        let tolerant = Affine::<u8>::fit_with(&x, &Scheme::UINT8_ACTIVATION, NonFinite::Saturate).unwrap();
        assert_eq!(tolerant.qparams().at(0), (1.0 / 255.0, 0));
        assert_eq!(tolerant.quantize(&x).unwrap().codes(), [0, if bad > 0.0 { 255 } else { 0 }, 255]);
        let code = QuantizedTensor::<u8>::quantize_with(&x, &params, NonFinite::Saturate).unwrap().code(1).unwrap();
        assert_eq!(
            code,
            if bad.is_nan() {
                3
            } else if bad > 0.0 {
                255
            } else {
                0
            }
        );
    }
}

/// Wherever it stands in a long tensor, the first element that is not finite is named by its place in the whole.
#[test]
fn the_first_that_is_not_finite_is_named() {
    for (granularity, first, later) in [
        (Granularity::PerTensor, 700, 1500),
        (Granularity::PerTensor, 256, 300),
        (Granularity::PerChannel { axis: 0 }, 1100, 1999),
        (Granularity::PerGroup { axis: 1, size: 32 }, 901, 1999),
    ] {
        let good = Tensor::new([2, 1024], vec![1.0; 2048]).unwrap();
        let params = Affine::<i8>::fit(&good, &Scheme::INT8_WEIGHT.with_granularity(granularity)).unwrap();
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![f32::MAX; 2048];
            (x[first], x[later]) = (bad, f32::NAN);
            let error = params.quantize(&Tensor::new([2, 1024], x).unwrap()).unwrap_err();
            assert!(
                matches!(&error, Error::NonFinite { index, value, .. } if *index == first && value.to_bits() == bad.to_bits()),
                "{error}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = Tensor::full([4, 6], 1.0).unwrap();
    let channels = |n| QParams::new(vec![1.0; n], vec![], Granularity::PerChannel { axis: 1 }, -128, 127).unwrap();
    assert!(matches!(QuantizedTensor::<i8>::quantize(&x, &channels(4)), Err(Error::Length { expected: 6, got: 4, .. })));
    assert!(matches!(QuantizedTensor::<I4>::quantize(&x, &channels(6)), Err(Error::Parameter { .. })));
    let unsigned = Affine::<i8>::fit(&x, &Scheme::UINT8_ACTIVATION).unwrap_err().to_string();
    assert!(unsigned.contains("(0, 255)") && unsigned.contains("i8 holds -128 to 127"), "{unsigned}");
    let scalar = Affine::<i8>::fit(&Tensor::full([], 1.0).unwrap(), &Scheme::INT8_WEIGHT).unwrap_err().to_string();
    assert!(scalar.contains("axis 0") && scalar.contains("a scalar has no axes"), "{scalar}");
    let axis = Scheme::INT8_WEIGHT.with_granularity(Granularity::PerChannel { axis: 2 });
    assert!(matches!(Affine::<i8>::fit(&x, &axis), Err(Error::Axis { axis: 2, .. })));
    let group = Scheme::INT8_WEIGHT.with_granularity(Granularity::PerGroup { axis: 1, size: 4 });
    assert!(matches!(Affine::<i8>::fit(&x, &group), Err(Error::Group { size: 4, axis: 1, length: 6 })));
    assert!(Affine::<i8>::fit(&x, &Scheme::INT8_WEIGHT.with_bits(9)).is_err());

    let shape = || Shape::new([3]).unwrap();
    let narrow = || QParams::per_tensor(1.0, 0, -7, 7).unwrap();
    assert!(matches!(QuantizedTensor::<I4>::from_codes(&[0, -8, 0], shape(), narrow()), Err(Error::Code { index: 1, value: -8, .. })));
    assert!(matches!(QuantizedTensor::<I4>::from_codes(&[0; 4], shape(), narrow()), Err(Error::Length { .. })));
    assert!(matches!(QuantizedTensor::<I4>::from_storage(vec![0x80, 0], shape(), narrow()), Err(Error::Code { index: 1, value: -8, .. })));
    assert!(matches!(QuantizedTensor::<I4>::from_storage(vec![0; 3], shape(), narrow()), Err(Error::Length { expected: 2, .. })));
    let q = QuantizedTensor::<i8>::quantize(&x, &channels(6)).unwrap();
    assert!(matches!(q.dequantize_into(&mut [0.0; 23]), Err(Error::Length { expected: 24, got: 23, .. })));
    assert!(q.slice(0, 2..5).is_err() && q.slice(2, 0..1).is_err());
    assert_eq!(q.code(24), None);
}

#[test]
fn empty_tensors_are_fine() {
    let x = Tensor::new([0, 3], vec![]).unwrap();
    for granularity in [Granularity::PerTensor, Granularity::PerChannel { axis: 0 }, Granularity::PerChannel { axis: 1 }] {
        let q = Affine::<i8>::fit(&x, &Scheme::INT8_WEIGHT.with_granularity(granularity)).unwrap().quantize(&x).unwrap();
        assert_eq!(q.dequantize(), x);
        assert!(q.params().scales().iter().all(|&scale| scale == 1.0));
    }
    // As many scales as no machine holds, for no element.
    let wide = Tensor::new([1 << 60, 0], vec![]).unwrap();
    assert!(matches!(Affine::<i8>::fit(&wide, &Scheme::INT8_WEIGHT), Err(Error::ShapeOverflow { .. })));
}

#[test]
fn bytes_are_those_held() {
    let x = Tensor::new([2, 64], (0..128).map(|i| i as f32 - 40.0).collect()).unwrap();
    let bytes = |scheme: Scheme| Affine::<U4>::fit(&x, &scheme).unwrap().quantize(&x).unwrap().bytes();
    // 128 codes of half a byte, and a scale and a zero point of four bytes each for the tensor, a row, a group of 32.
    let u4 = Scheme::new(4, false);
    assert_eq!(bytes(u4), 64 + 8);
    assert_eq!(bytes(u4.with_granularity(Granularity::PerChannel { axis: 0 })), 64 + 2 * 8);
    assert_eq!(bytes(u4.with_granularity(Granularity::PerGroup { axis: 1, size: 32 })), 64 + 4 * 8);
    let symmetric = Affine::<i8>::fit(&x, &Scheme::INT8_WEIGHT).unwrap().quantize(&x).unwrap();
    assert_eq!(symmetric.bytes(), 128 + 2 * 4);
}
