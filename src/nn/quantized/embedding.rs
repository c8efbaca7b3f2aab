//! Rows of a table in int8, picked by index.

use std::sync::Arc;

use super::DynamicScheme;
use crate::error::{Error, Result};
use crate::kernels::dequantize_i8;
use crate::nn::embedding::look_up;
use crate::nn::view::{View, ViewMut};
use crate::tensor::{Granularity, QuantizedTensor, Tensor};

/// The twin of [`nn::Embedding`](crate::nn::Embedding): int8 codes with one scale per row, and rows dequantized as they are
/// looked up: `y[i] = scale[row] * code[row][i]`. Nothing is quantized at run time.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Arc<QuantizedTensor<i8>>,
}

impl Embedding {
    /// Quantizes a float table `[rows, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is none, [`Error::NonFinite`] for NaN or infinities in it (unless the scheme saturates them),
    /// [`Error::Unsupported`] for a scheme that is not signed and symmetric.
    pub fn from_float(weight: &Tensor, scheme: &DynamicScheme) -> Result<Self> {
        match weight.dims() {
            [_, _] => Embedding::from_codes(scheme.weights(weight)?),
            other => Err(Error::shape("weight", "[rows, width]", other)),
        }
    }

    /// Takes a table that is quantized already: symmetric codes `[rows, width]`, one scale or one per row.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::Unsupported`] for codes with zero points or other scales.
    pub fn from_codes(weight: QuantizedTensor<i8>) -> Result<Self> {
        if weight.shape().rank() != 2 {
            return Err(Error::shape("weight", "[rows, width]", weight.shape().dims()));
        }
        let params = weight.params();
        let per_row = matches!(params.granularity(), Granularity::PerTensor | Granularity::PerChannel { axis: 0 });
        match per_row && params.zero_points().iter().all(|&zero| zero == 0) {
            true => Ok(Embedding { weight: Arc::new(weight) }),
            false => Err(Error::Unsupported {
                what: "an embedding with zero points, or scales that are not those of rows".into(),
                way_out: "quantize it with a symmetric scheme, one scale or one per row".into(),
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

    /// The codes and their scales.
    pub fn weight(&self) -> &QuantizedTensor<i8> {
        &self.weight
    }

    /// Bytes of codes and scales.
    pub fn weight_bytes(&self) -> usize {
        self.weight.storage().len() + 4 * self.weight.params().scales().len()
    }

    pub(crate) fn run(&self, indices: &View<'_>, output: &mut ViewMut<'_>) -> Result<()> {
        let (codes, scales, width) = (self.weight.storage(), self.weight.params().scales(), self.width());
        look_up(indices, output, self.rows(), width, |row, y| {
            let scale = if scales.len() == 1 { scales[0] } else { scales[row] };
            dequantize_i8(&codes[row * width..][..width], scale, 0, y)
        })
    }
}
