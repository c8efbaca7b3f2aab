//! The digits network from an ONNX file against the same network built layer by layer.

use lowprec::io::safetensors;
use lowprec::nn::StateDict;
use lowprec::{LayerKind, Model, Precision, Tensor, compare, metrics, onnx, quantize_dynamic};

// The network and its data are the example's own.

fn data(name: &str) -> String {
    format!("{}/examples/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The one built here, and the one from the file.
fn models() -> [Model; 2] {
    let weights: StateDict = safetensors::read_file(data("digits_cnn.safetensors")).unwrap();
    [crate::example::digits_cnn(weights).unwrap(), onnx::load(fixture("digits_cnn.onnx")).unwrap()]
}

fn test_set() -> (Tensor, Vec<usize>) {
    crate::example::test_set(&data("digits.safetensors")).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.as_slice().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn float_outputs_are_the_same_bits() {
    let (images, _) = test_set();
    let [built, loaded] = models().map(|model| model.forward(&images).unwrap());
    assert_eq!(loaded.dims(), [647, 10]);
    assert_eq!(bits(&loaded), bits(&built));
    // And they are those that PyTorch computed.
    let expected = safetensors::read_file(fixture("digits_cnn.safetensors")).unwrap();
    let expected = expected.get("logits_all").and_then(|value| value.get::<f32>()).unwrap();
    assert!(metrics::relative_error(expected.as_slice(), loaded.as_slice()).unwrap() < 1e-5);
}

#[test]
fn every_layer_with_weights_is_found_under_its_name() {
    let [built, loaded] = models();
    for name in ["conv1", "conv2", "conv3", "conv4", "conv5", "fc"] {
        let [kind, own] = [&built, &loaded].map(|model| model.node(name).unwrap().layer().kind());
        assert_eq!(kind, own, "{name}");
    }
    let images = test_set().0.slice(0, 0..8).unwrap();
    // Shown one by one, nothing is fused: each value that both have by name is the same.
    let [built, loaded] = [&built, &loaded].map(|model| {
        let mut values = std::collections::BTreeMap::new();
        model
            .forward_with(&images, |tap| {
                if let (Some(node), Some(value)) = (tap.node, tap.value.get::<f32>()) {
                    values.insert(node.name().to_owned(), (value.dims().to_vec(), bits(value)));
                }
                Ok(())
            })
            .unwrap();
        values
    });
    assert_eq!(built.keys().collect::<Vec<_>>(), loaded.keys().collect::<Vec<_>>());
    for (name, value) in &built {
        assert!(loaded[name] == *value, "{name}");
    }
}

#[test]
fn quantized_outputs_are_the_same_bits() {
    let (images, labels) = test_set();
    for kinds in [&[LayerKind::Conv2d][..], &[LayerKind::Conv2d, LayerKind::Linear]] {
        let [built, loaded] = models().map(|model| quantize_dynamic(&model, kinds).unwrap());
        let precisions = |model: &Model| -> Vec<(String, Precision)> {
            model.nodes().iter().map(|node| (node.name().to_owned(), node.layer().precision())).collect()
        };
        assert_eq!(precisions(&loaded), precisions(&built));
        assert_eq!(loaded.bytes(), built.bytes());
        let [a, b] = [&built, &loaded].map(|model| model.forward(&images).unwrap());
        assert_eq!(bits(&b), bits(&a), "{kinds:?}");
    }
    // So is what a comparison says of it.
    let [(built, a), (loaded, b)] = models().map(|model| {
        let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
        (compare(&model, &int8, &images, Some(&labels)).unwrap(), int8)
    });
    assert_eq!(loaded.accuracy(), built.accuracy());
    assert_eq!(loaded.sqnr_db, built.sqnr_db);
    assert_eq!(loaded.quantized_weight_bytes(), built.quantized_weight_bytes());
    assert_eq!(a.bytes(), b.bytes());
    let [float, quantized] = loaded.accuracy().unwrap();
    assert!(float > 0.97 && (float - quantized).abs() <= 0.003, "{float} became {quantized}");
}
