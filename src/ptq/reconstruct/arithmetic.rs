//! A block's arithmetic while it learns: weights between two codes, values rounded or left as they are by chance.

use std::collections::HashMap;

use super::SoftRounding;
use crate::error::Result;
use crate::quant::random_unit;
use crate::tensor::QuantizedTensor;
use crate::train::{Arithmetic, Array, Gradients, Mode, Parameter, Tape, learned_steps, lsq_factor, quantize_steps};

/// The grid of a value; its scale is a parameter, as a logarithm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub place: usize,
    /// Codes as steps from zero.
    pub steps: (f32, f32),
    pub learned: bool,
    /// Whether elements are left unrounded by chance.
    pub drops: bool,
}

impl Grid {
    pub fn scale(&self, parameters: &[Parameter]) -> f32 {
        f64::from(parameters[self.place].value().as_slice()[0]).exp() as f32
    }
}

/// The weights of a layer, and what its bias is counted in.
#[derive(Debug)]
pub(super) struct Weights {
    pub soft: SoftRounding,
    /// Place of the logarithms of its scales.
    pub scales: usize,
    /// As they began.
    pub start: QuantizedTensor<i8>,
    /// The grid of what the layer reads, where its sums become codes: then its bias is rounded to their unit.
    pub input: Option<Grid>,
}

impl Weights {
    pub fn scales(&self, parameters: &[Parameter]) -> Vec<f32> {
        parameters[self.scales].value().as_slice().iter().map(|&log| f64::from(log).exp() as f32).collect()
    }
}

/// Which weights a block computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    /// Those that it began with.
    Start,
    /// Between codes.
    Soft,
    /// The codes that were learned.
    Hard,
}

/// What is left unrounded by chance (QDrop, Wei et al. 2022), in a training pass.
#[derive(Debug)]
pub(super) struct Chance {
    /// That a value is left as it is.
    pub probability: f32,
    pub seed: u64,
    /// The samples of the pass, in order.
    pub samples: Vec<usize>,
    /// By edge that the block reads: what it is in the float network.
    pub float: HashMap<usize, Array>,
}

/// A number in `0..1` for each element of a sample's value in one step: the same whoever asks, in whatever order.
pub(super) fn chance(seed: u64, edge: usize, sample: usize, element: usize) -> f32 {
    random_unit(seed.wrapping_add((edge as u64) << 40).wrapping_add(sample as u64), element as u64)
}

#[derive(Debug)]
pub(super) struct Rounder {
    /// By edge that is rounded.
    pub grids: HashMap<usize, Grid>,
    /// By node with weights in codes.
    pub weights: HashMap<usize, Weights>,
    /// By node: whether it reads codes; by edge: whether codes are all that is there.
    pub integer: Vec<bool>,
    pub only_codes: Vec<bool>,
    pub stand: Stand,
    pub chance: Option<Chance>,
    /// By edge, of the last pass: which elements were left as they were.
    pub left: HashMap<usize, Vec<bool>>,
    pub threads: usize,
}

