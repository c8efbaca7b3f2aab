//! The tool `quantize_onnx`: its command line, runs in batches, and what it says of ranges.
#![cfg(all(feature = "onnx", feature = "safetensors"))]

#[allow(dead_code)]
#[path = "../examples/quantize_onnx/arguments.rs"]
mod arguments;
#[path = "../examples/quantize_onnx/batches.rs"]
mod batches;
#[allow(dead_code)]
#[path = "../examples/quantize_onnx/quantize.rs"]
mod quantize;
#[allow(dead_code)]
#[path = "../examples/quantize_onnx/report.rs"]
mod report;
#[allow(dead_code)]
#[path = "../examples/quantize_onnx/samples.rs"]
mod samples;

use arguments::{Mode, Request, parse};
use lowprec::eval::{Objective, RangeReport, compare_ranges};
use lowprec::io::safetensors;
use lowprec::kernels::RangeOf;
use lowprec::nn::weight_only::Activations;
use lowprec::nn::{Dim, Executor, Layer, Linear};
use lowprec::ptq::recipe::{Effort, Stage};
use lowprec::quant::observer::ObserverKind;
use lowprec::{DType, Error, LayerKind, Model, Tensor, Value, quantize_dynamic};
use report::Report;
use samples::Samples;

fn arguments(text: &str) -> Result<Request, lexopt::Error> {
    parse(lexopt::Parser::from_args(text.split_whitespace()))
}

#[test]
fn a_command_line() {
    let full = "m.onnx --mode dynamic --kinds conv2d,Linear --exclude a*,b --input i --output=o --threads 2 --json --exclude c";
    let Ok(Request::Run(all)) = arguments(full) else { panic!() };
    assert_eq!((all.model.to_str(), all.mode, all.threads, all.json), (Some("m.onnx"), Mode::Dynamic, Some(2), true));
    assert_eq!(all.run, Some(["i".into(), "o".into()]));
    assert_eq!(all.kinds, Some(vec![LayerKind::Conv2d, LayerKind::Linear]));
    assert_eq!(all.exclude, ["a*", "b", "c"]);
    let Ok(Request::Run(least)) = arguments("--mode float --input i --output o m.onnx") else { panic!() };
    assert!(least.kinds.is_none() && least.exclude.is_empty() && least.threads.is_none() && !least.json);
    let Ok(Request::Run(made)) = arguments("m.onnx --mode dynamic --export a.onnx --save b") else { panic!() };
    assert_eq!((made.run, made.export, made.save), (None, Some("a.onnx".into()), Some("b".into())));
    assert!(matches!(arguments("m.onnx --help"), Ok(Request::Help)));
    let calibrated = "m.onnx --mode static --input i --output o --calibration c --observer percentile:99.9 --batch 8";
    let Ok(Request::Run(calibrated)) = arguments(calibrated) else { panic!() };
    assert_eq!((calibrated.mode, calibrated.batch), (Mode::Static, Some(8)));
    assert_eq!(calibrated.observer, Some(ObserverKind::Percentile { percent: 99.9 }));
    let small = "m.onnx --mode weight-only --input i --output o --weights nf4:g64 --activations int8";
    let Ok(Request::Run(small)) = arguments(small) else { panic!() };
    assert_eq!((small.mode, small.activations), (Mode::WeightOnly, Some(Activations::Int8)));
    assert_eq!(small.weights, Some("nf4:g64".parse().unwrap()));
    assert_eq!(calibrated.calibration.as_deref().and_then(|path| path.to_str()), Some("c"));
}

