//! Two-dimensional convolution in float.

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::kernels::{Conv2dGeometry, FloatEpilogue, ImageShape, PackedFloatConv2d, Workspace, conv2d_f32};
use crate::nn::StateDict;
use crate::nn::plan::Stage;
use crate::tensor::{Tensor, elements};

/// Whether the numbers of these images, with their padding, can be addressed, whatever the slices hold.
///
/// # Errors
/// [`Error::ShapeOverflow`].
pub(crate) fn check_images(geometry: &Conv2dGeometry, shape: ImageShape) -> Result<()> {
    let [top, left, bottom, right] = geometry.pads(shape.h, shape.w)?;
    let (h, w) = (shape.h.saturating_add(top).saturating_add(bottom), shape.w.saturating_add(left).saturating_add(right));
    elements(&[shape.n, h, w, geometry.in_channels.max(geometry.out_channels), size_of::<f32>()]).map(drop)
}

/// `y[n, o, p] = bias[o] + Σ weight[o, i, t] · x[n, group(o) + i, stride · p + dilation · t - padding]`, as
/// PyTorch's `Conv2d` with zero padding.
///
/// Weights are `[out, in / groups, kh, kw]`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    geometry: Conv2dGeometry,
    weight: Tensor,
    bias: Option<Tensor>,
    // Panels for the float kernel: a cache, filled by the first run and shared by clones.
    packed: Arc<OnceLock<PackedFloatConv2d>>,
}

impl Conv2d {
    /// A convolution with these weights.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an impossible geometry, [`Error::Shape`] when `weight` is not
    /// `[out, in / groups, kh, kw]` or `bias` not `[out]`.
    pub fn new(geometry: Conv2dGeometry, weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        geometry.validate()?;
        let expected = geometry.weight_shape();
        if weight.dims() != expected {
            return Err(Error::shape("weight", format!("{expected:?} ([out, in / groups, kh, kw])"), weight.dims()));
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.dims() != [geometry.out_channels]) {
            return Err(Error::shape("bias", format!("[{}]", geometry.out_channels), bias.dims()));
        }
        Ok(Conv2d { geometry, weight, bias, packed: Arc::default() })
    }

    /// Takes `{name}.weight` and, when `bias` is set, `{name}.bias` out of `state`.
    ///
    /// # Errors
    /// Those of [`Conv2d::new`] and [`StateDict::take`], which name the missing or wrongly shaped tensor.
    pub fn from_state(state: &mut StateDict, name: &str, geometry: Conv2dGeometry, bias: bool) -> Result<Self> {
        geometry.validate().map_err(|e| e.in_layer(name))?;
        let weight = state.take(&format!("{name}.weight"), &geometry.weight_shape())?;
        let bias = bias.then(|| state.take(&format!("{name}.bias"), &[geometry.out_channels])).transpose()?;
        Conv2d::new(geometry, weight, bias)
    }

    /// Channels, kernel, stride, padding, dilation, groups.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.geometry
    }

    /// Weights `[out, in / groups, kh, kw]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Runs on `n` images; `output` is channels-last.
    ///
    /// # Errors
    /// [`Error::Length`] when a slice does not fit `shape`, [`Error::ShapeOverflow`] when nothing could, and
    /// [`Error::Shape`] when the kernel is larger than the image.
    pub fn forward(&self, input: &[f32], shape: ImageShape, output: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.run(input, shape, Stage::default(), output, workspace, threads)
    }

    /// [`Conv2d::forward`] with what was fused into it.
    pub(crate) fn run(
        &self,
        input: &[f32],
        shape: ImageShape,
        stage: Stage<'_>,
        output: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        check_images(&self.geometry, shape)?;
        let packed = match self.packed.get() {
            Some(packed) => packed,
            None => {
                let packed = PackedFloatConv2d::pack(&self.geometry, self.weight.as_slice())?;
                self.packed.get_or_init(|| packed)
            }
        };
        let bias = self.bias.as_ref().map(Tensor::as_slice);
        let epilogue = FloatEpilogue::new()
            .with_bias(bias)
            .with_activation(stage.fused.activation)
            .with_accumulate(stage.fused.residual)
            .with_ranges(stage.measured);
        conv2d_f32(input, shape, packed, &epilogue, output, workspace, threads)
    }
}
