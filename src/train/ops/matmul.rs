//! Products of matrices over batches, as attention has them: `dA = dY Bᵀ`, `dB = Aᵀ dY`, summed where a side was repeated.

use super::binary::each_repeated;
use super::product::{multiply, transposed};
use super::{Backward, Differentiable, Forward, evaluate, float};
use crate::error::Result;
use crate::kernels::WeightLayout;
use crate::nn::Layer;
use crate::tensor::Tensor;
use crate::train::array::Array;

#[derive(Debug)]
pub struct Products {
    layer: Layer,
}

impl Products {
    pub fn new(layer: &Layer) -> Self {
        Products { layer: layer.clone() }
    }
}

impl Differentiable for Products {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (a, b, gradient) = (float(run.inputs, 0)?, float(run.inputs, 1)?, run.gradient.data());
        let (a_dims, b_dims) = (a.dims(), b.dims());
        // A vector on the left is a row, on the right a column.
        let (m, k) = if let [.., m, k] = *a_dims { (m, k) } else { (1, a_dims[0]) };
        let n = if let [.., _, n] = *b_dims { n } else { 1 };
        let batch_of = |dims: &[usize]| dims[..dims.len().saturating_sub(2)].to_vec();
        let (a_batch, b_batch, out) = (batch_of(&a_dims), batch_of(&b_dims), run.gradient.dims());
        let batch = &out[..a_batch.len().max(b_batch.len())];
        let mut places = [vec![0; batch.iter().product()], vec![0; batch.iter().product()]];
        each_repeated(batch, &a_batch, |index, from| places[0][index] = from);
        each_repeated(batch, &b_batch, |index, from| places[1][index] = from);
        let (mut by_a, mut by_b) = (vec![0.0f32; a.data().len()], vec![0.0f32; b.data().len()]);
        let (mut one_a, mut one_b) = (vec![0.0f32; m * k], vec![0.0f32; k * n]);
        for (index, gradient) in gradient.chunks_exact((m * n).max(1)).enumerate() {
            let (i, j) = (places[0][index], places[1][index]);
            let (a, b) = (&a.data()[i * m * k..][..m * k], &b.data()[j * k * n..][..k * n]);
            multiply(gradient, b, WeightLayout::Nk, [m, n, k], &mut one_a, (&mut *run.workspace, run.threads))?;
            multiply(&transposed(a, m, k), gradient, WeightLayout::Kn, [k, m, n], &mut one_b, (&mut *run.workspace, run.threads))?;
            by_a[i * m * k..].iter_mut().zip(&one_a).for_each(|(sum, x)| *sum += x);
            by_b[j * k * n..].iter_mut().zip(&one_b).for_each(|(sum, x)| *sum += x);
        }
        if run.wanted[0] {
            run.by_input[0] = Some(Array::row_major(Tensor::new(a_dims, by_a)?));
        }
        if run.wanted[1] {
            run.by_input[1] = Some(Array::row_major(Tensor::new(b_dims, by_b)?));
        }
        Ok(())
    }
}
