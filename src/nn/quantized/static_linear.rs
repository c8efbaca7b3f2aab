//! The fully connected layer from codes to codes.

use std::sync::Arc;

use super::StaticOutput;
use super::static_stage::{StaticOutputMut, StaticParameters, accessors};
use crate::error::{Error, Result};
use crate::kernels::{Isa, Matrix, MatrixMut, PackedWeights, Per, WeightLayout, Workspace, gemm};
use crate::nn::linear::check_rows;
use crate::num::U8Grid;
use crate::tensor::{QuantizedTensor, repeat};

/// A fully connected layer whose input has a grid fixed beforehand: what [`StaticConv2d`](super::StaticConv2d) is to
/// convolutions, by the same formula.
#[derive(Debug, Clone)]
pub struct StaticLinear {
    packed: Arc<PackedWeights>,
    numbers: StaticParameters,
}

accessors!(StaticLinear);

impl StaticLinear {
    /// From symmetric codes `[out_features, in_features]`, one scale or one per output feature.
    ///
    /// # Errors
    /// Those of [`StaticConv2d::from_codes`](super::StaticConv2d::from_codes).
    pub fn from_codes(weight: &QuantizedTensor<i8>, bias: Option<&[f32]>, input: U8Grid, output: StaticOutput, isa: Isa) -> Result<Self> {
        let &[out_features, in_features] = weight.shape().dims() else {
            return Err(Error::shape("weight", "[out, in]", weight.shape().dims()));
        };
        if in_features == 0 {
            drop(repeat(0f32, out_features, weight.shape().dims())?);
        }
        let numbers = StaticParameters::new(weight, bias, out_features, (in_features, true), input, output)?;
        let packed = PackedWeights::pack_for(isa, weight.storage(), out_features, in_features, WeightLayout::Nk)?;
        Ok(StaticLinear { packed: Arc::new(packed), numbers })
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.packed.k()
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.packed.n()
    }

    /// Bytes of codes at their bits, scales and bias, as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.numbers.weights.stored_bytes(self.in_features() * self.out_features())
    }

    /// Outputs, products in each sum, and whether it is linear.
    fn sums_of(&self) -> (usize, usize, bool) {
        (self.out_features(), self.in_features(), true)
    }

    /// The weights as a tensor of codes, read back from the panels.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], which a layer that was built can't meet.
    pub fn weight(&self) -> Result<QuantizedTensor<i8>> {
        self.numbers.weights.weight(&self.packed.unpack(), &[self.out_features(), self.in_features()])
    }

    /// Runs on `rows` rows of `in_features` codes each.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not hold exactly its rows, [`Error::Type`] for memory of another type than
    /// [`StaticLinear::output`] says, [`Error::Parameter`] for a residual that is missing or not asked for.
    pub fn forward(
        &self,
        input: &[u8],
        rows: usize,
        residual: Option<&[u8]>,
        output: StaticOutputMut<'_>,
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        let (k, n) = (self.in_features(), self.out_features());
        let zero = Per::Tensor(self.numbers.input.zero_point().into());
        match (output, self.numbers.output) {
            (StaticOutputMut::Codes(y), StaticOutput::Codes { .. }) => {
                check_rows(rows, [input.len(), k], [y.len(), n])?;
                let stage = self.numbers.requantize(residual, rows, n)?.expect("it writes codes");
                let (lhs, dst) = (Matrix::new(input, rows, k)?, MatrixMut::new(y, rows, n)?);
                gemm(lhs, zero, &self.packed, &stage, dst, workspace, threads)
            }
            (StaticOutputMut::Float(y), StaticOutput::Float(activation)) => {
                check_rows(rows, [input.len(), k], [y.len(), n])?;
                let (lhs, dst) = (Matrix::new(input, rows, k)?, MatrixMut::new(y, rows, n)?);
                gemm(lhs, zero, &self.packed, &self.numbers.dequantize(activation), dst, workspace, threads)
            }
            (output, _) => Err(self.numbers.unfit(&output)),
        }
    }
}
