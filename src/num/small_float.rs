//! Floats of one byte and less, each in a byte of its own, and their way from and to f32.

use std::fmt;

use bytemuck::{Pod, Zeroable};

mod sealed {
    pub trait Sealed {}
}

/// What the topmost codes of a format stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Specials {
    /// As IEEE 754: the last exponent holds the infinity and the NaNs.
    LastExponent,
    /// No infinity; the last code of either sign is NaN.
    LastCode,
    /// No infinity and no negative zero, whose code is the only NaN.
    NegativeZero,
    /// None: every code is a number.
    None,
}

/// A format with a sign: `(-1)^sign · 2^(max(exponent, 1) - bias) · (mantissa · 2^-bits + (exponent > 0))`.
#[derive(Debug, Clone, Copy)]
struct Format {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    specials: Specials,
}

impl Format {
    const fn sign(self) -> u8 {
        1 << (self.exponent + self.mantissa)
    }

    /// The code of the largest number.
    const fn max(self) -> u8 {
        match self.specials {
            Specials::LastExponent => self.infinity() - 1,
            Specials::LastCode => self.sign() - 2,
            Specials::NegativeZero | Specials::None => self.sign() - 1,
        }
    }

    /// The first code of the last exponent.
    const fn infinity(self) -> u8 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    const fn nan(self, sign: u8) -> u8 {
        match self.specials {
            // Quiet, as IEEE 754 recommends: the first bit of the mantissa is set.
            Specials::LastExponent => sign | self.infinity() | 1 << (self.mantissa - 1),
            Specials::LastCode => sign | (self.sign() - 1),
            Specials::NegativeZero | Specials::None => self.sign(),
        }
    }

    const fn is_nan(self, code: u8) -> bool {
        let magnitude = code & (self.sign() - 1);
        match self.specials {
            Specials::LastExponent => magnitude > self.infinity(),
            Specials::LastCode => magnitude == self.sign() - 1,
            Specials::NegativeZero => code == self.sign(),
            Specials::None => false,
        }
    }

    fn encode(self, x: f32, saturate: bool) -> u8 {
        let sign = if x.is_sign_negative() { self.sign() } else { 0 };
        if x.is_nan() {
            return self.nan(sign);
        }
        let magnitude = x.abs();
        // The exponent of the step between neighbours; below the first exponent that has a leading one all steps are equal.
        let least = 1 - self.bias;
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(least);
        // Both products are exact: powers of two, and the first brings the number to 0..2^(mantissa + 1).
        let steps = (magnitude * power_of_two(self.mantissa as i32 - exponent)).round_ties_even() as u32;
        // A number that rounds up to the next exponent carries into it.
        let code = if x.is_infinite() { u32::MAX } else { (((exponent - least) as u32) << self.mantissa) + steps };
        if code > u32::from(self.max()) {
            return match self.specials {
                _ if saturate => sign | self.max(),
                Specials::LastExponent => sign | self.infinity(),
                Specials::LastCode | Specials::NegativeZero => self.nan(sign),
                Specials::None => sign | self.max(),
            };
        }
        if code == 0 && self.specials == Specials::NegativeZero { 0 } else { sign | code as u8 }
    }

    fn decode(self, code: u8) -> f32 {
        let magnitude = code & (self.sign() - 1);
        let negative = code & self.sign() != 0;
        let value = if self.is_nan(code) {
            f32::NAN
        } else if self.specials == Specials::LastExponent && magnitude == self.infinity() {
            f32::INFINITY
        } else {
            // The fields at f32's places are the number times 2^(bias - 127), be it subnormal.
            f32::from_bits(u32::from(magnitude) << (23 - self.mantissa)) * power_of_two(127 - self.bias)
        };
        if negative { -value } else { value }
    }
}

/// `2^exponent` for -126..=127.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// A float of at most 8 bits, in a byte of its own. Two are equal when their codes are: so is NaN to itself, and 0 is not -0.
/// Sealed: [`F8E4M3`], [`F8E4M3Fnuz`], [`F8E5M2`], [`F8E5M2Fnuz`], [`F8E8M0`], [`F6E2M3`], [`F6E3M2`], [`F4E2M1`].
///
/// ```
/// use lowprec::num::{F8E4M3, SmallFloat};
/// assert_eq!(F8E4M3::from_f32(0.3, true).to_f32(), 0.3125);
/// assert_eq!(F8E4M3::from_f32(1e9, true).to_f32(), 448.0);
/// assert!(F8E4M3::from_f32(1e9, false).to_f32().is_nan());
/// ```
pub trait SmallFloat: sealed::Sealed + Pod + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Bits of one number.
    const BITS: u32;
    /// Its name, as in `f8e4m3`.
    const NAME: &'static str;

    /// `x` rounded to the nearest number, ties to the even code (for [`F8E8M0`]: up to a power of two). What then lies beyond
    /// the largest number of its sign, and the infinity of that sign, becomes that number; without `saturate` it becomes the
    /// infinity, or NaN in a format without one, or that number in one without either.
    fn from_f32(x: f32, saturate: bool) -> Self;

    /// The number, exactly.
    fn to_f32(self) -> f32;

    /// The number of these bits, of which the lowest [`SmallFloat::BITS`] are looked at.
    fn from_bits(bits: u8) -> Self;

    /// The bits.
    fn to_bits(self) -> u8;
}

