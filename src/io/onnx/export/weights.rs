//! Layers whose weights alone are quantized: constants in codes, and the operators that make floats of them.
//!
//! | format | becomes |
//! |---|---|
//! | integers, with zero points or without | DequantizeLinear, in blocks for groups, in 4 bits where codes have no more, in 16 (all from opset 21 on) |
//! | tables, codebooks, small floats, a trellis (each weight's level, told by its code and those before), offsets | Gather from the levels (or Cast), Mul with the scales (and Add of the offsets) |
//! | levels of each group's own, shifted ones | Gather from all tables one behind the other, at the code beyond the start of the group's |
//! | weights kept exactly beside | nothing: an error, that names the layer |

use super::layers::{product, unspoken, windows};
use super::writer::Writer;
use crate::error::Result;
use crate::nn::operator::Attributes;
use crate::nn::weight_only::StoredWeights;
use crate::nn::{Layer, Node};
use crate::quant::{Grouping, Levels, QuantizedWeights, Scales, StoredLevels, Zeros};
use crate::tensor::{DType, Element, Shape, Tensor, Value};

/// The version of the standard from which DequantizeLinear has blocks, and codes 4 bits.
const BLOCKS: i64 = 21;

/// The least version in which a layer of such weights can be written as small as it is.
pub fn least_opset(weights: &StoredWeights) -> i64 {
    let format = weights.format();
    let is_integer = matches!(format.levels(), Levels::Int(_) | Levels::Uint(_) | Levels::MxInt8);
    let is_small = format.bits() <= if matches!(format.levels(), Levels::Trellis(_)) { 3 } else { 4 };
    if is_small || format.bits() > 8 || is_integer && matches!(format.grouping(), Grouping::Group(_)) { BLOCKS } else { 13 }
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
    if weights.kept().is_some() {
        return Err(unspoken(format!("weights of {format}, some of them kept exactly,")));
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
    if format.bits() > 8 && writer.opset < BLOCKS {
        return Err(unspoken(format!("weights of {format} in opset {}: 16 bits are spelled from {BLOCKS} on", writer.opset)));
    }
    let small = format.bits() <= 4 && writer.opset >= BLOCKS;
    let (signed, unsigned) = match format.bits() {
        _ if small => (DType::I4, DType::U4),
        9.. => (DType::I16, DType::U16),
        _ => (DType::I8, DType::U8),
    };
    let of = |numbers: Vec<i32>, dtype: DType, dims: &[usize]| -> Result<Value> {
        let nibble = |number: &i32| *number as u8 & 15;
        let bytes: Vec<u8> = match small {
            true => numbers.chunks(2).map(|two| nibble(&two[0]) | two.get(1).map_or(0, nibble) << 4).collect(),
            false if format.bits() > 8 => numbers.iter().flat_map(|number| (*number as u16).to_le_bytes()).collect(),
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
    let groups = Groups::of(writer, name, weights, [rows, columns], size)?;
    let indices = weights.level_indices();
    let per_group = weights.table(0).len();
    // Four bits where the indices have no more and the version knows them.
    let codes = match writer.opset >= BLOCKS && per_group <= 16 {
        true => {
            let bytes: Vec<u8> = indices.chunks(2).map(|two| two[0] as u8 | (two.get(1).copied().unwrap_or(0) as u8) << 4).collect();
            Value::from_packed(DType::U4, Shape::new(groups.dims)?, &bytes)?
        }
        false if per_group > 256 => Tensor::new(groups.dims, indices)?.into(),
        false => Tensor::new(groups.dims, indices.into_iter().map(|index| index as u8).collect::<Vec<u8>>())?.into(),
    };
    let codes = writer.constant(&format!("{name}.weight"), codes);
    let cast = |writer: &mut Writer<'_>, from: String, to: DType, what: &str| {
        writer.value("Cast", &[from], &format!("{name}.weight/{what}"), Attributes::new().with("to", to))
    };
    let levels = match weights.zeros() {
        Zeros::Offsets(_) => cast(writer, codes, DType::F32, "codes"),
        zeros => {
            let mut index = cast(writer, codes, DType::I32, "index");
            // Where groups have tables of their own, those lie one behind the other, and each group counts from its own on.
            let (table, of_group): (Vec<f32>, Option<Value>) = match (weights.stored_levels(), zeros) {
                (StoredLevels::Own(_), _) => {
                    let starts = (0..weights.groups()).map(|group| i32::try_from(group * per_group));
                    let starts =
                        starts.collect::<std::result::Result<Vec<i32>, _>>().map_err(|_| unspoken(format!("weights of {format}")))?;
                    ((0..weights.groups()).flat_map(|group| weights.table(group)).collect(), Some(groups.list(starts)?))
                }
                (_, Zeros::Shifts(shifts)) => {
                    let shifts: Vec<u8> = shifts.iter().map(|shift| shift as u8).collect();
                    let mut seen = std::collections::BTreeMap::new();
                    shifts.iter().enumerate().for_each(|(group, shift)| _ = seen.entry(*shift).or_insert(group));
                    let places: std::collections::BTreeMap<u8, u8> = seen.keys().zip(0..).map(|(shift, at)| (*shift, at)).collect();
                    let places = shifts.iter().map(|shift| places[shift]).collect::<Vec<u8>>();
                    (seen.values().flat_map(|&group| weights.table(group)).collect(), Some(groups.list(places)?))
                }
                _ => (weights.table(0), None),
            };
            if let Some(of_group) = of_group {
                let by_place = of_group.dtype() == DType::U8;
                let stored = writer.constant(&format!("{name}.weight_table"), of_group);
                let mut start = groups.spread(writer, name, stored, "table");
                if by_place {
                    start = cast(writer, start, DType::I32, "place");
                    let length = writer.constant(&format!("{name}.weight_table/length"), Tensor::new(Vec::new(), vec![per_group as i32])?);
                    start = writer.value("Mul", &[start, length], &format!("{name}.weight/start"), Attributes::new());
                }
                index = writer.value("Add", &[index, start], &format!("{name}.weight/level"), Attributes::new());
            }
            let table = writer.list(&format!("{name}.weight_levels"), &table);
            writer.value("Gather", &[table, index], &format!("{name}.weight/levels"), Attributes::new())
        }
    };
    let numbers = |writer: &mut Writer<'_>, list: &Scales, what: &str| -> Result<String> {
        let list = groups.list((0..weights.groups()).map(|group| list.at(group)).collect::<Vec<f32>>())?;
        let stored = writer.constant(&format!("{name}.{what}"), list);
        Ok(groups.spread(writer, name, stored, what))
    };
    let scales = numbers(writer, weights.scales(), "weight_scale")?;
    let mut floats = writer.value("Mul", &[levels, scales], &format!("{name}.weight/scaled"), Attributes::new());
    if let Zeros::Offsets(offsets) = weights.zeros() {
        let offsets = numbers(writer, offsets, "weight_zero")?;
        floats = writer.value("Add", &[floats, offsets], &format!("{name}.weight/shifted"), Attributes::new());
    }
    Ok(reshaped(writer, floats, &format!("{name}.weight/matrix"), &groups.dims, &[rows, columns]))
}

/// How weights lie beside the numbers of their groups.
struct Groups {
    /// Of the codes: a row a group, where groups are of one size, else as the weights are.
    dims: [usize; 2],
    /// Of the numbers of groups.
    numbers: [usize; 2],
    /// The group in its row of each column, where rows end in smaller groups.
    of_column: Option<String>,
}

impl Groups {
    fn of(writer: &mut Writer<'_>, name: &str, weights: &QuantizedWeights, [rows, columns]: [usize; 2], size: usize) -> Result<Self> {
        let groups = weights.groups();
        if groups <= 1 || size > 0 && columns.is_multiple_of(size) {
            return Ok(Groups { dims: [groups, (rows * columns).checked_div(groups).unwrap_or(0)], numbers: [groups, 1], of_column: None });
        }
        let group = (0..columns).map(|column| (column / size.max(1)) as i32).collect::<Vec<i32>>();
        let of_column = Some(writer.constant(&format!("{name}.weight_group"), Tensor::new([columns], group)?));
        Ok(Groups { dims: [rows, columns], numbers: [rows, groups / rows.max(1)], of_column })
    }

    /// A number for each group.
    fn list<T: Element>(&self, list: Vec<T>) -> Result<Value>
    where
        Value: From<Tensor<T>>,
    {
        Tensor::new(self.numbers, list).map(Value::from)
    }

    /// Those numbers as what lies beside the codes.
    fn spread(&self, writer: &mut Writer<'_>, name: &str, stored: String, what: &str) -> String {
        match &self.of_column {
            None => stored,
            Some(columns) => {
                let attributes = Attributes::new().with("axis", 1i64);
                writer.value("Gather", &[stored, columns.clone()], &format!("{name}.weight/{what}_by_column"), attributes)
            }
        }
    }
}

fn reshaped(writer: &mut Writer<'_>, value: String, name: &str, from: &[usize], to: &[usize]) -> String {
    if from == to {
        return value;
    }
    let dims: Vec<i64> = to.iter().map(|&length| length as i64).collect();
    let shape = writer.constant(&format!("{name}/shape"), Tensor::new([dims.len()], dims).expect("as many lengths as axes"));
    writer.value("Reshape", &[value, shape], name, Attributes::new())
}
