//! Pooling over whole channels, and pooling undone.

use super::arguments::length;
use super::attributes::Attributes;
use super::movement::walk::AXES;
use super::pool::{Field, check_float, check_norm, check_spatial, power, root};
use super::wide::{Float, with_float};
use super::window::Windows;
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::math::GRAIN;
use crate::kernels::{self, Largest, Taps, Workspace, mean_pixels, pool};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Average,
    Max,
    Lp { p: i64 },
}

/// ONNX GlobalAveragePool, GlobalMaxPool and GlobalLpPool: one value for each channel, `[n, c, ..]` to `[n, c, 1, ..]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalPool {
    kind: Kind,
}

impl GlobalPool {
    /// The mean; the sum runs in f64, element by element.
    pub fn average() -> Self {
        GlobalPool { kind: Kind::Average }
    }

    /// Whether it is the mean.
    pub(crate) fn is_average(&self) -> bool {
        matches!(self.kind, Kind::Average)
    }

    /// Whether it is the largest.
    pub(crate) fn is_max(&self) -> bool {
        matches!(self.kind, Kind::Max)
    }

    /// The largest; NaN is larger than all numbers.
    pub fn max() -> Self {
        GlobalPool { kind: Kind::Max }
    }

    /// The `p` norm: `(Σ |x|^p)^(1/p)`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for `p` below 1.
    pub fn lp(p: i64) -> Result<Self> {
        check_norm(p)?;
        Ok(GlobalPool { kind: Kind::Lp { p } })
    }
}

