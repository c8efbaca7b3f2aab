//! Indices as rows with one element that differs.

use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::arguments::{length, one_int};
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::generate::repeat;
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs, View};
use crate::tensor::{DType, Shape};

/// ONNX OneHot: for each index a new axis of length `depth` (input 1) that holds the second value of input 2 at the index and
/// the first elsewhere. Negative indices count from the end; one beyond the axis marks nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneHot {
    axis: i64,
}

impl OneHot {
    /// The new axis, counted from the end of the output when negative.
    pub fn new(axis: i64) -> Self {
        OneHot { axis }
    }
}

fn is_number(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16) || dtype.is_integer() && dtype.bits() >= 8
}

/// The number at `i`, rounded to zero.
fn int_at(view: &View<'_>, i: usize) -> i64 {
    match view.dtype {
        DType::I64 => view.as_slice::<i64>()[i],
        DType::I32 => view.as_slice::<i32>()[i].into(),
        DType::I16 => view.as_slice::<i16>()[i].into(),
        DType::I8 => view.as_slice::<i8>()[i].into(),
        DType::U64 => i64::try_from(view.as_slice::<u64>()[i]).unwrap_or(i64::MAX),
        DType::U32 => view.as_slice::<u32>()[i].into(),
        DType::U16 => view.as_slice::<u16>()[i].into(),
        DType::F32 => view.as_slice::<f32>()[i] as i64,
        DType::F64 => view.as_slice::<f64>()[i] as i64,
        DType::F16 => view.as_slice::<crate::num::f16>()[i].to_f32() as i64,
        DType::Bf16 => view.as_slice::<crate::num::bf16>()[i].to_f32() as i64,
        _ => view.bytes[i].into(),
    }
}

impl Operation for OneHot {
    fn name(&self) -> &'static str {
        "OneHot"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 3, 3)?;
        for (what, dtype) in [("indices", inputs[0]), ("depth", inputs[1])] {
            if let Some(other) = dtype.filter(|&dtype| !is_number(dtype)) {
                return Err(Error::Type { what: what.into(), expected: "a number of 8 bits or more", got: other.name() });
            }
        }
        Ok(inputs[2].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let depth = length("depth", one_int("depth", &facts.value(1)?)?)?;
        if facts.shape(2)?.elements() != 2 {
            return Err(Error::length("values", 2, facts.shape(2)?.elements()));
        }
        let mut dims = facts.shape(0)?.dims().to_vec();
        dims.insert(resolve_axis(self.axis, dims.len() + 1)?, depth);
        Ok(vec![Shape::new(dims)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (indices, values, y) = (inputs.need(0)?, inputs.need(2)?, outputs.get(0));
        let size = y.dtype.bytes();
        let (off, on) = values.bytes.split_at(size);
        repeat(off, y.bytes);
        let axis = resolve_axis(self.axis, y.dims.len())?;
        let (depth, inner) = (y.dims[axis], y.dims[axis + 1..].iter().product::<usize>());
        for i in 0..if y.bytes.is_empty() { 0 } else { indices.len() } {
            let index = int_at(&indices, i);
            let index = if index < 0 { index.wrapping_add(depth as i64) } else { index };
            if let Some(index) = usize::try_from(index).ok().filter(|&index| index < depth) {
                let at = (i / inner * depth + index) * inner + i % inner;
                y.bytes[at * size..][..size].copy_from_slice(on);
            }
        }
        Ok(())
    }
}
