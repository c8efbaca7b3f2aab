//! Float layers as the operators that they came from.

use super::writer::Writer;
use crate::error::{Error, Result};
use crate::kernels::Conv2dGeometry;
use crate::nn::operator::{Attributes, Operator, ints};
use crate::nn::{Layer, Node, Projection};
use crate::tensor::{Element, Tensor, Value};

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
                let [input, hidden] = [float(input)?, float(hidden)?];
                w.push(input.weight());
                r.push(hidden.weight());
                b.list(&[bias(input), vec![-0.0; hidden.out_features()]].concat());
                peepholes.iter().for_each(|peepholes| p.list(peepholes));
            }
            let peepholes = if p.data.is_empty() { None } else { Some(p) };
            recurrent(writer, name, &mut inputs, [w, r, b], peepholes)?;
            ("LSTM", lstm.options().attributes(("input_forget", coupled)))
        }
        Layer::Gru(gru) => {
            let (reset_after, parts) = gru.parts();
            let (mut w, mut r, mut b) = (Stack::default(), Stack::default(), Stack::default());
            for (input, gates, candidate) in &parts {
                let [input, gates, candidate] = [float(input)?, float(gates)?, float(candidate)?];
                w.push(input.weight());
                let (hidden, both) = (candidate.out_features(), [gates.weight().as_slice(), candidate.weight().as_slice()].concat());
                r.push(&Tensor::new([3 * hidden, hidden], both)?);
                b.list(&[bias(input), vec![-0.0; 2 * hidden], bias(candidate)].concat());
            }
            recurrent(writer, name, &mut inputs, [w, r, b], None)?;
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
    Attributes::new()
        .with("kernel_shape", ints(kernel))
        .with("strides", ints(stride))
        .with("pads", ints(padding))
        .with("dilations", ints(dilation))
        .with("group", *groups as i64)
}

/// A matrix with its axes swapped.
pub fn transposed<T: Element>(matrix: &Tensor<T>) -> Result<Tensor<T>> {
    let &[rows, cols] = matrix.dims() else { return Err(Error::shape("weight", "[out, in]", matrix.dims())) };
    let data = matrix.as_slice();
    Tensor::new([cols, rows], (0..cols * rows).map(|i| data[i % rows * cols + i / rows]).collect())
}

/// Tensors one behind the other along a new first axis.
#[derive(Default)]
struct Stack {
    data: Vec<f32>,
    dims: Vec<usize>,
    count: usize,
}

impl Stack {
    fn push(&mut self, tensor: &Tensor) {
        self.dims = tensor.dims().to_vec();
        self.data.extend_from_slice(tensor.as_slice());
        self.count += 1;
    }

    fn list(&mut self, list: &[f32]) {
        self.dims = vec![list.len()];
        self.data.extend_from_slice(list);
        self.count += 1;
    }

    fn value(self) -> Result<Value> {
        Tensor::new([&[self.count], &self.dims[..]].concat(), self.data).map(Value::from)
    }
}

/// A recurrent layer's inputs with its weights among them: the sequence, weights and biases, lengths and states, peepholes.
fn recurrent(writer: &mut Writer<'_>, name: &str, inputs: &mut Vec<String>, weights: [Stack; 3], peepholes: Option<Stack>) -> Result<()> {
    for (i, (what, stack)) in ["W", "R", "B"].into_iter().zip(weights).enumerate() {
        inputs.insert(1 + i, writer.constant(&format!("{name}.{what}"), stack.value()?));
    }
    if let Some(peepholes) = peepholes {
        inputs.resize(7, String::new());
        inputs.push(writer.constant(&format!("{name}.P"), peepholes.value()?));
    }
    Ok(())
}

fn float(part: &Projection) -> Result<&crate::nn::Linear> {
    match part {
        Projection::Float(linear) => Ok(linear),
        Projection::Int8(_) => Err(unspoken("a recurrent layer in int8".into())),
    }
}

fn bias(linear: &crate::nn::Linear) -> Vec<f32> {
    linear.bias().map_or_else(|| vec![-0.0; linear.out_features()], |bias| bias.as_slice().to_vec())
}

/// The error of a layer that the standard has no words for.
pub fn unspoken(what: String) -> Error {
    Error::Unsupported {
        what: format!("{what} in an ONNX file"),
        way_out: "leave that layer in float (`exclude`), or save the model with `io::saved`".into(),
    }
}
