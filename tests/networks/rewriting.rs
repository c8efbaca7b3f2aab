//! What an executor runs as one node, against the nodes one by one, which a run that shows every value takes.

use lowprec::kernels::{Conv2dGeometry, Isa, RangeOf, Workspace};
use lowprec::nn::operator::{Binary, Cast, Gather, MatMul, Pow, Reduce, Reduction, ShapeOf, Softmax, Transpose, Unary};
use lowprec::nn::quantized::{DynamicScheme, Linear};
use lowprec::nn::{ConvTranspose2d, Dim, Edge, Executor, Layer, Model, ModelBuilder};
use lowprec::{DType, Tensor, Value};

fn numbers(dims: &[usize], seed: usize) -> Value {
    let count = dims.iter().product();
    let data: Vec<f32> = (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 2003.0 - 0.5) * 4.0).collect();
    Tensor::new(dims, data).unwrap().into()
}

fn scalar(net: &mut ModelBuilder, name: &str, x: f32) -> Edge {
    net.constant(name, Tensor::new(Vec::new(), vec![x]).unwrap()).unwrap()
}

/// Both ways give the same, up to rounding.
fn check(net: ModelBuilder, inputs: &[(&str, &Value)]) {
    same_both_ways(&net.build().unwrap(), inputs);
}

fn same_both_ways(model: &Model, inputs: &[(&str, &Value)]) {
    let quick = Executor::new(model).run(inputs).unwrap();
    let slow = Executor::new(model).run_with(inputs, |_| Ok(())).unwrap();
    for ((name, a), (_, b)) in quick.iter().zip(&slow) {
        assert_eq!(a.shape(), b.shape());
        let (a, b) = (a.get::<f32>().unwrap().as_slice(), b.get::<f32>().unwrap().as_slice());
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{name} {i}: {a} and {b}");
        }
    }
}

#[test]
fn gelu_in_every_order() {
    for order in 0..3 {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any]).unwrap();
        let (root, one, half) = (scalar(&mut net, "root", 2f32.sqrt()), scalar(&mut net, "one", 1.0), scalar(&mut net, "half", 0.5));
        let scaled = net.add("scaled", Binary::Div, &[x, root]).unwrap();
        let erf = net.add("erf", Unary::Erf, &[scaled]).unwrap();
        let plus = net.add("plus", Binary::Add, &[erf, one]).unwrap();
        let y = match order {
            0 => {
                let product = net.add("product", Binary::Mul, &[x, plus]).unwrap();
                net.add("y", Binary::Mul, &[product, half]).unwrap()
            }
            1 => {
                let product = net.add("product", Binary::Mul, &[plus, half]).unwrap();
                net.add("y", Binary::Mul, &[x, product]).unwrap()
            }
            _ => {
                let product = net.add("product", Binary::Mul, &[x, half]).unwrap();
                net.add("y", Binary::Mul, &[product, plus]).unwrap()
            }
        };
        net.output("y", y).unwrap();
        check(net, &[("x", &numbers(&[3, 37], order))]);
    }
}

#[test]
fn layer_norm_written_out() {
    for power in [true, false] {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(24)]).unwrap();
        let (two, epsilon) = (scalar(&mut net, "two", 2.0), scalar(&mut net, "epsilon", 1e-5));
        let gamma = net.constant("gamma", numbers(&[24], 5)).unwrap();
        let beta = net.constant("beta", numbers(&[24], 6)).unwrap();
        let mean = || Reduce::new(Reduction::Mean).with_axes([-1]);
        let m = net.add("m", mean(), &[x]).unwrap();
        let d = net.add("d", Binary::Sub, &[x, m]).unwrap();
        let square = if power { net.add("square", Pow, &[d, two]) } else { net.add("square", Binary::Mul, &[d, d]) }.unwrap();
        let variance = net.add("variance", mean(), &[square]).unwrap();
        let plus = net.add("plus", Binary::Add, &[variance, epsilon]).unwrap();
        let root = net.add("root", Unary::Sqrt, &[plus]).unwrap();
        let quotient = net.add("quotient", Binary::Div, &[d, root]).unwrap();
        let scaled = net.add("scaled", Binary::Mul, &[quotient, gamma]).unwrap();
        let y = net.add("y", Binary::Add, &[scaled, beta]).unwrap();
        net.output("y", y).unwrap();
        check(net, &[("x", &numbers(&[2, 5, 24], 7))]);
    }
}

