//! Number and sum of the values beyond any bound.

use super::bins::{Bins, power_of_two};

/// The values on one side of zero, as magnitudes in widths of a bin: how many lie above a bound, and their sum. Exact at the
/// edges of bins; inside a bin the values are taken as spread evenly about their mean, as widely as their squares say. A bin
/// whose values are all equal is exact too.
#[derive(Debug)]
pub(super) struct Tail {
    /// The reciprocal of the width.
    pub inverse: f64,
    /// Index of the first bin.
    first: i32,
    bins: Vec<Spread>,
    /// All values.
    all: Sums,
    /// Largest magnitude.
    pub largest: f64,
}

/// Number and sum of some values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub count: f64,
    pub sum: f64,
}

/// The values of a bin, evenly over `length` up to `high`, and those of all bins after it.
#[derive(Debug, Clone, Copy)]
struct Spread {
    high: f64,
    length: f64,
    /// The reciprocal of the length, finite.
    share: f64,
    count: f64,
    after: Sums,
    /// The standard deviation as it is.
    deviation: f64,
}

impl Tail {
    pub fn new(bins: &Bins, below: bool) -> Tail {
        let exponent = bins.layout().map_or(0, |layout| layout.exponent);
        let (inverse, (first, outwards)) = (power_of_two(-exponent), bins.outwards(below));
        let mut spreads = Vec::with_capacity(outwards.len());
        for (i, bin) in outwards.enumerate() {
            let (count, edge) = (bin.count as f64, (first + i) as f64);
            let (mean, square) = if bin.count > 0 { (bin.sum / count, bin.squares / count) } else { (0.5, 0.25) };
            let deviation = (square - mean * mean).max(0.0).sqrt();
            // Of an even spread the half width is √3 deviations; it stays inside the bin.
            let half = (3f64.sqrt() * deviation).min(mean).min(1.0 - mean).max(0.0);
            let own = Sums { count, sum: count * edge + bin.sum };
            // `after` holds the bin's own values until those behind it are summed.
            let share = (0.5 / half).min(f64::MAX);
            spreads.push(Spread { high: edge + mean + half, length: 2.0 * half, share, count, after: own, deviation });
        }
        let mut all = Sums::default();
        for spread in spreads.iter_mut().rev() {
            let after = all;
            all = Sums { count: all.count + spread.after.count, sum: all.sum + spread.after.sum };
            spread.after = after;
        }
        let range = bins.range().map_or((0.0, 0.0), |range| range.ends());
        let largest = f64::from(if below { -range.0 } else { range.1 }.max(0.0)) * inverse;
        Tail { inverse, first: first as i32, bins: spreads, all, largest }
    }

    /// The values above `bound`, which is not negative and below `largest`.
    #[inline]
    pub fn above(&self, bound: f64) -> Sums {
        let i = bound as i32 - self.first;
        if i < 0 {
            return self.all;
        }
        let Some(bin) = self.bins.get(i as usize) else { return Sums::default() };
        let share = ((bin.high - bound) * bin.share).clamp(0.0, 1.0);
        let part = share * bin.count;
        Sums { count: bin.after.count + part, sum: bin.after.sum + part * (bin.high - 0.5 * share * bin.length) }
    }

    /// How far `Σ max(x - bound, 0)` may be off at most, given the number, mean and deviation of the values in the bin that
    /// `bound` cuts: between Jensen's lower bound, `n max(m - b, 0)`, and Scarf's upper one,
    /// `n (√(d² + (m - b)²) + m - b) / 2`.
    pub fn doubt(&self, bound: f64) -> f64 {
        let Some(bin) = usize::try_from(bound as i32 - self.first).ok().and_then(|i| self.bins.get(i)) else { return 0.0 };
        let away = (bin.high - 0.5 * bin.length - bound).abs();
        0.5 * bin.count * (bin.deviation.hypot(away) - away)
    }
}
