//! Ranges of channels on both sides of a link, and the scales that make them alike.

use super::links::Link;
use crate::nn::{Layer, Model};
use crate::tensor::Tensor;

/// A layer's weights by what equalization sees of them, and the scales that they have got.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// Largest magnitude of a filter, and the sum of its squares: by output channel and input channel of its group.
    magnitudes: Vec<f64>,
    squares: Vec<f64>,
    taps: usize,
    bias: Vec<f64>,
    groups: usize,
    /// By input channel, what its weights are multiplied with.
    pub inputs: Vec<f64>,
    /// By output channel, what its weights and its bias are divided by.
    pub outputs: Vec<f64>,
}

impl Side {
    /// Of a float convolution or linear layer.
    pub fn new(layer: &Layer) -> Option<Side> {
        let (weight, bias, inputs, groups, taps) = match layer {
            Layer::Conv2d(conv) => {
                let geometry = conv.geometry();
                (conv.weight(), conv.bias(), geometry.in_channels, geometry.groups, geometry.kernel.iter().product())
            }
            Layer::Linear(linear) => (linear.weight(), linear.bias(), linear.in_features(), 1, 1),
            _ => return None,
        };
        let largest = |taps: &[f32]| taps.iter().map(|&w| f64::from(w).abs()).fold(0.0, f64::max);
        let square = |taps: &[f32]| taps.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
        let outputs = weight.dims()[0];
        Some(Side {
            squares: weight.as_slice().chunks_exact(taps).map(square).collect(),
            taps,
            magnitudes: weight.as_slice().chunks_exact(taps).map(largest).collect(),
            bias: bias.map_or_else(|| vec![0.0; outputs], |bias| bias.as_slice().iter().map(|&b| f64::from(b).abs()).collect()),
            groups,
            inputs: vec![1.0; inputs],
            outputs: vec![1.0; outputs],
        })
    }

    /// The input channel that a weight of this index in `[out, in / groups]` is multiplied with, and its output channel.
    fn channels(&self, index: usize) -> (usize, usize) {
        let width = self.inputs.len() / self.groups;
        let output = index / width;
        (output / (self.outputs.len() / self.groups) * width + index % width, output)
    }

    /// Of each filter: input channel, output channel, largest magnitude, as it is with the scales.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize, f64)> + Clone {
        self.magnitudes.iter().enumerate().map(|(index, magnitude)| {
            let (input, output) = self.channels(index);
            (input, output, magnitude * self.inputs[input] / self.outputs[output])
        })
    }

    /// Of each filter: input channel, output channel, sum of squares, as it is with the scales.
    pub fn each_square(&self, mut see: impl FnMut(usize, usize, f64)) {
        for (index, square) in self.squares.iter().enumerate() {
            let (input, output) = self.channels(index);
            let factor = self.inputs[input] / self.outputs[output];
            see(input, output, square * factor * factor);
        }
    }

    /// Magnitude of an output channel's bias, without scales.
    pub fn bias(&self, output: usize) -> f64 {
        self.bias[output]
    }

    /// Weights of a filter.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// By output channel: the largest magnitude of its weights and bias, as they are with the scales.
    pub fn written(&self) -> Vec<f64> {
        let mut largest: Vec<f64> = self.bias.iter().zip(&self.outputs).map(|(bias, scale)| bias / scale).collect();
        self.each().for_each(|(_, output, magnitude)| largest[output] = largest[output].max(magnitude));
        largest
    }

    /// By channel, each of `spread` inputs: the largest magnitude of the weights that it is multiplied with.
    pub fn read(&self, spread: usize) -> Vec<f64> {
        let mut largest = vec![0.0f64; self.inputs.len() / spread];
        self.each().for_each(|(input, _, magnitude)| largest[input / spread] = largest[input / spread].max(magnitude));
        largest
    }

    /// Weight and bias with the scales.
    pub fn scaled(&self, weight: &Tensor, bias: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
        let mut weight = weight.clone();
        for (index, taps) in weight.as_mut_slice().chunks_exact_mut(self.taps).enumerate() {
            let (input, output) = self.channels(index);
            let factor = self.inputs[input] / self.outputs[output];
            taps.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
        let bias = bias.map(|bias| {
            let mut bias = bias.clone();
            bias.as_mut_slice().iter_mut().zip(&self.outputs).for_each(|(b, scale)| *b = (f64::from(*b) / scale) as f32);
            bias
        });
        (weight, bias)
    }
}

/// By node: its side, where it is a float layer of a link.
pub(super) fn sides(model: &Model, links: &[Link]) -> Vec<Option<Side>> {
    let mut sides: Vec<Option<Side>> = vec![None; model.nodes().len()];
    for index in links.iter().flat_map(|link| [link.first, link.second]) {
        if sides[index].is_none() {
            sides[index] = Side::new(model.nodes()[index].layer());
        }
    }
    sides
}
