//! Output stages: what happens to an accumulator before it leaves the registers.

use super::accumulate::Accumulate;
use super::conv::ConvCall;
use super::dequantize::Dequantize;
use super::gemm::GemmCall;
use super::requantize::Requantize;
use super::simd::Simd;
use super::weights::Bound;
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

    /// Whether its parameters fit the output.
    #[doc(hidden)]
    fn check(&self, shape: StageShape) -> Result<()>;

    /// Whether every sum fits i32, with what the stage adds to it.
    #[doc(hidden)]
    fn sums_fit(&self, shape: StageShape) -> bool;

    /// The product with this stage: compiled in this crate, once for each stage and instruction set.
    #[doc(hidden)]
    fn gemm(&self, call: GemmCall<'_, Self::Element>);

    /// The convolution with this stage.
    #[doc(hidden)]
    fn conv2d(&self, call: ConvCall<'_, Self::Element>);
}

/// What a stage's parameters must fit.
#[derive(Debug, Clone, Copy)]
pub struct StageShape {
    /// Rows of the output: of the product, or pixels of all images.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Rows of the product, or images.
    pub params: usize,
    /// Products in each sum.
    pub k: usize,
    pub bound: Bound,
}

impl StageShape {
    /// Whether every sum fits i32, with a bias of at most `bias`.
    fn sums_fit(&self, bias: usize) -> bool {
        self.k <= self.bound.products && self.k * self.bound.product <= (i32::MAX as usize).saturating_sub(bias)
    }
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// An output stage of integer sums, for every instruction set.
pub trait IntegerStage: Copy + Send + Sync {
    /// What it writes.
    type Element: Copy + Send + Sync;
    /// Its parameters for `LANES` columns.
    type Columns<S: Simd>: Copy;

    /// What the sums start from: one for each column, or none.
    fn bias(&self) -> &[i32] {
        &[]
    }
    /// The stage of one sum without its bias, which may be beyond i32, for row `row` and column `column`, where `before` is now: the
    /// meaning of [`Store::store`] for sums that were taken apart.
    fn finish(&self, sum: i64, row: usize, column: usize, before: Self::Element) -> Self::Element;
    /// See [`Store::part`].
    fn part(self, part: usize) -> Self {
        let _ = part;
        self
    }
    /// See [`Store::only`].
    fn only(self, param: usize) -> Self {
        let _ = param;
        self
    }
    /// See [`Store::columns`].
    ///
    /// # Safety
    /// As there.
    unsafe fn columns<S: Simd>(self, simd: S, n: usize, lanes: usize) -> Self::Columns<S>;
    /// See [`Store::store`].
    ///
    /// # Safety
    /// As there.
    #[allow(clippy::too_many_arguments)]
    unsafe fn store<S: Simd, const R: usize, const NV: usize>(
        self,
        simd: S,
        columns: &[Self::Columns<S>; NV],
        params: [usize; R],
        acc: [[S::I32; NV]; R],
        place: Place,
        dst: *mut Self::Element,
        stride: usize,
    );
    /// See [`Store::after`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn after<S: Simd>(self, simd: S, dst: *mut Self::Element, stride: usize, rows: usize, columns: usize) {
        let _ = (simd, dst, stride, rows, columns);
    }
    /// See [`Store::interleaved`].
    #[inline(always)]
    fn interleaved<S: Simd>(self, simd: S, columns: &[Self::Columns<S>; 4]) -> Interleaved<Self::Columns<S>> {
        let _ = (simd, columns);
        None
    }
    /// See [`Store::permuted`].
    #[inline(always)]
    fn permuted<S: Simd>(self, simd: S, columns: &[Self::Columns<S>; 4]) -> Interleaved<Self::Columns<S>> {
        let _ = (simd, columns);
        None
    }
    /// See [`Store::store_interleaved`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn store_interleaved<S: Simd, const KNOWN: u8>(
        self,
        simd: S,
        columns: &[Self::Columns<S>; 4],
        acc: [S::I32; 4],
        place: Place,
        to: Destinations<Self::Element>,
    ) {
        let _ = (simd, columns, acc, place, to);
        unreachable!("only where `interleaved` gave columns")
    }
    /// See [`Store::known`].
    fn known(&self) -> u8 {
        NOTHING
    }
    /// Whether rows of the output may be taken as one long row, with what the stage reads beside them.
    fn rows_are_one(&self) -> bool {
        true
    }
}

