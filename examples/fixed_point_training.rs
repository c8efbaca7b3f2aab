//! The founding result of low-precision training, on digits: 16-bit fixed point trains as well as float if it rounds at random.
//!
//!     cargo run --release --example fixed_point_training
//!     cargo run --release --example fixed_point_training -- --fractions 8,14 --epochs 20 --seeds 1
//!
//! A network of one hidden layer is trained from scratch with all weights, values, gradients and updates in words of 16 bits, for several
//! numbers of bits after the point (Gupta et al., ICML 2015, figures 1 and 2): rounded to the nearest multiple, and by chance. Test
//! errors are those of the 647 test images, means over seeds, which decide the first weights, the order of samples and the chance.

use std::num::NonZero;

use lowprec::nn::{Dim, Layer, Linear, Model};
use lowprec::quant::{Rounding, random_unit};
use lowprec::train::{FixedPoint, FixedPointConfig, FixedPointNetwork, Mode, Network, Schedule, Sgd, Trainable, Training, cross_entropy};
use lowprec::{DType, Result, Tensor};

mod digits;
mod plot;

use digits::Digits;

const BATCH: usize = 30;
const WORD: u32 = 16;
const HIDDEN: usize = 128;
/// What logits are multiplied with before the softmax: those of a network whose numbers end at 2 would never be sure.
const SHARPNESS: f32 = 8.0;

struct Options {
    fractions: Vec<u32>,
    epochs: usize,
    seeds: u64,
    rate: f64,
}

fn options() -> std::result::Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { fractions: vec![6, 8, 10, 12, 14], epochs: 100, seeds: 5, rate: 0.1 };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("fractions") => {
                let list = parser.value()?.string()?;
                options.fractions = list
                    .split(',')
                    .map(|bits| bits.parse().map_err(|_| format!("`{bits}` is no number of bits")))
                    .collect::<std::result::Result<_, _>>()?;
            }
            Long("epochs") => options.epochs = parser.value()?.parse::<NonZero<usize>>()?.get(),
            Long("seeds") => options.seeds = parser.value()?.parse::<NonZero<_>>()?.get(),
            Long("rate") => options.rate = parser.value()?.parse()?,
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let (train, test) = (Digits::load("train")?, Digits::load("test")?);
    let mean = |run: &dyn Fn(u64) -> Result<Vec<f64>>| -> Result<Vec<f64>> {
        let mut sum = vec![0.0; options.epochs];
        for seed in 0..options.seeds {
            sum.iter_mut().zip(run(seed)?).for_each(|(sum, error)| *sum += error / options.seeds as f64);
        }
        Ok(sum)
    };
    let float = mean(&|seed| errors(&mut Network::new(&perceptron(seed)?)?, &train, &test, seed, &options))?;
    println!(
        "test error in percent, mean of {} seeds, {} epochs; float: {:.2}\n",
        options.seeds,
        options.epochs,
        float[options.epochs - 1]
    );
    println!("format   nearest  stochastic");
    let (mut nearest, mut stochastic) = (Vec::new(), Vec::new());
    for &fraction in &options.fractions {
        let format = FixedPoint::new(WORD - fraction, fraction)?;
        let fixed = |rounding: fn(u64) -> Rounding| {
            mean(&|seed| {
                let config = FixedPointConfig::new(format).with_rounding(rounding(seed));
                errors(&mut FixedPointNetwork::new(&perceptron(seed)?, config)?, &train, &test, seed, &options)
            })
        };
        let (near, chance) = (fixed(|_| Rounding::Nearest)?, fixed(|seed| Rounding::Stochastic { seed })?);
        println!("<{},{}>{:>11.2}{:>12.2}", format.integer(), format.fraction(), near[options.epochs - 1], chance[options.epochs - 1]);
        nearest.push((format!("FL {fraction}"), near));
        stochastic.push((format!("FL {fraction}"), chance));
    }
    let last = |curves: &[(String, Vec<f64>)]| curves.iter().map(|(_, errors)| errors[options.epochs - 1]).collect::<Vec<_>>();
    let by_fraction = [
        ("to the nearest".to_owned(), last(&nearest)),
        ("by chance".to_owned(), last(&stochastic)),
        ("float".to_owned(), vec![float[options.epochs - 1]; options.fractions.len()]),
    ];
    let axis = options.fractions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    println!("\n{}", plot::lines(&format!("test error in percent by bits after the point: {axis}"), &by_fraction));
    for (title, mut curves) in [("to the nearest", nearest), ("by chance", stochastic)] {
        curves.push(("float".into(), float.clone()));
        println!("\n{}", plot::lines(&format!("test error in percent by epoch, rounded {title}"), &curves));
    }
    Ok(())
}

/// 64 pixels, a hidden layer with ReLU, 10 digits; weights drawn evenly from ±√(3 / inputs), a variance of 1 / inputs.
fn perceptron(seed: u64) -> Result<Model> {
    let layer = |inputs: usize, outputs: usize, salt: u64| {
        let bound = (3.0 / inputs as f32).sqrt();
        let draw = |i: usize| bound * (2.0 * random_unit(seed.wrapping_mul(31).wrapping_add(salt), i as u64) - 1.0);
        let weight = Tensor::new([outputs, inputs], (0..inputs * outputs).map(draw).collect())?;
        Linear::new(weight, Some(Tensor::full([outputs], 0.0)?))
    };
    let mut net = Model::builder();
    let x = net.input("image", DType::F32, &[Dim::Any, Dim::Fixed(1), Dim::Fixed(8), Dim::Fixed(8)])?;
    let x = net.add("pixels", Layer::Flatten { axis: 1 }, &[x])?;
    let x = net.add("hidden", layer(64, HIDDEN, 1)?, &[x])?;
    let x = net.add("relu", Layer::Relu, &[x])?;
    let x = net.add("digits", layer(HIDDEN, 10, 2)?, &[x])?;
    net.output("logits", x)?;
    net.build()
}

/// Trains, and gives the test error after each epoch, in percent.
fn errors<N: Trainable>(network: &mut N, train: &Digits, test: &Digits, seed: u64, options: &Options) -> Result<Vec<f64>> {
    let mut errors = Vec::new();
    // Gradients are those of the sum over a batch, which are as large as fixed point can be; the rate has the division.
    let mut sgd = Sgd::new(options.rate / BATCH as f64);
    let training = Training::new(train.labels.len(), BATCH, options.epochs).with_seed(seed).with_schedule(Schedule::Linear);
    let mut seen = 0;
    training.run(network, &mut sgd, |network, batch| {
        if batch.epoch > seen {
            errors.push(error(network, test)?);
            seen = batch.epoch;
        }
        let (images, labels) = train.batch(batch.rows, None)?;
        let tape = network.forward(&images, Mode::Train)?;
        let sharpened = tape.output().as_slice().iter().map(|y| SHARPNESS * y).collect();
        let (loss, mut gradient) = cross_entropy(&Tensor::new(tape.output().dims(), sharpened)?, &labels, 0.0)?;
        gradient.as_mut_slice().iter_mut().for_each(|g| *g *= labels.len() as f32);
        Ok((loss, network.backward(&tape, &[("logits", &gradient)])?))
    })?;
    errors.push(error(network, test)?);
    Ok(errors)
}

fn error<N: Trainable>(network: &mut N, test: &Digits) -> Result<f64> {
    let tape = network.forward(&test.images, Mode::Evaluate)?;
    Ok(100.0 - test.right(tape.output())?)
}
