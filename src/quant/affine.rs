//! The uniform quantizer.

use std::marker::PhantomData;

use crate::error::Result;
use crate::num::{NonFinite, QuantElem};
use crate::quant::observer::MinMax;
use crate::quant::{Observer, Quantizer, Scheme};
use crate::tensor::{QParams, QuantizedTensor, Tensor};

/// `code = clamp(round(x / scale) + zero_point, qmin, qmax)`: evenly spaced levels, one of them exactly zero.
///
/// ```
/// use lowprec::quant::{Affine, Quantizer, Scheme};
/// use lowprec::Tensor;
/// let weight = Tensor::new([2, 2], vec![0.5, -1.0, 0.02, 0.015])?;
/// let q = Affine::<i8>::fit(&weight, &Scheme::INT8_WEIGHT)?.quantize(&weight)?;
/// assert_eq!(q.codes(), [64, -127, 127, 95]); // each row has its own scale
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Affine<T: QuantElem> {
    params: QParams,
    non_finite: NonFinite,
    codes: PhantomData<T>,
}

impl<T: QuantElem> Affine<T> {
    /// A quantizer with these parameters.
    pub fn new(params: QParams) -> Self {
        Affine { params, non_finite: NonFinite::Error, codes: PhantomData }
    }

    /// A quantizer for the exact range of `x` ([`MinMax`]).
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite), those of [`Scheme::validate`], and those of a granularity that does
    /// not fit the shape.
    pub fn fit(x: &Tensor, scheme: &Scheme) -> Result<Self> {
        let mut observer = MinMax::new(scheme.granularity());
        observer.observe(x)?;
        Ok(Affine::new(observer.qparams(scheme)?))
    }

    /// With another policy for NaN and infinities: to saturate them instead of refusing them.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.non_finite = policy;
        self
    }
}

impl<T: QuantElem> Quantizer<T> for Affine<T> {
    fn quantize(&self, x: &Tensor) -> Result<QuantizedTensor<T>> {
        QuantizedTensor::quantize_with(x, &self.params, self.non_finite)
    }

    fn qparams(&self) -> &QParams {
        &self.params
    }
}
