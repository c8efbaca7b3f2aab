//! Products with weights of 2, 3, 4 and 8 bits: every instruction set and any number of threads equal the reference bit for bit.
use std::cell::Cell;

use lowprec::Error;
use lowprec::kernels::{
    Activation, FloatEpilogue, GroupScales, Isa, Levels, LowBit, LowBitRange, Matrix, MatrixMut, PackedLowBit, Range, Workspace,
    gemm_low_bit, gemm_low_bit_f32, min_max, reference,
};
use lowprec::num::{NonFinite, bf16, f16};
use lowprec::quant::PackedCodes;
use proptest::prelude::*;

use crate::kernel_support::{Random, bits};

/// The levels of the 4-bit normal float.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Weights and what they borrow.
struct Owned {
    shape: [usize; 3],
    bits: u32,
    codes: Vec<u8>,
    zero_points: Vec<u8>,
    table: Vec<f32>,
    scales: Vec<f32>,
    halves: Vec<f16>,
    brains: Vec<bf16>,
    levels: u8,
    precision: u8,
}

impl Owned {
    fn new(random: &mut Random, bits: u32, [n, k, group]: [usize; 3], kind: u8, levels: u8, precision: u8) -> Self {
        let span = 1usize << bits;
        let codes = (0..n * k).map(|_| match kind {
            0 => span as u32 - 1,
            1 => [0, span as u32 - 1][random.below(2)],
            _ => random.below(span) as u32,
        });
        let codes = PackedCodes::new(bits, codes).unwrap().as_bytes().to_vec();
        let groups = n * k.div_ceil(group.min(k).max(1));
        let scales: Vec<f32> = (0..groups).map(|_| (random.below(4001) as f32 - 2000.0) * 3.1e-4).collect();
        let halves = (0..groups)
            .map(|_| f16::from_bits((random.next() as u16) & 0xbfff)) // Of both signs, below 2, subnormal ones among them.
            .collect();
        let table = match bits {
            2 => vec![-0.7, 0.0, 0.4, 1.3],
            3 => vec![-0.9, -0.4, -0.1, 0.0, 0.2, 0.5, 0.75, 1.1],
            _ => NF4.to_vec(),
        };
        Owned {
            shape: [n, k, group],
            bits,
            codes,
            zero_points: (0..groups).map(|_| random.below(span) as u8).collect(),
            table,
            brains: scales.iter().map(|&x| bf16::from_f32(x)).collect(),
            scales,
            halves,
            levels,
            precision,
        }
    }

    fn weights(&self) -> LowBit<'_> {
        let [n, k, group] = self.shape;
        let half = 1u8 << (self.bits - 1);
        let levels = match self.levels {
            0 => Levels::ZeroPoint(half),
            1 => Levels::ZeroPoints(&self.zero_points),
            2 => Levels::ZeroPoint(half | (half - 1)),
            3 if self.bits < 8 => Levels::Table(&self.table),
            _ => Levels::Signed,
        };
        let scales = match self.precision {
            0 => GroupScales::F32(&self.scales),
            1 => GroupScales::F16(&self.halves),
            _ => GroupScales::Bf16(&self.brains),
        };
        LowBit { n, k, bits: self.bits, group, codes: &self.codes, levels, scales }
    }
}

