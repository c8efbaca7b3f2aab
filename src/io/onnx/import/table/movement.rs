//! Operators that move values about, or tell their shape.

use super::{Built, Call, all};
use crate::error::{Error, Result};
use crate::nn::operator::{
    Combine, Concat, ConstantOfShape, DepthOrder, DepthToSpace, Dropout, Expand, EyeLike, Flatten, Gather, GatherElements, GatherNd,
    Identity, OneHot, Pad, PadMode, Range, Reshape, ReverseSequence, ScatterElements, ScatterNd, ShapeOf, SizeOf, Slice, SpaceToDepth,
    Split, Squeeze, Tile, TopK, Transpose, Trilu, Unsqueeze,
};
use crate::tensor::{Tensor, Value};

pub(super) fn shape(call: &mut Call<'_>) -> Result<Built> {
    let attributes = &mut call.attributes;
    let (start, end) = (attributes.int_or("start", 0)?, attributes.int_or("end", i64::MAX)?);
    all(ShapeOf::new().with_range(start, end))
}

pub(super) fn size(_: &mut Call<'_>) -> Result<Built> {
    all(SizeOf)
}

pub(super) fn reshape(call: &mut Call<'_>) -> Result<Built> {
    let allows = call.attributes.flag_or("allowzero", false)?;
    // Until opset 4 the shape was an attribute.
    let reshape = match call.attributes.ints("shape")? {
        Some(shape) => Reshape::to(shape),
        None => Reshape::new(),
    };
    all(reshape.with_allow_zero(allows))
}

pub(super) fn flatten(call: &mut Call<'_>) -> Result<Built> {
    all(Flatten::new(call.attributes.int_or("axis", 1)?))
}

pub(super) fn squeeze(call: &mut Call<'_>) -> Result<Built> {
    all(match call.attributes.ints("axes")? {
        Some(axes) => Squeeze::new().with_axes(axes),
        None => Squeeze::new(),
    })
}

pub(super) fn unsqueeze(call: &mut Call<'_>) -> Result<Built> {
    all(match call.attributes.ints("axes")? {
        Some(axes) => Unsqueeze::new().with_axes(axes),
        None => Unsqueeze::new(),
    })
}

pub(super) fn identity(_: &mut Call<'_>) -> Result<Built> {
    all(Identity)
}

pub(super) fn dropout(call: &mut Call<'_>) -> Result<Built> {
    // What it drops in training, and by which generator: nothing to inference.
    call.attributes.discard("ratio");
    call.attributes.discard("seed");
    all(Dropout::new().with_mask(call.outputs > 1))
}

pub(super) fn range(_: &mut Call<'_>) -> Result<Built> {
    all(Range::new())
}

pub(super) fn constant_of_shape(call: &mut Call<'_>) -> Result<Built> {
    all(match call.attributes.tensor("value")? {
        Some(value) => ConstantOfShape::new(value)?,
        None => ConstantOfShape::zero()?,
    })
}

pub(super) fn eye_like(call: &mut Call<'_>) -> Result<Built> {
    let mut eye = EyeLike::new().with_diagonal(call.attributes.int_or("k", 0)?);
    if let Some(code) = call.attributes.int("dtype")? {
        eye = eye.with_dtype(super::element_type(&call.attributes, "dtype", code)?);
    }
    all(eye)
}

pub(super) fn trilu(call: &mut Call<'_>) -> Result<Built> {
    all(Trilu::new(call.attributes.flag_or("upper", true)?))
}

pub(super) fn transpose(call: &mut Call<'_>) -> Result<Built> {
    all(match call.attributes.ints("perm")? {
        Some(perm) => Transpose::new().with_perm(perm),
        None => Transpose::new(),
    })
}

pub(super) fn concat(call: &mut Call<'_>) -> Result<Built> {
    let axis = call.attributes.int("axis")?.ok_or_else(|| call.attributes.error("axis", "it must be there"))?;
    all(Concat::new(axis))
}

pub(super) fn split(call: &mut Call<'_>) -> Result<Built> {
    let axis = call.attributes.int_or("axis", 0)?;
    if let Some(outputs) = call.attributes.int("num_outputs")?
        && usize::try_from(outputs).ok() != Some(call.outputs)
    {
        return Err(call.attributes.error("num_outputs", format!("it is {outputs}, and the node has {} outputs", call.outputs)));
    }
    let split = Split::new(axis, call.outputs);
    all(match call.attributes.ints("split")? {
        Some(lengths) => split.with_lengths(lengths),
        None => split,
    })
}

