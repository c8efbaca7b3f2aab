//! The digits network in integers of 8, 4, 3 and 2 bits: quantized after training, and fine-tuned with its rounding in the loop.
//!
//!     cargo run --release --example qat_finetune
//!     cargo run --release --example qat_finetune -- --bits 2 --epochs 60 --seeds 1
//!
//! Weights and activations have the same width, first and last layer included. Accuracies are those of the integer models, on the 647
//! test images; the 900 training images, moved by up to a pixel, are all that fine-tuning sees.

use std::num::NonZero;
use std::time::{Duration, Instant};

use lowprec::convert::{QConfig, StaticScheme, WeightScales};
use lowprec::io::safetensors;
use lowprec::quant::observer::ObserverKind;
use lowprec::train::{Adam, Mode, ParameterKind, Qat, QatConfig, Schedule, Trainable, Training, cross_entropy, prepare_qat};
use lowprec::{Model, Result, Scheme, Value, quantize_static};

#[allow(dead_code, reason = "its `main`")]
#[path = "quantize_dynamic.rs"]
mod network;

mod digits;
mod plot;

use digits::Digits;

const BATCH: usize = 30;

struct Options {
    bits: Vec<u32>,
    epochs: usize,
    seeds: u64,
    rate: f64,
    threads: usize,
}

fn options() -> std::result::Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { bits: vec![8, 4, 3, 2], epochs: 30, seeds: 5, rate: 2e-3, threads: 1 };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("bits") => {
                let list = parser.value()?.string()?;
                options.bits = list
                    .split(',')
                    .map(|bits| bits.parse().map_err(|_| format!("`{bits}` is no number of bits")))
                    .collect::<std::result::Result<_, _>>()?;
            }
            Long("epochs") => options.epochs = parser.value()?.parse::<NonZero<usize>>()?.get(),
            Long("seeds") => options.seeds = parser.value()?.parse::<NonZero<_>>()?.get(),
            Long("threads") => options.threads = parser.value()?.parse()?,
            Long("rate") => options.rate = parser.value()?.parse()?,
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");
    let float = network::digits_cnn(safetensors::read_file(format!("{data}/digits_cnn.safetensors"))?)?;
    let (train, test) = (Digits::load("train")?, Digits::load("test")?);
    let accuracy = |model: &Model| test.right(&model.forward(&test.images)?);
    let whole = accuracy(&float)?;
    println!("float: {whole:.2} %\n\nbits  after training  fine-tuned, mean of {} seeds  (each)", options.seeds);
    let (mut curves, mut compared, mut apart) = (Vec::new(), 0, 0);
    let images = Value::from(test.images.clone());
    for &bits in &options.bits {
        let after = accuracy(&quantize_static(&float, [&train.images], &post_training(bits))?)?;
        let (mut tuned, mut losses, mut fastest) = (Vec::new(), vec![0.0; options.epochs], Duration::MAX);
        for seed in 0..options.seeds {
            let (mut qat, curve) = fine_tuned(&float, &train, bits, seed, &options, &mut fastest)?;
            tuned.push(accuracy(&qat.finish()?)?);
            let agreement = qat.agreement(&[("image", &images)])?;
            if agreement.largest > 1 || !agreement.unmatched.is_empty() {
                return Err(format!("{bits} bits, seed {seed}: training and integers disagree: {agreement:?}").into());
            }
            (compared, apart) = (compared + agreement.codes, apart + agreement.apart);
            losses.iter_mut().zip(curve).for_each(|(sum, loss)| *sum += loss / options.seeds as f64);
        }
        let mean = tuned.iter().sum::<f64>() / tuned.len() as f64;
        println!("{bits:4}  {after:14.2}  {mean:12.2}  {tuned:.2?}; the fastest epoch took {:.0} ms", 1e3 * fastest.as_secs_f64());
        curves.push((format!("{bits} bits"), losses));
    }
    println!("\nof {compared} codes of test images, {apart} are one apart between training and integers, none more");
    println!("\n{}", plot::lines("loss of the training images by epoch", &curves));
    Ok(())
}

/// The best of static quantization: scales of least squared error.
fn post_training(bits: u32) -> QConfig {
    let scheme = StaticScheme::default()
        .with_weights(Scheme::INT8_WEIGHT.with_bits(bits))
        .with_weight_scales(WeightScales::LeastSquares)
        .with_activations(Scheme::UINT8_ACTIVATION.with_bits(bits))
        .with_activation_observer(ObserverKind::Histogram);
    QConfig::new(scheme)
}

/// The network after training with its rounding, and the mean loss of each epoch; `fastest` is the time of an epoch.
fn fine_tuned(float: &Model, train: &Digits, bits: u32, seed: u64, options: &Options, fastest: &mut Duration) -> Result<(Qat, Vec<f64>)> {
    let mut qat = prepare_qat(float, &QatConfig::bits(bits))?.with_threads(options.threads)?;
    let mut adam = Adam::new(options.rate).with_factor(ParameterKind::Quantization, 0.5);
    let training = Training::new(train.labels.len(), BATCH, options.epochs).with_seed(seed).with_schedule(Schedule::Cosine);
    let (mut epoch, mut start) = (0, Instant::now());
    let losses = training.run(&mut qat, &mut adam, |qat, batch| {
        if batch.epoch > epoch {
            *fastest = start.elapsed().min(*fastest);
            (epoch, start) = (batch.epoch, Instant::now());
        }
        let (images, labels) = train.batch(batch.rows, Some(seed.wrapping_mul(1 << 32) + batch.step as u64))?;
        let tape = qat.forward(&images, Mode::Train)?;
        let (loss, gradient) = cross_entropy(tape.output(), &labels, 0.0)?;
        Ok((loss, qat.backward(&tape, &[("logits", &gradient)])?))
    })?;
    *fastest = start.elapsed().min(*fastest);
    Ok((qat, losses))
}
