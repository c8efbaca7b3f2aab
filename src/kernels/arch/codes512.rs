//! From vectors of sixteen lanes to bytes: the stores of codes of every instruction set that has AVX-512 F, BW and VL.

use std::arch::x86_64::*;

use super::lanes512::{LANES, mask};
use crate::kernels::output::{Destinations, NOTHING, PLAIN, WHOLE};
use crate::kernels::simd::{CodeGrid, FRACTION, NEAR, store_codes_by_lane};

/// A [`CodeGrid`] in every byte, its zero point in every 16 bits.
#[derive(Clone, Copy)]
pub struct Grid {
    plain: CodeGrid,
    zero_point: __m512i,
    lo: __m512i,
    hi: __m512i,
    flip: __m512i,
    /// [`HALVES`].
    halves: [__m512i; 2],
}

/// Numbers of the lower halves of two vectors' lanes, and of the upper ones.
const HALVES: [[i16; 32]; 2] = {
    let (mut halves, mut i) = ([[0; 32]; 2], 0);
    while i < 32 {
        halves[0][i] = 2 * i as i16;
        halves[1][i] = 2 * i as i16 + 1;
        i += 1;
    }
    halves
};

impl Grid {
    /// # Safety
    /// AVX-512 F and BW are there.
    #[inline(always)]
    pub(super) unsafe fn new(plain: CodeGrid) -> Grid {
        // SAFETY: registers alone.
        unsafe {
            Grid {
                plain,
                zero_point: _mm512_set1_epi16(i16::from(plain.zero_point)),
                lo: _mm512_set1_epi8(plain.lo as i8),
                hi: _mm512_set1_epi8(plain.hi as i8),
                flip: _mm512_set1_epi8(plain.flip as i8),
                halves: [_mm512_loadu_si512(HALVES[0].as_ptr().cast()), _mm512_loadu_si512(HALVES[1].as_ptr().cast())],
            }
        }
    }

    /// Bytes from 16-bit sums without their zero point.
    ///
    /// # Safety
    /// As for [`Grid::new`].
    #[inline(always)]
    unsafe fn bytes(&self, low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: registers alone.
        unsafe {
            let bytes = self.saturated(low, high);
            // Saturation is all that most stages need.
            if self.plain.is_plain() { bytes } else { self.clamped(bytes) }
        }
    }

    /// [`Grid::bytes`] but for its bounds and what they are xored with.
    ///
    /// # Safety
    /// As for [`Grid::new`].
    #[inline(always)]
    unsafe fn saturated(&self, low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: registers alone.
        unsafe {
            // A zero point of 0, as behind a ReLU: a stage beside few products notices each instruction.
            if self.plain.zero_point == 0 {
                _mm512_packus_epi16(low, high)
            } else {
                _mm512_packus_epi16(_mm512_adds_epi16(low, self.zero_point), _mm512_adds_epi16(high, self.zero_point))
            }
        }
    }

    /// # Safety
    /// As for [`Grid::new`].
    #[inline(always)]
    unsafe fn clamped(&self, bytes: __m512i) -> __m512i {
        // SAFETY: registers alone.
        unsafe { _mm512_xor_si512(_mm512_min_epu8(_mm512_max_epu8(bytes, self.lo), self.hi), self.flip) }
    }
}

/// Two rows of two vectors, narrowed with saturation to 16 and to 8 bits, then clamped: bytes come out of the in-lane packs
/// as `[lane / 4][row][vector]` words, which one permutation puts in order.
///
/// # Safety
/// AVX-512 F, BW and VL are there; `dst` is valid for writes of `columns` bytes in each of two rows, `16 < columns <= 32`.
#[inline(always)]
pub(super) unsafe fn store_code_pair(q: [[__m512i; 2]; 2], grid: Grid, dst: *mut u8, stride: usize, columns: usize) {
    // SAFETY: registers up to the stores, which write `columns` bytes in each row: what a mask leaves out is not touched.
    unsafe {
        let bytes = grid.bytes(_mm512_packs_epi32(q[0][0], q[0][1]), _mm512_packs_epi32(q[1][0], q[1][1]));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        if columns == 2 * LANES {
            _mm256_storeu_si256(dst.cast(), _mm512_castsi512_si256(bytes));
            _mm256_storeu_si256(dst.add(stride).cast(), _mm512_extracti64x4_epi64::<1>(bytes));
        } else {
            // The upper half with a mask, 32 bytes early: taken out by itself, as above, the compiler would do so before the branch, and
            // a store that takes it out needs no port of shuffles.
            let mask = (1u64 << columns) - 1;
            _mm512_mask_storeu_epi8(dst.cast(), mask, bytes);
            _mm512_mask_storeu_epi8(dst.add(stride).wrapping_sub(2 * LANES).cast(), mask << (2 * LANES), bytes);
        }
    }
}

