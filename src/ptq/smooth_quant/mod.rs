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
//! What can be divided: a LayerNormalization or RMSNormalization with constant weights, and a float linear layer. What must read it: float
//! linear layers, any number of them, and nothing else.
//!
//! ```no_run
//! # fn of(model: &lowprec::nn::Model, ids: &lowprec::Value) -> lowprec::Result<()> {
//! use lowprec::ptq::smooth_quant::{Ranges, smooth_quant};
//! let smooth = smooth_quant(model, &[&[("ids", ids)]], Ranges::Row, Default::default())?;
//! println!("{smooth}");
//! let int8 = lowprec::quantize_dynamic(&smooth.model, &[lowprec::LayerKind::Linear])?;
//! # Ok(()) }
//! ```

mod sites;

use std::collections::HashMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::nn::rewrite::for_quantization;
use crate::nn::{Edge, Executor, Linear, Model, Skipped};
use crate::num::{NonFinite, affine_qparams, quantize};
use crate::progress::Progress;
use crate::ptq::statistics::each_value;
use crate::quant::{Affine, Quantizer, Scheme};
use crate::tensor::{Tensor, Value};
use sites::{Site, sites};

/// Rows of a value on which strengths are compared, at most.
const ROWS: usize = 1024;
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

/// A model with smooth activations.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Smoothed {
    /// The model.
    pub model: Model,
    /// The values that could be smoothed, in the order in which they are written. Empty when there was none.
    pub values: Vec<Smoothing>,
    /// Linear layers whose inputs could not be smoothed, and why.
    pub passed_over: Vec<Skipped>,
}

/// A value, and how it was smoothed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Smoothing {
    /// The node that writes it.
    pub writer: String,
    /// The linear layers that read it.
    pub readers: Vec<String>,
    /// The strength that was best; `None` when no change was.
    pub strength: Option<f64>,
    /// Squared error of the readers' outputs in int8 on the samples, over that of no output at all: without smoothing, and with it.
    pub errors: [f64; 2],
}

/// A line a value.
impl fmt::Display for Smoothed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let smoothed = self.values.iter().filter(|value| value.strength.is_some()).count();
        writeln!(f, "smoothed {smoothed} of {} values", self.values.len())?;
        for Smoothing { writer, readers, strength, errors: [before, after] } in &self.values {
            let gain = 10.0 * (before / after).log10();
            match strength {
                Some(strength) => writeln!(f, "{writer} -> {}: strength {strength}, {gain:.1} dB", readers.join(", "))?,
                None => writeln!(f, "{writer} -> {}: as it was", readers.join(", "))?,
            }
        }
        for skipped in &self.passed_over {
            writeln!(f, "passed over {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
        }
        Ok(())
    }
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
pub fn smooth_quant(model: &Model, batches: &[&[(&str, &Value)]], ranges: Ranges, mut progress: Progress<'_>) -> Result<Smoothed> {
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
    }
    let (mut prepared, folding) = for_quantization(model)?;
    if !folding.folded.is_empty() || model.conversion().is_some() {
        let mut conversion = model.conversion().cloned().unwrap_or_default();
        conversion.folded.extend(folding.folded);
        prepared = prepared.with_conversion(conversion);
    }
    let (sites, passed_over) = sites(&prepared);
    let edges: Vec<Edge> = sites.iter().map(|site| site.edge).collect();
    let mut rows: HashMap<Edge, Vec<f32>> = HashMap::new();
    let mut largest: HashMap<Edge, Vec<f64>> = HashMap::new();
    each_value(&prepared, &edges, batches, |edge, x| {
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        let (rows, largest) = (rows.entry(edge).or_default(), largest.entry(edge).or_insert_with(|| vec![0.0; width]));
        for row in x.as_slice().chunks_exact(width) {
            largest.iter_mut().zip(row).for_each(|(largest, &x)| *largest = largest.max(f64::from(x).abs()));
            if rows.len() < ROWS * width {
                rows.extend_from_slice(row);
            }
        }
    })?;
    let mut smoothed = Smoothed { model: prepared, values: Vec::new(), passed_over };
    for (done, site) in sites.iter().enumerate() {
        let writer = smoothed.model.nodes()[site.writer].name().to_owned();
        progress.step("smooth", &writer, done, sites.len())?;
        let (Some(rows), Some(largest)) = (rows.get(&site.edge), largest.get(&site.edge)) else { continue };
        let (smoothing, scales) = site.choose(&smoothed.model, &writer, rows, largest, ranges)?;
        if let Some(scales) = scales {
            smoothed.model = site.scaled(&smoothed.model, &scales).map_err(|error| error.in_layer(&writer))?;
        }
        smoothed.values.push(smoothing);
    }
    Ok(smoothed)
}

impl Site {
    /// The strength of least error, and its scales, if it is better than none.
    fn choose(&self, model: &Model, writer: &str, rows: &[f32], largest: &[f64], ranges: Ranges) -> Result<(Smoothing, Option<Vec<f64>>)> {
        let (readers, threads): (Vec<(&str, &Linear)>, _) = (self.readers(model).collect(), Executor::new(model).threads());
        let mut columns = vec![0.0f64; largest.len()];
        for (name, linear) in &readers {
            NonFinite::Error.check("weight", linear.weight().as_slice()).map_err(|error| error.in_layer(name))?;
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
        let mut best = (before, None, None);
        for strength in [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] {
            let scales = scales(largest, &columns, strength);
            let after = error(&scales)?;
            if after < best.0 {
                best = (after, Some(strength), Some(scales));
            }
        }
        let (after, strength, scales) = best;
        let relative = |error: f64| if total > 0.0 { error / total } else { error };
        let readers = readers.into_iter().map(|(name, _)| name.to_owned()).collect();
        Ok((Smoothing { writer: writer.to_owned(), readers, strength, errors: [relative(before), relative(after)] }, scales))
    }
}

/// `x^α / w^(1 - α)` of each channel, over the geometric mean of all.
fn scales(largest: &[f64], columns: &[f64], strength: f64) -> Vec<f64> {
    let raw = |(&x, &w): (&f64, &f64)| (x > 0.0 && w > 0.0).then(|| (x.powf(strength) / w.powf(1.0 - strength)).max(LEAST));
    let raw: Vec<Option<f64>> = largest.iter().zip(columns).map(raw).collect();
    let count = raw.iter().flatten().count().max(1) as f64;
    let mean = (raw.iter().flatten().map(|scale| scale.ln()).sum::<f64>() / count).exp();
    raw.into_iter().map(|scale| scale.map_or(1.0, |scale| scale / mean)).collect()
}

/// The weights `[out, in]` with each input's multiplied by its scale.
fn times(weight: &Tensor, scales: &[f64]) -> Result<Tensor> {
    let scaled = |row: &[f32]| row.iter().zip(scales).map(|(&w, scale)| (f64::from(w) * scale) as f32).collect::<Vec<_>>();
    Tensor::new(weight.dims(), weight.as_slice().chunks_exact(scales.len()).flat_map(scaled).collect())
}

/// Rows times the weights.
fn product(weight: &Tensor, rows: &[f32], threads: usize) -> Result<Vec<f32>> {
    let linear = Linear::new(weight.clone(), None)?;
    let count = rows.len() / linear.in_features().max(1);
    let mut y = vec![0.0; count * linear.out_features()];
    linear.forward(rows, count, &mut y, threads)?;
    Ok(y)
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
