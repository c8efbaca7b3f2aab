//! Scales, biases and norms tuned end to end: what comes out of a whole model that holds quantized weights, brought nearer to what comes out
//! of the float one.
//!
//! Fitting layer by layer ([`gptq`](super::gptq)) makes each layer's outputs good and knows nothing of what they are for. Once the codes are
//! settled, the few numbers beside them can still be trained, all together, as the second phase of EfficientQAT (Chen et al. 2025) has it,
//! against the float model instead of labels:
//!
//! ```text
//! w = (1 + u_g) · s_g · level(code) + o_g + v_g · s_g          u, v of each group: all that is learned of weights, from 0
//! L = Σ |y - t|² / Σ |t|²  +  mean of KL(softmax(t) ‖ softmax(y))          t the float model's output, y the tuned one's
//! ```
//!
//! With `dW` the gradient by a layer's weights, that by `u_g` is `Σ dW · s_g · level(code)` over its group. Biases and what
//! normalizations multiply with and add are learned too: they are held in full, so the model stays as large as it was.
//! Adam takes the steps, each counted in parts of the number that it moves (of a bias, in parts of the root mean square of what its layer
//! writes), by a rate that falls to nothing along a cosine.
//!
//! Of every four samples one is held out. After each epoch the numbers are rounded to what the format holds, the quantized model itself runs
//! on the samples held out, and the best of all that were seen is taken, the given model among them: by that measure never worse.
//!
//! Scales that are stored as floats (f32, f16, bf16) can be tuned; of other formats the scales stay, and biases and norms
//! are tuned alone. What layers quantize in the call ([`Activations`](crate::nn::weight_only::Activations)) counts where models are judged,
//! and not in gradients.

mod tuner;

use crate::error::{Error, Result};
use crate::nn::{Edge, Executor, LayerKind, Model};
use crate::progress::Progress;
use crate::ptq::layers::nothing;
use crate::ptq::units::Units;
use crate::tensor::{Tensor, Value};
use crate::train::{Schedule, distillation, shuffled};
use tuner::Tuner;

/// The kinds whose scales are tuned.
const KINDS: &[LayerKind] = &[LayerKind::Conv2d, LayerKind::Linear, LayerKind::Embedding];

/// What is to be like the float model's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Likeness {
    /// The values: squared error over squared values.
    Values,
    /// What a softmax over the last axis makes of them: the mean divergence, in nats.
    Predictions,
    /// Both, added. Of a last axis with one element there is nothing to add.
    #[default]
    Both,
}

/// How a model is tuned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distillation {
    likeness: Likeness,
    epochs: usize,
    batch: usize,
    rate: f64,
    seed: u64,
    threads: usize,
}

impl Default for Distillation {
    fn default() -> Self {
        Distillation::new()
    }
}

impl Distillation {
    /// By values and predictions, eight epochs of eight samples a step, at a rate of 0.002: half of both does half as much.
    pub fn new() -> Self {
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        Distillation { likeness: Likeness::Both, epochs: 8, batch: 8, rate: 2e-3, seed: 0, threads }
    }

    /// By this likeness.
    #[must_use]
    pub fn with_likeness(self, likeness: Likeness) -> Self {
        Distillation { likeness, ..self }
    }

    /// With so many passes over the samples; time goes with them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_epochs(self, epochs: usize) -> Result<Self> {
        match epochs {
            0 => Err(Error::parameter("epochs", epochs, "must be at least 1")),
            _ => Ok(Distillation { epochs, ..self }),
        }
    }

    /// With so many samples a step. Of a model that takes a fixed number of them, a step has one batch as it was given.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_batch(self, batch: usize) -> Result<Self> {
        match batch {
            0 => Err(Error::parameter("samples of a step", batch, "must be at least 1")),
            _ => Ok(Distillation { batch, ..self }),
        }
    }

    /// With this rate of Adam: about what a step changes a number by, as a part of it.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it is not finite and above zero.
    pub fn with_rate(self, rate: f64) -> Result<Self> {
        match rate.is_finite() && rate > 0.0 {
            true => Ok(Distillation { rate, ..self }),
            false => Err(Error::parameter("rate", rate, "must be finite and above zero")),
        }
    }

    /// With another order of samples.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Distillation { seed, ..self }
    }

    /// On at most so many threads. Results are the same.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Distillation { threads: threads.max(1), ..self }
    }
}

/// A model that was tuned.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Distilled {
    /// The model.
    pub model: Model,
    /// What was made small, on the samples held out: of the given model, and after each epoch. Of fewer than four samples none is held out,
    /// and nothing is tuned.
    pub losses: Vec<f64>,
    /// Which of them was taken: 0 for the given model.
    pub taken: usize,
}

