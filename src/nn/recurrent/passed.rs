//! What the products of a recurrent layer multiply, told from what the layer read and wrote.

use std::borrow::Cow;

use super::{Projection, RecurrentOptions, Sizes};
use crate::error::{Error, Result};
use crate::nn::Layer;
use crate::tensor::Tensor;

/// A layer of products with its input and with its state.
pub(crate) trait Recurrent {
    fn options(&self) -> &RecurrentOptions;

    fn in_features(&self) -> usize;

    /// Its products, direction by direction.
    fn products(&self) -> Vec<&Projection>;

    /// The same layer with these in their place.
    fn with_products(&self, products: Vec<Projection>) -> Layer;

    /// By product, the rows that it multiplied for one sequence, one after the other.
    ///
    /// # Errors
    /// Those of the products.
    fn multiplied(&self, passed: &Passed<'_>, sequence: usize, threads: usize) -> Result<Vec<Vec<f32>>>;
}

/// The layer, if it is recurrent.
pub(crate) fn recurrent(layer: &Layer) -> Option<&dyn Recurrent> {
    match layer {
        Layer::Lstm(lstm) => Some(lstm as &dyn Recurrent),
        Layer::Gru(gru) => Some(gru as &dyn Recurrent),
        _ => None,
    }
}

/// The layer, if it is recurrent and its weights are floats still.
pub(crate) fn float_recurrent(layer: &Layer) -> Option<&dyn Recurrent> {
    recurrent(layer).filter(|_| !layer.is_quantized())
}

/// What came by in one run of a layer.
#[derive(Debug)]
pub(crate) struct Passed<'a> {
    options: &'a RecurrentOptions,
    sizes: Sizes,
    lengths: Vec<usize>,
    x: &'a Tensor,
    y: &'a Tensor,
    first: Option<Cow<'a, [f32]>>,
}

/// The state before the first step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum First<'a> {
    Zeros,
    Given(&'a Tensor),
    /// There is one that is not to be had: what it is multiplied with is passed over.
    Unknown,
}

impl<'a> Passed<'a> {
    /// The sequences, their lengths where they are not all of it, and every state that the layer wrote.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Length`] for what such a layer can't read or write.
    pub fn new(layer: &'a dyn Recurrent, x: &'a Tensor, lengths: Option<&[i32]>, first: First<'a>, y: &'a Tensor) -> Result<Self> {
        let options = layer.options();
        let sizes = options.sizes(x.dims(), layer.in_features())?;
        let [states, last] = options.output_shapes(x.shape(), layer.in_features())?;
        if y.shape() != &states {
            return Err(Error::shape("states", format!("{states:?}"), y.dims()));
        }
        let first = match first {
            First::Zeros => Some(Cow::Owned(vec![0.0; last.elements()])),
            First::Given(given) if given.len() == last.elements() => Some(Cow::Borrowed(given.as_slice())),
            First::Given(given) => return Err(Error::length("initial h", last.elements(), given.len())),
            First::Unknown => None,
        };
        let lengths: Vec<usize> = match lengths {
            Some(lengths) => lengths.iter().map(|&length| usize::try_from(length).unwrap_or(0).min(sizes.steps)).collect(),
            None => vec![sizes.steps; sizes.batch],
        };
        match lengths.len() == sizes.batch {
            true => Ok(Passed { options, sizes, lengths, x, y, first }),
            false => Err(Error::length("list of sequence lengths", sizes.batch, lengths.len())),
        }
    }

    /// Sequences that run side by side.
    pub fn sequences(&self) -> usize {
        self.sizes.batch
    }

    fn steps(&self, sequence: usize) -> impl Iterator<Item = usize> {
        0..self.lengths[sequence]
    }

    /// The input at these steps.
    fn inputs(&self, sequence: usize, steps: impl Iterator<Item = usize>) -> Vec<f32> {
        let width = self.x.dims()[2];
        steps.flat_map(|t| &self.x.as_slice()[self.options.input_row(self.sizes, t, sequence) * width..][..width]).copied().collect()
    }

    /// Steps of a direction, each with the state that it starts from, where that is known.
    fn states(&self, direction: usize, sequence: usize) -> impl Iterator<Item = (usize, &[f32])> {
        let (hidden, length) = (self.options.hidden, self.lengths[sequence]);
        self.steps(sequence).filter_map(move |t| {
            let before = match self.options.direction.is_reverse(direction) {
                true => Some(t + 1).filter(|&t| t < length),
                false => t.checked_sub(1),
            };
            let (states, row) = match before {
                Some(t) => (self.y.as_slice(), self.options.output_row(self.sizes, direction, t, sequence)),
                None => (self.first.as_deref()?, self.options.state_row(self.sizes, direction, sequence)),
            };
            Some((t, &states[row * hidden..][..hidden]))
        })
    }

    /// All inputs of a sequence; of the steps whose first state is known, the inputs; and those states.
    pub(super) fn rows(&self, direction: usize, sequence: usize) -> [Vec<f32>; 3] {
        let states = || self.states(direction, sequence);
        [
            self.inputs(sequence, self.steps(sequence)),
            self.inputs(sequence, states().map(|(t, _)| t)),
            states().flat_map(|(_, state)| state).copied().collect(),
        ]
    }
}
