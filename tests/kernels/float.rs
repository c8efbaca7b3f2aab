//! Float and dynamic kernels, ranges and conversions.
use lowprec::Error;
use lowprec::NonFinite;
use lowprec::kernels::{
    Activation, ActivationRule, Conv2dGeometry, Dequantize, Epilogue, FloatEpilogue, ImageLayout, ImageShape, Isa, Matrix, MatrixMut,
    PackedConv2d, PackedFloatConv2d, PackedFloatWeights, PackedWeights, Per, RangeOf, WeightLayout, Workspace, conv2d_dynamic, conv2d_f32,
    dequantize_i8_for, dequantize_u8_for, gemm_dynamic, min_max_for, quantize_i8_for, quantize_u8_for, reference, sgemm,
};
use lowprec::num::{affine_qparams, dequantize, quantize};
use proptest::prelude::*;

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Within 1e-5 of the largest magnitude.
fn assert_close(got: &[f32], expected: &[f64], context: &str) {
    let largest = expected.iter().fold(1e-30, |a: f64, x| a.max(x.abs()));
    for (i, (&x, &y)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(x) - y).abs() <= 1e-5 * largest, "{context}: element {i} is {x}, {y} expected");
    }
    assert_eq!(got.len(), expected.len());
}

fn activation(i: u64) -> Activation {
    [Activation::None, Activation::Relu, Activation::Clamp { lo: -0.25, hi: 1.5 }][i as usize % 3]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sgemm_equals_reference(m in 0usize..70, n in 0usize..70, k in 0usize..70, seed in any::<u64>(), with_bias in any::<bool>()) {
        let (lhs, weights, bias) = (floats(seed, m * k), floats(seed ^ 1, n * k), floats(seed ^ 2, n));
        let bias = with_bias.then_some(&bias[..]);
        let expected = reference::gemm_f64(&lhs, m, k, &weights, n, bias, activation(seed));
        for isa in Isa::available() {
            let packed = PackedFloatWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
            let mut dst = vec![9.0; m * n];
            let (a, c) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
            sgemm(a, &packed, &FloatEpilogue::new().with_bias(bias).with_activation(activation(seed)), c, 1).unwrap();
            assert_close(&dst, &expected, isa.name());
            // Row by row: the same, bit for bit.
            for row in 0..m {
                let mut alone = vec![9.0; n];
                let a = Matrix::new(&lhs[row * k..][..k], 1, k).unwrap();
                sgemm(a, &packed, &FloatEpilogue::new().with_bias(bias).with_activation(activation(seed)), MatrixMut::new(&mut alone, 1, n).unwrap(), 1).unwrap();
                prop_assert_eq!(bits(&alone), bits(&dst[row * n..][..n]));
            }
        }
    }

    #[test]
    fn conv2d_f32_equals_reference(
        kernel in prop::array::uniform2(1usize..4), stride in prop::array::uniform2(1usize..3), dilation in prop::array::uniform2(1usize..3),
        padding in prop::array::uniform4(0usize..3), channels in (1usize..9, 1usize..20, 1usize..4), depthwise in any::<bool>(),
        size in (1usize..4, 1usize..10, 1usize..10), nchw in any::<bool>(), seed in any::<u64>(),
    ) {
        let (a, b, groups) = channels;
        let (input, output, groups) = if depthwise { (b + 1, groups * (b + 1), b + 1) } else { (a * groups, b * groups, groups) };
        let geometry = Conv2dGeometry::new(input, output, kernel).with_stride(stride).with_dilation(dilation).with_padding(padding).with_groups(groups);
        let (n, h, w) = size;
        prop_assume!(geometry.output_size(h, w).is_ok());
        let shape = ImageShape { n, h, w, layout: if nchw { ImageLayout::Nchw } else { ImageLayout::Nhwc } };
        let (image, weights, bias) = (floats(seed, n * input * h * w), floats(seed ^ 1, geometry.weight_shape().iter().product()), floats(seed ^ 2, output));
        let expected = reference::conv2d_f64(&image, shape, &geometry, &weights, Some(&bias), activation(seed));
        for isa in Isa::available() {
            let packed = PackedFloatConv2d::pack_for(isa, &geometry, &weights).unwrap();
            prop_assert_eq!(&packed.unpack(), &weights);
            let mut workspace = Workspace::new();
            let mut dst = vec![9.0; expected.len()];
            conv2d_f32(&image, shape, &packed, &FloatEpilogue::new().with_bias(Some(&bias)).with_activation(activation(seed)), &mut dst, &mut workspace, 1).unwrap();
            assert_close(&dst, &expected, isa.name());
            // Image by image: the same, bit for bit.
            let (from, to) = (image.len() / n, dst.len() / n);
            for i in 0..n {
                let mut alone = vec![9.0; to];
                let one = ImageShape { n: 1, ..shape };
                conv2d_f32(&image[i * from..][..from], one, &packed, &FloatEpilogue::new().with_bias(Some(&bias)).with_activation(activation(seed)), &mut alone, &mut workspace, 1).unwrap();
                prop_assert_eq!(bits(&alone), bits(&dst[i * to..][..to]));
            }
        }
    }

    #[test]
    fn gemm_dynamic_is_its_parts(m in 1usize..40, n in 1usize..40, k in 1usize..70, seed in any::<u64>(), rows in any::<bool>(), symmetric in any::<bool>(), qmax in 1i32..256) {
        let lhs = floats(seed, m * k);
        let weights: Vec<i8> = floats(seed ^ 1, n * k).iter().map(|x| (x * 128.0) as i8).collect();
        let (scales, bias) = (floats(seed ^ 2, n).iter().map(|x| x.abs() + 0.01).collect::<Vec<_>>(), floats(seed ^ 3, n));
        let rule = ActivationRule { qmax, symmetric, ..Default::default() };
        let epilogue = Epilogue::new(&scales).with_bias(Some(&bias)).with_activation(activation(seed));
        let mut parameters = Vec::new();
        for row in 0..m {
            let values = if rows { &lhs[row * k..][..k] } else { &lhs[..] };
            let range = (values.iter().copied().fold(f32::MAX, f32::min), values.iter().copied().fold(f32::MIN, f32::max));
            parameters.push(affine_qparams(range.0, range.1, 0, qmax, symmetric));
        }
        let (lhs_scales, zero_points): (Vec<f32>, Vec<i32>) = parameters.into_iter().unzip();
        let codes: Vec<u8> = lhs.iter().enumerate().map(|(i, &x)| quantize(x, lhs_scales[i / k], zero_points[i / k], 0, qmax) as u8).collect();
        let sums = reference::gemm(&codes, m, k, Per::Row(&zero_points), &weights, n);
        let stage = Dequantize::new(Per::Row(&lhs_scales), &scales).with_bias(Some(&bias)).with_activation(activation(seed));
        let mut expected = vec![0.0; sums.len()];
        reference::dequantize(&sums, n, 1, &stage, &mut expected);
        let range = if rows { RangeOf::Row } else { RangeOf::Tensor };
        for isa in Isa::available() {
            let packed = PackedWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
            let mut dst = vec![9.0; m * n];
            let (a, c) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
            gemm_dynamic(a, range, &rule, &packed, &epilogue, c, &mut Workspace::new(), 1).unwrap();
            prop_assert_eq!(bits(&dst), bits(&expected), "{} {:?}", isa.name(), range);
        }
    }

    /// The floats around each tie, where a quotient that is not divided could be on its other side, by ranges of any scale.
    #[test]
    fn codes_beside_ties(low in -1f32..0.0, high in 0f32..1.0, exponent in -80i32..80, qmax in prop_oneof![Just(255), 1i32..256], symmetric in any::<bool>()) {
        let (min, max) = (low * 2f32.powi(exponent), high * 2f32.powi(exponent));
        prop_assume!(min < max && (min == 0.0 || min.is_normal()) && (max == 0.0 || max.is_normal()));
        let (scale, zero_point) = affine_qparams(min, max, 0, qmax, symmetric);
        let mut values = vec![min, max];
        for code in -1..=qmax {
            let tie = ((f64::from(code - zero_point) + 0.5) * f64::from(scale)) as f32;
            values.extend((-3i32..=3).map(|ulps| f32::from_bits(tie.to_bits().wrapping_add_signed(ulps))).filter(|x| (min..=max).contains(x)));
        }
        let k = 64;
        values.resize(values.len().next_multiple_of(k), max);
        let code = |x: f32| quantize(x, scale, zero_point, 0, qmax);
        let expected: Vec<f32> = values.iter().map(|&x| (code(x) - zero_point) as f32 * scale).collect();
        let mut identity = vec![0i8; k * k];
        identity.iter_mut().step_by(k + 1).for_each(|x| *x = 1);
        let rule = ActivationRule { qmax, symmetric, ..Default::default() };
        let mut beyond = values.clone();
        beyond.extend(values.iter().map(|x| x * 3.0).chain([f32::MAX, f32::MIN]));
        let codes: Vec<u8> = beyond.iter().map(|&x| code(x) as u8).collect();
        for isa in Isa::available() {
            let packed = PackedWeights::pack_for(isa, &identity, k, k, WeightLayout::Nk).unwrap();
            let (m, mut dst) = (values.len() / k, vec![9.0; values.len()]);
            let (a, c) = (Matrix::new(&values, m, k).unwrap(), MatrixMut::new(&mut dst, m, k).unwrap());
            gemm_dynamic(a, RangeOf::Tensor, &rule, &packed, &Epilogue::new(&[1.0]), c, &mut Workspace::new(), 1).unwrap();
            // Not by bits: a sum of 0 has no sign.
            prop_assert_eq!(&dst, &expected, "{}", isa.name());
            let mut got = vec![9u8; beyond.len()];
            quantize_u8_for(isa, &beyond, scale, zero_point, 0, qmax, &mut got).unwrap();
            prop_assert_eq!(&got, &codes, "{}", isa.name());
        }
    }

    #[test]
    fn min_max_of_the_finite(values in prop::collection::vec(prop_oneof![
        6 => any::<f32>().prop_filter("finite", |x| x.is_finite()), 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(f32::NEG_INFINITY)], 0..150)) {
        let finite: Vec<f32> = values.iter().copied().filter(|x| x.is_finite()).collect();
        let min = finite.iter().copied().reduce(f32::min).unwrap_or(0.0);
        let max = finite.iter().copied().reduce(f32::max).unwrap_or(0.0);
        for isa in Isa::available() {
            let range = min_max_for(isa, &values).unwrap();
            prop_assert_eq!((range.min, range.max, range.finite), (min, max, finite.len() == values.len()), "{}", isa.name());
        }
    }
}

