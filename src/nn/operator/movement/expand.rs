//! Elements over and over.

use super::walk::{Axis, Walk, check_rank, strides};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::arguments::{check_ints, ints, length};
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::{Facts, Operation, check_arity};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX Expand: the input and the shape that input 1 names, broadcast to each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expand {
    shape: Option<Vec<i64>>,
}

impl Expand {
    /// By the shape that input 1 names.
    pub fn new() -> Self {
        Expand::default()
    }

    /// By this shape.
    pub fn to(shape: impl Into<Vec<i64>>) -> Self {
        Expand { shape: Some(shape.into()) }
    }
}

impl Operation for Expand {
    fn name(&self) -> &'static str {
        "Expand"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("shape", self.shape.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.shape.is_some() { 1 } else { 2 }, 2)?;
        check_ints("shape", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let wanted = ints(self.shape.as_ref(), facts, 1)?.unwrap_or_default();
        let dims = facts.shape(0)?.dims();
        let rank = dims.len().max(wanted.len());
        check_rank(rank)?;
        let mut expanded = Vec::with_capacity(rank);
        for axis in 0..rank {
            let own = (axis + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
            let other = (axis + wanted.len()).checked_sub(rank).map_or(Ok(1), |i| length("shape", wanted[i]))?;
            expanded.push(match (own, other) {
                (own, 1) => own,
                (1, other) => other,
                (own, other) if own == other => own,
                _ => return Err(Error::shape("input", format!("one that {wanted:?} broadcasts with"), dims)),
            });
        }
        Ok(vec![Shape::new(expanded)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let (from, to, more) = (strides(x.dims)?, strides(y.dims)?, y.dims.len() - x.dims.len());
        let axis = |i: usize| {
            let own = i.checked_sub(more).filter(|&i| x.dims[i] != 1).map_or(0, |i| from[i]);
            Axis { length: y.dims[i], from: own as isize, to: to[i] as isize }
        };
        Walk::new((0..y.dims.len()).map(axis))?.copy(x.dtype.bytes(), (x.bytes, 0), (y.bytes, 0));
        Ok(())
    }
}

/// ONNX Tile: the input side by side as many times along each axis as input 1 says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tile {
    repeats: Option<Vec<i64>>,
}

impl Tile {
    /// As often as input 1 says.
    pub fn new() -> Self {
        Tile::default()
    }

    /// As often as said here, axis by axis.
    #[must_use]
    pub fn with_repeats(self, repeats: impl Into<Vec<i64>>) -> Self {
        Tile { repeats: Some(repeats.into()) }
    }
}

impl Operation for Tile {
    fn name(&self) -> &'static str {
        "Tile"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("repeats", self.repeats.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.repeats.is_some() { 1 } else { 2 }, 2)?;
        check_ints("repeats", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let repeats = ints(self.repeats.as_ref(), facts, 1)?.unwrap_or_default();
        let dims = facts.shape(0)?.dims();
        check_rank(dims.len())?;
        if repeats.len() != dims.len() {
            return Err(Error::length("list of repeats", dims.len(), repeats.len()));
        }
        let tiled = dims
            .iter()
            .zip(&repeats)
            .map(|(&own, &times)| own.checked_mul(length("repeats", times)?).ok_or_else(|| Error::ShapeOverflow { shape: dims.to_vec() }));
        Ok(vec![Shape::new(tiled.collect::<Result<Vec<_>>>()?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let (from, to) = (strides(x.dims)?, strides(y.dims)?);
        let axes = (0..x.dims.len()).flat_map(|i| {
            let own = x.dims[i];
            let times = Axis { length: y.dims[i].checked_div(own).unwrap_or(0), from: 0, to: (to[i].wrapping_mul(own)) as isize };
            [times, Axis { length: own, from: from[i] as isize, to: to[i] as isize }]
        });
        Walk::new(axes)?.copy(x.dtype.bytes(), (x.bytes, 0), (y.bytes, 0));
        Ok(())
    }
}
