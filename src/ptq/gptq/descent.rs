//! Coordinate descent: codes and scales moved one by one to where the error of the outputs is least.

use std::ops::Range;

use super::hessian::Products;
use super::levels::{Grid, Levels, Strip, by_strips, nearest};
use crate::error::Result;

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
    let fits = strip.grid().fits_scales();
    for start in (0..d).step_by(group) {
        let columns = start..(start + group).min(d);
        move_codes(strip, &mut errors, products, columns.clone())?;
        if fits {
            fit_scales(strip, &mut errors, products, columns.clone())?;
            move_codes(strip, &mut errors, products, columns)?;
        }
    }
    Ok(())
}

/// Each code of these columns in turn to the level nearest to where its row's error is least.
fn move_codes(strip: &mut Strip<'_>, errors: &mut [f32], products: &mut Products<'_>, columns: Range<usize>) -> Result<()> {
    let (d, rows) = (strip.grid().columns, strip.rows.len());
    let levels: Vec<Levels> = (0..rows).map(|row| strip.levels(strip.group_of(row, columns.start))).collect();
    for start in columns.clone().step_by(BLOCK) {
        let block = start..(start + BLOCK).min(columns.end);
        let width = block.len();
        let mut gradients = products.of(errors, block.clone())?.to_vec();
        let h = products.values();
        for row in 0..rows {
            let gradients = &mut gradients[row * width..][..width];
            for (i, column) in block.clone().enumerate() {
                let (index, curvature) = (row * d + column, h[column * d + column]);
                if curvature <= 0.0 || !strip.moves(index) {
                    continue;
                }
                let old = strip.values[index];
                let level = nearest(&levels[row], old - gradients[i] / curvature);
                let step = level.0 - old;
                let gain = -step * (2.0 * gradients[i] + step * curvature);
                if gain <= LEAST * curvature * step * step {
                    continue;
                }
                strip.set(index, level);
                errors[index] = level.0 - strip.exact[index];
                let neighbours = &h[column * d + block.start..column * d + block.end];
                gradients.iter_mut().zip(neighbours).for_each(|(gradient, h)| *gradient += step * h);
            }
        }
    }
    Ok(())
}

/// The scale of these columns' group (and its offset) to where each row's error is least, as far as the scale's format can say it.
///
/// With `c` the group's numbers before the scale, a step `t` of the scale changes the error by `2 t cᵀg + t² cᵀHc`. An offset is a
/// scale of ones.
fn fit_scales(strip: &mut Strip<'_>, errors: &mut [f32], products: &mut Products<'_>, columns: Range<usize>) -> Result<()> {
    let (d, rows) = (strip.grid().columns, strip.rows.len());
    for of_offset in [false, true].into_iter().take(1 + usize::from(strip.grid().has_offsets())) {
        let gradients = products.of(errors, columns.clone())?.to_vec();
        // The group's numbers in rows of their own, zeros elsewhere.
        let mut numbers = vec![0f32; rows * d];
        for row in 0..rows {
            let indices = row * d + columns.start..row * d + columns.end;
            let of_row = match of_offset {
                false => strip.unscaled(strip.group_of(row, columns.start), indices.clone()),
                true => indices.clone().map(|index| f32::from(u8::from(strip.moves(index)))).collect(),
            };
            numbers[indices].copy_from_slice(&of_row);
        }
        let curved = products.of(&numbers, columns.clone())?;
        for row in 0..rows {
            let indices = row * d + columns.start..row * d + columns.end;
            let c = &numbers[indices.clone()];
            let dot = |x: &[f32]| c.iter().zip(x).map(|(&c, &x)| f64::from(c) * f64::from(x)).sum::<f64>();
            let part = row * columns.len()..(row + 1) * columns.len();
            let (slope, curvature) = (dot(&gradients[part.clone()]), dot(&curved[part]));
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
        }
    }
    Ok(())
}
