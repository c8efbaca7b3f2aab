//! The kernels' meaning, in loops that can be read at a glance. Every kernel of every instruction set equals these bit
//! for bit (float products: within rounding). Slow, unchecked beyond slice bounds, and public so that others can test
//! against them too.

use super::dequantize::Dequantize;
use super::float::FloatEpilogue;
use super::geometry::{Conv2dGeometry, ImageLayout, ImageShape};
use super::lowbit::{Levels, LowBit, LowBitRange};
use super::operand::{ActivationCode, Per};
use super::output::Activation;
use super::requantize::Requantize;
use crate::num::{self, U8Grid};

/// `sum over k of (lhs[m][k] - zero_point) * weights[n][k]`, `[m, n]`.
///
/// # Panics
/// When a slice is too short.
pub fn gemm<T: ActivationCode>(lhs: &[T], m: usize, k: usize, zero_point: Per<'_, i32>, weights: &[i8], n: usize) -> Vec<i32> {
    let mut dst = Vec::with_capacity(m * n);
    for row in 0..m {
        for column in 0..n {
            dst.push((0..k).map(|i| (lhs[row * k + i].to_i32() - zero_point.get(row)) * i32::from(weights[column * k + i])).sum());
        }
    }
    dst
}

/// `sum over k of (lhs[m][k] - zero_point) * (weights[n][k] - weight_zero_points[n])` in 64 bits, `[m, n]`; without zero points of
/// weights, they are 0.
///
/// # Panics
/// When a slice is too short.
pub fn gemm_i64<T: ActivationCode>(
    lhs: &[T],
    (m, n, k): (usize, usize, usize),
    zero_point: Per<'_, i32>,
    weights: &[i8],
    weight_zero_points: &[i8],
) -> Vec<i64> {
    let mut dst = Vec::with_capacity(m * n);
    for row in 0..m {
        for column in 0..n {
            let zero = i64::from(weight_zero_points.get(column).copied().unwrap_or(0));
            let product =
                |i: usize| i64::from(lhs[row * k + i].to_i32() - zero_point.get(row)) * (i64::from(weights[column * k + i]) - zero);
            dst.push((0..k).map(product).sum());
        }
    }
    dst
}

/// `activation(sum over k of lhs[m][k] * weights[n][k] + bias[n])` in f64, `[m, n]`.
///
/// # Panics
/// When a slice is too short.
pub fn gemm_f64(lhs: &[f32], m: usize, k: usize, weights: &[f32], n: usize, bias: Option<&[f32]>, activation: Activation) -> Vec<f64> {
    let mut dst = Vec::with_capacity(m * n);
    for row in 0..m {
        for column in 0..n {
            let sum: f64 = (0..k).map(|i| f64::from(lhs[row * k + i]) * f64::from(weights[column * k + i])).sum();
            dst.push(clamp(sum + bias.map_or(0.0, |bias| f64::from(bias[column])), activation));
        }
    }
    dst
}

/// `sum over taps and channels of (input - zero_point) * weight` of OIHW weights, NHWC.
///
/// # Panics
/// When a slice is too short or the geometry does not fit the images.
pub fn conv2d<T: ActivationCode>(
    input: &[T],
    shape: ImageShape,
    zero_point: Per<'_, i32>,
    geometry: &Conv2dGeometry,
    weights: &[i8],
) -> Vec<i32> {
    windows(shape, geometry, |image, _, taps| {
        taps.map(|(pixel, weight)| (input[pixel].to_i32() - zero_point.get(image)) * i32::from(weights[weight])).sum()
    })
}

/// `activation(sum over taps and channels of input * weight + bias)` in f64, of OIHW weights, NHWC.
///
/// # Panics
/// When a slice is too short or the geometry does not fit the images.
pub fn conv2d_f64(
    input: &[f32],
    shape: ImageShape,
    geometry: &Conv2dGeometry,
    weights: &[f32],
    bias: Option<&[f32]>,
    activation: Activation,
) -> Vec<f64> {
    windows(shape, geometry, |_, channel, taps| {
        let sum: f64 = taps.map(|(pixel, weight)| f64::from(input[pixel]) * f64::from(weights[weight])).sum();
        clamp(sum + bias.map_or(0.0, |bias| f64::from(bias[channel])), activation)
    })
}

