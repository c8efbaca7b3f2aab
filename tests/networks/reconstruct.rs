//! Roundings that are learned, block by block.

use crate::support::{Random, conv};
use lowprec::convert::{Calibration, QConfig, StaticScheme, WeightScales, convert};
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::operator::{Operator, Unary};
use lowprec::nn::{Dim, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model};
use lowprec::ptq::gptq::{self, Gptq};
use lowprec::ptq::recipe::{Effort, Recipe, Stage};
use lowprec::ptq::reconstruct::{self, Outcome, Parts, Reconstructed, Reconstruction, SoftRounding};
use lowprec::{DType, Error, Progress, QParams, Scheme, Tensor, Value, quantize_static};
use std::ops::ControlFlow;

fn config(weights: u32, activations: u32) -> QConfig {
    let scheme = StaticScheme::default().with_weights(Scheme::INT8_WEIGHT.with_bits(weights));
    let scheme = scheme.with_activations(Scheme::UINT8_ACTIVATION.with_bits(activations));
    QConfig::new(scheme.with_weight_scales(WeightScales::LeastSquares))
}

/// A convolution, a residual branch of two, pooling, and a linear head.
fn network(seed: u64) -> Model {
    let (r, mut net) = (&mut Random(seed), Model::builder());
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Fixed(6), Dim::Fixed(6)]).unwrap();
    let same = |i, o| Conv2dGeometry::new(i, o, [3, 3]).with_padding([1; 4]);
    let x = net.add("stem", conv(r, same(3, 8), true), &[x]).unwrap();
    let shortcut = net.add("relu1", Layer::Relu, &[x]).unwrap();
    let x = net.add("a", conv(r, same(8, 8), true), &[shortcut]).unwrap();
    let x = net.add("relu2", Layer::Relu, &[x]).unwrap();
    let x = net.add("b", conv(r, same(8, 8), false), &[x]).unwrap();
    let x = net.add("sum", Layer::Add, &[x, shortcut]).unwrap();
    let x = net.add("relu3", Layer::Relu, &[x]).unwrap();
    let x = net.add("pool", MaxPool2d::new([2, 2]), &[x]).unwrap();
    let x = net.add("mean", GlobalAvgPool2d, &[x]).unwrap();
    let x = net.add("flat", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let x = net.add("head", Linear::new(r.tensor([5, 8], 0.4), Some(r.tensor([5], 0.1))).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    net.build().unwrap()
}

/// Smooth images, so that inputs are alike.
fn samples(seed: u64, count: usize) -> Tensor {
    let mut x = Random(seed).tensor([count, 3, 6, 6], 1.0);
    let values = x.as_mut_slice();
    (1..values.len()).for_each(|i| values[i] = 0.7 * values[i - 1] + 0.5 * values[i]);
    x
}

fn short() -> Reconstruction {
    Reconstruction::new().with_steps(500).unwrap().with_batch(16).unwrap().with_threads(1)
}

fn run(model: &Model, x: &Tensor, config: &QConfig, how: &Reconstruction) -> Result<(Reconstructed, Calibration), Error> {
    let value = Value::from(x.clone());
    reconstruct::quantize_static(model, &[&[("image", &value)]], config, how, Progress::silent())
}

#[test]
fn the_gradient_is_that_of_the_soft_rounding() {
    // Weights inside, on codes, and beyond the last ones.
    let weight = Tensor::new([2, 5], vec![0.31, -0.92, 0.55, 1.4, -2.7, 0.2, 0.04, -0.33, 0.8, 0.49]).unwrap();
    let params = QParams::new(vec![0.3, 0.11], Vec::new(), lowprec::Granularity::PerChannel { axis: 0 }, -7, 7).unwrap();
    let soft = SoftRounding::new(&weight, &params).unwrap();
    let began = soft.weights(&soft.start(), soft.scales()).unwrap();
    for (i, (began, w)) in began.iter().zip(weight.as_slice()).enumerate() {
        let end = if i < 5 { 2.1 } else { 0.77 };
        assert!((began - w.clamp(-end, end)).abs() < 1e-5, "{began} for {w}");
    }
    let v: Vec<f32> = soft.start().iter().enumerate().map(|(i, v)| v + 0.2 * (i as f32 - 4.5)).collect();
    let dy: Vec<f32> = (0..10).map(|i| 1.0 - 0.3 * i as f32).collect();
    let (by_v, by_scales) = soft.backward(&v, soft.scales(), &dy).unwrap();
    let loss = |v: &[f32], scales: &[f32]| -> f64 {
        soft.weights(v, scales).unwrap().iter().zip(&dy).map(|(w, dy)| f64::from(*w) * f64::from(*dy)).sum()
    };
    let mut learning = 0;
    for (i, &by_v) in by_v.iter().enumerate() {
        let slope = difference(&v, i, &|v| loss(v, soft.scales()));
        assert!((slope - f64::from(by_v)).abs() < 1e-3, "{i}: {slope} and {by_v}");
        learning += usize::from(by_v != 0.0);
    }
    assert!((5..10).contains(&learning), "{learning} learn: those beyond the last code do not");
    for (i, by_scale) in by_scales.iter().enumerate() {
        let slope = difference(soft.scales(), i, &|scales| loss(&v, scales));
        assert!((slope - f64::from(*by_scale)).abs() < 5e-3, "{slope} and {by_scale}");
    }
    for beta in [20.0, 4.0, 2.0] {
        let mut pressure = vec![0.0; 10];
        soft.add_pressure(&v, beta, 0.5, &mut pressure).unwrap();
        for (i, pressure) in pressure.iter().enumerate() {
            let slope = 0.5 * difference(&v, i, &|v| soft.undecided(v, beta));
            assert!((slope - f64::from(*pressure)).abs() < 2e-3, "{beta}, {i}: {slope} and {pressure}");
        }
    }
    // Decided, all are codes, and none is pressed.
    let decided: Vec<f32> = v.iter().map(|v| if *v >= 0.0 { 9.0 } else { -9.0 }).collect();
    assert_eq!(soft.undecided(&decided, 2.0), 0.0);
    let codes = soft.codes(&decided, soft.scales()).unwrap();
    assert_eq!(codes.dequantize().as_slice(), soft.weights(&decided, soft.scales()).unwrap());
    assert!(matches!(soft.weights(&v[1..], soft.scales()), Err(Error::Length { .. })));
    assert!(matches!(soft.codes(&v, &[1.0]), Err(Error::Length { .. })));
    assert!(SoftRounding::new(&Tensor::full([1, 1], f32::NAN).unwrap(), &params).is_err());
}

fn difference(x: &[f32], i: usize, f: &dyn Fn(&[f32]) -> f64) -> f64 {
    const STEP: f32 = 1e-3;
    let at = |step: f32| {
        let mut moved = x.to_vec();
        moved[i] += step;
        (f(&moved), f64::from(moved[i]))
    };
    let ((above, high), (below, low)) = (at(STEP), at(-STEP));
    (above - below) / (high - low)
}

#[test]
fn blocks_come_nearer_and_weights_stay_next_to_themselves() {
    let (model, x) = (network(1), samples(2, 64));
    let how = short().with_rates(0.03, 0.0).unwrap();
    let (rebuilt, calibration) = run(&model, &x, &config(3, 8), &how).unwrap();
    let layers: Vec<&[String]> = rebuilt.blocks.iter().map(|block| block.layers.as_slice()).collect();
    assert_eq!(layers, [&["stem".to_owned()][..], &["a".to_owned(), "b".to_owned()], &["head".to_owned()]]);
    for block in &rebuilt.blocks {
        assert!(block.errors[1] <= block.errors[0] && (block.outcome == Outcome::Learned) == (block.errors[1] < block.errors[0]));
    }
    let shares: Vec<f64> = rebuilt.blocks.iter().map(|block| block.errors[1] / block.errors[0]).collect();
    assert!(shares[0] < 0.7 && shares[1] < 0.8, "{shares:?}");
    // Every weight is the code below or the code above, on the grid of the rule.
    let mut moved = 0;
    for node in model.nodes() {
        let weight = match node.layer() {
            Layer::Conv2d(conv) => conv.weight(),
            Layer::Linear(linear) => linear.weight(),
            _ => continue,
        };
        let codes = calibration.weights(node.name()).unwrap();
        let scales = codes.params().scales();
        let each = weight.len() / scales.len();
        for (i, (&w, code)) in weight.as_slice().iter().zip(codes.codes()).enumerate() {
            let steps = w / scales[i / each];
            let between = [steps.floor(), steps.floor() + 1.0].map(|code| code.clamp(-3.0, 3.0) as i32);
            assert!(between.contains(&code), "{}: {steps} became {code}", node.name());
            moved += usize::from((steps.clamp(-3.0, 3.0) - code as f32).abs() > 0.5);
        }
    }
    assert!(moved > 20, "{moved} weights are not the nearest");
    // The last block's error is that of the integer model; and what was found is plain data, which makes the same model again.
    let (mut off, again) = (0.0, convert(&model, &calibration, &config(3, 8)).unwrap());
    for row in (3..64).step_by(4) {
        let x = x.slice(0, row..row + 1).unwrap();
        let (y, made) = (model.forward(&x).unwrap(), rebuilt.model.forward(&x).unwrap());
        assert_eq!(again.forward(&x).unwrap().as_slice(), made.as_slice());
        off += y.as_slice().iter().zip(made.as_slice()).map(|(y, made)| f64::from(y - made).powi(2)).sum::<f64>() / 16.0;
    }
    let told = rebuilt.blocks[2].errors[1];
    assert!((off - told).abs() < 0.02 * told, "{off} and {told}");
}

#[test]
fn a_seed_decides_everything_and_threads_nothing() {
    let (model, x, config) = (network(3), samples(4, 32), config(4, 4));
    let how = short().with_steps(300).unwrap();
    let with = |how: Reconstruction| run(&model, &x, &config, &how).unwrap().1;
    let first = with(how);
    assert_eq!(first, with(how.with_threads(2)));
    assert_eq!(first, with(how.with_threads(3)));
    assert_ne!(first, with(how.with_seed(1)));
    assert_ne!(first, with(how.with_drop(0.0).unwrap()), "values of 4 bits are left unrounded by chance");
    // Scales of values were learned, zero points stay.
    let plain = run(&model, &x, &config, &how.with_rates(0.03, 0.0).unwrap()).unwrap().1;
    let moved = |name: &str| first.get(name).unwrap().at(0).0 != plain.get(name).unwrap().at(0).0;
    assert!(first.activations().any(|(name, _)| moved(name)));
    assert!(first.activations().all(|(name, params)| params.at(0).1 == plain.get(name).unwrap().at(0).1));
    assert_ne!(with(how.with_parts(Parts::Layers)), first);
}

#[test]
fn it_goes_on_from_where_another_method_ended() {
    let (model, value, config) = (network(5), Value::from(samples(6, 48)), config(4, 8));
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let (_, fitted) = gptq::quantize_static(&model, &[batch], &config, &Gptq::new(), Progress::silent()).unwrap();
    let (rebuilt, found) = reconstruct::reconstruct(&model, &[batch], &config, &fitted, &short(), Progress::silent()).unwrap();
    assert!(rebuilt.blocks.iter().any(|block| block.outcome == Outcome::Learned));
    for block in rebuilt.blocks.iter().filter(|block| block.outcome != Outcome::Learned) {
        block.layers.iter().for_each(|name| assert_eq!(found.weights(name), fitted.weights(name)));
    }
    let layers = short().with_parts(Parts::Layers);
    let (rebuilt, _) = reconstruct::reconstruct(&model, &[batch], &config, &fitted, &layers, Progress::silent()).unwrap();
    assert_eq!(rebuilt.blocks.len(), 4);

    // In a recipe it is a step of its own, below 8 bits.
    let recipe = Recipe::new(Effort::Fast).with(Stage::Fit, true).with(Stage::Rounding, true).with_reconstruction(short());
    let improved = recipe.quantize_static(&model, &[batch], &config, Progress::silent()).unwrap();
    assert!(improved.stages.iter().map(|gain| gain.stage).eq([Stage::Fit, Stage::Rounding]) && improved.db >= improved.plain);
    let improved = recipe.quantize_static(&model, &[batch], &QConfig::default(), Progress::silent()).unwrap();
    assert!(improved.stages.iter().filter(|gain| gain.idle.is_none()).map(|gain| gain.stage).eq([Stage::Fit]), "{improved}");
}

#[test]
fn samples_that_teach_nothing_leave_plain_rounding() {
    let (model, config) = (network(7), config(4, 8));
    let row = samples(8, 1);
    let (one, _) = run(&model, &row, &config, &short()).unwrap();
    assert!(one.blocks.iter().all(|block| block.outcome == Outcome::FewSamples));
    let plain = quantize_static(&model, [&row], &config).unwrap();
    assert_eq!(plain.forward(&row).unwrap().as_slice(), one.model.forward(&row).unwrap().as_slice());
    // The same value everywhere, and none at all: nothing worse than it began with.
    for constant in [0.7, 0.0] {
        let x = Tensor::full([8, 3, 6, 6], constant).unwrap();
        let (rebuilt, _) = run(&model, &x, &config, &short()).unwrap();
        assert!(rebuilt.blocks.iter().all(|block| block.errors[1] <= block.errors[0]), "{:?}", rebuilt.blocks);
        assert!(rebuilt.model.forward(&x).unwrap().as_slice().iter().all(|y| y.is_finite()));
    }
    let mut x = samples(9, 8);
    x.as_mut_slice()[70] = f32::NAN;
    let told = run(&model, &x, &config, &short()).unwrap_err();
    assert!(matches!(told.kind(), Error::NonFinite { .. }) && told.to_string().contains("image"), "{told}");
    let value = Value::from(x);
    let (_, start) = run(&model, &samples(9, 8), &config, &short().with_steps(1).unwrap()).unwrap();
    let again = |name| reconstruct::reconstruct(&model, &[&[(name, &value)]], &config, &start, &short(), Progress::silent());
    assert!(matches!(again("image").unwrap_err().kind(), Error::NonFinite { .. }));
    assert!(matches!(again("picture"), Err(Error::Unknown { .. })));
    let empty = Value::from(samples(9, 8).slice(0, 0..0).unwrap());
    let of_none = reconstruct::reconstruct(&model, &[&[("image", &empty)]], &config, &start, &short(), Progress::silent());
    assert!(of_none.is_err(), "no sample: {of_none:?}");
    let none = reconstruct::quantize_static(&model, &[], &config, &short(), Progress::silent());
    assert!(matches!(none, Err(Error::Empty { .. })));
    let wrong = [short().with_steps(0), short().with_batch(0), short().with_rates(0.0, 0.1), short().with_rates(0.1, -1.0)];
    assert!(wrong.iter().all(|wrong| matches!(wrong, Err(Error::Parameter { .. }))));
    assert!(short().with_drop(1.5).is_err() && short().with_pressure(f64::NAN).is_err());
}

#[test]
fn it_can_be_stopped_anywhere() {
    let (model, value) = (network(10), Value::from(samples(11, 16)));
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let mut steps = Vec::new();
    let how = short().with_steps(40).unwrap();
    let progress = Progress::new(|step| {
        if step.stage == "learn rounding" {
            steps.push((step.item.to_owned(), step.done, step.total));
        }
        ControlFlow::Continue(())
    });
    reconstruct::quantize_static(&model, &[batch], &config(4, 8), &how, progress).unwrap();
    assert!(steps.iter().all(|step| step.2 == 120) && steps.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    assert!(steps.iter().any(|step| step == &("a, b".to_owned(), 60, 120)), "{steps:?}");
    for at in [0, 60, 80] {
        let stop = Progress::new(|step| match step.stage == "learn rounding" && step.done == at {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        let stopped = reconstruct::quantize_static(&model, &[batch], &config(4, 8), &how, stop);
        assert!(matches!(stopped, Err(Error::Cancelled { stage: "learn rounding", .. })), "{at}");
    }
}

#[test]
fn around_a_layer_without_a_derivative_the_rest_is_rebuilt() {
    let (r, mut net) = (&mut Random(12), Model::builder());
    let x = net.input("image", DType::F32, &[Dim::Fixed(4), Dim::Fixed(6)]).unwrap();
    let linear = |r: &mut Random| Linear::new(r.tensor([6, 6], 0.7), Some(r.tensor([6], 0.2))).unwrap();
    let x = net.add("first", linear(r), &[x]).unwrap();
    let shortcut = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("in", linear(r), &[shortcut]).unwrap();
    let x = net.add("steps", Layer::Operator(Operator::Unary(Unary::Round)), &[x]).unwrap();
    let x = net.add("out", linear(r), &[x]).unwrap();
    let x = net.add("sum", Layer::Add, &[x, shortcut]).unwrap();
    let x = net.add("last", linear(r), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    // A model of a fixed number of rows: batches as they are given. The values of a row are much alike.
    let rows = |seed: u64| {
        let (base, mut x) = (Random(40 + seed).tensor([4], 1.5), Random(20 + seed).tensor([4, 6], 0.2));
        x.as_mut_slice().iter_mut().enumerate().for_each(|(i, x)| *x += base.as_slice()[i / 6]);
        Value::from(x)
    };
    let values: Vec<Value> = (0..16).map(rows).collect();
    let batches: Vec<[(&str, &Value); 1]> = values.iter().map(|value| [("image", value)]).collect();
    let batches: Vec<&[(&str, &Value)]> = batches.iter().map(|batch| &batch[..]).collect();
    let (rebuilt, _) = reconstruct::quantize_static(&model, &batches, &config(3, 8), &short(), Progress::silent()).unwrap();
    let outcomes: Vec<(usize, Outcome)> = rebuilt.blocks.iter().map(|block| (block.layers.len(), block.outcome)).collect();
    assert_eq!((outcomes[0].0, outcomes[1], outcomes[2].0), (1, (2, Outcome::Impossible), 1), "{outcomes:?}");
    assert!(rebuilt.blocks.iter().any(|block| block.outcome == Outcome::Learned), "{:?}", rebuilt.blocks);
    assert_eq!(rebuilt.blocks[1].errors[0], rebuilt.blocks[1].errors[1]);
}
