//! Saving and loading: what comes back is what went in, and the file holds no more than it must.

use std::collections::BTreeMap;

use lowprec::io::{safetensors, saved};
use lowprec::kernels::RangeOf;
use lowprec::ptq::Calibrator;
use lowprec::quant::{QuantizedWeights, WeightFormat};
use lowprec::{Calibration, LayerKind, Model, QConfig, QParams, Tensor, Value};

use crate::networks::{cases, digits, images};
use crate::nodes::suite::Suite;
use crate::support::Random;

fn again(model: &Model) -> Model {
    saved::read(&saved::write(model).unwrap()).unwrap()
}

#[test]
fn every_network_comes_back_bit_for_bit() {
    for case in cases() {
        let loaded = again(&case.model);
        assert_eq!(case.run(&loaded), case.run(&case.model), "{}", case.name);
        assert_eq!(loaded.to_string(), case.model.to_string(), "{}", case.name);
        assert_eq!(loaded.bytes(), case.model.bytes(), "{}", case.name);
        // The same file again: nothing drifts.
        assert!(saved::write(&loaded).unwrap() == saved::write(&case.model).unwrap(), "{}", case.name);
    }
}

/// Files of before inputs could have one range for the tensor say more of the codes, and nothing of the range.
#[test]
fn a_file_of_before_is_read() {
    let written = |input: &str| {
        let json = format!(
            r#"{{"version":1,"model":{{"inputs":[{{"name":"x","dtype":"f32","dims":[null,2]}}],"constants":[],"nodes":[{{"name":"fc","layer":{{"QuantizedLinear":{{"codes":{{"axis":0}}{input}}}}},"reads":["x"],"writes":["fc"]}}],"outputs":[{{"name":"y","value":"fc"}}]}}}}"#
        );
        let scales = Value::from(Tensor::new([3], vec![0.5f32, 0.25, 2.0]).unwrap());
        let codes = Value::from(Tensor::new([3, 2], vec![1i8, -127, 30, 64, 127, 0]).unwrap());
        let tensors = [("fc.weight", &codes), ("fc.weight_scale", &scales)];
        safetensors::write(tensors, &BTreeMap::from([("lowprec".to_owned(), json)])).unwrap()
    };
    let before = saved::read(&written(r#","input":{"qmin":0,"qmax":255,"symmetric":false,"saturates":false}"#)).unwrap();
    let now = saved::read(&written("")).unwrap();
    let one = saved::read(&written(r#","input":{"of_tensor":true}"#)).unwrap();
    let range = |model: &Model| model.node("fc").unwrap().layer().input_range();
    assert_eq!([&before, &now, &one].map(range), [Some(RangeOf::Row), Some(RangeOf::Row), Some(RangeOf::Tensor)]);
    let x = Random(3).tensor([4, 2], 1.0);
    assert_eq!(before.forward(&x).unwrap(), now.forward(&x).unwrap());
    assert_ne!(one.forward(&x).unwrap(), now.forward(&x).unwrap());
    assert!(saved::read(&written(r#","input":{"of":"tensor"}"#)).is_err());
}

#[test]
fn every_operator_comes_back() {
    let same = |a: &Value, b: &Value| (a.dtype(), a.shape(), a.bytes()) == (b.dtype(), b.shape(), b.bytes());
    let mut problems = Vec::new();
    for (name, case) in &Suite::load().cases {
        let model = lowprec::onnx::from_bytes(&case.model).unwrap();
        let inputs: Vec<(&str, &Value)> = case.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let loaded = match saved::write(&model).and_then(|bytes| saved::read(&bytes)) {
            Ok(loaded) => loaded,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (expected, got) = (model.run(&inputs).unwrap(), loaded.run(&inputs).unwrap());
        if !expected.iter().zip(&got).all(|((a, x), (b, y))| a == b && same(x, y)) {
            problems.push(format!("{name}: another result"));
        }
    }
    assert!(problems.is_empty(), "{} problems: {problems:#?}", problems.len());
}

/// Bytes of the tensors of a file.
fn tensors(bytes: &[u8]) -> usize {
    bytes.len() - 8 - u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn a_file_holds_its_numbers_and_nothing_twice() {
    for case in cases() {
        assert_eq!(tensors(&saved::write(&case.model).unwrap()), case.model.stored_bytes(), "{}", case.name);
        // All but batch norms: four lists in a file, and two in memory.
        for node in case.model.nodes().iter().filter(|node| node.layer().kind() != LayerKind::BatchNorm2d) {
            let (stored, held) = (node.layer().stored_bytes(), node.layer().bytes());
            assert!(stored <= held, "{}, {}: {stored} bytes stored, {held} held", case.name, node.name());
        }
    }
    // With tensors among the parameters of operators.
    let mut with_tensors = 0;
    for (name, case) in &Suite::load().cases {
        let model = lowprec::onnx::from_bytes(&case.model).unwrap();
        let stored = model.stored_bytes();
        assert_eq!(tensors(&saved::write(&model).unwrap()), stored, "{name}");
        let constants: usize = model.constants().iter().map(|(_, value)| value.to_packed().len()).sum();
        with_tensors += usize::from(name.contains("constantofshape") && stored > constants);
    }
    assert!(with_tensors > 0);
}

#[test]
fn a_calibration_comes_back() {
    let (samples, _) = images("train");
    let mut calibrator = Calibrator::new(&digits("digits_residual"), &QConfig::default()).unwrap();
    calibrator.observe(&[("image", &samples.slice(0, 0..20).unwrap().into())]).unwrap();
    let mut calibration = calibrator.finish().unwrap();
    // Scales that no decimal of few digits is.
    calibration.insert("smallest", QParams::per_tensor(f32::from_bits(1), -3, -128, 127).unwrap());
    calibration.insert("largest", QParams::per_tensor(f32::MAX, 255, 0, 255).unwrap());
    calibration.insert("third", QParams::per_tensor(1.0 / 3.0, 7, 0, 15).unwrap());
    let bytes = saved::write_calibration(&calibration).unwrap();
    assert_eq!(saved::read_calibration(&bytes).unwrap(), calibration);
    assert_eq!(saved::read_calibration(&saved::write_calibration(&Calibration::new()).unwrap()).unwrap(), Calibration::new());
    // Each kind of file says which it is.
    let error = saved::read(&bytes).unwrap_err().to_string();
    assert!(error.contains("no model"), "{error}");
}

/// Every kind of levels, of scales and of groups.
const FORMATS: [&str; 24] = [
    "int8",
    "int4:g32",
    "int3:g32:f16",
    "int2:tensor",
    "int5:channel:mse",
    "uint4:g32",
    "uint3:g16:bf16",
    "offset4:g32:f16",
    "offset2:g32",
    "midrise3:g32",
    "pot4:g32",
    "apot4",
    "gauss3:g32",
    "nf4:g64",
    "nf4:g64:double",
    "fp4:g32",
    "fp8e4m3",
    "fp6e2m3:g32",
    "mxfp4",
    "mxint8",
    "nvfp4",
    "kmeans3:g32:own",
    "kmeans4:zero",
    "int4:g32:largest=0.01",
];

#[test]
fn weights_of_every_format_come_back() {
    let weight = Random(8).tensor([24, 64], 0.3);
    let all: Vec<(String, QuantizedWeights)> = FORMATS
        .iter()
        .chain(&["[-1,-0.25,0,0.5,1]:g32", "quantile4:g64", "int4:g32:sensitive=0.02", "int8:e8m0"])
        .map(|text| (format!("layer {text}"), text.parse::<WeightFormat>().unwrap().quantize(&weight).unwrap()))
        .collect();
    let bytes = saved::write_weights(all.iter().map(|(name, weights)| (name.as_str(), weights))).unwrap();
    let again = saved::read_weights(&bytes).unwrap();
    assert_eq!(again.len(), all.len());
    for (name, weights) in &all {
        assert_eq!(&again[name], weights, "{name}");
        assert_eq!(again[name].dequantize(), weights.dequantize(), "{name}");
        // What is held is what is written, but for the one number of all scales of some, which the metadata have.
        let one = saved::write_weights([(name.as_str(), weights)]).unwrap();
        let (written, held) = (tensors(&one), weights.bytes());
        assert!(written <= held + 8 && held <= written + 8, "{name}: {written} bytes written, {held} held");
    }
    // Cut and corrupted.
    let header = bytes.len() - tensors(&bytes);
    let mut random = Random(11);
    for _ in 0..300 {
        let mut other = bytes.clone();
        let at = random.next() as usize % header;
        other[at] = random.next() as u8;
        let _ = saved::read_weights(&other);
        assert!(saved::read_weights(&bytes[..random.next() as usize % bytes.len()]).is_err());
    }
}
