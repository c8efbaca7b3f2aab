//! Static quantization: ranges observed on samples, then integers from end to end.

use std::collections::HashMap;
use std::fmt;

use crate::convert::{Calibration, QConfig, StaticPlan};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::{Executor, Model};
use crate::progress::Progress;
use crate::quant::{Observer, Scheme};
use crate::tensor::{Tensor, Value};

/// Quantizes a model to integers that run from layer to layer, by the ranges that its values have on `batches`.
///
/// Batch norms are folded first. Then the samples run through the float model, and observers look at every value that
/// will be held in codes. Convolutions and linear layers become int8, their sums requantized to the next layer's grid before
/// they leave the registers; sums of two branches, clamps, pooling, concatenation and functions of one element between them run
/// on codes too ([`convert`](crate::convert) has the rules); floats are left at the borders and where nothing of it would be won.
/// `config` says otherwise for layers by kind and name.
///
/// The three steps are [`Calibrator::new`], [`Calibrator::observe`] for each batch, and [`Calibrator::finish`] with
/// [`convert`](crate::convert::convert()).
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, samples: &lowprec::Tensor) -> lowprec::Result<()> {
/// let int8 = lowprec::quantize_static(model, [samples], &lowprec::QConfig::default())?;
/// println!("{int8}");
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`QConfig::check`] before any sample runs; [`Error::Empty`] without samples; [`Error::NonFinite`] for NaN or infinities,
/// inside an [`Error::Layer`] that names the layer which wrote them; [`Error::NothingToQuantize`]; those of [`Model::forward`].
pub fn quantize_static<'t>(model: &Model, batches: impl IntoIterator<Item = &'t Tensor>, config: &QConfig) -> Result<Model> {
    let mut calibrator = Calibrator::new(model, config)?;
    let (name, _) = model.single()?;
    for batch in batches {
        calibrator.observe(&[(name, &Value::from(batch.clone()))])?;
    }
    calibrator.convert()
}

/// Looks at a model's values while samples run through it.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, ids: &lowprec::Value, mask: &lowprec::Value) -> lowprec::Result<()> {
/// use lowprec::ptq::Calibrator;
/// let mut calibrator = Calibrator::new(model, &lowprec::QConfig::default())?;
/// calibrator.observe(&[("ids", ids), ("mask", mask)])?;
/// let calibration = calibrator.finish()?;
/// println!("{calibration}");
/// let int8 = lowprec::convert::convert(model, &calibration, &lowprec::QConfig::default())?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Calibrator<'p> {
    model: Model,
    config: QConfig,
    threads: Option<usize>,
    isa: Isa,
    progress: Progress<'p>,
    batches: usize,
    running: Option<Running>,
}

/// What the first batch decides.
#[derive(Debug)]
struct Running {
    plan: StaticPlan,
    shapes: Vec<Vec<usize>>,
    executor: Executor,
    observers: HashMap<String, Observed>,
}

struct Observed {
    observer: Box<dyn Observer + Send>,
    scheme: Scheme,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl<'p> Calibrator<'p> {
    /// A calibrator that has seen nothing.
    ///
    /// # Errors
    /// Those of [`StaticPlan::new`], of everything that can be told without a sample.
    pub fn new(model: &Model, config: &QConfig) -> Result<Self> {
        StaticPlan::new(model, config, &[])?;
        Ok(Calibrator {
            model: model.clone(),
            config: config.clone(),
            threads: None,
            isa: Isa::best(),
            progress: Progress::silent(),
            batches: 0,
            running: None,
        })
    }

    /// Runs the samples on at most so many threads; all of the caller's rayon pool unless said otherwise.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Calibrator { threads: Some(threads), ..self }
    }

    /// The instruction set that the integer model will run on; the best of this processor unless said otherwise. The results
    /// are the same.
    #[must_use]
    pub fn with_isa(self, isa: Isa) -> Self {
        Calibrator { isa, ..self }
    }

