//! How large files are: the numbers at their bits, and a header.

use lowprec::convert::StaticScheme;
use lowprec::io::saved;
use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{Conv2d, Dim, Layer, Linear};
use lowprec::ptq::{DynamicQuantization, WeightConfig};
use lowprec::quant::WeightFormat;
use lowprec::{DType, LayerKind, Model, QConfig, Scheme, quantize_dynamic, quantize_static, quantize_weights};

use crate::networks::{DIGITS, digits, static_digits};
use crate::support::Random;

/// Every kind of levels, of scales, of groups and of what is kept exactly, of 2 to 8 and 16 bits.
const FORMATS: &[&str] = &[
    "int2:tensor",
    "int2:g32",
    "int3:g32",
    "int4",
    "int4:g32:f16",
    "int4:g32:log4",
    "int5:channel:mse",
    "int6:g64",
    "int7:g32",
    "int8",
    "int8:e8m0",
    "int16",
    "uint2:g16:bf16",
    "uint3:g32",
    "uint4:g32",
    "uint5:g32",
    "uint8",
    "uint16:g32",
    "offset2:g32",
    "offset4:g32",
    "offset16",
    "midrise3:g32",
    "gauss3:g32",
    "nf4:g64",
    "nf4:g64:double",
    "pot4:g32",
    "apot4",
    "fp4:g32",
    "fp6e2m3:g32",
    "fp8e4m3",
    "fp8e5m2:g32",
    "mxfp4",
    "mxfp6e2m3",
    "mxfp8e4m3",
    "mxint8",
    "nvfp4",
    "kmeans3:g32",
    "kmeans3:channel:own",
    "quantile4:g64",
    "quantile2:own",
    "[-1,-0.25,0,0.25,1]:g32",
    "shift3:g32:log3",
    "shift4:g32",
    "trellis2:g20:log4",
    "trellis4",
    "int4:g32:largest=0.01",
    "nf4:smallest=0.05",
];

/// A product of so many inputs and outputs, and one more as a convolution of one pixel.
fn network(width: usize) -> Model {
    let random = &mut Random(7);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(width), Dim::Fixed(1), Dim::Fixed(1)]).unwrap();
    let conv =
        Conv2d::new(Conv2dGeometry::new(width, width, [1, 1]), random.tensor([width, width, 1, 1], 0.1), Some(random.tensor([width], 0.1)));
    let x = net.add("features.conv", conv.unwrap(), &[x]).unwrap();
    let x = net.add("features.act", Layer::Relu, &[x]).unwrap();
    let x = net.add("flatten", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let x = net.add("head.fc", Linear::new(random.tensor([width, width], 0.1), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    net.build().unwrap()
}

/// Bytes of the header of a file.
fn header(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// Checks that a file is what is accounted for and a header of less than two percent; what the header is in percent.
fn check(name: &str, model: &Model) -> f64 {
    let bytes = saved::write(model).unwrap();
    let stored = model.stored_bytes();
    assert_eq!(bytes.len() - header(&bytes), stored, "{name}");
    let share = header(&bytes) as f64 / stored as f64;
    assert!(share < 0.02, "{name}: a header of {} bytes for {stored}", header(&bytes));
    assert!(stored <= model.bytes(), "{name}: {stored} stored, {} held", model.bytes());
    let loaded = saved::read(&bytes).unwrap();
    assert_eq!((loaded.to_string(), loaded.stored_bytes()), (model.to_string(), stored), "{name}");
    let Dim::Fixed(width) = model.inputs()[0].dims()[1] else { panic!("{name}") };
    let x = Random(9).tensor([2, width, 1, 1], 1.0);
    assert_eq!(loaded.forward(&x).unwrap(), model.forward(&x).unwrap(), "{name}");
    100.0 * share
}

#[test]
fn the_file_of_every_format_of_weights_is_within_two_percent_of_what_is_accounted() {
    let float = network(384);
    for text in FORMATS {
        let config = WeightConfig::new(text.parse::<WeightFormat>().unwrap_or_else(|error| panic!("{text}: {error}")));
        let model = quantize_weights(&float, &config).unwrap();
        println!("{text:26} {:.2} %", check(text, &model));
    }
}

#[test]
fn the_file_of_integers_is_within_two_percent_of_what_is_accounted() {
    let float = network(512);
    let kinds = [LayerKind::Conv2d, LayerKind::Linear];
    let x = Random(8).tensor([4, 512, 1, 1], 1.0);
    for bits in 2..=8 {
        let weights = Scheme::INT8_WEIGHT.with_bits(bits);
        let dynamic = DynamicQuantization::new(&kinds).with_weights(weights).apply(&float).unwrap();
        let integers = quantize_static(&float, [&x], &QConfig::new(StaticScheme::default().with_weights(weights))).unwrap();
        let shares = [check("dynamic", &dynamic), check("static", &integers)];
        println!("{bits} bits, dynamic and static  {shares:.2?} %");
    }
    println!("float  {:.2} %", check("float", &float));
}

/// Of networks this small the header is more than two percent: it is counted by itself.
#[test]
fn the_files_of_small_networks_are_their_numbers_and_a_short_header() {
    for name in DIGITS {
        let float = digits(name);
        let dynamic = quantize_dynamic(&float, &[LayerKind::Conv2d, LayerKind::Linear]).unwrap();
        for (mode, model, most) in [("static", static_digits(&float), 520), ("dynamic", dynamic, 270), ("float", float, 240)] {
            let bytes = saved::write(&model).unwrap();
            let (stored, header, nodes) = (model.stored_bytes(), header(&bytes), model.nodes().len());
            println!("{name} {mode}: {stored} bytes and a header of {header}, {} for each of {nodes} nodes", header / nodes);
            assert_eq!(bytes.len(), stored + header, "{name} {mode}");
            assert!(header < most * nodes, "{name} {mode}: a header of {header} bytes for {nodes} nodes");
        }
    }
}
