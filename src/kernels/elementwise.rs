//! Ranges, and codes from floats and back, over slices. The loops are plain; the compiler turns them into vectors
//! inside [`Simd::vectorize`].

use super::ingest::Quantizer;
use super::isa::{Isa, Visitor};
use super::operand::ActivationCode;
use super::ranges::Range;
use super::simd::Simd;
use crate::error::{Error, Result};

/// The range of a slice before [`Range::closed`].
pub(super) struct Extremes<'a>(pub &'a [f32]);

impl Visitor for Extremes<'_> {
    type Out = Range;
    #[inline(always)]
    fn visit<S: Simd>(self, simd: S) -> Range {
        simd.vectorize(
            #[inline(always)]
            || {
                let range = extremes(simd, self.0);
                if range.finite {
                    return range;
                }
                // Rare, so a second pass: what is not finite stands aside.
                let finite = self.0.iter().copied().filter(|x| x.is_finite());
                let ends = (f32::INFINITY, f32::NEG_INFINITY);
                let (min, max) = finite.fold(ends, |(min, max), x| (if x < min { x } else { min }, if x > max { x } else { max }));
                Range { min, max, finite: false }
            },
        )
    }
}

/// How far ahead of a pass over floats they are asked for: beyond the page at whose end the foresight of Intel's processors stops. That of
/// AMD's goes on, and is better left alone: on Zen 4 what is asked for is read at 85 GB/s from a third-level cache and at 32 from memory,
/// else at 98 and 41. At 0 what is asked for is what is read next.
pub(super) fn ahead() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        static AHEAD: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *AHEAD.get_or_init(|| {
            // SAFETY: every x86-64 processor has `cpuid`. Newer compilers know, and call the block unneeded.
            #[allow(unused_unsafe)]
            let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
            let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
            if amd { 0 } else { 1024 }
        })
    }
    // No other instruction set here asks for anything.
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Smallest and largest of `x`, NaN aside, and whether all are finite: four vectors at a time, so that no step waits for the one
/// before.
#[inline(always)]
fn extremes<S: Simd>(simd: S, x: &[f32]) -> Range {
    let (lowest, highest, none) = (simd.splat_f32(f32::INFINITY), simd.splat_f32(f32::NEG_INFINITY), simd.splat_f32(0.0));
    // 0 * x is 0 for what is finite, else NaN, which stays.
    let (mut min, mut max, mut zero) = ([lowest; 4], [highest; 4], [none; 4]);
    let (mut done, ahead) = (0, ahead());
    while done + 4 * S::LANES <= x.len() {
        for at in (0..4 * S::LANES).step_by(16) {
            simd.prefetch(x.as_ptr().wrapping_add(done + at + ahead).cast());
        }
        for v in 0..4 {
            // SAFETY: four vectors are left.
            let x = unsafe { simd.load_f32(x.as_ptr().add(done + v * S::LANES), S::LANES) };
            min[v] = simd.min_f32(x, min[v]);
            max[v] = simd.max_f32(x, max[v]);
            zero[v] = simd.mul_add_f32(x, none, zero[v]);
        }
        done += 4 * S::LANES;
    }
    for v in 1..4 {
        min[0] = simd.min_f32(min[v], min[0]);
        max[0] = simd.max_f32(max[v], max[0]);
        zero[0] = simd.add_f32(zero[v], zero[0]);
    }
    while done + S::LANES <= x.len() {
        // SAFETY: one vector is left.
        let x = unsafe { simd.load_f32(x.as_ptr().add(done), S::LANES) };
        min[0] = simd.min_f32(x, min[0]);
        max[0] = simd.max_f32(x, max[0]);
        zero[0] = simd.mul_add_f32(x, none, zero[0]);
        done += S::LANES;
    }
    let mut lanes = [[0f32; 16]; 3];
    // SAFETY: no instruction set has more than sixteen lanes.
    unsafe {
        simd.store_f32(lanes[0].as_mut_ptr(), min[0], S::LANES);
        simd.store_f32(lanes[1].as_mut_ptr(), max[0], S::LANES);
        simd.store_f32(lanes[2].as_mut_ptr(), zero[0], S::LANES);
    }
    let mut half = S::LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[0][i] = if lanes[0][i + half] < lanes[0][i] { lanes[0][i + half] } else { lanes[0][i] };
            lanes[1][i] = if lanes[1][i + half] > lanes[1][i] { lanes[1][i + half] } else { lanes[1][i] };
            lanes[2][i] += lanes[2][i + half];
        }
        half /= 2;
    }
    let mut range = Range { min: lanes[0][0], max: lanes[1][0], finite: lanes[2][0] == 0.0 };
    for &x in &x[done..] {
        range.min = if x < range.min { x } else { range.min };
        range.max = if x > range.max { x } else { range.max };
        range.finite &= x.is_finite();
    }
    range
}

/// Smallest and largest finite value of `x`.
///
/// ```
/// use lowprec::kernels::min_max;
/// let range = min_max(&[1.0, -2.0, f32::NAN, f32::INFINITY]);
/// assert_eq!((range.min, range.max, range.finite), (-2.0, 1.0, false));
/// ```
pub fn min_max(x: &[f32]) -> Range {
    Isa::best().visit(Extremes(x)).closed()
}

