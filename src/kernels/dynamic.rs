//! Float in, float out, 8 bits in between: activations get their scale and zero point from their own range, inside the call.

use std::cell::Cell;

use super::conv::{PackedConv2d, check_conv, check_stage};
use super::conv_weights::ConvWeights;
use super::dequantize::Dequantize;
use super::dynamic_product::DynamicProduct;
use super::elementwise::Extremes;
use super::function::Function;
use super::gemm::{Destination, stage_shape};
use super::geometry::{ImageShape, Padded};
use super::ingest::{self, Fill, Numbers, Quantizer};
use super::isa::Visitor;
use super::operand::{Matrix, MatrixMut, Per, check_product, check_threads};
use super::output::{Activation, Integers, OutputStage};
use super::ranges::{Measure, Range, check_cells, report};
use super::simd::{Element, Simd};
use super::strips::{Activations, Convolution};
use super::threads;
use super::tile::{Start, Zero};
use super::weights::PackedWeights;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams};

/// How float activations become `u8` codes inside a call: [`affine_qparams`] of their range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationRule {
    /// Smallest code, from 0.
    pub qmin: i32,
    /// Largest code, to 255.
    pub qmax: i32,
    /// Whether the zero point is the middle code, and the range the same on both sides.
    pub symmetric: bool,
    /// What NaN and infinities do.
    pub non_finite: NonFinite,
}

impl Default for ActivationRule {
    /// All 256 codes, asymmetric: ONNX DynamicQuantizeLinear. NaN and infinities are errors.
    fn default() -> Self {
        ActivationRule { qmin: 0, qmax: 255, symmetric: false, non_finite: NonFinite::Error }
    }
}

impl ActivationRule {
    fn check(&self) -> Result<()> {
        if 0 <= self.qmin && self.qmin < self.qmax && self.qmax <= 255 {
            return Ok(());
        }
        Err(Error::parameter("activation code range", (self.qmin, self.qmax), "0 <= qmin < qmax <= 255"))
    }

    /// Scale and zero point of a range.
    pub(super) fn qparams(&self, range: Range) -> (f32, i32) {
        let Range { min, max, .. } = range.closed();
        affine_qparams(min, max, self.qmin, self.qmax, self.symmetric)
    }

    pub(super) fn quantizer(&self, scale: f32, zero_point: i32) -> Quantizer {
        Quantizer::new(scale, zero_point, self.qmin, self.qmax)
    }

    /// The range, or the error for the first value that is not finite in runs of a tensor, each with the index of its first element.
    pub(super) fn allow<'v>(&self, range: Range, what: &'static str, runs: impl Iterator<Item = (usize, &'v [f32])>) -> Result<Range> {
        if range.finite || self.non_finite == NonFinite::Saturate {
            return Ok(range);
        }
        let mut all = runs.flat_map(|(start, run)| run.iter().enumerate().map(move |(i, &value)| (start + i, value)));
        // A range that was given may tell of what is not there.
        let (index, value) = all.find(|(_, x)| !x.is_finite()).unwrap_or((0, f32::NAN));
        Err(Error::NonFinite { what: what.to_owned(), index, value })
    }
}

/// [`ActivationRule`], and the ranges it is applied to, if whoever made the activations measured them: see [`Epilogue::ranges`].
///
/// With the ranges that measuring would find, the result is the same, bit for bit. Values beyond a given range get its first or last
/// code.
#[derive(Debug, Clone, Copy)]
pub struct InputRule<'a> {
    /// How a range becomes codes.
    pub rule: &'a ActivationRule,
    /// One for each image or row, or the one of the tensor, as [`RangeOf`] says; measured in the call where there are none.
    pub ranges: Option<&'a [Range]>,
}

impl<'a> From<&'a ActivationRule> for InputRule<'a> {
    fn from(rule: &'a ActivationRule) -> Self {
        InputRule { rule, ranges: None }
    }
}

impl InputRule<'_> {
    fn check(&self, ranges: usize) -> Result<()> {
        self.rule.check()?;
        let Some(given) = self.ranges else { return Ok(()) };
        if given.len() != ranges {
            return Err(Error::length("ranges of the input", ranges, given.len()));
        }
        // NaN is neither.
        match given.iter().find(|range| !(range.min <= range.max && range.min.is_finite() && range.max.is_finite())) {
            Some(range) => Err(Error::parameter("range of the input", (range.min, range.max), "finite, the smaller end first")),
            None => Ok(()),
        }
    }
}

