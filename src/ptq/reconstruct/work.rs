//! The network as far as it is rebuilt, and the next block.

use std::collections::{HashMap, HashSet};

use super::arithmetic::Stand;
use super::blocks::{Block, Excerpt};
use super::learn::{Bench, Lesson, Setting, Starts, Values};
use super::{BlockFit, Outcome, Reconstruction};
use crate::convert::{Calibration, CodeRange, StaticPlan};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::{Edge, Executor};
use crate::num::{NonFinite, U8Grid};
use crate::progress::Progress;
use crate::ptq::units::Units;
use crate::tensor::{QParams, QuantizedTensor, Tensor, Value};

pub(super) struct Work<'w> {
    plan: &'w StaticPlan,
    how: &'w Reconstruction,
    /// By edge that is rounded: the edge whose grid it gets.
    grids: HashMap<usize, usize>,
    units: Units,
    /// Units to learn from, and to judge by.
    learning: Vec<usize>,
    held_out: Vec<usize>,
    /// The model's inputs.
    given: HashMap<Edge, Vec<Value>>,
    values: Values,
    calibration: Calibration,
    /// Grids that a block has learned.
    taken: HashSet<usize>,
}

impl<'w> Work<'w> {
    /// # Errors
    /// [`Error::Unknown`] for an input left out, [`Error::NonFinite`] for one that is not finite.
    pub fn new(plan: &'w StaticPlan, start: &Calibration, batches: &[&[(&str, &Value)]], how: &'w Reconstruction) -> Result<Self> {
        let model = plan.model();
        let units = Units::new(model, batches);
        let given: HashMap<Edge, Vec<Value>> = units.inputs(model, batches)?.into_iter().collect();
        let values = given.iter().map(|(&edge, values)| (edge, [values.clone(), values.clone()])).collect();
        let [learning, held_out] = units.parts();
        let (grids, calibration) = (plan.grids(), start.clone());
        Ok(Work { plan, how, grids, units, learning, held_out, given, values, calibration, taken: HashSet::new() })
    }

    pub fn finish(self) -> Calibration {
        self.calibration
    }

    /// Learns a block, takes what was learned or leaves it, and has the values after it.
    ///
    /// # Errors
    /// See [`reconstruct`](super::reconstruct()).
    pub fn rebuild(&mut self, block: &Block, (done, of): (usize, usize), progress: &mut Progress<'_>) -> Result<BlockFit> {
        let (nodes, steps) = (self.plan.model().nodes(), self.how.steps);
        let layers: Vec<String> = block.anchors.iter().map(|&node| nodes[node].name().to_owned()).collect();
        let item = layers.join(", ");
        let mut tell = |step: usize| match step.is_multiple_of(20) {
            true => progress.step("learn rounding", &item, done * steps + step, of * steps),
            false => Ok(()),
        };
        tell(0)?;
        let excerpt = Excerpt::new(self.plan.model(), block, |edge| self.values[&edge][0][0].shape().rank())?;
        let targets = self.targets(block, &excerpt)?;
        let starts = self.starts(block)?;
        let mut fit = BlockFit { layers, errors: [f64::NAN; 2], outcome: Outcome::Impossible };
        let (learned, made) = match self.bench(block, &excerpt, &starts)? {
            Some(mut bench) => {
                let lesson = Lesson { how: self.how, units: self.units, learning: &self.learning, values: &self.values, targets: &targets };
                let seed = self.how.seed.wrapping_add((done as u64) << 32);
                self.learn(&mut bench, &lesson, seed, &mut fit, &mut tell)?
            }
            None => (None, Vec::new()),
        };
        for (node, (codes, _)) in starts {
            self.calibration.insert_weights(nodes[node].name(), codes);
        }
        if let Some(Learned { codes, scales }) = learned {
            codes.into_iter().for_each(|(node, codes)| drop(self.calibration.insert_weights(nodes[node].name(), codes)));
            for (root, params) in scales {
                self.calibration.insert(self.plan.model().edge_name_of(root), params);
            }
        }
        let made = if fit.errors[0].is_nan() { self.by_integers(block)? } else { made };
        if fit.errors[0].is_nan() {
            fit.errors = [error(&made, &targets, if self.held_out.is_empty() { &self.learning } else { &self.held_out }); 2];
        }
        self.taken.extend(self.grids.iter().filter(|(edge, _)| excerpt.rounds(block, **edge)).map(|(_, root)| *root));
        block.done.iter().for_each(|edge| drop(self.values.remove(edge)));
        for ((&edge, made), target) in block.outputs.iter().zip(made).zip(targets) {
            self.values.insert(edge, [target, made]);
        }
        Ok(fit)
    }

