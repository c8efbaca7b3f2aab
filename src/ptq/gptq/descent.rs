//! Coordinate descent: codes and scales moved one by one to where the error of the outputs is least.

use std::ops::Range;

use super::hessian::Products;
use super::levels::{Grid, Levels, Strip, by_strips};
use crate::error::Result;
use crate::kernels::math::vectorized;

/// Columns whose gradients are kept up to date together.
const BLOCK: usize = 128;

/// A step that gives less than this share of a coordinate's own error is not taken: it would be the rounding of f32.
const LEAST: f32 = 1e-6;

/// Once over all columns, group by group its codes, then its scale, then its codes again: each part of the rows by its own Hessian.
///
/// # Errors
/// None that a grid which was built can meet.
pub(super) fn sweep(grid: &mut Grid, hessians: &[Products<'_>], threads: usize) -> Result<()> {
    by_strips(grid, hessians.len(), threads, |strip, part| sweep_strip(strip, &mut hessians[part].beside()))
}

fn sweep_strip(strip: &mut Strip<'_>, products: &mut Products<'_>) -> Result<()> {
    let (d, group) = (strip.grid().columns, strip.grid().group);
    let mut errors: Vec<f32> = strip.values.iter().zip(strip.exact).map(|(q, w)| q - w).collect();
    products.track(&errors)?;
    let fits = strip.grid().fits_scales();
    for start in (0..d).step_by(group) {
        let columns = start..(start + group).min(d);
        if columns.len() <= BLOCK {
            // What changes in the group changes the group's gradients by products within it.
            let before = part(&errors, d, &columns);
            let mut gradients = products.of_tracked(&errors, columns.clone())?.to_vec();
            move_codes(strip, &mut errors, products, columns.clone(), &mut gradients);
            if fits && fit_scales(strip, &mut errors, products, columns.clone(), &mut gradients)? {
                move_codes(strip, &mut errors, products, columns.clone(), &mut gradients);
            }
            changed(products, &errors, before, d, columns)?;
            continue;
        }
        move_blocks(strip, &mut errors, products, columns.clone())?;
        if fits {
            let before = part(&errors, d, &columns);
            let mut gradients = products.of_tracked(&errors, columns.clone())?.to_vec();
            let moved = fit_scales(strip, &mut errors, products, columns.clone(), &mut gradients)?;
            changed(products, &errors, before, d, columns.clone())?;
            if moved {
                move_blocks(strip, &mut errors, products, columns)?;
            }
        }
    }
    Ok(())
}

/// These columns of rows of `d`.
fn part(errors: &[f32], d: usize, columns: &Range<usize>) -> Vec<f32> {
    errors.chunks_exact(d).flat_map(|row| row[columns.clone()].iter().copied()).collect()
}

/// Tells what the errors of these columns were before.
fn changed(products: &mut Products<'_>, errors: &[f32], mut before: Vec<f32>, d: usize, columns: Range<usize>) -> Result<()> {
    let now = errors.chunks_exact(d).flat_map(|row| &row[columns.clone()]);
    before.iter_mut().zip(now).for_each(|(x, now)| *x = now - *x);
    products.changed(&before, columns)
}

/// [`move_codes`] of more columns than gradients are kept for.
fn move_blocks(strip: &mut Strip<'_>, errors: &mut [f32], products: &mut Products<'_>, columns: Range<usize>) -> Result<()> {
    let d = strip.grid().columns;
    for start in columns.clone().step_by(BLOCK) {
        let block = start..(start + BLOCK).min(columns.end);
        let before = part(errors, d, &block);
        let mut gradients = products.of_tracked(errors, block.clone())?.to_vec();
        move_codes(strip, errors, products, block.clone(), &mut gradients);
        changed(products, errors, before, d, block)?;
    }
    Ok(())
}

/// Each code of these columns of a group in turn to the level nearest to where its row's error is least. `gradients` are `errors · H`, of
/// these columns, and are kept so.
fn move_codes(strip: &mut Strip<'_>, errors: &mut [f32], products: &Products<'_>, columns: Range<usize>, gradients: &mut [f32]) {
    let (d, rows, width) = (strip.grid().columns, strip.rows.len(), columns.len());
    // In one piece, as in the feedback.
    let h: Vec<f32> =
        columns.clone().flat_map(|column| &products.values()[column * d + columns.start..column * d + columns.end]).copied().collect();
    let levels: Vec<Levels> = (0..rows).map(|row| strip.levels(strip.group_of(row, columns.start))).collect();
    vectorized(
        #[inline(always)]
        || {
            for (row, levels) in levels.iter().enumerate() {
                let gradients = &mut gradients[row * width..][..width];
                for i in 0..width {
                    let (index, curvature) = (row * d + columns.start + i, h[i * width + i]);
                    if curvature <= 0.0 || !strip.moves(index) {
                        continue;
                    }
                    let old = strip.values[index];
                    let level = levels.nearest(old - gradients[i] / curvature);
                    let step = level.0 - old;
                    let gain = -step * (2.0 * gradients[i] + step * curvature);
                    if gain <= LEAST * curvature * step * step {
                        continue;
                    }
                    strip.set(index, level);
                    errors[index] = level.0 - strip.exact[index];
                    let neighbours = &h[i * width..(i + 1) * width];
                    gradients.iter_mut().zip(neighbours).for_each(|(gradient, h)| *gradient += step * h);
                }
            }
        },
    );
}

/// The scale of these columns' group (and its offset) to where each row's error is least, as far as the scale's format can say it. Says
/// whether any moved; `gradients` are kept as in [`move_codes`].
///
/// With `c` the group's numbers before the scale, a step `t` of the scale changes the error by `2 t cᵀg + t² cᵀHc`. An offset is a
/// scale of ones.
fn fit_scales(
    strip: &mut Strip<'_>,
    errors: &mut [f32],
    products: &mut Products<'_>,
    columns: Range<usize>,
    gradients: &mut [f32],
) -> Result<bool> {
    let (d, rows, width) = (strip.grid().columns, strip.rows.len(), columns.len());
    let mut moved = false;
    for of_offset in [false, true].into_iter().take(1 + usize::from(strip.grid().has_offsets())) {
        let mut numbers = vec![0f32; rows * width];
        for (row, numbers) in numbers.chunks_exact_mut(width).enumerate() {
            let indices = row * d + columns.start..row * d + columns.end;
            match of_offset {
                false => numbers.copy_from_slice(&strip.unscaled(strip.group_of(row, columns.start), indices)),
                true => numbers.iter_mut().zip(indices).for_each(|(one, index)| *one = f32::from(u8::from(strip.moves(index)))),
            }
        }
        let curved = products.within(&numbers, columns.clone())?;
        for row in 0..rows {
            let (indices, part) = (row * d + columns.start..row * d + columns.end, row * width..(row + 1) * width);
            let (c, curved) = (&numbers[part.clone()], &curved[part.clone()]);
            let dot = |x: &[f32]| c.iter().zip(x).map(|(&c, &x)| f64::from(c) * f64::from(x)).sum::<f64>();
            let (slope, curvature) = (dot(&gradients[part.clone()]), dot(curved));
            if curvature <= 0.0 {
                continue;
            }
            let group = strip.group_of(row, columns.start);
            let (scale, offset) = (strip.scale(group), strip.offset(group));
            let old = if of_offset { offset } else { scale };
            let new = strip.grid().rounded((f64::from(old) - slope / curvature) as f32);
            let step = f64::from(new) - f64::from(old);
            // A scale of zero would make all codes one.
            let allowed = new.is_finite() && (of_offset || new != 0.0);
            if !allowed || step * (2.0 * slope + step * curvature) >= -f64::from(LEAST) * step * step * curvature {
                continue;
            }
            let (scale, offset) = if of_offset { (scale, new) } else { (new, offset) };
            strip.refit(group, scale, offset, indices.clone());
            for index in indices {
                errors[index] = strip.values[index] - strip.exact[index];
            }
            gradients[part].iter_mut().zip(curved).for_each(|(gradient, h)| *gradient += step as f32 * h);
            moved = true;
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::super::Hessian;
    use super::*;
    use crate::quant::WeightFormat;
    use crate::tensor::Tensor;

    /// From rounding, not from something better that would hide a bad first sweep.
    #[test]
    fn no_sweep_makes_the_error_larger() {
        let (d, out) = (192, 7);
        let weight = Tensor::new([out, d], (0..out * d).map(|i| (i as f32 * 1.37).sin()).collect()).unwrap();
        let rows: Vec<f32> = (0..300 * d).map(|i| ((i / d) as f32 * 0.7).sin() + 0.3 * (i as f32 * 0.91).cos()).collect();
        let mut hessian = Hessian::new(d).unwrap();
        hessian.add(&rows, 1).unwrap();
        for text in ["int4:g32", "uint3:g16", "offset3:g32", "nf4:g64", "int8:tensor", "int3"] {
            let start = text.parse::<WeightFormat>().unwrap().quantize(&weight).unwrap();
            let mut grid = Grid::new(&weight, start);
            let error = |grid: &Grid| {
                let values = grid.quantized().unwrap().dequantize();
                let off: Vec<f32> = values.as_slice().iter().zip(weight.as_slice()).map(|(q, w)| q - w).collect();
                hessian.error(&off, 1).unwrap()
            };
            let first = error(&grid);
            let mut last = first;
            for sweep in 0..4 {
                super::sweep(&mut grid, &[Products::new(&hessian, 1)], 1).unwrap();
                let now = error(&grid);
                assert!(now <= last * (1.0 + 1e-5), "{text}, sweep {sweep}: {now} after {last}");
                last = now;
            }
            assert!(last < 0.9 * first, "{text}: {last} of {first}");
        }
    }
}
