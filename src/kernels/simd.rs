//! The vocabulary that tiles and output stages are written in: a token per instruction set and its vectors.

use super::dot::Dot;
use super::lowbit::SignedDot;
use super::matrix_unit::MatrixUnit;
use super::operand::Codes;
use super::output::{Destinations, Store};
use super::pairs::Pairs;
use super::tile::{LaneTile, Tile};

/// A token of an instruction set, with the operations that the kernels need.
///
/// # Safety
/// A value may only be constructible on a processor that has the instructions, since its methods run them unasked.
pub unsafe trait Simd: Copy + Send + Sync + 'static {
    /// 32-bit lanes of a vector.
    const LANES: usize;
    /// Vectors of columns in a product tile, at most 4.
    const NV: usize;
    /// Rows of a product tile where there are many and k is long.
    const MR: usize;
    /// Most rows of a product tile, at most [`super::tile::ROWS`]: a few more than `MR`, so that a product of few rows reads its
    /// weights once.
    const MR_MAX: usize;
    /// Whether [`Simd::mul_add_f32`] rounds once.
    const FUSED: bool;
    /// Whether [`Simd::permute_f32`] is there.
    const PERMUTES: bool = false;
    /// `LANES` integers.
    type I32: Copy;
    /// `LANES` floats.
    type F32: Copy;
    /// A [`CodeGrid`] as [`Simd::store_codes`] takes it.
    type Grid: Copy;
    /// How 8-bit codes are multiplied.
    type Int8: Dot<Self, Acc = Self::I32, Weight = i8> + SignedDot<Self>;
    /// How 16-bit numbers are multiplied.
    type Pairs: Pairs<Self>;
    /// What multiplies matrices beside the vectors.
    type Matrix: MatrixUnit;

    /// The matrix unit, if products are to use it.
    fn matrix_unit(self) -> Option<Self::Matrix> {
        None
    }

    /// Runs `f` where the compiler may use the instruction set: the only function that enables it.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;
    /// One product tile of `mr` rows and `nv` vectors of columns.
    ///
    /// # Safety
    /// See [`super::tile::product_tile`].
    unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>);
    /// Whether [`Simd::few_words`] is there: it takes 32 registers.
    const FEW_WORDS: bool = false;
    /// Product tiles of `mr` rows and `nv` vectors of columns each, whose words [`are_few`](super::few_words::are_few).
    ///
    /// # Safety
    /// See [`super::few_words::few_words`], of as many segments and words as the tiles'.
    unsafe fn few_words<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tiles: &Tile<'_, Self, D, T>) {
        let _ = (mr, nv, tiles);
        unreachable!("only where FEW_WORDS says so")
    }
    /// One depthwise tile of `mr` (1 or 4) rows and `nv` (at most 2) vectors of channels.
    ///
    /// # Safety
    /// See [`super::tile::lane_tile`].
    unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>);

    fn splat_i32(self, x: i32) -> Self::I32;
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn xor_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn or_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn and_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a << n`, `n` below 32.
    fn shift_left_i32(self, a: Self::I32, n: u32) -> Self::I32;
    /// `a >> n` of the bits, zeros shifted in, `n` below 32.
    fn shift_right_i32(self, a: Self::I32, n: u32) -> Self::I32;
    /// For each byte that of `table` with its number, below 16: `table` holds the same sixteen bytes in each four lanes.
    fn shuffle_bytes(self, table: Self::I32, index: Self::I32) -> Self::I32;
    /// Whether every lane is 0.
    fn is_zero(self, a: Self::I32) -> bool;
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn min_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Nearest float, ties to even.
    fn to_f32(self, a: Self::I32) -> Self::F32;
    /// The bits of floats, as they are.
    fn bits_of_f32(self, a: Self::F32) -> Self::I32;
    /// The floats of bits, as they are.
    fn f32_of_bits(self, a: Self::I32) -> Self::F32;
    fn splat_f32(self, x: f32) -> Self::F32;
    fn add_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`: fused where the instruction set has it, two roundings where not.
    fn mul_add_f32(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: `b` when either is NaN.
    fn max_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: `b` when either is NaN.
    fn min_f32(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Nearest integer, ties to even; `i32::MIN` below i32's range. Not for NaN, nor for values above that range.
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
    /// The first `lanes` bytes at `p` as integers 0 to 255, 0 in the other lanes.
    ///
    /// # Safety
    /// `p` is valid for reads of `lanes` bytes and `1 <= lanes <= LANES`.
    unsafe fn load_bytes(self, p: *const u8, lanes: usize) -> Self::I32;
    /// `LANES` numbers of 16 bits as integers 0 to 65535.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` numbers; it need not be aligned.
    unsafe fn load_halves(self, p: *const u16) -> Self::I32;
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

    /// `grid` for many calls of [`Simd::store_codes`]: a broadcast costs as much as what it is needed for.
    fn grid(self, grid: CodeGrid) -> Self::Grid;

    /// Writes `R` rows of codes, `stride` apart: `clamp(q + grid.zero_point)` in the first `columns` of `NV` vectors.
    ///
    /// # Safety
    /// `dst` is valid for writes of `columns` bytes in each of `R` rows, `(NV - 1) * LANES < columns <= NV * LANES`.
    unsafe fn store_codes<const R: usize, const NV: usize>(
        self,
        q: &[[Self::I32; NV]; R],
        grid: Self::Grid,
        dst: *mut u8,
        stride: usize,
        columns: usize,
    );

    /// Writes the codes of `4 * LANES` numbers in [`FRACTION`]s of a step, none negative, below 2^31: the steps that are whole in each, of
    /// a grid whose zero point is 0, clamped. Not if what is left of a step is below [`NEAR`] in any: then says false, and what is at `dst`
    /// is nothing. In the order of [`permute`](super::ingest::permute) where `PERMUTED`, which is for [`Dot::QUADS`].
    ///
    /// # Safety
    /// `dst` is valid for writes of `4 * LANES` bytes.
    #[inline(always)]
    unsafe fn store_whole_steps<const PERMUTED: bool>(self, steps: [Self::I32; 4], grid: Self::Grid, dst: *mut u8) -> bool {
        assert!(!PERMUTED, "only where QUADS says so");
        // Near ones have one whole step less if they are made smaller. Without closures, which become calls.
        let (near, mut differ) = (self.splat_i32(-NEAR), self.splat_i32(0));
        let mut whole = [[differ; 2]; 2];
        for v in 0..4 {
            differ = self.or_i32(differ, self.xor_i32(steps[v], self.add_i32(steps[v], near)));
            whole[v / 2][v % 2] = self.shift_right_i32(steps[v], FRACTION.ilog2());
        }
        if !self.is_zero(self.shift_right_i32(differ, FRACTION.ilog2())) {
            return false;
        }
        // SAFETY: the caller's promise: two rows next to each other.
        unsafe { self.store_codes::<2, 2>(&whole, grid, dst, 2 * Self::LANES, 2 * Self::LANES) };
        true
    }

    /// The first `lanes` of `a`, `rest` in the other lanes; at least one and at most `LANES`.
    #[inline(always)]
    fn keep_f32(self, a: Self::F32, lanes: usize, rest: Self::F32) -> Self::F32 {
        let mut memory = [0f32; 16];
        // SAFETY: no instruction set has more than sixteen lanes.
        unsafe {
            self.store_f32(memory.as_mut_ptr(), rest, Self::LANES);
            self.store_f32(memory.as_mut_ptr(), a, lanes);
            self.load_f32(memory.as_ptr(), Self::LANES)
        }
    }

    /// `LANES` floats of 16 bits (IEEE 754 binary16), none of them infinite or NaN.
    ///
    /// # Safety
    /// As for [`Simd::load_halves`].
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F32 {
        // SAFETY: the caller's promise.
        let bits = unsafe { self.load_halves(p) };
        // Exponent and mantissa where those of f32 are, then the exponent's other bias: exact for subnormal numbers too.
        let magnitude = self.f32_of_bits(self.shift_left_i32(self.and_i32(bits, self.splat_i32(0x7fff)), 13));
        let magnitude = self.mul_f32(magnitude, self.splat_f32(f32::from_bits((127 + 112) << 23)));
        let sign = self.shift_left_i32(self.and_i32(bits, self.splat_i32(0x8000)), 16);
        self.f32_of_bits(self.or_i32(self.bits_of_f32(magnitude), sign))
    }

    /// For each lane `table[index[lane] % 16]`.
    #[inline(always)]
    fn lookup_f32(self, table: &[f32; 16], index: Self::I32) -> Self::F32 {
        let (mut indices, mut found) = ([0i32; 16], [0f32; 16]);
        // SAFETY: no instruction set has more than sixteen lanes.
        unsafe {
            self.store_i32(indices.as_mut_ptr(), index, Self::LANES);
            for lane in 0..Self::LANES {
                found[lane] = table[(indices[lane] & 15) as usize];
            }
            self.load_f32(found.as_ptr(), Self::LANES)
        }
    }

    /// For each lane `a[index[lane]]`, where [`Simd::PERMUTES`]; each index is below `LANES`.
    #[inline(always)]
    fn permute_f32(self, a: Self::F32, index: Self::I32) -> Self::F32 {
        let _ = (a, index);
        unreachable!("only where PERMUTES says so")
    }

    /// Whether [`Simd::transpose_f32`] turns squares in registers: else it is a loop of copies.
    const TURNS: bool = false;

    /// `dst[i * stride + j] = from[j][i]` for `i` and `j` below `LANES`: four bytes each, whatever they are.
    ///
    /// # Safety
    /// The first `LANES` of `from` are valid for reads of as many floats, `dst` for writes of as many in each of as many rows; none need be
    /// aligned.
    #[inline(always)]
    unsafe fn transpose_f32(self, from: &[*const f32; 16], dst: *mut f32, stride: usize) {
        for j in 0..Self::LANES {
            for i in 0..Self::LANES {
                // SAFETY: the caller's promise.
                unsafe { dst.add(i * stride + j).cast::<[u8; 4]>().write(from[j].add(i).cast::<[u8; 4]>().read()) }
            }
        }
    }

    /// Four vectors in the order that unpacking bytes leaves: groups of four lanes transposed, where [`Dot::QUADS`]. Twice is the
    /// identity for sixteen lanes; [`Simd::deinterleave`] undoes it for any number.
    #[inline(always)]
    fn interleave(self, x: [Self::I32; 4]) -> [Self::I32; 4] {
        let _ = x;
        unreachable!("only where QUADS says so")
    }

    /// [`Simd::interleave`] of floats.
    #[inline(always)]
    fn interleave_f32(self, x: [Self::F32; 4]) -> [Self::F32; 4] {
        let _ = x;
        unreachable!("only where QUADS says so")
    }

    /// The inverse of [`Simd::interleave`].
    #[inline(always)]
    fn deinterleave(self, x: [Self::I32; 4]) -> [Self::I32; 4] {
        let _ = x;
        unreachable!("only where QUADS says so")
    }

    /// Four vectors of columns in the order that unpacking leaves of permuted codes, where [`Dot::QUADS`]: vector `j` has eight columns of
    /// the first half, from `8 * j` on, then as many of the second.
    #[inline(always)]
    fn permuted(self, x: [Self::I32; 4]) -> [Self::I32; 4] {
        let _ = x;
        unreachable!("only where QUADS says so")
    }

    /// [`Simd::permuted`] of floats.
    #[inline(always)]
    fn permuted_f32(self, x: [Self::F32; 4]) -> [Self::F32; 4] {
        let _ = x;
        unreachable!("only where QUADS says so")
    }

    /// Writes the first half of a vector, and the second one elsewhere, where [`Dot::QUADS`].
    ///
    /// # Safety
    /// Both are valid for writes of `LANES / 2` floats.
    #[inline(always)]
    unsafe fn store_halves_f32(self, first: *mut f32, second: *mut f32, x: Self::F32) {
        let _ = (first, second, x);
        unreachable!("only where QUADS says so")
    }

    /// One row of [`Simd::store_codes`], or two, from vectors in the order of [`Simd::interleave`].
    ///
    /// # Safety
    /// `to` is valid for writes of `columns` bytes in each row, at least 1; `columns` and `KNOWN` are as for
    /// [`Store::store_interleaved`](super::output::Store::store_interleaved), the grid plain where that says so.
    #[inline(always)]
    unsafe fn store_interleaved_codes<const KNOWN: u8>(self, q: [Self::I32; 4], grid: Self::Grid, to: Destinations<u8>, columns: usize) {
        let _ = (q, grid, to, columns);
        unreachable!("only where QUADS says so")
    }

    /// `y[i] = table[x[i]]`, for slices of one length.
    fn lookup(self, table: &[u8; 256], x: &[u8], y: &mut [u8]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = table[usize::from(x)];
        }
    }

    /// Whether [`Simd::prefetch`] does something.
    const PREFETCHES: bool = false;

    /// Asks for the cache line at `p`, which need not be valid, where the instruction set can.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        let _ = p;
    }
}