pub(super) fn slice(call: &mut Call<'_>) -> Result<Built> {
    let (starts, ends) = (call.attributes.ints("starts")?, call.attributes.ints("ends")?);
    let mut slice = Slice::new();
    if let (Some(starts), Some(ends)) = (starts, ends) {
        slice = slice.with_range(starts, ends);
    }
    if let Some(axes) = call.attributes.ints("axes")? {
        slice = slice.with_axes(axes);
    }
    if let Some(steps) = call.attributes.ints("steps")? {
        slice = slice.with_steps(steps);
    }
    all(slice)
}

pub(super) fn gather(call: &mut Call<'_>) -> Result<Built> {
    let axis = call.attributes.int_or("axis", 0)?;
    match super::layers::embedding(call, axis)? {
        Some(built) => Ok(built),
        None => all(Gather::new(axis)),
    }
}

pub(super) fn gather_elements(call: &mut Call<'_>) -> Result<Built> {
    all(GatherElements::new(call.attributes.int_or("axis", 0)?))
}

pub(super) fn gather_nd(call: &mut Call<'_>) -> Result<Built> {
    all(GatherNd::new(call.attributes.int_or("batch_dims", 0)?))
}

fn reduction(call: &mut Call<'_>) -> Result<Combine> {
    call.attributes.choice(
        "reduction",
        &[("none", Combine::None), ("add", Combine::Add), ("mul", Combine::Mul), ("max", Combine::Max), ("min", Combine::Min)],
    )
}

pub(super) fn scatter_elements(call: &mut Call<'_>) -> Result<Built> {
    let axis = call.attributes.int_or("axis", 0)?;
    all(ScatterElements::new(axis).with_reduction(reduction(call)?))
}

pub(super) fn scatter_nd(call: &mut Call<'_>) -> Result<Built> {
    all(ScatterNd::new().with_reduction(reduction(call)?))
}

pub(super) fn expand(call: &mut Call<'_>) -> Result<Built> {
    all(match call.attributes.ints("shape")? {
        Some(shape) => Expand::to(shape),
        None => Expand::new(),
    })
}

pub(super) fn tile(call: &mut Call<'_>) -> Result<Built> {
    all(match call.attributes.ints("repeats")? {
        Some(repeats) => Tile::new().with_repeats(repeats),
        None => Tile::new(),
    })
}

pub(super) fn pad(call: &mut Call<'_>) -> Result<Built> {
    let mode = call.attributes.choice(
        "mode",
        &[("constant", PadMode::Constant), ("reflect", PadMode::Reflect), ("edge", PadMode::Edge), ("wrap", PadMode::Wrap)],
    )?;
    let mut pad = Pad::new(mode);
    if let Some(pads) = call.attributes.ints("pads")? {
        pad = pad.with_pads(pads);
    }
    if let Some(value) = call.attributes.float("value")? {
        pad = pad.with_value(Value::F32(Tensor::new(Vec::new(), vec![value])?));
    }
    all(pad)
}

fn block(call: &mut Call<'_>) -> Result<usize> {
    let block = call.attributes.int_or("blocksize", 0)?;
    usize::try_from(block).map_err(|_| Error::parameter("blocksize", block, "must be at least 1"))
}

pub(super) fn depth_to_space(call: &mut Call<'_>) -> Result<Built> {
    let order = call.attributes.choice("mode", &[("DCR", DepthOrder::BlockFirst), ("CRD", DepthOrder::ChannelFirst)])?;
    all(DepthToSpace::new(block(call)?)?.with_order(order))
}

pub(super) fn space_to_depth(call: &mut Call<'_>) -> Result<Built> {
    all(SpaceToDepth::new(block(call)?)?)
}

pub(super) fn reverse_sequence(call: &mut Call<'_>) -> Result<Built> {
    let (time, batch) = (call.attributes.int_or("time_axis", 0)?, call.attributes.int_or("batch_axis", 1)?);
    match (time, batch) {
        (0, 1) => all(ReverseSequence::new(0)?),
        (1, 0) => all(ReverseSequence::new(1)?),
        _ => Err(call.attributes.error("time_axis", format!("it is {time} and batch_axis {batch}: one is 0, the other 1"))),
    }
}

pub(super) fn one_hot(call: &mut Call<'_>) -> Result<Built> {
    all(OneHot::new(call.attributes.int_or("axis", -1)?))
}

pub(super) fn top_k(call: &mut Call<'_>) -> Result<Built> {
    let axis = call.attributes.int_or("axis", -1)?;
    let top = TopK::new(axis).with_smallest(!call.attributes.flag_or("largest", true)?);
    // Which order the elements come in where none is asked for is left open: sorted is one.
    call.attributes.discard("sorted");
    all(match call.attributes.int("k")? {
        Some(k) => top.with_k(k),
        None => top,
    })
}
