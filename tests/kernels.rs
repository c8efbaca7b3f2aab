//! Integer kernels: every instruction set, every stage and every number of threads equal the reference bit for bit.
use lowprec::Error;
use lowprec::kernels::{
    Accumulate, Activation, ActivationCode, Conv2dGeometry, Dequantize, ImageLayout, ImageShape, Isa, Matrix, MatrixMut, PackedConv2d,
    PackedWeights, Per, Requantize, WeightLayout, Workspace, conv2d, gemm, reference,
};
use proptest::prelude::*;

/// Numbers that depend on nothing but the seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// A byte by kind: anything, or only extremes.
    fn bytes(&mut self, len: usize, kind: u8) -> Vec<u8> {
        (0..len)
            .map(|_| match kind {
                0 => 255,
                1 => [0, 255, 127, 128][self.below(4)],
                _ => self.next() as u8,
            })
            .collect()
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }

    fn scales(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.below(1000) + 1) as f32 * 1.7e-5).collect()
    }
}

/// Bytes as codes of either type.
trait Code: ActivationCode {
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}
impl Code for u8 {
    fn from_bytes(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}
impl Code for i8 {
    fn from_bytes(bytes: &[u8]) -> Vec<i8> {
        bytes.iter().map(|&b| b as i8).collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// What the stages are given: rows are those of a product or the images of a convolution.
struct Parameters {
    zero_points: Vec<i32>,
    lhs_scales: Vec<f32>,
    scales: Vec<f32>,
    bias: Vec<f32>,
    integer_bias: Vec<i32>,
    activation: Activation,
    per_row: bool,
    with_bias: bool,
}

impl Parameters {
    fn new<T: Code>(random: &mut Random, rows: usize, n: usize) -> Self {
        let zero_points = (0..rows.max(1)).map(|_| T::QMIN + random.below(256) as i32).collect();
        let one_scale = random.below(2) == 0;
        Parameters {
            zero_points,
            lhs_scales: random.scales(rows.max(1)),
            scales: random.scales(if one_scale { 1 } else { n }),
            bias: random.floats(n),
            integer_bias: (0..n).map(|_| random.below(20001) as i32 - 10000).collect(),
            activation: [Activation::None, Activation::Relu, Activation::Clamp { lo: -0.3, hi: 0.7 }][random.below(3)],
            per_row: random.below(2) == 0,
            with_bias: random.below(2) == 0,
        }
    }

    fn zero_point(&self, rows: usize) -> Per<'_, i32> {
        if self.per_row { Per::Row(&self.zero_points[..rows]) } else { Per::Tensor(self.zero_points[0]) }
    }

    fn dequantize(&self, rows: usize) -> Dequantize<'_> {
        Dequantize {
            lhs_scale: if self.per_row { Per::Row(&self.lhs_scales[..rows]) } else { Per::Tensor(self.lhs_scales[0]) },
            weight_scale: &self.scales,
            bias: self.with_bias.then_some(&self.bias[..]),
            activation: self.activation,
        }
    }

    fn requantize<T: Code>(&self) -> Requantize<'_, T> {
        let zero_point = (T::QMIN + T::QMAX + 1) / 2 + 3;
        let relu = self.activation == Activation::Relu;
        let stage = Requantize::new(&self.scales).with_bias(self.with_bias.then_some(&self.integer_bias[..])).with_zero_point(zero_point);
        if relu { stage.with_range(zero_point, T::QMAX - 5) } else { stage }
    }
}

/// Runs every stage of one product or convolution and compares it with the reference. A macro, since a stage's element
/// type differs from stage to stage.
macro_rules! compare_stages {
    ($sums:expr, $n:expr, $rows:expr, $rows_per_parameter:expr, $parameters:expr, $context:expr, |$stage:ident, $dst:ident| $run:expr) => {{
        let (sums, n, p) = (&$sums[..], $n, &$parameters);
        let context = $context;
        let mut got = vec![-77i32; sums.len()];
        {
            let ($stage, $dst) = (&Accumulate, &mut got[..]);
            $run
        }
        assert_eq!(got, sums, "sums, {context}");
        let stage = p.dequantize($rows);
        let mut got = vec![-77f32; sums.len()];
        {
            let ($stage, $dst) = (&stage, &mut got[..]);
            $run
        }
        assert_eq!(bits(&got), bits(&reference::dequantize(sums, n, $rows_per_parameter, &stage)), "dequantize, {context}");
        let stage = p.requantize::<u8>();
        let mut got = vec![77u8; sums.len()];
        {
            let ($stage, $dst) = (&stage, &mut got[..]);
            $run
        }
        assert_eq!(got, reference::requantize(sums, n, &stage), "requantize u8, {context}");
        let stage = p.requantize::<i8>();
        let mut got = vec![77i8; sums.len()];
        {
            let ($stage, $dst) = (&stage, &mut got[..]);
            $run
        }
        assert_eq!(got, reference::requantize(sums, n, &stage), "requantize i8, {context}");
    }};
}

