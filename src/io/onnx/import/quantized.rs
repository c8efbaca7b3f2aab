//! Small quantized graphs, each against itself with scales and zero points given as inputs: then it is run as it is spelled.

use std::collections::HashSet;

use super::import;
use crate::error::{Error, Result};
use crate::io::onnx::attribute::Attributes;
use crate::io::onnx::graph::{Graph, Input, Node};
use crate::io::onnx::schema::AttributeProto;
use crate::nn::{Dim, LayerKind, Model, Precision};
use crate::tensor::{DType, Element, Tensor, Value};

/// A graph on its way.
struct Net(Graph);

fn ints(name: &str, list: &[i64]) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(7), ints: list.to_vec(), ..Default::default() }
}

fn int(name: &str, x: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(2), i: Some(x), ..Default::default() }
}

/// Numbers in -1..1 that look random.
fn noise(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |i| {
        let x = (i + 1).wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

impl Net {
    fn new(x: DType, dims: &[usize]) -> Self {
        let dims = dims.iter().map(|&length| Dim::Fixed(length)).collect();
        let inputs = vec![Input { name: "x".into(), dtype: x, dims: Some(dims) }];
        Net(Graph {
            opset: 19,
            inputs,
            initializers: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
            functions: HashSet::new(),
            refused: None,
        })
    }

    fn value(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.initializers.push((name.into(), value.into()));
        self
    }

    /// The grid `name`: its scale and its zero point.
    fn grid<T: Element>(self, name: &str, scale: f32, zero_point: T) -> Self {
        let scalar = |value| Tensor::new(Vec::new(), vec![value]).unwrap();
        let zero_point = T::into_value(Tensor::new(Vec::new(), vec![zero_point]).unwrap());
        self.value(&format!("{name}.scale"), scalar(scale)).value(&format!("{name}.zero"), zero_point)
    }

    /// Weights in codes, with a scale for each entry of an axis.
    fn weights(self, name: &str, dims: &[usize], axis: usize) -> Self {
        let count = dims.iter().product();
        let codes = noise(count, 7).map(|x| (x * 127.0) as i8).collect();
        let scales = noise(dims[axis], 8).map(|x| 0.01 + 0.005 * x).collect();
        self.value(name, Tensor::<i8>::new(dims, codes).unwrap())
            .value(&format!("{name}.scales"), Tensor::new([dims[axis]], scales).unwrap())
            .value(&format!("{name}.zeros"), Tensor::full([dims[axis]], 0i8).unwrap())
    }

    fn node(mut self, operator: &str, inputs: &str, output: &str, attributes: Vec<AttributeProto>) -> Self {
        let (domain, operator) = operator.rsplit_once(':').unwrap_or(("", operator));
        let name = format!("{operator} {output}");
        self.0.nodes.push(Node {
            operator: operator.into(),
            domain: domain.into(),
            // `codes*grid` is codes, scale and zero point.
            inputs: inputs
                .split(' ')
                .flat_map(|input| match input.split_once('*') {
                    Some(("", grid)) => vec![format!("{grid}.scale"), format!("{grid}.zero")],
                    Some((codes, grid)) => vec![codes.into(), format!("{grid}.scale"), format!("{grid}.zero")],
                    None => vec![input.trim_matches('_').into()],
                })
                .collect(),
            outputs: vec![output.into()],
            attributes: Attributes::new(&name, operator, attributes, &mut Default::default()).unwrap(),
            name,
        });
        self
    }

    /// `from` rounded: its codes `from.q` and the floats `from.r`.
    fn rounded(self, from: &str, grid: &str) -> Self {
        self.node("QuantizeLinear", &format!("{from}*{grid}"), &format!("{from}.q"), vec![]).node(
            "DequantizeLinear",
            &format!("{from}.q*{grid}"),
            &format!("{from}.r"),
            vec![],
        )
    }

    fn floats_of_weights(self, name: &str, axis: i64) -> Self {
        let inputs = format!("{name} {name}.scales {name}.zeros");
        self.node("DequantizeLinear", &inputs, &format!("{name}.f"), vec![int("axis", axis)])
    }

    fn output(mut self, name: &str) -> Self {
        self.0.outputs.push(name.into());
        self
    }

    /// Scales and zero points of activations become inputs.
    fn spelled(mut self) -> (Self, Vec<(String, Value)>) {
        let is_parameter = |name: &str| name.ends_with(".scale") || name.ends_with(".zero");
        let (given, left) = std::mem::take(&mut self.0.initializers).into_iter().partition(|(name, _)| is_parameter(name));
        self.0.initializers = left;
        for (name, value) in &given {
            self.0.inputs.push(Input { name: String::clone(name), dtype: Value::dtype(value), dims: Some(vec![]) });
        }
        (self, given)
    }
}

fn input(net: &Graph) -> Value {
    let dims: Vec<usize> = net.inputs[0].dims.iter().flatten().map(|dim| if let Dim::Fixed(length) = dim { *length } else { 1 }).collect();
    let x = noise(dims.iter().product(), 1);
    match net.inputs[0].dtype {
        DType::U8 => Tensor::<u8>::new(dims, x.map(|x| (128.0 + 127.0 * x) as u8).collect()).unwrap().into(),
        DType::I8 => Tensor::<i8>::new(dims, x.map(|x| (127.0 * x) as i8).collect()).unwrap().into(),
        _ => Tensor::new(dims, x.map(|x| 2.0 * x).collect()).unwrap().into(),
    }
}

fn largest_difference(a: &Value, b: &Value) -> f32 {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    let floats = |value: &Value| -> Vec<f32> {
        match value {
            Value::F32(t) => t.as_slice().to_vec(),
            Value::U8(t) => t.as_slice().iter().map(|&x| x.into()).collect(),
            Value::I8(t) => t.as_slice().iter().map(|&x| x.into()).collect(),
            other => panic!("{}", other.dtype()),
        }
    };
    let (a, b) = (floats(a), floats(b));
    // What is all the same says nothing.
    assert!(a.len() < 2 || a.iter().any(|x| *x != a[0]));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The model in integers, whose outputs differ from those of the graph as spelled by no more than this.
fn check(net: &dyn Fn() -> Net, tolerance: f32) -> Model {
    let model = import(net().0).unwrap();
    let x = input(&net().0);
    let got = model.run(&[("x", &x)]).unwrap();
    let (spelled, given) = net().spelled();
    let spelled = import(spelled.0).unwrap();
    let mut inputs: Vec<(&str, &Value)> = given.iter().map(|(name, value)| (name.as_str(), value)).collect();
    inputs.push(("x", &x));
    let expected = spelled.run(&inputs).unwrap();
    assert_eq!(got.len(), expected.len());
    for ((name, got), (other, expected)) in got.iter().zip(&expected) {
        assert_eq!(name, other);
        let difference = largest_difference(got, expected);
        assert!(difference <= tolerance, "{name}: {difference}\n{model}");
    }
    model
}

fn kinds(model: &Model) -> Vec<String> {
    model.nodes().iter().map(|node| node.layer().kind().to_string()).collect()
}

fn precision(model: &Model, name: &str) -> Precision {
    model.node(name).unwrap_or_else(|| panic!("{name} in\n{model}")).layer().precision()
}

/// A convolution of rounded values, written to `y`.
fn conv() -> Net {
    Net::new(DType::F32, &[2, 3, 6, 6])
        .grid("gx", 0.02, 117u8)
        .grid("gy", 0.05, 110u8)
        .weights("w", &[5, 3, 3, 3], 0)
        .rounded("x", "gx")
        .floats_of_weights("w", 0)
        .node("Conv", "x.r w.f", "y", vec![])
}

#[test]
fn a_value_that_others_want_unrounded_is_rounded_aside() {
    // Read as it is by another node, and by nobody.
    let model = check(&|| conv().rounded("y", "gy").node("Abs", "y", "z", vec![]).output("z").output("y.r"), 0.05001);
    assert_eq!(precision(&model, "Conv y"), Precision::Int8);
    check(&|| conv().rounded("y", "gy").output("y").output("y.r"), 0.05001);
    // Rounded twice, in two ways.
    let twice = || {
        let net = conv().grid("gz", 0.31, -7i8).rounded("y", "gy").node("QuantizeLinear", "y*gz", "z", vec![]);
        net.node("DequantizeLinear", "z*gz", "z.r", vec![]).output("y.r").output("z.r").output("z")
    };
    check(&twice, 1.0);
    // One after the other.
    check(&|| conv().grid("gz", 0.31, 7u8).rounded("y", "gy").rounded("y.r", "gz").output("y.r.q").output("y.q"), 1.0);
    // Its shape is not its values.
    let shape = || conv().rounded("y", "gy").node("Shape", "y", "s", vec![]).node("Reshape", "y.r s", "z", vec![]).output("z");
    let model = check(&shape, 0.05001);
    assert!(!kinds(&model).contains(&"Identity".to_owned()), "{model}");
}

#[test]
fn codes_come_in_and_go_out_as_they_are() {
    let net = || {
        Net::new(DType::U8, &[2, 3, 6, 6])
            .grid("gx", 0.02, 117u8)
            .grid("gy", 0.05, 110u8)
            .weights("w", &[5, 3, 3, 3], 0)
            .node("DequantizeLinear", "x*gx", "x.r", vec![])
            .floats_of_weights("w", 0)
            .node("Conv", "x.r w.f", "y", vec![])
            .node("QuantizeLinear", "y*gy", "y.q", vec![])
            .output("y.q")
    };
    let model = check(&net, 1.0);
    assert_eq!(kinds(&model), ["Conv2d"]);
    let both = || net().node("DequantizeLinear", "y.q*gy", "y.r", vec![]).output("y.r").output("x.r");
    check(&both, 1.0);
    // Signed ones are the same 128 codes higher.
    let signed = || {
        let net = Net::new(DType::I8, &[2, 3, 6, 6]).grid("gx", 0.02, -11i8).grid("gy", 0.05, -18i8).weights("w", &[5, 3, 3, 3], 0);
        let net = net.node("DequantizeLinear", "x*gx", "x.r", vec![]).floats_of_weights("w", 0).node("Conv", "x.r w.f", "y", vec![]);
        net.rounded("y", "gy").output("y.q").output("y.r")
    };
    let model = check(&signed, 1.0);
    assert_eq!(precision(&model, "Conv y"), Precision::Int8);
    // By themselves they stay exact.
    for dtype in [DType::U8, DType::I8] {
        let alone = || {
            let net = Net::new(DType::F32, &[40]);
            let net = if dtype == DType::U8 { net.grid("g", 0.013, 100u8) } else { net.grid("g", 0.013, -28i8) };
            net.rounded("x", "g").output("x.q").output("x.r")
        };
        check(&alone, 0.0);
    }
}

#[test]
fn what_moves_codes_moves_them() {
    let net = || {
        let net = conv().node("QuantizeLinear", "y*gy", "y.q", vec![]).value("shape", Tensor::new([2], vec![-1i64, 6]).unwrap());
        let net = net.node("MaxPool", "y.q", "p", vec![ints("kernel_shape", &[2, 2])]).node("Reshape", "p shape", "r", vec![]);
        let net = net.node("Transpose", "r", "t", vec![]).node("Concat", "t t", "c", vec![int("axis", 0)]);
        net.node("DequantizeLinear", "c*gy", "z", vec![]).output("z").output("t")
    };
    let model = check(&net, 1.0);
    assert_eq!(kinds(&model).iter().filter(|kind| kind.ends_with("Linear")).count(), 2, "{model}");
    assert_eq!(precision(&model, "MaxPool p"), Precision::Int8);
    // Codes of two grids are not the same where they are joined, and stay what they are.
    let joined = || {
        let net = conv().grid("gz", 0.2, 3u8).node("QuantizeLinear", "y*gy", "a", vec![]).node("QuantizeLinear", "y*gz", "b", vec![]);
        net.node("Concat", "a b", "c", vec![int("axis", 1)]).output("c")
    };
    check(&joined, 1.0);
}

#[test]
fn clamps_and_pools_before_rounding_follow_it() {
    let net = || {
        let net = conv().node("Relu", "y", "a", vec![]).node("MaxPool", "a", "b", vec![ints("kernel_shape", &[2, 2])]);
        let net = net.rounded("b", "gy").node("Add", "b.r b.r", "s", vec![]).node("Relu", "s", "t", vec![]).rounded("t", "gy");
        net.node("GlobalAveragePool", "t.r", "u", vec![]).rounded("u", "gy").output("u.r")
    };
    let model = check(&net, 0.1501);
    for name in ["Conv y", "MaxPool b", "Add s", "Relu t", "GlobalAveragePool u"] {
        assert_eq!(precision(&model, name), Precision::Int8, "{name}");
    }
    assert!(model.node("Relu a").is_none());
}

#[test]
fn matrices_in_every_way_that_files_have_them() {
    let net = || Net::new(DType::F32, &[4, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.05, 110u8).rounded("x", "gx");
    let bias = || Tensor::new([5], noise(5, 3).collect()).unwrap();
    let cases: [&dyn Fn() -> Net; 5] = [
        &|| net().weights("w", &[6, 5], 1).floats_of_weights("w", 1).node("MatMul", "x.r w.f", "y", vec![]),
        &|| net().weights("w", &[6, 5], 1).floats_of_weights("w", -1).value("b", bias()).node("Gemm", "x.r w.f b", "y", vec![]),
        &|| net().weights("w", &[5, 6], 0).floats_of_weights("w", 0).node("Gemm", "x.r w.f", "y", vec![int("transB", 1)]),
        &|| {
            let net = net().weights("w", &[5, 6], 0).floats_of_weights("w", 0).node("Transpose", "w.f", "t", vec![ints("perm", &[1, 0])]);
            net.value("b", bias()).node("MatMul", "x.r t", "p", vec![]).node("Add", "b p", "y", vec![])
        },
        &|| {
            let codes = noise(30, 9).map(|x| (128.0 + 127.0 * x) as u8).collect();
            let net = net().value("w", Tensor::<u8>::new([6, 5], codes).unwrap()).value("s", Tensor::full([1], 0.01f32).unwrap());
            let net = net.value("z", Tensor::full([1], 128u8).unwrap()).node("DequantizeLinear", "w s z", "w.f", vec![]);
            net.node("MatMul", "x.r w.f", "y", vec![])
        },
    ];
    for case in cases {
        let model = check(&|| case().rounded("y", "gy").output("y.r"), 0.05001);
        let linear = model.nodes().iter().find(|node| node.layer().kind() == LayerKind::Linear).unwrap();
        assert_eq!(linear.layer().precision(), Precision::Int8, "{model}");
        // Nobody says how the product is rounded: floats come out.
        let model = check(&|| case().output("y"), 1e-5);
        assert_eq!(kinds(&model), ["QuantizeLinear", "Linear"]);
    }
}

#[test]
fn what_integers_cannot_do_stays_in_float() {
    // Weights around another number than 0, scales of the wrong axis, a bias that no sum in i32 holds.
    let around = || {
        let net = Net::new(DType::F32, &[4, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.05, 110u8).rounded("x", "gx");
        let net = net.weights("w", &[6, 5], 1).value("z", Tensor::full([5], 3i8).unwrap());
        net.node("DequantizeLinear", "w w.scales z", "w.f", vec![int("axis", 1)]).node("MatMul", "x.r w.f", "y", vec![])
    };
    let across = || {
        let net = Net::new(DType::F32, &[4, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.05, 110u8).rounded("x", "gx");
        net.weights("w", &[6, 5], 0).floats_of_weights("w", 0).node("MatMul", "x.r w.f", "y", vec![])
    };
    let heavy = || {
        let net = Net::new(DType::F32, &[4, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.05, 110u8).rounded("x", "gx");
        let bias = (0..5).map(|i| i as f32).collect();
        let net = net.value("w", Tensor::full([6, 5], 1i8).unwrap()).value("s", Tensor::full([1], 1e-12f32).unwrap());
        let net = net.value("b", Tensor::new([5], bias).unwrap()).node("DequantizeLinear", "w s", "w.f", vec![]);
        net.node("Gemm", "x.r w.f b", "y", vec![])
    };
    let cases: [&dyn Fn() -> Net; 3] = [&around, &across, &heavy];
    for case in cases {
        let model = check(&|| case().rounded("y", "gy").output("y.r"), 0.05001);
        let linear = model.nodes().iter().find(|node| node.layer().kind() == LayerKind::Linear).unwrap();
        assert_eq!(linear.layer().precision(), Precision::F32, "{model}");
    }
}

#[test]
fn operators_on_codes_are_three_in_one() {
    let net = || Net::new(DType::U8, &[2, 3, 6, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.03, 110u8);
    let read = || net().node("DequantizeLinear", "x*gx", "f", vec![]);
    let pool = || vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1]), int("count_include_pad", 1)];
    let codes = || Tensor::<u8>::new([3, 1, 1], vec![3, 100, 250]).unwrap();
    let truth = || Tensor::<bool>::new([6], vec![true, false, true, true, false, false]).unwrap();
    // What is written in one node, and in several.
    let cases: [(Net, Net, f32); 9] = [
        (net().node("com.microsoft:QLinearAdd", "x*gx x*gx *gy", "y", vec![]), read().node("Add", "f f", "g", vec![]), 1.0),
        (net().node("com.microsoft:QLinearMul", "x*gx x*gx *gy", "y", vec![]), read().node("Mul", "f f", "g", vec![]), 1.0),
        (
            net().value("c", codes()).node("com.microsoft:QLinearAdd", "x*gx c*gy *gy", "y", vec![]),
            read().value("c", codes()).node("DequantizeLinear", "c*gy", "c.f", vec![]).node("Add", "f c.f", "g", vec![]),
            1.0,
        ),
        (net().node("com.microsoft:QLinearSigmoid", "x*gx *gy", "y", vec![]), read().node("Sigmoid", "f", "g", vec![]), 0.0),
        (net().node("com.microsoft:QLinearAveragePool", "x*gx *gy", "y", pool()), read().node("AveragePool", "f", "g", pool()), 1.0),
        (
            net().node("com.microsoft:QLinearGlobalAveragePool", "x*gx *gy", "y", vec![int("channels_last", 0)]),
            read().node("GlobalAveragePool", "f", "g", vec![]),
            1.0,
        ),
        (
            net().node("com.microsoft:QLinearSoftmax", "x*gx *gy", "y", vec![int("axis", -1), int("opset", 13)]),
            read().node("Softmax", "f", "g", vec![int("axis", -1)]),
            0.0,
        ),
        (
            net().node("com.microsoft:QLinearConcat", "*gy x*gx x*gy", "y", vec![int("axis", 1)]),
            read().node("DequantizeLinear", "x*gy", "h", vec![]).node("Concat", "f h", "g", vec![int("axis", 1)]),
            0.0,
        ),
        (
            net().value("t", truth()).node("com.microsoft:QLinearWhere", "t x*gx x*gy *gy", "y", vec![]),
            read().value("t", truth()).node("DequantizeLinear", "x*gy", "h", vec![]).node("Where", "t f h", "g", vec![]),
            0.0,
        ),
    ];
    for (one, several, tolerance) in cases {
        let x = input(&one.0);
        let what = one.0.nodes[0].operator.clone();
        let one = import(one.output("y").0).unwrap();
        let (several, given) = several.node("QuantizeLinear", "g*gy", "y", vec![]).output("y").spelled();
        let several = import(several.0).unwrap();
        let mut inputs: Vec<(&str, &Value)> = given.iter().map(|(name, value)| (name.as_str(), value)).collect();
        inputs.push(("x", &x));
        let expected = several.run(&inputs).unwrap().remove(0).1;
        let difference = largest_difference(&one.run(&[("x", &x)]).unwrap()[0].1, &expected);
        assert!(difference <= tolerance, "{what}: {difference}");
    }
}

#[test]
fn products_on_codes_are_layers() {
    let net = || Net::new(DType::U8, &[2, 3, 6, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.05, 110u8);
    let bias = || Tensor::<i32>::new([5], vec![-1000, 5, 70_000, 0, 3]).unwrap();
    let conv = || {
        let net = net().weights("w", &[5, 3, 3, 3], 0).value("b", bias());
        net.node("QLinearConv", "x*gx w w.scales w.zeros *gy b", "y", vec![]).output("y")
    };
    // The plain operator computes the very same.
    assert_eq!(kinds(&check(&conv, 0.0)), ["Conv2d"]);
    let matrix = || Net::new(DType::U8, &[4, 6]).grid("gx", 0.02, 117u8).grid("gy", 0.05, 110u8);
    let product = || {
        let net = matrix().weights("w", &[6, 5], 1);
        net.node("QLinearMatMul", "x*gx w w.scales w.zeros *gy", "y", vec![]).output("y")
    };
    assert_eq!(kinds(&check(&product, 0.0)), ["Linear"]);
    // With weights around another number, or that are no constants, it stays itself.
    let around = || {
        let net = matrix().weights("w", &[6, 5], 1).value("z", Tensor::full([5], 3i8).unwrap());
        net.node("QLinearMatMul", "x*gx w w.scales z *gy", "y", vec![]).output("y")
    };
    assert_eq!(kinds(&check(&around, 0.0)), ["QLinearMatMul"]);
    let square = || Net::new(DType::U8, &[4, 4]).grid("gx", 0.02, 117u8).node("QLinearMatMul", "x*gx x*gx *gx", "y", vec![]).output("y");
    assert_eq!(kinds(&check(&square, 0.0)), ["QLinearMatMul"]);
    // QGemm, with its output in codes and in floats, its matrix either way.
    for (dims, axis, transposed) in [([5, 6], 0, 1), ([6, 5], 1, 0)] {
        let gemm = |rest: &str| {
            let net = matrix().weights("w", &dims, axis).value("b", bias());
            let net = net.node("com.microsoft:QGemm", &format!("x*gx w w.scales w.zeros b{rest}"), "y", vec![int("transB", transposed)]);
            import(net.output("y").0).unwrap()
        };
        let (codes, floats) = (gemm(" *gy"), gemm(""));
        assert_eq!((kinds(&codes), kinds(&floats)), (vec!["Linear".to_owned()], vec!["Linear".to_owned()]));
        let x = input(&matrix().0);
        let [codes, floats] = [codes, floats].map(|model| model.run(&[("x", &x)]).unwrap().remove(0).1);
        let rounded =
            floats.get::<f32>().unwrap().as_slice().iter().map(|y| (110.0 + (y / 0.05).round_ties_even()).clamp(0.0, 255.0) as u8);
        assert!(largest_difference(&codes, &Tensor::new([4, 5], rounded.collect()).unwrap().into()) <= 1.0);
    }
}

#[test]
fn nodes_may_be_called_like_codes() {
    let mut net = conv().rounded("y", "gy").node("Abs", "y.r", "z", vec![]).rounded("z", "gy").output("z.r");
    // Each like a value that it does not write, here or in the model in integers.
    for (node, name) in net.0.nodes.iter_mut().zip(["y.q", "x.q", "y", "y.r", "z.q", "x.r", "z", "y.q/scale", "x"]) {
        node.name = name.into();
    }
    let model = import(net.0).unwrap();
    model.run(&[("x", &input(&conv().0))]).unwrap();
}

#[test]
fn numbers_that_make_no_sense_are_errors_or_run_as_they_are_spelled() {
    let with = |scale: Tensor, zero: Value| -> Result<Model> {
        let net = Net::new(DType::F32, &[2, 3, 6, 6]).value("gx.scale", scale).value("gx.zero", zero).grid("gy", 0.05, 110u8);
        let net = net.weights("w", &[5, 3, 3, 3], 0).rounded("x", "gx").floats_of_weights("w", 0).node("Conv", "x.r w.f", "y", vec![]);
        import(net.rounded("y", "gy").output("y.r").0)
    };
    let zero = || Value::from(Tensor::full([1], 3u8).unwrap());
    for scale in [0.0, -0.5, f32::NAN, f32::INFINITY] {
        let model = with(Tensor::full([1], scale).unwrap(), zero()).unwrap();
        assert_eq!(precision(&model, "Conv y"), Precision::F32, "{scale}");
        drop(model.run(&[("x", &input(&conv().0))]));
    }
    let one = || Tensor::full([1], 0.1).unwrap();
    for wrong in [0, 2] {
        let run = with(one(), Tensor::full([wrong], 3u8).unwrap().into()).and_then(|model| model.run(&[("x", &input(&conv().0))]));
        assert!(run.is_err(), "{wrong} zero points");
    }
    assert!(matches!(with(one(), Tensor::full([1], 3i32).unwrap().into()).unwrap_err().kind(), Error::Type { .. }));
    // Scales so far apart that no multiplier lies between.
    let far = |x: f32, y: f32| {
        let net = Net::new(DType::F32, &[4, 6]).grid("gx", x, 3u8).grid("gy", y, 3u8).rounded("x", "gx");
        let net = net.weights("w", &[6, 5], 1).floats_of_weights("w", 1).node("MatMul", "x.r w.f", "y", vec![]).rounded("y", "gy");
        import(net.node("Add", "y.r y.r", "s", vec![]).rounded("s", "gx").output("s.r").0)
    };
    for (x, y) in [(f32::MAX, 1e-45), (1e-45, f32::MAX), (1e-45, 1e-45), (f32::MAX, f32::MAX)] {
        if let Ok(model) = far(x, y) {
            model.run(&[("x", &Tensor::full([4, 6], 1.0).unwrap().into())]).unwrap();
        }
    }
    // An operator whose parameters must be constant.
    let (open, _) =
        Net::new(DType::U8, &[4]).grid("g", 0.1, 3u8).node("com.microsoft:QLinearSigmoid", "x*g *g", "y", vec![]).output("y").spelled();
    let error = import(open.0).unwrap_err();
    assert!(matches!(error.kind(), Error::Unsupported { .. }) && error.to_string().contains("QLinearSigmoid"), "{error}");
    let last = Net::new(DType::U8, &[1, 4, 4, 2]).grid("g", 0.1, 3u8);
    let last = last.node("com.microsoft:QLinearGlobalAveragePool", "x*g *g", "y", vec![int("channels_last", 1)]).output("y");
    assert!(import(last.0).unwrap_err().to_string().contains("channels_last"));
    let unknown = Net::new(DType::U8, &[4]).node("com.microsoft:QAttention", "x", "y", vec![]).output("y");
    assert!(import(unknown.0).unwrap_err().to_string().contains("com.microsoft:QAttention"));
}
