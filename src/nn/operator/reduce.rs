//! Reductions over axes.

use super::attributes::Attributes;
use super::broadcast::{Spread, fold};
use super::fold::{Folded, channels_first};
use super::numbers::{Number, check_type, from_reals, in_f32, is_float, is_number, unexpected};
use super::{Facts, Operation, check_arity, resolve_axis};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::kernels::rows::Real;
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// What elements are reduced to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduction {
    /// `Σ x`; 0 of nothing.
    Sum,
    /// `Σ x` divided by their number; NaN of nothing, and of no integers an error.
    Mean,
    /// The largest; `-∞` or the least integer of nothing, NaN when one is.
    Max,
    /// The least; `+∞` or the largest integer of nothing, NaN when one is.
    Min,
    /// The product; 1 of nothing.
    Prod,
    /// `Σ |x|`.
    L1,
    /// `√Σ x²`.
    L2,
    /// `ln Σ x`.
    LogSum,
    /// `ln Σ e^x`, of floats.
    LogSumExp,
    /// `Σ x²`.
    SumSquare,
}

/// ONNX's reductions over axes that a parameter or the second input lists (i64, counted from the end when negative); over all if
/// neither lists one. Of f32, f64, f16, bf16 and integers of 32 and 64 bits, which wrap; the largest and the least also of those of 8
/// bits and of truth values. 16-bit floats are computed in f32 and rounded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduce {
    reduction: Reduction,
    axes: Option<Vec<i64>>,
    keeps: bool,
    empty_is_none: bool,
}

impl Reduce {
    /// Over all axes, or those of the second input, which stay as axes of length 1.
    pub fn new(reduction: Reduction) -> Self {
        Reduce { reduction, axes: None, keeps: true, empty_is_none: false }
    }

    /// Over these axes.
    #[must_use]
    pub fn with_axes(self, axes: impl Into<Vec<i64>>) -> Self {
        Reduce { axes: Some(axes.into()), ..self }
    }

    /// Whether reduced axes stay, with length 1 (`keepdims`).
    #[must_use]
    pub fn with_kept_axes(self, keeps: bool) -> Self {
        Reduce { keeps, ..self }
    }

    /// Whether no axes means none, so that each element is reduced for itself, and not all (`noop_with_empty_axes`).
    #[must_use]
    pub fn with_empty_as_none(self, empty_is_none: bool) -> Self {
        Reduce { empty_is_none, ..self }
    }

    /// Whether this is the mean over the last axis, which stays, for these axes of the second input, if it is there.
    pub(crate) fn is_mean_over_last(&self, given: Option<&[i64]>) -> bool {
        self.reduction == Reduction::Mean && self.keeps && given.or(self.axes.as_deref()) == Some(&[-1])
    }

    /// What elements are reduced to.
    pub(crate) fn reduction(&self) -> Reduction {
        self.reduction
    }

    /// For each axis of the shape, whether it is reduced.
    pub(crate) fn folds(&self, given: Option<Vec<i64>>, rank: usize) -> Result<Vec<bool>> {
        let axes = given.as_deref().or(self.axes.as_deref()).unwrap_or_default();
        let mut folds = vec![axes.is_empty() && !self.empty_is_none; rank];
        for &axis in axes {
            folds[resolve_axis(axis, rank)?] = true;
        }
        Ok(folds)
    }

