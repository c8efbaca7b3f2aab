//! The scale and zero point of least squared error over a histogram.
//!
//! A value `x > 0` gets the code `k` above that of zero when it passed `k` bounds, `s (j - 1/2)` for `j = 1..=k`; likewise
//! below. With the number `N` and the sum `S` of the values beyond a bound,
//!
//! ```text
//! A = Σ x k = Σ S(s (j - 1/2))     B = Σ k² = Σ (2j - 1) N(s (j - 1/2))     error = Σ x² - 2 s A + s² B
//! ```
//!
//! `j` running over the codes of either side. `Σ x²` is the same for all grids, so the best has the largest `2 s A - s² B`,
//! and with the codes as they are, `s = A / B` has it.

use super::bins::Bins;
use super::tail::Tail;
use crate::num::affine_qparams;
use crate::quant::Scheme;

/// A grid and `2 s A - s² B` on it, in squared widths of a bin.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    scale: f32,
    zero_point: i32,
    gain: f64,
    /// `A / B`.
    least_squares: f64,
}

/// In widths of a bin, as the tails are, but for the scales of candidates.
struct Search {
    above: Tail,
    below: Tail,
    qmin: i32,
    qmax: i32,
}

/// Candidates that are refined.
const STARTS: usize = 2;
/// Zero points of the first scan at most, evenly spaced.
const ZERO_POINTS: usize = 16;
/// Scales of the first scan: for each zero point, from a bit beyond the whole range down, fewer for more codes.
const SCALES: std::ops::RangeInclusive<usize> = 24..=256;
/// Bounds between codes looked at in the first scan, about.
const EFFORT: usize = 1 << 17;
/// The smallest scale of the first scan as a share of the largest.
const SMALLEST: f64 = 1.0 / 256.0;
/// Rounds of the refinement at most; it takes about twenty.
const ROUNDS: usize = 100;
/// Where it ends: a step of the scale that changes nothing to speak of.
const FINEST: f64 = 1.0 + 1.0 / 2048.0;

/// Scale and zero point for the values in `bins`, of which there are some.
pub(super) fn least_error(bins: &Bins, scheme: &Scheme) -> (f32, i32) {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    let (min, max) = bins.range().map_or((0.0, 0.0), |range| range.ends());
    let whole = affine_qparams(min, max, qmin, qmax, scheme.is_symmetric());
    let levels = (i64::from(qmax) - i64::from(qmin) + 1) as usize;
    let search = Search { above: Tail::new(bins, false), below: Tail::new(bins, true), qmin, qmax };
    if min == max || levels > bins.outwards(false).1.len() + bins.outwards(true).1.len() {
        return whole;
    }
    let Some(whole) = search.candidate(whole.1, f64::from(whole.0)) else { return whole };
    let zero_points: Vec<i32> = match () {
        () if scheme.is_symmetric() || min >= 0.0 || max <= 0.0 => vec![whole.zero_point],
        () => (qmin..=qmax).step_by(levels.div_ceil(ZERO_POINTS)).collect(),
    };
    let step = if zero_points.len() > 1 { levels.div_ceil(ZERO_POINTS) as i32 } else { 0 };
    let mut starts = search.scan(&zero_points, (EFFORT / levels / zero_points.len()).clamp(*SCALES.start(), *SCALES.end()));
    starts.insert(0, whole);
    starts.sort_by(|one, other| other.gain.total_cmp(&one.gain));
    let best = starts.into_iter().take(STARTS).map(|start| search.refine(start, step)).fold(whole, better);
    // Where the bins can't tell, the exact range.
    let certain = best.gain - whole.gain > search.doubt(&best) + search.doubt(&whole);
    if certain { (best.scale, best.zero_point) } else { (whole.scale, whole.zero_point) }
}

fn better(one: Candidate, other: Candidate) -> Candidate {
    if other.gain > one.gain { other } else { one }
}

/// How many of the bounds of so many codes are below the largest value.
fn passed(tail: &Tail, s: f64, codes: i32) -> i32 {
    codes.min((tail.largest / s + 0.5).ceil() as i32 - 1).max(0)
}

