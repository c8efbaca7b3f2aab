//! Batch norm with running statistics.

use crate::error::{Error, Result};
use crate::nn::StateDict;
use crate::tensor::Tensor;

/// `y = (x - mean) / sqrt(var + eps) · weight + bias`, channel by channel, with statistics that training left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm2d {
    // The whole layer in two numbers a channel, in f64: y = x · scale + shift.
    affine: Vec<(f64, f64)>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    // What training needs: weight, bias, running mean, running variance.
    parameters: [Tensor; 4],
    epsilon: f32,
}

impl BatchNorm2d {
    /// A layer with these parameters, each `[channels]`. Like all float layers it takes NaN and infinities as they come:
    /// loading refuses them ([`StateDict::take`]), and so does quantization, unless told otherwise.
    ///
    /// # Errors
    /// [`Error::Shape`] when they differ in length, [`Error::Parameter`] when `eps` is not finite, or `var + eps` zero or
    /// below.
    pub fn new(weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: f32) -> Result<Self> {
        let channels = weight.len();
        for (what, tensor) in [("weight", &weight), ("bias", &bias), ("running_mean", &running_mean), ("running_var", &running_var)] {
            if tensor.dims() != [channels] {
                return Err(Error::shape(what, format!("[{channels}]"), tensor.dims()));
            }
        }
        if !eps.is_finite() {
            return Err(Error::parameter("eps", eps, "must be a finite number"));
        }
        let mut affine = Vec::with_capacity(channels);
        for c in 0..channels {
            let at = |tensor: &Tensor| f64::from(tensor.as_slice()[c]);
            let variance = at(&running_var) + f64::from(eps);
            if variance <= 0.0 {
                return Err(Error::parameter("running_var + eps", variance, format!("must be above zero, and is not in channel {c}")));
            }
            let scale = at(&weight) / variance.sqrt();
            affine.push((scale, at(&bias) - at(&running_mean) * scale));
        }
        let (scale, shift) = affine.iter().map(|&(scale, shift)| (scale as f32, shift as f32)).unzip();
        Ok(BatchNorm2d { affine, scale, shift, parameters: [weight, bias, running_mean, running_var], epsilon: eps })
    }

    /// Takes `{name}.weight`, `.bias`, `.running_mean` and `.running_var` out of `state`; `.num_batches_tracked`, which
    /// only training needs, is dropped.
    ///
    /// # Errors
    /// Those of [`BatchNorm2d::new`] and [`StateDict::take`], which name the missing or wrongly shaped tensor.
    pub fn from_state(state: &mut StateDict, name: &str, channels: usize, eps: f32) -> Result<Self> {
        let mut take = |what: &str| state.take(&format!("{name}.{what}"), &[channels]);
        let (weight, bias, mean, var) = (take("weight")?, take("bias")?, take("running_mean")?, take("running_var")?);
        state.discard(&format!("{name}.num_batches_tracked"));
        BatchNorm2d::new(weight, bias, mean, var, eps).map_err(|e| e.in_layer(name))
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.scale.len()
    }

    /// By channel, `scale = weight / sqrt(var + eps)` and `shift = bias - mean · scale`, rounded once to f32.
    pub fn affine(&self) -> (&[f32], &[f32]) {
        (&self.scale, &self.shift)
    }

    /// Weight, bias, running mean and running variance, each `[channels]`.
    pub fn parameters(&self) -> [&Tensor; 4] {
        self.parameters.each_ref()
    }

    /// What is added to the variance.
    pub fn epsilon(&self) -> f32 {
        self.epsilon
    }

    /// As [`BatchNorm2d::affine`], unrounded: for folding into other weights.
    pub(crate) fn affine_f64(&self) -> &[(f64, f64)] {
        &self.affine
    }

    /// `y = x · scale + shift` over channels-last images.
    ///
    /// # Errors
    /// [`Error::Length`] when the slices differ, or are not whole pixels.
    pub fn forward(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        let channels = self.channels();
        if output.len() != input.len() {
            return Err(Error::length("output", input.len(), output.len()));
        }
        if channels == 0 || !input.len().is_multiple_of(channels) {
            return Err(Error::length(format!("input of {channels} channels"), input.len().next_multiple_of(channels.max(1)), input.len()));
        }
        for (x, y) in input.chunks_exact(channels).zip(output.chunks_exact_mut(channels)) {
            for (((x, y), scale), shift) in x.iter().zip(y).zip(&self.scale).zip(&self.shift) {
                *y = x * scale + shift;
            }
        }
        Ok(())
    }
}
