//! The types that codes are stored in, sub-byte ones truly packed.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use num_traits::PrimInt;

mod sealed {
    pub trait Sealed {}
}

/// A type of integer code and how it is stored. Sealed: [`i8`], [`u8`], [`i16`], [`i32`], and [`I4`], [`U4`], [`I2`],
/// [`U2`], of which a byte holds two or four, the first in the lowest bits.
///
/// ```
/// use lowprec::num::{I4, QuantElem};
/// let mut stored = vec![0u8; I4::storage_len(3)];
/// for (i, code) in [-8, 7, -1].into_iter().enumerate() {
///     I4::set(&mut stored, i, code);
/// }
/// assert_eq!(stored, [0x78, 0x0f]);
/// assert_eq!(I4::get(&stored, 2), -1);
/// ```
pub trait QuantElem: sealed::Sealed + Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// What an array of codes is made of: the type itself, or bytes that hold several codes each.
    type Storage: Pod + fmt::Debug + PartialEq + Send + Sync;
    /// Bits of one code.
    const BITS: u32;
    /// Smallest code.
    const QMIN: i32;
    /// Largest code.
    const QMAX: i32;
    /// Its name, as in `i4`.
    const NAME: &'static str;
    /// Codes in one unit of storage.
    const CODES_PER_UNIT: usize;

    /// Units that hold so many codes; unused bits of the last one are zero.
    fn storage_len(codes: usize) -> usize {
        codes.div_ceil(Self::CODES_PER_UNIT)
    }

    /// The code of that index.
    ///
    /// # Panics
    /// When the index lies beyond the storage.
    fn get(storage: &[Self::Storage], index: usize) -> i32;

    /// Stores a code, which must lie in `QMIN..=QMAX`: of any other its low bits are kept.
    ///
    /// # Panics
    /// When the index lies beyond the storage.
    fn set(storage: &mut [Self::Storage], index: usize, code: i32);

    /// The storage as signed bytes, for [`i8`].
    fn as_i8(storage: &[Self::Storage]) -> Option<&[i8]> {
        let _ = storage;
        None
    }

    /// The storage as unsigned bytes, for [`u8`].
    fn as_u8(storage: &[Self::Storage]) -> Option<&[u8]> {
        let _ = storage;
        None
    }

    /// As [`QuantElem::as_i8`], for writing.
    fn as_i8_mut(storage: &mut [Self::Storage]) -> Option<&mut [i8]> {
        let _ = storage;
        None
    }

    /// As [`QuantElem::as_u8`], for writing.
    fn as_u8_mut(storage: &mut [Self::Storage]) -> Option<&mut [u8]> {
        let _ = storage;
        None
    }
}

macro_rules! whole {
    ($($type:ty, $name:literal, $min:expr, $max:expr $(, $cast:ident, $cast_mut:ident)?;)*) => {$(
        impl sealed::Sealed for $type {}
        impl QuantElem for $type {
            type Storage = $type;
            const BITS: u32 = <$type>::BITS;
            const QMIN: i32 = $min;
            const QMAX: i32 = $max;
            const NAME: &'static str = $name;
            const CODES_PER_UNIT: usize = 1;

            #[inline]
            fn get(storage: &[$type], index: usize) -> i32 {
                i32::from(storage[index])
            }

            #[inline]
            fn set(storage: &mut [$type], index: usize, code: i32) {
                storage[index] = code as $type;
            }

            $(fn $cast(storage: &[$type]) -> Option<&[$type]> {
                Some(storage)
            }

            fn $cast_mut(storage: &mut [$type]) -> Option<&mut [$type]> {
                Some(storage)
            })?
        }
    )*};
}
whole! {
    i8, "i8", -128, 127, as_i8, as_i8_mut;
    u8, "u8", 0, 255, as_u8, as_u8_mut;
    i16, "i16", -32768, 32767;
    i32, "i32", i32::MIN, i32::MAX;
}

/// `bits` bits of a byte at `shift`, as an unsigned or sign-extended number.
#[inline]
fn field<T: PrimInt>(byte: T, shift: usize, bits: usize) -> T {
    // Up to the top, then down again: an arithmetic shift for signed `T`, a logical one for unsigned.
    (byte << (8 - bits - shift)) >> (8 - bits)
}

