//! What is known before a run: every shape, and the values that depend on shapes and constants alone.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::nn::operator::Facts;
use crate::nn::{Dim, Executor, Input, Layer, Model, Node};
use crate::tensor::{Shape, Value};

/// Largest number of elements that a node's outputs may have to be computed while planning: shape arithmetic, positions,
/// masks. Above it they are computed by each run, which reuses memory that the plan would have to hold.
const FOLDED: usize = 1 << 16;

/// Bytes of all that is computed while planning: what is beyond, each run computes.
const HELD: usize = 16 << 20;

/// Everything known of a model's values for inputs of certain shapes.
pub(super) struct Known<'m> {
    model: &'m Model,
    /// By edge.
    pub shapes: Vec<Shape>,
    /// By edge: the value, if what the inputs hold has no part in it.
    pub values: Vec<Option<Value>>,
    /// By edge: values that were asked for and depend on what the inputs hold.
    asked: Vec<Option<Value>>,
    /// Inputs whose values were asked for.
    pub consulted: Vec<usize>,
    /// By edge, the node that writes it.
    producers: Vec<Option<usize>>,
    /// By node: nothing is left to run.
    pub folded: Vec<bool>,
    /// Bytes of the values computed so far.
    held: usize,
}

impl<'m> Known<'m> {
    pub fn new<'v>(model: &'m Model, input: &dyn Fn(usize) -> &'v Value) -> Result<Self> {
        let edges = model.edge_count();
        let empty = Shape::new(Vec::new())?;
        let mut known = Known {
            model,
            shapes: vec![empty; edges],
            values: vec![None; edges],
            asked: vec![None; edges],
            consulted: Vec::new(),
            producers: vec![None; edges],
            folded: vec![false; model.nodes().len()],
            held: 0,
        };
        for (i, declared) in model.inputs().iter().enumerate() {
            known.shapes[declared.edge().index] = input(i).shape().clone();
        }
        for (edge, value) in model.constants() {
            known.shapes[edge.index] = value.shape().clone();
            known.values[edge.index] = Some(value.clone());
        }
        for (index, node) in model.nodes().iter().enumerate() {
            known.node(index, node, input).map_err(|e| e.in_node(node.name(), &node.layer().kind()))?;
        }
        Ok(known)
    }

    fn node<'v>(&mut self, index: usize, node: &Node, input: &dyn Fn(usize) -> &'v Value) -> Result<()> {
        for edge in node.outputs() {
            self.producers[edge.index] = Some(index);
        }
        let shapes: Vec<_> = node.inputs().iter().map(|edge| edge.map(|edge| self.shapes[edge.index].clone())).collect();
        let mut value = |i: usize| {
            let edge = node.inputs()[i].expect("asked only for inputs that are there");
            self.value(edge.index, input)
        };
        let found = node.layer().infer_shapes(&mut Facts { shapes: &shapes, value: &mut value })?;
        let elements: usize = found.iter().map(Shape::elements).fold(0, usize::saturating_add);
        let mut taken = self.held;
        for (edge, shape) in node.outputs().iter().zip(found) {
            // From here on the bytes of every value are known to fit `isize`.
            let bytes = shape.elements().checked_mul(self.model.edge_type(*edge).bytes());
            if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
                return Err(Error::ShapeOverflow { shape: shape.dims().to_vec() });
            }
            taken = taken.saturating_add(bytes.unwrap_or(usize::MAX));
            self.shapes[edge.index] = shape;
        }
        let values = if let Layer::Operator(operator) = node.layer()
            && let Some(value) = operator.operation().value_by_shapes(&shapes)
        {
            vec![value?]
        } else if elements <= FOLDED
            && taken <= HELD
            && node.reads().next().is_some()
            && node.reads().all(|edge| self.values[edge.index].is_some())
        {
            let inputs: Vec<Option<&Value>> =
                node.inputs().iter().map(|edge| edge.and_then(|edge| self.values[edge.index].as_ref())).collect();
            self.held = taken;
            evaluate(node.layer(), &inputs)?
        } else {
            return Ok(());
        };
        for (edge, value) in node.outputs().iter().zip(values) {
            self.values[edge.index] = Some(value);
        }
        self.folded[index] = true;
        Ok(())
    }

    /// The value of an edge, computed from the inputs if need be.
    fn value<'v>(&mut self, edge: usize, input: &dyn Fn(usize) -> &'v Value) -> Result<Value> {
        let model = self.model;
        let (mut wanted, mut seen, mut nodes) = (vec![edge], HashSet::new(), Vec::new());
        while let Some(edge) = wanted.pop() {
            if self.found(edge).is_some() || !seen.insert(edge) {
                continue;
            }
            match self.producers[edge] {
                Some(node) => {
                    nodes.push(node);
                    wanted.extend(model.nodes()[node].reads().map(|edge| edge.index));
                }
                None => {
                    let given = model.inputs().iter().position(|declared| declared.edge().index == edge);
                    let given = given.expect("an edge without a value or a producer is an input");
                    self.consulted.push(given);
                    self.asked[edge] = Some(input(given).clone());
                }
            }
        }
        // The model's order is one in which each node comes after those that it reads.
        nodes.sort_unstable();
        nodes.dedup();
        for index in nodes {
            let node = &model.nodes()[index];
            let inputs: Vec<Option<&Value>> = node.inputs().iter().map(|edge| edge.and_then(|edge| self.found(edge.index))).collect();
            let values = evaluate(node.layer(), &inputs).map_err(|e| e.in_node(node.name(), &node.layer().kind()))?;
            for (edge, value) in node.outputs().iter().zip(values) {
                self.asked[edge.index] = Some(value);
            }
        }
        Ok(self.found(edge).expect("computed above").clone())
    }

    fn found(&self, edge: usize) -> Option<&Value> {
        self.values[edge].as_ref().or(self.asked[edge].as_ref())
    }
}

