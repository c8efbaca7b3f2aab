//! Dynamic convolutions equal their parts bit for bit: ranges, codes, sums, and the floats made of them.
use std::cell::Cell;

use lowprec::kernels::{
    Activation, ActivationRule, Conv2dGeometry, Dequantize, Epilogue, ImageLayout, ImageShape, InputRule, Isa, PackedConv2d, Per, Range,
    RangeOf, Workspace, conv2d_dynamic, min_max_for, reference,
};
use lowprec::num::{NonFinite, affine_qparams, quantize};
use proptest::prelude::*;

use crate::kernel_support::{Random, bits};

/// What stands around a convolution.
#[derive(Debug, Clone, Copy)]
struct Around {
    activation: Activation,
    accumulate: bool,
    symmetric: bool,
    range: RangeOf,
    values: Values,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Values {
    /// Of the range that is measured, or given as it would be.
    Within,
    /// Beyond the range that is given, some of them.
    Beyond,
    /// One of them infinite, or NaN.
    Infinite,
}

impl Around {
    fn of(seed: u64) -> Around {
        let activation = [Activation::None, Activation::Relu, Activation::Clamp { lo: -0.5, hi: 1.5 }][(seed % 3) as usize];
        let range = if (seed / 3).is_multiple_of(2) { RangeOf::Row } else { RangeOf::Tensor };
        Around {
            activation,
            accumulate: (seed / 6).is_multiple_of(4),
            symmetric: (seed / 24).is_multiple_of(2),
            range,
            values: [Values::Within, Values::Within, Values::Beyond, Values::Within, Values::Within, Values::Infinite]
                [(seed / 48 % 6) as usize],
        }
    }
}

fn check(geometry: &Conv2dGeometry, shape: ImageShape, around: Around, seed: u64) {
    let mut random = Random(seed);
    let (n, k) = (geometry.out_channels, geometry.weight_shape().iter().product());
    let len = geometry.in_channels * shape.h * shape.w;
    let mut image = random.floats(shape.n * len);
    // Images of unlike ranges.
    image.iter_mut().skip(len).take(len).for_each(|x| *x = *x * 40.0 + 10.0);
    let Around { activation, accumulate, symmetric, range, values } = around;
    let infinite = values == Values::Infinite;
    let rule =
        ActivationRule { symmetric, non_finite: if infinite { NonFinite::Saturate } else { NonFinite::Error }, ..Default::default() };
    let images: Vec<&[f32]> = if range == RangeOf::Tensor { vec![&image] } else { image.chunks(len).collect() };
    let range_of = |x: &&[f32]| {
        let Range { min, max, .. } = min_max_for(Isa::Scalar, x).unwrap();
        let part = if values == Values::Beyond { 0.6 } else { 1.0 };
        Range { min: min * part, max: max * part, finite: !infinite }
    };
    let ranges: Vec<Range> = images.iter().map(range_of).collect();
    let of = |image: usize| ranges[image.min(ranges.len() - 1)];
    let (lhs_scales, zero_points): (Vec<f32>, Vec<i32>) =
        (0..shape.n).map(|i| affine_qparams(of(i).min, of(i).max, 0, 255, symmetric)).unzip();
    let at = random.below(image.len());
    if infinite {
        image[at] = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][at % 3];
    }
    let code = |(i, &x): (usize, &f32)| quantize(x, lhs_scales[i / len], zero_points[i / len], 0, 255) as u8;
    let codes: Vec<u8> = image.iter().enumerate().map(code).collect();
    let weights: Vec<i8> = random.floats(k).iter().map(|x| (x * 127.0) as i8).collect();
    let (scales, bias) = (random.scales(n), random.floats(n));
    let sums = reference::conv2d(&codes, shape, Per::Row(&zero_points), geometry, &weights);
    let stage = Dequantize::new(Per::Row(&lhs_scales), &scales).with_bias(Some(&bias)).with_activation(activation);
    let before = random.floats(sums.len());
    let mut expected = before.clone();
    reference::dequantize(&sums, n, sums.len() / n / shape.n, &stage.with_accumulate(accumulate), &mut expected);
    let epilogue = Epilogue::new(&scales).with_bias(Some(&bias)).with_activation(activation).with_accumulate(accumulate);
    for isa in Isa::available() {
        let packed = PackedConv2d::pack_for(isa, geometry, &weights).unwrap();
        let mut workspace = Workspace::new();
        for (threads, measures) in [(1, false), (2, true), (3, false), (1, true)] {
            let context = format!("{geometry:?} over {shape:?}, {around:?}, {threads} threads on {}", isa.name());
            let found = vec![Cell::new(Range { min: 9.0, max: -9.0, finite: false }); shape.n];
            let epilogue = epilogue.with_ranges(measures.then_some(&found));
            // What would be measured is another range where values are beyond it.
            let given = InputRule { rule: &rule, ranges: (values != Values::Within || threads == 2).then_some(&ranges) };
            let mut dst = before.clone();
            conv2d_dynamic(&image, shape, range, given, &packed, &epilogue, &mut dst, &mut workspace, threads).unwrap();
            let differs = bits(&dst).iter().zip(bits(&expected)).position(|(&got, expected)| got != expected);
            assert!(differs.is_none(), "{context}: from element {differs:?} on");
            for (image, found) in dst.chunks(dst.len() / shape.n).zip(found).filter(|_| measures) {
                assert_eq!(found.get(), min_max_for(isa, image).unwrap(), "{context}");
            }
        }
    }
}

