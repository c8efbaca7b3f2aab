//! Cross-layer equalization: channels of one value brought to like ranges, the function of the network left as it is.
//!
//! Between two layers lies a function with `f(x / s) = f(x) / s` for every `s > 0`: ReLU, LeakyReLU, PReLU, pooling, nothing at all. Then
//! each channel `i` of the value between them can be divided by a scale of its own, and nobody else notices:
//!
//! ```text
//! W₂ f(W₁ x + b₁)  =  (W₂ S) f(S⁻¹ W₁ x + S⁻¹ b₁)         S = diag(s)
//! ```
//!
//! One scale for all channels of a value, or for all weights of a layer, rounds the small channels as coarsely as the large ones; where
//! they differ by much, as behind depthwise convolutions, little is left of them. Clamps (ReLU6) are divided channel by channel as well:
//! they become a ReLU and a Min with a constant of one number a channel, which
//! [`quantize_static`](crate::quantize_static) runs on codes.
//!
//! # By weights alone
//!
//! Without samples, the scale of a channel is that of Nagel et al. 2019 ("Data-Free Quantization Through Weight Equalization and Bias
//! Correction", section 4.1), pair after pair until none moves:
//!
//! ```text
//! s = √(r₁ / r₂)        r₁ = max |weights and bias that write the channel|,  r₂ = max |weights that read it|
//! ```
//!
//! The paper leaves the bias out of `r₁`; then a channel with hardly any weight and a large bias is blown up until nothing else is left of
//! the value's range.
//!
//! # By the noise of rounding
//!
//! Equal weights can make for unequal activations, and lose on a network that was well balanced. With samples, what rounding to 8 bits
//! costs is predicted for each pair and made least. With `A` the largest magnitude that the value reaches, `Q` the mean square of each channel,
//! `M` the largest weight of a layer, and `C` the sum of squares of the weights that read a channel, each times the `C` of what it writes:
//!
//! ```text
//! N = Σᵢ Cᵢ · ((A / 255)² + (M₁ / 127)² · |x|²) + (M₂ / 127)² · Σ Cₒ · Qᵢ           |x|² of what the first layer reads
//! ```
//!
//! Scaling multiplies every term by powers of scales, so `N` is convex in their logarithms: there is one minimum, whatever scales the
//! network came with. (Maxima stand for 12-norms.) It is found by weighing, for each channel, the terms that grow with its scale against
//! those that shrink, in turn until no scale moves by more than a ten-thousandth. A channel reaches what the samples show, or four deviations
//! of its sum if that is more: one that moves in few samples is not to be blown up until it is clipped on others.
//!
//! Where channels differ by much this brings back all that was lost. On a network that is even already there is little to win, and what
//! is measured goes up or down by a decibel by chance: keep what measures better ([`equalize_by_trial`]).
//!
//! # High biases
//!
//! Of a channel that never falls below `c > 0` before its ReLU, `c` can move on into the next bias (section 4.1.3 of the paper), so that the
//! value's range shrinks by as much: `f(z) = f(z - c) + c`. See [`Absorption`].
//!
//! ```no_run
//! # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value) -> lowprec::Result<()> {
//! use lowprec::ptq::equalize::{Equalization, equalize};
//! let even = equalize(model, &[&[("image", samples)]], &Equalization::new(), Default::default())?;
//! println!("{even}");
//! let int8 = lowprec::quantize_static(&even.model, [samples.get().unwrap()], &Default::default())?;
//! # Ok(()) }
//! ```

mod absorb;
mod links;
mod noise;
mod rebuild;
mod report;
mod scales;

pub use report::{Equalized, Pair};

use crate::convert::fold_batch_norm;
use crate::error::{Error, Result};
use crate::nn::{Layer, Model, Node, Skipped};
use crate::num::NonFinite;
use crate::progress::Progress;
use crate::ptq::statistics::{self, Statistics};
use crate::quant::random_unit;
use crate::tensor::Value;
use links::{Link, links};
use scales::{Side, sides};

/// Sweeps over all pairs, at most.
const SWEEPS: usize = 200;
/// The largest scale, and one over the smallest: what lies beyond is a dead channel's.
const LIMIT: f64 = 1e9;

/// What moves from a bias into the next one: `c` of each channel, at least 0. Into layers without padding alone, whose every output reads
/// as many inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Absorption {
    /// Nothing.
    #[default]
    Never,
    /// The least that the samples show before the activation: the function is the same on them, and on whatever falls no lower.
    Observed,
    /// `c = max(0, β - 3 γ)` by a batch norm's statistics: of a normal distribution, one value in 740 falls lower, and is changed.
    ThreeSigma,
}