fn check(bits_of_code: u32, m: usize, shape: [usize; 3], kind: u8, (levels, precision): (u8, u8), seed: u64, threads: usize) {
    let mut random = Random(seed);
    let owned = Owned::new(&mut random, bits_of_code, shape, kind, levels, precision);
    let weights = owned.weights();
    let [n, k, group] = shape;
    // Rows with gaps between them, as short as the last row allows.
    let (a_stride, c_stride) = (k + 5 * random.below(2), n + 3 * random.below(2));
    let mut wide = random.floats(((m.max(1) - 1) * a_stride + k).max(1));
    if kind == 0 {
        wide.iter_mut().for_each(|x| *x = 3.0);
    }
    let lhs: Vec<f32> = (0..m * k).map(|i| wide[i / k * a_stride + i % k]).collect();
    let bias = random.floats(n);
    let activation = [Activation::None, Activation::Relu, Activation::Clamp { lo: -0.3, hi: 0.7 }][random.below(3)];
    let epilogue = FloatEpilogue::new()
        .with_bias((random.below(2) == 0).then_some(&bias[..]))
        .with_accumulate(random.below(2) == 0)
        .with_activation(activation);
    let before = random.floats(m * n);
    let mut workspace = Workspace::new();
    // Floats have no range.
    for range in [Some(LowBitRange::Row), Some(LowBitRange::Group), None] {
        let mut integers = before.clone();
        reference::gemm_low_bit(&lhs, m, range.unwrap_or_default(), &weights, &epilogue, &mut integers);
        for isa in Isa::available() {
            let mut expected = integers.clone();
            if range.is_none() {
                expected.clone_from(&before);
                // Plain Rust has no fused multiplication and addition that is worth it.
                reference::gemm_low_bit_f32(&lhs, m, &weights, isa != Isa::Scalar, &epilogue, &mut expected);
            }
            let packed = PackedLowBit::pack_for(isa, &weights).unwrap();
            assert_eq!(packed.codes(), owned.codes);
            let context = format!("{m}x{n}x{k}, {bits_of_code} bits, groups of {group}, {}, {threads} threads, {range:?}", isa.name());
            let mut got = vec![-7f32; (m.max(1) - 1) * c_stride + n];
            (0..m * n).for_each(|i| got[i / n * c_stride + i % n] = before[i]);
            let a = Matrix::new(&wide, m, k).and_then(|a| a.with_stride(a_stride)).unwrap();
            let c = MatrixMut::new(&mut got, m, n).and_then(|c| c.with_stride(c_stride)).unwrap();
            match range {
                None => gemm_low_bit_f32(a, &packed, &epilogue, c, &mut workspace, threads).unwrap(),
                Some(range) => gemm_low_bit(a, range, NonFinite::Error, &packed, &epilogue, c, &mut workspace, threads).unwrap(),
            }
            for (row, expected) in expected.chunks(n.max(1)).enumerate() {
                assert_eq!(bits(&got[row * c_stride..][..n]), bits(expected), "row {row}, {context}");
            }
            let written = |i: &usize| i % c_stride.max(1) < n && i / c_stride.max(1) < m;
            assert!((0..got.len()).filter(|i| !written(i)).all(|i| got[i] == -7.0), "between the rows, {context}");
        }
    }
}

const BITS: [u32; 4] = [2, 3, 4, 8];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn products_equal_the_reference(
        m in 0usize..16, n in 0usize..70, k in 0usize..150, group in 1usize..20, bits in 0usize..4, kind in 0u8..4,
        levels in 0u8..5, precision in 0u8..3, seed in any::<u64>(), threads in 1usize..4,
    ) {
        check(BITS[bits], m, [n, k, 4 * group], kind, (levels, precision), seed, threads);
    }
}

#[test]
fn at_the_edges_of_tiles() {
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 19] {
        for n in [1, 4, 8, 9, 15, 16, 17, 31, 32, 33, 65] {
            let seed = (m * 100 + n) as u64;
            check(4, m, [n, 64, 32], 3, ((m % 4) as u8, (n % 3) as u8), seed, 1);
            check(2, m, [n, 80, 16], 3, ((n % 4) as u8, (m % 3) as u8), seed, 1);
            check(3, m, [n, 100, 32], 3, ((n % 4) as u8, (m % 3) as u8), seed, 1);
            check(8, m, [n, 68, 32], 3, ((n % 5) as u8, (m % 3) as u8), seed, 1);
        }
    }
}

#[test]
fn groups_of_every_kind() {
    for group in [4, 8, 12, 16, 20, 32, 64, 128, 300, 1000] {
        for levels in 0..5 {
            check(4, 2, [19, 300, group], 3, (levels, 1), 7, 1);
            check(2, 3, [19, 300, group], 3, (levels, 2), 8, 1);
            check(3, 5, [19, 300, group], 3, (levels, 0), 9, 1);
            check(8, 4, [19, 300, group], 3, (levels, 1), 10, 1);
        }
    }
}

/// Sums at the ends of what 16 and 32 bits hold.
#[test]
fn nothing_saturates() {
    for levels in 0..4 {
        check(4, 2, [3, 65536, 65536], 0, (levels, 0), 1, 1);
        check(8, 1, [3, 65536, 65536], 1, (levels, 0), 2, 1);
        check(8, 1, [3, 65536, 65536], 0, (levels, 0), 2, 1);
        check(4, 7, [17, 4096, 128], 0, (levels, 0), 3, 1);
    }
}

