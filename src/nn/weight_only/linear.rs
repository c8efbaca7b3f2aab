//! The fully connected layer with quantized weights.

use super::product::Product;
use super::{Activations, StoredWeights};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::linear::check_rows;
use crate::nn::plan::Fused;
use crate::quant::QuantizedWeights;

/// `y = x · dequantize(weight)ᵀ + bias` over the last axis. Weights are `[out, in]`.
///
/// ```
/// use lowprec::kernels::Workspace;
/// use lowprec::nn::weight_only::{Activations, Linear};
/// use lowprec::quant::WeightFormat;
/// use lowprec::Tensor;
/// let weight = Tensor::new([2, 4], vec![0.7, -0.1, 0.3, 0.0, 0.2, 0.4, -0.7, 0.1])?;
/// let format: WeightFormat = "int4:g4".parse()?;
/// let linear = Linear::new(format.quantize(&weight)?, None, Activations::Float)?;
/// let mut y = [0.0; 2];
/// linear.forward(&[1.0, 1.0, 1.0, 1.0], 1, &mut y, &mut Workspace::default(), 1)?;
/// assert!((y[0] - 0.9).abs() < 0.01 && y[1].abs() < 0.01);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    product: Product,
}

impl Linear {
    /// A layer with these weights.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not `[out, in]`, [`Error::Length`] for a bias of another length than `out`,
    /// [`Error::NonFinite`] for NaN or infinities in it.
    pub fn new(weight: QuantizedWeights, bias: Option<&[f32]>, activations: Activations) -> Result<Self> {
        let &[out, _] = weight.shape().dims() else {
            return Err(Error::shape("weight", "[out, in]", weight.shape().dims()));
        };
        Ok(Linear { product: Product::new(StoredWeights::for_products(weight)?, bias, out, activations)? })
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.weight().shape().dims()[1]
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.weight().shape().dims()[0]
    }

    /// The weights.
    pub fn weight(&self) -> &StoredWeights {
        self.product.weight()
    }

    /// Bias by output feature.
    pub fn bias(&self) -> Option<&[f32]> {
        self.product.bias()
    }

    /// The same layer with another bias.
    ///
    /// # Errors
    /// [`Error::Length`] when it has not one number for each output feature, [`Error::NonFinite`] for NaN or infinities in it.
    pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        Ok(Linear { product: self.product.with_bias(bias)? })
    }

    /// What is multiplied with the weights: bytes only where products run on packed codes.
    pub fn activations(&self) -> Activations {
        self.product.activations()
    }

    /// Runs on `rows` rows of `in_features` values each.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not hold exactly its rows, [`Error::NonFinite`] for NaN or infinities in an input that is
    /// quantized.
    pub fn forward(&self, input: &[f32], rows: usize, output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.run(input, rows, Fused::default(), output, workspace, threads)
    }

    /// [`Linear::forward`], with what was fused into it.
    pub(crate) fn run(
        &self,
        input: &[f32],
        rows: usize,
        fused: Fused,
        output: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        check_rows(rows, [input.len(), self.in_features()], [output.len(), self.out_features()])?;
        self.product.run(input, fused, output, workspace, threads)
    }
}
