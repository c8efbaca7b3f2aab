//! Values whose channels can be scaled: who writes them, who reads them.

use std::collections::HashMap;

use super::times;
use crate::error::Result;
use crate::nn::operator::Operator;
use crate::nn::{Edge, Layer, LayerKind, Linear, Model, SkipReason, Skipped, Wiring};
use crate::tensor::{Tensor, Value};

/// A value that linear layers alone read, and whose writer can divide it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Site {
    pub edge: Edge,
    pub writer: usize,
    readers: Vec<usize>,
    /// Constants that the writer multiplies with and adds; empty for a linear layer.
    constants: Vec<Edge>,
}

/// The sites of a model, and the linear layers that read none, with the reason.
pub(super) fn sites(model: &Model) -> (Vec<Site>, Vec<Skipped>) {
    let (wiring, mut sites, mut passed_over) = (Wiring::new(model), Vec::<Site>::new(), Vec::new());
    for node in model.nodes().iter().filter(|node| node.layer().kind() == LayerKind::Linear) {
        let Some(edge) = node.reads().next() else { continue };
        if sites.iter().any(|site| site.edge == edge) {
            continue;
        }
        match site(model, &wiring, edge) {
            Ok(site) => sites.push(site),
            Err(reason) => passed_over.push(Skipped::new(node.name(), node.layer().kind(), reason)),
        }
    }
    (sites, passed_over)
}

fn site(model: &Model, wiring: &Wiring<'_>, edge: Edge) -> Result<Site, SkipReason> {
    let unsupported = |why: String| Err(SkipReason::Unsupported(why));
    let (nodes, name) = (model.nodes(), model.edge_name(edge));
    let readers = &wiring.readers[edge.index];
    if let Some(&other) = readers.iter().find(|&&reader| !matches!(nodes[reader].layer(), Layer::Linear(_))) {
        let other = &nodes[other];
        return match other.layer().kind() {
            LayerKind::Linear => Err(SkipReason::AlreadyQuantized),
            kind => unsupported(format!("`{}` ({kind}) reads `{name}` too", other.name())),
        };
    }
    if wiring.outputs.contains(&edge.index) {
        return unsupported(format!("`{name}` is an output of the model"));
    }
    let Some(writer) = wiring.producers[edge.index] else { return unsupported(format!("`{name}` is an input of the model, or constant")) };
    let width = |reader: &usize| match nodes[*reader].layer() {
        Layer::Linear(linear) => linear.in_features(),
        _ => 0,
    };
    let width = readers.iter().map(width).next().unwrap_or(0);
    let node = &nodes[writer];
    let constants = match node.layer() {
        Layer::Linear(_) => Vec::new(),
        Layer::Operator(Operator::LayerNormalization(_)) if node.outputs().first() == Some(&edge) => {
            let constants: Vec<Edge> = node.inputs()[1..].iter().flatten().copied().collect();
            let is_own = |edge: &Edge| {
                let row = wiring.constants[edge.index].and_then(|value| value.get::<f32>()).is_some_and(|row| row.dims() == [width]);
                row && wiring.readers[edge.index] == [writer] && !wiring.outputs.contains(&edge.index)
            };
            if constants.is_empty() || !constants.iter().all(is_own) {
                return unsupported(format!("`{}` has no constants of its own, one a channel", node.name()));
            }
            constants
        }
        other => return unsupported(format!("`{}` ({}) writes `{name}`, and has no weights to divide", node.name(), other.kind())),
    };
    Ok(Site { edge, writer, readers: readers.clone(), constants })
}

impl Site {
    /// The layers that read the value, with their positions.
    pub fn readers<'m>(&self, model: &'m Model) -> impl Iterator<Item = (usize, &'m Linear)> {
        self.readers.iter().filter_map(move |&reader| match model.nodes()[reader].layer() {
            Layer::Linear(linear) => Some((reader, linear)),
            _ => None,
        })
    }

    /// The model with the value divided by the scales, and the weights that read it multiplied.
    pub fn scaled(&self, model: &Model, scales: &[f64]) -> Result<Model> {
        let mut nodes = model.nodes().to_vec();
        for &reader in &self.readers {
            if let Layer::Linear(linear) = nodes[reader].layer() {
                let scaled = Linear::new(times(linear.weight(), scales)?, linear.bias().cloned())?;
                nodes[reader] = nodes[reader].with_layer(scaled);
            }
        }
        if let Layer::Linear(linear) = nodes[self.writer].layer() {
            let (mut weight, width) = (linear.weight().clone(), linear.in_features().max(1));
            for (row, scale) in weight.as_mut_slice().chunks_exact_mut(width).zip(scales) {
                row.iter_mut().for_each(|w| *w = (f64::from(*w) / scale) as f32);
            }
            let scaled = Linear::new(weight, linear.bias().map(|bias| divided(bias, scales)))?;
            nodes[self.writer] = nodes[self.writer].with_layer(scaled);
        }
        let mut constants: HashMap<usize, Value> = HashMap::new();
        for edge in &self.constants {
            let value = model.constants().iter().find(|(other, _)| other == edge).and_then(|(_, value)| value.get::<f32>());
            constants.extend(value.map(|value| (edge.index, divided(value, scales).into())));
        }
        Ok(model.with_nodes(nodes, model.conversion().cloned()).with_constants(&constants))
    }
}

fn divided(row: &Tensor, scales: &[f64]) -> Tensor {
    let mut row = row.clone();
    row.as_mut_slice().iter_mut().zip(scales).for_each(|(x, scale)| *x = (f64::from(*x) / scale) as f32);
    row
}
