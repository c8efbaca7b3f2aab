//! A float network that trains.

use super::arithmetic::{Float, Mode};
use super::graph::Graph;
use super::parameter::{Gradients, Parameter, counted_state, load, load_counted, state};
use super::tape::Tape;
use crate::error::{Error, Result};
use crate::nn::{Model, StateDict};
use crate::tensor::{Tensor, Value};

/// What can be trained: a network in float, with fake-quantized values, or in fixed point.
pub trait Trainable {
    /// Everything that training changes, running statistics included.
    fn parameters(&self) -> &[Parameter];

    /// The same, for writing.
    fn parameters_mut(&mut self) -> &mut [Parameter];

    /// Runs named inputs through the network, and keeps what the backward pass needs.
    ///
    /// # Errors
    /// [`Error::Unknown`] for an input that is missing or that the model has not; of shapes that do not fit, naming the layer.
    fn run(&mut self, inputs: &[(&str, &Value)], mode: Mode) -> Result<Tape>;

    /// The gradients of a loss by all parameters, given those by the named outputs. The parameters must be those of the forward pass.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is no output, [`Error::Shape`] for a gradient that does not have the output's.
    fn backward(&mut self, tape: &Tape, by_outputs: &[(&str, &Tensor)]) -> Result<Gradients>;

    /// The model that is trained.
    fn model(&self) -> &Model;

    /// Adds what an optimizer computed to each parameter, in their order; nothing where that is empty. In fixed point it is rounded first.
    fn update(&mut self, updates: Vec<Vec<f32>>) {
        for (parameter, update) in self.parameters_mut().iter_mut().zip(updates) {
            parameter.value_mut().as_mut_slice().iter_mut().zip(update).for_each(|(value, update)| *value += update);
        }
    }

    /// [`Trainable::run`] of the one input.
    ///
    /// # Errors
    /// Those of [`Trainable::run`]; [`Error::Unsupported`] for a model of several inputs.
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tape> {
        let [input] = self.model().inputs() else {
            return Err(Error::Unsupported {
                what: format!("forward on a model with {} inputs", self.model().inputs().len()),
                way_out: "name them with `run`".into(),
            });
        };
        let name = input.name().to_owned();
        self.run(&[(&name, &Value::from(x.clone()))], mode)
    }

    /// Everything that training changes, by name: parameters, and what the arithmetic remembers. A network's part of a
    /// [`checkpoint`](super::checkpoint()).
    fn state(&self) -> Vec<(String, Value)> {
        state(self.parameters())
    }

    /// Takes all that out of a checkpoint; on an error nothing changes.
    ///
    /// # Errors
    /// Those of [`StateDict::take`], which name the missing or wrongly shaped tensor.
    fn load_state(&mut self, state: &mut StateDict) -> Result<()> {
        load(self.parameters_mut(), state)
    }
}

/// In a checkpoint, whether norms are frozen.
const FROZEN: &str = "network.frozen_norms";

/// A float network that trains: the parameters of a [`Model`], changed in place. The model itself stays as it was.
///
/// Results do not depend on the number of threads, bit for bit.
///
/// ```
/// use lowprec::nn::{Dim, Linear, Model};
/// use lowprec::train::{Mode, Network, Optimizer, Sgd, Trainable, mean_squared_error};
/// use lowprec::{DType, Tensor};
///
/// let mut net = Model::builder();
/// let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1)])?;
/// let y = net.add("line", Linear::new(Tensor::full([1, 1], 0.0)?, Some(Tensor::full([1], 0.0)?))?, &[x])?;
/// net.output("y", y)?;
/// let mut network = Network::new(&net.build()?)?;
///
/// let (x, y) = (Tensor::new([3, 1], vec![0.0, 1.0, 2.0])?, Tensor::new([3, 1], vec![1.0, 3.0, 5.0])?);
/// let mut sgd = Sgd::new(0.2).with_momentum(0.5);
/// for _ in 0..100 {
///     let tape = network.forward(&x, Mode::Train)?;
///     let (_, gradient) = mean_squared_error(tape.output(), &y)?;
///     let gradients = network.backward(&tape, &[("y", &gradient)])?;
///     sgd.step(&mut network, &gradients)?;
/// }
/// let line = network.parameters();
/// assert!((line[0].value().as_slice()[0] - 2.0).abs() < 1e-3 && (line[1].value().as_slice()[0] - 1.0).abs() < 1e-3);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug)]
pub struct Network {
    graph: Graph,
    parameters: Vec<Parameter>,
}

impl Network {
    /// The network with the model's parameters.
    ///
    /// # Errors
    /// [`Error::Unsupported`], inside an [`Error::Layer`], for a layer between parameters and outputs that has no derivative here.
    pub fn new(model: &Model) -> Result<Self> {
        let (graph, parameters) = Graph::new(model, false)?;
        Ok(Network { graph, parameters })
    }

    /// With gradients by the model's float inputs too.
    ///
    /// # Errors
    /// As [`Network::new`], for layers that had nothing to learn before them.
    pub fn with_input_gradients(mut self) -> Result<Self> {
        self.graph.trace(true, &|_| false)?;
        Ok(self)
    }

    /// On at most so many threads; all of the caller's rayon pool unless said otherwise.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_threads(mut self, threads: usize) -> Result<Self> {
        self.graph.set_threads(threads)?;
        Ok(self)
    }

    /// Batch norms keep their running statistics from here on, and use them in training too.
    pub fn freeze_norms(&mut self) {
        self.graph.frozen = true;
    }

    /// The model with the parameters as they are now.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a batch norm whose running variance is not above zero.
    pub fn to_model(&self) -> Result<Model> {
        self.graph.to_model(&self.parameters)
    }
}

impl Trainable for Network {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    fn run(&mut self, inputs: &[(&str, &Value)], mode: Mode) -> Result<Tape> {
        self.graph.forward(&mut self.parameters, &mut Float, inputs, mode)
    }

    fn backward(&mut self, tape: &Tape, by_outputs: &[(&str, &Tensor)]) -> Result<Gradients> {
        self.graph.backward(&self.parameters, &mut Float, tape, by_outputs)
    }

    fn model(&self) -> &Model {
        self.graph.model()
    }

    fn state(&self) -> Vec<(String, Value)> {
        counted_state(&self.parameters, FROZEN, self.graph.frozen.into())
    }

    fn load_state(&mut self, state: &mut StateDict) -> Result<()> {
        self.graph.frozen = load_counted(&mut self.parameters, state, FROZEN)? != 0;
        Ok(())
    }
}
