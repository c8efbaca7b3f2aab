//! How codes of few bits meet activations.

use crate::kernels::simd::Simd;

/// A product of unsigned codes with signed activations, in bytes.
pub trait SignedDot<S: Simd> {
    /// `acc[lane] + sum over i < 4 of codes[lane][i] * word[lane][i]`, where codes are unsigned bytes, below 16 unless `WIDE`, and words
    /// signed bytes above -128. Modulo 2^32.
    #[inline(always)]
    fn signed_dot<const WIDE: bool>(simd: S, acc: S::I32, codes: S::I32, word: S::I32) -> S::I32 {
        let (mut sums, mut c, mut w) = ([0i32; 16], [0i32; 16], [0i32; 16]);
        // SAFETY: no instruction set has more than sixteen lanes.
        unsafe {
            simd.store_i32(sums.as_mut_ptr(), acc, S::LANES);
            simd.store_i32(c.as_mut_ptr(), codes, S::LANES);
            simd.store_i32(w.as_mut_ptr(), word, S::LANES);
        }
        for lane in 0..S::LANES {
            let (codes, word) = (c[lane].to_ne_bytes(), w[lane].to_ne_bytes());
            for i in 0..4 {
                sums[lane] = sums[lane].wrapping_add(i32::from(codes[i]) * i32::from(word[i] as i8));
            }
        }
        // SAFETY: as above.
        unsafe { simd.load_i32(sums.as_ptr(), S::LANES) }
    }
}
