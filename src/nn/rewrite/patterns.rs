//! Functions that exporters spell out in elementary operators.

use super::Graph;
use crate::error::Result;
use crate::nn::operator::{LayerNormalization, Unary};
use crate::nn::{Edge, Layer, LayerKind, Node, Operator};

fn is(node: &Node, name: &str) -> bool {
    matches!(node.layer().kind(), LayerKind::Operator(kind) if kind == name)
}

/// `x / √2 → Erf → + 1 → · x → · 1/2`, the last two in any order, becomes GELU; with `√(2/π) · (x + 0.044715 · x³) → Tanh` in front, GELU
/// by tanh.
pub(super) fn gelu(graph: &mut Graph<'_>) -> Result<()> {
    for node in 0..graph.nodes.len() {
        let found = [(Unary::Gelu, erf_argument(graph, node)), (Unary::GeluTanh, tanh_argument(graph, node))];
        for (function, argument) in found {
            if let Some((x, gone)) = argument
                && let Some((gone, last)) = gelu_after(graph, node, x, gone)
            {
                graph.replace(last, function.into(), vec![Some(x)], &gone);
            }
        }
    }
    Ok(())
}

/// Of an Erf of `x / √2`: `x`, and the nodes that go.
fn erf_argument(graph: &Graph<'_>, erf: usize) -> Option<(Edge, Vec<usize>)> {
    const SQRT_2: f32 = std::f32::consts::SQRT_2;
    let node = graph.node(erf).filter(|node| is(node, "Erf"))?;
    let read = node.inputs()[0]?;
    let (scaling, scaled) = graph.producer(read).filter(|_| graph.is_private(read, erf))?;
    let x = match () {
        () if is(scaled, "Div") => scaled.inputs()[0].filter(|_| {
            let divisor = scaled.inputs()[1].and_then(|edge| graph.scalar(edge));
            divisor.is_some_and(|divisor| (divisor - SQRT_2).abs() <= 1e-6 * SQRT_2)
        })?,
        () if is(scaled, "Mul") => graph.other_than(scaled, 1.0 / SQRT_2)?,
        () => return None,
    };
    Some((x, vec![scaling, erf]))
}

/// Of a Tanh of `√(2/π) · (x + 0.044715 · x³)`: `x`, and the nodes that go.
fn tanh_argument(graph: &Graph<'_>, tanh: usize) -> Option<(Edge, Vec<usize>)> {
    // √(2/π)
    const SCALE: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    // The node behind an edge that `reader` alone reads.
    let behind =
        |edge: Edge, reader: usize, name: &str| graph.producer(edge).filter(|(_, node)| graph.is_private(edge, reader) && is(node, name));
    let node = graph.node(tanh).filter(|node| is(node, "Tanh"))?;
    let (scaling, scaled) = behind(node.inputs()[0]?, tanh, "Mul")?;
    let (adding, sum) = behind(graph.other_than(scaled, SCALE)?, scaling, "Add")?;
    let &[Some(a), Some(b)] = sum.inputs() else { return None };
    [(a, b), (b, a)].into_iter().find_map(|(x, term)| {
        let (weighing, weighed) = behind(term, adding, "Mul")?;
        let cube = graph.other_than(weighed, CUBIC)?;
        let mut gone = vec![scaling, adding, weighing, tanh];
        if let Some((power, node)) = behind(cube, weighing, "Pow") {
            gone.push(power);
            return (node.inputs()[0] == Some(x) && graph.scalar(node.inputs()[1]?)? == 3.0).then_some((x, gone));
        }
        let (product, node) = behind(cube, weighing, "Mul")?;
        let square = node.reads().find(|&edge| edge != x)?;
        let (squaring, squared) = behind(square, product, "Mul")?;
        gone.extend([product, squaring]);
        let is_cube = node.reads().any(|edge| edge == x) && squared.inputs() == [Some(x), Some(x)];
        is_cube.then_some((x, gone))
    })
}

/// Behind the function of `x`, node `function`: the nodes that go, and the one that stays.
fn gelu_after(graph: &Graph<'_>, function: usize, x: Edge, mut gone: Vec<usize>) -> Option<(Vec<usize>, usize)> {
    let (plus, _) = graph.sole_reader(function).filter(|(_, node)| is(node, "Add") && graph.other_than(node, 1.0).is_some())?;
    let (product, times) = graph.sole_reader(plus).filter(|(_, node)| is(node, "Mul"))?;
    let plus_edge = graph.node(plus)?.outputs()[0];
    gone.push(plus);
    // (1 + f) · 1/2, then · x.
    if graph.other_than(times, 0.5) == Some(plus_edge) {
        let (last, _) = graph.sole_reader(product).filter(|(_, node)| is(node, "Mul") && node.reads().any(|edge| edge == x))?;
        gone.push(product);
        return Some((gone, last));
    }
    let other = times.reads().find(|&edge| edge != plus_edge)?;
    // (1 + f) · x, then · 1/2.
    if other == x {
        let (last, _) = graph.sole_reader(product).filter(|(_, node)| is(node, "Mul") && graph.other_than(node, 0.5).is_some())?;
        gone.push(product);
        return Some((gone, last));
    }
    // (1 + f) · (x · 1/2).
    let (halving, half) = graph.producer(other).filter(|(_, node)| is(node, "Mul") && graph.is_private(other, product))?;
    if graph.other_than(half, 0.5) == Some(x) {
        gone.push(halving);
        return Some((gone, product));
    }
    None
}

