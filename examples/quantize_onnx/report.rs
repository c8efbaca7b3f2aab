//! What was done, and what it cost: as text, or as JSON.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use lowprec::eval::{self, Outcome, RangeReport};
use lowprec::nn::Conversion;
use lowprec::ptq::recipe::{Gain, Improved};
use lowprec::{DType, Error, Model, Result, Value, metrics};
use serde_json::{Map, Number, Value as Json, json};

use crate::arguments::Arguments;

pub struct Report {
    model: String,
    mode: &'static str,
    threads: Option<usize>,
    seconds: Vec<(&'static str, f64)>,
    kinds: Vec<(String, usize)>,
    float_bytes: usize,
    quantized_bytes: Option<usize>,
    /// At their bits, as a file has them.
    stored_bytes: [Option<usize>; 2],
    conversion: Option<Conversion>,
    outputs: Vec<Output>,
    search: Option<Search>,
    effort: Option<Steps>,
    compared: Option<Steps>,
    ranges: Option<Steps>,
    files: Vec<File>,
}

/// A file that was made of the model.
struct File {
    stage: &'static str,
    path: String,
    bytes: u64,
    /// Of the crate's own files: all but the model's numbers.
    header: Option<u64>,
    /// Layers that give something else there, and why.
    differ: Vec<String>,
}

/// What the steps of an effort gained, or a comparison found.
struct Steps {
    text: String,
    json: Json,
}

/// What a search for a target found.
struct Search {
    text: String,
    metric: [f64; 2],
    holds: bool,
    in_float: Vec<String>,
}

struct Output {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// Against the same output in float.
    sqnr_db: Option<f64>,
}

impl Report {
    pub fn new(arguments: &Arguments) -> Self {
        Report {
            model: arguments.model.display().to_string(),
            mode: arguments.mode.name(),
            threads: arguments.threads,
            seconds: Vec::new(),
            kinds: Vec::new(),
            float_bytes: 0,
            quantized_bytes: None,
            stored_bytes: [None; 2],
            conversion: None,
            outputs: Vec::new(),
            search: None,
            effort: None,
            compared: None,
            ranges: None,
            files: Vec::new(),
        }
    }

    /// What `work` gives, its time kept.
    pub fn timed<T>(&mut self, stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = work()?;
        self.seconds.push((stage, start.elapsed().as_secs_f64()));
        Ok(done)
    }

    pub fn models(&mut self, float: &Model, quantized: Option<&Model>) {
        self.kinds = float.kinds().iter().map(|(kind, count)| (kind.to_string(), *count)).collect();
        self.float_bytes = float.bytes();
        self.quantized_bytes = quantized.map(Model::bytes);
        self.stored_bytes = [Some(float), quantized].map(|model| model.map(Model::stored_bytes));
        self.conversion = quantized.and_then(Model::conversion).cloned();
    }

    pub fn found(&mut self, found: &Outcome) {
        self.search = Some(Search {
            text: found.to_string(),
            metric: [found.float, found.found.metric],
            holds: found.holds,
            in_float: found.mix.in_float().into_iter().map(str::to_owned).collect(),
        });
    }

    pub fn improved(&mut self, improved: &Improved) {
        let step = |gain: &Gain| {
            json!({ "step": gain.stage.to_string(), "before_db": number(gain.before), "after_db": number(gain.after), "kept": gain.kept,
                "idle": gain.idle, "seconds": number(gain.time.as_secs_f64()) })
        };
        let steps: Vec<Json> = improved.stages.iter().map(step).collect();
        let json =
            json!({ "plain_db": number(improved.plain), "db": number(improved.db), "by_all_samples": improved.by_all, "steps": steps });
        self.effort = Some(Steps { text: improved.to_string(), json });
    }

    pub fn written(&mut self, stage: &'static str, path: &Path, differ: Vec<String>) -> Result<()> {
        let name = path.display().to_string();
        let bytes = std::fs::metadata(path).map_err(|source| Error::File { path: name.clone(), source })?.len();
        let stored = self.stored_bytes[1].or(self.stored_bytes[0]).filter(|_| stage == "save");
        self.files.push(File { stage, path: name, bytes, header: stored.map(|stored| bytes.saturating_sub(stored as u64)), differ });
        Ok(())
    }

