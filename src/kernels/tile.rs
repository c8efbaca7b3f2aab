//! The tile: `mr` rows times a panel of columns, summed in registers and handed to the output stage. Written once.

use std::mem::MaybeUninit;

use super::dot::Dot;
use super::output::{Place, Store};
use super::simd::Simd;

/// Most rows that any instruction set takes in one tile.
pub const ROWS: usize = 14;

/// Rows of the tiles that go in runs. Of all heights there would be twice as much to compile.
pub const RUN_ROWS: std::ops::RangeInclusive<usize> = 5..=6;

/// `body` for each constant `i` below `n`, at most [`ROWS`], or for those of a list. A loop would do the same, but the compiler keeps an
/// array in registers only when every index is a constant, and it gives up unrolling when the body is as long as an output stage: then each
/// step of k loads and stores its accumulators. For the like reason there are no closures in tiles and stages: what is not inlined to where
/// the instruction set is enabled becomes calls, one for each vector.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:expr) => { unroll!($i < $n; [0 1 2 3 4 5 6 7 8 9 10 11 12 13], $body) };
    ($i:ident < $n:expr; [$($at:literal)*], $body:expr) => {
        {
            $(if $at < $n {
                const $i: usize = $at;
                $body
            })*
        }
    };
}

/// One run of k: `words` words that lie together, `offset` elements after the row's first.
///
/// A product has one; a convolution has one per kernel row (or per tap), since in NHWC the `kw * c` elements under
/// a kernel row are contiguous. So convolution needs no im2col.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: usize,
    pub words: usize,
}

/// Zero points of the activations, already those of unsigned codes.
#[derive(Debug, Clone, Copy)]
pub enum Zero<'a> {
    Tensor(i32),
    /// One for each row of a product or image of a convolution.
    Row(&'a [i32]),
}

impl<'a> Zero<'a> {
    /// The zero point of row (or image) `row`.
    pub fn get(&self, row: usize) -> i32 {
        match self {
            Zero::Tensor(z) => *z,
            Zero::Row(zero_points) => zero_points[row],
        }
    }

    /// The same where there is no other row than `row`.
    pub fn only(&self, row: usize) -> Zero<'a> {
        Zero::Tensor(self.get(row))
    }
}

/// What integer sums start from, so that the loop over k needs no zero points:
/// `bias[n] - zero * col_sum[n] + weight_zero[n] * row_term[m]`.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    pub zero: Zero<'a>,
    /// One for each column, or none.
    pub bias: &'a [i32],
    /// Zero points of the weights: one for each column, or none.
    pub weight_zero: &'a [i32],
    /// `k * zero - row_sum`, for each row of a product whose weights have zero points.
    pub row_terms: &'a [i32],
}

impl<'a> Start<'a> {
    /// Without bias, and weights without zero points.
    pub fn new(zero: Zero<'a>) -> Self {
        Start { zero, bias: &[], weight_zero: &[], row_terms: &[] }
    }

    /// Whether sums of all rows start from the same.
    pub fn is_one(&self) -> bool {
        matches!(self.zero, Zero::Tensor(_)) && self.weight_zero.is_empty()
    }
}

/// Words between which some lines of the next panel are asked for.
const FETCH_WORDS: usize = 4;

/// Parts of a tile's one segment before each of which a share of the next output is asked for; of several segments each is a part.
const PREFETCHES: usize = 4;

/// The arguments of a run of product tiles, one below the other: each as many rows of the same panel.
pub struct Tile<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub lhs: *const D::Lhs,
    /// Where each row of each tile starts, in elements after `lhs`.
    pub offsets: &'a [[usize; ROWS]],
    /// Which zero point and scale each row has, for as many tiles.
    pub params: &'a [[usize; ROWS]],
    pub segments: &'a [Segment],
    /// The panel: `[words][nv * LANES][KU]`.
    pub weights: *const D::Weight,
    pub start: Start<'a>,
    /// Sums of this panel's columns.
    pub col_sums: *const i32,
    pub store: T,
    /// First row.
    pub m: usize,
    /// First column.
    pub n: usize,
    /// Columns in the panel.
    pub columns: usize,
    /// Where row 0, column `n` goes.
    pub dst: *mut T::Element,
    pub dst_stride: usize,
    /// Where the output of the tile after these goes, if outputs are to be fetched ahead, else null.
    pub next_dst: *const T::Element,
    /// Weights of the panel after this one, if they are to be fetched ahead: a share along each of several tiles.
    pub next_weights: &'a [D::Weight],
}

