//! Float layers as the operators that they came from.

use super::writer::Writer;
use crate::error::{Error, Result};
use crate::kernels::{Conv2dGeometry, Padding};
use crate::nn::operator::{Attributes, Operator, ints};
use crate::nn::{Layer, Node, Projection};
use crate::tensor::{Element, Tensor};

/// The node that computes `node` from `inputs` into `output`.
pub fn layer(writer: &mut Writer<'_>, node: &Node, mut inputs: Vec<String>, outputs: &[String]) -> Result<()> {
    let name = node.name();
    let (operator, attributes) = match node.layer() {
        Layer::Conv2d(conv) => {
            inputs.push(writer.constant(&format!("{name}.weight"), conv.weight().clone()));
            inputs.extend(conv.bias().map(|bias| writer.constant(&format!("{name}.bias"), bias.clone())));
            ("Conv", windows(conv.geometry()))
        }
        Layer::ConvTranspose2d(conv) => {
            inputs.push(writer.constant(&format!("{name}.weight"), conv.weight().clone()));
            inputs.extend(conv.bias().map(|bias| writer.constant(&format!("{name}.bias"), bias.clone())));
            ("ConvTranspose", windows(conv.geometry()).with("output_padding", ints(&conv.output_padding())))
        }
        Layer::Linear(linear) => {
            let weight = writer.constant(&format!("{name}.weight"), transposed(linear.weight())?);
            let bias = linear.bias().map(|bias| writer.constant(&format!("{name}.bias"), bias.clone()));
            let rank = writer.ranks[node.outputs()[0].index];
            product(writer, name, [inputs.remove(0), weight], (bias, rank), outputs);
            return Ok(());
        }
        Layer::Embedding(table) => {
            inputs.insert(0, writer.constant(&format!("{name}.weight"), table.weight().clone()));
            ("Gather", Attributes::new())
        }
        Layer::Lstm(lstm) => {
            let (coupled, parts) = lstm.parts();
            let (mut w, mut r, mut b, mut p) = (Stack::default(), Stack::default(), Stack::default(), Stack::default());
            for (input, hidden, peepholes) in &parts {
                let rows = w.projection(input)?;
                r.projection(hidden)?;
                b.list(&[bias(input, rows), vec![-0.0; rows]].concat());
                peepholes.iter().for_each(|peepholes| p.list(peepholes));
            }
            let peepholes = if p.data.is_empty() { None } else { Some(p) };
            recurrent(writer, name, &mut inputs, ([w, r, b], parts.len()), peepholes)?;
            ("LSTM", lstm.options().attributes(("input_forget", coupled)))
        }
        Layer::Gru(gru) => {
            let (reset_after, parts) = gru.parts();
            let (mut w, mut r, mut b) = (Stack::default(), Stack::default(), Stack::default());
            for (input, gates, candidate) in &parts {
                let rows = w.projection(input)?;
                let hidden = r.projection(gates)? / 2;
                r.projection(candidate)?;
                b.list(&[bias(input, rows), vec![-0.0; 2 * hidden], bias(candidate, hidden)].concat());
            }
            recurrent(writer, name, &mut inputs, ([w, r, b], parts.len()), None)?;
            ("GRU", gru.options().attributes(("linear_before_reset", reset_after)))
        }
        Layer::BatchNorm2d(norm) => {
            // Scale and shift are all that is left: the statistics are folded into them.
            let (scale, shift) = norm.affine();
            inputs.push(writer.list(&format!("{name}.scale"), scale));
            inputs.push(writer.list(&format!("{name}.shift"), shift));
            inputs.push(writer.list(&format!("{name}.mean"), &vec![0.0; scale.len()]));
            inputs.push(writer.list(&format!("{name}.variance"), &vec![1.0; scale.len()]));
            ("BatchNormalization", Attributes::new().with("epsilon", 0.0))
        }
        Layer::Relu => ("Relu", Attributes::new()),
        Layer::Relu6 => {
            inputs.extend([writer.scalar(&format!("{name}/min"), 0.0), writer.scalar(&format!("{name}/max"), 6.0)]);
            ("Clip", Attributes::new())
        }
        Layer::MaxPool2d(pool) => return super::operators::plain(writer, node, &Operator::Pool(pool.clone().into()), inputs, outputs),
        Layer::AvgPool2d(pool) => return super::operators::plain(writer, node, &Operator::Pool(pool.clone().into()), inputs, outputs),
        Layer::GlobalAvgPool2d(_) => ("GlobalAveragePool", Attributes::new()),
        Layer::Add => ("Add", Attributes::new()),
        Layer::Flatten { axis: 1 } => ("Flatten", Attributes::new().with("axis", 1i64)),
        Layer::Flatten { axis } => {
            // 0 copies a length, -1 takes what is left.
            let shape: Vec<i64> = std::iter::repeat_n(0, *axis).chain([-1]).collect();
            inputs.push(writer.constant(&format!("{name}/shape"), Tensor::new([shape.len()], shape)?));
            ("Reshape", Attributes::new())
        }
        Layer::Softmax { axis } => ("Softmax", Attributes::new().with("axis", *axis as i64)),
        other => return Err(unspoken(format!("{} in {}", other.kind(), other.precision()))),
    };
    writer.main(name, operator, &inputs, outputs, attributes);
    Ok(())
}

