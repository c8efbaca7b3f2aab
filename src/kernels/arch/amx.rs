//! AMX: `tdpbusd` adds the products of a tile of unsigned activations, sixteen rows of 64, and one of signed weights to sixteen rows of
//! sixteen sums, in as many cycles as there are rows: eight times what `vpdpbusd` does.
//!
//! All in assembly, as the intrinsics are not stable. By the rules of inline assembly, what one block leaves in a register that it does not
//! declare is undefined in the next one; but no function here or elsewhere enables the compiler's own use of tiles, so it has no instruction
//! that could touch them in between.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::sync::OnceLock;

use super::Avx512Vnni;
use crate::kernels::matrix_unit::{MatrixUnit, SIDE, SquareShape, Steps, TILE, TILE_WORDS};

/// AVX-512 with VNNI beside a matrix unit.
pub enum Amx {}

impl Amx {
    pub fn detect() -> Option<Avx512Vnni> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let vectors = Avx512Vnni::detect()?;
        PERMITTED.get_or_init(|| is_there() && is_permitted()).then(|| vectors.with_unit(AmxUnit(())))
    }
}

/// Whether the processor has tiles of bytes and the system saves them: Intel's manual, volume 1, chapter 18.
fn is_there() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: the system has enabled it, as the caller saw.
        unsafe { _xgetbv(0) }
    }
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    /// Configuration and data of tiles.
    const SAVED: u64 = 1 << 17 | 1 << 18;
    // SAFETY: every x86-64 processor has `cpuid`. Newer compilers know, and call the block unneeded.
    #[allow(unused_unsafe)]
    let (last, enabled, features) = unsafe { (__cpuid(0).eax, __cpuid(1).ecx, __cpuid_count(7, 0).edx) };
    if !is_x86_feature_detected!("xsave") || last < 7 || enabled & OSXSAVE == 0 || features & TILE_AND_INT8 != TILE_AND_INT8 {
        return false;
    }
    // SAFETY: `xsave` was detected.
    unsafe { saved() & SAVED == SAVED }
}

/// Asks the system for room to save tiles in, which it gives a process for all its threads.
fn is_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        // SAFETY: it changes nothing but what the process may use; where the system does not know it, it says so.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Exists only where AMX with 8-bit tiles does and may be used.
#[derive(Debug, Clone, Copy)]
pub struct AmxUnit(());

/// Bytes between the rows of sums.
const SUM_STRIDE: usize = SIDE * size_of::<i32>();

/// A loop over tiles of words: a tile of activations after the other goes through register `$a`, of weights through `$b`.
macro_rules! add {
    ($steps:ident, $n:expr, halves: [$($half:ident)*], [$($line:expr),* $(,)?]) => {
        asm!(
            "2:",
            $($line,)*
            $(concat!("add {", stringify!($half), "}, 64"),)*
            "add {b}, {step}",
            "dec {n}",
            "jnz 2b",
            $($half = inout(reg) add!(@half $half $steps) => _,)*
            b = inout(reg) $steps.weights => _,
            lda = in(reg) $steps.stride,
            ldb = in(reg) 4 * TILE * $steps.vectors,
            step = in(reg) 4 * TILE_WORDS * TILE * $steps.vectors,
            n = inout(reg) $n => _,
            options(nostack, readonly)
        )
    };
    (@half a0 $steps:ident) => { $steps.halves[0] };
    (@half a1 $steps:ident) => { $steps.halves[1] };
}

/// [`add`] for any square, with one register for activations and one for weights.
macro_rules! add_through {
    ($steps:ident, $n:expr, $a:literal, $b:literal) => {
        match ($steps.both, $steps.vectors) {
            (true, 1) => add!($steps, $n, halves: [a0 a1], [
                concat!("tileloadd ", $a, ", [{a0} + {lda}]"),
                concat!("tileloadd ", $b, ", [{b} + {ldb}]"),
                concat!("tdpbusd tmm0, ", $a, ", ", $b),
                concat!("tileloadd ", $a, ", [{a1} + {lda}]"),
                concat!("tdpbusd tmm2, ", $a, ", ", $b),
            ]),
            (false, 1) => add!($steps, $n, halves: [a0], [
                concat!("tileloadd ", $a, ", [{a0} + {lda}]"),
                concat!("tileloadd ", $b, ", [{b} + {ldb}]"),
                concat!("tdpbusd tmm0, ", $a, ", ", $b),
            ]),
            (false, _) => add!($steps, $n, halves: [a0], [
                concat!("tileloadd ", $a, ", [{a0} + {lda}]"),
                concat!("tileloadd ", $b, ", [{b} + {ldb}]"),
                concat!("tdpbusd tmm0, ", $a, ", ", $b),
                concat!("tileloadd ", $b, ", [{b} + {ldb} + 64]"),
                concat!("tdpbusd tmm1, ", $a, ", ", $b),
            ]),
            (true, _) => add!($steps, $n, halves: [a0 a1], [
                concat!("tileloadd ", $a, ", [{a0} + {lda}]"),
                concat!("tileloadd ", $b, ", [{b} + {ldb}]"),
                concat!("tdpbusd tmm0, ", $a, ", ", $b),
                concat!("tileloadd ", $a, ", [{a1} + {lda}]"),
                concat!("tdpbusd tmm2, ", $a, ", ", $b),
                concat!("tileloadd ", $b, ", [{b} + {ldb} + 64]"),
                concat!("tdpbusd tmm3, ", $a, ", ", $b),
                concat!("tileloadd ", $a, ", [{a0} + {lda}]"),
                concat!("tdpbusd tmm1, ", $a, ", ", $b),
            ]),
        }
    };
}