/// The first of a tile's parameters. By `copy_from_slice` they would take a call in each tile.
#[inline(always)]
pub fn first<const N: usize>(params: &[usize; ROWS]) -> [usize; N] {
    *params.first_chunk().expect("no tile has more rows")
}

/// `dst[m][n] = stage(sum over k of (lhs[m][k] - zero_point) * weight[n][k])` for `MR` rows of each tile and `NV` vectors of columns.
///
/// # Safety
/// - each of the first `MR` rows of each tile is readable at every word of every segment;
/// - `weights` holds `NV * LANES * KU` elements for each word of the segments, and `col_sums` has `columns` elements;
/// - `(NV - 1) * LANES < columns <= NV * LANES`;
/// - the first `MR` of each tile's `params` are inside `start` and the stage's rows, all rows from `m` on and columns `n..n + columns`
///   inside both;
/// - of several tiles, [`RUN_ROWS`] has `MR`;
/// - `dst` is writable for `columns` elements in each of these rows, which lie `dst_stride` apart.
#[inline(always)]
pub unsafe fn product_tile<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const MR: usize, const NV: usize>(simd: S, tiles: &Tile<'_, S, D, T>) {
    let place = Place { row: tiles.m, column: tiles.n, columns: tiles.columns };
    if !RUN_ROWS.contains(&MR) || tiles.offsets.len() == 1 {
        let params = first(&tiles.params[0]);
        // SAFETY: the caller's promise.
        unsafe {
            let start = D::start(simd, &tiles.start, (tiles.m, &params), tiles.col_sums, (tiles.n, tiles.columns));
            let acc = tile_sums::<S, D, T, MR, NV, false>(simd, tiles, &tiles.offsets[0], start, tiles.next_dst, 0);
            // Only now, as the loop over k leaves no registers.
            let stage = stage_columns(simd, tiles.store, place);
            return finish(simd, (tiles.store, &stage), &acc, &params, place, tiles.dst, tiles.dst_stride);
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        match tiles.start.is_one() {
            // Floats would be as much to compile again.
            true if S::PREFETCHES && D::EXACT && !tiles.next_weights.is_empty() => run::<S, D, T, MR, NV, true, true>(simd, tiles),
            true => run::<S, D, T, MR, NV, true, false>(simd, tiles),
            false => run::<S, D, T, MR, NV, false, false>(simd, tiles),
        }
    }
}

/// Several tiles; `ONE` where [`Start::is_one`], `FETCH` where there are weights to fetch ahead.
///
/// # Safety
/// As for [`product_tile`].
#[inline(always)]
unsafe fn run<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const MR: usize, const NV: usize, const ONE: bool, const FETCH: bool>(
    simd: S,
    tiles: &Tile<'_, S, D, T>,
) {
    let (mut place, mut dst) = (Place { row: tiles.m, column: tiles.n, columns: tiles.columns }, tiles.dst);
    let columns = (tiles.n, tiles.columns);
    // SAFETY: the caller's promise.
    let (one, stage) = unsafe {
        let start = D::start::<1, NV>(simd, &tiles.start, (tiles.m, &first(&tiles.params[0])), tiles.col_sums, columns);
        (start[0], stage_columns(simd, tiles.store, place))
    };
    for (i, (offsets, params)) in tiles.offsets.iter().zip(tiles.params).enumerate() {
        let below = dst.wrapping_add(MR * tiles.dst_stride);
        let next = if i + 1 < tiles.offsets.len() && !tiles.next_dst.is_null() { below } else { tiles.next_dst };
        let params = first(params);
        // SAFETY: the caller's promise.
        unsafe {
            let start = if ONE { [one; MR] } else { D::start(simd, &tiles.start, (place.row, &params), tiles.col_sums, columns) };
            let acc = tile_sums::<S, D, T, MR, NV, FETCH>(simd, tiles, offsets, start, next, i);
            finish(simd, (tiles.store, &stage), &acc, &params, place, dst, tiles.dst_stride);
        }
        place.row += MR;
        dst = below;
    }
}

/// The sums of one tile, from `acc` on.
///
/// # Safety
/// As for [`product_tile`].
#[inline(always)]
unsafe fn tile_sums<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const MR: usize, const NV: usize, const FETCH: bool>(
    simd: S,
    tile: &Tile<'_, S, D, T>,
    offsets: &[usize; ROWS],
    mut acc: [[D::Acc; NV]; MR],
    next_dst: *const T::Element,
    index: usize,
) -> [[D::Acc; NV]; MR] {
    let mut weights = tile.weights;
    // Where this tile's share of the next panel begins, and how many of its lines are asked for between words: the panel has as many words
    // as this one. A narrower last one is asked for beyond its end, which reads nothing.
    let lines = if FETCH { (FETCH_WORDS * NV * S::LANES * D::KU * size_of::<D::Weight>() / 64).div_ceil(tile.offsets.len()) } else { 0 };
    let share = if FETCH { size_of_val(tile.next_weights).div_ceil(tile.offsets.len()) } else { 0 };
    let mut fetched = tile.next_weights.as_ptr().cast::<u8>().wrapping_add(index * share);
    // The lines of a large output are on their way before their sums are made: stores leave in order, and one that has to wait for
    // memory holds up all behind it. Some of them at a time, as all at once would take what the weights come through. Those of the
    // tile after this one: the rows below, which come a column block later, are often gone again. Worth nothing where the output fits a
    // second-level cache.
    let parts = if !next_dst.is_null() && tile.segments.len() == 1 { PREFETCHES } else { 1 };
    let (mut turn, turns) = (0, tile.segments.len() * parts);
    for segment in tile.segments {
        for part in 0..parts {
            if !next_dst.is_null() {
                for m in (turn..MR).step_by(turns) {
                    let row = next_dst.wrapping_add(m * tile.dst_stride).cast::<u8>();
                    // A number that is known: what is beyond the columns is fetched in vain.
                    for line in 0..(NV * S::LANES * size_of::<T::Element>()).div_ceil(64) {
                        simd.prefetch(row.wrapping_add(64 * line));
                    }
                }
                turn += 1;
            }
            let (first, end) = (segment.words * part / parts, segment.words * (part + 1) / parts);
            // SAFETY: rows are readable at every word of every segment, the panel has NV vectors for each of those words.
            unsafe {
                let mut rows = [tile.lhs; MR];
                for m in 0..MR {
                    rows[m] = tile.lhs.add(offsets[m] + segment.offset + first * D::KU);
                }
                let mut words = end - first;
                // A share of the next panel, as evenly as may be: asked for before each tile, it held up all else, and took longer than it
                // gave. In code of its own, as asking whether there is something to fetch took tiles of few words a tenth longer.
                while FETCH && words >= FETCH_WORDS {
                    for line in 0..lines {
                        simd.prefetch(fetched.wrapping_add(line * 64));
                    }
                    fetched = fetched.wrapping_add(lines * 64);
                    D::accumulate::<MR, NV>(simd, &mut acc, &rows, FETCH_WORDS, weights);
                    weights = weights.add(FETCH_WORDS * NV * S::LANES * D::KU);
                    for m in 0..MR {
                        rows[m] = rows[m].add(FETCH_WORDS * D::KU);
                    }
                    words -= FETCH_WORDS;
                }
                D::accumulate::<MR, NV>(simd, &mut acc, &rows, words, weights);
                weights = weights.add(words * NV * S::LANES * D::KU);
            }
        }
    }
    acc
}

/// The arguments of one depthwise tile: the rows are pixels, and each lane is a channel of its own.
pub struct LaneTile<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    /// First pixel's first channel of the tile.
    pub lhs: *const D::Lhs,
    pub offsets: &'a [usize; ROWS],
    pub params: &'a [usize; ROWS],
    /// Where each tap lies, in elements after a row's start.
    pub taps: &'a [Segment],
    /// `[taps][channels]`, from the tile's first channel.
    pub weights: *const D::Weight,
    /// Channels: the distance between the weights of two taps.
    pub channels: usize,
    pub start: Start<'a>,
    pub col_sums: *const i32,
    pub store: T,
    /// First row.
    pub m: usize,
    /// First channel.
    pub n: usize,
    /// Channels in the tile.
    pub columns: usize,
    pub dst: *mut T::Element,
    pub dst_stride: usize,
}

