//! Runs an ONNX model on tensors from a file, in float or quantized, and says what was done and what it cost.
//!
//!     cargo run --release --example quantize_onnx -- resnet50.onnx --mode dynamic --input in.safetensors --output out.safetensors
//!
//! Exit status: 0, 1 for a failure (said on standard error), 2 for wrong usage.

#[path = "quantize_onnx/arguments.rs"]
mod arguments;
#[path = "quantize_onnx/batches.rs"]
mod batches;
#[path = "quantize_onnx/report.rs"]
mod report;
#[path = "quantize_onnx/samples.rs"]
mod samples;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use arguments::{Arguments, Mode, Request};
use lowprec::convert::{StaticScheme, WeightScales};
use lowprec::eval::RangeReport;
use lowprec::io::{safetensors, saved};
use lowprec::nn::Executor;
use lowprec::onnx::{self, Export};
use lowprec::ptq::gptq::{self, Gptq};
use lowprec::ptq::recipe::{Improved, Recipe};
use lowprec::ptq::{Calibrator, DynamicQuantization, WeightConfig, quantize_weights_with, with_input_range};
use lowprec::{Error, LayerKind, Model, Progress, QConfig, Result, Scheme, Value};
use report::Report;
use samples::Samples;

fn main() -> ExitCode {
    let arguments = match arguments::parse(lexopt::Parser::from_env()) {
        Ok(Request::Help) => {
            print!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Request::Run(arguments)) => arguments,
        Err(error) => {
            eprintln!("quantize_onnx: {error}\n\n{}", arguments::USAGE);
            return ExitCode::from(2);
        }
    };
    // A reader that has closed the pipe wants no report: that is no failure.
    let print = |text: &str| drop(std::io::stdout().write_all(text.as_bytes()));
    match run(&arguments) {
        Ok(report) if arguments.json => print(&report.json()),
        Ok(report) => print(&report.text()),
        Err(error) => {
            eprintln!("quantize_onnx: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(arguments: &Arguments) -> Result<Report> {
    // Of all that runs, be it no executor's: the threads of the global pool.
    #[cfg(feature = "parallel")]
    if let Some(threads) = arguments.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|error| Error::Parameter { what: "--threads", value: threads.to_string(), rule: error.to_string() })?;
    }
    let mut report = Report::new(arguments);
    let saved = arguments.model.extension().is_some_and(|extension| extension == "safetensors");
    let float = report.timed("load", || if saved { saved::read_file(&arguments.model) } else { onnx::load(&arguments.model) })?;
    let quantized = match arguments.mode {
        Mode::Float => None,
        _ if arguments.target_drop.is_some() => {
            let found = report.timed("search", || {
                let samples = Samples::read(calibration_file(arguments), &float)?;
                samples.search(arguments, &float, static_config(arguments)?, progress())
            })?;
            report.found(&found);
            Some(found.model)
        }
        _ if arguments.effort.is_some() => {
            let improved = report.timed("quantize", || improve(arguments, &float))?;
            report.improved(&improved);
            Some(improved.model)
        }
        Mode::Dynamic => Some(report.timed("quantize", || quantize(arguments, &float))?),
        Mode::Static => Some(report.timed("quantize", || calibrate(arguments, &float))?),
        Mode::WeightOnly => Some(report.timed("quantize", || weights(arguments, &float))?),
    };
    report.models(&float, quantized.as_ref());
    if let Some([input, output]) = &arguments.run {
        execute(arguments, &mut report, [Some(&float), quantized.as_ref()], [input, output])?;
    }
    let made = quantized.as_ref().unwrap_or(&float);
    if let (Some(path), Some(quantized)) = (&arguments.report, &quantized) {
        let compared = report
            .timed("compare", || Samples::read(calibration_file(arguments), &float)?.compare(arguments, &float, quantized, progress()))?;
        let name = arguments.model.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy());
        std::fs::write(path, compared.to_html(&format!("{name}, {}", arguments.mode.name())))
            .map_err(|source| Error::Write { path: path.display().to_string(), source })?;
        report.compared(&compared);
    }
    if let Some(path) = &arguments.export {
        let export = Export::new(made);
        report.timed("export", || export.save(path))?;
        let differ = export.differences().into_iter().map(|(name, why)| format!("{name}: {why}"));
        report.written("export", path, differ.collect())?;
    }
    if let Some(path) = &arguments.save {
        report.timed("save", || saved::write_file(path, made))?;
        report.written("save", path, Vec::new())?;
    }
    // Last: what was asked for stands, however long this runs.
    if let (Mode::Dynamic, Some(quantized), Some(_)) = (arguments.mode, &quantized, &arguments.export) {
        report.ranges(worth_of_ranges(arguments, &float, quantized));
    }
    Ok(report)
}

