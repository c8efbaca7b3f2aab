//! Both models over the same inputs, value by value.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::eval::Cost;
use crate::eval::report::{LayerReport, Report};
use crate::metrics;
use crate::nn::{Dim, Edge, Executor, Model};
use crate::progress::Progress;
use crate::tensor::{Shape, Tensor, Value};

/// Inputs run at once. Results don't depend on it; memory does.
const BATCH: usize = 64;
/// Time spent on timing, at most, and rounds, at least.
const TIMING: Duration = Duration::from_millis(600);
const ROUNDS: usize = 5;

/// Compares a quantized model with the float model that it was made from, on `inputs` (the first axis counts the
/// samples), and with the truth where `labels` tells it (the index of the right output, a label a sample).
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, images: &lowprec::Tensor, labels: &[usize]) -> lowprec::Result<()> {
/// let int8 = lowprec::quantize_dynamic(model, &[lowprec::LayerKind::Conv2d])?;
/// println!("{}", lowprec::compare(model, &int8, images, Some(labels))?);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Length`] when there are not as many labels as samples, [`Error::Parameter`] for a label beyond the outputs,
/// [`Error::Empty`] without samples, [`Error::Shape`] when the two models' outputs differ in shape, and those of
/// [`Model::forward`].
pub fn compare(float: &Model, quantized: &Model, inputs: &Tensor, labels: Option<&[usize]>) -> Result<Report> {
    Comparison::new(float, quantized).run(inputs, labels)
}

/// [`compare`] with its choices open.
#[derive(Debug)]
#[must_use = "nothing happens until `run`"]
pub struct Comparison<'a> {
    float: &'a Model,
    quantized: &'a Model,
    threads: Option<usize>,
    progress: Progress<'a>,
}

impl<'a> Comparison<'a> {
    /// The choices of [`compare`].
    pub fn new(float: &'a Model, quantized: &'a Model) -> Self {
        Comparison { float, quantized, threads: None, progress: Progress::silent() }
    }

    /// Runs both models on at most so many threads; all of the caller's rayon pool unless said otherwise.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Reports each batch before it runs, and can be cancelled there.
    pub fn with_progress(mut self, progress: Progress<'a>) -> Self {
        self.progress = progress;
        self
    }

    /// Runs both and compares.
    ///
    /// # Errors
    /// Those of [`compare`], and [`Error::Cancelled`].
    pub fn run(mut self, inputs: &Tensor, labels: Option<&[usize]>) -> Result<Report> {
        let samples = inputs.shape().axis(0)?;
        if samples == 0 {
            return Err(Error::Empty { what: "set of inputs to compare on".into(), way_out: "give at least one sample" });
        }
        if let Some(labels) = labels.filter(|labels| labels.len() != samples) {
            return Err(Error::length("list of labels", samples, labels.len()));
        }
        let batch = batch_size(self.float, samples)?;
        let mut executors = [self.executor(self.float)?, self.executor(self.quantized)?];
        let mut sums: HashMap<String, Sums> = HashMap::new();
        let (mut logits, mut logits_quantized, mut classes) = (Vec::new(), Vec::new(), 0);
        for start in (0..samples).step_by(batch) {
            self.progress.step("compare", &format!("sample {start}"), start, samples)?;
            let x = inputs.slice(0, start..samples.min(start + batch))?;
            let mut values: HashMap<String, Tensor> = HashMap::new();
            let y = executors[0].forward_with(&x, |tap| {
                if let Value::F32(value) = tap.value {
                    values.insert(tap.edge.to_owned(), value.clone());
                }
                Ok(())
            })?;
            let y_quantized = executors[1].forward_with(&x, |tap| {
                if let (Some(reference), Value::F32(value)) = (values.get(tap.edge), tap.value) {
                    if reference.shape() != value.shape() {
                        return Err(Error::shape(
                            format!("value `{}` of the quantized model", tap.edge),
                            format!("{:?}", reference.shape()),
                            value.dims(),
                        ));
                    }
                    sums.entry(tap.edge.to_owned()).or_default().add(reference.as_slice(), value.as_slice());
                }
                Ok(())
            })?;
            if y.shape() != y_quantized.shape() {
                return Err(Error::shape(
                    "output of the quantized model",
                    format!("{:?}, the float model's", y.shape()),
                    y_quantized.dims(),
                ));
            }
            classes = y.dims().last().copied().unwrap_or(1);
            logits.extend_from_slice(y.as_slice());
            logits_quantized.extend_from_slice(y_quantized.as_slice());
        }
        // Costs are those of a forward at batch 1, or at the batch that the model demands.
        let one = inputs.slice(0, 0..batch_size(self.float, 1).unwrap_or(batch))?;
        let [shapes, shapes_quantized] = executors.each_mut().map(|executor| shapes_of(executor, &one));
        let (shapes, shapes_quantized) = (shapes?, shapes_quantized?);
        let time = time(&mut executors, &one)?;

        let (top, top_quantized) = (metrics::top1(&logits, classes)?, metrics::top1(&logits_quantized, classes)?);
        let accuracy = labels.map(|labels| {
            if top.len() != samples {
                return Err(Error::parameter(
                    "labels",
                    labels.len(),
                    format!("need one output row a sample, and there are {} rows", top.len()),
                ));
            }
            if let Some(label) = labels.iter().find(|&&label| label >= classes) {
                return Err(Error::parameter("label", label, format!("must lie within the {classes} outputs")));
            }
            let hits = |top: &[usize]| top.iter().zip(labels).filter(|(t, l)| t == l).count();
            Ok([hits(&top), hits(&top_quantized)])
        });
        let mut layers: Vec<LayerReport> = Vec::new();
        for node in self.quantized.nodes() {
            let edge = self.quantized.edge_name(node.outputs()[0]);
            let Some(sums) = sums.get(edge) else { continue };
            layers.push(LayerReport {
                name: node.name().to_owned(),
                kind: node.layer().kind(),
                precision: node.layer().precision(),
                kernel: node.layer().kernel_name(),
                sqnr_db: sums.sqnr_db(),
                max_error: sums.largest,
                weight_bytes: [self.float.node(node.name()).map_or(0, |node| node.layer().weight_bytes()), node.layer().weight_bytes()],
                macs: shapes_quantized.get(&node.outputs()[0]).map_or(0, |shape| node.layer().macs(shape)),
            });
        }
        layers.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        let mut whole = Sums::default();
        whole.add(&logits, &logits_quantized);
        Ok(Report {
            samples,
            hits: accuracy.transpose()?,
            rows: top.len(),
            flips: top.iter().zip(&top_quantized).filter(|(a, b)| a != b).count(),
            sqnr_db: whole.sqnr_db(),
            kl: metrics::kl_divergence(&logits, &logits_quantized, classes)?,
            layers,
            cost: [Cost::of(self.float, &shapes), Cost::of(self.quantized, &shapes_quantized)],
            time,
            timed_batch: one.dims()[0],
            threads: executors[0].threads(),
            conversion: self.quantized.conversion().cloned(),
        })
    }

