//! Shapes with checked products.

use std::fmt;

use crate::error::{Error, Result};

/// The lengths of a tensor's axes, outermost first, with a number of elements that is known to fit `usize`.
///
/// The empty shape is a scalar (one element); an axis of length 0 makes an empty tensor.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: Vec<usize>,
    elements: usize,
}

impl Shape {
    /// A shape of these axis lengths.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] when their product does not fit `isize`, the most that an allocation can hold.
    pub fn new(dims: impl Into<Vec<usize>>) -> Result<Self> {
        let dims = dims.into();
        Ok(Shape { elements: elements(&dims)?, dims })
    }

    /// Axis lengths, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Length of `axis`.
    ///
    /// # Errors
    /// [`Error::Axis`] when there is no such axis.
    pub fn axis(&self, axis: usize) -> Result<usize> {
        self.dims.get(axis).copied().ok_or_else(|| Error::Axis { axis, shape: self.dims.clone() })
    }

    /// Splits the shape at `axis` into (product of the axes before, its length, product of the axes after): the
    /// element `(outer, i, inner)` stands at `(outer * length + i) * inner_product + inner` in row-major order.
    ///
    /// # Errors
    /// [`Error::Axis`] when there is no such axis.
    pub fn around(&self, axis: usize) -> Result<(usize, usize, usize)> {
        let length = self.axis(axis)?;
        Ok((self.dims[..axis].iter().product(), length, self.dims[axis + 1..].iter().product()))
    }

    /// This shape with `axis` set to `length`.
    ///
    /// # Errors
    /// [`Error::Axis`] when there is no such axis, [`Error::ShapeOverflow`] when it grows too large.
    pub fn with_axis(&self, axis: usize, length: usize) -> Result<Self> {
        self.axis(axis)?;
        let mut dims = self.dims.clone();
        dims[axis] = length;
        Shape::new(dims)
    }
}

/// Number of elements of a shape of these axis lengths, of which any product then fits: for slices whose shape comes from
/// outside, without allocating one.
///
/// # Errors
/// [`Error::ShapeOverflow`], as for [`Shape::new`].
pub(crate) fn elements(dims: &[usize]) -> Result<usize> {
    // Zero anywhere makes the product zero, but the others must still be addressable: strides are built from them.
    let product = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d.max(1)));
    match product {
        Some(product) if isize::try_from(product).is_ok() => Ok(if dims.contains(&0) { 0 } else { product }),
        _ => Err(Error::ShapeOverflow { shape: dims.to_vec() }),
    }
}

/// `length` times `value`, where no data stands behind `length` (the scales of one axis beside another of length 0), so that
/// it may be more than this machine can hold.
///
/// # Errors
/// [`Error::ShapeOverflow`] when it can't hold them.
pub(crate) fn repeat<T: Clone>(value: T, length: usize, shape: &[usize]) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(length).map_err(|_| Error::ShapeOverflow { shape: shape.to_vec() })?;
    list.resize(length, value);
    Ok(list)
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dims.fmt(f)
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = Error;
    fn try_from(dims: &[usize]) -> Result<Self> {
        Shape::new(dims)
    }
}

impl<const N: usize> TryFrom<[usize; N]> for Shape {
    type Error = Error;
    fn try_from(dims: [usize; N]) -> Result<Self> {
        Shape::new(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_checked() {
        assert_eq!(Shape::new([2, 3, 4]).unwrap().elements(), 24);
        assert_eq!(Shape::new(Vec::new()).unwrap().elements(), 1);
        assert_eq!(Shape::new([2, 0, 4]).unwrap().elements(), 0);
        for dims in [vec![usize::MAX, 2], vec![usize::MAX], vec![0, usize::MAX, usize::MAX]] {
            assert!(matches!(Shape::new(dims), Err(Error::ShapeOverflow { .. })));
        }
    }

    #[test]
    fn around_splits_at_the_axis() {
        let shape = Shape::new([2, 3, 4]).unwrap();
        assert_eq!(shape.around(1).unwrap(), (2, 3, 4));
        assert_eq!(shape.around(0).unwrap(), (1, 2, 12));
        assert!(matches!(shape.around(3), Err(Error::Axis { axis: 3, .. })));
    }
}
