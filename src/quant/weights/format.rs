//! Every way to store weights, as one type.

use crate::error::{Error, Result};
use crate::num::NonFinite;
use crate::quant::codebook::{Codebook, Table};
use crate::quant::weights::{Grouping, QuantizedWeights, ScaleFormat, WeightQuantizer};
use crate::tensor::{Shape, Tensor};

/// A small float of a weight format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FloatFormat {
    /// [`F8E4M3`](crate::num::F8E4M3).
    E4M3,
    /// [`F8E5M2`](crate::num::F8E5M2).
    E5M2,
    /// [`F6E2M3`](crate::num::F6E2M3).
    E2M3,
    /// [`F6E3M2`](crate::num::F6E3M2).
    E3M2,
    /// [`F4E2M1`](crate::num::F4E2M1).
    E2M1,
}

/// How the levels of a codebook are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Learning {
    /// [`kmeans`](crate::quant::kmeans).
    KMeans,
    /// [`quantile_levels`](crate::quant::quantile_levels).
    Quantile,
}

/// What codes stand for, before the scale.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Levels {
    /// Integers `-2^(bits-1)` to `2^(bits-1) - 1`, in two's complement: 2 to 8 and 16 bits.
    Int(u32),
    /// `code - zero_point` for codes `0..2^bits` and an integer zero point of as many bits in each group: 2 to 8 and 16 bits.
    Uint(u32),
    /// `scale · code + offset`, with a floating offset in each group, stored as the scale is: 2 to 8 and 16 bits.
    Offset(u32),
    /// `scale · (level + shift)`: a table that is known beforehand, 3 or 4 bits, and one of 16 shifts for each group, in 4 bits.
    Shifted(u32),
    /// `scale · level`, of twice as many levels as there are codes: those of [`Table::Gauss`] of one more bit. Level `k` is one of subset
    /// `k mod 4`; the subset is told by the lowest bits of the weight's code and of the eight before it, the level within by the code's
    /// other bits. 1 to 4 bits.
    ///
    /// There is nothing before the first weight of a run: as many whole groups as have 4096 weights, the least number that does. Runs are
    /// searched side by side: one group for the whole tensor is one run, on one thread.
    Trellis(u32),
    /// Small floats: a code is the number's bits.
    Float(FloatFormat),
    /// MXINT8: 8-bit integers times 2^-6, of which -128 is never given.
    MxInt8,
    /// A table that is known beforehand.
    Table(Table),
    /// A table of the caller's, stored with the weights.
    Custom(Codebook),
    /// Levels learned from the weights and stored with them.
    Learned {
        /// How.
        rule: Learning,
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// Whether zero is one of the levels, exactly.
        zero: bool,
        /// Whether each channel or group has levels of its own, in f16; else all share one list, in f32.
        own: bool,
    },
}

impl Levels {
    /// Bits of a shift of [`Levels::Shifted`].
    pub const SHIFT_BITS: u32 = crate::quant::weights::shifted::SHIFT_BITS;

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        match self {
            Levels::Int(bits) | Levels::Uint(bits) | Levels::Offset(bits) | Levels::Shifted(bits) => *bits,
            Levels::Trellis(bits) | Levels::Learned { bits, .. } => *bits,
            Levels::Float(format) => format.bits(),
            Levels::MxInt8 => 8,
            Levels::Table(table) => table.bits(),
            Levels::Custom(book) => book.bits(),
        }
    }
}

/// How the scale of a group is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Fit {
    /// The exact range: the largest magnitude on the largest level (of integers `2^(bits-1) - 1`), so nothing is clipped;
    /// smallest and largest value on the first and last code where there is a zero point. A power of two is rounded up.
    Range,
    /// The range that so many percent of a group's values lie in, on the last levels as in [`Fit::Range`]; the others are clipped. With
    /// scales alone they are those of smallest magnitude; with a zero point or an offset as many are left out at either end, or all at
    /// that away from zero where all have one sign. Between two values the border lies in proportion, as NumPy's `percentile` has it: in small groups the
    /// largest value is drawn in.
    Percentile {
        /// 50 to 100.
        percent: f32,
    },
    /// OCP MX: `2^(floor(log2(largest magnitude)) - emax)`, with the exponent of the largest level as `emax`; clips.
    Ocp,
    /// Of integers: the largest magnitude on `2^(bits-1) - 1/2`, as PyTorch's torchao has it; clips on one side. Quantizing twice
    /// shrinks twice.
    HalfRange,
    /// Of integers: the value of largest magnitude on `-2^(bits-1)` exactly, with a scale of the sign that does so (GGML).
    SignedMax,
    /// The scale of least squared error, exactly (codes up to 8 bits), of either sign where that matters and the scale's format has a sign.
    /// With a zero point, over all of them up to 4 bits, and over those near the range's above; with an offset, by alternation
    /// from several starts.
    LeastSquares,
    /// Of zero points and offsets: the grid of least `Σ |x - x̂|^0.7` that half-quadratic splitting finds (HQQ, Badri and Shaji 2023; scale
    /// and offset both, the best of all steps). Near the median of a group where least squares is near its mean: outliers count for less.
    HalfQuadratic,
}

