//! Models and calibrations in files of the crate's own: what was quantized runs again without the file it came from.
//!
//! A file is a safetensors file, so any reader of that format sees its tensors; what they mean stands in its metadata.
//!
//! ```
//! use lowprec::io::saved;
//! # use lowprec::nn::{Dim, Linear, Model};
//! # use lowprec::{DType, LayerKind, Tensor};
//! # let mut net = Model::builder();
//! # let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
//! # let x = net.add("fc", Linear::new(Tensor::new([1, 2], vec![0.5, -1.0])?, None)?, &[x])?;
//! # net.output("y", x)?;
//! # let model = net.build()?;
//! let int8 = lowprec::quantize_dynamic(&model, &[LayerKind::Linear])?;
//! let bytes = saved::write(&int8)?; // or `write_file`
//! let again = saved::read(&bytes)?; // or `read_file`
//! let x = Tensor::new([1, 2], vec![1.0, 2.0])?;
//! assert_eq!(again.forward(&x)?, int8.forward(&x)?);
//! # Ok::<(), lowprec::Error>(())
//! ```
//!
//! # The format, version 1
//!
//! **Metadata** of the safetensors header: one key, `lowprec`, whose text is a JSON object of `version` (1; a reader refuses any
//! other) and one of `model` (a graph), `calibration` and `weights`.
//!
//! **The graph** is one JSON object:
//!
//! | field | holds |
//! |---|---|
//! | `inputs` | a list of `{name, dtype, dims}`; a length is a number, or null where each run decides it |
//! | `constants` | a list of `{name}`: the value in tensor `{name}.constant`; with `packed: {dtype, dims}` where it is packed; absent where there are none |
//! | `nodes` | in the order in which they run, `{name, layer, reads, writes}`: names of values, null for an input left out. Absent `reads` are the first value of the node before it (of the first node, the first input); absent `writes` one value of the node's name |
//! | `outputs` | a list of `{name, value}` |
//! | `grids` | what the u8 codes of values stand for: a list of `[name, {scale, zero_point}]`; a zero point of 0 is left out |
//!
//! `layer` is the name of a variant of [`Layer`](crate::nn::Layer), or an object of that name and its numbers. Plain
//! operators are spelled as ONNX spells them: `{"Operator": {"name": "Transpose", "attributes": {"perm": [0, 2, 1]}}}`, in the
//! version of the standard that `opset` says where it isn't the latest. Numbers are written so that reading gives the same bits;
//! NaN and infinities are the texts `NaN`, `inf` and `-inf`.
//!
//! **Tensors** of node `conv1` are called `conv1.weight`, `conv1.weight_scale`, `conv1.bias`, and so on. Quantized weights
//! have `codes: {bits, qmin, qmax, axis}` in their layer: codes in `qmin..=qmax` (absent: 8 bits, -127 to 127), one scale for each entry
//! of `axis`, or one in all where it is absent; the value of a code is `scale * code`, or with `zeros: true`, `scale * (code - zero point)`, of as many zero points
//! as scales in `weight_zero` (i8). Codes of 8 bits are an i8 tensor of the weight's shape.
//! Those of fewer bits are truly packed: a list of u8, each code in two's complement of `bits` bits, the first in the lowest bits
//! of the first byte, codes running over from one byte to the next; `dims` then has the shape. Everything is in the order of
//! PyTorch's weights (output channels first), never in that of a kernel: panels are made when a file is read, for the processor
//! that reads it.
//!
//! Layers that quantize their input when they run have `input: {qmin, qmax, symmetric, saturates, of_tensor}`: the codes (absent: 0 to
//! 255), whether their zero point is the middle one, whether NaN and infinities are taken, and whether there is one range for the whole
//! tensor and not one for each image or row; each is false where it is absent, and so is all of it.
//!
//! Layers from codes to codes have `grids: {input, residual, output}`: what the codes stand for, of input and output only where it isn't
//! what `grids` of the graph says of the values.
//!
//! Weights of layers whose weights alone are quantized have `weights: {format, dims}`: the text of a
//! [`WeightFormat`](crate::quant::WeightFormat), with `floats`, whether activations are multiplied as they are and not as bytes, and
//! `groups` (false where it is absent), whether each group of those bytes has a range of its own. `weight` is then a list of u8, codes packed as above in the bits of the format;
//! `weight_scale` the scales as the format stores them (those of 8 bits and fewer as u8, with `.tensor`, `.steps` and `.offset`, or
//! `.largest_and_fall` beside them), `weight_zero` packed zero points, shifts, or offsets stored as scales are, `weight_levels` learned
//! levels, and `kept`, `kept_column` and `kept_in_row` values kept exactly, row by row.
//!
//! **A calibration** is `{activations: {name: {qmin, qmax, scales, zero_points, granularity}}, shapes}`.
//!
//! **Weights** by themselves are `{name: {format, dims}}`, with tensors as above.
//!
//! **Size**: the numbers at their bits, [`Model::stored_bytes`](crate::nn::Model::stored_bytes) to the byte, nothing twice, and the header,
//! of 170 to 510 bytes for a node, as its names are long: within 2 % of the numbers where layers hold 30 kB and more on average (static
//! ResNet-50 0.14 %, MobileNetV2 1.1 %), 8 % for a network of six small ones of 44 kB in all. A file takes no more than the model
//! in memory ([`Model::bytes`](crate::nn::Model::bytes)), as kernels have weights in panels, padded to the width of a register; but of a batch
//! norm that was not folded it has four numbers a channel, where those bytes are of the two that a run reads.
//!
//! What is kept is the model, not its past: [`Model::conversion`](crate::nn::Model::conversion) of a model that was read is
//! `None`.
//!
//! Nothing in a file is believed: every length, name, type, code, scale and parameter is checked, a tensor that nothing takes is an
//! error, and nothing is allocated that the bytes of the file don't fill.

