//! Observers: parts merged are the whole, and what can't be merged or asked is an error.

use lowprec::num::{dequantize, quantize};
use lowprec::quant::observer::{Entropy, FixedRange, Histogram, MinMax, MovingAverage, ObserverKind, Percentile};
use lowprec::{Error, Granularity, NonFinite, Observer, Scheme, Tensor};
use proptest::prelude::*;

proptest! {
    #[test]
    fn parts_merged_equal_the_whole(
        rows in proptest::collection::vec(proptest::collection::vec(-1e30f32..1e30, 3), 1..12),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
        per_channel in any::<bool>(),
    ) {
        let granularity = if per_channel { Granularity::PerChannel { axis: 1 } } else { Granularity::PerTensor };
        let tensor = |rows: &[Vec<f32>]| Tensor::new([rows.len(), 3], rows.concat()).unwrap();
        let mut whole = MinMax::new(granularity);
        whole.observe(&tensor(&rows)).unwrap();

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len() + 1)).chain([0, rows.len()]).collect();
        cuts.sort_unstable();
        let (mut one_by_one, mut merged) = (MinMax::new(granularity), MinMax::new(granularity));
        for pair in cuts.windows(2) {
            // Empty parts among them.
            let part = tensor(&rows[pair[0]..pair[1]]);
            one_by_one.observe(&part).unwrap();
            let mut other = MinMax::new(granularity);
            other.observe(&part).unwrap();
            merged.merge(&other).unwrap();
        }
        prop_assert_eq!(&one_by_one, &whole);
        prop_assert_eq!(&merged, &whole);
        let scheme = Scheme::UINT8_ACTIVATION.with_granularity(granularity);
        prop_assert_eq!(merged.qparams(&scheme).unwrap(), whole.qparams(&scheme).unwrap());
    }
}

#[test]
fn ranges_are_those_seen() {
    let mut observer = MinMax::new(Granularity::PerChannel { axis: 0 });
    observer.observe(&Tensor::new([2, 2], vec![1.0, 3.0, -2.0, -1.0]).unwrap()).unwrap();
    observer.observe(&Tensor::new([2, 1], vec![-0.5, -1.5]).unwrap()).unwrap();
    assert_eq!(observer.ranges(), [Some((-0.5, 3.0)), Some((-2.0, -1.0))]);
    let params = observer.qparams(&Scheme::INT8_WEIGHT).unwrap();
    assert_eq!(params.scales(), [3.0 / 127.0, 2.0 / 127.0]);
}

#[test]
fn nothing_seen_and_things_that_do_not_match_are_errors() {
    let mut observer = MinMax::new(Granularity::PerChannel { axis: 0 });
    assert!(matches!(observer.qparams(&Scheme::INT8_WEIGHT), Err(Error::Empty { .. })));
    observer.observe(&Tensor::full([2, 2], 1.0).unwrap()).unwrap();
    assert!(matches!(observer.observe(&Tensor::full([3, 2], 1.0).unwrap()), Err(Error::Length { expected: 2, got: 3, .. })));
    assert!(matches!(observer.observe(&Tensor::full(vec![], 1.0).unwrap()), Err(Error::Axis { .. })));
    assert!(matches!(observer.merge(&MinMax::new(Granularity::PerTensor)), Err(Error::Unsupported { .. })));
    assert!(matches!(observer.qparams(&Scheme::UINT8_ACTIVATION), Err(Error::Unsupported { .. })));
    let group = Granularity::PerGroup { axis: 1, size: 2 };
    let mut groups = MinMax::new(group);
    groups.observe(&Tensor::full([2, 4], 1.0).unwrap()).unwrap();
    let before = groups.clone();
    // As many groups, elsewhere.
    let mut other = MinMax::new(group);
    other.observe(&Tensor::full([4, 2], 2.0).unwrap()).unwrap();
    assert!(matches!(groups.observe(&Tensor::full([4, 2], 2.0).unwrap()), Err(Error::Shape { .. })));
    assert!(matches!(groups.merge(&other), Err(Error::Shape { .. })));
    assert_eq!(groups, before);
    groups.observe(&Tensor::full([2, 4], 3.0).unwrap()).unwrap();
    assert_eq!(groups.ranges(), [Some((1.0, 3.0)); 4]);
    // An observer that saw nothing adds nothing.
    let before = observer.clone();
    observer.merge(&MinMax::new(Granularity::PerChannel { axis: 0 })).unwrap();
    assert_eq!(observer, before);
}

#[test]
fn nan_changes_nothing_or_is_left_out() {
    let bad = Tensor::new([4], vec![1.0, f32::NAN, f32::INFINITY, -2.0]).unwrap();
    let mut strict = MinMax::new(Granularity::PerTensor);
    strict.observe(&Tensor::full([1], 0.5).unwrap()).unwrap();
    let before = strict.clone();
    assert!(matches!(strict.observe(&bad), Err(Error::NonFinite { index: 1, .. })));
    assert_eq!(strict, before);
    let mut tolerant = MinMax::new(Granularity::PerTensor).with_non_finite(NonFinite::Saturate);
    tolerant.observe(&bad).unwrap();
    assert_eq!(tolerant.ranges(), [Some((-2.0, 1.0))]);
}