impl Operation for GlobalPool {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Average => "GlobalAveragePool",
            Kind::Max => "GlobalMaxPool",
            Kind::Lp { .. } => "GlobalLpPool",
        }
    }

    fn attributes(&self) -> Attributes {
        match self.kind {
            Kind::Lp { p } => Attributes::new().with("p", p),
            _ => Attributes::new(),
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(vec![check_float("input of a pooling", inputs[0])?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        check_spatial(shape)?;
        if shape.dims()[2..].contains(&0) {
            return Err(Error::shape("input", "[n, c, ..] with at least one element a channel", shape.dims()));
        }
        let mut dims = vec![1; shape.rank()];
        dims[..2].copy_from_slice(&shape.dims()[..2]);
        Ok(vec![Shape::new(dims)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        let Field { outer, inner, first, rank } = Field::new(x.dims, inputs.channels_last());
        let size: usize = x.dims[first..first + rank].iter().product();
        if x.bytes.is_empty() {
            return Ok(());
        }
        if x.dtype == DType::F32 && !matches!(self.kind, Kind::Lp { .. }) {
            match self.kind {
                Kind::Average => {
                    for (x, y) in x.f32().chunks_exact(size * inner).zip(y.f32().chunks_exact_mut(inner)) {
                        mean_pixels(x, y);
                    }
                }
                _ => pool(Largest, x.f32(), &whole(size, inner), y.f32(), (threads, GRAIN)),
            }
            return Ok(());
        }
        with_float!(x.dtype, T => {
            let (x, y) = (x.as_slice::<T>(), y.as_mut_slice::<T>());
            for (o, channel) in (0..outer).flat_map(|o| (0..inner).map(move |channel| (o, channel))) {
                let values = x[o * size * inner + channel..].iter().step_by(inner).take(size).map(|x| x.wide());
                y[o * inner + channel] = T::narrow(match self.kind {
                    Kind::Average => values.sum::<f64>() / size as f64,
                    Kind::Max => values.fold(f64::NEG_INFINITY, |best, x| if x > best || x.is_nan() { x } else { best }),
                    Kind::Lp { p } => root(values.map(|x| power(x.abs(), p)).sum(), p),
                });
            }
        });
        Ok(())
    }
}

/// One window over all `size` pixels of an image of `channels`.
pub(super) fn whole(
    size: usize,
    channels: usize,
) -> kernels::Windows<impl Fn(usize) -> Taps + Copy + Sync, impl Fn(usize) -> Taps + Copy + Sync> {
    let taps = |count: usize| Taps { first: 0, count, padded: count };
    let (rows, columns) = (move |_| taps(1), move |_| taps(size));
    kernels::Windows { image: [1, size, channels], out: [1, 1], dilation: [1, 1], rows, columns }
}

/// ONNX MaxUnpool: each element at the place that its index (input 1) names, zeros elsewhere.
///
/// Indices count elements of the output that the windows give; where input 2 names a larger shape, that one lies in its
/// corner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxUnpool {
    kernel: Vec<usize>,
    windows: Windows,
}

impl MaxUnpool {
    /// Of windows of these lengths.
    pub fn new(kernel: impl Into<Vec<usize>>) -> Self {
        MaxUnpool { kernel: kernel.into(), windows: Windows::new() }
    }

    /// With these strides and padding.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        MaxUnpool { windows, ..self }
    }

    /// `(length - 1) * stride - pads + kernel` along each spatial axis.
    fn unpooled(&self, dims: &[usize]) -> Result<Vec<usize>> {
        let mut lengths = dims.to_vec();
        for (axis, (length, &kernel)) in lengths[2..].iter_mut().zip(&self.kernel).enumerate() {
            let (before, after) = self.windows.pads(axis, self.kernel.len());
            let span = length.saturating_sub(1).checked_mul(self.windows.stride(axis)).and_then(|span| span.checked_add(kernel));
            let whole = span.and_then(|span| span.checked_sub(before)?.checked_sub(after));
            *length = whole.ok_or_else(|| Error::parameter("pads", (before, after), format!("leave nothing of spatial axis {axis}")))?;
        }
        Ok(lengths)
    }
}

impl Operation for MaxUnpool {
    fn name(&self) -> &'static str {
        "MaxUnpool"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_windows(Some(&self.kernel), &self.windows)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 3)?;
        self.windows.check(self.kernel.len())?;
        super::arguments::check_ints("indices", inputs, 1)?;
        super::arguments::check_ints("output_shape", inputs, 2)?;
        Ok(vec![check_float("input of MaxUnpool", inputs[0])?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let wanted = facts.ints(2)?;
        let (shape, indices) = (facts.shape(0)?, facts.shape(1)?);
        check_spatial(shape)?;
        if shape.rank() != self.kernel.len() + 2 || indices != shape {
            let rule = format!("[n, c, ..] of {} spatial axes, and {shape:?} as the input", self.kernel.len());
            return Err(Error::shape("indices", rule, indices.dims()));
        }
        let own = Shape::new(self.unpooled(shape.dims())?)?;
        let Some(wanted) = wanted else { return Ok(vec![own]) };
        let dims: Vec<usize> = wanted.iter().map(|&l| length("output_shape", l)).collect::<Result<_>>()?;
        if dims.len() != own.rank() || dims.iter().zip(own.dims()).any(|(wanted, own)| wanted < own) {
            return Err(Error::shape("output_shape", format!("at least {own:?} along each axis"), &dims));
        }
        Ok(vec![Shape::new(dims)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, indices, y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
        let own = self.unpooled(x.dims)?;
        let (count, size) = (own.iter().product::<usize>(), x.dtype.bytes());
        y.bytes.fill(0);
        for (element, index) in x.bytes.chunks_exact(size).zip(indices.ints()?) {
            let Some(mut index) = usize::try_from(index).ok().filter(|&index| index < count) else {
                return Err(Error::parameter("index", index, format!("must lie within 0..{count}, the elements of {own:?}")));
            };
            let mut at = [0; AXES];
            for (at, &length) in at[..own.len()].iter_mut().zip(&own).rev() {
                (*at, index) = (index % length, index / length);
            }
            let place = (0..own.len()).fold(0, |place, axis| place * y.dims[axis] + at[axis]);
            y.bytes[place * size..][..size].copy_from_slice(element);
        }
        Ok(())
    }
}
