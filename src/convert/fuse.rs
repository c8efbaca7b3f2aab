//! Folding batch norm into the convolution before it.

use crate::error::Result;
use crate::nn::Model;
use crate::nn::rewrite::fold::fold_into;

/// The same model with every batch norm folded into the float convolution that feeds it and nothing else.
///
/// With `scale = gamma / sqrt(var + eps)` and `shift = beta - mean · scale`, both in f64,
/// `weight'[o] = weight[o] · scale[o]` and `bias'[o] = bias[o] · scale[o] + shift[o]`. The convolution keeps its name and
/// writes the edge that the batch norm wrote, so every other value of the model keeps its meaning. The function is the
/// same up to the rounding of f32.
///
/// A batch norm stays where it is when its input is read by another node too, is an output of the model, or comes from
/// something else than a float convolution, and when a folded number would leave the range of f32. What was folded, and
/// what stayed and why, is in [`Model::conversion`].
///
/// # Errors
/// None that a model which was built can meet.
pub fn fold_batch_norm(model: &Model) -> Result<Model> {
    let folding = fold_into(model, |_| true)?;
    let mut conversion = model.conversion().cloned().unwrap_or_default();
    conversion.folded.extend(folding.folded);
    // A second folding says the same of what the first one left.
    let known = std::mem::take(&mut conversion.skipped);
    conversion.skipped = known.into_iter().filter(|known| folding.stayed.iter().all(|stayed| stayed.name != known.name)).collect();
    conversion.skipped.extend(folding.stayed);
    let changed = model.conversion().is_some() || !conversion.folded.is_empty() || !conversion.skipped.is_empty();
    Ok(model.with_nodes(folding.nodes, changed.then_some(conversion)))
}
