//! Recipes: what is known against the loss of accuracy, one step after the other, each kept only where it helps.
//!
//! | step | static | dynamic | weights alone | what it does |
//! |---|---|---|---|---|
//! | [`Stage::Equalize`] | yes | yes | | [`equalize`](super::equalize): channels of one value brought to like ranges |
//! | [`Stage::Draw`] | yes | yes | | [`equalize_by_trial`]: of several such scales those that measure best |
//! | [`Stage::Smooth`] | yes | yes | | [`smooth_quant`](super::smooth_quant): outliers of activations moved into weights |
//! | [`Stage::Scale`] | | | yes | [`awq`]: channels of large activations given larger weights |
//! | [`Stage::Ranges`] | yes | | | ranges of activations by least squared error, in place of the configuration's observer |
//! | [`Stage::Fit`] | yes | yes | yes | [`gptq`]: weights fitted to what they are multiplied with |
//! | [`Stage::Rounding`] | below 8 bits | | | [`reconstruct`]: roundings learned, block by block |
//! | [`Stage::Biases`] | yes | yes | yes | [`bias_correction`](super::bias_correction): means of channels put back |
//! | [`Stage::Distill`] | | | yes | [`distill`](super::distill): scales, biases and norms tuned end to end |
//!
//! [`Effort`] says which of them are tried. A quarter of the samples is held out; after each step the quantized model runs on it, and the step
//! stays when its outputs are nearer to those of the float model than before (the signal to noise ratio of all float outputs together).
//! [`Improved::stages`] says what each gained there and took. The model itself is then made once more, by the steps that stayed, of all
//! samples.
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

use super::awq;
use super::bias_correction::correct_biases;
use super::distill::{Distillation, distill};
use super::equalize::{Draws, Equalization, equalize, equalize_by_trial};
use super::gptq::{self, Gptq};
use super::reconstruct::{self, Reconstruction};
use super::smooth_quant::{Ranges, smooth_quant};
use super::{Calibrator, WeightConfig, quantize_dynamic, quantize_weights};
use crate::convert::{LayerConfig, QConfig, convert};
use crate::error::{Error, Result};
use crate::nn::{LayerKind, Model, Node};
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
    /// What takes about as long as a few runs of the samples: equalization, smoothing, ranges, biases; of weights alone, channels scaled,
    /// which rounds them twenty times.
    #[default]
    Balanced,
    /// Scales drawn and tried, sixteen sets of them, and weights fitted to the samples too; of static models below 8 bits, roundings learned, which takes seconds to minutes a block; of weights
    /// alone, scales, biases and norms tuned end to end, which runs the samples forwards and backwards sixteen times.
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
    /// The same, by scales that were drawn and tried.
    Draw,
    /// Outliers of activations moved into weights.
    Smooth,
    /// Channels of large activations given larger weights.
    Scale,
    /// Ranges of activations by least squared error.
    Ranges,
    /// Weights fitted to samples.
    Fit,
    /// Roundings of weights and scales of values learned, block by block.
    Rounding,
    /// Means of channels put back.
    Biases,
    /// Scales, biases and norms tuned by the outputs of the whole model.
    Distill,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Equalize => "equalize",
            Stage::Draw => "draw scales",
            Stage::Smooth => "smooth",
            Stage::Scale => "scale channels",
            Stage::Ranges => "ranges",
            Stage::Fit => "fit weights",
            Stage::Rounding => "learn rounding",
            Stage::Biases => "correct biases",
            Stage::Distill => "distill",
        })
    }
}

/// Which steps are tried, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    stages: Vec<Stage>,
    gptq: Gptq,
    reconstruction: Reconstruction,
    distillation: Distillation,
}

