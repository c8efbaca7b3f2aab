//! What each output of a convolution is a product of.

use crate::kernels::Conv2dGeometry;
use crate::tensor::Tensor;

/// Output pixels of an image that are looked at, evenly spread: neighbours say nearly the same.
const PIXELS: usize = 256;

/// The inputs under the kernel, `[in / groups, kh, kw]` one after the other as the weights lie, for some output pixels of an image
/// `[n, c, h, w]` and one group of channels.
pub(super) fn patches(x: &Tensor, image: usize, geometry: &Conv2dGeometry, group: usize, rows: &mut Vec<f32>) {
    let &[_, channels, h, w] = x.dims() else { return };
    let Conv2dGeometry { kernel: [kh, kw], stride, dilation, groups, .. } = *geometry;
    let (Ok([oh, ow]), Ok([top, left, ..])) = (geometry.output_size(h, w), geometry.pads(h, w)) else { return };
    let per_group = channels / groups;
    let planes = &x.as_slice()[(image * channels + group * per_group) * h * w..][..per_group * h * w];
    for pixel in (0..oh * ow).step_by((oh * ow).div_ceil(PIXELS).max(1)) {
        let (y, x) = (pixel / ow.max(1) * stride[0], pixel % ow.max(1) * stride[1]);
        for plane in planes.chunks_exact((h * w).max(1)) {
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                let at = (y + ky * dilation[0]).checked_sub(top).zip((x + kx * dilation[1]).checked_sub(left));
                let inside = at.filter(|&(y, x)| y < h && x < w);
                rows.push(inside.map_or(0.0, |(y, x)| plane[y * w + x]));
            }
        }
    }
}
