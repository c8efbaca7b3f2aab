//! What a verb did to a model: readable from the model it returned.

use std::fmt;

use crate::nn::LayerKind;

/// Which layers a verb quantized, which it passed over, and why.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Conversion {
    /// Names of the layers that were quantized, in the model's order.
    pub quantized: Vec<String>,
    /// Batch norms folded into the layer before them: (name of the batch norm, name of that layer).
    pub folded: Vec<(String, String)>,
    /// Layers of a requested kind that were passed over, and batch norms that could not be folded into the layer before
    /// them.
    pub skipped: Vec<Skipped>,
    /// Kinds asked for of which the model has no layer.
    pub absent: Vec<LayerKind>,
}

/// A layer that was passed over.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: LayerKind,
    /// Why.
    pub reason: SkipReason,
}

impl Skipped {
    pub(crate) fn new(name: &str, kind: LayerKind, reason: SkipReason) -> Self {
        Skipped { name: name.to_owned(), kind, reason }
    }
}

/// Why a layer was passed over.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum SkipReason {
    /// It is quantized: quantizing it again would round twice.
    AlreadyQuantized,
    /// Patterns of names to include were given, and none matches it.
    NotIncluded,
    /// The pattern that excludes it.
    Excluded(String),
    /// The configuration leaves it in float.
    Configured,
    /// It can't be done exactly; the text says why.
    Unsupported(String),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SkipReason::AlreadyQuantized => f.write_str("already quantized"),
            SkipReason::NotIncluded => f.write_str("no include pattern matches it"),
            SkipReason::Excluded(pattern) => write!(f, "excluded by `{pattern}`"),
            SkipReason::Configured => f.write_str("left in float by the configuration"),
            SkipReason::Unsupported(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for Conversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "quantized {}: {}", self.quantized.len(), self.quantized.join(", "))?;
        for (norm, layer) in &self.folded {
            writeln!(f, "folded {norm} into {layer}")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
        }
        for kind in &self.absent {
            writeln!(f, "no {kind} in the model")?;
        }
        Ok(())
    }
}
