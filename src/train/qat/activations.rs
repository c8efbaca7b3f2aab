//! Fake quantization of values on edges.

use super::config::ActivationTraining;
use crate::convert::CodeRange;
use crate::error::{Error, Result};
use crate::num::NonFinite;
use crate::quant::observer::{MovingAverage, ObserverKind};
use crate::quant::{Observer, Scheme};
use crate::tensor::{QParams, Tensor};
use crate::train::array::Array;
use crate::train::fake_quantize::{clipped_above, learned_steps, lsq_factor, pass_steps, quantize_steps};
use crate::train::parameter::{Gradients, Parameter, ParameterKind};

/// The logarithm of a scale that was not found yet.
pub const UNKNOWN: f32 = f32::MIN;

/// The scale that a parameter stands for; 0 when it was not found yet. What is learned is the logarithm, so that a step of any
/// optimizer changes all scales by a share of themselves, and none leaves the numbers above zero.
pub fn scale_of(parameter: &Parameter, index: usize) -> f32 {
    let value = parameter.value().as_slice()[index];
    match parameter.kind() {
        ParameterKind::Quantization => f64::from(value).exp() as f32,
        _ => value,
    }
}

/// Sets the scales that a parameter stands for.
pub fn set_scales(parameter: &mut Parameter, scales: &[f32]) {
    let learned = parameter.kind() == ParameterKind::Quantization;
    let stored = |&scale: &f32| if learned { f64::from(scale).ln() as f32 } else { scale };
    parameter.value_mut().as_mut_slice().iter_mut().zip(scales).for_each(|(value, scale)| *value = stored(scale));
}

/// A parameter for scales that are not found yet.
pub fn unknown_scales(name: &str, what: &str, count: usize, learned: bool) -> Result<Parameter> {
    Ok(match learned {
        true => Parameter::new(format!("{name}.log_{what}"), Tensor::full([count], UNKNOWN)?, ParameterKind::Quantization),
        false => Parameter::new(format!("{name}.{what}"), Tensor::full([count], 0.0)?, ParameterKind::Statistic),
    })
}

/// How the range of a value is found.
#[derive(Debug)]
enum Ranging {
    /// In the first batch.
    Once(ObserverKind),
    /// As a moving average over batches, which is at this place among the parameters: so that a checkpoint has it.
    Average { rate: f32, place: usize },
}

/// What rounds the value of one edge, and those that get its grid.
#[derive(Debug)]
pub struct ValueQuantizer {
    name: String,
    scheme: Scheme,
    non_finite: NonFinite,
    training: ActivationTraining,
    ranging: Ranging,
    /// Places of the scale (of PACT, the bound) and of the zero point.
    scale: usize,
    zero_point: usize,
}

impl ValueQuantizer {
    /// Its parameters are added to `parameters`.
    pub fn new(
        name: &str,
        scheme: Scheme,
        observer: ObserverKind,
        training: ActivationTraining,
        non_finite: NonFinite,
        parameters: &mut Vec<Parameter>,
    ) -> Result<Self> {
        let what = if matches!(training, ActivationTraining::Clipped { .. }) { "bound" } else { "scale" };
        parameters.push(unknown_scales(name, what, 1, !matches!(training, ActivationTraining::Observed { .. }))?);
        let kind = match training {
            ActivationTraining::LearnedOffset => ParameterKind::Quantization,
            _ => ParameterKind::Statistic,
        };
        parameters.push(Parameter::new(format!("{name}.zero_point"), Tensor::full([1], 0.0)?, kind));
        let (scale, zero_point) = (parameters.len() - 2, parameters.len() - 1);
        let ranging = match training {
            ActivationTraining::Observed { rate } => {
                parameters.push(Parameter::new(format!("{name}.range"), Tensor::full([2], 0.0)?, ParameterKind::Statistic));
                Ranging::Average { rate, place: parameters.len() - 1 }
            }
            _ => Ranging::Once(observer),
        };
        let value = ValueQuantizer { name: name.to_owned(), scheme, non_finite, training, ranging, scale, zero_point };
        // What is wrong with an observer is said here, before anything is trained.
        match value.ranging {
            Ranging::Once(kind) => kind.build(scheme.granularity(), non_finite).map(drop)?,
            Ranging::Average { rate, .. } => value.average(rate).map(drop)?,
        }
        Ok(value)
    }

    fn average(&self, rate: f32) -> Result<MovingAverage> {
        Ok(MovingAverage::new(self.scheme.granularity()).with_rate(rate)?.with_non_finite(self.non_finite))
    }