#[test]
fn ranges_of_activations() {
    let exported = "m.onnx --mode dynamic --export e.onnx --calibration c --batch 3";
    let Ok(Request::Run(row)) = arguments(exported) else { panic!() };
    assert_eq!((row.activations_per, row.batch), (None, Some(3)));
    for (word, range) in [("row", RangeOf::Row), ("tensor", RangeOf::Tensor)] {
        let Ok(Request::Run(given)) = arguments(&format!("{exported} --activations-per {word}")) else { panic!() };
        assert_eq!(given.activations_per, Some(range));
    }
    assert!(arguments(&format!("{exported} --activations-per image")).is_err());
    assert!(arguments("m.onnx --mode dynamic --input i --output o --activations-per tensor").is_ok());
    for mode in ["static --calibration c", "weight-only", "float"] {
        let error = arguments(&format!("m.onnx --mode {mode} --export e --activations-per row")).err().unwrap().to_string();
        assert!(error.contains("--activations-per"), "{error}");
    }
    for (word, tensor) in [("channel", false), ("tensor", true)] {
        let Ok(Request::Run(given)) = arguments(&format!("{exported} --weights-per {word}")) else { panic!() };
        assert_eq!(given.weights_per_tensor, Some(tensor));
    }
    assert!(arguments(&format!("{exported} --weights-per row")).is_err());
    assert!(arguments("m.onnx --mode weight-only --export e --weights-per tensor").is_err());
    // Without a file to compare with, samples of a dynamic model say nothing.
    assert!(arguments("m.onnx --mode dynamic --save s --calibration c").is_err());
}

#[test]
fn wrong_usage() {
    let right = "m.onnx --mode dynamic --input i --output o";
    assert!(arguments(right).is_ok());
    for part in ["m.onnx", "--mode dynamic", "--input i", "--output o"] {
        assert!(arguments(&right.replace(part, "")).is_err(), "{part}");
    }
    for more in ["n.onnx", "--mode int3", "--kinds conv3d", "--kinds", "--threads 0", "--threads x", "--verbose", "--json=1", "-x"] {
        assert!(arguments(&format!("{right} {more}")).is_err(), "{more}");
    }
    assert!(arguments("m.onnx --mode float --input i --output o --kinds linear").is_err());
    assert!(
        arguments("m.onnx --mode float --export a --input i").is_err() && arguments("m.onnx --mode float --save a --output o").is_err()
    );
    for more in ["--report r", "--target-drop 1", "--target-drop 101 --calibration c", "--target-drop x --calibration c"] {
        assert!(arguments(&format!("{right} {more}")).is_err(), "{more}");
    }
    let made = "m.onnx --mode dynamic --calibration c --report r.html --target-drop 0.5";
    let Ok(Request::Run(fastest)) = arguments(&format!("{made} --objective fastest")) else { panic!() };
    assert_eq!(fastest.objective, Some(Objective::Fastest));
    assert!(arguments(&format!("{right} --objective fastest")).is_err() && arguments(&format!("{made} --objective best")).is_err());
    let Ok(Request::Run(made)) = arguments(made) else { panic!() };
    assert_eq!((made.report, made.target_drop, made.run), (Some("r.html".into()), Some(0.5), None));
    for more in ["--weights int3.5", "--activations int4"] {
        assert!(arguments(&format!("m.onnx --mode weight-only --input i --output o {more}")).is_err(), "{more}");
    }
    let fitted = "m.onnx --mode weight-only --input i --output o --calibration c";
    assert!(arguments(fitted).is_ok() && arguments(&format!("{fitted} --target-drop 1")).is_err());
    for dynamic in ["--calibration c", "--observer minmax", "--batch 2", "--weights int4", "--activations int8"] {
        assert!(arguments(&format!("{right} {dynamic}")).is_err(), "{dynamic}");
    }
    let calibrated = "m.onnx --mode static --input i --output o --calibration c";
    assert!(arguments(calibrated).is_ok() && arguments(&calibrated.replace("--calibration c", "")).is_err());
    for more in ["--observer median", "--observer range:2:1", "--batch 0"] {
        assert!(arguments(&format!("{calibrated} {more}")).is_err(), "{more}");
    }
}

/// A linear layer on `samples` at a time, beside a function of a second input.
fn model(samples: Dim, other: &[Dim]) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[samples, Dim::Fixed(3)]).unwrap();
    let z = net.input("z", DType::F32, other).unwrap();
    let weight = Tensor::new([2, 3], vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.25]).unwrap();
    let y = net.add("y", Linear::new(weight, None).unwrap(), &[x]).unwrap();
    let r = net.add("r", Layer::Relu, &[z]).unwrap();
    net.output("y", y).unwrap();
    net.output("r", r).unwrap();
    net.build().unwrap()
}

fn floats(dims: &[usize]) -> Value {
    Tensor::new(dims, (0..dims.iter().product()).map(|i| i as f32 - 7.0).collect()).unwrap().into()
}