/// A fraction of the weights that is kept exactly, beside the codes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Keep {
    /// Which.
    pub which: Kept,
    /// How many of all, 0 to 1, rounded to a number of weights.
    pub fraction: f32,
}

/// Which weights are kept exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Kept {
    /// Those of largest magnitude.
    Largest,
    /// Those of smallest magnitude that are not zero.
    Smallest,
    /// Those whose squared error, were they not kept, times their sensitivity is largest.
    Sensitive,
}

/// A format of stored weights: levels, which weights share a scale, how scales are stored and chosen.
///
/// Its text names it on a command line: a name, then options after colons, in any order.
///
/// | text | levels |
/// |---|---|
/// | `int2` to `int8`, `int16` | integers with a scale |
/// | `uint2` to `uint8`, `uint16` | with an integer zero point |
/// | `offset2` to `offset8`, `offset16` | with a floating offset |
/// | `shift3`, `shift4` | between evenly spaced and best for a normal distribution, moved by one of 16 shifts |
/// | `trellis1` to `trellis4` | twice as many, best for a normal distribution, chosen among by the codes before, too |
/// | `midrise1` to `midrise8` | evenly spaced without zero |
/// | `nf4`, `pot2` to `pot6`, `apot2` to `apot5`, `gauss2` to `gauss5` | [`Table`] |
/// | `[-1,-0.25,0,1]` | a table of the caller's |
/// | `kmeans1` to `kmeans8`, `quantile1` to `quantile8` | learned; `:zero` with zero as a level, `:own` a list for each channel or group |
/// | `fp8e4m3`, `fp8e5m2`, `fp6e2m3`, `fp6e3m2`, `fp4` | small floats |
/// | `mxfp8e4m3`, `mxfp8e5m2`, `mxfp6e2m3`, `mxfp6e3m2`, `mxfp4`, `mxint8` | OCP MX: `:g32:e8m0:ocp` |
/// | `nvfp4` | `fp4:g16:e4m3:range` |
///
/// Options: `tensor`, `channel` or `g<size>` ([`Grouping`]; channels unless said otherwise, learned levels the tensor);
/// `f32`, `f16`, `bf16`, `e8m0`, `e4m3`, `double`, `log2` to `log6` ([`ScaleFormat`]; f16 for groups of codes up to 8 bits, else f32);
/// `range`, `p` with a percentage (`p99.9`), `ocp`, `half`, `signedmax`, `hqq`, `mse` ([`Fit`]; `mse`, for 16 bits and the formats of a standard `range` or `ocp`); `largest=`, `smallest=`
/// and `sensitive=` with a fraction ([`Keep`]).
///
/// ```
/// use lowprec::quant::WeightFormat;
/// use lowprec::Tensor;
/// let format: WeightFormat = "int4:g32".parse()?;
/// let weight = Tensor::new([2, 64], (0..128).map(|i| (i as f32).sin()).collect::<Vec<_>>())?;
/// let quantized = format.quantize(&weight)?;
/// assert_eq!(quantized.bytes(), 64 + 4 * 2); // 128 codes of 4 bits, 4 scales in f16
/// assert_eq!(quantized.bits_per_weight(), 4.5);
/// assert!(lowprec::metrics::sqnr_db(weight.as_slice(), quantized.dequantize().as_slice())? > 20.0);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WeightFormat {
    levels: Levels,
    grouping: Grouping,
    scale: ScaleFormat,
    fit: Fit,
    keep: Option<Keep>,
}

impl WeightFormat {
    /// These levels with scales for `grouping`, stored as f16 for groups and f32 otherwise, chosen by least squares (of 16 bits: as
    /// f32, by range; a step of f16 is larger than one of theirs).
    ///
    /// # Errors
    /// [`Error::Parameter`] for levels of a number of bits that they do not have, and groups of size 0.
    pub fn new(levels: Levels, grouping: Grouping) -> Result<Self> {
        let wide = levels.bits() > 8;
        let scale = if matches!(grouping, Grouping::Group(_)) && !wide { ScaleFormat::F16 } else { ScaleFormat::F32 };
        let fit = if wide { Fit::Range } else { Fit::LeastSquares };
        WeightFormat { levels, grouping, scale, fit, keep: None }.checked()
    }

    /// With scales stored otherwise.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an offset in a format that cannot hold it, and for a rule that needs another.
    pub fn with_scale_format(self, scale: ScaleFormat) -> Result<Self> {
        WeightFormat { scale, ..self }.checked()
    }

    /// With scales chosen otherwise.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a rule that the levels or the scale's format cannot follow.
    pub fn with_fit(self, fit: Fit) -> Result<Self> {
        WeightFormat { fit, ..self }.checked()
    }

    /// Scale's format and rule at once, where neither goes with the other's default.
    pub(crate) fn with_scale_and_fit(self, scale: ScaleFormat, fit: Fit) -> Result<Self> {
        WeightFormat { scale, fit, ..self }.checked()
    }

