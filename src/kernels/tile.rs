//! The tile: `mr` rows times a panel of columns, summed in registers and handed to the output stage. Written once.

use super::output::Store;
use super::simd::{Dot, Simd};

/// `body` for each constant `i` below `n`, at most [`ROWS`]. A loop would do the same, but the compiler keeps an array in registers
/// only when every index is a constant, and it gives up unrolling when the body is as long as an output stage: then each
/// step of k loads and stores its accumulators.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:expr) => { unroll!(@ $i $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13) };
    (@ $i:ident $n:expr, $body:expr, $($at:literal)*) => {
        $(if $at < $n {
            const $i: usize = $at;
            $body
        })*
    };
}

/// Most rows that any instruction set takes in one tile.
pub const ROWS: usize = 14;

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

impl Zero<'_> {
    /// The zero point of row (or image) `row`.
    pub fn get(&self, row: usize) -> i32 {
        match self {
            Zero::Tensor(z) => *z,
            Zero::Row(zero_points) => zero_points[row],
        }
    }
}

/// The arguments of one product tile.
pub struct Tile<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub lhs: *const D::Lhs,
    /// Where each row starts, in elements after `lhs`.
    pub offsets: &'a [usize; ROWS],
    /// Which zero point and scale each row has.
    pub params: &'a [usize; ROWS],
    pub segments: &'a [Segment],
    /// The panel: `[words][nv * LANES][KU]`.
    pub weights: *const D::Weight,
    pub zero: Zero<'a>,
    /// Sums of this panel's columns.
    pub col_sums: *const i32,
    pub store: T,
    /// First column.
    pub n: usize,
    /// Columns in the panel.
    pub columns: usize,
    /// Where row 0, column `n` goes.
    pub dst: *mut T::Element,
    pub dst_stride: usize,
}

/// `dst[m][n] = stage(sum over k of (lhs[m][k] - zero_point) * weight[n][k])` for `MR` rows and `NV` vectors of columns.
///
/// # Safety
/// - each of the first `MR` rows is readable at every word of every segment;
/// - `weights` holds `NV * LANES * KU` elements for each word of the segments, and `col_sums` has `columns` elements;
/// - `(NV - 1) * LANES < columns <= NV * LANES`;
/// - the first `MR` of `params` are inside `zero` and the stage's rows, columns `n..n + columns` inside its columns;
/// - `dst` is writable for `columns` elements in each of `MR` rows that lie `dst_stride` apart.
#[inline(always)]
pub unsafe fn product_tile<S: Simd, D: Dot<S>, T: Store<S, D::Acc>, const MR: usize, const NV: usize>(simd: S, tile: &Tile<'_, S, D, T>) {
    let params = std::array::from_fn(|m| tile.params[m]);
    // SAFETY: the caller's promise on `zero`, `params` and `col_sums`.
    let mut acc: [[D::Acc; NV]; MR] = unsafe { D::init(simd, tile.zero, &params, tile.col_sums, tile.columns) };
    let mut weights = tile.weights;
    for segment in tile.segments {
        // SAFETY: rows are readable at every word of every segment, the panel has NV vectors for each of those words.
        unsafe {
            let rows: [*const D::Lhs; MR] = std::array::from_fn(|m| tile.lhs.add(tile.offsets[m] + segment.offset));
            for k in 0..segment.words {
                let w: [D::Weights; NV] = std::array::from_fn(|v| D::weights(simd, weights.add(v * S::LANES * D::KU)));
                for m in 0..MR {
                    let word = D::word(simd, rows[m].add(k * D::KU));
                    for v in 0..NV {
                        acc[m][v] = D::dot(simd, acc[m][v], word, w[v]);
                    }
                }
                weights = weights.add(NV * S::LANES * D::KU);
            }
        }
    }
    // SAFETY: the caller's promise on the stage and `dst`.
    unsafe { finish(simd, tile.store, &acc, &params, tile.n, tile.columns, tile.dst, tile.dst_stride) }
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
    pub zero: Zero<'a>,
    pub col_sums: *const i32,
    pub store: T,
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
    let params = std::array::from_fn(|m| tile.params[m]);
    // SAFETY: the caller's promise on `zero`, `params` and `col_sums`.
    let mut acc: [[D::Acc; NV]; MR] = unsafe { D::init(simd, tile.zero, &params, tile.col_sums, tile.columns) };
    for (t, tap) in tile.taps.iter().enumerate() {
        // SAFETY: rows and weights are readable for NV vectors at every tap.
        unsafe {
            let weights = tile.weights.add(t * tile.channels);
            for v in 0..NV {
                let w = D::lane_weights(simd, weights.add(v * S::LANES));
                for m in 0..MR {
                    let words = D::lane_words(simd, tile.lhs.add(tile.offsets[m] + tap.offset + v * S::LANES));
                    acc[m][v] = D::dot(simd, acc[m][v], words, w);
                }
            }
        }
    }
    // SAFETY: the caller's promise on the stage and `dst`.
    unsafe { finish(simd, tile.store, &acc, &params, tile.n, tile.columns, tile.dst, tile.dst_stride) }
}