const KINDS: [ObserverKind; 6] = [
    ObserverKind::MinMax,
    ObserverKind::MovingAverage { rate: 0.25 },
    ObserverKind::Percentile { percent: 99.0 },
    ObserverKind::Histogram,
    ObserverKind::Entropy,
    ObserverKind::FixedRange { min: -1.0, max: 2.0 },
];
const TENSOR: Granularity = Granularity::PerTensor;

fn build(kind: ObserverKind, granularity: Granularity) -> Box<dyn Observer + Send> {
    kind.build(granularity, NonFinite::Error).unwrap()
}

#[test]
fn all_refuse_what_does_not_fit() {
    let channel = Granularity::PerChannel { axis: 0 };
    for kind in KINDS {
        let mut observer = build(kind, channel);
        assert!(matches!(observer.qparams(&Scheme::INT8_WEIGHT), Err(Error::Empty { .. })), "{kind}");
        let bad = Tensor::new([2, 2], vec![1.0, 0.5, f32::NAN, f32::INFINITY]).unwrap();
        assert!(matches!(observer.observe(&bad), Err(Error::NonFinite { index: 2, .. })), "{kind}");
        assert!(matches!(observer.qparams(&Scheme::INT8_WEIGHT), Err(Error::Empty { .. })), "{kind}: an error leaves no trace");
        observer.observe(&Tensor::full([2, 2], 1.0).unwrap()).unwrap();
        assert!(matches!(observer.observe(&Tensor::full([3, 2], 1.0).unwrap()), Err(Error::Length { expected: 2, got: 3, .. })), "{kind}");
        assert!(matches!(observer.observe(&Tensor::full(vec![], 1.0).unwrap()), Err(Error::Axis { .. })), "{kind}");
        assert!(matches!(observer.qparams(&Scheme::UINT8_ACTIVATION), Err(Error::Unsupported { .. })), "{kind}");
        assert!(matches!(observer.qparams(&Scheme::INT8_WEIGHT.with_bits(9)), Err(Error::Parameter { .. })), "{kind}");
        assert_eq!(observer.qparams(&Scheme::INT8_WEIGHT).unwrap().scales().len(), 2, "{kind}");

        let mut tolerant = kind.build(TENSOR, NonFinite::Saturate).unwrap();
        tolerant.observe(&bad).unwrap();
        let mut finite = build(kind, TENSOR);
        finite.observe(&Tensor::new([2], vec![1.0, 0.5]).unwrap()).unwrap();
        let scheme = Scheme::UINT8_ACTIVATION;
        assert_eq!(tolerant.qparams(&scheme).unwrap(), finite.qparams(&scheme).unwrap(), "{kind}");

        let mut groups = build(kind, Granularity::PerGroup { axis: 1, size: 2 });
        groups.observe(&Tensor::full([2, 4], 1.0).unwrap()).unwrap();
        assert!(matches!(groups.observe(&Tensor::full([4, 2], 2.0).unwrap()), Err(Error::Shape { .. })), "{kind}");
    }
}

#[test]
fn edges_have_valid_parameters() {
    let (tiny, huge) = (f32::from_bits(1), f32::MAX);
    let lists: [&[f32]; 14] = [
        &[],
        &[0.0; 3],
        &[-0.0],
        &[0.7; 4],
        &[-3.0; 4],
        &[tiny],
        &[-tiny, tiny],
        &[1e-40, 3e-41, -2e-42],
        &[huge],
        &[-huge],
        &[-huge, huge],
        &[huge, 1.0, tiny],
        &[0.0, -huge, 1e30],
        &[1000.0, 1000.0001],
    ];
    let schemes = [
        Scheme::UINT8_ACTIVATION,
        Scheme::INT8_WEIGHT_PER_TENSOR,
        Scheme::new(2, true),
        Scheme::new(16, false),
        Scheme::new(4, false).with_symmetric(true),
    ];
    for (kind, values) in KINDS.into_iter().flat_map(|kind| lists.map(|values| (kind, values))) {
        let mut observer = build(kind, TENSOR);
        observer.observe(&Tensor::new([values.len()], values.to_vec()).unwrap()).unwrap();
        for scheme in schemes {
            let params = observer.qparams(&scheme).unwrap();
            let (scale, zero_point) = params.at(0);
            let back = |x| dequantize(quantize(x, scale, zero_point, params.qmin(), params.qmax()), scale, zero_point);
            assert_eq!(back(0.0), 0.0);
            for &x in values {
                assert!(back(x).is_finite(), "{kind}, {scheme}: {x:e} at scale {scale:e}");
                if !matches!(kind, ObserverKind::FixedRange { .. }) && values.iter().all(|y| y == &x) {
                    assert_eq!(back(x), x, "{kind}, {scheme}: a constant comes back");
                }
            }
        }
    }
}

