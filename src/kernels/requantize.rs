//! The stage that makes 8-bit codes of sums.

use super::operand::{ActivationCode, Matrix};
use super::output::{
    Destinations, IntegerStage, NOTHING, PLAIN, Place, StageShape, WHOLE, check_bias, check_one_or, load_broadcast, one_or,
};
use super::simd::{CodeGrid, Simd};
use crate::error::{Error, Result};
use crate::num;

/// `u8` or `i8`: [`num::requantize`](crate::num::requantize)`(acc + bias[n], multiplier[n], zero_point, qmin, qmax)`.
///
/// The multiplier is `lhs_scale * weight_scale[n] / dst_scale`. A ReLU is `qmin = zero_point`. With a [`Residual`] the code is
/// `clamp(round(acc as f32 * multiplier[n] + (residual - its zero_point) as f32 * its multiplier) + zero_point)`, two f32 products and
/// one f32 sum, each rounded.
#[derive(Debug, Clone, Copy)]
pub struct Requantize<'a, T> {
    /// One, or one for each column: finite and not negative.
    pub multiplier: &'a [f32],
    /// Added to the sum, one for each column, in units of `lhs_scale * weight_scale[n]`.
    pub bias: Option<&'a [i32]>,
    /// Added before rounding.
    pub residual: Option<Residual<'a, T>>,
    /// Zero point of the result.
    pub zero_point: i32,
    /// Smallest code of the result.
    pub qmin: i32,
    /// Largest code of the result.
    pub qmax: i32,
}

/// Codes that are added to a product before it is rounded: the other branch of a residual block.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a, T> {
    /// As many rows and columns as the output; of a convolution, as many pixels and channels.
    pub codes: Matrix<'a, T>,
    /// Their zero point.
    pub zero_point: i32,
    /// Their scale divided by that of the result: finite, not negative, at most 2^64.
    pub multiplier: f32,
}

/// Multipliers up to here keep every product of a sum or a code finite, and so the sum of two products a number.
pub(crate) const MULTIPLIER_MAX: f32 = 18446744073709551616.0;

/// A multiplier up to here takes no sum above [`INTEGER_MAX`]: the sum itself may round up to 2^31.
const BOUNDED: f32 = 0.999;

/// As [`BOUNDED`], where a residual is added, whose multiplier is up to [`RESIDUAL_BOUNDED`]: half of 2^31, and 255 times 2^20.
const BOUNDED_BESIDE: f32 = 0.499;

/// See [`BOUNDED_BESIDE`].
const RESIDUAL_BOUNDED: f32 = 1048576.0;

/// The largest float below 2^31: what is above would not convert to i32.
const INTEGER_MAX: f32 = 2147483520.0;

impl<'a, T: ActivationCode> Requantize<'a, T> {
    /// Over the whole range of `T`, with zero point 0 and no bias.
    pub fn new(multiplier: &'a [f32]) -> Self {
        Requantize { multiplier, bias: None, residual: None, zero_point: 0, qmin: T::QMIN, qmax: T::QMAX }
    }

    /// With a bias for each column.
    pub fn with_bias(self, bias: Option<&'a [i32]>) -> Self {
        Requantize { bias, ..self }
    }

    /// With codes to be added.
    pub fn with_residual(self, residual: Option<Residual<'a, T>>) -> Self {
        Requantize { residual, ..self }
    }

    /// With another zero point.
    pub fn with_zero_point(self, zero_point: i32) -> Self {
        Requantize { zero_point, ..self }
    }

    /// With other bounds: a ReLU starts at the zero point.
    pub fn with_range(self, qmin: i32, qmax: i32) -> Self {
        Requantize { qmin, qmax, ..self }
    }

    pub(super) fn check_parameters(&self, shape: StageShape) -> Result<()> {
        check_one_or("multipliers", self.multiplier.len(), shape.n)?;
        let largest = if self.residual.is_some() { MULTIPLIER_MAX } else { f32::MAX };
        // No early exit, so that it becomes vectors: a product of one row would notice.
        let outside = |x: &f32| !(0.0..=largest).contains(x);
        if self.multiplier.iter().fold(false, |any, x| any | outside(x))
            && let Some(index) = self.multiplier.iter().position(outside)
        {
            return Err(Error::Scale { index, value: self.multiplier[index] });
        }
        check_bias(self.bias.map(<[i32]>::len), shape.n)?;
        if self.qmin > self.qmax || self.qmin < T::QMIN || self.qmax > T::QMAX {
            return Err(Error::parameter(
                "code range",
                (self.qmin, self.qmax),
                format!("qmin must not be above qmax, and both within {} to {}", T::QMIN, T::QMAX),
            ));
        }
        for zero_point in [Some(self.zero_point), self.residual.map(|r| r.zero_point)].into_iter().flatten() {
            if !(T::QMIN..=T::QMAX).contains(&zero_point) {
                return Err(Error::ZeroPoint { index: 0, value: zero_point, qmin: T::QMIN, qmax: T::QMAX });
            }
        }
        if let Some(residual) = &self.residual {
            let codes = &residual.codes;
            if (codes.rows(), codes.cols()) != (shape.m, shape.n) {
                let expected = format!("[{}, {}], that of the output", shape.m, shape.n);
                return Err(Error::shape("residual", expected, &[codes.rows(), codes.cols()]));
            }
            if !(0.0..=MULTIPLIER_MAX).contains(&residual.multiplier) {
                return Err(Error::parameter("residual multiplier", residual.multiplier, "finite, not negative, at most 2^64"));
            }
        }
        Ok(())
    }

