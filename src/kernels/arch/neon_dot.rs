//! NEON with `sdot`: four products per lane and instruction. Both sides are signed, so activations are unsigned codes minus 128.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes128::{
    self, LANES, each_row, each_vector, first_lanes, four_signed, four_unsigned, low_bytes, memory_ops, simd_of_128_bits, store_codes,
};
use super::register_ops;
use crate::kernels::dot::Dot;
use crate::kernels::lowbit::SignedDot;
use crate::kernels::output::Store;
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms, unroll};

/// Exists only where NEON and the dot product instructions do.
#[derive(Debug, Clone, Copy)]
pub struct NeonDot(());

impl NeonDot {
    pub fn detect() -> Option<Self> {
        (lanes128::detect() && std::arch::is_aarch64_feature_detected!("dotprod")).then_some(NeonDot(()))
    }

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "dotprod")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` exists only where the instructions do.
        unsafe { run(f) }
    }

    /// `acc[lane] + sum over i < 4 of weights[4 * lane + i] * words[4 * WORD + i]`.
    ///
    /// In assembly, as the intrinsic is not stable. It names its extension itself, since assembly is checked where it ends up, which
    /// need not be inside `enter` when nothing is optimized.
    #[inline(always)]
    fn sdot<const WORD: usize>(self, mut acc: int32x4_t, weights: int8x16_t, words: int8x16_t) -> int32x4_t {
        // SAFETY: `self` exists only where the instruction does, and only registers are touched.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {weights:v}.16b, {words:v}.4b[{word}]",
                acc = inout(vreg) acc,
                weights = in(vreg) weights,
                words = in(vreg) words,
                word = const WORD,
                options(pure, nomem, nostack, preserves_flags)
            )
        }
        acc
    }

    /// One word of each row, element `WORD` of `words[m]`.
    ///
    /// # Safety
    /// `NV` vectors are at `weights`.
    #[inline(always)]
    unsafe fn step<const WORD: usize, const MR: usize, const NV: usize>(
        self,
        acc: &mut [[int32x4_t; NV]; MR],
        words: &[int8x16_t; MR],
        weights: *const i8,
    ) {
        each_vector!(V < NV, {
            // SAFETY: one vector of the caller's NV.
            let w = unsafe { vld1q_s8(weights.add(4 * V * LANES)) };
            each_row!(M < MR, acc[M][V] = self.sdot::<WORD>(acc[M][V], w, words[M]));
        });
    }
}

// 6 x 4 sums, six words and a vector of weights are 31 of 32 registers.
simd_of_128_bits!(NeonDot, rows: 6 [1 2 3 4 5 6]);

/// Signed codes, four to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: i8 is valid for every bit pattern, and four i8 are 4 bytes.
unsafe impl Dot<NeonDot> for Int8 {
    const KU: usize = 4;
    type Lhs = i8;

    integer_dot!(NeonDot, int32x4_t, words: int8x16_t, weights: int8x16_t);

    #[inline(always)]
    unsafe fn word(_: NeonDot, p: *const i8) -> int8x16_t {
        // SAFETY: 4 bytes at `p`, by the caller's promise.
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn weights(_: NeonDot, p: *const i8) -> int8x16_t {
        // SAFETY: 16 weights at `p`, by the caller's promise.
        unsafe { vld1q_s8(p) }
    }

    #[inline(always)]
    fn dot(simd: NeonDot, acc: int32x4_t, word: int8x16_t, weights: int8x16_t) -> int32x4_t {
        simd.sdot::<0>(acc, weights, word)
    }

    /// Four words of each row at a time: they fill a register, of which `sdot` broadcasts any word by itself.
    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        simd: NeonDot,
        acc: &mut [[int32x4_t; NV]; MR],
        rows: &[*const i8; MR],
        count: usize,
        mut weights: *const i8,
    ) {
        let vectors = 4 * NV * LANES;
        let mut k = 0;
        // SAFETY: the token exists only where NEON does.
        let mut words = [unsafe { vdupq_n_s8(0) }; MR];
        while k + 4 <= count {
            // SAFETY: four more words are in each row, and as many times NV vectors in the weights.
            unsafe {
                each_row!(M < MR, words[M] = vld1q_s8(rows[M].add(4 * k)));
                simd.step::<0, MR, NV>(acc, &words, weights);
                simd.step::<1, MR, NV>(acc, &words, weights.add(vectors));
                simd.step::<2, MR, NV>(acc, &words, weights.add(2 * vectors));
                simd.step::<3, MR, NV>(acc, &words, weights.add(3 * vectors));
                weights = weights.add(4 * vectors);
            }
            k += 4;
        }
        while k < count {
            // SAFETY: one more word is in each row, and NV vectors in the weights.
            unsafe {
                each_row!(M < MR, words[M] = Self::word(simd, rows[M].add(4 * k)));
                simd.step::<0, MR, NV>(acc, &words, weights);
                weights = weights.add(vectors);
            }
            k += 1;
        }
    }

    /// As 16-bit integers in the lower half.
    #[inline(always)]
    unsafe fn lane_words(_: NeonDot, p: *const i8) -> int8x16_t {
        // SAFETY: 4 activations at `p`, by the caller's promise.
        unsafe { vreinterpretq_s8_s16(four_signed(p)) }
    }

    /// As 16-bit integers in the lower half.
    #[inline(always)]
    unsafe fn lane_weights(_: NeonDot, p: *const i8) -> int8x16_t {
        // SAFETY: 4 weights at `p`, by the caller's promise.
        unsafe { vreinterpretq_s8_s16(four_signed(p)) }
    }

    #[inline(always)]
    fn lane_dot(_: NeonDot, acc: int32x4_t, words: int8x16_t, weights: int8x16_t) -> int32x4_t {
        // SAFETY: the token exists only where NEON does, and only registers are touched.
        unsafe { vmlal_s16(acc, vget_low_s16(vreinterpretq_s16_s8(words)), vget_low_s16(vreinterpretq_s16_s8(weights))) }
    }
}

impl SignedDot<NeonDot> for Int8 {}
