//! The uniform quantizer.

use std::marker::PhantomData;

use crate::error::Result;
use crate::num::{NonFinite, QuantElem};
use crate::quant::observer::MinMax;
use crate::quant::{Observer, Quantizer, Scheme};
use crate::tensor::{QParams, QuantizedTensor, Tensor, holds};

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

    /// A quantizer for the exact range of `x` ([`MinMax`]), which must be finite.
    ///
    /// # Errors
    /// Those of [`Affine::fit_with`].
    pub fn fit(x: &Tensor, scheme: &Scheme) -> Result<Self> {
        Affine::fit_with(x, scheme, NonFinite::Error)
    }

    /// As [`Affine::fit`], with a policy for NaN and infinities, in `x` and in what is quantized later.
    ///
    /// ```
    /// use lowprec::quant::{Affine, Quantizer, Scheme};
    /// use lowprec::{NonFinite, Tensor};
    /// let x = Tensor::new([3], vec![1.0, f32::NAN, f32::INFINITY])?;
    /// assert!(Affine::<u8>::fit(&x, &Scheme::UINT8_ACTIVATION).is_err());
    /// let quantizer = Affine::<u8>::fit_with(&x, &Scheme::UINT8_ACTIVATION, NonFinite::Saturate)?;
    /// assert_eq!(quantizer.quantize(&x)?.codes(), [255, 0, 255]);
    /// # Ok::<(), lowprec::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) unless the policy takes them, those of [`Scheme::validate`], those of a
    /// granularity that does not fit the shape, and [`Error::Parameter`](crate::Error::Parameter) for a scheme of codes that
    /// `T` does not have.
    pub fn fit_with(x: &Tensor, scheme: &Scheme, policy: NonFinite) -> Result<Self> {
        scheme.validate()?;
        holds::<T>(scheme.qmin(), scheme.qmax())?;
        let mut observer = MinMax::new(scheme.granularity()).with_non_finite(policy);
        observer.observe(x)?;
        Ok(Affine::new(observer.qparams(scheme)?).with_non_finite(policy))
    }

    /// With another policy for NaN and infinities in what is quantized: to saturate them instead of refusing them.
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
