//! What equalization did.

use std::fmt;

use crate::nn::{Model, Skipped};

/// A model with even channels, and how it came to them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Equalized {
    /// The model.
    pub model: Model,
    /// The pairs of layers that were scaled, in the order in which they run. Empty when nothing could be equalized.
    pub pairs: Vec<Pair>,
    /// Layers whose outputs got no scales, and why.
    pub passed_over: Vec<Skipped>,
    /// How often all pairs were gone through.
    pub sweeps: usize,
}

/// Two layers, and what happened between them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Pair {
    /// The layer that writes the channels.
    pub first: String,
    /// The layer that reads them.
    pub second: String,
    /// What each channel was divided by: 1 for one that is dead on both sides.
    pub scales: Vec<f64>,
    /// Evenness of the first layer's output channels, before and after: the mean over channels of the largest weight or bias, over the
    /// largest of all.
    pub written: [f64; 2],
    /// Evenness of the second layer's input channels, before and after.
    pub read: [f64; 2],
    /// Channels of which some bias moved on.
    pub absorbed: usize,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, largest) = self.scales.iter().fold((f64::INFINITY, 0.0f64), |(lo, hi), &s| (lo.min(s), hi.max(s)));
        let [[w0, w1], [r0, r1]] = [self.written, self.read];
        write!(f, "{} -> {}: {} channels, scales {least:.3} to {largest:.3}, ", self.first, self.second, self.scales.len())?;
        write!(f, "evenness {w0:.2} -> {w1:.2} written, {r0:.2} -> {r1:.2} read")?;
        if self.absorbed > 0 {
            write!(f, ", bias of {} channels moved on", self.absorbed)?;
        }
        Ok(())
    }
}

/// A line a pair, and one for each layer passed over.
impl fmt::Display for Equalized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "equalized {} pairs in {} sweeps", self.pairs.len(), self.sweeps)?;
        self.pairs.iter().try_for_each(|pair| writeln!(f, "{pair}"))?;
        for skipped in &self.passed_over {
            writeln!(f, "passed over {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
        }
        Ok(())
    }
}