/// `quantized` with its scales, biases and norms tuned towards the outputs of `float` on samples; both models are untouched.
///
/// `float` is the model that was quantized: with inputs and outputs of the same names. `batches` are inputs by name, with samples along
/// their first axis.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value) -> lowprec::Result<()> {
/// use lowprec::ptq::distill::{Distillation, distill};
/// use lowprec::ptq::{WeightConfig, gptq};
/// let batches: &[&[(&str, &lowprec::Value)]] = &[&[("tokens", samples)]];
/// let config = WeightConfig::new("int3:g64".parse()?);
/// let fitted = gptq::quantize_weights(model, batches, &config, &gptq::Gptq::new(), Default::default())?;
/// let tuned = distill(model, &fitted.model, batches, &Distillation::new(), Default::default())?;
/// println!("epoch {} of {:?}", tuned.taken, tuned.losses);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Empty`] without a sample; [`Error::NothingToQuantize`] when `quantized` has no Linear, Conv2d or Embedding whose weights alone are quantized (those of LSTM and GRU
/// stay as they are);
/// [`Error::Unsupported`] for a model without a float output and, inside an [`Error::Layer`], for a layer between such weights and the
/// outputs that has no derivative;
/// [`Error::NonFinite`] for NaN and infinities in the samples and in the float model's outputs; [`Error::Unknown`] for an output of the
/// float model that the other has not; [`Error::Shape`] for outputs without a row for each sample; [`Error::Cancelled`]; those of
/// [`Model::run`].
pub fn distill(
    float: &Model,
    quantized: &Model,
    batches: &[&[(&str, &Value)]],
    how: &Distillation,
    mut progress: Progress<'_>,
) -> Result<Distilled> {
    if !quantized.nodes().iter().any(|node| node.layer().stored_weights().is_some()) {
        return Err(nothing(quantized, KINDS, &quantized.conversion().cloned().unwrap_or_default()));
    }
    let lesson = Lesson::new(float, batches, how)?;
    let [learning, held_out] = lesson.units.parts();
    let mut best = Distilled { model: quantized.clone(), losses: Vec::new(), taken: 0 };
    if held_out.is_empty() {
        return Ok(best);
    }
    let mut tuner = Tuner::new(quantized, how)?;
    best.losses.push(lesson.loss(quantized, &held_out)?);
    let steps = how.epochs * lesson.units.batches(&learning, how.batch).len();
    let mut step = 0;
    for epoch in 0..how.epochs {
        let order = shuffled(learning.len(), how.seed.wrapping_add(epoch as u64));
        let order: Vec<usize> = order.into_iter().map(|at| learning[at]).collect();
        for of in lesson.units.batches(&order, how.batch) {
            progress.step("distill", &format!("epoch {epoch}"), step, steps)?;
            tuner.step(&lesson, &of, how.rate * Schedule::Cosine.factor(step as f64 / steps as f64))?;
            step += 1;
        }
        // Of rates so large that scales ran away there is no model to be judged.
        let judged = tuner.model(quantized).and_then(|model| Ok((lesson.loss(&model, &held_out)?, model)));
        let (loss, model) = match judged {
            Err(error) if ran_away(&error) => break,
            judged => judged?,
        };
        if loss < best.losses[best.taken] {
            (best.model, best.taken) = (model, epoch + 1);
        }
        best.losses.push(loss);
    }
    Ok(best)
}

/// Whether it is of numbers that are none.
fn ran_away(error: &Error) -> bool {
    match error {
        Error::Layer { source, .. } => ran_away(source),
        other => matches!(other, Error::NonFinite { .. } | Error::Parameter { .. } | Error::Scale { .. }),
    }
}

/// Samples, and what the float model makes of them.
pub(super) struct Lesson {
    pub units: Units,
    likeness: Likeness,
    batch: usize,
    threads: usize,
    /// By name and unit.
    inputs: Vec<(String, Vec<Value>)>,
    targets: Vec<(String, Vec<Value>)>,
}

