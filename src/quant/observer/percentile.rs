//! The range without its tails.

use super::histogram::{Bins, Histogram};
use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Tensor};

/// The range that so many percent of the values lie in, per tensor, channel or group.
///
/// Of `n` values, `n (1 - percent / 100) / 2` are cut from either end; when all lie on one side of zero, twice as many from
/// their far end and none from the other. Values inside a bin of the [`Histogram`] are taken as evenly spread. A tail of
/// less than one value is not cut, so of few values the range is the exact one; nor is one where nothing but zero would be
/// left.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Percentile {
    #[cfg_attr(feature = "serde", serde(serialize_with = "super::exact::serialize", deserialize_with = "percent"))]
    percent: f64,
    seen: Histogram,
}

fn check(percent: f64) -> Result<f64> {
    match percent > 0.0 && percent <= 100.0 {
        true => Ok(percent),
        false => Err(Error::parameter("percentile", percent, "must be above 0 and at most 100")),
    }
}

#[cfg(feature = "serde")]
fn percent<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    super::exact::deserialize(deserializer).and_then(|percent| check(percent).map_err(serde::de::Error::custom))
}

impl Percentile {
    /// The percentage of [`ObserverKind`](super::ObserverKind) when none is given.
    pub const PERCENT: f64 = 99.99;

    /// An observer that has seen nothing and will keep `percent` of the values.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a percentage that is not above 0 and at most 100.
    pub fn new(percent: f64, granularity: Granularity) -> Result<Self> {
        Ok(Percentile { percent: check(percent)?, seen: Histogram::new(granularity) })
    }

    /// With another limit to the number of bins.
    ///
    /// # Errors
    /// Those of [`Histogram::with_bins`].
    pub fn with_bins(self, limit: usize) -> Result<Self> {
        Ok(Percentile { seen: self.seen.with_bins(limit)?, ..self })
    }

    /// With another policy for NaN and infinities: to leave them out instead of refusing them.
    #[must_use]
    pub fn with_non_finite(self, policy: NonFinite) -> Self {
        Percentile { seen: self.seen.with_non_finite(policy), ..self }
    }

    /// The ranges that are kept, one a scale, as (min, max); `None` where there was no value.
    pub fn ranges(&self) -> Vec<Option<(f32, f32)>> {
        self.seen.ranges_by(|bins| self.range(bins))
    }

    fn range(&self, bins: &Bins) -> Option<(f32, f32)> {
        let (min, max) = bins.range()?.ends();
        let cut = bins.total() as f64 * (1.0 - self.percent / 100.0);
        let (below, above) = match () {
            () if min >= 0.0 => (0.0, cut),
            () if max <= 0.0 => (cut, 0.0),
            () => (0.5 * cut, 0.5 * cut),
        };
        let pieces = bins.pieces();
        let low = cut_end(pieces.iter().map(|&(from, to, n)| (from, to, n)), below).map_or(min, |x| x as f32);
        let high = cut_end(pieces.iter().rev().map(|&(from, to, n)| (to, from, n)), above).map_or(max, |x| x as f32);
        Some(if low.min(0.0) == high.max(0.0) { (min, max) } else { (low, high) })
    }
}

/// The place up to which there are `cut` values, of pieces in their order, unless it is less than one.
fn cut_end(pieces: impl Iterator<Item = (f64, f64, u64)>, cut: f64) -> Option<f64> {
    let mut before = 0.0;
    for (from, to, n) in pieces.filter(|_| cut >= 1.0) {
        let n = n as f64;
        if before + n > cut {
            return Some(from + (to - from) * ((cut - before) / n));
        }
        before += n;
    }
    None
}

impl Observer for Percentile {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        self.seen.observe(x)
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        if other.percent != self.percent {
            return Err(Error::Unsupported {
                what: format!("merging {} percent into {}", other.percent, self.percent),
                way_out: "observe all parts with one percentage".into(),
            });
        }
        self.seen.merge(&other.seen)
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        self.seen.qparams_by(scheme, |bins| {
            let (min, max) = self.range(bins).unwrap_or((0.0, 0.0));
            affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric())
        })
    }
}
