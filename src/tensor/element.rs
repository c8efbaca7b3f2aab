//! Element types: one list, and what follows from it.

use std::fmt;

use crate::tensor::Tensor;

pub(super) mod sealed {
    /// How bytes become elements.
    pub trait Storage: Sized {
        /// Copies the bytes of as many elements, in this machine's order, and says where the first stands that is none.
        fn copy_bytes(elements: &mut [Self], bytes: &[u8]) -> Result<(), Refused>;
    }

    /// A byte that is no element: its index, its value, and the bounds that it leaves.
    #[derive(Debug)]
    pub struct Refused {
        pub index: usize,
        pub value: i32,
        pub bounds: (i32, i32),
    }
}
use sealed::{Refused, Storage};

/// A type that a [`Tensor`] can hold. Sealed: the types that [`DType`] names.
pub trait Element: Storage + bytemuck::NoUninit + bytemuck::Zeroable + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Its tag.
    const DTYPE: DType;
    /// Wraps a tensor of this type. `Value::from` does the same for all types but `f64`, so that literals become `f32`.
    fn into_value(tensor: Tensor<Self>) -> Value;
    /// The tensor inside, when `value` holds this type.
    fn from_value(value: &Value) -> Option<&Tensor<Self>>;
    /// As [`Element::from_value`], for writing.
    fn from_value_mut(value: &mut Value) -> Option<&mut Tensor<Self>>;
}

/// What the numbers of a type are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Float,
    Double,
    Signed,
    Unsigned,
    Truth,
}

macro_rules! storage {
    (Truth $type:ty, $min:literal, $max:literal) => {
        impl Storage for $type {
            fn copy_bytes(elements: &mut [$type], bytes: &[u8]) -> Result<(), Refused> {
                refuse(bytes.iter().map(|&byte| i32::from(byte)), ($min, $max))?;
                elements.iter_mut().zip(bytes).for_each(|(element, &byte)| *element = byte != 0);
                Ok(())
            }
        }
    };
    ($kind:ident $type:ty $(, $min:literal, $max:literal)?) => {
        impl Storage for $type {
            fn copy_bytes(elements: &mut [$type], bytes: &[u8]) -> Result<(), Refused> {
                // Only a type with a bound below zero has bytes with a sign.
                $(refuse(bytes.iter().map(|&byte| if $min < 0 { i32::from(byte as i8) } else { i32::from(byte) }), ($min, $max))?;)?
                bytemuck::cast_slice_mut(elements).copy_from_slice(bytes);
                Ok(())
            }
        }
    };
}

macro_rules! from {
    // Were f64 among them, `Value::from(Tensor::new([1], vec![0.5])?)` would be of f64: the type of literals that may be both.
    (Double $type:ty) => {};
    ($kind:ident $type:ty) => {
        impl From<&Tensor<$type>> for Value {
            fn from(tensor: &Tensor<$type>) -> Value {
                Value::from(tensor.clone())
            }
        }

        impl From<Tensor<$type>> for Value {
            fn from(tensor: Tensor<$type>) -> Value {
                <$type>::into_value(tensor)
            }
        }
    };
}

