//! Float products and convolutions by the same tiles: sums run over k in order, one accumulator for each output.

use std::cell::Cell;

use super::conv::check_conv;
use super::conv_weights::{ConvWeights, Packed};
use super::depthwise_float::DirectDepthwise;
use super::dequantize::FloatStage;
use super::dot::Float;
use super::elementwise::Extremes;
use super::function::Function;
use super::geometry::{Conv2dGeometry, ImageLayout, ImageShape, Padded};
use super::ingest::{self, Same};
use super::isa::{Isa, Visitor};
use super::operand::{Matrix, MatrixMut, check_product, check_threads};
use super::output::Activation;
use super::pack::PanelLayout;
use super::product::{Product, Rows};
use super::ranges::{Measure, Range, check_cells, report};
use super::simd::Simd;
use super::strips::{Activations, Convolution};
use super::threads;
use super::tile::{Segment, Start, Zero};
use super::weights::PackedFloatWeights;
use super::workspace::Workspace;
use crate::error::Result;

/// What follows the sums of a float product: `activation(sum + bias[n] + dst[m][n])`, bias and `dst` where they are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct FloatEpilogue<'a> {
    /// One for each column.
    pub bias: Option<&'a [f32]>,
    /// Whether what is in `dst` is added, after the bias.
    pub accumulate: bool,
    /// Applied last.
    pub activation: Activation,
    /// Where the ranges of the result go, if they are wanted: see [`Epilogue::ranges`](super::Epilogue::ranges).
    pub ranges: Option<&'a [Cell<Range>]>,
}

impl<'a> FloatEpilogue<'a> {
    /// The sums alone.
    pub fn new() -> Self {
        FloatEpilogue::default()
    }

    /// With a bias for each column.
    pub fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        FloatEpilogue { bias, ..self }
    }

    /// With an activation.
    pub fn with_activation(self, activation: Activation) -> Self {
        FloatEpilogue { activation, ..self }
    }

    /// Added to what is in `dst`, or not.
    pub fn with_accumulate(self, accumulate: bool) -> Self {
        FloatEpilogue { accumulate, ..self }
    }

    /// With the ranges of the result.
    pub fn with_ranges(self, ranges: Option<&'a [Cell<Range>]>) -> Self {
        FloatEpilogue { ranges, ..self }
    }

    /// The stage of a product, everything about it checked.
    pub(super) fn checked_stage(
        &self,
        lhs: &Matrix<'_, f32>,
        dst: &MatrixMut<'_, f32>,
        [n, k]: [usize; 2],
        threads: usize,
    ) -> Result<FloatStage<'a>> {
        check_threads(threads)?;
        check_product(lhs, dst, n, k)?;
        check_cells(self.ranges, lhs.rows())?;
        let stage = self.stage();
        stage.check(n)?;
        Ok(stage)
    }

    fn stage(&self) -> FloatStage<'a> {
        let FloatEpilogue { bias, accumulate, activation, .. } = *self;
        FloatStage { bias, accumulate, activation, measure: None, function: None }
    }
}

/// `dst[m][n] = activation(sum over k of lhs[m][k] * weight[n][k] + bias[n] + dst[m][n])` in f32, by `epilogue`.
///
/// Each output is one sum over k in order, so the result does not depend on the number of threads, on which rows share a
/// call, or on the other rows. Instruction sets may differ in the last bits, since some fuse multiplication and addition.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the matrices do not fit the weights, [`Error::Length`](crate::Error::Length)
/// for a bias of the wrong length, [`Error::Parameter`](crate::Error::Parameter) for `threads == 0` or an empty clamp.
pub fn sgemm(
    lhs: Matrix<'_, f32>,
    weights: &PackedFloatWeights,
    epilogue: &FloatEpilogue<'_>,
    dst: MatrixMut<'_, f32>,
    threads: usize,
) -> Result<()> {
    sgemm_with(lhs, weights, epilogue, None, dst, threads)
}

/// [`sgemm`], and a function of each element of the result.
pub(crate) fn sgemm_with(
    lhs: Matrix<'_, f32>,
    weights: &PackedFloatWeights,
    epilogue: &FloatEpilogue<'_>,
    function: Option<Function>,
    mut dst: MatrixMut<'_, f32>,
    threads: usize,
) -> Result<()> {
    let stage = epilogue.checked_stage(&lhs, &dst, [weights.n(), weights.k()], threads)?;
    let stage = FloatStage { function, ..stage };
    if !dst.is_empty() {
        weights.isa().visit(SgemmVisit { lhs, weights, stage, dst: dst.as_mut_ptr(), dst_stride: dst.stride(), threads });
    }
    report_rows(epilogue.ranges, &dst, weights.isa());
    Ok(())
}

/// The ranges of a product's rows, or of them all, found behind it: it has no memory of its own to keep them in.
pub(super) fn report_rows(cells: Option<&[Cell<Range>]>, dst: &MatrixMut<'_, f32>, isa: Isa) {
    let (cells, rows) = (cells.unwrap_or_default(), dst.rows());
    for (i, cell) in cells.iter().enumerate() {
        let range = |row: usize| isa.visit(Extremes(dst.row(row)));
        let of = if cells.len() == rows { i..i + 1 } else { 0..rows };
        cell.set(of.fold(Range::EMPTY, |whole, row| whole.union(range(row))).closed());
    }
}

struct SgemmVisit<'a> {
    lhs: Matrix<'a, f32>,
    weights: &'a PackedFloatWeights,
    stage: FloatStage<'a>,
    dst: *mut f32,
    dst_stride: usize,
    threads: usize,
}

