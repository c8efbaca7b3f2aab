//! Weights as stored.

use std::fmt;
use std::ops::Range;

use crate::error::Result;
use crate::num::{bf16, f16};
use crate::quant::codebook::Codebook;
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::grouping::Groups;
use crate::quant::weights::shifted::{self, SHIFT_BITS};
use crate::quant::weights::trellis::{self, Reader};
use crate::quant::weights::{Levels, PackedCodes, Scales, SparseSplit, WeightFormat};
use crate::tensor::{Shape, Tensor};

/// What moves the codes of a group away from zero.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Zeros {
    /// Nothing.
    None,
    /// An integer zero point for each group, in the bits of a code.
    Points(PackedCodes),
    /// A value for each group that all of its values begin at, in the format of the scales.
    Offsets(Scales),
    /// The index of a shift of the levels for each group, in 4 bits.
    Shifts(PackedCodes),
}

/// Levels stored with the weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StoredLevels {
    /// None: the format knows them.
    None,
    /// One list for all, as f32.
    Shared(Codebook),
    /// A list of `2^bits` for each group, one after the other.
    Own(Vec<f16>),
}

/// Weights in a [`WeightFormat`]: packed codes, scales, and what else the format needs.
///
/// The value of a code is `scale · level(code)`, with [`Levels::Uint`] `scale · (code - zero_point)`, with [`Levels::Offset`]
/// `scale · code + offset`, with [`Levels::Shifted`] `scale · (level(code) + shift)`, each operation rounded to f32; with
/// [`Levels::Trellis`] the level is that of [`QuantizedWeights::level_indices`]. In groups of scale 0 it is 0 (the offset). Weights that
/// are kept exactly have a code too, which does not count.
#[derive(Clone, PartialEq)]
pub struct QuantizedWeights {
    pub(super) format: WeightFormat,
    pub(super) shape: Shape,
    pub(super) groups: Groups,
    pub(super) codes: PackedCodes,
    pub(super) scales: Scales,
    pub(super) zeros: Zeros,
    pub(super) levels: StoredLevels,
    pub(super) kept: Option<SparseSplit>,
}

impl QuantizedWeights {
    /// The format.
    pub fn format(&self) -> &WeightFormat {
        &self.format
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The codes as stored, in row-major order: the bits of integers in two's complement and of floats, or indices of levels.
    pub fn packed(&self) -> &PackedCodes {
        &self.codes
    }

    /// The codes as numbers, in row-major order: of [`Levels::Int`] and [`Levels::MxInt8`] with their sign.
    pub fn codes(&self) -> Vec<i32> {
        match self.format.levels() {
            Levels::Int(_) | Levels::MxInt8 => {
                let alphabet = Alphabet::Fixed { bits: self.codes.bits(), step: 1.0, narrow: false };
                self.codes.iter().map(|code| alphabet.number(code)).collect()
            }
            _ => self.codes.iter().map(|code| code as i32).collect(),
        }
    }

    /// The scales: groups of the first row, then of the next.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Zero points or offsets.
    pub fn zeros(&self) -> &Zeros {
        &self.zeros
    }

    /// Levels stored with the weights.
    pub fn stored_levels(&self) -> &StoredLevels {
        &self.levels
    }

    /// What is kept exactly.
    pub fn kept(&self) -> Option<&SparseSplit> {
        self.kept.as_ref()
    }

    /// Number of groups, each with a scale.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Flat indices of the weights of a group, which are neighbours.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn group(&self, index: usize) -> std::ops::Range<usize> {
        assert!(index < self.groups.len(), "group {index} of {}", self.groups.len());
        self.groups.range(index)
    }

    /// Weights that share a scale: of each group but a row's last.
    pub(crate) fn group_size(&self) -> usize {
        self.groups.row_and_size()[1]
    }

    /// The group of the weight of that flat index.
    pub(crate) fn group_of(&self, index: usize) -> usize {
        self.groups.of_weight(index)
    }

    /// What each code of a group would stand for with this scale and offset: of at most 8 bits.
    pub(crate) fn values(&self, group: usize, scale: f32, offset: f32) -> Vec<f32> {
        let codes: Vec<u16> = (0..1 << self.format.bits()).collect();
        self.values_of_codes(group, &codes, scale, offset)
    }

