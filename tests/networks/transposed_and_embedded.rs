//! Transposed convolutions and embeddings, in float and in int8, against sums written out.

use crate::support::Random;
use lowprec::kernels::{Conv2dGeometry, Isa, Workspace};
use lowprec::nn::quantized::{self, DynamicScheme};
use lowprec::nn::{ConvTranspose2d, Dim, Embedding, Executor, Layer, LayerKind, Linear, Model};
use lowprec::num::{affine_qparams, quantize};
use lowprec::{DType, Error, Precision, Tensor, Value, quantize_dynamic};

/// Geometry, output padding, and rows and columns of an input.
fn cases() -> Vec<(Conv2dGeometry, [usize; 2], [usize; 2])> {
    let of = |i, o, kernel| Conv2dGeometry::new(i, o, kernel);
    vec![
        (of(3, 5, [2, 2]).with_stride([2, 2]), [0, 0], [4, 5]),
        (of(16, 8, [4, 4]).with_stride([2, 2]).with_padding([1; 4]), [0, 0], [7, 6]),
        (of(4, 6, [3, 2]).with_stride([3, 1]).with_padding([1, 0, 0, 1]).with_dilation([1, 2]).with_groups(2), [2, 0], [3, 4]),
        (of(6, 6, [3, 3]).with_stride([2, 2]).with_padding([1; 4]).with_groups(6), [1, 1], [5, 3]),
        (of(1, 1, [1, 5]).with_stride([4, 3]), [3, 1], [2, 1]),
        (of(7, 130, [3, 3]).with_dilation([2, 1]), [0, 0], [33, 29]),
    ]
}

/// The sum of products of each output `[n, out, oh, ow]`, and that of their magnitudes.
fn sums(geometry: &Conv2dGeometry, [oh, ow]: [usize; 2], (x, [n, h, w]): (&[f64], [usize; 3]), weight: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Conv2dGeometry { in_channels, out_channels, kernel: [kh, kw], stride, dilation, groups, .. } = *geometry;
    let padding = geometry.pads(h, w).unwrap();
    let (per_in, per_out) = (in_channels / groups, out_channels / groups);
    let mut y = vec![0f64; n * out_channels * oh * ow];
    let mut magnitude = y.clone();
    for image in 0..n {
        for (i, o) in (0..in_channels).flat_map(|i| (0..per_out).map(move |o| (i, o))) {
            for (iy, ix) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                for (ky, kx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                    let at =
                        |pixel: usize, tap: usize, axis: usize| (pixel * stride[axis] + tap * dilation[axis]) as i64 - padding[axis] as i64;
                    let (oy, ox) = (at(iy, ky, 0), at(ix, kx, 1));
                    if (0..oh as i64).contains(&oy) && (0..ow as i64).contains(&ox) {
                        let channel = i / per_in * per_out + o;
                        let to = ((image * out_channels + channel) * oh + oy as usize) * ow + ox as usize;
                        let product = x[((image * in_channels + i) * h + iy) * w + ix] * weight[((i * per_out + o) * kh + ky) * kw + kx];
                        y[to] += product;
                        magnitude[to] += product.abs();
                    }
                }
            }
        }
    }
    (y, magnitude)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

