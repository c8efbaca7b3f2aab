//! Products of matrices that are both values, as attention has them: `dA = dY Bᵀ`, `dB = Aᵀ dY`, summed where a side was repeated.

use super::binary::each_repeated;
use super::product::{multiply, transposed};
use super::{Backward, Differentiable, Forward, evaluate, float, wide};
use crate::error::Result;
use crate::kernels::WeightLayout;
use crate::nn::Layer;
use crate::nn::operator::Gemm;
use crate::tensor::Tensor;
use crate::train::array::Array;

/// Over batches, by numpy's rule.
#[derive(Debug)]
pub struct Products {
    layer: Layer,
}

/// The matrices of a batched product.
struct Batches {
    /// `[m, k, n]`.
    sizes: [usize; 3],
    /// The matrix on either side of each product.
    places: [Vec<usize>; 2],
}

impl Batches {
    /// For operands of these dimensions and an output of those.
    fn new(a: &[usize], b: &[usize], out: &[usize]) -> Self {
        // A vector on the left is a row, on the right a column.
        let (m, k) = if let [.., m, k] = *a { (m, k) } else { (1, a[0]) };
        let n = if let [.., _, n] = *b { n } else { 1 };
        let batch_of = |dims: &[usize]| dims[..dims.len().saturating_sub(2)].to_vec();
        let (a, b) = (batch_of(a), batch_of(b));
        let batch = &out[..a.len().max(b.len())];
        let places = [a, b].map(|own| {
            let mut places = vec![0; batch.iter().product()];
            each_repeated(batch, &own, |index, from| places[index] = from);
            places
        });
        Batches { sizes: [m, k, n], places }
    }

    /// Calls `f` with the number of each product and the first elements of its two matrices.
    fn each(&self, mut f: impl FnMut(usize, usize, usize) -> Result<()>) -> Result<()> {
        let ([m, k, n], [a, b]) = (self.sizes, &self.places);
        a.iter().zip(b).enumerate().try_for_each(|(index, (i, j))| f(index, i * m * k, j * k * n))
    }
}

impl Products {
    pub fn new(layer: &Layer) -> Self {
        Products { layer: layer.clone() }
    }
}

impl Differentiable for Products {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let y = evaluate(&self.layer, run.inputs)?;
        if !run.exact {
            return Ok(y);
        }
        let (a, b) = (float(run.inputs, 0)?, float(run.inputs, 1)?);
        let batches = Batches::new(&a.dims(), &b.dims(), &y.dims());
        let [m, k, n] = batches.sizes;
        let mut sums = vec![0.0f64; y.data().len()];
        batches.each(|index, i, j| {
            wide::add_product(&a.data()[i..][..m * k], &b.data()[j..][..k * n], [m, k, n], &mut sums[index * m * n..][..m * n]);
            Ok(())
        })?;
        Array::like(&y, wide::narrowed(&sums))
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (a, b, gradient) = (float(run.inputs, 0)?, float(run.inputs, 1)?, run.gradient.data());
        let (a_dims, b_dims) = (a.dims(), b.dims());
        let batches = Batches::new(&a_dims, &b_dims, &run.gradient.dims());
        let [m, k, n] = batches.sizes;
        let of = |index: usize, i: usize, j: usize| (&gradient[index * m * n..][..m * n], &a.data()[i..][..m * k], &b.data()[j..][..k * n]);
        let (by_a, by_b) = if run.exact {
            let (mut by_a, mut by_b) = (vec![0.0f64; a.data().len()], vec![0.0f64; b.data().len()]);
            batches.each(|index, i, j| {
                let (gradient, a, b) = of(index, i, j);
                wide::add_product(gradient, &transposed(b, k, n), [m, n, k], &mut by_a[i..][..m * k]);
                wide::add_product(&transposed(a, m, k), gradient, [k, m, n], &mut by_b[j..][..k * n]);
                Ok(())
            })?;
            (wide::narrowed(&by_a), wide::narrowed(&by_b))
        } else {
            let (mut by_a, mut by_b) = (vec![0.0f32; a.data().len()], vec![0.0f32; b.data().len()]);
            let (mut one_a, mut one_b) = (vec![0.0f32; m * k], vec![0.0f32; k * n]);
            batches.each(|index, i, j| {
                let (gradient, a, b) = of(index, i, j);
                multiply(gradient, b, WeightLayout::Nk, [m, n, k], &mut one_a, (&mut *run.workspace, run.threads))?;
                multiply(&transposed(a, m, k), gradient, WeightLayout::Kn, [k, m, n], &mut one_b, (&mut *run.workspace, run.threads))?;
                by_a[i..].iter_mut().zip(&one_a).for_each(|(sum, x)| *sum += x);
                by_b[j..].iter_mut().zip(&one_b).for_each(|(sum, x)| *sum += x);
                Ok(())
            })?;
            (by_a, by_b)
        };
        for (side, (dims, by_side)) in [(a_dims, by_a), (b_dims, by_b)].into_iter().enumerate().filter(|(side, _)| run.wanted[*side]) {
            run.by_input[side] = Some(Array::row_major(Tensor::new(dims, by_side)?));
        }
        Ok(())
    }
}

/// `alpha · A B + beta · C`, of matrices that may be transposed first: `dA = alpha · dY Bᵀ`, `dB = alpha · Aᵀ dY`, `dC = beta · dY`.
#[derive(Debug)]
pub struct General {
    layer: Layer,
    gemm: Gemm,
}

impl General {
    pub fn new(layer: &Layer, gemm: Gemm) -> Self {
        General { layer: layer.clone(), gemm }
    }
}

impl Differentiable for General {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let ([alpha, beta], [turned_a, turned_b]) = (self.gemm.factors(), self.gemm.transposed());
        let (a, b) = (float(run.inputs, 0)?, float(run.inputs, 1)?);
        let [m, k, n] = self.gemm.sizes(&a.dims(), &b.dims())?;
        let gradient: Vec<f32> = run.gradient.data().iter().map(|g| alpha * g).collect();
        // Both sides so that the products find them: `Bᵀ` by its own layout, `Aᵀ` as a matrix in memory.
        let layout = if turned_b { WeightLayout::Kn } else { WeightLayout::Nk };
        let a_turned = if turned_a { a.data().to_vec() } else { transposed(a.data(), m, k) };
        let (mut by_a, mut by_b) = (vec![0.0f32; m * k], vec![0.0f32; k * n]);
        multiply(&gradient, b.data(), layout, [m, n, k], &mut by_a, (&mut *run.workspace, run.threads))?;
        multiply(&a_turned, &gradient, WeightLayout::Kn, [k, m, n], &mut by_b, (&mut *run.workspace, run.threads))?;
        let by_a = if turned_a { transposed(&by_a, m, k) } else { by_a };
        let by_b = if turned_b { transposed(&by_b, k, n) } else { by_b };
        run.by_input[0] = Some(Array::row_major(Tensor::new(a.dims(), by_a)?));
        run.by_input[1] = Some(Array::row_major(Tensor::new(b.dims(), by_b)?));
        if let Some(Some(_)) = run.inputs.get(2) {
            let dims = float(run.inputs, 2)?.dims();
            let mut by_c = vec![0.0f32; dims.iter().product()];
            each_repeated(&[m, n], &dims, |index, from| by_c[from] += beta * run.gradient.data()[index]);
            run.by_input[2] = Some(Array::row_major(Tensor::new(dims, by_c)?));
        }
        Ok(())
    }
}
