//! Integer convolutions: every instruction set, every stage and every number of threads equal the reference bit for bit.
use lowprec::Error;
use lowprec::kernels::{
    Accumulate, Conv2dGeometry, ImageLayout, ImageShape, Isa, Matrix, PackedConv2d, Per, Requantize, Residual, Workspace, conv2d, reference,
};
use proptest::prelude::*;

use crate::kernel_support::{Code, Parameters, Random, bits};

#[derive(Debug, Clone)]
struct ConvCase {
    geometry: Conv2dGeometry,
    shape: ImageShape,
}

fn conv_case() -> impl Strategy<Value = ConvCase> {
    let kernel = (1usize..5, 1usize..5, 1usize..4, 1usize..4, 1usize..3, 1usize..3);
    let padding = prop::array::uniform4(0usize..3);
    let channels = (0u8..8, 1usize..9, 1usize..20, 1usize..4);
    (kernel, padding, channels, 1usize..4, 1usize..10, 1usize..10, any::<bool>()).prop_filter_map(
        "a kernel larger than the image",
        |((kh, kw, sy, sx, dy, dx), padding, (kind, a, b, groups), n, h, w, nchw)| {
            let (input, output, groups) = match kind {
                0 | 1 => (a, 3 * b, 1),
                2 => (a * groups, b * groups, groups),
                3 => (4 * b + 1, 4 * b + 1, 4 * b + 1),
                // Narrow groups of whole words, and the channels that fill a vector or a part of it.
                4 => (4 * (a % 3 + 1) * 5 * groups, b * 5 * groups, 5 * groups),
                5 => (16 * groups, 16 * groups, 16 * groups),
                // Groups of as many outputs as inputs, one or two words, up to more than a block of them.
                6 => {
                    let (group, count) = (4 * (a % 2 + 1), b + groups);
                    (group * count, group * count, count)
                }
                _ => (a + 1, 2 * (a + 1), a + 1),
            };
            let geometry = Conv2dGeometry::new(input, output, [kh, kw])
                .with_stride([sy, sx])
                .with_dilation([dy, dx])
                .with_padding(padding)
                .with_groups(groups);
            geometry.output_size(h, w).ok()?;
            let layout = if nchw { ImageLayout::Nchw } else { ImageLayout::Nhwc };
            Some(ConvCase { geometry, shape: ImageShape { n, h, w, layout } })
        },
    )
}