#[test]
fn on_threads() {
    for threads in [2, 3] {
        check(4, 1, [3000, 2048, 32], 3, (0, 1), 5, threads);
        check(4, 40, [260, 512, 64], 3, (1, 0), 6, threads);
        check(4, 130, [130, 512, 64], 3, (3, 0), 6, threads);
    }
}

/// Rows do not depend on those beside them, nor on their number.
#[test]
fn rows_by_themselves() {
    let mut random = Random(11);
    let owned = Owned::new(&mut random, 4, [40, 96, 32], 3, 0, 1);
    let packed = PackedLowBit::pack(&owned.weights()).unwrap();
    let (m, n, k) = (15, 40, 96);
    let x = random.floats(m * k);
    let mut workspace = Workspace::new();
    let mut run = |x: &[f32], m: usize, range| {
        let mut y = vec![0f32; m * n];
        let (a, c) = (Matrix::new(x, m, k).unwrap(), MatrixMut::new(&mut y, m, n).unwrap());
        gemm_low_bit(a, range, NonFinite::Error, &packed, &FloatEpilogue::new(), c, &mut workspace, 1).unwrap();
        y
    };
    for range in [LowBitRange::Row, LowBitRange::Group] {
        let all = run(&x, m, range);
        for row in 0..m {
            assert_eq!(bits(&run(&x[row * k..][..k], 1, range)), bits(&all[row * n..][..n]));
        }
    }
}

#[test]
fn ranges_are_those_of_the_output() {
    let mut random = Random(12);
    let owned = Owned::new(&mut random, 4, [33, 64, 32], 3, 3, 0);
    let packed = PackedLowBit::pack(&owned.weights()).unwrap();
    let (m, n, k) = (3, 33, 64);
    let x = random.floats(m * k);
    let mut y = vec![0f32; m * n];
    let cells = vec![Cell::new(Range { min: 0.0, max: 0.0, finite: true }); m];
    let (a, c) = (Matrix::new(&x, m, k).unwrap(), MatrixMut::new(&mut y, m, n).unwrap());
    let epilogue = FloatEpilogue::new().with_ranges(Some(&cells));
    gemm_low_bit(a, LowBitRange::Row, NonFinite::Error, &packed, &epilogue, c, &mut Workspace::new(), 1).unwrap();
    for (cell, row) in cells.iter().zip(y.chunks(n)) {
        assert_eq!(cell.get(), min_max(row));
    }
}

/// Close to the product in f64 of what the weights stand for: the reference means what it says.
#[test]
fn the_reference_is_a_product() {
    let mut random = Random(13);
    for levels in 0..5 {
        let owned = Owned::new(&mut random, 4, [9, 100, 32], 3, levels, 0);
        let weights = owned.weights();
        let (m, n, k) = (2, 9, 100);
        let x = random.floats(m * k);
        let level = |column: usize, i: usize| {
            let at = column * k + i;
            let code = i32::from(weights.codes[at / 2] >> (4 * (at % 2)) & 15);
            let value = match weights.levels {
                Levels::ZeroPoint(zero) => (code - i32::from(zero)) as f32,
                Levels::ZeroPoints(zeros) => (code - i32::from(zeros[column * 4 + i / 32])) as f32,
                Levels::Table(table) => table[code as usize],
                Levels::Signed => ((code ^ 8) - 8) as f32,
                _ => unreachable!(),
            };
            f64::from(value) * f64::from(weights.scales.get(column * 4 + i / 32))
        };
        let (mut float, mut integer) = (vec![0f32; m * n], vec![0f32; m * n]);
        reference::gemm_low_bit_f32(&x, m, &weights, false, &FloatEpilogue::new(), &mut float);
        reference::gemm_low_bit(&x, m, LowBitRange::Row, &weights, &FloatEpilogue::new(), &mut integer);
        for i in 0..m * n {
            let terms = (0..k).map(|j| f64::from(x[i / n * k + j]) * level(i % n, j));
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            assert!((f64::from(float[i]) - exact).abs() <= 1e-5 * size, "{} and {exact}", float[i]);
            // Half a step of activations, and of the table's bytes.
            let largest = (0..k).map(|j| level(i % n, j).abs()).sum::<f64>();
            assert!((f64::from(integer[i]) - exact).abs() <= (0.5 / 127.0) * (largest + size) + 1e-5 * size + k as f64 * 0.62 / 254.0);
        }
    }
}

