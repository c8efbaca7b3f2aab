//! The mean error of each layer's outputs, by the statistics of batch norms.

use super::measured::nothing;
use super::{Corrected, LayerCorrection, float_twin, is_correctable, lowered, put};
use crate::convert::clamp;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::nn::operator::{Binary, Operator, Variadic};
use crate::nn::{Edge, Layer, Model, Node, SkipReason, Skipped, Wiring};
use crate::num::math::erf_f64;
use crate::progress::Progress;
use crate::ptq::layers::folded_alike;
use crate::tensor::{Tensor, Value};

/// `quantized` with the error that the rounding of weights makes on the mean input taken out of the biases; both models are untouched.
///
/// `float` is the model that was quantized, with its batch norms. What they say of their outputs is followed through clamps (ReLU, ReLU6,
/// Min and Max by channel), sums of two such values (as if independent), means and what moves nothing; layers that read
/// anything else are passed over. Padding is taken for pixels like all others, and the rounding of activations is not seen: with
/// samples at hand, [`correct_biases`](super::correct_biases) sees both.
///
/// # Errors
/// [`Error::NothingToQuantize`] when `quantized` has no quantized convolution or linear layer; [`Error::NonFinite`] for what weights and norms
/// make that is not finite, inside an [`Error::Layer`] that names the layer; [`Error::Cancelled`].
pub fn correct_biases_by_norms(float: &Model, quantized: &Model, mut progress: Progress<'_>) -> Result<Corrected> {
    if !quantized.nodes().iter().any(is_correctable) {
        return Err(nothing(quantized));
    }
    let means = means(float);
    let folded = folded_alike(float, quantized)?;
    let mut corrected = Corrected { model: quantized.clone(), layers: Vec::new(), passed_over: Vec::new() };
    let correctable: Vec<usize> = (0..quantized.nodes().len()).filter(|&at| is_correctable(&quantized.nodes()[at])).collect();
    for (done, &at) in correctable.iter().enumerate() {
        let node = &quantized.nodes()[at];
        progress.step("correct biases", node.name(), done, correctable.len())?;
        let input = |twin: &Node| float.node(twin.name()).and_then(|node| node.reads().next()).and_then(|edge| means[edge.index].as_ref());
        let found = match float_twin(&folded, node) {
            Err(reason) => Err(reason),
            Ok(twin) => match input(twin) {
                None => Err(SkipReason::Unsupported("its input is not what a batch norm and clamps leave".into())),
                Some(mean) => shifts(node, twin, mean).map_err(|error| error.in_layer(node.name()))?,
            },
        };
        match found {
            Ok(shifts) => {
                let correction = LayerCorrection { name: node.name().to_owned(), shifts, held_out: None };
                put(&mut corrected, at, lowered(node.layer(), &correction.shifts), correction);
            }
            Err(reason) => corrected.passed_over.push(Skipped::new(node.name(), node.layer().kind(), reason)),
        }
    }
    Ok(corrected)
}

/// `Σ ε · E[x]` of each output.
fn shifts(node: &Node, twin: &Node, mean: &[f64]) -> Result<std::result::Result<Vec<f64>, SkipReason>> {
    let (Some(rounded), Some(weight)) = (node.layer().float_weight()?, twin.layer().float_weight()?) else {
        return Ok(Err(SkipReason::Unsupported("it has no weights to compare".into())));
    };
    let groups = match twin.layer() {
        Layer::Conv2d(conv) => conv.geometry().groups,
        _ => 1,
    };
    let (outputs, width) = (weight.dims()[0], weight.dims()[1]);
    // Behind a Flatten each channel is several inputs.
    let spread = (width * groups).checked_div(mean.len()).unwrap_or(0);
    if rounded.dims() != weight.dims() || spread == 0 || width * groups != mean.len() * spread {
        return Ok(Err(SkipReason::Unsupported("its weights do not fit what it reads".into())));
    }
    let taps = weight.len() / (outputs * width).max(1);
    let error = |i: usize| f64::from(rounded.as_slice()[i]) - f64::from(weight.as_slice()[i]);
    let shift = |output: usize| {
        let first = output / (outputs / groups) * width;
        let of = |i: usize| (0..taps).map(|tap| error((output * width + i) * taps + tap)).sum::<f64>() * mean[(first + i) / spread];
        (0..width).map(of).sum()
    };
    let shifts: Vec<f64> = (0..outputs).map(shift).collect();
    match shifts.iter().position(|shift: &f64| !shift.is_finite()) {
        Some(index) => Err(Error::NonFinite { what: "mean error".into(), index, value: shifts[index] as f32 }),
        None => Ok(Ok(shifts)),
    }
}

/// A channel, as if normally distributed before it was held between two bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Channel {
    mean: f64,
    deviation: f64,
    lo: f64,
    hi: f64,
}

impl Channel {
    fn normal(mean: f64, deviation: f64) -> Self {
        Channel { mean, deviation: deviation.abs(), lo: f64::NEG_INFINITY, hi: f64::INFINITY }
    }

    fn clamped(self, lo: f64, hi: f64) -> Self {
        let within = |x: f64| x.max(lo).min(hi);
        Channel { lo: within(self.lo), hi: within(self.hi), ..self }
    }

