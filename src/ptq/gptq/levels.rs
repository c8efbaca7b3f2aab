//! Weights on their way to codes: the values that each group's codes stand for, and which each weight has.

use std::ops::Range;

use crate::error::Result;
use crate::num::{bf16, f16};
use crate::quant::{QuantizedWeights, ScaleFormat, Zeros};
use crate::tensor::Tensor;

/// Codes that may change, over scales and offsets that may be fitted to them.
pub(super) struct Grid {
    start: QuantizedWeights,
    exact: Vec<f32>,
    values: Vec<f32>,
    codes: Vec<u16>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    /// Weights that are stored exactly and take no part: flat indices, ascending.
    kept: Vec<usize>,
    pub rows: usize,
    pub columns: usize,
    /// Weights of a row that share a scale: a row's last group may have fewer.
    pub group: usize,
}

/// Rows of a [`Grid`], copied out to be worked on.
pub(super) struct Strip<'g> {
    grid: &'g Grid,
    pub rows: Range<usize>,
    /// The weights wanted, row by row.
    pub exact: &'g [f32],
    /// What the codes stand for.
    pub values: Vec<f32>,
    codes: Vec<u16>,
    /// Of the strip's groups.
    scales: Vec<f32>,
    offsets: Vec<f32>,
    first_group: usize,
}

/// What became of a strip.
pub(super) struct Done {
    rows: Range<usize>,
    values: Vec<f32>,
    codes: Vec<u16>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    first_group: usize,
}

/// The values of a group's codes, each with a code of it.
pub(super) struct Levels {
    /// Ascending, then infinities that fill the last [`LANES`].
    values: Vec<f32>,
    codes: Vec<u16>,
}

/// Levels that are compared with a value together.
const LANES: usize = 16;
/// As many levels as are compared one and all; among more, halves are left out.
const FEW: usize = 32;

impl Levels {
    /// The level nearest to a value, and its code; of two as near the lower.
    #[inline(always)]
    pub fn nearest(&self, value: f32) -> (f32, u16) {
        let levels = &self.values[..self.codes.len()];
        let above = if levels.len() <= FEW {
            let below = |levels: &[f32]| levels.iter().map(|&level| u32::from(level < value)).sum::<u32>();
            self.values.chunks_exact(LANES).map(below).sum::<u32>() as usize
        } else {
            levels.partition_point(|&level| level < value)
        };
        let lower = above.saturating_sub(1);
        match (levels.get(lower), levels.get(above)) {
            (Some(&below), Some(&next)) if lower == above || value - below > next - value => (next, self.codes[above]),
            (Some(&below), _) => (below, self.codes[lower]),
            (None, _) => (0.0, 0),
        }
    }
}

impl Grid {
    /// From weights whose scales, zero points and levels are settled.
    pub fn new(weight: &Tensor, start: QuantizedWeights) -> Self {
        let rows = weight.dims()[0];
        let columns = weight.len() / rows.max(1);
        let offsets = match start.zeros() {
            Zeros::Offsets(offsets) => (0..start.groups()).map(|group| offsets.at(group)).collect(),
            _ => Vec::new(),
        };
        Grid {
            exact: weight.as_slice().to_vec(),
            values: start.dequantize().as_slice().to_vec(),
            codes: start.packed().iter().map(|code| code as u16).collect(),
            scales: (0..start.groups()).map(|group| start.scales().at(group)).collect(),
            offsets,
            kept: start.kept().into_iter().flat_map(|kept| kept.iter().map(|(index, _)| index)).collect(),
            rows,
            columns,
            group: start.group_size().min(columns.max(1)),
            start,
        }
    }

