//! Steps tried one after the other.

use std::time::Instant;

use super::judge::{Judge, Samples};
use super::{Gain, Stage};
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::progress::Progress;

/// The steps tried so far: the float model, what it is quantized, and how near that is.
pub(super) struct Trials<'a> {
    samples: Samples,
    /// Without one, every step stays.
    pub judge: Option<Judge>,
    tried: Vec<Stage>,
    progress: Progress<'a>,
    pub float: Model,
    pub quantized: Option<Model>,
    pub db: f64,
    pub plain_db: f64,
    pub stages: Vec<Gain>,
}

impl<'a> Trials<'a> {
    pub fn new(model: &Model, samples: Samples, judge: Option<Judge>, tried: Vec<Stage>, progress: Progress<'a>) -> Self {
        let float = model.clone();
        Trials { samples, judge, tried, progress, float, quantized: None, db: f64::NAN, plain_db: f64::NAN, stages: Vec::new() }
    }

    fn judged(&self, model: &Model) -> Result<f64> {
        self.judge.as_ref().map_or(Ok(f64::INFINITY), |judge| judge.db(model))
    }

    /// The model quantized without any step.
    pub fn begin(&mut self, quantize: impl FnOnce(&Samples) -> Result<Model>) -> Result<()> {
        self.progress.step("recipe", "quantize", 0, 1)?;
        let quantized = quantize(&self.samples)?;
        self.plain_db = self.judged(&quantized)?;
        self.db = self.plain_db;
        self.quantized = Some(quantized);
        Ok(())
    }

    /// Tries a step if it is to be tried, and says whether it stays.
    pub fn attempt(&mut self, stage: Stage, step: impl FnOnce(&Model, &Model, &Samples, Progress<'_>) -> Result<Attempt>) -> Result<bool> {
        let start = Instant::now();
        let Some(quantized) = self.quantized.as_ref().filter(|_| self.tried.contains(&stage)) else { return Ok(false) };
        let (float, quantized) = match step(&self.float, quantized, &self.samples, self.progress.lend()) {
            Ok(Attempt::Made(float, quantized)) => (float, quantized),
            Ok(Attempt::Idle(why)) => {
                self.idle(stage, why, start);
                return Ok(false);
            }
            // No layer of the kinds that the step is for: of embeddings alone there are no biases.
            Err(error) if matches!(error.kind(), Error::NothingToQuantize { .. }) => {
                self.idle(stage, "no layer that it is for".into(), start);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let db = self.judged(&quantized)?;
        let kept = self.judge.is_none() || db > self.db;
        self.stages.push(Gain { stage, before: self.db, after: db, kept, idle: None, time: start.elapsed() });
        if kept {
            (self.float, self.quantized, self.db) = (float, Some(quantized), db);
        }
        Ok(kept)
    }

    /// Notes a step that has nothing to do.
    pub fn idle(&mut self, stage: Stage, why: String, start: Instant) {
        self.stages.push(Gain { stage, before: self.db, after: self.db, kept: false, idle: Some(why), time: start.elapsed() });
    }
}

/// What became of a step.
pub(super) enum Attempt {
    /// The float model and the quantized one.
    Made(Model, Model),
    /// There was nothing to do for it.
    Idle(String),
}

impl Attempt {
    /// `made`, or why there is nothing.
    pub fn or_idle(made: Option<(Model, Model)>, why: &str) -> Self {
        made.map_or_else(|| Attempt::Idle(why.into()), |(float, quantized)| Attempt::Made(float, quantized))
    }
}
