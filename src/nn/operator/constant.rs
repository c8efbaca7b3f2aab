//! Values that depend on shapes alone.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::facts::check_arity;
use super::{Facts, Operation};
use crate::error::Result;
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape, Tensor, Value};

/// ONNX Shape: the axis lengths `start..end` of the input, as i64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeOf {
    start: i64,
    end: i64,
}

impl ShapeOf {
    /// All axes.
    pub fn new() -> Self {
        ShapeOf { start: 0, end: i64::MAX }
    }

    /// The axes from `start` to before `end`, both counted from the end when negative and clamped to the axes there are.
    #[must_use]
    pub fn with_range(self, start: i64, end: i64) -> Self {
        ShapeOf { start, end }
    }

    fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let clamp = |axis: i64| (if axis < 0 { axis.saturating_add(rank as i64) } else { axis }).clamp(0, rank as i64) as usize;
        let (start, end) = (clamp(self.start), clamp(self.end));
        start..end.max(start)
    }
}

impl Default for ShapeOf {
    fn default() -> Self {
        ShapeOf::new()
    }
}

impl Operation for ShapeOf {
    fn name(&self) -> &'static str {
        "Shape"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_other("start", self.start, 0).with_other("end", self.end, i64::MAX)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if (self.start, self.end) == (0, i64::MAX) { CURRENT } else { 15..=28 }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(vec![DType::I64])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let range = self.range(facts.shape(0)?.rank());
        Ok(vec![Shape::new([range.len()])?])
    }

    fn value_by_shapes(&self, shapes: &[Option<Shape>]) -> Option<Result<Value>> {
        let dims = shapes.first()?.as_ref()?.dims();
        let lengths: Vec<i64> = dims[self.range(dims.len())].iter().map(|&length| length as i64).collect();
        Some(Tensor::new([lengths.len()], lengths).map(Value::I64))
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let dims = inputs.need(0)?.dims;
        for (y, &length) in outputs.get(0).as_mut_slice::<i64>().iter_mut().zip(&dims[self.range(dims.len())]) {
            *y = length as i64;
        }
        Ok(())
    }
}

/// ONNX Size: the number of elements of the input, as an i64 without axes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SizeOf;

impl Operation for SizeOf {
    fn name(&self) -> &'static str {
        "Size"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(vec![DType::I64])
    }

    fn infer_shapes(&self, _: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![Shape::new(Vec::new())?])
    }

    fn value_by_shapes(&self, shapes: &[Option<Shape>]) -> Option<Result<Value>> {
        let elements = shapes.first()?.as_ref()?.elements();
        Some(Tensor::new(Vec::new(), vec![elements as i64]).map(Value::I64))
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        outputs.get(0).as_mut_slice::<i64>()[0] = inputs.need(0)?.len() as i64;
        Ok(())
    }
}