/// `x · sigmoid(x)` becomes Swish, and `x · hardsigmoid(x)` with slope 1/6 and 1/2 at 0 HardSwish.
pub(super) fn swish(graph: &mut Graph<'_>) -> Result<()> {
    for gate in 0..graph.nodes.len() {
        let Some(node) = graph.node(gate) else { continue };
        let function = match node.layer() {
            Layer::Operator(Operator::Unary(Unary::Sigmoid)) => Unary::Swish { alpha: 1.0 },
            &Layer::Operator(Operator::Unary(Unary::HardSigmoid { alpha, beta })) if alpha == 1.0 / 6.0 && beta == 0.5 => Unary::HardSwish,
            _ => continue,
        };
        let (x, gated) = (node.inputs()[0], node.outputs()[0]);
        let Some((last, product)) = graph.sole_reader(gate).filter(|(_, node)| is(node, "Mul")) else { continue };
        // As one of two inputs, beside what the gate reads.
        if x.is_some() && (product.inputs() == [x, Some(gated)] || product.inputs() == [Some(gated), x]) {
            graph.replace(last, function.into(), vec![x], &[gate]);
        }
    }
    Ok(())
}

/// `d = x - mean(x)`, `d / √(mean(d²) + epsilon) · gamma + beta`, means over the last axis, becomes LayerNormalization.
pub(super) fn layer_norm(graph: &mut Graph<'_>) -> Result<()> {
    for root in 0..graph.nodes.len() {
        let Some(found) = layer_norm_at(graph, root) else { continue };
        let Found { inputs, epsilon, gone, last } = found;
        graph.replace(last, LayerNormalization::new(-1, epsilon).into(), inputs.map(Some).to_vec(), &gone);
    }
    Ok(())
}

struct Found {
    inputs: [Edge; 3],
    epsilon: f32,
    gone: Vec<usize>,
    last: usize,
}

/// What the square root at `root` is part of.
fn layer_norm_at(graph: &Graph<'_>, root: usize) -> Option<Found> {
    let node = graph.node(root).filter(|node| is(node, "Sqrt"))?;
    let (plus, add) = graph.producer(node.inputs()[0]?).filter(|(plus, node)| is(node, "Add") && sole(graph, *plus, root))?;
    let &[Some(a), Some(b)] = add.inputs() else { return None };
    let (variance, epsilon) = match (graph.scalar(a), graph.scalar(b)) {
        (None, Some(epsilon)) => (a, epsilon),
        (Some(epsilon), None) => (b, epsilon),
        _ => return None,
    };
    let (mean_of_squares, squares) = mean(graph, variance, plus)?;
    let (square, squaring) = graph.producer(squares).filter(|(square, _)| sole(graph, *square, mean_of_squares))?;
    let centred = squaring.inputs()[0]?;
    let by = squaring.inputs()[1]?;
    let squares_itself = (is(squaring, "Pow") && graph.scalar(by) == Some(2.0)) || (is(squaring, "Mul") && by == centred);
    let (minus, sub) = graph.producer(centred).filter(|(_, node)| squares_itself && is(node, "Sub"))?;
    let &[Some(x), Some(m)] = sub.inputs() else { return None };
    let (mean_of_x, averaged) = mean(graph, m, minus)?;
    let (quotient, div) = graph.sole_reader(root).filter(|(_, node)| is(node, "Div"))?;
    let root_edge = graph.node(root)?.outputs()[0];
    let alone = graph.wiring.readers[centred.index].iter().all(|reader| [square, quotient].contains(reader));
    if averaged != x || div.inputs() != [Some(centred), Some(root_edge)] || !alone || graph.wiring.outputs.contains(&centred.index) {
        return None;
    }
    let (scaling, mul) = graph.sole_reader(quotient).filter(|(_, node)| is(node, "Mul"))?;
    let gamma = row(graph, mul)?;
    let (last, shift) = graph.sole_reader(scaling).filter(|(_, node)| is(node, "Add"))?;
    let beta = row(graph, shift)?;
    let gone = vec![mean_of_x, minus, square, mean_of_squares, plus, root, quotient, scaling];
    Some(Found { inputs: [x, gamma, beta], epsilon, gone, last })
}

/// Whether only `reader` reads what `index` writes.
fn sole(graph: &Graph<'_>, index: usize, reader: usize) -> bool {
    graph.sole_reader(index).is_some_and(|(other, _)| other == reader)
}

/// The mean over the last axis that `edge` is, if only `reader` reads it, and what it is the mean of.
fn mean(graph: &Graph<'_>, edge: Edge, reader: usize) -> Option<(usize, Edge)> {
    let (index, node) = graph.producer(edge).filter(|(index, _)| sole(graph, *index, reader))?;
    let Layer::Operator(Operator::Reduce(reduce)) = node.layer() else { return None };
    let axes = match node.inputs().get(1).copied().flatten() {
        None => None,
        Some(edge) => Some(graph.wiring.constants[edge.index]?.get::<i64>()?.as_slice()),
    };
    reduce.is_mean_over_last(axes).then_some((index, node.inputs()[0]?))
}

/// Of two operands, the constant row of several numbers.
fn row(graph: &Graph<'_>, node: &Node) -> Option<Edge> {
    let is_row =
        |edge: &Edge| graph.wiring.constants[edge.index].is_some_and(|value| value.shape().rank() == 1 && value.shape().elements() > 1);
    node.reads().find(is_row)
}