    /// What these codes of a group would stand for.
    pub(crate) fn values_of_codes(&self, group: usize, codes: &[u16], scale: f32, offset: f32) -> Vec<f32> {
        let codes = codes.iter().copied();
        match &self.zeros {
            Zeros::None | Zeros::Shifts(_) => {
                let table = self.table(group);
                codes.map(|code| scale * table[usize::from(code)]).collect()
            }
            Zeros::Points(points) => {
                let zero_point = points.get(group).unwrap_or(0) as i32;
                codes.map(|code| scale * (i32::from(code) - zero_point) as f32).collect()
            }
            Zeros::Offsets(_) => codes.map(|code| scale * f32::from(code) + offset).collect(),
        }
    }

    /// The same format with other codes, scales and offsets, these already rounded to their format; where that is no float, they
    /// stay as they are.
    pub(crate) fn with_codes(&self, codes: &[u16], scales: &[f32], offsets: &[f32]) -> Result<Self> {
        let stored = |old: &Scales, new: &[f32]| match old {
            Scales::F32(_) => Scales::F32(new.to_vec()),
            Scales::F16(_) => Scales::F16(new.iter().map(|&x| f16::from_f32(x)).collect()),
            Scales::Bf16(_) => Scales::Bf16(new.iter().map(|&x| bf16::from_f32(x)).collect()),
            other => other.clone(),
        };
        let (format, shape, mut parts) = self.clone().into_parts();
        parts.codes = PackedCodes::new(format.bits(), codes.iter().map(|&code| u32::from(code)))?;
        parts.scales = stored(&parts.scales, scales);
        if let Zeros::Offsets(old) = &mut parts.zeros {
            *old = stored(old, offsets);
        }
        QuantizedWeights::from_parts(format, shape, parts)
    }

    /// The values.
    pub fn dequantize(&self) -> Tensor {
        let mut values = vec![0.0; self.shape.elements()];
        self.dequantize_into(0, &mut values);
        Tensor::from_shape(self.shape.clone(), values).expect("as many values as the shape has elements")
    }

