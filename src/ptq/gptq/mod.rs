//! Rounding that looks at the inputs: weights of any [`WeightFormat`] whose outputs on samples are as near as can be, not the weights.
//!
//! With `H = Σ x xᵀ` over a layer's inputs, the squared error of the outputs of one row of weights is
//!
//! ```text
//! |(w - q) X|² = (w - q) H (w - q)ᵀ
//! ```
//!
//! Rounding to the nearest code ignores all of `H` but its diagonal's sign. Two algorithms look at it, both for one row at a time and
//! all rows at once:
//!
//! - **Feedback** (GPTQ, Frantar et al. 2023, in the form of LDLQ, Chee et al. 2023, which gives the same codes without an inverse): with
//!   `H = V D Vᵀ`, `V` unit upper triangular, column `j` becomes the code nearest to `w_j + Σ_{i<j} (w_i - q_i) V_ij`. Columns of
//!   large diagonal come first. `H` is damped by a share of its mean diagonal, and by ten times more while it has no factor.
//! - **Descent**: from there, each code in turn moves to where the error above is least, and each scale (and offset) is fitted to the codes
//!   of its group; no step makes the error larger.
//!
//! Both overfit where samples are few. So a share of them is held out, and of plain rounding, feedback and descent that is taken whose
//! error on those is least: with samples like those to come, never worse than rounding.

mod codes;
mod descent;
mod factor;
mod feedback;
mod hessian;
mod int8;
mod levels;
mod model;
mod moments;
mod patches;
mod recurrent;

pub use hessian::Hessian;
pub(super) use hessian::Products;
pub use int8::{quantize_dynamic, quantize_static};
pub use model::{FittedModel, LayerFit, quantize_weights};
pub(super) use moments::{input_of, moments, weight_of};
pub(super) use recurrent::seen_products;

use crate::error::{Error, Result};
use crate::quant::{Levels, QuantizedWeights, WeightFormat, WeightQuantizer};
use crate::tensor::{QuantizedTensor, Tensor};
use factor::Factor;
use levels::Grid;

/// How weights are fitted to their inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    damping: f64,
    by_diagonal: bool,
    sweeps: usize,
    threads: usize,
}

impl Default for Gptq {
    fn default() -> Self {
        Gptq::new()
    }
}

/// What a layer's weights became.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fitted {
    /// The weights.
    pub weights: QuantizedWeights,
    /// The method that was best on the samples held out.
    pub method: Method,
    /// Squared error of the outputs on those samples, a mean over samples and a sum over outputs: of rounding to the nearest, and of
    /// what was taken.
    pub errors: [f64; 2],
}

/// What a layer's int8 weights became: as [`Fitted`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FittedCodes {
    /// The weights.
    pub weights: QuantizedTensor<i8>,
    /// See [`Fitted::method`].
    pub method: Method,
    /// See [`Fitted::errors`].
    pub errors: [f64; 2],
}

/// How codes were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Method {
    /// To the nearest.
    Nearest,
    /// By feedback of errors along a row.
    Feedback,
    /// By descent from there.
    Descent,
}

impl Gptq {
    /// Damping of 1 % of the mean diagonal, columns by their diagonal, three sweeps of descent.
    pub fn new() -> Self {
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        Gptq { damping: 0.01, by_diagonal: true, sweeps: 3, threads }
    }

    /// With this share of the mean diagonal added to each entry of it, at the least.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it is not finite or below zero.
    pub fn with_damping(self, damping: f64) -> Result<Self> {
        match damping >= 0.0 && damping.is_finite() {
            true => Ok(Gptq { damping, ..self }),
            false => Err(Error::parameter("damping", damping, "must be finite and not below zero")),
        }
    }

    /// With columns in the order of their diagonal, or in their own.
    #[must_use]
    pub fn with_order_by_diagonal(self, by_diagonal: bool) -> Self {
        Gptq { by_diagonal, ..self }
    }

    /// With so many sweeps of descent; 0 for feedback alone.
    #[must_use]
    pub fn with_sweeps(self, sweeps: usize) -> Self {
        Gptq { sweeps, ..self }
    }