    /// With a fraction of the weights kept exactly.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a fraction outside 0 to 1.
    pub fn with_keep(self, keep: Option<Keep>) -> Result<Self> {
        WeightFormat { keep, ..self }.checked()
    }

    /// What codes stand for.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.levels.bits()
    }

    /// Which weights share a scale.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Number of groups of a tensor of this shape, each with a scale.
    ///
    /// # Errors
    /// [`Error::Parameter`] for groups of size 0, which a format that was built has not.
    pub fn groups(&self, shape: &Shape) -> Result<usize> {
        self.grouping.of(shape).map(|groups| groups.len())
    }

    /// How scales are stored.
    pub fn scale_format(&self) -> ScaleFormat {
        self.scale
    }

    /// How scales are chosen.
    pub fn fit(&self) -> Fit {
        self.fit
    }

    /// What is kept exactly.
    pub fn keep(&self) -> Option<Keep> {
        self.keep
    }

    /// The weights in this format, each code the nearest. More can be asked for by a [`WeightQuantizer`].
    ///
    /// # Errors
    /// Those of [`WeightQuantizer::quantize`].
    pub fn quantize(&self, weight: &Tensor) -> Result<QuantizedWeights> {
        WeightQuantizer::new(self.clone()).with_non_finite(NonFinite::Error).quantize(weight)
    }

    fn checked(self) -> Result<Self> {
        let bits = self.levels.bits();
        let (range, also) = match self.levels {
            Levels::Int(_) | Levels::Uint(_) | Levels::Offset(_) => (2..=8, Some(16)),
            Levels::Shifted(_) => (3..=4, None),
            Levels::Trellis(_) => (1..=4, None),
            Levels::Learned { .. } => (1..=8, None),
            Levels::Table(table) => {
                table.codebook()?;
                (1..=8, None)
            }
            Levels::Float(_) | Levels::MxInt8 | Levels::Custom(_) => (1..=8, None),
        };
        if !range.contains(&bits) && also != Some(bits) {
            let rule = format!("must be {} to {}{}", range.start(), range.end(), if also.is_some() { ", or 16" } else { "" });
            return Err(Error::parameter("bits of a weight format", bits, rule));
        }
        if self.grouping == Grouping::Group(0) {
            return Err(Error::parameter("size of a group", 0, "must be at least 1"));
        }
        if let Some(keep) = self.keep.filter(|keep| !(0.0..=1.0).contains(&keep.fraction)) {
            return Err(Error::parameter("fraction of weights to keep", keep.fraction, "must be 0 to 1"));
        }
        if let Fit::Percentile { percent } = self.fit
            && !(50.0..=100.0).contains(&percent)
        {
            return Err(Error::parameter("percentage of weights within the range", percent, "must be 50 to 100"));
        }
        if let ScaleFormat::Log(bits) = self.scale
            && !(2..=6).contains(&bits)
        {
            return Err(Error::parameter("bits of a logarithmic scale", bits, "must be 2 to 6"));
        }
        let unsupported = |what: String, way_out: &str| Err(Error::Unsupported { what, way_out: way_out.into() });
        if matches!(self.levels, Levels::Offset(_)) && !matches!(self.scale, ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::Bf16) {
            return unsupported(
                format!("an offset stored as {}", self.scale),
                "store scales as f32, f16 or bf16, or choose integer zero points",
            );
        }
        let integers = matches!(self.levels, Levels::Int(_));
        match self.fit {
            Fit::HalfQuadratic if !matches!(self.levels, Levels::Uint(_) | Levels::Offset(_)) || bits > 8 => {
                unsupported("half-quadratic splitting for these levels".into(), "choose uint or offset of 2 to 8 bits, or mse")
            }
            Fit::Ocp if self.scale != ScaleFormat::E8M0 => unsupported(format!("OCP's scale as {}", self.scale), "store scales as e8m0"),
            Fit::Ocp if !matches!(self.levels, Levels::Float(_) | Levels::MxInt8) => {
                unsupported("OCP's scale for these levels".into(), "choose small floats or mxint8")
            }
            Fit::HalfRange | Fit::SignedMax if !integers => {
                unsupported("this rule for levels other than int".into(), "choose range or mse")
            }
            fit if matches!(self.levels, Levels::Shifted(_)) && fit != Fit::LeastSquares => {
                unsupported("shifts chosen otherwise than by least squares".into(), "choose mse")
            }
            fit if matches!(self.levels, Levels::Trellis(_)) && fit != Fit::LeastSquares => {
                unsupported("scales for a trellis chosen otherwise than by least squares".into(), "choose mse")
            }
            Fit::SignedMax if !self.scale.is_signed() => {
                unsupported(format!("a negative scale as {}", self.scale), "store scales as f32, f16, bf16 or e4m3")
            }
            Fit::LeastSquares if bits > 8 => unsupported(format!("the least-squares scale of {bits} bits"), "choose range"),
            Fit::Percentile { .. } if matches!(self.levels, Levels::Learned { own: true, .. }) => {
                unsupported("a percentile's range for levels of each group's own".into(), "choose mse, or levels that all share")
            }
            _ => Ok(self),
        }
    }
}
