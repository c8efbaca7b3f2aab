//! What is learned of a quantization while it trains.

use crate::convert::{QConfig, StaticScheme, WeightScales};
use crate::error::{Error, Result};
use crate::quant::observer::{MovingAverage, ObserverKind};
use crate::quant::{Scheme, Table};

/// Where the scales of weights come from while they train.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum WeightTraining {
    /// From the weights, anew in each pass, by the scheme's [`WeightScales`].
    Observed,
    /// They are learned (LSQ), one for each channel or one for the tensor, from where [`WeightScales`] puts them.
    Learned,
    /// Weights take the levels of a table, times a scale that is learned: powers of two, sums of them, any codebook. The integer model
    /// holds levels as 8-bit integers: exactly where all are multiples of one step of at most 1/127 (powers of two up to 4 bits, APoT
    /// up to 4), else rounded to 1/127 of the largest, in training as well.
    Levels(Levels),
}

/// The levels of weights, without their scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    pub(super) codes: Vec<i8>,
}

impl Levels {
    /// Those of a table.
    ///
    /// # Errors
    /// Those of [`Table::codebook`].
    pub fn of(table: Table) -> Result<Self> {
        Levels::new(table.codebook()?.levels())
    }

    /// Any: two at least.
    ///
    /// # Errors
    /// [`Error::Parameter`] for fewer than two different levels, and for one that is not finite.
    pub fn new(levels: &[f32]) -> Result<Self> {
        let largest = levels.iter().fold(0.0f32, |largest, level| largest.max(level.abs()));
        if levels.iter().any(|level| !level.is_finite()) || largest == 0.0 {
            return Err(Error::parameter("levels", levels, "must be finite, and not all zero"));
        }
        let level = |level: f32, steps: i32| f64::from(level) / f64::from(largest) * f64::from(steps);
        let exact = |&steps: &i32| levels.iter().all(|&x| (level(x, steps) - level(x, steps).round()).abs() < 1e-4);
        let steps = (1..=127).find(exact).unwrap_or(127);
        let mut codes: Vec<i8> = levels.iter().map(|&x| level(x, steps).round_ties_even() as i8).collect();
        codes.sort_unstable();
        codes.dedup();
        match codes.len() {
            0 | 1 => Err(Error::parameter("levels", levels, "must be at least two")),
            _ => Ok(Levels { codes }),
        }
    }

    /// As the integer model holds them, ascending.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }
}

/// Where the scales of activations come from while they train.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ActivationTraining {
    /// A moving average of the range of each batch, until observers are frozen.
    Observed {
        /// How much of a batch goes into it.
        rate: f32,
    },
    /// The scale is learned (LSQ), the zero point stays that of the first batch.
    Learned,
    /// Scale and offset are learned (LSQ+); the zero point is the integer next to the offset.
    LearnedOffset,
    /// The upper end is learned (PACT); values below zero are clipped.
    Clipped {
        /// Times half the square of the bound, added to the loss: draws bounds down.
        decay: f32,
    },
}

/// Quantization-aware training: what becomes integers, and what is learned of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QatConfig {
    pub(super) scheme: QConfig,
    pub(super) weights: WeightTraining,
    pub(super) activations: ActivationTraining,
}

impl QatConfig {
    /// Layers by `scheme`, all scales learned.
    pub fn new(scheme: QConfig) -> Self {
        QatConfig { scheme, weights: WeightTraining::Learned, activations: ActivationTraining::Learned }
    }

    /// Weights and activations of so many bits, 2 to 8, everywhere: weights in -(2^(b-1) - 1) to 2^(b-1) - 1 with a scale for each
    /// output channel, activations in 0 to 2^b - 1. Scales begin at the least squared error and are learned.
    pub fn bits(bits: u32) -> Self {
        let scheme = StaticScheme::default()
            .with_weights(Scheme::INT8_WEIGHT.with_bits(bits))
            .with_weight_scales(WeightScales::LeastSquares)
            .with_activations(Scheme::UINT8_ACTIVATION.with_bits(bits))
            .with_activation_observer(ObserverKind::Histogram);
        QatConfig::new(QConfig::new(scheme))
    }

    /// 8 bits, weights by their largest value, activations by a moving average of ranges: what other frameworks do by default.
    pub fn observed() -> Self {
        QatConfig::new(QConfig::default())
            .with_weights(WeightTraining::Observed)
            .with_activations(ActivationTraining::Observed { rate: MovingAverage::RATE })
    }

    /// With scales of weights from there.
    #[must_use]
    pub fn with_weights(self, weights: WeightTraining) -> Self {
        QatConfig { weights, ..self }
    }

    /// With scales of activations from there.
    #[must_use]
    pub fn with_activations(self, activations: ActivationTraining) -> Self {
        QatConfig { activations, ..self }
    }

    /// Which layers become what.
    pub fn scheme(&self) -> &QConfig {
        &self.scheme
    }
}
