//! A plain interpreter of integer models, written from the formulas, and a network that has everything they can hold.
#![allow(dead_code)]

use std::collections::HashMap;

use lowprec::kernels::{Conv2dGeometry, Padding};
use lowprec::nn::operator::{Binary, Concat, Operator, Unary};
use lowprec::nn::quantized::StaticOutput;
use lowprec::nn::{AvgPool2d, Dim, Executor, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model, Node};
use lowprec::num::{U8Grid, quantize};
use lowprec::{DType, QConfig, Tensor, Value, metrics, quantize_static};

use crate::support::{Random, conv, norm};

/// Residual sums, a depthwise and a grouped convolution, pools, a concatenation, a gate by squeeze-and-excitation, tables, and a
/// linear head.
pub fn everything(seed: u64) -> Model {
    let r = &mut Random(seed);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let same = |i, o| Conv2dGeometry::new(i, o, [3, 3]).with_padding([1; 4]);
    let one = |i, o| Conv2dGeometry::new(i, o, [1, 1]);
    let x = net.add("stem", conv(r, same(3, 20), false), &[x]).unwrap();
    let x = net.add("stem bn", norm(r, 20), &[x]).unwrap();
    let shortcut = net.add("stem relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("depthwise", conv(r, same(20, 20).with_groups(20), true), &[shortcut]).unwrap();
    let x = net.add("relu6", Layer::Relu6, &[x]).unwrap();
    let x = net.add("grouped", conv(r, same(20, 20).with_groups(4), false), &[x]).unwrap();
    let x = net.add("grouped bn", norm(r, 20), &[x]).unwrap();
    let x = net.add("sum", Layer::Add, &[x, shortcut]).unwrap();
    let x = net.add("sum relu", Layer::Relu, &[x]).unwrap();
    let pooled = net.add("max pool", MaxPool2d::new([2, 2]), &[x]).unwrap();
    let left = net.add("left", conv(r, one(20, 9), true), &[pooled]).unwrap();
    let left = net.add("swish", Unary::Swish { alpha: 1.0 }, &[left]).unwrap();
    let right = net.add("right", conv(r, same(20, 12), true), &[pooled]).unwrap();
    let x = net.add("concat", Concat::new(1), &[left, right]).unwrap();
    let squeezed = net.add("squeeze", GlobalAvgPool2d, &[x]).unwrap();
    let squeezed = net.add("excite", conv(r, one(21, 21), true), &[squeezed]).unwrap();
    let gate = net.add("gate", Unary::Sigmoid, &[squeezed]).unwrap();
    let x = net.add("gated", Binary::Mul, &[x, gate]).unwrap();
    let a = net.add("branch a", conv(r, one(21, 16), true), &[x]).unwrap();
    let b = net.add("branch b", conv(r, same(21, 16), true), &[x]).unwrap();
    let a = net.add("a tanh", Unary::Tanh, &[a]).unwrap();
    let b = net.add("b leaky", Unary::LeakyRelu { alpha: 0.1 }, &[b]).unwrap();
    let x = net.add("free sum", Layer::Add, &[a, b]).unwrap();
    let x = net.add("mean", AvgPool2d::new([2, 2]), &[x]).unwrap();
    let x = net
        .add("last", conv(r, Conv2dGeometry::new(16, 33, [3, 2]).with_stride([2, 1]).with_padding(Padding::SameUpper), true), &[x])
        .unwrap();
    let x = net.add("gap", GlobalAvgPool2d, &[x]).unwrap();
    let x = net.add("flatten", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let x = net.add("hidden", Linear::new(r.tensor([17, 33], 0.3), Some(r.tensor([17], 0.1))).unwrap(), &[x]).unwrap();
    let x = net.add("hidden relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("head", Linear::new(r.tensor([7, 17], 0.3), Some(r.tensor([7], 0.1))).unwrap(), &[x]).unwrap();
    net.output("logits", x).unwrap();
    net.build().unwrap()
}

/// Runs every node of a model by plain loops on the values that the executor showed for its inputs, and compares what it showed
/// for the outputs, bit for bit. Gives the number of nodes that were compared.
pub fn interpret(model: &Model, x: &Tensor) -> usize {
    let mut values: HashMap<String, Value> = HashMap::new();
    for (edge, value) in model.constants() {
        values.insert(model.edge_name(*edge).to_owned(), value.clone());
    }
    let mut compared = 0;
    let y = Executor::new(model)
        .with_threads(1)
        .unwrap()
        .forward_with(x, |tap| {
            if let Some(node) = tap.node {
                let inputs: Vec<&Value> = node.reads().map(|edge| &values[model.edge_name(edge)]).collect();
                let grids: Vec<Option<U8Grid>> = node.reads().map(|edge| model.grid(edge)).collect();
                let expected = plain(node, &inputs, &grids, model.grid(node.outputs()[0]), tap.value.shape().dims());
                assert_eq!(
                    tap.value.bytes(),
                    bytemuck::cast_slice::<_, u8>(&expected.0).iter().chain(&expected.1).copied().collect::<Vec<u8>>(),
                    "{}",
                    node.name()
                );
                compared += 1;
            }
            values.insert(tap.edge.to_owned(), tap.value.clone());
            Ok(())
        })
        .unwrap();
    // What runs fused gives the same.
    assert_eq!(model.forward(x).unwrap().as_slice(), y.as_slice());
    compared
}

fn codes(value: &Value) -> &[u8] {
    value.get::<u8>().expect("codes").as_slice()
}

/// What a node must write: floats, or codes.
fn plain(node: &Node, inputs: &[&Value], grids: &[Option<U8Grid>], out: Option<U8Grid>, dims: &[usize]) -> (Vec<f32>, Vec<u8>) {
    let requantized = |x: f32, (lo, hi): (u8, u8)| -> u8 {
        let zero = i32::from(out.expect("a grid").zero_point());
        (x.round_ties_even() as i64 + i64::from(zero)).clamp(lo.into(), hi.into()) as u8
    };
    let whole = (0, 255);
    match node.layer() {
        Layer::StaticConv2d(layer) => {
            let (weight, geometry) = (layer.weight().unwrap(), layer.geometry());
            let (codes_in, [n, o, h, w]) = (codes(inputs[0]), <[usize; 4]>::try_from(dims).unwrap());
            let [_, c, ih, iw] = <[usize; 4]>::try_from(inputs[0].shape().dims()).unwrap();
            let ([_, per_group, kh, kw], [top, left, ..]) = (geometry.weight_shape(), geometry.pads(ih, iw).unwrap());
            let zero = i64::from(layer.input().zero_point());
            let mut sums = Vec::new();
            for (image, channel, y, x) in
                (0..n).flat_map(|i| (0..o).flat_map(move |o| (0..h).flat_map(move |y| (0..w).map(move |x| (i, o, y, x)))))
            {
                let group = channel / (o / geometry.groups);
                let mut sum = 0i64;
                for (i, ky, kx) in (0..per_group).flat_map(|i| (0..kh).flat_map(move |ky| (0..kw).map(move |kx| (i, ky, kx)))) {
                    let row = (y * geometry.stride[0] + ky * geometry.dilation[0]).wrapping_sub(top);
                    let column = (x * geometry.stride[1] + kx * geometry.dilation[1]).wrapping_sub(left);
                    if row < ih && column < iw {
                        let code = codes_in[((image * c + group * per_group + i) * ih + row) * iw + column];
                        let weight = weight.code(((channel * per_group + i) * kh + ky) * kw + kx).unwrap();
                        sum += (i64::from(code) - zero) * i64::from(weight);
                    }
                }
                sums.push((sum, channel));
            }
            finish(&sums, weight.params().scales(), layer.bias(), layer.input(), layer.residual(), layer.output(), inputs)
        }
        Layer::StaticLinear(layer) => {
            let (weight, k, n) = (layer.weight().unwrap(), layer.in_features(), layer.out_features());
            let zero = i64::from(layer.input().zero_point());
            let row = |row: &[u8], o: usize| {
                row.iter().enumerate().map(|(i, &x)| (i64::from(x) - zero) * i64::from(weight.code(o * k + i).unwrap())).sum()
            };
            let sums: Vec<(i64, usize)> =
                codes(inputs[0]).chunks(k).flat_map(|x| (0..n).map(move |o| (x, o))).map(|(x, o)| (row(x, o), o)).collect();
            finish(&sums, weight.params().scales(), layer.bias(), layer.input(), layer.residual(), layer.output(), inputs)
        }
        Layer::Flatten { .. } => (vec![], codes(inputs[0]).to_vec()),
        Layer::Operator(operator) => {
            let grid = |i: usize| grids[i].expect("a grid");
            let real = |x: u8, i: usize| i32::from(x) - i32::from(grid(i).zero_point());
            match operator {
                Operator::QuantizeLinear(_) => {
                    let (scale, zero) = (inputs[1].get::<f32>().unwrap().as_slice()[0], codes(inputs[2])[0]);
                    assert_eq!(out, Some(U8Grid::new(scale, zero).unwrap()));
                    let x = inputs[0].get::<f32>().unwrap().as_slice();
                    (vec![], x.iter().map(|&x| quantize(x, scale, zero.into(), 0, 255) as u8).collect())
                }
                Operator::QuantizedAdd(_) => {
                    let (a, b) = (grid(0).scale() / out.unwrap().scale(), grid(1).scale() / out.unwrap().scale());
                    let sum = |(&x, &y): (&u8, &u8)| requantized(real(x, 0) as f32 * a + real(y, 1) as f32 * b, whole);
                    (vec![], codes(inputs[0]).iter().zip(codes(inputs[1])).map(sum).collect())
                }
                Operator::QuantizedMul(_) => {
                    let m = grid(0).scale() * grid(1).scale() / out.unwrap().scale();
                    // The gate is one number a channel.
                    let pixels = dims[2] * dims[3];
                    let product =
                        |(i, &x): (usize, &u8)| requantized((real(x, 0) * real(codes(inputs[1])[i / pixels], 1)) as f32 * m, whole);
                    (vec![], codes(inputs[0]).iter().enumerate().map(product).collect())
                }
                Operator::CodeTable(table) => (vec![], codes(inputs[0]).iter().map(|&x| table.table()[usize::from(x)]).collect()),
                Operator::QuantizedGlobalAvgPool(_) => {
                    let pixels: usize = inputs[0].shape().dims()[2..].iter().product();
                    let m = grid(0).scale() / (out.unwrap().scale() * pixels as f32);
                    let mean = |x: &[u8]| requantized(x.iter().map(|&x| real(x, 0)).sum::<i32>() as f32 * m, whole);
                    (vec![], codes(inputs[0]).chunks(pixels).map(mean).collect())
                }
                // Both of two by two.
                Operator::QuantizedAvgPool(_) | Operator::QuantizedMaxPool(_) => {
                    let [_, _, h, w] = <[usize; 4]>::try_from(inputs[0].shape().dims()).unwrap();
                    let m = grid(0).scale() / (out.unwrap().scale() * 4.0);
                    let mut y = Vec::new();
                    for (plane, row, column) in
                        (0..dims[0] * dims[1]).flat_map(|p| (0..dims[2]).flat_map(move |r| (0..dims[3]).map(move |c| (p, r, c))))
                    {
                        let at = |i: usize| codes(inputs[0])[plane * h * w + (2 * row + i / 2) * w + 2 * column + i % 2];
                        y.push(match operator {
                            Operator::QuantizedMaxPool(_) => (0..4).map(at).max().unwrap(),
                            _ => requantized((0..4).map(|i| real(at(i), 0)).sum::<i32>() as f32 * m, whole),
                        });
                    }
                    (vec![], y)
                }
                Operator::Concat(_) => {
                    assert!(grids.iter().all(|grid| *grid == out), "{}", node.name());
                    let each = |value: &&Value, image: usize| {
                        let part = value.bytes().len() / dims[0];
                        codes(value)[image * part..(image + 1) * part].to_vec()
                    };
                    (vec![], (0..dims[0]).flat_map(|image| inputs.iter().flat_map(move |value| each(value, image))).collect())
                }
                other => panic!("{}: {other:?} in an integer model", node.name()),
            }
        }
        other => panic!("{}: {other:?} in an integer model", node.name()),
    }
}

/// The output stage of sums, each with its channel.
fn finish(
    sums: &[(i64, usize)],
    scales: &[f32],
    bias: Option<&[f32]>,
    input: U8Grid,
    residual: Option<U8Grid>,
    output: StaticOutput,
    inputs: &[&Value],
) -> (Vec<f32>, Vec<u8>) {
    let scale = |channel: usize| scales[if scales.len() == 1 { 0 } else { channel }];
    match output {
        StaticOutput::Float(activation) => {
            let value = |&(sum, channel): &(i64, usize)| {
                let x = sum as f32 * (input.scale() * scale(channel));
                activation.apply(bias.map_or(x, |bias| x + bias[channel]))
            };
            (sums.iter().map(value).collect(), vec![])
        }
        StaticOutput::Codes { grid, lo, hi } => {
            let code = |(i, &(sum, channel)): (usize, &(i64, usize))| {
                let unit = f64::from(input.scale()) * f64::from(scale(channel));
                let bias = bias.map_or(0, |bias| (f64::from(bias[channel]) / unit).round_ties_even() as i64);
                let mut x = (sum + bias) as f32 * (input.scale() * scale(channel) / grid.scale());
                if let Some(from) = residual {
                    let r = i32::from(codes(inputs[1])[i]) - i32::from(from.zero_point());
                    x += r as f32 * (from.scale() / grid.scale());
                }
                (x.round_ties_even() as i64 + i64::from(grid.zero_point())).clamp(lo.into(), hi.into()) as u8
            };
            (vec![], sums.iter().enumerate().map(code).collect())
        }
    }
}

pub fn sqnr(model: &Model, int8: &Model, x: &Tensor) -> f64 {
    metrics::sqnr_db(model.forward(x).unwrap().as_slice(), int8.forward(x).unwrap().as_slice()).unwrap()
}

pub fn samples(seed: u64) -> Tensor {
    Random(seed).tensor([6, 3, 12, 13], 1.0)
}

pub fn observe(model: &Model, config: &QConfig, samples: &Tensor) -> Model {
    quantize_static(model, [samples], config).unwrap()
}
