//! Pooling over any number of spatial axes.

use super::attributes::Attributes;
use super::movement::walk::AXES;
use super::wide::{Float, with_float};
use super::window::{Along, Windows};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::math::GRAIN;
use crate::kernels::{self, CODES_GRAIN, Largest, LargestCode, Mean, Pooling, Taps, Workspace, pool};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::num::{bf16, f16};
use crate::tensor::{DType, Shape};

/// An input `[n, c, ..]` as runs of elements that lie together: `outer` times all positions of the spatial axes, each of
/// `inner` elements (one, or the channels where images lie channels-last).
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub outer: usize,
    pub inner: usize,
    /// Where the spatial axes start in memory.
    pub first: usize,
    pub rank: usize,
}

impl Field {
    pub fn new(dims: &[usize], channels_last: bool) -> Field {
        let rank = dims.len() - 2;
        if channels_last && rank == 2 {
            return Field { outer: dims[0], inner: dims[3], first: 1, rank };
        }
        Field { outer: dims[0] * dims[1], inner: 1, first: 2, rank }
    }
}

/// `[n, c, ..]` with at least one spatial axis, and no more than there is room for.
pub(super) fn check_spatial(shape: &Shape) -> Result<()> {
    match shape.rank() {
        3..=AXES => Ok(()),
        _ => Err(Error::shape("input", format!("[n, c, ..] of 1 to {} spatial axes", AXES - 2), shape.dims())),
    }
}

/// What becomes of a window's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Max { indices: bool, column_major: bool },
    Average { count_include_pad: bool },
    Lp { p: i64 },
}

/// ONNX MaxPool, AveragePool and LpPool: one value for each window and channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    kind: Kind,
    kernel: Vec<usize>,
    windows: Windows,
}

impl Pool {
    /// The largest element of each window; NaN is larger than all numbers, and padding never wins.
    pub fn max(kernel: impl Into<Vec<usize>>) -> Self {
        Pool { kind: Kind::Max { indices: false, column_major: false }, kernel: kernel.into(), windows: Windows::new() }
    }

    /// The mean of each window, of the elements inside the input.
    pub fn average(kernel: impl Into<Vec<usize>>) -> Self {
        Pool { kind: Kind::Average { count_include_pad: false }, kernel: kernel.into(), windows: Windows::new() }
    }

    /// The `p` norm of each window: `(Σ |x|^p)^(1/p)`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for `p` below 1.
    pub fn lp(kernel: impl Into<Vec<usize>>, p: i64) -> Result<Self> {
        check_norm(p)?;
        Ok(Pool { kind: Kind::Lp { p }, kernel: kernel.into(), windows: Windows::new() })
    }

    /// With these strides, padding and dilations.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        Pool { windows, ..self }
    }

    /// Whether padding counts into a mean, as zeros. Of another pooling nothing changes.
    #[must_use]
    pub fn with_count_include_pad(mut self, include: bool) -> Self {
        if let Kind::Average { count_include_pad } = &mut self.kind {
            *count_include_pad = include;
        }
        self
    }

    /// With a second output: where each largest element lies among all elements of the input, spatial axes in row-major
    /// order, or in column-major order if so said; -1 for a window of padding alone. Of another pooling nothing changes.
    #[must_use]
    pub fn with_indices(mut self, column_major_order: bool) -> Self {
        if let Kind::Max { indices, column_major } = &mut self.kind {
            (*indices, *column_major) = (true, column_major_order);
        }
        self
    }

    /// Whether padding counts, if it is a mean over images.
    pub(crate) fn averages_images(&self) -> Option<bool> {
        match self.kind {
            Kind::Average { count_include_pad } if self.kernel.len() == 2 => Some(count_include_pad),
            _ => None,
        }
    }

    /// Whether its windows have two axes.
    pub(crate) fn takes_images(&self) -> bool {
        self.kernel.len() == 2
    }

    /// Whether it is the largest element of each window, and nothing more.
    pub(crate) fn is_max(&self) -> bool {
        matches!(self.kind, Kind::Max { indices: false, .. })
    }

    /// Whether the lists of its windows fit its kernel.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Parameter`].
    pub(super) fn check_windows(&self) -> Result<()> {
        self.windows.check(self.kernel.len())
    }

    /// Calls `f` with the windows over channels-last images `[n, h, w, c]`.
    pub(super) fn over_images(&self, dims: &[usize], f: impl FnOnce(Images<'_>)) -> Result<()> {
        let axes = self.axes(&dims[1..3])?;
        f(Images { c: dims[3], rows: &axes[0], columns: &axes[1] });
        Ok(())
    }

    /// The windows of each row and of each column of images, and the distances between a window's pixels.
    pub(crate) fn image_windows(&self, h: usize, w: usize) -> Result<([Vec<Taps>; 2], [usize; 2])> {
        let axes = self.axes(&[h, w])?;
        Ok(([axes[0].windows(), axes[1].windows()], [axes[0].dilation, axes[1].dilation]))
    }

    /// The windows along each axis of an input of these dimensions.
    fn axes(&self, dims: &[usize]) -> Result<[Along; AXES]> {
        let mut axes = [Along::default(); AXES];
        for (i, (along, &length)) in axes.iter_mut().zip(dims).enumerate() {
            *along = self.windows.along(i, dims.len(), self.kernel[i], length)?;
        }
        Ok(axes)
    }
}

