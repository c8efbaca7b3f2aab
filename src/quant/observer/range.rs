//! Smallest and largest values, one range a scale.

use crate::error::Result;
use crate::kernels;
use crate::num::NonFinite;
use crate::tensor::{Granularity, Shape, Tensor, repeat};

/// The values from `min` to `max`, finite and in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "Ends"))]
pub(super) struct Range {
    #[cfg_attr(feature = "serde", serde(with = "super::exact"))]
    pub min: f32,
    #[cfg_attr(feature = "serde", serde(with = "super::exact"))]
    pub max: f32,
}

impl Range {
    /// The smallest range that holds both.
    pub fn with(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    pub fn ends(self) -> (f32, f32) {
        (self.min, self.max)
    }
}

/// A [`Range`] as it is read, before it is known to be one.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Ends {
    #[serde(with = "super::exact")]
    min: f32,
    #[serde(with = "super::exact")]
    max: f32,
}

#[cfg(feature = "serde")]
impl TryFrom<Ends> for Range {
    type Error = String;

    fn try_from(Ends { min, max }: Ends) -> std::result::Result<Range, String> {
        match min.is_finite() && max.is_finite() && min <= max {
            true => Ok(Range { min: min + 0.0, max: max + 0.0 }),
            false => Err(format!("{min:?} to {max:?} is no range of finite values")),
        }
    }
}

/// Shortest run that is worth a call of the vector kernel.
const VECTOR_RUN: usize = 32;

/// The neutral element of [`Range::with`].
const NOTHING: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };

/// The ranges of the finite values of `x`, one a scale; `None` where there are none.
pub(super) fn measure(granularity: Granularity, policy: NonFinite, x: &Tensor) -> Result<Vec<Option<Range>>> {
    let shape: &Shape = x.shape();
    let mut ranges = repeat(NOTHING, granularity.parameters(shape)?, shape.dims())?;
    for (run, parameter) in granularity.runs(shape)? {
        let range = &mut ranges[parameter];
        let values = &x.as_slice()[run];
        if values.len() >= VECTOR_RUN {
            let seen = kernels::min_max(values);
            if seen.finite {
                *range = range.with(Range { min: seen.min, max: seen.max });
                continue;
            }
        }
        for &value in values {
            if value.is_finite() {
                // No negative zero, as in the kernel's ranges.
                *range = range.with(Range { min: value + 0.0, max: value + 0.0 });
            } else {
                policy.check("observed tensor", x.as_slice())?;
            }
        }
    }
    Ok(ranges.into_iter().map(|range| (range.min <= range.max).then_some(range)).collect())
}
