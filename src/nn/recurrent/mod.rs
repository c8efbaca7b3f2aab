//! Recurrent layers: LSTM and GRU, in float, in int8, and with weights alone quantized.
//!
//! Both run as one product of all steps with the input weights, then step by step a product of the state with the
//! recurrent weights. In int8 the weights have one scale per output channel (a row of `W` or `R`), and each row of
//! activations, input and state alike, gets its own range at every step; or, with [`RangeOf::Tensor`](crate::kernels::RangeOf), the input
//! one for all steps of the batch, and the batch's state one at every step. Weights that alone are quantized are multiplied as those of
//! [`weight_only::Linear`].

mod gru;
mod lstm;
mod passed;

pub use gru::Gru;
pub use lstm::Lstm;
pub(crate) use passed::{First, Passed, Recurrent, float_recurrent, recurrent};

use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::kernels::{Isa, Workspace};
use crate::nn::operator::{Attributes, check_arity};
use crate::nn::plan::{Fused, Stage};
use crate::nn::quantized::{self, DynamicScheme};
use crate::nn::view::Inputs;
use crate::nn::{Linear, Precision, weight_only};
use crate::num::{exp, tanh};
use crate::quant::WeightFormat;
use crate::tensor::{DType, Shape, Tensor};

/// In which order a recurrent layer walks its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first.
    Reverse,
    /// Both, with weights of their own.
    Bidirectional,
}

impl Direction {
    /// Number of directions: 1 or 2.
    pub fn count(self) -> usize {
        if self == Direction::Bidirectional { 2 } else { 1 }
    }

    fn is_reverse(self, index: usize) -> bool {
        self == Direction::Reverse || index == 1
    }
}

/// The function of a gate, of those that ONNX names.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum GateActivation {
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `tanh x`.
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// `alpha x + beta`.
    Affine(f32, f32),
    /// `x` where it is not below 0, else `alpha x`.
    LeakyRelu(f32),
    /// `x` where it is not below `alpha`, else 0.
    ThresholdedRelu(f32),
    /// `alpha tanh(beta x)`.
    ScaledTanh(f32, f32),
    /// `alpha x + beta`, clamped to 0..=1.
    HardSigmoid(f32, f32),
    /// `x` where it is not below 0, else `alpha (e^x - 1)`.
    Elu(f32),
    /// `x / (1 + |x|)`.
    Softsign,
    /// `ln(1 + e^x)`.
    Softplus,
}

impl GateActivation {
    /// The standard's name for it, alpha and beta.
    fn spelled(self) -> (&'static str, Option<f32>, Option<f32>) {
        match self {
            GateActivation::Sigmoid => ("Sigmoid", None, None),
            GateActivation::Tanh => ("Tanh", None, None),
            GateActivation::Relu => ("Relu", None, None),
            GateActivation::Affine(alpha, beta) => ("Affine", Some(alpha), Some(beta)),
            GateActivation::LeakyRelu(alpha) => ("LeakyRelu", Some(alpha), None),
            GateActivation::ThresholdedRelu(alpha) => ("ThresholdedRelu", Some(alpha), None),
            GateActivation::ScaledTanh(alpha, beta) => ("ScaledTanh", Some(alpha), Some(beta)),
            GateActivation::HardSigmoid(alpha, beta) => ("HardSigmoid", Some(alpha), Some(beta)),
            GateActivation::Elu(alpha) => ("Elu", Some(alpha), None),
            GateActivation::Softsign => ("Softsign", None, None),
            GateActivation::Softplus => ("Softplus", None, None),
        }
    }

    fn apply(self, x: f32) -> f32 {
        match self {
            GateActivation::Sigmoid => 1.0 / (1.0 + exp(-x)),
            GateActivation::Tanh => tanh(x),
            GateActivation::Relu => x.max(0.0),
            GateActivation::Affine(alpha, beta) => alpha * x + beta,
            GateActivation::LeakyRelu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
            GateActivation::ThresholdedRelu(alpha) => {
                if x >= alpha {
                    x
                } else {
                    0.0
                }
            }
            GateActivation::ScaledTanh(alpha, beta) => alpha * tanh(beta * x),
            GateActivation::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
            GateActivation::Elu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * (exp(x) - 1.0)
                }
            }
            GateActivation::Softsign => x / (1.0 + x.abs()),
            // Beyond 20 the difference to x is below half a unit in the last place.
            GateActivation::Softplus => {
                if x > 20.0 {
                    x
                } else {
                    exp(x).ln_1p()
                }
            }
        }
    }
}

