//! Observers: how scales are found.
//!
//! **In**: float tensors, one after the other, and then a [`Scheme`](crate::Scheme). **Out**: one scale and zero point for the
//! tensor, for each channel or for each group ([`QParams`](crate::QParams)). In between an [`Observer`](crate::Observer) keeps
//! a summary whose size does not depend on how much was seen, and two of them can be merged: batches may be observed apart.
//!
//! - [`MinMax`]: the exact range of all that was seen, `min` and `max` for each scale. Right for weights, and for activations
//!   without outliers; of one element a thousand times as large as the others it leaves these almost no codes.
//!
//! ```text
//! asymmetric   scale = (max(max, 0) - min(min, 0)) / (qmax - qmin)     zero_point = round(qmin - min(min, 0) / scale)
//! symmetric    scale = max(|min|, |max|) / qmax                        zero_point = 0
//! ```
//!
//! The edges (constants, zeros, subnormal and huge ranges) are decided by [`affine_qparams`](crate::num::affine_qparams).
//!
//! ```
//! use lowprec::quant::observer::MinMax;
//! use lowprec::{Granularity, Observer, Scheme, Tensor};
//!
//! let batch = |values: [f32; 4]| Tensor::new([2, 2], values.to_vec());
//! let (mut first, mut second) = (MinMax::new(Granularity::PerTensor), MinMax::new(Granularity::PerTensor));
//! first.observe(&batch([0.0, 0.5, 1.0, -1.0])?)?;
//! second.observe(&batch([2.0, 4.1, 0.0, 0.0])?)?;
//! first.merge(&second)?;
//! assert_eq!(first.ranges(), [Some((-1.0, 4.1))]);
//! let params = first.qparams(&Scheme::UINT8_ACTIVATION)?;
//! assert_eq!(params.at(0), (5.1 / 255.0, 50));
//! # Ok::<(), lowprec::Error>(())
//! ```

mod min_max;

pub use min_max::MinMax;
