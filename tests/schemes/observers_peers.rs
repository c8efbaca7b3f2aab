//! Ranges that PyTorch's observers and ONNX Runtime's calibrators find where both define the same; and a smaller error where
//! they search. `tests/reference/observer_fixtures.py` writes the fixtures.

use lowprec::io::safetensors;
use lowprec::num::{affine_qparams, dequantize, quantize};
use lowprec::quant::observer::{Entropy, Histogram, MinMax, MovingAverage, Percentile};
use lowprec::{Granularity, Observer, Scheme, Tensor, Value};
use std::collections::BTreeMap;

const CASES: [&str; 7] = ["gaussian", "laplace", "relu", "outliers", "silu", "lognormal", "negative"];
const BITS: [u32; 3] = [8, 7, 4];
const RATE: f32 = 0.1;
const PERCENT: f64 = 99.0;
const CHANNELS: usize = 8;
const TENSOR: Granularity = Granularity::PerTensor;

struct Fixtures(BTreeMap<String, Value>);

impl Fixtures {
    fn new() -> Fixtures {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/observers.safetensors");
        Fixtures(safetensors::read_tensors_file(file).unwrap().tensors.into_iter().collect())
    }

    fn batches(&self, case: &str) -> Vec<Tensor> {
        let Value::F32(all) = &self.0[&format!("{case}.batches")] else { panic!("batches of {case}") };
        let [batches, size] = *all.shape().dims() else { panic!("{:?}", all.shape()) };
        (0..batches).map(|i| Tensor::new([size], all.as_slice()[i * size..][..size].to_vec()).unwrap()).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        match &self.0[name] {
            Value::F32(x) => x.as_slice().iter().map(|&x| f64::from(x)).collect(),
            Value::F64(x) => x.as_slice().to_vec(),
            other => panic!("{name} is {:?}", other.dtype()),
        }
    }
}

fn observed<O: Observer>(mut observer: O, batches: &[Tensor]) -> O {
    batches.iter().for_each(|batch| observer.observe(batch).unwrap());
    observer
}

fn channels(batches: &[Tensor]) -> Vec<Tensor> {
    let cut = |x: &Tensor| Tensor::new([CHANNELS, x.as_slice().len() / CHANNELS], x.as_slice().to_vec()).unwrap();
    batches.iter().map(cut).collect()
}

fn flat(ranges: Vec<Option<(f32, f32)>>) -> Vec<f64> {
    ranges.into_iter().flat_map(|range| range.map(|(min, max)| [f64::from(min), f64::from(max)]).unwrap()).collect()
}

fn all(batches: &[Tensor]) -> Vec<f32> {
    batches.iter().flat_map(|batch| batch.as_slice().to_vec()).collect()
}

fn error(values: &[f32], (scale, zero_point): (f32, i32), scheme: &Scheme) -> f64 {
    let back = |x| dequantize(quantize(x, scale, zero_point, scheme.qmin(), scheme.qmax()), scale, zero_point);
    values.iter().map(|&x| (f64::from(x) - f64::from(back(x))).powi(2)).sum()
}

#[test]
fn exact_ranges_are_equal() {
    let fixtures = Fixtures::new();
    let per_channel = Granularity::PerChannel { axis: 0 };
    for case in CASES {
        let batches = fixtures.batches(case);
        let ranges = flat(observed(MinMax::new(TENSOR), &batches).ranges());
        assert_eq!(ranges, fixtures.numbers(&format!("{case}.torch.minmax")), "{case}");
        assert_eq!(ranges, fixtures.numbers(&format!("{case}.ort.minmax")), "{case}");
        let ranges = flat(observed(MinMax::new(per_channel), &channels(&batches)).ranges());
        assert_eq!(ranges, fixtures.numbers(&format!("{case}.torch.minmax_channel")), "{case}");
    }
}

#[test]
fn moving_averages_are_equal_up_to_rounding() {
    let fixtures = Fixtures::new();
    for case in CASES {
        let batches = fixtures.batches(case);
        let tensor = flat(observed(MovingAverage::new(TENSOR).with_rate(RATE).unwrap(), &batches).ranges());
        let channel = MovingAverage::new(Granularity::PerChannel { axis: 0 }).with_rate(RATE).unwrap();
        let channel = flat(observed(channel, &channels(&batches)).ranges());
        for (name, ours) in [("torch.average", &tensor), ("ort.average", &tensor), ("torch.average_channel", &channel)] {
            let theirs = fixtures.numbers(&format!("{case}.{name}"));
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().zip(theirs) {
                // They round after each of three operations, we after the last.
                assert!((ours - theirs).abs() <= 4e-7 * theirs.abs(), "{case}.{name}: {ours} against {theirs}");
            }
        }
    }
}