fn check_conv<T: Code>(case: &ConvCase, seed: u64, threads: usize) {
    let ConvCase { geometry, shape } = case;
    let mut random = Random(seed);
    let kinds = (random.below(4) as u8, random.below(4) as u8);
    let input = T::from_bytes(&random.bytes(shape.n * geometry.in_channels * shape.h * shape.w, kinds.0));
    let weights = i8::from_bytes(&random.bytes(geometry.weight_shape().iter().product(), kinds.1));
    let n = geometry.out_channels;
    let [h, w] = geometry.output_size(shape.h, shape.w).unwrap();
    let parameters = Parameters::<T>::new(&mut random, shape.n, n, shape.n * h * w);
    let zero_point = parameters.zero_point(shape.n);
    let sums = reference::conv2d(&input, *shape, zero_point, geometry, &weights);
    let pixels = sums.len() / n / shape.n;
    let mut workspace = Workspace::new();
    for isa in Isa::available() {
        let packed = PackedConv2d::pack_for(isa, geometry, &weights).unwrap();
        assert_eq!(packed.unpack(), weights);
        let context = format!("{geometry:?} over {shape:?} on {} with {threads} threads", packed.kernel_name());
        compare_stages!(sums, n, shape.n, pixels, parameters, context, |stage, dst| conv2d(
            &input,
            *shape,
            zero_point,
            &packed,
            stage,
            dst,
            &mut workspace,
            threads
        )
        .unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn conv_equals_reference(case in conv_case(), seed in any::<u64>(), signed in any::<bool>(), threads in 1usize..4) {
        if signed { check_conv::<i8>(&case, seed, threads) } else { check_conv::<u8>(&case, seed, threads) }
    }
}

/// Convolutions of 3 x 3 at stride one with channels and pixels enough to go by fewer products, and rests of both: of lines and columns of
/// tiles, of vectors and words of channels, of panels.
fn winograd_case() -> impl Strategy<Value = ConvCase> {
    let channels = (12usize..32, 30usize..72);
    let padding = prop::array::uniform4(0usize..3);
    (channels, padding, 1usize..3, 12usize..30, 12usize..30, any::<bool>()).prop_map(|((words, output), padding, n, h, w, nchw)| {
        let layout = if nchw { ImageLayout::Nchw } else { ImageLayout::Nhwc };
        ConvCase { geometry: Conv2dGeometry::new(4 * words, output, [3, 3]).with_padding(padding), shape: ImageShape { n, h, w, layout } }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn winograd_equals_reference(case in winograd_case(), seed in any::<u64>(), signed in any::<bool>(), threads in 1usize..4) {
        if signed { check_conv::<i8>(&case, seed, threads) } else { check_conv::<u8>(&case, seed, threads) }
    }
}

/// Images cut into blocks of tiles, several of them read where they are, rests of vectors of channels and of panels; on threads that take a
/// panel each, or chunks of all panels.
#[test]
fn winograd_in_blocks() {
    // Elsewhere all products are taken, as in the tests above, and under emulation these would be minutes.
    if !Isa::available().into_iter().any(has_pairs) {
        return;
    }
    let conv = Conv2dGeometry::new;
    let cases = [
        (conv(128, 64, [3, 3]).with_padding([1; 4]), 1, 33, 30),
        (conv(128, 128, [3, 3]), 2, 24, 24),
        (conv(128, 40, [3, 3]).with_padding([1; 4]), 1, 24, 31),
        (conv(108, 96, [3, 3]).with_padding([1, 0, 1, 2]), 2, 26, 25),
    ];
    for (i, (geometry, n, h, w)) in cases.into_iter().enumerate() {
        let shape = ImageShape { n, h, w, layout: ImageLayout::Nhwc };
        for isa in Isa::available().into_iter().filter(|isa| has_pairs(*isa)) {
            let weights = vec![1; geometry.weight_shape().iter().product()];
            let packed = PackedConv2d::pack_for(isa, &geometry, &weights).unwrap();
            assert!(packed.kernel_name_for(shape).unwrap().contains("winograd"), "{geometry:?} on {}", isa.name());
        }
        for threads in [1, 2, 3] {
            let case = ConvCase { geometry: geometry.clone(), shape };
            check_conv::<u8>(&case, (i + threads) as u64, threads);
            if threads == 2 {
                check_conv::<i8>(&case, i as u64, threads);
            }
        }
    }
}

/// Instruction sets that multiply 16-bit numbers in pairs.
fn has_pairs(isa: Isa) -> bool {
    ["avx2", "avx512", "avxvnni", "vnni256", "avx512vnni"].contains(&isa.name())
}

/// The largest sums that come back from fewer products, 112 * 9 * 127 * 255 of 2^25, and the smallest that would not, which keep all
/// products.
#[test]
fn winograd_up_to_its_limit() {
    for (channels, fits) in [(112, true), (116, false)] {
        let geometry = Conv2dGeometry::new(channels, 64, [3, 3]).with_padding([1; 4]);
        let shape = ImageShape { n: 1, h: 28, w: 28, layout: ImageLayout::Nhwc };
        let weights: Vec<i8> = (0..64 * channels * 9).map(|i| if i / (channels * 9) % 2 == 0 { 127 } else { -127 }).collect();
        let input = vec![255u8; channels * 28 * 28];
        let sums = reference::conv2d(&input, shape, Per::Tensor(0), &geometry, &weights);
        assert_eq!(sums.iter().max(), Some(&(channels as i32 * 9 * 127 * 255)));
        for isa in Isa::available() {
            let packed = PackedConv2d::pack_for(isa, &geometry, &weights).unwrap();
            let mut dst = vec![0; sums.len()];
            conv2d(&input, shape, Per::Tensor(0), &packed, &Accumulate, &mut dst, &mut Workspace::new(), 1).unwrap();
            assert!(dst == sums, "{}", isa.name());
            let by_fewer = packed.kernel_name_for(shape).unwrap().contains("winograd");
            assert_eq!(by_fewer, fits && has_pairs(isa), "{}", isa.name());
        }
    }
}

/// Which kernel runs is said: few channels or pixels, other kernels, strides and dilations keep all products.
#[test]
fn winograd_where_it_is_faster() {
    let isa = Isa::available().into_iter().find(|isa| isa.name() == "avx2");
    let Some(isa) = isa else { return };
    let name = |geometry: Conv2dGeometry, side: usize| {
        let weights = vec![1; geometry.weight_shape().iter().product()];
        let shape = ImageShape { n: 1, h: side, w: side, layout: ImageLayout::Nhwc };
        PackedConv2d::pack_for(isa, &geometry, &weights).unwrap().kernel_name_for(shape).unwrap()
    };
    let dense = || Conv2dGeometry::new(64, 64, [3, 3]).with_padding([1; 4]);
    assert_eq!(name(dense(), 28), "u8i8-winograd-avx2");
    for (geometry, side) in [
        (dense(), 2),
        (dense().with_stride([2, 1]), 28),
        (dense().with_dilation([1, 2]), 28),
        (dense().with_groups(4), 28),
        (Conv2dGeometry::new(64, 64, [3, 1]), 28),
        (Conv2dGeometry::new(4, 64, [3, 3]), 28),
        (Conv2dGeometry::new(66, 64, [3, 3]), 28),
    ] {
        assert_eq!(name(geometry.clone(), side), "u8i8-conv-6x16x2-avx2", "{geometry:?}");
    }
}

#[test]
fn conv_on_threads() {
    for threads in [1, 2, 3] {
        for (geometry, h) in [
            (Conv2dGeometry::new(16, 40, [3, 3]).with_padding([1; 4]), 30),
            (Conv2dGeometry::new(64, 64, [3, 3]).with_padding([1; 4]).with_groups(64), 40),
            (Conv2dGeometry::new(96, 700, [1, 1]), 5),
            // Whole images of narrow groups, cut between pixels.
            (Conv2dGeometry::new(128, 128, [3, 3]).with_padding([1; 4]).with_groups(16), 18),
        ] {
            for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
                check_conv::<u8>(&ConvCase { geometry: geometry.clone(), shape: ImageShape { n: 2, h, w: h, layout } }, 4, threads);
            }
        }
    }
}

/// Images that are cut into strips or go line by line, whose sizes and strides leave rests everywhere.
#[test]
fn conv_in_strips() {
    let conv = Conv2dGeometry::new;
    let depthwise = |channels, kernel| Conv2dGeometry::new(channels, channels, kernel).with_groups(channels);
    let cases = [
        (conv(64, 5, [3, 3]).with_padding([1; 4]), 70, 63),
        (conv(40, 3, [3, 2]).with_stride([2, 3]).with_padding([0, 1, 2, 0]).with_dilation([3, 1]), 91, 83),
        // Lines that no window reads.
        (conv(60, 4, [2, 1]).with_stride([3, 2]), 80, 75),
        // Whole images to a strip: two of three.
        (conv(24, 4, [3, 3]).with_padding([1; 4]), 30, 32),
        (depthwise(64, [3, 3]).with_padding([1; 4]), 13, 21),
        (depthwise(96, [3, 3]).with_stride([2, 2]).with_padding([1, 1, 0, 1]), 23, 18),
        (depthwise(80, [5, 4]).with_stride([1, 2]).with_dilation([2, 1]).with_padding([3, 2, 1, 0]), 19, 15),
        (depthwise(32, [3, 3]).with_padding([1; 4]), 33, 31),
        (depthwise(16, [3, 3]).with_padding([1, 0, 1, 2]), 40, 29),
        (depthwise(48, [3, 3]).with_dilation([2, 2]).with_padding([2; 4]), 17, 19),
        (depthwise(70, [2, 2]).with_stride([3, 3]), 25, 26),
        (depthwise(33, [9, 9]).with_padding([4; 4]), 20, 20),
        (conv(40, 80, [3, 3]).with_groups(40).with_padding([1; 4]), 15, 17),
        (conv(128, 128, [3, 3]).with_groups(32).with_padding([1; 4]), 40, 25),
        (conv(64, 64, [3, 3]).with_groups(16).with_padding([1; 4]), 21, 23),
        (depthwise(32, [3, 3]).with_stride([2, 2]).with_padding([1; 4]), 27, 31),
        (depthwise(32, [3, 3]).with_stride([1, 2]).with_padding([1; 4]), 16, 120),
        (conv(168, 168, [3, 3]).with_groups(21).with_stride([1, 2]).with_padding([0, 1, 1, 2]), 31, 30),
        (conv(64, 96, [3, 3]).with_groups(4).with_stride([2, 1]).with_padding([1; 4]), 30, 14),
        (conv(24, 4, [3, 3]).with_padding([1; 4]), 40, 41),
    ];
    for (i, (geometry, h, w)) in cases.into_iter().enumerate() {
        for (threads, layout) in [(1, ImageLayout::Nhwc), (2, ImageLayout::Nchw), (3, ImageLayout::Nhwc)] {
            let case = ConvCase { geometry: geometry.clone(), shape: ImageShape { n: 2 + i % 2, h, w, layout } };
            if (i + threads) % 2 == 0 { check_conv::<i8>(&case, i as u64, threads) } else { check_conv::<u8>(&case, i as u64, threads) }
        }
    }
}

/// First layers, whose pixels a matrix unit reads in blocks of 2 x 2: odd and even kernels, images and padding; in strips, the last one.
#[test]
fn strides_of_two_over_few_channels() {
    let stem = |channels, kernel, padding: [usize; 4]| Conv2dGeometry::new(channels, 21, kernel).with_stride([2, 2]).with_padding(padding);
    let cases = [
        (stem(3, [7, 7], [3; 4]), 22, 33),
        (stem(3, [7, 7], [3, 2, 2, 3]), 23, 34),
        (stem(1, [5, 6], [0; 4]), 17, 29),
        (stem(2, [6, 5], [1, 0, 0, 1]), 12, 41),
        (stem(4, [8, 7], [2, 3, 4, 1]), 19, 38),
        (stem(3, [5, 5], [0; 4]), 5, 5),
        (stem(4, [6, 8], [0, 1, 1, 0]), 121, 633),
    ];
    for (i, (geometry, h, w)) in cases.into_iter().enumerate() {
        for (threads, layout) in [(1, ImageLayout::Nhwc), (2, ImageLayout::Nchw), (3, ImageLayout::Nhwc)] {
            let n = if h > 100 { 1 } else { 1 + (i + threads) % 3 };
            let case = ConvCase { geometry: geometry.clone(), shape: ImageShape { n, h, w, layout } };
            if (i + threads) % 2 == 0 { check_conv::<i8>(&case, i as u64, threads) } else { check_conv::<u8>(&case, i as u64, threads) }
        }
    }
}

/// Lines that are cut into squares of a matrix unit, or put together in them: runs of k above and below 64 steps, one and several groups.
#[test]
#[cfg(target_arch = "x86_64")]
fn conv_in_squares() {
    let conv = Conv2dGeometry::new;
    let kernels = [
        conv(23, 33, [3, 3]).with_padding([1; 4]),
        conv(64, 16, [2, 2]).with_stride([1, 2]).with_padding([1, 2, 0, 0]),
        conv(150, 70, [1, 2]).with_dilation([1, 2]),
        conv(80, 80, [3, 1]).with_groups(2).with_padding([0, 1, 2, 0]),
        conv(40, 48, [1, 1]).with_stride([2, 2]),
        conv(64, 96, [3, 2]).with_padding([1; 4]),
        conv(128, 128, [1, 2]).with_groups(2),
    ];
    for (i, geometry) in kernels.into_iter().enumerate() {
        for (j, w) in [3, 7, 13, 14, 16, 17, 27, 28, 33, 41, 56, 57, 66].into_iter().enumerate() {
            let shape = ImageShape { n: 1 + j % 2, h: 3 + (i + j) % 3, w, layout: [ImageLayout::Nhwc, ImageLayout::Nchw][(i + j) % 2] };
            let case = ConvCase { geometry: geometry.clone(), shape };
            if j % 2 == 0 { check_conv::<i8>(&case, j as u64, 1 + j % 3) } else { check_conv::<u8>(&case, j as u64, 1 + j % 3) }
        }
    }
}

/// Depthwise layers of long lines: of strides above 1, inner pixels are read where they are and those whose windows reach into padding
/// elsewhere; of stride 1, in lines that go round, or where they are, with padding that the kernel knows.
#[test]
fn depthwise_of_long_lines() {
    let depthwise = |channels, kernel| Conv2dGeometry::new(channels, channels, kernel).with_groups(channels);
    let cases = [
        (depthwise(32, [3, 3]).with_padding([1; 4]), 9, 53),
        // Without the columns of padding: as one row, in whole blocks, with rests, few lines.
        (depthwise(32, [3, 3]).with_padding([1; 4]), 13, 54),
        (depthwise(64, [3, 3]).with_padding([1; 4]), 17, 12),
        (depthwise(96, [3, 3]).with_padding([1; 4]), 13, 21),
        (depthwise(200, [3, 3]).with_padding([1; 4]), 12, 14),
        (depthwise(104, [3, 3]).with_padding([1; 4]), 12, 40),
        (depthwise(24, [3, 3]).with_padding([1; 4]), 13, 21),
        (depthwise(24, [3, 3]).with_padding([1; 4]), 40, 41),
        (depthwise(17, [3, 3]).with_padding([1; 4]), 12, 12),
        (depthwise(16, [3, 3]).with_stride([2, 2]).with_padding([1; 4]), 9, 110),
        (depthwise(16, [5, 5]).with_stride([1, 2]).with_padding([2; 4]), 8, 120),
        // Several outputs for a channel.
        (Conv2dGeometry::new(40, 80, [3, 3]).with_groups(40).with_padding([1; 4]), 9, 60),
        (Conv2dGeometry::new(20, 60, [3, 3]).with_groups(20).with_stride([2, 2]).with_padding([1; 4]), 9, 110),
        (depthwise(96, [3, 3]).with_stride([2, 2]).with_padding([1, 1, 0, 1]), 11, 101),
        (depthwise(70, [5, 4]).with_stride([1, 2]).with_dilation([2, 1]).with_padding([3, 2, 1, 0]), 19, 103),
        (depthwise(33, [2, 2]), 5, 60),
        (depthwise(33, [2, 2]).with_stride([2, 1]), 9, 60),
        (depthwise(16, [3, 3]).with_stride([2, 1]).with_padding([0, 5, 0, 7]), 9, 50),
        (depthwise(64, [1, 3]).with_stride([1, 2]).with_padding([0, 1, 0, 1]), 4, 120),
        (depthwise(130, [3, 2]).with_stride([3, 3]).with_padding([2, 0, 2, 4]), 14, 150),
        (depthwise(48, [3, 3]).with_stride([2, 1]).with_dilation([1, 25]).with_padding([1; 4]), 8, 110),
        (depthwise(20, [3, 3]).with_stride([1, 2]).with_padding([1; 4]), 8, 180),
        // Windows in padding alone.
        (depthwise(32, [2, 2]).with_stride([4, 4]).with_padding([0, 3, 0, 0]), 16, 200),
        (depthwise(32, [1, 1]).with_stride([1, 2]).with_padding([0, 2, 0, 2]), 8, 120),
    ];
    for (i, (geometry, h, w)) in cases.into_iter().enumerate() {
        // Seeds that give values of every size, with and without residuals and zero points of each image.
        for (seed, n, threads, layout) in [(i as u64, 1, 1, ImageLayout::Nhwc), (7, 2, 1, ImageLayout::Nhwc), (15, 2, 3, ImageLayout::Nchw)]
        {
            let case = ConvCase { geometry: geometry.clone(), shape: ImageShape { n, h, w, layout } };
            check_conv::<u8>(&case, seed, threads);
            check_conv::<i8>(&case, seed + 1, threads);
        }
    }
}

/// Few channels make a line one row only where the codes that are added lie so, too: images that are read where they are, to their ends.
#[test]
fn depthwise_beside_residuals_with_gaps() {
    let (channels, h, w) = (32, 14, 24);
    let geometry = Conv2dGeometry::new(channels, channels, [3, 3]).with_groups(channels).with_padding([1; 4]);
    let shape = ImageShape { n: 1, h, w, layout: ImageLayout::Nhwc };
    let mut random = Random(5);
    let (input, weights) = (random.bytes(channels * h * w, 0), i8::from_bytes(&random.bytes(9 * channels, 1)));
    let sums: Vec<i64> = reference::conv2d(&input, shape, Per::Tensor(9), &geometry, &weights).into_iter().map(i64::from).collect();
    for gap in [0, 3] {
        let residual = random.bytes(h * w * (channels + gap), 2);
        let codes = Matrix::new(&residual[..], h * w, channels).and_then(|codes| codes.with_stride(channels + gap)).unwrap();
        let stage =
            Requantize::<u8>::new(&[0.001]).with_zero_point(7).with_residual(Some(Residual { codes, zero_point: 3, multiplier: 0.4 }));
        for isa in Isa::available() {
            let packed = PackedConv2d::pack_for(isa, &geometry, &weights).unwrap();
            let mut dst = vec![0; sums.len()];
            conv2d(&input, shape, Per::Tensor(9), &packed, &stage, &mut dst, &mut Workspace::new(), 1).unwrap();
            assert_eq!(dst, reference::requantize(&sums, channels, &stage), "gap {gap} on {}", isa.name());
        }
    }
}

/// A last block of up to half as many channels as others takes two pixels at a time: odd and even lines, windows that share columns with
/// the next and that do not, one line and several.
#[test]
fn depthwise_of_few_channels_in_the_last_block() {
    let kernels = [([3, 3], [1, 1]), ([3, 3], [1, 2]), ([3, 3], [2, 3]), ([2, 2], [1, 1]), ([5, 3], [2, 1]), ([1, 1], [1, 2])];
    for (i, channels) in [65, 79, 80, 81, 95, 96, 97, 160, 16, 23, 32, 40].into_iter().enumerate() {
        for (j, (kernel, stride)) in kernels.into_iter().enumerate() {
            let geometry = Conv2dGeometry::new(channels, channels, kernel).with_groups(channels).with_stride(stride).with_padding([1; 4]);
            for (k, (h, w)) in [(6, 7 + (i + j) % 4), (4, 150)].into_iter().enumerate() {
                let shape = ImageShape { n: 1 + (i + j + k) % 2, h, w, layout: ImageLayout::Nhwc };
                let (case, seed) = (ConvCase { geometry: geometry.clone(), shape }, (10 * i + j + 3 * k) as u64);
                if (i + j + k) % 2 == 0 { check_conv::<u8>(&case, seed, 1 + j % 3) } else { check_conv::<i8>(&case, seed, 1 + j % 3) }
            }
        }
    }
}

/// Pictures channel by channel, wider than what is converted at a time.
#[test]
fn conv_of_wide_pictures() {
    let case = ConvCase {
        geometry: Conv2dGeometry::new(3, 8, [3, 3]).with_stride([1, 2]).with_padding([1; 4]),
        shape: ImageShape { n: 2, h: 5, w: 300, layout: ImageLayout::Nchw },
    };
    check_conv::<u8>(&case, 7, 1);
    check_conv::<i8>(&case, 15, 2);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn conv_in_many_squares() {
    let conv = Conv2dGeometry::new;
    let cases = [
        (conv(384, 210, [3, 3]).with_groups(3).with_padding([1; 4]), 9, 9, 1, 2),
        (conv(160, 40, [3, 3]), 19, 19, 1, 1),
        (conv(70, 20, [5, 5]).with_dilation([1, 2]), 8, 22, 2, 1),
        (conv(80, 80, [3, 1]).with_groups(2), 12, 41, 2, 1),
        (conv(300, 300, [3, 3]).with_padding([1; 4]), 7, 9, 2, 2),
        (conv(512, 256, [3, 3]).with_groups(2).with_padding([1; 4]), 5, 7, 2, 1),
    ];
    for (i, (geometry, h, w, n, threads)) in cases.into_iter().enumerate() {
        let case = ConvCase { geometry, shape: ImageShape { n, h, w, layout: ImageLayout::Nhwc } };
        if i % 2 == 0 { check_conv::<i8>(&case, i as u64, threads) } else { check_conv::<u8>(&case, i as u64, threads) }
    }
}

#[test]
fn misuse_of_convolutions_is_an_error() {
    let geometry = Conv2dGeometry::new(4, 6, [3, 3]);
    assert!(matches!(geometry.clone().with_stride([0, 1]).validate(), Err(Error::Parameter { .. })));
    assert!(matches!(geometry.clone().with_groups(4).validate(), Err(Error::Parameter { what: "groups", .. })));
    assert!(matches!(geometry.clone().with_dilation([usize::MAX, 1]).validate(), Err(Error::ShapeOverflow { .. })));
    assert!(matches!(Conv2dGeometry::new(usize::MAX, 6, [3, 3]).validate(), Err(Error::ShapeOverflow { .. })));
    assert!(matches!(geometry.output_size(2, 5), Err(Error::Shape { .. })));
    assert!(matches!(geometry.clone().with_padding([usize::MAX, 0, 1, 0]).output_size(5, 5), Err(Error::ShapeOverflow { .. })));
    assert!(matches!(PackedConv2d::pack(&geometry, &[0; 5]), Err(Error::Length { expected: 216, got: 5, .. })));
    let wide = Conv2dGeometry::new(65537, 1, [1, 1]);
    assert!(matches!(PackedConv2d::pack(&wide, &[0; 65537]), Err(Error::Accumulator { .. })));
    let weights = PackedConv2d::pack(&geometry, &[1; 216]).unwrap();
    let shape = ImageShape { n: 2, h: 4, w: 5, layout: ImageLayout::Nhwc };
    let run = |input: usize, dst: usize, shape: ImageShape, zero_point: Per<'_, i32>| {
        let mut out = vec![0i32; dst];
        conv2d(&vec![0i8; input], shape, zero_point, &weights, &Accumulate, &mut out, &mut Workspace::new(), 1)
    };
    assert!(run(160, 72, shape, Per::Tensor(0)).is_ok());
    assert!(matches!(run(161, 72, shape, Per::Tensor(0)), Err(Error::Length { expected: 160, .. })));
    assert!(matches!(run(160, 71, shape, Per::Tensor(0)), Err(Error::Length { expected: 72, .. })));
    assert!(matches!(run(160, 72, shape, Per::Tensor(128)), Err(Error::ZeroPoint { .. })));
    assert!(matches!(run(160, 72, shape, Per::Row(&[0; 3])), Err(Error::Length { .. })));
    assert!(matches!(run(0, 0, ImageShape { h: 1, ..shape }, Per::Tensor(0)), Err(Error::Shape { .. })));
    assert!(run(0, 0, ImageShape { n: 0, ..shape }, Per::Tensor(0)).is_ok());
    let huge = ImageShape { n: usize::MAX, ..shape };
    assert!(matches!(run(0, 0, huge, Per::Tensor(0)), Err(Error::ShapeOverflow { .. })));
}

#[test]
fn packed_weights_are_a_byte_each() {
    for (input, output) in [(16, 32), (32, 64), (64, 64), (16, 16)] {
        let geometry = Conv2dGeometry::new(input, output, [3, 3]);
        let count = input * output * 9;
        for isa in Isa::available() {
            let packed = PackedConv2d::pack_for(isa, &geometry, &vec![1; count]).unwrap();
            assert!(packed.bytes() as f64 <= 0.3 * 4.0 * count as f64, "{input} to {output} on {}: {}", isa.name(), packed.bytes());
        }
    }
}
