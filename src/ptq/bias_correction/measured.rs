//! The mean error of each layer's outputs on samples.

use super::{Corrected, LayerCorrection, float_twin, is_correctable, lowered, put, root_mean_square};
use crate::error::{Error, Result};
use crate::nn::{Layer, Model, Node, SkipReason, Skipped, evaluate_within};
use crate::progress::Progress;
use crate::ptq::layers::folded_alike;
use crate::ptq::statistics::{Statistics, each_output, inner, input_of};
use crate::tensor::{Tensor, Value};

/// Of every so many samples one is held out.
const HELD_OUT: usize = 4;

/// `quantized` with the mean error of its layers' outputs taken out of their biases, as `batches` show it; both models are untouched.
///
/// `float` is the model that was quantized, its batch norms folded or not. Layers are corrected in the order in which they run: convolutions
/// and linear layers that are dynamic, static, or have quantized weights, of any size of code. Of every four samples one is held out, and
/// a correction that does not bring the means nearer on those is not made; so a layer is passed over for which samples
/// are fewer than four, or say nothing. `batches` are inputs by name, with samples along their first axis.
///
/// Each layer runs the model anew up to itself. What was corrected, by how much, and what was passed over and why, is in the
/// [`Corrected`].
///
/// # Errors
/// [`Error::Empty`] without a batch; [`Error::NothingToQuantize`] when `quantized` has no quantized convolution or linear layer;
/// [`Error::NonFinite`] for NaN and infinities in what a float layer writes on the samples, inside an [`Error::Layer`] that names it;
/// [`Error::Cancelled`]; those of [`Model::run`] of both models.
pub fn correct_biases(float: &Model, quantized: &Model, batches: &[&[(&str, &Value)]], mut progress: Progress<'_>) -> Result<Corrected> {
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
    }
    let names: Vec<String> = quantized.nodes().iter().filter(|node| is_correctable(node)).map(|node| node.name().to_owned()).collect();
    if names.is_empty() {
        return Err(nothing(quantized));
    }
    let float = folded_alike(float, quantized)?;
    let expected = means(&float, |node| names.iter().any(|name| name == node.name()), batches)?;
    let mut corrected = Corrected { model: quantized.clone(), layers: Vec::new(), passed_over: Vec::new() };
    for (done, name) in names.iter().enumerate() {
        progress.step("correct biases", name, done, names.len())?;
        let Some(at) = corrected.model.nodes().iter().position(|node| node.name() == name) else { continue };
        let node = &corrected.model.nodes()[at];
        let expected = |twin: &Node| float.nodes().iter().position(|node| node.name() == twin.name()).and_then(|at| expected[at].as_ref());
        let found = match float_twin(&float, node).map(expected) {
            Ok(Some(expected)) => shifts(&corrected.model, node, expected, batches).map_err(|error| error.in_layer(name))?,
            Ok(None) => Err(SkipReason::Unsupported("the float model never reaches it".into())),
            Err(reason) => Err(reason),
        };
        match found {
            Ok((shifts, held_out)) => {
                let layer = lowered(node.layer(), &shifts);
                put(&mut corrected, at, layer, LayerCorrection { name: name.clone(), shifts, held_out: Some(held_out) });
            }
            Err(reason) => corrected.passed_over.push(Skipped::new(name, node.layer().kind(), reason)),
        }
    }
    Ok(corrected)
}

/// The error of a model in which there is nothing to correct.
pub(super) fn nothing(model: &Model) -> Error {
    let present: Vec<String> = model.kinds().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Error::NothingToQuantize {
        requested: "quantized convolutions and linear layers, to correct their biases".into(),
        present: if present.is_empty() { "no layers".into() } else { format!("{}, none of them such", present.join(", ")) },
    }
}

/// Means of a layer's outputs on samples to learn from, and on those held out.
struct Means([Statistics; 2]);

impl Means {
    fn new(channels: usize) -> Self {
        Means([Statistics::new(channels), Statistics::new(channels)])
    }

    /// Takes in the outputs for some samples, `seen` others having come before.
    fn add(&mut self, x: &Tensor, second: bool, seen: usize) {
        // A single row is a single sample.
        let samples = if x.dims().len() > 1 { x.dims()[0] } else { 1 };
        let inner = inner(x, second);
        for (sample, x) in x.as_slice().chunks(x.len().checked_div(samples).unwrap_or(0).max(1)).enumerate() {
            self.0[usize::from((seen + sample) % HELD_OUT == HELD_OUT - 1)].add(x, inner);
        }
    }
}

/// Samples of a value.
fn count(x: &Tensor) -> usize {
    if x.dims().len() > 1 { x.dims()[0] } else { 1 }
}

/// By node of the float model: the means of what it writes.
fn means(float: &Model, wanted: impl Fn(&Node) -> bool, batches: &[&[(&str, &Value)]]) -> Result<Vec<Option<Means>>> {
    let mut found: Vec<Option<(Means, usize)>> = float.nodes().iter().map(|_| None).collect();
    each_output(float, wanted, batches, |at, x| {
        if let Some((channels, second)) = float.nodes()[at].layer().biased() {
            let (means, seen) = found[at].get_or_insert_with(|| (Means::new(channels), 0));
            means.add(x, second, *seen);
            *seen += count(x);
        }
    })?;
    Ok(found.into_iter().map(|found| found.map(|(means, _)| means)).collect())
}

type Shifts = (Vec<f64>, [f64; 2]);

/// The mean error of each output of a node of the quantized model, and its size on samples held out, before and after it is taken out; or
/// why it should not be.
fn shifts(model: &Model, node: &Node, expected: &Means, batches: &[&[(&str, &Value)]]) -> Result<std::result::Result<Shifts, SkipReason>> {
    let Some((channels, second)) = node.layer().biased() else { return Ok(Err(SkipReason::Configured)) };
    let (layer, mut means, mut seen): (Layer, _, _) = (node.layer().sums(), Means::new(channels), 0);
    for batch in batches {
        let Some(x) = input_of(model, node, batch)? else { continue };
        let Some(y) = evaluate_within(&layer, &[Some(&x)], usize::MAX)? else { continue };
        if let Some(y) = y.first().and_then(Value::get::<f32>) {
            means.add(y, second, seen);
            seen += count(y);
        }
    }
    let counts = [0, 1].map(|part| (means.0[part].count, expected.0[part].count));
    if counts.iter().any(|(got, expected)| *got == 0 || got != expected) {
        return Ok(Err(SkipReason::Unsupported(format!("{seen} samples reach it: at least {HELD_OUT} tell a mean from chance"))));
    }
    let [learnt, held_out] = [0, 1]
        .map(|part| -> Vec<f64> { means.0[part].mean.iter().zip(&expected.0[part].mean).map(|(got, expected)| got - expected).collect() });
    let left: Vec<f64> = held_out.iter().zip(&learnt).map(|(held_out, learnt)| held_out - learnt).collect();
    let [before, after] = [root_mean_square(&held_out), root_mean_square(&left)];
    if after >= before || after.is_nan() {
        return Ok(Err(SkipReason::Unsupported(format!("on samples held out the mean error would go from {before:.3e} to {after:.3e}"))));
    }
    // Of all samples, now that they agree.
    let share = counts[0].0 as f64 / (counts[0].0 + counts[1].0) as f64;
    let shifts = learnt.iter().zip(&held_out).map(|(learnt, held_out)| learnt * share + held_out * (1.0 - share)).collect();
    Ok(Ok((shifts, [before, after])))
}
