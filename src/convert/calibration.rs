//! What calibration found: plain data, value by value.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::num::U8Grid;
use crate::tensor::{Granularity, QParams, QuantizedTensor};

/// The scale and zero point of every value that a static model holds in codes, by the value's name; and codes of weights, by the
/// layer's name, where something else than their range decided them.
///
/// ```
/// use lowprec::QParams;
/// use lowprec::convert::Calibration;
/// let mut calibration = Calibration::new();
/// calibration.insert("relu1", QParams::per_tensor(0.02, 0, 0, 255)?);
/// assert_eq!(calibration.to_string(), "relu1  scale 0.02, zero point 0, codes 0..=255, values 0 to 5.1\n");
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Calibration {
    activations: BTreeMap<String, QParams>,
    #[cfg_attr(feature = "serde", serde(default))]
    weights: BTreeMap<String, WeightCodes>,
    /// Of the samples: by input of the model, in its order.
    shapes: Vec<Vec<usize>>,
}

impl Calibration {
    /// Nothing known yet.
    pub fn new() -> Self {
        Calibration::default()
    }

    /// The parameters of a value, if there are any.
    pub fn get(&self, value: &str) -> Option<&QParams> {
        self.activations.get(value)
    }

    /// Sets the parameters of a value, and returns those that it had.
    pub fn insert(&mut self, value: &str, params: QParams) -> Option<QParams> {
        self.activations.insert(value.to_owned(), params)
    }

    /// All values with their parameters, by name.
    pub fn activations(&self) -> impl Iterator<Item = (&str, &QParams)> {
        self.activations.iter().map(|(name, params)| (name.as_str(), params))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.activations.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.activations.is_empty() && self.weights.is_empty()
    }

    /// The codes of a layer's weights, if they were decided beforehand; else the configuration's rule decides them.
    pub fn weights(&self, layer: &str) -> Option<&QuantizedTensor<i8>> {
        self.weights.get(layer).map(|WeightCodes(codes)| codes)
    }

    /// Sets the codes of a layer's weights, and returns those that were set before.
    pub fn insert_weights(&mut self, layer: &str, codes: QuantizedTensor<i8>) -> Option<QuantizedTensor<i8>> {
        self.weights.insert(layer.to_owned(), WeightCodes(codes)).map(|WeightCodes(codes)| codes)
    }

    /// The layers whose weights are decided.
    pub fn weighted_layers(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// The shapes of the model's inputs that were observed, in the model's order: they tell which sums have operands of one
    /// shape. Empty when unknown.
    pub fn shapes(&self) -> &[Vec<usize>] {
        &self.shapes
    }

    /// With shapes of the model's inputs.
    #[must_use]
    pub fn with_shapes(self, shapes: Vec<Vec<usize>>) -> Self {
        Calibration { shapes, ..self }
    }
}

/// Weights of a layer, as a file has them.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "StoredCodes", into = "StoredCodes"))]
struct WeightCodes(QuantizedTensor<i8>);

#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct StoredCodes {
    codes: Vec<i8>,
    shape: Vec<usize>,
    params: QParams,
}

#[cfg(feature = "serde")]
impl From<WeightCodes> for StoredCodes {
    fn from(WeightCodes(codes): WeightCodes) -> Self {
        StoredCodes { codes: codes.storage().to_vec(), shape: codes.shape().dims().to_vec(), params: codes.params().clone() }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<StoredCodes> for WeightCodes {
    type Error = Error;

    fn try_from(StoredCodes { codes, shape, params }: StoredCodes) -> Result<Self> {
        QuantizedTensor::from_storage(codes, crate::tensor::Shape::new(shape)?, params).map(WeightCodes)
    }
}

/// A line a value, then a line for each layer whose weights are decided.
impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.activations.keys().map(String::len).max().unwrap_or(0);
        for (name, params) in &self.activations {
            let (scale, zero_point) = params.at(0);
            let value = |code: i32| scale * (code - zero_point) as f32;
            let (lo, hi) = (value(params.qmin()), value(params.qmax()));
            let (qmin, qmax) = (params.qmin(), params.qmax());
            writeln!(f, "{name:width$}  scale {scale}, zero point {zero_point}, codes {qmin}..={qmax}, values {lo} to {hi}")?;
        }
        for (layer, WeightCodes(codes)) in &self.weights {
            let (params, dims) = (codes.params(), codes.shape().dims());
            writeln!(f, "weights of {layer}  {dims:?}, {} scales, codes {}..={}", params.scales().len(), params.qmin(), params.qmax())?;
        }
        Ok(())
    }
}

/// The codes of a value in an integer model: unsigned, all or some of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CodeRange {
    pub grid: U8Grid,
    pub lo: u8,
    pub hi: u8,
}

impl CodeRange {
    /// Signed codes are the same values 128 codes higher.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for codes of more than 8 bits, or several scales; [`Error::Scale`].
    pub fn new(params: &QParams) -> Result<Self> {
        let shift = if params.qmin() < 0 { 128 } else { 0 };
        let (scale, zero_point) = params.at(0);
        let code = |code: i32| u8::try_from(i64::from(code) + shift).ok();
        match (code(params.qmin()), code(params.qmax()), code(zero_point)) {
            (Some(lo), Some(hi), Some(zero_point)) if params.granularity() == Granularity::PerTensor => {
                Ok(CodeRange { grid: U8Grid::new(scale, zero_point)?, lo, hi })
            }
            _ => Err(Error::Unsupported {
                what: format!("activations in codes {}..={}, {:?}", params.qmin(), params.qmax(), params.granularity()),
                way_out: "use at most 8 bits and one scale for the tensor".into(),
            }),
        }
    }

    /// The first and last code that an activation leaves.
    pub fn after(self, activation: Activation) -> (u8, u8) {
        let (lo, hi) = match activation {
            Activation::None => return (self.lo, self.hi),
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Clamp { lo, hi } => (lo, hi),
        };
        (self.quantize(lo), self.quantize(hi))
    }

    /// The code of `x`.
    pub fn quantize(self, x: f32) -> u8 {
        self.grid.quantize(x).clamp(self.lo, self.hi)
    }

    /// Whether every code of the grid is in it.
    pub fn is_whole(self) -> bool {
        (self.lo, self.hi) == (0, 255)
    }
}
