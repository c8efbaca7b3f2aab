//! ONNX files that were written: read again, they give the same bits. (`tests/reference/exported.py` runs them in ONNX Runtime.)

use lowprec::convert::StaticScheme;
use lowprec::io::saved;
use lowprec::kernels::Padding;
use lowprec::nn::operator::{AutoPad, Conv, Unary, Windows};
use lowprec::nn::{Dim, Layer};
use lowprec::onnx::{self, Export};
use lowprec::{DType, Error, LayerKind, Model, QConfig, Scheme, Value, metrics};

use crate::networks::{Case, cases};
use crate::nodes::suite::Suite;
use crate::static_support::{everything, observe, samples};
use crate::support::Random;

/// The first sample alone, of a model that has a range for each: DynamicQuantizeLinear has one for the whole batch.
fn first(case: &Case) -> Vec<(String, Value)> {
    let take = |(name, value): &(String, Value)| {
        let value = match value {
            Value::F32(tensor) => Value::F32(tensor.slice(0, 0..1).unwrap()),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    case.inputs.iter().map(take).collect()
}

fn run(model: &Model, inputs: &[(String, Value)]) -> Vec<(String, Value)> {
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    model.run(&inputs).unwrap()
}

#[test]
fn every_network_comes_back_bit_for_bit() {
    for case in cases() {
        let written = Export::new(&case.model).to_bytes();
        if case.name == "network dynamic per tensor" {
            let error = written.unwrap_err();
            assert!(matches!(error.kind(), Error::Unsupported { .. }), "{}: {error}", case.name);
            continue;
        }
        if case.name.starts_with("sequence dynamic") {
            recurrent(&case, &written.unwrap());
            continue;
        }
        if case.name.starts_with("sequence weights") {
            alone(&case, &written.unwrap());
            continue;
        }
        let again = onnx::from_bytes(&written.unwrap()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let by_image = case.name.contains("dynamic") && !case.name.ends_with("one range");
        let inputs = if by_image { first(&case) } else { case.inputs.clone() };
        let differ = Export::new(&case.model).differences();
        assert_eq!(differ.is_empty(), !by_image, "{}: {differ:?}", case.name);
        let (expected, got) = (run(&case.model, &inputs), run(&again, &inputs));
        if case.name.starts_with("upsampled dynamic") {
            // The same codes, multiplied as floats: the sums alone are rounded.
            let [expected, got] = [&expected, &got].map(|outputs| outputs[0].1.get::<f32>().unwrap().clone());
            assert_eq!(expected.dims(), got.dims(), "{}", case.name);
            let db = metrics::sqnr_db(expected.as_slice(), got.as_slice()).unwrap();
            assert!(db > 120.0, "{}: {db} dB", case.name);
            continue;
        }
        if case.model.kinds().iter().any(|(kind, _)| *kind == LayerKind::BatchNorm2d) {
            // Files hold the scale and shift of a batch norm in f32, where a model has them in f64.
            let floats = |outputs: &[(String, Value)]| outputs[0].1.get::<f32>().unwrap().clone();
            let error = metrics::relative_error(floats(&expected).as_slice(), floats(&got).as_slice()).unwrap();
            assert!(error < 1e-6, "{}: {error}", case.name);
            continue;
        }
        let same = expected.iter().zip(&got).all(|((a, x), (b, y))| a == b && x.shape() == y.shape() && x.bytes() == y.bytes());
        assert!(same, "{}: {expected:?} {got:?}", case.name);
        if case.name.ends_with("static") {
            // What was integer is integer again.
            let layers = |model: &Model| model.nodes().iter().filter(|node| node.layer().kernel_name().is_some()).count();
            assert_eq!(layers(&again), layers(&case.model), "{}", case.name);
        }
    }
}

/// Codes of recurrent layers are multiplied as floats: near what they give here, and it is said.
fn recurrent(case: &Case, written: &[u8]) {
    let again = onnx::from_bytes(written).unwrap();
    let (expected, got) = (run(&case.model, &case.inputs), run(&again, &case.inputs));
    for ((name, expected), (_, got)) in expected.iter().zip(&got) {
        let [expected, got] = [expected, got].map(|value| value.get::<f32>().unwrap().clone());
        let db = metrics::sqnr_db(expected.as_slice(), got.as_slice()).unwrap();
        assert!(db > 30.0 && db < 90.0, "{name}: {db} dB");
    }
    let differ: Vec<&str> = Export::new(&case.model).differences().into_iter().map(|(name, _)| name).collect();
    let expected: &[&str] = if case.name.ends_with("one range") { &["lstm", "gru"] } else { &["lstm", "gru", "head"] };
    assert_eq!(differ, expected, "{}", case.name);
    // The layers that it gives hold what the codes stand for.
    let float = lowprec::quantize_dynamic(&again, &[LayerKind::Lstm, LayerKind::Gru]).unwrap();
    let bytes = |model: &Model, name: &str| model.node(name).unwrap().layer().bytes();
    assert!(["lstm", "gru"].iter().all(|name| bytes(&float, name) == bytes(&case.model, name)));
}

/// Recurrent weights of few bits are floats in a file: the same numbers, multiplied otherwise; and activations in bytes are told of.
fn alone(case: &Case, written: &[u8]) {
    let again = onnx::from_bytes(written).unwrap();
    let (expected, got) = (run(&case.model, &case.inputs), run(&again, &case.inputs));
    let [expected, got] = [&expected, &got].map(|outputs| outputs[0].1.get::<f32>().unwrap().clone());
    let db = metrics::sqnr_db(expected.as_slice(), got.as_slice()).unwrap();
    let differ: Vec<&str> = Export::new(&case.model).differences().into_iter().map(|(name, _)| name).collect();
    match case.name.ends_with("bytes") {
        true => assert!(differ == ["lstm", "gru", "head"] && (30.0..90.0).contains(&db), "{differ:?}, {db} dB"),
        false => assert!(differ.is_empty() && db > 120.0, "{differ:?}, {db} dB"),
    }
}

/// All of them: the standard has words for whatever it gave.
#[test]
fn every_operator_comes_back() {
    let same = |a: &Value, b: &Value| (a.dtype(), a.shape(), a.bytes()) == (b.dtype(), b.shape(), b.bytes());
    let mut problems = Vec::new();
    for (name, case) in &Suite::load().cases {
        let model = onnx::from_bytes(&case.model).unwrap();
        let inputs: Vec<(&str, &Value)> = case.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let given = model.inputs().iter().map(|input| case.inputs[input.name()].clone()).collect();
        let bytes = match Export::new(&model).with_inputs(given).to_bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let again = match onnx::from_bytes(&bytes) {
            Ok(again) => again,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (expected, got) = (model.run(&inputs).unwrap(), again.run(&inputs).unwrap());
        if !expected.iter().zip(&got).all(|((a, x), (b, y))| a == b && same(x, y)) {
            problems.push(format!("{name}: another result"));
        }
    }
    assert!(problems.is_empty(), "{} problems: {problems:#?}", problems.len());
}

/// GELU is one operator where the version has it, else written out so that it is one when read again.
#[test]
fn gelu_is_written_out_for_older_versions() {
    for gelu in [Unary::Gelu, Unary::GeluTanh] {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any]).unwrap();
        let y = net.add("gelu", gelu, &[x]).unwrap();
        net.output("y", y).unwrap();
        let model = net.build().unwrap();
        let x = Random(72).tensor([3, 41], 3.0);
        for (opset, nodes) in [(None, 2), (Some(20), 2), (Some(17), if gelu == Unary::Gelu { 6 } else { 10 })] {
            let export = match opset {
                Some(opset) => Export::new(&model).with_opset(opset).unwrap(),
                None => Export::new(&model),
            };
            let again = onnx::from_bytes(&export.to_bytes().unwrap()).unwrap();
            assert_eq!(again.nodes().len(), nodes, "{gelu:?} {opset:?}");
            assert_eq!(again.forward(&x).unwrap(), model.forward(&x).unwrap(), "{gelu:?} {opset:?}");
        }
    }
}

/// Padding that depends on the image's size, as TensorFlow exports it: a layer all the same, which can be quantized.
#[test]
fn padding_by_a_rule_makes_a_layer() {
    let (mut random, dims) = (Random(71), [8, 3, 3, 3]);
    let weight = random.tensor(dims, 1.0);
    for (auto_pad, rule) in [(AutoPad::SameUpper, Padding::SameUpper), (AutoPad::SameLower, Padding::SameLower)] {
        for (stride, padding) in [([2, 2], rule), ([2, 1], rule), ([1, 1], Padding::Fixed([1; 4]))] {
            let mut net = Model::builder();
            let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
            let constant = net.constant("weight", Value::from(weight.clone())).unwrap();
            let windows = Windows::new().with_strides(stride).with_auto_pad(auto_pad);
            let y = net.add("conv", Conv::new(1).with_windows(windows), &[x, constant]).unwrap();
            net.output("y", y).unwrap();
            let model = net.build().unwrap();
            let again = onnx::from_bytes(&Export::new(&model).to_bytes().unwrap()).unwrap();
            let Layer::Conv2d(conv) = again.node("conv").unwrap().layer() else { panic!("{:?}", again.kinds()) };
            assert_eq!(conv.geometry().padding, padding, "{auto_pad:?} {stride:?}");
            let int8 = lowprec::quantize_dynamic(&again, &[LayerKind::Conv2d]).unwrap();
            for size in [[1, 1], [6, 7], [9, 4]] {
                let x = random.tensor([2, 3, size[0], size[1]], 1.0);
                let expected = model.forward(&x).unwrap();
                let (y, rounded) = (again.forward(&x).unwrap(), int8.forward(&x).unwrap());
                assert!(y.dims() == expected.dims() && rounded.dims() == expected.dims(), "{:?} {:?}", y.dims(), expected.dims());
                assert!(metrics::relative_error(expected.as_slice(), y.as_slice()).unwrap() < 1e-6, "{auto_pad:?} {stride:?} {size:?}");
                assert!(metrics::sqnr_db(expected.as_slice(), rounded.as_slice()).unwrap() > 30.0, "{auto_pad:?} {stride:?} {size:?}");
            }
        }
    }
}

/// The same along one axis, where a layer of images of one row stands for the convolution.
#[test]
fn padding_by_a_rule_along_one_axis() {
    let mut random = Random(73);
    let weight = random.tensor([5, 3, 4], 1.0);
    for auto_pad in [AutoPad::SameUpper, AutoPad::SameLower] {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any]).unwrap();
        let constant = net.constant("weight", Value::from(weight.clone())).unwrap();
        let conv = Conv::new(1).with_windows(Windows::new().with_strides([2]).with_auto_pad(auto_pad));
        let y = net.add("conv", conv, &[x, constant]).unwrap();
        net.output("y", y).unwrap();
        let model = net.build().unwrap();
        let again = onnx::from_bytes(&Export::new(&model).to_bytes().unwrap()).unwrap();
        assert!(matches!(again.node("conv").unwrap().layer(), Layer::Conv2d(_)), "{:?}", again.kinds());
        let saved = saved::read(&saved::write(&again).unwrap()).unwrap();
        for length in [1, 6, 9] {
            let x = random.tensor([2, 3, length], 1.0);
            let (expected, y) = (model.forward(&x).unwrap(), again.forward(&x).unwrap());
            assert_eq!((y.dims(), y.dims()[2]), (expected.dims(), length.div_ceil(2)), "{auto_pad:?} {length}");
            assert!(metrics::relative_error(expected.as_slice(), y.as_slice()).unwrap() < 1e-6, "{auto_pad:?} {length}");
            assert_eq!(saved.forward(&x).unwrap(), y, "{auto_pad:?} {length}");
        }
    }
}

