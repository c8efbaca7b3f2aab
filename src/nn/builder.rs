//! Building a model, node by node.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::nn::{Input, Layer, Model, Node, Output};
use crate::num::U8Grid;
use crate::tensor::{DType, Value};

/// A value on its way from one node to others: a handle that the builder of its model hands out.
///
/// It fits that builder and the models made from it, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    pub(crate) builder: u64,
    pub(crate) index: usize,
}

/// The length of one axis of a model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dim {
    /// Exactly this.
    Fixed(usize),
    /// Any length, decided by each run.
    Any,
}

/// Builds a [`Model`]. Nodes are added in the order in which they run, so the graph can't have a cycle.
#[derive(Debug)]
pub struct ModelBuilder {
    // What tells its edges from those of others.
    identity: u64,
    pub(crate) inputs: Vec<Input>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<Output>,
    // Name and type of every edge.
    pub(crate) edges: Vec<(String, DType)>,
    constants: Vec<(Edge, Value)>,
    grids: HashMap<usize, U8Grid>,
    // Names of edges, and names of nodes.
    names: HashSet<String>,
    node_names: HashSet<String>,
}

impl Default for ModelBuilder {
    fn default() -> Self {
        static BUILDERS: AtomicU64 = AtomicU64::new(0);
        ModelBuilder {
            // Only that no two are the same matters.
            identity: BUILDERS.fetch_add(1, Ordering::Relaxed),
            inputs: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
            edges: Vec::new(),
            constants: Vec::new(),
            grids: HashMap::new(),
            names: HashSet::new(),
            node_names: HashSet::new(),
        }
    }
}

impl ModelBuilder {
    /// Declares an input.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the name is taken by an input or a node.
    pub fn input(&mut self, name: &str, dtype: DType, dims: &[Dim]) -> Result<Edge> {
        let edge = self.edge(name, dtype)?;
        self.inputs.push(Input { name: name.to_owned(), dtype, dims: dims.to_vec(), edge });
        Ok(edge)
    }

    /// Adds a node that reads `inputs` and returns the edge that it writes, which gets the node's name.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the name is taken, [`Error::Length`] for the wrong number of inputs, [`Error::Type`]
    /// when the layer does not take their element type, [`Error::Parameter`] for an edge of another builder.
    pub fn add(&mut self, name: &str, layer: impl Into<Layer>, inputs: &[Edge]) -> Result<Edge> {
        self.add_as(name, name, layer, inputs)
    }

    /// As [`ModelBuilder::add`], with a name of its own for the edge.
    ///
    /// # Errors
    /// Those of [`ModelBuilder::add`].
    pub fn add_as(&mut self, name: &str, edge: &str, layer: impl Into<Layer>, inputs: &[Edge]) -> Result<Edge> {
        let inputs: Vec<Option<Edge>> = inputs.iter().copied().map(Some).collect();
        let edges = self.add_node(name, &[Some(edge)], layer.into(), &inputs)?;
        Ok(edges[0])
    }

    /// Adds a node of several outputs, or with inputs left out: by position, `None` for an optional input that is not
    /// there and for an output that gets no name of its own.
    ///
    /// # Errors
    /// Those of [`ModelBuilder::add`]; [`Error::Length`] for more names than the layer has outputs.
    pub fn add_node(&mut self, name: &str, outputs: &[Option<&str>], layer: Layer, inputs: &[Option<Edge>]) -> Result<Vec<Edge>> {
        let dtype = |edge: &Option<Edge>| edge.map(|edge| self.dtype(edge)).transpose();
        let types: Vec<Option<DType>> = inputs.iter().map(dtype).collect::<Result<_>>().map_err(|e| e.in_layer(name))?;
        let types = layer.infer_types(&types).map_err(|e| e.in_layer(name))?;
        if outputs.len() > types.len() {
            return Err(Error::length("list of output names", types.len(), outputs.len()).in_layer(name));
        }
        // A node may be called like an edge that it writes, and like no other thing.
        let own = outputs.contains(&Some(name));
        if self.node_names.contains(name) || (!own && self.names.contains(name)) {
            return Err(Error::Duplicate { what: "node", name: name.to_owned() });
        }
        let mut edges = Vec::with_capacity(types.len());
        for (i, dtype) in types.into_iter().enumerate() {
            edges.push(match outputs.get(i) {
                Some(Some(edge)) => self.edge(edge, dtype)?,
                _ => self.edge(&self.free_name(name, i), dtype)?,
            });
        }
        self.node_names.insert(name.to_owned());
        self.nodes.push(Node { name: name.to_owned(), layer, inputs: inputs.to_vec(), outputs: edges.clone() });
        Ok(edges)
    }

