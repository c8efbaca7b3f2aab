//! Weights between two codes, that learn which one to be.

use crate::error::{Error, Result};
use crate::tensor::{QParams, QuantizedTensor, Tensor};

/// Ends of the stretched sigmoid: it reaches 0 and 1 at finite arguments, so that a weight can arrive at a code and stay there.
const LOW: f32 = -0.1;
const HIGH: f32 = 1.1;

/// The weights of a layer on a grid that is fixed, each between the code below and the code above (AdaRound, Nagel et al. 2020):
///
/// ```text
/// w = s · clamp(floor(w₀ / s) + h(v), qmin, qmax)      h(v) = clamp(1.2 · sigmoid(v) - 0.1, 0, 1)
/// ```
///
/// What is learned is `v`, of which there is one for each weight. It begins where `h` is the fraction of `w₀ / s`, so that the weights
/// begin as they were (within the codes), and ends at the code above where `h >= 1/2`, else at the code below.
///
/// ```
/// use lowprec::ptq::reconstruct::SoftRounding;
/// use lowprec::{QParams, Tensor};
/// let soft = SoftRounding::new(&Tensor::new([1, 3], vec![0.3, -0.9, 9.0])?, &QParams::per_tensor(0.5, 0, -8, 7)?)?;
/// let v = soft.start();
/// let w = soft.weights(&v, soft.scales())?;
/// assert!((w[0] - 0.3).abs() < 1e-6 && (w[1] + 0.9).abs() < 1e-6 && w[2] == 3.5);
/// assert_eq!(soft.codes(&[1.0, -1.0, 1.0], &[0.5])?.codes(), [1, -2, 7]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SoftRounding {
    params: QParams,
    weight: Tensor,
    /// The code below each weight, not clamped yet.
    below: Vec<f32>,
    /// Weights that share a scale.
    each: usize,
}

/// The stretched sigmoid before it is clamped, and its slope.
fn stretched(v: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + (-v).exp());
    (sigmoid * (HIGH - LOW) + LOW, sigmoid * (1.0 - sigmoid) * (HIGH - LOW))
}

/// `h(v)`, and its slope.
fn share(v: f32) -> (f32, f32) {
    let (h, slope) = stretched(v);
    (h.clamp(0.0, 1.0), if h > 0.0 && h < 1.0 { slope } else { 0.0 })
}

impl SoftRounding {
    /// Weights `[out, ..]` between the codes of a grid: one scale for all, or one for each output.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for zero points, and scales of anything but outputs; [`Error::NonFinite`].
    pub fn new(weight: &Tensor, params: &QParams) -> Result<Self> {
        let count = params.scales().len();
        let outputs = weight.dims().first().copied().unwrap_or(0);
        if params.zero_points().iter().any(|&zero_point| zero_point != 0) || (count != 1 && count != outputs) || weight.is_empty() {
            return Err(Error::Unsupported {
                what: format!("learning to round {:?} weights with {count} scales", weight.dims()),
                way_out: "use symmetric weights, per tensor or per output channel".into(),
            });
        }
        crate::num::NonFinite::Error.check("weight", weight.as_slice())?;
        let each = weight.len() / count;
        let below = |(i, &w): (usize, &f32)| (w / params.scales()[i / each]).floor();
        let below = weight.as_slice().iter().enumerate().map(below).collect();
        Ok(SoftRounding { params: params.clone(), weight: weight.clone(), below, each })
    }

    /// Where `v` begins.
    pub fn start(&self) -> Vec<f32> {
        let start = |(i, (&w, &below)): (usize, (&f32, &f32))| {
            let fraction = (w / self.params.scales()[i / self.each] - below).clamp(0.0, 1.0);
            -((HIGH - LOW) / (fraction - LOW) - 1.0).ln()
        };
        self.weight.as_slice().iter().zip(&self.below).enumerate().map(start).collect()
    }

    /// The scales that the grid has in the beginning.
    pub fn scales(&self) -> &[f32] {
        self.params.scales()
    }

