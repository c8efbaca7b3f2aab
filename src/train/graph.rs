//! A model's graph, walked forwards and backwards.

use std::collections::HashMap;

use super::arithmetic::{Arithmetic, Mode};
use super::array::Array;
use super::ops::{Backward, Differentiable, Forward, Held, Layout, Saved, evaluate_all, of};
use super::parameter::{Gradients, Parameter, ParameterKind};
use super::tape::{Run, Sums, Tape, hold};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::{Binary, Operator};
use crate::nn::{BatchNorm2d, Conv2d, Edge, Embedding, Layer, Linear, Model, Node, Wiring};
use crate::tensor::{DType, Tensor, Value};

/// A model with what each node does in both directions.
#[derive(Debug)]
pub(crate) struct Graph {
    model: Model,
    /// By node: its function, where gradients go through it.
    functions: Vec<Option<Box<dyn Differentiable>>>,
    /// By node: the places of its parameters.
    own: Vec<Vec<usize>>,
    /// Constants that are parameters.
    constants: Vec<Constant>,
    /// By edge: whether its value depends on a parameter that is trained.
    depends: Vec<bool>,
    /// Whether batch norms keep their statistics, and use them, in training too.
    pub frozen: bool,
    threads: usize,
    workspace: Workspace,
}

/// A constant of the model that is a parameter.
#[derive(Debug)]
struct Constant {
    edge: usize,
    place: usize,
    /// By gradients; else it is a statistic.
    learned: bool,
}

/// Constants that a node learns, or keeps statistics in: which of its inputs, and what they are.
fn learned_inputs(layer: &Layer) -> &'static [(usize, ParameterKind)] {
    use ParameterKind::{Norm, Statistic};
    match layer {
        Layer::Operator(Operator::LayerNormalization(_)) => &[(1, Norm), (2, Norm)],
        Layer::Operator(Operator::Binary(Binary::PRelu)) => &[(1, Norm)],
        Layer::Operator(Operator::BatchNormalization(_)) => &[(1, Norm), (2, Norm), (3, Statistic), (4, Statistic)],
        _ => &[],
    }
}