    /// The block as it learns; `None` where a layer of it has no derivative.
    fn bench<'b>(&self, block: &'b Block, excerpt: &'b Excerpt, starts: &Starts) -> Result<Option<Bench<'b>>> {
        let setting = Setting {
            plan: self.plan,
            calibration: &self.calibration,
            grids: &self.grids,
            taken: &self.taken,
            learns_scales: self.how.scale_rate > 0.0,
            threads: self.how.threads,
        };
        match Bench::new(block, excerpt, starts, &setting) {
            Ok(bench) => Ok(Some(bench)),
            Err(Error::Layer { source, .. }) if matches!(*source, Error::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What was learned, if it is to be taken, and what the block then writes.
    fn learn(
        &self,
        bench: &mut Bench<'_>,
        lesson: &Lesson<'_>,
        seed: u64,
        fit: &mut BlockFit,
        tell: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<(Option<Learned>, Vec<Vec<Value>>)> {
        let began = bench.run(Stand::Start, lesson)?;
        let judges = if self.held_out.is_empty() { &self.learning } else { &self.held_out };
        let before = error(&began, lesson.targets, judges);
        let unit = error(&began, lesson.targets, &self.learning);
        fit.errors = [before; 2];
        if self.held_out.is_empty() {
            fit.outcome = Outcome::FewSamples;
            return Ok((None, began));
        }
        if unit == 0.0 {
            fit.outcome = Outcome::Exact;
            return Ok((None, began));
        }
        bench.learn(lesson, unit, seed, tell)?;
        let hard = bench.run(Stand::Hard, lesson);
        let (made, learned) = match hard.and_then(|made| Ok((made, Learned { codes: bench.codes()?, scales: bench.scales()? }))) {
            // Rates so large that scales ran away.
            Err(Error::Scale { .. }) => {
                fit.outcome = Outcome::NoBetter;
                return Ok((None, began));
            }
            other => other?,
        };
        let after = error(&made, lesson.targets, judges);
        fit.outcome = match (after < before, self.fits(&learned)?) {
            (false, _) => Outcome::NoBetter,
            (true, false) => Outcome::Impossible,
            (true, true) => Outcome::Learned,
        };
        if fit.outcome == Outcome::Learned {
            fit.errors[1] = after;
            return Ok((Some(learned), made));
        }
        Ok((None, began))
    }

    /// Whether biases fit between the steps of what was learned.
    fn fits(&self, learned: &Learned) -> Result<bool> {
        for (node, codes) in &learned.codes {
            let root = self.input_root(*node);
            let own = learned.scales.iter().find(|(other, _)| Some(*other) == root).map(|(_, params)| params);
            let grid = match own {
                Some(params) => CodeRange::new(params)?.grid,
                None => self.input_grid(*node)?,
            };
            if !self.bias_fits(*node, codes.params(), grid)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn bias_fits(&self, node: usize, params: &QParams, input: U8Grid) -> Result<bool> {
        let least = self.plan.least_scales(node, input)?;
        let scales = params.scales();
        Ok((0..).zip(&least).all(|(channel, &least)| f64::from(scales[if scales.len() == 1 { 0 } else { channel }]) >= least))
    }

    /// The edge whose grid a layer's input has.
    fn input_root(&self, node: usize) -> Option<usize> {
        let read = self.plan.model().nodes()[node].reads().next()?;
        self.grids.get(&self.plan.root(read.index)).copied()
    }

    fn input_grid(&self, node: usize) -> Result<U8Grid> {
        let model = self.plan.model();
        let name = self.input_root(node).map_or(model.nodes()[node].name(), |root| model.edge_name_of(root));
        let params = self.calibration.get(name).ok_or_else(|| Error::Unknown {
            what: "calibrated value",
            name: name.to_owned(),
            present: self.calibration.activations().map(|(name, _)| name).collect(),
        })?;
        Ok(CodeRange::new(params)?.grid)
    }

    /// What the block's layers begin with: codes that were decided before, unless another scale of the input has left no room for the bias,
    /// else those of the configuration's rule, whose grids are learned on.
    fn starts(&self, block: &Block) -> Result<Starts> {
        let mut starts = HashMap::new();
        for &node in &block.anchors {
            let name = self.plan.model().nodes()[node].name();
            let input = self.input_grid(node)?;
            let (rule, _) = self.plan.weight_codes(name, input).map_err(|error| error.in_layer(name))?;
            let params = rule.params().clone();
            let codes = match self.calibration.weights(name) {
                Some(codes) if self.bias_fits(node, codes.params(), input)? => codes.clone(),
                _ => rule,
            };
            starts.insert(node, (codes, params));
        }
        Ok(starts)
    }

    /// What the block writes in the float network, by output and unit.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN and infinities, inside an [`Error::Layer`].
    fn targets(&self, block: &Block, excerpt: &Excerpt) -> Result<Vec<Vec<Value>>> {
        let mut executor = Executor::new(&excerpt.model).with_threads(self.how.threads)?;
        let all: Vec<usize> = (0..self.units.count).collect();
        let mut outputs: Vec<Vec<Value>> = vec![Vec::new(); block.outputs.len()];
        for of in self.units.batches(&all, self.how.batch) {
            let inputs = excerpt.model.inputs().iter().zip(&excerpt.inputs);
            let inputs = inputs.map(|(input, edge)| Ok((input.name(), self.units.gather(&self.values[edge][0], &of)?)));
            let inputs = inputs.collect::<Result<Vec<(&str, Value)>>>()?;
            let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let made = executor.run_with(&inputs, |tap| {
                let (Some(node), Value::F32(value)) = (tap.node, tap.value) else { return Ok(()) };
                NonFinite::Error.check(&format!("value `{}`", tap.edge), value.as_slice()).map_err(|error| error.in_layer(node.name()))
            })?;
            for (list, (_, value)) in outputs.iter_mut().zip(made) {
                list.extend(self.units.split(&value, of.len())?);
            }
        }
        Ok(outputs)
    }

    /// What the block writes in the integer model.
    fn by_integers(&self, block: &Block) -> Result<Vec<Vec<Value>>> {
        let model = self.plan.model();
        let integers = self.plan.convert(&self.calibration, Isa::best())?;
        let mut executor = Executor::new(&integers).with_threads(self.how.threads)?;
        let all: Vec<usize> = (0..self.units.count).collect();
        let mut outputs: Vec<Vec<Value>> = vec![Vec::new(); block.outputs.len()];
        for of in self.units.batches(&all, self.how.batch) {
            let inputs = model.inputs().iter().map(|input| Ok((input.name(), self.units.gather(&self.given[&input.edge()], &of)?)));
            let inputs = inputs.collect::<Result<Vec<(&str, Value)>>>()?;
            let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let mut found: Vec<Option<Tensor>> = vec![None; block.outputs.len()];
            executor.run_with(&inputs, |tap| {
                let Some(at) = block.outputs.iter().position(|&edge| model.edge_name(edge) == tap.edge) else { return Ok(()) };
                let edge = tap.node.and_then(|node| node.outputs().iter().find(|&&edge| integers.edge_name(edge) == tap.edge));
                found[at] = match (tap.value, edge.and_then(|&edge| integers.grid(edge))) {
                    (Value::U8(codes), Some(grid)) => {
                        let values = codes.as_slice().iter().map(|&code| grid.dequantize(code)).collect();
                        Some(Tensor::new(codes.dims(), values)?)
                    }
                    (Value::F32(value), _) => Some(value.clone()),
                    _ => None,
                };
                Ok(())
            })?;
            for ((list, value), edge) in outputs.iter_mut().zip(found).zip(&block.outputs) {
                let value = value.ok_or_else(|| Error::Unsupported {
                    what: format!("rebuilding what comes after `{}`, which integers do not show", model.edge_name(*edge)),
                    way_out: "leave the layer that writes it in float".into(),
                })?;
                list.extend(self.units.split(&value.into(), of.len())?);
            }
        }
        Ok(outputs)
    }
}

/// What a block learned: by position of a layer its codes, by edge its grid.
struct Learned {
    codes: Vec<(usize, QuantizedTensor<i8>)>,
    scales: Vec<(usize, QParams)>,
}

/// Squared error of a sample, of all outputs together.
fn error(made: &[Vec<Value>], targets: &[Vec<Value>], units: &[usize]) -> f64 {
    let mut sum = 0.0;
    for (made, target) in made.iter().zip(targets) {
        for &unit in units {
            if let (Value::F32(y), Value::F32(t)) = (&made[unit], &target[unit]) {
                sum += y.as_slice().iter().zip(t.as_slice()).map(|(y, t)| (f64::from(*y) - f64::from(*t)).powi(2)).sum::<f64>();
            }
        }
    }
    sum / units.len().max(1) as f64
}
