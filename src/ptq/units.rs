//! Samples one by one, and put together again.

use crate::error::{Error, Result};
use crate::nn::{Dim, Edge, Model};
use crate::num::NonFinite;
use crate::tensor::{Shape, Value};

/// Of every so many units one is held out.
const HELD_OUT: usize = 4;

/// What samples are counted in: rows, where the model takes any number of them, so that any of them make a batch; else the batches as they
/// were given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Units {
    pub count: usize,
    pub rows: bool,
}

impl Units {
    /// Of batches whose inputs all have so many rows each, and of the values of each input.
    pub fn new(model: &Model, batches: &[&[(&str, &Value)]]) -> Self {
        let any_number = model.inputs().iter().all(|input| input.dims().first() == Some(&Dim::Any));
        let rows = |batch: &&[(&str, &Value)]| {
            let mut counts = batch.iter().map(|(_, value)| value.shape().dims().first().copied().unwrap_or(0));
            let first = counts.next().unwrap_or(0);
            counts.all(|count| count == first).then_some(first)
        };
        let same = |name: &str| {
            let mut shapes = batches.iter().flat_map(|batch| batch.iter().filter(|(other, _)| *other == name));
            let first = shapes.next().map(|(_, value)| value.shape().dims());
            shapes.all(|(_, value)| first.is_some_and(|first| first.get(1..) == value.shape().dims().get(1..)))
        };
        let counts: Option<Vec<usize>> = batches.iter().map(rows).collect();
        match counts {
            Some(counts) if any_number && model.inputs().iter().all(|input| same(input.name())) => {
                Units { count: counts.iter().sum(), rows: true }
            }
            _ => Units { count: batches.len(), rows: false },
        }
    }

    /// Units to learn from, and to judge by; of fewer than four none is held out.
    pub fn parts(&self) -> [Vec<usize>; 2] {
        let (held_out, learning) = (0..self.count).partition(|unit| self.count >= HELD_OUT && unit % HELD_OUT == HELD_OUT - 1);
        [learning, held_out]
    }

    /// What batches give for each input of the model, by unit.
    ///
    /// # Errors
    /// [`Error::Unknown`] for an input left out, [`Error::NonFinite`] for one that is not finite, [`Error::Empty`] without a sample.
    pub fn inputs(&self, model: &Model, batches: &[&[(&str, &Value)]]) -> Result<Vec<(Edge, Vec<Value>)>> {
        if self.count == 0 {
            return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give batches of at least one sample" });
        }
        let mut given = Vec::with_capacity(model.inputs().len());
        for input in model.inputs() {
            let mut all = Vec::with_capacity(self.count);
            for batch in batches {
                let value = batch.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value);
                let value = value.ok_or_else(|| Error::Unknown {
                    what: "given input",
                    name: input.name().to_owned(),
                    present: batch.iter().map(|(name, _)| *name).collect(),
                })?;
                input.check(value)?;
                if let Value::F32(value) = value {
                    NonFinite::Error.check(&format!("value `{}`", input.name()), value.as_slice())?;
                }
                all.extend(self.split(value, value.shape().dims().first().copied().unwrap_or(0))?);
            }
            given.push((input.edge(), all));
        }
        Ok(given)
    }

    /// Values of batches, by unit.
    ///
    /// # Errors
    /// [`Error::Shape`] for a value without a row for each sample.
    pub fn split(&self, value: &Value, expected: usize) -> Result<Vec<Value>> {
        if !self.rows {
            return Ok(vec![value.clone()]);
        }
        let dims = value.shape().dims();
        if dims.first() != Some(&expected) {
            return Err(Error::shape("value", format!("{expected} rows, one for each sample"), dims));
        }
        (0..expected).map(|row| value.slice(0, row..row + 1)).collect()
    }

    /// The units in lists of at most so many: what runs at a time.
    pub fn batches(&self, units: &[usize], most: usize) -> Vec<Vec<usize>> {
        units.chunks(if self.rows { most.max(1) } else { 1 }).map(<[usize]>::to_vec).collect()
    }

    /// The values of some units as one.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of several shapes.
    pub fn gather(&self, values: &[Value], units: &[usize]) -> Result<Value> {
        let first = &values[units[0]];
        if let [_] = units {
            return Ok(first.clone());
        }
        let mut bytes = Vec::with_capacity(first.bytes().len() * units.len());
        for &unit in units {
            let value = &values[unit];
            if value.shape() != first.shape() {
                return Err(Error::shape("value of a sample", format!("{:?}", first.shape().dims()), value.shape().dims()));
            }
            bytes.extend_from_slice(value.bytes());
        }
        let mut dims = first.shape().dims().to_vec();
        dims[0] = units.len();
        Value::from_bytes(first.dtype(), Shape::new(dims)?, &bytes)
    }
}
