//! Transposed convolution of floats over any number of spatial axes, its weights a value like any other.

use super::attributes::{Attributes, ints};
use super::conv::{check_bias, check_types};
use super::movement::walk::AXES;
use super::pool::{check_spatial, each_position};
use super::wide::{Float, with_float};
use super::window::{AutoPad, Windows};
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX ConvTranspose: `y[n, o, s · p + d · t - padding] = bias[o] + Σ weight[i, o, t] · x[n, i, p]`, of weights
/// `[in, out / groups, kernel..]` (input 1) and an optional bias `[out]` (input 2).
///
/// For weights that are not constant and other than two spatial axes; constant weights over images are a
/// [`ConvTranspose2d`](crate::nn::ConvTranspose2d).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvTranspose {
    groups: usize,
    windows: Windows,
    output_padding: Vec<usize>,
    output_shape: Option<Vec<usize>>,
}

/// One spatial axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stretched {
    pub length: usize,
    pub out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Taken away in front.
    pub before: usize,
}

impl Stretched {
    /// Where a tap of an element lies, if inside.
    fn place(&self, at: usize, tap: usize) -> Option<usize> {
        (at * self.stride + tap * self.dilation).checked_sub(self.before).filter(|&place| place < self.out)
    }
}

impl ConvTranspose {
    /// With so many groups of channels.
    pub fn new(groups: usize) -> Self {
        ConvTranspose { groups, windows: Windows::new(), output_padding: Vec::new(), output_shape: None }
    }

    /// With these strides, padding (taken away from the output) and dilations.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        ConvTranspose { windows, ..self }
    }

    /// With so much more at the end of each axis of the output.
    #[must_use]
    pub fn with_output_padding(self, output_padding: impl Into<Vec<usize>>) -> Self {
        ConvTranspose { output_padding: output_padding.into(), ..self }
    }

    /// With these lengths of the output's spatial axes; padding follows from them.
    #[must_use]
    pub fn with_output_shape(self, output_shape: impl Into<Vec<usize>>) -> Self {
        ConvTranspose { output_shape: Some(output_shape.into()), ..self }
    }

    /// Padding before and after each spatial axis, and what is more at its end, for an input and a kernel of these lengths:
    /// what a [`ConvTranspose2d`](crate::nn::ConvTranspose2d) takes.
    ///
    /// # Errors
    /// [`Error::Length`] for lists of another number of axes, [`Error::Parameter`] for lengths that can't be.
    pub fn padding(&self, lengths: &[usize], kernel: &[usize]) -> Result<Vec<[usize; 3]>> {
        self.check(lengths.len())?;
        (0..lengths.len())
            .map(|axis| {
                let (before, after, more, _) = self.along(axis, lengths.len(), lengths[axis], kernel[axis])?;
                Ok([before, after, more])
            })
            .collect()
    }

    fn check(&self, rank: usize) -> Result<()> {
        self.windows.check(rank)?;
        let shape = self.output_shape.as_ref();
        for (what, list) in [("list of output paddings", Some(&self.output_padding)), ("output_shape", shape)] {
            if let Some(list) = list.filter(|list| !list.is_empty() && list.len() != rank) {
                return Err(Error::length(what, rank, list.len()));
            }
        }
        Ok(())
    }

    /// Padding before and after, what is more at the end, and the length of the output.
    fn along(&self, axis: usize, rank: usize, length: usize, kernel: usize) -> Result<(usize, usize, usize, usize)> {
        let (stride, dilation) = (self.windows.stride(axis), self.windows.dilation(axis));
        let more = self.output_padding.get(axis).copied().unwrap_or(0);
        let span = |steps: usize, step: usize| steps.checked_sub(1)?.checked_mul(step);
        let whole = span(length, stride)
            .zip(span(kernel, dilation))
            .and_then(|(own, taps)| own.checked_add(taps)?.checked_add(1)?.checked_add(more))
            .filter(|&whole| isize::try_from(whole).is_ok());
        let Some(whole) = whole else {
            return Err(Error::parameter("kernel and input", (kernel, length), "must not be empty, nor too large to address"));
        };
        let auto_pad = self.windows.auto_pad;
        let wanted = match &self.output_shape {
            Some(shape) => shape.get(axis).copied(),
            None if matches!(auto_pad, AutoPad::SameUpper | AutoPad::SameLower) => {
                Some(length.checked_mul(stride).ok_or_else(|| Error::parameter("stride", stride, "is too large to address"))?)
            }
            None => None,
        };
        if let Some(out) = wanted {
            let total = whole.saturating_sub(out);
            let half = total / 2;
            let (before, after) = if auto_pad == AutoPad::SameUpper { (half, total - half) } else { (total - half, half) };
            return Ok((before, after, more + out.saturating_sub(whole), out));
        }
        let (before, after) = if auto_pad == AutoPad::Valid { (0, 0) } else { self.windows.pads(axis, rank) };
        match before.checked_add(after).and_then(|pads| whole.checked_sub(pads)) {
            Some(out) => Ok((before, after, more, out)),
            None => Err(Error::parameter("pads", (before, after), format!("take away more than the {whole} of spatial axis {axis}"))),
        }
    }

    fn axes(&self, x: &[usize], kernel: &[usize]) -> Result<[Stretched; AXES]> {
        let mut axes = [Stretched::default(); AXES];
        for (axis, (to, (&length, &kernel))) in axes.iter_mut().zip(x.iter().zip(kernel)).enumerate() {
            let (before, _, _, out) = self.along(axis, x.len(), length, kernel)?;
            *to = Stretched { length, out, kernel, stride: self.windows.stride(axis), dilation: self.windows.dilation(axis), before };
        }
        Ok(axes)
    }
}

