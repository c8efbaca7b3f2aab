//! Convolution: products over a padded NHWC workspace, without im2col.

use super::conv_weights::{ConvWeights, Packed};
use super::dot::Dot;
use super::geometry::{Conv2dGeometry, ImageLayout, ImageShape, Padded};
use super::ingest::{self, Fill};
use super::isa::{Isa, Visitor};
use super::operand::{ActivationCode, Codes, Per, check_threads, check_zero_points};
use super::output::{IntegerStage, Integers, OutputStage, StageShape};
use super::pack::PanelLayout;
use super::simd::{Element, Simd};
use super::strips::{Activations, Convolution};
use super::tile::Start;
use super::weights::Bound;
use super::winograd;
use super::workspace::Workspace;
use crate::error::{Error, Result};

/// 8-bit weights of a convolution, packed for one instruction set, with the sum of each output channel.
///
/// About one byte per weight; a few more where a matrix unit reads a first layer in blocks of pixels. The packed form is a cache: it
/// differs between processors and is never saved.
#[derive(Debug, Clone)]
pub struct PackedConv2d {
    inner: ConvWeights<i8>,
}

impl PackedConv2d {
    /// For the fastest instruction set of this processor, [`Isa::best`]. `codes` are OIHW, as in PyTorch and ONNX.
    ///
    /// # Errors
    /// As [`PackedConv2d::pack_for`].
    pub fn pack(geometry: &Conv2dGeometry, codes: &[i8]) -> Result<Self> {
        Self::pack_for(Isa::best(), geometry, codes)
    }

    /// For the instruction set `isa`.
    ///
    /// # Errors
    /// [`Error::Isa`] when this processor lacks it; as [`Conv2dGeometry::validate`]; [`Error::Length`] for the wrong number
    /// of codes; [`Error::Accumulator`] when a sum has more than 65536 products.
    pub fn pack_for(isa: Isa, geometry: &Conv2dGeometry, codes: &[i8]) -> Result<Self> {
        geometry.validate()?;
        let (k, limit) = (geometry.k(), Bound::SYMMETRIC.products);
        if k > limit {
            return Err(Error::Accumulator { k, limit });
        }
        Ok(PackedConv2d { inner: ConvWeights::pack(isa, PanelLayout::int8, geometry, codes)? })
    }

    /// The shape of the convolution.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.inner.geometry
    }

    /// The instruction set that runs it.
    pub fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// The kernel that its weights are packed for, as `u8i8-conv-<pixels>x<channels>x<k>-<isa>`, `u8i8-depthwise-<isa>` or
    /// `u8i8-grouped-<isa>`.
    pub fn kernel_name(&self) -> &'static str {
        match self.inner.packed {
            Packed::Panels(_) => self.inner.isa.conv_kernel(),
            Packed::Depthwise(_) => self.inner.isa.depthwise_kernel(),
            Packed::Grouped(_) | Packed::GroupedWords(_) => self.inner.isa.grouped_kernel(),
        }
    }

    /// The kernel that runs it on images of a shape: [`PackedConv2d::kernel_name`], or `u8i8-winograd-<isa>` for 3 x 3 pixels at stride one
    /// where there are enough of channels and pixels, with the same result from about a quarter of the products.
    ///
    /// # Errors
    /// As [`Conv2dGeometry::output_size`].
    pub fn kernel_name_for(&self, shape: ImageShape) -> Result<&'static str> {
        let (_, out) = Padded::new(self.geometry(), shape)?;
        let is_faster = self.inner.isa.visit(IsWinograd { weights: &self.inner, shape, out });
        Ok(if is_faster { self.inner.isa.winograd_kernel() } else { self.kernel_name() })
    }

    /// Bytes held, channel sums included.
    pub fn bytes(&self) -> usize {
        self.inner.bytes()
    }

    /// The codes, OIHW.
    pub fn unpack(&self) -> Vec<i8> {
        self.inner.unpack()
    }

    pub(super) fn inner(&self) -> &ConvWeights<i8> {
        &self.inner
    }
}

/// Whether codes of a shape go through [`winograd`].
struct IsWinograd<'a> {
    weights: &'a ConvWeights<i8>,
    shape: ImageShape,
    out: [usize; 2],
}

impl Visitor for IsWinograd<'_> {
    type Out = bool;
    fn visit<S: Simd>(self, simd: S) -> bool {
        let IsWinograd { weights, shape, out } = self;
        winograd::is_faster(simd, weights, shape.n, out)
    }
}

/// Whether input and output have the sizes that the geometry asks for; the workspace that results.
pub(super) fn check_conv(geometry: &Conv2dGeometry, shape: ImageShape, input: usize, dst: usize) -> Result<(Padded, [usize; 2])> {
    let (padded, out) = Padded::new(geometry, shape)?;
    let expected = shape.n * geometry.in_channels * shape.h * shape.w;
    if input != expected {
        return Err(Error::length("input", expected, input));
    }
    let expected = shape.n * geometry.out_channels * out[0] * out[1];
    if dst != expected { Err(Error::length("dst", expected, dst)) } else { Ok((padded, out)) }
}

