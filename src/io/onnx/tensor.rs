//! Tensors in every way that ONNX stores them.
//!
//! Nothing is allocated before it is known that the data for it are there.

use crate::error::{Error, Result};
use crate::io::onnx::external::External;
use crate::io::onnx::format_error;
use crate::io::onnx::schema::{EXTERNAL, TensorProto};
use crate::io::onnx::source::Blocks;
use crate::tensor::{DType, Element, Shape, Tensor, Value};

/// The element type of that number in ONNX's `TensorProto.DataType`; `what` has it.
///
/// # Errors
/// [`Error::Unsupported`] for strings and complex numbers, [`Error::Format`] for a number that stands for no type.
pub fn element_type(code: i64, what: &str) -> Result<DType> {
    Ok(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::Bf16,
        17 => DType::F8E4M3,
        18 => DType::F8E4M3Fnuz,
        19 => DType::F8E5M2,
        20 => DType::F8E5M2Fnuz,
        21 => DType::U4,
        22 => DType::I4,
        23 => DType::F4E2M1,
        24 => DType::F8E8M0,
        25 => DType::U2,
        26 => DType::I2,
        27 => DType::F6E2M3,
        28 => DType::F6E3M2,
        8 | 14 | 15 => {
            let name = if code == 8 { "string" } else { "complex" };
            return Err(Error::Unsupported {
                what: format!("element type {name} of {what}"),
                way_out: "use floats, integers or truth values".into(),
            });
        }
        _ => return Err(format_error(what, format!("element type {code} is none that ONNX has"))),
    })
}

/// The number of an element type in ONNX's `TensorProto.DataType`.
pub fn element_code(dtype: DType) -> i32 {
    (1..=28).find(|&code| element_type(code.into(), "").is_ok_and(|other| other == dtype)).expect("ONNX has every element type")
}

/// Where the data of tensors are that are not in their messages: in files of their own, or taken from the file already.
#[derive(Debug, Default)]
pub struct Places {
    pub external: External,
    pub blocks: Blocks,
}

/// The tensor in a message; `what` names it in errors.
///
/// # Errors
/// [`Error::Format`] for data that don't fit its shape or its type, [`Error::Unsupported`] for strings, complex numbers and
/// tensors in pieces, [`Error::File`] for external data that can't be read.
pub fn value(tensor: TensorProto, what: &str, places: &mut Places) -> Result<Value> {
    let dtype = element_type(tensor.data_type.unwrap_or(0).into(), what)?;
    if tensor.segment.is_some() {
        return Err(Error::Unsupported { what: format!("{what}, which is stored in pieces"), way_out: "store it as a whole".into() });
    }
    let dims = tensor.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<usize>, _>>();
    let dims = dims.map_err(|_| format_error(what, format!("its shape is {:?}, and no length is negative", tensor.dims)))?;
    let shape = Shape::new(dims).map_err(|e| format_error(what, e))?;
    if tensor.data_location == Some(EXTERNAL) {
        let bytes = places.external.read(dtype, &shape, &tensor.external_data, what)?;
        return Value::from_packed(dtype, shape, &bytes).map_err(|e| format_error(what, e));
    }
    inside(tensor, dtype, shape, &mut places.blocks).map_err(|e| format_error(what, e))
}

