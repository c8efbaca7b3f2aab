//! What a layer stores and how much it multiplies.

use super::{Layer, Operator, recurrent, weight_only};
use crate::nn::conv_transpose::Transposed;
use crate::tensor::{Shape, Value};

impl Layer {
    /// Bytes of the weights and all that is stored to read them (codes, scales, column sums), as held in memory; the
    /// bias is not counted.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Layer::Conv2d(layer) => 4 * layer.weight().len(),
            Layer::ConvTranspose2d(layer) => 4 * layer.weight().len(),
            Layer::Linear(layer) => 4 * layer.weight().len(),
            Layer::Embedding(layer) => 4 * layer.weight().len(),
            Layer::QuantizedConv2d(layer) => layer.weight_bytes(),
            Layer::QuantizedConvTranspose2d(layer) => layer.weight_bytes(),
            Layer::QuantizedLinear(layer) => layer.weight_bytes(),
            Layer::StaticConv2d(layer) => layer.weight_bytes(),
            Layer::StaticLinear(layer) => layer.weight_bytes(),
            Layer::Lstm(layer) => layer.bytes()[0],
            Layer::Gru(layer) => layer.bytes()[0],
            Layer::QuantizedEmbedding(layer) => layer.weight_bytes(),
            layer => layer.stored_weights().map_or(0, weight_only::StoredWeights::bytes),
        }
    }

    /// Bytes of everything that the layer holds in memory: weights, biases, statistics, tables, tensors among the parameters of
    /// operators. Not counted are a float layer's packed copy, a cache that its first run makes, and of a batch norm what a run doesn't
    /// read: a factor and an offset of each channel are counted, and not the parameters that training needs.
    pub fn bytes(&self) -> usize {
        let others = match self {
            Layer::Conv2d(layer) => layer.bias().map_or(0, |bias| bias.len()),
            Layer::ConvTranspose2d(layer) => layer.bias().map_or(0, |bias| bias.len()),
            Layer::Linear(layer) => layer.bias().map_or(0, |bias| bias.len()),
            Layer::QuantizedConv2d(layer) => layer.bias().map_or(0, <[f32]>::len),
            Layer::QuantizedConvTranspose2d(layer) => layer.bias().map_or(0, <[f32]>::len),
            Layer::QuantizedLinear(layer) => layer.bias().map_or(0, <[f32]>::len),
            Layer::WeightOnlyConv2d(layer) => layer.bias().map_or(0, <[f32]>::len),
            Layer::WeightOnlyLinear(layer) => layer.bias().map_or(0, <[f32]>::len),
            Layer::StaticConv2d(layer) => layer.bias_bytes() / 4,
            Layer::StaticLinear(layer) => layer.bias_bytes() / 4,
            Layer::BatchNorm2d(norm) => 2 * norm.channels(),
            Layer::Lstm(layer) => layer.bytes()[1] / 4,
            Layer::Gru(layer) => layer.bytes()[1] / 4,
            _ => 0,
        };
        self.weight_bytes() + 4 * others + self.operator_bytes(|value| value.bytes().len())
    }

    /// Bytes of what a plain operator holds: a table of codes, and the tensors among its parameters.
    fn operator_bytes(&self, bytes: impl Fn(&Value) -> usize) -> usize {
        match self {
            Layer::Operator(Operator::CodeTable(_)) => 256,
            Layer::Operator(operator) => operator.operation().attributes().tensors().map(bytes).sum(),
            _ => 0,
        }
    }

    /// Bytes of its numbers at their bits, as files have them (`io::saved`): without what [`Layer::bytes`] counts beside, panels
    /// filled up to whole vectors, column sums and a bias in the unit of sums. Of a batch norm a file has the parameters and
    /// statistics, twice as much as [`Layer::bytes`] counts.
    pub fn stored_bytes(&self) -> usize {
        let bias = |bias: Option<&[f32]>| 4 * bias.map_or(0, <[f32]>::len);
        match self {
            Layer::QuantizedConv2d(layer) => layer.stored_bytes(),
            Layer::QuantizedConvTranspose2d(layer) => layer.stored_bytes(),
            Layer::QuantizedLinear(layer) => layer.stored_bytes(),
            Layer::QuantizedEmbedding(layer) => layer.stored_bytes(),
            Layer::StaticConv2d(layer) => layer.stored_bytes(),
            Layer::StaticLinear(layer) => layer.stored_bytes(),
            Layer::Lstm(layer) => layer.stored_bytes(),
            Layer::Gru(layer) => layer.stored_bytes(),
            Layer::WeightOnlyConv2d(layer) => layer.weight().stored_bytes() + bias(layer.bias()),
            Layer::WeightOnlyLinear(layer) => layer.weight().stored_bytes() + bias(layer.bias()),
            Layer::WeightOnlyEmbedding(layer) => layer.weight().stored_bytes(),
            Layer::BatchNorm2d(norm) => 16 * norm.channels(),
            Layer::Operator(_) => self.operator_bytes(|value| value.to_packed().len()),
            layer => layer.bytes(),
        }
    }

    /// Multiply-accumulates for an output of this shape; elementwise work and pooling count none.
    pub fn macs(&self, output: &Shape) -> u64 {
        let images = |geometry: &crate::kernels::Conv2dGeometry| match *output.dims() {
            [n, _, h, w] => (n as u64).saturating_mul(geometry.macs(h, w)),
            _ => 0,
        };
        let rows = |output: &Shape, options: &recurrent::RecurrentOptions| {
            (output.elements() / (options.hidden * options.direction.count())) as u64
        };
        let transposed = |layer: &Transposed| match *output.dims() {
            [n, _, h, w] => (n as u64).saturating_mul(layer.macs(h, w)),
            _ => 0,
        };
        match self {
            Layer::ConvTranspose2d(layer) => transposed(layer.shape()),
            Layer::QuantizedConvTranspose2d(layer) => transposed(layer.shape()),
            Layer::Conv2d(layer) => images(layer.geometry()),
            Layer::QuantizedConv2d(layer) => images(layer.geometry()),
            Layer::StaticConv2d(layer) => images(layer.geometry()),
            Layer::WeightOnlyConv2d(layer) => images(layer.geometry()),
            Layer::Linear(layer) => (output.elements() as u64).saturating_mul(layer.in_features() as u64),
            Layer::QuantizedLinear(layer) => (output.elements() as u64).saturating_mul(layer.in_features() as u64),
            Layer::StaticLinear(layer) => (output.elements() as u64).saturating_mul(layer.in_features() as u64),
            Layer::WeightOnlyLinear(layer) => (output.elements() as u64).saturating_mul(layer.in_features() as u64),
            // Of the first output: a row of each step and direction.
            Layer::Lstm(layer) if output.rank() == 4 => rows(output, layer.options()).saturating_mul(layer.macs_per_row()),
            Layer::Gru(layer) if output.rank() == 4 => rows(output, layer.options()).saturating_mul(layer.macs_per_row()),
            _ => 0,
        }
    }
}