/// Parts of a step, in [`Simd::store_whole_steps`].
pub const FRACTION: i32 = 1 << 16;

/// How many of them are near none, a power of two.
pub const NEAR: i32 = 8;

/// The grid that codes are clamped to, in unsigned codes: an `i8` code is its unsigned one with the top bit flipped.
#[derive(Debug, Clone, Copy)]
pub struct CodeGrid {
    pub zero_point: u8,
    pub lo: u8,
    pub hi: u8,
    /// What the unsigned code is xored with.
    pub flip: u8,
}

impl CodeGrid {
    /// Whether saturation bounds the codes as much as they are to be: unsigned ones over their whole range.
    pub fn is_plain(&self) -> bool {
        (self.lo, self.hi, self.flip) == (0, u8::MAX, 0)
    }
}

/// [`Simd::store_codes`], one vector after the other.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn store_codes_by_lane<S: Simd, const R: usize, const NV: usize>(
    simd: S,
    q: &[[S::I32; NV]; R],
    grid: CodeGrid,
    dst: *mut u8,
    stride: usize,
    columns: usize,
) {
    let zero = i32::from(grid.zero_point);
    let (lo, hi) = (simd.splat_i32(i32::from(grid.lo) - zero), simd.splat_i32(i32::from(grid.hi) - zero));
    // Modulo 256, flipping the top bit is adding it.
    let zero = simd.splat_i32(zero + i32::from(grid.flip));
    for r in 0..R {
        for v in 0..NV {
            let code = simd.add_i32(simd.min_i32(simd.max_i32(q[r][v], lo), hi), zero);
            // SAFETY: the caller's promise on `dst` and `columns`.
            unsafe { simd.store_low_bytes(dst.add(r * stride + v * S::LANES), code, (columns - v * S::LANES).min(S::LANES)) }
        }
    }
}

