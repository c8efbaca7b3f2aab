//! docs

mod arithmetic;
mod blocks;
mod learn;
mod soft;
mod units;

pub use soft::SoftRounding;

use std::collections::HashMap;

use crate::convert::{Calibration, QConfig, StaticPlan};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::{Edge, Executor, Model};
use crate::progress::Progress;
use crate::ptq::Calibrator;
use crate::tensor::{QParams, QuantizedTensor, Value};
use arithmetic::Stand;
use blocks::{Block, Excerpt, blocks};
use learn::{Bench, Setting, Values};
use units::Units;

/// What is rebuilt at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Parts {
    /// Each layer with what is fused to it.
    Layers,
    /// What lies between two places where the network is a single value.
    #[default]
    Blocks,
}

/// How roundings are learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reconstruction {
    parts: Parts,
    steps: usize,
    batch: usize,
    rate: f64,
    scale_rate: f64,
    pressure: f64,
    drop: f32,
    seed: u64,
    threads: usize,
}

impl Default for Reconstruction {
    fn default() -> Self {
        Reconstruction::new()
    }
}

fn env(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|x| x.parse().ok()).unwrap_or(default)
}

impl Reconstruction {
    /// D
    pub fn new() -> Self {
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        Reconstruction {
            parts: if env("R_LAYERS", 0.0) > 0.0 { Parts::Layers } else { Parts::Blocks },
            steps: env("R_STEPS", 1000.0) as usize,
            batch: env("R_BATCH", 32.0) as usize,
            rate: env("R_RATE", 1e-2),
            scale_rate: env("R_SCALE", 3e-4),
            pressure: env("R_PRESSURE", 1.0),
            drop: env("R_DROP", 0.5) as f32,
            seed: env("R_SEED", 0.0) as u64,
            threads,
        }
    }

    /// The exponent of the pressure; `None` while there is none.
    fn beta(&self, step: usize) -> Option<f32> {
        let t = step as f64 / self.steps as f64;
        let t = (t - 0.2) / 0.8;
        (t >= 0.0).then(|| (2.0 + 18.0 * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())) as f32)
    }
}

/// A model, and what became of each of its blocks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reconstructed {
    /// The model.
    pub model: Model,
    /// In the order in which they run.
    pub blocks: Vec<BlockFit>,
}

/// What became of a block.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockFit {
    /// Its layers with weights in codes.
    pub layers: Vec<String>,
    /// Squared error of its outputs on the samples held out, a mean over samples and a sum over elements: of what it began with, and of what
    /// was taken.
    pub errors: [f64; 2],
    /// What was taken.
    pub outcome: Outcome,
}

/// What was taken of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// What was learned.
    Learned,
    /// What it began with, since what was learned was no better on the samples held out.
    NoBetter,
    /// What it began with, which has no error.
    Exact,
    /// What it began with, since there are fewer than four samples.
    FewSamples,
    /// What it began with, since it has a layer without a derivative.
    NoDerivative,
}

/// D
pub fn quantize_static(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    config: &QConfig,
    how: &Reconstruction,
    mut progress: Progress<'_>,
) -> Result<(Reconstructed, Calibration)> {
    let mut calibrator = Calibrator::new(model, config)?.with_threads(how.threads);
    for (done, batch) in batches.iter().enumerate() {
        progress.step("calibrate", &format!("batch {done}"), done, batches.len())?;
        calibrator.observe(batch)?;
    }
    reconstruct(model, batches, config, &calibrator.finish()?, how, progress)
}

/// D
pub fn reconstruct(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    config: &QConfig,
    start: &Calibration,
    how: &Reconstruction,
    mut progress: Progress<'_>,
) -> Result<(Reconstructed, Calibration)> {
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
    }
    let plan = StaticPlan::new(model, config, start.shapes())?;
    let mut work = Work::new(&plan, start, batches, how)?;
    let parts = blocks(&plan, how.parts);
    let mut fits = Vec::with_capacity(parts.len());
    for (done, block) in parts.iter().enumerate() {
        fits.push(work.rebuild(block, (done, parts.len()), &mut progress)?);
    }
    let calibration = work.calibration;
    Ok((Reconstructed { model: plan.convert(&calibration, Isa::best())?, blocks: fits }, calibration))
}

/// The network as far as it is rebuilt.
struct Work<'w> {
    plan: &'w StaticPlan,
    how: &'w Reconstruction,
    grids: HashMap<usize, usize>,
    units: Units,
    /// Units to learn from, and to judge by.
    learning: Vec<usize>,
    held_out: Vec<usize>,
    values: Values,
    calibration: Calibration,
    taken: Vec<usize>,
}

