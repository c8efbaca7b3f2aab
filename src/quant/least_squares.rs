//! The scale of least squared error, exactly.

use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams, dequantize, quantize};
use crate::quant::Scheme;
use crate::tensor::{QParams, Tensor, repeat};

/// Scales, and zero points if the scheme has them, of least squared error over the values of `x`: those of the codes that come
/// nearest to it, `Σ (x - scale · (code - zero_point))²`, one pair for each channel or group.
///
/// With a zero point given, the code of `x` changes only where the scale is `|x| / (k + 1/2)`. Between two such breakpoints
/// the error is a quadratic of the scale with its minimum `Σ x² - A² / B` at `A / B`, where `A = Σ |x| k` and `B = Σ k²`;
/// passing a breakpoint adds `|x|` to the one and `2k + 1` to the other. So all scales are tried, in the time that it takes
/// to sort the breakpoints. The result is rounded to f32, and never worse than the exact range
/// ([`MinMax`](crate::quant::observer::MinMax)).
///
/// Left out are scales so small that what they clip costs more than the best known, those so large that half of one has the
/// same levels and more, and those too close to a bad one. A value takes about 0.2 µs at 4 bits and 0.5 to 1.4 µs at 8. All
/// values are needed at once, so this is for weights. Asymmetric schemes repeat it for each zero point, up to 16 codes (3 µs
/// a value).
/// Scales are above zero: a negative one would be another scheme, whose longer side is the other.
///
/// NaN and infinities are refused or left out, by `policy`.
///
/// ```
/// use lowprec::quant::least_squares;
/// use lowprec::{NonFinite, Scheme, Tensor};
/// let weight = Tensor::new([1, 4], vec![1.0, 1.25, -1.25, 4.0])?;
/// let scheme = Scheme::INT8_WEIGHT.with_bits(3); // -3..=3
/// let params = least_squares(&weight, &scheme, NonFinite::Error)?;
/// // The codes are 1, 1, -1, 3; the exact range has 4 / 3.
/// assert_eq!(params.scales(), [(1.0 + 1.25 + 1.25 + 3.0 * 4.0) / 12.0]);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::NonFinite`], those of [`Scheme::validate`], those of a granularity that does not fit the shape, and
/// [`Error::Unsupported`] for symmetric schemes of more than 8 bits and asymmetric ones of more than 4.
pub fn least_squares(x: &Tensor, scheme: &Scheme, policy: NonFinite) -> Result<QParams> {
    scheme.validate()?;
    if scheme.bits() > if scheme.is_symmetric() { 8 } else { 4 } {
        return Err(Error::Unsupported {
            what: format!("the exact least-squares scale for {scheme}"),
            way_out: "choose up to 8 bits if symmetric and 4 if not, or the Histogram observer".into(),
        });
    }
    policy.check("tensor to fit", x.as_slice())?;
    let (granularity, shape) = (scheme.granularity(), x.shape());
    let parameters = granularity.parameters(shape)?;
    // As many values for each scale, gathered one scale after the other.
    let each = shape.elements().checked_div(parameters).unwrap_or(0);
    let mut gathered = repeat(0.0, each * parameters, shape.dims())?;
    let mut filled = repeat(0, parameters, shape.dims())?;
    for (run, parameter) in granularity.runs(shape)? {
        for &value in x.as_slice()[run].iter().filter(|value| value.is_finite()) {
            gathered[parameter * each + filled[parameter]] = value;
            filled[parameter] += 1;
        }
    }
    let mut sweep = Sweep::default();
    let fit = |(i, &n): (usize, &usize)| sweep.fit(&gathered[i * each..][..n], scheme);
    let (scales, zero_points) = filled.iter().enumerate().map(fit).unzip();
    QParams::of_any_axis(scales, zero_points, granularity, scheme.qmin(), scheme.qmax())
}

/// Memory for the breakpoints, kept from one list of values to the next.
#[derive(Debug, Default)]
struct Sweep {
    breakpoints: Vec<Breakpoint>,
}

/// Where the code of a value grows from `code` to `code + 1`, going to smaller scales.
#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    /// One over the scale.
    at: f64,
    magnitude: f32,
    code: u32,
}

