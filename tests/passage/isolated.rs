//! What the report says of weights in any format, of inputs that are rounded when a layer runs, and of recurrent and transposed layers by
//! themselves: against errors worked out here, or where there is none at all.

use lowprec::eval::{Histogram, LayerReport, Report};
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::weight_only::Activations;
use lowprec::nn::{Conv2d, ConvTranspose2d, Dim, Embedding, Gru, Layer, Linear, Lstm, RecurrentOptions};
use lowprec::ptq::WeightConfig;
use lowprec::quant::{QuantizedWeights, Zeros};
use lowprec::{DType, LayerKind, Model, Tensor, compare, metrics, quantize_dynamic, quantize_weights};

use crate::support::Random;

fn one(dims: &[Dim], dtype: DType, layer: impl Into<Layer>) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", dtype, dims).unwrap();
    let y = net.add("layer", layer, &[x]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

fn linear(weight: &Tensor) -> Model {
    one(&[Dim::Any, Dim::Fixed(weight.dims()[1])], DType::F32, Linear::new(weight.clone(), None).unwrap())
}

fn config(format: &str, activations: Activations) -> WeightConfig {
    WeightConfig::new(format.parse().unwrap()).with_activations(activations)
}

fn stored(model: &Model, name: &str) -> QuantizedWeights {
    model.node(name).unwrap().layer().stored_weights().unwrap().quantized().unwrap()
}

fn layer<'a>(report: &'a Report, name: &str) -> &'a LayerReport {
    report.layers.iter().find(|layer| layer.name == name).unwrap()
}

fn db(expected: &Tensor, found: &Tensor) -> f64 {
    metrics::sqnr_db(expected.as_slice(), found.as_slice()).unwrap()
}

/// Runs of so many values, each in 255 codes of its own range, 0 among them.
fn bytes(x: &Tensor, run: usize) -> Tensor {
    let rounded = x.as_slice().chunks(run).flat_map(|run| {
        let (min, max) = run.iter().fold((0f32, 0f32), |(min, max), &x| (min.min(x), max.max(x)));
        let scale = (max - min) / 254.0;
        let zero = (-min / scale).round_ties_even();
        run.iter().map(move |x| ((x / scale).round_ties_even() + zero).clamp(0.0, 254.0) * scale - zero * scale)
    });
    Tensor::new(x.dims(), rounded.collect()).unwrap()
}

/// A layer of these weights for each format, all of which read the same: `layer 0`, `layer 1` and so on; in float and quantized.
fn side_by_side(weight: &Tensor, formats: &[&str]) -> [Model; 2] {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(weight.dims()[1])]).unwrap();
    let (mut sum, mut config) = (None, config("int8", Activations::Float));
    for (i, format) in formats.iter().enumerate() {
        let name = format!("layer {i}");
        let y = net.add(&name, Linear::new(weight.clone(), None).unwrap(), &[x]).unwrap();
        sum = Some(sum.map_or(y, |sum| net.add(&format!("sum {i}"), Layer::Add, &[sum, y]).unwrap()));
        config = config.with_pattern(&name, Some(format.parse().unwrap())).unwrap();
    }
    net.output("y", sum.unwrap()).unwrap();
    let float = net.build().unwrap();
    let small = quantize_weights(&float, &config).unwrap();
    [float, small]
}