#[test]
fn four_bits_are_four_where_the_version_has_them() {
    let config = QConfig::new(StaticScheme::default().with_weights(Scheme::INT4_WEIGHT));
    let model = observe(&everything(6), &config, &samples(13));
    let x = Random(14).tensor([2, 3, 14, 11], 1.0);
    let expected = model.forward(&x).unwrap();
    let files = [13, 20, 21].map(|opset| Export::new(&model).with_opset(opset).unwrap().to_bytes().unwrap());
    for file in &files {
        assert_eq!(onnx::from_bytes(file).unwrap().forward(&x).unwrap(), expected);
    }
    let codes: usize = model.nodes().iter().map(|node| node.layer().weight_bytes()).sum();
    assert!(files[2].len() + codes / 4 < files[0].len(), "{} and {} bytes", files[2].len(), files[0].len());
    assert!(Export::new(&model).with_opset(12).is_err() && Export::new(&model).with_opset(22).is_err());
}

#[test]
fn what_a_version_does_not_have_is_named() {
    use lowprec::nn::Dim;
    use lowprec::nn::operator::Unary;
    let mut net = Model::builder();
    let x = net.input("x", lowprec::DType::F32, &[Dim::Any]).unwrap();
    let y = net.add("mish", Unary::Mish, &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    // The least version that has it, unless another one is asked for.
    assert!(Export::new(&model).to_bytes().is_ok());
    let error = Export::new(&model).with_opset(17).unwrap().to_bytes().unwrap_err().to_string();
    assert!(error.contains("`mish`") && error.contains("Mish") && error.contains("18"), "{error}");
}
