//! LSTM and GRU whose weights are values of the graph instead of constants.

use std::ops::RangeInclusive;

use super::attributes::Attributes;
use super::facts::check_arity;
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs, View};
use crate::nn::{Gru, Lstm, RecurrentOptions, recurrent};
use crate::tensor::{DType, Shape, Tensor};

/// Which recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecurrentKind {
    /// [`Lstm`], with or without coupled gates.
    Lstm {
        /// Whether the forget gate is `1 - i`.
        coupled: bool,
    },
    /// [`Gru`].
    Gru {
        /// Whether the reset gate comes after the product.
        reset_after: bool,
    },
}

/// ONNX LSTM or GRU with all inputs of the standard: sequence, `W`, `R`, then optionally `B`, lengths, first `h`, and for an LSTM
/// first `c` and peepholes.
///
/// Each run packs the weights anew: with constant weights it is [`Lstm`] or [`Gru`] that one wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrent {
    kind: RecurrentKind,
    options: RecurrentOptions,
}

impl Recurrent {
    /// `options.hidden` is taken from the shape of `R`.
    pub fn new(kind: RecurrentKind, options: RecurrentOptions) -> Self {
        Recurrent { kind, options }
    }

    fn options(&self, r: &[usize]) -> Result<RecurrentOptions> {
        match *r {
            [_, _, hidden] => Ok(RecurrentOptions { hidden, ..self.options.clone() }),
            _ => Err(Error::shape("R", "[directions, gates, hidden]", r)),
        }
    }

    /// The first input of the layer's own, after the weights.
    const STATE: usize = 4;
}

impl Operation for Recurrent {
    fn name(&self) -> &'static str {
        if matches!(self.kind, RecurrentKind::Lstm { .. }) { "LSTM" } else { "GRU" }
    }

    fn attributes(&self) -> Attributes {
        self.options.attributes(match self.kind {
            RecurrentKind::Lstm { coupled } => ("input_forget", coupled),
            RecurrentKind::Gru { reset_after } => ("linear_before_reset", reset_after),
        })
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        self.options.opsets()
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        let lstm = matches!(self.kind, RecurrentKind::Lstm { .. });
        check_arity(inputs, 3, if lstm { 8 } else { 6 })?;
        for (i, dtype) in inputs.iter().enumerate() {
            let expected = if i == Recurrent::STATE { DType::I32 } else { DType::F32 };
            if let Some(other) = dtype.filter(|&dtype| dtype != expected) {
                return Err(Error::Type { what: format!("input {i} of {}", self.name()), expected: expected.name(), got: other.name() });
            }
        }
        Ok(vec![DType::F32; if lstm { 3 } else { 2 }])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let options = self.options(facts.shape(2)?.dims())?;
        let &[.., in_features] = facts.shape(1)?.dims() else {
            return Err(Error::shape("W", "[directions, gates, in]", facts.shape(1)?.dims()));
        };
        let [all, last] = options.output_shapes(facts.shape(0)?, in_features)?;
        Ok(match self.kind {
            RecurrentKind::Lstm { .. } => vec![all, last.clone(), last],
            RecurrentKind::Gru { .. } => vec![all, last],
        })
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let tensor = |view: View<'_>| Tensor::new(view.dims, view.f32().to_vec());
        let optional = |i: usize| inputs.get(i).map(tensor).transpose();
        let (w, r, b) = (tensor(inputs.need(1)?)?, tensor(inputs.need(2)?)?, optional(3)?);
        let options = self.options(r.dims())?;
        // The layer counts its inputs from the sequence on, without the weights.
        let find = |i: usize| if i == 0 { inputs.get(0) } else { inputs.get(Recurrent::STATE + i - 1) };
        let own = Inputs::new(&find, 4, false);
        let scratch = &mut recurrent::Scratch::default();
        match self.kind {
            RecurrentKind::Lstm { coupled } => {
                let layer = Lstm::new(options, &w, &r, b.as_ref(), optional(7)?.as_ref())?.with_coupled_gates(coupled);
                layer.run(&own, outputs, scratch, workspace, threads)
            }
            RecurrentKind::Gru { reset_after } => {
                Gru::new(options, reset_after, &w, &r, b.as_ref())?.run(&own, outputs, scratch, workspace, threads)
            }
        }
    }
}
