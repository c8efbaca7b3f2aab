//! AVX-512 with VNNI: sixteen lanes, `vpdpbusd` sums four products of unsigned activations and signed weights per lane.

use std::arch::x86_64::*;

use super::register_ops;
use crate::kernels::output::Store;
use crate::kernels::simd::{Dot, Simd};
use crate::kernels::tile::{LaneTile, Tile, Zero, init_integers, lane_tile, product_tile, tile_arms};

/// Exists only where AVX-512 F, BW, DQ, VL and VNNI do.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Vnni(());

impl Avx512Vnni {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(Avx512Vnni(()))
    }
}

const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn enter<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// The first `lanes` of sixteen.
#[inline(always)]
fn mask(lanes: usize) -> __mmask16 {
    debug_assert!(lanes <= LANES);
    ((1u32 << lanes) - 1) as __mmask16
}

// SAFETY: `detect` is the only constructor, and it asks the processor.
unsafe impl Simd for Avx512Vnni {
    const LANES: usize = LANES;
    const MR: usize = 14;
    type I32 = __m512i;
    type F32 = __m512;
    type Int8 = Int8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` exists only where these features do.
        unsafe { enter(f) }
    }

    unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>) {
        tile_arms!(self, product_tile, tile, mr, nv, [1 2 3 4 5 6 7 8 9 10 11 12 13 14])
    }

    unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>) {
        tile_arms!(self, lane_tile, tile, mr, nv, [1 2 3 4])
    }

    register_ops! {
        fn splat_i32(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn add_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        fn mul_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
        fn to_f32(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn splat_f32(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn add_f32(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn mul_f32(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn mul_add_f32(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max_f32(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn min_f32(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn round_i32(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32, lanes: usize) -> __m512i {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm512_loadu_si512(p.cast()) } else { _mm512_maskz_loadu_epi32(mask(lanes), p) } }
    }

    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32, lanes: usize) -> __m512 {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm512_loadu_ps(p) } else { _mm512_maskz_loadu_ps(mask(lanes), p) } }
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, a: __m512i, lanes: usize) {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm512_storeu_si512(p.cast(), a) } else { _mm512_mask_storeu_epi32(p, mask(lanes), a) } }
    }

    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, a: __m512, lanes: usize) {
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { if lanes == LANES { _mm512_storeu_ps(p, a) } else { _mm512_mask_storeu_ps(p, mask(lanes), a) } }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, a: __m512i, lanes: usize) {
        // SAFETY: the stores write `lanes` bytes at `p`, by the caller's promise.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(a);
            if lanes == LANES {
                _mm_storeu_si128(p.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(p.cast(), mask(lanes), bytes);
            }
        }
    }
}

/// Codes as they are, four to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: u8 and i8 are valid for every bit pattern, and four u8 are 4 bytes.
unsafe impl Dot<Avx512Vnni> for Int8 {
    const KU: usize = 4;
    type Lhs = u8;
    type Weight = i8;
    type Acc = __m512i;
    type Word = __m512i;
    type Weights = __m512i;

    #[inline(always)]
    unsafe fn init<const MR: usize, const NV: usize>(
        simd: Avx512Vnni,
        zero: Zero<'_>,
        params: &[usize; MR],
        col_sums: *const i32,
        columns: usize,
    ) -> [[__m512i; NV]; MR] {
        // SAFETY: the caller's promise.
        unsafe { init_integers(simd, zero, params, col_sums, columns) }
    }

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
