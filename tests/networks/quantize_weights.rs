//! What `quantize_weights` promises: the float network of the dequantized weights, held in the format's bits.

use std::ops::ControlFlow;

use crate::support::{Random, conv, network, norm};
use lowprec::kernels::{Conv2dGeometry, Workspace};
use lowprec::metrics::sqnr_db;
use lowprec::nn::weight_only::{Activations, StoredWeights};
use lowprec::nn::{Dim, Embedding, Executor, Layer, Linear, Model, SkipReason, weight_only};
use lowprec::ptq::{WeightConfig, quantize_weights_with};
use lowprec::quant::{Rounding, WeightFormat};
use lowprec::{DType, Error, LayerKind, NonFinite, Precision, Progress, Tensor, Value, compare, quantize_dynamic, quantize_weights};

/// Formats whose codes a kernel multiplies, and others.
const PACKED: &[&str] = &[
    "int2:g16",
    "int3:g32",
    "int4:g32",
    "int8:g32",
    "int4",
    "int8:tensor",
    "int4:g20:double",
    "uint2",
    "uint3:g8",
    "uint4:g32",
    "uint8:g64",
    "nf4:g64",
    "nf4:g64:double",
    "pot3:g16",
    "apot4:channel:bf16",
    "gauss3:g32",
    "fp4:g16",
    "mxfp4",
    "nvfp4",
    "mxint8",
    "kmeans4:g32",
    "kmeans2",
    "[-1,-0.25,0,1]:g32",
    "midrise2:g32",
    "uint4:tensor",
    "kmeans3:tensor:zero",
];
const PLAIN: &[&str] = &[
    "int5:g32",
    "int6",
    "int7:g30",
    "int16",
    "uint16:g32",
    "offset16",
    "uint6:g16",
    "offset4:g32",
    "kmeans4:own",
    "kmeans5",
    "kmeans1:g32",
    "fp8e4m3",
    "mxfp8e5m2",
    "mxfp6e3m2",
    "pot6",
    "int4:g32:largest=0.01",
    "nf4:g64:smallest=0.02",
    "int4:g30",
    "quantile6:g16",
];

fn format(text: &str) -> WeightFormat {
    text.parse().unwrap()
}

/// `x` of so many columns through one linear layer with a ReLU behind it.
fn one_layer(random: &mut Random, out: usize, inner: usize) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(inner)]).unwrap();
    let linear = Linear::new(random.tensor([out, inner], 0.3), Some(random.tensor([out], 0.2))).unwrap();
    let y = net.add("fc", linear, &[x]).unwrap();
    let y = net.add("relu", Layer::Relu, &[y]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

/// The float network of the weights that the layers of `small` hold.
fn dequantized(small: &Model) -> Model {
    let mut net = Model::builder();
    let mut edges = std::collections::HashMap::new();
    for input in small.inputs() {
        edges.insert(small.edge_name(input.edge()).to_owned(), net.input(input.name(), input.dtype(), input.dims()).unwrap());
    }
    for node in small.nodes() {
        let reads: Vec<_> = node.reads().map(|edge| edges[small.edge_name(edge)]).collect();
        let tensor = |bias: Option<&[f32]>| bias.map(|bias| Tensor::new([bias.len()], bias.to_vec()).unwrap());
        let layer: Layer = match node.layer() {
            Layer::WeightOnlyLinear(layer) => Linear::new(layer.weight().dequantize().unwrap(), tensor(layer.bias())).unwrap().into(),
            Layer::WeightOnlyConv2d(layer) => {
                let weight = layer.weight().dequantize().unwrap();
                lowprec::nn::Conv2d::new(layer.geometry().clone(), weight, tensor(layer.bias())).unwrap().into()
            }
            Layer::WeightOnlyEmbedding(layer) => Embedding::new(layer.weight().dequantize().unwrap()).unwrap().into(),
            layer => layer.clone(),
        };
        let edge = net.add(node.name(), layer, &reads).unwrap();
        edges.insert(small.edge_name(node.outputs()[0]).to_owned(), edge);
    }
    for output in small.outputs() {
        net.output(output.name(), edges[small.edge_name(output.edge())]).unwrap();
    }
    net.build().unwrap()
}

fn weights<'m>(model: &'m Model, name: &str) -> &'m StoredWeights {
    model.node(name).unwrap().layer().stored_weights().unwrap()
}

