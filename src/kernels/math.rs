//! Elementwise functions over slices: plain loops, compiled for the widest vectors that the processor has, on several threads
//! where the slices are large.
//!
//! What a loop computes has the same bits in every width, since nothing is fused and each element stands alone (or, in a
//! reduction, each lane of a number of lanes that the width has no part in).

#[cfg(target_arch = "x86_64")]
use super::arch;
#[cfg(target_arch = "x86_64")]
use super::simd::Simd;
pub(crate) use super::threads::{parts, split_rows};

/// Elements below which a second thread costs more than it saves.
pub(crate) const GRAIN: usize = 1 << 15;

/// Runs `f`, whose loops the compiler may turn into the widest vectors. It and what it calls must be `#[inline(always)]`.
#[inline]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = arch::Avx512::detect() {
            return simd.vectorize(f);
        }
        if let Some(simd) = arch::Avx2::detect() {
            return simd.vectorize(f);
        }
    }
    f()
}

/// `y[i] = f(x[i])`. What `f` holds it must hold by value: behind a pointer, `y` might overwrite it, and no vectors come out.
///
/// # Panics
/// When `x` is shorter than `y`.
pub(crate) fn map<T: Copy + Sync, U: Send>(x: &[T], y: &mut [U], threads: usize, f: impl Fn(T) -> U + Copy + Sync) {
    let x = &x[..y.len()];
    split_rows(y, 1, parts(threads, x.len(), GRAIN), &|start, y: &mut [U]| {
        let x = &x[start..start + y.len()];
        vectorized(
            #[inline(always)]
            || {
                // Out of what the closure borrows, into registers.
                #[allow(clippy::redundant_locals)]
                let f = f;
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(x);
                }
            },
        );
    });
}

/// [`map`] where speed doesn't matter: compiled once for each pair of types.
///
/// # Panics
/// When `x` is shorter than `y`.
pub(crate) fn each<T: Copy, U>(x: &[T], y: &mut [U], f: &dyn Fn(T) -> U) {
    let x = &x[..y.len()];
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
}