/// What LSTM and GRU have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentOptions {
    /// Length of the state.
    pub hidden: usize,
    /// Which way the sequence is walked.
    pub direction: Direction,
    /// Functions of the gates, for each direction: `f, g, h` of an LSTM, `f, g` of a GRU. Empty for the usual ones.
    pub activations: Vec<GateActivation>,
    /// Inputs of the functions are clamped to `-clip..=clip`.
    pub clip: Option<f32>,
    /// Whether input and output are `[batch, step, ..]` instead of `[step, batch, ..]`.
    pub batch_first: bool,
}

impl RecurrentOptions {
    /// A state of this length, forward, with the usual functions.
    pub fn new(hidden: usize) -> Self {
        RecurrentOptions { hidden, direction: Direction::Forward, activations: Vec::new(), clip: None, batch_first: false }
    }

    /// As the standard spells them, with the flag that only one of LSTM and GRU has.
    pub(crate) fn attributes(&self, (flag, set): (&'static str, bool)) -> Attributes {
        let direction = match self.direction {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Bidirectional => "bidirectional",
        };
        let spelled: Vec<(&str, Option<f32>, Option<f32>)> = self.activations.iter().map(|function| function.spelled()).collect();
        let (alphas, betas): (Vec<f32>, Vec<f32>) =
            (spelled.iter().filter_map(|s| s.1).collect(), spelled.iter().filter_map(|s| s.2).collect());
        let names: Vec<String> = spelled.iter().map(|s| s.0.to_owned()).collect();
        Attributes::new()
            .with("hidden_size", self.hidden as i64)
            .with_other("direction", direction, "forward")
            .with_other("layout", self.batch_first, false)
            .with_some("clip", self.clip)
            .with_other("activations", names, Vec::new())
            .with_other("activation_alpha", alphas, Vec::new())
            .with_other("activation_beta", betas, Vec::new())
            .with_other(flag, set, false)
    }

    /// The versions of the standard that spell them like that.
    pub(crate) fn opsets(&self) -> RangeInclusive<i64> {
        if self.batch_first { 14..=28 } else { 13..=28 }
    }

    /// `N` functions for direction `index`.
    fn functions<const N: usize>(&self, index: usize, usual: [GateActivation; N]) -> Result<[GateActivation; N]> {
        let expected = N * self.direction.count();
        match self.activations.len() {
            0 => Ok(usual),
            given if given == expected => Ok(std::array::from_fn(|i| self.activations[index * N + i])),
            given => Err(Error::length("list of gate activations", expected, given)),
        }
    }

    fn clip(&self, x: f32) -> f32 {
        self.clip.map_or(x, |clip| x.clamp(-clip, clip))
    }

    fn validate(&self) -> Result<()> {
        if self.hidden == 0 {
            return Err(Error::parameter("hidden size", 0, "must be at least 1"));
        }
        match self.clip {
            Some(clip) if clip.is_nan() || clip < 0.0 => Err(Error::parameter("clip", clip, "must not be negative")),
            _ => Ok(()),
        }
    }

    /// Shapes of `Y` and of a final state for an input of this shape.
    pub(crate) fn output_shapes(&self, x: &Shape, in_features: usize) -> Result<[Shape; 2]> {
        let Sizes { steps, batch } = self.sizes(x.dims(), in_features)?;
        let (directions, hidden) = (self.direction.count(), self.hidden);
        Ok(match self.batch_first {
            true => [Shape::new([batch, steps, directions, hidden])?, Shape::new([batch, directions, hidden])?],
            false => [Shape::new([steps, directions, batch, hidden])?, Shape::new([directions, batch, hidden])?],
        })
    }

    fn sizes(&self, x: &[usize], in_features: usize) -> Result<Sizes> {
        match *x {
            [steps, batch, last] if !self.batch_first && last == in_features => Ok(Sizes { steps, batch }),
            [batch, steps, last] if self.batch_first && last == in_features => Ok(Sizes { steps, batch }),
            _ => {
                let axes = if self.batch_first { "batch, steps" } else { "steps, batch" };
                Err(Error::shape("input", format!("[{axes}, {in_features}]"), x))
            }
        }
    }

    /// Position of state `batch` of a direction, in rows of `hidden`.
    fn state_row(&self, sizes: Sizes, direction: usize, batch: usize) -> usize {
        if self.batch_first { batch * self.direction.count() + direction } else { direction * sizes.batch + batch }
    }

    /// Position of step `t` of a direction in `Y`, in rows of `hidden`.
    fn output_row(&self, sizes: Sizes, direction: usize, t: usize, batch: usize) -> usize {
        let directions = self.direction.count();
        match self.batch_first {
            true => (batch * sizes.steps + t) * directions + direction,
            false => (t * directions + direction) * sizes.batch + batch,
        }
    }

    /// Position of step `t` in the input, in rows.
    fn input_row(&self, sizes: Sizes, t: usize, batch: usize) -> usize {
        if self.batch_first { batch * sizes.steps + t } else { t * sizes.batch + batch }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    steps: usize,
    batch: usize,
}

/// Weights of one direction: a product in float, in int8, or of weights in any format.
#[derive(Debug, Clone)]
pub(crate) enum Projection {
    Float(Linear),
    Int8(quantized::Linear),
    WeightOnly(weight_only::Linear),
}

impl Projection {
    /// # Errors
    /// [`Error::Shape`] for other weights than `[out, in]`.
    #[cfg(all(feature = "onnx", feature = "safetensors"))]
    fn check(&self, out: usize, inner: usize) -> Result<()> {
        let got = match self {
            Projection::Float(linear) => [linear.out_features(), linear.in_features()],
            Projection::Int8(linear) => [linear.out_features(), linear.in_features()],
            Projection::WeightOnly(linear) => [linear.out_features(), linear.in_features()],
        };
        if got == [out, inner] { Ok(()) } else { Err(Error::shape("recurrent weight", format!("[{out}, {inner}]"), &got)) }
    }

    /// Length of an input row.
    pub(crate) fn in_features(&self) -> usize {
        match self {
            Projection::Float(linear) => linear.in_features(),
            Projection::Int8(linear) => linear.in_features(),
            Projection::WeightOnly(linear) => linear.in_features(),
        }
    }

    /// `y = x · weightᵀ + bias`, added to what is in `y` or not.
    fn run(&self, x: &[f32], rows: usize, add: bool, y: &mut [f32], workspace: &mut Workspace, threads: usize) -> Result<()> {
        let fused = Fused { residual: add, ..Fused::default() };
        match self {
            Projection::Float(linear) => linear.run(x, rows, fused, y, threads),
            Projection::Int8(linear) => linear.run(x, rows, Stage { fused, ..Stage::default() }, y, workspace, threads),
            Projection::WeightOnly(linear) => linear.run(x, rows, fused, y, workspace, threads),
        }
    }

    fn quantized(&self, scheme: &DynamicScheme, isa: Isa) -> Result<Projection> {
        match self {
            Projection::Float(linear) => {
                let bias = linear.bias().map(Tensor::as_slice);
                quantized::Linear::from_tensor(linear.weight(), bias, scheme, isa).map(Projection::Int8)
            }
            Projection::Int8(_) | Projection::WeightOnly(_) => Ok(self.clone()),
        }
    }

    fn precision(&self) -> Precision {
        match self {
            Projection::Float(_) => Precision::F32,
            Projection::Int8(_) => Precision::Int8,
            Projection::WeightOnly(linear) => linear.activations().precision(),
        }
    }

    /// The format of weights that alone are quantized.
    pub(crate) fn weight_format(&self) -> Option<&WeightFormat> {
        match self {
            Projection::WeightOnly(linear) => Some(linear.weight().format()),
            _ => None,
        }
    }

    fn kernel_name(&self) -> Option<&'static str> {
        match self {
            Projection::Int8(linear) => Some(linear.kernel_name()),
            _ => None,
        }
    }

    fn weights(&self) -> usize {
        match self {
            Projection::Float(linear) => linear.weight().len(),
            Projection::Int8(linear) => linear.in_features() * linear.out_features(),
            Projection::WeightOnly(linear) => linear.in_features() * linear.out_features(),
        }
    }

    /// Bytes of weights and bias as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        match self {
            Projection::Float(_) => self.bytes().into_iter().sum(),
            Projection::Int8(linear) => linear.stored_bytes(),
            Projection::WeightOnly(linear) => linear.weight().stored_bytes() + 4 * linear.bias().map_or(0, <[f32]>::len),
        }
    }

    /// Bytes of the weights and what is needed to read them, and of the bias.
    fn bytes(&self) -> [usize; 2] {
        match self {
            Projection::Float(linear) => [4 * linear.weight().len(), 4 * linear.bias().map_or(0, Tensor::len)],
            Projection::Int8(linear) => [linear.weight_bytes(), 4 * linear.bias().map_or(0, <[f32]>::len)],
            Projection::WeightOnly(linear) => [linear.weight().bytes(), 4 * linear.bias().map_or(0, <[f32]>::len)],
        }
    }
}

