//! The fully connected layer in int8, its input quantized at run time.

use std::sync::Arc;

use super::{DynamicScheme, Parameters, check_bias, named};
use crate::error::{Error, Result};
use crate::kernels::{ActivationRule, Epilogue, Isa, Matrix, MatrixMut, PackedWeights, RangeOf, WeightLayout, Workspace};
use crate::kernels::{Around, gemm_dynamic_with};
use crate::nn::linear::check_rows;
use crate::nn::plan::Stage;
use crate::tensor::{QuantizedTensor, Tensor, repeat};

/// The twin of [`nn::Linear`](crate::nn::Linear): int8 weights, each row quantized by its own range (or all by that of the
/// tensor), products and sums in integers.
///
/// ```
/// use lowprec::kernels::Workspace;
/// use lowprec::nn::quantized::Linear;
/// // Two inputs, three outputs; weights in PyTorch's order [out, in].
/// let linear = Linear::from_slices(2, 3, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], Some(&[0.0, 0.0, 0.5]))?;
/// let mut y = [0.0; 3];
/// linear.forward(&[1.0, 2.0], 1, &mut y, &mut Workspace::default(), 1)?;
/// assert!((y[2] - 3.5).abs() < 0.02);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    packed: Arc<PackedWeights>,
    parameters: Parameters,
}

impl Linear {
    /// Quantizes float weights `[out_features, in_features]` by the default scheme.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming weight or bias, [`Error::Length`],
    /// [`Error::ShapeOverflow`] for more outputs than memory holds (of no inputs, which no weight stands behind).
    pub fn from_slices(in_features: usize, out_features: usize, weight: &[f32], bias: Option<&[f32]>) -> Result<Self> {
        Linear::from_float(in_features, out_features, weight, bias, &DynamicScheme::default(), Isa::best())
    }

    /// Quantizes float weights `[out_features, in_features]`, to run on `isa`.
    ///
    /// # Errors
    /// Those of [`Linear::from_slices`]; [`Error::Unsupported`] for a scheme that the kernels can't run, [`Error::Isa`].
    pub fn from_float(
        in_features: usize,
        out_features: usize,
        weight: &[f32],
        bias: Option<&[f32]>,
        scheme: &DynamicScheme,
        isa: Isa,
    ) -> Result<Self> {
        let shape = crate::tensor::Shape::new([out_features, in_features])?;
        if weight.len() != shape.elements() {
            return Err(Error::length(format!("weight of shape {shape:?}"), shape.elements(), weight.len()));
        }
        Linear::from_tensor(&Tensor::from_shape(shape, weight.to_vec())?, bias, scheme, isa)
    }

    /// As [`Linear::from_float`], of a weight that is a tensor already.
    pub(crate) fn from_tensor(weight: &Tensor, bias: Option<&[f32]>, scheme: &DynamicScheme, isa: Isa) -> Result<Self> {
        Linear::from_codes(&scheme.weights(weight)?, bias, scheme, isa)
    }

    /// Takes weights that are quantized already: symmetric codes `[out_features, in_features]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unsupported`] for codes with zero points or groups, else those of
    /// [`Linear::from_float`].
    pub fn from_codes(weight: &QuantizedTensor<i8>, bias: Option<&[f32]>, scheme: &DynamicScheme, isa: Isa) -> Result<Self> {
        let &[out_features, in_features] = weight.shape().dims() else {
            return Err(Error::shape("weight", "[out, in]", weight.shape().dims()));
        };
        if in_features == 0 {
            drop(repeat(0f32, out_features, weight.shape().dims())?);
        }
        let parameters = Parameters::new(weight, bias, out_features, scheme)?;
        let packed = PackedWeights::pack_for(isa, weight.storage(), out_features, in_features, WeightLayout::Nk)?;
        Ok(Linear { packed: Arc::new(packed), parameters })
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.packed.k()
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.packed.n()
    }

    /// Name of the integer kernel that runs.
    pub fn kernel_name(&self) -> &'static str {
        self.packed.kernel_name()
    }

    /// The weights as a tensor of codes, read back from the panels.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], which a layer that was built can't meet.
    pub fn weight(&self) -> Result<QuantizedTensor<i8>> {
        self.parameters.weight(&self.packed.unpack(), &[self.out_features(), self.in_features()])
    }

    /// Scales of the weights: one, or one per output feature.
    pub fn scales(&self) -> &[f32] {
        self.parameters.scales.as_slice()
    }

    /// Bias by output feature.
    pub fn bias(&self) -> Option<&[f32]> {
        self.parameters.bias()
    }

    /// The same layer with another bias.
    ///
    /// # Errors
    /// [`Error::Length`] when it has not one number for each output feature, [`Error::NonFinite`] for NaN or infinities in it.
    pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        check_bias(bias, self.out_features())?;
        Ok(Linear { packed: self.packed.clone(), parameters: self.parameters.with_bias(bias)? })
    }

    /// How the input becomes codes.
    pub fn input_rule(&self) -> ActivationRule {
        self.parameters.rule
    }

    /// Over what the range of the input is taken.
    pub fn input_range(&self) -> RangeOf {
        self.parameters.range
    }

    /// The same layer with the range of its input taken over another part of it.
    #[must_use]
    pub fn with_input_range(&self, range: RangeOf) -> Self {
        Linear { packed: self.packed.clone(), parameters: self.parameters.with_range(range) }
    }

    /// Bytes of panels, column sums and scales.
    pub fn weight_bytes(&self) -> usize {
        self.packed.bytes() + 4 * self.scales().len()
    }

    /// Bytes of codes at their bits, scales and bias, as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.parameters.stored_bytes(self.in_features() * self.out_features())
    }

    /// Whether it makes the same codes of an input as `other`.
    pub(crate) fn encodes_alike(&self, other: &Linear) -> bool {
        let of = |linear: &Linear| (linear.parameters.rule, linear.parameters.range, linear.packed.isa(), linear.in_features());
        of(self) == of(other)
    }

    /// Runs on `rows` rows of `in_features` values each.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not hold exactly its rows, [`Error::NonFinite`] for NaN or infinities in the input
    /// (unless the scheme saturates them).
    pub fn forward(&self, input: &[f32], rows: usize, output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.run(input, rows, Stage::default(), output, workspace, threads)
    }

    /// [`Linear::forward`], with what was fused into it.
    pub(crate) fn run(
        &self,
        input: &[f32],
        rows: usize,
        stage: Stage<'_>,
        output: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        check_rows(rows, [input.len(), self.in_features()], [output.len(), self.out_features()])?;
        let Stage { fused, kept, .. } = stage;
        let epilogue =
            Epilogue::new(self.scales()).with_bias(self.bias()).with_activation(fused.activation).with_accumulate(fused.residual);
        let lhs = Matrix::new(input, rows, self.in_features())?;
        let dst = MatrixMut::new(output, rows, self.out_features())?;
        let (range, rule, around) = (self.parameters.range, (&self.parameters.rule).into(), Around { kept, function: fused.function });
        gemm_dynamic_with(lhs, range, rule, &self.packed, &epilogue, around, dst, workspace, threads).map_err(|error| named("input", error))
    }
}
