//! Layers that quantize their input when they run.
//!
//! ```text
//! codes, scale, zero point = DynamicQuantizeLinear(x)
//! y = Cast(ConvInteger(codes, weight, zero point)) · (scale · scales of the weight) + bias
//! ```
//!
//! in the order in which the layers here multiply, so that one range for the tensor gives the same bits. But a transposed convolution,
//! of which the standard has no product of integers, is one of the floats that the same codes stand for: it gives the same up to the
//! rounding of their sums.

use super::layers::{transposed, unspoken, windows};
use super::writer::{Measured, Writer};
use crate::error::Result;
use crate::kernels::ActivationRule;
use crate::nn::operator::{Attributes, ints};
use crate::nn::{Edge, Layer, Node};
use crate::tensor::{DType, QuantizedTensor, Tensor};

/// Whether the layer is one of these.
pub fn is_dynamic(layer: &Layer) -> bool {
    matches!(
        layer,
        Layer::QuantizedConv2d(_) | Layer::QuantizedConvTranspose2d(_) | Layer::QuantizedLinear(_) | Layer::QuantizedEmbedding(_)
    )
}

/// The nodes of such a layer.
pub fn layer(writer: &mut Writer<'_>, node: &Node) -> Result<()> {
    let (name, x) = (node.name(), node.inputs()[0].expect("checked when the types were inferred"));
    let output = writer.name(node.outputs()[0]);
    match node.layer() {
        Layer::QuantizedConv2d(conv) => {
            let [codes, scale, zero] = measured(writer, x, conv.input_rule())?;
            let (weight, channels) = (conv.weight()?, conv.geometry().out_channels);
            let weights = writer.constant(&format!("{name}.weight"), plain(&weight)?);
            let sums = writer.free(&format!("{name}/sums"));
            writer.main(name, "ConvInteger", &[codes, weights, zero], std::slice::from_ref(&sums), windows(conv.geometry()));
            scaled(writer, name, sums, (scale, &weight), (conv.bias(), &[1, channels, 1, 1]), output)
        }
        Layer::QuantizedLinear(linear) => {
            let [codes, scale, zero] = measured(writer, x, linear.input_rule())?;
            let weight = linear.weight()?;
            let weights = writer.constant(&format!("{name}.weight"), transposed(&plain(&weight)?)?);
            let sums = writer.free(&format!("{name}/sums"));
            writer.main(name, "MatMulInteger", &[codes, weights, zero], std::slice::from_ref(&sums), Attributes::new());
            scaled(writer, name, sums, (scale, &weight), (linear.bias(), &[linear.out_features()]), output)
        }
        // The standard has no such product of integers: what the codes stand for is multiplied.
        Layer::QuantizedConvTranspose2d(conv) => {
            let made = measured(writer, x, conv.input_rule())?;
            let x = writer.value("DequantizeLinear", &made, &format!("{name}/input"), Attributes::new());
            let (weight, geometry) = (conv.weight()?.dequantize(), conv.geometry());
            let (groups, taps) = (geometry.groups, geometry.kernel[0] * geometry.kernel[1]);
            let (input, out) = (geometry.in_channels / groups, geometry.out_channels / groups);
            // From [out, in / groups, ..] to [in, out / groups, ..].
            let at = |i: usize, o: usize| ((i / input * out + o) * input + i % input) * taps;
            let pairs = (0..geometry.in_channels).flat_map(|i| (0..out).map(move |o| (i, o)));
            let data = pairs.flat_map(|(i, o)| weight.as_slice()[at(i, o)..][..taps].iter().copied()).collect();
            let weight = Tensor::new([geometry.in_channels, out, geometry.kernel[0], geometry.kernel[1]], data)?;
            let mut inputs = vec![x, writer.constant(&format!("{name}.weight"), weight)];
            inputs.extend(conv.bias().map(|bias| writer.list(&format!("{name}.bias"), bias)));
            let attributes = windows(geometry).with("output_padding", ints(&conv.output_padding()));
            writer.main(name, "ConvTranspose", &inputs, &[output], attributes);
            Ok(())
        }
        Layer::QuantizedEmbedding(table) => {
            let (indices, weight) = (writer.name(x), table.weight());
            let weights = writer.constant(&format!("{name}.weight"), plain(weight)?);
            let codes = writer.free(&format!("{name}/codes"));
            writer.main(name, "Gather", &[weights, indices.clone()], std::slice::from_ref(&codes), Attributes::new());
            let mut floats = writer.value("Cast", &[codes], &format!("{name}/floats"), Attributes::new().with("to", DType::F32));
            // One for the table, or that of the row.
            let of_row = |writer: &mut Writer<'_>, values: Vec<f32>, stored: &str, picked: &str| match values[..] {
                [value] => Ok(writer.scalar(&format!("{name}.{stored}"), value)),
                _ => {
                    let rows = writer.constant(&format!("{name}.{stored}"), Tensor::new([values.len(), 1], values)?);
                    Ok(writer.value("Gather", &[rows, indices.clone()], &format!("{name}/{picked}"), Attributes::new()))
                }
            };
            let zeros: Vec<f32> = weight.params().zero_points().iter().map(|&zero| zero as f32).collect();
            if !zeros.is_empty() {
                let zero = of_row(writer, zeros, "weight_zero", "zero")?;
                floats = writer.value("Sub", &[floats, zero], &format!("{name}/centred"), Attributes::new());
            }
            let scale = of_row(writer, weight.params().scales().to_vec(), "weight_scale", "scale")?;
            writer.node("Mul", &[floats, scale], &[output], Attributes::new());
            Ok(())
        }
        other => Err(unspoken(format!("a dynamic {}", other.kind()))),
    }
}

