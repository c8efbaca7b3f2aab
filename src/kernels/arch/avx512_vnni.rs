//! AVX-512 with VNNI: `vpdpbusd` sums four products of unsigned activations and signed weights per lane.

use std::arch::x86_64::*;

use super::codes512::{store_codes, store_interleaved_codes, store_whole_steps};
use super::lanes512::{LANES, mask, memory_ops, pairs_of_512_bits, simd_of_512_bits, transpose};
use super::{AmxUnit, register_ops};
use crate::kernels::dot::Dot;
use crate::kernels::few_words::{few_words, few_words_arms};
use crate::kernels::lowbit::SignedDot;
use crate::kernels::output::Store;
use crate::kernels::pairs::{Pairs, pair_dot};
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms};

/// Exists only where AVX-512 F, BW, DQ, VL and VNNI do.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Vnni(Option<AmxUnit>);

impl Avx512Vnni {
    pub fn detect() -> Option<Self> {
        (super::Avx512::detect().is_some() && is_x86_feature_detected!("avx512vnni")).then_some(Avx512Vnni(None))
    }

    /// The same beside a matrix unit.
    pub(super) fn with_unit(self, unit: AmxUnit) -> Self {
        Avx512Vnni(Some(unit))
    }
}

// 12 x 2 sums, two vectors of weights and a word are 27 of 32 registers, twelve row pointers and three more 15 of 16.
simd_of_512_bits!(Avx512Vnni, features: "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", rows: 12 to 14 [1 2 3 4 5 6 7 8 9 10 11 12 13 14], matrix: AmxUnit, |token| token.0);

/// Codes as they are, four to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: u8 and i8 are valid for every bit pattern, and four u8 are 4 bytes.
unsafe impl Dot<Avx512Vnni> for Int8 {
    const KU: usize = 4;
    type Lhs = u8;

    integer_dot!(Avx512Vnni, __m512i);

    #[inline(always)]
    unsafe fn word(_: Avx512Vnni, p: *const u8) -> __m512i {
        // SAFETY: 4 bytes at `p`, by the caller's promise.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(_: Avx512Vnni, p: *const i8) -> __m512i {
        // SAFETY: 64 weights at `p`, by the caller's promise.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    fn dot(_: Avx512Vnni, acc: __m512i, word: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: the token exists only where VNNI does, and only registers are touched.
        unsafe { _mm512_dpbusd_epi32(acc, word, weights) }
    }

    const MATRIX: bool = true;

    #[inline(always)]
    unsafe fn matrix_sums(_: Avx512Vnni, p: *const i32) -> __m512i {
        // SAFETY: 16 aligned sums at `p`, by the caller's promise.
        unsafe { _mm512_load_si512(p.cast()) }
    }

    const GROUPS: bool = true;
    const QUADS: bool = true;

    #[inline(always)]
    unsafe fn interleave<const N: usize>(_: Avx512Vnni, taps: [*const u8; N]) -> [__m512i; 4] {
        // SAFETY: 64 activations at each tap, by the caller's promise.
        unsafe {
            let mut t = [_mm512_setzero_si512(); 4];
            for i in 0..N {
                t[i] = _mm512_loadu_si512(taps[i].cast());
            }
            interleaved::<N>(t)
        }
    }

    #[inline(always)]
    fn same_taps(_: Avx512Vnni, tap: u8) -> __m512i {
        // SAFETY: the token exists only where AVX-512 F does, and only registers are touched.
        unsafe { _mm512_set1_epi32(i32::from_le_bytes([tap, tap, tap, 0])) }
    }