pub(super) fn check_norm(p: i64) -> Result<()> {
    if p >= 1 { Ok(()) } else { Err(Error::parameter("p", p, "must be at least 1")) }
}

/// Whether it is a float of at least 16 bits.
///
/// # Errors
/// [`Error::Type`].
pub(super) fn check_float(what: &'static str, dtype: Option<DType>) -> Result<DType> {
    match dtype {
        Some(dtype @ (DType::F32 | DType::F64 | DType::F16 | DType::Bf16)) => Ok(dtype),
        other => Err(Error::Type { what: what.into(), expected: "f32, f64, f16 or bf16", got: other.map_or("left out", DType::name) }),
    }
}

impl Operation for Pool {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Max { .. } => "MaxPool",
            Kind::Average { .. } => "AveragePool",
            Kind::Lp { .. } => "LpPool",
        }
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with_windows(Some(&self.kernel), &self.windows);
        match self.kind {
            Kind::Max { column_major, .. } => attributes.with_other("storage_order", column_major, false),
            Kind::Average { count_include_pad } => attributes.with_other("count_include_pad", count_include_pad, false),
            Kind::Lp { p } => attributes.with("p", p),
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        self.check_windows()?;
        let indices = matches!(self.kind, Kind::Max { indices: true, .. }).then_some(DType::I64);
        let dtype = match (self.kind, inputs[0]) {
            (Kind::Max { .. }, Some(dtype @ (DType::U8 | DType::I8))) => dtype,
            (_, dtype) => check_float("input of a pooling", dtype)?,
        };
        Ok([dtype].into_iter().chain(indices).collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        check_spatial(shape)?;
        let mut dims = shape.dims().to_vec();
        if dims.len() != self.kernel.len() + 2 {
            return Err(Error::shape("input", format!("[n, c, ..] of {} spatial axes, as the kernel", self.kernel.len()), &dims));
        }
        let axes = self.axes(&dims[2..])?;
        dims.iter_mut().skip(2).zip(axes).for_each(|(length, along)| *length = along.outputs);
        let shape = Shape::new(dims)?;
        Ok(match self.kind {
            Kind::Max { indices: true, .. } => vec![shape; 2],
            _ => vec![shape],
        })
    }

    fn order(&self) -> Order {
        if self.kernel.len() == 2 { Order::ChannelsLast } else { Order::RowMajor }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let x = inputs.need(0)?;
        let field = Field::new(x.dims, inputs.channels_last());
        let spatial = &x.dims[field.first..field.first + field.rank];
        let axes = self.axes(spatial)?;
        let axes = &axes[..field.rank];
        if let Kind::Max { indices: true, column_major } = self.kind {
            let mut each = outputs.each();
            return match (each.next(), each.next()) {
                (Some(mut y), Some(mut indices)) => {
                    by_order(&x, &mut y, Some((indices.as_mut_slice(), column_major)), &field, axes);
                    Ok(())
                }
                _ => Err(Error::length("list of outputs", 2, 1)),
            };
        }
        let mut y = outputs.get(0);
        if let ([rows, columns], 1) = (axes, field.first) {
            let images = Images { c: field.inner, rows, columns };
            match (x.dtype, self.kind) {
                (DType::U8, Kind::Max { .. }) => {
                    images.pool(LargestCode, x.bytes, y.bytes, (threads, CODES_GRAIN));
                    return Ok(());
                }
                (DType::F32, Kind::Max { .. } | Kind::Average { .. }) => {
                    images.floats(self.kind, x.f32(), y.f32(), threads);
                    return Ok(());
                }
                _ => {}
            }
        }
        match self.kind {
            Kind::Max { .. } => by_order(&x, &mut y, None, &field, axes),
            Kind::Average { count_include_pad } => {
                let count = |axes: &[Along], at: &[usize]| -> f64 {
                    let count = |(along, &i): (&Along, &usize)| if count_include_pad { along.padded_count(i) } else { along.taps(i).2 };
                    axes.iter().zip(at).map(count).product::<usize>() as f64
                };
                sums(&x, &mut y, &field, axes, |x| x, |sum, axes, at| sum / count(axes, at));
            }
            Kind::Lp { p } => sums(&x, &mut y, &field, axes, |x| power(x.abs(), p), |sum, _, _| root(sum, p)),
        }
        Ok(())
    }
}

