//! The search for a target: a layer made hostile on purpose is found, left in float with little else, and the target holds on data
//! that the search didn't see.

use std::ops::ControlFlow;

use lowprec::convert::{LayerConfig, StaticScheme, fold_batch_norm};
use lowprec::eval::{Choice, Objective, SearchState, TargetSearch, accuracy, agreement, quantize_to_target};
use lowprec::kernels::RangeOf;
use lowprec::nn::quantized::DynamicScheme;
use lowprec::nn::{Conv2d, Dim, Layer, Linear};
use lowprec::{DType, Error, LayerKind, Model, Progress, QConfig, Scheme, Tensor, compare, metrics};

use crate::compared::hostile;
use crate::networks::{digits, images, static_digits};
use crate::support::Random;

/// A digits network that computes the same as before in float, with one channel between two convolutions as large as `factor` makes it.
fn rescaled(model: &Model, first: &str, second: &str, factor: f32) -> Model {
    let mut net = Model::builder();
    let mut edges = std::collections::HashMap::new();
    for input in model.inputs() {
        edges.insert(input.edge(), net.input(input.name(), input.dtype(), input.dims()).unwrap());
    }
    for (edge, value) in model.constants() {
        edges.insert(*edge, net.constant(model.edge_name(*edge), value.clone()).unwrap());
    }
    for node in model.nodes() {
        let scaled = |conv: &Conv2d, by: &dyn Fn(usize, usize) -> f32, bias: f32| {
            let dims = conv.weight().dims().to_vec();
            let taps = dims[2] * dims[3];
            let weight = conv.weight().as_slice().iter().enumerate().map(|(i, w)| w * by(i / taps / dims[1], i / taps % dims[1])).collect();
            let bias = conv.bias().map(|b| {
                let list = b.as_slice().iter().enumerate().map(|(i, x)| if i == 0 { x * bias } else { *x }).collect();
                Tensor::new(b.dims().to_vec(), list).unwrap()
            });
            Layer::from(Conv2d::new(conv.geometry().clone(), Tensor::new(dims, weight).unwrap(), bias).unwrap())
        };
        let layer = match node.layer() {
            Layer::Conv2d(conv) if node.name() == first => scaled(conv, &|out, _| if out == 0 { factor } else { 1.0 }, factor),
            Layer::Conv2d(conv) if node.name() == second => scaled(conv, &|_, input| if input == 0 { 1.0 / factor } else { 1.0 }, 1.0),
            layer => layer.clone(),
        };
        let inputs: Vec<_> = node.inputs().iter().map(|edge| edge.map(|edge| edges[&edge])).collect();
        let names: Vec<Option<&str>> = node.outputs().iter().map(|&edge| Some(model.edge_name(edge))).collect();
        let made = net.add_node(node.name(), &names, layer, &inputs).unwrap();
        edges.extend(node.outputs().iter().copied().zip(made));
    }
    for output in model.outputs() {
        net.output(output.name(), edges[&output.edge()]).unwrap();
    }
    net.build().unwrap()
}

fn right(model: &Model, x: &Tensor, labels: &[usize]) -> f64 {
    let top = metrics::top1(model.forward(x).unwrap().as_slice(), 10).unwrap();
    top.iter().zip(labels).filter(|(top, label)| top == label).count() as f64 / labels.len() as f64
}

#[test]
fn a_network_that_is_healthy_is_quantized_whole() {
    let float = digits("digits_residual");
    let (samples, labels) = images("train");
    let (samples, labels) = (samples.slice(0, 0..200).unwrap(), &labels[..200]);
    let found = quantize_to_target(&float, &samples, accuracy(labels), 0.005).unwrap();
    assert!(found.holds && found.mix.layers().next().is_none() && found.steps.len() == 1, "{found}");
    assert_eq!(found.model.bytes(), static_digits(&float).bytes());
}

