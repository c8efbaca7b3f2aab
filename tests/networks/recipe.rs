//! Recipes: steps that are kept where they help.

use crate::support::{Random, network};
use lowprec::convert::{QConfig, StaticScheme, WeightScales};
use lowprec::metrics::sqnr_db;
use lowprec::nn::{Dim, Embedding, Linear, Lstm, RecurrentOptions};
use lowprec::ptq::gptq::{self, Gptq};
use lowprec::ptq::recipe::{Effort, Improved, Recipe, Stage};
use lowprec::ptq::{DynamicQuantization, WeightConfig, awq};
use lowprec::{DType, Error, LayerKind, Model, Progress, Scheme, Tensor, Value, quantize_dynamic, quantize_static, quantize_weights};
use std::ops::ControlFlow;

fn samples(seed: u64, count: usize) -> Tensor {
    Random(seed).tensor([count, 3, 14, 11], 1.0)
}

/// Weights of 4 bits.
fn coarse() -> QConfig {
    let scheme = StaticScheme::default().with_weights(Scheme::INT8_WEIGHT.with_bits(4));
    QConfig::new(scheme.with_weight_scales(WeightScales::LeastSquares))
}

fn check(improved: &Improved, model: &Model, x: &Tensor) -> f64 {
    assert!(improved.db >= improved.plain);
    let mut last = improved.plain;
    for gain in &improved.stages {
        assert!(gain.idle.is_none() || gain.after == gain.before);
        assert_eq!((gain.before, gain.kept), (last, gain.after > gain.before));
        last = if gain.kept { gain.after } else { last };
    }
    assert_eq!(last, improved.db);
    // What the float model was made into is the same function.
    let (y, same) = (model.forward(x).unwrap(), improved.float.forward(x).unwrap());
    assert!(sqnr_db(y.as_slice(), same.as_slice()).unwrap() > 90.0);
    sqnr_db(y.as_slice(), improved.model.forward(x).unwrap().as_slice()).unwrap()
}

#[test]
fn the_best_effort_comes_nearer_in_every_mode() {
    let (mut gains, kinds) = ([0.0; 3], [LayerKind::Conv2d, LayerKind::Linear]);
    for seed in 1..3 {
        let (model, given, x) = (network(seed), samples(seed + 50, 48), samples(seed + 90, 32));
        let value = Value::from(given.clone());
        let batch: &[(&str, &Value)] = &[("image", &value)];
        let y = model.forward(&x).unwrap();
        let db = |small: &Model| sqnr_db(y.as_slice(), small.forward(&x).unwrap().as_slice()).unwrap();
        // Learned roundings have their own tests.
        let best = Recipe::new(Effort::Best).with(Stage::Rounding, false);
        let config = WeightConfig::new("int3:g16".parse().unwrap());
        let improved = best.quantize_static(&model, &[batch], &coarse(), Progress::silent()).unwrap();
        gains[0] += check(&improved, &model, &x) - db(&quantize_static(&model, [&given], &coarse()).unwrap());
        assert!(improved.stages.iter().any(|gain| gain.stage == Stage::Fit) && improved.to_string().contains("fit weights"));
        let improved = best.quantize_dynamic(&model, &[batch], &DynamicQuantization::new(&kinds), Progress::silent()).unwrap();
        gains[1] += check(&improved, &model, &x) - db(&quantize_dynamic(&model, &kinds).unwrap());
        let improved = best.quantize_weights(&model, &[batch], &config, Progress::silent()).unwrap();
        gains[2] += check(&improved, &model, &x) - db(&quantize_weights(&model, &config).unwrap());
    }
    assert!(gains[0] > 2.0 && gains[1] > 0.0 && gains[2] > 4.0, "{gains:?}");
}

