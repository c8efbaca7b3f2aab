//! NEON with the matrix instructions for bytes: `usmmla` multiplies two rows of eight unsigned activations by two columns of eight
//! signed weights and adds the four sums to a vector, twice the products of `sdot`.

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

/// Exists only where NEON and the matrix instructions for bytes do.
#[derive(Debug, Clone, Copy)]
pub struct NeonI8mm(());

/// An instruction that adds products of unsigned activations and signed weights. In assembly, as the intrinsics are not stable. It
/// names its extension itself, since assembly is checked where it ends up, which need not be inside `enter` when nothing is optimized.
macro_rules! product_instruction {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[inline(always)]
        fn $name(self, mut acc: int32x4_t, words: uint8x16_t, weights: int8x16_t) -> int32x4_t {
            // SAFETY: `self` exists only where the instruction does, and only registers are touched.
            unsafe {
                asm!(
                    ".arch_extension i8mm",
                    concat!(stringify!($name), " {acc:v}.4s, {words:v}.16b, {weights:v}.16b"),
                    acc = inout(vreg) acc,
                    words = in(vreg) words,
                    weights = in(vreg) weights,
                    options(pure, nomem, nostack, preserves_flags)
                )
            }
            acc
        }
    };
}

impl NeonI8mm {
    pub fn detect() -> Option<Self> {
        (lanes128::detect() && std::arch::is_aarch64_feature_detected!("i8mm")).then_some(NeonI8mm(()))
    }

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "i8mm")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` exists only where the instructions do.
        unsafe { run(f) }
    }

    product_instruction! {
        /// `acc[2 * i + j] + sum over x < 8 of words[8 * i + x] * weights[8 * j + x]`.
        usmmla
    }

    product_instruction! {
        /// `acc[i] + sum over x < 4 of words[4 * i + x] * weights[4 * i + x]`.
        usdot
    }

    /// `a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]`.
    #[inline(always)]
    fn add_pairs(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: `self` exists only where NEON does, and only registers are touched.
        unsafe { vpaddq_s32(a, b) }
    }
}

// 3 x 4 x 2 blocks of sums, three pairs of words and two vectors of weights are 29 of 32 registers.
simd_of_128_bits!(NeonI8mm, rows: 6 [1 2 3 4 5 6]);

/// Two vectors in halves: the lower ones and the upper ones. Of two rows of sums it makes blocks of two rows and two columns, and of
/// these the rows again.
#[inline(always)]
fn halves(a: int32x4_t, b: int32x4_t) -> (int32x4_t, int32x4_t) {
    // SAFETY: registers alone; only called where NEON exists.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        (vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b)))
    }
}

/// Codes as they are, eight to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: u8 and i8 are valid for every bit pattern, and eight u8 are 8 bytes.
unsafe impl Dot<NeonI8mm> for Int8 {
    const KU: usize = 8;
    type Lhs = u8;

    // Weights of four columns are two vectors.
    integer_dot!(NeonI8mm, int32x4_t, words: uint8x16_t, weights: [int8x16_t; 2]);

    #[inline(always)]
    unsafe fn word(_: NeonI8mm, p: *const u8) -> uint8x16_t {
        // SAFETY: 8 bytes at `p`, by the caller's promise.
        unsafe { vreinterpretq_u8_u64(vdupq_n_u64(p.cast::<u64>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn weights(_: NeonI8mm, p: *const i8) -> [int8x16_t; 2] {
        // SAFETY: 32 weights at `p`, by the caller's promise.
        unsafe { [vld1q_s8(p), vld1q_s8(p.add(16))] }
    }

    #[inline(always)]
    fn dot(simd: NeonI8mm, acc: int32x4_t, word: uint8x16_t, weights: [int8x16_t; 2]) -> int32x4_t {
        let zero = simd.splat_i32(0);
        simd.add_i32(acc, simd.add_pairs(simd.usdot(zero, word, weights[0]), simd.usdot(zero, word, weights[1])))
    }

    /// Rows in pairs by `usmmla`, which would waste half of itself on an odd last one: that one has `usdot`, whose sums of half words
    /// are added at the end.
    #[inline(always)]
    unsafe fn accumulate<const MR: usize, const NV: usize>(
        simd: NeonI8mm,
        acc: &mut [[int32x4_t; NV]; MR],
        rows: &[*const u8; MR],
        words: usize,
        mut weights: *const i8,
    ) {
        let mut last = [[simd.splat_i32(0); 2]; NV];
        each_vector!(V < NV, {
            each_row!(P < MR / 2, (acc[2 * P][V], acc[2 * P + 1][V]) = halves(acc[2 * P][V], acc[2 * P + 1][V]));
        });
        for k in 0..words {
            // SAFETY: word `k` is in each row, and NV vectors in the weights.
            unsafe {
                let mut pairs = [vdupq_n_u8(0); MR];
                each_row!(P < MR / 2, {
                    pairs[P] = vcombine_u8(vld1_u8(rows[2 * P].add(8 * k)), vld1_u8(rows[2 * P + 1].add(8 * k)));
                });
                if MR % 2 == 1 {
                    pairs[MR - 1] = Self::word(simd, rows[MR - 1].add(8 * k));
                }
                each_vector!(V < NV, {
                    let w = Self::weights(simd, weights.add(8 * V * LANES));
                    each_row!(P < MR / 2, {
                        acc[2 * P][V] = simd.usmmla(acc[2 * P][V], pairs[P], w[0]);
                        acc[2 * P + 1][V] = simd.usmmla(acc[2 * P + 1][V], pairs[P], w[1]);
                    });
                    if MR % 2 == 1 {
                        last[V][0] = simd.usdot(last[V][0], pairs[MR - 1], w[0]);
                        last[V][1] = simd.usdot(last[V][1], pairs[MR - 1], w[1]);
                    }
                });
                weights = weights.add(8 * NV * LANES);
            }
        }
        each_vector!(V < NV, {
            each_row!(P < MR / 2, (acc[2 * P][V], acc[2 * P + 1][V]) = halves(acc[2 * P][V], acc[2 * P + 1][V]));
            if MR % 2 == 1 {
                acc[MR - 1][V] = simd.add_i32(acc[MR - 1][V], simd.add_pairs(last[V][0], last[V][1]));
            }
        });
    }

    /// As 16-bit integers in the lower half.
    #[inline(always)]
    unsafe fn lane_words(_: NeonI8mm, p: *const u8) -> uint8x16_t {
        // SAFETY: 4 activations at `p`, by the caller's promise.
        unsafe { vreinterpretq_u8_s16(four_unsigned(p)) }
    }

    /// As 16-bit integers in the lower half of the first vector.
    #[inline(always)]
    unsafe fn lane_weights(_: NeonI8mm, p: *const i8) -> [int8x16_t; 2] {
        // SAFETY: 4 weights at `p`, by the caller's promise.
        unsafe { [vreinterpretq_s8_s16(four_signed(p)), vdupq_n_s8(0)] }
    }

    #[inline(always)]
    fn lane_dot(_: NeonI8mm, acc: int32x4_t, words: uint8x16_t, weights: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: the token exists only where NEON does, and only registers are touched.
        unsafe { vmlal_s16(acc, vget_low_s16(vreinterpretq_s16_u8(words)), vget_low_s16(vreinterpretq_s16_s8(weights[0]))) }
    }
}

impl SignedDot<NeonI8mm> for Int8 {}
