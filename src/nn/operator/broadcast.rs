//! Operands of several shapes over one: numpy's broadcasting.

use super::facts::broadcast_dims;
use crate::error::{Error, Result};
use crate::kernels::math::{GRAIN, parts, split_rows, vectorized};
use crate::tensor::Shape;

/// Axes that are left when neighbours that repeat the same operands are merged.
pub(super) const AXES: usize = 8;

/// The shape that all of these spread over: aligned at the last axis, an axis of length 1 or none takes any length.
///
/// # Errors
/// [`Error::Shape`] when two lengths differ and neither is 1.
pub(super) fn broadcast_shape<'a>(shapes: impl IntoIterator<Item = &'a Shape>) -> Result<Shape> {
    let dims = shapes.into_iter().try_fold(Vec::new(), |dims, shape| broadcast_dims(&dims, shape.dims()))?;
    Shape::new(dims)
}

/// How `N` operands lie under the elements of an output: a row along the innermost axis at a time, with a step of 1 or 0 for
/// each operand.
#[derive(Debug)]
pub(super) struct Spread<const N: usize> {
    dims: [usize; AXES],
    strides: [[usize; N]; AXES],
    rank: usize,
}

impl<const N: usize> Spread<N> {
    /// Operands of these dimensions, which broadcast to those of the output.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more axes than [`AXES`].
    pub fn new(output: &[usize], operands: [&[usize]; N]) -> Result<Self> {
        let mut spread = Spread { dims: [1; AXES], strides: [[0; N]; AXES], rank: 0 };
        let mut last = None;
        for (axis, &length) in output.iter().enumerate().filter(|&(_, &length)| length != 1) {
            let own = operands.map(|dims| (axis + dims.len()).checked_sub(output.len()).is_some_and(|axis| dims[axis] != 1));
            if last == Some(own) {
                spread.dims[spread.rank - 1] *= length;
                continue;
            }
            if spread.rank == AXES {
                return Err(Error::Unsupported {
                    what: format!("broadcasting over {output:?}"),
                    way_out: format!("merge axes until at most {AXES} remain"),
                });
            }
            spread.dims[spread.rank] = length;
            spread.strides[spread.rank] = own.map(usize::from);
            spread.rank += 1;
            last = Some(own);
        }
        if spread.rank == 0 {
            // One element: every operand's only one.
            spread.rank = 1;
        }
        let mut step = [1; N];
        for axis in (0..spread.rank).rev() {
            for (stride, step) in spread.strides[axis].iter_mut().zip(&mut step).filter(|(stride, _)| **stride == 1) {
                *stride = *step;
                *step *= spread.dims[axis];
            }
        }
        Ok(spread)
    }

    /// The step of each operand along a row.
    pub fn steps(&self) -> [usize; N] {
        self.strides[self.rank - 1]
    }

    /// Calls `f` for pieces of `y`, on threads where each has `grain` elements, with the rows of each. A piece is part of the only row, or whole
    /// rows.
    pub fn split<Y: Send>(&self, y: &mut [Y], (threads, grain): (usize, usize), f: &(dyn Fn(Rows<'_, N>, &mut [Y]) + Sync)) {
        if y.is_empty() {
            return;
        }
        let row = if self.rank == 1 { 1 } else { self.dims[self.rank - 1] };
        split_rows(y, row, parts(threads, y.len(), grain), &|start, y: &mut [Y]| f(self.rows(start, y.len()), y));
    }

    /// The rows of a piece of `length` elements that begins at element `start`.
    pub fn rows(&self, start: usize, length: usize) -> Rows<'_, N> {
        let inner = self.rank - 1;
        if inner == 0 {
            return Rows { spread: self, length, at: [0; AXES], offsets: self.strides[0].map(|step| step * start) };
        }
        let mut rows = Rows { spread: self, length: self.dims[inner], at: [0; AXES], offsets: [0; N] };
        let mut rest = start / rows.length;
        for axis in (0..inner).rev() {
            rows.at[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
            (0..N).for_each(|i| rows.offsets[i] += rows.at[axis] * self.strides[axis][i]);
        }
        rows
    }
}

/// Rows one after the other.
#[derive(Debug, Clone)]
pub(super) struct Rows<'a, const N: usize> {
    spread: &'a Spread<N>,
    /// Elements of a row.
    pub length: usize,
    at: [usize; AXES],
    offsets: [usize; N],
}

impl<const N: usize> Rows<'_, N> {
    /// Where each operand's elements of the next row begin. Whoever calls it knows how many rows there are.
    #[inline(never)]
    pub fn step(&mut self) -> [usize; N] {
        let offsets = self.offsets;
        let Spread { dims, strides, rank } = self.spread;
        for axis in (0..rank - 1).rev() {
            self.at[axis] += 1;
            (0..N).for_each(|i| self.offsets[i] += strides[axis][i]);
            if self.at[axis] < dims[axis] {
                break;
            }
            self.at[axis] = 0;
            (0..N).for_each(|i| self.offsets[i] -= dims[axis] * strides[axis][i]);
        }
        offsets
    }
}