/// How a model is equalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Equalization {
    absorption: Absorption,
    keeps_scales: bool,
}

impl Equalization {
    /// Scales alone; biases stay.
    pub fn new() -> Self {
        Equalization::default()
    }

    /// With high biases moved on.
    #[must_use]
    pub fn with_absorption(self, absorption: Absorption) -> Self {
        Equalization { absorption, ..self }
    }

    /// With channels scaled (as it is made), or with biases moved on alone.
    #[must_use]
    pub fn with_scales(self, scales: bool) -> Self {
        Equalization { keeps_scales: !scales, ..self }
    }

    fn check(&self, batches: &[&[(&str, &Value)]]) -> Result<()> {
        match self.absorption {
            Absorption::Observed if batches.is_empty() => Err(Error::Unsupported {
                what: "absorption of biases by what samples show, without samples".into(),
                way_out: "give a batch, or absorb by `Absorption::ThreeSigma`".into(),
            }),
            _ => Ok(()),
        }
    }
}

/// The same function with channels of like ranges; `model` is untouched.
///
/// Batch norms are folded first ([`fold_batch_norm`]). Then pairs are sought: a float convolution (depthwise and grouped ones too) or linear
/// layer, and the next one that reads what it writes, where nobody else reads it and all that lies between lets scales pass: ReLU, ReLU6
/// and other clamps that hold 0, LeakyReLU, PReLU, Min and Max with constants, pooling, Flatten, nothing. With `batches` (inputs by name,
/// as [`Model::run`] takes them) the scales are those of least noise, without any those of the weights alone: see the
/// [module](self).
///
/// Weights are multiplied in f64 and rounded once; outputs differ by rounding errors of f32. Nodes and values keep their names. A model in which no pair is found comes back
/// with its batch norms folded; [`Equalized::pairs`] is then empty, and [`Equalized::passed_over`] says of each layer why.
///
/// # Errors
/// [`Error::NonFinite`] for NaN and infinities in weights of a pair and in what samples make of them, inside an [`Error::Layer`] that names
/// the layer; [`Error::Unsupported`] for [`Absorption::Observed`] without samples; [`Error::Cancelled`]; those of [`Model::run`].
pub fn equalize(model: &Model, batches: &[&[(&str, &Value)]], options: &Equalization, mut progress: Progress<'_>) -> Result<Equalized> {
    options.check(batches)?;
    let (work, sweeps) = Work::new(model, batches, options, &mut progress)?;
    let scales = work.state.scales.clone();
    work.equalized(&scales, batches, options, sweeps)
}

/// Sets of scales near those of least noise, drawn by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draws {
    count: usize,
    seed: u64,
}

impl Draws {
    /// So many, the first of which is that of least noise itself.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn new(count: usize) -> Result<Self> {
        match count {
            0 => Err(Error::parameter("draws", count, "must be at least 1")),
            _ => Ok(Draws { count, seed: 0 }),
        }
    }

    /// With other draws.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Draws { seed, ..self }
    }
}

impl Default for Draws {
    /// 16 of them: of 32 the best was hardly better.
    fn default() -> Self {
        Draws { count: 16, seed: 0 }
    }
}

