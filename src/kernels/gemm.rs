//! Products of matrices: `dst = stage((lhs - zero_point) * weights^T)`.

use super::accumulate::Accumulate;
use super::dot::Dot;
use super::ingest;
use super::isa::Visitor;
use super::operand::{ActivationCode, Codes, Matrix, MatrixMut, Per, check_product, check_threads, check_zero_points};
use super::output::{IntegerStage, Integers, OutputStage, StageShape};
use super::pack::Panels;
use super::product::{Product, Rows};
use super::simd::{Element, Simd};
use super::threads;
use super::tile::{Segment, Start, Zero};
use super::weights::PackedWeights;
use super::workspace::Workspace;
use crate::error::Result;

/// `dst[m][n] = stage(sum over k of (lhs[m][k] - zero_point) * (weight[n][k] - weight_zero_point[n]))`.
///
/// The sum is exact and the same, bit for bit, on every instruction set and for any number of threads; the stage
/// ([`Accumulate`], [`Dequantize`](super::Dequantize) or [`Requantize`](super::Requantize)) runs in registers.
/// Sums that may leave i32 (k above 65536, or 33025 with zero points of weights) are taken apart and stay exact; [`Accumulate`]
/// refuses them. `threads` is an upper bound: small products run on the caller's thread alone.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the matrices do not fit the weights, [`Error::ZeroPoint`](crate::Error::ZeroPoint)
/// for a zero
/// point that is not a code of `T`, [`Error::Length`](crate::Error::Length) for the wrong number of zero points
/// or stage parameters, [`Error::Parameter`](crate::Error::Parameter) for `threads == 0`,
/// [`Error::Accumulator`](crate::Error::Accumulator) for sums that an i32 output can't hold.
pub fn gemm<T: ActivationCode, S: OutputStage>(
    lhs: Matrix<'_, T>,
    zero_point: Per<'_, i32>,
    weights: &PackedWeights,
    stage: &S,
    mut dst: MatrixMut<'_, S::Element>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    check_product(&lhs, &dst, weights.n(), weights.k())?;
    check_zero_points::<T>(zero_point, lhs.rows())?;
    let shape = stage_shape(lhs.rows(), weights);
    stage.check(shape)?;
    if dst.is_empty() {
        return Ok(());
    }
    let dst = Destination { data: dst.as_mut_ptr(), stride: dst.stride(), sums_fit: stage.sums_fit(shape), threads };
    stage.gemm(GemmCall { codes: T::erase(lhs.data()), m: lhs.rows(), stride: lhs.stride(), zero_point, weights, dst, workspace });
    Ok(())
}

/// What a stage after `weights` must fit.
pub(super) fn stage_shape(m: usize, weights: &PackedWeights) -> StageShape {
    StageShape { m, n: weights.n(), params: m, k: weights.k(), bound: weights.bound() }
}

/// Where a product goes and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destination<E> {
    pub data: *mut E,
    pub stride: usize,
    /// Whether every sum fits i32, with what the stage adds to it.
    pub sums_fit: bool,
    pub threads: usize,
}

// SAFETY: a place. What is written there, the functions that take one promise to write apart.
unsafe impl<E: Send> Sync for Destination<E> {}

/// The checked arguments of [`gemm`]. Public only as an argument of a hidden method.
pub struct GemmCall<'a, E> {
    codes: Codes<'a>,
    m: usize,
    stride: usize,
    zero_point: Per<'a, i32>,
    weights: &'a PackedWeights,
    dst: Destination<E>,
    workspace: &'a mut Workspace,
}

impl<'a> GemmCall<'a, i8> {
    /// The same call, its output as bytes.
    pub(super) fn into_bytes(self) -> GemmCall<'a, u8> {
        let Destination { data, stride, sums_fit, threads } = self.dst;
        let dst = Destination { data: data.cast(), stride, sums_fit, threads };
        let GemmCall { codes, m, stride, zero_point, weights, workspace, .. } = self;
        GemmCall { codes, m, stride, zero_point, weights, dst, workspace }
    }
}

impl<E: Copy + Send + Sync> GemmCall<'_, E> {
    pub(super) fn run<T: IntegerStage<Element = E>>(self, stage: T) {
        self.weights.isa().visit(GemmVisit { call: self, stage })
    }
}

struct GemmVisit<'a, E, T> {
    call: GemmCall<'a, E>,
    stage: T,
}

impl<T: IntegerStage> Visitor for GemmVisit<'_, T::Element, T> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let GemmCall { codes, m, stride, zero_point, weights, dst, workspace } = self.call;
        let Workspace { codes: memory, zero_points, row_terms, sums, totals, .. } = workspace;
        let zero = codes.zero(zero_point, zero_points);
        let k = weights.k();
        let (lhs, row) = match Element::in_place(codes) {
            // Whole words only: the last word of a shorter row would be read beyond the slice.
            Some(lhs) if k % S::Int8::KU == 0 && !rows_collide(stride, m, weights.n()) => (lhs, stride),
            _ => {
                let row = workspace_row::<S>(k);
                (ingest::rows_of_codes(simd, codes, (m, k, stride), memory.grow(m * row), row, dst.threads), row)
            }
        };
        let lhs = Lhs::<S> { data: lhs.as_ptr(), m, row, zero };
        // SAFETY: the caller's matrices and stage were checked against the weights; each row has whole words.
        unsafe { multiply(simd, lhs, weights, self.stage, dst, row_terms, (sums, totals)) }
    }
}

/// Whether rows `stride` bytes apart fall into the same few sets of a first-level cache (64 sets of 64-byte lines, commonly) in a
/// product that is long enough for a copy of them to pay.
fn rows_collide(stride: usize, m: usize, n: usize) -> bool {
    stride.is_multiple_of(2048) && m > 14 && n >= 256
}

