//! Which weights share a scale.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Which weights share a scale. A tensor counts as a matrix: its rows are the indices of axis 0 (output channels), a row is
/// everything after; a tensor of fewer than two axes is one row.
///
/// Groups run along rows. Where the size does not divide a row, the row's last group is short: it has a scale of its own for
/// the weights that are left, and no code stands for what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Grouping {
    /// All of them.
    Tensor,
    /// Those of a row.
    Channel,
    /// So many neighbours of a row.
    Group(usize),
}

/// A grouping of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Groups {
    rows: usize,
    columns: usize,
    size: usize,
}

impl Grouping {
    pub(crate) fn of(self, shape: &Shape) -> Result<Groups> {
        let rows = if shape.rank() < 2 { 1 } else { shape.dims()[0] };
        let columns = shape.elements().checked_div(rows).unwrap_or(0);
        match self {
            Grouping::Tensor => Ok(Groups { rows: 1, columns: shape.elements(), size: shape.elements().max(1) }),
            Grouping::Channel => Ok(Groups { rows, columns, size: columns.max(1) }),
            Grouping::Group(0) => Err(Error::parameter("size of a group", 0, "must be at least 1")),
            Grouping::Group(size) => Ok(Groups { rows, columns, size: size.min(columns.max(1)) }),
        }
    }
}

impl Groups {
    fn in_row(self) -> usize {
        self.columns.div_ceil(self.size)
    }

    /// Number of groups.
    pub(crate) fn len(self) -> usize {
        self.rows * self.in_row()
    }

    /// Flat indices of the weights of a group.
    pub(crate) fn range(self, group: usize) -> Range<usize> {
        let (row, within) = (group / self.in_row(), group % self.in_row());
        let begin = row * self.columns + within * self.size;
        begin..(begin + self.size).min((row + 1) * self.columns)
    }

    /// The group of a weight.
    pub(crate) fn of_weight(self, index: usize) -> usize {
        index / self.columns * self.in_row() + index % self.columns / self.size
    }

    /// Weights of a row, and those that share a scale: of each group but a row's last.
    pub(crate) fn row_and_size(self) -> [usize; 2] {
        [self.columns, self.size]
    }
}

impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grouping::Tensor => f.write_str("tensor"),
            Grouping::Channel => f.write_str("channel"),
            Grouping::Group(size) => write!(f, "g{size}"),
        }
    }
}
