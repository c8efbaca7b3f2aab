//! AVX2 and FMA: eight lanes. Activations are 16 bits wide in the workspace, so that `vpmaddwd` sums two exact products;
//! `vpmaddubsw` would saturate (255 * 127 * 2 > 32767) and gains nothing on processors with two multiplier ports.

use std::arch::x86_64::*;

use super::lanes256::{LANES, low_bytes, mask, memory_ops, pairs_of_256_bits, simd_of_256_bits, store_codes};
use super::register_ops;
use crate::kernels::dot::Dot;
use crate::kernels::lowbit::SignedDot;
use crate::kernels::output::Store;
use crate::kernels::pairs::{Pairs, pair_dot};
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms};

/// Exists only where AVX2 and FMA do.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

// 6 x 2 sums, two vectors of weights, a word and a product are all 16 registers.
simd_of_256_bits!(Avx2, features: "avx2,fma", rows: 6 to 6 [1 2 3 4 5 6]);

/// Codes widened to 16 bits in the workspace, weights on load: two to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: i16 and i8 are valid for every bit pattern, and two i16 are 4 bytes.
unsafe impl Dot<Avx2> for Int8 {
    const KU: usize = 2;
    type Lhs = i16;

    integer_dot!(Avx2, __m256i);

    #[inline(always)]
    unsafe fn word(_: Avx2, p: *const i16) -> __m256i {
        // SAFETY: 4 bytes at `p`, by the caller's promise.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(_: Avx2, p: *const i8) -> __m256i {
        // SAFETY: 16 weights at `p`, by the caller's promise.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    fn dot(_: Avx2, acc: __m256i, word: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the token exists only where AVX2 does, and only registers are touched.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(word, weights)) }
    }

    #[inline(always)]
    unsafe fn lane_words(_: Avx2, p: *const i16) -> __m256i {
        // SAFETY: 8 activations of 2 bytes at `p`, by the caller's promise.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn lane_weights(_: Avx2, p: *const i8) -> __m256i {
        // The sign fills the upper 16 bits, which meet the zero upper half of the activation.
        // SAFETY: 8 weights at `p`, by the caller's promise.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }
}

impl SignedDot<Avx2> for Int8 {
    /// By pairs: `vpmaddubsw` is exact for codes below 16 and activations of 7 bits and sign; larger codes are taken one of a pair at a
    /// time, which is exact too, as 255 * 127 is below 2^15.
    #[inline(always)]
    fn signed_dot<const WIDE: bool>(_: Avx2, acc: __m256i, codes: __m256i, word: __m256i) -> __m256i {
        // SAFETY: the token exists only where AVX2 does, and only registers are touched.
        unsafe {
            let pairs = |codes| _mm256_madd_epi16(_mm256_maddubs_epi16(codes, word), _mm256_set1_epi16(1));
            if !WIDE {
                return _mm256_add_epi32(acc, pairs(codes));
            }
            let first = _mm256_set1_epi16(0xff);
            let (first, second) = (_mm256_and_si256(codes, first), _mm256_andnot_si256(first, codes));
            _mm256_add_epi32(acc, _mm256_add_epi32(pairs(first), pairs(second)))
        }
    }
}

pairs_of_256_bits!(
    Avx2,
    |acc, word, weights| _mm256_add_epi32(acc, _mm256_madd_epi16(word, weights)),
    split: false,
    |p: i16| [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())],
    |p, step| [_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())), _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(step).cast()))]
);
