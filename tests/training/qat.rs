//! Quantization-aware training: what is trained is what integers compute.

use lowprec::convert::{LayerConfig, QConfig, StaticScheme, convert};
use lowprec::io::safetensors;
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::operator::{Binary, Concat, Unary};
use lowprec::nn::{AvgPool2d, Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, MaxPool2d};
use lowprec::quant::Table;
use lowprec::train::{
    ActivationTraining, Adam, Levels, Mode, ParameterKind, Qat, QatConfig, Trainable, Training, WeightTraining, cross_entropy, lsq_factor,
    prepare_qat,
};
use lowprec::{DType, Error, Granularity, Model, Result, Scheme, Tensor, metrics, onnx};

use crate::gradients::tensor;
use crate::slices::surrogate;

fn file(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Images as the networks take them, and the digits that they show.
fn digits(part: &str) -> (Tensor, Vec<usize>) {
    let data = safetensors::read_file(file("examples/data/digits.safetensors")).unwrap();
    let codes = |what: &str| data.get(&format!("{part}.{what}")).unwrap().get::<u8>().unwrap().clone();
    let (images, labels) = (codes("images"), codes("labels"));
    let pixels = images.as_slice().iter().map(|&grey| f32::from(grey) / 16.0).collect();
    (Tensor::new(images.dims(), pixels).unwrap(), labels.as_slice().iter().map(|&label| label.into()).collect())
}

/// Trains on so many batches of 30.
fn train(qat: &mut Qat, (images, labels): &(Tensor, Vec<usize>), batches: usize, rate: f64) -> Vec<f64> {
    let output = qat.model().outputs()[0].name().to_owned();
    let mut adam = Adam::new(rate).with_factor(ParameterKind::Quantization, 0.5);
    let training = Training::new(30 * batches, 30, 1).with_seed(1);
    let mut losses = Vec::new();
    training
        .run(qat, &mut adam, |qat, batch| {
            let size: usize = images.dims()[1..].iter().product();
            let pixels: Vec<f32> = batch.rows.iter().flat_map(|&row| images.as_slice()[row * size..][..size].to_vec()).collect();
            let mut dims = images.dims().to_vec();
            dims[0] = batch.rows.len();
            let labels: Vec<usize> = batch.rows.iter().map(|&row| labels[row]).collect();
            let tape = qat.forward(&Tensor::new(dims, pixels)?, Mode::Train)?;
            let (loss, gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
            losses.push(loss);
            Ok((loss, qat.backward(&tape, &[(&output, &gradient)])?))
        })
        .unwrap();
    losses
}

/// Every code of the integer model beside that of the fake-quantized value: one apart at most. Gives the share that is apart.
fn compare(what: &str, qat: &mut Qat, x: &Tensor) -> f64 {
    let input = qat.model().inputs()[0].name().to_owned();
    let found = qat.agreement(&[(&input, &x.clone().into())]).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(found.largest <= 1 && found.unmatched.is_empty() && found.codes >= x.len(), "{what}: {found:?}");
    let (trained, integers) = (qat.forward(x, Mode::Evaluate).unwrap(), qat.finish().unwrap().forward(x).unwrap());
    let db = metrics::sqnr_db(trained.output().as_slice(), integers.as_slice()).unwrap();
    assert!(db > 40.0, "{what}: {db} dB");
    found.apart as f64 / found.codes as f64
}

#[test]
fn trained_networks_become_the_integers_that_they_were_trained_as() {
    let (samples, (test, _)) = (digits("train"), digits("test"));
    let test = test.slice(0, 0..60).unwrap();
    for (name, bits) in [("cnn", 8), ("cnn", 2), ("residual", 4), ("separable", 8), ("separable", 3), ("squeeze", 8), ("squeeze", 4)] {
        let float = onnx::load(file(&format!("tests/fixtures/digits_{name}.onnx"))).unwrap();
        let mut qat = prepare_qat(&float, &QatConfig::bits(bits)).unwrap();
        train(&mut qat, &samples, 4, 1e-3);
        let apart = compare(&format!("{name} at {bits} bits"), &mut qat, &test);
        assert!(apart < 1e-4, "{name} at {bits} bits: {apart}");
    }
}

#[test]
fn every_rule_of_scales_ends_in_the_same_integers() {
    let (samples, (test, _)) = (digits("train"), digits("test"));
    let test = test.slice(0, 0..40).unwrap();
    let float = onnx::load(file("tests/fixtures/digits_cnn.onnx")).unwrap();
    let per_tensor = |bits| {
        let scheme = StaticScheme::default()
            .with_weights(Scheme::INT8_WEIGHT_PER_TENSOR.with_bits(bits))
            .with_activations(Scheme::UINT8_ACTIVATION.with_bits(bits));
        QatConfig::new(QConfig::new(scheme))
    };
    let bits = QatConfig::bits;
    let levels = |table| WeightTraining::Levels(Levels::of(table).unwrap());
    let custom = Levels::new(&[-1.0, -0.3, 0.0, 0.2, 0.7]).unwrap();
    let configs = [
        ("observed", QatConfig::observed()),
        ("offsets", bits(4).with_activations(ActivationTraining::LearnedOffset)),
        ("clipped", bits(3).with_activations(ActivationTraining::Clipped { decay: 1e-3 })),
        ("per tensor", per_tensor(5)),
        ("powers of two", bits(4).with_weights(levels(Table::PowersOfTwo(4)))),
        ("additive powers of two", bits(6).with_weights(levels(Table::Apot(4)))),
        ("nf4", bits(8).with_weights(levels(Table::Nf4))),
        ("own levels", bits(7).with_weights(WeightTraining::Levels(custom))),
    ];
    for (what, config) in configs {
        let mut qat = prepare_qat(&float, &config).unwrap();
        train(&mut qat, &samples, 3, 1e-3);
        assert!(compare(what, &mut qat, &test) < 1e-4, "{what}");
    }
}

/// Branches, a concatenation, means, functions, values below zero, a layer in float and a depthwise one.
fn branches() -> Model {
    let mut net = lowprec::Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2), Dim::Fixed(8), Dim::Fixed(8)]).unwrap();
    let conv = |inputs: usize, outputs: usize, groups: usize, seed: u64| {
        let geometry = Conv2dGeometry::new(inputs, outputs, [3, 3]).with_padding([1; 4]).with_groups(groups);
        Conv2d::new(geometry, tensor(&[outputs, inputs / groups, 3, 3], seed, 0.4), Some(tensor(&[outputs], seed + 1, 0.2))).unwrap()
    };
    let a = net.add("conv1", conv(2, 6, 1, 1), &[x]).unwrap();
    let a = net.add("tanh", Unary::Tanh, &[a]).unwrap();
    let b = net.add("conv2", conv(6, 6, 6, 3), &[a]).unwrap();
    let b = net.add("sum", Layer::Add, &[b, a]).unwrap();
    let b = net.add("relu6", Layer::Relu6, &[b]).unwrap();
    let gate = net.add("gate", Unary::Sigmoid, &[a]).unwrap();
    let c = net.add("gated", Binary::Mul, &[b, gate]).unwrap();
    let d = net.add("conv3", conv(6, 5, 1, 5), &[c]).unwrap();
    let both = net.add("both", Concat::new(1), &[d, c]).unwrap();
    let y = net.add("pool", MaxPool2d::new([2, 2]), &[both]).unwrap();
    let y = net.add("means", AvgPool2d::new([2, 2]), &[y]).unwrap();
    let y = net.add("conv4", conv(11, 8, 1, 7), &[y]).unwrap();
    let y = net.add("leaky", Unary::LeakyRelu { alpha: 0.1 }, &[y]).unwrap();
    let y = net.add("gap", GlobalAvgPool2d, &[y]).unwrap();
    let y = net.add("flat", Layer::Flatten { axis: 1 }, &[y]).unwrap();
    let y = net.add("hidden", Linear::new(tensor(&[12, 8], 9, 0.5), Some(tensor(&[12], 10, 0.1))).unwrap(), &[y]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[3, 12], 11, 0.5), Some(tensor(&[3], 12, 0.1))).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