/// `f(image, output channel, pairs of input and weight index)` for each output in NHWC order; padding has no pair.
fn windows<R>(
    shape: ImageShape,
    geometry: &Conv2dGeometry,
    f: impl Fn(usize, usize, &mut dyn Iterator<Item = (usize, usize)>) -> R,
) -> Vec<R> {
    let [oh, ow] = geometry.output_size(shape.h, shape.w).expect("a geometry that fits the images");
    let [top, left, ..] = geometry.pads(shape.h, shape.w).expect("a geometry that fits the images");
    let [_, channels, kh, kw] = geometry.weight_shape();
    let mut dst = Vec::with_capacity(shape.n * oh * ow * geometry.out_channels);
    for (image, oy, ox) in (0..shape.n).flat_map(|i| (0..oh).flat_map(move |y| (0..ow).map(move |x| (i, y, x)))) {
        for out in 0..geometry.out_channels {
            let group = out / (geometry.out_channels / geometry.groups);
            let mut taps = (0..channels * kh * kw).filter_map(|i| {
                let (c, ky, kx) = (i / (kh * kw), i / kw % kh, i % kw);
                let y = (oy * geometry.stride[0] + ky * geometry.dilation[0]).checked_sub(top).filter(|&y| y < shape.h)?;
                let x = (ox * geometry.stride[1] + kx * geometry.dilation[1]).checked_sub(left).filter(|&x| x < shape.w)?;
                let c = group * channels + c;
                let pixel = match shape.layout {
                    ImageLayout::Nchw => ((image * geometry.in_channels + c) * shape.h + y) * shape.w + x,
                    ImageLayout::Nhwc => ((image * shape.h + y) * shape.w + x) * geometry.in_channels + c,
                };
                Some((pixel, out * channels * kh * kw + i))
            });
            dst.push(f(image, out, &mut taps));
        }
    }
    dst
}

/// The stage [`Dequantize`] of sums `[.., n]`, where `rows` rows share a scale (1 in a product, the pixels of an image in a
/// convolution), into `dst`.
///
/// # Panics
/// When the stage has fewer parameters than the sums need, or `dst` fewer elements.
pub fn dequantize(sums: &[impl Copy + Into<i64>], n: usize, rows: usize, stage: &Dequantize<'_>, dst: &mut [f32]) {
    for (i, &sum) in sums.iter().enumerate() {
        let (row, column) = (i / n / rows, i % n);
        let mut x = sum.into() as f32 * (stage.lhs_scale.get(row) * one_or(stage.weight_scale, column));
        if let Some(bias) = stage.bias {
            x += bias[column];
        }
        if stage.accumulate {
            x += dst[i];
        }
        dst[i] = stage.activation.apply(x);
    }
}

/// The stage [`Requantize`] of sums `[.., n]`.
///
/// # Panics
/// When the stage has fewer parameters than the sums need.
pub fn requantize<T: ActivationCode>(sums: &[impl Copy + Into<i64>], n: usize, stage: &Requantize<'_, T>) -> Vec<T> {
    let code = |(i, sum): (usize, i64)| {
        let mut x = (sum + stage.bias.map_or(0, |bias| i64::from(bias[i % n]))) as f32 * one_or(stage.multiplier, i % n);
        if let Some(residual) = &stage.residual {
            x += (residual.codes.row(i / n)[i % n].to_i32() - residual.zero_point) as f32 * residual.multiplier;
        }
        T::from_i32(num::round_clamped(x, stage.qmin - stage.zero_point, stage.qmax - stage.zero_point) + stage.zero_point)
    };
    sums.iter().map(|&sum| sum.into()).enumerate().map(code).collect()
}

