//! A model's float twin, in which what stands beside the codes learns.

use std::collections::HashMap;

use super::{Distillation, Lesson};
use crate::error::Result;
use crate::nn::weight_only;
use crate::nn::{Conv2d, Embedding, Layer, Linear, Model, Node};
use crate::quant::{QuantizedWeights, Scales, Zeros};
use crate::tensor::{Tensor, Value};
use crate::train::{Adam, Arithmetic, Gradients, Graph, Mode, Optimizer, Parameter, ParameterKind, Tape};

/// The quantized weights of a layer, and what is learned of them.
#[derive(Debug)]
struct Tuned {
    weights: QuantizedWeights,
    /// The place of what each group's scale is changed by, as a part of it, where its format lets it.
    scales: Option<usize>,
    /// The same of offsets, in parts of the scale.
    offsets: Option<usize>,
    /// By weight, without its offset: what grows with the scale; 0 where it is kept exactly.
    scaled: Vec<f32>,
}

impl Tuned {
    /// What was learned, or nothing yet.
    fn learned<'p>(&self, place: Option<usize>, parameters: &'p [Parameter]) -> &'p [f32] {
        place.map_or(&[], |place| parameters[place].value().as_slice())
    }

    /// The weights as they are now, from those that they began as.
    fn effective(&self, start: &[f32], parameters: &[Parameter]) -> Vec<f32> {
        let (factors, shifts) = (self.learned(self.scales, parameters), self.learned(self.offsets, parameters));
        let mut weights = start.to_vec();
        for (group, &factor) in factors.iter().enumerate() {
            let range = self.weights.group(group);
            weights[range.clone()].iter_mut().zip(&self.scaled[range]).for_each(|(w, scaled)| *w += factor * scaled);
        }
        for (group, &shift) in shifts.iter().enumerate() {
            let shift = shift * self.weights.scales().at(group).abs();
            weights[self.weights.group(group)].iter_mut().for_each(|w| *w += shift);
        }
        self.weights.kept().into_iter().flat_map(|kept| kept.iter()).for_each(|(index, value)| weights[index] = value);
        weights
    }

    /// The gradients by what is learned, of that by the weights.
    fn back(&self, mut by_weights: Vec<f32>, sums: &mut Gradients) {
        self.weights.kept().into_iter().flat_map(|kept| kept.iter()).for_each(|(index, _)| by_weights[index] = 0.0);
        let groups = || (0..self.weights.groups()).map(|group| (group, self.weights.group(group)));
        if let Some(place) = self.scales {
            let of = |(_, range): (usize, std::ops::Range<usize>)| {
                let pairs = by_weights[range.clone()].iter().zip(&self.scaled[range]);
                pairs.map(|(&by, &scaled)| f64::from(by) * f64::from(scaled)).sum::<f64>() as f32
            };
            sums.add(place, groups().map(of).collect());
        }
        if let Some(place) = self.offsets {
            let of = |(group, range): (usize, std::ops::Range<usize>)| {
                let sum = by_weights[range].iter().map(|&by| f64::from(by)).sum::<f64>();
                (sum * f64::from(self.weights.scales().at(group).abs())) as f32
            };
            sums.add(place, groups().map(of).collect());
        }
    }

    /// The weights with what was learned, rounded to what their format holds.
    ///
    /// # Errors
    /// [`Error::Parameter`] for what is not finite.
    fn finished(&self, parameters: &[Parameter]) -> Result<QuantizedWeights> {
        let (factors, shifts) = (self.learned(self.scales, parameters), self.learned(self.offsets, parameters));
        if factors.is_empty() && shifts.is_empty() {
            return Ok(self.weights.clone());
        }
        let old = |group: usize| self.weights.scales().at(group);
        let scales: Vec<f32> = factors.iter().enumerate().map(|(group, factor)| old(group) * (1.0 + factor)).collect();
        let offsets: Vec<f32> = match self.weights.zeros() {
            Zeros::Offsets(offsets) => {
                shifts.iter().enumerate().map(|(group, shift)| offsets.at(group) + shift * old(group).abs()).collect()
            }
            _ => Vec::new(),
        };
        let codes: Vec<u16> = self.weights.packed().iter().map(|code| code as u16).collect();
        self.weights.with_codes(&codes, &scales, &offsets)
    }
}

/// Which layers compute with what was tuned, by position.
#[derive(Debug)]
struct Tuning(HashMap<usize, Tuned>);

