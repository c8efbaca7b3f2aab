//! Histograms: counts that don't depend on order or cuts, and grids never worse than the exact range's.

use crate::support::Random;
use lowprec::num::{dequantize, quantize};
use lowprec::quant::observer::{Entropy, Histogram, MinMax, Percentile};
use lowprec::{Error, Granularity, Observer, QParams, Scheme, Tensor};
use proptest::prelude::*;

const TENSOR: Granularity = Granularity::PerTensor;

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new([values.len()], values.to_vec()).unwrap()
}

fn error(values: &[f32], params: &QParams, index: usize) -> f64 {
    let (scale, zero_point) = params.at(index);
    let back = |x| dequantize(quantize(x, scale, zero_point, params.qmin(), params.qmax()), scale, zero_point);
    values.iter().map(|&x| (f64::from(x) - f64::from(back(x))).powi(2)).sum()
}

/// Two uniform numbers make two Gaussian ones.
fn gaussian(random: &mut Random, n: usize) -> Vec<f32> {
    let mut unit = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
    (0..n).map(|_| ((-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()) as f32).collect()
}

/// Continuous, of few distinct values, with outliers, one-sided, far from zero, of every magnitude.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let continuous = proptest::collection::vec(-1.0f32..1.0, 1..400);
    let discrete = proptest::collection::vec((-9i8..9).prop_map(|k| f32::from(k) * 0.37), 1..400);
    let outliers = proptest::collection::vec(prop_oneof![50 => -1.0f32..1.0, 1 => -300.0f32..300.0, 9 => Just(0.0f32)], 1..400);
    let wide = proptest::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 1..60);
    let far = proptest::collection::vec(1000.0f32..1000.5, 1..60);
    let magnitude = prop_oneof![Just(1e-42f32), Just(1e-20), Just(1.0), Just(1e30)];
    (prop_oneof![continuous, discrete, outliers, wide, far], magnitude, 0..4).prop_map(|(x, magnitude, side)| {
        x.into_iter().map(|x| (magnitude * [x, x, x.abs(), -x.abs()][side as usize]).clamp(-f32::MAX, f32::MAX)).collect()
    })
}

fn schemes() -> impl Strategy<Value = Scheme> {
    (2u32..=8, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(bits, signed, symmetric, narrow)| {
        Scheme::new(bits, signed).with_symmetric(symmetric).with_narrow_range(narrow && signed)
    })
}

/// Two lists of pieces, equal in counts; ends may differ where only one is cut to the range.
fn total(counts: &[(f64, f64, u64)]) -> u64 {
    counts.iter().map(|piece| piece.2).sum()
}

