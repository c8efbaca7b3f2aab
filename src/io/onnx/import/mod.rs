//! From a file's nodes to a [`Model`].
//!
//! In the order of the file's graph: a node whose inputs are all constant is computed now, if that takes little memory; a
//! node whose weights are constant becomes a layer, which can be quantized; any other becomes the operator that the
//! standard describes. Operators that are not supported are looked for first, so that the error names them all.

mod call;
mod layers;
mod table;

use std::collections::{HashMap, HashSet};

use call::{Argument, Built, Call};

use super::attribute::Attributes;
use super::graph::{Graph, Node};
use crate::error::{Error, Result};
use crate::nn::{Edge, Layer, Model, ModelBuilder, evaluate_within};
use crate::tensor::{DType, Value};

/// Elements that a constant computed while loading may have, beyond twice the bytes of its inputs.
const FOLDED: usize = 1 << 16;

/// The model of a graph.
///
/// # Errors
/// [`Error::Unsupported`] naming every operator that the crate does not know, [`Error::Layer`] naming the node around what
/// is wrong with it.
pub(super) fn import(graph: Graph) -> Result<Model> {
    check_operators(&graph)?;
    let Graph { opset, inputs, initializers, nodes, outputs, .. } = graph;
    let (mut shells, mut attributes) = (Vec::with_capacity(nodes.len()), Vec::with_capacity(nodes.len()));
    for node in nodes {
        attributes.push(node.attributes);
        shells.push(Shell { name: node.name, operator: node.operator, domain: node.domain, inputs: node.inputs, outputs: node.outputs });
    }
    let mut importer = Importer::new(opset, &shells, &outputs);
    for input in inputs {
        let dims = input.dims.ok_or_else(|| Error::Unsupported {
            what: format!("input `{}` without a number of axes", input.name),
            way_out: "export the model with the shapes of its inputs; symbolic lengths will do".into(),
        })?;
        let edge = importer.builder.input(&input.name, input.dtype, &dims)?;
        importer.values.insert(input.name, Known { edge: Some(edge), dtype: input.dtype, rank: Some(dims.len()), constant: None });
    }
    for (name, value) in initializers {
        importer.values.insert(name, Known::constant(value));
    }
    for (index, attributes) in attributes.into_iter().enumerate() {
        importer.node(index, attributes).map_err(|e| e.in_layer(&shells[index].name))?;
    }
    for name in &outputs {
        let edge = importer.edge(name)?;
        importer.builder.output(name, edge)?;
    }
    importer.builder.build()
}

