//! Observers: how scales are found.
//!
//! - [`MinMax`]: the exact range of all that was seen. Right for weights, and for activations without outliers.

mod min_max;

pub use min_max::MinMax;
