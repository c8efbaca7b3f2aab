//! The loops around the tiles: panels in blocks that stay in the cache, rows in even tiles.

use std::ops::Range;

use super::layout::Layout;
use super::tile::{Groups, Sink, Tile, floats, integers};
use super::weights::PackedLowBit;
use crate::kernels::dequantize::FloatStage;
use crate::kernels::output::Place;
use crate::kernels::simd::Simd;
use crate::kernels::threads;

/// Half of a common second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

/// Rows that threads share out: whole tiles of four and of six.
const ROWS: usize = 12;

/// Products below which a second thread costs more than it gives.
const GRAIN: usize = 2 << 20;

/// What rows are multiplied as.
pub trait Arithmetic: Copy + Send + Sync {
    /// An activation.
    type Lhs;

    /// Rows of the next tile, of `rows` that are left.
    fn rows(bits: usize, rows: usize) -> usize;

    /// One tile of `mr` rows, a number that [`Arithmetic::rows`] gave.
    ///
    /// # Safety
    /// As for [`integers`].
    unsafe fn tile<S: Simd>(simd: S, bits: usize, mr: usize, tile: &Tile<'_, Self::Lhs>);
}

/// The arms that turn a number of rows into a const generic.
///
/// Each costs some 0.1 s of compilation an instruction set, so there are few: the remainder of 3 or 5 rows takes two tiles, which read
/// the same weights from the cache.
macro_rules! arms {
    ($simd:ident, $mr:ident, [$($m:literal)*], |$MR:ident| $call:expr) => {
        match $mr {
            $($m => {
                const $MR: usize = $m;
                // SAFETY: the caller's promise is the tile's.
                $simd.vectorize(#[inline(always)] || unsafe { $call })
            })*
            rows => unreachable!("no tile has {rows} rows"),
        }
    };
}

/// Signed bytes.
#[derive(Clone, Copy)]
pub struct Integers;

impl Arithmetic for Integers {
    type Lhs = i8;

    /// Six times two vectors of sums within a group are twelve registers of 32, the sums over groups as many again.
    fn rows(bits: usize, rows: usize) -> usize {
        match (bits, rows) {
            (4, 6..) => 6,
            (_, 4..) => 4,
            (4, 2..) => 2,
            _ => 1,
        }
    }

    unsafe fn tile<S: Simd>(simd: S, bits: usize, mr: usize, tile: &Tile<'_, i8>) {
        match (bits, tile.groups.decoding.looked_up, tile.by_group) {
            (2, _, false) => arms!(simd, mr, [1 4], |M| integers::<S, 2, true, false, M>(simd, tile)),
            (2, _, true) => arms!(simd, mr, [1 4], |M| integers::<S, 2, true, true, M>(simd, tile)),
            (3, _, false) => arms!(simd, mr, [1 4], |M| integers::<S, 3, true, false, M>(simd, tile)),
            (3, _, true) => arms!(simd, mr, [1 4], |M| integers::<S, 3, true, true, M>(simd, tile)),
            (4, false, false) => arms!(simd, mr, [1 2 4 6], |M| integers::<S, 4, false, false, M>(simd, tile)),
            (4, false, true) => arms!(simd, mr, [1 2 4 6], |M| integers::<S, 4, false, true, M>(simd, tile)),
            (4, true, false) => arms!(simd, mr, [1 2 4 6], |M| integers::<S, 4, true, false, M>(simd, tile)),
            (4, true, true) => arms!(simd, mr, [1 2 4 6], |M| integers::<S, 4, true, true, M>(simd, tile)),
            (_, _, false) => arms!(simd, mr, [1 4], |M| integers::<S, 8, false, false, M>(simd, tile)),
            (_, _, true) => arms!(simd, mr, [1 4], |M| integers::<S, 8, false, true, M>(simd, tile)),
        }
    }
}

/// Floats.
#[derive(Clone, Copy)]
pub struct Floats;

impl Arithmetic for Floats {
    type Lhs = f32;

    fn rows(_: usize, rows: usize) -> usize {
        if rows >= 4 { 4 } else { 1 }
    }

    unsafe fn tile<S: Simd>(simd: S, bits: usize, mr: usize, tile: &Tile<'_, f32>) {
        match bits {
            2 => arms!(simd, mr, [1 4], |M| floats::<S, 2, M>(simd, tile)),
            3 => arms!(simd, mr, [1 4], |M| floats::<S, 3, M>(simd, tile)),
            4 => arms!(simd, mr, [1 4], |M| floats::<S, 4, M>(simd, tile)),
            _ => arms!(simd, mr, [1 4], |M| floats::<S, 8, M>(simd, tile)),
        }
    }
}

/// A product of rows in memory with packed weights.
pub struct Product<'a, S: Simd, A: Arithmetic> {
    pub simd: S,
    pub lhs: *const A::Lhs,
    pub lhs_stride: usize,
    /// `[row][group]`, see [`Tile`].
    pub terms: &'a [i32],
    /// One for each row, or for each of its groups.
    pub row_scales: &'a [f32],
    /// As many, see [`Tile`].
    pub negated_zero_points: &'a [f32],
    pub by_group: bool,
    /// The sum of each column's weights, of whole panels; none where `by_group`.
    pub col_sums: &'a [f32],
    pub m: usize,
    pub weights: &'a PackedLowBit,
    pub store: FloatStage<'a>,
    pub dst: *mut f32,
    pub dst_stride: usize,
}

// SAFETY: threads read `lhs` and write disjoint tiles of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, A: Arithmetic> Sync for Product<'_, S, A> {}

impl<S: Simd, A: Arithmetic> Product<'_, S, A> {
    /// All tiles, on at most `threads` threads.
    ///
    /// # Safety
    /// - each of `m` rows is readable for the layout's row, `lhs_stride` apart, and has its terms and its scales and zero points, and
    ///   each panel its col_sums, where `A` reads them;
    /// - the stage fits `m` rows of `n` columns, and so does `dst`, which nobody else reads or writes.
    pub unsafe fn run(&self, threads: usize) {
        let (panels, blocks) = (self.weights.layout().panels(), self.m.div_ceil(ROWS));
        if panels == 0 || blocks == 0 {
            return;
        }
        let work = self.m * self.weights.n() * self.weights.k().max(1);
        let parts = threads::parts(threads, work, GRAIN);
        // Whichever of rows and columns cuts more evenly; columns at a tie, as then each thread streams weights of its own.
        let waste = |items: usize| items.div_ceil(parts) * parts * (panels * blocks / items);
        if waste(panels) <= waste(blocks) {
            // SAFETY: the caller's promise; ranges of panels are disjoint columns of `dst`.
            threads::split(panels, parts, |_, panels| unsafe { self.block(0..self.m, panels) });
        } else {
            // SAFETY: the caller's promise; ranges of blocks are disjoint rows of `dst`.
            threads::split(blocks, parts, |_, blocks| unsafe {
                self.block(blocks.start * ROWS..(blocks.end * ROWS).min(self.m), 0..panels);
            });
        }
    }