#[test]
fn more_samples_than_a_batch_holds() {
    let (x, z) = (floats(&[10, 3]), floats(&[10, 2]));
    let whole = Executor::new(&model(Dim::Any, &[Dim::Any, Dim::Any])).run(&[("x", &x), ("z", &z)]).unwrap();
    for size in [1, 3, 4, 5, 10] {
        for other in [[Dim::Fixed(size), Dim::Fixed(2)], [Dim::Any, Dim::Fixed(2)]] {
            let mut executor = Executor::new(&model(Dim::Fixed(size), &other));
            assert_eq!(batches::run(&mut executor, &[("x", &x), ("z", &z)]).unwrap(), whole, "{size}");
        }
    }
}

#[test]
fn samples_that_make_no_batches() {
    let x = floats(&[10, 3]);
    let run = |size, other: &[Dim], z: &Value| batches::run(&mut Executor::new(&model(Dim::Fixed(size), other)), &[("x", &x), ("z", z)]);
    // An output without an axis of samples.
    let constant = run(4, &[Dim::Fixed(2)], &floats(&[2])).unwrap_err();
    assert!(matches!(&constant, Error::Shape { .. }) && constant.to_string().contains("`r`"), "{constant}");
    // Inputs that differ in their samples.
    let different = run(4, &[Dim::Fixed(4)], &floats(&[9])).unwrap_err();
    assert!(matches!(&different, Error::Shape { .. }) && different.to_string().contains("`z`"), "{different}");
    // Fewer samples than a batch holds.
    assert!(run(12, &[Dim::Fixed(2)], &floats(&[2])).is_err());
}

#[test]
fn calibration_in_parts() {
    let sizes = |first: Dim, size: Option<usize>| -> Vec<usize> {
        let parts = batches::parts(&model(first, &[Dim::Any]), &[("x", &floats(&[5, 3])), ("z", &floats(&[4]))], size).unwrap();
        parts.iter().map(|part| part[0].1.shape().dims()[0]).collect()
    };
    assert_eq!(sizes(Dim::Any, None), [5]);
    assert_eq!(sizes(Dim::Any, Some(2)), [2, 2, 1]);
    assert_eq!(sizes(Dim::Any, Some(9)), [5]);
    // What the model takes at once is decided by the model, and the last part is filled up.
    assert_eq!(sizes(Dim::Fixed(2), Some(3)), [2, 2, 2]);
}

