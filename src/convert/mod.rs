//! From one model to another with the same function: what quantization does first.
mod fuse;

pub use fuse::fold_batch_norm;
pub(crate) use fuse::fold_into;
