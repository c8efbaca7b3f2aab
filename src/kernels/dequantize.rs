//! The stage that makes floats of sums, and that of float kernels.

use super::function::Function;
use super::operand::Per;
use super::output::{
    Activation, Destinations, IntegerStage, Interleaved, NOTHING, PERMUTED, PERMUTED_PLAIN, PLAIN, Place, StageShape, Store, WHOLE,
    check_bias, check_one_or, load_broadcast, one_or,
};
use super::ranges::Measure;
use super::simd::Simd;
use crate::error::Result;

/// `f32`: `activation(acc as f32 * (lhs_scale * weight_scale[n]) + bias[n] + dst[m][n])`, bias and `dst` where they are asked for.
///
/// Each operation rounds to f32 and none is fused, so the result is the same on every instruction set.
///
/// ```
/// use lowprec::kernels::{Activation, Dequantize, Per};
/// let stage = Dequantize::new(Per::Tensor(0.5), &[0.1]).with_activation(Activation::Relu);
/// assert!(stage.bias.is_none() && !stage.accumulate);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Dequantize<'a> {
    /// Scale of the activations: one, or one for each row (each image of a convolution).
    pub lhs_scale: Per<'a, f32>,
    /// Scale of the weights: one, or one for each column.
    pub weight_scale: &'a [f32],
    /// Added after scaling, one for each column.
    pub bias: Option<&'a [f32]>,
    /// Whether what is in `dst` is added, after the bias.
    pub accumulate: bool,
    /// Applied last.
    pub activation: Activation,
}

impl<'a> Dequantize<'a> {
    /// Scales alone: no bias, no activation, `dst` overwritten.
    pub fn new(lhs_scale: Per<'a, f32>, weight_scale: &'a [f32]) -> Self {
        Dequantize { lhs_scale, weight_scale, bias: None, accumulate: false, activation: Activation::None }
    }

    /// With a bias for each column.
    pub fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        Dequantize { bias, ..self }
    }

    /// With an activation.
    pub fn with_activation(self, activation: Activation) -> Self {
        Dequantize { activation, ..self }
    }

    /// Added to what is in `dst`, or not.
    pub fn with_accumulate(self, accumulate: bool) -> Self {
        Dequantize { accumulate, ..self }
    }

    /// The stage itself, with what it measures.
    pub(super) fn measured(&self, measure: Option<Measure>) -> DequantizeStage<'a> {
        DequantizeStage { plain: *self, measure, function: None }
    }

    pub(super) fn largest_bias(&self) -> usize {
        0
    }

    pub(super) fn check_parameters(&self, shape: StageShape) -> Result<()> {
        check_one_or("weight scales", self.weight_scale.len(), shape.n)?;
        self.lhs_scale.check_len("lhs scales", shape.params)?;
        check_bias(self.bias.map(<[f32]>::len), shape.n)?;
        self.activation.check()
    }

    /// The stage of one sum: the meaning of the vectors below.
    pub(super) fn value(&self, sum: f32, param: usize, column: usize, before: f32) -> f32 {
        let mut x = sum * (self.lhs_scale.get(param) * one_or(self.weight_scale, column));
        if let Some(bias) = self.bias {
            x += bias[column];
        }
        if self.accumulate {
            x += before;
        }
        self.activation.apply(x)
    }
}

/// [`Dequantize`] in registers.
#[derive(Clone, Copy)]
pub(super) struct DequantizeStage<'a> {
    plain: Dequantize<'a>,
    measure: Option<Measure>,
    function: Option<Function>,
}

impl DequantizeStage<'_> {
    /// With a function after all else, of which nothing is measured: for products alone.
    pub fn then(self, function: Option<Function>) -> Self {
        DequantizeStage { function, ..self }
    }

    /// With other scales of the activations.
    pub fn with_lhs_scale<'s>(&'s self, lhs_scale: Per<'s, f32>) -> DequantizeStage<'s> {
        DequantizeStage { plain: Dequantize { lhs_scale, ..self.plain }, ..*self }
    }
}

