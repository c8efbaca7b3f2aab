//! Training: gradients, optimizers, fake quantization, fixed point.
#![cfg(feature = "safetensors")]

mod fixed_point;
mod gradients;
mod loops;
mod operators;
#[cfg(feature = "onnx")]
mod qat;
mod slices;

use lowprec::io::safetensors;
use lowprec::{Tensor, metrics};

/// Tensors of a fixture.
struct Fixture(lowprec::nn::StateDict);

impl Fixture {
    fn new(name: &str) -> Self {
        Fixture(safetensors::read_file(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap())
    }

    fn value(&self, name: &str) -> &lowprec::Value {
        self.0.get(name).unwrap_or_else(|| panic!("fixture `{name}`"))
    }

    fn floats(&self, name: &str) -> Tensor {
        self.value(name).get::<f32>().unwrap_or_else(|| panic!("`{name}` is not of floats")).clone()
    }

    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}

fn close(what: &str, got: &[f32], expected: &[f32], limit: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let error = metrics::relative_error(expected, got).unwrap();
    assert!(error <= limit, "{what}: {error} relative\n{got:?}\n{expected:?}");
}
