//! Static quantization of graphs of all shapes.

use crate::static_support::{observe, samples, sqnr};
use crate::support::{Random, conv, network};
use lowprec::convert::{LayerConfig, StaticScheme, WeightScales};
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::operator::{LayerNormalization, Softmax};
use lowprec::nn::{Dim, Embedding, Layer, Linear, Model, Precision};
use lowprec::ptq::Calibrator;
use lowprec::quant::observer::ObserverKind;
use lowprec::{DType, Error, LayerKind, NonFinite, QConfig, Scheme, Tensor, Value, metrics, quantize_static};

fn linear(r: &mut Random, i: usize, o: usize) -> Linear {
    Linear::new(r.tensor([o, i], 1.0 / (i as f32).sqrt()), Some(r.tensor([o], 0.1))).unwrap()
}

#[test]
fn what_is_named_is_observed_and_left_as_said() {
    let r = &mut Random(26);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let y = net.add("first", conv(r, Conv2dGeometry::new(3, 8, [1, 1]), true), &[x]).unwrap();
    let y = net.add("relu", Layer::Relu, &[y]).unwrap();
    let y = net.add("pool", lowprec::nn::MaxPool2d::new([2, 2]), &[y]).unwrap();
    let y = net.add("second", conv(r, Conv2dGeometry::new(8, 4, [1, 1]), true), &[y]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let fixed = StaticScheme::default().with_activation_observer(ObserverKind::FixedRange { min: 0.0, max: 5.1 });
    // The range is that of the last of what runs as one.
    let config = QConfig::default().with_pattern("relu", LayerConfig::Static(fixed)).unwrap();
    let mut calibrator = Calibrator::new(&model, &config).unwrap();
    calibrator.observe(&[("x", &samples(27).into())]).unwrap();
    assert_eq!(calibrator.finish().unwrap().get("relu").unwrap().at(0), (5.1 / 255.0, 0));
    assert_eq!(calibrator.convert().unwrap().node("pool").unwrap().layer().precision(), Precision::Int8);
    let config = QConfig::default().with_pattern("pool", LayerConfig::Float).unwrap();
    assert_eq!(observe(&model, &config, &samples(27)).node("pool").unwrap().layer().precision(), Precision::F32);
    // Exact scales of weights are no worse than those of the largest value.
    let exact = QConfig::new(StaticScheme::default().with_weight_scales(WeightScales::LeastSquares));
    assert!(sqnr(&model, &observe(&model, &exact, &samples(27)), &samples(27)) > 30.0);
}

#[test]
fn models_come_in_all_forms() {
    let r = &mut Random(28);
    // Quantized before, with several outputs, one of them in the middle, names that are taken, and a layer on a constant.
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    let constant = net.constant("constant", r.tensor([1, 6], 1.0)).unwrap();
    let x = net.add("table", Embedding::new(r.tensor([9, 6], 1.0)).unwrap(), &[ids]).unwrap();
    let y = net.add("first", linear(r, 6, 5), &[x]).unwrap();
    let z = net.add_as("table/quantized", "own", linear(r, 5, 4), &[y]).unwrap();
    let c = net.add("on constant", linear(r, 6, 4), &[constant]).unwrap();
    let sum = net.add("sum", lowprec::nn::operator::Binary::Add, &[z, c]).unwrap();
    net.output("y", y).unwrap();
    net.output("sum", sum).unwrap();
    let model = net.build().unwrap();
    let dynamic = lowprec::quantize_dynamic(&model, &[LayerKind::Embedding]).unwrap();
    let ids: Value = Tensor::new([4], vec![1i64, 3, 5, 8]).unwrap().into();
    let mut calibrator = Calibrator::new(&dynamic, &QConfig::default()).unwrap();
    calibrator.observe(&[("ids", &ids)]).unwrap();
    let int8 = calibrator.convert().unwrap();
    assert!(int8.conversion().unwrap().skipped.iter().any(|skipped| skipped.name == "on constant"));
    for (expected, got) in model.run(&[("ids", &ids)]).unwrap().iter().zip(int8.run(&[("ids", &ids)]).unwrap()) {
        let floats = |value: &Value| value.get::<f32>().unwrap().as_slice().to_vec();
        assert!(metrics::sqnr_db(&floats(&expected.1), &floats(&got.1)).unwrap() > 25.0, "{}", got.0);
    }
    // In two passes: what is codes after the first stays, and is still known as such.
    let (model, x) = (network(29), samples(30));
    let first = observe(&model, &QConfig::default().with_pattern("fc", LayerConfig::Float).unwrap(), &x);
    let both = observe(&first, &QConfig::default(), &x);
    let grids = |model: &Model| model.nodes().iter().filter(|node| model.grid(node.outputs()[0]).is_some()).count();
    assert!(matches!(first.node("fc").unwrap().layer(), Layer::Linear(_)) && grids(&first) > 3);
    assert!(matches!(both.node("fc").unwrap().layer(), Layer::StaticLinear(_)) && grids(&both) > grids(&first));
    assert!(sqnr(&model, &both, &x) > 20.0);

    // A sum of products beyond i32 leaves its bias room.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(70_000)]).unwrap();
    let y = net.add("long", linear(r, 70_000, 3), &[x]).unwrap();
    let y = net.add("next", linear(r, 3, 3), &[y]).unwrap();
    net.output("y", y).unwrap();
    let (model, x) = (net.build().unwrap(), r.tensor([2, 70_000], 1.0));
    assert!(sqnr(&model, &observe(&model, &QConfig::default(), &x), &x) > 25.0);

    // Sums are fused by shapes: batches under which others would be are refused.
    let mut net = Model::builder();
    let a = net.input("a", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(6)]).unwrap();
    let b = net.input("b", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(6)]).unwrap();
    let (p, q) = (net.add("p", linear(r, 6, 6), &[a]).unwrap(), net.add("q", linear(r, 6, 6), &[b]).unwrap());
    let sum = net.add("sum", lowprec::nn::operator::Binary::Add, &[p, q]).unwrap();
    let y = net.add("y", linear(r, 6, 2), &[sum]).unwrap();
    net.output("y", y).unwrap();
    let mut calibrator = Calibrator::new(&net.build().unwrap(), &QConfig::default()).unwrap();
    let (one, two): (Value, Value) = (r.tensor([1, 1, 6], 1.0).into(), r.tensor([1, 4, 6], 1.0).into());
    calibrator.observe(&[("a", &one), ("b", &one)]).unwrap();
    calibrator.observe(&[("a", &two), ("b", &two)]).unwrap();
    assert!(matches!(calibrator.observe(&[("a", &two), ("b", &one)]), Err(Error::Unsupported { .. })));

    // Where biases that are not finite are taken, they saturate.
    let weight = r.tensor([2, 6], 0.4);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(6)]).unwrap();
    let y = net.add("y", Linear::new(weight, Some(Tensor::new([2], vec![f32::NAN, 0.5]).unwrap())).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let (model, x) = (net.build().unwrap(), r.tensor([3, 6], 1.0));
    assert!(matches!(quantize_static(&model, [&x], &QConfig::default()), Err(Error::Layer { .. })));
    let saturated = quantize_static(&model, [&x], &QConfig::default().with_non_finite(NonFinite::Saturate)).unwrap();
    assert!(saturated.forward(&x).unwrap().as_slice().iter().all(|y| y.is_finite()));
}

