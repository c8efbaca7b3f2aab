//! A [`Report`] as a page: one file that needs no network and no scripts, light or dark as the reader has it.

mod chart;
mod style;

use std::fmt::{self, Display, Write};

use super::report::{LayerReport, Report};
use chart::{bars, histogram};

impl Report {
    /// The report as a self-contained HTML page.
    ///
    /// ```no_run
    /// # fn of(report: &lowprec::eval::Report) -> std::io::Result<()> {
    /// std::fs::write("report.html", report.to_html("resnet50, static int8"))?;
    /// # Ok(()) }
    /// ```
    pub fn to_html(&self, title: &str) -> String {
        let mut page = String::new();
        write(self, title, &mut page).expect("a string takes all that is written to it");
        page
    }
}

/// Text with the characters escaped that HTML gives a meaning.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            other => f.write_char(other),
        })
    }
}

fn write(report: &Report, title: &str, page: &mut String) -> fmt::Result {
    let title = Escaped(title);
    write!(page, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")?;
    write!(page, "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>")?;
    writeln!(page, "<style>{}</style></head><body><main>", style::STYLE)?;
    writeln!(page, "<h1>{title}</h1><p class=\"note\">{} samples; float beside quantized.</p>", report.samples)?;
    summary(report, page)?;
    slower(report, page)?;
    writeln!(
        page,
        "<h2>Error by layer</h2><p class=\"note\">Signal to quantization noise of each output, in decibels: the longer, the better, 6 dB a bit. Wide: with all errors made before it. Thin: of the layer by itself.</p>"
    )?;
    bars(&report.layers, page)?;
    table(report, page)?;
    details(report, page)?;
    writeln!(page, "</main></body></html>")
}

fn summary(report: &Report, page: &mut String) -> fmt::Result {
    writeln!(page, "<div class=\"cards\">")?;
    let mut card = |name: &str, value: String, rest: String| {
        writeln!(page, "<div class=\"card\"><span>{name}</span><b>{value}</b><small>{rest}</small></div>")
    };
    if let Some([before, after]) = report.accuracy() {
        card(
            "Top-1",
            format!("{:.2} %", 100.0 * after),
            format!("{:.2} % in float, {:+.2} points", 100.0 * before, 100.0 * (after - before)),
        )?;
    }
    if let (Some(found), Some(agreement)) = (&report.classification, report.agreement()) {
        card(
            "Agreement",
            format!("{:.2} %", 100.0 * agreement),
            format!("{} of {} flipped, KL {:.2e} nats", found.flips, report.samples, found.kl),
        )?;
    }
    card("Output SQNR", decibels(report.sqnr_db), "of all samples".into())?;
    for (name, [before, after]) in &report.metrics {
        card(&Escaped(name).to_string(), format!("{after:.4}"), format!("{before:.4} in float"))?;
    }
    let [float, quantized] = &report.cost;
    card(
        "Size",
        bytes(quantized.bytes),
        format!("{} in float, {}", bytes(float.bytes), ratio(quantized.bytes as f64, float.bytes as f64)),
    )?;
    let [before, after] = report.time.map(|time| time.as_secs_f64());
    let threads = format!("{} thread{}", report.threads, if report.threads == 1 { "" } else { "s" });
    card(
        "Time",
        time(after),
        format!("{} in float, {:.2}x; a batch of {}, {threads}", time(before), before / after.max(1e-12), report.timed_batch),
    )?;
    let of = |before: f64, after: f64| format!("{:.3} of {:.3} mJ", after * 1e3, before * 1e3);
    let (streamed, cached) =
        ([float.energy.total(), quantized.energy.total()], [float.energy.total_in_cache(), quantized.energy.total_in_cache()]);
    card("Energy, estimated", ratio(streamed[1], streamed[0]), format!("weights from DRAM: {}", of(streamed[0], streamed[1])))?;
    card("Energy in cache", ratio(cached[1], cached[0]), format!("weights in SRAM: {}", of(cached[0], cached[1])))?;
    card("Multiply-accumulates", format!("{} int8", count(quantized.macs_int8)), format!("{} left in f32", count(quantized.macs_f32)))?;
    writeln!(page, "</div>")
}

fn slower(report: &Report, page: &mut String) -> fmt::Result {
    let slower = report.slower();
    if slower.is_empty() {
        return Ok(());
    }
    write!(page, "<p class=\"warn\">Slower than in float, each by itself: ")?;
    for (i, layer) in slower.iter().enumerate() {
        let [before, after] = layer.time.map(|of| of.map_or_else(String::new, |of| time(of.as_secs_f64())));
        write!(page, "{}<code>{}</code> ({after} instead of {before})", if i == 0 { "" } else { ", " }, Escaped(&layer.name))?;
    }
    writeln!(page, ". They can be left in float.</p>")
}

/// The columns of the table: title, and whether numbers stand in it.
const COLUMNS: [(&str, bool); 14] = [
    ("layer", false),
    ("kind", false),
    ("in", false),
    ("SQNR", true),
    ("itself", true),
    ("weights", true),
    ("input", true),
    ("cosine", true),
    ("largest", true),
    ("clipped", true),
    ("unused", true),
    ("bytes", true),
    ("float", true),
    ("time", true),
];

fn table(report: &Report, page: &mut String) -> fmt::Result {
    writeln!(
        page,
        "<h2>Layers, worst first</h2><p class=\"note\">SQNR with all errors before it, by itself, of its weights and of its input alone; share of values beyond the codes, and of the range of codes without values; bytes of weights; median time in float and quantized.</p>"
    )?;
    write!(page, "<div class=\"wide\" tabindex=\"0\"><table><thead><tr>")?;
    for (title, number) in COLUMNS {
        write!(page, "<th{}>{title}</th>", if number { " class=\"n\"" } else { "" })?;
    }
    writeln!(page, "</tr></thead><tbody>")?;
    for layer in &report.layers {
        let own = layer.isolated.as_ref();
        let of = |db: Option<f64>| db.map_or_else(String::new, decibels);
        let share = |share: Option<f64>| share.map_or_else(String::new, |share| format!("{:.1} %", 100.0 * share));
        let cells = [
            of(Some(layer.errors.sqnr_db)),
            of(own.map(|own| own.errors.sqnr_db)),
            of(own.and_then(|own| own.weights_db)),
            of(own.and_then(|own| own.input_db)),
            format!("{:.5}", layer.errors.cosine),
            format!("{:.2e}", layer.errors.max_error),
            share(layer.range.map(|range| range.clipped)),
            share(layer.range.map(|range| range.unused)),
            if layer.weight_bytes[1] == 0 { String::new() } else { bytes(layer.weight_bytes[1]) },
            layer.time[0].map_or_else(String::new, |of| time(of.as_secs_f64())),
            layer.time[1].map_or_else(String::new, |of| time(of.as_secs_f64())),
        ];
        write!(page, "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td>", Escaped(&layer.name), layer.kind, layer.precision)?;
        cells.iter().try_for_each(|cell| write!(page, "<td class=\"n\">{cell}</td>"))?;
        writeln!(page, "</tr>")?;
    }
    writeln!(page, "</tbody></table></div>")
}

fn details(report: &Report, page: &mut String) -> fmt::Result {
    let shown = |layer: &&LayerReport| layer.weights.is_some() || layer.values.is_some();
    if !report.layers.iter().any(|layer| shown(&layer)) {
        return Ok(());
    }
    writeln!(
        page,
        "<h2>Weights and values beside their codes</h2><p class=\"note\">How many lie where, on a scale of square roots. Between the lines are the codes; what lies beyond them is clipped. Weights are counted in codes, each channel by its own scale.</p><div class=\"pair\">"
    )?;
    for layer in report.layers.iter().filter(shown) {
        writeln!(page, "<figure><figcaption>{}</figcaption>", Escaped(&layer.name))?;
        if let Some(of) = &layer.weights {
            histogram("weights", of, page)?;
        }
        if let Some(of) = &layer.values {
            histogram("values", of, page)?;
        }
        writeln!(page, "</figure>")?;
    }
    writeln!(page, "</div>")
}

fn decibels(db: f64) -> String {
    if db == f64::INFINITY { "exact".into() } else { format!("{db:.1} dB").replace('-', "−") }
}

fn ratio(after: f64, before: f64) -> String {
    if before > 0.0 { format!("{:.1} %", 100.0 * after / before) } else { "–".into() }
}

fn bytes(count: usize) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.1} k", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
