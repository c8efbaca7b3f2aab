//! One block: what it computes, and how it learns.

use std::collections::{HashMap, HashSet};

use super::arithmetic::{Chance, Grid, Rounder, Stand, Weights};
use super::blocks::{Block, Excerpt};
use super::{Reconstruction, SoftRounding};
use crate::convert::{Calibration, StaticPlan};
use crate::error::{Error, Result};
use crate::nn::Edge;
use crate::ptq::units::Units;
use crate::tensor::{QParams, QuantizedTensor, Tensor, Value};
use crate::train::{Adam, Array, Gradients, Graph, Mode, Optimizer, Parameter, ParameterKind, shuffled};

/// By edge: its value in the float network and in the one that is rebuilt, unrounded, by unit.
pub(super) type Values = HashMap<Edge, [Vec<Value>; 2]>;

/// By position of a layer: the codes that it begins with, and the grid on which it learns.
pub(super) type Starts = HashMap<usize, (QuantizedTensor<i8>, QParams)>;

/// A block with what it computes in.
pub(super) struct Bench<'b> {
    block: &'b Block,
    excerpt: &'b Excerpt,
    graph: Graph,
    parameters: Vec<Parameter>,
    rounder: Rounder,
    /// By anchor of the whole model: its place among the excerpt's nodes.
    anchors: Vec<(usize, usize)>,
    /// By edge of the whole model whose grid it is: the grid, and what it began with.
    grids: Vec<(usize, Grid, QParams)>,
}

/// What there is to learn from.
#[derive(Clone, Copy)]
pub(super) struct Lesson<'l> {
    pub how: &'l Reconstruction,
    pub units: Units,
    pub learning: &'l [usize],
    pub values: &'l Values,
    /// What the block writes in the float network, by output and unit.
    pub targets: &'l [Vec<Value>],
}

/// What the bench is to know of the whole.
pub(super) struct Setting<'s> {
    pub plan: &'s StaticPlan,
    pub calibration: &'s Calibration,
    /// By edge that is rounded: the edge whose grid it gets.
    pub grids: &'s HashMap<usize, usize>,
    /// Grids that an earlier block has learned.
    pub taken: &'s HashSet<usize>,
    pub learns_scales: bool,
    pub threads: usize,
}

impl<'b> Bench<'b> {
    /// # Errors
    /// [`Error::Unsupported`], inside an [`Error::Layer`], for a layer without a derivative.
    pub fn new(block: &'b Block, excerpt: &'b Excerpt, start: &Starts, setting: &Setting<'_>) -> Result<Self> {
        let Setting { plan, calibration, grids, taken, learns_scales, threads } = *setting;
        let (mut graph, mut parameters) = Graph::new(&excerpt.model, true)?;
        graph.set_threads(threads)?;
        let (own_edges, own_nodes) = (excerpt.model.edge_count(), excerpt.model.nodes().len());
        let (mut by_root, mut known): (HashMap<usize, Grid>, Vec<_>) = (HashMap::new(), Vec::new());
        let mut rounded = HashMap::new();
        let mut here: Vec<(usize, usize)> =
            grids.iter().map(|(&edge, &root)| (edge, root)).filter(|(edge, _)| excerpt.rounds(block, *edge)).collect();
        here.sort_unstable();
        for (edge, root) in here {
            let grid = match by_root.get(&root) {
                Some(&grid) => grid,
                None => {
                    let name = plan.model().edge_name_of(root);
                    let params = calibration.get(name).ok_or_else(|| Error::Unknown {
                        what: "calibrated value",
                        name: name.to_owned(),
                        present: calibration.activations().map(|(name, _)| name).collect(),
                    })?;
                    let (scale, zero_point) = params.at(0);
                    let log = Tensor::full([1], f64::from(scale).ln() as f32)?;
                    parameters.push(Parameter::new(format!("{name}.log_scale"), log, ParameterKind::Quantization));
                    let learned = learns_scales && !taken.contains(&root);
                    let steps = ((params.qmin() - zero_point) as f32, (params.qmax() - zero_point) as f32);
                    let drops = steps.1 - steps.0 < 255.0;
                    let grid = Grid { place: parameters.len() - 1, steps, learned, drops };
                    known.push((root, grid, params.clone()));
                    by_root.insert(root, grid);
                    grid
                }
            };
            rounded.extend(excerpt.edges[edge].map(|own| (own.index, grid)));
        }
        let (mut integer, mut only_codes) = (vec![false; own_nodes], vec![false; own_edges]);
        for (input, edge) in excerpt.model.inputs().iter().zip(&excerpt.inputs) {
            let writer = plan.model().nodes().iter().position(|node| node.outputs().contains(edge));
            only_codes[input.edge().index] = writer.is_some_and(|writer| plan.is_integer(writer));
        }
        let (mut weights, mut anchors) = (HashMap::new(), Vec::new());
        for (own, &node) in excerpt.nodes.iter().enumerate() {
            integer[own] = plan.is_integer(node);
            excerpt.model.nodes()[own].outputs().iter().for_each(|edge| only_codes[edge.index] = integer[own]);
            let (Some(anchor), Some((codes, grid))) = (plan.anchor(node), start.get(&node)) else { continue };
            let place = graph.own(own)[0];
            let soft = SoftRounding::new(parameters[place].value(), grid).map_err(|error| error.in_layer(name(plan, node)))?;
            let dims = parameters[place].value().dims().to_vec();
            *parameters[place].value_mut() = Tensor::new(dims, soft.start())?;
            let read = plan.model().nodes()[node].reads().next().map(|edge| plan.root(edge.index));
            let input = read.and_then(|root| grids.get(&root)).and_then(|root| by_root.get(root)).copied();
            let input = input.filter(|_| anchor.out.is_some());
            let logs: Vec<f32> = soft.scales().iter().map(|&scale| f64::from(scale).ln() as f32).collect();
            let logs = Tensor::new([logs.len()], logs)?;
            parameters.push(Parameter::new(format!("{}.log_scales", name(plan, node)), logs, ParameterKind::Quantization));
            weights.insert(own, Weights { soft, scales: parameters.len() - 1, start: codes.clone(), input });
            anchors.push((node, own));
        }
        graph.trace(false, &|edge| rounded.get(&edge).is_some_and(|grid: &Grid| grid.learned))?;
        let left = HashMap::new();
        let rounder = Rounder { grids: rounded, weights, integer, only_codes, stand: Stand::Start, chance: None, left, threads };
        Ok(Bench { block, excerpt, graph, parameters, rounder, anchors, grids: known })
    }

