//! ONNX files: bytes in, a checked graph out; and models written as files.
//!
//! | file | holds |
//! |---|---|
//! | `schema` | the messages, as far as they are read |
//! | `source` | a file's bytes on their way to the decoder |
//! | `census` | what decoding would take, before it is done |
//! | `tensor` | a tensor's data, in whichever field |
//! | `external` | data in files of their own |
//! | `opset` | the versions of operators that are spoken |
//! | `attribute` | the parameters of a node |
//! | `graph` | names, order, types: the whole of it, checked |
//! | `import` | the graph as a model |
//! | `export` | a model as a file |

pub(super) mod attribute;
mod census;
mod export;
mod external;
mod graph;
#[cfg(test)]
mod hostile;
pub(super) mod import;
mod opset;
mod schema;
mod source;
mod tensor;

use std::fs::File;
use std::path::Path;

use bytes::Buf;
use prost::Message;

use crate::error::{Error, Result};
use crate::nn::Model;
pub use export::{Export, save};
use external::External;
use graph::Graph;
use schema::ModelProto;
use source::Source;
use tensor::Places;

/// The model in a file.
///
/// Weights that are constant make layers ([`Conv2d`](crate::nn::Conv2d), [`Linear`](crate::nn::Linear) and the others of
/// [`LayerKind`](crate::LayerKind)), which can be quantized; everything else becomes the operator that the standard
/// describes. Nodes and values keep their names. Symbolic lengths are decided by each run.
///
/// A model that another tool quantized becomes one in integers: where activations are rounded to 8-bit codes of one constant scale,
/// by QuantizeLinear and DequantizeLinear or by operators on codes (QLinearConv and its like, those of ONNX Runtime among them), a
/// layer whose weights are symmetric codes is a [`StaticConv2d`](crate::nn::quantized::StaticConv2d) or
/// [`StaticLinear`](crate::nn::quantized::StaticLinear), and sums, products, pools and functions of one element between them run on
/// codes too. Codes keep the names that the file gives them; those of type i8 are held as u8, 128 higher. What can't run so runs as
/// it is spelled.
///
/// ```no_run
/// let model = lowprec::onnx::load("resnet50.onnx")?;
/// let int8 = lowprec::quantize_dynamic(&model, &[lowprec::LayerKind::Conv2d])?;
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::File`] when it can't be read, [`Error::Format`] when it is not valid ONNX, [`Error::Unsupported`] for operators
/// that the crate doesn't know, all of them in one error.
pub fn load(path: impl AsRef<Path>) -> Result<Model> {
    import::import(read_file(path.as_ref())?)
}

/// The model in the bytes of a file, which must hold all its tensors.
///
/// # Errors
/// Those of [`load`].
pub fn from_bytes(bytes: &[u8]) -> Result<Model> {
    import::import(read(bytes)?)
}

/// The graph in a file; tensors may lie in files beside it.
///
/// # Errors
/// [`Error::File`] when it can't be read, else those of [`read`].
pub(crate) fn read_file(path: &Path) -> Result<Graph> {
    let failed = |source| Error::File { path: path.display().to_string(), source };
    let (what, mut places) = (format!("`{}`", path.display()), Places { external: External::beside(path), ..Places::default() });
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        // A pipe has no length, and gives its bytes once.
        return decode(std::fs::read(path).map_err(failed)?.as_slice(), &what, &mut places);
    }
    let length = usize::try_from(metadata.len()).map_err(|error| failed(std::io::Error::other(error)))?;
    let open = || File::open(path).map(|file| Source::new(file, length)).map_err(failed);
    let mut source = open()?;
    check_size(&mut source, &what)?;
    source = open()?;
    let model = ModelProto::decode(&mut source);
    places.blocks = source.blocks;
    match source.failure {
        Some(error) => Err(failed(error)),
        None => graph::graph(model.map_err(|e| format_error(&what, e))?, &what, &mut places),
    }
}

/// The graph in the bytes of a file, which must hold all its tensors.
///
/// # Errors
/// [`Error::Format`], [`Error::Unsupported`] and [`Error::Duplicate`], as said at [`graph::graph`].
pub(crate) fn read(bytes: &[u8]) -> Result<Graph> {
    decode(bytes, "input", &mut Places::default())
}

fn decode(bytes: &[u8], what: &str, places: &mut Places) -> Result<Graph> {
    check_size(bytes, what)?;
    graph::graph(ModelProto::decode(bytes).map_err(|e| format_error(what, e))?, what, places)
}

fn check_size(source: impl Buf, what: &str) -> Result<()> {
    match census::is_affordable(source) {
        true => Ok(()),
        false => Err(format_error(what, "it is made of so many small parts that reading it would take many times its size")),
    }
}

fn format_error(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::Format { what: what.to_owned(), format: "ONNX", reason: reason.to_string() }
}
