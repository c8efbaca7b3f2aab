//! Weights that compressed-tensors packed, by hand after its `pack_to_int32`: codes plus half the range, the first in the lowest bits.

use std::collections::BTreeMap;

use lowprec::io::{compressed_tensors, safetensors};
use lowprec::num::{bf16, f16};
use lowprec::{Error, Granularity, Tensor, Value};

use crate::support::Random;

fn packed(codes: &[i32], (rows, cols): (usize, usize), bits: usize) -> Value {
    let per = 32 / bits;
    let words = cols.div_ceil(per);
    let mut data = vec![0u32; rows * words];
    for (i, &code) in codes.iter().enumerate() {
        let (row, col) = (i / cols, i % cols);
        data[row * words + col / per] |= ((code + (1 << (bits - 1))) as u32) << (col % per * bits);
    }
    Tensor::new([rows, words], data.into_iter().map(|word| word as i32).collect()).unwrap().into()
}

fn file(tensors: &[(&str, Value)]) -> safetensors::Contents {
    let named = tensors.iter().map(|(name, value)| (*name, value));
    safetensors::read_tensors(&safetensors::write(named, &BTreeMap::new()).unwrap()).unwrap()
}

fn shape(rows: i64, cols: i64) -> Value {
    Tensor::new([2], vec![rows, cols]).unwrap().into()
}

#[test]
fn codes_of_four_and_eight_bits_with_groups_and_without() {
    let mut random = Random(3);
    for (bits, cols, groups) in [(4, 64, 2), (4, 20, 1), (8, 32, 4), (8, 7, 1)] {
        let half = 1 << (bits - 1);
        let codes: Vec<i32> = (0..5 * cols).map(|_| (random.next() % (2 * half as u64)) as i32 - half).collect();
        let scales: Vec<f32> = (0..5 * groups).map(|i| 0.01 * (i + 1) as f32).collect();
        let scale = Value::from(Tensor::new([5, groups], scales.clone()).unwrap());
        let contents = file(&[
            ("model.q.weight_packed", packed(&codes, (5, cols), bits)),
            ("model.q.weight_scale", scale),
            ("model.q.weight_shape", shape(5, cols as i64)),
            ("model.norm.weight", Tensor::new([3], vec![1.0; 3]).unwrap().into()),
        ]);
        let weights = compressed_tensors::weights(&contents).unwrap();
        assert_eq!(weights.len(), 1);
        let weight = &weights["model.q"];
        assert_eq!((weight.codes(), weight.shape().dims()), (codes.clone(), &[5, cols][..]));
        let expected =
            if groups == 1 { Granularity::PerChannel { axis: 0 } } else { Granularity::PerGroup { axis: 1, size: cols / groups } };
        assert_eq!(weight.params().granularity(), expected);
        let value = |i: usize| codes[i] as f32 * scales[i / cols * groups + i % cols / (cols / groups)];
        assert!(weight.dequantize().as_slice().iter().enumerate().all(|(i, &x)| x == value(i)), "{bits} bits, {groups} groups");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let good = || {
        vec![
            ("q.weight_packed", packed(&[1; 64], (2, 32), 4)),
            ("q.weight_scale", Value::from(Tensor::new([2, 1], vec![0.5f32; 2]).unwrap())),
            ("q.weight_shape", shape(2, 32)),
        ]
    };
    assert!(compressed_tensors::weights(&file(&good())).is_ok());
    let replaced = |name: &str, value: Value| {
        let mut tensors = good();
        tensors.iter_mut().find(|(other, _)| *other == name).unwrap().1 = value;
        compressed_tensors::weights(&file(&tensors)).unwrap_err()
    };
    let errors = [
        replaced("q.weight_shape", shape(2, 80)),
        replaced("q.weight_shape", shape(0, 32)),
        replaced("q.weight_shape", shape(i64::MAX, i64::MAX)),
        replaced("q.weight_scale", Tensor::new([2, 3], vec![0.5f32; 6]).unwrap().into()),
        replaced("q.weight_scale", Tensor::new([2, 1], vec![0.0f32; 2]).unwrap().into()),
        replaced("q.weight_scale", Tensor::new([2, 1], vec![1i64; 2]).unwrap().into()),
        replaced("q.weight_packed", Tensor::new([2, 4], vec![0.0f32; 8]).unwrap().into()),
    ];
    assert!(errors.iter().all(|error| error.to_string().contains("`q`")), "{errors:#?}");
    let with = |name: &'static str, value: Value| {
        let mut tensors = good();
        tensors.push((name, value));
        compressed_tensors::weights(&file(&tensors)).unwrap_err()
    };
    let error = with("q.weight_zero_point", Tensor::new([2, 1], vec![0i32; 2]).unwrap().into());
    assert!(matches!(error.kind(), Error::Shape { .. }), "{error}");
    let error = with("q.weight_g_idx", Tensor::new([32], vec![0i32; 32]).unwrap().into());
    assert!(matches!(error.kind(), Error::Unsupported { .. }) && error.to_string().contains("order"), "{error}");
    assert!(matches!(compressed_tensors::weights(&file(&good()[..2])).unwrap_err().kind(), Error::Unknown { .. }));
}

#[test]
fn what_the_package_wrote_is_what_it_reads() {
    let contents = safetensors::read_tensors_file(crate::networks::file("tests/fixtures/compressed_tensors.safetensors")).unwrap();
    let find = |name: &str| &contents.tensors.iter().find(|(other, _)| other == name).unwrap().1;
    let weights = compressed_tensors::weights(&contents).unwrap();
    assert_eq!(weights.len(), 8);
    for (name, weight) in &weights {
        let expected = find(&format!("{name}.expected")).get::<f32>().unwrap();
        // The package multiplies in the type of its scales.
        let rounded = |x: f32| match find(&format!("{name}.weight_scale")) {
            Value::F16(_) => f16::from_f32(x).to_f32(),
            Value::Bf16(_) => bf16::from_f32(x).to_f32(),
            _ => x,
        };
        let found: Vec<f32> = weight.dequantize().as_slice().iter().map(|&x| rounded(x)).collect();
        assert_eq!(found, expected.as_slice(), "{name}");
        assert_eq!(weight.params().zero_points().is_empty(), !name.ends_with("zeros"), "{name}");
        let bits = name[3..4].parse::<u32>().unwrap();
        assert_eq!((weight.params().qmin(), weight.params().qmax()), (-(1 << (bits - 1)), (1 << (bits - 1)) - 1), "{name}");
    }
    assert_eq!(weights["int8_tensor"].params().granularity(), Granularity::PerTensor);
    assert_eq!(weights["int3_group"].params().granularity(), Granularity::PerGroup { axis: 1, size: 16 });
}
