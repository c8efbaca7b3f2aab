//! The integer twins of the float layers.
//!
//! Each stands alone: built from plain slices (the weights of any framework), run on slices, no [`Model`](crate::nn::Model)
//! needed. What runs is, for every output element,
//!
//! ```text
//! scale_x, zero_x = range of the input (one image, one row)      x_q = clamp(round(x / scale_x) + zero_x)
//! acc = Σ (x_q - zero_x) · w_q                                    in i32, exact
//! y   = f32(acc) · (scale_x · scale_w[channel]) + bias[channel]   in f32, one rounding an operation
//! ```
//!
//! Weights are held once, in the panels of the kernel that runs them; the codes can be read back from there.

mod conv;
mod conv_transpose;
mod embedding;
mod linear;
mod range;
mod static_conv;
mod static_linear;
mod static_stage;
mod twin;

pub use conv::Conv2d;
pub use conv_transpose::ConvTranspose2d;
use conv_transpose::check_sums;
pub use embedding::Embedding;
pub use linear::Linear;
pub use static_conv::StaticConv2d;
pub use static_linear::StaticLinear;
pub(crate) use static_stage::largest_bias;
pub use static_stage::{StaticOutput, StaticOutputMut};
pub(crate) use twin::{DYNAMIC_KINDS, STATIC_KINDS, dynamic_obstacle, dynamic_twin};

use crate::error::{Error, Result};
use crate::kernels::{ActivationRule, RangeOf};
use crate::num::{NonFinite, code_bits};
use crate::quant::observer::MinMax;
use crate::quant::{Observer, Scheme};
use crate::tensor::{Granularity, QParams, QuantizedTensor, Tensor};

/// How a layer's weights and inputs become codes.
///
/// The default is int8 as PyTorch and ONNX Runtime recommend it: weights symmetric in -127..=127 with one scale per
/// output channel, inputs asymmetric in 0..=255, NaN and infinities refused; with one range for each image or row, where those have
/// one for the tensor.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DynamicScheme {
    /// Weights: signed, symmetric, at most 8 bits, per tensor or per output channel (axis 0). Tables of embeddings have the bits and the
    /// granularity alone of it.
    pub weights: Scheme,
    /// Inputs: unsigned, at most 8 bits, one scale for each range.
    pub activations: Scheme,
    /// Over what the range of an input is taken: each image or row ([`RangeOf::Row`]), or all that a run is given. The input of a
    /// recurrent layer is then the sequences of the batch with all their steps, and its state that of the batch at one step.
    #[cfg_attr(feature = "serde", serde(default))]
    pub range: RangeOf,
    /// NaN and infinities, in weights, biases and inputs alike.
    pub non_finite: NonFinite,
}

impl Default for DynamicScheme {
    fn default() -> Self {
        let (weights, activations) = (Scheme::INT8_WEIGHT, Scheme::UINT8_ACTIVATION);
        DynamicScheme { weights, activations, range: RangeOf::default(), non_finite: NonFinite::Error }
    }
}

impl DynamicScheme {
    /// Whether the integer kernels can run it.
    ///
    /// # Errors
    /// Those of [`Scheme::validate`], and [`Error::Unsupported`] for a scheme that the integer kernels can't run, saying which they can.
    pub fn validate(&self) -> Result<()> {
        self.weights.validate()?;
        self.activations.validate()?;
        let per_channel = matches!(self.weights.granularity(), Granularity::PerTensor | Granularity::PerChannel { axis: 0 });
        if !(self.weights.is_signed() && self.weights.is_symmetric() && self.weights.bits() <= 8 && per_channel) {
            return Err(Error::Unsupported {
                what: format!("weights as {} in an int8 layer", self.weights),
                way_out: "use a signed symmetric scheme of at most 8 bits, per tensor or per channel of axis 0".into(),
            });
        }
        if self.activations.is_signed() || self.activations.bits() > 8 || self.activations.granularity() != Granularity::PerTensor {
            return Err(Error::Unsupported {
                what: format!("inputs as {} in an int8 layer", self.activations),
                way_out: "use an unsigned scheme of at most 8 bits, per tensor: `range` says whether each image or row has its own".into(),
            });
        }
        Ok(())
    }

    fn rule(&self) -> ActivationRule {
        ActivationRule {
            qmin: self.activations.qmin(),
            qmax: self.activations.qmax(),
            symmetric: self.activations.is_symmetric(),
            non_finite: self.non_finite,
        }
    }

