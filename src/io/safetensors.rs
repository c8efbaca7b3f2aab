//! Named tensors in the safetensors format, read and written through the `safetensors` crate.
//!
//! | stored as | read as |
//! |---|---|
//! | F64, F32, F16, BF16, I64 to I8, U64 to U8, BOOL | themselves |
//! | F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, F8_E8M0 | `f8e4m3`, `f8e4m3fnuz`, `f8e5m2`, `f8e5m2fnuz`, `f8e8m0` |
//! | F6_E2M3, F6_E3M2, F4: packed, the first element in the lowest bits | `f6e2m3`, `f6e3m2`, `f4e2m1` |
//!
//! Weights for a [`StateDict`] are `f32`: F16 and BF16 are widened, exactly, on their way there. C64 is an error that names the
//! tensor. The format has no integers of less than a byte, so writing those is one too. The header is checked by the
//! `safetensors` crate (lengths, overlaps, overflow); on top of that a truth value must be 0 or 1. What is kept is at most
//! twice the bytes given.
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

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::nn::StateDict;
use crate::num::{bf16, f16};
use crate::tensor::{DType, Element, Shape, Tensor, Value};

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Contents {
    /// The tensors as they are stored, in alphabetical order of their names.
    pub tensors: Vec<(String, Value)>,
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
}

/// Reads a file of weights.
///
/// # Errors
/// [`Error::File`] when it can't be read, else those of [`read`] with the path in place of `input`.
pub fn read_file(path: impl AsRef<Path>) -> Result<StateDict> {
    let (bytes, what) = file(path.as_ref())?;
    weights(parse(&bytes, &what)?)
}

/// Reads weights from the bytes of a file.
///
/// # Errors
/// [`Error::Format`] when the bytes are not a safetensors file, [`Error::Unsupported`] for an element type that is not in
/// the table above. NaN and infinities are read as they are: [`StateDict::take`] refuses them by name, unless told otherwise.
pub fn read(bytes: &[u8]) -> Result<StateDict> {
    weights(parse(bytes, "input")?)
}

/// As [`read`], with the metadata, and every tensor as it is stored.
///
/// # Errors
/// Those of [`read`].
pub fn read_tensors(bytes: &[u8]) -> Result<Contents> {
    parse(bytes, "input")
}

/// As [`read_tensors`], from a file.
///
/// # Errors
/// Those of [`read_file`].
pub fn read_tensors_file(path: impl AsRef<Path>) -> Result<Contents> {
    let (bytes, what) = file(path.as_ref())?;
    parse(&bytes, &what)
}

/// The bytes of a file with these tensors.
///
/// # Errors
/// [`Error::Duplicate`] when two tensors have one name, [`Error::Unsupported`] for integers of less than a byte and for packed
/// floats that don't fill whole bytes, [`Error::Format`] when the names make too large a header.
pub fn write<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Value)>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut stored: BTreeMap<&str, (Dtype, &Shape, Cow<'_, [u8]>)> = BTreeMap::new();
    for (name, value) in tensors {
        let (dtype, shape) = (value.dtype(), value.shape());
        let Some((_, stored_as)) = TYPES.iter().find(|(ours, _)| *ours == dtype) else {
            return Err(Error::Unsupported {
                what: format!("{dtype} in safetensors, which tensor `{name}` holds"),
                way_out: format!("convert it to {}", if dtype.is_signed() { DType::I8 } else { DType::U8 }),
            });
        };
        if dtype.bits() < 8 && !(shape.elements() * dtype.bits()).is_multiple_of(8) {
            return Err(Error::Unsupported {
                what: format!("tensor `{name}` of {} elements of {dtype}, which fill no whole bytes, in safetensors", shape.elements()),
                way_out: format!("pad it to a multiple of {}, or convert it to {}", if dtype.bits() == 4 { 2 } else { 4 }, DType::F8E4M3),
            });
        }
        if stored.insert(name, (*stored_as, shape, value.to_packed())).is_some() {
            return Err(Error::Duplicate { what: "tensor", name: name.to_owned() });
        }
    }
    let views: Vec<(&str, TensorView<'_>)> = stored
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            let view = TensorView::new(*dtype, shape.dims().to_vec(), bytes);
            Ok((*name, view.map_err(|e| format_error(&format!("tensor `{name}`"), &e))?))
        })
        .collect::<Result<_>>()?;
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).map_err(|e| format_error("output", &e))
}

