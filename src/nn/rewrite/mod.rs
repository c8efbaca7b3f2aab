//! A model as an executor runs it: the same function in fewer nodes.
//!
//! What exporters spell out is put together again: batch norm goes into the convolution before it (`fold`), GELU and layer
//! normalization become the one operator that they are (`patterns`), transposes around a product of matrices are read in
//! place (`attention`). The model that the caller sees keeps its nodes.

mod attention;
pub(crate) mod fold;
mod patterns;

use std::collections::HashSet;

use crate::error::Result;
use crate::nn::{Edge, Layer, Model, Node};
use crate::tensor::Value;

/// The model to run where no value is shown; `None` when it is the given one.
pub(super) fn for_execution(model: &Model) -> Result<Option<Model>> {
    let mut changed = false;
    let mut rewritten = model.clone();
    if model.nodes().iter().any(|node| matches!(node.layer(), Layer::BatchNorm2d(_))) {
        rewritten = model.with_nodes(fold::fold_into(model, |_| true)?.nodes, None);
        changed = true;
    }
    for pass in [patterns::gelu, patterns::layer_norm, attention::softmax, attention::transposes] {
        let mut graph = Graph::new(&rewritten);
        pass(&mut graph)?;
        if graph.changed {
            rewritten = graph.into_model();
            changed = true;
        }
    }
    Ok(changed.then_some(rewritten))
}

/// A model's nodes while some are replaced.
struct Graph<'m> {
    model: &'m Model,
    nodes: Vec<Option<Node>>,
    /// By edge: the node that writes it, and those that read it.
    producers: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
    constants: Vec<Option<&'m Value>>,
    outputs: HashSet<usize>,
    changed: bool,
}

impl<'m> Graph<'m> {
    fn new(model: &'m Model) -> Self {
        let edges = model.edge_count();
        let (mut producers, mut readers, mut constants) = (vec![None; edges], vec![Vec::new(); edges], vec![None; edges]);
        for (index, node) in model.nodes().iter().enumerate() {
            node.outputs().iter().for_each(|edge| producers[edge.index] = Some(index));
            node.reads().for_each(|edge| readers[edge.index].push(index));
        }
        model.constants().iter().for_each(|(edge, value)| constants[edge.index] = Some(value));
        let outputs = model.outputs().iter().map(|output| output.edge().index).collect();
        Graph { model, nodes: model.nodes().iter().cloned().map(Some).collect(), producers, readers, constants, outputs, changed: false }
    }

    /// The node, unless it was taken out.
    fn node(&self, index: usize) -> Option<&Node> {
        self.nodes[index].as_ref()
    }

    /// The node that writes the edge, unless it was taken out.
    fn producer(&self, edge: Edge) -> Option<(usize, &Node)> {
        let index = self.producers[edge.index]?;
        Some((index, self.node(index)?))
    }

    /// The one node that reads what `index` writes, where that is one value and nobody else sees it.
    fn sole_reader(&self, index: usize) -> Option<(usize, &Node)> {
        let &[edge] = self.node(index)?.outputs() else { return None };
        match self.readers[edge.index].as_slice() {
            &[reader] if !self.outputs.contains(&edge.index) => Some((reader, self.node(reader)?)),
            _ => None,
        }
    }

    /// Whether `reader` alone sees the edge, as one of its inputs and not as two.
    fn is_private(&self, edge: Edge, reader: usize) -> bool {
        !self.outputs.contains(&edge.index) && self.readers[edge.index] == [reader]
    }

    /// The number that the edge always holds. One with axes, though single, could give more of them to what it meets.
    fn scalar(&self, edge: Edge) -> Option<f32> {
        match self.constants[edge.index]? {
            Value::F32(tensor) if tensor.dims().is_empty() => Some(tensor.as_slice()[0]),
            _ => None,
        }
    }

    /// Of two operands, the other one where one always holds the number `wanted`, but for the last digits of f32.
    fn other_than(&self, node: &Node, wanted: f32) -> Option<Edge> {
        let &[Some(a), Some(b)] = node.inputs() else { return None };
        let holds = |edge: Edge| self.scalar(edge).is_some_and(|x| (x - wanted).abs() <= 1e-6 * wanted.abs());
        if holds(b) {
            Some(a)
        } else if holds(a) {
            Some(b)
        } else {
            None
        }
    }

    /// Puts `layer` in the place of node `at`, whose name and outputs it keeps, reading `inputs`; the nodes `gone` go.
    fn replace(&mut self, at: usize, layer: Layer, inputs: Vec<Option<Edge>>, gone: &[usize]) {
        for &index in gone {
            self.nodes[index] = None;
        }
        let node = &self.model.nodes()[at];
        self.nodes[at] = Some(Node { layer, inputs, ..node.clone() });
        self.changed = true;
    }

    fn into_model(self) -> Model {
        self.model.with_nodes(self.nodes.into_iter().flatten().collect(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Dim;
    use crate::nn::operator::{Binary, MatMul, Softmax, Transpose, Unary};
    use crate::tensor::{DType, Tensor};

    #[test]
    fn what_an_exporter_spells_out_runs_as_one() {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any; 3]).unwrap();
        let mut number = |name: &str, x: f32| net.constant(name, Tensor::new(Vec::new(), vec![x]).unwrap()).unwrap();
        let (root, one, half) = (number("root", 2f32.sqrt()), number("one", 1.0), number("half", 0.5));
        let turned = net.add("turned", Transpose::new().with_perm([0, 2, 1]), &[x]).unwrap();
        let scores = net.add("scores", MatMul::new(), &[x, turned]).unwrap();
        let scaled = net.add("scaled", Binary::Mul, &[scores, half]).unwrap();
        let weights = net.add("weights", Softmax::new(-1), &[scaled]).unwrap();
        let divided = net.add("divided", Binary::Div, &[weights, root]).unwrap();
        let erf = net.add("erf", Unary::Erf, &[divided]).unwrap();
        let plus = net.add("plus", Binary::Add, &[erf, one]).unwrap();
        let product = net.add("product", Binary::Mul, &[weights, plus]).unwrap();
        let y = net.add("y", Binary::Mul, &[product, half]).unwrap();
        net.output("y", y).unwrap();
        let rewritten = for_execution(&net.build().unwrap()).unwrap().unwrap();
        let names: Vec<&str> = rewritten.nodes().iter().map(Node::name).collect();
        assert_eq!(names, ["scores", "weights", "y"]);
    }
}