    /// The values of flat indices `first..first + output.len()`.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn dequantize_into(&self, first: usize, output: &mut [f32]) {
        let end = first + output.len();
        assert!(end <= self.shape.elements(), "weights {first}..{end} of {}", self.shape.elements());
        let table = match (&self.levels, self.format.levels()) {
            (StoredLevels::Own(_), _) | (_, Levels::Shifted(_)) => Vec::new(),
            _ if self.format.bits() > 8 => Vec::new(),
            _ => self.table(0),
        };
        let shifted: Vec<Vec<f32>> = match self.format.levels() {
            Levels::Shifted(bits) => (0..1 << SHIFT_BITS).map(|shift| shifted::levels(*bits, shift)).collect(),
            _ => Vec::new(),
        };
        let mut reader = self.is_trellis().then(|| Reader::at(&self.codes, self.groups, first));
        let mut own: Vec<f32>;
        let mut at = first;
        while at < end {
            let group = self.groups.of_weight(at);
            let Range { start: begin, end: stop } = self.groups.range(group);
            let stop = stop.min(end);
            let scale = self.scales.at(group);
            let table = match (&self.zeros, &self.levels) {
                (Zeros::Shifts(shifts), _) => &shifted[shifts.get(group).unwrap_or(0) as usize],
                (_, StoredLevels::Own(_)) => {
                    own = self.table(group);
                    &own
                }
                _ => &table,
            };
            // As many codes at a time as stay in registers and the first cache.
            let mut codes = [0u16; 256];
            for output in output[at - first..stop - first].chunks_mut(codes.len()) {
                let codes = &mut codes[..output.len()];
                self.codes.read(at, codes);
                if let Some(reader) = &mut reader {
                    reader.indices(group, at == begin, codes);
                }
                at += codes.len();
                let pairs = output.iter_mut().zip(codes);
                match &self.zeros {
                    Zeros::None if table.is_empty() => pairs.for_each(|(y, code)| *y = scale * f32::from(*code as i16)),
                    Zeros::None | Zeros::Shifts(_) => pairs.for_each(|(y, code)| *y = scale * table[usize::from(*code)]),
                    Zeros::Points(points) => {
                        let zero_point = points.get(group).unwrap_or(0) as i32;
                        pairs.for_each(|(y, code)| *y = scale * (i32::from(*code) - zero_point) as f32);
                    }
                    Zeros::Offsets(offsets) => {
                        let offset = offsets.at(group);
                        pairs.for_each(|(y, code)| *y = scale * f32::from(*code) + offset);
                    }
                }
            }
        }
        let kept = self.kept.iter().flat_map(SparseSplit::iter).skip_while(|(index, _)| *index < first);
        for (index, value) in kept.take_while(|(index, _)| *index < end) {
            output[index - first] = value;
        }
    }

    /// The index in [`QuantizedWeights::table`] of each weight, in row-major order: but for [`Levels::Trellis`], its code.
    pub fn level_indices(&self) -> Vec<u16> {
        let mut indices = vec![0; self.codes.len()];
        self.codes.read(0, &mut indices);
        if self.is_trellis() {
            let mut reader = Reader::at(&self.codes, self.groups, 0);
            (0..self.groups.len()).for_each(|group| reader.indices(group, true, &mut indices[self.groups.range(group)]));
        }
        indices
    }

    /// The level of each code of a group before its scale, `2^bits` of them (of formats with an offset or zero point, the codes
    /// themselves; of [`Levels::Trellis`] the levels, twice as many): for kernels that look values up. Codes of small floats that are NaN or
    /// infinite stand for that. Codes beyond the last level have the last.
    pub fn table(&self, group: usize) -> Vec<f32> {
        let all = 0..1u32 << self.format.bits();
        if let StoredLevels::Own(levels) = &self.levels {
            return levels[group << self.format.bits()..][..all.len()].iter().map(|level| level.to_f32()).collect();
        }
        if let (Levels::Shifted(bits), Zeros::Shifts(shifts)) = (self.format.levels(), &self.zeros) {
            return shifted::levels(*bits, shifts.get(group).unwrap_or(0));
        }
        match self.alphabet() {
            _ if self.is_trellis() => trellis::levels(self.format.bits()).unwrap_or_default(),
            Some(alphabet) => all.map(|code| alphabet.value(code)).collect(),
            None => all.map(|code| code as f32).collect(),
        }
    }

    /// Whether a weight's value depends on the codes before its own.
    pub(crate) fn is_trellis(&self) -> bool {
        matches!(self.format.levels(), Levels::Trellis(_))
    }

    fn alphabet(&self) -> Option<Alphabet> {
        match &self.levels {
            StoredLevels::Shared(book) => Some(Alphabet::Table(book.clone())),
            _ => fixed_alphabet(self.format.levels()),
        }
    }

    /// Bytes held: codes, scales, zero points or offsets, stored levels, what is kept exactly. Shape and format are not counted.
    pub fn bytes(&self) -> usize {
        let zeros = match &self.zeros {
            Zeros::None => 0,
            Zeros::Points(points) | Zeros::Shifts(points) => points.as_bytes().len(),
            Zeros::Offsets(offsets) => offsets.bytes(),
        };
        let levels = match &self.levels {
            StoredLevels::None => 0,
            StoredLevels::Shared(book) => book.bytes(),
            StoredLevels::Own(levels) => size_of_val(levels.as_slice()),
        };
        self.codes.as_bytes().len() + self.scales.bytes() + zeros + levels + self.kept.as_ref().map_or(0, SparseSplit::bytes)
    }

    /// [`QuantizedWeights::bytes`] in bits, over the number of weights; 0 of none.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.shape.elements().max(1) as f64
    }
}

/// The alphabet of levels that need nothing learned and no zero point.
pub(crate) fn fixed_alphabet(levels: &Levels) -> Option<Alphabet> {
    Some(match levels {
        Levels::Int(bits) => Alphabet::Fixed { bits: *bits, step: 1.0, narrow: false },
        Levels::MxInt8 => Alphabet::Fixed { bits: 8, step: 1.0 / 64.0, narrow: true },
        Levels::Float(format) => Alphabet::Float(*format),
        Levels::Table(table) => Alphabet::Table(table.codebook().ok()?),
        Levels::Custom(book) => Alphabet::Table(book.clone()),
        Levels::Uint(_) | Levels::Offset(_) | Levels::Shifted(_) | Levels::Trellis(_) | Levels::Learned { .. } => return None,
    })
}

impl fmt::Debug for QuantizedWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuantizedWeights {}{:?} {} bytes", self.format, self.shape, self.bytes())
    }
}
