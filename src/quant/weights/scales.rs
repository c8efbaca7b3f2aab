//! Scales in the bits that they are stored in.

use std::fmt;

use crate::error::{Error, Result};
use crate::num::{F8E4M3, F8E8M0, ScaleRounding, SmallFloat, bf16, f16};
use crate::quant::weights::LogScales;

/// How the scales of groups are stored. They are rounded to it before codes are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ScaleFormat {
    /// 32 bits.
    F32,
    /// 16 bits, up to 65504.
    F16,
    /// 16 bits, the range of f32.
    Bf16,
    /// A power of two in 8 bits, 2^-127 to 2^127 (OCP MX).
    E8M0,
    /// 8 bits, times one f32 of the tensor, which puts the largest scale on the largest number, 448 (NVFP4).
    E4M3,
    /// 8 bits, evenly spaced: `offset + code · step`, `offset` (f32) the tensor's smallest scale, a `step` (f32) for every
    /// [`Scales::SECOND_LEVEL`] scales (double quantization, as in QLoRA, with the range's ends exact).
    Double,
    /// So many bits, 2 to 6, evenly spaced on a logarithmic axis: see [`LogScales`]. None is 0: in a group of zeros, levels without
    /// zero leave the smallest.
    Log(u32),
}

impl ScaleFormat {
    /// Whether a scale may be negative.
    pub fn is_signed(self) -> bool {
        !matches!(self, ScaleFormat::E8M0 | ScaleFormat::Double | ScaleFormat::Log(_))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            ScaleFormat::F32 => "f32",
            ScaleFormat::F16 => "f16",
            ScaleFormat::Bf16 => "bf16",
            ScaleFormat::E8M0 => "e8m0",
            ScaleFormat::E4M3 => "e4m3",
            ScaleFormat::Double => "double",
            ScaleFormat::Log(2) => "log2",
            ScaleFormat::Log(3) => "log3",
            ScaleFormat::Log(4) => "log4",
            ScaleFormat::Log(5) => "log5",
            ScaleFormat::Log(_) => "log6",
        }
    }
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A list of scales as stored.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Scales {
    /// See [`ScaleFormat::F32`].
    F32(Vec<f32>),
    /// See [`ScaleFormat::F16`].
    F16(Vec<f16>),
    /// See [`ScaleFormat::Bf16`].
    Bf16(Vec<bf16>),
    /// See [`ScaleFormat::E8M0`].
    E8M0(Vec<F8E8M0>),
    /// See [`ScaleFormat::E4M3`].
    E4M3 {
        /// One a group.
        codes: Vec<F8E4M3>,
        /// What they are all multiplied by.
        tensor: f32,
    },
    /// See [`ScaleFormat::Double`].
    Double {
        /// One a group.
        codes: Vec<u8>,
        /// One for every [`Scales::SECOND_LEVEL`] codes.
        steps: Vec<f32>,
        /// The scale of code 0.
        offset: f32,
    },
    /// See [`ScaleFormat::Log`].
    Log(LogScales),
}

/// Scales near a wanted one that can be stored, the nearest first.
pub(crate) type Candidates = Vec<f32>;

impl Scales {
    /// Scales that share a step of the second level.
    pub const SECOND_LEVEL: usize = 256;

