//! Outliers moved into weights: the function stays, and int8 loses less.

use crate::support::Random;
use lowprec::metrics::{relative_error, sqnr_db};
use lowprec::nn::operator::{LayerNormalization, MatMul, Softmax, Transpose, Unary};
use lowprec::nn::{Dim, Layer, Linear, Model};
use lowprec::ptq::channel_scales::Rescaled;
use lowprec::ptq::smooth_quant::{Ranges, smooth_quant};
use lowprec::{DType, Error, LayerKind, Progress, QConfig, Tensor, Value, quantize_dynamic, quantize_static};

/// A block of a transformer of one head, with a few channels that its normalizations make large.
pub(crate) fn block(seed: u64) -> Model {
    let r = &mut Random(seed);
    let width = 24;
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(width)]).unwrap();
    let mut constants = Vec::new();
    for name in ["a", "b"] {
        let mut gamma = r.tensor([width], 0.3);
        gamma.as_mut_slice().iter_mut().enumerate().for_each(|(i, g)| *g = (1.0 + *g) * if i % 9 == 4 { 25.0 } else { 1.0 });
        let mut beta = r.tensor([width], 0.2);
        beta.as_mut_slice()[7] = 15.0;
        constants.push((net.constant(&format!("{name}.gamma"), gamma).unwrap(), net.constant(&format!("{name}.beta"), beta).unwrap()));
    }
    // Weights are small where what they read is large, as training leaves them.
    let mut linear = |out: usize, width: usize, outliers: bool| {
        let mut weight = r.tensor([out, width], 0.3);
        let tame = |(i, w): (usize, &mut f32)| *w *= if outliers && (i % width % 9 == 4 || i % width == 7) { 0.1 } else { 1.0 };
        weight.as_mut_slice().iter_mut().enumerate().for_each(tame);
        Linear::new(weight, Some(r.tensor([out], 0.1))).unwrap()
    };
    let norm = || LayerNormalization::new(-1, 1e-5);
    let h = net.add("a", norm(), &[x, constants[0].0, constants[0].1]).unwrap();
    let q = net.add("q", linear(16, width, true), &[h]).unwrap();
    let k = net.add("k", linear(16, width, true), &[h]).unwrap();
    let v = net.add("v", linear(16, width, true), &[h]).unwrap();
    let k = net.add("turned", Transpose::new().with_perm([0, 2, 1]), &[k]).unwrap();
    let scores = net.add("scores", MatMul::new(), &[q, k]).unwrap();
    let scores = net.add("weights", Softmax::new(-1), &[scores]).unwrap();
    let mixed = net.add("mixed", MatMul::new(), &[scores, v]).unwrap();
    let out = net.add("out", linear(width, 16, false), &[mixed]).unwrap();
    let x = net.add("residual", Layer::Add, &[out, x]).unwrap();
    let h = net.add("b", norm(), &[x, constants[1].0, constants[1].1]).unwrap();
    let h = net.add("up", linear(40, width, true), &[h]).unwrap();
    let h = net.add("gelu", Unary::Gelu, &[h]).unwrap();
    let h = net.add("down", linear(12, 40, false), &[h]).unwrap();
    let y = net.add("head", linear(9, 12, false), &[h]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

fn smoothed(model: &Model, samples: &Tensor, ranges: Ranges) -> Result<Rescaled, Error> {
    let samples = Value::from(samples.clone());
    smooth_quant(model, &[&[("x", &samples)]], ranges, Progress::silent())
}

#[test]
fn the_function_stays_and_int8_loses_less() {
    for seed in 1..4 {
        let (model, samples) = (block(seed), Random(seed + 10).tensor([8, 10, 24], 1.0));
        let x = Random(seed + 20).tensor([8, 10, 24], 1.0);
        let y = model.forward(&x).unwrap();
        for ranges in [Ranges::Row, Ranges::Value] {
            let smooth = smoothed(&model, &samples, ranges).unwrap();
            let off = relative_error(y.as_slice(), smooth.model.forward(&x).unwrap().as_slice()).unwrap();
            assert!(off < 1e-5, "{off}");
            let sites: Vec<String> = smooth.values.iter().map(|value| format!("{} {}", value.writer, value.readers.join(" "))).collect();
            assert_eq!(sites, ["a q k v", "b up", "down head"], "{smooth}");
            let passed: Vec<&str> = smooth.passed_over.iter().map(|skipped| skipped.name.as_str()).collect();
            assert_eq!(passed, ["out", "down"], "{smooth}");
            for value in &smooth.values {
                assert!(value.errors[1] <= value.errors[0], "{smooth}");
                assert!(value.writer == "down" || value.errors[1] < 0.3 * value.errors[0] && value.strength.is_some(), "{smooth}");
            }
            let db = |model: &Model| {
                let int8 = match ranges {
                    Ranges::Row => quantize_dynamic(model, &[LayerKind::Linear]),
                    _ => quantize_static(model, [&samples], &QConfig::default()),
                };
                sqnr_db(y.as_slice(), int8.unwrap().forward(&x).unwrap().as_slice()).unwrap()
            };
            let (before, after) = (db(&model), db(&smooth.model));
            assert!(after > before + 3.0, "{ranges:?}, {seed}: {before} dB, then {after}");
        }
    }
}

#[test]
fn bad_samples_change_nothing_or_name_the_layer() {
    let (model, x) = (block(5), Random(6).tensor([4, 10, 24], 1.0));
    let y = model.forward(&x).unwrap();
    for samples in [Tensor::full([1, 1, 24], 0.0).unwrap(), Tensor::full([2, 3, 24], 1.0).unwrap(), x.slice(0, 0..1).unwrap()] {
        let smooth = smoothed(&model, &samples, Ranges::Row).unwrap();
        let off = relative_error(y.as_slice(), smooth.model.forward(&x).unwrap().as_slice()).unwrap();
        assert!(off < 1e-5 && smooth.values.iter().all(|value| value.errors[1] <= value.errors[0]), "{smooth}");
    }
    let mut bad = x.clone();
    bad.as_mut_slice()[3] = f32::NAN;
    let told = smoothed(&model, &bad, Ranges::Row).unwrap_err();
    assert!(matches!(&told, Error::Layer { name, .. } if name == "a"), "{told}");
    assert!(matches!(smooth_quant(&model, &[], Ranges::Row, Progress::silent()), Err(Error::Empty { .. })));
    // What is quantized is left alone, and says so.
    let int8 = quantize_dynamic(&model, &[LayerKind::Linear]).unwrap();
    let smooth = smoothed(&int8, &x, Ranges::Row).unwrap();
    assert!(smooth.values.is_empty() && smooth.passed_over.len() == 7, "{smooth}");
    assert_eq!(smooth.passed_over[0].reason, lowprec::nn::SkipReason::AlreadyQuantized);
}

#[test]
fn a_caller_can_stop_it() {
    let value = Value::from(Random(14).tensor([8, 10, 24], 1.0));
    let stop =
        Progress::new(|step| if step.stage == "smooth" { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) });
    assert!(matches!(smooth_quant(&block(1), &[&[("x", &value)]], Ranges::Row, stop), Err(Error::Cancelled { .. })));
}