/// Elements of a row of `k` in a workspace: whole words, and no power of two.
pub(super) fn workspace_row<S: Simd>(k: usize) -> usize {
    let row = k.next_multiple_of(S::Int8::KU);
    if row > 0 && row.is_multiple_of(1024) { row + 64 } else { row }
}

/// Rows of activations as the tiles read them.
#[derive(Clone, Copy)]
pub(super) struct Lhs<'a, S: Simd> {
    pub data: *const <S::Int8 as Dot<S>>::Lhs,
    pub m: usize,
    /// Elements from one row to the next.
    pub row: usize,
    pub zero: Zero<'a>,
}

/// The product of codes in rows of whole words, with the stage in registers where sums fit i32, and after them where not.
///
/// # Safety
/// Each of `lhs.m` rows is readable for all words of k; zero points, stage and `dst` fit rows and columns; nobody else uses `dst`.
pub(super) unsafe fn multiply<S: Simd, T: IntegerStage>(
    simd: S,
    lhs: Lhs<'_, S>,
    weights: &PackedWeights,
    stage: T,
    dst: Destination<T::Element>,
    row_terms: &mut Vec<i32>,
    (sums, totals): (&mut Vec<i32>, &mut Vec<i64>),
) {
    let n = weights.n();
    if dst.sums_fit && weights.chunks().len() == 1 {
        for (panels, start, k) in weights.chunks() {
            // SAFETY: the caller's promise.
            unsafe { chunk(simd, lhs, weights.zero_points(), (panels, start, k), stage, dst, row_terms) }
        }
        return;
    }
    // Rare and long: a tile of rows at a time, so that their runs of k can be added in 64 bits.
    for first in (0..lhs.m).step_by(S::MR_MAX) {
        let m = (lhs.m - first).min(S::MR_MAX);
        totals.clear();
        totals.resize(m * n, 0);
        sums.resize((m * n).max(sums.len()), 0);
        let zero = match lhs.zero {
            Zero::Tensor(zero) => Zero::Tensor(zero),
            Zero::Row(zeros) => Zero::Row(&zeros[first..]),
        };
        let rows = Lhs::<S> { data: lhs.data.wrapping_add(first * lhs.row), m, zero, ..lhs };
        for run in weights.chunks() {
            let dst = Destination { data: sums.as_mut_ptr(), stride: n, sums_fit: true, threads: dst.threads };
            // SAFETY: rows `first..first + m` by the caller's promise; `sums` has m * n elements.
            unsafe { chunk(simd, rows, weights.zero_points(), run, &Accumulate, dst, row_terms) }
            totals.iter_mut().zip(&*sums).for_each(|(total, &sum)| *total += i64::from(sum));
        }
        for (i, &total) in totals.iter().enumerate() {
            let (row, column) = (first + i / n, i % n);
            // SAFETY: `dst` has row `row` and n columns, by the caller's promise, and the caller lent it initialized.
            unsafe {
                let at = dst.data.add(row * dst.stride + column);
                at.write(stage.finish(total, row, column, at.read()));
            }
        }
    }
}

/// Activations that threads read.
struct Shared<T>(*const T);

// SAFETY: nobody writes them while they are shared, and they outlive the call that shares them.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *const T {
        self.0
    }
}

/// The product over one run of k.
///
/// # Safety
/// As for [`multiply`], for the run's words.
unsafe fn chunk<S: Simd, T: IntegerStage>(
    simd: S,
    lhs: Lhs<'_, S>,
    weight_zero: &[i32],
    (panels, first, k): (&Panels<i8>, usize, usize),
    stage: T,
    dst: Destination<T::Element>,
    row_terms: &mut Vec<i32>,
) {
    let data = lhs.data.wrapping_add(first);
    row_terms.clear();
    if !weight_zero.is_empty() {
        row_terms.resize(lhs.m, 0);
        let rows = Shared(data);
        threads::split_mut(row_terms, threads::parts(dst.threads, lhs.m * k, ingest::GRAIN), |first, terms| {
            for (i, term) in terms.iter_mut().enumerate() {
                // SAFETY: the row's k elements, by the caller's promise.
                let row = unsafe { std::slice::from_raw_parts(rows.get().add((first + i) * lhs.row), k) };
                let sum: i32 = simd.vectorize(
                    #[inline(always)]
                    || row.iter().map(|x| x.unsigned()).sum(),
                );
                *term = k as i32 * lhs.zero.get(first + i) - sum;
            }
        });
    }
    let segments = &[Segment { offset: 0, words: k.div_ceil(S::Int8::KU) }];
    let start = Start { zero: lhs.zero, bias: stage.bias(), weight_zero, row_terms };
    let product = product(simd, Lhs { data, ..lhs }, start, (panels, segments), stage, dst);
    // SAFETY: the caller's promise.
    unsafe { product.run(dst.threads) }
}

/// The product of rows with panels, whose words are those of `segments`.
pub(super) fn product<'a, S: Simd, T: IntegerStage>(
    simd: S,
    lhs: Lhs<'_, S>,
    start: Start<'a>,
    (panels, segments): (&'a Panels<i8>, &'a [Segment]),
    stage: T,
    dst: Destination<T::Element>,
) -> Product<'a, S, S::Int8, Integers<T>> {
    Product {
        simd,
        lhs: lhs.data,
        rows: Rows::Strided { stride: lhs.row, first: 0 },
        m: lhs.m,
        segments,
        group_step: 0,
        panels,
        start,
        store: Integers(stage),
        dst: dst.data,
        dst_stride: dst.stride,
    }
}