/// What follows the sums of a dynamic product: `activation(acc * (lhs_scale * weight_scale[n]) + bias[n] + dst[m][n])`,
/// bias and `dst` where they are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// Scale of the weights: one, or one for each column.
    pub weight_scale: &'a [f32],
    /// Added after scaling, one for each column.
    pub bias: Option<&'a [f32]>,
    /// Whether what is in `dst` is added, after the bias.
    pub accumulate: bool,
    /// Applied last.
    pub activation: Activation,
    /// Where the ranges of the result go, if they are wanted: one for each row of a product or image of a convolution, or one for all.
    /// They are those that [`min_max`](super::min_max) finds.
    pub ranges: Option<&'a [Cell<Range>]>,
}

impl<'a> Epilogue<'a> {
    /// Scales alone: no bias, no activation, `dst` overwritten, no ranges.
    pub fn new(weight_scale: &'a [f32]) -> Self {
        Epilogue { weight_scale, bias: None, accumulate: false, activation: Activation::None, ranges: None }
    }

    /// With a bias for each column.
    pub fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        Epilogue { bias, ..self }
    }

    /// With an activation.
    pub fn with_activation(self, activation: Activation) -> Self {
        Epilogue { activation, ..self }
    }

    /// Added to what is in `dst`, or not.
    pub fn with_accumulate(self, accumulate: bool) -> Self {
        Epilogue { accumulate, ..self }
    }

    /// With the ranges of the result.
    pub fn with_ranges(self, ranges: Option<&'a [Cell<Range>]>) -> Self {
        Epilogue { ranges, ..self }
    }

    pub(super) fn stage(&self, lhs_scale: Per<'a, f32>) -> Dequantize<'a> {
        let Epilogue { weight_scale, bias, accumulate, activation, .. } = *self;
        Dequantize { lhs_scale, weight_scale, bias, accumulate, activation }
    }
}

/// Over what the range of the activations is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum RangeOf {
    /// The whole tensor: ONNX DynamicQuantizeLinear. What comes of a row or image then depends on the others of its batch.
    Tensor,
    /// Each row of a product (per token), each image of a convolution by itself. More precise, and independent of the others.
    #[default]
    Row,
}

impl RangeOf {
    /// Number of ranges for so many rows or images.
    fn count(self, params: usize) -> usize {
        if self == RangeOf::Row { params } else { 1 }
    }
}

/// [`gemm`](super::gemm) of float activations, quantized inside the call by `rule` over `range`.
///
/// Equal, bit for bit, to quantizing with [`affine_qparams`] and [`num::quantize`](crate::num::quantize), then
/// [`gemm`](super::gemm) with [`Dequantize`]. Given ranges ([`InputRule`]) are one for the tensor or one for each row, as `range` says.
///
/// # Errors
/// [`Error::NonFinite`] (the index is `row * cols + column`) unless the rule saturates; [`Error::Shape`],
/// [`Error::Length`] and [`Error::Parameter`] as [`gemm`](super::gemm).
#[allow(clippy::too_many_arguments)]
pub fn gemm_dynamic<'r>(
    lhs: Matrix<'_, f32>,
    range: RangeOf,
    rule: impl Into<InputRule<'r>>,
    weights: &PackedWeights,
    epilogue: &Epilogue<'_>,
    dst: MatrixMut<'_, f32>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    // What follows is compiled here, not wherever this is called.
    gemm_dynamic_with(lhs, range, rule.into(), weights, epilogue, Around::default(), dst, workspace, threads)
}

/// What stands around a product of a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around {
    /// Whether the call before it with this workspace was one of the same `lhs`, by the same rule and range, for weights of the same
    /// instruction set: the codes are still there.
    pub kept: bool,
    /// Of each element of the result.
    pub function: Option<Function>,
}