/// Scale of a vector of columns, its bias, and the activation's bounds.
#[derive(Clone, Copy)]
pub struct DequantizeColumns<F> {
    scale: F,
    /// -0 where there is none, which changes nothing, not even the sign of a zero.
    bias: F,
    lo: F,
    hi: F,
}

impl IntegerStage for DequantizeStage<'_> {
    type Element = f32;
    type Columns<S: Simd> = DequantizeColumns<S::F32>;

    fn part(self, part: usize) -> Self {
        DequantizeStage { measure: self.measure.map(|measure| measure.part(part)), ..self }
    }

    fn only(self, param: usize) -> Self {
        let plain = Dequantize { lhs_scale: Per::Tensor(self.plain.lhs_scale.get(param)), ..self.plain };
        DequantizeStage { plain, measure: self.measure.map(|measure| measure.only(param)), ..self }
    }

    fn finish(&self, sum: i64, row: usize, column: usize, before: f32) -> f32 {
        let x = self.plain.value(sum as f32, row, column, before);
        self.function.map_or(x, |function| function.of(x))
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(self, simd: S, dst: *mut f32, stride: usize, rows: usize, columns: usize) {
        if let Some(function) = self.function {
            // SAFETY: the caller's promise.
            unsafe { function.replace(simd, dst, stride, rows, columns) }
        }
    }

    #[inline(always)]
    unsafe fn columns<S: Simd>(self, simd: S, n: usize, lanes: usize) -> Self::Columns<S> {
        let Dequantize { lhs_scale, weight_scale, bias, activation, .. } = self.plain;
        let (lo, hi) = activation.bounds();
        // SAFETY: `check_parameters` saw one element or one for each column, and the caller keeps within the columns.
        let (scale, bias) = unsafe { (load_broadcast(simd, weight_scale, n, lanes), load_bias(simd, bias, n, lanes)) };
        let scale = match lhs_scale {
            Per::Tensor(lhs) => simd.mul_f32(simd.splat_f32(lhs), scale),
            Per::Row(_) => scale,
        };
        DequantizeColumns { scale, bias, lo: simd.splat_f32(lo), hi: simd.splat_f32(hi) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize, const NV: usize>(
        self,
        simd: S,
        columns: &[Self::Columns<S>; NV],
        params: [usize; R],
        acc: [[S::I32; NV]; R],
        place: Place,
        dst: *mut f32,
        stride: usize,
    ) {
        let Dequantize { lhs_scale, accumulate, activation, .. } = self.plain;
        let mut x = [[simd.splat_f32(0.0); NV]; R];
        for r in 0..R {
            for v in 0..NV {
                x[r][v] = simd.to_f32(acc[r][v]);
            }
        }
        match lhs_scale {
            Per::Tensor(_) => {
                for r in 0..R {
                    for v in 0..NV {
                        x[r][v] = simd.mul_f32(x[r][v], columns[v].scale);
                    }
                }
            }
            Per::Row(scales) => {
                for r in 0..R {
                    // SAFETY: `check_parameters` saw one scale for each row, and the caller keeps within the rows.
                    let scale = simd.splat_f32(unsafe { *scales.get_unchecked(params[r]) });
                    for v in 0..NV {
                        x[r][v] = simd.mul_f32(x[r][v], simd.mul_f32(scale, columns[v].scale));
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { store_floats(simd, columns, &params, x, place, (dst, stride), (accumulate, activation, self.measure)) }
    }

    #[inline(always)]
    fn interleaved<S: Simd>(self, _: S, columns: &[Self::Columns<S>; 4]) -> Interleaved<Self::Columns<S>> {
        let Dequantize { lhs_scale, accumulate, .. } = self.plain;
        if accumulate || matches!(lhs_scale, Per::Row(_)) || self.measure.is_some_and(|measure| !measure.is_single()) {
            return None;
        }
        Some(*columns)
    }

    #[inline(always)]
    fn permuted<S: Simd>(self, simd: S, columns: &[Self::Columns<S>; 4]) -> Interleaved<Self::Columns<S>> {
        let mut all = self.interleaved(simd, columns)?;
        let scale = simd.permuted_f32([all[0].scale, all[1].scale, all[2].scale, all[3].scale]);
        let bias = simd.permuted_f32([all[0].bias, all[1].bias, all[2].bias, all[3].bias]);
        for v in 0..4 {
            all[v] = DequantizeColumns { scale: scale[v], bias: bias[v], ..all[v] };
        }
        Some(all)
    }

    fn known(&self) -> u8 {
        if self.plain.activation == Activation::None && self.measure.is_none() { PLAIN } else { WHOLE }
    }

    #[inline(always)]
    unsafe fn store_interleaved<S: Simd, const KNOWN: u8>(
        self,
        simd: S,
        columns: &[Self::Columns<S>; 4],
        acc: [S::I32; 4],
        place: Place,
        to: Destinations<f32>,
    ) {
        let permuted = KNOWN == PERMUTED || KNOWN == PERMUTED_PLAIN;
        let acc = if permuted { acc } else { simd.deinterleave(acc) };
        let mut x = [simd.splat_f32(0.0); 4];
        for v in 0..4 {
            x[v] = simd.add_f32(simd.mul_f32(simd.to_f32(acc[v]), columns[v].scale), columns[v].bias);
        }
        if KNOWN == WHOLE || KNOWN == PERMUTED || KNOWN == NOTHING && self.plain.activation != Activation::None {
            [x] = clamped(simd, columns, [x]);
        }
        let rows = if let Destinations::Two(..) = to { 2 } else { 1 };
        let whole = KNOWN != NOTHING || rows * place.columns == 4 * S::LANES;
        let measure = if KNOWN == PLAIN || KNOWN == PERMUTED_PLAIN { None } else { self.measure };
        if let (Some(measure), true) = (measure, whole) {
            // SAFETY: all rows have the same range, or `interleaved` had given no columns; all lanes are values.
            unsafe { measure.record(simd, &[0], &[x], Place { columns: 4 * S::LANES, ..place }) }
        }
        if permuted {
            let (first, second) = match to {
                Destinations::One(dst) => (dst, dst.wrapping_add(2 * S::LANES)),
                Destinations::Two(first, second) => (first, second),
            };
            for v in 0..4 {
                let at = v * S::LANES / 2;
                // SAFETY: the caller's promise on `to`.
                unsafe { simd.store_halves_f32(first.wrapping_add(at), second.wrapping_add(at), x[v]) }
            }
            return;
        }
        for v in 0..4 {
            let (dst, at) = match to {
                Destinations::One(dst) => (dst, v),
                Destinations::Two(first, second) => (if v < 2 { first } else { second }, v % 2),
            };
            let lanes = if KNOWN == NOTHING { place.columns.saturating_sub(at * S::LANES).min(S::LANES) } else { S::LANES };
            if lanes > 0 {
                // SAFETY: the caller's promise on `to`.
                unsafe { simd.store_f32(dst.wrapping_add(at * S::LANES), x[v], lanes) }
                if let (Some(measure), false) = (measure, whole) {
                    // SAFETY: as above; these lanes are values.
                    unsafe { measure.record(simd, &[0], &[[x[v]]], Place { columns: lanes, ..place }) }
                }
            }
        }
    }
}

/// Adds the bias and what is in `dst`, where asked for, applies the activation, writes, and takes in the ranges.
///
/// # Safety
/// `params` and `place` are inside what the stage was checked for; `dst` is writable there;
/// `(NV - 1) * LANES < place.columns <= NV * LANES`.
#[inline(always)]
unsafe fn store_floats<S: Simd, const R: usize, const NV: usize>(
    simd: S,
    columns: &[DequantizeColumns<S::F32>; NV],
    params: &[usize; R],
    mut x: [[S::F32; NV]; R],
    place: Place,
    (dst, stride): (*mut f32, usize),
    (accumulate, activation, measure): (bool, Activation, Option<Measure>),
) {
    for r in 0..R {
        for v in 0..NV {
            x[r][v] = simd.add_f32(x[r][v], columns[v].bias);
        }
    }
    let whole = place.columns == NV * S::LANES;
    if whole && !accumulate && measure.is_none() {
        // In code of its own: beside few products, a branch at each vector takes as long as they do.
        if activation != Activation::None {
            x = clamped(simd, columns, x);
        }
        for r in 0..R {
            for v in 0..NV {
                // SAFETY: the caller's promise on `dst`, of whole vectors.
                unsafe { simd.store_f32(dst.wrapping_add(r * stride + v * S::LANES), x[r][v], S::LANES) }
            }
        }
        return;
    }
    if accumulate {
        for r in 0..R {
            for v in 0..NV {
                // SAFETY: the caller's promise on `dst`.
                let before = unsafe { simd.load_f32(dst.wrapping_add(r * stride + v * S::LANES), place.lanes::<S>(v)) };
                x[r][v] = simd.add_f32(x[r][v], before);
            }
        }
    }
    if activation != Activation::None {
        x = clamped(simd, columns, x);
    }
    for r in 0..R {
        for v in 0..NV {
            // SAFETY: the caller's promise on `dst`.
            unsafe { simd.store_f32(dst.wrapping_add(r * stride + v * S::LANES), x[r][v], place.lanes::<S>(v)) }
        }
    }
    if let Some(measure) = measure {
        // SAFETY: the caller's promise on `params`; the work's parts keep their ranges apart.
        unsafe { measure.record(simd, params, &x, place) }
    }
}

/// Within the activation's bounds.
#[inline(always)]
fn clamped<S: Simd, const R: usize, const NV: usize>(
    simd: S,
    columns: &[DequantizeColumns<S::F32>; NV],
    mut x: [[S::F32; NV]; R],
) -> [[S::F32; NV]; R] {
    for r in 0..R {
        for v in 0..NV {
            x[r][v] = simd.min_f32(columns[v].hi, simd.max_f32(columns[v].lo, x[r][v]));
        }
    }
    x
}

/// The bias of columns `n..n + lanes`, or -0 where there is none.
///
/// # Safety
/// The bias has at least `n + lanes` elements, `1 <= lanes <= LANES`.
#[inline(always)]
unsafe fn load_bias<S: Simd>(simd: S, bias: Option<&[f32]>, n: usize, lanes: usize) -> S::F32 {
    let Some(bias) = bias else { return simd.splat_f32(-0.0) };
    // SAFETY: the caller's promise.
    unsafe { simd.load_f32(bias.as_ptr().add(n), lanes) }
}

/// The output stage of float kernels: `activation(acc + bias[n] + dst[m][n])`.
#[derive(Clone, Copy)]
pub(super) struct FloatStage<'a> {
    pub bias: Option<&'a [f32]>,
    pub accumulate: bool,
    pub activation: Activation,
    pub measure: Option<Measure>,
    /// After all else, of products alone; nothing of it is measured.
    pub function: Option<Function>,
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

    fn part(self, part: usize) -> Self {
        FloatStage { measure: self.measure.map(|measure| measure.part(part)), ..self }
    }

    fn only(self, param: usize) -> Self {
        FloatStage { measure: self.measure.map(|measure| measure.only(param)), ..self }
    }

    #[inline(always)]
    unsafe fn after(self, simd: S, dst: *mut f32, stride: usize, rows: usize, columns: usize) {
        if let Some(function) = self.function {
            // SAFETY: the caller's promise.
            unsafe { function.replace(simd, dst, stride, rows, columns) }
        }
    }

    #[inline(always)]
    unsafe fn columns(self, simd: S, n: usize, lanes: usize) -> Self::Columns {
        let (lo, hi) = self.activation.bounds();
        // SAFETY: `check` saw one bias for each column, and the caller keeps within the columns.
        let bias = unsafe { load_bias(simd, self.bias, n, lanes) };
        DequantizeColumns { scale: simd.splat_f32(1.0), bias, lo: simd.splat_f32(lo), hi: simd.splat_f32(hi) }
    }

    #[inline(always)]
    unsafe fn store<const R: usize, const NV: usize>(
        self,
        simd: S,
        columns: &[Self::Columns; NV],
        params: [usize; R],
        acc: [[S::F32; NV]; R],
        place: Place,
        dst: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { store_floats(simd, columns, &params, acc, place, (dst, stride), (self.accumulate, self.activation, self.measure)) }
    }
}
