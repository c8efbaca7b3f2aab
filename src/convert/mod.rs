//! From one model to another with the same function: what quantization does first.
//!
//! **In**: a [`Model`](crate::nn::Model), which is only borrowed. **Out**: another one, whose
//! [`conversion`](crate::nn::Model::conversion) says what was done and what was left, and why.
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

mod fuse;

pub use fuse::fold_batch_norm;
