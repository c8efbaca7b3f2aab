//! Tensors whose element type is known when they come.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Shape, Tensor, Value, with_element, with_tensor};

impl From<&Value> for Value {
    fn from(value: &Value) -> Value {
        value.clone()
    }
}

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

    /// A value of elements as files hold them: [`DType::bits`] for each, the first in the lowest bits, little-endian. Bits left
    /// over in the last byte are not looked at.
    ///
    /// # Errors
    /// Those of [`Value::from_bytes`].
    pub fn from_packed(dtype: DType, shape: Shape, packed: &[u8]) -> Result<Value> {
        let bits = dtype.bits();
        if bits < 8 {
            let elements = shape.elements();
            let expected = packed_bytes(elements, bits).ok_or_else(|| Error::ShapeOverflow { shape: shape.dims().to_vec() })?;
            if packed.len() != expected {
                return Err(Error::length(format!("list of bytes for {dtype} of shape {shape:?}"), expected, packed.len()));
            }
            Value::from_bytes(dtype, shape, &unpack(packed, elements, bits, dtype.is_integer() && dtype.is_signed()))
        } else if cfg!(target_endian = "big") {
            Value::from_bytes(dtype, shape, &swapped(packed, dtype.bytes()))
        } else {
            Value::from_bytes(dtype, shape, packed)
        }
    }

    /// The elements as [`Value::from_packed`] takes them; bits left over in the last byte are 0. A copy only where they don't
    /// lie in memory like that.
    pub fn to_packed(&self) -> Cow<'_, [u8]> {
        let (dtype, bytes) = (self.dtype(), self.bytes());
        if dtype.bits() < 8 {
            pack(bytes, dtype.bits()).into()
        } else if cfg!(target_endian = "big") {
            swapped(bytes, dtype.bytes()).into()
        } else {
            bytes.into()
        }
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

    /// Those at `range` along an axis, copied.
    ///
    /// # Errors
    /// Those of [`Tensor::slice`].
    pub fn slice(&self, axis: usize, range: std::ops::Range<usize>) -> Result<Value> {
        with_tensor!(self, t => t.slice(axis, range).map(Element::into_value))
    }

    /// The same elements under another shape, which share their memory.
    ///
    /// # Errors
    /// Those of [`Tensor::reshape`].
    pub fn reshape(&self, dims: impl Into<Vec<usize>>) -> Result<Value> {
        with_tensor!(self, t => t.reshape(dims).map(Element::into_value))
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

fn packed_bytes(elements: usize, bits: usize) -> Option<usize> {
    Some(elements.checked_mul(bits)?.div_ceil(8))
}

/// The codes of so many `bits` each (below 8) in a stream that starts at the lowest bits, each in a byte, with the sign's bits
/// above it if they are `signed`.
fn unpack(packed: &[u8], elements: usize, bits: usize, signed: bool) -> Vec<u8> {
    let (mut bytes, mut stream, mut held) = (packed.iter(), 0u16, 0);
    let code = || {
        if held < bits {
            stream |= u16::from(bytes.next().copied().unwrap_or(0)) << held;
            held += 8;
        }
        // To the top of a byte, which drops the codes that follow, and down again.
        let top = (stream as u8) << (8 - bits);
        (stream, held) = (stream >> bits, held - bits);
        if signed { (top as i8 >> (8 - bits)) as u8 } else { top >> (8 - bits) }
    };
    std::iter::repeat_with(code).take(elements).collect()
}

fn pack(codes: &[u8], bits: usize) -> Vec<u8> {
    let mut packed = Vec::with_capacity((codes.len() * bits).div_ceil(8));
    let (mut stream, mut held) = (0u16, 0);
    for &code in codes {
        stream |= u16::from(code & (u8::MAX >> (8 - bits))) << held;
        held += bits;
        if held >= 8 {
            packed.push(stream as u8);
            (stream, held) = (stream >> 8, held - 8);
        }
    }
    if held > 0 {
        packed.push(stream as u8);
    }
    packed
}

fn swapped(bytes: &[u8], size: usize) -> Vec<u8> {
    bytes.chunks(size).flat_map(|element| element.iter().rev().copied()).collect()
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
            other.copy_from_bytes(value.bytes()).unwrap();
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
    fn small_elements_share_bytes_when_packed() {
        let shape = || Shape::new([5]).unwrap();
        let cases: [(DType, &[u8], &[u8]); 5] = [
            (DType::U4, &[1, 2, 3, 15, 7], &[0x21, 0xf3, 0x07]),
            (DType::I4, &[0xf8, 7, 0xff, 0, 1], &[0x78, 0x0f, 0x01]),
            (DType::U2, &[0, 1, 2, 3, 2], &[0b11_10_01_00, 0b10]),
            (DType::I2, &[0xfe, 0xff, 0, 1, 0xff], &[0b01_00_11_10, 0b11]),
            // x0 | x1 << 6, x1 >> 2 | x2 << 4, x2 >> 4 | x3 << 2
            (DType::F6E2M3, &[0x01, 0x23, 0x3f, 0x15, 0x2a], &[0xc1, 0xf8, 0x57, 0x2a]),
        ];
        for (dtype, bytes, packed) in cases {
            let value = Value::from_packed(dtype, shape(), packed).unwrap();
            assert_eq!(value.bytes(), bytes, "{dtype}");
            assert_eq!(value.to_packed(), packed, "{dtype}");
            let mut spare = packed.to_vec();
            *spare.last_mut().unwrap() |= 0xc0;
            assert_eq!(Value::from_packed(dtype, shape(), &spare).unwrap(), value, "{dtype}");
            let long = Value::from_packed(dtype, shape(), &[packed, &[0]].concat());
            assert!(matches!(long, Err(Error::Length { .. })), "{dtype}: {long:?}");
        }
        let wide = Value::from_packed(DType::I16, shape(), &[1, 0, 0xfe, 0xff, 3, 0, 0, 1, 5, 0]).unwrap();
        assert_eq!(wide.get::<i16>().unwrap().as_slice(), [1, -2, 3, 256, 5]);
        assert_eq!(*wide.to_packed(), [1, 0, 0xfe, 0xff, 3, 0, 0, 1, 5, 0]);
        assert_eq!(swapped(&[1, 2, 3, 4], 2), [2, 1, 4, 3]);
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
    fn literals_become_f32() {
        assert_eq!(Value::from(Tensor::new([1], vec![0.5]).unwrap()).dtype(), DType::F32);
        assert_eq!(f64::into_value(Tensor::new([1], vec![0.5]).unwrap()).dtype(), DType::F64);
    }

    #[test]
    fn kinds_of_types() {
        let names = |holds: fn(DType) -> bool| DType::ALL.iter().filter(|&&d| holds(d)).map(|d| d.name()).collect::<Vec<_>>();
        assert_eq!(names(DType::is_integer), ["i64", "i32", "i16", "i8", "i4", "i2", "u64", "u32", "u16", "u8", "u4", "u2"]);
        assert_eq!(names(|d| !d.is_signed()), ["f8e8m0", "u64", "u32", "u16", "u8", "u4", "u2", "bool"]);
        assert_eq!(names(|d| !d.is_float() && !d.is_integer()), ["bool"]);
    }
}
