//! Channels brought to like ranges: the function stays, and what rounding had lost comes back.

use std::collections::HashMap;

use crate::static_support::everything;
use crate::support::{Random, conv, network, norm};
use lowprec::convert::StaticPlan;
use lowprec::kernels::Conv2dGeometry;
use lowprec::metrics::{relative_error, sqnr_db};
use lowprec::nn::operator::{Binary, Operator, Unary, Variadic};
use lowprec::nn::{BatchNorm2d, Dim, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Model};
use lowprec::ptq::equalize::{Absorption, Draws, Equalization, Equalized, equalize, equalize_by_trial};
use lowprec::{DType, Error, Precision, Progress, QConfig, Tensor, Value, quantize_static};

pub fn even(model: &Model, samples: Option<&Tensor>, options: &Equalization) -> Equalized {
    let samples: Option<Value> = samples.cloned().map(Value::from);
    let batch: Vec<(&str, &Value)> = samples.iter().map(|samples| (model.inputs()[0].name(), samples)).collect();
    let batches: &[&[(&str, &Value)]] = &[&batch];
    equalize(model, if batch.is_empty() { &[] } else { batches }, options, Progress::silent()).unwrap()
}

fn off(model: &Model, other: &Model, x: &Tensor) -> f64 {
    relative_error(model.forward(x).unwrap().as_slice(), other.forward(x).unwrap().as_slice()).unwrap()
}