/// What a range for each row or image, which the exported file has not, is worth on the samples that there are; none without samples.
fn worth_of_ranges(arguments: &Arguments, float: &Model, quantized: &Model) -> Option<Result<RangeReport>> {
    let path = arguments.calibration.as_ref().or(arguments.run.as_ref().map(|[input, _]| input))?;
    Some(Samples::read(path, float).and_then(|samples| samples.compare_ranges(arguments, float, quantized)))
}

fn calibration_file(arguments: &Arguments) -> &Path {
    arguments.calibration.as_ref().expect("the command line has one")
}

/// Runs what there is of float and quantized model, and writes what the last of them made.
fn execute(arguments: &Arguments, report: &mut Report, models: [Option<&Model>; 2], [input, output]: [&Path; 2]) -> Result<()> {
    let contents = safetensors::read_tensors_file(input)?;
    // A file of samples may have labels, which are for `--report` and `--target-drop`.
    let takes = |name: &str| models.into_iter().flatten().any(|model| model.inputs().iter().any(|input| input.name() == name));
    let given = contents.tensors.iter().filter(|(name, _)| name != samples::LABELS || takes(name));
    let inputs: Vec<(&str, &Value)> = given.map(|(name, value)| (name.as_str(), value)).collect();
    let mut made: Vec<Vec<(String, Value)>> = Vec::new();
    for (stage, model) in ["run", "run quantized"].into_iter().zip(models.into_iter().flatten()) {
        let mut executor = Executor::new(model);
        if let Some(threads) = arguments.threads {
            executor = executor.with_threads(threads)?;
        }
        made.push(report.timed(stage, || batches::run(&mut executor, &inputs))?);
    }
    let outputs = made.pop().expect("there is at least one model");
    report.outputs(&outputs, made.pop().as_deref())?;
    let bytes = safetensors::write(outputs.iter().map(|(name, value)| (name.as_str(), value)), &BTreeMap::new())?;
    std::fs::write(output, bytes).map_err(|source| Error::Write { path: output.display().to_string(), source })
}

/// The model with the layers quantized that were asked for: all that can be, when nothing was said.
fn quantize(arguments: &Arguments, model: &Model) -> Result<Model> {
    let start = Instant::now();
    let range = arguments.activations_per.unwrap_or_default();
    let mut quantization = DynamicQuantization::new(&kinds(arguments, model)).with_range(range).with_progress(progress());
    for pattern in &arguments.exclude {
        quantization = quantization.exclude(pattern)?;
    }
    let model = quantization.apply(model);
    quantized_in(start);
    model
}

fn kinds(arguments: &Arguments, model: &Model) -> Vec<LayerKind> {
    let known = DynamicQuantization::KINDS;
    let present = |kind: &&LayerKind| model.kinds().iter().any(|(here, _)| here == *kind);
    match &arguments.kinds {
        Some(kinds) => kinds.clone(),
        None if known.iter().any(|kind| present(&kind)) => known.iter().filter(present).copied().collect(),
        None => known.to_vec(),
    }
}

/// The model quantized as the mode has it, with the steps of the effort that was asked for.
fn improve(arguments: &Arguments, model: &Model) -> Result<Improved> {
    let batches = calibration(arguments, model, calibration_file(arguments))?;
    let batches: Vec<Vec<(&str, &Value)>> = batches.iter().map(by_name).collect();
    let batches: Vec<&[(&str, &Value)]> = batches.iter().map(Vec::as_slice).collect();
    let recipe = Recipe::new(arguments.effort.unwrap_or_default()).with_gptq(gptq(arguments));
    let start = Instant::now();
    let mut improved = match arguments.mode {
        Mode::Static => recipe.quantize_static(model, &batches, &static_config(arguments)?, progress()),
        Mode::WeightOnly => recipe.quantize_weights(model, &batches, &weight_config(arguments)?, progress()),
        _ => recipe.quantize_dynamic(model, &batches, &kinds(arguments, model), progress()),
    }?;
    // The steps are judged with a range for each row. Where no layer has one (embeddings), there is nothing to change.
    let ranged = improved.model.nodes().iter().any(|node| node.layer().input_range().is_some());
    if let Some(range) = arguments.activations_per.filter(|_| ranged) {
        improved.model = with_input_range(&improved.model, range)?;
    }
    quantized_in(start);
    Ok(improved)
}

/// How weights are fitted.
fn gptq(arguments: &Arguments) -> Gptq {
    let gptq = arguments.threads.map_or(Gptq::new(), |threads| Gptq::new().with_threads(threads));
    arguments.sweeps.map_or(gptq, |sweeps| gptq.with_sweeps(sweeps))
}

