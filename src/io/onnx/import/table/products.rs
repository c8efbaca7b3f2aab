//! Operators that multiply matrices: layers where their weights are constant.

use super::layers::{self, WindowAttributes};
use super::{Built, Call, all};
use crate::error::Result;
use crate::nn::operator::{Conv, ConvTranspose, Gemm, MatMul, Recurrent, RecurrentKind};
use crate::tensor::DType;

pub(super) fn matmul(_: &mut Call<'_>) -> Result<Built> {
    all(MatMul::new())
}

pub(super) fn gemm(call: &mut Call<'_>) -> Result<Built> {
    // Until opset 7 there was a flag that C may be broadcast, which it always may be since.
    call.attributes.discard("broadcast");
    let (alpha, beta) = (call.attributes.float_or("alpha", 1.0)?, call.attributes.float_or("beta", 1.0)?);
    let transposed = [call.attributes.flag_or("transA", false)?, call.attributes.flag_or("transB", false)?];
    if !transposed[0]
        && call.dtype(0) == Some(DType::F32)
        && let Some(built) = layers::gemm(call, alpha, beta, transposed[1])?
    {
        return Ok(built);
    }
    all(Gemm::new(alpha, beta).with_transposed(transposed[0], transposed[1]))
}

pub(super) fn lstm(call: &mut Call<'_>) -> Result<Built> {
    let options = layers::recurrent_options(&mut call.attributes, 3)?;
    let coupled = call.attributes.flag_or("input_forget", false)?;
    match layers::lstm(call, options.clone(), coupled)? {
        Some(built) => Ok(built),
        None => all(Recurrent::new(RecurrentKind::Lstm { coupled }, options)),
    }
}

pub(super) fn gru(call: &mut Call<'_>) -> Result<Built> {
    let options = layers::recurrent_options(&mut call.attributes, 2)?;
    let reset_after = call.attributes.flag_or("linear_before_reset", false)?;
    match layers::gru(call, options.clone(), reset_after)? {
        Some(built) => Ok(built),
        None => all(Recurrent::new(RecurrentKind::Gru { reset_after }, options)),
    }
}

pub(super) fn conv(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let groups = call.attributes.int_or("group", 1)?;
    if call.dtype(0) == Some(DType::F32)
        && let Some(built) = layers::conv(call, &windows, groups)?
    {
        return Ok(built);
    }
    let axes = windows.axes(call)?;
    let groups = usize::try_from(groups).map_err(|_| call.attributes.error("group", format!("it is {groups}")))?;
    all(Conv::new(groups).with_windows(windows.windows(axes, false)?))
}

pub(super) fn conv_transpose(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let groups = call.attributes.int_or("group", 1)?;
    let (padding, shape) = (call.attributes.ints("output_padding")?, call.attributes.ints("output_shape")?);
    if call.dtype(0) == Some(DType::F32)
        && shape.is_none()
        && let Ok(more) = WindowAttributes::numbers("output_padding", padding.as_ref(), 2, 0)
        && let Some(built) = layers::conv_transpose(call, &windows, groups, &more)?
    {
        return Ok(built);
    }
    let axes = windows.axes(call)?;
    let groups = usize::try_from(groups).map_err(|_| call.attributes.error("group", format!("it is {groups}")))?;
    let mut conv = ConvTranspose::new(groups).with_windows(windows.windows(axes, false)?);
    if let Some(padding) = padding {
        conv = conv.with_output_padding(WindowAttributes::numbers("output_padding", Some(&padding), axes, 0)?);
    }
    if let Some(shape) = shape {
        conv = conv.with_output_shape(WindowAttributes::numbers("output_shape", Some(&shape), axes, 0)?);
    }
    all(conv)
}
