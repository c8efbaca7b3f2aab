//! Functions of each element by itself.

use super::{Backward, Differentiable, Forward, Held, Layout, evaluate, float};
use crate::error::Result;
use crate::kernels::math;
use crate::nn::Layer;
use crate::nn::operator::Unary;
use crate::num::math::{erf, exp, sigmoid, softplus, tanh};
use crate::tensor::Value;
use crate::train::array::Array;

/// `dx[i] = dy[i] · f(x[i], y[i])`.
fn chain(run: &mut Backward<'_>, f: impl Fn(f32, f32) -> f32) -> Result<()> {
    if run.wanted[0] {
        let x = float(run.inputs, 0)?;
        let inner = x.data().iter().zip(run.output.data()).zip(run.gradient.data());
        let by_input = inner.map(|((&x, &y), g)| g * f(x, y)).collect();
        run.by_input[0] = Some(Array::like(x, by_input)?);
    }
    Ok(())
}

/// ReLU and ReLU6. The derivative is 1 strictly between the bounds and 0 elsewhere, as in PyTorch.
#[derive(Debug)]
pub struct Clamp {
    hi: f32,
}

impl Clamp {
    pub fn of(layer: &Layer) -> Option<Self> {
        match layer {
            Layer::Relu => Some(Clamp { hi: f32::INFINITY }),
            Layer::Relu6 => Some(Clamp { hi: 6.0 }),
            _ => None,
        }
    }
}

impl Differentiable for Clamp {
    fn layout(&self) -> Layout {
        Layout::Alike
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let (x, hi) = (float(run.inputs, 0)?, self.hi);
        let mut y = vec![0.0; x.data().len()];
        math::map(
            x.data(),
            &mut y,
            run.threads,
            #[inline(always)]
            move |x: f32| {
                if x < 0.0 {
                    0.0
                } else if x > hi {
                    hi
                } else {
                    x
                }
            },
        );
        Array::like(x, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let hi = self.hi;
        chain(run, |x, _| f32::from(u8::from(x > 0.0 && x < hi)))
    }
}

/// A clamp between bounds that are values. The derivative is 1 between the bounds and at them, as in PyTorch.
#[derive(Debug)]
pub struct Clip {
    layer: Layer,
}

impl Clip {
    pub fn new(layer: &Layer) -> Self {
        Clip { layer: layer.clone() }
    }

    fn bound(&self, inputs: &[Option<Held>], index: usize, none: f32) -> f32 {
        let given = match inputs.get(index) {
            Some(Some(Held::Float(array))) => array.data().first().copied(),
            _ => None,
        };
        let fixed = match &self.layer {
            Layer::Operator(crate::nn::operator::Operator::Clip(clip)) => [clip.bounds().0, clip.bounds().1][index - 1],
            _ => None,
        };
        given.or(fixed).unwrap_or(none)
    }
}

impl Differentiable for Clip {
    fn has_derivative(&self, input: usize) -> bool {
        input == 0
    }

    fn layout(&self) -> Layout {
        Layout::Alike
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        like_first(run, evaluate(&self.layer, run.inputs)?)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (lo, hi) = (self.bound(run.inputs, 1, f32::NEG_INFINITY), self.bound(run.inputs, 2, f32::INFINITY));
        chain(run, |x, _| f32::from(u8::from(x >= lo && x <= hi)))
    }
}

/// The elements of a value that was computed as its input lies.
fn like_first(run: &Forward<'_>, y: Array) -> Result<Array> {
    let x = float(run.inputs, 0)?;
    Array::like(x, y.held().clone().into_vec())
}

/// One of ONNX's functions.
#[derive(Debug)]
pub struct Function {
    layer: Layer,
    function: Unary,
}

impl Function {
    /// `None` for a function without a derivative here.
    pub fn new(layer: &Layer, function: Unary) -> Option<Self> {
        derivative(function, 0.5, 0.5).map(|_| Function { layer: layer.clone(), function })
    }
}

/// `f'(x)`, given `y = f(x)`; `None` for a function that is flat nearly everywhere.
fn derivative(function: Unary, x: f32, y: f32) -> Option<f32> {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
    let step = |yes: bool| f32::from(u8::from(yes));
    Some(match function {
        Unary::Abs => {
            if x > 0.0 {
                1.0
            } else {
                -step(x < 0.0)
            }
        }
        Unary::Neg => -1.0,
        Unary::Sqrt => 0.5 / y,
        Unary::Reciprocal => -y * y,
        Unary::Exp => y,
        Unary::Log => 1.0 / x,
        Unary::Erf => 2.0 * SQRT_2_OVER_PI * std::f32::consts::FRAC_1_SQRT_2 * exp(-x * x),
        Unary::Sin => x.cos(),
        Unary::Cos => -x.sin(),
        Unary::Tan => 1.0 + y * y,
        Unary::Asin => 1.0 / (1.0 - x * x).sqrt(),
        Unary::Acos => -1.0 / (1.0 - x * x).sqrt(),
        Unary::Atan => 1.0 / (1.0 + x * x),
        Unary::Sinh => x.cosh(),
        Unary::Cosh => x.sinh(),
        Unary::Asinh => 1.0 / (x * x + 1.0).sqrt(),
        Unary::Acosh => 1.0 / (x * x - 1.0).sqrt(),
        Unary::Atanh => 1.0 / (1.0 - x * x),
        Unary::Relu => step(x > 0.0),
        Unary::LeakyRelu { alpha } => {
            if x > 0.0 {
                1.0
            } else {
                alpha
            }
        }
        Unary::Elu { alpha } => {
            if x > 0.0 {
                1.0
            } else {
                y + alpha
            }
        }
        Unary::Selu { alpha, gamma } => {
            if x > 0.0 {
                gamma
            } else {
                y + gamma * alpha
            }
        }
        Unary::Celu { alpha } => {
            if x > 0.0 {
                1.0
            } else {
                exp(x / alpha)
            }
        }
        Unary::ThresholdedRelu { alpha } => step(x > alpha),
        Unary::Sigmoid => y * (1.0 - y),
        Unary::Tanh => 1.0 - y * y,
        Unary::HardSigmoid { alpha, .. } => alpha * step(y > 0.0 && y < 1.0),
        Unary::HardSwish => {
            if x <= -3.0 {
                0.0
            } else if x >= 3.0 {
                1.0
            } else {
                x / 3.0 + 0.5
            }
        }
        Unary::Gelu => 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * INVERSE_SQRT_2PI * exp(-0.5 * x * x),
        Unary::GeluTanh => {
            let t = tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
        }
        Unary::Softplus => sigmoid(x),
        Unary::Softsign => 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs())),
        Unary::Mish => {
            let t = tanh(softplus(x));
            t + x * (1.0 - t * t) * sigmoid(x)
        }
        Unary::Swish { alpha } => {
            let s = sigmoid(alpha * x);
            s + alpha * x * s * (1.0 - s)
        }
        _ => return None,
    })
}

impl Differentiable for Function {
    fn layout(&self) -> Layout {
        Layout::Alike
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        // Row-major or not makes no difference to single elements.
        let x = Some(Held::of(Value::from(float(run.inputs, 0)?.held().clone())));
        let y = evaluate(&self.layer, &[x])?;
        like_first(run, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        chain(run, |x, y| derivative(self.function, x, y).unwrap_or(0.0))
    }
}
