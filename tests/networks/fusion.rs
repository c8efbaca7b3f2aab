//! Batch norm folded into convolutions: where it is, the function stays the same; where it is not, the model says why.

use crate::support::{Random, network, norm};
use lowprec::convert::fold_batch_norm;
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{BatchNorm2d, Conv2d, Dim, Edge, Layer, Model, ModelBuilder, Precision, Skipped};
use lowprec::{DType, LayerKind, NonFinite, Tensor, quantize_dynamic};

fn image(channels: usize) -> (ModelBuilder, Edge) {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(channels), Dim::Any, Dim::Any]).unwrap();
    (net, x)
}

fn pointwise(channels: usize, weight: f32) -> Conv2d {
    let geometry = Conv2dGeometry::new(channels, channels, [1, 1]);
    Conv2d::new(geometry, Tensor::full([channels, channels, 1, 1], weight).unwrap(), None).unwrap()
}

fn of(weight: f32, mean: f32, variance: f32) -> BatchNorm2d {
    let all = |value| Tensor::full([2], value).unwrap();
    BatchNorm2d::new(all(weight), all(0.0), all(mean), all(variance), 0.0).unwrap()
}

fn skipped(model: &Model) -> Vec<(&str, LayerKind, String)> {
    let list: &[Skipped] = &model.conversion().unwrap().skipped;
    list.iter().map(|skipped| (skipped.name.as_str(), skipped.kind, skipped.reason.to_string())).collect()
}

#[test]
fn the_function_stays_the_same() {
    let (model, x) = (network(31), Random(32).tensor([2, 3, 9, 8], 1.0));
    let folded = fold_batch_norm(&model).unwrap();
    assert!(folded.nodes().iter().all(|node| node.layer().kind() != LayerKind::BatchNorm2d));
    assert_eq!(folded.conversion().unwrap().folded.len(), 2);
    assert!(folded.conversion().unwrap().skipped.is_empty());
    for (a, b) in model.forward(&x).unwrap().as_slice().iter().zip(folded.forward(&x).unwrap().as_slice()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    // Folded twice is folded once.
    assert_eq!(fold_batch_norm(&folded).unwrap().conversion(), folded.conversion());
}

#[test]
fn what_is_read_elsewhere_stays_and_is_told() {
    let r = &mut Random(33);
    let (mut net, x) = image(2);
    let first = net.add("bn0", norm(r, 2), &[x]).unwrap();
    let shared = net.add("shared", pointwise(2, 0.5), &[first]).unwrap();
    let a = net.add("bn1", norm(r, 2), &[shared]).unwrap();
    let sum = net.add("sum", Layer::Add, &[a, shared]).unwrap();
    let b = net.add("bn2", norm(r, 2), &[sum]).unwrap();
    let out = net.add("out", pointwise(2, 0.25), &[b]).unwrap();
    let y = net.add("bn3", norm(r, 2), &[out]).unwrap();
    net.output("y", y).unwrap();
    net.output("raw", out).unwrap();
    let model = net.build().unwrap();
    let folded = fold_batch_norm(&model).unwrap();
    let why = skipped(&folded);
    let expected = [("bn0", "input of the model"), ("bn1", "read by bn1, sum"), ("bn2", "`sum`, Add"), ("bn3", "output of the model")];
    assert_eq!(why.len(), expected.len(), "{why:?}");
    for ((name, kind, reason), (expected_name, text)) in why.iter().zip(expected) {
        assert_eq!((*name, *kind), (expected_name, LayerKind::BatchNorm2d));
        assert!(reason.contains(text), "{name}: {reason}");
    }
    assert_eq!(fold_batch_norm(&folded).unwrap().conversion(), folded.conversion());

    // Quantization speaks of those that a quantized layer feeds.
    let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
    let names: Vec<&str> = skipped(&int8).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["bn1", "bn3"]);
}

#[test]
fn numbers_that_would_overflow_are_not_folded() {
    for (weight, norm) in [(1e38, of(1.0, 0.0, 1e-12)), (0.0, of(1e38, -1e38, 1.0)), (1.0, of(f32::NAN, 0.0, 1.0))] {
        let (mut net, x) = image(2);
        let y = net.add("conv", pointwise(2, weight), &[x]).unwrap();
        let y = net.add("bn", norm, &[y]).unwrap();
        net.output("y", y).unwrap();
        let int8 = quantize_dynamic(&net.build().unwrap(), &[LayerKind::Conv2d]).unwrap();
        assert_eq!(int8.node("conv").unwrap().layer().precision(), Precision::Int8);
        assert!(int8.node("bn").is_some());
        let [(name, _, reason)] = &skipped(&int8)[..] else { panic!("{:?}", skipped(&int8)) };
        assert!(*name == "bn" && reason.contains("`conv`") && reason.contains("range of f32"), "{reason}");
    }
}

#[test]
fn layers_whose_sums_are_too_long_keep_their_batch_norm() {
    let channels = 65_537;
    let (mut net, x) = image(channels);
    let geometry = Conv2dGeometry::new(channels, 2, [1, 1]);
    let wide = Conv2d::new(geometry, Tensor::full([2, channels, 1, 1], 1e-3).unwrap(), None).unwrap();
    let y = net.add("wide", wide, &[x]).unwrap();
    let y = net.add("bn1", of(2.0, 0.0, 1.0), &[y]).unwrap();
    let y = net.add("conv", pointwise(2, 0.5), &[y]).unwrap();
    let y = net.add("bn2", of(2.0, 0.0, 1.0), &[y]).unwrap();
    net.output("y", y).unwrap();
    let int8 = quantize_dynamic(&net.build().unwrap(), &[LayerKind::Conv2d]).unwrap();
    let conversion = int8.conversion().unwrap();
    assert_eq!(conversion.quantized, ["conv"]);
    assert_eq!(conversion.folded, [("bn2".to_owned(), "conv".to_owned())]);
    let [("wide", LayerKind::Conv2d, reason)] = &skipped(&int8)[..] else { panic!("{:?}", skipped(&int8)) };
    assert!(reason.contains("65537"), "{reason}");
}

#[test]
fn statistics_that_are_not_finite_can_be_loaded_on_demand() {
    let all = |value: f32| lowprec::Value::from(Tensor::full([2], value).unwrap());
    let state = || {
        let named = [("weight", 1.0), ("bias", 0.0), ("running_mean", f32::INFINITY), ("running_var", 1.0)];
        lowprec::nn::StateDict::new(named.map(|(name, value)| (format!("bn.{name}"), all(value)))).unwrap()
    };
    let refused = BatchNorm2d::from_state(&mut state(), "bn", 2, 1e-5).unwrap_err().to_string();
    assert!(refused.contains("`bn.running_mean`") && refused.contains("NonFinite::Saturate"), "{refused}");
    let norm = BatchNorm2d::from_state(&mut state().with_non_finite(NonFinite::Saturate), "bn", 2, 1e-5).unwrap();
    assert_eq!(norm.affine().1, [f32::NEG_INFINITY; 2]);
}
