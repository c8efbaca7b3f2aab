//! What training changes.

use crate::error::{Error, Result};
use crate::nn::StateDict;
use crate::tensor::{Tensor, Value};

/// What a parameter is to its layer; optimizers treat kinds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParameterKind {
    /// Weights of a convolution, a linear layer or an embedding: what weight decay is for.
    Weight,
    /// What is added to sums.
    Bias,
    /// Scale or shift of a normalization; the slope of a PRelu.
    Norm,
    /// A scale, offset or clipping bound that quantization-aware training learns.
    Quantization,
    /// Running statistics: no gradient, changed by the forward pass.
    Statistic,
}

/// A named tensor of a network that trains.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub(crate) name: String,
    pub(crate) value: Tensor,
    pub(crate) kind: ParameterKind,
}

impl Parameter {
    pub(crate) fn new(name: impl Into<String>, value: Tensor, kind: ParameterKind) -> Self {
        Parameter { name: name.into(), value, kind }
    }

    /// Its name, as in `conv1.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Its value, for writing.
    pub fn value_mut(&mut self) -> &mut Tensor {
        &mut self.value
    }

    /// What it is.
    pub fn kind(&self) -> ParameterKind {
        self.kind
    }

    /// Whether an optimizer changes it.
    pub fn is_trained(&self) -> bool {
        self.kind != ParameterKind::Statistic
    }
}

/// Of each parameter, in their order, the derivative of the loss by each element; empty for those that have none.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    pub(crate) by_parameter: Vec<Vec<f32>>,
    pub(crate) by_input: Vec<(String, Tensor)>,
}

impl Gradients {
    pub(crate) fn new(parameters: &[Parameter]) -> Self {
        Gradients { by_parameter: vec![Vec::new(); parameters.len()], by_input: Vec::new() }
    }

    /// Of the parameter at this place in the network's list.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn get(&self, index: usize) -> &[f32] {
        &self.by_parameter[index]
    }

    /// Of the parameter at this place, for writing: to clip or to round.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn get_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.by_parameter[index]
    }

    /// Of an input of the model; `None` where it was not asked for.
    pub fn input(&self, name: &str) -> Option<&Tensor> {
        self.by_input.iter().find(|(other, _)| other == name).map(|(_, gradient)| gradient)
    }

    /// `√Σ g²` over all parameters, in f64.
    pub fn norm(&self) -> f64 {
        let squares = |gradient: &Vec<f32>| gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        self.by_parameter.iter().map(squares).sum::<f64>().sqrt()
    }

    /// Scales all gradients so that their norm is at most `limit`.
    pub fn clip(&mut self, limit: f64) {
        let norm = self.norm();
        if norm > limit {
            let factor = (limit / norm) as f32;
            self.by_parameter.iter_mut().flatten().for_each(|g| *g *= factor);
        }
    }

    /// Adds the gradient of a parameter.
    pub(crate) fn add(&mut self, index: usize, gradient: Vec<f32>) {
        let sum = &mut self.by_parameter[index];
        if sum.is_empty() {
            *sum = gradient;
        } else {
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    }
}

/// All values by name: a checkpoint's content, for `io::safetensors::write`.
pub(crate) fn state(parameters: &[Parameter]) -> Vec<(String, Value)> {
    parameters.iter().map(|parameter| (parameter.name.clone(), Value::from(parameter.value.clone()))).collect()
}

/// Takes the values of all parameters out of `state`; on an error nothing changes.
///
/// # Errors
/// Those of [`StateDict::take`], which name the missing or wrongly shaped tensor.
pub(crate) fn load(parameters: &mut [Parameter], state: &mut StateDict) -> Result<()> {
    let mut rest = state.clone();
    let values: Vec<Tensor> =
        parameters.iter().map(|parameter| rest.take(&parameter.name, parameter.value.dims())).collect::<Result<_>>()?;
    parameters.iter_mut().zip(values).for_each(|(parameter, value)| parameter.value = value);
    *state = rest;
    Ok(())
}

/// [`state`], and a count under this name.
pub(crate) fn counted_state(parameters: &[Parameter], name: &str, count: u64) -> Vec<(String, Value)> {
    let mut state = state(parameters);
    state.push((name.to_owned(), counted(count)));
    state
}

/// [`load`], and the count of this name; on an error nothing changes.
///
/// # Errors
/// Those of [`load`] and [`take_count`].
pub(crate) fn load_counted(parameters: &mut [Parameter], state: &mut StateDict, name: &str) -> Result<u64> {
    let mut rest = state.clone();
    let count = take_count(&mut rest, name)?;
    load(parameters, &mut rest)?;
    *state = rest;
    Ok(count)
}

/// A count as a tensor, for a checkpoint.
pub(crate) fn counted(count: u64) -> Value {
    Value::from(Tensor::new([1], vec![count as i64]).expect("one element"))
}

/// Takes a count out of a checkpoint.
///
/// # Errors
/// [`Error::Unknown`] when it is missing, [`Error::Parameter`] for what is no count.
pub(crate) fn take_count(state: &mut StateDict, name: &str) -> Result<u64> {
    let value = state.get(name);
    let value = value.ok_or_else(|| Error::Unknown { what: "tensor", name: name.to_owned(), present: state.names().collect() })?;
    let count = match value.get::<i64>().map(Tensor::as_slice) {
        Some(&[count]) => u64::try_from(count).ok(),
        _ => None,
    };
    let count = count.ok_or_else(|| Error::parameter("count in a checkpoint", name, "must be one i64 of at least 0"))?;
    state.discard(name);
    Ok(count)
}