impl Recipe {
    /// The steps of an effort.
    pub fn new(effort: Effort) -> Self {
        let stages = match effort {
            Effort::Fast => vec![],
            Effort::Balanced => vec![Stage::Equalize, Stage::Smooth, Stage::Scale, Stage::Ranges, Stage::Biases],
            Effort::Best => {
                let balanced = [Stage::Equalize, Stage::Smooth, Stage::Scale, Stage::Ranges, Stage::Biases];
                [&balanced[..], &[Stage::Draw, Stage::Fit, Stage::Rounding, Stage::Distill]].concat()
            }
        };
        Recipe { stages, gptq: Gptq::new(), reconstruction: Reconstruction::new(), distillation: Distillation::new() }
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

    /// How roundings are learned.
    #[must_use]
    pub fn with_reconstruction(self, reconstruction: Reconstruction) -> Self {
        Recipe { reconstruction, ..self }
    }

    /// How scales, biases and norms are tuned.
    #[must_use]
    pub fn with_distillation(self, distillation: Distillation) -> Self {
        Recipe { distillation, ..self }
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
        let plain = |float: &Model, config: &QConfig, samples: &Samples| {
            let mut calibrator = Calibrator::new(float, config)?;
            samples.with(|batches| batches.iter().try_for_each(|batch| calibrator.observe(batch)))?;
            convert(float, &calibrator.finish()?, config)
        };
        let histogram = config.clone().with_default_observer(ObserverKind::Histogram);
        self.twice(model, batches, progress, |trials| {
            trials.begin(|samples| plain(model, config, samples))?;
            self.rescale(trials, Ranges::Value, &|float, samples| plain(float, config, samples))?;
            let kept = histogram != *config
                && trials.attempt(Stage::Ranges, |float, _, samples, _| Ok(Some((float.clone(), plain(float, &histogram, samples)?))))?;
            let config = if kept { &histogram } else { config };
            let mut calibration = None;
            let kept = trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let (fitted, found) = samples.with(|batches| gptq::quantize_static(float, batches, config, &self.gptq, progress))?;
                calibration = Some(found);
                Ok(Some((float.clone(), fitted.model)))
            })?;
            let calibration = calibration.filter(|_| kept);
            trials.attempt(Stage::Rounding, |float, _, samples, progress| {
                if !is_below_8_bits(float, config) {
                    return Ok(None);
                }
                let how = &self.reconstruction;
                let rebuilt = samples.with(|batches| match &calibration {
                    Some(start) => reconstruct::reconstruct(float, batches, config, start, how, progress),
                    None => reconstruct::quantize_static(float, batches, config, how, progress),
                });
                match rebuilt {
                    Ok((rebuilt, _)) => Ok(Some((float.clone(), rebuilt.model))),
                    // Values without a row for each sample, or layers that it can't take apart: a network for the other steps.
                    Err(error) if is_about_the_network(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            })?;
            self.correct(trials)
        })
    }

    /// [`quantize_dynamic`] of these kinds by the steps of the recipe; `model` is untouched.
    ///
    /// # Errors
    /// Those of [`quantize_dynamic`] and of [`Model::run`]; [`Error::Empty`] without a batch;
    /// [`Error::Cancelled`]; what the steps return for samples that are not finite.
    pub fn quantize_dynamic(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        kinds: &[LayerKind],
        progress: Progress<'_>,
    ) -> Result<Improved> {
        self.twice(model, batches, progress, |trials| {
            trials.begin(|_| quantize_dynamic(model, kinds))?;
            self.rescale(trials, Ranges::Row, &|float, _| quantize_dynamic(float, kinds))?;
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let fitted = samples.with(|batches| gptq::quantize_dynamic(float, batches, kinds, &self.gptq, progress))?;
                Ok(Some((float.clone(), fitted.model)))
            })?;
            self.correct(trials)
        })
    }

    /// [`quantize_weights`] by the steps of the recipe; `model` is untouched.
    ///
    /// # Errors
    /// Those of [`quantize_weights`] and of [`Model::run`]; [`Error::Empty`] without a batch;
    /// [`Error::Cancelled`]; what the steps return for samples that are not finite.
    pub fn quantize_weights(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        config: &WeightConfig,
        progress: Progress<'_>,
    ) -> Result<Improved> {
        self.twice(model, batches, progress, |trials| {
            trials.begin(|_| quantize_weights(model, config))?;
            trials.attempt(Stage::Scale, |float, _, samples, progress| {
                let scaled = samples.with(|batches| awq::scale_channels(float, batches, config, progress))?;
                let changed = scaled.values.iter().any(|value| value.strength.is_some());
                if changed { Ok(Some((scaled.model.clone(), quantize_weights(&scaled.model, config)?))) } else { Ok(None) }
            })?;
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                // What is rounded by chance is not fitted.
                if config.rounding() != Rounding::Nearest {
                    return Ok(None);
                }
                let fitted = samples.with(|batches| gptq::quantize_weights(float, batches, config, &self.gptq, progress))?;
                Ok(Some((float.clone(), fitted.model)))
            })?;
            self.correct(trials)?;
            trials.attempt(Stage::Distill, |float, quantized, samples, progress| {
                match samples.with(|batches| distill(float, quantized, batches, &self.distillation, progress)) {
                    Ok(tuned) => Ok((tuned.taken > 0).then(|| (float.clone(), tuned.model))),
                    // Layers without a derivative, or outputs without a row for each sample.
                    Err(error) if is_about_the_network(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            })?;
            Ok(())
        })
    }

    /// The steps that leave the float function as it is and make it easier to quantize.
    fn rescale(&self, trials: &mut Trials<'_>, ranges: Ranges, quantize: &dyn Fn(&Model, &Samples) -> Result<Model>) -> Result<()> {
        trials.attempt(Stage::Equalize, |float, _, samples, progress| {
            let even = samples.with(|batches| equalize(float, batches, &Equalization::new(), progress))?;
            if even.pairs.is_empty() { Ok(None) } else { Ok(Some((even.model.clone(), quantize(&even.model, samples)?))) }
        })?;
        trials.attempt(Stage::Draw, |float, _, samples, progress| {
            let judge = Judge::new(float, samples.clone())?;
            let mut judge = |even: &Model| judge.db(&quantize(even, samples)?);
            let (options, draws) = (Equalization::new(), Draws::default());
            let even = samples.with(|batches| equalize_by_trial(float, batches, &options, draws, &mut judge, progress))?;
            if even.pairs.is_empty() { Ok(None) } else { Ok(Some((even.model.clone(), quantize(&even.model, samples)?))) }
        })?;
        trials.attempt(Stage::Smooth, |float, _, samples, progress| {
            let smooth = samples.with(|batches| smooth_quant(float, batches, ranges, progress))?;
            let changed = smooth.values.iter().any(|value| value.strength.is_some());
            if changed { Ok(Some((smooth.model.clone(), quantize(&smooth.model, samples)?))) } else { Ok(None) }
        })?;
        Ok(())
    }

    /// The last step.
    fn correct(&self, trials: &mut Trials<'_>) -> Result<()> {
        trials.attempt(Stage::Biases, |float, quantized, samples, progress| {
            let corrected = samples.with(|batches| correct_biases(float, quantized, batches, progress))?;
            if corrected.layers.is_empty() { Ok(None) } else { Ok(Some((float.clone(), corrected.model))) }
        })?;
        Ok(())
    }

    /// Runs the steps with some of the samples, judged by the others, and those that stayed once more with all, where that is more.
    fn twice(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        mut progress: Progress<'_>,
        steps: impl Fn(&mut Trials<'_>) -> Result<()>,
    ) -> Result<Improved> {
        let (all, parts) = Samples::split(model, batches)?;
        let set_apart = parts.is_some();
        let [learn, judge] = parts.unwrap_or_else(|| [all.clone(), all.clone()]);
        let (plain, db, stages, made) = {
            let judge = Some(Judge::new(model, judge)?);
            let mut trials = Trials::new(model, learn, judge, self.stages.clone(), progress.lend());
            steps(&mut trials)?;
            (trials.plain_db, trials.db, std::mem::take(&mut trials.stages), (trials.float.clone(), trials.quantized.take()))
        };
        let (float, quantized) = if set_apart {
            let kept = stages.iter().filter(|gain| gain.kept).map(|gain| gain.stage).collect();
            let mut trials = Trials::new(model, all, None, kept, progress);
            steps(&mut trials)?;
            (trials.float.clone(), trials.quantized.take())
        } else {
            made
        };
        let model = quantized.expect("steps begin with a quantized model");
        Ok(Improved { model, float, plain, db, stages })
    }
}