/// Nothing is known of a stage: [`Store::store_interleaved`] asks it, a branch for each thing that it may have to do. Beside as few
/// products as a depthwise convolution has, those take as long as the stage.
pub const NOTHING: u8 = 0;

/// All vectors are whole, and what is rounded fits i32: scale, bias or zero point, and bounds are applied without asking.
pub const WHOLE: u8 = 1;

/// As [`WHOLE`], without bounds but what the element can hold, and without ranges that are measured.
pub const PLAIN: u8 = 2;

/// As [`WHOLE`], of sums in the order of [`Simd::permuted`].
pub const PERMUTED: u8 = 3;

/// As [`PLAIN`], of sums in the order of [`Simd::permuted`].
pub const PERMUTED_PLAIN: u8 = 4;

/// Where four vectors of sums go.
#[derive(Debug, Clone, Copy)]
pub enum Destinations<E> {
    /// A row of up to `4 * LANES` columns.
    One(*mut E),
    /// Two rows, each the same columns, up to `2 * LANES`: once in the order of columns, the first two vectors are the first row, the last
    /// two the second.
    Two(*mut E, *mut E),
}

/// The parameters of four vectors of columns in the order of [`Simd::interleave`], if the stage works in that order.
pub type Interleaved<C> = Option<[C; 4]>;

/// An [`IntegerStage`] where a tile takes any stage.
#[derive(Debug, Clone, Copy)]
pub struct Integers<T>(pub T);

impl<S: Simd, T: IntegerStage> Store<S, S::I32> for Integers<T> {
    type Element = T::Element;
    type Columns = T::Columns<S>;

    fn part(self, part: usize) -> Self {
        Integers(self.0.part(part))
    }

    fn only(self, param: usize) -> Self {
        Integers(self.0.only(param))
    }

    #[inline(always)]
    unsafe fn columns(self, simd: S, n: usize, lanes: usize) -> Self::Columns {
        // SAFETY: the same promise.
        unsafe { self.0.columns(simd, n, lanes) }
    }

    #[inline(always)]
    unsafe fn store<const R: usize, const NV: usize>(
        self,
        simd: S,
        columns: &[Self::Columns; NV],
        params: [usize; R],
        acc: [[S::I32; NV]; R],
        place: Place,
        dst: *mut T::Element,
        stride: usize,
    ) {
        // SAFETY: the same promise.
        unsafe { self.0.store(simd, columns, params, acc, place, dst, stride) }
    }

    #[inline(always)]
    unsafe fn after(self, simd: S, dst: *mut T::Element, stride: usize, rows: usize, columns: usize) {
        // SAFETY: the same promise.
        unsafe { self.0.after(simd, dst, stride, rows, columns) }
    }

    #[inline(always)]
    fn interleaved(self, simd: S, columns: &[Self::Columns; 4]) -> Interleaved<Self::Columns> {
        self.0.interleaved(simd, columns)
    }

    #[inline(always)]
    fn permuted(self, simd: S, columns: &[Self::Columns; 4]) -> Interleaved<Self::Columns> {
        self.0.permuted(simd, columns)
    }

    #[inline(always)]
    unsafe fn store_interleaved<const KNOWN: u8>(
        self,
        simd: S,
        columns: &[Self::Columns; 4],
        acc: [S::I32; 4],
        place: Place,
        to: Destinations<T::Element>,
    ) {
        // SAFETY: the same promise.
        unsafe { self.0.store_interleaved::<S, KNOWN>(simd, columns, acc, place, to) }
    }