/// Attention as an exporter spells it, for queries, keys and values `[batch, rows, heads, depth]`, with what `scaling` makes of scores.
fn attention(mask: Option<usize>, scaling: impl FnOnce(&mut ModelBuilder, [Edge; 3]) -> [Edge; 3]) -> ModelBuilder {
    let mut net = Model::builder();
    let [q, k, v] = ["q", "k", "v"].map(|name| net.input(name, DType::F32, &[Dim::Any; 4]).unwrap());
    let mut turned = |name: &str, axes: [i64; 4], x| net.add(name, Transpose::new().with_perm(axes), &[x]).unwrap();
    let (q, k) = (turned("q by heads", [0, 2, 1, 3], q), turned("k by heads", [0, 2, 3, 1], k));
    let v = turned("v by heads", [0, 2, 1, 3], v);
    let [q, k, root] = scaling(&mut net, [q, k, v]);
    let scores = net.add("scores", MatMul::new(), &[q, k]).unwrap();
    let mut x = net.add("scaled", Binary::Div, &[scores, root]).unwrap();
    if let Some(rank) = mask {
        let mask = net.input("mask", DType::F32, &vec![Dim::Any; rank]).unwrap();
        x = net.add("masked", Binary::Add, &[x, mask]).unwrap();
    }
    let weights = net.add("weights", Softmax::new(-1), &[x]).unwrap();
    let mixed = net.add("mixed", MatMul::new(), &[weights, v]).unwrap();
    let y = net.add("y", Transpose::new().with_perm([0, 2, 1, 3]), &[mixed]).unwrap();
    net.output("y", y).unwrap();
    net
}

fn by_a_number(net: &mut ModelBuilder, [q, k, _]: [Edge; 3]) -> [Edge; 3] {
    [q, k, scalar(net, "root", 2.5)]
}

#[test]
fn attention_with_and_without_a_mask() {
    let masks = [None, Some(vec![2, 1, 1, 9]), Some(vec![9, 9]), Some(vec![2, 3, 9, 1]), Some(vec![1]), Some(vec![]), Some(vec![3, 1, 9])];
    for mask in masks {
        let net = attention(mask.as_ref().map(Vec::len), by_a_number);
        let masking = mask.as_ref().map(|dims| numbers(dims, 11));
        let (q, k, v) = (numbers(&[2, 9, 3, 7], 1), numbers(&[2, 9, 3, 7], 2), numbers(&[2, 9, 3, 7], 3));
        let mut inputs = vec![("q", &q), ("k", &k), ("v", &v)];
        inputs.extend(masking.as_ref().map(|mask| ("mask", mask)));
        check(net, &inputs);
    }
}

#[test]
fn attention_scaled_before_and_by_what_shapes_say() {
    let net = attention(None, |net, [q, k, v]| {
        let half = scalar(net, "half", 0.5);
        let (q, k) = (net.add("q halved", Binary::Mul, &[half, q]).unwrap(), net.add("k halved", Binary::Mul, &[k, half]).unwrap());
        let dims = net.add("dims", ShapeOf::new(), &[v]).unwrap();
        let last = net.constant("last", Tensor::new(Vec::new(), vec![3i64]).unwrap()).unwrap();
        let depth = net.add("depth", Gather::new(0), &[dims, last]).unwrap();
        let depth = net.add("depth as a float", Cast::new(DType::F32), &[depth]).unwrap();
        [q, k, net.add("root", Unary::Sqrt, &[depth]).unwrap()]
    });
    check(net, &[("q", &numbers(&[1, 4, 2, 5], 1)), ("k", &numbers(&[1, 21, 2, 5], 2)), ("v", &numbers(&[1, 21, 2, 5], 3))]);
}

