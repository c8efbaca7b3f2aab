//! Convolution of floats over any number of spatial axes, its weights a value like any other.

use super::attributes::Attributes;
use super::movement::walk::AXES;
use super::pool::{check_float, check_spatial, each_position};
use super::wide::{Float, with_float};
use super::window::{Along, Windows};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::{
    Aligned, Conv2dGeometry, FloatEpilogue, ImageLayout, ImageShape, Matrix, MatrixMut, PackedFloatConv2d, PackedFloatWeights,
    WeightLayout, Workspace, conv2d_f32, sgemm,
};
use crate::nn::layer::Order;
use crate::nn::reorder;
use crate::nn::view::{Inputs, Outputs, View, ViewMut, physical_axis};
use crate::tensor::{DType, Shape};

/// Floats of windows that are laid out for a product at a time: they stay in a second-level cache.
const BAND: usize = 1 << 15;

/// ONNX Conv: `y[n, o, p] = bias[o] + Σ weight[o, i, t] · x[n, group(o) + i, stride · p + dilation · t - padding]`, of weights
/// `[out, in / groups, kernel..]` (input 1) and an optional bias `[out]` (input 2).
///
/// For weights that are not constant, padding that follows from the input, and other than two spatial axes; constant weights
/// over images are a [`Conv2d`](crate::nn::Conv2d).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv {
    groups: usize,
    windows: Windows,
}

impl Conv {
    /// With so many groups of channels.
    pub fn new(groups: usize) -> Self {
        Conv { groups, windows: Windows::new() }
    }

    /// With these strides, padding and dilations.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        Conv { windows, ..self }
    }

    /// The windows along each spatial axis, of an input and weights of these dimensions.
    fn axes(&self, x: &[usize], kernel: &[usize]) -> Result<[Along; AXES]> {
        let mut axes = [Along::default(); AXES];
        for (i, along) in axes.iter_mut().take(kernel.len()).enumerate() {
            *along = self.windows.along(i, kernel.len(), kernel[i], x[i])?;
        }
        Ok(axes)
    }
}

/// Whether data, weights and bias are floats of one type.
pub(super) fn check_types(inputs: &[Option<DType>]) -> Result<Vec<DType>> {
    check_arity(inputs, 2, 3)?;
    let dtype = check_float("input of a convolution", inputs[0])?;
    match inputs[1..].iter().flatten().find(|&&other| other != dtype) {
        Some(other) => Err(Error::Type { what: "weights or bias".into(), expected: dtype.name(), got: other.name() }),
        None => Ok(vec![dtype]),
    }
}

/// Whether input 2, if given, is one number for each output channel.
pub(super) fn check_bias(facts: &Facts<'_>, channels: usize) -> Result<()> {
    match facts.has(2) {
        true if facts.shape(2)?.dims() != [channels] => Err(Error::shape("bias", format!("[{channels}]"), facts.shape(2)?.dims())),
        _ => Ok(()),
    }
}

impl Operation for Conv {
    fn name(&self) -> &'static str {
        "Conv"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_windows(None, &self.windows).with_other("group", self.groups as i64, 1)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_types(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (x, weight) = (facts.shape(0)?, facts.shape(1)?);
        check_spatial(x)?;
        self.windows.check(x.rank() - 2)?;
        let fits = weight.rank() == x.rank()
            && self.groups > 0
            && weight.dims()[1].checked_mul(self.groups) == Some(x.dims()[1])
            && weight.dims()[0].is_multiple_of(self.groups);
        if !fits {
            let rule = format!("[out, in / groups, kernel..] for {x:?} in {} groups", self.groups);
            return Err(Error::shape("weight", rule, weight.dims()));
        }
        check_bias(facts, weight.dims()[0])?;
        let axes = self.axes(&x.dims()[2..], &weight.dims()[2..])?;
        let mut dims = vec![x.dims()[0], weight.dims()[0]];
        dims.extend(axes[..x.rank() - 2].iter().map(|along| along.outputs));
        Ok(vec![Shape::new(dims)?])
    }