#[test]
fn graphs_with_branches_too() {
    let samples = (tensor(&[90, 2, 8, 8], 13, 1.0), (0..90).map(|i| i % 3).collect::<Vec<_>>());
    for bits in [8, 4] {
        let all = QatConfig::bits(bits);
        let mixed = all.scheme().clone().with_pattern("conv3", LayerConfig::Float).unwrap();
        for (what, config) in [("all", all.clone()), ("conv3 in float", QatConfig::new(mixed))] {
            for activations in [ActivationTraining::Learned, ActivationTraining::LearnedOffset] {
                let mut qat = prepare_qat(&branches(), &config.clone().with_activations(activations)).unwrap();
                let losses = train(&mut qat, &samples, 3, 1e-3);
                assert!(losses.iter().all(|loss| loss.is_finite()));
                assert!(compare(what, &mut qat, &samples.0.slice(0, 0..20).unwrap()) < 1e-4);
            }
        }
    }
}

#[test]
fn training_helps_and_everything_learns() {
    let (samples, (test, labels)) = (digits("train"), digits("test"));
    let float = onnx::load(file("tests/fixtures/digits_cnn.onnx")).unwrap();
    let right = |model: &Model| {
        let top = metrics::top1(model.forward(&test).unwrap().as_slice(), 10).unwrap();
        top.iter().zip(&labels).filter(|(top, label)| top == label).count()
    };
    let whole = right(&float);
    // Of 647, after two epochs: at most so many fewer than in float.
    for (bits, fewer) in [(4, 6), (3, 10), (2, 30)] {
        let mut qat = prepare_qat(&float, &QatConfig::bits(bits)).unwrap();
        // The first batch finds the scales.
        train(&mut qat, &samples, 1, 0.0);
        let (before, start) = (right(&qat.finish().unwrap()), qat.parameters().to_vec());
        train(&mut qat, &samples, 30, 2e-3);
        train(&mut qat, &samples, 30, 5e-4);
        let after = right(&qat.finish().unwrap());
        assert!(compare(&format!("{bits} bits"), &mut qat, &test.slice(0, 0..60).unwrap()) < 1e-4);
        let what = format!("{bits} bits: {before} right, then {after}; {whole} in float");
        assert!(after + fewer >= whole && (after > before || bits == 4), "{what}");
        for (before, after) in start.iter().zip(qat.parameters()) {
            assert_eq!(before.value() != after.value(), after.is_trained(), "{}", after.name());
        }
    }
}

