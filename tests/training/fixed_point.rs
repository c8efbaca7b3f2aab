//! Training in fixed point.

use lowprec::kernels::Conv2dGeometry;
use lowprec::nn::{Conv2d, Dim, GlobalAvgPool2d, Layer, Linear, Model};
use lowprec::quant::Rounding;
use lowprec::train::{FixedPoint, FixedPointConfig, FixedPointNetwork, Mode, Sgd, Trainable, Training, cross_entropy};
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
        let (other, _) = train(config, 4, 2);
        assert_eq!(one.parameters(), other.parameters());
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
