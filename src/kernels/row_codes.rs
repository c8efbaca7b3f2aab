//! Rows of floats as codes: the range of each, and its codes while it lies in the first-level cache.

use super::dynamic::ActivationRule;
use super::elementwise::Extremes;
use super::ingest::{Convert, GRAIN, Numbers};
use super::isa::Visitor;
use super::operand::Matrix;
use super::ranges::Range;
use super::simd::{Element, Simd};
use super::threads::{self, Disjoint};

/// What becomes of each row besides its codes, one a row.
pub struct RowParameters<'a> {
    pub scales: &'a mut Vec<f32>,
    pub zero_points: &'a mut Vec<i32>,
    pub ranges: &'a mut Vec<Range>,
}

/// Each row in codes of its own range, into rows of `row` elements. The codes are those that ranges first
/// and codes after them would give.
pub fn rows_by_range<S: Simd, L: Element>(
    simd: S,
    lhs: Matrix<'_, f32>,
    rule: &ActivationRule,
    (dst, row): (&mut [L], usize),
    parameters: RowParameters<'_>,
    threads: usize,
) {
    let (m, k) = (lhs.rows(), lhs.cols());
    let RowParameters { scales, zero_points, ranges } = parameters;
    scales.resize(m, 0.0);
    zero_points.resize(m, 0);
    ranges.resize(m, Range::EMPTY);
    let codes = Disjoint::new(dst);
    let (scales, zero_points, found) = (Disjoint::new(scales), Disjoint::new(zero_points), Disjoint::new(&mut ranges[..m]));
    threads::split(m, threads::parts(threads, m * k, GRAIN), |_, rows| {
        // SAFETY: ranges of rows are disjoint.
        let (codes, scales, zero_points, found) = unsafe {
            let codes = codes.part(rows.start * row..rows.end * row);
            (codes, scales.part(rows.clone()), zero_points.part(rows.clone()), found.part(rows.clone()))
        };
        simd.vectorize(
            #[inline(always)]
            || {
                for (i, r) in rows.enumerate() {
                    let values = &lhs.row(r)[..k];
                    found[i] = Extremes(values).visit(simd);
                    (scales[i], zero_points[i]) = rule.qparams(found[i]);
                    let quantizer = rule.quantizer(scales[i], zero_points[i]);
                    let codes = &mut codes[i * row..][..k];
                    if found[i].finite { Numbers(quantizer).slice(simd, values, codes) } else { quantizer.slice(simd, values, codes) }
                }
            },
        );
    });
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
