//! Functions of each element that follow a product: applied to what a tile has just written, while it lies in the first-level cache.

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
        }
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
    use super::*;
    use crate::kernels::dynamic::{Around, gemm_dynamic_with};
    use crate::kernels::{
        ActivationRule, Epilogue, FloatEpilogue, Isa, Matrix, MatrixMut, PackedFloatWeights, PackedWeights, RangeOf, WeightLayout,
        Workspace, sgemm_with,
    };

    /// Behind a product, on every instruction set, the bits that the function by itself gives.
    #[test]
    fn functions_follow_products() {
        for [m, n, k] in [[1, 1, 3], [3, 17, 8], [40, 70, 65]] {
            let numbers = |len: usize, step: usize| (0..len).map(|i| (i * step % 1009) as f32 / 100.0 - 5.0).collect::<Vec<f32>>();
            let (lhs, weights) = (numbers(m * k, 37), numbers(n * k, 53));
            let codes: Vec<i8> = weights.iter().map(|&x| (20.0 * x) as i8).collect();
            for function in [Function::Gelu, Function::GeluTanh, Function::Swish(1.0), Function::Swish(1.702)] {
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
}
