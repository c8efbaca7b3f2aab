//! Products of matrices in memory.

use crate::error::Result;
use crate::kernels::{FloatEpilogue, Matrix, MatrixMut, WeightLayout, Workspace, matmul_f32};
use crate::nn::reorder;

/// `[rows, cols]` as `[cols, rows]`.
pub fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut y = vec![0.0f32; x.len()];
    reorder::transpose(bytemuck::cast_slice(x), size_of::<f32>(), [1, rows, cols], bytemuck::cast_slice_mut(&mut y));
    y
}

/// `dst[m][n] = Σ lhs[m][k] · rhs[k][n]`, with `rhs` as `[k, n]`, or as `[n, k]`.
pub fn multiply(
    lhs: &[f32],
    rhs: &[f32],
    layout: WeightLayout,
    [m, k, n]: [usize; 3],
    dst: &mut [f32],
    (workspace, threads): (&mut Workspace, usize),
) -> Result<()> {
    let rhs = match layout {
        WeightLayout::Kn => Matrix::new(rhs, k, n)?,
        WeightLayout::Nk => Matrix::new(rhs, n, k)?,
    };
    matmul_f32(Matrix::new(lhs, m, k)?, rhs, layout, &FloatEpilogue::new(), MatrixMut::new(dst, m, n)?, workspace, threads)
}

/// The sums of the columns of `[rows, cols]`, row by row.
pub fn column_sums(x: &[f32], cols: usize) -> Vec<f32> {
    let mut sums = vec![0.0f32; cols];
    for row in x.chunks_exact(cols.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums
}