    pub(super) fn largest_bias(&self) -> usize {
        self.bias.unwrap_or_default().iter().fold(0, |largest, bias| bias.unsigned_abs().max(largest)) as usize
    }

    /// The stage in unsigned codes, the same for both types.
    pub(super) fn bytes(&self) -> RequantizeBytes<'_> {
        let unsigned = |code: i32| (code - T::QMIN) as u8;
        let residual = self.residual.as_ref().map(|residual| ResidualBytes {
            codes: residual.codes.data().as_ptr().cast(),
            stride: residual.codes.stride(),
            dense: residual.codes.stride() == residual.codes.cols(),
            zero_point: unsigned(residual.zero_point),
            multiplier: residual.multiplier,
        });
        let (zero_point, lo, hi) = (unsigned(self.zero_point), unsigned(self.qmin), unsigned(self.qmax));
        let grid = CodeGrid { zero_point, lo, hi, flip: T::QMIN as u8 };
        let limit = match &residual {
            // No multiplier is as small.
            Some(residual) if residual.multiplier > RESIDUAL_BOUNDED => f32::NEG_INFINITY,
            Some(_) => BOUNDED_BESIDE,
            None => BOUNDED,
        };
        let bounded = self.multiplier.iter().fold(true, |all, &multiplier| all & (multiplier <= limit));
        RequantizeBytes { multiplier: self.multiplier, bias: self.bias.unwrap_or_default(), residual, grid, bounded }
    }
}

/// [`Requantize`] to bytes of either type: one kernel for both.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequantizeBytes<'a> {
    multiplier: &'a [f32],
    bias: &'a [i32],
    residual: Option<ResidualBytes>,
    grid: CodeGrid,
    /// Whether nothing that is rounded can leave i32.
    bounded: bool,
}

/// [`Residual`] in bytes, with its zero point as an unsigned code.
#[derive(Debug, Clone, Copy)]
struct ResidualBytes {
    codes: *const u8,
    stride: usize,
    /// Whether a row follows the other without a gap.
    dense: bool,
    zero_point: u8,
    multiplier: f32,
}

// SAFETY: the codes are only read, and borrowed for as long as the stage that this was made of.
unsafe impl Send for ResidualBytes {}
// SAFETY: as above.
unsafe impl Sync for ResidualBytes {}

impl RequantizeBytes<'_> {
    /// What the residual adds at a place: its byte, flipped like those of the result, is an unsigned code.
    fn residual_value(&self, residual: &ResidualBytes, row: usize, column: usize) -> f32 {
        // SAFETY: `check_parameters` saw a code for each row and column of the output.
        let code = unsafe { residual.codes.add(row * residual.stride + column).read() } ^ self.grid.flip;
        (i32::from(code) - i32::from(residual.zero_point)) as f32 * residual.multiplier
    }

    /// Values at a place, and what the residual adds to them; `UNSIGNED` if its bytes are unsigned codes whose zero point is 0, as behind a
    /// ReLU.
    ///
    /// # Safety
    /// The residual has these rows and columns.
    #[inline(always)]
    unsafe fn beside_residual<S: Simd, const R: usize, const NV: usize, const UNSIGNED: bool>(
        &self,
        simd: S,
        residual: &ResidualBytes,
        mut x: [[S::F32; NV]; R],
        place: Place,
    ) -> [[S::F32; NV]; R] {
        let (flip, zero) = (simd.splat_i32(i32::from(self.grid.flip)), simd.splat_i32(-i32::from(residual.zero_point)));
        let scale = simd.splat_f32(residual.multiplier);
        for r in 0..R {
            for v in 0..NV {
                let at = residual.codes.wrapping_add((place.row + r) * residual.stride + place.column + v * S::LANES);
                // SAFETY: the caller's promise.
                let mut codes = unsafe { simd.load_bytes(at, place.lanes::<S>(v)) };
                if !UNSIGNED {
                    codes = simd.add_i32(simd.xor_i32(codes, flip), zero);
                }
                x[r][v] = simd.add_f32(x[r][v], simd.mul_f32(simd.to_f32(codes), scale));
            }
        }
        x
    }
}

