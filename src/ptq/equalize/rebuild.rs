//! The model with its links scaled.

use std::collections::HashMap;

use super::links::{Link, Passage};
use super::scales::Side;
use crate::error::Result;
use crate::nn::operator::Variadic;
use crate::nn::{Conv2d, Edge, Layer, Linear, Model, ModelBuilder, Node};
use crate::tensor::Tensor;

/// The model with the scales of `sides` in its layers, and those of each link in what clamps it on the way.
pub(super) fn rebuild(model: &Model, links: &[Link], sides: &[Option<Side>], scales: &[Vec<f64>]) -> Result<Model> {
    let mut clamps: HashMap<usize, (Passage, &[f64], bool)> = HashMap::new();
    for (link, scales) in links.iter().zip(scales).filter(|(_, scales)| scales.iter().any(|&scale| scale != 1.0)) {
        let is_image = matches!(model.nodes()[link.first].layer(), Layer::Conv2d(_));
        clamps.extend(link.between.iter().map(|&(node, passage)| (node, (passage, scales.as_slice(), is_image))));
    }
    let mut copy = Copy { net: Model::builder(), edges: vec![None; model.edge_count()], model };
    for input in model.inputs() {
        copy.edges[input.edge().index] = Some(copy.net.input(input.name(), input.dtype(), input.dims())?);
    }
    for (edge, value) in model.constants() {
        copy.edges[edge.index] = Some(copy.net.constant(model.edge_name(*edge), value.clone())?);
    }
    for (index, node) in model.nodes().iter().enumerate() {
        let done = match (clamps.get(&index), &sides[index]) {
            (Some((Passage::Clamp { lo, hi }, scales, is_image)), _) => copy.clamped(node, [*lo, *hi], scales, *is_image),
            (Some((Passage::Bound(bound), scales, is_image)), _) => copy.bounded(node, *bound, scales, *is_image),
            (_, Some(side)) => copy.node(node, scaled(node.layer(), side)?),
            _ => copy.node(node, node.layer().clone()),
        };
        done.map_err(|error| error.in_layer(node.name()))?;
    }
    copy.finish()
}

fn scaled(layer: &Layer, side: &Side) -> Result<Layer> {
    match layer {
        Layer::Conv2d(conv) => {
            let (weight, bias) = side.scaled(conv.weight(), conv.bias());
            Conv2d::new(conv.geometry().clone(), weight, bias).map(Layer::from)
        }
        Layer::Linear(linear) => {
            let (weight, bias) = side.scaled(linear.weight(), linear.bias());
            Linear::new(weight, bias).map(Layer::from)
        }
        other => Ok(other.clone()),
    }
}

/// A model on its way into another builder, under the same names.
struct Copy<'m> {
    net: ModelBuilder,
    /// By edge of the model: that of the copy.
    edges: Vec<Option<Edge>>,
    model: &'m Model,
}

impl Copy<'_> {
    fn inputs(&self, node: &Node) -> Vec<Option<Edge>> {
        node.inputs().iter().map(|edge| edge.and_then(|edge| self.edges[edge.index])).collect()
    }

    fn node(&mut self, node: &Node, layer: Layer) -> Result<()> {
        let inputs = self.inputs(node);
        self.add(node, layer, &inputs)
    }

    /// A node that writes what `node` wrote.
    fn add(&mut self, node: &Node, layer: Layer, inputs: &[Option<Edge>]) -> Result<()> {
        let names: Vec<Option<&str>> = node.outputs().iter().map(|&edge| Some(self.model.edge_name(edge))).collect();
        let edges = self.net.add_node(node.name(), &names, layer, inputs)?;
        for (edge, made) in node.outputs().iter().zip(edges) {
            self.edges[edge.index] = Some(made);
            if let Some(grid) = self.model.grid(*edge) {
                self.net.grid(made, grid)?;
            }
        }
        Ok(())
    }

    /// A clamp to the same two numbers becomes one to two numbers of each channel: ReLU, or the greater of a constant, then the less of
    /// another.
    fn clamped(&mut self, node: &Node, [lo, hi]: [f32; 2], scales: &[f64], is_image: bool) -> Result<()> {
        let mut x = self.inputs(node)[0];
        let above = if lo == f32::NEG_INFINITY { None } else { Some(lo) };
        if let Some(lo) = above {
            let is_last = hi == f32::INFINITY;
            let mut inputs = vec![x];
            let layer = match lo {
                0.0 => Layer::Relu,
                lo => {
                    inputs.push(Some(self.bound(node, "lo", &vec![lo; scales.len()], scales, is_image)?));
                    Variadic::Max.into()
                }
            };
            if is_last {
                return self.add(node, layer, &inputs);
            }
            let name = self.free(&format!("{}/floor", node.name()));
            x = Some(self.net.add_node(&name, &[Some(&name)], layer, &inputs)?[0]);
        }
        let upper = self.bound(node, "hi", &vec![hi; scales.len()], scales, is_image)?;
        self.add(node, Variadic::Min.into(), &[x, Some(upper)])
    }

    /// A bound with one element, or one a channel.
    fn bounded(&mut self, node: &Node, bound: Edge, scales: &[f64], is_image: bool) -> Result<()> {
        let value = self.model.constants().iter().find(|(edge, _)| *edge == bound).and_then(|(_, value)| value.get::<f32>());
        let values = value.map_or(&[][..], Tensor::as_slice);
        let values: Vec<f32> = (0..scales.len()).map(|channel| values[if values.len() == 1 { 0 } else { channel }]).collect();
        let scaled = self.bound(node, "bound", &values, scales, is_image)?;
        let inputs: Vec<Option<Edge>> = node
            .inputs()
            .iter()
            .map(|&edge| if edge == Some(bound) { Some(scaled) } else { edge.and_then(|edge| self.edges[edge.index]) })
            .collect();
        self.add(node, node.layer().clone(), &inputs)
    }

    /// A constant of one element a channel, divided by the scales.
    fn bound(&mut self, node: &Node, what: &str, values: &[f32], scales: &[f64], is_image: bool) -> Result<Edge> {
        let values: Vec<f32> = values.iter().zip(scales).map(|(&value, scale)| (f64::from(value) / scale) as f32).collect();
        let channels = values.len();
        let dims = if is_image { vec![channels, 1, 1] } else { vec![channels] };
        let name = self.free(&format!("{}/{what}", node.name()));
        self.net.constant(&name, Tensor::new(dims, values)?)
    }

    /// A name that is not taken, nor will be.
    fn free(&self, name: &str) -> String {
        let edges = || (0..self.model.edge_count()).map(|index| self.model.edge_name_of(index));
        let mut name = name.to_owned();
        while !self.net.is_free(&name) || edges().any(|taken| taken == name) || self.model.node(&name).is_some() {
            name.push('\'');
        }
        name
    }

    fn finish(mut self) -> Result<Model> {
        for output in self.model.outputs() {
            let edge = self.edges[output.edge().index].expect("an output is written, given, or constant");
            self.net.output(output.name(), edge)?;
        }
        let copy = self.net.build()?;
        // Constants that nobody reads any more go.
        Ok(copy.with_nodes(copy.nodes().to_vec(), self.model.conversion().cloned()))
    }
}