/// Whether a layer that the configuration makes static has weights or values of fewer bits.
fn is_below_8_bits(model: &Model, config: &QConfig) -> bool {
    let is_below = |node: &Node| match config.of(node) {
        LayerConfig::Static(scheme) if [LayerKind::Conv2d, LayerKind::Linear].contains(&node.layer().kind()) => {
            scheme.weights.bits() < 8 || scheme.activations.bits() < 8
        }
        _ => false,
    };
    model.nodes().iter().any(is_below)
}

/// Whether a step can't be taken with such a network at all, whatever the samples.
fn is_about_the_network(error: &Error) -> bool {
    match error {
        Error::Layer { source, .. } => is_about_the_network(source),
        other => matches!(other, Error::Unsupported { .. } | Error::Shape { .. }),
    }
}

/// The steps tried so far: the float model, what it is quantized, and how near that is.
struct Trials<'a> {
    samples: Samples,
    /// Without one, every step stays.
    judge: Option<Judge>,
    tried: Vec<Stage>,
    progress: Progress<'a>,
    float: Model,
    quantized: Option<Model>,
    db: f64,
    plain_db: f64,
    stages: Vec<Gain>,
}

impl<'a> Trials<'a> {
    fn new(model: &Model, samples: Samples, judge: Option<Judge>, tried: Vec<Stage>, progress: Progress<'a>) -> Self {
        let float = model.clone();
        Trials { samples, judge, tried, progress, float, quantized: None, db: f64::NAN, plain_db: f64::NAN, stages: Vec::new() }
    }

