//! Batch normalization as an operator: parameters that come as inputs.

use super::attributes::Attributes;
use super::numbers::{check_type, from_reals, in_real, in_reals, is_float};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::kernels::math::vectorized;
use crate::kernels::rows::Real;
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX BatchNormalization of floats `[n, c, ..]`, with scale, bias, mean and variance of each channel as further inputs:
/// `(x - mean) / √(variance + epsilon) · scale + bias`. 16-bit floats are computed in f32 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormalization {
    epsilon: f64,
    /// In training.
    momentum: Option<f64>,
}

impl BatchNormalization {
    /// With the mean and the variance that come as inputs.
    pub fn new(epsilon: f32) -> Self {
        BatchNormalization { epsilon: epsilon.into(), momentum: None }
    }

    /// The epsilon, if mean and variance come as inputs.
    pub(crate) fn given_epsilon(&self) -> Option<f32> {
        self.momentum.is_none().then_some(self.epsilon as f32)
    }

    /// With those of the first input itself, and two more outputs: `momentum · given + (1 - momentum) · found` of the mean and of
    /// the variance.
    #[must_use]
    pub fn in_training(self, momentum: f32) -> Self {
        BatchNormalization { momentum: Some(momentum.into()), ..self }
    }
}

/// Mean and variance of each channel of `(outer, channels, inner)`, in f64.
fn statistics<R: Real>(x: &[R], (channels, inner): (usize, usize)) -> (Vec<f64>, Vec<f64>) {
    let count = (x.len() / channels.max(1)) as f64;
    let total = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
        let mut totals = vec![0.0; channels];
        for (i, run) in x.chunks_exact(inner.max(1)).enumerate() {
            let c = i % channels;
            totals[c] += run.iter().map(|x| f(c, x.wide())).sum::<f64>();
        }
        totals.iter_mut().for_each(|total| *total /= count);
        totals
    };
    let mean = total(&|_, x| x);
    let variance = total(&|c, x| (x - mean[c]) * (x - mean[c]));
    (mean, variance)
}

/// Channels whose factors are held at a time where they lie side by side.
const BLOCK: usize = 64;

/// `y = x · a + b` with the `(a, b)` of each channel.
fn affine<R: Real>(x: &[R], (channels, inner): (usize, usize), of: impl Fn(usize) -> (R, R), y: &mut [R]) {
    if x.is_empty() {
        return;
    }
    vectorized(
        #[inline(always)]
        || {
            if inner > 1 {
                for (i, (x, y)) in x.chunks_exact(inner).zip(y.chunks_exact_mut(inner)).enumerate() {
                    let (a, b) = of(i % channels);
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * a + b);
                }
                return;
            }
            for first in (0..channels).step_by(BLOCK) {
                let width = BLOCK.min(channels - first);
                let (mut a, mut b) = ([R::zero(); BLOCK], [R::zero(); BLOCK]);
                (0..width).for_each(|c| (a[c], b[c]) = of(first + c));
                for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
                    let row = y[first..first + width].iter_mut().zip(&x[first..]);
                    row.zip(a.iter().zip(&b)).for_each(|((y, &x), (&a, &b))| *y = x * a + b);
                }
            }
        },
    );
}

impl Operation for BatchNormalization {
    fn name(&self) -> &'static str {
        "BatchNormalization"
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with("epsilon", self.epsilon as f32);
        match self.momentum {
            Some(momentum) => attributes.with("momentum", momentum as f32).with("training_mode", true),
            None => attributes,
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 5, 5)?;
        let mut types = Vec::with_capacity(5);
        for i in 0..5 {
            types.push(check_type(self.name(), inputs, i, "f32, f64, f16 or bf16", is_float)?);
        }
        Ok(if self.momentum.is_some() { vec![types[0], types[3], types[4]] } else { vec![types[0]] })
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?.clone();
        let channels = match *shape.dims() {
            [] => return Err(Error::shape("input", "[n, c, ..]", &[])),
            [_] => 1,
            [_, channels, ..] => channels,
        };
        for (i, what) in [(1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")] {
            if facts.shape(i)?.dims() != [channels] {
                return Err(Error::shape(what, format!("[{channels}]"), facts.shape(i)?.dims()));
            }
        }
        let each = Shape::new([channels])?;
        Ok(if self.momentum.is_some() { vec![shape, each.clone(), each] } else { vec![shape] })
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let x = inputs.need(0)?;
        let layout = match x.dims.len() {
            0 | 1 => (1, x.dims.iter().product()),
            rank => {
                let axis = inputs.axis(1, rank);
                (x.dims[axis], x.dims[axis + 1..].iter().product())
            }
        };
        let (scale, bias, mean, variance) = (inputs.need(1)?, inputs.need(2)?, inputs.need(3)?, inputs.need(4)?);
        let found = self.momentum.map(|_| match x.dtype {
            DType::F64 => statistics::<f64>(x.as_slice(), layout),
            _ => statistics::<f32>(&in_real(&x), layout),
        });
        {
            let mut y = outputs.get(0);
            in_reals!(x, y, |x, y: R| {
                let (scale, bias) = (in_real::<R>(&scale), in_real::<R>(&bias));
                let (mean, variance) = (in_real::<R>(&mean), in_real::<R>(&variance));
                let of = |c: usize| {
                    let (mean, variance) = match &found {
                        Some((means, variances)) => (means[c], variances[c]),
                        None => (mean[c].wide(), variance[c].wide()),
                    };
                    let a = scale[c].wide() / (variance + self.epsilon).sqrt();
                    (R::of(a), R::of(bias[c].wide() - mean * a))
                };
                affine::<R>(x, layout, of, y);
            });
        }
        if let (Some(momentum), Some((means, variances))) = (self.momentum, found) {
            for (i, given, found) in [(1, mean, means), (2, variance, variances)] {
                let given = in_real::<f64>(&given);
                let blend = given.iter().zip(&found).map(|(given, found)| momentum * given + (1.0 - momentum) * found);
                from_reals(blend, &mut outputs.get(i));
            }
        }
        Ok(())
    }
}
