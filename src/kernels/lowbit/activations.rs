//! Activations as the tiles read them: each group filled up to whole steps.

use super::layout::Layout;
use crate::kernels::ingest::{GRAIN, Quantizer};
use crate::kernels::memory::Aligned;
use crate::kernels::operand::Matrix;
use crate::kernels::simd::{Element, Simd};
use crate::kernels::threads::{self, Disjoint};

/// Elements from one row to the next: no power of two, whose rows would fall into the same few sets of a cache.
pub fn stride<L>(layout: &Layout) -> usize {
    let row = layout.row();
    if row > 0 && (row * size_of::<L>()).is_multiple_of(1024) { row + 64 } else { row }
}

/// Each row of `lhs`, group by group, by `fill(row, group, values, into)`, and zeros where a group has none. Rows that need none may go
/// as a whole, as group 0, unless `by_group`.
fn rows<'d, L: Element, S: Simd>(
    simd: S,
    lhs: Matrix<'_, f32>,
    layout: &Layout,
    by_group: bool,
    memory: &'d mut Aligned,
    threads: usize,
    fill: impl Fn(usize, usize, &[f32], &mut [L]) + Sync,
) -> &'d [L] {
    let (m, stride, steps) = (lhs.rows(), stride::<L>(layout), layout.steps()[0] * layout.step());
    let memory = memory.grow::<L>(m * stride);
    let to = Disjoint::new(memory);
    threads::split(m, threads::parts(threads, m * layout.k, GRAIN), |_, rows| {
        // SAFETY: ranges of rows are disjoint.
        let part = unsafe { to.part(rows.start * stride..rows.end * stride) };
        simd.vectorize(
            #[inline(always)]
            || {
                for (i, into) in rows.zip(part.chunks_exact_mut(stride.max(1))) {
                    let (x, into) = (lhs.row(i), &mut into[..layout.row()]);
                    if layout.is_plain() && !by_group {
                        fill(i, 0, x, into);
                        continue;
                    }
                    for g in 0..layout.groups() {
                        let (x, end) = (&x[layout.elements(g)], ((g + 1) * steps).min(into.len()));
                        let (values, rest) = into[g * steps..end].split_at_mut(x.len());
                        fill(i, g, x, values);
                        rest.fill(L::default());
                    }
                }
            },
        );
    });
    memory
}

/// Rows in signed bytes, by the quantizer of a row or, where `by_group`, of a row's group; and for each group of each row `factor` times
/// the sum of its codes.
#[allow(clippy::too_many_arguments)]
pub fn codes<'d, S: Simd>(
    simd: S,
    (lhs, layout): (Matrix<'_, f32>, &Layout),
    by_group: bool,
    quantizer: impl Fn(usize, usize) -> Quantizer + Sync,
    finite: bool,
    (memory, terms): (&'d mut Aligned, &mut Vec<i32>),
    factor: i32,
    threads: usize,
) -> &'d [i8] {
    let codes = rows(
        simd,
        lhs,
        layout,
        by_group,
        memory,
        threads,
        #[inline(always)]
        |row, group, x: &[f32], into: &mut [i8]| match finite {
            true => quantizer(row, group).codes::<S, i8, true, false>(simd, x, into),
            false => quantizer(row, group).divide(x, into),
        },
    );
    let (groups, stride, steps) = (layout.groups(), stride::<i8>(layout), layout.steps()[0] * layout.step());
    terms.clear();
    terms.resize(lhs.rows() * groups, 0);
    let parts = threads::parts(threads, lhs.rows() * layout.k, GRAIN);
    threads::split_rows(terms, groups, parts, &|first, terms: &mut [i32]| {
        simd.vectorize(
            #[inline(always)]
            || {
                for (i, terms) in terms.chunks_exact_mut(groups.max(1)).enumerate() {
                    let row = &codes[(first / groups.max(1) + i) * stride..][..layout.row()];
                    for (group, term) in row.chunks(steps.max(1)).zip(terms) {
                        *term = group.iter().map(|&x| i32::from(x)).sum::<i32>() * factor;
                    }
                }
            },
        );
    });
    codes
}

/// Rows of floats.
pub fn floats<'d, S: Simd>(simd: S, lhs: Matrix<'_, f32>, layout: &Layout, memory: &'d mut Aligned, threads: usize) -> &'d [f32] {
    rows(
        simd,
        lhs,
        layout,
        false,
        memory,
        threads,
        #[inline(always)]
        |_, _, x: &[f32], into: &mut [f32]| into.copy_from_slice(x),
    )
}
