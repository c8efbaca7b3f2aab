//! The scale of one group.

use crate::error::Result;
use crate::quant::level_search::{LevelSearch, Reach, Weighted};
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::nearest::Nearest;
use crate::quant::weights::percentile::percentile;
use crate::quant::weights::{Fit, Scales};

/// Chooses scales for groups over one alphabet.
pub(crate) struct ScaleFitter<'a> {
    alphabet: &'a Alphabet,
    nearest: &'a Nearest,
    fit: Fit,
    /// The largest scale whose levels are all within f32.
    ceiling: f64,
    searches: Vec<Search>,
}

/// Grids of the same steps, each with the sign that scales have.
struct Search {
    levels: LevelSearch,
    grids: Vec<Reach>,
    signs: Vec<f64>,
}

impl Search {
    /// Scales above zero, and below it if those are others.
    fn of(alphabet: &Alphabet, signed: bool) -> Vec<Self> {
        if let (Alphabet::Fixed { bits, narrow: false, step: 1.0 }, true) = (alphabet, signed) {
            let half = 1usize << (bits - 1);
            let grids = vec![Reach { above: half - 1, below: half }, Reach { above: half, below: half - 1 }];
            return vec![Search { levels: LevelSearch::integers(half), grids, signs: vec![1.0, -1.0] }];
        }
        let levels: Vec<f64> = alphabet.levels().into_iter().map(f64::from).collect();
        let turned: Vec<f64> = levels.iter().rev().map(|level| 0.0 - level).collect();
        let of = |levels: &[f64], sign| {
            let levels = LevelSearch::new(levels);
            Search { grids: vec![levels.whole()], levels, signs: vec![sign] }
        };
        let mut all = vec![of(&levels, 1.0)];
        all.extend((signed && turned != levels).then(|| of(&turned, -1.0)));
        all
    }
}

impl<'a> ScaleFitter<'a> {
    pub(crate) fn new(alphabet: &'a Alphabet, nearest: &'a Nearest, fit: Fit, signed: bool) -> Self {
        let searches = if fit == Fit::LeastSquares { Search::of(alphabet, signed) } else { Vec::new() };
        // The last code below may be further out than the one above.
        let furthest = alphabet.levels().into_iter().fold(0.0f32, |furthest, level| furthest.max(level.abs()));
        ScaleFitter { alphabet, nearest, fit, ceiling: f64::from(f32::MAX) / f64::from(furthest), searches }
    }

    /// The scale that the rule asks for, before it is rounded to its format.
    pub(crate) fn wanted(&mut self, x: Weighted) -> f64 {
        let largest = f64::from(x.largest());
        let range = largest / f64::from(self.alphabet.largest());
        if largest == 0.0 {
            return 0.0;
        }
        match (self.fit, self.alphabet) {
            (Fit::Percentile { percent }, _) => {
                let within = percentile(x.values.iter().map(|x| x.abs()), f64::from(percent));
                // Of nothing but zeros within, what is beyond.
                let wanted = if within > 0.0 { within / f64::from(self.alphabet.largest()) } else { range };
                wanted.min(self.ceiling)
            }
            (Fit::Ocp, Alphabet::Float(format)) => largest / f64::from(1u32 << format.largest_exponent()),
            (Fit::Ocp, _) => largest,
            (Fit::HalfRange, Alphabet::Fixed { bits, .. }) => largest / (f64::from(1u32 << (bits - 1)) - 0.5),
            (Fit::SignedMax, Alphabet::Fixed { bits, .. }) => {
                let extreme = x.values.iter().copied().find(|x| f64::from(x.abs()) == largest).map_or(largest, f64::from);
                -extreme / f64::from(1u32 << (bits - 1))
            }
            (Fit::LeastSquares, _) => {
                let mut best = (self.nearest.error(x, range as f32), range);
                for search in &mut self.searches {
                    if let Some(found) = search.levels.best(x, &search.grids, best.0) {
                        let mut scale = search.signs[found.grid] * found.scale;
                        let mut error = self.nearest.error(x, scale as f32);
                        // Where only rounding told them apart, the one above zero.
                        if scale < 0.0 {
                            let positive = self.nearest.error(x, found.scale as f32);
                            (scale, error) = if positive <= error { (found.scale, positive) } else { (scale, error) };
                        }
                        if error < best.0 {
                            best = (error, scale);
                        }
                    }
                }
                best.1
            }
            _ => range,
        }
    }

    /// The scale to store: of those near the wanted one the first, or that of least error.
    pub(crate) fn stored(&self, x: Weighted, wanted: f64, scales: &Scales, index: usize) -> Result<f32> {
        let candidates = scales.candidates(index, wanted, self.fit == Fit::Ocp)?;
        let first = candidates[0];
        let error = self.error(x, first);
        // Values that a scale gives exactly came from this format: then the scale they came with is wanted, not one beside it.
        let exact = error > 0.0 && error < 1e-10 * x.squares();
        let mut best = (error, first);
        let mut consider = |scale: f32| {
            let error = self.error(x, scale);
            if error < best.0 {
                best = (error, scale);
            }
        };
        // Where a level at the first scale is beyond f32, a smaller one must do.
        if self.fit == Fit::LeastSquares || exact || error.is_infinite() {
            candidates[1..].iter().for_each(|&scale| consider(scale));
        }
        if exact && matches!(scales, Scales::F32(_)) {
            for part in [2.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0] {
                let near = (wanted / part) as f32;
                [near, near.next_up(), near.next_down()].into_iter().filter(|scale| *scale != 0.0).for_each(&mut consider);
            }
        }
        Ok(best.1)
    }

    /// As [`Nearest::error`].
    pub(crate) fn error(&self, x: Weighted, scale: f32) -> f64 {
        self.nearest.error(x, scale)
    }
}