impl<'w> Work<'w> {
    fn new(plan: &'w StaticPlan, start: &Calibration, batches: &[&[(&str, &Value)]], how: &'w Reconstruction) -> Result<Self> {
        let model = plan.model();
        let units = Units::new(model, batches);
        let mut values: Values = HashMap::new();
        for input in model.inputs() {
            let mut all = Vec::with_capacity(units.count);
            for batch in batches {
                let given = batch.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value);
                let given = given.ok_or_else(|| Error::Unknown {
                    what: "given input",
                    name: input.name().to_owned(),
                    present: batch.iter().map(|(name, _)| *name).collect(),
                })?;
                all.extend(units.split(given, given.shape().dims().first().copied().unwrap_or(0))?);
            }
            values.insert(input.edge(), [all.clone(), all]);
        }
        let (held_out, learning): (Vec<usize>, Vec<usize>) = (0..units.count).partition(|unit| units.count >= 4 && unit % 4 == 3);
        let (grids, calibration) = (plan.grids(), start.clone());
        Ok(Work { plan, how, grids, units, learning, held_out, values, calibration, taken: Vec::new() })
    }

    fn rebuild(&mut self, block: &Block, (done, of): (usize, usize), progress: &mut Progress<'_>) -> Result<BlockFit> {
        let (plan, how, units) = (self.plan, self.how, self.units);
        let nodes = plan.model().nodes();
        let layers: Vec<String> = block.anchors.iter().map(|&node| nodes[node].name().to_owned()).collect();
        let item = layers.join(", ");
        let total = of * how.steps;
        progress.step("reconstruct", &item, done * how.steps, total)?;
        let rank = |edge: Edge| Ok(self.values[&edge][0][0].shape().rank());
        let excerpt = Excerpt::new(plan.model(), block, rank)?;
        let targets = self.targets(block, &excerpt)?;
        let start = self.start(block)?;
        let setting = Setting {
            plan,
            calibration: &self.calibration,
            grids: &self.grids,
            taken: &self.taken,
            learns_scales: how.scale_rate > 0.0,
            threads: how.threads,
        };
        let mut bench = Bench::new(block, &excerpt, &start, &setting)?;
        let began = bench.run(Stand::Start, units, how.batch, &self.values)?;
        let judged = if self.held_out.is_empty() { &self.learning } else { &self.held_out };
        let before = error(&began, &targets, judged);
        let unit = error(&began, &targets, &self.learning);
        let mut fit = BlockFit { layers, errors: [before, before], outcome: Outcome::NoBetter };
        let mut made = began;
        if self.held_out.is_empty() {
            fit.outcome = Outcome::FewSamples;
        } else if unit == 0.0 {
            fit.outcome = Outcome::Exact;
        } else {
            let seed = how.seed.wrapping_add((done as u64) << 32);
            let mut tell = |progress: &mut Progress<'_>, step: usize| match step % 20 {
                0 => progress.step("reconstruct", &item, done * how.steps + step, total),
                _ => Ok(()),
            };
            bench.learn(how, (units, &self.learning), &self.values, &targets, (unit, seed), &mut tell, progress)?;
            let learned = bench.run(Stand::Hard, units, how.batch, &self.values)?;
            let after = error(&learned, &targets, judged);
            if std::env::var("R_LOG").is_ok() {
                eprintln!("{item}: held {before:.5} -> {after:.5}, learn {unit:.5} -> {:.5}", error(&learned, &targets, &self.learning));
                for (root, scale, params) in bench.learned() { eprintln!("   {} {} -> {scale}", plan.model().edge_name_of(root), params.at(0).0); }
            }
            if after < before && self.fits(block, &bench)? {
                for (node, codes) in bench.codes()? {
                    self.calibration.insert_weights(nodes[node].name(), codes);
                }
                let scales: Vec<(usize, QParams)> = bench.learned().map(|(root, scale, params)| Ok((root, QParams::per_tensor(scale, params.at(0).1, params.qmin(), params.qmax())?))).collect::<Result<_>>()?;
                for (root, params) in scales {
                    self.calibration.insert(plan.model().edge_name_of(root), params);
                }
                (fit.errors[1], fit.outcome, made) = (after, Outcome::Learned, learned);
            }
        }
        self.taken.extend(bench.learned().map(|(root, ..)| root));
        for (node, codes) in start {
            if self.calibration.weights(nodes[node].name()).is_none() {
                self.calibration.insert_weights(nodes[node].name(), codes);
            }
        }
        for edge in &block.done {
            self.values.remove(edge);
        }
        for (at, (made, target)) in made.into_iter().zip(targets).enumerate() {
            self.values.insert(block.outputs[at], [target, made]);
        }
        Ok(fit)
    }

    fn fits(&self, _block: &Block, _bench: &Bench<'_>) -> Result<bool> {
        Ok(true)
    }

    fn start(&self, block: &Block) -> Result<HashMap<usize, QuantizedTensor<i8>>> {
        let model = self.plan.model();
        let mut start = HashMap::new();
        for &node in &block.anchors {
            let name = model.nodes()[node].name();
            let codes = match self.calibration.weights(name) {
                Some(codes) => codes.clone(),
                None => {
                    let read = model.nodes()[node].reads().next().expect("a layer reads something");
                    let root = self.grids[&self.plan.root(read.index)];
                    let params = self.calibration.get(model.edge_name_of(root)).expect("checked");
                    let grid = crate::convert::CodeRange::new(params)?.grid;
                    self.plan.weight_codes(name, grid)?.0
                }
            };
            start.insert(node, codes);
        }
        Ok(start)
    }

    /// What the block writes in the float network, by output and unit.
    fn targets(&self, block: &Block, excerpt: &Excerpt) -> Result<Vec<Vec<Value>>> {
        let mut executor = Executor::new(&excerpt.model).with_threads(self.how.threads)?;
        let all: Vec<usize> = (0..self.units.count).collect();
        let mut outputs: Vec<Vec<Value>> = vec![Vec::new(); block.outputs.len()];
        for of in self.units.batches(&all, self.how.batch) {
            let inputs = excerpt.model.inputs().iter().zip(&excerpt.inputs);
            let inputs: Vec<(&str, Value)> = inputs.map(|(input, edge)| Ok((input.name(), self.units.gather(&self.values[edge][0], &of)?))).collect::<Result<_>>()?;
            let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            for (list, (_, value)) in outputs.iter_mut().zip(executor.run(&inputs)?) {
                list.extend(self.units.split(&value, of.len())?);
            }
        }
        Ok(outputs)
    }
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
