//! A model from the JSON and the tensors of a file.

use std::collections::HashMap;

use super::document::{Codes, Document, Geometry, Grid, LayerEntry, NodeEntry, Pads, Projected, Rule, Same, Static, Window, Written};
use super::encode::NORM;
use super::operators;
use super::tensors::{Reader, element_type};
use super::weights::{self, Weights};
use super::{document, format_error};
use crate::error::{Error, Result};
use crate::io::onnx::import;
use crate::kernels::{Activation, Conv2dGeometry, Isa, Padding, RangeOf};
use crate::nn::quantized::{self, DynamicScheme, StaticConv2d, StaticLinear, StaticOutput};
use crate::nn::weight_only::{self, Activations};
use crate::nn::{
    AvgPool2d, BatchNorm2d, Conv2d, ConvTranspose2d, Dim, Edge, Embedding, GlobalAvgPool2d, Gru, Layer, Linear, Lstm, MaxPool2d, Model,
    Projection,
};
use crate::num::{NonFinite, U8Grid};
use crate::quant::Scheme;
use crate::tensor::{Tensor, Value};

pub fn decode(document: Document, tensors: Vec<(String, Value)>) -> Result<Model> {
    let (mut tensors, mut net, mut edges) = (Reader::new(tensors), Model::builder(), HashMap::<String, Edge>::new());
    let mut before = document.inputs.first().map(|input| input.name.clone());
    for input in document.inputs {
        let dims: Vec<Dim> = input.dims.into_iter().map(|dim| dim.map_or(Dim::Any, Dim::Fixed)).collect();
        let edge = net.input(&input.name, element_type(&input.dtype)?, &dims)?;
        edges.insert(input.name, edge);
    }
    let grids: HashMap<&str, Grid> = document.grids.iter().map(|(name, of)| (name.as_str(), *of)).collect();
    for constant in document.constants {
        let value = tensors.take_value(&format!("{}.constant", constant.name), constant.packed.as_ref())?;
        let edge = net.constant(&constant.name, value)?;
        edges.insert(constant.name, edge);
    }
    let find = |edges: &HashMap<String, Edge>, name: &str| {
        edges.get(name).copied().ok_or_else(|| Error::Unknown { what: "value", name: name.to_owned(), present: edges.keys().collect() })
    };
    for NodeEntry { name, layer: entry, reads, writes } in document.nodes {
        let (reads, writes) = (reads.unwrap_or_else(|| vec![before.take()]), writes.unwrap_or_else(|| vec![name.clone()]));
        before = writes.first().cloned();
        let of = |value: Option<&String>| value.and_then(|value| grids.get(value.as_str()).copied());
        let ends = [of(reads.iter().flatten().next()), of(writes.first())];
        let made = layer(&mut tensors, &name, (writes.len(), ends), entry).map_err(|e| e.in_layer(&name))?;
        let read = |read: &Option<String>| read.as_ref().map(|read| find(&edges, read)).transpose();
        let inputs: Vec<Option<Edge>> = reads.iter().map(read).collect::<Result<_>>().map_err(|e| e.in_layer(&name))?;
        let names: Vec<Option<&str>> = writes.iter().map(|name| Some(name.as_str())).collect();
        let outputs = net.add_node(&name, &names, made, &inputs)?;
        if outputs.len() != writes.len() {
            return Err(Error::length("list of what the node writes", outputs.len(), writes.len()).in_layer(&name));
        }
        edges.extend(writes.into_iter().zip(outputs));
    }
    for (name, of) in &document.grids {
        net.grid(find(&edges, name)?, grid(*of)?)?;
    }
    for output in document.outputs {
        net.output(&output.name, find(&edges, &output.value)?)?;
    }
    tensors.finish()?;
    net.build()
}