    /// Reports each batch and each layer of it before it is observed, and can be cancelled there.
    #[must_use]
    pub fn with_progress<'q>(self, progress: Progress<'q>) -> Calibrator<'q> {
        let Calibrator { model, config, threads, isa, batches, running, .. } = self;
        Calibrator { model, config, threads, isa, progress, batches, running }
    }

    /// Batches observed so far.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Runs a batch through the float model, all inputs by name, and observes its values. The first batch's shapes decide which
    /// sums are fused; others may have other shapes that the model takes.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN or infinities (unless the configuration takes them), inside an [`Error::Layer`] that names the
    /// layer which wrote them; [`Error::Empty`] for a batch without a sample; [`Error::Cancelled`]; those of [`Model::run`].
    pub fn observe(&mut self, inputs: &[(&str, &Value)]) -> Result<()> {
        if let Some((name, _)) = inputs.iter().find(|(_, value)| value.shape().dims().first() == Some(&0)) {
            return Err(Error::Empty { what: format!("batch of samples in input `{name}`"), way_out: "give at least one sample" });
        }
        let (item, done) = (format!("batch {}", self.batches), self.batches);
        self.progress.step("calibrate", &item, done, done + 1)?;
        let Running { executor, observers, .. } = match &mut self.running {
            Some(running) => running,
            none => none.insert(Running::new(&self.model, &self.config, self.threads, inputs)?),
        };
        let progress = &mut self.progress;
        executor.run_with(inputs, |tap| {
            let (Some(observed), Value::F32(value)) = (observers.get_mut(tap.edge), tap.value) else { return Ok(()) };
            progress.step("observe", tap.edge, done, done + 1)?;
            observed.observer.observe(value).map_err(|error| match (error, tap.node) {
                (Error::NonFinite { index, value, .. }, node) => {
                    let error = Error::NonFinite { what: format!("value `{}`", tap.edge), index, value };
                    if let Some(node) = node { error.in_layer(node.name()) } else { error }
                }
                (error, Some(node)) => error.in_layer(node.name()),
                (error, None) => error,
            })
        })?;
        self.batches += 1;
        Ok(())
    }

    /// Scale and zero point of every value observed.
    ///
    /// # Errors
    /// [`Error::Empty`] when no sample was observed, or a value was never reached, naming it.
    pub fn finish(&self) -> Result<Calibration> {
        let Some(running) = self.running.as_ref().filter(|_| self.batches > 0) else {
            return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
        };
        let mut calibration = Calibration::new().with_shapes(running.shapes.clone());
        for (name, observed) in &running.observers {
            let params = observed.observer.qparams(&observed.scheme).map_err(|error| match error {
                Error::Empty { way_out, .. } => Error::Empty { what: format!("calibration of `{name}`"), way_out },
                error => error,
            })?;
            calibration.insert(name, params);
        }
        Ok(calibration)
    }

    /// The integer model, by all that was observed.
    ///
    /// # Errors
    /// Those of [`Calibrator::finish`] and [`StaticPlan::convert`].
    pub fn convert(&self) -> Result<Model> {
        let calibration = self.finish()?;
        let running = self.running.as_ref().expect("finish found samples");
        running.plan.convert(&calibration, self.isa)
    }

    /// The plan, as soon as the first batch decided it.
    pub fn plan(&self) -> Option<&StaticPlan> {
        self.running.as_ref().map(|running| &running.plan)
    }
}

impl Running {
    fn new(model: &Model, config: &QConfig, threads: Option<usize>, inputs: &[(&str, &Value)]) -> Result<Self> {
        let mut shapes = Vec::new();
        for input in model.inputs() {
            let given = inputs.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value);
            let given = given.ok_or_else(|| Error::Unknown {
                what: "given input",
                name: input.name().to_owned(),
                present: inputs.iter().map(|(name, _)| *name).collect(),
            })?;
            input.check(given)?;
            shapes.push(given.shape().dims().to_vec());
        }
        let plan = StaticPlan::new(model, config, &shapes)?;
        let mut observers = HashMap::new();
        for (name, scheme) in plan.observed() {
            let observer = scheme.activation_observer.build(scheme.activations.granularity(), config.non_finite())?;
            observers.insert(name.to_owned(), Observed { observer, scheme: scheme.activations });
        }
        let executor = Executor::new(plan.model());
        let executor = if let Some(threads) = threads { executor.with_threads(threads)? } else { executor };
        Ok(Running { plan, shapes, executor, observers })
    }
}
