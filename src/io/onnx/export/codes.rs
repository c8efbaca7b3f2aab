//! Integer models in QDQ form: floats between DequantizeLinear and QuantizeLinear.
//!
//! ```text
//! y_codes = QuantizeLinear(clamp(Conv(DequantizeLinear(x_codes), DequantizeLinear(w_codes), bias) [+ DequantizeLinear(residual)]))
//! ```

use super::layers::{product, transposed, unspoken, windows};
use super::writer::Writer;
use crate::error::Result;
use crate::io::onnx::attribute;
use crate::io::onnx::import;
use crate::kernels::Activation;
use crate::nn::operator::{Attributes, CodeTable, Operator};
use crate::nn::quantized::StaticOutput;
use crate::nn::{Edge, Layer, Node, evaluate_within};
use crate::num::U8Grid;
use crate::tensor::{DType, Granularity, QuantizedTensor, Tensor, Value};

/// What writes a node of the names that it reads into the names that it writes.
type Emit = fn(&mut Writer<'_>, &Node, Vec<String>, &[String]) -> Result<()>;

/// The node on floats: where it takes codes to codes, between a DequantizeLinear and a QuantizeLinear.
pub fn around(writer: &mut Writer<'_>, node: &Node, emit: Emit) -> Result<()> {
    let grids: Vec<Option<U8Grid>> = node.outputs().iter().map(|&edge| writer.model.grid(edge)).collect();
    let takes_codes = node.reads().next().is_some_and(|edge| writer.model.grid(edge).is_some());
    if !takes_codes || grids.iter().all(Option::is_none) {
        let (reads, writes) = (writer.reads(node), node.outputs().iter().map(|&edge| writer.name(edge)).collect::<Vec<_>>());
        return emit(writer, node, reads, &writes);
    }
    let reads = node.inputs().iter().map(|edge| edge.map_or_else(String::new, |edge| writer.floats(edge))).collect();
    let mut writes = Vec::with_capacity(grids.len());
    for (&edge, grid) in node.outputs().iter().zip(&grids) {
        let name = writer.name(edge);
        writes.push(if grid.is_some() { writer.free(&format!("{name}/float")) } else { name });
    }
    emit(writer, node, reads, &writes)?;
    for ((&edge, grid), floats) in node.outputs().iter().zip(grids).zip(writes) {
        if let Some(grid) = grid {
            writer.quantize(floats, edge, grid);
        }
    }
    Ok(())
}

/// A convolution or linear layer from codes.
pub fn layer(writer: &mut Writer<'_>, node: &Node) -> Result<()> {
    let name = node.name();
    let (weight, bias, input, residual, output) = match node.layer() {
        Layer::StaticConv2d(conv) => (conv.weight()?, conv.bias(), conv.input(), conv.residual(), conv.output()),
        Layer::StaticLinear(linear) => (linear.weight()?, linear.bias(), linear.input(), linear.residual(), linear.output()),
        other => return Err(unspoken(format!("a static {}", other.kind()))),
    };
    let reads: Vec<Edge> = node.reads().collect();
    let (x, out) = (floats(writer, reads[0], input), node.outputs()[0]);
    let bias = bias.map(|bias| rounded_bias(writer, name, bias, &weight, input.scale(), output));
    // What follows the product, from the last to the first: each names what the one before it writes.
    let last = writer.name(out);
    let quantized = output.grid().map(|grid| (grid, writer.free(&format!("{last}/float"))));
    let clamp = match output {
        StaticOutput::Codes { grid, lo, hi } => clamp(grid, lo, hi),
        StaticOutput::Float(activation) => activation,
    };
    let end = quantized.as_ref().map_or_else(|| last.clone(), |(_, floats)| floats.clone());
    let sum = if clamp == Activation::None { end.clone() } else { writer.free(&format!("{name}/sum")) };
    let direct = if residual.is_some() { writer.free(&format!("{name}/product")) } else { sum.clone() };
    let direct_list = std::slice::from_ref(&direct);
    match node.layer() {
        Layer::StaticConv2d(conv) => {
            let mut inputs = vec![x, weights(writer, name, &weight, false)?];
            inputs.extend(bias);
            writer.main(name, "Conv", &inputs, direct_list, windows(conv.geometry()));
        }
        _ => {
            let weights = weights(writer, name, &weight, true)?;
            let rank = writer.ranks[out.index];
            product(writer, name, [x, weights], (bias, rank), direct_list);
        }
    }
    if let Some(grid) = residual {
        let residual = floats(writer, reads[1], grid);
        writer.node("Add", &[direct, residual], std::slice::from_ref(&sum), Attributes::new());
    }
    activate(writer, name, clamp, sum, &end);
    if let Some((grid, floats)) = quantized {
        writer.quantize(floats, out, grid);
    }
    Ok(())
}

/// Operators that exist in codes only here.
pub fn operator(writer: &mut Writer<'_>, node: &Node, operator: &Operator) -> Result<()> {
    let (name, out) = (node.name(), node.outputs()[0]);
    let reads: Vec<Edge> = node.reads().collect();
    let (operator, inputs, grid, (lo, hi)) = match operator {
        Operator::QuantizedAdd(sum) => {
            let [a, b, grid] = sum.grids();
            ("Add", vec![floats(writer, reads[0], a), floats(writer, reads[1], b)], grid, sum.range())
        }
        Operator::QuantizedMul(product) => {
            let [a, b, grid] = product.grids();
            ("Mul", vec![floats(writer, reads[0], a), floats(writer, reads[1], b)], grid, product.range())
        }
        Operator::QuantizedGlobalAvgPool(pool) => {
            let [x, grid] = pool.grids();
            ("GlobalAveragePool", vec![floats(writer, reads[0], x)], grid, (0, 255))
        }
        Operator::QuantizedAvgPool(pool) => {
            let [x, grid] = pool.grids();
            let (x, floats) = (floats(writer, reads[0], x), between(writer, out));
            super::operators::plain(writer, node, &pool.pool().clone().into(), vec![x], std::slice::from_ref(&floats))?;
            writer.quantize(floats, out, grid);
            return Ok(());
        }
        Operator::QuantizedMaxPool(pool) => {
            let pool: Operator = pool.pool().clone().into();
            let x = match writer.model.grid(reads[0]) {
                // Of codes of which nothing is known the largest is the largest value too.
                None => return super::operators::plain(writer, node, &pool, writer.reads(node), &[writer.name(out)]),
                Some(_) => writer.floats(reads[0]),
            };
            let floats = between(writer, out);
            super::operators::plain(writer, node, &pool, vec![x], std::slice::from_ref(&floats))?;
            let grid = writer.model.grid(reads[0]).expect("asked above");
            writer.quantize(floats, out, grid);
            return Ok(());
        }
        Operator::CodeTable(table) => return self::table(writer, node, table),
        other => return Err(unspoken(format!("{} of codes", other.name()))),
    };
    let (clamp, floats) = (clamp(grid, lo, hi), between(writer, out));
    let direct = if clamp == Activation::None { floats.clone() } else { writer.free(&format!("{name}/sum")) };
    writer.main(name, operator, &inputs, std::slice::from_ref(&direct), Attributes::new());
    activate(writer, name, clamp, direct, &floats);
    writer.quantize(floats, out, grid);
    Ok(())
}

/// A name for the floats that are quantized into the edge.
fn between(writer: &mut Writer<'_>, edge: Edge) -> String {
    let name = format!("{}/float", writer.name(edge));
    writer.free(&name)
}

/// The floats that codes of this grid stand for.
fn floats(writer: &mut Writer<'_>, edge: Edge, grid: U8Grid) -> String {
    if writer.model.grid(edge) == Some(grid) {
        return writer.floats(edge);
    }
    let codes = writer.name(edge);
    let [scale, zero] = writer.grid(&codes, grid);
    writer.value("DequantizeLinear", &[codes.clone(), scale, zero], &format!("{codes}/dequantized"), Attributes::new())
}

/// A function of codes, by name where it is that function, else by looking it up.
fn table(writer: &mut Writer<'_>, node: &Node, table: &CodeTable) -> Result<()> {
    let (x, out) = (node.reads().next().expect("checked when the types were inferred"), node.outputs()[0]);
    let name = Operator::from(table.clone()).name();
    if let (Some(from), Some(to)) = (writer.model.grid(x), writer.model.grid(out)) {
        let codes = |f: &dyn Fn(f32) -> f32| CodeTable::of(name, from, to, f).table() == table.table();
        if codes(&|x| x) {
            let floats = writer.floats(x);
            writer.quantize(floats, out, to);
            return Ok(());
        }
        let (lo, hi) = (table.table().iter().min().copied().unwrap_or(0), table.table().iter().max().copied().unwrap_or(255));
        let bounds = (to.dequantize(lo), to.dequantize(hi));
        if codes(&|x| x.clamp(bounds.0, bounds.1)) {
            let (floats, clamped) = (writer.floats(x), between(writer, out));
            activate(writer, node.name(), Activation::Clamp { lo: bounds.0, hi: bounds.1 }, floats, &clamped);
            writer.quantize(clamped, out, to);
            return Ok(());
        }
        if let Some(values) = function(name, from, writer.opset)
            && values.iter().zip(table.table()).all(|(&value, &code)| to.quantize(value) == code)
        {
            let (floats, made) = (writer.floats(x), between(writer, out));
            writer.main(node.name(), name, &[floats], std::slice::from_ref(&made), Attributes::new());
            writer.quantize(made, out, to);
            return Ok(());
        }
    }
    let (codes, output) = (writer.name(x), writer.name(out));
    let indices = writer.value("Cast", std::slice::from_ref(&codes), &format!("{codes}/indices"), Attributes::new().with("to", DType::I32));
    let entries = writer.constant(&format!("{}.table", node.name()), Tensor::new([256], table.table().to_vec())?);
    writer.main(node.name(), "Gather", &[entries, indices], &[output], Attributes::new());
    Ok(())
}

/// What the standard's function of this name makes of the value of each code, without parameters.
fn function(name: &'static str, from: U8Grid, opset: i64) -> Option<Vec<f32>> {
    let layer = import::operator(name, opset, 1, attribute::Attributes::spelled("", name, [])).ok()?;
    if let Layer::Operator(operator) = &layer
        && !operator.operation().opsets().contains(&opset)
    {
        return None;
    }
    let codes = Tensor::new([256], (0..=255).map(|code| from.dequantize(code)).collect()).ok()?;
    let values = evaluate_within(&layer, &[Some(&Value::from(codes))], 256).ok()??;
    values.first()?.get::<f32>().map(|values| values.as_slice().to_vec())
}

/// The clamp that leaves these codes; none where quantizing does it.
fn clamp(grid: U8Grid, lo: u8, hi: u8) -> Activation {
    match (lo, hi) {
        (0, 255) => Activation::None,
        (lo, 255) if lo == grid.zero_point() => Activation::Relu,
        _ => Activation::Clamp { lo: grid.dequantize(lo), hi: grid.dequantize(hi) },
    }
}

fn activate(writer: &mut Writer<'_>, name: &str, activation: Activation, from: String, to: &str) {
    let to = [to.to_owned()];
    match activation {
        Activation::None => {}
        Activation::Relu => writer.node("Relu", &[from], &to, Attributes::new()),
        Activation::Clamp { lo, hi } => {
            let bounds = [writer.scalar(&format!("{name}/min"), lo), writer.scalar(&format!("{name}/max"), hi)];
            writer.node("Clip", &[from, bounds[0].clone(), bounds[1].clone()], &to, Attributes::new());
        }
    }
}

/// Dequantized weights: codes and scales, one for each output channel or one in all.
fn weights(writer: &mut Writer<'_>, name: &str, weight: &QuantizedTensor<i8>, transposes: bool) -> Result<String> {
    let params = weight.params();
    let codes = Tensor::new(weight.shape().dims(), weight.storage().to_vec())?;
    let codes = if transposes { transposed(&codes)? } else { codes };
    // Four bits where the codes have no more and the version knows them.
    let codes = match writer.opset >= 21 && params.qmin() >= -8 && params.qmax() <= 7 {
        true => Value::from_bytes(DType::I4, codes.shape().clone(), bytemuck::cast_slice(codes.as_slice()))?,
        false => codes.into(),
    };
    let codes = writer.constant(&format!("{name}.weight"), codes);
    let (scale, attributes) = match (params.granularity(), params.scales()) {
        (Granularity::PerTensor, &[scale]) => (writer.scalar(&format!("{name}.weight_scale"), scale), Attributes::new()),
        (_, scales) => (writer.list(&format!("{name}.weight_scale"), scales), Attributes::new().with("axis", i64::from(transposes))),
    };
    Ok(writer.value("DequantizeLinear", &[codes, scale], &format!("{name}.weight/dequantized"), attributes))
}

/// The bias as int32 codes in the unit of the sums, where floats give back the same codes; as it is where they don't, and where the
/// layer adds it to floats.
fn rounded_bias(writer: &mut Writer<'_>, name: &str, bias: &[f32], weight: &QuantizedTensor<i8>, x: f32, output: StaticOutput) -> String {
    let scales = weight.params().scales();
    let scale = |i: usize| scales[if scales.len() == 1 { 0 } else { i }];
    let unit = |i: usize| f64::from(x) * f64::from(scale(i));
    let codes: Vec<f64> = bias.iter().enumerate().map(|(i, &bias)| (f64::from(bias) / unit(i)).round_ties_even()).collect();
    let units: Vec<f32> = (0..bias.len()).map(|i| x * scale(i)).collect();
    let again = codes.iter().zip(&units).enumerate().all(|(i, (&code, &unit_f32))| {
        let float = code as f32 * unit_f32;
        unit_f32.is_normal() && code.abs() < f64::from(1 << 24) && (f64::from(float) / unit(i)).round_ties_even() == code
    });
    if output.grid().is_none() || !again {
        return writer.list(&format!("{name}.bias"), bias);
    }
    let codes: Vec<i32> = codes.iter().map(|&code| code as i32).collect();
    let codes = writer.constant(&format!("{name}.bias"), Tensor::new([codes.len()], codes).expect("a list is as long as its shape says"));
    let scale = writer.list(&format!("{name}.bias_scale"), &units);
    writer.value("DequantizeLinear", &[codes, scale], &format!("{name}.bias/dequantized"), Attributes::new().with("axis", 0i64))
}
