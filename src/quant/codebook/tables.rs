//! Tables that are known beforehand.

use std::fmt;

use crate::error::{Error, Result};
use crate::quant::Codebook;

/// A fixed table of levels. All but [`Table::MidRise`] and [`Table::Gauss`] have zero among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Table {
    /// NormalFloat, 4 bits: levels between which a normal distribution has equal mass, with zero and both ends
    /// (Dettmers et al. 2023, QLoRA).
    Nf4,
    /// Powers of two: 0 and `±2^-i` for `i < 2^(bits-1) - 1`, 2 to 6 bits.
    PowersOfTwo(u32),
    /// Additive powers of two (Li et al. 2020): a sign, and the sum of `n` terms of two bits each, of which term `i` is 0 or
    /// `2^-(i + n·j)` for `j < 3`; of 3 bits of magnitude the second term has one bit. 2 to 5 bits, largest level 1.
    Apot(u32),
    /// Evenly spaced without zero: `k + 1/2` for `-2^(bits-1) <= k < 2^(bits-1)`, 1 to 8 bits. No weight becomes zero.
    MidRise(u32),
    /// The levels of least squared error for a normal distribution of variance 1 (Lloyd and Max), 2 to 5 bits.
    Gauss(u32),
}

/// bitsandbytes's levels, to the last bit of f32.
#[allow(clippy::excessive_precision, reason = "the numbers as they are published")]
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

#[allow(clippy::excessive_precision, reason = "nine digits are what an f32 may need")]
/// Each level the mean of a normal distribution between the midpoints to its neighbours: fixed points of that rule, found
/// by repeating it until nothing moved. Positive halves.
const GAUSS: [&[f32]; 4] = [
    &[0.45278003, 1.510_417_6],
    &[0.245_094_18, 0.756_005_3, 1.343_909_3, 2.151_945_7],
    &[0.128_395_03, 0.388_048_3, 0.656_759_1, 0.942_340_46, 1.256_231_2, 1.618_046_4, 2.069_017_2, 2.732_589_6],
    &[
        0.065_889_66,
        0.198_051_83,
        0.331_378_3,
        0.466_699_52,
        0.604_933_6,
        0.747_135_7,
        0.894_565_1,
        1.048_783_3,
        1.211_804_4,
        1.386_340_3,
        1.576_228_1,
        1.787_233_2,
        2.028_728_4,
        2.317_739_4,
        2.691_119_6,
        3.260_732_5,
    ],
];

impl Table {
    /// Bits of a code.
    pub fn bits(self) -> u32 {
        match self {
            Table::Nf4 => 4,
            Table::PowersOfTwo(bits) | Table::Apot(bits) | Table::MidRise(bits) | Table::Gauss(bits) => bits,
        }
    }

    /// The levels.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number of bits that the table does not have.
    pub fn codebook(self) -> Result<Codebook> {
        let bits = self.bits();
        let range = match self {
            Table::Nf4 => 4..=4,
            Table::PowersOfTwo(_) => 2..=6,
            Table::Apot(_) | Table::Gauss(_) => 2..=5,
            Table::MidRise(_) => 1..=8,
        };
        if !range.contains(&bits) {
            let rule = format!("`{}` has {} to {} bits", self.name(), range.start(), range.end());
            return Err(Error::parameter("bits of a table", bits, rule));
        }
        Codebook::new(match self {
            Table::Nf4 => NF4.to_vec(),
            Table::PowersOfTwo(bits) => mirrored((0..(1 << (bits - 1)) - 1).map(|i| (-f64::from(i)).exp2() as f32).chain([0.0])),
            Table::Apot(bits) => {
                let terms: &[&[f32]] = match bits {
                    2 => &[&[0.0, 1.0]],
                    3 => &[&[0.0, 1.0, 0.5, 0.25]],
                    4 => &[&[0.0, 1.0, 0.5, 0.125], &[0.0, 0.25]],
                    _ => &[&[0.0, 1.0, 0.25, 0.0625], &[0.0, 0.5, 0.125, 0.03125]],
                };
                let sums =
                    terms.iter().fold(vec![0.0f32], |sums, term| sums.iter().flat_map(|s| term.iter().map(move |t| s + t)).collect());
                let largest = sums.iter().copied().fold(0.0, f32::max);
                mirrored(sums.into_iter().map(|sum| sum / largest))
            }
            Table::MidRise(bits) => mirrored((0..1 << (bits - 1)).map(|k| k as f32 + 0.5)),
            Table::Gauss(bits) => mirrored(GAUSS[bits as usize - 2].iter().copied()),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Table::Nf4 => "nf",
            Table::PowersOfTwo(_) => "pot",
            Table::Apot(_) => "apot",
            Table::MidRise(_) => "midrise",
            Table::Gauss(_) => "gauss",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name(), self.bits())
    }
}

/// These levels and their negatives, ascending, zero once.
fn mirrored(levels: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut all: Vec<f32> = levels.flat_map(|level| [level, 0.0 - level]).collect();
    all.sort_by(f32::total_cmp);
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_as_published() {
        let levels = |table: Table| table.codebook().unwrap().levels().to_vec();
        assert_eq!(levels(Table::PowersOfTwo(3)), [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]);
        assert_eq!(levels(Table::Apot(3)), levels(Table::PowersOfTwo(3)));
        // Sums of {0, 1, 1/2, 1/8} and {0, 1/4} over their largest, 5/4.
        assert_eq!(levels(Table::Apot(4))[7..], [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(levels(Table::Apot(5)).len(), 31);
        assert_eq!(levels(Table::MidRise(2)), [-1.5, -0.5, 0.5, 1.5]);
        assert_eq!((levels(Table::Nf4).len(), levels(Table::Nf4)[7]), (16, 0.0));
        assert_eq!(levels(Table::Gauss(4))[8..10], [0.12839503, 0.3880483]);
        for table in [Table::Apot(6), Table::Gauss(1), Table::PowersOfTwo(7), Table::MidRise(9), Table::MidRise(0)] {
            assert!(table.codebook().is_err(), "{table}");
        }
    }

    #[test]
    fn each_level_of_gauss_is_the_mean_of_its_cell() {
        for bits in 2..=5 {
            let half = GAUSS[bits - 2];
            for (i, &level) in half.iter().enumerate() {
                let low = if i == 0 { 0.0 } else { 0.5 * f64::from(half[i - 1] + level) };
                let high = half.get(i + 1).map_or(9.0, |&next| 0.5 * f64::from(level + next));
                let (mut mass, mut moment) = (0.0, 0.0);
                for j in 0..4000 {
                    let x = low + (high - low) * (f64::from(j) + 0.5) / 4000.0;
                    let density = (-0.5 * x * x).exp();
                    (mass, moment) = (mass + density, moment + x * density);
                }
                assert!((moment / mass - f64::from(level)).abs() < 2e-6, "{bits} bits, level {i}: {}", moment / mass);
            }
        }
    }
}