proptest! {
    #[test]
    fn counts_do_not_depend_on_order_or_cuts(
        x in values(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        bins in 16usize..300,
    ) {
        let observer = || Histogram::new(TENSOR).with_bins(bins).unwrap();
        let mut whole = observer();
        whole.observe(&tensor(&x)).unwrap();
        let counts = whole.counts(0);
        prop_assert_eq!(total(&counts), x.len() as u64);
        prop_assert!(counts.len() <= bins + 1);

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(x.len() + 1)).chain([0, x.len()]).collect();
        cuts.sort_unstable();
        let (mut backwards, mut merged) = (observer(), observer());
        for pair in cuts.windows(2).rev() {
            let mut part = x[pair[0]..pair[1]].to_vec();
            part.reverse();
            backwards.observe(&tensor(&part)).unwrap();
            let mut other = observer();
            other.observe(&tensor(&part)).unwrap();
            merged.merge(&other).unwrap();
        }
        prop_assert_eq!(&backwards.counts(0), &counts);
        prop_assert_eq!(&merged.counts(0), &counts);
        prop_assert_eq!(merged.ranges(), whole.ranges());
    }

    #[test]
    fn every_value_is_counted_where_it_is(x in values(), bins in 16usize..300) {
        let mut observer = Histogram::new(TENSOR).with_bins(bins).unwrap();
        // One by one, from the smallest magnitude on: as many widenings as there can be.
        let mut sorted = x.clone();
        sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        sorted.iter().for_each(|&x| observer.observe(&tensor(&[x])).unwrap());
        let counts = observer.counts(0);
        prop_assert_eq!(total(&counts), x.len() as u64);
        prop_assert!(counts.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{counts:?}");
        for (from, to, n) in counts {
            // Edges belong to the bin further from zero; the ends of the range to the bin that they cut.
            let inside = x.iter().filter(|&&x| (from..=to).contains(&f64::from(x))).count() as u64;
            let on_edge = x.iter().filter(|&&x| f64::from(x) == from || f64::from(x) == to).count() as u64;
            prop_assert!((inside - on_edge..=inside).contains(&n), "{n} in {from:e}..{to:e}, {inside} values of which {on_edge} at an edge");
        }
    }

    #[test]
    fn never_worse_than_the_exact_range(x in values(), scheme in schemes(), bins in prop_oneof![Just(64usize), Just(4096)]) {
        let mut histogram = Histogram::new(TENSOR).with_bins(bins).unwrap();
        let mut exact = MinMax::new(TENSOR);
        histogram.observe(&tensor(&x)).unwrap();
        exact.observe(&tensor(&x)).unwrap();
        let [found, whole] = [histogram.qparams(&scheme).unwrap(), exact.qparams(&scheme).unwrap()];
        let [error, bound] = [error(&x, &found, 0), error(&x, &whole, 0)];
        // What f32 adds when it divides and multiplies.
        let rounding: f64 = x.iter().map(|&x| (1e-6 * f64::from(x)).powi(2)).sum();
        prop_assert!(error <= bound * (1.0 + 1e-5) + rounding, "{error:e} against {bound:e}, {:?} against {:?}", found.at(0), whole.at(0));
        // Of a constant's grid only the codes of zero and of the constant need be finite.
        for code in [found.qmin(), found.qmax()] {
            prop_assert!(dequantize(code, found.at(0).0, found.at(0).1).is_finite() || x.iter().all(|y| *y == x[0]));
        }
    }

    #[test]
    fn percentiles_leave_out_what_they_say(x in values(), percent in 50.0f64..100.0) {
        let mut observer = Percentile::new(percent, TENSOR).unwrap();
        observer.observe(&tensor(&x)).unwrap();
        let (low, high) = observer.ranges()[0].unwrap();
        let [min, max] = [x.iter().copied().fold(f32::MAX, f32::min), x.iter().copied().fold(f32::MIN, f32::max)];
        prop_assert!(min <= low && high <= max);
        // A value inside the bin that is cut may lie on either side; all others are where they belong.
        let mut histogram = Histogram::new(TENSOR);
        histogram.observe(&tensor(&x)).unwrap();
        let counts = histogram.counts(0);
        let cut = x.len() as f64 * (1.0 - percent / 100.0);
        let tails = [x.iter().filter(|&&x| x < low).count(), x.iter().filter(|&&x| x > high).count()];
        let fullest = [low, high].map(|end| {
            counts.iter().filter(|piece| (piece.0..=piece.1).contains(&f64::from(end))).map(|piece| piece.2).max().unwrap_or(0) as f64
        });
        for (tail, slack) in tails.iter().zip(fullest) {
            prop_assert!(*tail as f64 <= cut + slack, "{tail} values cut of {}, {cut} at most, {slack} in the bin", x.len());
        }
        if min >= 0.0 {
            prop_assert_eq!(low, min);
        }
    }
}

#[test]
fn channels_are_histograms_of_their_own() {
    let (random, observer) = (&mut Random(3), |granularity| Histogram::new(granularity).with_bins(500).unwrap());
    let x = random.tensor([5, 3, 40], 2.0);
    for granularity in [Granularity::PerChannel { axis: 1 }, Granularity::PerGroup { axis: 2, size: 20 }] {
        let mut all = observer(granularity);
        all.observe(&x).unwrap();
        let runs: Vec<_> = granularity.runs(x.shape()).unwrap().collect();
        for index in 0..granularity.parameters(x.shape()).unwrap() {
            let mut one = observer(TENSOR);
            for (run, _) in runs.iter().filter(|run| run.1 == index) {
                one.observe(&tensor(&x.as_slice()[run.clone()])).unwrap();
            }
            assert_eq!(one.counts(0), all.counts(index));
            let scheme = Scheme::UINT8_ACTIVATION.with_bits(4);
            let [all, one] = [all.qparams(&scheme.with_granularity(granularity)), one.qparams(&scheme)].map(Result::unwrap);
            assert_eq!(all.at(index), one.at(0));
        }
    }
    // Channels last: runs of one value.
    let last = Granularity::PerChannel { axis: 2 };
    let mut all = observer(last);
    all.observe(&x).unwrap();
    let mut one = observer(TENSOR);
    one.observe(&tensor(&x.as_slice().iter().skip(7).step_by(40).copied().collect::<Vec<_>>())).unwrap();
    assert_eq!(all.counts(7), one.counts(0));
}

#[test]
fn many_values_keep_their_counts_through_long_runs() {
    // Zeros and long runs take another path than short ones.
    let x: Vec<f32> = gaussian(&mut Random(5), 3000).iter().map(|x| x.max(0.0)).collect();
    let (mut long, mut short) = (Histogram::new(TENSOR), Histogram::new(TENSOR));
    long.observe(&tensor(&x)).unwrap();
    x.chunks(7).for_each(|part| short.observe(&tensor(part)).unwrap());
    assert_eq!(long.counts(0), short.counts(0));
    let zeros = x.iter().filter(|x| **x == 0.0).count() as u64;
    assert!(long.counts(0).contains(&(0.0, 0.0, zeros)));
}

/// Decibels of the best uniform quantizers of a standard normal distribution that have a level at zero, by numerical
/// integration: `2^bits` levels, and one fewer, as many above zero as below.
const BEST: [(u32, f64, f64); 4] = [(2, 8.256, 7.208), (3, 13.911, 13.292), (4, 19.258, 18.898), (5, 24.527, 24.326)];

#[test]
fn gaussian_values_get_the_optimal_grid() {
    let x = gaussian(&mut Random(11), 300_000);
    let power: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let mut observer = Histogram::new(TENSOR);
    observer.observe(&tensor(&x)).unwrap();
    for (bits, full, narrow) in BEST {
        for (scheme, expected) in
            [(Scheme::new(bits, false), full), (Scheme::new(bits, true).with_symmetric(true).with_narrow_range(true), narrow)]
        {
            let decibels = 10.0 * (power / error(&x, &observer.qparams(&scheme).unwrap(), 0)).log10();
            assert!((decibels - expected).abs() < 0.05, "{scheme}: {decibels} dB, {expected} at best");
        }
    }
}

#[test]
fn discrete_values_are_exact_at_any_number_of_bins() {
    // An image of bytes: with its own grid nothing is lost, however wide the bins.
    let x: Vec<f32> = (0..5000u32).map(|i| (i * i % 256) as f32 / 255.0).chain([0.0, 1.0]).collect();
    let mut observer = Histogram::new(TENSOR);
    observer.observe(&tensor(&x)).unwrap();
    let params = observer.qparams(&Scheme::UINT8_ACTIVATION).unwrap();
    assert!(error(&x, &params, 0) < 1e-9, "{:?}", params.at(0));
}

#[test]
fn the_search_knows_the_number_of_codes() {
    let x = gaussian(&mut Random(2), 50_000);
    let mut observer = Histogram::new(TENSOR);
    observer.observe(&tensor(&x)).unwrap();
    let reach = |bits| {
        let params = observer.qparams(&Scheme::new(bits, false)).unwrap();
        f64::from(params.at(0).0) * f64::from(params.qmax() - params.qmin())
    };
    assert!(reach(2) < reach(4) && reach(4) < reach(6) && reach(6) < reach(8), "{} {} {} {}", reach(2), reach(4), reach(6), reach(8));
    // More codes than bins: the exact range.
    let mut exact = MinMax::new(TENSOR);
    exact.observe(&tensor(&x)).unwrap();
    let fine = Scheme::new(16, false);
    assert_eq!(observer.qparams(&fine).unwrap(), exact.qparams(&fine).unwrap());
}

#[test]
fn a_lone_outlier_is_clipped() {
    let mut x = gaussian(&mut Random(4), 20_000);
    x.push(60.0);
    let scheme = Scheme::UINT8_ACTIVATION.with_bits(4);
    let (mut histogram, mut entropy, mut percentile) =
        (Histogram::new(TENSOR), Entropy::new(TENSOR), Percentile::new(99.9, TENSOR).unwrap());
    histogram.observe(&tensor(&x)).unwrap();
    entropy.observe(&tensor(&x)).unwrap();
    percentile.observe(&tensor(&x)).unwrap();
    let params = histogram.qparams(&scheme).unwrap();
    assert!(f64::from(params.at(0).0) * 15.0 < 12.0, "{:?}", params.at(0));
    let (_, kept) = entropy.ranges(&scheme)[0].unwrap();
    assert!((2.0..12.0).contains(&kept), "{kept}");
    let (low, high) = percentile.ranges()[0].unwrap();
    assert!((-3.6..-3.0).contains(&low) && (3.0..3.6).contains(&high), "{low} {high}");
}

#[test]
fn entropy_takes_the_threshold_of_its_definition() {
    // Sixteen codes for one-sided values in 32 bins: every threshold worked out as it is defined.
    let counts: Vec<u64> = (0..32u64).map(|i| if i < 20 { i * 37 % 41 + 5 } else { u64::from(i % 3 == 1) }).collect();
    let x: Vec<f32> = counts.iter().enumerate().flat_map(|(i, &n)| vec![i as f32 + 0.5; n as usize]).collect();
    let divergence = |kept: usize| {
        let total: u64 = counts.iter().sum();
        let mut p: Vec<f64> = counts[..kept].iter().map(|&n| n as f64).collect();
        let held: f64 = p.iter().sum();
        let mut q = vec![0.0; kept];
        for level in 0..16 {
            let part = level * kept / 16..(level + 1) * kept / 16;
            let used = p[part.clone()].iter().filter(|n| **n > 0.0).count() as f64;
            let mass: f64 = p[part.clone()].iter().sum();
            part.filter(|&i| p[i] > 0.0).for_each(|i| q[i] = mass / used);
        }
        p[kept - 1] += total as f64 - held;
        if p[kept - 1] > 0.0 && q[kept - 1] == 0.0 {
            q[kept - 1] = 1e-4;
        }
        let norm: f64 = q.iter().sum();
        let term = |(p, q): (&f64, &f64)| if *p > 0.0 { p / total as f64 * (p / total as f64 / (q / norm)).ln() } else { 0.0 };
        p.iter().zip(&q).map(term).sum::<f64>()
    };
    let best = (16..=32).min_by(|&a, &b| divergence(a).total_cmp(&divergence(b))).unwrap();
    assert!((17..32).contains(&best));
    let mut observer = Entropy::new(TENSOR).with_bins(32).unwrap();
    observer.observe(&tensor(&x)).unwrap();
    assert_eq!(observer.ranges(&Scheme::new(4, false))[0], Some((0.5, best as f32 + 0.5)));
}

#[test]
fn sparse_values_keep_a_range() {
    // 99.9 percent of these are zero; a range of zero alone would lose the others.
    let mut x = vec![0.0; 100_000];
    x[..40].iter_mut().for_each(|x| *x = 2.0);
    let mut observer = Percentile::new(99.9, TENSOR).unwrap();
    observer.observe(&tensor(&x)).unwrap();
    assert_eq!(observer.ranges(), [Some((0.0, 2.0))]);
}

#[test]
fn parameters_are_checked() {
    for bins in [0, 15, (1 << 20) + 1] {
        assert!(matches!(Histogram::new(TENSOR).with_bins(bins), Err(Error::Parameter { .. })));
    }
    for percent in [0.0, -1.0, 100.5, f64::NAN] {
        assert!(matches!(Percentile::new(percent, TENSOR), Err(Error::Parameter { .. })));
    }
    let mut seen = Histogram::new(TENSOR);
    seen.observe(&tensor(&[1.0])).unwrap();
    assert!(matches!(seen.clone().with_bins(64), Err(Error::Unsupported { .. })));
    assert!(matches!(seen.merge(&Histogram::new(TENSOR).with_bins(64).unwrap()), Err(Error::Unsupported { .. })));
    let mut cut = Percentile::new(99.0, TENSOR).unwrap();
    assert!(matches!(cut.merge(&Percentile::new(98.0, TENSOR).unwrap()), Err(Error::Unsupported { .. })));
}
