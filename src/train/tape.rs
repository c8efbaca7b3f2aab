//! What a forward pass leaves, and the sums of a backward pass: by edges of the model.

use super::arithmetic::{Arithmetic, Mode};
use super::array::Array;
use super::ops::{Held, Saved};
use super::parameter::{Gradients, Parameter};
use crate::error::{Error, Result};
use crate::nn::{Edge, Model};
use crate::tensor::Tensor;

/// What a forward pass leaves for the backward pass: all values, and what each layer saved.
#[derive(Debug)]
pub struct Tape {
    pub(super) values: Vec<Option<Held>>,
    pub(super) rounded: Vec<Option<Array>>,
    pub(super) runs: Vec<Option<Run>>,
    pub(super) outputs: Vec<(String, Tensor)>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub inputs: Vec<Option<Held>>,
    pub parameters: Option<Vec<Vec<f32>>>,
    pub saved: Saved,
}

impl Tape {
    /// The outputs by name, in the model's order.
    pub fn outputs(&self) -> &[(String, Tensor)] {
        &self.outputs
    }

    /// The first output: the only one of most networks.
    pub fn output(&self) -> &Tensor {
        &self.outputs[0].1
    }

    /// The value of an edge as its readers see it; `None` where it is not of floats, or not there yet.
    pub(crate) fn read(&self, edge: usize) -> Option<&Array> {
        match (&self.rounded[edge], &self.values[edge]) {
            (Some(array), _) | (None, Some(Held::Float(array))) => Some(array),
            _ => None,
        }
    }

    /// The value of that name in `model`, that of the network which ran, row-major, as its readers see it: rounded, where there
    /// is a grid.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that no value has, [`Error::Type`] for one that is not of floats.
    pub fn value(&self, model: &Model, name: &str) -> Result<Tensor> {
        let edge = (0..self.values.len()).find(|&edge| model.edge_name_of(edge) == name);
        let edge = edge.ok_or_else(|| Error::Unknown {
            what: "value",
            name: name.to_owned(),
            present: (0..self.values.len()).map(|edge| model.edge_name_of(edge)).collect(),
        })?;
        match (self.read(edge), &self.values[edge]) {
            (Some(array), _) => array.to_tensor(),
            (None, Some(other)) => Err(Error::Type { what: format!("value `{name}`"), expected: "f32", got: other.type_name() }),
            (None, None) => Err(Error::Empty { what: format!("value `{name}`"), way_out: "ask for one that a node writes" }),
        }
    }
}

/// Keeps a value, and what the arithmetic makes of it.
pub(super) fn hold(
    tape: &mut Tape,
    edge: Edge,
    value: Held,
    arithmetic: &mut dyn Arithmetic,
    parameters: &mut [Parameter],
    mode: Mode,
) -> Result<()> {
    if let Held::Float(array) = &value {
        tape.rounded[edge.index] = arithmetic.value(edge.index, array, tape, parameters, mode)?;
    }
    tape.values[edge.index] = Some(value);
    Ok(())
}

/// Gradients by the values of edges: as they were computed, and as they were rounded.
pub(super) struct Sums {
    pub plain: Vec<Option<Array>>,
    pub rounded: Vec<Option<Array>>,
}

impl Sums {
    /// Adds a gradient by what `reader` read.
    pub fn add(&mut self, tape: &Tape, arithmetic: &dyn Arithmetic, reader: Option<usize>, edge: Edge, gradient: Array) -> Result<()> {
        let rounds = tape.rounded[edge.index].is_some() && arithmetic.reads_rounded(reader, edge.index);
        let list = if rounds { &mut self.rounded } else { &mut self.plain };
        match &mut list[edge.index] {
            Some(sum) => sum.add(&gradient),
            none => {
                *none = Some(gradient);
                Ok(())
            }
        }
    }

    /// The gradient by the value as it was computed.
    pub fn total(
        &mut self,
        tape: &Tape,
        edge: usize,
        arithmetic: &mut dyn Arithmetic,
        parameters: &[Parameter],
        sums: &mut Gradients,
    ) -> Result<Option<Array>> {
        let (plain, rounded) = (self.plain[edge].take(), self.rounded[edge].take());
        let (Some(rounded), Some(Held::Float(value))) = (rounded, &tape.values[edge]) else { return Ok(plain) };
        let through = arithmetic.value_gradient(edge, value, rounded.in_order(value.is_channels_last())?, parameters, sums)?;
        match plain {
            Some(mut plain) => plain.add(&through).map(|()| Some(plain)),
            None => Ok(Some(through)),
        }
    }
}
