//! Runs an ONNX model on tensors from a file, in float or quantized, and says what was done and what it cost.
//!
//!     cargo run --release --example quantize_onnx -- resnet50.onnx --mode dynamic --input in.safetensors --output out.safetensors
//!
//! Exit status: 0, 1 for a failure (said on standard error), 2 for wrong usage.

#[path = "quantize_onnx/arguments.rs"]
mod arguments;
#[path = "quantize_onnx/batches.rs"]
mod batches;
#[path = "quantize_onnx/quantize.rs"]
mod quantize;
#[path = "quantize_onnx/report.rs"]
mod report;
#[path = "quantize_onnx/samples.rs"]
mod samples;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use arguments::{Arguments, Mode, Request};
use lowprec::eval::RangeReport;
use lowprec::io::{safetensors, saved};
use lowprec::nn::Executor;
use lowprec::onnx::{self, Export};
use lowprec::{Error, Model, Result, Value};
use quantize::{calibrate, calibration_file, improve, progress, quantize, static_config, weights};
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
