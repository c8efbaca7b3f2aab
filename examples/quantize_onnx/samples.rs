//! A file as samples of a model's inputs, with labels where it has them.

use std::path::Path;

use lowprec::convert::{LayerConfig, QConfig};
use lowprec::eval::{Comparison, Outcome, RangeReport, Report, TargetSearch, accuracy, compare_ranges};
use lowprec::io::safetensors;
use lowprec::nn::Input;
use lowprec::nn::quantized::DynamicScheme;
use lowprec::ptq::DynamicQuantization;
use lowprec::{Error, Model, Progress, Result, Value, eval};

use crate::arguments::{Arguments, Mode};
use crate::quantize::weight_scheme;

/// Tensor of the labels.
pub const LABELS: &str = "labels";

/// Samples that are run at once to compare ranges, unless the command line says how many: memory is that of so many, and as many have one
/// range together as wherever else models are judged.
pub const RANGED: usize = 64;

pub struct Samples {
    inputs: eval::Samples,
    labels: Option<Vec<usize>>,
}

impl Samples {
    /// Those of all inputs of the model.
    pub fn read(path: &Path, model: &Model) -> Result<Self> {
        let contents = safetensors::read_tensors_file(path)?;
        let find = |name: &str| contents.tensors.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        let missing = |name: &str| Error::Unknown {
            what: "tensor of the samples",
            name: name.to_owned(),
            present: contents.tensors.iter().map(|(name, _)| name).collect(),
        };
        let names = model.inputs().iter().map(Input::name);
        let inputs = names.map(|name| Ok((name, find(name).ok_or_else(|| missing(name))?))).collect::<Result<Vec<(&str, &Value)>>>()?;
        let takes_labels = inputs.iter().any(|(name, _)| *name == LABELS);
        Ok(Samples { inputs: eval::Samples::named(inputs), labels: find(LABELS).filter(|_| !takes_labels).map(labels).transpose()? })
    }

    /// The smallest mix of precisions that loses no more than was allowed.
    pub fn search(&self, arguments: &Arguments, model: &Model, config: QConfig, progress: Progress<'_>) -> Result<Outcome> {
        let max_drop = arguments.target_drop.expect("asked only where one is given") / 100.0;
        let mut search = TargetSearch::new(model, self.inputs.clone(), max_drop).with_config(config).with_progress(progress);
        search = search.with_objective(arguments.objective.unwrap_or_default());
        if let Some(threads) = arguments.threads {
            search = search.with_threads(threads);
        }
        match &self.labels {
            Some(labels) => search.run(accuracy(labels)),
            None => search.run_by_agreement(),
        }
    }

    /// Both models compared.
    pub fn compare(&self, arguments: &Arguments, float: &Model, quantized: &Model, progress: Progress<'_>) -> Result<Report> {
        let mut comparison = Comparison::new(float, quantized).with_progress(progress);
        if let Some(threads) = arguments.threads {
            comparison = comparison.with_threads(threads);
        }
        if let Some(batch) = arguments.batch {
            comparison = comparison.with_batch(batch);
        }
        comparison.run(self.inputs.clone(), self.labels.as_deref())
    }

    /// What a range for each row or image is worth.
    pub fn compare_ranges(&self, arguments: &Arguments, float: &Model, quantized: &Model) -> Result<RangeReport> {
        compare_ranges(float, quantized, self.inputs.clone(), self.labels.as_deref(), arguments.batch.unwrap_or(RANGED))
    }
}

fn labels(value: &Value) -> Result<Vec<usize>> {
    let wide: Vec<i64> = match value {
        Value::I64(list) => list.as_slice().to_vec(),
        Value::I32(list) => list.as_slice().iter().map(|&x| x.into()).collect(),
        Value::U8(list) => list.as_slice().iter().map(|&x| x.into()).collect(),
        other => return Err(Error::Type { what: format!("tensor `{LABELS}`"), expected: "i64, i32 or u8", got: other.dtype().name() }),
    };
    let label = |&x: &i64| {
        usize::try_from(x).map_err(|_| Error::Parameter { what: "label", value: x.to_string(), rule: "must not be negative".into() })
    };
    wide.iter().map(label).collect()
}

/// What the command line says of each layer.
pub fn config(arguments: &Arguments, default: QConfig) -> Result<QConfig> {
    let mut config = default;
    for kind in DynamicQuantization::KINDS {
        match &arguments.kinds {
            Some(kinds) if !kinds.contains(kind) => config = config.with_kind(*kind, LayerConfig::Float),
            _ if arguments.mode == Mode::Dynamic => {
                let scheme = DynamicScheme {
                    range: arguments.activations_per.unwrap_or_default(),
                    weights: weight_scheme(arguments),
                    ..DynamicScheme::default()
                };
                config = config.with_kind(*kind, LayerConfig::Dynamic(scheme));
            }
            _ => {}
        }
    }
    for pattern in &arguments.exclude {
        config = config.with_pattern(pattern, LayerConfig::Float)?;
    }
    Ok(config)
}