/// [`equalize`], with scales that were tried.
///
/// What a network's weights lose when they are rounded is a matter of chance: other scales that are as even, and a tenth off, make for
/// other codes, and outputs are nearer or further away by a decibel and more, on samples that were not looked at too. So scales are drawn,
/// each by itself up to `2^±0.15` from that of least noise, and those are taken of which `judge` says the most: it gets the equalized float
/// model, quantizes it as it will be, and says how good that is, by signal to noise ratio on the samples for instance. What is not a number
/// is never taken.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, x: &lowprec::Tensor) -> lowprec::Result<()> {
/// use lowprec::ptq::equalize::{Draws, Equalization, equalize_by_trial};
/// let (value, y) = (lowprec::Value::from(x.clone()), model.forward(x)?);
/// let mut judge = |even: &lowprec::nn::Model| {
///     let int8 = lowprec::quantize_static(even, [x], &Default::default())?;
///     lowprec::metrics::sqnr_db(y.as_slice(), int8.forward(x)?.as_slice())
/// };
/// let batches: &[&[(&str, &lowprec::Value)]] = &[&[("image", &value)]];
/// let even = equalize_by_trial(model, batches, &Equalization::new(), Draws::default(), &mut judge, Default::default())?;
/// # let _ = even; Ok(()) }
/// ```
///
/// # Errors
/// Those of [`equalize`], and of `judge`.
pub fn equalize_by_trial(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    options: &Equalization,
    draws: Draws,
    judge: &mut dyn FnMut(&Model) -> Result<f64>,
    mut progress: Progress<'_>,
) -> Result<Equalized> {
    options.check(batches)?;
    let (work, sweeps) = Work::new(model, batches, options, &mut progress)?;
    let mut best: Option<(f64, Equalized)> = None;
    let count = if work.state.links.is_empty() { 1 } else { draws.count };
    for draw in 0..count {
        progress.step("draw scales", "all pairs", draw, count)?;
        let made = work.equalized(&work.drawn(draws.seed, draw), batches, options, sweeps)?;
        let worth = if count > 1 { judge(&made.model)? } else { 0.0 };
        if best.as_ref().is_none_or(|(most, _)| worth > *most || (most.is_nan() && !worth.is_nan())) {
            best = Some((worth, made));
        }
    }
    Ok(best.expect("there is one draw at least").1)
}

/// A model on its way to even channels.
struct Work<'m> {
    model: &'m Model,
    folded: Model,
    passed_over: Vec<Skipped>,
    /// With the scales that were found.
    state: State,
    /// How even it was.
    before: Vec<[f64; 2]>,
}

impl<'m> Work<'m> {
    /// Finds the scales, and says in how many sweeps.
    fn new(model: &'m Model, batches: &[&[(&str, &Value)]], options: &Equalization, progress: &mut Progress<'_>) -> Result<(Self, usize)> {
        let folded = fold_batch_norm(model)?;
        let (links, passed_over) = links(&folded);
        for index in links.iter().flat_map(|link| [link.first, link.second]) {
            check(&folded.nodes()[index])?;
        }
        let scales = links.iter().map(|link| vec![1.0; link.channels]).collect();
        let mut state = State { scales, sides: sides(&folded, &links), links };
        let before = state.evenness();
        let sweeps = if options.keeps_scales {
            0
        } else if batches.is_empty() {
            state.balance_weights(progress)?
        } else {
            let statistics = statistics::of_inputs(&folded, |index| state.sides[index].is_some(), batches)?;
            state.balance_noise(&folded, &statistics, progress)?
        };
        Ok((Work { model, folded, passed_over, state, before }, sweeps))
    }

    /// The scales of a draw: the first has those that were found.
    fn drawn(&self, seed: u64, draw: usize) -> Vec<Vec<f64>> {
        /// In powers of two.
        const FURTHEST: f64 = 0.15;
        let mut scales = self.state.scales.clone();
        if draw > 0 {
            for (index, scale) in (0u64..).zip(scales.iter_mut().flatten()) {
                let unit = f64::from(random_unit(seed.wrapping_add((draw as u64) << 32), index));
                *scale *= (FURTHEST * (2.0 * unit - 1.0)).exp2();
            }
        }
        scales
    }

    /// The model with these scales.
    fn equalized(&self, scales: &[Vec<f64>], batches: &[&[(&str, &Value)]], options: &Equalization, sweeps: usize) -> Result<Equalized> {
        let mut state = self.state.clone();
        for (link, scales) in scales.iter().enumerate() {
            let factors: Vec<f64> = scales.iter().zip(&self.state.scales[link]).map(|(new, old)| new / old).collect();
            state.scale(link, &factors);
        }
        let State { links, scales, sides } = &state;
        let even = rebuild::rebuild(&self.folded, links, sides, scales)?;
        let (even, absorbed) = match options.absorption {
            Absorption::Never => (even, vec![0; links.len()]),
            by => absorb::absorb(self.model, even, scales, by, batches)?,
        };
        let (before, after) = (&self.before, state.evenness());
        let name = |index: usize| self.folded.nodes()[index].name().to_owned();
        let pair = |(i, (link, scales)): (usize, (&Link, &Vec<f64>))| Pair {
            first: name(link.first),
            second: name(link.second),
            scales: scales.clone(),
            written: [before[i][0], after[i][0]],
            read: [before[i][1], after[i][1]],
            absorbed: absorbed[i],
        };
        let pairs = links.iter().zip(scales).enumerate().map(pair).collect();
        Ok(Equalized { model: even, pairs, passed_over: self.passed_over.clone(), sweeps })
    }
}

