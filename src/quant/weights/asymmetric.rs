//! Groups whose codes begin anywhere: with a zero point, or an offset.

use crate::error::{Error, Result};
use crate::num::{affine_qparams, round_clamped};
use crate::quant::level_search::{LevelSearch, Reach, Weighted};
use crate::quant::weights::half_quadratic::half_quadratic;
use crate::quant::weights::nearest::Even;
use crate::quant::weights::percentile::percentile;
use crate::quant::weights::{Fit, Scales};

/// How many zero points on either side of the range's are tried where not all are.
const NEAR: i32 = 4;

/// Chooses scale and zero point of groups with codes `0..=qmax`.
pub(crate) struct ZeroPointFitter {
    qmax: i32,
    fit: Fit,
    /// Of least squares.
    search: Option<LevelSearch>,
    grids: Vec<Reach>,
}

/// The smallest and largest value, or by percentile those of the range that is kept; of none 0.
fn ends(x: Weighted, fit: Fit) -> (f32, f32) {
    let Some(&first) = x.values.first() else { return (0.0, 0.0) };
    let (low, high) = x.values.iter().fold((first, first), |(low, high), &x| (low.min(x), high.max(x)));
    let Fit::Percentile { percent } = fit else { return (low, high) };
    let cut = 100.0 - f64::from(percent);
    let (below, above) = match () {
        () if low >= 0.0 => (0.0, cut),
        () if high <= 0.0 => (cut, 0.0),
        () => (0.5 * cut, 0.5 * cut),
    };
    let at = |percent: f64| percentile(x.values.iter().copied(), percent) as f32;
    let kept = (at(below), at(100.0 - above));
    // Of nothing but zeros within, what is beyond.
    if kept.0.min(0.0) < kept.1.max(0.0) { kept } else { (low, high) }
}

/// [`ends`], zero included.
fn ends_with_zero(x: Weighted, fit: Fit) -> (f32, f32) {
    let (low, high) = ends(x, fit);
    (low.min(0.0), high.max(0.0))
}

impl ZeroPointFitter {
    pub(crate) fn new(bits: u32, fit: Fit) -> Self {
        let qmax = (1 << bits) - 1;
        ZeroPointFitter { qmax, fit, search: (fit == Fit::LeastSquares).then(|| LevelSearch::integers(qmax as usize)), grids: Vec::new() }
    }

    pub(crate) fn wanted(&mut self, x: Weighted) -> (f64, i32) {
        let (low, high) = ends_with_zero(x, self.fit);
        if low == high {
            return (0.0, 0);
        }
        let (scale, middle) = affine_qparams(low, high, 0, self.qmax, false);
        let mut best = (self.error(x, scale, middle), f64::from(scale), middle);
        // A scale that was rounded up may have left the last code unused: values of such a grid keep it.
        for steps in (self.qmax - 2).max(1)..self.qmax {
            let scale = (f64::from(high) - f64::from(low)) / f64::from(steps);
            let zero_point = (-f64::from(low) / scale).round_ties_even() as i32;
            let error = self.error(x, scale as f32, zero_point);
            if error < best.0 && error < 1e-10 * x.squares() {
                best = (error, scale, zero_point);
            }
        }
        if self.fit == Fit::HalfQuadratic {
            let point = |scale: f64, offset: f64| (-offset / scale).round_ties_even().clamp(0.0, f64::from(self.qmax));
            let start = (best.1, -best.1 * f64::from(best.2));
            let (scale, offset) = half_quadratic(x, start, self.qmax, |scale, offset| -scale * point(scale, offset));
            return (scale, point(scale, offset) as i32);
        }
        let Some(search) = &mut self.search else { return (best.1, best.2) };
        // Where all values have one sign, codes on the other side are of no use.
        let near = if low == 0.0 || high == 0.0 {
            0
        } else if self.qmax < 16 {
            self.qmax
        } else {
            NEAR
        };
        let first = (middle - near).max(0);
        let last = (middle + near).min(self.qmax);
        self.grids.clear();
        self.grids.extend((first..=last).map(|z| Reach { above: (self.qmax - z) as usize, below: z as usize }));
        if let Some(found) = search.best(x, &self.grids, best.0) {
            let zero_point = first + found.grid as i32;
            if self.error(x, found.scale as f32, zero_point) < best.0 {
                return (found.scale, zero_point);
            }
        }
        (best.1, best.2)
    }

