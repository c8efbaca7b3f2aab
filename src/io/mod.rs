//! Files in and out.
//!
//! **In**: bytes, or a path, of which nothing is believed before it is checked, and for which nothing is allocated that the
//! bytes could not fill. **Out**: named tensors, or an [`Error`](crate::Error) that names the file and, where the format tells,
//! the tensor; never a panic.
//!
//! - `safetensors` (with the feature of that name): tensors of all types that the format has, and weights under PyTorch's
//!   names, into a [`StateDict`](crate::nn::StateDict) that layers take theirs from.
//!
//! - `compressed_tensors` (with `safetensors`): weights of 2 to 8 bits as vLLM and llm-compressor pack them.
//!
//! - `onnx` (with the feature of that name): networks, as a [`Model`](crate::nn::Model).
//!
//! - `saved` (with both): models and calibrations in the crate's own format, whatever they were quantized by.
//!
//! What a number means is not this room's business: NaN and infinities are read as they are, and refused, or not, by the
//! [`StateDict`](crate::nn::StateDict) that hands them to a layer.

#[cfg(feature = "safetensors")]
pub mod compressed_tensors;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "safetensors")]
pub mod safetensors;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
pub mod saved;
