//! What `compare` reports, and what it does not claim: outputs without classes, values that are not finite.

use crate::support::Random;
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, Model};
use lowprec::{DType, Error, LayerKind, Tensor, compare, quantize_dynamic};

/// A convolution, pooled to `[n, c, 1, 1]` when `pooled`.
fn features(seed: u64, channels: usize, pooled: bool) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let conv = crate::support::conv(&mut Random(seed), Conv2dGeometry::new(3, channels, [3, 3]), true);
    let y = net.add("conv", conv, &[x]).unwrap();
    let y = if pooled { net.add("pool", GlobalAvgPool2d, &[y]).unwrap() } else { y };
    net.output("y", y).unwrap();
    net.build().unwrap()
}

#[test]
fn classes_lie_along_axis_one() {
    let x = Random(1).tensor([70, 3, 6, 6], 1.0);
    let (one, other) = (features(2, 8, true), features(3, 8, true));
    let report = compare(&one, &other, &x, Some(&[0; 70])).unwrap();
    let found = report.classification.as_ref().unwrap();
    assert_eq!((found.classes, report.samples), (8, 70));
    // Two models that have nothing to do with each other.
    assert!(report.agreement().unwrap() < 0.6 && found.kl > 1e-3, "{report}");
    let (y, classes) = (one.forward(&x).unwrap(), 8);
    let hits = lowprec::metrics::top1(y.as_slice(), classes).unwrap().iter().filter(|&&top| top == 0).count();
    assert_eq!(found.hits.unwrap()[0], hits);
    assert!(matches!(compare(&one, &other, &x, Some(&[8; 70])), Err(Error::Parameter { what: "label", .. })));
    let itself = compare(&one, &one, &x, None).unwrap();
    assert_eq!((itself.agreement(), itself.classification.unwrap().kl), (Some(1.0), 0.0));
}

#[test]
fn outputs_without_classes_have_no_top_1() {
    let x = Random(4).tensor([3, 3, 6, 6], 1.0);
    for model in [features(5, 8, false), features(5, 1, true)] {
        let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
        let report = compare(&model, &int8, &x, None).unwrap();
        assert!(report.classification.is_none() && report.agreement().is_none() && report.accuracy().is_none());
        assert!(report.sqnr_db > 20.0 && report.sqnr_db < 80.0);
        let printed = report.to_string();
        assert!(printed.contains("n/a") && !printed.contains("flipped") && !printed.contains("nats"), "{printed}");
        let refused = compare(&model, &int8, &x, Some(&[0; 3])).unwrap_err();
        assert!(matches!(&refused, Error::Unsupported { .. }) && refused.to_string().contains("without labels"), "{refused}");
    }
}

#[test]
fn values_that_are_not_finite_are_the_worst_or_no_error() {
    let chain = |first: f32, second: f32| {
        let mut net = Model::builder();
        let linear = |weight| Linear::new(Tensor::new([2, 2], vec![weight, 0.0, 0.0, 1.0]).unwrap(), None).unwrap();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)]).unwrap();
        let y = net.add("first", linear(first), &[x]).unwrap();
        let y = net.add("second", linear(second), &[y]).unwrap();
        net.add("aside", Layer::Relu, &[x]).unwrap();
        net.output("y", y).unwrap();
        net.build().unwrap()
    };
    let x = Tensor::new([2, 2], vec![3.0, 1.0, 2.0, -1.0]).unwrap();
    // 1e38 · 3 · 2 overflows to infinity in both.
    let both = compare(&chain(1e38, 2.0), &chain(1e38, 2.0), &x, None).unwrap();
    assert_eq!((both.sqnr_db, both.agreement()), (f64::INFINITY, Some(1.0)));
    let one = compare(&chain(1.0, 1.0), &chain(1.0, f32::NAN), &x, None).unwrap();
    assert_eq!(one.layers[0].name, "second");
    assert!(one.layers[0].errors.sqnr_db == f64::NEG_INFINITY && one.layers[0].errors.max_error.is_nan());
    assert_eq!((one.sqnr_db, one.layers.last().unwrap().errors.sqnr_db), (f64::NEG_INFINITY, f64::INFINITY));
    assert!(one.to_string().contains("largest error NaN"), "{one}");
}

#[test]
fn a_layer_that_grew_is_told() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Any, Dim::Any]).unwrap();
    let conv = Conv2d::new(Conv2dGeometry::new(1, 1, [1, 1]), Tensor::full([1, 1, 1, 1], 0.5).unwrap(), None).unwrap();
    let y = net.add("tiny", conv, &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let int8 = quantize_dynamic(&model, &[LayerKind::Conv2d]).unwrap();
    let report = compare(&model, &int8, Tensor::full([1, 1, 2, 2], 1.0).unwrap(), None).unwrap();
    let [before, after] = report.layers[0].weight_bytes;
    let grew = format!("grew to {:.1} %", 100.0 * after as f64 / before as f64);
    assert!(after > before && report.to_string().contains(&grew), "{report}");
}
