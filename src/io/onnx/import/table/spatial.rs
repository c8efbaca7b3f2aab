//! Operators over the pixels of images.

use super::layers::{self, Windows};
use super::{Built, Call, all};
use crate::error::Result;
use crate::nn::{AvgPool2d, GlobalAvgPool2d, MaxPool2d};
use crate::tensor::DType;

/// Kernel, strides and padding of a pooling of images whose windows the layers know.
fn image_windows(call: &Call<'_>, windows: &Windows) -> Result<Option<[Vec<usize>; 4]>> {
    if call.dtype(0) != Some(DType::F32) || windows.kernel.as_ref().is_none_or(|kernel| kernel.len() != 2) {
        return Ok(None);
    }
    let kernel = Windows::numbers("kernel_shape", windows.kernel.as_ref(), 2, 1)?;
    let strides = Windows::numbers("strides", windows.strides.as_ref(), 2, 1)?;
    let dilations = Windows::numbers("dilations", windows.dilations.as_ref(), 2, 1)?;
    let Some(pads) = windows.fixed_pads(&kernel, &strides, &dilations)? else { return Ok(None) };
    let fits = pads.iter().zip(kernel.iter().cycle()).all(|(&pad, &length)| pad <= length / 2);
    Ok(fits.then_some([kernel, strides, pads, dilations]))
}

fn two(list: &[usize]) -> [usize; 2] {
    [list[0], list[1]]
}

pub(super) fn max_pool(call: &mut Call<'_>) -> Result<Built> {
    let windows = Windows::take(&mut call.attributes)?;
    let ceil_mode = call.attributes.flag_or("ceil_mode", false)?;
    let column_major = call.attributes.flag_or("storage_order", false)?;
    if call.outputs == 1
        && let Some([kernel, strides, pads, dilations]) = image_windows(call, &windows)?
    {
        let pool = MaxPool2d::new(two(&kernel)).with_stride(two(&strides)).with_padding([pads[0], pads[1], pads[2], pads[3]]);
        return Ok(Built::of(pool.with_dilation(two(&dilations)).with_ceil_mode(ceil_mode), &[0]));
    }
    let _ = column_major;
    Err(crate::Error::Unsupported { what: "MaxPool".into(), way_out: "".into() })
}

pub(super) fn average_pool(call: &mut Call<'_>) -> Result<Built> {
    let windows = Windows::take(&mut call.attributes)?;
    let ceil_mode = call.attributes.flag_or("ceil_mode", false)?;
    let include_pad = call.attributes.flag_or("count_include_pad", false)?;
    if let Some([kernel, strides, pads, dilations]) = image_windows(call, &windows)?
        && dilations == [1, 1]
    {
        let pool = AvgPool2d::new(two(&kernel)).with_stride(two(&strides)).with_padding([pads[0], pads[1], pads[2], pads[3]]);
        return Ok(Built::of(pool.with_ceil_mode(ceil_mode).with_count_include_pad(include_pad), &[0]));
    }
    Err(crate::Error::Unsupported { what: "AveragePool".into(), way_out: "".into() })
}

pub(super) fn global_average_pool(call: &mut Call<'_>) -> Result<Built> {
    if call.dtype(0) == Some(DType::F32) && call.rank(0) == Some(4) {
        return all(GlobalAvgPool2d);
    }
    Err(crate::Error::Unsupported { what: "GlobalAveragePool".into(), way_out: "".into() })
}

pub(super) fn batch_normalization(call: &mut Call<'_>) -> Result<Built> {
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    let momentum = call.attributes.float_or("momentum", 0.9)?;
    let training = call.attributes.flag_or("training_mode", false)?;
    let per_channel = call.attributes.flag_or("spatial", true)?;
    if call.dtype(0) == Some(DType::F32) && call.rank(0) == Some(4) && call.outputs == 1 && !training && per_channel {
        if let Some(norm) = layers::batch_norm(call, epsilon)? {
            return Ok(Built::of(norm, &[0]));
        }
    }
    let _ = momentum;
    Err(crate::Error::Unsupported { what: "BatchNormalization".into(), way_out: "".into() })
}
