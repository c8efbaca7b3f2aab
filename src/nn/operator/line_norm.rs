//! Normalization along one axis, and over any.

use super::attributes::Attributes;
use super::broadcast::Spread;
use super::numbers::{check_type, in_reals, is_float};
use super::{Facts, Operation, check_arity, resolve_axis};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::kernels::rows::Real;
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX LpNormalization of floats: each line along an axis divided by its norm, `Σ |x|` or `√Σ x²`; a line of zeros stays zero.
/// 16-bit floats are computed in f32 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LpNormalization {
    axis: i64,
    squares: bool,
}

impl LpNormalization {
    /// Along `axis`, counted from the end when negative, with the norm `p`, 1 or 2.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another norm.
    pub fn new(axis: i64, p: i64) -> Result<Self> {
        match p {
            1 | 2 => Ok(LpNormalization { axis, squares: p == 2 }),
            _ => Err(Error::parameter("norm", p, "must be 1 or 2")),
        }
    }

    fn lines<R: Real>(self, x: &[R], (length, inner): (usize, usize), y: &mut [R]) {
        for line in 0..x.len() / length.max(1) {
            let at = |k: usize| (line / inner * length + k) * inner + line % inner;
            let size = |x: R| if self.squares { x * x } else { x.abs() };
            let total = (0..length).fold(R::zero(), |total, k| total + size(x[at(k)]));
            let norm = if self.squares { total.sqrt() } else { total };
            (0..length).for_each(|k| y[at(k)] = if norm == R::zero() { norm } else { x[at(k)] / norm });
        }
    }
}

impl Operation for LpNormalization {
    fn name(&self) -> &'static str {
        "LpNormalization"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis).with("p", if self.squares { 2 } else { 1 })
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(vec![check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float)?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        resolve_axis(self.axis, shape.rank())?;
        Ok(vec![shape.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        let rank = x.dims.len();
        let axis = inputs.axis(resolve_axis(self.axis, rank)?, rank);
        let (length, inner): (usize, usize) = (x.dims[axis], x.dims[axis + 1..].iter().product());
        in_reals!(x, y, |x, y: R| self.lines::<R>(x, (length, inner), y));
        Ok(())
    }
}

/// ONNX MeanVarianceNormalization of floats: over some axes together, `(x - mean) / (√variance + 1e-9)`. 16-bit floats are computed
/// in f32 and rounded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeanVarianceNormalization {
    axes: Vec<i64>,
}

impl MeanVarianceNormalization {
    /// Over these axes, counted from the end when negative: `[0, 2, 3]` normalizes the channels of images.
    pub fn new(axes: impl Into<Vec<i64>>) -> Self {
        MeanVarianceNormalization { axes: axes.into() }
    }
}

impl Operation for MeanVarianceNormalization {
    fn name(&self) -> &'static str {
        "MeanVarianceNormalization"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axes", self.axes.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(vec![check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float)?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        self.axes.iter().try_for_each(|&axis| resolve_axis(axis, shape.rank()).map(drop))?;
        Ok(vec![shape.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        let (rank, mut kept) = (x.dims.len(), x.dims.to_vec());
        for &axis in &self.axes {
            kept[inputs.axis(resolve_axis(axis, rank)?, rank)] = 1;
        }
        let spread = Spread::new(x.dims, [&kept])?;
        let means: usize = kept.iter().product();
        in_reals!(x, y, |x, y: R| {
            y.copy_from_slice(x);
            if !y.is_empty() {
                normalize::<R>(&spread, means, y);
            }
        });
        Ok(())
    }
}

fn normalize<R: Real>(spread: &Spread<1>, means: usize, y: &mut [R]) {
    let count = (y.len() / means) as f64;
    let mean = mean_of(spread, means, count, y, &|x| x);
    with_each(spread, y, &mut |x, at| *x = *x - R::of(mean[at]));
    let variance = mean_of(spread, means, count, y, &|x| x * x);
    with_each(spread, y, &mut |x, at| *x = *x / R::of(variance[at].sqrt() + 1e-9));
}

fn mean_of<R: Real>(spread: &Spread<1>, means: usize, count: f64, y: &mut [R], f: &dyn Fn(f64) -> f64) -> Vec<f64> {
    let mut means = vec![0.0; means];
    with_each(spread, y, &mut |x, at| means[at] += f(x.wide()));
    means.iter_mut().for_each(|mean| *mean /= count);
    means
}

/// Calls `f` with each element and the index of the operand's element that lies under it.
fn with_each<R>(spread: &Spread<1>, y: &mut [R], f: &mut dyn FnMut(&mut R, usize)) {
    let ([step], mut rows) = (spread.steps(), spread.rows(0, y.len()));
    for y in y.chunks_exact_mut(rows.length) {
        let [first] = rows.step();
        y.iter_mut().enumerate().for_each(|(i, y)| f(y, first + i * step));
    }
}
