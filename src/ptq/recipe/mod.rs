//! Recipes: what is known against the loss of accuracy, one step after the other, each kept only where it helps.
//!
//! | step | static | dynamic | weights alone | what it does |
//! |---|---|---|---|---|
//! | [`Stage::Equalize`] | yes | yes | | [`equalize`](super::equalize): channels of one value brought to like ranges |
//! | [`Stage::Absorb`] | asked for | asked for | | [`Absorption::Observed`]: biases that no sample falls below moved on; on other inputs the function may differ |
//! | [`Stage::Draw`] | yes | yes | | [`equalize_by_trial`]: of several such scales those that measure best |
//! | [`Stage::Smooth`] | yes | yes | | [`smooth_quant`](super::smooth_quant): outliers of activations moved into weights |
//! | [`Stage::Grids`] | | | yes | [`Fit::HalfQuadratic`](crate::quant::Fit::HalfQuadratic) (HQQ) for codes with zero points, in place of the format's rule |
//! | [`Stage::Scale`] | | | yes | [`awq`]: channels of large activations given larger weights |
//! | [`Stage::Clip`] | | | yes | [`awq::clip_weights`]: groups whose outputs are nearer with less than their range |
//! | [`Stage::Ranges`] | yes | | | ranges of activations by least squared error, in place of the configuration's observer |
//! | [`Stage::Fit`] | yes | yes | yes | [`gptq`]: weights fitted to what they are multiplied with |
//! | [`Stage::Rounding`] | below 8 bits | | | [`reconstruct`]: roundings learned, block by block |
//! | [`Stage::Biases`] | yes | yes | yes | [`bias_correction`](super::bias_correction): means of channels put back |
//! | [`Stage::Distill`] | | | yes | [`distill`](super::distill): scales, biases and norms tuned end to end |
//!
//! [`Effort`] says which of them are tried, [`Recipe::with`] switches each. A quarter of the samples is held out; after each step the
//! quantized model runs on it, and the step
//! stays when its outputs are nearer to those of the float model than before (the signal to noise ratio of all float outputs together).
//! [`Improved::stages`] says what each gained there and took, or why there was nothing for it to do. The model itself is then made once
//! more, by the steps that stayed, of all samples; should that be further from the float model on those held out than without any step, the
//! measured one is kept.
//!
//! Two verbs are no steps: [`correct_biases_by_norms`](super::bias_correction::correct_biases_by_norms) is for models without samples, and
//! [`reestimate_norms`](super::reestimate_norms) changes what the float model computes, by which steps are judged: take it before.
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
mod stage;
mod trials;

pub use report::{Gain, Improved};
pub use stage::{Effort, Stage};

use std::time::Instant;

use super::awq;
use super::bias_correction::correct_biases;
use super::distill::{Distillation, distill};
use super::equalize::{Absorption, Draws, Equalization, equalize, equalize_by_trial};
use super::gptq::{self, Gptq};
use super::reconstruct::{self, Reconstruction};
use super::smooth_quant::{Ranges, smooth_quant};
use super::{Calibrator, DynamicQuantization, WeightConfig, quantize_weights};
use crate::convert::{LayerConfig, QConfig, convert};
use crate::error::{Error, Result};
use crate::kernels::RangeOf;
use crate::nn::{LayerKind, Model, Node};
use crate::progress::Progress;
use crate::quant::Rounding;
use crate::quant::observer::ObserverKind;
use crate::tensor::Value;
use judge::{Judge, Samples};
use stage::Mode;
use trials::{Attempt, Trials};

/// Which steps are tried, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    stages: Vec<Stage>,
    /// Of those, the ones that no effort put there.
    asked: Vec<Stage>,
    gptq: Gptq,
    reconstruction: Reconstruction,
    distillation: Distillation,
}

impl Recipe {
    /// The steps of an effort.
    pub fn new(effort: Effort) -> Self {
        let (stages, asked) = (effort.stages(), Vec::new());
        Recipe { stages, asked, gptq: Gptq::new(), reconstruction: Reconstruction::new(), distillation: Distillation::new() }
    }

