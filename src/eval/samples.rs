//! What models are run on to be judged: a value for each input, and batches of them.

use std::ops::Range;

use crate::error::{Error, Names, Result};
use crate::nn::{Dim, Executor, Model, Tap};
use crate::tensor::{Tensor, Value};

/// Samples run at once. Results don't depend on it, but where a layer has one range for the whole tensor; memory does.
pub(super) const BATCH: usize = 64;

/// What models are compared, searched and judged on: a value for each input, whose first axis counts the samples.
///
/// Made of the value of a model's one input, or of values by name:
///
/// ```
/// use lowprec::eval::Samples;
/// # use lowprec::nn::{Dim, Layer, Model};
/// # use lowprec::{DType, Tensor};
/// # let mut net = Model::builder();
/// # let (a, b) = (net.input("a", DType::F32, &[Dim::Any])?, net.input("b", DType::F32, &[Dim::Any])?);
/// # let y = net.add("add", Layer::Add, &[a, b])?;
/// # net.output("y", y)?;
/// # let model = net.build()?;
/// let (a, b) = (Tensor::new([2], vec![1.0, 2.0])?, Tensor::new([2], vec![3.0, 4.0])?);
/// let samples = Samples::named([("a", &a), ("b", &b)]);
/// let report = lowprec::compare(&model, &model, samples, None)?;
/// assert_eq!(report.samples, 2);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Samples {
    /// Without a name: of the one input.
    values: Vec<(Option<String>, Value)>,
}

impl<T: Into<Value>> From<T> for Samples {
    fn from(value: T) -> Self {
        Samples { values: vec![(None, value.into())] }
    }
}

impl Samples {
    /// Of a model with several inputs.
    pub fn named<N: Into<String>, V: Into<Value>>(values: impl IntoIterator<Item = (N, V)>) -> Self {
        Samples { values: values.into_iter().map(|(name, value)| (Some(name.into()), value.into())).collect() }
    }
}

/// Samples as a model takes them.
#[derive(Debug, Clone)]
pub(super) struct Batches {
    /// In the order of the model's inputs.
    inputs: Batch,
    samples: usize,
    /// The samples that the model takes at once, where it takes no others.
    fixed: Option<usize>,
}

/// A value for each input, by name.
pub(super) type Batch = Vec<(String, Value)>;

impl Batches {
    /// # Errors
    /// [`Error::Unsupported`] for a model without inputs, and for a single value and a model of several, [`Error::Unknown`] for an input without samples or
    /// samples without an input, [`Error::Shape`] for inputs that differ in the number of samples, [`Error::Empty`] without any,
    /// [`Error::Parameter`] for samples that are no whole batches.
    pub fn new(samples: &Samples, model: &Model) -> Result<Self> {
        if model.inputs().is_empty() {
            return Err(Error::Unsupported { what: "samples for a model without inputs".into(), way_out: "run it once".into() });
        }
        let inputs: Batch = match (&samples.values[..], model.inputs()) {
            ([(None, value)], [input]) => vec![(input.name().to_owned(), value.clone())],
            ([(None, _)], inputs) => {
                return Err(Error::Unsupported {
                    what: format!("samples of one input for a model with {}", inputs.len()),
                    way_out: "give a value for each, by name, with `Samples::named`".into(),
                });
            }
            (values, inputs) => {
                let names = || values.iter().filter_map(|(name, _)| name.as_deref());
                if let Some(name) = names().find(|name| !inputs.iter().any(|input| input.name() == *name)) {
                    return Err(model.unknown_input(name));
                }
                let find = |name: &str| {
                    let found = values.iter().find(|(other, _)| other.as_deref() == Some(name));
                    let missing =
                        || Error::Unknown { what: "input among the samples", name: name.to_owned(), present: names().collect::<Names>() };
                    found.map(|(_, value)| (name.to_owned(), value.clone())).ok_or_else(missing)
                };
                inputs.iter().map(|input| find(input.name())).collect::<Result<_>>()?
            }
        };
        // As many as the model has.
        let (first, value) = &inputs[0];
        let count = value.shape().axis(0)?;
        if let Some((name, other)) = inputs.iter().find(|(_, value)| value.shape().dims().first() != Some(&count)) {
            let expected = format!("[{count}, …]: the first axis counts the samples, of which `{first}` has {count}");
            return Err(Error::shape(format!("samples of input `{name}`"), expected, other.shape().dims()));
        }
        if count == 0 {
            return Err(Error::Empty { what: "set of samples".into(), way_out: "give at least one" });
        }
        let mut sizes = model.inputs().iter().filter_map(|input| match input.dims().first() {
            Some(&Dim::Fixed(size)) => Some(size),
            _ => None,
        });
        let fixed = sizes.next();
        match fixed {
            Some(size) if size == 0 || !count.is_multiple_of(size) || sizes.any(|other| other != size) => Err(Error::parameter(
                "samples",
                count,
                format!("must come in whole batches of {size}, the fixed first axis of the model's inputs"),
            )),
            fixed => Ok(Batches { inputs, samples: count, fixed }),
        }
    }

