//! How activations meet weights: the one thing that differs between instruction sets in a tile.

use super::simd::{Element, Simd};
use super::tile::Start;

/// A product of activations and weights. Activations are read as words of `KU` elements, the same for all lanes;
/// `LANES * KU` weights lie together in memory.
///
/// # Safety
/// `Lhs` and `Weight` are valid for every bit pattern, and a word has at most 8 bytes.
pub unsafe trait Dot<S: Simd>: Copy + Send + Sync + 'static {
    /// Elements of one word: steps of k that one instruction takes.
    const KU: usize;
    /// Whether sums may be taken in any order without changing the result.
    const EXACT: bool;
    /// An activation in the workspace.
    type Lhs: Element;
    /// A weight in memory.
    type Weight: Element;
    /// `LANES` sums.
    type Acc: Copy;
    /// A broadcast word.
    type Word: Copy;
    /// `LANES * KU` weights.
    type Weights: Copy;

    /// No sum yet.
    fn zero(simd: S) -> Self::Acc;
    /// The sum of two parts.
    fn add(simd: S, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// The sums that a tile starts from: those of `start`, or zero.
    ///
    /// # Safety
    /// As for [`super::tile::product_tile`]: `col_sums` has `columns` elements, `start` fits the rows, `params` and columns.
    unsafe fn start<const MR: usize, const NV: usize>(
        simd: S,
        start: &Start<'_>,
        rows: (usize, &[usize; MR]),
        col_sums: *const i32,
        columns: (usize, usize),
    ) -> [[Self::Acc; NV]; MR];
    /// The word at `p`, in every lane.
    ///
    /// # Safety
    /// `p` is valid for reads of `KU` elements; it need not be aligned.
    unsafe fn word(simd: S, p: *const Self::Lhs) -> Self::Word;
    /// `LANES * KU` weights.
    ///
    /// # Safety
    /// `p` is valid for reads of that many.
    unsafe fn weights(simd: S, p: *const Self::Weight) -> Self::Weights;
    /// `acc[lane] + sum over i < KU of word[i] * weights[lane][i]`.
    fn dot(simd: S, acc: Self::Acc, word: Self::Word, weights: Self::Weights) -> Self::Acc;

    /// `acc[m][v] += sum over the words of rows[m][k] * weights[k][v]`.
    ///
    /// # Safety
    /// Each row is readable for `words` words, `weights` for as many times `NV * LANES * KU` weights.
    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        simd: S,
        acc: &mut [[Self::Acc; NV]; MR],
        rows: &[*const Self::Lhs; MR],
        words: usize,
        weights: *const Self::Weight,
    ) {
        // SAFETY: the caller's promise.
        unsafe { accumulate_by_word::<S, Self, MR, NV>(simd, acc, rows, words, weights) }
    }

    /// Whether a matrix unit multiplies its activations, unsigned bytes, and its weights, signed ones, four to a word.
    const MATRIX: bool = false;

    /// `LANES` sums that a matrix unit made, where [`Dot::MATRIX`].
    ///
    /// # Safety
    /// `p` is valid for reads of as many, and starts a vector.
    #[inline(always)]
    unsafe fn matrix_sums(simd: S, p: *const i32) -> Self::Acc {
        let _ = (simd, p);
        unreachable!("only where MATRIX says so")
    }

    /// Whether [`Dot::group_words`] is there.
    const GROUPS: bool = false;

    /// Whether words can be made, taken and turned in fours: [`Dot::interleave`], [`Dot::interleave_two`], [`Dot::same_taps`],
    /// [`Dot::halves`], [`Dot::words`], [`Dot::turn`].
    const QUADS: bool = false;

    /// The words of four taps of a depthwise convolution over `4 * LANES` channels, of which the first `N` taps exist, in the order of
    /// [`Simd::interleave`].
    ///
    /// # Safety
    /// [`Dot::QUADS`]; the first `N` taps are readable for `4 * LANES` channels.
    #[inline(always)]
    unsafe fn interleave<const N: usize>(simd: S, taps: [*const Self::Lhs; N]) -> [Self::Word; 4] {
        let _ = (simd, taps);
        unreachable!("only where QUADS says so")
    }

    /// A word of three taps of one value, where [`Dot::QUADS`].
    fn same_taps(simd: S, tap: Self::Lhs) -> Self::Word {
        let _ = (simd, tap);
        unreachable!("only where QUADS says so")
    }

    /// [`Dot::interleave`] of `2 * LANES` channels of each tap, and of as many `apart` elements further on, in their place behind them.
    ///
    /// # Safety
    /// [`Dot::QUADS`]; the first `N` taps are readable for `2 * LANES` channels, and so is what is `apart`.
    #[inline(always)]
    unsafe fn interleave_two<const N: usize>(simd: S, taps: [*const Self::Lhs; N], apart: usize) -> [Self::Word; 4] {
        let _ = (simd, taps, apart);
        unreachable!("only where QUADS says so")
    }

    /// The second half of `a`, then the first of `b`: of words of channels that lie one after the other, those of the block in the middle.
    /// Where [`Dot::QUADS`].
    #[inline(always)]
    fn halves(simd: S, a: Self::Word, b: Self::Word) -> Self::Word {
        let _ = (simd, a, b);
        unreachable!("only where QUADS says so")
    }

    /// `acc` and four taps, as [`Dot::interleave`] gives their words: `weights` are four bytes for each channel, in the same order.
    ///
    /// # Safety
    /// There are as many words of weights as channels.
    #[inline(always)]
    unsafe fn quad(simd: S, mut acc: [Self::Acc; 4], words: [Self::Word; 4], weights: *const Self::Weight) -> [Self::Acc; 4] {
        for j in 0..4 {
            // SAFETY: the caller's promise.
            acc[j] = Self::dot(simd, acc[j], words[j], unsafe { Self::weights(simd, weights.add(j * S::LANES * Self::KU)) });
        }
        acc
    }

    /// The `LANES` words at `p`, where [`Dot::QUADS`].
    ///
    /// # Safety
    /// `p` is readable for `LANES` words.
    #[inline(always)]
    unsafe fn words(simd: S, p: *const Self::Lhs) -> Self::Word {
        let _ = (simd, p);
        unreachable!("only where QUADS says so")
    }

    /// Four vectors of sums as squares of four lanes, each turned over its diagonal, where [`Dot::QUADS`]: its own inverse.
    #[inline(always)]
    fn turn(simd: S, acc: [Self::Acc; 4]) -> [Self::Acc; 4] {
        let _ = (simd, acc);
        unreachable!("only where QUADS says so")
    }

    /// For each lane the word `index[lane]` of the `LANES` words at `p`.
    ///
    /// # Safety
    /// [`Dot::GROUPS`]; `p` is readable for `LANES` words, and each index is below `LANES`.
    #[inline(always)]
    unsafe fn group_words(simd: S, p: *const Self::Lhs, index: S::I32) -> Self::Word {
        let _ = (simd, p, index);
        unreachable!("only where GROUPS says so")
    }

    /// `LANES` activations, one per lane, as words with one element.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn lane_words(simd: S, p: *const Self::Lhs) -> Self::Word;
    /// `LANES` weights, one per lane, as the first of its `KU`.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` weights.
    unsafe fn lane_weights(simd: S, p: *const Self::Weight) -> Self::Weights;
    /// `acc[lane] + words[lane] * weights[lane]`, of [`Dot::lane_words`] and [`Dot::lane_weights`].
    #[inline(always)]
    fn lane_dot(simd: S, acc: Self::Acc, words: Self::Word, weights: Self::Weights) -> Self::Acc {
        Self::dot(simd, acc, words, weights)
    }
}

