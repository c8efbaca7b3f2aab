//! Elements around a tensor, or fewer of them.

use std::ops::Range;

use std::ops::RangeInclusive;

use super::walk::{AXES, check_rank, strides};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::operator::arguments::{check_ints, distinct_axes, ints};
use crate::nn::operator::attributes::{Attributes, CURRENT};
use crate::nn::operator::generate::repeat;
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape, Value};

/// What padding is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PadMode {
    /// One value.
    #[default]
    Constant,
    /// The input mirrored at its first and last element, which stay single.
    Reflect,
    /// The first or the last element.
    Edge,
    /// The input from its other end on.
    Wrap,
}

/// ONNX Pad: elements before and after each axis; negative pads take elements away.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pad {
    mode: PadMode,
    pads: Option<Vec<i64>>,
    value: Option<Value>,
}

impl Pad {
    /// By inputs 1 to 3: pads (all befores, then all afters), the constant (0 when left out), and the axes that the pads
    /// belong to (all when left out).
    pub fn new(mode: PadMode) -> Self {
        Pad { mode, pads: None, value: None }
    }

    /// With these pads of all axes: all befores, then all afters.
    #[must_use]
    pub fn with_pads(self, pads: impl Into<Vec<i64>>) -> Self {
        Pad { pads: Some(pads.into()), ..self }
    }

    /// With this constant, one element of the input's type.
    #[must_use]
    pub fn with_value(self, value: impl Into<Value>) -> Self {
        Pad { value: Some(value.into()), ..self }
    }

    /// With zeros, of whatever type the input has.
    pub(crate) fn without_value(&self) -> Self {
        Pad { value: None, ..self.clone() }
    }
}

/// Padding along one axis: which element of the input stands at each place of the output.
#[derive(Debug, Clone, Copy, Default)]
struct Padded {
    before: usize,
    /// The part of the input's axis that is left.
    start: usize,
    length: usize,
    total: usize,
}

impl Padded {
    /// # Errors
    /// [`Error::Parameter`] when more is taken away than is there, or there is nothing to repeat; [`Error::ShapeOverflow`].
    fn new(length: usize, before: i64, after: i64, mode: PadMode) -> Result<Padded> {
        let magnitude = |pad: i64| usize::try_from(pad.unsigned_abs()).unwrap_or(usize::MAX);
        let (crop, pad) = (|p: i64| if p < 0 { magnitude(p) } else { 0 }, |p: i64| if p > 0 { magnitude(p) } else { 0 });
        let Some(left) = crop(before).checked_add(crop(after)).and_then(|cut| length.checked_sub(cut)) else {
            return Err(Error::parameter("pads", (before, after), format!("take away more than the {length} that are there")));
        };
        let total = left.checked_add(pad(before)).and_then(|sum| sum.checked_add(pad(after)));
        let total = total.ok_or_else(|| Error::ShapeOverflow { shape: vec![usize::MAX] })?;
        if mode != PadMode::Constant && left == 0 && total > 0 {
            return Err(Error::parameter("pads", (before, after), format!("have nothing to repeat along an axis of length {length}")));
        }
        Ok(Padded { before: pad(before), start: crop(before), length: left, total })
    }

    /// Places that hold the input as it is.
    fn inside(&self) -> Range<usize> {
        self.before..self.before + self.length
    }

    /// Index along the input's axis; `None` for the constant.
    fn source(&self, at: usize, mode: PadMode) -> Option<usize> {
        if self.inside().contains(&at) {
            return Some(self.start + at - self.before);
        }
        let (at, length) = (at as isize - self.before as isize, self.length as isize);
        let inside = match mode {
            PadMode::Constant => return None,
            PadMode::Edge => at.clamp(0, length - 1),
            PadMode::Wrap => at.rem_euclid(length),
            PadMode::Reflect if length == 1 => 0,
            PadMode::Reflect => {
                let period = 2 * (length - 1);
                let at = at.rem_euclid(period);
                at.min(period - at)
            }
        };
        Some(self.start + inside as usize)
    }
}

