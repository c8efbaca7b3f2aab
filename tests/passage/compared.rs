//! What the report says of each layer, against values worked out another way.

use lowprec::eval::{Comparison, TargetSearch, accuracy};
use lowprec::nn::{Dim, Embedding, Executor, Layer, Linear};
use lowprec::{DType, Error, LayerKind, Model, QConfig, Tensor, compare, metrics, quantize_dynamic, quantize_static};

use crate::networks::{digits, images, static_digits};
use crate::support::Random;

/// Four linear layers; the second one has an outlier in one row of its weights, which takes all others' codes away.
pub fn hostile(seed: u64) -> Model {
    let r = &mut Random(seed);
    let mut net = Model::builder();
    let mut x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(24)]).unwrap();
    for layer in 0..4 {
        let mut weight = r.tensor([24, 24], 0.25);
        if layer == 1 {
            // Each row: one weight that meets an input which is nearly always zero.
            weight.as_mut_slice().chunks_exact_mut(24).for_each(|row| row[5] = 60.0);
        }
        if layer == 0 {
            weight.as_mut_slice()[5 * 24..6 * 24].fill(0.0);
        }
        x = net.add(&format!("fc{layer}"), Linear::new(weight, Some(r.tensor([24], 0.1))).unwrap(), &[x]).unwrap();
        if layer < 3 {
            x = net.add(&format!("relu{layer}"), Layer::Relu, &[x]).unwrap();
        }
    }
    net.output("y", x).unwrap();
    net.build().unwrap()
}

#[test]
fn a_layer_by_itself_makes_its_own_error_and_no_other() {
    let model = hostile(3);
    let x = Random(4).tensor([40, 24], 1.0);
    for int8 in [quantize_dynamic(&model, &[LayerKind::Linear]).unwrap(), quantize_static(&model, [&x], &QConfig::default()).unwrap()] {
        let report = compare(&model, &int8, &x, None).unwrap();
        let of = |name: &str| report.layers.iter().find(|layer| layer.name == name).unwrap();
        // All that follow carry its error, and have next to none themselves.
        let [own, after] = ["fc1", "fc3"].map(|name| of(name).isolated.unwrap().errors.sqnr_db);
        assert!(own < 20.0 && after > 35.0, "{own} and {after} dB");
        assert!(of("fc3").errors.sqnr_db < 20.0);
        // It lies in the weights.
        let isolated = of("fc1").isolated.unwrap();
        let (weights, input) = (isolated.weights_db.unwrap(), isolated.input_db.unwrap());
        assert!(weights < 20.0 && input > 35.0, "{weights} and {input} dB");
        assert!(report.to_string().contains("itself"));
    }
}

#[test]
fn isolated_errors_are_those_of_a_model_with_one_layer_quantized() {
    let model = hostile(5);
    let x = Random(6).tensor([12, 24], 1.0);
    let report = compare(&model, &quantize_dynamic(&model, &[LayerKind::Linear]).unwrap(), &x, None).unwrap();
    for name in ["fc0", "fc1", "fc2", "fc3"] {
        let one = lowprec::ptq::DynamicQuantization::new(&[LayerKind::Linear]).include(name).unwrap().apply(&model).unwrap();
        let taps = |model: &Model| {
            let mut found = None;
            Executor::new(model)
                .forward_with(&x, |tap| {
                    if tap.edge == name {
                        found = tap.value.get::<f32>().cloned();
                    }
                    Ok(())
                })
                .unwrap();
            found.unwrap()
        };
        let (expected, got) = (taps(&model), taps(&one));
        let layer = report.layers.iter().find(|layer| layer.name == name).unwrap();
        let errors = layer.isolated.unwrap().errors;
        assert_eq!(errors.sqnr_db, metrics::sqnr_db(expected.as_slice(), got.as_slice()).unwrap(), "{name}");
        let cosine = metrics::cosine(expected.as_slice(), got.as_slice()).unwrap();
        assert!((errors.cosine - cosine).abs() < 1e-12, "{name}: {} and {cosine}", errors.cosine);
        let largest = metrics::max_abs_error(expected.as_slice(), got.as_slice()).unwrap();
        assert_eq!(f64::from(errors.max_error), largest, "{name}");
    }
}