/// [`min_max`] on the instruction set `isa`.
///
/// # Errors
/// [`Error::Isa`] when this processor lacks it.
pub fn min_max_for(isa: Isa, x: &[f32]) -> Result<Range> {
    Ok(isa.checked()?.visit(Extremes(x)).closed())
}

/// Checks the arguments of quantization to codes of `T`.
fn check<T: ActivationCode>(scale: f32, zero_point: i32, qmin: i32, qmax: i32, src: usize, dst: usize) -> Result<()> {
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Scale { index: 0, value: scale });
    }
    if qmin > qmax || qmin < T::QMIN || qmax > T::QMAX {
        let rule = format!("qmin must not be above qmax, and both within {} to {}", T::QMIN, T::QMAX);
        return Err(Error::parameter("code range", (qmin, qmax), rule));
    }
    if !(qmin..=qmax).contains(&zero_point) {
        return Err(Error::ZeroPoint { index: 0, value: zero_point, qmin, qmax });
    }
    if src != dst { Err(Error::length("dst", src, dst)) } else { Ok(()) }
}

struct Quantize<'a, T> {
    x: &'a [f32],
    quantizer: Quantizer,
    dst: &'a mut [T],
}

impl<T: ActivationCode> Visitor for Quantize<'_, T> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        // In blocks that stay in the cache while they are asked for NaN.
        const BLOCK: usize = 2048;
        simd.vectorize(
            #[inline(always)]
            || {
                for (x, codes) in self.x.chunks(BLOCK).zip(self.dst.chunks_mut(BLOCK)) {
                    if extremes(simd, x).finite {
                        self.quantizer.codes::<S, T, false, false>(simd, x, codes);
                    } else {
                        self.quantizer.divide(x, codes);
                    }
                }
            },
        )
    }
}

struct DequantizeSlice<'a, T> {
    codes: &'a [T],
    scale: f32,
    zero_point: i32,
    dst: &'a mut [f32],
}

impl<T: ActivationCode> Visitor for DequantizeSlice<'_, T> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (x, &code) in self.dst.iter_mut().zip(self.codes) {
                    // `num::dequantize` where nothing can be lost: the difference of 8-bit codes.
                    *x = self.scale * (code.to_i32() - self.zero_point) as f32;
                }
            },
        )
    }
}

macro_rules! conversions {
    ($code:ident: $quantize:ident $quantize_for:ident $dequantize:ident $dequantize_for:ident) => {
        /// [`num::quantize`](crate::num::quantize) of each value: `clamp(round(x / scale) + zero_point, qmin, qmax)`.
        ///
        /// # Errors
        /// [`Error::Scale`] when the scale is not positive and finite, [`Error::Parameter`] when `qmin..=qmax` is empty or
        /// not within the codes, [`Error::ZeroPoint`] when the zero point is outside it, [`Error::Length`] when `dst` is
        /// not as long as `x`.
        pub fn $quantize(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32, dst: &mut [$code]) -> Result<()> {
            $quantize_for(Isa::best(), x, scale, zero_point, qmin, qmax, dst)
        }

        #[doc = concat!("[`", stringify!($quantize), "`] on the instruction set `isa`.")]
        ///
        /// # Errors
        /// As there, and [`Error::Isa`] when this processor lacks it.
        pub fn $quantize_for(isa: Isa, x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32, dst: &mut [$code]) -> Result<()> {
            check::<$code>(scale, zero_point, qmin, qmax, x.len(), dst.len())?;
            let offset = <$code as ActivationCode>::QMIN;
            let quantizer = Quantizer::new(scale, zero_point - offset, qmin - offset, qmax - offset);
            isa.checked()?.visit(Quantize { x, quantizer, dst });
            Ok(())
        }

        /// [`num::dequantize`](crate::num::dequantize) of each code: `scale * (code - zero_point)`.
        ///
        /// # Errors
        /// [`Error::Length`] when `dst` is not as long as `codes`, [`Error::ZeroPoint`] when the zero point is not a code.
        pub fn $dequantize(codes: &[$code], scale: f32, zero_point: i32, dst: &mut [f32]) -> Result<()> {
            $dequantize_for(Isa::best(), codes, scale, zero_point, dst)
        }

        #[doc = concat!("[`", stringify!($dequantize), "`] on the instruction set `isa`.")]
        ///
        /// # Errors
        /// As there, and [`Error::Isa`] when this processor lacks it.
        pub fn $dequantize_for(isa: Isa, codes: &[$code], scale: f32, zero_point: i32, dst: &mut [f32]) -> Result<()> {
            let (qmin, qmax) = (<$code as ActivationCode>::QMIN, <$code as ActivationCode>::QMAX);
            if !(qmin..=qmax).contains(&zero_point) {
                return Err(Error::ZeroPoint { index: 0, value: zero_point, qmin, qmax });
            }
            if codes.len() != dst.len() {
                return Err(Error::length("dst", codes.len(), dst.len()));
            }
            isa.checked()?.visit(DequantizeSlice { codes, scale, zero_point, dst });
            Ok(())
        }
    };
}

conversions!(u8: quantize_u8 quantize_u8_for dequantize_u8 dequantize_u8_for);
conversions!(i8: quantize_i8 quantize_i8_for dequantize_i8 dequantize_i8_for);
