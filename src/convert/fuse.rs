//! Folding batch norm into the convolution before it.

use crate::error::Result;
use crate::nn::{BatchNorm2d, Conv2d, Conversion, Edge, Layer, Model, Node};
use crate::tensor::Tensor;

/// The same model with every batch norm folded into the float convolution that feeds it and nothing else.
///
/// With `scale = gamma / sqrt(var + eps)` and `shift = beta - mean · scale`, both in f64,
/// `weight'[o] = weight[o] · scale[o]` and `bias'[o] = bias[o] · scale[o] + shift[o]`. The convolution keeps its name and
/// writes the edge that the batch norm wrote, so every other value of the model keeps its meaning. The function is the
/// same up to the rounding of f32.
///
/// A batch norm stays where it is when its input is read by another node too, is an output of the model, or comes from
/// something else than a float convolution. What was folded is in [`Model::conversion`].
///
/// # Errors
/// None that a model which was built can meet.
pub fn fold_batch_norm(model: &Model) -> Result<Model> {
    let readers = |edge: Edge| model.nodes().iter().flat_map(Node::inputs).filter(|&&read| read == edge).count();
    let is_output = |edge: Edge| model.outputs().iter().any(|output| output.edge() == edge);
    let mut nodes: Vec<Node> = Vec::with_capacity(model.nodes().len());
    let mut conversion = model.conversion().cloned().unwrap_or_default();
    for node in model.nodes() {
        if let Layer::BatchNorm2d(norm) = node.layer() {
            let read = node.inputs()[0];
            let before = nodes.iter_mut().find(|other| other.outputs().contains(&read));
            if let Some(before) = before.filter(|_| readers(read) == 1 && !is_output(read))
                && let Layer::Conv2d(conv) = before.layer()
            {
                let folded = fold(conv, norm)?;
                conversion.folded.push((node.name().to_owned(), before.name().to_owned()));
                *before = before.with_layer(folded).writing(node.outputs().to_vec());
                continue;
            }
        }
        nodes.push(node.clone());
    }
    let conversion = (conversion != Conversion::default()).then_some(conversion);
    Ok(model.with_nodes(nodes, conversion))
}

fn fold(conv: &Conv2d, norm: &BatchNorm2d) -> Result<Conv2d> {
    let affine = norm.affine_f64();
    let per_channel = conv.weight().len() / affine.len();
    let mut weight = conv.weight().clone();
    for (filter, (scale, _)) in weight.as_mut_slice().chunks_exact_mut(per_channel.max(1)).zip(affine) {
        filter.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
    }
    let old = |o: usize| conv.bias().map_or(0.0, |bias| f64::from(bias.as_slice()[o]));
    let bias = affine.iter().enumerate().map(|(o, (scale, shift))| (old(o) * scale + shift) as f32).collect();
    Conv2d::new(conv.geometry().clone(), weight, Some(Tensor::new([affine.len()], bias)?))
}
