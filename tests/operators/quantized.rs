//! Operators from codes to codes against loops written from their formulas, in both orders of images.

use crate::nodes::{filled, node, of, value};
use lowprec::kernels::reference;
use lowprec::nn::operator::{
    AutoPad, CodeTable, Concat, DequantizeLinear, Flatten, NearestMode, Pad, PadMode, Pool, QuantizeLinear, QuantizedAdd, QuantizedAvgPool,
    QuantizedGlobalAvgPool, QuantizedMaxPool, QuantizedMul, Resize, ResizeMode, Slice, Transpose, Windows,
};
use lowprec::nn::{AvgPool2d, Dim, Executor, Layer, MaxPool2d, Model, Precision};
use lowprec::num::{U8Grid, dequantize, quantize};
use lowprec::{DType, Error, LayerKind, Result, Value};
use proptest::prelude::*;

fn grid(scale: f32, zero_point: u8) -> U8Grid {
    U8Grid::new(scale, zero_point).unwrap()
}

/// Codes that look random.
fn codes(dims: &[usize], seed: usize) -> Value {
    filled(dims, |i| (((i + 977 * seed) * 2_654_435_761) >> 7) as u8)
}

/// The first output of a node on so many threads, with every image of codes lying channels-last if so said.
fn run(layer: impl Into<Layer>, inputs: &[&Value], channels_last: bool, threads: usize) -> Result<Value> {
    let mut net = Model::builder();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("input {i}")).collect();
    let mut edges = Vec::new();
    for (name, value) in names.iter().zip(inputs) {
        let mut edge = net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()])?;
        if channels_last && value.shape().rank() == 4 && value.dtype() == DType::U8 {
            edge = net.add(&format!("{name} as image"), QuantizedMaxPool::new(MaxPool2d::new([1, 1]))?, &[edge])?;
        }
        edges.push(edge);
    }
    let edge = net.add("node", layer.into(), &edges)?;
    net.output("y", edge)?;
    let given: Vec<(&str, &Value)> = names.iter().map(String::as_str).zip(inputs.iter().copied()).collect();
    Ok(Executor::new(&net.build()?).with_threads(threads)?.run(&given)?.remove(0).1)
}

/// [`run`], the same whichever way images lie.
#[track_caller]
fn both(layer: impl Into<Layer>, inputs: &[&Value]) -> Value {
    let layer = layer.into();
    let y = run(layer.clone(), inputs, false, 1).unwrap();
    assert_eq!(run(layer, inputs, true, 1).unwrap(), y, "channels-last");
    y
}

/// The elements of `x` as they stand under a larger shape.
fn spread(x: &Value, dims: &[usize]) -> Vec<u8> {
    let (own, more) = (x.shape().dims(), dims.len() - x.shape().rank());
    let index = |mut i: usize| {
        let (mut index, mut step) = (0, 1);
        for axis in (0..dims.len()).rev() {
            let at = i % dims[axis];
            i /= dims[axis];
            if axis >= more && own[axis - more] > 1 {
                index += at * step;
                step *= own[axis - more];
            }
        }
        index
    };
    (0..dims.iter().product()).map(|i| of::<u8>(x)[index(i)]).collect()
}