    pub fn compared(&mut self, found: &eval::Report) {
        let layers = found.layers.iter().map(|layer| {
            let own = layer.isolated;
            json!({ "name": layer.name, "precision": layer.precision.name(), "sqnr_db": number(layer.errors.sqnr_db),
                "isolated_db": own.map(|own| number(own.errors.sqnr_db)), "weights_db": own.and_then(|own| own.weights_db).map(number),
                "input_db": own.and_then(|own| own.input_db).map(number), "seconds": layer.time.map(|time| time.map(|time| time.as_secs_f64())) })
        });
        let json = json!({ "samples": found.samples, "top1": found.accuracy(), "agreement": found.agreement(),
            "sqnr_db": number(found.sqnr_db), "seconds": found.time.map(|time| time.as_secs_f64()),
            "slower_in_int8": found.slower_patterns(), "layers": layers.collect::<Vec<_>>() });
        self.compared = Some(Steps { text: found.to_string(), json });
    }

    /// What a range for each row or image is worth, or why that is not known.
    pub fn ranges(&mut self, found: Option<Result<RangeReport>>) {
        let unknown = |why: String| Steps { json: json!({ "unknown": why }), text: why };
        self.ranges = Some(match found {
            None => unknown("give --calibration or --input to see what a range for each row or image is worth".into()),
            Some(Err(why)) => unknown(format!("not compared: {why}")),
            Some(Ok(found)) => {
                let [row, tensor] = [0, 1].map(|i| {
                    let classes = found.classification.as_ref().map(|found| &found[i]);
                    json!({ "sqnr_db": number(found.sqnr_db[i]), "flips": classes.map(|found| found.flips),
                        "right": classes.and_then(|found| found.hits).map(|[_, hits]| hits) })
                });
                let json = json!({ "samples": found.samples, "batch": found.batch, "row": row, "tensor": tensor });
                Steps { text: found.to_string(), json }
            }
        });
    }

    pub fn outputs(&mut self, outputs: &[(String, Value)], reference: Option<&[(String, Value)]>) -> Result<()> {
        for (i, (name, value)) in outputs.iter().enumerate() {
            let expected = reference.and_then(|reference| reference[i].1.get::<f32>());
            let sqnr_db = match (expected, value.get::<f32>()) {
                (Some(expected), Some(got)) if expected.len() == got.len() => Some(metrics::sqnr_db(expected.as_slice(), got.as_slice())?),
                _ => None,
            };
            self.outputs.push(Output { name: name.clone(), dtype: value.dtype(), shape: value.shape().dims().to_vec(), sqnr_db });
        }
        Ok(())
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |title: &str, rest: String| _ = writeln!(text, "{title:9} {}", rest.trim_end());
        let threads = self.threads.map_or_else(String::new, |n| format!(", {n} threads"));
        line("model", format!("{}, {}{threads}", self.model, self.mode));
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        line("layers", kinds.join(", "));
        let quantized = self.quantized_bytes.map_or_else(String::new, |bytes| format!(", quantized {bytes}"));
        line("bytes", format!("held in memory: float {}{quantized}", self.float_bytes));
        let [float, quantized] = self.stored_bytes.map(|bytes| bytes.map_or_else(String::new, |bytes| bytes.to_string()));
        let quantized = if quantized.is_empty() { quantized } else { format!(", quantized {quantized}") };
        line("", format!("at their bits, as a file has them: float {float}{quantized}"));
        let seconds: Vec<String> = self.seconds.iter().map(|(stage, s)| format!("{stage} {s:.3} s")).collect();
        line("time", seconds.join(", "));
        for output in &self.outputs {
            let sqnr = output.sqnr_db.map_or_else(String::new, |db| format!(", SQNR {db:.2} dB against float"));
            line("output", format!("{} {} {:?}{sqnr}", output.name, output.dtype, output.shape));
        }
        for file in &self.files {
            let header = file.header.map_or_else(String::new, |header| format!(", {header} of them header"));
            line(file.stage, format!("{}, {} bytes{header}", file.path, file.bytes));
            for (why, names) in by_reason(&file.differ) {
                line("", format!("other results there, {why}: {names}"));
            }
        }
        for found in self.ranges.iter().flat_map(|ranges| ranges.text.lines()) {
            line("ranges", found.to_owned());
        }
        for step in self.effort.iter().flat_map(|effort| effort.text.lines()) {
            line("effort", step.to_owned());
        }
        for found in self.search.iter().flat_map(|search| search.text.lines()) {
            line("search", found.to_owned());
        }
        for done in self.conversion.iter().flat_map(|conversion| conversion.to_string().lines().map(str::to_owned).collect::<Vec<_>>()) {
            line("", done);
        }
        if let Some(compared) = &self.compared {
            text.push('\n');
            // What was passed over stands above.
            text.extend(compared.text.lines().filter(|line| !line.starts_with("  left as it was")).map(|line| format!("{line}\n")));
        }
        text
    }

