//! Functions of codes on every instruction set, against the reference.

use lowprec::Error;
use lowprec::kernels::{Isa, Pairwise, lookup, lookup_for, reference};
use lowprec::num::U8Grid;
use proptest::prelude::*;

use crate::kernel_support::Random;

fn grid() -> impl Strategy<Value = U8Grid> {
    (-12i32..12, 1.0f32..2.0, any::<u8>()).prop_map(|(exponent, mantissa, zero)| U8Grid::new(mantissa * 2f32.powi(exponent), zero).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sums_and_products_equal_the_reference(
        grids in [grid(), grid(), grid()],
        range in [any::<u8>(), any::<u8>()],
        // Rounding is seen only where the output does not saturate.
        fit in any::<bool>(),
        len in 0usize..300,
        kind in 0u8..3,
        seed in any::<u64>(),
    ) {
        let [a, b, mut out] = grids;
        let (mut sums, mut products) = (out, out);
        if fit {
            sums = U8Grid::new((a.scale() + b.scale()) * 0.7, out.zero_point()).unwrap();
            products = U8Grid::new(a.scale() * b.scale() * 60.0, out.zero_point()).unwrap();
        }
        let range = [range[0].min(range[1]), range[0].max(range[1])];
        let random = &mut Random(seed);
        let (x, z) = (random.bytes(len, kind), random.bytes(len, kind));
        for isa in Isa::available() {
            let mut got = vec![77; len];
            out = sums;
            Pairwise::sum(a, b, out).unwrap().with_range(range[0], range[1]).unwrap().with_isa(isa).unwrap().run(&x, &z, &mut got, 1).unwrap();
            prop_assert_eq!(&got, &reference::add_codes(&x, &z, [a, b, out], range), "sum, {}", isa.name());
            out = products;
            let pairs = Pairwise::product(a, b, out).unwrap().with_range(range[0], range[1]).unwrap();
            pairs.with_isa(isa).unwrap().run(&x, &z, &mut got, 1).unwrap();
            prop_assert_eq!(&got, &reference::multiply_codes(&x, &z, [a, b, out], range), "product, {}", isa.name());
        }
    }

    #[test]
    fn tables_are_read_everywhere(table in prop::collection::vec(any::<u8>(), 256), len in 0usize..300, seed in any::<u64>()) {
        let table: [u8; 256] = table.try_into().unwrap();
        let x = Random(seed).bytes(len, 2);
        let expected: Vec<u8> = x.iter().map(|&x| table[usize::from(x)]).collect();
        for isa in Isa::available() {
            let mut got = vec![77; len];
            lookup_for(isa, &table, &x, &mut got, 1).unwrap();
            prop_assert_eq!(&got, &expected, "{}", isa.name());
        }
    }
}

#[test]
fn every_pair_of_codes_and_every_halfway_value() {
    // Multipliers of a half: every odd sum is a tie.
    let (one, two) = (U8Grid::new(1.0, 128).unwrap(), U8Grid::new(2.0, 100).unwrap());
    let a: Vec<u8> = (0..65536).map(|i| (i / 256) as u8).collect();
    let b: Vec<u8> = (0..65536).map(|i| i as u8).collect();
    let grids = [one, one, two];
    for isa in Isa::available() {
        let mut got = vec![0; a.len()];
        Pairwise::sum(one, one, two).unwrap().with_isa(isa).unwrap().run(&a, &b, &mut got, 1).unwrap();
        assert_eq!(got, reference::add_codes(&a, &b, grids, [0, 255]));
        assert_eq!((got[129 * 256 + 128], got[130 * 256 + 129]), (100, 102), "ties go to the even distance from the zero point");
        Pairwise::product(one, one, two).unwrap().with_isa(isa).unwrap().run(&a, &b, &mut got, 1).unwrap();
        assert_eq!(got, reference::multiply_codes(&a, &b, grids, [0, 255]));
    }
}

#[test]
fn threads_and_extreme_scales_change_nothing_else() {
    let random = &mut Random(5);
    let (a, b) = (random.bytes(500_001, 2), random.bytes(500_001, 2));
    let table: [u8; 256] = std::array::from_fn(|i| (i * 91 + 7) as u8);
    let expected: Vec<u8> = a.iter().map(|&a| table[usize::from(a)]).collect();
    // Multipliers up to 2^64 take every product beyond i32; those down to 0 take it nowhere.
    for (scale, out) in [(0.5, 0.7), (1.8e19, 1.0), (1e-30, 1e30)] {
        let grids = [U8Grid::new(scale, 3).unwrap(), U8Grid::new(scale / 2.0, 250).unwrap(), U8Grid::new(out, 17).unwrap()];
        let sums = reference::add_codes(&a, &b, grids, [17, 250]);
        for threads in [1, 2, 3] {
            let mut got = vec![0; a.len()];
            Pairwise::sum(grids[0], grids[1], grids[2]).unwrap().with_range(17, 250).unwrap().run(&a, &b, &mut got, threads).unwrap();
            assert!(got == sums, "{threads} threads");
            lookup(&table, &a, &mut got, threads).unwrap();
            assert!(got == expected, "{threads} threads");
        }
    }
}

#[test]
fn impossible_parameters_are_errors() {
    let grid = |scale: f32| U8Grid::new(scale, 0).unwrap();
    assert!(matches!(Pairwise::sum(grid(1e30), grid(1.0), grid(1e-30)), Err(Error::Parameter { .. })));
    assert!(matches!(Pairwise::sum(grid(1.0), grid(1e20), grid(1.0)), Err(Error::Parameter { .. })));
    assert!(matches!(Pairwise::product(grid(1e20), grid(1e20), grid(1.0)), Err(Error::Parameter { .. })));
    let sum = Pairwise::sum(grid(1.0), grid(1.0), grid(1.0)).unwrap();
    assert!(matches!(sum.with_range(3, 2), Err(Error::Parameter { .. })));
    assert!(matches!(sum.run(&[0; 3], &[0; 3], &mut [0; 4], 1), Err(Error::Length { .. })));
    assert!(matches!(sum.run(&[0; 4], &[0; 3], &mut [0; 4], 1), Err(Error::Length { .. })));
    assert!(matches!(lookup(&[0; 256], &[0; 3], &mut [0; 4], 1), Err(Error::Length { .. })));
}
