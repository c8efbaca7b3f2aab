//! The command line.

use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};
use lowprec::LayerKind;
use lowprec::eval::Objective;
use lowprec::kernels::RangeOf;
use lowprec::nn::Pattern;
use lowprec::nn::weight_only::Activations;
use lowprec::ptq::DynamicQuantization;
use lowprec::ptq::recipe::{Effort, Stage};
use lowprec::quant::WeightFormat;
use lowprec::quant::observer::ObserverKind;

pub const USAGE: &str = "\
usage: quantize_onnx MODEL.onnx --mode float|dynamic|static|weight-only
                     [--input IN.safetensors --output OUT.safetensors] [--export OUT.onnx] [--save OUT.safetensors]
                     [--report OUT.html] [--target-drop POINTS [--objective smallest|fastest]]
                     [--calibration CAL.safetensors] [--observer NAME] [--batch N]
                     [--weights FORMAT] [--activations float|int8|int8-groups] [--effort fast|balanced|best] [--try STEP,...]
                     [--skip STEP,...] [--sweeps N]
                     [--weight-bits N] [--activation-bits N] [--weights-per channel|tensor] [--activations-per row|tensor]
                     [--kinds KIND,...] [--exclude GLOB,...] [--threads N] [--json]

  --mode float       run the model as it is; what --save made (*.safetensors) too
  --mode dynamic     weights in int8, activations quantized as they come; with --export and samples (--calibration, else --input) the
                     report says what a range for each row or image is worth, where the file has one for the tensor
  --mode static      integers from layer to layer, by the ranges of values on calibration samples
  --mode weight-only weights in any format, activations as they are; with --calibration fitted to what they do to outputs
  --weights FORMAT   of --mode weight-only: int8 (default), int4:g32, uint4:g32, nf4:g64, kmeans3:g64, mxfp4, ...
  --activations KIND of --mode weight-only: what is multiplied with codes: float (default), or int8, quantized as it comes, by row or by
                     group of weights
  --weights-per P    of --mode static and dynamic: what has a scale of its own, each output channel (channel, default) or all of a
                     layer (tensor)
  --activations-per P of --mode dynamic: what has a range of its own, each row or image (row, default) or the tensor, as in ONNX
  --calibration FILE samples under the names of the model's inputs, for --mode static, --effort, --report, --target-drop and
                     --mode dynamic with --export, and `labels` (integers) where there are some
  --effort EFFORT    what is done for accuracy, by the calibration samples: fast (nothing), balanced (equalize, smooth, grids,
                     scale channels, clip groups, ranges, biases), best (scales drawn and tried, weights fitted too, below 8 bits static roundings learned, of
                     weights alone scales tuned end to end); each step is kept where it helps on a quarter of them, held out
  --try STEP,...     of --effort: steps that it would not try: equalize, absorb-biases, draw-scales, smooth, grids, scale-channels,
                     clip-groups, ranges, fit-weights, learn-rounding, correct-biases, distill
  --skip STEP,...    of --effort: steps that are not tried
  --sweeps N         where weights are fitted: sweeps of descent after GPTQ's feedback of errors, 3 (default), 0 for none
  --observer NAME    how ranges are found: minmax (default), moving-average[:RATE], percentile[:PERCENT], mse,
                     entropy, range:MIN:MAX
  --weight-bits N    of --mode static: bits of weights, 2 to 8 (default); below 8 with scales of least squared error
  --activation-bits N of --mode static: bits of the values between layers, 2 to 8 (default)
  --batch N          calibrate on N samples at a time (default: as many as the model takes), and compare ranges of --mode dynamic
                     on N at a time (default: 64, which have one range together where there is one for the tensor)
  --kinds KIND,...   quantize layers of these kinds (conv2d, linear, ...); default: every kind that can be
  --exclude GLOB,... leave out layers of these names
  --input FILE       tensors under the names of the model's inputs; of more samples than the model takes
                     at once, it runs in batches
  --output FILE      gets tensors under the names of the model's outputs
  --export FILE      gets the model as an ONNX file
  --save FILE        gets the model in the crate's own format
  --report FILE      gets a page that compares float and quantized on the calibration samples, of which each input has as many
  --target-drop P    leaves layers in float until at most P percentage points are lost on the calibration samples, of top-1
                     against `labels`, else of agreement with float
  --objective WHAT   of --target-drop: what the mix of precisions is to be, smallest (default) or fastest
  --threads N        threads; default: all
  --json             the report as JSON
