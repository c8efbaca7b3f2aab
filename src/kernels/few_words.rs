//! Product tiles of so few words that the weights of a panel stay in registers, and rows go through them two by two: tiles of six rows
//! hold their sums back until the last word, and by then a register file has no room for the next tile's. On Zen 4, six rows of four
//! words and their floats take 64 cycles so, and 92 to 101 as a tile.

use super::dot::Dot;
use super::output::{Place, Store};
use super::simd::Simd;
use super::tile::{Tile, first, stage_columns};

/// Most words: sixteen vectors of weights, half of the registers.
pub const FEW_WORDS: usize = 8;

/// [`product_tile`](super::tile::product_tile) for `mr` rows of each tile, of one segment of `WORDS` words, where
/// [`Start::is_one`](super::tile::Start::is_one).
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn few_words<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const NV: usize, const WORDS: usize>(
    simd: S,
    mr: usize,
    tiles: &Tile<'_, S, D, T>,
) {
    let mut place = Place { row: tiles.m, column: tiles.n, columns: tiles.columns };
    let mut dst = tiles.dst;
    let panel = NV * S::LANES * D::KU;
    // SAFETY: the caller's promise: there are as many vectors of weights, and every row of every tile is readable for `WORDS` words.
    unsafe {
        let start = D::start::<1, NV>(simd, &tiles.start, (tiles.m, &first(&tiles.params[0])), tiles.col_sums, (tiles.n, tiles.columns));
        let stage = stage_columns(simd, tiles.store, place);
        let mut weights = [[D::weights(simd, tiles.weights); NV]; WORDS];
        for w in 0..WORDS {
            for v in 0..NV {
                weights[w][v] = D::weights(simd, tiles.weights.add(w * panel + v * S::LANES * D::KU));
            }
        }
        let lhs = tiles.lhs.add(tiles.segments[0].offset);
        for (i, (offsets, params)) in tiles.offsets.iter().zip(tiles.params).enumerate() {
            let below = dst.wrapping_add(mr * tiles.dst_stride);
            let next = if i + 1 < tiles.offsets.len() && !tiles.next_dst.is_null() { below } else { tiles.next_dst };
            let mut m = 0;
            while m < mr {
                let (at, place) = (dst.wrapping_add(m * tiles.dst_stride), Place { row: place.row + m, ..place });
                if !next.is_null() {
                    // As in other tiles. A number of lines that is known: what is beyond the columns, or the last row, is fetched in vain.
                    for row in m..m + 2 {
                        let row = next.wrapping_add(row * tiles.dst_stride).cast::<u8>();
                        for line in 0..(NV * S::LANES * size_of::<T::Element>()).div_ceil(64) {
                            simd.prefetch(row.wrapping_add(64 * line));
                        }
                    }
                }
                if m + 1 < mr {
                    let rows = [lhs.add(offsets[m]), lhs.add(offsets[m + 1])];
                    let acc = sums::<S, D, 2, NV, WORDS>(simd, &rows, &weights, start[0]);
                    tiles.store.store(simd, &stage, [params[m], params[m + 1]], acc, place, at, tiles.dst_stride);
                } else {
                    let acc = sums::<S, D, 1, NV, WORDS>(simd, &[lhs.add(offsets[m])], &weights, start[0]);
                    tiles.store.store(simd, &stage, [params[m]], acc, place, at, tiles.dst_stride);
                }
                m += 2;
            }
            place.row += mr;
            dst = below;
        }
    }
}

/// The sums of some rows.
///
/// # Safety
/// Each row is readable for `WORDS` words.
#[inline(always)]
unsafe fn sums<S: Simd, D: Dot<S>, const R: usize, const NV: usize, const WORDS: usize>(
    simd: S,
    rows: &[*const D::Lhs; R],
    weights: &[[D::Weights; NV]; WORDS],
    start: [D::Acc; NV],
) -> [[D::Acc; NV]; R] {
    let mut acc = [start; R];
    for w in 0..WORDS {
        for r in 0..R {
            // SAFETY: the caller's promise.
            let word = unsafe { D::word(simd, rows[r].add(w * D::KU)) };
            for v in 0..NV {
                acc[r][v] = D::dot(simd, acc[r][v], word, weights[w][v]);
            }
        }
    }
    acc
}

/// The arms that turn `nv` and `words` into const generics, in an instruction set's [`Simd::few_words`].
macro_rules! few_words_arms {
    ($simd:expr, $mr:expr, $nv:expr, $words:expr, $tiles:expr, [$($v:literal)*], $counts:tt) => {
        match $nv {
            $($v => few_words_arms!(@words $simd, $mr, $v, $words, $tiles, $counts),)*
            nv => unreachable!("the drivers split columns into panels: {nv} vectors"),
        }
    };
    (@words $simd:expr, $mr:expr, $v:literal, $words:expr, $tiles:expr, [$($w:literal)*]) => {
        match $words {
            // SAFETY: the caller's promise is the same.
            $($w => $simd.vectorize(#[inline(always)] || unsafe { few_words::<_, _, _, $v, $w>($simd, $mr, $tiles) }),)*
            words => unreachable!("more than few: {words} words"),
        }
    };
}
pub(super) use few_words_arms;
