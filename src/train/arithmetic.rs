//! What is rounded on the way through a network.

use super::array::Array;
use super::parameter::{Gradients, Parameter};
use super::tape::Tape;
use crate::error::Result;

/// Whether a forward pass learns: batch norms take the batch's statistics, observers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The pass before a backward pass.
    Train,
    /// As the finished network computes.
    Evaluate,
}

/// The arithmetic that a network trains in: what its parameters, values and gradients become before they are used. The methods do
/// nothing unless said otherwise, which is float32.
pub(crate) trait Arithmetic {
    /// The parameters of a node as it uses them; `None` to use them as they are.
    fn parameters(&mut self, _node: usize, _own: &[usize], _all: &mut [Parameter]) -> Result<Option<Vec<Vec<f32>>>> {
        Ok(None)
    }

    /// Of the gradients by what [`Arithmetic::parameters`] made, those by the parameters themselves, added to `sums`.
    fn parameter_gradients(
        &mut self,
        _node: usize,
        own: &[usize],
        _all: &[Parameter],
        gradients: Vec<Vec<f32>>,
        sums: &mut Gradients,
    ) -> Result<()> {
        own.iter().zip(gradients).for_each(|(&index, gradient)| sums.add(index, gradient));
        Ok(())
    }

    /// What the value of an edge becomes for those that read it rounded, given all values before it; `None` where it stays as it is.
    fn value(&mut self, _edge: usize, _value: &Array, _before: &Tape, _all: &mut [Parameter], _mode: Mode) -> Result<Option<Array>> {
        Ok(None)
    }

    /// Of the gradient by a rounded value, that by the value itself; those by parameters of the rounding go to `sums`.
    fn value_gradient(
        &mut self,
        _edge: usize,
        _value: &Array,
        gradient: Array,
        _all: &[Parameter],
        _sums: &mut Gradients,
    ) -> Result<Array> {
        Ok(gradient)
    }

    /// Whether a node, or who takes an output of the model (`None`), reads the rounded value of an edge.
    fn reads_rounded(&self, _reader: Option<usize>, _edge: usize) -> bool {
        true
    }

    /// Whether sums of products are to be exact, since they are rounded after.
    fn adds_exactly(&self) -> bool {
        false
    }

    /// Rounds the gradient of an edge's value before it goes on.
    fn gradient(&mut self, _edge: usize, _gradient: &mut Array) {}
}

/// Nothing is rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Float;

impl Arithmetic for Float {}
