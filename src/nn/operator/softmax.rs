//! Softmax and its logarithm.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::numbers::{check_type, in_reals, is_float};
use super::{Facts, Operation, check_arity, resolve_axis};
use crate::error::Result;
use crate::kernels::{Workspace, rows};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX Softmax and LogSoftmax of floats: `e^(x - max) / Σ e^(x - max)` along an axis, or its logarithm. 16-bit floats are computed
/// in f32 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Softmax {
    axis: i64,
    log: bool,
    flattened: bool,
}

impl Softmax {
    /// Along `axis`, counted from the end when negative.
    pub fn new(axis: i64) -> Self {
        Softmax { axis, log: false, flattened: false }
    }

    /// LogSoftmax: `x - max - ln Σ e^(x - max)`.
    pub fn log(axis: i64) -> Self {
        Softmax { log: true, ..Softmax::new(axis) }
    }

    /// Over `axis` and all axes after it together, as opset 12 and before have it.
    #[must_use]
    pub fn flattened(self) -> Self {
        Softmax { flattened: true, ..self }
    }
}

impl Softmax {
    /// The axis, and whether it is the logarithm; `None` over several axes together.
    pub(crate) fn along_one_axis(&self) -> Option<(i64, bool)> {
        (!self.flattened).then_some((self.axis, self.log))
    }

    /// Whether this is the softmax along the last axis, however many there are.
    pub(crate) fn is_along_last(&self) -> bool {
        !self.log && self.axis == -1 && !self.flattened
    }
}

impl Operation for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "LogSoftmax" } else { "Softmax" }
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if self.flattened { 7..=12 } else { CURRENT }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(vec![check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float)?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?.clone();
        // All of a scalar is one line.
        if shape.rank() > 0 {
            resolve_axis(self.axis, shape.rank())?;
        }
        Ok(vec![shape])
    }

    fn order(&self) -> Order {
        if self.flattened { Order::RowMajor } else { Order::Any }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        let lines = match x.dims.len() {
            0 => (1, 1, 1),
            rank => {
                let axis = inputs.axis(resolve_axis(self.axis, rank)?, rank);
                let after = x.dims[axis + 1..].iter().product();
                match x.dims[..axis].iter().product() {
                    before if self.flattened => (before, x.dims[axis] * after, 1),
                    before => (before, x.dims[axis], after),
                }
            }
        };
        in_reals!(x, y, |x, y: R| rows::softmax::<R>(x, lines, self.log, y, threads));
        Ok(())
    }
}
