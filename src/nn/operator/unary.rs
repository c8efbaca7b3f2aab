//! One element in, one element out.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::numbers::{check_type, is_float, is_number};
use super::{Facts, Operation, check_arity};
use crate::error::Result;
use crate::kernels::{Workspace, math};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::num::math as f32_math;
use crate::num::{bf16, f16};
use crate::tensor::{DType, Shape};

/// A function of each element by itself. Floats are f32, f64, f16 and bf16; the 16-bit ones are computed in f32 and rounded
/// once. "Numbers" are floats and integers of 8 to 64 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Unary {
    /// `|x|` of numbers; the least signed integer stays itself.
    Abs,
    /// `-x` of floats and signed integers.
    Neg,
    /// The least integer not below x.
    Ceil,
    /// The largest integer not above x.
    Floor,
    /// The nearest integer, halves to the even one.
    Round,
    /// -1, 0 or 1 of numbers; NaN stays NaN.
    Sign,
    /// `√x`.
    Sqrt,
    /// `1 / x`.
    Reciprocal,
    /// `e^x`.
    Exp,
    /// `ln x`.
    Log,
    /// `2/√π ∫₀ˣ e^(-t²) dt` of numbers.
    Erf,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// The inverse of the sine.
    Asin,
    /// The inverse of the cosine.
    Acos,
    /// The inverse of the tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// The inverse of the hyperbolic sine.
    Asinh,
    /// The inverse of the hyperbolic cosine.
    Acosh,
    /// The inverse of the hyperbolic tangent.
    Atanh,
    /// `max(x, 0)` of numbers; NaN stays NaN.
    Relu,
    /// `x`, and below zero `alpha · x`.
    LeakyRelu {
        /// The slope below zero.
        alpha: f32,
    },
    /// `x`, and below zero `alpha · (e^x - 1)`.
    Elu {
        /// Minus what it tends to at `-∞`.
        alpha: f32,
    },
    /// `gamma` times [`Unary::Elu`].
    Selu {
        /// As there.
        alpha: f32,
        /// The factor of both parts.
        gamma: f32,
    },
    /// `max(x, 0) + min(alpha · (e^(x / alpha) - 1), 0)`.
    Celu {
        /// Minus what it tends to at `-∞`.
        alpha: f32,
    },
    /// `x` where it is above `alpha`, else 0.
    ThresholdedRelu {
        /// The threshold.
        alpha: f32,
    },
    /// `1 / (1 + e^(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `alpha · x + beta` clamped to 0 to 1.
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at 0.
        beta: f32,
    },
    /// `x` times `x / 6 + 1/2` clamped to 0 to 1.
    HardSwish,
    /// `x / 2 · (1 + erf(x / √2))`.
    Gelu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `x / (1 + |x|)`.
    Softsign,
    /// `x · tanh(ln(1 + e^x))`.
    Mish,
    /// `x · sigmoid(alpha · x)`.
    Swish {
        /// The factor inside.
        alpha: f32,
    },
}

/// What a function is applied to.
trait Apply {
    fn apply(self, f: impl Fn(f32) -> f32 + Copy + Sync);
}

struct Slices<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    threads: usize,
}

impl Apply for Slices<'_> {
    #[inline(always)]
    fn apply(self, f: impl Fn(f32) -> f32 + Copy + Sync) {
        math::map(self.x, self.y, self.threads, f);
    }
}

/// One number, for types whose speed doesn't matter.
struct One<'a>(&'a mut f32);

impl Apply for One<'_> {
    #[inline(always)]
    fn apply(self, f: impl Fn(f32) -> f32 + Copy + Sync) {
        *self.0 = f(*self.0);
    }
}

/// Through f64, whose functions differ between systems in their last bits only, which rounding to f32 hides but for rare ties.
#[inline(always)]
fn by_f64(f: impl Fn(f64) -> f64 + Copy + Sync) -> impl Fn(f32) -> f32 + Copy + Sync {
    move |x| f(f64::from(x)) as f32
}

/// `alpha · (e^over - 1)` below zero, else `x`.
#[inline(always)]
fn elu(x: f32, alpha: f32, over: f32) -> f32 {
    if x < 0.0 { alpha * f32_math::exp_m1_of_negative(over) } else { x }
}

