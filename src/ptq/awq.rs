//! AWQ: weights of few bits rounded finely where activations are large.
//!
//! Of a layer's inputs some channels are larger than others on every sample; an error in their weights costs more. Such a channel's weights
//! are multiplied by a scale before they are rounded, and the channel is divided by it where it is written, so that the group's step, which
//! hardly changes, is a smaller part of them (Lin et al. 2023, "AWQ: Activation-aware Weight Quantization"):
//!
//! ```text
//! y = (x / s) · Q(W S)ᵀ          s_j = (mean |x_j|)^α, over √(max s · min s)
//! ```
//!
//! `α`, 0 to 0.95 in steps of 0.05, is that of least squared error of the outputs of all layers that read the value, each in its own
//! format. Layers that read the same value share the scales. Which values these are, [`channel_scales`](super::channel_scales) says.
//!
//! Then the largest weights of a group may be better clipped: [`quantize_weights`] tries all of its range and less, in twentieths down to
//! eleven of them, and takes, for each group by itself, the range with which its part of the outputs has the least error; [`clip_weights`]
//! does that alone.
//!
//! [`gptq`](super::gptq) sees all of the inputs' second moments where AWQ sees their diagonal, and gains more; the scales found here make
//! its work easier, and can be had alone: [`scale_channels`].
//!
//! ```no_run
//! # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value) -> lowprec::Result<()> {
//! use lowprec::ptq::{WeightConfig, awq, gptq};
//! let config = WeightConfig::new("int4:g128".parse()?);
//! let scaled = awq::scale_channels(model, &[&[("ids", samples)]], &config, Default::default())?;
//! println!("{scaled}");
//! let fitted = gptq::quantize_weights(&scaled.model, &[&[("ids", samples)]], &config, &gptq::Gptq::new(), Default::default())?;
//! # let _: lowprec::Model = fitted.model; Ok(()) }
//! ```

use super::channel_scales::{Choice, Rescaled, Seen, product, rescale, times};
use super::gptq::{Hessian, Products, input_of, moments, seen_products, weight_of};
use super::weight_only::{WeightConfig, weights_request};
use crate::error::{Error, Result};
use crate::nn::recurrent::float_recurrent;
use crate::nn::{Executor, Linear, Model, Node};
use crate::progress::Progress;
use crate::quant::{QuantizedWeights, Rounding, WeightFormat, WeightQuantizer};
use crate::tensor::{Tensor, Value};

/// Steps of the strength, of a twentieth each; the first changes nothing.
const STRENGTHS: usize = 20;
/// Ranges that are tried, each a twentieth of the largest magnitude shorter.
const RANGES: usize = 10;
/// The least scale before scales are brought around 1.
const LEAST: f64 = 1e-4;

/// A model with its weights quantized, what its channels were scaled by, and what clipping gained.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Aware {
    /// The model.
    pub model: Model,
    /// The float model that was quantized, and how its channels were scaled.
    pub scaled: Rescaled,
    /// Of the layers with products that were quantized, in the order in which they run.
    pub layers: Vec<Clipping>,
}

/// A model with its weights quantized, and what clipping gained.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Clipped {
    /// The model.
    pub model: Model,
    /// Of the layers with products that were quantized, in the order in which they run.
    pub layers: Vec<Clipping>,
}

/// How a layer's weights were clipped.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Clipping {
    /// The layer's name.
    pub name: String,
    /// The share of groups whose range is shorter than their weights, of a recurrent layer the mean over its products; 0 where clipping was
    /// no gain on the samples held out.
    pub clipped: f64,
    /// Squared error of the outputs on those samples: without clipping, and with what was taken.
    pub errors: [f64; 2],
}

