//! The scale of least squared error, exactly.

use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams, dequantize, quantize};
use crate::quant::Scheme;
use crate::quant::level_search::{LevelSearch, Weighted};
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
    let mut searches = Searches::default();
    let fit = |(i, &n): (usize, &usize)| searches.fit(&gathered[i * each..][..n], scheme);
    let (scales, zero_points) = filled.iter().enumerate().map(fit).unzip();
    QParams::of_any_axis(scales, zero_points, granularity, scheme.qmin(), scheme.qmax())
}

/// The search for each zero point that was tried, kept from one list of values to the next.
#[derive(Debug, Default)]
struct Searches(Vec<(i32, LevelSearch)>);

impl Searches {
    fn of(&mut self, zero_point: i32, scheme: &Scheme) -> &mut LevelSearch {
        let index = self.0.iter().position(|(z, _)| *z == zero_point).unwrap_or_else(|| {
            let levels: Vec<f64> = (scheme.qmin()..=scheme.qmax()).map(|code| f64::from(code - zero_point)).collect();
            self.0.push((zero_point, LevelSearch::new(&levels)));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }

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
            let Some(scale) = self.of(zero_point, scheme).best_scale(Weighted { values, weights: &[] }, best.0) else { continue };
            // All codes stay finite. The neighbours matter where f32 has few bits, among the subnormals.
            let ceiling = (f32::MAX / (qmax - zero_point).max(zero_point - qmin) as f32).next_down();
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
}
