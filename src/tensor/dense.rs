//! Dense tensors: row-major, cheap to clone, copied only when a shared one is written to.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::{Element, Shape, repeat};

/// A tensor of elements `T` (`f32` unless said otherwise): row-major, immutable through clones, which share its data.
///
/// ```
/// use lowprec::Tensor;
/// let x = Tensor::new([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(x.dims(), [2, 3]);
/// assert_eq!(x.as_slice()[4], 5.0);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Tensor<T: Element = f32> {
    shape: Shape,
    data: Arc<Vec<T>>,
}

impl<T: Element> Tensor<T> {
    /// A tensor of shape `dims` over `data` in row-major order.
    ///
    /// # Errors
    /// [`Error::Length`] when `data` has not as many elements as the shape, [`Error::ShapeOverflow`].
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<T>) -> Result<Self> {
        Tensor::from_shape(Shape::new(dims)?, data)
    }

    /// As [`Tensor::new`], for a shape that was checked before.
    ///
    /// # Errors
    /// [`Error::Length`] when `data` has not as many elements as the shape.
    pub fn from_shape(shape: Shape, data: Vec<T>) -> Result<Self> {
        Tensor::from_shared(shape, Arc::new(data))
    }

    /// As [`Tensor::from_shape`], over data that may be shared.
    pub(crate) fn from_shared(shape: Shape, data: Arc<Vec<T>>) -> Result<Self> {
        if data.len() != shape.elements() {
            return Err(Error::length(format!("data for a tensor of shape {shape:?}"), shape.elements(), data.len()));
        }
        Ok(Tensor { shape, data })
    }

    /// A tensor whose elements are all `value`.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], also for more elements than memory holds.
    pub fn full(dims: impl Into<Vec<usize>>, value: T) -> Result<Self> {
        let shape = Shape::new(dims)?;
        let data = Arc::new(repeat(value, shape.elements(), shape.dims())?);
        Ok(Tensor { shape, data })
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Axis lengths, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements in row-major order.
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// The elements for writing; they are copied first when a clone shares them.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let data: &mut Vec<T> = Arc::make_mut(&mut self.data);
        data
    }

    /// The elements, without a copy when no clone shares them.
    pub fn into_vec(self) -> Vec<T> {
        Arc::try_unwrap(self.data).unwrap_or_else(|shared| shared.to_vec())
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::Length`] when the numbers of elements differ, [`Error::ShapeOverflow`].
    pub fn reshape(&self, dims: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = Shape::new(dims)?;
        if shape.elements() != self.len() {
            return Err(Error::length(
                format!("tensor of shape {:?} to be reshaped to {shape:?}", self.shape),
                shape.elements(),
                self.len(),
            ));
        }
        Ok(Tensor { shape, data: self.data.clone() })
    }

    /// A copy of the entries `range` of `axis`.
    ///
    /// # Errors
    /// [`Error::Axis`] when there is no such axis, [`Error::Parameter`] when the range leaves it.
    pub fn slice(&self, axis: usize, range: std::ops::Range<usize>) -> Result<Self> {
        let (outer, length, inner) = self.shape.around(axis)?;
        if range.start > range.end || range.end > length {
            return Err(Error::parameter("slice", range, format!("must lie within 0..{length}, the length of axis {axis}")));
        }
        let shape = self.shape.with_axis(axis, range.len())?;
        let mut data = Vec::with_capacity(shape.elements());
        for o in 0..outer {
            data.extend_from_slice(&self.data[(o * length + range.start) * inner..(o * length + range.end) * inner]);
        }
        Ok(Tensor { shape, data: Arc::new(data) })
    }
}

impl<T: Element> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "Tensor<{}>{:?} {:?}", T::DTYPE, self.shape, &self.data[..self.len().min(SHOWN)])?;
        if self.len() > SHOWN { f.write_str("…") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_until_written() {
        let a = Tensor::new([2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let mut b = a.clone();
        assert!(std::ptr::eq(a.as_slice(), b.as_slice()));
        b.as_mut_slice()[0] = 9.0;
        assert_eq!((a.as_slice()[0], b.as_slice()[0]), (1.0, 9.0));
    }

    #[test]
    fn slices_along_every_axis() {
        let t = Tensor::new([2, 3, 2], (0..12).collect::<Vec<i32>>()).unwrap();
        assert_eq!(t.slice(1, 1..3).unwrap().as_slice(), [2, 3, 4, 5, 8, 9, 10, 11]);
        assert_eq!(t.slice(0, 1..2).unwrap().dims(), [1, 3, 2]);
        assert!(t.slice(1, 2..4).is_err());
        assert!(t.slice(3, 0..1).is_err());
    }
}
