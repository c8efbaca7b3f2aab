//! Weights rounded with an eye on activations: the function stays, few bits lose less, clipping is chosen by group.

use crate::smooth_quant::block;
use crate::support::Random;
use lowprec::metrics::{relative_error, sqnr_db};
use lowprec::nn::{Dim, Linear, Model};
use lowprec::ptq::awq::{quantize_weights, scale_channels};
use lowprec::ptq::{WeightConfig, quantize_weights as plain_weights};
use lowprec::quant::Rounding;
use lowprec::{DType, Error, LayerKind, Progress, Tensor, Value, quantize_dynamic};

fn config(format: &str) -> WeightConfig {
    WeightConfig::new(format.parse().unwrap())
}

#[test]
fn the_function_stays_and_few_bits_lose_less() {
    for seed in 1..4 {
        let (model, samples) = (block(seed), Value::from(Random(seed + 10).tensor([16, 10, 24], 1.0)));
        let x = Random(seed + 20).tensor([8, 10, 24], 1.0);
        let y = model.forward(&x).unwrap();
        for format in ["int4:g8", "uint3:g8", "nf4:channel"] {
            let config = config(format);
            let scaled = scale_channels(&model, &[&[("x", &samples)]], &config, Progress::silent()).unwrap();
            let off = relative_error(y.as_slice(), scaled.model.forward(&x).unwrap().as_slice()).unwrap();
            assert!(off < 1e-5, "{off}");
            let sites: Vec<String> = scaled.values.iter().map(|value| format!("{} {}", value.writer, value.readers.join(" "))).collect();
            assert_eq!(sites, ["a q k v", "b up", "down head"], "{scaled}");
            assert!(scaled.values.iter().all(|value| value.errors[1] <= value.errors[0]), "{scaled}");
            assert!(scaled.values[..2].iter().all(|value| value.strength.is_some()), "{scaled}");
            let db = |model: &Model| sqnr_db(y.as_slice(), model.forward(&x).unwrap().as_slice()).unwrap();
            let (before, after) = (db(&plain_weights(&model, &config).unwrap()), db(&plain_weights(&scaled.model, &config).unwrap()));
            assert!(after > before + 1.0, "{format}, {seed}: {before} dB, then {after}");
            let aware = quantize_weights(&model, &[&[("x", &samples)]], &config, Progress::silent()).unwrap();
            assert_eq!(
                aware.layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(),
                ["q", "k", "v", "out", "up", "down", "head"]
            );
            assert!(aware.layers.iter().all(|layer| layer.errors[1] <= layer.errors[0]), "{:?}", aware.layers);
            assert!(db(&aware.model) > before + 1.0, "{format}, {seed}: {before} dB, then {}", db(&aware.model));
        }
    }
}

/// A linear layer whose rows have one large weight each, at an input that is hardly ever anything.
fn lopsided() -> (Model, Tensor) {
    let r = &mut Random(3);
    let mut weight = r.tensor([6, 32], 0.3);
    weight.as_mut_slice().chunks_mut(16).for_each(|group| group[5] = 1.0);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(32)]).unwrap();
    let y = net.add("only", Linear::new(weight, None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let mut samples = r.tensor([64, 32], 1.0);
    samples.as_mut_slice().chunks_mut(16).for_each(|part| part[5] *= 1e-3);
    (net.build().unwrap(), samples)
}

#[test]
fn ranges_are_clipped_where_outputs_gain() {
    let (model, x) = lopsided();
    let samples = Value::from(x.clone());
    let aware = quantize_weights(&model, &[&[("x", &samples)]], &config("int3:g16:range"), Progress::silent()).unwrap();
    let layer = &aware.layers[0];
    // The shortest range tried is eleven twentieths: steps of 0.55, and errors of their square.
    assert!(layer.clipped > 0.9 && layer.errors[1] < 0.6 * layer.errors[0], "{layer:?}");
    assert!(aware.scaled.values.is_empty() && aware.scaled.passed_over.len() == 1);
    // Least squares of the weights clips already, or not; what is taken is never worse.
    let aware = quantize_weights(&model, &[&[("x", &samples)]], &config("int3:g16"), Progress::silent()).unwrap();
    assert!(aware.layers[0].errors[1] <= aware.layers[0].errors[0]);
    // What is kept exactly is the weight itself.
    let aware = quantize_weights(&model, &[&[("x", &samples)]], &config("int3:g16:range:largest=0.06"), Progress::silent()).unwrap();
    let kept = aware.model.node("only").unwrap().layer().stored_weights().unwrap().quantized().unwrap();
    assert_eq!(kept.kept().unwrap().iter().map(|(_, value)| value).collect::<Vec<_>>(), [1.0; 12]);
    // Where every weight counts alike there is nothing to clip.
    let even = Value::from(Random(9).tensor([64, 32], 1.0));
    let aware = quantize_weights(&model, &[&[("x", &even)]], &config("int8:g16:range"), Progress::silent()).unwrap();
    let layer = &aware.layers[0];
    assert!(layer.clipped == 0.0 && layer.errors[0] == layer.errors[1], "{layer:?}");
}

#[test]
fn bad_samples_and_requests() {
    let (model, x) = (block(5), Random(6).tensor([4, 10, 24], 1.0));
    let y = model.forward(&x).unwrap();
    let config = config("int4:g8");
    for samples in [Tensor::full([1, 1, 24], 0.0).unwrap(), Tensor::full([2, 3, 24], 1.0).unwrap(), x.slice(0, 0..1).unwrap()] {
        let samples = Value::from(samples);
        let scaled = scale_channels(&model, &[&[("x", &samples)]], &config, Progress::silent()).unwrap();
        let off = relative_error(y.as_slice(), scaled.model.forward(&x).unwrap().as_slice()).unwrap();
        assert!(off < 1e-5, "{off}");
        assert!(quantize_weights(&model, &[&[("x", &samples)]], &config, Progress::silent()).is_ok());
    }
    let samples = Value::from(x.clone());
    let mut bad = x.clone();
    bad.as_mut_slice()[3] = f32::NAN;
    let told = scale_channels(&model, &[&[("x", &Value::from(bad))]], &config, Progress::silent()).unwrap_err();
    assert!(matches!(&told, Error::Layer { name, .. } if name == "a"), "{told}");
    assert!(matches!(scale_channels(&model, &[], &config, Progress::silent()), Err(Error::Empty { .. })));
    let drawn = config.clone().with_rounding(Rounding::Stochastic { seed: 1 });
    assert!(matches!(quantize_weights(&model, &[&[("x", &samples)]], &drawn, Progress::silent()), Err(Error::Unsupported { .. })));
    // Layers left in float have no say in the scales.
    let some = config.clone().with_pattern("q", None).unwrap().with_pattern("k", None).unwrap();
    let some = some.with_pattern("v", None).unwrap().with_pattern("up", None).unwrap();
    let scaled = scale_channels(&model, &[&[("x", &samples)]], &some, Progress::silent()).unwrap();
    assert!(scaled.values[..2].iter().all(|value| value.strength.is_none() && value.errors == [0.0; 2]), "{scaled}");
    let int8 = quantize_dynamic(&model, &[LayerKind::Linear]).unwrap();
    assert!(scale_channels(&int8, &[&[("x", &samples)]], &config, Progress::silent()).unwrap().values.is_empty());
    assert!(matches!(
        scale_channels(&model, &[&[("x", &samples)]], &config, Progress::new(|_| std::ops::ControlFlow::Break(()))),
        Err(Error::Cancelled { .. })
    ));
}
