//! Plain Rust over arrays of four lanes, for every processor: the compiler makes of it what it can.

use crate::kernels::dot::Dot;
use crate::kernels::lowbit::SignedDot;
use crate::kernels::matrix_unit::NoMatrixUnit;
use crate::kernels::output::Store;
use crate::kernels::pairs::NoPairs;
use crate::kernels::simd::{CodeGrid, Simd, store_codes_by_lane};
use crate::kernels::tile::{LaneTile, Start, Tile, lane_tile, product_tile, start_integers, tile_arms};

/// Needs nothing of the processor.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

impl Scalar {
    pub fn detect() -> Option<Self> {
        Some(Scalar)
    }
}

const LANES: usize = 4;

#[inline(always)]
fn map<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// The first `lanes` elements at `p`, `T::default()` in the other lanes.
///
/// # Safety
/// `p` is valid for reads of `lanes` elements.
#[inline(always)]
unsafe fn load<T: Copy + Default>(p: *const T, lanes: usize) -> [T; LANES] {
    if lanes >= LANES {
        // SAFETY: LANES elements at `p`, by the caller's promise.
        return unsafe { p.cast::<[T; LANES]>().read_unaligned() };
    }
    // SAFETY: only the first `lanes` are read.
    std::array::from_fn(|i| if i < lanes { unsafe { p.add(i).read() } } else { T::default() })
}

/// Writes the first `lanes` elements.
///
/// # Safety
/// `p` is valid for writes of `lanes` elements.
#[inline(always)]
unsafe fn store<T: Copy>(p: *mut T, a: [T; LANES], lanes: usize) {
    for (i, x) in a.into_iter().enumerate().take(lanes) {
        // SAFETY: `i < lanes`.
        unsafe { p.add(i).write(x) }
    }
}

