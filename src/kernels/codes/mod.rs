//! u8 codes in, u8 codes out, element by element: what an integer network does between its products.
//!
//! Each goes by f32 from the exact integers to the distance from the output's zero point, as the stage that requantizes does:
//! every product and sum rounded by itself, then rounded to an integer, ties to even, clamped, and moved by the zero point.
//! Functions of one element need no arithmetic: a table has their 256 results.

mod means;
mod pairs;
mod table;

pub(crate) use means::{CodeMeans, NARROW};
pub use pairs::Pairwise;
pub use table::{lookup, lookup_for};

use super::requantize::MULTIPLIER_MAX;
use crate::error::{Error, Result};

/// Elements below which a second thread costs more than it saves.
pub(crate) const GRAIN: usize = 1 << 17;

/// `multiplier`, of scales divided by that of the output.
///
/// # Errors
/// [`Error::Parameter`] for one that codes can't be multiplied with.
fn checked(multiplier: f32) -> Result<f32> {
    match (0.0..=MULTIPLIER_MAX).contains(&multiplier) {
        true => Ok(multiplier),
        false => {
            let rule = "must be at most 2^64, or every code is out of range: give the output a larger scale";
            Err(Error::parameter("input scale in units of the output's", multiplier, rule))
        }
    }
}