/// More rows than a tile has, more keys than a vector; masks that leave little or nothing.
#[test]
fn attention_is_the_same_on_threads_and_in_any_batch() {
    let (batch, rows, keys, heads) = (3, 150, 70, 2);
    let model = attention(Some(4), by_a_number).build().unwrap();
    let (q, k) = (numbers(&[batch, rows, heads, 40], 1), numbers(&[batch, keys, heads, 40], 2));
    let v = numbers(&[batch, keys, heads, 24], 3);
    let masking: Vec<f32> = (0..batch * keys).map(|i| if i / keys == 1 && i % keys > 9 { -1e4 } else { 0.0 }).collect();
    let mask = Value::from(Tensor::new([batch, 1, 1, keys], masking).unwrap());
    let inputs = [("q", &q), ("k", &k), ("v", &v), ("mask", &mask)];
    let whole = Executor::new(&model).with_threads(1).unwrap().run(&inputs).unwrap();
    same_both_ways(&model, &inputs);
    for threads in [2, 5] {
        assert_eq!(Executor::new(&model).with_threads(threads).unwrap().run(&inputs).unwrap(), whole);
    }
    let part = |value: &Value, i: usize| -> Value {
        let (dims, all) = (value.shape().dims(), value.get::<f32>().unwrap().as_slice());
        let size = all.len() / batch;
        Tensor::new([&[1], &dims[1..]].concat(), all[i * size..(i + 1) * size].to_vec()).unwrap().into()
    };
    for i in 0..batch {
        let parts = inputs.map(|(name, value)| (name, part(value, i)));
        let alone = Executor::new(&model).run(&parts.each_ref().map(|(name, value)| (*name, value))).unwrap();
        assert_eq!(alone[0].1, part(&whole[0].1, i));
    }
}

#[test]
fn attention_to_nothing_is_not_a_number() {
    let model = attention(Some(2), by_a_number).build().unwrap();
    let x = numbers(&[1, 3, 1, 4], 5);
    let mut mask = vec![0.0; 9];
    mask[3..6].fill(f32::NEG_INFINITY);
    mask[7] = f32::NEG_INFINITY;
    let mask = Value::from(Tensor::new([3, 3], mask).unwrap());
    let y = Executor::new(&model).run(&[("q", &x), ("k", &x), ("v", &x), ("mask", &mask)]).unwrap();
    let nan: Vec<bool> = y[0].1.get::<f32>().unwrap().as_slice().iter().map(|y| y.is_nan()).collect();
    assert_eq!(nan, [[false; 4], [true; 4], [false; 4]].concat());
}

/// Layers that read one value take its codes from each other, and a function that follows runs inside the layer: bit for bit the same.
#[test]
fn fully_connected_layers_side_by_side() {
    for (rows, range) in [(1, RangeOf::Row), (37, RangeOf::Row), (37, RangeOf::Tensor)] {
        let (mut net, mut layers) = (Model::builder(), Vec::new());
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(50)]).unwrap();
        let functions = [None, Some(Unary::Gelu), Some(Unary::GeluTanh), Some(Unary::Swish { alpha: 1.5 }), Some(Unary::Tanh)];
        for (i, function) in functions.into_iter().enumerate() {
            let Value::F32(weight) = numbers(&[35 + i, 50], i) else { unreachable!() };
            let scheme = DynamicScheme { range: if i == 3 { RangeOf::Tensor } else { range }, ..DynamicScheme::default() };
            let linear = Linear::from_float(50, 35 + i, weight.as_slice(), Some(&vec![0.25; 35 + i]), &scheme, Isa::best()).unwrap();
            let mut y = net.add(&format!("linear{i}"), linear.clone(), &[x]).unwrap();
            if let Some(function) = function {
                y = net.add(&format!("function{i}"), function, &[y]).unwrap();
            }
            net.output(&format!("y{i}"), y).unwrap();
            layers.push((linear, function));
        }
        let (model, x) = (net.build().unwrap(), numbers(&[rows, 50], 9));
        let by_itself = Executor::new(&model).run_with(&[("x", &x)], |_| Ok(())).unwrap();
        for threads in [1, 3] {
            let outputs = Executor::new(&model).with_threads(threads).unwrap().run(&[("x", &x)]).unwrap();
            assert_eq!(outputs, by_itself);
            for ((linear, function), (name, y)) in layers.iter().zip(&outputs) {
                let mut alone = vec![0.0; rows * linear.out_features()];
                linear.forward(x.get::<f32>().unwrap().as_slice(), rows, &mut alone, &mut Workspace::new(), 1).unwrap();
                if function.is_none() {
                    assert_eq!(y.get::<f32>().unwrap().as_slice(), alone, "{name}");
                }
            }
        }
    }
}

