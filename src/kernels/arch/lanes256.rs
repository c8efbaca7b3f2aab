//! Vectors of eight lanes, for every instruction set that has AVX2 and FMA.

use std::arch::x86_64::*;

use crate::kernels::simd::{CodeGrid, Simd, store_codes_by_lane};

pub(super) const LANES: usize = 8;

/// All ones in the first `lanes` lanes.
#[inline(always)]
pub(super) fn mask(lanes: usize) -> __m256i {
    const MASKS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(lanes <= LANES);
    // SAFETY: `lanes <= LANES`, so eight integers from `LANES - lanes` are inside the table; only called where AVX exists.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(LANES - lanes).cast()) }
}

/// The low bytes of eight integers.
#[inline(always)]
pub(super) fn low_bytes(a: __m256i) -> [u8; LANES] {
    // SAFETY: registers alone; only called where AVX2 exists.
    unsafe {
        let low = _mm256_and_si256(a, _mm256_set1_epi32(0xff));
        let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
        _mm_cvtsi128_si64(_mm_packus_epi16(words, words)).to_ne_bytes()
    }
}

/// Four vectors narrowed with saturation to 16 and to 8 bits, then clamped: bytes come out of the in-lane packs as `[lane / 4][vector]`
/// words, which one permutation puts in order.
///
/// # Safety
/// AVX2 is there.
#[inline(always)]
unsafe fn narrowed(q: [__m256i; 4], grid: CodeGrid) -> [__m128i; 2] {
    // SAFETY: registers alone.
    unsafe {
        let zero = _mm256_set1_epi16(i16::from(grid.zero_point));
        let pair = |a, b| _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero);
        let bytes = _mm256_packus_epi16(pair(q[0], q[1]), pair(q[2], q[3]));
        let splat = |x: u8| _mm256_set1_epi8(x as i8);
        let bytes = _mm256_min_epu8(_mm256_max_epu8(bytes, splat(grid.lo)), splat(grid.hi));
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_xor_si256(bytes, splat(grid.flip)), order);
        [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)]
    }
}

/// [`Simd::store_codes`]: pairs of rows of full tiles together, and four rows of one vector, the others one by one.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn store_codes<S: Simd<I32 = __m256i>, const R: usize, const NV: usize>(
    simd: S,
    q: &[[__m256i; NV]; R],
    grid: CodeGrid,
    dst: *mut u8,
    stride: usize,
    columns: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if R == 2 && NV == 2 && columns == 2 * LANES {
            let rows = narrowed([q[0][0], q[0][NV - 1], q[R - 1][0], q[R - 1][NV - 1]], grid);
            _mm_storeu_si128(dst.cast(), rows[0]);
            _mm_storeu_si128(dst.add(stride).cast(), rows[1]);
        } else if R == 4 && NV == 1 && columns == LANES {
            let pairs = narrowed([q[0][0], q[1 % R][0], q[2 % R][0], q[3 % R][0]], grid);
            for (i, pair) in pairs.into_iter().enumerate() {
                _mm_storel_epi64(dst.add(2 * i * stride).cast(), pair);
                _mm_storel_epi64(dst.add((2 * i + 1) * stride).cast(), _mm_unpackhi_epi64(pair, pair));
            }
        } else {
            store_codes_by_lane(simd, q, grid, dst, stride, columns)
        }
    }
}

