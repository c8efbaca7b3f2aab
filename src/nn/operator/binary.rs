//! Two operands, element by element, with numpy's broadcasting.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::broadcast::{Spread, broadcast_shape, zip, zip_vectors};
use super::numbers::{Number, check_same, is_integer, is_number, unexpected, with_integer, with_number};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::tensor::{DType, Shape};

/// A function of two elements of one type. Shapes broadcast: aligned at the last axis, an axis of length 1 or none is repeated.
/// "Numbers" are f32, f64, f16, bf16 and integers of 8 to 64 bits; integers wrap, and their division by zero is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Binary {
    /// `a + b` of numbers.
    Add,
    /// `a - b` of numbers.
    Sub,
    /// `a · b` of numbers.
    Mul,
    /// `a / b` of numbers, integers towards zero.
    Div,
    /// The rest of `a / b` of numbers.
    Mod {
        /// Of the sign of `a`, as C's `fmod`, else of the sign of `b`.
        fmod: bool,
    },
    /// `a`, and `a · b` where `a` is below zero, of numbers. The result has the shape of `a`.
    PRelu,
    /// And, of truth values.
    And,
    /// Or, of truth values.
    Or,
    /// Exclusive or, of truth values.
    Xor,
    /// And of the bits of integers.
    BitwiseAnd,
    /// Or of the bits of integers.
    BitwiseOr,
    /// Exclusive or of the bits of integers.
    BitwiseXor,
    /// `a` shifted by `b` bits, of unsigned integers; 0 when `b` is as many as there are.
    BitShift {
        /// Towards the highest bit, else towards the lowest.
        left: bool,
    },
    /// `a = b`, of numbers and truth values.
    Equal,
    /// `a < b` of numbers.
    Less,
    /// `a <= b` of numbers.
    LessOrEqual,
    /// `a > b` of numbers.
    Greater,
    /// `a >= b` of numbers.
    GreaterOrEqual,
}

/// Two operands and how they lie under the output.
struct Operands<'a> {
    a: View<'a>,
    b: View<'a>,
    spread: Spread<2>,
    threads: usize,
}

impl Operands<'_> {
    /// In vectors for f32, which are what a network's time goes into.
    fn zip<T: Number, Y: bytemuck::Pod + Send>(&self, y: &mut ViewMut<'_>, f: impl Fn(T, T) -> Y + Sync) {
        let (a, b, y) = (self.a.as_slice::<T>(), self.b.as_slice::<T>(), y.as_mut_slice::<Y>());
        if T::VECTORS {
            zip_vectors(&self.spread, (a, b), y, self.threads, f);
        } else {
            zip(&self.spread, (a, b), y, &f);
        }
    }

    fn bytes(&self, y: &mut ViewMut<'_>, f: impl Fn(u8, u8) -> u8) {
        zip(&self.spread, (self.a.bytes, self.b.bytes), y.bytes, &f);
    }
}

impl Binary {
    fn is_comparison(self) -> bool {
        matches!(self, Binary::Equal | Binary::Less | Binary::LessOrEqual | Binary::Greater | Binary::GreaterOrEqual)
    }

    fn numbers<T: Number>(self, on: &Operands<'_>, y: &mut ViewMut<'_>) -> Result<()> {
        match self {
            Binary::Div | Binary::Mod { .. } if T::IS_INTEGER => {
                // Only where something is divided: an empty operand divides nothing.
                if !y.bytes.is_empty()
                    && let Some(index) = on.b.as_slice::<T>().iter().position(|&b| b == T::default())
                {
                    return Err(Error::parameter("divisor", 0, format!("must not be zero in integers, and is at index {index}")));
                }
            }
            _ => {}
        }
        macro_rules! by {
            (|$a:ident, $b:ident| $body:expr) => {
                on.zip(
                    y,
                    #[inline(always)]
                    |$a: T, $b: T| $body,
                )
            };
        }
        match self {
            Binary::Add => by!(|a, b| a.plus(b)),
            Binary::Sub => by!(|a, b| a.minus(b)),
            Binary::Mul => by!(|a, b| a.times(b)),
            Binary::Div => by!(|a, b| a.over(b)),
            Binary::Mod { fmod: true } => by!(|a, b| a.rest(b)),
            Binary::Mod { fmod: false } => by!(|a, b| a.modulo(b)),
            Binary::PRelu => by!(|a, b| if a < T::default() { a.times(b) } else { a }),
            Binary::Equal => by!(|a, b| u8::from(a == b)),
            Binary::Less => by!(|a, b| u8::from(a < b)),
            Binary::LessOrEqual => by!(|a, b| u8::from(a <= b)),
            Binary::Greater => by!(|a, b| u8::from(a > b)),
            Binary::GreaterOrEqual => by!(|a, b| u8::from(a >= b)),
            _ => return Err(unexpected(self.name(), on.a.dtype)),
        }
        Ok(())
    }