    fn judged(&self, model: &Model) -> Result<f64> {
        self.judge.as_ref().map_or(Ok(f64::INFINITY), |judge| judge.db(model))
    }

    /// The model quantized without any step.
    fn begin(&mut self, quantize: impl FnOnce(&Samples) -> Result<Model>) -> Result<()> {
        self.progress.step("recipe", "quantize", 0, 1)?;
        let quantized = quantize(&self.samples)?;
        self.plain_db = self.judged(&quantized)?;
        self.db = self.plain_db;
        self.quantized = Some(quantized);
        Ok(())
    }

    /// Tries a step if it is to be tried: it gives the float model and the quantized one, or nothing (or [`Error::NothingToQuantize`]) where
    /// there is nothing for it to do.
    /// Says whether it stays.
    fn attempt(
        &mut self,
        stage: Stage,
        step: impl FnOnce(&Model, &Model, &Samples, Progress<'_>) -> Result<Option<(Model, Model)>>,
    ) -> Result<bool> {
        let start = Instant::now();
        let Some(quantized) = self.quantized.as_ref().filter(|_| self.tried.contains(&stage)) else { return Ok(false) };
        let (float, quantized) = match step(&self.float, quantized, &self.samples, self.progress.lend()) {
            Ok(Some(made)) => made,
            Ok(None) => return Ok(false),
            // No layer of the kinds that the step is for: of embeddings alone there are no biases.
            Err(error) if matches!(error.kind(), Error::NothingToQuantize { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let db = self.judged(&quantized)?;
        let kept = self.judge.is_none() || db > self.db;
        self.stages.push(Gain { stage, before: self.db, after: db, kept, time: start.elapsed() });
        if kept {
            (self.float, self.quantized, self.db) = (float, Some(quantized), db);
        }
        Ok(kept)
    }
}
