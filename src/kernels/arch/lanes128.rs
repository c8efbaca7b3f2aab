//! Vectors of four lanes, for every 64-bit Arm processor.

use std::arch::aarch64::*;

use crate::kernels::simd::{CodeGrid, Simd, store_codes_by_lane};

pub(super) const LANES: usize = 4;

/// Whether these vectors are there. Not on big-endian systems, where bytes would be in another order than words of them.
pub(super) fn detect() -> bool {
    cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon")
}

/// Four signed bytes as 16-bit integers, then four zeros.
///
/// # Safety
/// `p` is valid for reads of 4 bytes.
#[inline(always)]
pub(super) unsafe fn four_signed(p: *const i8) -> int16x8_t {
    // SAFETY: 4 bytes at `p`, by the caller's promise; only called where NEON exists.
    unsafe { vmovl_s8(vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()))) }
}

/// Four unsigned bytes as 16-bit integers, then four zeros.
///
/// # Safety
/// `p` is valid for reads of 4 bytes.
#[inline(always)]
pub(super) unsafe fn four_unsigned(p: *const u8) -> int16x8_t {
    // SAFETY: 4 bytes at `p`, by the caller's promise; only called where NEON exists.
    unsafe { vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(u64::from(p.cast::<u32>().read_unaligned())))) }
}

/// The low bytes of four integers, twice.
#[inline(always)]
pub(super) fn low_bytes(a: int32x4_t) -> uint8x8_t {
    // SAFETY: registers alone; only called where NEON exists.
    unsafe {
        let words = vmovn_u32(vreinterpretq_u32_s32(a));
        vmovn_u16(vcombine_u16(words, words))
    }
}

/// Eight codes of two vectors, narrowed with saturation to 16 and to 8 bits, then clamped.
#[inline(always)]
fn codes(q: [int32x4_t; 2], grid: CodeGrid) -> uint8x8_t {
    // SAFETY: registers alone; only called where NEON exists.
    unsafe {
        let words = vqaddq_s16(vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1])), vdupq_n_s16(i16::from(grid.zero_point)));
        let bytes = vmin_u8(vmax_u8(vqmovun_s16(words), vdup_n_u8(grid.lo)), vdup_n_u8(grid.hi));
        veor_u8(bytes, vdup_n_u8(grid.flip))
    }
}

/// [`Simd::store_codes`]: rows of two or four full vectors at once, the others vector by vector.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn store_codes<S: Simd<I32 = int32x4_t>, const R: usize, const NV: usize>(
    simd: S,
    q: &[[int32x4_t; NV]; R],
    grid: CodeGrid,
    dst: *mut u8,
    stride: usize,
    columns: usize,
) {
    // SAFETY: the caller's promise: all `NV * LANES` columns are written only where there are as many.
    unsafe {
        if NV == 4 && columns == 4 * LANES {
            for r in 0..R {
                let bytes = vcombine_u8(codes([q[r][0], q[r][1 % NV]], grid), codes([q[r][2 % NV], q[r][3 % NV]], grid));
                vst1q_u8(dst.add(r * stride), bytes);
            }
        } else if NV == 2 && columns == 2 * LANES {
            for r in 0..R {
                vst1_u8(dst.add(r * stride), codes([q[r][0], q[r][1 % NV]], grid));
            }
        } else {
            store_codes_by_lane(simd, q, grid, dst, stride, columns)
        }
    }
}

/// `body` for each constant vector of columns below `n`.
macro_rules! each_vector {
    ($v:ident < $n:expr, $body:expr) => { unroll!($v < $n; [0 1 2 3], $body) };
}

/// `body` for each constant row (or pair of rows) below `n`.
macro_rules! each_row {
    ($m:ident < $n:expr, $body:expr) => { unroll!($m < $n; [0 1 2 3 4 5], $body) };
}

