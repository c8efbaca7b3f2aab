//! Number formats for weights, their pros and cons measured on a trained network.
//!
//!     cargo run --release --example schemes [FORMAT...]
//!
//! Its output for no format in particular is the table of the page [`lowprec::guide::which_scheme`], `src/guide/schemes.md`.
//!
//! Each format ([`WeightFormat`]'s text; `int4:g32` for instance) quantizes all weights of the digits network that `quantize_dynamic.rs`
//! builds, 44 thousand in seven layers, and the table says what that cost and gave:
//!
//! - `bits`: a weight's, everything charged: scales, zero points, tables, what is kept exactly;
//! - `normal`, `Laplace`: signal to noise in decibels of 256 rows of 1024 such numbers;
//! - `trained`: the same of all weights of the network; `flushed`: weights that were not zero and are; `small`: the mean relative error of the tenth of
//!   the weights with the smallest magnitudes;
//! - `output`: SQNR of the logits on the 647 test images, and how many of them are told right;
//! - `1 row`, `64 rows`: microseconds of such a product with 1024x1024 weights on one thread, activations in float (and, for formats whose
//!   codes are multiplied with bytes, in int8).

#[path = "quantize_dynamic.rs"]
#[allow(dead_code)]
mod digits;

use std::hint::black_box;
use std::time::Instant;

use lowprec::convert::fold_batch_norm;
use lowprec::kernels::Workspace;
use lowprec::metrics::{flushed_fraction, relative_error_by_decile, sqnr_db, top1};
use lowprec::nn::weight_only::{Activations, Linear};
use lowprec::nn::{Layer, Model};
use lowprec::ptq::WeightConfig;
use lowprec::quant::{WeightFormat, random_unit};
use lowprec::{Error, Tensor, io::safetensors};

/// From the most bits to the fewest.
const FORMATS: &[&str] = &[
    "int16",
    "uint16",
    "offset16",
    "int8",
    "int8:g32",
    "mxint8",
    "fp8e4m3",
    "fp8e5m2",
    "mxfp8e4m3",
    "int6:g32",
    "mxfp6e2m3",
    "mxfp6e3m2",
    "int4",
    "int4:g32",
    "int4:g32:range",
    "int4:g32:p97",
    "int4:g64",
    "int4:g32:double",
    "uint4:g32",
    "offset4:g32",
    "offset4:g64:hqq",
    "midrise4:g32",
    "nf4:g64",
    "nf4:g32:double",
    "fp4:g32",
    "mxfp4",
    "nvfp4",
    "pot4:g32",
    "apot4:g32",
    "gauss4:g32",
    "kmeans4:g32",
    "kmeans4:g32:zero",
    "kmeans4:channel:own",
    "quantile4:g32",
    "[-1,-0.5,-0.2,-0.05,0.05,0.2,0.5,1]:g32",
    "shift4:g32:log3",
    "trellis4:g20:log4",
    "int4:g32:largest=0.01",
    "int4:g32:smallest=0.1",
    "int4:g32:sensitive=0.01",
    "int3:g32",
    "uint3:g32",
    "gauss3:g32",
    "kmeans3:g32",
    "kmeans3:channel:own",
    "shift3:g32:log3",
    "trellis3:g20:log4",
    "int2:g32",
    "uint2:g32",
    "midrise2:g32",
    "gauss2:g32",
    "kmeans2:g32",
    "trellis2:g20:log4",
];

/// Rows and columns of the weights whose products are timed.
const SIDE: usize = 1024;