    /// Mean and variance.
    fn moments(self) -> (f64, f64) {
        let Channel { mean, deviation, lo, hi } = self;
        if deviation == 0.0 {
            return (mean.max(lo).min(hi), 0.0);
        }
        let (a, b) = ((lo - mean) / deviation, (hi - mean) / deviation);
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let below = |x: f64| 0.5 * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2));
        // A bound at infinity is never met.
        let at = |bound: f64, x: f64| if bound.is_finite() { x } else { 0.0 };
        let (under, inside, over) = (below(a), below(b) - below(a), 1.0 - below(b));
        let slope = density(a) - density(b);
        let first = at(lo, lo * under) + at(hi, hi * over) + mean * inside + deviation * slope;
        let second = at(lo, lo * lo * under)
            + at(hi, hi * hi * over)
            + (mean * mean + deviation * deviation) * inside
            + 2.0 * mean * deviation * slope
            + deviation * deviation * (at(lo, a * density(a)) - at(hi, b * density(b)));
        (first, (second - first * first).max(0.0))
    }
}

/// By edge: the mean of each channel, where batch norms tell it.
fn means(model: &Model) -> Vec<Option<Vec<f64>>> {
    let wiring = Wiring::new(model);
    let mut known: Vec<Option<Vec<Channel>>> = vec![None; model.edge_count()];
    for node in model.nodes() {
        let channels = channels(node, &wiring, &known);
        known[node.outputs()[0].index] = channels;
    }
    known.into_iter().map(|channels| channels.map(|channels| channels.iter().map(|channel| channel.moments().0).collect())).collect()
}

/// What is known of what a node writes.
fn channels(node: &Node, wiring: &Wiring<'_>, known: &[Option<Vec<Channel>>]) -> Option<Vec<Channel>> {
    if let Layer::BatchNorm2d(norm) = node.layer() {
        let [gamma, beta, ..] = norm.parameters();
        let channel = |(&gamma, &beta): (&f32, &f32)| Channel::normal(beta.into(), gamma.into());
        return Some(gamma.as_slice().iter().zip(beta.as_slice()).map(channel).collect());
    }
    let of = |edge: Edge| known[edge.index].as_ref();
    let read = node.reads().next()?;
    let each = |f: &dyn Fn(Channel) -> Channel| of(read).map(|channels| channels.iter().map(|&channel| f(channel)).collect());
    match clamp(node, wiring) {
        Some(Activation::None) => return each(&|channel| channel),
        Some(Activation::Relu) => return each(&|channel| channel.clamped(0.0, f64::INFINITY)),
        Some(Activation::Clamp { lo, hi }) => return each(&|channel| channel.clamped(lo.into(), hi.into())),
        None => {}
    }
    match node.layer() {
        Layer::AvgPool2d(_) | Layer::GlobalAvgPool2d(_) => each(&|channel| Channel::normal(channel.moments().0, 0.0)),
        Layer::Operator(Operator::GlobalPool(pool)) if pool.is_average() => each(&|channel| Channel::normal(channel.moments().0, 0.0)),
        Layer::Flatten { axis: 1 } | Layer::Operator(Operator::Flatten(_) | Operator::Identity(_) | Operator::Dropout(_)) => {
            each(&|channel| channel)
        }
        Layer::Add | Layer::Operator(Operator::Binary(Binary::Add)) => {
            let &[Some(a), Some(b)] = node.inputs() else { return None };
            let (a, b) = (of(a)?, of(b)?);
            let sum = |(a, b): (&Channel, &Channel)| {
                let ((a, va), (b, vb)) = (a.moments(), b.moments());
                Channel::normal(a + b, (va + vb).sqrt())
            };
            (a.len() == b.len()).then(|| a.iter().zip(b).map(sum).collect())
        }
        Layer::Operator(Operator::Variadic(bound @ (Variadic::Min | Variadic::Max))) => {
            let &[Some(a), Some(b)] = node.inputs() else { return None };
            let (channels, constant) = if let Some(channels) = of(a) { (channels, b) } else { (of(b)?, a) };
            let values = bounds(wiring.constants[constant.index]?, channels.len())?;
            let held = |(&channel, bound_at): (&Channel, f64)| match bound {
                Variadic::Min => channel.clamped(f64::NEG_INFINITY, bound_at),
                _ => channel.clamped(bound_at, f64::INFINITY),
            };
            Some(channels.iter().zip(values).map(held).collect())
        }
        _ => None,
    }
}

/// A constant's number for each channel of an image.
fn bounds(value: &Value, channels: usize) -> Option<Vec<f64>> {
    let tensor: &Tensor = value.get::<f32>()?;
    let by_channel = matches!(*tensor.dims(), [n, 1, 1] | [1, n, 1, 1] if n == channels);
    match tensor.as_slice() {
        [one] => Some(vec![f64::from(*one); channels]),
        all if by_channel => Some(all.iter().map(|&x| x.into()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against sums over the density.
    #[test]
    fn moments_of_clamped_normals() {
        for (mean, deviation, lo, hi) in [
            (0.0, 1.0, 0.0, f64::INFINITY),
            (1.5, 0.7, 0.0, 6.0),
            (-2.0, 1.0, 0.0, 6.0),
            (5.0, 3.0, -1.0, 6.0),
            (0.3, 2.0, f64::NEG_INFINITY, 1.0),
        ] {
            let (steps, mut sums) = (200_000, [0.0f64; 3]);
            for i in 0..steps {
                let z = -10.0 + 20.0 * (f64::from(i) + 0.5) / f64::from(steps);
                let (x, p) = ((mean + deviation * z).max(lo).min(hi), (-0.5 * z * z).exp());
                sums = [sums[0] + p, sums[1] + p * x, sums[2] + p * x * x];
            }
            let (first, second) = (sums[1] / sums[0], sums[2] / sums[0]);
            let (got, variance) = Channel::normal(mean, -deviation).clamped(lo, hi).moments();
            assert!((got - first).abs() < 1e-6 && (variance - (second - first * first)).abs() < 1e-6, "{mean} {deviation} {lo} {hi}");
        }
        assert_eq!(Channel::normal(-1.0, 0.0).clamped(0.0, 6.0).moments(), (0.0, 0.0));
    }
}
