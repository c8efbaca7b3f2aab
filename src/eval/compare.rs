//! Both models over the same inputs, value by value.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::eval::Cost;
use crate::eval::coverage::Coverage;
use crate::eval::isolate::{Isolation, floats};
use crate::eval::report::{Classification, Errors, LayerReport, RangeUse, Report};
use crate::eval::samples::{BATCH, Batch, Batches, Samples, by_name, forward, joined};
use crate::eval::sums::Sums;
use crate::metrics;
use crate::nn::{Edge, Executor, Model};
use crate::num::U8Grid;
use crate::progress::Progress;
use crate::tensor::{Shape, Tensor, Value};

/// Samples on which layers are looked at by themselves.
const ISOLATED: usize = 64;
/// Rounds in which the time of each layer is taken.
const PROFILED: usize = 7;
/// Time spent on timing, at most, and rounds, at least.
const TIMING: Duration = Duration::from_millis(600);
const ROUNDS: usize = 5;

/// Compares a quantized model with the float model that it was made from, on `inputs` (floats, or indices of words; the first axis counts
/// the samples; [`Samples::named`] of a model with several), and with the truth where `labels` tells it (the index of the right output, a label a row of classes).
///
/// Outputs are rows of classes when they are `[samples, classes]`, with any number of axes of length 1 behind, or
/// `[samples, places, classes]` (a row a place, as models of language have them), and at least two
/// classes; only then is there a top-1, an agreement and a KL divergence. Other outputs are compared by their SQNR alone.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, images: &lowprec::Tensor, labels: &[usize]) -> lowprec::Result<()> {
/// let int8 = lowprec::quantize_dynamic(model, &[lowprec::LayerKind::Conv2d])?;
/// println!("{}", lowprec::compare(model, &int8, images, Some(labels))?);
/// # Ok(()) }
/// ```
///
/// Layers by themselves are fed with what `float` has there: a model whose channels were scaled before it was quantized
/// ([`equalize`](mod@crate::ptq::equalize), [`smooth_quant`](mod@crate::ptq::smooth_quant), [`awq`](mod@crate::ptq::awq)) tells them beside the scaled
/// float model, and only its outputs beside the one before.
///
/// # Errors
/// [`Error::Length`] when there are not as many labels as rows of classes, [`Error::Parameter`] for a label beyond the outputs,
/// [`Error::Unsupported`] for labels of outputs that are no rows of classes and for several outputs, [`Error::Empty`] without samples,
/// [`Error::Unknown`] for an input that has none, [`Error::Shape`] for inputs that differ in their samples, or when the two models' outputs
/// differ in shape, and those of [`Model::run`].
pub fn compare(float: &Model, quantized: &Model, inputs: impl Into<Samples>, labels: Option<&[usize]>) -> Result<Report> {
    Comparison::new(float, quantized).run(inputs, labels)
}

impl std::fmt::Debug for Comparison<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metrics: Vec<&str> = self.metrics.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Comparison").field("threads", &self.threads).field("metrics", &metrics).finish_non_exhaustive()
    }
}

/// [`compare`] with its choices open.
#[must_use = "nothing happens until `run`"]
pub struct Comparison<'a> {
    float: &'a Model,
    quantized: &'a Model,
    threads: Option<usize>,
    batch: usize,
    isolated: usize,
    metrics: Vec<(String, Box<Metric<'a>>)>,
    progress: Progress<'a>,
}

/// A number that says how good outputs are.
type Metric<'a> = dyn FnMut(&Tensor) -> Result<f64> + 'a;

impl<'a> Comparison<'a> {
    /// The choices of [`compare`].
    pub fn new(float: &'a Model, quantized: &'a Model) -> Self {
        Comparison { float, quantized, threads: None, batch: BATCH, isolated: ISOLATED, metrics: Vec::new(), progress: Progress::silent() }
    }

