//! Quantization-aware training: the network computes, in float, what integers will compute, and learns to live with it.
//!
//! [`prepare_qat`] folds batch norms with their frozen statistics, finds which layers will run in integers ([`StaticPlan`]) and puts
//! fake quantization exactly where the integer model rounds: at the codes that go from layer to layer, at weights, and at biases,
//! which integers add in whole units of the sums. What a ReLU or the sum of two branches is fused into is not rounded in between.
//! Float sums of fake-quantized numbers are those of the codes but for the last bits, which decide a tie here and there; so the codes of a
//! layer come from the integer layer itself, which runs beside the float one, whose values say where gradients pass.
//! [`Qat::finish`] gives that integer model, by [`convert`](crate::convert::convert()), with the ranges that were learned.

mod activations;
mod agreement;
mod config;
mod layer;
mod rounding;
mod weights;

pub use agreement::Agreement;
pub use config::{ActivationTraining, Levels, QatConfig, WeightTraining};

use rounding::FakeQuantization;

use super::arithmetic::Mode;
use super::graph::Graph;
use super::network::Trainable;
use super::parameter::{Gradients, Parameter, counted_state, load_counted};
use super::tape::Tape;
use crate::convert::{Calibration, StaticPlan};
use crate::error::Result;
use crate::kernels::Isa;
use crate::nn::{Dim, Model, StateDict};
use crate::tensor::{Tensor, Value};

/// A model prepared for quantization-aware training. The first batch in training finds the ranges of activations.
///
/// Sums of two branches are fused into the layer before them where their operands are known to have one shape: where all axes of
/// the model's inputs but the first are fixed. [`Qat::for_shapes`] is told.
///
/// ```
/// use lowprec::nn::{Dim, Layer, Linear, Model};
/// use lowprec::train::{Mode, Optimizer, QatConfig, Sgd, Trainable, mean_squared_error, prepare_qat};
/// use lowprec::{DType, Tensor};
///
/// let mut net = Model::builder();
/// let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
/// let x = net.add("a", Linear::new(Tensor::new([2, 2], vec![0.9, -0.4, 0.3, 0.8])?, None)?, &[x])?;
/// let x = net.add("relu", Layer::Relu, &[x])?;
/// let y = net.add("b", Linear::new(Tensor::new([1, 2], vec![1.0, -0.7])?, None)?, &[x])?;
/// net.output("y", y)?;
/// let model = net.build()?;
///
/// let x = Tensor::new([4, 2], vec![0.1, 0.9, 0.8, 0.3, 0.5, 0.6, 1.0, 0.2])?;
/// let y = model.forward(&x)?;
/// let mut qat = prepare_qat(&model, &QatConfig::bits(4))?;
/// let mut sgd = Sgd::new(0.02);
/// for _ in 0..30 {
///     let tape = qat.forward(&x, Mode::Train)?;
///     let (_, gradient) = mean_squared_error(tape.output(), &y)?;
///     let gradients = qat.backward(&tape, &[("y", &gradient)])?;
///     sgd.step(&mut qat, &gradients)?;
/// }
/// let integers = qat.finish()?;
/// let difference = integers.forward(&x)?.as_slice()[0] - qat.forward(&x, Mode::Evaluate)?.output().as_slice()[0];
/// assert!(difference.abs() < 1e-5);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// Those of [`StaticPlan::new`]; [`Error::Unsupported`](crate::Error::Unsupported) for a layer without a derivative.
pub fn prepare_qat(model: &Model, config: &QatConfig) -> Result<Qat> {
    let fixed = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(length) => Some(*length),
        Dim::Any if axis == 0 => Some(1),
        Dim::Any => None,
    };
    let shapes = model.inputs().iter().map(|input| input.dims().iter().enumerate().map(fixed).collect::<Option<Vec<usize>>>());
    Qat::for_shapes(model, config, &shapes.collect::<Option<Vec<_>>>().unwrap_or_default())
}

/// In a checkpoint, whether observers are frozen.
const FROZEN: &str = "qat.frozen_observers";

/// See [`prepare_qat`].
#[derive(Debug)]
pub struct Qat {
    graph: Graph,
    parameters: Vec<Parameter>,
    rounding: FakeQuantization,
    config: QatConfig,
    shapes: Vec<Vec<usize>>,
}

impl Qat {
    /// As [`prepare_qat`], for inputs of these shapes, in the model's order; without any, no sums are fused.
    ///
    /// # Errors
    /// As there, and of shapes that do not fit the model.
    pub fn for_shapes(model: &Model, config: &QatConfig, shapes: &[Vec<usize>]) -> Result<Self> {
        let plan = StaticPlan::new(model, config.scheme(), shapes)?;
        let (mut graph, mut parameters) = Graph::new(plan.model(), true)?;
        let rounding = FakeQuantization::new(&plan, config, &graph, &mut parameters)?;
        graph.trace(false, &|edge| rounding.learns_at(edge))?;
        Ok(Qat { graph, parameters, rounding, config: config.clone(), shapes: shapes.to_vec() })
    }

    /// On at most so many threads; all of the caller's rayon pool unless said otherwise.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) for 0.
    pub fn with_threads(mut self, threads: usize) -> Result<Self> {
        self.graph.set_threads(threads)?;
        self.rounding.threads = threads;
        Ok(self)
    }

    /// Observed ranges of activations stay as they are from here on. Learned ones go on learning.
    pub fn freeze_observers(&mut self) {
        self.rounding.frozen = true;
    }

    /// The float model with what was learned, batch norms folded: what [`Qat::calibration`] belongs to.
    ///
    /// # Errors
    /// As [`Network::to_model`](super::Network::to_model).
    pub fn to_model(&self) -> Result<Model> {
        self.graph.to_model(&self.parameters)
    }

    /// What was learned of scales: ranges of values, and codes of weights.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) before the first batch.
    pub fn calibration(&mut self) -> Result<Calibration> {
        let Qat { graph, parameters, rounding, shapes, .. } = self;
        rounding.calibration(graph.model(), parameters).map(|calibration| calibration.with_shapes(shapes.clone()))
    }

    /// The integer model, on the fastest instruction set. [`Qat::agreement`] says how near it is to what was trained.
    ///
    /// # Errors
    /// Those of [`Qat::calibration`] and [`StaticPlan::convert`].
    pub fn finish(&mut self) -> Result<Model> {
        let calibration = self.calibration()?;
        StaticPlan::new(&self.to_model()?, self.config.scheme(), &self.shapes)?.convert(&calibration, Isa::best())
    }
}

impl Trainable for Qat {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    fn run(&mut self, inputs: &[(&str, &Value)], mode: Mode) -> Result<Tape> {
        self.graph.forward(&mut self.parameters, &mut self.rounding, inputs, mode)
    }

    fn backward(&mut self, tape: &Tape, by_outputs: &[(&str, &Tensor)]) -> Result<Gradients> {
        self.graph.backward(&self.parameters, &mut self.rounding, tape, by_outputs)
    }

    fn model(&self) -> &Model {
        self.graph.model()
    }

    fn state(&self) -> Vec<(String, Value)> {
        counted_state(&self.parameters, FROZEN, self.rounding.frozen.into())
    }

    fn load_state(&mut self, state: &mut StateDict) -> Result<()> {
        self.rounding.frozen = load_counted(&mut self.parameters, state, FROZEN)? != 0;
        Ok(())
    }
}
