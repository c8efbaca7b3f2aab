//! Low-precision quantization of neural networks: int8 arithmetic that really runs in integers, and the proof of what it
//! cost.
//!
//! A trained network comes in as an ONNX file, as weights under PyTorch's names, or as layers written in Rust; [`quantize_dynamic`] turns
//! its convolutions and linear layers into int8 or says why not, and [`quantize_static`], given samples, the whole network between
//! them too; [`quantize_weights`] makes the weights alone small, down to 2 bits; [`compare`] shows what that did to accuracy, error by
//! layer, bytes, operations, energy and time.
//!
//! ```
//! use lowprec::kernels::Conv2dGeometry;
//! use lowprec::nn::{Conv2d, Dim, Model};
//! use lowprec::{DType, LayerKind, Tensor};
//!
//! let mut net = Model::builder();
//! let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Any, Dim::Any])?;
//! let conv = Conv2d::new(Conv2dGeometry::new(1, 1, [2, 2]), Tensor::new([1, 1, 2, 2], vec![0.5, -1.0, 0.25, 1.0])?, None)?;
//! let y = net.add("conv", conv, &[x])?;
//! net.output("y", y)?;
//! let model = net.build()?;
//!
//! let int8 = lowprec::quantize_dynamic(&model, &[LayerKind::Conv2d])?;
//! let image = Tensor::new([1, 1, 2, 2], vec![1.0, 2.0, 3.0, 4.0])?;
//! let (y, expected) = (int8.forward(&image)?, model.forward(&image)?);
//! assert!((y.as_slice()[0] - expected.as_slice()[0]).abs() < 0.05);
//! # Ok::<(), lowprec::Error>(())
//! ```
//!
//! # The map
//!
//! A room uses only rooms above it.
//!
//! | room | holds |
//! |---|---|
//! | [`error`] | the one error type |
//! | [`num`] | the numeric contract: rounding, ranges to scales, element types |
//! | [`kernels`] | slices in, slices out: products, convolutions, and all `unsafe` code |
//! | [`tensor`] | [`Shape`], [`Tensor`], [`QParams`], [`QuantizedTensor`] |
//! | [`quant`] | [`Scheme`], [`Observer`], [`Quantizer`], [`WeightFormat`](quant::WeightFormat) |
//! | [`metrics`] | SQNR, KL, top-1, what became of small weights: plain functions |
//! | [`nn`] | [`Model`], [`Layer`], layers in float and int8, [`Executor`](nn::Executor) |
//! | [`convert`] | one model to another: batch norm folded; [`QConfig`], [`Calibration`], the integer graph |
//! | [`train`] | gradients, losses, optimizers; quantization-aware and fixed-point training |
//! | [`ptq`] | [`quantize_dynamic`], [`quantize_static`], [`quantize_weights`] and their builders; equalization, bias correction, SmoothQuant, AWQ, GPTQ, learned rounding |
//! | [`io`] | ONNX in and out, safetensors, models and calibrations saved |
//! | [`eval`] | [`compare`] and its report, [`quantize_to_target`] |
//! | [`guide`] | pages: from `torch.ao.quantization`, why it is slower or less accurate, which scheme when, which method when |
//!
//! # Features
//!
//! - `parallel` (default): large kernel calls use the caller's rayon pool. Without it all runs on the caller's thread.
//! - `safetensors` (default): `io::safetensors`; with `onnx`, `io::saved` too, the crate's own format for quantized models.
//! - `onnx` (default): `io::onnx`, also as `lowprec::onnx`.
//! - `serde`: saves and loads calibrations, schemes, configurations and what observers saw, and writes reports.
//! - `ndarray`: tensors from its views, and as its views and arrays. Half floats (`f16`, `bf16` of the `half` crate) are element types
//!   without any feature.

pub mod convert;
pub mod error;
pub mod eval;
pub mod guide;
pub mod io;
pub mod kernels;
pub mod metrics;
pub mod nn;
pub mod num;
mod progress;
pub mod ptq;
pub mod quant;
pub mod tensor;
pub mod train;

pub use convert::{Calibration, QConfig};
pub use error::{Error, Result};
pub use eval::{Report, compare, quantize_to_target};
#[cfg(feature = "onnx")]
pub use io::onnx;
pub use nn::{Layer, LayerKind, Model, Precision};
pub use num::{I2, I4, NonFinite, QuantElem, U2, U4};
pub use progress::{Progress, Step};
pub use ptq::{quantize_dynamic, quantize_static, quantize_weights};
pub use quant::{Observer, Quantizer, Scheme};
pub use tensor::{DType, Granularity, QParams, QuantizedTensor, Shape, Tensor, Value};
pub use train::prepare_qat;

/// The README's code, compiled and run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