macro_rules! small_floats {
    ($($type:ident, $name:literal, $exponent:literal, $mantissa:literal, $bias:literal, $specials:ident, $($doc:literal)*;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $type(u8);

        impl $type {
            const FORMAT: Format = Format { exponent: $exponent, mantissa: $mantissa, bias: $bias, specials: Specials::$specials };
        }

        impl sealed::Sealed for $type {}
        impl SmallFloat for $type {
            const BITS: u32 = 1 + $exponent + $mantissa;
            const NAME: &'static str = $name;

            fn from_f32(x: f32, saturate: bool) -> Self {
                $type(Self::FORMAT.encode(x, saturate))
            }

            fn to_f32(self) -> f32 {
                Self::FORMAT.decode(self.0)
            }

            fn from_bits(bits: u8) -> Self {
                $type(bits & (u8::MAX >> (8 - Self::BITS)))
            }

            fn to_bits(self) -> u8 {
                self.0
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.to_f32().fmt(f)
            }
        }
    )*};
}
small_floats! {
    F8E4M3, "f8e4m3", 4, 3, 7, LastCode,
        "Four bits of exponent, three of mantissa, up to ±448, no infinity (ONNX FLOAT8E4M3FN).";
    F8E4M3Fnuz, "f8e4m3fnuz", 4, 3, 8, NegativeZero,
        "As [`F8E4M3`] with a bias of 8, up to ±240, no negative zero, one NaN (ONNX FLOAT8E4M3FNUZ).";
    F8E5M2, "f8e5m2", 5, 2, 15, LastExponent,
        "Five bits of exponent, two of mantissa, up to ±57344, infinities (ONNX FLOAT8E5M2).";
    F8E5M2Fnuz, "f8e5m2fnuz", 5, 2, 16, NegativeZero,
        "As [`F8E5M2`] with a bias of 16, no infinity, no negative zero, one NaN (ONNX FLOAT8E5M2FNUZ).";
    F6E2M3, "f6e2m3", 2, 3, 1, None,
        "Six bits: two of exponent, three of mantissa, up to ±7.5. NaN, which it has not, becomes -0, as ONNX's reference has it.";
    F6E3M2, "f6e3m2", 3, 2, 3, None,
        "Six bits: three of exponent, two of mantissa, up to ±28. NaN, which it has not, becomes -0, as ONNX's reference has it.";
    F4E2M1, "f4e2m1", 2, 1, 1, None,
        "Four bits: ±0, 0.5, 1, 1.5, 2, 3, 4 and 6. NaN, which it has not, becomes -0, as ONNX's reference has it.";
}

/// Where a number between two powers of two goes when it becomes one ([`F8E8M0::round`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleRounding {
    /// To the larger.
    #[default]
    Up,
    /// To the smaller.
    Down,
    /// To the nearer, halfway to the larger.
    Nearest,
}

/// A power of two, `2^(code - 127)`, without sign or zero: the scale of a block of small floats (ONNX FLOAT8E8M0). Code 255 is
/// NaN.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct F8E8M0(u8);

impl F8E8M0 {
    const NAN: u8 = 255;

    /// The magnitude of `x` (its sign is not looked at) rounded to a power of two. What then lies outside 2^-127 to 2^127,
    /// zero and infinity included, becomes the bound next to it, or NaN without `saturate`.
    pub fn round(x: f32, rounding: ScaleRounding, saturate: bool) -> Self {
        if x.is_nan() {
            return F8E8M0(F8E8M0::NAN);
        }
        // In f64 no f32 is subnormal: the exponent is a field.
        let bits = f64::from(x.abs()).to_bits();
        let (exponent, fraction) = ((bits >> 52) as i32 - 1023, bits & ((1 << 52) - 1));
        let up = match rounding {
            ScaleRounding::Up => fraction > 0,
            ScaleRounding::Down => false,
            ScaleRounding::Nearest => fraction >= 1 << 51,
        };
        // Zero has the lowest exponent of f64, infinity the highest, both far outside.
        let code = exponent + i32::from(up) + 127;
        match u8::try_from(code) {
            Ok(code) if code < F8E8M0::NAN => F8E8M0(code),
            _ if saturate => F8E8M0(if code < 0 { 0 } else { F8E8M0::NAN - 1 }),
            _ => F8E8M0(F8E8M0::NAN),
        }
    }
}

impl sealed::Sealed for F8E8M0 {}
impl SmallFloat for F8E8M0 {
    const BITS: u32 = 8;
    const NAME: &'static str = "f8e8m0";

    fn from_f32(x: f32, saturate: bool) -> Self {
        F8E8M0::round(x, ScaleRounding::Up, saturate)
    }

    fn to_f32(self) -> f32 {
        match self.0 {
            F8E8M0::NAN => f32::NAN,
            // 2^-127 is subnormal in f32: half of its first normal number.
            0 => f32::MIN_POSITIVE / 2.0,
            code => power_of_two(i32::from(code) - 127),
        }
    }

    fn from_bits(bits: u8) -> Self {
        F8E8M0(bits)
    }

    fn to_bits(self) -> u8 {
        self.0
    }
}

impl fmt::Debug for F8E8M0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_f32().fmt(f)
    }
}
