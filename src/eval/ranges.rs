//! What a range for each row or image is worth, where ONNX has one for the whole tensor.

use std::fmt;

use crate::error::{Error, Result};
use crate::eval::compare::{check_labels, rows_of_classes};
use crate::eval::display::decibels;
use crate::eval::report::Classification;
use crate::eval::samples::{Batches, Samples};
use crate::eval::sums::Sums;
use crate::kernels::RangeOf;
use crate::nn::{Executor, Model};
use crate::ptq::with_input_range;

/// What [`compare_ranges`] found: pairs are of a range for each row or image, and of one for the tensor.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RangeReport {
    /// Samples run.
    pub samples: usize,
    /// Samples run at once, which have one range together where there is one for the tensor.
    pub batch: usize,
    /// Signal to quantization noise of the output against the float model's.
    pub sqnr_db: [f64; 2],
    /// What the outputs say as rows of classes, where they are some: float beside each.
    pub classification: Option<[Classification; 2]>,
}

/// Runs a dynamically quantized model with a range for each row or image and with one for the whole tensor
/// ([`RangeOf`]), whichever of them it has, and compares both with the float model that it was made from; by `labels` too, where they are
/// known. Layers are those of `quantized` otherwise: the same codes and scales of weights.
///
/// One range for the tensor is that of a batch, so what it costs depends on how many samples are run at once: `batch`, or what a
/// fixed first axis of the model's inputs demands.
///
/// ```
/// # use lowprec::nn::{Dim, Linear, Model};
/// # use lowprec::{DType, LayerKind, Tensor};
/// # let mut net = Model::builder();
/// # let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
/// # let x = net.add("fc", Linear::new(Tensor::new([2, 2], vec![0.5, -1.0, 0.3, 0.7])?, None)?, &[x])?;
/// # net.output("y", x)?;
/// # let model = net.build()?;
/// let int8 = lowprec::quantize_dynamic(&model, &[LayerKind::Linear])?;
/// // A row that is much larger than the other.
/// let samples = Tensor::new([2, 2], vec![0.011, 0.02, 5.0, -3.0])?;
/// let found = lowprec::eval::compare_ranges(&model, &int8, &samples, Some(&[1, 0]), 2)?;
/// assert!(found.sqnr_db[0] > found.sqnr_db[1]);
/// println!("{found}");
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] when no layer quantizes its inputs at run time, [`Error::Parameter`] for a batch of 0, and those of
/// [`compare`](crate::compare).
pub fn compare_ranges(
    float: &Model,
    quantized: &Model,
    samples: impl Into<Samples>,
    labels: Option<&[usize]>,
    batch: usize,
) -> Result<RangeReport> {
    if batch == 0 {
        return Err(Error::parameter("batch", 0, "must be at least 1"));
    }
    let models = [with_input_range(quantized, RangeOf::Row)?, with_input_range(quantized, RangeOf::Tensor)?];
    let batches = Batches::new(&samples.into(), float)?;
    let reference = batches.outputs(&mut Executor::new(float), batch)?;
    let classes = rows_of_classes(batches.samples(), reference.dims());
    check_labels(labels, (classes, batches.samples()), reference.dims())?;
    let judged = |model: &Model| {
        let outputs = batches.outputs(&mut Executor::new(model), batch)?;
        if outputs.shape() != reference.shape() {
            let expected = format!("{:?}, the float model's", reference.shape());
            return Err(Error::shape("output of the quantized model", expected, outputs.dims()));
        }
        let mut sums = Sums::default();
        sums.add(reference.as_slice(), outputs.as_slice());
        let of = |(_, classes)| Classification::of(reference.as_slice(), outputs.as_slice(), classes, labels);
        Ok((sums.sqnr_db(), classes.map(of).transpose()?))
    };
    let [row, tensor] = [judged(&models[0])?, judged(&models[1])?];
    Ok(RangeReport {
        samples: batches.samples(),
        batch: batches.size(batch),
        sqnr_db: [row.0, tensor.0],
        classification: row.1.zip(tensor.1).map(|(row, tensor)| [row, tensor]),
    })
}

impl RangeReport {
    /// Share of rows of classes whose largest output is at the label: in float, with a range for each row or image, and with one for the
    /// tensor.
    pub fn accuracy(&self) -> Option<[f64; 3]> {
        let [row, tensor] = self.classification.as_ref()?;
        let ([float, each], [_, one]) = (row.hits?, tensor.hits?);
        Some([float, each, one].map(|hits| hits as f64 / row.rows.max(1) as f64))
    }
}

impl fmt::Display for RangeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = format!("{} samples, {} at once", self.samples, self.batch);
        writeln!(f, "{title:28} {:>12} {:>13}", "range of each", "of the tensor")?;
        let [row, tensor] = self.sqnr_db;
        writeln!(f, "{:28} {:>12} {:>13}", "output SQNR against float", decibels(row), decibels(tensor))?;
        if let Some([row, tensor]) = &self.classification {
            writeln!(f, "{:28} {:>12} {:>13}  of {}", "flipped", row.flips, tensor.flips, row.rows)?;
        }
        if let Some([float, row, tensor]) = self.accuracy() {
            let percent = |share: f64| format!("{:.2} %", 100.0 * share);
            writeln!(f, "{:28} {:>12} {:>13}  {} in float", "top-1", percent(row), percent(tensor), percent(float))?;
        }
        Ok(())
    }
}
