//! Safetensors files: every type there and back, and every way a file can lie.
#![cfg(feature = "safetensors")]

mod support;

use std::collections::BTreeMap;

use lowprec::io::safetensors::{read, read_file, read_tensors, read_tensors_file, write};
use lowprec::nn::Linear;
use lowprec::num::{F4E2M1, SmallFloat};
use lowprec::{DType, Error, NonFinite, Shape, Tensor, Value};
use support::Random;

fn small() -> Vec<u8> {
    let values: [(&str, Value); 6] = [
        ("a.f32", Tensor::new([2, 2], vec![1.0f32, -0.0, f32::MIN_POSITIVE, f32::NAN]).unwrap().into()),
        ("b.i64", Tensor::new([1], vec![i64::MIN]).unwrap().into()),
        ("c.i32", Tensor::new([3], vec![i32::MAX, 0, -1]).unwrap().into()),
        ("d.bool", Tensor::new([2], vec![true, false]).unwrap().into()),
        ("e.u8", Tensor::new(Vec::new(), vec![255u8]).unwrap().into()),
        ("f.i8", Tensor::new([0, 3], Vec::<i8>::new()).unwrap().into()),
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write(values.iter().map(|(name, value)| (*name, value)), &metadata).unwrap()
}

/// A file with this header and so many zero bytes behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn every_type_there_and_back() {
    let contents = read_tensors(&small()).unwrap();
    let names: Vec<&str> = contents.tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a.f32", "b.i64", "c.i32", "d.bool", "e.u8", "f.i8"]);
    assert_eq!(contents.metadata["format"], "pt");
    let Value::F32(a) = &contents.tensors[0].1 else { panic!() };
    let bits: Vec<u32> = a.as_slice().iter().map(|x| x.to_bits()).collect();
    assert_eq!(bits, [1.0f32, -0.0, f32::MIN_POSITIVE, f32::NAN].map(f32::to_bits));
    assert_eq!(contents.tensors[2].1, Tensor::new([3], vec![i32::MAX, 0, -1]).unwrap().into());
    assert_eq!(contents.tensors[3].1, Tensor::new([2], vec![true, false]).unwrap().into());
    assert_eq!(contents.tensors[4].1.shape().rank(), 0);
    let again = write(contents.tensors.iter().map(|(name, value)| (name.as_str(), value)), &contents.metadata).unwrap();
    assert_eq!(read_tensors(&again).unwrap().tensors[1..], contents.tensors[1..]);
}

#[test]
fn every_element_type_there_and_back() {
    for &dtype in DType::ALL {
        // Every byte that is an element, in an even number of them.
        let bytes = (0..=255u8).filter(|&byte| Value::from_bytes(dtype, Shape::new([1]).unwrap(), &vec![byte; dtype.bytes()]).is_ok());
        let bytes: Vec<u8> = bytes.flat_map(|byte| vec![byte; dtype.bytes()]).collect();
        let value = Value::from_bytes(dtype, Shape::new([bytes.len() / dtype.bytes() / 2, 2]).unwrap(), &bytes).unwrap();
        let written = write([("x", &value)], &BTreeMap::new());
        if dtype.is_integer() && dtype.bits() < 8 {
            let error = written.unwrap_err();
            assert!(matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("`x`"), "{error}");
        } else {
            let written = written.unwrap();
            let contents = read_tensors(&written).unwrap();
            let (name, again) = &contents.tensors[0];
            assert_eq!((name.as_str(), again.dtype(), again.shape()), ("x", dtype, value.shape()));
            assert_eq!(again.bytes(), bytes, "{dtype}");
            let elements = value.shape().elements();
            assert!(written.ends_with(&value.to_packed()) && value.to_packed().len() == elements * dtype.bits() / 8);
        }
    }
}

