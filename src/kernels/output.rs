//! Output stages: what happens to an accumulator before it leaves the registers.

use std::marker::PhantomData;

use super::PRODUCT_MAX;
use super::conv::ConvCall;
use super::gemm::GemmCall;
use super::operand::{ActivationCode, Per};
use super::simd::Simd;
use crate::error::{Error, Result};

/// A clamp that follows a layer, applied in f32. NaN passes through each of them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, lo), hi)`, for instance ReLU6 as 0 to 6.
    Clamp {
        /// Smallest value.
        lo: f32,
        /// Largest value.
        hi: f32,
    },
}

impl Activation {
    /// The activation of `x`: `if x < lo { lo } else if x > hi { hi } else { x }`.
    #[inline]
    pub fn apply(self, x: f32) -> f32 {
        let (lo, hi) = self.bounds();
        let x = if lo > x { lo } else { x };
        if hi < x { hi } else { x }
    }

    pub(super) fn bounds(self) -> (f32, f32) {
        match self {
            Activation::None => (f32::NEG_INFINITY, f32::INFINITY),
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Clamp { lo, hi } => (lo, hi),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        let (lo, hi) = self.bounds();
        if lo <= hi { Ok(()) } else { Err(Error::parameter("activation clamp", (lo, hi), "lo must not be above hi, and neither NaN")) }
    }
}

/// What becomes of the sums of a product: [`Accumulate`], [`Dequantize`] or [`Requantize`]. Sealed.
pub trait OutputStage: sealed::Sealed + Sync {
    /// What the stage writes.
    type Element: Copy + Send + Sync;

    /// Whether its parameters fit a product of `n` columns and `rows` rows (or images) over `k` products.
    #[doc(hidden)]
    fn check(&self, n: usize, rows: usize, k: usize) -> Result<()>;

