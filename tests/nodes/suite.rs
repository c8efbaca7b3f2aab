//! The selection of ONNX's own tests in `tests/fixtures/onnx_nodes.safetensors`.

use std::collections::BTreeMap;

use lowprec::Value;
use lowprec::io::safetensors;
use lowprec::num::SmallFloat;

/// One test.
#[derive(Default)]
pub struct Case {
    /// The bytes of the ONNX file.
    pub model: Vec<u8>,
    pub inputs: BTreeMap<String, Value>,
    pub outputs: BTreeMap<String, Value>,
    /// Floats may be off by `atol + rtol * |expected|`.
    pub rtol: f64,
    pub atol: f64,
}

pub struct Suite {
    pub cases: BTreeMap<String, Case>,
    /// Tests that use each operator.
    pub operators: BTreeMap<String, usize>,
}

impl Suite {
    pub fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/onnx_nodes.safetensors");
        let file = safetensors::read_tensors_file(path).unwrap();
        let mut cases: BTreeMap<String, Case> = BTreeMap::new();
        for (name, value) in file.tensors {
            let (test, part) = name.split_once('/').unwrap();
            let case = cases.entry(test.to_owned()).or_default();
            match part.split_once('/') {
                Some(("i", input)) => drop(case.inputs.insert(input.to_owned(), value)),
                Some(("o", output)) => drop(case.outputs.insert(output.to_owned(), value)),
                _ => case.model = value.bytes().to_vec(),
            }
        }
        for (test, case) in &mut cases {
            let (rtol, atol) = file.metadata[test].split_once(' ').unwrap();
            (case.rtol, case.atol) = (rtol.parse().unwrap(), atol.parse().unwrap());
        }
        Suite { cases, operators: serde_json::from_str(&file.metadata["operators"]).unwrap() }
    }
}

/// The elements of a value of floats.
pub fn floats(value: &Value) -> Vec<f64> {
    fn small<T: SmallFloat>(x: &[T]) -> Vec<f64> {
        x.iter().map(|x| x.to_f32().into()).collect()
    }
    match value {
        Value::F32(x) => x.as_slice().iter().map(|&x| x.into()).collect(),
        Value::F64(x) => x.as_slice().to_vec(),
        Value::F16(x) => x.as_slice().iter().map(|x| x.to_f64()).collect(),
        Value::Bf16(x) => x.as_slice().iter().map(|x| x.to_f64()).collect(),
        Value::F8E4M3(x) => small(x.as_slice()),
        Value::F8E4M3Fnuz(x) => small(x.as_slice()),
        Value::F8E5M2(x) => small(x.as_slice()),
        Value::F8E5M2Fnuz(x) => small(x.as_slice()),
        Value::F8E8M0(x) => small(x.as_slice()),
        Value::F6E2M3(x) => small(x.as_slice()),
        Value::F6E3M2(x) => small(x.as_slice()),
        Value::F4E2M1(x) => small(x.as_slice()),
        other => panic!("a tensor of {}", other.dtype()),
    }
}