/// Multipliers of a vector of columns, and the grid, the same for all.
#[derive(Clone, Copy)]
pub(super) struct RequantizeColumns<F, G> {
    multiplier: F,
    grid: G,
}

impl IntegerStage for RequantizeBytes<'_> {
    type Element = u8;
    type Columns<S: Simd> = RequantizeColumns<S::F32, S::Grid>;

    fn bias(&self) -> &[i32] {
        self.bias
    }

    fn finish(&self, sum: i64, row: usize, column: usize, _: u8) -> u8 {
        let bias = self.bias.get(column).copied().unwrap_or(0);
        let mut x = (sum + i64::from(bias)) as f32 * one_or(self.multiplier, column);
        if let Some(residual) = &self.residual {
            x += self.residual_value(residual, row, column);
        }
        let [zero, lo, hi] = [self.grid.zero_point, self.grid.lo, self.grid.hi].map(i32::from);
        (num::round_clamped(x, lo - zero, hi - zero) + zero) as u8 ^ self.grid.flip
    }

    #[inline(always)]
    unsafe fn columns<S: Simd>(self, simd: S, n: usize, lanes: usize) -> Self::Columns<S> {
        // SAFETY: `check_parameters` saw one element or one for each column, and the caller keeps within the columns.
        let multiplier = unsafe { load_broadcast(simd, self.multiplier, n, lanes) };
        RequantizeColumns { multiplier, grid: simd.grid(self.grid) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize, const NV: usize>(
        self,
        simd: S,
        columns: &[Self::Columns<S>; NV],
        _: [usize; R],
        acc: [[S::I32; NV]; R],
        place: Place,
        dst: *mut u8,
        stride: usize,
    ) {
        // Loops, not closures: what `array::from_fn` calls is not always inlined to where the instruction set is enabled.
        let mut x = [[simd.splat_f32(0.0); NV]; R];
        for r in 0..R {
            for v in 0..NV {
                x[r][v] = simd.mul_f32(simd.to_f32(acc[r][v]), columns[v].multiplier);
            }
        }
        if let Some(residual) = &self.residual {
            // In code of its own: of a branch at each operation the compiler makes an operation with zeros.
            // SAFETY: `check_parameters` saw a code for each row and column of the output.
            x = unsafe {
                match (self.grid.flip, residual.zero_point) {
                    (0, 0) => self.beside_residual::<S, R, NV, true>(simd, residual, x, place),
                    _ => self.beside_residual::<S, R, NV, false>(simd, residual, x, place),
                }
            };
        }
        // No NaN: multipliers are finite, and bounded where two products are added.
        if !self.bounded {
            for r in 0..R {
                for v in 0..NV {
                    x[r][v] = simd.min_f32(x[r][v], simd.splat_f32(INTEGER_MAX));
                }
            }
        }
        let mut q = [[simd.splat_i32(0); NV]; R];
        for r in 0..R {
            for v in 0..NV {
                q[r][v] = simd.round_i32(x[r][v]);
            }
        }
        // SAFETY: the caller's promise on `dst`.
        unsafe { simd.store_codes(&q, columns[0].grid, dst, stride, place.columns) }
    }

    #[inline(always)]
    fn interleaved<S: Simd>(self, simd: S, columns: &[Self::Columns<S>; 4]) -> Option<[Self::Columns<S>; 4]> {
        if self.residual.is_some() {
            return None;
        }
        let mut interleaved = *columns;
        let multipliers = [columns[0].multiplier, columns[1].multiplier, columns[2].multiplier, columns[3].multiplier];
        let multipliers = simd.interleave_f32(multipliers);
        for v in 0..4 {
            interleaved[v].multiplier = multipliers[v];
        }
        Some(interleaved)
    }

    #[inline(always)]
    unsafe fn store_interleaved<S: Simd, const KNOWN: u8>(
        self,
        simd: S,
        columns: &[Self::Columns<S>; 4],
        acc: [S::I32; 4],
        place: Place,
        to: Destinations<u8>,
    ) {
        let mut q = acc;
        for v in 0..4 {
            let mut x = simd.mul_f32(simd.to_f32(acc[v]), columns[v].multiplier);
            if KNOWN == NOTHING && !self.bounded {
                x = simd.min_f32(x, simd.splat_f32(INTEGER_MAX));
            }
            q[v] = simd.round_i32(x);
        }
        // SAFETY: the caller's promise on `dst`.
        unsafe { simd.store_interleaved_codes::<KNOWN>(q, columns[0].grid, to, place.columns) }
    }

    fn known(&self) -> u8 {
        match (self.bounded, self.grid.is_plain()) {
            (true, true) => PLAIN,
            (true, false) => WHOLE,
            _ => NOTHING,
        }
    }

    fn rows_are_one(&self) -> bool {
        self.residual.is_none_or(|residual| residual.dense)
    }
}