/// Rows `rows` of `tensor[direction]`, which is `[directions, all, width]`.
fn rows_of(tensor: &Tensor, direction: usize, rows: std::ops::Range<usize>) -> Result<Tensor> {
    let &[_, _, width] = tensor.dims() else {
        return Err(Error::shape("weight", "[directions, gates, features]", tensor.dims()));
    };
    tensor.slice(0, direction..direction + 1)?.slice(1, rows.clone())?.reshape([rows.len(), width])
}

/// Entries `range` of `tensor[direction]`, which is `[directions, all]`; zeros when there is none.
fn entries_of(tensor: Option<&Tensor>, direction: usize, range: std::ops::Range<usize>) -> Result<Vec<f32>> {
    match tensor {
        None => Ok(vec![0.0; range.len()]),
        Some(tensor) => Ok(tensor.slice(0, direction..direction + 1)?.slice(1, range)?.into_vec()),
    }
}

fn check(what: &str, tensor: Option<&Tensor>, expected: &[usize]) -> Result<()> {
    match tensor {
        Some(tensor) if tensor.dims() != expected => Err(Error::shape(what, format!("{expected:?}"), tensor.dims())),
        _ => Ok(()),
    }
}

/// Steps of each sequence of the batch: all, or what input `i` says.
fn lengths(inputs: &Inputs<'_>, i: usize, sizes: Sizes, lengths: &mut Vec<usize>) -> Result<()> {
    lengths.clear();
    match inputs.get(i) {
        None => lengths.resize(sizes.batch, sizes.steps),
        Some(view) => {
            for length in view.ints()? {
                let fits = usize::try_from(length).ok().filter(|&length| length <= sizes.steps);
                lengths
                    .push(fits.ok_or_else(|| Error::parameter("sequence length", length, format!("must lie within 0..={}", sizes.steps)))?);
            }
            if lengths.len() != sizes.batch {
                return Err(Error::length("list of sequence lengths", sizes.batch, lengths.len()));
            }
        }
    }
    Ok(())
}