impl Visitor for SgemmVisit<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let product = Product::<S, Float, _> {
            simd,
            lhs: self.lhs.data().as_ptr(),
            rows: Rows::Strided { stride: self.lhs.stride(), first: 0 },
            m: self.lhs.rows(),
            segments: &[Segment { offset: 0, words: self.weights.k() }],
            group_step: 0,
            panels: self.weights.panels(),
            start: Start::new(Zero::Tensor(0)),
            store: self.stage,
            dst: self.dst,
            dst_stride: self.dst_stride,
        };
        // SAFETY: matrices and stage were checked against the weights; a word is one float, so nothing is read beyond a row.
        unsafe { product.run(self.threads) }
    }
}

/// Float weights of a convolution, packed for one instruction set.
#[derive(Debug, Clone)]
pub struct PackedFloatConv2d {
    inner: ConvWeights<f32>,
}

impl PackedFloatConv2d {
    /// For the fastest instruction set of this processor, [`Isa::best`]. `weights` are OIHW.
    ///
    /// # Errors
    /// As [`PackedFloatConv2d::pack_for`].
    pub fn pack(geometry: &Conv2dGeometry, weights: &[f32]) -> Result<Self> {
        Self::pack_for(Isa::best(), geometry, weights)
    }

    /// For the instruction set `isa`.
    ///
    /// # Errors
    /// [`Error::Isa`](crate::Error::Isa) when this processor lacks it; as [`Conv2dGeometry::validate`];
    /// [`Error::Length`](crate::Error::Length) for the wrong number of weights.
    pub fn pack_for(isa: Isa, geometry: &Conv2dGeometry, weights: &[f32]) -> Result<Self> {
        Ok(PackedFloatConv2d { inner: ConvWeights::pack(isa, PanelLayout::float, geometry, weights)? })
    }

    /// The shape of the convolution.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.inner.geometry
    }

    /// The instruction set that runs it.
    pub fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.inner.bytes()
    }

    /// The weights, OIHW.
    pub fn unpack(&self) -> Vec<f32> {
        self.inner.unpack()
    }
}

/// `dst[i][y][x][o] = activation(sum over taps and channels of input * weight + bias[o] + dst[i][y][x][o])` in f32, NHWC, by `epilogue`;
/// padding is zero.
///
/// The result does not depend on the number of threads or on the other images of the batch.
///
/// # Errors
/// As [`Conv2dGeometry::output_size`]; [`Error::Length`](crate::Error::Length) when `input`, `dst` or `bias` has the wrong
/// length; [`Error::Parameter`](crate::Error::Parameter) for `threads == 0` or an empty clamp.
#[allow(clippy::too_many_arguments)]
pub fn conv2d_f32(
    input: &[f32],
    shape: ImageShape,
    weights: &PackedFloatConv2d,
    epilogue: &FloatEpilogue<'_>,
    dst: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    let (padded, out) = check_conv(weights.geometry(), shape, input.len(), dst.len())?;
    check_cells(epilogue.ranges, shape.n)?;
    // Ranges are kept for each thread: not for more than there is work for.
    let work = dst.len().saturating_mul(8 * (weights.geometry().k() + 8));
    let threads = if epilogue.ranges.is_some() { threads::parts(threads, work, ingest::GRAIN) } else { threads };
    let Workspace { measured, .. } = &mut *workspace;
    let measure = epilogue.ranges.map(|cells| Measure::new(measured, cells.len(), shape.n, threads));
    let stage = FloatStage { measure, ..epilogue.stage() };
    stage.check(weights.geometry().out_channels)?;
    let out_pointer = dst.as_mut_ptr();
    weights.isa().visit(ConvVisit { input, shape, padded, out, weights: &weights.inner, stage, dst: out_pointer, workspace, threads });
    if let Some(cells) = epilogue.ranges {
        let of = |cell: usize| &dst[dst.len() * cell / cells.len()..dst.len() * (cell + 1) / cells.len()];
        report(&workspace.measured, cells, |cell| weights.isa().visit(Extremes(of(cell))));
    }
    Ok(())
}

struct ConvVisit<'a> {
    input: &'a [f32],
    shape: ImageShape,
    padded: Padded,
    out: [usize; 2],
    weights: &'a ConvWeights<f32>,
    stage: FloatStage<'a>,
    dst: *mut f32,
    workspace: &'a mut Workspace,
    threads: usize,
}

impl Visitor for ConvVisit<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let ConvVisit { input, shape, padded, out, weights, stage: store, dst, workspace, threads } = self;
        let Workspace { codes: memory, segments, .. } = workspace;
        if let (Packed::Depthwise(lanes), ImageLayout::Nhwc, 1) = (&weights.packed, shape.layout, padded.repeat) {
            let (geometry, weights) = (&weights.geometry, lanes.by_tap());
            let product = DirectDepthwise { simd, lhs: input, padded: &padded, geometry, out, weights, store, dst };
            // SAFETY: `conv2d_f32` checked input, output and stage; packed weights end with a vector more.
            return unsafe { product.run(threads) };
        }
        let fill = |image: usize, y: usize, dst: &mut [f32]| ingest::line(simd, (Same, 0.0), input, &padded, (image, y), dst);
        let lhs = match weights.reads_in_place(shape, 1) {
            true => Activations::InPlace(input),
            false => Activations::Lines { fill: &fill, memory, source: None },
        };
        let start = Start::new(Zero::Tensor(0));
        let convolution = Convolution::<S, Float, _> {
            simd,
            weights,
            geometry: &weights.geometry,
            padded: &padded,
            out,
            start,
            store,
            dst,
            permuted: false,
        };
        // SAFETY: `conv2d_f32` checked input, output and stage.
        unsafe { convolution.run(lhs, segments, threads) }
    }
}