#[test]
fn a_hostile_channel_of_a_trained_network_is_found_and_the_target_holds_elsewhere() {
    let healthy = fold_batch_norm(&digits("digits_cnn")).unwrap();
    let float = rescaled(&healthy, "conv1", "conv2", 4096.0);
    let ((samples, labels), (test, answers)) = (images("train"), images("test"));
    let (samples, labels) = (samples.slice(0, 0..300).unwrap(), &labels[..300]);
    assert!((right(&float, &test, &answers) - right(&healthy, &test, &answers)).abs() < 0.005);
    let all = lowprec::quantize_static(&float, [&samples], &Default::default()).unwrap();
    assert!(right(&all, &test, &answers) < right(&float, &test, &answers) - 0.02);
    // It is the input of the layer that reads the channel that is bad.
    let report = compare(&float, &all, &samples, Some(labels)).unwrap();
    let (worst, own) = (&report.layers[0], report.layers[0].isolated.unwrap());
    assert!(worst.name == "conv2" && own.input_db.unwrap() < own.weights_db.unwrap() - 10.0, "{report}");
    let found = quantize_to_target(&float, &samples, accuracy(labels), 0.005).unwrap();
    println!("{found}");
    // What reads the channel, and no more than one beside it.
    assert!(found.holds && found.sensitivity[0].name == "conv2", "{found}");
    assert!(found.mix.layers().any(|(name, _)| name == "conv2") && found.mix.layers().count() <= 2, "{found}");
    let (before, after) = (right(&float, &test, &answers), right(&found.model, &test, &answers));
    assert!(after >= before - 0.005, "{after} of {before}: {found}");
}

#[test]
fn the_report_ranks_the_hostile_layer_first_and_the_search_leaves_it_in_float() {
    let float = hostile(3);
    let mut random = Random(40);
    let (samples, unseen) = (random.tensor([200, 24], 1.0), random.tensor([4000, 24], 1.0));
    let quantized = lowprec::quantize_static(&float, [&samples], &Default::default()).unwrap();
    let report = compare(&float, &quantized, &samples, None).unwrap();
    // All that follow it carry its error, though their own is small.
    assert_eq!(report.layers[0].name, "fc1");
    assert!(report.layers[1..].iter().any(|layer| layer.isolated.unwrap().errors.sqnr_db > 40.0 && layer.errors.sqnr_db < 4.0), "{report}");
    let text = report.to_string();
    let table = text.split("layers, worst first").nth(1).unwrap();
    assert!(table.lines().nth(3).unwrap().trim_start().starts_with("fc1 "), "{text}");
    assert!(report.to_html("hostile").contains("is that of <code>fc1</code>"));

    let reference = float.forward(&samples).unwrap();
    let found = quantize_to_target(&float, &samples, agreement(&reference).unwrap(), 0.02).unwrap();
    assert!(found.holds && found.sensitivity[0].name == "fc1", "{found}");
    assert_eq!(found.mix.in_float(), ["fc1"], "{found}");
    assert!(found.steps[0].measured.metric < found.float - 0.1, "{found}");
    assert!(found.model.bytes() < float.bytes() * 2 / 3, "{found}");
    // On what the search has not seen.
    let score = agreement(&float.forward(&unseen).unwrap()).unwrap()(&found.model.forward(&unseen).unwrap()).unwrap();
    assert!(score >= 1.0 - 0.02, "{score}");
    let fastest = TargetSearch::new(&float, &samples, 0.02).with_objective(Objective::Fastest).run(agreement(&reference).unwrap()).unwrap();
    assert!(fastest.holds && fastest.mix.layers().any(|(name, choice)| name == "fc1" && choice == Choice::Float), "{fastest}");
}