#[test]
fn every_format_computes_what_its_weights_say() {
    let mut random = Random(1);
    let (model, x) = (one_layer(&mut random, 70, 120), random.tensor([9, 120], 1.0));
    let Layer::Linear(linear) = model.node("fc").unwrap().layer() else { unreachable!() };
    for (text, packed) in PACKED.iter().map(|text| (text, true)).chain(PLAIN.iter().map(|text| (text, false))) {
        let format = format(text);
        let small = quantize_weights(&model, &WeightConfig::new(format.clone())).unwrap();
        let held = weights(&small, "fc");
        assert_eq!(held.panels().is_some(), packed, "{text}");
        let expected = format.quantize(linear.weight()).unwrap();
        assert!(held.quantized().unwrap() == expected, "{text}");
        assert_eq!(held.dequantize().unwrap(), expected.dequantize(), "{text}");
        let db = sqnr_db(dequantized(&small).forward(&x).unwrap().as_slice(), small.forward(&x).unwrap().as_slice()).unwrap();
        assert!(db > 120.0, "{text}: {db} dB");
        // Bytes for products: rows quantized where the codes are multiplied, else not.
        let config = WeightConfig::new(format).with_activations(Activations::Int8);
        let bytes = quantize_weights(&model, &config).unwrap();
        let precision = bytes.node("fc").unwrap().layer().precision();
        assert_eq!(precision, if packed { Precision::Int8 } else { Precision::F32 }, "{text}");
        let db = sqnr_db(small.forward(&x).unwrap().as_slice(), bytes.forward(&x).unwrap().as_slice()).unwrap();
        assert!(db > 36.0 && (packed || db > 1000.0), "{text}: {db} dB");
    }
}

#[test]
fn whole_networks() {
    for seed in 1..3 {
        let model = network(seed);
        let x = Random(seed + 5).tensor([3, 3, 14, 11], 1.0);
        for text in ["int8", "int4:g32", "nf4:g64", "uint3:g32", "mxfp6e2m3", "int4:g8:largest=0.01"] {
            let small = quantize_weights(&model, &WeightConfig::new(format(text))).unwrap();
            let conversion = small.conversion().unwrap();
            assert!(conversion.quantized.len() >= 3 && conversion.absent.is_empty(), "{conversion}");
            let db = sqnr_db(dequantized(&small).forward(&x).unwrap().as_slice(), small.forward(&x).unwrap().as_slice()).unwrap();
            assert!(db > 110.0, "{text}: {db} dB");
        }
        assert!(model.nodes().iter().all(|node| !node.layer().is_quantized()) && model.conversion().is_none());
    }
}

#[test]
fn convolutions_of_one_pixel_run_as_products() {
    let mut random = Random(3);
    let mut net = Model::builder();
    let image = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(24), Dim::Any, Dim::Any]).unwrap();
    let a = net.add("wide", conv(&mut random, Conv2dGeometry::new(24, 40, [1, 1]), true), &[image]).unwrap();
    let a = net.add("norm", norm(&mut random, 40), &[a]).unwrap();
    let b = net.add("strided", conv(&mut random, Conv2dGeometry::new(24, 40, [1, 1]).with_groups(2), false), &[image]).unwrap();
    let sum = net.add("sum", Layer::Add, &[a, b]).unwrap();
    let y = net.add("relu", Layer::Relu6, &[sum]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let x = random.tensor([2, 24, 7, 5], 1.0);
    for activations in [Activations::Float, Activations::Int8, Activations::Int8Groups] {
        let small = quantize_weights(&model, &WeightConfig::new(format("int4:g8")).with_activations(activations)).unwrap();
        assert!(weights(&small, "wide").panels().is_some() && weights(&small, "strided").panels().is_none());
        assert_eq!(small.conversion().unwrap().folded, [("norm".to_owned(), "wide".to_owned())]);
        let y = small.forward(&x).unwrap();
        let db = sqnr_db(dequantized(&small).forward(&x).unwrap().as_slice(), y.as_slice()).unwrap();
        assert!(db > if activations == Activations::Float { 120.0 } else { 34.0 }, "{db} dB");
        // Either order of an image gives the same bits.
        let Layer::WeightOnlyConv2d(layer) = small.node("wide").unwrap().layer() else { unreachable!() };
        let pixels = lowprec::kernels::ImageShape { n: 2, h: 7, w: 5, layout: lowprec::kernels::ImageLayout::Nchw };
        let (mut rows, mut images) = (vec![0f32; 2 * 35 * 24], vec![[0f32; 2 * 35 * 40]; 2]);
        for (i, value) in x.as_slice().iter().enumerate() {
            rows[(i / (24 * 35) * 35 + i % 35) * 24 + i / 35 % 24] = *value;
        }
        let nhwc = lowprec::kernels::ImageShape { layout: lowprec::kernels::ImageLayout::Nhwc, ..pixels };
        layer.forward(x.as_slice(), pixels, &mut images[0], &mut Workspace::new(), 1).unwrap();
        layer.forward(&rows, nhwc, &mut images[1], &mut Workspace::new(), 2).unwrap();
        assert_eq!(images[0], images[1]);
        assert!(matches!(layer.forward(&rows[1..], nhwc, &mut images[0], &mut Workspace::new(), 1), Err(Error::Length { .. })));
    }
}