impl Arithmetic for Tuning {
    fn parameters(&mut self, node: usize, own: &[usize], all: &mut [Parameter]) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(tuned) = self.0.get(&node) else { return Ok(None) };
        let start = all[own[0]].value().as_slice();
        let mut used = vec![tuned.effective(start, all)];
        used.extend(own[1..].iter().map(|&place| all[place].value().as_slice().to_vec()));
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
        for (&place, gradient) in own.iter().zip(gradients) {
            match (all[place].kind(), self.0.get(&node)) {
                (ParameterKind::Weight, Some(tuned)) => tuned.back(gradient, sums),
                // Weights that are left in float are left as they are.
                (ParameterKind::Weight, None) => {}
                _ => sums.add(place, gradient),
            }
        }
        Ok(())
    }
}

/// What learns.
pub(super) struct Tuner {
    graph: Graph,
    parameters: Vec<Parameter>,
    tuning: Tuning,
    adam: Adam,
    /// By parameter: what a step of 1 is.
    units: Option<Vec<f32>>,
}

impl Tuner {
    /// # Errors
    /// [`Error::Unsupported`], inside an [`Error::Layer`], for a layer without a derivative.
    pub fn new(quantized: &Model, how: &Distillation) -> Result<Self> {
        let twin =
            |node: &Node| -> Result<Node> { Ok(float_twin(node.layer())?.map_or_else(|| node.clone(), |twin| node.with_layer(twin))) };
        let nodes = quantized.nodes().iter().map(|node| twin(node).map_err(|error| error.in_layer(node.name())));
        let float = quantized.with_nodes(nodes.collect::<Result<_>>()?, None);
        let (mut graph, mut parameters) = Graph::new(&float, true)?;
        graph.set_threads(how.threads)?;
        let mut tuned = HashMap::new();
        for (index, node) in quantized.nodes().iter().enumerate() {
            let Some(stored) = node.layer().stored_weights() else { continue };
            let weights = stored.quantized()?;
            let floats = matches!(weights.scales(), Scales::F32(_) | Scales::F16(_) | Scales::Bf16(_));
            let mut place = |what: &str| -> Result<usize> {
                let zeros = Tensor::full([weights.groups()], 0.0)?;
                parameters.push(Parameter::new(format!("{}.{what}", node.name()), zeros, ParameterKind::Quantization));
                Ok(parameters.len() - 1)
            };
            let scales = floats.then(|| place("scales")).transpose()?;
            let offsets = (floats && matches!(weights.zeros(), Zeros::Offsets(_))).then(|| place("offsets")).transpose()?;
            let scaled = scaled(&weights);
            tuned.insert(index, Tuned { weights, scales, offsets, scaled });
        }
        let adam = Adam::new(how.rate).with_betas([0.9, 0.95]);
        Ok(Tuner { graph, parameters, tuning: Tuning(tuned), adam, units: None })
    }

    /// One step of Adam on the loss of these samples.
    pub fn step(&mut self, lesson: &Lesson, of: &[usize], rate: f64) -> Result<()> {
        let inputs = lesson.inputs(of)?;
        let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let tape = self.graph.forward(&mut self.parameters, &mut self.tuning, &inputs, Mode::Train)?;
        let (_, by_outputs) = lesson.judge(of, tape.outputs())?;
        let by_outputs: Vec<(&str, &Tensor)> = by_outputs.iter().map(|(name, gradient)| (*name, gradient)).collect();
        let gradients = self.graph.backward(&self.parameters, &mut self.tuning, &tape, &by_outputs)?;
        self.adam.set_rate(rate);
        let updates = self.adam.updates(&self.parameters, &gradients)?;
        let units = match self.units.take() {
            Some(units) => units,
            None => self.measured(&tape),
        };
        for ((parameter, update), unit) in self.parameters.iter_mut().zip(updates).zip(&units) {
            parameter.value_mut().as_mut_slice().iter_mut().zip(update).for_each(|(value, update)| *value += unit * update);
        }
        self.units = Some(units);
        Ok(())
    }

    /// What a step of 1 is: of biases the root mean square of what their layer writes, of norms that of their own numbers.
    fn measured(&self, tape: &Tape) -> Vec<f32> {
        let root_mean_square = |x: &[f32]| (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len().max(1) as f64).sqrt() as f32;
        let or_one = |x: f32| if x > 0.0 { x } else { 1.0 };
        let mut units: Vec<f32> = (self.parameters.iter())
            .map(|parameter| match parameter.kind() {
                ParameterKind::Norm => or_one(root_mean_square(parameter.value().as_slice())),
                _ => 1.0,
            })
            .collect();
        for (index, node) in self.graph.model().nodes().iter().enumerate() {
            let biases = self.graph.own(index).iter().filter(|&&place| self.parameters[place].kind() == ParameterKind::Bias);
            for &place in biases {
                let written = tape.read(node.outputs()[0].index).map_or(1.0, |y| or_one(root_mean_square(y.data())));
                units[place] = written;
            }
        }
        units
    }

