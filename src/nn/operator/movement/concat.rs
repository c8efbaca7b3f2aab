//! Several tensors as one along an axis, and one as several.

use super::walk::strides;
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::operator::arguments::{check_ints, ints, length};
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX Concat: the inputs one after the other along an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concat {
    axis: i64,
}

impl Concat {
    /// Along this axis, counted from the end when negative.
    pub fn new(axis: i64) -> Self {
        Concat { axis }
    }

    /// The axis, counted from the end when negative.
    pub(crate) fn axis(&self) -> i64 {
        self.axis
    }
}

/// Bytes of all elements from `axis` on.
fn bytes_from(axis: usize, dims: &[usize], dtype: DType) -> usize {
    dims[axis..].iter().product::<usize>() * dtype.bytes()
}

impl Operation for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, inputs.len().max(1), usize::MAX)?;
        match inputs.iter().flatten().find(|&&dtype| Some(dtype) != inputs[0]) {
            Some(other) => Err(Error::Type { what: "input of Concat".into(), expected: "the type of the first", got: other.name() }),
            None => Ok(inputs[0].into_iter().collect()),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let mut dims = facts.shape(0)?.dims().to_vec();
        let axis = resolve_axis(self.axis, dims.len())?;
        for i in 1..facts.count() {
            let other = facts.shape(i)?;
            let fits = other.rank() == dims.len() && (0..dims.len()).all(|a| a == axis || other.dims()[a] == dims[a]);
            if !fits {
                let first = facts.shape(0)?;
                return Err(Error::shape(format!("input {i}"), format!("{first:?} but for axis {axis}"), other.dims()));
            }
            let sum = dims[axis].checked_add(other.dims()[axis]);
            dims[axis] = sum.ok_or_else(|| Error::ShapeOverflow { shape: other.dims().to_vec() })?;
        }
        Ok(vec![Shape::new(dims)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let y = outputs.get(0);
        let axis = inputs.axis(resolve_axis(self.axis, y.dims.len())?, y.dims.len());
        let row = bytes_from(axis, y.dims, y.dtype);
        let mut at = 0;
        for i in 0..inputs.count() {
            let x = inputs.need(i)?;
            let part = bytes_from(axis, x.dims, x.dtype);
            if part > 0 {
                for (from, to) in x.bytes.chunks_exact(part).zip(y.bytes.chunks_exact_mut(row)) {
                    to[at..at + part].copy_from_slice(from);
                }
            }
            at += part;
        }
        Ok(())
    }
}

/// ONNX Split: runs of an axis, one an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    axis: i64,
    outputs: usize,
    lengths: Option<Vec<i64>>,
}

impl Split {
    /// Along this axis, counted from the end when negative, into so many outputs: of the lengths that input 1 names, or
    /// equally long, the last one shorter where they can't be.
    pub fn new(axis: i64, outputs: usize) -> Self {
        Split { axis, outputs, lengths: None }
    }

    /// Into runs of these lengths, one for each output.
    #[must_use]
    pub fn with_lengths(self, lengths: impl Into<Vec<i64>>) -> Self {
        Split { lengths: Some(lengths.into()), ..self }
    }
}

impl Operation for Split {
    fn name(&self) -> &'static str {
        "Split"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis).with_some("split", self.lengths.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 2)?;
        check_ints("split", inputs, 1)?;
        match inputs[0] {
            Some(dtype) if self.outputs > 0 => Ok(vec![dtype; self.outputs]),
            _ => Err(Error::parameter("number of outputs", self.outputs, "must be at least 1")),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let lengths = ints(self.lengths.as_ref(), facts, 1)?;
        let shape = facts.shape(0)?;
        let axis = resolve_axis(self.axis, shape.rank())?;
        let whole = shape.dims()[axis];
        let lengths: Vec<usize> = match lengths {
            Some(list) => {
                let lengths: Vec<usize> = list.iter().map(|&l| length("split", l)).collect::<Result<_>>()?;
                let sum = lengths.iter().try_fold(0usize, |sum, &l| sum.checked_add(l));
                if lengths.len() != self.outputs || sum != Some(whole) {
                    let rule = format!("must have {} lengths, one for each output, that add up to {whole}", self.outputs);
                    return Err(Error::parameter("split", list, rule));
                }
                lengths
            }
            None => {
                let each = whole.div_ceil(self.outputs);
                (0..self.outputs).map(|i| whole.saturating_sub(i.saturating_mul(each)).min(each)).collect()
            }
        };
        lengths.into_iter().map(|length| shape.with_axis(axis, length)).collect()
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let x = inputs.need(0)?;
        let axis = inputs.axis(resolve_axis(self.axis, x.dims.len())?, x.dims.len());
        let row = bytes_from(axis, x.dims, x.dtype);
        let step = strides(x.dims)?[axis] * x.dtype.bytes();
        let mut at = 0;
        for y in outputs.each() {
            let part = y.dims[axis] * step;
            if part > 0 {
                for (from, to) in x.bytes.chunks_exact(row).zip(y.bytes.chunks_exact_mut(part)) {
                    to.copy_from_slice(&from[at..at + part]);
                }
            }
            at += part;
        }
        Ok(())
    }
}