    fn numbers<T: Number + Bounds>(&self, folded: &Folded, x: &[T], y: &mut [T], threads: usize) -> Result<()> {
        let (zero, one) = (T::default(), T::from_f64(1.0));
        let plus = T::plus;
        macro_rules! by {
            ($start:expr, |$a:ident, $x:ident| $body:expr, $join:expr) => {
                folded.run(
                    x,
                    y,
                    $start,
                    #[inline(always)]
                    |$a: T, $x: T| $body,
                    $join,
                    threads,
                )
            };
        }
        match self.reduction {
            Reduction::Max => by!(T::LEAST, |a, x| a.greatest(x), T::greatest),
            Reduction::Min => by!(T::MOST, |a, x| a.least(x), T::least),
            Reduction::Prod => by!(one, |a, x| a.times(x), T::times),
            Reduction::L1 => by!(zero, |a, x| a.plus(if x < zero { zero.minus(x) } else { x }), plus),
            Reduction::L2 | Reduction::SumSquare => by!(zero, |a, x| a.plus(x.times(x)), plus),
            Reduction::Sum | Reduction::Mean | Reduction::LogSum | Reduction::LogSumExp => by!(zero, |a, x| a.plus(x), plus),
        }
        match self.reduction {
            Reduction::Mean if T::IS_INTEGER && x.is_empty() && !y.is_empty() => {
                return Err(Error::Empty { what: "list of integers under a mean".into(), way_out: "cast them to floats for NaN" });
            }
            Reduction::Mean if !y.is_empty() => {
                let count = T::from_f64((x.len() / y.len()) as f64);
                y.iter_mut().for_each(|y| *y = y.over(count));
            }
            Reduction::L2 => y.iter_mut().for_each(|y| *y = T::from_f64(y.to_f64().sqrt())),
            Reduction::LogSum => y.iter_mut().for_each(|y| *y = T::from_f64(y.to_f64().ln())),
            _ => {}
        }
        Ok(())
    }

    /// Floats. `kept` are the lengths of `dims` after the reduction, with axes of length 1.
    fn floats<R: Real + Number + Bounds>(
        &self,
        folded: &Folded,
        x: &[R],
        (dims, kept): (&[usize], &[usize]),
        y: &mut [R],
        threads: usize,
    ) -> Result<()> {
        if self.reduction != Reduction::LogSumExp {
            return self.numbers(folded, x, y, threads);
        }
        Reduce { reduction: Reduction::Max, ..self.clone() }.numbers(folded, x, y, threads)?;
        // An infinity is not taken away: infinite it stays, as ln 0 and as ln ∞.
        let most: Vec<R> = y.iter().map(|&most| if most.is_finite() { most } else { R::zero() }).collect();
        let mut powers = x.to_vec();
        fold(&Spread::new(dims, [kept])?, &mut powers, &most, &|x, most| (x - most).power());
        folded.run(&powers, y, R::zero(), |a, x| a + x, |a, b| a + b, threads);
        y.iter_mut().zip(&most).for_each(|(y, &most)| *y = y.natural_log() + most);
        Ok(())
    }
}

/// What a maximum and a minimum start from.
pub(super) trait Bounds {
    const LEAST: Self;
    const MOST: Self;
}

macro_rules! bounds {
    ($($type:ty: $least:expr, $most:expr;)*) => {
        $(impl Bounds for $type {
            const LEAST: $type = $least;
            const MOST: $type = $most;
        })*
    };
}
bounds! {
    f32: f32::NEG_INFINITY, f32::INFINITY;
    f64: f64::NEG_INFINITY, f64::INFINITY;
    i64: i64::MIN, i64::MAX;
    i32: i32::MIN, i32::MAX;
    i8: i8::MIN, i8::MAX;
    u64: 0, u64::MAX;
    u32: 0, u32::MAX;
    u8: 0, u8::MAX;
}

