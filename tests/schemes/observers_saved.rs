//! What observers saw, saved half way and loaded again.

use crate::support::Random;
use lowprec::quant::observer::{Entropy, FixedRange, Histogram, MinMax, MovingAverage, ObserverKind, Percentile};
use lowprec::{Granularity, NonFinite, Observer, Scheme, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn through_json<T: Serialize + DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

/// Batches of all magnitudes, with numbers whose shortest decimals are long, zeros and a part without values.
fn batches() -> Vec<Tensor> {
    let random = &mut Random(17);
    let mut batches: Vec<Tensor> = [1e-3, 0.7, 1e30, 1e-44].map(|scale| random.tensor([4, 30], scale)).into();
    batches.insert(1, Tensor::full([4, 30], 0.0).unwrap());
    batches.insert(0, Tensor::new([4, 0], vec![]).unwrap());
    batches.push(Tensor::full([4, 1], f32::MAX).unwrap());
    batches
}

fn survives<O: Observer + Clone + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned>(new: &dyn Fn(Granularity) -> O) {
    for granularity in [Granularity::PerTensor, Granularity::PerChannel { axis: 0 }, Granularity::PerGroup { axis: 0, size: 2 }] {
        let mut straight = new(granularity);
        assert_eq!(through_json(&straight), straight);
        let batches = batches();
        // Groups need one shape.
        let batches: Vec<_> = match granularity {
            Granularity::PerGroup { .. } => batches.into_iter().filter(|x| x.shape().dims() == [4, 30]).collect(),
            _ => batches,
        };
        let mut resumed = straight.clone();
        for batch in batches {
            straight.observe(&batch).unwrap();
            resumed.observe(&batch).unwrap();
            resumed = through_json(&resumed);
            assert_eq!(resumed, straight);
        }
        let scheme = Scheme::UINT8_ACTIVATION.with_bits(4).with_granularity(granularity);
        assert_eq!(resumed.qparams(&scheme).unwrap(), straight.qparams(&scheme).unwrap());
    }
}

#[test]
fn every_observer_goes_on_where_it_was() {
    survives(&MinMax::new);
    survives(&|granularity| MinMax::new(granularity).with_non_finite(NonFinite::Saturate));
    survives(&|granularity| MovingAverage::new(granularity).with_rate(0.3).unwrap());
    survives(&Histogram::new);
    survives(&|granularity| Histogram::new(granularity).with_bins(57).unwrap());
    survives(&|granularity| Percentile::new(99.7, granularity).unwrap());
    survives(&Entropy::new);
    survives(&|granularity| FixedRange::new(-0.1, f32::MAX, granularity).unwrap());
}

#[test]
fn schemes_and_kinds_are_saved() {
    for scheme in [Scheme::INT8_WEIGHT, Scheme::INT4_WEIGHT.with_granularity(Granularity::PerGroup { axis: 1, size: 32 })] {
        assert_eq!(through_json(&scheme), scheme);
    }
    for text in ["minmax", "moving-average:0.1", "percentile:99.99", "mse", "entropy", "range:-0.3:3e38"] {
        let kind: ObserverKind = text.parse().unwrap();
        assert_eq!(through_json(&kind), kind);
    }
    assert_eq!(through_json(&NonFinite::Saturate), NonFinite::Saturate);
}

#[test]
fn states_that_no_observer_has_are_refused() {
    let mut observer = Histogram::new(Granularity::PerTensor).with_bins(16).unwrap();
    observer.observe(&Tensor::new([3], vec![0.0, 1.0, 2.5]).unwrap()).unwrap();
    let text = serde_json::to_string(&observer).unwrap();
    for (from, to) in [
        (r#""max":"2.5""#, r#""max":"NaN""#),
        (r#""max":"2.5""#, r#""max":"inf""#),
        (r#""max":"2.5""#, r#""max":"-1.0""#),
        (r#""max":"2.5""#, r#""max":"9.5""#),
        (r#""limit":16"#, r#""limit":3"#),
        (r#""count":1"#, r#""count":18446744073709551615"#),
        (r#""squares":"0.0""#, r#""squares":"2.0""#),
        (r#""sum":"0.0""#, r#""sum":"NaN""#),
        (r#""sum":"0.0""#, r#""sum":"zero""#),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        let changed = text.replace(from, to);
        assert!(serde_json::from_str::<Histogram>(&changed).is_err(), "{changed}");
    }
}

#[test]
fn parameters_that_no_observer_has_are_refused() {
    fn changed<T: Serialize + DeserializeOwned>(observer: &T, right: &str, wrong: &str) -> bool {
        let text = serde_json::to_string(observer).unwrap();
        assert!(text.contains(right), "{right} in {text}");
        serde_json::from_str::<T>(&text.replace(right, wrong)).is_err()
    }
    let whole = Granularity::PerTensor;
    for wrong in ["NaN", "0.0", "100.5"] {
        assert!(changed(&Percentile::new(99.5, whole).unwrap(), "99.5", wrong), "percentile {wrong}");
    }
    for wrong in ["NaN", "0.0", "5.0"] {
        assert!(changed(&MovingAverage::new(whole).with_rate(0.25).unwrap(), "0.25", wrong), "rate {wrong}");
    }
    for wrong in ["NaN", "inf", "4.0"] {
        assert!(changed(&FixedRange::new(-1.5, 2.0, whole).unwrap(), "-1.5", wrong), "range from {wrong}");
    }
    for wrong in ["percentile:200", "median", "range:2:1"] {
        assert!(changed(&ObserverKind::Percentile { percent: 99.5 }, "percentile:99.5", wrong), "{wrong}");
    }
}
