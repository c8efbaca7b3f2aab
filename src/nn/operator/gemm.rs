//! ONNX Gemm over values.

use std::num::Wrapping;

use bytemuck::Pod;

use super::attributes::Attributes;
use super::facts::check_arity;
use super::matmul::{same_numeric_type, unsupported_type};
use super::{Facts, Operation, broadcast_dims};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::tensor::{DType, Shape};

/// `alpha · A B + beta · C` over matrices, `A` and `B` transposed on request, `C` broadcast or left out.
///
/// The sums run in order of k; a product with constant weights is a [`Linear`](crate::nn::Linear) layer instead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    alpha: f32,
    beta: f32,
    transposed: [bool; 2],
}

impl Gemm {
    /// `alpha · A B + beta · C`.
    pub fn new(alpha: f32, beta: f32) -> Self {
        Gemm { alpha, beta, transposed: [false; 2] }
    }

    /// With `A`, `B` or both transposed first.
    #[must_use]
    pub fn with_transposed(self, a: bool, b: bool) -> Self {
        Gemm { transposed: [a, b], ..self }
    }

    /// `alpha` and `beta`.
    pub(crate) fn factors(&self) -> [f32; 2] {
        [self.alpha, self.beta]
    }

    /// Whether `A` and `B` are transposed.
    pub(crate) fn transposed(&self) -> [bool; 2] {
        self.transposed
    }

    /// `[m, k, n]` of matrices of these dimensions.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub(crate) fn sizes(&self, a: &[usize], b: &[usize]) -> Result<[usize; 3]> {
        let matrix = |what: &str, dims: &[usize], transposed: bool| match *dims {
            [rows, cols] if transposed => Ok([cols, rows]),
            [rows, cols] => Ok([rows, cols]),
            _ => Err(Error::shape(what, "a matrix", dims)),
        };
        let ([m, k], [inner, n]) = (matrix("A", a, self.transposed[0])?, matrix("B", b, self.transposed[1])?);
        if k != inner {
            return Err(Error::shape("B", format!("{k} rows, for an A of {a:?}, after both are transposed as asked"), b));
        }
        Ok([m, k, n])
    }

    fn compute<T: Pod>(
        &self,
        [m, k, n]: [usize; 3],
        inputs: &Inputs<'_>,
        y: &mut ViewMut<'_>,
        f: impl Fn(Terms<'_, T>) -> T,
    ) -> Result<()> {
        let (a, b): (View<'_>, View<'_>) = (inputs.need(0)?, inputs.need(1)?);
        let (a, b) = (a.as_slice::<T>(), b.as_slice::<T>());
        let c = inputs.get(2);
        // Strides of C, 0 along an axis of length 1.
        let [row, column] = c.map_or([0; 2], |c| match *c.dims {
            [rows, cols] => [if rows == 1 { 0 } else { cols }, usize::from(cols != 1)],
            [cols] => [0, usize::from(cols != 1)],
            _ => [0; 2],
        });
        for (i, y) in y.as_mut_slice::<T>().iter_mut().enumerate() {
            let (i, j) = (i / n, i % n);
            let a = |step: usize| a[if self.transposed[0] { step * m + i } else { i * k + step }];
            let b = |step: usize| b[if self.transposed[1] { j * k + step } else { step * n + j }];
            *y = f(Terms { k, a: &a, b: &b, c: c.map(|c| c.as_slice::<T>()[i * row + j * column]) });
        }
        Ok(())
    }
}

/// What one output is made of.
struct Terms<'a, T> {
    k: usize,
    a: &'a dyn Fn(usize) -> T,
    b: &'a dyn Fn(usize) -> T,
    c: Option<T>,
}

impl Operation for Gemm {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with_other("alpha", self.alpha, 1.0).with_other("beta", self.beta, 1.0);
        attributes.with_other("transA", self.transposed[0], false).with_other("transB", self.transposed[1], false)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 3)?;
        same_numeric_type(inputs).map(|dtype| vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let [m, _, n] = self.sizes(facts.shape(0)?.dims(), facts.shape(1)?.dims())?;
        if facts.has(2) {
            let c = facts.shape(2)?.dims();
            if broadcast_dims(c, &[m, n])? != [m, n] {
                return Err(Error::shape("C", format!("one that broadcasts to [{m}, {n}]"), c));
            }
        }
        Ok(vec![Shape::new([m, n])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let sizes = self.sizes(inputs.need(0)?.dims, inputs.need(1)?.dims)?;
        let (alpha, beta) = (self.alpha, self.beta);
        let mut y = outputs.get(0);
        match y.dtype {
            DType::F32 => self.compute(sizes, inputs, &mut y, |t: Terms<'_, f32>| {
                let sum = (0..t.k).fold(0.0, |sum, i| sum + (t.a)(i) * (t.b)(i));
                alpha * sum + t.c.map_or(0.0, |c| beta * c)
            }),
            DType::F64 => self.compute(sizes, inputs, &mut y, |t: Terms<'_, f64>| {
                let sum = (0..t.k).fold(0.0, |sum, i| sum + (t.a)(i) * (t.b)(i));
                f64::from(alpha) * sum + t.c.map_or(0.0, |c| f64::from(beta) * c)
            }),
            DType::F16 => self.compute(sizes, inputs, &mut y, |t: Terms<'_, half::f16>| {
                let sum = (0..t.k).fold(0.0, |sum, i| sum + (t.a)(i).to_f32() * (t.b)(i).to_f32());
                half::f16::from_f32(alpha * sum + t.c.map_or(0.0, |c| beta * c.to_f32()))
            }),
            DType::Bf16 => self.compute(sizes, inputs, &mut y, |t: Terms<'_, half::bf16>| {
                let sum = (0..t.k).fold(0.0, |sum, i| sum + (t.a)(i).to_f32() * (t.b)(i).to_f32());
                half::bf16::from_f32(alpha * sum + t.c.map_or(0.0, |c| beta * c.to_f32()))
            }),
            DType::I32 | DType::U32 => self.compute(sizes, inputs, &mut y, |t: Terms<'_, u32>| {
                let sum = (0..t.k).fold(Wrapping(0), |sum, i| sum + Wrapping((t.a)(i)) * Wrapping((t.b)(i)));
                (Wrapping(alpha as i32 as u32) * sum + t.c.map_or(Wrapping(0), |c| Wrapping(beta as i32 as u32) * Wrapping(c))).0
            }),
            DType::I64 | DType::U64 => self.compute(sizes, inputs, &mut y, |t: Terms<'_, u64>| {
                let sum = (0..t.k).fold(Wrapping(0), |sum, i| sum + Wrapping((t.a)(i)) * Wrapping((t.b)(i)));
                (Wrapping(alpha as i64 as u64) * sum + t.c.map_or(Wrapping(0), |c| Wrapping(beta as i64 as u64) * Wrapping(c))).0
            }),
            other => Err(unsupported_type(other)),
        }
    }
}
