//! The exact range.

use crate::error::{Error, Result};
use crate::kernels;
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Shape, Tensor, repeat};

/// Smallest and largest value seen, per tensor, channel or group.
///
/// Scales and zero points follow [`affine_qparams`], which decides every edge: constants, all zeros, subnormals, ranges
/// near `f32::MAX`. A tensor without elements is no error: a range that saw nothing is that of zero alone.
///
/// Tensors observed one after the other may differ in shape as long as their scales are the same: per tensor in any way, per
/// channel on all other axes, per group not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct MinMax {
    granularity: Granularity,
    non_finite: NonFinite,
    // One a scale; `None` before the first tensor. A range that saw no value has `min > max`.
    ranges: Option<Vec<Range>>,
    // Of groups, the shape of the first tensor: the number of groups alone does not tell where they lie.
    grouped: Option<Shape>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    min: f32,
    max: f32,
}

/// Shortest run that is worth a call of the vector kernel.
const VECTOR_RUN: usize = 32;

const NOTHING: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };

impl Range {
    fn with(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

impl MinMax {
    /// An observer that has seen nothing.
    pub fn new(granularity: Granularity) -> Self {
        MinMax { granularity, non_finite: NonFinite::Error, ranges: None, grouped: None }
    }

    /// With another policy for NaN and infinities: to leave them out instead of refusing them.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.non_finite = policy;
        self
    }

    /// The ranges seen, one a scale, as (min, max); `None` where there was no value.
    pub fn ranges(&self) -> Vec<Option<(f32, f32)>> {
        let seen = |range: &Range| (range.min <= range.max).then_some((range.min, range.max));
        self.ranges.iter().flatten().map(seen).collect()
    }

    fn measure(&self, x: &Tensor) -> Result<Vec<Range>> {
        let shape: &Shape = x.shape();
        let mut ranges = repeat(NOTHING, self.granularity.parameters(shape)?, shape.dims())?;
        for (run, parameter) in self.granularity.runs(shape)? {
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
                    *range = range.with(Range { min: value, max: value });
                } else {
                    self.non_finite.check("observed tensor", x.as_slice())?;
                }
            }
        }
        Ok(ranges)
    }

    fn take(&mut self, ranges: Vec<Range>, grouped: Option<&Shape>) -> Result<()> {
        if let (Some(known), Some(shape)) = (&self.grouped, grouped)
            && known != shape
        {
            return Err(Error::shape("observed tensor", format!("{known:?}, as before, whose groups are measured"), shape.dims()));
        }
        match &mut self.ranges {
            None => self.ranges = Some(ranges),
            Some(known) if known.len() == ranges.len() => {
                known.iter_mut().zip(ranges).for_each(|(known, range)| *known = known.with(range))
            }
            Some(known) => return Err(Error::length(format!("list of ranges, {:?}", self.granularity), known.len(), ranges.len())),
        }
        self.grouped = self.grouped.take().or_else(|| grouped.cloned());
        Ok(())
    }
}

impl Observer for MinMax {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        let ranges = self.measure(x)?;
        self.take(ranges, matches!(self.granularity, Granularity::PerGroup { .. }).then_some(x.shape()))
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        if other.granularity != self.granularity {
            return Err(Error::Unsupported {
                what: format!("merging a {:?} observer into a {:?} one", other.granularity, self.granularity),
                way_out: "observe all parts with one granularity".into(),
            });
        }
        match &other.ranges {
            Some(ranges) => self.take(ranges.clone(), other.grouped.as_ref()),
            None => Ok(()),
        }
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        scheme.validate()?;
        if scheme.granularity() != self.granularity {
            return Err(Error::Unsupported {
                what: format!("{:?} parameters from a {:?} observer", scheme.granularity(), self.granularity),
                way_out: "give scheme and observer one granularity".into(),
            });
        }
        let Some(ranges) = &self.ranges else {
            return Err(Error::Empty { what: "observer".into(), way_out: "observe a tensor before asking for parameters" });
        };
        let params = ranges.iter().map(|range| {
            let (min, max) = if range.min <= range.max { (range.min, range.max) } else { (0.0, 0.0) };
            affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric())
        });
        let (scales, zero_points) = params.unzip();
        QParams::of_any_axis(scales, zero_points, self.granularity, scheme.qmin(), scheme.qmax())
    }
}
