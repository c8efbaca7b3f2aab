//! Transposed convolution in int8, its input quantized at run time.

use std::sync::Arc;

use super::{DynamicScheme, Parameters};
use crate::error::{Error, Result};
use crate::kernels::{
    Accumulate, Activation, ActivationRule, Conv2dGeometry, Isa, Matrix, MatrixMut, PackedWeights, Per, RangeOf, WeightLayout, Workspace,
    gemm, min_max, quantize_u8, scatter,
};
use crate::nn::conv_transpose::Transposed;
use crate::num::{NonFinite, affine_qparams};
use crate::tensor::{QuantizedTensor, Tensor};

/// Products whose sum always fits i32: `65536 * 255 * 128 < 2^31`.
const LIMIT: usize = 65536;

/// The twin of [`nn::ConvTranspose2d`](crate::nn::ConvTranspose2d): int8 weights with one scale per output channel, each image
/// quantized by its own range (or all by that of the tensor), products and sums in integers.
#[derive(Debug, Clone)]
pub struct ConvTranspose2d {
    shape: Transposed,
    /// One for each group: `[in / groups, taps * out / groups]`.
    packed: Arc<Vec<PackedWeights>>,
    parameters: Parameters,
}

impl ConvTranspose2d {
    /// Quantizes float weights `[in, out / groups, kh, kw]`, to run on `isa`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming weight or bias, [`Error::Length`], [`Error::Parameter`] for an impossible geometry,
    /// [`Error::Unsupported`] for a scheme that the kernels can't run, [`Error::Isa`], [`Error::Accumulator`] when the sums are
    /// too long for i32.
    pub fn from_float(
        geometry: &Conv2dGeometry,
        output_padding: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
        scheme: &DynamicScheme,
        isa: Isa,
    ) -> Result<Self> {
        geometry.validate()?;
        let shape = Transposed::new(geometry.clone(), output_padding)?;
        let dims = shape.weight_shape();
        let expected = dims.iter().product();
        if weight.len() != expected {
            return Err(Error::length(format!("weight of shape {dims:?}"), expected, weight.len()));
        }
        let (input, output, taps) = shape.group();
        // Output channels first: their axis has the scales.
        let mut by_output = vec![0f32; expected];
        for (i, kernel) in weight.chunks_exact(taps).enumerate() {
            let (group, i, o) = (i / (input * output), i / output % input, i % output);
            by_output[((group * output + o) * input + i) * taps..][..taps].copy_from_slice(kernel);
        }
        let weight = scheme.weights(&Tensor::new([geometry.out_channels, input, dims[2], dims[3]], by_output)?)?;
        ConvTranspose2d::from_codes(geometry, output_padding, &weight, bias, scheme, isa)
    }

    /// Takes weights that are quantized already: symmetric codes, output channels first, `[out, in / groups, kh, kw]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unsupported`] for codes with zero points or groups, else those of
    /// [`ConvTranspose2d::from_float`].
    pub fn from_codes(
        geometry: &Conv2dGeometry,
        output_padding: [usize; 2],
        weight: &QuantizedTensor<i8>,
        bias: Option<&[f32]>,
        scheme: &DynamicScheme,
        isa: Isa,
    ) -> Result<Self> {
        geometry.validate()?;
        let shape = Transposed::new(geometry.clone(), output_padding)?;
        let (input, output, taps) = shape.group();
        let expected = [geometry.out_channels, input, geometry.kernel[0], geometry.kernel[1]];
        if weight.shape().dims() != expected {
            return Err(Error::shape("weight", format!("{expected:?} ([out, in / groups, kh, kw])"), weight.shape().dims()));
        }
        check_sums(&shape)?;
        let parameters = Parameters::new(weight, bias, geometry.out_channels, scheme)?;
        let mut codes = vec![0i8; input * output * taps];
        let pack = |group: &[i8]| {
            // From [out, in, taps] to [taps, out, in]: a column for each tap and channel.
            for (i, kernel) in group.chunks_exact(taps).enumerate() {
                kernel.iter().enumerate().for_each(|(tap, &code)| codes[tap * output * input + i] = code);
            }
            PackedWeights::pack_for(isa, &codes, taps * output, input, WeightLayout::Nk)
        };
        let packed: Vec<PackedWeights> = weight.storage().chunks_exact(input * output * taps).map(pack).collect::<Result<_>>()?;
        Ok(ConvTranspose2d { shape, packed: Arc::new(packed), parameters })
    }