    pub(crate) fn stored(&self, x: Weighted, (wanted, zero_point): (f64, i32), scales: &Scales, index: usize) -> Result<(f32, i32)> {
        let candidates = scales.candidates(index, wanted, false)?;
        if wanted == 0.0 {
            return Ok((candidates[0], 0));
        }
        if self.fit == Fit::HalfQuadratic {
            // Where the codes begin stays, at a scale that may be another.
            let begins = (wanted * f64::from(zero_point) / f64::from(candidates[0])) as f32;
            return Ok((candidates[0], round_clamped(begins, 0, self.qmax)));
        }
        if self.search.is_none() {
            // The zero point that goes with the scale as stored, where rounding it moved the ends.
            let of = |scale: f32| (scale, round_clamped(-ends_with_zero(x, self.fit).0 / scale, 0, self.qmax));
            let (scale, zero_point) = of(candidates[0]);
            let error = self.error(x, scale, zero_point);
            if error > 0.0 && error < 1e-10 * x.squares() || error.is_infinite() {
                return Ok(self.least(x, candidates.into_iter().map(of)));
            }
            return Ok((scale, zero_point));
        }
        let around = (zero_point - 1).max(0)..=(zero_point + 1).min(self.qmax);
        let all = candidates.into_iter().flat_map(|scale| around.clone().map(move |z| (scale, z)));
        let best = self.least(x, std::iter::once((wanted as f32, zero_point)).filter(|_| matches!(scales, Scales::F32(_))).chain(all));
        let error = self.error(x, best.0, best.1);
        if error > 0.0 && error < 1e-10 * x.squares() && matches!(scales, Scales::F32(_)) {
            let parts = [3.0, 5.0, 7.0, 9.0, 11.0, 13.0].map(|part| (wanted / part) as f32);
            let near = parts.into_iter().flat_map(|scale| [scale, scale.next_up(), scale.next_down()]);
            let zero = |scale: f32| (scale, round_clamped(-ends_with_zero(x, self.fit).0 / scale, 0, self.qmax));
            return Ok(self.least(x, std::iter::once(best).chain(near.filter(|scale| *scale > 0.0).map(zero))));
        }
        Ok(best)
    }

    fn least(&self, x: Weighted, grids: impl Iterator<Item = (f32, i32)>) -> (f32, i32) {
        let mut best = (f64::INFINITY, (0.0, 0));
        for (scale, zero_point) in grids {
            let error = self.error(x, scale, zero_point);
            if error < best.0 {
                best = (error, (scale, zero_point));
            }
        }
        best.1
    }

    fn error(&self, x: Weighted, scale: f32, zero_point: i32) -> f64 {
        Even::integers(-zero_point, self.qmax - zero_point).error(x, scale)
    }
}

/// Chooses scale and offset of groups with values `scale · code + offset`.
pub(crate) struct OffsetFitter {
    qmax: i32,
    fit: Fit,
}

/// The integer nearest to `v` from 0 to `qmax`, ties to even: all that a sum with 1.5 · 2^52 keeps.
#[inline(always)]
fn rounded(v: f64, qmax: i32) -> f64 {
    const ROUNDING: f64 = 6_755_399_441_055_744.0;
    (v.clamp(0.0, f64::from(qmax)) + ROUNDING) - ROUNDING
}

/// The code of `x` at a scale and an offset, in f64 so that neither difference nor quotient rounds a tie away.
#[inline]
pub(crate) fn offset_code(x: f32, scale: f32, offset: f32, qmax: i32) -> i32 {
    if scale > 0.0 { rounded((f64::from(x) - f64::from(offset)) / f64::from(scale), qmax) as i32 } else { 0 }
}

impl OffsetFitter {
    pub(crate) fn new(bits: u32, fit: Fit) -> Self {
        OffsetFitter { qmax: (1 << bits) - 1, fit }
    }

