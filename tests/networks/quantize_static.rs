//! What `quantize_static` promises: integers from end to end that a plain interpreter gives too, the same on every instruction
//! set and for any number of threads; what the configuration says, and clear words where it can't be done.

use std::ops::ControlFlow;

use crate::static_support::{everything, interpret, observe, samples, sqnr};
use crate::support::{Random, conv, network};
use lowprec::convert::{LayerConfig, StaticPlan, StaticScheme, WeightScales, convert};
use lowprec::kernels::{Conv2dGeometry, Isa};
use lowprec::nn::quantized::DynamicScheme;
use lowprec::nn::{Dim, Executor, Layer, Linear, Model, Precision, SkipReason};
use lowprec::ptq::Calibrator;
use lowprec::quant::observer::ObserverKind;
use lowprec::{DType, Error, LayerKind, NonFinite, Progress, QConfig, QParams, Scheme, Tensor, Value, quantize_static};

#[test]
fn a_plain_interpreter_gives_the_same_bits() {
    for seed in 1..4 {
        let model = everything(seed);
        let int8 = observe(&model, &QConfig::default(), &samples(seed + 10));
        // Nothing is left in float but the borders.
        for node in int8.nodes() {
            let moved = matches!(node.layer(), Layer::Flatten { .. })
                || ["Concat", "QuantizeLinear"].iter().any(|op| node.layer().kind().to_string() == *op);
            assert!(moved || node.layer().precision() == Precision::Int8, "{}", node.name());
        }
        let x = Random(seed + 20).tensor([2, 3, 14, 11], 1.0);
        assert_eq!(interpret(&int8, &x), int8.nodes().len());
        let db = sqnr(&model, &int8, &x);
        assert!(db > 20.0, "{db} dB");
    }
}

#[test]
fn every_instruction_set_and_number_of_threads_gives_the_same_bytes() {
    let model = everything(5);
    let mut calibrator = Calibrator::new(&model, &QConfig::default()).unwrap();
    calibrator.observe(&[("image", &samples(6).into())]).unwrap();
    let calibration = calibrator.finish().unwrap();
    let plan = StaticPlan::new(&model, &QConfig::default(), calibration.shapes()).unwrap();
    // Large enough for its layers to be split over threads.
    let x = Random(7).tensor([2, 3, 56, 57], 1.0);
    let run = |isa: Isa, threads: usize| {
        let mut bytes = Vec::new();
        let int8 = plan.convert(&calibration, isa).unwrap();
        let mut executor = Executor::new(&int8).with_threads(threads).unwrap();
        executor
            .forward_with(&x, |tap| {
                bytes.extend_from_slice(tap.value.bytes());
                Ok(())
            })
            .unwrap();
        bytes.extend_from_slice(Value::from(executor.forward(&x).unwrap()).bytes());
        bytes
    };
    let expected = run(Isa::Scalar, 1);
    for isa in Isa::available() {
        for threads in 1..4 {
            assert!(run(isa, threads) == expected, "{}, {threads} threads", isa.name());
        }
    }
    // Nor does it matter what came in the same batch.
    let int8 = plan.convert(&calibration, Isa::best()).unwrap();
    let whole = int8.forward(&x).unwrap();
    let one = int8.forward(&x.slice(0, 1..2).unwrap()).unwrap();
    assert_eq!(whole.slice(0, 1..2).unwrap().as_slice(), one.as_slice());
}

#[test]
fn sums_and_clamps_run_in_the_layer_before_them() {
    let model = everything(8);
    let int8 = observe(&model, &QConfig::default(), &samples(9));
    for name in ["stem bn", "stem relu", "relu6", "sum", "sum relu", "hidden relu"] {
        assert!(int8.node(name).is_none(), "{name}");
    }
    let Layer::StaticConv2d(grouped) = int8.node("grouped").unwrap().layer() else { panic!("grouped is not static") };
    assert!(grouped.residual().is_some());
    // What a layer writes keeps the name of what it was fused with.
    let written = int8.node("grouped").unwrap().outputs()[0];
    assert_eq!((int8.edge_name(written), int8.grid(written)), ("sum relu", grouped.output().grid()));
    // Both sides of a sum of tables are codes already.
    assert_eq!(int8.node("free sum").unwrap().layer().precision(), Precision::Int8);
    // The last layer's sums become floats at once.
    let Layer::StaticLinear(head) = int8.node("head").unwrap().layer() else { panic!("head is not static") };
    assert!(head.output().grid().is_none());
    assert_eq!(int8.conversion().unwrap().folded.len(), 2);
}

