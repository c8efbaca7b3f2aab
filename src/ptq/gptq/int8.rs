//! Int8 models whose weights are fitted to samples: static and dynamic.

use super::moments::{input_of, moments, weight_of};
use super::{FittedModel, Gptq, LayerFit};
use crate::convert::{Calibration, QConfig, StaticPlan};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::nn::quantized::{Conv2d, DynamicScheme, Linear};
use crate::nn::recurrent::float_recurrent;
use crate::nn::{Layer, Model, Node};
use crate::progress::Progress;
use crate::ptq::layers::folded_alike;
use crate::ptq::{Calibrator, DynamicQuantization};
use crate::tensor::{QuantizedTensor, Tensor, Value};

/// [`quantize_static`](crate::quantize_static), with codes and scales of weights chosen by what they do to each layer's outputs on samples;
/// `model` is untouched. Gives the calibration too, which has the codes.
///
/// Ranges of activations are found first, on all samples. Then layers are fitted in the order in which they run, each to the codes that
/// those before it, already quantized, write. Of every four samples one is held out, on which the method is chosen. A layer whose bias
/// would not fit between the fitted scale's steps keeps the codes of the configuration's rule.
///
/// # Errors
/// Those of [`Calibrator::observe`] and [`StaticPlan::convert`]; [`Error::NonFinite`] for weights that are not finite;
/// [`Error::Cancelled`].
pub fn quantize_static(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    config: &QConfig,
    gptq: &Gptq,
    mut progress: Progress<'_>,
) -> Result<(FittedModel, Calibration)> {
    let mut calibrator = Calibrator::new(model, config)?.with_threads(gptq.threads);
    for (done, batch) in batches.iter().enumerate() {
        progress.step("calibrate", &format!("batch {done}"), done, batches.len())?;
        calibrator.observe(batch)?;
    }
    let mut calibration = calibrator.finish()?;
    let plan = StaticPlan::new(model, config, calibration.shapes())?;
    let (anchors, mut layers) = (plan.anchors(), Vec::new());
    let mut integers = plan.convert(&calibration, Isa::best())?;
    for (done, name) in anchors.iter().enumerate() {
        progress.step("fit weights", name, done, anchors.len())?;
        let mut fit = || -> Result<LayerFit> {
            let (Some(float), Some(node)) = (plan.model().node(name), integers.node(name)) else { return Err(missing(&plan, name)) };
            let Some(weight) = weight_of(float.layer()) else { return Err(missing(&plan, name)) };
            let [samples, held_out] = moments(float.layer(), gptq.threads, batches.iter().map(|batch| input_of(&integers, node, batch)))?;
            let grid = node.reads().next().and_then(|edge| integers.grid(edge)).ok_or_else(|| missing(&plan, name))?;
            let (rounded, least) = plan.weight_codes(name, grid)?;
            let fitted = gptq.quantize_codes(weight, &rounded, &samples, &held_out)?;
            let scales = fitted.weights.params().scales();
            let scale = |channel: usize| f64::from(if scales.len() == 1 { scales[0] } else { scales[channel] });
            let fits = least.iter().enumerate().all(|(channel, &least)| scale(channel) >= least);
            let (codes, method, errors) = match fits {
                true => (fitted.weights, fitted.method, fitted.errors),
                false => (rounded, super::Method::Nearest, [fitted.errors[0]; 2]),
            };
            calibration.insert_weights(name, codes);
            Ok(LayerFit { name: name.clone(), method, errors })
        };
        layers.push(fit().map_err(|error| error.in_layer(name))?);
        integers = plan.convert(&calibration, Isa::best())?;
    }
    Ok((FittedModel { model: integers, layers }, calibration))
}

fn missing(plan: &StaticPlan, name: &str) -> Error {
    let present = plan.model().nodes().iter().map(|node| node.name()).collect();
    Error::Unknown { what: "static layer", name: name.to_owned(), present }
}

