//! Int8 models whose weights are fitted to samples.

use crate::support::{Random, network};
use lowprec::convert::{QConfig, StaticScheme, WeightScales, convert};
use lowprec::metrics::sqnr_db;
use lowprec::nn::{Dim, Linear, Model};
use lowprec::ptq::DynamicQuantization;
use lowprec::ptq::gptq::{self, Gptq, Method};
use lowprec::{DType, Error, LayerKind, Progress, Scheme, Tensor, Value, quantize_dynamic, quantize_static};
use std::ops::ControlFlow;

/// Weights of so many bits, activations of 8.
fn config(bits: u32) -> QConfig {
    let scheme = StaticScheme::default().with_weights(Scheme::INT8_WEIGHT.with_bits(bits));
    QConfig::new(scheme.with_weight_scales(WeightScales::LeastSquares))
}

fn samples(seed: u64, count: usize) -> Tensor {
    Random(seed).tensor([count, 3, 14, 11], 1.0)
}

#[test]
fn static_weights_are_fitted_to_what_they_are_multiplied_with() {
    let mut gains = Vec::new();
    for seed in 1..4 {
        let (model, calibrating, x) = (network(seed), samples(seed + 50, 48), samples(seed + 90, 32));
        let y = model.forward(&x).unwrap();
        let value = Value::from(calibrating.clone());
        let batch: &[(&str, &Value)] = &[("image", &value)];
        let fit = |gptq: Gptq| gptq::quantize_static(&model, &[batch], &config(4), &gptq, Progress::silent()).unwrap();
        let (fitted, calibration) = fit(Gptq::new().with_threads(1));
        assert_eq!(fit(Gptq::new().with_threads(3)).1, calibration);
        // What was found is plain data, which makes the same model again.
        let again = convert(&model, &calibration, &config(4)).unwrap();
        assert_eq!(again.forward(&x).unwrap().as_slice(), fitted.model.forward(&x).unwrap().as_slice());
        let plain = quantize_static(&model, [&calibrating], &config(4)).unwrap();
        assert_eq!(fitted.model.conversion(), plain.conversion());
        assert!(fitted.layers.iter().all(|layer| layer.errors[1] <= layer.errors[0]));
        assert!(fitted.layers.iter().any(|layer| layer.method != Method::Nearest));
        for name in calibration.weighted_layers() {
            let codes = calibration.weights(name).unwrap();
            assert_eq!((codes.params().qmin(), codes.params().qmax()), (-8, 7));
        }
        let db = |small: &Model| sqnr_db(y.as_slice(), small.forward(&x).unwrap().as_slice()).unwrap();
        gains.push(db(&fitted.model) - db(&plain));
    }
    let mean = gains.iter().sum::<f64>() / gains.len() as f64;
    assert!(mean > 1.5, "{mean} dB: {gains:?}");
}

#[test]
fn dynamic_weights_too() {
    let kinds = [LayerKind::Conv2d, LayerKind::Linear];
    let mut gains = Vec::new();
    for seed in 1..4 {
        let (model, x) = (network(seed), samples(seed + 90, 32));
        let y = model.forward(&x).unwrap();
        let value = Value::from(samples(seed + 50, 48));
        let batch: &[(&str, &Value)] = &[("image", &value)];
        let fit =
            |gptq: Gptq| gptq::quantize_dynamic(&model, &[batch], &DynamicQuantization::new(&kinds), &gptq, Progress::silent()).unwrap();
        let fitted = fit(Gptq::new().with_threads(1));
        let plain = quantize_dynamic(&model, &kinds).unwrap();
        assert_eq!((fitted.model.conversion(), fitted.model.bytes()), (plain.conversion(), plain.bytes()));
        let out = fitted.model.forward(&x).unwrap();
        assert_eq!(fit(Gptq::new().with_threads(3)).model.forward(&x).unwrap().as_slice(), out.as_slice());
        let db = |y_small: &[f32]| sqnr_db(y.as_slice(), y_small).unwrap();
        gains.push(db(out.as_slice()) - db(plain.forward(&x).unwrap().as_slice()));
    }
    assert!(gains.iter().sum::<f64>() > 0.3, "{gains:?}");
}

#[test]
fn channels_of_zeros_and_large_biases_keep_their_codes() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(8)]).unwrap();
    let mut weight = Random(3).tensor([6, 8], 1.0);
    weight.as_mut_slice()[8..16].fill(0.0);
    let bias = Tensor::new([6], vec![0.0, 1.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
    let y = net.add("zeros", Linear::new(weight, Some(bias)).unwrap(), &[x]).unwrap();
    let bias = Tensor::new([4], vec![3e7, 0.0, 0.0, 0.0]).unwrap();
    let y = net.add("biased", Linear::new(Random(4).tensor([4, 6], 1e-3), Some(bias)).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let value = Value::from(Random(5).tensor([40, 8], 1.0));
    let batch: &[(&str, &Value)] = &[("x", &value)];
    let (fitted, calibration) = gptq::quantize_static(&model, &[batch], &config(4), &Gptq::new(), Progress::silent()).unwrap();
    let zeros = calibration.weights("zeros").unwrap();
    assert!(zeros.codes()[8..16].iter().all(|&code| code == 0) && zeros.params().scales().iter().all(|&scale| scale > 0.0));
    assert_eq!(fitted.layers[1].method, Method::Nearest);
    // One sample, and the same sample again and again, are no worse than the rule.
    for rows in [1, 30] {
        let row = Random(6).tensor([1, 8], 1.0);
        let value = Value::from(Tensor::new([rows, 8], row.as_slice().repeat(rows)).unwrap());
        let batch: &[(&str, &Value)] = &[("x", &value)];
        let (fitted, _) = gptq::quantize_static(&model, &[batch], &config(4), &Gptq::new(), Progress::silent()).unwrap();
        assert!(fitted.layers.iter().all(|layer| layer.errors[1] <= layer.errors[0]));
    }
    let none = gptq::quantize_static(&model, &[], &config(4), &Gptq::new(), Progress::silent());
    assert!(matches!(none, Err(Error::Empty { .. })));
    let none = gptq::quantize_dynamic(&model, &[], &DynamicQuantization::new(&[LayerKind::Linear]), &Gptq::new(), Progress::silent());
    assert!(matches!(none, Err(Error::Empty { .. })));
    let stop = Progress::new(|step| if step.stage == "fit weights" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    let stopped = gptq::quantize_static(&model, &[batch], &config(4), &Gptq::new(), stop);
    assert!(matches!(stopped, Err(Error::Cancelled { stage: "fit weights", .. })));
    let value = Value::from(Tensor::full([2, 8], f32::NAN).unwrap());
    let batch: &[(&str, &Value)] = &[("x", &value)];
    let told = gptq::quantize_dynamic(&model, &[batch], &DynamicQuantization::new(&[LayerKind::Linear]), &Gptq::new(), Progress::silent())
        .unwrap_err();
    assert!(told.to_string().contains("zeros"), "{told}");
}
