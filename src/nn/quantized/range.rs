//! Over what the ranges of inputs are taken, of any layer that finds them when it runs.

use crate::kernels::RangeOf;
use crate::nn::recurrent::recurrent;
use crate::nn::{Layer, Projection};

impl Layer {
    /// Over what the ranges of its inputs are taken; none of a layer that doesn't quantize its inputs when it runs. A layer whose weights
    /// alone are quantized has none either, though it may multiply rows as bytes.
    pub fn input_range(&self) -> Option<RangeOf> {
        match self {
            Layer::QuantizedConv2d(layer) => Some(layer.input_range()),
            Layer::QuantizedConvTranspose2d(layer) => Some(layer.input_range()),
            Layer::QuantizedLinear(layer) => Some(layer.input_range()),
            layer => recurrent(layer)?.products().into_iter().find_map(|product| match product {
                Projection::Int8(linear) => Some(linear.input_range()),
                _ => None,
            }),
        }
    }

    /// The same layer with the ranges of its inputs taken over another part of them; `None` where [`Layer::input_range`] has none.
    pub fn with_input_range(&self, range: RangeOf) -> Option<Layer> {
        self.input_range()?;
        Some(match self {
            Layer::QuantizedConv2d(layer) => layer.with_input_range(range).into(),
            Layer::QuantizedConvTranspose2d(layer) => layer.with_input_range(range).into(),
            Layer::QuantizedLinear(layer) => layer.with_input_range(range).into(),
            layer => {
                let layer = recurrent(layer)?;
                let products = layer.products().into_iter().map(|product| match product {
                    Projection::Int8(linear) => Projection::Int8(linear.with_input_range(range)),
                    other => other.clone(),
                });
                layer.with_products(products.collect())
            }
        })
    }
}