impl Operation for Reduce {
    fn name(&self) -> &'static str {
        match self.reduction {
            Reduction::Sum => "ReduceSum",
            Reduction::Mean => "ReduceMean",
            Reduction::Max => "ReduceMax",
            Reduction::Min => "ReduceMin",
            Reduction::Prod => "ReduceProd",
            Reduction::L1 => "ReduceL1",
            Reduction::L2 => "ReduceL2",
            Reduction::LogSum => "ReduceLogSum",
            Reduction::LogSumExp => "ReduceLogSumExp",
            Reduction::SumSquare => "ReduceSumSquare",
        }
    }

    fn attributes(&self) -> Attributes {
        let attributes =
            Attributes::new().with_other("keepdims", self.keeps, true).with_other("noop_with_empty_axes", self.empty_is_none, false);
        attributes.with_some("axes", self.axes.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 2)?;
        if inputs.get(1).is_some_and(Option::is_some) {
            check_type(self.name(), inputs, 1, "i64 or i32", |dtype| matches!(dtype, DType::I64 | DType::I32))?;
        }
        let dtype = match self.reduction {
            Reduction::Max | Reduction::Min => {
                check_type(self.name(), inputs, 0, "a float, an integer of 8, 32 or 64 bits, or bool", |dtype| {
                    is_number(dtype) && !matches!(dtype, DType::I16 | DType::U16) || dtype == DType::Bool
                })?
            }
            Reduction::LogSumExp => check_type(self.name(), inputs, 0, "f32, f64, f16 or bf16", is_float)?,
            _ => check_type(self.name(), inputs, 0, "a float or an integer of 32 or 64 bits", |dtype| {
                is_float(dtype) || is_number(dtype) && dtype.bits() >= 32
            })?,
        };
        Ok(vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let given = if facts.count() > 1 { facts.ints(1)? } else { None };
        let shape = facts.shape(0)?;
        let folds = self.folds(given, shape.rank())?;
        let lengths = shape.dims().iter().zip(&folds);
        let dims: Vec<usize> = match self.keeps {
            true => lengths.map(|(&length, &folds)| if folds { 1 } else { length }).collect(),
            false => lengths.filter(|&(_, &folds)| !folds).map(|(&length, _)| length).collect(),
        };
        Ok(vec![Shape::new(dims)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        let given = inputs.get(1).map(|axes| axes.ints().map(Iterator::collect)).transpose()?;
        let rank = x.dims.len();
        let logical = self.folds(given, rank)?;
        let mut folds = logical.clone();
        logical.iter().enumerate().for_each(|(axis, &axis_folds)| folds[inputs.axis(axis, rank)] = axis_folds);
        let folded = Folded::new(x.dims, &folds)?;
        let kept: Vec<usize> = x.dims.iter().zip(&folds).map(|(&length, &folds)| if folds { 1 } else { length }).collect();
        let shape = (x.dims, &kept[..]);
        macro_rules! integers {
            ($($variant:ident($type:ty))*) => {
                match x.dtype {
                    DType::F32 => self.floats::<f32>(&folded, x.f32(), shape, y.f32(), threads)?,
                    DType::F64 => self.floats::<f64>(&folded, x.as_slice(), shape, y.as_mut_slice(), threads)?,
                    DType::F16 | DType::Bf16 => {
                        let mut wide = vec![0f32; y.bytes.len() / y.dtype.bytes()];
                        self.floats::<f32>(&folded, &in_f32(&x), shape, &mut wide, threads)?;
                        from_reals(wide.iter().map(|&y| y.into()), &mut y);
                    }
                    // The codes of truth values are 0 and 1, and so the largest of none is.
                    DType::Bool => {
                        self.numbers::<u8>(&folded, x.bytes, y.bytes, threads)?;
                        y.bytes.iter_mut().for_each(|y| *y = (*y).min(1));
                    }
                    $(DType::$variant => self.numbers::<$type>(&folded, x.as_slice(), y.as_mut_slice(), threads)?,)*
                    other => return Err(unexpected(self.name(), other)),
                }
            };
        }
        integers!(I64(i64) I32(i32) I8(i8) U64(u64) U32(u32) U8(u8));
        // With an axis less, an image is none, and lies row-major.
        if inputs.channels_last()
            && !self.keeps
            && folds.contains(&true)
            && let [n, h, w, c] = folds[..]
        {
            let kept = [!n, !h, !w, !c];
            match y.dtype.bytes() {
                1 => channels_first::<u8>(y.as_mut_slice(), x.dims, kept),
                2 => channels_first::<u16>(y.as_mut_slice(), x.dims, kept),
                4 => channels_first::<u32>(y.as_mut_slice(), x.dims, kept),
                _ => channels_first::<u64>(y.as_mut_slice(), x.dims, kept),
            }
        }
        Ok(())
    }
}
