//! Training in fixed point.

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::operator::Binary;
use lowprec::nn::{Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, Model};
use lowprec::quant::Rounding;
use lowprec::train::{FixedPoint, FixedPointConfig, FixedPointNetwork, Mode, Optimizer, Sgd, Trainable, Training, cross_entropy};
use lowprec::{DType, Tensor};

use crate::gradients::{numbers, tensor};

#[test]
fn numbers_are_multiples_of_the_step_inside_the_range() {
    for (integer, fraction) in [(1, 1), (2, 6), (8, 8), (4, 12), (2, 14), (10, 14)] {
        let format = FixedPoint::new(integer, fraction).unwrap();
        let (step, (lo, hi)) = (format.step(), format.range());
        assert_eq!((lo, hi), (-(2f32.powi(integer as i32 - 1)), 2f32.powi(integer as i32 - 1) - step));
        let given = numbers(3000, 1, 1.5 * hi);
        for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 3 }] {
            let mut x = given.clone();
            x.extend([f32::INFINITY, f32::NEG_INFINITY]);
            format.round(&mut x, rounding);
            assert_eq!(x.split_off(3000), [hi, lo]);
            for (&x, &before) in x.iter().zip(&given) {
                let reach = if rounding == Rounding::Nearest { 0.5 * step } else { step };
                assert_eq!(x / step, (x / step).round(), "{before}");
                assert!((lo..=hi).contains(&x) && (x - before.clamp(lo, hi)).abs() <= reach, "{before} became {x}");
            }
            let again = x.clone();
            format.round(&mut x, rounding);
            assert_eq!(x, again);
        }
    }
    let mut ties = [0.125, 0.375, -0.125, -0.375, 0.625];
    FixedPoint::new(2, 2).unwrap().round(&mut ties, Rounding::Nearest);
    assert_eq!(ties, [0.0, 0.5, 0.0, -0.5, 0.5]);
    for (integer, fraction) in [(0, 8), (1, 0), (13, 12), (u32::MAX, u32::MAX)] {
        assert!(FixedPoint::new(integer, fraction).is_err());
    }
}

#[test]
fn chance_is_right_on_average() {
    let (format, n) = (FixedPoint::new(4, 4).unwrap(), 200_000);
    for x in [0.01, 0.03125, -0.7, 1.3] {
        let mut draws = vec![x; n];
        format.round(&mut draws, Rounding::Stochastic { seed: 5 });
        let step = f64::from(format.step());
        let share = (f64::from(x) / step).rem_euclid(1.0);
        let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let deviation = step * (share * (1.0 - share) / n as f64).sqrt();
        assert!((mean - f64::from(x)).abs() < 4.0 * deviation, "{x}: {mean}");
    }
}

fn network(seed: u64) -> Model {
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(4)]).unwrap();
    let conv = |inputs, outputs, groups, seed| {
        let geometry = Conv2dGeometry::new(inputs, outputs, [3, 3]).with_padding([1; 4]).with_groups(groups);
        Conv2d::new(geometry, tensor(&[outputs, inputs / groups, 3, 3], seed, 0.6), Some(tensor(&[outputs], seed + 1, 0.2))).unwrap()
    };
    let x = net.add("conv1", conv(1, 6, 1, seed), &[x]).unwrap();
    let x = net.add("relu1", Layer::Relu, &[x]).unwrap();
    let x = net.add("conv2", conv(6, 6, 3, seed + 2), &[x]).unwrap();
    let x = net.add("relu2", Layer::Relu, &[x]).unwrap();
    let x = net.add("gap", GlobalAvgPool2d, &[x]).unwrap();
    let x = net.add("flat", Layer::Flatten { axis: 1 }, &[x]).unwrap();
    let y = net.add("fc", Linear::new(tensor(&[2, 6], seed + 4, 0.7), Some(tensor(&[2], seed + 5, 0.1))).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    net.build().unwrap()
}

/// Images, and whether their left half is brighter.
fn images() -> (Tensor, Vec<usize>) {
    let mut x = tensor(&[120, 1, 4, 4], 31, 0.5);
    let labels: Vec<usize> = (0..120).map(|i| i % 2).collect();
    for (i, image) in x.as_mut_slice().chunks_mut(16).enumerate() {
        image.iter_mut().enumerate().filter(|(pixel, _)| (pixel % 4 < 2) == (i % 2 == 0)).for_each(|(_, x)| *x += 0.5);
    }
    (x, labels)
}