    /// With a step, or without it.
    #[must_use]
    pub fn with(mut self, stage: Stage, tried: bool) -> Self {
        for stages in [&mut self.stages, &mut self.asked] {
            stages.retain(|other| *other != stage);
            if tried {
                stages.push(stage);
            }
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
        self.twice(&stage::STATIC, model, batches, progress, |trials| {
            trials.begin(|samples| plain(model, config, samples))?;
            self.rescale(trials, Ranges::Value, &|float, samples| plain(float, config, samples))?;
            let kept = histogram != *config
                && trials
                    .attempt(Stage::Ranges, |float, _, samples, _| Ok(Attempt::Made(float.clone(), plain(float, &histogram, samples)?)))?;
            let config = if kept { &histogram } else { config };
            let mut calibration = None;
            let kept = trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let (fitted, found) = samples.with(|batches| gptq::quantize_static(float, batches, config, &self.gptq, progress))?;
                calibration = Some(found);
                Ok(Attempt::Made(float.clone(), fitted.model))
            })?;
            let calibration = calibration.filter(|_| kept);
            trials.attempt(Stage::Rounding, |float, _, samples, progress| {
                if !is_below_8_bits(float, config) {
                    return Ok(Attempt::Idle("weights and values have 8 bits".into()));
                }
                let how = &self.reconstruction;
                let rebuilt = samples.with(|batches| match &calibration {
                    Some(start) => reconstruct::reconstruct(float, batches, config, start, how, progress),
                    None => reconstruct::quantize_static(float, batches, config, how, progress),
                });
                match rebuilt {
                    Ok((rebuilt, _)) => Ok(Attempt::Made(float.clone(), rebuilt.model)),
                    // Values without a row for each sample, or layers that it can't take apart: a network for the other steps.
                    Err(error) if is_about_the_network(&error) => Ok(Attempt::Idle(error.to_string())),
                    Err(error) => Err(error),
                }
            })?;
            self.correct(trials)
        })
    }

    /// What `how` asks for by the steps of the recipe; `model` is untouched. Progress is reported to `progress`, not to that of `how`.
    ///
    /// # Errors
    /// Those of [`DynamicQuantization::apply`] and of [`Model::run`]; [`Error::Empty`] without a batch;
    /// [`Error::Cancelled`]; what the steps return for samples that are not finite.
    pub fn quantize_dynamic(
        &self,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        how: &DynamicQuantization<'_>,
        progress: Progress<'_>,
    ) -> Result<Improved> {
        let plain = |float: &Model| how.make(float, &mut Progress::silent());
        let ranges = if how.scheme().0.range == RangeOf::Tensor { Ranges::Value } else { Ranges::Row };
        self.twice(&stage::DYNAMIC, model, batches, progress, |trials| {
            trials.begin(|_| plain(model))?;
            self.rescale(trials, ranges, &|float, _| plain(float))?;
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                let fitted = samples.with(|batches| gptq::quantize_dynamic(float, batches, how, &self.gptq, progress))?;
                Ok(Attempt::Made(float.clone(), fitted.model))
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
        let by_grids = config.half_quadratic(model);
        // What is rounded by chance is not fitted.
        let by_chance = || Attempt::Idle("weights are rounded by chance".into());
        self.twice(&stage::WEIGHTS, model, batches, progress, |trials| {
            trials.begin(|_| quantize_weights(model, config))?;
            let kept = trials.attempt(Stage::Grids, |float, _, _, _| match &by_grids {
                Some(config) => Ok(Attempt::Made(float.clone(), quantize_weights(float, config)?)),
                None => Ok(Attempt::Idle("no format whose grid could be chosen so, and is not yet".into())),
            })?;
            let config = by_grids.as_ref().filter(|_| kept).unwrap_or(config);
            trials.attempt(Stage::Scale, |float, _, samples, progress| {
                let scaled = samples.with(|batches| awq::scale_channels(float, batches, config, progress))?;
                let changed = scaled.values.iter().any(|value| value.strength.is_some());
                let made = if changed { Some((scaled.model.clone(), quantize_weights(&scaled.model, config)?)) } else { None };
                Ok(Attempt::or_idle(made, "no value whose channels are better scaled"))
            })?;
            trials.attempt(Stage::Clip, |float, _, samples, progress| {
                if config.rounding() != Rounding::Nearest {
                    return Ok(by_chance());
                }
                let clipped = samples.with(|batches| awq::clip_weights(float, batches, config, progress))?;
                let changed = clipped.layers.iter().any(|layer| layer.clipped > 0.0);
                let made = changed.then(|| (float.clone(), clipped.model));
                Ok(Attempt::or_idle(made, "no group whose outputs are nearer with less than its range"))
            })?;
            trials.attempt(Stage::Fit, |float, _, samples, progress| {
                if config.rounding() != Rounding::Nearest {
                    return Ok(by_chance());
                }
                match samples.with(|batches| gptq::quantize_weights(float, batches, config, &self.gptq, progress)) {
                    Ok(fitted) => Ok(Attempt::Made(float.clone(), fitted.model)),
                    // Levels that can't be searched.
                    Err(error) if is_about_the_network(&error) => Ok(Attempt::Idle(error.to_string())),
                    Err(error) => Err(error),
                }
            })?;
            self.correct(trials)?;
            trials.attempt(Stage::Distill, |float, quantized, samples, progress| {
                match samples.with(|batches| distill(float, quantized, batches, &self.distillation, progress)) {
                    Ok(tuned) => {
                        let made = (tuned.taken > 0).then(|| (float.clone(), tuned.model));
                        Ok(Attempt::or_idle(made, "no epoch came nearer on its own samples held out"))
                    }
                    // Layers without a derivative, or outputs without a row for each sample.
                    Err(error) if is_about_the_network(&error) => Ok(Attempt::Idle(error.to_string())),
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
            let made = if even.pairs.is_empty() { None } else { Some((even.model.clone(), quantize(&even.model, samples)?)) };
            Ok(Attempt::or_idle(made, NO_PAIRS))
        })?;
        trials.attempt(Stage::Absorb, |float, _, samples, progress| {
            let options = Equalization::new().with_scales(false).with_absorption(Absorption::Observed);
            let even = samples.with(|batches| equalize(float, batches, &options, progress))?;
            let changed = even.pairs.iter().any(|pair| pair.absorbed > 0);
            let made = if changed { Some((even.model.clone(), quantize(&even.model, samples)?)) } else { None };
            Ok(Attempt::or_idle(made, "no channel stays above zero before its activation"))
        })?;
        trials.attempt(Stage::Draw, |float, _, samples, progress| {
            let judge = Judge::new(float, samples.clone())?;
            let mut judge = |even: &Model| judge.db(&quantize(even, samples)?);
            let (options, draws) = (Equalization::new(), Draws::default());
            let even = samples.with(|batches| equalize_by_trial(float, batches, &options, draws, &mut judge, progress))?;
            let made = if even.pairs.is_empty() { None } else { Some((even.model.clone(), quantize(&even.model, samples)?)) };
            Ok(Attempt::or_idle(made, NO_PAIRS))
        })?;
        trials.attempt(Stage::Smooth, |float, _, samples, progress| {
            let smooth = samples.with(|batches| smooth_quant(float, batches, ranges, progress))?;
            let changed = smooth.values.iter().any(|value| value.strength.is_some());
            let made = if changed { Some((smooth.model.clone(), quantize(&smooth.model, samples)?)) } else { None };
            Ok(Attempt::or_idle(made, "no linear layers behind a normalization or another one that are better smoothed"))
        })?;
        Ok(())
    }

    /// The last step.
    fn correct(&self, trials: &mut Trials<'_>) -> Result<()> {
        trials.attempt(Stage::Biases, |float, quantized, samples, progress| {
            let corrected = samples.with(|batches| correct_biases(float, quantized, batches, progress))?;
            let made = (!corrected.layers.is_empty()).then(|| (float.clone(), corrected.model));
            Ok(Attempt::or_idle(made, "no layer whose mean error is larger than chance"))
        })?;
        Ok(())
    }

    /// Runs the steps with some of the samples, judged by the others, and those that stayed once more with all, where that is more.
    fn twice(
        &self,
        mode: &Mode,
        model: &Model,
        batches: &[&[(&str, &Value)]],
        mut progress: Progress<'_>,
        steps: impl Fn(&mut Trials<'_>) -> Result<()>,
    ) -> Result<Improved> {
        let (all, parts) = Samples::split(model, batches)?;
        let set_apart = parts.is_some();
        let [learn, judge] = parts.unwrap_or_else(|| [all.clone(), all.clone()]);
        let (judge, float, quantized, db, plain, stages) = {
            let mut trials = Trials::new(model, learn, Some(Judge::new(model, judge)?), self.stages.clone(), progress.lend());
            steps(&mut trials)?;
            for &stage in self.asked.iter().filter(|stage| !mode.stages.contains(stage)) {
                trials.idle(stage, format!("not a step of {}", mode.name), Instant::now());
            }
            let Trials { judge, float, quantized, db, plain_db, stages, .. } = trials;
            (judge, float, quantized, db, plain_db, stages)
        };
        let measured = quantized.expect("steps begin with a quantized model");
        if set_apart {
            let kept = stages.iter().filter(|gain| gain.kept).map(|gain| gain.stage).collect();
            let mut trials = Trials::new(model, all, None, kept, progress);
            steps(&mut trials)?;
            let (float, model) = (trials.float.clone(), trials.quantized.take().expect("steps begin with a quantized model"));
            // Some of a decibel less is chance; less than without any step is not.
            if db == plain || judge.map_or(Ok(db), |judge| judge.db(&model))? >= plain {
                return Ok(Improved { model, float, plain, db, by_all: true, stages });
            }
        }
        Ok(Improved { model: measured, float, plain, db, by_all: !set_apart, stages })
    }
}

/// Why there is nothing to equalize.
const NO_PAIRS: &str = "no two layers with nothing but ReLU, clamps or pooling between them";

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
