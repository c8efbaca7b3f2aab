//! Operators that move elements and compute nothing: they work on bytes, whatever the type.

mod concat;
mod expand;
mod gather;
mod one_hot;
mod pad;
mod scatter;
mod slice;
mod space;
mod top_k;
mod transpose;
pub(super) mod walk;

pub use concat::{Concat, Split};
pub use expand::{Expand, Tile};
pub(crate) use gather::resolve_index;
pub use gather::{Gather, GatherElements, GatherNd};
pub use one_hot::OneHot;
pub use pad::{Pad, PadMode};
pub use scatter::{Combine, ScatterElements, ScatterNd};
pub use slice::Slice;
pub use space::{DepthOrder, DepthToSpace, ReverseSequence, SpaceToDepth};
pub use top_k::TopK;
pub use transpose::Transpose;
