//! From weights to codes.

use crate::error::{Error, Result};
use crate::num::{NonFinite, f16};
use crate::quant::codebook::{Codebook, check_weights};
use crate::quant::stochastic::Rounding;
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::asymmetric::{OffsetFitter, ZeroPointFitter};
use crate::quant::weights::encode::Encoder;
use crate::quant::weights::gathered::Gathered;
use crate::quant::weights::group::ScaleFitter;
use crate::quant::weights::learned::Lesson;
use crate::quant::weights::nearest::Nearest;
use crate::quant::weights::parallel::map_groups;
use crate::quant::weights::quantized::fixed_alphabet;
use crate::quant::weights::shifted::{self, SHIFT_BITS, ShiftFitter};
use crate::quant::weights::sparse::largest;
use crate::quant::weights::trellis::TrellisFitter;
use crate::quant::weights::{
    Grouping, Kept, Levels, LogScales, PackedCodes, QuantizedWeights, ScaleFormat, Scales, SparseSplit, StoredLevels, WeightFormat, Zeros,
};
use crate::tensor::Tensor;

/// Groups that a choice for the whole tensor is made by.
const SAMPLE: usize = 128;

/// Codes, scales, what moves codes away from zero, levels.
type Encoded = (Vec<u16>, Scales, Zeros, StoredLevels);

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
    /// last on its side (of [`Levels::Trellis`], the nearest to these that the codes around it leave).
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
    /// sensitivities below zero or not finite, [`Error::Length`] when these are not as many as the weights; [`Error::Unsupported`] for
    /// stochastic rounding of [`Levels::Trellis`].
    pub fn quantize(&self, weight: &Tensor) -> Result<QuantizedWeights> {
        self.non_finite.check("weight to quantize", weight.as_slice())?;
        check_weights(weight.len(), self.sensitivities)?;
        if matches!(self.format.levels(), Levels::Trellis(_)) && self.rounding != Rounding::Nearest {
            return Err(Error::Unsupported {
                what: format!("weights of {} rounded otherwise than to the nearest", self.format),
                way_out: "choose levels without a trellis".into(),
            });
        }
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

    /// Codes and scales, those of kept weights without meaning.
    fn dense(&self, weight: &Tensor, kept: &[usize]) -> Result<QuantizedWeights> {
        let groups = self.format.grouping().of(weight.shape())?;
        let gathered = Gathered::new(weight.as_slice(), self.sensitivities, kept, groups);
        let bits = self.format.bits();
        let encoder = Encoder { x: weight.as_slice(), groups, bits, rounding: self.rounding };
        let (codes, scales, zeros, levels) = match self.format.levels() {
            Levels::Uint(_) => self.with_zero_points(&gathered, encoder)?,
            Levels::Offset(_) => self.with_offsets(&gathered, encoder)?,
            Levels::Shifted(_) => self.with_shifts(&gathered, encoder)?,
            Levels::Trellis(bits) => {
                let fitter = TrellisFitter::new(*bits, weight.as_slice(), self.sensitivities, kept, groups, &gathered)?;
                let (codes, scales) = fitter.fit(self.format.scale_format())?;
                (codes, scales, Zeros::None, StoredLevels::None)
            }
            Levels::Learned { rule, bits, zero, own } => {
                self.with_learned(&gathered, encoder, Lesson { rule: *rule, bits: *bits, zero: *zero }, *own)?
            }
            levels => {
                let alphabet = fixed_alphabet(levels)
                    .ok_or_else(|| Error::Unsupported { what: format!("{}", self.format), way_out: "choose another format".into() })?;
                let (codes, scales) = self.fitted(&alphabet, &gathered, encoder)?;
                let stored = if let Levels::Custom(book) = levels { StoredLevels::Shared(book.clone()) } else { StoredLevels::None };
                (codes, scales, Zeros::None, stored)
            }
        };
        Ok(QuantizedWeights {
            format: self.format.clone(),
            shape: weight.shape().clone(),
            groups,
            codes: PackedCodes::of(bits, &codes),
            scales,
            zeros,
            levels,
            kept: None,
        })
    }

    /// Codes, and a scale for each group over one alphabet.
    fn fitted(&self, alphabet: &Alphabet, gathered: &Gathered, encoder: Encoder) -> Result<(Vec<u16>, Scales)> {
        let nearest = Nearest::of(alphabet);
        let (format, fit) = (self.format.scale_format(), self.format.fit());
        let start = || ScaleFitter::new(alphabet, &nearest, fit, format.is_signed());
        let wanted = map_groups(gathered.len(), gathered.weights(), start, |fitter, i| fitter.wanted(gathered.group(i)));
        let mut scales = Scales::planned(format, &wanted)?;
        let stored =
            map_groups(wanted.len(), gathered.weights(), start, |fitter, i| fitter.stored(gathered.group(i), wanted[i], &scales, i));
        for scale in stored {
            scales.push(scale?);
        }
        Ok((encoder.over(alphabet, &nearest, &scales), scales))
    }

    fn with_learned(&self, gathered: &Gathered, encoder: Encoder, lesson: Lesson, own: bool) -> Result<Encoded> {
        if own {
            // Scales by range: the levels do the rest.
            let wanted: Vec<f64> = gathered.all().iter().map(|x| f64::from(x.largest())).collect();
            let mut scales = Scales::planned(self.format.scale_format(), &wanted)?;
            for (index, &wanted) in wanted.iter().enumerate() {
                let scale = scales.candidates(index, wanted, false)?[0];
                scales.push(scale);
            }
            let learned = map_groups(wanted.len(), gathered.weights(), || (), |(), i| lesson.own(gathered.group(i), scales.at(i)));
            let (mut stored, mut tables) = (Vec::<f16>::with_capacity(wanted.len() << lesson.bits), Vec::new());
            for levels in learned {
                let levels = levels?;
                let mut distinct: Vec<f32> = levels.iter().map(|level| level.to_f32()).collect();
                distinct.dedup();
                let alphabet = Alphabet::Table(Codebook::of_any_length(distinct)?);
                let nearest = Nearest::of(&alphabet);
                tables.push((alphabet, nearest));
                stored.extend(levels);
            }
            return Ok((encoder.over_tables(&tables, |group| group, &scales), scales, Zeros::None, StoredLevels::Own(stored)));
        }
        if self.format.grouping() == Grouping::Tensor {
            // The levels as they are: a scale of 1.
            let all = gathered.everything();
            let book = Codebook::of_any_length(lesson.learn(all.values, Some(all.weights).filter(|weights| !weights.is_empty()))?)?;
            let mut scales = Scales::planned(self.format.scale_format(), &[1.0])?;
            let scale = scales.candidates(0, 1.0, false)?[0];
            scales.push(scale);
            let alphabet = Alphabet::Table(book.clone());
            let codes = encoder.over(&alphabet, &Nearest::of(&alphabet), &scales);
            return Ok((codes, scales, Zeros::None, StoredLevels::Shared(book)));
        }
        let book = lesson.shared(&gathered.all(), self.format.fit(), self.format.scale_format().is_signed())?;
        let (codes, scales) = self.fitted(&Alphabet::Table(book.clone()), gathered, encoder)?;
        Ok((codes, scales, Zeros::None, StoredLevels::Shared(book)))
    }

    fn with_zero_points(&self, gathered: &Gathered, encoder: Encoder) -> Result<Encoded> {
        let (bits, fit) = (self.format.bits(), self.format.fit());
        let start = || ZeroPointFitter::new(bits, fit);
        let wanted = map_groups(gathered.len(), gathered.weights(), start, |fitter, i| fitter.wanted(gathered.group(i)));
        let mut scales = Scales::planned(self.format.scale_format(), &wanted.iter().map(|grid| grid.0).collect::<Vec<_>>())?;
        let stored =
            map_groups(wanted.len(), gathered.weights(), start, |fitter, i| fitter.stored(gathered.group(i), wanted[i], &scales, i));
        let mut zero_points = Vec::with_capacity(wanted.len());
        for grid in stored {
            let (scale, zero_point) = grid?;
            scales.push(scale);
            zero_points.push(zero_point as u16);
        }
        let codes = encoder.with_zero_points(&scales, &zero_points);
        Ok((codes, scales, Zeros::Points(PackedCodes::of(bits, &zero_points)), StoredLevels::None))
    }

    fn with_shifts(&self, gathered: &Gathered, encoder: Encoder) -> Result<Encoded> {
        let bits = self.format.bits();
        let tables = shifted::tables(bits)?;
        let start = || ShiftFitter::new(bits, &tables);
        let wanted = map_groups(gathered.len(), gathered.weights(), start, |fitter, i| fitter.wanted(gathered.group(i)));
        let mut plans = match self.format.scale_format() {
            ScaleFormat::Log(bits) => LogScales::plans(bits, &wanted).into_iter().map(Scales::Log).collect(),
            format => vec![Scales::planned(format, &wanted)?],
        };
        // Which plan is best, some of the groups tell.
        let every = wanted.len().div_ceil(SAMPLE).max(1);
        let fitter = start();
        let mut errors = Vec::with_capacity(plans.len());
        for plan in plans.iter().filter(|_| plans.len() > 1) {
            let one = |i: usize| Ok(fitter.stored(gathered.group(i), wanted[i], plan, i)?.0);
            errors.push((0..wanted.len()).step_by(every).map(one).sum::<Result<f64>>()?);
        }
        let best = (0..errors.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
        let mut scales = plans.swap_remove(best);
        let stored =
            map_groups(wanted.len(), gathered.weights(), start, |fitter, i| fitter.stored(gathered.group(i), wanted[i], &scales, i));
        let mut shifts = Vec::with_capacity(wanted.len());
        for grid in stored {
            let (_, scale, shift) = grid?;
            scales.push(scale);
            shifts.push(shift);
        }
        let codes = encoder.over_tables(&tables, |group| shifts[group].into(), &scales);
        Ok((codes, scales, Zeros::Shifts(PackedCodes::of(SHIFT_BITS, &shifts)), StoredLevels::None))
    }

    fn with_offsets(&self, gathered: &Gathered, encoder: Encoder) -> Result<Encoded> {
        let fitter = OffsetFitter::new(self.format.bits(), self.format.fit());
        let wanted = map_groups(gathered.len(), gathered.weights(), || (), |(), i| fitter.wanted(gathered.group(i)));
        let (steps, begins): (Vec<f64>, Vec<f64>) = wanted.iter().copied().unzip();
        let mut scales = Scales::planned(self.format.scale_format(), &steps)?;
        let mut offsets = Scales::planned(self.format.scale_format(), &begins)?;
        let lists = (&scales, &offsets);
        let stored = map_groups(wanted.len(), gathered.weights(), || (), |(), i| fitter.stored(gathered.group(i), wanted[i], lists, i));
        for grid in stored {
            let (scale, offset) = grid?;
            scales.push(scale);
            offsets.push(offset);
        }
        Ok((encoder.with_offsets(&scales, &offsets), scales, Zeros::Offsets(offsets), StoredLevels::None))
    }
}