/// The types that both sides have.
const TYPES: [(DType, Dtype); 21] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::F16, Dtype::F16),
    (DType::Bf16, Dtype::BF16),
    (DType::F8E4M3, Dtype::F8_E4M3),
    (DType::F8E4M3Fnuz, Dtype::F8_E4M3FNUZ),
    (DType::F8E5M2, Dtype::F8_E5M2),
    (DType::F8E5M2Fnuz, Dtype::F8_E5M2FNUZ),
    (DType::F8E8M0, Dtype::F8_E8M0),
    (DType::F6E2M3, Dtype::F6_E2M3),
    (DType::F6E3M2, Dtype::F6_E3M2),
    (DType::F4E2M1, Dtype::F4),
    (DType::I64, Dtype::I64),
    (DType::I32, Dtype::I32),
    (DType::I16, Dtype::I16),
    (DType::I8, Dtype::I8),
    (DType::U64, Dtype::U64),
    (DType::U32, Dtype::U32),
    (DType::U16, Dtype::U16),
    (DType::U8, Dtype::U8),
    (DType::Bool, Dtype::BOOL),
];

/// The bytes of a file, and its name for errors.
fn file(path: &Path) -> Result<(Vec<u8>, String)> {
    let bytes = std::fs::read(path).map_err(|source| Error::File { path: path.display().to_string(), source })?;
    Ok((bytes, format!("`{}`", path.display())))
}

fn parse(bytes: &[u8], what: &str) -> Result<Contents> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| format_error(what, &e))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| format_error(what, &e))?;
    let mut tensors = file.iter().map(|(name, view)| Ok((name.to_owned(), value(what, name, &view)?))).collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Contents { tensors, metadata: header.metadata().clone().unwrap_or_default().into_iter().collect() })
}

fn value(what: &str, name: &str, view: &TensorView<'_>) -> Result<Value> {
    let Some((dtype, _)) = TYPES.iter().find(|(_, theirs)| *theirs == view.dtype()) else {
        return Err(Error::Unsupported {
            what: format!("type {} of tensor `{name}` in {what}", view.dtype()),
            way_out: "store it as floats, integers or truth values".into(),
        });
    };
    let format = |reason: String| Error::Format { what: what.to_owned(), format: "safetensors", reason };
    match Shape::new(view.shape()).and_then(|shape| Value::from_packed(*dtype, shape, view.data())) {
        Err(Error::Code { index, value, .. }) if *dtype == DType::Bool => {
            Err(format(format!("truth value {index} of tensor `{name}` is {value}, neither 0 nor 1")))
        }
        other => other.map_err(|error| format(format!("tensor `{name}`: {error}"))),
    }
}

fn weights(contents: Contents) -> Result<StateDict> {
    fn widened<T: Element>(tensor: &Tensor<T>, widen: impl Fn(T) -> f32) -> Result<Value> {
        Tensor::from_shape(tensor.shape().clone(), tensor.as_slice().iter().map(|&x| widen(x)).collect()).map(Value::F32)
    }
    let tensors = contents.tensors.into_iter().map(|(name, value)| {
        let value = match &value {
            Value::F16(t) => widened(t, f16::to_f32)?,
            Value::Bf16(t) => widened(t, bf16::to_f32)?,
            _ => value,
        };
        Ok((name, value))
    });
    StateDict::new(tensors.collect::<Result<Vec<_>>>()?)
}

fn format_error(what: &str, error: &impl std::fmt::Display) -> Error {
    Error::Format { what: what.to_owned(), format: "safetensors", reason: error.to_string() }
}