";

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Float,
    Dynamic,
    Static,
    WeightOnly,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Float, Mode::Dynamic, Mode::Static, Mode::WeightOnly];

    pub fn name(self) -> &'static str {
        match self {
            Mode::Float => "float",
            Mode::Dynamic => "dynamic",
            Mode::Static => "static",
            Mode::WeightOnly => "weight-only",
        }
    }
}

pub struct Arguments {
    pub model: PathBuf,
    pub mode: Mode,
    /// Where tensors come from and where those made of them go: both or neither.
    pub run: Option<[PathBuf; 2]>,
    pub export: Option<PathBuf>,
    pub save: Option<PathBuf>,
    pub report: Option<PathBuf>,
    /// Percentage points.
    pub target_drop: Option<f64>,
    pub objective: Option<Objective>,
    pub calibration: Option<PathBuf>,
    pub observer: Option<ObserverKind>,
    pub effort: Option<Effort>,
    pub tried: Vec<Stage>,
    pub skipped: Vec<Stage>,
    pub sweeps: Option<usize>,
    pub weight_bits: Option<u32>,
    pub activation_bits: Option<u32>,
    pub activations_per: Option<RangeOf>,
    /// Whether a layer's weights have one scale.
    pub weights_per_tensor: Option<bool>,
    pub batch: Option<usize>,
    pub weights: Option<WeightFormat>,
    pub activations: Option<Activations>,
    pub kinds: Option<Vec<LayerKind>>,
    pub exclude: Vec<String>,
    pub threads: Option<usize>,
    pub json: bool,
}

pub enum Request {
    Help,
    Run(Box<Arguments>),
}

