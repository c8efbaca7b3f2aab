//! From a file's nodes to a [`Model`].
//!
//! In the order of the file's graph: a node whose inputs are all constant is computed now, if that takes little memory; a
//! node whose weights are constant becomes a layer, which can be quantized; any other becomes the operator that the
//! standard describes. Operators that are not supported are looked for first, so that the error names them all.
//!
//! A model that another tool quantized is read as a float model that says where its values are rounded (`rounding`, `unfold`),
//! and then becomes one in integers.

mod call;
mod codes;
mod layers;
#[cfg(test)]
mod quantized;
mod ranks;
mod rounding;
mod table;
mod unfold;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use call::{Argument, Built, Call, Source};
use codes::{Codes, Grid, WeightCodes};

use super::attribute::Attributes;
use super::graph::{Graph, Node};
use crate::convert::{Annotations, CodeRange, integers};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::{Edge, Layer, Model, ModelBuilder, evaluate_within};
use crate::tensor::{DType, Value};
#[cfg(feature = "safetensors")]
pub(in crate::io) use layers::recurrent_options;

/// Elements that a constant computed while loading may have, beyond twice the bytes of its inputs.
const FOLDED: usize = 1 << 16;

/// Bytes that all of them may have together, beyond [`FOLDED_PER_BYTE`].
const FOLDED_TOTAL: usize = 1 << 20;

/// Bytes that they may have for each byte of the file's own constants: codes that become floats four times as large are transposed and
/// reshaped. What is beyond stays to be computed by each run.
const FOLDED_PER_BYTE: usize = 16;

/// The model of a graph.
///
/// # Errors
/// [`Error::Unsupported`] naming every operator that the crate does not know, or else an input or initializer of a kind that is not
/// spoken; [`Error::Layer`] naming the node around what is wrong with it.
pub(super) fn import(graph: Graph) -> Result<Model> {
    check_operators(&graph)?;
    let Graph { opset, inputs, initializers, nodes, outputs, refused, .. } = graph;
    refused.map_or(Ok(()), Err)?;
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
        importer.names.insert(input.name.clone());
        importer.values.insert(input.name, Known { edge: Some(edge), dtype: input.dtype, rank: Some(dims.len()), ..Known::default() });
    }
    for (name, value) in initializers {
        importer.names.insert(name.clone());
        importer.allow_for(&value);
        importer.values.insert(name, Known::constant(value));
    }
    for (index, attributes) in attributes.into_iter().enumerate() {
        importer.node(index, attributes).map_err(|e| e.in_node(&shells[index].name, &shells[index].operator))?;
    }
    for name in &outputs {
        let edge = importer.edge(name)?;
        importer.builder.output(name, edge)?;
    }
    let model = importer.builder.build()?;
    match importer.annotations.ranges.is_empty() {
        true => Ok(model),
        false => integers(&model, &importer.annotations, Isa::best()),
    }
}

/// The operator that is spelled so, its inputs being whatever its node reads.
///
/// # Errors
/// [`Error::Unsupported`] for an operator that the crate does not know, [`Error::Format`] for parameters that it doesn't have.
pub(in crate::io) fn operator(name: &str, opset: i64, outputs: usize, attributes: Attributes) -> Result<Layer> {
    let (arguments, sources) = (Vec::new(), Vec::new());
    let mut call = Call { operator: name, domain: "", opset, arguments, sources, grid: None, outputs, attributes };
    let Built { mut chain, .. } = table::build(&mut call)?;
    call.attributes.finish()?;
    Ok(chain.pop().expect("a node becomes at least one layer"))
}

/// The name of a function of one code, as operators have it.
#[cfg(feature = "safetensors")]
pub(in crate::io) fn function_name(name: &str) -> Option<&'static str> {
    match name {
        "Requantize" => Some("Requantize"),
        "Clip" => Some("Clip"),
        _ => match operator(name, 28, 1, Attributes::spelled("", name, [])).ok()? {
            Layer::Operator(operator) => Some(operator.name()),
            _ => None,
        },
    }
}

