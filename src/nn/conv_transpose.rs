//! Two-dimensional transposed convolution in float.

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::kernels::{
    Activation, Conv2dGeometry, FloatEpilogue, Matrix, MatrixMut, PackedFloatWeights, Padding, Scatter, WeightLayout, Workspace, scatter,
    sgemm,
};
use crate::tensor::{Tensor, elements};

/// Floats of products that are scattered at a time: they stay in a second-level cache.
const BAND: usize = 1 << 15;

/// Channels, kernel, stride, padding, dilation and groups of a transposed convolution, and what the output has more.
///
/// Along each axis the output has `(size - 1) * stride + dilation * (kernel - 1) + 1 + output_padding - padding` pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transposed {
    pub geometry: Conv2dGeometry,
    /// The geometry's, which is fixed: top, left, bottom, right.
    pub padding: [usize; 4],
    pub output_padding: [usize; 2],
}

impl Transposed {
    /// # Errors
    /// [`Error::Parameter`] for padding that is a rule on the input's size, of which a transposed convolution has none.
    pub fn new(geometry: Conv2dGeometry, output_padding: [usize; 2]) -> Result<Self> {
        match geometry.padding {
            Padding::Fixed(padding) => Ok(Transposed { geometry, padding, output_padding }),
            rule => Err(Error::parameter("padding", format!("{rule:?}"), "of a transposed convolution must be fixed")),
        }
    }

    /// Shape of the weights.
    pub fn weight_shape(&self) -> [usize; 4] {
        let Conv2dGeometry { in_channels, out_channels, kernel: [kh, kw], groups, .. } = self.geometry;
        [in_channels, out_channels / groups.max(1), kh, kw]
    }

    /// Input and output channels of a group, and taps.
    pub fn group(&self) -> (usize, usize, usize) {
        let Conv2dGeometry { in_channels, out_channels, kernel: [kh, kw], groups, .. } = self.geometry;
        (in_channels / groups, out_channels / groups, kh * kw)
    }

    pub fn output_size(&self, h: usize, w: usize) -> Result<[usize; 2]> {
        let (Conv2dGeometry { kernel, stride, dilation, .. }, padding) = (&self.geometry, self.padding);
        let mut out = [0; 2];
        for (axis, size) in [h, w].into_iter().enumerate() {
            let span = |pixels: usize, step: usize| pixels.checked_sub(1).and_then(|steps| steps.checked_mul(step));
            let whole = span(size, stride[axis])
                .zip(span(kernel[axis], dilation[axis]))
                .and_then(|(pixels, taps)| pixels.checked_add(taps)?.checked_add(1)?.checked_add(self.output_padding[axis]))
                .filter(|&whole| isize::try_from(whole).is_ok());
            let whole = whole.ok_or_else(|| Error::shape("input", "images of at least one pixel, and few enough to address", &[h, w]))?;
            let padding = padding[axis].checked_add(padding[axis + 2]).filter(|&padding| padding < whole);
            let Some(padding) = padding else {
                return Err(Error::parameter("padding", self.padding, format!("must leave some of the {whole} output pixels")));
            };
            out[axis] = whole - padding;
        }
        Ok(out)
    }

    /// Checks the slices of a run and returns the output's size.
    pub fn check(&self, [n, h, w]: [usize; 3], input: usize, output: usize) -> Result<[usize; 2]> {
        let [oh, ow] = self.output_size(h, w)?;
        let Conv2dGeometry { in_channels, out_channels, .. } = self.geometry;
        for (what, dims, got) in [("input", [n, h, w, in_channels], input), ("output", [n, oh, ow, out_channels], output)] {
            let expected = elements(&dims)?;
            if got != expected {
                return Err(Error::length(what, expected, got));
            }
        }
        Ok([oh, ow])
    }

    /// Of group `group`, where products go.
    pub fn scatter(&self, group: usize, width: usize, out: [usize; 2]) -> Scatter {
        let Conv2dGeometry { kernel, stride, dilation, out_channels, groups, .. } = self.geometry;
        let per_group = out_channels / groups;
        let padding = [self.padding[0], self.padding[1]];
        Scatter { kernel, stride, dilation, padding, width, out, channels: out_channels, group: per_group, first: group * per_group }
    }

    /// How many rows of the input are multiplied at a time, and the products of one pixel.
    pub fn band(&self, h: usize, w: usize) -> (usize, usize) {
        let (_, out, taps) = self.group();
        ((BAND / (w * out * taps).max(1)).clamp(1, h.max(1)), out * taps)
    }

    /// For outputs of `oh` x `ow`.
    pub fn macs(&self, oh: usize, ow: usize) -> u64 {
        let (Conv2dGeometry { kernel, stride, dilation, .. }, padding) = (&self.geometry, self.padding);
        let pixels = [oh, ow].into_iter().enumerate().map(|(axis, size)| {
            let less = (kernel[axis] - 1) * dilation[axis] + 1 + self.output_padding[axis];
            (size + padding[axis] + padding[axis + 2]).saturating_sub(less) / stride[axis] + 1
        });
        self.weight_shape().into_iter().chain(pixels).fold(1, |product, d| product.saturating_mul(d as u64))
    }
}

