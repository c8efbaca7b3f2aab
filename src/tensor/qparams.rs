//! Scales and zero points, valid from birth.

use crate::error::{Error, Result};
use crate::tensor::Granularity;

/// Everything that gives codes their meaning: `real = scale · (code - zero_point)`, `qmin <= code <= qmax`.
///
/// A value of this type is valid: scales are finite and above zero, zero points are codes, and there are as many of the
/// one as of the other, or no zero points at all, which means that all are 0 and none is stored.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "Unchecked"))]
pub struct QParams {
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    granularity: Granularity,
    qmin: i32,
    qmax: i32,
}

/// Parameters as a file has them.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Unchecked {
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    granularity: Granularity,
    qmin: i32,
    qmax: i32,
}

#[cfg(feature = "serde")]
impl TryFrom<Unchecked> for QParams {
    type Error = Error;

    fn try_from(read: Unchecked) -> Result<Self> {
        QParams::of_any_axis(read.scales, read.zero_points, read.granularity, read.qmin, read.qmax)
    }
}

impl QParams {
    /// Parameters for codes `qmin..=qmax`. Zero points that are all 0 are not kept; an empty list says the same.
    ///
    /// # Errors
    /// [`Error::Empty`] without a scale (only those of an axis of length 0 have none, and they come from an observer of such
    /// a tensor), [`Error::Parameter`] when `qmin >= qmax` or groups have size 0, [`Error::Length`] when the numbers of scales
    /// and zero points differ (or a per-tensor list has not one), [`Error::Scale`], and [`Error::ZeroPoint`] for one that is
    /// no code, be it the 0 that an empty list stands for.
    pub fn new(scales: Vec<f32>, zero_points: Vec<i32>, granularity: Granularity, qmin: i32, qmax: i32) -> Result<Self> {
        if scales.is_empty() && granularity != Granularity::PerTensor {
            return Err(Error::Empty { what: "list of scales".into(), way_out: "give one for each channel or group" });
        }
        QParams::of_any_axis(scales, zero_points, granularity, qmin, qmax)
    }

    /// As [`QParams::new`], for axes that may have length 0, and then no scale.
    pub(crate) fn of_any_axis(scales: Vec<f32>, zero_points: Vec<i32>, granularity: Granularity, qmin: i32, qmax: i32) -> Result<Self> {
        if qmin >= qmax {
            return Err(Error::parameter("range of codes", (qmin, qmax), "must hold at least two codes"));
        }
        if matches!(granularity, Granularity::PerGroup { size: 0, .. }) {
            return Err(Error::parameter("size of a group", 0, "must be at least 1"));
        }
        if granularity == Granularity::PerTensor && scales.len() != 1 {
            return Err(Error::length("list of scales for the whole tensor", 1, scales.len()));
        }
        if !zero_points.is_empty() && zero_points.len() != scales.len() {
            return Err(Error::length("list of zero points", scales.len(), zero_points.len()));
        }
        if let Some((index, &value)) = scales.iter().enumerate().find(|(_, s)| !(s.is_finite() && **s > 0.0)) {
            return Err(Error::Scale { index, value });
        }
        let implied = zero_points.is_empty().then_some(&0);
        if let Some((index, &value)) = zero_points.iter().chain(implied).enumerate().find(|(_, z)| !(qmin..=qmax).contains(z)) {
            return Err(Error::ZeroPoint { index, value, qmin, qmax });
        }
        let zero_points = if zero_points.iter().all(|&z| z == 0) { Vec::new() } else { zero_points };
        Ok(QParams { scales, zero_points, granularity, qmin, qmax })
    }

    /// One scale and zero point for a whole tensor.
    ///
    /// # Errors
    /// Those of [`QParams::new`].
    pub fn per_tensor(scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> Result<Self> {
        QParams::new(vec![scale], vec![zero_point], Granularity::PerTensor, qmin, qmax)
    }

    /// The scales.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The zero points, one a scale; empty when all are 0.
    pub fn zero_points(&self) -> &[i32] {
        &self.zero_points
    }

    /// Scale and zero point of that index.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn at(&self, index: usize) -> (f32, i32) {
        (self.scales[index], self.zero_points.get(index).copied().unwrap_or(0))
    }

    /// Which elements share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Smallest code.
    pub fn qmin(&self) -> i32 {
        self.qmin
    }

    /// Largest code.
    pub fn qmax(&self) -> i32 {
        self.qmax
    }

    /// Bytes of the scales (4 each) and of the zero points that are stored (4 each; none when all are 0).
    pub fn bytes(&self) -> usize {
        4 * (self.scales.len() + self.zero_points.len())
    }

    /// These parameters with other scales and zero points picked out of them by index.
    pub(crate) fn pick(&self, indices: impl Iterator<Item = usize> + Clone) -> QParams {
        let scales = indices.clone().map(|i| self.scales[i]).collect();
        let zero_points = if self.zero_points.is_empty() { Vec::new() } else { indices.map(|i| self.zero_points[i]).collect() };
        QParams { scales, zero_points, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_parameters_are_born() {
        let channel = Granularity::PerChannel { axis: 0 };
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let error = QParams::new(vec![1.0, bad], vec![], channel, -128, 127);
            assert!(matches!(error, Err(Error::Scale { index: 1, .. })), "{bad}");
        }
        assert!(matches!(QParams::per_tensor(1.0, 256, 0, 255), Err(Error::ZeroPoint { value: 256, .. })));
        assert!(matches!(QParams::new(vec![1.0; 2], vec![0; 3], channel, 0, 255), Err(Error::Length { expected: 2, got: 3, .. })));
        assert!(matches!(QParams::new(vec![1.0; 2], vec![], Granularity::PerTensor, 0, 255), Err(Error::Length { .. })));
        assert!(matches!(QParams::new(vec![1.0], vec![], Granularity::PerTensor, 1, 15), Err(Error::ZeroPoint { value: 0, .. })));
        assert!(matches!(QParams::per_tensor(1.0, 0, 3, 3), Err(Error::Parameter { .. })));
        let group = |size| Granularity::PerGroup { axis: 0, size };
        for empty in [channel, group(4)] {
            assert!(matches!(QParams::new(vec![], vec![], empty, -128, 127), Err(Error::Empty { .. })));
        }
        assert!(matches!(QParams::new(vec![], vec![], Granularity::PerTensor, 0, 255), Err(Error::Length { expected: 1, got: 0, .. })));
        assert!(matches!(QParams::new(vec![1.0], vec![], group(0), -128, 127), Err(Error::Parameter { .. })));
    }

    #[test]
    fn zero_points_that_say_nothing_are_not_stored() {
        let symmetric = QParams::per_tensor(0.5, 0, -127, 127).unwrap();
        assert_eq!((symmetric.bytes(), symmetric.at(0)), (4, (0.5, 0)));
        assert_eq!(QParams::per_tensor(0.5, 3, 0, 255).unwrap().bytes(), 8);
    }
}