    /// The product with this stage: compiled in this crate, once for each stage and instruction set.
    #[doc(hidden)]
    fn gemm(&self, call: GemmCall<'_, Self::Element>);

    /// The convolution with this stage.
    #[doc(hidden)]
    fn conv2d(&self, call: ConvCall<'_, Self::Element>);
}

mod sealed {
    pub trait Sealed {}
}

/// An output stage of integer sums, for every instruction set.
pub trait IntegerStage: Copy + Send + Sync {
    /// What it writes.
    type Element: Copy + Send + Sync;
    /// Its parameters for `LANES` columns.
    type Columns<S: Simd>: Copy;

    /// See [`Store::columns`].
    ///
    /// # Safety
    /// As there.
    unsafe fn columns<S: Simd>(self, simd: S, n: usize, lanes: usize) -> Self::Columns<S>;
    /// See [`Store::store`].
    ///
    /// # Safety
    /// As there.
    unsafe fn store<S: Simd>(self, simd: S, columns: &Self::Columns<S>, param: usize, acc: S::I32, dst: *mut Self::Element, lanes: usize);
}

/// An [`IntegerStage`] where a tile takes any stage.
#[derive(Debug, Clone, Copy)]
pub struct Integers<T>(pub T);

impl<S: Simd, T: IntegerStage> Store<S, S::I32> for Integers<T> {
    type Element = T::Element;
    type Columns = T::Columns<S>;

    #[inline(always)]
    unsafe fn columns(self, simd: S, n: usize, lanes: usize) -> Self::Columns {
        // SAFETY: the same promise.
        unsafe { self.0.columns(simd, n, lanes) }
    }

    #[inline(always)]
    unsafe fn store(self, simd: S, columns: &Self::Columns, param: usize, acc: S::I32, dst: *mut Self::Element, lanes: usize) {
        // SAFETY: the same promise.
        unsafe { self.0.store(simd, columns, param, acc, dst, lanes) }
    }
}

/// An output stage in the registers of an instruction set. `A` is the accumulator's vector.
pub trait Store<S: Simd, A>: Copy + Send + Sync {
    /// What it writes.
    type Element: Copy + Send + Sync;
    /// Its parameters for `LANES` columns.
    type Columns: Copy;

    /// The parameters of columns `n..n + lanes`.
    ///
    /// # Safety
    /// Those columns are inside what the stage was checked for, and `1 <= lanes <= LANES`.
    unsafe fn columns(self, simd: S, n: usize, lanes: usize) -> Self::Columns;
    /// Finishes and writes `lanes` sums of row (or image) `param`.
    ///
    /// # Safety
    /// `param` is inside what the stage was checked for; `dst` is writable for `lanes` elements, `1 <= lanes <= LANES`.
    unsafe fn store(self, simd: S, columns: &Self::Columns, param: usize, acc: A, dst: *mut Self::Element, lanes: usize);
}

macro_rules! stage {
    ([$($generics:tt)*] $stage:ty => $element:ty) => {
        impl<$($generics)*> sealed::Sealed for $stage {}
        impl<$($generics)*> OutputStage for $stage {
            type Element = $element;
            fn check(&self, n: usize, rows: usize, k: usize) -> Result<()> {
                self.check_parameters(n, rows, k)
            }
            fn gemm(&self, call: GemmCall<'_, $element>) {
                call.run(self)
            }
            fn conv2d(&self, call: ConvCall<'_, $element>) {
                call.run(self)
            }
        }
    };
}

stage!([] Accumulate => i32);
stage!(['a] Dequantize<'a> => f32);
stage!(['a] Requantize<'a, u8> => u8);
stage!(['a] Requantize<'a, i8> => i8);

/// `i32`: `sum over k of (lhs - zero_point) * weight`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accumulate;

impl Accumulate {
    fn check_parameters(&self, _: usize, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
}

impl IntegerStage for &Accumulate {
    type Element = i32;
    type Columns<S: Simd> = ();

    #[inline(always)]
    unsafe fn columns<S: Simd>(self, _: S, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn store<S: Simd>(self, simd: S, (): &(), _: usize, acc: S::I32, dst: *mut i32, lanes: usize) {
        // SAFETY: the caller's promise on `dst`.
        unsafe { simd.store_i32(dst, acc, lanes) }
    }
}

/// `f32`: `activation(acc as f32 * (lhs_scale * weight_scale[n]) + bias[n])`.
///
/// Each operation rounds to f32 and none is fused, so the result is the same on every instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Dequantize<'a> {
    /// Scale of the activations: one, or one for each row (each image of a convolution).
    pub lhs_scale: Per<'a, f32>,
    /// Scale of the weights: one, or one for each column.
    pub weight_scale: &'a [f32],
    /// Added after scaling, one for each column.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
}

impl Dequantize<'_> {
    fn check_parameters(&self, n: usize, rows: usize, _: usize) -> Result<()> {
        one_or("weight scales", self.weight_scale.len(), n)?;
        self.lhs_scale.check_len("lhs scales", rows)?;
        check_bias(self.bias.map(<[f32]>::len), n)?;
        self.activation.check()
    }
}

/// Scale of a vector of columns, its bias, and the activation's bounds.
#[derive(Clone, Copy)]
pub struct DequantizeColumns<F> {
    scale: F,
    bias: Option<F>,
    lo: F,
    hi: F,
}

impl IntegerStage for &Dequantize<'_> {
    type Element = f32;
    type Columns<S: Simd> = DequantizeColumns<S::F32>;

    #[inline(always)]
    unsafe fn columns<S: Simd>(self, simd: S, n: usize, lanes: usize) -> Self::Columns<S> {
        let (lo, hi) = self.activation.bounds();
        // SAFETY: `check_parameters` saw one element or one for each column, and the caller keeps within the columns.
        let (scale, bias) = unsafe {
            (load_broadcast(simd, self.weight_scale, n, lanes), self.bias.map(|bias| simd.load_f32(bias.as_ptr().add(n), lanes)))
        };
        let scale = match self.lhs_scale {
            Per::Tensor(lhs) => simd.mul_f32(simd.splat_f32(lhs), scale),
            Per::Row(_) => scale,
        };
        DequantizeColumns { scale, bias, lo: simd.splat_f32(lo), hi: simd.splat_f32(hi) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(self, simd: S, columns: &Self::Columns<S>, param: usize, acc: S::I32, dst: *mut f32, lanes: usize) {
        let scale = match self.lhs_scale {
            Per::Tensor(_) => columns.scale,
            // SAFETY: `check_parameters` saw one scale for each row, and the caller keeps within the rows.
            Per::Row(scales) => simd.mul_f32(simd.splat_f32(unsafe { *scales.get_unchecked(param) }), columns.scale),
        };
        let mut x = simd.mul_f32(simd.to_f32(acc), scale);
        if let Some(bias) = columns.bias {
            x = simd.add_f32(x, bias);
        }
        let x = simd.min_f32(columns.hi, simd.max_f32(columns.lo, x));
        // SAFETY: the caller's promise on `dst`.
        unsafe { simd.store_f32(dst, x, lanes) }
    }
}

/// `u8` or `i8`: [`num::requantize`](crate::num::requantize)`(acc + bias[n], multiplier[n], zero_point, qmin, qmax)`.
///
/// The multiplier is `lhs_scale * weight_scale[n] / dst_scale`. A ReLU is `qmin = zero_point`.
#[derive(Debug, Clone, Copy)]
pub struct Requantize<'a, T> {
    /// One, or one for each column: finite and not negative.
    pub multiplier: &'a [f32],
    /// Added to the sum, one for each column, in units of `lhs_scale * weight_scale[n]`.
    pub bias: Option<&'a [i32]>,
    /// Zero point of the result.
    pub zero_point: i32,
    /// Smallest code of the result.
    pub qmin: i32,
    /// Largest code of the result.
    pub qmax: i32,
    code: PhantomData<T>,
}

impl<'a, T: ActivationCode> Requantize<'a, T> {
    /// Over the whole range of `T`, with zero point 0 and no bias.
    pub fn new(multiplier: &'a [f32]) -> Self {
        Requantize { multiplier, bias: None, zero_point: 0, qmin: T::QMIN, qmax: T::QMAX, code: PhantomData }
    }

    /// With a bias for each column.
    pub fn with_bias(self, bias: Option<&'a [i32]>) -> Self {
        Requantize { bias, ..self }
    }

    /// With another zero point.
    pub fn with_zero_point(self, zero_point: i32) -> Self {
        Requantize { zero_point, ..self }
    }

    /// With other bounds: a ReLU starts at the zero point.
    pub fn with_range(self, qmin: i32, qmax: i32) -> Self {
        Requantize { qmin, qmax, ..self }
    }

    fn check_parameters(&self, n: usize, _: usize, k: usize) -> Result<()> {
        one_or("multipliers", self.multiplier.len(), n)?;
        if let Some((index, &value)) = self.multiplier.iter().enumerate().find(|(_, x)| !(x.is_finite() && **x >= 0.0)) {
            return Err(Error::Scale { index, value });
        }
        check_bias(self.bias.map(<[i32]>::len), n)?;
        if self.qmin > self.qmax || self.qmin < T::QMIN || self.qmax > T::QMAX {
            return Err(Error::parameter(
                "code range",
                (self.qmin, self.qmax),
                format!("qmin must not be above qmax, and both within {} to {}", T::QMIN, T::QMAX),
            ));
        }
        if !(T::QMIN..=T::QMAX).contains(&self.zero_point) {
            return Err(Error::ZeroPoint { index: 0, value: self.zero_point, qmin: T::QMIN, qmax: T::QMAX });
        }
        let largest = self.bias.unwrap_or_default().iter().map(|b| b.unsigned_abs() as usize).max().unwrap_or(0);
        let limit = (i32::MAX as usize).saturating_sub(largest) / PRODUCT_MAX;
        if k > limit { Err(Error::Accumulator { k, limit }) } else { Ok(()) }
    }
}

/// Multiplier and bias of a vector of columns, and the bounds.
#[derive(Clone, Copy)]
pub struct RequantizeColumns<I, F> {
    multiplier: F,
    bias: Option<I>,
    zero_point: I,
    lo: F,
    hi: F,
}

impl<T: ActivationCode> IntegerStage for &Requantize<'_, T> {
    type Element = T;
    type Columns<S: Simd> = RequantizeColumns<S::I32, S::F32>;

    #[inline(always)]
    unsafe fn columns<S: Simd>(self, simd: S, n: usize, lanes: usize) -> Self::Columns<S> {
        // SAFETY: `check_parameters` saw one element or one for each column, and the caller keeps within the columns.
        let (multiplier, bias) =
            unsafe { (load_broadcast(simd, self.multiplier, n, lanes), self.bias.map(|bias| simd.load_i32(bias.as_ptr().add(n), lanes))) };
        RequantizeColumns {
            multiplier,
            bias,
            zero_point: simd.splat_i32(self.zero_point),
            lo: simd.splat_f32((self.qmin - self.zero_point) as f32),
            hi: simd.splat_f32((self.qmax - self.zero_point) as f32),
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(self, simd: S, columns: &Self::Columns<S>, _: usize, acc: S::I32, dst: *mut T, lanes: usize) {
        let acc = match columns.bias {
            Some(bias) => simd.add_i32(acc, bias),
            None => acc,
        };
        // No NaN: the multiplier is finite. Infinities are clamped before they become integers.
        let x = simd.mul_f32(simd.to_f32(acc), columns.multiplier);
        let x = simd.min_f32(columns.hi, simd.max_f32(columns.lo, x));
        let code = simd.add_i32(simd.round_i32(x), columns.zero_point);
        // SAFETY: the caller's promise on `dst`; u8 and i8 are bytes, and the code's low byte is the code.
        unsafe { simd.store_low_bytes(dst.cast(), code, lanes) }
    }
}

/// The output stage of float kernels: `activation(acc + bias[n])`.
#[derive(Debug, Clone, Copy)]
pub struct FloatStage<'a> {
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
}

impl FloatStage<'_> {
    pub fn check(&self, n: usize) -> Result<()> {
        check_bias(self.bias.map(<[f32]>::len), n)?;
        self.activation.check()
    }
}

impl<S: Simd> Store<S, S::F32> for FloatStage<'_> {
    type Element = f32;
    type Columns = DequantizeColumns<S::F32>;

    #[inline(always)]
    unsafe fn columns(self, simd: S, n: usize, lanes: usize) -> Self::Columns {
        let (lo, hi) = self.activation.bounds();
        // SAFETY: `check` saw one bias for each column, and the caller keeps within the columns.
        let bias = self.bias.map(|bias| unsafe { simd.load_f32(bias.as_ptr().add(n), lanes) });
        DequantizeColumns { scale: simd.splat_f32(1.0), bias, lo: simd.splat_f32(lo), hi: simd.splat_f32(hi) }
    }

    #[inline(always)]
    unsafe fn store(self, simd: S, columns: &Self::Columns, _: usize, acc: S::F32, dst: *mut f32, lanes: usize) {
        let x = match columns.bias {
            Some(bias) => simd.add_f32(acc, bias),
            None => acc,
        };
        let x = simd.min_f32(columns.hi, simd.max_f32(columns.lo, x));
        // SAFETY: the caller's promise on `dst`.
        unsafe { simd.store_f32(dst, x, lanes) }
    }
}

/// Elements `n..n + lanes` of `values`, or its only one in every lane.
///
/// # Safety
/// `values` has one element, or at least `n + lanes`; `1 <= lanes <= LANES`.
#[inline(always)]
unsafe fn load_broadcast<S: Simd>(simd: S, values: &[f32], n: usize, lanes: usize) -> S::F32 {
    if values.len() == 1 {
        simd.splat_f32(values[0])
    } else {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f32(values.as_ptr().add(n), lanes) }
    }
}

pub(super) fn one_or(what: &'static str, got: usize, n: usize) -> Result<()> {
    if got == 1 || got == n { Ok(()) } else { Err(Error::length(what, n, got)) }
}

fn check_bias(got: Option<usize>, n: usize) -> Result<()> {
    match got {
        Some(got) if got != n => Err(Error::length("bias", n, got)),
        _ => Ok(()),
    }
}
