//! Weights of LSTM and GRU that are fitted to what their products multiply.

use crate::support::Random;
use lowprec::metrics::sqnr_db;
use lowprec::nn::weight_only::Activations;
use lowprec::nn::{Dim, Direction, Gru, Layer, Linear, Lstm, Model, RecurrentOptions};
use lowprec::ptq::gptq::{self, FittedModel, Gptq, Method};
use lowprec::ptq::{DynamicQuantization, WeightConfig};
use lowprec::quant::WeightFormat;
use lowprec::{DType, Error, LayerKind, Progress, Tensor, Value, quantize_dynamic, quantize_weights};

const KINDS: [LayerKind; 3] = [LayerKind::Lstm, LayerKind::Gru, LayerKind::Linear];
const WIDTH: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Lstm,
    ResetBefore,
    ResetAfter,
}

const ALL: [Kind; 3] = [Kind::Lstm, Kind::ResetBefore, Kind::ResetAfter];

/// Weights `W`, `R` and the biases of a layer, `[directions, ..]`.
struct Parts {
    options: RecurrentOptions,
    weights: [Tensor; 2],
    bias: Tensor,
}

impl Parts {
    fn new(kind: Kind, options: RecurrentOptions, seed: u64) -> Self {
        let r = &mut Random(seed);
        let (h, count) = (options.hidden, options.direction.count());
        let rows = if kind == Kind::Lstm { 4 * h } else { 3 * h };
        let weights = [r.tensor([count, rows, WIDTH], 0.5), r.tensor([count, rows, h], 0.4)];
        Parts { options, weights, bias: r.tensor([count, 2 * rows], 0.2) }
    }

    fn layer(&self, kind: Kind) -> Layer {
        let ([w, r], options) = (&self.weights, self.options.clone());
        match kind {
            Kind::Lstm => Lstm::new(options, w, r, Some(&self.bias), None).unwrap().into(),
            _ => Gru::new(options, kind == Kind::ResetAfter, w, r, Some(&self.bias)).unwrap().into(),
        }
    }
}

/// Sequences that change slowly, of features that go together: `[steps, batch, WIDTH]`.
fn sequences(seed: u64, steps: usize, batch: usize) -> Tensor {
    let (mix, r) = (Random(77).tensor([6, WIDTH], 1.0), &mut Random(seed));
    let mut latent = vec![[0f32; 6]; batch];
    let mut data = Vec::new();
    for _ in 0..steps {
        for state in &mut latent {
            state.iter_mut().for_each(|z| *z = 0.8 * *z + 0.6 * r.unit());
            data.extend((0..WIDTH).map(|j| 0.05 * r.unit() + (0..6).map(|i| state[i] * mix.as_slice()[i * WIDTH + j]).sum::<f32>()));
        }
    }
    Tensor::new([steps, batch, WIDTH], data).unwrap()
}

