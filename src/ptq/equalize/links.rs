//! Which layers may hand a scale from one to the next, and what lies between them.

use crate::convert::clamp;
use crate::kernels::Activation;
use crate::nn::operator::{Binary, Operator, Unary, Variadic};
use crate::nn::{Edge, Layer, Model, Node, SkipReason, Skipped, Wiring};

/// Two layers with weights, of which the second alone reads what the first writes, channel by channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    pub first: usize,
    pub second: usize,
    /// The nodes from one to the other.
    pub between: Vec<(usize, Passage)>,
    /// Channels that the first writes.
    pub channels: usize,
    /// Inputs of the second for each channel: more than one behind a Flatten of images.
    pub spread: usize,
}

/// What a node between two layers does to a channel that is divided by `s > 0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Passage {
    /// `f(x / s) = f(x) / s`.
    Homogeneous,
    /// Held between two numbers, which are divided by `s` too. The lower one is at most 0, the upper one at least 0.
    Clamp { lo: f32, hi: f32 },
    /// The less, or the greater, of the value and a constant with one element, or one a channel, which is divided by `s` too.
    Bound(Edge),
}

/// Where the channels of a value lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Axis {
    /// The second of an image's.
    Second,
    /// The last, each channel so many times in a row; 0 where the reader decides it.
    Last(usize),
}

/// The links of a model, and the layers that begin none, with the reason.
pub(super) fn links(model: &Model) -> (Vec<Link>, Vec<Skipped>) {
    let (wiring, mut links, mut passed_over) = (Wiring::new(model), Vec::new(), Vec::new());
    for (index, node) in model.nodes().iter().enumerate() {
        let found = match node.layer() {
            Layer::Conv2d(conv) => follow(model, &wiring, index, conv.geometry().out_channels, Axis::Second),
            Layer::Linear(linear) => follow(model, &wiring, index, linear.out_features(), Axis::Last(1)),
            layer if layer.is_quantized() => Err(SkipReason::AlreadyQuantized),
            _ => continue,
        };
        match found {
            Ok(link) => links.push(link),
            Err(reason) => passed_over.push(Skipped::new(node.name(), node.layer().kind(), reason)),
        }
    }
    (links, passed_over)
}

/// From the layer `first` on to the next one with weights.
fn follow(model: &Model, wiring: &Wiring<'_>, first: usize, channels: usize, mut axis: Axis) -> Result<Link, SkipReason> {
    let unsupported = |why: String| Err(SkipReason::Unsupported(why));
    let mut between = Vec::new();
    let mut edge = model.nodes()[first].outputs()[0];
    loop {
        let Some(reader) = wiring.sole_reader(edge) else {
            let name = model.edge_name(edge);
            return unsupported(match (wiring.outputs.contains(&edge.index), wiring.readers[edge.index].len()) {
                (true, _) => format!("`{name}` is an output of the model"),
                (_, 0) => format!("nothing reads `{name}`"),
                (_, readers) => format!("`{name}` is read {readers} times"),
            });
        };
        let node = &model.nodes()[reader];
        let spread = match (node.layer(), axis) {
            (Layer::Conv2d(conv), Axis::Second) if conv.geometry().in_channels == channels => Some(1),
            (Layer::Linear(linear), Axis::Last(0)) if linear.in_features().is_multiple_of(channels) => {
                Some(linear.in_features() / channels)
            }
            (Layer::Linear(linear), Axis::Last(spread)) if linear.in_features() == channels * spread => Some(spread),
            _ => None,
        };
        if let Some(spread) = spread {
            return Ok(Link { first, second: reader, between, channels, spread });
        }
        if let Some(merged) = merged(node, axis, wiring) {
            axis = merged;
            between.push((reader, Passage::Homogeneous));
        } else if let Some(passage) = passage(node, edge, wiring, channels, axis) {
            between.push((reader, passage));
        } else {
            return unsupported(format!("`{}` ({}) follows, which no scale passes", node.name(), node.layer().kind()));
        }
        edge = node.outputs()[0];
    }
}

/// Where the channels lie behind a node that only takes axes together.
fn merged(node: &Node, axis: Axis, wiring: &Wiring<'_>) -> Option<Axis> {
    if axis != Axis::Second {
        return None;
    }
    match node.layer() {
        Layer::Flatten { axis: 1 } => Some(Axis::Last(0)),
        Layer::Operator(operator @ (Operator::Flatten(_) | Operator::Reshape(_) | Operator::Squeeze(_))) => {
            let given = node.inputs().get(1).copied().flatten().and_then(|edge| wiring.constants[edge.index]);
            operator.merges_pixels(given).then_some(Axis::Last(0))
        }
        _ => None,
    }
}

/// How a node lets scales through; `None` when it does not.
fn passage(node: &Node, edge: Edge, wiring: &Wiring<'_>, channels: usize, axis: Axis) -> Option<Passage> {
    let constant = |at: usize| node.inputs().get(at).copied().flatten().filter(|edge| wiring.constants[edge.index].is_some());
    let is_first = node.inputs().first() == Some(&Some(edge));
    let alone = node.outputs().len() == 1;
    match clamp(node, wiring) {
        Some(Activation::Relu | Activation::None) => return is_first.then_some(Passage::Homogeneous),
        Some(Activation::Clamp { lo, hi }) => return (is_first && lo <= 0.0 && hi >= 0.0).then_some(Passage::Clamp { lo, hi }),
        None => {}
    }
    let is_homogeneous = match node.layer() {
        Layer::MaxPool2d(_) | Layer::AvgPool2d(_) | Layer::GlobalAvgPool2d(_) => true,
        Layer::Operator(operator) => match operator {
            Operator::Identity(_) | Operator::Dropout(_) => true,
            Operator::Pool(_) | Operator::GlobalPool(_) => axis == Axis::Second,
            Operator::Unary(Unary::LeakyRelu { .. } | Unary::Abs | Unary::Neg) => true,
            Operator::Binary(Binary::PRelu) => constant(1).is_some(),
            Operator::Variadic(Variadic::Min | Variadic::Max) if node.inputs().len() == 2 => {
                let bound = constant(usize::from(is_first))?;
                let value = wiring.constants[bound.index]?.get::<f32>()?;
                return is_by_channel(value.dims(), channels, axis).then_some(Passage::Bound(bound));
            }
            _ => false,
        },
        _ => false,
    };
    (is_homogeneous && is_first && alone).then_some(Passage::Homogeneous)
}

/// Whether a constant of these dimensions has one element, or one a channel.
fn is_by_channel(dims: &[usize], channels: usize, axis: Axis) -> bool {
    match (axis, dims) {
        (_, dims) if dims.iter().product::<usize>() == 1 => dims.len() <= 1,
        (Axis::Second, &[n, 1, 1]) | (Axis::Second, &[1, n, 1, 1]) => n == channels,
        (Axis::Last(1), &[n]) | (Axis::Last(1), &[1, n]) => n == channels,
        _ => false,
    }
}