fn one_or(values: &[f32], column: usize) -> f32 {
    if values.len() == 1 { values[0] } else { values[column] }
}

fn clamp(x: f64, activation: Activation) -> f64 {
    let (lo, hi) = activation.bounds();
    let x = if f64::from(lo) > x { lo.into() } else { x };
    if f64::from(hi) < x { hi.into() } else { x }
}

/// The code of `x`, a distance from the zero point of `out` in its scale, within `range`.
fn code(x: f32, out: U8Grid, range: [u8; 2]) -> u8 {
    let zero = i32::from(out.zero_point());
    (num::round_clamped(x, i32::from(range[0]) - zero, i32::from(range[1]) - zero) + zero) as u8
}

/// `code - zero_point`.
fn distance(code: u8, grid: U8Grid) -> i32 {
    i32::from(code) - i32::from(grid.zero_point())
}

/// [`Pairwise::sum`](super::Pairwise::sum) of codes on the first two grids, on the third.
///
/// # Panics
/// When `b` is shorter than `a`.
pub fn add_codes(a: &[u8], b: &[u8], [ga, gb, out]: [U8Grid; 3], range: [u8; 2]) -> Vec<u8> {
    let (ma, mb) = (ga.scale() / out.scale(), gb.scale() / out.scale());
    let sum = |i: usize| distance(a[i], ga) as f32 * ma + distance(b[i], gb) as f32 * mb;
    (0..a.len()).map(|i| code(sum(i), out, range)).collect()
}

/// [`Pairwise::product`](super::Pairwise::product) of codes on the first two grids, on the third.
///
/// # Panics
/// When `b` is shorter than `a`.
pub fn multiply_codes(a: &[u8], b: &[u8], [ga, gb, out]: [U8Grid; 3], range: [u8; 2]) -> Vec<u8> {
    let multiplier = ga.scale() * gb.scale() / out.scale();
    let product = |i: usize| (distance(a[i], ga) * distance(b[i], gb)) as f32 * multiplier;
    (0..a.len()).map(|i| code(product(i), out, range)).collect()
}

/// The mean of the codes that lie inside a window of `count` pixels, as the integer poolings have it.
pub fn mean_code(inside: impl Iterator<Item = u8>, count: usize, x: U8Grid, out: U8Grid) -> u8 {
    let (mut sum, mut taps) = (0i64, 0i64);
    inside.for_each(|code| (sum, taps) = (sum + i64::from(code), taps + 1));
    if taps == 0 {
        return out.zero_point();
    }
    code((sum - taps * i64::from(x.zero_point())) as f32 * (x.scale() / (out.scale() * count as f32)), out, [0, 255])
}

/// The sums of a column's groups, each made by `sum` of (step of k, level), scaled and added in order by `add(group, sum, scale, total)`. A
/// level of a table is its index.
fn low_bit_sum<T: Default>(
    weights: &LowBit<'_>,
    column: usize,
    add: impl Fn(usize, T, f32, T) -> T,
    sum: impl Fn(&mut dyn Iterator<Item = (usize, i32)>) -> T,
) -> T {
    let (k, group) = (weights.k, weights.group());
    let groups = k.div_ceil(group);
    (0..groups).fold(T::default(), |total, g| {
        let zero_point = match weights.levels {
            Levels::Signed => weights.flip(),
            Levels::ZeroPoint(zero) => zero,
            Levels::ZeroPoints(zeros) => zeros[column * groups + g],
            Levels::Table(_) => 0,
        };
        let level = |i: usize| i32::from(weights.code(column * k + i) ^ weights.flip()) - i32::from(zero_point);
        let mut steps = (g * group..k.min((g + 1) * group)).map(|i| (i, level(i)));
        add(g, sum(&mut steps), weights.scales.get(column * groups + g), total)
    })
}

