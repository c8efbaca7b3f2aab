//! Tensors whose element type is known when they come.

use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Shape, Tensor, Value, with_element, with_tensor};

impl Value {
    /// A value whose elements are all zero (false).
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] for more elements than memory holds.
    pub fn zeros(dtype: DType, shape: Shape) -> Result<Value> {
        with_element!(dtype, T => zeroed::<T>(shape).map(T::into_value))
    }

    /// A value of the elements whose bytes these are, in this machine's byte order, each element in whole bytes. They need no
    /// alignment.
    ///
    /// # Errors
    /// [`Error::Length`] when the bytes are not those of so many elements, [`Error::Code`] for a truth value that is neither 0
    /// nor 1 and for a code beyond the bits of its type, [`Error::ShapeOverflow`] when memory refuses.
    pub fn from_bytes(dtype: DType, shape: Shape, bytes: &[u8]) -> Result<Value> {
        // Nothing is allocated that the bytes can't fill.
        check_length(dtype, &shape, bytes)?;
        let mut value = Value::zeros(dtype, shape)?;
        value.copy_from_bytes(bytes)?;
        Ok(value)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        fn of<T: Element>(_: &Tensor<T>) -> DType {
            T::DTYPE
        }
        with_tensor!(self, t => of(t))
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        with_tensor!(self, t => t.shape())
    }

    /// The tensor inside, when its elements are `T`.
    pub fn get<T: Element>(&self) -> Option<&Tensor<T>> {
        T::from_value(self)
    }

    /// As [`Value::get`], for writing.
    pub fn get_mut<T: Element>(&mut self) -> Option<&mut Tensor<T>> {
        T::from_value_mut(self)
    }

    /// The elements as they lie in memory, in this machine's byte order: [`DType::bytes`] for each, truth values as 0 and 1.
    pub fn bytes(&self) -> &[u8] {
        with_tensor!(self, t => bytemuck::cast_slice(t.as_slice()))
    }

    /// The same elements under another shape, which share their memory.
    ///
    /// # Errors
    /// Those of [`Tensor::reshape`].
    pub fn reshape(&self, dims: impl Into<Vec<usize>>) -> Result<Value> {
        with_tensor!(self, t => t.reshape(dims).map(Value::from))
    }

    /// Copies the elements of `other` into this value, which keeps its shape, if it has as many of the same type; says whether
    /// it did.
    pub(crate) fn copy_elements(&mut self, other: &Value) -> bool {
        fn copy<T: Element>(to: &mut Tensor<T>, from: &Value) -> bool {
            match from.get::<T>() {
                Some(from) if to.len() == from.len() => {
                    to.as_mut_slice().copy_from_slice(from.as_slice());
                    true
                }
                _ => false,
            }
        }
        with_tensor!(self, to => copy(to, other))
    }

    /// Overwrites the elements with those of these bytes; elements that a clone shares are left to it. After an error they
    /// are what they were.
    ///
    /// # Errors
    /// Those of [`Value::from_bytes`].
    pub fn copy_from_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        fn copy<T: Element>(to: &mut Tensor<T>, bytes: &[u8]) -> Result<()> {
            T::copy_bytes(to.as_mut_slice(), bytes).map_err(|e| Error::Code {
                index: e.index,
                value: e.value,
                qmin: e.bounds.0,
                qmax: e.bounds.1,
            })
        }
        check_length(self.dtype(), self.shape(), bytes)?;
        with_tensor!(self, to => copy(to, bytes))
    }
}

fn check_length(dtype: DType, shape: &Shape, bytes: &[u8]) -> Result<()> {
    match shape.elements().checked_mul(dtype.bytes()) {
        Some(expected) if expected == bytes.len() => Ok(()),
        Some(expected) => Err(Error::length(format!("list of bytes for {dtype} of shape {shape:?}"), expected, bytes.len())),
        None => Err(Error::ShapeOverflow { shape: shape.dims().to_vec() }),
    }
}

