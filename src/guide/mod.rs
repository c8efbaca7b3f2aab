//! Pages to read: nothing here runs, but for their examples.

#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[doc = include_str!("from_torch.md")]
pub mod from_torch {}

#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[doc = include_str!("slower_or_less_accurate.md")]
pub mod slower_or_less_accurate {}