#[test]
fn the_error_of_weights_in_any_format_is_their_own() {
    let weight = Random(3).tensor([24, 32], 1.0);
    let formats =
        ["int2:g8", "int4:g8", "uint4:g8", "offset3:g4", "nf4:g8", "int8", "fp8e4m3", "kmeans3:own", "int4:g8:largest=0.05", "trellis3:g8"];
    let [float, small] = side_by_side(&weight, &formats);
    // Each weight meets a one: the error of the output is that of the weights.
    let unit = Tensor::new([32, 32], (0..32 * 32).map(|i| f32::from(i % 33 == 0)).collect::<Vec<f32>>()).unwrap();
    let report = compare(&float, &small, &unit, None).unwrap();
    let (text, page) = (report.to_string(), report.to_html("weights"));
    assert!(page.contains("0 of 19 layers in int8, of 10 the weights alone quantized"));
    for (i, format) in formats.iter().enumerate() {
        let name = format!("layer {i}");
        let (own, weights) = (layer(&report, &name).isolated.unwrap(), stored(&small, &name));
        let expected = db(&weight, &weights.dequantize());
        assert!((own.weights_db.unwrap() - expected).abs() < 1e-6, "{format}: {own:?}, {expected} dB");
        assert_eq!(own.input_db, None, "{format}");
        let called = weights.format();
        assert!(text.contains(&format!("{name}  Linear          {called} ")), "{text}");
        let row = page.split(&format!("<th scope=\"row\">{name}</th>")).nth(1).unwrap().split("</tr>").next().unwrap();
        let cells = format!(
            "<td>Linear {called}</td><td class=\"n\">{expected:.1} dB</td><td class=\"n\">{expected:.1} dB</td><td class=\"n\"></td>"
        );
        assert!(row.starts_with(&cells), "{format}: {row}");
    }
    let x = Random(4).tensor([20, 32], 1.0);
    let (report, y) = (compare(&float, &small, &x, None).unwrap(), linear(&weight).forward(&x).unwrap());
    for (i, format) in formats.iter().enumerate() {
        let name = format!("layer {i}");
        let (own, values) = (layer(&report, &name).isolated.unwrap(), stored(&small, &name).dequantize());
        let expected = db(&y, &linear(&values).forward(&x).unwrap());
        assert_eq!(own.weights_db, Some(expected), "{format}");
        // It is all the error that the layer makes.
        assert!((own.errors.sqnr_db - expected).abs() < 1e-3, "{format}: {own:?}");
    }
}

#[test]
fn bytes_that_rows_are_multiplied_as_are_told_from_the_weights() {
    let weight = Random(5).tensor([24, 32], 1.0);
    let float = linear(&weight);
    let mut x = Random(6).tensor([20, 32], 1.0);
    // One value of each row that coarsens all of it, or its group.
    x.as_mut_slice().iter_mut().step_by(32).for_each(|x| *x *= 40.0);
    let expected = float.forward(&x).unwrap();
    let inputs = [(Activations::Int8, 32), (Activations::Int8Groups, 8)].map(|(activations, run)| {
        let small = quantize_weights(&float, &config("int4:g8", activations)).unwrap();
        let report = compare(&float, &small, &x, None).unwrap();
        let own = layer(&report, "layer").isolated.unwrap();
        let rounded = db(&expected, &float.forward(&bytes(&x, run)).unwrap());
        assert!((own.input_db.unwrap() - rounded).abs() < 0.01, "{activations:?}: {own:?}, {rounded} dB");
        assert_eq!(
            own.weights_db,
            Some(db(&expected, &linear(&stored(&small, "layer").dequantize()).forward(&x).unwrap())),
            "{activations:?}"
        );
        let noise = |db: f64| 10f64.powf(-db / 10.0);
        let parts = -10.0 * (noise(own.weights_db.unwrap()) + noise(own.input_db.unwrap())).log10();
        assert!((own.errors.sqnr_db - parts).abs() < 1.0, "{activations:?}: {own:?}");

        // A convolution of single pixels has them as its rows.
        let geometry = Conv2dGeometry::new(32, 24, [1, 1]);
        let kernel = weight.reshape([24, 32, 1, 1]).unwrap();
        let dims = [Dim::Any, Dim::Fixed(32), Dim::Any, Dim::Any];
        let float = one(&dims, DType::F32, Conv2d::new(geometry, kernel, None).unwrap());
        let small = quantize_weights(&float, &config("int4:g8", activations)).unwrap();
        let pixels: Vec<f32> = (0..20 * 32).map(|i| x.as_slice()[(i / 320 * 10 + i % 10) * 32 + i / 10 % 32]).collect();
        let report = compare(&float, &small, Tensor::new([2, 32, 2, 5], pixels).unwrap(), None).unwrap();
        let pixels = layer(&report, "layer").isolated.unwrap();
        let near = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-3;
        assert!(near(pixels.input_db, own.input_db) && near(pixels.weights_db, own.weights_db), "{activations:?}: {pixels:?}, {own:?}");
        own.input_db.unwrap()
    });
    assert!(inputs[1] > inputs[0] + 3.0, "{inputs:?}");
}

