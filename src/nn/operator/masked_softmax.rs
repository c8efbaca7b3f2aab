//! Attention's softmax: scaled, masked, normalized in one pass over the scores.

use super::broadcast::{Spread, zip};
use super::facts::{broadcast_dims, check_arity};
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::{Workspace, rows};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// The softmax of `x · scale + mask` along the last axis. Not in the standard: what a product or quotient, a sum and a Softmax
/// in a row become. The mask may be left out. It is quick where it has the last axis of `x` and `x` the shape of the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskedSoftmax {
    scale: f32,
}

impl MaskedSoftmax {
    /// With this factor.
    pub fn new(scale: f32) -> Self {
        MaskedSoftmax { scale }
    }

    /// What the scores are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }
}

/// Axes of the mask before the last.
const AXES: usize = 7;

impl Operation for MaskedSoftmax {
    fn name(&self) -> &'static str {
        "Softmax"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 2)?;
        match inputs.iter().flatten().find(|&&dtype| dtype != DType::F32) {
            Some(other) => Err(Error::Type { what: "input of Softmax".into(), expected: "f32", got: other.name() }),
            None => Ok(vec![DType::F32]),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let x = facts.shape(0)?;
        Ok(vec![if facts.has(1) { Shape::new(broadcast_dims(x.dims(), facts.shape(1)?.dims())?)? } else { x.clone() }])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mask, mut y) = (inputs.need(0)?, inputs.get(1), outputs.get(0));
        let length = y.dims.last().copied().unwrap_or(1);
        if let Some(mask) = &mask
            && (x.dims != y.dims || mask.dims.last() != x.dims.last() || x.dims.len() > AXES)
        {
            let (scores, mut sums) = (x.f32(), vec![0.0; y.f32().len()]);
            let spread = Spread::new(y.dims, [x.dims, mask.dims])?;
            zip(&spread, (scores, mask.f32()), &mut sums, &|x, mask| x * self.scale + mask);
            rows::masked_softmax(&sums, length, 1.0, &|_| None, y.f32(), threads);
            return Ok(());
        }
        // Rows of the mask from one row of x to the next, axis by axis, the last one first.
        let (mut lengths, mut steps) = ([1; AXES], [0; AXES]);
        let before = &x.dims[..x.dims.len().saturating_sub(1)];
        if let Some(mask) = &mask {
            let own = &mask.dims[..mask.dims.len() - 1];
            let mut step = 1;
            for (i, &length) in before.iter().rev().enumerate() {
                let mine = own.len().checked_sub(i + 1).map_or(1, |axis| own[axis]);
                (lengths[i], steps[i]) = (length, if mine == 1 { 0 } else { step });
                step *= mine;
            }
        }
        let row = |mut row: usize| {
            let mask = mask.as_ref()?;
            let mut at = 0;
            for (length, step) in lengths.iter().zip(&steps).take(before.len()) {
                at += row % length * step;
                row /= length;
            }
            Some(&mask.f32()[at * length..][..length])
        };
        rows::masked_softmax(x.f32(), length, self.scale, &row, y.f32(), threads);
        Ok(())
    }
}