    #[inline(always)]
    fn natural(simd: S, acc: [S::I32; 4]) -> [S::I32; 4] {
        simd.deinterleave(acc)
    }

    #[inline(always)]
    fn interleaved_start(simd: S, start: [S::I32; 4]) -> [S::I32; 4] {
        simd.interleave(start)
    }

    #[inline(always)]
    fn permuted_start(simd: S, start: [S::I32; 4]) -> [S::I32; 4] {
        simd.permuted(start)
    }

    fn known(&self) -> u8 {
        self.0.known()
    }

    fn rows_are_one(&self) -> bool {
        self.0.rows_are_one()
    }
}

/// Where in the output a stage writes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// First row: of the product, or pixel of all images.
    pub row: usize,
    /// First column.
    pub column: usize,
    /// Columns.
    pub columns: usize,
}

impl Place {
    /// Columns of vector `v`.
    #[inline(always)]
    pub fn lanes<S: Simd>(&self, v: usize) -> usize {
        (self.columns - v * S::LANES).min(S::LANES)
    }
}

/// An output stage in the registers of an instruction set. `A` is the accumulator's vector.
pub trait Store<S: Simd, A>: Copy + Send + Sync {
    /// What it writes.
    type Element: Copy + Send + Sync;
    /// Its parameters for `LANES` columns.
    type Columns: Copy;

    /// The same stage for part `part` of the work, below the number of threads: what it finds out, it keeps apart from the others.
    fn part(self, part: usize) -> Self {
        let _ = part;
        self
    }

    /// The same stage where there is no other row (or image) than `param`.
    fn only(self, param: usize) -> Self {
        let _ = param;
        self
    }

    /// The parameters of columns `n..n + lanes`.
    ///
    /// # Safety
    /// Those columns are inside what the stage was checked for, and `1 <= lanes <= LANES`.
    unsafe fn columns(self, simd: S, n: usize, lanes: usize) -> Self::Columns;
    /// Finishes and writes `place.columns` sums in each of `R` rows (of images `params`), `stride` apart.
    ///
    /// # Safety
    /// `params` and `place` are inside what the stage was checked for; `dst` is writable there;
    /// `(NV - 1) * LANES < place.columns <= NV * LANES`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn store<const R: usize, const NV: usize>(
        self,
        simd: S,
        columns: &[Self::Columns; NV],
        params: [usize; R],
        acc: [[A; NV]; R],
        place: Place,
        dst: *mut Self::Element,
        stride: usize,
    );
    /// What follows a tile of a product once all of it is written: `rows` rows of `columns` elements, `stride` apart.
    ///
    /// # Safety
    /// `dst` is what [`Store::store`] has written, and nobody else uses it.
    #[inline(always)]
    unsafe fn after(self, simd: S, dst: *mut Self::Element, stride: usize, rows: usize, columns: usize) {
        let _ = (simd, dst, stride, rows, columns);
    }
    /// `columns` for [`Store::store_interleaved`], if the stage takes sums in that order.
    #[inline(always)]
    fn interleaved(self, simd: S, columns: &[Self::Columns; 4]) -> Interleaved<Self::Columns> {
        let _ = (simd, columns);
        None
    }
    /// The same in the order of [`Simd::permuted`]: at [`PERMUTED`] and [`PERMUTED_PLAIN`].
    #[inline(always)]
    fn permuted(self, simd: S, columns: &[Self::Columns; 4]) -> Interleaved<Self::Columns> {
        let _ = (simd, columns);
        None
    }
    /// What is known of the stage where its columns are [`Store::interleaved`] and vectors whole: [`NOTHING`], [`WHOLE`] or [`PLAIN`].
    fn known(&self) -> u8 {
        NOTHING
    }
    /// [`Store::store`] of sums in the order of [`Simd::interleave`], at [`PERMUTED`] and [`PERMUTED_PLAIN`] of [`Simd::permuted`]: of one row,
    /// or of two where there are [`Destinations::Two`].
    ///
    /// # Safety
    /// As there, for each row, all of one image, which [`Store::only`] was given; [`Store::interleaved`], or [`Store::permuted`], gave the
    /// columns, of which there are up to `4 * LANES` in one row, `2 * LANES` in each of two; all of these, and [`Store::known`] says as much
    /// as `KNOWN`, where that is not [`NOTHING`].
    #[inline(always)]
    unsafe fn store_interleaved<const KNOWN: u8>(
        self,
        simd: S,
        columns: &[Self::Columns; 4],
        acc: [A; 4],
        place: Place,
        to: Destinations<Self::Element>,
    ) {
        let _ = (simd, columns, acc, place, to);
        unreachable!("only where `interleaved` gave columns")
    }
    /// Sums in the order of columns, from that of [`Simd::interleave`].
    #[inline(always)]
    fn natural(simd: S, acc: [A; 4]) -> [A; 4] {
        let _ = simd;
        acc
    }
    /// The inverse of [`Store::natural`].
    #[inline(always)]
    fn interleaved_start(simd: S, start: [A; 4]) -> [A; 4] {
        let _ = simd;
        start
    }
    /// Sums in the order of [`Simd::permuted`], from that of columns.
    #[inline(always)]
    fn permuted_start(simd: S, start: [A; 4]) -> [A; 4] {
        let _ = simd;
        start
    }
    /// Whether rows of the output may be taken as one long row, with what the stage reads beside them.
    fn rows_are_one(&self) -> bool {
        true
    }
}