    fn check_scales(&self, scales: &[f32]) -> Result<()> {
        let expected = self.params.scales().len();
        if scales.len() == expected { Ok(()) } else { Err(Error::length("list of scales", expected, scales.len())) }
    }

    fn check(&self, what: &'static str, length: usize) -> Result<()> {
        if length == self.below.len() { Ok(()) } else { Err(Error::length(what, self.below.len(), length)) }
    }

    /// The weights that `v` stands for.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one for each weight.
    pub fn weights(&self, v: &[f32], scales: &[f32]) -> Result<Vec<f32>> {
        self.check("list of what is learned", v.len())?;
        self.check_scales(scales)?;
        let (lo, hi) = (self.params.qmin() as f32, self.params.qmax() as f32);
        let weight = |(i, (&v, &below)): (usize, (&f32, &f32))| scales[i / self.each] * (below + share(v).0).clamp(lo, hi);
        Ok(v.iter().zip(&self.below).enumerate().map(weight).collect())
    }

    /// From the gradient by the weights those by `v` and by the scales.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one for each weight, and one for each scale.
    pub fn backward(&self, v: &[f32], scales: &[f32], by_weights: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        self.check("list of what is learned", v.len())?;
        self.check("gradient", by_weights.len())?;
        self.check_scales(scales)?;
        let (lo, hi) = (self.params.qmin() as f32, self.params.qmax() as f32);
        let (mut by_v, mut by_scales) = (Vec::with_capacity(v.len()), Vec::with_capacity(scales.len()));
        for (run, scale) in scales.iter().enumerate() {
            let mut by_scale = 0.0f64;
            for i in run * self.each..(run + 1) * self.each {
                let ((h, slope), dy) = (share(v[i]), by_weights[i]);
                let code = self.below[i] + h;
                by_v.push(if code >= lo && code <= hi { dy * scale * slope } else { 0.0 });
                by_scale += f64::from(dy * code.clamp(lo, hi));
            }
            by_scales.push(by_scale as f32);
        }
        Ok((by_v, by_scales))
    }

    /// How undecided the weights are: `Σ 1 - |2 h(v) - 1|^β`, which is 0 when all have arrived at a code. `β` goes down while they learn:
    /// large, it leaves alone all but those next to a code.
    pub fn undecided(&self, v: &[f32], beta: f32) -> f64 {
        v.iter().map(|&v| f64::from(1.0 - (2.0 * share(v).0 - 1.0).abs().powf(beta))).sum()
    }

    /// Adds `factor` times the gradient of [`SoftRounding::undecided`] by `v`.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one for each weight.
    pub fn add_pressure(&self, v: &[f32], beta: f32, factor: f32, gradient: &mut [f32]) -> Result<()> {
        self.check("list of what is learned", v.len())?;
        self.check("gradient", gradient.len())?;
        for (gradient, &v) in gradient.iter_mut().zip(v) {
            let (h, slope) = share(v);
            let side = 2.0 * h - 1.0;
            *gradient -= factor * beta * side.abs().powf(beta - 1.0) * 2.0 * side.signum() * slope;
        }
        Ok(())
    }

    /// The codes where `v` ends.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one for each weight.
    pub fn codes(&self, v: &[f32], scales: &[f32]) -> Result<QuantizedTensor<i8>> {
        self.check("list of what is learned", v.len())?;
        self.check_scales(scales)?;
        let zero_points = vec![0; scales.len()];
        let params = QParams::of_any_axis(scales.to_vec(), zero_points, self.params.granularity(), self.params.qmin(), self.params.qmax())?;
        let (lo, hi) = (self.params.qmin(), self.params.qmax());
        let code = |(&v, &below): (&f32, &f32)| (below as i32).saturating_add(i32::from(v >= 0.0)).clamp(lo, hi);
        let codes: Vec<i32> = v.iter().zip(&self.below).map(code).collect();
        QuantizedTensor::from_codes(&codes, self.weight.shape().clone(), params)
    }
}