/// Breakpoints sorted in one go, or one for every other value if that is more.
const SLICE: usize = 1 << 14;
/// Scales whose error bounds what must be looked at.
const GRID: i32 = 12;

impl Sweep {
    /// Scale and zero point for these values, all finite.
    fn fit(&mut self, values: &[f32], scheme: &Scheme) -> (f32, i32) {
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        let ends =
            values.iter().fold(None, |ends: Option<(f32, f32)>, &x| Some(ends.map_or((x, x), |(min, max)| (min.min(x), max.max(x)))));
        let (min, max) = ends.unwrap_or((0.0, 0.0));
        let whole = affine_qparams(min, max, qmin, qmax, scheme.is_symmetric());
        let error = |(scale, zero_point)| {
            let off = |x: f32| f64::from(x) - f64::from(dequantize(quantize(x, scale, zero_point, qmin, qmax), scale, zero_point));
            values.iter().map(|&x| off(x).powi(2)).sum::<f64>()
        };
        let mut best = (error(whole), whole);
        // Where all values have one sign, codes on the other side are of no use. Near the exact range's zero point are the best.
        let one = scheme.is_symmetric() || min >= 0.0 || max <= 0.0;
        let mut zero_points: Vec<i32> = if one { vec![whole.1] } else { (qmin..=qmax).collect() };
        zero_points.sort_by_key(|&zero_point| zero_point.abs_diff(whole.1));
        for zero_point in zero_points {
            if best.0 == 0.0 {
                break;
            }
            let fit = Fit { values, above: (qmax - zero_point) as u32, below: (zero_point - qmin) as u32 };
            let Some(scale) = self.best_scale(&fit, (-f64::from(min), f64::from(max)), best.0) else { continue };
            // All codes stay finite. The neighbours matter where f32 has few bits, among the subnormals.
            let ceiling = (f32::MAX / fit.above.max(fit.below) as f32).next_down();
            let nearest = (scale as f32).min(ceiling);
            for scale in
                [nearest.next_down(), nearest, nearest.next_up()].into_iter().filter(|scale| (f32::from_bits(1)..=ceiling).contains(scale))
            {
                let grid = (scale, zero_point);
                let candidate = (error(grid), grid);
                best = if candidate.0 < best.0 { candidate } else { best };
            }
        }
        best.1
    }

    /// The scale of least error, unless all are worse than `bound`. The values go from `-ends.0` to `ends.1`.
    fn best_scale(&mut self, fit: &Fit, ends: (f64, f64), bound: f64) -> Option<f64> {
        let largest = fit.largest_scale(ends);
        if largest <= 0.0 {
            return None;
        }
        let squares: f64 = fit.values.iter().map(|&x| f64::from(x).powi(2)).sum();
        // From twice the scale of the exact range to a third of it.
        let mut best = (0.0, None);
        (0..GRID).for_each(|i| fit.sums(largest * 0.86f64.powi(i)).consider(&mut best));
        let known = best.0.max(squares - bound);
        let smallest = fit.smallest_scale(largest, squares - known);
        let target = fit.values.len().div_ceil(2).max(SLICE) as f64;
        let mut scale = largest;
        while scale > smallest {
            let (sums, norm) = (fit.sums(scale), squares.sqrt());
            let [error, least] = [squares - sums.gain_at(scale), squares - known.max(best.0)].map(|error| error.max(0.0).sqrt());
            // With the codes k of a scale s' < s, |x - s k| <= |x - s' k| + (s - s') |k| and |s' k| <= |x| + |x - s' k|: were the
            // root of the error below `least` at s', it would be below `least + (s / s' - 1) (norm + least)` at s. So it is not
            // down to s / (1 + excluded); the rest is for rounding.
            let excluded = 0.999 * (error - least) / (norm + least);
            let slice = (target / sums.steps).min(1.0);
            let next = (scale / (1.0 + slice.max(excluded))).max(smallest);
            if excluded < slice {
                self.sweep(fit, 1.0 / scale, 1.0 / next, &mut best);
            }
            scale = next;
        }
        best.1
    }

