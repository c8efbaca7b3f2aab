//! High biases that move on into the next layer.

use std::collections::HashMap;

use super::Absorption;
use super::links::{Link, Passage, links};
use crate::error::Result;
use crate::kernels::Padding;
use crate::nn::operator::{Operator, Unary, Variadic};
use crate::nn::{Conv2d, Layer, Linear, Model};
use crate::ptq::statistics::{Statistics, each_output, inner};
use crate::tensor::{Tensor, Value};

/// The model with biases moved on, and by link how many channels' were. `model` is the one that was given, with its batch norms; `even` is
/// folded and scaled by `scales`.
pub(super) fn absorb(
    model: &Model,
    even: Model,
    scales: &[Vec<f64>],
    by: Absorption,
    batches: &[&[(&str, &Value)]],
) -> Result<(Model, Vec<usize>)> {
    // Clamps have become other nodes; the links are the same.
    let (links, _) = links(&even);
    let floors = match by {
        Absorption::Never => return Ok((even, vec![0; links.len()])),
        Absorption::Observed => {
            let mut seen: HashMap<usize, Statistics> = links.iter().map(|link| (link.first, Statistics::new(link.channels))).collect();
            let names: Vec<&str> = links.iter().map(|link| even.nodes()[link.first].name()).collect();
            each_output(
                &even,
                |node| names.contains(&node.name()),
                batches,
                |at, x| {
                    let second = matches!(even.nodes()[at].layer(), Layer::Conv2d(_));
                    seen.get_mut(&at).expect("the first layer of a link").add(x.as_slice(), inner(x, second));
                },
            )?;
            links.iter().map(|link| Some(seen[&link.first].least.clone())).collect()
        }
        Absorption::ThreeSigma => {
            links.iter().zip(scales).map(|(link, scales)| three_sigma(model, &even, link, scales)).collect::<Vec<_>>()
        }
    };
    let mut layers: HashMap<usize, Layer> = HashMap::new();
    let (mut bounds, mut moved) = (HashMap::new(), Vec::with_capacity(links.len()));
    for (link, floors) in links.iter().zip(floors) {
        let shifts: Vec<f64> = floors.into_iter().flatten().map(|floor| if floor.is_finite() { floor.max(0.0) } else { 0.0 }).collect();
        let channels = shifts.iter().filter(|&&shift| shift > 0.0).count();
        if channels == 0 || !shifts_pass(&even, link) {
            moved.push(0);
            continue;
        }
        let mut shifted = |node: usize, change: &dyn Fn(&Layer) -> Result<Layer>| -> Result<()> {
            let nodes = even.nodes();
            let layer = change(layers.get(&node).unwrap_or(nodes[node].layer())).map_err(|error| error.in_layer(nodes[node].name()))?;
            layers.insert(node, layer);
            Ok(())
        };
        shifted(link.first, &|layer| with_shift(layer, |output| -shifts[output]))?;
        shifted(link.second, &|layer| {
            let carried = carried(layer, &shifts, link.spread);
            with_shift(layer, |output| carried[output])
        })?;
        for &(_, passage) in &link.between {
            if let Passage::Bound(bound) = passage {
                bounds.insert(bound.index, lowered(&even, link, bound.index, &shifts)?);
            }
        }
        moved.push(channels);
    }
    let nodes = even.nodes().iter().enumerate();
    let nodes = nodes.map(|(index, node)| layers.remove(&index).map_or_else(|| node.clone(), |layer| node.with_layer(layer))).collect();
    Ok((even.with_nodes(nodes, even.conversion().cloned()).with_constants(&bounds), moved))
}

