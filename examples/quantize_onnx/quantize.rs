//! Quantization as the command line has it.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use lowprec::convert::{StaticScheme, WeightScales};
use lowprec::io::safetensors;
use lowprec::ptq::gptq::{self, Gptq};
use lowprec::ptq::recipe::{Improved, Recipe};
use lowprec::ptq::{Calibrator, DynamicQuantization, WeightConfig, quantize_weights_with};
use lowprec::{Error, LayerKind, Model, Progress, QConfig, Result, Scheme, Value};

use crate::arguments::{Arguments, Mode};
use crate::{batches, samples};

/// The file of samples, which the command line has wherever one is needed.
pub fn calibration_file(arguments: &Arguments) -> &Path {
    arguments.calibration.as_ref().expect("the command line has one")
}

/// The model with the layers quantized that were asked for: all that can be, when nothing was said.
pub fn quantize(arguments: &Arguments, model: &Model) -> Result<Model> {
    let start = Instant::now();
    let model = dynamic(arguments, model)?.with_progress(progress()).apply(model);
    quantized_in(start);
    model
}

/// What is asked of dynamic quantization.
fn dynamic<'p>(arguments: &Arguments, model: &Model) -> Result<DynamicQuantization<'p>> {
    let quantization = DynamicQuantization::new(&kinds(arguments, model))
        .with_range(arguments.activations_per.unwrap_or_default())
        .with_weights(weight_scheme(arguments));
    arguments.exclude.iter().try_fold(quantization, |quantization, pattern| quantization.exclude(pattern))
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
pub fn improve(arguments: &Arguments, model: &Model) -> Result<Improved> {
    let batches = calibration(arguments, model, calibration_file(arguments))?;
    let batches: Vec<Vec<(&str, &Value)>> = batches.iter().map(by_name).collect();
    let batches: Vec<&[(&str, &Value)]> = batches.iter().map(Vec::as_slice).collect();
    let mut recipe = Recipe::new(arguments.effort.unwrap_or_default()).with_gptq(gptq(arguments));
    for (stages, tried) in [(&arguments.tried, true), (&arguments.skipped, false)] {
        recipe = stages.iter().fold(recipe, |recipe, &stage| recipe.with(stage, tried));
    }
    let start = Instant::now();
    let improved = match arguments.mode {
        Mode::Static => recipe.quantize_static(model, &batches, &static_config(arguments)?, progress()),
        Mode::WeightOnly => recipe.quantize_weights(model, &batches, &weight_config(arguments)?, progress()),
        _ => recipe.quantize_dynamic(model, &batches, &dynamic(arguments, model)?, progress()),
    }?;
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
pub fn weights(arguments: &Arguments, model: &Model) -> Result<Model> {
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
pub fn calibrate(arguments: &Arguments, model: &Model) -> Result<Model> {
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
pub fn static_config(arguments: &Arguments) -> Result<QConfig> {
    let mut scheme = StaticScheme::default();
    if let Some(observer) = arguments.observer {
        scheme = scheme.with_activation_observer(observer);
    }
    scheme = scheme.with_weights(weight_scheme(arguments));
    if arguments.weight_bits.is_some_and(|bits| bits < 8) {
        scheme = scheme.with_weight_scales(WeightScales::LeastSquares);
    }
    if let Some(bits) = arguments.activation_bits {
        scheme = scheme.with_activations(Scheme::UINT8_ACTIVATION.with_bits(bits));
    }
    samples::config(arguments, QConfig::new(scheme))
}

/// Bits of weights in integers, and what has a scale.
pub fn weight_scheme(arguments: &Arguments) -> Scheme {
    let scheme = if arguments.weights_per_tensor == Some(true) { Scheme::INT8_WEIGHT_PER_TENSOR } else { Scheme::INT8_WEIGHT };
    arguments.weight_bits.map_or(scheme, |bits| scheme.with_bits(bits))
}

/// A line on the terminal that tells what runs.
pub fn progress() -> Progress<'static> {
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