    /// Number of scales.
    pub fn len(&self) -> usize {
        match self {
            Scales::F32(list) => list.len(),
            Scales::F16(list) => list.len(),
            Scales::Bf16(list) => list.len(),
            Scales::E8M0(list) => list.len(),
            Scales::E4M3 { codes, .. } => codes.len(),
            Scales::Double { codes, .. } => codes.len(),
            Scales::Log(scales) => scales.codes().len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of that index.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn at(&self, index: usize) -> f32 {
        match self {
            Scales::F32(list) => list[index],
            Scales::F16(list) => list[index].to_f32(),
            Scales::Bf16(list) => list[index].to_f32(),
            Scales::E8M0(list) => list[index].to_f32(),
            Scales::E4M3 { codes, tensor } => codes[index].to_f32() * tensor,
            Scales::Double { codes, steps, offset } => offset + f32::from(codes[index]) * steps[index / Scales::SECOND_LEVEL],
            Scales::Log(scales) => scales.at(index),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Scales::F32(list) => size_of_val(list.as_slice()),
            Scales::F16(list) => size_of_val(list.as_slice()),
            Scales::Bf16(list) => size_of_val(list.as_slice()),
            Scales::E8M0(list) => size_of_val(list.as_slice()),
            Scales::E4M3 { codes, tensor } => size_of_val(codes.as_slice()) + size_of_val(tensor),
            Scales::Double { codes, steps, offset } => size_of_val(codes.as_slice()) + size_of_val(steps.as_slice()) + size_of_val(offset),
            Scales::Log(scales) => scales.bytes(),
        }
    }

    /// How they are stored.
    pub fn format(&self) -> ScaleFormat {
        match self {
            Scales::F32(_) => ScaleFormat::F32,
            Scales::F16(_) => ScaleFormat::F16,
            Scales::Bf16(_) => ScaleFormat::Bf16,
            Scales::E8M0(_) => ScaleFormat::E8M0,
            Scales::E4M3 { .. } => ScaleFormat::E4M3,
            Scales::Double { .. } => ScaleFormat::Double,
            Scales::Log(scales) => ScaleFormat::Log(scales.codes().bits()),
        }
    }

    /// A list without a scale yet, its second level chosen for these.
    pub(crate) fn planned(format: ScaleFormat, wanted: &[f64]) -> Result<Scales> {
        let n = wanted.len();
        if let Some(largest) = wanted.iter().copied().find(|scale| (scale.abs() as f32).is_infinite()) {
            return Err(too_large(largest, format));
        }
        Ok(match format {
            ScaleFormat::F32 => Scales::F32(Vec::with_capacity(n)),
            ScaleFormat::F16 => Scales::F16(Vec::with_capacity(n)),
            ScaleFormat::Bf16 => Scales::Bf16(Vec::with_capacity(n)),
            ScaleFormat::E8M0 => Scales::E8M0(Vec::with_capacity(n)),
            ScaleFormat::E4M3 => {
                let largest = wanted.iter().fold(0.0f64, |largest, scale| largest.max(scale.abs()));
                let exact = largest / f64::from(F8E4M3::from_f32(f32::MAX, true).to_f32());
                // Where it is subnormal, rounded down it would clip.
                let tensor = if exact as f32 == 0.0 && exact > 0.0 { f32::from_bits(1) } else { exact as f32 };
                Scales::E4M3 { codes: Vec::with_capacity(n), tensor }
            }
            ScaleFormat::Log(bits) => Scales::Log(LogScales::planned(bits, wanted)),
            ScaleFormat::Double => {
                let offset = wanted.iter().copied().fold(f64::INFINITY, f64::min).min(f64::MAX);
                let offset = if n == 0 { 0.0 } else { offset as f32 };
                let step = |part: &[f64]| ((part.iter().copied().fold(0.0, f64::max) - f64::from(offset)).max(0.0) / 255.0) as f32;
                Scales::Double { codes: Vec::with_capacity(n), steps: wanted.chunks(Scales::SECOND_LEVEL).map(step).collect(), offset }
            }
        })
    }

    /// Scales that can be stored at `index` and are near `wanted`, the nearest first; of a wanted scale other than 0, none is 0.
    /// For powers of two the first is the next one up, or with `down` the next one down.
    pub(crate) fn candidates(&self, index: usize, wanted: f64, down: bool) -> Result<Candidates> {
        let size = wanted.abs() as f32;
        let signed = |magnitude: f32| if wanted < 0.0 { -magnitude } else { magnitude };
        if wanted == 0.0 && !matches!(self, Scales::E8M0(_) | Scales::Double { .. } | Scales::Log(_)) {
            return Ok(vec![0.0]);
        }
        // Floats are ordered as their bits are.
        let neighbours = |bits: u32, last: u32| {
            let bits = bits.max(1);
            [Some(bits), (bits > 1).then(|| bits - 1), (bits < last).then(|| bits + 1)].into_iter().flatten()
        };
        let too_large = || too_large(wanted, self.format());
        Ok(match self {
            Scales::F32(_) => neighbours(size.to_bits(), f32::MAX.to_bits()).map(|bits| signed(f32::from_bits(bits))).collect(),
            Scales::F16(_) => {
                let near = f16::from_f64(wanted.abs());
                if near.is_infinite() {
                    return Err(too_large());
                }
                neighbours(near.to_bits().into(), f16::MAX.to_bits().into())
                    .map(|bits| signed(f16::from_bits(bits as u16).to_f32()))
                    .collect()
            }
            Scales::Bf16(_) => {
                let near = bf16::from_f64(wanted.abs());
                if near.is_infinite() {
                    return Err(too_large());
                }
                neighbours(near.to_bits().into(), bf16::MAX.to_bits().into())
                    .map(|bits| signed(bf16::from_bits(bits as u16).to_f32()))
                    .collect()
            }
            Scales::E8M0(_) => {
                let [low, high] = [ScaleRounding::Down, ScaleRounding::Up].map(|rounding| F8E8M0::round(size, rounding, true).to_bits());
                let first = if down { [low, high] } else { [high, low] };
                let codes = [first[0], first[1], low.saturating_sub(1), high.saturating_add(1).min(254)];
                codes.into_iter().map(|code| F8E8M0::from_bits(code).to_f32()).collect()
            }
            Scales::E4M3 { tensor, .. } => {
                // 126 is the last number, 127 NaN.
                let near = F8E4M3::from_f32((wanted.abs() / f64::from(*tensor)) as f32, true).to_bits();
                neighbours(near.into(), 126).map(|bits| signed(F8E4M3::from_bits(bits as u8).to_f32() * tensor)).collect()
            }
            Scales::Log(scales) => scales.candidates(wanted),
            Scales::Double { steps, offset, .. } => {
                let step = steps[index / Scales::SECOND_LEVEL];
                let near =
                    if step > 0.0 { ((wanted - f64::from(*offset)) / f64::from(step)).round_ties_even().clamp(0.0, 255.0) } else { 0.0 };
                let codes = [near, (near - 1.0).max(0.0), (near + 1.0).min(255.0)];
                let values = codes.into_iter().map(|code| offset + code as f32 * step);
                let positive: Vec<f32> = values.clone().filter(|&value| wanted == 0.0 || value > 0.0).collect();
                if positive.is_empty() { values.collect() } else { positive }
            }
        })
    }

    /// Up to `count` scales that can be stored at `index`, from below the wanted one to above it; of logarithmic scales neighbours, else
    /// some 6 % apart. Of a wanted scale of 0, one.
    pub(crate) fn around(&self, index: usize, wanted: f64, count: usize) -> Result<Candidates> {
        let nearest = self.candidates(index, wanted, false)?[0];
        match self {
            _ if wanted == 0.0 => Ok(vec![nearest]),
            Scales::Log(scales) => Ok(scales.around(nearest, count)),
            _ => {
                let of = |step: usize| self.candidates(index, wanted * 1.06f64.powf(step as f64 - 0.5 * count as f64), false).ok();
                let mut all: Candidates = (0..count).filter_map(of).map(|near| near[0]).chain([nearest]).collect();
                all.sort_by(f32::total_cmp);
                all.dedup();
                all.truncate(count);
                Ok(all)
            }
        }
    }

    /// Stores one of the candidates for the next index.
    pub(crate) fn push(&mut self, scale: f32) {
        match self {
            Scales::F32(list) => list.push(scale),
            Scales::F16(list) => list.push(f16::from_f32(scale)),
            Scales::Bf16(list) => list.push(bf16::from_f32(scale)),
            Scales::E8M0(list) => list.push(F8E8M0::round(scale, ScaleRounding::Nearest, true)),
            Scales::E4M3 { codes, tensor } => {
                codes.push(F8E4M3::from_f32(if *tensor > 0.0 { scale / *tensor } else { 0.0 }, true));
            }
            Scales::Log(scales) => scales.push(scale),
            Scales::Double { codes, steps, offset } => {
                let step = steps[codes.len() / Scales::SECOND_LEVEL];
                codes.push(if step > 0.0 { ((scale - *offset) / step).round_ties_even() as u8 } else { 0 });
            }
        }
    }
}

fn too_large(scale: f64, format: ScaleFormat) -> Error {
    Error::parameter(
        "scale of a group",
        scale,
        format!("is more than {format} holds: store scales as f32 or bf16, or bring the weights to a smaller range"),
    )
}