/// The same function with channels scaled so that the weights' errors in the formats of `config` cost least; `model` is untouched. Batch
/// norms are folded and functions that an exporter spelled out are put together first, as before every quantization.
///
/// `batches` are inputs by name. Of each value the first 1024 rows that they show are kept. A value none of whose readers gets a format
/// stays as it is.
///
/// # Errors
/// [`Error::Empty`] without a batch; [`Error::NonFinite`] for NaN and infinities in weights and in what samples make of them, inside an
/// [`Error::Layer`] that names the layer; [`Error::Cancelled`]; those of [`Model::run`] and [`WeightFormat::quantize`].
pub fn scale_channels(model: &Model, batches: &[&[(&str, &Value)]], config: &WeightConfig, mut progress: Progress<'_>) -> Result<Rescaled> {
    rescale(model, batches, "scale channels", &mut progress, |model, readers, seen| choose(model, readers, seen, config))
}

/// The strength of least error, if it is better than none.
fn choose(model: &Model, readers: &[(usize, &Linear)], seen: &Seen, config: &WeightConfig) -> Result<Choice> {
    let threads = Executor::new(model).threads();
    let formats: Vec<(&str, &Linear, &WeightFormat)> = readers
        .iter()
        .filter_map(|(reader, linear)| {
            let node = &model.nodes()[*reader];
            config.format(node).map(|format| (node.name(), *linear, format))
        })
        .collect();
    let squares = |y: &[f32]| y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>();
    let (mut total, mut scaled) = (0.0, Vec::new());
    for (_, linear, _) in &formats {
        total += squares(&product(linear.weight(), &seen.rows, threads)?);
    }
    let error = |scales: &[f64]| -> Result<f64> {
        let mut error = 0.0;
        for (name, linear, format) in &formats {
            let rounded = format.quantize(&times(linear.weight(), scales)?).map_err(|error| error.in_layer(name))?.dequantize();
            let width = scales.len();
            let off = rounded.as_slice().iter().zip(linear.weight().as_slice()).enumerate();
            let off = off.map(|(i, (&q, &w))| (f64::from(q) / scales[i % width] - f64::from(w)) as f32).collect();
            error += squares(&product(&Tensor::new(linear.weight().dims(), off)?, &seen.rows, threads)?);
        }
        Ok(error)
    };
    let before = error(&vec![1.0; seen.mean.len()])?;
    let mut best = (before, None);
    for step in 1..STRENGTHS {
        if formats.is_empty() {
            break;
        }
        let strength = step as f64 / STRENGTHS as f64;
        scales(&seen.mean, strength, &mut scaled);
        let after = error(&scaled)?;
        if after < best.0 {
            best = (after, Some((strength, scaled.clone())));
        }
    }
    let relative = |error: f64| if total > 0.0 { error / total } else { error };
    Ok(Choice { errors: [before, best.0].map(relative), best: best.1 })
}

/// `x^α` of each channel, over the root of the largest times the smallest; of channels that are 0 throughout, 1.
fn scales(mean: &[f64], strength: f64, scales: &mut Vec<f64>) {
    let raw = |x: f64| x.powf(strength).max(LEAST);
    let seen = || mean.iter().copied().filter(|&x| x > 0.0).map(raw);
    let middle = (seen().fold(0.0, f64::max) * seen().fold(f64::INFINITY, f64::min)).sqrt();
    scales.clear();
    scales.extend(mean.iter().map(|&x| if x > 0.0 { raw(x) / middle } else { 1.0 }));
}

/// [`quantize_weights`](crate::quantize_weights) of a model whose channels were scaled by [`scale_channels`], each group's range clipped where
/// that helps its part of the outputs; `model` is untouched.
///
/// Layers are clipped in the order in which they run, each by inputs that those before it, already quantized, give. Of every four samples
/// one is held out; a layer whose error on those clipping makes larger keeps its weights, and so does one whose format keeps some exactly.
/// `batches` are inputs by name, with samples along their first axis.
///
/// # Errors
/// Those of [`scale_channels`], [`quantize_weights`](crate::quantize_weights) and [`Model::run`]; [`Error::Unsupported`] for a
/// configuration that rounds by chance; [`Error::NonFinite`] for NaN and infinities in a layer's inputs, inside an [`Error::Layer`] that
/// names it; [`Error::Cancelled`].
pub fn quantize_weights(model: &Model, batches: &[&[(&str, &Value)]], config: &WeightConfig, mut progress: Progress<'_>) -> Result<Aware> {
    check_rounding(config)?;
    let scaled = scale_channels(model, batches, config, progress.lend())?;
    let Clipped { model, layers } = clip_weights(&scaled.model, batches, config, progress)?;
    Ok(Aware { model, scaled, layers })
}