impl Unary {
    /// `y = f(x)` in f32, for the functions of floats.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub(crate) fn f32(self, x: &[f32], y: &mut [f32], threads: usize) {
        assert_eq!(x.len(), y.len());
        self.apply(Slices { x, y, threads });
    }

    fn one(self, mut x: f32) -> f32 {
        self.apply(One(&mut x));
        x
    }

    fn apply(self, to: impl Apply) {
        macro_rules! by {
            (|$x:ident| $body:expr) => {
                to.apply(
                    #[inline(always)]
                    move |$x: f32| $body,
                )
            };
        }
        match self {
            Unary::Abs => by!(|x| x.abs()),
            Unary::Neg => by!(|x| -x),
            Unary::Ceil => by!(|x| x.ceil()),
            Unary::Floor => by!(|x| x.floor()),
            Unary::Round => by!(|x| x.round_ties_even()),
            Unary::Sign => by!(|x| if x.is_nan() { x } else { f32::from(x > 0.0) - f32::from(x < 0.0) }),
            Unary::Sqrt => by!(|x| x.sqrt()),
            Unary::Reciprocal => by!(|x| 1.0 / x),
            Unary::Exp => by!(|x| f32_math::exp(x)),
            Unary::Log => by!(|x| f32_math::ln(x)),
            Unary::Erf => by!(|x| f32_math::erf(x)),
            Unary::Sin => to.apply(by_f64(f64::sin)),
            Unary::Cos => to.apply(by_f64(f64::cos)),
            Unary::Tan => to.apply(by_f64(f64::tan)),
            Unary::Asin => to.apply(by_f64(f64::asin)),
            Unary::Acos => to.apply(by_f64(f64::acos)),
            Unary::Atan => to.apply(by_f64(f64::atan)),
            Unary::Sinh => to.apply(by_f64(f64::sinh)),
            Unary::Cosh => to.apply(by_f64(f64::cosh)),
            Unary::Asinh => to.apply(by_f64(f64::asinh)),
            Unary::Acosh => to.apply(by_f64(f64::acosh)),
            Unary::Atanh => to.apply(by_f64(f64::atanh)),
            Unary::Relu => by!(|x| if x < 0.0 { 0.0 } else { x }),
            Unary::LeakyRelu { alpha } => by!(|x| if x < 0.0 { alpha * x } else { x }),
            Unary::Elu { alpha } => by!(|x| elu(x, alpha, x)),
            Unary::Selu { alpha, gamma } => by!(|x| gamma * elu(x, alpha, x)),
            Unary::Celu { alpha } => by!(|x| elu(x, alpha, x / alpha)),
            Unary::ThresholdedRelu { alpha } => by!(|x| if x > alpha { x } else { 0.0 }),
            Unary::Sigmoid => by!(|x| f32_math::sigmoid(x)),
            Unary::Tanh => by!(|x| f32_math::tanh(x)),
            Unary::HardSigmoid { alpha, beta } => by!(|x| (alpha * x + beta).clamp(0.0, 1.0)),
            Unary::HardSwish => by!(|x| x * (x * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0)),
            Unary::Gelu => by!(|x| f32_math::gelu(x)),
            Unary::GeluTanh => by!(|x| f32_math::gelu_tanh(x)),
            Unary::Softplus => by!(|x| f32_math::softplus(x)),
            Unary::Softsign => by!(|x| x / (1.0 + x.abs())),
            Unary::Mish => by!(|x| f32_math::mish(x)),
            Unary::Swish { alpha } => by!(|x| f32_math::swish(x, alpha)),
        }
    }

    /// The function of one f64.
    fn f64(self, x: f64) -> f64 {
        let elu = |alpha: f32, over: f64| if x < 0.0 { f64::from(alpha) * over.exp_m1() } else { x };
        let softplus = || x.max(0.0) + (-x.abs()).exp().ln_1p();
        match self {
            Unary::Abs => x.abs(),
            Unary::Neg => -x,
            Unary::Ceil => x.ceil(),
            Unary::Floor => x.floor(),
            Unary::Round => x.round_ties_even(),
            Unary::Sign if x.is_nan() => x,
            Unary::Sign => f64::from(i8::from(x > 0.0) - i8::from(x < 0.0)),
            Unary::Sqrt => x.sqrt(),
            Unary::Reciprocal => 1.0 / x,
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Erf => f32_math::erf_f64(x),
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Tan => x.tan(),
            Unary::Asin => x.asin(),
            Unary::Acos => x.acos(),
            Unary::Atan => x.atan(),
            Unary::Sinh => x.sinh(),
            Unary::Cosh => x.cosh(),
            Unary::Asinh => x.asinh(),
            Unary::Acosh => x.acosh(),
            Unary::Atanh => x.atanh(),
            Unary::Relu if x < 0.0 => 0.0,
            Unary::LeakyRelu { alpha } if x < 0.0 => f64::from(alpha) * x,
            Unary::Relu | Unary::LeakyRelu { .. } => x,
            Unary::Elu { alpha } => elu(alpha, x),
            Unary::Selu { alpha, gamma } => f64::from(gamma) * elu(alpha, x),
            Unary::Celu { alpha } => elu(alpha, x / f64::from(alpha)),
            Unary::ThresholdedRelu { alpha } if x > f64::from(alpha) => x,
            Unary::ThresholdedRelu { .. } => 0.0,
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Tanh => x.tanh(),
            Unary::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            Unary::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Unary::Gelu => 0.5 * x * (1.0 + f32_math::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
            Unary::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
            Unary::Softplus => softplus(),
            Unary::Softsign => x / (1.0 + x.abs()),
            Unary::Mish => x * softplus().tanh(),
            Unary::Swish { alpha } => x / (1.0 + (-f64::from(alpha) * x).exp()),
        }
    }

    /// Functions of integers.
    fn integers(self, x: View<'_>, y: &mut ViewMut<'_>) {
        macro_rules! integers {
            ($($variant:ident($type:ty) $absolute:expr, $sign:expr;)*) => {
                match x.dtype {
                    $(DType::$variant => {
                        let (x, y) = (x.as_slice::<$type>(), y.as_mut_slice::<$type>());
                        match self {
                            Unary::Abs => math::each(x, y, &$absolute),
                            Unary::Neg => math::each(x, y, &|x| x.wrapping_neg()),
                            Unary::Erf => math::each(x, y, &|x| f32_math::erf_f64(x as f64) as $type),
                            Unary::Sign => math::each(x, y, &$sign),
                            #[allow(unused_comparisons)]
                            Unary::Relu => math::each(x, y, &|x| if x < 0 { 0 } else { x }),
                            _ => y.copy_from_slice(x),
                        }
                    })*
                    _ => y.bytes.copy_from_slice(x.bytes),
                }
            };
        }
        integers! {
            I64(i64) |x| x.wrapping_abs(), |x| x.signum();
            I32(i32) |x| x.wrapping_abs(), |x| x.signum();
            I16(i16) |x| x.wrapping_abs(), |x| x.signum();
            I8(i8) |x| x.wrapping_abs(), |x| x.signum();
            U64(u64) |x| x, |x| x.min(1);
            U32(u32) |x| x, |x| x.min(1);
            U16(u16) |x| x, |x| x.min(1);
            U8(u8) |x| x, |x| x.min(1);
        }
    }
}

