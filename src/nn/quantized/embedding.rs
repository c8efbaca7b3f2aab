//! Rows of a table in int8, picked by index.

use std::sync::Arc;

use super::DynamicScheme;
use crate::error::{Error, Result};
use crate::kernels::dequantize_i8;
use crate::nn::embedding::look_up;
use crate::nn::view::{View, ViewMut};
use crate::num::code_bits;
use crate::tensor::{Granularity, QuantizedTensor, Tensor};

/// The twin of [`nn::Embedding`](crate::nn::Embedding): int8 codes with one scale and zero point per row, and rows dequantized as they
/// are looked up: `y[i] = scale[row] * (code[row][i] - zero_point[row])`. Nothing is quantized at run time.
///
/// Rows are values, not weights, and quantized as a dynamic layer quantizes rows that it reads: from the least to the largest value. Such
/// a layer that reads them finds the same codes again, so what two roundings cost is paid once.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Arc<QuantizedTensor<i8>>,
}

impl Embedding {
    /// Quantizes a float table `[rows, width]`, in as many bits as the scheme has for weights, by row or as a whole as that has them;
    /// asymmetric, in all codes.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is none, [`Error::NonFinite`] for NaN or infinities in it (unless the scheme saturates them),
    /// [`Error::Unsupported`] for a scheme that is not signed and symmetric.
    pub fn from_float(weight: &Tensor, scheme: &DynamicScheme) -> Result<Self> {
        match weight.dims() {
            [_, _] => {
                scheme.validate()?;
                let rows = scheme.weights.with_symmetric(false).with_narrow_range(false);
                Embedding::from_codes(scheme.codes(weight, &rows)?)
            }
            other => Err(Error::shape("weight", "[rows, width]", other)),
        }
    }

    /// Takes a table that is quantized already: codes `[rows, width]`, one scale and zero point or one per row.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::Unsupported`] for other scales.
    pub fn from_codes(weight: QuantizedTensor<i8>) -> Result<Self> {
        if weight.shape().rank() != 2 {
            return Err(Error::shape("weight", "[rows, width]", weight.shape().dims()));
        }
        match weight.params().granularity() {
            Granularity::PerTensor | Granularity::PerChannel { axis: 0 } => Ok(Embedding { weight: Arc::new(weight) }),
            other => Err(Error::Unsupported {
                what: format!("an embedding with scales {other:?}"),
                way_out: "quantize it with one scale, or one per row".into(),
            }),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.weight.shape().dims()[0]
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.weight.shape().dims()[1]
    }

    /// The codes, their scales and zero points.
    pub fn weight(&self) -> &QuantizedTensor<i8> {
        &self.weight
    }

    /// Bytes of codes, scales, and zero points.
    pub fn weight_bytes(&self) -> usize {
        self.weight.storage().len() + self.weight.params().bytes()
    }

    /// Bytes of codes at their bits, scales and zero points, as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        let params = self.weight.params();
        let codes = (self.weight.storage().len() * code_bits(params.qmin(), params.qmax()) as usize).div_ceil(8);
        codes + 4 * params.scales().len() + params.zero_points().len()
    }

    pub(crate) fn run(&self, indices: &View<'_>, output: &mut ViewMut<'_>) -> Result<()> {
        let (codes, params, width) = (self.weight.storage(), self.weight.params(), self.width());
        look_up(indices, output, self.rows(), width, |row, y| {
            let (scale, zero_point) = params.at(if params.scales().len() == 1 { 0 } else { row });
            dequantize_i8(&codes[row * width..][..width], scale, zero_point, y)
        })
    }
}
