//! Data: shapes, tensors of every element type, quantized tensors.
//!
//! A [`Tensor`] owns its elements and shares them with its clones; a [`Value`] is one whose type is known only at run time; a [`QuantizedTensor`] holds packed codes and the
//! [`QParams`] that give them meaning; [`Granularity`] says which elements share a scale.

mod dense;
mod element;
mod granularity;
#[cfg(feature = "ndarray")]
mod ndarray;
mod qparams;
mod quantized;
mod shape;
mod value;

pub use dense::Tensor;
pub use element::{DType, Element, Value};
pub(crate) use element::{with_element, with_tensor};
pub use granularity::{Granularity, Runs};
pub use qparams::QParams;
pub use quantized::QuantizedTensor;
pub(crate) use quantized::holds;
pub use shape::Shape;
pub(crate) use shape::{elements, repeat};