    /// The grid after one more batch; `None` while no value was seen.
    fn look(&self, value: &Array, found: bool, parameters: &mut [Parameter]) -> Result<Option<(f32, i32)>> {
        let params = match self.ranging {
            Ranging::Once(kind) => {
                let mut observer = kind.build(self.scheme.granularity(), self.non_finite)?;
                observer.observe(value.held())?;
                observer.qparams(&self.scheme)?
            }
            Ranging::Average { rate, place } => {
                let mut average = self.average(rate)?;
                if found {
                    // An average that has seen its own ends alone goes on from them.
                    average.observe(parameters[place].value())?;
                }
                average.observe(value.held())?;
                let &[Some((lo, hi))] = average.ranges().as_slice() else { return Ok(None) };
                parameters[place].value_mut().as_mut_slice().copy_from_slice(&[lo, hi]);
                average.qparams(&self.scheme)?
            }
        };
        Ok(Some(params.at(0)))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether something is learned from gradients.
    pub fn learns(&self) -> bool {
        !matches!(self.training, ActivationTraining::Observed { .. })
    }

    /// Scale and zero point; `None` before the first batch.
    pub fn grid(&self, parameters: &[Parameter]) -> Option<(f32, i32)> {
        let (qmin, qmax) = (self.scheme.qmin(), self.scheme.qmax());
        match (scale_of(&parameters[self.scale], 0), self.training) {
            (0.0, _) => None,
            (bound, ActivationTraining::Clipped { .. }) => Some((bound / (qmax - qmin) as f32, qmin)),
            (scale, _) => {
                let zero_point = parameters[self.zero_point].value().as_slice()[0];
                Some((scale, zero_point.round_ties_even().clamp(qmin as f32, qmax as f32) as i32))
            }
        }
    }

    /// The grid and its codes; `None` before the first batch.
    pub fn range(&self, parameters: &[Parameter]) -> Option<CodeRange> {
        self.grid(parameters)?;
        self.qparams(parameters).and_then(|params| CodeRange::new(&params)).ok()
    }

    pub fn qparams(&self, parameters: &[Parameter]) -> Result<QParams> {
        let (scale, zero_point) = self
            .grid(parameters)
            .ok_or_else(|| Error::Empty { what: format!("range of `{}`", self.name), way_out: "run at least one batch in training" })?;
        QParams::per_tensor(scale, zero_point, self.scheme.qmin(), self.scheme.qmax())
    }

    /// Looks at a batch, where that still decides something.
    pub fn observe(&self, value: &Array, frozen: bool, parameters: &mut [Parameter]) -> Result<()> {
        let found = scale_of(&parameters[self.scale], 0) != 0.0;
        if found && (frozen || self.learns()) {
            return Ok(());
        }
        let grid = self.look(value, found, parameters).map_err(|error| match error {
            Error::NonFinite { index, value, .. } => Error::NonFinite { what: format!("value `{}`", self.name), index, value },
            error => error,
        })?;
        let Some((scale, zero_point)) = grid else { return Ok(()) };
        // What lies below zero is clipped by PACT: all codes are for what is above.
        let above = (self.scheme.qmax() - zero_point).max(1) as f32;
        let clipped = matches!(self.training, ActivationTraining::Clipped { .. });
        set_scales(&mut parameters[self.scale], &[if clipped { scale * above } else { scale }]);
        parameters[self.zero_point].value_mut().as_mut_slice()[0] = zero_point as f32;
        Ok(())
    }

    /// Codes as steps from zero.
    fn steps(&self, zero_point: i32) -> (f32, f32) {
        ((self.scheme.qmin() - zero_point) as f32, (self.scheme.qmax() - zero_point) as f32)
    }

    pub fn round(&self, value: &Array, parameters: &[Parameter], threads: usize) -> Result<Option<Array>> {
        let Some((scale, zero_point)) = self.grid(parameters) else { return Ok(None) };
        let mut rounded = vec![0.0; value.data().len()];
        quantize_steps(value.data(), scale, self.steps(zero_point), threads, &mut rounded);
        Array::like(value, rounded).map(Some)
    }

    /// The gradient by the value, and those by what is learned.
    pub fn back(&self, value: &Array, gradient: Array, parameters: &[Parameter], sums: &mut Gradients) -> Result<Array> {
        let Some((scale, zero_point)) = self.grid(parameters) else { return Ok(gradient) };
        let (x, dy, (lo, hi)) = (value.data(), gradient.data(), self.steps(zero_point));
        let mut dx = vec![0.0; x.len()];
        match self.training {
            ActivationTraining::Observed { .. } => pass_steps(x, scale, (lo, hi), dy, &mut dx),
            ActivationTraining::Clipped { decay } => {
                let bound = scale_of(&parameters[self.scale], 0);
                let by_bound = clipped_above(x, bound, dy, &mut dx) + f64::from(decay * bound);
                sums.add(self.scale, vec![(by_bound * f64::from(bound)) as f32]);
            }
            ActivationTraining::Learned | ActivationTraining::LearnedOffset => {
                let of_a_sample = x.len() / value.held().dims().first().copied().unwrap_or(1).max(1);
                let factor = lsq_factor(of_a_sample, hi as i32) * f64::from(scale);
                if self.training == ActivationTraining::Learned {
                    let by_scale = learned_steps(x, scale, 0.0, (lo, hi), dy, &mut dx).0;
                    sums.add(self.scale, vec![(factor * by_scale) as f32]);
                } else {
                    // LSQ+ has the offset β = -scale · zero point; at a fixed zero point it moves with the scale.
                    let (zero, shifted) = (zero_point as f32, |step: f32| step + zero_point as f32);
                    let (by_scale, by_offset) = learned_steps(x, scale, -scale * zero, (shifted(lo), shifted(hi)), dy, &mut dx);
                    sums.add(self.scale, vec![(factor * (by_scale - by_offset * f64::from(zero))) as f32]);
                    sums.add(self.zero_point, vec![(-factor * by_offset) as f32]);
                }
            }
        }
        Array::like(value, dx)
    }
}
