//! Pages to read: nothing here runs, but for their examples.

#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[doc = include_str!("from_torch.md")]
pub mod from_torch {}

#[doc = include_str!("which_scheme.md")]
#[doc = include_str!("schemes.md")]
pub mod which_scheme {}

#[doc = include_str!("which_method.md")]
pub mod which_method {}

#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[doc = include_str!("slower_or_less_accurate.md")]
pub mod slower_or_less_accurate {}
