//! Operators over the pixels of images, and over signals of any number of axes.

use super::layers::WindowAttributes;
use super::{Built, Call, all};
use crate::error::Result;
use crate::nn::operator::{AspectPolicy, Coordinates, GlobalPool, MaxUnpool, NearestMode, Pool, Resize, ResizeMode};
use crate::nn::{AvgPool2d, GlobalAvgPool2d, MaxPool2d};
use crate::tensor::DType;

/// Kernel, strides, pads and dilations of a pooling of images whose windows the layers know.
fn image_windows(call: &Call<'_>, windows: &WindowAttributes) -> Result<Option<[Vec<usize>; 4]>> {
    if call.dtype(0) != Some(DType::F32) || windows.kernel.as_ref().is_none_or(|kernel| kernel.len() != 2) {
        return Ok(None);
    }
    let numbers = WindowAttributes::numbers;
    let kernel = numbers("kernel_shape", windows.kernel.as_ref(), 2, 1)?;
    let strides = numbers("strides", windows.strides.as_ref(), 2, 1)?;
    let dilations = numbers("dilations", windows.dilations.as_ref(), 2, 1)?;
    let Some(pads) = windows.fixed_pads(&kernel, &strides, &dilations)? else { return Ok(None) };
    let fits = pads.iter().zip(kernel.iter().cycle()).all(|(&pad, &length)| pad <= length / 2);
    Ok(fits.then_some([kernel, strides, pads, dilations]))
}

fn two(list: &[usize]) -> [usize; 2] {
    [list[0], list[1]]
}

/// The kernel, of which the attribute must tell.
fn kernel(call: &Call<'_>, windows: &WindowAttributes) -> Result<Vec<usize>> {
    let axes = windows.kernel.as_ref().map(Vec::len).ok_or_else(|| call.attributes.error("kernel_shape", "it must be there"))?;
    WindowAttributes::numbers("kernel_shape", windows.kernel.as_ref(), axes, 1)
}

pub(super) fn max_pool(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let ceil_mode = call.attributes.flag_or("ceil_mode", false)?;
    let column_major = call.attributes.flag_or("storage_order", false)?;
    if call.outputs == 1
        && !ceil_mode
        && let Some([kernel, strides, pads, dilations]) = image_windows(call, &windows)?
    {
        let pool = MaxPool2d::new(two(&kernel)).with_stride(two(&strides)).with_padding([pads[0], pads[1], pads[2], pads[3]]);
        return Ok(Built::of(pool.with_dilation(two(&dilations)), &[0]));
    }
    let kernel = kernel(call, &windows)?;
    let pool = Pool::max(&kernel[..]).with_windows(windows.windows(kernel.len(), ceil_mode)?);
    all(if call.outputs > 1 { pool.with_indices(column_major) } else { pool })
}

pub(super) fn average_pool(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let ceil_mode = call.attributes.flag_or("ceil_mode", false)?;
    let include_pad = call.attributes.flag_or("count_include_pad", false)?;
    if !ceil_mode
        && let Some([kernel, strides, pads, dilations]) = image_windows(call, &windows)?
        && dilations == [1, 1]
    {
        let pool = AvgPool2d::new(two(&kernel)).with_stride(two(&strides)).with_padding([pads[0], pads[1], pads[2], pads[3]]);
        return Ok(Built::of(pool.with_count_include_pad(include_pad), &[0]));
    }
    let kernel = kernel(call, &windows)?;
    all(Pool::average(&kernel[..]).with_windows(windows.windows(kernel.len(), ceil_mode)?).with_count_include_pad(include_pad))
}

pub(super) fn lp_pool(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let (ceil_mode, p) = (call.attributes.flag_or("ceil_mode", false)?, call.attributes.int_or("p", 2)?);
    let kernel = kernel(call, &windows)?;
    all(Pool::lp(&kernel[..], p)?.with_windows(windows.windows(kernel.len(), ceil_mode)?))
}

pub(super) fn global_pool(call: &mut Call<'_>) -> Result<Built> {
    match call.operator {
        "GlobalAveragePool" if call.dtype(0) == Some(DType::F32) && call.rank(0) == Some(4) => all(GlobalAvgPool2d),
        "GlobalAveragePool" => all(GlobalPool::average()),
        "GlobalMaxPool" => all(GlobalPool::max()),
        _ => all(GlobalPool::lp(call.attributes.int_or("p", 2)?)?),
    }
}

pub(super) fn max_unpool(call: &mut Call<'_>) -> Result<Built> {
    let windows = WindowAttributes::take(&mut call.attributes)?;
    let kernel = kernel(call, &windows)?;
    all(MaxUnpool::new(&kernel[..]).with_windows(windows.windows(kernel.len(), false)?))
}

/// How elements between others come about. Until opset 10 the nearest one was the one before.
fn resize_mode(call: &mut Call<'_>) -> Result<ResizeMode> {
    let old = call.opset < 11 || call.operator == "Upsample";
    let mut nearest = call.attributes.choice(
        "nearest_mode",
        &[
            ("round_prefer_floor", NearestMode::RoundPreferFloor),
            ("round_prefer_ceil", NearestMode::RoundPreferCeil),
            ("floor", NearestMode::Floor),
            ("ceil", NearestMode::Ceil),
        ],
    )?;
    if old {
        nearest = NearestMode::Floor;
    }
    let cubic = call.attributes.float_or("cubic_coeff_a", -0.75)?;
    let modes = [("nearest", ResizeMode::Nearest(nearest)), ("linear", ResizeMode::Linear), ("cubic", ResizeMode::Cubic(cubic))];
    call.attributes.choice("mode", &modes)
}

pub(super) fn upsample(call: &mut Call<'_>) -> Result<Built> {
    let resize = Resize::upsample(resize_mode(call)?);
    all(match call.attributes.floats("scales")? {
        Some(scales) => resize.with_scales(scales),
        None => resize,
    })
}

pub(super) fn resize(call: &mut Call<'_>) -> Result<Built> {
    if call.opset < 11 {
        return upsample(call);
    }
    let mode = resize_mode(call)?;
    let attributes = &mut call.attributes;
    let coordinates = attributes.choice(
        "coordinate_transformation_mode",
        &[
            ("half_pixel", Coordinates::HalfPixel),
            ("half_pixel_symmetric", Coordinates::HalfPixelSymmetric),
            ("pytorch_half_pixel", Coordinates::PytorchHalfPixel),
            ("align_corners", Coordinates::AlignCorners),
            ("asymmetric", Coordinates::Asymmetric),
            ("tf_crop_and_resize", Coordinates::TfCropAndResize),
        ],
    )?;
    let policy = attributes.choice(
        "keep_aspect_ratio_policy",
        &[("stretch", AspectPolicy::Stretch), ("not_larger", AspectPolicy::NotLarger), ("not_smaller", AspectPolicy::NotSmaller)],
    )?;
    let resize = Resize::new(mode)
        .with_coordinates(coordinates)
        .with_policy(policy)
        .with_exclude_outside(attributes.flag_or("exclude_outside", false)?)
        .with_antialias(attributes.flag_or("antialias", false)?)
        .with_extrapolation_value(attributes.float_or("extrapolation_value", 0.0)?);
    let resize = match attributes.floats("scales")? {
        Some(scales) => resize.with_scales(scales),
        None => resize,
    };
    all(match attributes.ints("axes")? {
        Some(axes) => resize.with_axes(axes),
        None => resize,
    })
}
