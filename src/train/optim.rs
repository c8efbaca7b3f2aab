//! Optimizers. Each works element by element, so results do not depend on threads.

use std::collections::HashMap;

use super::network::Trainable;
use super::parameter::{Gradients, Parameter, ParameterKind, counted, take_count};
use crate::error::{Error, Result};
use crate::nn::StateDict;
use crate::tensor::{Tensor, Value};

/// Changes parameters by their gradients.
pub trait Optimizer {
    /// What a step adds to each parameter, in their order; empty for those that stay: without a gradient, or of rate 0.
    ///
    /// # Errors
    /// [`Error::Length`] for gradients of other parameters.
    fn updates(&mut self, parameters: &[Parameter], gradients: &Gradients) -> Result<Vec<Vec<f32>>>;

    /// One step of the network, which takes the updates as its arithmetic has it ([`Trainable::update`]).
    ///
    /// # Errors
    /// Those of [`Optimizer::updates`].
    fn step(&mut self, network: &mut dyn Trainable, gradients: &Gradients) -> Result<()> {
        let updates = self.updates(network.parameters(), gradients)?;
        network.update(updates);
        Ok(())
    }

    /// The learning rate of the next step.
    fn rate(&self) -> f64;

    /// Sets the learning rate: what a schedule does before each step.
    fn set_rate(&mut self, rate: f64);

    /// What it remembers, by name: its part of a [`checkpoint`](super::checkpoint()).
    fn state(&self) -> Vec<(String, Value)>;

    /// Takes what it remembered out of a checkpoint, for these parameters; on an error nothing changes.
    ///
    /// # Errors
    /// Those of [`StateDict::take`].
    fn load_state(&mut self, state: &mut StateDict, parameters: &[Parameter]) -> Result<()>;
}

/// What all optimizers do alike: rate, decay of weights, other rates for some kinds.
#[derive(Debug, Clone)]
struct Rates {
    rate: f64,
    decay: f64,
    factors: HashMap<ParameterKind, f64>,
}

impl Rates {
    fn new(rate: f64) -> Self {
        Rates { rate, decay: 0.0, factors: HashMap::new() }
    }

    /// Rate and decay of parameters of a kind.
    fn of(&self, kind: ParameterKind) -> (f32, f32) {
        let decay = if kind == ParameterKind::Weight { self.decay } else { 0.0 };
        ((self.rate * self.factors.get(&kind).copied().unwrap_or(1.0)) as f32, decay as f32)
    }

    /// The updates of all elements. `step` gets rate and decay, the element, its gradient, and what is remembered of it.
    fn updates<const N: usize>(
        &self,
        parameters: &[Parameter],
        gradients: &Gradients,
        memories: &mut [Memory; N],
        step: impl Fn((f32, f32), f32, f32, [&mut f32; N]) -> f32,
    ) -> Result<Vec<Vec<f32>>> {
        check(parameters, gradients)?;
        memories.iter_mut().for_each(|memory| memory.resize_with(parameters.len(), Vec::new));
        let update = |(index, (parameter, gradient)): (usize, (&Parameter, &Vec<f32>))| {
            let pace = self.of(parameter.kind);
            if gradient.is_empty() || pace.0 == 0.0 {
                return Vec::new();
            }
            let mut remembered = memories.each_mut().map(|memory| {
                memory[index].resize(gradient.len(), 0.0);
                memory[index].iter_mut()
            });
            let elements = parameter.value().as_slice().iter().zip(gradient);
            let next = |(&w, &g): (&f32, &f32)| step(pace, w, g, remembered.each_mut().map(|rest| rest.next().expect("as many")));
            elements.map(next).collect()
        };
        Ok(parameters.iter().zip(&gradients.by_parameter).enumerate().map(update).collect())
    }
}

/// Tensors that an optimizer keeps for each parameter, made when it first has a gradient.
type Memory = Vec<Vec<f32>>;

fn check(parameters: &[Parameter], gradients: &Gradients) -> Result<()> {
    if gradients.by_parameter.len() != parameters.len() {
        return Err(Error::length("list of gradients", parameters.len(), gradients.by_parameter.len()));
    }
    for (parameter, gradient) in parameters.iter().zip(&gradients.by_parameter) {
        if !gradient.is_empty() && gradient.len() != parameter.value().len() {
            return Err(Error::length(format!("gradient of `{}`", parameter.name()), parameter.value().len(), gradient.len()));
        }
    }
    Ok(())
}

fn remembered(prefix: &str, memory: &Memory) -> Vec<(String, Value)> {
    let tensor = |(index, values): (usize, &Vec<f32>)| {
        let tensor = Tensor::new([values.len()], values.clone()).expect("as many as there are");
        (format!("{prefix}.{index}"), Value::from(tensor))
    };
    memory.iter().enumerate().filter(|(_, values)| !values.is_empty()).map(tensor).collect()
}

fn recalled(prefix: &str, state: &mut StateDict, parameters: &[Parameter]) -> Result<Memory> {
    let take = |(index, parameter): (usize, &Parameter)| {
        let name = format!("{prefix}.{index}");
        match state.get(&name) {
            Some(_) => Ok(state.take(&name, &[parameter.value().len()])?.into_vec()),
            None => Ok(Vec::new()),
        }
    };
    parameters.iter().enumerate().map(take).collect()
}

