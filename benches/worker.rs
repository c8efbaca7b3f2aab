//! Times one operation on request: the far side of a comparison with other libraries in one run.
//!
//! Reads one JSON request a line on standard input and answers each with one line on standard output:
//!
//! ```text
//! {"op": "linear_static", "m": 128, "n": 768, "k": 768, "threads": 1, "seconds": 0.3}
//! {"iters": 2048, "min_ns": 150000.0, "ns": 151000.0}
//! ```
//!
//! `ns` is the median of one call, with weights packed and buffers allocated before. Operations, with their shape's keys:
//! - `linear_f32`, `linear_dynamic`, `linear_static`, `matmul_i32`: `m`, `n`, `k`;
//! - `linear_w4`: `m`, `n`, `k`, `group`; float32 in and out, symmetric 4-bit weights with a scale of 16 bits for each group, activations
//!   quantized to 8 bits in the call;
//! - `conv_f32`, `conv_dynamic`, `conv_static`: `n`, `h`, `w`, `cin`, `cout`, `kh`, `kw`, `stride`, `pad`, `groups`; NHWC;
//! - `model_f32`, `model_dynamic`, `model_static`: `path` of a float32 .onnx file, `input` (the shape of each of its inputs); static
//!   models are calibrated on four seeded random inputs.
//!
//! `*_dynamic` takes and gives f32 and measures the range of the input in the call, for the whole tensor; `*_static` takes and gives u8
//! with bias; `matmul_i32` gives the sums. An optional `isa` names the instruction set. What can't be done is answered `{"error": ...}`.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::ops::{Deref, DerefMut};
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use lowprec::kernels::{
    Accumulate, ActivationRule, Conv2dGeometry, Epilogue, FloatEpilogue, GroupScales, ImageLayout, ImageShape, Isa, Levels, LowBit,
    LowBitRange, Matrix, MatrixMut, PackedConv2d, PackedFloatConv2d, PackedFloatWeights, PackedLowBit, PackedWeights, Per, RangeOf,
    Requantize, WeightLayout, Workspace, conv2d, conv2d_dynamic, conv2d_f32, gemm, gemm_dynamic, gemm_low_bit, sgemm,
};
use lowprec::nn::Executor;
use lowprec::num::{NonFinite, f16};
use lowprec::{DType, LayerKind, Tensor};
use serde_json::{Value, json};

type Fail = Box<dyn std::error::Error>;

/// Batches of calls that take 2 ms or one call, for `seconds`: the median and the least time of one call.
fn timed(seconds: f64, mut f: impl FnMut() -> lowprec::Result<()>) -> Result<Value, Fail> {
    f()?;
    f()?;
    let start = Instant::now();
    f()?;
    let batch = (0.002 / start.elapsed().as_secs_f64().max(1e-9)).clamp(1.0, 1e5) as u32;
    let (mut samples, mut iters) = (Vec::new(), 0u64);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds) || samples.len() < 5 {
        let start = Instant::now();
        for _ in 0..batch {
            f()?;
        }
        samples.push(start.elapsed().as_nanos() as f64 / f64::from(batch));
        iters += u64::from(batch);
    }
    samples.sort_by(f64::total_cmp);
    Ok(json!({"ns": samples[samples.len() / 2], "min_ns": samples[0], "iters": iters}))
}

/// Repeatable values around zero, more of them small than large.
fn floats(len: usize, scale: f32) -> Vec<f32> {
    let uniform = |i: u64| {
        let mut x = i.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len as u64).map(|i| (uniform(3 * i) + uniform(3 * i + 1) + uniform(3 * i + 2)) * scale).collect()
}

fn codes(len: usize) -> Vec<u8> {
    floats(len, 42.0).into_iter().map(|x| (x + 128.0) as u8).collect()
}

fn weight_codes(len: usize) -> Vec<i8> {
    floats(len, 42.0).into_iter().map(|x| x as i8).collect()
}

/// Numbers in memory that starts a cache line, as an allocator for tensors gives it: a vector that lies across two lines costs two
/// accesses.
struct Buffer<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        let mut memory = vec![T::default(); values.len() + 64 / size_of::<T>()];
        let (start, len) = (memory.as_ptr().align_offset(64), values.len());
        memory[start..start + len].copy_from_slice(&values);
        Buffer { memory, start, len }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

struct Request(Value);

impl Request {
    fn dim(&self, key: &str) -> Result<usize, Fail> {
        self.0[key].as_u64().map(|d| d as usize).ok_or_else(|| format!("the request has no `{key}`").into())
    }