/// A state `[directions, batch, hidden]` (or batch first), or nothing, which means zeros.
fn initial<'a>(inputs: &Inputs<'a>, i: usize, what: &str, expected: usize) -> Result<Option<&'a [f32]>> {
    match inputs.get(i) {
        None => Ok(None),
        Some(view) if view.f32().len() == expected => Ok(Some(view.f32())),
        Some(view) => Err(Error::length(format!("{what} of shape {:?}", view.dims), expected, view.f32().len())),
    }
}

/// Memory of a run, kept in the layer's executor between runs.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    gates: Vec<f32>,
    state: Vec<f32>,
    cell: Vec<f32>,
    extra: Vec<f32>,
    lengths: Vec<usize>,
}

/// Types of the outputs of a layer whose inputs are the sequence, its lengths, and the first states.
pub(crate) fn infer_types(inputs: &[Option<DType>], is_lstm: bool) -> Result<Vec<DType>> {
    let states = if is_lstm { 2 } else { 1 };
    check_arity(inputs, 1, 2 + states)?;
    for (i, dtype) in inputs.iter().enumerate() {
        let expected = if i == 1 { DType::I32 } else { DType::F32 };
        if let Some(other) = dtype.filter(|&dtype| dtype != expected) {
            return Err(Error::Type { what: format!("input {i}"), expected: expected.name(), got: other.name() });
        }
    }
    Ok(vec![DType::F32; 1 + states])
}
