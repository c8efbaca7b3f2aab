//! Static quantization: ranges observed on samples, then integers from end to end.

use std::collections::HashMap;
use std::fmt;

use crate::convert::{Calibration, QConfig, StaticPlan};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::{Executor, Input, Model};
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
/// A static model does not look for NaN at run time: where a value becomes a code, NaN becomes that of zero, and an infinity the last
/// one on its side. Sums that were fused by the samples' shapes want operands of one shape when the model runs, too.
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
    let [input] = model.inputs() else {
        return Err(Error::Unsupported {
            what: format!("samples without names for a model with {} inputs", model.inputs().len()),
            way_out: "name them with `Calibrator::observe`".into(),
        });
    };
    for batch in batches {
        calibrator.observe(&[(input.name(), &Value::from(batch.clone()))])?;
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
    // A batch of which some values were observed and others were not.
    broken: bool,
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
            broken: false,
        })
    }

    /// Runs the samples on at most so many threads; all of the caller's rayon pool unless said otherwise.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Calibrator { threads: Some(threads), ..self }
    }

    /// The instruction set that convolutions, linear layers, sums and products of the integer model will run on; the best of this
    /// processor unless said otherwise. The results are the same.
    #[must_use]
    pub fn with_isa(self, isa: Isa) -> Self {
        Calibrator { isa, ..self }
    }

    /// Reports each batch and each layer of it before it is observed, and can be cancelled there.
    #[must_use]
    pub fn with_progress<'q>(self, progress: Progress<'q>) -> Calibrator<'q> {
        let Calibrator { model, config, threads, isa, batches, running, broken, .. } = self;
        Calibrator { model, config, threads, isa, progress, batches, running, broken }
    }

    /// Batches observed so far.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Runs a batch through the float model, all inputs by name, and observes its values. The first batch's shapes decide which
    /// sums are fused; others may have other shapes, under which the same ones would be.
    ///
    /// A batch that fails half way (a value that is not finite, a cancellation) leaves a calibrator that has seen some of
    /// it, and from then on refuses everything: make a new one.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN or infinities (unless the configuration takes them), inside an [`Error::Layer`] that names the
    /// layer which wrote them; [`Error::Empty`] for a batch without a sample; [`Error::Unsupported`] for shapes with which other sums
    /// would be fused, and after a batch that failed; [`Error::Cancelled`]; those of [`Model::run`].
    pub fn observe(&mut self, inputs: &[(&str, &Value)]) -> Result<()> {
        let is_empty = |value: &Value| value.shape().dims().first() == Some(&0);
        if !inputs.is_empty() && inputs.iter().all(|(_, value)| is_empty(value)) {
            return Err(Error::Empty { what: "batch of samples".into(), way_out: "give at least one sample" });
        }
        self.check_whole()?;
        let (item, done) = (format!("batch {}", self.batches), self.batches);
        self.progress.step("calibrate", &item, done, done + 1)?;
        let shapes = shapes_of(&self.model, inputs)?;
        let running = match &mut self.running {
            Some(running) => {
                if running.shapes != shapes && !running.plan.agrees(&StaticPlan::new(&self.model, &self.config, &shapes)?) {
                    return Err(Error::Unsupported {
                        what: format!("samples of shapes {shapes:?} after {:?}, where sums have operands of other shapes", running.shapes),
                        way_out: "calibrate and run with one shape but for the number of samples".into(),
                    });
                }
                running
            }
            none => none.insert(Running::new(&self.model, &self.config, self.threads, shapes)?),
        };
        let mut touched = false;
        let observed = running.observe(inputs, &mut self.progress, done, &mut touched);
        self.broken = touched && observed.is_err();
        if done == 0 && observed.is_err() {
            self.running = None;
        }
        observed?;
        self.batches += 1;
        Ok(())
    }

    fn check_whole(&self) -> Result<()> {
        match self.broken {
            true => Err(Error::Unsupported {
                what: "a calibration of which a batch failed half way".into(),
                way_out: "make a new calibrator, and leave that batch out".into(),
            }),
            false => Ok(()),
        }
    }

    /// Scale and zero point of every value observed.
    ///
    /// # Errors
    /// [`Error::Empty`] when no sample was observed, or a value was never reached, naming it; [`Error::Unsupported`] after a batch that
    /// failed half way.
    pub fn finish(&self) -> Result<Calibration> {
        self.check_whole()?;
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

/// The shapes of a model's inputs as they are given, in the model's order.
fn shapes_of(model: &Model, inputs: &[(&str, &Value)]) -> Result<Vec<Vec<usize>>> {
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !model.inputs().iter().any(|input| input.name() == *name)) {
        return Err(model.unknown_input(name));
    }
    let shape = |input: &Input| {
        let given = inputs.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value);
        let given = given.ok_or_else(|| Error::Unknown {
            what: "given input",
            name: input.name().to_owned(),
            present: inputs.iter().map(|(name, _)| *name).collect(),
        })?;
        input.check(given)?;
        Ok(given.shape().dims().to_vec())
    };
    model.inputs().iter().map(shape).collect()
}

impl Running {
    fn new(model: &Model, config: &QConfig, threads: Option<usize>, shapes: Vec<Vec<usize>>) -> Result<Self> {
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

    fn observe(&mut self, inputs: &[(&str, &Value)], progress: &mut Progress<'_>, done: usize, touched: &mut bool) -> Result<()> {
        let observers = &mut self.observers;
        let run = self.executor.run_with(inputs, |tap| {
            let (Some(observed), Value::F32(value)) = (observers.get_mut(tap.edge), tap.value) else { return Ok(()) };
            progress.step("observe", tap.edge, done, done + 1)?;
            let done = observed.observer.observe(value).map_err(|error| match (error, tap.node) {
                (Error::NonFinite { index, value, .. }, node) => {
                    let error = Error::NonFinite { what: format!("value `{}`", tap.edge), index, value };
                    if let Some(node) = node { error.in_layer(node.name()) } else { error }
                }
                (error, Some(node)) => error.in_layer(node.name()),
                (error, None) => error,
            });
            // An observer that refuses a value has taken nothing of it.
            *touched |= done.is_ok();
            done
        });
        run.map(drop)
    }
}