/// The tensor whose data are in the message itself.
fn inside(tensor: TensorProto, dtype: DType, shape: Shape, blocks: &mut Blocks) -> Result<Value> {
    let TensorProto { raw_data, float_data, int32_data, int64_data, double_data, uint64_data, .. } = tensor;
    let filled = [!float_data.is_empty(), !int32_data.is_empty(), !int64_data.is_empty(), !double_data.is_empty(), !uint64_data.is_empty()];
    let filled = filled.into_iter().filter(|filled| *filled).count();
    match raw_data {
        // Empty beside data in another field, it says nothing.
        Some(raw) if filled == 0 || !raw.is_empty() => match filled {
            0 => {
                let taken = if dtype == DType::F32 { blocks.take(&raw) } else { None };
                return match taken {
                    Some(numbers) => Tensor::from_shared(shape, numbers).map(Element::into_value),
                    None => Value::from_packed(dtype, shape, &raw),
                };
            }
            _ => return Err(Error::parameter("number of fields with data", filled + 1, "must be one")),
        },
        _ if filled > 1 => return Err(Error::parameter("number of fields with data", filled, "must be one")),
        _ => {}
    }
    match dtype {
        DType::F32 => Tensor::from_shape(shape, float_data).map(Element::into_value),
        DType::F64 => Tensor::from_shape(shape, double_data).map(Element::into_value),
        DType::I64 => Tensor::from_shape(shape, int64_data).map(Element::into_value),
        DType::U64 => Tensor::from_shape(shape, uint64_data).map(Element::into_value),
        DType::U32 => {
            let narrowed = uint64_data.iter().map(|&x| u32::try_from(x).map_err(|_| beyond(x, dtype))).collect::<Result<Vec<u32>>>()?;
            Tensor::from_shape(shape, narrowed).map(Element::into_value)
        }
        DType::I32 => Tensor::from_shape(shape, int32_data).map(Element::into_value),
        DType::I16 | DType::U16 | DType::F16 | DType::Bf16 => {
            Value::from_bytes(dtype, shape, bytemuck::cast_slice(&low_bits::<u16>(&int32_data, dtype)?))
        }
        // Of small elements an entry holds a byte full, but for those of six bits, of which it holds one.
        DType::I4 | DType::U4 | DType::I2 | DType::U2 | DType::F4E2M1 => {
            Value::from_packed(dtype, shape, &low_bits::<u8>(&int32_data, dtype)?)
        }
        _ => Value::from_bytes(dtype, shape, &low_bits::<u8>(&int32_data, dtype)?),
    }
}

fn beyond(x: impl std::fmt::Debug, dtype: DType) -> Error {
    Error::parameter("an element", x, format!("must fit {dtype}"))
}