/// `dst[m][c] = stage(sum over taps of (lhs[m + tap][c] - zero_point) * weight[tap][c])`.
///
/// # Safety
/// As for [`product_tile`], where each row must be readable for `NV * LANES` elements at every tap, and so must the weights.
#[inline(always)]
pub unsafe fn lane_tile<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const MR: usize, const NV: usize>(simd: S, tile: &LaneTile<'_, S, D, T>) {
    let params = first(tile.params);
    // SAFETY: the caller's promise on `start`, `params` and `col_sums`.
    let mut acc: [[D::Acc; NV]; MR] = unsafe { D::start(simd, &tile.start, (tile.m, &params), tile.col_sums, (tile.n, tile.columns)) };
    for (t, tap) in tile.taps.iter().enumerate() {
        // SAFETY: rows and weights are readable for NV vectors at every tap.
        unsafe {
            let weights = tile.weights.add(t * tile.channels);
            for v in 0..NV {
                let w = D::lane_weights(simd, weights.add(v * S::LANES));
                for m in 0..MR {
                    let words = D::lane_words(simd, tile.lhs.add(tile.offsets[m] + tap.offset + v * S::LANES));
                    acc[m][v] = D::lane_dot(simd, acc[m][v], words, w);
                }
            }
        }
    }
    let place = Place { row: tile.m, column: tile.n, columns: tile.columns };
    // SAFETY: columns n.. are inside the stage; the caller's promise on `dst`.
    unsafe { finish(simd, (tile.store, &stage_columns(simd, tile.store, place)), &acc, &params, place, tile.dst, tile.dst_stride) }
}

