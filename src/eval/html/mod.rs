//! A [`Report`] as a page: one file that needs no network and no scripts, light or dark as the reader has it.

mod chart;
mod style;
mod units;

use std::fmt::{self, Display, Write};

use super::report::{LayerReport, Report};
use crate::nn::Precision;
use chart::{Axis, bars, columns, errors, histogram, own};
use units::{bytes, count, decibels, energy, ratio, short, time};

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
    write!(page, "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{}", style::STYLE)?;
    for (i, (title, _)) in COLUMNS.iter().enumerate().skip(2) {
        write!(page, "td:nth-child({})::before{{content:\"{title}\"}}", i + 1)?;
    }
    writeln!(page, "}}{}</style></head><body><main>", style::REST)?;
    writeln!(page, "<h1>{title}</h1><p class=\"note\">{}</p>", subtitle(report))?;
    cards(report, page)?;
    slower(report, page)?;
    before_and_after(report, page)?;
    let axis = Axis::of(&report.layers);
    worst(report, &axis, page)?;
    along(report, &axis, page)?;
    table(report, page)?;
    details(report, page)?;
    writeln!(page, "</main></body></html>")
}

fn subtitle(report: &Report) -> String {
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let int8 = report.layers.iter().filter(|layer| layer.precision == Precision::Int8).count();
    let alone = report.layers.iter().filter(|layer| layer.precision == Precision::F32 && layer.format != layer.precision.name()).count();
    let mut text = format!(
        "The quantized model beside the float one, on {} sample{}: {int8} of {} layers in int8{}.",
        report.samples,
        plural(report.samples),
        report.layers.len(),
        if alone > 0 { format!(", of {alone} the weights alone quantized") } else { String::new() }
    );
    if let Some((layer, own)) = report.layers.first().and_then(|layer| Some((layer, own(layer)?))).filter(|(_, own)| own.is_finite()) {
        _ = write!(text, " The largest error of a layer by itself is that of <code>{}</code>, {}.", Escaped(&layer.name), decibels(own));
    }
    text
}

fn cards(report: &Report, page: &mut String) -> fmt::Result {
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
        card("Agreement with float", format!("{:.2} %", 100.0 * agreement), format!("{} of {} flipped", found.flips, found.rows))?;
        card("KL divergence", short(found.kl as f32), "nats, of the output’s softmax".into())?;
    }
    card("Output SQNR", decibels(report.sqnr_db), "signal to noise, 6 dB a bit".into())?;
    for (name, [before, after]) in &report.metrics {
        card(&Escaped(name).to_string(), format!("{after:.4}"), format!("{before:.4} in float"))?;
    }
    let [float, quantized] = &report.cost;
    let stored = format!("{} of float; {} in a file", ratio(quantized.bytes as f64, float.bytes as f64), bytes(quantized.stored_bytes));
    card("Size", bytes(quantized.bytes), stored)?;
    let [before, after] = report.time.map(|time| time.as_secs_f64());
    let threads = format!("{} thread{}", report.threads, if report.threads == 1 { "" } else { "s" });
    let batch = format!("batch {}, {threads}", report.timed_batch);
    card("Time", time(after), format!("{:.2} times as fast; {batch}", before / after.max(1e-12)))?;
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
    let patterns = report.slower_patterns().join(",");
    writeln!(page, ". To leave them in float, exclude <code>{}</code>.</p>", Escaped(&patterns))
}

/// Size, time and energy of both, as bars.
fn before_and_after(report: &Report, page: &mut String) -> fmt::Result {
    let [float, quantized] = &report.cost;
    let [before, after] = report.time.map(|time| time.as_secs_f64());
    let rows = [
        ("Size", float.bytes as f64, quantized.bytes as f64, bytes(float.bytes), bytes(quantized.bytes)),
        ("Time", before, after, time(before), time(after)),
        ("Energy, weights from DRAM", float.energy.total(), quantized.energy.total(), String::new(), String::new()),
        ("Energy, weights in cache", float.energy.total_in_cache(), quantized.energy.total_in_cache(), String::new(), String::new()),
    ];
    writeln!(page, "<h2>Before and after</h2><p class=\"note\">Energy is an estimate from counts of operations and bytes (45 nm).")?;
    writeln!(
        page,
        "Multiply-accumulates of one forward: {} in int8, {} in float.</p>",
        count(quantized.macs_int8),
        count(quantized.macs_f32)
    )?;
    writeln!(
        page,
        "<p class=\"key\"><span><i class=\"kw\"></i>float</span><span><i class=\"kb\"></i>quantized</span></p><div class=\"both\">"
    )?;
    for (name, before, after, before_text, after_text) in rows {
        let (before_text, after_text) = if before_text.is_empty() { (energy(before), energy(after)) } else { (before_text, after_text) };
        let largest = before.max(after).max(f64::MIN_POSITIVE);
        let wide = |x: f64| 100.0 * x / largest;
        writeln!(
            page,
            "<span>{name}</span><svg viewBox=\"0 0 100 20\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name}: {before_text}, then {after_text}\"><rect class=\"w\" width=\"{:.1}\" height=\"9\"/><rect class=\"b\" y=\"10\" width=\"{:.1}\" height=\"9\"/></svg><b>{before_text} → {after_text}, {}</b>",
            wide(before),
            wide(after),
            ratio(after, before)
        )?;
    }
    writeln!(page, "</div>")
}

const ERRORS: &str =
    "<p class=\"key\"><span><i class=\"kb\"></i>of the layer by itself</span><span><i class=\"ko\"></i>with all made before it</span></p>";