#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod digits {
    use super::*;
    use crate::static_digits::{images, network};
    use lowprec::Scheme;
    use lowprec::convert::StaticScheme;
    use lowprec::nn::{Conv2d, Edge, ModelBuilder, Node};

    /// A copy, in which each node may become another layer with other constants; `change` gets the node's layer and its name.
    struct Copy<'m> {
        model: &'m Model,
        net: ModelBuilder,
        edges: HashMap<String, Edge>,
    }

    impl<'m> Copy<'m> {
        fn new(model: &'m Model) -> Self {
            let mut copy = Copy { model, net: Model::builder(), edges: HashMap::new() };
            for input in model.inputs() {
                let edge = copy.net.input(input.name(), input.dtype(), input.dims()).unwrap();
                copy.edges.insert(input.name().to_owned(), edge);
            }
            copy
        }

        fn reads(&self, node: &Node) -> Vec<Edge> {
            node.reads().map(|edge| self.edges[self.model.edge_name(edge)]).collect()
        }

        fn add(&mut self, node: &Node, layer: impl Into<Layer>, inputs: &[Edge]) {
            let name = self.model.edge_name(node.outputs()[0]);
            let edge = self.net.add_as(node.name(), name, layer, inputs).unwrap();
            self.edges.insert(name.to_owned(), edge);
        }

        fn finish(mut self) -> Model {
            for output in self.model.outputs() {
                self.net.output(output.name(), self.edges[self.model.edge_name(output.edge())]).unwrap();
            }
            self.net.build().unwrap()
        }
    }

    /// The same function, of a network of batch norms, ReLU6 and convolutions, each channel between a ReLU6 and its one reader multiplied with
    /// 2^U(-4, 4).
    fn rescaled(model: &Model, seed: u64) -> Model {
        let (mut random, mut copy) = (Random(seed), Copy::new(model));
        let readers = |edge: Edge| model.nodes().iter().filter(move |node| node.reads().any(|read| read == edge)).collect::<Vec<&Node>>();
        let mut scales: HashMap<Edge, Vec<f32>> = HashMap::new();
        let times = |tensor: &Tensor, factors: &[f32]| {
            Tensor::new(tensor.dims(), tensor.as_slice().iter().zip(factors).map(|(x, factor)| x * factor).collect()).unwrap()
        };
        for node in model.nodes() {
            let (read, written) = (node.inputs()[0].unwrap(), node.outputs()[0]);
            let (inputs, scale) = (copy.reads(node), scales.get(&read).cloned());
            match (node.layer(), scale) {
                (Layer::BatchNorm2d(norm), _) => {
                    let next = readers(written);
                    let fits = matches!(next[..], [next] if matches!(next.layer(), Layer::Relu6) && readers(next.outputs()[0]).len() == 1);
                    let scale: Vec<f32> = (0..norm.channels()).map(|_| if fits { (4.0 * random.unit()).exp2() } else { 1.0 }).collect();
                    let [weight, bias, mean, variance] = norm.parameters();
                    let scaled = (times(weight, &scale), times(bias, &scale));
                    copy.add(node, BatchNorm2d::new(scaled.0, scaled.1, mean.clone(), variance.clone(), norm.epsilon()).unwrap(), &inputs);
                    if fits {
                        scales.insert(written, scale);
                    }
                }
                (Layer::Relu6, Some(scale)) => {
                    let cap = Tensor::new([scale.len(), 1, 1], scale.iter().map(|scale| 6.0 * scale).collect()).unwrap();
                    let cap = copy.net.constant(&format!("{}.cap", node.name()), cap).unwrap();
                    let relu = copy.net.add(&format!("{}.relu", node.name()), Layer::Relu, &inputs).unwrap();
                    copy.add(node, Variadic::Min, &[relu, cap]);
                    scales.insert(written, scale);
                }
                (Layer::Conv2d(layer), Some(scale)) => {
                    let (geometry, mut weight) = (layer.geometry().clone(), layer.weight().clone());
                    let [outputs, width, h, w] = geometry.weight_shape();
                    for (i, filter) in weight.as_mut_slice().chunks_mut(h * w).enumerate() {
                        let group = i / width / (outputs / geometry.groups);
                        filter.iter_mut().for_each(|w| *w /= scale[group * width + i % width]);
                    }
                    copy.add(node, Conv2d::new(geometry, weight, layer.bias().cloned()).unwrap(), &inputs);
                }
                (Layer::Linear(layer), Some(scale)) => {
                    let mut weight = layer.weight().clone();
                    weight
                        .as_mut_slice()
                        .chunks_mut(scale.len())
                        .for_each(|row| row.iter_mut().zip(&scale).for_each(|(w, scale)| *w /= scale));
                    copy.add(node, Linear::new(weight, layer.bias().cloned()).unwrap(), &inputs);
                }
                (layer, scale) => {
                    copy.add(node, layer.clone(), &inputs);
                    scale.map(|scale| scales.insert(written, scale));
                }
            }
        }
        assert!(scales.len() > 20, "{} values were rescaled", scales.len());
        copy.finish()
    }

    #[test]
    fn the_function_stays() {
        let (samples, test) = (images("train").0.slice(0, 0..50).unwrap(), images("test").0);
        for (name, pairs) in [("digits_cnn", 3), ("digits_residual", 4), ("digits_separable", 10), ("digits_squeeze", 4)] {
            let model = network(name);
            for (samples, absorption) in
                [(None, Absorption::Never), (Some(&samples), Absorption::Never), (Some(&test), Absorption::Observed)]
            {
                let even = even(&model, samples, &Equalization::new().with_absorption(absorption));
                let error = off(&model, &even.model, &test);
                assert!(error < 1e-5, "{name}, samples {}, {absorption:?}: {error}", samples.is_some());
                assert_eq!(even.pairs.len(), pairs, "{name}: {even}");
                // Every layer with weights begins a pair, or it is said why not.
                let weights = even.model.nodes().iter().filter(|node| node.layer().weight_bytes() > 0).count();
                assert_eq!(even.pairs.len() + even.passed_over.len(), weights, "{name}: {even}");
                assert!(even.pairs.iter().any(|pair| pair.scales.iter().any(|&scale| !(0.9..1.1).contains(&scale))), "{name}: {even}");
            }
        }
    }

    /// What equalization must reach: per tensor and per channel, within a tenth of a decibel of the network that was never rescaled.
    #[test]
    fn what_rescaling_lost_comes_back() {
        let (samples, test) = (images("train").0.slice(0, 0..100).unwrap(), images("test").0);
        let model = network("digits_separable");
        let y = model.forward(&test).unwrap();
        for scheme in [Scheme::INT8_WEIGHT_PER_TENSOR, Scheme::INT8_WEIGHT] {
            let config = QConfig::new(StaticScheme::default().with_weights(scheme));
            let db = |model: &Model| {
                let int8 = quantize_static(model, [&samples], &config).unwrap();
                sqnr_db(y.as_slice(), int8.forward(&test).unwrap().as_slice()).unwrap()
            };
            let plain = db(&model);
            let evened = db(&even(&model, Some(&samples), &Equalization::new()).model);
            assert!(evened > plain - 0.1, "{scheme}: {evened} dB equalized, {plain} as it was");
            for seed in 1..4 {
                let wild = rescaled(&model, seed);
                assert!(off(&model, &wild, &test) < 1e-5);
                let lost = plain - db(&wild);
                assert!(lost > 10.0, "{scheme}, {seed}: rescaling costs no more than {lost} dB");
                let tame = even(&wild, Some(&samples), &Equalization::new());
                assert!(off(&model, &tame.model, &test) < 1e-5);
                let back = db(&tame.model);
                assert!(back > plain - 0.1 && (back - evened).abs() < 0.1, "{scheme}, {seed}: {back} dB, {plain} before, {evened} without");
            }
        }
    }

    /// Of scales that are tried the best is taken, whatever scales the network came with.
    #[test]
    fn scales_that_are_tried_round_no_worse() {
        let samples = images("train").0.slice(0, 0..40).unwrap();
        let model = network("digits_separable");
        let y = model.forward(&samples).unwrap();
        let config = QConfig::new(StaticScheme::default().with_weights(Scheme::INT8_WEIGHT_PER_TENSOR));
        let db = |model: &Model| sqnr_db(y.as_slice(), quantize_static(model, [&samples], &config)?.forward(&samples)?.as_slice());
        let value = Value::from(samples.clone());
        // A judge that likes noise best: the first draw is the least noisy of these.
        let tried = |model: &Model, draws: Draws| {
            let mut seen = Vec::new();
            let mut judge = |even: &Model| {
                let worth = -db(even)?;
                seen.push(worth);
                Ok(worth)
            };
            let batch: &[(&str, &Value)] = &[("image", &value)];
            let silent = Progress::silent();
            (equalize_by_trial(model, &[batch], &Equalization::new(), draws, &mut judge, silent).unwrap().model, seen)
        };
        let (best, seen) = tried(&model, Draws::new(4).unwrap());
        let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!(seen.len() == 4 && most > seen[0] && -db(&best).unwrap() == most, "{seen:?}");
        assert_eq!(-seen[0], db(&even(&model, Some(&samples), &Equalization::new()).model).unwrap());
        assert!(off(&model, &best, &samples) < 1e-5);
        // The same draws again, others from another seed, and the same but for what rounding of floats does from other scales.
        assert_eq!(tried(&model, Draws::new(2).unwrap()).1, seen[..2]);
        assert_ne!(tried(&model, Draws::new(2).unwrap().with_seed(1)).1[1], seen[1]);
        let wild = tried(&rescaled(&model, 5), Draws::new(4).unwrap()).1;
        assert!(wild.iter().zip(&seen).all(|(a, b)| (a - b).abs() < 0.3), "{wild:?} and {seen:?}");
        assert!(Draws::new(0).is_err());
    }

    /// By weights alone the scales of a network that was rescaled are those of the network itself too.
    #[test]
    fn weights_alone_undo_rescaling() {
        let model = network("digits_separable");
        let scales = |model: &Model| even(model, None, &Equalization::new());
        let (a, b) = (scales(&model), scales(&rescaled(&model, 7)));
        for (a, b) in a.pairs.iter().zip(&b.pairs) {
            assert!((a.written[1] - b.written[1]).abs() < 0.05 && (a.read[1] - b.read[1]).abs() < 0.05, "{a} and {b}");
            assert!(b.read[1] > b.read[0] || b.written[1] > b.written[0], "{b}");
        }
    }

    /// Bounds of each channel run on codes, and on a grid of what they leave.
    #[test]
    fn clamps_by_channel_run_in_integers() {
        let samples = images("train").0.slice(0, 0..50).unwrap();
        let model = even(&network("digits_separable"), Some(&samples), &Equalization::new()).model;
        let int8 = quantize_static(&model, [&samples], &QConfig::default()).unwrap();
        let bounds: Vec<&Node> = int8.nodes().iter().filter(|node| node.layer().kind().to_string() == "Min").collect();
        assert_eq!(bounds.len(), 10);
        for node in bounds {
            let grids: Vec<_> = node.reads().chain(node.outputs().iter().copied()).map(|edge| int8.grid(edge)).collect();
            assert!(grids[0].is_some() && grids.iter().all(|grid| *grid == grids[0]), "{}: {grids:?}", node.name());
        }
        // In a file of the crate's own it is the same; ONNX has the sums of branches in float.
        for model in [&model, &int8] {
            let y = model.forward(&samples).unwrap();
            let saved = lowprec::io::saved::read(&lowprec::io::saved::write(model).unwrap()).unwrap();
            assert_eq!(saved.forward(&samples).unwrap().as_slice(), y.as_slice());
            let exported = lowprec::onnx::from_bytes(&lowprec::onnx::Export::new(model).to_bytes().unwrap()).unwrap();
            let db = sqnr_db(y.as_slice(), exported.forward(&samples).unwrap().as_slice()).unwrap();
            assert!(db > 50.0, "{db} dB");
            let bounds = |model: &Model| {
                model
                    .nodes()
                    .iter()
                    .filter(|node| node.layer().kind().to_string() == "Min")
                    .map(|node| model.grid(node.outputs()[0]))
                    .collect::<Vec<_>>()
            };
            assert_eq!(bounds(&exported), bounds(model));
        }
        // Nothing is left in float but the way in.
        let floats = int8.nodes().iter().filter(|node| node.outputs().iter().all(|&edge| int8.grid(edge).is_none())).count();
        assert_eq!(floats, 1, "{int8}");
    }
}

