//! From values to codes: a [`Scheme`] says what is wanted, an [`Observer`] looks at the values and finds the scales (of
//! weights, [`least_squares`] the best ones), a [`Quantizer`] rounds. Weights also take formats that are not evenly spaced: a
//! [`WeightFormat`] names them all.
//!
//! ```
//! use lowprec::quant::observer::MinMax;
//! use lowprec::{Granularity, Observer, QuantizedTensor, Scheme, Tensor};
//!
//! let x = Tensor::new([2, 2], vec![-1.0, 0.25, 0.5, 2.0])?;
//! let mut observer = MinMax::new(Granularity::PerTensor);
//! observer.observe(&x)?;
//! let params = observer.qparams(&Scheme::UINT8_ACTIVATION)?;
//! let codes = QuantizedTensor::<u8>::quantize(&x, &params)?;
//! assert_eq!(codes.codes(), [0, 106, 127, 255]);
//! # Ok::<(), lowprec::Error>(())
//! ```

mod affine;
mod codebook;
mod least_squares;
mod level_search;
pub mod observer;
mod scheme;
mod stochastic;
mod weights;

pub use affine::Affine;
pub use codebook::{Codebook, Table, kmeans, quantile_levels};
pub use least_squares::least_squares;
pub use scheme::Scheme;
pub use stochastic::{Rounding, random_unit, round_stochastic};
pub use weights::{
    Fit, FloatFormat, Grouping, Keep, Kept, Learning, Levels, LogScales, PackedCodes, QuantizedWeights, ScaleFormat, Scales, SparseSplit,
    StoredLevels, WeightFormat, WeightParts, WeightQuantizer, Zeros,
};

use crate::error::Result;
use crate::num::QuantElem;
use crate::tensor::{QParams, QuantizedTensor, Tensor};

/// Looks at values as they come and chooses scales and zero points for them.
///
/// What an observer knows depends on the values alone, not on how they were cut into tensors: observers that saw the
/// parts, [merged](Observer::merge), know what one knows that saw the whole. Only a
/// [`MovingAverage`](observer::MovingAverage) counts batches; merged, it goes on with the other's.
///
/// `Box<dyn Observer>` observes and answers; to merge, the type must be known.
pub trait Observer {
    /// Takes these values into account.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or infinities (unless the observer's policy is another), and
    /// errors of shape when the tensor does not fit the granularity or what was seen before. On an error nothing is
    /// taken.
    fn observe(&mut self, x: &Tensor) -> Result<()>;

    /// Takes into account what another observer saw.
    ///
    /// # Errors
    /// Errors of shape when the two looked at different things.
    fn merge(&mut self, other: &Self) -> Result<()>
    where
        Self: Sized;

    /// The scales and zero points that suit what was seen.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) when nothing was observed, [`Error::Unsupported`](crate::Error::Unsupported)
    /// when the scheme's granularity is not the observer's, and those of [`Scheme::validate`].
    fn qparams(&self, scheme: &Scheme) -> Result<QParams>;
}

/// Turns values into codes of type `T`.
pub trait Quantizer<T: QuantElem> {
    /// The codes of a tensor.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or infinities (unless the quantizer's policy is another),
    /// and errors of shape when the tensor does not fit the parameters.
    fn quantize(&self, x: &Tensor) -> Result<QuantizedTensor<T>>;

    /// The scales and zero points it works with.
    fn qparams(&self) -> &QParams;
}
