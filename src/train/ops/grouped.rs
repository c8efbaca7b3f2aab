//! Gradients by the weights of convolutions with groups, depthwise ones among them: their products are too narrow for matrices.

use super::conv::each_tap;
use crate::kernels::Conv2dGeometry;

/// `dw[o, i, t] = Σ dy[p, o] · x[.., group(o) + i]`, pixel by pixel.
pub fn by_weights(geometry: &Conv2dGeometry, x: &[f32], dims: [usize; 4], gradient: &[f32], out: [usize; 2]) -> Vec<f32> {
    let [outputs, inputs, kh, kw] = geometry.weight_shape();
    let (taps, channels, per_group) = (kh * kw, geometry.in_channels, outputs / geometry.groups);
    // By tap, so that a pixel's channels add to numbers that lie together.
    let mut by_taps = vec![0.0f32; outputs * inputs * taps];
    each_tap(geometry, dims, out, |pixel, tap, from| {
        let Some(from) = from else { return };
        let (x, gradient) = (&x[from * channels..][..channels], &gradient[pixel * outputs..][..outputs]);
        let sums = &mut by_taps[tap * outputs * inputs..][..outputs * inputs];
        if inputs == 1 && per_group == 1 {
            sums.iter_mut().zip(gradient.iter().zip(x)).for_each(|(sum, (g, x))| *sum += g * x);
            return;
        }
        for (o, (sums, g)) in sums.chunks_exact_mut(inputs).zip(gradient).enumerate() {
            let x = &x[o / per_group * inputs..][..inputs];
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += g * x);
        }
    });
    let at = |filter: usize, tap: usize| by_taps[tap * outputs * inputs + filter];
    (0..outputs * inputs).flat_map(|filter| (0..taps).map(move |tap| at(filter, tap))).collect()
}
