//! A [`Report`] for the terminal.

use std::fmt;
use std::time::Duration;

use super::report::{LayerReport, Report};

fn ratio(after: f64, before: f64) -> String {
    if before > 0.0 { format!("{:.1} %", 100.0 * after / before) } else { "-".into() }
}

pub(super) fn decibels(db: f64) -> String {
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
                writeln!(f, "{:28} {:>12} {agreement:>10.2} %  {} of {} flipped", "agreement", "", found.flips, found.rows)?
            }
            _ => writeln!(f, "{:28} {:>12} {:>12}  outputs are not rows of classes", "top-1, agreement, KL", "", "n/a")?,
        }
        writeln!(f, "{:28} {:>12} {:>12}", "output SQNR", "", decibels(self.sqnr_db))?;
        if let Some(found) = &self.classification {
            writeln!(f, "{:28} {:>12} {:>12.2e}  nats", "output KL", "", found.kl)?;
        }
        for (name, [before, after]) in &self.metrics {
            writeln!(f, "{name:28} {before:>12.4} {after:>12.4}  {:+.4}", after - before)?;
        }
        let bytes = |f: &mut fmt::Formatter<'_>, what: &str, [before, after]: [usize; 2]| {
            writeln!(f, "{what:28} {before:>12} {after:>12}  {}", ratio(after as f64, before as f64))
        };
        bytes(f, "bytes held in memory", [float.bytes, int8.bytes])?;
        bytes(f, "  weights of int8 layers", self.quantized_weight_bytes())?;
        bytes(f, "bytes stored in a file", [float.stored_bytes, int8.stored_bytes])?;
        writeln!(f, "{:28} {:>12} {:>12}", "multiply-accumulates, f32", float.macs_f32, int8.macs_f32)?;
        writeln!(f, "{:28} {:>12} {:>12}", "multiply-accumulates, int8", float.macs_int8, int8.macs_int8)?;
        let [before, after] = [&float.energy, &int8.energy];
        let mut energy = |what: &str, before: f64, after: f64| {
            writeln!(f, "{what:28} {:>12} {:>12}  {}", micro(before), micro(after), ratio(after, before))
        };
        energy("energy estimate, compute, uJ", before.compute, after.compute)?;
        energy("  weights from DRAM, uJ", before.weights, after.weights)?;
        energy("  activations in SRAM, uJ", before.activations, after.activations)?;
        energy("  together", before.total(), after.total())?;
        energy("  with weights in SRAM", before.total_in_cache(), after.total_in_cache())?;
        let [before, after] = self.time.map(|time| time.as_secs_f64() * 1e6);
        let label = format!("time of {}, {} thread{}, us", self.timed_batch, self.threads, if self.threads == 1 { "" } else { "s" });
        writeln!(f, "{label:28} {before:>12.1} {after:>12.1}  {:.2}x", before / after)?;
        layers(self, f)?;
        let slower = self.slower();
        if !slower.is_empty() {
            writeln!(f, "\nslower than in float, each by itself:")?;
            for layer in &slower {
                let [before, after] = layer.time.map(|time| time.map_or(0.0, micros));
                writeln!(f, "  {} ({}): {after:.1} us instead of {before:.1}", layer.name, layer.kind)?;
            }
            writeln!(f, "  to leave them in float, exclude {}", self.slower_patterns().join(","))?;
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

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The table of layers, in the order of the report.
fn layers(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let longest = |of: fn(&LayerReport) -> &str| report.layers.iter().map(|layer| of(layer).chars().count()).max().unwrap_or(0);
    let widths @ [width, format] = [longest(|layer| &layer.name).max(5), longest(|layer| &layer.format).max(4)];
    writeln!(
        f,
        "\nlayers, worst first: SQNR of the layer by itself, of its weights and of its input alone, and with all errors made before;"
    )?;
    writeln!(f, "values clipped and range unused; time in float and quantized")?;
    writeln!(
        f,
        "  {:width$}  {:15} {:format$} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8}  weight bytes",
        "", "", "", "itself", "weights", "input", "with all", "clipped", "unused", "us", "us"
    )?;
    for layer in &report.layers {
        line(layer, widths, f)?;
    }
    Ok(())
}

fn line(layer: &LayerReport, [width, format]: [usize; 2], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let own = layer.isolated.as_ref();
    let db = |db: Option<f64>| db.map_or_else(|| "-".to_owned(), decibels);
    let share = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let time = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", micros(time)));
    write!(
        f,
        "  {:width$}  {:15} {:format$} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8}",
        layer.name,
        layer.kind.to_string(),
        layer.format,
        db(own.map(|own| own.errors.sqnr_db)),
        db(own.and_then(|own| own.weights_db)),
        db(own.and_then(|own| own.input_db)),
        decibels(layer.errors.sqnr_db),
        share(layer.range.map(|range| range.clipped)),
        share(layer.range.map(|range| range.unused)),
        time(layer.time[0]),
        time(layer.time[1]),
    )?;
    if let Some(kernel) = layer.kernel {
        let [before, after] = layer.weight_bytes;
        write!(f, "  {before} -> {after}  {kernel}")?;
        // Panels are as wide as a vector: a tiny layer may grow, and that is not to be overlooked.
        if after > before && before > 0 {
            write!(f, "  grew to {}", ratio(after as f64, before as f64))?;
        }
    }
    if !layer.errors.max_error.is_finite() {
        write!(f, "  largest error {}", layer.errors.max_error)?;
    }
    writeln!(f)
}
