//! Operators on codes.

use super::layers::WindowAttributes;
use super::{Built, Call, all};
use crate::error::Result;
use crate::nn::operator::{ConvInteger, DequantizeLinear, DynamicQuantizeLinear, MatMulInteger, QuantizeLinear};
use crate::tensor::DType;

/// Axis, block and type that both directions share.
fn grain(call: &mut Call<'_>) -> Result<(i64, usize, Option<DType>)> {
    let attributes = &mut call.attributes;
    let (axis, block) = (attributes.int_or("axis", 1)?, attributes.int_or("block_size", 0)?);
    let block = usize::try_from(block).map_err(|_| attributes.error("block_size", format!("it is {block}")))?;
    let dtype = match attributes.int_or("output_dtype", 0)? {
        0 => None,
        code => Some(super::element_type(attributes, "output_dtype", code)?),
    };
    Ok((axis, block, dtype))
}

pub(super) fn quantize_linear(call: &mut Call<'_>) -> Result<Built> {
    let (axis, block, dtype) = grain(call)?;
    let saturate = call.attributes.flag_or("saturate", true)?;
    // The division is taken in f32, the most that any precision asks for.
    call.attributes.discard("precision");
    all(QuantizeLinear::new(axis, block, dtype).with_saturation(saturate))
}

pub(super) fn dequantize_linear(call: &mut Call<'_>) -> Result<Built> {
    let (axis, block, dtype) = grain(call)?;
    all(DequantizeLinear::new(axis, block, dtype))
}

pub(super) fn dynamic_quantize_linear(_: &mut Call<'_>) -> Result<Built> {
    all(DynamicQuantizeLinear)
}

pub(super) fn matmul_integer(call: &mut Call<'_>) -> Result<Built> {
    all(if call.operator == "QLinearMatMul" { MatMulInteger::quantized() } else { MatMulInteger::new() })
}

pub(super) fn conv_integer(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let groups = call.attributes.int_or("group", 1)?;
    let groups = usize::try_from(groups).map_err(|_| call.attributes.error("group", format!("it is {groups}")))?;
    let windows = windows.windows(windows.axes(call)?, false)?;
    all(if call.operator == "QLinearConv" { ConvInteger::quantized(windows, groups) } else { ConvInteger::new(windows, groups) })
}
