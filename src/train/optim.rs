//! Optimizers. Each works element by element, so results do not depend on threads.

use std::collections::HashMap;

use super::parameter::{Gradients, Parameter, ParameterKind};
use crate::error::{Error, Result};
use crate::nn::StateDict;
use crate::tensor::{Tensor, Value};

/// Changes parameters by their gradients.
pub trait Optimizer {
    /// One step. Parameters without a gradient stay.
    ///
    /// # Errors
    /// [`Error::Length`] for gradients of other parameters.
    fn step(&mut self, parameters: &mut [Parameter], gradients: &Gradients) -> Result<()>;

    /// The learning rate of the next step.
    fn rate(&self) -> f64;

    /// Sets the learning rate: what a schedule does before each step.
    fn set_rate(&mut self, rate: f64);

    /// What it remembers, by name: for a checkpoint, beside [`Trainable::state`](super::Trainable::state).
    fn state(&self) -> Vec<(String, Value)>;

    /// Takes what it remembered out of a checkpoint, for these parameters.
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

    fn of(&self, kind: ParameterKind) -> f32 {
        (self.rate * self.factors.get(&kind).copied().unwrap_or(1.0)) as f32
    }

    fn decay_of(&self, kind: ParameterKind) -> f32 {
        if kind == ParameterKind::Weight { self.decay as f32 } else { 0.0 }
    }
}

/// Tensors that an optimizer keeps for each parameter, made when it first has a gradient.
type Memory = Vec<Vec<f32>>;

fn check(parameters: &[Parameter], gradients: &Gradients, memories: &mut [&mut Memory]) -> Result<()> {
    if gradients.by_parameter.len() != parameters.len() {
        return Err(Error::length("list of gradients", parameters.len(), gradients.by_parameter.len()));
    }
    for (parameter, gradient) in parameters.iter().zip(&gradients.by_parameter) {
        if !gradient.is_empty() && gradient.len() != parameter.value().len() {
            return Err(Error::length(format!("gradient of `{}`", parameter.name()), parameter.value().len(), gradient.len()));
        }
    }
    for memory in memories {
        memory.resize_with(parameters.len(), Vec::new);
        for (memory, gradient) in memory.iter_mut().zip(&gradients.by_parameter) {
            memory.resize(memory.len().max(gradient.len()), 0.0);
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
    fn step(&mut self, parameters: &mut [Parameter], gradients: &Gradients) -> Result<()> {
        check(parameters, gradients, &mut [&mut self.velocity])?;
        for ((parameter, gradient), velocity) in parameters.iter_mut().zip(&gradients.by_parameter).zip(&mut self.velocity) {
            let (rate, decay, momentum) = (self.rates.of(parameter.kind), self.rates.decay_of(parameter.kind), self.momentum);
            if gradient.is_empty() || rate == 0.0 {
                continue;
            }
            for ((w, &g), v) in parameter.value.as_mut_slice().iter_mut().zip(gradient).zip(velocity) {
                let g = g + decay * *w;
                *v = momentum * *v + g;
                *w -= rate * if self.nesterov { g + momentum * *v } else { *v };
            }
        }
        Ok(())
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
        self.velocity = recalled("velocity", state, parameters)?;
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
}

impl Optimizer for Adam {
    fn step(&mut self, parameters: &mut [Parameter], gradients: &Gradients) -> Result<()> {
        let [means, squares] = &mut self.moments;
        check(parameters, gradients, &mut [means, squares])?;
        self.steps += 1;
        let [b1, b2] = self.betas;
        // In f64: of the first steps f32 would lose half the digits.
        let share = |beta: f32| 1.0 - f64::from(beta).powf(self.steps as f64);
        let (first, second) = (share(b1), share(b2));
        let memories = means.iter_mut().zip(squares);
        for ((parameter, gradient), (mean, square)) in parameters.iter_mut().zip(&gradients.by_parameter).zip(memories) {
            let (rate, decay) = (self.rates.of(parameter.kind), self.rates.decay_of(parameter.kind));
            if gradient.is_empty() || rate == 0.0 {
                continue;
            }
            let (step, root) = ((f64::from(rate) / first) as f32, (1.0 / second.sqrt()) as f32);
            for (((w, &g), m), v) in parameter.value.as_mut_slice().iter_mut().zip(gradient).zip(mean).zip(square) {
                *w -= rate * decay * *w;
                *m += (1.0 - b1) * (g - *m);
                *v += (1.0 - b2) * (g * g - *v);
                *w -= step * *m / (v.sqrt() * root + self.epsilon);
            }
        }
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.rates.rate
    }

    fn set_rate(&mut self, rate: f64) {
        self.rates.rate = rate;
    }

    fn state(&self) -> Vec<(String, Value)> {
        let steps = Tensor::new([1], vec![self.steps as i64]).expect("one element");
        let mut state = vec![("steps".to_owned(), Value::from(steps))];
        state.extend(remembered("mean", &self.moments[0]));
        state.extend(remembered("square", &self.moments[1]));
        state
    }

    fn load_state(&mut self, state: &mut StateDict, parameters: &[Parameter]) -> Result<()> {
        let steps = state.get("steps").and_then(|value| value.get::<i64>()).and_then(|steps| steps.as_slice().first().copied());
        let steps = steps.and_then(|steps| u64::try_from(steps).ok());
        let steps = steps.ok_or_else(|| Error::Unknown { what: "tensor", name: "steps".into(), present: state.names().collect() })?;
        let moments = [recalled("mean", state, parameters)?, recalled("square", state, parameters)?];
        state.discard("steps");
        (self.steps, self.moments) = (steps, moments);
        Ok(())
    }
}