/// A network with one of each that scales pass, and what they don't.
#[test]
fn pairs_are_found_through_what_scales_pass() {
    let r = &mut Random(3);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(4), Dim::Fixed(8), Dim::Fixed(8)]).unwrap();
    let same = |i, o| Conv2dGeometry::new(i, o, [3, 3]).with_padding([1; 4]);
    let (lo, hi) = (Tensor::new(Vec::new(), vec![-1.0]).unwrap(), Tensor::new(Vec::new(), vec![2.0]).unwrap());
    let (lo, hi) = (net.constant("lo", lo).unwrap(), net.constant("hi", hi).unwrap());
    let slope = net.constant("slope", r.tensor([12, 1, 1], 0.5)).unwrap();
    let x = net.add("a", conv(r, same(4, 8), true), &[x]).unwrap();
    let x = net.add("clip", lowprec::nn::operator::Clip::new(), &[x, lo, hi]).unwrap();
    let x = net.add("b", conv(r, same(8, 12).with_groups(4), false), &[x]).unwrap();
    let x = net.add("b norm", norm(r, 12), &[x]).unwrap();
    let x = net.add("prelu", Binary::PRelu, &[x, slope]).unwrap();
    let x = net.add("c", conv(r, same(12, 12).with_groups(12), true), &[x]).unwrap();
    let x = net.add("leaky", Unary::LeakyRelu { alpha: 0.1 }, &[x]).unwrap();
    let x = net.add("max", MaxPool2d::new([2, 2]), &[x]).unwrap();
    let x = net.add("d", conv(r, same(12, 6), true), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("flatten", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let x = net.add("e", Linear::new(r.tensor([9, 96], 0.2), Some(r.tensor([9], 0.2))).unwrap(), &[x]).unwrap();
    let x = net.add("f", Linear::new(r.tensor([5, 9], 0.4), None).unwrap(), &[x]).unwrap();
    let x = net.add("sigmoid", Unary::Sigmoid, &[x]).unwrap();
    let x = net.add("g", Linear::new(r.tensor([5, 5], 0.4), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let x = r.tensor([3, 4, 8, 8], 2.0);
    for samples in [None, Some(&x)] {
        let even = even(&model, samples, &Equalization::new());
        let pairs: Vec<String> = even.pairs.iter().map(|pair| format!("{}{}", pair.first, pair.second)).collect();
        assert_eq!(pairs, ["ab", "bc", "cd", "de", "ef"]);
        let passed: Vec<String> = even.passed_over.iter().map(|skipped| format!("{}: {}", skipped.name, skipped.reason)).collect();
        assert_eq!(passed, ["f: `sigmoid` (Sigmoid) follows, which no scale passes", "g: `g` is an output of the model"]);
        assert!(even.to_string().lines().count() == 8, "{even}");
        assert!(off(&model, &even.model, &x) < 1e-5);
        for node in ["clip", "clip/floor"] {
            let layer = even.model.node(node).unwrap().layer();
            assert!(matches!(layer, Layer::Operator(Operator::Variadic(_))), "{node}: {layer:?}");
        }
        // Once more there is hardly anything to do, and the same pairs are found.
        let again = super::equalize::even(&even.model, samples, &Equalization::new());
        assert!(again.pairs.len() == 5 && off(&model, &again.model, &x) < 1e-5);
        for pair in &again.pairs {
            let logarithms: Vec<f64> = pair.scales.iter().map(|scale| scale.ln()).collect();
            let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
            assert!(logarithms.iter().all(|x| (x - mean).abs() < 0.02), "{pair}: {:?}", pair.scales);
        }
    }
}

#[test]
fn values_that_others_see_stay() {
    for model in [network(1), everything(2)] {
        let even = even(&model, None, &Equalization::new());
        let x = Random(5).tensor([2, 3, 14, 12], 1.0);
        assert!(off(&model, &even.model, &x) < 1e-5);
        assert!(!even.pairs.is_empty() && even.passed_over.iter().any(|skipped| skipped.reason.to_string().contains("is read 2 times")));
    }
}

#[test]
fn dead_channels_and_bad_samples() {
    let r = &mut Random(11);
    let build = |first: Tensor, bias: Tensor, second: Tensor| {
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(4)]).unwrap();
        let x = net.add("first", Linear::new(first, Some(bias)).unwrap(), &[x]).unwrap();
        let x = net.add("relu", Layer::Relu, &[x]).unwrap();
        let x = net.add("second", Linear::new(second, None).unwrap(), &[x]).unwrap();
        net.output("y", x).unwrap();
        net.build().unwrap()
    };
    let (mut first, mut bias, mut second) = (r.tensor([6, 4], 1.0), r.tensor([6], 0.3), r.tensor([3, 6], 1.0));
    // Written by nothing, read by nobody, both, and a bias alone.
    first.as_mut_slice()[..4].fill(0.0);
    first.as_mut_slice()[8..16].fill(0.0);
    bias.as_mut_slice()[0] = 0.0;
    bias.as_mut_slice()[2] = 0.0;
    bias.as_mut_slice()[3] = 5.0;
    second.as_mut_slice().iter_mut().enumerate().filter(|(i, _)| [1, 2].contains(&(i % 6))).for_each(|(_, w)| *w = 0.0);
    let model = build(first.clone(), bias.clone(), second.clone());
    let x = r.tensor([40, 4], 1.0);
    for samples in [
        None,
        Some(x.clone()),
        Some(x.slice(0, 0..1).unwrap()),
        Some(Tensor::full([8, 4], 0.5).unwrap()),
        Some(Tensor::full([1, 4], 0.0).unwrap()),
    ] {
        let even = even(&model, samples.as_ref(), &Equalization::new());
        assert!(off(&model, &even.model, &x) < 1e-5);
        assert_eq!(even.pairs[0].scales[2], 1.0);
        assert!(even.pairs[0].scales.iter().all(|scale| (1e-9..=1e9).contains(scale)), "{even}");
    }
    let samples = |x: Tensor, model: &Model| {
        let x = Value::from(x);
        equalize(model, &[&[("x", &x)]], &Equalization::new(), Progress::silent()).unwrap_err()
    };
    let mut bad = x.clone();
    bad.as_mut_slice()[7] = f32::NAN;
    assert!(matches!(samples(bad, &model), Error::NonFinite { .. }));
    // What a layer makes of large numbers names it.
    let huge = build(r.tensor([6, 4], 1e30), bias.clone(), second.clone());
    let told = samples(Tensor::full([2, 4], 1e30).unwrap(), &huge).to_string();
    assert!(told.contains("`first`") || told.contains("`relu`"), "{told}");
    // A judge that fails is heard, and one that knows nothing is asked all the same.
    let value = Value::from(x.clone());
    let tried = |judge: &mut dyn FnMut(&Model) -> lowprec::Result<f64>| {
        equalize_by_trial(&model, &[&[("x", &value)]], &Equalization::new(), Draws::default(), judge, Progress::silent())
    };
    assert!(matches!(tried(&mut |_| Err(Error::Empty { what: "judge".into(), way_out: "ask another" })), Err(Error::Empty { .. })));
    // It says nothing, and so the scales of least noise are taken.
    let unknown = tried(&mut |_| Ok(f64::NAN)).unwrap();
    let plain = equalize(&model, &[&[("x", &value)]], &Equalization::new(), Progress::silent()).unwrap();
    assert!(!plain.pairs.is_empty() && unknown.pairs.iter().zip(&plain.pairs).all(|(a, b)| a.scales == b.scales));
    assert!(off(&model, &unknown.model, &x) < 1e-5);
    second.as_mut_slice()[4] = f32::INFINITY;
    let told = equalize(&build(first, bias, second), &[], &Equalization::new(), Progress::silent()).unwrap_err().to_string();
    assert!(told.contains("layer `second`: weight"), "{told}");
    let by_samples = Equalization::new().with_absorption(Absorption::Observed);
    assert!(matches!(equalize(&model, &[], &by_samples, Progress::silent()), Err(Error::Unsupported { .. })));
    let stop = Progress::new(|_| std::ops::ControlFlow::Break(()));
    assert!(matches!(equalize(&model, &[], &Equalization::new(), stop), Err(Error::Cancelled { .. })));
}

/// A model without a pair comes back as it was, and says why.
#[test]
fn nothing_to_equalize_is_told() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(4)]).unwrap();
    let x = net.add("only", Linear::new(Random(1).tensor([3, 4], 1.0), None).unwrap(), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let even = even(&model, None, &Equalization::new());
    assert!(even.pairs.is_empty() && even.passed_over.len() == 1, "{even}");
    // A model that is quantized says that it is.
    let int8 = lowprec::quantize_dynamic(&model, &[lowprec::LayerKind::Linear]).unwrap();
    let even = super::equalize::even(&int8, None, &Equalization::new());
    assert_eq!(even.passed_over[0].reason, lowprec::nn::SkipReason::AlreadyQuantized);
}

