//! The calibration file as samples of one input, with labels where it has them.

use lowprec::convert::{LayerConfig, QConfig};
use lowprec::eval::{Comparison, Outcome, Report, TargetSearch, accuracy};
use lowprec::io::safetensors;
use lowprec::ptq::DynamicQuantization;
use lowprec::{Error, Model, Progress, Result, Value};

use crate::arguments::{Arguments, Mode};

/// Tensor of the labels.
pub const LABELS: &str = "labels";

pub struct Samples {
    pub inputs: Value,
    pub labels: Option<Vec<usize>>,
}

impl Samples {
    /// Those of the model's one input.
    pub fn read(arguments: &Arguments, model: &Model) -> Result<Self> {
        let path = arguments.calibration.as_ref().expect("the command line has one");
        let contents = safetensors::read_tensors_file(path)?;
        let [input] = model.inputs() else {
            return Err(Error::Unsupported {
                what: format!("--report or --target-drop for a model with {} inputs", model.inputs().len()),
                way_out: "call `lowprec::compare` or `lowprec::eval` from Rust".into(),
            });
        };
        let find = |name: &str| contents.tensors.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        let missing = || Error::Unknown {
            what: "tensor",
            name: input.name().to_owned(),
            present: contents.tensors.iter().map(|(name, _)| name).collect(),
        };
        let inputs = find(input.name()).ok_or_else(missing)?;
        Ok(Samples { inputs: inputs.clone(), labels: find(LABELS).map(labels).transpose()? })
    }

    /// The smallest mix of precisions that loses no more than was allowed.
    pub fn search(&self, arguments: &Arguments, model: &Model, config: QConfig, progress: Progress<'_>) -> Result<Outcome> {
        let max_drop = arguments.target_drop.expect("asked only where one is given") / 100.0;
        let mut search = TargetSearch::new(model, &self.inputs, max_drop).with_config(config).with_progress(progress);
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
        comparison.run(&self.inputs, self.labels.as_deref())
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
            _ if arguments.mode == Mode::Dynamic => config = config.with_kind(*kind, LayerConfig::Dynamic(Default::default())),
            _ => {}
        }
    }
    for pattern in &arguments.exclude {
        config = config.with_pattern(pattern, LayerConfig::Float)?;
    }
    Ok(config)
}
