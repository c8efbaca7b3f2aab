//! Schemes, observers and weight formats: what they promise, and the numbers of others.

#[path = "../support/mod.rs"]
mod support;

mod histogram;
mod least_squares;
mod observers;
#[cfg(feature = "safetensors")]
mod observers_peers;
#[cfg(feature = "serde")]
mod observers_saved;
#[cfg(feature = "safetensors")]
mod small_floats;
mod trellis;
mod uniform;
mod weight_formats;
mod weight_formats_optimal;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod weight_formats_peers;
mod weight_formats_ranges;
mod weight_formats_reference;