/// What is slower in int8 stays in float, whether the target asks for it or not; told by a state, as times are never the same twice.
#[cfg(feature = "serde")]
#[test]
fn the_fastest_mix_leaves_what_is_slower_in_float() {
    let float = digits("digits_cnn");
    let (samples, _) = images("train");
    let samples = samples.slice(0, 0..50).unwrap();
    let fastest = |state: SearchState| {
        let mut search = TargetSearch::new(&float, &samples, 1.0).with_objective(Objective::Fastest).with_state(state);
        let found = search.run_by_agreement().unwrap();
        (found, search.state().clone())
    };
    let (_, state) = fastest(SearchState::default());
    let mut told = serde_json::to_value(&state).unwrap();
    for slower in [vec![], vec!["conv2"], vec!["fc", "conv1"]] {
        told["times"]["slower"] = slower.clone().into();
        let (found, after) = fastest(serde_json::from_value(told.clone()).unwrap());
        let mut expected = slower.clone();
        expected.sort_unstable();
        assert_eq!(found.mix.in_float(), expected, "{found}");
        assert_eq!(found.steps.len(), 1 + slower.len());
        assert!(found.holds && serde_json::to_value(&after).unwrap()["times"] == told["times"]);
    }
    // By bytes all of them are in int8.
    assert!(TargetSearch::new(&float, &samples, 1.0).run_by_agreement().unwrap().mix.in_float().is_empty());
}

#[test]
fn a_search_that_was_cancelled_goes_on_where_it_was() {
    let float = hostile(3);
    let samples = Random(40).tensor([120, 24], 1.0);
    let reference = float.forward(&samples).unwrap();
    let metric = || agreement(&reference).unwrap();
    let mut steps = 0;
    let whole = TargetSearch::new(&float, &samples, 0.02)
        .with_progress(Progress::new(|_| {
            steps += 1;
            ControlFlow::Continue(())
        }))
        .run(metric())
        .unwrap();
    let (mut state, mut total) = (SearchState::default(), 0);
    let resumed = loop {
        // Stopped at every third step.
        let mut left = 3;
        let stop = |_: lowprec::Step<'_>| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut search = TargetSearch::new(&float, &samples, 0.02).with_state(state.clone()).with_progress(Progress::new(stop));
        match search.run(metric()) {
            Ok(found) => break found,
            Err(error) => assert!(matches!(error, Error::Cancelled { .. }), "{error}"),
        }
        assert!(search.state().len() > total);
        total = search.state().len();
        #[cfg(feature = "serde")]
        {
            let json = serde_json::to_string(search.state()).unwrap();
            assert_eq!(&serde_json::from_str::<SearchState>(&json).unwrap(), search.state());
        }
        state = search.state().clone();
    };
    assert_eq!((resumed.mix.clone(), resumed.found, resumed.steps.clone()), (whole.mix.clone(), whole.found, whole.steps.clone()));
    assert!(total < steps && steps > 8);
    // Another model's state is refused.
    let other = hostile(4);
    let error = TargetSearch::new(&other, &samples, 0.02).with_state(state).run(metric()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(TargetSearch::new(&float, &samples, -1.0).run(metric()).is_err());
    assert!(TargetSearch::new(&float, &samples, 0.1).run(|_| Ok(f64::NAN)).is_err());
}

#[test]
fn a_state_measured_under_other_conditions_is_refused() {
    let float = hostile(3);
    let samples = Random(40).tensor([60, 24], 1.0);
    let labels = metrics::top1(float.forward(&samples).unwrap().as_slice(), 24).unwrap();
    let linear = |scheme: DynamicScheme| QConfig::default().with_kind(LayerKind::Linear, LayerConfig::Dynamic(scheme));
    let config = linear(DynamicScheme::default());
    let begin = |config: &QConfig| TargetSearch::new(&float, &samples, 0.02).with_config(config.clone());
    let mut search = begin(&config);
    let found = search.run(accuracy(&labels)).unwrap();
    let state = search.state().clone();
    let refused = |mut search: TargetSearch<'_>, labels: &[usize]| {
        let error = search.run(accuracy(labels)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("another configuration"), "{error}");
    };
    // The same search measures nothing again, whatever the drop and the objective.
    let silent = Progress::new(|step| panic!("{}: {}", step.stage, step.item));
    let again = begin(&config).with_state(state.clone()).with_progress(silent).run(accuracy(&labels)).unwrap();
    assert_eq!((again.mix, again.found, again.steps), (found.mix, found.found, found.steps));
    let mut other = TargetSearch::new(&float, &samples, 0.5).with_config(config.clone()).with_threads(1).with_state(state.clone());
    assert!(other.run(accuracy(&labels)).unwrap().holds);

    let others = [
        linear(DynamicScheme { range: RangeOf::Tensor, ..DynamicScheme::default() }),
        linear(DynamicScheme { weights: Scheme::INT8_WEIGHT.with_bits(7), ..DynamicScheme::default() }),
        QConfig::default(),
        QConfig::least_squares(),
        config.clone().with_pattern("fc3", LayerConfig::Float).unwrap(),
    ];
    others.iter().for_each(|other| refused(begin(other).with_state(state.clone()), &labels));
    // A configuration of a state's own is another's no less.
    let mut fixed = begin(&others[2]);
    fixed.run(accuracy(&labels)).unwrap();
    let fixed = fixed.state().clone();
    assert!(begin(&others[2]).with_state(fixed.clone()).run(accuracy(&labels)).is_ok());
    refused(begin(&others[2]).with_calibration(Random(41).tensor([60, 24], 1.0)).with_state(fixed.clone()), &labels);
    refused(begin(&others[2]).with_calibration(samples.slice(0, 0..59).unwrap()).with_state(fixed.clone()), &labels);
    refused(begin(&others[3]).with_state(fixed), &labels);
    // Other labels are another metric.
    let wrong: Vec<usize> = labels.iter().map(|label| (label + 1) % 24).collect();
    refused(begin(&config).with_state(state), &wrong);
}

