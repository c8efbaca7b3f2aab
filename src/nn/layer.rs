//! The closed list of layers, and what the planner asks of each: types, shapes, bytes, operations.

use std::fmt;

use crate::error::{Error, Result};
use crate::nn::conv_transpose::Transposed;
use crate::nn::operator::{Facts, Operator, check_arity, check_ints};
use crate::nn::{AvgPool2d, BatchNorm2d, Conv2d, ConvTranspose2d, Embedding, GlobalAvgPool2d, Gru, Linear, Lstm, MaxPool2d};
use crate::nn::{quantized, recurrent, weight_only};
use crate::quant::WeightFormat;
use crate::tensor::{DType, Shape};

/// One operation of a model, with its weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Layer {
    /// Convolution in float.
    Conv2d(Conv2d),
    /// Transposed convolution in float.
    ConvTranspose2d(ConvTranspose2d),
    /// Fully connected layer in float.
    Linear(Linear),
    /// Rows of a float table.
    Embedding(Embedding),
    /// Convolution in int8, its input quantized at run time.
    QuantizedConv2d(quantized::Conv2d),
    /// Transposed convolution in int8, its input quantized at run time.
    QuantizedConvTranspose2d(quantized::ConvTranspose2d),
    /// Fully connected layer in int8, its input quantized at run time.
    QuantizedLinear(quantized::Linear),
    /// Convolution from codes to codes.
    StaticConv2d(quantized::StaticConv2d),
    /// Fully connected layer from codes to codes.
    StaticLinear(quantized::StaticLinear),
    /// Long short-term memory, in float or in int8.
    Lstm(Lstm),
    /// Gated recurrent unit, in float or in int8.
    Gru(Gru),
    /// Rows of an int8 table, as floats.
    QuantizedEmbedding(quantized::Embedding),
    /// Fully connected layer with quantized weights.
    WeightOnlyLinear(weight_only::Linear),
    /// Convolution with quantized weights.
    WeightOnlyConv2d(weight_only::Conv2d),
    /// Rows of a table in any format, as floats.
    WeightOnlyEmbedding(weight_only::Embedding),
    /// Batch norm with running statistics.
    BatchNorm2d(BatchNorm2d),
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// Largest value of each window.
    MaxPool2d(MaxPool2d),
    /// Mean of each window.
    AvgPool2d(AvgPool2d),
    /// Mean of each channel: `[n, c, h, w]` to `[n, c, 1, 1]`.
    GlobalAvgPool2d(GlobalAvgPool2d),
    /// Sum of two tensors of one shape.
    Add,
    /// Merges `axis` and all axes after it into one.
    Flatten {
        /// The first axis merged: 1 keeps the batch apart.
        axis: usize,
    },
    /// `exp(x - max) / Σ exp(x - max)` along `axis`.
    Softmax {
        /// The axis.
        axis: usize,
    },
    /// Anything else: an operator that has no quantized twin.
    Operator(Operator),
}

/// Kinds of layers, whatever their precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LayerKind {
    /// [`Layer::Conv2d`] and its quantized twin.
    Conv2d,
    /// [`Layer::ConvTranspose2d`] and its quantized twin.
    ConvTranspose2d,
    /// [`Layer::Linear`] and its quantized twin.
    Linear,
    /// [`Layer::Lstm`].
    Lstm,
    /// [`Layer::Gru`].
    Gru,
    /// [`Layer::Embedding`] and its quantized twin.
    Embedding,
    /// [`Layer::BatchNorm2d`].
    BatchNorm2d,
    /// [`Layer::Relu`].
    Relu,
    /// [`Layer::Relu6`].
    Relu6,
    /// [`Layer::MaxPool2d`].
    MaxPool2d,
    /// [`Layer::AvgPool2d`].
    AvgPool2d,
    /// [`Layer::GlobalAvgPool2d`].
    GlobalAvgPool2d,
    /// [`Layer::Add`].
    Add,
    /// [`Layer::Flatten`].
    Flatten,
    /// [`Layer::Softmax`].
    Softmax,
    /// [`Layer::Operator`], by its name in the ONNX standard.
    Operator(&'static str),
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerKind::Operator(name) => f.write_str(name),
            kind => write!(f, "{kind:?}"),
        }
    }
}

