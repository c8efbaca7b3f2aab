//! Bits of one element, and what is asked about it.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::numbers::{check_type, is_integer};
use super::{Facts, Operation, check_arity};
use crate::error::Result;
use crate::kernels::{Workspace, math};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View};
use crate::num::{F4E2M1, F6E2M3, F6E3M2, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, SmallFloat, bf16, f16};
use crate::tensor::{DType, Shape};

/// A question about each element, or its complement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Logic {
    /// Not, of truth values.
    Not,
    /// All bits flipped, of integers of 8 to 64 bits.
    BitwiseNot,
    /// Whether x is NaN, of floats of any size.
    IsNaN,
    /// Whether x is an infinity of a sign that is looked for, of floats of any size.
    IsInf {
        /// Look for `-∞`.
        negative: bool,
        /// Look for `+∞`.
        positive: bool,
    },
}

/// A small float as f32; only what it is matters, NaN, infinite or neither.
fn widened<T: SmallFloat>(x: T) -> f32 {
    x.to_f32()
}

impl Logic {
    /// [`Logic::IsInf`] of either sign.
    pub fn is_inf() -> Self {
        Logic::IsInf { negative: true, positive: true }
    }

    fn asks(self, x: f32) -> u8 {
        match self {
            Logic::IsInf { negative, positive } => u8::from(positive && x == f32::INFINITY || negative && x == f32::NEG_INFINITY),
            _ => u8::from(x.is_nan()),
        }
    }

    fn ask(self, x: View<'_>, y: &mut [u8]) {
        macro_rules! small {
            ($($variant:ident($type:ty))*) => {
                match x.dtype {
                    DType::F32 => math::each(x.f32(), y, &|x| self.asks(x)),
                    // Not through f32, which has no room for the largest.
                    DType::F64 => math::each(x.as_slice::<f64>(), y, &|x| {
                        self.asks(if x.is_nan() { f32::NAN } else if x.is_infinite() { x as f32 } else { 0.0 })
                    }),
                    DType::F16 => math::each(x.as_slice::<f16>(), y, &|x| self.asks(x.to_f32())),
                    DType::Bf16 => math::each(x.as_slice::<bf16>(), y, &|x| self.asks(x.to_f32())),
                    $(DType::$variant => math::each(x.as_slice::<$type>(), y, &|x| self.asks(widened(x))),)*
                    _ => y.fill(0),
                }
            };
        }
        small! {
            F8E4M3(F8E4M3) F8E4M3Fnuz(F8E4M3Fnuz) F8E5M2(F8E5M2) F8E5M2Fnuz(F8E5M2Fnuz) F8E8M0(F8E8M0) F6E2M3(F6E2M3) F6E3M2(F6E3M2)
            F4E2M1(F4E2M1)
        }
    }
}

impl Operation for Logic {
    fn name(&self) -> &'static str {
        match self {
            Logic::Not => "Not",
            Logic::BitwiseNot => "BitwiseNot",
            Logic::IsNaN => "IsNaN",
            Logic::IsInf { .. } => "IsInf",
        }
    }

    fn attributes(&self) -> Attributes {
        match *self {
            Logic::IsInf { negative, positive } => {
                Attributes::new().with_other("detect_negative", negative, true).with_other("detect_positive", positive, true)
            }
            _ => Attributes::new(),
        }
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if matches!(self, Logic::BitwiseNot) { 18..=28 } else { CURRENT }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        let dtype = match self {
            Logic::Not => check_type(self.name(), inputs, 0, "bool", |dtype| dtype == DType::Bool)?,
            Logic::BitwiseNot => check_type(self.name(), inputs, 0, "an integer of 8 to 64 bits", is_integer)?,
            _ => check_type(self.name(), inputs, 0, "a float", DType::is_float).map(|_| DType::Bool)?,
        };
        Ok(vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        match self {
            Logic::Not => math::each(x.bytes, y.bytes, &|x| x ^ 1),
            Logic::BitwiseNot => math::each(x.bytes, y.bytes, &|x| !x),
            _ => self.ask(x, y.bytes),
        }
        Ok(())
    }
}
