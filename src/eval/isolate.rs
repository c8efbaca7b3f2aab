//! Each layer by itself, fed with what the float model feeds it: the error that it makes, without those made before it.

use std::collections::HashMap;

use crate::convert::fold_batch_norm;
use crate::error::Result;
use crate::eval::histogram::Histogram;
use crate::eval::report::{Errors, Isolated};
use crate::eval::rounded::{rounded_input, weight_histogram, with_rounded_weights};
use crate::eval::sums::Sums;
use crate::kernels::dequantize_u8;
use crate::nn::operator::Operator;
use crate::nn::recurrent::recurrent;
use crate::nn::{Edge, Layer, Model, Node, evaluate_within};
use crate::num::U8Grid;
use crate::tensor::{DType, Tensor, Value};

/// Sums of the layers of a quantized model.
pub(super) struct Isolation<'m> {
    quantized: &'m Model,
    /// The float model as layers see it that batch norms were folded into.
    folded: Model,
    constants: HashMap<usize, &'m Value>,
    /// By edge, the node that writes it.
    producers: HashMap<usize, &'m Node>,
    sums: HashMap<String, Parts>,
}

/// The whole layer; its weights alone; its input alone.
#[derive(Debug, Default)]
struct Parts {
    whole: Sums,
    weights: Option<Sums>,
    input: Option<Sums>,
}

impl<'m> Isolation<'m> {
    pub fn new(float: &Model, quantized: &'m Model) -> Result<Self> {
        let written = |node: &'m Node| node.outputs().iter().map(move |edge| (edge.index, node));
        Ok(Isolation {
            quantized,
            folded: fold_batch_norm(float)?,
            constants: quantized.constants().iter().map(|(edge, value)| (edge.index, value)).collect(),
            producers: quantized.nodes().iter().flat_map(written).collect(),
            sums: HashMap::new(),
        })
    }

    /// Adds the values of one batch of the float model, by name: floats, and what else there is.
    pub fn add(&mut self, values: &HashMap<String, Tensor>, others: &HashMap<String, Value>) {
        for node in self.quantized.nodes() {
            let Some(expected) = values.get(self.quantized.edge_name(node.outputs()[0])) else { continue };
            if is_border(node.layer()) {
                continue;
            }
            // A layer that refuses what the float model feeds it (an infinity, say) has no error of its own to tell.
            let Ok(Some(parts)) = self.parts(node, (values, others), expected) else { continue };
            let sums = self.sums.entry(node.name().to_owned()).or_default();
            let [whole, weights, input] = parts;
            let add = |sums: &mut Sums, pair: &[Tensor; 2]| sums.add(pair[0].as_slice(), pair[1].as_slice());
            whole.iter().for_each(|pair| add(&mut sums.whole, pair));
            weights.iter().for_each(|pair| add(sums.weights.get_or_insert_default(), pair));
            input.iter().for_each(|pair| add(sums.input.get_or_insert_default(), pair));
        }
    }

    /// What was found of the layer of that name.
    pub fn of(&self, name: &str) -> Option<Isolated> {
        let Parts { whole, weights, input } = self.sums.get(name)?;
        let decibels = |sums: &Option<Sums>| sums.as_ref().map(Sums::sqnr_db);
        Some(Isolated { errors: Errors::of(whole), weights_db: decibels(weights), input_db: decibels(input) })
    }

    /// The float weights of a layer beside their codes.
    pub fn weights(&self, node: &Node) -> Result<Option<Histogram>> {
        self.folded.node(node.name()).map_or(Ok(None), |twin| weight_histogram(node.layer(), twin.layer()))
    }

    /// Pairs of expected and found: of the whole layer, of its weights alone, of its input alone.
    fn parts(
        &self,
        node: &Node,
        (values, others): (&HashMap<String, Tensor>, &HashMap<String, Value>),
        expected: &Tensor,
    ) -> Result<Option<[Option<[Tensor; 2]>; 3]>> {
        let mut inputs: Vec<Option<Value>> = Vec::with_capacity(node.inputs().len());
        for edge in node.inputs() {
            inputs.push(match edge {
                None => None,
                Some(edge) => match self.input(*edge, (values, others))? {
                    Some(value) => Some(value),
                    None => return Ok(None),
                },
            });
        }
        let given: Vec<Option<&Value>> = inputs.iter().map(Option::as_ref).collect();
        let outputs = evaluate_within(node.layer(), &given, usize::MAX)?.unwrap_or_default();
        let Some(found) = outputs.first().map(|value| floats(value, self.quantized.grid(node.outputs()[0]))).transpose()?.flatten() else {
            return Ok(None);
        };
        if found.shape() != expected.shape() {
            return Ok(None);
        }
        let [weights, input] = self.halves(node, (values, others))?;
        Ok(Some([Some([expected.clone(), found]), weights, input]))
    }

