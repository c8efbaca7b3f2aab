//! The mix of precisions that holds a target.
//!
//! 1. Everything that can be is quantized; for the fastest mix ([`Objective::Fastest`]) less what is slower in int8 than in float, where the whole
//!    is faster without it. If the metric drops by no more than the target, that is the answer.
//! 2. Else each layer's part in the damage is measured: the output's error with this layer alone quantized, and with all but this one.
//! 3. Layers are left in float one after the other, first those that give back the most per byte (or per second), until the target
//!    holds.
//! 4. What was left is tried again, the last first: in int8 as before, then with its input quantized at run time; what doesn't
//!    break the target stays so.
//!
//! A search that was cancelled, or whose process ended, goes on from its [`SearchState`]: no mix is measured twice.

mod build;
mod outcome;
mod state;

use crate::convert::QConfig;
use crate::error::{Error, Result};
use crate::eval::compare::rows_of_classes;
use crate::eval::samples::{BATCH, Batches, Samples, forward};
use crate::eval::sums::Sums;
use crate::metrics;
use crate::nn::{Executor, Model};
use crate::progress::Progress;
use crate::tensor::Tensor;
use build::Builder;
pub use outcome::{Outcome, Sensitivity, TradeOff};
pub use state::{Choice, Measured, Mix, SearchState};
use state::{Fingerprint, Times};

/// The smallest mix of precisions whose metric is at most `max_drop` below the float model's, on `data` (floats, or indices of words; the first axis counts the
/// samples, which calibrate too; [`Samples::named`] of a model with several inputs).
///
/// `metric` says of the outputs of all samples how good they are, more being better: [`accuracy`] of labels,
/// [`agreement`] with the float model, or anything else.
///
/// ```
/// # use lowprec::nn::{Dim, Linear, Model};
/// # use lowprec::{DType, Tensor};
/// # let mut net = Model::builder();
/// # let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
/// # let x = net.add("fc", Linear::new(Tensor::new([2, 2], vec![1.0, -1.0, -0.5, 2.0])?, None)?, &[x])?;
/// # net.output("logits", x)?;
/// # let model = net.build()?;
/// # let (samples, labels) = (Tensor::new([3, 2], vec![1.0, 0.0, 0.0, 1.0, 2.0, -1.0])?, [0, 1, 0]);
/// use lowprec::eval::{accuracy, quantize_to_target};
/// let found = quantize_to_target(&model, &samples, accuracy(&labels), 0.005)?;
/// println!("{found}");
/// let y = found.model.forward(&samples)?;
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// Those of [`quantize_static`](crate::quantize_static), of running the model, and of `metric`; [`Error::Parameter`] for a drop below 0 or a metric
/// that is no number.
pub fn quantize_to_target(
    model: &Model,
    data: impl Into<Samples>,
    metric: impl FnMut(&Tensor) -> Result<f64>,
    max_drop: f64,
) -> Result<Outcome> {
    TargetSearch::new(model, data, max_drop).run(metric)
}

/// What a mix of equal accuracy is to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Objective {
    /// Of few bytes: a layer left in float costs the bytes that it would have saved.
    #[default]
    Smallest,
    /// Of little time: a layer that is slower in int8 than in float stays in float, target or not, where the whole model is faster for
    /// it, both being timed in turn; and a layer left in float costs the time that it would have saved, as profiled layer by layer.
    Fastest,
}

/// [`quantize_to_target`] with its choices open.
#[derive(Debug)]
#[must_use = "nothing happens until `run`"]
pub struct TargetSearch<'a> {
    model: &'a Model,
    data: Samples,
    calibration: Samples,
    config: QConfig,
    objective: Objective,
    max_drop: f64,
    threads: Option<usize>,
    progress: Progress<'a>,
    state: SearchState,
}

impl<'a> TargetSearch<'a> {
    /// The choices of [`quantize_to_target`].
    pub fn new(model: &'a Model, data: impl Into<Samples>, max_drop: f64) -> Self {
        let data: Samples = data.into();
        TargetSearch {
            model,
            calibration: data.clone(),
            data,
            config: QConfig::default(),
            objective: Objective::default(),
            max_drop,
            threads: None,
            progress: Progress::silent(),
            state: SearchState::default(),
        }
    }

