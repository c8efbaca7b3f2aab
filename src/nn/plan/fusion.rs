//! Which neighbours run as one: a layer with weights, the sum with another value that follows, and a clamp or a function after that, in
//! the layer's output stage.

use super::known::Known;
use crate::kernels::{Activation, Function};
use crate::nn::operator::{Binary, Clip, Unary};
use crate::nn::{Layer, LayerKind, Model, Node, Operator, Wiring};

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
                Layer::Operator(Operator::Clip(clip)) if nodes[reader].inputs()[0].is_some_and(|x| x.index == edge) => {
                    let Some(clamp) = clamp(*clip, &nodes[reader], known) else { break };
                    group.activation = clamp;
                }
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

/// Whether a function follows the output stage: that of products alone does it. Behind convolutions it was tried: in the output stage, where
/// the possibility of a call made those without a function a tenth slower, and on strips, where EfficientNet gained 2 % and MobileNetV3
/// lost 10 %.
fn takes_function(layer: &Layer) -> bool {
    matches!(layer, Layer::Linear(_) | Layer::QuantizedLinear(_))
}

/// The clamp that this node is, where its bounds are known.
fn clamp(clip: Clip, node: &Node, known: &Known<'_>) -> Option<Activation> {
    let bound = |i: usize, or: Option<f32>, none: f32| match node.inputs().get(i).copied().flatten() {
        Some(edge) => known.values[edge.index].as_ref()?.get::<f32>()?.as_slice().first().copied(),
        None => Some(or.unwrap_or(none)),
    };
    let (min, max) = clip.bounds();
    let (lo, hi) = (bound(1, min, f32::NEG_INFINITY)?, bound(2, max, f32::INFINITY)?);
    (lo <= hi).then_some(Activation::Clamp { lo, hi })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Conv2dGeometry;
    use crate::nn::{Conv2d, Dim, Edge};
    use crate::tensor::{DType, Tensor, Value};

    #[test]
    fn clamps_of_known_bounds_join_the_layer_before_them() {
        let mut net = Model::builder();
        let any = [Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any];
        let mut y = net.input("x", DType::F32, &any).unwrap();
        let given = net.input("given", DType::F32, &[]).unwrap();
        let low = net.constant("low", Value::from(Tensor::new([], vec![-1f32]).unwrap())).unwrap();
        let high = net.constant("high", Value::from(Tensor::new([], vec![2f32]).unwrap())).unwrap();
        let followers: [(Layer, Vec<Edge>); 4] = [
            (Clip::new().into(), vec![low, high]),
            (Clip::new().with_bounds(Some(0.5), None).into(), vec![]),
            // Not known before the run, and empty.
            (Clip::new().into(), vec![given]),
            (Clip::new().into(), vec![high, low]),
        ];
        for (i, (follower, bounds)) in followers.into_iter().enumerate() {
            let conv = Conv2d::new(Conv2dGeometry::new(3, 3, [1, 1]), Tensor::full([3, 3, 1, 1], 0.5).unwrap(), None).unwrap();
            y = net.add(&format!("conv{i}"), conv, &[y]).unwrap();
            y = net.add(&format!("then{i}"), follower, &[vec![y], bounds].concat()).unwrap();
        }
        net.output("y", y).unwrap();
        let model = net.build().unwrap();
        let inputs: [Value; 2] = [Tensor::full([1, 3, 2, 2], 1f32).unwrap().into(), Tensor::full([], 1f32).unwrap().into()];
        let known = Known::new(&model, &|i| &inputs[i]).unwrap();
        let found: Vec<_> = groups(&model, &known, true).into_iter().map(|g| (g.node, g.last, g.activation, g.function)).collect();
        let clamp = |lo, hi| Activation::Clamp { lo, hi };
        let alone = |node| (node, node, Activation::None, None);
        let expected = [(0, 1, clamp(-1.0, 2.0), None), (2, 3, clamp(0.5, f32::INFINITY), None), alone(4), alone(5), alone(6), alone(7)];
        assert_eq!(found, expected);
    }
}