#[test]
fn operands_broadcast() {
    let (a, b, out) = (grid(0.03, 120), grid(0.05, 3), grid(0.06, 77));
    for (left, right, dims) in [
        (&[2, 3, 5, 7][..], &[2, 3, 5, 7][..], &[2, 3, 5, 7][..]),
        (&[2, 19, 5, 7], &[2, 19, 1, 1], &[2, 19, 5, 7]),
        (&[2, 19, 1, 1], &[2, 19, 5, 7], &[2, 19, 5, 7]),
        (&[1, 70, 6, 6], &[1, 70, 1, 1], &[1, 70, 6, 6]),
        (&[2, 3, 5, 7], &[7], &[2, 3, 5, 7]),
        (&[2, 3, 1, 7], &[1, 3, 5, 1], &[2, 3, 5, 7]),
        (&[2, 3, 5, 7], &[1], &[2, 3, 5, 7]),
        (&[], &[4, 65], &[4, 65]),
        (&[], &[], &[]),
        (&[3, 1, 2], &[4, 1], &[3, 4, 2]),
        (&[0, 3, 5, 7], &[3, 1, 1], &[0, 3, 5, 7]),
    ] {
        let (x, z) = (codes(left, 1), codes(right, 2));
        let (xs, zs) = (spread(&x, dims), spread(&z, dims));
        let sum = both(QuantizedAdd::new(a, b, out).unwrap(), &[&x, &z]);
        assert_eq!(sum, value(dims, reference::add_codes(&xs, &zs, [a, b, out], [0, 255])), "{left:?} + {right:?}");
        let relu = both(QuantizedAdd::new(a, b, out).unwrap().with_range(77, 200).unwrap(), &[&x, &z]);
        assert_eq!(relu, value(dims, reference::add_codes(&xs, &zs, [a, b, out], [77, 200])));
        let product = both(QuantizedMul::new(a, b, out).unwrap().with_range(10, 240).unwrap(), &[&x, &z]);
        assert_eq!(product, value(dims, reference::multiply_codes(&xs, &zs, [a, b, out], [10, 240])), "{left:?} * {right:?}");
    }
    assert!(run(QuantizedAdd::new(a, b, out).unwrap(), &[&codes(&[2, 3], 1), &codes(&[2], 2)], false, 1).is_err());
}

#[test]
fn values_are_met_within_half_a_step() {
    let (a, b, out) = (grid(0.02, 100), grid(0.03, 30), grid(0.1, 60));
    let (x, z) = (codes(&[500], 1), codes(&[500], 2));
    let (sum, product) = (
        node(QuantizedAdd::new(a, b, out).unwrap(), &[Some(&x), Some(&z)]).unwrap().remove(0),
        node(QuantizedMul::new(a, b, out).unwrap(), &[Some(&x), Some(&z)]).unwrap().remove(0),
    );
    for i in 0..500 {
        let (x, z) = (a.dequantize(of::<u8>(&x)[i]), b.dequantize(of::<u8>(&z)[i]));
        let near = |code: u8, value: f32| (out.dequantize(code) - value.clamp(-6.0, 19.5)).abs() < 0.0501;
        assert!(near(of::<u8>(&sum)[i], x + z), "{x} + {z}");
        assert!(near(of::<u8>(&product)[i], x * z), "{x} * {z}");
    }
}

#[test]
fn tables_hold_any_function() {
    let (x, y) = (grid(0.05, 128), grid(1.0 / 256.0, 0));
    let all = filled(&[1, 4, 8, 8], |i| i as u8);
    let sigmoid = both(CodeTable::of("Sigmoid", x, y, |x| 1.0 / (1.0 + (-x).exp())), &[&all]);
    for (code, &got) in of::<u8>(&sigmoid).iter().enumerate() {
        let exact = 256.0 / (1.0 + (-0.05 * (code as f64 - 128.0)).exp());
        assert!((f64::from(got) - exact.min(255.0)).abs() < 0.5001, "{code}: {got} not {exact}");
    }
    // 0 / 0 is the zero point, x / 0 the end of the grid on its side.
    let poles = CodeTable::of("Div", grid(1.0, 2), grid(1.0, 9), |x| x / 0.0);
    assert_eq!(poles.table()[..4], [0, 0, 9, 255]);
    let wider = CodeTable::requantize(grid(0.5, 10), grid(1.0, 100));
    assert_eq!([9, 10, 11, 12, 13].map(|code| wider.table()[code]), [100, 100, 100, 101, 102]);
    let reversed: [u8; 256] = std::array::from_fn(|i| 255 - i as u8);
    assert_eq!(both(CodeTable::new("Neg", reversed), &[&all]), filled(&[1, 4, 8, 8], |i| 255 - i as u8));
}

/// Windows along one axis: those of `along[0]` pixels, `stride`, `dilation`, padding before and after.
#[derive(Debug, Clone, Copy)]
struct Along {
    kernel: usize,
    stride: usize,
    dilation: usize,
    pads: [usize; 2],
}