impl Arithmetic for Rounder {
    fn parameters(&mut self, node: usize, own: &[usize], all: &mut [Parameter]) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(weights) = self.weights.get(&node) else { return Ok(None) };
        let (learned, scales) = (all[own[0]].value().as_slice(), weights.scales(all));
        let mut used = vec![match self.stand {
            Stand::Start => weights.start.dequantize().into_vec(),
            Stand::Soft => weights.soft.weights(learned, &scales)?,
            Stand::Hard => weights.soft.codes(learned, &scales)?.dequantize().into_vec(),
        }];
        if let Some(&place) = own.get(1) {
            let bias = all[place].value().as_slice();
            used.push(match weights.input {
                Some(grid) => {
                    rounded_bias(bias, grid.scale(all), if self.stand == Stand::Start { weights.start.params().scales() } else { &scales })
                }
                None => bias.to_vec(),
            });
        }
        Ok(Some(used))
    }

    fn parameter_gradients(
        &mut self,
        node: usize,
        own: &[usize],
        all: &[Parameter],
        gradients: Vec<Vec<f32>>,
        sums: &mut Gradients,
    ) -> Result<()> {
        // Nothing else of the block learns.
        if let Some(weights) = self.weights.get(&node) {
            let scales = weights.scales(all);
            let (by_learned, by_scales) = weights.soft.backward(all[own[0]].value().as_slice(), &scales, &gradients[0])?;
            sums.add(own[0], by_learned);
            sums.add(weights.scales, by_scales.iter().zip(&scales).map(|(by_scale, scale)| by_scale * scale).collect());
        }
        Ok(())
    }

    fn value(&mut self, edge: usize, value: &Array, _before: &Tape, all: &mut [Parameter], mode: Mode) -> Result<Option<Array>> {
        let Some(grid) = self.grids.get(&edge) else { return Ok(None) };
        let mut rounded = vec![0.0; value.data().len()];
        quantize_steps(value.data(), grid.scale(all), grid.steps, self.threads, &mut rounded);
        self.left.remove(&edge);
        if let (Mode::Train, Some(chance)) = (mode, self.chance.as_ref().filter(|_| grid.drops)) {
            let left = chance.leave(edge, value, &mut rounded)?;
            self.left.insert(edge, left);
        }
        Array::like(value, rounded).map(Some)
    }

    fn value_gradient(&mut self, edge: usize, value: &Array, gradient: Array, all: &[Parameter], sums: &mut Gradients) -> Result<Array> {
        let Some(grid) = self.grids.get(&edge) else { return Ok(gradient) };
        let (x, mut through) = (value.data(), gradient.data().to_vec());
        if let Some(left) = self.left.get(&edge) {
            through.iter_mut().zip(left).filter(|(_, left)| **left).for_each(|(dy, _)| *dy = 0.0);
        }
        let (mut dx, scale) = (vec![0.0; x.len()], grid.scale(all));
        let (by_scale, _) = learned_steps(x, scale, 0.0, grid.steps, &through, &mut dx);
        if grid.learned {
            let of_a_sample = x.len() / value.held().dims().first().copied().unwrap_or(1).max(1);
            sums.add(grid.place, vec![(by_scale * lsq_factor(of_a_sample, grid.steps.1 as i32) * f64::from(scale)) as f32]);
        }
        if let Some(left) = self.left.get(&edge) {
            let as_it_was = dx.iter_mut().zip(gradient.data()).zip(left).filter(|(_, left)| **left);
            as_it_was.for_each(|((dx, &dy), _)| *dx = dy);
        }
        Array::like(value, dx)
    }

    fn reads_rounded(&self, reader: Option<usize>, edge: usize) -> bool {
        self.only_codes[edge] || reader.is_some_and(|node| self.integer[node])
    }
}

impl Chance {
    /// Puts some elements back to what they were before rounding, at what the block reads to what they are in the float network. Says
    /// which.
    fn leave(&self, edge: usize, value: &Array, rounded: &mut [f32]) -> Result<Vec<bool>> {
        let of_a_sample = rounded.len() / value.held().dims().first().copied().unwrap_or(1).max(1);
        let float = self.float.get(&edge).map(|float| float.in_order(value.is_channels_last())).transpose()?;
        let unrounded = float.as_ref().map_or(value.data(), Array::data);
        let mut left = vec![false; rounded.len()];
        // Of values without a row for each sample all count as one.
        let rows =
            left.chunks_mut(of_a_sample.max(1)).zip(rounded.chunks_mut(of_a_sample.max(1))).zip(unrounded.chunks(of_a_sample.max(1)));
        for (row, ((left, rounded), unrounded)) in rows.enumerate() {
            let sample = self.samples.get(row).copied().unwrap_or(row);
            for (element, ((left, rounded), &unrounded)) in left.iter_mut().zip(rounded).zip(unrounded).enumerate() {
                if chance(self.seed, edge, sample, element) < self.probability {
                    (*left, *rounded) = (true, unrounded);
                }
            }
        }
        Ok(left)
    }
}

/// The bias as integers add it: a whole number of units of the sums.
fn rounded_bias(bias: &[f32], input: f32, scales: &[f32]) -> Vec<f32> {
    let round = |(channel, &bias): (usize, &f32)| {
        let unit = f64::from(input) * f64::from(scales[if scales.len() == 1 { 0 } else { channel }]);
        ((f64::from(bias) / unit).round_ties_even() * unit) as f32
    };
    bias.iter().enumerate().map(round).collect()
}
