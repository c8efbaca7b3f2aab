//! Ranges of float outputs, found while they are in registers, so that the next layer need not read them for it.

use std::cell::Cell;

use super::output::Place;
use super::simd::Simd;
use crate::error::{Error, Result};

/// Smallest and largest finite value, and whether all are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Smallest finite value, 0 when there is none.
    pub min: f32,
    /// Largest finite value, 0 when there is none.
    pub max: f32,
    /// Whether no value was NaN or infinite.
    pub finite: bool,
}

impl Range {
    /// The neutral element of [`Range::union`]: its ends lie the wrong way round, as those of no slice do.
    pub(super) const EMPTY: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY, finite: true };

    pub(crate) fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max), finite: self.finite && other.finite }
    }

    /// The range as callers see it: 0 and 0 without a finite value, and no negative zero, whichever lane it came from.
    pub(crate) fn closed(self) -> Range {
        if self.min <= self.max { Range { min: self.min + 0.0, max: self.max + 0.0, ..self } } else { Range { min: 0.0, max: 0.0, ..self } }
    }
}

/// A range, lane by lane. `zero` stays 0 while every value is finite.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct RangeLanes {
    min: [f32; 16],
    max: [f32; 16],
    zero: [f32; 16],
}

impl RangeLanes {
    const EMPTY: RangeLanes = RangeLanes { min: [f32::INFINITY; 16], max: [f32::NEG_INFINITY; 16], zero: [0.0; 16] };

    /// Makes it one of values that are not all finite, for [`report`] to ask.
    pub fn unknown(&mut self) {
        self.zero = [f32::NAN; 16];
    }

    fn range(&self) -> Range {
        let lanes = self.min.iter().zip(&self.max).zip(&self.zero);
        lanes.fold(Range::EMPTY, |whole, ((&min, &max), &zero)| whole.union(Range { min, max, finite: zero == 0.0 }))
    }
}

/// Where a stage keeps the ranges of what it writes: for each part of the work, one for each row (or image), or one for all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measure {
    lanes: *mut RangeLanes,
    /// Ranges of a part.
    ranges: usize,
    /// Whether all rows have the same one.
    single: bool,
}

// SAFETY: parts of the work, which threads take, have ranges of their own, which outlive the call.
unsafe impl Send for Measure {}
// SAFETY: as above.
unsafe impl Sync for Measure {}

impl Measure {
    /// Room for `ranges` ranges in each of `parts` parts, at most as many as threads; there are `params` rows or images.
    pub fn new(memory: &mut Vec<RangeLanes>, ranges: usize, params: usize, parts: usize) -> Measure {
        memory.clear();
        memory.resize(ranges * parts, RangeLanes::EMPTY);
        Measure { lanes: memory.as_mut_ptr(), ranges, single: ranges == 1 || params == 1 }
    }

    /// That of part `part`.
    pub fn part(self, part: usize) -> Self {
        Measure { lanes: self.lanes.wrapping_add(part * self.ranges), ..self }
    }

    /// The same where there is no other row or image than `param`.
    pub fn only(self, param: usize) -> Self {
        let lanes = if self.single { self.lanes } else { self.lanes.wrapping_add(param) };
        Measure { lanes, single: true, ..self }
    }

    /// Whether all rows have the same range.
    pub fn is_single(&self) -> bool {
        self.single
    }

    /// Takes in `R` rows of the vectors at `place`.
    ///
    /// # Safety
    /// `params` are inside what this was made for, and so is the part; nobody else uses that part.
    #[inline(always)]
    pub unsafe fn record<S: Simd, const R: usize, const NV: usize>(
        self,
        simd: S,
        params: &[usize; R],
        x: &[[S::F32; NV]; R],
        place: Place,
    ) {
        let (lowest, highest, none) = (simd.splat_f32(f32::INFINITY), simd.splat_f32(f32::NEG_INFINITY), simd.splat_f32(0.0));
        let mut at = self.lanes;
        let (mut min, mut max, mut zero) = (lowest, highest, none);
        for r in 0..R {
            if r == 0 || !self.single {
                at = if self.single { self.lanes } else { self.lanes.wrapping_add(params[r]) };
                // SAFETY: the caller's promise; no instruction set has more than sixteen lanes.
                unsafe {
                    min = simd.load_f32((*at).min.as_ptr(), S::LANES);
                    max = simd.load_f32((*at).max.as_ptr(), S::LANES);
                    zero = simd.load_f32((*at).zero.as_ptr(), S::LANES);
                }
            }
            for v in 0..NV {
                let lanes = place.lanes::<S>(v);
                if lanes == S::LANES {
                    min = simd.min_f32(x[r][v], min);
                    max = simd.max_f32(x[r][v], max);
                    zero = simd.mul_add_f32(x[r][v], none, zero);
                } else {
                    min = simd.min_f32(simd.keep_f32(x[r][v], lanes, lowest), min);
                    max = simd.max_f32(simd.keep_f32(x[r][v], lanes, highest), max);
                    zero = simd.mul_add_f32(simd.keep_f32(x[r][v], lanes, none), none, zero);
                }
            }
            if r + 1 == R || !self.single {
                // SAFETY: as above.
                unsafe {
                    simd.store_f32((*at).min.as_mut_ptr(), min, S::LANES);
                    simd.store_f32((*at).max.as_mut_ptr(), max, S::LANES);
                    simd.store_f32((*at).zero.as_mut_ptr(), zero, S::LANES);
                }
            }
        }
    }
}

/// Whether there is one cell for the whole output, or one for each of its `params` rows or images.
pub(super) fn check_cells(cells: Option<&[Cell<Range>]>, params: usize) -> Result<()> {
    match cells.map(<[_]>::len) {
        Some(got) if got != 1 && got != params => Err(Error::length("ranges of the output", params, got)),
        _ => Ok(()),
    }
}

/// Writes the ranges that were found in `memory` into their cells; `exact` measures one that has values which are not finite, since those
/// have no place in a range.
pub(super) fn report(memory: &[RangeLanes], cells: &[Cell<Range>], exact: impl Fn(usize) -> Range) {
    for (i, cell) in cells.iter().enumerate() {
        let found = memory.iter().skip(i).step_by(cells.len()).fold(Range::EMPTY, |whole, lanes| whole.union(lanes.range()));
        cell.set(if found.finite { found.closed() } else { exact(i).closed() });
    }
}
