//! A node as the importer looks at it, and what it becomes.

use std::rc::Rc;

use super::codes::{Grid, WeightCodes};
use crate::error::Result;
use crate::io::onnx::attribute::Attributes;
use crate::nn::operator::{Squeeze, Unsqueeze};
use crate::nn::{Edge, Layer};
use crate::tensor::{DType, Element, QuantizedTensor, Tensor, Value};

/// An input of a node: its type, and its value where that is a constant.
#[derive(Debug, Clone)]
pub(super) struct Argument {
    pub dtype: DType,
    /// Number of axes, where that is known.
    pub rank: Option<usize>,
    pub constant: Option<Value>,
    /// The codes that the constant was made of.
    pub weights: Option<Rc<WeightCodes>>,
}

impl Argument {
    /// A value that is known.
    pub fn constant(value: Value) -> Self {
        Argument { dtype: value.dtype(), rank: Some(value.shape().rank()), constant: Some(value), weights: None }
    }
}

/// Where an input comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// It was left out.
    Absent,
    /// A value of the file.
    Name(&'a str),
    /// A value of the model.
    Edge(Edge),
    /// The argument's constant.
    Constant,
}

/// A node with its inputs looked up.
pub(super) struct Call<'a> {
    pub operator: &'a str,
    pub domain: &'a str,
    pub opset: i64,
    /// `None` for an optional input that was left out.
    pub arguments: Vec<Option<Argument>>,
    pub sources: Vec<Source<'a>>,
    /// The grid on which the outputs are codes in the file, where the operator here is that on floats.
    pub grid: Option<Grid>,
    /// Number of outputs, counted up to the last that has a name.
    pub outputs: usize,
    pub attributes: Attributes,
}

impl Call<'_> {
    /// Whether input `i` is there.
    pub fn has(&self, i: usize) -> bool {
        matches!(self.arguments.get(i), Some(Some(_)))
    }

    /// Element type of input `i`.
    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.arguments.get(i)?.as_ref().map(|argument| argument.dtype)
    }

    /// Number of axes of input `i`, where that is known.
    pub fn rank(&self, i: usize) -> Option<usize> {
        self.arguments.get(i)?.as_ref()?.rank
    }

    /// Input `i`, where it is a constant.
    pub fn value(&self, i: usize) -> Option<&Value> {
        self.arguments.get(i)?.as_ref()?.constant.as_ref()
    }

    /// Input `i`, where it is a constant of elements `T`.
    pub fn constant<T: Element>(&self, i: usize) -> Option<&Tensor<T>> {
        self.value(i)?.get::<T>()
    }

    /// Input `i`, where it is a constant of elements `T` (`Some(Some(_))`) or was left out (`Some(None)`).
    pub fn optional_constant<T: Element>(&self, i: usize) -> Option<Option<&Tensor<T>>> {
        if self.has(i) { self.constant(i).map(Some) } else { Some(None) }
    }

    /// The codes that input `i`, a constant, was made of.
    pub fn weights(&self, i: usize) -> Option<&WeightCodes> {
        self.arguments.get(i)?.as_ref()?.weights.as_deref()
    }

    /// The values of all inputs, where all are constants and there is at least one.
    pub fn constants(&self) -> Option<Vec<Option<&Value>>> {
        let mut values = Vec::with_capacity(self.arguments.len());
        for argument in &self.arguments {
            values.push(match argument {
                None => None,
                Some(argument) => Some(argument.constant.as_ref()?),
            });
        }
        values.iter().any(Option::is_some).then_some(values)
    }
}

/// What a node becomes: layers in a chain, of which `main` bears its name.
pub(super) struct Built {
    pub chain: Vec<Layer>,
    pub main: usize,
    /// Which of the node's inputs the first of the chain reads, by position; all when `None`.
    pub reads: Option<Vec<usize>>,
    /// The codes of the main layer's weights.
    pub weights: Option<QuantizedTensor<i8>>,
}

impl Built {
    /// One layer that reads these of the node's inputs.
    pub fn of(layer: impl Into<Layer>, reads: &[usize]) -> Self {
        Built { chain: vec![layer.into()], main: 0, reads: Some(reads.to_vec()), weights: None }
    }

    /// With the codes of its weights.
    pub fn with_weights(self, weights: Option<QuantizedTensor<i8>>) -> Self {
        Built { weights, ..self }
    }

    /// A layer of images `[n, c, 1, length]` for an input `[n, c, length]`.
    pub fn in_row(layer: Layer) -> Self {
        let chain = vec![Unsqueeze::new().with_axes([2]).into(), layer, Squeeze::new().with_axes([2]).into()];
        Built { chain, main: 1, reads: Some(vec![0]), weights: None }
    }
}

/// One operator that reads all inputs in their order.
pub(super) fn all(layer: impl Into<Layer>) -> Result<Built> {
    Ok(Built { chain: vec![layer.into()], main: 0, reads: None, weights: None })
}
