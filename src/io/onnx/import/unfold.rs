//! Operators on codes that bring scales and zero points along: DequantizeLinear, an operator on floats and QuantizeLinear in one.
//! Where these are constant they are read as those three.

use std::rc::Rc;

use super::Importer;
use super::call::{Argument, Call, Source};
use super::codes::{Grid, WeightCodes};
use super::table::MICROSOFT;
use crate::error::{Error, Result};
use crate::nn::evaluate_within;
use crate::nn::operator::DequantizeLinear;
use crate::tensor::{DType, Tensor, Value};

/// Where an operator on codes has what.
struct Form {
    /// The operator on floats.
    operator: &'static str,
    /// Inputs that are no codes, which come first.
    others: &'static [usize],
    /// Codes, each followed by its scale and its zero point.
    codes: Vec<usize>,
    /// A bias in units of the products of the first two.
    bias: Option<usize>,
    /// Scale and zero point of the output.
    output: [usize; 2],
    /// Largest number of inputs.
    most: usize,
}

fn form(domain: &str, operator: &str, inputs: usize) -> Option<Form> {
    let one = |operator| Form { operator, others: &[], codes: vec![0], bias: None, output: [3, 4], most: 5 };
    let two = |operator| Form { operator, others: &[], codes: vec![0, 3], bias: None, output: [6, 7], most: 8 };
    Some(match (domain, operator) {
        ("", "QLinearConv") => Form { bias: Some(8), most: 9, ..two("Conv") },
        ("", "QLinearMatMul") => two("MatMul"),
        (MICROSOFT, "QGemm") => Form { bias: Some(6), output: [7, 8], most: 9, ..two("Gemm") },
        (MICROSOFT, "QLinearAdd") => two("Add"),
        (MICROSOFT, "QLinearMul") => two("Mul"),
        (MICROSOFT, "QLinearWhere") => Form { others: &[0], codes: vec![1, 4], output: [7, 8], most: 9, ..two("Where") },
        (MICROSOFT, "QLinearAveragePool") => one("AveragePool"),
        (MICROSOFT, "QLinearGlobalAveragePool") => one("GlobalAveragePool"),
        (MICROSOFT, "QLinearSigmoid") => one("Sigmoid"),
        (MICROSOFT, "QLinearLeakyRelu") => one("LeakyRelu"),
        (MICROSOFT, "QLinearSoftmax") => one("Softmax"),
        (MICROSOFT, "QLinearConcat") => Form { codes: (2..inputs).step_by(3).collect(), output: [0, 1], most: usize::MAX, ..one("Concat") },
        _ => return None,
    })
}

/// Whether the operator is one of them.
pub(super) fn knows(domain: &str, operator: &str) -> bool {
    form(domain, operator, 0).is_some()
}

/// Codes among the inputs of a node.
enum Operand {
    Constant(Argument),
    Codes(Grid),
}

