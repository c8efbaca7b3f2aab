//! Elements picked by index.

use super::walk::{AXES, check_rank, strides, with_word};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::arguments::check_ints;
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape};

/// Where index `index` lies on an axis of this length, counted from the end when negative.
///
/// # Errors
/// [`Error::Parameter`] when it lies beyond.
pub(crate) fn resolve_index(index: i64, length: usize) -> Result<usize> {
    let at = if index < 0 { index.wrapping_add(length as i64) } else { index };
    match usize::try_from(at) {
        Ok(at) if at < length => Ok(at),
        _ => Err(Error::parameter("index", index, format!("must lie within -{length}..{length} for an axis of length {length}"))),
    }
}

fn data_and_indices(inputs: &[Option<DType>]) -> Result<Vec<DType>> {
    check_arity(inputs, 2, 2)?;
    check_ints("indices", inputs, 1)?;
    Ok(inputs[0].into_iter().collect())
}

/// ONNX Gather: slices of the data at the indices along an axis: `y[a.., i.., b..] = data[a.., indices[i..], b..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gather {
    axis: i64,
}

impl Gather {
    /// Along this axis, counted from the end when negative.
    pub fn new(axis: i64) -> Self {
        Gather { axis }
    }
}

impl Operation for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        data_and_indices(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (data, indices) = (facts.shape(0)?.dims(), facts.shape(1)?.dims());
        let axis = resolve_axis(self.axis, data.len())?;
        Ok(vec![Shape::new([&data[..axis], indices, &data[axis + 1..]].concat())?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (data, indices, y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
        let axis = resolve_axis(self.axis, data.dims.len())?;
        let length = data.dims[axis];
        let row = data.dims[axis + 1..].iter().product::<usize>() * data.dtype.bytes();
        for index in indices.ints()? {
            resolve_index(index, length)?;
        }
        if y.bytes.is_empty() {
            return Ok(());
        }
        for (data, y) in data.bytes.chunks_exact(length * row).zip(y.bytes.chunks_exact_mut(indices.len() * row)) {
            for (index, y) in indices.ints()?.zip(y.chunks_exact_mut(row)) {
                y.copy_from_slice(&data[resolve_index(index, length)? * row..][..row]);
            }
        }
        Ok(())
    }
}

/// ONNX GatherElements: one element of the data for each index, at its own place but along an axis, where the index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatherElements {
    axis: i64,
}

impl GatherElements {
    /// Along this axis, counted from the end when negative.
    pub fn new(axis: i64) -> Self {
        GatherElements { axis }
    }
}

/// Whether indices of these dimensions, and along `axis` any, lie inside `data`.
pub(super) fn check_elements(indices: &Shape, data: &Shape, axis: usize) -> Result<()> {
    check_rank(data.rank())?;
    let inside = |(i, (&own, &length)): (usize, (&usize, &usize))| i == axis || own <= length;
    match indices.rank() == data.rank() && indices.dims().iter().zip(data.dims()).enumerate().all(inside) {
        true => Ok(()),
        false => Err(Error::shape("indices", format!("one within {data:?} but for axis {axis}"), indices.dims())),
    }
}

/// Calls `body` with the index of each element and where that element lies in data of these dimensions.
pub(super) fn each_element(
    indices: &crate::nn::view::View<'_>,
    data: &[usize],
    axis: usize,
    mut body: impl FnMut(usize, usize),
) -> Result<()> {
    let (steps, mut counts, mut base) = (strides(data)?, [0usize; AXES], 0usize);
    for (i, index) in indices.ints()?.enumerate() {
        body(i, base + resolve_index(index, data[axis])? * steps[axis]);
        for at in (0..data.len()).rev() {
            let step = if at == axis { 0 } else { steps[at] };
            counts[at] += 1;
            base += step;
            if counts[at] < indices.dims[at] {
                break;
            }
            base -= step * counts[at];
            counts[at] = 0;
        }
    }
    Ok(())
}

impl Operation for GatherElements {
    fn name(&self) -> &'static str {
        "GatherElements"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        data_and_indices(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (data, indices) = (facts.shape(0)?, facts.shape(1)?);
        check_elements(indices, data, resolve_axis(self.axis, data.rank())?)?;
        Ok(vec![indices.clone()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (data, indices, mut y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
        let axis = resolve_axis(self.axis, data.dims.len())?;
        with_word!(data.dtype.bytes(), Word => {
            let (from, to) = (data.as_slice::<Word>(), y.as_mut_slice::<Word>());
            each_element(&indices, data.dims, axis, |i, at| to[i] = from[at])
        })
    }
}

/// ONNX GatherND: slices of the data, each at the index that one row of the indices spells out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GatherNd {
    batch_dims: i64,
}

impl GatherNd {
    /// With this number of leading axes that data and indices share.
    pub fn new(batch_dims: i64) -> Self {
        GatherNd { batch_dims }
    }
}

/// Takes as many indices as there are axes and says which slice they name, row-major over the axes.
pub(super) fn slice_at(indices: &mut impl Iterator<Item = i64>, axes: &[usize]) -> Result<usize> {
    axes.iter().zip(indices).try_fold(0, |at, (&length, index)| Ok(at * length + resolve_index(index, length)?))
}

impl Operation for GatherNd {
    fn name(&self) -> &'static str {
        "GatherND"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("batch_dims", self.batch_dims)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        data_and_indices(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (data, indices) = (facts.shape(0)?.dims(), facts.shape(1)?.dims());
        let batch = usize::try_from(self.batch_dims).ok().filter(|&b| b < data.len().min(indices.len()));
        let Some(batch) = batch else {
            let rule = "must be 0 or more, and below the number of axes of data and of indices";
            return Err(Error::parameter("batch_dims", self.batch_dims, rule));
        };
        let (&depth, places) = indices.split_last().expect("more axes than batch_dims");
        if depth == 0 || depth > data.len() - batch || data[..batch] != places[..batch] {
            let rule = format!("that of the data {data:?} in its first {batch} axes, and 1 to {} last", data.len() - batch);
            return Err(Error::shape("indices", rule, indices));
        }
        Ok(vec![Shape::new([places, &data[batch + depth..]].concat())?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (data, indices, y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
        let batch = self.batch_dims as usize;
        let depth = indices.dims[indices.dims.len() - 1];
        let axes = &data.dims[batch..batch + depth];
        let slice = data.dims[batch + depth..].iter().product::<usize>() * data.dtype.bytes();
        let whole = axes.iter().product::<usize>() * slice;
        let rows = indices.len() / depth;
        let per_batch = rows / data.dims[..batch].iter().product::<usize>().max(1);
        let mut list = indices.ints()?;
        for row in 0..rows {
            let at = slice_at(&mut list, axes)?;
            let start = row / per_batch * whole + at * slice;
            y.bytes[row * slice..][..slice].copy_from_slice(&data.bytes[start..][..slice]);
        }
        Ok(())
    }
}
