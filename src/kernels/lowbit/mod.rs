//! Products with weights of 2, 3, 4 and 8 bits, directly on their packed codes, one scale for each group along k.
//!
//! ```text
//! y[m][n] = activation(sum over groups of scale[n][g] * (sum over k in g of x[m][k] * level(code[n][k])) + bias[n] + dst[m][n])
//! ```
//!
//! A level is `code - zero_point`, or an entry of a table (NF4, any other of 16 or 4 entries). [`gemm_low_bit`] quantizes the activations
//! inside the call, each row or group of a row to signed bytes, and adds in integers within a group; [`gemm_low_bit_f32`] keeps them in
//! f32.
//!
//! **How**: codes are the unsigned operand of a product of bytes, activations the signed one, so that codes need no correction but
//! `zero_point * sum of the group's activations`, which the sums start from. Activations have zero points too: those of a row meet the sum
//! of a column's weights, kept from the first such product on, those of a row's group the sum of that group's weights, found beside the
//! products. A group's codes lie beside its scales, a panel's groups one after the other: a product of one row reads one stream from
//! beginning to end. The four bytes of a lane hold the lowest bits of four neighbours along k, then the next bits of the next four;
//! shifting and masking makes operands of them (3 bits are put together of two and one), and for a table a shuffle of bytes looks them up
//! in a register. What was unpacked serves all rows of a tile.
//!
//! **Promise**: in each output the groups are added in their order. With activations in bytes multiplication and addition are rounded
//! apart, and results are the same, bit for bit, on every instruction set, for any number of threads, in any batch, and as
//! [`reference`](super::reference) has them. With activations in floats they do not depend on threads or batch.

mod activations;
mod dot;
mod gemm;
mod layout;
mod product;
mod tile;
mod weights;

pub use dot::SignedDot;
pub(crate) use gemm::LOW_BIT_RULE;
pub use gemm::{LowBitRange, gemm_low_bit, gemm_low_bit_f32};
pub use weights::{GroupScales, Levels, LowBit, PackedLowBit};