/// [`Dot::accumulate`], word after word: `NV` vectors of weights are loaded once for all rows.
///
/// Weights are read in the order of memory, which the processor foresees: asking for them 512 or 2048 bytes ahead made products of
/// one to eight rows 5 to 25 % slower on Zen 4, from the third-level cache and from memory alike.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn accumulate_by_word<S: Simd, D: Dot<S>, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[D::Acc; NV]; MR],
    rows: &[*const D::Lhs; MR],
    words: usize,
    mut weights: *const D::Weight,
) {
    let step = NV * S::LANES * D::KU;
    let mut k = 0;
    // One or two rows make two or four sums, each waiting for its last step: four sets of them keep the multipliers busy.
    if D::EXACT && MR <= 2 {
        let mut part = [[[D::zero(simd); NV]; MR]; 3];
        while k + 4 <= words {
            // SAFETY: four more words are in each row and in the weights.
            unsafe {
                step_of_k::<S, D, MR, NV>(simd, acc, rows, k, weights);
                for i in 0..3 {
                    step_of_k::<S, D, MR, NV>(simd, &mut part[i], rows, k + 1 + i, weights.add((1 + i) * step));
                }
                weights = weights.add(4 * step);
            }
            k += 4;
        }
        for m in 0..MR {
            for v in 0..NV {
                let rest = D::add(simd, D::add(simd, part[0][m][v], part[1][m][v]), part[2][m][v]);
                acc[m][v] = D::add(simd, acc[m][v], rest);
            }
        }
    }
    while k < words {
        // SAFETY: one more word is in each row and in the weights.
        unsafe {
            step_of_k::<S, D, MR, NV>(simd, acc, rows, k, weights);
            weights = weights.add(step);
        }
        k += 1;
    }
}

