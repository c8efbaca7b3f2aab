//! Integer products: every instruction set, every stage and every number of threads equal the reference bit for bit.
use lowprec::Error;
use lowprec::kernels::{
    Accumulate, Activation, ActivationRule, Dequantize, Epilogue, Isa, Matrix, MatrixMut, PackedWeights, Per, RangeOf, Requantize,
    Residual, WeightLayout, Workspace, gemm, gemm_dynamic, reference,
};
use proptest::prelude::*;

use crate::kernel_support::{Code, Parameters, Random, bits};

/// Runs `f` on the rows of `dst`, `stride` apart in memory of their own, and looks that the gaps stay as they were.
fn with_stride<E: Copy + PartialEq + std::fmt::Debug>(
    dst: &mut [E],
    (m, n): (usize, usize),
    stride: usize,
    f: impl FnOnce(MatrixMut<'_, E>),
) {
    let Some(&filler) = dst.first() else {
        return f(MatrixMut::new(dst, m, n).unwrap());
    };
    let mut wide = vec![filler; (m - 1) * stride + n];
    for (row, wide) in dst.chunks(n).zip(wide.chunks_mut(stride)) {
        wide[..n].copy_from_slice(row);
    }
    f(MatrixMut::new(&mut wide, m, n).unwrap().with_stride(stride).unwrap());
    for (row, wide) in dst.chunks_mut(n).zip(wide.chunks(stride)) {
        row.copy_from_slice(&wide[..n]);
        assert!(wide[n..].iter().all(|&x| x == filler), "what lies between the rows was written");
    }
}

fn check_gemm<T: Code>(m: usize, n: usize, k: usize, kinds: (u8, u8), seed: u64, threads: usize) {
    let mut random = Random(seed);
    // Rows with gaps between them, as short as the last row allows.
    let (a_stride, c_stride) = (k + 5 * random.below(2), n + 3 * random.below(2));
    let wide = T::from_bytes(&random.bytes((m.max(1) - 1) * a_stride + k, kinds.0));
    let lhs: Vec<T> = (0..m * k).map(|i| wide[i / k * a_stride + i % k]).collect();
    let weights = i8::from_bytes(&random.bytes(n * k, kinds.1));
    let weight_zeros = if random.below(3) == 0 { i8::from_bytes(&random.bytes(n, kinds.0)) } else { Vec::new() };
    let parameters = Parameters::<T>::new(&mut random, m, n, m);
    let zero_point = parameters.zero_point(m);
    let sums = reference::gemm_i64(&lhs, (m, n, k), zero_point, &weights, &weight_zeros);
    let kn: Vec<i8> = (0..n * k).map(|i| weights[i % n * k + i / n]).collect();
    let mut workspace = Workspace::new();
    for isa in Isa::available() {
        let packed = match seed % 2 {
            0 => PackedWeights::pack_asymmetric_for(isa, &weights, &weight_zeros, n, k, WeightLayout::Nk).unwrap(),
            _ => PackedWeights::pack_asymmetric_for(isa, &kn, &weight_zeros, n, k, WeightLayout::Kn).unwrap(),
        };
        assert_eq!(packed.unpack(), weights);
        let context = format!("{m}x{n}x{k} on {} with {threads} threads", packed.kernel_name());
        compare_stages!(sums, n, m, 1, parameters, context, |stage, dst| with_stride(dst, (m, n), c_stride, |dst| {
            let lhs = Matrix::new(&wide, m, k).unwrap().with_stride(a_stride).unwrap();
            gemm(lhs, zero_point, &packed, stage, dst, &mut workspace, threads).unwrap()
        }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn gemm_equals_reference(m in 0usize..70, n in 0usize..70, k in 0usize..70, lhs in 0u8..4, rhs in 0u8..4, seed in any::<u64>(), signed in any::<bool>()) {
        if signed { check_gemm::<i8>(m, n, k, (lhs, rhs), seed, 1) } else { check_gemm::<u8>(m, n, k, (lhs, rhs), seed, 1) }
    }
}

#[test]
fn gemm_at_the_edges_of_tiles() {
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 23, 24, 25, 27, 28, 29, 43] {
        for n in [1, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65] {
            let k = (m * 7 + n * 3) % 23 + 1;
            check_gemm::<u8>(m, n, k, (2, 2), (m * n) as u64, 1);
        }
    }
}

/// Whole and partial tiles of a matrix unit: of rows, of columns, and of steps, 64 at a time.
#[test]
#[cfg(target_arch = "x86_64")]
fn gemm_at_the_edges_of_squares() {
    for m in [7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 47, 49, 63, 65, 95] {
        for (n, k) in [(16, 64), (17, 63), (33, 65), (32, 200), (65, 1091), (1, 129), (70, 52), (40, 128)] {
            check_gemm::<u8>(m, n, k, (2, 2), (m + n * k) as u64, 1 + m % 2);
        }
        // Of whole steps alone: sums of whole squares stay in the unit until the next one's first products.
        for (n, k) in [(96, 128), (80, 192), (65, 256), (48, 1088), (32, 1024)] {
            check_gemm::<i8>(m, n, k, (2, 2), (m + n * k) as u64, 1 + m % 2);
        }
    }
}

#[test]
fn gemm_does_not_saturate() {
    // Pairs of 255 * 127 and of 255 * -128 overflow 16 bits; four of them do so sooner.
    for (byte, weight, zero_point) in [(255u8, 127i8, 0), (255, -128, 0), (0, -128, 255), (0, 127, 255), (255, -128, 255)] {
        for k in [4096, 65536] {
            let (m, n) = (17, 17);
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

/// Many rows of a k above which tiles are high and go one by one; below it, rows that make runs of several heights.
#[test]
fn gemm_of_high_and_low_tiles() {
    check_gemm::<u8>(31, 40, 4100, (2, 2), 12, 1);
    check_gemm::<i8>(43, 70, 8200, (2, 2), 13, 1);
    check_gemm::<u8>(103, 70, 4096, (2, 2), 14, 1);
    check_gemm::<i8>(151, 33, 17, (2, 2), 15, 1);
}

/// Squares of a matrix unit, which take more work to share: cut by rows and by columns; and a last one of one row.
#[test]
#[cfg(target_arch = "x86_64")]
fn squares_on_threads() {
    for threads in [2, 3] {
        check_gemm::<u8>(130, 70, 2000, (2, 2), 7, threads);
        check_gemm::<i8>(9, 1100, 2000, (2, 2), 8, threads);
        check_gemm::<u8>(40, 1500, 1100, (2, 2), 9, threads);
        // Columns are split here, although rows would be as even.
        check_gemm::<u8>(64, 2048, 1024, (2, 2), 9, threads);
        // Rows are, each square in pieces.
        check_gemm::<u8>(100, 523, 700, (2, 2), 10, threads);
    }
    check_gemm::<u8>(993, 17, 52, (2, 2), 10, 1);
    // More squares of rows than go through a panel together, and more panels than stay in a cache.
    check_gemm::<u8>(300, 600, 1088, (2, 2), 11, 1);
    // A last square of one row, for which sums that stay must leave.
    check_gemm::<u8>(993, 64, 128, (2, 2), 12, 1);
}

/// Rows a power of two apart, which are copied before they are read.
#[test]
fn gemm_of_rows_that_collide() {
    check_gemm::<u8>(17, 260, 2048, (2, 2), 8, 1);
    check_gemm::<i8>(15, 257, 4096, (2, 2), 10, 2);
}

#[test]
#[cfg(feature = "parallel")]
fn gemm_inside_a_pool_of_the_caller() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // More threads than the pool has, from inside it, and from two of its tasks at once.
    pool.install(|| {
        check_gemm::<u8>(300, 130, 200, (2, 2), 5, 7);
        rayon::join(|| check_gemm::<u8>(290, 131, 200, (2, 2), 6, 2), || check_gemm::<i8>(5, 1500, 1100, (2, 2), 7, 2));
    });
}

#[test]
fn matrices_of_nothing_cost_nothing() {
    let huge = 1 << 45;
    let empty = PackedWeights::pack(&[], 0, 0, WeightLayout::Nk).unwrap();
    let (a, c) = (Matrix::<u8>::new(&[], huge, 0).unwrap(), MatrixMut::new(&mut [], huge, 0).unwrap());
    gemm(a, Per::Tensor(0), &empty, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
    let (a, c) = (Matrix::<i8>::new(&[], huge, 0).unwrap(), MatrixMut::new(&mut [], huge, 0).unwrap());
    gemm(a, Per::Tensor(0), &empty, &Accumulate, c, &mut Workspace::new(), 2).unwrap();
    let (a, c) = (Matrix::<f32>::new(&[], usize::MAX, 0).unwrap(), MatrixMut::new(&mut [], usize::MAX, 0).unwrap());
    gemm_dynamic(a, RangeOf::Row, &ActivationRule::default(), &empty, &Epilogue::new(&[1.0]), c, &mut Workspace::new(), 1).unwrap();
    let weights = PackedWeights::pack(&[1; 6], 3, 2, WeightLayout::Nk).unwrap();
    let mut sums = [0i32; 3];
    let a = Matrix::new(&[1u8, 2], 1, 2).unwrap().with_stride(usize::MAX).unwrap();
    let c = MatrixMut::new(&mut sums, 1, 3).unwrap().with_stride(usize::MAX).unwrap();
    gemm(a, Per::Tensor(0), &weights, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
    assert_eq!(sums, [3; 3]);
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
    // The large gaps are those of outputs that are fetched ahead, while sums of 1, 4 and 9 words and a rest are made.
    let far = 180_000;
    for (m, n, k, gap) in [(7, 5, 9, 5), (15, 33, 8, 5), (2, 16, 64, 5), (3, 5, 4, far), (3, 33, 13, far), (4, 16, 36, far)] {
        let (a_stride, c_stride) = (k + 3, n + gap);
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

/// Sums beyond i32, in runs of k: floats and codes are those of the exact sum.
#[test]
fn sums_beyond_32_bits_stay_exact() {
    for (m, n, k, zeros) in
        [(3, 5, 65_800, false), (2, 33, 140_001, false), (16, 3, 70_000, false), (2, 17, 33_026, true), (3, 3, 70_001, true)]
    {
        let mut random = Random(k as u64);
        let (lhs, weights) = (random.bytes(m * k, 1), i8::from_bytes(&random.bytes(n * k, 1)));
        // Rows and columns of one sign leave i32 for sure.
        let lhs: Vec<u8> = lhs.iter().enumerate().map(|(i, &x)| if i / k == 0 { 255 } else { x }).collect();
        let weights: Vec<i8> = weights.iter().enumerate().map(|(i, &x)| if i / k == 0 { -128 } else { x }).collect();
        let weight_zeros = if zeros { vec![127i8; n] } else { Vec::new() };
        let parameters = Parameters::<u8>::new(&mut random, m, n, m);
        // The first row stays out of i32 with the zero point 0; the others have their own.
        let zeros: Vec<i32> = (0..m).map(|row| if row == 0 { 0 } else { parameters.zero_points[row] }).collect();
        let sums = reference::gemm_i64(&lhs, (m, n, k), Per::Row(&zeros), &weights, &weight_zeros);
        assert!(sums.iter().any(|&sum| i32::try_from(sum).is_err()));
        let mut workspace = Workspace::new();
        for isa in Isa::available() {
            let packed = PackedWeights::pack_asymmetric_for(isa, &weights, &weight_zeros, n, k, WeightLayout::Nk).unwrap();
            assert_eq!(packed.unpack(), weights);
            let mut run = |threads: usize| {
                let context = format!("{m}x{n}x{k} on {}", isa.name());
                compare_narrow_stages!(sums, n, m, 1, parameters, context, |stage, dst| gemm(
                    Matrix::new(&lhs, m, k).unwrap(),
                    Per::Row(&zeros),
                    &packed,
                    stage,
                    MatrixMut::new(dst, m, n).unwrap(),
                    &mut workspace,
                    threads
                )
                .unwrap());
            };
            run(1);
            run(3);
            let mut dst = vec![0i32; m * n];
            let (a, c) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut dst, m, n).unwrap());
            let refused = gemm(a, Per::Tensor(0), &packed, &Accumulate, c, &mut workspace, 1);
            assert!(matches!(refused, Err(Error::Accumulator { k: refused, .. }) if refused == k));
            assert!(dst.iter().all(|&x| x == 0));
        }
    }
}

#[test]
fn the_longest_sums_that_an_i32_holds() {
    for (k, weight, zero) in [(65536, -128i8, None), (33025, -128, Some(127i8))] {
        let lhs = vec![255u8; k];
        let sum = 255 * (i64::from(weight) - zero.map_or(0, i64::from)) * k as i64;
        for isa in Isa::available() {
            let zeros: Vec<i8> = zero.into_iter().collect();
            let packed = PackedWeights::pack_asymmetric_for(isa, &vec![weight; k], &zeros, 1, k, WeightLayout::Nk).unwrap();
            let mut dst = [0i32];
            let (a, c) = (Matrix::new(&lhs, 1, k).unwrap(), MatrixMut::new(&mut dst, 1, 1).unwrap());
            gemm(a, Per::Tensor(0), &packed, &Accumulate, c, &mut Workspace::new(), 1).unwrap();
            assert_eq!(i64::from(dst[0]), sum, "{}", isa.name());
        }
    }
}

/// What is added to the longest sums before they are rounded may leave i32, or not.
#[test]
fn residuals_beside_the_longest_sums() {
    let (k, lhs) = (65536, vec![255u8; 65536]);
    for weight in [127i8, -128] {
        let sum = 255 * i64::from(weight) * k as i64;
        let (half, beyond) = (1048576.0f32, 8388608.0);
        for (multiplier, other) in [
            (0.499, half),
            (0.4991, half),
            (0.499, half * 1.01),
            (0.6, half),
            (0.9, half),
            (1.0, half),
            (0.499, beyond),
            (1.0, beyond),
            (0.9, 0.0),
        ] {
            for (code, zero_point) in [(255u8, 0), (0, 255), (3, 3)] {
                let (codes, multiplier) = ([code], [multiplier]);
                let residual = Residual { codes: Matrix::new(&codes, 1, 1).unwrap(), zero_point, multiplier: other };
                let stage = Requantize::new(&multiplier).with_zero_point(100).with_residual(Some(residual));
                let expected = reference::requantize(&[sum], 1, &stage);
                for isa in Isa::available() {
                    let packed = PackedWeights::pack_for(isa, &vec![weight; k], 1, k, WeightLayout::Nk).unwrap();
                    let mut dst = [77u8];
                    let (a, c) = (Matrix::new(&lhs, 1, k).unwrap(), MatrixMut::new(&mut dst, 1, 1).unwrap());
                    gemm(a, Per::Tensor(0), &packed, &stage, c, &mut Workspace::new(), 1).unwrap();
                    assert_eq!(dst[..], expected[..], "{} {multiplier:?} {other} {code} {zero_point}", isa.name());
                }
            }
        }
    }
}

/// A bias that would push sums out of i32 is added in 64 bits.
#[test]
fn a_huge_bias_does_not_wrap() {
    let (lhs, weights) = ([255u8; 64], [127i8; 64]);
    for isa in Isa::available() {
        let packed = PackedWeights::pack_for(isa, &weights, 1, 64, WeightLayout::Nk).unwrap();
        for (bias, multiplier) in [(i32::MAX, 1e-7), (i32::MIN, 1e-7), (i32::MAX, 5.8e-8)] {
            let (bias, multiplier) = ([bias], [multiplier]);
            let stage = Requantize::<u8>::new(&multiplier).with_bias(Some(&bias)).with_zero_point(100);
            let mut dst = [0u8];
            let (a, c) = (Matrix::new(&lhs, 1, 64).unwrap(), MatrixMut::new(&mut dst, 1, 1).unwrap());
            gemm(a, Per::Tensor(0), &packed, &stage, c, &mut Workspace::new(), 1).unwrap();
            assert_eq!(dst[..], reference::requantize(&[64 * 255 * 127i64], 1, &stage)[..], "{} {bias:?}", isa.name());
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
    let long = PackedWeights::pack(&[0; 65537], 1, 65537, WeightLayout::Nk).unwrap();
    let refused = gemm(
        Matrix::new(&[0u8; 65537], 1, 65537).unwrap(),
        Per::Tensor(0),
        &long,
        &Accumulate,
        MatrixMut::new(&mut [0], 1, 1).unwrap(),
        &mut Workspace::new(),
        1,
    );
    assert!(matches!(refused, Err(Error::Accumulator { k: 65537, limit: 65536 })));
    assert!(matches!(
        PackedWeights::pack_asymmetric_for(Isa::best(), &[1; 12], &[0; 2], 3, 4, WeightLayout::Nk),
        Err(Error::Length { expected: 3, got: 2, .. })
    ));
    assert!(matches!(PackedWeights::pack(&[], usize::MAX, 0, WeightLayout::Nk), Err(Error::ShapeOverflow { .. })));
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
    let stage = Dequantize::new(Per::Tensor(1.0), &[1.0; 3]);
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
    assert!(matches!(requantize(Requantize::new(&[0.5]).with_bias(Some(&[0; 2]))), Err(Error::Length { .. })));
}

#[test]
fn misuse_of_residuals_is_an_error() {
    let weights = PackedWeights::pack(&[1; 12], 3, 4, WeightLayout::Nk).unwrap();
    let codes = [0u8; 8];
    let run = |residual: Residual<'_, u8>, multiplier: f32| {
        let (multiplier, mut out) = ([multiplier], [0u8; 6]);
        let stage = Requantize::new(&multiplier).with_residual(Some(residual));
        let (a, c) = (Matrix::new(&codes, 2, 4).unwrap(), MatrixMut::new(&mut out, 2, 3).unwrap());
        gemm(a, Per::Tensor(0), &weights, &stage, c, &mut Workspace::new(), 1)
    };
    let other = [9u8; 12];
    let residual = Residual { codes: Matrix::new(&other, 2, 3).unwrap(), zero_point: 3, multiplier: 0.5 };
    assert!(run(residual, 0.1).is_ok());
    assert!(matches!(run(Residual { codes: Matrix::new(&other, 3, 3).unwrap(), ..residual }, 0.1), Err(Error::Shape { .. })));
    assert!(matches!(run(Residual { codes: Matrix::new(&other, 2, 4).unwrap(), ..residual }, 0.1), Err(Error::Shape { .. })));
    assert!(matches!(run(Residual { zero_point: -1, ..residual }, 0.1), Err(Error::ZeroPoint { .. })));
    for multiplier in [f32::NAN, f32::INFINITY, -1.0, 1e30] {
        assert!(matches!(run(Residual { multiplier, ..residual }, 0.1), Err(Error::Parameter { .. })));
        assert!(matches!(run(residual, multiplier), Err(Error::Scale { .. })));
    }
}

/// Quantizing and packing in one pass is quantizing by the rules, then packing.
#[test]
fn quantized_weights_are_those_of_the_scheme() {
    use lowprec::num::{affine_qparams, quantize};
    let mut random = Random(11);
    for (n, k) in [(1, 1), (5, 7), (33, 64), (40, 131), (3, 0), (0, 3), (2, 65_600), (4100, 6)] {
        let mut weights = random.floats(n * k);
        weights.iter_mut().take(k).for_each(|x| *x = 0.0);
        weights.iter_mut().skip(2 * k).take(k).for_each(|x| *x *= 1e-39);
        let row = |column: usize| &weights[column * k..][..k];
        let scale = |column: usize| {
            let (min, max) = row(column).iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
            if k == 0 { 1.0 } else { affine_qparams(min, max, -127, 127, true).0 }
        };
        let scales: Vec<f32> = (0..n).map(scale).collect();
        let codes: Vec<i8> =
            (0..n).flat_map(|c| row(c).iter().map(move |&x| (x, c))).map(|(x, c)| quantize(x, scales[c], 0, -127, 127) as i8).collect();
        let kn: Vec<f32> = (0..n * k).map(|i| weights[i % n * k + i / n]).collect();
        for isa in Isa::available() {
            for (layout, weights) in [(WeightLayout::Nk, &weights), (WeightLayout::Kn, &kn)] {
                let (packed, found) = PackedWeights::quantize_for(isa, weights, n, k, layout).unwrap();
                assert_eq!(bits(&found), bits(&scales), "{n}x{k} on {}", isa.name());
                assert_eq!(packed.unpack(), codes, "{n}x{k} on {}", isa.name());
            }
        }
    }
    let found = PackedWeights::quantize(&[1.0, f32::NAN, 2.0, f32::INFINITY], 2, 2, WeightLayout::Nk);
    assert!(matches!(found, Err(Error::NonFinite { index: 1, .. })));
    let (n, k) = (4100, 6);
    for index in [4099, 5 * n + 4097] {
        let mut weights = vec![1.0; n * k];
        weights[index] = f32::NEG_INFINITY;
        for isa in Isa::available() {
            let found = PackedWeights::quantize_for(isa, &weights, n, k, WeightLayout::Kn);
            assert!(matches!(found, Err(Error::NonFinite { index: i, .. }) if i == index), "{}", isa.name());
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
