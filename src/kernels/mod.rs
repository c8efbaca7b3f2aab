//! 8-bit products and convolutions in registers, and the float ones beside them.
//!
//! **In**: activation codes (`u8` or `i8`, with a zero point for the tensor, or for each row or image), weights packed once
//! ([`PackedWeights`], [`PackedConv2d`]). **Out**: whatever the output stage makes of the exact `i32` sums, before they leave the
//! registers: the sums themselves ([`Accumulate`]), floats ([`Dequantize`]) or codes again ([`Requantize`]).
//!
//! ```text
//! sum[m][n] = sum over k of (lhs[m][k] - zero_point) * weight[n][k]
//!           = sum over k of lhs[m][k] * weight[n][k]  -  zero_point * col_sum[n]
//! ```
//!
//! The second line is what runs: unsigned activations meet signed weights, and the accumulators start from the correction.
//!
//! **How**: a tile, written once, holds some rows times two to four vectors of columns in registers and reads each row as words of at
//! most 8 bytes, broadcast to all lanes. An instruction set says how many products a word holds (eight with Arm's i8mm, four with VNNI
//! and Arm's dot products, two 16-bit ones with AVX2, one with NEON alone, one float) and may walk them by a loop of its own. The tile
//! walks runs of k that lie together in memory: one for a product, one per kernel row for a convolution over a padded NHWC workspace,
//! since the pixels under a kernel row are contiguous there. So a convolution is a product whose rows overlap, without im2col; and
//! padding, filled with the zero point, needs no borders. The workspace holds a strip of lines at a time, made (quantized, transposed,
//! padded) just before they are read. Where a lane is a channel of its own (`depthwise`) or of a narrow group
//! (`grouped`, `grouped_words`), a dense tile would leave most lanes empty: there, taps are interleaved in fours, or each lane gets its
//! group's word, or keeps the one that it has.
//!
//! Dense convolutions of 3 x 3 pixels at stride one take a quarter of the products with AVX2, AVX-512 and VNNI, where they have enough of
//! channels and pixels: tiles of 4 x 4 outputs meet kernels at 36 points (`winograd`), in 16-bit numbers and sums that wrap, from which the
//! exact sums come back.
//!
//! A matrix unit ([`Isa::Amx`]) multiplies whole tiles of activations and weights beside the vectors, from the same panels: `squares` of
//! sums leave it through memory, and are finished by the same stages while it makes the next ones.
//!
//! Weights with zero points add a term of their row sums to what the accumulators start from. A sum that may leave i32 is taken
//! apart into runs of k, added in 64 bits, and meets its stage there; an i32 output refuses it.
//!
//! **Promises**: integer results are equal on every instruction set ([`Isa`]) and for any number of threads, bit for bit, to
//! [`mod@reference`]. Float results do not depend on threads or batch. With one thread and a warm [`Workspace`] nothing is allocated; on
//! AMX, each thread keeps a copy of windows whose pixels lie unevenly, and a line on its way into blocks of pixels, and allocates them the
//! first time.
//!
//! Weights of 2, 3, 4 and 8 bits ([`PackedLowBit`]) are multiplied on their packed codes, with scales for groups along k (`lowbit`): by
//! bytes of activations quantized inside the call ([`gemm_low_bit`]) or by floats ([`gemm_low_bit_f32`]).
//!
//! Between products, codes meet element by element ([`Pairwise`], [`lookup`]) or in windows (`pool`, which floats share), without
//! leaving their integers for longer than a register.
//!
//! The layers, each using those before it: `simd`, `dot`, `pairs`, `tile`, `output` with its stages `accumulate`, `dequantize` and
//! `requantize` (registers), and `ranges` of what they write, `few_words`, `arch` (instruction sets), `isa` (which one runs), `pack`,
//! `winograd_transforms`, `weights` and `conv_weights`, `ingest` (activations), `product`, `matrix_unit` with `squares` and `square_sums`,
//! `depthwise` with `depthwise_quads`, `depthwise_float`, `grouped` and `grouped_words` (loops), `strips` and `depthwise_lines` (those of
//! a convolution around them), `winograd_layout` and `winograd_block` with `winograd` around them, `gemm`, `conv`, `dynamic` with
//! `dynamic_product`, `float`, `attention` and `lowbit` (the doors). A `function` may follow a tile, and `row_codes` makes rows of floats
//! codes.
#![allow(unsafe_code)]
// Tiles walk several arrays of registers by one index; iterators over one of them hide that.
#![allow(clippy::needless_range_loop)]

mod accumulate;
mod arch;
mod attention;
mod codes;
mod conv;
mod conv_weights;
mod depthwise;
mod depthwise_float;
mod depthwise_lines;
mod depthwise_quads;
mod dequantize;
mod dot;
mod dynamic;
mod dynamic_product;
mod elementwise;
mod few_words;
mod float;
mod function;
mod gemm;
mod geometry;
mod grouped;
mod grouped_words;
mod ingest;
mod interleave;
mod isa;
mod lowbit;
pub(crate) mod math;
mod matmul;
mod matrix_unit;
mod memory;
mod operand;
mod output;
mod pack;
mod pairs;
mod pool;
mod product;
mod ranges;
pub mod reference;
mod requantize;
mod row_codes;
pub(crate) mod rows;
mod scatter;
mod simd;
#[cfg(target_os = "linux")]
mod slab;
mod square_sums;
mod squares;
mod strips;
#[cfg(feature = "parallel")]
mod team;
mod threads;
mod tile;
mod weights;
mod winograd;
mod winograd_block;
mod winograd_layout;
mod winograd_products;
mod winograd_transforms;
mod workspace;

pub use accumulate::Accumulate;
pub(crate) use attention::{Attention, Head, Scattered, attention};
pub(crate) use codes::{CodeMeans, GRAIN as CODES_GRAIN, NARROW};
pub use codes::{Pairwise, lookup, lookup_for};
pub use conv::{PackedConv2d, conv2d};
pub use dequantize::Dequantize;
pub use dynamic::{ActivationRule, Epilogue, InputRule, RangeOf, conv2d_dynamic, gemm_dynamic};
pub(crate) use dynamic::{Around, gemm_dynamic_with};
pub use elementwise::{
    dequantize_i8, dequantize_i8_for, dequantize_u8, dequantize_u8_for, min_max, min_max_for, quantize_i8, quantize_i8_for, quantize_u8,
    quantize_u8_for,
};
pub(crate) use float::sgemm_with;
pub use float::{FloatEpilogue, PackedFloatConv2d, conv2d_f32, sgemm};
pub(crate) use function::Function;
pub use gemm::gemm;
pub use geometry::{Conv2dGeometry, ImageLayout, ImageShape, Padding};
pub use isa::Isa;
pub(crate) use lowbit::LOW_BIT_RULE;
pub use lowbit::{GroupScales, Levels, LowBit, LowBitRange, PackedLowBit, gemm_low_bit, gemm_low_bit_f32};
pub use matmul::matmul_f32;
pub(crate) use memory::Aligned;
pub use operand::{ActivationCode, Matrix, MatrixMut, Per};
pub use output::{Activation, OutputStage};
pub(crate) use pool::{Largest, LargestCode, Mean, Pooling, Taps, Windows, mean_pixels, pool};
pub use ranges::Range;
pub(crate) use requantize::MULTIPLIER_MAX;
pub use requantize::{Requantize, Residual};
pub(crate) use scatter::{Scatter, scatter};
pub use weights::{PackedFloatWeights, PackedWeights, WeightLayout};
pub use workspace::Workspace;
