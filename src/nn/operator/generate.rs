//! Values made of a rule: ranges, constants, identity matrices, triangles.

use std::ops::RangeInclusive;

use super::arguments::{check_ints, length, one_int};
use super::attributes::Attributes;
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs};
use crate::num::{bf16, f16};
use crate::tensor::{DType, Shape, Tensor, Value};

/// ONNX Range: `start + i * delta` for every `i` from 0 with which it does not reach `limit`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range;

impl Range {
    /// Of the inputs start, limit and delta.
    pub fn new() -> Self {
        Range
    }
}

/// How many numbers from `start` do not reach `limit`.
fn count(start: &Value, limit: &Value, delta: &Value) -> Result<usize> {
    for (what, value) in [("start", start), ("limit", limit), ("delta", delta)] {
        if value.shape().elements() != 1 {
            return Err(Error::length(what, 1, value.shape().elements()));
        }
    }
    let none = || Error::parameter("delta", delta, "must be a number other than 0");
    if start.dtype().is_integer() {
        let [start, limit, delta] = [one_int("start", start)?, one_int("limit", limit)?, one_int("delta", delta)?].map(i128::from);
        if delta == 0 {
            return Err(none());
        }
        let steps = (limit - start) / delta + i128::from((limit - start) % delta != 0 && ((limit - start) < 0) == (delta < 0));
        return usize::try_from(steps.max(0)).map_err(|_| Error::ShapeOverflow { shape: vec![usize::MAX] });
    }
    let number = |value: &Value| match value {
        Value::F32(x) => f64::from(x.as_slice()[0]),
        Value::F64(x) => x.as_slice()[0],
        Value::F16(x) => x.as_slice()[0].to_f64(),
        Value::Bf16(x) => x.as_slice()[0].to_f64(),
        _ => f64::NAN,
    };
    let steps = ((number(limit) - number(start)) / number(delta)).ceil();
    match steps.is_nan() || number(delta) == 0.0 {
        true => Err(none()),
        // Saturates, and is then more than a shape can have.
        false => Ok(steps.max(0.0) as usize),
    }
}