/// `y[n, o, s · p + d · t - padding] = bias[o] + Σ weight[i, o, t] · x[n, i, p]`, as PyTorch's `ConvTranspose2d`: each pixel of
/// the input adds a scaled kernel to the output.
///
/// Weights are `[in, out / groups, kh, kw]`.
#[derive(Debug, Clone)]
pub struct ConvTranspose2d {
    shape: Transposed,
    weight: Tensor,
    bias: Option<Tensor>,
    // Panels of each group: a cache, filled by the first run and shared by clones.
    packed: Arc<OnceLock<Vec<PackedFloatWeights>>>,
}

impl ConvTranspose2d {
    /// A transposed convolution with these weights. The geometry's padding, which is fixed, is what is taken away from the output.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an impossible geometry, or padding by a rule, [`Error::Shape`] when `weight` is not
    /// `[in, out / groups, kh, kw]` or `bias` not `[out]`.
    pub fn new(geometry: Conv2dGeometry, weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        geometry.validate()?;
        let shape = Transposed::new(geometry, [0; 2])?;
        let expected = shape.weight_shape();
        if weight.dims() != expected {
            return Err(Error::shape("weight", format!("{expected:?} ([in, out / groups, kh, kw])"), weight.dims()));
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.dims() != [shape.geometry.out_channels]) {
            return Err(Error::shape("bias", format!("[{}]", shape.geometry.out_channels), bias.dims()));
        }
        Ok(ConvTranspose2d { shape, weight, bias, packed: Arc::default() })
    }

    /// With so many rows and columns more at the end of the output, which only taps that lie there reach.
    #[must_use]
    pub fn with_output_padding(mut self, output_padding: [usize; 2]) -> Self {
        self.shape.output_padding = output_padding;
        self
    }

    /// Channels, kernel, stride, padding, dilation, groups.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.shape.geometry
    }

    /// Rows and columns more at the end of the output.
    pub fn output_padding(&self) -> [usize; 2] {
        self.shape.output_padding
    }

    /// Height and width of the output: `(size - 1) * stride + dilation * (kernel - 1) + 1 + output_padding - padding`.
    ///
    /// # Errors
    /// [`Error::Shape`] for images without pixels or beyond what can be addressed, [`Error::Parameter`] for padding that leaves
    /// nothing.
    pub fn output_size(&self, h: usize, w: usize) -> Result<[usize; 2]> {
        self.shape.output_size(h, w)
    }

    /// Weights `[in, out / groups, kh, kw]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(crate) fn shape(&self) -> &Transposed {
        &self.shape
    }

    fn pack(&self) -> Result<Vec<PackedFloatWeights>> {
        let (input, output, taps) = self.shape.group();
        let mut group = vec![0f32; input * output * taps];
        let pack = |weight: &[f32]| {
            // From [in, out, taps] to [in, taps, out]: a tap's channels then lie together, as in the output.
            for (from, to) in weight.chunks_exact(output * taps).zip(group.chunks_exact_mut(output * taps)) {
                for (o, from) in from.chunks_exact(taps).enumerate() {
                    from.iter().enumerate().for_each(|(tap, &weight)| to[tap * output + o] = weight);
                }
            }
            PackedFloatWeights::pack(&group, taps * output, input, WeightLayout::Kn)
        };
        self.weight.as_slice().chunks_exact(input * output * taps).map(pack).collect()
    }

    /// Runs on `n` channels-last images of `h x w` (`dims` = `[n, h, w]`); `output` is channels-last.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not fit, [`Error::ShapeOverflow`] when nothing could, and those of
    /// [`ConvTranspose2d::output_size`].
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
        let [_, h, w] = dims;
        let out = self.shape.check(dims, input.len(), output.len())?;
        let packed = match self.packed.get() {
            Some(packed) => packed,
            None => {
                let packed = self.pack()?;
                self.packed.get_or_init(|| packed)
            }
        };
        let Conv2dGeometry { in_channels, out_channels, .. } = self.shape.geometry;
        let (per_group, _, _) = self.shape.group();
        let (rows, pixel) = self.shape.band(h, w);
        let columns = workspace.columns.grow::<f32>(rows * w * pixel);
        for (x, y) in input.chunks_exact(h * w * in_channels).zip(output.chunks_exact_mut(out[0] * out[1] * out_channels)) {
            match &self.bias {
                Some(bias) => y.chunks_exact_mut(out_channels).for_each(|y| y.copy_from_slice(bias.as_slice())),
                None => y.fill(0.0),
            }
            for (group, weights) in packed.iter().enumerate() {
                let places = self.shape.scatter(group, w, out);
                for first in (0..h).step_by(rows) {
                    let band = first..h.min(first + rows);
                    let m = band.len() * w;
                    let lhs = &x[first * w * in_channels + group * per_group..];
                    let lhs = Matrix::new(lhs, m, per_group)?.with_stride(in_channels)?;
                    let columns = &mut columns[..m * pixel];
                    sgemm(lhs, weights, &FloatEpilogue::new(), MatrixMut::new(columns, m, pixel)?, threads)?;
                    scatter(columns, band, &places, y);
                }
            }
            if activation != Activation::None {
                y.iter_mut().for_each(|y| *y = activation.apply(*y));
            }
        }
        Ok(())
    }
}