#[test]
fn bytes_are_those_held() {
    // 64 columns over 128 in groups of 32, and 16 bits for the scale of each group.
    let (n, k, group, scales) = (64, 128, 32, vec![f16::ONE; 64 * 4]);
    for (bits, isa) in BITS.into_iter().flat_map(|bits| Isa::available().into_iter().map(move |isa| (bits, isa))) {
        let codes = vec![0x77; n * k * bits as usize / 8];
        let (levels, scales) = (Levels::Signed, GroupScales::F16(&scales));
        let packed = PackedLowBit::pack_for(isa, &LowBit { n, k, bits, group, codes: &codes, levels, scales }).unwrap();
        // And a line after the last, which vectors may read.
        assert_eq!(packed.bytes() - size_of::<PackedLowBit>(), n * k * bits as usize / 8 + n * 4 * 2 + 64, "{}", isa.name());
        assert_eq!((packed.n(), packed.k(), packed.group(), packed.bits()), (n, k, group, bits as usize));
    }
}

#[test]
fn misuse_is_told() {
    let (codes, scales, zeros) = (vec![0u8; 32], vec![1f32; 4], vec![0u8; 4]);
    let (levels, ones) = (Levels::ZeroPoint(8), GroupScales::F32(&scales));
    let good = LowBit { n: 4, k: 16, bits: 4, group: 16, codes: &codes, levels, scales: ones };
    let error = |weights: LowBit<'_>| PackedLowBit::pack(&weights).unwrap_err();
    assert!(PackedLowBit::pack(&good).is_ok());
    for bits in [0, 1, 5, 16] {
        assert!(matches!(error(LowBit { bits, ..good }), Error::Parameter { what: "bits of a code", .. }));
    }
    assert!(matches!(error(LowBit { group: 0, ..good }), Error::Parameter { what: "group size", .. }));
    assert!(matches!(error(LowBit { group: 6, ..good }), Error::Parameter { what: "group size", .. }));
    assert!(matches!(error(LowBit { n: 5, ..good }), Error::Length { expected: 40, got: 32, .. }));
    assert!(matches!(error(LowBit { group: 8, ..good }), Error::Length { expected: 8, got: 4, .. }));
    assert!(matches!(error(LowBit { n: usize::MAX, ..good }), Error::ShapeOverflow { .. }));
    assert!(matches!(error(LowBit { levels: Levels::ZeroPoint(16), ..good }), Error::ZeroPoint { value: 16, .. }));
    assert!(matches!(error(LowBit { levels: Levels::ZeroPoints(&zeros[..3]), ..good }), Error::Length { expected: 4, got: 3, .. }));
    let wrong = [0, 0, 16, 0];
    assert!(matches!(error(LowBit { levels: Levels::ZeroPoints(&wrong), ..good }), Error::ZeroPoint { index: 2, value: 16, .. }));
    assert!(matches!(error(LowBit { levels: Levels::Table(&NF4[..4]), ..good }), Error::Length { expected: 16, got: 4, .. }));
    let wide = LowBit { bits: 8, n: 2, levels: Levels::Table(&NF4), scales: GroupScales::F32(&scales[..2]), ..good };
    assert!(matches!(error(wide), Error::Parameter { what: "bits of codes with a table", .. }));
    let nan = [f32::NAN; 16];
    assert!(matches!(error(LowBit { levels: Levels::Table(&nan), ..good }), Error::Parameter { what: "table entry", .. }));
    let infinite = [1.0, f32::INFINITY, 1.0, 1.0];
    assert!(matches!(error(LowBit { scales: GroupScales::F32(&infinite), ..good }), Error::Parameter { what: "group scale", .. }));
    let long = LowBit { n: 1, k: 70000, group: 70000, codes: &vec![0; 35000], scales: GroupScales::F32(&scales[..1]), ..good };
    assert!(matches!(error(long), Error::Accumulator { k: 70000, limit: 65536 }));

    let packed = PackedLowBit::pack(&good).unwrap();
    let (mut y, x) = ([0f32; 4], [1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let mut range = LowBitRange::Row;
    let mut run = |x: &[f32], policy, epilogue: FloatEpilogue<'_>, threads| {
        // In turns.
        range = if range == LowBitRange::Row { LowBitRange::Group } else { LowBitRange::Row };
        let (a, c) = (Matrix::new(x, 1, x.len()).unwrap(), MatrixMut::new(&mut y, 1, 4).unwrap());
        gemm_low_bit(a, range, policy, &packed, &epilogue, c, &mut Workspace::new(), threads)
    };
    let plain = FloatEpilogue::new();
    let late: Vec<f32> = (0..16).map(|i| if i == 13 { f32::INFINITY } else { 1.0 }).collect();
    for _ in 0..2 {
        assert!(matches!(run(&x, NonFinite::Error, plain, 1), Err(Error::NonFinite { index: 1, .. })));
    }
    for _ in 0..2 {
        assert!(matches!(run(&late, NonFinite::Error, plain, 1), Err(Error::NonFinite { index: 13, .. })));
    }
    for _ in 0..2 {
        assert!(run(&x, NonFinite::Saturate, plain, 1).is_ok());
    }
    assert!(matches!(run(&[1.0; 16], NonFinite::Error, plain, 0), Err(Error::Parameter { what: "threads", .. })));
    assert!(matches!(run(&[1.0; 15], NonFinite::Error, plain, 1), Err(Error::Shape { .. })));
    let bias = [0.0; 3];
    assert!(matches!(run(&[1.0; 16], NonFinite::Error, plain.with_bias(Some(&bias)), 1), Err(Error::Length { .. })));
}

/// The sums of columns, which the first product with ranges of rows makes, are a cache: nothing else changes.
#[test]
fn sums_of_columns_are_a_cache() {
    let mut random = Random(21);
    let (n, k) = (40, 96);
    let owned = Owned::new(&mut random, 4, [n, k, 32], 3, 1, 1);
    for isa in Isa::available() {
        let packed = PackedLowBit::pack_for(isa, &owned.weights()).unwrap();
        let (x, before, copy) = (random.floats(3 * k), packed.bytes(), packed.clone());
        let run = |packed: &PackedLowBit, range| {
            let mut y = vec![0f32; 3 * n];
            let (a, c) = (Matrix::new(&x, 3, k).unwrap(), MatrixMut::new(&mut y, 3, n).unwrap());
            gemm_low_bit(a, range, NonFinite::Error, packed, &FloatEpilogue::new(), c, &mut Workspace::new(), 1).unwrap();
            y
        };
        let by_group = run(&packed, LowBitRange::Group);
        let y = run(&packed, LowBitRange::Row);
        assert_eq!((run(&packed, LowBitRange::Row), run(&packed, LowBitRange::Group)), (y.clone(), by_group));
        assert_eq!((run(&copy, LowBitRange::Row), run(&packed.clone(), LowBitRange::Row)), (y.clone(), y));
        assert_eq!(packed.bytes(), before, "{}", isa.name());
    }
}

/// Of rows of zeros nothing is left but the bias, whatever the groups are; and rows of one sign use all codes.
#[test]
fn zeros_and_rows_of_one_sign() {
    let mut random = Random(22);
    for (width, levels, group) in [(4, 0, 32), (4, 1, 32), (4, 3, 20), (8, 4, 16), (3, 1, 32), (2, 3, 8)] {
        let (m, n, k) = (5, 37, 100);
        let owned = Owned::new(&mut random, width, [n, k, group], 3, levels, 0);
        let bias = random.floats(n);
        let epilogue = FloatEpilogue::new().with_bias(Some(&bias));
        // Zeros, positive, negative, zeros in a group alone, and -0.
        let mut x = random.floats(m * k);
        x[..k].fill(0.0);
        x[k..2 * k].iter_mut().for_each(|x| *x = x.abs());
        x[2 * k..3 * k].iter_mut().for_each(|x| *x = -x.abs());
        x[3 * k..3 * k + group].fill(0.0);
        x[4 * k..].fill(-0.0);
        for range in [LowBitRange::Row, LowBitRange::Group] {
            let mut expected = vec![0f32; m * n];
            reference::gemm_low_bit(&x, m, range, &owned.weights(), &epilogue, &mut expected);
            for isa in Isa::available() {
                let packed = PackedLowBit::pack_for(isa, &owned.weights()).unwrap();
                let mut y = vec![0f32; m * n];
                let (a, c) = (Matrix::new(&x, m, k).unwrap(), MatrixMut::new(&mut y, m, n).unwrap());
                gemm_low_bit(a, range, NonFinite::Error, &packed, &epilogue, c, &mut Workspace::new(), 1).unwrap();
                assert_eq!(bits(&y), bits(&expected), "{}, {range:?}", isa.name());
                assert_eq!((&y[..n], &y[4 * n..]), (&bias[..], &bias[..]), "{}, {range:?}", isa.name());
            }
        }
    }
}
