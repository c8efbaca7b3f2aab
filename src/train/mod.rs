//! Training: gradients through a model's graph, losses, optimizers, and the loop around them.
//!
//! A [`Network`] holds a model's parameters and changes them in place; [`Network::to_model`] gives the model with what was learned.
//! A forward pass leaves a [`Tape`]: every value, and what each layer needs again. From it and the gradient of a loss by the
//! outputs, the backward pass makes those by the parameters, which an [`Optimizer`] takes. [`Training`] does that for shuffled
//! batches.
//!
//! ```text
//! forward:   v[edge] = f(v[inputs], parameters)                         in the model's order
//! backward:  d[input] += (∂f/∂input)ᵀ d[edge],  d[parameter] likewise   in reverse
//! ```
//!
//! These layers have derivatives: Conv2d (groups, strides, dilation), Linear, Embedding, BatchNorm2d, LayerNormalization, all
//! smooth functions of one element and the piecewise linear ones, Add, Sub, Mul, Div and PRelu with broadcasting, MaxPool,
//! AveragePool and their global mean, Softmax and its logarithm, MatMul, Concat, Transpose, sums and means over axes, and what only
//! gives another shape. Others may stand where nothing is learned before them.
//!
//! Weights of layers are trained, and scale and shift of normalizations; other constants stay. Every sum runs in an order that
//! neither threads nor batches of other samples decide, so a seed decides a training bit for bit.

mod arithmetic;
mod array;
mod fake_quantize;
mod fit;
mod fixed_point;
mod graph;
mod loss;
mod network;
mod ops;
mod optim;
mod parameter;
mod qat;

pub use arithmetic::Mode;
pub use fake_quantize::{
    CodeBounds, fake_quantize, fake_quantize_backward, lsq_backward, lsq_factor, lsq_plus_backward, pact, pact_backward,
};
pub use fit::{Batch, Schedule, Training, shuffled};
pub use fixed_point::{FixedPoint, FixedPointConfig, FixedPointNetwork};
pub use graph::Tape;
pub use loss::{cross_entropy, distillation, mean_squared_error};
pub use network::{Network, Trainable};
pub use optim::{Adam, Optimizer, Sgd};
pub use parameter::{Gradients, Parameter, ParameterKind};
pub use qat::{ActivationTraining, Levels, Qat, QatConfig, WeightTraining, prepare_qat};
