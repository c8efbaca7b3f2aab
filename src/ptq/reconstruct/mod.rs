//! Rounding that is learned: of each weight, whether it becomes the code below or the code above, by what that does to the outputs of a
//! whole block.
//!
//! Three methods in one, for static models:
//!
//! - **AdaRound** (Nagel et al. 2020): weights begin between two codes of their grid, where they are, and are driven to one of them while
//!   the block's output stays near that of the float network ([`SoftRounding`]);
//! - **block reconstruction** (BRECQ, Li et al. 2021): all layers of a block at once, a block being what lies between two places where the
//!   network is a single value: a layer with what is fused to it, or all of a residual branch;
//! - **QDrop** (Wei et al. 2022): in each step, each element of a value of fewer than 8 bits is rounded or left as it is, by chance.
//!
//! A block reads what the part of the network that is rebuilt already gives, and aims at what the float network gives. With `y` the block's
//! output and `t` the float network's, what is made small is
//!
//! ```text
//! Σ |y - t|² / Σ |y₀ - t|²  +  pressure / n · Σ 1 - |2 h(v) - 1|^β         y₀ that of the block as it began, n its weights
//! ```
//!
//! by Adam, over `v`, the scales of weights and those of the values that the block reads and rounds (as LSQ has it; a value's scale is
//! learned by the first block that reads it, zero points stay). The pressure begins after a fifth of the steps, and `β` goes from 20 to
//! 2.
//!
//! Of every four samples one is held out. What was learned is taken where it makes the error on those smaller than what the block began
//! with, so that no block gets worse there; [`Reconstructed::blocks`] says by how much. Codes and scales go into a [`Calibration`], as
//! [`gptq`](super::gptq) has them too, and each can begin where another ended ([`reconstruct`]).
//!
//! What it brought to convolutional networks of 4 bits, and took, is on the page [`which_method`](crate::guide::which_method).

mod arithmetic;
mod blocks;
mod learn;
mod soft;
mod work;

pub use soft::SoftRounding;

use crate::convert::{Calibration, QConfig, StaticPlan};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::Model;
use crate::progress::Progress;
use crate::ptq::Calibrator;
use crate::tensor::Value;
use work::Work;

/// What is rebuilt at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Parts {
    /// Each layer with what is fused to it; several, where what another branch holds is only moved there, and not written.
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

impl Reconstruction {
    /// By blocks, 1000 steps of 32 samples each; rates of 0.03 for roundings and 0.0003 for scales, a pressure of 100, values of fewer
    /// than 8 bits rounded half of the time.
    ///
    /// The rates are those of a short training: published ones (0.001 to 0.01) want ten times the steps. With a pressure of 1 many weights
    /// were undecided at the end, and what was learned was lost when they were rounded; 30 to 1000 gave much the same. Values of 8 bits left
    /// unrounded gave three networks 0.1 dB on average and a larger divergence of class probabilities.
    pub fn new() -> Self {
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        Reconstruction {
            parts: Parts::Blocks,
            steps: 1000,
            batch: 32,
            rate: 0.03,
            scale_rate: 3e-4,
            pressure: 100.0,
            drop: 0.5,
            seed: 0,
            threads,
        }
    }

    /// By layers or by blocks.
    #[must_use]
    pub fn with_parts(self, parts: Parts) -> Self {
        Reconstruction { parts, ..self }
    }