    /// On one thread, or for more in products on at most so many and else on those of the current pool. Results are the same.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Gptq { threads: threads.max(1), ..self }
    }

    /// Weights `[out, ..]` in this format, of which each row is multiplied with inputs like those of `samples`: one Hessian, or one for
    /// each of so many equal parts of the rows (the groups of a convolution). The choice between methods is made on `held_out`, as many, or
    /// on the samples themselves where it has seen none.
    ///
    /// # Errors
    /// [`Error::Shape`] when the parts do not divide the rows, or a row has not as many weights as samples have values; those of
    /// [`WeightQuantizer::quantize`]; [`Error::Unsupported`] for 16 bits, whose codes are too many to be searched, and for
    /// [`Levels::Trellis`].
    pub fn quantize(&self, weight: &Tensor, format: &WeightFormat, samples: &[Hessian], held_out: &[Hessian]) -> Result<Fitted> {
        check_shapes(weight, samples, held_out)?;
        if format.bits() > 8 {
            return Err(Error::Unsupported {
                what: format!("fitting weights of {format} to samples"),
                way_out: "choose a format of at most 8 bits, or round to the nearest".into(),
            });
        }
        if matches!(format.levels(), Levels::Trellis(_)) {
            return Err(Error::Unsupported {
                what: format!("fitting weights of {format} to samples, where a code moves the weights after its own"),
                way_out: "choose levels without a trellis, or the codes of least error of the weights alone".into(),
            });
        }
        let nearest = WeightQuantizer::new(format.clone()).quantize(weight)?;
        // Scales for the inputs at hand: errors count as their columns do.
        let per = weight.dims()[0] / samples.len();
        let sensitivities: Vec<f32> = samples.iter().flat_map(|h| (0..per).flat_map(move |_| h.diagonal().map(|x| x as f32))).collect();
        let weighted = || WeightQuantizer::new(format.clone()).with_sensitivities(&sensitivities).quantize(weight);
        self.fit(weight, nearest, &weighted, samples, held_out)
    }

    /// The same of int8 weights whose rule has rounded them already: one scale for all, or one for each output, which is fitted too. Codes
    /// go from `-qmax - 1` to `qmax`.
    ///
    /// # Errors
    /// As [`Gptq::quantize`]; [`Error::Unsupported`] for scales along another axis than the first, and zero points.
    pub fn quantize_codes(
        &self,
        weight: &Tensor,
        rounded: &QuantizedTensor<i8>,
        samples: &[Hessian],
        held_out: &[Hessian],
    ) -> Result<FittedCodes> {
        check_shapes(weight, samples, held_out)?;
        if rounded.shape() != weight.shape() {
            return Err(Error::shape("codes", format!("{:?}, as the weights have it", weight.dims()), rounded.shape().dims()));
        }
        let nearest = codes::from_int8(rounded)?;
        let start = nearest.clone();
        let Fitted { weights, method, errors } = self.fit(weight, nearest, &|| Ok(start.clone()), samples, held_out)?;
        Ok(FittedCodes { weights: codes::to_int8(&weights, rounded)?, method, errors })
    }

    /// The best of `nearest` and of what comes of a start, which is asked for only where there are samples.
    fn fit(
        &self,
        weight: &Tensor,
        nearest: QuantizedWeights,
        start: &dyn Fn() -> Result<QuantizedWeights>,
        samples: &[Hessian],
        held_out: &[Hessian],
    ) -> Result<Fitted> {
        let seen = |hessians: &[Hessian]| hessians.iter().any(|h| h.samples() > 0);
        let judges = if seen(held_out) { held_out } else { samples };
        let part = weight.len() / judges.len();
        let of = |weights: &QuantizedWeights| {
            let off = difference(weight, weights);
            judges.iter().zip(off.chunks(part)).map(|(judge, off)| judge.error(off, self.threads)).sum::<Result<f64>>()
        };
        let plain = of(&nearest)?;
        let mut best = Fitted { errors: [plain, plain], weights: nearest, method: Method::Nearest };
        if !seen(samples) {
            return Ok(best);
        }
        let start = start()?;
        let mut consider = |grid: &Grid, method: Method| -> Result<()> {
            let weights = grid.quantized()?;
            let error = of(&weights)?;
            if error < best.errors[1] {
                best = Fitted { weights, method, errors: [plain, error] };
            }
            Ok(())
        };
        let mut grid = Grid::new(weight, start);
        let factors: Vec<_> = samples.iter().map(|h| Factor::new(h, self.damping, self.by_diagonal, self.threads)).collect();
        if factors.iter().any(Option::is_some) {
            feedback::round(&mut grid, &factors, self.threads)?;
            consider(&grid, Method::Feedback)?;
        }
        if self.sweeps > 0 {
            let products: Vec<Products<'_>> = samples.iter().map(|h| Products::new(h, 1)).collect();
            for _ in 0..self.sweeps {
                descent::sweep(&mut grid, &products, self.threads)?;
            }
            consider(&grid, Method::Descent)?;
        }
        Ok(best)
    }
}

/// That there are inputs of as many values as a row of weights has, and as many parts of rows as Hessians.
fn check_shapes(weight: &Tensor, samples: &[Hessian], held_out: &[Hessian]) -> Result<()> {
    let rows = weight.dims().first().copied().unwrap_or(0);
    let columns = weight.len().checked_div(rows).unwrap_or(0);
    let fit = |hessians: &[Hessian]| {
        hessians.len() == samples.len() && hessians.iter().all(|h| h.width() == columns) && rows.is_multiple_of(hessians.len().max(1))
    };
    if weight.is_empty() || samples.is_empty() || !fit(samples) || !fit(held_out) {
        let width = samples.first().map_or(0, Hessian::width);
        let expected = format!("[out, ..], out a multiple of {}, with {width} values for each output", samples.len());
        return Err(Error::shape("weight", expected, weight.dims()));
    }
    Ok(())
}

/// `q - w`, row by row.
fn difference(weight: &Tensor, quantized: &QuantizedWeights) -> Vec<f32> {
    quantized.dequantize().as_slice().iter().zip(weight.as_slice()).map(|(q, w)| q - w).collect()
}
