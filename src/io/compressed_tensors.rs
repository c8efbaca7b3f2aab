//! Weights as `compressed-tensors` packs them (vLLM, llm-compressor): its layout `pack-quantized`, integers of 2 to 8 bits, for Linear.
//!
//! | tensor | holds |
//! |---|---|
//! | `{name}.weight_packed` | i32 `[out, ceil(in · bits / 32)]`: codes plus `2^(bits - 1)`, row by row, the first in the lowest bits of the first word, running over from word to word |
//! | `{name}.weight_scale` | f32, f16 or bf16 `[out, groups]`, or one for the whole weight |
//! | `{name}.weight_shape` | i64 or i32: `out`, `in` |
//! | `{name}.weight_zero_point` | of asymmetric weights: i32 `[ceil(out · bits / 32), groups]`, packed like codes but down the rows |
//!
//! The number of bits follows from the shapes; where a row is so short that several would do, it is 4 or 8 if one of those does, else
//! the least. The value of a code is `scale · (code - zero point)`. Columns in another order (`weight_g_idx`) are an error that says so.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::io::safetensors::Contents;
use crate::num::{bf16, f16};
use crate::tensor::{Granularity, QParams, QuantizedTensor, Shape, Tensor, Value};

const PACKED: &str = ".weight_packed";
/// Bits of a code, in the order in which they are looked for.
const BITS: [usize; 7] = [4, 8, 2, 3, 5, 6, 7];

/// Every packed weight of a file, by the name of its layer: codes `[out, in]`, with one scale and zero point in all, for each row, or for each
/// group along a row.
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
/// [`Error::Unsupported`] for reordered columns; all inside an [`Error::Layer`].
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
    if find("weight_g_idx").is_some() {
        return Err(Error::Unsupported {
            what: "`weight_g_idx` (columns in another order)".into(),
            way_out: "compress the model without activation ordering, or with the ordering `static`, which moves no column".into(),
        });
    }
    let packed = need("weight_packed")?;
    let packed = packed.get::<i32>().ok_or_else(|| wrong_type("weight_packed", "i32", packed))?;
    let (out, inner) = shape(need("weight_shape")?)?;
    let (scales, groups) = scales(need("weight_scale")?, out)?;
    let bits = BITS.into_iter().find(|&bits| words(inner, bits).is_some_and(|words| packed.dims() == [out, words])).ok_or_else(|| {
        let expected = format!("[{out}, {}] of 4 bits, or as many words as other bits take", inner.div_ceil(8));
        Error::shape("weight_packed", expected, packed.dims())
    })?;
    let whole = groups == 1 && scales.len() == 1 && out != 1;
    if groups == 0 || inner % groups != 0 {
        return Err(Error::shape("weight_scale", format!("[{out}, a divisor of {inner}]"), &[out, groups]));
    }
    let half = 1i32 << (bits - 1);
    let mut codes = Vec::with_capacity(out * inner);
    for row in packed.as_slice().chunks_exact(packed.dims()[1].max(1)) {
        codes.extend(unpacked(row.iter().copied(), bits).take(inner).map(|code| (code - half) as i8));
    }
    let zeros = match find("weight_zero_point") {
        None => Vec::new(),
        Some(zeros) => zero_points(zeros, bits, if whole { [1, 1] } else { [out, groups] })?,
    };
    let granularity = match groups {
        _ if whole => Granularity::PerTensor,
        1 => Granularity::PerChannel { axis: 0 },
        groups => Granularity::PerGroup { axis: 1, size: inner / groups },
    };
    let params = QParams::new(scales, zeros, granularity, -half, half - 1)?;
    QuantizedTensor::from_storage(codes, Shape::new([out, inner])?, params)
}

/// Words that hold so many codes.
fn words(codes: usize, bits: usize) -> Option<usize> {
    Some(codes.checked_mul(bits)?.div_ceil(32))
}

/// The codes in words, half their range above what they stand for.
fn unpacked(words: impl Iterator<Item = i32>, bits: usize) -> impl Iterator<Item = i32> {
    let (mut held, mut left) = (0u64, 0);
    let mut words = words.fuse();
    std::iter::from_fn(move || {
        if left < bits {
            held |= u64::from(words.next()? as u32) << left;
            left += 32;
        }
        let code = (held & ((1 << bits) - 1)) as i32;
        (held, left) = (held >> bits, left - bits);
        Some(code)
    })
}

/// Zero points row by row: packed down the rows, or one for the whole weight, as it is.
fn zero_points(value: &Value, bits: usize, [out, groups]: [usize; 2]) -> Result<Vec<i32>> {
    if let (Value::I8(list), [1, 1]) = (value, [out, groups]) {
        return Ok(list.as_slice().iter().map(|&zero| zero.into()).collect());
    }
    let packed = value.get::<i32>().ok_or_else(|| wrong_type("weight_zero_point", "i32", value))?;
    let rows = words(out, bits).unwrap_or(usize::MAX);
    if packed.dims() != [rows, groups] {
        return Err(Error::shape("weight_zero_point", format!("[{rows}, {groups}]"), packed.dims()));
    }
    let mut zeros = vec![0; out * groups];
    for group in 0..groups {
        let column = packed.as_slice().iter().skip(group).step_by(groups).copied();
        for (row, code) in unpacked(column, bits).take(out).enumerate() {
            zeros[row * groups + group] = code - (1 << (bits - 1));
        }
    }
    Ok(zeros)
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
        &[rows] if rows == out || rows == 1 => Ok((list, 1)),
        &[1, 1] => Ok((list, 1)),
        other => Err(Error::shape("weight_scale", format!("[{out}, groups], or one in all"), other)),
    }
}

fn wrong_type(what: &str, expected: &'static str, got: &Value) -> Error {
    Error::Type { what: format!("tensor `{what}`"), expected, got: got.dtype().name() }
}