    fn executor(&self, model: &Model) -> Result<Executor> {
        let executor = Executor::new(model);
        match self.threads {
            Some(threads) => executor.with_threads(threads),
            None => Ok(executor),
        }
    }
}

/// Samples to run at once: what the model demands, or a size that bounds memory.
fn batch_size(model: &Model, samples: usize) -> Result<usize> {
    match model.inputs().first().and_then(|input| input.dims().first()) {
        Some(&Dim::Fixed(batch)) if batch == 0 || !samples.is_multiple_of(batch) => Err(Error::parameter(
            "samples",
            samples,
            format!("must come in whole batches of {batch}, the fixed first axis of the model's input"),
        )),
        Some(&Dim::Fixed(batch)) => Ok(batch),
        _ => Ok(samples.min(BATCH)),
    }
}

fn shapes_of(executor: &mut Executor, x: &Tensor) -> Result<HashMap<Edge, Shape>> {
    let mut shapes: HashMap<Edge, Shape> = executor.model().inputs().iter().map(|input| (input.edge(), x.shape().clone())).collect();
    executor.forward_with(x, |tap| {
        if let Some(node) = tap.node {
            shapes.insert(node.outputs()[0], tap.value.shape().clone());
        }
        Ok(())
    })?;
    Ok(shapes)
}

/// Median time of a forward of each, in turn, so that a drift of the machine's speed meets both alike.
fn time(executors: &mut [Executor; 2], x: &Tensor) -> Result<[Duration; 2]> {
    let x = Value::from(x.clone());
    let mut samples: [Vec<Duration>; 2] = Default::default();
    let mut outputs: [Value; 2] = [x.clone(), x.clone()];
    let start = Instant::now();
    // The first round plans and allocates.
    for round in 0.. {
        for ((executor, samples), output) in executors.iter_mut().zip(&mut samples).zip(&mut outputs) {
            let model = executor.model().clone();
            let (input, name) = model.single()?;
            let begun = Instant::now();
            executor.run_into(&[(input, &x)], &mut [(name, output)])?;
            if round > 0 {
                samples.push(begun.elapsed());
            }
        }
        if round > ROUNDS && start.elapsed() > TIMING {
            break;
        }
    }
    Ok(samples.map(|mut samples| {
        samples.sort_unstable();
        samples[samples.len() / 2]
    }))
}

/// Sums of squares of a value and of its error, in f64.
#[derive(Debug, Default)]
struct Sums {
    signal: f64,
    noise: f64,
    largest: f32,
}

impl Sums {
    fn add(&mut self, reference: &[f32], value: &[f32]) {
        for (&r, &v) in reference.iter().zip(value) {
            let error = f64::from(r) - f64::from(v);
            self.signal += f64::from(r) * f64::from(r);
            self.noise += error * error;
            self.largest = self.largest.max((r - v).abs());
        }
    }

    fn sqnr_db(&self) -> f64 {
        metrics::decibels(self.signal, self.noise)
    }
}
