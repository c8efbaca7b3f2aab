//! Observers by name.

use std::fmt;
use std::str::FromStr;

use super::{Entropy, FixedRange, Histogram, MinMax, MovingAverage, Percentile};
use crate::error::{Error, Result};
use crate::num::NonFinite;
use crate::quant::Observer;
use crate::tensor::Granularity;

/// Which observer, and its parameters: for configurations and command lines.
///
/// ```
/// use lowprec::quant::observer::ObserverKind;
/// use lowprec::{Granularity, NonFinite, Scheme, Tensor};
/// let kind: ObserverKind = "percentile:99.9".parse()?;
/// assert_eq!((kind, kind.to_string()), (ObserverKind::Percentile { percent: 99.9 }, "percentile:99.9".into()));
/// let mut observer = kind.build(Granularity::PerTensor, NonFinite::Error)?;
/// observer.observe(&Tensor::new([2], vec![-1.0, 4.1])?)?;
/// assert_eq!(observer.qparams(&Scheme::UINT8_ACTIVATION)?.at(0), (5.1 / 255.0, 50));
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(into = "String", try_from = "String"))]
#[non_exhaustive]
pub enum ObserverKind {
    /// [`MinMax`]: `minmax`.
    #[default]
    MinMax,
    /// [`MovingAverage`]: `moving-average` (rate 0.01) or `moving-average:RATE`.
    MovingAverage {
        /// Share of a batch in the average.
        rate: f32,
    },
    /// [`Percentile`]: `percentile` (99.99) or `percentile:PERCENT`.
    Percentile {
        /// Percentage of the values that are kept.
        percent: f64,
    },
    /// [`Histogram`], least squared error: `mse`.
    Histogram,
    /// [`Entropy`]: `entropy`.
    Entropy,
    /// [`FixedRange`]: `range:MIN:MAX`.
    FixedRange {
        /// Smallest value.
        min: f32,
        /// Largest value.
        max: f32,
    },
}

impl ObserverKind {
    /// Such an observer, which has seen nothing.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a parameter that the observer refuses.
    pub fn build(&self, granularity: Granularity, non_finite: NonFinite) -> Result<Box<dyn Observer + Send>> {
        Ok(match *self {
            ObserverKind::MinMax => Box::new(MinMax::new(granularity).with_non_finite(non_finite)),
            ObserverKind::MovingAverage { rate } => Box::new(MovingAverage::new(granularity).with_rate(rate)?.with_non_finite(non_finite)),
            ObserverKind::Percentile { percent } => Box::new(Percentile::new(percent, granularity)?.with_non_finite(non_finite)),
            ObserverKind::Histogram => Box::new(Histogram::new(granularity).with_non_finite(non_finite)),
            ObserverKind::Entropy => Box::new(Entropy::new(granularity).with_non_finite(non_finite)),
            ObserverKind::FixedRange { min, max } => Box::new(FixedRange::new(min, max, granularity)?.with_non_finite(non_finite)),
        })
    }

    /// Whether the parameters are such as [`ObserverKind::build`] accepts.
    ///
    /// # Errors
    /// Those of [`ObserverKind::build`].
    pub fn validate(&self) -> Result<()> {
        self.build(Granularity::PerTensor, NonFinite::Error).map(|_| ())
    }
}

impl fmt::Display for ObserverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObserverKind::MinMax => f.write_str("minmax"),
            ObserverKind::MovingAverage { rate } => write!(f, "moving-average:{rate:?}"),
            ObserverKind::Percentile { percent } => write!(f, "percentile:{percent:?}"),
            ObserverKind::Histogram => f.write_str("mse"),
            ObserverKind::Entropy => f.write_str("entropy"),
            ObserverKind::FixedRange { min, max } => write!(f, "range:{min:?}:{max:?}"),
        }
    }
}

/// What names of observers look like.
const RULE: &str = "must be minmax, moving-average[:RATE], percentile[:PERCENT], mse, entropy or range:MIN:MAX";

fn number<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::parameter("number in the name of an observer", text, RULE))
}

#[cfg(feature = "serde")]
impl From<ObserverKind> for String {
    fn from(kind: ObserverKind) -> String {
        kind.to_string()
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for ObserverKind {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for ObserverKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let kind = match parts[..] {
            ["minmax"] => ObserverKind::MinMax,
            ["moving-average"] => ObserverKind::MovingAverage { rate: MovingAverage::RATE },
            ["moving-average", rate] => ObserverKind::MovingAverage { rate: number(rate)? },
            ["percentile"] => ObserverKind::Percentile { percent: Percentile::PERCENT },
            ["percentile", percent] => ObserverKind::Percentile { percent: number(percent)? },
            ["mse"] => ObserverKind::Histogram,
            ["entropy"] => ObserverKind::Entropy,
            ["range", min, max] => ObserverKind::FixedRange { min: number(min)?, max: number(max)? },
            _ => return Err(Error::parameter("observer", text, RULE)),
        };
        kind.validate().map(|()| kind)
    }
}
