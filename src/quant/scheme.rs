//! What codes are wanted, before any value is seen.

use std::fmt;

use crate::error::{Error, Result};
use crate::tensor::Granularity;

/// Bits, sign, symmetry, range and granularity of a uniform quantization.
///
/// ```
/// use lowprec::{Granularity, Scheme};
/// let int4 = Scheme::INT8_WEIGHT.with_bits(4).with_granularity(Granularity::PerGroup { axis: 1, size: 32 });
/// assert_eq!((int4.qmin(), int4.qmax()), (-7, 7));
/// assert_eq!(int4.to_string(), "i4 symmetric -7..=7, groups of 32 along axis 1");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Scheme {
    bits: u32,
    signed: bool,
    symmetric: bool,
    narrow_range: bool,
    granularity: Granularity,
}

impl Scheme {
    /// Weights: -127..=127, symmetric, one scale for each index of axis 0, the output channel of convolutions and linear
    /// layers.
    pub const INT8_WEIGHT: Scheme =
        Scheme { bits: 8, signed: true, symmetric: true, narrow_range: true, granularity: Granularity::PerChannel { axis: 0 } };
    /// Weights: -127..=127, symmetric, one scale.
    pub const INT8_WEIGHT_PER_TENSOR: Scheme = Scheme { granularity: Granularity::PerTensor, ..Scheme::INT8_WEIGHT };
    /// Weights: -7..=7, symmetric, one scale for each index of axis 0.
    pub const INT4_WEIGHT: Scheme = Scheme { bits: 4, ..Scheme::INT8_WEIGHT };
    /// Activations: 0..=255, asymmetric, one scale and zero point.
    pub const UINT8_ACTIVATION: Scheme =
        Scheme { bits: 8, signed: false, symmetric: false, narrow_range: false, granularity: Granularity::PerTensor };
    /// Activations: -128..=127, asymmetric, one scale and zero point.
    pub const INT8_ACTIVATION: Scheme = Scheme { signed: true, ..Scheme::UINT8_ACTIVATION };

    /// Asymmetric codes of so many bits over their full range, per tensor: change what is not wanted with the `with_*`
    /// methods.
    pub const fn new(bits: u32, signed: bool) -> Self {
        Scheme { bits, signed, ..Scheme::UINT8_ACTIVATION }
    }

    /// With so many bits.
    #[must_use]
    pub const fn with_bits(self, bits: u32) -> Self {
        Scheme { bits, ..self }
    }

    /// With codes below zero or not.
    #[must_use]
    pub const fn with_signed(self, signed: bool) -> Self {
        Scheme { signed, ..self }
    }

    /// With the zero point in the middle, or wherever the range puts it.
    #[must_use]
    pub const fn with_symmetric(self, symmetric: bool) -> Self {
        Scheme { symmetric, ..self }
    }

    /// With or without the lowest code: narrow, a signed range is as long below zero as above.
    #[must_use]
    pub const fn with_narrow_range(self, narrow_range: bool) -> Self {
        Scheme { narrow_range, ..self }
    }

    /// With other elements sharing a scale.
    #[must_use]
    pub const fn with_granularity(self, granularity: Granularity) -> Self {
        Scheme { granularity, ..self }
    }

    /// Bits of a code.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Whether there are codes below zero.
    pub const fn is_signed(&self) -> bool {
        self.signed
    }

    /// Whether the zero point is the middle code.
    pub const fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Whether the lowest code is left out.
    pub const fn is_narrow_range(&self) -> bool {
        self.narrow_range
    }

    /// Which elements share a scale.
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Smallest code: `-2^(bits-1)` or 0, one more if the range is narrow. Of a scheme that is not valid, some number.
    pub const fn qmin(&self) -> i32 {
        let lowest = if self.signed { -(1i64 << (self.bits.saturating_sub(1) & 31)) } else { 0 };
        (lowest + self.narrow_range as i64) as i32
    }

    /// Largest code: `2^(bits-1) - 1` or `2^bits - 1`. Of a scheme that is not valid, some number.
    pub const fn qmax(&self) -> i32 {
        let bits = if self.signed { self.bits.saturating_sub(1) } else { self.bits };
        ((1i64 << (bits & 31)) - 1) as i32
    }

    /// Whether there are codes of so many bits.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number of bits other than 2 to 8 and 16.
    pub fn validate(&self) -> Result<()> {
        match self.bits {
            2..=8 | 16 => Ok(()),
            bits => Err(Error::parameter("bits of a scheme", bits, "must be 2 to 8, or 16")),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, symmetry) = (if self.signed { 'i' } else { 'u' }, if self.symmetric { "symmetric" } else { "asymmetric" });
        write!(f, "{sign}{} {symmetry} {}..={}, ", self.bits, self.qmin(), self.qmax())?;
        match self.granularity {
            Granularity::PerTensor => f.write_str("per tensor"),
            Granularity::PerChannel { axis } => write!(f, "per channel of axis {axis}"),
            Granularity::PerGroup { axis, size } => write!(f, "groups of {size} along axis {axis}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = |scheme: Scheme| (scheme.qmin(), scheme.qmax());
        assert_eq!(range(Scheme::INT8_WEIGHT), (-127, 127));
        assert_eq!(range(Scheme::INT8_ACTIVATION), (-128, 127));
        assert_eq!(range(Scheme::UINT8_ACTIVATION), (0, 255));
        assert_eq!(range(Scheme::UINT8_ACTIVATION.with_narrow_range(true)), (1, 255));
        assert_eq!(range(Scheme::INT4_WEIGHT), (-7, 7));
        assert_eq!(range(Scheme::new(2, true)), (-2, 1));
        assert_eq!(range(Scheme::new(16, false)), (0, 65535));
        for bits in [0, 1, 9, 15, 17, 32, u32::MAX] {
            assert!(Scheme::new(bits, true).validate().is_err());
            let _ = range(Scheme::new(bits, false));
        }
    }
}
