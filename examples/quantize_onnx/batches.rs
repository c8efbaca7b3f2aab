//! More samples than a model takes at once: one run after the other, the last one filled up and cut.

use std::ops::Range;

use lowprec::nn::{Dim, Executor};
use lowprec::{Error, Model, Result, Shape, Value};

/// The inputs of each run: `size` samples at a time, or as many as the model takes, the last ones filled up where the model's
/// first axis is fixed.
pub fn parts<'n>(model: &Model, inputs: &[(&'n str, &Value)], size: Option<usize>) -> Result<Vec<Vec<(&'n str, Value)>>> {
    let whole = || vec![inputs.iter().map(|&(name, value)| (name, value.clone())).collect()];
    let (samples, size, fixed) = match (batches(model, inputs)?, size) {
        (Some(Batches { samples, size }), _) => (samples, size, true),
        (None, Some(size)) => match inputs.iter().find_map(|(_, value)| value.shape().dims().first().copied()) {
            Some(samples) if samples > size => (samples, size, false),
            _ => return Ok(whole()),
        },
        (None, None) => return Ok(whole()),
    };
    let part = |start: usize| {
        let end = if fixed { start + size } else { samples.min(start + size) };
        let cut = |&(name, value): &(&'n str, &Value)| match has_samples(model, name, value, samples, size) {
            true => Ok((name, rows(value, start..end)?)),
            false => Ok((name, value.clone())),
        };
        inputs.iter().map(cut).collect()
    };
    (0..samples).step_by(size).map(part).collect()
}

/// The model's outputs for these inputs: of one run, or, when inputs have more samples than a fixed first axis holds, of as
/// many as it takes. Outputs are then put together along their first axis.
pub fn run(executor: &mut Executor, inputs: &[(&str, &Value)]) -> Result<Vec<(String, Value)>> {
    let Some(Batches { samples, size }) = batches(executor.model(), inputs)? else { return executor.run(inputs) };
    let mut joined: Vec<(String, Joined)> = Vec::new();
    for (part, start) in parts(executor.model(), inputs, None)?.iter().zip((0..samples).step_by(size)) {
        let part: Vec<(&str, &Value)> = part.iter().map(|(name, value)| (*name, value)).collect();
        for (i, (name, value)) in executor.run(&part)?.into_iter().enumerate() {
            if value.shape().dims().first() != Some(&size) {
                return Err(Error::Shape {
                    what: format!("output `{name}` of a batch"),
                    expected: format!("[{size}, …], a row for each sample: give {size} samples at a time"),
                    got: value.shape().dims().to_vec(),
                });
            }
            if start == 0 {
                joined.push((name, Joined { part: value.shape().dims().to_vec(), first: value.clone(), bytes: Vec::new() }));
            }
            joined[i].1.append(&value, samples - start)?;
        }
    }
    joined.into_iter().map(|(name, joined)| Ok((name, joined.finish(samples)?))).collect()
}

/// Samples in all, and in one run.
struct Batches {
    samples: usize,
    size: usize,
}

/// How the inputs are cut; not at all when none has more samples than its axis holds.
fn batches(model: &Model, inputs: &[(&str, &Value)]) -> Result<Option<Batches>> {
    let mut found: Option<Batches> = None;
    for input in model.inputs() {
        let Some((_, value)) = inputs.iter().find(|(name, _)| *name == input.name()) else { continue };
        let (Some(&Dim::Fixed(size)), Some(&samples)) = (input.dims().first(), value.shape().dims().first()) else { continue };
        if samples <= size || size == 0 {
            continue;
        }
        match &found {
            Some(other) if (other.samples, other.size) != (samples, size) => {
                return Err(Error::Shape {
                    what: format!("input `{}`", input.name()),
                    expected: format!(
                        "[{}, …], as another input has {} samples for {} at a time",
                        other.samples, other.samples, other.size
                    ),
                    got: value.shape().dims().to_vec(),
                });
            }
            _ => found = Some(Batches { samples, size }),
        }
    }
    Ok(found)
}

/// Whether the first axis of an input is that of the samples: it has as many entries, and takes a batch of them.
fn has_samples(model: &Model, name: &str, value: &Value, samples: usize, size: usize) -> bool {
    let input = model.inputs().iter().find(|input| input.name() == name);
    let axis = input.and_then(|input| input.dims().first());
    value.shape().dims().first() == Some(&samples) && axis.is_some_and(|&dim| dim == Dim::Any || dim == Dim::Fixed(size))
}

/// Some rows of a value; for those beyond its end, the last one.
fn rows(value: &Value, range: Range<usize>) -> Result<Value> {
    let dims = value.shape().dims();
    let row = value.bytes().len() / dims[0];
    let row_of = |i: usize| &value.bytes()[i.min(dims[0] - 1) * row..][..row];
    let bytes: Vec<u8> = range.clone().flat_map(row_of).copied().collect();
    Value::from_bytes(value.dtype(), value.shape().with_axis(0, range.len())?, &bytes)
}

/// An output of several runs.
struct Joined {
    first: Value,
    part: Vec<usize>,
    bytes: Vec<u8>,
}

impl Joined {
    /// Adds at most `left` rows.
    fn append(&mut self, value: &Value, left: usize) -> Result<()> {
        if value.shape().dims() != self.part {
            return Err(Error::Shape {
                what: "output of a later batch".into(),
                expected: format!("{:?}, as the first one", self.part),
                got: value.shape().dims().to_vec(),
            });
        }
        let rows = self.part[0];
        self.bytes.extend_from_slice(&value.bytes()[..value.bytes().len() / rows * left.min(rows)]);
        Ok(())
    }

    fn finish(self, samples: usize) -> Result<Value> {
        let mut dims = self.part;
        dims[0] = samples;
        Value::from_bytes(self.first.dtype(), Shape::new(dims)?, &self.bytes)
    }
}
