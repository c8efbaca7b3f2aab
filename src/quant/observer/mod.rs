//! Observers: how scales are found.
//!
//! **In**: float tensors, one after the other, and then a [`Scheme`](crate::Scheme). **Out**: one scale and zero point for
//! the tensor, for each channel or for each group ([`QParams`](crate::QParams)). In between an [`Observer`](crate::Observer)
//! keeps a summary whose size does not depend on how much was seen, and two of them can be merged: batches may be observed
//! apart. With the feature `serde` it can be saved at any time, and goes on exactly where it was.
//!
//! | observer | range | for | mind |
//! |---|---|---|---|
//! | [`MinMax`] | `min` and `max` of all | weights; activations without outliers | one element a thousand times as large as the others leaves these almost no codes |
//! | [`MovingAverage`] | of a usual batch: `end += rate · (end of the batch - end)` | activations whose batches have stray extremes | depends on order and size of the batches, and clips what lies beyond the average |
//! | [`Percentile`] | what so many percent of the values lie in | activations with few, large outliers | of fewer than `1 / (1 - p)` values it is the exact range; a percentage that suits one layer ruins another |
//! | [`Histogram`] | least `Σ (x - x̂)²` for the codes that the scheme has | activations at any number of bits; the one to begin with | 24 bytes a bin and scale: hardly for groups |
//! | [`Entropy`] | least Kullback-Leibler divergence | comparing with tools that have nothing else | the divergence of a histogram is not the error of a layer |
//! | [`FixedRange`] | the one given | softmax, tanh, images | values beyond it are clipped |
//!
//! For weights, which are all there at once, [`least_squares`](crate::quant::least_squares) finds the best scale exactly.
//! [`ObserverKind`] names an observer in a configuration or on a command line and builds it.
//!
//! From the range to the scale:
//!
//! ```text
//! asymmetric   scale = (max(max, 0) - min(min, 0)) / (qmax - qmin)     zero_point = round(qmin - min(min, 0) / scale)
//! symmetric    scale = max(|min|, |max|) / qmax                        zero_point = 0
//! ```
//!
//! The edges (constants, zeros, subnormal and huge ranges) are decided by [`affine_qparams`](crate::num::affine_qparams).
//!
//! ```
//! use lowprec::quant::observer::MinMax;
//! use lowprec::{Granularity, Observer, Scheme, Tensor};
//!
//! let batch = |values: [f32; 4]| Tensor::new([2, 2], values.to_vec());
//! let (mut first, mut second) = (MinMax::new(Granularity::PerTensor), MinMax::new(Granularity::PerTensor));
//! first.observe(&batch([0.0, 0.5, 1.0, -1.0])?)?;
//! second.observe(&batch([2.0, 4.1, 0.0, 0.0])?)?;
//! first.merge(&second)?;
//! assert_eq!(first.ranges(), [Some((-1.0, 4.1))]);
//! let params = first.qparams(&Scheme::UINT8_ACTIVATION)?;
//! assert_eq!(params.at(0), (5.1 / 255.0, 50));
//! # Ok::<(), lowprec::Error>(())
//! ```

mod entropy;
#[cfg(feature = "serde")]
mod exact;
mod fixed_range;
mod histogram;
mod kind;
mod min_max;
mod moving_average;
mod percentile;
mod range;
mod summaries;

pub use entropy::Entropy;
pub use fixed_range::FixedRange;
pub use histogram::Histogram;
pub use kind::ObserverKind;
pub use min_max::MinMax;
pub use moving_average::MovingAverage;
pub use percentile::Percentile;