    fn order(&self) -> Order {
        // Images come out of the kernel channels-last.
        Order::AnyToChannelsLast
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let (x, weight, bias, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.get(2), outputs.get(0));
        let (rank, last) = (x.dims.len() - 2, inputs.channels_last());
        if y.bytes.is_empty() {
            return Ok(());
        }
        let at = |view: &View<'_>, axis: usize| view.dims[physical_axis(axis, rank + 2, last)];
        let (mut spatial, mut kernel) = ([1; AXES], [1; AXES]);
        for axis in 0..rank {
            (spatial[axis], kernel[axis]) = (at(&x, axis + 2), at(&weight, axis + 2));
        }
        let axes = self.axes(&spatial[..rank], &kernel[..rank])?;
        let call = Call { n: x.dims[0], c: at(&x, 1), out: weight.dims[0], groups: self.groups, axes: &axes[..rank], last };
        if x.dtype == DType::F32 && rank <= 2 {
            return call.images(&x, &weight, bias.as_ref().map(|bias| bias.f32()), &mut y, workspace, threads);
        }
        if x.dtype == DType::F32 {
            return call.products(x.f32(), weight.f32(), bias.as_ref().map(|bias| bias.f32()), y.f32(), workspace, threads);
        }
        call.directly(&x, &weight, bias.as_ref(), &mut y);
        Ok(())
    }
}

/// The numbers of one run.
struct Call<'a> {
    n: usize,
    c: usize,
    out: usize,
    groups: usize,
    axes: &'a [Along],
    last: bool,
}