/// A number that lives in a workspace or in packed weights.
pub trait Element: bytemuck::Pod + Default + Send + Sync + PartialEq + std::fmt::Debug {
    /// For bytes, what an unsigned code is xored with to make one.
    const BYTE_FLIP: Option<u8> = None;

    /// What is subtracted from an unsigned code to make one.
    const OFFSET: i32 = 0;

    /// Whether packed weights carry the sums of their columns.
    const SUMMED: bool = false;

    /// What a weight adds to its column's sum, where [`Element::SUMMED`].
    #[inline(always)]
    fn summand(self) -> i32 {
        0
    }

    /// The sum of weights, where [`Element::SUMMED`].
    #[inline(always)]
    fn sum(weights: &[Self]) -> i32 {
        weights.iter().map(|weight| weight.summand()).sum()
    }

    /// Its value from an unsigned code in 0..=255. Floats take no codes: the value itself.
    fn from_unsigned(code: i32) -> Self;

    /// The unsigned code, which [`Element::from_unsigned`] took.
    fn unsigned(self) -> i32;

    /// `codes` as they are, if tiles can read them so.
    fn in_place(codes: Codes<'_>) -> Option<&[Self]> {
        let _ = codes;
        None
    }
}

impl Element for u8 {
    const BYTE_FLIP: Option<u8> = Some(0);

