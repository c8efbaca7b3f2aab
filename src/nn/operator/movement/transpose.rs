//! Axes in another order.

use super::walk::{Axis, Walk, strides};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::operator::arguments::distinct_axes;
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::resolve_axis;
use crate::nn::operator::{Facts, Operation, check_arity};
use crate::nn::view::{Inputs, Outputs, physical_axis};
use crate::tensor::{DType, Shape};

/// ONNX Transpose: axis `i` of the output is axis `perm[i]` of the input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transpose {
    perm: Option<Vec<i64>>,
}

impl Transpose {
    /// The axes in reverse.
    pub fn new() -> Self {
        Transpose::default()
    }

    /// The axes in this order.
    #[must_use]
    pub fn with_perm(self, perm: impl Into<Vec<i64>>) -> Self {
        Transpose { perm: Some(perm.into()) }
    }

    /// The axes in their order, counted from the front; `None` for the reverse.
    pub fn axes(&self) -> Option<Vec<usize>> {
        let perm = self.perm.as_ref()?;
        perm.iter().map(|&axis| resolve_axis(axis, perm.len()).ok()).collect()
    }

    /// The axis of the input that becomes axis `i`, of a permutation that was checked.
    fn source(&self, i: usize, rank: usize) -> usize {
        match &self.perm {
            Some(perm) if perm[i] < 0 => (perm[i] + rank as i64) as usize,
            Some(perm) => perm[i] as usize,
            None => rank - 1 - i,
        }
    }
}

impl Operation for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("perm", self.perm.clone())
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let dims = facts.shape(0)?.dims();
        if let Some(perm) = &self.perm
            && distinct_axes(perm, dims.len())?.len() != dims.len()
        {
            return Err(Error::parameter("perm", perm, format!("must name each of the {} axes once", dims.len())));
        }
        Ok(vec![Shape::new((0..dims.len()).map(|i| dims[self.source(i, dims.len())]).collect::<Vec<_>>())?])
    }

    fn order(&self) -> Order {
        // An image that lies channels-last is often wanted so: then nothing moves.
        Order::AnyToRowMajor
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let (from, to, rank) = (strides(x.dims)?, strides(y.dims)?, y.dims.len());
        let axis = |i: usize| {
            let source = physical_axis(self.source(i, rank), rank, inputs.channels_last());
            Axis { length: y.dims[i], from: from[source] as isize, to: to[i] as isize }
        };
        Walk::new((0..rank).map(axis))?.copy(x.dtype.bytes(), (x.bytes, 0), (y.bytes, 0));
        Ok(())
    }
}
