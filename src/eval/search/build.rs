//! Models of a mix, with what was calibrated kept from one to the next.

use std::time::Duration;

use super::state::Fingerprint;
use super::{Choice, Mix};
use crate::convert::{Calibration, LayerConfig, QConfig, StaticPlan};
use crate::error::{Error, Result};
use crate::eval::compare;
use crate::eval::samples::{BATCH, Batches, Samples, by_name};
use crate::kernels::Isa;
use crate::nn::quantized::DynamicScheme;
use crate::nn::{Executor, Model, Pattern};
use crate::ptq::Calibrator;

/// Runs of which the time of layers is the median.
const PROFILED: usize = 7;
/// Time in which two mixes are told apart.
const TIMING: Duration = Duration::from_millis(200);

pub struct Builder<'a> {
    model: &'a Model,
    config: QConfig,
    samples: Batches,
    threads: Option<usize>,
    /// Of all values that any mix so far looked at.
    calibration: Calibration,
    layers: Vec<String>,
}

impl<'a> Builder<'a> {
    pub fn new(model: &'a Model, config: QConfig, samples: &Samples, threads: Option<usize>) -> Result<Self> {
        let samples = Batches::new(samples, model)?;
        let mut builder = Builder { model, config, samples, threads, calibration: Calibration::new(), layers: Vec::new() };
        let all = builder.build(&Mix::default())?;
        builder.layers = all.conversion().map(|conversion| conversion.quantized.clone()).unwrap_or_default();
        Ok(builder)
    }

    /// What models are made by: the configuration, and the samples that calibrate.
    pub fn describe(&self, fingerprint: &mut Fingerprint) {
        fingerprint.add(format!("{:?}", self.config).as_bytes());
        self.samples.describe(|bytes| fingerprint.add(bytes));
    }

    /// The layers that the configuration quantizes, in the model's order.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// Whether a layer can have its input quantized at run time instead of what the configuration says.
    pub fn has_dynamic(&self, name: &str) -> bool {
        self.dynamic(name).is_some()
    }

    fn dynamic(&self, name: &str) -> Option<DynamicScheme> {
        self.model.node(name).and_then(|node| self.config.dynamic_instead(node))
    }

    /// The model of this mix.
    pub fn build(&mut self, mix: &Mix) -> Result<Model> {
        let mut config = self.config.clone();
        for (name, choice) in mix.layers() {
            let other = match choice {
                Choice::Configured => continue,
                Choice::Dynamic => LayerConfig::Dynamic(self.dynamic(name).unwrap_or_default()),
                Choice::Float => LayerConfig::Float,
            };
            config = config.with_pattern(Pattern::literal(name)?.as_str(), other)?;
        }
        let first = self.samples.part(0..self.samples.size(BATCH))?;
        let shapes: Vec<Vec<usize>> = first.iter().map(|(_, value)| value.shape().dims().to_vec()).collect();
        let plan = match StaticPlan::new(self.model, &config, &shapes) {
            // Everything is left in float.
            Err(Error::NothingToQuantize { .. }) if !self.layers.is_empty() => return Ok(self.model.clone()),
            plan => plan?,
        };
        if plan.observed().any(|(name, _)| self.calibration.get(name).is_none()) {
            self.calibrate(&config)?;
        }
        plan.convert(&self.calibration.clone().with_shapes(shapes), Isa::best())
    }

    /// Seconds of a forward that each layer saves in int8, of the model with all of them quantized.
    pub fn seconds_saved(&mut self, data: &Batches) -> Result<Vec<(String, f64)>> {
        let x = data.least()?;
        let quantized = self.build(&Mix::default())?;
        let mut times = Vec::with_capacity(2);
        for model in [self.model, &quantized] {
            let mut executor = Executor::new(model);
            if let Some(threads) = self.threads {
                executor = executor.with_threads(threads)?;
            }
            times.push(executor.profile(&by_name(&x), PROFILED)?);
        }
        let seconds =
            |run: usize, name: &str| times[run].iter().find(|(other, _)| other == name).map_or(0.0, |(_, time)| time.as_secs_f64());
        Ok(self.layers.iter().map(|name| (name.clone(), seconds(0, name) - seconds(1, name))).collect())
    }

    /// Seconds of a forward of each of two mixes, run in turn.
    pub fn seconds(&mut self, mixes: [&Mix; 2], data: &Batches) -> Result<[f64; 2]> {
        let x = data.least()?;
        let [a, b] = mixes;
        let mut executors = [Executor::new(&self.build(a)?), Executor::new(&self.build(b)?)];
        if let Some(threads) = self.threads {
            let [a, b] = executors;
            executors = [a.with_threads(threads)?, b.with_threads(threads)?];
        }
        Ok(compare::time(&mut executors, &x, TIMING)?.map(|time| time.as_secs_f64()))
    }

    /// Looks at the samples for all that this configuration asks of them.
    fn calibrate(&mut self, config: &QConfig) -> Result<()> {
        let mut calibrator = Calibrator::new(self.model, config)?;
        if let Some(threads) = self.threads {
            calibrator = calibrator.with_threads(threads);
        }
        for range in self.samples.ranges(BATCH) {
            calibrator.observe(&by_name(&self.samples.part(range)?))?;
        }
        for (name, params) in calibrator.finish()?.activations() {
            self.calibration.insert(name, params.clone());
        }
        Ok(())
    }
}
