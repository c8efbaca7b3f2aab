//! ONNX files that were written: read again, they give the same bits. (`tests/reference/exported.py` runs them in ONNX Runtime.)

use lowprec::onnx::{self, Export};
use lowprec::{Error, LayerKind, Model, Value, metrics};

use crate::networks::{Case, cases};
use crate::nodes::suite::Suite;

/// The first sample alone: DynamicQuantizeLinear has one range for the whole batch.
fn first(case: &Case) -> Vec<(String, Value)> {
    let take = |(name, value): &(String, Value)| {
        let value = match value {
            Value::F32(tensor) => Value::F32(tensor.slice(0, 0..1).unwrap()),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    case.inputs.iter().map(take).collect()
}

fn run(model: &Model, inputs: &[(String, Value)]) -> Vec<(String, Value)> {
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    model.run(&inputs).unwrap()
}

#[test]
fn every_network_comes_back_bit_for_bit() {
    for case in cases() {
        let written = Export::new(&case.model).to_bytes();
        if ["sequence dynamic", "network dynamic per tensor"].contains(&case.name.as_str()) {
            let error = written.unwrap_err();
            assert!(matches!(error.kind(), Error::Unsupported { .. }), "{}: {error}", case.name);
            continue;
        }
        let again = onnx::from_bytes(&written.unwrap()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let inputs = if case.name.contains("dynamic") { first(&case) } else { case.inputs.clone() };
        let (expected, got) = (run(&case.model, &inputs), run(&again, &inputs));
        if case.model.kinds().iter().any(|(kind, _)| *kind == LayerKind::BatchNorm2d) {
            // Files hold the scale and shift of a batch norm in f32, where a model has them in f64.
            let floats = |outputs: &[(String, Value)]| outputs[0].1.get::<f32>().unwrap().clone();
            let error = metrics::relative_error(floats(&expected).as_slice(), floats(&got).as_slice()).unwrap();
            assert!(error < 1e-6, "{}: {error}", case.name);
            continue;
        }
        let same = expected.iter().zip(&got).all(|((a, x), (b, y))| a == b && x.shape() == y.shape() && x.bytes() == y.bytes());
        assert!(same, "{}: {expected:?} {got:?}", case.name);
        if case.name.ends_with("static") {
            // What was integer is integer again.
            let layers = |model: &Model| model.nodes().iter().filter(|node| node.layer().kernel_name().is_some()).count();
            assert_eq!(layers(&again), layers(&case.model), "{}", case.name);
        }
    }
}

#[test]
fn every_operator_comes_back() {
    let same = |a: &Value, b: &Value| (a.dtype(), a.shape(), a.bytes()) == (b.dtype(), b.shape(), b.bytes());
    let (mut problems, mut unspoken) = (Vec::new(), Vec::new());
    for (name, case) in &Suite::load().cases {
        let model = onnx::from_bytes(&case.model).unwrap();
        let inputs: Vec<(&str, &Value)> = case.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let given = model.inputs().iter().map(|input| case.inputs[input.name()].clone()).collect();
        let bytes = match Export::new(&model).with_inputs(given).to_bytes() {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), Error::Unsupported { .. }) => {
                unspoken.push(format!("{name}: {error}"));
                continue;
            }
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let again = match onnx::from_bytes(&bytes) {
            Ok(again) => again,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (expected, got) = (model.run(&inputs).unwrap(), again.run(&inputs).unwrap());
        if !expected.iter().zip(&got).all(|((a, x), (b, y))| a == b && same(x, y)) {
            problems.push(format!("{name}: another result"));
        }
    }
    assert!(problems.is_empty(), "{} problems: {problems:#?}", problems.len());
    println!("{unspoken:#?}");
}
