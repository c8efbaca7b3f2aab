//! One scale and one zero point for codes of type u8: what an edge between two integer layers carries.

use super::round::{dequantize, quantize};
use crate::error::{Error, Result};

/// The values that u8 codes stand for: `scale · (code - zero_point)`.
///
/// Signed codes are the same values 128 codes higher, so activations of either type have one.
///
/// ```
/// use lowprec::num::U8Grid;
/// let grid = U8Grid::new(0.5, 10)?;
/// assert_eq!((grid.quantize(2.0), grid.dequantize(14)), (14, 2.0));
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct U8Grid {
    scale: f32,
    zero_point: u8,
}

impl U8Grid {
    /// The grid of this scale and zero point.
    ///
    /// # Errors
    /// [`Error::Scale`] for a scale that is not finite and above zero.
    pub fn new(scale: f32, zero_point: u8) -> Result<Self> {
        match scale.is_finite() && scale > 0.0 {
            true => Ok(U8Grid { scale, zero_point }),
            false => Err(Error::Scale { index: 0, value: scale }),
        }
    }

    /// The distance between two codes.
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// The code of zero.
    pub fn zero_point(self) -> u8 {
        self.zero_point
    }

    /// The code of `x`, as [`num::quantize`](crate::num::quantize()) has it over 0..=255.
    pub fn quantize(self, x: f32) -> u8 {
        quantize(x, self.scale, self.zero_point.into(), 0, 255) as u8
    }

    /// The value of a code.
    pub fn dequantize(self, code: u8) -> f32 {
        dequantize(code.into(), self.scale, self.zero_point.into())
    }
}
