//! Weights as `compressed-tensors` packs them (vLLM, llm-compressor): its layout `pack-quantized`, int4 and int8, for Linear.
//!
//! | tensor | holds |
//! |---|---|
//! | `{name}.weight_packed` | i32 `[out, ceil(in · bits / 32)]`: codes plus `2^(bits - 1)`, the first in the lowest bits |
//! | `{name}.weight_scale` | f32, f16 or bf16 `[out, groups]` |
//! | `{name}.weight_shape` | i64 or i32: `out`, `in` |
//!
//! The number of bits follows from the shapes. Asymmetric weights (`weight_zero_point`) and columns in another order (`weight_g_idx`)
//! are errors that say so.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::io::safetensors::Contents;
use crate::num::{bf16, f16};
use crate::tensor::{Granularity, QParams, QuantizedTensor, Shape, Tensor, Value};

const PACKED: &str = ".weight_packed";

/// Every packed weight of a file, by the name of its layer: symmetric codes `[out, in]`, with one scale per row where there is one group, else
/// one for each group along a row.
///
/// ```no_run
/// use lowprec::io::{compressed_tensors, safetensors};
/// let contents = safetensors::read_tensors_file("model.safetensors")?;
/// for (layer, weight) in compressed_tensors::weights(&contents)? {
///     println!("{layer}: {:?}", weight.shape());
/// }
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unknown`] for a tensor that is missing, [`Error::Type`], [`Error::Shape`] and [`Error::Scale`] for one that doesn't fit,
/// [`Error::Unsupported`] for zero points and reordered columns; all inside an [`Error::Layer`].
pub fn weights(contents: &Contents) -> Result<BTreeMap<String, QuantizedTensor<i8>>> {
    let names = contents.tensors.iter().filter_map(|(name, _)| name.strip_suffix(PACKED));
    names.map(|name| Ok((name.to_owned(), weight(contents, name).map_err(|e| e.in_layer(name))?))).collect()
}

fn weight(contents: &Contents, name: &str) -> Result<QuantizedTensor<i8>> {
    let find = |what: &str| {
        let full = format!("{name}.{what}");
        contents.tensors.iter().find(|(other, _)| *other == full).map(|(_, value)| value)
    };
    let need = |what: &'static str| {
        let present = || contents.tensors.iter().map(|(name, _)| name).filter(|other| other.starts_with(name)).collect();
        find(what).ok_or_else(|| Error::Unknown { what: "tensor", name: format!("{name}.{what}"), present: present() })
    };
    for (part, what) in [("weight_zero_point", "asymmetric weights"), ("weight_g_idx", "columns in another order")] {
        if find(part).is_some() {
            return Err(Error::Unsupported {
                what: format!("`{part}` ({what})"),
                way_out: "compress the model symmetrically, without activation ordering".into(),
            });
        }
    }
    let packed = need("weight_packed")?;
    let packed = packed.get::<i32>().ok_or_else(|| wrong_type("weight_packed", "i32", packed))?;
    let (out, inner) = shape(need("weight_shape")?)?;
    let (scales, groups) = scales(need("weight_scale")?, out)?;
    let bits = [4, 8].into_iter().find(|bits| packed.dims() == [out, inner.div_ceil(32 / bits)]).ok_or_else(|| {
        let expected = format!("[{out}, {}] of 4 bits or [{out}, {}] of 8", inner.div_ceil(8), inner.div_ceil(4));
        Error::shape("weight_packed", expected, packed.dims())
    })?;
    if groups == 0 || inner % groups != 0 {
        return Err(Error::shape("weight_scale", format!("[{out}, a divisor of {inner}]"), &[out, groups]));
    }
    let (half, mask) = (1i32 << (bits - 1), (1u32 << bits) - 1);
    let mut codes = Vec::with_capacity(packed.len() * (32 / bits));
    for row in packed.as_slice().chunks_exact(packed.dims()[1].max(1)) {
        let row_codes = row.iter().flat_map(|&word| (0..32 / bits).map(move |i| (word as u32 >> (i * bits)) & mask));
        codes.extend(row_codes.take(inner).map(|code| (code as i32 - half) as i8));
    }
    let granularity = match groups {
        1 => Granularity::PerChannel { axis: 0 },
        groups => Granularity::PerGroup { axis: 1, size: inner / groups },
    };
    let params = QParams::new(scales, Vec::new(), granularity, -half, half - 1)?;
    QuantizedTensor::from_storage(codes, Shape::new([out, inner])?, params)
}

/// Rows and columns.
fn shape(value: &Value) -> Result<(usize, usize)> {
    let list: Vec<i64> = match value {
        Value::I64(list) => list.as_slice().to_vec(),
        Value::I32(list) => list.as_slice().iter().map(|&x| x.into()).collect(),
        other => return Err(wrong_type("weight_shape", "i64 or i32", other)),
    };
    match list.as_slice() {
        &[out, inner] if out > 0 && inner > 0 => {
            let length = |x: i64| usize::try_from(x).map_err(|_| Error::parameter("weight_shape", x, "is too large to address"));
            Ok((length(out)?, length(inner)?))
        }
        other => Err(Error::parameter("weight_shape", other, "must be two lengths above 0")),
    }
}

/// Scales row by row, and their number in a row.
fn scales(value: &Value, out: usize) -> Result<(Vec<f32>, usize)> {
    let widened = |tensor: &Tensor<f32>| tensor.as_slice().to_vec();
    let list = match value {
        Value::F32(tensor) => widened(tensor),
        Value::F16(tensor) => tensor.as_slice().iter().map(|&x| f16::to_f32(x)).collect(),
        Value::Bf16(tensor) => tensor.as_slice().iter().map(|&x| bf16::to_f32(x)).collect(),
        other => return Err(wrong_type("weight_scale", "f32, f16 or bf16", other)),
    };
    match value.shape().dims() {
        &[rows, groups] if rows == out => Ok((list, groups)),
        &[rows] if rows == out => Ok((list, 1)),
        other => Err(Error::shape("weight_scale", format!("[{out}, groups]"), other)),
    }
}

fn wrong_type(what: &str, expected: &'static str, got: &Value) -> Error {
    Error::Type { what: format!("tensor `{what}`"), expected, got: got.dtype().name() }
}
