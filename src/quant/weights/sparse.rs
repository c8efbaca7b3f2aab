//! Chosen weights kept exactly, beside the codes of all.

use crate::error::{Error, Result};
use crate::tensor::Shape;

/// A few values of a matrix, exactly: compressed rows, columns in 16 bits where a row has no more than 65536 of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseSplit {
    starts: Vec<u32>,
    columns: Columns,
    values: Vec<f32>,
    in_row: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Columns {
    Short(Vec<u16>),
    Long(Vec<u32>),
}

impl SparseSplit {
    /// These values, each with its flat index, ascending, in a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Parameter`] when an index leaves the shape or does not ascend, and for more values or longer rows than 32 bits
    /// count.
    pub fn from_entries(shape: &Shape, entries: &[(usize, f32)]) -> Result<Self> {
        let kept: Vec<usize> = entries.iter().map(|entry| entry.0).collect();
        if let Some(pair) = kept.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::parameter("indices of values kept exactly", pair, "must ascend"));
        }
        if let Some(last) = kept.last().filter(|last| **last >= shape.elements()) {
            return Err(Error::parameter("index of a value kept exactly", last, format!("must be below {}", shape.elements())));
        }
        SparseSplit::placed(shape, entries.iter().map(|entry| entry.1).collect(), &kept)
    }

    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        SparseSplit::new(shape, &[], &[]).is_ok_and(|empty| empty.rows() == self.rows() && empty.in_row == self.in_row)
    }

    /// The values at these flat indices, ascending, of a tensor seen as a matrix of its axis 0 by the rest.
    pub(crate) fn new(shape: &Shape, values: &[f32], kept: &[usize]) -> Result<Self> {
        SparseSplit::placed(shape, kept.iter().map(|&index| values[index]).collect(), kept)
    }

    /// Values at flat indices.
    fn placed(shape: &Shape, values: Vec<f32>, kept: &[usize]) -> Result<Self> {
        let rows = if shape.rank() < 2 { 1 } else { shape.dims()[0] };
        let in_row = shape.elements().checked_div(rows).unwrap_or(0);
        let limit = u32::MAX as usize;
        if in_row > limit || kept.len() > limit {
            return Err(Error::parameter(
                "weights kept exactly",
                kept.len(),
                format!("at most {limit} of rows of at most {limit}, which have {in_row}"),
            ));
        }
        let row = |index: usize| index.checked_div(in_row).unwrap_or(0);
        let mut starts = vec![0u32; rows + 1];
        kept.iter().for_each(|&index| starts[row(index) + 1] += 1);
        for i in 0..rows {
            starts[i + 1] += starts[i];
        }
        let column = |&index: &usize| index % in_row.max(1);
        let columns = match in_row <= 1 << 16 {
            true => Columns::Short(kept.iter().map(|index| column(index) as u16).collect()),
            false => Columns::Long(kept.iter().map(|index| column(index) as u32).collect()),
        };
        Ok(SparseSplit { starts, columns, values, in_row })
    }

    /// Number of values kept.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Columns and values of a row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        let range = self.starts[row] as usize..self.starts[row + 1] as usize;
        range.map(|i| {
            let column = match &self.columns {
                Columns::Short(columns) => usize::from(columns[i]),
                Columns::Long(columns) => columns[i] as usize,
            };
            (column, self.values[i])
        })
    }

    /// Flat indices and values.
    pub fn iter(&self) -> impl Iterator<Item = (usize, f32)> {
        (0..self.rows()).flat_map(move |row| self.row(row).map(move |(column, value)| (row * self.in_row + column, value)))
    }

    /// Bytes held: 4 for each row and one more, for each value 4 and 2 or 4 of its column.
    pub fn bytes(&self) -> usize {
        let columns = match &self.columns {
            Columns::Short(columns) => size_of_val(columns.as_slice()),
            Columns::Long(columns) => size_of_val(columns.as_slice()),
        };
        size_of_val(self.starts.as_slice()) + columns + size_of_val(self.values.as_slice())
    }
}

/// The indices of the `count` largest, of equals the first, ascending.
pub(crate) fn largest(count: usize, key: impl Fn(usize) -> f64, among: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut all: Vec<(f64, usize)> = among.map(|i| (key(i), i)).collect();
    let order = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    let mut found: Vec<usize> = all.into_iter().map(|(_, i)| i).collect();
    found.sort_unstable();
    found
}