/// Four rows of one vector, as [`store_code_pair`]: out of the packs come words as `[lane / 4][row]`.
///
/// # Safety
/// AVX-512 F, BW and VL are there; `dst` is valid for writes of `columns` bytes in each of four rows, `columns <= 16`.
#[inline(always)]
unsafe fn store_four_codes(q: [__m512i; 4], grid: Grid, dst: *mut u8, stride: usize, columns: usize) {
    // SAFETY: registers up to the stores, which write `columns` bytes in each row.
    unsafe {
        let bytes = grid.bytes(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        let rows = [
            _mm512_castsi512_si128(bytes),
            _mm512_extracti32x4_epi32::<1>(bytes),
            _mm512_extracti32x4_epi32::<2>(bytes),
            _mm512_extracti32x4_epi32::<3>(bytes),
        ];
        for r in 0..4 {
            if columns == LANES {
                _mm_storeu_si128(dst.add(r * stride).cast(), rows[r]);
            } else {
                _mm_mask_storeu_epi8(dst.add(r * stride).cast(), mask(columns), rows[r]);
            }
        }
    }
}

/// [`Simd::store_whole_steps`](crate::kernels::simd::Simd::store_whole_steps): whole steps and what is left of them are halves of a lane.
///
/// # Safety
/// AVX-512 F and BW are there; `dst` is valid for writes of 64 bytes.
#[inline(always)]
pub(super) unsafe fn store_whole_steps<const PERMUTED: bool>([a, b, c, d]: [__m512i; 4], grid: Grid, dst: *mut u8) -> bool {
    const { assert!(FRACTION == 1 << 16 && NEAR.count_ones() == 1, "halves of a lane, and bits that say what is near") };
    // SAFETY: registers up to the store, of 64 bytes.
    unsafe {
        let far = _mm512_set1_epi16(-NEAR as i16);
        let [lower, upper] = grid.halves;
        let near = _mm512_testn_epi16_mask(_mm512_permutex2var_epi16(a, lower, b), far);
        if near | _mm512_testn_epi16_mask(_mm512_permutex2var_epi16(c, lower, d), far) != 0 {
            return false;
        }
        let bytes = grid.bytes(_mm512_permutex2var_epi16(a, upper, b), _mm512_permutex2var_epi16(c, upper, d));
        // A lane of the packs has eight codes of each half.
        let bytes = if PERMUTED {
            _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes)
        } else {
            _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bytes)
        };
        _mm512_storeu_si512(dst.cast(), bytes);
        true
    }
}

/// Sixty-four codes of a row, or of two rows: the in-lane packs put them in order.
///
/// # Safety
/// AVX-512 F, BW and VL are there; else as for [`Simd::store_interleaved_codes`](crate::kernels::simd::Simd::store_interleaved_codes).
#[inline(always)]
pub(super) unsafe fn store_interleaved_codes<const KNOWN: u8>(q: [__m512i; 4], grid: Grid, to: Destinations<u8>, columns: usize) {
    // SAFETY: registers up to the stores, which write `columns` bytes in each row.
    unsafe {
        let (low, high) = (_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
        let bytes = match KNOWN {
            NOTHING => grid.bytes(low, high),
            WHOLE => grid.clamped(_mm512_packus_epi16(_mm512_adds_epi16(low, grid.zero_point), _mm512_adds_epi16(high, grid.zero_point))),
            PLAIN => grid.saturated(low, high),
            _ => unreachable!("codes come of no sums that are permuted"),
        };
        match to {
            Destinations::One(dst) if KNOWN != NOTHING || columns == 4 * LANES => _mm512_storeu_si512(dst.cast(), bytes),
            Destinations::One(dst) => _mm512_mask_storeu_epi8(dst.cast(), (1 << columns) - 1, bytes),
            Destinations::Two(first, second) if KNOWN != NOTHING || columns == 2 * LANES => {
                _mm256_storeu_si256(first.cast(), _mm512_castsi512_si256(bytes));
                _mm256_storeu_si256(second.cast(), _mm512_extracti64x4_epi64::<1>(bytes));
            }
            Destinations::Two(first, second) => {
                let mask = (1 << columns) - 1;
                _mm256_mask_storeu_epi8(first.cast(), mask, _mm512_castsi512_si256(bytes));
                _mm256_mask_storeu_epi8(second.cast(), mask, _mm512_extracti64x4_epi64::<1>(bytes));
            }
        }
    }
}

/// [`Simd::store_codes`](crate::kernels::simd::Simd::store_codes): pairs of rows of full tiles together, and four rows of one vector, the
/// others one by one.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn store_codes<S, const R: usize, const NV: usize>(
    simd: S,
    q: &[[__m512i; NV]; R],
    grid: Grid,
    dst: *mut u8,
    stride: usize,
    columns: usize,
) where
    S: crate::kernels::simd::Simd<I32 = __m512i>,
{
    // SAFETY: the caller's promise.
    unsafe {
        if R.is_multiple_of(2) && NV == 2 {
            for r in (0..R).step_by(2) {
                let pair = [[q[r][0], q[r][NV - 1]], [q[r + 1][0], q[r + 1][NV - 1]]];
                store_code_pair(pair, grid, dst.add(r * stride), stride, columns)
            }
        } else if R == 4 && NV == 1 {
            store_four_codes([q[0][0], q[1 % R][0], q[2 % R][0], q[3 % R][0]], grid, dst, stride, columns)
        } else {
            store_codes_by_lane(simd, q, grid.plain, dst, stride, columns)
        }
    }
}
