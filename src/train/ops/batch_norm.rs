//! Batch norm, with the batch's statistics or with running ones.
//!
//! ```text
//! y  = γ · x̂ + β,  x̂ = (x - μ) / √(σ² + ε)
//! dγ = Σ dy · x̂,  dβ = Σ dy
//! dx = γ / √(σ² + ε) · (dy - dβ / n - x̂ · dγ / n)      with the batch's statistics
//! dx = γ / √(σ² + ε) · dy                                with running ones
//! ```
//!
//! Sums run in f64, pixel by pixel. Running statistics move by [`MOMENTUM`] of the way to the batch's, the variance there being
//! `Σ (x - μ)² / (n - 1)`, as in PyTorch.

use super::{Backward, Differentiable, Forward, Held, Layout, float};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::train::arithmetic::Mode;
use crate::train::array::Array;

/// How much of a batch's statistics goes into the running ones.
const MOMENTUM: f64 = 0.1;

/// Of images, with parameters of its own; or, as ONNX's operator, of `[n, c, ..]` with constants that come as inputs.
#[derive(Debug)]
pub struct Norm {
    epsilon: f32,
    of_inputs: bool,
}

impl Norm {
    pub fn new(epsilon: f32) -> Self {
        Norm { epsilon, of_inputs: false }
    }

    pub fn of_inputs(epsilon: f32) -> Self {
        Norm { epsilon, of_inputs: true }
    }

    /// Scale, bias, mean and variance, all of one length.
    fn parameters<'a>(&self, inputs: &'a [Option<Held>], own: &'a [&[f32]]) -> Result<[&'a [f32]; 4]> {
        let parameters = match *own {
            [weight, bias, mean, variance] => [weight, bias, mean, variance],
            _ => {
                let parameter = |index| float(inputs, index).map(Array::data);
                [parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?]
            }
        };
        match parameters.iter().find(|other| other.len() != parameters[0].len()) {
            Some(other) => Err(Error::length("list of a batch norm's channels", parameters[0].len(), other.len())),
            None => Ok(parameters),
        }
    }
}

/// Sums over all pixels, by channel.
fn sums(x: &[f32], channels: usize, f: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for pixel in x.chunks_exact(channels.max(1)) {
        sums.iter_mut().zip(pixel).enumerate().for_each(|(c, (sum, &x))| *sum += f(c, f64::from(x)));
    }
    sums
}

impl Differentiable for Norm {
    fn has_derivative(&self, input: usize) -> bool {
        input < 3
    }

    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let [weight, bias, running_mean, running_variance] = self.parameters(run.inputs, run.parameters)?;
        let (channels, dims, values) = (weight.len(), x.dims(), x.by_pixel());
        if dims.get(1) != Some(&channels) || !self.of_inputs && dims.len() != 4 {
            return Err(Error::shape("input", format!("[n, {channels}, {}]", if self.of_inputs { ".." } else { "h, w" }), &dims));
        }
        let wide = |list: &[f32]| list.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let pixels = values.len() / channels.max(1);
        let (mean, variance) = match run.mode {
            Mode::Evaluate => (wide(running_mean), wide(running_variance)),
            Mode::Train if pixels < 2 => {
                return Err(Error::shape("input", "more than one pixel a channel, for statistics of a batch", &dims));
            }
            Mode::Train => {
                let n = pixels as f64;
                let mean: Vec<f64> = sums(&values, channels, |_, x| x).into_iter().map(|sum| sum / n).collect();
                let squares = sums(&values, channels, |c, x| (x - mean[c]) * (x - mean[c]));
                let moved = |running: &[f32], batch: &mut dyn Iterator<Item = f64>| {
                    running.iter().zip(batch).map(|(&old, new)| (f64::from(old) + MOMENTUM * (new - f64::from(old))) as f32).collect()
                };
                let new_mean = moved(running_mean, &mut mean.iter().copied());
                let new_variance = moved(running_variance, &mut squares.iter().map(|sum| sum / (n - 1.0)));
                match self.of_inputs {
                    true => run.input_statistics.extend([(3, new_mean), (4, new_variance)]),
                    false => run.statistics.extend([(2, new_mean), (3, new_variance)]),
                }
                (mean, squares.into_iter().map(|sum| sum / n).collect())
            }
        };
        let inverse: Vec<f64> = variance.iter().map(|variance| 1.0 / (variance + f64::from(self.epsilon)).sqrt()).collect();
        let scale: Vec<f32> = inverse.iter().zip(weight).map(|(inverse, &w)| (f64::from(w) * inverse) as f32).collect();
        let shift: Vec<f32> = (0..channels).map(|c| (f64::from(bias[c]) - mean[c] * f64::from(weight[c]) * inverse[c]) as f32).collect();
        let mut y = vec![0.0; x.data().len()];
        for (x, y) in values.chunks_exact(channels.max(1)).zip(y.chunks_exact_mut(channels.max(1))) {
            for (((x, y), scale), shift) in x.iter().zip(y).zip(&scale).zip(&shift) {
                *y = x * scale + shift;
            }
        }
        // Mean, 1 / deviation, and whether they are the batch's.
        run.saved.numbers = mean.iter().chain(&inverse).map(|&x| x as f32).collect();
        run.saved.indices = vec![u32::from(run.mode == Mode::Train)];
        Array::of_pixels(x, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (x, [weight, ..]) = (float(run.inputs, 0)?, self.parameters(run.inputs, run.parameters)?);
        let (channels, values, gradient) = (weight.len(), x.by_pixel(), run.gradient.by_pixel());
        let (mean, inverse) = run.saved.numbers.split_at(channels);
        let by_bias = sums(&gradient, channels, |_, g| g);
        let mut by_weight = vec![0.0f64; channels];
        for (x, g) in values.chunks_exact(channels.max(1)).zip(gradient.chunks_exact(channels.max(1))) {
            for c in 0..channels {
                by_weight[c] += f64::from(g[c]) * f64::from((x[c] - mean[c]) * inverse[c]);
            }
        }
        let narrow = |sums: &[f64]| sums.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        match self.of_inputs {
            true => {
                for (side, sums) in [(1, narrow(&by_weight)), (2, narrow(&by_bias))] {
                    run.by_input[side] = Some(Array::row_major(Tensor::new([channels], sums)?));
                }
            }
            false => run.by_parameter = vec![narrow(&by_weight), narrow(&by_bias), Vec::new(), Vec::new()],
        }
        if run.wanted[0] {
            let n = (gradient.len() / channels.max(1)) as f64;
            let of_batch = f64::from(run.saved.indices[0]);
            let share = |sums: &[f64]| sums.iter().map(|sum| (of_batch * sum / n) as f32).collect::<Vec<f32>>();
            let (less, along) = (share(&by_bias), share(&by_weight));
            let scale: Vec<f32> = weight.iter().zip(inverse).map(|(w, inverse)| w * inverse).collect();
            let mut by_input = vec![0.0; gradient.len()];
            let pixels = values.chunks_exact(channels.max(1)).zip(gradient.chunks_exact(channels.max(1)));
            for ((x, g), y) in pixels.zip(by_input.chunks_exact_mut(channels.max(1))) {
                for c in 0..channels {
                    y[c] = scale[c] * (g[c] - less[c] - (x[c] - mean[c]) * inverse[c] * along[c]);
                }
            }
            run.by_input[0] = Some(Array::of_pixels(x, by_input)?);
        }
        Ok(())
    }
}