/// # Safety
/// Word `k` is in each row, `NV` vectors are at `weights`.
#[inline(always)]
unsafe fn step_of_k<S: Simd, D: Dot<S>, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[D::Acc; NV]; MR],
    rows: &[*const D::Lhs; MR],
    k: usize,
    weights: *const D::Weight,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut w = [D::weights(simd, weights); NV];
        for v in 1..NV {
            w[v] = D::weights(simd, weights.add(v * S::LANES * D::KU));
        }
        for m in 0..MR {
            let word = D::word(simd, rows[m].add(k * D::KU));
            for v in 0..NV {
                acc[m][v] = D::dot(simd, acc[m][v], word, w[v]);
            }
        }
    }
}

/// Products of floats, the same on every instruction set: a word is one float.
#[derive(Debug, Clone, Copy)]
pub struct Float;

// SAFETY: f32 is valid for every bit pattern, and one f32 is 4 bytes.
unsafe impl<S: Simd> Dot<S> for Float {
    const KU: usize = 1;
    const EXACT: bool = false;
    type Lhs = f32;
    type Weight = f32;
    type Acc = S::F32;
    type Word = S::F32;
    type Weights = S::F32;

    #[inline(always)]
    fn zero(simd: S) -> S::F32 {
        simd.splat_f32(0.0)
    }

    #[inline(always)]
    fn add(simd: S, a: S::F32, b: S::F32) -> S::F32 {
        simd.add_f32(a, b)
    }

    #[inline(always)]
    unsafe fn start<const MR: usize, const NV: usize>(
        simd: S,
        _: &Start<'_>,
        _: (usize, &[usize; MR]),
        _: *const i32,
        _: (usize, usize),
    ) -> [[S::F32; NV]; MR] {
        [[simd.splat_f32(0.0); NV]; MR]
    }

    #[inline(always)]
    unsafe fn word(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, one float at `p`.
        simd.splat_f32(unsafe { p.read_unaligned() })
    }

    #[inline(always)]
    unsafe fn weights(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        unsafe { simd.load_f32(p, S::LANES) }
    }

    const GROUPS: bool = S::PERMUTES;

    #[inline(always)]
    unsafe fn group_words(simd: S, p: *const f32, index: S::I32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        simd.permute_f32(unsafe { simd.load_f32(p, S::LANES) }, index)
    }

    #[inline(always)]
    fn dot(simd: S, acc: S::F32, word: S::F32, weights: S::F32) -> S::F32 {
        simd.mul_add_f32(word, weights, acc)
    }

    #[inline(always)]
    unsafe fn lane_words(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        unsafe { simd.load_f32(p, S::LANES) }
    }

    #[inline(always)]
    unsafe fn lane_weights(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        unsafe { simd.load_f32(p, S::LANES) }
    }
}
