//! `lowprec`
pub mod error;
pub mod num;
mod progress;
pub mod tensor;

pub use error::{Error, Result};
pub use num::NonFinite;
pub use progress::{Progress, Step};
pub use tensor::{DType, Shape, Tensor, Value};