fn train(config: FixedPointConfig, threads: usize, epochs: usize) -> (FixedPointNetwork, Vec<f64>) {
    let (x, labels) = images();
    let mut network = FixedPointNetwork::new(&network(11), config).unwrap().with_threads(threads).unwrap();
    let losses = Training::new(120, 20, epochs)
        .run(&mut network, &mut Sgd::new(0.02), |network, batch| {
            let pixels: Vec<f32> = batch.rows.iter().flat_map(|&row| x.as_slice()[16 * row..][..16].to_vec()).collect();
            let labels: Vec<usize> = batch.rows.iter().map(|&row| labels[row]).collect();
            let tape = network.forward(&Tensor::new([20, 1, 4, 4], pixels)?, Mode::Train)?;
            let (loss, mut gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
            gradient.as_mut_slice().iter_mut().for_each(|g| *g *= 20.0);
            Ok((loss, network.backward(&tape, &[("y", &gradient)])?))
        })
        .unwrap();
    (network, losses)
}

#[test]
fn everything_is_rounded_and_a_seed_decides_how() {
    let format = FixedPoint::new(4, 10).unwrap();
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 1 }] {
        let config = FixedPointConfig::new(format).with_rounding(rounding);
        let (mut one, _) = train(config, 1, 2);
        let on_grid = |x: &[f32]| x.iter().all(|x| (x / format.step()).fract() == 0.0);
        assert!(one.parameters().iter().all(|parameter| on_grid(parameter.value().as_slice())));
        let tape = one.forward(&images().0, Mode::Train).unwrap();
        let model = one.model().clone();
        assert!(["conv1", "relu2", "gap", "y", "x"].iter().all(|name| {
            let name = if *name == "y" { "fc" } else { name };
            on_grid(tape.value(&model, name).unwrap().as_slice())
        }));
        let gradients = one.backward(&tape, &[("y", &tensor(&[120, 2], 8, 1.0))]).unwrap();
        assert!((0..one.parameters().len()).all(|index| on_grid(gradients.get(index)) && !gradients.get(index).is_empty()));
    }
    let seeded = |seed| train(FixedPointConfig::new(format).with_rounding(Rounding::Stochastic { seed }), 1, 1).0.parameters().to_vec();
    assert_ne!(seeded(1), seeded(2));
}