impl Lesson {
    fn new(float: &Model, batches: &[&[(&str, &Value)]], how: &Distillation) -> Result<Self> {
        let units = Units::new(float, batches);
        let name = |edge: Edge| float.edge_name(edge).to_owned();
        let inputs = units.inputs(float, batches)?.into_iter().map(|(edge, values)| (name(edge), values)).collect();
        let Distillation { likeness, batch, threads, .. } = *how;
        let mut lesson = Lesson { units, likeness, batch, threads, inputs, targets: Vec::new() };
        let all: Vec<usize> = (0..units.count).collect();
        let mut targets: Vec<(String, Vec<Value>)> = Vec::new();
        lesson.run(float, &all, |of, outputs| {
            for (name, value) in outputs {
                let Value::F32(y) = &value else { continue };
                crate::num::NonFinite::Error.check(&format!("output `{name}`"), y.as_slice())?;
                let rows = units.split(&value, of.len())?;
                match targets.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, all)) => all.extend(rows),
                    None => targets.push((name, rows)),
                }
            }
            Ok(())
        })?;
        if targets.is_empty() {
            return Err(Error::Unsupported {
                what: "distillation of a model without a float output".into(),
                way_out: "give one whose outputs are f32".into(),
            });
        }
        lesson.targets = targets;
        Ok(lesson)
    }

    /// The inputs of some units.
    pub fn inputs(&self, of: &[usize]) -> Result<Vec<(&str, Value)>> {
        self.inputs.iter().map(|(name, values)| Ok((name.as_str(), self.units.gather(values, of)?))).collect()
    }

    /// Runs a model on some units, a few at a time.
    fn run(&self, model: &Model, of: &[usize], mut see: impl FnMut(&[usize], Vec<(String, Value)>) -> Result<()>) -> Result<()> {
        let mut executor = Executor::new(model).with_threads(self.threads)?;
        for of in self.units.batches(of, self.batch) {
            let inputs = self.inputs(&of)?;
            let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            see(&of, executor.run(&inputs)?)?;
        }
        Ok(())
    }

    /// The loss of a model on some units; infinite where something is not a number.
    fn loss(&self, model: &Model, of: &[usize]) -> Result<f64> {
        let mut sum = 0.0;
        self.run(model, of, |some, outputs| {
            let floats = outputs.into_iter().filter_map(|(name, value)| value.get::<f32>().map(|value| (name.clone(), value.clone())));
            sum += self.judge(some, &floats.collect::<Vec<_>>())?.0 * some.len() as f64 / of.len() as f64;
            Ok(())
        })?;
        Ok(if sum.is_nan() { f64::INFINITY } else { sum })
    }

    /// The loss of some units by their outputs, and its gradients by them.
    pub fn judge(&self, of: &[usize], outputs: &[(String, Tensor)]) -> Result<(f64, Vec<(&str, Tensor)>)> {
        let (mut sum, mut gradients) = (0.0, Vec::with_capacity(self.targets.len()));
        for (name, targets) in &self.targets {
            let output = outputs.iter().find(|(other, _)| other == name).map(|(_, value)| value);
            let present = || outputs.iter().map(|(name, _)| name.as_str()).collect();
            let output = output.ok_or_else(|| Error::Unknown { what: "output", name: name.clone(), present: present() })?;
            let target = self.units.gather(targets, of)?;
            let target = target.get::<f32>().expect("float outputs alone are targets");
            let (loss, gradient) = self.likeness.loss(output, target)?;
            sum += loss;
            gradients.push((name.as_str(), gradient));
        }
        Ok((sum, gradients))
    }
}

impl Likeness {
    /// The loss of an output, and its gradient.
    ///
    /// # Errors
    /// [`Error::Shape`] when the two differ.
    fn loss(self, output: &Tensor, target: &Tensor) -> Result<(f64, Tensor)> {
        if output.dims() != target.dims() {
            return Err(Error::shape("output", format!("{:?}, that of the float model", target.dims()), output.dims()));
        }
        let (mut loss, mut gradient) = (0.0, vec![0.0f32; output.len()]);
        if self != Likeness::Predictions {
            let square = |x: f64| x * x;
            let all = target.as_slice().iter().map(|&t| square(f64::from(t))).sum::<f64>();
            // Of nothing but zeros there is no share: gradients by it would be infinite.
            for ((by, &y), &t) in gradient.iter_mut().zip(output.as_slice()).zip(target.as_slice()).filter(|_| all > 0.0) {
                let off = f64::from(y) - f64::from(t);
                loss += square(off) / all;
                *by = (2.0 * off / all) as f32;
            }
        }
        let classes = target.dims().last().copied().unwrap_or(1);
        if self != Likeness::Values && classes > 1 && !target.is_empty() {
            let rows = |x: &Tensor| Tensor::new([x.len() / classes, classes], x.as_slice().to_vec());
            let (divergence, more) = distillation(&rows(output)?, &rows(target)?, 1.0)?;
            loss += divergence;
            gradient.iter_mut().zip(more.as_slice()).for_each(|(by, more)| *by += more);
        }
        Ok((loss, Tensor::new(output.dims(), gradient)?))
    }
}