#[test]
fn threads_change_nothing() {
    // Of values, twice 2^15 are needed before two threads share them, and here are more for five.
    let samples = digits("train").0.slice(0, 0..400).unwrap();
    let float = onnx::load(file("tests/fixtures/digits_cnn.onnx")).unwrap();
    let labels: Vec<usize> = (0..400).map(|i| i % 10).collect();
    let run = |threads: usize| {
        let mut qat = prepare_qat(&float, &QatConfig::bits(4)).unwrap().with_threads(threads).unwrap();
        let tape = qat.forward(&samples, Mode::Train).unwrap();
        let (_, gradient) = cross_entropy(tape.output(), &labels, 0.0).unwrap();
        let output = qat.model().outputs()[0].name().to_owned();
        let gradients = qat.backward(&tape, &[(&output, &gradient)]).unwrap();
        (tape.output().clone(), gradients, qat.parameters().to_vec())
    };
    let one = run(1);
    assert!([2, 5].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn observers_freeze_and_states_hold_ranges() -> Result<()> {
    let samples = digits("train");
    let float = onnx::load(file("tests/fixtures/digits_cnn.onnx"))?;
    let mut qat = prepare_qat(&float, &QatConfig::observed())?;
    assert!(matches!(qat.finish().unwrap_err(), Error::Empty { .. }));
    train(&mut qat, &samples, 2, 1e-3);
    let first = qat.calibration()?;
    train(&mut qat, &samples, 2, 1e-3);
    assert_ne!(qat.calibration()?, first);
    qat.freeze_observers();
    let frozen = qat.calibration()?;
    let x = samples.0.slice(0, 0..30)?;
    qat.forward(&x, Mode::Train)?;
    assert_eq!(qat.calibration()?, frozen);

    // The calibration of the trained model makes the same integers by way of `convert`.
    let by_hand = convert(&qat.to_model()?, &frozen, QatConfig::observed().scheme())?;
    assert_eq!(by_hand.forward(&x)?.as_slice(), qat.finish()?.forward(&x)?.as_slice());

    #[cfg(feature = "serde")]
    {
        let text = serde_json::to_string(&frozen).unwrap();
        assert_eq!(serde_json::from_str::<lowprec::Calibration>(&text).unwrap(), frozen);
        // Codes that are none, or do not fill their shape, are refused.
        for (from, to) in [("\"shape\":[16,1,3,3]", "\"shape\":[16,1,3,2]"), ("\"qmin\":-127", "\"qmin\":-1")] {
            assert!(text.contains(from) && serde_json::from_str::<lowprec::Calibration>(&text.replace(from, to)).is_err(), "{from}");
        }
    }
    let mut other = prepare_qat(&float, &QatConfig::observed())?;
    let state = qat.state();
    let bytes = safetensors::write(state.iter().map(|(name, value)| (name.as_str(), value)), &Default::default())?;
    other.load_state(&mut safetensors::read(&bytes)?)?;
    assert_eq!(other.finish()?.forward(&x)?.as_slice(), qat.finish()?.forward(&x)?.as_slice());
    Ok(())
}

#[test]
fn learned_ranges_have_the_slope_of_what_is_not_rounded() {
    const ROWS: usize = 6;
    const DECAY: f32 = 0.02;
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(8)]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[3, 8], 2, 0.7), Some(tensor(&[3], 3, 0.2))).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let (x, g) = (tensor(&[ROWS, 8], 4, 1.0), tensor(&[ROWS, 3], 5, 1.0));
    for activations in [ActivationTraining::Learned, ActivationTraining::LearnedOffset, ActivationTraining::Clipped { decay: DECAY }] {
        let config = QatConfig::bits(4).with_weights(WeightTraining::Observed).with_activations(activations);
        let mut qat = prepare_qat(&model, &config).unwrap();
        qat.forward(&x, Mode::Train).unwrap();
        let place = |qat: &Qat, name: &str| qat.parameters().iter().position(|parameter| parameter.name() == name).unwrap();
        let clipped = matches!(activations, ActivationTraining::Clipped { .. });
        let scale = place(&qat, if clipped { "x.log_bound" } else { "x.log_scale" });
        // Half of what it was, so that something is clipped.
        qat.parameters_mut()[scale].value_mut().as_mut_slice()[0] -= 0.7;
        let tape = qat.forward(&x, Mode::Train).unwrap();
        let gradients = qat.backward(&tape, &[("y", &g)]).unwrap();
        let calibration = qat.calibration().unwrap();
        let weights = calibration.weights("fc").unwrap().dequantize();
        let by_input: Vec<f32> =
            (0..ROWS * 8).map(|at| (0..3).map(|o| g.as_slice()[at / 8 * 3 + o] * weights.as_slice()[o * 8 + at % 8]).sum()).collect();
        let (s, zero) = calibration.get("x").unwrap().at(0);
        let (s, z, h) = (f64::from(s), f64::from(zero), 1e-5);
        let near = |what: &str, got: f32, expected: f64| {
            assert!((f64::from(got) - expected).abs() < 1e-4 * expected.abs().max(0.01), "{activations:?}, {what}: {got} for {expected}");
        };
        if clipped {
            let bound = 15.0 * s;
            let above = x.as_slice().iter().zip(&by_input).filter(|(x, _)| f64::from(**x) >= bound).map(|(_, g)| f64::from(*g));
            near("bound", gradients.get(scale)[0], bound * (above.sum::<f64>() + f64::from(DECAY) * bound));
            continue;
        }
        let factor = lsq_factor(8, 15 - zero);
        let at = |(scale, zero): (f64, f64)| surrogate(x.as_slice(), &by_input, (s, -s * z), (scale, -scale * zero), (0.0, 15.0));
        let by_scale = (at((s * f64::exp(h), z)) - at((s * f64::exp(-h), z))) / (2.0 * h);
        near("scale", gradients.get(scale)[0], factor * by_scale);
        let offset = gradients.get(place(&qat, "x.zero_point"));
        match activations {
            ActivationTraining::LearnedOffset => near("zero point", offset[0], factor * (at((s, z + h)) - at((s, z - h))) / (2.0 * h)),
            _ => assert!(offset.is_empty()),
        }
    }
}

