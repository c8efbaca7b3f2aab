//! Which elements of a tensor share one scale.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Which elements share a scale and a zero point.
///
/// The axis is always said, and always checked against the shape: no operation assumes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Granularity {
    /// All of them.
    PerTensor,
    /// Those at one index of `axis`: one scale for each index, in order.
    PerChannel {
        /// The axis.
        axis: usize,
    },
    /// `size` neighbours along `axis` (which `size` must divide): scales in row-major order of the shape in which `axis`
    /// has one entry a group.
    PerGroup {
        /// The axis that is cut into groups.
        axis: usize,
        /// Elements in a group.
        size: usize,
    },
}

impl Granularity {
    /// Number of scales for a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Axis`] when the axis does not exist, [`Error::Group`] when the group size does not divide it.
    pub fn parameters(&self, shape: &Shape) -> Result<usize> {
        match *self {
            Granularity::PerTensor => Ok(1),
            Granularity::PerChannel { axis } => shape.axis(axis),
            Granularity::PerGroup { axis, size } => {
                let (outer, length, inner) = shape.around(axis)?;
                if size == 0 || !length.is_multiple_of(size) {
                    return Err(Error::Group { size, axis, length });
                }
                Ok(outer * (length / size) * inner)
            }
        }
    }

    /// Runs of neighbouring elements that share a scale: the range of flat indices, and the index of the scale.
    ///
    /// # Errors
    /// Those of [`Granularity::parameters`].
    pub fn runs(&self, shape: &Shape) -> Result<Runs> {
        self.parameters(shape)?;
        let elements = shape.elements();
        Ok(match *self {
            Granularity::PerTensor => Runs { elements, run: elements.max(1), at: 0, period: 1, group: 1, inner: 1 },
            Granularity::PerChannel { axis } => {
                let (_, length, inner) = shape.around(axis)?;
                Runs { elements, run: inner.max(1), at: 0, period: length.max(1), group: 1, inner: 1 }
            }
            Granularity::PerGroup { axis, size } => {
                let (_, _, inner) = shape.around(axis)?;
                // On the last axis a group is a run; on others every element has another scale than its neighbour, and
                // the scales repeat every `inner` elements for the `size` rows of a group.
                match inner {
                    1 => Runs { elements, run: size, at: 0, period: usize::MAX, group: 1, inner: 1 },
                    _ => Runs { elements, run: 1, at: 0, period: usize::MAX, group: size, inner },
                }
            }
        })
    }
}

/// Iterator over runs of elements that share a scale; see [`Granularity::runs`].
#[derive(Debug, Clone)]
pub struct Runs {
    elements: usize,
    run: usize,
    at: usize,
    period: usize,
    group: usize,
    inner: usize,
}

impl Iterator for Runs {
    type Item = (Range<usize>, usize);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.elements {
            return None;
        }
        let range = self.at..self.elements.min(self.at + self.run);
        let index = self.at / self.run;
        self.at = range.end;
        let parameter = match self.inner {
            1 => index % self.period,
            inner => index / (self.group * inner) * inner + index % inner,
        };
        Some((range, parameter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_element(granularity: Granularity, dims: &[usize]) -> Vec<usize> {
        let shape = Shape::new(dims).unwrap();
        let mut all = vec![usize::MAX; shape.elements()];
        for (range, parameter) in granularity.runs(&shape).unwrap() {
            all[range].fill(parameter);
        }
        assert!(all.iter().all(|&p| p < granularity.parameters(&shape).unwrap()));
        all
    }

    #[test]
    fn every_element_finds_its_scale() {
        assert_eq!(by_element(Granularity::PerTensor, &[2, 2]), [0; 4]);
        assert_eq!(by_element(Granularity::PerChannel { axis: 0 }, &[2, 3]), [0, 0, 0, 1, 1, 1]);
        assert_eq!(by_element(Granularity::PerChannel { axis: 1 }, &[2, 3]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(by_element(Granularity::PerChannel { axis: 1 }, &[2, 2, 2]), [0, 0, 1, 1, 0, 0, 1, 1]);
        assert_eq!(by_element(Granularity::PerGroup { axis: 1, size: 2 }, &[2, 4]), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(by_element(Granularity::PerGroup { axis: 0, size: 2 }, &[4, 3]), [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
        assert_eq!(by_element(Granularity::PerGroup { axis: 1, size: 2 }, &[2, 2, 2]), [0, 1, 0, 1, 2, 3, 2, 3]);
        assert_eq!(by_element(Granularity::PerChannel { axis: 0 }, &[0, 3]), [0usize; 0]);
    }

    #[test]
    fn axis_and_group_are_checked() {
        let shape = Shape::new([4, 6]).unwrap();
        assert!(matches!(Granularity::PerChannel { axis: 2 }.parameters(&shape), Err(Error::Axis { axis: 2, .. })));
        assert!(matches!(Granularity::PerGroup { axis: 1, size: 4 }.runs(&shape), Err(Error::Group { size: 4, length: 6, .. })));
        assert!(Granularity::PerGroup { axis: 1, size: 0 }.parameters(&shape).is_err());
    }
}
