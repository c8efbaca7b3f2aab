//! What is known of an operator's inputs before it runs.

use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, Value};

/// Shapes of an operator's inputs, and their values for who asks.
///
/// Asking for a value that depends on the model's inputs ties the plan to what was given there, so operators ask only for
/// what their output's shape depends on.
pub(crate) struct Facts<'a> {
    pub shapes: &'a [Option<Shape>],
    pub value: &'a mut dyn FnMut(usize) -> Result<Value>,
}

impl Facts<'_> {
    /// Number of inputs, those left out at the end included.
    pub fn count(&self) -> usize {
        self.shapes.len()
    }

    /// Whether input `i` is there.
    pub fn has(&self, i: usize) -> bool {
        matches!(self.shapes.get(i), Some(Some(_)))
    }

    /// Shape of input `i`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it was left out.
    pub fn shape(&self, i: usize) -> Result<&Shape> {
        self.shapes.get(i).and_then(Option::as_ref).ok_or_else(|| Error::parameter("input", i, "was left out, and must be given"))
    }

    /// Value of input `i`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it was left out, and those of computing it.
    pub fn value(&mut self, i: usize) -> Result<Value> {
        self.shape(i)?;
        (self.value)(i)
    }

    /// Input `i` as a list of integers, i64 or i32; `None` when it was left out.
    ///
    /// # Errors
    /// [`Error::Type`] for other elements, and those of computing it.
    pub fn ints(&mut self, i: usize) -> Result<Option<Vec<i64>>> {
        if !self.has(i) {
            return Ok(None);
        }
        match self.value(i)? {
            Value::I64(list) => Ok(Some(list.into_vec())),
            Value::I32(list) => Ok(Some(list.as_slice().iter().map(|&x| i64::from(x)).collect())),
            other => Err(Error::Type { what: "list of integers".into(), expected: "i64 or i32", got: other.dtype().name() }),
        }
    }
}

/// Whether there are between `least` and `most` inputs and the first `least` are there.
///
/// # Errors
/// [`Error::Length`], [`Error::Parameter`].
pub(crate) fn check_arity(inputs: &[Option<DType>], least: usize, most: usize) -> Result<()> {
    if inputs.len() < least || inputs.len() > most {
        return Err(Error::length("list of inputs", if inputs.len() < least { least } else { most }, inputs.len()));
    }
    match inputs[..least].iter().position(Option::is_none) {
        Some(i) => Err(Error::parameter("input", i, "was left out, and must be given")),
        None => Ok(()),
    }
}

/// The axis that a signed number means, counted from the end when negative.
///
/// # Errors
/// [`Error::Parameter`] when there is none.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Result<usize> {
    let bound = rank as i64;
    match axis {
        0.. if axis < bound => Ok(axis as usize),
        _ if axis < 0 && axis >= -bound => Ok((axis + bound) as usize),
        _ => Err(Error::parameter("axis", axis, format!("must lie within -{rank}..{rank} for a tensor of {rank} axes"))),
    }
}

/// The shape that both broadcast to: aligned at the end, an axis of length 1 stretches to the other's.
///
/// # Errors
/// [`Error::Shape`] when two lengths differ and neither is 1.
pub(crate) fn broadcast_dims(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |own| dims[own]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (1, length) | (length, 1) => Ok(length),
            (length, other) if length == other => Ok(length),
            _ => Err(Error::shape("second operand", format!("one that broadcasts with {a:?}"), b)),
        })
        .collect()
}