/// Whether every operator of the graph is known.
fn check_operators(graph: &Graph) -> Result<()> {
    let mut unknown: Vec<(String, usize, &str)> = Vec::new();
    for node in graph.nodes.iter().filter(|node| !table::knows(&node.domain, &node.operator)) {
        let name = if node.domain.is_empty() { node.operator.clone() } else { format!("{}:{}", node.domain, node.operator) };
        match unknown.iter_mut().find(|(other, ..)| *other == name) {
            Some((_, count, _)) => *count += 1,
            None => unknown.push((name, 1, &node.name)),
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = unknown.iter().map(|(op, count, first)| format!("{op} ({count}, first in `{first}`)")).collect();
    let own = |node: &Node| graph.functions.contains(&(node.domain.clone(), node.operator.clone()));
    let way_out = match graph.nodes.iter().any(own) {
        true => "the file defines some of them as functions: inline those (`onnx.inliner.inline_local_functions`)",
        false => "export the model without them, or with a lower opset that spells them out",
    };
    Err(Error::Unsupported { what: format!("a model with unsupported ONNX operators, {},", list.join(", ")), way_out: way_out.into() })
}

/// A node without its attributes.
struct Shell {
    name: String,
    operator: String,
    domain: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

/// What a name of the file stands for.
#[derive(Clone)]
struct Known {
    edge: Option<Edge>,
    dtype: DType,
    rank: Option<usize>,
    constant: Option<Value>,
}

impl Known {
    fn constant(value: Value) -> Self {
        Known { edge: None, dtype: value.dtype(), rank: Some(value.shape().rank()), constant: Some(value) }
    }
}

struct Importer<'f> {
    opset: i64,
    shells: &'f [Shell],
    builder: ModelBuilder,
    values: HashMap<String, Known>,
    /// Nodes that read each name.
    readers: HashMap<&'f str, Vec<usize>>,
    outputs: HashSet<&'f str>,
    /// Nodes that another one took in.
    merged: HashSet<usize>,
}

impl<'f> Importer<'f> {
    fn new(opset: i64, shells: &'f [Shell], outputs: &'f [String]) -> Self {
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, shell) in shells.iter().enumerate() {
            for name in shell.inputs.iter().filter(|name| !name.is_empty()) {
                readers.entry(name).or_default().push(index);
            }
        }
        let outputs = outputs.iter().map(String::as_str).collect();
        Importer { opset, shells, builder: Model::builder(), values: HashMap::new(), readers, outputs, merged: HashSet::new() }
    }

    fn known(&self, name: &str) -> Result<&Known> {
        self.values.get(name).ok_or_else(|| Error::Unknown { what: "value", name: name.to_owned(), present: self.values.keys().collect() })
    }

    /// The edge of a name: a constant becomes part of the graph when something reads it there.
    fn edge(&mut self, name: &str) -> Result<Edge> {
        let Known { edge, constant, .. } = self.known(name)?.clone();
        match (edge, constant) {
            (None, Some(value)) => {
                let edge = self.builder.constant(name, value)?;
                self.values.get_mut(name).expect("just looked up").edge = Some(edge);
                Ok(edge)
            }
            (edge, _) => Ok(edge.expect("a name stands for an edge or a constant")),
        }
    }

    fn node(&mut self, index: usize, attributes: Attributes) -> Result<()> {
        let shell = &self.shells[index];
        if self.merged.contains(&index) {
            return attributes.finish();
        }
        let mut arguments = Vec::with_capacity(shell.inputs.len());
        for name in &shell.inputs {
            let argument = |known: &Known| Argument { dtype: known.dtype, rank: known.rank, constant: known.constant.clone() };
            arguments.push(if name.is_empty() { None } else { Some(argument(self.known(name)?)) });
        }
        let (operator, domain) = (shell.operator.as_str(), shell.domain.as_str());
        let mut call = Call { operator, domain, opset: self.opset, arguments, outputs: shell.outputs.len(), attributes };
        let built = match operator {
            "Constant" if domain.is_empty() => {
                let value = table::constant(&mut call.attributes)?;
                self.constants(shell, vec![value]);
                return call.attributes.finish();
            }
            "MatMul" if domain.is_empty() => self.linear(shell, &call)?,
            _ => None,
        };
        let (outputs, built) = match built {
            Some((outputs, built)) => (outputs, built),
            None => (&shell.outputs, table::build(&mut call)?),
        };
        if let ([layer], Some(inputs)) = (built.chain.as_slice(), call.constants().filter(|_| built.reads.is_none())) {
            let given: usize = inputs.iter().flatten().map(|value| value.bytes().len()).sum();
            if let Some(values) = evaluate_within(layer, &inputs, FOLDED.saturating_add(given.saturating_mul(2)))? {
                self.constants(shell, values);
                return call.attributes.finish();
            }
        }
        call.attributes.finish()?;
        self.add(shell, outputs, built)
    }

    fn constants(&mut self, shell: &Shell, values: Vec<Value>) {
        for (name, value) in shell.outputs.iter().zip(values).filter(|(name, _)| !name.is_empty()) {
            self.values.insert(name.clone(), Known::constant(value));
        }
    }

    /// A product with a constant matrix, with the sum with a constant row if that is all that follows; and what it writes.
    fn linear(&mut self, shell: &'f Shell, call: &Call<'_>) -> Result<Option<(&'f Vec<String>, Built)>> {
        let Some(weight) = call.constant::<f32>(1) else { return Ok(None) };
        let written = shell.outputs[0].as_str();
        if let (Some(&[reader]), false) = (self.readers.get(written).map(Vec::as_slice), self.outputs.contains(written)) {
            let add = &self.shells[reader];
            let other = add.inputs.iter().find(|name| *name != written).filter(|_| add.operator == "Add" && add.domain.is_empty());
            if let Some(Value::F32(bias)) = other.and_then(|other| self.values.get(other)?.constant.as_ref())
                && let Some(linear) = layers::linear(weight, Some(bias))?
            {
                self.merged.insert(reader);
                return Ok(Some((&add.outputs, Built::of(linear, &[0]))));
            }
        }
        Ok(layers::linear(weight, None)?.map(|linear| (&shell.outputs, Built::of(linear, &[0]))))
    }

    /// Adds what a node became to the graph.
    fn add(&mut self, shell: &Shell, outputs: &[String], built: Built) -> Result<()> {
        let Built { chain, main, reads } = built;
        let mut inputs = Vec::new();
        for i in reads.unwrap_or_else(|| (0..shell.inputs.len()).collect()) {
            inputs.push(match shell.inputs.get(i).filter(|name| !name.is_empty()) {
                Some(name) => Some(self.edge(name)?),
                None => None,
            });
        }
        while matches!(inputs.last(), Some(None)) {
            inputs.pop();
        }
        let first = shell.inputs.first().and_then(|name| self.values.get(name)?.rank);
        let rank = rank_after(&chain, first);
        let last = chain.len() - 1;
        for (i, layer) in chain.into_iter().enumerate() {
            let mut name = if i == main { shell.name.clone() } else { format!("{}/{}", shell.name, layer.kind()) };
            // ONNX lets a node be called like a value that is not its own.
            while !(self.builder.is_free(&name) || i == main && outputs.contains(&name)) {
                name.push_str(".node");
            }
            let names: Vec<Option<&str>> = outputs.iter().map(|name| (!name.is_empty()).then_some(name.as_str())).collect();
            let edges = self.builder.add_node(&name, if i == last { &names } else { &[] }, layer, &inputs)?;
            if i == last {
                for (name, &edge) in outputs.iter().zip(&edges).filter(|(name, _)| !name.is_empty()) {
                    let known = Known { edge: Some(edge), dtype: self.builder.dtype_of(edge), rank, constant: None };
                    self.values.insert(name.clone(), known);
                }
            }
            inputs = vec![Some(edges[0])];
        }
        Ok(())
    }
}

/// Number of axes of what these layers write, where it is known, for a first input of `first` axes.
fn rank_after(chain: &[Layer], first: Option<usize>) -> Option<usize> {
    match chain {
        [Layer::Conv2d(_)] => Some(4),
        [_, Layer::Conv2d(_), _] => Some(3),
        [Layer::BatchNorm2d(_) | Layer::Relu | Layer::Relu6] => first,
        [Layer::Operator(operator)] if KEEPS_RANK.contains(&operator.name()) => first,
        _ => None,
    }
}

/// Operators whose output has as many axes as their first input.
const KEEPS_RANK: &[&str] = &[
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Gelu",
    "Mish",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Dropout",
    "Identity",
    "Pad",
    "Concat",
    "Transpose",
    "BatchNormalization",
    "Resize",
    "Cast",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::onnx::graph::{Input, Node};
    use crate::nn::Dim;
    use crate::tensor::Tensor;

    fn node(name: &str, operator: &str, inputs: &[&str], output: &str) -> Node {
        Node {
            name: name.into(),
            operator: operator.into(),
            domain: String::new(),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: vec![output.into()],
            attributes: Attributes::new(name, operator, Vec::new(), &mut Default::default()).unwrap(),
        }
    }

    fn graph(nodes: Vec<Node>) -> Graph {
        Graph {
            opset: 21,
            inputs: vec![Input { name: "x".into(), dtype: DType::F32, dims: Some(vec![Dim::Any, Dim::Fixed(2)]) }],
            initializers: vec![
                ("w".into(), Tensor::new([2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap().into()),
                ("b".into(), Tensor::new([2], vec![10.0f32, 20.0]).unwrap().into()),
            ],
            nodes,
            outputs: vec!["y".into()],
            functions: HashSet::new(),
        }
    }

    #[test]
    fn a_product_takes_its_bias_in_and_names_may_be_those_of_other_values() {
        // Each node is called like a value that it does not write.
        let nodes = vec![node("x", "MatMul", &["x", "w"], "p"), node("w", "Add", &["b", "p"], "q"), node("q", "Relu", &["q"], "y")];
        let model = import(graph(nodes)).unwrap();
        let names: Vec<&str> = model.nodes().iter().map(|node| node.name()).collect();
        assert_eq!(names, ["x.node", "q.node"]);
        let y = model.forward(&Tensor::new([1, 2], vec![1.0, -8.0]).unwrap()).unwrap();
        assert_eq!(y.as_slice(), [0.0, 0.0]);
        let y = model.forward(&Tensor::new([1, 2], vec![1.0, 1.0]).unwrap()).unwrap();
        assert_eq!(y.as_slice(), [14.0, 26.0]);
    }

    #[test]
    fn a_product_that_others_see_keeps_its_sum_apart() {
        let mut graph = graph(vec![node("product", "MatMul", &["x", "w"], "p"), node("sum", "Add", &["p", "b"], "y")]);
        graph.outputs.push("p".into());
        let model = import(graph).unwrap();
        assert_eq!(model.nodes().len(), 2);
    }

    #[test]
    fn what_is_constant_is_computed_once() {
        let nodes = vec![node("twice", "Add", &["w", "w"], "v"), node("product", "MatMul", &["x", "v"], "y")];
        let model = import(graph(nodes)).unwrap();
        assert!(
            matches!(model.nodes(), [only] if matches!(only.layer(), Layer::Linear(linear) if linear.weight().as_slice() == [2.0, 6.0, 4.0, 8.0]))
        );
    }

    #[test]
    fn all_unknown_operators_are_named_at_once() {
        let nodes = vec![node("a", "Loop", &["x"], "p"), node("b", "NonZero", &["p"], "q"), node("c", "Loop", &["q"], "y")];
        let error = import(graph(nodes)).unwrap_err().to_string();
        let parts = ["unsupported", "Loop (2, first in `a`)", "NonZero (1, first in `b`)"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