    fn isa(&self) -> Result<Isa, Fail> {
        let Some(name) = self.0["isa"].as_str() else { return Ok(Isa::best()) };
        Isa::available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| format!("no instruction set `{name}` here").into())
    }

    fn answer(&self) -> Result<Value, Fail> {
        match self.0["op"].as_str().unwrap_or_default() {
            op @ ("linear_f32" | "linear_dynamic" | "linear_static" | "matmul_i32") => self.linear(op),
            "linear_w4" => self.linear_w4(),
            op @ ("conv_f32" | "conv_dynamic" | "conv_static") => self.conv(op),
            op @ ("model_f32" | "model_dynamic" | "model_static") => self.model(op),
            op => Err(format!("no operation is called `{op}`").into()),
        }
    }

    /// A whole network: the float32 file, quantized outside the timed call.
    fn model(&self, op: &str) -> Result<Value, Fail> {
        let (threads, seconds) = (self.dim("threads").unwrap_or(1), self.0["seconds"].as_f64().unwrap_or(0.5));
        let mut model = lowprec::onnx::load(self.0["path"].as_str().ok_or("the request has no `path`")?)?;
        if op == "model_dynamic" {
            let quantizable = |kind: &&LayerKind| lowprec::ptq::DynamicQuantization::KINDS.contains(kind);
            let kinds: Vec<LayerKind> = model.kinds().iter().map(|(kind, _)| kind).filter(quantizable).copied().collect();
            model = lowprec::quantize_dynamic(&model, &kinds)?;
        }
        let dims: Vec<usize> = self.0["input"].as_array().into_iter().flatten().filter_map(|d| Some(d.as_u64()? as usize)).collect();
        let length = dims.iter().product();
        let sample = |model: &lowprec::Model, seed: usize| -> Result<Vec<(String, lowprec::Value)>, Fail> {
            let mut inputs = Vec::new();
            for (i, input) in model.inputs().iter().enumerate() {
                // Token numbers, and a mask that hides none.
                let ids = |j: usize| if i == 0 { ((j + 31 * seed) as i64 * 7919) % 20_000 } else { 1 };
                inputs.push((
                    input.name().to_owned(),
                    match input.dtype() {
                        DType::I64 => Tensor::new(dims.clone(), (0..length).map(ids).collect::<Vec<i64>>())?.into(),
                        _ => lowprec::Value::from(Tensor::new(dims.clone(), floats(length * (seed + 1), 1.0).split_off(length * seed))?),
                    },
                ));
            }
            Ok(inputs)
        };
        if op == "model_static" {
            let mut calibrator = lowprec::ptq::Calibrator::new(&model, &lowprec::QConfig::default())?;
            for seed in 1..5 {
                let inputs = sample(&model, seed)?;
                calibrator.observe(&inputs.iter().map(|(name, value)| (name.as_str(), value)).collect::<Vec<_>>())?;
            }
            model = calibrator.convert()?;
        }
        let inputs = sample(&model, 0)?;
        let given: Vec<(&str, &lowprec::Value)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let mut executor = Executor::new(&model).with_threads(threads)?;
        let mut outputs = executor.run(&given)?;
        timed(seconds, || {
            let mut written: Vec<(&str, &mut lowprec::Value)> = outputs.iter_mut().map(|(name, value)| (name.as_str(), value)).collect();
            executor.run_into(black_box(&given), &mut written)
        })
    }

    fn linear(&self, op: &str) -> Result<Value, Fail> {
        let (m, n, k, isa) = (self.dim("m")?, self.dim("n")?, self.dim("k")?, self.isa()?);
        let (threads, seconds) = (self.dim("threads").unwrap_or(1), self.0["seconds"].as_f64().unwrap_or(0.5));
        let (bias, scales) = (floats(n, 1.0), vec![1.2e-3; n]);
        let mut workspace = Workspace::new();
        if op == "linear_f32" {
            let packed = PackedFloatWeights::pack_for(isa, &floats(n * k, 0.05), n, k, WeightLayout::Nk)?;
            let (x, mut y) = (Buffer::from(floats(m * k, 1.0)), Buffer::from(vec![0f32; m * n]));
            return timed(seconds, || {
                let dst = MatrixMut::new(&mut y, m, n)?;
                sgemm(black_box(Matrix::new(&x, m, k)?), &packed, &FloatEpilogue::new().with_bias(Some(&bias)), dst, threads)
            });
        }
        let packed = PackedWeights::pack_for(isa, &weight_codes(n * k), n, k, WeightLayout::Nk)?;
        match op {
            "linear_dynamic" => {
                let (x, mut y, rule) = (Buffer::from(floats(m * k, 1.0)), Buffer::from(vec![0f32; m * n]), ActivationRule::default());
                let epilogue = Epilogue::new(&scales).with_bias(Some(&bias));
                timed(seconds, || {
                    let (lhs, dst) = (black_box(Matrix::new(&x, m, k)?), MatrixMut::new(&mut y, m, n)?);
                    gemm_dynamic(lhs, RangeOf::Tensor, &rule, &packed, &epilogue, dst, &mut workspace, threads)
                })
            }
            "linear_static" => {
                let (x, mut y, bias) = (Buffer::from(codes(m * k)), Buffer::from(vec![0u8; m * n]), vec![100; n]);
                let stage = Requantize::<u8>::new(&scales).with_bias(Some(&bias)).with_zero_point(128);
                timed(seconds, || {
                    let (lhs, dst) = (black_box(Matrix::new(&x, m, k)?), MatrixMut::new(&mut y, m, n)?);
                    gemm(lhs, Per::Tensor(128), &packed, &stage, dst, &mut workspace, threads)
                })
            }
            _ => {
                let (x, mut y) = (Buffer::from(codes(m * k)), Buffer::from(vec![0i32; m * n]));
                timed(seconds, || {
                    let (lhs, dst) = (black_box(Matrix::new(&x, m, k)?), MatrixMut::new(&mut y, m, n)?);
                    gemm(lhs, Per::Tensor(128), &packed, &Accumulate, dst, &mut workspace, threads)
                })
            }
        }
    }

    fn linear_w4(&self) -> Result<Value, Fail> {
        let (m, n, k, group, isa) = (self.dim("m")?, self.dim("n")?, self.dim("k")?, self.dim("group")?, self.isa()?);
        let (threads, seconds) = (self.dim("threads").unwrap_or(1), self.0["seconds"].as_f64().unwrap_or(0.5));
        let codes: Vec<u8> = floats((n * k).div_ceil(2), 42.0).into_iter().map(|x| (x + 128.0) as u8).collect();
        let scales = vec![f16::from_f32(4.0e-3); n * k.div_ceil(group)];
        let scales = GroupScales::F16(&scales);
        let weights = LowBit { n, k, bits: 4, group, codes: &codes, levels: Levels::Signed, scales };
        let (packed, bias, mut workspace) = (PackedLowBit::pack_for(isa, &weights)?, floats(n, 1.0), Workspace::new());
        drop(codes);
        let (x, mut y) = (Buffer::from(floats(m * k, 1.0)), Buffer::from(vec![0f32; m * n]));
        let epilogue = FloatEpilogue::new().with_bias(Some(&bias));
        timed(seconds, || {
            let (lhs, dst) = (black_box(Matrix::new(&x, m, k)?), MatrixMut::new(&mut y, m, n)?);
            gemm_low_bit(lhs, LowBitRange::Row, NonFinite::Error, &packed, &epilogue, dst, &mut workspace, threads)
        })
    }

    fn conv(&self, op: &str) -> Result<Value, Fail> {
        let (cin, cout, isa) = (self.dim("cin")?, self.dim("cout")?, self.isa()?);
        let (threads, seconds) = (self.dim("threads").unwrap_or(1), self.0["seconds"].as_f64().unwrap_or(0.5));
        let (stride, pad) = (self.dim("stride")?, self.dim("pad")?);
        let geometry = Conv2dGeometry::new(cin, cout, [self.dim("kh")?, self.dim("kw")?])
            .with_stride([stride; 2])
            .with_padding([pad; 4])
            .with_groups(self.dim("groups").unwrap_or(1));
        let shape = ImageShape { n: self.dim("n")?, h: self.dim("h")?, w: self.dim("w")?, layout: ImageLayout::Nhwc };
        let [h, w] = geometry.output_size(shape.h, shape.w)?;
        let (inputs, outputs) = (shape.n * shape.h * shape.w * cin, shape.n * h * w * cout);
        let weights: usize = geometry.weight_shape().iter().product();
        let (bias, scales) = (floats(cout, 1.0), vec![1.2e-3; cout]);
        let mut workspace = Workspace::new();
        if op == "conv_f32" {
            let packed = PackedFloatConv2d::pack_for(isa, &geometry, &floats(weights, 0.05))?;
            let (x, mut y) = (Buffer::from(floats(inputs, 1.0)), Buffer::from(vec![0f32; outputs]));
            return timed(seconds, || {
                conv2d_f32(black_box(&x), shape, &packed, &FloatEpilogue::new().with_bias(Some(&bias)), &mut y, &mut workspace, threads)
            });
        }
        let packed = PackedConv2d::pack_for(isa, &geometry, &weight_codes(weights))?;
        if op == "conv_dynamic" {
            let (x, mut y, rule) = (Buffer::from(floats(inputs, 1.0)), Buffer::from(vec![0f32; outputs]), ActivationRule::default());
            let epilogue = Epilogue::new(&scales).with_bias(Some(&bias));
            return timed(seconds, || {
                conv2d_dynamic(black_box(&x), shape, RangeOf::Row, &rule, &packed, &epilogue, &mut y, &mut workspace, threads)
            });
        }
        let (x, mut y, bias) = (Buffer::from(codes(inputs)), Buffer::from(vec![0u8; outputs]), vec![100; cout]);
        let stage = Requantize::<u8>::new(&scales).with_bias(Some(&bias)).with_zero_point(128);
        timed(seconds, || conv2d(black_box(&x), shape, Per::Tensor(128), &packed, &stage, &mut y, &mut workspace, threads))
    }
}

fn main() {
    for line in std::io::stdin().lock().lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
        let answer = catch_unwind(|| serde_json::from_str(&line).map_err(Fail::from).and_then(|request| Request(request).answer()));
        let answer = answer.unwrap_or_else(|_| Err("it panicked".into())).unwrap_or_else(|error| json!({"error": error.to_string()}));
        println!("{answer}");
        if std::io::stdout().flush().is_err() {
            return;
        }
    }
}
