//! Post-training quantization: verbs that take a trained model and return a quantized one.
//!
//! - [`quantize_dynamic`]: weights in int8, activations measured and quantized at run time. Needs no data.
mod dynamic;

pub use dynamic::{DynamicQuantization, quantize_dynamic};
