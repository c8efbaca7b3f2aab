//! Gradients of every operation against PyTorch's, and of a whole network against finite differences.

use lowprec::kernels::{Conv2dGeometry, Padding};
use lowprec::nn::operator::{
    Binary, Clip, Concat, GlobalPool, LayerNormalization, MatMul, Pool, Reduce, Reduction, Reshape, Softmax, Transpose, Unary,
};
use lowprec::nn::{AvgPool2d, BatchNorm2d, Conv2d, Dim, Embedding, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model, ModelBuilder};
use lowprec::train::{Mode, Network, Tape, Trainable, cross_entropy, distillation, mean_squared_error};
use lowprec::{DType, Error, Tensor, Value};

use crate::{Fixture, close};

/// Relative to the norm of PyTorch's gradient.
const LIMIT: f64 = 1e-4;

/// Runs one layer over the case's inputs and compares its output, and the gradients by inputs and parameters.
pub(crate) fn check(fixture: &Fixture, case: &str, mode: Mode, inputs: &[&str], learned: &[&str], layer: impl Into<Layer>) {
    check_with(fixture, case, mode, inputs, &[], learned, layer.into());
}

/// As [`check`], with further inputs that are constants.
pub(crate) fn check_with(
    fixture: &Fixture,
    case: &str,
    mode: Mode,
    inputs: &[&str],
    constants: &[(&str, Value)],
    learned: &[&str],
    layer: Layer,
) {
    let mut net = Model::builder();
    let mut edges = Vec::new();
    for name in inputs {
        let value = fixture.value(&format!("{case}/{name}"));
        edges.push(net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()]).unwrap());
    }
    for (name, value) in constants {
        edges.push(net.constant(name, value.clone()).unwrap());
    }
    let y = net.add("layer", layer, &edges).unwrap();
    net.output("y", y).unwrap();
    check_model(fixture, case, mode, inputs, learned, &net.build().unwrap());
}

/// Compares a model's output, and its gradients by inputs and parameters, with the fixture's and with the slopes of what it computes.
pub(crate) fn check_model(fixture: &Fixture, case: &str, mode: Mode, inputs: &[&str], learned: &[&str], model: &Model) {
    let mut network = Network::new(model).unwrap().with_input_gradients().unwrap();
    let mut values: Vec<_> = inputs.iter().map(|name| (*name, fixture.value(&format!("{case}/{name}")).clone())).collect();
    let run = |network: &mut Network, values: &[(&str, Value)]| {
        let values: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
        network.run(&values, mode).unwrap_or_else(|error| panic!("{case}: {error}"))
    };
    let start: Vec<Tensor> = network.parameters().iter().map(|parameter| parameter.value().clone()).collect();
    let tape = run(&mut network, &values);
    close(&format!("{case}: y"), tape.output().as_slice(), fixture.floats(&format!("{case}/y")).as_slice(), LIMIT);
    let g = fixture.floats(&format!("{case}/g"));
    let gradients = network.backward(&tape, &[("y", &g)]).unwrap_or_else(|error| panic!("{case}: {error}"));
    let loss = |tape: &Tape| tape.output().as_slice().iter().zip(g.as_slice()).map(|(&y, &g)| f64::from(y) * f64::from(g)).sum::<f64>();
    for index in 0..inputs.len() {
        let (name, value) = values[index].clone();
        if fixture.has(&format!("{case}/d.{name}")) {
            let gradient = gradients.input(name).unwrap().as_slice();
            close(&format!("{case}: d {name}"), gradient, fixture.floats(&format!("{case}/d.{name}")).as_slice(), LIMIT);
            has_slope(&format!("{case}: d {name}"), value.get::<f32>().unwrap(), gradient, |moved| {
                values[index].1 = moved.into();
                loss(&run(&mut network, &values))
            });
            values[index].1 = value;
        }
    }
    for (index, name) in learned.iter().enumerate() {
        let expected = fixture.floats(&format!("{case}/d.{name}"));
        close(&format!("{case}: d {name}"), gradients.get(index), expected.as_slice(), LIMIT);
        has_slope(&format!("{case}: d {name}"), &start[index], gradients.get(index), |moved| {
            *network.parameters_mut()[index].value_mut() = moved;
            loss(&run(&mut network, &values))
        });
        *network.parameters_mut()[index].value_mut() = start[index].clone();
    }
}

