//! A range that is known beforehand.

use super::summaries::Summaries;
use crate::error::{Error, Result};
use crate::kernels;
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Tensor};

/// The range it was given, whatever it sees: for values with known bounds (softmax 0 to 1, tanh -1 to 1, images 0 to 1).
///
/// NaN and infinities are refused as by other observers. One scale for the tensor needs no observation; of channels and
/// groups a tensor must tell how many there are.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "Unchecked"))]
pub struct FixedRange {
    #[cfg_attr(feature = "serde", serde(with = "super::exact"))]
    min: f32,
    #[cfg_attr(feature = "serde", serde(with = "super::exact"))]
    max: f32,
    seen: Summaries<()>,
}

/// A range as a file has it.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Unchecked {
    #[serde(with = "super::exact")]
    min: f32,
    #[serde(with = "super::exact")]
    max: f32,
    seen: Summaries<()>,
}

#[cfg(feature = "serde")]
impl TryFrom<Unchecked> for FixedRange {
    type Error = Error;

    fn try_from(read: Unchecked) -> Result<Self> {
        let Unchecked { min, max, seen } = read;
        FixedRange::new(min, max, Granularity::PerTensor).map(|new| FixedRange { seen, ..new })
    }
}

impl FixedRange {
    /// The range from `min` to `max`; the codes also reach zero.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless both are finite and `min <= max`.
    pub fn new(min: f32, max: f32, granularity: Granularity) -> Result<Self> {
        if !(min.is_finite() && max.is_finite() && min <= max) {
            return Err(Error::parameter("fixed range", (min, max), "must have two finite ends, the smaller one first"));
        }
        Ok(FixedRange { min, max, seen: Summaries::new(granularity) })
    }

    /// With another policy for NaN and infinities: to overlook them instead of refusing them.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.seen.non_finite = policy;
        self
    }

    /// The range, as (min, max).
    pub fn range(&self) -> (f32, f32) {
        (self.min, self.max)
    }
}

impl Observer for FixedRange {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        self.seen.granularity.parameters(x.shape())?;
        if !kernels::min_max(x.as_slice()).finite {
            self.seen.non_finite.check("observed tensor", x.as_slice())?;
        }
        self.seen.for_tensor(x, ()).map(|_| ())
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        if other.range() != self.range() {
            return Err(Error::Unsupported {
                what: format!("merging the fixed range {:?} into {:?}", other.range(), self.range()),
                way_out: "give all parts one range".into(),
            });
        }
        self.seen.merge(&other.seen, (), |_, _| {})
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        let params = affine_qparams(self.min, self.max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric());
        if self.seen.granularity == Granularity::PerTensor && scheme.granularity() == Granularity::PerTensor {
            scheme.validate()?;
            return QParams::per_tensor(params.0, params.1, scheme.qmin(), scheme.qmax());
        }
        self.seen.qparams(scheme, |()| params)
    }
}
