//! Means that rounding moved, taken back by biases; and batch norms that look again.

use crate::support::{Random, conv, network, norm};
use lowprec::convert::{LayerConfig, StaticScheme, fold_batch_norm};
use lowprec::kernels::Conv2dGeometry;
use lowprec::metrics::sqnr_db;
use lowprec::nn::{Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, Model};
use lowprec::ptq::bias_correction::{Corrected, correct_biases, correct_biases_by_norms};
use lowprec::ptq::{WeightConfig, reestimate_norms};
use lowprec::{DType, Error, LayerKind, Progress, QConfig, Scheme, Tensor, Value, quantize_dynamic, quantize_static, quantize_weights};

fn corrected(float: &Model, quantized: &Model, samples: &Tensor) -> Result<Corrected, Error> {
    let samples = Value::from(samples.clone());
    correct_biases(float, quantized, &[&[(float.inputs()[0].name(), &samples)]], Progress::silent())
}

/// Means of each channel of a value of a model, by the name of its edge.
fn means(model: &Model, edge: &str, x: &Tensor) -> Vec<f64> {
    let mut found = Vec::new();
    model
        .forward_with(x, |tap| {
            if tap.edge == edge {
                let y = tap.value.get::<f32>().unwrap();
                let (channels, inner) = (y.dims()[1], y.dims()[2..].iter().product::<usize>());
                found = vec![0.0; channels];
                for (i, run) in y.as_slice().chunks(inner).enumerate() {
                    found[i % channels] += run.iter().map(|&x| f64::from(x)).sum::<f64>() / (y.len() / channels) as f64;
                }
            }
            Ok(())
        })
        .unwrap();
    found
}