    /// The value of an edge as the float model has it, in codes where the edge has codes.
    fn input(&self, edge: Edge, (values, others): (&HashMap<String, Tensor>, &HashMap<String, Value>)) -> Result<Option<Value>> {
        if let Some(value) = self.constants.get(&edge.index) {
            return Ok(Some((*value).clone()));
        }
        let Some(float) = self.source(edge, values) else { return Ok(others.get(self.quantized.edge_name(edge)).cloned()) };
        match (self.quantized.edge_type(edge), self.quantized.grid(edge)) {
            (DType::F32, _) => Ok(Some(Value::F32(float.clone()))),
            (DType::U8, Some(grid)) => {
                let codes = float.as_slice().iter().map(|&x| grid.quantize(x)).collect();
                Tensor::from_shape(float.shape().clone(), codes).map(|codes| Some(Value::U8(codes)))
            }
            _ => Ok(None),
        }
    }

    /// What the float model has there: under the same name, or before it was quantized or dequantized.
    fn source<'v>(&self, edge: Edge, values: &'v HashMap<String, Tensor>) -> Option<&'v Tensor> {
        if let Some(value) = values.get(self.quantized.edge_name(edge)) {
            return Some(value);
        }
        let node = self.producers.get(&edge.index).filter(|node| is_border(node.layer()))?;
        self.source(node.reads().next()?, values)
    }

    /// The float layer with the quantized weights, and with the quantized input, each beside the float layer as it is.
    fn halves(
        &self,
        node: &Node,
        (values, others): (&HashMap<String, Tensor>, &HashMap<String, Value>),
    ) -> Result<[Option<[Tensor; 2]>; 2]> {
        let Some(twin) = self.folded.node(node.name()).map(Node::layer) else { return Ok([None, None]) };
        let Some(other) = with_rounded_weights(node.layer(), twin)? else { return Ok([None, None]) };
        // What was fused into the quantized layer reads inputs that the float layer doesn't have.
        let own = if recurrent(twin).is_some() { node.inputs() } else { &node.inputs()[..1] };
        let mut inputs: Vec<Option<Value>> = Vec::with_capacity(own.len());
        for edge in own {
            let value = |edge: Edge| match (self.source(edge, values), self.constants.get(&edge.index)) {
                (Some(float), _) => Some(Value::F32(float.clone())),
                (None, Some(value)) => Some((*value).clone()),
                (None, None) => others.get(self.quantized.edge_name(edge)).cloned(),
            };
            match edge.map(value) {
                Some(None) => return Ok([None, None]),
                value => inputs.push(value.flatten()),
            }
        }
        let run = |layer: &Layer, inputs: &[Option<Value>]| -> Result<Option<Tensor>> {
            let made = evaluate_within(layer, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>(), usize::MAX)?;
            Ok(made.and_then(|values| values.into_iter().next()?.get::<f32>().cloned()))
        };
        let expected = run(twin, &inputs)?;
        let pair = |found: Option<Tensor>| expected.clone().zip(found).map(|(expected, found)| [expected, found]);
        let weights = pair(run(&other, &inputs)?);
        let (Some(edge), Some(Some(Value::F32(x)))) = (node.inputs()[0], inputs.first()) else { return Ok([weights, None]) };
        let rounded = match self.quantized.grid(edge) {
            Some(grid) => {
                let rounded = x.as_slice().iter().map(|&x| grid.dequantize(grid.quantize(x))).collect();
                Some(Tensor::from_shape(x.shape().clone(), rounded)?)
            }
            None => rounded_input(node.layer(), x)?,
        };
        let Some(rounded) = rounded else { return Ok([weights, None]) };
        inputs[0] = Some(Value::F32(rounded));
        Ok([weights, pair(run(twin, &inputs)?)])
    }
}

/// Whether the layer is where codes begin or end.
fn is_border(layer: &Layer) -> bool {
    matches!(layer, Layer::Operator(Operator::QuantizeLinear(_) | Operator::DequantizeLinear(_)))
}

/// A value of floats, or of codes by what they stand for.
pub(super) fn floats(value: &Value, grid: Option<U8Grid>) -> Result<Option<Tensor>> {
    match (value, grid) {
        (Value::F32(value), _) => Ok(Some(value.clone())),
        (Value::U8(codes), Some(grid)) => {
            let mut floats = vec![0.0; codes.len()];
            dequantize_u8(codes.as_slice(), grid.scale(), grid.zero_point().into(), &mut floats)?;
            Tensor::from_shape(codes.shape().clone(), floats).map(Some)
        }
        _ => Ok(None),
    }
}