/// Whether all weights are numbers.
fn check(node: &Node) -> Result<()> {
    let (weight, bias) = match node.layer() {
        Layer::Conv2d(conv) => (conv.weight(), conv.bias()),
        Layer::Linear(linear) => (linear.weight(), linear.bias()),
        _ => return Ok(()),
    };
    NonFinite::Error.check("weight", weight.as_slice()).map_err(|error| error.in_layer(node.name()))?;
    bias.map_or(Ok(()), |bias| NonFinite::Error.check("bias", bias.as_slice())).map_err(|error| error.in_layer(node.name()))
}

/// The pairs and their scales, on the way.
#[derive(Clone)]
struct State {
    links: Vec<Link>,
    /// By link, by channel.
    scales: Vec<Vec<f64>>,
    /// By node.
    sides: Vec<Option<Side>>,
}

impl State {
    fn side(&self, node: usize) -> &Side {
        self.sides[node].as_ref().expect("both layers of a link have a side")
    }

    /// Multiplies the scales of a link, but for factors that are none. Gives the largest step, in logarithms.
    fn scale(&mut self, link: usize, factors: &[f64]) -> f64 {
        let Link { first, second, spread, .. } = self.links[link];
        let mut moved = 0.0f64;
        for (channel, &factor) in factors.iter().enumerate() {
            if !(factor.is_finite() && factor > 0.0) {
                continue;
            }
            let scale = &mut self.scales[link][channel];
            let factor = (*scale * factor).clamp(1.0 / LIMIT, LIMIT) / *scale;
            *scale *= factor;
            moved = moved.max(factor.ln().abs());
            let (writer, reader) = (&mut self.sides[first], channel * spread..(channel + 1) * spread);
            writer.iter_mut().for_each(|side| side.outputs[channel] *= factor);
            self.sides[second].iter_mut().for_each(|side| side.inputs[reader.clone()].iter_mut().for_each(|scale| *scale *= factor));
        }
        moved
    }

    /// `s = √(r₁ / r₂)`, until nothing moves. Gives the number of sweeps.
    fn balance_weights(&mut self, progress: &mut Progress<'_>) -> Result<usize> {
        self.sweep(1e-6, progress, &mut |state, link| {
            let Link { first, second, spread, .. } = state.links[link];
            let (written, read) = (state.side(first).written(), state.side(second).read(spread));
            written.iter().zip(read).map(|(written, read)| (written / read).sqrt()).collect()
        })
    }

    /// The scales of least noise. Gives the number of sweeps.
    fn balance_noise(&mut self, model: &Model, statistics: &[Option<Statistics>], progress: &mut Progress<'_>) -> Result<usize> {
        let noise = noise::Noise::new(model, self, statistics);
        for link in 0..self.links.len() {
            // From like ranges of activations on, few sweeps are left.
            self.scale(link, &noise.reach(link));
        }
        let mut costs = Vec::new();
        self.sweep(1e-4, progress, &mut |state, link| {
            if link == 0 {
                costs = noise.costs(state);
            }
            noise.step(state, &costs, link)
        })
    }

    /// Scales every link by its factors, in turn, until none moves by more than `still` in its logarithm.
    fn sweep(&mut self, still: f64, progress: &mut Progress<'_>, factors: &mut dyn FnMut(&State, usize) -> Vec<f64>) -> Result<usize> {
        for sweep in 0..SWEEPS {
            progress.step("equalize", "all pairs", sweep, SWEEPS)?;
            let mut moved = 0.0f64;
            for link in 0..self.links.len() {
                let factors = factors(self, link);
                moved = moved.max(self.scale(link, &factors));
            }
            if moved <= still {
                return Ok(sweep + 1);
            }
        }
        Ok(SWEEPS)
    }

    /// By link, on both sides: the mean over channels of a channel's range over the largest.
    fn evenness(&self) -> Vec<[f64; 2]> {
        let even = |ranges: Vec<f64>| {
            let largest = ranges.iter().copied().fold(0.0, f64::max);
            if largest > 0.0 { ranges.iter().sum::<f64>() / (largest * ranges.len() as f64) } else { 1.0 }
        };
        let both = |link: &Link| [even(self.side(link.first).written()), even(self.side(link.second).read(link.spread))];
        self.links.iter().map(both).collect()
    }
}
