//! Operators from u8 codes to u8 codes: what lies between the products of a network in integers.
//!
//! Each is made of the grids ([`U8Grid`](crate::num::U8Grid)) of its inputs and its output, and takes values of type u8. The
//! results are bit for bit the same on every instruction set and for any number of threads. What moves elements and computes
//! nothing (`Concat`, `Reshape`, `Transpose` and their like) takes codes as it takes any type, as long as all its values are on
//! one grid.

mod pairs;
mod pool;
mod table;

pub use pairs::{QuantizedAdd, QuantizedMul};
pub use pool::{QuantizedAvgPool, QuantizedGlobalAvgPool, QuantizedMaxPool};
pub use table::CodeTable;

use super::check_arity;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Whether the inputs are `count` values of codes; the output is then one too.
///
/// # Errors
/// [`Error::Length`], [`Error::Parameter`], [`Error::Type`].
fn check_codes(name: &'static str, inputs: &[Option<DType>], count: usize) -> Result<Vec<DType>> {
    check_arity(inputs, count, count)?;
    match inputs.iter().flatten().find(|&&dtype| dtype != DType::U8) {
        Some(other) => Err(Error::Type { what: format!("input of an integer {name}"), expected: "u8", got: other.name() }),
        None => Ok(vec![DType::U8]),
    }
}
