//! The example's network against PyTorch's numbers, and its int8 twin against what the crate promises.

use std::collections::HashMap;

use lowprec::io::safetensors;
use lowprec::nn::StateDict;
use lowprec::{LayerKind, Precision, Tensor, compare, metrics, quantize_dynamic};

// The network and its data are the example's own.
#[allow(dead_code)]
#[path = "../../examples/quantize_dynamic.rs"]
mod example;

fn fixture(name: &str) -> StateDict {
    safetensors::read_file(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn data(name: &str) -> String {
    format!("{}/examples/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_float_value_is_pytorchs() {
    let model = example::digits_cnn(safetensors::read_file(data("digits_cnn.safetensors")).unwrap()).unwrap();
    let fixture = fixture("digits_cnn.safetensors");
    let expected = |name: &str| fixture.get(name).and_then(|value| value.get::<f32>()).unwrap_or_else(|| panic!("fixture `{name}`"));
    let mut seen = Vec::new();
    model
        .forward_with(expected("images"), |tap| {
            if let Some(node) = tap.node {
                let (ours, theirs) = (tap.value.get::<f32>().unwrap(), expected(node.name()));
                assert_eq!(ours.dims(), theirs.dims(), "{}", node.name());
                let error = metrics::relative_error(theirs.as_slice(), ours.as_slice()).unwrap();
                assert!(error < 1e-4, "{}: {error}", node.name());
                seen.push(node.name().to_owned());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.len(), model.nodes().len());

    let (images, _) = example::test_set(&data("digits.safetensors")).unwrap();
    let logits = model.forward(&images).unwrap();
    let error = metrics::relative_error(expected("logits_all").as_slice(), logits.as_slice()).unwrap();
    assert!(error < 1e-4, "logits: {error}");
}

#[test]
fn int8_keeps_the_accuracy_and_a_quarter_of_the_bytes() {
    let model = example::digits_cnn(safetensors::read_file(data("digits_cnn.safetensors")).unwrap()).unwrap();
    let (images, labels) = example::test_set(&data("digits.safetensors")).unwrap();
    assert_eq!(images.dims(), [647, 1, 8, 8]);
    let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
    let report = compare(&model, &int8, &images, Some(&labels)).unwrap();
    let [float, quantized] = report.accuracy().unwrap();
    assert!(float > 0.97, "float accuracy {float}");
    assert!((float - quantized).abs() <= 0.003, "{float} became {quantized}");
    assert!(report.agreement().unwrap() >= 0.995, "{} flips", report.classification.as_ref().unwrap().flips);
    assert!(report.sqnr_db > 30.0, "{} dB", report.sqnr_db);
    let [before, after] = report.quantized_weight_bytes();
    let share = after as f64 / before as f64;
    assert!((0.25..=0.30).contains(&share), "{after} of {before} bytes");

    let by_name: HashMap<&str, _> = report.layers.iter().map(|layer| (layer.name.as_str(), layer)).collect();
    for i in 1..=5 {
        let layer = by_name[format!("conv{i}").as_str()];
        assert_eq!(layer.precision, Precision::Int8);
        assert!(layer.kernel.is_some());
        assert!(layer.errors.sqnr_db > 25.0 && layer.errors.sqnr_db < 70.0, "{}: {} dB", layer.name, layer.errors.sqnr_db);
    }
    let own = |layer: &lowprec::eval::LayerReport| layer.isolated.unwrap().errors.sqnr_db;
    assert!(report.layers.windows(2).all(|pair| own(&pair[0]) <= own(&pair[1])), "worst first");
    assert_eq!(report.cost[0].macs_f32, report.cost[1].macs_f32 + report.cost[1].macs_int8);
    assert!(report.cost[1].energy.compute < report.cost[0].energy.compute / 5.0);

    let printed = report.to_string();
    for word in ["top-1", "agreement", "SQNR", "estimate", "conv5", "multiply-accumulates"] {
        assert!(printed.contains(word), "{word} in\n{printed}");
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let load = || safetensors::read_file(data("digits_cnn.safetensors")).unwrap();
    let mut missing = load();
    missing.discard("bn3.running_var");
    let error = example::digits_cnn(missing).unwrap_err().to_string();
    assert!(error.contains("bn3.running_var"), "{error}");

    let mut tensors: Vec<_> = load().names().map(|name| (name.to_owned(), load().get(name).unwrap().clone())).collect();
    tensors.push(("conv6.weight".into(), Tensor::full([1], 0.0).unwrap().into()));
    let error = example::digits_cnn(StateDict::new(tensors.clone()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("conv6.weight"), "{error}");

    tensors.pop();
    for (name, value) in &mut tensors {
        if name == "fc.weight" {
            *value = Tensor::full([10, 63], 0.0).unwrap().into();
        }
    }
    let error = example::digits_cnn(StateDict::new(tensors).unwrap()).unwrap_err().to_string();
    assert!(error.contains("fc.weight") && error.contains("[10, 63]") && error.contains("[10, 64]"), "{error}");
}
