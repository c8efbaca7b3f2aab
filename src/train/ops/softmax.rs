//! Softmax: `dx = y · (dy - Σ dy · y)`; its logarithm: `dx = dy - e^y · Σ dy`.

use super::{Backward, Differentiable, Forward, evaluate, float};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::resolve_axis;
use crate::num::math::exp;
use crate::train::array::Array;

#[derive(Debug)]
pub struct Normalized {
    layer: Layer,
    axis: i64,
    log: bool,
}

impl Normalized {
    pub fn new(layer: &Layer, axis: i64, log: bool) -> Self {
        Normalized { layer: layer.clone(), axis, log }
    }
}

impl Differentiable for Normalized {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        if !run.wanted[0] {
            return Ok(());
        }
        let (x, y, gradient) = (float(run.inputs, 0)?, run.output.data(), run.gradient.data());
        let shape = x.held().shape();
        let (outer, length, inner) = match shape.rank() {
            0 => (1, 1, 1),
            rank => shape.around(resolve_axis(self.axis, rank)?)?,
        };
        let mut by_input = vec![0.0; y.len()];
        for line in (0..outer).flat_map(|o| (0..inner).map(move |i| o * length * inner + i)) {
            let places = || (0..length).map(|k| line + k * inner);
            let sum: f32 = places().map(|at| if self.log { gradient[at] } else { gradient[at] * y[at] }).sum();
            for at in places() {
                by_input[at] = if self.log { gradient[at] - exp(y[at]) * sum } else { y[at] * (gradient[at] - sum) };
            }
        }
        run.by_input[0] = Some(Array::like(x, by_input)?);
        Ok(())
    }
}
