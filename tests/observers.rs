//! Observers: parts merged are the whole, and what can't be merged or asked is an error.

use lowprec::quant::observer::MinMax;
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
