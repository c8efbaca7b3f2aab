//! Convolutions whose weights are values, over one to three axes and in every type of floats, against sums written out.

use crate::support::Random;
use lowprec::kernels::{Conv2dGeometry, Padding};
use lowprec::nn::operator::{AutoPad, Conv, ConvTranspose, Windows};
use lowprec::nn::{Conv2d, ConvTranspose2d, Dim, Layer, MaxPool2d, Model, quantized};
use lowprec::num::f16;
use lowprec::{Result, Tensor, Value};

/// Runs one node; `last` leaves the image channels-last before it.
fn run(layer: impl Into<Layer>, inputs: &[Value], last: bool) -> Result<Value> {
    let mut net = Model::builder();
    let names = ["x", "weight", "bias"];
    let mut edges = Vec::new();
    for (name, value) in names.into_iter().zip(inputs) {
        edges.push(net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?);
    }
    if last {
        edges[0] = net.add("last", MaxPool2d::new([1, 1]), &[edges[0]])?;
    }
    let y = net.add("node", layer, &edges)?;
    net.output("y", y)?;
    let given: Vec<(&str, &Value)> = names.into_iter().zip(inputs).collect();
    Ok(net.build()?.run(&given)?.remove(0).1)
}

/// All index vectors below these lengths, the last fastest.
fn indices(lengths: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    (0..lengths.iter().product::<usize>()).map(move |mut flat| {
        let mut index = vec![0; lengths.len()];
        for (index, &length) in index.iter_mut().zip(lengths).rev() {
            (*index, flat) = (flat % length, flat / length);
        }
        index
    })
}

fn flat(index: &[usize], lengths: &[usize]) -> usize {
    index.iter().zip(lengths).fold(0, |at, (i, length)| at * length + i)
}

struct Case {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    stride: Vec<usize>,
    pads: Vec<usize>,
    dilation: Vec<usize>,
}

impl Case {
    fn windows(&self) -> Windows {
        Windows::new().with_strides(self.stride.clone()).with_pads(self.pads.clone()).with_dilations(self.dilation.clone())
    }

    fn inputs(&self) -> [Value; 3] {
        [self.x.clone().into(), self.weight.clone().into(), self.bias.clone().into()]
    }

    /// Of each output of a convolution over `out` positions its value.
    fn convolved(&self, out: &[usize]) -> Vec<f64> {
        let (x, w) = (self.x.dims(), self.weight.dims());
        let (per_in, per_out) = (w[1], w[0] / self.groups);
        let mut result = Vec::new();
        for (image, o) in (0..x[0]).flat_map(|n| (0..w[0]).map(move |o| (n, o))) {
            for at in indices(out) {
                let mut sum = f64::from(self.bias.as_slice()[o]);
                for (i, tap) in (0..per_in).flat_map(|i| indices(&w[2..]).map(move |tap| (i, tap))) {
                    let place: Option<Vec<usize>> = (0..out.len())
                        .map(|a| (at[a] * self.stride[a] + tap[a] * self.dilation[a]).checked_sub(self.pads[a]).filter(|&p| p < x[a + 2]))
                        .collect();
                    if let Some(place) = place {
                        let channel = o / per_out * per_in + i;
                        let from = (image * x[1] + channel) * x[2..].iter().product::<usize>() + flat(&place, &x[2..]);
                        let weight = (o * per_in + i) * w[2..].iter().product::<usize>() + flat(&tap, &w[2..]);
                        sum += f64::from(self.x.as_slice()[from]) * f64::from(self.weight.as_slice()[weight]);
                    }
                }
                result.push(sum);
            }
        }
        result
    }
}

fn cases() -> Vec<Case> {
    let mut random = Random(21);
    let mut case = |x: &[usize], w: &[usize], groups: usize, stride: &[usize], pads: &[usize], dilation: &[usize]| {
        let mut tensor = |dims: &[usize]| {
            let flat = random.tensor([dims.iter().product()], 1.0);
            flat.reshape(dims.to_vec()).unwrap()
        };
        let (x, weight, bias) = (tensor(x), tensor(w), tensor(&[w[0]]));
        Case { x, weight, bias, groups, stride: stride.into(), pads: pads.into(), dilation: dilation.into() }
    };
    vec![
        case(&[2, 6, 11], &[4, 3, 3], 2, &[2], &[3, 0], &[2]),
        case(&[1, 5, 7], &[33, 5, 1], 1, &[1], &[0, 0], &[1]),
        case(&[2, 4, 6, 5], &[6, 2, 3, 2], 2, &[1, 2], &[2, 0, 1, 3], &[1, 2]),
        case(&[1, 8, 5, 5], &[8, 1, 3, 3], 8, &[1, 1], &[1, 1, 1, 1], &[1, 1]),
        case(&[2, 4, 4, 5, 3], &[6, 2, 2, 3, 1], 2, &[1, 2, 1], &[1, 1, 0, 0, 1, 2], &[2, 1, 1]),
        case(&[1, 70, 2, 3, 4], &[5, 70, 2, 2, 2], 1, &[1; 3], &[0; 6], &[1; 3]),
    ]
}

