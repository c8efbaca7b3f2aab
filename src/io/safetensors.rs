//! Named tensors in the safetensors format, read and written through the `safetensors` crate.
//!
//! | stored as | read as |
//! |---|---|
//! | F32, F16, BF16 | `f32` (16-bit floats are widened, exactly) |
//! | I64, I32, U8, I8, BOOL | themselves |
//!
//! Other types are an error that names the tensor. The header is checked by the `safetensors` crate (lengths, overlaps,
//! overflow); on top of that a truth value must be 0 or 1. What is allocated is at most twice the bytes given.
//!
//! ```
//! use std::collections::BTreeMap;
//! use lowprec::io::safetensors;
//! use lowprec::nn::Linear;
//! use lowprec::{Tensor, Value};
//!
//! let weight = Value::from(Tensor::new([2, 3], vec![0.5; 6])?);
//! let bytes = safetensors::write([("fc.weight", &weight)], &BTreeMap::new())?;
//! let mut state = safetensors::read(&bytes)?; // or `read_file`
//! let fc = Linear::from_state(&mut state, "fc", 3, 2, false)?;
//! state.finish()?; // a tensor that no layer took is an error
//! assert_eq!((fc.in_features(), fc.out_features()), (3, 2));
//! # Ok::<(), lowprec::Error>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::nn::StateDict;
use crate::tensor::{Element, Tensor, Value};

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Contents {
    /// The tensors, in alphabetical order of their names.
    pub tensors: Vec<(String, Value)>,
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
}

/// Reads a file of weights.
///
/// # Errors
/// [`Error::File`] when it can't be read, else those of [`read`] with the path in place of `input`.
pub fn read_file(path: impl AsRef<Path>) -> Result<StateDict> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| Error::File { path: path.display().to_string(), source })?;
    StateDict::new(parse(&bytes, &format!("`{}`", path.display()))?.tensors)
}

/// Reads weights from the bytes of a file.
///
/// # Errors
/// [`Error::Format`] when the bytes are not a safetensors file, [`Error::Unsupported`] for an element type that is not in
/// the table above. NaN and infinities are read as they are: [`StateDict::take`] refuses them by name, unless told otherwise.
pub fn read(bytes: &[u8]) -> Result<StateDict> {
    StateDict::new(parse(bytes, "input")?.tensors)
}

/// As [`read`], with the metadata.
///
/// # Errors
/// Those of [`read`].
pub fn read_tensors(bytes: &[u8]) -> Result<Contents> {
    parse(bytes, "input")
}

/// The bytes of a file with these tensors, `f32` as F32 and all others as themselves.
///
/// # Errors
/// [`Error::Duplicate`] when two tensors have one name, [`Error::Format`] when the names make too large a header.
pub fn write<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Value)>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut stored: BTreeMap<&str, (Dtype, &[usize], Vec<u8>)> = BTreeMap::new();
    for (name, value) in tensors {
        let (dtype, bytes) = match value {
            Value::F32(t) => (Dtype::F32, le_bytes(t, f32::to_le_bytes)),
            Value::I64(t) => (Dtype::I64, le_bytes(t, i64::to_le_bytes)),
            Value::I32(t) => (Dtype::I32, le_bytes(t, i32::to_le_bytes)),
            Value::Bool(t) => (Dtype::BOOL, le_bytes(t, |x| [u8::from(x)])),
            Value::U8(t) => (Dtype::U8, t.as_slice().to_vec()),
            Value::I8(t) => (Dtype::I8, le_bytes(t, i8::to_le_bytes)),
            other => {
                return Err(Error::Unsupported {
                    what: format!("writing tensor `{name}` of {}", other.dtype()),
                    way_out: "convert it to f32, i64, i32, bool, u8 or i8".into(),
                });
            }
        };
        if stored.insert(name, (dtype, value.shape().dims(), bytes)).is_some() {
            return Err(Error::Duplicate { what: "tensor", name: name.to_owned() });
        }
    }
    let views: Vec<(&str, TensorView<'_>)> = stored
        .iter()
        .map(|(name, (dtype, dims, bytes))| {
            Ok((*name, TensorView::new(*dtype, dims.to_vec(), bytes).map_err(|e| format_error(&format!("tensor `{name}`"), &e))?))
        })
        .collect::<Result<_>>()?;
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).map_err(|e| format_error("output", &e))
}

fn parse(bytes: &[u8], what: &str) -> Result<Contents> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| format_error(what, &e))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| format_error(what, &e))?;
    let mut tensors = file.iter().map(|(name, view)| Ok((name.to_owned(), value(what, name, &view)?))).collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Contents { tensors, metadata: header.metadata().clone().unwrap_or_default().into_iter().collect() })
}

fn value(what: &str, name: &str, view: &TensorView<'_>) -> Result<Value> {
    let (dims, data) = (view.shape(), view.data());
    let format = |reason: String| Error::Format { what: what.to_owned(), format: "safetensors", reason };
    let value = match view.dtype() {
        Dtype::F32 => decode(dims, data, f32::from_le_bytes),
        Dtype::F16 => decode(dims, data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => decode(dims, data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::I64 => decode(dims, data, i64::from_le_bytes),
        Dtype::I32 => decode(dims, data, i32::from_le_bytes),
        Dtype::U8 => decode(dims, data, u8::from_le_bytes),
        Dtype::I8 => decode(dims, data, i8::from_le_bytes),
        Dtype::BOOL => match data.iter().position(|&byte| byte > 1) {
            Some(at) => return Err(format(format!("truth value {at} of tensor `{name}` is {}, neither 0 nor 1", data[at]))),
            None => decode(dims, data, |[byte]: [u8; 1]| byte == 1),
        },
        other => {
            return Err(Error::Unsupported {
                what: format!("type {other:?} of tensor `{name}` in {what}"),
                way_out: "store it as F32, F16, BF16, I64, I32, U8, I8 or BOOL".into(),
            });
        }
    };
    value.map_err(|error| format(format!("tensor `{name}`: {error}")))
}

/// Elements of `N` little-endian bytes each, wherever they lie: files promise no alignment.
fn decode<const N: usize, T: Element>(dims: &[usize], data: &[u8], element: impl Fn([u8; N]) -> T) -> Result<Value> {
    let (elements, _) = data.as_chunks::<N>();
    Tensor::new(dims, elements.iter().map(|&bytes| element(bytes)).collect()).map(T::into_value)
}

fn le_bytes<const N: usize, T: Element>(tensor: &Tensor<T>, bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    tensor.as_slice().iter().flat_map(|&x| bytes(x)).collect()
}

fn format_error(what: &str, error: &impl std::fmt::Display) -> Error {
    Error::Format { what: what.to_owned(), format: "safetensors", reason: error.to_string() }
}
