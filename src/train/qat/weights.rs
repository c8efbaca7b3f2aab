//! Fake quantization of weights, and of the bias that goes with them.

use super::activations::{scale_of, set_scales, unknown_scales};
use super::config::{Levels, WeightTraining};
use crate::convert::{StaticScheme, WeightScales};
use crate::error::Result;
use crate::num::{NonFinite, quantize};
use crate::quant::least_squares;
use crate::tensor::{Granularity, QParams, QuantizedTensor, Tensor};
use crate::train::fake_quantize::{learned_steps, lsq_factor, pass_steps, quantize_steps};
use crate::train::parameter::{Gradients, Parameter};

/// What rounds the weights of one layer.
#[derive(Debug)]
pub struct WeightQuantizer {
    scheme: StaticScheme,
    training: WeightTraining,
    non_finite: NonFinite,
    /// Places of the weights and of their scales.
    weights: usize,
    scales: usize,
    /// The edges whose grids give the unit of the sums, and whose codes come out: then the bias is rounded to that unit.
    pub input: usize,
    pub writes_codes: bool,
}

impl WeightQuantizer {
    pub fn new(
        name: &str,
        scheme: &StaticScheme,
        training: &WeightTraining,
        non_finite: NonFinite,
        (weights, input, writes_codes): (usize, usize, bool),
        parameters: &mut Vec<Parameter>,
    ) -> Result<Self> {
        let channels = parameters[weights].value().dims()[0];
        let count = if scheme.weights.granularity() == Granularity::PerTensor { 1 } else { channels };
        parameters.push(unknown_scales(&format!("{name}.weight"), "scale", count, *training != WeightTraining::Observed)?);
        let scales = parameters.len() - 1;
        Ok(WeightQuantizer { scheme: scheme.clone(), training: training.clone(), non_finite, weights, scales, input, writes_codes })
    }

    fn levels(&self) -> Option<&Levels> {
        if let WeightTraining::Levels(levels) = &self.training { Some(levels) } else { None }
    }

    fn bounds(&self) -> (i32, i32) {
        match self.levels() {
            Some(levels) => (levels.codes[0].into(), levels.codes[levels.codes.len() - 1].into()),
            None => (self.scheme.weights.qmin(), self.scheme.weights.qmax()),
        }
    }

    /// Finds the scales: the first time, or, where they are not learned, every time.
    pub fn find(&self, parameters: &mut [Parameter]) -> Result<()> {
        if self.scales(parameters).iter().all(|&scale| scale != 0.0) && self.training != WeightTraining::Observed {
            return Ok(());
        }
        let weights = parameters[self.weights].value();
        let scales = match (self.levels(), self.scheme.weight_scales) {
            (Some(levels), _) => fit(weights, parameters[self.scales].value().len(), &levels.codes),
            (None, WeightScales::LeastSquares) => least_squares(weights, &self.scheme.weights, self.non_finite)?.scales().to_vec(),
            (None, WeightScales::Observed(kind)) => {
                let mut observer = kind.build(self.scheme.weights.granularity(), self.non_finite)?;
                observer.observe(weights)?;
                observer.qparams(&self.scheme.weights)?.scales().to_vec()
            }
        };
        set_scales(&mut parameters[self.scales], &scales);
        Ok(())
    }

    fn scales(&self, parameters: &[Parameter]) -> Vec<f32> {
        let scales = &parameters[self.scales];
        (0..scales.value().len()).map(|index| scale_of(scales, index)).collect()
    }

    /// Calls `f` with each run of weights that share a scale, and the scale.
    fn each<'p>(&self, parameters: &'p [Parameter], mut f: impl FnMut(usize, &'p [f32], f32)) {
        let (weights, scales) = (parameters[self.weights].value().as_slice(), self.scales(parameters));
        let each = (weights.len() / scales.len().max(1)).max(1);
        weights.chunks(each).zip(scales).enumerate().for_each(|(run, (weights, scale))| f(run * each, weights, scale));
    }

    /// The weights as the integer model holds them.
    pub fn round(&self, parameters: &[Parameter]) -> Vec<f32> {
        let mut rounded = vec![0.0; parameters[self.weights].value().len()];
        let (lo, hi) = self.bounds();
        self.each(parameters, |first, weights, scale| {
            let rounded = &mut rounded[first..first + weights.len()];
            match self.levels() {
                Some(levels) => {
                    rounded.iter_mut().zip(weights).for_each(|(y, &w)| *y = scale * f32::from(nearest(&levels.codes, w / scale)));
                }
                None => quantize_steps(weights, scale, (lo as f32, hi as f32), 1, rounded),
            }
        });
        rounded
    }

