//! Float products and convolutions by the same tiles: sums run over k in order, one accumulator for each output.

use super::conv::{ConvWeights, check_conv};
use super::dequantize::FloatStage;
use super::dot::Float;
use super::geometry::{Conv2dGeometry, ImageShape, Padded};
use super::ingest::{self, Same};
use super::isa::{Isa, Visitor};
use super::operand::{Matrix, MatrixMut, check_product, check_threads};
use super::output::Activation;
use super::pack::PanelLayout;
use super::product::{Product, Rows};
use super::simd::Simd;
use super::strips::{Activations, Convolution};
use super::tile::{Segment, Start, Zero};
use super::weights::PackedFloatWeights;
use super::workspace::Workspace;
use crate::error::Result;

/// `dst[m][n] = activation(sum over k of lhs[m][k] * weight[n][k] + bias[n])` in f32.
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
    bias: Option<&[f32]>,
    activation: Activation,
    mut dst: MatrixMut<'_, f32>,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    check_product(&lhs, &dst, weights.n(), weights.k())?;
    let stage = FloatStage { bias, activation };
    stage.check(weights.n())?;
    if dst.is_empty() {
        return Ok(());
    }
    weights.isa().visit(SgemmVisit { lhs, weights, stage, dst: dst.as_mut_ptr(), dst_stride: dst.stride(), threads });
    Ok(())
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
            rows: Rows::Strided { stride: self.lhs.stride() },
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

/// `dst[i][y][x][o] = activation(sum over taps and channels of input * weight + bias[o])` in f32, NHWC; padding is zero.
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
    bias: Option<&[f32]>,
    activation: Activation,
    dst: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    let (padded, out) = check_conv(weights.geometry(), shape, input.len(), dst.len())?;
    let stage = FloatStage { bias, activation };
    stage.check(weights.geometry().out_channels)?;
    let dst = dst.as_mut_ptr();
    weights.isa().visit(ConvVisit { input, shape, padded, out, weights: &weights.inner, stage, dst, workspace, threads });
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
        let fill = |image: usize, y: usize, dst: &mut [f32]| ingest::line(simd, (Same, 0.0), input, &padded, (image, y), dst);
        let lhs = match weights.reads_in_place(shape, 1) {
            true => Activations::InPlace(input),
            false => Activations::Lines { fill: &fill, memory },
        };
        let start = Start::new(Zero::Tensor(0));
        let convolution = Convolution::<S, Float, _> { simd, weights, padded: &padded, out, start, store, dst };
        // SAFETY: `conv2d_f32` checked input, output and stage.
        unsafe { convolution.run(lhs, segments, threads) }
    }
}
