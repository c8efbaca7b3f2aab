//! The loop: shuffled batches, a schedule, an optimizer.

use std::ops::Range;

use super::network::Trainable;
use super::optim::Optimizer;
use super::parameter::Gradients;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::quant::random_unit;

/// How the learning rate goes from the first step (0) to the last (1).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// `(1 + cos(π t)) / 2`: down to zero.
    Cosine,
    /// `1 - t`: down to zero.
    Linear,
    /// `factor` to the number of times that `every` (a share of the whole) has passed.
    Steps {
        /// Share of the whole between two drops.
        every: f64,
        /// What the rate is multiplied by.
        factor: f64,
    },
}

impl Schedule {
    /// The factor of the learning rate at `t` between 0 and 1.
    pub fn factor(self, t: f64) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
            Schedule::Linear => 1.0 - t,
            Schedule::Steps { every, factor } => factor.powf((t / every).floor()),
        }
    }
}

/// The numbers `0..n` in an order that the seed decides (Fisher and Yates, drawn by [`random_unit`]).
pub fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // Two draws of 24 bits each, for lists of any length.
        let unit = f64::from(random_unit(seed, 2 * i as u64)) + f64::from(random_unit(seed, 2 * i as u64 + 1)) / f64::from(1 << 24);
        order.swap(i, ((unit * (i + 1) as f64) as usize).min(i));
    }
    order
}

/// One batch, as [`Training::run`] hands it out.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Batch<'a> {
    /// Which samples.
    pub rows: &'a [usize],
    /// Which pass over all samples.
    pub epoch: usize,
    /// Which step of all: a seed for what is random in it.
    pub step: usize,
}

/// Passes over samples in shuffled batches.
///
/// ```
/// use lowprec::nn::{Dim, Linear, Model};
/// use lowprec::train::{Adam, Mode, Network, Schedule, Trainable, Training, cross_entropy};
/// use lowprec::{DType, Tensor};
/// # let mut net = Model::builder();
/// # let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
/// # let y = net.add("fc", Linear::new(Tensor::full([2, 2], 0.0)?, None)?, &[x])?;
/// # net.output("y", y)?;
/// # let model = net.build()?;
/// let (x, labels) = (Tensor::new([4, 2], vec![1.0, 0.0, 0.9, 0.2, 0.1, 1.0, 0.0, 0.8])?, [0, 0, 1, 1]);
/// let mut network = Network::new(&model)?;
/// let losses = Training::new(4, 2, 50).with_schedule(Schedule::Cosine).run(&mut network, &mut Adam::new(0.05), |network, batch| {
///     let rows: Vec<f32> = batch.rows.iter().flat_map(|&row| x.as_slice()[2 * row..][..2].to_vec()).collect();
///     let labels: Vec<usize> = batch.rows.iter().map(|&row| labels[row]).collect();
///     let tape = network.forward(&Tensor::new([labels.len(), 2], rows)?, Mode::Train)?;
///     let (loss, gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
///     Ok((loss, network.backward(&tape, &[("y", &gradient)])?))
/// })?;
/// assert!(losses[49] < 0.5 * losses[0]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug)]
pub struct Training<'p> {
    samples: usize,
    batch: usize,
    epochs: usize,
    seed: u64,
    schedule: Schedule,
    steps: Range<usize>,
    progress: Progress<'p>,
}

impl Training<'static> {
    /// Over so many samples, in batches of so many, the last of an epoch having what is left, so many times.
    pub fn new(samples: usize, batch: usize, epochs: usize) -> Self {
        Training { samples, batch, epochs, seed: 0, schedule: Schedule::Constant, steps: 0..usize::MAX, progress: Progress::silent() }
    }
}