    /// Quantizes by this configuration instead of the default one. Layers that have one range for the whole tensor
    /// ([`RangeOf::Tensor`](crate::kernels::RangeOf)) are judged in batches of 64.
    pub fn with_config(mut self, config: QConfig) -> Self {
        self.config = config;
        self
    }

    /// Calibrates on these samples instead of those that the metric is taken of.
    pub fn with_calibration(mut self, samples: impl Into<Samples>) -> Self {
        self.calibration = samples.into();
        self
    }

    /// Looks for the mix that is best in this.
    pub fn with_objective(mut self, objective: Objective) -> Self {
        self.objective = objective;
        self
    }

    /// Runs models on at most so many threads.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Reports each mix before it is measured, and can be cancelled there; [`TargetSearch::state`] then has what was found so far.
    pub fn with_progress(mut self, progress: Progress<'a>) -> Self {
        self.progress = progress;
        self
    }

    /// Goes on from what another search of the same model, data, calibration, configuration and metric measured; objective, largest drop and
    /// threads may be others. The metric is told by what it says of the float model alone.
    pub fn with_state(mut self, state: SearchState) -> Self {
        self.state = state;
        self
    }

    /// What was measured so far.
    pub fn state(&self) -> &SearchState {
        &self.state
    }

    /// Searches.
    ///
    /// # Errors
    /// Those of [`quantize_to_target`]; [`Error::Unsupported`] for a state of another model, other data, another configuration or
    /// another metric; [`Error::Cancelled`].
    pub fn run(&mut self, mut metric: impl FnMut(&Tensor) -> Result<f64>) -> Result<Outcome> {
        if self.max_drop.is_nan() || self.max_drop < 0.0 {
            return Err(Error::parameter("largest drop", self.max_drop, "must not be negative"));
        }
        let data = Batches::new(&self.data, self.model)?;
        let reference = self.outputs(self.model, &data)?;
        let float = score(&mut metric, &reference)?;
        let mut builder = Builder::new(self.model, self.config.clone(), &self.calibration, self.threads)?;
        let layers = builder.layers().to_vec();
        let fingerprint = self.fingerprint(&data, &reference, float, &builder)?;
        self.state.claim(fingerprint)?;
        let mut run = Run { search: self, data: &data, builder: &mut builder, metric: &mut metric, reference: &reference };
        let all = run.measure("quantize", &Mix::default(), 0, 1)?;
        let target = run.search.max_drop;
        let holds = |measured: &Measured| float - measured.metric <= target;
        let mut steps = vec![TradeOff { left: None, measured: all }];
        let mut sensitivity = Vec::new();
        let (mut mix, mut found) = (Mix::default(), all);
        for name in run.slower()? {
            mix.set(&name, Choice::Float);
            found = run.measure("leave in float, being faster", &mix, 0, 1)?;
            steps.push(TradeOff { left: Some(name), measured: found });
        }
        if !holds(&found) {
            let faster = steps.len();
            sensitivity = run.sensitivity(&layers, all)?;
            let mut order = run.order(&sensitivity, all)?;
            order.retain(|name| !steps.iter().any(|step| step.left.as_ref() == Some(name)));
            for (done, name) in order.iter().enumerate() {
                mix.set(name, Choice::Float);
                found = run.measure("leave in float", &mix, done, order.len())?;
                steps.push(TradeOff { left: Some(name.clone()), measured: found });
                if holds(&found) {
                    break;
                }
            }
            // What was left on the way may not have been needed.
            let left: Vec<String> = steps[faster..].iter().filter_map(|step| step.left.clone()).collect();
            for (done, name) in left.iter().rev().enumerate() {
                for choice in [Choice::Configured, Choice::Dynamic] {
                    let mut other = mix.clone();
                    other.set(name, choice);
                    if choice == Choice::Dynamic && !run.builder.has_dynamic(name) {
                        continue;
                    }
                    let measured = run.measure("take back", &other, done, left.len())?;
                    if holds(&measured) {
                        (mix, found) = (other, measured);
                        break;
                    }
                }
            }
        }
        let model = run.builder.build(&mix)?;
        Ok(Outcome {
            model,
            mix,
            float,
            found,
            max_drop: self.max_drop,
            holds: float - found.metric <= self.max_drop,
            float_bytes: self.model.bytes(),
            sensitivity,
            steps,
        })
    }

