//! A model as the JSON and the tensors of a file.

use std::collections::BTreeMap;

use super::document::{
    Codes, ConstantEntry, Document, Geometry, Grid, InputEntry, LayerEntry, NodeEntry, OutputEntry, Pads, Projected, Real, Rule, Same,
    Static, Window, Written,
};
use super::operators;
use super::tensors::Writer;
use super::weights::{self, Weights};
use crate::error::{Error, Result};
use crate::kernels::{Activation, ActivationRule, Conv2dGeometry, Padding, RangeOf};
use crate::nn::quantized::StaticOutput;
use crate::nn::weight_only::{Activations, StoredWeights};
use crate::nn::{Dim, Layer, Model, Node, Projection};
use crate::num::{NonFinite, U8Grid};
use crate::tensor::{QuantizedTensor, Tensor, Value};

/// Under what names a batch norm's parameters go, in its order.
pub const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

pub fn encode(model: &Model) -> Result<(Document, BTreeMap<String, Value>)> {
    let mut tensors = Writer::default();
    let inputs = model.inputs().iter().map(|input| InputEntry {
        name: input.name().to_owned(),
        dtype: input.dtype().name().to_owned(),
        dims: input.dims().iter().map(|dim| if let Dim::Fixed(length) = dim { Some(*length) } else { None }).collect(),
    });
    let mut constants = Vec::with_capacity(model.constants().len());
    for (edge, value) in model.constants() {
        let name = model.edge_name(*edge).to_owned();
        let packed = tensors.put_value(format!("{name}.constant"), value)?;
        constants.push(ConstantEntry { name, packed });
    }
    let (mut nodes, mut grids) = (Vec::with_capacity(model.nodes().len()), Vec::new());
    let written = model.nodes().iter().flat_map(|node| node.outputs()).chain(model.constants().iter().map(|(edge, _)| edge));
    for &edge in written.chain(model.inputs().iter().map(|input| &input.edge)) {
        grids.extend(model.grid(edge).map(|of| (model.edge_name(edge).to_owned(), grid(of))));
    }
    let mut before = model.inputs().first().map(|input| input.name().to_owned());
    for node in model.nodes() {
        let name = |&edge| model.edge_name(edge).to_owned();
        let reads: Vec<Option<String>> = node.inputs().iter().map(|edge| edge.as_ref().map(name)).collect();
        let writes: Vec<String> = node.outputs().iter().map(name).collect();
        let (follows, first) = (before.is_some() && reads == [before], writes.first().cloned());
        nodes.push(NodeEntry {
            name: node.name().to_owned(),
            layer: layer(model, node, &mut tensors).map_err(|e| e.in_layer(node.name()))?,
            reads: (!follows).then_some(reads),
            writes: (writes != [node.name()]).then_some(writes),
        });
        before = first;
    }
    let outputs = model.outputs().iter();
    let outputs = outputs.map(|output| OutputEntry { name: output.name().to_owned(), value: model.edge_name(output.edge()).to_owned() });
    Ok((Document { inputs: inputs.collect(), constants, nodes, outputs: outputs.collect(), grids }, tensors.tensors))
}