/// The element types from one list: tag, Rust type, name, kind, bits that tell elements apart, and the least and the greatest
/// byte when not every byte is an element. The first token is a dollar, for the macros that it defines.
macro_rules! element_types {
    ($d:tt $($(#[$doc:meta])* $variant:ident($type:ty) $name:literal $kind:ident $bits:literal $(in $min:literal..=$max:literal)?;)*) => {
        /// Element types of tensors and of the values on a model's edges. In memory each element has whole bytes, be it of two
        /// bits; codes that share bytes are a [`QuantizedTensor`](crate::tensor::QuantizedTensor)'s.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DType {
            $($(#[$doc])* $variant,)*
        }

        impl DType {
            /// All of them.
            pub const ALL: &[DType] = &[$(DType::$variant),*];

            /// Its name, as in `f32`.
            pub fn name(self) -> &'static str {
                match self {
                    $(DType::$variant => $name,)*
                }
            }

            /// Bytes of one element in memory, at least one.
            pub fn bytes(self) -> usize {
                match self {
                    $(DType::$variant => size_of::<$type>(),)*
                }
            }

            /// Bits that tell its elements apart: 4 for `i4`, 8 for `bool` and all other types of a byte.
            pub fn bits(self) -> usize {
                match self {
                    $(DType::$variant => $bits,)*
                }
            }

            fn kind(self) -> Kind {
                match self {
                    $(DType::$variant => Kind::$kind,)*
                }
            }
        }

        /// A tensor of any element type: what travels along the edges of a model.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Value {
            $($(#[$doc])* $variant(Tensor<$type>),)*
        }

        /// Runs the body with `$tensor` bound to the tensor inside a [`Value`]: one body, compiled for every type.
        macro_rules! with_tensor {
            ($d value:expr, $d tensor:ident => $d body:expr) => {
                match $d value {
                    $($crate::tensor::Value::$variant($d tensor) => $d body,)*
                }
            };
        }

        /// Runs the body with `$element` being the type that a [`DType`] names: one body, compiled for every type.
        macro_rules! with_element {
            ($d dtype:expr, $d element:ident => $d body:expr) => {
                match $d dtype {
                    $($crate::tensor::DType::$variant => {
                        type $d element = $type;
                        $d body
                    })*
                }
            };
        }

        $(
            from!($kind $type);

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
                fn from_value_mut(value: &mut Value) -> Option<&mut Tensor<Self>> {
                    match value {
                        Value::$variant(tensor) => Some(tensor),
                        _ => None,
                    }
                }
            }
            storage!($kind $type $(, $min, $max)?);
        )*
    };
}

fn refuse(mut codes: impl Iterator<Item = i32> + Clone, bounds: (i32, i32)) -> Result<(), Refused> {
    let within = |code: &i32| (bounds.0..=bounds.1).contains(code);
    match codes.clone().position(|code| !within(&code)) {
        None => Ok(()),
        Some(index) => Err(Refused { index, value: codes.nth(index).unwrap_or_default(), bounds }),
    }
}

element_types! {
    $
    /// 32-bit float.
    F32(f32) "f32" Float 32;
    /// 64-bit float.
    F64(f64) "f64" Double 64;
    /// 16-bit float of IEEE 754.
    F16(crate::num::f16) "f16" Float 16;
    /// The upper half of an `f32`.
    Bf16(crate::num::bf16) "bf16" Float 16;
    /// [`F8E4M3`](crate::num::F8E4M3), ONNX's FLOAT8E4M3FN.
    F8E4M3(crate::num::F8E4M3) "f8e4m3" Float 8;
    /// [`F8E4M3Fnuz`](crate::num::F8E4M3Fnuz).
    F8E4M3Fnuz(crate::num::F8E4M3Fnuz) "f8e4m3fnuz" Float 8;
    /// [`F8E5M2`](crate::num::F8E5M2).
    F8E5M2(crate::num::F8E5M2) "f8e5m2" Float 8;
    /// [`F8E5M2Fnuz`](crate::num::F8E5M2Fnuz).
    F8E5M2Fnuz(crate::num::F8E5M2Fnuz) "f8e5m2fnuz" Float 8;
    /// [`F8E8M0`](crate::num::F8E8M0): powers of two.
    F8E8M0(crate::num::F8E8M0) "f8e8m0" Float 8;
    /// [`F6E2M3`](crate::num::F6E2M3).
    F6E2M3(crate::num::F6E2M3) "f6e2m3" Float 6 in 0..=63;
    /// [`F6E3M2`](crate::num::F6E3M2).
    F6E3M2(crate::num::F6E3M2) "f6e3m2" Float 6 in 0..=63;
    /// [`F4E2M1`](crate::num::F4E2M1).
    F4E2M1(crate::num::F4E2M1) "f4e2m1" Float 4 in 0..=15;
    /// 64-bit signed integer.
    I64(i64) "i64" Signed 64;
    /// 32-bit signed integer.
    I32(i32) "i32" Signed 32;
    /// 16-bit signed integer.
    I16(i16) "i16" Signed 16;
    /// 8-bit signed integer.
    I8(i8) "i8" Signed 8;
    /// [`I4`](crate::num::I4): -8 to 7.
    I4(crate::num::I4) "i4" Signed 4 in -8..=7;
    /// [`I2`](crate::num::I2): -2 to 1.
    I2(crate::num::I2) "i2" Signed 2 in -2..=1;
    /// 64-bit unsigned integer.
    U64(u64) "u64" Unsigned 64;
    /// 32-bit unsigned integer.
    U32(u32) "u32" Unsigned 32;
    /// 16-bit unsigned integer.
    U16(u16) "u16" Unsigned 16;
    /// 8-bit unsigned integer.
    U8(u8) "u8" Unsigned 8;
    /// [`U4`](crate::num::U4): 0 to 15.
    U4(crate::num::U4) "u4" Unsigned 4 in 0..=15;
    /// [`U2`](crate::num::U2): 0 to 3.
    U2(crate::num::U2) "u2" Unsigned 2 in 0..=3;
    /// Truth value.
    Bool(bool) "bool" Truth 8 in 0..=1;
}

impl DType {
    /// Whether its elements are floats, of whatever size.
    pub fn is_float(self) -> bool {
        matches!(self.kind(), Kind::Float | Kind::Double)
    }

    /// Whether its elements are integers; truth values are not.
    pub fn is_integer(self) -> bool {
        matches!(self.kind(), Kind::Signed | Kind::Unsigned)
    }

    /// Whether its elements may be negative.
    pub fn is_signed(self) -> bool {
        !matches!(self.kind(), Kind::Unsigned | Kind::Truth) && self != DType::F8E8M0
    }
}

pub(crate) use {with_element, with_tensor};

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
