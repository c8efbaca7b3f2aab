//! Convolution in int8, its input quantized at run time.

use std::sync::Arc;

use super::{DynamicScheme, Parameters, check_bias};
use crate::error::{Error, Result};
use crate::kernels::{
    ActivationRule, Conv2dGeometry, Epilogue, ImageShape, InputRule, Isa, PackedConv2d, Range, RangeOf, Workspace, conv2d_dynamic,
};
use crate::nn::conv::check_images;
use crate::nn::plan::Stage;
use crate::tensor::{QuantizedTensor, Tensor};

/// The twin of [`nn::Conv2d`](crate::nn::Conv2d): int8 weights, each image quantized by its own range (or all by that
/// of the tensor), products and sums in integers.
///
/// ```
/// use lowprec::kernels::{Conv2dGeometry, ImageLayout, ImageShape, Workspace};
/// use lowprec::nn::quantized::Conv2d;
///
/// // 8 channels in, 16 out, 3x3: weights from anywhere, in PyTorch's order [out, in, kh, kw].
/// let weight: Vec<f32> = (0..16 * 8 * 9).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
/// let geometry = Conv2dGeometry::new(8, 16, [3, 3]).with_padding([1, 1, 1, 1]);
/// let conv = Conv2d::from_slices(&geometry, &weight, None)?;
///
/// let images = vec![0.5f32; 2 * 6 * 6 * 8];
/// let shape = ImageShape { n: 2, h: 6, w: 6, layout: ImageLayout::Nhwc };
/// let mut features = vec![0.0; 2 * 6 * 6 * 16];
/// conv.forward(&images, shape, &mut features, &mut Workspace::default(), 1)?;
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Conv2d {
    packed: Arc<PackedConv2d>,
    parameters: Parameters,
}

impl Conv2d {
    /// Quantizes float weights `[out, in / groups, kh, kw]` by the default scheme.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming weight or bias, [`Error::Length`], and [`Error::Parameter`] for an impossible geometry.
    pub fn from_slices(geometry: &Conv2dGeometry, weight: &[f32], bias: Option<&[f32]>) -> Result<Self> {
        Conv2d::from_float(geometry, weight, bias, &DynamicScheme::default(), Isa::best())
    }

    /// Quantizes float weights `[out, in / groups, kh, kw]`, to run on `isa`.
    ///
    /// # Errors
    /// Those of [`Conv2d::from_slices`]; [`Error::Unsupported`] for a scheme that the kernels can't run, [`Error::Isa`],
    /// [`Error::Accumulator`] when the sums are too long for i32.
    pub fn from_float(geometry: &Conv2dGeometry, weight: &[f32], bias: Option<&[f32]>, scheme: &DynamicScheme, isa: Isa) -> Result<Self> {
        geometry.validate()?;
        let dims = geometry.weight_shape();
        let expected = dims.iter().product();
        if weight.len() != expected {
            return Err(Error::length(format!("weight of shape {dims:?}"), expected, weight.len()));
        }
        Conv2d::from_tensor(geometry, &Tensor::new(dims, weight.to_vec())?, bias, scheme, isa)
    }

    /// As [`Conv2d::from_float`], of a weight that is a tensor already: a copy would take as long as the quantization.
    pub(crate) fn from_tensor(
        geometry: &Conv2dGeometry,
        weight: &Tensor,
        bias: Option<&[f32]>,
        scheme: &DynamicScheme,
        isa: Isa,
    ) -> Result<Self> {
        Conv2d::from_codes(geometry, &scheme.weights(weight)?, bias, scheme, isa)
    }

    /// Takes weights that are quantized already: symmetric codes `[out, in / groups, kh, kw]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unsupported`] for codes with zero points or groups, else those of
    /// [`Conv2d::from_float`].
    pub fn from_codes(
        geometry: &Conv2dGeometry,
        weight: &QuantizedTensor<i8>,
        bias: Option<&[f32]>,
        scheme: &DynamicScheme,
        isa: Isa,
    ) -> Result<Self> {
        geometry.validate()?;
        if weight.shape().dims() != geometry.weight_shape() {
            return Err(Error::shape(
                "weight",
                format!("{:?} ([out, in / groups, kh, kw])", geometry.weight_shape()),
                weight.shape().dims(),
            ));
        }
        let parameters = Parameters::new(weight, bias, geometry.out_channels, scheme)?;
        Ok(Conv2d { packed: Arc::new(PackedConv2d::pack_for(isa, geometry, weight.storage())?), parameters })
    }

    /// Channels, kernel, stride, padding, dilation, groups.
    pub fn geometry(&self) -> &Conv2dGeometry {
        self.packed.geometry()
    }

    /// Name of the integer kernel that the weights are packed for.
    pub fn kernel_name(&self) -> &'static str {
        self.packed.kernel_name()
    }

    /// The weights as a tensor of codes, read back from the panels.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], which a layer that was built can't meet.
    pub fn weight(&self) -> Result<QuantizedTensor<i8>> {
        self.parameters.weight(&self.packed.unpack(), &self.geometry().weight_shape())
    }

    /// Scales of the weights: one, or one per output channel.
    pub fn scales(&self) -> &[f32] {
        self.parameters.scales.as_slice()
    }

    /// Bias by output channel.
    pub fn bias(&self) -> Option<&[f32]> {
        self.parameters.bias()
    }

    /// The same layer with another bias.
    ///
    /// # Errors
    /// [`Error::Length`] when it has not one number for each output channel, [`Error::NonFinite`] for NaN or infinities in it.
    pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        check_bias(bias, self.geometry().out_channels)?;
        Ok(Conv2d { packed: self.packed.clone(), parameters: self.parameters.with_bias(bias)? })
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
        Conv2d { packed: self.packed.clone(), parameters: self.parameters.with_range(range) }
    }

    /// Bytes of panels, column sums and scales.
    pub fn weight_bytes(&self) -> usize {
        self.packed.bytes() + 4 * self.scales().len()
    }

    /// Bytes of codes at their bits, scales and bias, as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.parameters.stored_bytes(self.geometry().weight_shape().iter().product())
    }

    /// Runs on `shape.n` images in either layout; `output` is channels-last.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not fit `shape`, [`Error::ShapeOverflow`] when nothing could,
    /// [`Error::NonFinite`] for NaN or infinities in the input (unless the scheme saturates them), [`Error::Shape`] when the
    /// kernel is larger than the image.
    pub fn forward(&self, input: &[f32], shape: ImageShape, output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.run(input, shape, Stage::default(), output, workspace, threads)
    }

    /// [`Conv2d::forward`], with what was fused into it.
    pub(crate) fn run(
        &self,
        input: &[f32],
        shape: ImageShape,
        stage: Stage<'_>,
        output: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        check_images(self.geometry(), shape)?;
        let epilogue = Epilogue::new(self.scales())
            .with_bias(self.bias())
            .with_activation(stage.fused.activation)
            .with_accumulate(stage.fused.residual)
            .with_ranges(stage.measured);
        let range = self.parameters.range;
        // Whoever wrote the input measured each image.
        let whole = stage.given.filter(|_| range == RangeOf::Tensor).and_then(|given| given.iter().copied().reduce(Range::union));
        let whole = whole.map(|range| [range]);
        let ranges = if range == RangeOf::Tensor { whole.as_ref().map(<[Range; 1]>::as_slice) } else { stage.given };
        let rule = InputRule { rule: &self.parameters.rule, ranges };
        conv2d_dynamic(input, shape, range, rule, &self.packed, &epilogue, output, workspace, threads)
    }
}
