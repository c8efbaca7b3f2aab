//! From a float model, roles and grids to the integer model.

use std::collections::{HashMap, HashSet};

use super::calibration::CodeRange;
use super::roles::{Form, Group, Role, Roles};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::operator::{
    CodeTable, DequantizeLinear, Operator, QuantizeLinear, QuantizedAdd, QuantizedAvgPool, QuantizedGlobalAvgPool, QuantizedMaxPool,
    QuantizedMul,
};
use crate::nn::quantized::{StaticConv2d, StaticLinear, StaticOutput, finite_bias};
use crate::nn::{Edge, Layer, Model, ModelBuilder, Node, evaluate_within};
use crate::num::{NonFinite, U8Grid};
use crate::tensor::{DType, QuantizedTensor, Tensor, Value};

/// The codes of a node's weights, for an input on this grid.
pub(crate) type Weights<'a> = dyn FnMut(&Node, U8Grid) -> Result<QuantizedTensor<i8>> + 'a;

/// What a file calls a value, and the node that writes it.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "onnx"), allow(dead_code, reason = "files alone name values"))]
pub(crate) struct FileName {
    pub value: String,
    pub node: String,
}

/// What is lowered, and how.
pub(crate) struct Lowering<'a> {
    pub model: &'a Model,
    pub roles: &'a Roles,
    /// By edge: the codes of the value there.
    pub ranges: &'a HashMap<usize, CodeRange>,
    /// By edge: names of codes and of what is made of them in float, where they have names of their own.
    pub names: &'a HashMap<usize, [Option<FileName>; 2]>,
    /// Whether a value that has codes is rounded to them for every reader, those in float included.
    pub rounds: bool,
    /// Float layers that take the place of those of the model, by node.
    pub replaced: &'a HashMap<usize, Layer>,
    /// What happens to biases that are not finite.
    pub non_finite: NonFinite,
    pub isa: Isa,
}

/// A value in the model that is built.
#[derive(Debug, Clone, Copy, Default)]
struct Made {
    /// As a node in its own type wrote it.
    plain: Option<Edge>,
    codes: Option<(Edge, U8Grid)>,
    /// Its codes as floats.
    rounded: Option<Edge>,
}

impl Lowering<'_> {
    /// The integer model: of the same inputs and outputs, in float.
    pub fn run(&self, weights: &mut Weights<'_>) -> Result<Model> {
        let model = self.model;
        let edges = model.nodes().iter().flat_map(|node| node.outputs().iter().copied());
        let edges = edges.chain(model.inputs().iter().map(|input| input.edge())).chain(model.constants().iter().map(|(edge, _)| *edge));
        let given = self.names.values().flatten().flatten().map(|name| name.value.as_str());
        let mut building = Building {
            lowering: self,
            net: Model::builder(),
            made: vec![Made::default(); model.edge_count()],
            constants: HashMap::new(),
            reserved: edges.map(|edge| model.edge_name(edge)).chain(given).chain(model.nodes().iter().map(Node::name)).collect(),
        };
        for input in model.inputs() {
            let edge = building.net.input(input.name(), input.dtype(), input.dims())?;
            building.made[input.edge().index].plain = Some(edge);
        }
        building.constants = model.constants().iter().map(|(edge, value)| (edge.index, value.clone())).collect();
        let mut anchor_of: HashMap<usize, (usize, &Group)> = HashMap::new();
        for (index, role) in self.roles.roles.iter().enumerate() {
            if let Role::Anchor(group) = role {
                anchor_of.insert(group.last(index), (index, group));
            }
        }
        for index in 0..model.nodes().len() {
            let done = match anchor_of.get(&index) {
                Some((anchor, group)) => building.anchor(*anchor, group, weights),
                None => building.node(index),
            };
            done.map_err(|e| e.in_layer(model.nodes()[index].name()))?;
        }
        for output in model.outputs() {
            let edge = building.plain(output.edge())?;
            building.net.output(output.name(), edge)?;
        }
        building.net.build()
    }
}

struct Building<'a> {
    lowering: &'a Lowering<'a>,
    net: ModelBuilder,
    made: Vec<Made>,
    constants: HashMap<usize, Value>,
    /// Names of values and nodes that are there, or are still to come.
    reserved: HashSet<&'a str>,
}

