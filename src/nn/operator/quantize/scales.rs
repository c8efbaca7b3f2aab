//! Which scale belongs to which element, and codes of 8 bits where scales come in runs or rows.

use crate::error::{Error, Result};
use crate::kernels::math::{GRAIN, parts, split_rows, vectorized};
use crate::kernels::{dequantize_i8, dequantize_u8, quantize_i8, quantize_u8};
use crate::nn::operator::Attributes;
use crate::nn::operator::resolve_axis;
use crate::nn::view::{Inputs, View};

/// What a scale belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grain {
    pub axis: i64,
    pub block: usize,
}

impl Grain {
    /// As the standard spells it.
    pub fn attributes(self) -> Attributes {
        Attributes::new().with_other("axis", self.axis, 1).with_other("block_size", self.block as i64, 0)
    }
}

/// Where each element's scale stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    /// Elements of one entry of the axis, length of the axis, entries of a block.
    inner: usize,
    length: usize,
    block: usize,
    /// Scales along the axis, for each position after it where there are blocks.
    per_axis: usize,
    blocked: bool,
    single: bool,
}

impl Grain {
    /// The scales, checked before, of values as they lie in memory. A list of scales may come as an image there.
    pub fn placed(self, inputs: &Inputs<'_>, x: &View<'_>, scale: &View<'_>) -> Result<Scales> {
        if self.block == 0 && scale.len() == 1 {
            return self.scales(x.dims, &[]);
        }
        let axis = inputs.axis(resolve_axis(self.axis, x.dims.len())?, x.dims.len());
        let grain = Grain { axis: axis as i64, ..self };
        if self.block == 0 { grain.scales(x.dims, &[scale.len()]) } else { grain.scales(x.dims, scale.dims) }
    }

    /// The scales of shape `scale` for values of shape `x`.
    pub fn scales(self, x: &[usize], scale: &[usize]) -> Result<Scales> {
        let single = scale.iter().product::<usize>() == 1 && scale.len() <= 1;
        if single && self.block == 0 {
            return Ok(Scales { inner: 1, length: 1, block: 1, per_axis: 1, blocked: false, single });
        }
        let axis = resolve_axis(self.axis, x.len())?;
        let (length, inner) = (x[axis], x[axis + 1..].iter().product());
        if self.block == 0 {
            return match *scale {
                [count] if count == length => Ok(Scales { inner, length, block: 1, per_axis: count, blocked: false, single: false }),
                _ => Err(Error::shape("scale", format!("[{length}], an entry for each of axis {axis}, or a single one"), scale)),
            };
        }
        let per_axis = length.div_ceil(self.block);
        let mut expected = x.to_vec();
        expected[axis] = per_axis;
        match scale == expected {
            true => Ok(Scales { inner, length, block: self.block, per_axis, blocked: true, single: false }),
            false => Err(Error::shape("scale", format!("{expected:?}, an entry for each block of {}", self.block), scale)),
        }
    }
}

impl Scales {
    /// The position of element `i`'s scale.
    pub fn index(&self, i: usize) -> usize {
        if self.single {
            return 0;
        }
        let (after, at) = (i % self.inner, i / self.inner % self.length);
        match self.blocked {
            true => (i / self.inner / self.length * self.per_axis + at / self.block) * self.inner + after,
            false => at,
        }
    }
}

/// Shortest run of elements of one scale that is worth a call.
const RUN: usize = 16;

/// How elements of 8 bits meet their scales.
#[derive(Debug, Clone, Copy)]
pub(super) enum Along {
    /// Runs of one scale.
    Runs,
    /// Rows with a scale for each of their elements.
    Rows,
}

impl Scales {
    /// `None` where neither would be quick.
    pub fn along(&self) -> Option<Along> {
        match (self.blocked, self.inner) {
            (true, _) => None,
            _ if self.single => Some(Along::Runs),
            (false, RUN..) => Some(Along::Runs),
            (false, inner) => (inner == 1).then_some(Along::Rows),
        }
    }

    /// Calls `f` with pieces of `y`, on threads where it is large: runs of one scale, or rows of all scales; with the position of
    /// the first element and of its scale.
    fn split<Y: Send>(&self, along: Along, y: &mut [Y], threads: usize, f: &(dyn Fn(usize, usize, &mut [Y]) + Sync)) {
        let row = match along {
            Along::Runs if self.single => 1,
            Along::Runs => self.inner,
            Along::Rows => self.length.max(1),
        };
        split_rows(y, row, parts(threads, y.len(), GRAIN), &|start, y: &mut [Y]| {
            if self.single {
                return f(start, 0, y);
            }
            for (i, y) in y.chunks_mut(row).enumerate() {
                let start = start + i * row;
                f(start, self.index(start), y);
            }
        });
    }
}