#[test]
fn a_sum_after_a_transposed_convolution() {
    for int8 in [false, true] {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
        let skip = net.input("skip", DType::F32, &[Dim::Any, Dim::Fixed(2), Dim::Any, Dim::Any]).unwrap();
        let Value::F32(weight) = numbers(&[3, 2, 2, 2], 1) else { unreachable!() };
        let conv = ConvTranspose2d::new(Conv2dGeometry::new(3, 2, [2, 2]).with_stride([2, 2]), weight, None).unwrap();
        let y = net.add("conv", conv, &[x]).unwrap();
        let y = net.add("sum", Binary::Add, &[y, skip]).unwrap();
        let y = net.add("relu", Layer::Relu, &[y]).unwrap();
        net.output("y", y).unwrap();
        let mut model = net.build().unwrap();
        if int8 {
            model = lowprec::quantize_dynamic(&model, &[lowprec::LayerKind::ConvTranspose2d]).unwrap();
        }
        same_both_ways(&model, &[("x", &numbers(&[2, 3, 4, 5], 2)), ("skip", &numbers(&[2, 2, 8, 10], 3))]);
    }
}

#[test]
fn one_transpose_on_both_sides_of_a_product() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Any]).unwrap();
    let turned = net.add("turned", Transpose::new().with_perm([1, 0, 2]), &[x]).unwrap();
    let y = net.add("y", MatMul::new(), &[turned, turned]).unwrap();
    net.output("y", y).unwrap();
    check(net, &[("x", &numbers(&[5, 3, 5], 4))]);
}

#[test]
fn numbers_that_are_only_near_are_what_they_are() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any]).unwrap();
    let (root, one, half) = (scalar(&mut net, "root", 2f32.sqrt()), scalar(&mut net, "one", 1.0005), scalar(&mut net, "half", 0.5));
    let scaled = net.add("scaled", Binary::Div, &[x, root]).unwrap();
    let erf = net.add("erf", Unary::Erf, &[scaled]).unwrap();
    let plus = net.add("plus", Binary::Add, &[erf, one]).unwrap();
    let product = net.add("product", Binary::Mul, &[x, plus]).unwrap();
    let y = net.add("y", Binary::Mul, &[product, half]).unwrap();
    net.output("y", y).unwrap();
    check(net, &[("x", &numbers(&[41], 9))]);
}

#[test]
fn a_row_that_widens_what_was_normalized() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any]).unwrap();
    let epsilon = scalar(&mut net, "epsilon", 1e-5);
    let gamma = net.constant("gamma", numbers(&[4], 5)).unwrap();
    let beta = net.constant("beta", numbers(&[4], 6)).unwrap();
    let mean = || Reduce::new(Reduction::Mean).with_axes([-1]);
    let m = net.add("m", mean(), &[x]).unwrap();
    let d = net.add("d", Binary::Sub, &[x, m]).unwrap();
    let square = net.add("square", Binary::Mul, &[d, d]).unwrap();
    let variance = net.add("variance", mean(), &[square]).unwrap();
    let plus = net.add("plus", Binary::Add, &[variance, epsilon]).unwrap();
    let root = net.add("root", Unary::Sqrt, &[plus]).unwrap();
    let quotient = net.add("quotient", Binary::Div, &[d, root]).unwrap();
    let scaled = net.add("scaled", Binary::Mul, &[quotient, gamma]).unwrap();
    let y = net.add("y", Binary::Add, &[scaled, beta]).unwrap();
    net.output("y", y).unwrap();
    // [3, 1] times [4] is [3, 4], which no normalization of [3, 1] is.
    check(net, &[("x", &numbers(&[3, 1], 8))]);
}
