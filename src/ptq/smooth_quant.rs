//! SmoothQuant: outliers of activations moved into the weights that read them.
//!
//! In a transformer a few channels of what a normalization writes are far larger than the rest, in every row: one range for the row spends
//! its codes on them. Weights are even. So each channel is divided by a scale of its own where it is written, and the weights that read it
//! are multiplied with it (Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"):
//!
//! ```text
//! y = (x / s) · (W S)ᵀ          s_j = max |x_j|^α / max |W_j|^(1 - α)          W_j of all layers that read x
//! ```
//!
//! The function is the same. `α` says how much of the difficulty moves. Here it is chosen value by value, of 0.3 to 0.9 in steps of a tenth
//! and of no change at all, by the squared error of the outputs of the layers in int8 on samples: on them, no layer's error grows.
//!
//! Which values these are, [`channel_scales`](super::channel_scales) says.
//!
//! ```no_run
//! # fn of(model: &lowprec::nn::Model, ids: &lowprec::Value) -> lowprec::Result<()> {
//! use lowprec::ptq::smooth_quant::{Ranges, smooth_quant};
//! let smooth = smooth_quant(model, &[&[("ids", ids)]], Ranges::Row, Default::default())?;
//! println!("{smooth}");
//! let int8 = lowprec::quantize_dynamic(&smooth.model, &[lowprec::LayerKind::Linear])?;
//! # Ok(()) }
//! ```

use super::channel_scales::{Choice, Rescaled, Seen, product, rescale, times};
use crate::error::Result;
use crate::nn::{Executor, Linear, Model};
use crate::num::{affine_qparams, quantize};
use crate::progress::Progress;
use crate::quant::{Affine, Quantizer, Scheme};
use crate::tensor::Value;

/// The least scale.
const LEAST: f64 = 1e-5;

/// What has a range of its own when the model is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Ranges {
    /// Each row, as [`quantize_dynamic`](crate::quantize_dynamic) has it.
    #[default]
    Row,
    /// The value, as [`quantize_static`](crate::quantize_static) has it.
    Value,
}

/// The same function with smooth inputs of linear layers; `model` is untouched. Batch norms are folded and functions that an exporter
/// spelled out are put together first, as before every quantization.
///
/// `batches` are inputs by name. Of each value the first 1024 rows that they show are kept. Channels that are 0 throughout, in the value or
/// in the weights, keep their scale.
///
/// # Errors
/// [`Error::Empty`] without a batch; [`Error::NonFinite`] for NaN and infinities in weights and in what samples make of them, inside an
/// [`Error::Layer`] that names the layer; [`Error::Cancelled`]; those of [`Model::run`].
///
/// [`Error::Empty`]: crate::Error::Empty
/// [`Error::NonFinite`]: crate::Error::NonFinite
/// [`Error::Layer`]: crate::Error::Layer
/// [`Error::Cancelled`]: crate::Error::Cancelled
pub fn smooth_quant(model: &Model, batches: &[&[(&str, &Value)]], ranges: Ranges, mut progress: Progress<'_>) -> Result<Rescaled> {
    rescale(model, batches, "smooth", &mut progress, |model, readers, seen| choose(Executor::new(model).threads(), readers, seen, ranges))
}

/// The strength of least error, if it is better than none.
fn choose(threads: usize, readers: &[(usize, &Linear)], seen: &Seen, ranges: Ranges) -> Result<Choice> {
    let (rows, largest) = (&seen.rows, &seen.largest);
    let mut columns = vec![0.0f64; largest.len()];
    for (_, linear) in readers {
        for row in linear.weight().as_slice().chunks_exact(columns.len()) {
            columns.iter_mut().zip(row).for_each(|(column, &w)| *column = column.max(f64::from(w).abs()));
        }
    }
    let outputs: Vec<Vec<f32>> = readers.iter().map(|(_, linear)| product(linear.weight(), rows, threads)).collect::<Result<_>>()?;
    let total: f64 = outputs.iter().flatten().map(|&y| f64::from(y).powi(2)).sum();
    let error = |scales: &[f64]| -> Result<f64> {
        let x = rounded(rows, scales, ranges);
        let mut error = 0.0;
        for ((_, linear), expected) in readers.iter().zip(&outputs) {
            let weight = times(linear.weight(), scales)?;
            let weight = Affine::<i8>::fit(&weight, &Scheme::INT8_WEIGHT)?.quantize(&weight)?.dequantize();
            let y = product(&weight, &x, threads)?;
            error += y.iter().zip(expected).map(|(y, expected)| (f64::from(*y) - f64::from(*expected)).powi(2)).sum::<f64>();
        }
        Ok(error)
    };
    let before = error(&vec![1.0; largest.len()])?;
    let mut best = (before, None);
    for strength in [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] {
        let scales = scales(largest, &columns, strength);
        let after = error(&scales)?;
        if after < best.0 {
            best = (after, Some((strength, scales)));
        }
    }
    let relative = |error: f64| if total > 0.0 { error / total } else { error };
    Ok(Choice { errors: [before, best.0].map(relative), best: best.1 })
}

/// `x^α / w^(1 - α)` of each channel, over the geometric mean of all.
fn scales(largest: &[f64], columns: &[f64], strength: f64) -> Vec<f64> {
    let raw = |(&x, &w): (&f64, &f64)| (x > 0.0 && w > 0.0).then(|| (x.powf(strength) / w.powf(1.0 - strength)).max(LEAST));
    let raw: Vec<Option<f64>> = largest.iter().zip(columns).map(raw).collect();
    let count = raw.iter().flatten().count().max(1) as f64;
    let mean = (raw.iter().flatten().map(|scale| scale.ln()).sum::<f64>() / count).exp();
    raw.into_iter().map(|scale| scale.map_or(1.0, |scale| scale / mean)).collect()
}

/// What codes leave of rows that were divided by the scales.
fn rounded(rows: &[f32], scales: &[f64], ranges: Ranges) -> Vec<f32> {
    let mut x: Vec<f32> =
        rows.chunks_exact(scales.len()).flat_map(|row| row.iter().zip(scales).map(|(&x, s)| (f64::from(x) / s) as f32)).collect();
    let length = match ranges {
        Ranges::Row => scales.len(),
        Ranges::Value => x.len(),
    };
    for part in x.chunks_mut(length.max(1)) {
        let (min, max) = part.iter().fold((0.0f32, 0.0f32), |(min, max), &x| (min.min(x), max.max(x)));
        let (scale, zero_point) = affine_qparams(min, max, 0, 255, false);
        part.iter_mut().for_each(|x| *x = scale * (quantize(*x, scale, zero_point, 0, 255) - zero_point) as f32);
    }
    x
}
