//! Which element types operators compute with, and how.

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::num::{bf16, f16};
use crate::tensor::DType;

/// A float that is computed with in f32.
pub(super) trait Float: Pod + Send + Sync {
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
}

impl Float for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

macro_rules! halves {
    ($($type:ty)*) => {
        $(impl Float for $type {
            #[inline(always)]
            fn from_f32(x: f32) -> $type {
                <$type>::from_f32(x)
            }

            #[inline(always)]
            fn to_f32(self) -> f32 {
                self.to_f32()
            }
        })*
    };
}
halves!(f16 bf16);

/// f32, f64, f16 or bf16.
pub(super) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16)
}

/// An integer of 8 to 64 bits.
pub(super) fn is_integer(dtype: DType) -> bool {
    dtype.is_integer() && dtype.bits() >= 8
}

/// [`is_float`] or [`is_integer`].
pub(super) fn is_number(dtype: DType) -> bool {
    is_float(dtype) || is_integer(dtype)
}

/// The type of input `i`, if `takes` accepts it.
///
/// # Errors
/// [`Error::Type`].
pub(super) fn check_type(
    operator: &str,
    inputs: &[Option<DType>],
    i: usize,
    expected: &'static str,
    takes: impl Fn(DType) -> bool,
) -> Result<DType> {
    let dtype = inputs[i].ok_or_else(|| Error::parameter("input", i, "was left out, and must be given"))?;
    if takes(dtype) {
        return Ok(dtype);
    }
    Err(Error::Type { what: format!("input {i} of {operator}"), expected, got: dtype.name() })
}
