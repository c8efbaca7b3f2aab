//! Vectors of sixteen lanes, for every instruction set that has AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

pub(super) const LANES: usize = 16;

/// The first `lanes` of sixteen.
#[inline(always)]
pub(super) fn mask(lanes: usize) -> __mmask16 {
    debug_assert!(lanes <= LANES);
    ((1u32 << lanes) - 1) as __mmask16
}

/// Makes the function that it is inlined into align its stack to whole vectors. The compiler does so only for variables that ask for it,
/// and spills registers to wherever the stack happens to be: a vector that lies across two cache lines takes some 30 cycles to come back.
#[inline(always)]
pub(super) fn align_stack() {
    #[repr(align(64))]
    struct Line(#[allow(dead_code)] std::mem::MaybeUninit<[u8; 64]>);
    std::hint::black_box(&Line(std::mem::MaybeUninit::uninit()));
}

/// Implements [`Simd`](crate::kernels::simd::Simd) for a token whose processor has these vectors.
macro_rules! simd_of_512_bits {
    ($token:ident, features: $features:literal, rows: $mr:literal to $mr_max:literal $arms:tt, matrix: $matrix:ty, |$this:ident| $unit:expr) => {
        #[target_feature(enable = $features)]
        fn enter<R>(f: impl FnOnce() -> R) -> R {
            super::lanes512::align_stack();
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
            const TURNS: bool = true;
            type I32 = __m512i;
            type F32 = __m512;
            type Grid = super::codes512::Grid;
            type Int8 = Int8;
            type Pairs = Pairs16;
            type Matrix = $matrix;

            #[inline(always)]
            fn matrix_unit(self) -> Option<$matrix> {
                let $this = self;
                $unit
            }

            #[inline(always)]
            fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
                // SAFETY: `self` exists only where these features do.
                unsafe { enter(f) }
            }

            unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>) {
                tile_arms!(self, product_tile, tile, mr, nv, $arms, [1 2])
            }

            const FEW_WORDS: bool = true;

            unsafe fn few_words<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tiles: &Tile<'_, Self, D, T>) {
                few_words_arms!(self, mr, nv, tiles, [1 2])
            }

            unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>) {
                tile_arms!(self, lane_tile, tile, mr, nv, [1 4], [1 2])
            }

            register_ops! {
                fn splat_i32(x: i32) -> __m512i = _mm512_set1_epi32(x);
                fn add_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
                fn mul_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
                fn xor_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
                fn or_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
                fn and_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
                fn shift_left_i32(a: __m512i, n: u32) -> __m512i = _mm512_sll_epi32(a, _mm_cvtsi32_si128(n as i32));
                fn shift_right_i32(a: __m512i, n: u32) -> __m512i = _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32));
                fn shuffle_bytes(table: __m512i, index: __m512i) -> __m512i = _mm512_shuffle_epi8(table, index);
                fn f32_of_bits(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
                fn lookup_f32(table: &[f32; 16], index: __m512i) -> __m512 =
                    _mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr()));
                fn is_zero(a: __m512i) -> bool = _mm512_test_epi32_mask(a, a) == 0;
                fn max_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
                fn min_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epi32(a, b);
                fn to_f32(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
                fn bits_of_f32(a: __m512) -> __m512i = _mm512_castps_si512(a);
                fn splat_f32(x: f32) -> __m512 = _mm512_set1_ps(x);
                fn add_f32(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
                fn mul_f32(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
                fn mul_add_f32(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
                fn max_f32(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
                fn min_f32(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
                fn round_i32(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
                fn permute_f32(a: __m512, index: __m512i) -> __m512 = _mm512_permutexvar_ps(index, a);
            }

            memory_ops! {
                load_i32(p: *const i32) -> __m512i = _mm512_loadu_si512(p.cast()), |mask| _mm512_maskz_loadu_epi32(mask, p);
                load_f32(p: *const f32) -> __m512 = _mm512_loadu_ps(p), |mask| _mm512_maskz_loadu_ps(mask, p);
                load_bytes(p: *const u8) -> __m512i = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())),
                    |mask| _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p.cast()));
                store_i32(p: *mut i32, a: __m512i) -> () = _mm512_storeu_si512(p.cast(), a), |mask| _mm512_mask_storeu_epi32(p, mask, a);
                store_f32(p: *mut f32, a: __m512) -> () = _mm512_storeu_ps(p, a), |mask| _mm512_mask_storeu_ps(p, mask, a);
                store_low_bytes(p: *mut u8, a: __m512i) -> () = _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(a)),
                    |mask| _mm_mask_storeu_epi8(p.cast(), mask, _mm512_cvtepi32_epi8(a));
            }

            #[inline(always)]
            unsafe fn load_halves(self, p: *const u16) -> __m512i {
                // SAFETY: 16 numbers at `p`, by the caller's promise.
                unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
            }

            #[inline(always)]
            unsafe fn load_f16(self, p: *const u16) -> __m512 {
                // SAFETY: 16 numbers at `p`, by the caller's promise.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
            }

            #[inline(always)]
            fn keep_f32(self, a: __m512, lanes: usize, rest: __m512) -> __m512 {
                // SAFETY: the token exists only where AVX-512 F does, and only registers are touched.
                unsafe { _mm512_mask_blend_ps(mask(lanes), rest, a) }
            }

            #[inline(always)]
            fn grid(self, grid: CodeGrid) -> Self::Grid {
                // SAFETY: the token exists only where AVX-512 F and BW do.
                unsafe { super::codes512::Grid::new(grid) }
            }

            #[inline(always)]
            unsafe fn store_codes<const R: usize, const NV: usize>(
                self,
                q: &[[__m512i; NV]; R],
                grid: Self::Grid,
                dst: *mut u8,
                stride: usize,
                columns: usize,
            ) {
                // SAFETY: the caller's promise, the same for both.
                unsafe { store_codes(self, q, grid, dst, stride, columns) }
            }

            #[inline(always)]
            unsafe fn store_whole_steps<const PERMUTED: bool>(self, steps: [__m512i; 4], grid: Self::Grid, dst: *mut u8) -> bool {
                // SAFETY: the caller's promise.
                unsafe { store_whole_steps::<PERMUTED>(steps, grid, dst) }
            }

            #[inline(always)]
            fn permuted(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
                // SAFETY: the token exists only where AVX-512 F does, and only registers are touched.
                unsafe {
                    let (low, high) = (_mm512_shuffle_i64x2::<0x44>, _mm512_shuffle_i64x2::<0xee>);
                    [low(a, c), high(a, c), low(b, d), high(b, d)]
                }
            }

            #[inline(always)]
            fn permuted_f32(self, x: [__m512; 4]) -> [__m512; 4] {
                // SAFETY: as above; the casts move no bit.
                unsafe {
                    let [a, b, c, d] = x;
                    let x = [_mm512_castps_si512(a), _mm512_castps_si512(b), _mm512_castps_si512(c), _mm512_castps_si512(d)];
                    let [a, b, c, d] = self.permuted(x);
                    [_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), _mm512_castsi512_ps(c), _mm512_castsi512_ps(d)]
                }
            }

            #[inline(always)]
            unsafe fn store_halves_f32(self, first: *mut f32, second: *mut f32, x: __m512) {
                // SAFETY: the caller's promise; the token exists only where AVX-512 F and DQ do.
                unsafe {
                    _mm256_storeu_ps(first, _mm512_castps512_ps256(x));
                    _mm256_storeu_ps(second, _mm512_extractf32x8_ps::<1>(x));
                }
            }

            #[inline(always)]
            fn interleave(self, x: [__m512i; 4]) -> [__m512i; 4] {
                // SAFETY: the token exists only where AVX-512 F does, and only registers are touched.
                unsafe { transpose(x) }
            }

            #[inline(always)]
            fn interleave_f32(self, x: [__m512; 4]) -> [__m512; 4] {
                // SAFETY: as above; the casts move no bit.
                unsafe {
                    let [a, b, c, d] = x;
                    let [a, b, c, d] = transpose([_mm512_castps_si512(a), _mm512_castps_si512(b), _mm512_castps_si512(c), _mm512_castps_si512(d)]);
                    [_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), _mm512_castsi512_ps(c), _mm512_castsi512_ps(d)]
                }
            }

            #[inline(always)]
            fn deinterleave(self, x: [__m512i; 4]) -> [__m512i; 4] {
                // SAFETY: as above.
                unsafe { transpose(x) }
            }

            #[inline(always)]
            unsafe fn store_interleaved_codes<const KNOWN: u8>(
                self,
                q: [__m512i; 4],
                grid: Self::Grid,
                to: $crate::kernels::output::Destinations<u8>,
                columns: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { store_interleaved_codes::<KNOWN>(q, grid, to, columns) }
            }

            #[inline(always)]
            unsafe fn transpose_f32(self, from: &[*const f32; 16], dst: *mut f32, stride: usize) {
                // SAFETY: the caller's promise.
                unsafe { super::lanes512::transpose_f32(from, dst, stride) }
            }

            fn lookup(self, table: &[u8; 256], x: &[u8], y: &mut [u8]) {
                match super::lookup512::Vbmi::detect() {
                    Some(vbmi) => vbmi.lookup(table, x, y),
                    // SAFETY: the token exists only where AVX-512 F and BW do.
                    None => unsafe { super::lookup512::by_shuffles(table, x, y) },
                }
            }

            #[inline(always)]
            fn prefetch(self, p: *const u8) {
                // SAFETY: a hint: it reads nothing that could fault.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
        }
    };
}

