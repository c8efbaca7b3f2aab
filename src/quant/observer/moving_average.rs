//! The range of a usual batch.

use super::range::{Range, measure};
use super::summaries::Summaries;
use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Tensor};

/// Moving averages of the smallest and of the largest value of a batch, per tensor, channel or group.
///
/// Each tensor observed is a batch. The first one with a value sets both ends, then
/// `end += rate · (end of the batch - end)`, in f64, rounded to f32: a batch with an outlier stretches the range by `rate`
/// of it. Unlike all other observers this one depends on how values were cut into batches, and on the order of these; values
/// beyond the average are clipped.
///
/// Merging continues with the other's batches: the result is, but for rounding, what one observer has that saw the
/// batches of `self` and then those of `other`. Both need the same rate.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MovingAverage {
    #[cfg_attr(feature = "serde", serde(serialize_with = "super::exact::serialize", deserialize_with = "rate"))]
    rate: f32,
    seen: Summaries<Option<Average>>,
}

/// `average` after so many batches, of which `first` came first: what a merge needs to put other batches before them.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Average {
    average: Range,
    first: Range,
    batches: u64,
}

fn check(rate: f32) -> Result<f32> {
    match rate > 0.0 && rate <= 1.0 {
        true => Ok(rate),
        false => Err(Error::parameter("rate of a moving average", rate, "must be above 0 and at most 1")),
    }
}

#[cfg(feature = "serde")]
fn rate<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    super::exact::deserialize(deserializer).and_then(|rate| check(rate).map_err(serde::de::Error::custom))
}

impl MovingAverage {
    /// The rate of [`MovingAverage::new`], which is that of PyTorch and ONNX Runtime.
    pub const RATE: f32 = 0.01;

    /// An observer that has seen nothing.
    pub fn new(granularity: Granularity) -> Self {
        MovingAverage { rate: Self::RATE, seen: Summaries::new(granularity) }
    }

    /// With another rate: 1 keeps the last batch alone.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rate that is not above 0 and at most 1.
    pub fn with_rate(mut self, rate: f32) -> Result<Self> {
        self.rate = check(rate)?;
        Ok(self)
    }

    /// With another policy for NaN and infinities: to leave them out instead of refusing them.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.seen.non_finite = policy;
        self
    }

    /// The averages, one a scale, as (min, max); `None` where there was no value.
    pub fn ranges(&self) -> Vec<Option<(f32, f32)>> {
        self.seen.as_slice().iter().map(|seen| seen.map(|seen| seen.average.ends())).collect()
    }
}

/// `from` moved towards `to` by `share` of the way. In f64, where the difference of two f32 does not overflow.
fn towards(from: f32, to: f32, share: f64) -> f32 {
    (f64::from(from) + share * (f64::from(to) - f64::from(from))) as f32
}

impl Average {
    fn take(&mut self, batch: Range, rate: f64) {
        let average = &mut self.average;
        *average = Range { min: towards(average.min, batch.min, rate), max: towards(average.max, batch.max, rate) };
        self.batches = self.batches.saturating_add(1);
    }

    /// Continues with the batches of `other`. These began at their own `first`; begun at this average they would have ended
    /// higher by what is left of the difference after as many steps.
    fn continue_with(&mut self, other: &Average, rate: f64) {
        let left = (1.0 - rate).powf(other.batches as f64);
        let end = |own: f32, first: f32, average: f32| (f64::from(average) + left * (f64::from(own) - f64::from(first))) as f32;
        let (min, max) =
            (end(self.average.min, other.first.min, other.average.min), end(self.average.max, other.first.max, other.average.max));
        // Rounding may carry ends that are equal past each other.
        self.average = Range { min: min.min(max), max: max.max(min) };
        self.batches = self.batches.saturating_add(other.batches);
    }
}

impl Observer for MovingAverage {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        let ranges = measure(self.seen.granularity, self.seen.non_finite, x)?;
        let rate = f64::from(self.rate);
        for (known, batch) in self.seen.for_tensor(x, None)?.iter_mut().zip(ranges) {
            match (known, batch) {
                (Some(known), Some(batch)) => known.take(batch, rate),
                (known @ None, Some(batch)) => *known = Some(Average { average: batch, first: batch, batches: 1 }),
                (_, None) => {}
            }
        }
        Ok(())
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        if other.rate != self.rate {
            return Err(Error::Unsupported {
                what: format!("merging a moving average of rate {:?} into one of rate {:?}", other.rate, self.rate),
                way_out: "observe all parts with one rate".into(),
            });
        }
        let rate = f64::from(self.rate);
        self.seen.merge(&other.seen, None, |own, other| match (own, other) {
            (Some(own), Some(other)) => own.continue_with(other, rate),
            (own @ None, other) => *own = *other,
            (_, None) => {}
        })
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        self.seen.qparams(scheme, |seen| {
            let (min, max) = seen.map_or((0.0, 0.0), |seen| seen.average.ends());
            affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric())
        })
    }
}
