//! From one model to another: what quantization does before and after it looks at samples.
//!
//! **In**: a [`Model`](crate::nn::Model), which is only borrowed. **Out**: another one, whose
//! [`conversion`](crate::nn::Model::conversion) says what was done and what was left, and why.
//!
//! # The same function
//!
//! [`fold_batch_norm`] takes a batch norm into the convolution before it, exactly but for rounding:
//!
//! ```text
//! (w · x + b) · scale + shift  =  (w · scale) · x + (b · scale + shift)
//! scale = gamma / sqrt(var + eps)      shift = beta - mean · scale      one of each a channel, in f64
//! ```
//!
//! ```
//! use lowprec::convert::fold_batch_norm;
//! use lowprec::kernels::Conv2dGeometry;
//! use lowprec::nn::{BatchNorm2d, Conv2d, Dim, Model};
//! use lowprec::{DType, Tensor};
//!
//! let mut net = Model::builder();
//! let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Any, Dim::Any])?;
//! let conv = Conv2d::new(Conv2dGeometry::new(1, 1, [1, 1]), Tensor::full([1, 1, 1, 1], 3.0)?, None)?;
//! let x = net.add("conv", conv, &[x])?;
//! let one = |value| Tensor::full([1], value);
//! let x = net.add("bn", BatchNorm2d::new(one(2.0)?, one(1.0)?, one(5.0)?, one(4.0)?, 0.0)?, &[x])?;
//! net.output("y", x)?;
//!
//! // y = (3 x - 5) / 2 · 2 + 1
//! let folded = fold_batch_norm(&net.build()?)?;
//! assert_eq!(folded.nodes().len(), 1);
//! assert_eq!(folded.forward(&Tensor::full([1, 1, 1, 1], 1.0)?)?.as_slice(), [-1.0]);
//! # Ok::<(), lowprec::Error>(())
//! ```
//!
//! # Integers from end to end
//!
//! [`QConfig`] says which layers become what; [`StaticPlan`] is what follows from it for a model, before any sample is seen;
//! [`Calibration`] is what samples add, plain data that can be printed, edited and kept; [`convert`] makes the integer model of
//! the three. [`Calibrator`](crate::ptq::Calibrator) runs the samples.
//!
//! Which nodes run in integers:
//!
//! - **Convolutions and linear layers** take codes and write codes: their sums are requantized to the next layer's grid before
//!   they leave the registers, with the sum with another branch that follows (operands of one shape), and ReLU, ReLU6 and Clip,
//!   in the same place, so that nothing is rounded twice. Where nobody reads codes (the last layer, attention's inputs), sums
//!   become floats instead, which loses nothing.
//! - **Sums, products, concatenations, means** (AveragePool, GlobalAveragePool) run on codes when all that they read comes
//!   in codes and an integer layer reads the result; otherwise in float, where they are exact. What is concatenated is written on
//!   the whole's grid in the first place, where nobody else reads it.
//! - **Functions of one element** (Sigmoid, Tanh, HardSwish, Swish, GELU, LeakyReLU, a sum or product with a number, …) become
//!   tables of 256 codes under the same condition. A table rounds its input to 8 bits as well, which costs a little accuracy and
//!   saves two conversions and the function; configure the node as [`LayerConfig::Float`] where that little counts.
//! - **Bounds of each channel** (Min and Max with a constant, as [equalization](crate::ptq::equalize) leaves of a ReLU6) hold codes below, or
//!   above, the codes of the constant.
//! - **What moves elements** (MaxPool, Flatten, Reshape, Transpose, Slice, …) moves codes, on its input's grid.
//! - **Softmax, normalizations and products of two values** stay in float: a masked score of -10000 would stretch
//!   a grid of 256 codes until nothing is left of the others.
//!
//! A layer's weights get their own scales (see [`StaticScheme`]), and its bias is rounded to the unit of its sums; a channel whose bias
//! would not fit there gets a larger scale.

#[cfg(feature = "onnx")]
mod annotated;
mod calibration;
mod fuse;
mod lower;
mod plan;
mod qconfig;
mod roles;

#[cfg(feature = "onnx")]
pub(crate) use annotated::{Annotations, integers};
pub use calibration::Calibration;
pub(crate) use calibration::CodeRange;
pub use fuse::fold_batch_norm;
#[cfg(feature = "onnx")]
pub(crate) use lower::FileName;
pub(crate) use plan::Anchor;
pub use plan::{StaticPlan, convert};
pub use qconfig::{LayerConfig, QConfig, StaticScheme, WeightScales};
#[cfg(feature = "onnx")]
pub(crate) use roles::MOVERS;
pub(crate) use roles::clamp;
