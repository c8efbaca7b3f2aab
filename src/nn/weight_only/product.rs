//! Rows times quantized weights: what the linear layer and the convolution of single pixels share.

use super::{Activations, StoredWeights};
use crate::error::{Error, Result};
use crate::kernels::{FloatEpilogue, LowBitRange, Matrix, MatrixMut, WeightLayout, Workspace, gemm_low_bit, gemm_low_bit_f32, matmul_f32};
use crate::nn::plan::Fused;
use crate::nn::quantized::{finite_bias, named};
use crate::num::NonFinite;
use crate::tensor::Tensor;

/// Bytes of the weights that are dequantized at a time, where no kernel multiplies their codes: half of a common second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

/// Weights `[out, ..]`, all axes after the first as one, and what follows the product with them.
#[derive(Debug, Clone)]
pub(super) struct Product {
    weight: StoredWeights,
    bias: Option<Tensor>,
    activations: Activations,
}

impl Product {
    /// # Errors
    /// [`Error::Length`] for a bias of another length than `out`, [`Error::NonFinite`] for NaN or infinities in it.
    pub fn new(weight: StoredWeights, bias: Option<&[f32]>, out: usize, activations: Activations) -> Result<Self> {
        let bias = match bias {
            Some(bias) if bias.len() != out => return Err(Error::length("bias", out, bias.len())),
            Some(bias) => Some(Tensor::new([out], finite_bias(bias, NonFinite::Error)?)?),
            None => None,
        };
        Ok(Product { weight, bias, activations })
    }

    pub fn weight(&self) -> &StoredWeights {
        &self.weight
    }

    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(Tensor::as_slice)
    }

    /// The same with another bias.
    ///
    /// # Errors
    /// Those of [`Product::new`].
    pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        Product::new(self.weight.clone(), Some(bias), self.weight.shape().dims()[0], self.activations)
    }

    /// What is multiplied with the weights: bytes only where products run on packed codes.
    pub fn activations(&self) -> Activations {
        if self.weight.panels().is_some() { self.activations } else { Activations::Float }
    }

    /// Runs on as many rows as the output has.
    ///
    /// # Errors
    /// [`Error::Shape`] when the input has not as many, [`Error::NonFinite`] for NaN or infinities in an input that is quantized.
    pub fn run(&self, input: &[f32], fused: Fused, output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        let n = self.weight.shape().dims()[0];
        let k = self.weight.shape().elements().checked_div(n).unwrap_or(0);
        let rows = output.len().checked_div(n).unwrap_or(0);
        let lhs = Matrix::new(input, rows, k)?;
        if let Some(panels) = self.weight.panels() {
            let (dst, epilogue) = (MatrixMut::new(output, rows, n)?, epilogue(self.bias(), fused));
            let range = match self.activations {
                Activations::Float => return gemm_low_bit_f32(lhs, panels, &epilogue, dst, workspace, threads),
                Activations::Int8 => LowBitRange::Row,
                Activations::Int8Groups => LowBitRange::Group,
            };
            let done = gemm_low_bit(lhs, range, NonFinite::Error, panels, &epilogue, dst, workspace, threads);
            return done.map_err(|error| named("input", error));
        }
        let Some(weight) = self.weight.plain().filter(|_| rows > 0) else { return Ok(()) };
        let block = (BLOCK_BYTES / (4 * k.max(1))).max(1);
        let mut memory = std::mem::take(&mut workspace.columns);
        let mut columns = (0..n).step_by(block).map(|first| first..(first + block).min(n));
        let done = columns.try_for_each(|columns| {
            let values = &mut memory.grow::<f32>(block * k)[..columns.len() * k];
            weight.dequantize_into(columns.start * k, values);
            let rhs = Matrix::new(values, columns.len(), k)?;
            let dst = MatrixMut::new(&mut output[columns.start..], rows, columns.len()).and_then(|dst| dst.with_stride(n))?;
            let epilogue = epilogue(self.bias().map(|bias| &bias[columns.clone()]), fused);
            matmul_f32(lhs, rhs, WeightLayout::Nk, &epilogue, dst, workspace, threads)
        });
        workspace.columns = memory;
        done
    }
}

/// What follows the sums.
pub(super) fn epilogue(bias: Option<&[f32]>, fused: Fused) -> FloatEpilogue<'_> {
    FloatEpilogue::new().with_bias(bias).with_activation(fused.activation).with_accumulate(fused.residual)
}
