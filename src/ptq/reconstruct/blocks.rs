//! Where a network is cut into blocks.

use std::collections::HashSet;

use super::Parts;
use crate::convert::StaticPlan;
use crate::error::Result;
use crate::nn::{Dim, Edge, Model, Node, Wiring};
use crate::tensor::DType;

/// Nodes that are rebuilt together.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Positions in the plan's model, in order.
    pub nodes: Vec<usize>,
    /// Those of them with weights in codes.
    pub anchors: Vec<usize>,
    /// What it reads of what quantization changes.
    pub inputs: Vec<Edge>,
    /// What it is judged by: what is read after it, and outputs of the model.
    pub outputs: Vec<Edge>,
    /// Those of them that are read after it: they are rounded there.
    pub open: Vec<Edge>,
    /// Its position is the last that reads these.
    pub done: Vec<Edge>,
}

/// By edge: whether quantization changes it, or what follows from it.
fn changed(plan: &StaticPlan) -> Vec<bool> {
    let (model, grids) = (plan.model(), plan.grids());
    let mut changed: Vec<bool> = (0..model.edge_count()).map(|edge| grids.contains_key(&edge)).collect();
    for (index, node) in model.nodes().iter().enumerate() {
        if plan.anchor(index).is_some() || node.reads().any(|edge| changed[edge.index]) {
            node.outputs().iter().for_each(|edge| changed[edge.index] = true);
        }
    }
    changed
}

/// The blocks with weights in codes, in the order in which they run, and what runs between them. A cut goes through floats, or through
/// codes where they are made: never between a layer and what its output stage does, or what only moves its codes.
pub(super) fn blocks(plan: &StaticPlan, parts: Parts) -> Vec<Block> {
    let (model, grids, changed) = (plan.model(), plan.grids(), changed(plan));
    let nodes = model.nodes();
    let wiring = Wiring::new(model);
    let ends: HashSet<usize> = (0..nodes.len()).filter_map(|index| plan.anchor(index)).map(|anchor| anchor.end).collect();
    let may_cut = |edge: Edge| {
        let is_float = wiring.producers[edge.index].is_none_or(|node| !plan.is_integer(node));
        model.edge_type(edge) == DType::F32 && (grids.contains_key(&edge.index) || is_float || ends.contains(&edge.index))
    };
    let inputs = model.inputs().iter().map(|input| input.edge()).filter(|edge| changed[edge.index]);
    let mut live: Vec<Edge> = inputs.collect();
    let (mut found, mut begun) = (Vec::new(), Block::default());
    let last_anchor = (0..nodes.len()).rev().find(|&index| plan.anchor(index).is_some());
    for (index, node) in nodes.iter().enumerate() {
        if !node.outputs().iter().any(|edge| changed[edge.index]) {
            continue;
        }
        begun.take(index, plan.anchor(index).is_some(), node, &changed);
        live.extend(node.outputs().iter().copied());
        live.retain(|edge| wiring.readers[edge.index].iter().any(|&reader| reader > index));
        let is_place = match parts {
            Parts::Blocks => live.len() == 1 && may_cut(live[0]),
            Parts::Layers => !live.is_empty() && live.iter().all(|&edge| may_cut(edge)),
        };
        if is_place && !begun.anchors.is_empty() {
            found.push(std::mem::take(&mut begun).end(&live, model, &wiring));
        } else if is_place && last_anchor.is_some_and(|last| last < index) {
            break;
        }
    }
    if !begun.anchors.is_empty() {
        found.push(begun.end(&[], model, &wiring));
    }
    found
}

impl Block {
    fn take(&mut self, index: usize, anchor: bool, node: &Node, changed: &[bool]) {
        self.nodes.push(index);
        if anchor {
            self.anchors.push(index);
        }
        self.inputs.extend(node.reads().filter(|edge| changed[edge.index]));
    }

