//! One file per instruction set: its token, how it multiplies, and which tiles it runs. What several share (`lanes128`,
//! `lanes256`, `lanes512`) is the vectors, and how their lanes become bytes (`codes512`).

/// What all integer products have in common, in an implementation of [`Dot`](super::dot::Dot).
macro_rules! integer_dot {
    ($token:ty, $vector:ty) => {
        integer_dot!($token, $vector, words: $vector, weights: $vector);
    };
    ($token:ty, $vector:ty, words: $word:ty, weights: $weights:ty) => {
        const EXACT: bool = true;
        type Weight = i8;
        type Acc = $vector;
        type Word = $word;
        type Weights = $weights;

        #[inline(always)]
        fn zero(simd: $token) -> $vector {
            simd.splat_i32(0)
        }

        #[inline(always)]
        fn add(simd: $token, a: $vector, b: $vector) -> $vector {
            simd.add_i32(a, b)
        }

        #[inline(always)]
        unsafe fn start<const MR: usize, const NV: usize>(
            simd: $token,
            start: &Start<'_>,
            rows: (usize, &[usize; MR]),
            col_sums: *const i32,
            columns: (usize, usize),
        ) -> [[$vector; NV]; MR] {
            // SAFETY: the caller's promise.
            unsafe { start_integers(simd, <Self::Lhs as crate::kernels::simd::Element>::OFFSET, start, rows, col_sums, columns) }
        }
    };
}

mod scalar;
pub use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod codes512;
#[cfg(target_arch = "x86_64")]
mod lanes256;
#[cfg(target_arch = "x86_64")]
mod lanes512;
#[cfg(target_arch = "x86_64")]
mod lookup512;
#[cfg(target_arch = "x86_64")]
mod vnni256;
#[cfg(target_arch = "x86_64")]
pub use {
    amx::{Amx, AmxUnit},
    avx2::Avx2,
    avx512::Avx512,
    avx512_vnni::Avx512Vnni,
    vnni256::{AvxVnni, Vnni256},
};

#[cfg(target_arch = "aarch64")]
mod lanes128;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
#[cfg(target_arch = "aarch64")]
pub use {neon::Neon, neon_dot::NeonDot, neon_i8mm::NeonI8mm};

/// Operations on registers alone, each one an intrinsic or two.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! register_ops {
    ($(fn $name:ident($($a:ident: $t:ty),*) -> $r:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: `self` exists only on a processor that has the instructions, and only registers are touched.
            unsafe { $body }
        })*
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use register_ops;
