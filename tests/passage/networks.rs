//! The networks that all of these tests go over.

use lowprec::convert::QConfig;
use lowprec::io::safetensors;
use lowprec::kernels::{Conv2dGeometry, RangeOf};
use lowprec::nn::weight_only::Activations;
use lowprec::nn::{ConvTranspose2d, Dim, Embedding, Gru, Layer, Linear, Lstm, RecurrentOptions};
use lowprec::ptq::{DynamicQuantization, WeightConfig};
use lowprec::{DType, LayerKind, Model, Scheme, Tensor, Value, onnx, quantize_dynamic, quantize_static, quantize_weights};

use crate::static_support::{everything, observe, samples};
use crate::support::{Random, network};

pub const DIGITS: [&str; 4] = ["digits_cnn", "digits_residual", "digits_separable", "digits_squeeze"];

pub fn file(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

pub fn digits(name: &str) -> Model {
    onnx::load(file(&format!("tests/fixtures/{name}.onnx"))).unwrap()
}

/// Images as the digits networks take them, and what they show.
pub fn images(part: &str) -> (Tensor, Vec<usize>) {
    let digits = safetensors::read_tensors_file(file("examples/data/digits.safetensors")).unwrap();
    let find = |name: String| digits.tensors.iter().find(|(other, _)| *other == name).unwrap().1.get::<u8>().unwrap().clone();
    let (images, labels) = (find(format!("{part}.images")), find(format!("{part}.labels")));
    let scaled = images.as_slice().iter().map(|&x| f32::from(x) / 16.0).collect();
    (Tensor::new(images.dims().to_vec(), scaled).unwrap(), labels.as_slice().iter().map(|&label| label.into()).collect())
}

/// In codes from end to end, calibrated on the first hundred training images.
pub fn static_digits(float: &Model) -> Model {
    quantize_static(float, [&images("train").0.slice(0, 0..100).unwrap()], &QConfig::default()).unwrap()
}

/// A model with inputs for it.
pub struct Case {
    pub name: String,
    pub model: Model,
    pub inputs: Vec<(String, Value)>,
}

impl Case {
    fn new(name: impl Into<String>, model: Model, x: &Tensor) -> Self {
        let input = model.inputs()[0].name().to_owned();
        Case { name: name.into(), model, inputs: vec![(input, x.clone().into())] }
    }

    pub fn run(&self, model: &Model) -> Vec<(String, Value)> {
        let inputs: Vec<(&str, &Value)> = self.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        model.run(&inputs).unwrap()
    }
}

/// Words to states: an embedding, both recurrent layers and a head.
pub fn sequence(seed: u64) -> Model {
    let r = &mut Random(seed);
    let mut net = Model::builder();
    let x = net.input("words", DType::I64, &[Dim::Any, Dim::Any]).unwrap();
    let x = net.add("table", Embedding::new(r.tensor([11, 6], 1.0)).unwrap(), &[x]).unwrap();
    let both = RecurrentOptions { direction: lowprec::nn::Direction::Bidirectional, ..RecurrentOptions::new(5) };
    let lstm = Lstm::new(both, &r.tensor([2, 20, 6], 0.4), &r.tensor([2, 20, 5], 0.4), Some(&r.tensor([2, 40], 0.2)), None).unwrap();
    let x = net.add_node("lstm", &[Some("states"), None, None], lstm.into(), &[Some(x)]).unwrap()[0];
    let x = net.add(
        "merge",
        lowprec::nn::operator::Reduce::new(lowprec::nn::operator::Reduction::Mean).with_axes([1]).with_kept_axes(false),
        &[x],
    );
    let gru =
        Gru::new(RecurrentOptions::new(4), true, &r.tensor([1, 12, 5], 0.4), &r.tensor([1, 12, 4], 0.4), Some(&r.tensor([1, 24], 0.2)));
    let x = net.add_node("gru", &[None, Some("last")], gru.unwrap().into(), &[Some(x.unwrap())]).unwrap()[1];
    let x = net.add("head", Linear::new(r.tensor([3, 4], 0.5), None).unwrap(), &[x]).unwrap();
    net.output("scores", x).unwrap();
    net.build().unwrap()
}

/// Two transposed convolutions of the same image, in groups and with a bias, and in one and without.
pub fn upsampled(seed: u64) -> Model {
    let r = &mut Random(seed);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let geometry = Conv2dGeometry::new(3, 6, [3, 2]).with_stride([2, 3]).with_padding([1, 0, 0, 1]);
    let grouped = geometry.clone().with_groups(3);
    let bias = r.tensor([6], 0.3);
    let grouped = ConvTranspose2d::new(grouped, r.tensor([3, 2, 3, 2], 0.5), Some(bias)).unwrap().with_output_padding([1, 2]);
    let whole = ConvTranspose2d::new(geometry, r.tensor([3, 6, 3, 2], 0.5), None).unwrap().with_output_padding([1, 2]);
    let a = net.add("grouped", grouped, &[x]).unwrap();
    let b = net.add("whole", whole, &[x]).unwrap();
    let y = net.add("sum", Layer::Add, &[a, b]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

/// Every network in every form that it has.
pub fn cases() -> Vec<Case> {
    let (test, _) = images("test");
    let test = test.slice(0, 0..32).unwrap();
    let mut cases = Vec::new();
    for name in DIGITS {
        let float = digits(name);
        cases.push(Case::new(format!("{name} static"), static_digits(&float), &test));
        cases.push(Case::new(format!("{name} dynamic"), quantize_dynamic(&float, &[LayerKind::Conv2d, LayerKind::Linear]).unwrap(), &test));
        let tensor = DynamicQuantization::new(&[LayerKind::Conv2d, LayerKind::Linear]).with_range(RangeOf::Tensor);
        cases.push(Case::new(format!("{name} dynamic, one range"), tensor.apply(&float).unwrap(), &test));
        cases.push(Case::new(format!("{name} float"), float, &test));
    }
    let image = Random(3).tensor([2, 3, 14, 11], 1.0);
    let float = network(1);
    let kinds = [LayerKind::Conv2d, LayerKind::Linear];
    for bits in 2..8 {
        let dynamic = DynamicQuantization::new(&kinds).with_weights(Scheme::INT8_WEIGHT.with_bits(bits)).apply(&float).unwrap();
        cases.push(Case::new(format!("network dynamic, weights of {bits} bits"), dynamic, &image));
    }
    let coarse = Scheme::UINT8_ACTIVATION.with_bits(6).with_symmetric(true);
    let dynamic = DynamicQuantization::new(&kinds).with_weights(Scheme::INT8_WEIGHT_PER_TENSOR).with_activations(coarse);
    cases.push(Case::new("network dynamic per tensor", dynamic.apply(&float).unwrap(), &image));
    let tensor = DynamicQuantization::new(&kinds).with_range(RangeOf::Tensor);
    cases.push(Case::new("network dynamic, one range", tensor.apply(&float).unwrap(), &image));
    cases.push(Case::new("network float", float, &image));
    let float = everything(2);
    cases.push(Case::new("everything static", observe(&float, &QConfig::default(), &samples(12)), &image));
    cases.push(Case::new("everything float", float, &image));
    let float = upsampled(5);
    let up = || DynamicQuantization::new(&[LayerKind::ConvTranspose2d]);
    cases.push(Case::new("upsampled dynamic", up().apply(&float).unwrap(), &image));
    cases.push(Case::new("upsampled dynamic, one range", up().with_range(RangeOf::Tensor).apply(&float).unwrap(), &image));
    let narrow = up().with_weights(Scheme::INT8_WEIGHT.with_bits(5));
    cases.push(Case::new("upsampled dynamic, weights of 5 bits", narrow.apply(&float).unwrap(), &image));
    cases.push(Case::new("upsampled float", float, &image));
    let float = sequence(4);
    let all = [LayerKind::Embedding, LayerKind::Lstm, LayerKind::Gru, LayerKind::Linear];
    let words = Value::from(Tensor::new([7, 3], (0..21).map(|i| i * 5 % 11).collect::<Vec<i64>>()).unwrap());
    let tensor = DynamicQuantization::new(&all).with_range(RangeOf::Tensor).apply(&float).unwrap();
    let models = [("sequence dynamic", quantize_dynamic(&float, &all).unwrap()), ("sequence dynamic, one range", tensor)];
    let config = WeightConfig::new("uint4:g4".parse().unwrap());
    let alone = quantize_weights(&float, &config).unwrap();
    let bytes = quantize_weights(&float, &config.with_activations(Activations::Int8Groups)).unwrap();
    let more = [("sequence weights alone", alone), ("sequence weights alone, bytes", bytes), ("sequence float", float)];
    for (name, model) in models.into_iter().chain(more) {
        cases.push(Case { name: name.into(), model, inputs: vec![("words".into(), words.clone())] });
    }
    cases
}
