//! The exact scale: no other scale is better, by brute force and against every grid.

use crate::support::Random;
use lowprec::num::{affine_qparams, dequantize, quantize};
use lowprec::quant::least_squares;
use lowprec::quant::observer::Histogram;
use lowprec::{Error, Granularity, NonFinite, Observer, Scheme, Tensor};
use proptest::prelude::*;

const TENSOR: Granularity = Granularity::PerTensor;

fn error(values: &[f32], (scale, zero_point): (f32, i32), scheme: &Scheme) -> f64 {
    let back = |x| dequantize(quantize(x, scale, zero_point, scheme.qmin(), scheme.qmax()), scale, zero_point);
    values.iter().map(|&x| (f64::from(x) - f64::from(back(x))).powi(2)).sum()
}

fn fit(values: &[f32], scheme: &Scheme) -> (f32, i32) {
    let x = Tensor::new([values.len()], values.to_vec()).unwrap();
    least_squares(&x, scheme, NonFinite::Error).unwrap().at(0)
}

/// The least error over all codes that some scale gives: between two breakpoints they stay the same, and `A² / B` is what
/// the best scale for them takes off. Values in f64, every breakpoint of every value and beyond, none left out.
fn brute_force(values: &[f32], scheme: &Scheme) -> f64 {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let middle = if scheme.is_signed() { 0 } else { 1 << (scheme.bits() - 1) };
    let zero_points = if scheme.is_symmetric() { middle..=middle } else { qmin..=qmax };
    let squares: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
    let mut least = squares;
    for zero_point in zero_points {
        let (low, high) = (f64::from(qmin - zero_point), f64::from(qmax - zero_point));
        let mut breakpoints: Vec<f64> =
            values.iter().flat_map(|&x| (0..=qmax - qmin).map(move |k| f64::from(x.abs()) / (f64::from(k) + 0.5))).collect();
        breakpoints.push(0.0);
        breakpoints.push(2.0 * breakpoints.iter().copied().fold(0.0, f64::max));
        breakpoints.sort_by(f64::total_cmp);
        for pair in breakpoints.windows(2) {
            let scale = 0.5 * (pair[0] + pair[1]);
            let codes = values.iter().map(|&x| (f64::from(x), (f64::from(x) / scale).round().clamp(low, high)));
            let (a, b) = codes.fold((0.0, 0.0), |(a, b), (x, k)| (a + x * k, b + k * k));
            if b > 0.0 && a > 0.0 {
                least = least.min(squares - a * a / b);
            }
        }
    }
    least.max(0.0)
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    let element = prop_oneof![6 => -1.0f32..1.0, 1 => -8.0f32..8.0, 1 => Just(0.0f32), 1 => Just(1.0f32), 1 => Just(-0.5f32)];
    (proptest::collection::vec(element, 1..24), 0..3, prop_oneof![Just(1.0f32), Just(1e-20), Just(1e25)])
        .prop_map(|(x, side, magnitude)| x.into_iter().map(|x| magnitude * [x, x.abs(), -x.abs()][side as usize]).collect())
}

fn schemes() -> impl Strategy<Value = Scheme> {
    let symmetric = (2u32..=8, any::<bool>(), any::<bool>())
        .prop_map(|(bits, signed, narrow)| Scheme::new(bits, signed).with_symmetric(true).with_narrow_range(narrow && signed));
    let asymmetric = (2u32..=4, any::<bool>()).prop_map(|(bits, signed)| Scheme::new(bits, signed));
    prop_oneof![symmetric, asymmetric]
}

proptest! {
    #[test]
    fn equals_brute_force(x in values(), scheme in schemes()) {
        let (found, least) = (error(&x, fit(&x, &scheme), &scheme), brute_force(&x, &scheme));
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        // The scale rounds to f32, and so does each value that comes back: together by 2^-23 of it, on top of its error.
        let rounding = 2f64.powi(-23) * squares.sqrt();
        prop_assert!(found.sqrt() <= least.sqrt() + rounding, "{found:e}, {least:e} by brute force");
        prop_assert!(found.sqrt() >= least.sqrt() - rounding, "brute force is not the least");
    }

    #[test]
    fn no_grid_is_better(x in proptest::collection::vec(-1.0f32..1.0, 50..300), scheme in schemes(), power in -130i32..120) {
        let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(power)).collect();
        let grid = fit(&x, &scheme);
        let least = error(&x, grid, &scheme);
        let [min, max] = [x.iter().copied().fold(0.0, f32::min), x.iter().copied().fold(0.0, f32::max)];
        for (down, up) in (0..40).flat_map(|i| (0..40).map(move |j| (i, j))) {
            let [lo, hi] = [(min, down), (max, up)].map(|(end, i)| end * (1.2 - i as f32 * 0.03));
            let candidate = affine_qparams(lo, hi, scheme.qmin(), scheme.qmax(), scheme.is_symmetric());
            let error = error(&x, candidate, &scheme);
            prop_assert!(least <= error * (1.0 + 1e-6), "{grid:?} costs {least:e}, {candidate:?} {error:e}");
        }
    }

    #[test]
    fn any_values_have_one(x in proptest::collection::vec(any::<f32>(), 0..40), scheme in schemes()) {
        let tensor = Tensor::new([x.len()], x.clone()).unwrap();
        let params = least_squares(&tensor, &scheme, NonFinite::Saturate).unwrap();
        let (scale, zero_point) = params.at(0);
        let finite: Vec<f32> = x.into_iter().filter(|x| x.is_finite()).collect();
        // Of a constant's grid only the codes of zero and of the constant need be finite.
        for code in [params.qmin(), params.qmax()] {
            prop_assert!(dequantize(code, scale, zero_point).is_finite() || finite.iter().all(|y| *y == finite[0]));
        }
        let ends = finite.iter().fold(None, |ends: Option<(f32, f32)>, &x| Some(ends.map_or((x, x), |(a, b)| (a.min(x), b.max(x)))));
        let (min, max) = ends.unwrap_or((0.0, 0.0));
        let whole = affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric());
        prop_assert!(error(&finite, (scale, zero_point), &scheme) <= error(&finite, whole, &scheme));
    }
}