impl<'p> Training<'p> {
    /// With another order of samples.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Training { seed, ..self }
    }

    /// With a learning rate that changes, from that which the optimizer has.
    #[must_use]
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Training { schedule, ..self }
    }

    /// Only these of all steps, for a training that is cut into parts: order and schedule are those of the whole, so that with a
    /// [`checkpoint`](super::checkpoint()) in between the parts give, bit for bit, what the whole gives. There are
    /// [`Training::total_steps`].
    ///
    /// ```
    /// # use lowprec::nn::{Dim, Linear, Model, StateDict};
    /// # use lowprec::train::{Adam, Gradients, Mode, Network, Schedule, Trainable, Training, checkpoint, cross_entropy, resume};
    /// # use lowprec::{DType, Tensor};
    /// # let mut net = Model::builder();
    /// # let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
    /// # let y = net.add("fc", Linear::new(Tensor::full([2, 2], 0.0)?, None)?, &[x])?;
    /// # net.output("y", y)?;
    /// # let model = net.build()?;
    /// # let gradients = |network: &mut Network, batch: lowprec::train::Batch<'_>| {
    /// #     let x = batch.rows.iter().flat_map(|&row| [row as f32 / 50.0 - 1.0, 0.5]).collect();
    /// #     let labels: Vec<usize> = batch.rows.iter().map(|&row| usize::from(row >= 50)).collect();
    /// #     let tape = network.forward(&Tensor::new([labels.len(), 2], x)?, Mode::Train)?;
    /// #     let (loss, gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
    /// #     Ok((loss, network.backward(&tape, &[("y", &gradient)])?))
    /// # };
    /// let training = || Training::new(100, 10, 4).with_schedule(Schedule::Cosine);
    /// let (mut network, mut adam) = (Network::new(&model)?, Adam::new(0.1));
    /// training().with_steps(0..25).run(&mut network, &mut adam, gradients)?;
    /// let saved = checkpoint(&network, &adam, 25); // for io::safetensors::write
    ///
    /// let (mut again, mut adam) = (Network::new(&model)?, Adam::new(0.1));
    /// let step = resume(&mut again, &mut adam, &mut StateDict::new(saved)?)?;
    /// training().with_steps(step..training().total_steps()).run(&mut again, &mut adam, gradients)?;
    ///
    /// let (mut whole, mut adam) = (Network::new(&model)?, Adam::new(0.1));
    /// training().run(&mut whole, &mut adam, gradients)?;
    /// assert_eq!(again.parameters(), whole.parameters());
    /// # Ok::<(), lowprec::Error>(())
    /// ```
    #[must_use]
    pub fn with_steps(self, steps: Range<usize>) -> Self {
        Training { steps, ..self }
    }

    /// How many steps all epochs have.
    pub fn total_steps(&self) -> usize {
        self.epochs.saturating_mul(self.samples.div_ceil(self.batch.max(1)))
    }

    /// Reports each step before it is taken, and can be cancelled there: what was learned so far is then in the network.
    #[must_use]
    pub fn with_progress<'q>(self, progress: Progress<'q>) -> Training<'q> {
        let Training { samples, batch, epochs, seed, schedule, steps, .. } = self;
        Training { samples, batch, epochs, seed, schedule, steps, progress }
    }

    /// Trains: `gradients` runs a batch through the network and gives its loss and the gradients; the optimizer does the rest. Gives
    /// the mean loss of each epoch that it had a step of. The optimizer has its own learning rate back at the end.
    ///
    /// # Errors
    /// [`Error::Empty`] without samples, [`Error::Parameter`] for batches of 0, [`Error::Cancelled`], and those of `gradients`.
    pub fn run<N: Trainable + ?Sized>(
        mut self,
        network: &mut N,
        optimizer: &mut dyn Optimizer,
        mut gradients: impl FnMut(&mut N, Batch<'_>) -> Result<(f64, Gradients)>,
    ) -> Result<Vec<f64>> {
        if self.samples == 0 {
            return Err(Error::Empty { what: "list of samples".into(), way_out: "give at least one" });
        }
        if self.batch == 0 {
            return Err(Error::parameter("samples of a batch", 0, "must be at least 1"));
        }
        let (per_epoch, total, rate) = (self.samples.div_ceil(self.batch), self.total_steps(), optimizer.rate());
        let mut losses = Vec::new();
        let mut train = || {
            for epoch in 0..self.epochs {
                let first = epoch * per_epoch;
                let steps = self.steps.start.max(first)..self.steps.end.min(first + per_epoch);
                if steps.is_empty() {
                    continue;
                }
                let (mut sum, mut seen) = (0.0, 0);
                let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(epoch as u64);
                let order = shuffled(self.samples, seed);
                for (step, rows) in (first..).zip(order.chunks(self.batch)).filter(|(step, _)| steps.contains(step)) {
                    self.progress.step("train", &format!("epoch {epoch}"), step, total)?;
                    optimizer.set_rate(rate * self.schedule.factor(step as f64 / total as f64));
                    let (loss, gradients) = gradients(network, Batch { rows, epoch, step })?;
                    let updates = optimizer.updates(network.parameters(), &gradients)?;
                    network.update(updates);
                    sum += loss * rows.len() as f64;
                    seen += rows.len();
                }
                losses.push(sum / seen as f64);
            }
            Ok(())
        };
        let done = train();
        optimizer.set_rate(rate);
        done.map(|()| losses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_every_number_once() {
        for n in [0, 1, 2, 100] {
            let mut order = shuffled(n, 3);
            assert!(n < 100 || order != shuffled(n, 4));
            order.sort_unstable();
            assert!(order.into_iter().eq(0..n));
        }
    }

    #[test]
    fn schedules_begin_with_the_rate_itself() {
        for schedule in [Schedule::Constant, Schedule::Cosine, Schedule::Linear, Schedule::Steps { every: 0.5, factor: 0.1 }] {
            assert_eq!(schedule.factor(0.0), 1.0);
        }
        assert!((Schedule::Steps { every: 0.25, factor: 0.5 }.factor(0.6) - 0.25).abs() < 1e-12);
        assert!(Schedule::Cosine.factor(1.0).abs() < 1e-12);
    }
}
