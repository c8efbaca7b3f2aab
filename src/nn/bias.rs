//! Biases of layers with weights, in any precision: what corrects them needs nothing else of a layer.

use crate::error::{Error, Result};
use crate::nn::{Conv2d, Layer, Linear};
use crate::tensor::Tensor;

impl Layer {
    /// The bias of a convolution or linear layer, in any precision.
    pub(crate) fn bias(&self) -> Option<&[f32]> {
        match self {
            Layer::Conv2d(layer) => layer.bias().map(Tensor::as_slice),
            Layer::Linear(layer) => layer.bias().map(Tensor::as_slice),
            Layer::QuantizedConv2d(layer) => layer.bias(),
            Layer::QuantizedLinear(layer) => layer.bias(),
            Layer::StaticConv2d(layer) => layer.bias(),
            Layer::StaticLinear(layer) => layer.bias(),
            Layer::WeightOnlyConv2d(layer) => layer.bias(),
            Layer::WeightOnlyLinear(layer) => layer.bias(),
            _ => None,
        }
    }

    /// Outputs of a convolution or linear layer in any precision, each of which a bias has a number for, and whether they are the second
    /// axis, else the last.
    pub(crate) fn biased(&self) -> Option<(usize, bool)> {
        match self {
            Layer::Conv2d(layer) => Some((layer.geometry().out_channels, true)),
            Layer::Linear(layer) => Some((layer.out_features(), false)),
            Layer::QuantizedConv2d(layer) => Some((layer.geometry().out_channels, true)),
            Layer::QuantizedLinear(layer) => Some((layer.out_features(), false)),
            Layer::StaticConv2d(layer) => Some((layer.geometry().out_channels, true)),
            Layer::StaticLinear(layer) => Some((layer.out_features(), false)),
            Layer::WeightOnlyConv2d(layer) => Some((layer.geometry().out_channels, true)),
            Layer::WeightOnlyLinear(layer) => Some((layer.out_features(), false)),
            _ => None,
        }
    }

    /// The convolution or linear layer with another bias.
    ///
    /// # Errors
    /// Those of the layers, and [`Error::Unsupported`] for a layer of another kind.
    pub(crate) fn with_bias(&self, bias: &[f32]) -> Result<Layer> {
        let tensor = || Tensor::new([bias.len()], bias.to_vec()).map(Some);
        match self {
            Layer::Conv2d(layer) => Conv2d::new(layer.geometry().clone(), layer.weight().clone(), tensor()?).map(Layer::from),
            Layer::Linear(layer) => Linear::new(layer.weight().clone(), tensor()?).map(Layer::from),
            Layer::QuantizedConv2d(layer) => layer.with_bias(bias).map(Layer::from),
            Layer::QuantizedLinear(layer) => layer.with_bias(bias).map(Layer::from),
            Layer::StaticConv2d(layer) => layer.with_bias(bias).map(Layer::from),
            Layer::StaticLinear(layer) => layer.with_bias(bias).map(Layer::from),
            Layer::WeightOnlyConv2d(layer) => layer.with_bias(bias).map(Layer::from),
            Layer::WeightOnlyLinear(layer) => layer.with_bias(bias).map(Layer::from),
            other => Err(Error::Unsupported { what: format!("another bias of {}", other.kind()), way_out: "leave it as it is".into() }),
        }
    }

    /// The layer up to its sums, in floats: without the activation and the second input of one that writes codes.
    pub(crate) fn sums(&self) -> Layer {
        match self {
            Layer::StaticConv2d(layer) => layer.sums().into(),
            Layer::StaticLinear(layer) => layer.sums().into(),
            other => other.clone(),
        }
    }

    /// The weights of a convolution or linear layer as floats, `[out, ..]`: of a quantized one, what its codes stand for.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`], which a layer that was built can't meet.
    pub(crate) fn float_weight(&self) -> Result<Option<Tensor>> {
        Ok(Some(match self {
            Layer::Conv2d(layer) => layer.weight().clone(),
            Layer::Linear(layer) => layer.weight().clone(),
            Layer::QuantizedConv2d(layer) => layer.weight()?.dequantize(),
            Layer::QuantizedLinear(layer) => layer.weight()?.dequantize(),
            Layer::StaticConv2d(layer) => layer.weight()?.dequantize(),
            Layer::StaticLinear(layer) => layer.weight()?.dequantize(),
            Layer::WeightOnlyConv2d(layer) => layer.weight().dequantize()?,
            Layer::WeightOnlyLinear(layer) => layer.weight().dequantize()?,
            _ => return Ok(None),
        }))
    }
}
