//! What rounding costs, and how it changes with a scale.

use super::State;
use super::links::{Link, Passage};
use super::scales::Side;
use crate::nn::operator::{Operator, Variadic};
use crate::nn::{Layer, Model};
use crate::ptq::statistics::Statistics;
use crate::tensor::Tensor;

/// The order of the norm that stands for a maximum: of 100 equal values it is half too large, of few hardly at all.
const ORDER: i32 = 12;
/// Deviations that a channel is expected to reach, whatever the samples show.
const HEADROOM: f64 = 4.0;
/// One over the square of the steps on the largest magnitude: of weights, and of activations.
const WEIGHTS: f64 = 1.0 / (127.0 * 127.0);
const ACTIVATIONS: f64 = 1.0 / (255.0 * 255.0);

/// What samples tell of the layers of all links.
pub(super) struct Noise {
    /// By link, by channel of the value between: the largest magnitude that it may reach, and its mean square, both without scales.
    values: Vec<[Vec<f64>; 2]>,
    /// By link, the mean square of each input channel of the first layer, without scales.
    inputs: Vec<Vec<f64>>,
    /// By link: the one that its second layer begins.
    next: Vec<Option<usize>>,
}

impl Noise {
    /// `statistics` by node, there for all layers of the links, and nothing scaled yet.
    pub fn new(model: &Model, state: &State, statistics: &[Option<Statistics>]) -> Self {
        let of = |node: usize| statistics[node].as_ref().expect("taken of both layers of a link");
        let value = |link: &Link| {
            let read = of(link.second);
            let largest: Vec<f64> = read.largest.chunks(link.spread).map(|x| x.iter().copied().fold(0.0, f64::max)).collect();
            let square = read.square.chunks(link.spread).map(|x| x.iter().sum::<f64>() / link.spread as f64).collect();
            [reach(model, link, state.side(link.first), &of(link.first).square, &largest), square]
        };
        let links = &state.links;
        Noise {
            values: links.iter().map(value).collect(),
            inputs: links.iter().map(|link| of(link.first).square.clone()).collect(),
            next: links.iter().map(|link| links.iter().position(|next| next.first == link.second)).collect(),
        }
    }

    /// What each channel may reach; of one that is never other than 0 it is 0, and no scale.
    pub fn reach(&self, link: usize) -> Vec<f64> {
        self.values[link][0].clone()
    }

    /// By link: what noise of variance 1 on each of its channels costs where the last of the links behind it ends.
    pub fn costs(&self, state: &State) -> Vec<Vec<f64>> {
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); self.next.len()];
        for (index, link) in state.links.iter().enumerate().rev() {
            let mut cost = vec![0.0; link.channels];
            {
                let behind = self.behind(&costs, index);
                state.side(link.second).each_square(|input, output, square| cost[input / link.spread] += behind(output) * square);
            }
            costs[index] = cost;
        }
        costs
    }

    /// What noise of variance 1 on an output of a link's second layer costs: what the next link says, or 1. A link ends where the next
    /// begins, and so before it.
    fn behind<'a>(&self, costs: &'a [Vec<f64>], link: usize) -> impl Fn(usize) -> f64 + use<'a> {
        let next = self.next[link].map(|next| &costs[next]);
        move |output| next.map_or(1.0, |cost| cost[output])
    }

    /// The factors of a link's scales that bring the terms which grow with them nearer to those which shrink.
    pub fn step(&self, state: &State, costs: &[Vec<f64>], link: usize) -> Vec<f64> {
        let Link { first, second, spread, .. } = state.links[link];
        let (writer, reader, scales) = (state.side(first), state.side(second), &state.scales[link]);
        let [largest, square] = &self.values[link];
        let largest: Vec<f64> = largest.iter().zip(scales).map(|(x, s)| x / s).collect();
        let square: Vec<f64> = square.iter().zip(scales).map(|(x, s)| x / (s * s)).collect();
        let cost = &costs[link];

        // The value, rounded: Σ C · A².
        let reach = Norm::new(largest.iter().copied());
        let noise = reach.squared() * ACTIVATIONS;
        let total = noise * cost.iter().sum::<f64>();
        let mut grows: Vec<f64> = cost.iter().map(|cost| cost * noise).collect();
        let mut shrinks: Vec<f64> = largest.iter().map(|&x| total * reach.share(x)).collect();

        // The weights that write it: Σ C · M₁² · |x|².
        let power = self.power(writer, link);
        let reach = Norm::new(writer.each().map(|(.., magnitude)| magnitude));
        let noise = reach.squared() * WEIGHTS;
        let total = noise * cost.iter().zip(&power).map(|(cost, power)| cost * power).sum::<f64>();
        grows.iter_mut().zip(cost.iter().zip(&power)).for_each(|(grows, (cost, power))| *grows += cost * power * noise);
        writer.each().for_each(|(_, output, magnitude)| shrinks[output] += total * reach.share(magnitude));

        // The weights that read it: M₂² · Σ C · Q.
        let behind = self.behind(costs, link);
        let reach = Norm::new(reader.each().map(|(.., magnitude)| magnitude));
        let noise = reach.squared() * WEIGHTS * reader.taps() as f64;
        let mut total = 0.0;
        reader.each().for_each(|(input, output, _)| {
            let lost = noise * behind(output) * square[input / spread];
            total += lost;
            shrinks[input / spread] += lost;
        });
        reader.each().for_each(|(input, _, magnitude)| grows[input / spread] += total * reach.share(magnitude));

        // Shares move with the ORDER-th power of a scale, everything else with the second.
        grows.iter().zip(shrinks).map(|(grows, shrinks)| (shrinks / grows).powf(1.0 / f64::from(ORDER + 2))).collect()
    }

    /// By output channel of the first layer: the sum of squares of the inputs of one output, as they are with their scales.
    fn power(&self, writer: &Side, link: usize) -> Vec<f64> {
        let mut power = vec![0.0; writer.outputs.len()];
        writer.each().for_each(|(input, output, _)| {
            let scale = writer.inputs[input];
            power[output] += self.inputs[link][input] / (scale * scale) * writer.taps() as f64;
        });
        power
    }
}

