//! What layers do in both directions, one file a family: forward beside backward.
//!
//! A layer gets its inputs in the order that it asks for, and its parameters as the arithmetic made them. What it needs again for
//! the backward pass, besides inputs and output, it saves.

mod activation;
mod batch_norm;
mod binary;
mod conv;
mod embedding;
mod grouped;
mod layer_norm;
mod linear;
mod matmul;
mod moved;
mod movement;
mod pool;
mod product;
mod reduce;
mod softmax;
mod variadic;
mod wide;

use std::fmt;

use super::arithmetic::Mode;
use super::array::Array;
use super::parameter::{Parameter, ParameterKind};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::Operator;
use crate::nn::{Layer, evaluate_within};
use crate::tensor::{Tensor, Value};

/// A value on an edge: of floats, which have gradients, or of anything else.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    Float(Array),
    Other(Value),
}

impl Held {
    pub fn of(value: Value) -> Held {
        match value {
            Value::F32(tensor) => Held::Float(Array::row_major(tensor)),
            other => Held::Other(other),
        }
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Held::Float(_) => "f32",
            Held::Other(value) => value.dtype().name(),
        }
    }

    /// The value as operators take it. Of images that lie channels-last, the axes as they lie.
    fn to_value(&self) -> Value {
        match self {
            Held::Float(array) => Value::from(array.held().clone()),
            Held::Other(value) => value.clone(),
        }
    }
}

/// How images must lie for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    RowMajor,
    ChannelsLast,
    /// As the first input lies, if all inputs have its dimensions; else row-major.
    Alike,
}

/// What the backward pass needs again.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    pub indices: Vec<u32>,
    pub numbers: Vec<f32>,
}

/// What a layer computes its output from.
pub(crate) struct Forward<'a> {
    pub inputs: &'a [Option<Held>],
    pub parameters: &'a [&'a [f32]],
    pub mode: Mode,
    pub workspace: &'a mut Workspace,
    pub threads: usize,
    /// Whether sums of products are to be exact.
    pub exact: bool,
    pub saved: Saved,
    /// Parameters that the pass itself changes: place in the layer's list, and value.
    pub statistics: Vec<(usize, Vec<f32>)>,
    /// The same where they are constants that come as inputs: which input, and value.
    pub input_statistics: Vec<(usize, Vec<f32>)>,
}

/// What a layer computes gradients from, and where they go.
pub(crate) struct Backward<'a> {
    pub inputs: &'a [Option<Held>],
    pub parameters: &'a [&'a [f32]],
    pub output: &'a Array,
    /// Which output that is.
    pub at: usize,
    /// By the output, which it lies like.
    pub gradient: &'a Array,
    pub saved: &'a Saved,
    /// By input: whether somebody wants its gradient.
    pub wanted: &'a [bool],
    pub workspace: &'a mut Workspace,
    pub threads: usize,
    /// Whether sums of products are to be exact.
    pub exact: bool,
    pub by_input: Vec<Option<Array>>,
    pub by_parameter: Vec<Vec<f32>>,
}

/// The float value of an input.
///
/// # Errors
/// [`Error::Type`] for another one.
pub(super) fn float(inputs: &[Option<Held>], index: usize) -> Result<&Array> {
    match inputs.get(index) {
        Some(Some(Held::Float(array))) => Ok(array),
        Some(Some(Held::Other(value))) => Err(Error::Type { what: format!("input {index}"), expected: "f32", got: value.dtype().name() }),
        _ => Err(Error::parameter("input", index, "was left out, and must be given")),
    }
}

/// A layer in both directions.
pub(crate) trait Differentiable: fmt::Debug + Send + Sync {
    fn layout(&self) -> Layout {
        Layout::RowMajor
    }

    /// Whether it has a derivative by this input, if that is of floats.
    fn has_derivative(&self, _input: usize) -> bool {
        true
    }

    /// Whether it may have several outputs, which are then those of inference; the backward pass is for one at a time.
    fn writes_several(&self) -> bool {
        false
    }

    /// # Errors
    /// Of shapes that do not fit.
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array>;

