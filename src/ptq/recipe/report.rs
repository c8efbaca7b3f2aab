//! What a recipe did.

use std::fmt;
use std::time::Duration;

use super::Stage;
use crate::nn::Model;

/// A quantized model, and what each step was worth.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Improved {
    /// The quantized model.
    pub model: Model,
    /// The float model that it was made of: the given one, with what equalization, smoothing and scaling changed. The same function; with
    /// biases absorbed, the same where nothing falls lower than on the samples.
    pub float: Model,
    /// Signal to noise ratio of the outputs on the samples held out, in decibels, without any step.
    pub plain: f64,
    /// The same with the steps that stayed, before all samples went in.
    pub db: f64,
    /// Whether all samples went into the model; if not, it is the one that was measured, since with all it was further from the float
    /// model on those held out than without any step.
    pub by_all: bool,
    /// The steps that were tried, in their order; then those that were asked for and are none of this mode.
    pub stages: Vec<Gain>,
}

/// What a step was worth.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gain {
    /// Which.
    pub stage: Stage,
    /// Signal to noise ratio of the outputs on the samples held out, in decibels, without it.
    pub before: f64,
    /// The same with it.
    pub after: f64,
    /// Whether it stayed, since it was better.
    pub kept: bool,
    /// Why there was nothing for it to do, if so.
    pub idle: Option<String>,
    /// What it took, with the run that judged it.
    pub time: Duration,
}

/// A line a step.
impl fmt::Display for Improved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:14} {:8.2} dB", "as configured", self.plain)?;
        for gain in &self.stages {
            if let Some(why) = &gain.idle {
                writeln!(f, "{:14} nothing to do: {why}", gain.stage.to_string())?;
                continue;
            }
            let kept = if gain.kept { "" } else { ", left out" };
            writeln!(
                f,
                "{:14} {:8.2} dB  {:+.2} in {:.1?}{kept}",
                gain.stage.to_string(),
                gain.after,
                gain.after - gain.before,
                gain.time
            )?;
        }
        Ok(())
    }
}