/// A chain of convolutions with batch norms and ReLU.
fn chain(seed: u64) -> Model {
    let r = &mut Random(seed);
    let mut net = Model::builder();
    let mut x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let mut channels = 3;
    for (i, (out, groups)) in [(16, 1), (16, 16), (24, 1), (24, 4)].into_iter().enumerate() {
        let geometry = Conv2dGeometry::new(channels, out, [3, 3]).with_groups(groups);
        x = net.add(&format!("conv{i}"), conv(r, geometry, false), &[x]).unwrap();
        x = net.add(&format!("norm{i}"), norm(r, out), &[x]).unwrap();
        x = net.add(&format!("act{i}"), if i % 2 == 0 { Layer::Relu } else { Layer::Relu6 }, &[x]).unwrap();
        channels = out;
    }
    let x = net.add("pool", GlobalAvgPool2d, &[x]).unwrap();
    let x = net.add("flatten", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let x = net.add("head", Linear::new(r.tensor([7, 24], 0.3), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    // Statistics as training would have left them.
    let model = net.build().unwrap();
    let samples = Value::from(Random(seed + 1).tensor([32, 3, 14, 14], 1.0));
    reestimate_norms(&model, &[&[("image", &samples)]], Progress::silent()).unwrap().model
}

fn weights(text: &str) -> WeightConfig {
    WeightConfig::new(text.parse().unwrap())
}

#[test]
fn the_mean_of_every_layer_comes_back() {
    let (samples, fresh) = (Random(5).tensor([24, 3, 14, 14], 1.0), Random(6).tensor([24, 3, 14, 14], 1.0));
    let mut gains = Vec::new();
    for seed in 1..4 {
        let float = chain(seed);
        let coarse = StaticScheme::default().with_weights(Scheme::INT8_WEIGHT.with_bits(4));
        let kinds = [LayerKind::Conv2d, LayerKind::Linear];
        let static_ = quantize_static(&float, [&samples], &QConfig::new(coarse)).unwrap();
        let small = quantize_weights(&float, &weights("int3")).unwrap();
        let dynamic = lowprec::ptq::DynamicQuantization::new(&kinds).with_weights(Scheme::INT8_WEIGHT.with_bits(4)).apply(&float).unwrap();
        for (name, quantized) in [("static", static_), ("dynamic", dynamic), ("weights alone", small)] {
            let done = corrected(&float, &quantized, &samples).unwrap();
            assert!(done.layers.len() >= 4, "{name}: {done}");
            assert_eq!(done.layers.len() + done.passed_over.len(), 5, "{name}: {done}");
            for layer in &done.layers {
                let [before, after] = layer.held_out.unwrap();
                assert!(after < before && layer.shift() > 0.0, "{name}: {done}");
            }
            let y = float.forward(&fresh).unwrap();
            let db = |model: &Model| sqnr_db(y.as_slice(), model.forward(&fresh).unwrap().as_slice()).unwrap();
            gains.push(db(&done.model) - db(&quantized));
            // Of what is written at the end, the mean is that of the float model, up to the last layer's own rounding.
            let (expected, before, after) =
                (means(&float, "head", &samples), means(&quantized, "head", &samples), means(&done.model, "head", &samples));
            let off = |means: &[f64]| means.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off(&after) < 0.02 * off(&before) + 1e-5, "{name}: {} after {}", off(&after), off(&before));
        }
    }
    let mean = gains.iter().sum::<f64>() / gains.len() as f64;
    assert!(mean > 1.0, "{mean} dB: {gains:?}");
}

#[test]
fn batch_norms_tell_the_mean_without_samples() {
    let fresh = Random(16).tensor([24, 3, 14, 14], 1.0);
    let mut gains = Vec::new();
    for seed in 11..15 {
        let float = chain(seed);
        let quantized = quantize_weights(&float, &weights("int3")).unwrap();
        let done = correct_biases_by_norms(&float, &quantized, Progress::silent()).unwrap();
        // The first layer reads the image, of which nothing is known.
        assert_eq!(done.passed_over.iter().map(|skipped| skipped.name.as_str()).collect::<Vec<_>>(), ["conv0"], "{done}");
        assert_eq!(done.layers.len(), 4);
        // What it computes is near what samples show, layer by layer, of a model whose other layers are float.
        for layer in &done.layers {
            let alone = weights("int3").with_kind(LayerKind::Conv2d, None).with_kind(LayerKind::Linear, None);
            let alone = quantize_weights(&float, &alone.with_pattern(&layer.name, Some("int3".parse().unwrap())).unwrap()).unwrap();
            let samples = Random(seed + 30).tensor([32, 3, 14, 14], 1.0);
            let measured = corrected(&float, &alone, &samples).unwrap();
            let [measured] = measured.layers.as_slice() else { panic!("{measured}") };
            let off: f64 = measured.shifts.iter().zip(&layer.shifts).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            let all: f64 = measured.shifts.iter().map(|a| a.powi(2)).sum();
            assert!(off < 0.25 * all, "{}: {off} of {all}", layer.name);
        }
        let y = float.forward(&fresh).unwrap();
        let db = |model: &Model| sqnr_db(y.as_slice(), model.forward(&fresh).unwrap().as_slice()).unwrap();
        gains.push(db(&done.model) - db(&quantized));
    }
    let mean = gains.iter().sum::<f64>() / gains.len() as f64;
    assert!(mean > 0.5, "{mean} dB: {gains:?}");
}

#[test]
fn bad_samples_change_nothing_or_name_the_layer() {
    let float = chain(21);
    let quantized = quantize_dynamic(&float, &[LayerKind::Conv2d, LayerKind::Linear]).unwrap();
    // Too few to be held out.
    let done = corrected(&float, &quantized, &Random(1).tensor([1, 3, 14, 14], 1.0)).unwrap();
    assert!(done.layers.is_empty() && done.passed_over.len() == 5, "{done}");
    assert!(done.to_string().contains("at least 4"), "{done}");
    let x = Random(2).tensor([2, 3, 14, 14], 1.0);
    assert_eq!(done.model.forward(&x).unwrap().as_slice(), quantized.forward(&x).unwrap().as_slice());
    // Constant inputs, and nothing at all: whatever they show, it is no more than a bias.
    for value in [0.0, 0.5] {
        let done = corrected(&float, &quantized, &Tensor::full([8, 3, 14, 14], value).unwrap()).unwrap();
        assert!(done.model.forward(&x).unwrap().as_slice().iter().all(|y| y.is_finite()));
    }
    let mut bad = Random(3).tensor([8, 3, 14, 14], 1.0);
    bad.as_mut_slice()[100] = f32::NAN;
    let told = corrected(&float, &quantized, &bad).unwrap_err();
    assert!(matches!(&told, Error::Layer { name, .. } if name == "conv0"), "{told}");
    // What is not quantized, or of another model.
    assert!(matches!(corrected(&float, &float, &x), Err(Error::NothingToQuantize { .. })));
    assert!(matches!(correct_biases_by_norms(&float, &float, Progress::silent()), Err(Error::NothingToQuantize { .. })));
    let other = corrected(&network(1), &quantized, &x).unwrap();
    assert!(other.layers.is_empty() && other.passed_over[0].reason.to_string().contains("no layer of that name"), "{other}");
    assert!(matches!(correct_biases(&float, &quantized, &[], Progress::silent()), Err(Error::Empty { .. })));
    let (x, stop) = (Value::from(x), Progress::new(|_| std::ops::ControlFlow::Break(())));
    assert!(matches!(correct_biases(&float, &quantized, &[&[("image", &x)]], stop), Err(Error::Cancelled { .. })));
}

/// A batch norm that can't be folded, some layers left in float, and a residual sum.
#[test]
fn partly_quantized_models_are_followed() {
    let float = network(31);
    let samples = Random(32).tensor([16, 3, 14, 11], 1.0);
    let config = QConfig::default().with_pattern("conv1", LayerConfig::Float).unwrap();
    let quantized = quantize_static(&float, [&samples], &config).unwrap();
    let done = corrected(&float, &quantized, &samples).unwrap();
    assert!(done.layers.iter().all(|layer| layer.name != "conv1"));
    assert_eq!(done.layers.len() + done.passed_over.len(), 4, "{done}");
    let only = quantize_dynamic(&float, &[LayerKind::Linear]).unwrap();
    assert_eq!(corrected(&float, &only, &samples).map(|done| done.layers.len() + done.passed_over.len()).unwrap(), 1);
}

#[test]
fn batch_norms_look_again() {
    let r = &mut Random(41);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let x = net.add("a", conv(r, Conv2dGeometry::new(3, 5, [3, 3]), true), &[x]).unwrap();
    let x = net.add("a norm", norm(r, 5), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let mut dead = conv(r, Conv2dGeometry::new(5, 4, [1, 1]), false).weight().clone();
    dead.as_mut_slice()[..5].fill(0.0);
    let x = net.add("b", Conv2d::new(Conv2dGeometry::new(5, 4, [1, 1]), dead, None).unwrap(), &[x]).unwrap();
    let x = net.add("b norm", norm(r, 4), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let x = r.tensor([12, 3, 9, 9], 1.3);
    let parts: Vec<Value> = [0..5, 5..12].map(|part| x.slice(0, part).unwrap().into()).into();
    let batches: [&[(&str, &Value)]; 2] = [&[("image", &parts[0])], &[("image", &parts[1])]];
    let done = reestimate_norms(&model, &batches, Progress::silent()).unwrap();
    assert_eq!(done.norms.len(), 2);
    assert!(done.norms.iter().all(|norm| norm.mean > 0.0 && norm.deviation > 1.0), "{done}");
    // Each channel comes out with its bias as mean and its weight as deviation; the dead one as it was.
    for (name, channels) in [("a norm", 0..5), ("b norm", 1..4)] {
        let Layer::BatchNorm2d(norm) = done.model.node(name).unwrap().layer() else { panic!("{name}") };
        let found = means(&done.model, name, &x);
        for c in channels {
            assert!((found[c] - f64::from(norm.parameters()[1].as_slice()[c])).abs() < 1e-5, "{name} {c}");
        }
    }
    let statistics = |model: &Model, name: &str| -> Vec<f32> {
        let Layer::BatchNorm2d(norm) = model.node(name).unwrap().layer() else { panic!("{name}") };
        norm.parameters()[2..].iter().map(|tensor| tensor.as_slice()[0]).collect()
    };
    assert_eq!(statistics(&done.model, "b norm"), statistics(&model, "b norm"));
    // The variance is that of PyTorch's: n - 1 below.
    let before: Vec<f64> = {
        let mut values = Vec::new();
        let folded_away = |tap: &lowprec::nn::Tap<'_>| {
            if tap.edge == "a" {
                let y = tap.value.get::<f32>().unwrap();
                values = y.as_slice().chunks(49).step_by(5).flatten().map(|&x| f64::from(x)).collect();
            }
            Ok(())
        };
        model.forward_with(&x, folded_away).unwrap();
        values
    };
    let mean = before.iter().sum::<f64>() / before.len() as f64;
    let variance = before.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (before.len() - 1) as f64;
    let got = statistics(&done.model, "a norm");
    assert!((f64::from(got[0]) - mean).abs() < 1e-5 && (f64::from(got[1]) / variance - 1.0).abs() < 1e-4, "{got:?}: {mean}, {variance}");

    // A single pixel says nothing; what is folded is gone; NaN names the layer.
    let pixel = Value::from(r.tensor([1, 3, 3, 3], 1.0));
    let kept = reestimate_norms(&model, &[&[("image", &pixel)]], Progress::silent()).unwrap();
    assert!(kept.norms.is_empty() && kept.passed_over.len() == 2, "{kept}");
    let image: &[(&str, &Value)] = &[("image", &parts[0])];
    assert!(matches!(
        reestimate_norms(&fold_batch_norm(&model).unwrap(), &[image], Progress::silent()),
        Err(Error::NothingToQuantize { .. })
    ));
    assert!(matches!(reestimate_norms(&model, &[], Progress::silent()), Err(Error::Empty { .. })));
    let nan = Value::from(Tensor::full([1, 3, 9, 9], f32::NAN).unwrap());
    let told = reestimate_norms(&model, &[&[("image", &nan)]], Progress::silent()).unwrap_err();
    assert!(matches!(&told, Error::Layer { name, .. } if name == "a"), "{told}");
}

#[test]
fn a_caller_can_stop_it() {
    let (model, value) = (network(3), Value::from(Random(4).tensor([4, 3, 14, 11], 1.0)));
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
    let stop = || Progress::new(|_| std::ops::ControlFlow::Break(()));
    assert!(matches!(correct_biases(&model, &int8, &[batch], stop()), Err(Error::Cancelled { .. })));
    assert!(matches!(correct_biases_by_norms(&model, &int8, stop()), Err(Error::Cancelled { .. })));
    assert!(matches!(reestimate_norms(&model, &[batch], stop()), Err(Error::Cancelled { .. })));
}