impl Search {
    /// Codes above and below that of zero.
    fn sides(&self, zero_point: i32) -> [(&Tail, i32); 2] {
        [(&self.above, self.qmax - zero_point), (&self.below, zero_point - self.qmin)]
    }

    /// The grid, unless its zero point is no code or a code of it would not be finite.
    fn candidate(&self, zero_point: i32, scale: f64) -> Option<Candidate> {
        let scale = scale as f32;
        let reach = zero_point.saturating_sub(self.qmin).max(self.qmax.saturating_sub(zero_point));
        if !((self.qmin..=self.qmax).contains(&zero_point) && scale > 0.0 && (scale * reach as f32).is_finite()) {
            return None;
        }
        let s = f64::from(scale) * self.above.inverse;
        let (mut a, mut b) = (0.0, 0.0);
        for (tail, codes) in self.sides(zero_point) {
            for j in 0..passed(tail, s, codes) {
                let beyond = tail.above(s * (f64::from(j) + 0.5));
                a += beyond.sum;
                b += f64::from(2 * j + 1) * beyond.count;
            }
        }
        Some(Candidate { scale, zero_point, gain: s * (2.0 * a - s * b), least_squares: a / b / self.above.inverse })
    }

    /// The smallest scale that clips nothing on the sides that have codes.
    fn unclipped(&self, zero_point: i32) -> f64 {
        let needed = self.sides(zero_point).map(|(tail, codes)| if codes > 0 { tail.largest / f64::from(codes) } else { 0.0 });
        needed[0].max(needed[1]) / self.above.inverse
    }

    /// The best grids of a coarse net over zero points and scales.
    fn scan(&self, zero_points: &[i32], scales: usize) -> Vec<Candidate> {
        let ratio = SMALLEST.powf(1.0 / scales as f64);
        let mut best: Vec<Candidate> = Vec::new();
        for &zero_point in zero_points {
            let mut scale = 1.25 * self.unclipped(zero_point);
            let mut peak: Option<Candidate> = None;
            for _ in 0..=scales {
                if let Some(candidate) = self.candidate(zero_point, scale) {
                    peak = Some(peak.map_or(candidate, |peak| better(peak, candidate)));
                }
                scale *= ratio;
            }
            best.extend(peak);
        }
        best.sort_by(|one, other| other.gain.total_cmp(&one.gain));
        best.truncate(STARTS);
        best
    }

    /// Climbs from `best` by steps that get smaller: other zero points, with the scale, the upper or the lower end as it is,
    /// other scales, and least squares.
    fn refine(&self, mut best: Candidate, mut step: i32) -> Candidate {
        let mut ratio: f64 = 1.06;
        for _ in 0..ROUNDS {
            let (start, s) = (best, f64::from(best.scale));
            let with_end = |zero_point: i32, end: i32| s * f64::from(end - start.zero_point) / f64::from(end - zero_point);
            let mut moves = vec![(start.zero_point, start.least_squares), (start.zero_point, s * ratio), (start.zero_point, s / ratio)];
            if step > 0 {
                for zero_point in [start.zero_point.saturating_sub(step), start.zero_point.saturating_add(step)] {
                    moves.extend([s, with_end(zero_point, self.qmin), with_end(zero_point, self.qmax)].map(|s| (zero_point, s)));
                }
            }
            best = moves.into_iter().filter_map(|(zero_point, scale)| self.candidate(zero_point, scale)).fold(best, better);
            if best.gain <= start.gain {
                if step <= 1 && ratio < FINEST {
                    return best;
                }
                step = if step > 1 { step / 2 } else { step };
                ratio = ratio.sqrt();
            }
        }
        best
    }

    /// By how much the gain of a grid may be off.
    fn doubt(&self, candidate: &Candidate) -> f64 {
        let s = f64::from(candidate.scale) * self.above.inverse;
        let doubts = |(tail, codes): (&Tail, i32)| (0..passed(tail, s, codes)).map(|j| tail.doubt(s * (f64::from(j) + 0.5))).sum::<f64>();
        2.0 * s * self.sides(candidate.zero_point).map(doubts).iter().sum::<f64>()
    }
}
