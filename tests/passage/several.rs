//! Models of several inputs, judged on samples by name.

use lowprec::eval::{Comparison, Samples, TargetSearch, accuracy};
use lowprec::nn::{Dim, Embedding, Layer, Linear};
use lowprec::{DType, Error, LayerKind, Model, QConfig, Tensor, Value, compare, metrics, quantize_dynamic, quantize_static};

use crate::support::Random;

/// A row of features beside a word, to a row of classes.
fn model(extra_output: bool) -> Model {
    let r = &mut Random(50);
    let mut net = Model::builder();
    let features = net.input("features", DType::F32, &[Dim::Any, Dim::Fixed(12)]).unwrap();
    let word = net.input("word", DType::I64, &[Dim::Any]).unwrap();
    let x = net.add("left", Linear::new(r.tensor([16, 12], 0.4), Some(r.tensor([16], 0.2))).unwrap(), &[features]).unwrap();
    let table = net.add("table", Embedding::new(r.tensor([9, 16], 1.0)).unwrap(), &[word]).unwrap();
    let y = net.add("right", Linear::new(r.tensor([16, 16], 0.4), None).unwrap(), &[table]).unwrap();
    let sum = net.add("sum", Layer::Add, &[x, y]).unwrap();
    let sum = net.add("relu", Layer::Relu, &[sum]).unwrap();
    let out = net.add("head", Linear::new(r.tensor([5, 16], 0.5), None).unwrap(), &[sum]).unwrap();
    net.output("logits", out).unwrap();
    if extra_output {
        net.output("hidden", sum).unwrap();
    }
    net.build().unwrap()
}

fn values(count: usize) -> [(&'static str, Value); 2] {
    let words = Tensor::new([count], (0..count as i64).map(|i| i * 7 % 9).collect()).unwrap();
    [("features", Random(51).tensor([count, 12], 1.0).into()), ("word", words.into())]
}

fn outputs(model: &Model, values: &[(&str, Value)]) -> Tensor {
    let inputs: Vec<(&str, &Value)> = values.iter().map(|(name, value)| (*name, value)).collect();
    model.run(&inputs).unwrap()[0].1.get::<f32>().unwrap().clone()
}

#[test]
fn a_comparison_takes_a_value_for_each_input() {
    let float = model(false);
    // More than a batch, in no order in particular.
    let values = values(150);
    let samples = || Samples::named(values.iter().rev().cloned());
    let (y, labels) = (outputs(&float, &values), (0..150).map(|i| i % 5).collect::<Vec<usize>>());
    let dynamic = quantize_dynamic(&float, &[LayerKind::Linear]).unwrap();
    let by_name: Vec<(&str, &Value)> = values.iter().map(|(name, value)| (*name, value)).collect();
    let mut calibrator = lowprec::ptq::Calibrator::new(&float, &QConfig::default()).unwrap();
    calibrator.observe(&by_name).unwrap();
    for int8 in [dynamic, calibrator.convert().unwrap()] {
        let report = compare(&float, &int8, samples(), Some(&labels)).unwrap();
        let found = outputs(&int8, &values);
        let db = metrics::sqnr_db(y.as_slice(), found.as_slice()).unwrap();
        assert!((report.sqnr_db - db).abs() < 1e-9 && db > 25.0, "{} and {db}", report.sqnr_db);
        let top = |y: &Tensor| metrics::top1(y.as_slice(), 5).unwrap();
        let flips = top(&y).iter().zip(top(&found)).filter(|(a, b)| **a != *b).count();
        let classes = report.classification.as_ref().unwrap();
        assert_eq!((classes.rows, classes.flips, report.samples, report.timed_batch), (150, flips, 150, 1));
        // Each layer by itself, whichever input it reads.
        for name in ["left", "right", "head"] {
            let layer = report.layers.iter().find(|layer| layer.name == name).unwrap();
            assert!(layer.isolated.unwrap().errors.sqnr_db > 30.0 && layer.macs > 0, "{report}");
        }
    }
}

#[test]
fn a_search_takes_a_value_for_each_input() {
    let float = model(false);
    let values = values(90);
    let labels = metrics::top1(outputs(&float, &values).as_slice(), 5).unwrap();
    let samples = || Samples::named(values.iter().cloned());
    // Nothing may flip: what has to stay in float for that stays there.
    let found = TargetSearch::new(&float, samples(), 0.0).run(accuracy(&labels)).unwrap();
    let by_agreement = TargetSearch::new(&float, samples(), 0.0).with_calibration(samples()).run_by_agreement().unwrap();
    assert!(found.holds && found.mix == by_agreement.mix, "{found}{by_agreement}");
    let top = metrics::top1(outputs(&found.model, &values).as_slice(), 5).unwrap();
    assert_eq!(top, labels);
    let all = TargetSearch::new(&float, samples(), 1.0).run_by_agreement().unwrap();
    assert!(all.mix.in_float().is_empty() && all.model.bytes() < float.bytes(), "{all}");
}

#[test]
fn samples_that_do_not_fit_are_named() {
    let (float, values) = (model(false), values(6));
    let [features, word] = values.map(|(_, value)| value);
    let error = |samples: Samples| compare(&float, &float, samples, None).unwrap_err();
    let one = error(features.clone().into());
    assert!(matches!(one, Error::Unsupported { .. }) && one.to_string().contains("Samples::named"), "{one}");
    let missing = error(Samples::named([("features", &features)]));
    assert!(matches!(&missing, Error::Unknown { name, .. } if name == "word"), "{missing}");
    let more = error(Samples::named([("features", &features), ("word", &word), ("mask", &word)]));
    assert!(matches!(&more, Error::Unknown { name, .. } if name == "mask"), "{more}");
    let fewer = error(Samples::named([("features", features.clone()), ("word", word.slice(0, 0..5).unwrap())]));
    assert!(matches!(fewer, Error::Shape { .. }) && fewer.to_string().contains("`word`"), "{fewer}");
    let none = error(Samples::named([("features", features.slice(0, 0..0).unwrap()), ("word", word.slice(0, 0..0).unwrap())]));
    assert!(matches!(none, Error::Empty { .. }), "{none}");
    let both = || Samples::named([("features", &features), ("word", &word)]);
    let search = TargetSearch::new(&float, Samples::named([("word", &word)]), 0.0).run_by_agreement().unwrap_err();
    assert!(matches!(search, Error::Unknown { .. }), "{search}");
    let two = model(true);
    let several = Comparison::new(&two, &two).run(both(), None).unwrap_err();
    assert!(matches!(several, Error::Unsupported { .. }) && several.to_string().contains("2 outputs"), "{several}");
    assert!(quantize_static(&two, [&Random(1).tensor([2, 12], 1.0)], &QConfig::default()).is_err());
    // A model of constants alone has none to take, under a name or not.
    let mut net = Model::builder();
    let constant = net.constant("constant", Random(2).tensor([2, 3], 1.0)).unwrap();
    net.output("y", constant).unwrap();
    let constant = net.build().unwrap();
    for samples in [features.clone().into(), Samples::named([("features", &features)]), Samples::named::<&str, Value>([])] {
        let error = compare(&constant, &constant, samples, None).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("without inputs"), "{error}");
    }
}
