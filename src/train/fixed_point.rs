//! Training in fixed point (Gupta, Agrawal, Gopalakrishnan and Narayanan, ICML 2015): weights, values, gradients and updates are all
//! multiples of one step, and rounding to it at random, up or down with the odds that make it right on average, is what keeps
//! small updates alive.
//!
//! ```text
//! ⟨IL, FL⟩   numbers k · 2^-FL between -2^(IL-1) and 2^(IL-1) - 2^-FL; beyond, they saturate
//! nearest    the nearer multiple, halves to the even one: an update below half a step is lost
//! stochastic floor(x / step + u) · step, u drawn from 0..1: lost with a probability, and right on average
//! ```

use super::arithmetic::{Arithmetic, Mode};
use super::array::Array;
use super::graph::Graph;
use super::network::Trainable;
use super::parameter::{Gradients, Parameter, counted_state, load_counted};
use super::tape::Tape;
use crate::error::{Error, Result};
use crate::nn::{Model, StateDict};
use crate::quant::{Rounding, random_unit};
use crate::tensor::{Tensor, Value};

/// Fixed-point numbers: `integer` bits before the point, the sign among them, and `fraction` bits after it.
///
/// ```
/// use lowprec::quant::Rounding;
/// use lowprec::train::FixedPoint;
/// let format = FixedPoint::new(2, 2)?; // steps of 1/4 from -2 to 1.75
/// let mut x = [0.3, -0.9, 5.0, -5.0];
/// format.round(&mut x, Rounding::Nearest);
/// assert_eq!(x, [0.25, -1.0, 1.75, -2.0]);
/// let mut x = [0.3; 1000];
/// format.round(&mut x, Rounding::Stochastic { seed: 1 });
/// assert!((x.iter().sum::<f32>() / 1000.0 - 0.3).abs() < 0.02);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedPoint {
    integer: u32,
    fraction: u32,
}

impl FixedPoint {
    /// `⟨integer, fraction⟩`. Sums are handed on in f32, rounded to odd: of words up to 23 bits they are rounded to the nearest as if there
    /// had been no rounding before. By chance the odds near the range's ends are off by up to `2^-(25 - word)`: nothing to speak of up to 18 bits.
    ///
    /// # Errors
    /// [`Error::Parameter`] without a bit before the point, or for words other than of 2 to 24 bits, which f32 holds exactly.
    pub fn new(integer: u32, fraction: u32) -> Result<Self> {
        match (integer, integer.saturating_add(fraction)) {
            (1.., 2..=24) => Ok(FixedPoint { integer, fraction }),
            _ => Err(Error::parameter(
                "bits of a fixed-point format",
                (integer, fraction),
                "must be at least 1 before the point, 2 to 24 in all",
            )),
        }
    }

    /// Bits before the point, the sign among them.
    pub fn integer(self) -> u32 {
        self.integer
    }

    /// Bits after the point.
    pub fn fraction(self) -> u32 {
        self.fraction
    }

    /// Bits of a number.
    pub fn word(self) -> u32 {
        self.integer + self.fraction
    }

    /// The distance between two numbers, `2^-fraction`.
    pub fn step(self) -> f32 {
        (-(self.fraction as f32)).exp2()
    }

    /// The smallest and the largest number.
    pub fn range(self) -> (f32, f32) {
        let end = ((self.integer - 1) as f32).exp2();
        (-end, end - self.step())
    }

    /// Rounds each number to a multiple of the step, and saturates; NaN stays NaN. By chance, element `i` draws from the seed and `i`.
    pub fn round(self, x: &mut [f32], rounding: Rounding) {
        let (inverse, step) = (f64::from(self.fraction).exp2(), f64::from(self.step()));
        let (lo, hi) = self.range();
        match rounding {
            Rounding::Nearest => x.iter_mut().for_each(|x| *x = ((f64::from(*x) * inverse).round_ties_even() * step) as f32),
            Rounding::Stochastic { seed } => {
                for (index, x) in (0..).zip(x.iter_mut()) {
                    *x = ((f64::from(*x) * inverse + f64::from(random_unit(seed, index))).floor() * step) as f32;
                }
            }
        }
        x.iter_mut().for_each(|x| *x = x.clamp(lo, hi));
    }
}

/// Which numbers are rounded to which format, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedPointConfig {
    parameters: FixedPoint,
    values: FixedPoint,
    gradients: FixedPoint,
    rounding: Rounding,
}

impl FixedPointConfig {
    /// All in one format, rounded to the nearest.
    pub fn new(format: FixedPoint) -> Self {
        FixedPointConfig { parameters: format, values: format, gradients: format, rounding: Rounding::Nearest }
    }

    /// Weights and biases, and what an optimizer adds to them.
    #[must_use]
    pub fn with_parameters(self, parameters: FixedPoint) -> Self {
        FixedPointConfig { parameters, ..self }
    }

    /// What layers write.
    #[must_use]
    pub fn with_values(self, values: FixedPoint) -> Self {
        FixedPointConfig { values, ..self }
    }

    /// Gradients by values, and by parameters.
    #[must_use]
    pub fn with_gradients(self, gradients: FixedPoint) -> Self {
        FixedPointConfig { gradients, ..self }
    }

    /// Rounded so; by chance, everything that is rounded in the course of a training draws anew from the seed.
    #[must_use]
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        FixedPointConfig { rounding, ..self }
    }
}