#[test]
fn what_ranges_are_worth_is_told_of_few_samples_at_a_time() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3)]).unwrap();
    let weight = Tensor::new([2, 3], vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.25]).unwrap();
    let y = net.add("y", Linear::new(weight, None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let float = net.build().unwrap();
    let int8 = quantize_dynamic(&float, &[LayerKind::Linear]).unwrap();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("ranges.safetensors");
    let labels = Value::from(Tensor::new([100], (0..100).map(|i| i % 2).collect::<Vec<i64>>()).unwrap());
    let file = |labelled: bool| {
        let x = floats(&[100, 3]);
        let tensors = [("x", &x)].into_iter().chain([("labels", &labels)].into_iter().filter(|_| labelled));
        std::fs::write(&path, safetensors::write(tensors, &Default::default()).unwrap()).unwrap();
        Samples::read(&path, &float).unwrap()
    };
    let told = |text: &str, found: &dyn Fn(&arguments::Arguments) -> Option<lowprec::Result<RangeReport>>| {
        let Ok(Request::Run(arguments)) = arguments(&format!("m.onnx --mode dynamic --export e {text}")) else { panic!("{text}") };
        let mut report = Report::new(&arguments);
        report.ranges(found(&arguments));
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        (json["ranges"].clone(), report.text())
    };
    for (labelled, given, batch) in [(true, "", 64), (true, "--batch 7", 7), (false, "--batch 1000", 100)] {
        let samples = file(labelled);
        let compared = compare_ranges(&float, &int8, floats(&[100, 3]), None, batch).unwrap();
        let (json, text) = told(given, &|arguments| Some(samples.compare_ranges(arguments, &float, &int8)));
        assert_eq!((json["samples"].as_u64(), json["batch"].as_u64()), (Some(100), Some(batch as u64)), "{json}");
        let rows = ["row", "tensor"].map(|of| &json[of]);
        assert_eq!(rows.map(|of| of["sqnr_db"].as_f64().unwrap()), compared.sqnr_db, "{json}");
        let classes = compared.classification.unwrap();
        assert_eq!(rows.map(|of| of["flips"].as_u64().unwrap() as usize), [classes[0].flips, classes[1].flips], "{json}");
        assert!(rows.iter().all(|of| of["right"].is_u64() == labelled), "{json}");
        assert!(text.contains(&format!("100 samples, {batch} at once")), "{text}");
    }
    // Without samples, or of a model that has no such ranges, the reason stands there.
    let (json, _) = told("", &|_| None);
    assert!(json["unknown"].as_str().unwrap().contains("--calibration"), "{json}");
    let samples = file(false);
    let (json, text) = told("", &|arguments| Some(samples.compare_ranges(arguments, &float, &float)));
    assert!(json["unknown"].as_str().unwrap().contains("not compared") && text.contains("not compared"), "{json}");
}

#[test]
fn an_effort_and_its_steps() {
    let base = "m.onnx --mode static --calibration c --save s";
    let Ok(Request::Run(plain)) = arguments(base) else { panic!() };
    assert!(plain.effort.is_none() && plain.tried.is_empty());
    let Ok(Request::Run(all)) = arguments(&format!("{base} --effort best --try absorb-biases --skip fit-weights,learn-rounding")) else {
        panic!()
    };
    assert_eq!((all.effort, all.tried, all.skipped), (Some(Effort::Best), vec![Stage::Absorb], vec![Stage::Fit, Stage::Rounding]));
    for wrong in ["--effort most", "--skip ranges", "--try ranges", "--effort best --skip wash", "--effort fast --try ranges --skip ranges"]
    {
        assert!(arguments(&format!("{base} {wrong}")).is_err(), "{wrong}");
    }
    assert!(arguments("m.onnx --mode float --save s --effort best").is_err());
    assert!(arguments("m.onnx --mode dynamic --save s --effort best").is_err(), "without samples");
    let Ok(Request::Run(some)) = arguments("m.onnx --mode dynamic --save s --calibration c --effort best --exclude head") else { panic!() };
    assert_eq!((some.effort, &some.exclude[..]), (Some(Effort::Best), &["head".to_owned()][..]));
}

/// Each mode by an effort: what was excluded stays in float, what was skipped is not tried, and the report names the steps.
#[test]
fn efforts_run() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(12)]).unwrap();
    let weight =
        |seed: usize, n: usize| Tensor::new([n, 12], (0..n * 12).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).collect()).unwrap();
    let x = net.add("body", Linear::new(weight(1, 12), None).unwrap(), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("head", Linear::new(weight(5, 12), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let values = (0..40 * 12).map(|i| ((i * i + 7 * i) % 97) as f32 / 40.0 - 1.0).collect();
    let value = Value::from(Tensor::new([40, 12], values).unwrap());
    let path = std::env::temp_dir().join(format!("lowprec_effort_{}.safetensors", std::process::id()));
    std::fs::write(&path, safetensors::write([("x", &value)], &std::collections::BTreeMap::new()).unwrap()).unwrap();
    for (mode, first) in [("dynamic", "equalize"), ("static", "equalize"), ("weight-only --weights int3:g4", "scale channels")] {
        let text =
            format!("m.onnx --mode {mode} --save s --calibration {} --effort best --skip smooth,grids --exclude head", path.display());
        let Ok(Request::Run(given)) = arguments(&text) else { panic!() };
        let improved = quantize::improve(&given, &model).unwrap();
        assert!(improved.model.node("body").unwrap().layer().is_quantized(), "{mode}");
        assert!(!improved.model.node("head").unwrap().layer().is_quantized(), "{mode}");
        let mut report = Report::new(&given);
        report.improved(&improved);
        report.models(&model, Some(&improved.model));
        let (text, json) = (report.text(), report.json());
        assert!(text.contains("as configured") && text.contains(first) && text.contains("fit weights"), "{text}");
        assert!(!text.contains("smooth") && !text.contains("grids"), "{text}");
        assert!(json.contains("\"step\":") && json.contains("\"idle\":") && json.contains("\"by_all_samples\":"), "{json}");
    }
    std::fs::remove_file(&path).unwrap();
}