impl Operation for Range {
    fn name(&self) -> &'static str {
        "Range"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 3, 3)?;
        let first = inputs[0].unwrap_or(DType::F32);
        let expected = "f32, f64, f16, bf16, i16, i32 or i64, all three alike";
        let takes = |dtype| matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16 | DType::I16 | DType::I32 | DType::I64);
        match inputs.iter().flatten().find(|&&dtype| dtype != first || !takes(dtype)) {
            Some(other) => Err(Error::Type { what: "start, limit or delta".into(), expected, got: other.name() }),
            None => Ok(vec![first]),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![Shape::new([count(&facts.value(0)?, &facts.value(1)?, &facts.value(2)?)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (start, delta, mut y) = (inputs.need(0)?, inputs.need(2)?, outputs.get(0));
        macro_rules! fill {
            ($type:ty, $at:expr) => {{
                let (start, delta): ($type, $type) = (start.as_slice()[0], delta.as_slice()[0]);
                y.as_mut_slice::<$type>().iter_mut().enumerate().for_each(|(i, y)| *y = $at(start, delta, i));
            }};
        }
        match y.dtype {
            DType::F32 => fill!(f32, |start, delta, i| start + i as f32 * delta),
            DType::F64 => fill!(f64, |start, delta, i| start + i as f64 * delta),
            DType::F16 => fill!(f16, |start: f16, delta: f16, i| f16::from_f32(start.to_f32() + i as f32 * delta.to_f32())),
            DType::Bf16 => fill!(bf16, |start: bf16, delta: bf16, i| bf16::from_f32(start.to_f32() + i as f32 * delta.to_f32())),
            DType::I16 => fill!(i16, |start: i16, delta: i16, i| start.wrapping_add(delta.wrapping_mul(i as i16))),
            DType::I32 => fill!(i32, |start: i32, delta: i32, i| start.wrapping_add(delta.wrapping_mul(i as i32))),
            _ => fill!(i64, |start: i64, delta: i64, i| start.wrapping_add(delta.wrapping_mul(i as i64))),
        }
        Ok(())
    }
}

/// ONNX ConstantOfShape: one value over and over, in the shape that the input names.
#[derive(Debug, Clone, PartialEq)]
pub struct ConstantOfShape {
    value: Value,
}

impl ConstantOfShape {
    /// Of this value, which has one element.
    ///
    /// # Errors
    /// [`Error::Length`] when it has another number.
    pub fn new(value: impl Into<Value>) -> Result<Self> {
        let value = value.into();
        match value.shape().elements() {
            1 => Ok(ConstantOfShape { value }),
            got => Err(Error::length("value", 1, got)),
        }
    }

    /// Of the f32 0.
    ///
    /// # Errors
    /// None that one element can meet.
    pub fn zero() -> Result<Self> {
        ConstantOfShape::new(Tensor::full([1], 0f32)?)
    }
}

impl Operation for ConstantOfShape {
    fn name(&self) -> &'static str {
        "ConstantOfShape"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("value", self.value.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        check_ints("shape", inputs, 0)?;
        Ok(vec![self.value.dtype()])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let lengths = facts.ints(0)?.unwrap_or_default();
        let dims: Vec<usize> = lengths.into_iter().map(|d| length("length of an axis", d)).collect::<Result<_>>()?;
        Ok(vec![Shape::new(dims)?])
    }

    fn run(&self, _: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        repeat(self.value.bytes(), outputs.get(0).bytes);
        Ok(())
    }
}

/// Fills `bytes` with one element.
pub(super) fn repeat(element: &[u8], bytes: &mut [u8]) {
    if element.iter().all(|&byte| byte == element[0]) {
        bytes.fill(element[0]);
    } else {
        bytes.chunks_exact_mut(element.len()).for_each(|to| to.copy_from_slice(element));
    }
}

/// ONNX EyeLike: a matrix of the input's shape, ones on one diagonal and zeros elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EyeLike {
    dtype: Option<DType>,
    diagonal: i64,
}

impl EyeLike {
    /// Of the input's type, with ones on the main diagonal.
    pub fn new() -> Self {
        EyeLike::default()
    }

    /// Of this type.
    #[must_use]
    pub fn with_dtype(self, dtype: DType) -> Self {
        EyeLike { dtype: Some(dtype), ..self }
    }

    /// With ones on this diagonal: above the main one when positive, below it when negative.
    #[must_use]
    pub fn with_diagonal(self, diagonal: i64) -> Self {
        EyeLike { diagonal, ..self }
    }
}

/// The number 1 in this type, lowest byte first.
fn one(dtype: DType) -> Option<[u8; 8]> {
    let bits: u64 = match dtype {
        DType::F32 => 1f32.to_bits().into(),
        DType::F64 => 1f64.to_bits(),
        DType::F16 => f16::ONE.to_bits().into(),
        DType::Bf16 => bf16::ONE.to_bits().into(),
        dtype if dtype.is_float() => return None,
        _ => 1,
    };
    Some(bits.to_le_bytes())
}

impl Operation for EyeLike {
    fn name(&self) -> &'static str {
        "EyeLike"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("dtype", self.dtype).with_other("k", self.diagonal, 0)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        let dtype = self.dtype.or(inputs[0]).unwrap_or(DType::F32);
        match one(dtype) {
            Some(_) => Ok(vec![dtype]),
            None => Err(Error::Type { what: "output of EyeLike".into(), expected: "f32, f64, f16, bf16 or no float", got: dtype.name() }),
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        match facts.shape(0)? {
            shape if shape.rank() == 2 => Ok(vec![shape.clone()]),
            shape => Err(Error::shape("input", "[rows, columns]", shape.dims())),
        }
    }

    fn run(&self, _: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let y = outputs.get(0);
        let (size, columns) = (y.dtype.bytes(), y.dims[1]);
        let mut one = one(y.dtype).unwrap_or_default();
        if cfg!(target_endian = "big") {
            one[..size].reverse();
        }
        y.bytes.fill(0);
        for (row, bytes) in y.bytes.chunks_exact_mut((columns * size).max(1)).enumerate() {
            if let Some(column) = self.diagonal.checked_add(row as i64).and_then(|c| usize::try_from(c).ok()).filter(|&c| c < columns) {
                bytes[column * size..][..size].copy_from_slice(&one[..size]);
            }
        }
        Ok(())
    }
}

/// ONNX Trilu: the triangle of each matrix above or below a diagonal, which belongs to it; zeros elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trilu {
    upper: bool,
}

impl Trilu {
    /// The upper triangle, or the lower one. Input 1, if given, names the diagonal: 0 is the main one, above it is positive.
    pub fn new(upper: bool) -> Self {
        Trilu { upper }
    }
}

impl Operation for Trilu {
    fn name(&self) -> &'static str {
        "Trilu"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_other("upper", self.upper, true)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        14..=28
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 2)?;
        check_ints("k", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        if facts.has(1) && facts.shape(1)?.elements() != 1 {
            return Err(Error::length("k", 1, facts.shape(1)?.elements()));
        }
        match facts.shape(0)? {
            shape if shape.rank() >= 2 => Ok(vec![shape.clone()]),
            shape => Err(Error::shape("input", "[.., rows, columns]", shape.dims())),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let diagonal = inputs.get(1).map(|k| k.ints()).transpose()?.and_then(|mut k| k.next()).unwrap_or(0);
        let (rows, columns, size) = (x.dims[x.dims.len() - 2], x.dims[x.dims.len() - 1], x.dtype.bytes());
        let row_bytes = (columns * size).max(1);
        for (i, (x, y)) in x.bytes.chunks_exact(row_bytes).zip(y.bytes.chunks_exact_mut(row_bytes)).enumerate() {
            // The first column of the upper triangle, or the first beyond the lower one.
            let start = (i % rows) as i64;
            let at = start.saturating_add(diagonal).saturating_add(i64::from(!self.upper)).clamp(0, columns as i64) as usize * size;
            let (kept, zeros) = if self.upper { (at..row_bytes, 0..at) } else { (0..at, at..row_bytes) };
            y[kept.clone()].copy_from_slice(&x[kept]);
            y[zeros].fill(0);
        }
        Ok(())
    }
}
