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

use super::{Backward, Differentiable, Forward, Layout, float};
use crate::error::{Error, Result};
use crate::train::arithmetic::Mode;
use crate::train::array::Array;

/// How much of a batch's statistics goes into the running ones.
const MOMENTUM: f64 = 0.1;

#[derive(Debug)]
pub struct Norm {
    epsilon: f32,
}

impl Norm {
    pub fn new(epsilon: f32) -> Self {
        Norm { epsilon }
    }
}

/// Sums over all pixels, by channel.
fn sums(x: &[f32], channels: usize, f: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for pixel in x.chunks_exact(channels) {
        sums.iter_mut().zip(pixel).enumerate().for_each(|(c, (sum, &x))| *sum += f(c, f64::from(x)));
    }
    sums
}

impl Differentiable for Norm {
    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let &[weight, bias, running_mean, running_variance] = run.parameters else {
            return Err(Error::length("list of parameters of a batch norm", 4, run.parameters.len()));
        };
        let (channels, dims) = (weight.len(), x.image_dims()?);
        if dims[1] != channels {
            return Err(Error::shape("input", format!("[n, {channels}, h, w]"), &dims));
        }
        let wide = |list: &[f32]| list.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let pixels = x.data().len() / channels.max(1);
        let (mean, variance) = match run.mode {
            Mode::Evaluate => (wide(running_mean), wide(running_variance)),
            Mode::Train if pixels < 2 => {
                return Err(Error::shape("input", "more than one pixel a channel, for statistics of a batch", &dims));
            }
            Mode::Train => {
                let n = pixels as f64;
                let mean: Vec<f64> = sums(x.data(), channels, |_, x| x).into_iter().map(|sum| sum / n).collect();
                let squares = sums(x.data(), channels, |c, x| (x - mean[c]) * (x - mean[c]));
                let moved = |running: &[f32], batch: &mut dyn Iterator<Item = f64>| {
                    running.iter().zip(batch).map(|(&old, new)| (f64::from(old) + MOMENTUM * (new - f64::from(old))) as f32).collect()
                };
                run.statistics.push((2, moved(running_mean, &mut mean.iter().copied())));
                run.statistics.push((3, moved(running_variance, &mut squares.iter().map(|sum| sum / (n - 1.0)))));
                (mean, squares.into_iter().map(|sum| sum / n).collect())
            }
        };
        let inverse: Vec<f64> = variance.iter().map(|variance| 1.0 / (variance + f64::from(self.epsilon)).sqrt()).collect();
        let scale: Vec<f32> = inverse.iter().zip(weight).map(|(inverse, &w)| (f64::from(w) * inverse) as f32).collect();
        let shift: Vec<f32> = (0..channels).map(|c| (f64::from(bias[c]) - mean[c] * f64::from(weight[c]) * inverse[c]) as f32).collect();
        let mut y = vec![0.0; x.data().len()];
        for (x, y) in x.data().chunks_exact(channels.max(1)).zip(y.chunks_exact_mut(channels.max(1))) {
            for (((x, y), scale), shift) in x.iter().zip(y).zip(&scale).zip(&shift) {
                *y = x * scale + shift;
            }
        }
        // Mean, 1 / deviation, and whether they are the batch's.
        run.saved.numbers = mean.iter().chain(&inverse).map(|&x| x as f32).collect();
        run.saved.indices = vec![u32::from(run.mode == Mode::Train)];
        Array::like(x, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (x, gradient, weight) = (float(run.inputs, 0)?, run.gradient.data(), run.parameters[0]);
        let channels = weight.len();
        let (mean, inverse) = run.saved.numbers.split_at(channels);
        let by_bias = sums(gradient, channels, |_, g| g);
        let mut by_weight = vec![0.0f64; channels];
        for (x, g) in x.data().chunks_exact(channels.max(1)).zip(gradient.chunks_exact(channels.max(1))) {
            for c in 0..channels {
                by_weight[c] += f64::from(g[c]) * f64::from((x[c] - mean[c]) * inverse[c]);
            }
        }
        let narrow = |sums: &[f64]| sums.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        run.by_parameter = vec![narrow(&by_weight), narrow(&by_bias), Vec::new(), Vec::new()];
        if run.wanted[0] {
            let n = (gradient.len() / channels.max(1)) as f64;
            let of_batch = f64::from(run.saved.indices[0]);
            let share = |sums: &[f64]| sums.iter().map(|sum| (of_batch * sum / n) as f32).collect::<Vec<f32>>();
            let (less, along) = (share(&by_bias), share(&by_weight));
            let scale: Vec<f32> = weight.iter().zip(inverse).map(|(w, inverse)| w * inverse).collect();
            let mut by_input = vec![0.0; gradient.len()];
            let pixels = x.data().chunks_exact(channels.max(1)).zip(gradient.chunks_exact(channels.max(1)));
            for ((x, g), y) in pixels.zip(by_input.chunks_exact_mut(channels.max(1))) {
                for c in 0..channels {
                    y[c] = scale[c] * (g[c] - less[c] - (x[c] - mean[c]) * inverse[c] * along[c]);
                }
            }
            run.by_input[0] = Some(Array::like(x, by_input)?);
        }
        Ok(())
    }
}