/// [`quantize_weights`] of a model whose channels stay as they are: groups are clipped, and nothing else.
///
/// # Errors
/// Those of [`quantize_weights`].
pub fn clip_weights(model: &Model, batches: &[&[(&str, &Value)]], config: &WeightConfig, mut progress: Progress<'_>) -> Result<Clipped> {
    check_rounding(config)?;
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
    }
    let threads = Executor::new(model).threads();
    let mut model = weights_request(model, config, &|node| Ok(node.layer().clone()), &mut Progress::silent())?;
    let names = model.conversion().map(|conversion| conversion.quantized.clone()).unwrap_or_default();
    let mut layers = Vec::new();
    for (done, name) in names.iter().enumerate() {
        progress.step("clip weights", name, done, names.len())?;
        let Some(at) = model.nodes().iter().position(|node| node.name() == name) else { continue };
        let node = &model.nodes()[at];
        let of = |node: &Node| -> Result<_> {
            let Some(format) = config.format(node) else { return Ok((config.twin(node)?, None)) };
            if let Some(float) = float_recurrent(node.layer()) {
                let (mut weights, mut clipping) = (Vec::new(), Clipping { name: name.clone(), clipped: 0.0, errors: [0.0; 2] });
                let products = seen_products(float, &model, node, batches, config, threads)?;
                let count = products.len() as f64;
                for (product, [samples, held_out]) in products {
                    let (clipped, share, errors) = clip(product.weight(), format, &samples, &held_out, threads)?;
                    weights.push(clipped);
                    clipping.clipped += share / count;
                    clipping.errors.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error);
                }
                return Ok((config.recurrent(node, float, weights)?, Some(clipping)));
            }
            let Some(weight) = weight_of(node.layer()) else { return Ok((config.twin(node)?, None)) };
            let [samples, held_out] = moments(node.layer(), threads, batches.iter().map(|batch| input_of(&model, node, batch)))?;
            let (weights, clipped, errors) = clip(weight, format, &samples, &held_out, threads)?;
            Ok((config.layer(node, weights)?, Some(Clipping { name: name.clone(), clipped, errors })))
        };
        let (twin, clipping) = of(node).map_err(|error| error.in_layer(name))?;
        layers.extend(clipping);
        let mut nodes = model.nodes().to_vec();
        nodes[at] = nodes[at].with_layer(twin);
        let conversion = model.conversion().cloned();
        model = model.with_nodes(nodes, conversion);
    }
    Ok(Clipped { model, layers })
}

/// Of what is rounded by chance no rounding is better.
fn check_rounding(config: &WeightConfig) -> Result<()> {
    if config.rounding() == Rounding::Nearest {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "rounding by chance of weights that are fitted to samples".into(),
        way_out: "leave the configuration's rounding as it is, or quantize without samples".into(),
    })
}