/// `dst[i][y][x][o] = stage(sum over taps and channels of (input - zero_point) * weight)`, NHWC; padding is the zero point.
///
/// Exact, and the same bit for bit on every instruction set and for any number of threads. [`Per::Row`] means one value
/// for each image, here and in the stage. `threads` is an upper bound.
///
/// # Errors
/// As [`Conv2dGeometry::output_size`]; [`Error::Length`] when `input`, `dst`, the zero points or the stage's parameters have
/// the wrong length; [`Error::ZeroPoint`] for a zero point that is not a code of `T`; [`Error::Parameter`] for `threads == 0`.
#[allow(clippy::too_many_arguments)]
pub fn conv2d<T: ActivationCode, S: OutputStage>(
    input: &[T],
    shape: ImageShape,
    zero_point: Per<'_, i32>,
    weights: &PackedConv2d,
    stage: &S,
    dst: &mut [S::Element],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    let (padded, out) = check_conv(weights.geometry(), shape, input.len(), dst.len())?;
    check_zero_points::<T>(zero_point, shape.n)?;
    check_stage(stage, weights.geometry(), shape.n, out)?;
    let (codes, dst) = (T::erase(input), dst.as_mut_ptr());
    stage.conv2d(ConvCall { codes, shape, padded, out, zero_point, weights: weights.inner(), dst, workspace, threads });
    Ok(())
}

/// Whether a stage fits a convolution of `images` images into `out` pixels.
pub(super) fn check_stage<S: OutputStage>(stage: &S, geometry: &Conv2dGeometry, images: usize, out: [usize; 2]) -> Result<()> {
    let (m, k, bound) = (images * out[0] * out[1], geometry.k(), Bound::SYMMETRIC);
    let shape = StageShape { m, n: geometry.out_channels, params: images, k, bound };
    stage.check(shape)?;
    if stage.sums_fit(shape) { Ok(()) } else { Err(Error::Accumulator { k, limit: bound.products.min(k - 1) }) }
}

/// The checked arguments of [`conv2d`]. Public only as an argument of a hidden method.
pub struct ConvCall<'a, E> {
    codes: Codes<'a>,
    shape: ImageShape,
    padded: Padded,
    out: [usize; 2],
    zero_point: Per<'a, i32>,
    weights: &'a ConvWeights<i8>,
    dst: *mut E,
    workspace: &'a mut Workspace,
    threads: usize,
}

impl<'a> ConvCall<'a, i8> {
    /// The same call, its output as bytes.
    pub(super) fn into_bytes(self) -> ConvCall<'a, u8> {
        let ConvCall { codes, shape, padded, out, zero_point, weights, dst, workspace, threads } = self;
        ConvCall { codes, shape, padded, out, zero_point, weights, dst: dst.cast(), workspace, threads }
    }
}

impl<E: Copy + Send + Sync> ConvCall<'_, E> {
    pub(super) fn run<T: IntegerStage<Element = E>>(self, stage: T) {
        self.weights.isa.visit(ConvVisit { call: self, stage })
    }
}

struct ConvVisit<'a, E, T> {
    call: ConvCall<'a, E>,
    stage: T,
}

impl<T: IntegerStage> Visitor for ConvVisit<'_, T::Element, T> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let ConvCall { codes, shape, padded, out, zero_point, weights, dst, workspace, threads } = self.call;
        let Workspace { codes: memory, zero_points, segments, winograd, .. } = workspace;
        let zero = codes.zero(zero_point, zero_points);
        let line = |image: usize, y: usize, dst: &mut [_]| ingest::line_of_codes(simd, codes, zero.get(image), &padded, (image, y), dst);
        let blocks = |image: usize, y: usize, dst: &mut [_]| ingest::line_of_blocks(&padded, y, dst, |y, dst| line(image, y, dst));
        let fill: Fill<'_, _> = if weights.in_blocks() { &blocks } else { &line };
        let source = Element::in_place(codes).filter(|_| shape.layout == ImageLayout::Nhwc);
        // By fewer products, activations are read in vectors.
        let beyond = winograd::is_faster(simd, weights, shape.n, out) && !weights.geometry.in_channels.is_multiple_of(4 * S::LANES);
        let lhs = match source {
            Some(lhs) if weights.reads_in_place(shape, S::Int8::KU) && !beyond => Activations::InPlace(lhs),
            source => Activations::Lines { fill, memory, source },
        };
        let (start, store) = (Start { bias: self.stage.bias(), ..Start::new(zero) }, Integers(self.stage));
        let (geometry, running) = weights.running(padded);
        let convolution =
            Convolution::<S, S::Int8, _> { simd, weights, geometry, padded: &running, out, start, store, dst, permuted: false };
        // SAFETY: `conv2d` checked input, output, zero points and stage.
        unsafe { convolution.run_integers(lhs, segments, winograd, threads) }
    }
}
