//! Product tiles of so few words that the weights of a panel stay in registers, and rows go through them two by two: tiles of six rows
//! hold their sums back until the last word, and by then a register file has no room for the next tile's. On Zen 4, six rows of four
//! words and their floats take 64 cycles so, and 92 to 101 as a tile.

use super::dot::Dot;
use super::output::{Place, Store};
use super::simd::Simd;
use super::tile::{Segment, Tile, first, stage_columns};

/// Whether segments are of so few words: one of up to eight, which are sixteen vectors of weights, half of the registers, or three of up
/// to three, as those of a 3 x 3 kernel over a picture where a word is four codes.
pub fn are_few(segments: &[Segment]) -> bool {
    match segments {
        [one] => (1..=8).contains(&one.words),
        [a, b, c] => (1..=3).contains(&a.words) && a.words == b.words && a.words == c.words,
        _ => false,
    }
}

/// [`product_tile`](super::tile::product_tile) for `mr` rows of each tile, of `SEGMENTS` segments of `WORDS` words each, where
/// [`Start::is_one`](super::tile::Start::is_one).
///
/// # Safety
/// As there; the segments [`are_few`], and as many as `SEGMENTS`, of `WORDS` words each.
#[inline(always)]
pub unsafe fn few_words<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const NV: usize, const SEGMENTS: usize, const WORDS: usize>(
    simd: S,
    mr: usize,
    tiles: &Tile<'_, S, D, T>,
) {
    debug_assert!(are_few(tiles.segments) && (tiles.segments.len(), tiles.segments[0].words) == (SEGMENTS, WORDS));
    let mut place = Place { row: tiles.m, column: tiles.n, columns: tiles.columns };
    let mut dst = tiles.dst;
    let panel = NV * S::LANES * D::KU;
    // SAFETY: the caller's promise: there are as many vectors of weights, and every row of every tile is readable for `WORDS` words at
    // each segment.
    unsafe {
        let start = D::start::<1, NV>(simd, &tiles.start, (tiles.m, &first(&tiles.params[0])), tiles.col_sums, (tiles.n, tiles.columns));
        let stage = stage_columns(simd, tiles.store, place);
        let mut weights = [[[D::weights(simd, tiles.weights); NV]; WORDS]; SEGMENTS];
        let mut segments = [0; SEGMENTS];
        for s in 0..SEGMENTS {
            segments[s] = tiles.segments[s].offset;
            for w in 0..WORDS {
                for v in 0..NV {
                    weights[s][w][v] = D::weights(simd, tiles.weights.add((s * WORDS + w) * panel + v * S::LANES * D::KU));
                }
            }
        }
        let lhs = tiles.lhs;
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
                    let acc = sums::<S, D, 2, NV, SEGMENTS, WORDS>(simd, (&rows, &segments), &weights, start[0]);
                    tiles.store.store(simd, &stage, [params[m], params[m + 1]], acc, place, at, tiles.dst_stride);
                } else {
                    let acc = sums::<S, D, 1, NV, SEGMENTS, WORDS>(simd, (&[lhs.add(offsets[m])], &segments), &weights, start[0]);
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
/// Each row is readable for `WORDS` words at each of the segments.
#[inline(always)]
unsafe fn sums<S: Simd, D: Dot<S>, const R: usize, const NV: usize, const SEGMENTS: usize, const WORDS: usize>(
    simd: S,
    (rows, segments): (&[*const D::Lhs; R], &[usize; SEGMENTS]),
    weights: &[[[D::Weights; NV]; WORDS]; SEGMENTS],
    start: [D::Acc; NV],
) -> [[D::Acc; NV]; R] {
    let mut acc = [start; R];
    for s in 0..SEGMENTS {
        for w in 0..WORDS {
            for r in 0..R {
                // SAFETY: the caller's promise.
                let word = unsafe { D::word(simd, rows[r].add(segments[s] + w * D::KU)) };
                for v in 0..NV {
                    acc[r][v] = D::dot(simd, acc[r][v], word, weights[s][w][v]);
                }
            }
        }
    }
    acc
}

/// The arms that turn `nv` and the numbers of segments and words into const generics, in an instruction set's [`Simd::few_words`]: all of
/// [`are_few`].
macro_rules! few_words_arms {
    ($simd:expr, $mr:expr, $nv:expr, $tiles:expr, [$($v:literal)*]) => {
        match $nv {
            $($v => few_words_arms!(@words $simd, $mr, $v, $tiles, [(1, 1) (1, 2) (1, 3) (1, 4) (1, 5) (1, 6) (1, 7) (1, 8) (3, 1) (3, 2) (3, 3)]),)*
            nv => unreachable!("the drivers split columns into panels: {nv} vectors"),
        }
    };
    (@words $simd:expr, $mr:expr, $v:literal, $tiles:expr, [$(($s:literal, $w:literal))*]) => {
        match ($tiles.segments.len(), $tiles.segments[0].words) {
            // SAFETY: the caller's promise is the same.
            $(($s, $w) => $simd.vectorize(#[inline(always)] || unsafe { few_words::<_, _, _, $v, $s, $w>($simd, $mr, $tiles) }),)*
            (segments, words) => unreachable!("more than few: {segments} segments, the first of {words} words"),
        }
    };
}
pub(super) use few_words_arms;
