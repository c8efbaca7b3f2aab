//! Products of matrices that are both values, as attention has them: `dA = dY Bᵀ`, `dB = Aᵀ dY`, summed where a side was repeated.

use std::borrow::Cow;

use super::binary::each_repeated;
use super::product::{multiply, transposed};
use super::{Backward, Differentiable, Forward, evaluate, float, wide};
use crate::error::Result;
use crate::kernels::WeightLayout;
use crate::nn::Layer;
use crate::nn::operator;
use crate::tensor::Tensor;
use crate::train::array::Array;

/// Over batches, by numpy's rule.
#[derive(Debug)]
pub struct MatMul {
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

impl MatMul {
    pub fn new(layer: &Layer) -> Self {
        MatMul { layer: layer.clone() }
    }
}

impl Differentiable for MatMul {
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
pub struct Gemm {
    layer: Layer,
    gemm: operator::Gemm,
}

impl Gemm {
    pub fn new(layer: &Layer, gemm: operator::Gemm) -> Self {
        Gemm { layer: layer.clone(), gemm }
    }
}

/// `alpha · lhs rhs`, in f64 where sums are to be exact.
fn scaled(alpha: f32, lhs: &[f32], rhs: &[f32], sizes: [usize; 3], run: &mut Backward<'_>) -> Result<Vec<f32>> {
    let [m, _, n] = sizes;
    if run.exact {
        let mut sums = vec![0.0f64; m * n];
        wide::add_product(lhs, rhs, sizes, &mut sums);
        sums.iter_mut().for_each(|sum| *sum *= f64::from(alpha));
        return Ok(wide::narrowed(&sums));
    }
    let mut product = vec![0.0f32; m * n];
    multiply(lhs, rhs, WeightLayout::Kn, sizes, &mut product, (&mut *run.workspace, run.threads))?;
    product.iter_mut().for_each(|x| *x *= alpha);
    Ok(product)
}

impl Differentiable for Gemm {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let y = evaluate(&self.layer, run.inputs)?;
        if !run.exact {
            return Ok(y);
        }
        let ([alpha, beta], [a, b]) = (self.gemm.factors(), [float(run.inputs, 0)?, float(run.inputs, 1)?]);
        let sizes @ [m, k, n] = self.gemm.sizes(&a.dims(), &b.dims())?;
        let (a, b) = (self.side(0, a.data(), [k, m]), self.side(1, b.data(), [n, k]));
        let mut sums = vec![0.0f64; m * n];
        wide::add_product(&a, &b, sizes, &mut sums);
        sums.iter_mut().for_each(|sum| *sum *= f64::from(alpha));
        if let Some(Some(_)) = run.inputs.get(2) {
            let c = float(run.inputs, 2)?;
            each_repeated(&[m, n], &c.dims(), |index, from| sums[index] += f64::from(beta) * f64::from(c.data()[from]));
        }
        Array::like(&y, wide::narrowed(&sums))
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let [alpha, beta] = self.gemm.factors();
        let (a, b, gradient) = (float(run.inputs, 0)?, float(run.inputs, 1)?, run.gradient.data());
        let [m, k, n] = self.gemm.sizes(&a.dims(), &b.dims())?;
        let [transposed_a, transposed_b] = self.gemm.transposed();
        if run.wanted[0] {
            let b = self.side(1, b.data(), [n, k]);
            let by_a = scaled(alpha, gradient, &transposed(&b, k, n), [m, n, k], run)?;
            let by_a = if transposed_a { transposed(&by_a, m, k) } else { by_a };
            run.by_input[0] = Some(Array::row_major(Tensor::new(a.dims(), by_a)?));
        }
        if run.wanted[1] {
            let a = self.side(0, a.data(), [k, m]);
            let by_b = scaled(alpha, &transposed(&a, m, k), gradient, [k, m, n], run)?;
            let by_b = if transposed_b { transposed(&by_b, k, n) } else { by_b };
            run.by_input[1] = Some(Array::row_major(Tensor::new(b.dims(), by_b)?));
        }
        if run.wanted.get(2) == Some(&true) {
            let dims = float(run.inputs, 2)?.dims();
            let mut by_c = vec![0.0f64; dims.iter().product()];
            each_repeated(&[m, n], &dims, |index, from| by_c[from] += f64::from(beta) * f64::from(gradient[index]));
            run.by_input[2] = Some(Array::row_major(Tensor::new(dims, wide::narrowed(&by_c))?));
        }
        Ok(())
    }
}

impl Gemm {
    /// A side as the product has it; `stored` are the dimensions of one that is transposed.
    fn side<'a>(&self, side: usize, x: &'a [f32], [rows, columns]: [usize; 2]) -> Cow<'a, [f32]> {
        match self.gemm.transposed()[side] {
            true => Cow::Owned(transposed(x, rows, columns)),
            false => Cow::Borrowed(x),
        }
    }
}
