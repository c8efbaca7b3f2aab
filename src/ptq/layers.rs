//! Replacing layers one by one by quantized twins: what dynamic and weight-only quantization share.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::nn::rewrite::fold::fold_into;
use crate::nn::{Conversion, Layer, LayerKind, Model, Node, SkipReason, Skipped};
use crate::progress::Progress;

/// Which layers are asked for and what becomes of them.
pub(super) struct Request<'r> {
    /// The kinds asked for.
    pub kinds: &'r [LayerKind],
    /// Why a layer of such a kind stays as it is; `None` when it is replaced.
    pub passes_over: &'r dyn Fn(&Node) -> Option<SkipReason>,
    /// The twin of a layer that is replaced, batch norms folded into it.
    pub twin: &'r dyn Fn(&Node) -> Result<Layer>,
}

impl Request<'_> {
    /// The model with every layer replaced that was asked for and not passed over. Batch norms are folded into the
    /// convolutions among them, and into no others.
    ///
    /// # Errors
    /// [`Error::NothingToQuantize`] when no layer is left to replace, [`Error::Cancelled`], and what `twin` returns, inside an
    /// [`Error::Layer`].
    pub fn apply(&self, model: &Model, progress: &mut Progress<'_>) -> Result<Model> {
        let mut conversion = model.conversion().cloned().unwrap_or_default();
        // What an earlier verb passed over is this model's past; the result tells of this request.
        conversion.skipped.clear();
        conversion.absent = self.kinds.iter().copied().filter(|kind| !model.kinds().iter().any(|(k, _)| k == kind)).collect();
        let requested: Vec<&Node> = model.nodes().iter().filter(|node| self.asks_for(node)).collect();
        let mut chosen: HashSet<&str> = HashSet::new();
        for node in &requested {
            match (self.passes_over)(node) {
                None => drop(chosen.insert(node.name())),
                Some(reason) => conversion.skipped.push(Skipped::new(node.name(), node.layer().kind(), reason)),
            }
        }
        if chosen.is_empty() {
            return Err(nothing(model, self.kinds, &conversion));
        }
        let folding = fold_into(model, |before| before.is_some_and(|node| chosen.contains(node.name())))?;
        conversion.folded.extend(folding.folded);
        conversion.skipped.extend(folding.stayed);
        let (mut nodes, mut done) = (Vec::with_capacity(folding.nodes.len()), 0);
        for node in folding.nodes {
            if self.asks_for(&node) {
                progress.step("quantize", node.name(), done, requested.len())?;
                done += 1;
            }
            if chosen.contains(node.name()) {
                let twin = (self.twin)(&node).map_err(|e| e.in_layer(node.name()))?;
                conversion.quantized.push(node.name().to_owned());
                nodes.push(node.with_layer(twin));
            } else {
                nodes.push(node);
            }
        }
        Ok(model.with_nodes(nodes, Some(conversion)))
    }

    fn asks_for(&self, node: &Node) -> bool {
        self.kinds.contains(&node.layer().kind())
    }
}

/// The error of a request that nothing in the model answers: what was asked for, and what is there instead.
pub(super) fn nothing(model: &Model, kinds: &[LayerKind], conversion: &Conversion) -> Error {
    let here: Vec<String> = model.kinds().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mut present = if here.is_empty() { "no layers".to_owned() } else { here.join(", ") };
    for skipped in &conversion.skipped {
        present.push_str(&format!("; `{}` was passed over: {}", skipped.name, skipped.reason));
    }
    Error::NothingToQuantize { requested: if kinds.is_empty() { "no kind at all".into() } else { list(kinds) }, present }
}

/// The kinds' names.
pub(super) fn list(kinds: &[LayerKind]) -> String {
    kinds.iter().map(LayerKind::to_string).collect::<Vec<_>>().join(", ")
}

/// The float model with those batch norms folded that were folded into the quantized one.
pub(super) fn folded_alike(float: &Model, quantized: &Model) -> Result<Model> {
    let folded = quantized.conversion().map(|conversion| conversion.folded.as_slice()).unwrap_or_default();
    let is_one = |node: Option<&Node>| node.is_some_and(|node| folded.iter().any(|(_, layer)| layer == node.name()));
    Ok(float.with_nodes(fold_into(float, is_one)?.nodes, None))
}
