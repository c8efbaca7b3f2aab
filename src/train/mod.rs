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
//! These layers have derivatives: Conv2d (groups, strides, dilation), Linear, Embedding, batch norms (of any rank), LayerNormalization,
//! all smooth functions of one element and the piecewise linear ones, arithmetic and powers with broadcasting, least and greatest,
//! MaxPool and AveragePool over images and both over all pixels, Softmax and its logarithm, MatMul, Gemm, sums and means over axes, and
//! what copies, moves or chooses elements: Concat, Split, Slice, Gather (by elements too), Expand, Tile, Pad, Where, Trilu, Transpose,
//! DepthToSpace and back, new shapes. Batch norms keep 0.9 of their running statistics in each step. Others may
//! stand where nothing is learned before them; where something is, the error names the layer before anything runs.
//!
//! # With the low precision in the loop
//!
//! [`prepare_qat`] puts fake quantization where an integer model rounds, and [`Qat::finish`] gives that integer model, which computes
//! what was trained but for ties of rounding ([`Qat::agreement`]). What is learned of scales is chosen by [`WeightTraining`] and
//! [`ActivationTraining`].
//!
//! # In fixed point
//!
//! A [`FixedPointNetwork`] holds all weights, values, gradients and updates as multiples of one step ([`FixedPoint`]), rounded to the
//! nearest or by chance.
//!
//! # Without a model
//!
//! On plain slices, for any framework: [`fake_quantize`] and [`fake_quantize_backward`], [`lsq_backward`], [`lsq_plus_backward`],
//! [`pact`] and [`pact_backward`], [`FixedPoint::round`], [`round_stochastic`](crate::quant::round_stochastic). Rounding has no
//! useful derivative, so the backward pass takes that of the identity (straight through) where a value was not clipped; what is
//! learned of scales, offsets and bounds has derivatives of its own. With `q(v) = clamp(round(v / s), n, p)`:
//!
//! ```text
//! fake-quantize  y = s · (clamp(round(x / s) + z, qmin, qmax) - z)      dx = dy where qmin <= round(x / s) + z <= qmax, else 0
//! LSQ            y = s · q(x)                                           ds = Σ dy · (round(x/s) - x/s inside, n below, p above)
//! LSQ+           y = s · q(x - β) + β                                   ds as above of x - β;  dβ = Σ dy outside
//! PACT           y = round(clip(x, 0, α) / s) · s, s = α / (2^bits - 1)  dα = Σ dy where x >= α
//! ```
//!
//! (Esser et al. 2020; Bhalgat et al. 2020; Choi et al. 2018.) A division is a division and ties go to the even code, as in
//! [`num::quantize`](crate::num::quantize()), so what is trained is what integers compute. NaN stays NaN: a training that has gone wrong
//! shows it.
//!
//! # What is trained
//!
//! Weights of layers are trained, scale and shift of normalizations, and slopes of PRelu; other constants stay. A
//! constant that several layers read is one parameter. Batch norms are folded
//! before quantization-aware training, which has their statistics frozen from its first step. Every sum runs in an order that
//! neither threads nor batches of other samples decide, so a seed decides a training bit for bit.

mod arithmetic;
mod array;
mod checkpoint;
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
mod tape;

pub(crate) use arithmetic::Arithmetic;
pub use arithmetic::Mode;
pub(crate) use array::Array;
pub use checkpoint::{checkpoint, resume};
pub use fake_quantize::{
    CodeBounds, fake_quantize, fake_quantize_backward, lsq_backward, lsq_factor, lsq_plus_backward, pact, pact_backward,
};
pub(crate) use fake_quantize::{learned_steps, quantize_steps};
pub use fit::{Batch, Schedule, Training, shuffled};
pub use fixed_point::{FixedPoint, FixedPointConfig, FixedPointNetwork};
pub(crate) use graph::Graph;
pub use loss::{cross_entropy, distillation, mean_squared_error};
pub use network::{Network, Trainable};
pub use optim::{Adam, Optimizer, Sgd};
pub use parameter::{Gradients, Parameter, ParameterKind};
pub use qat::{ActivationTraining, Agreement, Levels, Qat, QatConfig, WeightTraining, prepare_qat};
pub use tape::Tape;