    /// The grids that were learned, by edge of the whole model whose they are.
    ///
    /// # Errors
    /// [`Error::Scale`] for a scale that is not finite and above zero.
    pub fn scales(&self) -> Result<Vec<(usize, QParams)>> {
        let learned = self.grids.iter().filter(|(_, grid, _)| grid.learned);
        let params = |(root, grid, params): &(usize, Grid, QParams)| {
            let scale = grid.scale(&self.parameters);
            Ok((*root, QParams::per_tensor(scale, params.at(0).1, params.qmin(), params.qmax())?))
        };
        learned.map(params).collect()
    }

    /// The codes that were learned, by position in the whole model.
    ///
    /// # Errors
    /// As [`Bench::scales`].
    pub fn codes(&self) -> Result<Vec<(usize, QuantizedTensor<i8>)>> {
        let codes = |&(node, own): &(usize, usize)| {
            let learned = self.parameters[self.graph.own(own)[0]].value().as_slice();
            let weights = &self.rounder.weights[&own];
            Ok((node, weights.soft.codes(learned, &weights.scales(&self.parameters))?))
        };
        self.anchors.iter().map(codes).collect()
    }

    fn inputs(&self, lesson: &Lesson<'_>, of: &[usize], side: usize) -> Result<Vec<(String, Value)>> {
        let own = self.excerpt.model.inputs().iter().zip(&self.excerpt.inputs);
        own.map(|(input, edge)| Ok((input.name().to_owned(), lesson.units.gather(&lesson.values[edge][side], of)?))).collect()
    }

    /// The block's outputs, in their order and by unit, with one of its weights.
    ///
    /// # Errors
    /// Of shapes that do not fit.
    pub fn run(&mut self, stand: Stand, lesson: &Lesson<'_>) -> Result<Vec<Vec<Value>>> {
        (self.rounder.stand, self.rounder.chance) = (stand, None);
        let all: Vec<usize> = (0..lesson.units.count).collect();
        let mut outputs: Vec<Vec<Value>> = vec![Vec::with_capacity(all.len()); self.block.outputs.len()];
        for of in lesson.units.batches(&all, lesson.how.batch) {
            let inputs = self.inputs(lesson, &of, 1)?;
            let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let tape = self.graph.forward(&mut self.parameters, &mut self.rounder, &inputs, Mode::Evaluate)?;
            for (list, (_, value)) in outputs.iter_mut().zip(tape.outputs()) {
                list.extend(lesson.units.split(&Value::from(value.clone()), of.len())?);
            }
        }
        Ok(outputs)
    }

