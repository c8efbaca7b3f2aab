//! Resize against the standard's formulas written out element by element, over all axes at once.

use crate::support::Random;
use lowprec::nn::operator::{AspectPolicy, Coordinates, NearestMode, Resize, ResizeMode};
use lowprec::nn::{Dim, MaxPool2d, Model};
use lowprec::tensor::Element;
use lowprec::{DType, Result, Tensor, Value};

fn tensor<T: Element>(dims: &[usize], data: Vec<T>) -> Value {
    T::into_value(Tensor::new(dims.to_vec(), data).unwrap())
}

/// Runs a node on the input and its lists, with the image left channels-last by a layer before if `last`.
fn run(resize: Resize, x: &Value, lists: [Option<Value>; 3], last: bool) -> Result<Value> {
    let mut net = Model::builder();
    let mut edge = net.input("x", x.dtype(), &vec![Dim::Any; x.shape().rank()])?;
    if last {
        edge = net.add("last", MaxPool2d::new([1, 1]), &[edge])?;
    }
    let mut edges = vec![Some(edge)];
    let names = ["roi", "scales", "sizes"];
    let mut given = vec![("x", x)];
    for (name, list) in names.into_iter().zip(&lists) {
        edges.push(match list {
            Some(list) => {
                given.push((name, list));
                Some(net.input(name, list.dtype(), &[Dim::Any])?)
            }
            None => None,
        });
    }
    let y = net.add_node("resize", &[], resize.into(), &edges)?[0];
    net.output("y", y)?;
    Ok(net.build()?.run(&given)?.remove(0).1)
}

fn scales(list: &[f32]) -> [Option<Value>; 3] {
    [None, Some(tensor(&[list.len()], list.to_vec())), None]
}

fn sizes(list: &[i64]) -> [Option<Value>; 3] {
    [None, None, Some(tensor(&[list.len()], list.to_vec()))]
}

/// `Σ over all taps of all axes` with weights by `kernel(distance)` at half-pixel places, ends repeated.
fn half_pixel(x: &Tensor, out: &[usize], scale: &[f64], reach: i64, kernel: impl Fn(f64) -> f64) -> Vec<f64> {
    let dims = x.dims();
    let rank = dims.len();
    let mut results = Vec::new();
    for flat in 0..out.iter().product::<usize>() {
        let (mut rest, mut places) = (flat, vec![0f64; rank]);
        for axis in (0..rank).rev() {
            places[axis] = (rest % out[axis]) as f64;
            places[axis] = (places[axis] + 0.5) / scale[axis] - 0.5;
            rest /= out[axis];
        }
        let window = 2 * reach as usize;
        let mut sum = 0.0;
        for tap in 0..window.pow(rank as u32) {
            let (mut rest, mut weight, mut at) = (tap, 1.0, 0);
            for axis in 0..rank {
                let index = places[axis].floor() as i64 + 1 - reach + (rest % window) as i64;
                rest /= window;
                weight *= kernel(index as f64 - places[axis]);
                at = at * dims[axis] + index.clamp(0, dims[axis] as i64 - 1) as usize;
            }
            sum += weight * f64::from(x.as_slice()[at]);
        }
        results.push(sum);
    }
    results
}

fn linear(d: f64) -> f64 {
    (1.0 - d.abs()).max(0.0)
}

fn cubic(d: f64) -> f64 {
    let (d, a) = (d.abs(), -0.5);
    match d {
        _ if d <= 1.0 => (a + 2.0) * d.powi(3) - (a + 3.0) * d * d + 1.0,
        _ if d < 2.0 => a * d.powi(3) - 5.0 * a * d * d + 8.0 * a * d - 4.0 * a,
        _ => 0.0,
    }
}

