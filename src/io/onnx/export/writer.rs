//! The file's graph as it grows: nodes, tensors, and names that nothing else has.

use std::collections::{HashMap, HashSet};

use super::super::schema::{AttributeProto, NodeProto, TensorProto, attribute_type};
use super::super::tensor::element_code;
use crate::error::{Error, Result};
use crate::nn::operator::{Attribute, Attributes};
use crate::nn::{Edge, Model, Node};
use crate::num::U8Grid;
use crate::tensor::{Tensor, Value};

/// What DynamicQuantizeLinear made of a value: codes, scale, zero point.
pub type Measured = [String; 3];

pub struct Writer<'m> {
    pub model: &'m Model,
    pub opset: i64,
    /// Axes of each edge's value.
    pub ranks: Vec<usize>,
    pub nodes: Vec<NodeProto>,
    pub tensors: Vec<TensorProto>,
    /// Names of values, and of nodes.
    names: HashSet<String>,
    node_names: HashSet<String>,
    /// By edge in codes: the floats made of them.
    floats: HashMap<usize, String>,
    /// By edge in floats: its codes, made at run time.
    pub measured: HashMap<usize, Measured>,
}

impl<'m> Writer<'m> {
    pub fn new(model: &'m Model, opset: i64, ranks: Vec<usize>) -> Self {
        let edges = (0..model.edge_count()).map(|index| model.edge_name_of(index).to_owned());
        let names = edges.chain(model.outputs().iter().map(|output| output.name().to_owned())).collect();
        Writer {
            model,
            opset,
            ranks,
            nodes: Vec::new(),
            tensors: Vec::new(),
            names,
            node_names: model.nodes().iter().map(|node| node.name().to_owned()).collect(),
            floats: HashMap::new(),
            measured: HashMap::new(),
        }
    }

    pub fn name(&self, edge: Edge) -> String {
        self.model.edge_name(edge).to_owned()
    }

    /// Names of what a node reads, empty where an input was left out.
    pub fn reads(&self, node: &Node) -> Vec<String> {
        node.inputs().iter().map(|edge| edge.map_or_else(String::new, |edge| self.name(edge))).collect()
    }

    /// A name that no value has.
    pub fn free(&mut self, name: &str) -> String {
        let mut name = name.to_owned();
        while !self.names.insert(name.clone()) {
            name.push('\'');
        }
        name
    }

    /// A node of the model's: it keeps its name.
    pub fn main(&mut self, name: &str, operator: &str, inputs: &[String], outputs: &[String], attributes: Attributes) {
        self.push(name.to_owned(), operator, inputs, outputs, attributes);
    }

    /// A node beside those of the model, called like what it writes.
    pub fn node(&mut self, operator: &str, inputs: &[String], outputs: &[String], attributes: Attributes) {
        let mut name = outputs[0].clone();
        while !self.node_names.insert(name.clone()) {
            name.push('\'');
        }
        self.push(name, operator, inputs, outputs, attributes);
    }

    /// As [`Writer::node`], writing one new value: its name.
    pub fn value(&mut self, operator: &str, inputs: &[String], name: &str, attributes: Attributes) -> String {
        let output = self.free(name);
        self.node(operator, inputs, std::slice::from_ref(&output), attributes);
        output
    }

    fn push(&mut self, name: String, operator: &str, inputs: &[String], outputs: &[String], attributes: Attributes) {
        let inputs = inputs.iter().rposition(|name| !name.is_empty()).map_or(&[][..], |last| &inputs[..=last]);
        self.nodes.push(NodeProto {
            input: inputs.to_vec(),
            output: outputs.to_vec(),
            name: Some(name),
            op_type: Some(operator.to_owned()),
            attribute: attributes.list.into_iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: None,
        });
    }

    /// A tensor of the file under this name, which must be its own.
    pub fn tensor(&mut self, name: &str, value: &Value) {
        self.tensors.push(tensor(name, value));
    }