mod calibration;
mod decode;
mod document;
mod encode;
mod operators;
mod tensors;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use document::Document;
use serde::{Deserialize, Serialize};

use crate::convert::Calibration;
use crate::error::{Error, Result};
use crate::io::safetensors::{self, Contents};
use crate::nn::Model;
use crate::quant::QuantizedWeights;
use crate::tensor::Value;

const VERSION: u64 = 1;
const KEY: &str = "lowprec";

/// What stands in the metadata.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<Document>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    calibration: Option<calibration::Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<BTreeMap<String, weights::Weights>>,
}

/// The part of the metadata that every version has.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

/// The bytes of a file with this model.
///
/// # Errors
/// [`Error::Unsupported`] inside an [`Error::Layer`] for a layer that files can't hold, [`Error::Format`] for names too long for a header.
pub fn write(model: &Model) -> Result<Vec<u8>> {
    let (document, tensors) = encode::encode(model)?;
    assemble(Metadata { version: VERSION, model: Some(document), ..Metadata::default() }, tensors)
}

/// Writes a file with this model.
///
/// # Errors
/// Those of [`write()`], and [`Error::Write`].
pub fn write_file(path: impl AsRef<Path>, model: &Model) -> Result<()> {
    put(path.as_ref(), &write(model)?)
}

/// The model in the bytes of a file.
///
/// # Errors
/// [`Error::Format`] when the bytes are no such file, [`Error::Unsupported`] for one of another version, [`Error::Unused`] for
/// tensors that nothing takes, and those of [`ModelBuilder`](crate::nn::ModelBuilder) and of the layers, which name the node.
pub fn read(bytes: &[u8]) -> Result<Model> {
    decode_model(safetensors::read_tensors(bytes)?, "input")
}

/// The model in a file.
///
/// # Errors
/// [`Error::File`] when it can't be read, else those of [`read`].
pub fn read_file(path: impl AsRef<Path>) -> Result<Model> {
    decode_model(safetensors::read_tensors_file(&path)?, &format!("`{}`", path.as_ref().display()))
}

