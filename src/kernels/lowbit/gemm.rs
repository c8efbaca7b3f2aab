//! The doors: float in, float out, weights of few bits.

use super::activations;
use super::product::{Floats, Integers, Product};
use super::weights::PackedLowBit;
use crate::error::Result;
use crate::kernels::dequantize::FloatStage;
use crate::kernels::dynamic::ActivationRule;
use crate::kernels::float::{FloatEpilogue, report_rows};
use crate::kernels::isa::Visitor;
use crate::kernels::operand::{Matrix, MatrixMut};
use crate::kernels::output::Activation;
use crate::kernels::row_codes::ranges_of_runs;
use crate::kernels::simd::Simd;
use crate::kernels::workspace::Workspace;
use crate::num::NonFinite;

/// What has a range of its own among the activations of [`gemm_low_bit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LowBitRange {
    /// Each row.
    #[default]
    Row,
    /// Each run of a row that meets one group of weights along k: a large value coarsens its group alone. Worth some 4 dB of the
    /// activations' error with groups of 32, for two more multiplications and an addition of each group's sums, and one more product of
    /// each tile of rows, with ones: for a single row as many again, which hides behind reading the weights where they are in no cache.
    Group,
}

/// How activations become signed bytes for [`gemm_low_bit`]: the unsigned codes 1 to 255, less 128. Not symmetric: what comes out of a
/// GELU or ReLU has nearly all of its range on one side, and even 32 values of a normal distribution have a range of 0.85 of twice their
/// largest magnitude.
pub(crate) const LOW_BIT_RULE: ActivationRule = ActivationRule { qmin: 1, qmax: 255, symmetric: false, non_finite: NonFinite::Error };

/// What unsigned codes have more than signed ones.
const SIGNED: i32 = 128;

/// `dst[m][n] = activation(sum over k of lhs[m][k] * weight[n][k] + bias[n] + dst[m][n])`, activations quantized inside the call, by
/// `epilogue`.
///
/// Each row (or each of its groups, as `range` says) becomes signed bytes -127 to 127 with a zero point `z`, by
/// [`affine_qparams`](crate::num::affine_qparams) of its range and [`quantize`](crate::num::quantize): once, however many threads there
/// are. (Zeros alone are all 0, and `z` is 0.) Within a group the sums of products, `p`, and of weights, `w`, are exact in integers.
///
/// ```text
/// by rows      row_scale * (Σ_g scale[g] * p[g] - z * Σ_g scale[g] * w[g])
/// by groups    Σ_g (scale[g] * row_scale[g]) * (p[g] - z[g] * w[g])
/// ```
///
/// Groups are added in f32 in their order; by rows the sums of weights are found in the first call. A [table](super::Levels::Table) is
/// rounded to signed bytes for that: 127 steps up to its largest entry, at most 0.4 % of that off; [`gemm_low_bit_f32`] takes it as it is.
///
/// The result is the same, bit for bit, on every instruction set, for any number of threads, and whatever other rows there are.
/// `non_finite` says what NaN and infinities do.
///
/// # Errors
/// [`Error::NonFinite`](crate::Error::NonFinite) (the index is `row * cols + column`) unless they are taken;
/// [`Error::Shape`](crate::Error::Shape) when the matrices do not fit the weights, [`Error::Length`](crate::Error::Length) for a bias of the
/// wrong length, [`Error::Parameter`](crate::Error::Parameter) for `threads == 0` or an empty clamp.
#[allow(clippy::too_many_arguments)]
pub fn gemm_low_bit(
    lhs: Matrix<'_, f32>,
    range: LowBitRange,
    non_finite: NonFinite,
    weights: &PackedLowBit,
    epilogue: &FloatEpilogue<'_>,
    dst: MatrixMut<'_, f32>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    run(lhs, Some((range, non_finite)), weights, epilogue, dst, workspace, threads)
}

/// [`gemm_low_bit`] with activations as they are: products and sums in f32; within a group those of even and of
/// odd steps along k in their order, then both together, then groups in their order.
///
/// Each weight costs a look-up beside its multiplication. NaN and infinities go through the arithmetic. Like that of every float kernel,
/// the result is the same for any number of threads and whatever other rows there are; between instruction sets with and without fused
/// multiplication and addition it may differ in the last bits.
///
/// # Errors
/// As [`gemm_low_bit`], but for NaN and infinities.
pub fn gemm_low_bit_f32(
    lhs: Matrix<'_, f32>,
    weights: &PackedLowBit,
    epilogue: &FloatEpilogue<'_>,
    dst: MatrixMut<'_, f32>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    run(lhs, None, weights, epilogue, dst, workspace, threads)
}

fn run(
    lhs: Matrix<'_, f32>,
    integers: Option<(LowBitRange, NonFinite)>,
    weights: &PackedLowBit,
    epilogue: &FloatEpilogue<'_>,
    mut dst: MatrixMut<'_, f32>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let store = epilogue.checked_stage(&lhs, &dst, [weights.n(), weights.k()], threads)?;
    // Values that are not finite are refused even where nothing comes of them.
    if lhs.rows() > 0 && (weights.n() > 0 || lhs.cols() > 0) {
        let (data, dst_stride) = (dst.as_mut_ptr(), dst.stride());
        let call = Call { lhs, weights, store, dst: data, dst_stride, workspace, threads };
        match integers {
            Some((range, non_finite)) => weights.isa().visit(InIntegers { call, range, non_finite })?,
            None => weights.isa().visit(InFloats { call }),
        }
    }
    report_rows(epilogue.ranges, &dst, weights.isa());
    Ok(())
}