/// A layer in both directions, and a linear one of its states.
fn network(kind: Kind, seed: u64) -> Model {
    let options = RecurrentOptions { direction: Direction::Bidirectional, ..RecurrentOptions::new(24) };
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(WIDTH)]).unwrap();
    let y = net.add("memory", Parts::new(kind, options, seed).layer(kind), &[x]).unwrap();
    let y = net.add("head", Linear::new(Random(seed + 9).tensor([7, 24], 0.4), None).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

fn fit(model: &Model, batches: &[&[(&str, &Value)]], gptq: &Gptq) -> lowprec::Result<FittedModel> {
    gptq::quantize_dynamic(model, batches, &DynamicQuantization::new(&KINDS), gptq, Progress::silent())
}

#[test]
fn outputs_come_nearer_at_equal_bytes() {
    for kind in ALL {
        let mut gains = Vec::new();
        for seed in 1..4 {
            let (model, x) = (network(kind, seed), sequences(seed + 20, 20, 24));
            let (first, second) = (Value::from(sequences(seed + 40, 20, 48)), Value::from(sequences(seed + 60, 14, 24)));
            let batches: [&[(&str, &Value)]; 2] = [&[("x", &first)], &[("x", &second)]];
            let fitted = fit(&model, &batches, &Gptq::new().with_threads(1)).unwrap();
            let plain = quantize_dynamic(&model, &KINDS).unwrap();
            assert_eq!((fitted.model.conversion(), fitted.model.bytes()), (plain.conversion(), plain.bytes()));
            let names: Vec<&str> = fitted.layers.iter().map(|layer| layer.name.as_str()).collect();
            assert_eq!(names, ["memory", "head"]);
            assert_eq!(fitted.layers[0].method, Method::Descent);
            let [before, after] = fitted.layers[0].errors;
            assert!(after < 0.5 * before, "{kind:?}: {after} of {before}");
            let y = fitted.model.forward(&x).unwrap();
            let on_threads = fit(&model, &batches, &Gptq::new().with_threads(3)).unwrap();
            assert_eq!(on_threads.model.forward(&x).unwrap().as_slice(), y.as_slice());
            let exact = model.forward(&x).unwrap();
            let db = |y: &Tensor| sqnr_db(exact.as_slice(), y.as_slice()).unwrap();
            gains.push(db(&y) - db(&plain.forward(&x).unwrap()));
        }
        assert!(gains.iter().sum::<f64>() / 3.0 > 0.5, "{kind:?}: {gains:?}");
    }
}

/// `q - w` of weights `[directions, rows, width]` rounded with a scale for each row: of a direction, row by row.
fn rounding(weights: &Tensor, direction: usize) -> Vec<Vec<f64>> {
    let &[_, rows, width] = weights.dims() else { panic!() };
    let of = |row: &[f32]| {
        let scale = row.iter().fold(0f32, |max, w| max.max(w.abs())) / 127.0;
        row.iter().map(|w| f64::from(scale * (w / scale).round_ties_even() - w)).collect()
    };
    weights.as_slice()[direction * rows * width..][..rows * width].chunks(width).map(of).collect()
}

/// `Σ (e x)²` over rows `e`.
fn error(off: &[Vec<f64>], x: &[f32]) -> f64 {
    off.iter().map(|e| e.iter().zip(x).map(|(e, &x)| e * f64::from(x)).sum::<f64>().powi(2)).sum()
}

/// The first two axes changed for one another.
fn turned(t: &Tensor) -> Tensor {
    let &[a, b, c] = t.dims() else { panic!() };
    let row = |i: usize, j: usize| &t.as_slice()[(i * b + j) * c..][..c];
    Tensor::new([b, a, c], (0..b).flat_map(|j| (0..a).flat_map(move |i| row(i, j))).copied().collect()).unwrap()
}

#[test]
fn errors_are_those_of_what_each_product_multiplies() {
    let (steps, batch, h) = (6, 8, 5);
    for (direction, kind, batch_first) in [
        (Direction::Bidirectional, Kind::Lstm, false),
        (Direction::Bidirectional, Kind::Lstm, true),
        (Direction::Reverse, Kind::ResetAfter, false),
        (Direction::Bidirectional, Kind::ResetBefore, false),
    ] {
        let options = RecurrentOptions { direction, batch_first, ..RecurrentOptions::new(h) };
        let (parts, count) = (Parts::new(kind, options, 3), direction.count());
        let mut net = Model::builder();
        let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(WIDTH)]).unwrap();
        let lengths = net.input("lengths", DType::I32, &[Dim::Any]).unwrap();
        let first = net.input("first", DType::F32, &[Dim::Any, Dim::Any, Dim::Any]).unwrap();
        let y = net.add("memory", parts.layer(kind), &[x, lengths, first]).unwrap();
        net.output("y", y).unwrap();
        let model = net.build().unwrap();

        // Time first; what the layer reads is of either order.
        let x = sequences(5, steps, batch);
        let first = Random(6).tensor([count, batch, h], 0.9);
        let lengths = [6, 5, 4, 3, 6, 1, 2, 5];
        let order = |t: &Tensor| if batch_first { turned(t) } else { t.clone() };
        let given = [Value::from(order(&x)), Tensor::new([batch], lengths.to_vec()).unwrap().into(), order(&first).into()];
        let inputs = [("x", &given[0]), ("lengths", &given[1]), ("first", &given[2])];
        let y = quantize_dynamic(&model, &KINDS).unwrap().run(&inputs).unwrap().remove(0).1;
        let y = y.get::<f32>().unwrap();
        let state = |d: usize, t: usize, b: usize| {
            let row = if batch_first { (b * steps + t) * count + d } else { (t * count + d) * batch + b };
            &y.as_slice()[row * h..][..h]
        };

        // Of the sequences that are held out, the fourth and the eighth.
        let (mut sums, mut rows) = (0.0, 0.0);
        for d in 0..count {
            let off = [0, 1].map(|i| rounding(&parts.weights[i], d));
            let backwards = direction == Direction::Reverse || d == 1;
            for b in [3, 7] {
                let length = lengths[b] as usize;
                for t in 0..length {
                    let read = &x.as_slice()[(t * batch + b) * WIDTH..][..WIDTH];
                    let start = &first.as_slice()[(d * batch + b) * h..][..h];
                    let before = match (t, backwards) {
                        (0, false) => start,
                        (t, true) if t + 1 == length => start,
                        (t, true) => state(d, t + 1, b),
                        (t, false) => state(d, t - 1, b),
                    };
                    sums += error(&off[0], read);
                    match kind {
                        Kind::ResetBefore => {
                            let [w, r] = [0, 1].map(|i| &parts.weights[i]);
                            let bias = &parts.bias.as_slice()[d * 6 * h..];
                            let reset: Vec<f32> = (0..h)
                                .map(|j| {
                                    let dot = |t: &Tensor, x: &[f32]| -> f32 {
                                        let row = &t.as_slice()[(d * 3 * h + h + j) * x.len()..];
                                        row.iter().zip(x).map(|(a, b)| a * b).sum()
                                    };
                                    let gate = dot(w, read) + dot(r, before) + bias[h + j] + bias[4 * h + j];
                                    before[j] / (1.0 + (-gate).exp())
                                })
                                .collect();
                            sums += error(&off[1][..2 * h], before) + error(&off[1][2 * h..], &reset);
                        }
                        _ => sums += error(&off[1], before),
                    }
                }
            }
            rows = [3, 7].iter().map(|&b| f64::from(lengths[b])).sum::<f64>();
        }
        let fitted = fit(&model, &[&inputs], &Gptq::new()).unwrap();
        let told = fitted.layers[0].errors[0];
        // The gate that resets is told from int8 products, here from float ones.
        let tolerance = if kind == Kind::ResetBefore { 2e-2 } else { 1e-4 };
        assert!((told / (sums / rows) - 1.0).abs() < tolerance, "{kind:?} {direction:?} {batch_first}: {told}, {}", sums / rows);
    }
}