/// The layer of a node that writes so many values; what the codes that it reads and writes first stand for.
fn layer(tensors: &mut Reader, node: &str, (writes, ends): (usize, [Option<Grid>; 2]), entry: LayerEntry) -> Result<Layer> {
    let isa = Isa::best();
    Ok(match entry {
        LayerEntry::Conv2d(of) => {
            let (weight, bias) = floats(tensors, node)?;
            Conv2d::new(geometry(&of, weight.dims(), false)?, weight, bias)?.into()
        }
        LayerEntry::ConvTranspose2d(of) => {
            let (weight, bias) = floats(tensors, node)?;
            let conv = ConvTranspose2d::new(geometry(&of, weight.dims(), true)?, weight, bias)?;
            conv.with_output_padding(of.output_padding).into()
        }
        LayerEntry::Linear => linear(tensors, node)?.into(),
        LayerEntry::Embedding => Embedding::new(tensors.take(&format!("{node}.weight"))?)?.into(),
        LayerEntry::QuantizedConv2d { geometry: of, codes, input } => {
            let (weight, bias) = (tensors.take_codes(node, &codes)?, bias(tensors, node)?);
            let geometry = geometry(&of, weight.shape().dims(), false)?;
            quantized::Conv2d::from_codes(&geometry, &weight, bias.as_ref().map(Tensor::as_slice), &scheme(&input)?, isa)?.into()
        }
        LayerEntry::QuantizedConvTranspose2d { geometry: of, codes, input } => {
            let (weight, bias) = (tensors.take_codes(node, &codes)?, bias(tensors, node)?);
            let geometry = geometry(&of, weight.shape().dims(), false)?;
            let (bias, scheme) = (bias.as_ref().map(Tensor::as_slice), scheme(&input)?);
            quantized::ConvTranspose2d::from_codes(&geometry, of.output_padding, &weight, bias, &scheme, isa)?.into()
        }
        LayerEntry::QuantizedLinear { codes, input } => quantized_linear(tensors, node, &codes, &input)?.into(),
        LayerEntry::QuantizedEmbedding { codes } => quantized::Embedding::from_codes(tensors.take_codes(node, &codes)?)?.into(),
        LayerEntry::StaticConv2d { geometry: of, codes, grids } => {
            let (weight, bias) = (tensors.take_codes(node, &codes)?, bias(tensors, node)?);
            let geometry = geometry(&of, weight.shape().dims(), false)?;
            let (bias, (input, output)) = (bias.as_ref().map(Tensor::as_slice), around(&grids, ends)?);
            let conv = StaticConv2d::from_codes(&geometry, &weight, bias, input, output, isa)?;
            grids.residual.map_or(Ok(conv.clone()), |residual| conv.with_residual(grid(residual)?))?.into()
        }
        LayerEntry::StaticLinear { codes, grids } => {
            let (weight, bias) = (tensors.take_codes(node, &codes)?, bias(tensors, node)?);
            let (bias, (input, output)) = (bias.as_ref().map(Tensor::as_slice), around(&grids, ends)?);
            let linear = StaticLinear::from_codes(&weight, bias, input, output, isa)?;
            grids.residual.map_or(Ok(linear.clone()), |residual| linear.with_residual(grid(residual)?))?.into()
        }
        LayerEntry::Lstm { options, coupled, directions } => {
            let mut attributes = operators::attributes(tensors, node, "LSTM", options)?;
            let options = import::recurrent_options(&mut attributes, 3)?;
            attributes.finish()?;
            let mut parts = Vec::new();
            for (d, [input, hidden]) in directions.into_iter().enumerate() {
                let mut take = |what, of| projection(tensors, &format!("{node}.{d}.{what}"), of);
                let (input, hidden) = (take("input", input)?, take("hidden", hidden)?);
                parts.push((input, hidden, tensors.take_some(&format!("{node}.{d}.peepholes"))?.map(Tensor::into_vec)));
            }
            Lstm::from_parts(options, coupled, parts)?.into()
        }
        LayerEntry::Gru { options, reset_after, directions } => {
            let mut attributes = operators::attributes(tensors, node, "GRU", options)?;
            let options = import::recurrent_options(&mut attributes, 2)?;
            attributes.finish()?;
            let mut parts = Vec::new();
            for (d, [input, gates, candidate]) in directions.into_iter().enumerate() {
                let mut take = |what, of| projection(tensors, &format!("{node}.{d}.{what}"), of);
                parts.push((take("input", input)?, take("gates", gates)?, take("candidate", candidate)?));
            }
            Gru::from_parts(options, reset_after, parts)?.into()
        }
        LayerEntry::BatchNorm2d { epsilon } => {
            let mut take = |i: usize| tensors.take::<f32>(&format!("{node}.{}", NORM[i]));
            BatchNorm2d::new(take(0)?, take(1)?, take(2)?, take(3)?, epsilon.0)?.into()
        }
        LayerEntry::WeightOnlyConv2d { geometry: of, weights: entry, floats, groups } => {
            let (weight, bias) = (weights::take(tensors, node, &entry)?, bias(tensors, node)?);
            let geometry = geometry(&of, weight.shape().dims(), false)?;
            weight_only::Conv2d::new(geometry, weight, bias.as_ref().map(Tensor::as_slice), activations(floats, groups)?)?.into()
        }
        LayerEntry::WeightOnlyLinear { weights: entry, floats, groups } => {
            weight_only_linear(tensors, node, &entry, [floats, groups])?.into()
        }
        LayerEntry::WeightOnlyEmbedding { weights: entry } => weight_only::Embedding::new(weights::take(tensors, node, &entry)?)?.into(),
        LayerEntry::Relu => Layer::Relu,
        LayerEntry::Relu6 => Layer::Relu6,
        LayerEntry::MaxPool2d(Window { kernel, stride, padding, dilation, ceil_mode, .. }) => {
            let pool = MaxPool2d::new(kernel).with_stride(stride).with_padding(padding).with_dilation(dilation);
            pool.with_ceil_mode(ceil_mode).into()
        }
        LayerEntry::AvgPool2d(Window { kernel, stride, padding, ceil_mode, count_include_pad, .. }) => {
            let pool = AvgPool2d::new(kernel).with_stride(stride).with_padding(padding).with_ceil_mode(ceil_mode);
            pool.with_count_include_pad(count_include_pad).into()
        }
        LayerEntry::GlobalAvgPool2d => GlobalAvgPool2d.into(),
        LayerEntry::Add => Layer::Add,
        LayerEntry::Flatten { axis } => Layer::Flatten { axis },
        LayerEntry::Softmax { axis } => Layer::Softmax { axis },
        other => operators::decode(tensors, node, writes, other)?,
    })
}

