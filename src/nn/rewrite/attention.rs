//! What stands around products of matrices in attention.

use super::Graph;
use crate::error::Result;
use crate::nn::operator::{Binary, MaskedSoftmax};
use crate::nn::{Edge, Layer, Operator};

/// A Transpose that only a product reads, and one that alone reads a product, become axes of it, where its kernel can walk them.
pub(super) fn transposes(graph: &mut Graph<'_>) -> Result<()> {
    for at in 0..graph.nodes.len() {
        let Some(node) = graph.node(at) else { continue };
        let sides = match node.layer() {
            Layer::Operator(Operator::MatMul(_)) => 2,
            Layer::Operator(Operator::Attention(_)) => 3,
            _ => continue,
        };
        let (mut product, mut inputs) = (node.layer().clone(), node.inputs().to_vec());
        let (mut gone, mut last) = (Vec::new(), at);
        for (side, input) in inputs.iter_mut().enumerate().take(sides) {
            let Some(edge) = *input else { continue };
            if let Some((index, before)) = graph.producer(edge)
                && graph.is_private(edge, at)
                && let Some(axes) = axes_of(before.layer())
                && let Some(transposing) = with_axes(&product, Some(side), axes)
                && !gone.contains(&index)
            {
                *input = before.inputs()[0];
                product = transposing;
                gone.push(index);
            }
        }
        if let Some((index, after)) = graph.sole_reader(at)
            && let Some(axes) = axes_of(after.layer())
            && let Some(transposing) = with_axes(&product, None, axes)
        {
            product = transposing;
            gone.push(at);
            last = index;
        }
        if !gone.is_empty() {
            graph.replace(last, product, inputs, &gone);
        }
    }
    Ok(())
}

/// The product with an input read, or its output written, by axes; `None` where its kernel can't.
fn with_axes(product: &Layer, input: Option<usize>, axes: Vec<usize>) -> Option<Layer> {
    match (product, input) {
        (Layer::Operator(Operator::MatMul(product)), Some(side)) => Some(product.clone().with_input_axes(side, axes).ok()?.into()),
        (Layer::Operator(Operator::MatMul(product)), None) => Some(product.clone().with_output_axes(axes).ok()?.into()),
        (Layer::Operator(Operator::Attention(product)), Some(input)) => Some(product.clone().with_input_axes(input, axes).ok()?.into()),
        (Layer::Operator(Operator::Attention(product)), None) => Some(product.clone().with_output_axes(axes).ok()?.into()),
        _ => None,
    }
}

/// Scores divided (or multiplied) by a number, a mask added, and a Softmax along the last axis become one pass.
pub(super) fn softmax(graph: &mut Graph<'_>) -> Result<()> {
    for at in 0..graph.nodes.len() {
        let Some(node) = graph.node(at) else { continue };
        let Layer::Operator(Operator::Softmax(softmax)) = node.layer() else { continue };
        if !softmax.is_along_last() {
            continue;
        }
        let (mut x, mut mask, mut scale, mut gone) = (node.inputs()[0], None, 1.0, Vec::new());
        let mut reader = at;
        if let Some(edge) = x
            && let Some((index, add)) = graph.producer(edge).filter(|_| graph.is_private(edge, reader))
            && matches!(add.layer(), Layer::Operator(Operator::Binary(Binary::Add)))
            && let &[Some(a), Some(b)] = add.inputs()
            // Of the two, the scores are those that were scaled.
            && let Some((scores, other)) = [(a, b), (b, a)].into_iter().find(|&(edge, _)| scaled(graph, edge, index).is_some())
        {
            (x, mask, reader) = (Some(scores), Some(other), index);
            gone.push(index);
        }
        if let Some(edge) = x
            && let Some((index, from, factor)) = scaled(graph, edge, reader)
        {
            (x, scale) = (Some(from), factor);
            gone.push(index);
        }
        if scale != 1.0 {
            graph.replace(at, Layer::from(MaskedSoftmax::new(scale)), vec![x, mask], &gone);
        }
    }
    Ok(())
}

/// The node that multiplies a value by a number before only `reader` reads it, what it multiplies, and the number.
fn scaled(graph: &Graph<'_>, edge: Edge, reader: usize) -> Option<(usize, Edge, f32)> {
    let (index, node) = graph.producer(edge).filter(|_| graph.is_private(edge, reader))?;
    let &[Some(a), Some(b)] = node.inputs() else { return None };
    match node.layer() {
        Layer::Operator(Operator::Binary(Binary::Div)) => Some((index, a, 1.0 / graph.scalar(b)?)),
        Layer::Operator(Operator::Binary(Binary::Mul)) => match (graph.scalar(a), graph.scalar(b)) {
            (None, Some(factor)) => Some((index, a, factor)),
            (Some(factor), None) => Some((index, b, factor)),
            _ => None,
        },
        _ => None,
    }
}

/// The axes of a Transpose that names them.
fn axes_of(layer: &Layer) -> Option<Vec<usize>> {
    match layer {
        Layer::Operator(Operator::Transpose(transpose)) => transpose.axes(),
        _ => None,
    }
}