fn layer(model: &Model, node: &Node, tensors: &mut Writer) -> Result<LayerEntry> {
    let name = node.name();
    let ends = [node.reads().next().and_then(|edge| model.grid(edge)), model.grid(node.outputs()[0])];
    Ok(match node.layer() {
        Layer::Conv2d(conv) => {
            floats(tensors, name, conv.weight(), conv.bias().map(Tensor::as_slice))?;
            LayerEntry::Conv2d(geometry(conv.geometry(), [0, 0]))
        }
        Layer::ConvTranspose2d(conv) => {
            floats(tensors, name, conv.weight(), conv.bias().map(Tensor::as_slice))?;
            LayerEntry::ConvTranspose2d(geometry(conv.geometry(), conv.output_padding()))
        }
        Layer::Linear(linear) => {
            floats(tensors, name, linear.weight(), linear.bias().map(Tensor::as_slice))?;
            LayerEntry::Linear
        }
        Layer::Embedding(table) => {
            floats(tensors, name, table.weight(), None)?;
            LayerEntry::Embedding
        }
        Layer::QuantizedConv2d(conv) => LayerEntry::QuantizedConv2d {
            geometry: geometry(conv.geometry(), [0, 0]),
            codes: codes(tensors, name, &conv.weight()?, conv.bias())?,
            input: rule(conv.input_rule(), conv.input_range()),
        },
        Layer::QuantizedConvTranspose2d(conv) => LayerEntry::QuantizedConvTranspose2d {
            geometry: geometry(conv.geometry(), conv.output_padding()),
            codes: codes(tensors, name, &conv.weight()?, conv.bias())?,
            input: rule(conv.input_rule(), conv.input_range()),
        },
        Layer::QuantizedLinear(linear) => {
            let input = rule(linear.input_rule(), linear.input_range());
            LayerEntry::QuantizedLinear { codes: codes(tensors, name, &linear.weight()?, linear.bias())?, input }
        }
        Layer::QuantizedEmbedding(table) => LayerEntry::QuantizedEmbedding { codes: codes(tensors, name, table.weight(), None)? },
        Layer::StaticConv2d(conv) => LayerEntry::StaticConv2d {
            geometry: geometry(conv.geometry(), [0, 0]),
            codes: codes(tensors, name, &conv.weight()?, conv.bias())?,
            grids: grids(conv.input(), conv.residual(), conv.output(), ends),
        },
        Layer::StaticLinear(linear) => LayerEntry::StaticLinear {
            codes: codes(tensors, name, &linear.weight()?, linear.bias())?,
            grids: grids(linear.input(), linear.residual(), linear.output(), ends),
        },
        Layer::WeightOnlyConv2d(conv) => {
            let weights = weights(tensors, name, conv.weight(), conv.bias())?;
            let [floats, groups] = activations(conv.activations());
            LayerEntry::WeightOnlyConv2d { geometry: geometry(conv.geometry(), [0, 0]), weights, floats, groups }
        }
        Layer::WeightOnlyLinear(linear) => {
            let weights = weights(tensors, name, linear.weight(), linear.bias())?;
            let [floats, groups] = activations(linear.activations());
            LayerEntry::WeightOnlyLinear { weights, floats, groups }
        }
        Layer::WeightOnlyEmbedding(table) => LayerEntry::WeightOnlyEmbedding { weights: weights(tensors, name, table.weight(), None)? },
        Layer::Lstm(lstm) => {
            let (coupled, parts) = lstm.parts();
            let mut directions = Vec::with_capacity(parts.len());
            for (d, (input, hidden, peepholes)) in parts.iter().enumerate() {
                if let Some(peepholes) = peepholes {
                    tensors.put_list(format!("{name}.{d}.peepholes"), peepholes)?;
                }
                let mut put = |part, what| projection(tensors, &format!("{name}.{d}.{what}"), part);
                directions.push([put(input, "input")?, put(hidden, "hidden")?]);
            }
            let options = operators::parameters(tensors, name, lstm.options().attributes(("input_forget", false)))?;
            LayerEntry::Lstm { options, coupled, directions }
        }
        Layer::Gru(gru) => {
            let (reset_after, parts) = gru.parts();
            let mut directions = Vec::with_capacity(parts.len());
            for (d, (input, gates, candidate)) in parts.iter().enumerate() {
                let mut put = |part, what| projection(tensors, &format!("{name}.{d}.{what}"), part);
                directions.push([put(input, "input")?, put(gates, "gates")?, put(candidate, "candidate")?]);
            }
            let options = operators::parameters(tensors, name, gru.options().attributes(("linear_before_reset", false)))?;
            LayerEntry::Gru { options, reset_after, directions }
        }
        Layer::BatchNorm2d(norm) => {
            for (what, values) in NORM.iter().zip(norm.parameters()) {
                tensors.put(format!("{name}.{what}"), values.clone())?;
            }
            LayerEntry::BatchNorm2d { epsilon: Real(norm.epsilon()) }
        }
        Layer::Relu => LayerEntry::Relu,
        Layer::Relu6 => LayerEntry::Relu6,
        Layer::MaxPool2d(pool) => LayerEntry::MaxPool2d(Window {
            kernel: pool.kernel(),
            stride: pool.stride(),
            padding: pool.padding(),
            dilation: pool.dilation(),
            ceil_mode: pool.ceil_mode(),
            count_include_pad: false,
        }),
        Layer::AvgPool2d(pool) => LayerEntry::AvgPool2d(Window {
            kernel: pool.kernel(),
            stride: pool.stride(),
            padding: pool.padding(),
            dilation: [1, 1],
            ceil_mode: pool.ceil_mode(),
            count_include_pad: pool.count_include_pad(),
        }),
        Layer::GlobalAvgPool2d(_) => LayerEntry::GlobalAvgPool2d,
        Layer::Add => LayerEntry::Add,
        Layer::Flatten { axis } => LayerEntry::Flatten { axis: *axis },
        Layer::Softmax { axis } => LayerEntry::Softmax { axis: *axis },
        Layer::Operator(operator) => operators::encode(tensors, name, operator)?,
    })
}

