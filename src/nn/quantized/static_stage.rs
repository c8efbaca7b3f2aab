//! What the layers with fixed grids share: their numbers, and the output stage that follows from them.

use std::sync::Arc;

use super::{Parameters, check_bias};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Dequantize, MULTIPLIER_MAX, Matrix, Per, Requantize, Residual};
use crate::num::U8Grid;
use crate::tensor::{DType, QuantizedTensor};

/// What a static layer writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StaticOutput {
    /// Codes of a grid, none below `lo` and none above `hi`: a ReLU, say, starts at the code of zero.
    Codes {
        /// What the codes stand for.
        grid: U8Grid,
        /// Smallest code.
        lo: u8,
        /// Largest code.
        hi: u8,
    },
    /// Floats after this clamp.
    Float(Activation),
}

impl StaticOutput {
    /// Any code of the grid.
    pub fn codes(grid: U8Grid) -> Self {
        StaticOutput::Codes { grid, lo: 0, hi: 255 }
    }

    /// The grid of the codes, where codes are written.
    pub fn grid(self) -> Option<U8Grid> {
        match self {
            StaticOutput::Codes { grid, .. } => Some(grid),
            StaticOutput::Float(_) => None,
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            StaticOutput::Codes { .. } => DType::U8,
            StaticOutput::Float(_) => DType::F32,
        }
    }
}

/// Where a static layer writes to: memory of the type that its [`StaticOutput`] says.
#[derive(Debug)]
pub enum StaticOutputMut<'a> {
    /// Codes.
    Codes(&'a mut [u8]),
    /// Floats.
    Float(&'a mut [f32]),
}

impl StaticOutputMut<'_> {
    fn name(&self) -> &'static str {
        match self {
            StaticOutputMut::Codes(_) => "u8",
            StaticOutputMut::Float(_) => "f32",
        }
    }
}

/// What both static layers tell of themselves, out of `packed` and `numbers`.
macro_rules! accessors {
    ($layer:ident) => {
        impl $layer {
            /// With codes of this grid added before rounding: the layer then has a second input.
            ///
            /// # Errors
            /// [`Error::Unsupported`] for a layer that writes floats, [`Error::Parameter`] for a scale more than 2^64 times that of the
            /// output.
            pub fn with_residual(self, residual: U8Grid) -> Result<Self> {
                Ok($layer { numbers: self.numbers.with_residual(residual)?, ..self })
            }

            /// Name of the integer kernel that the weights are packed for.
            pub fn kernel_name(&self) -> &'static str {
                self.packed.kernel_name()
            }

            /// Bias by output channel or feature, before it was rounded to the sums' unit.
            pub fn bias(&self) -> Option<&[f32]> {
                self.numbers.weights.bias()
            }

            /// The same layer with another bias.
            ///
            /// # Errors
            /// [`Error::Length`] when it has not one number for each output, [`Error::NonFinite`] for NaN or infinities in it,
            /// [`Error::Unsupported`] for one too large for the sums' unit.
            pub fn with_bias(&self, bias: &[f32]) -> Result<Self> {
                Ok($layer { packed: self.packed.clone(), numbers: self.numbers.with_bias(bias, self.sums_of())? })
            }

            /// The layer up to its sums: they and the bias as floats, without what is added or applied after.
            pub(crate) fn sums(&self) -> Self {
                $layer { packed: self.packed.clone(), numbers: self.numbers.sums() }
            }

            /// Bytes of the bias, in both units where codes are written, and of the multipliers.
            pub(crate) fn bias_bytes(&self) -> usize {
                self.numbers.bias_bytes()
            }

            /// Grid of the input.
            pub fn input(&self) -> U8Grid {
                self.numbers.input
            }

            /// Grid of the codes that are added, if there are any.
            pub fn residual(&self) -> Option<U8Grid> {
                self.numbers.residual
            }

            /// What it writes.
            pub fn output(&self) -> StaticOutput {
                self.numbers.output
            }

            /// Bytes of panels, column sums and scales.
            pub fn weight_bytes(&self) -> usize {
                self.packed.bytes() + 4 * self.numbers.weights.scales.len()
            }
        }
    };
}
pub(super) use accessors;

/// The numbers of a static layer besides its panels.
#[derive(Debug, Clone)]
pub(super) struct StaticParameters {
    pub weights: Parameters,
    pub input: U8Grid,
    pub residual: Option<U8Grid>,
    pub output: StaticOutput,
    /// By channel: the bias in units of the sums, and the scale of a sum over that of the output. Empty for float outputs.
    bias: Arc<[i32]>,
    multipliers: Arc<[f32]>,
}

impl StaticParameters {
    /// `k` products in each sum.
    pub fn new(
        weight: &QuantizedTensor<i8>,
        bias: Option<&[f32]>,
        channels: usize,
        (k, is_linear): (usize, bool),
        input: U8Grid,
        output: StaticOutput,
    ) -> Result<Self> {
        let weights = Parameters::new(weight, bias, channels, &Default::default())?;
        let mut parameters = StaticParameters { weights, input, residual: None, output, bias: Arc::default(), multipliers: Arc::default() };
        if let StaticOutput::Codes { grid, lo, hi } = output {
            if lo > hi {
                return Err(Error::parameter("range of codes", (lo, hi), "its start must not be above its end"));
            }
            parameters.bias = parameters.bias_codes(k, is_linear)?.into();
            let multiplier = |&scale: &f32| multiplier(input.scale(), scale, grid.scale());
            parameters.multipliers = parameters.weights.scales.as_slice().iter().map(multiplier).collect();
            if let Some((index, &value)) = parameters.multipliers.iter().enumerate().find(|(_, x)| !x.is_finite()) {
                return Err(Error::Scale { index, value });
            }
        }
        Ok(parameters)
    }

