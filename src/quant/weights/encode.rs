//! From weights and scales to codes.

use crate::quant::stochastic::{Rounding, random_unit};
use crate::quant::weights::Scales;
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::asymmetric::offset_code;
use crate::quant::weights::grouping::Groups;
use crate::quant::weights::nearest::{Even, Nearest};
use crate::quant::weights::parallel::for_each_part;

/// Takes codes of weights whose scales are known. NaN has the code of zero, an infinity the last on its side.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub x: &'a [f32],
    pub groups: Groups,
    pub bits: u32,
    pub rounding: Rounding,
}

impl Encoder<'_> {
    /// The codes of all groups: `code` of a group, of its weights, the index of the first.
    fn codes(self, code: impl Fn(usize, &[f32], usize, &mut [u16]) + Sync + Send) -> Vec<u16> {
        let mut codes = vec![0; self.x.len()];
        let (mut parts, mut rest) = (Vec::with_capacity(self.groups.len()), codes.as_mut_slice());
        for group in 0..self.groups.len() {
            let (part, after) = rest.split_at_mut(self.groups.range(group).len());
            parts.push(part);
            rest = after;
        }
        for_each_part(parts, |group, part| {
            let range = self.groups.range(group);
            code(group, &self.x[range.clone()], range.start, part);
        });
        codes
    }

    /// Codes of levels that all groups share.
    pub(crate) fn over(self, alphabet: &Alphabet, nearest: &Nearest, scales: &Scales) -> Vec<u16> {
        let levels = if self.rounding == Rounding::Nearest { Vec::new() } else { alphabet.levels() };
        self.codes(|group, x, first, codes| self.group((alphabet, nearest, &levels), scales.at(group), x, first, codes))
    }

    /// Codes of one of these tables for each group.
    pub(crate) fn over_tables(
        self,
        tables: &[(Alphabet, Nearest)],
        of: impl Fn(usize) -> usize + Sync + Send,
        scales: &Scales,
    ) -> Vec<u16> {
        self.codes(|group, x, first, codes| {
            let (alphabet, nearest) = &tables[of(group)];
            let levels = if self.rounding == Rounding::Nearest { Vec::new() } else { alphabet.levels() };
            self.group((alphabet, nearest, &levels), scales.at(group), x, first, codes);
        })
    }

    fn group(self, (alphabet, nearest, levels): (&Alphabet, &Nearest, &[f32]), scale: f32, x: &[f32], first: usize, codes: &mut [u16]) {
        let each = |codes: &mut [u16], code: &dyn Fn(usize, f32) -> u32| {
            codes.iter_mut().zip(x).enumerate().for_each(|(i, (slot, &x))| *slot = code(first + i, x) as u16);
        };
        match (self.rounding, nearest) {
            _ if scale == 0.0 => codes.fill(alphabet.code(0.0) as u16),
            (Rounding::Stochastic { seed }, _) => {
                each(codes, &|i, x| alphabet.code(drawn(x / scale, levels, random_unit(seed, i as u64))));
            }
            (Rounding::Nearest, Nearest::Even(even)) => {
                let mask = ((1u32 << self.bits) - 1) as u16;
                codes.iter_mut().zip(x).for_each(|(slot, &x)| *slot = even.code(x, scale) as u16 & mask);
            }
            (Rounding::Nearest, Nearest::Listed(listed)) => listed.encode(x, scale, codes),
        }
    }

    pub(crate) fn with_zero_points(self, scales: &Scales, zero_points: &[u16]) -> Vec<u16> {
        let qmax = (1i32 << self.bits) - 1;
        self.codes(|group, x, first, codes| {
            let (scale, zero_point) = (scales.at(group), i32::from(zero_points[group]));
            let even = Even::integers(-zero_point, qmax - zero_point);
            match self.rounding {
                _ if scale == 0.0 => codes.fill(zero_points[group]),
                Rounding::Nearest => codes.iter_mut().zip(x).for_each(|(slot, &x)| *slot = (even.code(x, scale) + zero_point) as u16),
                Rounding::Stochastic { seed } => codes.iter_mut().zip(x).enumerate().for_each(|(i, (slot, &x))| {
                    let code = match x.is_finite() {
                        true => {
                            let drawn = (x / scale + random_unit(seed, (first + i) as u64)).floor() + zero_point as f32;
                            drawn.clamp(0.0, qmax as f32) as i32
                        }
                        false => even.code(x, scale) + zero_point,
                    };
                    *slot = code as u16;
                }),
            }
        })
    }

    pub(crate) fn with_offsets(self, scales: &Scales, offsets: &Scales) -> Vec<u16> {
        let qmax = (1i32 << self.bits) - 1;
        self.codes(|group, x, first, codes| {
            let (scale, offset) = (scales.at(group), offsets.at(group));
            codes.iter_mut().zip(x).enumerate().for_each(|(i, (slot, &x))| {
                let code = match self.rounding {
                    Rounding::Stochastic { seed } if x.is_finite() && scale > 0.0 => {
                        let drawn = ((x - offset) / scale + random_unit(seed, (first + i) as u64)).floor();
                        drawn.clamp(0.0, qmax as f32) as i32
                    }
                    // NaN has the code nearest to zero.
                    _ => offset_code(if x.is_nan() { 0.0 } else { x }, scale, offset, qmax),
                };
                *slot = code as u16;
            });
        })
    }
}

/// The level below `v` or the one above it, as `u` in `0..1` decides.
fn drawn(v: f32, levels: &[f32], u: f32) -> f32 {
    let above = levels.partition_point(|&level| level <= v);
    match (above.checked_sub(1).map(|below| levels[below]), levels.get(above)) {
        (Some(low), Some(&high)) if !v.is_nan() => {
            if u < (v - low) / (high - low) {
                high
            } else {
                low
            }
        }
        _ => v,
    }
}