impl Graph {
    /// The graph and its parameters, in the model's order; `frozen` where statistics of batch norms will not move.
    ///
    /// # Errors
    /// [`Error::Unsupported`], inside an [`Error::Layer`], for a layer between parameters and outputs that has no derivative.
    pub fn new(model: &Model, frozen: bool) -> Result<(Graph, Vec<Parameter>)> {
        let (mut functions, mut own, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
        for node in model.nodes() {
            let (function, more) = of(node.name(), node.layer()).map_or((None, Vec::new()), |(function, more)| (Some(function), more));
            own.push((parameters.len()..parameters.len() + more.len()).collect());
            functions.push(function);
            parameters.extend(more);
        }
        let (wiring, mut constants) = (Wiring::new(model), Vec::new());
        for node in model.nodes() {
            for &(input, kind) in learned_inputs(node.layer()) {
                let Some(edge) = node.inputs().get(input).copied().flatten() else { continue };
                let readers = model.nodes().iter().flat_map(Node::reads).filter(|other| other.index == edge.index).count();
                if kind == ParameterKind::Statistic && !frozen && readers > 1 && wiring.constants[edge.index].is_some() {
                    let error = Error::Unsupported {
                        what: format!("training with `{}` as a statistic of this layer and something else besides", model.edge_name(edge)),
                        way_out: "give each its own constant".into(),
                    };
                    return Err(error.in_layer(node.name()));
                }
                if let Some(Value::F32(value)) = wiring.constants[edge.index]
                    && constants.iter().all(|known: &Constant| known.edge != edge.index)
                {
                    constants.push(Constant { edge: edge.index, place: parameters.len(), learned: kind != ParameterKind::Statistic });
                    parameters.push(Parameter::new(model.edge_name(edge), value.clone(), kind));
                }
            }
        }
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        let depends = vec![false; model.edge_count()];
        let workspace = Workspace::default();
        let mut graph = Graph { model: model.clone(), functions, own, constants, depends, frozen, threads, workspace };
        graph.trace(false, &|_| false)?;
        Ok((graph, parameters))
    }

    /// Finds the edges that depend on what is learned, `also` among it what is learned at edges themselves.
    pub fn trace(&mut self, inputs_too: bool, also: &dyn Fn(usize) -> bool) -> Result<()> {
        let mut depends: Vec<bool> = (0..self.model.edge_count()).map(also).collect();
        self.constants.iter().filter(|constant| constant.learned).for_each(|constant| depends[constant.edge] = true);
        let inputs = self.model.inputs().iter().map(|input| input.edge());
        inputs.filter(|&edge| inputs_too && self.model.edge_type(edge) == DType::F32).for_each(|edge| depends[edge.index] = true);
        for (index, node) in self.model.nodes().iter().enumerate() {
            if self.own[index].is_empty() && !node.reads().any(|edge| depends[edge.index]) {
                continue;
            }
            let floats = node.outputs().iter().filter(|&&edge| self.model.edge_type(edge) == DType::F32);
            floats.for_each(|edge| depends[edge.index] = true);
            let learns = node.outputs().iter().any(|edge| depends[edge.index]);
            let function = self.functions[index].as_ref();
            let from = |function: &dyn Differentiable| {
                let learned = (0..).zip(node.inputs()).filter(|(_, edge)| edge.is_some_and(|edge| depends[edge.index]));
                learned.into_iter().all(|(input, _)| function.has_derivative(input))
            };
            let goes_through = |function: &dyn Differentiable| from(function) && (node.outputs().len() == 1 || function.writes_several());
            if learns && !function.is_some_and(|function| goes_through(&**function)) {
                let error = Error::Unsupported {
                    what: format!("the derivative of {}", node.layer().kind()),
                    way_out: "train what comes after it, or take the layer out".into(),
                };
                return Err(error.in_layer(node.name()));
            }
        }
        self.depends = depends;
        Ok(())
    }

    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn set_threads(&mut self, threads: usize) -> Result<()> {
        if threads == 0 {
            return Err(Error::parameter("threads", 0, "must be at least 1"));
        }
        self.threads = threads;
        Ok(())
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The places of a node's parameters.
    pub fn own(&self, node: usize) -> &[usize] {
        &self.own[node]
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The value that `reader` (a node, or an output of the model) reads.
    fn read(&self, tape: &Tape, reader: Option<usize>, edge: Edge, arithmetic: &dyn Arithmetic) -> Held {
        let rounded = tape.rounded[edge.index].as_ref().filter(|_| arithmetic.reads_rounded(reader, edge.index));
        match rounded {
            Some(array) => Held::Float(array.clone()),
            None => tape.values[edge.index].clone().expect("written by a node before"),
        }
    }

    /// Runs the graph. Running statistics among the parameters move, in training.
    ///
    /// # Errors
    /// [`Error::Unknown`] for an input that is missing or that the model has not; of shapes that do not fit, naming the layer.
    pub fn forward(
        &mut self,
        parameters: &mut [Parameter],
        arithmetic: &mut dyn Arithmetic,
        inputs: &[(&str, &Value)],
        mode: Mode,
    ) -> Result<Tape> {
        let (edges, nodes) = (self.model.edge_count(), self.model.nodes().len());
        let runs = std::iter::repeat_with(|| None).take(nodes).collect();
        let mut tape = Tape { values: vec![None; edges], rounded: vec![None; edges], runs, outputs: Vec::new() };
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !self.model.inputs().iter().any(|input| input.name() == *name)) {
            return Err(self.model.unknown_input(name));
        }
        for input in self.model.inputs() {
            let given = inputs.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value);
            let given = given.ok_or_else(|| Error::Unknown {
                what: "given input",
                name: input.name().to_owned(),
                present: inputs.iter().map(|(name, _)| *name).collect(),
            })?;
            input.check(given)?;
            hold(&mut tape, input.edge(), Held::of(given.clone()), arithmetic, parameters, mode)?;
        }
        for (edge, value) in self.model.constants() {
            tape.values[edge.index] = Some(Held::of(value.clone()));
        }
        for &Constant { edge, place, .. } in &self.constants {
            tape.values[edge] = Some(Held::of(Value::from(parameters[place].value().clone())));
        }
        for index in 0..nodes {
            let name = self.model.nodes()[index].name().to_owned();
            self.step(index, &mut tape, parameters, arithmetic, mode).map_err(|error| error.in_layer(&name))?;
        }
        for output in self.model.outputs() {
            if let Held::Float(array) = self.read(&tape, None, output.edge(), arithmetic) {
                tape.outputs.push((output.name().to_owned(), array.to_tensor()?));
            }
        }
        match tape.outputs.is_empty() {
            true => Err(Error::Empty { what: "list of the model's float outputs".into(), way_out: "declare one to train it" }),
            false => Ok(tape),
        }
    }

    fn step(
        &mut self,
        index: usize,
        tape: &mut Tape,
        parameters: &mut [Parameter],
        arithmetic: &mut dyn Arithmetic,
        mode: Mode,
    ) -> Result<()> {
        let node = &self.model.nodes()[index];
        let mut inputs: Vec<Option<Held>> =
            node.inputs().iter().map(|edge| edge.map(|edge| self.read(tape, Some(index), edge, arithmetic))).collect();
        let function = self.functions[index].as_ref().filter(|_| self.depends[node.outputs()[0].index]);
        arrange(&mut inputs, function.map_or(Layout::RowMajor, |function| function.layout()))?;
        let Some(function) = function.filter(|_| node.outputs().len() == 1) else {
            let values = evaluate_all(node.layer(), &inputs)?;
            for (&edge, value) in node.outputs().iter().zip(values) {
                hold(tape, edge, value, arithmetic, parameters, mode)?;
            }
            tape.runs[index] = function.map(|_| Run { inputs, parameters: None, saved: Saved::default() });
            return Ok(());
        };
        let own = &self.own[index];
        let effective = arithmetic.parameters(index, own, parameters)?;
        let borrowed: Vec<&[f32]> = match &effective {
            Some(effective) => effective.iter().map(Vec::as_slice).collect(),
            None => own.iter().map(|&place| parameters[place].value().as_slice()).collect(),
        };
        let mut run = Forward {
            inputs: &inputs,
            parameters: &borrowed,
            mode: if self.frozen { Mode::Evaluate } else { mode },
            workspace: &mut self.workspace,
            threads: self.threads,
            exact: arithmetic.adds_exactly(),
            saved: Saved::default(),
            statistics: Vec::new(),
            input_statistics: Vec::new(),
        };
        let output = function.forward(&mut run)?;
        let Forward { saved, statistics, input_statistics, .. } = run;
        let place_of = |input: usize| {
            let edge = node.inputs()[input]?;
            self.constants.iter().find(|constant| constant.edge == edge.index).map(|constant| constant.place)
        };
        let of_inputs = input_statistics.into_iter().filter_map(|(input, value)| Some((place_of(input)?, value)));
        for (place, value) in statistics.into_iter().map(|(at, value)| (own[at], value)).chain(of_inputs) {
            parameters[place].value_mut().as_mut_slice().copy_from_slice(&value);
        }
        hold(tape, node.outputs()[0], Held::Float(output), arithmetic, parameters, mode)?;
        tape.runs[index] = Some(Run { inputs, parameters: effective, saved });
        Ok(())
    }

    /// The gradients of a loss by all parameters, given those by the named outputs.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is no output, [`Error::Shape`] for a gradient of another shape than the output.
    pub fn backward(
        &mut self,
        parameters: &[Parameter],
        arithmetic: &mut dyn Arithmetic,
        tape: &Tape,
        by_outputs: &[(&str, &Tensor)],
    ) -> Result<Gradients> {
        let edges = self.model.edge_count();
        let mut by = Sums { plain: vec![None; edges], rounded: vec![None; edges] };
        let mut sums = Gradients::new(parameters);
        for (name, gradient) in by_outputs {
            let unknown = || Error::Unknown {
                what: "output",
                name: (*name).to_owned(),
                present: self.model.outputs().iter().map(|output| output.name()).collect(),
            };
            let (_, value) = tape.outputs.iter().find(|(other, _)| other == name).ok_or_else(unknown)?;
            if value.dims() != gradient.dims() {
                return Err(Error::shape(format!("gradient by output `{name}`"), format!("{:?}", value.dims()), gradient.dims()));
            }
            let edge = self.model.outputs().iter().find(|output| output.name() == *name).ok_or_else(unknown)?.edge();
            by.add(tape, arithmetic, None, edge, Array::row_major((*gradient).clone()))?;
        }
        for index in (0..self.model.nodes().len()).rev() {
            let name = self.model.nodes()[index].name().to_owned();
            self.back(index, tape, &mut by, &mut sums, parameters, arithmetic).map_err(|error| error.in_layer(&name))?;
        }
        for &Constant { edge, place, .. } in &self.constants {
            if let Some(mut gradient) = by.plain[edge].take() {
                arithmetic.gradient(edge, &mut gradient);
                sums.add(place, gradient.to_tensor()?.into_vec());
            }
        }
        for input in self.model.inputs() {
            let gradient = by.total(tape, input.edge().index, arithmetic, parameters, &mut sums)?;
            if let Some(gradient) = gradient.filter(|_| self.depends[input.edge().index]) {
                sums.by_input.push((input.name().to_owned(), gradient.to_tensor()?));
            }
        }
        Ok(sums)
    }

    fn back(
        &mut self,
        index: usize,
        tape: &Tape,
        by: &mut Sums,
        sums: &mut Gradients,
        parameters: &[Parameter],
        arithmetic: &mut dyn Arithmetic,
    ) -> Result<()> {
        (0..self.model.nodes()[index].outputs().len())
            .try_for_each(|at| self.back_from((index, at), tape, by, sums, parameters, arithmetic))
    }

    /// From one output of a node.
    fn back_from(
        &mut self,
        (index, at): (usize, usize),
        tape: &Tape,
        by: &mut Sums,
        sums: &mut Gradients,
        parameters: &[Parameter],
        arithmetic: &mut dyn Arithmetic,
    ) -> Result<()> {
        let node = &self.model.nodes()[index];
        let (Some(run), Some(function)) = (&tape.runs[index], &self.functions[index]) else { return Ok(()) };
        let out = node.outputs()[at].index;
        let Some(mut gradient) = by.total(tape, out, arithmetic, parameters, sums)? else { return Ok(()) };
        let Some(Held::Float(output)) = &tape.values[out] else { return Ok(()) };
        gradient = gradient.in_order(output.is_channels_last())?;
        arithmetic.gradient(out, &mut gradient);
        let own = &self.own[index];
        let borrowed: Vec<&[f32]> = match &run.parameters {
            Some(effective) => effective.iter().map(Vec::as_slice).collect(),
            None => own.iter().map(|&place| parameters[place].value().as_slice()).collect(),
        };
        let wanted: Vec<bool> = node.inputs().iter().map(|edge| edge.is_some_and(|edge| self.depends[edge.index])).collect();
        let mut back = Backward {
            inputs: &run.inputs,
            parameters: &borrowed,
            output,
            at,
            gradient: &gradient,
            saved: &run.saved,
            wanted: &wanted,
            workspace: &mut self.workspace,
            threads: self.threads,
            exact: arithmetic.adds_exactly(),
            by_input: vec![None; node.inputs().len()],
            by_parameter: Vec::new(),
        };
        function.backward(&mut back)?;
        let Backward { by_input, by_parameter, .. } = back;
        if !own.is_empty() {
            arithmetic.parameter_gradients(index, own, parameters, by_parameter, sums)?;
        }
        for ((edge, gradient), _) in node.inputs().iter().zip(by_input).zip(wanted).filter(|(_, wanted)| *wanted) {
            if let (Some(edge), Some(gradient)) = (edge, gradient) {
                by.add(tape, arithmetic, Some(index), *edge, gradient)?;
            }
        }
        Ok(())
    }

    /// The model with these parameters.
    ///
    /// # Errors
    /// None that values of the shapes they had can meet, but for a batch norm whose variance is not above zero.
    pub fn to_model(&self, parameters: &[Parameter]) -> Result<Model> {
        let value = |node: usize, at: usize| self.own[node].get(at).map(|&place| parameters[place].value().clone());
        let node = |(index, node): (usize, &Node)| -> Result<Node> {
            let (weight, bias) = (value(index, 0), value(index, 1));
            let layer: Layer = match (node.layer(), weight) {
                (Layer::Conv2d(conv), Some(weight)) => Conv2d::new(conv.geometry().clone(), weight, bias)?.into(),
                (Layer::Linear(_), Some(weight)) => Linear::new(weight, bias)?.into(),
                (Layer::Embedding(_), Some(weight)) => Embedding::new(weight)?.into(),
                (Layer::BatchNorm2d(norm), Some(weight)) => match (bias, value(index, 2), value(index, 3)) {
                    (Some(bias), Some(mean), Some(variance)) => BatchNorm2d::new(weight, bias, mean, variance, norm.epsilon())?.into(),
                    _ => return Ok(node.clone()),
                },
                _ => return Ok(node.clone()),
            };
            Ok(node.with_layer(layer))
        };
        let nodes = self.model.nodes().iter().enumerate().map(|(i, n)| node((i, n)).map_err(|e| e.in_layer(n.name())));
        let constants: HashMap<usize, Value> =
            self.constants.iter().map(|&Constant { edge, place, .. }| (edge, Value::from(parameters[place].value().clone()))).collect();
        let nodes = nodes.collect::<Result<Vec<Node>>>()?;
        Ok(self.model.with_nodes(nodes, self.model.conversion().cloned()).with_constants(&constants))
    }
}

/// Puts images in the order that a layer asks for.
fn arrange(inputs: &mut [Option<Held>], layout: Layout) -> Result<()> {
    let alike = |inputs: &[Option<Held>]| {
        let mut arrays = inputs.iter().flatten().map(|held| match held {
            Held::Float(array) => Some(array),
            Held::Other(_) => None,
        });
        let first = arrays.next()??;
        let dims = first.dims();
        arrays.all(|array| array.is_some_and(|array| array.dims() == dims)).then_some(first.is_channels_last())
    };
    let channels_last = match layout {
        Layout::RowMajor => false,
        Layout::ChannelsLast => true,
        Layout::Alike => alike(inputs).unwrap_or(false),
    };
    for held in inputs.iter_mut().flatten() {
        if let Held::Float(array) = held {
            *array = array.in_order(channels_last)?;
        }
    }
    Ok(())
}
