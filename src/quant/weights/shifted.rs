//! Groups whose levels are those of a table, moved by one of sixteen shifts.

use crate::error::Result;
use crate::quant::codebook::Codebook;
use crate::quant::level_search::{LevelSearch, Weighted};
use crate::quant::weights::Scales;
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::nearest::Nearest;

/// Bits of a shift.
pub(crate) const SHIFT_BITS: u32 = 4;
const SHIFTS: u16 = 1 << SHIFT_BITS;

/// What is counted in: sums of levels and shifts are exact, and some are zero.
const UNIT: f32 = 1.0 / 256.0;
/// Levels above zero, of 3 and of 4 bits: between those that are best for a normal distribution and evenly spaced ones (0.7 and 0.61 of
/// the way to the former, with the same ends), which was best for groups that choose scale and shift.
const LEVELS: [&[i16]; 2] = [&[110, 336, 584, 896], &[105, 316, 531, 753, 988, 1243, 1536, 1920]];
/// The distance of shifts, which are its odd halves.
const DISTANCE: [i16; 2] = [44, 70];
/// Shifts tried on either side of what the middle of the range asks for.
const NEAR: i32 = 4;

/// The levels of these bits, 3 or 4, moved by the shift of that index.
pub(crate) fn levels(bits: u32, shift: u32) -> Vec<f32> {
    let (half, distance) = (LEVELS[bits as usize - 3], DISTANCE[bits as usize - 3]);
    let moved = (2 * shift as i16 + 1 - SHIFTS as i16) * distance / 2;
    let all = half.iter().rev().map(|level| -level).chain(half.iter().copied());
    all.map(|level| f32::from(level + moved) * UNIT).collect()
}

/// A table for each shift.
pub(crate) fn tables(bits: u32) -> Result<Vec<(Alphabet, Nearest)>> {
    let of = |shift: u16| {
        let alphabet = Alphabet::Table(Codebook::new(levels(bits, shift.into()))?);
        Ok((alphabet.clone(), Nearest::of(&alphabet)))
    };
    (0..SHIFTS).map(of).collect()
}

/// Chooses scale and shift of groups.
pub(crate) struct ShiftFitter<'a> {
    bits: u32,
    tables: &'a [(Alphabet, Nearest)],
    searches: Vec<LevelSearch>,
}

impl<'a> ShiftFitter<'a> {
    pub(crate) fn new(bits: u32, tables: &'a [(Alphabet, Nearest)]) -> Self {
        let search = |shift: u16| LevelSearch::new(&levels(bits, shift.into()).into_iter().map(f64::from).collect::<Vec<_>>());
        ShiftFitter { bits, tables, searches: (0..SHIFTS).map(search).collect() }
    }

    /// The scale of least error with the best of some scales' shifts.
    pub(crate) fn wanted(&mut self, x: Weighted) -> f64 {
        let (low, high) = x.values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
        let (low, high) = (f64::from(low), f64::from(high));
        let (last, distance) = (LEVELS[self.bits as usize - 3].last().copied().unwrap_or(1), DISTANCE[self.bits as usize - 3]);
        let (last, distance) = (f64::from(f32::from(last) * UNIT), f64::from(f32::from(distance) * UNIT));
        if x.largest() == 0.0 {
            return 0.0;
        }
        let whole = if high > low { (high - low) / (2.0 * last) } else { high.abs() / last };
        let mut best = (f64::INFINITY, whole, 0);
        for part in [1.0, 0.92, 0.84, 0.77, 1.1] {
            let scale = whole * part;
            let middle =
                (0.5 * (low + high) / scale / distance + 0.5 * f64::from(SHIFTS - 1)).round().clamp(0.0, f64::from(SHIFTS - 1)) as i32;
            for shift in (middle - NEAR).max(0)..=(middle + NEAR).min(i32::from(SHIFTS) - 1) {
                let error = self.tables[shift as usize].1.error(x, scale as f32);
                if error < best.0 {
                    best = (error, scale, shift as usize);
                }
            }
        }
        let search = &mut self.searches[best.2];
        let grid = search.whole();
        search.best(x, &[grid], best.0).map_or(best.1, |found| found.scale)
    }

    /// Scale and shift to store, of the scales near the wanted one the best pair, after their error.
    pub(crate) fn stored(&self, x: Weighted, wanted: f64, scales: &Scales, index: usize) -> Result<(f64, f32, u16)> {
        let candidates = scales.candidates(index, wanted, false)?;
        let mut best = (f64::INFINITY, candidates[0], SHIFTS / 2);
        for &scale in &candidates {
            for (shift, (_, nearest)) in self.tables.iter().enumerate() {
                let error = nearest.error(x, scale);
                if error < best.0 {
                    best = (error, scale, shift as u16);
                }
            }
        }
        Ok(best)
    }
}