/// Whether `f(z) = f(z - c) + c` for `z ≥ c ≥ 0` of all that lies between, and the second layer reads no padding.
fn shifts_pass(model: &Model, link: &Link) -> bool {
    let pads = match model.nodes()[link.second].layer() {
        Layer::Conv2d(conv) => conv.geometry().padding != Padding::NONE,
        _ => false,
    };
    let passes = |&(node, passage): &(usize, Passage)| match (model.nodes()[node].layer(), passage) {
        (Layer::Relu | Layer::MaxPool2d(_) | Layer::GlobalAvgPool2d(_) | Layer::Flatten { .. }, _) => true,
        (Layer::Operator(Operator::Unary(Unary::Relu | Unary::LeakyRelu { .. }) | Operator::Identity(_) | Operator::Dropout(_)), _) => true,
        (Layer::Operator(Operator::Flatten(_) | Operator::Reshape(_) | Operator::Squeeze(_)), _) => true,
        // Its constant is nobody else's: scaling has made it, or it is read once.
        (Layer::Operator(Operator::Variadic(Variadic::Min)), Passage::Bound(bound)) => {
            model.nodes().iter().flat_map(|node| node.reads()).filter(|&edge| edge == bound).count() == 1
        }
        _ => false,
    };
    !pads && link.between.iter().all(passes)
}

/// `β - 3 |γ|` of the batch norm that was folded into the first layer, in its scales.
fn three_sigma(model: &Model, even: &Model, link: &Link, scales: &[f64]) -> Option<Vec<f64>> {
    let first = even.nodes()[link.first].name();
    let (norm, _) = even.conversion()?.folded.iter().find(|(_, layer)| layer == first)?;
    let Layer::BatchNorm2d(norm) = model.node(norm)?.layer() else { return None };
    let [gamma, beta, ..] = norm.parameters();
    let floor = |((&gamma, &beta), scale): ((&f32, &f32), &f64)| (f64::from(beta) - 3.0 * f64::from(gamma).abs()) / scale;
    Some(gamma.as_slice().iter().zip(beta.as_slice()).zip(scales).map(floor).collect())
}

/// The layer with something added to its bias.
fn with_shift(layer: &Layer, shift: impl Fn(usize) -> f64) -> Result<Layer> {
    let shifted = |bias: Option<&Tensor>, channels: usize| {
        let old = |c: usize| bias.map_or(0.0, |bias| f64::from(bias.as_slice()[c]));
        Tensor::new([channels], (0..channels).map(|c| (old(c) + shift(c)) as f32).collect()).map(Some)
    };
    match layer {
        Layer::Conv2d(conv) => {
            let bias = shifted(conv.bias(), conv.geometry().out_channels)?;
            Conv2d::new(conv.geometry().clone(), conv.weight().clone(), bias).map(Layer::from)
        }
        Layer::Linear(linear) => {
            let bias = shifted(linear.bias(), linear.out_features())?;
            Linear::new(linear.weight().clone(), bias).map(Layer::from)
        }
        other => Ok(other.clone()),
    }
}

/// What an input of `shifts` alone makes of the layer's outputs, away from padding.
fn carried(layer: &Layer, shifts: &[f64], spread: usize) -> Vec<f64> {
    let (weight, groups) = match layer {
        Layer::Conv2d(conv) => (conv.weight(), conv.geometry().groups),
        Layer::Linear(linear) => (linear.weight(), 1),
        _ => return Vec::new(),
    };
    let (outputs, width) = (weight.dims()[0], weight.dims()[1]);
    let filter = weight.len() / (outputs * width).max(1);
    let row = |(output, row): (usize, &[f32])| {
        let first = output / (outputs / groups) * width;
        let input = |(i, taps): (usize, &[f32])| shifts[(first + i) / spread] * taps.iter().map(|&w| f64::from(w)).sum::<f64>();
        row.chunks_exact(filter).enumerate().map(input).sum()
    };
    weight.as_slice().chunks_exact(width * filter).enumerate().map(row).collect()
}

/// A constant bound, less the shifts.
fn lowered(model: &Model, link: &Link, bound: usize, shifts: &[f64]) -> Result<Value> {
    let bound = model.constants().iter().find(|(edge, _)| edge.index == bound).and_then(|(_, value)| value.get::<f32>());
    let mut bound = bound.cloned().expect("a bound is a constant of f32");
    if bound.len() == 1 {
        let is_image = matches!(model.nodes()[link.first].layer(), Layer::Conv2d(_));
        let dims = if is_image { vec![shifts.len(), 1, 1] } else { vec![shifts.len()] };
        bound = Tensor::new(dims, vec![bound.as_slice()[0]; shifts.len()])?;
    }
    bound.as_mut_slice().iter_mut().zip(shifts).for_each(|(bound, shift)| *bound = (f64::from(*bound) - shift) as f32);
    Ok(bound.into())
}
