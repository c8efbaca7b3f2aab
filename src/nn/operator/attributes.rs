//! What the ONNX standard calls the parameters of operators: how files spell them.
#![cfg_attr(not(feature = "onnx"), allow(dead_code, reason = "files alone spell operators"))]

use std::ops::RangeInclusive;

use super::{AutoPad, Windows};
use crate::tensor::{DType, Value};

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
    Tensor(Value),
    /// An element type, which files write as its number.
    Type(DType),
}

/// The parameters of an operator by the standard's names for them.
///
/// Those that are absent have the standard's defaults, so `add` is for what has no default or differs from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Attributes {
    pub list: Vec<(&'static str, Attribute)>,
}

impl Attributes {
    pub fn new() -> Self {
        Attributes::default()
    }

    pub fn with(mut self, name: &'static str, value: impl Into<Attribute>) -> Self {
        self.list.push((name, value.into()));
        self
    }

    /// With the parameter where it is there.
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Attribute>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// With the parameter where it is not what its absence says.
    pub fn with_other<T: PartialEq + Into<Attribute>>(self, name: &'static str, value: T, default: T) -> Self {
        if value == default { self } else { self.with(name, value) }
    }

    /// The tensors among them.
    pub fn tensors(&self) -> impl Iterator<Item = &Value> {
        self.list.iter().filter_map(|(_, attribute)| match attribute {
            Attribute::Tensor(value) => Some(value),
            _ => None,
        })
    }

    /// With those of windows: the kernel's lengths, where an attribute tells them.
    pub fn with_windows(self, kernel: Option<&[usize]>, windows: &Windows) -> Self {
        let Windows { strides, pads, dilations, auto_pad, ceil_mode } = windows;
        let filled = |list: &[usize]| (!list.is_empty()).then(|| ints(list));
        let name = match auto_pad {
            AutoPad::NotSet => "NOTSET",
            AutoPad::Valid => "VALID",
            AutoPad::SameUpper => "SAME_UPPER",
            AutoPad::SameLower => "SAME_LOWER",
        };
        self.with_some("kernel_shape", kernel.map(ints))
            .with_some("strides", filled(strides))
            .with_some("pads", filled(pads).filter(|_| *auto_pad == AutoPad::NotSet))
            .with_some("dilations", filled(dilations))
            .with_other("auto_pad", name, "NOTSET")
            .with_other("ceil_mode", *ceil_mode, false)
    }
}

/// Lengths as files write them.
pub(crate) fn ints(list: &[usize]) -> Vec<i64> {
    list.iter().map(|&x| x as i64).collect()
}

macro_rules! from {
    ($($type:ty => $value:ident $make:expr;)*) => {$(
        impl From<$type> for Attribute {
            fn from($value: $type) -> Attribute {
                $make
            }
        }
    )*};
}
from! {
    i64 => x Attribute::Int(x);
    bool => x Attribute::Int(x.into());
    f32 => x Attribute::Float(x);
    &str => x Attribute::Text(x.to_owned());
    Vec<i64> => x Attribute::Ints(x);
    Vec<f32> => x Attribute::Floats(x);
    Vec<String> => x Attribute::Texts(x);
    Value => x Attribute::Tensor(x);
    DType => x Attribute::Type(x);
}

/// The versions of the standard in which most operators are spelled as they are here.
pub(crate) const CURRENT: RangeInclusive<i64> = 13..=28;
