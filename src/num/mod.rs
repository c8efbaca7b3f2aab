//! The numbers of the crate.
mod affine;
mod round;

pub use affine::affine_qparams;
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