#[test]
fn calibration_is_data_and_gives_the_same_model() {
    let (model, config, x) = (everything(11), QConfig::least_squares(), samples(12));
    let mut calibrator = Calibrator::new(&model, &config).unwrap();
    for i in 0..3 {
        calibrator.observe(&[("image", &x.slice(0, 2 * i..2 * i + 2).unwrap().into())]).unwrap();
    }
    assert_eq!(calibrator.batches(), 3);
    let calibration = calibrator.finish().unwrap();
    let (a, b) = (calibrator.convert().unwrap(), convert(&model, &calibration, &config).unwrap());
    assert_eq!(a.forward(&x).unwrap().as_slice(), b.forward(&x).unwrap().as_slice());
    let printed = calibration.to_string();
    assert!(printed.lines().count() == calibration.len() && printed.contains("stem relu"), "{printed}");
    // Every value of the calibration is one of the plan's.
    let plan = StaticPlan::new(&model, &config, calibration.shapes()).unwrap();
    let mut observed: Vec<&str> = plan.observed().map(|(name, _)| name).collect();
    observed.sort_unstable();
    assert_eq!(observed, calibration.activations().map(|(name, _)| name).collect::<Vec<_>>());
    // And what lacks one is refused with its name.
    let mut poor = lowprec::Calibration::new().with_shapes(calibration.shapes().to_vec());
    calibration.activations().filter(|(name, _)| *name != "concat").for_each(|(name, params)| drop(poor.insert(name, params.clone())));
    let error = convert(&model, &poor, &config).unwrap_err();
    assert!(matches!(&error, Error::Unknown { name, .. } if name == "concat"), "{error}");
    poor.insert("concat", QParams::per_tensor(1.0, 0, -300, 300).unwrap());
    assert!(matches!(convert(&model, &poor, &config), Err(Error::Unsupported { .. })));
    // Kept in a file, it is the same; and what no parameters can be is refused there.
    #[cfg(feature = "serde")]
    {
        let kept = serde_json::to_string(&calibration).unwrap();
        assert_eq!(serde_json::from_str::<lowprec::Calibration>(&kept).unwrap(), calibration);
        for (right, wrong) in [("\"qmin\":0", "\"qmin\":300"), ("\"scales\":[", "\"scales\":[-1.0,")] {
            assert!(kept.contains(right));
            assert!(serde_json::from_str::<lowprec::Calibration>(&kept.replacen(right, wrong, 1)).is_err());
        }
    }
}

#[test]
fn the_configuration_decides_layer_by_layer() {
    let (model, x) = (network(13), Random(14).tensor([4, 3, 10, 9], 1.0));
    let config = QConfig::default()
        .with_kind(LayerKind::Linear, LayerConfig::Dynamic(DynamicScheme::default()))
        .with_pattern("conv?", LayerConfig::Float)
        .unwrap()
        .with_pattern("conv2", LayerConfig::Static(StaticScheme::default()))
        .unwrap();
    let int8 = observe(&model, &config, &x);
    let precision = |name: &str| int8.node(name).unwrap().layer().precision();
    assert!(matches!(int8.node("conv1").unwrap().layer(), Layer::Conv2d(_)));
    assert!(matches!(int8.node("conv2").unwrap().layer(), Layer::StaticConv2d(_)));
    assert!(matches!(int8.node("fc").unwrap().layer(), Layer::QuantizedLinear(_)));
    assert_eq!((precision("depthwise"), precision("grouped"), precision("softmax")), (Precision::Int8, Precision::Int8, Precision::F32));
    let conversion = int8.conversion().unwrap();
    assert_eq!(conversion.quantized, ["depthwise", "grouped", "conv2", "fc"]);
    assert!(conversion.skipped.iter().any(|skipped| skipped.name == "conv1" && skipped.reason == SkipReason::Configured));
    assert!(sqnr(&model, &int8, &x) > 25.0);
    // The model that was given runs as before.
    assert!(model.nodes().iter().all(|node| node.layer().precision() == Precision::F32) && model.conversion().is_none());
    // Everything float but one layer in the middle, and a float layer between two integer ones.
    for pattern in ["grouped", "depthwise"] {
        let config = QConfig::default().with_pattern(pattern, LayerConfig::Float).unwrap();
        let int8 = observe(&model, &config, &x);
        assert_eq!(int8.node(pattern).unwrap().layer().precision(), Precision::F32);
        assert!(sqnr(&model, &int8, &x) > 25.0, "{pattern}");
    }
    // A sum that stays in float leaves both sides in float.
    let config = QConfig::default().with_pattern("add", LayerConfig::Float).unwrap();
    let int8 = observe(&model, &config, &x);
    assert!(int8.node("add").unwrap().layer().precision() == Precision::F32 && sqnr(&model, &int8, &x) > 25.0);
}