/// [`gemm_dynamic`] with what stands around it.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gemm_dynamic_with(
    lhs: Matrix<'_, f32>,
    range: RangeOf,
    rule: InputRule<'_>,
    weights: &PackedWeights,
    epilogue: &Epilogue<'_>,
    around: Around,
    mut dst: MatrixMut<'_, f32>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    rule.check(range.count(lhs.rows()))?;
    check_cells(epilogue.ranges, lhs.rows())?;
    check_product(&lhs, &dst, weights.n(), weights.k())?;
    let shape = stage_shape(lhs.rows(), weights);
    let stage = epilogue.stage(Per::Tensor(1.0));
    stage.check(shape)?;
    // Values that are not finite are refused even where nothing comes of them.
    if dst.is_empty() && (lhs.cols() == 0 || lhs.rows() == 0) {
        report(&[], epilogue.ranges.unwrap_or_default(), |_| Range::EMPTY);
        return Ok(());
    }
    // Ranges are kept for each thread: not for more than there is work for.
    let work = shape.m.saturating_mul(shape.n.max(1)).saturating_mul(shape.k + 8);
    let threads = if epilogue.ranges.is_some() { threads::parts(threads, work, ingest::GRAIN) } else { threads };
    let dst = Destination { data: dst.as_mut_ptr(), stride: dst.stride(), sums_fit: stage.sums_fit(shape), threads };
    weights.isa().visit(DynamicProduct { lhs, range, rule, weights, epilogue, around, dst, workspace })
}

/// [`conv2d`](super::conv2d) of float images, quantized inside the call by `rule` over `range`: each image's own
/// ([`RangeOf::Row`]), or that of all of them.
///
/// Given ranges ([`InputRule`]) are one for each image or one for the tensor, as `range` says.
///
/// # Errors
/// [`Error::NonFinite`] (the index is that in `input`) unless the rule saturates; the others as [`conv2d`](super::conv2d).
#[allow(clippy::too_many_arguments)]
pub fn conv2d_dynamic<'r>(
    input: &[f32],
    shape: ImageShape,
    range: RangeOf,
    rule: impl Into<InputRule<'r>>,
    weights: &PackedConv2d,
    epilogue: &Epilogue<'_>,
    dst: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    conv2d_by_rule(input, shape, range, rule.into(), weights, epilogue, dst, workspace, threads)
}

#[allow(clippy::too_many_arguments)]
fn conv2d_by_rule(
    input: &[f32],
    shape: ImageShape,
    range: RangeOf,
    rule: InputRule<'_>,
    weights: &PackedConv2d,
    epilogue: &Epilogue<'_>,
    dst: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    rule.check(range.count(shape.n))?;
    check_cells(epilogue.ranges, shape.n)?;
    let geometry = weights.geometry();
    let (padded, out) = check_conv(geometry, shape, input.len(), dst.len())?;
    check_stage(&epilogue.stage(Per::Tensor(1.0)), geometry, shape.n, out)?;
    let InputRule { rule, ranges } = rule;
    let Workspace { scales, zero_points, .. } = &mut *workspace;
    scales.clear();
    zero_points.clear();
    let count = range.count(shape.n);
    let mut finite = true;
    // Of the images, or of the tensor, as many each.
    let (len, images) = (input.len() / count.max(1), shape.n / count.max(1));
    for part in 0..count {
        let start = len * part;
        let values = &input[start..start + len];
        let range = match ranges {
            Some(ranges) => ranges[part],
            None => weights.isa().visit(RangeOnThreads { values, threads }),
        };
        let range = rule.allow(range, "input", [(start, values)].into_iter())?;
        finite &= range.finite;
        let (scale, zero_point) = rule.qparams(range);
        // One for each image, be it the same.
        scales.extend(std::iter::repeat_n(scale, images));
        zero_points.extend(std::iter::repeat_n(zero_point, images));
    }
    let threads = if epilogue.ranges.is_some() {
        threads::parts(threads, dst.len().saturating_mul(8 * (geometry.k() + 8)), ingest::GRAIN)
    } else {
        threads
    };
    let Workspace { measured, .. } = &mut *workspace;
    let measure = epilogue.ranges.map(|cells| Measure::new(measured, cells.len(), shape.n, threads));
    let out_pointer = dst.as_mut_ptr();
    weights.isa().visit(ConvVisit {
        input,
        padded,
        out,
        rule,
        finite,
        measured: ranges.is_none(),
        weights: weights.inner(),
        epilogue,
        measure,
        dst: out_pointer,
        workspace,
        threads,
    });
    if let Some(cells) = epilogue.ranges {
        let of = |cell: usize| &dst[dst.len() * cell / cells.len()..dst.len() * (cell + 1) / cells.len()];
        report(&workspace.measured, cells, |cell| weights.isa().visit(Extremes(of(cell))));
    }
    Ok(())
}

