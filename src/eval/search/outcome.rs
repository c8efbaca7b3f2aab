//! What a search found.

use std::fmt;

use super::{Measured, Mix};
use crate::nn::Model;

/// The mix that a search ended with, and how it got there.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Outcome {
    /// The model.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub model: Model,
    /// Which layers are not as the configuration has them.
    pub mix: Mix,
    /// The float model's metric.
    pub float: f64,
    /// What was measured of the mix.
    pub found: Measured,
    /// The largest drop asked for.
    pub max_drop: f64,
    /// Whether the target holds. With every layer in float it does, unless the metric itself is not the same twice.
    pub holds: bool,
    /// Bytes of the float model.
    pub float_bytes: usize,
    /// Each layer's part in the damage, worst first; empty when all could be quantized.
    pub sensitivity: Vec<Sensitivity>,
    /// What each further layer left in float gave, from the smallest model on.
    pub steps: Vec<TradeOff>,
}

/// One layer's part in the damage.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Sensitivity {
    /// The layer.
    pub name: String,
    /// With it alone quantized.
    pub alone: Measured,
    /// With all but it quantized.
    pub without: Measured,
    /// Bytes that quantizing it saves.
    pub saves: usize,
}

/// One step on the way from the smallest model to the float one.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TradeOff {
    /// The layer left in float at this step; `None` for the first one.
    pub left: Option<String>,
    /// What was measured then.
    pub measured: Measured,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drop = self.float - self.found.metric;
        let verdict = if self.holds { "the target holds" } else { "the target does not hold" };
        writeln!(
            f,
            "metric {:.4} in float, {:.4} quantized: {drop:.4} lost of {:.4} allowed, {verdict}",
            self.float, self.found.metric, self.max_drop
        )?;
        writeln!(f, "bytes {} in float, {} quantized; output SQNR {:.1} dB", self.float_bytes, self.found.bytes, self.found.sqnr_db)?;
        for (name, choice) in self.mix.layers() {
            writeln!(f, "  {name}: {}", format!("{choice:?}").to_lowercase())?;
        }
        writeln!(f, "trade-off, a layer more in float at each step:")?;
        for step in &self.steps {
            let Measured { metric, sqnr_db, bytes } = step.measured;
            writeln!(f, "  {metric:8.4} {sqnr_db:7.1} dB {bytes:>10} bytes  {}", step.left.as_deref().unwrap_or("(all quantized)"))?;
        }
        if !self.sensitivity.is_empty() {
            writeln!(f, "sensitivity, worst first: alone in int8, all but it in int8, bytes that it saves")?;
            for layer in &self.sensitivity {
                writeln!(f, "  {:7.1} dB {:7.1} dB {:>10}  {}", layer.alone.sqnr_db, layer.without.sqnr_db, layer.saves, layer.name)?;
            }
        }
        Ok(())
    }
}
