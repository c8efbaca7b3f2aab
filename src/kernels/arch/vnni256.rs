//! VNNI in 256 bits: `vpdpbusd` over eight lanes, in the VEX form of AVX-VNNI (client processors without AVX-512) or in the EVEX form
//! of AVX-512 VL with VNNI. The two differ in their encoding alone, so the tile that runs on the one is tested on the other.

use std::arch::x86_64::*;

use super::lanes256::{LANES, low_bytes, mask, memory_ops, pairs_of_256_bits, simd_of_256_bits, store_codes};
use super::register_ops;
use crate::kernels::dot::Dot;
use crate::kernels::lowbit::SignedDot;
use crate::kernels::output::Store;
use crate::kernels::pairs::{Pairs, pair_dot};
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms};

/// The instruction in one of its encodings.
macro_rules! vnni_of_256_bits {
    ($module:ident, $token:ident, $features:literal, $dot:ident, $pairs:literal, $what:literal, |$detect:ident| $detected:expr) => {
        mod $module {
            use super::*;

            #[doc = $what]
            #[derive(Debug, Clone, Copy)]
            pub struct $token(());

            impl $token {
                pub fn detect() -> Option<Self> {
                    ($detected && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some($token(()))
                }
            }

            // 6 x 2 sums, two vectors of weights and a word are 15 of 16 registers.
            simd_of_256_bits!($token, features: $features, rows: 6 to 6 [1 2 3 4 5 6]);

            /// Codes as they are, four to a word.
            #[derive(Debug, Clone, Copy)]
            pub struct Int8;

            // SAFETY: u8 and i8 are valid for every bit pattern, and four u8 are 4 bytes.
            unsafe impl Dot<$token> for Int8 {
                const KU: usize = 4;
                type Lhs = u8;

                integer_dot!($token, __m256i);

                #[inline(always)]
                unsafe fn word(_: $token, p: *const u8) -> __m256i {
                    // SAFETY: 4 bytes at `p`, by the caller's promise.
                    unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
                }

                #[inline(always)]
                unsafe fn weights(_: $token, p: *const i8) -> __m256i {
                    // SAFETY: 32 weights at `p`, by the caller's promise.
                    unsafe { _mm256_loadu_si256(p.cast()) }
                }

                #[inline(always)]
                fn dot(_: $token, acc: __m256i, word: __m256i, weights: __m256i) -> __m256i {
                    // SAFETY: the token exists only where the instruction does, and only registers are touched.
                    unsafe { $dot(acc, word, weights) }
                }

                #[inline(always)]
                unsafe fn lane_words(_: $token, p: *const u8) -> __m256i {
                    // SAFETY: 8 activations at `p`, by the caller's promise.
                    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
                }

                #[inline(always)]
                unsafe fn lane_weights(_: $token, p: *const i8) -> __m256i {
                    // The sign fills the upper three bytes, which meet the zero upper bytes of the activation.
                    // SAFETY: 8 weights at `p`, by the caller's promise.
                    unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
                }
            }

            impl SignedDot<$token> for Int8 {
                #[inline(always)]
                fn signed_dot<const WIDE: bool>(_: $token, acc: __m256i, codes: __m256i, word: __m256i) -> __m256i {
                    // SAFETY: the token exists only where the instruction does, and only registers are touched.
                    unsafe { $dot(acc, codes, word) }
                }
            }

            pairs_of_256_bits!(
                $token,
                |acc, word, weights| dot_of_pairs(acc, word, weights),
                split: true,
                |p: u8| {
                    let codes = _mm256_loadu_si256(p.cast());
                    [_mm256_and_si256(codes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(codes)]
                },
                |p, _step| {
                    let codes = _mm256_loadu_si256(p.cast());
                    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(codes)), _mm256_srai_epi16::<8>(codes)]
                }
            );

            /// `vpdpwssd`: two products added to each lane. Not the intrinsic: see `avx512_vnni`.
            #[inline]
            #[target_feature(enable = $features)]
            fn dot_of_pairs(mut acc: __m256i, word: __m256i, weights: __m256i) -> __m256i {
                // SAFETY: the instruction is there, and touches registers alone.
                unsafe {
                    std::arch::asm!(
                        $pairs,
                        acc = inout(ymm_reg) acc,
                        word = in(ymm_reg) word,
                        weights = in(ymm_reg) weights,
                        options(pure, nomem, nostack, preserves_flags)
                    )
                }
                acc
            }
        }
        pub use $module::$token;
    };
}

vnni_of_256_bits!(
    vex,
    AvxVnni,
    "avx2,fma,avxvnni",
    _mm256_dpbusd_avx_epi32,
    "{{vex}} vpdpwssd {acc}, {word}, {weights}",
    "Exists only where AVX2, FMA and AVX-VNNI do.",
    |d| { is_x86_feature_detected!("avxvnni") }
);
vnni_of_256_bits!(
    evex,
    Vnni256,
    "avx2,fma,avx512vl,avx512vnni",
    _mm256_dpbusd_epi32,
    "vpdpwssd {acc}, {word}, {weights}",
    "Exists only where AVX2, FMA, AVX-512 VL and VNNI do.",
    |d| { is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni") }
);
