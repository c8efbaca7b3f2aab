//! Recipes: what is known against the loss of accuracy, one step after the other, each kept only where it helps.
//!
//! | step | static | dynamic | weights alone | what it does |
//! |---|---|---|---|---|
//! | [`Stage::Equalize`] | yes | yes | | [`equalize`](super::equalize): channels of one value brought to like ranges |
//! | [`Stage::Smooth`] | yes | yes | | [`smooth_quant`](super::smooth_quant): outliers of activations moved into weights |
//! | [`Stage::Ranges`] | yes | | | ranges of activations by least squared error, in place of the configuration's observer |
//! | [`Stage::Fit`] | yes | yes | yes | [`gptq`](super::gptq): weights fitted to what they are multiplied with |
//! | [`Stage::Biases`] | yes | yes | yes | [`bias_correction`](super::bias_correction): means of channels put back |
//!
//! [`Effort`] says which of them are tried. A quarter of the samples is held out; after each step the quantized model runs on it, and the step
//! stays when its outputs are nearer to those of the float model than before (the signal to noise ratio of all float outputs together).
//! So no step makes it worse there, and [`Improved::stages`] says what each gained and took.
//!
//! ```no_run
//! # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value) -> lowprec::Result<()> {
//! use lowprec::ptq::recipe::{Effort, Recipe};
//! let best = Recipe::new(Effort::Best).quantize_static(model, &[&[("image", samples)]], &Default::default(), Default::default())?;
//! println!("{best}");
//! # let _: lowprec::Model = best.model; Ok(()) }
//! ```

mod judge;
mod report;

pub use report::{Gain, Improved};

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use super::bias_correction::correct_biases;
use super::equalize::{Equalization, equalize};
use super::gptq::{self, Gptq};
use super::smooth_quant::{Ranges, smooth_quant};
use super::{Calibrator, WeightConfig, quantize_dynamic, quantize_weights};
use crate::convert::{QConfig, convert};
use crate::error::{Error, Result};
use crate::nn::{LayerKind, Model};
use crate::progress::Progress;
use crate::quant::Rounding;
use crate::quant::observer::ObserverKind;
use crate::tensor::Value;
use judge::{Judge, Samples};

/// How much is done for accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Effort {
    /// Quantization as configured, and nothing else.
    Fast,
    /// What takes about as long as a few runs of the samples: equalization, smoothing, ranges, biases.
    #[default]
    Balanced,
    /// Weights fitted to the samples too.
    Best,
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effort::Fast => "fast",
            Effort::Balanced => "balanced",
            Effort::Best => "best",
        })
    }
}

impl FromStr for Effort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Effort::Fast, Effort::Balanced, Effort::Best];
        all.into_iter().find(|effort| effort.to_string() == text).ok_or_else(|| Error::Unknown {
            what: "effort",
            name: text.to_owned(),
            present: all.map(|effort| effort.to_string()).iter().map(String::as_str).collect(),
        })
    }
}

/// A step of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Channels of one value brought to like ranges.
    Equalize,
    /// Outliers of activations moved into weights.
    Smooth,
    /// Ranges of activations by least squared error.
    Ranges,
    /// Weights fitted to samples.
    Fit,
    /// Means of channels put back.
    Biases,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Equalize => "equalize",
            Stage::Smooth => "smooth",
            Stage::Ranges => "ranges",
            Stage::Fit => "fit weights",
            Stage::Biases => "correct biases",
        })
    }
}

/// Which steps are tried, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    stages: Vec<Stage>,
    gptq: Gptq,
}

impl Recipe {
    /// The steps of an effort.
    pub fn new(effort: Effort) -> Self {
        let stages = match effort {
            Effort::Fast => vec![],
            Effort::Balanced => vec![Stage::Equalize, Stage::Smooth, Stage::Ranges, Stage::Biases],
            Effort::Best => vec![Stage::Equalize, Stage::Smooth, Stage::Ranges, Stage::Fit, Stage::Biases],
        };
        Recipe { stages, gptq: Gptq::new() }
    }

