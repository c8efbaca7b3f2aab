//! Models that ONNX Runtime's tool quantized (`tests/reference/quantized_onnx_fixtures.py`) run in integers, on the codes that
//! ONNX Runtime has between its layers.

use std::collections::BTreeMap;

use lowprec::io::safetensors;
use lowprec::nn::{Dim, Executor, Node};
use lowprec::{Error, LayerKind, Model, Precision, Tensor, Value, metrics, onnx, quantize_dynamic};

const NAMES: [&str; 6] =
    ["residual_qdq", "residual_qdq_i8", "residual_qoperator", "separable_qdq", "separable_qoperator_i8", "squeeze_qoperator"];

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn load(name: &str) -> Model {
    onnx::load(fixture(&format!("digits_{name}.onnx"))).unwrap()
}

fn test_set() -> (Tensor, Vec<usize>) {
    crate::example::test_set(&format!("{}/examples/data/digits.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.as_slice().iter().map(|x| x.to_bits()).collect()
}

/// ONNX Runtime's values.
struct Stored {
    tensors: BTreeMap<String, Value>,
    order: BTreeMap<String, Vec<String>>,
}

impl Stored {
    fn load() -> Self {
        let file = safetensors::read_tensors(&std::fs::read(fixture("digits_quantized.safetensors")).unwrap()).unwrap();
        let order = serde_json::from_str(file.metadata.iter().find(|(key, _)| *key == "order").unwrap().1).unwrap();
        Stored { tensors: file.tensors.into_iter().collect(), order }
    }

    /// Codes of a boundary as u8.
    fn codes(&self, model: &str, name: &str) -> Option<Value> {
        match self.tensors.get(&format!("{model}/{name}"))? {
            Value::U8(codes) => Some(Value::U8(codes.clone())),
            Value::I8(codes) => {
                let unsigned = codes.as_slice().iter().map(|&code| (code as u8) ^ 0x80).collect();
                Some(Tensor::new(codes.dims(), unsigned).unwrap().into())
            }
            _ => None,
        }
    }

    fn logits(&self, model: &str, which: &str) -> &Tensor {
        self.tensors[&format!("{model}/{which}")].get::<f32>().unwrap()
    }
}

/// How many codes differ, by how much at most, of how many.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Difference {
    count: usize,
    most: u8,
    of: usize,
}

impl Difference {
    fn of(got: &Value, expected: &Value) -> Self {
        assert_eq!(got.shape(), expected.shape());
        let pairs = got.get::<u8>().unwrap().as_slice().iter().zip(expected.get::<u8>().unwrap().as_slice());
        let most = pairs.clone().map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        Difference { count: pairs.filter(|(a, b)| a != b).count(), most, of: got.shape().elements() }
    }

    fn join(self, other: Self) -> Self {
        Difference { count: self.count + other.count, most: self.most.max(other.most), of: self.of + other.of }
    }
}

/// One node by itself, on these values of its inputs that are no constants.
fn run_alone(model: &Model, node: &Node, values: &dyn Fn(&str) -> Option<Value>) -> Option<Value> {
    let mut net = Model::builder();
    let (mut inputs, mut given) = (Vec::new(), Vec::new());
    for edge in node.inputs() {
        let Some(edge) = *edge else {
            inputs.push(None);
            continue;
        };
        let name = model.edge_name(edge);
        inputs.push(Some(match model.constants().iter().find(|(other, _)| *other == edge) {
            Some((_, value)) => net.constant(name, value.clone()).unwrap(),
            None => {
                let value = values(name)?;
                let edge = net.input(name, value.dtype(), &vec![Dim::Any; value.shape().rank()]).unwrap();
                given.push((name, value));
                edge
            }
        }));
    }
    let edges = net.add_node("node", &[Some("y")], node.layer().clone(), &inputs).unwrap();
    net.output("y", edges[0]).unwrap();
    let given: Vec<(&str, &Value)> = given.iter().map(|(name, value)| (*name, value)).collect();
    Some(net.build().unwrap().run(&given).unwrap().remove(0).1)
}

/// The float network of which a model was made.
fn float_of(name: &str) -> Model {
    load(name.split_once('_').unwrap().0)
}

#[test]
fn everything_between_the_first_codes_and_the_last_is_integer() {
    for (name, sums, products) in NAMES.into_iter().zip([4, 4, 4, 3, 3, 1]).zip([0, 0, 0, 0, 0, 11]).map(|((a, b), c)| (a, b, c)) {
        let (model, float) = (load(name), float_of(name));
        let count = |model: &Model, kind| model.nodes().iter().filter(|node| node.layer().kind() == kind).count();
        for kind in [LayerKind::Conv2d, LayerKind::Linear] {
            assert_eq!(count(&model, kind), count(&float, kind), "{name}: {kind}");
        }
        assert_eq!(count(&model, LayerKind::Operator("Add")), sums, "{name}");
        assert_eq!(count(&model, LayerKind::Operator("Mul")), products, "{name}");
        let [first, between @ .., last] = model.nodes() else { panic!("{model}") };
        assert_eq!(first.layer().kind(), LayerKind::Operator("QuantizeLinear"));
        assert_eq!((last.name(), last.layer().kind()), ("logits_DequantizeLinear", LayerKind::Operator("DequantizeLinear")));
        for node in between {
            let moves = node.layer().kind() == LayerKind::Operator("Flatten");
            assert!(moves || node.layer().precision() == Precision::Int8, "{name}: {} in\n{model}", node.name());
        }
        assert!(matches!(quantize_dynamic(&model, &[LayerKind::Conv2d]), Err(Error::NothingToQuantize { .. })));
    }
}

#[test]
fn each_layer_writes_the_codes_of_onnx_runtime() {
    let stored = Stored::load();
    let images = Value::from(test_set().0.slice(0, 0..8).unwrap());
    for name in NAMES {
        let model = load(name);
        let (mut means, mut others, mut seen) = (Difference::default(), Difference::default(), 0);
        for node in model.nodes() {
            let Some(expected) = stored.codes(name, model.edge_name(node.outputs()[0])) else { continue };
            let values = |edge: &str| if edge == "image" { Some(images.clone()) } else { stored.codes(name, edge) };
            let difference = Difference::of(&run_alone(&model, node, &values).unwrap(), &expected);
            let sum = if node.layer().kind() == LayerKind::Operator("AveragePool") { &mut means } else { &mut others };
            *sum = sum.join(difference);
            seen += 1;
        }
        assert_eq!(seen, stored.order[name].len(), "{name}");
        assert_eq!(others.count, 0, "{name}: {others:?}");
        // A mean of four codes halfway between two of them: the stored ones of a QDQ model went through floats.
        let most = if name.starts_with("residual_qdq") { (1, means.of / 25) } else { (0, 0) };
        assert!(means.most <= most.0 && means.count <= most.1, "{name}: {means:?}");
    }
}

#[test]
fn from_image_to_logits_too() {
    let stored = Stored::load();
    let images = test_set().0.slice(0, 0..8).unwrap();
    for name in NAMES {
        let model = load(name);
        let mut difference = Difference::default();
        let logits = model
            .forward_with(&images, |tap| {
                if let (Some(_), Some(expected)) = (tap.node, stored.codes(name, tap.edge)) {
                    difference = difference.join(Difference::of(tap.value, &expected));
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(bits(&model.forward(&images).unwrap()), bits(&logits), "{name}");
        let off = |which: &str| {
            let stored = stored.logits(name, which).as_slice();
            logits.as_slice().iter().zip(stored).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        // Halves in two AveragePools, and what comes of them: at most three codes, and one of the logits.
        let (codes, last) = if name.starts_with("residual_qdq") { (3, 0.12) } else { (0, 0.0) };
        assert!(difference.of > 60_000 && difference.most <= codes && difference.count <= difference.of / 25, "{name}: {difference:?}");
        assert!(off("logits") <= last && off("logits_unoptimized") <= last, "{name}: {}", off("logits"));
    }
}

#[test]
fn no_accuracy_is_lost() {
    let (images, labels) = test_set();
    for name in NAMES {
        let model = load(name);
        let [one, two] = [1, 2].map(|threads| Executor::new(&model).with_threads(threads).unwrap().forward(&images).unwrap());
        assert_eq!(bits(&one), bits(&two), "{name}");
        let right = |logits: &Tensor| metrics::top1(logits.as_slice(), 10).unwrap().iter().zip(&labels).filter(|(a, b)| a == b).count();
        let (float, int8) = (right(&float_of(name).forward(&images).unwrap()), right(&one));
        assert!(float > 630 && int8 + 1 >= float, "{name}: {int8} of {float}");
    }
}