impl Call<'_> {
    /// Where window `at` reads: for each tap that lies inside, its index among taps and the element's among positions.
    fn taps(&self, at: &[usize], mut body: impl FnMut(usize, usize)) {
        let mut inside = [(0, 0, 0); AXES];
        for (inside, (along, &i)) in inside.iter_mut().zip(self.axes.iter().zip(at)) {
            *inside = along.taps(i);
        }
        each_position(
            |axis| inside[axis].2,
            self.axes.len(),
            |_, t| {
                let both = self.axes.iter().enumerate().fold((0, 0), |(tap, position), (axis, along)| {
                    let (skipped, first, _) = inside[axis];
                    (tap * along.kernel + skipped + t[axis], position * along.length + first + t[axis] * along.dilation)
                });
                body(both.0, both.1);
            },
        );
    }

    /// Lengths of all positions of input, kernel and output.
    fn counts(&self) -> [usize; 3] {
        [|along: &Along| along.length, |along: &Along| along.kernel, |along: &Along| along.outputs]
            .map(|length: fn(&Along) -> usize| self.axes.iter().map(length).product())
    }

    /// One or two spatial axes, by the kernel of images.
    fn images(
        &self,
        x: &View<'_>,
        weight: &View<'_>,
        bias: Option<&[f32]>,
        y: &mut ViewMut<'_>,
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        let flat = Along { length: 1, outputs: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };
        let [rows, columns] = match *self.axes {
            [rows, columns] => [rows, columns],
            _ => [flat, self.axes[0]],
        };
        let geometry = Conv2dGeometry::new(self.c, self.out, [rows.kernel, columns.kernel])
            .with_stride([rows.stride, columns.stride])
            .with_padding([rows.before, columns.before, rows.after, columns.after])
            .with_dilation([rows.dilation, columns.dilation])
            .with_groups(self.groups);
        let packed = if self.last {
            // The weights were brought into the order of the images: [out, kh, kw, in].
            let mut rows_first = vec![0f32; weight.len()];
            let matrices = [self.out, rows.kernel * columns.kernel, self.c / self.groups];
            reorder::transpose(weight.bytes, size_of::<f32>(), matrices, bytemuck::cast_slice_mut(&mut rows_first));
            PackedFloatConv2d::pack(&geometry, &rows_first)?
        } else {
            PackedFloatConv2d::pack(&geometry, weight.f32())?
        };
        let layout = if self.last { ImageLayout::Nhwc } else { ImageLayout::Nchw };
        let shape = ImageShape { n: self.n, h: rows.length, w: columns.length, layout };
        if self.axes.len() == 2 {
            return conv2d_f32(x.f32(), shape, &packed, &FloatEpilogue::new().with_bias(bias), y.f32(), workspace, threads);
        }
        let mut memory = std::mem::take(&mut workspace.columns);
        let channels_last = &mut memory.grow::<f32>(y.bytes.len() / size_of::<f32>())[..y.bytes.len() / size_of::<f32>()];
        let done = conv2d_f32(x.f32(), shape, &packed, &FloatEpilogue::new().with_bias(bias), channels_last, workspace, threads);
        let matrices = [self.n, columns.outputs, self.out];
        reorder::transpose(bytemuck::cast_slice(channels_last), size_of::<f32>(), matrices, y.bytes);
        workspace.columns = memory;
        done
    }

    /// Any number of axes, row-major: windows laid out as rows of a matrix, a band of them at a time.
    fn products(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        let [size, taps, out] = self.counts();
        let (per_in, per_out) = (self.c / self.groups, self.out / self.groups);
        let k = per_in * taps;
        let band = (BAND / k.max(1)).clamp(1, out);
        let memory: &mut Aligned = &mut workspace.columns;
        let (windows, results) = memory.grow::<f32>(band * (k + per_out)).split_at_mut(band * k);
        let mut starts = [0; AXES];
        for group in 0..self.groups {
            let weights = PackedFloatWeights::pack(&weight[group * per_out * k..][..per_out * k], per_out, k, WeightLayout::Nk)?;
            let bias = bias.map(|bias| &bias[group * per_out..][..per_out]);
            for image in 0..self.n {
                let x = &x[(image * self.c + group * per_in) * size..][..per_in * size];
                let y = &mut y[(image * self.out + group * per_out) * out..][..per_out * out];
                for first in (0..out).step_by(band) {
                    let m = band.min(out - first);
                    for (i, window) in windows[..m * k].chunks_exact_mut(k.max(1)).enumerate() {
                        let mut rest = first + i;
                        for (at, along) in starts[..self.axes.len()].iter_mut().zip(self.axes).rev() {
                            (*at, rest) = (rest % along.outputs, rest / along.outputs);
                        }
                        window.fill(0.0);
                        self.taps(&starts[..self.axes.len()], |tap, position| {
                            (0..per_in).for_each(|channel| window[channel * taps + tap] = x[channel * size + position]);
                        });
                    }
                    let results = &mut results[..m * per_out];
                    let (lhs, dst) = (Matrix::new(&windows[..m * k], m, k)?, MatrixMut::new(results, m, per_out)?);
                    sgemm(lhs, &weights, &FloatEpilogue::new().with_bias(bias), dst, threads)?;
                    for (i, result) in results.chunks_exact(per_out).enumerate() {
                        result.iter().enumerate().for_each(|(channel, &sum)| y[channel * out + first + i] = sum);
                    }
                }
            }
        }
        Ok(())
    }

    /// Any type, element by element, summed in f64.
    fn directly(&self, x: &View<'_>, weight: &View<'_>, bias: Option<&View<'_>>, y: &mut ViewMut<'_>) {
        let [size, taps, out] = self.counts();
        let (per_in, per_out) = (self.c / self.groups, self.out / self.groups);
        // Steps from channel to channel and from position to position, in either order of images.
        let steps = |last: bool, channels: usize, positions: usize| if last { (1, channels) } else { (positions, 1) };
        let ((x_channel, x_step), (w_channel, w_step)) = (steps(self.last, self.c, size), steps(self.last, per_in, taps));
        let (y_channel, y_step) = steps(self.axes.len() == 2, self.out, out);
        with_float!(x.dtype, T => {
            let (x, weight, bias) = (x.as_slice::<T>(), weight.as_slice::<T>(), bias.map(|bias| bias.as_slice::<T>()));
            let y = y.as_mut_slice::<T>();
            for (image, o) in (0..self.n).flat_map(|image| (0..self.out).map(move |o| (image, o))) {
                let first = image * self.c * size + o / per_out * per_in * x_channel;
                each_position(|axis| self.axes[axis].outputs, self.axes.len(), |index, at| {
                    let mut sum = bias.map_or(0.0, |bias| bias[o].wide());
                    self.taps(at, |tap, position| {
                        for channel in 0..per_in {
                            let x = x[first + channel * x_channel + position * x_step].wide();
                            sum += x * weight[o * per_in * taps + channel * w_channel + tap * w_step].wide();
                        }
                    });
                    y[image * self.out * out + o * y_channel + index * y_step] = T::narrow(sum);
                });
            }
        });
    }
}
