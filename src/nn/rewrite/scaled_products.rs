//! Attention's two products and the softmax between them as one node.

use std::collections::HashSet;

use super::Graph;
use crate::error::Result;
use crate::nn::operator::{Attention, Binary};
use crate::nn::{Edge, Layer, Operator};
use crate::tensor::DType;

/// Two products with a softmax between them, of scores that may be scaled and masked, become one node.
pub(super) fn attention(graph: &mut Graph<'_>) -> Result<()> {
    for at in 0..graph.nodes.len() {
        if let Some(Found { inputs, attention, gone }) = attention_at(graph, at) {
            graph.replace(at, Layer::from(attention), inputs, &gone);
        }
    }
    Ok(())
}

struct Found {
    inputs: Vec<Option<Edge>>,
    attention: Attention,
    gone: Vec<usize>,
}

/// The attention whose second product is node `at`.
fn attention_at(graph: &Graph<'_>, at: usize) -> Option<Found> {
    let [weights, values] = product_of_floats(graph, at)?;
    let (softmax, node) = graph.producer(weights).filter(|_| graph.is_private(weights, at))?;
    let mut scaling = Scaling { number: 1.0, factors: Vec::new(), gone: vec![softmax] };
    let (mut x, mut mask) = match node.layer() {
        Layer::Operator(Operator::MaskedSoftmax(softmax)) => {
            scaling.number = softmax.scale();
            (node.inputs()[0]?, node.inputs().get(1).copied().flatten())
        }
        Layer::Operator(Operator::Softmax(softmax)) if softmax.is_along_last() => (node.inputs()[0]?, None),
        _ => return None,
    };
    let mut reader = softmax;
    if scaling.number == 1.0
        && mask.is_none()
        && let Some((index, add)) = graph.producer(x).filter(|_| graph.is_private(x, reader))
        && matches!(add.layer(), Layer::Operator(Operator::Binary(Binary::Add)))
        && let &[Some(a), Some(b)] = add.inputs()
    {
        // Of the two, the scores are those that come from a product.
        let is_scores = |edge: Edge| {
            let (scores, reader) = scaling.clone().follow(graph, edge, index);
            graph
                .producer(scores)
                .is_some_and(|(product, _)| graph.is_private(scores, reader) && product_of_floats(graph, product).is_some())
        };
        let (scores, other) = [(a, b), (b, a)].into_iter().find(|&(edge, _)| is_scores(edge))?;
        (x, mask, reader) = (scores, Some(other), index);
        scaling.gone.push(index);
    }
    (x, reader) = scaling.follow(graph, x, reader);
    let (first, _) = graph.producer(x).filter(|_| graph.is_private(x, reader))?;
    let sides = product_of_floats(graph, first)?;
    scaling.gone.push(first);
    let [q, k] = sides.map(|edge| scaling.follow(graph, edge, first).0);
    let Scaling { number, factors, gone } = scaling;
    let attention = Attention::new(number, factors.iter().map(|(_, divides)| *divides).collect());
    let inputs = [Some(q), Some(k), Some(values), mask].into_iter().chain(factors.into_iter().map(|(edge, _)| Some(edge))).collect();
    Some(Found { inputs, attention, gone })
}

/// The two operands of a product of f32 matrices.
fn product_of_floats(graph: &Graph<'_>, at: usize) -> Option<[Edge; 2]> {
    match (graph.node(at)?.layer(), graph.node(at)?.inputs()) {
        (Layer::Operator(Operator::MatMul(product)), &[Some(a), Some(b)]) => {
            (product.is_plain() && graph.model.edge_type(a) == DType::F32).then_some([a, b])
        }
        _ => None,
    }
}

/// What scores, or the sides of their product, are multiplied with.
#[derive(Debug, Clone)]
struct Scaling {
    number: f32,
    /// Values that shapes decide, each with whether it divides.
    factors: Vec<(Edge, bool)>,
    /// The nodes that multiply, and all others that go.
    gone: Vec<usize>,
}

impl Scaling {
    /// Takes in products with numbers before only `reader` reads the edge; what the first of them multiplies, and who reads that.
    fn follow(&mut self, graph: &Graph<'_>, mut edge: Edge, mut reader: usize) -> (Edge, usize) {
        while let Some((index, node)) = graph.producer(edge).filter(|_| graph.is_private(edge, reader))
            && let &[Some(a), Some(b)] = node.inputs()
        {
            let divides = matches!(node.layer(), Layer::Operator(Operator::Binary(Binary::Div)));
            if !divides && !matches!(node.layer(), Layer::Operator(Operator::Binary(Binary::Mul))) {
                break;
            }
            let is_number = |edge: Edge| graph.scalar(edge).is_some() || is_of_shapes(graph, edge);
            let (from, factor) = match (is_number(a), is_number(b)) {
                (false, true) => (a, b),
                (true, false) if !divides => (b, a),
                _ => break,
            };
            match graph.scalar(factor) {
                Some(number) if divides => self.number /= number,
                Some(number) => self.number *= number,
                None => self.factors.push((factor, divides)),
            }
            self.gone.push(index);
            (edge, reader) = (from, index);
        }
        (edge, reader)
    }
}

/// Whether it is shapes of values that decide what the edge holds.
fn is_of_shapes(graph: &Graph<'_>, edge: Edge) -> bool {
    let (mut wanted, mut seen, mut found) = (vec![edge], HashSet::new(), false);
    while let Some(edge) = wanted.pop() {
        if graph.wiring.constants[edge.index].is_some() || !seen.insert(edge.index) {
            continue;
        }
        match graph.producer(edge) {
            Some((_, node)) if matches!(node.layer(), Layer::Operator(Operator::ShapeOf(_) | Operator::SizeOf(_))) => found = true,
            Some((_, node)) => wanted.extend(node.reads()),
            None => return false,
        }
    }
    found
}