fn main() -> Result<(), Error> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");
    // Batch norms folded in, so that weights before and after are those of the same layers.
    let model = fold_batch_norm(&digits::digits_cnn(safetensors::read_file(format!("{data}/digits_cnn.safetensors"))?)?)?;
    let (images, labels) = digits::test_set(&format!("{data}/digits.safetensors"))?;
    let logits = model.forward(&images)?;
    let right = |logits: &Tensor| Ok::<_, Error>(top1(logits.as_slice(), 10)?.iter().zip(&labels).filter(|(a, b)| a == b).count());

    let matrix = Tensor::new([SIDE, SIDE], wave(SIDE * SIDE, 0.37))?;
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let formats = if asked.is_empty() { FORMATS.iter().map(|&text| text.to_owned()).collect() } else { asked };
    let [normal, laplace] = [normal as fn(u64) -> f32, laplace].map(|of| Tensor::new([256, 1024], (0..1 << 18).map(of).collect()));
    let (normal, laplace) = (normal?, laplace?);
    println!("| format | bits | normal | Laplace | trained | flushed | small | output | right | 1 row, us | 64 rows, us |");
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let [one, many] = [1, 64].map(|rows| float_time(&matrix, rows));
    println!("| f32 | 32 | | | | | | | {} | {:.0} | {:.0} |", right(&logits)?, one?, many?);
    for text in formats {
        let format: WeightFormat = text.parse()?;
        let alone = |x: &Tensor| sqnr_db(x.as_slice(), format.quantize(x)?.dequantize().as_slice());
        let small = lowprec::quantize_weights(&model, &WeightConfig::new(format.clone()))?;
        let y = small.forward(&images)?;
        let Weights { exact, held, bytes } = weights(&model, &small)?;
        let deciles = relative_error_by_decile(&exact, &held)?;
        println!(
            "| `{text}` | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} % | {:.0} % | {:.1} | {} | {} | {} |",
            8.0 * bytes as f64 / exact.len() as f64,
            alone(&normal)?,
            alone(&laplace)?,
            sqnr_db(&exact, &held)?,
            100.0 * flushed_fraction(&exact, &held)?,
            100.0 * deciles[0],
            sqnr_db(logits.as_slice(), y.as_slice())?,
            right(&y)?,
            times(&matrix, &format, 1)?,
            times(&matrix, &format, 64)?,
        );
    }
    Ok(())
}

/// All weights of a network, before and after, and the bytes that they take in a file.
#[derive(Default)]
struct Weights {
    exact: Vec<f32>,
    held: Vec<f32>,
    bytes: usize,
}

fn weights(model: &Model, small: &Model) -> Result<Weights, Error> {
    let mut all = Weights::default();
    for (node, twin) in model.nodes().iter().zip(small.nodes()) {
        let Some(stored) = twin.layer().stored_weights() else { continue };
        match node.layer() {
            Layer::Conv2d(conv) => all.exact.extend_from_slice(conv.weight().as_slice()),
            Layer::Linear(linear) => all.exact.extend_from_slice(linear.weight().as_slice()),
            _ => continue,
        }
        let quantized = stored.quantized()?;
        all.held.extend_from_slice(quantized.dequantize().as_slice());
        all.bytes += quantized.bytes();
    }
    Ok(all)
}

/// Microseconds of a product of so many rows, in float and, where there is such a kernel, in int8.
fn times(weight: &Tensor, format: &WeightFormat, rows: usize) -> Result<String, Error> {
    let quantized = format.quantize(weight)?;
    let x = wave(rows * SIDE, 0.11);
    let mut y = vec![0f32; rows * SIDE];
    let mut workspace = Workspace::new();
    let mut each = Vec::new();
    for activations in [Activations::Float, Activations::Int8] {
        let linear = Linear::new(quantized.clone(), None, activations)?;
        if linear.activations() != activations {
            continue;
        }
        each.push(format!("{:.0}", least_time(|| linear.forward(black_box(&x), rows, &mut y, &mut workspace, 1))?));
    }
    Ok(each.join(" / "))
}

/// The same with the weights as they are.
fn float_time(weight: &Tensor, rows: usize) -> Result<f64, Error> {
    let linear = lowprec::nn::Linear::new(weight.clone(), None)?;
    let (x, mut y) = (wave(rows * SIDE, 0.11), vec![0f32; rows * SIDE]);
    least_time(|| linear.forward(black_box(&x), rows, &mut y, 1))
}

/// The least of several, in microseconds.
fn least_time(mut run: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut best = f64::INFINITY;
    for _ in 0..16 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(1e6 * best)
}

/// Number `i` of a normal distribution, by Box and Muller's transform of two of an even one.
fn normal(i: u64) -> f32 {
    let [u, v] = [1, 2].map(|seed| f64::from(random_unit(seed, i)));
    ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Number `i` of a Laplace distribution.
fn laplace(i: u64) -> f32 {
    let u = f64::from(random_unit(3, i)) - 0.5;
    (-(1.0 - 2.0 * u.abs()).max(f64::from(f32::EPSILON)).ln()).copysign(u) as f32
}

fn wave(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * step).sin()).collect()
}
