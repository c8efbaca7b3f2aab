//! Statistics of batch norms, taken anew.

use std::fmt;

use crate::error::{Error, Result};
use crate::nn::{BatchNorm2d, Layer, LayerKind, Model, SkipReason, Skipped};
use crate::progress::Progress;
use crate::ptq::statistics::of_inputs;
use crate::tensor::{Tensor, Value};

/// A model whose batch norms have new statistics.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reestimated {
    /// The model.
    pub model: Model,
    /// The batch norms, in the order in which they run.
    pub norms: Vec<NormShift>,
    /// Batch norms whose statistics stayed, and why.
    pub passed_over: Vec<Skipped>,
}

/// How far a batch norm's statistics were off.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NormShift {
    /// Its name.
    pub name: String,
    /// The largest change of a channel's mean, in its former deviations.
    pub mean: f64,
    /// The largest change of a channel's deviation, as a factor of at least 1.
    pub deviation: f64,
}

impl fmt::Display for Reestimated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "new statistics of {} batch norms", self.norms.len())?;
        for NormShift { name, mean, deviation } in &self.norms {
            writeln!(f, "{name}: means moved by up to {mean:.3} deviations, deviations by a factor of up to {deviation:.3}")?;
        }
        for skipped in &self.passed_over {
            writeln!(f, "passed over {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
        }
        Ok(())
    }
}

/// `model` with the statistics of its batch norms as `batches` show them; `model` is untouched.
///
/// For a model whose batch norms are still there while what they read has changed: weights put on a coarse grid, layers before them
/// quantized, other data. Norm by norm in the order in which they run, each on what those before it, already renewed, give:
///
/// ```text
/// mean = Σ x / n        var = Σ (x - mean)² / (n - 1)        over all samples and positions of a channel
/// ```
///
/// The division is by `n - 1`, as PyTorch keeps `running_var`. A channel that is constant on the samples keeps its statistics, and so does
/// a batch norm that sees a single value of each channel. `batches` are inputs by name. Each batch norm runs the model anew.
///
/// # Errors
/// [`Error::Empty`] without a batch; [`Error::NothingToQuantize`] when the model has no batch norm; [`Error::NonFinite`] for NaN and
/// infinities in what one reads, inside an [`Error::Layer`] that names the layer which wrote them; [`Error::Cancelled`]; those of
/// [`Model::run`].
pub fn reestimate_norms(model: &Model, batches: &[&[(&str, &Value)]], mut progress: Progress<'_>) -> Result<Reestimated> {
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of samples".into(), way_out: "give at least one batch" });
    }
    let places: Vec<usize> = (0..model.nodes().len()).filter(|&at| matches!(model.nodes()[at].layer(), Layer::BatchNorm2d(_))).collect();
    if places.is_empty() {
        let present: Vec<String> = model.kinds().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        return Err(Error::NothingToQuantize {
            requested: "batch norms, to take their statistics anew".into(),
            present: format!("{}: take them before they are folded", present.join(", ")),
        });
    }
    let mut done = Reestimated { model: model.clone(), norms: Vec::new(), passed_over: Vec::new() };
    for (count, &at) in places.iter().enumerate() {
        let node = &model.nodes()[at];
        progress.step("renew statistics", node.name(), count, places.len())?;
        let Layer::BatchNorm2d(norm) = node.layer() else { continue };
        let statistics = of_inputs(&done.model, |index| index == at, batches)?[at].take().expect("asked for");
        if statistics.count < 2 {
            let reason = SkipReason::Unsupported(format!("the samples show {} values of a channel: a variance needs 2", statistics.count));
            done.passed_over.push(Skipped::new(node.name(), LayerKind::BatchNorm2d, reason));
            continue;
        }
        let [weight, bias, mean, variance] = norm.parameters();
        let (mut new_mean, mut new_variance) = (mean.clone(), variance.clone());
        let mut shift = NormShift { name: node.name().to_owned(), mean: 0.0, deviation: 1.0 };
        for c in 0..norm.channels() {
            let (found, square) = (statistics.mean[c], statistics.square[c]);
            let spread = (square - found * found) * statistics.count as f64 / (statistics.count - 1) as f64;
            // What is left of equal squares is rounding.
            if spread <= 1e-12 * square {
                continue;
            }
            let (old_mean, old) = (f64::from(mean.as_slice()[c]), f64::from(variance.as_slice()[c]) + f64::from(norm.epsilon()));
            shift.mean = shift.mean.max((found - old_mean).abs() / old.sqrt());
            let factor = ((spread + f64::from(norm.epsilon())) / old).sqrt();
            shift.deviation = shift.deviation.max(factor.max(1.0 / factor));
            new_mean.as_mut_slice()[c] = found as f32;
            new_variance.as_mut_slice()[c] = spread as f32;
        }
        let renewed = BatchNorm2d::new(Tensor::clone(weight), bias.clone(), new_mean, new_variance, norm.epsilon());
        let renewed = renewed.map_err(|error| error.in_layer(node.name()))?;
        let mut nodes = done.model.nodes().to_vec();
        nodes[at] = nodes[at].with_layer(renewed);
        done.model = done.model.with_nodes(nodes, done.model.conversion().cloned());
        done.norms.push(shift);
    }
    Ok(done)
}
