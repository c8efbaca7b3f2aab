//! Normalization of rows, with and without the mean.
//!
//! ```text
//! x̂  = (x - μ) · r,  r = 1 / √(σ² + ε)         or x · r, r = 1 / √(mean of x² + ε)
//! u  = dy · γ
//! dx = r · (u - mean(u) - x̂ · mean(u · x̂))     without the first mean where none is taken off
//! ```

use super::binary::each_repeated;
use super::{Backward, Differentiable, Forward, evaluate, float};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::{LayerNormalization, resolve_axis};
use crate::tensor::Tensor;
use crate::train::array::Array;

#[derive(Debug)]
pub struct Rows {
    layer: Layer,
    axis: i64,
    epsilon: f64,
    centred: bool,
}

impl Rows {
    pub fn new(layer: &Layer, norm: &LayerNormalization) -> Self {
        Rows { layer: layer.clone(), axis: norm.axis(), epsilon: norm.epsilon(), centred: norm.is_centred() }
    }
}

impl Differentiable for Rows {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (x, scale, gradient) = (float(run.inputs, 0)?, float(run.inputs, 1)?, run.gradient.data());
        let dims = x.dims();
        let length: usize = dims[resolve_axis(self.axis, dims.len())?..].iter().product();
        let mut spread = vec![0.0f32; gradient.len()];
        each_repeated(&dims, &scale.dims(), |index, from| spread[index] = scale.data()[from]);
        let (mut normal, mut by_input) = (vec![0.0f32; gradient.len()], vec![0.0f32; gradient.len()]);
        for first in (0..x.data().len()).step_by(length.max(1)) {
            let row = first..first + length;
            let n = length as f64;
            let mean = |f: &dyn Fn(usize) -> f64| row.clone().map(f).sum::<f64>() / n;
            let value = |i: usize| f64::from(x.data()[i]);
            let centre = if self.centred { mean(&value) } else { 0.0 };
            let inverse = 1.0 / (mean(&|i| (value(i) - centre).powi(2)) + self.epsilon).sqrt();
            row.clone().for_each(|i| normal[i] = ((value(i) - centre) * inverse) as f32);
            let u = |i: usize| f64::from(gradient[i]) * f64::from(spread[i]);
            let less = if self.centred { mean(&u) } else { 0.0 };
            let along = mean(&|i| u(i) * f64::from(normal[i]));
            row.for_each(|i| by_input[i] = (inverse * (u(i) - less - f64::from(normal[i]) * along)) as f32);
        }
        if run.wanted[0] {
            run.by_input[0] = Some(Array::like(x, by_input)?);
        }
        for side in 1..run.inputs.len() {
            if run.wanted[side] && run.inputs[side].is_some() {
                let operand = float(run.inputs, side)?;
                let mut sums = vec![0.0f32; operand.data().len()];
                each_repeated(&dims, &operand.dims(), |index, from| {
                    sums[from] += if side == 1 { gradient[index] * normal[index] } else { gradient[index] };
                });
                run.by_input[side] = Some(Array::row_major(Tensor::new(operand.dims(), sums)?));
            }
        }
        Ok(())
    }
}
