//! The numbers of a comparison, and how they print.

use std::fmt;
use std::time::Duration;

use crate::eval::Cost;
use crate::nn::{Conversion, LayerKind, Precision};

/// What [`compare`](crate::compare) found. Pairs are `[float, quantized]`. Its `Display` is the report to read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Samples run.
    pub samples: usize,
    /// What the outputs say as rows of classes; `None` when they are none (`[samples, classes]` of at least two classes, axes
    /// of length 1 behind them not counted).
    pub classification: Option<Classification>,
    /// Signal to quantization noise of the output: `10 · log10(Σ y² / Σ (y - y')²)`.
    pub sqnr_db: f64,
    /// Every layer of the quantized model whose output the float model has too, the worst first. Errors made upstream
    /// are included.
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

/// The outputs of a [`Report`], read as one row of classes a sample.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Classification {
    /// Outputs in a row.
    pub classes: usize,
    /// Samples whose largest output is at the label, when labels were given.
    pub hits: Option<[usize; 2]>,
    /// Samples whose largest output is at another place than in the float model, or nowhere, being NaN.
    pub flips: usize,
    /// Mean KL divergence of the softmaxed outputs from the float model's, in nats.
    pub kl: f64,
}

/// One layer of a [`Report`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerReport {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: LayerKind,
    /// What it computes in.
    pub precision: Precision,
    /// The integer kernel it runs on.
    pub kernel: Option<&'static str>,
    /// Signal to quantization noise of its output; `-∞` when NaN or an infinity stands where the float model has something
    /// else.
    pub sqnr_db: f64,
    /// Largest difference of an element of its output, in that case NaN or infinite.
    pub max_error: f32,
    /// Bytes of its weights, scales and sums included, before and after.
    pub weight_bytes: [usize; 2],
    /// Multiply-accumulates of one forward.
    pub macs: u64,
}

impl Report {
    /// Share of samples whose largest output is at the label, when labels were given.
    pub fn accuracy(&self) -> Option<[f64; 2]> {
        let hits = self.classification.as_ref()?.hits?;
        Some(hits.map(|hits| hits as f64 / self.samples as f64))
    }

    /// Share of samples for which both models have their largest output at the same place, when outputs are rows of classes.
    pub fn agreement(&self) -> Option<f64> {
        self.classification.as_ref().map(|found| 1.0 - found.flips as f64 / self.samples.max(1) as f64)
    }

    /// Bytes of the weights of all layers that were quantized (scales and sums included), before and after.
    pub fn quantized_weight_bytes(&self) -> [usize; 2] {
        let quantized = self.layers.iter().filter(|layer| layer.weight_bytes[0] != layer.weight_bytes[1]);
        quantized.fold([0, 0], |[before, after], layer| [before + layer.weight_bytes[0], after + layer.weight_bytes[1]])
    }
}

fn ratio(after: f64, before: f64) -> String {
    if before > 0.0 { format!("{:.1} %", 100.0 * after / before) } else { "-".into() }
}

fn decibels(db: f64) -> String {
    if db.is_infinite() && db > 0.0 { "exact".into() } else { format!("{db:.1} dB") }
}

fn micro(seconds: f64) -> String {
    format!("{:.3}", seconds * 1e6)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [float, int8] = &self.cost;
        writeln!(f, "{:28} {:>12} {:>12}", format!("{} samples", self.samples), "float", "quantized")?;
        if let Some([before, after]) = self.accuracy() {
            writeln!(f, "{:28} {:>10.2} % {:>10.2} %  {:+.2} points", "top-1", 100.0 * before, 100.0 * after, 100.0 * (after - before))?;
        }
        match (&self.classification, self.agreement()) {
            (Some(found), Some(agreement)) => {
                let agreement = 100.0 * agreement;
                writeln!(f, "{:28} {:>12} {agreement:>10.2} %  {} of {} flipped", "agreement", "", found.flips, self.samples)?
            }
            _ => writeln!(f, "{:28} {:>12} {:>12}  outputs are not one row of classes a sample", "top-1, agreement, KL", "", "n/a")?,
        }
        writeln!(f, "{:28} {:>12} {:>12}", "output SQNR", "", decibels(self.sqnr_db))?;
        if let Some(found) = &self.classification {
            writeln!(f, "{:28} {:>12} {:>12.2e}  nats", "output KL", "", found.kl)?;
        }
        writeln!(f, "{:28} {:>12} {:>12}  {}", "bytes stored", float.bytes, int8.bytes, ratio(int8.bytes as f64, float.bytes as f64))?;
        let [before, after] = self.quantized_weight_bytes();
        writeln!(f, "{:28} {:>12} {:>12}  {}", "  weights of int8 layers", before, after, ratio(after as f64, before as f64))?;
        writeln!(f, "{:28} {:>12} {:>12}", "multiply-accumulates, f32", float.macs_f32, int8.macs_f32)?;
        writeln!(f, "{:28} {:>12} {:>12}", "multiply-accumulates, int8", float.macs_int8, int8.macs_int8)?;
        let [before, after] = [&float.energy, &int8.energy];
        let mut energy = |what: &str, before: f64, after: f64| {
            writeln!(f, "{what:28} {:>12} {:>12}  {}", micro(before), micro(after), ratio(after, before))
        };
        energy("energy estimate, compute, uJ", before.compute, after.compute)?;
        energy("  weights from DRAM, uJ", before.weights, after.weights)?;
        energy("  activations in SRAM, uJ", before.activations, after.activations)?;
        let [before, after] = self.time.map(|time| time.as_secs_f64() * 1e6);
        let label = format!("time of {}, {} thread{}, us", self.timed_batch, self.threads, if self.threads == 1 { "" } else { "s" });
        writeln!(f, "{label:28} {before:>12.1} {after:>12.1}  {:.2}x", before / after)?;
        writeln!(f, "\nlayers, worst first")?;
        let width = self.layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0).max(5);
        for layer in &self.layers {
            write!(
                f,
                "  {:width$}  {:15} {:4} {:>9}",
                layer.name,
                layer.kind.to_string(),
                layer.precision.name(),
                decibels(layer.sqnr_db)
            )?;
            if let Some(kernel) = layer.kernel {
                let [before, after] = layer.weight_bytes;
                write!(f, "  {before:>8} -> {after:>7} B  {kernel}")?;
                // Panels are as wide as a vector: a tiny layer may grow, and that is not to be overlooked.
                if after > before && before > 0 {
                    write!(f, "  grew to {}", ratio(after as f64, before as f64))?;
                }
            }
            if !layer.max_error.is_finite() {
                write!(f, "  largest error {}", layer.max_error)?;
            }
            writeln!(f)?;
        }
        if let Some(conversion) = &self.conversion {
            for skipped in &conversion.skipped {
                writeln!(f, "  left as it was: {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
            }
            for kind in &conversion.absent {
                writeln!(f, "  asked for and absent: {kind}")?;
            }
        }
        Ok(())
    }
}