/// [`Extremes`] of a long slice.
struct RangeOnThreads<'a> {
    values: &'a [f32],
    threads: usize,
}

impl Visitor for RangeOnThreads<'_> {
    type Out = Range;
    fn visit<S: Simd>(self, simd: S) -> Range {
        // From the end: what is then still in the cache is what the convolution reads first, and it leaves there what the next call reads
        // first. 96 channels at 112 x 112 (4.8 MB) take a tenth less, quantized and convolved.
        const BLOCK: usize = 16 * 1024;
        // One range a thread, on the caller's stack.
        let mut ranges = [Range::EMPTY; 16];
        let len = self.values.len();
        let parts = threads::parts(self.threads, len, ingest::GRAIN).min(ranges.len());
        let count = parts.max(1);
        threads::split_mut(&mut ranges[..count], parts, |first, ranges| {
            for (i, range) in (first..).zip(ranges) {
                let blocks = self.values[len * i / count..len * (i + 1) / count].chunks(BLOCK).rev();
                *range = blocks.fold(Range::EMPTY, |whole, block| whole.union(Extremes(block).visit(simd)));
            }
        });
        ranges[..count].iter().fold(Range::EMPTY, |whole, &range| whole.union(range))
    }
}

struct ConvVisit<'a> {
    input: &'a [f32],
    padded: Padded,
    out: [usize; 2],
    rule: &'a ActivationRule,
    /// Whether every input is.
    finite: bool,
    /// Whether scales are of the range that was found in this call, not of one given.
    measured: bool,
    weights: &'a ConvWeights<i8>,
    epilogue: &'a Epilogue<'a>,
    measure: Option<Measure>,
    dst: *mut f32,
    workspace: &'a mut Workspace,
    threads: usize,
}

impl Visitor for ConvVisit<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let ConvVisit { input, padded, out, rule, finite, measured, weights, epilogue, measure, dst, workspace, threads } = self;
        let Workspace { codes: memory, scales, zero_points, segments, winograd, .. } = workspace;
        let (scales, zero_points) = (&scales[..], &zero_points[..]);
        // What is in the output is added in the order of columns.
        let permuted = finite && !epilogue.accumulate && weights.takes_permuted(&padded, out[1]);
        let line = |image: usize, y: usize, dst: &mut [_]| {
            let quantizer = rule.quantizer(scales[image], zero_points[image]);
            let (pad, at) = (Element::from_unsigned(zero_points[image]), (image, y));
            match (finite, measured, permuted) {
                (false, ..) => ingest::line(simd, (quantizer, pad), input, &padded, at, dst),
                (true, false, false) => ingest::line(simd, (Numbers::<false, false>(quantizer), pad), input, &padded, at, dst),
                (true, true, false) => ingest::line(simd, (Numbers::<true, false>(quantizer), pad), input, &padded, at, dst),
                (true, false, true) => ingest::line(simd, (Numbers::<false, true>(quantizer), pad), input, &padded, at, dst),
                (true, true, true) => ingest::line(simd, (Numbers::<true, true>(quantizer), pad), input, &padded, at, dst),
            }
        };
        let blocks = |image: usize, y: usize, dst: &mut [_]| ingest::line_of_blocks(&padded, y, dst, |y, dst| line(image, y, dst));
        let fill: Fill<'_, _> = if weights.in_blocks() { &blocks } else { &line };
        let (geometry, running) = weights.running(padded);
        let (start, store) = (Start::new(Zero::Row(zero_points)), Integers(epilogue.stage(Per::Row(scales)).measured(measure)));
        let convolution = Convolution::<S, S::Int8, _> { simd, weights, geometry, padded: &running, out, start, store, dst, permuted };
        // SAFETY: `conv2d_dynamic` checked input, output and stage; there is one scale and zero point for each image; what is permuted is so
        // by `takes_permuted`, for a stage that adds nothing of what is there, and images that are not in place have no `pad`.
        unsafe { convolution.run_integers(Activations::Lines { fill, memory, source: None }, segments, winograd, threads) }
    }
}
