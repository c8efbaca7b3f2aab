//! Which element types operators compute with, and how.

use std::borrow::Cow;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::kernels::rows::Real;
use crate::nn::view::{View, ViewMut};
use crate::num::{bf16, f16};
use crate::tensor::DType;

/// The elements of f32, f16 or bf16 as f32.
pub(super) fn in_f32<'a>(x: &View<'a>) -> Cow<'a, [f32]> {
    match x.dtype {
        DType::F16 => Cow::Owned(x.as_slice::<f16>().iter().map(|x| x.to_f32()).collect()),
        DType::Bf16 => Cow::Owned(x.as_slice::<bf16>().iter().map(|x| x.to_f32()).collect()),
        _ => Cow::Borrowed(x.f32()),
    }
}

/// The elements of f64, f32, f16 or bf16 as f64 or f32.
pub(super) fn in_real<'a, R: Real>(x: &View<'a>) -> Cow<'a, [R]> {
    match x.dtype {
        DType::F64 | DType::F32 if x.dtype.bytes() == size_of::<R>() => Cow::Borrowed(x.as_slice()),
        DType::F64 => Cow::Owned(x.as_slice::<f64>().iter().map(|&x| R::of(x)).collect()),
        _ => Cow::Owned(in_f32(x).iter().map(|&x| R::of(x.into())).collect()),
    }
}

/// Rounds to the output's type, f32, f64, f16 or bf16.
pub(super) fn from_f32(x: &[f32], y: &mut ViewMut<'_>) {
    from_reals(x.iter().map(|&x| x.into()), y);
}

/// [`from_f32`] of any numbers; to 16 bits by way of f32.
pub(super) fn from_reals(x: impl Iterator<Item = f64>, y: &mut ViewMut<'_>) {
    match y.dtype {
        DType::F16 => y.as_mut_slice::<f16>().iter_mut().zip(x).for_each(|(y, x)| *y = f16::from_f32(x as f32)),
        DType::Bf16 => y.as_mut_slice::<bf16>().iter_mut().zip(x).for_each(|(y, x)| *y = bf16::from_f32(x as f32)),
        DType::F64 => y.as_mut_slice::<f64>().iter_mut().zip(x).for_each(|(y, x)| *y = x),
        _ => y.f32().iter_mut().zip(x).for_each(|(y, x)| *y = x as f32),
    }
}

/// f32, f64, f16 or bf16.
pub(super) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16)
}

/// An integer of 8 to 64 bits.
pub(super) fn is_integer(dtype: DType) -> bool {
    dtype.is_integer() && dtype.bits() >= 8
}

/// [`is_float`] or [`is_integer`].
pub(super) fn is_number(dtype: DType) -> bool {
    is_float(dtype) || is_integer(dtype)
}

/// The type of input `i`, if `takes` accepts it.
///
/// # Errors
/// [`Error::Type`].
pub(super) fn check_type(
    operator: &str,
    inputs: &[Option<DType>],
    i: usize,
    expected: &'static str,
    takes: impl Fn(DType) -> bool,
) -> Result<DType> {
    let dtype = inputs[i].ok_or_else(|| Error::parameter("input", i, "was left out, and must be given"))?;
    if takes(dtype) {
        return Ok(dtype);
    }
    Err(Error::Type { what: format!("input {i} of {operator}"), expected, got: dtype.name() })
}

/// Arithmetic as numpy has it: integers wrap, 16-bit floats are computed in f32 and rounded once, NaN is passed on.
pub(super) trait Number: Pod + PartialOrd + PartialEq + Default + Send + Sync {
    /// Whether zero divides nothing.
    const IS_INTEGER: bool;
    /// Whether its loops are compiled for each function and instruction set: networks spend their time in f32.
    const VECTORS: bool = false;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// Integers towards zero.
    fn over(self, other: Self) -> Self;
    /// What a division towards zero leaves: of the sign of `self`.
    fn rest(self, other: Self) -> Self;
    /// What a division towards `-∞` leaves: of the sign of `other`.
    fn modulo(self, other: Self) -> Self;
    /// The nearest number of this type, integers cut off.
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // `self` is not itself when it is NaN, and NaN as `other` is not above it.
        #[allow(clippy::eq_op)]
        if self < other || self != self { self } else { other }
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        #[allow(clippy::eq_op)]
        if self > other || self != self { self } else { other }
    }
}

macro_rules! integers {
    ($($type:ty)*) => {
        $(impl Number for $type {
            const IS_INTEGER: bool = true;

            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            fn over(self, other: Self) -> Self {
                self.wrapping_div(other)
            }

            fn rest(self, other: Self) -> Self {
                self.wrapping_rem(other)
            }

            #[allow(unused_comparisons)]
            fn modulo(self, other: Self) -> Self {
                let rest = self.wrapping_rem(other);
                if rest != 0 && (rest < 0) != (other < 0) { rest + other } else { rest }
            }

            fn from_f64(x: f64) -> Self {
                x as $type
            }

            fn to_f64(self) -> f64 {
                self as f64
            }
        })*
    };
}
integers!(i8 i16 i32 i64 u8 u16 u32 u64);

