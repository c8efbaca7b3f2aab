//! Walking along one axis: where the largest stands, and running totals.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::fold::channels_first;
use super::numbers::{Number, check_type, is_float, is_number, unexpected, with_number};
use super::{Facts, Operation, check_arity, resolve_axis};
use crate::error::Result;
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// ONNX ArgMax and ArgMin: the index along an axis at which the largest or the least number stands, as i64; the first NaN, if there
/// is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    axis: i64,
    least: bool,
    keeps: bool,
    last: bool,
}

impl Arg {
    /// ArgMax along `axis`, counted from the end when negative, which stays with length 1. Of equals, the first.
    pub fn max(axis: i64) -> Self {
        Arg { axis, least: false, keeps: true, last: false }
    }

    /// ArgMin.
    pub fn min(axis: i64) -> Self {
        Arg { least: true, ..Arg::max(axis) }
    }

    /// Whether the axis stays (`keepdims`).
    #[must_use]
    pub fn with_kept_axis(self, keeps: bool) -> Self {
        Arg { keeps, ..self }
    }

    /// Whether of equals the last is meant (`select_last_index`).
    #[must_use]
    pub fn with_last_of_equals(self, last: bool) -> Self {
        Arg { last, ..self }
    }

    /// Whether `x` takes the place of `best`, which stands before it.
    #[inline(always)]
    #[allow(clippy::eq_op)]
    fn replaces<T: Number>(self, x: T, best: T) -> bool {
        // What is not itself is NaN.
        best == best && (x != x || (if self.least { x < best } else { x > best }) || self.last && x == best)
    }

    fn lines<T: Number>(self, x: &[T], (length, inner): (usize, usize), y: &mut [i64]) {
        for (x, y) in x.chunks_exact(length * inner).zip(y.chunks_exact_mut(inner)) {
            for (i, y) in y.iter_mut().enumerate() {
                let (mut best, mut at) = (x[i], 0);
                for k in 1..length {
                    let x = x[k * inner + i];
                    if self.replaces(x, best) {
                        (best, at) = (x, k);
                    }
                }
                *y = at as i64;
            }
        }
    }
}

impl Operation for Arg {
    fn name(&self) -> &'static str {
        if self.least { "ArgMin" } else { "ArgMax" }
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with("axis", self.axis).with_other("keepdims", self.keeps, true);
        attributes.with_other("select_last_index", self.last, false)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        check_type(self.name(), inputs, 0, "a number", is_number)?;
        Ok(vec![DType::I64])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shape = facts.shape(0)?;
        let axis = resolve_axis(self.axis, shape.rank())?;
        let mut dims = shape.dims().to_vec();
        if dims[axis] == 0 {
            return Err(crate::error::Error::shape("input", format!("one with elements along axis {axis}"), &dims));
        }
        if self.keeps {
            dims[axis] = 1;
        } else {
            dims.remove(axis);
        }
        Ok(vec![Shape::new(dims)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        if y.bytes.is_empty() {
            return Ok(());
        }
        let rank = x.dims.len();
        let axis = inputs.axis(resolve_axis(self.axis, rank)?, rank);
        let line = (x.dims[axis], x.dims[axis + 1..].iter().product());
        with_number!(x.dtype, T => self.lines::<T>(x.as_slice(), line, y.as_mut_slice()), _ => return Err(unexpected(self.name(), x.dtype)));
        if inputs.channels_last() && !self.keeps && rank == 4 {
            let mut kept = [true; 4];
            kept[axis] = false;
            channels_first::<i64>(y.as_mut_slice(), x.dims, kept);
        }
        Ok(())
    }
}

/// ONNX CumSum and CumProd of floats and integers of 32 and 64 bits: along the axis that the second input names, each element
/// becomes the sum or product of those up to it. Floats are computed in f64 and rounded once, integers wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cumulative {
    product: bool,
    exclusive: bool,
    reverse: bool,
}

impl Cumulative {
    /// CumSum: sums, each element's own included.
    pub fn sum() -> Self {
        Cumulative { product: false, exclusive: false, reverse: false }
    }

    /// CumProd: products.
    pub fn product() -> Self {
        Cumulative { product: true, ..Cumulative::sum() }
    }

    /// Whether an element's own value is left out, so that the first becomes 0 (of products, 1).
    #[must_use]
    pub fn with_exclusive(self, exclusive: bool) -> Self {
        Cumulative { exclusive, ..self }
    }

    /// Whether the walk goes from the last to the first.
    #[must_use]
    pub fn with_reverse(self, reverse: bool) -> Self {
        Cumulative { reverse, ..self }
    }

    fn walk<T: Number, A: Number>(self, x: &[T], (length, inner): (usize, usize), y: &mut [T], to: impl Fn(T) -> A, from: impl Fn(A) -> T) {
        for line in 0..x.len() / length.max(1) {
            let mut total = A::from_f64(if self.product { 1.0 } else { 0.0 });
            for k in 0..length {
                let k = if self.reverse { length - 1 - k } else { k };
                let i = (line / inner * length + k) * inner + line % inner;
                let before = total;
                total = if self.product { total.times(to(x[i])) } else { total.plus(to(x[i])) };
                y[i] = from(if self.exclusive { before } else { total });
            }
        }
    }
}

impl Operation for Cumulative {
    fn name(&self) -> &'static str {
        if self.product { "CumProd" } else { "CumSum" }
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_other("exclusive", self.exclusive, false).with_other("reverse", self.reverse, false)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if self.product { 26..=28 } else { CURRENT }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 2)?;
        check_type(self.name(), inputs, 1, "i64 or i32", |dtype| matches!(dtype, DType::I64 | DType::I32))?;
        Ok(vec![check_type(self.name(), inputs, 0, "a float or an integer of 32 or 64 bits", |dtype| {
            is_float(dtype) || is_number(dtype) && dtype.bits() >= 32
        })?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        if facts.shape(1)?.elements() != 1 {
            return Err(crate::error::Error::shape("axis", "[], a scalar", facts.shape(1)?.dims()));
        }
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        let axis = resolve_axis(inputs.need(1)?.ints()?.next().unwrap_or_default(), x.dims.len())?;
        let line = (x.dims[axis], x.dims[axis + 1..].iter().product());
        with_number!(x.dtype, T => {
            let (x, y) = (x.as_slice::<T>(), y.as_mut_slice::<T>());
            match T::IS_INTEGER {
                true => self.walk(x, line, y, |x| x, |x| x),
                false => self.walk(x, line, y, T::to_f64, T::from_f64),
            }
        }, _ => return Err(unexpected(self.name(), x.dtype)));
        Ok(())
    }
}
