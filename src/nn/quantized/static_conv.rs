//! Convolution from codes to codes.

use std::sync::Arc;

use super::StaticOutput;
use super::static_stage::{StaticOutputMut, StaticParameters, accessors};
use crate::error::{Error, Result};
use crate::kernels::{Conv2dGeometry, ImageShape, Isa, PackedConv2d, Per, Workspace, conv2d};
use crate::nn::conv::check_images;
use crate::num::U8Grid;
use crate::tensor::QuantizedTensor;

/// A convolution whose input has a grid fixed beforehand, by calibration: codes in, codes (or floats) out, all in integers
/// between.
///
/// ```text
/// acc = Σ (x - zero_x) · w + round(bias / (scale_x · scale_w))                           i32, exact
/// y   = clamp(round(f32(acc) · (scale_x · scale_w / scale_y) [+ f32(r - zero_r) · (scale_r / scale_y)]) + zero_y)
/// ```
///
/// The second term is a residual's: the other branch of a sum that follows. Where floats are written, `y` is
/// `activation(f32(acc) · (scale_x · scale_w) + bias)`, the sum then being without bias.
///
/// ```
/// use lowprec::kernels::{Conv2dGeometry, ImageLayout, ImageShape, Isa, Workspace};
/// use lowprec::nn::quantized::{StaticConv2d, StaticOutput, StaticOutputMut};
/// use lowprec::num::U8Grid;
/// use lowprec::quant::{Affine, Quantizer, Scheme};
/// use lowprec::Tensor;
/// let weight = Tensor::new([1, 2, 1, 1], vec![0.5, -0.25])?;
/// let weight = Affine::<i8>::fit(&weight, &Scheme::INT8_WEIGHT)?.quantize(&weight)?;
/// let (input, output) = (U8Grid::new(0.1, 0)?, U8Grid::new(0.05, 100)?);
/// let geometry = Conv2dGeometry::new(2, 1, [1, 1]);
/// let conv = StaticConv2d::from_codes(&geometry, &weight, None, input, StaticOutput::codes(output), Isa::best())?;
/// let shape = ImageShape { n: 1, h: 1, w: 1, layout: ImageLayout::Nhwc };
/// let mut y = [0];
/// conv.forward(&[20, 10], shape, None, StaticOutputMut::Codes(&mut y), &mut Workspace::default(), 1)?;
/// assert_eq!(y, [115]); // 0.5 · 2 - 0.25 · 1 = 0.75 = 15 · 0.05
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StaticConv2d {
    packed: Arc<PackedConv2d>,
    numbers: StaticParameters,
}

accessors!(StaticConv2d);

impl StaticConv2d {
    /// From symmetric codes `[out, in / groups, kh, kw]`, one scale or one per output channel.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Length`], [`Error::NonFinite`] for a bias that is not finite; [`Error::Unsupported`] for codes
    /// with zero points or groups, and for a bias too large for the sums' unit; [`Error::Scale`] for scales whose quotient leaves
    /// f32; [`Error::Isa`]; [`Error::Accumulator`] when the sums are too long for i32.
    pub fn from_codes(
        geometry: &Conv2dGeometry,
        weight: &QuantizedTensor<i8>,
        bias: Option<&[f32]>,
        input: U8Grid,
        output: StaticOutput,
        isa: Isa,
    ) -> Result<Self> {
        geometry.validate()?;
        if weight.shape().dims() != geometry.weight_shape() {
            let expected = format!("{:?} ([out, in / groups, kh, kw])", geometry.weight_shape());
            return Err(Error::shape("weight", expected, weight.shape().dims()));
        }
        let numbers = StaticParameters::new(weight, bias, geometry.out_channels, (geometry.k(), false), input, output)?;
        Ok(StaticConv2d { packed: Arc::new(PackedConv2d::pack_for(isa, geometry, weight.storage())?), numbers })
    }

    /// Channels, kernel, stride, padding, dilation, groups.
    pub fn geometry(&self) -> &Conv2dGeometry {
        self.packed.geometry()
    }

    /// Bytes of codes at their bits, scales and bias, as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.numbers.weights.stored_bytes(self.geometry().weight_shape().iter().product())
    }

    /// Outputs, products in each sum, and whether it is linear.
    fn sums_of(&self) -> (usize, usize, bool) {
        (self.geometry().out_channels, self.geometry().k(), false)
    }

    /// The weights as a tensor of codes, read back from the panels.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], which a layer that was built can't meet.
    pub fn weight(&self) -> Result<QuantizedTensor<i8>> {
        self.numbers.weights.weight(&self.packed.unpack(), &self.geometry().weight_shape())
    }

    /// Runs on `shape.n` images in either layout; residual and output are channels-last.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not fit `shape`, [`Error::ShapeOverflow`] when nothing could, [`Error::Type`] for
    /// memory of another type than [`StaticConv2d::output`] says, [`Error::Parameter`] for a residual that is missing or not
    /// asked for, [`Error::Shape`] when the kernel is larger than the image.
    pub fn forward(
        &self,
        input: &[u8],
        shape: ImageShape,
        residual: Option<&[u8]>,
        output: StaticOutputMut<'_>,
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        check_images(self.geometry(), shape)?;
        let zero = Per::Tensor(self.numbers.input.zero_point().into());
        match (output, self.numbers.output) {
            (StaticOutputMut::Codes(y), StaticOutput::Codes { .. }) => {
                let [h, w] = self.geometry().output_size(shape.h, shape.w)?;
                let stage = self.numbers.requantize(residual, shape.n * h * w, self.geometry().out_channels)?.expect("it writes codes");
                conv2d(input, shape, zero, &self.packed, &stage, y, workspace, threads)
            }
            (StaticOutputMut::Float(y), StaticOutput::Float(activation)) => {
                conv2d(input, shape, zero, &self.packed, &self.numbers.dequantize(activation), y, workspace, threads)
            }
            (output, _) => Err(self.numbers.unfit(&output)),
        }
    }
}