macro_rules! floats {
    ($($type:ty, $wide:ty, $from:expr, $to:expr, $vectors:literal;)*) => {
        $(impl Number for $type {
            const IS_INTEGER: bool = false;
            const VECTORS: bool = $vectors;

            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                $from($to(self) + $to(other))
            }

            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                $from($to(self) - $to(other))
            }

            #[inline(always)]
            fn times(self, other: Self) -> Self {
                $from($to(self) * $to(other))
            }

            #[inline(always)]
            fn over(self, other: Self) -> Self {
                $from($to(self) / $to(other))
            }

            fn rest(self, other: Self) -> Self {
                $from($to(self) % $to(other))
            }

            fn modulo(self, other: Self) -> Self {
                let (x, y): ($wide, $wide) = ($to(self), $to(other));
                let rest = x % y;
                $from(match rest {
                    0.0 => rest.copysign(y),
                    _ if (rest < 0.0) != (y < 0.0) => rest + y,
                    _ => rest,
                })
            }

            fn from_f64(x: f64) -> Self {
                $from(x as $wide)
            }

            fn to_f64(self) -> f64 {
                f64::from($to(self))
            }
        })*
    };
}
floats! {
    f32, f32, std::convert::identity, std::convert::identity, true;
    f64, f64, std::convert::identity, std::convert::identity, false;
    f16, f32, f16::from_f32, f16::to_f32, false;
    bf16, f32, bf16::from_f32, bf16::to_f32, false;
}

/// Runs the body with `$number` being the type that a [`DType`] names, if it is one of [`is_number`]'s, else the last arm.
macro_rules! with_number {
    ($dtype:expr, $number:ident => $body:expr, _ => $other:expr) => {
        with_number!(@ $dtype, $number, $body, $other,
            F32(f32) F64(f64) F16($crate::num::f16) Bf16($crate::num::bf16)
            I64(i64) I32(i32) I16(i16) I8(i8) U64(u64) U32(u32) U16(u16) U8(u8))
    };
    (@ $dtype:expr, $number:ident, $body:expr, $other:expr, $($variant:ident($type:ty))*) => {
        match $dtype {
            $($crate::tensor::DType::$variant => {
                type $number = $type;
                $body
            })*
            _ => $other,
        }
    };
}

/// As [`with_number!`] for integers alone.
macro_rules! with_integer {
    ($dtype:expr, $number:ident => $body:expr, _ => $other:expr) => {
        with_number!(@ $dtype, $number, $body, $other,
            I64(i64) I32(i32) I16(i16) I8(i8) U64(u64) U32(u32) U16(u16) U8(u8))
    };
}

/// Runs the body on the elements of a view and of an output as `$real`: f64 for f64, f32 for all else, where 16-bit floats are
/// widened before and rounded after.
macro_rules! in_reals {
    ($x:expr, $y:expr, |$xs:ident, $ys:ident: $real:ident| $body:expr) => {
        match $x.dtype {
            $crate::tensor::DType::F64 => {
                type $real = f64;
                let ($xs, $ys): (&[f64], &mut [f64]) = ($x.as_slice(), $y.as_mut_slice());
                $body
            }
            $crate::tensor::DType::F32 => {
                type $real = f32;
                let ($xs, $ys): (&[f32], &mut [f32]) = ($x.f32(), $y.f32());
                $body
            }
            _ => {
                type $real = f32;
                let wide = $crate::nn::operator::numbers::in_f32(&$x);
                let mut result = vec![0f32; $y.bytes.len() / $y.dtype.bytes()];
                let done = {
                    let ($xs, $ys): (&[f32], &mut [f32]) = (&wide, &mut result);
                    $body
                };
                $crate::nn::operator::numbers::from_f32(&result, &mut $y);
                done
            }
        }
    };
}
pub(super) use {in_reals, with_integer, with_number};

/// What an operator says of a type that its inference let through and its run doesn't know: none, as both read one list.
pub(super) fn unexpected(operator: &str, dtype: DType) -> Error {
    Error::Type { what: format!("input of {operator}"), expected: "a type that its inference accepts", got: dtype.name() }
}

/// The type of all inputs, which must be one that `takes` accepts.
///
/// # Errors
/// [`Error::Type`].
pub(super) fn check_same(operator: &str, inputs: &[Option<DType>], expected: &'static str, takes: impl Fn(DType) -> bool) -> Result<DType> {
    let first = check_type(operator, inputs, 0, expected, &takes)?;
    for i in 1..inputs.len() {
        check_type(operator, inputs, i, first.name(), |dtype| dtype == first)?;
    }
    Ok(first)
}