#[test]
fn a_moving_average_starts_at_the_first_batch_and_goes_on_by_its_rate() {
    let batch = |values: [f32; 2]| Tensor::new([2], values.to_vec()).unwrap();
    let mut observer = MovingAverage::new(TENSOR).with_rate(0.25).unwrap();
    observer.observe(&batch([-1.0, 2.0])).unwrap();
    assert_eq!(observer.ranges(), [Some((-1.0, 2.0))]);
    observer.observe(&batch([-3.0, 10.0])).unwrap();
    assert_eq!(observer.ranges(), [Some((-1.5, 4.0))]);
    observer.observe(&Tensor::new([0], vec![]).unwrap()).unwrap();
    assert_eq!(observer.ranges(), [Some((-1.5, 4.0))]);
    let mut extreme = MovingAverage::new(TENSOR);
    [f32::MAX, f32::MIN, f32::MAX].iter().for_each(|&x| extreme.observe(&batch([x, x])).unwrap());
    assert!(extreme.ranges()[0].unwrap().1.is_finite());
    for rate in [0.0, -0.5, 1.5, f32::NAN] {
        assert!(matches!(MovingAverage::new(TENSOR).with_rate(rate), Err(Error::Parameter { .. })));
    }
}

proptest! {
    #[test]
    fn merged_averages_go_on_with_the_others_batches(
        batches in proptest::collection::vec(proptest::collection::vec(-10f32..10.0, 0..5), 1..12),
        cut in any::<prop::sample::Index>(),
        rate in prop_oneof![Just(0.01f32), Just(0.3), Just(1.0)],
    ) {
        let [mut whole, mut first, mut second] = std::array::from_fn(|_| MovingAverage::new(TENSOR).with_rate(rate).unwrap());
        let cut = cut.index(batches.len() + 1);
        for (i, batch) in batches.iter().enumerate() {
            let x = Tensor::new([batch.len()], batch.clone()).unwrap();
            whole.observe(&x).unwrap();
            if i < cut { &mut first } else { &mut second }.observe(&x).unwrap();
        }
        first.merge(&second).unwrap();
        match (first.ranges().first().copied().flatten(), whole.ranges()[0]) {
            (Some(merged), Some(whole)) => {
                // A rounding to f32 for each batch.
                let near = |a: f32, b: f32| (a - b).abs() <= 2e-5;
                prop_assert!(near(merged.0, whole.0) && near(merged.1, whole.1), "{merged:?} {whole:?}");
            }
            (merged, whole) => prop_assert_eq!(merged, whole),
        }
        let refused = matches!(first.merge(&MovingAverage::new(TENSOR).with_rate(0.5).unwrap()), Err(Error::Unsupported { .. }));
        prop_assert!(refused);
    }
}

#[test]
fn a_fixed_range_is_what_it_is() {
    let mut observer = FixedRange::new(0.0, 1.0, TENSOR).unwrap();
    let params = observer.qparams(&Scheme::UINT8_ACTIVATION).unwrap();
    assert_eq!(params.at(0), (1.0 / 255.0, 0));
    observer.observe(&Tensor::full([3], 77.0).unwrap()).unwrap();
    assert_eq!(observer.qparams(&Scheme::UINT8_ACTIVATION).unwrap(), params);
    observer.merge(&observer.clone()).unwrap();
    assert!(matches!(observer.merge(&FixedRange::new(0.0, 2.0, TENSOR).unwrap()), Err(Error::Unsupported { .. })));
    for (min, max) in [(1.0, 0.0), (f32::NAN, 1.0), (0.0, f32::INFINITY)] {
        assert!(matches!(FixedRange::new(min, max, TENSOR), Err(Error::Parameter { .. })));
    }
}

#[test]
fn merging_needs_one_granularity() {
    fn refused<O: Observer>(new: impl Fn(Granularity) -> O) {
        let outcome = new(TENSOR).merge(&new(Granularity::PerChannel { axis: 0 }));
        assert!(matches!(outcome, Err(Error::Unsupported { .. })));
    }
    refused(MovingAverage::new);
    refused(Histogram::new);
    refused(Entropy::new);
    refused(|granularity| Percentile::new(99.0, granularity).unwrap());
    refused(|granularity| FixedRange::new(0.0, 1.0, granularity).unwrap());
}

#[test]
fn kinds_have_names() {
    for kind in KINDS {
        assert_eq!(kind.to_string().parse::<ObserverKind>().unwrap(), kind);
    }
    for (text, kind) in [
        ("minmax", ObserverKind::MinMax),
        ("moving-average", ObserverKind::MovingAverage { rate: 0.01 }),
        ("percentile", ObserverKind::Percentile { percent: 99.99 }),
        ("percentile:99.5", ObserverKind::Percentile { percent: 99.5 }),
        ("mse", ObserverKind::Histogram),
        ("range:-1:1e3", ObserverKind::FixedRange { min: -1.0, max: 1000.0 }),
    ] {
        assert_eq!(text.parse::<ObserverKind>().unwrap(), kind);
    }
    for text in
        ["", "max", "minmax:1", "moving-average:x", "moving-average:2", "percentile:101", "range:1", "range:1:0", "range:0:inf", "mse:"]
    {
        assert!(matches!(text.parse::<ObserverKind>(), Err(Error::Parameter { .. })), "{text}");
    }
}
