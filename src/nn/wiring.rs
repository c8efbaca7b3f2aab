//! Who writes and who reads each edge of a model.

use std::collections::HashSet;

use crate::nn::{Edge, Model};
use crate::tensor::Value;

/// A model's edges, looked up by index.
pub(crate) struct Wiring<'m> {
    /// The node that writes the edge; `None` for inputs and constants.
    pub producers: Vec<Option<usize>>,
    /// The nodes that read it, one for each time.
    pub readers: Vec<Vec<usize>>,
    /// The value that it always holds.
    pub constants: Vec<Option<&'m Value>>,
    /// Edges that are outputs of the model.
    pub outputs: HashSet<usize>,
}

impl<'m> Wiring<'m> {
    pub fn new(model: &'m Model) -> Self {
        let edges = model.edge_count();
        let (mut producers, mut readers, mut constants) = (vec![None; edges], vec![Vec::new(); edges], vec![None; edges]);
        for (index, node) in model.nodes().iter().enumerate() {
            node.outputs().iter().for_each(|edge| producers[edge.index] = Some(index));
            node.reads().for_each(|edge| readers[edge.index].push(index));
        }
        model.constants().iter().for_each(|(edge, value)| constants[edge.index] = Some(value));
        let outputs = model.outputs().iter().map(|output| output.edge().index).collect();
        Wiring { producers, readers, constants, outputs }
    }

    /// Whether `reader` alone sees the edge, as one of its inputs and not as two.
    pub fn is_private(&self, edge: Edge, reader: usize) -> bool {
        !self.outputs.contains(&edge.index) && self.readers[edge.index] == [reader]
    }

    /// The node that alone sees the edge.
    pub fn sole_reader(&self, edge: Edge) -> Option<usize> {
        match self.readers[edge.index].as_slice() {
            &[reader] if !self.outputs.contains(&edge.index) => Some(reader),
            _ => None,
        }
    }

    /// The number that the edge always holds. One with axes, though single, could give more of them to what it meets.
    pub fn scalar(&self, edge: Edge) -> Option<f32> {
        match self.constants[edge.index]? {
            Value::F32(tensor) if tensor.dims().is_empty() => Some(tensor.as_slice()[0]),
            _ => None,
        }
    }
}
