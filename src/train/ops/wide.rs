//! Convolutions and products with wide sums, for fixed point: every product of two numbers of up to 24 bits is exact in f64, and so is
//! a sum of them within its 53 bits. The sum becomes f32 by rounding to odd, after which rounding it to at least two bits fewer gives what
//! rounding the sum itself would: so the format's is the one rounding.
//!
//! A fully connected layer is a convolution of one tap over images of one pixel.

use super::conv::each_tap;
use crate::kernels::Conv2dGeometry;
use crate::kernels::math::vectorized;

/// `x` cut to 24 bits, the last of them set if anything was lost.
fn narrow(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    // The other neighbour is odd.
    if f64::from(near) < x { near.next_up() } else { near.next_down() }
}

pub fn narrowed(sums: &[f64]) -> Vec<f32> {
    sums.iter().map(|&sum| narrow(sum)).collect()
}

/// Weights `[o, i, tap]` as `[tap, i, o]`, or back, in which order a pixel's outputs lie together.
fn by_tap(geometry: &Conv2dGeometry) -> impl Fn(usize, usize, usize) -> (usize, usize) {
    let [outputs, inputs, kh, kw] = geometry.weight_shape();
    move |o, i, tap| ((o * inputs + i) * kh * kw + tap, (tap * inputs + i) * outputs + o)
}

fn each_weight(geometry: &Conv2dGeometry, mut f: impl FnMut(usize, usize)) {
    let ([outputs, inputs, kh, kw], place) = (geometry.weight_shape(), by_tap(geometry));
    for (o, i, tap) in (0..outputs).flat_map(|o| (0..inputs).flat_map(move |i| (0..kh * kw).map(move |tap| (o, i, tap)))) {
        let (from, to) = place(o, i, tap);
        f(from, to);
    }
}

/// Calls `f` for each pixel and tap, with the places of the input's pixel and of the weights, and the outputs of each group.
fn each_product(geometry: &Conv2dGeometry, dims: [usize; 4], out: [usize; 2], mut f: impl FnMut(usize, usize, usize, usize)) {
    let [outputs, inputs, ..] = geometry.weight_shape();
    let per_group = outputs / geometry.groups;
    each_tap(geometry, dims, out, |pixel, tap, from| {
        let Some(from) = from else { return };
        for (group, i) in (0..geometry.groups).flat_map(|group| (0..inputs).map(move |i| (group, i))) {
            let (x, weights) = (from * geometry.in_channels + group * inputs + i, (tap * inputs + i) * outputs + group * per_group);
            f(x, weights, pixel * outputs + group * per_group, per_group);
        }
    });
}

/// The outputs of all pixels.
pub fn forward(geometry: &Conv2dGeometry, x: &[f32], dims: [usize; 4], out: [usize; 2], parameters: &[&[f32]]) -> Vec<f32> {
    let (outputs, mut weights) = (geometry.out_channels, vec![0.0f64; parameters[0].len()]);
    each_weight(geometry, |from, to| weights[to] = parameters[0][from].into());
    let mut sums = vec![0.0f64; dims[0] * out[0] * out[1] * outputs];
    if let Some(bias) = parameters.get(1) {
        sums.chunks_exact_mut(outputs.max(1)).for_each(|sums| sums.iter_mut().zip(*bias).for_each(|(sum, &b)| *sum = b.into()));
    }
    each_product(geometry, dims, out, |at, weight, y, count| {
        add_scaled(&mut sums[y..y + count], f64::from(x[at]), &weights[weight..weight + count]);
    });
    narrowed(&sums)
}

/// `sums += factor · x`.
fn add_scaled(sums: &mut [f64], factor: f64, x: &[f64]) {
    vectorized(
        #[inline(always)]
        || sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x),
    );
}

/// `sums[m][n] += Σ lhs[m][k] · rhs[k][n]`.
pub fn add_product(lhs: &[f32], rhs: &[f32], [m, k, n]: [usize; 3], sums: &mut [f64]) {
    let rhs: Vec<f64> = rhs.iter().map(|&x| x.into()).collect();
    for (row, step) in (0..m).flat_map(|row| (0..k).map(move |step| (row, step))) {
        add_scaled(&mut sums[row * n..][..n], f64::from(lhs[row * k + step]), &rhs[step * n..][..n]);
    }
}

/// Gradients by weights, bias, and the input where it is wanted.
pub fn backward(
    geometry: &Conv2dGeometry,
    x: &[f32],
    dims: [usize; 4],
    out: [usize; 2],
    weights: &[f32],
    gradient: &[f32],
    wanted: bool,
) -> (Vec<f32>, Vec<f32>, Option<Vec<f32>>) {
    let gradient: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
    let (mut by_tap, mut turned) = (vec![0.0f64; weights.len()], vec![0.0f64; weights.len()]);
    each_weight(geometry, |from, to| turned[to] = weights[from].into());
    let mut by_input = vec![0.0f64; if wanted { x.len() } else { 0 }];
    each_product(geometry, dims, out, |at, weight, y, count| {
        let gradient = &gradient[y..y + count];
        add_scaled(&mut by_tap[weight..weight + count], f64::from(x[at]), gradient);
        if wanted {
            by_input[at] += gradient.iter().zip(&turned[weight..weight + count]).map(|(g, w)| g * w).sum::<f64>();
        }
    });
    let mut by_weights = vec![0.0; weights.len()];
    each_weight(geometry, |to, from| by_weights[to] = narrow(by_tap[from]));
    let mut by_bias = vec![0.0f64; geometry.out_channels];
    for row in gradient.chunks_exact(geometry.out_channels.max(1)) {
        by_bias.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
    }
    (by_weights, narrowed(&by_bias), wanted.then(|| narrowed(&by_input)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_odd_and_then_to_less_is_rounding_once() {
        // One half of a step and a little: in f32 the little is lost, and ties go to the even side.
        let step = f64::from(2f32.powi(-14));
        for (x, expected) in [(1.0 + step / 2.0 + 1e-12, 1.0 + step), (1.0 + step / 2.0 - 1e-12, 1.0), (3.0 * step / 2.0, 2.0 * step)] {
            let rounded = (f64::from(narrow(x)) / step).round_ties_even() * step;
            assert_eq!(rounded, expected, "{x}");
        }
        assert_eq!([narrow(0.75), narrow(-3.0), narrow(0.0), narrow(f64::INFINITY)], [0.75, -3.0, 0.0, f32::INFINITY]);
    }
}