#[test]
fn little_to_go_by_is_no_worse_than_rounding() {
    for kind in ALL {
        let model = network(kind, 4);
        // One sequence; one step; the same again and again; nothing at all.
        let one = sequences(8, 9, 1);
        let same = Tensor::new([9, 5, WIDTH], one.as_slice().chunks(WIDTH).flat_map(|row| row.repeat(5)).collect()).unwrap();
        for x in [one, sequences(8, 1, 3), same, Tensor::full([4, 6, WIDTH], 0.0).unwrap()] {
            let value = Value::from(x);
            let fitted = fit(&model, &[&[("x", &value)]], &Gptq::new()).unwrap();
            assert!(fitted.layers.iter().all(|layer| layer.errors[1] <= layer.errors[0]), "{:?}", fitted.layers);
        }
        let mut x = sequences(8, 4, 2);
        x.as_mut_slice()[7] = f32::NAN;
        let value = Value::from(x);
        let told = fit(&model, &[&[("x", &value)]], &Gptq::new()).unwrap_err();
        assert!(matches!(&told, Error::Layer { .. }) && told.to_string().contains("memory"), "{told}");
    }
}

/// Weights of few bits: the layer is the float one of what the codes stand for, in fewer bytes.
#[test]
fn weights_alone() {
    for (kind, text) in ALL.into_iter().flat_map(|kind| ["int4:g8", "uint3:g20", "int8", "nf4:g12"].map(|text| (kind, text))) {
        let options = RecurrentOptions { direction: Direction::Bidirectional, ..RecurrentOptions::new(24) };
        let format: WeightFormat = text.parse().unwrap();
        let mut parts = Parts::new(kind, options, 7);
        let one = |layer: Layer| {
            let mut net = Model::builder();
            let x = net.input("x", DType::F32, &[Dim::Any, Dim::Any, Dim::Fixed(WIDTH)]).unwrap();
            let y = net.add("memory", layer, &[x]).unwrap();
            net.output("y", y).unwrap();
            net.build().unwrap()
        };
        let (float, x) = (one(parts.layer(kind)), sequences(8, 12, 5));
        let small = quantize_weights(&float, &WeightConfig::new(format.clone())).unwrap();
        let layer = small.node("memory").unwrap().layer();
        assert!(layer.is_quantized() && layer.weight_format() == Some(&format) && layer.format_name() == text);
        assert!(layer.stored_bytes() < float.stored_bytes() / 3, "{kind:?} {text}");
        assert_eq!(small.conversion().unwrap().quantized, ["memory"]);
        parts.weights = parts.weights.map(|all| {
            let &[_, rows, width] = all.dims() else { panic!() };
            let of = |direction: &[f32]| {
                format.quantize(&Tensor::new([rows, width], direction.to_vec()).unwrap()).unwrap().dequantize().into_vec()
            };
            Tensor::new(all.dims(), all.as_slice().chunks(rows * width).flat_map(of).collect()).unwrap()
        });
        let expected = one(parts.layer(kind)).forward(&x).unwrap();
        let db = |model: &Model| sqnr_db(expected.as_slice(), model.forward(&x).unwrap().as_slice()).unwrap();
        assert!(db(&small) > 100.0, "{kind:?} {text}: {}", db(&small));
        for activations in [Activations::Int8, Activations::Int8Groups] {
            let bytes = quantize_weights(&float, &WeightConfig::new(format.clone()).with_activations(activations)).unwrap();
            assert!((30.0..80.0).contains(&db(&bytes)), "{kind:?} {text}: {}", db(&bytes));
        }
    }
}