/// Along its own gradient the slope is largest, and rounding least in the way.
fn has_slope(what: &str, start: &Tensor, gradient: &[f32], mut loss: impl FnMut(Tensor) -> f64) {
    let length = gradient.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>();
    let mut at = |step: f64| {
        let moved = start.as_slice().iter().zip(gradient).map(|(&w, &d)| (f64::from(w) + step * f64::from(d)) as f32);
        loss(Tensor::new(start.dims(), moved.collect()).unwrap())
    };
    // Where all slopes are zero nothing moves.
    let step = 2e-3 / length.sqrt().max(1e-6);
    let slope = (at(step) - at(-step)) / (2.0 * step);
    assert!((slope - length).abs() <= 4e-3 * length, "{what}: {slope} along a gradient of {length}");
}

fn conv(fixture: &Fixture, case: &str, geometry: Conv2dGeometry) {
    let bias = format!("{case}/bias");
    let bias = fixture.has(&bias).then(|| fixture.floats(&bias));
    let learned: &[&str] = if bias.is_some() { &["weight", "bias"] } else { &["weight"] };
    let layer = Conv2d::new(geometry, fixture.floats(&format!("{case}/weight")), bias).unwrap();
    check(fixture, case, Mode::Train, &["x"], learned, layer);
}

/// Padding by a rule learns as the padding that it stands for, whichever way gradients go back.
#[test]
fn padding_by_a_rule_is_the_padding_it_stands_for() {
    let of = |i, o, kernel| Conv2dGeometry::new(i, o, kernel);
    // Height and width, and what the rule adds to them, an odd one at the end.
    let cases = [
        (of(3, 5, [4, 2]), [6, 7], [1, 0, 2, 1]),
        (of(4, 6, [3, 4]).with_groups(2).with_stride([2, 3]), [7, 8], [1, 1, 1, 1]),
        (of(2, 3, [3, 3]).with_stride([2, 2]), [8, 6], [0, 0, 1, 1]),
        (of(2, 3, [2, 1]).with_stride([3, 2]), [9, 4], [0, 0, 0, 0]),
    ];
    let numbers = |dims: &[usize], seed: usize| {
        let count = dims.iter().product();
        let data: Vec<f32> = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 2003.0 - 0.5).collect();
        Tensor::new(dims, data).unwrap()
    };
    for (geometry, [h, w], [top, left, bottom, right]) in cases {
        let x: Value = numbers(&[2, geometry.in_channels, h, w], 1).into();
        let run = |padding: Padding| {
            let geometry = geometry.clone().with_padding(padding);
            let mut net = Model::builder();
            let input = net.input("x", DType::F32, &[Dim::Any; 4]).unwrap();
            let layer =
                Conv2d::new(geometry.clone(), numbers(&geometry.weight_shape(), 2), Some(numbers(&[geometry.out_channels], 3))).unwrap();
            let y = net.add("conv", layer, &[input]).unwrap();
            net.output("y", y).unwrap();
            let mut network = Network::new(&net.build().unwrap()).unwrap().with_input_gradients().unwrap();
            let tape = network.run(&[("x", &x)], Mode::Train).unwrap();
            let y = tape.output().clone();
            let gradients = network.backward(&tape, &[("y", &numbers(y.dims(), 4))]).unwrap();
            (y, gradients.input("x").unwrap().clone(), gradients.get(0).to_vec(), gradients.get(1).to_vec())
        };
        assert_eq!(run(Padding::SameUpper), run(Padding::Fixed([top, left, bottom, right])), "{geometry:?}");
        assert_eq!(run(Padding::SameLower), run(Padding::Fixed([bottom, right, top, left])), "{geometry:?}");
    }
}

#[test]
fn convolutions_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let conv = |case: &str, geometry| conv(&fixture, case, geometry);
    conv("conv", Conv2dGeometry::new(3, 5, [3, 3]).with_padding([1; 4]));
    conv("conv_strided", Conv2dGeometry::new(3, 4, [3, 2]).with_stride([2, 3]).with_padding([1, 0, 1, 0]));
    conv("conv_dilated", Conv2dGeometry::new(2, 3, [2, 3]).with_dilation([2, 1]).with_padding([1, 2, 1, 2]));
    conv("conv_padded", Conv2dGeometry::new(2, 3, [2, 2]).with_padding([2; 4]));
    conv("conv_grouped", Conv2dGeometry::new(4, 6, [3, 3]).with_groups(2).with_padding([1; 4]));
    conv("conv_depthwise", Conv2dGeometry::new(4, 4, [3, 3]).with_groups(4).with_padding([1; 4]).with_stride([2, 2]));
    conv("conv_multiplied", Conv2dGeometry::new(3, 6, [3, 3]).with_groups(3));
}

