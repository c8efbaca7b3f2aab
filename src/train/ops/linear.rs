//! The fully connected layer: `y = x wᵀ + b`, `dx = dy w`, `dw = dyᵀ x`, `db = Σ dy`.

use super::product::{column_sums, multiply, transposed};
use super::{Backward, Differentiable, Forward, float, wide};
use crate::error::{Error, Result};
use crate::kernels::{Conv2dGeometry, FloatEpilogue, Matrix, MatrixMut, PackedFloatWeights, WeightLayout, sgemm};
use crate::nn::Linear;
use crate::tensor::Tensor;
use crate::train::array::Array;

#[derive(Debug)]
pub struct FullyConnected {
    inputs: usize,
    outputs: usize,
}

impl FullyConnected {
    pub fn new(linear: &Linear) -> Self {
        FullyConnected { inputs: linear.in_features(), outputs: linear.out_features() }
    }

    /// As a convolution over images of one pixel.
    fn geometry(&self) -> Conv2dGeometry {
        Conv2dGeometry::new(self.inputs, self.outputs, [1, 1])
    }
}

impl Differentiable for FullyConnected {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let mut dims = x.dims();
        match dims.last_mut() {
            Some(last) if *last == self.inputs => *last = self.outputs,
            _ => return Err(Error::shape("input", format!("[.., {}]", self.inputs), &dims)),
        }
        let rows = dims[..dims.len() - 1].iter().product();
        if run.exact {
            let y = wide::forward(&self.geometry(), x.data(), [rows, self.inputs, 1, 1], [1, 1], run.parameters);
            return Ok(Array::row_major(Tensor::new(dims, y)?));
        }
        let mut y = vec![0.0; rows * self.outputs];
        let packed = PackedFloatWeights::pack(run.parameters[0], self.outputs, self.inputs, WeightLayout::Nk)?;
        let epilogue = FloatEpilogue::new().with_bias(run.parameters.get(1).copied());
        let (lhs, dst) = (Matrix::new(x.data(), rows, self.inputs)?, MatrixMut::new(&mut y, rows, self.outputs)?);
        sgemm(lhs, &packed, &epilogue, dst, run.threads)?;
        Ok(Array::row_major(Tensor::new(dims, y)?))
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (x, gradient) = (float(run.inputs, 0)?, run.gradient.data());
        let rows = x.data().len() / self.inputs.max(1);
        if run.exact {
            let dims = [rows, self.inputs, 1, 1];
            let (by_weights, by_bias, by_rows) =
                wide::backward(&self.geometry(), x.data(), dims, [1, 1], run.parameters[0], gradient, run.wanted[0]);
            run.by_parameter = vec![by_weights, by_bias];
            run.by_parameter.truncate(run.parameters.len());
            run.by_input[0] = by_rows.map(|data| Array::like(x, data)).transpose()?;
            return Ok(());
        }
        let mut by_weights = vec![0.0; self.inputs * self.outputs];
        let turned = transposed(gradient, rows, self.outputs);
        let sizes = [self.outputs, rows, self.inputs];
        multiply(&turned, x.data(), WeightLayout::Kn, sizes, &mut by_weights, (&mut *run.workspace, run.threads))?;
        run.by_parameter = vec![by_weights];
        if run.parameters.len() > 1 {
            run.by_parameter.push(column_sums(gradient, self.outputs));
        }
        if run.wanted[0] {
            let mut by_rows = vec![0.0; x.data().len()];
            let sizes = [rows, self.outputs, self.inputs];
            multiply(gradient, run.parameters[0], WeightLayout::Kn, sizes, &mut by_rows, (&mut *run.workspace, run.threads))?;
            run.by_input[0] = Some(Array::like(x, by_rows)?);
        }
        Ok(())
    }
}