impl Operation for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn attributes(&self) -> Attributes {
        let mode = match self.mode {
            PadMode::Constant => "constant",
            PadMode::Reflect => "reflect",
            PadMode::Edge => "edge",
            PadMode::Wrap => "wrap",
        };
        let attributes = Attributes::new().with_other("mode", mode, "constant").with_some("pads", self.pads.clone());
        attributes.with_some("value", self.value.clone())
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        if self.mode == PadMode::Wrap { 19..=28 } else { CURRENT }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.pads.is_some() { 1 } else { 2 }, 4)?;
        check_ints("pads", inputs, 1)?;
        check_ints("axes", inputs, 3)?;
        let value = inputs.get(2).copied().flatten().or(self.value.as_ref().map(Value::dtype));
        match (inputs[0], value) {
            (Some(data), Some(value)) if data != value => {
                Err(Error::Type { what: "constant_value".into(), expected: data.name(), got: value.name() })
            }
            (data, _) => Ok(data.into_iter().collect()),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let pads = ints(self.pads.as_ref(), facts, 1)?.unwrap_or_default();
        let axes = facts.ints(3)?;
        let dims = facts.shape(0)?.dims();
        check_rank(dims.len())?;
        let axes = match axes {
            Some(axes) => distinct_axes(&axes, dims.len())?,
            None => (0..dims.len()).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(Error::length("list of pads", 2 * axes.len(), pads.len()));
        }
        if facts.has(2) && facts.shape(2)?.elements() > 1 {
            return Err(Error::length("constant_value", 1, facts.shape(2)?.elements()));
        }
        let mut padded = facts.shape(0)?.dims().to_vec();
        for (i, &axis) in axes.iter().enumerate() {
            padded[axis] = Padded::new(padded[axis], pads[i], pads[axes.len() + i], self.mode)?.total;
        }
        Ok(vec![Shape::new(padded)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let (rank, size) = (x.dims.len(), x.dtype.bytes());
        let mut padded = [Padded::default(); AXES];
        for (padded, &length) in padded.iter_mut().zip(x.dims) {
            *padded = Padded { before: 0, start: 0, length, total: length };
        }
        let (list, axes) = (inputs.get(1), inputs.get(3));
        let count = axes.map_or(rank, |axes| axes.len());
        let pad = |i: usize| match (list, &self.pads) {
            (Some(list), _) => Ok(list.ints()?.nth(i).unwrap_or(0)),
            (None, Some(list)) => Ok(list.get(i).copied().unwrap_or(0)),
            _ => Ok(0),
        };
        for i in 0..count {
            let axis = match axes {
                Some(axes) => resolve_axis(axes.ints()?.nth(i).unwrap_or(0), rank)?,
                None => i,
            };
            let axis = inputs.axis(axis, rank);
            padded[axis] = Padded::new(x.dims[axis], pad(i)?, pad(count + i)?, self.mode)?;
        }
        let mut constant = [0u8; 8];
        let given = inputs.get(2).filter(|value| value.len() == 1).map(|value| value.bytes);
        if let Some(value) = given.or(self.value.as_ref().map(Value::bytes)).and_then(|bytes| bytes.get(..size)) {
            constant[..size].copy_from_slice(value);
        }
        let axes = &padded[..rank];
        // The last axis of all that is padded is walked with what lies behind it in one run.
        let last = axes.iter().rposition(|axis| axis.total != axis.length || axis.start > 0);
        let Some(last) = last else {
            y.bytes.copy_from_slice(x.bytes);
            return Ok(());
        };
        if y.bytes.is_empty() {
            return Ok(());
        }
        let (steps, inner) = (strides(x.dims)?, axes[last]);
        let run = x.dims[last + 1..].iter().product::<usize>() * size;
        let mut at = [0usize; AXES];
        for row in y.bytes.chunks_exact_mut(inner.total * run) {
            let outer = (0..last).try_fold(0, |start, axis| Some(start + axes[axis].source(at[axis], self.mode)? * steps[axis] * size));
            match outer {
                None => repeat(&constant[..size], row),
                Some(start) => fill_row(&x.bytes[start..], row, &inner, run, self.mode, &constant[..size]),
            }
            for axis in (0..last).rev() {
                at[axis] += 1;
                if at[axis] < axes[axis].total {
                    break;
                }
                at[axis] = 0;
            }
        }
        Ok(())
    }
}

fn fill_row(x: &[u8], row: &mut [u8], axis: &Padded, run: usize, mode: PadMode, constant: &[u8]) {
    let inside = axis.inside();
    row[inside.start * run..inside.end * run].copy_from_slice(&x[axis.start * run..][..axis.length * run]);
    if mode == PadMode::Constant {
        repeat(constant, &mut row[..inside.start * run]);
        repeat(constant, &mut row[inside.end * run..]);
        return;
    }
    for at in (0..inside.start).chain(inside.end..axis.total) {
        if let Some(source) = axis.source(at, mode) {
            row[at * run..][..run].copy_from_slice(&x[source * run..][..run]);
        }
    }
}