/// The 4 x 4 blocks of 128 bits of four vectors, transposed: its own inverse.
///
/// # Safety
/// AVX-512 F is there.
#[inline(always)]
pub(super) unsafe fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: registers alone.
    unsafe {
        let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
        let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(c, d), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
        [
            _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_low, cd_low),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_low, cd_low),
            _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_high, cd_high),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_high, cd_high),
        ]
    }
}

/// [`Simd::transpose_f32`](crate::kernels::simd::Simd::transpose_f32): pairs, then fours within 128 bits, then blocks of 128 bits.
///
/// # Safety
/// AVX-512 F is there; else as there.
#[inline(always)]
pub(super) unsafe fn transpose_f32(from: &[*const f32; 16], dst: *mut f32, stride: usize) {
    // SAFETY: the caller's promise; registers between loads and stores.
    unsafe {
        let mut fours = [[_mm512_setzero_si512(); 4]; 4];
        for q in 0..4 {
            let (a, b) = (_mm512_loadu_ps(from[4 * q]), _mm512_loadu_ps(from[4 * q + 1]));
            let (c, d) = (_mm512_loadu_ps(from[4 * q + 2]), _mm512_loadu_ps(from[4 * q + 3]));
            let (ab_low, ab_high) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
            let (cd_low, cd_high) = (_mm512_castps_pd(_mm512_unpacklo_ps(c, d)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
            // Vector i holds, in its block b, what lies in column 4 b + i of the four rows.
            fours[q] = [
                _mm512_castpd_si512(_mm512_unpacklo_pd(ab_low, cd_low)),
                _mm512_castpd_si512(_mm512_unpackhi_pd(ab_low, cd_low)),
                _mm512_castpd_si512(_mm512_unpacklo_pd(ab_high, cd_high)),
                _mm512_castpd_si512(_mm512_unpackhi_pd(ab_high, cd_high)),
            ];
        }
        for i in 0..4 {
            let columns = transpose([fours[0][i], fours[1][i], fours[2][i], fours[3][i]]);
            for b in 0..4 {
                _mm512_storeu_si512(dst.add((4 * b + i) * stride).cast(), columns[b]);
            }
        }
    }
}

/// [`SignedDot`](crate::kernels::lowbit::SignedDot) by pairs: `vpmaddubsw` is exact for codes below 16 and activations of 7 bits and sign;
/// larger codes are taken one of a pair at a time, which is exact too, as 255 * 127 is below 2^15.
///
/// # Safety
/// AVX-512 F and BW are there.
#[inline(always)]
pub(super) unsafe fn signed_dot_by_pairs<const WIDE: bool>(acc: __m512i, codes: __m512i, word: __m512i) -> __m512i {
    // SAFETY: registers alone.
    unsafe {
        let pairs = |codes| _mm512_madd_epi16(_mm512_maddubs_epi16(codes, word), _mm512_set1_epi16(1));
        if !WIDE {
            return _mm512_add_epi32(acc, pairs(codes));
        }
        let first = _mm512_set1_epi16(0xff);
        let (first, second) = (_mm512_and_si512(codes, first), _mm512_andnot_si512(first, codes));
        _mm512_add_epi32(acc, _mm512_add_epi32(pairs(first), pairs(second)))
    }
}

/// Loads and stores of a whole vector, or with a mask of its first lanes.
macro_rules! memory_ops {
    ($($name:ident($p:ident: $pt:ty $(, $a:ident: $at:ty)?) -> $r:ty = $whole:expr, |$mask:ident| $part:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $p: $pt $(, $a: $at)?, lanes: usize) -> $r {
            // SAFETY: the caller's promise; masked lanes are not touched.
            unsafe {
                if lanes == LANES {
                    $whole
                } else {
                    let $mask = mask(lanes);
                    $part
                }
            }
        })*
    };
}

/// Implements [`Pairs`](crate::kernels::pairs::Pairs): a product of words, and how codes become pairs.
macro_rules! pairs_of_512_bits {
    ($token:ident, |$acc:ident, $word:ident, $weights:ident| $dot:expr, split: $split:literal, |$p:ident: $lhs:ty| $activations:expr, |$w:ident, $step:ident| $four:expr) => {
        /// Numbers of 16 bits, two to a word.
        #[derive(Debug, Clone, Copy)]
        pub struct Pairs16;

        // SAFETY: i16 is valid for every bit pattern, and two are 4 bytes.
        unsafe impl Dot<$token> for Pairs16 {
            pair_dot!($token, __m512i);

            #[inline(always)]
            fn dot(_: $token, $acc: __m512i, $word: __m512i, $weights: __m512i) -> __m512i {
                // SAFETY: the token exists only where the instruction does, and only registers are touched.
                unsafe { $dot }
            }
        }

        // SAFETY: as above.
        unsafe impl Pairs<$token> for Pairs16 {
            const AVAILABLE: bool = true;
            const SPLIT: bool = $split;
            type Numbers = __m512i;

            pairs_of_512_bits! { @registers $token
                fn add_numbers(a: __m512i, b: __m512i) = _mm512_add_epi16(a, b);
                fn sub_numbers(a: __m512i, b: __m512i) = _mm512_sub_epi16(a, b);
                fn quadruple(a: __m512i) = _mm512_slli_epi16::<2>(a);
                fn sub_i32(a: __m512i, b: __m512i) = _mm512_sub_epi32(a, b);
                fn shift_down(a: __m512i, n: u32) = _mm512_sra_epi32(a, _mm_cvtsi32_si128(n as i32));
            }

            #[inline(always)]
            unsafe fn store_numbers(_: $token, p: *mut i16, a: __m512i) {
                // SAFETY: 32 numbers at `p`, by the caller's promise.
                unsafe { _mm512_storeu_si512(p.cast(), a) }
            }

            #[inline(always)]
            unsafe fn activations(_: $token, $p: *const $lhs) -> [__m512i; 2] {
                // SAFETY: 64 activations at `p`, by the caller's promise.
                unsafe { $activations }
            }

            #[inline(always)]
            unsafe fn four_weights(_: $token, $w: *const i8, $step: usize) -> [__m512i; 2] {
                // SAFETY: the vectors of four channels, by the caller's promise.
                unsafe { $four }
            }
        }
    };
    (@registers $token:ident $(fn $name:ident($($a:ident: $t:ty),*) = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(_: $token, $($a: $t),*) -> __m512i {
            // SAFETY: the token exists only where AVX-512 F and BW do, and only registers are touched.
            unsafe { $body }
        })*
    };
}
pub(super) use {memory_ops, pairs_of_512_bits, simd_of_512_bits};