/// By its name.
#[cfg(feature = "serde")]
impl serde::Serialize for LayerKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From its name; of a plain operator there is none to configure.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for LayerKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <String as serde::Deserialize>::deserialize(deserializer)?;
        let kinds = [quantized::DYNAMIC_KINDS.as_slice(), &quantized::STATIC_KINDS, &LayerKind::PLAIN].concat();
        let found = kinds.into_iter().find(|kind| kind.to_string() == name);
        found.ok_or_else(|| serde::de::Error::custom(format!("no kind of layer is called `{name}`")))
    }
}

#[cfg(feature = "serde")]
impl LayerKind {
    /// Those without weights to quantize.
    const PLAIN: [LayerKind; 9] = [
        LayerKind::BatchNorm2d,
        LayerKind::Relu,
        LayerKind::Relu6,
        LayerKind::MaxPool2d,
        LayerKind::AvgPool2d,
        LayerKind::GlobalAvgPool2d,
        LayerKind::Add,
        LayerKind::Flatten,
        LayerKind::Softmax,
    ];
}

/// What a layer computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit float.
    F32,
    /// 8-bit integer products, 32-bit integer sums.
    Int8,
}

impl Precision {
    /// Its name, as in `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the elements of an image must lie for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// It reads any order, and writes channels-last.
    AnyToChannelsLast,
    /// It reads any order, and writes row-major.
    AnyToRowMajor,
    /// It reads and writes any order, as long as all its images lie in the same.
    Any,
    /// It reads and writes channels-last.
    ChannelsLast,
    /// It reads and writes row-major.
    RowMajor,
}

impl Layer {
    /// Its kind; a quantized layer is of the kind of its float twin.
    pub fn kind(&self) -> LayerKind {
        match self {
            Layer::Conv2d(_) | Layer::QuantizedConv2d(_) | Layer::StaticConv2d(_) | Layer::WeightOnlyConv2d(_) => LayerKind::Conv2d,
            Layer::ConvTranspose2d(_) | Layer::QuantizedConvTranspose2d(_) => LayerKind::ConvTranspose2d,
            Layer::Linear(_) | Layer::QuantizedLinear(_) | Layer::StaticLinear(_) | Layer::WeightOnlyLinear(_) => LayerKind::Linear,
            Layer::Lstm(_) => LayerKind::Lstm,
            Layer::Gru(_) => LayerKind::Gru,
            Layer::Embedding(_) | Layer::QuantizedEmbedding(_) | Layer::WeightOnlyEmbedding(_) => LayerKind::Embedding,
            Layer::BatchNorm2d(_) => LayerKind::BatchNorm2d,
            Layer::Relu => LayerKind::Relu,
            Layer::Relu6 => LayerKind::Relu6,
            Layer::MaxPool2d(_) => LayerKind::MaxPool2d,
            Layer::AvgPool2d(_) => LayerKind::AvgPool2d,
            Layer::GlobalAvgPool2d(_) => LayerKind::GlobalAvgPool2d,
            Layer::Add => LayerKind::Add,
            Layer::Flatten { .. } => LayerKind::Flatten,
            Layer::Softmax { .. } => LayerKind::Softmax,
            Layer::Operator(operator) => LayerKind::Operator(operator.name()),
        }
    }

    /// What it computes in.
    pub fn precision(&self) -> Precision {
        match self {
            Layer::Lstm(layer) => layer.precision(),
            Layer::Gru(layer) => layer.precision(),
            Layer::QuantizedConv2d(_) | Layer::QuantizedConvTranspose2d(_) | Layer::QuantizedLinear(_) | Layer::QuantizedEmbedding(_) => {
                Precision::Int8
            }
            Layer::Operator(operator) => operator.operation().precision(),
            Layer::StaticConv2d(_) | Layer::StaticLinear(_) => Precision::Int8,
            Layer::WeightOnlyLinear(layer) => layer.activations().precision(),
            Layer::WeightOnlyConv2d(layer) => layer.activations().precision(),
            _ => Precision::F32,
        }
    }