#[test]
fn the_error_of_a_table_is_that_of_its_rows() {
    let table = Random(7).tensor([12, 16], 1.0);
    let float = one(&[Dim::Any], DType::I64, Embedding::new(table.clone()).unwrap());
    let ids = Tensor::new([12], (0..12i64).collect::<Vec<_>>()).unwrap();
    let small = quantize_weights(&float, &config("int4:g8", Activations::Int8)).unwrap();
    let report = compare(&float, &small, &ids, None).unwrap();
    let own = layer(&report, "layer").isolated.unwrap();
    assert_eq!((own.weights_db, own.input_db), (Some(db(&table, &stored(&small, "layer").dequantize())), None));
    let int8 = quantize_dynamic(&float, &[LayerKind::Embedding]).unwrap();
    let report = compare(&float, &int8, &ids, None).unwrap();
    let Layer::QuantizedEmbedding(quantized) = int8.node("layer").unwrap().layer() else { panic!("{int8}") };
    assert_eq!(layer(&report, "layer").isolated.unwrap().weights_db, Some(db(&table, &quantized.weight().dequantize())));
    // By row, from the least value on the first code to the largest on the last.
    let histogram = layer(&report, "layer").weights.as_ref().unwrap();
    assert_eq!((histogram.codes, histogram.total()), ([-128.0, 127.0], 12 * 16));
    assert_eq!(histogram.counts[..4].iter().chain(&histogram.counts[60..]).sum::<u64>(), 0, "{histogram:?}");
}