#[test]
fn a_number_of_many_axes_is_no_function() {
    let r = &mut Random(25);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(6)]).unwrap();
    let mut linear = |net: &mut lowprec::nn::ModelBuilder, name: &str, x, i, o| {
        net.add(name, Linear::new(r.tensor([o, i], 0.4), None).unwrap(), &[x]).unwrap()
    };
    let number = |net: &mut lowprec::nn::ModelBuilder, name: &str, dims: &[usize]| {
        net.constant(name, Tensor::new(dims, vec![0.5f32]).unwrap()).unwrap()
    };
    let (half, deep) = (number(&mut net, "half", &[1]), number(&mut net, "deep", &[1, 1, 1]));
    let y = linear(&mut net, "first", x, 6, 8);
    let y = net.add("halved", lowprec::nn::operator::Binary::Mul, &[y, half]).unwrap();
    let y = linear(&mut net, "second", y, 8, 8);
    // Its output has an axis more than its input.
    let y = net.add("deepened", lowprec::nn::operator::Binary::Mul, &[y, deep]).unwrap();
    let y = linear(&mut net, "third", y, 8, 3);
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let x = r.tensor([5, 6], 1.0);
    let int8 = observe(&model, &QConfig::default(), &x);
    let precision = |name: &str| int8.node(name).unwrap().layer().precision();
    assert_eq!((precision("halved"), precision("deepened")), (Precision::Int8, Precision::F32));
    assert_eq!(int8.forward(&x).unwrap().dims(), [1, 5, 3]);
    assert!(sqnr(&model, &int8, &x) > 30.0);
}

#[test]
fn a_bias_beyond_the_sums_gets_room() {
    let weight = Tensor::new([2, 1, 1, 1], vec![1e-20, 1.0]).unwrap();
    let bias = Tensor::new([2], vec![3.0, -0.5]).unwrap();
    let mut net = Model::builder();
    let image = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Any, Dim::Any]).unwrap();
    let first = lowprec::nn::Conv2d::new(Conv2dGeometry::new(1, 2, [1, 1]), weight, Some(bias)).unwrap();
    let y = net.add("first", first, &[image]).unwrap();
    let y = net.add("second", conv(&mut Random(22), Conv2dGeometry::new(2, 3, [1, 1]), true), &[y]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let x = Random(23).tensor([2, 1, 5, 5], 1.0);
    let int8 = observe(&model, &QConfig::default(), &x);
    let db = sqnr(&model, &int8, &x);
    assert!(db > 30.0, "{db} dB");
}