    /// Whether it holds codes: it computes in integers, or its weights alone are quantized.
    pub fn is_quantized(&self) -> bool {
        self.weight_format().is_some() || self.precision() != Precision::F32
    }

    /// The format of weights that alone are quantized.
    pub fn weight_format(&self) -> Option<&WeightFormat> {
        match self {
            Layer::Lstm(layer) => layer.weight_format(),
            Layer::Gru(layer) => layer.weight_format(),
            layer => layer.stored_weights().map(weight_only::StoredWeights::format),
        }
    }

    /// The weights of a layer that has quantized weights and floats around them; of a recurrent layer, which has several,
    /// [`Layer::weight_format`] tells.
    pub fn stored_weights(&self) -> Option<&weight_only::StoredWeights> {
        match self {
            Layer::WeightOnlyLinear(layer) => Some(layer.weight()),
            Layer::WeightOnlyConv2d(layer) => Some(layer.weight()),
            Layer::WeightOnlyEmbedding(layer) => Some(layer.weight()),
            _ => None,
        }
    }

    /// What a listing calls its precision: [`Layer::precision`], or the format of weights that alone are quantized.
    pub fn format_name(&self) -> String {
        match self.weight_format() {
            Some(format) => format.to_string(),
            None => self.precision().name().to_owned(),
        }
    }

