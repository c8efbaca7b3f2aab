//! Attention: two products of matrices and the softmax between them.

use std::borrow::Cow;

use super::broadcast::repeated;
use super::facts::{broadcast_dims, check_arity};
use super::matmul::{Batches, MatMul, Strided};
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::{self, Head, Scattered, Workspace};
use crate::nn::view::{Inputs, Outputs, View};
use crate::tensor::{DType, Shape};

/// `softmax(Q K · scale + mask) V` along the last axis of the scores, over batches as [`MatMul`] has them. Not the standard's operator of that name: what two
/// products, a Softmax, and a quotient and a sum between them become where nothing else reads what passes from one to the other.
///
/// The inputs are Q, K, V, the mask (which may be left out), and numbers that the scores are multiplied with or divided by.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    scores: MatMul,
    mixed: MatMul,
    scale: f32,
    // For each input that is a factor, whether it divides.
    divides: Vec<bool>,
}

/// Inputs before the factors.
const FACTORS: usize = 4;

/// The shapes of one call, checked.
struct Products {
    scores: Batches,
    mixed: Batches,
    score_dims: Vec<usize>,
}

impl Attention {
    /// Scores times `scale`, and times (or divided by) as many inputs as `divides` has entries.
    pub(crate) fn new(scale: f32, divides: Vec<bool>) -> Self {
        Attention { scores: MatMul::new(), mixed: MatMul::new(), scale, divides }
    }

    /// Reading Q, K or V as [`MatMul::with_input_axes`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn with_input_axes(self, input: usize, axes: Vec<usize>) -> Result<Self> {
        let Attention { scores, mixed, .. } = self.clone();
        Ok(match input {
            0 | 1 => Attention { scores: scores.with_input_axes(input, axes)?, ..self },
            input => Attention { mixed: mixed.with_input_axes(input - 1, axes)?, ..self },
        })
    }

    /// Writing the output as [`MatMul::with_output_axes`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn with_output_axes(self, axes: Vec<usize>) -> Result<Self> {
        Ok(Attention { mixed: self.mixed.clone().with_output_axes(axes)?, ..self })
    }

    fn products(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<Products> {
        for (what, dims) in [("first input", q), ("second input", k), ("third input", v)] {
            if dims.len() < 2 {
                return Err(Error::shape(what, "matrices", dims));
            }
        }
        let scores = Batches::new(&self.scores, q, k)?;
        let score_dims = scores.output_dims();
        let mixed = Batches::new(&self.mixed, &score_dims, v)?;
        if mixed.batch != scores.batch {
            return Err(Error::shape("third input", format!("no other batch than that of the scores, {:?}", scores.batch), v));
        }
        Ok(Products { scores, mixed, score_dims })
    }

    fn factor(&self, inputs: &Inputs<'_>) -> Result<f32> {
        self.divides.iter().enumerate().try_fold(self.scale, |scale, (i, &divides)| {
            let factor = inputs.need(FACTORS + i)?.f32()[0];
            Ok(if divides { scale / factor } else { scale * factor })
        })
    }
}

/// What is added to the scores of each head, row by row.
struct Masks<'a> {
    values: Cow<'a, [f32]>,
    /// Where each head's first row starts; nowhere without a mask.
    starts: Vec<usize>,
    /// From one row to the next.
    step: usize,
    length: usize,
}

impl<'a> Masks<'a> {
    fn new(mask: Option<View<'a>>, score_dims: &[usize]) -> Result<Self> {
        let (batch, length) = (&score_dims[..score_dims.len() - 2], score_dims[score_dims.len() - 1]);
        let Some(view) = mask else { return Ok(Masks { values: Cow::Borrowed(&[]), starts: Vec::new(), step: 0, length }) };
        let (mut dims, mut values) = (view.dims.to_vec(), Cow::Borrowed(view.f32()));
        if dims.last() != Some(&length) {
            dims.pop();
            dims.push(length);
            values = Cow::Owned(repeated(&dims, view.dims, view.f32())?);
        }
        // Aligned at the last axis; an axis of length 1 stays where it is.
        let mut steps = vec![0; score_dims.len()];
        let (missing, mut step) = (score_dims.len() - dims.len(), 1);
        for (axis, &length) in dims.iter().enumerate().rev() {
            steps[missing + axis] = if length == 1 { 0 } else { step };
            step *= length;
        }
        let start = |mut head: usize| {
            let mut at = 0;
            for (&length, &step) in batch.iter().zip(&steps).rev() {
                at += head % length * step;
                head /= length;
            }
            at
        };
        let starts = (0..batch.iter().product()).map(start).collect();
        Ok(Masks { values, starts, step: steps[batch.len()], length })
    }

    fn row(&self, head: usize, row: usize) -> Option<&[f32]> {
        let at = self.starts.get(head)? + row * self.step;
        Some(&self.values[at..at + self.length])
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "Attention"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 3, FACTORS + self.divides.len())?;
        match inputs.iter().flatten().find(|&&dtype| dtype != DType::F32) {
            Some(other) => Err(Error::Type { what: "input of Attention".into(), expected: "f32", got: other.name() }),
            None => Ok(vec![DType::F32]),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let products = self.products(facts.shape(0)?.dims(), facts.shape(1)?.dims(), facts.shape(2)?.dims())?;
        let dims = &products.score_dims;
        if facts.has(3) {
            let mask = facts.shape(3)?.dims();
            if broadcast_dims(dims, mask)? != *dims {
                return Err(Error::shape("mask", format!("one that spreads over {dims:?}"), mask));
            }
        }
        for i in FACTORS..FACTORS + self.divides.len() {
            let factor = facts.shape(i)?;
            if factor.elements() != 1 || factor.rank() > dims.len() {
                return Err(Error::shape("factor of the scores", "one number", factor.dims()));
            }
        }
        Ok(vec![Shape::new(self.mixed.written(&products.mixed.output_dims())?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let (q, k, v) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let Products { scores, mixed, score_dims } = self.products(q.dims, k.dims, v.dims)?;
        let mut y = outputs.get(0);
        let output = self.mixed.output(y.dims)?;
        let mut heads = Vec::new();
        scores.each(&Strided::new(&score_dims, &[], "scores")?, |i, j, _| {
            let (query, key) = (scores.left(q.f32(), i)?, scores.right(k.f32(), j)?);
            heads.push(Head { query, key, value: key });
            Ok(())
        })?;
        let mut head = heads.iter_mut();
        mixed.each(&output, |_, j, _| {
            let value = mixed.right(v.f32(), j)?;
            head.by_ref().take(1).for_each(|head| head.value = value);
            Ok(())
        })?;
        let masks = Masks::new(inputs.get(3), &score_dims)?;
        let batch = mixed.batch.len();
        let places: Vec<(usize, usize)> = mixed.batch.iter().copied().zip(output.strides.iter().copied()).collect();
        let place = Scattered { heads: &places, row: output.strides[batch] };
        let call = kernels::Attention { heads: &heads, scale: self.factor(inputs)?, mask: &|head, row| masks.row(head, row) };
        kernels::attention(&call, y.f32(), place, workspace, threads)
    }
}