// SAFETY: `store` writes every row and column of the tile that the caller names, `exchange` of all four.
unsafe impl MatrixUnit for AmxUnit {
    fn begin(self, SquareShape { rows, rest }: SquareShape) {
        /// Rows and bytes of a row of each tile register, as `ldtilecfg` reads them.
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        assert!((1..=TILE).contains(&rows) && rest < TILE_WORDS, "a tile has at most {TILE} rows of {TILE_WORDS} words");
        let mut tiles = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        tiles.row_bytes[..8].fill(64);
        // Sums in 0 to 3, then activations and weights: where there is a rest, its own in the last two.
        tiles.rows[..6].fill(rows as u8);
        tiles.rows[6..8].fill(TILE_WORDS as u8);
        if rest > 0 {
            tiles.rows[5..8].copy_from_slice(&[TILE_WORDS as u8, rows as u8, rest as u8]);
            tiles.row_bytes[6] = 4 * rest as u16;
        }
        // SAFETY: `self` exists only where tiles do and may be used; the palette has this configuration, with the numbers asserted above.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &tiles, options(nostack, readonly)) }
    }

    #[inline(always)]
    unsafe fn clear(self) {
        // SAFETY: registers of the unit alone, made ready by the caller's promise.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) }
    }

    #[inline(always)]
    unsafe fn add(self, steps: &Steps) {
        // SAFETY: the caller's promise: as many rows and words are readable as the configuration says.
        unsafe {
            match steps {
                Steps { tiles: 0, .. } => add_through!(steps, 1usize, "tmm6", "tmm7"),
                // Two registers for activations, which need not be loaded twice then.
                Steps { both: true, vectors: 2, rest: false, .. } => add!(steps, steps.tiles, halves: [a0 a1], [
                    "tileloadd tmm4, [{a0} + {lda}]",
                    "tileloadd tmm6, [{b} + {ldb}]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a1} + {lda}]",
                    "tdpbusd tmm2, tmm5, tmm6",
                    "tileloadd tmm6, [{b} + {ldb} + 64]",
                    "tdpbusd tmm1, tmm4, tmm6",
                    "tdpbusd tmm3, tmm5, tmm6",
                ]),
                Steps { rest: false, .. } => add_through!(steps, steps.tiles, "tmm4", "tmm6"),
                _ => add_through!(steps, steps.tiles, "tmm4", "tmm5"),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, half: usize, vector: usize, sums: *mut i32) {
        macro_rules! store {
            ($tile:literal) => {
                asm!(
                    concat!("tilestored [{} + {}], ", $tile),
                    in(reg) sums.wrapping_add(half * TILE * SIDE + vector * TILE),
                    in(reg) SUM_STRIDE,
                    options(nostack)
                )
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match (half, vector) {
                (0, 0) => store!("tmm0"),
                (0, _) => store!("tmm1"),
                (_, 0) => store!("tmm2"),
                (_, _) => store!("tmm3"),
            }
        }
    }

    #[inline(always)]
    unsafe fn exchange(self, steps: &Steps, sums: *mut i32) {
        debug_assert!(steps.both && steps.vectors == 2 && !steps.rest);
        // SAFETY: the caller's promise: whole tiles of 64 bytes, and room for a square of sums.
        unsafe {
            asm!(
                "tilestored [{sums} + {stride}], tmm0",
                "tilezero tmm0",
                "tileloadd tmm4, [{a0} + {lda}]",
                "tileloadd tmm6, [{b} + {ldb}]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tilestored [{sums} + {stride} + 2048], tmm2",
                "tilezero tmm2",
                "tileloadd tmm5, [{a1} + {lda}]",
                "tdpbusd tmm2, tmm5, tmm6",
                "tilestored [{sums} + {stride} + 64], tmm1",
                "tilezero tmm1",
                "tileloadd tmm6, [{b} + {ldb} + 64]",
                "tdpbusd tmm1, tmm4, tmm6",
                "tilestored [{sums} + {stride} + 2112], tmm3",
                "tilezero tmm3",
                "tdpbusd tmm3, tmm5, tmm6",
                sums = in(reg) sums,
                stride = in(reg) SUM_STRIDE,
                a0 = in(reg) steps.halves[0],
                a1 = in(reg) steps.halves[1],
                lda = in(reg) steps.stride,
                b = in(reg) steps.weights,
                ldb = in(reg) 4 * SIDE,
                options(nostack)
            )
        }
    }

    #[inline(always)]
    fn prefetch(self, p: *const i8) {
        // SAFETY: a hint: it reads nothing that could fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p) }
    }

    fn end(self) {
        // SAFETY: `self` exists only where tiles do.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}