// SAFETY: no instructions beyond the target's baseline.
unsafe impl Simd for Scalar {
    const LANES: usize = LANES;
    const NV: usize = 2;
    const MR: usize = 4;
    const MR_MAX: usize = 4;
    const FUSED: bool = false;
    type I32 = [i32; LANES];
    type F32 = [f32; LANES];
    type Grid = CodeGrid;
    type Int8 = Int8;
    type Pairs = NoPairs;
    type Matrix = NoMatrixUnit;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>) {
        tile_arms!(self, product_tile, tile, mr, nv, [1 2 3 4], [1 2])
    }

    unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>) {
        tile_arms!(self, lane_tile, tile, mr, nv, [1 4], [1 2])
    }

    #[inline(always)]
    fn grid(self, grid: CodeGrid) -> CodeGrid {
        grid
    }

    #[inline(always)]
    unsafe fn store_codes<const R: usize, const NV: usize>(
        self,
        q: &[[Self::I32; NV]; R],
        grid: CodeGrid,
        dst: *mut u8,
        stride: usize,
        columns: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { store_codes_by_lane(self, q, grid, dst, stride, columns) }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I32 {
        [x; LANES]
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, i32::wrapping_mul)
    }

    #[inline(always)]
    fn xor_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, |a, b| a ^ b)
    }

    #[inline(always)]
    fn or_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn and_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn shift_left_i32(self, a: Self::I32, n: u32) -> Self::I32 {
        a.map(|a| a << n)
    }

    #[inline(always)]
    fn shift_right_i32(self, a: Self::I32, n: u32) -> Self::I32 {
        a.map(|a| (a as u32 >> n) as i32)
    }

    #[inline(always)]
    fn shuffle_bytes(self, table: Self::I32, index: Self::I32) -> Self::I32 {
        let table: [u8; 4 * LANES] = bytemuck::cast(table);
        bytemuck::cast(bytemuck::cast::<_, [u8; 4 * LANES]>(index).map(|i| table[usize::from(i & 15)]))
    }

    #[inline(always)]
    fn f32_of_bits(self, a: Self::I32) -> Self::F32 {
        a.map(|x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    unsafe fn load_halves(self, p: *const u16) -> Self::I32 {
        // SAFETY: LANES numbers at `p`, by the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(i32::from)
    }

    #[inline(always)]
    fn lookup_f32(self, table: &[f32; 16], index: Self::I32) -> Self::F32 {
        index.map(|i| table[(i & 15) as usize])
    }

    #[inline(always)]
    fn is_zero(self, a: Self::I32) -> bool {
        a.into_iter().fold(0, |bits, x| bits | x) == 0
    }

    #[inline(always)]
    fn bits_of_f32(self, a: Self::F32) -> Self::I32 {
        a.map(|x| x.to_bits() as i32)
    }

    #[inline(always)]
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, i32::max)
    }

    #[inline(always)]
    fn min_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        map(a, b, i32::min)
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        a.map(|x| x as f32)
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn add_f32(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul_f32(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add_f32(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // Not `mul_add`: without the instruction that is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max_f32(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min_f32(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round_i32(self, a: Self::F32) -> Self::I32 {
        a.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32, lanes: usize) -> Self::I32 {
        // SAFETY: the caller's promise.
        unsafe { load(p, lanes) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32, lanes: usize) -> Self::F32 {
        // SAFETY: the caller's promise.
        unsafe { load(p, lanes) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8, lanes: usize) -> Self::I32 {
        // SAFETY: the caller's promise.
        unsafe { load(p, lanes) }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, a: Self::I32, lanes: usize) {
        // SAFETY: the caller's promise.
        unsafe { store(p, a, lanes) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, a: Self::F32, lanes: usize) {
        // SAFETY: the caller's promise.
        unsafe { store(p, a, lanes) }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, a: Self::I32, lanes: usize) {
        // SAFETY: the caller's promise.
        unsafe { store(p, a.map(|x| x as u8), lanes) }
    }
}

/// Codes as they are, four to a word.
#[derive(Debug, Clone, Copy)]
pub struct Int8;

// SAFETY: u8 and i8 are valid for every bit pattern, and four u8 are 4 bytes.
unsafe impl Dot<Scalar> for Int8 {
    const KU: usize = 4;
    type Lhs = u8;

    integer_dot!(Scalar, [i32; LANES], words: [[i32; 4]; LANES], weights: [[i8; 4]; LANES]);

    #[inline(always)]
    unsafe fn word(_: Scalar, p: *const u8) -> Self::Word {
        // SAFETY: 4 bytes at `p`, by the caller's promise.
        [unsafe { p.cast::<[u8; 4]>().read() }.map(i32::from); LANES]
    }

    #[inline(always)]
    unsafe fn weights(_: Scalar, p: *const i8) -> Self::Weights {
        // SAFETY: LANES * 4 weights at `p`, by the caller's promise.
        unsafe { p.cast::<Self::Weights>().read() }
    }

    #[inline(always)]
    fn dot(_: Scalar, acc: Self::Acc, word: Self::Word, weights: Self::Weights) -> Self::Acc {
        std::array::from_fn(|lane| (0..4).fold(acc[lane], |sum, i| sum.wrapping_add(word[lane][i] * i32::from(weights[lane][i]))))
    }

    #[inline(always)]
    unsafe fn lane_words(_: Scalar, p: *const u8) -> Self::Word {
        // SAFETY: LANES bytes at `p`, by the caller's promise.
        unsafe { load(p, LANES) }.map(|x| [i32::from(x), 0, 0, 0])
    }

    #[inline(always)]
    unsafe fn lane_weights(_: Scalar, p: *const i8) -> Self::Weights {
        // SAFETY: LANES weights at `p`, by the caller's promise.
        unsafe { load(p, LANES) }.map(|x| [x, 0, 0, 0])
    }
}

impl SignedDot<Scalar> for Int8 {
    #[inline(always)]
    fn signed_dot<const WIDE: bool>(_: Scalar, acc: [i32; LANES], codes: [i32; LANES], word: [i32; LANES]) -> [i32; LANES] {
        let (codes, word): ([[u8; 4]; LANES], [[i8; 4]; LANES]) = (bytemuck::cast(codes), bytemuck::cast(word));
        let product = |lane: usize, i: usize| i32::from(codes[lane][i]) * i32::from(word[lane][i]);
        std::array::from_fn(|lane| (0..4).fold(acc[lane], |sum, i| sum.wrapping_add(product(lane, i))))
    }
}