/// Halves of steps go to the even quotient, whatever the parity of the zero point that is added to it.
#[test]
fn ties_of_dynamic_products() {
    let k = 64;
    let mut identity = vec![0i8; k * k];
    identity.iter_mut().step_by(k + 1).for_each(|x| *x = 1);
    for zero_point in [100, 101] {
        // A range of 255 steps of 1.
        let lhs: Vec<f32> = (0..512).map(|i| (i as f32 / 2.0).min(255.0) - zero_point as f32).collect();
        let expected: Vec<f32> = lhs.iter().map(|x| x.round_ties_even()).collect();
        for isa in Isa::available() {
            let packed = PackedWeights::pack_for(isa, &identity, k, k, WeightLayout::Nk).unwrap();
            let mut dst = vec![9.0; lhs.len()];
            let (a, c) = (Matrix::new(&lhs, lhs.len() / k, k).unwrap(), MatrixMut::new(&mut dst, lhs.len() / k, k).unwrap());
            let rule = ActivationRule::default();
            gemm_dynamic(a, RangeOf::Tensor, &rule, &packed, &Epilogue::new(&[1.0]), c, &mut Workspace::new(), 1).unwrap();
            assert_eq!(dst, expected, "{} with zero point {zero_point}", isa.name());
        }
    }
}