#[test]
fn layers_with_parameters_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let floats = |name: &str| fixture.floats(name);
    let linear = Linear::new(floats("linear/weight"), Some(floats("linear/bias"))).unwrap();
    check(&fixture, "linear", Mode::Train, &["input"], &["weight", "bias"], linear);
    for (case, mode) in [("batch_norm_batch", Mode::Train), ("batch_norm_running", Mode::Evaluate)] {
        let [weight, bias, mean, variance] = ["weight", "bias", "mean", "variance"].map(|name| floats(&format!("{case}/{name}")));
        let norm = BatchNorm2d::new(weight, bias, mean, variance, 1e-5).unwrap();
        check(&fixture, case, mode, &["x"], &["weight", "bias"], norm);
    }
    let table = Embedding::new(floats("embedding/weight")).unwrap();
    check(&fixture, "embedding", Mode::Train, &["indices"], &["weight"], table);
    let constant = |name: &'static str, case: &str| (name, Value::from(fixture.floats(&format!("{case}/{name}"))));
    let norm = LayerNormalization::new(-1, 1e-5).into();
    let constants = [constant("scale", "layer_norm"), constant("bias", "layer_norm")];
    check_with(&fixture, "layer_norm", Mode::Train, &["x"], &constants, &["scale", "bias"], norm);
    let norm = LayerNormalization::rms(-1, 1e-5).into();
    check_with(&fixture, "rms_norm", Mode::Train, &["x"], &[constant("scale", "rms_norm")], &["scale"], norm);
    check_with(&fixture, "prelu", Mode::Train, &["x"], &[constant("slope", "prelu")], &["slope"], Binary::PRelu.into());
}

#[test]
fn functions_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let selu = Unary::Selu { alpha: 1.673_263_2, gamma: 1.050_701 };
    let functions = [
        ("leaky_relu", Unary::LeakyRelu { alpha: 0.1 }),
        ("elu", Unary::Elu { alpha: 0.7 }),
        ("selu", selu),
        ("celu", Unary::Celu { alpha: 0.7 }),
        ("relu", Unary::Relu),
        ("sigmoid", Unary::Sigmoid),
        ("tanh", Unary::Tanh),
        ("hard_sigmoid", Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }),
        ("hard_swish", Unary::HardSwish),
        ("silu", Unary::Swish { alpha: 1.0 }),
        ("gelu", Unary::Gelu),
        ("gelu_tanh", Unary::GeluTanh),
        ("softplus", Unary::Softplus),
        ("softsign", Unary::Softsign),
        ("mish", Unary::Mish),
        ("exp", Unary::Exp),
        ("erf", Unary::Erf),
        ("abs", Unary::Abs),
        ("neg", Unary::Neg),
        ("sin", Unary::Sin),
        ("cos", Unary::Cos),
        ("atan", Unary::Atan),
        ("log", Unary::Log),
        ("sqrt", Unary::Sqrt),
        ("reciprocal", Unary::Reciprocal),
    ];
    for (case, function) in functions {
        check(&fixture, case, Mode::Train, &["x"], &[], function);
    }
    check(&fixture, "relu", Mode::Train, &["x"], &[], Layer::Relu);
    check(&fixture, "relu6", Mode::Train, &["x"], &[], Layer::Relu6);
    check(&fixture, "clip", Mode::Train, &["x"], &[], Clip::new().with_bounds(Some(-0.5), Some(2.0)));
}