    /// Searches by how often the largest output is where the float model has it: what can be held to without labels.
    ///
    /// # Errors
    /// Those of [`TargetSearch::run`].
    pub fn run_by_agreement(&mut self) -> Result<Outcome> {
        let metric = agreement(&self.outputs(self.model, &Batches::new(&self.data, self.model)?)?)?;
        self.run(metric)
    }

    /// The model's outputs for all samples.
    fn outputs(&self, model: &Model, data: &Batches) -> Result<Tensor> {
        data.outputs(&mut self.executor(model)?, BATCH)
    }

    fn executor(&self, model: &Model) -> Result<Executor> {
        let executor = Executor::new(model);
        match self.threads {
            Some(threads) => executor.with_threads(threads),
            None => Ok(executor),
        }
    }

    /// What the mixes' numbers depend on.
    fn fingerprint(&self, data: &Batches, reference: &Tensor, float: f64, builder: &Builder<'_>) -> Result<Fingerprint> {
        let mut found = Fingerprint::new();
        builder.layers().iter().for_each(|name| found.add(name.as_bytes()));
        data.describe(|bytes| found.add(bytes));
        found.add(bytemuck::cast_slice(reference.as_slice()));
        // Two models may have the same outputs and not the same layers: what each makes of a sample tells them apart.
        forward(&mut self.executor(self.model)?, &data.least()?, |tap| {
            found.add(tap.edge.as_bytes());
            found.add(tap.value.bytes());
            Ok(())
        })?;
        found.add(&float.to_le_bytes());
        builder.describe(&mut found);
        Ok(found)
    }
}

/// A search on its way.
struct Run<'r, 'a, M> {
    search: &'r mut TargetSearch<'a>,
    data: &'r Batches,
    builder: &'r mut Builder<'a>,
    metric: &'r mut M,
    reference: &'r Tensor,
}

impl<M: FnMut(&Tensor) -> Result<f64>> Run<'_, '_, M> {
    /// Metric, error and bytes of a mix; from the state where they are known.
    fn measure(&mut self, stage: &'static str, mix: &Mix, done: usize, total: usize) -> Result<Measured> {
        if let Some(known) = self.search.state.get(mix) {
            return Ok(known);
        }
        self.search.progress.step(stage, &mix.to_string(), done, total)?;
        let model = self.builder.build(mix)?;
        let outputs = self.search.outputs(&model, self.data)?;
        let mut sums = Sums::default();
        sums.add(self.reference.as_slice(), outputs.as_slice());
        let measured = Measured { metric: score(self.metric, &outputs)?, sqnr_db: sums.sqnr_db(), bytes: model.bytes() };
        self.search.state.insert(mix.clone(), measured);
        Ok(measured)
    }

    /// Each layer alone in int8, and all but each.
    fn sensitivity(&mut self, layers: &[String], all: Measured) -> Result<Vec<Sensitivity>> {
        let mut found = Vec::with_capacity(layers.len());
        for (done, name) in layers.iter().enumerate() {
            let mut others = Mix::default();
            layers.iter().filter(|other| *other != name).for_each(|other| others.set(other, Choice::Float));
            let alone = self.measure("quantize one", &others, done, layers.len())?;
            let mut without = Mix::default();
            without.set(name, Choice::Float);
            let but = self.measure("quantize all but one", &without, done, layers.len())?;
            found.push(Sensitivity { name: name.clone(), alone, without: but, saves: but.bytes.saturating_sub(all.bytes) });
        }
        // Worst first: by what the whole gains without it.
        found.sort_by(|a, b| b.without.sqnr_db.total_cmp(&a.without.sqnr_db));
        Ok(found)
    }

