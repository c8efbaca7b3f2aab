//! Operators that look at one element, or one of each operand, at a time.

use super::{Built, Call, all};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::{Binary, Cast, Clip, Logic, Pow, Unary, Variadic, Where};
use crate::num::ScaleRounding;
use crate::tensor::DType;

pub(super) fn unary(call: &mut Call<'_>) -> Result<Built> {
    let attributes = &mut call.attributes;
    let unary = match call.operator {
        "Abs" => Unary::Abs,
        "Neg" => Unary::Neg,
        "Ceil" => Unary::Ceil,
        "Floor" => Unary::Floor,
        "Round" => Unary::Round,
        "Sign" => Unary::Sign,
        "Sqrt" => Unary::Sqrt,
        "Reciprocal" => Unary::Reciprocal,
        "Exp" => Unary::Exp,
        "Log" => Unary::Log,
        "Erf" => Unary::Erf,
        "Sin" => Unary::Sin,
        "Cos" => Unary::Cos,
        "Tan" => Unary::Tan,
        "Asin" => Unary::Asin,
        "Acos" => Unary::Acos,
        "Atan" => Unary::Atan,
        "Sinh" => Unary::Sinh,
        "Cosh" => Unary::Cosh,
        "Asinh" => Unary::Asinh,
        "Acosh" => Unary::Acosh,
        "Atanh" => Unary::Atanh,
        "LeakyRelu" => Unary::LeakyRelu { alpha: attributes.float_or("alpha", 0.01)? },
        "Elu" => Unary::Elu { alpha: attributes.float_or("alpha", 1.0)? },
        "Selu" => Unary::Selu { alpha: attributes.float_or("alpha", 1.673_263_2)?, gamma: attributes.float_or("gamma", 1.050_701)? },
        "Celu" => Unary::Celu { alpha: attributes.float_or("alpha", 1.0)? },
        "ThresholdedRelu" => Unary::ThresholdedRelu { alpha: attributes.float_or("alpha", 1.0)? },
        "Sigmoid" => Unary::Sigmoid,
        "Tanh" => Unary::Tanh,
        "HardSigmoid" => Unary::HardSigmoid { alpha: attributes.float_or("alpha", 0.2)?, beta: attributes.float_or("beta", 0.5)? },
        "HardSwish" => Unary::HardSwish,
        "Gelu" => attributes.choice("approximate", &[("none", Unary::Gelu), ("tanh", Unary::GeluTanh)])?,
        "Softplus" => Unary::Softplus,
        "Softsign" => Unary::Softsign,
        "Mish" => Unary::Mish,
        "Swish" => Unary::Swish { alpha: attributes.float_or("alpha", 1.0)? },
        _ => Unary::Relu,
    };
    all(unary)
}

pub(super) fn relu(call: &mut Call<'_>) -> Result<Built> {
    if call.dtype(0) == Some(DType::F32) { all(Layer::Relu) } else { unary(call) }
}

pub(super) fn logic(call: &mut Call<'_>) -> Result<Built> {
    let attributes = &mut call.attributes;
    all(match call.operator {
        "Not" => Logic::Not,
        "BitwiseNot" => Logic::BitwiseNot,
        "IsNaN" => Logic::IsNaN,
        _ => {
            Logic::IsInf { negative: attributes.flag_or("detect_negative", true)?, positive: attributes.flag_or("detect_positive", true)? }
        }
    })
}

pub(super) fn binary(call: &mut Call<'_>) -> Result<Built> {
    let attributes = &mut call.attributes;
    all(match call.operator {
        "Sub" => Binary::Sub,
        "Mul" => Binary::Mul,
        "Div" => Binary::Div,
        "Mod" => Binary::Mod { fmod: attributes.flag_or("fmod", false)? },
        "PRelu" => Binary::PRelu,
        "And" => Binary::And,
        "Or" => Binary::Or,
        "Xor" => Binary::Xor,
        "BitwiseAnd" => Binary::BitwiseAnd,
        "BitwiseOr" => Binary::BitwiseOr,
        "BitwiseXor" => Binary::BitwiseXor,
        "BitShift" => Binary::BitShift { left: attributes.choice("direction", &[("LEFT", true), ("RIGHT", false)])? },
        "Equal" => Binary::Equal,
        "Less" => Binary::Less,
        "LessOrEqual" => Binary::LessOrEqual,
        "Greater" => Binary::Greater,
        "GreaterOrEqual" => Binary::GreaterOrEqual,
        _ => Binary::Add,
    })
}

pub(super) fn variadic(call: &mut Call<'_>) -> Result<Built> {
    all(match call.operator {
        "Min" => Variadic::Min,
        "Max" => Variadic::Max,
        "Sum" => Variadic::Sum,
        _ => Variadic::Mean,
    })
}

pub(super) fn pow(_: &mut Call<'_>) -> Result<Built> {
    all(Pow)
}

pub(super) fn select(_: &mut Call<'_>) -> Result<Built> {
    all(Where)
}

pub(super) fn clip(call: &mut Call<'_>) -> Result<Built> {
    let (min, max) = (call.attributes.float("min")?, call.attributes.float("max")?);
    let bound = |i: usize, attribute: Option<f32>| match call.constant::<f32>(i) {
        Some(tensor) if tensor.len() == 1 => Some(tensor.as_slice()[0]),
        _ if call.has(i) => Some(f32::NAN),
        _ => attribute,
    };
    if call.dtype(0) == Some(DType::F32) {
        match (bound(1, min), bound(2, max)) {
            (Some(0.0), Some(6.0)) => return Ok(Built::of(Layer::Relu6, &[0])),
            (Some(0.0), None) => return Ok(Built::of(Layer::Relu, &[0])),
            _ => {}
        }
    }
    all(Clip::new().with_bounds(min, max))
}

pub(super) fn cast(call: &mut Call<'_>) -> Result<Built> {
    let attributes = &mut call.attributes;
    let cast = match attributes.int("to")? {
        Some(code) => Cast::new(super::element_type(attributes, "to", code)?),
        None if call.operator == "CastLike" => Cast::like(),
        None => return Err(attributes.error("to", "it must be there")),
    };
    let rounding = [("up", ScaleRounding::Up), ("down", ScaleRounding::Down), ("nearest", ScaleRounding::Nearest)];
    let cast = cast.with_scale_rounding(attributes.choice("round_mode", &rounding)?);
    all(cast.with_saturation(attributes.flag_or("saturate", true)?))
}