    /// Adds nothing up: what `by_input` and `by_parameter` get is of this output alone.
    ///
    /// # Errors
    /// Of shapes that do not fit.
    fn backward(&self, run: &mut Backward<'_>) -> Result<()>;
}

/// A layer's function as inference runs it.
fn evaluate(layer: &Layer, inputs: &[Option<Held>]) -> Result<Array> {
    match evaluate_all(layer, inputs)?.swap_remove(0) {
        Held::Float(array) => Ok(array),
        Held::Other(value) => Err(Error::Type { what: "output".into(), expected: "f32", got: value.dtype().name() }),
    }
}

/// All outputs of a layer, as inference computes them from inputs that lie row-major.
pub(super) fn evaluate_all(layer: &Layer, inputs: &[Option<Held>]) -> Result<Vec<Held>> {
    let values: Vec<Option<Value>> = inputs.iter().map(|input| input.as_ref().map(Held::to_value)).collect();
    let values: Vec<Option<&Value>> = values.iter().map(Option::as_ref).collect();
    let outputs = evaluate_within(layer, &values, usize::MAX)?.expect("there is no limit");
    Ok(outputs.into_iter().map(Held::of).collect())
}

/// The layer in both directions, and its parameters under names that begin with the node's; `None` for one that has no
/// derivative here.
pub(crate) fn of(name: &str, layer: &Layer) -> Option<(Box<dyn Differentiable>, Vec<Parameter>)> {
    let parameter = |what: &str, value: &Tensor, kind| Parameter::new(format!("{name}.{what}"), value.clone(), kind);
    let weighted = |weight: &Tensor, bias: Option<&Tensor>| {
        let bias = bias.map(|bias| parameter("bias", bias, ParameterKind::Bias));
        [parameter("weight", weight, ParameterKind::Weight)].into_iter().chain(bias).collect()
    };
    Some(match layer {
        Layer::Conv2d(conv) => (Box::new(conv::Conv::new(conv.geometry())), weighted(conv.weight(), conv.bias())),
        Layer::Linear(linear) => (Box::new(linear::FullyConnected::new(linear)), weighted(linear.weight(), linear.bias())),
        Layer::Embedding(table) => (Box::new(embedding::LookUp::new(table)), weighted(table.weight(), None)),
        Layer::BatchNorm2d(norm) => {
            let [weight, bias, mean, variance] = norm.parameters();
            let parameters = vec![
                parameter("weight", weight, ParameterKind::Norm),
                parameter("bias", bias, ParameterKind::Norm),
                parameter("running_mean", mean, ParameterKind::Statistic),
                parameter("running_var", variance, ParameterKind::Statistic),
            ];
            (Box::new(batch_norm::Norm::new(norm.epsilon())), parameters)
        }
        other => (without_parameters(other)?, Vec::new()),
    })
}

fn without_parameters(layer: &Layer) -> Option<Box<dyn Differentiable>> {
    Some(match layer {
        Layer::Relu | Layer::Relu6 => Box::new(activation::Clamp::of(layer)?),
        Layer::MaxPool2d(pool) => Box::new(pool::Pooled::new(pool.clone().into())),
        Layer::AvgPool2d(pool) => Box::new(pool::Pooled::new(pool.clone().into())),
        Layer::GlobalAvgPool2d(_) => Box::new(pool::Mean),
        Layer::Add => Box::new(binary::Elementwise::new(layer, binary::Form::Sum)),
        Layer::Flatten { .. } => Box::new(movement::Renamed::new(layer)),
        Layer::Softmax { axis } => Box::new(softmax::Normalized::new(layer, *axis as i64, false)),
        Layer::Operator(operator) => return operators(layer, operator),
        _ => return None,
    })
}

fn operators(layer: &Layer, operator: &Operator) -> Option<Box<dyn Differentiable>> {
    Some(match operator {
        Operator::Clip(_) => Box::new(activation::Clip::new(layer)),
        Operator::Unary(function) => Box::new(activation::Function::new(layer, *function)?),
        Operator::Binary(function) => Box::new(binary::Elementwise::new(layer, binary::Form::of(*function)?)),
        Operator::Pool(pool) if pool.takes_images() && (pool.is_max() || pool.averages_images().is_some()) => {
            Box::new(pool::Pooled::new(pool.clone()))
        }
        Operator::GlobalPool(pool) if pool.is_average() => Box::new(pool::Mean),
        Operator::GlobalPool(pool) if pool.is_max() => Box::new(pool::Largest),
        Operator::Gemm(gemm) => Box::new(matmul::Gemm::new(layer, *gemm)),
        Operator::Pow(_) => Box::new(binary::Elementwise::new(layer, binary::Form::Power)),
        Operator::Variadic(function) => Box::new(variadic::Folded::new(layer, *function)),
        Operator::BatchNormalization(norm) => Box::new(batch_norm::Norm::of_inputs(norm.given_epsilon()?)),
        Operator::Where(_) => Box::new(moved::Moved::new(layer, 1..3)),
        Operator::Slice(_)
        | Operator::Split(_)
        | Operator::Gather(_)
        | Operator::GatherElements(_)
        | Operator::GatherNd(_)
        | Operator::Expand(_)
        | Operator::Tile(_)
        | Operator::Pad(_)
        | Operator::Trilu(_)
        | Operator::DepthToSpace(_)
        | Operator::SpaceToDepth(_)
        | Operator::ReverseSequence(_) => Box::new(moved::Moved::new(layer, 0..1)),
        Operator::MatMul(product) if product.is_plain() => Box::new(matmul::MatMul::new(layer)),
        Operator::Softmax(softmax) => {
            let (axis, log) = softmax.along_one_axis()?;
            Box::new(softmax::Normalized::new(layer, axis, log))
        }
        Operator::LayerNormalization(norm) if !norm.has_statistics() => Box::new(layer_norm::Rows::new(layer, norm)),
        Operator::Transpose(transpose) => Box::new(movement::Transposed::new(layer, transpose)),
        Operator::Concat(concat) => Box::new(movement::Joined::new(layer, concat.axis())),
        Operator::Reduce(reduce) => Box::new(reduce::Spread::new(layer, reduce)?),
        _ if layer.renames() => Box::new(movement::Renamed::new(layer)),
        _ => return None,
    })
}
