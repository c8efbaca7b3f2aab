//! A model's weights fitted to its samples, layer by layer.

use super::patches::patches;
use super::{Gptq, Hessian, Method};
use crate::error::{Error, Result};
use crate::nn::{Executor, Layer, Model, Node};
use crate::progress::Progress;
use crate::ptq::WeightConfig;
use crate::ptq::weight_only::weights_request;
use crate::quant::{Rounding, WeightFormat};
use crate::tensor::{Tensor, Value};

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
/// Layers are fitted in the order in which they run, each to inputs that those before it, already quantized, give. Of every four samples
/// one is held out, on which the method is chosen. `batches` are inputs by name, with samples along their first axis.
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
/// Those of [`quantize_weights`](crate::quantize_weights) and of [`Model::run`]; [`Error::Empty`] without a batch; [`Error::Unsupported`] for
/// a configuration that rounds by chance; [`Error::NonFinite`] for NaN and infinities in a layer's inputs, and in weights that are fitted
/// whatever the configuration says of them, inside an [`Error::Layer`] that names it; [`Error::Cancelled`].
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
    let (weight, parts) = match node.layer() {
        Layer::Linear(linear) => (linear.weight(), 1),
        Layer::Conv2d(conv) => (conv.weight(), conv.geometry().groups),
        // Rows that are picked have no inputs to be fitted to.
        _ => return Ok((config.twin(node)?, None)),
    };
    let width = weight.dims()[1..].iter().product();
    let mut moments = [Moments::new(width, parts)?, Moments::new(width, parts)?];
    let mut seen = 0;
    for batch in batches {
        let Some(x) = input_of(model, node, batch)? else { continue };
        // A single row is a single sample.
        let count = if x.dims().len() > 1 { x.dims()[0] } else { 1 };
        for sample in 0..count {
            let moments = &mut moments[usize::from(seen % 4 == 3)];
            seen += 1;
            for part in 0..parts {
                let rows = &mut moments.rows[part];
                match node.layer() {
                    Layer::Conv2d(conv) => patches(&x, sample, conv.geometry(), part, rows),
                    _ => rows.extend_from_slice(&x.as_slice()[x.len() / count * sample..x.len() / count * (sample + 1)]),
                }
                moments.add(part, gptq.threads, false)?;
            }
        }
    }
    let [samples, held_out] = moments.map(|moments| moments.finish(gptq.threads));
    let (samples, held_out) = (samples?, held_out?);
    let fitted = gptq.quantize(weight, format, &samples, &held_out)?;
    let fit = LayerFit { name: node.name().to_owned(), method: fitted.method, errors: fitted.errors };
    Ok((config.layer(node, fitted.weights)?, Some(fit)))
}

/// Hessians of the parts of a layer, and rows that are on their way there.
struct Moments {
    hessians: Vec<Hessian>,
    rows: Vec<Vec<f32>>,
}

impl Moments {
    /// Numbers that are gathered before they are added: a square of the width is written each time.
    const GATHERED: usize = 1 << 20;

    fn new(width: usize, parts: usize) -> Result<Self> {
        let hessians = (0..parts).map(|_| Hessian::new(width)).collect::<Result<_>>()?;
        Ok(Moments { hessians, rows: vec![Vec::new(); parts] })
    }

    fn add(&mut self, part: usize, threads: usize, all: bool) -> Result<()> {
        let rows = &mut self.rows[part];
        if !rows.is_empty() && (all || rows.len() * self.hessians.len() >= Self::GATHERED) {
            self.hessians[part].add(rows, threads)?;
            rows.clear();
        }
        Ok(())
    }

    fn finish(mut self, threads: usize) -> Result<Vec<Hessian>> {
        (0..self.hessians.len()).try_for_each(|part| self.add(part, threads, true))?;
        Ok(self.hessians)
    }
}

/// What the node reads when the model runs on this batch; nothing after it runs.
fn input_of(model: &Model, node: &Node, batch: &[(&str, &Value)]) -> Result<Option<Tensor>> {
    let Some(edge) = node.reads().next() else { return Ok(None) };
    let wanted = model.edge_name(edge);
    let mut found = None;
    let run = Executor::new(model).run_with(batch, |tap| {
        if tap.edge != wanted {
            return Ok(());
        }
        found = tap.value.get::<f32>().cloned();
        Err(Error::Cancelled { stage: "fit weights", done: 1, total: 1 })
    });
    match (found, run) {
        (Some(x), _) => Ok(Some(x)),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Ok(None),
    }
}