/// High biases: moved on where nothing falls lower, exactly; by three sigma, for all but the tail.
#[test]
fn high_biases_move_on() {
    let r = &mut Random(21);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let x = net.add("a", conv(r, Conv2dGeometry::new(3, 6, [1, 1]), false), &[x]).unwrap();
    let fill = |values: [f32; 6]| Tensor::new([6], values.to_vec()).unwrap();
    let (beta, gamma) = (fill([4.0, 3.0, 0.0, -1.0, 5.0, 0.5]), fill([0.5, -0.2, 1.0, 1.0, 1.0, 1.0]));
    let norm = BatchNorm2d::new(gamma, beta, fill([0.0; 6]), fill([1.0; 6]), 0.0).unwrap();
    let x = net.add("norm", norm, &[x]).unwrap();
    let x = net.add("relu6", Layer::Relu6, &[x]).unwrap();
    let x = net.add("b", conv(r, Conv2dGeometry::new(6, 4, [1, 1]), true), &[x]).unwrap();
    let x = net.add("relu", Layer::Relu, &[x]).unwrap();
    let x = net.add("padded", conv(r, Conv2dGeometry::new(4, 4, [3, 3]).with_padding([1; 4]), true), &[x]).unwrap();
    let x = net.add("gap", GlobalAvgPool2d, &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let x = r.tensor([16, 3, 6, 6], 1.7);
    let range = |model: &Model| {
        let mut largest = 0.0f32;
        let see = |tap: &lowprec::nn::Tap<'_>| {
            if tap.edge == "relu6" {
                largest = tap.value.get::<f32>().unwrap().as_slice().iter().fold(0.0, |m, x| m.max(*x));
            }
            Ok(())
        };
        model.forward_with(&x, see).unwrap();
        largest
    };
    let by = |absorption, samples| even(&model, samples, &Equalization::new().with_absorption(absorption));
    let observed = by(Absorption::Observed, Some(&x));
    assert!(off(&model, &observed.model, &x) < 1e-5 && observed.pairs[0].absorbed >= 2, "{observed}");
    // Nothing is moved over padding.
    assert_eq!(observed.pairs[1].absorbed, 0);
    let kept = by(Absorption::Never, Some(&x));
    assert!(range(&observed.model) < 0.9 * range(&kept.model), "{} of {}", range(&observed.model), range(&kept.model));
    let sigma = by(Absorption::ThreeSigma, None);
    assert_eq!(sigma.pairs[0].absorbed, 3);
    assert!(off(&model, &sigma.model, &x) < 0.05);
}

