//! Scales that are powers of one ratio.

use crate::num::{F8E8M0, ScaleRounding, SmallFloat};
use crate::quant::weights::PackedCodes;

/// Distances below the largest scale are counted in such parts of an octave, up to so many of them.
const PARTS: f64 = 32.0;
const BINS: usize = 256;
/// The steepest ratio is 1 - 192/256.
const STEEPEST: u8 = 192;
/// Scales so few that the logarithm tells less than their errors.
const FEW: usize = 16;

/// Scales `2^e · (1 - fall / 256)^code`, by as many products in f32: codes of a few bits each, a power of two and a `fall` (8 bits each)
/// of the tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct LogScales {
    codes: PackedCodes,
    largest: F8E8M0,
    fall: u8,
}

impl LogScales {
    /// These codes, and what they stand for.
    pub fn new(codes: PackedCodes, largest: F8E8M0, fall: u8) -> Self {
        LogScales { codes, largest, fall }
    }

    /// The codes.
    pub fn codes(&self) -> &PackedCodes {
        &self.codes
    }

    /// The scale of code 0.
    pub fn largest(&self) -> F8E8M0 {
        self.largest
    }

    /// 256 times what a code takes off the scale before it, as a share.
    pub fn fall(&self) -> u8 {
        self.fall
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.as_bytes().len() + size_of_val(&self.largest) + size_of_val(&self.fall)
    }

    pub(crate) fn at(&self, index: usize) -> f32 {
        self.value(self.codes.get(index).expect("an index below the number of scales"))
    }

    fn value(&self, code: u32) -> f32 {
        let ratio = f32::from(256 - u16::from(self.fall)) / 256.0;
        (0..code).fold(self.largest.to_f32(), |scale, _| scale * ratio)
    }

    fn values(&self) -> impl Iterator<Item = (u32, f32)> {
        (0..1 << self.codes.bits()).map(|code| (code, self.value(code)))
    }

    /// Without codes yet: power and fall of least `Σ s² · log²(s / nearest scale)` over the wanted scales `s`. Squared error grows as the
    /// square of the logarithm, from what it is at best, which grows as the square of the scale.
    pub(crate) fn planned(bits: u32, wanted: &[f64]) -> Self {
        LogScales::plans(bits, wanted).remove(0)
    }

    /// The one of least cost, and others that may be as good.
    pub(crate) fn plans(bits: u32, wanted: &[f64]) -> Vec<Self> {
        let largest = wanted.iter().fold(0.0f64, |largest, scale| largest.max(scale.abs()));
        let plan = |largest, fall| LogScales { codes: PackedCodes::with_room(bits, wanted.len()), largest, fall };
        if largest == 0.0 {
            return vec![plan(F8E8M0::from_bits(0), 0)];
        }
        let mut bins = vec![0.0; BINS];
        for scale in wanted.iter().map(|scale| scale.abs()).filter(|scale| *scale > 0.0) {
            let below = (largest / scale).log2() * PARTS;
            bins[(below.round() as usize).min(BINS - 1)] += (scale / largest).powi(2);
        }
        let last = f64::from((1u32 << bits) - 1);
        let powers = [ScaleRounding::Up, ScaleRounding::Down].map(|rounding| F8E8M0::round(largest as f32, rounding, true));
        let mut best = powers.map(|power| {
            let above = (f64::from(power.to_f32()) / largest).log2() * PARTS;
            let cost = |fall: u8| {
                let step = -(1.0 - f64::from(fall) / 256.0).log2() * PARTS;
                let off = |(bin, weight): (usize, &f64)| {
                    let wanted = bin as f64 + above;
                    let code = if step > 0.0 { (wanted / step).round().clamp(0.0, last) } else { 0.0 };
                    weight * (wanted - code * step).powi(2)
                };
                bins.iter().enumerate().filter(|(_, weight)| **weight > 0.0).map(off).sum::<f64>()
            };
            let least = (0..=STEEPEST).map(|fall| (cost(fall), fall)).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
            (least.0, power, least.1)
        });
        best.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut plans = Vec::new();
        for (_, power, fall) in best {
            let part = |part: f64| plan(power, (f64::from(fall) * part).round().min(f64::from(STEEPEST)) as u8);
            plans.extend([1.0, 0.95, 1.05, 0.9, 1.1, 0.8, 1.25].map(part));
            if wanted.len() <= FEW {
                plans.extend((0..=STEEPEST).step_by(4).map(|fall| plan(power, fall)));
            }
        }
        plans
    }

    /// The nearest to `wanted`, and its neighbours.
    pub(crate) fn candidates(&self, wanted: f64) -> Vec<f32> {
        let last = (1u32 << self.codes.bits()) - 1;
        let off = |scale: f32| (f64::from(scale) / wanted.abs()).ln().abs();
        let nearest = self.values().min_by(|a, b| off(a.1).total_cmp(&off(b.1))).map_or(last, |(code, _)| code);
        let nearest = if wanted == 0.0 { last } else { nearest };
        [nearest, nearest.saturating_sub(1), (nearest + 1).min(last)].map(|code| self.value(code)).to_vec()
    }

    /// Up to `count` neighbours, one of which is this scale.
    pub(crate) fn around(&self, scale: f32, count: usize) -> Vec<f32> {
        let code = self.values().find(|(_, value)| *value == scale).map_or(0, |(code, _)| code) as usize;
        let first = code.saturating_sub(count / 2).min((1usize << self.codes.bits()).saturating_sub(count));
        self.values().skip(first).take(count).map(|(_, value)| value).collect()
    }

    /// Stores one of the candidates.
    pub(crate) fn push(&mut self, scale: f32) {
        let code = self.values().find(|(_, value)| *value == scale).map_or(0, |(code, _)| code);
        self.codes.push(code as u16);
    }
}
