//! Dense tensors: row-major, cheap to clone, copied only when a shared one is written to.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::{Shape, repeat};

mod sealed {
    pub trait Sealed {}
}

/// Element types of tensors and of the values on a model's edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// Truth value.
    Bool,
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit signed integer.
    I8,
}

impl DType {
    /// Its name, as in `f32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I8 => "i8",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bool | DType::U8 | DType::I8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type that a [`Tensor`] can hold. Sealed: `f32`, `i64`, `i32`, `bool`, `u8`, `i8`.
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Its tag.
    const DTYPE: DType;
    /// Wraps a tensor of this type.
    fn into_value(tensor: Tensor<Self>) -> Value;
    /// The tensor inside, when `value` holds this type.
    fn from_value(value: &Value) -> Option<&Tensor<Self>>;
}

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
        if data.len() != shape.elements() {
            return Err(Error::length(format!("data for a tensor of shape {shape:?}"), shape.elements(), data.len()));
        }
        Ok(Tensor { shape, data: Arc::new(data) })
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

/// A tensor of any element type: what travels along the edges of a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// 32-bit floats.
    F32(Tensor<f32>),
    /// 64-bit integers.
    I64(Tensor<i64>),
    /// 32-bit integers.
    I32(Tensor<i32>),
    /// Truth values.
    Bool(Tensor<bool>),
    /// 8-bit unsigned integers.
    U8(Tensor<u8>),
    /// 8-bit signed integers.
    I8(Tensor<i8>),
}

impl Value {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Value::F32(_) => DType::F32,
            Value::I64(_) => DType::I64,
            Value::I32(_) => DType::I32,
            Value::Bool(_) => DType::Bool,
            Value::U8(_) => DType::U8,
            Value::I8(_) => DType::I8,
        }
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        match self {
            Value::F32(t) => t.shape(),
            Value::I64(t) => t.shape(),
            Value::I32(t) => t.shape(),
            Value::Bool(t) => t.shape(),
            Value::U8(t) => t.shape(),
            Value::I8(t) => t.shape(),
        }
    }

    /// The tensor inside, when its elements are `T`.
    pub fn get<T: Element>(&self) -> Option<&Tensor<T>> {
        T::from_value(self)
    }

    /// Copies the elements of `other` into this value, which keeps its shape, if it has as many of the same type; says whether
    /// it did.
    pub(crate) fn copy_elements(&mut self, other: &Value) -> bool {
        fn copy<T: Element>(to: &mut Tensor<T>, from: &Tensor<T>) -> bool {
            let fits = to.len() == from.len();
            if fits {
                to.as_mut_slice().copy_from_slice(from.as_slice());
            }
            fits
        }
        match (self, other) {
            (Value::F32(to), Value::F32(from)) => copy(to, from),
            (Value::I64(to), Value::I64(from)) => copy(to, from),
            (Value::I32(to), Value::I32(from)) => copy(to, from),
            (Value::Bool(to), Value::Bool(from)) => copy(to, from),
            (Value::U8(to), Value::U8(from)) => copy(to, from),
            (Value::I8(to), Value::I8(from)) => copy(to, from),
            _ => false,
        }
    }
}

macro_rules! elements {
    ($($type:ty => $variant:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            fn into_value(tensor: Tensor<Self>) -> Value {
                Value::$variant(tensor)
            }
            fn from_value(value: &Value) -> Option<&Tensor<Self>> {
                match value {
                    Value::$variant(tensor) => Some(tensor),
                    _ => None,
                }
            }
        }
        impl From<Tensor<$type>> for Value {
            fn from(tensor: Tensor<$type>) -> Value {
                Value::$variant(tensor)
            }
        }
    )*};
}
elements!(f32 => F32, i64 => I64, i32 => I32, bool => Bool, u8 => U8, i8 => I8);

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