/// Hands the sums to the output stage, one column vector after the other so that its parameters stay in registers.
///
/// # Safety
/// As for [`product_tile`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish<S: Simd, A: Copy, T: Store<S, A>, const MR: usize, const NV: usize>(
    simd: S,
    store: T,
    acc: &[[A; NV]; MR],
    params: &[usize; MR],
    n: usize,
    columns: usize,
    dst: *mut T::Element,
    dst_stride: usize,
) {
    unroll!(V < NV, {
        let lanes = (columns - V * S::LANES).min(S::LANES);
        // SAFETY: columns n.. are inside the stage, and dst is writable for `columns` elements in each row.
        unsafe {
            let parameters = store.columns(simd, n + V * S::LANES, lanes);
            unroll!(M < MR, {
                store.store(simd, &parameters, params[M], acc[M][V], dst.add(M * dst_stride + V * S::LANES), lanes);
            });
        }
    });
}

/// [`Dot::init`] for integers: `-zero_point * col_sum`.
///
/// # Safety
/// `col_sums` has `columns` elements, `(NV - 1) * LANES < columns <= NV * LANES`, `params` are inside `zero`.
#[inline(always)]
pub unsafe fn init_integers<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    zero: Zero<'_>,
    params: &[usize; MR],
    col_sums: *const i32,
    columns: usize,
) -> [[S::I32; NV]; MR] {
    let mut acc = [[simd.splat_i32(0); NV]; MR];
    for v in 0..NV {
        // SAFETY: at least one and at most LANES columns from v * LANES on are inside `col_sums`.
        let sums = unsafe { simd.load_i32(col_sums.add(v * S::LANES), (columns - v * S::LANES).min(S::LANES)) };
        match zero {
            Zero::Tensor(z) => {
                let first = simd.mul_i32(sums, simd.splat_i32(-z));
                (0..MR).for_each(|m| acc[m][v] = first);
            }
            Zero::Row(zero_points) => {
                for m in 0..MR {
                    // SAFETY: the caller's promise on `params`.
                    let z = unsafe { *zero_points.get_unchecked(params[m]) };
                    acc[m][v] = simd.mul_i32(sums, simd.splat_i32(-z));
                }
            }
        }
    }
    acc
}

/// The arms that turn `mr` and `nv` into const generics, in an instruction set's [`Simd::product_tile`].
macro_rules! tile_arms {
    ($simd:expr, $tile:ident, $args:expr, $mr:expr, $nv:expr, [$($m:literal)*]) => {
        match ($nv, $mr) {
            // SAFETY: the caller's promise is the tile's.
            $((1, $m) => $simd.vectorize(#[inline(always)] || unsafe { $tile::<_, _, _, $m, 1>($simd, $args) }),
              // SAFETY: as above.
              (2, $m) => $simd.vectorize(#[inline(always)] || unsafe { $tile::<_, _, _, $m, 2>($simd, $args) }),)*
            (nv, mr) => unreachable!("the drivers split rows by MR and columns by two vectors: {mr} rows, {nv} vectors"),
        }
    };
}
pub(super) use tile_arms;
