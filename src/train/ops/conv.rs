//! Convolution.
//!
//! ```text
//! y[p, o]     = b[o] + Σ w[o, i, t] · x[s·p + d·t - pad, i]
//! db[o]       = Σ dy[p, o]
//! dw[o, i, t] = Σ dy[p, o] · x[s·p + d·t - pad, i]       a product of dyᵀ with the windows of x as rows
//! dx          = dy convolved with w, taps turned around and channels swapped; of strides, what a transposed convolution makes
//! ```

use super::product::{column_sums, multiply, transposed};
use super::{Backward, Differentiable, Forward, Layout, float, grouped, wide};
use crate::error::{Error, Result};
use crate::kernels::{Conv2dGeometry, FloatEpilogue, ImageLayout, ImageShape, PackedFloatConv2d, WeightLayout, Workspace, conv2d_f32};
use crate::nn::ConvTranspose2d;
use crate::tensor::Tensor;
use crate::train::array::Array;

#[derive(Debug)]
pub struct Conv {
    geometry: Conv2dGeometry,
}

fn shape([n, _, h, w]: [usize; 4]) -> ImageShape {
    ImageShape { n, h, w, layout: ImageLayout::Nhwc }
}

impl Conv {
    pub fn new(geometry: &Conv2dGeometry) -> Self {
        Conv { geometry: geometry.clone() }
    }

    /// The gradient by the images of dimensions `dims`.
    fn by_images(&self, run: &mut Backward<'_>, dims: [usize; 4]) -> Result<Array> {
        let weight = run.parameters[0];
        let (gradient, [_, _, oh, ow]) = (run.gradient.data(), run.gradient.image_dims()?);
        let pads = self.geometry.pads(dims[2], dims[3])?;
        let mut by_images = vec![0.0; dims.iter().product()];
        match turned(&self.geometry, pads) {
            Some(geometry) => {
                let packed = PackedFloatConv2d::pack(&geometry, &turn(weight, &self.geometry))?;
                let from = shape([dims[0], 0, oh, ow]);
                conv2d_f32(gradient, from, &packed, &FloatEpilogue::new(), &mut by_images, run.workspace, run.threads)?;
            }
            None => {
                let Conv2dGeometry { in_channels, out_channels, .. } = self.geometry;
                let geometry = Conv2dGeometry { in_channels: out_channels, out_channels: in_channels, ..self.geometry.clone() };
                let (geometry, [_, _, h, w]) = (geometry.with_padding(pads), dims);
                let transposed = ConvTranspose2d::new(geometry, Tensor::new(self.geometry.weight_shape(), weight.to_vec())?, None)?;
                // Rows and columns of the input that no window reached.
                let [th, tw] = transposed.output_size(oh, ow)?;
                let rest = [h, w].into_iter().zip([th, tw]).map(|(all, reached)| all.checked_sub(reached));
                let rest: Vec<usize> =
                    rest.collect::<Option<_>>().ok_or_else(|| Error::shape("gradient", "that of the output", &[oh, ow]))?;
                let transposed = transposed.with_output_padding([rest[0], rest[1]]);
                transposed.forward(gradient, [dims[0], oh, ow], &mut by_images, run.workspace, run.threads)?;
            }
        }
        Array::images(dims, by_images)
    }
}

/// The convolution that takes gradients back, of images with this padding; `None` where strides, groups or wide padding ask for another
/// way.
fn turned(geometry: &Conv2dGeometry, [top, left, bottom, right]: [usize; 4]) -> Option<Conv2dGeometry> {
    let Conv2dGeometry { in_channels, out_channels, kernel, stride, dilation, groups, .. } = *geometry;
    if stride != [1, 1] || groups != 1 {
        return None;
    }
    let reach = |axis: usize| (kernel[axis] - 1) * dilation[axis];
    let padding = [reach(0).checked_sub(top)?, reach(1).checked_sub(left)?, reach(0).checked_sub(bottom)?, reach(1).checked_sub(right)?];
    Some(Conv2dGeometry { in_channels: out_channels, out_channels: in_channels, ..geometry.clone() }.with_padding(padding))
}

/// Weights `[o, i, taps]` as `[i, o, taps]` with the taps in reverse.
fn turn(weight: &[f32], geometry: &Conv2dGeometry) -> Vec<f32> {
    let [outputs, inputs, kh, kw] = geometry.weight_shape();
    let taps = kh * kw;
    let mut turned = vec![0.0; weight.len()];
    for (o, filter) in weight.chunks_exact((inputs * taps).max(1)).enumerate() {
        for (i, kernel) in filter.chunks_exact(taps).enumerate() {
            let to = &mut turned[(i * outputs + o) * taps..][..taps];
            to.iter_mut().rev().zip(kernel).for_each(|(to, &w)| *to = w);
        }
    }
    turned
}