/// The bytes of a file with this calibration.
///
/// # Errors
/// [`Error::Format`] for names too long for a header.
pub fn write_calibration(calibration: &Calibration) -> Result<Vec<u8>> {
    let calibration = Some(calibration::encode(calibration));
    assemble(Metadata { version: VERSION, calibration, ..Metadata::default() }, BTreeMap::new())
}

/// The calibration in the bytes of a file.
///
/// # Errors
/// [`Error::Format`] and [`Error::Unsupported`] as [`read`], and those of [`QParams::new`](crate::tensor::QParams::new).
pub fn read_calibration(bytes: &[u8]) -> Result<Calibration> {
    let metadata = parse(&safetensors::read_tensors(bytes)?, "input")?;
    calibration::decode(metadata.calibration.ok_or_else(|| format_error("input", "it holds a model, and no calibration"))?)
}

/// The bytes of a file with these weights, in whatever formats, by name.
///
/// # Errors
/// [`Error::Duplicate`] for two of one name, [`Error::Format`] for names too long for a header.
pub fn write_weights<'w>(weights: impl IntoIterator<Item = (&'w str, &'w QuantizedWeights)>) -> Result<Vec<u8>> {
    let (mut tensors, mut entries) = (tensors::Writer::default(), BTreeMap::new());
    for (name, weights) in weights {
        let entry = weights::put(&mut tensors, name, weights).map_err(|e| e.in_layer(name))?;
        entries.insert(name.to_owned(), entry);
    }
    assemble(Metadata { version: VERSION, weights: Some(entries), ..Metadata::default() }, tensors.tensors)
}

/// The weights in the bytes of a file.
///
/// # Errors
/// [`Error::Format`], [`Error::Unsupported`] and [`Error::Unused`] as [`read`], and those of
/// [`QuantizedWeights::from_parts`], which name the weights.
pub fn read_weights(bytes: &[u8]) -> Result<BTreeMap<String, QuantizedWeights>> {
    let contents = safetensors::read_tensors(bytes)?;
    let entries = parse(&contents, "input")?.weights.ok_or_else(|| format_error("input", "it holds no weights by themselves"))?;
    let mut tensors = tensors::Reader::new(contents.tensors);
    let mut weights = BTreeMap::new();
    for (name, entry) in entries {
        let taken = weights::take(&mut tensors, &name, &entry).map_err(|e| e.in_layer(&name))?;
        weights.insert(name, taken);
    }
    tensors.finish()?;
    Ok(weights)
}

fn decode_model(contents: Contents, what: &str) -> Result<Model> {
    let document = parse(&contents, what)?.model;
    decode::decode(document.ok_or_else(|| format_error(what, "it holds a calibration, and no model"))?, contents.tensors)
}

fn assemble(metadata: Metadata, tensors: BTreeMap<String, Value>) -> Result<Vec<u8>> {
    let json = serde_json::to_string(&metadata).map_err(|e| format_error("output", e))?;
    // A single key: the order of several would differ from one run to the next.
    let metadata = BTreeMap::from([(KEY.to_owned(), json)]);
    safetensors::write(tensors.iter().map(|(name, value)| (name.as_str(), value)), &metadata)
}

fn parse(contents: &Contents, what: &str) -> Result<Metadata> {
    let Some(text) = contents.metadata.get(KEY) else {
        return Err(format_error(what, format!("its metadata have no `{KEY}`: it holds tensors, and no model")));
    };
    let failed = |error: serde_json::Error| format_error(what, format!("`{KEY}`: {error}"));
    match serde_json::from_str(text).map_err(failed)? {
        Head { version: VERSION } => serde_json::from_str(text).map_err(failed),
        Head { version } => Err(Error::Unsupported {
            what: format!("version {version} of {what}"),
            way_out: format!("this release reads version {VERSION}: save it again with it, or read it with a later one"),
        }),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|source| Error::Write { path: path.display().to_string(), source })
}

fn format_error(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::Format { what: what.to_owned(), format: "lowprec file", reason: reason.to_string() }
}