macro_rules! stage {
    ([$($generics:tt)*] $stage:ty => $element:ty, |$this:ident, $call:ident| $run:expr) => {
        impl<$($generics)*> sealed::Sealed for $stage {}
        impl<$($generics)*> OutputStage for $stage {
            type Element = $element;
            fn check(&self, shape: StageShape) -> Result<()> {
                self.check_parameters(shape)
            }
            fn sums_fit(&self, shape: StageShape) -> bool {
                shape.sums_fit(self.largest_bias())
            }
            fn gemm(&self, call: GemmCall<'_, $element>) {
                let ($this, $call) = (self, call);
                $run
            }
            fn conv2d(&self, call: ConvCall<'_, $element>) {
                let ($this, $call) = (self, call);
                $run
            }
        }
    };
}

stage!([] Accumulate => i32, |stage, call| call.run(stage));
stage!(['a] Dequantize<'a> => f32, |stage, call| call.run(stage.measured(None)));
stage!(['a] Requantize<'a, u8> => u8, |stage, call| call.run(stage.bytes()));
stage!(['a] Requantize<'a, i8> => i8, |stage, call| call.into_bytes().run(stage.bytes()));

/// Elements `n..n + lanes` of `values`, or its only one in every lane.
///
/// # Safety
/// `values` has one element, or at least `n + lanes`; `1 <= lanes <= LANES`.
#[inline(always)]
pub unsafe fn load_broadcast<S: Simd>(simd: S, values: &[f32], n: usize, lanes: usize) -> S::F32 {
    if values.len() == 1 {
        simd.splat_f32(values[0])
    } else {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f32(values.as_ptr().add(n), lanes) }
    }
}

/// The value of column `column`: the only one, or its own.
#[inline]
pub fn one_or(values: &[f32], column: usize) -> f32 {
    if values.len() == 1 { values[0] } else { values[column] }
}

pub fn check_one_or(what: &'static str, got: usize, n: usize) -> Result<()> {
    if got == 1 || got == n { Ok(()) } else { Err(Error::length(what, n, got)) }
}

pub fn check_bias(got: Option<usize>, n: usize) -> Result<()> {
    match got {
        Some(got) if got != n => Err(Error::length("bias", n, got)),
        _ => Ok(()),
    }
}
