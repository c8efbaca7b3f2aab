//! Sum, mean, least and greatest of any number of operands, with numpy's broadcasting.

use super::binary::each_repeated;
use super::{Backward, Differentiable, Forward, evaluate, float};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::Variadic;
use crate::tensor::Tensor;
use crate::train::array::Array;

/// The least and the greatest give their gradient in equal parts to all operands that are it.
#[derive(Debug)]
pub struct Folded {
    layer: Layer,
    function: Variadic,
}

impl Folded {
    pub fn new(layer: &Layer, function: Variadic) -> Self {
        Folded { layer: layer.clone(), function }
    }
}

impl Differentiable for Folded {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (y, dims, count) = (run.output.data(), run.output.dims(), run.inputs.len());
        let operands = (0..count).map(|side| float(run.inputs, side)).collect::<Result<Vec<_>>>()?;
        let chooses = matches!(self.function, Variadic::Min | Variadic::Max);
        let mut shares = vec![if self.function == Variadic::Mean { count as f32 } else { 1.0 }; y.len()];
        if chooses {
            shares.fill(0.0);
            for x in &operands {
                each_repeated(&dims, &x.dims(), |index, from| shares[index] += f32::from(u8::from(x.data()[from] == y[index])));
            }
        }
        for (side, x) in operands.iter().enumerate().filter(|(side, _)| run.wanted[*side]) {
            let mut sum = vec![0.0f32; x.data().len()];
            each_repeated(&dims, &x.dims(), |index, from| {
                if !chooses || x.data()[from] == y[index] {
                    sum[from] += run.gradient.data()[index] / shares[index];
                }
            });
            run.by_input[side] = Some(Array::row_major(Tensor::new(x.dims(), sum)?));
        }
        Ok(())
    }
}