fn zeroed<T: Element>(shape: Shape) -> Result<Tensor<T>> {
    let data = bytemuck::try_zeroed_vec(shape.elements()).map_err(|()| Error::ShapeOverflow { shape: shape.dims().to_vec() })?;
    Tensor::from_shape(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{F4E2M1, I4, SmallFloat};

    #[test]
    fn bytes_there_and_back_in_every_type() {
        for &dtype in DType::ALL {
            let shape = Shape::new([3, 2]).unwrap();
            // Bytes that every type takes: the codes 0 and 1.
            let bytes: Vec<u8> = (0..6 * dtype.bytes()).map(|i| (i % 3 == 1).into()).collect();
            let value = Value::from_bytes(dtype, shape.clone(), &bytes).unwrap();
            assert_eq!((value.dtype(), value.shape(), value.bytes()), (dtype, &shape, bytes.as_slice()));
            let mut other = Value::zeros(dtype, shape.clone()).unwrap();
            assert!(other.bytes().iter().all(|&byte| byte == 0) && other.bytes().len() == bytes.len());
            assert_ne!(other, value);
            assert!(other.copy_elements(&value));
            assert_eq!(other.bytes(), value.bytes());
            assert_eq!(value.reshape([6]).unwrap().bytes().as_ptr(), value.bytes().as_ptr());
            let short = Value::from_bytes(dtype, shape, &bytes[1..]);
            assert!(matches!(short, Err(Error::Length { .. })), "{dtype}: {short:?}");
            assert!(dtype.bits() <= 8 * dtype.bytes() && (dtype.bits() > 4 * dtype.bytes() || dtype.bytes() == 1));
        }
    }

    #[test]
    fn bytes_that_are_no_element_are_refused() {
        for &dtype in DType::ALL.iter().filter(|dtype| dtype.bytes() == 1) {
            for byte in 0..=255 {
                let value = Value::from_bytes(dtype, Shape::new([2]).unwrap(), &[0, byte]);
                let (low, signed) = (byte << (8 - dtype.bits()), dtype.is_integer() && dtype.is_signed());
                let same = if signed { ((low as i8) >> (8 - dtype.bits())) as u8 } else { low >> (8 - dtype.bits()) };
                if if dtype == DType::Bool { byte < 2 } else { same == byte } {
                    assert_eq!(value.unwrap().bytes(), [0, byte]);
                } else {
                    assert!(matches!(value, Err(Error::Code { index: 1, .. })), "{dtype} {byte}: {value:?}");
                }
            }
        }
        let mut kept = Value::from(Tensor::new([2], vec![I4::new(-8).unwrap(), I4::new(7).unwrap()]).unwrap());
        assert!(kept.copy_from_bytes(&[3, 8]).is_err());
        assert_eq!(kept.bytes(), [248, 7]);
    }

    #[test]
    fn writing_leaves_clones_alone() {
        let mut a = Value::from(Tensor::full([2], F4E2M1::from_f32(1.5, true)).unwrap());
        let b = a.clone();
        a.copy_from_bytes(&[0, 15]).unwrap();
        assert_eq!(b.get::<F4E2M1>().unwrap().as_slice()[1].to_f32(), 1.5);
        assert_eq!(a.get::<F4E2M1>().unwrap().as_slice()[1].to_f32(), -6.0);
        a.get_mut::<F4E2M1>().unwrap().as_mut_slice()[0] = F4E2M1::from_f32(4.0, true);
        assert_eq!(a.bytes(), [6, 15]);
    }

    #[test]
    fn what_memory_refuses_is_an_error() {
        let endless = Shape::new([isize::MAX as usize]).unwrap();
        assert!(matches!(Value::zeros(DType::F64, endless.clone()), Err(Error::ShapeOverflow { .. })));
        assert!(matches!(Value::from_bytes(DType::F64, endless, &[]), Err(Error::ShapeOverflow { .. })));
    }

    #[test]
    fn kinds_of_types() {
        let names = |holds: fn(DType) -> bool| DType::ALL.iter().filter(|&&d| holds(d)).map(|d| d.name()).collect::<Vec<_>>();
        assert_eq!(names(DType::is_integer), ["i64", "i32", "i16", "i8", "i4", "i2", "u64", "u32", "u16", "u8", "u4", "u2"]);
        assert_eq!(names(|d| !d.is_signed()), ["f8e8m0", "u64", "u32", "u16", "u8", "u4", "u2", "bool"]);
        assert_eq!(names(|d| !d.is_float() && !d.is_integer()), ["bool"]);
    }
}