#[test]
fn the_histogram_errs_less_than_pytorchs() {
    let (fixtures, mut worse) = (Fixtures::new(), Vec::new());
    for case in CASES {
        let batches = fixtures.batches(case);
        let (values, ours) = (all(&batches), observed(Histogram::new(TENSOR), &batches));
        let theirs = fixtures.numbers(&format!("{case}.torch.histogram"));
        for (i, bits) in BITS.into_iter().enumerate() {
            for (j, symmetric) in [false, true].into_iter().enumerate() {
                let scheme = Scheme::new(bits, symmetric).with_symmetric(symmetric);
                let at = &theirs[(2 * i + j) * 2..][..2];
                let (own, other) =
                    (error(&values, ours.qparams(&scheme).unwrap().at(0), &scheme), error(&values, (at[0] as f32, at[1] as i32), &scheme));
                println!("{case:10} {scheme}: {:.3} dB less", 10.0 * (other / own).log10());
                worse.extend((own > other).then(|| format!("{case}, {scheme}: {own} against {other}")));
            }
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

/// ONNX Runtime's thresholds are edges of 2048 bins or more over -T to T; ours lie inside the bin.
#[test]
fn percentiles_are_within_a_bin() {
    let fixtures = Fixtures::new();
    for case in CASES {
        let batches = fixtures.batches(case);
        let ours = flat(observed(Percentile::new(PERCENT, TENSOR).unwrap(), &batches).ranges());
        let theirs = fixtures.numbers(&format!("{case}.ort.percentile"));
        let (low, high, width) = (theirs[0], theirs[1], theirs[2]);
        let mut sorted = all(&batches);
        sorted.sort_by(f32::total_cmp);
        let cut = sorted.len() as f64 * (1.0 - PERCENT / 100.0);
        let at = |rank: f64| f64::from(sorted[rank as usize]);
        match case {
            // They cut half of one percent from the live tail of what has one sign, and from the dead one as well. We cut
            // all of it from the live one.
            "relu" | "lognormal" => {
                let (live, half) = (at(sorted.len() as f64 - cut), at(sorted.len() as f64 - 0.5 * cut));
                assert!((ours[1] - live).abs() <= width && (high - half).abs() <= 2.0 * width, "{case}: {ours:?}, {theirs:?}");
                assert_eq!(ours[0], f64::from(sorted[0]));
            }
            "negative" => {
                let (live, half) = (at(cut), at(0.5 * cut));
                assert!((ours[0] - live).abs() <= width && (low - half).abs() <= 2.0 * width, "{case}: {ours:?}, {theirs:?}");
            }
            _ => assert!((ours[0] - low).abs() <= 2.0 * width && (ours[1] - high).abs() <= 2.0 * width, "{case}: {ours:?}, {theirs:?}"),
        }
    }
}

/// By default ONNX Runtime has as many bins as levels, so its entropy calibrator tries one threshold. With 2048 bins its
/// counts of levels are cut to integers and its levels are 128 whatever the range is; what that clips costs most of the
/// signal.
#[test]
fn entropy_is_a_search_here() {
    let (fixtures, mut far_better) = (Fixtures::new(), 0);
    for case in CASES {
        let batches = fixtures.batches(case);
        let default = fixtures.numbers(&format!("{case}.ort.entropy_default"));
        let exact = flat(observed(MinMax::new(TENSOR), &batches[..1]).ranges());
        assert_eq!(default[..2], exact[..], "{case}: their default is the exact range");

        let (values, ours) = (all(&batches), observed(Entropy::new(TENSOR), &batches));
        let theirs = fixtures.numbers(&format!("{case}.ort.entropy"));
        let scheme = Scheme::UINT8_ACTIVATION;
        let grid = affine_qparams(theirs[0] as f32, theirs[1] as f32, 0, 255, false);
        let own = error(&values, ours.qparams(&scheme).unwrap().at(0), &scheme);
        let less = 10.0 * (error(&values, grid, &scheme) / own).log10();
        println!("{case:10} {less:.2} dB less; ours {:?}, theirs {theirs:?}", ours.ranges(&scheme));
        far_better += usize::from(less > 5.0);
        assert!(less > -3.0, "{case}: {less} dB less");
    }
    assert!(far_better >= 5, "{far_better}");
}