fn worst(report: &Report, axis: &Axis, page: &mut String) -> fmt::Result {
    let noisy = |layer: &&LayerReport| own(layer) != Some(f64::INFINITY);
    let count = report.layers.iter().filter(noisy).count();
    let shown = &report.layers[..count.min(chart::LONGEST)];
    writeln!(
        page,
        "<h2>Error by layer, worst first</h2><p class=\"note\">Signal to quantization noise of each output: the longer the bar, the larger the error. 20 dB are an error of 10 % of the output, 40 dB one of 1 %, 60 dB one of 0.1 %.{}</p>{ERRORS}",
        match count - shown.len() {
            0 => String::new(),
            more => format!(" {more} more, which lose less, are in the table below."),
        }
    )?;
    bars(shown, axis, page)
}

/// Errors, bytes and time in the order in which the layers run.
fn along(report: &Report, axis: &Axis, page: &mut String) -> fmt::Result {
    let mut layers: Vec<&LayerReport> = report.layers.iter().collect();
    layers.sort_by_key(|layer| layer.position);
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else { return Ok(()) };
    let ends = [first.name.as_str(), last.name.as_str()];
    writeln!(
        page,
        "<h2>Along the network</h2><p class=\"note\">A column for each layer, in the order in which they run. Errors: pale with all made before, blue of the layer by itself. Bytes of weights and time: pale in float, blue quantized.</p><div class=\"pair three\">"
    )?;
    errors(&layers, axis, ends, page)?;
    let mut pairs = |title: &str, values: Vec<[f64; 2]>, label: &dyn Fn(f64) -> String| {
        let largest = values.iter().flatten().copied().fold(0.0, f64::max);
        if largest <= 0.0 {
            return Ok(());
        }
        let series: Vec<[f64; 2]> = values.iter().map(|pair| pair.map(|x| x / largest)).collect();
        columns(title, &series, [label(largest), label(largest / 2.0), "0".into()], ends, page)
    };
    let weights = layers.iter().map(|layer| layer.weight_bytes.map(|bytes| bytes as f64)).collect();
    pairs("Bytes of weights", weights, &|x| bytes(x as usize))?;
    let times = layers.iter().map(|layer| layer.time.map(|of| of.map_or(0.0, |of| of.as_secs_f64()))).collect();
    pairs("Time", times, &time)?;
    writeln!(page, "</div>")
}

/// The columns of the table: title, and whether numbers stand in it.
const COLUMNS: [(&str, bool); 12] = [
    ("layer", false),
    ("kind", false),
    ("SQNR by itself", true),
    ("of its weights", true),
    ("of its input", true),
    ("with all before", true),
    ("cosine", true),
    ("largest error", true),
    ("clipped", true),
    ("range unused", true),
    ("bytes of weights", true),
    ("time", true),
];

fn table(report: &Report, page: &mut String) -> fmt::Result {
    writeln!(
        page,
        "<h2>Layers, worst first</h2><p class=\"note\">SQNR of the layer by itself, fed with what the float model feeds it: as it is, with its weights alone quantized, and with its input alone; and with all errors made before. Cosine and largest error of the output with all made before, the latter in the output’s own unit. Share of the values beyond the codes, and of the range of codes that none reaches. Float → quantized: bytes, median time.</p>"
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
        let pair = |before: String, after: String| if before.is_empty() { after } else { format!("{before} → {after}") };
        let [before, after] = layer.time.map(|of| of.map_or_else(String::new, |of| time(of.as_secs_f64())));
        let cells = [
            of(own.map(|own| own.errors.sqnr_db)),
            of(own.and_then(|own| own.weights_db)),
            of(own.and_then(|own| own.input_db)),
            of(Some(layer.errors.sqnr_db)),
            format!("{:.5}", layer.errors.cosine),
            short(layer.errors.max_error),
            share(layer.range.map(|range| range.clipped)),
            share(layer.range.map(|range| range.unused)),
            match layer.weight_bytes {
                [0, 0] => String::new(),
                [before, after] => pair(bytes(before), bytes(after)),
            },
            pair(before, after),
        ];
        write!(page, "<tr><th scope=\"row\">{}</th><td>{} {}</td>", Escaped(&layer.name), layer.kind, Escaped(&layer.format))?;
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
        "<h2>Weights and values beside their codes</h2><p class=\"note\">How many lie where; heights are square roots of counts, so that few are seen too. The codes reach from line to line, and what lies beyond is clipped. Weights are in codes, each channel or group by its own scale; where codes stand for levels that are not evenly spaced, they are in units of the scale, beside the levels.</p><p class=\"key\"><span><i class=\"kb\"></i>within the codes</span><span><i class=\"kc\"></i>clipped</span></p><div class=\"pair\">"
    )?;
    for layer in report.layers.iter().filter(shown) {
        writeln!(page, "<figure><figcaption>{}</figcaption>", Escaped(&layer.name))?;
        if let Some(of) = &layer.weights {
            let (unit, levels) = match of.levels.len() {
                _ if of.step > 0.0 => ("weights, in codes", String::new()),
                0 => ("weights, in units of their scales", ", levels of each group’s own".into()),
                levels => ("weights, in units of their scales", format!(", {levels} levels")),
            };
            histogram(unit, of, &format!("{} of them{levels}", count(of.total())), page)?;
        }
        if let Some(of) = &layer.values {
            let clipped = layer.range.filter(|range| range.clipped > 0.0);
            let clipped = clipped.map_or_else(String::new, |range| format!(", {:.2} % clipped", 100.0 * range.clipped));
            histogram("values of the output", of, &format!("steps of {}{clipped}", short(of.step)), page)?;
        }
        writeln!(page, "</figure>")?;
    }
    writeln!(page, "</div>")
}
