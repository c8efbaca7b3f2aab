//! A model as an executor runs it: the same function in fewer nodes.
//!
//! What exporters spell out is put together again: batch norm goes into the convolution before it (`fold`), GELU, Swish and layer
//! normalization become the one operator that they are (`patterns`), so do the products and the softmax of attention
//! (`scaled_products`), and transposes around products of matrices are read in place (`attention`). The model that the caller sees keeps its nodes.

mod attention;
pub(crate) mod fold;
mod patterns;
mod scaled_products;

use crate::error::Result;
use crate::nn::{Edge, Layer, Model, Node, Wiring};

/// The model to run where no value is shown, with attention as one operator if it may be; `None` when it is the given one.
pub(super) fn for_execution(model: &Model, with_attention: bool) -> Result<Option<Model>> {
    let mut changed = false;
    let mut rewritten = model.clone();
    if model.nodes().iter().any(|node| matches!(node.layer(), Layer::BatchNorm2d(_))) {
        rewritten = model.with_nodes(fold::fold_into(model, |_| true)?.nodes, None);
        changed = true;
    }
    let products: fn(&mut Graph<'_>) -> Result<()> = if with_attention { scaled_products::attention } else { |_| Ok(()) };
    for pass in [patterns::gelu, patterns::layer_norm, patterns::swish, attention::softmax, products, attention::transposes] {
        let mut graph = Graph::new(&rewritten);
        pass(&mut graph)?;
        if graph.changed {
            rewritten = graph.into_model();
            changed = true;
        }
    }
    Ok(changed.then_some(rewritten))
}

/// The model that is quantized: batch norms folded, and functions that exporters spell out put together; and what became of the
/// batch norms.
pub(crate) fn for_quantization(model: &Model) -> Result<(Model, fold::Folding)> {
    let mut folding = fold::fold_into(model, |_| true)?;
    let mut rewritten = model.with_nodes(std::mem::take(&mut folding.nodes), None);
    for pass in [patterns::gelu, patterns::layer_norm, patterns::swish] {
        let mut graph = Graph::new(&rewritten);
        pass(&mut graph)?;
        if graph.changed {
            rewritten = graph.into_model();
        }
    }
    Ok((rewritten, folding))
}

/// A model's nodes while some are replaced.
struct Graph<'m> {
    model: &'m Model,
    nodes: Vec<Option<Node>>,
    wiring: Wiring<'m>,
    changed: bool,
}

impl<'m> Graph<'m> {
    fn new(model: &'m Model) -> Self {
        Graph { model, nodes: model.nodes().iter().cloned().map(Some).collect(), wiring: Wiring::new(model), changed: false }
    }

    /// The node, unless it was taken out.
    fn node(&self, index: usize) -> Option<&Node> {
        self.nodes[index].as_ref()
    }

    /// The node that writes the edge, unless it was taken out.
    fn producer(&self, edge: Edge) -> Option<(usize, &Node)> {
        let index = self.wiring.producers[edge.index]?;
        Some((index, self.node(index)?))
    }

    /// The one node that reads what `index` writes, where that is one value and nobody else sees it.
    fn sole_reader(&self, index: usize) -> Option<(usize, &Node)> {
        let &[edge] = self.node(index)?.outputs() else { return None };
        let reader = self.wiring.sole_reader(edge)?;
        Some((reader, self.node(reader)?))
    }

    fn is_private(&self, edge: Edge, reader: usize) -> bool {
        self.wiring.is_private(edge, reader)
    }

    fn scalar(&self, edge: Edge) -> Option<f32> {
        self.wiring.scalar(edge)
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
    use crate::nn::operator::{Binary, MatMul, Pow, Softmax, Transpose, Unary};
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
        let rewritten = for_execution(&net.build().unwrap(), true).unwrap().unwrap();
        let names: Vec<&str> = rewritten.nodes().iter().map(Node::name).collect();
        assert_eq!(names, ["scores", "weights", "y"]);
    }

