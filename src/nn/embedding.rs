//! Rows of a table, picked by index.

use crate::error::{Error, Result};
use crate::nn::operator::resolve_index;
use crate::nn::view::{View, ViewMut};
use crate::tensor::Tensor;

/// `y[i.., :] = weight[indices[i..], :]`, as PyTorch's `Embedding` and ONNX Gather along axis 0 of a constant matrix.
///
/// Indices are i64 or i32 of any shape, negative ones counted from the end; the table is `[rows, width]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// A layer with this table.
    ///
    /// # Errors
    /// [`Error::Shape`] when `weight` is not `[rows, width]`.
    pub fn new(weight: Tensor) -> Result<Self> {
        match weight.dims() {
            [_, _] => Ok(Embedding { weight }),
            other => Err(Error::shape("weight", "[rows, width]", other)),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.weight.dims()[1]
    }

    /// The table `[rows, width]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn run(&self, indices: &View<'_>, output: &mut ViewMut<'_>) -> Result<()> {
        let (table, width) = (self.weight.as_slice(), self.width());
        look_up(indices, output, self.rows(), width, |row, y| {
            y.copy_from_slice(&table[row * width..][..width]);
            Ok(())
        })
    }
}

/// Calls `fill` with the row that each index names, and where it goes.
///
/// # Errors
/// [`Error::Parameter`] for an index beyond the rows.
pub(crate) fn look_up(
    indices: &View<'_>,
    output: &mut ViewMut<'_>,
    rows: usize,
    width: usize,
    mut fill: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut output = output.f32().chunks_exact_mut(width.max(1));
    for index in indices.ints()? {
        let row = resolve_index(index, rows)?;
        if let Some(y) = output.next() {
            fill(row, y)?;
        }
    }
    Ok(())
}
