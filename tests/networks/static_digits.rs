//! Static quantization of trained networks: the accuracy that is left, and what the report says of it.

use lowprec::io::safetensors;
use lowprec::{Model, Precision, QConfig, Tensor, compare, metrics, onnx, quantize_static};

fn file(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Images as the networks take them, and the digits that they show.
pub fn images(part: &str) -> (Tensor, Vec<usize>) {
    let digits = safetensors::read_tensors_file(file("examples/data/digits.safetensors")).unwrap();
    let find = |name: String| digits.tensors.iter().find(|(other, _)| *other == name).unwrap().1.get::<u8>().unwrap().clone();
    let (images, labels) = (find(format!("{part}.images")), find(format!("{part}.labels")));
    let scaled = images.as_slice().iter().map(|&x| f32::from(x) / 16.0).collect();
    (Tensor::new(images.dims().to_vec(), scaled).unwrap(), labels.as_slice().iter().map(|&label| label.into()).collect())
}

pub fn network(name: &str) -> Model {
    onnx::load(file(&format!("tests/fixtures/{name}.onnx"))).unwrap()
}

/// Of each network, decibels of the logits that PyTorch's FX quantization for x86 and the best of ONNX Runtime's calibrators keep
/// on the same samples (`benches/peers/static_digits.py`).
const PEERS: [(&str, f64, f64); 4] =
    [("digits_cnn", 34.75, 38.09), ("digits_residual", 31.98, 37.36), ("digits_separable", 28.88, 37.29), ("digits_squeeze", 25.52, 31.46)];

#[test]
fn more_is_kept_than_by_others_and_no_accuracy_is_lost() {
    let ((samples, _), (test, labels)) = (images("train"), images("test"));
    let samples = samples.slice(0, 0..100).unwrap();
    for (name, fx, ort) in PEERS {
        let float = network(name);
        let int8 = quantize_static(&float, [&samples], &QConfig::default()).unwrap();
        let (expected, logits) = (float.forward(&test).unwrap(), int8.forward(&test).unwrap());
        let db = metrics::sqnr_db(expected.as_slice(), logits.as_slice()).unwrap();
        assert!(db >= fx + 3.0 && db >= ort, "{name}: {db} dB beside {fx} and {ort}");
        let right = |logits: &Tensor| -> usize {
            let top = metrics::top1(logits.as_slice(), 10).unwrap();
            top.iter().zip(&labels).filter(|(top, label)| top == label).count()
        };
        let (before, after) = (right(&expected), right(&logits));
        assert!(after + 1 >= before, "{name}: {after} right, {before} in float");
        // Convolutions and linear layers all run on codes.
        let layers = int8.nodes().iter().filter(|node| node.layer().kernel_name().is_some()).count();
        let weights = float.nodes().iter().filter(|node| node.layer().weight_bytes() > 0).count();
        assert_eq!(layers, weights, "{name}");
    }
}

#[test]
fn the_report_sees_codes() {
    let ((samples, _), (test, labels)) = (images("train"), images("test"));
    let float = network("digits_residual");
    let int8 = quantize_static(&float, [&samples.slice(0, 0..100).unwrap()], &QConfig::default()).unwrap();
    let report = compare(&float, &int8, &test, Some(&labels)).unwrap();
    // Of every value that both models have, in codes or not.
    let layers: Vec<&str> = report.layers.iter().map(|layer| layer.name.as_str()).collect();
    let codes = int8.nodes().iter().filter(|node| int8.grid(node.outputs()[0]).is_some() && node.layer().precision() == Precision::Int8);
    for node in codes {
        assert!(layers.contains(&node.name()), "{} of {layers:?}", node.name());
    }
    assert!(report.layers.iter().all(|layer| layer.errors.sqnr_db > 25.0), "{report}");
    // All that is left of floats is their way in and out.
    let [before, after] = &report.cost;
    assert_eq!((after.macs_f32, after.macs_int8), (0, before.macs_f32));
    assert!(after.energy.activations < 0.3 * before.energy.activations);
}