fn activations(floats: bool, groups: bool) -> Result<Activations> {
    match (floats, groups) {
        (true, false) => Ok(Activations::Float),
        (false, false) => Ok(Activations::Int8),
        (false, true) => Ok(Activations::Int8Groups),
        (true, true) => Err(Error::parameter("activations", "floats with ranges of groups", "bytes alone have ranges")),
    }
}

fn bias(tensors: &mut Reader, node: &str) -> Result<Option<Tensor>> {
    tensors.take_some(&format!("{node}.bias"))
}

fn floats(tensors: &mut Reader, node: &str) -> Result<(Tensor, Option<Tensor>)> {
    Ok((tensors.take(&format!("{node}.weight"))?, bias(tensors, node)?))
}

fn linear(tensors: &mut Reader, node: &str) -> Result<Linear> {
    let (weight, bias) = floats(tensors, node)?;
    Linear::new(weight, bias)
}

fn quantized_linear(tensors: &mut Reader, node: &str, codes: &Codes, input: &Rule) -> Result<quantized::Linear> {
    let (weight, bias) = (tensors.take_codes(node, codes)?, bias(tensors, node)?);
    quantized::Linear::from_codes(&weight, bias.as_ref().map(Tensor::as_slice), &scheme(input)?, Isa::best())
}

