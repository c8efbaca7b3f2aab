//! Layers whose weights alone are quantized: saved and loaded in every format, and written as ONNX.

use lowprec::io::saved;
use lowprec::kernels::Conv2dGeometry;
use lowprec::metrics::sqnr_db;
use lowprec::nn::weight_only::Activations;
use lowprec::nn::{Conv2d, Dim, Embedding, Layer, Linear};
use lowprec::onnx::{self, Export};
use lowprec::ptq::WeightConfig;
use lowprec::quant::WeightFormat;
use lowprec::{DType, Error, Model, Tensor, Value, quantize_weights};

use crate::support::{Random, network};

const FORMATS: &[&str] = &[
    "int2:g16",
    "int3",
    "int4:g32",
    "int4:g32:f32",
    "int5:g8",
    "int8",
    "int8:tensor",
    "int16",
    "uint16:g4",
    "offset16",
    "int4:g4:p97",
    "offset3:g4:hqq",
    "uint2:g8",
    "uint4:g32",
    "uint8:g16:bf16",
    "uint3:channel",
    "uint4:tensor",
    "offset4:g4",
    "nf4:g4",
    "nf4:g4:double",
    "pot3:tensor",
    "apot4",
    "fp8e4m3",
    "fp4:g4",
    "mxfp4:g4",
    "mxint8",
    "nvfp4:g4",
    "kmeans3:tensor",
    "kmeans4:own",
    "quantile2:g4:own",
    "[-1,-0.25,0,1]:g4",
    "midrise3",
    "int4:g32:largest=0.02",
    "nf4:smallest=0.05",
    "int4:g4:log4",
    "shift4:g4",
    "trellis3:g4:log3",
    "trellis4",
];

fn small(model: &Model, text: &str) -> Model {
    quantize_weights(model, &WeightConfig::new(text.parse::<WeightFormat>().unwrap_or_else(|error| panic!("{text}: {error}")))).unwrap()
}

/// Rows of a table through a linear layer.
fn words() -> Model {
    let random = &mut Random(3);
    let mut net = Model::builder();
    let ids = net.input("ids", DType::I64, &[Dim::Any]).unwrap();
    let x = net.add("words", Embedding::new(random.tensor([30, 64], 1.0)).unwrap(), &[ids]).unwrap();
    let x = net.add("head", Linear::new(random.tensor([10, 64], 1.0), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    net.build().unwrap()
}

#[test]
fn every_format_is_saved_in_its_bytes_and_comes_back() {
    let (images, words) = (network(5), words());
    let x = Random(6).tensor([2, 3, 9, 8], 1.0);
    let ids = Value::from(Tensor::new([3], vec![4i64, 0, 29]).unwrap());
    for text in FORMATS {
        let model = small(&images, text);
        let bytes = saved::write(&model).unwrap();
        let again = saved::read(&bytes).unwrap();
        assert_eq!(again.forward(&x).unwrap(), model.forward(&x).unwrap(), "{text}");
        assert_eq!(again.to_string(), model.to_string(), "{text}");
        assert_eq!(again.bytes(), model.bytes(), "{text}");
        assert!(saved::write(&again).unwrap() == bytes, "{text}");

        let model = small(&words, text);
        let again = saved::read(&saved::write(&model).unwrap()).unwrap();
        assert_eq!(again.run(&[("ids", &ids)]).unwrap(), model.run(&[("ids", &ids)]).unwrap(), "{text}");
    }
    for activations in [Activations::Int8, Activations::Int8Groups] {
        let config = WeightConfig::new("int4:g8".parse().unwrap()).with_activations(activations);
        let model = quantize_weights(&words, &config).unwrap();
        let bytes = saved::write(&model).unwrap();
        let again = saved::read(&bytes).unwrap();
        assert_eq!(again.run(&[("ids", &ids)]).unwrap(), model.run(&[("ids", &ids)]).unwrap());
        assert!(saved::write(&again).unwrap() == bytes, "{activations:?}");
    }
}

/// Convolutions of one pixel, whose rows are pixels: bytes of a pixel in groups as its weights have them.
#[test]
fn a_convolution_of_one_pixel_keeps_how_its_inputs_are_multiplied() {
    let random = &mut Random(12);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(40), Dim::Any, Dim::Any]).unwrap();
    let (weight, bias) = (random.tensor([9, 40, 1, 1], 0.4), random.tensor([9], 0.2));
    let conv = Conv2d::new(Conv2dGeometry::new(40, 9, [1, 1]), weight, Some(bias)).unwrap();
    let y = net.add("conv", conv, &[x]).unwrap();
    net.output("y", y).unwrap();
    let float = net.build().unwrap();
    // A pixel with one channel that is far larger than the others.
    let mut x = random.tensor([2, 40, 5, 3], 1.0);
    x.as_mut_slice()[..15].fill(300.0);
    let mut made = Vec::new();
    for activations in [Activations::Float, Activations::Int8, Activations::Int8Groups] {
        let config = WeightConfig::new("int4:g16".parse().unwrap()).with_activations(activations);
        let model = quantize_weights(&float, &config).unwrap();
        let bytes = saved::write(&model).unwrap();
        let again = saved::read(&bytes).unwrap();
        let Layer::WeightOnlyConv2d(conv) = again.node("conv").unwrap().layer() else { panic!("{again}") };
        assert_eq!(conv.activations(), activations);
        assert_eq!((again.to_string(), again.bytes()), (model.to_string(), model.bytes()), "{activations:?}");
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(bytes.len() - header, model.stored_bytes(), "{activations:?}");
        assert!(saved::write(&again).unwrap() == bytes, "{activations:?}");
        made.push(again.forward(&x).unwrap());
        assert_eq!(made.last(), Some(&model.forward(&x).unwrap()), "{activations:?}");
    }
    // The three differ, and groups are nearer to floats than rows.
    let [row, groups] = [1, 2].map(|i| sqnr_db(made[0].as_slice(), made[i].as_slice()).unwrap());
    assert!(groups > row + 3.0 && groups.is_finite(), "{groups} and {row} dB");
}