/// `x · weight + bias` with `weight` `[k, n]`: one Gemm where the product is a matrix.
pub fn product(writer: &mut Writer<'_>, name: &str, [x, weight]: [String; 2], (bias, rank): (Option<String>, usize), outputs: &[String]) {
    match bias {
        None => writer.main(name, "MatMul", &[x, weight], outputs, Attributes::new()),
        Some(bias) if rank == 2 => writer.main(name, "Gemm", &[x, weight, bias], outputs, Attributes::new()),
        Some(bias) => {
            let product = writer.free(&format!("{name}/product"));
            writer.main(name, "MatMul", &[x, weight], std::slice::from_ref(&product), Attributes::new());
            writer.node("Add", &[product, bias], outputs, Attributes::new());
        }
    }
}

/// The attributes of a convolution.
pub fn windows(geometry: &Conv2dGeometry) -> Attributes {
    let Conv2dGeometry { kernel, stride, padding, dilation, groups, .. } = geometry;
    let attributes = Attributes::new().with("kernel_shape", ints(kernel)).with("strides", ints(stride));
    let attributes = match padding {
        Padding::Fixed(pads) => attributes.with("pads", ints(pads)),
        Padding::SameUpper => attributes.with("auto_pad", "SAME_UPPER"),
        Padding::SameLower => attributes.with("auto_pad", "SAME_LOWER"),
    };
    attributes.with("dilations", ints(dilation)).with("group", *groups as i64)
}

/// A matrix with its axes swapped.
pub fn transposed<T: Element>(matrix: &Tensor<T>) -> Result<Tensor<T>> {
    let &[rows, cols] = matrix.dims() else { return Err(Error::shape("weight", "[out, in]", matrix.dims())) };
    let data = matrix.as_slice();
    Tensor::new([cols, rows], (0..cols * rows).map(|i| data[i % rows * cols + i / rows]).collect())
}

/// Rows of the parts of a recurrent layer, one behind the other.
#[derive(Default)]
struct Stack {
    data: Vec<f32>,
    /// Of rows in int8: their codes, and one scale each.
    codes: Vec<i8>,
    scales: Vec<f32>,
    columns: usize,
}

impl Stack {
    /// Adds the rows of a product; returns their number.
    fn projection(&mut self, part: &Projection) -> Result<usize> {
        let (weight, rows) = match part {
            Projection::Float(linear) => (linear.weight().clone(), linear.out_features()),
            Projection::Int8(linear) => {
                let weight = linear.weight()?;
                self.codes.extend_from_slice(weight.storage());
                match weight.params().scales() {
                    [scale] => self.scales.extend(std::iter::repeat_n(*scale, linear.out_features())),
                    scales => self.scales.extend_from_slice(scales),
                }
                (weight.dequantize(), linear.out_features())
            }
            Projection::WeightOnly(linear) => (linear.weight().dequantize()?, linear.out_features()),
        };
        self.columns = weight.dims().get(1).copied().unwrap_or(1);
        self.data.extend_from_slice(weight.as_slice());
        Ok(rows)
    }

    fn list(&mut self, list: &[f32]) {
        self.columns = 1;
        self.data.extend_from_slice(list);
    }

    /// The name of what holds them, `[parts, rows, columns]`, or `[parts, rows]` of lists.
    fn write(self, writer: &mut Writer<'_>, name: &str, parts: usize, is_list: bool) -> Result<String> {
        let rows = self.data.len().checked_div(parts * self.columns).unwrap_or(0);
        let dims = if is_list { vec![parts, rows] } else { vec![parts, rows, self.columns] };
        // As floats where some of them are.
        if self.codes.is_empty() || self.codes.len() != self.data.len() {
            return Ok(writer.constant(name, Tensor::new(dims, self.data)?));
        }
        let codes = writer.constant(name, Tensor::new([self.scales.len(), self.columns], self.codes)?);
        let scales = writer.list(&format!("{name}_scale"), &self.scales);
        let floats =
            writer.value("DequantizeLinear", &[codes, scales], &format!("{name}/dequantized"), Attributes::new().with("axis", 0i64));
        let dims: Vec<i64> = dims.into_iter().map(|length| length as i64).collect();
        let shape = writer.constant(&format!("{name}/shape"), Tensor::new([dims.len()], dims)?);
        Ok(writer.value("Reshape", &[floats, shape], &format!("{name}/parts"), Attributes::new()))
    }
}

/// A recurrent layer's inputs with its weights among them: the sequence, weights and biases, lengths and states, peepholes.
fn recurrent(
    writer: &mut Writer<'_>,
    name: &str,
    inputs: &mut Vec<String>,
    (weights, parts): ([Stack; 3], usize),
    peepholes: Option<Stack>,
) -> Result<()> {
    for (i, (what, stack)) in ["W", "R", "B"].into_iter().zip(weights).enumerate() {
        inputs.insert(1 + i, stack.write(writer, &format!("{name}.{what}"), parts, what == "B")?);
    }
    if let Some(peepholes) = peepholes {
        inputs.resize(7, String::new());
        inputs.push(peepholes.write(writer, &format!("{name}.P"), parts, true)?);
    }
    Ok(())
}

fn bias(part: &Projection, rows: usize) -> Vec<f32> {
    let bias = match part {
        Projection::Float(linear) => linear.bias().map(|bias| bias.as_slice().to_vec()),
        Projection::Int8(linear) => linear.bias().map(<[f32]>::to_vec),
        Projection::WeightOnly(linear) => linear.bias().map(<[f32]>::to_vec),
    };
    bias.unwrap_or_else(|| vec![-0.0; rows])
}

/// The error of a layer that the standard has no words for.
pub fn unspoken(what: String) -> Error {
    Error::Unsupported {
        what: format!("{what} in an ONNX file"),
        way_out: "leave that layer in float (`exclude`), or save the model with `io::saved`".into(),
    }
}
