//! NEON alone: four lanes. Activations are 16 bits wide in the workspace and weights are widened on load, so that `smlal` adds exact
//! products to 32-bit sums; `smull` of bytes with pairwise sums does no more of them in an instruction, and needs activations below 128.

use std::arch::aarch64::*;

use super::lanes128::{
    self, LANES, each_row, each_vector, first_lanes, four_signed, four_unsigned, low_bytes, memory_ops, simd_of_128_bits, store_codes,
};
use super::register_ops;
use crate::kernels::dot::Dot;
use crate::kernels::lowbit::SignedDot;
use crate::kernels::output::Store;
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms, unroll};

/// Exists only where NEON does.
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        lanes128::detect().then_some(Neon(()))
    }

    /// The baseline has nothing to enable; a function of its own for each tile keeps them from becoming one large one.
    #[inline(never)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

// 5 x 4 sums, five words and two vectors of widened weights: with a sixth row there would be 32, and the compiler wants one to spare.
simd_of_128_bits!(Neon, rows: 5 [1 2 3 4 5]);

/// Codes widened to 16 bits in the workspace, weights on load: one to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: i16 and i8 are valid for every bit pattern, and an i16 is 2 bytes.
unsafe impl Dot<Neon> for Int8 {
    const KU: usize = 1;
    type Lhs = i16;

    integer_dot!(Neon, int32x4_t, words: int16x4_t, weights: int16x4_t);

    #[inline(always)]
    unsafe fn word(_: Neon, p: *const i16) -> int16x4_t {
        // SAFETY: 2 bytes at `p`, by the caller's promise.
        unsafe { vdup_n_s16(p.read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(_: Neon, p: *const i8) -> int16x4_t {
        // SAFETY: 4 weights at `p`, by the caller's promise.
        unsafe { vget_low_s16(four_signed(p)) }
    }

    #[inline(always)]
    fn dot(_: Neon, acc: int32x4_t, word: int16x4_t, weights: int16x4_t) -> int32x4_t {
        // SAFETY: the token exists only where NEON does, and only registers are touched.
        unsafe { vmlal_s16(acc, word, weights) }
    }

    /// Four words of each row at a time: they fill half a register, of which `smlal` broadcasts any by itself.
    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        simd: Neon,
        acc: &mut [[int32x4_t; NV]; MR],
        rows: &[*const i16; MR],
        count: usize,
        mut weights: *const i8,
    ) {
        let vectors = NV * LANES;
        let mut k = 0;
        // SAFETY: the token exists only where NEON does.
        let mut words = [unsafe { vdup_n_s16(0) }; MR];
        while k + 4 <= count {
            // SAFETY: four more words are in each row, and as many times NV vectors in the weights.
            unsafe {
                each_row!(M < MR, words[M] = vld1_s16(rows[M].add(k)));
                step::<0, MR, NV>(acc, &words, weights);
                step::<1, MR, NV>(acc, &words, weights.add(vectors));
                step::<2, MR, NV>(acc, &words, weights.add(2 * vectors));
                step::<3, MR, NV>(acc, &words, weights.add(3 * vectors));
                weights = weights.add(4 * vectors);
            }
            k += 4;
        }
        while k < count {
            // SAFETY: one more word is in each row, and NV vectors in the weights.
            unsafe {
                each_row!(M < MR, words[M] = Self::word(simd, rows[M].add(k)));
                step::<0, MR, NV>(acc, &words, weights);
                weights = weights.add(vectors);
            }
            k += 1;
        }
    }

    #[inline(always)]
    unsafe fn lane_words(_: Neon, p: *const i16) -> int16x4_t {
        // SAFETY: 4 activations of 2 bytes at `p`, by the caller's promise.
        unsafe { vld1_s16(p) }
    }

    #[inline(always)]
    unsafe fn lane_weights(simd: Neon, p: *const i8) -> int16x4_t {
        // SAFETY: the caller's promise, 4 weights at `p`.
        unsafe { Self::weights(simd, p) }
    }
}

/// One word of each row, element `WORD` of `words[m]`.
///
/// # Safety
/// `NV` vectors are at `weights`, and NEON is there.
#[inline(always)]
unsafe fn step<const WORD: i32, const MR: usize, const NV: usize>(
    acc: &mut [[int32x4_t; NV]; MR],
    words: &[int16x4_t; MR],
    weights: *const i8,
) {
    // SAFETY: vectors below NV, two at a time and an odd last one.
    unsafe {
        each_vector!(V < NV / 2, {
            let w = vmovl_s8(vld1_s8(weights.add(2 * V * LANES)));
            each_row!(M < MR, {
                acc[M][2 * V] = vmlal_lane_s16::<WORD>(acc[M][2 * V], vget_low_s16(w), words[M]);
                acc[M][2 * V + 1] = vmlal_high_lane_s16::<WORD>(acc[M][2 * V + 1], w, words[M]);
            });
        });
        if NV % 2 == 1 {
            let w = vget_low_s16(four_signed(weights.add((NV - 1) * LANES)));
            each_row!(M < MR, acc[M][NV - 1] = vmlal_lane_s16::<WORD>(acc[M][NV - 1], w, words[M]));
        }
    }
}

impl SignedDot<Neon> for Int8 {}
