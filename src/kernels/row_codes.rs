//! Rows of floats as codes: the range of each, and its codes while it lies in the first-level cache.

use std::ops::Range as Span;
use std::sync::atomic::{AtomicBool, Ordering};

use super::dynamic::{ActivationRule, InputRule, RangeOf};
use super::elementwise::Extremes;
use super::ingest::{Convert, GRAIN, Numbers};
use super::isa::Visitor;
use super::operand::Matrix;
use super::ranges::Range;
use super::simd::{Element, Simd};
use super::threads::{self, Disjoint, Phase};
use crate::error::Result;
use crate::num::NonFinite;

/// Elements of a run of a phase, at least: a microsecond or two of work.
const RUN: usize = 16 * 1024;

/// What becomes of each row besides its codes, one for each row or one for all.
pub struct RowParameters<'a> {
    pub scales: &'a mut Vec<f32>,
    pub zero_points: &'a mut Vec<i32>,
    /// Of each row, unless they are given.
    pub ranges: &'a mut Vec<Range>,
}

/// Where ranges come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// One or one for each row, given: scales are there.
    Caller,
    /// Each row, measured just before it becomes codes.
    Row,
    /// All rows, measured before.
    Tensor,
}

/// Rows of floats on their way to codes, in two phases: [`RowCodes::measure`] of all rows, then [`RowCodes::encode`].
pub struct RowCodes<'a, S: Simd, L> {
    simd: S,
    lhs: Matrix<'a, f32>,
    rule: &'a ActivationRule,
    from: Origin,
    /// Elements from a row's codes to the next one's.
    row: usize,
    /// Scales, and zero points.
    params: usize,
    codes: Disjoint<'a, L>,
    scales: Disjoint<'a, f32>,
    zero_points: Disjoint<'a, i32>,
    ranges: Disjoint<'a, Range>,
    /// Whether a value was met that is not finite and may not be.
    refused: AtomicBool,
}