impl Operation for ConvTranspose {
    fn name(&self) -> &'static str {
        "ConvTranspose"
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with_windows(None, &self.windows).with_other("group", self.groups as i64, 1);
        let padding = (!self.output_padding.is_empty()).then(|| ints(&self.output_padding));
        attributes.with_some("output_padding", padding).with_some("output_shape", self.output_shape.as_deref().map(ints))
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_types(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (x, weight) = (facts.shape(0)?, facts.shape(1)?);
        check_spatial(x)?;
        self.check(x.rank() - 2)?;
        let fits =
            weight.rank() == x.rank() && self.groups > 0 && weight.dims()[0] == x.dims()[1] && weight.dims()[0].is_multiple_of(self.groups);
        let channels = weight.dims().get(1).and_then(|per_group| per_group.checked_mul(self.groups));
        let Some(channels) = channels.filter(|_| fits) else {
            let rule = format!("[in, out / groups, kernel..] for {x:?} in {} groups", self.groups);
            return Err(Error::shape("weight", rule, weight.dims()));
        };
        check_bias(facts, channels)?;
        let axes = self.axes(&x.dims()[2..], &weight.dims()[2..])?;
        let mut dims = vec![x.dims()[0], channels];
        dims.extend(axes[..x.rank() - 2].iter().map(|axis| axis.out));
        Ok(vec![Shape::new(dims)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, _: usize) -> Result<()> {
        let (x, weight, bias, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.get(2), outputs.get(0));
        let rank = x.dims.len() - 2;
        let axes = self.axes(&x.dims[2..], &weight.dims[2..])?;
        let (c, out) = (x.dims[1], y.dims[1]);
        let call = Call { c, out, groups: self.groups, axes: &axes[..rank] };
        let (size, image) = (x.dims[1..].iter().product::<usize>(), y.dims[1..].iter().product::<usize>());
        if x.bytes.is_empty() || y.bytes.is_empty() {
            return Ok(());
        }
        if x.dtype == DType::F32 {
            for (x, y) in x.f32().chunks_exact(size).zip(y.f32().chunks_exact_mut(image)) {
                call.image(x, weight.f32(), bias.as_ref().map(|bias| bias.f32()), y, |x| x);
            }
            return Ok(());
        }
        // Sums in f64, rounded once.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(&mut workspace.columns.grow::<u8>(image * 8)[..image * 8]);
        with_float!(x.dtype, T => {
            let (weight, bias) = (weight.as_slice::<T>(), bias.as_ref().map(|bias| bias.as_slice::<T>()));
            for (x, y) in x.as_slice::<T>().chunks_exact(size).zip(y.as_mut_slice::<T>().chunks_exact_mut(image)) {
                call.image(x, weight, bias, sums, Float::wide);
                y.iter_mut().zip(&*sums).for_each(|(y, &sum)| *y = T::narrow(sum));
            }
        });
        Ok(())
    }
}

/// The numbers of one run.
struct Call<'a> {
    c: usize,
    out: usize,
    groups: usize,
    axes: &'a [Stretched],
}

impl Call<'_> {
    /// One image, row-major: for each pair of channels and each tap, rows of the input added to rows of the output.
    fn image<T: Copy, S>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [S], number: impl Fn(T) -> S)
    where
        S: Copy + Default + std::ops::Mul<Output = S> + std::ops::AddAssign,
    {
        let (per_in, per_out) = (self.c / self.groups, self.out / self.groups);
        let count = |length: fn(&Stretched) -> usize| self.axes.iter().map(length).product::<usize>();
        let (size, taps, out) = (count(|axis| axis.length), count(|axis| axis.kernel), count(|axis| axis.out));
        for (channel, y) in y.chunks_exact_mut(out).enumerate() {
            y.fill(bias.map_or(S::default(), |bias| number(bias[channel])));
        }
        let Some((row, outer)) = self.axes.split_last() else { return };
        for (i, o) in (0..self.c).flat_map(|i| (0..per_out).map(move |o| (i, o))) {
            let x = &x[i * size..][..size];
            let y = &mut y[(i / per_in * per_out + o) * out..][..out];
            let weight = &weight[(i * per_out + o) * taps..][..taps];
            each_position(
                |axis| self.axes[axis].kernel,
                self.axes.len(),
                |tap, t| {
                    let w = number(weight[tap]);
                    each_position(
                        |axis| outer[axis].length,
                        outer.len(),
                        |line, at| {
                            let place = outer
                                .iter()
                                .enumerate()
                                .try_fold(0, |place, (axis, along)| Some(place * along.out + along.place(at[axis], t[axis])?));
                            let Some(place) = place else { return };
                            let (x, y) = (&x[line * row.length..][..row.length], &mut y[place * row.out..][..row.out]);
                            let tap = t[outer.len()];
                            // The elements whose tap lies inside the row.
                            let first = row.before.saturating_sub(tap * row.dilation).div_ceil(row.stride);
                            let end = (row.out + row.before).saturating_sub(tap * row.dilation).div_ceil(row.stride).min(row.length);
                            if first < end {
                                let start = first * row.stride + tap * row.dilation - row.before;
                                for (y, &x) in y[start..].iter_mut().step_by(row.stride).zip(&x[first..end]) {
                                    *y += number(x) * w;
                                }
                            }
                        },
                    );
                },
            );
        }
    }
}