    /// Learns roundings and scales. `unit` is the error of a sample that the block began with, of which errors are counted in parts.
    ///
    /// # Errors
    /// What `tell` returns, which is called before each step.
    pub fn learn(&mut self, lesson: &Lesson<'_>, unit: f64, seed: u64, tell: &mut dyn FnMut(usize) -> Result<()>) -> Result<()> {
        let how = lesson.how;
        let mut adam = Adam::new(how.rate).with_factor(ParameterKind::Quantization, how.scale_rate / how.rate);
        let layers: Vec<(usize, usize)> = self.anchors.iter().map(|&(_, own)| (own, self.graph.own(own)[0])).collect();
        let count: usize = layers.iter().map(|&(_, place)| self.parameters[place].value().len()).sum();
        let grids: Vec<usize> = self.grids.iter().filter(|(_, grid, _)| grid.learned).map(|(_, grid, _)| grid.place).collect();
        let (mut rest, mut epoch) = (Vec::new(), 0);
        for step in 0..how.steps {
            tell(step)?;
            if rest.is_empty() {
                let order = shuffled(lesson.learning.len(), seed.wrapping_add(epoch));
                let order: Vec<usize> = order.into_iter().map(|at| lesson.learning[at]).collect();
                rest = lesson.units.batches(&order, how.batch);
                epoch += 1;
            }
            let of = rest.pop().expect("there are samples to learn from");
            let mut all = self.by_error(lesson, &of, unit, (seed, step))?;
            let mut gradients = Gradients::new(&self.parameters);
            for &(own, place) in &layers {
                let (v, weights) = (self.parameters[place].value().as_slice(), &self.rounder.weights[&own]);
                let mut gradient = std::mem::take(&mut all.by_parameter[place]);
                gradient.resize(v.len(), 0.0);
                if let Some(beta) = how.beta(step) {
                    weights.soft.add_pressure(v, beta, (how.pressure / count as f64) as f32, &mut gradient)?;
                }
                gradients.by_parameter[place] = gradient;
                gradients.by_parameter[weights.scales] = std::mem::take(&mut all.by_parameter[weights.scales]);
            }
            grids.iter().for_each(|&place| gradients.by_parameter[place] = std::mem::take(&mut all.by_parameter[place]));
            let updates = adam.updates(&self.parameters, &gradients)?;
            for (parameter, update) in self.parameters.iter_mut().zip(updates) {
                parameter.value_mut().as_mut_slice().iter_mut().zip(update).for_each(|(value, update)| *value += update);
            }
        }
        Ok(())
    }

    /// The gradients of the error of some samples.
    fn by_error(&mut self, lesson: &Lesson<'_>, of: &[usize], unit: f64, (seed, step): (u64, usize)) -> Result<Gradients> {
        let inputs = self.inputs(lesson, of, 1)?;
        let named: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        self.rounder.stand = Stand::Soft;
        self.rounder.chance = match lesson.how.drop > 0.0 && self.grids.iter().any(|(_, grid, _)| grid.drops) {
            true => Some(self.chance(lesson, of, (seed, step))?),
            false => None,
        };
        let tape = self.graph.forward(&mut self.parameters, &mut self.rounder, &named, Mode::Train)?;
        let factor = 2.0 / (unit * of.len() as f64);
        let mut by_outputs = Vec::new();
        for ((name, y), target) in tape.outputs().iter().zip(lesson.targets) {
            let target = lesson.units.gather(target, of)?;
            let target = target.get::<f32>().map(Tensor::as_slice).unwrap_or_default();
            let off = y.as_slice().iter().zip(target).map(|(y, t)| ((f64::from(*y) - f64::from(*t)) * factor) as f32);
            by_outputs.push((name.as_str(), Tensor::new(y.dims(), off.collect())?));
        }
        let by_outputs: Vec<(&str, &Tensor)> = by_outputs.iter().map(|(name, gradient)| (*name, gradient)).collect();
        self.graph.backward(&self.parameters, &mut self.rounder, &tape, &by_outputs)
    }

    fn chance(&self, lesson: &Lesson<'_>, of: &[usize], (seed, step): (u64, usize)) -> Result<Chance> {
        let mut float = HashMap::new();
        for (input, (_, value)) in self.excerpt.model.inputs().iter().zip(self.inputs(lesson, of, 0)?) {
            if let Value::F32(value) = value {
                float.insert(input.edge().index, Array::row_major(value));
            }
        }
        // Steps lie further apart than edges and samples do.
        let seed = seed.wrapping_add(step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Ok(Chance { probability: lesson.how.drop, seed, samples: of.to_vec(), float })
    }
}

fn name(plan: &StaticPlan, node: usize) -> &str {
    plan.model().nodes()[node].name()
}
