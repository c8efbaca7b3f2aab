//! Operators that keep every element where it is, under another shape.

use std::ops::RangeInclusive;

use super::arguments::{check_ints, distinct_axes, ints};
use super::attributes::{Attributes, CURRENT};
use super::{Facts, Operation, Operator, check_arity};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape, Value};

/// ONNX Reshape: the same elements under the shape that input 1 names, or that was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reshape {
    shape: Option<Vec<i64>>,
    allow_zero: bool,
}

impl Reshape {
    /// To the shape that input 1 names.
    pub fn new() -> Self {
        Reshape::default()
    }

    /// To this shape: 0 keeps the length that the input has there, -1 (once) takes what is left.
    pub fn to(shape: impl Into<Vec<i64>>) -> Self {
        Reshape { shape: Some(shape.into()), allow_zero: false }
    }

    /// Whether 0 means a length of 0.
    #[must_use]
    pub fn with_allow_zero(self, allow_zero: bool) -> Self {
        Reshape { allow_zero, ..self }
    }

    fn resolve(&self, input: &Shape, wanted: &[i64]) -> Result<Shape> {
        let copies = |length: i64| length == 0 && !self.allow_zero;
        let rule = |rule: &str| Err(Error::parameter("shape", wanted, format!("{rule}, for an input of shape {input:?}")));
        let mut dims = Vec::with_capacity(wanted.len());
        for (i, &length) in wanted.iter().enumerate() {
            dims.push(match length {
                0 if copies(length) => match input.dims().get(i) {
                    Some(&length) => length,
                    None => return rule("has a 0 where the input has no axis"),
                },
                0.. => length as usize,
                -1 => 1,
                _ => return rule("may hold -1 and nothing below"),
            });
        }
        if let Some(free) = wanted.iter().position(|&length| length == -1) {
            if wanted[free + 1..].contains(&-1) {
                return rule("may hold -1 once");
            }
            // Lengths that are copied stand on both sides, so that a batch of none still says what the others are.
            let copied = |i: usize| wanted.get(i).is_some_and(|&length| copies(length));
            let product = |dims: &[usize]| {
                let mut others = dims.iter().enumerate().filter(|&(i, _)| !copied(i));
                others.try_fold(1usize, |product, (_, &length)| product.checked_mul(length))
            };
            match (product(input.dims()), product(&dims)) {
                (Some(have), Some(given)) if given != 0 && have % given == 0 => dims[free] = have / given,
                _ => return rule("leaves no whole length for -1"),
            }
        }
        let shape = Shape::new(dims)?;
        if shape.elements() != input.elements() {
            return rule(&format!("has {} elements, not {}", shape.elements(), input.elements()));
        }
        Ok(shape)
    }
}

impl Operation for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_other("allowzero", self.allow_zero, false).with_some("shape", self.shape.clone())
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if self.allow_zero { 14..=28 } else { CURRENT }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.shape.is_some() { 1 } else { 2 }, 2)?;
        check_ints("shape", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let wanted = ints(self.shape.as_ref(), facts, 1)?.unwrap_or_default();
        Ok(vec![self.resolve(facts.shape(0)?, &wanted)?])
    }

    fn renames(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        copy(inputs, outputs)
    }
}

impl Operator {
    /// Whether of an image `[n, c, h, w]` it makes `[n, c · h · w]`, or of one of single pixels `[n, c]`, whatever the lengths are; `given` is
    /// its second input.
    pub(crate) fn merges_pixels(&self, given: Option<&Value>) -> bool {
        let given = || given.and_then(|value| value.get::<i64>()).map(|list| list.as_slice().to_vec());
        match self {
            Operator::Flatten(flatten) => flatten.axis == 1,
            Operator::Reshape(reshape) => !reshape.allow_zero && reshape.shape.clone().or_else(given).is_some_and(|shape| shape == [0, -1]),
            Operator::Squeeze(squeeze) => squeeze.axes.clone().or_else(given).is_some_and(|mut axes| {
                axes.iter_mut().for_each(|axis| *axis = axis.rem_euclid(4));
                axes.sort_unstable();
                axes == [2, 3]
            }),
            _ => false,
        }
    }
}

/// What a renaming does where it runs all the same.
fn copy(inputs: &Inputs<'_>, outputs: &mut Outputs<'_>) -> Result<()> {
    outputs.get(0).bytes.copy_from_slice(inputs.need(0)?.bytes);
    Ok(())
}

/// ONNX Flatten: a matrix of the axes before `axis` and those from it on, each merged into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flatten {
    axis: i64,
}

impl Flatten {
    /// At this axis, counted from the end when negative, from -rank to rank.
    pub fn new(axis: i64) -> Self {
        Flatten { axis }
    }
}

impl Operation for Flatten {
    fn name(&self) -> &'static str {
        "Flatten"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let dims = facts.shape(0)?.dims();
        let rank = dims.len() as i64;
        let axis = if self.axis < 0 { self.axis.saturating_add(rank) } else { self.axis };
        if !(0..=rank).contains(&axis) {
            return Err(Error::parameter("axis", self.axis, format!("must lie within -{rank}..={rank} for a tensor of {rank} axes")));
        }
        let (rows, columns) = dims.split_at(axis as usize);
        Ok(vec![Shape::new([rows.iter().product::<usize>(), columns.iter().product()])?])
    }

    fn renames(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        copy(inputs, outputs)
    }
}