    /// A name for output `i` of a node that gave it none.
    fn free_name(&self, node: &str, i: usize) -> String {
        let mut name = format!("{node}:{i}");
        while self.names.contains(&name) {
            name.push('\'');
        }
        name
    }

    /// Adds a value that is part of the model.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the name is taken.
    pub fn constant(&mut self, name: &str, value: impl Into<Value>) -> Result<Edge> {
        let value = value.into();
        let edge = self.edge(name, value.dtype())?;
        self.constants.push((edge, value));
        Ok(edge)
    }

    /// Says what the u8 codes of an edge stand for, which [`Model::grid`] then tells.
    ///
    /// # Errors
    /// [`Error::Type`] for an edge of another type, [`Error::Parameter`] for one of another builder.
    pub fn grid(&mut self, edge: Edge, grid: U8Grid) -> Result<()> {
        match self.dtype(edge)? {
            DType::U8 => {
                self.grids.insert(edge.index, grid);
                Ok(())
            }
            other => Err(Error::Type { what: format!("edge `{}`", self.edges[edge.index].0), expected: "u8", got: other.name() }),
        }
    }

    /// Declares that `edge` is an output called `name`.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when an output has that name, [`Error::Parameter`] for an edge of another builder.
    pub fn output(&mut self, name: &str, edge: Edge) -> Result<()> {
        self.dtype(edge)?;
        if self.outputs.iter().any(|output| output.name == name) {
            return Err(Error::Duplicate { what: "output", name: name.to_owned() });
        }
        self.outputs.push(Output { name: name.to_owned(), edge });
        Ok(())
    }

    /// The finished model.
    ///
    /// # Errors
    /// [`Error::Empty`] when there is no output.
    pub fn build(self) -> Result<Model> {
        if self.outputs.is_empty() {
            return Err(Error::Empty { what: "list of the model's outputs".into(), way_out: "declare one with `output`" });
        }
        Ok(Model::from_parts(self.inputs, self.nodes, self.outputs, self.edges, self.constants, self.grids))
    }

    /// Whether a node may be called so that writes none of that name.
    pub(crate) fn is_free(&self, node: &str) -> bool {
        !self.node_names.contains(node) && !self.names.contains(node)
    }

    /// Element type of an edge of its own.
    #[cfg(feature = "onnx")]
    pub(crate) fn dtype_of(&self, edge: Edge) -> DType {
        self.edges[edge.index].1
    }

    fn dtype(&self, edge: Edge) -> Result<DType> {
        match self.edges.get(edge.index) {
            Some((_, dtype)) if edge.builder == self.identity => Ok(*dtype),
            _ => Err(Error::parameter("edge", edge, "comes from another builder: use the handles that this one returned")),
        }
    }

    fn edge(&mut self, name: &str, dtype: DType) -> Result<Edge> {
        if !self.names.insert(name.to_owned()) {
            return Err(Error::Duplicate { what: "value", name: name.to_owned() });
        }
        self.edges.push((name.to_owned(), dtype));
        Ok(Edge { builder: self.identity, index: self.edges.len() - 1 })
    }
}
