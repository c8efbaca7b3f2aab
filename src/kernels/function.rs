//! Functions of each element that follow a product or a convolution: applied to a tile that has just been written, while it lies in the
//! first-level cache, or to a strip of an image.

use super::simd::Simd;
use crate::num::math;

/// A function of each element. Its bits are those that the operator by itself gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    /// `x / 2 · (1 + erf(x / √2))`.
    Gelu,
    /// [`Function::Gelu`] by `tanh`.
    GeluTanh,
    /// `x · sigmoid(a x)`.
    Swish(f32),
    /// `x · min(max(x / 6 + 1/2, 0), 1)`.
    HardSwish,
    /// `x` from 0 up, `a x` below.
    LeakyRelu(f32),
}

/// Elements that are worked on together: whole vectors of every instruction set.
const CHUNK: usize = 16;

impl Function {
    /// The function of one element.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Function::Gelu => math::gelu(x),
            Function::GeluTanh => math::gelu_tanh(x),
            Function::Swish(alpha) => math::swish(x, alpha),
            Function::HardSwish => math::hard_swish(x),
            Function::LeakyRelu(alpha) => math::leaky_relu(x, alpha),
        }
    }

    /// Replaces all elements.
    pub fn apply<S: Simd>(self, simd: S, y: &mut [f32]) {
        // SAFETY: they are borrowed as one row.
        unsafe { self.replace(simd, y.as_mut_ptr(), 0, 1, y.len()) }
    }

    /// Replaces `columns` elements in each of `rows` rows, `stride` apart. Not inlined: it would be compiled once for each tile.
    ///
    /// # Safety
    /// `dst` is valid for reads and writes there, and nobody else uses it.
    #[inline(never)]
    pub unsafe fn replace<S: Simd>(self, simd: S, dst: *mut f32, stride: usize, rows: usize, columns: usize) {
        simd.vectorize(
            #[inline(always)]
            || {
                // SAFETY: the caller's promise; rows are taken one at a time.
                let row = |r: usize| unsafe { std::slice::from_raw_parts_mut(dst.add(r * stride), columns) };
                match self {
                    Function::Gelu => (0..rows).for_each(|r| each(row(r), math::gelu)),
                    Function::GeluTanh => (0..rows).for_each(|r| each(row(r), math::gelu_tanh)),
                    Function::Swish(alpha) => (0..rows).for_each(|r| each(row(r), |x| math::swish(x, alpha))),
                    Function::HardSwish => (0..rows).for_each(|r| each(row(r), math::hard_swish)),
                    Function::LeakyRelu(alpha) => (0..rows).for_each(|r| each(row(r), |x| math::leaky_relu(x, alpha))),
                }
            },
        );
    }
}

