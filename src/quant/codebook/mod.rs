//! Levels that need not be evenly spaced: a code is the index of the nearest one.

mod kmeans;
mod tables;

use std::fmt;
use std::sync::Arc;

pub(crate) use kmeans::check_weights;
pub use kmeans::{kmeans, quantile_levels};
pub use tables::Table;

use crate::error::{Error, Result};

/// Up to 256 levels, ascending; the code of `x` is the index of the nearest, of two equally near the lower.
///
/// ```
/// use lowprec::quant::Codebook;
/// let book = Codebook::new(vec![-1.0, 0.0, 0.5, 2.0])?;
/// assert_eq!([-9.0, 0.2, 0.25, 0.3, 1.3].map(|x| book.code(x)), [0, 1, 1, 2, 3]);
/// assert_eq!((book.bits(), book.value(3)), (2, Some(2.0)));
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Codebook {
    levels: Arc<[f32]>,
}

impl Codebook {
    /// A table of the caller's.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless there are 2 to 256 levels, finite and ascending (no two equal).
    pub fn new(levels: Vec<f32>) -> Result<Self> {
        if !(2..=256).contains(&levels.len()) {
            return Err(Error::parameter("number of levels of a codebook", levels.len(), "must be 2 to 256"));
        }
        Codebook::of_any_length(levels)
    }

    /// As [`Codebook::new`], for what was learned: of equal weights there is one level.
    pub(crate) fn of_any_length(levels: Vec<f32>) -> Result<Self> {
        if levels.is_empty() || levels.len() > 256 {
            return Err(Error::parameter("number of levels of a codebook", levels.len(), "must be 1 to 256"));
        }
        if let Some(&level) = levels.iter().find(|level| !level.is_finite()) {
            return Err(Error::parameter("level of a codebook", level, "must be finite"));
        }
        match levels.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(Error::parameter("levels of a codebook", format!("{:?}", pair), "must ascend, no two equal")),
            None => Ok(Codebook { levels: levels.into() }),
        }
    }

    /// The levels, ascending.
    pub fn levels(&self) -> &[f32] {
        &self.levels
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        (self.levels.len() - 1).max(1).ilog2() + 1
    }

    /// The index of the level nearest to `x`, of two equally near the lower. NaN has that of the level nearest to zero.
    pub fn code(&self, x: f32) -> usize {
        // The midpoints of f32 are exact in f64, or so far below the levels that no f32 lies between.
        let x = if x.is_nan() { 0.0 } else { f64::from(x) };
        let (mut low, mut high) = (0, self.levels.len() - 1);
        while low < high {
            let middle = (low + high) / 2;
            let midpoint = 0.5 * (f64::from(self.levels[middle]) + f64::from(self.levels[middle + 1]));
            if x > midpoint { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The level of that code.
    pub fn value(&self, code: usize) -> Option<f32> {
        self.levels.get(code).copied()
    }

    /// Bytes of the levels as f32.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.levels)
    }
}

impl fmt::Debug for Codebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codebook{:?}", self.levels)
    }
}