/// Numbers that fit `T`, with a sign or without, as the bits that they have there.
fn low_bits<T: Copy + TryFrom<u32>>(numbers: &[i32], dtype: DType) -> Result<Vec<T>> {
    let bits = 8 * size_of::<T>() as u32;
    let fits = -(1 << (bits - 1))..1 << bits;
    let low = |x: i32| if fits.contains(&x) { T::try_from(x as u32 & ((1 << bits) - 1)).ok() } else { None };
    numbers.iter().map(|&x| low(x).ok_or_else(|| beyond(x, dtype))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tensor: TensorProto) -> Result<Value> {
        value(tensor, "`t`", &mut Places::default())
    }

    fn tensor(code: i32, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: Some(code), dims: dims.to_vec(), ..Default::default() }
    }

    /// The numbers of all types that ONNX has and that are spoken, by the type's name.
    fn codes() -> Vec<(i32, DType)> {
        let codes: Vec<_> = (1..=40).filter_map(|code| element_type(code.into(), "`t`").ok().map(|dtype| (code, dtype))).collect();
        assert_eq!(codes.len(), DType::ALL.len());
        codes
    }

    #[test]
    fn raw_data_of_every_type() {
        for (code, dtype) in codes() {
            let packed: Vec<u8> = (0..(6 * dtype.bits()).div_ceil(8)).map(|i| (i % 2) as u8).collect();
            let value = read(TensorProto { raw_data: Some(packed.clone().into()), ..tensor(code, &[2, 3]) }).unwrap();
            assert_eq!((value.dtype(), value.shape().dims(), &*value.to_packed()), (dtype, &[2, 3][..], &packed[..]));
            for wrong in [packed.len() - 1, packed.len() + 1] {
                let raw = packed.iter().chain(&[0]).take(wrong).copied().collect::<Vec<u8>>();
                let error = read(TensorProto { raw_data: Some(raw.into()), ..tensor(code, &[2, 3]) }).unwrap_err();
                assert!(matches!(&error, Error::Format { .. }) && error.to_string().contains("`t`"), "{dtype}: {error}");
            }
        }
    }

    #[test]
    fn typed_data_of_every_type() {
        for (code, dtype) in codes() {
            let (ones, int32) = (tensor(code, &[4]), |data: &[i32]| TensorProto { int32_data: data.to_vec(), ..tensor(code, &[4]) });
            let (proto, bytes): (TensorProto, Vec<u8>) = match dtype {
                DType::F32 => (
                    TensorProto { float_data: vec![1.0, -2.0, 0.5, 0.0], ..ones },
                    [0x3f80_0000u32, 0xc000_0000, 0x3f00_0000, 0].iter().flat_map(|x| x.to_ne_bytes()).collect(),
                ),
                DType::F64 => {
                    (TensorProto { double_data: vec![1.0; 4], ..ones }, [1.0f64; 4].iter().flat_map(|x| x.to_ne_bytes()).collect())
                }
                DType::I64 => (TensorProto { int64_data: vec![-3; 4], ..ones }, [-3i64; 4].iter().flat_map(|x| x.to_ne_bytes()).collect()),
                DType::U64 => (TensorProto { uint64_data: vec![u64::MAX; 4], ..ones }, vec![0xff; 32]),
                DType::U32 => (TensorProto { uint64_data: vec![u32::MAX.into(); 4], ..ones }, vec![0xff; 16]),
                DType::I32 => (int32(&[-1, i32::MIN, 2, 3]), [-1, i32::MIN, 2, 3].iter().flat_map(|x| x.to_ne_bytes()).collect()),
                DType::I16 => (int32(&[-1, -32768, 2, 3]), [-1i16, -32768, 2, 3].iter().flat_map(|x| x.to_ne_bytes()).collect()),
                DType::U16 | DType::F16 | DType::Bf16 => {
                    (int32(&[65535, 0x3c00, 2, 3]), [65535u16, 0x3c00, 2, 3].iter().flat_map(|x| x.to_ne_bytes()).collect())
                }
                DType::I8 => (int32(&[-1, -128, 127, 3]), vec![255, 128, 127, 3]),
                DType::Bool => (int32(&[1, 0, 0, 1]), vec![1, 0, 0, 1]),
                DType::I4 => (int32(&[0x78, 0x0f]), vec![0xf8, 7, 255, 0]),
                DType::U4 | DType::F4E2M1 => (int32(&[0x78, 0xf1]), vec![8, 7, 1, 15]),
                DType::I2 => (int32(&[0b11_10_01_00]), vec![0, 1, 0xfe, 0xff]),
                DType::U2 => (int32(&[0b11_10_01_00]), vec![0, 1, 2, 3]),
                DType::F6E2M3 | DType::F6E3M2 => (int32(&[63, 1, 2, 32]), vec![63, 1, 2, 32]),
                _ => (int32(&[255, 128, 127, 3]), vec![255, 128, 127, 3]),
            };
            let value = read(proto.clone()).unwrap();
            assert_eq!((value.dtype(), value.bytes()), (dtype, bytes.as_slice()));
            // Nothing in the place of the raw data says nothing; anything there is one field too many.
            assert_eq!(read(TensorProto { raw_data: Some(Default::default()), ..proto.clone() }).unwrap().bytes(), bytes);
            for wrong in [
                TensorProto { raw_data: Some(vec![1].into()), ..proto.clone() },
                TensorProto { dims: vec![13], ..proto.clone() },
                TensorProto { dims: vec![0], ..proto.clone() },
                TensorProto { float_data: vec![1.0], double_data: vec![1.0], ..proto },
            ] {
                assert!(matches!(read(wrong), Err(Error::Format { .. })), "{dtype}");
            }
        }
        for (code, number) in [(5, 65536), (2, 256), (3, -129), (9, 2), (27, 64), (22, 256)] {
            assert!(matches!(read(TensorProto { int32_data: vec![number], ..tensor(code, &[1]) }), Err(Error::Format { .. })), "{code}");
        }
        assert!(matches!(read(TensorProto { uint64_data: vec![1 << 32], ..tensor(12, &[1]) }), Err(Error::Format { .. })));
    }

    #[test]
    fn shapes_that_the_data_cannot_fill_are_refused() {
        for dims in [&[-1][..], &[i64::MAX], &[i64::MAX, 2], &[1 << 40, 1 << 40, 0], &[1 << 32]] {
            for code in [1, 7, 9, 22] {
                assert!(matches!(read(tensor(code, dims)), Err(Error::Format { .. })), "{dims:?} of {code}");
            }
        }
        assert_eq!(read(tensor(1, &[0, 3])).unwrap().shape().dims(), [0, 3]);
        assert!(matches!(read(TensorProto { segment: Some(Default::default()), ..tensor(1, &[0]) }), Err(Error::Unsupported { .. })));
        for (code, unsupported) in [(0, false), (8, true), (14, true), (15, true), (29, false), (-1, false)] {
            let error = read(tensor(code, &[0])).unwrap_err();
            assert_eq!(matches!(error, Error::Unsupported { .. }), unsupported, "{error}");
        }
    }
}
