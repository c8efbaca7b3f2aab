//! The range whose codes keep most of the distribution.

use super::histogram::{Bins, Histogram, power_of_two};
use crate::error::Result;
use crate::num::{NonFinite, affine_qparams};
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, Tensor};

/// The range of least Kullback-Leibler divergence, per tensor, channel or group.
///
/// Over the magnitudes `|x|` in `B` bins, for every threshold after `i` of them, `L <= i <= B`: `P` is the first `i` bins
/// with all that lies beyond added to the last one; `Q` is the first `i` bins merged to `L` levels, the mass of each spread
/// evenly over those of its bins that hold values. Both are normalized, and the threshold with the least `Σ P ln(P / Q)` is
/// taken, the largest of equals. `L` is the number of codes on the longer side of zero: all of them when the values have one
/// sign, half when they have both. The range is that of the values, cut at the threshold on either side.
///
/// Zeros are left out, having a code of their own anyway. Where `P` holds only the tail and `Q` nothing, `Q` counts as 10⁻⁴
/// of a value. With more codes than bins (at 16 bits) it is the exact range.
///
/// The divergence of a histogram is not the error of a layer: values that were clipped cost little here, and the result may
/// be far worse than [`Histogram`]'s. It is there because other tools have it.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Entropy {
    seen: Histogram,
}

impl Entropy {
    /// Bins at most of [`Entropy::new`]. The search takes time in proportion to bins and codes.
    pub const BINS: usize = 1 << 11;

    /// An observer that has seen nothing, of at most [`Entropy::BINS`] bins.
    pub fn new(granularity: Granularity) -> Self {
        Entropy { seen: Histogram::of_bins(Self::BINS, granularity) }
    }

    /// With another limit to the number of bins.
    ///
    /// # Errors
    /// Those of [`Histogram::with_bins`].
    pub fn with_bins(self, limit: usize) -> Result<Self> {
        Ok(Entropy { seen: self.seen.with_bins(limit)? })
    }

    /// With another policy for NaN and infinities: to leave them out instead of refusing them.
    #[must_use]
    pub fn with_non_finite(self, policy: NonFinite) -> Self {
        Entropy { seen: self.seen.with_non_finite(policy) }
    }

    /// The ranges for codes of a scheme, one a scale, as (min, max); `None` where there was no value.
    pub fn ranges(&self, scheme: &Scheme) -> Vec<Option<(f32, f32)>> {
        self.seen.ranges_by(|bins| range(bins, scheme))
    }
}

fn range(bins: &Bins, scheme: &Scheme) -> Option<(f32, f32)> {
    let (min, max) = bins.range()?.ends();
    let (_, zero_point) = affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric());
    let levels = (scheme.qmax() - zero_point).max(zero_point - scheme.qmin()) as usize + 1;
    let magnitudes = magnitudes(bins);
    match least_divergence(&magnitudes.counts, levels) {
        Some(kept) => {
            let threshold = ((kept as f64 + 0.5) * magnitudes.width) as f32;
            Some((min.max(-threshold), max.min(threshold)))
        }
        None => Some((min, max)),
    }
}

/// The counts of bins of |x| from zero on.
struct Magnitudes {
    counts: Vec<f64>,
    width: f64,
}

fn magnitudes(bins: &Bins) -> Magnitudes {
    let ends = [false, true].map(|below| bins.outwards(below)).map(|(first, outwards)| first + outwards.len());
    let end = ends[0].max(ends[1]);
    // Bins of values far from zero are narrow, and there is none between.
    let shift = (0..i32::BITS as i32).find(|shift| end.div_ceil(1 << shift) <= bins.limit()).unwrap_or(0);
    let mut counts = vec![0.0; end.div_ceil(1 << shift)];
    for below in [false, true] {
        let (first, outwards) = bins.outwards(below);
        outwards.enumerate().for_each(|(i, bin)| counts[(first + i) >> shift] += bin.count as f64);
    }
    let width = power_of_two(bins.layout().map_or(0, |layout| layout.exponent) + shift);
    Magnitudes { counts, width }
}

/// What `Q` counts as where it has nothing.
const NOTHING: f64 = 1e-4;

/// The number of bins to keep, unless it is all of them.
fn least_divergence(counts: &[f64], levels: usize) -> Option<usize> {
    let bins = counts.len();
    // Sums over the bins before each: of values, of bins that hold any, and of n ln n.
    let mut sums = Vec::with_capacity(bins + 1);
    let mut before = (0.0, 0.0, 0.0);
    sums.push(before);
    for &n in counts {
        if n > 0.0 {
            before = (before.0 + n, before.1 + 1.0, before.2 + n * n.ln());
        }
        sums.push(before);
    }
    let total = before.0;
    let mut best: Option<(f64, usize)> = None;
    for kept in levels..=bins {
        let (mass, _, own) = sums[kept];
        if mass == 0.0 {
            continue;
        }
        // Σ P ln P - Σ P ln Q, in counts; the norms of P and Q are subtracted at the end.
        let (last, tail) = (counts[kept - 1], total - mass);
        let plain = if last > 0.0 { last * last.ln() } else { 0.0 };
        let stretched = if last + tail > 0.0 { (last + tail) * (last + tail).ln() } else { 0.0 };
        let mut divergence = own - plain + stretched;
        let mut quantized_mass = mass;
        for level in 0..levels {
            let (from, to) = (level * kept / levels, (level + 1) * kept / levels);
            let (n, used) = (sums[to].0 - sums[from].0, sums[to].1 - sums[from].1);
            if n > 0.0 {
                let held = if to == kept && last > 0.0 { n + tail } else { n };
                divergence -= held * (n / used).ln();
            }
        }
        if last == 0.0 && tail > 0.0 {
            divergence -= tail * NOTHING.ln();
            quantized_mass += NOTHING;
        }
        let divergence = (divergence - total * total.ln()) / total + quantized_mass.ln();
        if best.is_none_or(|(least, _)| divergence <= least) {
            best = Some((divergence, kept));
        }
    }
    best.map(|(_, kept)| kept).filter(|&kept| kept < bins)
}

impl Observer for Entropy {
    fn observe(&mut self, x: &Tensor) -> Result<()> {
        self.seen.observe(x)
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        self.seen.merge(&other.seen)
    }

    fn qparams(&self, scheme: &Scheme) -> Result<QParams> {
        scheme.validate()?;
        self.seen.qparams_by(scheme, |bins| {
            let (min, max) = range(bins, scheme).unwrap_or((0.0, 0.0));
            affine_qparams(min, max, scheme.qmin(), scheme.qmax(), scheme.is_symmetric())
        })
    }
}
