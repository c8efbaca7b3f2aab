//! The scale of least squared error, exactly.

use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams, dequantize, quantize};
use crate::quant::Scheme;
use crate::quant::level_search::{LevelSearch, Reach, Weighted};
use crate::tensor::{QParams, Tensor, repeat};

/// Scales, and zero points if the scheme has them, of least squared error over the values of `x`: those of the codes that come
/// nearest to it, `Σ (x - scale · (code - zero_point))²`, one pair for each channel or group.
///
/// With a zero point given, the code of `x` changes only where the scale is `|x| / (k + 1/2)`. Between two such breakpoints
/// the error is a quadratic of the scale with its minimum `Σ x² - A² / B` at `A / B`, where `A = Σ |x| k` and `B = Σ k²`;
/// passing a breakpoint adds `|x|` to the one and `2k + 1` to the other. What that can gain between two scales is known from
/// the sums there, so that few of the breakpoints need be looked at. The result is rounded to f32, and never worse than the
/// exact range ([`MinMax`](crate::quant::observer::MinMax)).
///
/// All values are needed at once, so this is for weights. Asymmetric schemes have all zero points tried, up to 16 codes.
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
    let mut fitter = Fitter::new(scheme);
    let fit = |(i, &n): (usize, &usize)| fitter.fit(&gathered[i * each..][..n]);
    let (scales, zero_points) = filled.iter().enumerate().map(fit).unzip();
    QParams::of_any_axis(scales, zero_points, granularity, scheme.qmin(), scheme.qmax())
}

/// Finds the best grid of a scheme for one list of values after the other.
struct Fitter<'a> {
    scheme: &'a Scheme,
    search: LevelSearch,
}

impl<'a> Fitter<'a> {
    fn new(scheme: &'a Scheme) -> Self {
        Fitter { scheme, search: LevelSearch::integers((scheme.qmax() - scheme.qmin()) as usize) }
    }

    /// Scale and zero point for these values, all finite.
    fn fit(&mut self, values: &[f32]) -> (f32, i32) {
        let (qmin, qmax) = (self.scheme.qmin(), self.scheme.qmax());
        let ends =
            values.iter().fold(None, |ends: Option<(f32, f32)>, &x| Some(ends.map_or((x, x), |(min, max)| (min.min(x), max.max(x)))));
        let (min, max) = ends.unwrap_or((0.0, 0.0));
        let whole = affine_qparams(min, max, qmin, qmax, self.scheme.is_symmetric());
        let error = |(scale, zero_point)| {
            let off = |x: f32| f64::from(x) - f64::from(dequantize(quantize(x, scale, zero_point, qmin, qmax), scale, zero_point));
            values.iter().map(|&x| off(x).powi(2)).sum::<f64>()
        };
        let mut best = (error(whole), whole);
        // Where all values have one sign, codes on the other side are of no use. Of equals, the one near the exact range's is taken.
        let one = self.scheme.is_symmetric() || min >= 0.0 || max <= 0.0;
        let mut zero_points: Vec<i32> = if one { vec![whole.1] } else { (qmin..=qmax).collect() };
        zero_points.sort_by_key(|&zero_point| zero_point.abs_diff(whole.1));
        let grids: Vec<Reach> =
            zero_points.iter().map(|z| Reach { above: qmax.abs_diff(*z) as usize, below: z.abs_diff(qmin) as usize }).collect();
        if let Some(found) = self.search.best(Weighted { values, weights: &[] }, &grids, best.0) {
            let zero_point = zero_points[found.grid];
            // All codes stay finite. The neighbours matter where f32 has few bits, among the subnormals.
            let ceiling = (f32::MAX / (qmax - zero_point).max(zero_point - qmin) as f32).next_down();
            let nearest = (found.scale as f32).min(ceiling);
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
}