#[test]
fn channels_and_groups_are_fitted_one_by_one() {
    let x = Random(9).tensor([6, 8, 4], 3.0);
    for granularity in [
        Granularity::PerChannel { axis: 0 },
        Granularity::PerChannel { axis: 1 },
        Granularity::PerGroup { axis: 1, size: 4 },
        Granularity::PerGroup { axis: 2, size: 2 },
    ] {
        let scheme = Scheme::INT4_WEIGHT.with_granularity(granularity);
        let params = least_squares(&x, &scheme, NonFinite::Error).unwrap();
        for index in 0..granularity.parameters(x.shape()).unwrap() {
            let own = granularity.runs(x.shape()).unwrap().filter(|run| run.1 == index);
            let values: Vec<f32> = own.flat_map(|(run, _)| x.as_slice()[run].to_vec()).collect();
            assert_eq!(params.at(index), fit(&values, &scheme.with_granularity(TENSOR)));
        }
    }
}

#[test]
fn large_lists_are_searched_in_slices_and_beat_the_histogram() {
    // Enough values that the breakpoints are sorted part by part.
    let random = &mut Random(21);
    let x: Vec<f32> = (0..40_000).map(|_| (0..6).map(|_| random.unit()).sum::<f32>()).collect();
    let mut histogram = Histogram::new(TENSOR);
    histogram.observe(&Tensor::new([x.len()], x.clone()).unwrap()).unwrap();
    for bits in 2..=8 {
        let scheme = Scheme::INT8_WEIGHT_PER_TENSOR.with_bits(bits);
        let exact = error(&x, fit(&x, &scheme), &scheme);
        let searched = error(&x, histogram.qparams(&scheme).unwrap().at(0), &scheme);
        assert!(exact <= searched && searched <= exact * 1.02, "{bits} bits: {exact} exactly, {searched} by histogram");
    }
}

/// Decibels of the best quantizers of a standard normal distribution with a level at zero, by numerical integration: 2 to 5
/// bits symmetric and narrow, and with all codes.
#[test]
fn gaussian_weights_get_the_optimal_scale() {
    let random = &mut Random(13);
    let mut unit = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
    let x: Vec<f32> = (0..100_000).map(|_| ((-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()) as f32).collect();
    let power: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    for (bits, full, narrow) in [(2, 8.256, 7.208), (3, 13.911, 13.292), (4, 19.258, 18.898), (5, 24.527, 24.326)] {
        for (narrow_range, expected) in [(false, full), (true, narrow)] {
            let scheme = Scheme::new(bits, true).with_symmetric(true).with_narrow_range(narrow_range);
            let decibels = 10.0 * (power / error(&x, fit(&x, &scheme), &scheme)).log10();
            assert!((decibels - expected).abs() < 0.1, "{scheme}: {decibels} dB, {expected} at best");
        }
    }
}

#[test]
fn edges_and_refusals() {
    let scheme = Scheme::INT8_WEIGHT_PER_TENSOR;
    assert_eq!(fit(&[], &scheme), (1.0, 0));
    assert_eq!(fit(&[0.0; 5], &scheme), (1.0, 0));
    for constant in [0.3, -7.25, 1e-44, f32::MAX, f32::MIN] {
        assert_eq!(error(&[constant; 3], fit(&[constant; 3], &scheme), &scheme), 0.0, "{constant:e}");
    }
    let x = Tensor::new([2], vec![1.0, f32::NAN]).unwrap();
    assert!(matches!(least_squares(&x, &scheme, NonFinite::Error), Err(Error::NonFinite { index: 1, .. })));
    assert_eq!(
        least_squares(&x, &scheme, NonFinite::Saturate).unwrap(),
        least_squares(&Tensor::full([1], 1.0).unwrap(), &scheme, NonFinite::Error).unwrap()
    );
    let one = Tensor::full([2], 1.0).unwrap();
    for refused in [Scheme::UINT8_ACTIVATION, Scheme::new(5, true), Scheme::new(16, true).with_symmetric(true)] {
        assert!(matches!(least_squares(&one, &refused, NonFinite::Error), Err(Error::Unsupported { .. })));
    }
    assert!(matches!(least_squares(&one, &Scheme::new(9, true), NonFinite::Error), Err(Error::Parameter { .. })));
    assert!(matches!(
        least_squares(&one, &scheme.with_granularity(Granularity::PerChannel { axis: 1 }), NonFinite::Error),
        Err(Error::Axis { .. })
    ));
    let none = Tensor::new([0, 3], vec![]).unwrap();
    assert!(least_squares(&none, &Scheme::INT8_WEIGHT, NonFinite::Error).unwrap().scales().is_empty());
}
