//! Weights of any format, truly stored in its bits.
//!
//! A [`WeightFormat`] says what codes stand for, which weights share a scale, how scales are stored and chosen; its text is
//! what a command line says. [`WeightFormat::quantize`] (or a [`WeightQuantizer`], which knows sensitivities and stochastic
//! rounding) gives [`QuantizedWeights`], whose [`bytes`](QuantizedWeights::bytes) are the bytes held.
//!
//! Scales are rounded to their format before codes are taken. A group of nothing but zeros has scale 0 (as a power of two:
//! 2^-127). Groups are never padded ([`Grouping`]). Quantizing what was dequantized gives the same values again, but for stochastic
//! rounding, [`Fit::HalfRange`], [`Fit::Percentile`], [`Fit::HalfQuadratic`], offsets of 16 bits, learned levels, shifts, trellises, and
//! what all scales of a tensor share, which are chosen anew.
//!
//! Which scheme when: [`guide::which_scheme`](crate::guide::which_scheme).

mod alphabet;
mod asymmetric;
mod encode;
mod format;
mod gathered;
mod group;
mod grouping;
mod half_quadratic;
mod learned;
mod log_scales;
mod nearest;
mod packed;
mod parallel;
mod parts;
mod percentile;
mod quantized;
mod quantizer;
mod scales;
mod shifted;
mod sparse;
mod text;
mod trellis;

pub use format::{Fit, FloatFormat, Keep, Kept, Learning, Levels, WeightFormat};
pub use grouping::Grouping;
pub use log_scales::LogScales;
pub use packed::PackedCodes;
pub use parts::WeightParts;
pub use quantized::{QuantizedWeights, StoredLevels, Zeros};
pub use quantizer::WeightQuantizer;
pub use scales::{ScaleFormat, Scales};
pub use sparse::SparseSplit;
