//! Matrix products of two values, over batches.

use std::num::Wrapping;
use std::ops::{Add, Mul};

use bytemuck::Pod;

use super::facts::{broadcast_dims, check_arity};
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::{FloatEpilogue, Matrix, MatrixMut, WeightLayout, Workspace, matmul_f32};
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::tensor::{DType, Shape};

/// ONNX MatMul, numpy's rule: the last two axes are matrices, the axes before them are broadcast; a vector on the left is
/// a row, on the right a column, and its axis is not in the output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MatMul {
    // Axes by which each side is transposed as it is read, and the output as it is written; the identity when empty.
    axes: [Vec<usize>; 2],
    output_axes: Vec<usize>,
}

impl MatMul {
    /// `A B`.
    pub fn new() -> Self {
        MatMul::default()
    }

    /// Whether both sides are read, and the output is written, as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.axes.iter().all(Vec::is_empty) && self.output_axes.is_empty()
    }

    /// Reading input `side` as a Transpose by `axes` would leave it, without moving it. Not in the standard: what a Transpose
    /// before a MatMul becomes.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the kernels can't read it so: on the left the last axis must stay last, on the right it must
    /// stay among the last two.
    pub fn with_input_axes(mut self, side: usize, axes: Vec<usize>) -> Result<Self> {
        let last = axes.len().saturating_sub(1);
        let at = axes.iter().position(|&axis| axis == last);
        let allowed = axes.len() >= 2 && is_permutation(&axes) && (at == Some(last) || (side == 1 && at == Some(last - 1)));
        if side > 1 || !allowed || !self.axes[side].is_empty() {
            return Err(Error::parameter("axes of an input of MatMul", axes, "the innermost axis must stay where the product walks it"));
        }
        self.axes[side] = axes;
        Ok(self)
    }

    /// Writing the output as a Transpose by `axes` would leave it.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the last axis does not stay last.
    pub fn with_output_axes(self, axes: Vec<usize>) -> Result<Self> {
        if axes.len() < 2 || !is_permutation(&axes) || axes.last() != Some(&(axes.len() - 1)) || !self.output_axes.is_empty() {
            return Err(Error::parameter("axes of the output of MatMul", axes, "the last axis must stay last"));
        }
        Ok(MatMul { output_axes: axes, ..self })
    }

    /// The dimensions that the output is written with, of those of the product.
    pub(super) fn written(&self, dims: &[usize]) -> Result<Vec<usize>> {
        Ok(Strided::new(dims, &self.output_axes, "output")?.dims)
    }

    /// The output as it lies, its axes in the product's order.
    pub(super) fn output(&self, written: &[usize]) -> Result<Strided> {
        let mut inverse = vec![0; self.output_axes.len()];
        self.output_axes.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
        Strided::new(written, &inverse, "output")
    }
}

fn is_permutation(axes: &[usize]) -> bool {
    (0..axes.len()).all(|axis| axes.contains(&axis))
}

/// A value as the product sees it: lengths of its axes, and the elements from one entry of each to the next.
pub(super) struct Strided {
    pub dims: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Strided {
    pub fn new(dims: &[usize], axes: &[usize], what: &str) -> Result<Self> {
        if !axes.is_empty() && axes.len() != dims.len() {
            return Err(Error::shape(what, format!("{} axes", axes.len()), dims));
        }
        let mut strides = vec![1; dims.len()];
        for axis in (0..dims.len().saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1] * dims[axis + 1];
        }
        let pick = |list: &[usize]| if axes.is_empty() { list.to_vec() } else { axes.iter().map(|&axis| list[axis]).collect() };
        Ok(Strided { dims: pick(dims), strides: pick(&strides) })
    }

    /// The axes of the batch, before the last `matrix` ones.
    fn batch(&self, matrix: usize) -> (&[usize], &[usize]) {
        let split = self.dims.len() - matrix;
        (&self.dims[..split], &self.strides[..split])
    }
}

/// The matrices of a batched product.
pub(super) struct Batches {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    lhs: Strided,
    rhs: Strided,
    /// Axes that are no batch: 2, or 1 for a vector.
    matrix: [usize; 2],
    pub batch: Vec<usize>,
}

impl Batches {
    pub fn new(op: &MatMul, a: &[usize], b: &[usize]) -> Result<Self> {
        let (lhs, rhs) = (Strided::new(a, &op.axes[0], "first input")?, Strided::new(b, &op.axes[1], "second input")?);
        let (m, k) = match *lhs.dims {
            [] => return Err(Error::shape("first input", "at least one axis", a)),
            [k] => (1, k),
            [.., m, k] => (m, k),
        };
        let (inner, n) = match *rhs.dims {
            [] => return Err(Error::shape("second input", "at least one axis", b)),
            [k] => (k, 1),
            [.., k, n] => (k, n),
        };
        if inner != k {
            return Err(Error::shape("second input", format!("{k} rows in its matrices, for a first input of {a:?}"), b));
        }
        let matrix = [lhs.dims.len().min(2), rhs.dims.len().min(2)];
        let batch = broadcast_dims(lhs.batch(matrix[0]).0, rhs.batch(matrix[1]).0)?;
        Ok(Batches { m, k, n, lhs, rhs, matrix, batch })
    }

    /// The output's axes, before they are transposed.
    pub fn output_dims(&self) -> Vec<usize> {
        let mut dims = self.batch.clone();
        dims.extend((self.matrix[0] == 2).then_some(self.m));
        dims.extend((self.matrix[1] == 2).then_some(self.n));
        dims
    }