#[test]
fn pooling_and_operators_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let one = |case: &str, layer: Layer| check(&fixture, case, Mode::Train, &["x"], &[], layer);
    one("max_pool", MaxPool2d::new([2, 2]).into());
    one("max_pool", Pool::max([2, 2]).with_windows(lowprec::nn::operator::Windows::new().with_strides([2, 2])).into());
    one("max_pool_padded", MaxPool2d::new([3, 3]).with_stride([2, 2]).with_padding([1; 4]).into());
    one("avg_pool", AvgPool2d::new([3, 3]).with_stride([2, 2]).with_padding([1; 4]).into());
    one("avg_pool_inside", AvgPool2d::new([3, 3]).with_stride([2, 2]).with_padding([1; 4]).with_count_include_pad(false).into());
    one("global_avg_pool", GlobalAvgPool2d.into());
    one("global_avg_pool", GlobalPool::average().into());
    one("flatten", Layer::Flatten { axis: 1 });
    one("transpose", Transpose::new().with_perm([0, 2, 3, 1]).into());
    one("softmax", Layer::Softmax { axis: 1 });
    one("softmax_inner", Softmax::new(1).into());
    one("log_softmax", Softmax::log(-1).into());
    one("reduce_mean", Reduce::new(Reduction::Mean).with_axes([1, 2]).into());
    one("reduce_sum", Reduce::new(Reduction::Sum).with_axes([-1]).with_kept_axes(false).into());
    let shape = Value::from(Tensor::new([3], vec![2i64, 6, 2]).unwrap());
    check_with(&fixture, "reshape", Mode::Train, &["x"], &[("shape", shape)], &[], Reshape::new().into());
    let two = |case: &str, layer: Layer| check(&fixture, case, Mode::Train, &["input", "other"], &[], layer);
    two("add", Layer::Add);
    two("add", Binary::Add.into());
    two("add_spread", Binary::Add.into());
    two("sub", Binary::Sub.into());
    two("mul", Binary::Mul.into());
    two("mul_gate", Binary::Mul.into());
    two("div", Binary::Div.into());
    two("matmul", MatMul::new().into());
    two("matmul_spread", MatMul::new().into());
    check(&fixture, "concat", Mode::Train, &["a", "b"], &[], Concat::new(1));
}

#[test]
fn losses_are_pytorchs() {
    let fixture = Fixture::new("gradients.safetensors");
    let floats = |name: &str| fixture.floats(name);
    let compare = |case: &str, (loss, gradient): (f64, Tensor)| {
        close(case, &[loss as f32], floats(&format!("{case}/y")).as_slice(), LIMIT);
        close(case, gradient.as_slice(), floats(&format!("{case}/d.x")).as_slice(), LIMIT);
    };
    let labels: Vec<usize> =
        fixture.value("cross_entropy/labels").get::<i64>().unwrap().as_slice().iter().map(|&label| label as usize).collect();
    compare("cross_entropy", cross_entropy(&floats("cross_entropy/x"), &labels, 0.0).unwrap());
    // A class that is masked out.
    let masked = Tensor::new([1, 3], vec![1.0, f32::NEG_INFINITY, 2.0]).unwrap();
    let (loss, gradient) = cross_entropy(&masked, &[2], 0.0).unwrap();
    assert!((loss - (1.0f64 + (-1.0f64).exp()).ln()).abs() < 1e-6 && gradient.as_slice()[1] == 0.0, "{loss}");
    compare("cross_entropy_smooth", cross_entropy(&floats("cross_entropy_smooth/x"), &labels, 0.1).unwrap());
    compare("mean_squared_error", mean_squared_error(&floats("mean_squared_error/x"), &floats("mean_squared_error/target")).unwrap());
    compare("distillation", distillation(&floats("distillation/x"), &floats("distillation/teacher"), 3.0).unwrap());
}

/// Numbers that look random and are the same every time.
pub(crate) fn numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    (0..count as u64).map(|i| scale * (2.0 * lowprec::quant::random_unit(seed, i) - 1.0)).collect()
}

pub(crate) fn tensor(dims: &[usize], seed: u64, scale: f32) -> Tensor {
    Tensor::new(dims, numbers(dims.iter().product(), seed, scale)).unwrap()
}

/// Smooth everywhere, with branches, so that differences mean something.
fn smooth(net: &mut ModelBuilder) {
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2), Dim::Fixed(6), Dim::Fixed(6)]).unwrap();
    let conv = |inputs, outputs, seed: u64| {
        let geometry = Conv2dGeometry::new(inputs, outputs, [3, 3]).with_padding([1; 4]);
        Conv2d::new(geometry, tensor(&[outputs, inputs, 3, 3], seed, 0.4), Some(tensor(&[outputs], seed + 1, 0.2))).unwrap()
    };
    let a = net.add("conv1", conv(2, 4, 1), &[x]).unwrap();
    let one = |value| Tensor::full([4], value).unwrap();
    let norm = BatchNorm2d::new(one(1.2), one(0.1), one(0.0), one(1.0), 1e-5).unwrap();
    let a = net.add("norm", norm, &[a]).unwrap();
    let a = net.add("gelu", Unary::Gelu, &[a]).unwrap();
    let b = net.add("conv2", conv(4, 4, 3), &[a]).unwrap();
    let gate = net.add("gate", Unary::Sigmoid, &[b]).unwrap();
    let b = net.add("gated", Binary::Mul, &[b, gate]).unwrap();
    let sum = net.add("sum", Layer::Add, &[a, b]).unwrap();
    let both = net.add("both", Concat::new(1), &[sum, a]).unwrap();
    let y = net.add("pool", AvgPool2d::new([2, 2]), &[both]).unwrap();
    let y = net.add("flat", Layer::Flatten { axis: 1 }, &[y]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[5, 72], 5, 0.3), Some(tensor(&[5], 6, 0.1))).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
}