/// Calls `f` with each output pixel and tap, in order, and where the tap's pixel lies in the input, if it is inside.
pub fn each_tap(geometry: &Conv2dGeometry, [n, _, h, w]: [usize; 4], [oh, ow]: [usize; 2], mut f: impl FnMut(usize, usize, Option<usize>)) {
    let Conv2dGeometry { kernel: [kh, kw], stride, dilation, .. } = *geometry;
    let [top, left, ..] = geometry.pads(h, w).expect("the output's size was computed with it");
    let inside = |at: usize, before: usize, length: usize| at.checked_sub(before).filter(|&at| at < length);
    let mut pixel = 0;
    for (image, y) in (0..n).flat_map(|image| (0..oh).map(move |y| (image, y))) {
        for x in 0..ow {
            for ky in 0..kh {
                let row = inside(y * stride[0] + ky * dilation[0], top, h);
                for kx in 0..kw {
                    let column = inside(x * stride[1] + kx * dilation[1], left, w);
                    f(pixel, ky * kw + kx, row.zip(column).map(|(row, column)| (image * h + row) * w + column));
                }
            }
            pixel += 1;
        }
    }
}

/// The gradient by the weights of a convolution without groups.
fn by_weights(
    geometry: &Conv2dGeometry,
    x: &[f32],
    dims: [usize; 4],
    gradient: &[f32],
    out: [usize; 2],
    run: (&mut Workspace, usize),
) -> Result<Vec<f32>> {
    let [outputs, inputs, kh, kw] = geometry.weight_shape();
    let (pixels, k) = (dims[0] * out[0] * out[1], kh * kw * inputs);
    let mut windows = vec![0.0f32; pixels * k];
    each_tap(geometry, dims, out, |pixel, tap, from| {
        if let Some(from) = from {
            windows[pixel * k + tap * inputs..][..inputs].copy_from_slice(&x[from * inputs..][..inputs]);
        }
    });
    let mut by_taps = vec![0.0; outputs * k];
    multiply(&transposed(gradient, pixels, outputs), &windows, WeightLayout::Kn, [outputs, pixels, k], &mut by_taps, run)?;
    // From [o, taps, i] to [o, i, taps].
    Ok(by_taps.chunks_exact(k.max(1)).flat_map(|filter| transposed(filter, kh * kw, inputs)).collect())
}

impl Differentiable for Conv {
    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let dims @ [n, c, h, w] = x.image_dims()?;
        if c != self.geometry.in_channels {
            return Err(Error::shape("input", format!("[n, {}, h, w]", self.geometry.in_channels), &dims));
        }
        let [oh, ow] = self.geometry.output_size(h, w)?;
        let out = [n, self.geometry.out_channels, oh, ow];
        if run.exact {
            return Array::images(out, wide::forward(&self.geometry, x.data(), dims, [oh, ow], run.parameters));
        }
        let mut y = vec![0.0; out.iter().product()];
        let packed = PackedFloatConv2d::pack(&self.geometry, run.parameters[0])?;
        let epilogue = FloatEpilogue::new().with_bias(run.parameters.get(1).copied());
        conv2d_f32(x.data(), shape(dims), &packed, &epilogue, &mut y, run.workspace, run.threads)?;
        Array::images(out, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let x = float(run.inputs, 0)?;
        let (dims, gradient, [_, _, oh, ow]) = (x.image_dims()?, run.gradient.data(), run.gradient.image_dims()?);
        if run.exact {
            let (by_weights, by_bias, by_images) =
                wide::backward(&self.geometry, x.data(), dims, [oh, ow], run.parameters[0], gradient, run.wanted[0]);
            run.by_parameter = vec![by_weights, by_bias];
            run.by_parameter.truncate(run.parameters.len());
            run.by_input[0] = by_images.map(|data| Array::images(dims, data)).transpose()?;
            return Ok(());
        }
        let by_weights = match self.geometry.groups {
            1 => by_weights(&self.geometry, x.data(), dims, gradient, [oh, ow], (&mut *run.workspace, run.threads))?,
            _ => grouped::by_weights(&self.geometry, x.data(), dims, gradient, [oh, ow]),
        };
        run.by_parameter = vec![by_weights];
        if run.parameters.len() > 1 {
            run.by_parameter.push(column_sums(gradient, self.geometry.out_channels));
        }
        if run.wanted[0] {
            run.by_input[0] = Some(self.by_images(run, dims)?);
        }
        Ok(())
    }
}
