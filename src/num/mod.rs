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
//! **Products.** `acc = Σ (lhs - zero_point) · weight` in i32, exact: 8-bit codes give terms below `255 · 128`, so
//! 65,536 of them stay below 2³¹; with zero points on the weights too, `255 · 255` a term, 33,025 do. Longer sums are
//! refused ([`Error::Accumulator`](crate::Error::Accumulator)) and never wrap. No instruction set may saturate on the way.
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
//! **exp, erf, tanh** are the crate's own, within one unit in the last place, the same bits everywhere.

mod affine;
mod elem;
mod math;
pub mod reduce;
mod round;

pub use affine::affine_qparams;
pub use elem::{I2, I4, QuantElem, U2, U4};
pub use math::{erf, exp, tanh};
pub use round::{dequantize, quantize, requantize, round_clamped};

/// What to do with NaN and infinities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum NonFinite {
    /// Refuse them with [`Error::NonFinite`](crate::Error::NonFinite), which names the tensor and the first such element.
    #[default]
    Error,
    /// Leave them out of the range; then NaN gets the code of zero, and an infinity the last code on its side.
    Saturate,
}
