//! Transposes around products of matrices.

use super::Graph;
use crate::error::Result;
use crate::nn::{Layer, Operator};

/// A Transpose that only a MatMul reads, and one that alone reads a MatMul, become axes of the product, where its kernel
/// can walk them.
pub(super) fn transposes(graph: &mut Graph<'_>) -> Result<()> {
    for at in 0..graph.nodes.len() {
        let Some(node) = graph.node(at) else { continue };
        let Layer::Operator(Operator::MatMul(matmul)) = node.layer() else { continue };
        let (mut matmul, mut inputs) = (matmul.clone(), node.inputs().to_vec());
        let (mut gone, mut last) = (Vec::new(), at);
        for (side, input) in inputs.iter_mut().enumerate() {
            let Some(edge) = *input else { continue };
            if let Some((index, before)) = graph.producer(edge)
                && graph.is_private(edge, at)
                && let Some(axes) = axes_of(before.layer())
                && let Ok(transposing) = matmul.clone().with_input_axes(side, axes)
                && !gone.contains(&index)
            {
                *input = before.inputs()[0];
                matmul = transposing;
                gone.push(index);
            }
        }
        if let Some((index, after)) = graph.sole_reader(at)
            && let Some(axes) = axes_of(after.layer())
            && let Ok(transposing) = matmul.clone().with_output_axes(axes)
        {
            matmul = transposing;
            gone.push(at);
            last = index;
        }
        if !gone.is_empty() {
            graph.replace(last, Layer::from(matmul), inputs, &gone);
        }
    }
    Ok(())
}

/// The axes of a Transpose that names them.
fn axes_of(layer: &Layer) -> Option<Vec<usize>> {
    match layer {
        Layer::Operator(Operator::Transpose(transpose)) => transpose.axes(),
        _ => None,
    }
}
