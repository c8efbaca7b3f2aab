//! Is the quantized model as good, and what did it save? [`compare`] answers with a [`Report`].
mod compare;
mod cost;
mod report;
mod sums;

pub use compare::{Comparison, compare};
pub use cost::{Cost, Energy};
pub use report::{Classification, LayerReport, Report};
