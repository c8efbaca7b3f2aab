//! The convolution with quantized weights.

use super::product::{Product, epilogue};
use super::{Activations, StoredWeights};
use crate::error::{Error, Result};
use crate::kernels::{Conv2dGeometry, ImageLayout, ImageShape, PackedFloatConv2d, Padding, Workspace, conv2d_f32};
use crate::nn::conv::check_images;
use crate::nn::plan::Fused;
use crate::nn::reorder::transpose;
use crate::quant::QuantizedWeights;

/// [`nn::Conv2d`](crate::nn::Conv2d) of weights `[out, in / groups, kh, kw]` that are held quantized.
///
/// A 1x1 kernel without padding or groups is a product of pixels, those that its stride takes, and runs as
/// [`Linear`](super::Linear) does. Of any other, a call dequantizes the weights, packs them and frees them again, 4 bytes a weight
/// for as long as it runs: that is for networks that must be small, not fast; int8 convolutions are
/// [`quantize_dynamic`](crate::quantize_dynamic)'s.
#[derive(Debug, Clone)]
pub struct Conv2d {
    geometry: Conv2dGeometry,
    product: Product,
}

impl Conv2d {
    /// A convolution with these weights.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an impossible geometry, [`Error::Shape`] when the weights do not fit it, [`Error::Length`] for a bias
    /// that does not, [`Error::NonFinite`] for NaN or infinities in it.
    pub fn new(geometry: Conv2dGeometry, weight: QuantizedWeights, bias: Option<&[f32]>, activations: Activations) -> Result<Self> {
        geometry.validate()?;
        let expected = geometry.weight_shape();
        if weight.shape().dims() != expected {
            return Err(Error::shape("weight", format!("{expected:?} ([out, in / groups, kh, kw])"), weight.shape().dims()));
        }
        let weight = if is_pointwise(&geometry) { StoredWeights::for_products(weight)? } else { StoredWeights::as_stored(weight) };
        Ok(Conv2d { product: Product::new(weight, bias, geometry.out_channels, activations)?, geometry })
    }

    /// Channels, kernel, stride, padding, dilation, groups.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.geometry
    }

    /// The weights.
    pub fn weight(&self) -> &StoredWeights {
        self.product.weight()
    }

    /// Bias by output channel.
    pub fn bias(&self) -> Option<&[f32]> {
        self.product.bias()
    }

    /// The same layer with another bias.
    ///
    /// # Errors
    /// [`Error::Length`] when it has not one number for each output channel, [`Error::NonFinite`] for NaN or infinities in it.
    pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        Ok(Conv2d { geometry: self.geometry.clone(), product: self.product.with_bias(bias)? })
    }

    /// What is multiplied with the weights: bytes only where products run on packed codes.
    pub fn activations(&self) -> Activations {
        self.product.activations()
    }

    /// Runs on `shape.n` images in either layout; `output` is channels-last.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not fit `shape`, [`Error::ShapeOverflow`] when nothing could, [`Error::Shape`] when the
    /// kernel is larger than the image, [`Error::NonFinite`] for NaN or infinities in an input that is quantized.
    pub fn forward(&self, input: &[f32], shape: ImageShape, output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.run(input, shape, Fused::default(), output, workspace, threads)
    }

    /// [`Conv2d::forward`], with what was fused into it.
    pub(crate) fn run(
        &self,
        input: &[f32],
        shape: ImageShape,
        fused: Fused,
        output: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        check_images(&self.geometry, shape)?;
        if !is_pointwise(&self.geometry) {
            let packed = PackedFloatConv2d::pack(&self.geometry, self.weight().dequantize()?.as_slice())?;
            return conv2d_f32(input, shape, &packed, &epilogue(self.bias(), fused), output, workspace, threads);
        }
        let ImageShape { n, h, w, layout } = shape;
        let [channels, outputs] = [self.geometry.in_channels, self.geometry.out_channels];
        let ([rows, columns], [down, right]) = (self.geometry.output_size(h, w)?, self.geometry.stride);
        let lengths = [("input", n * h * w * channels, input.len()), ("output", n * rows * columns * outputs, output.len())];
        if let Some((what, expected, got)) = lengths.into_iter().find(|(_, expected, got)| expected != got) {
            return Err(Error::length(what, expected, got));
        }
        let mut pixels = Vec::new();
        let mut input = match layout {
            ImageLayout::Nhwc => input,
            ImageLayout::Nchw => {
                pixels.resize(input.len(), 0.0);
                transpose(bytemuck::cast_slice(input), size_of::<f32>(), [n, channels, h * w], bytemuck::cast_slice_mut(&mut pixels));
                &pixels
            }
        };
        let mut taken = Vec::new();
        if (down, right) != (1, 1) && !input.is_empty() {
            taken.reserve(n * rows * columns * channels);
            for line in input.chunks_exact(w * channels).enumerate().filter(|(y, _)| (y % h).is_multiple_of(down)).map(|(_, line)| line) {
                line.chunks_exact(channels).step_by(right).for_each(|pixel| taken.extend_from_slice(pixel));
            }
            input = &taken;
        }
        self.product.run(input, fused, output, workspace, threads)
    }
}

/// Whether each output pixel is a product of one input pixel.
fn is_pointwise(geometry: &Conv2dGeometry) -> bool {
    // A rule adds nothing around a kernel of one tap.
    geometry.kernel == [1, 1] && geometry.groups == 1 && matches!(geometry.padding, Padding::NONE | Padding::SameUpper | Padding::SameLower)
}
