//! Layers whose weights alone are quantized, to any [`WeightFormat`](crate::quant::WeightFormat), and held in its bits.
//!
//! **In and out**: floats, as for the layers of [`nn`](crate::nn). **How it runs** is decided by the format ([`StoredWeights`]):
//!
//! | format | Linear, LSTM and GRU, and Conv2d with 1x1 kernels | Embedding | other Conv2d |
//! |---|---|---|---|
//! | 2, 3, 4 bits whose codes stand for one table's levels or integers, 8-bit integers; groups of a multiple of 4 | on the packed codes ([`PackedLowBit`](crate::kernels::PackedLowBit)) | rows dequantized as they are picked | dequantized in the call |
//! | all others | dequantized in the call, a block of rows at a time | the same | the same |
//!
//! Products on packed codes multiply floats, or bytes that the input's rows are quantized to in the call ([`Activations`]).

mod conv;
mod embedding;
mod linear;
mod product;
mod stored;

pub use conv::Conv2d;
pub use embedding::Embedding;
pub use linear::Linear;
pub use stored::StoredWeights;

use crate::nn::Precision;

/// What the products of weight-only layers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Activations {
    /// Floats, as they are: the weights' codes are the only error.
    #[default]
    Float,
    /// Signed bytes with a zero point, each row quantized in the call by its own range, where products run on packed codes. Sums within a
    /// group are integers then: several times faster for more than a few rows, for some 45 dB of error of its own.
    Int8,
    /// As [`Activations::Int8`], each run of a row that meets one group of weights by its own range: 3 to 4 dB less error with
    /// groups of 32 and 5 with groups of 16, for some more time. The same where a row of weights is one group.
    Int8Groups,
}

impl Activations {
    pub(crate) fn precision(self) -> Precision {
        match self {
            Activations::Float => Precision::F32,
            Activations::Int8 | Activations::Int8Groups => Precision::Int8,
        }
    }
}
