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
//! # Which scheme when
//!
//! - Nothing may be lost: `int8` (a scale for each channel), or `int8:g32`. Integers beat small floats of as many bits, unless the
//!   magnitudes of a group span many octaves: `fp8e4m3` then flushes nothing.
//! - 4 bits, nearest: `trellis4:g20:log4`; 3 and 2 bits likewise. Where a few weights carry most of the energy, keep them apart:
//!   `trellis3:g16:log6:largest=0.01`. The price is time: a microsecond of search a weight (`shift4` half of that, `int4` a tenth; five in tensors of
//!   some hundred weights), and a quarter longer to read than a table (4 ns a weight); products dequantize in the call; no stochastic rounding, no fitting to samples;
//!   an exported graph has a byte a weight, where the group divides the rows (`g16`, not `g20`, of rows of 1024).
//! - 4 bits, nearest of those that are read one by one: `shift4:g32:log3`; as near, quicker to multiply, in 5 bits: `offset4:g32`.
//! - 4 bits with integers, as products of codes want them: `uint4:g32`, or `int4:g32` without zero points.
//! - 4 bits by a table that kernels know: `nf4:g64`, of heavy tails the best of those; `gauss4:g64` without a zero; learned: `kmeans4:g64`.
//! - Hardware asks for it: `mxfp4`, `nvfp4`.
//! - 3 bits: `trellis3:g20:log4`, `shift3:g32:log3`. 2 bits: `trellis2:g20:log4`, `gauss2:g32`; of heavy tails `int2:g32`.
//! - Small weights must stay: levels without zero (`trellis`, `gauss`, `midrise`, `kmeans`), `shift`, small floats, or `:smallest=0.1`, at 48 bits
//!   for each weight that it keeps.
//!
//! By `cargo run --release --example schemes`, whose first lines say what the columns are: bits a weight, everything counted, of a small
//! trained network (there scales weigh more than in rows of 1024); decibels of numbers of two distributions, of the network's weights and of its logits;
//! weights that become zero, and the mean relative error of the smallest tenth; images told right of 647; microseconds of a product with
//! 1024x1024 weights on one thread (Zen 4), with float activations and, where there is such a kernel, int8 ones.
//!
#![doc = include_str!("schemes.md")]

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
