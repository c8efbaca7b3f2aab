//! Group and instance normalization.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::numbers::{check_type, in_real, in_reals, is_float};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::kernels::math::{GRAIN, parts, split_rows, vectorized};
use crate::kernels::rows::{Norm, Real};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX GroupNormalization and InstanceNormalization of floats: over each group of channels of `[n, c, ..]`,
/// `(x - mean) / √(variance + epsilon)`, times the second input plus the third, which hold a number for each channel. 16-bit floats
/// are computed in f32 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNormalization {
    /// `None`: each channel for itself.
    groups: Option<usize>,
    norm: Norm,
    per_group: bool,
}

impl GroupNormalization {
    /// So many groups of channels.
    pub fn new(groups: usize, epsilon: f32) -> Self {
        GroupNormalization { groups: Some(groups), norm: Norm { epsilon: epsilon.into(), centred: true }, per_group: false }
    }

    /// InstanceNormalization: each channel is a group.
    pub fn instance(epsilon: f32) -> Self {
        GroupNormalization { groups: None, ..GroupNormalization::new(1, epsilon) }
    }

    /// Second and third input hold a number for each group: opset 18 to 20.
    #[must_use]
    pub fn with_scale_per_group(self) -> Self {
        GroupNormalization { per_group: true, ..self }
    }

    fn groups_of(&self, channels: usize) -> usize {
        self.groups.unwrap_or(channels)
    }
}

impl Operation for GroupNormalization {
    fn name(&self) -> &'static str {
        if self.groups.is_some() { "GroupNormalization" } else { "InstanceNormalization" }
    }

    fn attributes(&self) -> Attributes {
        let groups = self.groups.map(|groups| groups as i64);
        Attributes::new().with_some("num_groups", groups).with("epsilon", self.norm.epsilon as f32)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        match (self.groups, self.per_group) {
            (None, _) => CURRENT,
            (_, true) => 18..=20,
            (_, false) => 21..=28,
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 3, 3)?;
        for i in 1..3 {
            check_type(self.name(), inputs, i, "f32, f64, f16 or bf16", is_float)?;
        }
        Ok(vec![check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float)?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        let &[_, channels, ..] = shape.dims() else {
            return Err(Error::shape("input", "[n, c, ..]", shape.dims()));
        };
        let groups = self.groups_of(channels);
        if groups != channels && (groups == 0 || channels % groups != 0) {
            return Err(Error::parameter("number of groups", groups, format!("must divide the {channels} channels")));
        }
        let length = if self.per_group { groups } else { channels };
        for (i, what) in [(1, "scale"), (2, "bias")] {
            if facts.shape(i)?.dims() != [length] {
                return Err(Error::shape(what, format!("[{length}]"), facts.shape(i)?.dims()));
            }
        }
        Ok(vec![shape.clone()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, scale, bias, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?, outputs.get(0));
        if x.bytes.is_empty() {
            return Ok(());
        }
        let (channels, pixels): (usize, usize) = (x.dims[1], x.dims[2..].iter().product());
        let groups = self.groups_of(channels);
        let width = channels / groups;
        in_reals!(x, y, |x, y: R| {
            let (scale, bias) = (in_real::<R>(&scale), in_real::<R>(&bias));
            split_rows(y, width * pixels, parts(threads, x.len(), GRAIN), &|start, y: &mut [R]| {
                let x = &x[start..start + y.len()];
                vectorized(
                    #[inline(always)]
                    || {
                        let runs = x.chunks_exact(width * pixels).zip(y.chunks_exact_mut(width * pixels));
                        for (group, (x, y)) in (start / (width * pixels)..).zip(runs) {
                            let (mean, factor) = self.norm.of(x);
                            let group = group % groups;
                            for (c, (x, y)) in x.chunks_exact(pixels).zip(y.chunks_exact_mut(pixels)).enumerate() {
                                let at = if self.per_group { group } else { group * width + c };
                                affine::<R>(x, (mean, factor * scale[at], bias[at]), y);
                            }
                        }
                    },
                );
            });
        });
        Ok(())
    }
}

/// `y = (x - mean) · factor + bias`.
#[inline(always)]
fn affine<R: Real>(x: &[R], (mean, factor, bias): (R, R, R), y: &mut [R]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean) * factor + bias);
}