#[test]
fn learned_scales_of_weights_have_the_published_gradients() {
    const ROWS: usize = 6;
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(8)]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[3, 8], 2, 0.7), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let (x, g) = (tensor(&[ROWS, 8], 4, 1.0), tensor(&[ROWS, 3], 5, 1.0));
    let powers: Vec<f64> = Levels::of(Table::PowersOfTwo(4)).unwrap().codes().iter().map(|&code| code.into()).collect();
    let uniform: Vec<f64> = (-7..=7).map(f64::from).collect();
    for (training, levels) in
        [(WeightTraining::Learned, uniform), (WeightTraining::Levels(Levels::of(Table::PowersOfTwo(4)).unwrap()), powers)]
    {
        let config = QatConfig::bits(if levels.len() == 15 && levels[0] == -7.0 { 4 } else { 8 }).with_weights(training);
        let mut qat = prepare_qat(&model, &config).unwrap();
        qat.forward(&x, Mode::Train).unwrap();
        let place = |qat: &Qat, name: &str| qat.parameters().iter().position(|parameter| parameter.name() == name).unwrap();
        let (scales, weights) = (place(&qat, "fc.weight.log_scale"), place(&qat, "fc.weight"));
        // Smaller than they were, so that something is clipped.
        qat.parameters_mut()[scales].value_mut().as_mut_slice().iter_mut().for_each(|log| *log -= 0.5);
        let tape = qat.forward(&x, Mode::Train).unwrap();
        let read = tape.value(qat.model(), "x").unwrap();
        let gradients = qat.backward(&tape, &[("y", &g)]).unwrap();
        let (lo, hi) = (levels[0], levels[levels.len() - 1]);
        for o in 0..3 {
            let scale = f64::from(qat.parameters()[scales].value().as_slice()[o]).exp();
            let (mut by_scale, mut clipped) = (0.0, 0);
            for i in 0..8 {
                let by_weight: f64 =
                    (0..ROWS).map(|row| f64::from(g.as_slice()[row * 3 + o]) * f64::from(read.as_slice()[row * 8 + i])).sum();
                let v = f64::from(qat.parameters()[weights].value().as_slice()[o * 8 + i]) / scale;
                let nearest = levels.iter().copied().min_by(|a, b| (a - v).abs().total_cmp(&(b - v).abs())).unwrap();
                let inside = v >= lo && v <= hi;
                by_scale += by_weight * (nearest - if inside { v } else { 0.0 });
                clipped += usize::from(!inside);
                let straight = if inside { by_weight } else { 0.0 };
                assert!((f64::from(gradients.get(weights)[o * 8 + i]) - straight).abs() < 1e-5 * by_weight.abs().max(0.1));
            }
            // Per channel of 8 weights, and by the logarithm: times the scale.
            let expected = by_scale * lsq_factor(8, hi as i32) * scale;
            let got = f64::from(gradients.get(scales)[o]);
            assert!(
                (got - expected).abs() < 1e-4 * expected.abs().max(1e-3) && clipped > 0,
                "{o}: {got} for {expected}, {clipped} clipped"
            );
        }
    }
}