    #[inline(always)]
    unsafe fn interleave_two<const N: usize>(_: Avx512Vnni, taps: [*const u8; N], apart: usize) -> [__m512i; 4] {
        // SAFETY: 32 activations at each tap, and as many `apart`, by the caller's promise.
        unsafe {
            let mut t = [_mm512_setzero_si512(); 4];
            for i in 0..N {
                let first = _mm512_castsi256_si512(_mm256_loadu_si256(taps[i].cast()));
                t[i] = _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(taps[i].add(apart).cast()));
            }
            interleaved::<N>(t)
        }
    }

    #[inline(always)]
    fn halves(_: Avx512Vnni, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token exists only where AVX-512 F does, and only registers are touched.
        unsafe { _mm512_alignr_epi64::<4>(b, a) }
    }

    #[inline(always)]
    unsafe fn words(_: Avx512Vnni, p: *const u8) -> __m512i {
        // SAFETY: 64 activations at `p`, by the caller's promise.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    fn turn(_: Avx512Vnni, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: the token exists only where AVX-512 F does, and only registers are touched.
        unsafe {
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab_low, cd_low),
                _mm512_unpackhi_epi64(ab_low, cd_low),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn group_words(_: Avx512Vnni, p: *const u8, index: __m512i) -> __m512i {
        // SAFETY: 64 activations, by the caller's promise.
        unsafe { _mm512_permutexvar_epi32(index, _mm512_loadu_si512(p.cast())) }
    }

    #[inline(always)]
    unsafe fn lane_words(_: Avx512Vnni, p: *const u8) -> __m512i {
        // SAFETY: 16 activations at `p`, by the caller's promise.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn lane_weights(_: Avx512Vnni, p: *const i8) -> __m512i {
        // The sign fills the upper three bytes, which meet the zero upper bytes of the activation.
        // SAFETY: 16 weights at `p`, by the caller's promise.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
}

impl SignedDot<Avx512Vnni> for Int8 {
    #[inline(always)]
    fn signed_dot<const WIDE: bool>(_: Avx512Vnni, acc: __m512i, codes: __m512i, word: __m512i) -> __m512i {
        // SAFETY: the token exists only where VNNI does, and only registers are touched.
        unsafe { _mm512_dpbusd_epi32(acc, codes, word) }
    }
}

pairs_of_512_bits!(
    Avx512Vnni,
    |acc, word, weights| dot_of_pairs(acc, word, weights),
    split: true,
    |p: u8| {
        let codes = _mm512_loadu_si512(p.cast());
        [_mm512_and_si512(codes, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(codes)]
    },
    |p, _step| {
        let codes = _mm512_loadu_si512(p.cast());
        [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(codes)), _mm512_srai_epi16::<8>(codes)]
    }
);

/// `vpdpwssd`: two products added to each lane. Of the intrinsic the compiler makes a product and an addition, which is as good on the
/// processors that it has in mind, and takes a third longer on Zen 4.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_of_pairs(mut acc: __m512i, word: __m512i, weights: __m512i) -> __m512i {
    // SAFETY: the instruction is there, and touches registers alone.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {acc}, {word}, {weights}",
            acc = inout(zmm_reg) acc,
            word = in(zmm_reg) word,
            weights = in(zmm_reg) weights,
            options(pure, nomem, nostack, preserves_flags)
        )
    }
    acc
}

/// Bytes of four vectors into words, within 128 bits; those after the first `N` are zeros.
///
/// # Safety
/// AVX-512 BW is there.
#[inline(always)]
unsafe fn interleaved<const N: usize>(t: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: registers alone.
    unsafe {
        let none = _mm512_setzero_si512();
        let (low01, high01) = (_mm512_unpacklo_epi8(t[0], t[1]), _mm512_unpackhi_epi8(t[0], t[1]));
        let (low23, high23) = if N > 2 { (_mm512_unpacklo_epi8(t[2], t[3]), _mm512_unpackhi_epi8(t[2], t[3])) } else { (none, none) };
        [
            _mm512_unpacklo_epi16(low01, low23),
            _mm512_unpackhi_epi16(low01, low23),
            _mm512_unpacklo_epi16(high01, high23),
            _mm512_unpackhi_epi16(high01, high23),
        ]
    }
}
