//! Products of 16-bit numbers, two to a lane: what convolutions by fewer products ([`super::winograd`]) are made of.

use super::dot::Dot;
use super::simd::Simd;
use super::tile::Start;

/// Vectors of `2 * LANES` numbers of 16 bits, and their products, two to a word, in i32 that wraps.
///
/// # Safety
/// As for [`Dot`].
pub unsafe trait Pairs<S: Simd>: Dot<S, Lhs = i16, Weight = i16, Acc = S::I32> {
    /// Whether there are such products: what else is here is called only then.
    const AVAILABLE: bool;
    /// Whether numbers of `4 * LANES` channels are taken apart into those of even and those of odd ones.
    const SPLIT: bool;
    /// `2 * LANES` numbers.
    type Numbers: Copy;

    /// `a + b`, which wraps, as do the others.
    fn add_numbers(simd: S, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// `a - b`.
    fn sub_numbers(simd: S, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// `4 * a`.
    fn quadruple(simd: S, a: Self::Numbers) -> Self::Numbers;
    /// Writes all numbers.
    ///
    /// # Safety
    /// `p` is writable for `2 * LANES` numbers.
    unsafe fn store_numbers(simd: S, p: *mut i16, a: Self::Numbers);
    /// The activations of `4 * LANES` channels: even and odd ones where [`Pairs::SPLIT`], else one half after the other.
    ///
    /// # Safety
    /// `p` is readable for as many.
    unsafe fn activations(simd: S, p: *const <S::Int8 as Dot<S>>::Lhs) -> [Self::Numbers; 2];
    /// The weights of four channels, for `LANES` columns: two to each lane, of the channels that lie in one word of
    /// [`Pairs::activations`]. `step` weights are from a word to the next, where a word holds two.
    ///
    /// # Safety
    /// `p` is readable for the vectors of four channels.
    unsafe fn four_weights(simd: S, p: *const i8, step: usize) -> [Self::Numbers; 2];
    /// `a - b`.
    fn sub_i32(simd: S, a: S::I32, b: S::I32) -> S::I32;
    /// `a >> n`, the sign shifted in, `n` below 32.
    fn shift_down(simd: S, a: S::I32, n: u32) -> S::I32;
}

/// Where there are none, or none that are worth it.
#[derive(Debug, Clone, Copy)]
pub enum NoPairs {}

/// Functions that are never called.
macro_rules! absent {
    () => {};
    (fn $name:ident $([$($c:ident)*])? ($($t:ty),*) -> $r:ty; $($rest:tt)*) => {
        fn $name $(<$(const $c: usize),*>)? ($(_: $t),*) -> $r { unreachable!("only where AVAILABLE says so") }
        absent!($($rest)*);
    };
    (unsafe fn $name:ident $([$($c:ident)*])? ($($t:ty),*) -> $r:ty; $($rest:tt)*) => {
        unsafe fn $name $(<$(const $c: usize),*>)? ($(_: $t),*) -> $r { unreachable!("only where AVAILABLE says so") }
        absent!($($rest)*);
    };
}

// SAFETY: i16 is valid for every bit pattern, and two are 4 bytes.
unsafe impl<S: Simd> Dot<S> for NoPairs {
    const KU: usize = 2;
    const EXACT: bool = true;
    type Lhs = i16;
    type Weight = i16;
    type Acc = S::I32;
    type Word = S::I32;
    type Weights = S::I32;

    absent! {
        fn zero(S) -> S::I32;
        fn add(S, S::I32, S::I32) -> S::I32;
        unsafe fn start[MR NV](S, &Start<'_>, (usize, &[usize; MR]), *const i32, (usize, usize)) -> [[S::I32; NV]; MR];
        unsafe fn word(S, *const i16) -> S::I32;
        unsafe fn weights(S, *const i16) -> S::I32;
        fn dot(S, S::I32, S::I32, S::I32) -> S::I32;
        unsafe fn lane_words(S, *const i16) -> S::I32;
        unsafe fn lane_weights(S, *const i16) -> S::I32;
    }
}

// SAFETY: as above.
unsafe impl<S: Simd> Pairs<S> for NoPairs {
    const AVAILABLE: bool = false;
    const SPLIT: bool = false;
    type Numbers = S::I32;

    absent! {
        fn add_numbers(S, S::I32, S::I32) -> S::I32;
        fn sub_numbers(S, S::I32, S::I32) -> S::I32;
        fn quadruple(S, S::I32) -> S::I32;
        unsafe fn store_numbers(S, *mut i16, S::I32) -> ();
        unsafe fn activations(S, *const <S::Int8 as Dot<S>>::Lhs) -> [S::I32; 2];
        unsafe fn four_weights(S, *const i8, usize) -> [S::I32; 2];
        fn sub_i32(S, S::I32, S::I32) -> S::I32;
        fn shift_down(S, S::I32, u32) -> S::I32;
    }
}

/// What is the same of all products of pairs, in an implementation of [`Dot`].
#[cfg(target_arch = "x86_64")]
macro_rules! pair_dot {
    ($token:ty, $vector:ty) => {
        const KU: usize = 2;
        const EXACT: bool = true;
        type Lhs = i16;
        type Weight = i16;
        type Acc = $vector;
        type Word = $vector;
        type Weights = $vector;

        #[inline(always)]
        fn zero(simd: $token) -> $vector {
            simd.splat_i32(0)
        }

        #[inline(always)]
        fn add(simd: $token, a: $vector, b: $vector) -> $vector {
            simd.add_i32(a, b)
        }

        /// Zeros: what sums start from is added when they are whole.
        #[inline(always)]
        unsafe fn start<const MR: usize, const NV: usize>(
            simd: $token,
            _: &Start<'_>,
            _: (usize, &[usize; MR]),
            _: *const i32,
            _: (usize, usize),
        ) -> [[$vector; NV]; MR] {
            [[simd.splat_i32(0); NV]; MR]
        }

        #[inline(always)]
        unsafe fn word(simd: $token, p: *const i16) -> $vector {
            // SAFETY: 4 bytes at `p`, by the caller's promise.
            simd.splat_i32(unsafe { p.cast::<i32>().read_unaligned() })
        }

        #[inline(always)]
        unsafe fn weights(simd: $token, p: *const i16) -> $vector {
            // SAFETY: two numbers for each lane at `p`, by the caller's promise.
            unsafe { simd.load_i32(p.cast(), LANES) }
        }

        #[inline(always)]
        unsafe fn lane_words(simd: $token, p: *const i16) -> $vector {
            // SAFETY: LANES numbers at `p`, by the caller's promise.
            unsafe { simd.load_halves(p.cast()) }
        }

        #[inline(always)]
        unsafe fn lane_weights(simd: $token, p: *const i16) -> $vector {
            // SAFETY: as above.
            unsafe { simd.load_halves(p.cast()) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use pair_dot;
