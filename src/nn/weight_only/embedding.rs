//! Rows of a quantized table.

use super::StoredWeights;
use crate::error::{Error, Result};
use crate::nn::embedding::look_up;
use crate::nn::view::{View, ViewMut};
use crate::quant::QuantizedWeights;

/// [`nn::Embedding`](crate::nn::Embedding) of a table `[rows, width]` that is held quantized: rows are dequantized as they are
/// picked.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: StoredWeights,
}

impl Embedding {
    /// A layer with this table.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is not `[rows, width]`.
    pub fn new(weight: QuantizedWeights) -> Result<Self> {
        match weight.shape().dims() {
            [_, _] => Ok(Embedding { weight: StoredWeights::as_stored(weight) }),
            other => Err(Error::shape("weight", "[rows, width]", other)),
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

    /// The table.
    pub fn weight(&self) -> &StoredWeights {
        &self.weight
    }

    pub(crate) fn run(&self, indices: &View<'_>, output: &mut ViewMut<'_>) -> Result<()> {
        let width = self.width();
        look_up(indices, output, self.rows(), width, |row, y| {
            if let Some(table) = self.weight.plain() {
                table.dequantize_into(row * width, y);
            }
            Ok(())
        })
    }
}
