//! Every so many elements of a range along each axis.

use super::walk::{Axis, Walk, check_rank, strides};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::operator::arguments::{check_ints, distinct_axes, ints};
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX Slice: elements from `start` to before `end` in steps, along the axes that are named.
///
/// Starts and ends count from the end when negative and are clamped to the axis; a negative step walks backwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    starts: Option<Vec<i64>>,
    ends: Option<Vec<i64>>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
}

impl Slice {
    /// By inputs 1 to 4: starts, ends, and axes (the first ones when left out) and steps (1 when left out).
    pub fn new() -> Self {
        Slice::default()
    }

    /// With these starts and ends.
    #[must_use]
    pub fn with_range(self, starts: impl Into<Vec<i64>>, ends: impl Into<Vec<i64>>) -> Self {
        Slice { starts: Some(starts.into()), ends: Some(ends.into()), ..self }
    }

    /// Along these axes, counted from the end when negative.
    #[must_use]
    pub fn with_axes(self, axes: impl Into<Vec<i64>>) -> Self {
        Slice { axes: Some(axes.into()), ..self }
    }

    /// With these steps.
    #[must_use]
    pub fn with_steps(self, steps: impl Into<Vec<i64>>) -> Self {
        Slice { steps: Some(steps.into()), ..self }
    }
}

/// The first index of a range, and how many there are.
fn range(start: i64, end: i64, step: i64, length: usize) -> Result<(usize, usize)> {
    let (length, step) = (length as i128, i128::from(step));
    let clamp = |at: i64, low: i128, high: i128| {
        let at = i128::from(at);
        (if at < 0 { at + length } else { at }).clamp(low, high)
    };
    let (first, count) = match step {
        0 => return Err(Error::parameter("steps", 0, "must not be 0")),
        1.. => {
            let (start, end) = (clamp(start, 0, length), clamp(end, 0, length));
            (start, (end - start + step - 1).max(0) / step)
        }
        _ if length == 0 => (0, 0),
        _ => {
            let (start, end) = (clamp(start, 0, length - 1), clamp(end, -1, length - 1));
            (start, (start - end - step - 1).max(0) / -step)
        }
    };
    Ok((first as usize, count as usize))
}

impl Operation for Slice {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with_some("starts", self.starts.clone()).with_some("ends", self.ends.clone());
        attributes.with_some("axes", self.axes.clone()).with_some("steps", self.steps.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.starts.is_some() { 1 } else { 3 }, 5)?;
        for (i, what) in ["starts", "ends", "axes", "steps"].into_iter().enumerate() {
            check_ints(what, inputs, i + 1)?;
        }
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let starts = ints(self.starts.as_ref(), facts, 1)?.unwrap_or_default();
        let ends = ints(self.ends.as_ref(), facts, 2)?.unwrap_or_default();
        let axes = ints(self.axes.as_ref(), facts, 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = ints(self.steps.as_ref(), facts, 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        for (what, list) in [("list of ends", &ends), ("list of axes", &axes), ("list of steps", &steps)] {
            if list.len() != starts.len() {
                return Err(Error::length(what, starts.len(), list.len()));
            }
        }
        let mut dims = facts.shape(0)?.dims().to_vec();
        check_rank(dims.len())?;
        for (i, axis) in distinct_axes(&axes, dims.len())?.into_iter().enumerate() {
            dims[axis] = range(starts[i], ends[i], steps[i], dims[axis])?.1;
        }
        Ok(vec![Shape::new(dims)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let rank = x.dims.len();
        let (from, to) = (strides(x.dims)?, strides(y.dims)?);
        let views = [1, 2, 3, 4].map(|i| inputs.get(i));
        let mut offset = 0;
        let mut steps = [1i64; super::walk::AXES];
        let given = |list: usize, attribute: &Option<Vec<i64>>, i: usize| match (views[list], attribute) {
            (Some(view), _) => Ok(view.ints()?.nth(i)),
            (None, Some(list)) => Ok(list.get(i).copied()),
            _ => Ok(None),
        };
        for i in 0..rank {
            let Some(start) = given(0, &self.starts, i)? else { break };
            let axis = given(2, &self.axes, i)?.unwrap_or(i as i64);
            let axis = inputs.axis(resolve_axis(axis, rank)?, rank);
            let (end, step) = (given(1, &self.ends, i)?.unwrap_or(i64::MAX), given(3, &self.steps, i)?.unwrap_or(1));
            let (first, _) = range(start, end, step, x.dims[axis])?;
            offset += first * from[axis];
            steps[axis] = step;
        }
        let axis = |i: usize| {
            // Where more than one element is taken, the step is shorter than the axis.
            let step = if y.dims[i] > 1 { steps[i] as isize * from[i] as isize } else { 0 };
            Axis { length: y.dims[i], from: step, to: to[i] as isize }
        };
        Walk::new((0..rank).map(axis))?.copy(x.dtype.bytes(), (x.bytes, offset), (y.bytes, 0));
        Ok(())
    }
}