impl Importer<'_> {
    /// Makes the node one on floats, if it is of this kind. QLinearConv and QLinearMatMul stay what they are where they can't be
    /// layers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for others whose parameters are not constant.
    pub(super) fn unfold(&mut self, call: &mut Call<'_>) -> Result<()> {
        let Some(form) = form(call.domain, call.operator, call.arguments.len()) else { return Ok(()) };
        if !self.is_unfolded(&form, call)? && !call.domain.is_empty() {
            return Err(Error::Unsupported {
                what: format!("{} whose scales, zero points or bias are not constant numbers of the right types", call.operator),
                way_out: "export the model as DequantizeLinear, the operator on floats and QuantizeLinear".into(),
            });
        }
        Ok(())
    }

    fn is_unfolded(&mut self, form: &Form, call: &mut Call<'_>) -> Result<bool> {
        let Some(operands) = form.codes.iter().map(|&at| operand(form, call, at)).collect::<Result<Option<Vec<_>>>>()? else {
            return Ok(false);
        };
        let is_layer = matches!(&operands[..], [_, Operand::Constant(weight)] if weight.weights.is_some());
        if call.arguments.len() > form.most || operands.is_empty() || (call.domain.is_empty() && !is_layer) {
            return Ok(false);
        }
        // Only QGemm may leave the output in floats.
        let output = match form.operator == "Gemm" && !call.has(form.output[0]) {
            true => None,
            false => {
                let dtype = call.dtype(form.output[1]).or(call.dtype(form.codes[0])).unwrap_or(DType::U8);
                let Some(grid) = Grid::of(&call.arguments, form.output, dtype) else { return Ok(false) };
                Some(grid)
            }
        };
        let bias = match form.bias.filter(|&at| call.has(at)) {
            None => None,
            Some(at) => {
                let (Some(bias), Operand::Codes(grid), Some(scales)) = (call.constant::<i32>(at), &operands[0], call.constant::<f32>(4))
                else {
                    return Ok(false);
                };
                let alpha = if form.operator == "Gemm" { call.attributes.peek_float("alpha").unwrap_or(1.0) } else { 1.0 };
                let Some(bias) = bias_floats(bias, scales, grid.scale, alpha)? else { return Ok(false) };
                Some(bias)
            }
        };
        if call.attributes.int_or("channels_last", 0)? != 0 {
            return Err(call.attributes.unsupported("channels_last", "images [n, h, w, c]", "export the model with images [n, c, h, w]"));
        }
        if form.operator == "Softmax" {
            call.opset = call.attributes.int_or("opset", 13)?;
        }
        let (mut arguments, mut sources) = (Vec::new(), Vec::new());
        for &at in form.others {
            arguments.push(call.arguments[at].clone());
            sources.push(call.sources[at]);
        }
        for (&at, operand) in form.codes.iter().zip(operands) {
            match (operand, call.sources[at]) {
                (Operand::Codes(grid), Source::Name(name)) => {
                    arguments.push(Some(Argument { dtype: DType::F32, rank: call.rank(at), constant: None, weights: None }));
                    sources.push(Source::Edge(self.floats(name, grid)?));
                }
                (Operand::Constant(argument), _) => {
                    arguments.push(Some(argument));
                    sources.push(Source::Constant);
                }
                _ => return Ok(false),
            }
        }
        if let Some(bias) = bias {
            arguments.push(Some(Argument::constant(bias.into())));
            sources.push(Source::Constant);
        }
        (call.operator, call.domain, call.arguments, call.sources, call.grid) = (form.operator, "", arguments, sources, output);
        Ok(true)
    }
}

/// The codes at this position, with their scale and zero point; `None` when these are no constants that fit.
fn operand(form: &Form, call: &Call<'_>, at: usize) -> Result<Option<Operand>> {
    let Some(dtype) = call.dtype(at) else { return Ok(None) };
    let Some(value) = call.value(at) else { return Ok(Grid::of(&call.arguments, [at + 1, at + 2], dtype).map(Operand::Codes)) };
    let (Some(scale), zero_point) = (call.value(at + 1), call.value(at + 2)) else { return Ok(None) };
    if !matches!(dtype, DType::U8 | DType::I8) || scale.dtype() != DType::F32 || (call.has(at + 2) && zero_point.is_none()) {
        return Ok(None);
    }
    let axis = match form.operator {
        "MatMul" => -1,
        "Gemm" if call.attributes.peek_int("transB") != Some(1) => 1,
        _ => 0,
    };
    let weights = WeightCodes::new(value, scale, zero_point, axis).map(Rc::new);
    let Some(floats) = floats(value, scale, zero_point, axis)? else { return Ok(None) };
    Ok(Some(Operand::Constant(Argument { weights, ..Argument::constant(floats) })))
}

fn floats(codes: &Value, scale: &Value, zero_point: Option<&Value>, axis: i64) -> Result<Option<Value>> {
    let inputs = [Some(codes), Some(scale), zero_point];
    let inputs = if zero_point.is_some() { &inputs[..] } else { &inputs[..2] };
    let values = evaluate_within(&DequantizeLinear::new(axis, 0, None).into(), inputs, codes.shape().elements())?;
    Ok(values.and_then(|values| values.into_iter().next()))
}

/// `bias · (alpha · x_scale · w_scale)`; `None` for scales that don't fit.
fn bias_floats(bias: &Tensor<i32>, scales: &Tensor, x_scale: f32, alpha: f32) -> Result<Option<Tensor>> {
    let scales = scales.as_slice();
    if scales.len() != 1 && scales.len() != bias.len() {
        return Ok(None);
    }
    let unit = |i: usize| f64::from(alpha) * f64::from(x_scale) * f64::from(scales[if scales.len() == 1 { 0 } else { i }]);
    let floats = bias.as_slice().iter().enumerate().map(|(i, &bias)| (f64::from(bias) * unit(i)) as f32).collect();
    Tensor::new(bias.dims(), floats).map(Some)
}
