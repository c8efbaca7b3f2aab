//! The scale of one group.

use crate::error::Result;
use crate::quant::level_search::{LevelSearch, Weighted};
use crate::quant::weights::alphabet::Alphabet;
use crate::quant::weights::{Fit, Scales};

/// Chooses scales for groups over one alphabet.
pub(crate) struct ScaleFitter<'a> {
    alphabet: &'a Alphabet,
    fit: Fit,
    /// Searches for scales above zero, and below it if those are others.
    searches: Vec<(f64, LevelSearch)>,
}

impl<'a> ScaleFitter<'a> {
    pub(crate) fn new(alphabet: &'a Alphabet, fit: Fit, signed: bool) -> Self {
        let mut searches = Vec::new();
        if fit == Fit::LeastSquares {
            let levels: Vec<f64> = alphabet.levels().into_iter().map(f64::from).collect();
            let turned: Vec<f64> = levels.iter().rev().map(|level| 0.0 - level).collect();
            let both = signed && turned != levels;
            searches.push((1.0, LevelSearch::new(&levels)));
            if both {
                searches.push((-1.0, LevelSearch::new(&turned)));
            }
        }
        ScaleFitter { alphabet, fit, searches }
    }

    /// The scale that the rule asks for, before it is rounded to its format.
    pub(crate) fn wanted(&mut self, x: Weighted) -> f64 {
        let largest = f64::from(x.largest());
        let range = largest / f64::from(self.alphabet.largest());
        if largest == 0.0 {
            return 0.0;
        }
        match (self.fit, self.alphabet) {
            (Fit::Ocp, Alphabet::Float(format)) => largest / f64::from(1u32 << format.largest_exponent()),
            (Fit::Ocp, _) => largest,
            (Fit::HalfRange, Alphabet::Fixed { bits, .. }) => largest / (f64::from(1u32 << (bits - 1)) - 0.5),
            (Fit::SignedMax, Alphabet::Fixed { bits, .. }) => {
                let extreme = x.values.iter().copied().find(|x| f64::from(x.abs()) == largest).map_or(largest, f64::from);
                -extreme / f64::from(1u32 << (bits - 1))
            }
            (Fit::LeastSquares, _) => {
                let mut best = (self.error(x, range as f32), range);
                for i in 0..self.searches.len() {
                    let (sign, search) = &mut self.searches[i];
                    let sign = *sign;
                    if let Some(scale) = search.best_scale(x, best.0) {
                        let error = self.error(x, (sign * scale) as f32);
                        if error < best.0 {
                            best = (error, sign * scale);
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

    /// `Σ w · (x - scale · level)²`, with the products as they will be: infinite where one is.
    pub(crate) fn error(&self, x: Weighted, scale: f32) -> f64 {
        let mut sum = 0.0;
        for (i, &value) in x.values.iter().enumerate() {
            let back = scale * self.alphabet.value(self.alphabet.code(value / scale));
            let back = if scale == 0.0 { 0.0 } else { back };
            let off = f64::from(value) - f64::from(back);
            sum += x.weights.get(i).map_or(1.0, |&w| f64::from(w)) * off * off;
        }
        sum
    }
}
