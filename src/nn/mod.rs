//! Networks: layers, and the graph that connects them.
//!
//! A [`Model`] is a list of named nodes in topological order. It is immutable and cheap to clone (weights are shared);
//! every verb that changes a network borrows one and returns another. An [`Executor`] made from it owns the plan, the
//! buffers and the number of threads, and allocates nothing after its first run of a shape.
//!
//! Shapes are PyTorch's: images `[n, c, h, w]`. Inside the executor they are held channels-last, which is what the
//! kernels want; the conversion happens once, at the border.
//!
//! ```
//! use lowprec::nn::{Conv2d, Dim, Layer, Model};
//! use lowprec::kernels::Conv2dGeometry;
//! use lowprec::{DType, LayerKind, Tensor};
//!
//! let mut net = Model::builder();
//! let image = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(4)])?;
//! let geometry = Conv2dGeometry::new(1, 2, [3, 3]).with_padding([1, 1, 1, 1]);
//! let conv = Conv2d::new(geometry, Tensor::new([2, 1, 3, 3], vec![0.1; 18])?, None)?;
//! let x = net.add("conv", conv, &[image])?;
//! let x = net.add("relu", Layer::Relu, &[x])?;
//! net.output("features", x)?;
//! let model = net.build()?;
//!
//! let y = model.forward(&Tensor::full([1, 1, 4, 4], 1.0)?)?;
//! assert_eq!(y.dims(), [1, 2, 4, 4]);
//!
//! let int8 = lowprec::quantize_dynamic(&model, &[LayerKind::Conv2d])?;
//! assert!(int8.node("conv").unwrap().layer().kernel_name().is_some());
//! # Ok::<(), lowprec::Error>(())
//! ```

pub mod activation;
mod bias;
mod builder;
mod conv;
mod conv_transpose;
mod conversion;
mod embedding;
mod executor;
mod layer;
mod layer_cost;
mod linear;
mod model;
mod norm;
pub mod operator;
mod pattern;
mod plan;
mod pool;
pub mod quantized;
pub mod recurrent;
pub mod reorder;
pub(crate) mod rewrite;
mod state;
mod view;
pub mod weight_only;
mod wiring;

pub use builder::{Dim, Edge, ModelBuilder};
pub use conv::Conv2d;
pub use conv_transpose::ConvTranspose2d;
pub use conversion::{Conversion, SkipReason, Skipped};
pub use embedding::Embedding;
pub use executor::{Executor, Tap};
pub use layer::{Layer, LayerKind, Precision};
pub use linear::Linear;
pub use model::{Input, Model, Node, Output};
pub use norm::BatchNorm2d;
pub use operator::Operator;
pub use pattern::Pattern;
#[cfg(feature = "onnx")]
pub(crate) use plan::shapes_for;
pub(crate) use plan::{buffer_bytes, evaluate_within, shapes};
pub use pool::{AvgPool2d, GlobalAvgPool2d, MaxPool2d};
pub(crate) use recurrent::Projection;
pub use recurrent::{Direction, GateActivation, Gru, Lstm, RecurrentOptions};
pub use state::StateDict;
pub(crate) use wiring::Wiring;