macro_rules! packed {
    ($($type:ident, $name:literal, $bits:literal, $byte:ty, $doc:literal;)*) => {$(
        #[doc = $doc]
        ///
        /// A value of this type is one code in a byte of its own.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $type($byte);

        impl $type {
            /// This code, if the type has it.
            pub fn new(code: $byte) -> Option<Self> {
                (Self::QMIN..=Self::QMAX).contains(&i32::from(code)).then_some($type(code))
            }

            /// The type's code in the low bits of `bits`; the others are not looked at.
            pub fn from_low_bits(bits: u8) -> Self {
                $type(field(bits as $byte, 0, $bits))
            }

            /// The code.
            pub fn code(self) -> $byte {
                self.0
            }
        }

        impl sealed::Sealed for $type {}
        impl QuantElem for $type {
            type Storage = u8;
            const BITS: u32 = $bits;
            const QMIN: i32 = (<$byte>::MIN >> (8 - $bits)) as i32;
            const QMAX: i32 = (<$byte>::MAX >> (8 - $bits)) as i32;
            const NAME: &'static str = $name;
            const CODES_PER_UNIT: usize = 8 / $bits;

            #[inline]
            fn get(storage: &[u8], index: usize) -> i32 {
                let shift = index % Self::CODES_PER_UNIT * $bits;
                i32::from(field(storage[index / Self::CODES_PER_UNIT] as $byte, shift, $bits))
            }

            #[inline]
            fn set(storage: &mut [u8], index: usize, code: i32) {
                const MASK: u8 = (1 << $bits) - 1;
                let shift = index % Self::CODES_PER_UNIT * $bits;
                let unit = &mut storage[index / Self::CODES_PER_UNIT];
                *unit = *unit & !(MASK << shift) | (code as u8 & MASK) << shift;
            }
        }
    )*};
}
packed! {
    I4, "i4", 4, i8, "Signed 4-bit codes, -8 to 7, two a byte in an array of codes.";
    U4, "u4", 4, u8, "Unsigned 4-bit codes, 0 to 15, two a byte in an array of codes.";
    I2, "i2", 2, i8, "Signed 2-bit codes, -2 to 1, four a byte in an array of codes.";
    U2, "u2", 2, u8, "Unsigned 2-bit codes, 0 to 3, four a byte in an array of codes.";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_code<T: QuantElem>(min: i32, max: i32) {
        assert_eq!((T::QMIN, T::QMAX), (min, max), "{}", T::NAME);
        // Every code at every position of a unit, beside neighbours of all zeros and all ones.
        for background in [T::QMIN, T::QMAX] {
            for position in 0..2 * T::CODES_PER_UNIT + 1 {
                let codes = 3 * T::CODES_PER_UNIT;
                let mut storage = vec![bytemuck::Zeroable::zeroed(); T::storage_len(codes)];
                (0..codes).for_each(|i| T::set(&mut storage, i, background));
                let step = (T::BITS > 8) as i64 * 257 + 1;
                for code in (i64::from(min)..=i64::from(max)).step_by(if T::BITS == 32 { 1 << 24 } else { step as usize }) {
                    T::set(&mut storage, position, code as i32);
                    for i in 0..codes {
                        let expected = if i == position { code as i32 } else { background };
                        assert_eq!(T::get(&storage, i), expected, "{} code {code} at {position}", T::NAME);
                    }
                }
            }
        }
    }

    #[test]
    fn every_code_comes_back() {
        every_code::<i8>(-128, 127);
        every_code::<u8>(0, 255);
        every_code::<i16>(-32768, 32767);
        every_code::<i32>(i32::MIN, i32::MAX);
        every_code::<I4>(-8, 7);
        every_code::<U4>(0, 15);
        every_code::<I2>(-2, 1);
        every_code::<U2>(0, 3);
    }

    #[test]
    fn codes_in_bytes_of_their_own() {
        assert_eq!((I4::new(-8).unwrap().code(), I4::new(8), I4::new(-9)), (-8, None, None));
        assert_eq!((U2::new(3).unwrap().code(), U2::new(4)), (3, None));
        for bits in 0..=255u8 {
            assert_eq!(i32::from(I4::from_low_bits(bits).code()), I4::get(&[bits], 0));
            assert_eq!(i32::from(U4::from_low_bits(bits).code()), U4::get(&[bits], 0));
            assert_eq!(i32::from(I2::from_low_bits(bits).code()), I2::get(&[bits], 0));
            assert_eq!(i32::from(U2::from_low_bits(bits).code()), U2::get(&[bits], 0));
        }
    }

    #[test]
    fn sub_byte_codes_share_bytes() {
        assert_eq!((I4::storage_len(5), U2::storage_len(5), i8::storage_len(5)), (3, 2, 5));
        assert_eq!(I2::storage_len(0), 0);
    }
}
