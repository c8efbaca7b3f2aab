//! The products of [`super::winograd`]: some tiles times a panel of columns, at one point after the other.

use super::dot::Dot;
use super::simd::Simd;
use super::tile::{ROWS, Segment, unroll};

/// Products at points that follow each other in memory.
pub struct Points<'a> {
    /// How many points.
    pub count: usize,
    /// Tiles, at most `MR_MAX`.
    pub tiles: usize,
    /// Vectors of columns: one or two.
    pub vectors: usize,
    /// The first tile's numbers at the first point.
    pub activations: *const i16,
    /// Numbers from a tile to the next.
    pub row: usize,
    /// Numbers from a point to the next.
    pub activations_step: usize,
    /// Words of a tile's numbers, in the order of the weights.
    pub runs: &'a [Segment],
    /// The panel at the first point: `[word][column][2]`.
    pub weights: *const i16,
    /// Numbers from the panel at a point to that at the next.
    pub weights_step: usize,
    /// Where the sums of the first tile go, and those of the next, and of the next point.
    pub sums: *mut i32,
    pub sums_row: usize,
    pub sums_step: usize,
    /// Weights that are needed next, asked for along these products.
    pub ahead: &'a [i8],
}

/// Words between which a line of them is asked for. A share before each run of points held up all else: a network's layers of 256 channels
/// at 14 x 14, whose weights come from memory, took a tenth longer.
const AHEAD_WORDS: usize = 4;

/// The sums at all of the points, which wrap.
///
/// One call for them all, with little between two points: what is there has to wait in the same window of instructions as the last sums of
/// a point, so that the next one's products come late. With a call of a tile for each point 64 channels at 56 x 56 took a thirtieth longer.
///
/// # Safety
/// At each point, each tile's numbers are readable at each word of the runs, the weights for as many words of all columns, and the sums
/// writable for a row of as many.
pub unsafe fn products<S: Simd>(simd: S, points: &Points<'_>) {
    const { assert!(S::MR_MAX <= ROWS, "`unroll` comes to each number of tiles") };
    debug_assert!((1..=S::MR_MAX).contains(&points.tiles));
    unroll!(I < S::MR_MAX, {
        if points.tiles == I + 1 {
            simd.vectorize(
                #[inline(always)]
                || {
                    // SAFETY: the caller's promise.
                    unsafe {
                        match points.vectors {
                            1 => of_tiles::<S, { I + 1 }, 1>(simd, points),
                            _ => of_tiles::<S, { I + 1 }, 2>(simd, points),
                        }
                    }
                },
            );
        }
    });
}

/// # Safety
/// As for [`products`], of `MR` tiles and `NV` vectors of columns.
#[inline(always)]
unsafe fn of_tiles<S: Simd, const MR: usize, const NV: usize>(simd: S, points: &Points<'_>) {
    let (mut activations, mut weights, mut sums) = (points.activations, points.weights, points.sums);
    let mut ahead = points.ahead.chunks(64);
    // Of few tiles some words are summed beside each other, and together only at the end.
    let step = if MR > 2 { AHEAD_WORDS } else { 8 * AHEAD_WORDS };
    for _ in 0..points.count {
        let mut acc = [[simd.splat_i32(0); NV]; MR];
        let mut panel = weights;
        for run in points.runs {
            let mut rows = [activations; MR];
            for m in 0..MR {
                rows[m] = activations.wrapping_add(run.offset + m * points.row);
            }
            let mut words = run.words;
            while words > 0 {
                let some = if ahead.len() > 0 { words.min(step) } else { words };
                let lines = some.div_ceil(AHEAD_WORDS).min(ahead.len());
                for _ in 0..lines {
                    if let Some(line) = ahead.next() {
                        simd.prefetch(line.as_ptr().cast());
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { S::Pairs::accumulate::<MR, NV>(simd, &mut acc, &rows, some, panel) }
                panel = panel.wrapping_add(some * NV * S::LANES * <S::Pairs as Dot<S>>::KU);
                for row in &mut rows {
                    *row = row.wrapping_add(some * <S::Pairs as Dot<S>>::KU);
                }
                words -= some;
            }
        }
        for m in 0..MR {
            for v in 0..NV {
                // SAFETY: as above.
                unsafe { simd.store_i32(sums.add(m * points.sums_row + v * S::LANES), acc[m][v], S::LANES) }
            }
        }
        activations = activations.wrapping_add(points.activations_step);
        weights = weights.wrapping_add(points.weights_step);
        sums = sums.wrapping_add(points.sums_step);
    }
}