/// Implements [`Simd`] for a token whose processor has these vectors.
macro_rules! simd_of_256_bits {
    ($token:ident, features: $features:literal, rows: $mr:literal to $mr_max:literal $arms:tt) => {
        #[target_feature(enable = $features)]
        fn enter<R>(f: impl FnOnce() -> R) -> R {
            f()
        }

        // SAFETY: `detect` is the only constructor, and it asks the processor.
        unsafe impl Simd for $token {
            const LANES: usize = LANES;
            const NV: usize = 2;
            const MR: usize = $mr;
            const MR_MAX: usize = $mr_max;
            const FUSED: bool = true;
            const PERMUTES: bool = true;
            const PREFETCHES: bool = true;
            type I32 = __m256i;
            type F32 = __m256;
            type Grid = CodeGrid;
            type Int8 = Int8;
            type Pairs = Pairs16;
            type Matrix = crate::kernels::matrix_unit::NoMatrixUnit;

            #[inline(always)]
            fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
                // SAFETY: `self` exists only where these features do.
                unsafe { enter(f) }
            }

            unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>) {
                tile_arms!(self, product_tile, tile, mr, nv, $arms, [1 2])
            }

            unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>) {
                tile_arms!(self, lane_tile, tile, mr, nv, [1 4], [1 2])
            }

            register_ops! {
                fn splat_i32(x: i32) -> __m256i = _mm256_set1_epi32(x);
                fn add_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
                fn mul_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
                fn xor_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
                fn or_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
                fn and_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
                fn shift_left_i32(a: __m256i, n: u32) -> __m256i = _mm256_sll_epi32(a, _mm_cvtsi32_si128(n as i32));
                fn shift_right_i32(a: __m256i, n: u32) -> __m256i = _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32));
                fn shuffle_bytes(table: __m256i, index: __m256i) -> __m256i = _mm256_shuffle_epi8(table, index);
                fn f32_of_bits(a: __m256i) -> __m256 = _mm256_castsi256_ps(a);
                fn lookup_f32(table: &[f32; 16], index: __m256i) -> __m256 = {
                    let (low, high) = (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(LANES)));
                    let (low, high) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
                    _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
                };
                fn is_zero(a: __m256i) -> bool = _mm256_testz_si256(a, a) == 1;
                fn max_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epi32(a, b);
                fn min_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epi32(a, b);
                fn to_f32(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
                fn bits_of_f32(a: __m256) -> __m256i = _mm256_castps_si256(a);
                fn splat_f32(x: f32) -> __m256 = _mm256_set1_ps(x);
                fn add_f32(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
                fn mul_f32(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
                fn mul_add_f32(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
                fn max_f32(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
                fn min_f32(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
                fn round_i32(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
                fn permute_f32(a: __m256, index: __m256i) -> __m256 = _mm256_permutevar8x32_ps(a, index);
            }

            memory_ops! {
                load_i32(p: *const i32) -> __m256i = _mm256_loadu_si256(p.cast()), _mm256_maskload_epi32(p, mask(lanes)), lanes;
                load_f32(p: *const f32) -> __m256 = _mm256_loadu_ps(p), _mm256_maskload_ps(p, mask(lanes)), lanes;
                load_bytes(p: *const u8) -> __m256i = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())), {
                    let mut bytes = [0; LANES];
                    bytes.as_mut_ptr().copy_from_nonoverlapping(p, lanes);
                    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_ne_bytes(bytes)))
                }, lanes;
                store_i32(p: *mut i32, a: __m256i) -> () = _mm256_storeu_si256(p.cast(), a), _mm256_maskstore_epi32(p, mask(lanes), a), lanes;
                store_f32(p: *mut f32, a: __m256) -> () = _mm256_storeu_ps(p, a), _mm256_maskstore_ps(p, mask(lanes), a), lanes;
                store_low_bytes(p: *mut u8, a: __m256i) -> () = p.cast::<[u8; LANES]>().write_unaligned(low_bytes(a)),
                    p.copy_from_nonoverlapping(low_bytes(a).as_ptr(), lanes), lanes;
            }

            #[inline(always)]
            unsafe fn load_halves(self, p: *const u16) -> __m256i {
                // SAFETY: 8 numbers at `p`, by the caller's promise.
                unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) }
            }

            #[inline(always)]
            fn grid(self, grid: CodeGrid) -> CodeGrid {
                grid
            }

            #[inline(always)]
            unsafe fn store_codes<const R: usize, const NV: usize>(
                self,
                q: &[[__m256i; NV]; R],
                grid: CodeGrid,
                dst: *mut u8,
                stride: usize,
                columns: usize,
            ) {
                // SAFETY: the caller's promise, the same for both.
                unsafe { store_codes(self, q, grid, dst, stride, columns) }
            }

            #[inline(always)]
            fn prefetch(self, p: *const u8) {
                // SAFETY: a hint: it reads nothing that could fault.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
        }
    };
}