/// `y = f(a, b)` over two operands, one element after the other: for types whose speed doesn't matter, compiled once for each.
pub(super) fn zip<A: Copy + Sync, B: Copy + Sync, Y: Send>(spread: &Spread<2>, (a, b): (&[A], &[B]), y: &mut [Y], f: &dyn Fn(A, B) -> Y) {
    if y.is_empty() {
        return;
    }
    let [step_a, step_b] = spread.steps();
    let mut rows = spread.rows(0, y.len());
    for y in y.chunks_exact_mut(rows.length) {
        let [a0, b0] = rows.step();
        for (i, y) in y.iter_mut().enumerate() {
            *y = f(a[a0 + i * step_a], b[b0 + i * step_b]);
        }
    }
}

/// [`zip`] in vectors, with a loop for each way that a row's operands can lie: not both of them repeated.
pub(super) fn zip_vectors<T: Copy + Sync, Y: Send>(
    spread: &Spread<2>,
    (a, b): (&[T], &[T]),
    y: &mut [Y],
    threads: usize,
    f: impl Fn(T, T) -> Y + Sync,
) {
    let steps = spread.steps();
    spread.split(y, (threads, GRAIN), &|mut rows: Rows<'_, 2>, y: &mut [Y]| {
        vectorized(
            #[inline(always)]
            || {
                for y in y.chunks_exact_mut(rows.length) {
                    let [a0, b0] = rows.step();
                    match steps {
                        [0, _] => {
                            let a = a[a0];
                            for (y, &b) in y.iter_mut().zip(&b[b0..]) {
                                *y = f(a, b);
                            }
                        }
                        [_, 0] => {
                            let b = b[b0];
                            for (y, &a) in y.iter_mut().zip(&a[a0..]) {
                                *y = f(a, b);
                            }
                        }
                        _ => {
                            for ((y, &a), &b) in y.iter_mut().zip(&a[a0..]).zip(&b[b0..]) {
                                *y = f(a, b);
                            }
                        }
                    }
                }
            },
        );
    });
}

/// `y = f(y, b)`.
pub(super) fn fold<T: Copy>(spread: &Spread<1>, y: &mut [T], b: &[T], f: &dyn Fn(T, T) -> T) {
    if y.is_empty() {
        return;
    }
    let ([step], mut rows) = (spread.steps(), spread.rows(0, y.len()));
    for y in y.chunks_exact_mut(rows.length) {
        let [b0] = rows.step();
        for (i, y) in y.iter_mut().enumerate() {
            *y = f(*y, b[b0 + i * step]);
        }
    }
}

/// The operand's elements, each as often as the output has it.
pub(super) fn repeated<T: Copy + Default>(output: &[usize], operand: &[usize], x: &[T]) -> Result<Vec<T>> {
    let mut y = vec![T::default(); output.iter().product()];
    fold(&Spread::new(output, [operand])?, &mut y, x, &|_, x| x);
    Ok(y)
}