    /// # Safety
    /// As for [`Product::run`]; nobody else writes these rows and panels.
    unsafe fn block(&self, rows: Range<usize>, panels: Range<usize>) {
        let layout: &Layout = self.weights.layout();
        let (nr, groups, bits) = (layout.nr(), layout.groups(), layout.bits);
        let (blocks, zero_points) = (self.weights.blocks(), self.weights.zero_point_bytes());
        let block = (BLOCK_BYTES / layout.panel_bytes().max(1)).max(1);
        for first in panels.clone().step_by(block) {
            let mut m = rows.start;
            while m < rows.end {
                let mr = A::rows(bits, rows.end - m);
                for panel in first..(first + block).min(panels.end) {
                    let column = panel * nr;
                    let of_row = if self.by_group { m * groups } else { m };
                    let tile = Tile::<A::Lhs> {
                        lhs: self.lhs.wrapping_add(m * self.lhs_stride),
                        lhs_stride: self.lhs_stride,
                        terms: self.terms.as_ptr().wrapping_add(m * groups),
                        row_scales: self.row_scales.as_ptr().wrapping_add(of_row),
                        negated_zero_points: self.negated_zero_points.as_ptr().wrapping_add(of_row),
                        by_group: self.by_group,
                        col_sums: self.col_sums.as_ptr().wrapping_add(column),
                        groups: Groups {
                            blocks: blocks[layout.block(panel, 0)..].as_ptr(),
                            zero_points: zero_points.map_or(std::ptr::null(), |zeros| zeros[layout.zero_at(panel, 0, 0)..].as_ptr()),
                            count: groups,
                            steps: layout.steps(),
                            elements: layout.lengths(),
                            header: layout.header(),
                            scales: self.weights.scale_kind(),
                            decoding: self.weights.decoding(),
                        },
                        sink: Sink {
                            store: self.store,
                            place: Place { row: m, column, columns: (layout.n - column).min(nr) },
                            dst: self.dst.wrapping_add(m * self.dst_stride + column),
                            dst_stride: self.dst_stride,
                        },
                    };
                    // SAFETY: rows, stage and `dst` by the caller's promise; the groups are those of this panel.
                    unsafe { A::tile(self.simd, bits, mr, &tile) }
                }
                m += mr;
            }
        }
    }
}
