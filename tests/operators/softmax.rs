//! Softmax and its logarithm along every axis, against the formula in f64.

use crate::nodes::{both, both_close, close, filled, node, noise, of, value};
use lowprec::nn::operator::Softmax;
use lowprec::num::{bf16, f16};
use lowprec::{Error, Value};

fn expected(x: &[f32], dims: &[usize], axis: usize, flattened: bool, log: bool) -> Vec<f64> {
    let (inner, length): (usize, usize) = match flattened {
        true => (1, dims[axis..].iter().product()),
        false => (dims[axis + 1..].iter().product(), dims[axis]),
    };
    let mut y = vec![0.0; x.len()];
    for line in 0..x.len() / length.max(1) {
        let at = |k: usize| (line / inner * length + k) * inner + line % inner;
        let sum: f64 = (0..length).map(|k| f64::from(x[at(k)]).exp()).sum();
        (0..length).for_each(|k| y[at(k)] = f64::from(x[at(k)]) - sum.ln());
    }
    y.into_iter().map(|y: f64| if log { y } else { y.exp() }).collect()
}

#[test]
fn along_every_axis() {
    for dims in [&[2, 3, 5, 7][..], &[1, 70, 2, 3], &[3, 2, 6, 90], &[5], &[4, 37], &[3, 1], &[2, 0, 3], &[2, 2, 3, 2, 3]] {
        let x = noise(dims, 1);
        for axis in 0..dims.len() {
            for (operator, log) in [(Softmax::new(axis as i64), false), (Softmax::log(axis as i64 - dims.len() as i64), true)] {
                both_close(operator, &[&x], dims, &expected(of(&x), dims, axis, false, log), 2e-6);
                both_close(operator.flattened(), &[&x], dims, &expected(of(&x), dims, axis, true, log), 2e-6);
            }
        }
    }
    close(of(&both(Softmax::new(-1), &[&value(&[], vec![3f32])])), &[1.0], 0.0);
}

#[test]
fn floats_of_other_sizes() {
    let x = noise(&[3, 20], 2);
    let exact = expected(of(&x), &[3, 20], 1, false, false);
    let as_f32 = |value: &Value| -> Vec<f32> {
        match value.get::<f16>() {
            Some(half) => half.as_slice().iter().map(|x| x.to_f32()).collect(),
            None => of::<bf16>(value).iter().map(|x| x.to_f32()).collect(),
        }
    };
    let half = filled(&[3, 20], |i| f16::from_f32(of::<f32>(&x)[i]));
    let exact_half = expected(&as_f32(&half), &[3, 20], 1, false, false);
    close(&as_f32(&both(Softmax::new(1), &[&half])), &exact_half, 1.0 / 4096.0);
    let brain = filled(&[3, 20], |i| bf16::from_f32(of::<f32>(&x)[i]));
    close(&as_f32(&both(Softmax::new(1), &[&brain])), &expected(&as_f32(&brain), &[3, 20], 1, false, false), 1.0 / 512.0);
    let wide = both(Softmax::new(1), &[&filled(&[3, 20], |i| f64::from(of::<f32>(&x)[i]))]);
    assert!(of::<f64>(&wide).iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-14));
}

#[test]
fn large_and_masked_values() {
    let inf = f32::INFINITY;
    let x = value(&[4, 3], vec![1e30f32, -1e30, 1e30, -inf, 0.0, 0.0, -inf, -inf, -inf, inf, 0.0, f32::NAN]);
    let nan = f64::NAN;
    close(of(&both(Softmax::new(1), &[&x])), &[0.5, 0.0, 0.5, 0.0, 0.5, 0.5, nan, nan, nan, nan, nan, nan], 1e-6);
    let half = -(2f64.ln());
    let logs = both(Softmax::log(1), &[&value(&[2, 2], vec![1e3f32, 1e3, 0.0, -200.0])]);
    close(of(&logs), &[half, half, 0.0, -200.0], 1e-6);
}

#[test]
fn threads_and_batches_do_not_matter() {
    let x = noise(&[301, 133], 5);
    let whole = both(Softmax::new(1), &[&x]);
    let row = both(Softmax::new(1), &[&value(&[1, 133], of::<f32>(&x)[300 * 133..].to_vec())]);
    assert_eq!(of::<f32>(&row), &of::<f32>(&whole)[300 * 133..]);
    assert!(matches!(node(Softmax::new(2), &[Some(&x)]).unwrap_err().kind(), Error::Parameter { what: "axis", .. }));
}
