//! What can be tried, and how much of it is.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How much is done for accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Effort {
    /// Quantization as configured, and nothing else.
    Fast,
    /// What takes about as long as a few runs of the samples: equalization, smoothing, ranges, biases; of weights alone, grids by another
    /// rule, and channels scaled and groups clipped, which rounds them some thirty times.
    #[default]
    Balanced,
    /// Scales drawn and tried, sixteen sets of them, and weights fitted to the samples too; of static models below 8 bits, roundings
    /// learned, which takes seconds to minutes a block; of weights alone, scales, biases and norms tuned end to end, which runs the samples
    /// forwards and backwards sixteen times.
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
    /// High biases moved on into the next layer.
    Absorb,
    /// Grids with zero points by half-quadratic splitting.
    Grids,
    /// Channels of large activations given larger weights.
    Scale,
    /// The ranges of groups of weights clipped.
    Clip,
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
            Stage::Absorb => "absorb biases",
            Stage::Grids => "grids",
            Stage::Scale => "scale channels",
            Stage::Clip => "clip groups",
            Stage::Ranges => "ranges",
            Stage::Fit => "fit weights",
            Stage::Rounding => "learn rounding",
            Stage::Biases => "correct biases",
            Stage::Distill => "distill",
        })
    }
}

impl Stage {
    /// All of them.
    pub const ALL: &'static [Stage] = &[
        Stage::Equalize,
        Stage::Absorb,
        Stage::Draw,
        Stage::Smooth,
        Stage::Grids,
        Stage::Scale,
        Stage::Clip,
        Stage::Ranges,
        Stage::Fit,
        Stage::Rounding,
        Stage::Biases,
        Stage::Distill,
    ];
}

/// The name that is displayed, with hyphens or spaces.
impl FromStr for Stage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = text.replace('-', " ");
        Stage::ALL.iter().copied().find(|stage| stage.to_string() == wanted).ok_or_else(|| Error::Unknown {
            what: "step of a recipe",
            name: text.to_owned(),
            present: Stage::ALL.iter().map(|stage| stage.to_string().replace(' ', "-")).collect(),
        })
    }
}

impl Effort {
    /// The steps that are tried.
    pub(super) fn stages(self) -> Vec<Stage> {
        let balanced = [Stage::Equalize, Stage::Smooth, Stage::Grids, Stage::Scale, Stage::Clip, Stage::Ranges, Stage::Biases];
        match self {
            Effort::Fast => vec![],
            Effort::Balanced => balanced.into(),
            Effort::Best => [&balanced[..], &[Stage::Draw, Stage::Fit, Stage::Rounding, Stage::Distill]].concat(),
        }
    }
}

/// The stages of a mode, in their order, and what the mode is called.
pub(super) struct Mode {
    pub name: &'static str,
    pub stages: &'static [Stage],
}

pub(super) const STATIC: Mode = Mode {
    name: "static models",
    stages: &[Stage::Equalize, Stage::Absorb, Stage::Draw, Stage::Smooth, Stage::Ranges, Stage::Fit, Stage::Rounding, Stage::Biases],
};

pub(super) const DYNAMIC: Mode =
    Mode { name: "dynamic models", stages: &[Stage::Equalize, Stage::Absorb, Stage::Draw, Stage::Smooth, Stage::Fit, Stage::Biases] };

pub(super) const WEIGHTS: Mode = Mode {
    name: "models whose weights alone are quantized",
    stages: &[Stage::Grids, Stage::Scale, Stage::Clip, Stage::Fit, Stage::Biases, Stage::Distill],
};