    /// Scale and offset before they are rounded.
    pub(crate) fn wanted(&self, x: Weighted) -> (f64, f64) {
        let (low, high) = ends(x, self.fit);
        let (low, high) = (f64::from(low), f64::from(high));
        let range = ((high - low) / f64::from(self.qmax), low);
        if self.fit == Fit::HalfQuadratic {
            return half_quadratic(x, range, self.qmax, |_, offset| offset);
        }
        if self.fit != Fit::LeastSquares || low == high {
            return range;
        }
        let mut best = (self.exact_error(x, range), range);
        // The ends drawn in, each by its own share, or with some codes left over; from there to a fixed point of codes and regression.
        let drawn = (0..6).flat_map(|i| (0..6).map(move |j| (f64::from(i), f64::from(j))));
        let drawn = drawn.map(|(i, j)| (low + 0.06 * i * (high - low), (1.0 - 0.06 * (i + j)) * (high - low) / f64::from(self.qmax)));
        let fewer = ((self.qmax - 15).max(1)..self.qmax).map(|steps| (low, (high - low) / f64::from(steps)));
        for (offset, scale) in drawn.chain(fewer) {
            let mut grid = (scale, offset);
            let mut error = self.exact_error(x, grid);
            for _ in 0..20 {
                let Some(next) = self.regression(x, grid) else { break };
                let less = self.exact_error(x, next);
                if less >= error {
                    break;
                }
                (error, grid) = (less, next);
            }
            best = if error < best.0 { (error, grid) } else { best };
        }
        best.1
    }

    #[inline(always)]
    fn code(&self, x: f64, (scale, offset): (f64, f64)) -> f64 {
        rounded((x - offset) / scale, self.qmax)
    }

    fn exact_error(&self, x: Weighted, grid: (f64, f64)) -> f64 {
        x.iter().map(|(x, w)| w * (x - grid.0 * self.code(x, grid) - grid.1).powi(2)).sum()
    }

    /// The line of least error through the codes of this grid.
    fn regression(&self, x: Weighted, grid: (f64, f64)) -> Option<(f64, f64)> {
        let [mut n, mut sk, mut sx] = [0.0; 3];
        for (x, w) in x.iter() {
            (n, sk, sx) = (n + w, sk + w * self.code(x, grid), sx + w * x);
        }
        let (mk, mx) = (sk / n, sx / n);
        let [mut skk, mut skx] = [0.0; 2];
        for (x, w) in x.iter() {
            let k = self.code(x, grid) - mk;
            (skk, skx) = (skk + w * k * k, skx + w * k * (x - mx));
        }
        let scale = skx / skk;
        (scale.is_finite() && scale > 0.0).then_some((scale, mx - scale * mk))
    }

    /// Scale and offset to store, of those near the wanted ones the best.
    pub(crate) fn stored(&self, x: Weighted, (scale, offset): (f64, f64), lists: (&Scales, &Scales), index: usize) -> Result<(f32, f32)> {
        let (scales, offsets) = (lists.0.candidates(index, scale, false)?, lists.1.candidates(index, offset, false)?);
        if (scales[0] * self.qmax as f32).is_infinite() {
            let rule = "takes the last code beyond f32: bring the weights to a smaller range, or choose uint";
            return Err(Error::parameter("scale of a group", scale, rule));
        }
        let mut best = (f64::INFINITY, (scales[0], offsets[0]));
        let mut consider = |offsets: &[f32], near: usize| {
            for (&scale, &offset) in scales.iter().take(near).flat_map(|s| offsets.iter().take(near).map(move |o| (s, o))) {
                let mut error = 0.0;
                for (value, w) in x.iter() {
                    let back = scale * offset_code(value as f32, scale, offset, self.qmax) as f32 + offset;
                    error += w * (value - f64::from(back)).powi(2);
                }
                best = if error < best.0 { (error, (scale, offset)) } else { best };
            }
        };
        consider(&offsets, if self.fit == Fit::LeastSquares { usize::MAX } else { 1 });
        // Values that lie on a grid came from this format, but they need not have had these codes: then the offset that they came
        // with, which can be stored, lies some steps away.
        // Of 16 bits every value lies near one of so many.
        if self.qmax < 256 && scale > 0.0 && self.exact_error(x, (scale, offset)) < 1e-10 * x.squares() {
            for code in -self.qmax..=self.qmax {
                consider(&lists.1.candidates(index, offset - f64::from(code) * scale, false)?, usize::MAX);
            }
        }
        Ok(best.1)
    }
}