fn weight_only_linear(tensors: &mut Reader, node: &str, entry: &Weights, [floats, groups]: [bool; 2]) -> Result<weight_only::Linear> {
    let (weight, bias) = (weights::take(tensors, node, entry)?, bias(tensors, node)?);
    weight_only::Linear::new(weight, bias.as_ref().map(Tensor::as_slice), activations(floats, groups)?)
}

fn projection(tensors: &mut Reader, name: &str, of: Projected) -> Result<Projection> {
    match of {
        Projected::Float => linear(tensors, name).map(Projection::Float),
        Projected::Int8 { codes, input } => quantized_linear(tensors, name, &codes, &input).map(Projection::Int8),
        Projected::WeightOnly { weights, floats, groups } => {
            weight_only_linear(tensors, name, &weights, [floats, groups]).map(Projection::WeightOnly)
        }
    }
}

/// The geometry with the channels of a weight `[out, in / groups, kh, kw]`, or `[in, out / groups, kh, kw]`.
fn geometry(of: &Geometry, weight: &[usize], transposed: bool) -> Result<Conv2dGeometry> {
    let &[first, second, h, w] = weight else { return Err(Error::shape("weight", "four axes", weight)) };
    let all = second.checked_mul(of.groups).ok_or_else(|| Error::parameter("groups", of.groups, "is too large to address"))?;
    let (input, output) = if transposed { (first, all) } else { (all, first) };
    let padding = match of.padding {
        Pads::Fixed(pads) => Padding::Fixed(pads),
        Pads::Same(Same::SameUpper) => Padding::SameUpper,
        Pads::Same(Same::SameLower) => Padding::SameLower,
    };
    let geometry = Conv2dGeometry::new(input, output, [h, w]).with_stride(of.stride).with_padding(padding);
    let geometry = geometry.with_dilation(of.dilation).with_groups(of.groups);
    geometry.validate()?;
    Ok(geometry)
}

/// The scheme that has such a rule.
fn scheme(rule: &Rule) -> Result<DynamicScheme> {
    let bits = 32 - rule.qmax.max(1).leading_zeros();
    let activations = Scheme::new(bits, false).with_symmetric(rule.symmetric).with_narrow_range(rule.qmin == 1);
    if (activations.qmin(), activations.qmax()) != (rule.qmin, rule.qmax) {
        return Err(Error::parameter("range of an input's codes", (rule.qmin, rule.qmax), "must be that of a number of bits"));
    }
    let non_finite = if rule.saturates { NonFinite::Saturate } else { NonFinite::Error };
    let range = if rule.of_tensor { RangeOf::Tensor } else { RangeOf::Row };
    Ok(DynamicScheme { activations, range, non_finite, ..DynamicScheme::default() })
}

pub fn grid(grid: Grid) -> Result<U8Grid> {
    U8Grid::new(grid.scale.0, grid.zero_point)
}

/// What a layer reads and what it writes, between values of these grids.
fn around(grids: &Static, [read, written]: [Option<Grid>; 2]) -> Result<(U8Grid, StaticOutput)> {
    let said = |own: Option<Grid>, of_value: Option<Grid>, what: &str| match own.or(of_value) {
        Some(found) => grid(found),
        None => Err(format_error("input", format!("neither a layer nor `grids` says what the codes of its {what} stand for"))),
    };
    let output = match grids.output {
        Written::Codes { grid: own, range: (lo, hi) } => StaticOutput::Codes { grid: said(own, written, "output")?, lo, hi },
        Written::Float { clamp: Some((document::Real(lo), document::Real(hi))), relu: false } if lo <= hi => {
            StaticOutput::Float(Activation::Clamp { lo, hi })
        }
        Written::Float { clamp: None, relu } => StaticOutput::Float(if relu { Activation::Relu } else { Activation::None }),
        Written::Float { .. } => return Err(format_error("input", "an output is clamped to no range, or twice")),
    };
    Ok((said(grids.input, read, "input")?, output))
}

/// The error of a name that stands for nothing.
pub fn unknown(what: &str, name: &str) -> Error {
    format_error("input", format!("there is no {what} `{name}`"))
}