#[test]
fn a_transposed_convolution_has_its_weights_and_its_images_apart() {
    let mut random = Random(8);
    // Two groups, from 2 channels to 3 each.
    let geometry = Conv2dGeometry::new(4, 6, [2, 3]).with_groups(2).with_stride([2, 1]);
    let layer_of = |weight: Tensor| {
        one(&[Dim::Any, Dim::Fixed(4), Dim::Any, Dim::Any], DType::F32, ConvTranspose2d::new(geometry.clone(), weight, None).unwrap())
    };
    let float = layer_of(random.tensor([4, 3, 2, 3], 1.0));
    let x = random.tensor([3, 4, 5, 4], 1.0);
    let int8 = quantize_dynamic(&float, &[LayerKind::ConvTranspose2d]).unwrap();
    let Layer::QuantizedConvTranspose2d(quantized) = int8.node("layer").unwrap().layer() else { panic!("{int8}") };
    // Output channels first, `[6, 2, 2, 3]`.
    let by_output = quantized.weight().unwrap().dequantize();
    let mut weight = Tensor::full([4, 3, 2, 3], 0.0).unwrap();
    for (group, input, output, tap) in (0..2 * 2 * 3 * 6).map(|i| (i / 36, i / 18 % 2, i / 6 % 3, i % 6)) {
        weight.as_mut_slice()[((group * 2 + input) * 3 + output) * 6 + tap] =
            by_output.as_slice()[((group * 3 + output) * 2 + input) * 6 + tap];
    }
    let expected = float.forward(&x).unwrap();
    let report = compare(&float, &int8, &x, None).unwrap();
    let own = layer(&report, "layer").isolated.unwrap();
    assert_eq!(own.weights_db, Some(db(&expected, &layer_of(weight).forward(&x).unwrap())));
    assert!(own.weights_db.unwrap() > 35.0, "{own:?}");
    let rounded = x.as_slice().chunks(80).flat_map(|image| {
        let (min, max) = image.iter().fold((0f32, 0f32), |(min, max), &x| (min.min(x), max.max(x)));
        let scale = (max - min) / 255.0;
        let zero = (-min / scale).round_ties_even();
        image.iter().map(move |x| (((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero) * scale)
    });
    let rounded = db(&expected, &float.forward(&Tensor::new(x.dims(), rounded.collect()).unwrap()).unwrap());
    assert!((own.input_db.unwrap() - rounded).abs() < 0.01, "{own:?}, {rounded} dB");
    // The largest weight of each channel is on the last code.
    let histogram = layer(&report, "layer").weights.as_ref().unwrap();
    assert_eq!((histogram.codes, histogram.total()), ([-127.0, 127.0], 72));
    let last = (127.0 - histogram.span[0]) / (histogram.span[1] - histogram.span[0]) * 64.0;
    let ends = histogram.counts[last as usize] + histogram.counts[63 - last as usize];
    assert!(ends >= 6 && histogram.counts[..5].iter().chain(&histogram.counts[59..]).sum::<u64>() == 0, "{histogram:?}");
}

/// Weights that are whole codes have no error, and neither has a sequence that is: what is left lies in the state.
#[test]
fn recurrent_layers_have_their_weights_and_their_sequence_apart() {
    let mut random = Random(9);
    let exact = |random: &mut Random, dims: [usize; 3]| {
        let mut tensor = random.tensor(dims, 60.0);
        tensor.as_mut_slice().iter_mut().for_each(|w| *w = w.round() / 128.0);
        tensor.as_mut_slice().chunks_mut(dims[2]).for_each(|row| row[0] = 127.0 / 128.0);
        tensor
    };
    let plain = |random: &mut Random, dims: [usize; 3]| random.tensor(dims, 0.5);
    let x = random.tensor([5, 3, 6], 1.0);
    let mut codes = random.tensor([5, 3, 6], 60.0);
    codes.as_mut_slice().iter_mut().for_each(|x| *x = x.round() / 64.0);
    codes.as_mut_slice().chunks_mut(6).for_each(|row| (row[0], row[1]) = (-128.0 / 64.0, 127.0 / 64.0));
    let both = |of: &dyn Fn(&mut Random, [usize; 3]) -> Tensor, random: &mut Random| {
        let options = || RecurrentOptions::new(8);
        let lstm = Lstm::new(options(), &of(random, [1, 32, 6]), &of(random, [1, 32, 8]), None, None).unwrap();
        let gru = Gru::new(options(), true, &of(random, [1, 24, 6]), &of(random, [1, 24, 8]), None).unwrap();
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(6)]).unwrap();
        let a = net.add_node("lstm", &[Some("a")], lstm.into(), &[Some(x)]).unwrap()[0];
        let b = net.add_node("gru", &[Some("b")], gru.into(), &[Some(x)]).unwrap()[0];
        let sum = net.add("sum", Layer::Add, &[a, b]).unwrap();
        net.output("y", sum).unwrap();
        net.build().unwrap()
    };
    let own = |float: &Model, x: &Tensor| {
        let int8 = quantize_dynamic(float, &[LayerKind::Lstm, LayerKind::Gru]).unwrap();
        let report = compare(float, &int8, x, None).unwrap();
        ["lstm", "gru"].map(|name| {
            let found = layer(&report, name);
            assert_eq!(found.weights.as_ref().unwrap().total() as usize * 4, found.weight_bytes[0], "{report}");
            found.isolated.unwrap()
        })
    };
    let float = both(&exact, &mut random);
    for found in own(&float, &x) {
        assert_eq!(found.weights_db, Some(f64::INFINITY), "{found:?}");
        let input = found.input_db.unwrap();
        assert!(input > 30.0 && input < 80.0 && found.errors.sqnr_db.is_finite(), "{found:?}");
    }
    assert_eq!(own(&float, &codes).map(|found| found.input_db), [Some(f64::INFINITY); 2]);
    for found in own(&both(&plain, &mut random), &codes) {
        let weights = found.weights_db.unwrap();
        assert_eq!(found.input_db, Some(f64::INFINITY), "{found:?}");
        assert!(weights > 30.0 && weights < 80.0 && found.errors.sqnr_db < weights + 3.0, "{found:?}");
    }
}

/// The weights in units of their scales, as the format is written down.
fn in_units(weight: &Tensor, quantized: &QuantizedWeights) -> Vec<f32> {
    let kept: Vec<usize> = quantized.kept().into_iter().flat_map(|kept| kept.iter().map(|(index, _)| index)).collect();
    let unit = |i: usize| {
        let group = (0..quantized.groups()).find(|&group| quantized.group(group).contains(&i)).unwrap();
        let (scale, w) = (quantized.scales().at(group), weight.as_slice()[i]);
        match quantized.zeros() {
            Zeros::Points(points) => w / scale + points.get(group).unwrap() as f32,
            Zeros::Offsets(offsets) => (w - offsets.at(group)) / scale,
            _ => w / scale,
        }
    };
    (0..weight.len()).filter(|i| !kept.contains(i)).map(unit).collect()
}