impl Along {
    /// Pixels of window `i` inside an axis of this length, and how many there are with the padding.
    fn taps(&self, i: usize, length: usize) -> (Vec<usize>, usize) {
        let at = (0..self.kernel).map(|k| i * self.stride + k * self.dilation).filter(|&at| at < length + self.pads[0] + self.pads[1]);
        let inside = at.clone().filter(|&at| (self.pads[0]..self.pads[0] + length).contains(&at)).map(|at| at - self.pads[0]);
        (inside.collect(), at.count())
    }
}

/// What `f` makes of each window's codes and its number of pixels with the padding.
fn pooled(x: &Value, y: &Value, axes: [Along; 2], mut f: impl FnMut(&[u8], usize) -> u8) -> Value {
    let (&[_, c, h, w], &[_, _, oh, ow]) = (x.shape().dims(), y.shape().dims()) else { panic!("images") };
    filled(y.shape().dims(), |i| {
        let (ox, oy, channel, n) = (i % ow, i / ow % oh, i / ow / oh % c, i / ow / oh / c);
        let ((rows, down), (columns, across)) = (axes[0].taps(oy, h), axes[1].taps(ox, w));
        let inside: Vec<u8> = rows
            .iter()
            .flat_map(|&y| columns.iter().map(move |&x| (y, x)))
            .map(|(row, column)| of::<u8>(x)[((n * c + channel) * h + row) * w + column])
            .collect();
        f(&inside, down * across)
    })
}

