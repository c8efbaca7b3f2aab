//! What the codes of a format stand for, and the code nearest to a value, as the format's own rules have it.

use crate::num::{F4E2M1, F6E2M3, F6E3M2, F8E4M3, F8E5M2, SmallFloat, round_clamped};
use crate::quant::Codebook;
use crate::quant::weights::FloatFormat;

/// Levels before they are scaled. Codes are unsigned: the bits as stored.
#[derive(Debug, Clone)]
pub(crate) enum Alphabet {
    /// `k · step` for `-2^(bits-1) <= k < 2^(bits-1)`, in two's complement; ties to the even `k`. With `narrow` the lowest is never given.
    Fixed { bits: u32, step: f32, narrow: bool },
    /// Small floats: their bits, ties to the even code, saturating.
    Float(FloatFormat),
    /// Indices of levels, ties to the lower.
    Table(Codebook),
}

macro_rules! with_float {
    ($format:expr, $type:ident => $body:expr) => {
        match $format {
            FloatFormat::E4M3 => {
                type $type = F8E4M3;
                $body
            }
            FloatFormat::E5M2 => {
                type $type = F8E5M2;
                $body
            }
            FloatFormat::E2M3 => {
                type $type = F6E2M3;
                $body
            }
            FloatFormat::E3M2 => {
                type $type = F6E3M2;
                $body
            }
            FloatFormat::E2M1 => {
                type $type = F4E2M1;
                $body
            }
        }
    };
}

impl Alphabet {
    /// The code nearest to `v`; NaN has that of zero.
    #[inline]
    pub(crate) fn code(&self, v: f32) -> u32 {
        let v = if v.is_nan() { 0.0 } else { v };
        match self {
            Alphabet::Fixed { bits, step, narrow } => {
                let half = 1i32 << (bits - 1);
                round_clamped(v / step, i32::from(*narrow) - half, half - 1) as u32 & ((1 << bits) - 1)
            }
            Alphabet::Float(format) => with_float!(format, T => u32::from(T::from_f32(v, true).to_bits())),
            Alphabet::Table(book) => book.code(v) as u32,
        }
    }

    /// The level of a code. A code beyond the table has the last level.
    #[inline]
    pub(crate) fn value(&self, code: u32) -> f32 {
        match self {
            Alphabet::Fixed { bits, step, .. } => self.signed(code, *bits) as f32 * step,
            Alphabet::Float(format) => with_float!(format, T => T::from_bits(code as u8).to_f32()),
            Alphabet::Table(book) => book.levels()[(code as usize).min(book.levels().len() - 1)],
        }
    }

    fn signed(&self, code: u32, bits: u32) -> i32 {
        (code << (32 - bits)) as i32 >> (32 - bits)
    }

    /// The code as the format counts: below zero in two's complement, or the bits.
    pub(crate) fn number(&self, code: u32) -> i32 {
        match self {
            Alphabet::Fixed { bits, .. } => self.signed(code, *bits),
            Alphabet::Float(_) | Alphabet::Table(_) => code as i32,
        }
    }

    /// The finite levels that values are rounded to, ascending, each once.
    pub(crate) fn levels(&self) -> Vec<f32> {
        let mut levels: Vec<f32> = match self {
            Alphabet::Fixed { bits, step, narrow } => {
                let half = 1i32 << (bits - 1);
                (i32::from(*narrow) - half..half).map(|k| k as f32 * step).collect()
            }
            Alphabet::Float(format) => (0..1 << format.bits()).map(|code| self.value(code) + 0.0).filter(|x| x.is_finite()).collect(),
            Alphabet::Table(book) => book.levels().to_vec(),
        };
        levels.sort_by(f32::total_cmp);
        levels.dedup();
        levels
    }

    /// The magnitude that the largest value of a group is put on: the last level, or of a one-sided table the first.
    pub(crate) fn largest(&self) -> f32 {
        match self {
            Alphabet::Fixed { bits, step, .. } => ((1i32 << (bits - 1)) - 1) as f32 * step,
            Alphabet::Float(format) => format.largest(),
            Alphabet::Table(book) => book.levels().iter().fold(0.0, |largest, level| level.abs().max(largest)),
        }
    }
}

impl FloatFormat {
    /// Bits of a number.
    pub fn bits(self) -> u32 {
        with_float!(self, T => T::BITS)
    }

    /// The largest number.
    pub fn largest(self) -> f32 {
        with_float!(self, T => T::from_f32(f32::MAX, true).to_f32())
    }

    /// The exponent of the largest number, `floor(log2(largest))`: the OCP specification's `emax`.
    pub fn largest_exponent(self) -> u32 {
        (self.largest() as u32).ilog2()
    }
}