macro_rules! rates {
    ($optimizer:ty, $decay:literal) => {
        impl $optimizer {
            #[doc = $decay]
            #[must_use]
            pub fn with_decay(mut self, decay: f64) -> Self {
                self.rates.decay = decay;
                self
            }

            /// With the rate of parameters of this kind multiplied by `factor`; 0 keeps them as they are.
            #[must_use]
            pub fn with_factor(mut self, kind: ParameterKind, factor: f64) -> Self {
                self.rates.factors.insert(kind, factor);
                self
            }
        }
    };
}
rates!(Sgd, "With `decay · w` added to the gradient of weights; biases, norms and scales have none.");
rates!(Adam, "With `rate · decay · w` taken off weights in each step (AdamW); biases, norms and scales keep theirs.");

/// Stochastic gradient descent, as PyTorch has it:
///
/// ```text
/// g = gradient + decay · w
/// v = momentum · v + g            the first time v = g
/// w = w - rate · v                with Nesterov's step w - rate · (g + momentum · v)
/// ```
#[derive(Debug, Clone)]
pub struct Sgd {
    rates: Rates,
    momentum: f32,
    nesterov: bool,
    velocity: Memory,
}

impl Sgd {
    /// With this learning rate, and without momentum.
    pub fn new(rate: f64) -> Self {
        Sgd { rates: Rates::new(rate), momentum: 0.0, nesterov: false, velocity: Vec::new() }
    }

    /// With momentum.
    #[must_use]
    pub fn with_momentum(self, momentum: f32) -> Self {
        Sgd { momentum, ..self }
    }

    /// With Nesterov's step or without.
    #[must_use]
    pub fn with_nesterov(self, nesterov: bool) -> Self {
        Sgd { nesterov, ..self }
    }
}

impl Optimizer for Sgd {
    fn updates(&mut self, parameters: &[Parameter], gradients: &Gradients) -> Result<Vec<Vec<f32>>> {
        let Sgd { rates, momentum, nesterov, velocity } = self;
        rates.updates(parameters, gradients, std::array::from_mut(velocity), |(rate, decay), w, g, [v]| {
            let g = g + decay * w;
            *v = *momentum * *v + g;
            -(rate * if *nesterov { g + *momentum * *v } else { *v })
        })
    }

    fn rate(&self) -> f64 {
        self.rates.rate
    }

    fn set_rate(&mut self, rate: f64) {
        self.rates.rate = rate;
    }

    fn state(&self) -> Vec<(String, Value)> {
        remembered("velocity", &self.velocity)
    }

    fn load_state(&mut self, state: &mut StateDict, parameters: &[Parameter]) -> Result<()> {
        let mut rest = state.clone();
        self.velocity = recalled("velocity", &mut rest, parameters)?;
        *state = rest;
        Ok(())
    }
}

/// Adam (Kingma and Ba 2015) with decoupled decay (Loshchilov and Hutter 2019):
///
/// ```text
/// w = w - rate · decay · w
/// m = β₁ m + (1 - β₁) g,   v = β₂ v + (1 - β₂) g²
/// w = w - rate · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
/// ```
#[derive(Debug, Clone)]
pub struct Adam {
    rates: Rates,
    betas: [f32; 2],
    epsilon: f32,
    steps: u64,
    moments: [Memory; 2],
}

impl Adam {
    /// With this learning rate, β of 0.9 and 0.999 and ε of 1e-8.
    pub fn new(rate: f64) -> Self {
        Adam { rates: Rates::new(rate), betas: [0.9, 0.999], epsilon: 1e-8, steps: 0, moments: [Vec::new(), Vec::new()] }
    }

    /// With other averages.
    #[must_use]
    pub fn with_betas(self, betas: [f32; 2]) -> Self {
        Adam { betas, ..self }
    }

    /// With another ε.
    #[must_use]
    pub fn with_epsilon(self, epsilon: f32) -> Self {
        Adam { epsilon, ..self }
    }
}

impl Optimizer for Adam {
    fn updates(&mut self, parameters: &[Parameter], gradients: &Gradients) -> Result<Vec<Vec<f32>>> {
        let [b1, b2] = self.betas;
        let (steps, epsilon) = (self.steps + 1, self.epsilon);
        // In f64: of the first steps f32 would lose half the digits.
        let share = |beta: f32| 1.0 - f64::from(beta).powf(steps as f64);
        let (first, root) = (share(b1), (1.0 / share(b2).sqrt()) as f32);
        let updates = self.rates.updates(parameters, gradients, &mut self.moments, |(rate, decay), w, g, [m, v]| {
            *m += (1.0 - b1) * (g - *m);
            *v += (1.0 - b2) * (g * g - *v);
            -(rate * decay * w + (f64::from(rate) / first) as f32 * *m / (v.sqrt() * root + epsilon))
        })?;
        self.steps = steps;
        Ok(updates)
    }

    fn rate(&self) -> f64 {
        self.rates.rate
    }

    fn set_rate(&mut self, rate: f64) {
        self.rates.rate = rate;
    }

    fn state(&self) -> Vec<(String, Value)> {
        let mut state = vec![("steps".to_owned(), counted(self.steps))];
        state.extend(remembered("mean", &self.moments[0]));
        state.extend(remembered("square", &self.moments[1]));
        state
    }

    fn load_state(&mut self, state: &mut StateDict, parameters: &[Parameter]) -> Result<()> {
        let mut rest = state.clone();
        let steps = take_count(&mut rest, "steps")?;
        let moments = [recalled("mean", &mut rest, parameters)?, recalled("square", &mut rest, parameters)?];
        (self.steps, self.moments, *state) = (steps, moments, rest);
        Ok(())
    }
}