/// Lines that a depthwise convolution makes one after the other, with several outputs for a channel.
#[test]
fn depthwise_of_long_lines_in_floats() {
    let geometry = Conv2dGeometry::new(20, 60, [3, 3]).with_groups(20).with_padding([1; 4]);
    for (geometry, layout) in [(geometry.clone(), ImageLayout::Nhwc), (geometry.with_stride([2, 2]), ImageLayout::Nchw)] {
        let shape = ImageShape { n: 2, h: 9, w: 110, layout };
        let (image, weights) = (floats(1, 2 * 20 * 9 * 110), floats(2, 60 * 9));
        let expected = reference::conv2d_f64(&image, shape, &geometry, &weights, None, Activation::None);
        for isa in Isa::available() {
            let packed = PackedFloatConv2d::pack_for(isa, &geometry, &weights).unwrap();
            for threads in [1, 3] {
                let mut dst = vec![9.0; expected.len()];
                conv2d_f32(&image, shape, &packed, &FloatEpilogue::new(), &mut dst, &mut Workspace::new(), threads).unwrap();
                assert_close(&dst, &expected, isa.name());
            }
        }
    }
}

#[test]
fn floats_do_not_depend_on_threads() {
    let (m, n, k) = (190, 150, 120);
    let (lhs, weights) = (floats(1, m * k), floats(2, n * k));
    let geometry = Conv2dGeometry::new(24, 48, [3, 3]).with_padding([1; 4]);
    let depthwise = Conv2dGeometry::new(48, 48, [3, 3]).with_padding([1; 4]).with_groups(48);
    for isa in Isa::available() {
        let packed = PackedFloatWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
        let run = |threads| {
            let mut dst = vec![9.0; m * n];
            let (a, c) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
            sgemm(a, &packed, &FloatEpilogue::new().with_activation(Activation::None), c, threads).unwrap();
            bits(&dst)
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
        for (geometry, layout) in [&geometry, &depthwise].into_iter().flat_map(|g| [(g, ImageLayout::Nchw), (g, ImageLayout::Nhwc)]) {
            let weights = floats(3, geometry.weight_shape().iter().product());
            let codes: Vec<i8> = weights.iter().map(|x| (x * 127.0) as i8).collect();
            let shape = ImageShape { n: 2, h: 31, w: 33, layout };
            let image = floats(4, 2 * 31 * 33 * geometry.in_channels);
            let packed = PackedFloatConv2d::pack_for(isa, geometry, &weights).unwrap();
            let quantized = PackedConv2d::pack_for(isa, geometry, &codes).unwrap();
            let epilogue = Epilogue::new(&[0.01]);
            let run = |threads| {
                let (mut dst, mut dynamic) = (vec![9.0; 2 * 31 * 33 * 48], vec![9.0; 2 * 31 * 33 * 48]);
                let mut workspace = Workspace::new();
                conv2d_f32(
                    &image,
                    shape,
                    &packed,
                    &FloatEpilogue::new().with_activation(Activation::Relu),
                    &mut dst,
                    &mut workspace,
                    threads,
                )
                .unwrap();
                let rule = ActivationRule::default();
                conv2d_dynamic(&image, shape, RangeOf::Row, &rule, &quantized, &epilogue, &mut dynamic, &mut workspace, threads).unwrap();
                (bits(&dst), bits(&dynamic))
            };
            assert!(run(1) == run(2) && run(1) == run(3), "{}", isa.name());
        }
    }
}

/// Ranges, codes and the product are shared by threads in one go: of codes in whole words and not, of weights with zero points and sums
/// beyond i32, whose product comes by itself, and of rows that are refused.
#[test]
fn dynamic_products_do_not_depend_on_threads() {
    let weight_zero = [3; 260];
    for (m, n, k, zero_points) in [(130, 260, 301, false), (130, 260, 300, true), (33, 3, 66_000, false)] {
        let mut lhs = floats(5, m * k);
        lhs[7 * k..8 * k].iter_mut().for_each(|x| *x *= 30.0);
        let codes: Vec<i8> = floats(6, n * k).iter().map(|x| (x * 127.0) as i8).collect();
        let epilogue = Epilogue::new(&[0.01]);
        for isa in Isa::available() {
            let weight_zero = &weight_zero[..if zero_points { n } else { 0 }];
            let packed = PackedWeights::pack_asymmetric_for(isa, &codes, weight_zero, n, k, WeightLayout::Nk).unwrap();
            for range in [RangeOf::Tensor, RangeOf::Row] {
                let run = |lhs: &[f32], rule: &ActivationRule, threads| {
                    let mut dst = vec![9.0; m * n];
                    let (a, c) = (Matrix::new(lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
                    let done = gemm_dynamic(a, range, rule, &packed, &epilogue, c, &mut Workspace::new(), threads);
                    (done, bits(&dst))
                };
                let rule = ActivationRule::default();
                let (done, alone) = run(&lhs, &rule, 1);
                done.unwrap();
                for threads in [2, 3] {
                    assert!(run(&lhs, &rule, threads).1 == alone, "{m}x{n}x{k} {range:?} on {} with {threads} threads", isa.name());
                }
                // The first of several is named, and nothing is written.
                let mut refused = lhs.clone();
                for at in [m * k - 1, 20 * k + 5, 9 * k + 3, 9 * k + 4] {
                    refused[at] = f32::INFINITY;
                }
                let saturate = ActivationRule { non_finite: NonFinite::Saturate, ..rule };
                let alone = run(&refused, &saturate, 1).1;
                for threads in 1..4 {
                    let (error, dst) = run(&refused, &rule, threads);
                    assert!(matches!(error, Err(Error::NonFinite { index, .. }) if index == 9 * k + 3), "{error:?} on {}", isa.name());
                    assert!(dst.iter().all(|&x| x == 9f32.to_bits()));
                    assert!(run(&refused, &saturate, threads).1 == alone);
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_named_or_saturated() {
    let geometry = Conv2dGeometry::new(2, 1, [1, 1]);
    let weights = PackedConv2d::pack(&geometry, &[1, 0]).unwrap();
    let epilogue = Epilogue::new(&[1.0]);
    let shape = ImageShape { n: 2, h: 1, w: 2, layout: ImageLayout::Nhwc };
    let image = [0.0, 0.0, 255.0, 0.0, f32::NAN, 1.0, f32::INFINITY, 255.0];
    let mut dst = [9.0; 4];
    let mut workspace = Workspace::new();
    for range in [RangeOf::Row, RangeOf::Tensor] {
        let rule = ActivationRule::default();
        let error = conv2d_dynamic(&image, shape, range, &rule, &weights, &epilogue, &mut dst, &mut workspace, 1).unwrap_err();
        assert!(matches!(error, Error::NonFinite { index: 4, value, .. } if value.is_nan()), "{error}");
    }
    let rule = ActivationRule { non_finite: NonFinite::Saturate, ..Default::default() };
    for range in [RangeOf::Row, RangeOf::Tensor] {
        conv2d_dynamic(&image, shape, range, &rule, &weights, &epilogue, &mut dst, &mut workspace, 1).unwrap();
        assert_eq!(dst, [0.0, 255.0, 0.0, 255.0]);
    }
    let weights = PackedWeights::pack(&[1, 0], 1, 2, WeightLayout::Nk).unwrap();
    for range in [RangeOf::Tensor, RangeOf::Row] {
        let run = |rule: &ActivationRule, dst: &mut [f32], workspace: &mut Workspace| {
            let (a, c) = (Matrix::new(&image[..6], 2, 2).unwrap().with_stride(4).unwrap(), MatrixMut::new(dst, 2, 1).unwrap());
            gemm_dynamic(a, range, rule, &weights, &epilogue, c, workspace, 1)
        };
        let error = run(&ActivationRule::default(), &mut dst[..2], &mut workspace).unwrap_err();
        assert!(matches!(error, Error::NonFinite { index: 2, .. }), "{error}");
        run(&rule, &mut dst[..2], &mut workspace).unwrap();
        assert_eq!(dst[..2], [0.0, 0.0]);
    }
    let rule = ActivationRule { qmax: 256, ..Default::default() };
    let weights = PackedConv2d::pack(&geometry, &[1, 0]).unwrap();
    let error = conv2d_dynamic(&image, shape, RangeOf::Row, &rule, &weights, &epilogue, &mut dst, &mut workspace, 1);
    assert!(matches!(error, Err(Error::Parameter { .. })));
}

#[test]
fn quantize_equals_the_definition() {
    // Every half-way value of three scales and its neighbours, and what is not a number.
    let mut values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, 1e-45, -1e-45];
    for scale in [1.0f32, 0.1, 3.7e-5] {
        for half in -1100..1100 {
            let x = half as f32 * 0.5 * scale;
            values.extend([x, x.next_up(), x.next_down()]);
        }
    }
    values.extend(floats(5, 1001));
    // Once more without what is not a number in front, which takes another way.
    let numbers = values[1..].to_vec();
    let finite = values[3..].to_vec();
    for (isa, values) in Isa::available().into_iter().flat_map(|isa| [&values, &numbers, &finite].map(|values| (isa, values))) {
        for scale in [1.0f32, 0.1, 3.7e-5, 1e-40, 3e38] {
            for (zero_point, qmin, qmax) in [(0, 0, 255), (128, 0, 255), (255, 0, 255), (7, 0, 15), (3, 3, 3)] {
                let mut codes = vec![0u8; values.len()];
                quantize_u8_for(isa, values, scale, zero_point, qmin, qmax, &mut codes).unwrap();
                for (&x, &code) in values.iter().zip(&codes) {
                    assert_eq!(i32::from(code), quantize(x, scale, zero_point, qmin, qmax), "{x} / {scale} on {}", isa.name());
                }
                let mut back = vec![9.0; codes.len()];
                dequantize_u8_for(isa, &codes, scale, zero_point, &mut back).unwrap();
                assert!(back.iter().zip(&codes).all(|(x, &c)| x.to_bits() == dequantize(c.into(), scale, zero_point).to_bits()));
            }
            for (zero_point, qmin, qmax) in [(0, -128, 127), (0, -127, 127), (-128, -128, 127), (127, -128, 127), (-1, -8, 7)] {
                let mut codes = vec![0i8; values.len()];
                quantize_i8_for(isa, values, scale, zero_point, qmin, qmax, &mut codes).unwrap();
                for (&x, &code) in values.iter().zip(&codes) {
                    assert_eq!(i32::from(code), quantize(x, scale, zero_point, qmin, qmax), "{x} / {scale} on {}", isa.name());
                }
                let mut back = vec![9.0; codes.len()];
                dequantize_i8_for(isa, &codes, scale, zero_point, &mut back).unwrap();
                assert!(back.iter().zip(&codes).all(|(x, &c)| x.to_bits() == dequantize(c.into(), scale, zero_point).to_bits()));
            }
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let mut codes = [0u8; 2];
    let isa = Isa::best();
    assert!(matches!(quantize_u8_for(isa, &[1.0; 2], 0.0, 0, 0, 255, &mut codes), Err(Error::Scale { .. })));
    assert!(matches!(quantize_u8_for(isa, &[1.0; 2], f32::NAN, 0, 0, 255, &mut codes), Err(Error::Scale { .. })));
    assert!(matches!(quantize_u8_for(isa, &[1.0; 2], 1.0, 16, 0, 15, &mut codes), Err(Error::ZeroPoint { .. })));
    assert!(matches!(quantize_u8_for(isa, &[1.0; 2], 1.0, 0, -1, 15, &mut codes), Err(Error::Parameter { .. })));
    assert!(matches!(quantize_u8_for(isa, &[1.0; 2], 1.0, 0, 9, 8, &mut codes), Err(Error::Parameter { .. })));
    assert!(matches!(quantize_u8_for(isa, &[1.0; 3], 1.0, 0, 0, 255, &mut codes), Err(Error::Length { .. })));
    assert!(matches!(dequantize_u8_for(isa, &codes, 1.0, 256, &mut [0.0; 2]), Err(Error::ZeroPoint { .. })));
    assert!(matches!(dequantize_u8_for(isa, &codes, 1.0, 0, &mut [0.0; 3]), Err(Error::Length { .. })));
    assert!(matches!(PackedFloatWeights::pack(&[0.0; 5], 2, 3, WeightLayout::Nk), Err(Error::Length { .. })));
    let weights = PackedFloatWeights::pack(&[0.0; 6], 2, 3, WeightLayout::Kn).unwrap();
    let mut dst = [0.0; 2];
    let mut run = |bias: Option<&[f32]>, activation, threads| {
        sgemm(
            Matrix::new(&[0.0; 3], 1, 3).unwrap(),
            &weights,
            &FloatEpilogue::new().with_bias(bias).with_activation(activation),
            MatrixMut::new(&mut dst, 1, 2).unwrap(),
            threads,
        )
    };
    assert!(run(None, Activation::None, 1).is_ok());
    assert!(matches!(run(Some(&[0.0; 3]), Activation::None, 1), Err(Error::Length { .. })));
    assert!(matches!(run(None, Activation::Clamp { lo: f32::NAN, hi: 1.0 }, 1), Err(Error::Parameter { .. })));
    assert!(matches!(run(None, Activation::None, 0), Err(Error::Parameter { .. })));
}

#[test]
fn nan_passes_activations() {
    for isa in Isa::available() {
        let weights = PackedFloatWeights::pack_for(isa, &[1.0], 1, 1, WeightLayout::Nk).unwrap();
        for activation in [Activation::None, Activation::Relu, Activation::Clamp { lo: 0.0, hi: 6.0 }] {
            let mut dst = [0.0];
            sgemm(
                Matrix::new(&[f32::NAN], 1, 1).unwrap(),
                &weights,
                &FloatEpilogue::new().with_activation(activation),
                MatrixMut::new(&mut dst, 1, 1).unwrap(),
                1,
            )
            .unwrap();
            assert!(dst[0].is_nan() && activation.apply(f32::NAN).is_nan(), "{activation:?} on {}", isa.name());
        }
    }
}
