//! Pooling operators: images in their vectorized loops against the same windows over three spatial axes, and hand-worked ones.

use crate::support::Random;
use lowprec::nn::operator::{AutoPad, GlobalPool, MaxUnpool, Pool, Windows};
use lowprec::nn::{AvgPool2d, Dim, Layer, MaxPool2d, Model};
use lowprec::num::f16;
use lowprec::tensor::Element;
use lowprec::{Result, Tensor, Value};

fn run(layer: impl Into<Layer>, inputs: &[Value]) -> Result<Vec<Value>> {
    let mut net = Model::builder();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let mut edges = Vec::new();
    for (name, value) in names.iter().zip(inputs) {
        edges.push(Some(net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?));
    }
    for (i, edge) in net.add_node("node", &[], layer.into(), &edges)?.into_iter().enumerate() {
        net.output(&format!("y{i}"), edge)?;
    }
    let given: Vec<(&str, &Value)> = names.iter().map(String::as_str).zip(inputs).collect();
    Ok(net.build()?.run(&given)?.into_iter().map(|(_, value)| value).collect())
}

fn one(layer: impl Into<Layer>, x: &Value) -> Value {
    run(layer, std::slice::from_ref(x)).unwrap().remove(0)
}

fn tensor<T: Element>(dims: &[usize], data: Vec<T>) -> Value {
    T::into_value(Tensor::new(dims.to_vec(), data).unwrap())
}

fn near(a: &Value, b: &Value, tolerance: f32) {
    let (a, b) = (a.get::<f32>().unwrap(), b.get::<f32>().unwrap());
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.as_slice().iter().zip(b.as_slice()).enumerate() {
        assert!(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance, "{i}: {a} and {b}");
    }
}

/// Windows of images, and the same with one more axis of length 1 in front.
fn both(strides: [usize; 2], pads: [usize; 4], dilations: [usize; 2], ceil: bool) -> [Windows; 2] {
    let [top, left, bottom, right] = pads;
    let deep = Windows::new().with_strides([1, strides[0], strides[1]]).with_dilations([1, dilations[0], dilations[1]]);
    [
        Windows::new().with_strides(strides).with_pads(pads).with_dilations(dilations).with_ceil_mode(ceil),
        deep.with_pads([0, top, left, 0, bottom, right]).with_ceil_mode(ceil),
    ]
}

#[test]
fn images_are_pooled_as_volumes_are() {
    let mut random = Random(7);
    for (c, kernel) in [(1, [3, 3]), (3, [2, 3]), (21, [3, 1]), (85, [2, 2])] {
        let x: Value = random.tensor([2, c, 9, 8], 1.0).into();
        let deep = x.reshape([2, c, 1, 9, 8]).unwrap();
        let deep_kernel = [1, kernel[0], kernel[1]];
        for (strides, pads, dilations, ceil) in [
            ([1, 1], [0; 4], [1, 1], false),
            ([2, 3], [1, 0, 0, 1], [1, 2], false),
            ([2, 2], [2, 2, 2, 2], [2, 1], true),
            ([3, 5], [0; 4], [1; 2], true),
        ] {
            let [flat_windows, deep_windows] = both(strides, pads, dilations, ceil);
            let flat = |pool: Pool| one(pool.with_windows(flat_windows.clone()), &x);
            let volume = |pool: Pool| one(pool.with_windows(deep_windows.clone()), &deep);
            near(&flat(Pool::max(kernel)), &volume(Pool::max(deep_kernel)), 0.0);
            near(&flat(Pool::lp(kernel, 3).unwrap()), &volume(Pool::lp(deep_kernel, 3).unwrap()), 1e-6);
            for include in [false, true] {
                let (a, b) = (Pool::average(kernel), Pool::average(deep_kernel));
                near(&flat(a.with_count_include_pad(include)), &volume(b.with_count_include_pad(include)), 1e-6);
            }
        }
        // The layers that builders use follow the same rules where padding is small.
        let windows = both([2, 1], [1, 1, 0, 0], [1, 1], true)[0].clone();
        if kernel.iter().all(|&k| k > 1) {
            let layer = MaxPool2d::new(kernel).with_stride([2, 1]).with_padding([1, 1, 0, 0]).with_ceil_mode(true);
            near(&one(layer, &x), &one(Pool::max(kernel).with_windows(windows.clone()), &x), 0.0);
            let layer = AvgPool2d::new(kernel).with_stride([2, 1]).with_padding([1, 1, 0, 0]).with_ceil_mode(true);
            let pool = Pool::average(kernel).with_windows(windows).with_count_include_pad(true);
            near(&one(layer, &x), &one(pool, &x), 0.0);
        }
        near(&one(GlobalPool::average(), &x), &one(GlobalPool::average(), &deep), 1e-6);
        near(&one(GlobalPool::max(), &x), &one(GlobalPool::max(), &deep), 0.0);
    }
}