/// What each channel of a link may reach: what the samples show, or by its weights and the mean squares that they meet `|b| + 4 √(Σ w² x²)`,
/// and no more than a clamp on the way lets through. A channel that moved in few samples would else be blown up, and clipped on others.
fn reach(model: &Model, link: &Link, writer: &Side, inputs: &[f64], largest: &[f64]) -> Vec<f64> {
    let mut variance = vec![0.0; link.channels];
    writer.each_square(|input, output, square| variance[output] += square * inputs[input]);
    let caps = caps(model, link);
    let channel = |c: usize| largest[c].max((writer.bias(c) + HEADROOM * variance[c].sqrt()).min(caps[c]));
    (0..link.channels).map(channel).collect()
}

/// The largest magnitude that clamps let through, by channel.
fn caps(model: &Model, link: &Link) -> Vec<f64> {
    let mut caps = vec![f64::INFINITY; link.channels];
    for &(node, passage) in &link.between {
        match (passage, model.nodes()[node].layer()) {
            (Passage::Clamp { lo, hi }, _) => caps.iter_mut().for_each(|cap| *cap = cap.min(f64::from(hi.max(-lo)))),
            (Passage::Bound(bound), Layer::Operator(Operator::Variadic(Variadic::Min))) => {
                let bound = model.constants().iter().find(|(edge, _)| *edge == bound).and_then(|(_, value)| value.get::<f32>());
                let bound = bound.map_or(&[][..], Tensor::as_slice).iter().cycle();
                caps.iter_mut().zip(bound).for_each(|(cap, &bound)| *cap = cap.min(f64::from(bound).abs()));
            }
            _ => {}
        }
    }
    caps
}

/// A smooth maximum: `(Σ xᵖ)^(1/p)`.
struct Norm {
    largest: f64,
    /// `Σ (x / largest)ᵖ`.
    sum: f64,
}

impl Norm {
    fn new(values: impl Iterator<Item = f64> + Clone) -> Self {
        let largest = values.clone().fold(0.0, f64::max);
        let sum = if largest > 0.0 { values.map(|x| (x / largest).powi(ORDER)).sum() } else { 0.0 };
        Norm { largest, sum }
    }

    fn squared(&self) -> f64 {
        (self.largest * self.sum.powf(1.0 / f64::from(ORDER))).powi(2)
    }

    /// The part of it that is this value's; all parts together are 1.
    fn share(&self, x: f64) -> f64 {
        if self.sum > 0.0 { (x / self.largest).powi(ORDER) / self.sum } else { 0.0 }
    }
}