#[test]
fn a_file_that_lies_is_told() {
    let model = small(&words(), "uint4:g8:largest=0.1");
    let bytes = saved::write(&model).unwrap();
    let text = |from: &str, to: &str| {
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut changed = bytes.clone();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        saved::read(&changed)
    };
    assert!(text("uint4:g8", "uint5:g8").is_err());
    assert!(text("uint4:g8", "uint4:g4").is_err());
    assert!(text("uint4:g8", "int99:g8").is_err());
    assert!(text("kept_in_row", "kept_by_row").is_err());
    let mut random = Random(8);
    for _ in 0..200 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random.next() % 4 {
            let at = random.next() as usize % changed.len();
            changed[at] = random.next() as u8;
        }
        // Whatever it says: an error or a model, no panic.
        let _ = saved::read(&changed).map(|model| model.run(&[("ids", &Value::from(Tensor::new([1], vec![1i64]).unwrap()))]));
    }
}

#[test]
fn what_is_exported_gives_the_same_numbers() {
    let images = network(5);
    let x = Random(6).tensor([2, 3, 9, 8], 1.0);
    for text in FORMATS {
        let model = small(&images, text);
        let bytes = match Export::new(&model).to_bytes() {
            Ok(bytes) => bytes,
            // What the standard has no words for.
            Err(Error::Layer { source, .. }) => {
                assert!(matches!(*source, Error::Unsupported { .. }), "{text}: {source}");
                assert!(["largest", "smallest"].iter().any(|part| text.contains(part)), "{text}: {source}");
                assert!(source.to_string().contains("io::saved"), "{source}");
                continue;
            }
            Err(error) => panic!("{text}: {error}"),
        };
        let again = onnx::from_bytes(&bytes).unwrap();
        let db = sqnr_db(model.forward(&x).unwrap().as_slice(), again.forward(&x).unwrap().as_slice()).unwrap();
        assert!(db > 110.0, "{text}: {db} dB");
    }
    let model = small(&words(), "nf4:g8");
    let again = onnx::from_bytes(&Export::new(&model).to_bytes().unwrap()).unwrap();
    let ids = Value::from(Tensor::new([3], vec![4i64, 0, 29]).unwrap());
    let y = |model: &Model| model.run(&[("ids", &ids)]).unwrap().remove(0).1;
    let (expected, got) = (y(&model), y(&again));
    let db = sqnr_db(expected.get::<f32>().unwrap().as_slice(), got.get::<f32>().unwrap().as_slice()).unwrap();
    assert!(db > 120.0, "{db} dB");
    // Groups have words from opset 21 on; one scale a channel has them before.
    let grouped = small(&words(), "int4:g8");
    assert!(Export::new(&grouped).with_opset(17).unwrap().to_bytes().is_err());
    assert!(Export::new(&small(&words(), "int4")).with_opset(17).unwrap().to_bytes().is_ok());
}
