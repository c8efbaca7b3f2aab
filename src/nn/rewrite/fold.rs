//! Batch norm folded into the convolution before it: `weight'[o] = weight[o] · scale[o]`, `bias'[o] = bias[o] · scale[o] + shift[o]`.

use crate::error::Result;
use crate::nn::{BatchNorm2d, Conv2d, Edge, Layer, LayerKind, Model, Node, SkipReason, Skipped};
use crate::tensor::Tensor;

/// What became of the batch norms of a model.
#[derive(Debug, Default)]
pub(crate) struct Folding {
    /// The nodes that are left.
    pub nodes: Vec<Node>,
    /// Those that are gone, with the layer that does their work now.
    pub folded: Vec<(String, String)>,
    /// Those that could not be folded into a layer that was wanted for it.
    pub stayed: Vec<Skipped>,
}

/// Folds batch norms into the convolutions that are `wanted`, which is also asked of other layers, and of no layer (for an
/// input of the model), to know whether a batch norm that stays is worth a word.
pub(crate) fn fold_into(model: &Model, wanted: impl Fn(Option<&Node>) -> bool) -> Result<Folding> {
    let mut folding = Folding::default();
    for node in model.nodes() {
        let Layer::BatchNorm2d(norm) = node.layer() else {
            folding.nodes.push(node.clone());
            continue;
        };
        let Some(read) = node.reads().next() else { continue };
        let before = folding.nodes.iter_mut().find(|other| other.outputs().contains(&read));
        if !wanted(before.as_deref()) {
            folding.nodes.push(node.clone());
            continue;
        }
        match folded(model, read, before.as_deref(), norm)? {
            Ok(conv) => {
                let before = before.expect("what was folded came from a layer");
                *before = before.with_layer(conv).writing(node.outputs().to_vec());
                folding.folded.push((node.name().to_owned(), before.name().to_owned()));
            }
            Err(why) => {
                let reason = SkipReason::Unsupported(format!("not folded: {why}"));
                folding.stayed.push(Skipped::new(node.name(), LayerKind::BatchNorm2d, reason));
                folding.nodes.push(node.clone());
            }
        }
    }
    Ok(folding)
}

/// The convolution that does the work of both, or why there is none.
fn folded(model: &Model, read: Edge, before: Option<&Node>, norm: &BatchNorm2d) -> Result<std::result::Result<Conv2d, String>> {
    let Some(before) = before else {
        return Ok(Err("its input is an input of the model".into()));
    };
    let Layer::Conv2d(conv) = before.layer() else {
        let (name, kind, precision) = (before.name(), before.layer().kind(), before.layer().precision());
        return Ok(Err(format!("its input comes from `{name}`, {kind} in {precision}, and not from a float convolution")));
    };
    if model.outputs().iter().any(|output| output.edge() == read) {
        return Ok(Err(format!("what `{}` writes is an output of the model", before.name())));
    }
    let readers: Vec<&str> = model.nodes().iter().filter(|node| node.inputs().contains(&Some(read))).map(Node::name).collect();
    if readers.len() > 1 {
        return Ok(Err(format!("what `{}` writes is read by {}", before.name(), readers.join(", "))));
    }
    fold(conv, norm).map(|conv| conv.ok_or_else(|| format!("a weight or bias of `{}` would leave the range of f32", before.name())))
}

/// `None` when numbers that were finite would not be any more.
fn fold(conv: &Conv2d, norm: &BatchNorm2d) -> Result<Option<Conv2d>> {
    let affine = norm.affine_f64();
    let per_channel = conv.weight().len() / affine.len();
    let mut weight = conv.weight().clone();
    let mut fits = true;
    let mut keep = |before: f32, after: f64| {
        fits &= !before.is_finite() || (after as f32).is_finite();
        after as f32
    };
    for (filter, (scale, _)) in weight.as_mut_slice().chunks_exact_mut(per_channel.max(1)).zip(affine) {
        filter.iter_mut().for_each(|w| *w = keep(*w, f64::from(*w) * scale));
    }
    let old = |o: usize| conv.bias().map_or(0.0, |bias| bias.as_slice()[o]);
    let bias = affine.iter().enumerate().map(|(o, (scale, shift))| keep(old(o), f64::from(old(o)) * scale + shift)).collect();
    if !fits {
        return Ok(None);
    }
    Conv2d::new(conv.geometry().clone(), weight, Some(Tensor::new([affine.len()], bias)?)).map(Some)
}