#[test]
fn images_and_lines_follow_the_formula_in_either_order() {
    let mut random = Random(5);
    for (dims, factors) in [
        ([2, 3, 5, 4], [1.0, 1.0, 2.0, 1.75]),
        ([1, 4, 1, 6], [1.0, 1.0, 3.0, 0.5]),
        ([1, 2, 6, 1], [1.0, 1.0, 0.34, 4.0]),
        ([2, 2, 3, 2], [1.0, 2.0, 0.4, 0.5]),
        ([1, 1, 7, 9], [3.0, 1.5, 1.0, 0.2]),
    ] {
        let x = random.tensor(dims, 1.0);
        let exact = factors.map(|f: f32| f64::from(f));
        let out: Vec<usize> = dims.iter().zip(exact).map(|(&d, f)| (d as f64 * f).floor() as usize).collect();
        for (mode, expected) in [
            (ResizeMode::Linear, half_pixel(&x, &out, &exact, 1, linear)),
            (ResizeMode::Cubic(-0.5), half_pixel(&x, &out, &exact, 2, cubic)),
        ] {
            for last in [false, true] {
                let y = run(Resize::new(mode), &x.clone().into(), scales(&factors), last).unwrap();
                assert_eq!(y.shape().dims(), out);
                for (i, (&y, expected)) in y.get::<f32>().unwrap().as_slice().iter().zip(&expected).enumerate() {
                    assert!((f64::from(y) - expected).abs() < 2e-6, "{mode:?} {dims:?} {last} {i}: {y} for {expected}");
                }
            }
        }
    }
}