    pub fn with_residual(self, residual: U8Grid) -> Result<Self> {
        match self.output {
            StaticOutput::Codes { grid, .. } => match residual.scale() / grid.scale() {
                ratio if ratio <= MULTIPLIER_MAX => Ok(StaticParameters { residual: Some(residual), ..self }),
                ratio => Err(Error::parameter("residual's scale over the output's", ratio, "must be at most 2^64")),
            },
            StaticOutput::Float(_) => Err(Error::Unsupported {
                what: "a residual of codes added to floats".into(),
                way_out: "let the layer write codes, or add what it writes in float".into(),
            }),
        }
    }

    /// With another bias, for sums of `k` products.
    pub fn with_bias(&self, bias: &[f32], (outputs, k, is_linear): (usize, usize, bool)) -> Result<Self> {
        check_bias(bias, outputs)?;
        let mut parameters = StaticParameters { weights: self.weights.with_bias(bias)?, ..self.clone() };
        if parameters.output.grid().is_some() {
            parameters.bias = parameters.bias_codes(k, is_linear)?.into();
        }
        Ok(parameters)
    }

    /// With the sums and their bias as floats.
    pub fn sums(&self) -> Self {
        StaticParameters { output: StaticOutput::Float(Activation::None), residual: None, ..self.clone() }
    }

    /// The bias in units of the sums, rounded half to even.
    fn bias_codes(&self, k: usize, is_linear: bool) -> Result<Vec<i32>> {
        let Some(bias) = self.weights.bias() else { return Ok(Vec::new()) };
        let scales = self.weights.scales.as_slice();
        let limit = largest_bias(k, is_linear);
        let code = |(index, &bias): (usize, &f32)| {
            let unit = f64::from(self.input.scale()) * f64::from(scales[if scales.len() == 1 { 0 } else { index }]);
            let code = (f64::from(bias) / unit).round_ties_even();
            match code.abs() <= limit {
                true => Ok(code as i32),
                false => Err(Error::Unsupported {
                    what: format!("bias {index} of {bias}, {code:.0} units of the sum's scale {unit:e}"),
                    way_out: format!("{limit} is the most that i32 leaves: raise the scale of that channel's weights"),
                }),
            }
        };
        bias.iter().enumerate().map(code).collect()
    }

    /// Bytes of the bias in both forms, and of the multipliers.
    pub fn bias_bytes(&self) -> usize {
        4 * (self.weights.bias().map_or(0, <[f32]>::len) + self.bias.len() + self.multipliers.len())
    }

    fn bias_of_codes(&self) -> Option<&[i32]> {
        (!self.bias.is_empty()).then_some(&self.bias)
    }

    /// The output stage for codes, with a residual of `rows` rows.
    pub fn requantize<'a>(&'a self, residual: Option<&'a [u8]>, rows: usize, channels: usize) -> Result<Option<Requantize<'a, u8>>> {
        let StaticOutput::Codes { grid, lo, hi } = self.output else { return Ok(None) };
        let residual = match (self.residual, residual) {
            (Some(from), Some(codes)) => Some(Residual {
                codes: Matrix::new(codes, rows, channels)?,
                zero_point: from.zero_point().into(),
                multiplier: from.scale() / grid.scale(),
            }),
            (None, None) => None,
            (expected, _) => {
                let what = if expected.is_some() { "must be given, as the layer adds one" } else { "was given, and the layer adds none" };
                return Err(Error::parameter("residual", if expected.is_some() { "missing" } else { "there" }, what));
            }
        };
        let stage = Requantize::new(&self.multipliers)
            .with_bias(self.bias_of_codes())
            .with_residual(residual)
            .with_zero_point(grid.zero_point().into())
            .with_range(lo.into(), hi.into());
        Ok(Some(stage))
    }

    /// The output stage for floats.
    pub fn dequantize(&self, activation: Activation) -> Dequantize<'_> {
        Dequantize::new(Per::Tensor(self.input.scale()), self.weights.scales.as_slice())
            .with_bias(self.weights.bias())
            .with_activation(activation)
    }

    /// The error of memory of the wrong type.
    pub fn unfit(&self, output: &StaticOutputMut<'_>) -> Error {
        Error::Type { what: "output".into(), expected: self.output.dtype().name(), got: output.name() }
    }
}

/// `x · w / y` in f32 from left to right, as ONNX Runtime takes it; by way of f64 where the product is too small for that.
fn multiplier(x: f32, w: f32, y: f32) -> f32 {
    let product = x * w;
    if product.is_normal() { product / y } else { (f64::from(x) * f64::from(w) / f64::from(y)) as f32 }
}

/// The largest bias, in units of a sum of `k` products, that leaves the sum within i32. Long sums of a linear layer are taken apart
/// in any case, and leave a bias all of it.
pub(crate) fn largest_bias(k: usize, is_linear: bool) -> f64 {
    let left = i64::from(i32::MAX) - 255 * 128 * i64::try_from(k).unwrap_or(i64::from(u16::MAX)).min(1 << 20);
    if is_linear && left < 1 << 30 { f64::from(i32::MAX) } else { left.max(0) as f64 }
}