    /// A tensor of the file under a new name like this: that name.
    pub fn constant(&mut self, name: &str, value: impl Into<Value>) -> String {
        let name = self.free(name);
        self.tensor(&name, &value.into());
        name
    }

    pub fn list(&mut self, name: &str, list: &[f32]) -> String {
        self.constant(name, Tensor::new([list.len()], list.to_vec()).expect("a list is as long as its shape says"))
    }

    pub fn scalar(&mut self, name: &str, x: f32) -> String {
        self.constant(name, Tensor::new(Vec::new(), vec![x]).expect("a scalar is one number"))
    }

    /// Scale and zero point as tensors.
    pub fn grid(&mut self, of: &str, grid: U8Grid) -> [String; 2] {
        let zero = Tensor::new(Vec::new(), vec![grid.zero_point()]).expect("a scalar is one number");
        [self.scalar(&format!("{of}/scale"), grid.scale()), self.constant(&format!("{of}/zero_point"), zero)]
    }

    /// The value of an edge in floats: that of codes with a grid is dequantized, once for all who read it.
    pub fn floats(&mut self, edge: Edge) -> String {
        let Some(grid) = self.model.grid(edge) else { return self.name(edge) };
        if let Some(name) = self.floats.get(&edge.index) {
            return name.clone();
        }
        let codes = self.name(edge);
        let [scale, zero] = self.grid(&codes, grid);
        let name = self.value("DequantizeLinear", &[codes.clone(), scale, zero], &format!("{codes}/dequantized"), Attributes::new());
        self.floats.insert(edge.index, name.clone());
        name
    }

    /// Quantizes `floats` into the edge.
    pub fn quantize(&mut self, floats: String, edge: Edge, grid: U8Grid) {
        let codes = self.name(edge);
        let [scale, zero] = self.grid(&format!("{codes}/output"), grid);
        self.node("QuantizeLinear", &[floats, scale, zero], &[codes], Attributes::new());
    }

    /// The value of an edge under the name of an output.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when another value has that name.
    pub fn copy_output(&mut self, name: &str, edge: Edge) -> Result<()> {
        let own = self.name(edge);
        if own == name {
            return Ok(());
        }
        if (0..self.model.edge_count()).any(|index| self.model.edge_name_of(index) == name) {
            return Err(Error::Duplicate { what: "value", name: name.to_owned() });
        }
        self.node("Identity", &[own], &[name.to_owned()], Attributes::new());
        Ok(())
    }
}

fn tensor(name: &str, value: &Value) -> TensorProto {
    TensorProto {
        dims: value.shape().dims().iter().map(|&length| length as i64).collect(),
        data_type: Some(element_code(value.dtype())),
        name: Some(name.to_owned()),
        raw_data: Some(value.to_packed().into_owned().into()),
        ..Default::default()
    }
}

fn attribute(name: &str, value: Attribute) -> AttributeProto {
    let bytes = String::into_bytes;
    let with = |kind: i32| AttributeProto { name: Some(name.to_owned()), r#type: Some(kind), ..Default::default() };
    match value {
        Attribute::Int(x) => AttributeProto { i: Some(x), ..with(attribute_type::INT) },
        Attribute::Float(x) => AttributeProto { f: Some(x), ..with(attribute_type::FLOAT) },
        Attribute::Text(x) => AttributeProto { s: Some(bytes(x)), ..with(attribute_type::STRING) },
        Attribute::Ints(x) => AttributeProto { ints: x, ..with(attribute_type::INTS) },
        Attribute::Floats(x) => AttributeProto { floats: x, ..with(attribute_type::FLOATS) },
        Attribute::Texts(x) => AttributeProto { strings: x.into_iter().map(bytes).collect(), ..with(attribute_type::STRINGS) },
        Attribute::Tensor(x) => AttributeProto { t: Some(Box::new(tensor("", &x))), ..with(attribute_type::TENSOR) },
        Attribute::Type(x) => AttributeProto { i: Some(element_code(x).into()), ..with(attribute_type::INT) },
    }
}