/// ONNX Squeeze: without axes of length 1, those that are named or all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Squeeze {
    axes: Option<Vec<i64>>,
}

impl Squeeze {
    /// Without the axes that input 1 names; without all of length 1 when there is no such input.
    pub fn new() -> Self {
        Squeeze::default()
    }

    /// Without these axes, counted from the end when negative.
    #[must_use]
    pub fn with_axes(self, axes: impl Into<Vec<i64>>) -> Self {
        Squeeze { axes: Some(axes.into()) }
    }
}

impl Operation for Squeeze {
    fn name(&self) -> &'static str {
        "Squeeze"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("axes", self.axes.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 2)?;
        check_ints("axes", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let axes = ints(self.axes.as_ref(), facts, 1)?;
        let dims = facts.shape(0)?.dims();
        let kept: Vec<usize> = match axes {
            None => dims.iter().copied().filter(|&length| length != 1).collect(),
            Some(axes) => {
                let axes = distinct_axes(&axes, dims.len())?;
                if let Some(&axis) = axes.iter().find(|&&axis| dims[axis] != 1) {
                    return Err(Error::shape("input", format!("a length of 1 along axis {axis}, to be squeezed"), dims));
                }
                (0..dims.len()).filter(|axis| !axes.contains(axis)).map(|axis| dims[axis]).collect()
            }
        };
        Ok(vec![Shape::new(kept)?])
    }

    fn renames(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        copy(inputs, outputs)
    }
}

/// ONNX Unsqueeze: with axes of length 1 put in, which are numbered as in the output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsqueeze {
    axes: Option<Vec<i64>>,
}

impl Unsqueeze {
    /// With the axes that input 1 names.
    pub fn new() -> Self {
        Unsqueeze::default()
    }

    /// With these axes, counted from the end of the output when negative.
    #[must_use]
    pub fn with_axes(self, axes: impl Into<Vec<i64>>) -> Self {
        Unsqueeze { axes: Some(axes.into()) }
    }
}

impl Operation for Unsqueeze {
    fn name(&self) -> &'static str {
        "Unsqueeze"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("axes", self.axes.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.axes.is_some() { 1 } else { 2 }, 2)?;
        check_ints("axes", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let axes = ints(self.axes.as_ref(), facts, 1)?.unwrap_or_default();
        let dims = facts.shape(0)?.dims();
        let rank = dims.len() + axes.len();
        let axes = distinct_axes(&axes, rank)?;
        let mut kept = dims.iter().copied();
        let dims: Vec<usize> = (0..rank).map(|axis| if axes.contains(&axis) { 1 } else { kept.next().unwrap_or(1) }).collect();
        Ok(vec![Shape::new(dims)?])
    }

    fn renames(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        copy(inputs, outputs)
    }
}

/// ONNX Identity: the input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity;

impl Operation for Identity {
    fn name(&self) -> &'static str {
        "Identity"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn renames(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        copy(inputs, outputs)
    }
}

/// ONNX Dropout as inference has it: the input, and on request a mask that is true everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropout {
    mask: bool,
}

impl Dropout {
    /// The input alone. Inputs 1 and 2, if given, are the ratio and whether to train; training drops nothing only at ratio 0.
    pub fn new() -> Self {
        Dropout::default()
    }

    /// Whether the mask of what is kept is a second output, of truth values.
    #[must_use]
    pub fn with_mask(self, mask: bool) -> Self {
        Dropout { mask }
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "Dropout"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 3)?;
        if let Some(ratio) = inputs.get(1).copied().flatten().filter(|ratio| !ratio.is_float()) {
            return Err(Error::Type { what: "ratio".into(), expected: "a float", got: ratio.name() });
        }
        if let Some(mode) = inputs.get(2).copied().flatten().filter(|&mode| mode != DType::Bool) {
            return Err(Error::Type { what: "training_mode".into(), expected: "bool", got: mode.name() });
        }
        Ok(inputs[0].into_iter().chain(self.mask.then_some(DType::Bool)).collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let trains = facts.has(2) && matches!(facts.value(2)?, Value::Bool(mode) if mode.as_slice().contains(&true));
        // Zero in any float is a pattern of zeros, but for the sign.
        let none = |ratio: &Value| match ratio {
            Value::F32(ratio) => ratio.as_slice().iter().all(|&ratio| ratio == 0.0),
            other => other.bytes().iter().all(|&byte| byte == 0),
        };
        if trains && !(facts.has(1) && none(&facts.value(1)?)) {
            return Err(Error::Unsupported {
                what: "Dropout in training mode".into(),
                way_out: "export the model for inference, or give it a ratio of 0".into(),
            });
        }
        let shape = facts.shape(0)?.clone();
        Ok(if self.mask { vec![shape.clone(), shape] } else { vec![shape] })
    }

    fn renames(&self) -> bool {
        !self.mask
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        copy(inputs, outputs)?;
        if self.mask {
            outputs.get(1).bytes.fill(1);
        }
        Ok(())
    }
}
