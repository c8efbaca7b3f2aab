//! Scales, biases and norms tuned by the outputs of the whole model: nearer, as small as before, the same codes.

use crate::support::{Random, network};
use lowprec::metrics::sqnr_db;
use lowprec::nn::weight_only::Activations;
use lowprec::nn::{Dim, Embedding, Layer, Linear};
use lowprec::ptq::WeightConfig;
use lowprec::ptq::distill::{Distillation, Distilled, Likeness, distill};
use lowprec::ptq::recipe::{Effort, Recipe, Stage};
use lowprec::quant::{QuantizedWeights, Zeros};
use lowprec::{DType, Error, Model, Progress, Result, Tensor, Value, quantize_weights};
use std::ops::ControlFlow;

fn samples(seed: u64, count: usize) -> Tensor {
    Random(seed).tensor([count, 3, 14, 11], 1.0)
}

fn small(model: &Model, format: &str) -> Model {
    quantize_weights(model, &WeightConfig::new(format.parse().unwrap())).unwrap()
}

fn tuned(float: &Model, quantized: &Model, given: &Tensor, how: &Distillation) -> Result<Distilled> {
    let value = Value::from(given.clone());
    distill(float, quantized, &[&[("image", &value)]], how, Progress::silent())
}

fn weights(model: &Model) -> Vec<QuantizedWeights> {
    model.nodes().iter().filter_map(|node| node.layer().stored_weights()).map(|stored| stored.quantized().unwrap()).collect()
}

#[test]
fn outputs_come_nearer_and_codes_stay() {
    let (given, x) = (samples(50, 32), samples(90, 16));
    for (format, likeness) in [
        ("int3:g16", Likeness::Both),
        ("offset3:g16", Likeness::Values),
        ("shift3:g16:f32", Likeness::Predictions),
        ("int3:channel", Likeness::Both),
        ("int3:g16:largest=0.02", Likeness::Both),
        // Scales that are powers of two stay; biases do not.
        ("int3:g16:e8m0", Likeness::Values),
    ] {
        let float = network(1);
        let before = small(&float, format);
        let how = Distillation::new().with_likeness(likeness).with_rate(0.003).unwrap().with_epochs(4).unwrap();
        let made = tuned(&float, &before, &given, &how).unwrap();
        assert!(made.losses.len() == 5 && made.taken > 0 && made.losses[made.taken] < made.losses[0], "{format}: {:?}", made.losses);
        assert_eq!(made.model.stored_bytes(), before.stored_bytes(), "{format}");
        let y = float.forward(&x).unwrap();
        let db = |model: &Model| sqnr_db(y.as_slice(), model.forward(&x).unwrap().as_slice()).unwrap();
        if likeness != Likeness::Predictions {
            assert!(db(&made.model) > db(&before) + 0.3, "{format}: {} of {}", db(&made.model), db(&before));
        }
        let mut moved = false;
        for (old, new) in weights(&before).iter().zip(&weights(&made.model)) {
            assert_eq!((old.codes(), old.kept(), old.format()), (new.codes(), new.kept(), new.format()));
            moved |= old.scales() != new.scales();
            if let (Zeros::Offsets(old), Zeros::Offsets(new)) = (old.zeros(), new.zeros()) {
                assert_ne!(old, new);
            }
        }
        assert_eq!(moved, !format.ends_with("e8m0"), "{format}");
    }
}

#[test]
fn a_seed_decides_for_any_number_of_threads() {
    let (float, given) = (network(2), samples(51, 16));
    let before = small(&float, "int3:g16");
    let how = Distillation::new().with_epochs(2).unwrap();
    let of = |how: Distillation| tuned(&float, &before, &given, &how).unwrap();
    let (one, three, other) = (of(how.with_threads(1)), of(how.with_threads(3)), of(how.with_seed(1)));
    assert_eq!(weights(&one.model), weights(&three.model));
    assert_eq!(one.losses, three.losses);
    assert!(one.losses[0] == other.losses[0] && one.losses != other.losses);
}

#[test]
fn what_ran_away_is_not_taken() {
    let (float, given) = (network(3), samples(52, 8));
    let before = small(&float, "int8");
    let made = tuned(&float, &before, &given, &Distillation::new().with_rate(1e6).unwrap()).unwrap();
    assert_eq!(made.taken, 0);
    assert_eq!(weights(&made.model), weights(&before));
    // Layers that encode their input refuse what is not finite: that ends the tuning too, and is no error.
    let config = WeightConfig::new("int8".parse().unwrap()).with_activations(Activations::Int8);
    let bytes = quantize_weights(&float, &config).unwrap();
    for rate in [1e2, 1e4, 1e6] {
        let made = tuned(&float, &bytes, &given, &Distillation::new().with_rate(rate).unwrap()).unwrap();
        assert!(made.losses[made.taken] <= made.losses[0], "{rate}: {:?}", made.losses);
    }
    // Nothing is held out of three samples.
    let made = tuned(&float, &before, &samples(53, 3), &Distillation::new()).unwrap();
    assert!(made.losses.is_empty() && weights(&made.model) == weights(&before));
}

#[test]
fn mistakes_are_told() {
    let (float, given) = (network(4), samples(54, 8));
    let before = small(&float, "int4");
    let how = Distillation::new();
    assert!(how.with_epochs(0).is_err() && how.with_batch(0).is_err() && how.with_rate(f64::NAN).is_err());
    let error = tuned(&float, &float, &given, &how).unwrap_err();
    assert!(matches!(error.kind(), Error::NothingToQuantize { .. }), "{error}");
    let error = tuned(&float, &before, &Tensor::full([8, 3, 14, 11], f32::NAN).unwrap(), &how).unwrap_err();
    assert!(matches!(error.kind(), Error::NonFinite { .. }), "{error}");
    assert!(matches!(distill(&float, &before, &[], &how, Progress::silent()), Err(Error::Empty { .. })));
    let value = Value::from(given);
    let stop = Progress::new(|step| if step.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    assert!(matches!(distill(&float, &before, &[&[("image", &value)]], &how, stop), Err(Error::Cancelled { stage: "distill", .. })));
}

/// Weights of words and of products, norms between them, in a recipe.
#[test]
fn a_recipe_tunes_last() {
    let random = &mut Random(8);
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    let x = net.add("words", Embedding::new(random.tensor([30, 16], 1.0)).unwrap(), &[ids]).unwrap();
    let x = net.add("body", Linear::new(random.tensor([24, 16], 0.5), None).unwrap(), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("head", Linear::new(random.tensor([5, 24], 0.5), Some(random.tensor([5], 0.1))).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let value = Value::from(Tensor::new([64], (0..64).map(|i| i * 7 % 30).collect::<Vec<i64>>()).unwrap());
    let batch: &[(&str, &Value)] = &[("ids", &value)];
    for activations in [Activations::Float, Activations::Int8] {
        let config = WeightConfig::new("int3:g8".parse().unwrap()).with_activations(activations);
        let how = Distillation::new().with_rate(0.005).unwrap().with_epochs(4).unwrap();
        let recipe = Recipe::new(Effort::Best).with_distillation(how);
        let improved = recipe.quantize_weights(&model, &[batch], &config, Progress::silent()).unwrap();
        let last = improved.stages.last().unwrap();
        assert!(last.stage == Stage::Distill && last.kept && last.after > last.before, "{improved}");
        assert!(improved.to_string().contains("distill"));
        let without = recipe.with(Stage::Distill, false).quantize_weights(&model, &[batch], &config, Progress::silent()).unwrap();
        assert!(without.db < improved.db && without.stages.iter().all(|gain| gain.stage != Stage::Distill));
    }
}
