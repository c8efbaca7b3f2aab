//! AVX-512 without VNNI: sixteen lanes. Activations are 16 bits wide in the workspace, so that `vpmaddwd` sums two exact products;
//! `vpmaddubsw` would saturate (255 * 127 * 2 > 32767).

use std::arch::x86_64::*;

use super::codes512::{store_codes, store_interleaved_codes, store_whole_steps};
use super::lanes512::{LANES, mask, memory_ops, pairs_of_512_bits, signed_dot_by_pairs, simd_of_512_bits, transpose};
use super::register_ops;
use crate::kernels::dot::Dot;
use crate::kernels::few_words::{few_words, few_words_arms};
use crate::kernels::lowbit::SignedDot;
use crate::kernels::matrix_unit::NoMatrixUnit;
use crate::kernels::output::Store;
use crate::kernels::pairs::{Pairs, pair_dot};
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms};

/// Exists only where AVX-512 F, BW, DQ and VL do.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Avx512(()))
    }
}

// As with VNNI, and one register for a product before it is added.
simd_of_512_bits!(Avx512, features: "avx512f,avx512bw,avx512dq,avx512vl", rows: 12 to 12 [1 2 3 4 5 6 7 8 9 10 11 12], matrix: NoMatrixUnit, |_token| None);

/// Codes widened to 16 bits in the workspace, weights on load: two to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: i16 and i8 are valid for every bit pattern, and two i16 are 4 bytes.
unsafe impl Dot<Avx512> for Int8 {
    const KU: usize = 2;
    type Lhs = i16;

    integer_dot!(Avx512, __m512i);

    #[inline(always)]
    unsafe fn word(_: Avx512, p: *const i16) -> __m512i {
        // SAFETY: 4 bytes at `p`, by the caller's promise.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(_: Avx512, p: *const i8) -> __m512i {
        // SAFETY: 32 weights at `p`, by the caller's promise.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    fn dot(_: Avx512, acc: __m512i, word: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: the token exists only where AVX-512 BW does, and only registers are touched.
        unsafe { _mm512_add_epi32(acc, _mm512_madd_epi16(word, weights)) }
    }

    #[inline(always)]
    unsafe fn lane_words(_: Avx512, p: *const i16) -> __m512i {
        // SAFETY: 16 activations of 2 bytes at `p`, by the caller's promise.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn lane_weights(_: Avx512, p: *const i8) -> __m512i {
        // The sign fills the upper 16 bits, which meet the zero upper half of the activation.
        // SAFETY: 16 weights at `p`, by the caller's promise.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
}

impl SignedDot<Avx512> for Int8 {
    #[inline(always)]
    fn signed_dot<const WIDE: bool>(_: Avx512, acc: __m512i, codes: __m512i, word: __m512i) -> __m512i {
        // SAFETY: the token exists only where AVX-512 F and BW do.
        unsafe { signed_dot_by_pairs::<WIDE>(acc, codes, word) }
    }
}

pairs_of_512_bits!(
    Avx512,
    |acc, word, weights| _mm512_add_epi32(acc, _mm512_madd_epi16(word, weights)),
    split: false,
    |p: i16| [_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(32).cast())],
    |p, step| [_mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())), _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.add(step).cast()))]
);