    /// The bias as the integer model adds it: a whole number of units of the sums.
    pub fn round_bias(&self, bias: &[f32], input_scale: f32, parameters: &[Parameter]) -> Vec<f32> {
        let scales = self.scales(parameters);
        let round = |(channel, &bias): (usize, &f32)| {
            let unit = f64::from(input_scale) * f64::from(scales[if scales.len() == 1 { 0 } else { channel }]);
            ((f64::from(bias) / unit).round_ties_even() * unit) as f32
        };
        bias.iter().enumerate().map(round).collect()
    }

    /// From the gradient by rounded weights that by the weights; that by the scales goes to `sums`.
    pub fn back(&self, gradient: &[f32], parameters: &[Parameter], sums: &mut Gradients) -> Vec<f32> {
        let (lo, hi) = self.bounds();
        let (mut by_weights, mut by_scales) = (vec![0.0; gradient.len()], Vec::new());
        self.each(parameters, |first, weights, scale| {
            let at = first..first + weights.len();
            let (dy, dx) = (&gradient[at.clone()], &mut by_weights[at]);
            let by_scale = match self.levels() {
                _ if self.training == WeightTraining::Observed => {
                    pass_steps(weights, scale, (lo as f32, hi as f32), dy, dx);
                    0.0
                }
                Some(levels) => level_gradients(weights, scale, &levels.codes, dy, dx),
                None => learned_steps(weights, scale, 0.0, (lo as f32, hi as f32), dy, dx).0,
            };
            by_scales.push((by_scale * lsq_factor(weights.len(), hi) * f64::from(scale)) as f32);
        });
        if self.training != WeightTraining::Observed {
            sums.add(self.scales, by_scales);
        }
        by_weights
    }

    /// The codes of the weights.
    pub fn codes(&self, parameters: &[Parameter]) -> Result<QuantizedTensor<i8>> {
        let weights = parameters[self.weights].value();
        let (mut codes, (lo, hi)) = (vec![0i8; weights.len()], self.bounds());
        self.each(parameters, |first, weights, scale| {
            for (code, &w) in codes[first..].iter_mut().zip(weights) {
                *code = match self.levels() {
                    Some(levels) => nearest(&levels.codes, w / scale),
                    None => quantize(w, scale, 0, lo, hi) as i8,
                };
            }
        });
        let scales = self.scales(parameters);
        // Zero is a code even where it is no level.
        let params = QParams::new(scales, Vec::new(), self.scheme.weights.granularity(), lo.min(0), hi.max(0))?;
        QuantizedTensor::from_storage(codes, weights.shape().clone(), params)
    }
}

/// The level next to `x`, of two as near the lower one.
fn nearest(levels: &[i8], x: f32) -> i8 {
    let above = levels.partition_point(|&level| f32::from(level) < x).min(levels.len() - 1);
    let below = above.saturating_sub(1);
    if x - f32::from(levels[below]) <= f32::from(levels[above]) - x { levels[below] } else { levels[above] }
}

/// LSQ's gradients for levels that are not evenly spaced: `ds = Σ dy · (level - w / s)` inside, `Σ dy · level` at the ends.
fn level_gradients(weights: &[f32], scale: f32, levels: &[i8], dy: &[f32], dx: &mut [f32]) -> f64 {
    let (lo, hi) = (f32::from(levels[0]), f32::from(levels[levels.len() - 1]));
    let mut by_scale = 0.0;
    for ((&w, &dy), dx) in weights.iter().zip(dy).zip(dx) {
        let v = w / scale;
        let inside = v >= lo && v <= hi;
        *dx = if inside { dy } else { 0.0 };
        by_scale += f64::from(dy * (f32::from(nearest(levels, v)) - if inside { v } else { 0.0 }));
    }
    by_scale
}

/// Of scales between a third of the exact range and all of it, those of least squared error.
fn fit(weights: &Tensor, count: usize, levels: &[i8]) -> Vec<f32> {
    const TRIED: usize = 48;
    let largest_level = levels.iter().map(|level| f32::from(level.unsigned_abs())).fold(1.0, f32::max);
    let each = (weights.len() / count.max(1)).max(1);
    let error = |weights: &[f32], scale: f32| -> f64 {
        weights.iter().map(|&w| f64::from(w - scale * f32::from(nearest(levels, w / scale))).powi(2)).sum()
    };
    let best = |weights: &[f32]| {
        let range = weights.iter().fold(0.0f32, |range, w| range.max(w.abs())) / largest_level;
        if range == 0.0 {
            return 1.0;
        }
        let scales = (TRIED / 3..=TRIED).map(|i| range * i as f32 / TRIED as f32);
        scales.min_by(|&a, &b| error(weights, a).total_cmp(&error(weights, b))).unwrap_or(range)
    };
    weights.as_slice().chunks(each).map(best).collect()
}
