//! From weights to codes.

use crate::error::{Error, Result};
use crate::num::{NonFinite, f16, quantize};
use crate::quant::codebook::Codebook;
use crate::quant::codebook::check_weights;
use crate::quant::level_search::Weighted;
use crate::quant::stochastic::{Rounding, random_unit};
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::asymmetric::{OffsetFitter, ZeroPointFitter, offset_code};
use crate::quant::weights::group::ScaleFitter;
use crate::quant::weights::grouping::Groups;
use crate::quant::weights::learned::Lesson;
use crate::quant::weights::quantized::fixed_alphabet;
use crate::quant::weights::sparse::largest;
use crate::quant::weights::{
    Grouping, Kept, Levels, PackedCodes, QuantizedWeights, Scales, SparseSplit, StoredLevels, WeightFormat, Zeros,
};
use crate::tensor::Tensor;

/// Quantizes weights to a [`WeightFormat`].
///
/// ```
/// use lowprec::quant::{Rounding, WeightQuantizer};
/// use lowprec::Tensor;
/// let weight = Tensor::new([1, 4], vec![0.1, -0.2, 0.3, 1.0])?;
/// let quantizer = WeightQuantizer::new("int2:range".parse()?);
/// assert_eq!(quantizer.quantize(&weight)?.dequantize().as_slice(), [0.0, 0.0, 0.0, 1.0]);
/// // 0.3 becomes 1 three times of ten: with this seed once.
/// let drawn = quantizer.with_rounding(Rounding::Stochastic { seed: 2 }).quantize(&weight)?;
/// assert_eq!(drawn.dequantize().as_slice(), [0.0, 0.0, 1.0, 1.0]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct WeightQuantizer<'a> {
    format: WeightFormat,
    sensitivities: Option<&'a [f32]>,
    rounding: Rounding,
    non_finite: NonFinite,
}

/// The weights that count in fits, one group after the other.
struct Gathered {
    values: Vec<f32>,
    weights: Vec<f32>,
    ends: Vec<usize>,
}

impl Gathered {
    fn group(&self, index: usize) -> Weighted<'_> {
        let range = index.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[index];
        Weighted { values: &self.values[range.clone()], weights: if self.weights.is_empty() { &[] } else { &self.weights[range] } }
    }

    fn all(&self) -> Vec<Weighted<'_>> {
        (0..self.ends.len()).map(|i| self.group(i)).collect()
    }
}

impl<'a> WeightQuantizer<'a> {
    /// A quantizer to the nearest codes; NaN and infinities are refused.
    pub fn new(format: WeightFormat) -> Self {
        WeightQuantizer { format, sensitivities: None, rounding: Rounding::Nearest, non_finite: NonFinite::Error }
    }

    /// With a weight for each squared error, in row-major order, for least squares, learned levels and what is kept: say the
    /// diagonal of a Fisher or Hessian matrix. Not below zero.
    #[must_use]
    pub fn with_sensitivities(self, sensitivities: &'a [f32]) -> Self {
        WeightQuantizer { sensitivities: Some(sensitivities), ..self }
    }