    #[test]
    fn gelu_by_tanh_is_one_node() {
        // With x³ by a power and by products, of another exponent and weight.
        for (by_power, exponent, weight, is_gelu) in
            [(true, 3.0, 0.044715, true), (false, 3.0, 0.044715, true), (true, 2.0, 0.044715, false), (false, 3.0, 0.05, false)]
        {
            let mut net = Model::builder();
            let x = net.input("x", DType::F32, &[Dim::Any; 2]).unwrap();
            let mut number = |name: &str, x: f32| net.constant(name, Tensor::new(Vec::new(), vec![x]).unwrap()).unwrap();
            let (one, half, root) = (number("one", 1.0), number("half", 0.5), number("root", (2.0 / std::f32::consts::PI).sqrt()));
            let (exponent, weight) = (number("exponent", exponent), number("weight", weight));
            let cube = if by_power {
                net.add("cube", Pow, &[x, exponent]).unwrap()
            } else {
                let square = net.add("square", Binary::Mul, &[x, x]).unwrap();
                net.add("cube", Binary::Mul, &[x, square]).unwrap()
            };
            let weighed = net.add("weighed", Binary::Mul, &[weight, cube]).unwrap();
            let sum = net.add("sum", Binary::Add, &[x, weighed]).unwrap();
            let scaled = net.add("scaled", Binary::Mul, &[root, sum]).unwrap();
            let tanh = net.add("tanh", Unary::Tanh, &[scaled]).unwrap();
            let plus = net.add("plus", Binary::Add, &[one, tanh]).unwrap();
            let halved = net.add("halved", Binary::Mul, &[half, x]).unwrap();
            let y = net.add("y", Binary::Mul, &[halved, plus]).unwrap();
            net.output("y", y).unwrap();
            let model = net.build().unwrap();
            let rewritten = for_quantization(&model).unwrap().0;
            let kinds: Vec<String> = rewritten.nodes().iter().map(|node| node.layer().kind().to_string()).collect();
            assert_eq!(kinds.len() == 1, is_gelu, "{kinds:?}");
            let x = Tensor::new([2, 5], (0..10).map(|i| i as f32 - 4.5).collect()).unwrap();
            // Every value is shown, so that nothing runs as one.
            let (apart, one) = (model.forward_with(&x, |_| Ok(())).unwrap(), rewritten.forward(&x).unwrap());
            for (a, b) in apart.as_slice().iter().zip(one.as_slice()) {
                assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{a} and {b}");
            }
        }
    }

    #[test]
    fn attention_is_one_node() {
        for masked in [false, true] {
            let mut net = Model::builder();
            let [q, k, v] = ["q", "k", "v"].map(|name| net.input(name, DType::F32, &[Dim::Any; 3]).unwrap());
            let mut number = |name: &str, x: f32| net.constant(name, Tensor::new(Vec::new(), vec![x]).unwrap()).unwrap();
            let (half, third) = (number("half", 0.5), number("third", 1.0 / 3.0));
            let halved = net.add("halved", Binary::Mul, &[q, half]).unwrap();
            let turned = net.add("turned", Transpose::new().with_perm([0, 2, 1]), &[k]).unwrap();
            let mut x = net.add("scores", MatMul::new(), &[halved, turned]).unwrap();
            if masked {
                let mask = net.input("mask", DType::F32, &[Dim::Any; 3]).unwrap();
                x = net.add("scaled", Binary::Mul, &[third, x]).unwrap();
                x = net.add("masked", Binary::Add, &[mask, x]).unwrap();
            }
            let weights = net.add("weights", Softmax::new(-1), &[x]).unwrap();
            let y = net.add("y", MatMul::new(), &[weights, v]).unwrap();
            net.output("y", y).unwrap();
            let model = net.build().unwrap();
            let names = |with_attention: bool| -> Vec<String> {
                let rewritten = for_execution(&model, with_attention).unwrap().unwrap();
                rewritten.nodes().iter().map(|node| node.name().to_owned()).collect()
            };
            assert_eq!(names(true), ["y"]);
            assert!(names(false).ends_with(&["scores", "weights", "y"].map(String::from)), "{:?}", names(false));
        }
    }

    #[test]
    fn gates_become_the_function_that_they_are() {
        let names = |gate: Unary, other: bool| -> Vec<String> {
            let mut net = Model::builder();
            let x = net.input("x", DType::F32, &[Dim::Any]).unwrap();
            let z = net.input("z", DType::F32, &[Dim::Any]).unwrap();
            let gate = net.add("gate", gate, &[x]).unwrap();
            let y = net.add("y", Binary::Mul, &[gate, if other { z } else { x }]).unwrap();
            net.output("y", y).unwrap();
            let model = net.build().unwrap();
            let rewritten = for_quantization(&model).unwrap().0;
            rewritten.nodes().iter().map(|node| node.layer().kind().to_string()).collect()
        };
        assert_eq!(names(Unary::Sigmoid, false), ["Swish"]);
        assert_eq!(names(Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }, false), ["HardSwish"]);
        // Of another value, or another slope, it is something else.
        assert_eq!(names(Unary::Sigmoid, true), ["Sigmoid", "Mul"]);
        assert_eq!(names(Unary::HardSigmoid { alpha: 0.2, beta: 0.5 }, false), ["HardSigmoid", "Mul"]);
    }
}
