//! Products of matrices: `dst = stage((lhs - zero_point) * weights^T)`.

use super::ingest;
use super::isa::Visitor;
use super::operand::{ActivationCode, Codes, Matrix, MatrixMut, Per, check_product, check_threads, check_zero_points};
use super::output::{IntegerStage, Integers, OutputStage};
use super::pack::PackedWeights;
use super::product::{Product, Rows};
use super::simd::{Dot, Element, Simd};
use super::tile::Segment;
use super::workspace::Workspace;
use crate::error::Result;

/// `dst[m][n] = stage(sum over k of (lhs[m][k] - zero_point) * weight[n][k])`.
///
/// The sum is exact and the same, bit for bit, on every instruction set and for any number of threads; the stage
/// ([`Accumulate`](super::Accumulate), [`Dequantize`](super::Dequantize) or [`Requantize`](super::Requantize)) runs in registers.
/// `threads` is an upper bound: small products run on the caller's thread alone.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the matrices do not fit the weights, [`Error::ZeroPoint`](crate::Error::ZeroPoint)
/// for a zero
/// point that is not a code of `T`, [`Error::Length`](crate::Error::Length) for the wrong number of zero points
/// or stage parameters, [`Error::Parameter`](crate::Error::Parameter) for `threads == 0`.
pub fn gemm<T: ActivationCode, S: OutputStage>(
    lhs: Matrix<'_, T>,
    zero_point: Per<'_, i32>,
    weights: &PackedWeights,
    stage: &S,
    mut dst: MatrixMut<'_, S::Element>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    check_product(&lhs, &dst, weights.n(), weights.k())?;
    check_zero_points::<T>(zero_point, lhs.rows())?;
    stage.check(weights.n(), lhs.rows(), weights.k())?;
    stage.gemm(GemmCall {
        codes: T::erase(lhs.data()),
        m: lhs.rows(),
        stride: lhs.stride(),
        zero_point,
        weights,
        dst: dst.as_mut_ptr(),
        dst_stride: dst.stride(),
        workspace,
        threads,
    });
    Ok(())
}

/// The checked arguments of [`gemm`]. Public only as an argument of a hidden method.
pub struct GemmCall<'a, E> {
    codes: Codes<'a>,
    m: usize,
    stride: usize,
    zero_point: Per<'a, i32>,
    weights: &'a PackedWeights,
    dst: *mut E,
    dst_stride: usize,
    workspace: &'a mut Workspace,
    threads: usize,
}

impl<E: Copy + Send + Sync> GemmCall<'_, E> {
    pub(super) fn run<T: IntegerStage<Element = E>>(self, stage: T) {
        self.weights.isa().visit(GemmVisit { call: self, stage })
    }
}

struct GemmVisit<'a, E, T> {
    call: GemmCall<'a, E>,
    stage: T,
}

impl<T: IntegerStage> Visitor for GemmVisit<'_, T::Element, T> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let GemmCall { codes, m, stride, zero_point, weights, dst, dst_stride, workspace, threads } = self.call;
        let Workspace { codes: memory, zero_points, .. } = workspace;
        let zero = codes.zero(zero_point, zero_points);
        let k = weights.k();
        let (lhs, row) = match Element::in_place(codes) {
            // Whole words only: the last word of a shorter row would be read beyond the slice.
            Some(lhs) if k % S::Int8::KU == 0 => (lhs, stride),
            _ => {
                let row = k.next_multiple_of(S::Int8::KU);
                (ingest::rows_of_codes(simd, codes, (m, k, stride), memory.grow(m * row), row, threads), row)
            }
        };
        let product = Product::<S, S::Int8, _> {
            simd,
            lhs: lhs.as_ptr(),
            rows: Rows::Strided { stride: row },
            m,
            segments: &[Segment { offset: 0, words: k.div_ceil(S::Int8::KU) }],
            group_step: 0,
            panels: weights.panels(),
            zero,
            store: Integers(self.stage),
            dst,
            dst_stride,
        };
        // SAFETY: the caller's matrices and stage were checked against the weights; each row has whole words.
        unsafe { product.run(threads) }
    }
}