    /// Samples in all.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Samples to run at once: what the model demands, or so many.
    pub fn size(&self, most: usize) -> usize {
        self.fixed.unwrap_or(most.clamp(1, self.samples))
    }

    /// Ranges of samples to run at once.
    pub fn ranges(&self, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (samples, size) = (self.samples, self.size(most));
        (0..samples).step_by(size).map(move |start| start..samples.min(start + size))
    }

    /// The inputs of some samples.
    pub fn part(&self, range: Range<usize>) -> Result<Batch> {
        self.inputs.iter().map(|(name, value)| Ok((name.clone(), value.slice(0, range.clone())?))).collect()
    }

    /// Shows all that they are, in bytes.
    pub fn describe(&self, mut show: impl FnMut(&[u8])) {
        for (name, value) in &self.inputs {
            show(name.as_bytes());
            show(format!("{} {:?}", value.dtype(), value.shape()).as_bytes());
            show(value.bytes());
        }
    }

    /// As few samples as the model takes at once.
    pub fn least(&self) -> Result<Batch> {
        self.part(0..self.size(1))
    }

    /// The model's outputs for all samples.
    pub fn outputs(&self, executor: &mut Executor, most: usize) -> Result<Tensor> {
        let (mut all, mut dims) = (Vec::new(), Vec::new());
        for range in self.ranges(most) {
            let y = floats_of(executor.run(&by_name(&self.part(range)?))?)?;
            dims = y.dims().to_vec();
            all.extend_from_slice(y.as_slice());
        }
        joined(all, dims)
    }
}

/// Outputs of batches, one behind the other, of which the last has these lengths.
pub(super) fn joined(all: Vec<f32>, mut dims: Vec<usize>) -> Result<Tensor> {
    let row: usize = dims.iter().skip(1).product();
    dims.iter_mut().take(1).for_each(|first| *first = all.len() / row.max(1));
    Tensor::new(dims, all)
}

pub(super) fn by_name(batch: &Batch) -> Vec<(&str, &Value)> {
    batch.iter().map(|(name, value)| (name.as_str(), value)).collect()
}

/// One run of a model of one output, every value shown.
pub(super) fn forward(executor: &mut Executor, batch: &Batch, tap: impl FnMut(&Tap<'_>) -> Result<()>) -> Result<Tensor> {
    floats_of(executor.run_with(&by_name(batch), tap)?)
}

/// The one output, which must be floats.
pub(super) fn floats_of(outputs: Vec<(String, Value)>) -> Result<Tensor> {
    match <[_; 1]>::try_from(outputs) {
        Ok([(_, Value::F32(y))]) => Ok(y),
        Ok([(name, other)]) => Err(Error::Type { what: format!("output `{name}`"), expected: "f32", got: other.dtype().name() }),
        Err(outputs) => Err(Error::Unsupported {
            what: format!("judging a model by {} outputs", outputs.len()),
            way_out: "build one that has the output that counts alone".into(),
        }),
    }
}
