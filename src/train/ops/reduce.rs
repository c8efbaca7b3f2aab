//! Sums and means over axes: each element gets the gradient of what it went into, a mean's divided by their number.

use super::binary::each_repeated;
use super::{Backward, Differentiable, Forward, Held, evaluate, float};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::{Reduce, Reduction};
use crate::tensor::Value;
use crate::train::array::Array;

#[derive(Debug)]
pub struct Spread {
    layer: Layer,
    reduce: Reduce,
    mean: bool,
}

impl Spread {
    /// `None` for other reductions.
    pub fn new(layer: &Layer, reduce: &Reduce) -> Option<Self> {
        let mean = match reduce.reduction() {
            Reduction::Mean => true,
            Reduction::Sum => false,
            _ => return None,
        };
        Some(Spread { layer: layer.clone(), reduce: reduce.clone(), mean })
    }
}

impl Differentiable for Spread {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (x, gradient) = (float(run.inputs, 0)?, run.gradient.data());
        let given = match run.inputs.get(1) {
            Some(Some(Held::Other(Value::I64(axes)))) => Some(axes.as_slice().to_vec()),
            _ => None,
        };
        let dims = x.dims();
        let folds = self.reduce.folds(given, dims.len())?;
        let kept: Vec<usize> = dims.iter().zip(&folds).map(|(&length, &folded)| if folded { 1 } else { length }).collect();
        let factor = if self.mean { gradient.len() as f32 / x.data().len().max(1) as f32 } else { 1.0 };
        let mut by_input = vec![0.0; x.data().len()];
        each_repeated(&dims, &kept, |index, from| by_input[index] = factor * gradient[from]);
        run.by_input[0] = Some(Array::like(x, by_input)?);
        Ok(())
    }
}