/// The weights with each group's range as its part of the outputs has it best, or as they are; the share of groups clipped, and the errors
/// of both on `held_out` (on the samples where it has seen none).
fn clip(
    weight: &Tensor,
    format: &WeightFormat,
    samples: &[Hessian],
    held_out: &[Hessian],
    threads: usize,
) -> Result<(QuantizedWeights, f64, [f64; 2])> {
    let quantizer = WeightQuantizer::new(format.clone());
    let plain = quantizer.quantize(weight)?;
    let seen = |hessians: &[Hessian]| hessians.iter().any(|h| h.samples() > 0);
    let judges = if seen(held_out) { held_out } else { samples };
    let part = weight.len() / judges.len().max(1);
    let error = |weights: &QuantizedWeights| -> Result<f64> {
        let off: Vec<f32> = weights.dequantize().as_slice().iter().zip(weight.as_slice()).map(|(q, w)| q - w).collect();
        judges.iter().zip(off.chunks(part.max(1))).map(|(judge, off)| judge.error(off, threads)).sum()
    };
    let before = error(&plain)?;
    // What is kept exactly must be the weights themselves.
    if !seen(samples) || before == 0.0 || format.keep().is_some() {
        return Ok((plain, 0.0, [before; 2]));
    }
    let groups = plain.groups();
    let mut best: Vec<(f64, f32)> = vec![(f64::INFINITY, f32::INFINITY); groups];
    let mut products: Vec<Products<'_>> = samples.iter().map(|h| Products::new(h, 1)).collect();
    for step in 0..RANGES {
        let share = 1.0 - 0.05 * step as f32;
        let limits: Vec<f32> =
            (0..groups).map(|group| share * weight.as_slice()[plain.group(group)].iter().fold(0.0f32, |l, w| l.max(w.abs()))).collect();
        let q = quantizer.quantize(&clamped(weight, &plain, &limits)?)?.dequantize();
        let errors = group_errors(weight, &plain, &q, &mut products)?;
        for (group, (best, error)) in best.iter_mut().zip(errors).enumerate() {
            if error < best.0 {
                *best = (error, if step == 0 { f32::INFINITY } else { limits[group] });
            }
        }
    }
    let limits: Vec<f32> = best.iter().map(|(_, limit)| *limit).collect();
    let clipped = quantizer.quantize(&clamped(weight, &plain, &limits)?)?;
    let after = error(&clipped)?;
    if after < before {
        let share = limits.iter().filter(|limit| limit.is_finite()).count() as f64 / groups as f64;
        return Ok((clipped, share, [before, after]));
    }
    Ok((plain, 0.0, [before; 2]))
}

/// The weights, those of each group no larger than its limit.
fn clamped(weight: &Tensor, groups: &QuantizedWeights, limits: &[f32]) -> Result<Tensor> {
    let mut clamped = weight.clone();
    for (group, &limit) in limits.iter().enumerate() {
        clamped.as_mut_slice()[groups.group(group)].iter_mut().for_each(|w| *w = w.clamp(-limit, limit));
    }
    Ok(clamped)
}

/// Of each group, `Σ e H eᵀ` over the rows that it has a part of, by that part's inputs alone.
fn group_errors(weight: &Tensor, groups: &QuantizedWeights, q: &Tensor, products: &mut [Products<'_>]) -> Result<Vec<f64>> {
    let columns = weight.len() / weight.dims()[0];
    let part = weight.len() / products.len();
    let mut errors = vec![0.0; groups.groups()];
    for (index, products) in products.iter_mut().enumerate() {
        for first in (0..columns).step_by(groups.group_size().min(columns)) {
            let block = first..(first + groups.group_size()).min(columns);
            // All rows at once.
            let starts = || (index * part..(index + 1) * part).step_by(columns).map(|row| row + block.start);
            let off = |at: usize| q.as_slice()[at..at + block.len()].iter().zip(&weight.as_slice()[at..]).map(|(q, w)| q - w);
            let rows: Vec<f32> = starts().flat_map(off).collect();
            let product = products.within(&rows, block.clone())?;
            for ((at, e), h) in starts().zip(rows.chunks(block.len())).zip(product.chunks(block.len())) {
                errors[groups.group_of(at)] += e.iter().zip(h).map(|(&e, &h)| f64::from(e) * f64::from(h)).sum::<f64>();
            }
        }
    }
    Ok(errors)
}