/// A code of 8 bits that is computed with in vectors.
pub(super) trait Code: bytemuck::Pod + Into<i32> + Send + Sync {
    fn quantize(x: &[f32], scale: f32, zero_point: i32, y: &mut [Self]) -> Result<()>;
    fn dequantize(x: &[Self], scale: f32, zero_point: i32, y: &mut [f32]) -> Result<()>;
    const LEAST: i32;
    const MOST: i32;
    /// A code within the range.
    fn of(code: i32) -> Self;
}

macro_rules! codes {
    ($($code:ty: $quantize:ident $dequantize:ident;)*) => {$(
        impl Code for $code {
            const LEAST: i32 = <$code>::MIN as i32;
            const MOST: i32 = <$code>::MAX as i32;

            fn quantize(x: &[f32], scale: f32, zero_point: i32, y: &mut [$code]) -> Result<()> {
                $quantize(x, scale, zero_point, Self::LEAST, Self::MOST, y)
            }

            fn dequantize(x: &[$code], scale: f32, zero_point: i32, y: &mut [f32]) -> Result<()> {
                $dequantize(x, scale, zero_point, y)
            }

            #[inline(always)]
            fn of(code: i32) -> $code {
                code as $code
            }
        }
    )*};
}
codes! {
    u8: quantize_u8 dequantize_u8;
    i8: quantize_i8 dequantize_i8;
}

/// `y = quantize(x)` with scales that are finite and above zero, and as many zero points, or none.
pub(super) fn quantize_codes<T: Code>(
    x: &[f32],
    y: &mut [T],
    (scales, along): (&Scales, Along),
    (scale, zero): (&[f32], &[T]),
    threads: usize,
) {
    scales.split(along, y, threads, &|start, at, y: &mut [T]| {
        let x = &x[start..start + y.len()];
        match along {
            Along::Runs => {
                let zero = zero.get(at).map_or(0, |&zero| zero.into());
                T::quantize(x, scale[at], zero, y).expect("the scale was checked, and the zero point is a code");
            }
            Along::Rows => vectorized(
                #[inline(always)]
                || {
                    let each = y.iter_mut().zip(x.iter().zip(scale));
                    if zero.is_empty() {
                        each.for_each(|(y, (&x, &scale))| *y = code(x, scale, 0));
                    } else {
                        each.zip(zero).for_each(|((y, (&x, &scale)), &zero)| *y = code(x, scale, zero.into()));
                    }
                },
            ),
        }
    });
}

/// [`num::quantize`](crate::num::quantize()) to a type of 8 bits, in a form that becomes vectors.
#[inline(always)]
fn code<T: Code>(x: f32, scale: f32, zero_point: i32) -> T {
    let (x, lo, hi) = (x / scale, (T::LEAST - zero_point) as f32, (T::MOST - zero_point) as f32);
    let x = if x < lo { lo } else { x };
    let x = if x > hi { hi } else { x };
    // NaN converts to 0.
    T::of(x.round_ties_even() as i32 + zero_point)
}

/// `y = dequantize(x)`, with as many zero points as scales, or none.
pub(super) fn dequantize_codes<T: Code>(
    x: &[T],
    y: &mut [f32],
    (scales, along): (&Scales, Along),
    (scale, zero): (&[f32], &[T]),
    threads: usize,
) {
    scales.split(along, y, threads, &|start, at, y: &mut [f32]| {
        let x = &x[start..start + y.len()];
        match along {
            Along::Runs => {
                let zero = zero.get(at).map_or(0, |&zero| zero.into());
                T::dequantize(x, scale[at], zero, y).expect("the zero point is a code");
            }
            Along::Rows => vectorized(
                #[inline(always)]
                || {
                    let each = y.iter_mut().zip(x.iter().zip(scale));
                    if zero.is_empty() {
                        each.for_each(|(y, (&x, &scale))| *y = scale * x.into() as f32);
                    } else {
                        each.zip(zero).for_each(|((y, (&x, &scale)), &zero)| *y = scale * (x.into() - zero.into()) as f32);
                    }
                },
            ),
        }
    });
}
