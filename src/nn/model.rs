//! The graph of a network: named nodes in topological order.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Names, Result};
use crate::kernels::RangeOf;
use crate::nn::builder::{Dim, Edge, ModelBuilder};
use crate::nn::{Conversion, Executor, Layer, LayerKind, Tap};
use crate::num::U8Grid;
use crate::tensor::{DType, Tensor, Value};

/// A network, immutable and cheap to clone.
///
/// Made by [`Model::builder`]; run by [`Model::forward`], or by an [`Executor`] that is kept.
#[derive(Clone)]
pub struct Model {
    graph: Arc<Graph>,
}

struct Graph {
    inputs: Vec<Input>,
    nodes: Vec<Node>,
    outputs: Vec<Output>,
    edges: Vec<(String, DType)>,
    constants: Vec<(Edge, Value)>,
    /// By edge: what its codes stand for.
    grids: HashMap<usize, U8Grid>,
    conversion: Option<Conversion>,
}

/// A named input of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) dims: Vec<Dim>,
    pub(crate) edge: Edge,
}

impl Input {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its axes.
    pub fn dims(&self) -> &[Dim] {
        &self.dims
    }

    /// The edge that it feeds.
    pub fn edge(&self) -> Edge {
        self.edge
    }

    pub(crate) fn check(&self, value: &Value) -> Result<()> {
        if value.dtype() != self.dtype {
            let what = format!("input `{}`", self.name);
            return Err(Error::Type { what, expected: self.dtype.name(), got: value.dtype().name() });
        }
        let dims = value.shape().dims();
        let fits = |(dim, &length): (&Dim, &usize)| match dim {
            Dim::Fixed(expected) => *expected == length,
            Dim::Any => true,
        };
        if dims.len() != self.dims.len() || !self.dims.iter().zip(dims).all(fits) {
            let expected: Vec<String> =
                self.dims.iter().map(|dim| if let Dim::Fixed(n) = dim { n.to_string() } else { "any".into() }).collect();
            return Err(Error::shape(format!("input `{}`", self.name), format!("[{}]", expected.join(", ")), dims));
        }
        Ok(())
    }
}

/// A named output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub(crate) name: String,
    pub(crate) edge: Edge,
}

impl Output {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The edge that it returns.
    pub fn edge(&self) -> Edge {
        self.edge
    }
}

/// One operation in its place in the graph.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) layer: Layer,
    pub(crate) inputs: Vec<Option<Edge>>,
    pub(crate) outputs: Vec<Edge>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it does.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// The edges that it reads, by position; `None` for an optional input that was left out.
    pub fn inputs(&self) -> &[Option<Edge>] {
        &self.inputs
    }

    /// The edges that it reads, those left out passed over.
    pub fn reads(&self) -> impl Iterator<Item = Edge> {
        self.inputs.iter().flatten().copied()
    }

    /// The edges that it writes.
    pub fn outputs(&self) -> &[Edge] {
        &self.outputs
    }

    /// This node with another layer in its place.
    pub(crate) fn with_layer(&self, layer: impl Into<Layer>) -> Node {
        Node { layer: layer.into(), ..self.clone() }
    }

    /// This node writing other edges.
    pub(crate) fn writing(self, outputs: Vec<Edge>) -> Node {
        Node { outputs, ..self }
    }
}

impl Model {
    /// Begins a model.
    pub fn builder() -> ModelBuilder {
        ModelBuilder::default()
    }

    pub(crate) fn from_parts(
        inputs: Vec<Input>,
        nodes: Vec<Node>,
        outputs: Vec<Output>,
        edges: Vec<(String, DType)>,
        constants: Vec<(Edge, Value)>,
        grids: HashMap<usize, U8Grid>,
    ) -> Self {
        Model { graph: Arc::new(Graph { inputs, nodes, outputs, edges, constants, grids, conversion: None }) }
    }

    /// This graph with other nodes, and what was done to it. Constants that no node reads any more are dropped.
    pub(crate) fn with_nodes(&self, nodes: Vec<Node>, conversion: Option<Conversion>) -> Self {
        let graph = &self.graph;
        let read: HashSet<Edge> = nodes.iter().flat_map(Node::reads).chain(graph.outputs.iter().map(|output| output.edge)).collect();
        let constants = graph.constants.iter().filter(|(edge, _)| read.contains(edge)).cloned().collect();
        let (inputs, outputs, edges, grids) = (graph.inputs.clone(), graph.outputs.clone(), graph.edges.clone(), graph.grids.clone());
        Model { graph: Arc::new(Graph { inputs, nodes, outputs, edges, constants, grids, conversion }) }
    }

    /// This graph with other values for some of its constants, by edge.
    pub(crate) fn with_constants(&self, values: &HashMap<usize, Value>) -> Self {
        let Graph { inputs, nodes, outputs, edges, constants, grids, conversion } = &*self.graph;
        let constants = constants.iter().map(|(edge, value)| (*edge, values.get(&edge.index).unwrap_or(value).clone())).collect();
        let (inputs, nodes, outputs, edges) = (inputs.clone(), nodes.clone(), outputs.clone(), edges.clone());
        Model { graph: Arc::new(Graph { inputs, nodes, outputs, edges, constants, grids: grids.clone(), conversion: conversion.clone() }) }
    }

    /// This graph, and what was done to it.
    pub(crate) fn with_conversion(&self, conversion: Conversion) -> Self {
        self.with_nodes(self.nodes().to_vec(), Some(conversion))
    }

    /// The named inputs.
    pub fn inputs(&self) -> &[Input] {
        &self.graph.inputs
    }

    /// The named outputs.
    pub fn outputs(&self) -> &[Output] {
        &self.graph.outputs
    }