#[test]
fn fewer_bits_hold_their_range() {
    let (model, x) = (everything(15), samples(16));
    let mut last = f64::INFINITY;
    for bits in [8, 6, 4] {
        let scheme = StaticScheme::default()
            .with_weights(Scheme::INT8_WEIGHT.with_bits(bits))
            .with_activations(Scheme::UINT8_ACTIVATION.with_bits(bits))
            .with_activation_observer(ObserverKind::Histogram);
        let int8 = observe(&model, &QConfig::new(scheme), &x);
        int8.forward_with(&x, |tap| {
            if let Some(codes) = tap.value.get::<u8>() {
                // Between what is quantized and its clamp to fewer bits, wider codes are on their way.
                let clamped = int8.nodes().iter().any(|node| node.name() == format!("{}/clamped", tap.edge));
                let largest = codes.as_slice().iter().copied().max().unwrap();
                assert!(clamped || u32::from(largest) < 1 << bits, "{}: {largest} in {bits} bits", tap.edge);
            }
            Ok(())
        })
        .unwrap();
        let db = sqnr(&model, &int8, &x);
        assert!(db < last && db > f64::from(bits) * 2.0 - 6.0, "{bits} bits: {db} dB after {last}");
        last = db;
    }
    // Signed activations are the same values, 128 codes higher.
    let signed = QConfig::new(StaticScheme::default().with_activations(Scheme::INT8_ACTIVATION));
    let (a, b) = (observe(&model, &QConfig::default(), &x), observe(&model, &signed, &x));
    assert!((sqnr(&model, &a, &x) - sqnr(&model, &b, &x)).abs() < 1.0);
}