    /// For the fastest mix, the layers that make it faster in float: of those slower in int8 by themselves, the most time lost first, each
    /// without which the whole takes less time.
    fn slower(&mut self) -> Result<Vec<String>> {
        if self.search.objective != Objective::Fastest {
            return Ok(Vec::new());
        }
        if let Some(times) = &self.search.state.times {
            return Ok(times.slower.clone());
        }
        let saved = self.builder.seconds_saved(self.data)?;
        let mut lost: Vec<&(String, f64)> = saved.iter().filter(|(_, seconds)| *seconds < 0.0).collect();
        lost.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (mut mix, mut slower) = (Mix::default(), Vec::new());
        for (done, (name, _)) in lost.iter().enumerate() {
            self.search.progress.step("time without", name, done, lost.len())?;
            let mut without = mix.clone();
            without.set(name, Choice::Float);
            let [before, after] = self.builder.seconds([&mix, &without], self.data)?;
            if after < before {
                (mix, slower) = (without, [slower, vec![name.clone()]].concat());
            }
        }
        self.search.state.times = Some(Times { saved, slower: slower.clone() });
        Ok(slower)
    }

    /// Names in the order in which they are left in float: by the noise that the whole loses without the layer in int8, for what leaving
    /// it costs.
    fn order(&mut self, sensitivity: &[Sensitivity], all: Measured) -> Result<Vec<String>> {
        let noise = |measured: &Measured| 10f64.powf(-measured.sqnr_db / 10.0);
        let costs: Vec<f64> = match self.search.objective {
            Objective::Smallest => sensitivity.iter().map(|layer| layer.saves as f64).collect(),
            Objective::Fastest => {
                let times = self.search.state.times.as_ref().map_or(&[][..], |times| &times.saved);
                let of = |name: &str| times.iter().find(|(other, _)| other == name).map_or(0.0, |(_, seconds)| *seconds);
                sensitivity.iter().map(|layer| of(&layer.name)).collect()
            }
        };
        let worth = |(layer, &cost): (&Sensitivity, &f64)| match (noise(&all) - noise(&layer.without)).max(0.0) {
            0.0 => 0.0,
            // It costs nothing.
            _ if cost <= 0.0 => f64::INFINITY,
            gain => gain / cost,
        };
        let mut order: Vec<(f64, &Sensitivity)> = sensitivity.iter().zip(&costs).map(worth).zip(sensitivity).collect();
        // Stable: of equals the one whose absence helps more comes first.
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(order.into_iter().map(|(_, layer)| layer.name.clone()).collect())
    }
}

fn score(metric: &mut impl FnMut(&Tensor) -> Result<f64>, outputs: &Tensor) -> Result<f64> {
    let score = metric(outputs)?;
    if score.is_finite() { Ok(score) } else { Err(Error::parameter("metric", score, "must be a finite number")) }
}

/// A metric: the share of samples, or of their places where outputs are `[samples, places, classes]`, whose largest output is at the label.
pub fn accuracy(labels: &[usize]) -> impl FnMut(&Tensor) -> Result<f64> + use<'_> {
    move |outputs| {
        let classes = outputs.len() / labels.len().max(1);
        let top = metrics::top1(outputs.as_slice(), classes)?;
        if top.len() != labels.len() {
            return Err(Error::length("list of labels", top.len(), labels.len()));
        }
        Ok(top.iter().zip(labels).filter(|(top, label)| top == label).count() as f64 / labels.len().max(1) as f64)
    }
}

/// A metric: the share of samples, or of their places where outputs are `[samples, places, classes]`, whose largest output is where the float model, whose outputs these are, has it.
///
/// # Errors
/// [`Error::Shape`] for outputs without axes.
pub fn agreement(float: &Tensor) -> Result<impl FnMut(&Tensor) -> Result<f64> + use<>> {
    let samples = float.shape().axis(0)?;
    let classes = rows_of_classes(samples, float.dims()).map_or(float.len() / samples.max(1), |(_, classes)| classes);
    let labels = metrics::top1(float.as_slice(), classes)?;
    Ok(move |outputs: &Tensor| accuracy(&labels)(outputs))
}