fn check_gemm<T: Code>(m: usize, n: usize, k: usize, kinds: (u8, u8), seed: u64, threads: usize) {
    let mut random = Random(seed);
    let lhs = T::from_bytes(&random.bytes(m * k, kinds.0));
    let weights = i8::from_bytes(&random.bytes(n * k, kinds.1));
    let parameters = Parameters::new::<T>(&mut random, m, n);
    let zero_point = parameters.zero_point(m);
    let sums = reference::gemm(&lhs, m, k, zero_point, &weights, n);
    let kn: Vec<i8> = (0..n * k).map(|i| weights[i % n * k + i / n]).collect();
    let mut workspace = Workspace::new();
    for isa in Isa::available() {
        let packed = match seed % 2 {
            0 => PackedWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap(),
            _ => PackedWeights::pack_for(isa, &kn, n, k, WeightLayout::Kn).unwrap(),
        };
        assert_eq!(packed.unpack(), weights);
        let context = format!("{m}x{n}x{k} on {} with {threads} threads", packed.kernel_name());
        compare_stages!(sums, n, m, 1, parameters, context, |stage, dst| gemm(
            Matrix::new(&lhs, m, k).unwrap(),
            zero_point,
            &packed,
            stage,
            MatrixMut::new(dst, m, n).unwrap(),
            &mut workspace,
            threads
        )
        .unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn gemm_equals_reference(m in 0usize..70, n in 0usize..70, k in 0usize..70, lhs in 0u8..4, rhs in 0u8..4, seed in any::<u64>(), signed in any::<bool>()) {
        if signed { check_gemm::<i8>(m, n, k, (lhs, rhs), seed, 1) } else { check_gemm::<u8>(m, n, k, (lhs, rhs), seed, 1) }
    }

    #[test]
    fn conv_equals_reference(case in conv_case(), seed in any::<u64>(), signed in any::<bool>(), threads in 1usize..4) {
        if signed { check_conv::<i8>(&case, seed, threads) } else { check_conv::<u8>(&case, seed, threads) }
    }
}

#[test]
fn gemm_at_the_edges_of_tiles() {
    for m in [1, 5, 6, 7, 13, 14, 15, 27, 28, 29, 43] {
        for n in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65] {
            let k = (m * 7 + n * 3) % 23 + 1;
            check_gemm::<u8>(m, n, k, (2, 2), (m * n) as u64, 1);
        }
    }
}

#[test]
fn gemm_does_not_saturate() {
    // Pairs of 255 * 127 and of 255 * -128 overflow 16 bits; four of them do so sooner.
    for (byte, weight, zero_point) in [(255u8, 127i8, 0), (255, -128, 0), (0, -128, 255), (0, 127, 255), (255, -128, 255)] {
        for k in [4096, 65536] {
            let (m, n) = (3, 17);
            let (lhs, weights) = (vec![byte; m * k], vec![weight; n * k]);
            let sum = (i32::from(byte) - zero_point) * i32::from(weight) * k as i32;
            for isa in Isa::available() {
                let packed = PackedWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
                let mut dst = vec![0i32; m * n];
                let (a, c) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
                gemm(a, Per::Tensor(zero_point), &packed, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
                assert!(dst.iter().all(|&x| x == sum), "{byte} x {weight} - {zero_point} on {}: {dst:?}", isa.name());
            }
        }
    }
}

#[test]
fn gemm_on_threads() {
    for threads in [2, 3] {
        check_gemm::<u8>(300, 130, 200, (2, 2), 5, threads);
        check_gemm::<i8>(5, 1500, 1100, (2, 2), 6, threads);
    }
}

#[test]
fn gemm_every_zero_point() {
    let mut random = Random(9);
    let (m, n, k) = (3, 5, 9);
    let (lhs, weights) = (random.bytes(m * k, 2), i8::from_bytes(&random.bytes(n * k, 2)));
    for isa in Isa::available() {
        let packed = PackedWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
        for z in 0..256 {
            let mut dst = vec![0i32; m * n];
            let (a, c) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
            gemm(a, Per::Tensor(z), &packed, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
            assert_eq!(dst, reference::gemm(&lhs, m, k, Per::Tensor(z), &weights, n));
            let signed = i8::from_bytes(&lhs);
            let (a, c) = (Matrix::new(&signed, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
            gemm(a, Per::Tensor(z - 128), &packed, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
            assert_eq!(dst, reference::gemm(&signed, m, k, Per::Tensor(z - 128), &weights, n));
        }
    }
}

#[test]
fn gemm_with_strides_leaves_the_gaps() {
    let mut random = Random(3);
    for (m, n, k) in [(7, 5, 9), (15, 33, 8), (2, 16, 64)] {
        let (a_stride, c_stride) = (k + 3, n + 5);
        let lhs = random.bytes(m * a_stride, 2);
        let dense: Vec<u8> = (0..m * k).map(|i| lhs[i / k * a_stride + i % k]).collect();
        let weights = i8::from_bytes(&random.bytes(n * k, 2));
        let expected = reference::gemm(&dense, m, k, Per::Tensor(77), &weights, n);
        for isa in Isa::available() {
            let packed = PackedWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
            let mut dst = vec![-5i32; (m - 1) * c_stride + n];
            // As short as a strided matrix can be: nothing may be touched behind the last row.
            let a = Matrix::new(&lhs[..(m - 1) * a_stride + k], m, k).unwrap().with_stride(a_stride).unwrap();
            let c = MatrixMut::new(&mut dst, m, n).unwrap().with_stride(c_stride).unwrap();
            gemm(a, Per::Tensor(77), &packed, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
            for (i, &x) in dst.iter().enumerate() {
                let (row, column) = (i / c_stride, i % c_stride);
                assert_eq!(x, if column < n { expected[row * n + column] } else { -5 });
            }
        }
    }
}

#[derive(Debug, Clone)]
struct ConvCase {
    geometry: Conv2dGeometry,
    shape: ImageShape,
}

fn conv_case() -> impl Strategy<Value = ConvCase> {
    let kernel = (1usize..5, 1usize..5, 1usize..4, 1usize..4, 1usize..3, 1usize..3);
    let padding = prop::array::uniform4(0usize..3);
    let channels = (0u8..5, 1usize..9, 1usize..20, 1usize..4);
    (kernel, padding, channels, 1usize..4, 1usize..10, 1usize..10, any::<bool>()).prop_filter_map(
        "a kernel larger than the image",
        |((kh, kw, sy, sx, dy, dx), padding, (kind, a, b, groups), n, h, w, nchw)| {
            let (input, output, groups) = match kind {
                0 | 1 => (a, 3 * b, 1),
                2 => (a * groups, b * groups, groups),
                3 => (4 * b + 1, 4 * b + 1, 4 * b + 1),
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
    let parameters = Parameters::new::<T>(&mut random, shape.n, n);
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

#[test]
fn conv_on_threads() {
    for threads in [1, 2, 3] {
        for (geometry, h) in [
            (Conv2dGeometry::new(16, 40, [3, 3]).with_padding([1; 4]), 30),
            (Conv2dGeometry::new(64, 64, [3, 3]).with_padding([1; 4]).with_groups(64), 40),
            (Conv2dGeometry::new(96, 700, [1, 1]), 5),
        ] {
            for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
                check_conv::<u8>(&ConvCase { geometry: geometry.clone(), shape: ImageShape { n: 2, h, w: h, layout } }, 4, threads);
            }
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let weights = PackedWeights::pack(&[1; 12], 3, 4, WeightLayout::Nk).unwrap();
    let mut workspace = Workspace::new();
    let mut run = |lhs: (usize, usize), zero_point: Per<'_, i32>, dst: (usize, usize), threads| {
        let (codes, mut out) = ([0u8; 64], [0i32; 64]);
        let lhs = Matrix::new(&codes, lhs.0, lhs.1).unwrap();
        gemm(lhs, zero_point, &weights, &Accumulate, MatrixMut::new(&mut out, dst.0, dst.1).unwrap(), &mut workspace, threads)
    };
    assert!(run((2, 4), Per::Tensor(0), (2, 3), 1).is_ok());
    assert!(matches!(run((2, 5), Per::Tensor(0), (2, 3), 1), Err(Error::Shape { .. })));
    assert!(matches!(run((2, 4), Per::Tensor(0), (3, 3), 1), Err(Error::Shape { .. })));
    assert!(matches!(run((2, 4), Per::Tensor(0), (2, 4), 1), Err(Error::Shape { .. })));
    assert!(matches!(run((2, 4), Per::Tensor(256), (2, 3), 1), Err(Error::ZeroPoint { value: 256, .. })));
    assert!(matches!(run((2, 4), Per::Row(&[0, -1]), (2, 3), 1), Err(Error::ZeroPoint { index: 1, value: -1, .. })));
    assert!(matches!(run((2, 4), Per::Row(&[0]), (2, 3), 1), Err(Error::Length { expected: 2, got: 1, .. })));
    assert!(matches!(run((2, 4), Per::Tensor(0), (2, 3), 0), Err(Error::Parameter { .. })));
    assert!(matches!(Matrix::new(&[0u8; 5], 2, 3), Err(Error::Length { expected: 6, got: 5, .. })));
    assert!(matches!(Matrix::new(&[0u8; 6], 2, 3).unwrap().with_stride(2), Err(Error::Parameter { .. })));
    assert!(matches!(Matrix::new(&[0u8; 6], usize::MAX, 3), Err(Error::ShapeOverflow { .. })));
    assert!(matches!(PackedWeights::pack(&[1; 11], 3, 4, WeightLayout::Nk), Err(Error::Length { expected: 12, got: 11, .. })));
    assert!(matches!(PackedWeights::pack(&[0; 65537], 1, 65537, WeightLayout::Nk), Err(Error::Accumulator { k: 65537, limit: 65536 })));
    assert!(matches!(PackedWeights::pack(&[], usize::MAX, 8, WeightLayout::Nk), Err(Error::ShapeOverflow { .. })));
}

#[test]
fn misuse_of_stages_is_an_error() {
    let weights = PackedWeights::pack(&[1; 12], 3, 4, WeightLayout::Nk).unwrap();
    let codes = [0u8; 8];
    let dequantize = |stage: Dequantize<'_>| {
        let (lhs, mut out) = (Matrix::new(&codes, 2, 4).unwrap(), [0f32; 6]);
        gemm(lhs, Per::Tensor(0), &weights, &stage, MatrixMut::new(&mut out, 2, 3).unwrap(), &mut Workspace::new(), 1)
    };
    let stage = Dequantize { lhs_scale: Per::Tensor(1.0), weight_scale: &[1.0; 3], bias: None, activation: Activation::None };
    assert!(dequantize(stage).is_ok());
    assert!(matches!(dequantize(Dequantize { weight_scale: &[1.0; 2], ..stage }), Err(Error::Length { expected: 3, got: 2, .. })));
    assert!(matches!(dequantize(Dequantize { weight_scale: &[], ..stage }), Err(Error::Length { .. })));
    assert!(matches!(dequantize(Dequantize { bias: Some(&[0.0; 4]), ..stage }), Err(Error::Length { .. })));
    assert!(matches!(dequantize(Dequantize { lhs_scale: Per::Row(&[1.0; 3]), ..stage }), Err(Error::Length { .. })));
    let activation = Activation::Clamp { lo: 1.0, hi: 0.0 };
    assert!(matches!(dequantize(Dequantize { activation, ..stage }), Err(Error::Parameter { .. })));
    let requantize = |stage: Requantize<'_, u8>| {
        let (lhs, mut out) = (Matrix::new(&codes, 2, 4).unwrap(), [0u8; 6]);
        gemm(lhs, Per::Tensor(0), &weights, &stage, MatrixMut::new(&mut out, 2, 3).unwrap(), &mut Workspace::new(), 1)
    };
    assert!(requantize(Requantize::new(&[0.5])).is_ok());
    assert!(matches!(requantize(Requantize::new(&[0.5; 2])), Err(Error::Length { .. })));
    assert!(matches!(requantize(Requantize::new(&[0.5, f32::NAN, 1.0])), Err(Error::Scale { index: 1, .. })));
    assert!(matches!(requantize(Requantize::new(&[-0.5])), Err(Error::Scale { .. })));
    assert!(matches!(requantize(Requantize::new(&[0.5]).with_range(5, 4)), Err(Error::Parameter { .. })));
    assert!(matches!(requantize(Requantize::new(&[0.5]).with_range(-1, 4)), Err(Error::Parameter { .. })));
    assert!(matches!(requantize(Requantize::new(&[0.5]).with_zero_point(256)), Err(Error::ZeroPoint { .. })));
    assert!(matches!(requantize(Requantize::new(&[0.5]).with_bias(Some(&[i32::MAX, 0, 0]))), Err(Error::Accumulator { .. })));
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

#[test]
fn instruction_sets_have_names() {
    let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    assert_eq!(names[0], "scalar");
    for isa in Isa::available() {
        assert!(isa.is_available());
        assert!(PackedWeights::pack_for(isa, &[1], 1, 1, WeightLayout::Nk).unwrap().kernel_name().ends_with(isa.name()));
    }
}