fn wide(value: &Value) -> Vec<f64> {
    match value {
        Value::F32(x) => x.as_slice().iter().map(|&x| x.into()).collect(),
        Value::F64(x) => x.as_slice().to_vec(),
        Value::F16(x) => x.as_slice().iter().map(|x| x.to_f64()).collect(),
        other => panic!("{}", other.dtype()),
    }
}

fn near(y: &Value, expected: &[f64], relative: f64) {
    let y = wide(y);
    assert_eq!(y.len(), expected.len());
    for (i, (y, e)) in y.iter().zip(expected).enumerate() {
        assert!((y - e).abs() <= relative * (10.0 + e.abs()), "{i}: {y} for {e}");
    }
}

#[test]
fn convolutions_over_any_axes() {
    for case in cases() {
        let conv = Conv::new(case.groups).with_windows(case.windows());
        for last in [false, true] {
            if last && case.x.dims().len() != 4 {
                continue;
            }
            let y = run(conv.clone(), &case.inputs(), last).unwrap();
            near(&y, &case.convolved(&y.shape().dims()[2..]), 1e-6);
        }
        let doubles = case.inputs().map(|v| Value::F64(Tensor::new(v.shape().dims(), wide(&v)).unwrap()));
        let y = run(conv.clone(), &doubles, false).unwrap();
        near(&y, &case.convolved(&y.shape().dims()[2..]), 1e-14);
        let half = |x: &f64| f16::from_f64(*x);
        let halves = case.inputs().map(|v| Value::from(Tensor::new(v.shape().dims(), wide(&v).iter().map(half).collect()).unwrap()));
        let y = run(conv, &halves, false).unwrap();
        near(&y, &case.convolved(&y.shape().dims()[2..]), 2e-3);
    }
}

/// `Σ y · conv(x) = Σ x · transposed(y)` for every y: a transposed convolution is what its name says.
#[test]
fn transposed_convolutions_are_transposed() {
    for case in cases() {
        let zero = Tensor::full([case.weight.dims()[0]], 0f32).unwrap();
        let forward = [case.x.clone().into(), case.weight.clone().into(), zero.into()];
        let y = run(Conv::new(case.groups).with_windows(case.windows()), &forward, false).unwrap();
        let seed = Random(3).tensor([y.shape().elements()], 1.0).reshape(y.shape().dims()).unwrap();
        // What the windows left over at the end is padding of the output.
        let mut more = Vec::new();
        for axis in 0..case.stride.len() {
            let whole = case.x.dims()[axis + 2] + case.pads[axis] + case.pads[axis + case.stride.len()];
            let extent = (case.weight.dims()[axis + 2] - 1) * case.dilation[axis] + 1;
            more.push((whole - extent) % case.stride[axis]);
        }
        let back = ConvTranspose::new(case.groups).with_windows(case.windows()).with_output_padding(more);
        let inputs: [Value; 2] = [seed.clone().into(), case.weight.clone().into()];
        let x = run(back.clone(), &inputs, false).unwrap();
        assert_eq!(x.shape().dims(), case.x.dims());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (left, right) = (dot(&wide(&seed.clone().into()), &wide(&y)), dot(&wide(&case.x.clone().into()), &wide(&x)));
        assert!((left - right).abs() < 1e-4 * (1.0 + left.abs()), "{left} and {right}");
        let doubles = inputs.map(|v| Value::F64(Tensor::new(v.shape().dims(), wide(&v)).unwrap()));
        near(&run(back, &doubles, false).unwrap(), &wide(&x), 1e-6);
    }
}

#[test]
fn the_layer_and_the_operator_agree() {
    let mut random = Random(31);
    let (x, weight, bias) = (random.tensor([2, 4, 5, 3], 1.0), random.tensor([4, 3, 3, 2], 1.0), random.tensor([6], 1.0));
    for auto_pad in [AutoPad::NotSet, AutoPad::Valid, AutoPad::SameUpper, AutoPad::SameLower] {
        let windows = Windows::new().with_strides([2, 3]).with_pads([1, 0, 0, 1]).with_auto_pad(auto_pad);
        let operator = ConvTranspose::new(2).with_windows(windows).with_output_padding([1, 0]);
        let padding = operator.padding(&[5, 3], &[3, 2]).unwrap();
        let [[top, bottom, below], [left, right, beside]] = padding[..] else { panic!("{padding:?}") };
        let geometry = Conv2dGeometry::new(4, 6, [3, 2]).with_groups(2).with_stride([2, 3]).with_padding([top, left, bottom, right]);
        let layer = ConvTranspose2d::new(geometry, weight.clone(), Some(bias.clone())).unwrap().with_output_padding([below, beside]);
        let (a, b) = (run(layer, &[x.clone().into()], false).unwrap(), [x.clone().into(), weight.clone().into(), bias.clone().into()]);
        let b = run(operator, &b, true).unwrap();
        assert_eq!(a.shape(), b.shape(), "{auto_pad:?}");
        near(&b, &wide(&a), 1e-6);
    }
}

