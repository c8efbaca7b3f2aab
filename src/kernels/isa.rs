//! Which instruction set runs: detected at run time, chosen when weights are packed.

use super::arch;
use super::simd::Simd;
use crate::error::{Error, Result};

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
    /// Plain Rust on small arrays: every processor, and the twin that the others are tested against.
    Scalar,
    /// x86-64 with AVX2 and FMA. Activations are widened to 16 bits, so `vpmaddwd` is exact.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: `vpdpbusd`, four products per lane and instruction.
    Avx512Vnni,
}

impl Isa {
    /// From the slowest to the fastest.
    const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni];

    /// The fastest one that this processor has. Detection is cached by the standard library.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// Those that this processor has, from the slowest to the fastest.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Its name, as it stands in kernel names.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => arch::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => arch::Avx512Vnni::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni => false,
        }
    }

    /// `self`, or the error that names those which are there.
    pub(super) fn checked(self) -> Result<Isa> {
        if self.is_available() {
            return Ok(self);
        }
        let available: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        Err(Error::Isa { isa: self.name(), available: available.join(", ") })
    }

    /// Runs `visitor` with the token of this instruction set: the one place where a value becomes a type.
    ///
    /// # Panics
    /// When this processor does not have it; every caller holds an [`Isa`] that [`Isa::checked`] passed.
    pub(super) fn visit<V: Visitor>(self, visitor: V) -> V::Out {
        match self {
            Isa::Scalar => visitor.visit(arch::Scalar),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => visitor.visit(arch::Avx2::detect().expect("checked when the weights were packed")),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => visitor.visit(arch::Avx512Vnni::detect().expect("checked when the weights were packed")),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni => unreachable!("never available on this architecture, and checked before"),
        }
    }
}

/// Work that is written once for every instruction set.
pub(super) trait Visitor {
    type Out;
    /// Runs outside the instruction set's functions: hot loops go through [`Simd::vectorize`] or a tile.
    fn visit<S: Simd>(self, simd: S) -> Self::Out;
}
