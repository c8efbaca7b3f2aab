//! Samples, some to learn from and some to judge by.

use crate::error::{Error, Result};
use crate::metrics::decibels;
use crate::nn::{Dim, Executor, Model};
use crate::tensor::Value;

/// Batches of inputs by name.
#[derive(Clone)]
pub(super) struct Samples(Vec<Vec<(String, Value)>>);

impl Samples {
    /// All of them; and three quarters to learn from and a quarter to judge by: of the batches, where there are four and more; of the rows
    /// of a batch, where the model takes any number of them. Of less than four nothing is set apart.
    ///
    /// # Errors
    /// [`Error::Empty`] without a batch; those of slicing.
    pub fn split(model: &Model, batches: &[&[(&str, &Value)]]) -> Result<(Samples, Option<[Samples; 2]>)> {
        if batches.is_empty() {
            return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
        }
        let owned =
            |batch: &&[(&str, &Value)]| batch.iter().map(|(name, value)| ((*name).to_owned(), (*value).clone())).collect::<Vec<_>>();
        let all: Vec<Vec<(String, Value)>> = batches.iter().map(owned).collect();
        if all.len() >= 4 {
            let held_out = |wanted: bool| {
                let of_kind = all.iter().enumerate().filter(|(index, _)| (index % 4 == 3) == wanted);
                Samples(of_kind.map(|(_, batch)| batch.clone()).collect())
            };
            let parts = [held_out(false), held_out(true)];
            return Ok((Samples(all), Some(parts)));
        }
        let any_number = model.inputs().iter().all(|input| input.dims().first() == Some(&Dim::Any));
        let rows = |batch: &[(String, Value)]| {
            let mut counts = batch.iter().map(|(_, value)| value.shape().dims().first().copied().unwrap_or(0));
            let first = counts.next().unwrap_or(0);
            if counts.all(|count| count == first) { first } else { 0 }
        };
        if !any_number || all.iter().any(|batch| rows(batch) < 4) {
            return Ok((Samples(all), None));
        }
        let part = |from: fn(usize) -> std::ops::Range<usize>| -> Result<Samples> {
            let cut = |batch: &Vec<(String, Value)>| -> Result<Vec<(String, Value)>> {
                let range = from(rows(batch));
                batch.iter().map(|(name, value)| Ok((name.clone(), value.slice(0, range.clone())?))).collect()
            };
            all.iter().map(cut).collect::<Result<_>>().map(Samples)
        };
        let parts = [part(|rows| 0..rows - rows / 4)?, part(|rows| rows - rows / 4..rows)?];
        Ok((Samples(all), Some(parts)))
    }

    /// Calls `f` with the batches as verbs take them.
    pub fn with<T>(&self, f: impl FnOnce(&[&[(&str, &Value)]]) -> T) -> T {
        let batches: Vec<Vec<(&str, &Value)>> =
            self.0.iter().map(|batch| batch.iter().map(|(name, value)| (name.as_str(), value)).collect()).collect();
        let batches: Vec<&[(&str, &Value)]> = batches.iter().map(Vec::as_slice).collect();
        f(&batches)
    }
}

/// Says how near a model's outputs are to those of the float model.
pub(super) struct Judge {
    samples: Samples,
    /// By batch: the float outputs, in the model's order.
    expected: Vec<Vec<Vec<f32>>>,
}

impl Judge {
    /// # Errors
    /// Those of [`Model::run`].
    pub fn new(model: &Model, samples: Samples) -> Result<Self> {
        let expected = outputs(model, &samples)?;
        Ok(Judge { samples, expected })
    }

    /// Signal to noise ratio of all float outputs together, in decibels; `-∞` where something is not a number.
    ///
    /// # Errors
    /// Those of [`Model::run`].
    pub fn db(&self, model: &Model) -> Result<f64> {
        let (mut signal, mut noise) = (0.0f64, 0.0f64);
        for (expected, got) in self.expected.iter().flatten().zip(outputs(model, &self.samples)?.iter().flatten()) {
            for (&expected, &got) in expected.iter().zip(got) {
                signal += f64::from(expected) * f64::from(expected);
                noise += (f64::from(expected) - f64::from(got)) * (f64::from(expected) - f64::from(got));
            }
        }
        let db = decibels(signal, noise);
        Ok(if db.is_nan() { f64::NEG_INFINITY } else { db })
    }
}

fn outputs(model: &Model, samples: &Samples) -> Result<Vec<Vec<Vec<f32>>>> {
    let mut executor = Executor::new(model);
    samples.with(|batches| {
        let run = |batch: &&[(&str, &Value)]| -> Result<Vec<Vec<f32>>> {
            let outputs = executor.run(batch)?;
            Ok(outputs.iter().filter_map(|(_, value)| value.get::<f32>().map(|value| value.as_slice().to_vec())).collect())
        };
        batches.iter().map(run).collect()
    })
}
