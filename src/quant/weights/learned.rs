//! Levels learned from the weights they are for.

use crate::error::Result;
use crate::num::f16;
use crate::quant::codebook::{Codebook, kmeans, quantile_levels};
use crate::quant::level_search::Weighted;
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::group::ScaleFitter;
use crate::quant::weights::nearest::Nearest;
use crate::quant::weights::parallel::map_groups;
use crate::quant::weights::{Fit, Learning};

/// Rounds of scales for levels and levels for scales. Gains after the third were below 0.01 dB.
const ROUNDS: usize = 4;

/// How many levels, and which.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lesson {
    pub rule: Learning,
    pub bits: u32,
    pub zero: bool,
}

impl Lesson {
    pub(crate) fn learn(self, values: &[f32], weights: Option<&[f32]>) -> Result<Vec<f32>> {
        match self.rule {
            Learning::KMeans => kmeans(values, weights, 1 << self.bits, self.zero),
            Learning::Quantile => quantile_levels(values, weights, 1 << self.bits, self.zero),
        }
    }

    /// One list for all groups. By least squares, scales and levels take turns, and the best pair is kept.
    pub(crate) fn shared(self, groups: &[Weighted], fit: Fit, signed: bool) -> Result<Codebook> {
        let mut scales: Vec<f64> = groups.iter().map(|x| f64::from(x.largest())).collect();
        let mut best: Option<(f64, Codebook)> = None;
        for _ in 0..if fit == Fit::LeastSquares { ROUNDS } else { 1 } {
            let (mut values, mut weights) = (Vec::new(), Vec::new());
            let unit = scales.iter().fold(0.0f64, |largest, scale| largest.max(scale.abs()));
            for (x, &scale) in groups.iter().zip(&scales).filter(|(_, scale)| **scale != 0.0) {
                // The error of a value is the scale times that of its quotient.
                let share = (scale / unit).powi(2);
                values.extend(x.iter().map(|(x, _)| (x / scale) as f32));
                weights.extend(x.iter().map(|(_, w)| (w * share) as f32));
            }
            let book = Codebook::of_any_length(self.learn(&values, Some(&weights))?)?;
            if fit != Fit::LeastSquares {
                return Ok(book);
            }
            let alphabet = Alphabet::Table(book.clone());
            let nearest = Nearest::of(&alphabet);
            let start = || ScaleFitter::new(&alphabet, &nearest, fit, signed);
            let fitted = map_groups(groups.len(), values.len(), start, |fitter, i| {
                let scale = fitter.wanted(groups[i]);
                (scale, nearest.error(groups[i], scale as f32))
            });
            let error = fitted.iter().map(|(_, error)| error).sum::<f64>();
            scales = fitted.into_iter().map(|(scale, _)| scale).collect();
            match &best {
                Some((least, _)) if *least <= error => break,
                _ => best = Some((error, book)),
            }
        }
        best.map_or_else(|| Codebook::of_any_length(vec![0.0]), |(_, book)| Ok(book))
    }

    /// A list for one group at this scale, rounded to f16, the last level repeated where there are fewer than codes.
    pub(crate) fn own(self, x: Weighted, scale: f32) -> Result<Vec<f16>> {
        let values: Vec<f32> = x.values.iter().map(|x| if scale > 0.0 { x / scale } else { 0.0 }).collect();
        let weights = Some(x.weights).filter(|weights| !weights.is_empty());
        let mut levels: Vec<f16> = self.learn(&values, weights)?.into_iter().map(f16::from_f32).collect();
        levels.dedup();
        let last = levels.last().copied().unwrap_or(f16::ZERO);
        levels.resize(1 << self.bits, last);
        Ok(levels)
    }
}
