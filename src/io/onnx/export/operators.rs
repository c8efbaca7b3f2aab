//! Plain operators, with those of their parameters as inputs that a version of the standard has there.

use std::ops::RangeInclusive;

use super::codes;
use super::layers::unspoken;
use super::writer::Writer;
use crate::error::Result;
use crate::nn::Node;
use crate::nn::operator::{Attribute, Attributes, Operator, Unary};
use crate::tensor::{DType, Tensor, Value};

/// The node of an operator.
pub fn operator(writer: &mut Writer<'_>, node: &Node, operator: &Operator) -> Result<()> {
    match operator {
        Operator::QuantizedAdd(_)
        | Operator::QuantizedMul(_)
        | Operator::CodeTable(_)
        | Operator::QuantizedMaxPool(_)
        | Operator::QuantizedAvgPool(_)
        | Operator::QuantizedGlobalAvgPool(_) => codes::operator(writer, node, operator),
        Operator::QuantizeLinear(_) | Operator::DequantizeLinear(_) => {
            let (reads, writes) = (writer.reads(node), node.outputs().iter().map(|&edge| writer.name(edge)).collect::<Vec<_>>());
            plain(writer, node, operator, reads, &writes)
        }
        _ => codes::around(writer, node, |writer, node, reads, writes| match node.layer() {
            crate::nn::Layer::Operator(operator) => plain(writer, node, operator, reads, writes),
            other => Err(unspoken(other.kind().to_string())),
        }),
    }
}

/// The versions that have the operator with so many inputs, the first of this type.
pub fn opsets(operator: &Operator, inputs: usize, dtype: DType) -> RangeInclusive<i64> {
    let spelled = operator.operation().opsets();
    let least = match operator {
        // Written out before there was an operator, with constants in f32.
        Operator::Unary(Unary::Gelu | Unary::GeluTanh) if dtype == DType::F32 => 13,
        // Written as the operators that it is made of.
        Operator::Unary(Unary::Swish { .. }) => 13,
        // Axes became an input late.
        Operator::Reduce(_) if inputs > 1 && operator.name() != "ReduceSum" => 18,
        Operator::Pool(_) if operator.name() != "MaxPool" && dilates(&operator.operation().attributes()) => 19,
        _ => *spelled.start(),
    };
    let most = if matches!(operator, Operator::Unary(Unary::Swish { .. })) { 28 } else { *spelled.end() };
    least..=most
}

/// The least version that is chosen for the operator: the one that has GELU as one.
pub fn preferred(operator: &Operator, opsets: &RangeInclusive<i64>) -> i64 {
    match operator {
        Operator::Unary(Unary::Gelu | Unary::GeluTanh) => *operator.operation().opsets().start(),
        _ => *opsets.start(),
    }
}

fn dilates(attributes: &Attributes) -> bool {
    attributes.list.iter().any(|(name, value)| *name == "dilations" && !is_ones(value))
}

fn is_ones(value: &Attribute) -> bool {
    matches!(value, Attribute::Ints(list) if list.iter().all(|&x| x == 1))
}

/// The operator as a node that reads and writes these names.
pub fn plain(writer: &mut Writer<'_>, node: &Node, operator: &Operator, mut inputs: Vec<String>, outputs: &[String]) -> Result<()> {
    let (name, of) = (node.name(), operator.name());
    match operator {
        Operator::MaskedSoftmax(softmax) => {
            let scale = writer.scalar(&format!("{name}/scale"), softmax.scale());
            let mut x = writer.value("Mul", &[inputs[0].clone(), scale], &format!("{name}/scaled"), Attributes::new());
            if let Some(mask) = inputs.get(1) {
                x = writer.value("Add", &[x, mask.clone()], &format!("{name}/masked"), Attributes::new());
            }
            writer.main(name, "Softmax", &[x], outputs, Attributes::new().with("axis", -1i64));
            return Ok(());
        }
        Operator::MatMul(product) if !product.is_plain() => return Err(unspoken("a product that transposes its operands".into())),
        Operator::Attention(_) => return Err(unspoken("products of matrices around a Softmax in one".into())),
        Operator::Unary(Unary::Swish { alpha }) => {
            let scaled = match alpha {
                1.0 => inputs[0].clone(),
                alpha => {
                    let alpha = writer.scalar(&format!("{name}/alpha"), *alpha);
                    writer.value("Mul", &[inputs[0].clone(), alpha], &format!("{name}/scaled"), Attributes::new())
                }
            };
            let gate = writer.value("Sigmoid", &[scaled], &format!("{name}/gate"), Attributes::new());
            writer.main(name, "Mul", &[inputs[0].clone(), gate], outputs, Attributes::new());
            return Ok(());
        }
        &Operator::Unary(function @ (Unary::Gelu | Unary::GeluTanh)) if !operator.operation().opsets().contains(&writer.opset) => {
            gelu(writer, name, function == Unary::GeluTanh, &inputs[0], outputs);
            return Ok(());
        }
        _ => {}
    }
    let mut kept = Attributes::new();
    for (attribute, value) in operator.operation().attributes().list {
        match position(of, attribute, writer.opset) {
            Some(position) => {
                let value = listed(value)?;
                if inputs.len() <= position {
                    inputs.resize(position + 1, String::new());
                }
                inputs[position] = writer.constant(&format!("{name}/{attribute}"), value);
            }
            None if is_implied(of, attribute, &value, &inputs) => {}
            None => kept = kept.with(attribute, value),
        }
    }
    // From then on the number of parts stands beside their lengths.
    if of == "Split" && writer.opset >= 18 && inputs.len() < 2 {
        kept = kept.with("num_outputs", outputs.len() as i64);
    }
    writer.main(name, of, &inputs, outputs, kept);
    Ok(())
}

