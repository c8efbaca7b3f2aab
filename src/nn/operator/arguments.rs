//! Lists that come as an attribute in old opsets and as an input in newer ones.

use super::{Facts, resolve_axis};
use crate::error::{Error, Result};
use crate::tensor::{DType, Value};

/// Whether input `i`, if it is there, is a list of integers.
///
/// # Errors
/// [`Error::Type`].
pub(crate) fn check_ints(what: &'static str, inputs: &[Option<DType>], i: usize) -> Result<()> {
    match inputs.get(i).copied().flatten() {
        Some(dtype) if !matches!(dtype, DType::I64 | DType::I32) => {
            Err(Error::Type { what: what.into(), expected: "i64 or i32", got: dtype.name() })
        }
        _ => Ok(()),
    }
}

/// The list of input `i` if it is there, else the attribute.
pub(super) fn ints(attribute: Option<&Vec<i64>>, facts: &mut Facts<'_>, i: usize) -> Result<Option<Vec<i64>>> {
    Ok(facts.ints(i)?.or_else(|| attribute.cloned()))
}

/// Most axes that a list may name: they are looked up one by one.
const MOST: usize = 256;

/// The axes that a list names, each at most once.
///
/// # Errors
/// [`Error::Parameter`] for an axis that does not exist or comes twice, and for more axes than any tensor has use for.
pub(super) fn distinct_axes(list: &[i64], rank: usize) -> Result<Vec<usize>> {
    if list.len() > MOST {
        return Err(Error::parameter("number of axes", list.len(), format!("must be at most {MOST}")));
    }
    let mut axes: Vec<usize> = Vec::with_capacity(list.len().min(rank));
    for &axis in list {
        let resolved = resolve_axis(axis, rank)?;
        if axes.contains(&resolved) {
            return Err(Error::parameter("axes", list, format!("names axis {resolved} twice: name each once")));
        }
        axes.push(resolved);
    }
    Ok(axes)
}

/// A length from a list of integers.
///
/// # Errors
/// [`Error::Parameter`] when it is negative.
pub(super) fn length(what: &'static str, value: i64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::parameter(what, value, "must be 0 or more"))
}

/// The one number in a value, as the 64-bit integer that it is or rounds down to.
///
/// # Errors
/// [`Error::Length`] when there is not exactly one, [`Error::Type`] when it is no number.
pub(super) fn one_int(what: &'static str, value: &Value) -> Result<i64> {
    if value.shape().elements() != 1 {
        return Err(Error::length(what, 1, value.shape().elements()));
    }
    Ok(match value {
        Value::I64(x) => x.as_slice()[0],
        Value::I32(x) => x.as_slice()[0].into(),
        Value::I16(x) => x.as_slice()[0].into(),
        Value::I8(x) => x.as_slice()[0].into(),
        Value::U64(x) => i64::try_from(x.as_slice()[0]).unwrap_or(i64::MAX),
        Value::U32(x) => x.as_slice()[0].into(),
        Value::U16(x) => x.as_slice()[0].into(),
        Value::U8(x) => x.as_slice()[0].into(),
        Value::F32(x) => x.as_slice()[0] as i64,
        Value::F64(x) => x.as_slice()[0] as i64,
        Value::F16(x) => x.as_slice()[0].to_f32() as i64,
        Value::Bf16(x) => x.as_slice()[0].to_f32() as i64,
        other => return Err(Error::Type { what: what.into(), expected: "a number", got: other.dtype().name() }),
    })
}