    fn in_place(codes: Codes<'_>) -> Option<&[u8]> {
        match codes {
            Codes::U8(codes) => Some(codes),
            Codes::I8(_) => None,
        }
    }

    #[inline(always)]
    fn unsigned(self) -> i32 {
        i32::from(self)
    }

    #[inline(always)]
    fn from_unsigned(code: i32) -> u8 {
        code as u8
    }
}

impl Element for i16 {
    #[inline(always)]
    fn unsigned(self) -> i32 {
        i32::from(self)
    }

    #[inline(always)]
    fn from_unsigned(code: i32) -> i16 {
        code as i16
    }
}

/// Where activations are signed bytes, the unsigned code minus 128.
impl Element for i8 {
    const BYTE_FLIP: Option<u8> = Some(0x80);
    const OFFSET: i32 = 128;
    const SUMMED: bool = true;

    #[inline(always)]
    fn summand(self) -> i32 {
        i32::from(self)
    }

    fn in_place(codes: Codes<'_>) -> Option<&[i8]> {
        match codes {
            Codes::U8(_) => None,
            Codes::I8(codes) => Some(codes),
        }
    }

    #[inline(always)]
    fn unsigned(self) -> i32 {
        i32::from(self as u8 ^ 0x80)
    }

    #[inline(always)]
    fn from_unsigned(code: i32) -> i8 {
        (code as u8 ^ 0x80) as i8
    }
}

impl Element for f32 {
    #[inline(always)]
    fn unsigned(self) -> i32 {
        self as i32
    }

    #[inline(always)]
    fn from_unsigned(code: i32) -> f32 {
        code as f32
    }
}
