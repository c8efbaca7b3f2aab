//! Means of codes in windows.

use super::checked;
use crate::error::Result;
use crate::kernels::pool::{Pooling, Taps, count};
use crate::num::U8Grid;

/// The mean of a window's codes as a code: `clamp(round(f32(sum - inside * zx) * (sx / (s * count))) + z)`, where `sum` is that
/// of the `inside` codes that lie in the image, and `count` may be more where padding counts, as zeros. The multiplier is two f32
/// operations; a window without codes gives the zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CodeMeans {
    x: U8Grid,
    out: U8Grid,
}

impl CodeMeans {
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) when `sx / s` is above 2^64.
    pub fn new(x: U8Grid, out: U8Grid) -> Result<Self> {
        checked(x.scale() / out.scale())?;
        Ok(CodeMeans { x, out })
    }

    /// What the codes of the input and of the output stand for.
    pub fn grids(self) -> [U8Grid; 2] {
        [self.x, self.out]
    }

    /// With sums in i32: of windows of at most [`NARROW`] pixels.
    pub fn narrow(self, include_pad: bool) -> Means<i32> {
        Means { means: self, include_pad, none: 0 }
    }

    /// With sums in i64, of any windows.
    pub fn wide(self, include_pad: bool) -> Means<i64> {
        Means { means: self, include_pad, none: 0 }
    }
}

/// Pixels of which an i32 holds the sum.
pub(crate) const NARROW: usize = (i32::MAX / 255) as usize;

/// Added to a float between -2^22 and 2^22, it leaves the nearest integer, ties to even, in the low bits of the sum.
const ROUNDING: f32 = 12582912.0;

#[derive(Clone, Copy)]
pub(crate) struct Means<T> {
    means: CodeMeans,
    include_pad: bool,
    none: T,
}

/// What a window's sum becomes a code by.
#[derive(Clone, Copy)]
pub(crate) struct Finish<T> {
    zeros: T,
    multiplier: f32,
    lo: f32,
    hi: f32,
    zero_point: u8,
}

macro_rules! means {
    ($sum:ty) => {
        impl Pooling for Means<$sum> {
            type In = u8;
            type Sum = $sum;
            type Out = u8;
            type Finish = Finish<$sum>;

            #[inline(always)]
            fn start(self) -> $sum {
                self.none
            }

            #[inline(always)]
            fn take(self, sum: $sum, x: u8) -> $sum {
                sum + <$sum>::from(x)
            }

            #[inline(always)]
            fn window(self, rows: Taps, columns: Taps) -> Finish<$sum> {
                let CodeMeans { x, out } = self.means;
                let inside = rows.count * columns.count;
                let count = count(rows, columns, self.include_pad);
                // Without a code the sum is 0, and 0 times anything finite is.
                let multiplier = if inside == 0 { 0.0 } else { x.scale() / (out.scale() * count as f32) };
                let zero_point = out.zero_point();
                let (lo, hi) = (-f32::from(zero_point), 255.0 - f32::from(zero_point));
                Finish { zeros: inside as $sum * <$sum>::from(x.zero_point()), multiplier, lo, hi, zero_point }
            }

            #[inline(always)]
            fn finish(self, by: Finish<$sum>, sum: $sum) -> u8 {
                let x = (sum - by.zeros) as f32 * by.multiplier;
                let x = if x > by.lo { x } else { by.lo };
                let x = if x < by.hi { x } else { by.hi };
                (x + ROUNDING).to_bits().wrapping_add(by.zero_point.into()) as u8
            }
        }
    };
}
means!(i32);
means!(i64);