/// A network whose parameters, values and gradients are fixed-point numbers.
///
/// Values and learned parameters are rounded, constants that nothing learns (a mask, a factor) are not. Convolutions, linear layers and
/// products of matrices add up exactly, in f64, and round once; other layers compute in float, and what
/// they write is rounded. An optimizer's update is rounded before it is added ([`Trainable::update`]), and the sum, of multiples of one
/// step, is exact. What an optimizer remembers is its own affair, so plain [`Sgd`](super::Sgd) without momentum is the method of the
/// paper. The loss itself is in float.
#[derive(Debug)]
pub struct FixedPointNetwork {
    graph: Graph,
    parameters: Vec<Parameter>,
    rounder: Rounder,
}

/// In a checkpoint, how often numbers were drawn.
const DRAWS: &str = "fixed_point.draws";

/// Rounds one list of numbers after the other.
#[derive(Debug)]
struct Rounder {
    config: FixedPointConfig,
    /// Lists rounded so far: each draws from a seed of its own.
    rounded: u64,
}

impl Rounder {
    fn round(&mut self, format: FixedPoint, x: &mut [f32]) {
        self.rounded += 1;
        format.round(x, self.drawn(self.rounded));
    }

    /// The rule, with the seed of a list of numbers.
    fn drawn(&self, list: u64) -> Rounding {
        match self.config.rounding {
            Rounding::Stochastic { seed } => Rounding::Stochastic { seed: seed.wrapping_add(list.wrapping_mul(0x9e37_79b9_7f4a_7c15)) },
            nearest => nearest,
        }
    }
}

impl FixedPointNetwork {
    /// The network with the model's parameters, rounded.
    ///
    /// # Errors
    /// As [`Network::new`](super::Network::new).
    pub fn new(model: &Model, config: FixedPointConfig) -> Result<Self> {
        let (graph, parameters) = Graph::new(model, false)?;
        let mut network = FixedPointNetwork { graph, parameters, rounder: Rounder { config, rounded: 0 } };
        for parameter in network.parameters.iter_mut().filter(|parameter| parameter.is_trained()) {
            network.rounder.round(config.parameters, parameter.value_mut().as_mut_slice());
        }
        Ok(network)
    }

    /// On at most so many threads; all of the caller's rayon pool unless said otherwise.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_threads(mut self, threads: usize) -> Result<Self> {
        self.graph.set_threads(threads)?;
        Ok(self)
    }

    /// The model with the parameters as they are now.
    ///
    /// # Errors
    /// As [`Network::to_model`](super::Network::to_model).
    pub fn to_model(&self) -> Result<Model> {
        self.graph.to_model(&self.parameters)
    }
}

impl Arithmetic for Rounder {
    fn parameter_gradients(
        &mut self,
        _: usize,
        own: &[usize],
        _: &[Parameter],
        gradients: Vec<Vec<f32>>,
        sums: &mut Gradients,
    ) -> Result<()> {
        for (&index, mut gradient) in own.iter().zip(gradients) {
            self.round(self.config.gradients, &mut gradient);
            sums.add(index, gradient);
        }
        Ok(())
    }

    fn value(&mut self, edge: usize, value: &Array, _: &Tape, _: &mut [Parameter], mode: Mode) -> Result<Option<Array>> {
        let mut rounded = value.clone();
        match mode {
            Mode::Train => self.round(self.config.values, rounded.data_mut()),
            // The same each time, and training does not see that it was done.
            Mode::Evaluate => self.config.values.round(rounded.data_mut(), self.drawn(edge as u64)),
        }
        Ok(Some(rounded))
    }

    fn gradient(&mut self, _: usize, gradient: &mut Array) {
        self.round(self.config.gradients, gradient.data_mut());
    }

    fn adds_exactly(&self) -> bool {
        true
    }
}

impl Trainable for FixedPointNetwork {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    fn run(&mut self, inputs: &[(&str, &Value)], mode: Mode) -> Result<Tape> {
        self.graph.forward(&mut self.parameters, &mut self.rounder, inputs, mode)
    }

    fn backward(&mut self, tape: &Tape, by_outputs: &[(&str, &Tensor)]) -> Result<Gradients> {
        self.graph.backward(&self.parameters, &mut self.rounder, tape, by_outputs)
    }

    fn model(&self) -> &Model {
        self.graph.model()
    }

    fn update(&mut self, updates: Vec<Vec<f32>>) {
        let format = self.rounder.config.parameters;
        let (lo, hi) = format.range();
        let updates = updates.into_iter().zip(&mut self.parameters).filter(|(update, _)| !update.is_empty());
        for (mut update, parameter) in updates {
            self.rounder.round(format, &mut update);
            // Exact: at most 2^24 steps from zero, which f32 holds.
            let sums = parameter.value_mut().as_mut_slice().iter_mut().zip(update);
            sums.for_each(|(value, update)| *value = (*value + update).clamp(lo, hi));
        }
    }

    fn state(&self) -> Vec<(String, Value)> {
        counted_state(&self.parameters, DRAWS, self.rounder.rounded)
    }

    fn load_state(&mut self, state: &mut StateDict) -> Result<()> {
        self.rounder.rounded = load_counted(&mut self.parameters, state, DRAWS)?;
        Ok(())
    }
}