/// The checked arguments.
struct Call<'a> {
    lhs: Matrix<'a, f32>,
    weights: &'a PackedLowBit,
    store: FloatStage<'a>,
    dst: *mut f32,
    dst_stride: usize,
    workspace: &'a mut Workspace,
    threads: usize,
}

struct InIntegers<'a> {
    call: Call<'a>,
    range: LowBitRange,
    non_finite: NonFinite,
}

impl Visitor for InIntegers<'_> {
    type Out = Result<()>;
    fn visit<S: Simd>(self, simd: S) -> Result<()> {
        let Call { lhs, weights, store, dst, dst_stride, workspace, threads } = self.call;
        let Workspace { codes: memory, scales, negated_zero_points: negated, ranges, row_terms: terms, .. } = workspace;
        let (m, k, layout, decoding) = (lhs.rows(), lhs.cols(), weights.layout(), weights.decoding());
        let rule = ActivationRule { non_finite: self.non_finite, ..LOW_BIT_RULE };
        // A single group is the row.
        let by_group = self.range == LowBitRange::Group && layout.groups() > 1;
        let (count, run) = if by_group { (layout.groups(), layout.group) } else { (1, k) };
        ranges_of_runs(simd, lhs, (run, count), ranges, threads);
        scales.clear();
        negated.clear();
        for (i, &range) in ranges.iter().enumerate() {
            let (row, start) = (i / count, i % count * run);
            rule.allow(range, "lhs", std::iter::once((row * k + start, &lhs.row(row)[start..k.min(start + run)])))?;
            let whole = range.closed();
            // Of zeros alone the grid is of no width: with its zero point at the end, sums that cancel would leave their rounding.
            let (scale, zero_point) = if whole.min >= 0.0 && whole.max <= 0.0 { (1.0, SIGNED) } else { rule.qparams(range) };
            scales.push(scale);
            negated.push((SIGNED - zero_point) as f32);
        }
        let finite = ranges.iter().all(|range| range.finite);
        let quantizer = |row: usize, group: usize| {
            let at = row * count + if by_group { group } else { 0 };
            rule.quantizer(scales[at], SIGNED - negated[at] as i32)
        };
        let factor = if weights.zero_point_bytes().is_some() { -1 } else { -decoding.zero_point };
        let codes = activations::codes(simd, (lhs, layout), by_group, quantizer, finite, (memory, terms), factor, threads);
        scales.iter_mut().for_each(|scale| *scale *= decoding.unit);
        let lhs_stride = activations::stride::<i8>(layout);
        let lhs = codes.as_ptr();
        let product = Product::<S, Integers> {
            simd,
            lhs,
            lhs_stride,
            terms,
            row_scales: scales,
            negated_zero_points: negated,
            by_group,
            col_sums: if by_group { &[] } else { weights.col_sums(|| col_sums(simd, weights)) },
            m,
            weights,
            store,
            dst,
            dst_stride,
        };
        // SAFETY: the matrices and the stage were checked against the weights; rows have whole steps in the workspace, a term for each of
        // their groups, and a scale and a zero point, or where `by_group` one of each for each group; sums of columns are of whole panels.
        unsafe { product.run(threads) };
        Ok(())
    }
}

/// The sum of each column's weights in whole panels, as the product with a row of ones has it.
fn col_sums<S: Simd>(simd: S, weights: &PackedLowBit) -> Vec<f32> {
    let layout = weights.layout();
    let (steps, [length, last]) = (layout.steps()[0] * layout.step(), layout.lengths());
    let mut ones = vec![0i8; layout.row()];
    let mut terms = Vec::with_capacity(layout.groups());
    for (g, ones) in ones.chunks_mut(steps.max(1)).enumerate() {
        let elements = if g + 1 == layout.groups() { last } else { length };
        ones[..elements].fill(1);
        terms.push(if weights.zero_point_bytes().is_some() {
            -(elements as i32)
        } else {
            -weights.decoding().zero_point * elements as i32
        });
    }
    let mut sums = vec![0f32; layout.panels() * layout.nr()];
    let product = Product::<S, Integers> {
        simd,
        lhs: ones.as_ptr(),
        lhs_stride: ones.len(),
        terms: &terms,
        row_scales: &[1.0],
        negated_zero_points: &[0.0],
        by_group: false,
        col_sums: &vec![0f32; sums.len()],
        m: 1,
        weights,
        store: FloatStage { bias: None, accumulate: false, activation: Activation::None, measure: None, function: None },
        dst: sums.as_mut_ptr(),
        dst_stride: layout.n,
    };
    // SAFETY: one row of whole steps, with a term for each of its groups, a scale, a zero point, and sums of columns of whole panels;
    // `sums` holds the columns of that row, and the stage asks for nothing.
    unsafe { product.run(1) };
    sums
}

struct InFloats<'a> {
    call: Call<'a>,
}

impl Visitor for InFloats<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Call { lhs, weights, store, dst, dst_stride, workspace, threads } = self.call;
        let (m, layout) = (lhs.rows(), weights.layout());
        let (lhs, lhs_stride) = if layout.is_plain() {
            (lhs.data().as_ptr(), lhs.stride())
        } else {
            (activations::floats(simd, lhs, layout, &mut workspace.codes, threads).as_ptr(), activations::stride::<f32>(layout))
        };
        let product = Product::<S, Floats> {
            simd,
            lhs,
            lhs_stride,
            terms: &[],
            row_scales: &[],
            negated_zero_points: &[],
            by_group: false,
            col_sums: &[],
            m,
            weights,
            store,
            dst,
            dst_stride,
        };
        // SAFETY: the matrices and the stage were checked against the weights; rows have whole steps where they are read.
        unsafe { product.run(threads) }
    }
}