fn floats(tensors: &mut Writer, node: &str, weight: &Tensor, bias: Option<&[f32]>) -> Result<()> {
    tensors.put(format!("{node}.weight"), weight.clone())?;
    bias.map_or(Ok(()), |bias| tensors.put_list(format!("{node}.bias"), bias))
}

fn codes(tensors: &mut Writer, node: &str, weight: &QuantizedTensor<i8>, bias: Option<&[f32]>) -> Result<Codes> {
    if let Some(bias) = bias {
        tensors.put_list(format!("{node}.bias"), bias)?;
    }
    tensors.put_codes(node, weight)
}

/// Whether they are floats, and whether groups have ranges of their own.
fn activations(activations: Activations) -> [bool; 2] {
    [activations == Activations::Float, activations == Activations::Int8Groups]
}

fn weights(tensors: &mut Writer, node: &str, weight: &StoredWeights, bias: Option<&[f32]>) -> Result<Weights> {
    if let Some(bias) = bias {
        tensors.put_list(format!("{node}.bias"), bias)?;
    }
    weights::put(tensors, node, &weight.quantized()?)
}

fn projection(tensors: &mut Writer, name: &str, part: &Projection) -> Result<Projected> {
    match part {
        Projection::Float(linear) => {
            floats(tensors, name, linear.weight(), linear.bias().map(Tensor::as_slice))?;
            Ok(Projected::Float)
        }
        Projection::Int8(linear) => {
            let input = rule(linear.input_rule(), linear.input_range());
            Ok(Projected::Int8 { codes: codes(tensors, name, &linear.weight()?, linear.bias())?, input })
        }
        Projection::WeightOnly(linear) => {
            let weights = weights(tensors, name, linear.weight(), linear.bias())?;
            let [floats, groups] = activations(linear.activations());
            Ok(Projected::WeightOnly { weights, floats, groups })
        }
    }
}

fn geometry(geometry: &Conv2dGeometry, output_padding: [usize; 2]) -> Geometry {
    let Conv2dGeometry { stride, dilation, groups, .. } = *geometry;
    let padding = match geometry.padding {
        Padding::Fixed(pads) => Pads::Fixed(pads),
        Padding::SameUpper => Pads::Same(Same::SameUpper),
        Padding::SameLower => Pads::Same(Same::SameLower),
    };
    Geometry { stride, padding, dilation, groups, output_padding }
}

fn rule(rule: ActivationRule, range: RangeOf) -> Rule {
    let ActivationRule { qmin, qmax, symmetric, non_finite } = rule;
    Rule { qmin, qmax, symmetric, saturates: non_finite == NonFinite::Saturate, of_tensor: range == RangeOf::Tensor }
}

pub fn grid(grid: U8Grid) -> Grid {
    Grid { scale: Real(grid.scale()), zero_point: grid.zero_point() }
}

/// Grids of a layer between values that have these.
fn grids(input: U8Grid, residual: Option<U8Grid>, output: StaticOutput, [read, written]: [Option<U8Grid>; 2]) -> Static {
    let output = match output {
        StaticOutput::Codes { grid: of, lo, hi } => Written::Codes { grid: (Some(of) != written).then(|| grid(of)), range: (lo, hi) },
        StaticOutput::Float(Activation::None) => Written::Float { clamp: None, relu: false },
        StaticOutput::Float(Activation::Relu) => Written::Float { clamp: None, relu: true },
        StaticOutput::Float(Activation::Clamp { lo, hi }) => Written::Float { clamp: Some((Real(lo), Real(hi))), relu: false },
    };
    Static { input: (Some(input) != read).then(|| grid(input)), residual: residual.map(grid), output }
}

/// The error of an operator that files have no words for.
pub fn unspoken(what: String) -> Error {
    Error::Unsupported { what: format!("{what} in a file"), way_out: "save the model as it was before it was rewritten for a run".into() }
}