    /// With so many steps a block; time goes with them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_steps(self, steps: usize) -> Result<Self> {
        match steps {
            0 => Err(Error::parameter("steps", steps, "must be at least 1")),
            _ => Ok(Reconstruction { steps, ..self }),
        }
    }

    /// With so many samples a step. Of a model that takes a fixed number of them, a step has one batch as it was given.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_batch(self, batch: usize) -> Result<Self> {
        match batch {
            0 => Err(Error::parameter("samples of a step", batch, "must be at least 1")),
            _ => Ok(Reconstruction { batch, ..self }),
        }
    }

    /// With these rates of Adam: of roundings, and of logarithms of scales, 0 for scales that stay.
    ///
    /// # Errors
    /// [`Error::Parameter`] for one that is not finite or below zero, and for roundings of rate 0.
    pub fn with_rates(self, rate: f64, scale_rate: f64) -> Result<Self> {
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Error::parameter("rate of roundings", rate, "must be finite and above zero"));
        }
        if !(scale_rate.is_finite() && scale_rate >= 0.0) {
            return Err(Error::parameter("rate of scales", scale_rate, "must be finite and not below zero"));
        }
        Ok(Reconstruction { rate, scale_rate, ..self })
    }

    /// With this pressure towards codes.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it is not finite or below zero.
    pub fn with_pressure(self, pressure: f64) -> Result<Self> {
        match pressure.is_finite() && pressure >= 0.0 {
            true => Ok(Reconstruction { pressure, ..self }),
            false => Err(Error::parameter("pressure", pressure, "must be finite and not below zero")),
        }
    }

    /// With elements of values of fewer than 8 bits left unrounded with this probability; 0 for none.
    ///
    /// # Errors
    /// [`Error::Parameter`] outside 0 to 1.
    pub fn with_drop(self, probability: f32) -> Result<Self> {
        match (0.0..=1.0).contains(&probability) {
            true => Ok(Reconstruction { drop: probability, ..self }),
            false => Err(Error::parameter("probability that a value is left unrounded", probability, "must be 0 to 1")),
        }
    }

    /// With another order of samples, and other elements left unrounded.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Reconstruction { seed, ..self }
    }

    /// On at most so many threads. Results are the same.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Reconstruction { threads: threads.max(1), ..self }
    }

    /// The exponent of the pressure; `None` while there is none.
    fn beta(&self, step: usize) -> Option<f32> {
        const WARM_UP: f64 = 0.2;
        let t = (step as f64 / self.steps as f64 - WARM_UP) / (1.0 - WARM_UP);
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
    /// Squared error of its outputs on the samples held out, a mean over samples and a sum over elements: of what it began with, and of
    /// what was taken.
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
    /// What it began with: on the samples held out, what was learned was no better.
    NoBetter,
    /// What it began with, which has no error on the samples.
    Exact,
    /// What it began with: of fewer than four samples none can be held out.
    FewSamples,
    /// What it began with: a layer inside, or a bias with the scales that were learned, stands in the way.
    Impossible,
}

/// [`quantize_static`](crate::quantize_static), with roundings of weights and scales learned block by block; `model` is untouched. Gives
/// the calibration too, which has codes and scales.
///
/// `batches` are inputs by name, with samples along their first axis.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value, config: &lowprec::QConfig) -> lowprec::Result<()> {
/// use lowprec::ptq::reconstruct::{self, Reconstruction};
/// let (rebuilt, _) = reconstruct::quantize_static(model, &[&[("x", samples)]], config, &Reconstruction::new(), Default::default())?;
/// for block in &rebuilt.blocks {
///     println!("{}: {:?}, error {:.3} of rounding's", block.layers.join(", "), block.outcome, block.errors[1] / block.errors[0]);
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`Calibrator::observe`] and of [`reconstruct`].
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

/// The same from a calibration of this model: its ranges are where scales of values begin, and its codes, where it has some (of
/// [`gptq`](super::gptq::quantize_static)), are what each block must beat on the samples held out. Roundings are learned on the grids of
/// the configuration's rule.
///
/// # Errors
/// [`Error::Empty`] without a batch; [`Error::Unknown`] for a value that was not calibrated, and an input left out; [`Error::NonFinite`]
/// for NaN and infinities in weights that are learned and in what samples make of them, inside an [`Error::Layer`] that names the layer;
/// [`Error::Shape`] for a value between blocks that has no row for each sample; those of [`StaticPlan::convert`]; [`Error::Cancelled`].
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
    let parts = blocks::blocks(&plan, how.parts);
    let mut fits = Vec::with_capacity(parts.len());
    for (done, block) in parts.iter().enumerate() {
        fits.push(work.rebuild(block, (done, parts.len()), &mut progress)?);
    }
    let calibration = work.finish();
    Ok((Reconstructed { model: plan.convert(&calibration, Isa::best())?, blocks: fits }, calibration))
}