    fn truths(self, on: &Operands<'_>, y: &mut ViewMut<'_>) -> Result<()> {
        match self {
            Binary::And => on.bytes(y, |a, b| a & b),
            Binary::Or => on.bytes(y, |a, b| a | b),
            Binary::Xor => on.bytes(y, |a, b| a ^ b),
            Binary::Equal => on.bytes(y, |a, b| u8::from(a == b)),
            _ => return Err(unexpected(self.name(), on.a.dtype)),
        }
        Ok(())
    }
}

impl Operation for Binary {
    fn name(&self) -> &'static str {
        match self {
            Binary::Add => "Add",
            Binary::Sub => "Sub",
            Binary::Mul => "Mul",
            Binary::Div => "Div",
            Binary::Mod { .. } => "Mod",
            Binary::PRelu => "PRelu",
            Binary::And => "And",
            Binary::Or => "Or",
            Binary::Xor => "Xor",
            Binary::BitwiseAnd => "BitwiseAnd",
            Binary::BitwiseOr => "BitwiseOr",
            Binary::BitwiseXor => "BitwiseXor",
            Binary::BitShift { .. } => "BitShift",
            Binary::Equal => "Equal",
            Binary::Less => "Less",
            Binary::LessOrEqual => "LessOrEqual",
            Binary::Greater => "Greater",
            Binary::GreaterOrEqual => "GreaterOrEqual",
        }
    }

    fn attributes(&self) -> Attributes {
        match *self {
            Binary::Mod { fmod } => Attributes::new().with_other("fmod", fmod, false),
            Binary::BitShift { left } => Attributes::new().with("direction", if left { "LEFT" } else { "RIGHT" }),
            _ => Attributes::new(),
        }
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        match self {
            Binary::BitwiseAnd | Binary::BitwiseOr | Binary::BitwiseXor => 18..=28,
            _ => CURRENT,
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 2)?;
        let dtype = match self {
            Binary::And | Binary::Or | Binary::Xor => check_same(self.name(), inputs, "bool", |dtype| dtype == DType::Bool)?,
            Binary::BitwiseAnd | Binary::BitwiseOr | Binary::BitwiseXor => {
                check_same(self.name(), inputs, "an integer of 8 to 64 bits", is_integer)?
            }
            Binary::BitShift { .. } => {
                check_same(self.name(), inputs, "an unsigned integer of 8 to 64 bits", |dtype| is_integer(dtype) && !dtype.is_signed())?
            }
            Binary::Equal => check_same(self.name(), inputs, "a number or bool", |dtype| is_number(dtype) || dtype == DType::Bool)?,
            _ => check_same(self.name(), inputs, "a number", is_number)?,
        };
        Ok(vec![if self.is_comparison() { DType::Bool } else { dtype }])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (a, b) = (facts.shape(0)?, facts.shape(1)?);
        let shape = broadcast_shape([a, b])?;
        if *self == Binary::PRelu && shape != *a {
            return Err(Error::shape("slope", format!("one that broadcasts to {a:?}"), b.dims()));
        }
        Ok(vec![shape])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    // One of the types that `b` is cast from is u64.
    #[allow(clippy::unnecessary_cast)]
    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (a, b, mut y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
        let (dtype, spread) = (a.dtype, Spread::new(y.dims, [a.dims, b.dims])?);
        let on = Operands { a, b, spread, threads };
        match *self {
            _ if dtype == DType::Bool => return self.truths(&on, &mut y),
            Binary::BitwiseAnd => {
                with_integer!(dtype, T => on.zip(&mut y, |a: T, b: T| a & b), _ => return Err(unexpected(self.name(), dtype)))
            }
            Binary::BitwiseOr => {
                with_integer!(dtype, T => on.zip(&mut y, |a: T, b: T| a | b), _ => return Err(unexpected(self.name(), dtype)))
            }
            Binary::BitwiseXor => {
                with_integer!(dtype, T => on.zip(&mut y, |a: T, b: T| a ^ b), _ => return Err(unexpected(self.name(), dtype)))
            }
            Binary::BitShift { left: true } => with_integer!(dtype, T => on.zip(&mut y, |a: T, b: T| {
                a.checked_shl((b as u64).min(64) as u32).unwrap_or(0)
            }), _ => return Err(unexpected(self.name(), dtype))),
            Binary::BitShift { left: false } => with_integer!(dtype, T => on.zip(&mut y, |a: T, b: T| {
                a.checked_shr((b as u64).min(64) as u32).unwrap_or(0)
            }), _ => return Err(unexpected(self.name(), dtype))),
            _ => with_number!(dtype, T => return self.numbers::<T>(&on, &mut y), _ => return Err(unexpected(self.name(), dtype))),
        }
        Ok(())
    }
}