impl Building<'_> {
    fn range(&self, edge: Edge) -> Option<CodeRange> {
        self.lowering.ranges.get(&edge.index).copied()
    }

    fn need_range(&self, edge: Edge) -> Result<CodeRange> {
        self.range(edge).ok_or_else(|| Error::Empty {
            what: format!("calibration of `{}`", self.lowering.model.edge_name(edge)),
            way_out: "calibrate with the model and the configuration that are converted",
        })
    }

    fn node(&mut self, index: usize) -> Result<()> {
        let node = &self.lowering.model.nodes()[index];
        match &self.lowering.roles.roles[index] {
            Role::Follower(form) => self.follower(node, *form),
            Role::Mover => self.mover(node),
            // An anchor is made where its group ends.
            Role::Anchor(_) | Role::Fused => Ok(()),
            Role::Float => {
                if self.crosses(node)? {
                    return Ok(());
                }
                let inputs = node.inputs().iter().map(|edge| edge.map(|edge| self.plain(edge)).transpose()).collect::<Result<Vec<_>>>()?;
                let layer = self.lowering.replaced.get(&index).unwrap_or(node.layer());
                self.add_plain(node, layer.clone(), &inputs)
            }
        }
    }

    /// Whether the node only says in its own words what an edge beside it has: codes that come as u8, or that u8 is asked for.
    fn crosses(&mut self, node: &Node) -> Result<bool> {
        let (&[Some(x), Some(scale), ref zero_point @ ..], &[y]) = (node.inputs(), node.outputs()) else { return Ok(false) };
        let constant = |edge: Edge| self.constants.get(&edge.index);
        let is_grid_of = |edge: Edge| {
            let range = self.range(edge).filter(|range| range.is_whole())?;
            let zero_point: &[u8] = match *zero_point {
                [Some(zero_point)] => constant(zero_point)?.get::<u8>()?.as_slice(),
                _ => &[0],
            };
            let is_same = constant(scale)?.get::<f32>()?.as_slice() == [range.grid.scale()] && zero_point == [range.grid.zero_point()];
            is_same.then_some(range.grid)
        };
        match node.layer() {
            Layer::Operator(Operator::DequantizeLinear(_)) if self.lowering.model.edge_type(x) == DType::U8 => {
                let Some(grid) = is_grid_of(y) else { return Ok(false) };
                self.made[y.index].codes = Some((self.plain(x)?, grid));
            }
            Layer::Operator(Operator::QuantizeLinear(_)) if self.lowering.rounds && self.lowering.model.edge_type(y) == DType::U8 => {
                if is_grid_of(x).is_none() {
                    return Ok(false);
                }
                self.made[y.index].plain = Some(self.codes(x)?.0);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The convolution or linear layer, writing what the last node of its group wrote.
    fn anchor(&mut self, index: usize, group: &Group, weights: &mut Weights<'_>) -> Result<()> {
        let nodes = self.lowering.model.nodes();
        let (node, out) = (&nodes[index], nodes[group.last(index)].outputs()[0]);
        let (x, input) = self.codes(node.inputs()[0].expect("checked when the types were inferred"))?;
        let mut inputs = vec![Some(x)];
        let output = if self.lowering.roles.wanted[out.index] {
            let range = self.need_range(out)?;
            let (lo, hi) = range.after(group.activation);
            StaticOutput::Codes { grid: range.grid, lo, hi }
        } else {
            StaticOutput::Float(group.activation)
        };
        let residual = group.residual.map(|(_, edge)| self.codes(edge)).transpose()?;
        inputs.extend(residual.map(|(edge, _)| Some(edge)));
        let (codes, isa) = (weights(node, input)?, self.lowering.isa);
        let finite = |bias: Option<&Tensor>| bias.map(|bias| finite_bias(bias.as_slice(), self.lowering.non_finite)).transpose();
        let layer = match node.layer() {
            Layer::Conv2d(conv) => {
                let bias = finite(conv.bias())?;
                let made = StaticConv2d::from_codes(conv.geometry(), &codes, bias.as_deref(), input, output, isa)?;
                Layer::from(if let Some((_, grid)) = residual { made.with_residual(grid)? } else { made })
            }
            Layer::Linear(linear) => {
                let bias = finite(linear.bias())?;
                let made = StaticLinear::from_codes(&codes, bias.as_deref(), input, output, isa)?;
                Layer::from(if let Some((_, grid)) = residual { made.with_residual(grid)? } else { made })
            }
            other => {
                return Err(Error::Unsupported {
                    what: format!("static quantization of {}", other.kind()),
                    way_out: "leave it in float".into(),
                });
            }
        };
        match output.grid() {
            Some(grid) => self.add_codes(node, layer, &inputs, &[out], grid),
            None => {
                let name = self.lowering.model.edge_name(out).to_owned();
                let edge = self.net.add_node(node.name(), &[Some(&name)], layer, &inputs)?[0];
                self.made[out.index].plain = Some(edge);
                Ok(())
            }
        }
    }

    fn follower(&mut self, node: &Node, form: Form) -> Result<()> {
        let out = node.outputs()[0];
        let range = self.need_range(out)?;
        if let Form::Function(at) = form {
            let (x, from) = self.codes(node.inputs()[at].expect("a function reads this input"))?;
            let table = self.table(node, at, from, range)?;
            return self.add_codes(node, table.into(), &[Some(x)], &[out], range.grid);
        }
        let grid = range.grid;
        if let Form::Bound(at) = form {
            let inputs = self.bounded(node, at, range)?;
            return self.add_codes(node, node.layer().clone(), &inputs, &[out], grid);
        }
        let mut inputs = node.reads().map(|edge| self.codes(edge)).collect::<Result<Vec<_>>>()?;
        let layer: Layer = match (form, node.layer(), inputs.as_slice()) {
            (Form::Sum, _, &[(_, a), (_, b)]) => {
                QuantizedAdd::new(a, b, grid)?.with_range(range.lo, range.hi)?.with_isa(self.lowering.isa)?.into()
            }
            (Form::Product, _, &[(_, a), (_, b)]) => {
                QuantizedMul::new(a, b, grid)?.with_range(range.lo, range.hi)?.with_isa(self.lowering.isa)?.into()
            }
            (Form::Concat, layer, _) => {
                for (i, (edge, from)) in inputs.iter_mut().enumerate() {
                    *edge = self.requantized(&format!("{}/input {i}", node.name()), (*edge, *from), range)?;
                }
                layer.clone()
            }
            (Form::Mean, Layer::AvgPool2d(pool), &[(_, from)]) => QuantizedAvgPool::new(pool.clone(), from, grid)?.into(),
            (Form::Mean, Layer::Operator(Operator::Pool(pool)), &[(_, from)]) => QuantizedAvgPool::new(pool.clone(), from, grid)?.into(),
            (Form::Mean, Layer::GlobalAvgPool2d(_) | Layer::Operator(Operator::GlobalPool(_)), &[(_, from)]) => {
                QuantizedGlobalAvgPool::new(from, grid)?.into()
            }
            (_, layer, _) => {
                return Err(Error::Unsupported { what: format!("{} in integers", layer.kind()), way_out: "leave it in float".into() });
            }
        };
        let inputs: Vec<_> = inputs.into_iter().map(|(edge, _)| Some(edge)).collect();
        self.add_codes(node, layer, &inputs, &[out], grid)?;
        if let (Form::Mean, false, Some((codes, grid))) = (form, range.is_whole(), self.made[out.index].codes) {
            let name = self.code_name(out);
            let clamped = self.clamp(&name, codes, range)?;
            self.hold(out, clamped, grid)?;
        }
        Ok(())
    }

    /// The codes on another grid.
    fn requantized(&mut self, name: &str, (codes, from): (Edge, U8Grid), to: CodeRange) -> Result<Edge> {
        if from == to.grid {
            return Ok(codes);
        }
        let table = std::array::from_fn(|code| to.quantize(from.dequantize(code as u8)));
        self.net.add(&self.free(name), CodeTable::new("Requantize", table), &[codes])
    }

    /// The codes of both operands on one grid. Rounding never swaps the order of two values, so the lesser of two codes is the code of
    /// the lesser value.
    fn bounded(&mut self, node: &Node, at: usize, range: CodeRange) -> Result<Vec<Option<Edge>>> {
        let mut inputs = Vec::with_capacity(2);
        for (i, edge) in node.reads().enumerate() {
            let name = format!("{}/input {i}", node.name());
            inputs.push(Some(if i == at {
                let codes = self.codes(edge)?;
                self.requantized(&name, codes, range)?
            } else {
                let bound = self.constants.get(&edge.index).and_then(|value| value.get::<f32>()).expect("found by the roles");
                let codes = bound.as_slice().iter().map(|&bound| range.quantize(bound)).collect();
                let codes = Tensor::new(bound.dims(), codes)?;
                let codes = self.net.constant(&self.free(&name), codes)?;
                self.net.grid(codes, range.grid)?;
                codes
            }));
        }
        Ok(inputs)
    }

    /// The function's value for each code of its input, by the layer itself.
    fn table(&self, node: &Node, at: usize, from: U8Grid, to: CodeRange) -> Result<CodeTable> {
        let codes: Vec<f32> = (0..=255).map(|code| from.dequantize(code)).collect();
        let codes = Value::from(Tensor::new([256], codes)?);
        let inputs: Vec<Option<&Value>> = node
            .inputs()
            .iter()
            .enumerate()
            .map(|(i, edge)| if i == at { Some(&codes) } else { edge.and_then(|edge| self.constants.get(&edge.index)) })
            .collect();
        let values = evaluate_within(node.layer(), &inputs, 256)?;
        let values = values.as_deref().and_then(|values| values[0].get::<f32>()).filter(|values| values.len() == 256);
        let values = values.ok_or_else(|| Error::Unsupported {
            what: format!("{} as a function of one element", node.layer().kind()),
            way_out: "leave it in float".into(),
        })?;
        let mut table = [0; 256];
        for (code, &value) in table.iter_mut().zip(values.as_slice()) {
            *code = to.quantize(value);
        }
        let name = match node.layer() {
            Layer::Operator(operator) => operator.name(),
            Layer::Relu => "Relu",
            _ => "Clip",
        };
        Ok(CodeTable::new(name, table))
    }

    fn mover(&mut self, node: &Node) -> Result<()> {
        let from = node.reads().next().expect("checked when the types were inferred");
        let (x, grid) = self.codes(from)?;
        let mut inputs = vec![Some(x)];
        for edge in &node.inputs()[1..] {
            inputs.push(edge.map(|edge| self.plain(edge)).transpose()?);
        }
        let layer = match node.layer() {
            Layer::MaxPool2d(pool) => QuantizedMaxPool::new(pool.clone())?.into(),
            Layer::Operator(Operator::Pool(pool)) => QuantizedMaxPool::new(pool.clone())?.into(),
            layer => layer.clone(),
        };
        self.add_codes(node, layer, &inputs, node.outputs(), grid)
    }

    /// A node that writes codes.
    fn add_codes(&mut self, node: &Node, layer: Layer, inputs: &[Option<Edge>], outs: &[Edge], grid: U8Grid) -> Result<()> {
        let names: Vec<String> = outs.iter().map(|&edge| self.code_name(edge)).collect();
        let names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
        let edges = self.net.add_node(node.name(), &names, layer, inputs)?;
        for (out, edge) in outs.iter().zip(edges) {
            let wanted = self.range(*out).map_or(grid, |range| range.grid);
            let edge = match wanted == grid {
                true => edge,
                // Moved codes of a value that has a grid of its own.
                false => {
                    let name = self.free(&format!("{}/requantized", self.lowering.model.edge_name(*out)));
                    self.net.add(&name, CodeTable::requantize(grid, wanted), &[edge])?
                }
            };
            self.hold(*out, edge, wanted)?;
        }
        Ok(())
    }

    /// The codes of a value are there.
    fn hold(&mut self, edge: Edge, codes: Edge, grid: U8Grid) -> Result<()> {
        self.made[edge.index].codes = Some((codes, grid));
        self.net.grid(codes, grid)
    }

    fn code_name(&self, edge: Edge) -> String {
        self.given_name(edge, 0).map_or_else(|| self.lowering.model.edge_name(edge).to_owned(), |name| name.value.clone())
    }

    /// What the codes of an edge (0) or the floats made of them (1) are to be called.
    fn given_name(&self, edge: Edge, which: usize) -> Option<&FileName> {
        self.lowering.names.get(&edge.index)?[which].as_ref()
    }

    /// Names of the codes of an edge (0) or the floats made of them (1), and of the node that writes them.
    fn names(&self, edge: Edge, which: usize, suffix: &str) -> (String, String) {
        match self.given_name(edge, which) {
            Some(FileName { value, node }) if self.net.is_free(node) => (value.clone(), node.clone()),
            Some(FileName { value, .. }) => (value.clone(), self.free(&format!("{value}.node"))),
            None => {
                let name = self.free(&format!("{}/{suffix}", self.lowering.model.edge_name(edge)));
                (name.clone(), name)
            }
        }
    }

    /// A node that writes what it wrote.
    fn add_plain(&mut self, node: &Node, layer: Layer, inputs: &[Option<Edge>]) -> Result<()> {
        let model = self.lowering.model;
        let names: Vec<Option<&str>> = node.outputs().iter().map(|&edge| Some(model.edge_name(edge))).collect();
        let edges = self.net.add_node(node.name(), &names, layer, inputs)?;
        for (out, edge) in node.outputs().iter().zip(edges) {
            self.made[out.index].plain = Some(edge);
            if let Some(grid) = model.grid(*out) {
                self.net.grid(edge, grid)?;
            }
        }
        Ok(())
    }

    /// The value in its own type.
    fn plain(&mut self, edge: Edge) -> Result<Edge> {
        let made = self.made[edge.index];
        let rounds = self.lowering.rounds && self.range(edge).is_some();
        if let Some(done) = made.rounded.or(made.plain.filter(|_| !rounds)) {
            return Ok(done);
        }
        if let Some(value) = self.constants.get(&edge.index) {
            let made = self.net.constant(self.lowering.model.edge_name(edge), value.clone())?;
            self.made[edge.index].plain = Some(made);
            return Ok(made);
        }
        let (codes, grid) = self.codes(edge)?;
        let (name, node) = self.names(edge, 1, "dequantized");
        let grid = self.grid(&name, grid)?;
        let floats = self.net.add_as(&node, &name, DequantizeLinear::new(1, 0, None), &[codes, grid[0], grid[1]])?;
        self.made[edge.index].rounded = Some(floats);
        Ok(floats)
    }

    /// The value's codes.
    fn codes(&mut self, edge: Edge) -> Result<(Edge, U8Grid)> {
        if let Some(codes) = self.made[edge.index].codes {
            return Ok(codes);
        }
        let range = self.need_range(edge)?;
        let plain = self.made[edge.index].plain.ok_or_else(|| Error::Unsupported {
            what: format!("codes of the constant `{}`", self.lowering.model.edge_name(edge)),
            way_out: "leave what reads it in float".into(),
        })?;
        let (name, node) = self.names(edge, 0, "quantized");
        let grid = self.grid(&name, range.grid)?;
        let mut made = self.net.add_as(&node, &name, QuantizeLinear::new(1, 0, Some(DType::U8)), &[plain, grid[0], grid[1]])?;
        if !range.is_whole() {
            made = self.clamp(&name, made, range)?;
        }
        self.hold(edge, made, range.grid)?;
        Ok((made, range.grid))
    }

    /// Codes of fewer bits, of a node that could write others.
    fn clamp(&mut self, name: &str, codes: Edge, range: CodeRange) -> Result<Edge> {
        let table = std::array::from_fn(|code| (code as u8).clamp(range.lo, range.hi));
        let name = self.free(&format!("{name}/clamped"));
        self.net.add(&name, CodeTable::new("Clip", table), &[codes])
    }

    /// Scale and zero point as constants.
    fn grid(&mut self, of: &str, grid: U8Grid) -> Result<[Edge; 2]> {
        let (scale, zero_point) = (self.free(&format!("{of}/scale")), self.free(&format!("{of}/zero_point")));
        Ok([
            self.net.constant(&scale, Tensor::new(Vec::new(), vec![grid.scale()])?)?,
            self.net.constant(&zero_point, Tensor::new(Vec::new(), vec![grid.zero_point()])?)?,
        ])
    }

    /// A name that no node has so far, and no value of either model.
    fn free(&self, name: &str) -> String {
        let mut name = name.to_owned();
        while !self.net.is_free(&name) || self.reserved.contains(name.as_str()) {
            name.push('\'');
        }
        name
    }
}
