//! Small floats: every code's value, and rounding to them, as ml_dtypes and ONNX have it.

use lowprec::io::safetensors::read_file;
use lowprec::nn::StateDict;
use lowprec::num::{F4E2M1, F6E2M3, F6E3M2, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, ScaleRounding, SmallFloat};

fn fixtures() -> StateDict {
    read_file("tests/fixtures/small_floats.safetensors").unwrap()
}

fn floats(state: &StateDict, name: &str) -> Vec<f32> {
    state.get(name).unwrap().get::<f32>().unwrap().as_slice().to_vec()
}

fn codes(state: &StateDict, name: &str) -> Vec<u8> {
    state.get(name).unwrap().get::<u8>().unwrap().as_slice().to_vec()
}

fn values<T: SmallFloat>(state: &StateDict) {
    let values = floats(state, &format!("{}.values", T::NAME));
    assert_eq!(values.len(), 1 << T::BITS);
    for (code, value) in (0..=255).zip(values) {
        let got = T::from_bits(code).to_f32();
        assert!(got.to_bits() == value.to_bits() || got.is_nan() && value.is_nan(), "{} {code:#x}: {got}, not {value}", T::NAME);
        assert_eq!((T::from_bits(code).to_bits(), bytemuck::bytes_of(&T::from_bits(code))), (code, &[code][..]));
        assert_eq!(T::from_bits(code | !(u8::MAX >> (8 - T::BITS))), T::from_bits(code));
    }
}

fn compare(name: &str, inputs: &[f32], expected: &[u8], code: impl Fn(f32) -> u8) {
    assert_eq!(inputs.len(), expected.len());
    for (&x, &expected) in inputs.iter().zip(expected) {
        assert_eq!(code(x), expected, "{name} of {x} ({:#x})", x.to_bits());
    }
}

fn check<T: SmallFloat>() {
    let state = fixtures();
    values::<T>(&state);
    let inputs = floats(&state, &format!("{}.inputs", T::NAME));
    assert!(inputs.len() > 500);
    for (suffix, saturate) in [("saturated", true), ("unsaturated", false)] {
        let expected = codes(&state, &format!("{}.{suffix}", T::NAME));
        compare(&format!("{} {suffix}", T::NAME), &inputs, &expected, |x| T::from_f32(x, saturate).to_bits());
    }
    // Whatever a code stands for has that code, but for the NaNs.
    for code in 0..=u8::MAX >> (8 - T::BITS) {
        let value = T::from_bits(code).to_f32();
        assert!(value.is_nan() || T::from_f32(value, false).to_bits() == code, "{} {code:#x}", T::NAME);
    }
}

#[test]
fn eight_bits() {
    check::<F8E4M3>();
    check::<F8E4M3Fnuz>();
    check::<F8E5M2>();
    check::<F8E5M2Fnuz>();
}

#[test]
fn six_and_four_bits() {
    check::<F6E2M3>();
    check::<F6E3M2>();
    check::<F4E2M1>();
}

#[test]
fn powers_of_two() {
    let state = fixtures();
    values::<F8E8M0>(&state);
    let inputs = floats(&state, "f8e8m0.inputs");
    for (mode, rounding) in [("up", ScaleRounding::Up), ("down", ScaleRounding::Down), ("nearest", ScaleRounding::Nearest)] {
        for (suffix, saturate) in [("saturated", true), ("unsaturated", false)] {
            let expected = codes(&state, &format!("f8e8m0.{mode}.{suffix}"));
            compare(&format!("f8e8m0 {mode} {suffix}"), &inputs, &expected, |x| F8E8M0::round(x, rounding, saturate).to_bits());
            compare("negative f8e8m0", &inputs, &expected, |x| F8E8M0::round(-x, rounding, saturate).to_bits());
        }
    }
    assert_eq!(F8E8M0::from_f32(1.1, true).to_f32(), 2.0);
}