impl Operation for Unary {
    fn name(&self) -> &'static str {
        match self {
            Unary::Abs => "Abs",
            Unary::Neg => "Neg",
            Unary::Ceil => "Ceil",
            Unary::Floor => "Floor",
            Unary::Round => "Round",
            Unary::Sign => "Sign",
            Unary::Sqrt => "Sqrt",
            Unary::Reciprocal => "Reciprocal",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Erf => "Erf",
            Unary::Sin => "Sin",
            Unary::Cos => "Cos",
            Unary::Tan => "Tan",
            Unary::Asin => "Asin",
            Unary::Acos => "Acos",
            Unary::Atan => "Atan",
            Unary::Sinh => "Sinh",
            Unary::Cosh => "Cosh",
            Unary::Asinh => "Asinh",
            Unary::Acosh => "Acosh",
            Unary::Atanh => "Atanh",
            Unary::Relu => "Relu",
            Unary::LeakyRelu { .. } => "LeakyRelu",
            Unary::Elu { .. } => "Elu",
            Unary::Selu { .. } => "Selu",
            Unary::Celu { .. } => "Celu",
            Unary::ThresholdedRelu { .. } => "ThresholdedRelu",
            Unary::Sigmoid => "Sigmoid",
            Unary::Tanh => "Tanh",
            Unary::HardSigmoid { .. } => "HardSigmoid",
            Unary::HardSwish => "HardSwish",
            Unary::Gelu | Unary::GeluTanh => "Gelu",
            Unary::Softplus => "Softplus",
            Unary::Softsign => "Softsign",
            Unary::Mish => "Mish",
            Unary::Swish { .. } => "Swish",
        }
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new();
        match *self {
            Unary::LeakyRelu { alpha } | Unary::Elu { alpha } | Unary::Celu { alpha } | Unary::ThresholdedRelu { alpha } => {
                attributes.with("alpha", alpha)
            }
            Unary::Swish { alpha } => attributes.with("alpha", alpha),
            Unary::Selu { alpha, gamma } => attributes.with("alpha", alpha).with("gamma", gamma),
            Unary::HardSigmoid { alpha, beta } => attributes.with("alpha", alpha).with("beta", beta),
            Unary::GeluTanh => attributes.with("approximate", "tanh"),
            _ => attributes,
        }
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        match self {
            Unary::HardSwish => 14..=28,
            Unary::Mish => 18..=28,
            Unary::Gelu | Unary::GeluTanh => 20..=28,
            Unary::Swish { .. } => 24..=28,
            _ => CURRENT,
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        let dtype = match self {
            Unary::Abs | Unary::Sign | Unary::Erf | Unary::Relu => check_type(self.name(), inputs, 0, "a number", is_number),
            Unary::Neg => check_type(self.name(), inputs, 0, "a number with a sign", |dtype| is_number(dtype) && dtype.is_signed()),
            _ => check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float),
        };
        Ok(vec![dtype?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        match x.dtype {
            DType::F32 => self.f32(x.f32(), y.f32(), threads),
            DType::F16 => math::each(x.as_slice(), y.as_mut_slice(), &|x: f16| f16::from_f32(self.one(x.to_f32()))),
            DType::Bf16 => math::each(x.as_slice(), y.as_mut_slice(), &|x: bf16| bf16::from_f32(self.one(x.to_f32()))),
            DType::F64 => math::each(x.as_slice(), y.as_mut_slice(), &|x| self.f64(x)),
            _ => self.integers(x, &mut y),
        }
        Ok(())
    }
}