#[inline(always)]
fn each(row: &mut [f32], f: impl Fn(f32) -> f32) {
    let (chunks, rest) = row.as_chunks_mut::<CHUNK>();
    for y in chunks {
        let mut x = *y;
        for l in 0..CHUNK {
            x[l] = f(x[l]);
        }
        *y = x;
    }
    if !rest.is_empty() {
        let mut x = [0.0; CHUNK];
        x[..rest.len()].copy_from_slice(rest);
        for l in 0..CHUNK {
            x[l] = f(x[l]);
        }
        rest.copy_from_slice(&x[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::kernels::dynamic::{Around, conv2d_dynamic_with, gemm_dynamic_with};
    use crate::kernels::{
        ActivationRule, Conv2dGeometry, Epilogue, FloatEpilogue, ImageLayout, ImageShape, Isa, Matrix, MatrixMut, PackedConv2d,
        PackedFloatConv2d, PackedFloatWeights, PackedWeights, Range, RangeOf, WeightLayout, Workspace, conv2d_f32_with, sgemm_with,
    };

    fn numbers(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| (i * step % 1009) as f32 / 100.0 - 5.0).collect()
    }

    /// Behind a product, on every instruction set, the bits that the function by itself gives.
    #[test]
    fn functions_follow_products() {
        for [m, n, k] in [[1, 1, 3], [3, 17, 8], [40, 70, 65]] {
            let (lhs, weights) = (numbers(m * k, 37), numbers(n * k, 53));
            let codes: Vec<i8> = weights.iter().map(|&x| (20.0 * x) as i8).collect();
            let functions = [
                Function::Gelu,
                Function::GeluTanh,
                Function::Swish(1.0),
                Function::Swish(1.702),
                Function::HardSwish,
                Function::LeakyRelu(0.2),
            ];
            for function in functions {
                for isa in Isa::available() {
                    let float = PackedFloatWeights::pack_for(isa, &weights, n, k, WeightLayout::Nk).unwrap();
                    let int8 = PackedWeights::pack_for(isa, &codes, n, k, WeightLayout::Nk).unwrap();
                    let product = |function: Option<Function>, dynamic: bool| {
                        let mut y = vec![0f32; m * n];
                        let (a, dst) = (Matrix::new(&lhs, m, k).unwrap(), MatrixMut::new(&mut y, m, n).unwrap());
                        if dynamic {
                            let (rule, around) = (ActivationRule::default(), Around { function, ..Around::default() });
                            let epilogue = Epilogue::new(&[0.02]);
                            gemm_dynamic_with(a, RangeOf::Row, (&rule).into(), &int8, &epilogue, around, dst, &mut Workspace::new(), 1)
                                .unwrap();
                        } else {
                            sgemm_with(a, &float, &FloatEpilogue::new(), function, dst, 1).unwrap();
                        }
                        y
                    };
                    for dynamic in [false, true] {
                        let (plain, fused) = (product(None, dynamic), product(Some(function), dynamic));
                        for (x, y) in plain.into_iter().zip(fused) {
                            assert_eq!(y.to_bits(), function.of(x).to_bits(), "{isa:?} {function:?} of {x}, int8 {dynamic}: {y}");
                        }
                    }
                }
            }
        }
    }

    /// Behind a convolution, whichever way it goes, too; and the ranges are those of what is written.
    #[test]
    fn the_same_bits_behind_a_convolution() {
        let of = |i, o, kernel| Conv2dGeometry::new(i, o, kernel);
        let cases = [
            (of(5, 9, [3, 3]).with_padding([1; 4]), 7, 6),
            (of(24, 33, [1, 1]), 5, 9),
            (of(64, 40, [3, 3]).with_stride([2, 2]).with_padding([1; 4]), 40, 40),
            (of(24, 24, [3, 3]).with_groups(3), 6, 8),
            (of(36, 36, [3, 3]).with_groups(36).with_padding([1; 4]), 6, 7),
            (of(33, 33, [3, 3]).with_groups(33).with_stride([2, 2]).with_padding([1, 1, 0, 1]), 12, 105),
            (of(16, 16, [3, 3]).with_groups(16).with_padding([1; 4]), 30, 60),
            (of(4, 8, [2, 2]).with_groups(4), 5, 5),
        ];
        for (case, (geometry, h, w)) in cases.into_iter().enumerate() {
            let layout = [ImageLayout::Nhwc, ImageLayout::Nchw][case / 2 % 2];
            let shape = ImageShape { n: 2, h, w, layout };
            let [oh, ow] = geometry.output_size(h, w).unwrap();
            let input = numbers(2 * geometry.in_channels * h * w, 37);
            let weights = numbers(geometry.weight_shape().iter().product(), 53);
            let codes: Vec<i8> = weights.iter().map(|&x| (20.0 * x) as i8).collect();
            let function = [Function::Swish(1.0), Function::HardSwish, Function::LeakyRelu(0.1)][case % 3];
            for isa in Isa::available() {
                let float = PackedFloatConv2d::pack_for(isa, &geometry, &weights).unwrap();
                let int8 = PackedConv2d::pack_for(isa, &geometry, &codes).unwrap();
                let run = |function: Option<Function>, dynamic: bool, threads: usize| {
                    let mut y = vec![0f32; 2 * geometry.out_channels * oh * ow];
                    let mut ranges = [Range::EMPTY; 2];
                    let (cells, workspace) = (Cell::from_mut(&mut ranges[..]).as_slice_of_cells(), &mut Workspace::new());
                    if dynamic {
                        let (rule, epilogue) = (ActivationRule::default(), Epilogue::new(&[0.02]).with_ranges(Some(cells)));
                        let (rule, images) = ((&rule).into(), RangeOf::Row);
                        conv2d_dynamic_with(&input, shape, images, rule, &int8, &epilogue, function, &mut y, workspace, threads).unwrap();
                    } else {
                        let epilogue = FloatEpilogue::new().with_ranges(Some(cells));
                        conv2d_f32_with(&input, shape, &float, &epilogue, function, &mut y, workspace, threads).unwrap();
                    }
                    (y, ranges)
                };
                for (dynamic, threads) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
                    let ((plain, _), (fused, ranges)) = (run(None, dynamic, threads), run(Some(function), dynamic, threads));
                    for (i, (&x, &y)) in plain.iter().zip(&fused).enumerate() {
                        assert_eq!(
                            y.to_bits(),
                            function.of(x).to_bits(),
                            "{isa:?} {geometry:?} {i}: {function:?} of {x}, int8 {dynamic}: {y}"
                        );
                    }
                    for (image, range) in fused.chunks_exact(fused.len() / 2).zip(ranges) {
                        let ends = image.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &y| (lo.min(y), hi.max(y)));
                        assert_eq!((range.min, range.max, range.finite), (ends.0, ends.1, true), "{isa:?} {geometry:?} {dynamic}");
                    }
                }
            }
        }
    }
}