#[test]
fn pooled_by_hand() {
    let x = tensor(&[1, 1, 5], vec![1f32, -4.0, 3.0, 2.0, 0.0]);
    let same = |auto_pad| Windows::new().with_strides([2]).with_auto_pad(auto_pad);
    let max = |auto_pad| one(Pool::max([2]).with_windows(same(auto_pad)), &x);
    assert_eq!(max(AutoPad::SameUpper), tensor(&[1, 1, 3], vec![1f32, 3.0, 0.0]));
    assert_eq!(max(AutoPad::SameLower), tensor(&[1, 1, 3], vec![1f32, 3.0, 2.0]));
    assert_eq!(max(AutoPad::Valid), tensor(&[1, 1, 2], vec![1f32, 3.0]));
    // Ceil: the second window hangs over; a third would start in the padding.
    let ceil = Windows::new().with_strides([3]).with_pads([0, 2]).with_ceil_mode(true);
    let average = Pool::average([3]).with_windows(ceil);
    assert_eq!(one(average.clone(), &x), tensor(&[1, 1, 2], vec![0f32, 1.0]));
    let padded = one(average.with_count_include_pad(true), &x);
    assert_eq!(padded, tensor(&[1, 1, 2], vec![0f32, 2.0 / 3.0]));
    assert_eq!(one(Pool::lp([2], 1).unwrap(), &x), tensor(&[1, 1, 4], vec![5f32, 7.0, 5.0, 2.0]));
    assert_eq!(one(GlobalPool::lp(2).unwrap(), &tensor(&[1, 1, 2], vec![3f32, -4.0])), tensor(&[1, 1, 1], vec![5f32]));
    let halves = tensor(&[1, 1, 2], vec![f16::from_f32(1.0), f16::from_f32(2.0)]);
    assert_eq!(one(Pool::average([2]), &halves), tensor(&[1, 1, 1], vec![f16::from_f32(1.5)]));
    let bytes = tensor(&[1, 1, 3], vec![-128i8, -5, -7]);
    assert_eq!(one(Pool::max([2]), &bytes), tensor(&[1, 1, 2], vec![-5i8, -5]));
}

#[test]
fn indices_lead_back() {
    let x = tensor(&[1, 2, 2, 4], vec![1f32, 9.0, 2.0, 3.0, 4.0, 5.0, 8.0, 8.0, f32::NEG_INFINITY, 0.0, 0.0, 7.0, 0.0, 6.0, 1.0, 2.0]);
    let windows = Windows::new().with_strides([2, 2]);
    let y = run(Pool::max([2, 2]).with_windows(windows.clone()).with_indices(false), std::slice::from_ref(&x)).unwrap();
    assert_eq!(y, [tensor(&[1, 2, 1, 2], vec![9f32, 8.0, 6.0, 7.0]), tensor(&[1, 2, 1, 2], vec![1i64, 6, 13, 11])]);
    let column_major = run(Pool::max([2, 2]).with_windows(windows.clone()).with_indices(true), &[x]).unwrap();
    assert_eq!(column_major[1], tensor(&[1, 2, 1, 2], vec![2i64, 5, 11, 14]));
    let back = run(MaxUnpool::new([2, 2]).with_windows(windows), &y).unwrap();
    let mut expected = vec![0f32; 16];
    (expected[1], expected[6], expected[13], expected[11]) = (9.0, 8.0, 6.0, 7.0);
    assert_eq!(back, [tensor(&[1, 2, 2, 4], expected)]);
}

#[test]
fn impossible_windows_are_errors() {
    let x = tensor(&[1, 1, 3, 3], vec![0f32; 9]);
    for pool in [
        Pool::max([4, 1]),
        Pool::max([0, 1]),
        Pool::max([1]),
        Pool::max([2, 2]).with_windows(Windows::new().with_strides([0, 1])),
        Pool::max([2, 2]).with_windows(Windows::new().with_pads([1, 1])),
        Pool::max([2, 2]).with_windows(Windows::new().with_pads([usize::MAX; 4])),
        Pool::max([2, 2]).with_windows(Windows::new().with_dilations([usize::MAX, 1])),
        Pool::average([usize::MAX, 1]),
    ] {
        assert!(run(pool.clone(), std::slice::from_ref(&x)).is_err(), "{pool:?}");
    }
    assert!(run(GlobalPool::max(), &[tensor(&[1, 2, 0], Vec::<f32>::new())]).is_err());
    assert!(Pool::lp([2], 0).is_err() && GlobalPool::lp(-1).is_err());
    assert!(run(Pool::max([1, 1]), &[tensor(&[1, 1, 1, 1], vec![1i64])]).is_err());
    let unpool = |index: i64| {
        let inputs = [tensor(&[1, 1, 1], vec![1f32]), tensor(&[1, 1, 1], vec![index])];
        run(MaxUnpool::new([2]), &inputs)
    };
    assert!(unpool(1).is_ok() && unpool(2).is_err() && unpool(-1).is_err());
}
