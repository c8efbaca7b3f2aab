//! Counts in bins, and the range whose codes are nearest to what was counted.

mod bins;
mod search;
mod tail;

pub(super) use bins::{Bins, power_of_two};

use super::range::measure;
use super::summaries::Summaries;
use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Tensor};

/// A histogram, and from it the scale and zero point of least squared error, per tensor, channel or group.
///
/// Of each bin it keeps the number of values, their sum and the sum of their squares. With them the error of a grid,
/// `Σ (x - scale · (code - zero_point))²`, is exact but for the bins that a bound between two codes cuts in two; there the
/// values are taken as evenly spread. The search covers zero points and scales for the codes that the scheme has (not for
/// 256 whatever it has), clipping at both ends, and ends in least squares, `scale = Σ x k / Σ k²` over the codes `k` that
/// the values get.
///
/// The result is never worse than [`MinMax`](super::MinMax): where what is gained is less than what the placement of values
/// inside the cut bins may cost, it is the exact range. So it is with more codes than bins, that is, at 16 bits.
///
/// Bins are powers of two wide and grow in pairs: counts are those of the values seen, whatever their order. Sums are f64,
/// and differ in their last bits with the order of addition. A scale takes 24 bytes a bin, between half of the limit and all
/// of it; a tensor of one value, one bin.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Histogram {
    limit: usize,
    seen: Summaries<Bins>,
}

impl Histogram {
    /// Bins at most where all values share a scale.
    pub const BINS: usize = 1 << 14;
    /// Bins at most of a channel or group.
    pub const BINS_EACH: usize = 1 << 12;

    /// An observer that has seen nothing, of at most [`Histogram::BINS`] bins, or [`Histogram::BINS_EACH`] for each of many
    /// scales.
    pub fn new(granularity: Granularity) -> Self {
        let limit = if granularity == Granularity::PerTensor { Self::BINS } else { Self::BINS_EACH };
        Histogram { limit, seen: Summaries::new(granularity) }
    }

    pub(super) fn of_bins(limit: usize, granularity: Granularity) -> Self {
        Histogram { limit, seen: Summaries::new(granularity) }
    }

    /// With another limit to the number of bins. More than 32 for each code of the scheme hardly change the result.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number that is not 16 to 1,048,576, [`Error::Unsupported`] when something was observed.
    pub fn with_bins(mut self, limit: usize) -> Result<Self> {
        if !(Bins::MIN..=Bins::MAX).contains(&limit) {
            return Err(Error::parameter("bins of a histogram", limit, format!("must be {} to {}", Bins::MIN, Bins::MAX)));
        }
        if !self.seen.as_slice().is_empty() {
            return Err(Error::Unsupported {
                what: "another number of bins for a histogram that has seen values".into(),
                way_out: "choose it before the first tensor".into(),
            });
        }
        self.limit = limit;
        Ok(self)
    }

    /// With another policy for NaN and infinities: to leave them out instead of refusing them.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.seen.non_finite = policy;
        self
    }

    /// The ranges seen, one a scale, as (min, max); `None` where there was no value.
    pub fn ranges(&self) -> Vec<Option<(f32, f32)>> {
        self.seen.as_slice().iter().map(|bins| bins.range().map(|range| range.ends())).collect()
    }

    /// What was counted for the scale of that index, bin by bin in order, empty ones left out: from, to (the ends cut to the
    /// range seen) and the number of values. Zeros are counted apart, from 0 to 0.
    pub fn counts(&self, index: usize) -> Vec<(f64, f64, u64)> {
        self.seen.as_slice().get(index).map(Bins::pieces).unwrap_or_default()
    }

    pub(super) fn qparams_by(&self, scheme: &Scheme, choose: impl FnMut(&Bins) -> (f32, i32)) -> Result<QParams> {
        self.seen.qparams(scheme, choose)
    }

    pub(super) fn ranges_by(&self, choose: impl FnMut(&Bins) -> Option<(f32, f32)>) -> Vec<Option<(f32, f32)>> {
        self.seen.as_slice().iter().map(choose).collect()
    }
}

impl Observer for Histogram {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        let ranges = measure(self.seen.granularity, self.seen.non_finite, x)?;
        let runs = self.seen.granularity.runs(x.shape())?;
        let all = self.seen.for_tensor(x, Bins::new(self.limit))?;
        let widened: Vec<_> =
            all.iter().zip(ranges).map(|(bins, range)| range.map(|range| bins.widened(range)).transpose()).collect::<Result<_>>()?;
        for (bins, widened) in all.iter_mut().zip(widened) {
            if let Some(widened) = widened {
                bins.widen(widened);
            }
        }
        for (run, parameter) in runs {
            all[parameter].count(&x.as_slice()[run]);
        }
        Ok(())
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        if other.limit != self.limit {
            return Err(Error::Unsupported {
                what: format!("merging a histogram of {} bins into one of {}", other.limit, self.limit),
                way_out: "observe all parts with one number of bins".into(),
            });
        }
        // In a copy, so that nothing is taken where memory is not enough for all.
        let (mut merged, mut outcome) = (self.seen.clone(), Ok(()));
        merged.merge(&other.seen, Bins::new(self.limit), |own, other| {
            if outcome.is_ok() {
                outcome = own.merge(other);
            }
        })?;
        outcome?;
        self.seen = merged;
        Ok(())
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        scheme.validate()?;
        self.qparams_by(scheme, |bins| match bins.range() {
            Some(_) => search::least_error(bins, scheme),
            None => affine_qparams(0.0, 0.0, scheme.qmin(), scheme.qmax(), scheme.is_symmetric()),
        })
    }
}