    /// Channels, kernel, stride, padding, dilation, groups.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.shape.geometry
    }

    /// Rows and columns more at the end of the output.
    pub fn output_padding(&self) -> [usize; 2] {
        self.shape.output_padding
    }

    /// Name of the integer kernel that runs.
    pub fn kernel_name(&self) -> &'static str {
        self.packed[0].kernel_name()
    }

    /// The weights as a tensor of codes, output channels first: `[out, in / groups, kh, kw]`, read back from the panels.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], which a layer that was built can't meet.
    pub fn weight(&self) -> Result<QuantizedTensor<i8>> {
        let (input, output, taps) = self.shape.group();
        let mut codes = Vec::with_capacity(self.geometry().out_channels * input * taps);
        for packed in self.packed.iter() {
            let group = packed.unpack();
            codes.extend((0..output * input).flat_map(|i| group[i..].iter().step_by(output * input).copied()));
        }
        self.parameters.weight(&codes, &[self.geometry().out_channels, input, self.geometry().kernel[0], self.geometry().kernel[1]])
    }

    /// Scales of the weights: one, or one per output channel.
    pub fn scales(&self) -> &[f32] {
        self.parameters.scales.as_slice()
    }

    /// Bias by output channel.
    pub fn bias(&self) -> Option<&[f32]> {
        self.parameters.bias()
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
        ConvTranspose2d { parameters: self.parameters.with_range(range), ..self.clone() }
    }

    /// Bytes of panels, column sums and scales.
    pub fn weight_bytes(&self) -> usize {
        self.packed.iter().map(PackedWeights::bytes).sum::<usize>() + 4 * self.scales().len()
    }

    /// Bytes of codes at their bits, scales and bias, as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.parameters.stored_bytes(self.shape.weight_shape().iter().product())
    }

    pub(crate) fn shape(&self) -> &Transposed {
        &self.shape
    }

    /// Runs on `n` channels-last images of `h x w` (`dims` = `[n, h, w]`); `output` is channels-last.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not fit, [`Error::ShapeOverflow`] when nothing could, [`Error::NonFinite`] for NaN or
    /// infinities in the input (unless the scheme saturates them), and those of
    /// [`nn::ConvTranspose2d::output_size`](crate::nn::ConvTranspose2d::output_size).
    pub fn forward(&self, input: &[f32], dims: [usize; 3], output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.run(input, dims, Activation::None, output, workspace, threads)
    }

    /// [`ConvTranspose2d::forward`] with an activation.
    pub(crate) fn run(
        &self,
        input: &[f32],
        dims: [usize; 3],
        activation: Activation,
        output: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        // The workspace serves the products meanwhile.
        let mut columns = std::mem::take(&mut workspace.columns);
        let done = self.images(input, dims, activation, output, &mut columns, workspace, threads);
        workspace.columns = columns;
        done
    }

    #[allow(clippy::too_many_arguments)]
    fn images(
        &self,
        input: &[f32],
        dims: [usize; 3],
        activation: Activation,
        output: &mut [f32],
        memory: &mut crate::kernels::Aligned,
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        let [_, h, w] = dims;
        let out = self.shape.check(dims, input.len(), output.len())?;
        let Conv2dGeometry { in_channels, out_channels, .. } = self.shape.geometry;
        let (per_group, _, _) = self.shape.group();
        let (rows, pixel) = self.shape.band(h, w);
        let (image, products) = (h * w * in_channels, rows * w * pixel * size_of::<i32>());
        let (columns, codes) = memory.grow::<u8>(products + image).split_at_mut(products);
        let (columns, codes) = (bytemuck::cast_slice_mut::<u8, i32>(columns), &mut codes[..image]);
        let rule = &self.parameters.rule;
        let whole = (self.parameters.range == RangeOf::Tensor).then(|| min_max(input));
        for (i, (x, y)) in input.chunks_exact(image).zip(output.chunks_exact_mut(out[0] * out[1] * out_channels)).enumerate() {
            let range = whole.unwrap_or_else(|| min_max(x));
            if !range.finite && rule.non_finite == NonFinite::Error {
                NonFinite::Error.check("input", x).map_err(|error| match error {
                    Error::NonFinite { what, index, value } => Error::NonFinite { what, index: i * image + index, value },
                    error => error,
                })?;
            }
            let (scale, zero_point) = affine_qparams(range.min, range.max, rule.qmin, rule.qmax, rule.symmetric);
            quantize_u8(x, scale, zero_point, rule.qmin, rule.qmax, codes)?;
            // The sums stand where the results will.
            let sums = bytemuck::cast_slice_mut::<f32, i32>(y);
            sums.fill(0);
            for (group, weights) in self.packed.iter().enumerate() {
                let places = self.shape.scatter(group, w, out);
                for first in (0..h).step_by(rows) {
                    let band = first..h.min(first + rows);
                    let m = band.len() * w;
                    let lhs = &codes[first * w * in_channels + group * per_group..];
                    let lhs = Matrix::new(lhs, m, per_group)?.with_stride(in_channels)?;
                    let columns = &mut columns[..m * pixel];
                    gemm(lhs, Per::Tensor(zero_point), weights, &Accumulate, MatrixMut::new(columns, m, pixel)?, workspace, threads)?;
                    scatter(columns, band, &places, sums);
                }
            }
            self.dequantize(y, scale, activation);
        }
        Ok(())
    }

    /// Sums to floats, in place.
    fn dequantize(&self, y: &mut [f32], scale: f32, activation: Activation) {
        let (scales, bias) = (self.scales(), self.bias());
        for pixel in y.chunks_exact_mut(self.geometry().out_channels) {
            for (channel, y) in pixel.iter_mut().enumerate() {
                let weight_scale = if scales.len() == 1 { scales[0] } else { scales[channel] };
                let value = (y.to_bits() as i32) as f32 * (scale * weight_scale);
                *y = activation.apply(bias.map_or(value, |bias| value + bias[channel]));
            }
        }
    }
}

/// Whether every sum fits i32.
///
/// # Errors
/// [`Error::Accumulator`].
pub(crate) fn check_sums(shape: &Transposed) -> Result<()> {
    let (input, _, taps) = shape.group();
    // At most every tap of every channel lies on one pixel.
    match input.saturating_mul(taps) {
        k if k > LIMIT => Err(Error::Accumulator { k, limit: LIMIT }),
        _ => Ok(()),
    }
}