/// What `how` asks for, with codes and scales of the weights of convolutions, linear layers, LSTM and GRU chosen by what they do to each
/// product on samples; `model` is untouched. Progress is reported to `progress`, not to that of `how`. Layers are fitted in the order in
/// which they run, each to inputs that those before it, already quantized, give; recurrent ones to those and to the states that they then
/// pass through.
///
/// # Errors
/// Those of [`DynamicQuantization::apply`] and of [`Model::run`]; [`Error::Empty`] without a batch; [`Error::NonFinite`] for
/// NaN and infinities in a layer's inputs, inside an [`Error::Layer`] that names it; [`Error::Cancelled`].
pub fn quantize_dynamic(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    how: &DynamicQuantization<'_>,
    gptq: &Gptq,
    mut progress: Progress<'_>,
) -> Result<FittedModel> {
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
    }
    // All layers by their rule first; each is then replaced by one that is fitted to what it reads.
    let mut current = how.make(model, &mut Progress::silent())?;
    let float = folded_alike(model, &current)?;
    let is_fitted =
        |name: &str| float.node(name).is_some_and(|node| weight_of(node.layer()).is_some() || float_recurrent(node.layer()).is_some());
    let names: Vec<String> = current
        .conversion()
        .map(|conversion| conversion.quantized.clone())
        .unwrap_or_default()
        .into_iter()
        .filter(|name| is_fitted(name))
        .collect();
    let mut layers = Vec::new();
    for (done, name) in names.iter().enumerate() {
        progress.step("fit weights", name, done, names.len())?;
        let (Some(before), Some(at)) = (float.node(name), current.nodes().iter().position(|node| node.name() == name)) else { continue };
        let node = &current.nodes()[at];
        let fitted = match float_recurrent(before.layer()) {
            Some(before) => super::recurrent::fit(before, &current, node, batches, how.scheme(), gptq),
            None => fit(before.layer(), &current, node, batches, how.scheme(), gptq),
        };
        let (layer, fit) = fitted.map_err(|error| error.in_layer(name))?;
        layers.push(fit);
        let mut nodes = current.nodes().to_vec();
        nodes[at] = nodes[at].with_layer(layer);
        current = current.with_nodes(nodes, current.conversion().cloned());
    }
    Ok(FittedModel { model: current, layers })
}

/// The int8 twin of a convolution or linear layer, in place of the node's own, with weights fitted to what it reads when `model` runs.
fn fit(
    before: &Layer,
    model: &Model,
    node: &Node,
    batches: &[&[(&str, &Value)]],
    (scheme, isa): (&DynamicScheme, Isa),
    gptq: &Gptq,
) -> Result<(Layer, LayerFit)> {
    let (Some(weight), Some(rounded)) = (weight_of(before), codes_of(node.layer())?) else { return Err(unfit(node)) };
    let [samples, held_out] = moments(before, gptq.threads, batches.iter().map(|batch| input_of(model, node, batch)))?;
    let fitted = gptq.quantize_codes(weight, &rounded, &samples, &held_out)?;
    let layer = match before {
        Layer::Conv2d(conv) => Conv2d::from_codes(conv.geometry(), &fitted.weights, bias(conv.bias()), scheme, isa)?.into(),
        Layer::Linear(linear) => Linear::from_codes(&fitted.weights, bias(linear.bias()), scheme, isa)?.into(),
        _ => return Err(unfit(node)),
    };
    Ok((layer, LayerFit { name: node.name().to_owned(), method: fitted.method, errors: fitted.errors }))
}

fn codes_of(layer: &Layer) -> Result<Option<QuantizedTensor<i8>>> {
    match layer {
        Layer::QuantizedConv2d(conv) => conv.weight().map(Some),
        Layer::QuantizedLinear(linear) => linear.weight().map(Some),
        _ => Ok(None),
    }
}

pub(super) fn unfit(node: &Node) -> Error {
    Error::Unsupported {
        what: format!("fitting the weights of {} to samples", node.layer().kind()),
        way_out: "leave them to their rule".into(),
    }
}

fn bias(bias: Option<&Tensor>) -> Option<&[f32]> {
    bias.map(Tensor::as_slice)
}