impl<'a, S: Simd, L: Element> RowCodes<'a, S, L> {
    /// Codes into rows of `row` elements; what is behind the last column stays as it was, and meets zero weights.
    ///
    /// # Errors
    /// For given ranges of values that are not finite, as the rule says.
    pub fn new(
        simd: S,
        lhs: Matrix<'a, f32>,
        (InputRule { rule, ranges: given }, of): (InputRule<'a>, RangeOf),
        (codes, row): (&'a mut [L], usize),
        RowParameters { scales, zero_points, ranges }: RowParameters<'a>,
    ) -> Result<Self> {
        let (m, k) = (lhs.rows(), lhs.cols());
        let from = match (given, of) {
            (Some(_), _) => Origin::Caller,
            (None, RangeOf::Row) => Origin::Row,
            (None, RangeOf::Tensor) => Origin::Tensor,
        };
        let params = if of == RangeOf::Row { m } else { 1 };
        scales.resize(params, 0.0);
        zero_points.resize(params, 0);
        ranges.resize(m, Range::EMPTY);
        for (i, &range) in given.unwrap_or_default().iter().enumerate() {
            // The range of the tensor does not say in which row.
            let rows = if of == RangeOf::Tensor { 0..m } else { i..i + 1 };
            ranges[rows.clone()].fill(rule.allow(range, "lhs", rows.map(|row| (row * k, lhs.row(row))))?);
            (scales[i], zero_points[i]) = rule.qparams(range);
        }
        let (scales, zero_points, ranges) = (Disjoint::new(scales), Disjoint::new(zero_points), Disjoint::new(ranges));
        Ok(RowCodes {
            simd,
            lhs,
            rule,
            from,
            row,
            params,
            codes: Disjoint::new(codes),
            scales,
            zero_points,
            ranges,
            refused: AtomicBool::new(false),
        })
    }

    /// The phases on at most `threads` threads, and how many of those have work.
    pub fn phases(&self, threads: usize) -> ([Phase; 2], usize) {
        let work = self.lhs.rows() * self.lhs.cols();
        let parts = threads::parts(threads, work, GRAIN);
        let runs = (work / (RUN * parts)).clamp(1, 4);
        let items = self.lhs.rows();
        ([Phase { items: if self.from == Origin::Tensor { items } else { 0 }, runs }, Phase { items, runs }], parts)
    }

    /// The ranges of some rows.
    ///
    /// # Safety
    /// No other call has one of these rows, nor is there another phase at the same time.
    pub unsafe fn measure(&self, rows: Span<usize>) {
        // SAFETY: the caller's promise.
        let found = unsafe { self.ranges.part(rows.clone()) };
        for (range, r) in found.iter_mut().zip(rows) {
            *range = self.range(r);
        }
    }

    fn range(&self, row: usize) -> Range {
        let range = Extremes(&self.lhs.row(row)[..self.lhs.cols()]).visit(self.simd);
        if !range.finite && self.rule.non_finite == NonFinite::Error {
            self.refused.store(true, Ordering::Relaxed);
        }
        range
    }

    /// The codes of some rows, with their scales and zero points, unless a value was refused.
    ///
    /// # Safety
    /// As for [`RowCodes::measure`], which had all rows before.
    pub unsafe fn encode(&self, rows: Span<usize>) {
        let &RowCodes { simd, lhs, rule, from, row, .. } = self;
        let (m, k) = (lhs.rows(), lhs.cols());
        let tensor = match from {
            // SAFETY: of the tensor nobody writes ranges now.
            Origin::Tensor => unsafe { rule.qparams(self.ranges.read(0..m).iter().fold(Range::EMPTY, |whole, &range| whole.union(range))) },
            _ => (1.0, 0),
        };
        simd.vectorize(
            #[inline(always)]
            || {
                for r in rows {
                    let of = r.min(self.params - 1);
                    // SAFETY: the caller's promise: nobody else has this row, and of given ranges nobody writes anything. What is written
                    // for the tensor is written with the first row.
                    unsafe {
                        let (range, (scale, zero_point)) = match from {
                            Origin::Caller => {
                                (self.ranges.read(r..r + 1)[0], (self.scales.read(of..of + 1)[0], self.zero_points.read(of..of + 1)[0]))
                            }
                            Origin::Tensor => (self.ranges.read(r..r + 1)[0], tensor),
                            Origin::Row => {
                                let range = self.range(r);
                                self.ranges.part(r..r + 1)[0] = range;
                                (range, rule.qparams(range))
                            }
                        };
                        if from == Origin::Row || (from == Origin::Tensor && r == 0) {
                            self.scales.part(of..of + 1)[0] = scale;
                            self.zero_points.part(of..of + 1)[0] = zero_point;
                        }
                        if self.refused() {
                            continue;
                        }
                        let (values, codes) = (&lhs.row(r)[..k], self.codes.part(r * row..r * row + k));
                        let quantizer = rule.quantizer(scale, zero_point);
                        match (range.finite, from) {
                            (false, _) => quantizer.slice(simd, values, codes),
                            (true, Origin::Caller) => Numbers::<false, false>(quantizer).slice(simd, values, codes),
                            (true, _) => Numbers::<true, false>(quantizer).slice(simd, values, codes),
                        }
                    }
                }
            },
        );
    }

    /// Where they go.
    pub fn codes(&self) -> *const L {
        self.codes.as_ptr()
    }

    /// Whether there will be no codes. The same for all who ask after [`RowCodes::encode`] has had all rows.
    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Scales and zero points.
    ///
    /// # Safety
    /// [`RowCodes::encode`] has had all rows.
    pub unsafe fn parameters(&self) -> (&[f32], &[i32]) {
        // SAFETY: nobody writes them any more.
        unsafe { (self.scales.read(0..self.params), self.zero_points.read(0..self.params)) }
    }

    /// # Errors
    /// For the first value that was refused.
    ///
    /// # Safety
    /// As for [`RowCodes::parameters`].
    pub unsafe fn check(&self) -> Result<()> {
        let (m, k) = (self.lhs.rows(), self.lhs.cols());
        if !self.refused() {
            return Ok(());
        }
        // SAFETY: nobody writes them any more.
        let ranges = unsafe { self.ranges.read(0..m) };
        ranges
            .iter()
            .enumerate()
            .try_for_each(|(i, &range)| self.rule.allow(range, "lhs", [(i * k, self.lhs.row(i))].into_iter()).map(drop))
    }
}

/// The range of each of `count` runs of `run` elements in each row, of which the last may be shorter, before [`Range::closed`].
pub fn ranges_of_runs<S: Simd>(simd: S, lhs: Matrix<'_, f32>, (run, count): (usize, usize), ranges: &mut Vec<Range>, threads: usize) {
    ranges.clear();
    ranges.resize(lhs.rows() * count, Range::EMPTY);
    let (k, parts) = (lhs.cols(), threads::parts(threads, lhs.rows() * lhs.cols(), GRAIN));
    threads::split_mut(ranges, parts, |first, ranges| {
        for (i, range) in ranges.iter_mut().enumerate() {
            let (row, start) = ((first + i) / count, (first + i) % count * run);
            *range = Extremes(&lhs.row(row)[start..k.min(start + run)]).visit(simd);
        }
    });
}