/// What the command line says of weights.
fn weight_config(arguments: &Arguments) -> Result<WeightConfig> {
    let format = match &arguments.weights {
        Some(format) => format.clone(),
        None => "int8".parse()?,
    };
    let mut config = WeightConfig::new(format).with_activations(arguments.activations.unwrap_or_default());
    if let Some(kinds) = &arguments.kinds {
        // Of a kind without such weights the configuration says so.
        let others = WeightConfig::KINDS.iter().filter(|kind| !kinds.contains(kind));
        let wrong = kinds.iter().filter(|kind| !WeightConfig::KINDS.contains(kind));
        config = others.chain(wrong).fold(config, |config, kind| config.with_kind(*kind, None));
    }
    for pattern in &arguments.exclude {
        config = config.with_pattern(pattern, None)?;
    }
    Ok(config)
}

/// The model with weights in the format that was asked for.
fn weights(arguments: &Arguments, model: &Model) -> Result<Model> {
    let config = weight_config(arguments)?;
    let start = Instant::now();
    let model = match &arguments.calibration {
        None => quantize_weights_with(model, &config, progress()),
        Some(path) => {
            let batches = calibration(arguments, model, path)?;
            let batches: Vec<Vec<(&str, &Value)>> = batches.iter().map(|batch| by_name(batch)).collect();
            let batches: Vec<&[(&str, &Value)]> = batches.iter().map(Vec::as_slice).collect();
            gptq::quantize_weights(model, &batches, &config, &gptq(arguments), progress()).map(|fitted| fitted.model)
        }
    };
    quantized_in(start);
    model
}

/// Inputs by name.
type Batch = Vec<(String, Value)>;

/// The samples of a calibration file, in batches that the model takes.
fn calibration(arguments: &Arguments, model: &Model, path: &Path) -> Result<Vec<Batch>> {
    let contents = safetensors::read_tensors_file(path)?;
    let named = |name: &str| contents.tensors.iter().any(|(other, _)| other == name);
    if let Some(input) = model.inputs().iter().find(|input| !named(input.name())) {
        return Err(Error::Unknown {
            what: "tensor of the calibration file",
            name: input.name().to_owned(),
            present: contents.tensors.iter().map(|(name, _)| name).collect(),
        });
    }
    let inputs = contents.tensors.iter().filter(|(name, _)| model.inputs().iter().any(|input| input.name() == name));
    let samples: Vec<(&str, &Value)> = inputs.map(|(name, value)| (name.as_str(), value)).collect();
    let parts = batches::parts(model, &samples, arguments.batch)?;
    Ok(parts.into_iter().map(|part| part.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()).collect())
}

fn by_name(batch: &Batch) -> Vec<(&str, &Value)> {
    batch.iter().map(|(name, value)| (name.as_str(), value)).collect()
}

/// The model in integers from layer to layer, by the samples of the calibration file.
fn calibrate(arguments: &Arguments, model: &Model) -> Result<Model> {
    let config = static_config(arguments)?;
    let start = Instant::now();
    let mut calibrator = Calibrator::new(model, &config)?.with_progress(progress());
    if let Some(threads) = arguments.threads {
        calibrator = calibrator.with_threads(threads);
    }
    for batch in calibration(arguments, model, calibration_file(arguments))? {
        calibrator.observe(&by_name(&batch))?;
    }
    let model = calibrator.convert();
    quantized_in(start);
    model
}

/// What the command line says of each layer.
fn static_config(arguments: &Arguments) -> Result<QConfig> {
    let mut scheme = StaticScheme::default();
    if let Some(observer) = arguments.observer {
        scheme = scheme.with_activation_observer(observer);
    }
    if let Some(bits) = arguments.weight_bits.filter(|bits| *bits < 8) {
        scheme = scheme.with_weights(Scheme::INT8_WEIGHT.with_bits(bits)).with_weight_scales(WeightScales::LeastSquares);
    }
    if let Some(bits) = arguments.activation_bits {
        scheme = scheme.with_activations(Scheme::UINT8_ACTIVATION.with_bits(bits));
    }
    samples::config(arguments, QConfig::new(scheme))
}

/// A line on the terminal that tells what runs.
fn progress() -> Progress<'static> {
    let terminal = std::io::stderr().is_terminal();
    Progress::new(move |step| {
        if terminal {
            eprint!("\r\x1b[K{} {}/{} {}", step.stage, step.done + 1, step.total, step.item);
        }
        ControlFlow::Continue(())
    })
}

fn quantized_in(start: Instant) {
    if std::io::stderr().is_terminal() {
        eprintln!("\r\x1b[Kquantized in {:.2?}", start.elapsed());
    }
}
