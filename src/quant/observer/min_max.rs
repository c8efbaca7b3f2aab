//! The exact range.

use super::range::{Range, measure};
use super::summaries::Summaries;
use crate::error::Result;
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Tensor};

/// Smallest and largest value seen, per tensor, channel or group.
///
/// Scales and zero points follow [`affine_qparams`], which decides every edge: constants, all zeros, subnormals, ranges
/// near `f32::MAX`. A tensor without elements is no error: a range that saw nothing is that of zero alone.
///
/// Tensors observed one after the other may differ in shape as long as their scales are the same: per tensor in any way, per
/// channel on all other axes, per group not at all.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MinMax {
    seen: Summaries<Option<Range>>,
}

impl MinMax {
    /// An observer that has seen nothing.
    pub fn new(granularity: Granularity) -> Self {
        MinMax { seen: Summaries::new(granularity) }
    }

    /// With another policy for NaN and infinities: to leave them out instead of refusing them.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.seen.non_finite = policy;
        self
    }

    /// The ranges seen, one a scale, as (min, max); `None` where there was no value.
    pub fn ranges(&self) -> Vec<Option<(f32, f32)>> {
        self.seen.as_slice().iter().map(|range| range.map(Range::ends)).collect()
    }
}

/// The range of what was in either.
fn join(known: &mut Option<Range>, range: &Option<Range>) {
    *known = match (*known, *range) {
        (Some(known), Some(range)) => Some(known.with(range)),
        (known, range) => known.or(range),
    };
}

impl Observer for MinMax {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        let ranges = measure(self.seen.granularity, self.seen.non_finite, x)?;
        let known = self.seen.for_tensor(x, None)?;
        known.iter_mut().zip(&ranges).for_each(|(known, range)| join(known, range));
        Ok(())
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        self.seen.merge(&other.seen, None, join)
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        self.seen.qparams(scheme, |range| {
            let (min, max) = range.map_or((0.0, 0.0), Range::ends);
            affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric())
        })
    }
}