#[test]
fn what_cannot_be_is_an_error() {
    assert!(matches!(Levels::new(&[1.0]).unwrap_err(), Error::Parameter { .. }));
    assert!(Levels::new(&[0.0, 0.0]).is_err() && Levels::new(&[f32::NAN, 1.0]).is_err());
    assert_eq!(Levels::of(Table::PowersOfTwo(4)).unwrap().codes(), [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]);
    assert_eq!(Levels::of(Table::Apot(4)).unwrap().codes()[8..], [1, 2, 3, 4, 6, 8, 10]);
    let groups = Scheme::INT4_WEIGHT.with_granularity(Granularity::PerGroup { axis: 1, size: 2 });
    let config = QatConfig::new(QConfig::new(StaticScheme::default().with_weights(groups)));
    assert!(matches!(prepare_qat(&branches(), &config).unwrap_err(), Error::Unsupported { .. }));

    let mut qat = prepare_qat(&branches(), &QatConfig::bits(4)).unwrap();
    let mut x = tensor(&[2, 2, 8, 8], 1, 1.0);
    x.as_mut_slice()[3] = f32::NAN;
    let error = qat.forward(&x, Mode::Train).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
    // Codes of weights belong to a layer that runs in integers.
    let mut qat = prepare_qat(&branches(), &QatConfig::bits(4)).unwrap();
    qat.forward(&tensor(&[2, 2, 8, 8], 1, 1.0), Mode::Train).unwrap();
    let (model, mut calibration) = (qat.to_model().unwrap(), qat.calibration().unwrap());
    let codes = calibration.weights("conv1").unwrap().clone();
    calibration.insert_weights("relu6", codes);
    let error = convert(&model, &calibration, QatConfig::bits(4).scheme()).unwrap_err();
    assert!(matches!(&error, Error::Unknown { name, .. } if name == "relu6"), "{error}");
}