    pub fn json(&self) -> String {
        let outputs: Vec<Json> = self
            .outputs
            .iter()
            .map(|output| {
                let dtype = output.dtype.name();
                json!({ "name": output.name, "dtype": dtype, "shape": output.shape, "sqnr_db": output.sqnr_db.map(number) })
            })
            .collect();
        let conversion = self.conversion.as_ref().map(|conversion| {
            let folded: Vec<Json> = conversion.folded.iter().map(|(norm, into)| json!({ "name": norm, "into": into })).collect();
            let skipped = conversion
                .skipped
                .iter()
                .map(|skipped| json!({ "name": skipped.name, "kind": skipped.kind.to_string(), "reason": skipped.reason.to_string() }));
            let absent: Vec<String> = conversion.absent.iter().map(ToString::to_string).collect();
            json!({ "quantized": conversion.quantized, "folded": folded, "skipped": skipped.collect::<Vec<_>>(), "absent": absent })
        });
        let search = self.search.as_ref().map(|search| {
            let [float, quantized] = search.metric;
            json!({ "float": float, "quantized": quantized, "holds": search.holds, "in_float": search.in_float })
        });
        let files = self.files.iter().map(
            |file| json!({ "stage": file.stage, "path": file.path, "bytes": file.bytes, "header": file.header, "differ": file.differ }),
        );
        let kinds: Map<String, Json> = self.kinds.iter().map(|(kind, count)| (kind.clone(), json!(count))).collect();
        let seconds: Map<String, Json> = self.seconds.iter().map(|(stage, s)| (stage.replace(' ', "_"), json!(s))).collect();
        let report = json!({
            "model": self.model,
            "mode": self.mode,
            "threads": self.threads,
            "layers": kinds,
            "bytes": { "float": self.float_bytes, "quantized": self.quantized_bytes },
            "stored_bytes": { "float": self.stored_bytes[0], "quantized": self.stored_bytes[1] },
            "seconds": seconds,
            "outputs": outputs,
            "files": files.collect::<Vec<_>>(),
            "search": search,
            "effort": self.effort.as_ref().map(|effort| effort.json.clone()),
            "ranges": self.ranges.as_ref().map(|ranges| ranges.json.clone()),
            "conversion": conversion,
            "comparison": self.compared.as_ref().map(|compared| compared.json.clone()),
        });
        format!("{report:#}\n")
    }
}

/// Reasons, and the layers of each.
fn by_reason(differ: &[String]) -> Vec<(&str, String)> {
    let mut reasons: Vec<(&str, String)> = Vec::new();
    for (name, why) in differ.iter().filter_map(|line| line.rsplit_once(": ")) {
        match reasons.iter_mut().find(|(other, _)| *other == why) {
            Some((_, names)) => *names += &format!(", {name}"),
            None => reasons.push((why, name.to_owned())),
        }
    }
    reasons
}

/// JSON has no infinity and no NaN: those are their names.
fn number(x: f64) -> Json {
    Number::from_f64(x).map_or_else(|| json!(x.to_string()), Json::Number)
}