/// `x · (1 + f) · 1/2` with `f = erf(x / √2)`, or `f = tanh(√(2/π) (x + 0.044715 x³))`.
fn gelu(writer: &mut Writer<'_>, name: &str, by_tanh: bool, x: &str, outputs: &[String]) {
    fn made(writer: &mut Writer<'_>, operator: &str, inputs: &[&str], name: String) -> String {
        let inputs: Vec<String> = inputs.iter().map(|&input| input.to_owned()).collect();
        writer.value(operator, &inputs, &name, Attributes::new())
    }
    let named = |what: &str| format!("{name}/{what}");
    let function = if by_tanh {
        let weight = writer.scalar(&named("weight"), 0.044_715);
        let scale = writer.scalar(&named("scale"), (2.0 / std::f32::consts::PI).sqrt());
        let square = made(writer, "Mul", &[x, x], named("square"));
        let cube = made(writer, "Mul", &[&square, x], named("cube"));
        let weighed = made(writer, "Mul", &[&cube, &weight], named("weighed"));
        let sum = made(writer, "Add", &[x, &weighed], named("sum"));
        let scaled = made(writer, "Mul", &[&sum, &scale], named("scaled"));
        made(writer, "Tanh", &[&scaled], named("tanh"))
    } else {
        let root = writer.scalar(&named("root"), std::f32::consts::SQRT_2);
        let scaled = made(writer, "Div", &[x, &root], named("scaled"));
        made(writer, "Erf", &[&scaled], named("erf"))
    };
    let (one, half) = (writer.scalar(&named("one"), 1.0), writer.scalar(&named("half"), 0.5));
    let plus = made(writer, "Add", &[&function, &one], named("plus"));
    let product = made(writer, "Mul", &[x, &plus], named("product"));
    writer.main(name, "Mul", &[product, half], outputs, Attributes::new());
}

/// Where the operator has a parameter among its inputs.
fn position(operator: &str, attribute: &str, opset: i64) -> Option<usize> {
    match (operator, attribute) {
        ("Squeeze" | "Unsqueeze" | "ReduceSum", "axes") => Some(1),
        (reduce, "axes") if reduce.starts_with("Reduce") && opset >= 18 => Some(1),
        ("Split", "split") | ("Slice", "starts") | ("Pad", "pads") | ("Clip", "min") | ("TopK", "k") => Some(1),
        ("Reshape" | "Expand", "shape") | ("Tile", "repeats") => Some(1),
        ("Slice", "ends") | ("Pad", "value") | ("Clip", "max") | ("Resize", "scales") => Some(2),
        ("Slice", "axes") => Some(3),
        ("Slice", "steps") => Some(4),
        _ => None,
    }
}

/// Whether the version does as the attribute says without it, or has no such attribute and needs none.
fn is_implied(operator: &str, attribute: &str, value: &Attribute, inputs: &[String]) -> bool {
    match (operator, attribute) {
        ("AveragePool" | "LpPool", "dilations") => is_ones(value),
        ("LpPool", "ceil_mode") => *value == Attribute::Int(0),
        // The zero point tells it, and without one it is u8.
        ("QuantizeLinear", "output_dtype") => inputs.len() > 2 || *value == Attribute::Type(DType::U8),
        ("DequantizeLinear", "output_dtype") => *value == Attribute::Type(DType::F32),
        _ => false,
    }
}

/// A parameter as a tensor: lists have one axis, but single numbers none.
fn listed(value: Attribute) -> Result<Value> {
    Ok(match value {
        Attribute::Ints(list) => Tensor::new([list.len()], list)?.into(),
        Attribute::Int(x) => Tensor::new([1], vec![x])?.into(),
        Attribute::Floats(list) => Tensor::new([list.len()], list)?.into(),
        Attribute::Float(x) => Tensor::new(Vec::new(), vec![x])?.into(),
        Attribute::Tensor(value) => value,
        Attribute::Text(_) | Attribute::Texts(_) | Attribute::Type(_) => return Err(unspoken("a text as an input".into())),
    })
}