/// Codes of an edge by its own range, once for all who read it.
fn measured(writer: &mut Writer<'_>, edge: Edge, rule: ActivationRule) -> Result<Measured> {
    if rule != (ActivationRule { non_finite: rule.non_finite, ..ActivationRule::default() }) {
        let (ActivationRule { qmin, qmax, .. }, kind) = (rule, if rule.symmetric { "symmetric" } else { "asymmetric" });
        return Err(unspoken(format!(
            "an input in {kind} codes {qmin}..={qmax}, where DynamicQuantizeLinear has asymmetric ones of 8 bits,"
        )));
    }
    if let Some(made) = writer.measured.get(&edge.index) {
        return Ok(made.clone());
    }
    let x = writer.name(edge);
    let made = ["codes", "scale", "zero_point"].map(|what| writer.free(&format!("{x}/{what}")));
    writer.node("DynamicQuantizeLinear", &[x], &made, Attributes::new());
    writer.measured.insert(edge.index, made.clone());
    Ok(made)
}

/// The codes as a tensor.
fn plain(weight: &QuantizedTensor<i8>) -> Result<Tensor<i8>> {
    Tensor::new(weight.shape().dims(), weight.storage().to_vec())
}

/// Sums as floats, with scales and bias of this shape.
fn scaled(
    writer: &mut Writer<'_>,
    name: &str,
    sums: String,
    (scale, weight): (String, &QuantizedTensor<i8>),
    (bias, dims): (Option<&[f32]>, &[usize]),
    output: String,
) -> Result<()> {
    let floats = writer.value("Cast", &[sums], &format!("{name}/floats"), Attributes::new().with("to", DType::F32));
    let scales = match weight.params().scales() {
        [scale] => writer.scalar(&format!("{name}.weight_scale"), *scale),
        scales => writer.constant(&format!("{name}.weight_scale"), Tensor::new(dims, scales.to_vec())?),
    };
    let both = writer.value("Mul", &[scale, scales], &format!("{name}/scale"), Attributes::new());
    match bias {
        None => writer.node("Mul", &[floats, both], &[output], Attributes::new()),
        Some(bias) => {
            let product = writer.value("Mul", &[floats, both], &format!("{name}/product"), Attributes::new());
            let bias = writer.constant(&format!("{name}.bias"), Tensor::new(dims, bias.to_vec())?);
            writer.node("Add", &[product, bias], &[output], Attributes::new());
        }
    }
    Ok(())
}