/// `x^p` for a whole `p`.
pub(super) fn power(x: f64, p: i64) -> f64 {
    match i32::try_from(p) {
        Ok(p) => x.powi(p),
        Err(_) => x.powf(p as f64),
    }
}

/// `x^(1/p)`.
pub(super) fn root(x: f64, p: i64) -> f64 {
    match p {
        1 => x,
        2 => x.sqrt(),
        p => x.powf(1.0 / p as f64),
    }
}

/// Windows over channels-last images.
#[derive(Debug, Clone, Copy)]
pub(super) struct Images<'a> {
    c: usize,
    pub rows: &'a Along,
    pub columns: &'a Along,
}

impl Images<'_> {
    /// Pools images into so many threads, each of so many elements at least.
    pub fn pool<P: Pooling>(&self, pooling: P, x: &[P::In], y: &mut [P::Out], threads: (usize, usize)) {
        let (own, other) = (self.rows, self.columns);
        let windows = kernels::Windows {
            image: [own.length, other.length, self.c],
            out: [own.outputs, other.outputs],
            dilation: [own.dilation, other.dilation],
            rows: move |i| own.window(i),
            columns: move |i| other.window(i),
        };
        pool(pooling, x, &windows, y, threads);
    }

    fn floats(&self, kind: Kind, x: &[f32], y: &mut [f32], threads: usize) {
        let threads = (threads, GRAIN);
        match kind {
            Kind::Average { .. } if x.is_empty() => y.fill(f32::NAN),
            Kind::Average { count_include_pad: include_pad } => self.pool(Mean { include_pad }, x, y, threads),
            _ => self.pool(Largest, x, y, threads),
        }
    }
}

/// Calls `body` with each output position, in order, and its index.
pub(super) fn each_position(lengths: impl Fn(usize) -> usize, rank: usize, mut body: impl FnMut(usize, &[usize])) {
    if (0..rank).any(|axis| lengths(axis) == 0) {
        return;
    }
    let (mut at, mut index) = ([0usize; AXES], 0);
    loop {
        body(index, &at[..rank]);
        index += 1;
        let mut axis = rank;
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            at[axis] += 1;
            if at[axis] < lengths(axis) {
                break;
            }
            at[axis] = 0;
        }
    }
}

/// Calls `body` with the index of each element, among those of the spatial axes, under the window at `at`.
fn each_tap(axes: &[Along], at: &[usize], mut body: impl FnMut(usize)) {
    let mut taps = [(0, 0, 0); AXES];
    for (taps, (along, &i)) in taps.iter_mut().zip(axes.iter().zip(at)) {
        *taps = along.taps(i);
    }
    each_position(
        |axis| taps[axis].2,
        axes.len(),
        |_, tap| {
            let position = |axis: usize| taps[axis].1 + tap[axis] * axes[axis].dilation;
            body((0..axes.len()).fold(0, |index, axis| index * axes[axis].length + position(axis)));
        },
    );
}

/// A number that can be compared, and its smallest.
trait Ordered: bytemuck::Pod {
    const LEAST: Self;
    /// Whether it takes the place of `best`.
    fn wins(self, best: Self) -> bool;
}

