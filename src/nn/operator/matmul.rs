//! Matrix products of two values, over batches.

use std::num::Wrapping;
use std::ops::{Add, Mul};

use bytemuck::Pod;

use super::broadcast_dims;
use super::facts::check_arity;
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::{Matrix, MatrixMut, WeightLayout, Workspace, matmul_f32};
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::tensor::{DType, Shape};

/// ONNX MatMul, numpy's rule: the last two axes are matrices, the axes before them are broadcast; a vector on the left is
/// a row, on the right a column, and its axis is not in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatMul {
    transposed: bool,
}

impl MatMul {
    /// `A B`.
    pub fn new() -> Self {
        MatMul::default()
    }

    /// With the right side's last two axes swapped: `A Bᵀ`. Not in the standard: what a Transpose before a MatMul becomes.
    #[must_use]
    pub fn with_transposed_rhs(self) -> Self {
        MatMul { transposed: true }
    }
}

/// The matrices of a batched product.
struct Batches<'a> {
    m: usize,
    k: usize,
    n: usize,
    /// Axes of the batch on either side, and of both broadcast.
    lhs: &'a [usize],
    rhs: &'a [usize],
    batch: Vec<usize>,
}

impl<'a> Batches<'a> {
    fn new(a: &'a [usize], b: &'a [usize], transposed: bool) -> Result<Self> {
        let (lhs, m, k) = match a {
            [] => return Err(Error::shape("first input", "at least one axis", a)),
            [k] => (&a[..0], 1, *k),
            [batch @ .., m, k] => (batch, *m, *k),
        };
        let (rhs, inner, n) = match b {
            [] => return Err(Error::shape("second input", "at least one axis", b)),
            [k] => (&b[..0], *k, 1),
            [batch @ .., n, k] if transposed => (batch, *k, *n),
            [batch @ .., k, n] => (batch, *k, *n),
        };
        if inner != k {
            return Err(Error::shape("second input", format!("{k} rows in its matrices, for a first input of {a:?}"), b));
        }
        Ok(Batches { m, k, n, lhs, rhs, batch: broadcast_dims(lhs, rhs)? })
    }
}

impl Operation for MatMul {
    fn name(&self) -> &'static str {
        "MatMul"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 2)?;
        same_numeric_type(inputs).map(|dtype| vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (a, b) = (facts.shape(0)?.dims(), facts.shape(1)?.dims());
        let Batches { m, n, mut batch, .. } = Batches::new(a, b, self.transposed)?;
        batch.extend((a.len() > 1).then_some(m));
        batch.extend((b.len() > 1).then_some(n));
        Ok(vec![Shape::new(batch)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        let batches = Batches::new(a.dims, b.dims, self.transposed)?;
        let mut y = outputs.get(0);
        match a.dtype {
            DType::F32 => {
                let Batches { m, k, n, .. } = batches;
                let (layout, rows) = if self.transposed { (WeightLayout::Nk, [n, k]) } else { (WeightLayout::Kn, [k, n]) };
                batches.each(|i, j, o| {
                    let lhs = Matrix::new(&a.f32()[i * m * k..][..m * k], m, k)?;
                    let rhs = Matrix::new(&b.f32()[j * k * n..][..k * n], rows[0], rows[1])?;
                    let dst = MatrixMut::new(&mut y.f32()[o * m * n..][..m * n], m, n)?;
                    matmul_f32(lhs, rhs, layout, dst, workspace, threads)
                })
            }
            DType::F64 => plain::<f64, f64>(&batches, self.transposed, a, b, &mut y, |x| x, |x| x),
            DType::F16 => plain::<half::f16, f32>(&batches, self.transposed, a, b, &mut y, half::f16::to_f32, half::f16::from_f32),
            DType::Bf16 => plain::<half::bf16, f32>(&batches, self.transposed, a, b, &mut y, half::bf16::to_f32, half::bf16::from_f32),
            DType::I32 | DType::U32 => plain::<u32, Wrapping<u32>>(&batches, self.transposed, a, b, &mut y, Wrapping, |x| x.0),
            DType::I64 | DType::U64 => plain::<u64, Wrapping<u64>>(&batches, self.transposed, a, b, &mut y, Wrapping, |x| x.0),
            other => Err(unsupported_type(other)),
        }
    }
}

impl Batches<'_> {
    /// Calls `f` with the index of each product's left matrix, right matrix and output.
    fn each(&self, mut f: impl FnMut(usize, usize, usize) -> Result<()>) -> Result<()> {
        let count = self.batch.iter().product();
        let index = |dims: &[usize], mut o: usize| {
            let (mut at, mut stride) = (0, 1);
            for (axis, &length) in self.batch.iter().enumerate().rev() {
                let i = o % length;
                o /= length;
                if let Some(own) = (axis + dims.len()).checked_sub(self.batch.len()) {
                    at += if dims[own] == 1 { 0 } else { i * stride };
                    stride *= dims[own];
                }
            }
            at
        };
        (0..count).try_for_each(|o| f(index(self.lhs, o), index(self.rhs, o), o))
    }
}

/// Sums in order of k, in `A`.
fn plain<T: Pod, A: Copy + Default + Add<Output = A> + Mul<Output = A>>(
    batches: &Batches<'_>,
    transposed: bool,
    a: View<'_>,
    b: View<'_>,
    y: &mut ViewMut<'_>,
    load: impl Fn(T) -> A,
    store: impl Fn(A) -> T,
) -> Result<()> {
    let (a, b, y) = (a.as_slice::<T>(), b.as_slice::<T>(), y.as_mut_slice::<T>());
    let &Batches { m, k, n, .. } = batches;
    batches.each(|i, j, o| {
        for row in 0..m {
            for column in 0..n {
                let right = |step: usize| b[j * k * n + if transposed { column * k + step } else { step * n + column }];
                let sum = (0..k).fold(A::default(), |sum, step| sum + load(a[(i * m + row) * k + step]) * load(right(step)));
                y[(o * m + row) * n + column] = store(sum);
            }
        }
        Ok(())
    })
}

/// The one type of all inputs, which a product can be taken in.
pub(super) fn same_numeric_type(inputs: &[Option<DType>]) -> Result<DType> {
    let mut types = inputs.iter().flatten();
    let first = *types.next().ok_or_else(|| Error::length("list of inputs", 1, 0))?;
    if let Some(other) = types.find(|&&other| other != first) {
        return Err(Error::Type { what: "input of a product".into(), expected: first.name(), got: other.name() });
    }
    match first {
        DType::F32 | DType::F64 | DType::F16 | DType::Bf16 | DType::I32 | DType::U32 | DType::I64 | DType::U64 => Ok(first),
        other => Err(unsupported_type(other)),
    }
}

pub(super) fn unsupported_type(got: DType) -> Error {
    Error::Type { what: "input of a product".into(), expected: "f32, f64, f16, bf16, i32, u32, i64 or u64", got: got.name() }
}