#[test]
fn a_layer_pads_by_the_operators_rule() {
    let mut random = Random(57);
    let (weight, bias) = (random.tensor([6, 2, 3, 4], 1.0), random.tensor([6], 1.0));
    let stride = [2, 3];
    for (auto_pad, padding) in [(AutoPad::SameUpper, Padding::SameUpper), (AutoPad::SameLower, Padding::SameLower)] {
        let windows = Windows::new().with_strides(stride).with_dilations([2, 1]).with_auto_pad(auto_pad);
        let operator = Conv::new(2).with_windows(windows);
        let geometry = Conv2dGeometry::new(4, 6, [3, 4]).with_groups(2).with_stride(stride).with_dilation([2, 1]).with_padding(padding);
        let layer = Conv2d::new(geometry.clone(), weight.clone(), Some(bias.clone())).unwrap();
        let quantized = quantized::Conv2d::from_slices(&geometry, weight.as_slice(), Some(bias.as_slice())).unwrap();
        // One padding for each size: more than the image, odd, even, none.
        for [h, w] in [[1, 1], [2, 3], [5, 4], [7, 9], [8, 10], [9, 12]] {
            let x = random.tensor([2, 4, h, w], 1.0);
            let inputs = [x.clone().into(), weight.clone().into(), bias.clone().into()];
            let expected = run(operator.clone(), &inputs, true).unwrap();
            assert_eq!(expected.shape().dims(), [2, 6, h.div_ceil(stride[0]), w.div_ceil(stride[1])]);
            let y = run(layer.clone(), &[x.clone().into()], false).unwrap();
            assert_eq!(y.shape(), expected.shape());
            near(&y, &wide(&expected), 1e-6);
            let y = wide(&run(quantized.clone(), &[x.into()], false).unwrap());
            let expected = wide(&expected);
            let (error, energy) = y.iter().zip(&expected).fold((0.0, 0.0), |(e, s), (y, x)| (e + (y - x).powi(2), s + x * x));
            assert!(error < energy * 1e-3, "{auto_pad:?} {h} x {w}: {error} of {energy}");
        }
    }
    let transposed = Conv2dGeometry::new(4, 6, [3, 3]).with_padding(Padding::SameUpper);
    let refused = ConvTranspose2d::new(transposed, random.tensor([4, 6, 3, 3], 1.0), None).unwrap_err().to_string();
    assert!(refused.contains("must be fixed"), "{refused}");
}

#[test]
fn impossible_convolutions_are_errors() {
    let x: Value = Tensor::full([1, 4, 5], 0f32).unwrap().into();
    let weight = |dims: [usize; 3]| Value::from(Tensor::full(dims, 0f32).unwrap());
    let conv = |groups: usize, dims: [usize; 3]| run(Conv::new(groups), &[x.clone(), weight(dims)], false);
    assert!(conv(1, [2, 4, 3]).is_ok());
    for (groups, dims) in [(1, [2, 3, 3]), (2, [3, 2, 3]), (0, [2, 4, 3]), (1, [2, 4, 6]), (1, [2, 4, 0])] {
        assert!(conv(groups, dims).is_err(), "{groups} {dims:?}");
    }
    let back = |transposed: ConvTranspose, dims: [usize; 3]| run(transposed, &[x.clone(), weight(dims)], false);
    assert!(back(ConvTranspose::new(1), [4, 2, 3]).is_ok());
    assert!(back(ConvTranspose::new(1), [3, 2, 3]).is_err());
    assert!(back(ConvTranspose::new(3), [4, 2, 3]).is_err());
    assert!(back(ConvTranspose::new(1).with_output_padding([1, 1]), [4, 2, 3]).is_err());
    assert!(back(ConvTranspose::new(1).with_windows(Windows::new().with_pads([5, 9])), [4, 2, 3]).is_err());
    assert!(back(ConvTranspose::new(1).with_windows(Windows::new().with_strides([usize::MAX])), [4, 2, 3]).is_err());
    assert_eq!(back(ConvTranspose::new(1).with_output_shape([9]), [4, 2, 3]).unwrap().shape().dims(), [1, 2, 9]);
    let ints: Value = Tensor::full([1, 4, 5], 0i32).unwrap().into();
    assert!(run(Conv::new(1), &[ints.clone(), ints], false).is_err());
}
