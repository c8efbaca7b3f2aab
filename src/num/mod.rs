//! The numbers of the crate, and the contract that all its arithmetic keeps.
//!
//! # The contract
//!
//! **Codes.** A value is stored as an integer code: `real = scale · (code - zero_point)`, with `qmin <= code <= qmax`.
//! Zero always has a code of its own (`zero_point` is a code), so padding, ReLU and sparsity stay exact.
//!
//! **Quantize.** `code = clamp(round(x / scale) + zero_point, qmin, qmax)`: a true division (not a product with the
//! reciprocal), rounding half to even, the zero point added afterwards in integers. This is ONNX QuantizeLinear. The
//! clamp comes before the conversion to an integer, so no value is too large; NaN has the code of zero.
//!
//! **Dequantize.** `scale · (code - zero_point)`: an integer difference, one f32 product.
//!
//! **At the bounds of i32.** Codes of type i32 may be any of them, and so may their zero points: `code - zero_point`, and
//! the sum that quantizing ends in, are taken in 33 bits or more and never wrap. The difference rounds to f32 once (24 bits
//! stay exact), and what lies beyond the last code gets the last code.
//!
//! **Products.** `acc = Σ (lhs - zero_point) · weight`, exact: 8-bit codes give terms of at most `255 · 128`, so 65,536 of
//! them stay below 2³¹; with zero points on the weights too, `255 · 255` a term, 33,025 do. Longer sums
//! never wrap: products take them apart, convolutions and i32 results refuse them ([`Error::Accumulator`]). No instruction
//! set may saturate on the way.
//!
//! **Requantize.** `clamp(round(f32(acc) · multiplier) + zero_point)`: the accumulator rounds to f32 (ties to even), one
//! f32 product, clamp, round half to even, the zero point in integers.
//!
//! **Dequantize a product.** `f32(acc) · (scale_lhs · scale_weight) + bias`: three f32 operations, each rounded.
//!
//! **No fused multiply-add** where it could change a code or a dequantized product: those are the same bits on every
//! machine. Float layers may fuse, and then differ between instruction sets in the last bits, but never between thread
//! counts or batches.
//!
//! **Reductions** run in a fixed order: [`reduce`]. The range of a tensor does not depend on one.
//!
//! **Edges of ranges** (constants, all zeros, subnormals, one-sided ranges, ranges near `f32::MAX`): [`affine_qparams`].
//! **NaN and infinities** are errors unless [`NonFinite::Saturate`] is chosen. Subnormals are numbers like all others.
//!
//! **Small floats** ([`SmallFloat`]) round half to even from f32, as ONNX Cast has it; to f32 they are exact.
//!
//! **exp, erf, tanh** are the crate's own, within one unit in the last place (erf and tanh: two), the same bits everywhere.

mod affine;
mod elem;
mod grid;
pub(crate) mod math;
pub mod reduce;
mod round;
mod small_float;

pub use affine::affine_qparams;
pub use elem::{I2, I4, QuantElem, U2, U4};
pub use grid::U8Grid;
pub use half::{bf16, f16};
pub use math::{erf, exp, tanh};
pub use round::{dequantize, quantize, requantize, round_clamped};
pub use small_float::{F4E2M1, F6E2M3, F6E3M2, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, ScaleRounding, SmallFloat};

use crate::error::{Error, Result};

/// What to do with NaN and infinities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum NonFinite {
    /// Refuse them with [`Error::NonFinite`], which names the tensor and the first such element.
    #[default]
    Error,
    /// Take them. What becomes codes leaves them out of its range; then NaN gets the code of zero, and an infinity the last
    /// code on its side. Biases, which stay float, get 0 and the largest finite float of that sign. Where nothing is
    /// quantized (loading, float layers) they stay what they are.
    Saturate,
}

/// Bits of two's complement in which codes `qmin..=qmax` within -128 to 127 are stored: 2 to 8.
pub(crate) fn code_bits(qmin: i32, qmax: i32) -> u32 {
    (2..8).find(|bits| qmin >= -(1 << (bits - 1)) && qmax < 1 << (bits - 1)).unwrap_or(8)
}

impl NonFinite {
    /// Whether `values`, called `what` in the error, are welcome.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for the first NaN or infinity, unless the policy takes them.
    pub fn check(self, what: &str, values: &[f32]) -> Result<()> {
        if self == NonFinite::Saturate {
            return Ok(());
        }
        // Piece by piece, each to its end: a loop that may stop at any element is not vectorized.
        const PIECE: usize = 256;
        const EXPONENT: u32 = f32::INFINITY.to_bits();
        let refused = |piece: &[f32]| piece.iter().fold(0, |any, x| any | u32::from(x.to_bits() & EXPONENT == EXPONENT)) != 0;
        match values.chunks(PIECE).position(refused) {
            Some(piece) => {
                let from = piece * PIECE;
                let index = from + values[from..].iter().position(|x| !x.is_finite()).unwrap_or(0);
                Err(Error::NonFinite { what: what.to_owned(), index, value: values[index] })
            }
            None => Ok(()),
        }
    }
}
