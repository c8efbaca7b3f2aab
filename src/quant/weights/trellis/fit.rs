//! Scales for groups, and codes with them.

use super::search::{LANES, Search, Target};
use super::{in_run, levels};
use crate::error::Result;
use crate::quant::codebook::Codebook;
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::gathered::Gathered;
use crate::quant::weights::group::ScaleFitter;
use crate::quant::weights::grouping::Groups;
use crate::quant::weights::nearest::Nearest;
use crate::quant::weights::parallel::map_groups;
use crate::quant::weights::{Fit, LogScales, ScaleFormat, Scales};

/// Groups that a choice for the whole tensor is made by.
const SAMPLE: usize = 64;

/// Weights of a tensor on their way to codes.
pub(crate) struct TrellisFitter<'a> {
    search: Search,
    levels: Vec<f32>,
    x: &'a [f32],
    /// Of squared errors, the largest 1; empty where all are.
    weights: Vec<f32>,
    groups: Groups,
    gathered: &'a Gathered<'a>,
}

impl<'a> TrellisFitter<'a> {
    /// All of `x`; those of the indices `kept` and those that are not finite do not count, nor are they `gathered`.
    ///
    /// # Errors
    /// Those of [`levels`].
    pub(crate) fn new(
        bits: u32,
        x: &'a [f32],
        sensitivities: Option<&[f32]>,
        kept: &[usize],
        groups: Groups,
        gathered: &'a Gathered<'a>,
    ) -> Result<Self> {
        let levels = levels(bits)?;
        let mut weights = Vec::new();
        if sensitivities.is_some() || gathered.weights() < x.len() {
            let largest = sensitivities.iter().flat_map(|list| list.iter().copied()).fold(0.0, f32::max);
            let of = |i: usize| sensitivities.filter(|_| largest > 0.0).map_or(1.0, |list| list[i] / largest);
            weights.extend((0..x.len()).map(|i| if x[i].is_finite() { of(i) } else { 0.0 }));
            kept.iter().for_each(|&index| weights[index] = 0.0);
        }
        Ok(TrellisFitter { search: Search::new(&levels), levels, x, weights, groups, gathered })
    }

    /// Codes and scales. Of logarithmic scales, which are few, and of all others some around that of least error without the trellis,
    /// each group takes the one that is best for the run.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) for a scale that its format cannot hold.
    pub(crate) fn fit(&self, format: ScaleFormat) -> Result<(Vec<u16>, Scales)> {
        let wanted = self.wanted()?;
        let mut scales = self.planned(format, &wanted)?;
        let per = in_run(self.groups);
        let runs = wanted.len().div_ceil(per);
        let found = map_groups(
            runs,
            self.x.len(),
            || (),
            |(), run| {
                let targets = self.targets(run * per..((run + 1) * per).min(wanted.len()), &wanted, &scales)?;
                let path = self.search.best(&targets);
                let scales: Vec<f32> = targets.iter().zip(&path.scales).map(|(target, &index)| target.scales[usize::from(index)]).collect();
                Ok((path.codes, scales))
            },
        );
        let mut codes = Vec::with_capacity(self.x.len());
        for run in found {
            let (of_run, chosen) = run?;
            codes.extend(of_run);
            chosen.into_iter().for_each(|scale| scales.push(scale));
        }
        Ok((codes, scales))
    }

    /// Scales of least error for half of the levels, as a code alone has them: each the mean of two.
    fn wanted(&self) -> Result<Vec<f64>> {
        let half = self.levels.chunks(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        let alphabet = Alphabet::Table(Codebook::new(half)?);
        let nearest = Nearest::of(&alphabet);
        let start = || ScaleFitter::new(&alphabet, &nearest, Fit::LeastSquares, false);
        Ok(map_groups(self.gathered.len(), self.gathered.weights(), start, |fitter, i| fitter.wanted(self.gathered.group(i))))
    }

    /// What all scales share; of several ways the one that is best for some of the groups.
    fn planned(&self, format: ScaleFormat, wanted: &[f64]) -> Result<Scales> {
        let ScaleFormat::Log(bits) = format else { return Scales::planned(format, wanted) };
        let every = wanted.len().div_ceil(SAMPLE).max(1);
        let plans = LogScales::plans(bits, wanted);
        let errors = map_groups(
            plans.len(),
            plans.len() * self.x.len().div_ceil(every),
            || (),
            |(), plan| {
                let scales = Scales::Log(plans[plan].clone());
                self.targets((0..wanted.len()).step_by(every), wanted, &scales).map(|targets| self.search.least_error(&targets))
            },
        );
        let mut best = (f64::INFINITY, &plans[0]);
        for (error, plan) in errors.into_iter().zip(&plans) {
            let error = error?;
            best = if error < best.0 { (error, plan) } else { best };
        }
        Ok(Scales::Log(best.1.clone()))
    }

    /// These groups, each with the scales it may have.
    fn targets(&self, groups: impl Iterator<Item = usize>, wanted: &[f64], scales: &Scales) -> Result<Vec<Target<'_>>> {
        let largest_level = self.levels.last().copied().unwrap_or(1.0);
        let of = |group: usize| {
            let range = self.groups.range(group);
            let mut near = scales.around(group, wanted[group], LANES)?;
            // Where a level at a scale is beyond f32, a smaller one must do.
            if near.iter().any(|scale| (scale * largest_level).is_finite()) {
                near.retain(|scale| (scale * largest_level).is_finite());
            }
            Ok(Target {
                values: &self.x[range.clone()],
                weights: self.weights.get(range).unwrap_or_default(),
                largest: self.gathered.group(group).largest(),
                scales: near,
            })
        };
        groups.map(of).collect()
    }
}
