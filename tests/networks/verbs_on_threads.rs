//! What fights the loss of accuracy gives the same bits on any number of threads.

use crate::support::{Random, network};
use lowprec::convert::{QConfig, StaticScheme};
use lowprec::nn::operator::LayerNormalization;
use lowprec::nn::{Dim, Layer, Linear, Model};
use lowprec::ptq::bias_correction::{correct_biases, correct_biases_by_norms};
use lowprec::ptq::distill::Distillation;
use lowprec::ptq::equalize::{Absorption, Equalization, equalize};
use lowprec::ptq::gptq::{self, Gptq};
use lowprec::ptq::recipe::{Effort, Improved, Recipe, Stage};
use lowprec::ptq::reconstruct::Reconstruction;
use lowprec::ptq::smooth_quant::{Ranges, smooth_quant};
use lowprec::ptq::{DynamicQuantization, WeightConfig, awq, reestimate_norms};
use lowprec::{DType, LayerKind, Progress, Scheme, Tensor, Value, quantize_dynamic};

const KINDS: [LayerKind; 2] = [LayerKind::Conv2d, LayerKind::Linear];

/// A normalization and two linear layers, large enough to be split.
fn layers() -> Model {
    let r = &mut Random(4);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(96)]).unwrap();
    let mut gamma = r.tensor([96], 0.3);
    gamma.as_mut_slice().iter_mut().enumerate().for_each(|(i, g)| *g = (1.0 + *g) * if i % 9 == 4 { 25.0 } else { 1.0 });
    let (gamma, beta) = (net.constant("gamma", gamma).unwrap(), net.constant("beta", r.tensor([96], 0.2)).unwrap());
    let x = net.add("norm", LayerNormalization::new(-1, 1e-5), &[x, gamma, beta]).unwrap();
    let x = net.add("up", Linear::new(r.tensor([192, 96], 0.2), Some(r.tensor([192], 0.2))).unwrap(), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("down", Linear::new(r.tensor([64, 192], 0.2), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    net.build().unwrap()
}

/// The bits of what a model gives.
fn bits(model: &Model, x: &Tensor) -> Vec<u32> {
    model.forward(x).unwrap().as_slice().iter().map(|y| y.to_bits()).collect()
}

/// `verb` on pools of one, two and three threads, each result run on one.
fn check(name: &str, x: &Tensor, verb: &(dyn Fn() -> Model + Sync)) {
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let expected = bits(&on(1).install(verb), x);
    for threads in [2, 3] {
        assert!(bits(&on(threads).install(verb), x) == expected, "{name} on {threads} threads");
    }
}

#[test]
fn verbs_for_convolutions() {
    let (model, samples, x) = (network(5), Random(6).tensor([8, 3, 40, 36], 1.0), Random(7).tensor([2, 3, 40, 36], 1.0));
    let value = Value::from(samples);
    let (batch, silent): (&[(&str, &Value)], _) = (&[("image", &value)], Progress::silent);
    let absorbing = Equalization::new().with_absorption(Absorption::Observed);
    check("equalize", &x, &|| equalize(&model, &[batch], &absorbing, silent()).unwrap().model);
    let int8 = quantize_dynamic(&model, &KINDS).unwrap();
    check("correct_biases", &x, &|| correct_biases(&model, &int8, &[batch], silent()).unwrap().model);
    check("correct_biases_by_norms", &x, &|| correct_biases_by_norms(&model, &int8, silent()).unwrap().model);
    check("reestimate_norms", &x, &|| reestimate_norms(&model, &[batch], silent()).unwrap().model);
    let config = WeightConfig::new("int3:g16".parse().unwrap());
    check("awq", &x, &|| awq::quantize_weights(&model, &[batch], &config, silent()).unwrap().model);
    check("gptq", &x, &|| gptq::quantize_weights(&model, &[batch], &config, &Gptq::new(), silent()).unwrap().model);
}

#[test]
fn verbs_for_linear_layers() {
    let (model, samples, x) = (layers(), Random(8).tensor([12, 40, 96], 1.0), Random(9).tensor([2, 40, 96], 1.0));
    let value = Value::from(samples);
    let (batch, silent): (&[(&str, &Value)], _) = (&[("x", &value)], Progress::silent);
    for ranges in [Ranges::Row, Ranges::Value] {
        check("smooth_quant", &x, &|| {
            let smooth = smooth_quant(&model, &[batch], ranges, silent()).unwrap();
            assert!(smooth.values.iter().any(|value| value.strength.is_some()));
            smooth.model
        });
    }
    let config = WeightConfig::new("uint3:g16".parse().unwrap());
    check("scale_channels", &x, &|| awq::scale_channels(&model, &[batch], &config, silent()).unwrap().model);
    check("clip_weights", &x, &|| awq::clip_weights(&model, &[batch], &config, silent()).unwrap().model);
    check("gptq", &x, &|| gptq::quantize_weights(&model, &[batch], &config, &Gptq::new(), silent()).unwrap().model);
}

#[test]
fn recipes() {
    let model = network(5);
    let (value, x) = (Value::from(Random(6).tensor([8, 3, 24, 20], 1.0)), Random(7).tensor([2, 3, 24, 20], 1.0));
    let (batch, silent): (&[(&str, &Value)], _) = (&[("image", &value)], Progress::silent);
    // Made where it is used: it takes the threads of that pool.
    let recipe = || {
        Recipe::new(Effort::Best)
            .with(Stage::Absorb, true)
            .with_reconstruction(Reconstruction::new().with_steps(20).unwrap())
            .with_distillation(Distillation::new().with_epochs(2).unwrap())
    };
    let static_config = QConfig::new(StaticScheme::default().with_weights(Scheme::INT8_WEIGHT.with_bits(4)));
    let weight_config = WeightConfig::new("uint3:g16:range".parse().unwrap());
    // What was kept is part of the result.
    let of = |improved: Improved| {
        assert!(improved.stages.iter().any(|gain| gain.kept), "{improved}");
        improved.model
    };
    check("static", &x, &|| of(recipe().quantize_static(&model, &[batch], &static_config, silent()).unwrap()));
    check("weights", &x, &|| of(recipe().quantize_weights(&model, &[batch], &weight_config, silent()).unwrap()));
    let how = || DynamicQuantization::new(&KINDS);
    check("dynamic", &x, &|| recipe().quantize_dynamic(&model, &[batch], &how(), silent()).unwrap().model);
}
