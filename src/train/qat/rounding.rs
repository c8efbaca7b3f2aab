//! Fake quantization as the arithmetic of a graph: where an integer model rounds.

use std::collections::HashMap;

use super::QatConfig;
use super::activations::ValueQuantizer;
use super::layer::IntegerLayer;
use super::weights::WeightQuantizer;
use crate::convert::{Anchor, Calibration, StaticPlan};
use crate::error::Result;
use crate::kernels::Workspace;
use crate::nn::Model;
use crate::train::arithmetic::{Arithmetic, Mode};
use crate::train::array::Array;
use crate::train::graph::Graph;
use crate::train::parameter::{Gradients, Parameter};
use crate::train::tape::Tape;

#[derive(Debug)]
pub struct FakeQuantization {
    /// By observed edge.
    values: HashMap<usize, ValueQuantizer>,
    /// By edge that is rounded: the observed edge whose grid it gets.
    grids: HashMap<usize, usize>,
    /// By node: whether it reads codes; by edge: whether codes are all that is there.
    integer: Vec<bool>,
    only_codes: Vec<bool>,
    weights: HashMap<usize, WeightQuantizer>,
    /// By edge where a layer's codes come out.
    layers: HashMap<usize, IntegerLayer>,
    workspace: Workspace,
    pub frozen: bool,
    pub threads: usize,
}

impl FakeQuantization {
    pub fn new(plan: &StaticPlan, config: &QatConfig, graph: &Graph, parameters: &mut Vec<Parameter>) -> Result<Self> {
        let (model, non_finite) = (plan.model(), config.scheme().non_finite());
        let mut values = HashMap::new();
        for (edge, scheme) in plan.observed_edges() {
            let (name, observer) = (model.edge_name_of(*edge), scheme.activation_observer);
            let value = ValueQuantizer::new(name, scheme.activations, observer, config.activations, non_finite, parameters)?;
            values.insert(*edge, value);
        }
        let grids = plan.grids();
        let nodes = model.nodes();
        let integer: Vec<bool> = (0..nodes.len()).map(|index| plan.is_integer(index)).collect();
        let mut only_codes = vec![false; model.edge_count()];
        let (mut weights, mut layers) = (HashMap::new(), HashMap::new());
        for (index, node) in nodes.iter().enumerate() {
            node.outputs().iter().for_each(|edge| only_codes[edge.index] = integer[index]);
            let (Some(anchor), Some(read)) = (plan.anchor(index), node.reads().next()) else { continue };
            let Anchor { scheme, out, residual, activation, .. } = anchor;
            let grid = |edge: usize| grids[&plan.root(edge)];
            let places = (graph.own(index)[0], grid(read.index), out.is_some());
            weights.insert(index, WeightQuantizer::new(node.name(), scheme, &config.weights, non_finite, places, parameters)?);
            if let Some(out) = out {
                let bias = graph.own(index).get(1).copied();
                let residual = residual.map(|edge| (edge, grid(edge)));
                let input = (read.index, grid(read.index));
                layers.insert(out, IntegerLayer { node: index, layer: node.layer().clone(), bias, input, residual, activation });
            }
        }
        let workspace = Workspace::default();
        Ok(FakeQuantization { values, grids, integer, only_codes, weights, layers, workspace, frozen: false, threads: graph.threads() })
    }

    /// Whether something is learned from the gradient by what an edge's value is rounded to.
    pub fn learns_at(&self, edge: usize) -> bool {
        self.grids.get(&edge).is_some_and(|grid| self.values[grid].learns())
    }

    pub fn calibration(&self, model: &Model, parameters: &mut [Parameter]) -> Result<Calibration> {
        let mut calibration = Calibration::new();
        for value in self.values.values() {
            calibration.insert(value.name(), value.qparams(parameters)?);
        }
        for (&node, weights) in &self.weights {
            weights.find(parameters)?;
            calibration.insert_weights(model.nodes()[node].name(), weights.codes(parameters)?);
        }
        Ok(calibration)
    }
}

impl Arithmetic for FakeQuantization {
    fn parameters(&mut self, node: usize, own: &[usize], all: &mut [Parameter]) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(weights) = self.weights.get(&node) else { return Ok(None) };
        weights.find(all)?;
        let mut rounded = vec![weights.round(all)];
        if let Some(&bias) = own.get(1) {
            let bias = all[bias].value().as_slice();
            rounded.push(match self.values[&weights.input].grid(all) {
                Some((scale, _)) if weights.writes_codes => weights.round_bias(bias, scale, all),
                _ => bias.to_vec(),
            });
        }
        Ok(Some(rounded))
    }

    fn parameter_gradients(
        &mut self,
        node: usize,
        own: &[usize],
        all: &[Parameter],
        mut gradients: Vec<Vec<f32>>,
        sums: &mut Gradients,
    ) -> Result<()> {
        if let Some(weights) = self.weights.get(&node) {
            gradients[0] = weights.back(&gradients[0], all, sums);
        }
        own.iter().zip(gradients).for_each(|(&index, gradient)| sums.add(index, gradient));
        Ok(())
    }

    fn value(&mut self, edge: usize, value: &Array, before: &Tape, all: &mut [Parameter], mode: Mode) -> Result<Option<Array>> {
        let Some(&grid) = self.grids.get(&edge) else { return Ok(None) };
        if mode == Mode::Train
            && let Some(own) = self.values.get(&edge)
        {
            own.observe(value, self.frozen, all)?;
        }
        let range = |edge: usize| self.values[&edge].range(all);
        if let (Some(layer), Some(range_out)) = (self.layers.get(&edge), range(grid)) {
            let weights = self.weights[&layer.node].codes(all)?;
            let run = (&mut self.workspace, self.threads);
            if let Some(rounded) = layer.run(&weights, all, &|edge| before.read(edge), &range, range_out, value, run)? {
                return Ok(Some(rounded));
            }
        }
        self.values[&grid].round(value, all, self.threads)
    }

    fn value_gradient(&mut self, edge: usize, value: &Array, gradient: Array, all: &[Parameter], sums: &mut Gradients) -> Result<Array> {
        self.values[&self.grids[&edge]].back(value, gradient, all, sums)
    }

    fn reads_rounded(&self, reader: Option<usize>, edge: usize) -> bool {
        self.only_codes[edge] || reader.is_some_and(|node| self.integer[node])
    }
}