    /// Of `live`, what is read after it, it leaves what it writes itself.
    fn end(mut self, live: &[Edge], model: &Model, wiring: &Wiring<'_>) -> Self {
        let written: HashSet<usize> = self.nodes.iter().flat_map(|&node| model.nodes()[node].outputs()).map(|edge| edge.index).collect();
        let last = self.nodes.last().copied().unwrap_or(0);
        let in_order = |edges: &mut Vec<Edge>| {
            edges.sort_unstable();
            edges.dedup();
        };
        in_order(&mut self.inputs);
        self.inputs.retain(|edge| !written.contains(&edge.index));
        let is_own = |edge: &Edge| written.contains(&edge.index);
        self.open = live.iter().copied().filter(is_own).collect();
        self.outputs = self.open.iter().copied().chain(model.outputs().iter().map(|output| output.edge()).filter(is_own)).collect();
        in_order(&mut self.outputs);
        self.outputs.retain(|&edge| model.edge_type(edge) == DType::F32);
        let is_done = |edge: &&Edge| wiring.readers[edge.index].iter().all(|&reader| reader <= last);
        self.done = self.inputs.iter().filter(is_done).copied().collect();
        self
    }
}

/// A block as a model of its own, and by edge of the whole model the block's.
pub(super) struct Excerpt {
    pub model: Model,
    pub edges: Vec<Option<Edge>>,
    /// Its nodes' positions in the whole model.
    pub nodes: Vec<usize>,
    /// The edges of the whole model that are its inputs.
    pub inputs: Vec<Edge>,
}

impl Excerpt {
    /// With what the block reads besides that quantization does not change: from constants and the model's own inputs.
    ///
    /// # Errors
    /// Those of [`Model::builder`].
    pub fn new(whole: &Model, block: &Block, rank: impl Fn(Edge) -> usize) -> Result<Self> {
        let wiring = Wiring::new(whole);
        let (mut wanted, mut open) = (block.nodes.iter().copied().collect::<HashSet<_>>(), block.nodes.clone());
        let mut inputs = block.inputs.clone();
        while let Some(node) = open.pop() {
            for edge in whole.nodes()[node].reads().filter(|edge| !block.inputs.contains(edge)) {
                match wiring.producers[edge.index] {
                    Some(writer) if wanted.insert(writer) => open.push(writer),
                    None if wiring.constants[edge.index].is_none() => inputs.push(edge),
                    _ => {}
                }
            }
        }
        inputs.sort_unstable();
        inputs.dedup();
        let (mut net, mut edges) = (Model::builder(), vec![None; whole.edge_count()]);
        for &edge in &inputs {
            edges[edge.index] = Some(net.input(whole.edge_name(edge), whole.edge_type(edge), &vec![Dim::Any; rank(edge)])?);
        }
        let mut nodes: Vec<usize> = wanted.into_iter().collect();
        nodes.sort_unstable();
        for &index in &nodes {
            let node = &whole.nodes()[index];
            let mut reads = Vec::with_capacity(node.inputs().len());
            for edge in node.inputs() {
                let Some(edge) = edge else {
                    reads.push(None);
                    continue;
                };
                if let (None, Some(value)) = (edges[edge.index], wiring.constants[edge.index]) {
                    edges[edge.index] = Some(net.constant(whole.edge_name(*edge), value.clone())?);
                }
                reads.push(edges[edge.index]);
            }
            let names: Vec<Option<&str>> = node.outputs().iter().map(|&edge| Some(whole.edge_name(edge))).collect();
            let written = net.add_node(node.name(), &names, node.layer().clone(), &reads)?;
            node.outputs().iter().zip(written).for_each(|(edge, own)| edges[edge.index] = Some(own));
        }
        for edge in &block.outputs {
            net.output(whole.edge_name(*edge), edges[edge.index].expect("written by a node of the block"))?;
        }
        Ok(Excerpt { model: net.build()?, edges, nodes, inputs })
    }

    /// Whether an edge of the whole model is rounded here, where it has a grid: outputs that are read later are rounded there.
    pub fn rounds(&self, block: &Block, edge: usize) -> bool {
        self.edges[edge].is_some() && block.open.iter().all(|open| open.index != edge)
    }
}