    /// With a step, or without it.
    #[must_use]
    pub fn with(mut self, stage: Stage, tried: bool) -> Self {
        self.stages.retain(|other| *other != stage);
        if tried {
            self.stages.push(stage);
        }
        self
    }

    /// How weights are fitted.
    #[must_use]
    pub fn with_gptq(self, gptq: Gptq) -> Self {
        Recipe { gptq, ..self }
    }

    fn tries(&self, stage: Stage) -> bool {
        self.stages.contains(&stage)
    }

    /// [`quantize_static`](crate::quantize_static) by the steps of the recipe; `model` is untouched. `batches` are inputs by name, with
    /// samples along their first axis.
    ///
    /// # Errors
    /// Those of [`Calibrator`] and [`convert`]; [`Error::Cancelled`]; what the steps return for samples that are not finite.
    pub fn quantize_static(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        config: &QConfig,
        progress: Progress<'_>,
    ) -> Result<Improved> {
        let mut trials = Trials::new(model, batches, progress)?;
        let plain = |float: &Model, config: &QConfig, samples: &Samples| {
            let mut calibrator = Calibrator::new(float, config)?;
            samples.with(|batches| batches.iter().try_for_each(|batch| calibrator.observe(batch)))?;
            convert(float, &calibrator.finish()?, config)
        };
        let mut config = config.clone();
        trials.begin(|samples| plain(model, &config, samples))?;
        self.rescale(&mut trials, Ranges::Value, &|float, samples| plain(float, &config, samples))?;
        if self.tries(Stage::Ranges) {
            let other = config.clone().with_default_observer(ObserverKind::Histogram);
            let kept = other != config
                && trials.attempt(Stage::Ranges, |float, _, samples, _| Ok(Some((float.clone(), plain(float, &other, samples)?))))?;
            config = if kept { other } else { config };
        }
        if self.tries(Stage::Fit) {
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let (fitted, _) = samples.with(|batches| gptq::quantize_static(float, batches, &config, &self.gptq, progress))?;
                Ok(Some((float.clone(), fitted.model)))
            })?;
        }
        self.finish(trials)
    }

    /// [`quantize_dynamic`](crate::quantize_dynamic) of these kinds by the steps of the recipe; `model` is untouched.
    ///
    /// # Errors
    /// Those of [`quantize_dynamic`](crate::quantize_dynamic) and of [`Model::run`]; [`Error::Empty`] without a batch;
    /// [`Error::Cancelled`]; what the steps return for samples that are not finite.
    pub fn quantize_dynamic(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        kinds: &[LayerKind],
        progress: Progress<'_>,
    ) -> Result<Improved> {
        let mut trials = Trials::new(model, batches, progress)?;
        trials.begin(|_| quantize_dynamic(model, kinds))?;
        self.rescale(&mut trials, Ranges::Row, &|float, _| quantize_dynamic(float, kinds))?;
        if self.tries(Stage::Fit) {
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let fitted = samples.with(|batches| gptq::quantize_dynamic(float, batches, kinds, &self.gptq, progress))?;
                Ok(Some((float.clone(), fitted.model)))
            })?;
        }
        self.finish(trials)
    }

    /// [`quantize_weights`](crate::quantize_weights) by the steps of the recipe; `model` is untouched.
    ///
    /// # Errors
    /// Those of [`quantize_weights`](crate::quantize_weights) and of [`Model::run`]; [`Error::Empty`] without a batch;
    /// [`Error::Cancelled`]; what the steps return for samples that are not finite.
    pub fn quantize_weights(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        config: &WeightConfig,
        progress: Progress<'_>,
    ) -> Result<Improved> {
        let mut trials = Trials::new(model, batches, progress)?;
        trials.begin(|_| quantize_weights(model, config))?;
        // What is rounded by chance is not fitted.
        if self.tries(Stage::Fit) && config.rounding() == Rounding::Nearest {
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let fitted = samples.with(|batches| gptq::quantize_weights(float, batches, config, &self.gptq, progress))?;
                Ok(Some((float.clone(), fitted.model)))
            })?;
        }
        self.finish(trials)
    }

    /// The steps that leave the float function as it is and make it easier to quantize.
    fn rescale(&self, trials: &mut Trials<'_>, ranges: Ranges, quantize: &dyn Fn(&Model, &Samples) -> Result<Model>) -> Result<()> {
        if self.tries(Stage::Equalize) {
            trials.attempt(Stage::Equalize, |float, _, samples, progress| {
                let even = samples.with(|batches| equalize(float, batches, &Equalization::new(), progress))?;
                if even.pairs.is_empty() { Ok(None) } else { Ok(Some((even.model.clone(), quantize(&even.model, samples)?))) }
            })?;
        }
        if self.tries(Stage::Smooth) {
            trials.attempt(Stage::Smooth, |float, _, samples, progress| {
                let smooth = samples.with(|batches| smooth_quant(float, batches, ranges, progress))?;
                let changed = smooth.values.iter().any(|value| value.strength.is_some());
                if changed { Ok(Some((smooth.model.clone(), quantize(&smooth.model, samples)?))) } else { Ok(None) }
            })?;
        }
        Ok(())
    }

    fn finish(&self, mut trials: Trials<'_>) -> Result<Improved> {
        if self.tries(Stage::Biases) {
            trials.attempt(Stage::Biases, |float, quantized, samples, progress| {
                let corrected = samples.with(|batches| correct_biases(float, quantized, batches, progress))?;
                if corrected.layers.is_empty() { Ok(None) } else { Ok(Some((float.clone(), corrected.model))) }
            })?;
        }
        Ok(trials.finish())
    }
}

