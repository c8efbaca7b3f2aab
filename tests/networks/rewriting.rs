//! What an executor runs as one node, against the nodes one by one, which a run that shows every value takes.

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::operator::{Binary, MatMul, Pow, Reduce, Reduction, Softmax, Transpose, Unary};
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

#[test]
fn attention_with_and_without_a_mask() {
    for mask in [None, Some(vec![2, 1, 1, 9]), Some(vec![9, 9]), Some(vec![2, 3, 9, 1]), Some(vec![1])] {
        let mut net = Model::builder();
        let dims = [Dim::Any, Dim::Any, Dim::Any, Dim::Any];
        let q = net.input("q", DType::F32, &dims).unwrap();
        let k = net.input("k", DType::F32, &dims).unwrap();
        let v = net.input("v", DType::F32, &dims).unwrap();
        let turned = |axes: [i64; 4]| Transpose::new().with_perm(axes);
        let q = net.add("q by heads", turned([0, 2, 1, 3]), &[q]).unwrap();
        let k = net.add("k by heads", turned([0, 2, 3, 1]), &[k]).unwrap();
        let v = net.add("v by heads", turned([0, 2, 1, 3]), &[v]).unwrap();
        let root = scalar(&mut net, "root", 2.5);
        let scores = net.add("scores", MatMul::new(), &[q, k]).unwrap();
        let mut x = net.add("scaled", Binary::Div, &[scores, root]).unwrap();
        let masking = mask.as_ref().map(|dims| numbers(dims, 11));
        if let Some(masking) = &masking {
            let edge = net.input("mask", DType::F32, &vec![Dim::Any; masking.shape().rank()]).unwrap();
            x = net.add("masked", Binary::Add, &[x, edge]).unwrap();
        }
        let weights = net.add("weights", Softmax::new(-1), &[x]).unwrap();
        let mixed = net.add("mixed", MatMul::new(), &[weights, v]).unwrap();
        let y = net.add("y", turned([0, 2, 1, 3]), &[mixed]).unwrap();
        net.output("y", y).unwrap();
        let (q, k, v) = (numbers(&[2, 9, 3, 7], 1), numbers(&[2, 9, 3, 7], 2), numbers(&[2, 9, 3, 7], 3));
        let mut inputs = vec![("q", &q), ("k", &k), ("v", &v)];
        inputs.extend(masking.as_ref().map(|mask| ("mask", mask)));
        check(net, &inputs);
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