/// Loads and stores of a whole vector, or of its first lanes.
macro_rules! memory_ops {
    ($($name:ident($p:ident: $pt:ty $(, $a:ident: $at:ty)?) -> $r:ty = $whole:expr, $part:expr, $lanes:ident;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $p: $pt $(, $a: $at)?, $lanes: usize) -> $r {
            // SAFETY: the caller's promise; lanes from `lanes` on are not touched.
            unsafe { if $lanes == LANES { $whole } else { $part } }
        })*
    };
}

/// Implements [`Pairs`](crate::kernels::pairs::Pairs): a product of words, and how codes become pairs.
macro_rules! pairs_of_256_bits {
    ($token:ident, |$acc:ident, $word:ident, $weights:ident| $dot:expr, split: $split:literal, |$p:ident: $lhs:ty| $activations:expr, |$w:ident, $step:ident| $four:expr) => {
        /// Numbers of 16 bits, two to a word.
        #[derive(Debug, Clone, Copy)]
        pub struct Pairs16;

        // SAFETY: i16 is valid for every bit pattern, and two are 4 bytes.
        unsafe impl Dot<$token> for Pairs16 {
            pair_dot!($token, __m256i);

            #[inline(always)]
            fn dot(_: $token, $acc: __m256i, $word: __m256i, $weights: __m256i) -> __m256i {
                // SAFETY: the token exists only where the instruction does, and only registers are touched.
                unsafe { $dot }
            }
        }

        // SAFETY: as above.
        unsafe impl Pairs<$token> for Pairs16 {
            const AVAILABLE: bool = true;
            const SPLIT: bool = $split;
            type Numbers = __m256i;

            pairs_of_256_bits! { @registers $token
                fn add_numbers(a: __m256i, b: __m256i) = _mm256_add_epi16(a, b);
                fn sub_numbers(a: __m256i, b: __m256i) = _mm256_sub_epi16(a, b);
                fn quadruple(a: __m256i) = _mm256_slli_epi16::<2>(a);
                fn sub_i32(a: __m256i, b: __m256i) = _mm256_sub_epi32(a, b);
                fn shift_down(a: __m256i, n: u32) = _mm256_sra_epi32(a, _mm_cvtsi32_si128(n as i32));
            }

            #[inline(always)]
            unsafe fn store_numbers(_: $token, p: *mut i16, a: __m256i) {
                // SAFETY: 16 numbers at `p`, by the caller's promise.
                unsafe { _mm256_storeu_si256(p.cast(), a) }
            }

            #[inline(always)]
            unsafe fn activations(_: $token, $p: *const $lhs) -> [__m256i; 2] {
                // SAFETY: 32 activations at `p`, by the caller's promise.
                unsafe { $activations }
            }

            #[inline(always)]
            unsafe fn four_weights(_: $token, $w: *const i8, $step: usize) -> [__m256i; 2] {
                // SAFETY: the vectors of four channels, by the caller's promise.
                unsafe { $four }
            }
        }
    };
    (@registers $token:ident $(fn $name:ident($($a:ident: $t:ty),*) = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(_: $token, $($a: $t),*) -> __m256i {
            // SAFETY: the token exists only where AVX2 does, and only registers are touched.
            unsafe { $body }
        })*
    };
}
pub(super) use {memory_ops, pairs_of_256_bits, simd_of_256_bits};
