//! Weights fitted to samples: the algorithms against what defines them, and whole networks.

use crate::support::{Random, network};
use lowprec::metrics::sqnr_db;
use lowprec::nn::{Dim, Linear, Model};
use lowprec::ptq::WeightConfig;
use lowprec::ptq::gptq::{self, Gptq, Hessian, Method};
use lowprec::quant::{QuantizedWeights, Rounding, WeightFormat};
use lowprec::{DType, Error, LayerKind, Progress, Tensor, Value, quantize_weights};
use std::ops::ControlFlow;

const FORMATS: &[&str] = &[
    "int4:g32",
    "int3:g16",
    "uint4:g32",
    "offset3:g32",
    "nf4:g64",
    "kmeans3:g32",
    "int4",
    "int8:tensor",
    "mxfp4",
    "int2:g8:f32",
    "apot4:g32",
    "fp8e4m3",
    "kmeans3:own",
    "int4:g32:double",
    "int4:g32:largest=0.02",
    "uint2:tensor",
    "int4:g20",
];

fn format(text: &str) -> WeightFormat {
    text.parse().unwrap()
}

/// Inputs of which neighbours are alike, as those of layers are.
fn inputs(random: &mut Random, rows: usize, width: usize) -> Vec<f32> {
    (0..rows)
        .flat_map(|_| {
            let shared = [random.unit(), random.unit(), random.unit()];
            let mut last = random.unit();
            (0..width)
                .map(|i| {
                    last = 0.7 * last + 0.5 * random.unit();
                    last + shared[i % 3] + 0.3 * shared[0]
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

fn hessian(rows: &[f32], width: usize) -> Hessian {
    let mut hessian = Hessian::new(width).unwrap();
    hessian.add(rows, 1).unwrap();
    hessian
}

/// `Σ |e x|²` in f64, from the inputs themselves.
fn error(weight: &Tensor, quantized: &QuantizedWeights, rows: &[f32]) -> f64 {
    let width = weight.dims()[1];
    let off: Vec<f64> =
        quantized.dequantize().as_slice().iter().zip(weight.as_slice()).map(|(q, w)| f64::from(*q) - f64::from(*w)).collect();
    let of = |e: &[f64], x: &[f32]| e.iter().zip(x).map(|(e, &x)| e * f64::from(x)).sum::<f64>().powi(2);
    off.chunks(width).flat_map(|e| rows.chunks(width).map(move |x| of(e, x))).sum()
}

#[test]
fn the_error_is_that_of_outputs() {
    let mut random = Random(1);
    let (weight, x) = (random.tensor([5, 70], 1.0), inputs(&mut random, 300, 70));
    let hessian = hessian(&x, 70);
    assert_eq!((hessian.samples(), hessian.width()), (300, 70));
    let quantized = format("int3:g10").quantize(&weight).unwrap();
    let off: Vec<f32> = quantized.dequantize().as_slice().iter().zip(weight.as_slice()).map(|(q, w)| q - w).collect();
    let expected = error(&weight, &quantized, &x) / 300.0;
    let got = hessian.error(&off, 1).unwrap();
    assert!((got - expected).abs() < 1e-4 * expected, "{got} for {expected}");
    for (i, j) in [(0, 0), (3, 60), (69, 1)] {
        let sum: f64 = x.chunks(70).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
        assert!((hessian.as_slice()[i * 70 + j] - sum).abs() < 1e-3 && hessian.as_slice()[i * 70 + j] == hessian.as_slice()[j * 70 + i]);
    }
}

#[test]
fn independent_inputs_are_rounded_to_the_nearest() {
    let mut random = Random(2);
    let weight = random.tensor([9, 64], 1.0);
    // Each input is seen once, by itself: the Hessian is the identity.
    let identity: Vec<f32> = (0..64 * 64).map(|i| f32::from(u8::from(i % 65 == 0))).collect();
    let identity = [hessian(&identity, 64)];
    for text in FORMATS {
        let nearest = format(text).quantize(&weight).unwrap();
        for by_diagonal in [false, true] {
            let gptq = Gptq::new().with_sweeps(0).with_order_by_diagonal(by_diagonal);
            let fitted = gptq.quantize(&weight, &format(text), &identity, &identity).unwrap();
            assert!(fitted.weights == nearest && fitted.method == Method::Nearest && fitted.errors[0] == fitted.errors[1], "{text}");
        }
    }
}

#[test]
fn outputs_come_nearer_and_no_sweep_makes_it_worse() {
    let mut random = Random(3);
    let (weight, x, fresh) = (random.tensor([24, 96], 1.0), inputs(&mut random, 800, 96), inputs(&mut random, 400, 96));
    let samples = [hessian(&x, 96)];
    for text in FORMATS {
        let nearest = format(text).quantize(&weight).unwrap();
        let mut last = f64::INFINITY;
        for sweeps in 0..4 {
            let fitted = Gptq::new().with_sweeps(sweeps).quantize(&weight, &format(text), &samples, &samples).unwrap();
            let now = error(&weight, &fitted.weights, &x);
            assert!(now <= last * (1.0 + 1e-6), "{text}: {now} after {last} with {sweeps} sweeps");
            last = now;
        }
        let fitted = Gptq::new().quantize(&weight, &format(text), &samples, &samples).unwrap();
        let gain = |rows: &[f32]| 10.0 * (error(&weight, &nearest, rows) / error(&weight, &fitted.weights, rows)).log10();
        assert!(
            fitted.method == Method::Descent && gain(&x) > 2.0 && gain(&fresh) > 1.5,
            "{text}: {} dB, {} on others",
            gain(&x),
            gain(&fresh)
        );
        assert_eq!(fitted.weights.bytes(), nearest.bytes(), "{text}");
    }
}

/// Coordinate descent against all combinations of codes.
#[test]
fn near_the_best_there_is() {
    let mut random = Random(4);
    let (mut found, mut best) = (0.0, 0.0);
    for _ in 0..20 {
        let (weight, x) = (random.tensor([1, 6], 1.0), inputs(&mut random, 60, 6));
        let samples = [hessian(&x, 6)];
        let format = format("[-1,-0.3,0.3,1]:tensor:f32:range");
        let fitted = Gptq::new().with_sweeps(4).quantize(&weight, &format, &samples, &samples).unwrap().weights;
        found += error(&weight, &fitted, &x);
        let levels: Vec<f32> = (0..4).map(|i| fitted.scales().at(0) * [-1.0, -0.3, 0.3, 1.0][i]).collect();
        best += (0..4usize.pow(6))
            .map(|n| {
                let off: Vec<f64> =
                    (0..6).map(|i| f64::from(levels[n / 4usize.pow(i as u32) % 4]) - f64::from(weight.as_slice()[i])).collect();
                x.chunks(6).map(|x| off.iter().zip(x).map(|(e, &x)| e * f64::from(x)).sum::<f64>().powi(2)).sum::<f64>()
            })
            .fold(f64::INFINITY, f64::min);
    }
    assert!(found < 1.5 * best, "{found} for {best}");
}

#[test]
fn the_same_weights_on_any_number_of_threads() {
    let mut random = Random(5);
    let (weight, x) = (random.tensor([210, 160], 1.0), inputs(&mut random, 500, 160));
    let run = |threads: usize| {
        let mut samples = Hessian::new(160).unwrap();
        samples.add(&x, threads).unwrap();
        Gptq::new().with_threads(threads).quantize(&weight, &format("int3:g32"), &[samples.clone()], &[samples]).unwrap()
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
    // The last rows, in a strip of their own, are fitted too.
    let last = |weights: &QuantizedWeights| {
        let all = weights.dequantize();
        let off: Vec<f32> = all.as_slice()[200 * 160..].iter().zip(&weight.as_slice()[200 * 160..]).map(|(q, w)| q - w).collect();
        hessian(&x, 160).error(&off, 1).unwrap()
    };
    assert!(one.method == Method::Descent && last(&one.weights) < 0.7 * last(&format("int3:g32").quantize(&weight).unwrap()));
}

#[test]
fn bad_samples_leave_plain_rounding_or_clear_words() {
    let mut random = Random(6);
    let weight = random.tensor([4, 32], 1.0);
    let nearest = format("int4:g32").quantize(&weight).unwrap();
    let fit = |rows: &[f32]| Gptq::new().quantize(&weight, &format("int4:g32"), &[hessian(rows, 32)], &[hessian(rows, 32)]).unwrap();
    assert!(fit(&[0.0; 64]).weights == nearest);
    assert!(
        Gptq::new().quantize(&weight, &format("int4:g32"), &[Hessian::new(32).unwrap()], &[Hessian::new(32).unwrap()]).unwrap().weights
            == nearest
    );
    // One sample, constant inputs, and inputs that are never anything but zero: fitted as far as they say anything.
    let mut dead = inputs(&mut random, 40, 32);
    dead.iter_mut().step_by(2).for_each(|x| *x = 0.0);
    for rows in [inputs(&mut random, 1, 32), vec![1.0; 320], dead, vec![1e18; 32], vec![1e-18; 64]] {
        let fitted = fit(&rows);
        assert!(fitted.errors[1] <= fitted.errors[0] && fitted.weights.dequantize().as_slice().iter().all(|x| x.is_finite()));
    }
    let mut samples = Hessian::new(32).unwrap();
    assert!(matches!(samples.add(&[f32::NAN; 32], 1), Err(Error::NonFinite { .. })));
    assert!(matches!(samples.add(&[0.0; 33], 1), Err(Error::Length { .. })));
    assert!(matches!(Hessian::new(usize::MAX), Err(Error::ShapeOverflow { .. })));
    let narrow = [Hessian::new(31).unwrap()];
    assert!(matches!(Gptq::new().quantize(&weight, &format("int4"), &narrow, &narrow), Err(Error::Shape { .. })));
    assert!(matches!(Gptq::new().quantize(&weight, &format("int16"), &[samples.clone()], &[samples]), Err(Error::Unsupported { .. })));
    assert!(Gptq::new().with_damping(-1.0).is_err() && Gptq::new().with_damping(f64::NAN).is_err());
}

#[test]
fn whole_networks_come_nearer() {
    let mut gains = Vec::new();
    for seed in 1..4 {
        let model = network(seed);
        let samples = Value::from(Random(seed + 50).tensor([48, 3, 14, 11], 1.0));
        let x = Random(seed + 90).tensor([32, 3, 14, 11], 1.0);
        let y = model.forward(&x).unwrap();
        for text in ["int4:g16", "uint3:g16", "nf4:g64"] {
            let config = WeightConfig::new(format(text));
            let batch: &[(&str, &Value)] = &[("image", &samples)];
            let fitted = gptq::quantize_weights(&model, &[batch], &config, &Gptq::new(), Progress::silent()).unwrap();
            let plain = quantize_weights(&model, &config).unwrap();
            assert_eq!(fitted.model.conversion(), plain.conversion());
            assert_eq!(fitted.model.bytes(), plain.bytes());
            assert!(fitted.layers.iter().all(|layer| layer.errors[1] <= layer.errors[0]));
            assert!(fitted.layers.iter().filter(|layer| layer.method != Method::Nearest).count() >= 3, "{:?}", fitted.layers);
            let db = |small: &Model| sqnr_db(y.as_slice(), small.forward(&x).unwrap().as_slice()).unwrap();
            gains.push(db(&fitted.model) - db(&plain));
        }
    }
    let mean = gains.iter().sum::<f64>() / gains.len() as f64;
    assert!(mean > 2.0, "{mean} dB: {gains:?}");
}

#[test]
fn errors_name_the_layer() {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(4)]).unwrap();
    let y = net.add("first", Linear::new(Random(7).tensor([4, 4], 1e30), None).unwrap(), &[x]).unwrap();
    let y = net.add("second", Linear::new(Random(8).tensor([4, 4], 1.0), None).unwrap(), &[y]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let run = |x: f32, config: &WeightConfig| {
        let x = Value::from(Tensor::full([4, 4], x).unwrap());
        let batch: &[(&str, &Value)] = &[("x", &x)];
        gptq::quantize_weights(&model, &[batch], config, &Gptq::new(), Progress::silent())
    };
    let config = WeightConfig::new(format("int4:g4:f32"));
    let told = run(1e10, &config).unwrap_err().to_string();
    assert!(told.contains("second"), "{told}");
    // Squares that f32 can't hold.
    let told = run(1e30, &config).unwrap_err().to_string();
    assert!(told.contains("first"), "{told}");
    assert!(matches!(run(1.0, &config.clone().with_kind(LayerKind::Linear, None)), Err(Error::NothingToQuantize { .. })));
    assert!(matches!(gptq::quantize_weights(&model, &[], &config, &Gptq::new(), Progress::silent()), Err(Error::Empty { .. })));
    let x = Value::from(Tensor::full([4, 4], 1.0).unwrap());
    let batch: &[(&str, &Value)] = &[("x", &x)];
    let by_chance = config.clone().with_rounding(Rounding::Stochastic { seed: 1 });
    assert!(matches!(
        gptq::quantize_weights(&model, &[batch], &by_chance, &Gptq::new(), Progress::silent()),
        Err(Error::Unsupported { .. })
    ));
    let stop = Progress::new(|_| ControlFlow::Break(()));
    assert!(matches!(gptq::quantize_weights(&model, &[batch], &config, &Gptq::new(), stop), Err(Error::Cancelled { .. })));
    let batch: &[(&str, &Value)] = &[("z", &x)];
    assert!(gptq::quantize_weights(&model, &[batch], &config, &Gptq::new(), Progress::silent()).is_err());
}

#[test]
fn a_trellis_is_not_fitted() {
    let random = &mut Random(41);
    let (weight, samples) = (random.tensor([4, 16], 1.0), [hessian(&inputs(random, 20, 16), 16)]);
    let fitted = Gptq::new().quantize(&weight, &format("trellis3:g8"), &samples, &samples);
    assert!(matches!(fitted, Err(Error::Unsupported { .. })), "a code there moves the weights after its own");
}