#[test]
fn steps_are_switched_and_samples_are_split() {
    let (model, x) = (network(1), samples(91, 8));
    let values: Vec<Value> = (0..5).map(|i| samples(60 + i, 8).into()).collect();
    let batches: Vec<[(&str, &Value); 1]> = values.iter().map(|value| [("image", value)]).collect();
    let batches: Vec<&[(&str, &Value)]> = batches.iter().map(|batch| &batch[..]).collect();
    // Nothing is tried: what the verb does.
    let fast = Recipe::new(Effort::Fast).quantize_static(&model, &batches, &coarse(), Progress::silent()).unwrap();
    assert!(fast.stages.is_empty() && fast.db == fast.plain);
    let all: Vec<Tensor> = values.iter().map(|value| value.get::<f32>().unwrap().clone()).collect();
    let plain = quantize_static(&model, &all, &coarse()).unwrap();
    assert_eq!(fast.model.forward(&x).unwrap().as_slice(), plain.forward(&x).unwrap().as_slice());
    let one = Recipe::new(Effort::Fast).with(Stage::Biases, true).with(Stage::Fit, true).with(Stage::Fit, false);
    let one = one.quantize_static(&model, &batches, &coarse(), Progress::silent()).unwrap();
    assert!(one.stages.iter().map(|gain| gain.stage).eq([Stage::Biases]));
    assert_eq!("best".parse::<Effort>().unwrap(), Effort::Best);
    assert!(matches!("most".parse::<Effort>(), Err(Error::Unknown { .. })));

    // A single sample is for both; none is an error; a caller can stop anything.
    let value = Value::from(samples(3, 1));
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let improved = Recipe::new(Effort::Best).quantize_static(&model, &[batch], &coarse(), Progress::silent()).unwrap();
    check(&improved, &model, &x);
    assert!(improved.by_all);
    let none = Recipe::new(Effort::Best).quantize_static(&model, &[], &coarse(), Progress::silent());
    assert!(matches!(none, Err(Error::Empty { .. })));
    for stage in ["recipe", "equalize", "draw scales", "fit weights", "learn rounding", "correct biases"] {
        let stop = Progress::new(|step| if step.stage == stage { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        let recipe = Recipe::new(Effort::Best).with(Stage::Rounding, stage == "learn rounding");
        let stopped = recipe.quantize_static(&model, &batches, &coarse(), stop);
        assert!(matches!(stopped, Err(Error::Cancelled { .. })), "{stage}");
    }
    let value = Value::from(Tensor::full([4, 3, 14, 11], f32::NAN).unwrap());
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let error = Recipe::new(Effort::Best).quantize_static(&model, &[batch], &coarse(), Progress::silent()).unwrap_err();
    assert!(matches!(error.kind(), Error::NonFinite { .. }), "{error}");
}

/// A step with no layer that it is for is passed over, and the others are taken.
#[test]
fn embeddings_alone_have_no_biases_to_correct() {
    let random = &mut Random(7);
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    let x = net.add("words", Embedding::new(random.tensor([30, 8], 1.0)).unwrap(), &[ids]).unwrap();
    let x = net.add("head", Linear::new(random.tensor([5, 8], 1.0), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let value = Value::from(Tensor::new([40], (0..40).map(|i| i * 7 % 30).collect::<Vec<i64>>()).unwrap());
    let batch: &[(&str, &Value)] = &[("ids", &value)];
    let kinds = [LayerKind::Embedding];
    let y = |model: &Model| model.run(batch).unwrap();
    let config = WeightConfig::new("int4".parse().unwrap()).with_kind(LayerKind::Linear, None);
    for effort in [Effort::Balanced, Effort::Best] {
        let recipe = Recipe::new(effort);
        let improved = recipe.quantize_dynamic(&model, &[batch], &DynamicQuantization::new(&kinds), Progress::silent()).unwrap();
        assert!(improved.stages.iter().all(|gain| gain.stage != Stage::Biases || gain.idle.is_some()), "{improved}");
        assert_eq!(y(&improved.model), y(&quantize_dynamic(&model, &kinds).unwrap()));
        let improved = recipe.quantize_weights(&model, &[batch], &config, Progress::silent()).unwrap();
        assert!(improved.stages.iter().all(|gain| gain.stage != Stage::Biases || gain.idle.is_some()), "{improved}");
        assert!(improved.db >= improved.plain);
    }
    // Nothing to quantize at all is an error still.
    let nothing =
        Recipe::new(Effort::Best).quantize_dynamic(&model, &[batch], &DynamicQuantization::new(&[LayerKind::Conv2d]), Progress::silent());
    assert!(matches!(nothing, Err(Error::NothingToQuantize { .. })));
}

/// Every step that was tried is in the report: with what it gained, or why there was nothing to do.
#[test]
fn steps_without_work_are_told() {
    let (model, value) = (network(1), Value::from(samples(70, 12)));
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let kinds = [LayerKind::Conv2d, LayerKind::Linear];
    let stages = |improved: &Improved| improved.stages.iter().map(|gain| gain.stage).collect::<Vec<_>>();
    let idle = |improved: &Improved, stage| improved.stages.iter().find(|gain| gain.stage == stage).and_then(|gain| gain.idle.clone());
    let recipe = Recipe::new(Effort::Best).with(Stage::Absorb, true).with(Stage::Grids, true);
    let eight = QConfig::new(StaticScheme::default());
    let improved = recipe.quantize_static(&model, &[batch], &eight, Progress::silent()).unwrap();
    let expected = [
        Stage::Equalize,
        Stage::Absorb,
        Stage::Draw,
        Stage::Smooth,
        Stage::Ranges,
        Stage::Fit,
        Stage::Rounding,
        Stage::Biases,
        Stage::Grids,
    ];
    assert_eq!(stages(&improved), expected);
    assert!(idle(&improved, Stage::Rounding).unwrap().contains("8 bits"));
    assert!(idle(&improved, Stage::Grids).unwrap().contains("not a step of static models"));
    assert!(improved.to_string().contains("learn rounding nothing to do: weights and values have 8 bits"), "{improved}");
    let dynamic = DynamicQuantization::new(&kinds).exclude("conv1").unwrap();
    let improved = Recipe::new(Effort::Best).quantize_dynamic(&model, &[batch], &dynamic, Progress::silent()).unwrap();
    assert_eq!(stages(&improved), [Stage::Equalize, Stage::Draw, Stage::Smooth, Stage::Fit, Stage::Biases]);
    assert!(!improved.model.node("conv1").unwrap().layer().is_quantized());
    let by_weights = |format: &str| {
        let config = WeightConfig::new(format.parse().unwrap());
        Recipe::new(Effort::Best).quantize_weights(&model, &[batch], &config, Progress::silent()).unwrap()
    };
    let improved = by_weights("int3:g16");
    let of_weights = [Stage::Grids, Stage::Scale, Stage::Clip, Stage::Fit, Stage::Biases, Stage::Distill];
    assert_eq!(stages(&improved), of_weights);
    // Without a zero point there is no grid to choose.
    assert!(idle(&improved, Stage::Grids).is_some());
    let improved = by_weights("uint3:g16:range");
    assert!(idle(&improved, Stage::Grids).is_none() && stages(&improved) == of_weights, "{improved}");
    // Levels that can't be searched are left as they are.
    for format in ["trellis2:g16", "int16"] {
        let improved = by_weights(format);
        assert!(idle(&improved, Stage::Fit).unwrap().contains("fitting weights"), "{improved}");
    }
    for stage in Stage::ALL {
        assert_eq!(stage.to_string().replace(' ', "-").parse::<Stage>().unwrap(), *stage);
    }
    assert!(matches!("sum".parse::<Stage>(), Err(Error::Unknown { .. })));
}

/// In every mode a caller can stop each step, and samples that are not finite are told.
#[test]
fn dynamic_and_weights_are_stopped_and_checked() {
    let (model, value) = (network(2), Value::from(samples(71, 8)));
    let batch: &[(&str, &Value)] = &[("image", &value)];
    let nan = Value::from(Tensor::full([4, 3, 14, 11], f32::NAN).unwrap());
    let nan: &[(&str, &Value)] = &[("image", &nan)];
    let dynamic = |batch, progress| {
        let how = DynamicQuantization::new(&[LayerKind::Conv2d, LayerKind::Linear]);
        Recipe::new(Effort::Best).quantize_dynamic(&model, &[batch], &how, progress)
    };
    let weights = |batch, progress| {
        let config = WeightConfig::new("uint3:g16".parse().unwrap());
        Recipe::new(Effort::Best).quantize_weights(&model, &[batch], &config, progress)
    };
    let at = |wanted: &'static str| {
        Progress::new(move |step| if step.stage == wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    for stage in ["recipe", "equalize", "draw scales", "fit weights", "correct biases"] {
        assert!(matches!(dynamic(batch, at(stage)), Err(Error::Cancelled { .. })), "{stage}");
    }
    for stage in ["recipe", "clip weights", "fit weights", "correct biases", "distill"] {
        assert!(matches!(weights(batch, at(stage)), Err(Error::Cancelled { .. })), "{stage}");
    }
    assert!(matches!(dynamic(nan, Progress::silent()).unwrap_err().kind(), Error::NonFinite { .. }));
    assert!(matches!(weights(nan, Progress::silent()).unwrap_err().kind(), Error::NonFinite { .. }));
}

/// Constant samples and dead channels leave a model that is no further off than without any step.
#[test]
fn samples_that_show_nothing_do_no_harm() {
    let model = network(3);
    let mut half_dead = samples(72, 8);
    half_dead.as_mut_slice().chunks_mut(3 * 14 * 11).for_each(|image| image[14 * 11..].fill(0.0));
    for x in [Tensor::full([8, 3, 14, 11], 0.25).unwrap(), Tensor::full([8, 3, 14, 11], 0.0).unwrap(), half_dead] {
        let value = Value::from(x);
        let batch: &[(&str, &Value)] = &[("image", &value)];
        let recipe = Recipe::new(Effort::Best).with(Stage::Absorb, true);
        let how = DynamicQuantization::new(&[LayerKind::Conv2d, LayerKind::Linear]);
        let config = WeightConfig::new("int4:g16".parse().unwrap());
        let all = [
            recipe.quantize_static(&model, &[batch], &coarse(), Progress::silent()).unwrap(),
            recipe.quantize_dynamic(&model, &[batch], &how, Progress::silent()).unwrap(),
            recipe.quantize_weights(&model, &[batch], &config, Progress::silent()).unwrap(),
        ];
        for improved in all {
            assert!(improved.db >= improved.plain, "{improved}");
            let y = improved.model.forward(&samples(92, 2)).unwrap();
            assert!(y.as_slice().iter().all(|y| y.is_finite()));
        }
    }
}

/// Recurrent layers have their steps; and what an earlier request quantized stays as it is.
#[test]
fn recurrent_layers_and_two_requests() {
    let random = &mut Random(9);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(12)]).unwrap();
    let lstm = Lstm::new(RecurrentOptions::new(16), &random.tensor([1, 64, 12], 0.5), &random.tensor([1, 64, 16], 0.4), None, None);
    let x = net.add("memory", lstm.unwrap(), &[x]).unwrap();
    let x = net.add("head", Linear::new(random.tensor([6, 16], 0.5), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    // Features that go together: of independent ones there is little to fit to.
    let (mix, few) = (random.tensor([4, 12], 1.0), random.tensor([10 * 32, 4], 1.0));
    let of = |(row, j): (&[f32], usize)| (0..4).map(|i| row[i] * mix.as_slice()[i * 12 + j]).sum::<f32>();
    let x = few.as_slice().chunks(4).flat_map(|row| (0..12).map(move |j| (row, j))).map(of).collect();
    let value = Value::from(Tensor::new([10, 32, 12], x).unwrap());
    let (batch, silent): (&[(&str, &Value)], _) = (&[("x", &value)], Progress::silent);
    let config = WeightConfig::new("uint3:g4".parse().unwrap());
    let improved = Recipe::new(Effort::Best).quantize_weights(&model, &[batch], &config, silent()).unwrap();
    assert!(improved.db > improved.plain + 1.0, "{improved}");
    assert!(improved.stages.iter().any(|gain| gain.stage == Stage::Fit && gain.kept), "{improved}");
    let clipped = awq::clip_weights(&model, &[batch], &config, silent()).unwrap();
    assert!(clipped.layers.iter().map(|layer| layer.name.as_str()).eq(["memory", "head"]));
    assert!(clipped.layers.iter().all(|layer| layer.errors[1] <= layer.errors[0]));

    let memory = model.node("memory").unwrap();
    assert!(!memory.layer().is_quantized());
    let half = config.clone().with_kind(LayerKind::Linear, None);
    for first in [quantize_weights(&model, &half).unwrap(), quantize_dynamic(&model, &[LayerKind::Lstm]).unwrap()] {
        let same = |done: &Model| {
            assert!(done.node("head").unwrap().layer().is_quantized());
            let format = |model: &Model| model.node("memory").unwrap().layer().format_name();
            assert_eq!(format(done), format(&first));
        };
        same(&gptq::quantize_weights(&first, &[batch], &config, &Gptq::new(), silent()).unwrap().model);
        same(&awq::quantize_weights(&first, &[batch], &config, silent()).unwrap().model);
        same(&Recipe::new(Effort::Best).quantize_weights(&first, &[batch], &config, silent()).unwrap().model);
        let how = DynamicQuantization::new(&[LayerKind::Linear, LayerKind::Lstm]);
        same(&gptq::quantize_dynamic(&first, &[batch], &how, &Gptq::new(), silent()).unwrap().model);
    }
}
