//! Layer normalization, with and without the mean.

use std::borrow::Cow;

use std::ops::RangeInclusive;

use super::attributes::Attributes;
use super::broadcast::{broadcast_shape, repeated};
use super::numbers::{check_type, from_reals, in_real, in_reals, is_float};
use super::{Facts, Operation, check_arity, resolve_axis};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::kernels::math::vectorized;
use crate::kernels::rows::{Norm, Real};
use crate::nn::view::{Inputs, Outputs, View};
use crate::tensor::{DType, Shape};

/// ONNX LayerNormalization and RMSNormalization of floats: over `axis` and all after it, `(x - mean) / √(variance + epsilon)`, or
/// `x / √(mean of x² + epsilon)`, times the second input, plus the third if it is there; both broadcast to the first. 16-bit
/// floats are computed in f32 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormalization {
    axis: i64,
    norm: Norm,
    statistics: Option<DType>,
}

impl LayerNormalization {
    /// LayerNormalization over `axis`, counted from the end when negative, and all after it.
    pub fn new(axis: i64, epsilon: f32) -> Self {
        LayerNormalization { axis, norm: Norm { epsilon: epsilon.into(), centred: true }, statistics: None }
    }

    /// RMSNormalization.
    pub fn rms(axis: i64, epsilon: f32) -> Self {
        LayerNormalization { axis, norm: Norm { epsilon: epsilon.into(), centred: false }, statistics: None }
    }

    /// The first axis of those normalized together, counted from the end when negative.
    pub(crate) fn axis(&self) -> i64 {
        self.axis
    }

    /// What is added to the variance.
    pub(crate) fn epsilon(&self) -> f64 {
        self.norm.epsilon
    }

    /// Whether the mean is taken off.
    pub(crate) fn is_centred(&self) -> bool {
        self.norm.centred
    }

    /// Whether it has the statistics' outputs.
    pub(crate) fn has_statistics(&self) -> bool {
        self.statistics.is_some()
    }

    /// With two more outputs of this type (f32, f64, f16 or bf16): the means, and `1 / √(variance + epsilon)`, for each row.
    #[must_use]
    pub fn with_statistics(self, dtype: DType) -> Self {
        LayerNormalization { statistics: Some(dtype), ..self }
    }
}

/// What rows are multiplied with, or what is added: the same for each, or as long as all rows together.
fn spread<'a, R: Real>(view: &View<'a>, dims: &[usize], axis: usize) -> Result<Cow<'a, [R]>> {
    let (own, row) = (in_real::<R>(view), &dims[axis..]);
    let leading = view.dims.iter().take_while(|&&length| length == 1).count();
    let trimmed = &view.dims[leading..];
    if trimmed == row {
        return Ok(own);
    }
    let output = if trimmed.len() <= row.len() { row } else { dims };
    Ok(Cow::Owned(repeated(output, trimmed, &own)?))
}

impl Operation for LayerNormalization {
    fn name(&self) -> &'static str {
        if self.norm.centred { "LayerNormalization" } else { "RMSNormalization" }
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis).with("epsilon", self.norm.epsilon as f32).with_some("stash_type", self.statistics)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if self.norm.centred { 17..=28 } else { 23..=28 }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, if self.norm.centred { 3 } else { 2 })?;
        for i in 0..inputs.len() {
            if inputs[i].is_some() {
                check_type(self.name(), inputs, i, "f32, f64, f16 or bf16", is_float)?;
            }
        }
        let dtype = check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float)?;
        match self.statistics {
            Some(other) if !is_float(other) => {
                let what = format!("type of the statistics of {}", self.name());
                Err(Error::Type { what, expected: "f32, f64, f16 or bf16", got: other.name() })
            }
            // A scale of another type makes an output of that type in RMSNormalization.
            Some(other) => Ok(vec![dtype, other, other]),
            None => Ok(vec![if self.norm.centred { dtype } else { inputs[1].unwrap_or(dtype) }]),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        let axis = resolve_axis(self.axis, shape.rank())?;
        for i in 1..facts.count() {
            if facts.has(i) && broadcast_shape([shape, facts.shape(i)?])? != *shape {
                return Err(Error::shape(format!("input {i}"), format!("one that broadcasts to {shape:?}"), facts.shape(i)?.dims()));
            }
        }
        let rows = || Shape::new(shape.dims().iter().enumerate().map(|(i, &n)| if i < axis { n } else { 1 }).collect::<Vec<_>>());
        match self.statistics {
            Some(_) => Ok(vec![shape.clone(), rows()?, rows()?]),
            None => Ok(vec![shape.clone()]),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let x = inputs.need(0)?;
        let axis = resolve_axis(self.axis, x.dims.len())?;
        let length: usize = x.dims[axis..].iter().product();
        let (scale, bias) = (inputs.need(1)?, inputs.get(2));
        {
            let mut y = outputs.get(0);
            in_reals!(x, y, |x_all, y: R| {
                let scale = spread::<R>(&scale, x.dims, axis)?;
                let bias = bias.map(|bias| spread::<R>(&bias, x.dims, axis)).transpose()?;
                let bias = bias.as_deref();
                if scale.len() == length && bias.is_none_or(|bias| bias.len() == length) {
                    self.norm.rows::<R>(x_all, length, &scale, bias, y, threads);
                } else if length > 0 {
                    let part = |all: &[R], i: usize| if all.len() == length { 0..length } else { i * length..(i + 1) * length };
                    for (i, (x, y)) in x_all.chunks_exact(length).zip(y.chunks_exact_mut(length)).enumerate() {
                        let bias = bias.map(|bias| &bias[part(bias, i)]);
                        self.norm.rows::<R>(x, length, &scale[part(&scale, i)], bias, y, 1);
                    }
                }
            });
        }
        if self.statistics.is_some() {
            let all = in_real::<f64>(&x);
            let rows = x.dims[..axis].iter().product();
            let row = |i: usize| vectorized(|| self.norm.of(&all[i * length..(i + 1) * length]));
            from_reals((0..rows).map(|i| row(i).0), &mut outputs.get(1));
            from_reals((0..rows).map(|i| row(i).1), &mut outputs.get(2));
        }
        Ok(())
    }
}
