//! A model's weights fitted to its samples, layer by layer.

use super::moments::{input_of, moments, weight_of};
use super::{Gptq, Method};
use crate::error::{Error, Result};
use crate::nn::recurrent::float_recurrent;
use crate::nn::{Layer, Model, Node};
use crate::progress::Progress;
use crate::ptq::WeightConfig;
use crate::ptq::weight_only::weights_request;
use crate::quant::{Rounding, WeightFormat};
use crate::tensor::Value;

/// A model and how each of its layers was fitted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FittedModel {
    /// The model.
    pub model: Model,
    /// Of the layers with products that were quantized, in the order in which they run.
    pub layers: Vec<LayerFit>,
}

/// How a layer was fitted.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerFit {
    /// The layer's name.
    pub name: String,
    /// The method that was best on the samples held out.
    pub method: Method,
    /// See [`Fitted::errors`](super::Fitted::errors).
    pub errors: [f64; 2],
}

/// [`quantize_weights`](crate::quantize_weights), with codes and scales chosen by what they do to each layer's outputs on samples; `model` is
/// untouched.
///
/// Layers are fitted in the order in which they run, each to inputs that those before it, already quantized, give, recurrent ones also to
/// the states that they pass through with their weights rounded. Of every four samples one is held out, on which the method is chosen.
/// `batches` are inputs by name, with samples along their first axis.
///
/// Layers whose inputs the samples never reach are rounded to the nearest, as embeddings are.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value) -> lowprec::Result<()> {
/// use lowprec::ptq::{WeightConfig, gptq};
/// let config = WeightConfig::new("int4:g32".parse()?);
/// let fitted = gptq::quantize_weights(model, &[&[("x", samples)]], &config, &gptq::Gptq::new(), Default::default())?;
/// for layer in &fitted.layers {
///     println!("{}: {:?}, error {:.3} of rounding's", layer.name, layer.method, layer.errors[1] / layer.errors[0]);
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`quantize_weights`](crate::quantize_weights) and of [`Model::run`]; [`Error::Empty`] without a batch; [`Error::Unsupported`]
/// for a configuration that rounds by chance; [`Error::NonFinite`] for NaN and infinities in a layer's inputs, and in weights that are
/// fitted whatever the configuration says of them, inside an [`Error::Layer`] that names it; [`Error::Cancelled`].
pub fn quantize_weights(
    model: &Model,
    batches: &[&[(&str, &Value)]],
    config: &WeightConfig,
    gptq: &Gptq,
    mut progress: Progress<'_>,
) -> Result<FittedModel> {
    if batches.is_empty() {
        return Err(Error::Empty { what: "set of calibration samples".into(), way_out: "give at least one batch" });
    }
    if config.rounding() != Rounding::Nearest {
        return Err(Error::Unsupported {
            what: "rounding by chance of weights that are fitted to samples".into(),
            way_out: "leave the configuration's rounding as it is, or quantize without samples".into(),
        });
    }
    // Batch norms folded, everything else as it was.
    let mut model = weights_request(model, config, &|node| Ok(node.layer().clone()), &mut Progress::silent())?;
    let names = model.conversion().map(|conversion| conversion.quantized.clone()).unwrap_or_default();
    let mut layers = Vec::new();
    for (done, name) in names.iter().enumerate() {
        progress.step("fit weights", name, done, names.len())?;
        let Some(at) = model.nodes().iter().position(|node| node.name() == name) else { continue };
        let node = &model.nodes()[at];
        let Some(format) = config.format(node) else { continue };
        let (twin, fit) = fit(&model, node, batches, format, config, gptq).map_err(|error| error.in_layer(name))?;
        layers.extend(fit);
        let mut nodes = model.nodes().to_vec();
        nodes[at] = nodes[at].with_layer(twin);
        let conversion = model.conversion().cloned();
        model = model.with_nodes(nodes, conversion);
    }
    Ok(FittedModel { model, layers })
}

fn fit(
    model: &Model,
    node: &Node,
    batches: &[&[(&str, &Value)]],
    format: &WeightFormat,
    config: &WeightConfig,
    gptq: &Gptq,
) -> Result<(Layer, Option<LayerFit>)> {
    if let Some(float) = float_recurrent(node.layer()) {
        return super::recurrent::fit_weights(float, model, node, batches, format, config, gptq);
    }
    // Rows that are picked have no inputs to be fitted to.
    let Some(weight) = weight_of(node.layer()) else { return Ok((config.twin(node)?, None)) };
    let [samples, held_out] = moments(node.layer(), gptq.threads, batches.iter().map(|batch| input_of(model, node, batch)))?;
    let fitted = gptq.quantize(weight, format, &samples, &held_out)?;
    let fit = LayerFit { name: node.name().to_owned(), method: fitted.method, errors: fitted.errors };
    Ok((config.layer(node, fitted.weights)?, Some(fit)))
}