#[test]
fn weights_lie_beside_the_codes_and_levels_of_their_format() {
    let weight = Random(11).tensor([16, 32], 1.0);
    let even = [
        ("int4:g8", [-8.0, 7.0], 512),
        ("int2:g8", [-2.0, 1.0], 512),
        ("int8", [-128.0, 127.0], 512),
        ("uint4:g8", [0.0, 15.0], 512),
        ("offset3:g4", [0.0, 7.0], 512),
        ("int4:g8:largest=0.125", [-8.0, 7.0], 448),
    ];
    let uneven = [("nf4:g8:range:f32", 16), ("pot3:g8", 7), ("[-1,-0.25,0,1]:g8", 4), ("kmeans3", 8), ("trellis2:g8", 8)];
    let own = ["kmeans2:own", "shift4:g8"];
    let formats: Vec<&str> = even.iter().map(|of| of.0).chain(uneven.iter().map(|of| of.0)).chain(own).collect();
    let [float, small] = side_by_side(&weight, &formats);
    let report = compare(&float, &small, Random(12).tensor([4, 32], 1.0), None).unwrap();
    let page = report.to_html("weights");
    let of = |format: &str| {
        let name = format!("layer {}", formats.iter().position(|other| *other == format).unwrap());
        let histogram: Histogram = layer(&report, &name).weights.clone().unwrap();
        let mut counts = vec![0; 64];
        let bins = 64.0 / (histogram.span[1] - histogram.span[0]);
        in_units(&weight, &stored(&small, &name))
            .iter()
            .for_each(|w| counts[(((w - histogram.span[0]) * bins).max(0.0) as usize).min(63)] += 1);
        assert_eq!(histogram.counts, counts, "{format}");
        let figure = page.split(&format!("<figcaption>{name}</figcaption>")).nth(1).unwrap().split("</figure>").next().unwrap();
        (histogram, figure)
    };
    for (format, codes, total) in even {
        let (histogram, figure) = of(format);
        assert_eq!((histogram.codes, histogram.step, histogram.total()), (codes, 1.0, total), "{format}");
        assert!(histogram.levels.is_empty() && histogram.span[0] <= codes[0] - 1.0, "{format}: {histogram:?}");
        assert!(figure.contains("weights, in codes") && figure.contains(&format!(">{total} of them<")), "{format}");
    }
    for (format, levels) in uneven {
        let (histogram, figure) = of(format);
        assert_eq!((histogram.step, histogram.levels.len()), (0.0, levels), "{format}");
        assert!(histogram.levels.is_sorted() && histogram.codes == [histogram.levels[0], histogram.levels[levels - 1]], "{histogram:?}");
        assert!(figure.contains("in units of their scales") && figure.contains(&format!(">512 of them, {levels} levels<")), "{format}");
        // A line at each level between the first and the last.
        assert_eq!(figure.matches("0v40").count(), levels - 2, "{format}: {figure}");
    }
    // By range nothing is clipped.
    let (histogram, figure) = of("nf4:g8:range:f32");
    assert_eq!(histogram.codes, [-1.0, 1.0]);
    assert!(!figure.contains("<path class=\"c\""), "{figure}");
    for format in own {
        let (histogram, figure) = of(format);
        assert!(histogram.levels.is_empty() && histogram.step == 0.0 && histogram.codes[0] < histogram.codes[1], "{format}: {histogram:?}");
        assert!(figure.contains("levels of each group’s own") && !figure.contains("0v40"), "{format}");
    }
}

/// Weights alone can cost time too: such a layer is told, and how to leave it; one that adds is not.
#[test]
fn layers_of_weights_alone_that_are_slower_are_told() {
    let [float, small] = side_by_side(&Random(4).tensor([24, 32], 1.0), &["int4:g8", "shift4:g8", "nf4:g8"]);
    let mut report = compare(&float, &small, Random(5).tensor([6, 32], 1.0), None).unwrap();
    let times = [("layer 0", [9, 4]), ("layer 1", [2, 30]), ("layer 2", [5, 6]), ("sum 1", [1, 50])];
    for layer in &mut report.layers {
        let told = times.iter().find(|(name, _)| *name == layer.name).map(|(_, us)| us.map(std::time::Duration::from_micros));
        layer.time = told.map_or([None; 2], |[before, after]| [Some(before), Some(after)]);
    }
    let slower: Vec<&str> = report.slower().iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(slower, ["layer 1", "layer 2"]);
    assert_eq!(report.slower_patterns(), ["layer 1", "layer 2"]);
}