    /// Name of the integer kernel that a quantized layer runs on; none for one that only looks up weights.
    pub fn kernel_name(&self) -> Option<&'static str> {
        match self {
            Layer::QuantizedConv2d(conv) => Some(conv.kernel_name()),
            Layer::QuantizedConvTranspose2d(conv) => Some(conv.kernel_name()),
            Layer::QuantizedLinear(linear) => Some(linear.kernel_name()),
            Layer::StaticConv2d(conv) => Some(conv.kernel_name()),
            Layer::StaticLinear(linear) => Some(linear.kernel_name()),
            Layer::Lstm(layer) => layer.kernel_name(),
            Layer::Gru(layer) => layer.kernel_name(),
            _ => None,
        }
    }

    pub(crate) fn order(&self) -> Order {
        match self {
            Layer::Conv2d(_) | Layer::QuantizedConv2d(_) | Layer::StaticConv2d(_) => Order::AnyToChannelsLast,
            Layer::Relu | Layer::Relu6 | Layer::Add => Order::Any,
            Layer::ConvTranspose2d(_) | Layer::QuantizedConvTranspose2d(_) | Layer::WeightOnlyConv2d(_) => Order::ChannelsLast,
            Layer::BatchNorm2d(_) | Layer::MaxPool2d(_) | Layer::AvgPool2d(_) | Layer::GlobalAvgPool2d(_) => Order::ChannelsLast,
            Layer::Linear(_)
            | Layer::QuantizedLinear(_)
            | Layer::StaticLinear(_)
            | Layer::WeightOnlyLinear(_)
            | Layer::Lstm(_)
            | Layer::Gru(_)
            | Layer::Flatten { .. }
            | Layer::Softmax { .. } => Order::RowMajor,
            Layer::Embedding(_) | Layer::QuantizedEmbedding(_) | Layer::WeightOnlyEmbedding(_) => Order::RowMajor,
            Layer::Operator(operator) => operator.operation().order(),
        }
    }

    /// Whether the output is the first input under another shape, so that nothing runs.
    pub(crate) fn renames(&self) -> bool {
        match self {
            Layer::Flatten { .. } => true,
            Layer::Operator(operator) => operator.operation().renames(),
            _ => false,
        }
    }

    /// What a layer with fixed grids writes, and whether it adds a residual.
    pub(crate) fn static_output(&self) -> Option<(quantized::StaticOutput, bool)> {
        match self {
            Layer::StaticConv2d(layer) => Some((layer.output(), layer.residual().is_some())),
            Layer::StaticLinear(layer) => Some((layer.output(), layer.residual().is_some())),
            _ => None,
        }
    }

    /// The element types of the outputs for inputs of these types.
    pub(crate) fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        if let Layer::Operator(operator) = self {
            return operator.operation().infer_types(inputs);
        }
        if let Layer::Lstm(_) | Layer::Gru(_) = self {
            return recurrent::infer_types(inputs, matches!(self, Layer::Lstm(_)));
        }
        if let Some((output, residual)) = self.static_output() {
            let arity = 1 + usize::from(residual);
            check_arity(inputs, arity, arity)?;
            return match inputs.iter().flatten().find(|&&dtype| dtype != DType::U8) {
                Some(other) => Err(Error::Type { what: format!("input of a static {}", self.kind()), expected: "u8", got: other.name() }),
                None => Ok(vec![output.dtype()]),
            };
        }
        let arity = if matches!(self, Layer::Add) { 2 } else { 1 };
        if inputs.len() != arity {
            return Err(Error::length(format!("list of inputs of a {}", self.kind()), arity, inputs.len()));
        }
        check_arity(inputs, arity, arity)?;
        if self.kind() == LayerKind::Embedding {
            return check_ints("indices", inputs, 0).map(|()| vec![DType::F32]);
        }
        match (self, inputs.iter().flatten().find(|&&dtype| dtype != DType::F32)) {
            (Layer::Flatten { .. }, other) => Ok(vec![other.copied().unwrap_or(DType::F32)]),
            (_, None) => Ok(vec![DType::F32]),
            (_, Some(other)) => Err(Error::Type { what: format!("input of a {}", self.kind()), expected: "f32", got: other.name() }),
        }
    }

    /// The shapes of the outputs for inputs of which so much is known.
    pub(crate) fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        match self {
            Layer::Operator(operator) => operator.operation().infer_shapes(facts),
            Layer::Lstm(layer) => layer.output_shapes(facts.shape(0)?),
            Layer::Gru(layer) => layer.output_shapes(facts.shape(0)?),
            layer => {
                let shapes: Vec<&Shape> = (0..facts.count()).map(|i| facts.shape(i)).collect::<Result<_>>()?;
                layer.infer_shape(&shapes).map(|shape| vec![shape])
            }
        }
    }

    /// The shape of the output for inputs of these shapes.
    fn infer_shape(&self, inputs: &[&Shape]) -> Result<Shape> {
        let input = inputs[0];
        let image = |channels: Option<usize>| match *input.dims() {
            [n, c, h, w] if channels.is_none_or(|channels| channels == c) => Ok([n, c, h, w]),
            _ => {
                let channels = channels.map_or("c".to_owned(), |c| c.to_string());
                Err(Error::shape("input", format!("[n, {channels}, h, w]"), input.dims()))
            }
        };
        let pooled = |[n, c, ..]: [usize; 4], [h, w]: [usize; 2]| Shape::new([n, c, h, w]);
        let conv = |geometry: &crate::kernels::Conv2dGeometry| {
            let dims @ [.., h, w] = image(Some(geometry.in_channels))?;
            pooled([dims[0], geometry.out_channels, h, w], geometry.output_size(h, w)?)
        };
        let transposed = |layer: &Transposed| {
            let dims @ [.., h, w] = image(Some(layer.geometry.in_channels))?;
            pooled([dims[0], layer.geometry.out_channels, h, w], layer.output_size(h, w)?)
        };
        let looked_up = |width: usize| Shape::new([input.dims(), &[width]].concat());
        let linear = |in_features: usize, out_features: usize| match input.dims().last() {
            Some(&last) if last == in_features => input.with_axis(input.rank() - 1, out_features),
            _ => Err(Error::shape("input", format!("[.., {in_features}]"), input.dims())),
        };
        match self {
            Layer::Conv2d(layer) => conv(layer.geometry()),
            Layer::QuantizedConv2d(layer) => conv(layer.geometry()),
            Layer::StaticConv2d(layer) => adds(inputs, conv(layer.geometry())?),
            Layer::WeightOnlyConv2d(layer) => conv(layer.geometry()),
            Layer::ConvTranspose2d(layer) => transposed(layer.shape()),
            Layer::QuantizedConvTranspose2d(layer) => transposed(layer.shape()),
            Layer::Embedding(layer) => looked_up(layer.width()),
            Layer::QuantizedEmbedding(layer) => looked_up(layer.width()),
            Layer::WeightOnlyEmbedding(layer) => looked_up(layer.width()),
            Layer::Linear(layer) => linear(layer.in_features(), layer.out_features()),
            Layer::QuantizedLinear(layer) => linear(layer.in_features(), layer.out_features()),
            Layer::WeightOnlyLinear(layer) => linear(layer.in_features(), layer.out_features()),
            Layer::StaticLinear(layer) => adds(inputs, linear(layer.in_features(), layer.out_features())?),
            Layer::BatchNorm2d(norm) => image(Some(norm.channels())).map(|_| input.clone()),
            Layer::MaxPool2d(pool) => image(None).and_then(|dims| pooled(dims, pool.output_size(dims[2], dims[3])?)),
            Layer::AvgPool2d(pool) => image(None).and_then(|dims| pooled(dims, pool.output_size(dims[2], dims[3])?)),
            Layer::GlobalAvgPool2d(_) => match image(None)? {
                [.., 0, _] | [.., 0] => Err(Error::shape("input", "[n, c, h, w] with at least one pixel", input.dims())),
                dims => pooled(dims, [1, 1]),
            },
            Layer::Relu | Layer::Relu6 => Ok(input.clone()),
            Layer::Add if inputs[1] == input => Ok(input.clone()),
            Layer::Add => Err(Error::shape("second input", format!("{input:?}, the shape of the first"), inputs[1].dims())),
            Layer::Flatten { axis } => {
                input.axis(*axis)?;
                let mut dims = input.dims()[..*axis].to_vec();
                dims.push(input.dims()[*axis..].iter().product());
                Shape::new(dims)
            }
            Layer::Softmax { axis } => input.axis(*axis).map(|_| input.clone()),
            Layer::Lstm(_) | Layer::Gru(_) | Layer::Operator(_) => unreachable!("asked through `infer_shapes`"),
        }
    }
}