#[test]
fn a_whole_network_has_the_slope_of_its_loss() {
    let mut net = Model::builder();
    smooth(&mut net);
    let mut network = Network::new(&net.build().unwrap()).unwrap();
    let (x, labels) = (tensor(&[4, 2, 6, 6], 9, 1.0), [0, 3, 4, 1]);
    let tape = network.forward(&x, Mode::Train).unwrap();
    let (_, gradient) = cross_entropy(tape.output(), &labels, 0.0).unwrap();
    let gradients = network.backward(&tape, &[("y", &gradient)]).unwrap();
    let start: Vec<Tensor> = network.parameters().iter().map(|parameter| parameter.value().clone()).collect();
    for index in (0..start.len()).filter(|&index| !gradients.get(index).is_empty()) {
        // Along its own gradient the slope is largest, and rounding least in the way.
        let direction = gradients.get(index).to_vec();
        let length = direction.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>();
        let mut at = |step: f64| {
            let moved = start[index].as_slice().iter().zip(&direction).map(|(&w, &d)| (f64::from(w) + step * f64::from(d)) as f32);
            *network.parameters_mut()[index].value_mut() = Tensor::new(start[index].dims(), moved.collect()).unwrap();
            let tape = network.forward(&x, Mode::Train).unwrap();
            cross_entropy(tape.output(), &labels, 0.0).unwrap().0
        };
        let step = 0.01 / length.sqrt();
        let slope = (at(step) - at(-step)) / (2.0 * step);
        at(0.0);
        let name = network.parameters()[index].name();
        // What a convolution adds before a batch norm is taken off again.
        if name != "conv1.bias" {
            assert!((slope / length - 1.0).abs() < 2e-3, "{name}: {slope} of {length}");
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut net = Model::builder();
    smooth(&mut net);
    let model = net.build().unwrap();
    // So many that products and functions are shared out: fewer than 2^21 multiplications and 2^15 numbers are not.
    let x = tensor(&[1500, 2, 6, 6], 9, 1.0);
    let run = |threads: usize| {
        let mut network = Network::new(&model).unwrap().with_threads(threads).unwrap();
        let tape = network.forward(&x, Mode::Train).unwrap();
        let (_, gradient) = cross_entropy(tape.output(), &[2; 1500], 0.1).unwrap();
        network.backward(&tape, &[("y", &gradient)]).unwrap()
    };
    let one = run(1);
    assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn what_has_no_derivative_is_named() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3)]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[3, 3], 1, 1.0), None).unwrap(), &[x]).unwrap();
    let y = net.add("steps", Unary::Round, &[y]).unwrap();
    net.output("y", y).unwrap();
    let error = Network::new(&net.build().unwrap()).unwrap_err();
    assert!(matches!(error.kind(), Error::Unsupported { .. }) && error.to_string().contains("`steps`"), "{error}");

    // Before everything that is learned it only has to run.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3)]).unwrap();
    let y = net.add("steps", Unary::Round, &[x]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[3, 3], 1, 1.0), None).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
    let mut network = Network::new(&net.build().unwrap()).unwrap();
    let x = tensor(&[2, 3], 2, 3.0);
    let tape = network.forward(&x, Mode::Train).unwrap();
    let gradients = network.backward(&tape, &[("y", &Tensor::full([2, 3], 1.0).unwrap())]).unwrap();
    let column = |i: usize| x.as_slice()[i].round_ties_even() + x.as_slice()[3 + i].round_ties_even();
    assert_eq!(gradients.get(0), [column(0), column(1), column(2)].repeat(3));
    assert!(gradients.input("x").is_none());
    let wrong = network.backward(&tape, &[("z", &x)]).unwrap_err();
    assert!(matches!(wrong, Error::Unknown { .. }), "{wrong}");
    assert!(matches!(network.backward(&tape, &[("y", &tensor(&[3, 2], 1, 1.0))]).unwrap_err(), Error::Shape { .. }));
}
