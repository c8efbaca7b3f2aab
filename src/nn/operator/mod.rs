//! Plain operators: everything in a graph that has no quantized twin of its own.
//!
//! One file a family. An operator knows its output types from its input types, its output shapes from its input shapes
//! (and, where the standard has it so, from their values), and writes into memory that the planner found for it.

mod along;
mod arguments;
mod attention;
mod attributes;
mod batch_norm;
mod binary;
mod broadcast;
mod cast;
mod constant;
mod conv;
mod conv_transpose;
mod facts;
mod fold;
mod gemm;
mod generate;
mod global_pool;
mod group_norm;
mod integer;
mod layer_norm;
mod line_norm;
mod logic;
mod masked_softmax;
mod matmul;
mod movement;
mod numbers;
mod pool;
mod power;
mod quantize;
mod quantized;
mod recurrent;
mod reduce;
mod resize;
mod select;
mod shape;
mod softmax;
mod unary;
mod variadic;
mod wide;
mod window;

use std::fmt;
use std::ops::RangeInclusive;

pub use along::{Arg, Cumulative};
pub use attention::Attention;
pub use batch_norm::BatchNormalization;
pub use binary::Binary;
pub use cast::Cast;
pub use constant::{ShapeOf, SizeOf};
pub use conv::Conv;
pub use conv_transpose::ConvTranspose;
pub use gemm::Gemm;
pub use generate::{ConstantOfShape, EyeLike, Range, Trilu};
pub use global_pool::{GlobalPool, MaxUnpool};
pub use group_norm::GroupNormalization;
pub use integer::{ConvInteger, MatMulInteger};
pub use layer_norm::LayerNormalization;
pub use line_norm::{LpNormalization, MeanVarianceNormalization};
pub use logic::Logic;
pub use masked_softmax::MaskedSoftmax;
pub use matmul::MatMul;
pub use movement::{
    Combine, Concat, DepthOrder, DepthToSpace, Expand, Gather, GatherElements, GatherNd, OneHot, Pad, PadMode, ReverseSequence,
    ScatterElements, ScatterNd, Slice, SpaceToDepth, Split, Tile, TopK, Transpose,
};
pub use pool::Pool;
pub use power::Pow;
pub use quantize::{DequantizeLinear, DynamicQuantizeLinear, QuantizeLinear};
pub use quantized::{CodeTable, QuantizedAdd, QuantizedAvgPool, QuantizedGlobalAvgPool, QuantizedMaxPool, QuantizedMul};
pub use recurrent::{Recurrent, RecurrentKind};
pub use reduce::{Reduce, Reduction};
pub use resize::{AspectPolicy, Coordinates, NearestMode, Resize, ResizeMode};
pub use select::{Clip, Where};
pub use shape::{Dropout, Flatten, Identity, Reshape, Squeeze, Unsqueeze};
pub use softmax::Softmax;
pub use unary::Unary;
pub use variadic::Variadic;
pub use window::{AutoPad, Windows};

pub(crate) use arguments::check_ints;
pub(crate) use attributes::Attributes;
#[cfg(feature = "onnx")]
pub(crate) use attributes::{Attribute, ints};
pub(crate) use facts::{Facts, broadcast_dims, check_arity, resolve_axis};
pub(crate) use movement::resolve_index;

use crate::error::Result;
use crate::kernels::Workspace;
use crate::nn::layer::{Order, Precision};
use crate::nn::view::{Inputs, Outputs};
use crate::tensor::{DType, Shape, Value};

/// What an operator tells the planner, and how it runs.
pub(crate) trait Operation: fmt::Debug {
    /// Its name in the standard, as in `Transpose`.
    fn name(&self) -> &'static str;

    /// Its parameters, as the standard spells them.
    #[cfg_attr(not(feature = "onnx"), allow(dead_code, reason = "files alone spell operators"))]
    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    /// The versions of the standard that spell it like that.
    #[cfg_attr(not(feature = "onnx"), allow(dead_code, reason = "files alone spell operators"))]
    fn opsets(&self) -> RangeInclusive<i64> {
        attributes::CURRENT
    }

    /// Element types of the outputs for inputs of these types (`None` for one left out). Says how many outputs there are.
    ///
    /// # Errors
    /// [`Error::Type`](crate::Error::Type) for a type that it does not take, [`Error::Length`](crate::Error::Length) for the wrong
    /// number of inputs.
    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>>;

    /// Shapes of the outputs.
    ///
    /// # Errors
    /// Of shapes that don't go together, and of values that name impossible ones.
    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>>;

    /// The value of the one output, where the inputs' shapes alone decide it.
    fn value_by_shapes(&self, _shapes: &[Option<Shape>]) -> Option<Result<Value>> {
        None
    }

    /// How images must lie.
    fn order(&self) -> Order {
        Order::RowMajor
    }

    /// What it computes in.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Whether the one output is the first input's elements, row-major, under another shape: then nothing runs.
    fn renames(&self) -> bool {
        false
    }

    /// Writes the outputs, whose types and shapes are those inferred.
    ///
    /// # Errors
    /// Of values that only the run shows to be impossible: an index beyond its axis, a division of integers by zero.
    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()>;
}