/// The stage's parameters for the columns of a place.
///
/// # Safety
/// Those columns are inside the stage, and fill `NV` vectors but for the last one's end.
#[inline(always)]
pub(super) unsafe fn stage_columns<S: Simd, A, T: Store<S, A>, const NV: usize>(simd: S, store: T, place: Place) -> [T::Columns; NV] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [store.columns(simd, place.column, place.lanes::<S>(0)); NV];
        for v in 1..NV {
            columns[v] = store.columns(simd, place.column + v * S::LANES, place.lanes::<S>(v));
        }
        columns
    }
}

/// Hands the sums to the output stage, two rows at a time, which is what narrowing to bytes fills a vector with.
///
/// # Safety
/// As for [`product_tile`].
#[inline(always)]
unsafe fn finish<S: Simd, A: Copy, T: Store<S, A>, const MR: usize, const NV: usize>(
    simd: S,
    (store, columns): (T, &[T::Columns; NV]),
    acc: &[[A; NV]; MR],
    params: &[usize; MR],
    place: Place,
    dst: *mut T::Element,
    dst_stride: usize,
) {
    // SAFETY: dst is writable for `place.columns` elements in each row.
    unsafe {
        unroll!(P < MR.div_ceil(2), {
            let (at, place) = (dst.add(2 * P * dst_stride), Place { row: place.row + 2 * P, ..place });
            if 2 * P + 1 < MR {
                let pair = [acc[2 * P], acc[(2 * P + 1) % MR]];
                store.store(simd, columns, [params[2 * P], params[(2 * P + 1) % MR]], pair, place, at, dst_stride);
            } else {
                store.store(simd, columns, [params[2 * P]], [acc[2 * P]], place, at, dst_stride);
            }
        });
    }
}

