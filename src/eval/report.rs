//! The numbers of a comparison.

use std::cmp::Ordering;
use std::time::Duration;

use crate::eval::Cost;
use crate::eval::histogram::Histogram;
use crate::eval::sums::Sums;
use crate::nn::{Conversion, LayerKind, Pattern, Precision};

/// What [`compare`](crate::compare) found. Pairs are `[float, quantized]`. Its `Display` is the report to read.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// Samples run.
    pub samples: usize,
    /// What the outputs say as rows of classes; `None` when they are none (`[samples, classes]` or `[samples, places, classes]` of at least two
    /// classes, axes of length 1 behind them not counted).
    pub classification: Option<Classification>,
    /// Signal to quantization noise of the output: `10 · log10(Σ y² / Σ (y - y')²)`.
    pub sqnr_db: f64,
    /// The caller's own numbers: name, float, quantized.
    pub metrics: Vec<(String, [f64; 2])>,
    /// Every layer of the quantized model whose output the float model has too, the worst first: by the error that it makes itself
    /// ([`LayerReport::isolated`]), because all that follow a bad layer carry its error; then those of which that is not known and
    /// then those that make none, both by their error with all made before.
    pub layers: Vec<LayerReport>,
    /// Bytes, operations and estimated energy of one forward.
    pub cost: [Cost; 2],
    /// Median time of one forward.
    pub time: [Duration; 2],
    /// Samples in that forward.
    pub timed_batch: usize,
    /// Threads it could use.
    pub threads: usize,
    /// What the quantized model was made by.
    pub conversion: Option<Conversion>,
}

/// The outputs of a [`Report`], read as rows of classes, one a sample or one for each of its places.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Classification {
    /// Outputs in a row.
    pub classes: usize,
    /// Rows: one a sample, or one for each of its places.
    pub rows: usize,
    /// Rows whose largest output is at the label, when labels were given.
    pub hits: Option<[usize; 2]>,
    /// Rows whose largest output is at another place than in the float model, or nowhere, being NaN.
    pub flips: usize,
    /// Mean KL divergence of the softmaxed outputs from the float model's, in nats.
    pub kl: f64,
}

/// One layer of a [`Report`].
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LayerReport {
    /// Its name.
    pub name: String,
    /// Its place among the layers of the report in the order in which they run, from 0.
    pub position: usize,
    /// Its kind.
    pub kind: LayerKind,
    /// What it computes in.
    pub precision: Precision,
    /// What a listing calls that: the precision's name, or the format of weights that alone are quantized.
    pub format: String,
    /// The integer kernel it runs on.
    pub kernel: Option<&'static str>,
    /// Of its output, errors made before it included.
    pub errors: Errors,
    /// Of the layer by itself, on what the float model feeds it; `None` where that can't be told.
    pub isolated: Option<Isolated>,
    /// How its output lies in the range of its codes, where it has codes fixed beforehand.
    pub range: Option<RangeUse>,
    /// Its float weights in codes, or in units of their scales where the codes stand for levels that are not evenly spaced, beside the
    /// codes that they are rounded to; without those that are kept exactly.
    pub weights: Option<Histogram>,
    /// The float model's values of its output, beside the codes that they are rounded to.
    pub values: Option<Histogram>,
    /// Bytes of its weights, scales and sums included, before and after.
    pub weight_bytes: [usize; 2],
    /// Multiply-accumulates of one forward.
    pub macs: u64,
    /// Median time within one forward; what runs inside another layer has none.
    pub time: [Option<Duration>; 2],
}

impl LayerReport {
    /// The worst first, as [`Report::layers`] says.
    pub(super) fn by_loss(&self, other: &Self) -> Ordering {
        let key = |layer: &LayerReport| match layer.isolated.map(|own| own.errors.sqnr_db) {
            Some(f64::INFINITY) => (2, layer.errors.sqnr_db),
            Some(own) => (0, own),
            None => (1, layer.errors.sqnr_db),
        };
        let ((class, db), (other_class, other_db)) = (key(self), key(other));
        class.cmp(&other_class).then(db.total_cmp(&other_db))
    }
}

/// How far two values are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Errors {
    /// Signal to quantization noise; `-∞` when NaN or an infinity stands where the float model has something else.
    pub sqnr_db: f64,
    /// Cosine of the angle between them.
    pub cosine: f64,
    /// Largest difference of an element, in that case NaN or infinite.
    pub max_error: f32,
}

impl Errors {
    pub(super) fn of(sums: &Sums) -> Self {
        Errors { sqnr_db: sums.sqnr_db(), cosine: sums.cosine(), max_error: sums.largest as f32 }
    }
}

/// The error that a layer makes itself.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Isolated {
    /// Of its output, what was fused into it included.
    pub errors: Errors,
    /// SQNR of its output with the quantized weights and the input as it is, what was fused into it left out, for a layer that has weights.
    pub weights_db: Option<f64>,
    /// SQNR of its output with the weights as they are and the input quantized, where it is; of a recurrent layer the sequence alone, its
    /// state as it is.
    pub input_db: Option<f64>,
}

/// How values lie in the range of codes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RangeUse {
    /// Share of the float model's values that lie beyond the range by more than half a step.
    pub clipped: f64,
    /// Share of the range in which none lies, at its ends.
    pub unused: f64,
}

impl Report {
    /// Share of rows whose largest output is at the label, when labels were given.
    pub fn accuracy(&self) -> Option<[f64; 2]> {
        let found = self.classification.as_ref()?;
        Some(found.hits?.map(|hits| hits as f64 / found.rows.max(1) as f64))
    }

    /// Share of rows for which both models have their largest output at the same place, when outputs are rows of classes.
    pub fn agreement(&self) -> Option<f64> {
        self.classification.as_ref().map(|found| 1.0 - found.flips as f64 / found.rows.max(1) as f64)
    }

    /// Bytes of the weights of all layers that were quantized (scales and sums included), before and after.
    pub fn quantized_weight_bytes(&self) -> [usize; 2] {
        let quantized = self.layers.iter().filter(|layer| layer.weight_bytes[0] != layer.weight_bytes[1]);
        quantized.fold([0, 0], |[before, after], layer| [before + layer.weight_bytes[0], after + layer.weight_bytes[1]])
    }

    /// Layers with quantized weights or in int8 that take longer than in float, the most time lost first: leaving them in float makes the
    /// model faster, where what surrounds them is no slower for it.
    pub fn slower(&self) -> Vec<&LayerReport> {
        let lost = |layer: &LayerReport| match layer.time {
            [Some(before), Some(after)] if layer.precision == Precision::Int8 || layer.weight_bytes[0] != layer.weight_bytes[1] => {
                after.checked_sub(before).filter(|lost| !lost.is_zero())
            }
            _ => None,
        };
        let mut slower: Vec<&LayerReport> = self.layers.iter().filter(|layer| lost(layer).is_some()).collect();
        slower.sort_by_key(|layer| std::cmp::Reverse(lost(layer)));
        slower
    }

    /// The names of [`Report::slower`] as patterns that match these layers and no others: what `exclude` of
    /// [`DynamicQuantization`](crate::ptq::DynamicQuantization) and `with_pattern` of [`QConfig`](crate::QConfig) and
    /// [`WeightConfig`](crate::ptq::WeightConfig) take, to leave them in float.
    pub fn slower_patterns(&self) -> Vec<String> {
        let names = self.slower().into_iter().filter_map(|layer| Pattern::literal(&layer.name).ok());
        names.map(|pattern| pattern.as_str().to_owned()).collect()
    }
}
