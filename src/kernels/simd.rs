//! The vocabulary that tiles and output stages are written in: a token per instruction set and its vectors.

use super::operand::Codes;
use super::output::Store;
use super::tile::{LaneTile, Tile, Zero};

/// A token of an instruction set, with the operations that the kernels need.
///
/// # Safety
/// A value may only be constructible on a processor that has the instructions, since its methods run them unasked.
pub unsafe trait Simd: Copy + Send + Sync + 'static {
    /// 32-bit lanes of a vector.
    const LANES: usize;
    /// Most rows of a product tile, at most [`super::tile::ROWS`].
    const MR: usize;
    /// `LANES` integers.
    type I32: Copy;
    /// `LANES` floats.
    type F32: Copy;
    /// How 8-bit codes are multiplied.
    type Int8: Dot<Self, Acc = Self::I32, Weight = i8>;

    /// Runs `f` where the compiler may use the instruction set: the only function that enables it.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;
    /// One product tile of `mr` rows and `nv` vectors of columns.
    ///
    /// # Safety
    /// See [`super::tile::product_tile`].
    unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>);
    /// One depthwise tile of `mr` (at most 4) rows and `nv` vectors of channels.
    ///
    /// # Safety
    /// See [`super::tile::lane_tile`].
    unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>);

    fn splat_i32(self, x: i32) -> Self::I32;
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Nearest float, ties to even.
    fn to_f32(self, a: Self::I32) -> Self::F32;
    fn splat_f32(self, x: f32) -> Self::F32;
    fn add_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`: fused where the instruction set has it, two roundings where not.
    fn mul_add_f32(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: `b` when either is NaN.
    fn max_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: `b` when either is NaN.
    fn min_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Nearest integer, ties to even, of values within i32.
    fn round_i32(self, a: Self::F32) -> Self::I32;

    /// The first `lanes` integers at `p`, 0 in the other lanes.
    ///
    /// # Safety
    /// `p` is valid for reads of `lanes` integers and `1 <= lanes <= LANES`.
    unsafe fn load_i32(self, p: *const i32, lanes: usize) -> Self::I32;
    /// The first `lanes` floats at `p`, 0 in the other lanes.
    ///
    /// # Safety
    /// `p` is valid for reads of `lanes` floats and `1 <= lanes <= LANES`.
    unsafe fn load_f32(self, p: *const f32, lanes: usize) -> Self::F32;
    /// Writes the first `lanes` integers.
    ///
    /// # Safety
    /// `p` is valid for writes of `lanes` integers and `1 <= lanes <= LANES`.
    unsafe fn store_i32(self, p: *mut i32, a: Self::I32, lanes: usize);
    /// Writes the first `lanes` floats.
    ///
    /// # Safety
    /// `p` is valid for writes of `lanes` floats and `1 <= lanes <= LANES`.
    unsafe fn store_f32(self, p: *mut f32, a: Self::F32, lanes: usize);
    /// Writes the low bytes of the first `lanes` integers.
    ///
    /// # Safety
    /// `p` is valid for writes of `lanes` bytes and `1 <= lanes <= LANES`.
    unsafe fn store_low_bytes(self, p: *mut u8, a: Self::I32, lanes: usize);
}

/// How activations meet weights. Activations are read as 4-byte words, broadcast to all lanes; a word holds
/// `KU` elements, and `LANES * KU` weights lie together in memory.
///
/// # Safety
/// `Lhs` and `Weight` are valid for every bit pattern, and `KU * size_of::<Lhs>() == 4`.
pub unsafe trait Dot<S: Simd>: Copy + Send + Sync + 'static {
    /// Elements of one word: steps of k that one instruction takes.
    const KU: usize;
    /// An activation in the workspace.
    type Lhs: Element;
    /// A weight in memory.
    type Weight: Element;
    /// `LANES` sums.
    type Acc: Copy;
    /// A broadcast word.
    type Word: Copy;
    /// `LANES * KU` weights.
    type Weights: Copy;

    /// The sums that a tile starts from: `-zero_point * col_sum`, or zero.
    ///
    /// # Safety
    /// As for [`super::tile::product_tile`]: `col_sums` has `columns` elements, `zero` one for each of `params`.
    unsafe fn init<const MR: usize, const NV: usize>(
        simd: S,
        zero: Zero<'_>,
        params: &[usize; MR],
        col_sums: *const i32,
        columns: usize,
    ) -> [[Self::Acc; NV]; MR];
    /// The word at `p`, in every lane.
    ///
    /// # Safety
    /// `p` is valid for reads of 4 bytes; it need not be aligned.
    unsafe fn word(simd: S, p: *const Self::Lhs) -> Self::Word;
    /// `LANES * KU` weights.
    ///
    /// # Safety
    /// `p` is valid for reads of that many.
    unsafe fn weights(simd: S, p: *const Self::Weight) -> Self::Weights;
    /// `acc[lane] + sum over i < KU of word[i] * weights[lane][i]`.
    fn dot(simd: S, acc: Self::Acc, word: Self::Word, weights: Self::Weights) -> Self::Acc;

    /// `LANES` activations, one per lane, as words with one element.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn lane_words(simd: S, p: *const Self::Lhs) -> Self::Word;
    /// `LANES` weights, one per lane, as the first of its `KU`.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` weights.
    unsafe fn lane_weights(simd: S, p: *const Self::Weight) -> Self::Weights;
}

