//! Layers whose weights alone are quantized: constants in codes, and the operators that make floats of them.
//!
//! | format | becomes |
//! |---|---|
//! | integers, with zero points or without | DequantizeLinear, in blocks for groups, in 4 bits where codes have no more (both from opset 21 on) |
//! | tables, codebooks, small floats, a trellis (each weight's level, told by its code and those before), offsets | Gather from the levels (or Cast), Mul with the scales (and Add of the offsets) |

use super::layers::{product, unspoken, windows};
use super::writer::Writer;
use crate::error::Result;
use crate::nn::operator::Attributes;
use crate::nn::weight_only::StoredWeights;
use crate::nn::{Layer, Node};
use crate::quant::{Grouping, Levels, QuantizedWeights, StoredLevels, Zeros};
use crate::tensor::{DType, Shape, Tensor, Value};

/// The version of the standard from which DequantizeLinear has blocks, and codes 4 bits.
const BLOCKS: i64 = 21;

/// The least version in which a layer of such weights can be written as small as it is.
pub fn least_opset(weights: &StoredWeights) -> i64 {
    let format = weights.format();
    let is_integer = matches!(format.levels(), Levels::Int(_) | Levels::Uint(_) | Levels::MxInt8);
    if is_integer && (format.bits() <= 4 || matches!(format.grouping(), Grouping::Group(_))) { BLOCKS } else { 13 }
}

/// The node that computes `node` from `inputs` into `output`.
pub fn layer(writer: &mut Writer<'_>, node: &Node, mut inputs: Vec<String>, outputs: &[String]) -> Result<()> {
    let name = node.name();
    let Some(stored) = node.layer().stored_weights() else { return Err(unspoken(node.layer().kind().to_string())) };
    let weight = floats(writer, name, &stored.quantized()?)?;
    match node.layer() {
        Layer::WeightOnlyConv2d(conv) => {
            inputs.push(weight);
            inputs.extend(conv.bias().map(|bias| writer.list(&format!("{name}.bias"), bias)));
            writer.main(name, "Conv", &inputs, outputs, windows(conv.geometry()));
        }
        Layer::WeightOnlyLinear(linear) => {
            let weight = writer.value("Transpose", &[weight], &format!("{name}.weight/transposed"), Attributes::new());
            let bias = linear.bias().map(|bias| writer.list(&format!("{name}.bias"), bias));
            let rank = writer.ranks[node.outputs()[0].index];
            product(writer, name, [inputs.remove(0), weight], (bias, rank), outputs);
        }
        _ => writer.main(name, "Gather", &[weight, inputs.remove(0)], outputs, Attributes::new()),
    }
    Ok(())
}

/// The weights as floats of their own shape, made of their codes when the graph runs.
fn floats(writer: &mut Writer<'_>, name: &str, weights: &QuantizedWeights) -> Result<String> {
    let (format, dims) = (weights.format(), weights.shape().dims());
    if format.bits() > 8
        || weights.kept().is_some()
        || matches!(weights.stored_levels(), StoredLevels::Own(_))
        || matches!(weights.zeros(), Zeros::Shifts(_))
    {
        return Err(unspoken(format!("weights of {format}")));
    }
    let rows = dims[0];
    let columns = weights.shape().elements().checked_div(rows).unwrap_or(0);
    let (size, scales) = match format.grouping() {
        Grouping::Group(size) => (size.min(columns.max(1)), vec![rows, columns.div_ceil(size.clamp(1, columns.max(1)))]),
        Grouping::Channel => (columns, vec![rows]),
        Grouping::Tensor => (columns, Vec::new()),
    };
    let matrix = match format.levels() {
        Levels::Int(_) | Levels::Uint(_) | Levels::MxInt8 => dequantized(writer, name, weights, [rows, columns], (size, scales))?,
        _ => looked_up(writer, name, weights, [rows, columns], size)?,
    };
    Ok(reshaped(writer, matrix, &format!("{name}.weight/floats"), &[rows, columns], dims))
}

