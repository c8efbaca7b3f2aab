//! The numbers of the crate.
mod round;
pub use round::{dequantize, quantize, requantize, round_clamped};