/// The steps tried so far: the float model, what it is quantized, and how near that is.
struct Trials<'a> {
    samples: Samples,
    judge: Judge,
    progress: Progress<'a>,
    float: Model,
    quantized: Option<Model>,
    db: f64,
    plain_db: f64,
    stages: Vec<Gain>,
}

impl<'a> Trials<'a> {
    fn new(model: &Model, batches: &[&[(&str, &Value)]], progress: Progress<'a>) -> Result<Self> {
        let [samples, held_out] = Samples::split(model, batches)?;
        let judge = Judge::new(model, held_out)?;
        let float = model.clone();
        Ok(Trials { samples, judge, progress, float, quantized: None, db: f64::NAN, plain_db: f64::NAN, stages: Vec::new() })
    }

    /// The model quantized without any step.
    fn begin(&mut self, quantize: impl FnOnce(&Samples) -> Result<Model>) -> Result<()> {
        self.progress.step("recipe", "quantize", 0, 1)?;
        let quantized = quantize(&self.samples)?;
        self.plain_db = self.judge.db(&quantized)?;
        self.db = self.plain_db;
        self.quantized = Some(quantized);
        Ok(())
    }

    /// Tries a step, which gives the float model and the quantized one, or nothing where there is nothing for it to do. Says whether it
    /// stays.
    fn attempt(
        &mut self,
        stage: Stage,
        step: impl FnOnce(&Model, &Model, &Samples, Progress<'_>) -> Result<Option<(Model, Model)>>,
    ) -> Result<bool> {
        let start = Instant::now();
        let Some(quantized) = &self.quantized else { return Ok(false) };
        let Some((float, quantized)) = step(&self.float, quantized, &self.samples, self.progress.lend())? else { return Ok(false) };
        let db = self.judge.db(&quantized)?;
        let kept = db > self.db;
        self.stages.push(Gain { stage, before: self.db, after: db, kept, time: start.elapsed() });
        if kept {
            (self.float, self.quantized, self.db) = (float, Some(quantized), db);
        }
        Ok(kept)
    }

    fn finish(self) -> Improved {
        let Trials { float, quantized, db, plain_db, stages, .. } = self;
        let model = quantized.expect("a recipe begins with a quantized model");
        Improved { model, float, plain: plain_db, db, stages }
    }
}