#[test]
fn a_transformers_block_keeps_its_attention_in_float() {
    let r = &mut Random(17);
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any, Dim::Any]).unwrap();
    let x = net.add("table", Embedding::new(r.tensor([50, 16], 1.0)).unwrap(), &[ids]).unwrap();
    let ones = net.constant("gamma", Tensor::full([16], 1.0).unwrap()).unwrap();
    let zeros = net.constant("beta", Tensor::full([16], 0.0).unwrap()).unwrap();
    let normed = net.add("norm", LayerNormalization::new(-1, 1e-5), &[x, ones, zeros]).unwrap();
    let mut linear = |net: &mut lowprec::nn::ModelBuilder, name: &str, x, i, o| {
        net.add(name, Linear::new(r.tensor([o, i], 0.4), Some(r.tensor([o], 0.1))).unwrap(), &[x]).unwrap()
    };
    let scores = linear(&mut net, "scores", normed, 16, 16);
    let attention = net.add("softmax", Softmax::new(-1), &[scores]).unwrap();
    let mixed = linear(&mut net, "mixed", attention, 16, 16);
    let sum = net.add("residual", Layer::Add, &[mixed, x]).unwrap();
    let up = linear(&mut net, "up", sum, 16, 32);
    let gelu = net.add("gelu", lowprec::nn::operator::Unary::Gelu, &[up]).unwrap();
    let down = linear(&mut net, "down", gelu, 32, 8);
    net.output("y", down).unwrap();
    let model = net.build().unwrap();
    let ids: Value = Tensor::new([2, 9], (0..18).map(|i| i * 7 % 50).collect::<Vec<i64>>()).unwrap().into();
    let mut calibrator = Calibrator::new(&model, &QConfig::default()).unwrap();
    calibrator.observe(&[("ids", &ids)]).unwrap();
    let int8 = calibrator.convert().unwrap();
    let precision = |name: &str| int8.node(name).unwrap().layer().precision();
    for name in ["norm", "softmax", "residual"] {
        assert_eq!(precision(name), Precision::F32, "{name}");
    }
    for name in ["scores", "mixed", "up", "gelu", "down", "table"] {
        assert_eq!(precision(name), Precision::Int8, "{name}");
    }
    assert_eq!(int8.node("gelu").unwrap().layer().kind(), LayerKind::Operator("Gelu"));
    let (y, expected) = (int8.run(&[("ids", &ids)]).unwrap(), model.run(&[("ids", &ids)]).unwrap());
    let floats = |list: &[(String, Value)]| list[0].1.get::<f32>().unwrap().as_slice().to_vec();
    assert!(metrics::sqnr_db(&floats(&expected), &floats(&y)).unwrap() > 25.0);
}

#[test]
fn what_is_concatenated_holds_the_range_of_the_whole() {
    // Its parts are requantized, since others read them too.
    let r = &mut Random(31);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let one = |i, o| Conv2dGeometry::new(i, o, [1, 1]);
    let a = net.add("a", conv(r, one(3, 4), true), &[x]).unwrap();
    let b = net.add("b", conv(r, one(3, 4), true), &[x]).unwrap();
    let joined = net.add("joined", lowprec::nn::operator::Concat::new(1), &[a, b]).unwrap();
    let sum = net.add("sum", Layer::Add, &[a, b]).unwrap();
    let (y, z) = (net.add("y", conv(r, one(8, 2), true), &[joined]).unwrap(), net.add("z", conv(r, one(4, 2), true), &[sum]).unwrap());
    net.output("y", y).unwrap();
    net.output("z", z).unwrap();
    let narrow = |min: f32, max: f32| {
        let four = Scheme::UINT8_ACTIVATION.with_bits(4);
        let kind = ObserverKind::FixedRange { min, max };
        LayerConfig::Static(StaticScheme::default().with_activations(four).with_activation_observer(kind))
    };
    // The whole is narrower than a part: the part's outer codes lie beyond it.
    let config = QConfig::default().with_pattern("joined", narrow(-0.1, 0.1)).unwrap().with_pattern("a", narrow(-4.0, 4.0)).unwrap();
    let mut calibrator = Calibrator::new(&net.build().unwrap(), &config).unwrap();
    calibrator.observe(&[("x", &samples(32).into())]).unwrap();
    let int8 = calibrator.convert().unwrap();
    let mut largest = 0;
    int8.run_with(&[("x", &samples(32).into())], |tap| {
        if let ("joined", Some(codes)) = (tap.edge, tap.value.get::<u8>()) {
            largest = codes.as_slice().iter().copied().max().unwrap();
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(largest, 15);
}
