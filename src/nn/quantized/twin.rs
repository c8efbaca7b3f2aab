//! Which float layers have an int8 twin, and the twin itself.

use super::{Conv2d, ConvTranspose2d, DynamicScheme, Embedding, Linear, check_sums};
use crate::error::{Error, Result};
use crate::kernels::{Isa, PackedConv2d};
use crate::nn::{Layer, LayerKind, Precision};
use crate::tensor::Tensor;

/// The kinds that have a dynamic int8 twin.
pub(crate) const DYNAMIC_KINDS: [LayerKind; 6] =
    [LayerKind::Conv2d, LayerKind::ConvTranspose2d, LayerKind::Linear, LayerKind::Lstm, LayerKind::Gru, LayerKind::Embedding];

/// The kinds that have a static int8 twin.
pub(crate) const STATIC_KINDS: [LayerKind; 2] = [LayerKind::Conv2d, LayerKind::Linear];

/// Why a float layer can't get a dynamic twin, asked without its weights; `None` when it can.
pub(crate) fn dynamic_obstacle(layer: &Layer, isa: Isa) -> Option<String> {
    match layer {
        // Asked of the kernels without a weight, before anything is folded into a layer that then stays in float.
        Layer::Conv2d(conv) => match PackedConv2d::pack_for(isa, conv.geometry(), &[]) {
            Err(error @ Error::Accumulator { .. }) => Some(error.to_string()),
            _ => None,
        },
        Layer::ConvTranspose2d(conv) => check_sums(conv.shape()).err().map(|error| error.to_string()),
        Layer::Linear(_) | Layer::Embedding(_) => None,
        Layer::Lstm(_) | Layer::Gru(_) if layer.precision() == Precision::F32 => None,
        other => Some(format!("{} has no int8 twin", other.kind())),
    }
}

/// The layer in int8, its activations quantized at run time.
///
/// # Errors
/// [`Error::Unsupported`] for a layer without such a twin, and those of making it.
pub(crate) fn dynamic_twin(layer: &Layer, scheme: &DynamicScheme, isa: Isa) -> Result<Layer> {
    match layer {
        Layer::Conv2d(conv) => {
            let bias = conv.bias().map(Tensor::as_slice);
            Conv2d::from_tensor(conv.geometry(), conv.weight(), bias, scheme, isa).map(Layer::from)
        }
        Layer::ConvTranspose2d(conv) => {
            let (weight, bias) = (conv.weight().as_slice(), conv.bias().map(Tensor::as_slice));
            ConvTranspose2d::from_float(conv.geometry(), conv.output_padding(), weight, bias, scheme, isa).map(Layer::from)
        }
        Layer::Embedding(table) => Embedding::from_float(table.weight(), scheme).map(Layer::from),
        Layer::Linear(linear) => {
            let bias = linear.bias().map(Tensor::as_slice);
            Linear::from_tensor(linear.weight(), bias, scheme, isa).map(Layer::from)
        }
        Layer::Lstm(lstm) => lstm.quantized(scheme, isa).map(Layer::from),
        Layer::Gru(gru) => gru.quantized(scheme, isa).map(Layer::from),
        other => Err(Error::Unsupported {
            what: format!("dynamic quantization of {}", other.kind()),
            way_out: format!("these kinds can be: {}", DYNAMIC_KINDS.map(|kind| kind.to_string()).join(", ")),
        }),
    }
}