macro_rules! operators {
    ($($(#[doc = $doc:literal])+ $variant:ident($type:ty)),* $(,)?) => {
        /// A plain operator: no weights to quantize, only values in and values out.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub enum Operator {
            $($(#[doc = $doc])+ $variant($type),)*
        }

        impl Operator {
            pub(crate) fn operation(&self) -> &dyn Operation {
                match self {
                    $(Operator::$variant(operation) => operation,)*
                }
            }
        }

        $(impl From<$type> for Operator {
            fn from(operation: $type) -> Operator {
                Operator::$variant(operation)
            }
        }

        impl From<$type> for crate::nn::Layer {
            fn from(operation: $type) -> crate::nn::Layer {
                crate::nn::Layer::Operator(operation.into())
            }
        })*
    };
}

operators! {
    /// Products of queries and keys, their softmax, and values weighed by it.
    Attention(Attention),
    /// Attention's softmax: scaled and masked.
    MaskedSoftmax(MaskedSoftmax),
    /// Floats to codes.
    QuantizeLinear(QuantizeLinear),
    /// Codes to floats.
    DequantizeLinear(DequantizeLinear),
    /// Floats to codes by their own range.
    DynamicQuantizeLinear(DynamicQuantizeLinear),
    /// Products of matrices of codes.
    MatMulInteger(MatMulInteger),
    /// Convolutions of codes.
    ConvInteger(ConvInteger),
    /// One value for each window.
    Pool(Pool),
    /// One value for each channel.
    GlobalPool(GlobalPool),
    /// A pooling undone.
    MaxUnpool(MaxUnpool),
    /// Matrix product of two values.
    MatMul(MatMul),
    /// `alpha A B + beta C`.
    Gemm(Gemm),
    /// LSTM or GRU whose weights are values.
    Recurrent(Recurrent),
    /// The input's shape as a list of i64.
    ShapeOf(ShapeOf),
    /// A function of each element.
    Unary(Unary),
    /// A question about each element.
    Logic(Logic),
    /// A function of two elements.
    Binary(Binary),
    /// A function of the elements of any number of operands.
    Variadic(Variadic),
    /// Powers.
    Pow(Pow),
    /// One of two elements.
    Where(Where),
    /// Elements held between two bounds.
    Clip(Clip),
    /// The input's number of elements.
    SizeOf(SizeOf),
    /// The input under another shape.
    Reshape(Reshape),
    /// The input as a matrix.
    Flatten(Flatten),
    /// The input without axes of length 1.
    Squeeze(Squeeze),
    /// The input with more axes of length 1.
    Unsqueeze(Unsqueeze),
    /// The input.
    Identity(Identity),
    /// The input, as inference has it.
    Dropout(Dropout),
    /// Numbers at equal distances.
    Range(Range),
    /// One value over and over.
    ConstantOfShape(ConstantOfShape),
    /// Ones on a diagonal.
    EyeLike(EyeLike),
    /// Triangles of matrices.
    Trilu(Trilu),
    /// Axes in another order.
    Transpose(Transpose),
    /// Several tensors as one.
    Concat(Concat),
    /// One tensor as several.
    Split(Split),
    /// A part of a tensor.
    Slice(Slice),
    /// A tensor repeated along axes of length 1.
    Expand(Expand),
    /// A tensor repeated along all axes.
    Tile(Tile),
    /// A tensor with more elements around it, or fewer.
    Pad(Pad),
    /// Slices picked by index.
    Gather(Gather),
    /// Elements picked by index.
    GatherElements(GatherElements),
    /// Slices picked by rows of indices.
    GatherNd(GatherNd),
    /// Elements put where indices say.
    ScatterElements(ScatterElements),
    /// Slices put where rows of indices say.
    ScatterNd(ScatterNd),
    /// Channels as blocks of pixels.
    DepthToSpace(DepthToSpace),
    /// Blocks of pixels as channels.
    SpaceToDepth(SpaceToDepth),
    /// The beginnings of sequences in reverse.
    ReverseSequence(ReverseSequence),
    /// Indices as rows.
    OneHot(OneHot),
    /// The largest elements.
    TopK(TopK),
    /// Softmax and its logarithm.
    Softmax(Softmax),
    /// Rows of mean 0 and variance 1.
    LayerNormalization(LayerNormalization),
    /// Groups of channels of mean 0 and variance 1.
    GroupNormalization(GroupNormalization),
    /// Channels of mean 0 and variance 1 over the batch.
    BatchNormalization(BatchNormalization),
    /// Lines of length 1.
    LpNormalization(LpNormalization),
    /// Sums, means and their like over axes.
    Reduce(Reduce),
    /// Where the largest or the least stands.
    Arg(Arg),
    /// Running sums and products.
    Cumulative(Cumulative),
    /// Another element type.
    Cast(Cast),
    /// Mean 0 and variance 1 over any axes.
    MeanVarianceNormalization(MeanVarianceNormalization),
    /// A tensor stretched or shrunk.
    Resize(Resize),
    /// Sum of two values in codes.
    QuantizedAdd(QuantizedAdd),
    /// Product of two values in codes.
    QuantizedMul(QuantizedMul),
    /// A function of each code.
    CodeTable(CodeTable),
    /// The largest code of each window.
    QuantizedMaxPool(QuantizedMaxPool),
    /// The mean of each window in codes.
    QuantizedAvgPool(QuantizedAvgPool),
    /// The mean of each channel in codes.
    QuantizedGlobalAvgPool(QuantizedGlobalAvgPool),
    /// A convolution over any axes.
    Conv(Conv),
    /// A transposed convolution over any axes.
    ConvTranspose(ConvTranspose),
}

impl Operator {
    /// Its name in the ONNX standard, as in `Transpose`.
    pub fn name(&self) -> &'static str {
        self.operation().name()
    }
}