    /// With other rounding of codes; scales and levels are chosen as for the nearest.
    #[must_use]
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        WeightQuantizer { rounding, ..self }
    }

    /// With a policy for NaN and infinities: to leave them out of scales, NaN then having the code of zero and an infinity the
    /// last on its side.
    #[must_use]
    pub fn with_non_finite(self, non_finite: NonFinite) -> Self {
        WeightQuantizer { non_finite, ..self }
    }

    /// The format.
    pub fn format(&self) -> &WeightFormat {
        &self.format
    }

    /// The weights in the format.
    ///
    /// # Errors
    /// [`Error::NonFinite`] unless the policy takes them, [`Error::Parameter`] for a scale that its format cannot hold and for
    /// sensitivities below zero or not finite, [`Error::Length`] when these are not as many as the weights.
    pub fn quantize(&self, weight: &Tensor) -> Result<QuantizedWeights> {
        self.non_finite.check("weight to quantize", weight.as_slice())?;
        check_weights(weight.len(), self.sensitivities)?;
        let kept = self.kept(weight)?;
        let split = match self.format.keep() {
            Some(_) => Some(SparseSplit::new(weight.shape(), weight.as_slice(), &kept)?),
            None => None,
        };
        let mut quantized = self.dense(weight, &kept)?;
        quantized.kept = split;
        Ok(quantized)
    }

    /// Flat indices of the weights to keep exactly, ascending.
    fn kept(&self, weight: &Tensor) -> Result<Vec<usize>> {
        let Some(keep) = self.format.keep() else { return Ok(Vec::new()) };
        let x = weight.as_slice();
        let count = (f64::from(keep.fraction) * x.len() as f64).round() as usize;
        let finite = (0..x.len()).filter(|&i| x[i].is_finite());
        Ok(match keep.which {
            Kept::Largest => largest(count, |i| f64::from(x[i].abs()), finite),
            Kept::Smallest => largest(count, |i| -f64::from(x[i].abs()), finite.filter(|&i| x[i] != 0.0)),
            Kept::Sensitive => {
                let dense = self.dense(weight, &[])?.dequantize();
                let sensitivity = |i: usize| self.sensitivities.map_or(1.0, |list| f64::from(list[i]));
                largest(count, |i| sensitivity(i) * (f64::from(x[i]) - f64::from(dense.as_slice()[i])).powi(2), finite)
            }
        })
    }

    fn gather(&self, x: &[f32], kept: &[usize], groups: Groups) -> Gathered {
        let mut gathered = Gathered { values: Vec::with_capacity(x.len()), weights: Vec::new(), ends: Vec::new() };
        let mut kept = kept.iter().copied().peekable();
        for group in 0..groups.len() {
            for i in groups.range(group) {
                if kept.next_if_eq(&i).is_none() && x[i].is_finite() {
                    gathered.values.push(x[i]);
                    gathered.weights.extend(self.sensitivities.map(|list| list[i]));
                }
            }
            gathered.ends.push(gathered.values.len());
        }
        gathered
    }

    /// Codes and scales, those of kept weights without meaning.
    fn dense(&self, weight: &Tensor, kept: &[usize]) -> Result<QuantizedWeights> {
        let groups = self.format.grouping().of(weight.shape())?;
        let gathered = self.gather(weight.as_slice(), kept, groups);
        let bits = self.format.bits();
        let mut codes = Vec::with_capacity(groups.weights());
        let x = weight.as_slice();
        let (scales, zeros, levels) = match self.format.levels() {
            Levels::Uint(_) => self.with_zero_points(x, groups, &gathered, &mut codes)?,
            Levels::Offset(_) => self.with_offsets(x, groups, &gathered, &mut codes)?,
            Levels::Learned { rule, bits, zero, own } => {
                self.with_learned(x, groups, &gathered, Lesson { rule: *rule, bits: *bits, zero: *zero }, *own, &mut codes)?
            }
            levels => {
                let alphabet = fixed_alphabet(levels)
                    .ok_or_else(|| Error::Unsupported { what: format!("{}", self.format), way_out: "choose another format".into() })?;
                let scales = self.fitted(&alphabet, &gathered)?;
                self.encode(x, groups, &scales, |_| &alphabet, &mut codes);
                let stored = if let Levels::Custom(book) = levels { StoredLevels::Shared(book.clone()) } else { StoredLevels::None };
                (scales, Zeros::None, stored)
            }
        };
        Ok(QuantizedWeights {
            format: self.format.clone(),
            shape: weight.shape().clone(),
            groups,
            codes: PackedCodes::new(bits, codes)?,
            scales,
            zeros,
            levels,
            kept: None,
        })
    }

    /// A scale for each group over one alphabet.
    fn fitted(&self, alphabet: &Alphabet, gathered: &Gathered) -> Result<Scales> {
        let mut fitter = ScaleFitter::new(alphabet, self.format.fit(), self.format.scale_format().is_signed());
        let groups = gathered.all();
        let wanted: Vec<f64> = groups.iter().map(|&x| fitter.wanted(x)).collect();
        let mut scales = Scales::planned(self.format.scale_format(), &wanted)?;
        for (index, (&x, &wanted)) in groups.iter().zip(&wanted).enumerate() {
            let scale = fitter.stored(x, wanted, &scales, index)?;
            scales.push(scale);
        }
        Ok(scales)
    }

    fn with_learned(
        &self,
        x: &[f32],
        groups: Groups,
        gathered: &Gathered,
        lesson: Lesson,
        own: bool,
        codes: &mut Vec<u32>,
    ) -> Result<(Scales, Zeros, StoredLevels)> {
        let list = gathered.all();
        if own {
            // Scales by range: the levels do the rest.
            let wanted: Vec<f64> = list.iter().map(|x| f64::from(x.largest())).collect();
            let mut scales = Scales::planned(self.format.scale_format(), &wanted)?;
            let (mut stored, mut alphabets) = (Vec::<f16>::new(), Vec::new());
            for (index, (&x, &wanted)) in list.iter().zip(&wanted).enumerate() {
                let scale = scales.candidates(index, wanted, false)?[0];
                scales.push(scale);
                let levels = lesson.own(x, scale)?;
                let mut distinct: Vec<f32> = levels.iter().map(|level| level.to_f32()).collect();
                distinct.dedup();
                alphabets.push(Alphabet::Table(Codebook::of_any_length(distinct)?));
                stored.extend(levels);
            }
            self.encode(x, groups, &scales, |group| &alphabets[group], codes);
            return Ok((scales, Zeros::None, StoredLevels::Own(stored)));
        }
        if self.format.grouping() == Grouping::Tensor {
            // The levels as they are: a scale of 1.
            let weights = Some(gathered.weights.as_slice()).filter(|weights| !weights.is_empty());
            let alphabet = Alphabet::Table(Codebook::of_any_length(lesson.learn(&gathered.values, weights)?)?);
            let mut scales = Scales::planned(self.format.scale_format(), &[1.0])?;
            let scale = scales.candidates(0, 1.0, false)?[0];
            scales.push(scale);
            self.encode(x, groups, &scales, |_| &alphabet, codes);
            return Ok((scales, Zeros::None, shared(alphabet)));
        }
        let book = lesson.shared(&list, self.format.fit(), self.format.scale_format().is_signed())?;
        let alphabet = Alphabet::Table(book);
        let scales = self.fitted(&alphabet, gathered)?;
        self.encode(x, groups, &scales, |_| &alphabet, codes);
        Ok((scales, Zeros::None, shared(alphabet)))
    }

    fn with_zero_points(
        &self,
        x: &[f32],
        groups: Groups,
        gathered: &Gathered,
        codes: &mut Vec<u32>,
    ) -> Result<(Scales, Zeros, StoredLevels)> {
        let bits = self.format.bits();
        let qmax = (1i32 << bits) - 1;
        let mut fitter = ZeroPointFitter::new(bits, self.format.fit());
        let list = gathered.all();
        let wanted: Vec<(f64, i32)> = list.iter().map(|&x| fitter.wanted(x)).collect();
        let mut scales = Scales::planned(self.format.scale_format(), &wanted.iter().map(|grid| grid.0).collect::<Vec<_>>())?;
        let mut zero_points = Vec::with_capacity(wanted.len());
        for (index, (&group, &wanted)) in list.iter().zip(&wanted).enumerate() {
            let (scale, zero_point) = fitter.stored(group, wanted, &scales, index)?;
            scales.push(scale);
            zero_points.push(zero_point as u32);
            codes.extend(groups.range(index).map(|i| match self.rounding {
                Rounding::Stochastic { seed } if x[i].is_finite() && scale > 0.0 => {
                    let drawn = (x[i] / scale + random_unit(seed, i as u64)).floor() + zero_point as f32;
                    drawn.clamp(0.0, qmax as f32) as u32
                }
                _ if scale == 0.0 => zero_point as u32,
                _ => quantize(x[i], scale, zero_point, 0, qmax) as u32,
            }));
        }
        Ok((scales, Zeros::Points(PackedCodes::new(bits, zero_points)?), StoredLevels::None))
    }

    fn with_offsets(&self, x: &[f32], groups: Groups, gathered: &Gathered, codes: &mut Vec<u32>) -> Result<(Scales, Zeros, StoredLevels)> {
        let bits = self.format.bits();
        let qmax = (1i32 << bits) - 1;
        let fitter = OffsetFitter::new(bits, self.format.fit());
        let list = gathered.all();
        let wanted: Vec<(f64, f64)> = list.iter().map(|&x| fitter.wanted(x)).collect();
        let (steps, begins): (Vec<f64>, Vec<f64>) = wanted.iter().copied().unzip();
        let mut scales = Scales::planned(self.format.scale_format(), &steps)?;
        let mut offsets = Scales::planned(self.format.scale_format(), &begins)?;
        for (index, (&group, &wanted)) in list.iter().zip(&wanted).enumerate() {
            let (scale, offset) = fitter.stored(group, wanted, (&scales, &offsets), index)?;
            scales.push(scale);
            offsets.push(offset);
            codes.extend(groups.range(index).map(|i| match self.rounding {
                Rounding::Stochastic { seed } if x[i].is_finite() && scale > 0.0 => {
                    let drawn = ((x[i] - offset) / scale + random_unit(seed, i as u64)).floor();
                    drawn.clamp(0.0, qmax as f32) as u32
                }
                // NaN has the code nearest to zero.
                _ => offset_code(if x[i].is_nan() { 0.0 } else { x[i] }, scale, offset, qmax) as u32,
            }));
        }
        Ok((scales, Zeros::Offsets(offsets), StoredLevels::None))
    }

    fn encode<'b>(&self, x: &[f32], groups: Groups, scales: &Scales, alphabet: impl Fn(usize) -> &'b Alphabet, codes: &mut Vec<u32>) {
        // Of an alphabet that all groups share, the levels are listed once.
        let mut listed: Option<(*const Alphabet, Vec<f32>)> = None;
        for group in 0..groups.len() {
            let (scale, alphabet) = (scales.at(group), alphabet(group));
            let values = groups.range(group).map(|i| (i, x[i]));
            match self.rounding {
                _ if scale == 0.0 => codes.extend(values.map(|_| alphabet.code(0.0))),
                Rounding::Nearest => codes.extend(values.map(|(_, x)| alphabet.code(x / scale))),
                Rounding::Stochastic { seed } => {
                    if listed.as_ref().is_none_or(|(of, _)| !std::ptr::eq(*of, alphabet)) {
                        listed = Some((alphabet, alphabet.levels()));
                    }
                    let levels = listed.as_ref().map_or(&[][..], |(_, levels)| levels);
                    codes.extend(values.map(|(i, x)| alphabet.code(drawn(x / scale, levels, random_unit(seed, i as u64)))));
                }
            }
        }
    }
}

fn shared(alphabet: Alphabet) -> StoredLevels {
    match alphabet {
        Alphabet::Table(book) => StoredLevels::Shared(book),
        Alphabet::Fixed { .. } | Alphabet::Float(_) => StoredLevels::None,
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
