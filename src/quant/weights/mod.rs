//! Weights of any format, truly stored in its bits.
//!
//! A [`WeightFormat`] says what codes stand for, which weights share a scale, how scales are stored and chosen; its text is
//! what a command line says. [`WeightFormat::quantize`] (or a [`WeightQuantizer`], which knows sensitivities and stochastic
//! rounding) gives [`QuantizedWeights`], whose [`bytes`](QuantizedWeights::bytes) are the bytes held.
//!
//! Scales are rounded to their format before codes are taken. A group of nothing but zeros has scale 0 (as a power of two:
//! 2^-127). Groups are never padded ([`Grouping`]). Quantizing what was dequantized gives the same values again, but for stochastic
//! rounding, [`Fit::HalfRange`], learned levels, shifts, trellises, and what all scales of a tensor share, which are chosen anew.
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
//! Bits per weight with everything counted (rows of 1024), signal to noise in decibels on 2^18 samples of a normal and a Laplace
//! distribution and in the mean over 18 weight matrices of trained convolutional networks, and the share of their weights that
//! become zero:
//!
//! | format | bits | normal | Laplace | trained | flushed |
//! |---|---|---|---|---|---|
//! | `int8:g32` | 8.500 | 46.7 | 44.5 | 46.9 | 0.8 % |
//! | `int8` | 8.031 | 42.3 | 38.2 | 44.1 | 1.0 % |
//! | `fp8e4m3` | 8.031 | 32.1 | 32.3 | 33.2 | 0.0 % |
//! | `mxfp8e4m3` | 8.250 | 30.6 | 30.0 | 30.6 | 0.0 % |
//! | `int6:g32` | 6.500 | 34.2 | 32.0 | 34.4 | 2.9 % |
//! | `offset4:g32` | 5.000 | 23.2 | 21.8 | 23.7 | 0.0 % |
//! | `uint4:g32` | 4.625 | 22.3 | 20.8 | 22.7 | 10.5 % |
//! | `int4:g32` | 4.500 | 21.8 | 19.8 | 22.0 | 11.3 % |
//! | `int4:g32:range` | 4.500 | 20.3 | 18.3 | 20.4 | 13.0 % |
//! | `fp4:g32` | 4.500 | 21.1 | 20.6 | 21.1 | 8.4 % |
//! | `nvfp4` | 4.500 | 20.4 | 20.7 | 20.4 | 6.6 % |
//! | `kmeans4:g64` | 4.252 | 21.9 | 20.9 | 22.2 | 0.0 % |
//! | `nf4:g64` | 4.250 | 21.7 | 20.5 | 21.9 | 8.7 % |
//! | `gauss4:g64` | 4.250 | 21.6 | 20.0 | 21.8 | 0.0 % |
//! | `mxfp4` | 4.250 | 18.8 | 17.9 | 18.8 | 8.4 % |
//! | `apot4:g64` | 4.250 | 20.6 | 19.3 | 20.8 | 9.9 % |
//! | `pot4:g64` | 4.250 | 15.4 | 15.8 | 15.5 | 1.5 % |
//! | `trellis4:g20:log4` | 4.203 | 24.2 | 23.5 | 24.3 | 0.0 % |
//! | `shift4:g32:log3` | 4.219 | 23.0 | 21.5 | 23.2 | 1.3 % |
//! | `nf4:g64:double` | 4.127 | 21.4 | 20.2 | 21.6 | 8.7 % |
//! | `kmeans4:channel` | 4.033 | 20.4 | 18.6 | 21.3 | 0.0 % |
//! | `uint3:g32` | 3.594 | 15.9 | 14.6 | 16.2 | 20.5 % |
//! | `kmeans3:g64` | 3.251 | 15.6 | 14.5 | 15.9 | 0.0 % |
//! | `gauss3:g64` | 3.250 | 15.3 | 13.3 | 15.5 | 0.0 % |
//! | `trellis3:g20:log4` | 3.203 | 18.0 | 17.3 | 18.2 | 0.0 % |
//! | `shift3:g32:log3` | 3.219 | 16.9 | 15.4 | 17.1 | 2.9 % |
//! | `trellis2:g20:log4` | 2.203 | 11.8 | 10.8 | 11.9 | 0.0 % |
//! | `gauss2:g32` | 2.500 | 9.8 | 7.9 | 9.9 | 0.0 % |
//! | `int2:g32` | 2.500 | 9.6 | 8.7 | 9.9 | 36.5 % |

mod alphabet;
mod asymmetric;
mod encode;
mod format;
mod gathered;
mod group;
mod grouping;
mod learned;
mod log_scales;
mod nearest;
mod packed;
mod parallel;
mod parts;
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
