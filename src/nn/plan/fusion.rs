//! Which neighbours run as one: a layer with weights, the sum with another value that follows, and a clamp or a function after that, in
//! the layer's output stage.

use super::known::Known;
use crate::kernels::{Activation, Function};
use crate::nn::operator::{Binary, Unary};
use crate::nn::{Layer, LayerKind, Model, Operator, Wiring};

/// What a layer's output stage does besides its own work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Fused {
    /// Applied last.
    pub activation: Activation,
    /// Whether the last operand is added first.
    pub residual: bool,
    /// A function of each element after that, of a fully connected layer.
    pub function: Option<Function>,
}

/// Nodes that run as one step.
#[derive(Debug)]
pub(super) struct Group {
    /// The node that runs.
    pub node: usize,
    /// The node whose output the step writes; the step takes its place in the order.
    pub last: usize,
    /// The edge that is added.
    pub residual: Option<usize>,
    pub activation: Activation,
    pub function: Option<Function>,
}

/// The steps to come, in order. Nodes whose values are known are groups of their own, and run nothing.
pub(super) fn groups(model: &Model, known: &Known<'_>, fuses: bool) -> Vec<Group> {
    let nodes = model.nodes();
    let wiring = Wiring::new(model);
    let mut swallowed = vec![false; nodes.len()];
    let mut groups: Vec<Group> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        if swallowed[index] {
            continue;
        }
        let mut group = Group { node: index, last: index, residual: None, activation: Activation::None, function: None };
        let is_open = |group: &Group| group.activation == Activation::None && group.function.is_none();
        while fuses && !known.folded[index] && has_output_stage(node.layer()) && is_open(&group) {
            let edge = nodes[group.last].outputs()[0];
            let Some(reader) = wiring.sole_reader(edge).filter(|&reader| !swallowed[reader]) else { break };
            let edge = edge.index;
            match nodes[reader].layer() {
                Layer::Relu => group.activation = Activation::Relu,
                Layer::Relu6 => group.activation = Activation::Clamp { lo: 0.0, hi: 6.0 },
                layer if is_add(layer) && adds(node.layer()) && group.residual.is_none() => {
                    let other = nodes[reader].reads().map(|edge| edge.index).find(|&other| other != edge);
                    let Some(other) = other.filter(|&other| known.shapes[other] == known.shapes[edge]) else { break };
                    group.residual = Some(other);
                }
                layer if takes_function(node.layer()) && function(layer).is_some() => group.function = function(layer),
                _ => break,
            }
            swallowed[reader] = true;
            group.last = reader;
        }
        groups.push(group);
    }
    groups.sort_by_key(|group| group.last);
    groups
}

fn has_output_stage(layer: &Layer) -> bool {
    matches!(
        layer,
        Layer::Conv2d(_)
            | Layer::ConvTranspose2d(_)
            | Layer::Linear(_)
            | Layer::QuantizedConv2d(_)
            | Layer::QuantizedConvTranspose2d(_)
            | Layer::QuantizedLinear(_)
            | Layer::WeightOnlyLinear(_)
            | Layer::WeightOnlyConv2d(_)
    )
}

/// Whether the output stage can add to what is in the output; a transposed convolution scatters its own sums there.
fn adds(layer: &Layer) -> bool {
    has_output_stage(layer) && layer.kind() != LayerKind::ConvTranspose2d
}

/// Whether a function can follow the output stage: that of products alone does it.
fn takes_function(layer: &Layer) -> bool {
    matches!(layer, Layer::Linear(_) | Layer::QuantizedLinear(_))
}

fn function(layer: &Layer) -> Option<Function> {
    match layer {
        Layer::Operator(Operator::Unary(Unary::Gelu)) => Some(Function::Gelu),
        Layer::Operator(Operator::Unary(Unary::GeluTanh)) => Some(Function::GeluTanh),
        &Layer::Operator(Operator::Unary(Unary::Swish { alpha })) => Some(Function::Swish(alpha)),
        _ => None,
    }
}

fn is_add(layer: &Layer) -> bool {
    matches!(layer, Layer::Add | Layer::Operator(Operator::Binary(Binary::Add)))
}