/// The plan of an integer model with bounds by channel is that of its calibration, whatever writes the value that is bounded.
#[test]
fn bounds_by_channel_are_exact_on_codes() {
    let r = &mut Random(31);
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(3), Dim::Any, Dim::Any]).unwrap();
    let x = net.add("a", conv(r, Conv2dGeometry::new(3, 8, [3, 3]), true), &[x]).unwrap();
    let a = net.add("relu", Layer::Relu, &[x]).unwrap();
    let cap = net.constant("cap", Tensor::new([8, 1, 1], (1..9).map(|i| 0.1 * i as f32).collect()).unwrap()).unwrap();
    let floor = net.constant("floor", Tensor::new([1, 8, 1, 1], (1..9).map(|i| 0.01 * i as f32).collect()).unwrap()).unwrap();
    let x = net.add("min", Variadic::Min, &[cap, a]).unwrap();
    let x = net.add("max", Variadic::Max, &[x, floor]).unwrap();
    let x = net.add("b", conv(r, Conv2dGeometry::new(8, 8, [1, 1]), true), &[x]).unwrap();
    // The value before its bounds has another reader.
    let x = net.add("c", Layer::Add, &[x, a]).unwrap();
    let x = net.add("d", conv(r, Conv2dGeometry::new(8, 4, [1, 1]), true), &[x]).unwrap();
    net.output("y", x).unwrap();
    let model = net.build().unwrap();
    let x = r.tensor([4, 3, 7, 7], 1.0);
    let plan = StaticPlan::new(&model, &QConfig::default(), &[x.dims().to_vec()]).unwrap();
    assert!(!plan.to_string().lines().any(|line| line.ends_with("f32")), "{plan}");
    let int8 = quantize_static(&model, [&x], &QConfig::default()).unwrap();
    let mut codes: HashMap<String, Value> = HashMap::new();
    int8.forward_with(&x, |tap| {
        codes.insert(tap.edge.to_owned(), tap.value.clone());
        Ok(())
    })
    .unwrap();
    let edge = |name: &str| int8.nodes().iter().flat_map(|node| node.outputs()).find(|&&edge| int8.edge_name(edge) == name).unwrap();
    let reals = |name: &str| -> Vec<f32> {
        let grid = int8.grid(*edge(name)).unwrap();
        codes[name].get::<u8>().unwrap().as_slice().iter().map(|&code| grid.dequantize(code)).collect()
    };
    let (before, after, grid) = (reals("relu"), reals("max"), int8.grid(*edge("max")).unwrap());
    for (i, (x, y)) in before.iter().zip(&after).enumerate() {
        let channel = (i / 25 % 8 + 1) as f32;
        let expected = grid.dequantize(grid.quantize(x.min(0.1 * channel).max(0.01 * channel)));
        assert_eq!(*y, expected, "{i}");
    }
    let db = sqnr_db(model.forward(&x).unwrap().as_slice(), int8.forward(&x).unwrap().as_slice()).unwrap();
    assert!(db > 30.0, "{db} dB");
    assert!(int8.nodes().iter().all(|node| node.layer().precision() == Precision::Int8
        || node.name().contains("quantized")
        || ["min", "max"].contains(&node.name())));
}