#[test]
fn packed_elements_fill_whole_bytes() {
    let four = |n: usize| Value::from_bytes(DType::F4E2M1, Shape::new([n]).unwrap(), &vec![7; n]).unwrap();
    for bad in [four(3), Value::zeros(DType::F6E3M2, Shape::new([2]).unwrap()).unwrap()] {
        let error = write([("odd", &bad)], &BTreeMap::new()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("`odd`"), "{error}");
    }
    // The first of two stands in the lower half.
    let bytes = [file(r#"{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 0), vec![0x72]].concat();
    let contents = read_tensors(&bytes).unwrap();
    let x: Vec<f32> = contents.tensors[0].1.get::<F4E2M1>().unwrap().as_slice().iter().map(|x| x.to_f32()).collect();
    assert_eq!(x, [1.0, 6.0]);
    for header in [
        r#"{"x":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#,
        r#"{"x":{"dtype":"F4","shape":[6],"data_offsets":[0,2]}}"#,
        r#"{"x":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,2]}}"#,
    ] {
        assert!(matches!(read(&file(header, 2)), Err(Error::Format { .. })), "{header}");
    }
}

#[test]
fn sixteen_bit_floats_are_widened_exactly() {
    let mut bytes =
        file(r#"{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}}"#, 0);
    for bits in [0x3555u16, 0xfbff, 0x3eab, 0xff7f] {
        bytes.extend_from_slice(&bits.to_le_bytes());
    }
    let state = read(&bytes).unwrap();
    let values = |name: &str| state.get(name).unwrap().get::<f32>().unwrap().as_slice().to_vec();
    assert_eq!(values("h"), [0.333_251_95, -65504.0]);
    assert_eq!(values("b"), [0.333_984_38, -3.389_531_4e38]);
    let stored = read_tensors(&bytes).unwrap().tensors;
    assert_eq!([stored[0].1.dtype(), stored[1].1.dtype()], [DType::Bf16, DType::F16]);
}

#[test]
fn files_that_lie_are_errors() {
    let cases = [
        ("no header", vec![1, 2, 3]),
        ("header longer than the file", file("{}", 0).into_iter().chain([0; 4]).skip(1).collect()),
        ("huge header", [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat()),
        ("no json", file("{]", 0)),
        ("truncated data", file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7)),
        ("data too long", file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9)),
        ("shape against offsets", file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8)),
        ("product overflows", file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#, 8)),
        ("offsets reversed", file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#, 2)),
        ("a hole", file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3)),
        (
            "overlap",
            file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3),
        ),
        ("negative length", file(r#"{"a":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}}"#, 2)),
        ("unknown type", file(r#"{"a":{"dtype":"Q7","shape":[2],"data_offsets":[0,2]}}"#, 2)),
    ];
    for (what, bytes) in cases {
        assert!(matches!(read(&bytes), Err(Error::Format { .. })), "{what}: {:?}", read(&bytes));
    }
    let complex = read(&file(r#"{"spectrum":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, 8)).unwrap_err();
    assert!(matches!(&complex, Error::Unsupported { .. }) && complex.to_string().contains("`spectrum`"), "{complex}");
    let mut truth = file(r#"{"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}"#, 2);
    *truth.last_mut().unwrap() = 2;
    let truth = read(&truth).unwrap_err().to_string();
    assert!(truth.contains("`mask`") && truth.contains('2'), "{truth}");
    // No element, so no byte, and yet axes that no stride could step over.
    let endless = read(&file(r#"{"tail":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#, 0)).unwrap_err();
    assert!(matches!(&endless, Error::Format { .. }) && endless.to_string().contains("`tail`"), "{endless}");
    let missing = read_file("no such file.safetensors").unwrap_err();
    assert!(matches!(missing, Error::File { .. }));
}

#[test]
fn errors_of_a_file_name_it() {
    let path = std::env::temp_dir().join(format!("lowprec-{}.safetensors", std::process::id()));
    let shown = path.display().to_string();
    for (header, bytes, name) in [
        (r#"{"spectrum":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, 8, "`spectrum`"),
        (r#"{"tail":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#, 0, "`tail`"),
        (r#"{"hole":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3, "`hole`"),
    ] {
        std::fs::write(&path, file(header, bytes)).unwrap();
        for error in [read_file(&path).unwrap_err(), read_tensors_file(&path).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(&shown) && error.contains(name), "{error}");
        }
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_or_handed_out() {
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let weight = Value::from(Tensor::new([1, 3], vec![1.0, 2.0, bad]).unwrap());
        let bytes = write([("fc.weight", &weight)], &BTreeMap::new()).unwrap();
        let mut state = read(&bytes).unwrap();
        let error = Linear::from_state(&mut state, "fc", 3, 1, false).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { index: 2, .. }) && error.to_string().contains("`fc.weight`"), "{error}");
        let mut state = read(&bytes).unwrap().with_non_finite(NonFinite::Saturate);
        let linear = Linear::from_state(&mut state, "fc", 3, 1, false).unwrap();
        state.finish().unwrap();
        assert_eq!(linear.weight().as_slice()[2].to_bits(), bad.to_bits());
    }
}

#[test]
fn every_truncation_is_an_error_and_no_flipped_bit_a_panic() {
    let whole = small();
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.next() % 3 {
            let at = random.next() as usize % bytes.len();
            bytes[at] ^= 1 << (random.next() % 8);
        }
        // An error or a valid file; what is held is never more than the bytes could hold.
        if let Ok(contents) = read_tensors(&bytes) {
            let held: usize = contents.tensors.iter().map(|(_, value)| value.shape().elements()).sum();
            assert!(held <= bytes.len());
        }
    }
}
