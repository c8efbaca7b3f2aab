//! Channels of a value divided where it is written, and the weights that read it multiplied: the same function, with other things easy to
//! round.
//!
//! ```text
//! y = (x / s) · (W S)ᵀ
//! ```
//!
//! What can be divided: a LayerNormalization or RMSNormalization with constant weights, and a float linear layer. What must read it: float
//! linear layers, any number of them, and nothing else. [`smooth_quant`](super::smooth_quant) chooses `s` for activations in int8,
//! [`awq`](super::awq) for weights of few bits.

mod sites;

use std::collections::HashMap;
use std::fmt;

use super::statistics::each_value;
use crate::error::{Error, Result};
use crate::nn::rewrite::for_quantization;
use crate::nn::{Edge, Linear, Model, Skipped};
use crate::num::NonFinite;
use crate::progress::Progress;
use crate::tensor::{Tensor, Value};
use sites::sites;

/// Rows of a value on which scales are compared, at most.
const ROWS: usize = 1024;

/// A model with scaled channels.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rescaled {
    /// The model.
    pub model: Model,
    /// The values whose channels could be scaled, in the order in which they are written. Empty when there was none.
    pub values: Vec<Rescaling>,
    /// Linear layers whose inputs could not be, and why.
    pub passed_over: Vec<Skipped>,
}

/// A value, and how its channels were scaled.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rescaling {
    /// The node that writes it.
    pub writer: String,
    /// The linear layers that read it.
    pub readers: Vec<String>,
    /// The strength that was best; `None` when no change was.
    pub strength: Option<f64>,
    /// Squared error of the readers' outputs on the samples when quantized, over that of no output at all: before, and after.
    pub errors: [f64; 2],
}

/// A line a value.
impl fmt::Display for Rescaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scaled = self.values.iter().filter(|value| value.strength.is_some()).count();
        writeln!(f, "scaled the channels of {scaled} of {} values", self.values.len())?;
        for Rescaling { writer, readers, strength, errors: [before, after] } in &self.values {
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

/// What samples show of a value.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Its first rows.
    pub rows: Vec<f32>,
    /// The largest magnitude of each channel.
    pub largest: Vec<f64>,
    /// The mean magnitude of each channel.
    pub mean: Vec<f64>,
    count: usize,
}

impl Seen {
    fn add(&mut self, x: &Tensor) {
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        self.largest.resize(width, 0.0);
        self.mean.resize(width, 0.0);
        for row in x.as_slice().chunks_exact(width) {
            self.count += 1;
            let share = 1.0 / self.count as f64;
            for ((largest, mean), &x) in self.largest.iter_mut().zip(&mut self.mean).zip(row) {
                let size = f64::from(x).abs();
                *largest = largest.max(size);
                *mean += share * (size - *mean);
            }
            if self.rows.len() < ROWS * width {
                self.rows.extend_from_slice(row);
            }
        }
    }
}

/// The strength of least error and its scales, `None` when they are best left alone, and the errors without and with them.
pub(super) struct Choice {
    pub best: Option<(f64, Vec<f64>)>,
    pub errors: [f64; 2],
}

/// The same function with the channels scaled of every value that allows it, by the scales that `choose` finds for the layers which read it.
///
/// # Errors
/// [`Error::Empty`] without a batch; [`Error::NonFinite`] for NaN and infinities in weights and in what samples make of them, inside an
/// [`Error::Layer`] that names the layer; [`Error::Cancelled`]; those of [`Model::run`] and of `choose`.
pub(super) fn rescale(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    stage: &'static str,
    progress: &mut Progress<'_>,
    mut choose: impl FnMut(&Model, &[(usize, &Linear)], &Seen) -> Result<Choice>,
) -> Result<Rescaled> {
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
    let mut seen: HashMap<Edge, Seen> = HashMap::new();
    each_value(&prepared, &edges, batches, |edge, x| seen.entry(edge).or_default().add(x))?;
    let mut rescaled = Rescaled { model: prepared, values: Vec::new(), passed_over };
    for (done, site) in sites.iter().enumerate() {
        let writer = rescaled.model.nodes()[site.writer].name().to_owned();
        progress.step(stage, &writer, done, sites.len())?;
        let Some(seen) = seen.get(&site.edge) else { continue };
        let readers: Vec<(usize, &Linear)> = site.readers(&rescaled.model).collect();
        let name = |reader: &usize| rescaled.model.nodes()[*reader].name();
        for (reader, linear) in &readers {
            NonFinite::Error.check("weight", linear.weight().as_slice()).map_err(|error| error.in_layer(name(reader)))?;
        }
        let Choice { best, errors } = choose(&rescaled.model, &readers, seen)?;
        let readers = readers.iter().map(|(reader, _)| name(reader).to_owned()).collect();
        let strength = best.as_ref().map(|(strength, _)| *strength);
        if let Some((_, scales)) = best {
            rescaled.model = site.scaled(&rescaled.model, &scales).map_err(|error| error.in_layer(&writer))?;
        }
        rescaled.values.push(Rescaling { writer, readers, strength, errors });
    }
    Ok(rescaled)
}

/// The weights `[out, in]` with each input's multiplied by its scale.
pub(super) fn times(weight: &Tensor, scales: &[f64]) -> Result<Tensor> {
    let scaled = |row: &[f32]| row.iter().zip(scales).map(|(&w, scale)| (f64::from(w) * scale) as f32).collect::<Vec<_>>();
    Tensor::new(weight.dims(), weight.as_slice().chunks_exact(scales.len()).flat_map(scaled).collect())
}

/// Rows times the weights.
pub(super) fn product(weight: &Tensor, rows: &[f32], threads: usize) -> Result<Vec<f32>> {
    let linear = Linear::new(weight.clone(), None)?;
    let count = rows.len() / linear.in_features().max(1);
    let mut y = vec![0.0; count * linear.out_features()];
    linear.forward(rows, count, &mut y, threads)?;
    Ok(y)
}
