//! Data: shapes, float tensors, quantized tensors.
mod dense;
mod shape;

pub use dense::{DType, Element, Tensor, Value};
pub use shape::Shape;