/// Weights of few bits fitted to what each product multiplies.
#[test]
fn weights_alone_are_fitted() {
    for kind in ALL {
        let (model, x) = (network(kind, 5), sequences(25, 20, 24));
        let value = Value::from(sequences(45, 20, 64));
        let batch: &[(&str, &Value)] = &[("x", &value)];
        let config = WeightConfig::new("int3:g4".parse().unwrap());
        let fit =
            |threads| gptq::quantize_weights(&model, &[batch], &config, &Gptq::new().with_threads(threads), Progress::silent()).unwrap();
        let (fitted, plain) = (fit(1), quantize_weights(&model, &config).unwrap());
        assert_eq!((fitted.model.conversion(), fitted.model.bytes()), (plain.conversion(), plain.bytes()));
        assert!(fitted.layers.iter().map(|layer| layer.name.as_str()).eq(["memory", "head"]));
        let [before, after] = fitted.layers[0].errors;
        assert!(after < 0.6 * before, "{kind:?}: {after} of {before}");
        let (exact, y) = (model.forward(&x).unwrap(), fitted.model.forward(&x).unwrap());
        let db = |y: &Tensor| sqnr_db(exact.as_slice(), y.as_slice()).unwrap();
        let gain = db(&y) - db(&plain.forward(&x).unwrap());
        assert!(gain > 1.0, "{kind:?}: {gain}");
        assert_eq!(fit(3).model.forward(&x).unwrap().as_slice(), y.as_slice());
    }
    // A layer that samples can't be given to is told.
    let nan = Value::from(Tensor::full([3, 2, WIDTH], f32::NAN).unwrap());
    let config = WeightConfig::new("int3:g4".parse().unwrap());
    let told = gptq::quantize_weights(&network(Kind::Lstm, 1), &[&[("x", &nan)]], &config, &Gptq::new(), Progress::silent()).unwrap_err();
    assert!(matches!(told.kind(), Error::NonFinite { .. }) && told.to_string().contains("memory"), "{told}");
}