/// Whether every operator of the graph is known.
fn check_operators(graph: &Graph) -> Result<()> {
    let mut unknown: Vec<(String, usize, &str)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for node in graph.nodes.iter().filter(|node| !table::knows(&node.domain, &node.operator)) {
        let name = if node.domain.is_empty() { node.operator.clone() } else { format!("{}:{}", node.domain, node.operator) };
        match places.get(&name) {
            Some(&place) => unknown[place].1 += 1,
            None => {
                places.insert(name.clone(), unknown.len());
                unknown.push((name, 1, &node.name));
            }
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
    Err(Error::Unsupported { what: format!("ONNX operators {}", list.join(", ")), way_out: way_out.into() })
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
    /// The codes that the constant was made of.
    weights: Option<Rc<WeightCodes>>,
    /// What it stands for where it is codes; the edge is then there once something needs the codes themselves.
    codes: Option<Codes>,
}

impl Known {
    fn constant(value: Value) -> Self {
        Known { dtype: value.dtype(), rank: Some(value.shape().rank()), constant: Some(value), ..Known::default() }
    }
}

impl Default for Known {
    fn default() -> Self {
        Known { edge: None, dtype: DType::F32, rank: None, constant: None, weights: None, codes: None }
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
    /// All values of the file, be they still to come.
    names: HashSet<String>,
    /// Nodes that another one took in.
    merged: HashSet<usize>,
    /// Bytes that constants computed from now on may have.
    foldable: usize,
    annotations: Annotations,
    /// Names that stand for a value of the model by another name, or will be values of the one in integers.
    aliases: HashSet<String>,
    /// By edge: copies of it that are rounded, while it is not or is to another grid.
    copies: HashMap<usize, Vec<(CodeRange, Edge)>>,
    /// By name of codes: the floats made of them.
    made: HashMap<String, Vec<(Grid, Edge)>>,
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
        Importer {
            opset,
            shells,
            builder: Model::builder(),
            values: HashMap::new(),
            readers,
            outputs,
            names: shells.iter().flat_map(|shell| &shell.outputs).cloned().collect(),
            merged: HashSet::new(),
            foldable: FOLDED_TOTAL,
            annotations: Annotations::default(),
            aliases: HashSet::new(),
            copies: HashMap::new(),
            made: HashMap::new(),
        }
    }

    fn known(&self, name: &str) -> Result<&Known> {
        self.values.get(name).ok_or_else(|| Error::Unknown { what: "value", name: name.to_owned(), present: self.values.keys().collect() })
    }

    /// The edge of a name: a constant becomes part of the graph when something reads it there, and so do codes.
    fn edge(&mut self, name: &str) -> Result<Edge> {
        let Known { edge, constant, codes, .. } = self.known(name)?.clone();
        let edge = match (edge, constant, codes) {
            (Some(edge), ..) => return Ok(edge),
            (None, Some(value), _) => self.builder.constant(name, value)?,
            (None, None, codes) => self.real_codes(name, codes.expect("a name stands for an edge, a constant or codes"))?,
        };
        self.values.get_mut(name).expect("just looked up").edge = Some(edge);
        Ok(edge)
    }

    fn node(&mut self, index: usize, attributes: Attributes) -> Result<()> {
        let shell = &self.shells[index];
        if self.merged.contains(&index) {
            return attributes.finish();
        }
        let mut call = self.call(shell, attributes)?;
        if call.domain.is_empty() && call.operator == "Constant" {
            let value = table::constant(&mut call.attributes)?;
            self.allow_for(&value);
            self.constants(shell, vec![value], None);
            return call.attributes.finish();
        }
        self.unfold(&mut call)?;
        self.move_floats(&mut call);
        let (weights, grid) = (rounding::weights(&call), rounding::grid(&call));
        let linear = match call.operator {
            "MatMul" if call.domain.is_empty() => self.linear(shell, &call)?,
            _ => None,
        };
        let (outputs, built) = match linear {
            Some((outputs, built)) => (outputs, built),
            None => (&shell.outputs, table::build(&mut call)?),
        };
        let done = self.fold(shell, &call, &built, weights)?
            || match (call.operator, grid) {
                ("QuantizeLinear", Some(grid)) => self.annotate_codes(index, &call, grid)?,
                ("DequantizeLinear", Some(grid)) => self.read_codes(index, &call, grid),
                _ => false,
            };
        if !done {
            self.add(index, outputs, &call, built)?;
            if let ("DequantizeLinear", Some(grid)) = (call.operator, grid) {
                self.annotate_floats(index, grid)?;
            }
        }
        call.attributes.finish()
    }

    /// The node with its inputs looked up.
    fn call(&self, shell: &'f Shell, attributes: Attributes) -> Result<Call<'f>> {
        let (mut arguments, mut sources) = (Vec::with_capacity(shell.inputs.len()), Vec::with_capacity(shell.inputs.len()));
        for name in &shell.inputs {
            let (argument, source) = match name.is_empty() {
                true => (None, Source::Absent),
                false => {
                    let Known { dtype, rank, constant, weights, .. } = self.known(name)?.clone();
                    (Some(Argument { dtype, rank, constant, weights }), Source::Name(name))
                }
            };
            arguments.push(argument);
            sources.push(source);
        }
        Ok(Call {
            operator: &shell.operator,
            domain: &shell.domain,
            opset: self.opset,
            arguments,
            sources,
            grid: None,
            outputs: shell.outputs.len(),
            attributes,
        })
    }

    /// A constant of the file's own.
    fn allow_for(&mut self, value: &Value) {
        self.foldable = self.foldable.saturating_add(value.bytes().len().saturating_mul(FOLDED_PER_BYTE));
    }

    /// Computes a node whose inputs are constant, if that takes little memory: whether it did.
    fn fold(&mut self, shell: &Shell, call: &Call<'_>, built: &Built, weights: Option<WeightCodes>) -> Result<bool> {
        let ([layer], Some(inputs)) = (built.chain.as_slice(), call.constants().filter(|_| built.reads.is_none() && call.grid.is_none()))
        else {
            return Ok(false);
        };
        let given: usize = inputs.iter().flatten().map(|value| value.bytes().len()).sum();
        /// Bytes of the largest element.
        const ELEMENT: usize = size_of::<f64>();
        let limit = FOLDED.saturating_add(given.saturating_mul(2)).min(self.foldable / ELEMENT);
        let Some(values) = evaluate_within(layer, &inputs, limit)? else { return Ok(false) };
        self.foldable = self.foldable.saturating_sub(values.iter().map(|value| value.bytes().len()).sum());
        self.constants(shell, values, weights);
        Ok(true)
    }

    fn constants(&mut self, shell: &Shell, values: Vec<Value>, weights: Option<WeightCodes>) {
        let weights = weights.map(Rc::new);
        for (name, value) in shell.outputs.iter().zip(values).filter(|(name, _)| !name.is_empty()) {
            self.values.insert(name.clone(), Known { weights: weights.clone(), ..Known::constant(value) });
        }
    }

    /// A product with a constant matrix, with the sum with a constant row if that is all that follows; and what it writes.
    fn linear(&mut self, shell: &'f Shell, call: &Call<'_>) -> Result<Option<(&'f Vec<String>, Built)>> {
        let (Some(weight), codes) = (call.constant::<f32>(1), call.weights(1)) else { return Ok(None) };
        let written = shell.outputs[0].as_str();
        if let (Some(&[reader]), false, None) = (self.readers.get(written).map(Vec::as_slice), self.outputs.contains(written), call.grid) {
            let add = &self.shells[reader];
            let other = add.inputs.iter().find(|name| *name != written).filter(|_| add.operator == "Add" && add.domain.is_empty());
            if let Some(Value::F32(bias)) = other.and_then(|other| self.values.get(other)?.constant.as_ref())
                && let Some(linear) = layers::linear(weight, codes, Some(bias))?
            {
                self.merged.insert(reader);
                return Ok(Some((&add.outputs, linear)));
            }
        }
        Ok(layers::linear(weight, codes, None)?.map(|linear| (&shell.outputs, linear)))
    }

    /// Adds what a node became to the graph. Outputs that are codes in the file are there what these stand for, with a grid.
    fn add(&mut self, index: usize, outputs: &[String], call: &Call<'_>, built: Built) -> Result<()> {
        let Built { chain, main, reads, mut weights } = built;
        let mut inputs = self.inputs(index, call, reads)?;
        let rank = ranks::rank_after(&chain, call);
        let last = chain.len() - 1;
        for (i, layer) in chain.into_iter().enumerate() {
            let shell = &self.shells[index].name;
            let name = match i == main {
                true => self.node_name(shell.clone(), outputs, call.grid.is_some()),
                false => self.node_name(format!("{shell}/{}", layer.kind()), &[], false),
            };
            let written = |output: &String| match call.grid {
                _ if output.is_empty() || i < last => None,
                Some(_) => Some(self.free(&format!("{output}/float"))),
                None => Some(output.clone()),
            };
            let written: Vec<Option<String>> = outputs.iter().take(if i == last { outputs.len() } else { 0 }).map(written).collect();
            let written: Vec<Option<&str>> = written.iter().map(Option::as_deref).collect();
            let edges = self.builder.add_node(&name, &written, layer, &inputs)?;
            if let Some(weights) = weights.take_if(|_| i == main) {
                self.annotations.weights.insert(name, weights);
            }
            if i == last {
                for (name, &edge) in outputs.iter().zip(&edges).filter(|(name, _)| !name.is_empty()) {
                    let dtype = self.builder.dtype_of(edge);
                    match call.grid {
                        Some(grid) => self.write_codes(name, rank, Codes { of: edge, grid, writer: index })?,
                        None => drop(self.values.insert(name.clone(), Known { edge: Some(edge), dtype, rank, ..Known::default() })),
                    }
                }
            }
            inputs = vec![Some(edges[0])];
        }
        Ok(())
    }

    /// The edges that the layer made of a node reads.
    fn inputs(&mut self, index: usize, call: &Call<'_>, reads: Option<Vec<usize>>) -> Result<Vec<Option<Edge>>> {
        let mut inputs = Vec::new();
        for i in reads.unwrap_or_else(|| (0..call.sources.len()).collect()) {
            inputs.push(match (call.sources.get(i).copied(), call.value(i)) {
                (Some(Source::Name(name)), _) => Some(self.edge(name)?),
                (Some(Source::Edge(edge)), _) => Some(edge),
                (Some(Source::Constant), Some(value)) => {
                    let name = self.free(&format!("{}/input {i}", self.shells[index].name));
                    Some(self.builder.constant(&name, value.clone())?)
                }
                _ => None,
            });
        }
        while matches!(inputs.last(), Some(None)) {
            inputs.pop();
        }
        Ok(inputs)
    }

    /// What a node is called that writes these values, or codes of them. ONNX lets it be called like a value that is not its own.
    fn node_name(&self, mut name: String, outputs: &[String], codes: bool) -> String {
        loop {
            let own = outputs.contains(&name);
            if (own && !codes) || (self.builder.is_free(&name) && (own || !self.aliases.contains(&name))) {
                return name;
            }
            name.push_str(".node");
        }
    }

    /// A name that no node has so far, and no value.
    fn free(&self, name: &str) -> String {
        let mut name = name.to_owned();
        while !self.builder.is_free(&name) || self.names.contains(&name) {
            name.push('\'');
        }
        name
    }
}

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
            refused: None,
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
        let mut graph = graph(nodes);
        graph.refused = Some(Error::Unsupported { what: "strings".into(), way_out: "use numbers".into() });
        let error = import(graph).unwrap_err().to_string();
        let parts = ["unsupported", "Loop (2, first in `a`)", "NonZero (1, first in `b`)"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