/// The shape of an output to which the second input, if there is one, is added.
fn adds(inputs: &[&Shape], output: Shape) -> Result<Shape> {
    match inputs.get(1) {
        Some(residual) if **residual != output => {
            Err(Error::shape("residual", format!("{output:?}, the shape of the output"), residual.dims()))
        }
        _ => Ok(output),
    }
}

macro_rules! wraps {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Layer {
            fn from(layer: $type) -> Layer {
                Layer::$variant(layer)
            }
        }
    )*};
}
wraps! {
    Conv2d => Conv2d,
    ConvTranspose2d => ConvTranspose2d,
    Linear => Linear,
    Embedding => Embedding,
    quantized::Conv2d => QuantizedConv2d,
    quantized::ConvTranspose2d => QuantizedConvTranspose2d,
    quantized::Linear => QuantizedLinear,
    quantized::StaticConv2d => StaticConv2d,
    quantized::StaticLinear => StaticLinear,
    Lstm => Lstm,
    Gru => Gru,
    quantized::Embedding => QuantizedEmbedding,
    weight_only::Linear => WeightOnlyLinear,
    weight_only::Conv2d => WeightOnlyConv2d,
    weight_only::Embedding => WeightOnlyEmbedding,
    BatchNorm2d => BatchNorm2d,
    MaxPool2d => MaxPool2d,
    AvgPool2d => AvgPool2d,
    GlobalAvgPool2d => GlobalAvgPool2d,
}