macro_rules! ordered {
    ($($type:ty: $least:expr, $nan:expr;)*) => {$(
        impl Ordered for $type {
            const LEAST: Self = $least;
            fn wins(self, best: Self) -> bool {
                let is_nan: fn($type) -> bool = $nan;
                self > best || (is_nan(self) && !is_nan(best))
            }
        }
    )*};
}
ordered! {
    f32: f32::NEG_INFINITY, f32::is_nan;
    f64: f64::NEG_INFINITY, f64::is_nan;
    f16: f16::NEG_INFINITY, f16::is_nan;
    bf16: bf16::NEG_INFINITY, bf16::is_nan;
    u8: 0, |_| false;
    i8: i8::MIN, |_| false;
}

type Indices<'a> = Option<(&'a mut [i64], bool)>;

fn by_order(x: &View<'_>, y: &mut ViewMut<'_>, indices: Indices<'_>, field: &Field, axes: &[Along]) {
    match x.dtype {
        DType::F32 => largest::<f32>(x, y, indices, field, axes),
        DType::F64 => largest::<f64>(x, y, indices, field, axes),
        DType::F16 => largest::<f16>(x, y, indices, field, axes),
        DType::Bf16 => largest::<bf16>(x, y, indices, field, axes),
        DType::U8 => largest::<u8>(x, y, indices, field, axes),
        _ => largest::<i8>(x, y, indices, field, axes),
    }
}

fn largest<T: Ordered>(x: &View<'_>, y: &mut ViewMut<'_>, mut indices: Indices<'_>, field: &Field, axes: &[Along]) {
    let (x, y, inner) = (x.as_slice::<T>(), y.as_mut_slice::<T>(), field.inner);
    let size: usize = axes.iter().map(|along| along.length).product();
    let out: usize = axes.iter().map(|along| along.outputs).product();
    y.fill(T::LEAST);
    if let Some((indices, _)) = &mut indices {
        indices.fill(-1);
    }
    for outer in 0..field.outer {
        each_position(
            |axis| axes[axis].outputs,
            axes.len(),
            |position, at| {
                let to = (outer * out + position) * inner;
                each_tap(axes, at, |tap| {
                    let from = &x[(outer * size + tap) * inner..][..inner];
                    match &mut indices {
                        None => {
                            for (y, &x) in y[to..to + inner].iter_mut().zip(from) {
                                *y = if x.wins(*y) { x } else { *y };
                            }
                        }
                        Some((indices, column_major)) => {
                            let spatial = if *column_major { column_major_index(tap, axes) } else { tap };
                            for (channel, &x) in from.iter().enumerate() {
                                if x.wins(y[to + channel]) || indices[to + channel] < 0 {
                                    y[to + channel] = x;
                                    indices[to + channel] = ((outer * inner + channel) * size + spatial) as i64;
                                }
                            }
                        }
                    }
                });
            },
        );
    }
}

/// The place of a row-major index where the first axis is the fastest.
fn column_major_index(mut index: usize, axes: &[Along]) -> usize {
    let mut at = [0; AXES];
    for (at, along) in at[..axes.len()].iter_mut().zip(axes).rev() {
        (*at, index) = (index % along.length, index / along.length);
    }
    (0..axes.len()).rev().fold(0, |sum, axis| sum * axes[axis].length + at[axis])
}

/// `finish(Σ term(x))` over each window.
fn sums(
    x: &View<'_>,
    y: &mut ViewMut<'_>,
    field: &Field,
    axes: &[Along],
    term: impl Fn(f64) -> f64,
    finish: impl Fn(f64, &[Along], &[usize]) -> f64,
) {
    let size: usize = axes.iter().map(|along| along.length).product();
    let out: usize = axes.iter().map(|along| along.outputs).product();
    with_float!(x.dtype, T => {
        let (x, y) = (x.as_slice::<T>(), y.as_mut_slice::<T>());
        for (outer, channel) in (0..field.outer).flat_map(|outer| (0..field.inner).map(move |channel| (outer, channel))) {
            each_position(|axis| axes[axis].outputs, axes.len(), |position, at| {
                let mut sum = 0.0;
                each_tap(axes, at, |tap| sum += term(x[(outer * size + tap) * field.inner + channel].wide()));
                y[(outer * out + position) * field.inner + channel] = T::narrow(finish(sum, axes, at));
            });
        }
    });
}
