//! Which instruction set runs: detected at run time, chosen when weights are packed.

use super::arch;
use super::simd::Simd;
use crate::error::{Error, Result};

macro_rules! instruction_sets {
    ($($(#[$doc:meta])* $isa:ident($token:ident, $name:literal, $tile:literal) $(on $arch:literal)?;)*) => {
        /// An instruction set that has kernels of its own. Integer results are the same on each, bit for bit.
        ///
        /// ```
        /// use lowprec::kernels::Isa;
        /// assert!(Isa::available().contains(&Isa::Scalar));
        /// assert!(Isa::available().contains(&Isa::best()));
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Isa {
            $($(#[$doc])* $isa,)*
        }

        impl Isa {
            /// From the slowest to the fastest of each architecture.
            const ALL: &'static [Isa] = &[$(Isa::$isa),*];

            /// Its name, as it stands in kernel names.
            pub fn name(self) -> &'static str {
                match self {
                    $(Isa::$isa => $name,)*
                }
            }

            /// The name of its kernel for products: rows (where k is long), columns and steps of k that the tile takes at a time.
            pub(super) fn gemm_kernel(self) -> &'static str {
                match self {
                    $(Isa::$isa => concat!("u8i8-gemm-", $tile, "-", $name),)*
                }
            }

            /// The name of its kernel for convolutions.
            pub(super) fn conv_kernel(self) -> &'static str {
                match self {
                    $(Isa::$isa => concat!("u8i8-conv-", $tile, "-", $name),)*
                }
            }

            /// The name of its kernel for convolutions by fewer products.
            pub(super) fn winograd_kernel(self) -> &'static str {
                match self {
                    $(Isa::$isa => concat!("u8i8-winograd-", $name),)*
                }
            }

            /// The name of its kernel for depthwise convolutions.
            pub(super) fn depthwise_kernel(self) -> &'static str {
                match self {
                    $(Isa::$isa => concat!("u8i8-depthwise-", $name),)*
                }
            }

            /// The name of its kernel for convolutions in narrow groups.
            pub(super) fn grouped_kernel(self) -> &'static str {
                match self {
                    $(Isa::$isa => concat!("u8i8-grouped-", $name),)*
                }
            }

            /// Whether this processor has it. Detection is cached by the standard library.
            pub fn is_available(self) -> bool {
                match self {
                    $($(#[cfg(target_arch = $arch)])? Isa::$isa => arch::$token::detect().is_some(),)*
                    #[allow(unreachable_patterns)]
                    _ => false,
                }
            }

            /// Runs `visitor` with the token of this instruction set: the one place where a value becomes a type.
            ///
            /// # Panics
            /// When this processor does not have it; every caller holds an [`Isa`] that [`Isa::checked`] passed.
            pub(super) fn visit<V: Visitor>(self, visitor: V) -> V::Out {
                match self {
                    $($(#[cfg(target_arch = $arch)])?
                    Isa::$isa => visitor.visit(arch::$token::detect().expect("checked when the weights were packed")),)*
                    #[allow(unreachable_patterns)]
                    _ => unreachable!("never available on this architecture, and checked before"),
                }
            }
        }
    };
}

instruction_sets! {
    /// Plain Rust on small arrays: every processor, and the twin that the others are tested against.
    Scalar(Scalar, "scalar", "4x8x4");
    /// x86-64 with AVX2 and FMA. Activations are widened to 16 bits, so `vpmaddwd` is exact.
    Avx2(Avx2, "avx2", "6x16x2") on "x86_64";
    /// x86-64 with AVX-VNNI: `vpdpbusd` in 256 bits, VEX encoding.
    AvxVnni(AvxVnni, "avxvnni", "6x16x4") on "x86_64";
    /// x86-64 with AVX-512 F, BW, DQ and VL, without VNNI. Activations are widened to 16 bits.
    Avx512(Avx512, "avx512", "12x32x2") on "x86_64";
    /// x86-64 with AVX-512 VL and VNNI: `vpdpbusd` in 256 bits, EVEX encoding.
    Vnni256(Vnni256, "vnni256", "6x16x4") on "x86_64";
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: `vpdpbusd`, four products per lane and instruction.
    Avx512Vnni(Avx512Vnni, "avx512vnni", "12x32x4") on "x86_64";
    /// x86-64 with AVX-512 VNNI and AMX, on Linux: products of eight rows or more and dense convolutions by `tdpbusd` in tiles, all else,
    /// and sums of a few products, as [`Isa::Avx512Vnni`].
    ///
    /// Whoever asks what is there ([`Isa::best`], [`Isa::available`]) asks the system for leave to use tiles, once for the whole process:
    /// it then refuses alternate signal stacks that are too small to save tiles on, and refuses leave where there is one.
    Amx(Amx, "amx", "32x32x64") on "x86_64";
    /// 64-bit Arm, any. Activations are widened to 16 bits, so `smlal` is exact.
    Neon(Neon, "neon", "5x16x1") on "aarch64";
    /// 64-bit Arm with dot products: `sdot`, four products per lane and instruction. Activations become signed.
    NeonDot(NeonDot, "neondot", "6x16x4") on "aarch64";
    /// 64-bit Arm with matrix instructions for bytes: `usmmla`, eight products per lane and instruction.
    NeonI8mm(NeonI8mm, "neoni8mm", "6x16x8") on "aarch64";
}

impl Isa {
    /// The fastest one that this processor has.
    pub fn best() -> Isa {
        Isa::ALL.iter().rev().copied().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// Those that this processor has, from the slowest to the fastest.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    /// Runs `work`, plain loops that are inlined into it, where the compiler may use the instruction set.
    ///
    /// # Panics
    /// When this processor does not have it.
    pub(crate) fn vectorized<R>(self, work: impl FnOnce() -> R) -> R {
        self.visit(Plain(work))
    }

    /// `self`, or the error that names those which are there.
    pub(super) fn checked(self) -> Result<Isa> {
        if self.is_available() {
            return Ok(self);
        }
        let available: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        Err(Error::Isa { isa: self.name(), available: available.join(", ") })
    }
}

/// Work that is written once for every instruction set.
pub(super) trait Visitor {
    type Out;
    /// Runs outside the instruction set's functions: hot loops go through [`Simd::vectorize`] or a tile.
    fn visit<S: Simd>(self, simd: S) -> Self::Out;
}

/// Work without a word of [`Simd`].
struct Plain<F>(F);

impl<R, F: FnOnce() -> R> Visitor for Plain<F> {
    type Out = R;
    fn visit<S: Simd>(self, simd: S) -> R {
        simd.vectorize(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dot::Dot;
    use crate::kernels::matrix_unit::{SIDE, TILE_BYTES};

    struct TileName;

    impl Visitor for TileName {
        type Out = String;
        fn visit<S: Simd>(self, simd: S) -> String {
            match simd.matrix_unit() {
                Some(_) => format!("{SIDE}x{SIDE}x{TILE_BYTES}"),
                None => format!("{}x{}x{}", S::MR, S::NV * S::LANES, S::Int8::KU),
            }
        }
    }

    #[test]
    fn names_tell_the_tile() {
        for isa in Isa::available() {
            assert_eq!(isa.gemm_kernel(), format!("u8i8-gemm-{}-{}", isa.visit(TileName), isa.name()));
        }
    }
}