    /// These rows.
    pub fn strip(&self, rows: Range<usize>) -> Strip<'_> {
        let cells = rows.start * self.columns..rows.end * self.columns;
        let groups = match cells.is_empty() {
            true => 0..0,
            false => self.start.group_of(cells.start)..self.start.group_of(cells.end - 1) + 1,
        };
        Strip {
            grid: self,
            rows,
            exact: &self.exact[cells.clone()],
            values: self.values[cells.clone()].to_vec(),
            codes: self.codes[cells].to_vec(),
            scales: self.scales[groups.clone()].to_vec(),
            offsets: self.offsets.get(groups.clone()).unwrap_or_default().to_vec(),
            first_group: groups.start,
        }
    }

    /// Takes a strip back.
    pub fn put(&mut self, done: Done) {
        let Done { rows, values, codes, scales, offsets, first_group } = done;
        let first = rows.start * self.columns;
        self.values[first..first + values.len()].copy_from_slice(&values);
        self.codes[first..first + codes.len()].copy_from_slice(&codes);
        self.scales[first_group..first_group + scales.len()].copy_from_slice(&scales);
        if !offsets.is_empty() {
            self.offsets[first_group..first_group + offsets.len()].copy_from_slice(&offsets);
        }
    }

    /// Whether scales can be fitted: a group's is that of no other row, and stored as a float.
    pub fn fits_scales(&self) -> bool {
        self.rows * self.columns.div_ceil(self.group) == self.scales.len()
            && matches!(self.start.scales().format(), ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::Bf16)
    }

    pub fn has_offsets(&self) -> bool {
        !self.offsets.is_empty()
    }

    /// A number as scales are stored.
    pub fn rounded(&self, x: f32) -> f32 {
        match self.start.scales().format() {
            ScaleFormat::F16 => f16::from_f32(x).to_f32(),
            ScaleFormat::Bf16 => bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    /// The weights as they are now.
    ///
    /// # Errors
    /// Those of [`QuantizedWeights::from_parts`], which scales that were fitted can't meet.
    pub fn quantized(&self) -> Result<QuantizedWeights> {
        self.start.with_codes(&self.codes, &self.scales, &self.offsets)
    }
}

impl<'g> Strip<'g> {
    pub fn grid(&self) -> &'g Grid {
        self.grid
    }

    /// The group, in this strip, of a weight in a row of it.
    pub fn group_of(&self, row: usize, column: usize) -> usize {
        self.grid.start.group_of((self.rows.start + row) * self.grid.columns + column) - self.first_group
    }

    /// The group of each of these columns, counted from that of the row's first.
    pub fn groups_within(&self, columns: &[usize]) -> Vec<usize> {
        let first = self.group_of(0, 0);
        columns.iter().map(|&column| self.group_of(0, column) - first).collect()
    }

    /// Groups of the strip.
    pub fn groups(&self) -> usize {
        self.scales.len()
    }

    /// Whether the weight has a code that counts.
    #[inline]
    pub fn moves(&self, index: usize) -> bool {
        self.grid.kept.is_empty() || self.grid.kept.binary_search(&(self.rows.start * self.grid.columns + index)).is_err()
    }

    /// What the codes of a group stand for now.
    pub fn levels(&self, group: usize) -> Levels {
        let values = self.grid.start.values(self.first_group + group, self.scales[group], self.offset(group));
        let mut levels: Vec<(f32, u16)> = values.into_iter().zip(0..).filter(|(value, _)| value.is_finite()).collect();
        levels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut values, codes): (Vec<f32>, Vec<u16>) = levels.into_iter().unzip();
        values.resize(codes.len().next_multiple_of(LANES), f32::INFINITY);
        Levels { values, codes }
    }

    /// Sets a weight to a level.
    #[inline(always)]
    pub fn set(&mut self, index: usize, (value, code): (f32, u16)) {
        self.values[index] = value;
        self.codes[index] = code;
    }

    pub fn scale(&self, group: usize) -> f32 {
        self.scales[group]
    }

    pub fn offset(&self, group: usize) -> f32 {
        self.offsets.get(group).copied().unwrap_or(0.0)
    }

    /// The numbers that a group's scale is multiplied with, and 0 for weights stored exactly.
    pub fn unscaled(&self, group: usize, indices: Range<usize>) -> Vec<f32> {
        let mut values = self.grid.start.values_of_codes(self.first_group + group, &self.codes[indices.clone()], 1.0, 0.0);
        values.iter_mut().zip(indices).filter(|(_, index)| !self.moves(*index)).for_each(|(value, _)| *value = 0.0);
        values
    }

    /// Gives a group another scale, and offset where it has one; its codes stay.
    pub fn refit(&mut self, group: usize, scale: f32, offset: f32, indices: Range<usize>) {
        self.scales[group] = scale;
        if let Some(old) = self.offsets.get_mut(group) {
            *old = offset;
        }
        let values = self.grid.start.values_of_codes(self.first_group + group, &self.codes[indices.clone()], scale, offset);
        for (index, value) in indices.zip(values) {
            if self.moves(index) {
                self.values[index] = value;
            }
        }
    }

    pub fn done(self) -> Done {
        let Strip { rows, values, codes, scales, offsets, first_group, .. } = self;
        Done { rows, values, codes, scales, offsets, first_group }
    }
}

/// Works on strips of rows and takes them back; `parts` equal parts of the rows share no strip, and `work` is told which part it sees.
/// Strips do not depend on the number of threads.
///
/// # Errors
/// Of the first strip that fails.
pub(super) fn by_strips(
    grid: &mut Grid,
    parts: usize,
    threads: usize,
    work: impl Fn(&mut Strip<'_>, usize) -> Result<()> + Sync,
) -> Result<()> {
    /// Rows of a strip: enough for products to run at speed, and so many for those that bring a large factor along, once a strip.
    const ROWS: Range<usize> = 96..512;
    /// Strips that there are at least of many rows, for threads.
    const STRIPS: usize = 8;
    let rows = grid.rows / parts.max(1);
    let of_strip = rows.div_ceil(STRIPS).clamp(ROWS.start, ROWS.end);
    let in_part = rows.div_ceil(of_strip);
    let strip = |index: usize| {
        let (part, within) = (index / in_part, index % in_part * of_strip);
        let mut strip = grid.strip(part * rows + within..part * rows + (within + of_strip).min(rows));
        work(&mut strip, part)?;
        Ok(strip.done())
    };
    let count = parts * in_part;
    #[cfg(feature = "parallel")]
    let done: Result<Vec<Done>> = if threads > 1 {
        use rayon::prelude::*;
        (0..count).into_par_iter().map(strip).collect()
    } else {
        (0..count).map(strip).collect()
    };
    #[cfg(not(feature = "parallel"))]
    let done: Result<Vec<Done>> = {
        let _ = threads;
        (0..count).map(strip).collect()
    };
    done?.into_iter().for_each(|strip| grid.put(strip));
    Ok(())
}
