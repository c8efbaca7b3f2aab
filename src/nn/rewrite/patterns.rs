//! Functions that exporters spell out in elementary operators.

use super::Graph;
use crate::error::Result;
use crate::nn::operator::Unary;
use crate::nn::{Edge, LayerKind, Node};

fn is(node: &Node, name: &str) -> bool {
    matches!(node.layer().kind(), LayerKind::Operator(kind) if kind == name)
}

/// `x / √2 → Erf → + 1 → · x → · 1/2`, the last two in any order, becomes GELU.
pub(super) fn gelu(graph: &mut Graph<'_>) -> Result<()> {
    const SQRT_2: f32 = std::f32::consts::SQRT_2;
    for erf in 0..graph.nodes.len() {
        let Some((x, gone, last)) = gelu_at(graph, erf, SQRT_2) else { continue };
        graph.replace(last, Unary::Gelu.into(), vec![Some(x)], &gone);
    }
    Ok(())
}

/// The input, the nodes that go, and the one that stays.
fn gelu_at(graph: &Graph<'_>, erf: usize, sqrt_2: f32) -> Option<(Edge, Vec<usize>, usize)> {
    let node = graph.node(erf).filter(|node| is(node, "Erf"))?;
    let read = node.inputs()[0]?;
    let (scaling, scaled) = graph.producer(read).filter(|_| graph.is_private(read, erf))?;
    let x = match () {
        () if is(scaled, "Div") => scaled.inputs()[0].filter(|_| {
            let divisor = scaled.inputs()[1].and_then(|edge| graph.scalar(edge));
            divisor.is_some_and(|divisor| (divisor - sqrt_2).abs() < 1e-3)
        })?,
        () if is(scaled, "Mul") => graph.other_than(scaled, 1.0 / sqrt_2)?,
        () => return None,
    };
    let (plus, _) = graph.sole_reader(erf).filter(|(_, node)| is(node, "Add") && graph.other_than(node, 1.0).is_some())?;
    let (product, times) = graph.sole_reader(plus).filter(|(_, node)| is(node, "Mul"))?;
    let plus_edge = graph.node(plus)?.outputs()[0];
    let mut gone = vec![scaling, erf, plus];
    // (1 + erf) · 1/2, then · x.
    if graph.other_than(times, 0.5) == Some(plus_edge) {
        let (last, _) = graph.sole_reader(product).filter(|(_, node)| is(node, "Mul") && node.reads().any(|edge| edge == x))?;
        gone.push(product);
        return Some((x, gone, last));
    }
    let other = times.reads().find(|&edge| edge != plus_edge)?;
    // (1 + erf) · x, then · 1/2.
    if other == x {
        let (last, _) = graph.sole_reader(product).filter(|(_, node)| is(node, "Mul") && graph.other_than(node, 0.5).is_some())?;
        gone.push(product);
        return Some((x, gone, last));
    }
    // (1 + erf) · (x · 1/2).
    let (halving, half) = graph.producer(other).filter(|(_, node)| is(node, "Mul") && graph.is_private(other, product))?;
    if graph.other_than(half, 0.5) == Some(x) {
        gone.push(halving);
        return Some((x, gone, product));
    }
    None
}