    /// The values that are part of the model without belonging to a layer, each with its edge.
    pub fn constants(&self) -> &[(Edge, Value)] {
        &self.graph.constants
    }

    /// The nodes in the order in which they run.
    pub fn nodes(&self) -> &[Node] {
        &self.graph.nodes
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes().iter().find(|node| node.name == name)
    }

    /// Name of an edge.
    ///
    /// # Panics
    /// When the edge comes from the builder of another model.
    pub fn edge_name(&self, edge: Edge) -> &str {
        let own = self.graph.outputs[0].edge.builder;
        assert_eq!(edge.builder, own, "an edge of another model");
        &self.graph.edges[edge.index].0
    }

    /// What the codes of an edge of an integer model stand for; `None` for an edge that carries something else.
    ///
    /// # Panics
    /// As [`Model::edge_name`].
    pub fn grid(&self, edge: Edge) -> Option<U8Grid> {
        self.edge_name(edge);
        self.graph.grids.get(&edge.index).copied()
    }

    /// Name of the edge of this index.
    pub(crate) fn edge_name_of(&self, index: usize) -> &str {
        &self.graph.edges[index].0
    }

    pub(crate) fn edge_count(&self) -> usize {
        self.graph.edges.len()
    }

    pub(crate) fn edge_type(&self, edge: Edge) -> DType {
        self.graph.edges[edge.index].1
    }

    /// The kinds of layers present, each with its number, in order of appearance.
    pub fn kinds(&self) -> Vec<(LayerKind, usize)> {
        let mut kinds: Vec<(LayerKind, usize)> = Vec::new();
        for node in self.nodes() {
            let kind = node.layer.kind();
            match kinds.iter_mut().find(|(k, _)| *k == kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((kind, 1)),
            }
        }
        kinds
    }

    /// What the verb that made this model did and passed over; `None` for a model that was built.
    pub fn conversion(&self) -> Option<&Conversion> {
        self.graph.conversion.as_ref()
    }

    /// Bytes of everything that the layers hold in memory, and of the constants. What a file has of it is [`Model::stored_bytes`].
    pub fn bytes(&self) -> usize {
        let constants: usize = self.constants().iter().map(|(_, value)| value.bytes().len()).sum();
        self.nodes().iter().map(|node| node.layer.bytes()).sum::<usize>() + constants
    }

    /// Bytes of the layers' numbers and the constants at their bits: what a file of the crate's own (`io::saved`) holds but for its
    /// header. [`Model::bytes`] are those in memory, where weights lie in panels as wide as a vector.
    pub fn stored_bytes(&self) -> usize {
        let constants: usize = self.constants().iter().map(|(_, value)| value.to_packed().len()).sum();
        self.nodes().iter().map(|node| node.layer.stored_bytes()).sum::<usize>() + constants
    }

    /// One input in, one output out.
    ///
    /// Plans and allocates anew: keep an [`Executor`] for many calls.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the model has several inputs or outputs; [`Error::Shape`] and [`Error::Type`] when the
    /// input does not fit, naming the layer where it shows; [`Error::ShapeOverflow`] naming a layer whose output memory has no
    /// room for; [`Error::NonFinite`] from a quantized layer.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Executor::new(self).forward(x)
    }

    /// As [`Model::forward`], showing every value to `tap`: the input first, then each node's output as it is made.
    ///
    /// # Errors
    /// Those of [`Model::forward`], and what `tap` returns.
    pub fn forward_with(&self, x: &Tensor, tap: impl FnMut(&Tap<'_>) -> Result<()>) -> Result<Tensor> {
        Executor::new(self).forward_with(x, tap)
    }

    /// Several named inputs in, all named outputs out, in the model's order.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is no input or an input left out, else those of [`Model::forward`].
    pub fn run(&self, inputs: &[(&str, &Value)]) -> Result<Vec<(String, Value)>> {
        Executor::new(self).run(inputs)
    }

    /// As [`Model::run`], showing every value to `tap`: the inputs first, in the model's order, then each node's output as it
    /// is made.
    ///
    /// # Errors
    /// Those of [`Model::run`], and what `tap` returns.
    pub fn run_with(&self, inputs: &[(&str, &Value)], tap: impl FnMut(&Tap<'_>) -> Result<()>) -> Result<Vec<(String, Value)>> {
        Executor::new(self).run_with(inputs, tap)
    }

    /// The one input and the one output.
    pub(crate) fn single(&self) -> Result<(&str, &str)> {
        match (self.inputs(), self.outputs()) {
            ([input], [output]) => Ok((&input.name, &output.name)),
            (inputs, outputs) => Err(Error::Unsupported {
                what: format!("forward on a model with {} inputs and {} outputs", inputs.len(), outputs.len()),
                way_out: "name them with `run`".into(),
            }),
        }
    }

    pub(crate) fn unknown_input(&self, name: &str) -> Error {
        Error::Unknown { what: "input", name: name.to_owned(), present: self.inputs().iter().map(|i| &i.name).collect::<Names>() }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A line a node: name, kind, precision, kernel, bytes, what it reads.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.nodes().iter().map(|node| node.name.len()).max().unwrap_or(0);
        for node in self.nodes() {
            let reads: Vec<&str> = node.reads().map(|edge| self.edge_name(edge)).collect();
            let layer = &node.layer;
            write!(
                f,
                "{:width$}  {:15} {:4} {:>9} B  ({})",
                node.name,
                layer.kind().to_string(),
                layer.format_name(),
                layer.bytes(),
                reads.join(", ")
            )?;
            match layer.kernel_name() {
                Some(kernel) if layer.input_range() == Some(RangeOf::Tensor) => writeln!(f, "  {kernel}, one range for the tensor")?,
                Some(kernel) => writeln!(f, "  {kernel}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
