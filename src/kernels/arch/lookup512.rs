//! Tables of 256 bytes in registers of 512 bits: a load for each element takes ten times longer than permutations do, and three
//! times longer than shuffles.

use std::arch::x86_64::*;

const BYTES: usize = 64;

/// Exists only where AVX-512 F, BW and VBMI do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vbmi(());

impl Vbmi {
    pub fn detect() -> Option<Self> {
        (super::Avx512::detect().is_some() && is_x86_feature_detected!("avx512vbmi")).then_some(Vbmi(()))
    }

    /// `y[i] = table[x[i]]`, for slices of one length.
    pub fn lookup(self, table: &[u8; 256], x: &[u8], y: &mut [u8]) {
        // SAFETY: `self` exists only where these features do.
        unsafe { by_permutations(table, x, y) }
    }
}

/// Codes in vectors, the last ones with a mask.
macro_rules! each_vector {
    ($x:ident, $y:ident, |$codes:ident| $body:expr) => {
        let len = $x.len().min($y.len());
        for done in (0..len).step_by(BYTES) {
            let (from, to) = ($x.as_ptr().add(done).cast::<i8>(), $y.as_mut_ptr().add(done).cast::<i8>());
            if len - done >= BYTES {
                let $codes = _mm512_loadu_si512(from.cast());
                _mm512_storeu_si512(to.cast(), $body);
            } else {
                let mask = (1u64 << (len - done)) - 1;
                let $codes = _mm512_maskz_loadu_epi8(mask, from);
                _mm512_mask_storeu_epi8(to, mask, $body);
            }
        }
    };
}

/// Each half of the table in two registers, of which a permutation takes one of 128 bytes by the lower seven bits; the highest bit
/// chooses the half.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn by_permutations(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    // SAFETY: the table is four vectors; loads and stores stay within both slices, by the steps and by the mask.
    unsafe {
        let part = |i: usize| _mm512_loadu_si512(table.as_ptr().add(BYTES * i).cast());
        let (a, b, c, d) = (part(0), part(1), part(2), part(3));
        each_vector!(x, y, |codes| {
            let (low, high) = (_mm512_permutex2var_epi8(a, codes, b), _mm512_permutex2var_epi8(c, codes, d));
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high)
        });
    }
}

/// A shuffle takes one of 16 bytes by the lower four bits, and nothing where the highest is set. So each 16 entries are stored as
/// their difference (exclusive or) from the 16 before, and a code, less 16 with each step, collects all up to its own before it
/// wraps. That the highest bit means stop leaves 128 entries to a walk: the other half begins with that bit flipped.
///
/// # Safety
/// AVX-512 F and BW are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn by_shuffles(table: &[u8; 256], x: &[u8], y: &mut [u8]) {
    // SAFETY: the table is sixteen times 16 bytes; loads and stores stay within both slices, by the steps and by the mask.
    unsafe {
        let mut parts = [_mm512_setzero_si512(); 16];
        for (i, part) in parts.iter_mut().enumerate() {
            *part = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().add(16 * i).cast()));
        }
        for i in (1..16).rev().filter(|i| i % 8 != 0) {
            parts[i] = _mm512_xor_si512(parts[i], parts[i - 1]);
        }
        let step = _mm512_set1_epi8(16);
        let walk = |mut codes: __m512i, parts: &[__m512i]| {
            let mut found = _mm512_shuffle_epi8(parts[0], codes);
            for &part in &parts[1..] {
                codes = _mm512_sub_epi8(codes, step);
                found = _mm512_xor_si512(found, _mm512_shuffle_epi8(part, codes));
            }
            found
        };
        each_vector!(x, y, |codes| {
            let high = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), walk(codes, &parts[..8]), walk(high, &parts[8..]))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_every_entry() {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 37 + i / 16 * 5 + 11) as u8);
        let x: Vec<u8> = (0..1000).map(|i| (i * 7 + i / 256) as u8).collect();
        for length in [0, 1, 63, 64, 65, 256, 999] {
            let x = &x[..length];
            let expected: Vec<u8> = x.iter().map(|&x| table[usize::from(x)]).collect();
            if let Some(vbmi) = Vbmi::detect() {
                let mut y = vec![0; length];
                vbmi.lookup(&table, x, &mut y);
                assert_eq!(y, expected);
            }
            if crate::kernels::arch::Avx512::detect().is_some() {
                let mut y = vec![0; length];
                // SAFETY: the token is there, and with it AVX-512 F and BW.
                unsafe { by_shuffles(&table, x, &mut y) };
                assert_eq!(y, expected);
            }
        }
    }
}