#[test]
fn the_nearest_element_in_every_mode() {
    let line = tensor(&[4], vec![10i16, 20, 30, 40]);
    let nearest = |mode, coordinates, lists| {
        let resize = Resize::new(ResizeMode::Nearest(mode)).with_coordinates(coordinates);
        run(resize, &line, lists, false).unwrap()
    };
    // Places 0, 0.5, 1, ... of the input.
    let double = |mode| nearest(mode, Coordinates::Asymmetric, scales(&[2.0]));
    assert_eq!(double(NearestMode::Floor), tensor(&[8], vec![10i16, 10, 20, 20, 30, 30, 40, 40]));
    assert_eq!(double(NearestMode::Ceil), tensor(&[8], vec![10i16, 20, 20, 30, 30, 40, 40, 40]));
    assert_eq!(double(NearestMode::RoundPreferFloor), tensor(&[8], vec![10i16, 10, 20, 20, 30, 30, 40, 40]));
    assert_eq!(double(NearestMode::RoundPreferCeil), tensor(&[8], vec![10i16, 20, 20, 30, 30, 40, 40, 40]));
    let corners = nearest(NearestMode::RoundPreferFloor, Coordinates::AlignCorners, sizes(&[2]));
    assert_eq!(corners, tensor(&[2], vec![10i16, 40]));
    let images = Tensor::new([1, 2, 1, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
    for last in [false, true] {
        let resize = Resize::new(ResizeMode::Nearest(NearestMode::Floor)).with_axes([-1, 2]);
        let y = run(resize, &images.clone().into(), sizes(&[3, 2]), last).unwrap();
        let expected = vec![1f32, 1.0, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 3.0, 3.0, 4.0];
        assert_eq!(y, tensor(&[1, 2, 2, 3], expected), "{last}");
    }
    let upsample = |x: &Value| {
        let mut net = Model::builder();
        let (x_edge, s) = (net.input("x", DType::U8, &[Dim::Any]).unwrap(), net.constant("s", tensor(&[1], vec![1.5f32])).unwrap());
        let y = net.add("up", Resize::upsample(ResizeMode::Nearest(NearestMode::Floor)), &[x_edge, s]).unwrap();
        net.output("y", y).unwrap();
        net.build().unwrap().run(&[("x", x)]).unwrap().remove(0).1
    };
    assert_eq!(upsample(&tensor(&[2], vec![7u8, 9])), tensor(&[3], vec![7u8, 7, 9]));
}

#[test]
fn integers_round_and_saturate() {
    let x = tensor(&[2], vec![0u8, 255]);
    let y = run(Resize::new(ResizeMode::Cubic(-0.75)), &x, scales(&[3.0]), false).unwrap();
    // Below 0 and above 255 without the clamp.
    let bytes = y.get::<u8>().unwrap().as_slice();
    assert_eq!((bytes[1], bytes[4], bytes[0], bytes[5]), (0, 255, 0, 255));
    let y = run(Resize::new(ResizeMode::Linear), &tensor(&[2], vec![-3i32, 4]), scales(&[2.0]), false).unwrap();
    assert_eq!(y, tensor(&[4], vec![-3i32, -1, 2, 4]));
}

#[test]
fn crops_policies_and_antialias() {
    let x = tensor(&[5], vec![0f32, 10.0, 20.0, 30.0, 40.0]);
    let crop = Resize::new(ResizeMode::Linear).with_coordinates(Coordinates::TfCropAndResize).with_extrapolation_value(-1.0);
    let region = |start: f32, end: f32| Some(tensor(&[2], vec![start, end]));
    let y = run(crop.clone(), &x, [region(0.5, 1.25), None, Some(tensor(&[1], vec![4i64]))], false).unwrap();
    assert_eq!(y, tensor(&[4], vec![20f32, 30.0, 40.0, -1.0]));
    assert!(run(crop.clone(), &x, sizes(&[4]), false).is_err());
    let huge = run(crop.with_antialias(true), &x, [region(0.0, 1e18), Some(tensor(&[1], vec![1e-17f32])), None], false);
    assert!(huge.is_err());
    let image = Value::from(Tensor::full([1, 1, 4, 8], 1f32).unwrap());
    let sized = |policy| {
        let resize = Resize::new(ResizeMode::Linear).with_policy(policy).with_axes([2, 3]);
        run(resize, &image, sizes(&[6, 6]), false).unwrap().shape().dims().to_vec()
    };
    assert_eq!(sized(AspectPolicy::Stretch), [1, 1, 6, 6]);
    assert_eq!(sized(AspectPolicy::NotLarger), [1, 1, 3, 6]);
    assert_eq!(sized(AspectPolicy::NotSmaller), [1, 1, 6, 12]);
    // Halved with a triangle of twice the width: distances 1/4 and 3/4 of it to both sides.
    let wide = tensor(&[8], vec![0f32, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
    let y = run(Resize::new(ResizeMode::Linear).with_antialias(true), &wide, scales(&[0.5]), false).unwrap();
    assert_eq!(y, tensor(&[4], vec![0f32, 3.0, 1.0, 0.0]));
    let ends = run(Resize::new(ResizeMode::Linear).with_exclude_outside(true), &x, scales(&[2.0]), false).unwrap();
    assert_eq!(ends.get::<f32>().unwrap().as_slice()[..2], [0.0, 2.5]);
}

#[test]
fn impossible_sizes_are_errors() {
    let x = tensor(&[2, 2], vec![0f32; 4]);
    let linear = || Resize::new(ResizeMode::Linear);
    for lists in [
        scales(&[1.0]),
        scales(&[1.0, 0.0]),
        scales(&[1.0, f32::NAN]),
        scales(&[1.0, 1e30]),
        sizes(&[1, -1]),
        sizes(&[i64::MAX, i64::MAX]),
        [None, None, None],
    ] {
        assert!(run(linear(), &x, lists.clone(), false).is_err(), "{lists:?}");
    }
    assert!(run(linear().with_axes([0, 0]), &x, scales(&[1.0, 1.0]), false).is_err());
    assert!(run(linear(), &tensor(&[0], Vec::<f32>::new()), sizes(&[2]), false).is_err());
    assert!(run(linear(), &tensor(&[1], vec![true]), scales(&[2.0]), false).is_err());
    assert_eq!(run(linear(), &x, scales(&[0.2, 1.0]), false).unwrap().shape().dims(), [0, 2]);
}