#[test]
fn strides_take_their_pixels() {
    let mut random = Random(5);
    let x = random.tensor([2, 16, 7, 6], 1.0);
    for (stride, activations) in [([2, 2], Activations::Float), ([3, 1], Activations::Int8), ([1, 9], Activations::Int8Groups)] {
        let mut net = Model::builder();
        let image = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(16), Dim::Any, Dim::Any]).unwrap();
        let y = net.add("short", conv(&mut random, Conv2dGeometry::new(16, 24, [1, 1]).with_stride(stride), true), &[image]).unwrap();
        net.output("y", y).unwrap();
        let small = quantize_weights(&net.build().unwrap(), &WeightConfig::new(format("int4:g8")).with_activations(activations)).unwrap();
        assert!(weights(&small, "short").panels().is_some());
        let y = small.forward(&x).unwrap();
        assert_eq!(y.dims(), [2, 24, 7usize.div_ceil(stride[0]), 6usize.div_ceil(stride[1])]);
        let db = sqnr_db(dequantized(&small).forward(&x).unwrap().as_slice(), y.as_slice()).unwrap();
        assert!(db > if activations == Activations::Float { 120.0 } else { 34.0 }, "{stride:?}: {db} dB");
    }
}

#[test]
fn tables_give_the_rows_asked_for() {
    let mut random = Random(4);
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    let table = random.tensor([50, 24], 1.0);
    let y = net.add("words", Embedding::new(table.clone()).unwrap(), &[ids]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    for text in ["int8", "int3:g8", "nf4:g16:double", "uint4:g10", "kmeans4:own", "int16", "int2:g24:largest=0.1", "fp8e5m2"] {
        let format = format(text);
        let small = quantize_weights(&model, &WeightConfig::new(format.clone())).unwrap();
        let all = format.quantize(&table).unwrap();
        assert_eq!(small.node("words").unwrap().layer().weight_bytes(), all.bytes(), "{text}");
        let ids = Value::from(Tensor::new([4], vec![0i64, 49, -3, 7]).unwrap());
        let y = small.run(&[("ids", &ids)]).unwrap().remove(0).1;
        let rows: Vec<f32> = [0, 49, 47, 7].iter().flat_map(|row| all.dequantize().as_slice()[row * 24..][..24].to_vec()).collect();
        assert_eq!(y, Value::from(Tensor::new([4, 24], rows).unwrap()), "{text}");
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    let mut random = Random(5);
    let (model, x) = (one_layer(&mut random, 1200, 1024), random.tensor([40, 1024], 1.0));
    for (text, activations) in [
        ("int4:g32", Activations::Int8),
        ("int4:g32", Activations::Int8Groups),
        ("nf4:g64", Activations::Float),
        ("uint6:g16", Activations::Float),
    ] {
        let small = quantize_weights(&model, &WeightConfig::new(format(text)).with_activations(activations)).unwrap();
        let run = |x: &Tensor, threads: usize| Executor::new(&small).with_threads(threads).unwrap().forward(x).unwrap();
        let all = run(&x, 1);
        assert!(run(&x, 2) == all && run(&x, 3) == all, "{text}");
        // Of many panels and blocks each has its own weights and bias.
        let db = sqnr_db(dequantized(&small).forward(&x).unwrap().as_slice(), all.as_slice()).unwrap();
        assert!(db > if activations == Activations::Float { 110.0 } else { 36.0 }, "{text}: {db} dB");
        let alone = Tensor::new([1, 1024], x.as_slice()[7 * 1024..8 * 1024].to_vec()).unwrap();
        assert_eq!(run(&alone, 1).as_slice(), &all.as_slice()[7 * 1200..8 * 1200], "{text}");
    }
}

/// A large value coarsens its own group alone.
#[test]
fn ranges_of_groups_keep_what_stands_beside_large_values() {
    let mut random = Random(15);
    let (model, mut x) = (one_layer(&mut random, 64, 256), random.tensor([40, 256], 1.0).into_vec());
    x.iter_mut().skip(37).step_by(256).for_each(|x| *x = 60.0);
    let x = Tensor::new([40, 256], x).unwrap();
    let error = |activations| {
        let small = quantize_weights(&model, &WeightConfig::new(format("int8:g32")).with_activations(activations)).unwrap();
        let (exact, got) = (dequantized(&small).forward(&x).unwrap(), small.forward(&x).unwrap());
        exact.as_slice().iter().zip(got.as_slice()).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let (rows, groups) = (error(Activations::Int8), error(Activations::Int8Groups));
    assert!(groups < rows / 4.0, "{groups} by group, {rows} by row");
}

/// What is counted is what is there: codes, scales in their format, and a line that vectors may read.
#[test]
fn bytes_are_those_held() {
    let mut random = Random(6);
    let model = one_layer(&mut random, 64, 128);
    let bytes = |text: &str| {
        let small = quantize_weights(&model, &WeightConfig::new(format(text))).unwrap();
        let layer = small.node("fc").unwrap().layer();
        assert_eq!(layer.bytes(), layer.weight_bytes() + 4 * 64);
        layer.weight_bytes()
    };
    let fixed = size_of::<lowprec::kernels::PackedLowBit>() + 64;
    assert_eq!(bytes("int4:g32") - fixed, 64 * 128 / 2 + 64 * 4 * 2);
    assert_eq!(bytes("int3:g32") - fixed, 64 * 128 * 3 / 8 + 64 * 4 * 2);
    // Zero points have memory of their own.
    assert_eq!(bytes("uint4:g32:f32") - fixed, 64 * 128 / 2 + 64 * 4 * 4 + 64 * 4 + 64);
    // Scales of 8 bits are read as 16, and kept beside.
    assert_eq!(bytes("mxfp4") - fixed, 64 * 128 / 2 + 64 * 4 * 2 + 64 * 4);
    assert_eq!(bytes("int6:g32"), 64 * 128 * 6 / 8 + 64 * 4 * 2);
    let small = quantize_weights(&model, &WeightConfig::new(format("int4:g32"))).unwrap();
    let report = compare(&model, &small, random.tensor([4, 128], 1.0), None).unwrap();
    assert_eq!(report.quantized_weight_bytes(), [64 * 128 * 4, bytes("int4:g32")]);
    assert!(small.to_string().contains("int4:g32"), "{small}");
}

#[test]
fn the_configuration_chooses() {
    let model = network(7);
    let names = |config: &WeightConfig| quantize_weights(&model, config).unwrap().conversion().unwrap().clone();
    let all = names(&WeightConfig::new(format("int8"))).quantized;
    let (first, rest) = all.split_first().unwrap();
    let config = WeightConfig::new(format("int8")).with_pattern(first, None).unwrap();
    let conversion = names(&config);
    assert_eq!(conversion.quantized, rest);
    assert!(conversion.skipped.iter().any(|skipped| skipped.name == *first && skipped.reason == SkipReason::Configured));
    let config = WeightConfig::new(format("int8")).with_kind(LayerKind::Conv2d, None).with_pattern(first, Some(format("nf4:g32"))).unwrap();
    let small = quantize_weights(&model, &config).unwrap();
    assert_eq!(weights(&small, first).format().to_string(), "nf4:g32");
    assert!(
        small
            .conversion()
            .unwrap()
            .quantized
            .iter()
            .all(|name| name == first || small.node(name).unwrap().layer().kind() == LayerKind::Linear)
    );

    // Quantized layers stay as they are, whichever verb comes second.
    let again = quantize_weights(&small, &WeightConfig::new(format("int4:g32"))).unwrap();
    assert_eq!(weights(&again, first).format().to_string(), "nf4:g32");
    let skipped = &again.conversion().unwrap().skipped;
    assert!(skipped.iter().any(|skipped| skipped.name == *first && skipped.reason == SkipReason::AlreadyQuantized));
    let dynamic = quantize_dynamic(&small, &[LayerKind::Conv2d]).unwrap();
    assert_eq!(weights(&dynamic, first).format().to_string(), "nf4:g32");
    assert!(quantize_weights(&quantize_weights(&model, &WeightConfig::new(format("int8"))).unwrap(), &config).is_err());
}

#[test]
fn drawn_codes_depend_on_the_seed_and_the_layer_alone() {
    let model = network(8);
    let drawn = |seed| {
        let config = WeightConfig::new(format("int3:g16")).with_rounding(Rounding::Stochastic { seed });
        let small = quantize_weights(&model, &config).unwrap();
        let codes = |name: &String| weights(&small, name).quantized().unwrap().codes();
        small.conversion().unwrap().quantized.iter().map(codes).collect::<Vec<_>>()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn misuse_is_told() {
    let mut random = Random(9);
    let model = one_layer(&mut random, 8, 16);
    let config = WeightConfig::new(format("int4:g8"));
    let error = |config: &WeightConfig| quantize_weights(&model, config).unwrap_err();
    assert!(matches!(error(&config.clone().with_pattern("conv*", None).unwrap()), Error::Pattern { .. }));
    assert!(matches!(error(&config.clone().with_kind(LayerKind::ConvTranspose2d, None)), Error::Unsupported { .. }));
    assert!(matches!(error(&config.clone().with_kind(LayerKind::Linear, None)), Error::NothingToQuantize { .. }));
    assert!(matches!(config.clone().with_pattern("", None), Err(Error::Parameter { .. } | Error::Pattern { .. })));

    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any]).unwrap();
    let y = net.add("relu", Layer::Relu, &[x]).unwrap();
    net.output("y", y).unwrap();
    assert!(matches!(quantize_weights(&net.build().unwrap(), &config), Err(Error::NothingToQuantize { .. })));

    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)]).unwrap();
    let linear = Linear::new(Tensor::new([1, 2], vec![1.0, f32::NAN]).unwrap(), None).unwrap();
    let y = net.add("broken", linear, &[x]).unwrap();
    net.output("y", y).unwrap();
    let broken = net.build().unwrap();
    let told = quantize_weights(&broken, &WeightConfig::new(format("int8"))).unwrap_err();
    assert!(told.to_string().contains("broken"), "{told}");
    assert!(quantize_weights(&broken, &WeightConfig::new(format("int8")).with_non_finite(NonFinite::Saturate)).is_ok());

    let stop = Progress::new(|_| ControlFlow::Break(()));
    assert!(matches!(quantize_weights_with(&model, &config, stop), Err(Error::Cancelled { .. })));
    let bytes = quantize_weights(&model, &config.with_activations(Activations::Int8)).unwrap();
    let told = bytes.forward(&Tensor::full([1, 16], f32::INFINITY).unwrap()).unwrap_err();
    assert!(told.to_string().contains("fc"), "{told}");

    let weight = format("int4:g8").quantize(&random.tensor([4, 8], 1.0)).unwrap();
    let geometry = Conv2dGeometry::new(2, 2, [3, 3]);
    assert!(matches!(weight_only::Linear::new(weight.clone(), Some(&[0.0; 3]), Activations::Float), Err(Error::Length { .. })));
    assert!(matches!(weight_only::Linear::new(weight.clone(), Some(&[f32::NAN; 4]), Activations::Float), Err(Error::NonFinite { .. })));
    assert!(matches!(weight_only::Conv2d::new(geometry, weight, None, Activations::Float), Err(Error::Shape { .. })));
    let vector = format("int8").quantize(&random.tensor([4], 1.0)).unwrap();
    assert!(weight_only::Embedding::new(vector.clone()).is_err() && weight_only::Linear::new(vector, None, Activations::Float).is_err());
}