/// Implements [`Simd`] for a token, whose `enter` runs a closure where the compiler may use the instruction set.
macro_rules! simd_of_128_bits {
    ($token:ident, rows: $mr:literal $arms:tt) => {
        // SAFETY: `detect` is the only constructor, and it asks the processor.
        unsafe impl Simd for $token {
            const LANES: usize = LANES;
            const NV: usize = 4;
            const MR: usize = $mr;
            const MR_MAX: usize = $mr;
            const FUSED: bool = true;
            type I32 = int32x4_t;
            type F32 = float32x4_t;
            type Grid = CodeGrid;
            type Int8 = Int8;
            type Pairs = crate::kernels::pairs::NoPairs;
            type Matrix = crate::kernels::matrix_unit::NoMatrixUnit;

            #[inline(always)]
            fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
                self.enter(f)
            }

            unsafe fn product_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &Tile<'_, Self, D, T>) {
                tile_arms!(self, product_tile, tile, mr, nv, $arms, [1 2 3 4])
            }

            unsafe fn lane_tile<D: Dot<Self>, T: Store<Self, D::Acc>>(self, mr: usize, nv: usize, tile: &LaneTile<'_, Self, D, T>) {
                tile_arms!(self, lane_tile, tile, mr, nv, [1 4], [1 2])
            }

            register_ops! {
                fn splat_i32(x: i32) -> int32x4_t = vdupq_n_s32(x);
                fn add_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = vaddq_s32(a, b);
                fn mul_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = vmulq_s32(a, b);
                fn xor_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = veorq_s32(a, b);
                fn or_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = vorrq_s32(a, b);
                fn and_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = vandq_s32(a, b);
                fn shift_left_i32(a: int32x4_t, n: u32) -> int32x4_t = vshlq_s32(a, vdupq_n_s32(n as i32));
                fn shift_right_i32(a: int32x4_t, n: u32) -> int32x4_t =
                    vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(n as i32))));
                fn shuffle_bytes(table: int32x4_t, index: int32x4_t) -> int32x4_t =
                    vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(index)));
                fn f32_of_bits(a: int32x4_t) -> float32x4_t = vreinterpretq_f32_s32(a);
                fn is_zero(a: int32x4_t) -> bool = vmaxvq_u32(vreinterpretq_u32_s32(a)) == 0;
                fn max_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = vmaxq_s32(a, b);
                fn min_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t = vminq_s32(a, b);
                fn to_f32(a: int32x4_t) -> float32x4_t = vcvtq_f32_s32(a);
                fn bits_of_f32(a: float32x4_t) -> int32x4_t = vreinterpretq_s32_f32(a);
                fn splat_f32(x: f32) -> float32x4_t = vdupq_n_f32(x);
                fn add_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
                fn mul_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
                fn mul_add_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
                // Not `fmax` and `fmin`, which are NaN where one side is.
                fn max_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcgtq_f32(a, b), a, b);
                fn min_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcltq_f32(a, b), a, b);
                fn round_i32(a: float32x4_t) -> int32x4_t = vcvtnq_s32_f32(a);
            }

            memory_ops! {
                load_i32(p: *const i32) -> int32x4_t = vld1q_s32(p), |lanes| first_lanes!(load vld1q_lane_s32, p, vdupq_n_s32(0), lanes);
                load_f32(p: *const f32) -> float32x4_t = vld1q_f32(p), |lanes| first_lanes!(load vld1q_lane_f32, p, vdupq_n_f32(0.0), lanes);
                load_bytes(p: *const u8) -> int32x4_t = vmovl_s16(vget_low_s16(four_unsigned(p))), |lanes| {
                    let bytes = first_lanes!(load vld1_lane_u8, p, vdup_n_u8(0), lanes);
                    vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
                };
                store_i32(p: *mut i32, a: int32x4_t) -> () = vst1q_s32(p, a), |lanes| first_lanes!(store vst1q_lane_s32, p, a, lanes);
                store_f32(p: *mut f32, a: float32x4_t) -> () = vst1q_f32(p, a), |lanes| first_lanes!(store vst1q_lane_f32, p, a, lanes);
                store_low_bytes(p: *mut u8, a: int32x4_t) -> () =
                    p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(low_bytes(a)))),
                    |lanes| first_lanes!(store vst1_lane_u8, p, low_bytes(a), lanes);
            }

            #[inline(always)]
            unsafe fn load_halves(self, p: *const u16) -> int32x4_t {
                // SAFETY: 4 numbers at `p`, by the caller's promise.
                unsafe { vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p))) }
            }

            #[inline(always)]
            fn grid(self, grid: CodeGrid) -> CodeGrid {
                grid
            }

            #[inline(always)]
            unsafe fn store_codes<const R: usize, const NV: usize>(
                self,
                q: &[[int32x4_t; NV]; R],
                grid: CodeGrid,
                dst: *mut u8,
                stride: usize,
                columns: usize,
            ) {
                // SAFETY: the caller's promise, the same for both.
                unsafe { store_codes(self, q, grid, dst, stride, columns) }
            }
        }
    };
}

/// Loads and stores of a whole vector, or of its first lanes.
macro_rules! memory_ops {
    ($($name:ident($p:ident: $pt:ty $(, $a:ident: $at:ty)?) -> $r:ty = $whole:expr, |$lanes:ident| $part:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $p: $pt $(, $a: $at)?, $lanes: usize) -> $r {
            // SAFETY: the caller's promise; lanes from `lanes` on are not touched.
            unsafe { if $lanes == LANES { $whole } else { $part } }
        })*
    };
}

/// One to three lanes, one by one: a copy through the stack would be a call, around which sums leave their registers.
macro_rules! first_lanes {
    (load $load:ident, $p:ident, $zero:expr, $lanes:ident) => {{
        let mut a = $load::<0>($p, $zero);
        if $lanes > 1 {
            a = $load::<1>($p.add(1), a);
        }
        if $lanes > 2 {
            a = $load::<2>($p.add(2), a);
        }
        a
    }};
    (store $store:ident, $p:ident, $a:expr, $lanes:ident) => {{
        let a = $a;
        $store::<0>($p, a);
        if $lanes > 1 {
            $store::<1>($p.add(1), a);
        }
        if $lanes > 2 {
            $store::<2>($p.add(2), a);
        }
    }};
}
pub(super) use {each_row, each_vector, first_lanes, memory_ops, simd_of_128_bits};