/// A number that lives in a workspace or in packed weights.
pub trait Element: bytemuck::Pod + Default + Send + Sync + PartialEq + std::fmt::Debug {
    /// Its value from a code in 0..=255. Floats take no codes: the value itself.
    fn from_code(code: i32) -> Self;

    /// `codes` as they are, if tiles can read them so.
    fn in_place(codes: Codes<'_>) -> Option<&[Self]> {
        let _ = codes;
        None
    }
}

impl Element for u8 {
    fn in_place(codes: Codes<'_>) -> Option<&[u8]> {
        match codes {
            Codes::U8(codes) => Some(codes),
            Codes::I8(_) => None,
        }
    }

    #[inline(always)]
    fn from_code(code: i32) -> u8 {
        code as u8
    }
}

impl Element for i16 {
    #[inline(always)]
    fn from_code(code: i32) -> i16 {
        code as i16
    }
}

impl Element for i8 {
    #[inline(always)]
    fn from_code(code: i32) -> i8 {
        code as i8
    }
}

impl Element for f32 {
    #[inline(always)]
    fn from_code(code: i32) -> f32 {
        code as f32
    }
}

/// Products of floats, the same on every instruction set: a word is one float.
#[derive(Debug, Clone, Copy)]
pub struct Float;

// SAFETY: f32 is valid for every bit pattern, and one f32 is 4 bytes.
unsafe impl<S: Simd> Dot<S> for Float {
    const KU: usize = 1;
    type Lhs = f32;
    type Weight = f32;
    type Acc = S::F32;
    type Word = S::F32;
    type Weights = S::F32;

    #[inline(always)]
    unsafe fn init<const MR: usize, const NV: usize>(
        simd: S,
        _: Zero<'_>,
        _: &[usize; MR],
        _: *const i32,
        _: usize,
    ) -> [[Self::Acc; NV]; MR] {
        [[simd.splat_f32(0.0); NV]; MR]
    }

    #[inline(always)]
    unsafe fn word(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, 4 bytes at `p`.
        simd.splat_f32(unsafe { p.read_unaligned() })
    }

    #[inline(always)]
    unsafe fn weights(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        unsafe { simd.load_f32(p, S::LANES) }
    }

    #[inline(always)]
    fn dot(simd: S, acc: S::F32, word: S::F32, weights: S::F32) -> S::F32 {
        simd.mul_add_f32(word, weights, acc)
    }

    #[inline(always)]
    unsafe fn lane_words(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        unsafe { simd.load_f32(p, S::LANES) }
    }

    #[inline(always)]
    unsafe fn lane_weights(simd: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller's promise, LANES floats at `p`.
        unsafe { simd.load_f32(p, S::LANES) }
    }
}