/// The shape of every edge, by index, for inputs of these shapes, in the model's order, that hold zeros.
///
/// # Errors
/// Of shapes that do not fit, naming the layer.
pub(crate) fn shapes(model: &Model, inputs: &[Shape]) -> Result<Vec<Shape>> {
    let zeros = zeros(model, inputs)?;
    Ok(Known::new(model, &|i| &zeros[i])?.shapes)
}

/// The shape of every edge for these inputs, in the model's order.
///
/// # Errors
/// Of shapes that do not fit, naming the layer.
#[cfg(feature = "onnx")]
pub(crate) fn shapes_for(model: &Model, inputs: &[Value]) -> Result<Vec<Shape>> {
    Ok(Known::new(model, &|i| &inputs[i])?.shapes)
}

/// Inputs of these shapes, in the model's order.
pub(super) fn zeros(model: &Model, shapes: &[Shape]) -> Result<Vec<Value>> {
    let zeros = |(input, shape): (&Input, &Shape)| Value::zeros(input.dtype(), shape.clone());
    model.inputs().iter().zip(shapes).map(zeros).collect()
}

/// Runs one layer by itself, if its outputs have at most `limit` elements together.
///
/// # Errors
/// Those of the layer.
pub(crate) fn evaluate_within(layer: &Layer, inputs: &[Option<&Value>], limit: usize) -> Result<Option<Vec<Value>>> {
    let types: Vec<_> = inputs.iter().map(|input| input.map(Value::dtype)).collect();
    let shapes: Vec<_> = inputs.iter().map(|input| input.map(|value| value.shape().clone())).collect();
    layer.infer_types(&types)?;
    let mut value = |i: usize| Ok(inputs[i].expect("asked only for inputs that are there").clone());
    let found = layer.infer_shapes(&mut Facts { shapes: &shapes, value: &mut value })?;
    if found.iter().map(Shape::elements).fold(0, usize::saturating_add) > limit {
        return Ok(None);
    }
    evaluate(layer, inputs).map(Some)
}

/// Runs one layer by itself.
fn evaluate(layer: &Layer, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
    let mut net = Model::builder();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("input {i}")).collect();
    let (mut edges, mut given) = (Vec::with_capacity(inputs.len()), Vec::new());
    for (name, input) in names.iter().zip(inputs) {
        edges.push(match input {
            Some(value) => {
                given.push((name.as_str(), *value));
                Some(net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?)
            }
            None => None,
        });
    }
    for (i, edge) in net.add_node("node", &[], layer.clone(), &edges)?.into_iter().enumerate() {
        net.output(&format!("output {i}"), edge)?;
    }
    let done = Executor::new(&net.build()?).run(&given);
    Ok(done.map_err(|e| e.without_layer())?.into_iter().map(|(_, value)| value).collect())
}