/// Powers of two between two convolutions change no output of the float model, and every number of the quantized one.
#[test]
fn a_state_of_a_model_with_the_same_outputs_is_refused() {
    let healthy = fold_batch_norm(&digits("digits_cnn")).unwrap();
    let float = rescaled(&healthy, "conv1", "conv2", 4096.0);
    let samples = images("train").0.slice(0, 0..32).unwrap();
    assert_eq!(float.forward(&samples).unwrap(), healthy.forward(&samples).unwrap());
    let mut search = TargetSearch::new(&healthy, &samples, 1.0);
    search.run_by_agreement().unwrap();
    let state = search.state().clone();
    assert!(TargetSearch::new(&healthy, &samples, 1.0).with_state(state.clone()).run_by_agreement().is_ok());
    let error = TargetSearch::new(&float, &samples, 1.0).with_state(state).run_by_agreement().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

/// Samples of very different size, one at a time: ranges found beforehand lose the small ones, those found at run time none.
#[test]
fn what_is_taken_back_with_ranges_at_run_time_has_the_rest_as_configured() {
    let random = &mut Random(50);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Fixed(1), Dim::Fixed(24)]).unwrap();
    let x = net.add("fc0", Linear::new(random.tensor([24, 24], 0.25), None).unwrap(), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("fc1", Linear::new(random.tensor([24, 24], 0.25), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let float = net.build().unwrap();
    let mut samples = random.tensor([80, 24], 1.0);
    samples.as_mut_slice().chunks_mut(24).enumerate().for_each(|(i, row)| row.iter_mut().for_each(|x| *x *= 10f32.powi(-(i as i32 % 4))));
    let scheme = StaticScheme::default().with_weights(Scheme::INT8_WEIGHT.with_bits(7));
    let run_time = DynamicScheme { range: RangeOf::Tensor, activations: Scheme::UINT8_ACTIVATION.with_bits(7), ..DynamicScheme::default() };
    let plain = QConfig::new(scheme);
    let asked = plain.clone().with_kind(LayerKind::Lstm, LayerConfig::Dynamic(run_time));
    for (config, range, largest) in [(plain, RangeOf::Row, 255), (asked, RangeOf::Tensor, 127)] {
        let found = TargetSearch::new(&float, &samples, 0.1).with_config(config).run_by_agreement().unwrap();
        let dynamic: Vec<&str> = found.mix.layers().filter(|(_, choice)| *choice == Choice::Dynamic).map(|(name, _)| name).collect();
        assert!(found.holds && !dynamic.is_empty(), "{found}");
        for name in dynamic {
            let Layer::QuantizedLinear(linear) = found.model.node(name).unwrap().layer() else { panic!("{}", found.model) };
            let weight = linear.weight().unwrap();
            assert_eq!((linear.input_range(), linear.input_rule().qmax, weight.params().qmax()), (range, largest, 63), "{name}");
        }
    }
}