    /// Looks at all scales from `1 / from` down to `1 / to` for a larger gain than the best one so far, which comes with its
    /// scale.
    fn sweep(&mut self, fit: &Fit, from: f64, to: f64, best: &mut (f64, Option<f64>)) {
        self.breakpoints.clear();
        let mut sums = Sums::default();
        for &x in fit.values {
            let (magnitude, codes) = (x.abs(), fit.codes(x));
            let (first, last) = (code(magnitude, from, codes), code(magnitude, to, codes));
            sums.add(magnitude, first);
            let places = (first..last).map(|code| Breakpoint { at: (f64::from(code) + 0.5) / f64::from(magnitude), magnitude, code });
            self.breakpoints.extend(places);
        }
        self.breakpoints.sort_unstable_by_key(|breakpoint| breakpoint.at.to_bits());
        sums.consider(best);
        for breakpoint in &self.breakpoints {
            sums.products += f64::from(breakpoint.magnitude);
            sums.squares += f64::from(2 * breakpoint.code + 1);
            sums.consider(best);
        }
    }
}

/// The code of a magnitude at the scale `1 / inverse`, half a step rounded up: no matter, both codes are as near.
fn code(magnitude: f32, inverse: f64, codes: u32) -> u32 {
    ((f64::from(magnitude) * inverse + 0.5) as u32).min(codes)
}

/// `Σ |x| k` and `Σ k²`, and `Σ k` without rounding.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    products: f64,
    squares: f64,
    steps: f64,
}

impl Sums {
    fn add(&mut self, magnitude: f32, code: u32) {
        self.products += f64::from(magnitude) * f64::from(code);
        self.squares += f64::from(code).powi(2);
    }

    /// What a scale takes off `Σ x²` with these codes.
    fn gain_at(&self, scale: f64) -> f64 {
        scale * (2.0 * self.products - scale * self.squares)
    }

    /// Keeps the largest gain, with its scale.
    #[inline(always)]
    fn consider(&self, best: &mut (f64, Option<f64>)) {
        let gain = self.gain();
        if gain > best.0 {
            *best = (gain, Some(self.products / self.squares));
        }
    }

    /// What the best scale for these codes takes off `Σ x²`.
    fn gain(&self) -> f64 {
        if self.squares > 0.0 { self.products * (self.products / self.squares) } else { 0.0 }
    }
}

/// Values, and the number of codes above that of zero and below it.
struct Fit<'a> {
    values: &'a [f32],
    above: u32,
    below: u32,
}

impl Fit<'_> {
    fn codes(&self, x: f32) -> u32 {
        if x < 0.0 { self.below } else { self.above }
    }

    fn sums(&self, scale: f64) -> Sums {
        let (mut sums, inverse) = (Sums::default(), 1.0 / scale);
        for &x in self.values {
            let codes = self.codes(x);
            sums.add(x.abs(), code(x.abs(), inverse, codes));
            sums.steps += (f64::from(x.abs()) * inverse).min(f64::from(codes));
        }
        sums
    }

    /// Beyond this scale no value gets a code in the outer half of its side, and half of the scale has all these levels too.
    fn largest_scale(&self, ends: (f64, f64)) -> f64 {
        let reach = |end: f64, codes: u32| if codes > 0 { end.max(0.0) / (f64::from(codes / 2) + 0.5) } else { 0.0 };
        reach(ends.1, self.above).max(reach(ends.0, self.below))
    }

    /// Below this scale clipping alone costs more than `bound`.
    fn smallest_scale(&self, largest: f64, bound: f64) -> f64 {
        let clipped =
            |scale: f64| self.values.iter().map(|&x| (f64::from(x.abs()) - scale * f64::from(self.codes(x))).max(0.0).powi(2)).sum::<f64>();
        let (mut low, mut high) = (largest, largest);
        // Clipping everything costs Σ x²; where not even that is above the bound, 2^-64 of the largest scale is small enough.
        while clipped(low) <= bound && low > largest * 2f64.powi(-64) {
            (low, high) = (0.5 * low, low);
        }
        for _ in 0..8 {
            let middle = (low * high).sqrt();
            if clipped(middle) > bound { low = middle } else { high = middle }
        }
        low
    }
}
