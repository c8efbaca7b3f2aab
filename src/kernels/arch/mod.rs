//! One file per instruction set: its token, its vectors, and which tiles it runs.

mod scalar;
pub use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512_vnni::Avx512Vnni;

/// Operations on registers alone, each one an intrinsic or two.
#[cfg(target_arch = "x86_64")]
macro_rules! register_ops {
    ($(fn $name:ident($($a:ident: $t:ty),*) -> $r:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: `self` exists only on a processor that has the instructions, and only registers are touched.
            unsafe { $body }
        })*
    };
}
#[cfg(target_arch = "x86_64")]
use register_ops;
