//! Products of two float matrices that both come at run time: the right one is packed in the call.

use super::dequantize::FloatStage;
use super::dot::Float;
use super::float::{FloatEpilogue, report_rows};
use super::isa::{Isa, Visitor};
use super::operand::{Matrix, MatrixMut};
use super::pack::{PanelLayout, Panels};
use super::product::{Product, Rows};
use super::simd::Simd;
use super::tile::{Segment, Start, Zero};
use super::weights::WeightLayout;
use super::workspace::Workspace;
use crate::error::Result;

/// `dst[m][n] = activation(sum over k of lhs[m][k] * rhs[k][n] + bias[n] + dst[m][n])` in f32, by `epilogue`, with `rhs` as `[k, n]` ([`WeightLayout::Kn`]) or as `[n, k]`
/// ([`WeightLayout::Nk`]).
///
/// Each output is one sum over k in order, as in [`sgemm`](super::sgemm), which is for weights that stay the same.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the matrices do not fit, [`Error::Length`](crate::Error::Length) for a bias of the wrong
/// length, [`Error::Parameter`](crate::Error::Parameter) for `threads == 0` or an empty clamp.
pub fn matmul_f32(
    lhs: Matrix<'_, f32>,
    rhs: Matrix<'_, f32>,
    layout: WeightLayout,
    epilogue: &FloatEpilogue<'_>,
    mut dst: MatrixMut<'_, f32>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let (k, n) = match layout {
        WeightLayout::Kn => (rhs.rows(), rhs.cols()),
        WeightLayout::Nk => (rhs.cols(), rhs.rows()),
    };
    let stage = epilogue.checked_stage(&lhs, &dst, [n, k], threads)?;
    let isa = Isa::best();
    if dst.is_empty() {
        report_rows(epilogue.ranges, &dst, isa);
        return Ok(());
    }
    let mut panels = Panels::in_memory(std::mem::take(&mut workspace.panels), PanelLayout::float(isa), n, k);
    let (pointer, stride) = (dst.as_mut_ptr(), dst.stride());
    isa.visit(Multiply { lhs, rhs: (rhs, layout), panels: &mut panels, k, stage, dst: pointer, dst_stride: stride, threads });
    workspace.panels = panels.into_memory();
    report_rows(epilogue.ranges, &dst, isa);
    Ok(())
}

/// Packs a right-hand side.
pub(super) fn fill<S: Simd>(simd: S, panels: &mut Panels<f32>, (rhs, layout): (Matrix<'_, f32>, WeightLayout)) {
    match layout {
        WeightLayout::Kn => panels.fill_rows(|k| rhs.row(k)),
        WeightLayout::Nk => panels.fill_columns(simd, |n| rhs.row(n)),
    }
}

struct Multiply<'a> {
    lhs: Matrix<'a, f32>,
    rhs: (Matrix<'a, f32>, WeightLayout),
    panels: &'a mut Panels<f32>,
    k: usize,
    stage: FloatStage<'a>,
    dst: *mut f32,
    dst_stride: usize,
    threads: usize,
}

impl Visitor for Multiply<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        fill(simd, self.panels, self.rhs);
        let product = Product::<S, Float, _> {
            simd,
            lhs: self.lhs.data().as_ptr(),
            rows: Rows::Strided { stride: self.lhs.stride(), first: 0 },
            m: self.lhs.rows(),
            segments: &[Segment { offset: 0, words: self.k }],
            group_step: 0,
            panels: self.panels,
            start: Start::new(Zero::Tensor(0)),
            store: self.stage,
            dst: self.dst,
            dst_stride: self.dst_stride,
        };
        // SAFETY: the matrices and the stage were checked against each other; a word is one float, so nothing is read beyond a row.
        unsafe { product.run(self.threads) }
    }
}
