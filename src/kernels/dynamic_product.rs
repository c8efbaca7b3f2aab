//! What a dynamic product does: rows become codes and are multiplied, in one visit to the pool.

use super::dequantize::DequantizeStage;
use super::dot::Dot;
use super::dynamic::{Around, Epilogue, InputRule, RangeOf};
use super::elementwise::Extremes;
use super::gemm::{Destination, Lhs, multiply, product, workspace_row};
use super::isa::Visitor;
use super::operand::{Matrix, Per};
use super::output::Integers;
use super::pack::Panels;
use super::product::Product;
use super::ranges::{Measure, Range, RangeLanes, report};
use super::row_codes::{RowCodes, RowParameters};
use super::simd::Simd;
use super::threads;
use super::tile::{Segment, Start, Zero};
use super::weights::PackedWeights;
use super::workspace::Workspace;
use crate::error::Result;

/// The checked arguments of [`gemm_dynamic`](super::gemm_dynamic).
pub struct DynamicProduct<'a> {
    pub lhs: Matrix<'a, f32>,
    pub range: RangeOf,
    pub rule: InputRule<'a>,
    pub weights: &'a PackedWeights,
    pub epilogue: &'a Epilogue<'a>,
    pub around: Around,
    pub dst: Destination<f32>,
    pub workspace: &'a mut Workspace,
}

impl Visitor for DynamicProduct<'_> {
    type Out = Result<()>;
    fn visit<S: Simd>(self, simd: S) -> Result<()> {
        let DynamicProduct { lhs, range, rule, weights, epilogue, around, dst, workspace } = self;
        let Workspace { codes: memory, scales, zero_points, ranges, row_terms, sums, totals, measured, .. } = workspace;
        let (m, row, threads) = (lhs.rows(), workspace_row::<S>(lhs.cols()), dst.threads);
        let codes: &mut [<S::Int8 as Dot<S>>::Lhs] = memory.grow(m * row);
        let whole = dst.sums_fit && weights.chunks().len() == 1;
        let in_registers = whole && around.function.is_none();
        let measure = epilogue.ranges.map(|cells| Measure::new(measured, cells.len(), m, threads));
        let stage = epilogue.stage(Per::Tensor(1.0)).measured(measure.filter(|_| in_registers)).then(around.function);
        let multiplication = Multiplication { simd, m, row, range, stage, dst };
        let params = if range == RangeOf::Row { m } else { 1 };
        let kept = around.kept && scales.len() == params && zero_points.len() == params;
        // Of sums that fit, and weights without zero points, the product is one phase more.
        let one = weights.chunks().next().filter(|_| whole && weights.zero_points().is_empty() && !kept);
        let segments = [Segment { offset: 0, words: lhs.cols().div_ceil(S::Int8::KU) }];
        if !kept {
            let rows = RowCodes::new(simd, lhs, (rule, range), (codes, row), RowParameters { scales, zero_points, ranges })?;
            let ([measuring, encoding], parts) = rows.phases(threads);
            // SAFETY: phases follow each other, and their runs are disjoint.
            let codes_in = |phase: usize, range| unsafe { if phase == 0 { rows.measure(range) } else { rows.encode(range) } };
            if let Some((panels, ..)) = one {
                let cut = multiplication.product((rows.codes(), &[1.0], &[0]), panels, &segments).cut(threads);
                threads::phases([measuring, encoding, cut.phase], parts.max(cut.parts), |phase, part, range| {
                    if phase < 2 {
                        codes_in(phase, range);
                    } else if !rows.refused() {
                        // SAFETY: nobody writes codes any more; matrices and stage were checked against the weights, each row has whole
                        // words; runs of the product are disjoint, and no two at a time are of the same part, of which there are no more
                        // than threads.
                        unsafe {
                            let (scales, zero_points) = rows.parameters();
                            multiplication.product((rows.codes(), scales, zero_points), panels, &segments).piece(&cut, part, range);
                        }
                    }
                });
            } else {
                threads::phases([measuring, encoding], parts, |phase, _, range| codes_in(phase, range));
            }
            // SAFETY: all rows were encoded.
            unsafe { rows.check()? };
        }
        if one.is_none() {
            let codes = memory.as_slice::<<S::Int8 as Dot<S>>::Lhs>().as_ptr();
            let (lhs, stage) = multiplication.operands((codes, scales, zero_points));
            // SAFETY: as above.
            unsafe { multiply(simd, lhs, weights, stage, dst, row_terms, (sums, totals)) }
        }
        if let Some(cells) = epilogue.ranges {
            if !in_registers {
                measured.iter_mut().for_each(RangeLanes::unknown);
            }
            // SAFETY: `dst` has n elements in each of its m rows, and nobody else uses it.
            let row = |i: usize| unsafe { std::slice::from_raw_parts(dst.data.add(i * dst.stride), weights.n()) };
            let of = |cell: usize| if cells.len() == m { cell..cell + 1 } else { 0..m };
            report(measured, cells, |cell| of(cell).fold(Range::EMPTY, |whole, i| whole.union(Extremes(row(i)).visit(simd))));
        }
        Ok(())
    }
}

/// What there is of a product before there are codes.
struct Multiplication<'a, S: Simd> {
    simd: S,
    m: usize,
    row: usize,
    range: RangeOf,
    stage: DequantizeStage<'a>,
    dst: Destination<f32>,
}

/// Codes, and a scale and zero point for each row, or one.
type Encoded<'a, L> = (*const L, &'a [f32], &'a [i32]);

impl<S: Simd> Multiplication<'_, S> {
    fn operands<'e>(&'e self, (data, scales, zero_points): Encoded<'e, <S::Int8 as Dot<S>>::Lhs>) -> (Lhs<'e, S>, DequantizeStage<'e>) {
        let (zero, scale) = match self.range {
            RangeOf::Tensor => (Zero::Tensor(zero_points[0]), Per::Tensor(scales[0])),
            RangeOf::Row => (Zero::Row(zero_points), Per::Row(scales)),
        };
        (Lhs { data, m: self.m, row: self.row, zero }, self.stage.with_lhs_scale(scale))
    }

    /// The product with the one run of k of weights without zero points.
    fn product<'e>(
        &'e self,
        encoded: Encoded<'e, <S::Int8 as Dot<S>>::Lhs>,
        panels: &'e Panels<i8>,
        segments: &'e [Segment],
    ) -> Product<'e, S, S::Int8, Integers<DequantizeStage<'e>>> {
        let (lhs, stage) = self.operands(encoded);
        product(self.simd, lhs, Start::new(lhs.zero), (panels, segments), stage, self.dst)
    }
}
