//! AVX2 and FMA: eight lanes. Activations are 16 bits wide in the workspace, so that `vpmaddwd` sums two exact products;
//! `vpmaddubsw` would saturate (255 * 127 * 2 > 32767) and gains nothing on processors with two multiplier ports.

use std::arch::x86_64::*;

use super::register_ops;
use crate::kernels::output::Store;
use crate::kernels::simd::{Dot, Simd};
use crate::kernels::tile::{LaneTile, Tile, Zero, init_integers, lane_tile, product_tile, tile_arms};

/// Exists only where AVX2 and FMA do.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

const LANES: usize = 8;

#[target_feature(enable = "avx2,fma")]
fn enter<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// All ones in the first `lanes` lanes.
#[inline(always)]
fn mask(lanes: usize) -> __m256i {
    const MASKS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(lanes <= LANES);
    // SAFETY: `lanes <= LANES`, so eight integers from `LANES - lanes` are inside the table; only called where AVX exists.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(LANES - lanes).cast()) }
}

// SAFETY: `detect` is the only constructor, and it asks the processor.
unsafe impl Simd for Avx2 {
    const LANES: usize = LANES;
    const MR: usize = 6;
    type I32 = __m256i;
    type F32 = __m256;
    type Int8 = Int8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` exists only where AVX2 and FMA do.
        unsafe { enter(f) }
    }

    unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>) {
        tile_arms!(self, product_tile, tile, mr, nv, [1 2 3 4 5 6])
    }

    unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>) {
        tile_arms!(self, lane_tile, tile, mr, nv, [1 2 3 4])
    }

    register_ops! {
        fn splat_i32(x: i32) -> __m256i = _mm256_set1_epi32(x);
        fn add_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        fn mul_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
        fn to_f32(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        fn splat_f32(x: f32) -> __m256 = _mm256_set1_ps(x);
        fn add_f32(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        fn mul_f32(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn mul_add_f32(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn max_f32(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        fn min_f32(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        fn round_i32(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32, lanes: usize) -> __m256i {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm256_loadu_si256(p.cast()) } else { _mm256_maskload_epi32(p, mask(lanes)) } }
    }

    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32, lanes: usize) -> __m256 {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm256_loadu_ps(p) } else { _mm256_maskload_ps(p, mask(lanes)) } }
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, a: __m256i, lanes: usize) {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm256_storeu_si256(p.cast(), a) } else { _mm256_maskstore_epi32(p, mask(lanes), a) } }
    }

    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, a: __m256, lanes: usize) {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm256_storeu_ps(p, a) } else { _mm256_maskstore_ps(p, mask(lanes), a) } }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, a: __m256i, lanes: usize) {
        // SAFETY: registers up to the stores, which write `lanes` bytes at `p`, by the caller's promise.
        unsafe {
            let low = _mm256_and_si256(a, _mm256_set1_epi32(0xff));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            let bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words)).to_ne_bytes();
            if lanes == LANES {
                p.cast::<[u8; LANES]>().write_unaligned(bytes);
            } else {
                p.copy_from_nonoverlapping(bytes.as_ptr(), lanes);
            }
        }
    }
}

/// Codes widened to 16 bits in the workspace, weights on load: two to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: i16 and i8 are valid for every bit pattern, and two i16 are 4 bytes.
unsafe impl Dot<Avx2> for Int8 {
    const KU: usize = 2;
    type Lhs = i16;
    type Weight = i8;
    type Acc = __m256i;
    type Word = __m256i;
    type Weights = __m256i;

    #[inline(always)]
    unsafe fn init<const MR: usize, const NV: usize>(
        simd: Avx2,
        zero: Zero<'_>,
        params: &[usize; MR],
        col_sums: *const i32,
        columns: usize,
    ) -> [[__m256i; NV]; MR] {
        // SAFETY: the caller's promise.
        unsafe { init_integers(simd, zero, params, col_sums, columns) }
    }

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