#[test]
fn threads_draw_the_same_chance() {
    // Functions of more than 2^15 numbers are shared out among threads.
    let (x, g) = (tensor(&[600, 1, 4, 4], 5, 1.0), tensor(&[600, 2], 8, 1.0));
    let run = |threads: usize| {
        let config = FixedPointConfig::new(FixedPoint::new(4, 10).unwrap()).with_rounding(Rounding::Stochastic { seed: 1 });
        let mut network = FixedPointNetwork::new(&network(11), config).unwrap().with_threads(threads).unwrap();
        let tape = network.forward(&x, Mode::Train).unwrap();
        let gradients = network.backward(&tape, &[("y", &g)]).unwrap();
        Sgd::new(0.02).step(&mut network, &gradients).unwrap();
        (tape.output().clone(), gradients, network.parameters().to_vec())
    };
    let one = run(1);
    assert!([2, 5].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn updates_far_below_a_weight_are_kept_by_chance() {
    // A weight of 7 in words of 24 bits: f32 has no digits left below its step, but the update is rounded before it is added.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(1)]).unwrap();
    let y = net.add("fc", Linear::new(Tensor::full([2000, 1], 7.0).unwrap(), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let model = net.build().unwrap();
    let format = FixedPoint::new(4, 20).unwrap();
    let moved = |rounding: Rounding| {
        let mut network = FixedPointNetwork::new(&model, FixedPointConfig::new(format).with_rounding(rounding)).unwrap();
        let (x, g) = (Tensor::full([1, 1], 1.0).unwrap(), Tensor::full([1, 2000], 1.0).unwrap());
        // A quarter of a step each time.
        let mut sgd = Sgd::new(0.25 * f64::from(format.step()));
        for _ in 0..8 {
            let tape = network.forward(&x, Mode::Train).unwrap();
            let gradients = network.backward(&tape, &[("y", &g)]).unwrap();
            sgd.step(&mut network, &gradients).unwrap();
        }
        let weights = network.parameters()[0].value().as_slice();
        assert!(weights.iter().all(|w| (w / format.step()).fract() == 0.0));
        weights.iter().map(|w| f64::from(7.0 - w) / f64::from(format.step())).sum::<f64>() / 2000.0
    };
    assert_eq!(moved(Rounding::Nearest), 0.0);
    // Eight times a quarter, by 16,000 draws.
    let steps = moved(Rounding::Stochastic { seed: 9 });
    assert!((steps - 2.0).abs() < 4.0 * (8.0f64 * 0.1875 / 2000.0).sqrt(), "{steps}");
}

/// `Σ x · w`, and its gradients, for all groups, strides and windows, by loops in f64.
#[test]
fn wide_sums_are_those_of_plain_loops() {
    let geometry = Conv2dGeometry::new(4, 6, [3, 2]).with_groups(2).with_stride([2, 1]).with_dilation([1, 2]).with_padding([1, 2, 0, 1]);
    let (n, h, w) = (2, 6, 5);
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(4), Dim::Fixed(h), Dim::Fixed(w)]).unwrap();
    let slope = net.constant("slope", Tensor::full([1], 0.5f32).unwrap()).unwrap();
    let learned = net.add("learned", Binary::PRelu, &[x, slope]).unwrap();
    let conv = Conv2d::new(geometry.clone(), tensor(&[6, 2, 3, 2], 1, 0.9), Some(tensor(&[6], 2, 0.9))).unwrap();
    let y = net.add("conv", conv, &[learned]).unwrap();
    net.output("y", y).unwrap();
    let format = FixedPoint::new(6, 12).unwrap();
    let mut network = FixedPointNetwork::new(&net.build().unwrap(), FixedPointConfig::new(format)).unwrap();
    let x = tensor(&[n, 4, h, w], 3, 1.0);
    let tape = network.forward(&x, Mode::Train).unwrap();
    let model = network.model().clone();
    let read = tape.value(&model, "learned").unwrap();
    let [_, _, oh, ow] = <[usize; 4]>::try_from(tape.output().dims()).unwrap();
    let mut g = tensor(&[n, 6, oh, ow], 4, 1.0);
    format.round(g.as_mut_slice(), Rounding::Nearest);
    let gradients = network.backward(&tape, &[("y", &g)]).unwrap();
    let (weight, bias) = (network.parameters()[0].value().as_slice(), network.parameters()[1].value().as_slice());
    let (mut y, mut by_weight, mut by_bias) = (vec![0.0f64; g.len()], vec![0.0f64; weight.len()], vec![0.0f64; 6]);
    let at = |out: usize, tap: usize, [stride, dilation, pad, size]: [usize; 4]| {
        (out * stride + tap * dilation).checked_sub(pad).filter(|&at| at < size)
    };
    for (i, o, r, c) in (0..n).flat_map(|i| (0..6).flat_map(move |o| (0..oh).flat_map(move |r| (0..ow).map(move |c| (i, o, r, c))))) {
        let out = ((i * 6 + o) * oh + r) * ow + c;
        y[out] += f64::from(bias[o]);
        by_bias[o] += f64::from(g.as_slice()[out]);
        for (k, dy, dx) in (0..2).flat_map(|k| (0..3).flat_map(move |dy| (0..2).map(move |dx| (k, dy, dx)))) {
            let (Some(row), Some(column)) = (at(r, dy, [2, 1, 1, h]), at(c, dx, [1, 2, 2, w])) else { continue };
            let x = f64::from(read.as_slice()[((i * 4 + o / 3 * 2 + k) * h + row) * w + column]);
            let filter = ((o * 2 + k) * 3 + dy) * 2 + dx;
            y[out] += x * f64::from(weight[filter]);
            by_weight[filter] += x * f64::from(g.as_slice()[out]);
        }
    }
    let rounded = |sums: &[f64]| {
        let (step, (lo, hi)) = (f64::from(format.step()), format.range());
        sums.iter().map(|sum| ((sum / step).round_ties_even() * step).clamp(lo.into(), hi.into()) as f32).collect::<Vec<_>>()
    };
    assert_eq!(tape.output().as_slice(), rounded(&y));
    assert_eq!(gradients.get(0), rounded(&by_weight));
    assert_eq!(gradients.get(1), rounded(&by_bias));
}

#[test]
fn sums_are_rounded_once() {
    // 1/4 · 1/4 sixteen times over is 1: rounded product by product to whole numbers it would be 0.
    let mut net = Model::builder();
    let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(16)]).unwrap();
    let y = net.add("fc", Linear::new(Tensor::full([1, 16], 0.25).unwrap(), None).unwrap(), &[x]).unwrap();
    net.output("y", y).unwrap();
    let fine = FixedPoint::new(4, 4).unwrap();
    let config = FixedPointConfig::new(fine).with_values(FixedPoint::new(8, 2).unwrap());
    let mut network = FixedPointNetwork::new(&net.build().unwrap(), config).unwrap();
    let tape = network.forward(&Tensor::full([1, 16], 0.25).unwrap(), Mode::Evaluate).unwrap();
    assert_eq!(tape.output().as_slice(), [1.0]);
}

#[test]
fn chance_keeps_small_updates_alive() {
    // Updates are mostly below half a step of 1/256.
    let format = FixedPoint::new(6, 8).unwrap();
    let last = |rounding| *train(FixedPointConfig::new(format).with_rounding(rounding), 1, 30).1.last().unwrap();
    let (nearest, chance) = (last(Rounding::Nearest), last(Rounding::Stochastic { seed: 2 }));
    assert!(chance < 0.8 * nearest && chance < 0.4, "{chance} by chance, {nearest} to the nearest");
}