#[test]
fn what_can_not_be_done_is_said() {
    let (model, x) = (network(18), samples(19));
    let config = QConfig::default();
    let nobody: [&Tensor; 0] = [];
    assert!(matches!(quantize_static(&model, nobody, &config), Err(Error::Empty { .. })));
    let empty = Tensor::new([0, 3, 8, 8], vec![]).unwrap();
    assert!(matches!(quantize_static(&model, [&empty], &config), Err(Error::Empty { .. })));
    assert!(matches!(Calibrator::new(&model, &config).unwrap().finish(), Err(Error::Empty { .. })));

    // Before any sample runs.
    let pattern = QConfig::default().with_pattern("nothing.*", LayerConfig::Float).unwrap();
    assert!(matches!(Calibrator::new(&model, &pattern), Err(Error::Pattern { .. })));
    let nothing = QConfig::default().with_pattern("*", LayerConfig::Float).unwrap();
    assert!(matches!(Calibrator::new(&model, &nothing), Err(Error::NothingToQuantize { .. })));
    let wide = QConfig::new(StaticScheme::default().with_activations(Scheme::new(16, false)));
    assert!(matches!(Calibrator::new(&model, &wide), Err(Error::Unsupported { .. })));
    let asymmetric = QConfig::new(StaticScheme::default().with_weights(Scheme::UINT8_ACTIVATION));
    assert!(matches!(Calibrator::new(&model, &asymmetric), Err(Error::Unsupported { .. })));
    let percent = StaticScheme::default().with_activation_observer(ObserverKind::Percentile { percent: 200.0 });
    let weights = StaticScheme::default().with_weight_scales(WeightScales::Observed(ObserverKind::FixedRange { min: 1.0, max: 0.0 }));
    for scheme in [percent, weights] {
        assert!(matches!(Calibrator::new(&model, &QConfig::new(scheme)), Err(Error::Parameter { .. })));
    }
    let lstm = QConfig::default().with_kind(LayerKind::Lstm, LayerConfig::Static(StaticScheme::default()));
    assert!(matches!(Calibrator::new(&model, &lstm), Err(Error::Unsupported { .. })));
    let pool = QConfig::default().with_kind(LayerKind::MaxPool2d, LayerConfig::Dynamic(DynamicScheme::default()));
    assert!(matches!(Calibrator::new(&model, &pool), Err(Error::Unsupported { .. })));

    // NaN is named where it first shows.
    let mut bad = x.clone();
    bad.as_mut_slice()[7] = f32::NAN;
    let error = quantize_static(&model, [&bad], &config).unwrap_err().to_string();
    assert!(error.contains("`image`") && error.contains("NaN"), "{error}");
    let mut weights = Random(20).tensor([4, 3, 1, 1], 1.0);
    weights.as_mut_slice()[5] = f32::INFINITY;
    let mut net = Model::builder();
    let image = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let first = lowprec::nn::Conv2d::new(Conv2dGeometry::new(3, 4, [1, 1]), weights, None).unwrap();
    let y = net.add("broken", first, &[image]).unwrap();
    let y = net.add("next", conv(&mut Random(21), Conv2dGeometry::new(4, 4, [1, 1]), false), &[y]).unwrap();
    net.output("y", y).unwrap();
    let broken = net.build().unwrap();
    let error = quantize_static(&broken, [&x], &config).unwrap_err().to_string();
    assert!(error.contains("broken"), "{error}");
    let saturating = QConfig::default().with_non_finite(NonFinite::Saturate);
    assert!(quantize_static(&network(18), [&bad], &saturating).is_ok());
    // A batch that is refused leaves the calibrator as it was.
    let mut calibrator = Calibrator::new(&model, &config).unwrap();
    calibrator.observe(&[("image", &x.clone().into())]).unwrap();
    for wrong in [("picture", &x.clone().into()), ("image", &Tensor::full([1, 4, 8, 8], 0.0).unwrap().into())] {
        assert!(calibrator.observe(&[wrong]).is_err());
    }
    assert_eq!(calibrator.batches(), 1);
    assert!(calibrator.convert().is_ok());
    let before = calibrator.finish().unwrap();
    assert!(calibrator.observe(&[("image", &bad.clone().into())]).is_err());
    assert_eq!(calibrator.finish().unwrap(), before);
    // One that fails half way has been seen in part: nothing may come of that.
    let mut net = Model::builder();
    let image = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)]).unwrap();
    let weight = Tensor::new([2, 2], vec![1.0, 0.0, 0.0, 1.0]).unwrap();
    let y = net.add("first", Linear::new(weight.clone(), None).unwrap(), &[image]).unwrap();
    let y = net.add("log", lowprec::nn::operator::Unary::Log, &[y]).unwrap();
    let y = net.add("second", Linear::new(weight, None).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
    let mut calibrator = Calibrator::new(&net.build().unwrap(), &config).unwrap();
    calibrator.observe(&[("x", &Tensor::new([1, 2], vec![1.0, 2.0]).unwrap().into())]).unwrap();
    let error = calibrator.observe(&[("x", &Tensor::new([1, 2], vec![-1000.0, 2.0]).unwrap().into())]).unwrap_err().to_string();
    assert!(error.contains("`log`"), "{error}");
    assert!(matches!(calibrator.finish(), Err(Error::Unsupported { .. })));
    assert!(matches!(calibrator.observe(&[("x", &Tensor::full([1, 2], 1.0).unwrap().into())]), Err(Error::Unsupported { .. })));

    let stopped = Progress::new(|step| if step.item == "relu1" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    let mut calibrator = Calibrator::new(&model, &config).unwrap().with_progress(stopped);
    assert!(matches!(calibrator.observe(&[("image", &x.into())]), Err(Error::Cancelled { stage: "observe", .. })));
}

#[test]
fn a_dry_run_tells_what_will_be() {
    let model = network(24);
    let plan = StaticPlan::new(&model, &QConfig::default(), &[vec![1, 3, 10, 10]]).unwrap();
    let text = plan.to_string();
    let larger = StaticPlan::new(&model, &QConfig::default(), &[vec![2, 3, 10, 10]]).unwrap();
    assert!(plan.memory().unwrap() > 4 * 20 * 100 && larger.memory() > plan.memory());
    assert_eq!(StaticPlan::new(&model, &QConfig::default(), &[]).unwrap().memory(), None);
    for part in ["grouped", "int8, static, with add", "values to calibrate"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(StaticPlan::new(&model, &QConfig::default(), &[vec![1, 4, 10, 10]]).is_err());
    assert!(matches!(StaticPlan::new(&model, &QConfig::default(), &[vec![1], vec![2]]), Err(Error::Length { .. })));
}