pub fn parse(mut parser: Parser) -> Result<Request, lexopt::Error> {
    let (mut model, mut mode, mut input, mut output) = (None, None, None, None);
    let (mut export, mut save, mut report, mut target_drop) = (None, None, None, None);
    let (mut objective, mut calibration, mut observer, mut batch) = (None, None, None, None);
    let (mut weights, mut activations, mut effort, mut sweeps) = (None, None, None, None);
    let (mut weight_bits, mut activation_bits, mut activations_per, mut weights_per_tensor) = (None, None, None, None);
    let (mut tried, mut skipped) = (Vec::new(), Vec::new());
    let (mut kinds, mut exclude, mut threads, mut json) = (None, Vec::new(), None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Request::Help),
            Arg::Long("mode") => mode = Some(parse_mode(&parser.value()?.string()?)?),
            Arg::Long("input") => input = Some(PathBuf::from(parser.value()?)),
            Arg::Long("output") => output = Some(PathBuf::from(parser.value()?)),
            Arg::Long("export") => export = Some(PathBuf::from(parser.value()?)),
            Arg::Long("save") => save = Some(PathBuf::from(parser.value()?)),
            Arg::Long("report") => report = Some(PathBuf::from(parser.value()?)),
            Arg::Long("target-drop") => match parser.value()?.parse::<f64>()? {
                drop if (0.0..=100.0).contains(&drop) => target_drop = Some(drop),
                drop => return Err(format!("--target-drop is {drop}: from 0 to 100 percentage points").into()),
            },
            Arg::Long("objective") => match parser.value()?.string()?.as_str() {
                "smallest" => objective = Some(Objective::Smallest),
                "fastest" => objective = Some(Objective::Fastest),
                other => return Err(format!("--objective is `{other}`: smallest or fastest").into()),
            },
            Arg::Long("calibration") => calibration = Some(PathBuf::from(parser.value()?)),
            Arg::Long("observer") => observer = Some(parser.value()?.string()?.parse().map_err(|e: lowprec::Error| e.to_string())?),
            Arg::Long("effort") => effort = Some(parser.value()?.string()?.parse().map_err(|e: lowprec::Error| e.to_string())?),
            Arg::Long("try") => tried = steps(&parser.value()?.string()?)?,
            Arg::Long("skip") => skipped = steps(&parser.value()?.string()?)?,
            Arg::Long("sweeps") => sweeps = Some(parser.value()?.parse()?),
            Arg::Long("weight-bits") => match parser.value()?.parse()? {
                bits @ 2..=8 => weight_bits = Some(bits),
                bits => return Err(format!("--weight-bits is {bits}: 2 to 8").into()),
            },
            Arg::Long("activation-bits") => match parser.value()?.parse()? {
                bits @ 2..=8 => activation_bits = Some(bits),
                bits => return Err(format!("--activation-bits is {bits}: 2 to 8").into()),
            },
            Arg::Long("activations-per") => match parser.value()?.string()?.as_str() {
                "row" => activations_per = Some(RangeOf::Row),
                "tensor" => activations_per = Some(RangeOf::Tensor),
                other => return Err(format!("--activations-per is `{other}`: row or tensor").into()),
            },
            Arg::Long("weights-per") => match parser.value()?.string()?.as_str() {
                "channel" => weights_per_tensor = Some(false),
                "tensor" => weights_per_tensor = Some(true),
                other => return Err(format!("--weights-per is `{other}`: channel or tensor").into()),
            },
            Arg::Long("batch") => match parser.value()?.parse()? {
                0 => return Err("--batch is 0: at least 1".into()),
                count => batch = Some(count),
            },
            Arg::Long("weights") => weights = Some(parser.value()?.string()?.parse().map_err(|e: lowprec::Error| e.to_string())?),
            Arg::Long("activations") => match parser.value()?.string()?.as_str() {
                "float" => activations = Some(Activations::Float),
                "int8" => activations = Some(Activations::Int8),
                "int8-groups" => activations = Some(Activations::Int8Groups),
                other => return Err(format!("--activations is `{other}`: float, int8 or int8-groups").into()),
            },
            Arg::Long("kinds") => kinds = Some(parse_kinds(&parser.value()?.string()?)?),
            Arg::Long("exclude") => {
                for pattern in parser.value()?.string()?.split(',') {
                    Pattern::new(pattern).map_err(|e| e.to_string())?;
                    exclude.push(pattern.to_owned());
                }
            }
            Arg::Long("threads") => match parser.value()?.parse()? {
                0 => return Err("--threads is 0: at least 1".into()),
                count => threads = Some(count),
            },
            Arg::Long("json") => json = true,
            Arg::Value(path) if model.is_none() => model = Some(PathBuf::from(path)),
            other => return Err(other.unexpected()),
        }
    }
    let missing = |what: &str| lexopt::Error::from(format!("{what} is missing"));
    let mode = mode.ok_or_else(|| missing("--mode"))?;
    if mode == Mode::Float && (kinds.is_some() || !exclude.is_empty()) {
        return Err("--kinds and --exclude choose layers to quantize, and --mode float quantizes none".into());
    }
    if mode == Mode::Float && (report.is_some() || target_drop.is_some()) {
        return Err("--report and --target-drop are about quantized models, and --mode float quantizes none".into());
    }
    if calibration.is_none() {
        let needs = [
            (mode == Mode::Static, "--mode static"),
            (effort.is_some(), "--effort"),
            (report.is_some(), "--report"),
            (target_drop.is_some(), "--target-drop"),
        ];
        if let Some((_, what)) = needs.iter().find(|(needs, _)| *needs) {
            return Err(missing(&format!("--calibration, which {what} needs,")));
        }
    }
    if objective.is_some() && target_drop.is_none() {
        return Err("--objective belongs to --target-drop".into());
    }
    if mode != Mode::Static && observer.is_some() {
        return Err("--observer belongs to --mode static".into());
    }
    // What a range for each row is worth is told by samples.
    let ranged = mode == Mode::Dynamic && (export.is_some() || report.is_some());
    if mode != Mode::Static && effort.is_none() && !ranged && batch.is_some() {
        return Err("--batch belongs to --mode static, --effort, and --mode dynamic with --export or --report".into());
    }
    if !matches!(mode, Mode::Static | Mode::Dynamic) && weights_per_tensor.is_some() {
        return Err("--weights-per belongs to --mode static and dynamic; formats of --weights say it themselves".into());
    }
    if mode != Mode::Dynamic && activations_per.is_some() {
        return Err("--activations-per belongs to --mode dynamic".into());
    }
    if effort.is_some() && (mode == Mode::Float || target_drop.is_some()) {
        return Err("--effort is about quantized models, and not for --target-drop, which has a search of its own".into());
    }
    if effort.is_none() && !(tried.is_empty() && skipped.is_empty()) {
        return Err("--try and --skip choose among the steps of --effort".into());
    }
    if let Some(stage) = tried.iter().find(|stage| skipped.contains(stage)) {
        return Err(format!("--try and --skip both name {stage}").into());
    }
    if mode != Mode::Static && weight_bits.is_some() {
        return Err("--weight-bits belongs to --mode static; --mode weight-only has --weights".into());
    }
    if mode != Mode::Static && activation_bits.is_some() {
        return Err("--activation-bits belongs to --mode static".into());
    }
    let calibrated = matches!(mode, Mode::Static | Mode::WeightOnly) || effort.is_some() || ranged;
    if !calibrated && calibration.is_some() && report.is_none() && target_drop.is_none() {
        return Err("--calibration belongs to --mode static, --mode weight-only, --mode dynamic with --export, --effort, --report and \
                    --target-drop"
            .into());
    }
    let fits = match effort {
        Some(effort) => (effort == Effort::Best && !skipped.contains(&Stage::Fit)) || tried.contains(&Stage::Fit),
        None => mode == Mode::WeightOnly && calibration.is_some(),
    };
    if sweeps.is_some() && !fits {
        return Err(
            "--sweeps belongs to fitted weights: --effort with fit-weights among its steps, or --mode weight-only with --calibration"
                .into(),
        );
    }
    if mode == Mode::WeightOnly && target_drop.is_some() {
        return Err("--target-drop chooses among int8 layers: --mode weight-only has none".into());
    }
    if mode != Mode::WeightOnly && (weights.is_some() || activations.is_some()) {
        return Err("--weights and --activations belong to --mode weight-only".into());
    }
    let run = match (input, output) {
        (Some(input), Some(output)) => Some([input, output]),
        (None, None) if export.is_some() || save.is_some() || report.is_some() => None,
        (None, Some(_)) => return Err(missing("--input, of which --output is made,")),
        (None, None) => return Err(missing("something to make (--input and --output, --export, --save, or --report)")),
        (Some(_), None) => return Err(missing("--output, where what is made of --input goes,")),
    };
    Ok(Request::Run(Box::new(Arguments {
        model: model.ok_or_else(|| missing("MODEL.onnx"))?,
        mode,
        run,
        export,
        save,
        report,
        target_drop,
        objective,
        calibration,
        observer,
        effort,
        tried,
        skipped,
        sweeps,
        weight_bits,
        activation_bits,
        activations_per,
        weights_per_tensor,
        batch,
        weights,
        activations,
        kinds,
        exclude,
        threads,
        json,
    })))
}

fn parse_mode(text: &str) -> Result<Mode, lexopt::Error> {
    let names = Mode::ALL.map(Mode::name).join(", ");
    Mode::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| format!("--mode is `{text}`: one of {names}").into())
}

fn parse_kinds(text: &str) -> Result<Vec<LayerKind>, lexopt::Error> {
    let known = DynamicQuantization::KINDS;
    let kind = |name: &str| {
        known.iter().copied().find(|kind| kind.to_string().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names: Vec<String> = known.iter().map(|kind| kind.to_string().to_lowercase()).collect();
            lexopt::Error::from(format!("no kind that can be quantized is called `{name}`: there are {}", names.join(", ")))
        })
    };
    text.split(',').map(kind).collect()
}

/// Steps of a recipe by name.
fn steps(names: &str) -> Result<Vec<Stage>, lexopt::Error> {
    names.split(',').map(|name| name.parse().map_err(|error: lowprec::Error| error.to_string().into())).collect()
}