/// [`Dot::start`] for integers, where activations are unsigned codes minus `offset`: so are their zero points then. Row terms are not
/// concerned, since they subtract one from the other.
///
/// # Safety
/// `col_sums` has `columns` elements, `(NV - 1) * LANES < columns <= NV * LANES`; `params` are inside the zero points, columns
/// `n..n + columns` inside bias and weight zero points where there are any, rows `m..m + MR` inside the row terms.
#[inline(always)]
pub unsafe fn start_integers<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    offset: i32,
    start: &Start<'_>,
    (m, params): (usize, &[usize; MR]),
    col_sums: *const i32,
    (n, columns): (usize, usize),
) -> [[S::I32; NV]; MR] {
    // Not zeros to begin with: the compiler would fill memory with them.
    let mut acc = MaybeUninit::<[[S::I32; NV]; MR]>::uninit();
    unroll!(V < NV, {
        let (at, lanes) = (V * S::LANES, (columns - V * S::LANES).min(S::LANES));
        // SAFETY: at least one and at most LANES columns from `at` on are inside `col_sums` and, from `n` on, inside the bias.
        let (sums, bias) = unsafe {
            let bias = if start.bias.is_empty() { simd.splat_i32(0) } else { simd.load_i32(start.bias.as_ptr().add(n + at), lanes) };
            (simd.load_i32(col_sums.add(at), lanes), bias)
        };
        let acc = acc.as_mut_ptr().cast::<S::I32>();
        match start.zero {
            Zero::Tensor(z) => {
                let first = simd.add_i32(bias, simd.mul_i32(sums, simd.splat_i32(offset - z)));
                // SAFETY: element [M][V] of the array.
                unroll!(M < MR, unsafe { acc.add(M * NV + V).write(first) });
            }
            Zero::Row(zero_points) => unroll!(M < MR, {
                // SAFETY: the caller's promise on `params`; element [M][V] of the array.
                unsafe {
                    let z = *zero_points.get_unchecked(params[M]);
                    acc.add(M * NV + V).write(simd.add_i32(bias, simd.mul_i32(sums, simd.splat_i32(offset - z))));
                }
            }),
        }
        if !start.weight_zero.is_empty() {
            // SAFETY: as for the bias.
            let zero = unsafe { simd.load_i32(start.weight_zero.as_ptr().add(n + at), lanes) };
            unroll!(M < MR, {
                // SAFETY: the caller's promise on the row terms; element [M][V] of the array was written above.
                unsafe {
                    let at = acc.add(M * NV + V);
                    at.write(simd.add_i32(at.read(), simd.mul_i32(zero, simd.splat_i32(*start.row_terms.get_unchecked(m + M)))));
                }
            });
        }
    });
    // SAFETY: every element was written.
    unsafe { acc.assume_init() }
}

/// The arms that turn `mr` and `nv` into const generics, in an instruction set's [`Simd::product_tile`].
macro_rules! tile_arms {
    ($simd:expr, $tile:ident, $args:expr, $mr:expr, $nv:expr, $rows:tt, [$($v:literal)*]) => {
        match $nv {
            $($v => tile_arms!(@rows $simd, $tile, $args, $mr, $v, $rows),)*
            nv => unreachable!("the drivers split columns into panels: {nv} vectors"),
        }
    };
    (@rows $simd:expr, $tile:ident, $args:expr, $mr:expr, $v:literal, [$($m:literal)*]) => {
        match $mr {
            // SAFETY: the caller's promise is the tile's.
            $($m => $simd.vectorize(#[inline(always)] || unsafe { $tile::<_, _, _, $m, $v>($simd, $args) }),)*
            mr => unreachable!("the drivers split rows into tiles: {mr} rows"),
        }
    };
}
pub(super) use {tile_arms, unroll};