fn model(layer: impl Into<Layer>, channels: usize) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(channels), Dim::Any, Dim::Any]).unwrap();
    let y = net.add("up", layer, &[x]).unwrap();
    let y = net.add("relu", Layer::Relu, &[y]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

#[test]
fn float_layers_add_scaled_kernels() {
    let mut random = Random(11);
    for (geometry, more, [h, w]) in cases() {
        let (c, out) = (geometry.in_channels, geometry.out_channels);
        let weight = random.tensor([c, out / geometry.groups, geometry.kernel[0], geometry.kernel[1]], 1.0);
        let (x, bias) = (random.tensor([2, c, h, w], 1.0), random.tensor([out], 1.0));
        let layer = ConvTranspose2d::new(geometry.clone(), weight.clone(), Some(bias.clone())).unwrap().with_output_padding(more);
        let [oh, ow] = layer.output_size(h, w).unwrap();
        let (expected, magnitude) = sums(&geometry, [oh, ow], (&wide(x.as_slice()), [2, h, w]), &wide(weight.as_slice()));
        let model = model(layer, c);
        let y = model.forward(&x).unwrap();
        assert_eq!(y.dims(), [2, out, oh, ow]);
        for (i, &y) in y.as_slice().iter().enumerate() {
            let exact = (expected[i] + f64::from(bias.as_slice()[i / (oh * ow) % out])).max(0.0);
            let bound = (magnitude[i] + 2.0) * f64::from(f32::EPSILON) * 20.0;
            assert!((f64::from(y) - exact).abs() <= bound, "{geometry:?} {i}: {y} for {exact}");
        }
        let alone = Executor::new(&model).with_threads(1).unwrap().forward(&x).unwrap();
        assert_eq!(alone, y, "one thread");
        assert!(model.nodes()[0].layer().macs(&lowprec::Shape::new([2, out, oh, ow]).unwrap()) == (2 * h * w * weight.len()) as u64);
    }
}

/// The integer layer to the bit: range, codes, exact sums, dequantization, bias.
#[test]
fn integer_layers_are_exact() {
    let mut random = Random(12);
    for (geometry, more, [h, w]) in cases() {
        let (c, out, groups) = (geometry.in_channels, geometry.out_channels, geometry.groups);
        let (per_out, taps) = (out / groups, geometry.kernel[0] * geometry.kernel[1]);
        let weight = random.tensor([c, per_out, geometry.kernel[0], geometry.kernel[1]], 1.0);
        let (x, bias) = (random.tensor([2, c, h, w], 3.0), random.tensor([out], 1.0));
        // The channel of a weight, and its scale.
        let channel = |at: usize| at / taps / per_out / (c / groups) * per_out + at / taps % per_out;
        let mut largest = vec![0f32; out];
        weight.as_slice().iter().enumerate().for_each(|(i, w)| largest[channel(i)] = largest[channel(i)].max(w.abs()));
        let scales: Vec<f32> = largest.iter().map(|&m| affine_qparams(-m, m, -127, 127, true).0).collect();
        let codes: Vec<f64> =
            weight.as_slice().iter().enumerate().map(|(i, &w)| quantize(w, scales[channel(i)], 0, -127, 127).into()).collect();
        let float = ConvTranspose2d::new(geometry.clone(), weight, Some(bias.clone())).unwrap().with_output_padding(more);
        let [oh, ow] = float.output_size(h, w).unwrap();
        let int8 = quantize_dynamic(&model(float, c), &[LayerKind::ConvTranspose2d]).unwrap();
        assert_eq!(int8.node("up").unwrap().layer().precision(), Precision::Int8);
        let y = int8.forward(&x).unwrap();
        for image in 0..2 {
            let values = &x.as_slice()[image * c * h * w..][..c * h * w];
            let ends = values.iter().fold((0f32, 0f32), |(min, max), &x| (min.min(x), max.max(x)));
            let (scale, zero) = affine_qparams(ends.0, ends.1, 0, 255, false);
            let input: Vec<f64> = values.iter().map(|&x| f64::from(quantize(x, scale, zero, 0, 255) - zero)).collect();
            let (sums, _) = sums(&geometry, [oh, ow], (&input, [1, h, w]), &codes);
            for (i, &sum) in sums.iter().enumerate() {
                let o = i / (oh * ow);
                let expected = (sum as f32 * (scale * scales[o]) + bias.as_slice()[o]).max(0.0);
                let got = y.as_slice()[image * sums.len() + i];
                assert_eq!(got.to_bits() & 0x7fff_ffff, expected.to_bits() & 0x7fff_ffff, "{geometry:?} {i}: {got} for {expected}");
            }
        }
        let alone = Executor::new(&int8).with_threads(1).unwrap().forward(&x).unwrap();
        assert_eq!(alone, y, "one thread");
    }
}

#[test]
fn codes_come_back_and_impossible_layers_do_not() {
    let mut random = Random(13);
    let geometry = Conv2dGeometry::new(4, 6, [3, 2]).with_groups(2);
    let codes: Vec<i32> = (0..6 * 2 * 6).map(|i| (i * 37) % 255 - 127).collect();
    let params = lowprec::QParams::new(vec![0.5; 6], vec![0; 6], lowprec::Granularity::PerChannel { axis: 0 }, -127, 127).unwrap();
    let weight = lowprec::QuantizedTensor::<i8>::from_codes(&codes, lowprec::Shape::new([6, 2, 3, 2]).unwrap(), params).unwrap();
    for isa in Isa::available() {
        let layer = quantized::ConvTranspose2d::from_codes(&geometry, [0, 0], &weight, None, &DynamicScheme::default(), isa).unwrap();
        assert_eq!(layer.weight().unwrap(), weight, "{}", isa.name());
    }
    let weight = random.tensor([4, 3, 3, 2], 1.0);
    assert!(ConvTranspose2d::new(geometry.clone().with_groups(1), weight.clone(), None).is_err());
    let layer = ConvTranspose2d::new(geometry.clone().with_padding([2, 0, 1, 0]), weight.clone(), None).unwrap();
    assert!(layer.output_size(1, 1).is_err() && layer.output_size(0, 4).is_err() && layer.output_size(usize::MAX, 4).is_err());
    assert_eq!(layer.output_size(2, 1).unwrap(), [1, 2]);
    assert!(layer.forward(&[0.0; 7], [1, 2, 1], &mut [0.0; 12], &mut Workspace::default(), 1).is_err());
    let deep = Conv2dGeometry::new(65537, 1, [1, 1]);
    let wide = quantized::ConvTranspose2d::from_float(&deep, [0, 0], &[0.0; 65537], None, &DynamicScheme::default(), Isa::best());
    assert!(matches!(wide, Err(Error::Accumulator { .. })));
    let model = model(ConvTranspose2d::new(geometry, weight, None).unwrap(), 4);
    let int8 = quantize_dynamic(&model, &[LayerKind::ConvTranspose2d]).unwrap();
    let mut x = vec![0f32; 2 * 4 * 2 * 2];
    x[17] = f32::NAN;
    let error = int8.forward(&Tensor::new([2, 4, 2, 2], x).unwrap()).unwrap_err().to_string();
    assert!(error.contains("NaN") && error.contains("`up`"), "{error}");
}

#[test]
fn rows_are_looked_up() {
    let mut random = Random(14);
    let table = random.tensor([9, 5], 1.0);
    let mut net = Model::builder();
    let x = net.input("ids", DType::I64, &[Dim::Any, Dim::Any]).unwrap();
    let y = net.add("words", Embedding::new(table.clone()).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let ids = [3i64, -1, 0, 8, -9, 3];
    let run = |model: &Model, ids: &[i64]| {
        let ids = Value::from(Tensor::new([ids.len() / 2, 2], ids.to_vec()).unwrap());
        model.run(&[("ids", &ids)]).map(|mut y| y.remove(0).1)
    };
    let rows: Vec<f32> = ids.iter().flat_map(|id| table.as_slice()[id.rem_euclid(9) as usize * 5..][..5].to_vec()).collect();
    assert_eq!(run(&model, &ids).unwrap(), Value::from(Tensor::new([3, 2, 5], rows).unwrap()));
    for wrong in [[9, 0], [0, -10], [i64::MIN, 0]] {
        let error = run(&model, &wrong).unwrap_err().to_string();
        assert!(error.contains("-9..9") && error.contains("`words`"), "{error}");
    }
    let int8 = quantize_dynamic(&model, &[LayerKind::Embedding]).unwrap();
    let Layer::QuantizedEmbedding(layer) = int8.node("words").unwrap().layer() else { panic!("{int8:?}") };
    // A scale and a zero point for each row.
    assert_eq!((layer.weight_bytes(), layer.weight().params().scales().len()), (45 + 72, 9));
    let back = layer.weight().dequantize();
    let rows: Vec<f32> = ids.iter().flat_map(|id| back.as_slice()[id.rem_euclid(9) as usize * 5..][..5].to_vec()).collect();
    assert_eq!(run(&int8, &ids).unwrap(), Value::from(Tensor::new([3, 2, 5], rows).unwrap()));
    for (row, values) in table.as_slice().chunks(5).enumerate() {
        let half = layer.weight().params().scales()[row] / 2.0 * 1.0001;
        assert!(values.iter().zip(&back.as_slice()[row * 5..]).all(|(a, b)| (a - b).abs() <= half));
    }
    // Rows quantized as a layer quantizes those that it reads.
    for (row, values) in back.as_slice().chunks(5).enumerate() {
        let ends = |values: &[f32]| values.iter().fold((0f32, 0f32), |(min, max), &x| (min.min(x), max.max(x)));
        let ((min, max), (read_min, read_max)) = (ends(&table.as_slice()[row * 5..][..5]), ends(values));
        let (scale, zero) = affine_qparams(min, max, -128, 127, false);
        assert_eq!(layer.weight().params().at(row), (scale, zero));
        let (again, same) = affine_qparams(read_min, read_max, -128, 127, false);
        assert!((again / scale - 1.0).abs() < 1e-6 && same == zero, "{again} {same} {scale} {zero}");
    }
    assert!(Embedding::new(random.tensor([9], 1.0)).is_err());
}

#[test]
fn rows_that_a_layer_quantizes_again_are_rounded_once() {
    let random = &mut Random(12);
    let mut net = Model::builder();
    let x = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    let x = net.add("words", Embedding::new(random.tensor([40, 30], 1.0)).unwrap(), &[x]).unwrap();
    let y = net.add("head", Linear::new(random.tensor([8, 30], 0.3), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let ids = Value::from(Tensor::new([40], (0..40i64).collect()).unwrap());
    let run = |model: &Model| model.run(&[("ids", &ids)]).unwrap().remove(0).1.get::<f32>().unwrap().clone();
    let quantized = |kinds: &[LayerKind]| run(&quantize_dynamic(&model, kinds).unwrap());
    let (once, both) = (quantized(&[LayerKind::Linear]), quantized(&[LayerKind::Embedding, LayerKind::Linear]));
    let off = |a: &Tensor, b: &Tensor| a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off(&once, &both) < 1e-5 && off(&once, &run(&model)) > 1e-3);
}