#[test]
fn conv2d_dynamic_is_its_parts() {
    for (i, (geometry, layout)) in [
        (Conv2dGeometry::new(5, 7, [3, 3]).with_padding([1, 0, 2, 1]), ImageLayout::Nchw),
        (Conv2dGeometry::new(8, 33, [1, 1]), ImageLayout::Nhwc),
        (Conv2dGeometry::new(3, 16, [7, 7]).with_stride([2, 2]).with_padding([3; 4]), ImageLayout::Nchw),
        (Conv2dGeometry::new(3, 20, [5, 6]).with_stride([2, 2]).with_padding([2; 4]), ImageLayout::Nhwc),
        (Conv2dGeometry::new(6, 12, [3, 3]).with_groups(6).with_padding([1; 4]), ImageLayout::Nhwc),
        (Conv2dGeometry::new(6, 8, [2, 3]).with_groups(2).with_dilation([2, 1]), ImageLayout::Nchw),
        (Conv2dGeometry::new(128, 128, [3, 3]).with_groups(32).with_padding([1; 4]), ImageLayout::Nhwc),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = ImageShape { n: 3, h: 9, w: 8, layout };
        for (symmetric, range) in [(false, RangeOf::Row), (true, RangeOf::Row), (false, RangeOf::Tensor), (true, RangeOf::Tensor)] {
            let around = Around { activation: Activation::Relu, accumulate: false, symmetric, range, values: Values::Within };
            check(&geometry, shape, around, i as u64);
        }
        // Other activations, what is there added, and values beyond the range.
        for seed in 0..12 {
            check(&geometry, shape, Around::of(25 * seed), seed + i as u64);
        }
    }
}

/// Lines of so many pixels that they are made some at a time, with several outputs for a channel, too; and others that fit as they are.
#[test]
fn dynamic_depthwise_of_many_shapes() {
    let depthwise = |channels: usize, outputs: usize| Conv2dGeometry::new(channels, channels * outputs, [3, 3]).with_groups(channels);
    for (i, (channels, outputs, stride, h, w)) in [
        (32, 1, 1, 40, 113),
        (32, 1, 1, 7, 3),
        (32, 1, 2, 30, 57),
        (64, 1, 1, 40, 56),
        (64, 1, 2, 3, 1),
        (96, 1, 2, 60, 59),
        (96, 1, 1, 5, 2),
        (96, 1, 1, 4, 1),
        (160, 1, 1, 9, 31),
        (384, 1, 1, 14, 14),
        (32, 2, 1, 9, 12),
        (64, 1, 3, 17, 18),
        (24, 1, 1, 21, 110),
        (144, 1, 2, 21, 60),
        (20, 3, 1, 9, 110),
    ]
    .into_iter()
    .enumerate()
    {
        for layout in [ImageLayout::Nhwc, ImageLayout::Nchw] {
            for padding in [[1; 4], [0, 2, 1, 0]] {
                let geometry = depthwise(channels, outputs).with_stride([stride, stride]).with_padding(padding);
                if geometry.output_size(h, w).is_ok() {
                    for values in [Values::Within, Values::Beyond] {
                        let seed = (7 * i + padding[0]) as u64;
                        let around = Around { accumulate: false, values, ..Around::of(seed) };
                        check(&geometry, ImageShape { n: 2, h, w, layout }, around, seed);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn dynamic_depthwise_is_its_parts(
        (blocks, rest) in (0usize..4, 0usize..3), kernel in prop::array::uniform2(2usize..4), stride in prop::array::uniform2(1usize..4),
        padding in prop::array::uniform4(0usize..3), dilation in prop::array::uniform2(1usize..3),
        (n, h, w) in (1usize..3, 1usize..16, 1usize..16), nchw in any::<bool>(), seed in any::<u64>(),
    ) {
        // Most kernels are the usual one, most channels whole groups of them.
        let (kernel, dilation) = if seed % 4 > 0 { ([3, 3], [1, 1]) } else { (kernel, dilation) };
        let channels = (32 * blocks + if (seed / 4).is_multiple_of(4) { 7 * rest } else { 0 }).max(1);
        let geometry = Conv2dGeometry::new(channels, channels, kernel).with_groups(channels).with_stride(stride).with_dilation(dilation);
        let geometry = geometry.with_padding(padding);
        prop_assume!(geometry.output_size(h, w).is_ok());
        let shape = ImageShape { n, h, w, layout: if nchw { ImageLayout::Nchw } else { ImageLayout::Nhwc } };
        check(&geometry, shape, Around::of(seed / 16), seed);
    }
}