    /// Runs both models on at most so many threads; all of the caller's rayon pool unless said otherwise.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Runs so many samples at once (a fixed first axis of the model's inputs decides it otherwise); 64 unless said otherwise. What is found
    /// depends on it where layers have one range for the whole tensor ([`RangeOf::Tensor`](crate::kernels::RangeOf)), and nowhere else.
    pub fn with_batch(mut self, samples: usize) -> Self {
        self.batch = samples;
        self
    }

    /// Looks at each layer by itself on so many of the samples, in whole batches; on the first 64 unless said otherwise, on none for 0.
    /// It takes as long as some four more runs.
    pub fn with_isolated_samples(mut self, samples: usize) -> Self {
        self.isolated = samples;
        self
    }

    /// With a number of the caller's own: what `metric` says of all outputs of a model, float and quantized.
    pub fn with_metric(mut self, name: &str, metric: impl FnMut(&Tensor) -> Result<f64> + 'a) -> Self {
        self.metrics.push((name.to_owned(), Box::new(metric)));
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
    pub fn run(mut self, inputs: impl Into<Samples>, labels: Option<&[usize]>) -> Result<Report> {
        let inputs = Batches::new(&inputs.into(), self.float)?;
        let samples = inputs.samples();
        let mut executors = [self.executor(self.float)?, self.executor(self.quantized)?];
        let edges = self.quantized.nodes().iter().flat_map(|node| node.outputs());
        let grids: HashMap<&str, U8Grid> =
            edges.filter_map(|&edge| Some((self.quantized.edge_name(edge), self.quantized.grid(edge)?))).collect();
        let mut sums: HashMap<String, Sums> = HashMap::new();
        let (mut coverage, mut isolation) = (HashMap::<String, Coverage>::new(), Isolation::new(self.float, self.quantized)?);
        let mut outputs: [(Vec<f32>, Vec<usize>); 2] = Default::default();
        let (mut whole, mut rows) = (Sums::default(), None);
        let (mut logits, mut logits_quantized) = (Vec::new(), Vec::new());
        for range in inputs.ranges(self.batch) {
            let (start, length) = (range.start, range.len());
            self.progress.step("compare", &format!("sample {start}"), start, samples)?;
            let x = inputs.part(range)?;
            let mut values: HashMap<String, Tensor> = HashMap::new();
            let mut others: HashMap<String, Value> = HashMap::new();
            let y = forward(&mut executors[0], &x, |tap| {
                match tap.value {
                    Value::F32(value) => _ = values.insert(tap.edge.to_owned(), value.clone()),
                    other => _ = others.insert(tap.edge.to_owned(), other.clone()),
                }
                Ok(())
            })?;
            let y_quantized = forward(&mut executors[1], &x, |tap| {
                if let (Some(reference), Some(value)) = (values.get(tap.edge), floats(tap.value, grids.get(tap.edge).copied())?) {
                    if reference.shape() != value.shape() {
                        return Err(Error::shape(
                            format!("value `{}` of the quantized model", tap.edge),
                            format!("{:?}", reference.shape()),
                            value.dims(),
                        ));
                    }
                    sums.entry(tap.edge.to_owned()).or_default().add(reference.as_slice(), value.as_slice());
                    if let Some(grid) = grids.get(tap.edge) {
                        coverage.entry(tap.edge.to_owned()).or_insert_with(|| Coverage::new(*grid)).add(reference.as_slice());
                    }
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
            if start < self.isolated {
                isolation.add(&values, &others);
            }
            whole.add(y.as_slice(), y_quantized.as_slice());
            if !self.metrics.is_empty() {
                for ((all, dims), part) in outputs.iter_mut().zip([&y, &y_quantized]) {
                    all.extend_from_slice(part.as_slice());
                    *dims = part.dims().to_vec();
                }
            }
            rows = rows_of_classes(length, y.dims());
            check_labels(labels, (rows, samples), y.dims())?;
            if rows.is_some() {
                logits.extend_from_slice(y.as_slice());
                logits_quantized.extend_from_slice(y_quantized.as_slice());
            }
        }
        // Costs are those of a forward at batch 1, or at the batch that the model demands.
        let one = inputs.least()?;
        let [shapes, shapes_quantized] = executors.each_mut().map(|executor| shapes_of(executor, &one));
        let (shapes, shapes_quantized) = (shapes?, shapes_quantized?);
        let time = time(&mut executors, &one, TIMING)?;
        let [times, times_quantized] = executors.each_mut().map(|executor| profile(executor, &one));
        let (times, times_quantized) = (times?, times_quantized?);

        let classification = rows.map(|(_, classes)| Classification::of(&logits, &logits_quantized, classes, labels)).transpose()?;
        let mut layers: Vec<LayerReport> = Vec::new();
        for node in self.quantized.nodes() {
            let out = node.outputs()[0];
            let edge = self.quantized.edge_name(out);
            let Some(sums) = sums.get(edge) else { continue };
            let twin = self.float.node(node.name());
            layers.push(LayerReport {
                name: node.name().to_owned(),
                position: layers.len(),
                kind: node.layer().kind(),
                precision: node.layer().precision(),
                format: node.layer().format_name(),
                kernel: node.layer().kernel_name(),
                errors: Errors::of(sums),
                isolated: isolation.of(node.name()),
                range: coverage.get(edge).map(|seen| RangeUse { clipped: seen.clipped(), unused: seen.unused() }),
                weights: isolation.weights(node)?,
                values: coverage.remove(edge).map(|seen| seen.histogram),
                weight_bytes: [twin.map_or(0, |node| node.layer().weight_bytes()), node.layer().weight_bytes()],
                macs: shapes_quantized.get(&out).map_or(0, |shape| node.layer().macs(shape)),
                time: [times.get(node.name()).copied(), times_quantized.get(node.name()).copied()],
            });
        }
        let mut metrics = Vec::new();
        if !self.metrics.is_empty() {
            let [float, quantized] = outputs.map(|(all, dims)| joined(all, dims));
            let (float, quantized) = (float?, quantized?);
            for (name, metric) in &mut self.metrics {
                metrics.push((name.clone(), [metric(&float)?, metric(&quantized)?]));
            }
        }
        layers.sort_by(LayerReport::by_loss);
        Ok(Report {
            samples,
            classification,
            sqnr_db: whole.sqnr_db(),
            metrics,
            layers,
            cost: [Cost::of(self.float, &shapes), Cost::of(self.quantized, &shapes_quantized)],
            time,
            timed_batch: inputs.size(1),
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

fn shapes_of(executor: &mut Executor, x: &Batch) -> Result<HashMap<Edge, Shape>> {
    let inputs = executor.model().inputs().iter().zip(x);
    let mut shapes: HashMap<Edge, Shape> = inputs.map(|(input, (_, value))| (input.edge(), value.shape().clone())).collect();
    forward(executor, x, |tap| {
        if let Some(node) = tap.node {
            shapes.insert(node.outputs()[0], tap.value.shape().clone());
        }
        Ok(())
    })?;
    Ok(shapes)
}

/// Median time of a forward of each, in turn, so that a drift of the machine's speed meets both alike.
pub(super) fn time(executors: &mut [Executor; 2], x: &Batch, budget: Duration) -> Result<[Duration; 2]> {
    let mut samples: [Vec<Duration>; 2] = Default::default();
    // What a run writes takes its shape from the first one.
    let mut outputs: [Value; 2] = std::array::from_fn(|_| x[0].1.clone());
    let x = by_name(x);
    let start = Instant::now();
    // The first round plans and allocates.
    for round in 0.. {
        for ((executor, samples), output) in executors.iter_mut().zip(&mut samples).zip(&mut outputs) {
            let model = executor.model().clone();
            let mut named: Vec<(&str, &mut Value)> = model.outputs().iter().map(|output| output.name()).zip([output]).collect();
            let begun = Instant::now();
            executor.run_into(&x, &mut named)?;
            if round > 0 {
                samples.push(begun.elapsed());
            }
        }
        if round > ROUNDS && start.elapsed() > budget {
            break;
        }
    }
    Ok(samples.map(|mut samples| {
        samples.sort_unstable();
        samples[samples.len() / 2]
    }))
}

/// Median time of each node of a forward, by name.
fn profile(executor: &mut Executor, x: &Batch) -> Result<HashMap<String, Duration>> {
    Ok(executor.profile(&by_name(x), PROFILED)?.into_iter().collect())
}

/// Rows of a sample and classes of a row, of outputs of this shape, where they are rows of classes.
pub(super) fn rows_of_classes(samples: usize, dims: &[usize]) -> Option<(usize, usize)> {
    match *dims {
        [n, classes, ref rest @ ..] if n == samples && classes > 1 && rest.iter().all(|&length| length == 1) => Some((1, classes)),
        [n, places, classes] if n == samples && classes > 1 => Some((places, classes)),
        _ => None,
    }
}

pub(super) fn check_labels(labels: Option<&[usize]>, (rows, samples): (Option<(usize, usize)>, usize), dims: &[usize]) -> Result<()> {
    match (labels, rows) {
        (None, _) => Ok(()),
        (Some(labels), Some((places, _))) if labels.len() != places * samples => {
            Err(Error::length("list of labels", places * samples, labels.len()))
        }
        (Some(labels), Some((_, classes))) => match labels.iter().find(|&&label| label >= classes) {
            Some(label) => Err(Error::parameter("label", label, format!("must lie within the {classes} outputs"))),
            None => Ok(()),
        },
        (Some(_), None) => Err(Error::Unsupported {
            what: format!("labels for an output of shape {dims:?}"),
            way_out:
                "compare without labels, or end the model in [samples, classes] or [samples, places, classes] with at least two classes"
                    .into(),
        }),
    }
}

impl Classification {
    pub(super) fn of(logits: &[f32], quantized: &[f32], classes: usize, labels: Option<&[usize]>) -> Result<Self> {
        // Where a row holds nothing but NaN there is no largest output.
        let top = |logits: &[f32]| -> Result<Vec<Option<usize>>> {
            let rows = metrics::top1(logits, classes)?.into_iter().zip(logits.chunks_exact(classes));
            Ok(rows.map(|(top, row)| (!row[top].is_nan()).then_some(top)).collect())
        };
        let tops = [top(logits)?, top(quantized)?];
        let hits = |top: &[Option<usize>], labels: &[usize]| top.iter().zip(labels).filter(|(top, label)| **top == Some(**label)).count();
        Ok(Classification {
            classes,
            rows: tops[0].len(),
            hits: labels.map(|labels| tops.each_ref().map(|top| hits(top, labels))),
            flips: tops[0].iter().zip(&tops[1]).filter(|(a, b)| a != b).count(),
            kl: metrics::kl_divergence(logits, quantized, classes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_found_where_they_are() {
        let cases = [
            (&[4, 10][..], Some((1, 10))),
            (&[4, 10, 1, 1], Some((1, 10))),
            (&[4, 10, 1], Some((1, 10))),
            (&[4, 10, 2, 1], None),
            (&[4, 1], None),
            (&[4], None),
            (&[4, 3, 5], Some((3, 5))),
            (&[40, 10], None),
        ];
        for (dims, classes) in cases {
            assert_eq!(rows_of_classes(4, dims), classes, "{dims:?}");
        }
    }

    #[test]
    fn rows_of_nan_agree_with_nothing_else() {
        let nan = f32::NAN;
        let found = Classification::of(&[2.0, 1.0, nan, nan, 0.0, 1.0], &[nan, nan, nan, nan, nan, 1.0], 2, Some(&[0, 0, 1])).unwrap();
        assert_eq!((found.flips, found.hits), (1, Some([2, 1])));
    }
}
