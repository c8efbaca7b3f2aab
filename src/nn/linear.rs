//! The fully connected layer in float.

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::kernels::{FloatEpilogue, Matrix, MatrixMut, PackedFloatWeights, WeightLayout, sgemm_with};
use crate::nn::StateDict;
use crate::nn::plan::Fused;
use crate::tensor::{Tensor, elements, repeat};

/// Whether input and output are exactly `rows` rows of these features.
pub(crate) fn check_rows(rows: usize, [input, in_features]: [usize; 2], [output, out_features]: [usize; 2]) -> Result<()> {
    for (what, got, features) in [("input", input, in_features), ("output", output, out_features)] {
        let expected = elements(&[rows, features])?;
        if got != expected {
            return Err(Error::length(format!("{what}, {rows} rows of {features} features,"), expected, got));
        }
    }
    Ok(())
}

/// `y = x · weightᵀ + bias` over the last axis, as PyTorch's `Linear`. Weights are `[out, in]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    // Panels for the float kernel: a cache, filled by the first run and shared by clones.
    packed: Arc<OnceLock<PackedFloatWeights>>,
}

impl Linear {
    /// A layer with these weights.
    ///
    /// # Errors
    /// [`Error::Shape`] when `weight` is not `[out, in]` or `bias` not `[out]`, [`Error::ShapeOverflow`] for more outputs than
    /// memory holds, where `in` is 0 and no weight stands behind them.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let &[out, _] = weight.dims() else {
            return Err(Error::shape("weight", "[out, in]", weight.dims()));
        };
        if weight.is_empty() {
            drop(repeat(0f32, out, weight.dims())?);
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.dims() != [out]) {
            return Err(Error::shape("bias", format!("[{out}]"), bias.dims()));
        }
        Ok(Linear { weight, bias, packed: Arc::default() })
    }

    /// Takes `{name}.weight` (`[out_features, in_features]`) and, when `bias` is set, `{name}.bias` out of `state`.
    ///
    /// # Errors
    /// Those of [`StateDict::take`], which name the missing or wrongly shaped tensor.
    pub fn from_state(state: &mut StateDict, name: &str, in_features: usize, out_features: usize, bias: bool) -> Result<Self> {
        let weight = state.take(&format!("{name}.weight"), &[out_features, in_features])?;
        let bias = bias.then(|| state.take(&format!("{name}.bias"), &[out_features])).transpose()?;
        Linear::new(weight, bias)
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Weights `[out, in]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Runs on `rows` rows of `in_features` values each.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not hold exactly its rows.
    pub fn forward(&self, input: &[f32], rows: usize, output: &mut [f32], threads: usize) -> Result<()> {
        self.run(input, rows, Fused::default(), output, threads)
    }

    /// [`Linear::forward`] with what was fused into it.
    pub(crate) fn run(&self, input: &[f32], rows: usize, fused: Fused, output: &mut [f32], threads: usize) -> Result<()> {
        check_rows(rows, [input.len(), self.in_features()], [output.len(), self.out_features()])?;
        let packed = match self.packed.get() {
            Some(packed) => packed,
            None => {
                let packed = PackedFloatWeights::pack(self.weight.as_slice(), self.out_features(), self.in_features(), WeightLayout::Nk)?;
                self.packed.get_or_init(|| packed)
            }
        };
        let bias = self.bias.as_ref().map(Tensor::as_slice);
        let lhs = Matrix::new(input, rows, self.in_features())?;
        let dst = MatrixMut::new(output, rows, self.out_features())?;
        let epilogue = FloatEpilogue::new().with_bias(bias).with_activation(fused.activation).with_accumulate(fused.residual);
        sgemm_with(lhs, packed, &epilogue, fused.function, dst, threads)
    }
}