fn along() -> impl Strategy<Value = Along> {
    (1usize..4, 1usize..4, 1usize..3, [0usize..3, 0..3]).prop_map(|(kernel, stride, dilation, pads)| Along {
        kernel,
        stride,
        dilation,
        pads,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn pools_are_what_their_formulas_say(
        dims in (1usize..3, 1usize..70, 5usize..9, 5usize..9),
        axes in [along(), along()],
        ceil in any::<bool>(),
        include_pad in any::<bool>(),
        scales in (0.1f32..10.0, 0.1f32..10.0),
        zeros in [any::<u8>(), any::<u8>()],
        threads in 1usize..4,
    ) {
        let x = codes(&[dims.0, dims.1, dims.2, dims.3], dims.1);
        let [down, across] = axes;
        let windows = Windows::new()
            .with_strides([down.stride, across.stride])
            .with_pads([down.pads[0], across.pads[0], down.pads[1], across.pads[1]])
            .with_dilations([down.dilation, across.dilation])
            .with_ceil_mode(ceil);
        let kernel = [down.kernel, across.kernel];
        let max = Pool::max(kernel).with_windows(windows.clone());
        let got = run(QuantizedMaxPool::new(max.clone()).unwrap(), &[&x], false, threads).unwrap();
        prop_assert_eq!(&got, &pooled(&x, &got, axes, |inside, _| inside.iter().copied().max().unwrap_or(0)));
        prop_assert_eq!(&run(max, &[&x], true, threads).unwrap(), &got);
        let (from, to) = (grid(scales.0, zeros[0]), grid(scales.1, zeros[1]));
        let average = Pool::average(kernel).with_windows(windows).with_count_include_pad(include_pad);
        let got = run(QuantizedAvgPool::new(average, from, to).unwrap(), &[&x], true, threads).unwrap();
        let expected = pooled(&x, &got, axes, |inside, padded| {
            reference::mean_code(inside.iter().copied(), if include_pad { padded } else { inside.len() }, from, to)
        });
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn layers_of_images_become_their_operators() {
    let x = codes(&[2, 21, 9, 8], 4);
    let axis = |kernel, stride, pads| Along { kernel, stride, dilation: 1, pads };
    let axes = [axis(3, 2, [1, 1]), axis(2, 1, [0, 1])];
    let max = MaxPool2d::new([3, 2]).with_stride([2, 1]).with_padding([1, 0, 1, 1]);
    let got = both(QuantizedMaxPool::new(max).unwrap(), &[&x]);
    assert_eq!(got.shape().dims(), [2, 21, 5, 8]);
    assert_eq!(got, pooled(&x, &got, axes, |inside, _| inside.iter().copied().max().unwrap()));
    let (from, to) = (grid(0.2, 30), grid(0.1, 9));
    for include_pad in [false, true] {
        let pool = AvgPool2d::new([3, 2]).with_stride([2, 1]).with_padding([1, 0, 1, 1]).with_ceil_mode(true);
        let pool = pool.with_count_include_pad(include_pad);
        let got = both(QuantizedAvgPool::new(pool, from, to).unwrap(), &[&x]);
        let count = |inside: &[u8], padded| if include_pad { padded } else { inside.len() };
        assert_eq!(
            got,
            pooled(&x, &got, axes, |inside, padded| reference::mean_code(inside.iter().copied(), count(inside, padded), from, to))
        );
    }
    // Padding that counts is zero: of codes, the zero point.
    let corner =
        both(QuantizedAvgPool::new(AvgPool2d::new([2, 2]).with_padding([1; 4]), from, from).unwrap(), &[&filled(&[1, 1, 1, 1], |_| 70u8)]);
    assert_eq!(corner, value(&[1, 1, 1, 1], vec![40u8]));
    let same = Windows::new().with_strides([2, 2]).with_auto_pad(AutoPad::SameUpper);
    let got = both(QuantizedMaxPool::new(Pool::max([3, 3]).with_windows(same)).unwrap(), &[&x]);
    assert_eq!(got, pooled(&x, &got, [axis(3, 2, [1, 1]), axis(3, 2, [0, 1])], |inside, _| inside.iter().copied().max().unwrap()));
    // Other numbers of spatial axes have a largest code too.
    let line = value(&[1, 1, 4], vec![3u8, 9, 200, 1]);
    assert_eq!(both(QuantizedMaxPool::new(Pool::max([2])).unwrap(), &[&line]), value(&[1, 1, 3], vec![9u8, 200, 200]));
}

#[test]
fn channels_have_means() {
    let (from, to) = (grid(0.2, 200), grid(0.05, 9));
    for dims in [&[2usize, 3, 5, 7][..], &[1, 70, 7, 7], &[2, 9, 1, 1], &[2, 5, 11], &[1, 2, 3, 4, 5]] {
        let x = codes(dims, 3);
        let got = both(QuantizedGlobalAvgPool::new(from, to).unwrap(), &[&x]);
        let size: usize = dims[2..].iter().product();
        let expected = of::<u8>(&x).chunks(size).map(|x| reference::mean_code(x.iter().copied(), size, from, to)).collect();
        let mut pooled = vec![1; dims.len()];
        pooled[..2].copy_from_slice(&dims[..2]);
        assert_eq!(got, value(&pooled, expected));
    }
    // 17 million pixels have a sum beyond i32.
    let (large, small) = (codes(&[1, 1, 4200, 4100], 3), grid(1.0, 0));
    let expected = reference::mean_code(of::<u8>(&large).iter().copied(), 4200 * 4100, small, small);
    assert_eq!(of::<u8>(&both(QuantizedGlobalAvgPool::new(small, small).unwrap(), &[&large])), [expected]);
    let whole = QuantizedAvgPool::new(AvgPool2d::new([4200, 4100]), small, small).unwrap();
    assert_eq!(of::<u8>(&run(whole, &[&large], true, 1).unwrap()), [expected]);
    let none = codes(&[2, 3, 0, 4], 1);
    assert!(run(QuantizedGlobalAvgPool::new(from, to).unwrap(), &[&none], false, 1).is_err());
}

#[test]
fn large_images_on_threads() {
    let (x, z) = (codes(&[2, 24, 96, 90], 1), codes(&[2, 24, 1, 1], 2));
    let (a, b) = (grid(0.2, 20), grid(0.3, 130));
    let layers: Vec<(Layer, Vec<&Value>)> = vec![
        (QuantizedAdd::new(a, b, b).unwrap().into(), vec![&x, &x]),
        (QuantizedMul::new(a, b, b).unwrap().into(), vec![&x, &z]),
        (CodeTable::requantize(a, b).into(), vec![&x]),
        (QuantizedMaxPool::new(MaxPool2d::new([3, 3]).with_stride([2, 2])).unwrap().into(), vec![&x]),
        (QuantizedAvgPool::new(AvgPool2d::new([3, 3]), a, b).unwrap().into(), vec![&x]),
        (QuantizedGlobalAvgPool::new(a, b).unwrap().into(), vec![&x]),
    ];
    for (layer, inputs) in layers {
        let alone = run(layer.clone(), &inputs, true, 1).unwrap();
        for threads in [2, 3] {
            assert!(run(layer.clone(), &inputs, true, threads).unwrap() == alone, "{} on {threads} threads", layer.kind());
        }
    }
}

#[test]
fn kinds_and_precision() {
    let g = grid(1.0, 0);
    let layers: [(Layer, &'static str); 6] = [
        (QuantizedAdd::new(g, g, g).unwrap().into(), "Add"),
        (QuantizedMul::new(g, g, g).unwrap().into(), "Mul"),
        (CodeTable::new("Gelu", [0; 256]).into(), "Gelu"),
        (QuantizedMaxPool::new(MaxPool2d::new([2, 2])).unwrap().into(), "MaxPool"),
        (QuantizedAvgPool::new(AvgPool2d::new([2, 2]), g, g).unwrap().into(), "AveragePool"),
        (QuantizedGlobalAvgPool::new(g, g).unwrap().into(), "GlobalAveragePool"),
    ];
    let x = value(&[1, 1, 2, 2], vec![0f32; 4]);
    for (layer, name) in layers {
        assert_eq!((layer.kind(), layer.precision()), (LayerKind::Operator(name), Precision::Int8));
        let inputs = vec![&x; if matches!(name, "Add" | "Mul") { 2 } else { 1 }];
        let error = run(layer, &inputs, false, 1).unwrap_err().to_string();
        assert!(error.contains("u8") && error.contains("f32"), "{error}");
    }
    assert_eq!(Layer::from(Pool::max([2, 2])).precision(), Precision::F32);
    let unsupported = [
        QuantizedMaxPool::new(Pool::average([2, 2])).map(drop),
        QuantizedMaxPool::new(Pool::max([2, 2]).with_indices(false)).map(drop),
        QuantizedAvgPool::new(Pool::max([2, 2]), g, g).map(drop),
        QuantizedAvgPool::new(Pool::average([2]), g, g).map(drop),
    ];
    assert!(unsupported.iter().all(|result| matches!(result, Err(Error::Unsupported { .. }))));
    assert!(matches!(QuantizedAvgPool::new(AvgPool2d::new([2, 2]), grid(1e30, 0), grid(1e-30, 0)), Err(Error::Parameter { .. })));
    assert!(run(QuantizedAvgPool::new(AvgPool2d::new([3, 3]), g, g).unwrap(), &[&codes(&[1, 1, 2, 2], 1)], false, 1).is_err());
}

#[test]
fn floats_become_codes_and_back_along_any_axis() {
    let dims = [2usize, 20, 3, 17];
    let x = crate::nodes::noise(&dims, 3);
    for axis in [1i64, 3, -2, 0] {
        let at = axis.rem_euclid(4) as usize;
        let (length, inner) = (dims[at], dims[at + 1..].iter().product::<usize>());
        let scales: Vec<f32> = (0..length).map(|i| 0.01 + i as f32 * 0.003).collect();
        let zeros: Vec<i32> = (0..length).map(|i| (i * 37 % 256) as i32 - 128).collect();
        let scale = value(&[length], scales.clone());
        for offset in [0, 128] {
            let place = |i: usize| i / inner % length;
            let code = |i: usize| quantize(of::<f32>(&x)[i], scales[place(i)], zeros[place(i)] + offset, offset - 128, offset + 127);
            let number = |i: usize| dequantize(code(i), scales[place(i)], zeros[place(i)] + offset);
            let (zero, codes) = match offset {
                0 => (filled(&[length], |i| zeros[i] as i8), filled(&dims, |i| code(i) as i8)),
                _ => (filled(&[length], |i| (zeros[i] + 128) as u8), filled(&dims, |i| code(i) as u8)),
            };
            assert_eq!(crate::nodes::both(QuantizeLinear::new(axis, 0, None), &[&x, &scale, &zero]), codes, "axis {axis}");
            assert_eq!(both(DequantizeLinear::new(axis, 0, None), &[&codes, &scale, &zero]), filled(&dims, number), "axis {axis}");
        }
        let symmetric = |i: usize| quantize(of::<f32>(&x)[i], scales[i / inner % length], 0, 0, 255);
        let codes = filled(&dims, |i| symmetric(i) as u8);
        assert_eq!(crate::nodes::both(QuantizeLinear::new(axis, 0, None), &[&x, &scale]), codes);
        assert_eq!(
            both(DequantizeLinear::new(axis, 0, None), &[&codes, &scale]),
            filled(&dims, |i| dequantize(symmetric(i), scales[i / inner % length], 0))
        );
    }
    // One scale for all, on threads too.
    let x = crate::nodes::noise(&[3, 50, 31, 29], 5);
    for (scale, zero) in [(value(&[], vec![0.02f32]), value(&[], vec![-7i8])), (value(&[1], vec![0.02f32]), value(&[1], vec![-7i8]))] {
        let code = |i: usize| quantize(of::<f32>(&x)[i], 0.02, -7, -128, 127) as i8;
        let codes = filled(&[3, 50, 31, 29], code);
        for threads in [1, 3] {
            assert_eq!(run(QuantizeLinear::new(1, 0, None), &[&x, &scale, &zero], false, threads).unwrap(), codes);
            let back = filled(&[3, 50, 31, 29], |i| dequantize(code(i).into(), 0.02, -7));
            assert_eq!(run(DequantizeLinear::new(1, 0, None), &[&codes, &scale, &zero], false, threads).unwrap(), back);
        }
    }
    // Blocks along the channels of an image.
    let x = crate::nodes::noise(&[2, 6, 3, 4], 2);
    let scale = filled(&[2, 2, 3, 4], |i| 0.01 + i as f32 * 0.002);
    let place = |i: usize| (i / 72 * 2 + i / 12 % 6 / 3) * 12 + i % 12;
    let codes = filled(&[2, 6, 3, 4], |i| quantize(of::<f32>(&x)[i], of::<f32>(&scale)[place(i)], 0, 0, 255) as u8);
    assert_eq!(crate::nodes::both(QuantizeLinear::new(1, 3, None), &[&x, &scale]), codes);
}

#[test]
fn codes_move_as_any_elements_do() {
    let x = codes(&[2, 6, 4, 5], 1);
    let other = codes(&[2, 3, 4, 5], 2);
    let at = |x: &Value, [n, c, h, w]: [usize; 4]| {
        let dims = x.shape().dims();
        of::<u8>(x)[((n * dims[1] + c) * dims[2] + h) * dims[3] + w]
    };
    let index = |i: usize, dims: [usize; 4]| {
        [i / (dims[1] * dims[2] * dims[3]), i / (dims[2] * dims[3]) % dims[1], i / dims[3] % dims[2], i % dims[3]]
    };
    let images = |dims: [usize; 4], f: &dyn Fn([usize; 4]) -> u8| filled(&dims, |i| f(index(i, dims)));
    let concat = |[n, c, h, w]: [usize; 4]| if c < 6 { at(&x, [n, c, h, w]) } else { at(&other, [n, c - 6, h, w]) };
    assert_eq!(both(Concat::new(1), &[&x, &other]), images([2, 9, 4, 5], &concat));
    let slice = Slice::new().with_range([2, 1], [5, 4]).with_axes([1, 3]);
    assert_eq!(both(slice, &[&x]), images([2, 3, 4, 3], &|[n, c, h, w]| at(&x, [n, c + 2, h, w + 1])));
    let pad = Pad::new(PadMode::Constant).with_pads([0, 0, 1, 0, 0, 0, 0, 2]).with_value(value(&[], vec![128u8]));
    let padded = |[n, c, h, w]: [usize; 4]| if h == 0 || w >= 5 { 128 } else { at(&x, [n, c, h - 1, w]) };
    assert_eq!(both(pad, &[&x]), images([2, 6, 5, 7], &padded));
    let transposed = both(Transpose::new().with_perm([0, 2, 3, 1]), &[&x]);
    assert_eq!(transposed, images([2, 4, 5, 6], &|[n, h, w, c]| at(&x, [n, c, h, w])));
    assert_eq!(both(Flatten::new(1), &[&x]), x.reshape([2, 120]).unwrap());
    let twice = Resize::new(ResizeMode::Nearest(NearestMode::default())).with_scales([1.0, 1.0, 2.0, 2.0]);
    assert_eq!(both(twice, &[&x]), images([2, 6, 8, 10], &|[n, c, h, w]| at(&x, [n, c, h / 2, w / 2])));
}
