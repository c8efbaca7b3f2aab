//! Operands of several shapes over one: numpy's broadcasting.

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
    let mut dims: Vec<usize> = Vec::new();
    for shape in shapes {
        let missing = shape.rank().saturating_sub(dims.len());
        dims.splice(..0, std::iter::repeat_n(1, missing));
        let offset = dims.len() - shape.rank();
        for (i, &length) in shape.dims().iter().enumerate() {
            let own = &mut dims[offset + i];
            match (*own, length) {
                (1, _) => *own = length,
                (_, 1) => {}
                (a, b) if a == b => {}
                _ => return Err(Error::shape("operand", format!("one that broadcasts with {dims:?}"), shape.dims())),
            }
        }
    }
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

    /// Calls `f` for pieces of `y`, on threads where it is large, with the index of each piece's first element. A piece is
    /// part of the only row, or whole rows.
    pub fn split<Y: Send>(&self, y: &mut [Y], threads: usize, f: impl Fn(usize, &mut [Y]) + Sync) {
        if y.is_empty() {
            return;
        }
        let row = if self.rank == 1 { 1 } else { self.dims[self.rank - 1] };
        split_rows(y, row, parts(threads, y.len(), GRAIN), f);
    }

    /// Calls `f` for each row of a piece of the output that begins at element `start`, with where each operand's elements begin.
    #[inline(always)]
    pub fn rows<Y>(&self, start: usize, y: &mut [Y], mut f: impl FnMut(&mut [Y], [usize; N])) {
        let inner = self.rank - 1;
        if inner == 0 {
            return f(y, self.strides[0].map(|step| step * start));
        }
        let (mut at, mut offsets, mut rest) = ([0; AXES], [0; N], start / self.dims[inner]);
        for axis in (0..inner).rev() {
            at[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
            (0..N).for_each(|i| offsets[i] += at[axis] * self.strides[axis][i]);
        }
        for row in y.chunks_exact_mut(self.dims[inner]) {
            f(row, offsets);
            for axis in (0..inner).rev() {
                at[axis] += 1;
                (0..N).for_each(|i| offsets[i] += self.strides[axis][i]);
                if at[axis] < self.dims[axis] {
                    break;
                }
                at[axis] = 0;
                (0..N).for_each(|i| offsets[i] -= self.dims[axis] * self.strides[axis][i]);
            }
        }
    }
}

/// `y = f(a, b)` over two operands, one element after the other: for types whose speed doesn't matter.
pub(super) fn zip<A: Copy + Sync, B: Copy + Sync, Y: Send>(
    spread: &Spread<2>,
    (a, b): (&[A], &[B]),
    y: &mut [Y],
    threads: usize,
    f: impl Fn(A, B) -> Y + Sync,
) {
    let [step_a, step_b] = spread.steps();
    spread.split(y, threads, |start, y| {
        spread.rows(start, y, |y, [a0, b0]| {
            y.iter_mut().enumerate().for_each(|(i, y)| *y = f(a[a0 + i * step_a], b[b0 + i * step_b]));
        });
    });
}

/// [`zip`] in vectors, with a loop for each way that a row's operands can lie.
pub(super) fn zip_vectors<T: Copy + Sync, Y: Send>(
    spread: &Spread<2>,
    (a, b): (&[T], &[T]),
    y: &mut [Y],
    threads: usize,
    f: impl Fn(T, T) -> Y + Sync,
) {
    let steps = spread.steps();
    spread.split(y, threads, |start, y| {
        vectorized(
            #[inline(always)]
            || match steps {
                [0, 0] => spread.rows(start, y, |y, [a0, b0]| {
                    let (a, b) = (a[a0], b[b0]);
                    y.iter_mut().for_each(|y| *y = f(a, b));
                }),
                [0, _] => spread.rows(start, y, |y, [a0, b0]| {
                    let (a, b) = (a[a0], &b[b0..]);
                    y.iter_mut().zip(b).for_each(|(y, &b)| *y = f(a, b));
                }),
                [_, 0] => spread.rows(start, y, |y, [a0, b0]| {
                    let (a, b) = (&a[a0..], b[b0]);
                    y.iter_mut().zip(a).for_each(|(y, &a)| *y = f(a, b));
                }),
                _ => spread.rows(start, y, |y, [a0, b0]| {
                    y.iter_mut().zip(&a[a0..]).zip(&b[b0..]).for_each(|((y, &a), &b)| *y = f(a, b));
                }),
            },
        );
    });
}

/// `y = f(y, b)`, in vectors.
pub(super) fn fold<T: Copy + Sync + Send>(spread: &Spread<1>, y: &mut [T], b: &[T], threads: usize, f: impl Fn(T, T) -> T + Sync) {
    let [step] = spread.steps();
    spread.split(y, threads, |start, y| {
        vectorized(
            #[inline(always)]
            || {
                spread.rows(start, y, |y, [b0]| match step {
                    0 => y.iter_mut().for_each(|y| *y = f(*y, b[b0])),
                    _ => y.iter_mut().zip(&b[b0..]).for_each(|(y, &b)| *y = f(*y, b)),
                })
            },
        );
    });
}

/// The operand's elements, each as often as the output has it.
pub(super) fn repeated<T: Copy + Sync + Send + Default>(output: &[usize], operand: &[usize], x: &[T]) -> Result<Vec<T>> {
    let mut y = vec![T::default(); output.iter().product()];
    fold(&Spread::new(output, [operand])?, &mut y, x, 1, |_, x| x);
    Ok(y)
}