    /// Elements from one entry to the next: rows and columns of either side.
    fn steps(&self) -> [[usize; 2]; 2] {
        let side = |value: &Strided, vector: [usize; 2]| match *value.strides {
            [.., row, column] => [row, column],
            _ => vector,
        };
        [side(&self.lhs, [0, 1]), side(&self.rhs, [1, 0])]
    }

    /// The left matrix that starts at element `at` of `a`.
    pub fn left<'a>(&self, a: &'a [f32], at: usize) -> Result<Matrix<'a, f32>> {
        let [[row, _], _] = self.steps();
        Matrix::new(&a[at.min(a.len())..], self.m, self.k)?.with_stride(row.max(self.k))
    }

    /// The right matrix that starts at element `at` of `b`, with the axis of it that is contiguous as its columns; of a column, which both
    /// are, k.
    pub fn right<'b>(&self, b: &'b [f32], at: usize) -> Result<(Matrix<'b, f32>, WeightLayout)> {
        let (layout, rows, cols, step) = match self.steps()[1] {
            [1, column] if self.n == 1 || column != 1 => (WeightLayout::Nk, self.n, self.k, column),
            [row, _] => (WeightLayout::Kn, self.k, self.n, row),
        };
        Ok((Matrix::new(&b[at.min(b.len())..], rows, cols)?.with_stride(step.max(cols))?, layout))
    }

    /// Calls `f` with where each product's left matrix, right matrix and output start.
    pub fn each(&self, output: &Strided, mut f: impl FnMut(usize, usize, usize) -> Result<()>) -> Result<()> {
        let offset = |(dims, strides): (&[usize], &[usize]), mut o: usize| {
            let mut at = 0;
            for (axis, &length) in self.batch.iter().enumerate().rev() {
                let i = o % length;
                o /= length;
                if let Some(own) = (axis + dims.len()).checked_sub(self.batch.len()).filter(|&own| dims[own] != 1) {
                    at += i * strides[own];
                }
            }
            at
        };
        let (lhs, rhs) = (self.lhs.batch(self.matrix[0]), self.rhs.batch(self.matrix[1]));
        let written = (&self.batch[..], &output.strides[..self.batch.len()]);
        (0..self.batch.iter().product()).try_for_each(|o| f(offset(lhs, o), offset(rhs, o), offset(written, o)))
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
        let dims = Batches::new(self, facts.shape(0)?.dims(), facts.shape(1)?.dims())?.output_dims();
        Ok(vec![Shape::new(self.written(&dims)?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        let batches = Batches::new(self, a.dims, b.dims)?;
        let mut y = outputs.get(0);
        let output = self.output(y.dims)?;
        match a.dtype {
            DType::F32 => floats(&batches, &output, a.f32(), b.f32(), y.f32(), workspace, threads),
            DType::F64 => plain::<f64, f64>(&batches, &output, a, b, &mut y, |x| x, |x| x),
            DType::F16 => plain::<half::f16, f32>(&batches, &output, a, b, &mut y, half::f16::to_f32, half::f16::from_f32),
            DType::Bf16 => plain::<half::bf16, f32>(&batches, &output, a, b, &mut y, half::bf16::to_f32, half::bf16::from_f32),
            DType::I32 | DType::U32 => plain::<u32, Wrapping<u32>>(&batches, &output, a, b, &mut y, Wrapping, |x| x.0),
            DType::I64 | DType::U64 => plain::<u64, Wrapping<u64>>(&batches, &output, a, b, &mut y, Wrapping, |x| x.0),
            other => Err(unsupported_type(other)),
        }
    }
}

/// Elements from one row of the output to the next.
fn row_step(batches: &Batches, output: &Strided) -> usize {
    if batches.matrix[0] == 2 { output.strides[batches.batch.len()] } else { 0 }
}

fn floats(
    batches: &Batches,
    output: &Strided,
    a: &[f32],
    b: &[f32],
    y: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let &Batches { m, n, .. } = batches;
    let step = row_step(batches, output);
    batches.each(output, |i, j, o| {
        let (lhs, (rhs, layout)) = (batches.left(a, i)?, batches.right(b, j)?);
        let dst = MatrixMut::new(&mut y[o..], m, n)?.with_stride(step.max(n))?;
        matmul_f32(lhs, rhs, layout, &FloatEpilogue::new(), dst, workspace, threads)
    })
}

/// Sums in order of k, in `A`.
fn plain<T: Pod, A: Copy + Default + Add<Output = A> + Mul<Output = A>>(
    batches: &Batches,
    output: &Strided,
    a: View<'_>,
    b: View<'_>,
    y: &mut ViewMut<'_>,
    load: impl Fn(T) -> A,
    store: impl Fn(A) -> T,
) -> Result<()> {
    let (a, b, y) = (a.as_slice::<T>(), b.as_slice::<T>(), y.as_mut_slice::<T>());
    let &Batches { m, k, n, .. } = batches;
    let [[a_row, a_step], [b_step, b_column]] = batches.steps();
    let step = row_step(batches, output);
    batches.each(output, |i, j, o| {
        for row in 0..m {
            for column in 0..n {
                let term = |s: usize| load(a[i + row * a_row + s * a_step]) * load(b[j + s * b_step + column * b_column]);
                y[o + row * step + column] = store((0..k).fold(A::default(), |sum, s| sum + term(s)));
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
