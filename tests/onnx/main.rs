//! ONNX files: what they say, run as the standard has it.

#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[allow(dead_code)]
#[path = "../../examples/quantize_dynamic.rs"]
mod example;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[path = "../nodes/mod.rs"]
mod nodes;

#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod digits;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod node_suite;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod quantized;
#[cfg(feature = "safetensors")]
mod rules;
