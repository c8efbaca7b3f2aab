//! One block: what it computes, and how it learns.

use std::collections::HashMap;

use super::arithmetic::{Chance, Grid, Rounder, Stand, Weights};
use super::blocks::{Block, Excerpt};
use super::units::Units;
use super::{Reconstruction, SoftRounding};
use crate::convert::{Calibration, StaticPlan};
use crate::error::{Error, Result};
use crate::nn::Edge;
use crate::progress::Progress;
use crate::tensor::{QParams, QuantizedTensor, Tensor, Value};
use crate::train::{Adam, Array, Gradients, Graph, Mode, Optimizer, Parameter, ParameterKind, shuffled};

/// By edge: its value in the float network and in the one that is rebuilt, unrounded, by unit.
pub(super) type Values = HashMap<Edge, [Vec<Value>; 2]>;

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

/// What the bench is to know of the whole.
pub(super) struct Setting<'s> {
    pub plan: &'s StaticPlan,
    pub calibration: &'s Calibration,
    /// By edge that is rounded: the edge whose grid it gets.
    pub grids: &'s HashMap<usize, usize>,
    /// Grids that an earlier block has learned.
    pub taken: &'s [usize],
    pub learns_scales: bool,
    pub threads: usize,
}

impl<'b> Bench<'b> {
    /// # Errors
    /// [`Error::Unsupported`], inside an [`Error::Layer`], for a layer without a derivative.
    pub fn new(block: &'b Block, excerpt: &'b Excerpt, start: &HashMap<usize, QuantizedTensor<i8>>, setting: &Setting<'_>) -> Result<Self> {
        let Setting { plan, calibration, grids, taken, learns_scales, threads } = *setting;
        let (mut graph, mut parameters) = Graph::new(&excerpt.model, true)?;
        graph.set_threads(threads)?;
        let (own_edges, own_nodes) = (excerpt.model.edge_count(), excerpt.model.nodes().len());
        // Outputs that are read later are rounded there.
        let is_here = |edge: usize| excerpt.edges[edge].is_some() && block.open.iter().all(|open| open.index != edge);
        let (mut by_root, mut known): (HashMap<usize, Grid>, Vec<(usize, Grid, QParams)>) = Default::default();
        let mut rounded = HashMap::new();
        let mut here: Vec<(usize, usize)> = grids.iter().map(|(&edge, &root)| (edge, root)).filter(|(edge, _)| is_here(*edge)).collect();
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
                    let grid = Grid { place: parameters.len() - 1, steps, learned };
                    known.push((root, grid, params.clone()));
                    by_root.insert(root, grid);
                    grid
                }
            };
            rounded.extend(excerpt.edges[edge].map(|own| (own.index, grid)));
        }
        let (mut integer, mut only_codes) = (vec![false; own_nodes], vec![false; own_edges]);
        let (mut weights, mut anchors) = (HashMap::new(), Vec::new());
        for (own, &node) in excerpt.nodes.iter().enumerate() {
            integer[own] = plan.is_integer(node);
            excerpt.model.nodes()[own].outputs().iter().for_each(|edge| only_codes[edge.index] = integer[own]);
            let (Some(anchor), Some(codes)) = (plan.anchor(node), start.get(&node)) else { continue };
            let place = graph.own(own)[0];
            let soft = SoftRounding::new(parameters[place].value(), codes.params()).map_err(|error| error.in_layer(name(plan, node)))?;
            let dims = parameters[place].value().dims().to_vec();
            *parameters[place].value_mut() = Tensor::new(dims, soft.start())?;
            let read = plan.model().nodes()[node].reads().next().map(|edge| plan.root(edge.index));
            let input = read.and_then(|root| grids.get(&root)).and_then(|root| by_root.get(root)).copied();
            let input = input.filter(|_| anchor.out.is_some());
            weights.insert(own, Weights { soft, start: codes.clone(), input });
            anchors.push((node, own));
        }
        graph.trace(false, &|edge| rounded.get(&edge).is_some_and(|grid: &Grid| grid.learned))?;
        let left = HashMap::new();
        let rounder = Rounder { grids: rounded, weights, integer, only_codes, stand: Stand::Start, chance: None, left, threads };
        Ok(Bench { block, excerpt, graph, parameters, rounder, anchors, grids: known })
    }

    /// The grids of the whole model that are learned here.
    pub fn learned(&self) -> impl Iterator<Item = (usize, f32, &QParams)> {
        self.grids.iter().filter(|(_, grid, _)| grid.learned).map(|(root, grid, params)| (*root, grid.scale(&self.parameters), params))
    }

    /// The codes that were learned, by position in the whole model.
    ///
    /// # Errors
    /// None.
    pub fn codes(&self) -> Result<Vec<(usize, QuantizedTensor<i8>)>> {
        let codes = |&(node, own): &(usize, usize)| {
            let learned = self.parameters[self.graph.own(own)[0]].value().as_slice();
            Ok((node, self.rounder.weights[&own].soft.codes(learned)?))
        };
        self.anchors.iter().map(codes).collect()
    }

    fn inputs(&self, units: Units, of: &[usize], values: &Values, side: usize) -> Result<Vec<(String, Value)>> {
        let own = self.excerpt.model.inputs().iter().zip(&self.excerpt.inputs);
        own.map(|(input, edge)| Ok((input.name().to_owned(), units.gather(&values[edge][side], of)?))).collect()
    }

    /// The block's outputs, in their order and by unit, with one of its weights.
    ///
    /// # Errors
    /// Of shapes that do not fit.
    pub fn run(&mut self, stand: Stand, units: Units, batch: usize, values: &Values) -> Result<Vec<Vec<Value>>> {
        (self.rounder.stand, self.rounder.chance) = (stand, None);
        let all: Vec<usize> = (0..units.count).collect();
        let mut outputs: Vec<Vec<Value>> = vec![Vec::with_capacity(units.count); self.block.outputs.len()];
        for of in units.batches(&all, batch) {
            let inputs = self.inputs(units, &of, values, 1)?;
            let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let tape = self.graph.forward(&mut self.parameters, &mut self.rounder, &inputs, Mode::Evaluate)?;
            for (list, (_, value)) in outputs.iter_mut().zip(tape.outputs()) {
                list.extend(units.split(&Value::from(value.clone()), of.len())?);
            }
        }
        Ok(outputs)
    }

    /// Learns roundings and scales on these units, whose outputs in the float network are `targets`. `unit` is the error of a sample that the
    /// block began with, of which errors are counted in parts.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn learn(
        &mut self,
        how: &Reconstruction,
        (units, learning): (Units, &[usize]),
        values: &Values,
        targets: &[Vec<Value>],
        (unit, seed): (f64, u64),
        progress: &mut dyn FnMut(&mut Progress<'_>, usize) -> Result<()>,
        caller: &mut Progress<'_>,
    ) -> Result<()> {
        let mut adam = Adam::new(how.rate).with_factor(ParameterKind::Quantization, how.scale_rate / how.rate);
        let places: Vec<(usize, usize)> = self.anchors.iter().map(|&(_, own)| (own, self.graph.own(own)[0])).collect();
        let count: usize = places.iter().map(|&(_, place)| self.parameters[place].value().len()).sum();
        let grids: Vec<usize> = self.grids.iter().filter(|(_, grid, _)| grid.learned).map(|(_, grid, _)| grid.place).collect();
        let mut rest: Vec<Vec<usize>> = Vec::new();
        let mut epoch = 0;
        for step in 0..how.steps {
            progress(caller, step)?;
            if rest.is_empty() {
                let order: Vec<usize> = shuffled(learning.len(), seed.wrapping_add(epoch)).into_iter().map(|at| learning[at]).collect();
                rest = units.batches(&order, how.batch);
                epoch += 1;
            }
            let of = rest.pop().expect("there are samples");
            let inputs = self.inputs(units, &of, values, 1)?;
            let named: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
            self.rounder.stand = Stand::Soft;
            self.rounder.chance = (how.drop > 0.0).then_some(()).map(|()| self.chance(how, (units, &of), values, (seed, step))).transpose()?;
            let tape = self.graph.forward(&mut self.parameters, &mut self.rounder, &named, Mode::Train)?;
            let mut by_outputs = Vec::new();
            let factor = 2.0 / (unit * of.len() as f64);
            for ((name, y), target) in tape.outputs().iter().zip(targets) {
                let target = units.gather(target, &of)?;
                let target = target.get::<f32>().map(Tensor::as_slice).unwrap_or_default();
                let off = y.as_slice().iter().zip(target).map(|(y, t)| ((f64::from(*y) - f64::from(*t)) * factor) as f32);
                by_outputs.push((name.clone(), Tensor::new(y.dims(), off.collect())?));
            }
            let by_outputs: Vec<(&str, &Tensor)> = by_outputs.iter().map(|(name, gradient)| (name.as_str(), gradient)).collect();
            let all = self.graph.backward(&self.parameters, &mut self.rounder, &tape, &by_outputs)?;
            let mut gradients = Gradients::new(&self.parameters);
            for &(own, place) in &places {
                let mut gradient = all.by_parameter[place].clone();
                let v = self.parameters[place].value().as_slice();
                gradient.resize(v.len(), 0.0);
                if let Some(beta) = how.beta(step) {
                    self.rounder.weights[&own].soft.add_pressure(v, beta, (how.pressure / count as f64) as f32, &mut gradient)?;
                }
                gradients.by_parameter[place] = gradient;
            }
            grids.iter().for_each(|&place| gradients.by_parameter[place].clone_from(&all.by_parameter[place]));
            let updates = adam.updates(&self.parameters, &gradients)?;
            for (parameter, update) in self.parameters.iter_mut().zip(updates) {
                parameter.value_mut().as_mut_slice().iter_mut().zip(update).for_each(|(value, update)| *value += update);
            }
        }
        Ok(())
    }

    fn chance(&self, how: &Reconstruction, (units, of): (Units, &[usize]), values: &Values, (seed, step): (u64, usize)) -> Result<Chance> {
        let mut float = HashMap::new();
        for (input, (_, value)) in self.excerpt.model.inputs().iter().zip(self.inputs(units, of, values, 0)?) {
            if let Value::F32(value) = value {
                float.insert(input.edge().index, Array::row_major(value));
            }
        }
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((step as u64) << 20);
        Ok(Chance { probability: how.drop, seed, samples: of.to_vec(), float })
    }

    /// Which of the block's outputs is an edge of the whole model.
    pub fn output(&self, edge: Edge) -> Option<usize> {
        self.block.outputs.iter().position(|&output| output == edge)
    }
}

fn name(plan: &StaticPlan, node: usize) -> &str {
    plan.model().nodes()[node].name()
}