/// Integers through DequantizeLinear.
fn dequantized(
    writer: &mut Writer<'_>,
    name: &str,
    weights: &QuantizedWeights,
    [rows, columns]: [usize; 2],
    (size, scales): (usize, Vec<usize>),
) -> Result<String> {
    let (format, blocked) = (weights.format(), scales.len() == 2);
    let step = if format.levels() == &Levels::MxInt8 { 1.0 / 64.0 } else { 1.0 };
    if blocked && writer.opset < BLOCKS {
        return Err(unspoken(format!("weights of {format} in opset {}: groups are spelled from {BLOCKS} on", writer.opset)));
    }
    let small = format.bits() <= 4 && writer.opset >= BLOCKS;
    let (signed, unsigned) = if small { (DType::I4, DType::U4) } else { (DType::I8, DType::U8) };
    let of = |numbers: Vec<i32>, dtype: DType, dims: &[usize]| -> Result<Value> {
        let nibble = |number: &i32| *number as u8 & 15;
        let bytes: Vec<u8> = match small {
            true => numbers.chunks(2).map(|two| nibble(&two[0]) | two.get(1).map_or(0, nibble) << 4).collect(),
            false => numbers.iter().map(|number| *number as u8).collect(),
        };
        Value::from_packed(dtype, Shape::new(dims)?, &bytes)
    };
    let dtype = if matches!(weights.zeros(), Zeros::Points(_)) { unsigned } else { signed };
    let codes = of(weights.codes(), dtype, &[rows, columns])?;
    let values = (0..weights.groups()).map(|group| weights.scales().at(group) * step).collect::<Vec<_>>();
    let mut inputs = vec![
        writer.constant(&format!("{name}.weight"), codes),
        writer.constant(&format!("{name}.weight_scale"), Tensor::new(scales.as_slice(), values)?),
    ];
    if let Zeros::Points(points) = weights.zeros() {
        let points = of(points.iter().map(|point| point as i32).collect(), dtype, &scales)?;
        inputs.push(writer.constant(&format!("{name}.weight_zero"), points));
    }
    let attributes = match blocked {
        true => Attributes::new().with("axis", 1i64).with("block_size", size as i64),
        false => Attributes::new().with("axis", 0i64),
    };
    Ok(writer.value("DequantizeLinear", &inputs, &format!("{name}.weight/dequantized"), attributes))
}

/// Levels by their codes, times the scales of groups.
fn looked_up(writer: &mut Writer<'_>, name: &str, weights: &QuantizedWeights, [rows, columns]: [usize; 2], size: usize) -> Result<String> {
    let format = weights.format();
    if size == 0 || !columns.is_multiple_of(size) || format.bits() > 8 {
        return Err(unspoken(format!("weights of {format} with rows of {columns}")));
    }
    let groups = if weights.groups() == 1 { 1 } else { rows * columns / size };
    let grouped = [groups, rows * columns / groups.max(1)];
    let codes: Vec<u8> = weights.level_indices().into_iter().map(|index| index as u8).collect();
    let codes = writer.constant(&format!("{name}.weight"), Tensor::new(grouped, codes)?);
    let column = |values: Vec<f32>| Tensor::new([groups, 1], values);
    let levels = match weights.zeros() {
        Zeros::Offsets(_) => writer.value("Cast", &[codes], &format!("{name}.weight/codes"), Attributes::new().with("to", 1i64)),
        _ => {
            let index = writer.value("Cast", &[codes], &format!("{name}.weight/index"), Attributes::new().with("to", 6i64));
            let table = writer.list(&format!("{name}.weight_levels"), &weights.table(0));
            writer.value("Gather", &[table, index], &format!("{name}.weight/levels"), Attributes::new())
        }
    };
    let scales = column((0..groups).map(|group| weights.scales().at(group)).collect())?;
    let scales = writer.constant(&format!("{name}.weight_scale"), scales);
    let mut floats = writer.value("Mul", &[levels, scales], &format!("{name}.weight/scaled"), Attributes::new());
    if let Zeros::Offsets(offsets) = weights.zeros() {
        let offsets = writer.constant(&format!("{name}.weight_zero"), column((0..groups).map(|group| offsets.at(group)).collect())?);
        floats = writer.value("Add", &[floats, offsets], &format!("{name}.weight/shifted"), Attributes::new());
    }
    Ok(reshaped(writer, floats, &format!("{name}.weight/matrix"), &grouped, &[rows, columns]))
}

fn reshaped(writer: &mut Writer<'_>, value: String, name: &str, from: &[usize], to: &[usize]) -> String {
    if from == to {
        return value;
    }
    let dims: Vec<i64> = to.iter().map(|&length| length as i64).collect();
    let shape = writer.constant(&format!("{name}/shape"), Tensor::new([dims.len()], dims).expect("as many lengths as axes"));
    writer.value("Reshape", &[value, shape], name, Attributes::new())
}