    /// Codes and scales of a weight whose axis 0 is the output channel.
    fn weights(&self, weight: &Tensor) -> Result<QuantizedTensor<i8>> {
        self.validate()?;
        self.codes(weight, &self.weights)
    }

    /// Codes and scales of a weight by its ranges.
    fn codes(&self, weight: &Tensor, scheme: &Scheme) -> Result<QuantizedTensor<i8>> {
        let mut observer = MinMax::new(scheme.granularity()).with_non_finite(self.non_finite);
        observer.observe(weight).map_err(|error| named("weight", error))?;
        let params = observer.qparams(scheme)?;
        // What the policy refuses the observer has refused: no second look.
        QuantizedTensor::quantize_with(weight, &params, NonFinite::Saturate)
    }
}

/// The bias, all finite: under [`NonFinite::Saturate`] NaN becomes 0 and an infinity the largest float of its sign.
pub(crate) fn finite_bias(bias: &[f32], policy: NonFinite) -> Result<Vec<f32>> {
    policy.check("bias", bias)?;
    Ok(bias.iter().map(|&b| if b.is_nan() { 0.0 } else { b.clamp(f32::MIN, f32::MAX) }).collect())
}

/// Whether a bias has a number for each of so many outputs.
fn check_bias(bias: &[f32], outputs: usize) -> Result<()> {
    match bias.len() == outputs {
        true => Ok(()),
        false => Err(Error::length("bias", outputs, bias.len())),
    }
}

/// Calls the tensor that is not finite what the layer calls it.
pub(crate) fn named(what: &str, error: Error) -> Error {
    match error {
        Error::NonFinite { index, value, .. } => Error::NonFinite { what: what.into(), index, value },
        error => error,
    }
}

/// What both layers hold besides their panels.
#[derive(Debug, Clone)]
struct Parameters {
    // One scale, or one per output channel.
    scales: Tensor,
    bias: Option<Tensor>,
    rule: ActivationRule,
    range: RangeOf,
    qmin: i32,
    qmax: i32,
}

impl Parameters {
    fn new(weight: &QuantizedTensor<i8>, bias: Option<&[f32]>, channels: usize, scheme: &DynamicScheme) -> Result<Self> {
        scheme.validate()?;
        let params = weight.params();
        if params.zero_points().iter().any(|&z| z != 0) {
            return Err(Error::Unsupported {
                what: "weights with zero points".into(),
                way_out: "quantize them with a symmetric scheme".into(),
            });
        }
        if !matches!(params.granularity(), Granularity::PerTensor | Granularity::PerChannel { axis: 0 }) {
            return Err(Error::Unsupported {
                what: format!("weights with {:?} scales", params.granularity()),
                way_out: "use one scale, or one per channel of axis 0".into(),
            });
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != channels) {
            return Err(Error::length("bias", channels, bias.len()));
        }
        Ok(Parameters {
            scales: Tensor::new([params.scales().len()], params.scales().to_vec())?,
            bias: bias.map(|bias| Tensor::new([channels], finite_bias(bias, scheme.non_finite)?)).transpose()?,
            rule: scheme.rule(),
            range: scheme.range,
            qmin: params.qmin(),
            qmax: params.qmax(),
        })
    }

    /// The codes back as a tensor of their own.
    fn weight(&self, codes: &[i8], dims: &[usize]) -> Result<QuantizedTensor<i8>> {
        let granularity = if self.scales.len() == 1 && dims[0] != 1 { Granularity::PerTensor } else { Granularity::PerChannel { axis: 0 } };
        let params = QParams::of_any_axis(self.scales.as_slice().to_vec(), vec![0; self.scales.len()], granularity, self.qmin, self.qmax)?;
        QuantizedTensor::from_storage(codes.to_vec(), crate::tensor::Shape::new(dims)?, params)
    }

    /// Bytes of so many codes at their bits, of scales and bias.
    fn stored_bytes(&self, codes: usize) -> usize {
        let codes = (codes * code_bits(self.qmin, self.qmax) as usize).div_ceil(8);
        codes + 4 * (self.scales.len() + self.bias().map_or(0, <[f32]>::len))
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(Tensor::as_slice)
    }

    fn with_range(&self, range: RangeOf) -> Self {
        Parameters { range, ..self.clone() }
    }

    /// The same with another bias, one number a channel.
    fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        NonFinite::Error.check("bias", bias)?;
        Ok(Parameters { bias: Some(Tensor::new([bias.len()], bias.to_vec())?), ..self.clone() })
    }
}