#[test]
fn ranges_times_and_the_callers_own_metric() {
    let float = digits("digits_residual");
    let (test, labels) = images("test");
    let test = test.slice(0, 0..100).unwrap();
    let right = |outputs: &Tensor| {
        let top = metrics::top1(outputs.as_slice(), 10)?;
        Ok(top.iter().zip(&labels).filter(|(top, label)| top == label).count() as f64)
    };
    let int8 = static_digits(&float);
    let report = Comparison::new(&float, &int8).with_metric("hits", right).run(&test, Some(&labels[..100])).unwrap();
    let hits = report.classification.as_ref().unwrap().hits.unwrap();
    assert_eq!(report.metrics, [("hits".to_owned(), hits.map(|hits| hits as f64))]);
    for layer in report.layers.iter().filter(|layer| layer.kernel.is_some()) {
        assert!(layer.time.iter().all(Option::is_some), "{}", layer.name);
        let own = layer.isolated.unwrap();
        assert!(own.errors.sqnr_db > 25.0 && own.weights_db.unwrap() > 25.0 && own.input_db.unwrap() > 25.0, "{}: {own:?}", layer.name);
        assert!(layer.errors.sqnr_db < own.errors.sqnr_db + 1.0, "{}: {layer:?}", layer.name);
        if let Some(range) = layer.range {
            // Calibrated on images like these.
            assert!(range.clipped < 0.01 && range.unused < 0.5, "{}: {range:?}", layer.name);
        }
    }
    let cost = &report.cost[1].energy;
    assert!(cost.total_in_cache() < cost.total() && cost.total_in_cache() > cost.compute + cost.activations);
}

/// Words in, a row of classes for each place out.
#[test]
fn models_of_words_are_compared_place_by_place() {
    let random = &mut Random(21);
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any, Dim::Any]).unwrap();
    let x = net.add("words", Embedding::new(random.tensor([30, 16], 1.0)).unwrap(), &[ids]).unwrap();
    let x = net.add("head", Linear::new(random.tensor([9, 16], 0.5), None).unwrap(), &[x]).unwrap();
    net.output("logits", x).unwrap();
    let model = net.build().unwrap();
    let ids = Tensor::new([5, 7], (0..35).map(|i| i * 11 % 30).collect::<Vec<i64>>()).unwrap();
    let int8 = quantize_dynamic(&model, &[LayerKind::Embedding, LayerKind::Linear]).unwrap();
    let output = model.run(&[("ids", &ids.clone().into())]).unwrap().remove(0).1;
    let labels = metrics::top1(output.get::<f32>().unwrap().as_slice(), 9).unwrap();
    let report = compare(&model, &int8, &ids, Some(&labels)).unwrap();
    let found = report.classification.as_ref().unwrap();
    assert_eq!((found.classes, found.rows, report.samples, found.hits.unwrap()[0]), (9, 35, 5, 35));
    assert_eq!(report.accuracy().unwrap()[1], report.agreement().unwrap());
    assert!(report.layers.iter().all(|layer| layer.isolated.is_some()), "{report}");
    assert!(matches!(compare(&model, &int8, &ids, Some(&labels[..5])), Err(Error::Length { .. })));

    let mut search = TargetSearch::new(&model, &ids, 0.0);
    let (by_agreement, by_labels) =
        (search.run_by_agreement().unwrap(), TargetSearch::new(&model, &ids, 0.0).run(accuracy(&labels)).unwrap());
    assert!(by_agreement.holds && by_agreement.mix == by_labels.mix && by_agreement.float == 1.0, "{by_agreement}{by_labels}");
}
