//! Data: shapes, float tensors, quantized tensors.
//!
//! A [`Tensor`] owns its elements and shares them with its clones; a [`QuantizedTensor`] holds packed codes and the
//! [`QParams`] that give them meaning; [`Granularity`] says which elements share a scale.

mod dense;
mod granularity;
mod qparams;
mod quantized;
mod shape;

pub use dense::{DType, Element, Tensor, Value};
pub use granularity::{Granularity, Runs};
pub use qparams::QParams;
pub use quantized::QuantizedTensor;
pub(crate) use quantized::holds;
pub use shape::Shape;
pub(crate) use shape::{elements, repeat};