    /// The quantized model with what was learned.
    ///
    /// # Errors
    /// [`Error::Parameter`] and [`Error::NonFinite`] for what ran away.
    pub fn model(&self, quantized: &Model) -> Result<Model> {
        let learned = self.graph.to_model(&self.parameters)?;
        let node = |(index, (node, old)): (usize, (&Node, &Node))| -> Result<Node> {
            let Some(tuned) = self.tuning.0.get(&index) else { return Ok(node.clone()) };
            let weights = tuned.finished(&self.parameters)?;
            let bias = self.graph.own(index).get(1).map(|&place| self.parameters[place].value().as_slice());
            Ok(old.with_layer(quantized_twin(old.layer(), weights, bias)?))
        };
        let nodes = learned.nodes().iter().zip(quantized.nodes()).enumerate();
        let nodes = nodes.map(|(index, pair)| node((index, pair)).map_err(|error| error.in_layer(pair.1.name())));
        Ok(learned.with_nodes(nodes.collect::<Result<_>>()?, quantized.conversion().cloned()))
    }
}

/// Of each weight, what grows with its group's scale: nothing of those that are kept exactly.
fn scaled(weights: &QuantizedWeights) -> Vec<f32> {
    let mut scaled = weights.dequantize().into_vec();
    if let Zeros::Offsets(offsets) = weights.zeros() {
        for group in 0..weights.groups() {
            scaled[weights.group(group)].iter_mut().for_each(|w| *w -= offsets.at(group));
        }
    }
    weights.kept().into_iter().flat_map(|kept| kept.iter()).for_each(|(index, _)| scaled[index] = 0.0);
    scaled
}

/// A layer of quantized weights as one in float; `None` for another layer.
fn float_twin(layer: &Layer) -> Result<Option<Layer>> {
    let bias = |bias: Option<&[f32]>| bias.map(|bias| Tensor::new([bias.len()], bias.to_vec())).transpose();
    Ok(Some(match layer {
        Layer::WeightOnlyLinear(linear) => Linear::new(linear.weight().dequantize()?, bias(linear.bias())?)?.into(),
        Layer::WeightOnlyConv2d(conv) => Conv2d::new(conv.geometry().clone(), conv.weight().dequantize()?, bias(conv.bias())?)?.into(),
        Layer::WeightOnlyEmbedding(table) => Embedding::new(table.weight().dequantize()?)?.into(),
        _ => return Ok(None),
    }))
}

/// A layer of quantized weights with others, and another bias.
fn quantized_twin(layer: &Layer, weights: QuantizedWeights, bias: Option<&[f32]>) -> Result<Layer> {
    match layer {
        Layer::WeightOnlyLinear(linear) => weight_only::Linear::new(weights, bias, linear.activations()).map(Layer::from),
        Layer::WeightOnlyConv2d(conv) => {
            weight_only::Conv2d::new(conv.geometry().clone(), weights, bias, conv.activations()).map(Layer::from)
        }
        Layer::WeightOnlyEmbedding(_) => weight_only::Embedding::new(weights).map(Layer::from),
        other => Ok(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::WeightFormat;

    /// Weights are linear in what is learned: gradients are differences.
    #[test]
    fn gradients_are_those_of_the_weights() -> Result<()> {
        let weight = Tensor::new([2, 8], (0..16).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>())?;
        let by: Vec<f32> = (0..16).map(|i| (i as f32 * 1.3).cos()).collect();
        for (format, offsets) in [("offset3:g4", Some(1)), ("offset3:g4:largest=0.1", Some(1)), ("int3:g4:largest=0.1", None)] {
            let weights = format.parse::<WeightFormat>()?.quantize(&weight)?;
            let start = weights.dequantize().into_vec();
            let tuned = Tuned { scaled: scaled(&weights), weights, scales: Some(0), offsets };
            let mut parameters = ["scales", "offsets"].map(|name| {
                let zeros = Tensor::full([4], 0.0).expect("a size");
                Parameter::new(name, zeros, ParameterKind::Quantization)
            });
            let loss =
                |parameters: &[Parameter]| -> f32 { tuned.effective(&start, parameters).iter().zip(&by).map(|(w, by)| w * by).sum() };
            let mut sums = Gradients::new(&parameters);
            tuned.back(by.clone(), &mut sums);
            let before = loss(&parameters);
            for place in 0..=usize::from(offsets.is_some()) {
                for group in 0..4 {
                    parameters[place].value_mut().as_mut_slice()[group] = 1.0;
                    let difference = loss(&parameters) - before;
                    assert!((difference - sums.get(place)[group]).abs() < 1e-4, "{format}, {place}, {group}");
                    parameters[place].value_mut().as_mut_slice()[group] = 0.0;
                }
            }
        }
        Ok(())
    }
}
