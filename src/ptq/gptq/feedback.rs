//! Rounding column by column, each column told the errors of those before it.

use super::factor::Factor;
use super::levels::{Grid, Levels, Strip, by_strips};
use crate::error::Result;
use crate::kernels::math::vectorized;
use crate::kernels::{FloatEpilogue, Matrix, MatrixMut, WeightLayout, Workspace, matmul_f32};

/// Columns whose errors are passed on one by one; those of whole blocks go through products.
const BLOCK: usize = 128;

/// Gives every weight the code nearest to `w_j + Σ_{i<j} (w_i - q_i) V_ij`, columns in the factor's order: each part of the rows by its
/// own factor, where it has one.
///
/// # Errors
/// None that a grid which was built can meet.
pub(super) fn round(grid: &mut Grid, factors: &[Option<Factor>], threads: usize) -> Result<()> {
    by_strips(grid, factors.len(), threads, |strip, part| factors[part].as_ref().map_or(Ok(()), |factor| round_strip(strip, factor)))
}

fn round_strip(strip: &mut Strip<'_>, factor: &Factor) -> Result<()> {
    let (d, rows) = (strip.grid().columns, strip.rows.len());
    let levels: Vec<Levels> = (0..strip.groups()).map(|group| strip.levels(group)).collect();
    // `w - q`, columns in the factor's order.
    let mut errors = vec![0f32; rows * d];
    let mut wanted = vec![0f32; rows * BLOCK];
    let mut workspace = Workspace::new();
    for start in (0..d).step_by(BLOCK) {
        let block = start..(start + BLOCK).min(d);
        let width = block.len();
        let wanted = &mut wanted[..rows * width];
        for row in 0..rows {
            for (to, &column) in wanted[row * width..][..width].iter_mut().zip(&factor.order[block.clone()]) {
                *to = strip.exact[row * d + column];
            }
        }
        if start > 0 {
            let lhs = Matrix::new(&errors, rows, start)?.with_stride(d)?;
            let rhs = Matrix::new(&factor.values[start..], start, width)?.with_stride(d)?;
            let dst = MatrixMut::new(wanted, rows, width)?;
            matmul_f32(lhs, rhs, WeightLayout::Kn, &FloatEpilogue::new().with_accumulate(true), dst, &mut workspace, 1)?;
        }
        // The block's part of the factor in one piece: rows of the whole lie so far apart that they drive each other out of the cache.
        let within: Vec<f32> =
            block.clone().flat_map(|position| &factor.values[position * d + block.start..position * d + block.end]).copied().collect();
        let columns = &factor.order[block.clone()];
        let groups = strip.groups_within(columns);
        vectorized(
            #[inline(always)]
            || {
                for row in 0..rows {
                    let wanted = &mut wanted[row * width..][..width];
                    let errors = &mut errors[row * d..][block.clone()];
                    let first = strip.group_of(row, 0);
                    for i in 0..width {
                        let index = row * d + columns[i];
                        let exact = strip.exact[index];
                        // Where nothing came from other columns the code stays that of rounding, ties and all.
                        if wanted[i] != exact && strip.moves(index) {
                            let level = levels[first + groups[i]].nearest(wanted[i]);
                            strip.set(index, level);
                        }
                        let error = exact - strip.values[index];
                        errors[i] = error;
                        if error != 0.0 {
                            let next = &within[i * width + i + 1..(i + 1) * width];
                            wanted[i + 1..].iter_mut().zip(next).for_each(|(to, v)| *to += error * v);
                        }
                    }
                }
            },
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Hessian;
    use super::*;
    use crate::quant::WeightFormat;
    use crate::tensor::Tensor;

    fn hessian(rows: &[f32], width: usize) -> Hessian {
        let mut hessian = Hessian::new(width).unwrap();
        hessian.add(rows, 1).unwrap();
        hessian
    }

    #[test]
    fn independent_inputs_leave_rounding_to_the_nearest() {
        let d = 160;
        let weight = Tensor::new([9, d], (0..9 * d).map(|i| (i as f32 * 1.37).sin()).collect()).unwrap();
        let identity: Vec<f32> = (0..d * d).map(|i| f32::from(u8::from(i % (d + 1) == 0))).collect();
        let together: Vec<f32> = (0..300 * d).map(|i| ((i / d) as f32 * 0.7).sin() + 0.3 * (i as f32 * 0.91).cos()).collect();
        for text in ["int4:g32", "uint3:g16", "offset3:g32", "nf4:g64", "kmeans3:g32", "int8:tensor"] {
            let start = text.parse::<WeightFormat>().unwrap().quantize(&weight).unwrap();
            let of = |rows: &[f32], by_diagonal| {
                let mut grid = Grid::new(&weight, start.clone());
                round(&mut grid, &[Factor::new(&hessian(rows, d), 0.01, by_diagonal, 1)], 1).unwrap();
                grid.quantized().unwrap()
            };
            for by_diagonal in [false, true] {
                assert!(of(&identity, by_diagonal) == start, "{text}");
                assert!(of(&together, by_diagonal) != start, "{text}");
            }
        }
    }
}
