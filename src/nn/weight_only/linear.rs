//! The fully connected layer with quantized weights.

use super::{Activations, StoredWeights};
use crate::error::{Error, Result};
use crate::kernels::{FloatEpilogue, Matrix, MatrixMut, WeightLayout, Workspace, gemm_low_bit, gemm_low_bit_f32, matmul_f32};
use crate::nn::linear::check_rows;
use crate::nn::plan::Fused;
use crate::nn::quantized::{finite_bias, named};
use crate::num::NonFinite;
use crate::quant::QuantizedWeights;
use crate::tensor::Tensor;

/// Bytes of the weights that are dequantized at a time, where no kernel multiplies their codes: half of a common second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

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
    weight: StoredWeights,
    bias: Option<Tensor>,
    activations: Activations,
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
        let bias = check_bias(bias, out)?;
        Ok(Linear { weight: StoredWeights::for_products(weight)?, bias, activations })
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.weight.shape().dims()[1]
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.weight.shape().dims()[0]
    }

    /// The weights.
    pub fn weight(&self) -> &StoredWeights {
        &self.weight
    }

    /// Bias by output feature.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(Tensor::as_slice)
    }

    /// What is multiplied with the weights: bytes only where products run on packed codes.
    pub fn activations(&self) -> Activations {
        if self.weight.panels().is_some() { self.activations } else { Activations::Float }
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
        multiply(&self.weight, self.activations, input, self.bias(), fused, output, workspace, threads)
    }
}

/// A bias of one value for each output, all finite.
pub(super) fn check_bias(bias: Option<&[f32]>, out: usize) -> Result<Option<Tensor>> {
    match bias {
        Some(bias) if bias.len() != out => Err(Error::length("bias", out, bias.len())),
        Some(bias) => Tensor::new([out], finite_bias(bias, NonFinite::Error)?).map(Some),
        None => Ok(None),
    }
}

/// Rows of activations times weights `[out, ..]`, all axes after the first as one.
#[allow(clippy::too_many_arguments)]
pub(super) fn multiply(
    weight: &StoredWeights,
    activations: Activations,
    input: &[f32],
    bias: Option<&[f32]>,
    fused: Fused,
    output: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let n = weight.shape().dims()[0];
    let k = weight.shape().elements().checked_div(n).unwrap_or(0);
    let rows = output.len().checked_div(n).unwrap_or(0);
    let epilogue = |bias| FloatEpilogue::new().with_bias(bias).with_activation(fused.activation).with_accumulate(fused.residual);
    let lhs = Matrix::new(input, rows, k)?;
    if let Some(panels) = weight.panels() {
        let dst = MatrixMut::new(output, rows, n)?;
        return match activations {
            Activations::Float => gemm_low_bit_f32(lhs, panels, &epilogue(bias), dst, workspace, threads),
            Activations::Int8 => {
                gemm_low_bit(lhs, NonFinite::Error, panels, &epilogue(bias), dst, workspace, threads).map_err(|error| named("input", error))
            }
        };
    }
    let Some(weight) = weight.plain().filter(|_| rows > 0) else { return Ok(()) };
    let block = (BLOCK_BYTES / (4 * k.max(1))).max(1);
    let mut memory = std::mem::take(&mut workspace.columns);
    let mut columns = (0..n).step_by(block).map(|first| first..(first + block).min(n));
    let done = columns.try_for_each(|columns| {
        let values = &mut memory.grow::<f32>(block * k)[..columns.len() * k];
        weight.dequantize_into(columns.start * k, values);
        let rhs = Matrix::new(values, columns.len(), k)?;
        let dst = MatrixMut::new(&mut output[columns.start..], rows, columns.len()).and_then(|dst| dst.with_stride(n))?;
        let epilogue = epilogue(bias.map(|bias| &bias[columns.clone()]));
        matmul_f32(lhs, rhs, WeightLayout::Nk, &epilogue, dst, workspace, threads)
    });
    workspace.columns = memory;
    done
}