/// [`gemm_low_bit`](super::gemm_low_bit) of `m` rows of finite numbers, into `dst`.
///
/// # Panics
/// When a slice is too short.
pub fn gemm_low_bit(lhs: &[f32], m: usize, range: LowBitRange, weights: &LowBit<'_>, epilogue: &FloatEpilogue<'_>, dst: &mut [f32]) {
    let (n, k) = (weights.n, weights.k);
    // A table in signed bytes.
    let (entries, unit) = match weights.levels {
        Levels::Table(table) => {
            let largest = table.iter().fold(0f32, |largest, x| if x.abs() > largest { x.abs() } else { largest });
            let unit = if largest / 127.0 > 0.0 { largest / 127.0 } else { 1.0 };
            (table.iter().map(|x| num::round_clamped(x / unit, -127, 127)).collect(), unit)
        }
        _ => (Vec::new(), 1.0),
    };
    for row in 0..m {
        let x = &lhs[row * k..][..k];
        let run = if range == LowBitRange::Group { weights.group() } else { k.max(1) };
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for x in x.chunks(run) {
            let (min, max) = x.iter().fold((x[0], x[0]), |(min, max), &x| (min.min(x), max.max(x)));
            let of_zeros = min >= 0.0 && max <= 0.0;
            let (scale, zero) = if of_zeros { (1.0, 128) } else { num::affine_qparams(min, max, 1, 255, false) };
            codes.extend(x.iter().map(|&x| num::quantize(x, scale, zero, 1, 255) - 128));
            scales.push(scale * unit);
            zeros.push((zero - 128) as f32);
        }
        let weight = |level: i32| if entries.is_empty() { level } else { entries[level as usize] };
        for column in 0..n {
            let [products, ones] = low_bit_sum(
                weights,
                column,
                |group, [products, ones], scale, [all_products, all_ones]: [f32; 2]| match scales.len() {
                    // Those of the row are taken out of the sums.
                    1 => [all_products + products * scale, all_ones + ones * scale],
                    _ => [all_products + (products - ones * zeros[group]) * (scale * scales[group]), 0.0],
                },
                |steps| {
                    let add = |[products, ones]: [i32; 2], (i, level)| [products + codes[i] * weight(level), ones + weight(level)];
                    steps.fold([0; 2], add).map(|sum| sum as f32)
                },
            );
            let sum = if let ([zero], [scale]) = (&zeros[..], &scales[..]) { (products - ones * zero) * scale } else { products };
            float_stage(sum, column, epilogue, &mut dst[row * n + column]);
        }
    }
}

/// [`gemm_low_bit_f32`](super::gemm_low_bit_f32) of `m` rows, into `dst`, with each product rounded before it is added, or fused.
///
/// # Panics
/// When a slice is too short.
pub fn gemm_low_bit_f32(lhs: &[f32], m: usize, weights: &LowBit<'_>, fused: bool, epilogue: &FloatEpilogue<'_>, dst: &mut [f32]) {
    let (n, k) = (weights.n, weights.k);
    let mul_add = |a: f32, b: f32, c: f32| if fused { a.mul_add(b, c) } else { a * b + c };
    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        let sum = low_bit_sum(
            weights,
            column,
            |_, sum, scale, total| mul_add(sum, scale, total),
            |steps| {
                let [even, odd] = steps.fold([0f32; 2], |mut sums, (i, level)| {
                    let level = if let Levels::Table(table) = weights.levels { table[level as usize] } else { level as f32 };
                    sums[i % 2] = mul_add(lhs[row * k + i], level, sums[i % 2]);
                    sums
                });
                even + odd
            },
        );
        float_stage(sum, column, epilogue, &mut dst[row * n + column]);
    }
}

fn float_stage(sum: f32, column: usize, epilogue: &FloatEpilogue<'_>, dst: &mut f32) {
    let mut x = sum;
    if let Some(bias) = epilogue.bias {
        x += bias[column];
    }
    if epilogue.accumulate {
        x += *dst;
    }
    *dst = epilogue.activation.apply(x);
}
