//! Weights of LSTM and GRU, each product's fitted to what it multiplies.

use super::int8::unfit;
use super::moments::Moments;
use super::{Gptq, Hessian, LayerFit, Method};
use crate::error::Result;
use crate::kernels::Isa;
use crate::nn::quantized::{self, DynamicScheme};
use crate::nn::recurrent::{First, Passed, Recurrent, recurrent};
use crate::nn::{Layer, Linear, Model, Node, Projection};
use crate::ptq::WeightConfig;
use crate::ptq::statistics::values_of;
use crate::quant::WeightFormat;
use crate::tensor::{Tensor, Value};

/// The int8 twin of `float`, in place of the node's own, with weights fitted to what its products multiply when `model` runs, of whose
/// sequences one in four is held out. Errors are sums over the products, and the method is the last that any of them took.
pub(super) fn fit(
    float: &dyn Recurrent,
    model: &Model,
    node: &Node,
    batches: &[&[(&str, &Value)]],
    (scheme, isa): (&DynamicScheme, Isa),
    gptq: &Gptq,
) -> Result<(Layer, LayerFit)> {
    let rounded = recurrent(node.layer()).ok_or_else(|| unfit(node))?;
    let moments = moments(rounded, model, node, batches, gptq.threads)?;
    let mut products = Vec::new();
    let mut fit = LayerFit { name: node.name().to_owned(), method: Method::Nearest, errors: [0.0; 2] };
    for ((float, rounded), moments) in float.products().into_iter().zip(rounded.products()).zip(moments) {
        let (Projection::Float(float), Projection::Int8(rounded)) = (float, rounded) else { return Err(unfit(node)) };
        let [samples, held_out] = moments.map(|moments| moments.finish(gptq.threads));
        let fitted = gptq.quantize_codes(float.weight(), &rounded.weight()?, &samples?, &held_out?)?;
        let bias = float.bias().map(Tensor::as_slice);
        products.push(Projection::Int8(quantized::Linear::from_codes(&fitted.weights, bias, scheme, isa)?));
        fit.method = fit.method.max(fitted.method);
        fit.errors.iter_mut().zip(fitted.errors).for_each(|(sum, error)| *sum += error);
    }
    Ok((rounded.with_products(products), fit))
}

/// A product, and the second moments of what it multiplies: those to learn from, and those held out.
pub(in crate::ptq) type SeenProduct<'a> = (&'a Linear, [Vec<Hessian>; 2]);

/// The products of a float layer, and the second moments of what they multiply when their weights are rounded and `model` runs: of three in
/// four sequences, and of those held out.
pub(in crate::ptq) fn seen_products<'a>(
    float: &'a dyn Recurrent,
    model: &Model,
    node: &Node,
    batches: &[&[(&str, &Value)]],
    config: &WeightConfig,
    threads: usize,
) -> Result<Vec<SeenProduct<'a>>> {
    let rounded = node.with_layer(config.twin(node)?);
    let replaced = |other: &Node| if other.name() == node.name() { rounded.clone() } else { other.clone() };
    let model = model.with_nodes(model.nodes().iter().map(replaced).collect(), model.conversion().cloned());
    let moments = match recurrent(rounded.layer()) {
        Some(layer) => moments(layer, &model, &rounded, batches, threads)?,
        None => return Err(unfit(node)),
    };
    let of = |(product, moments): (&'a Projection, [Moments; 2])| {
        let Projection::Float(product) = product else { return Err(unfit(node)) };
        let [samples, held_out] = moments.map(|moments| moments.finish(threads));
        Ok((product, [samples?, held_out?]))
    };
    float.products().into_iter().zip(moments).map(of).collect()
}

/// The layer with its weights in `format`, fitted to what its products multiply.
pub(super) fn fit_weights(
    float: &dyn Recurrent,
    model: &Model,
    node: &Node,
    batches: &[&[(&str, &Value)]],
    format: &WeightFormat,
    config: &WeightConfig,
    gptq: &Gptq,
) -> Result<(Layer, Option<LayerFit>)> {
    let mut weights = Vec::new();
    let mut fit = LayerFit { name: node.name().to_owned(), method: Method::Nearest, errors: [0.0; 2] };
    for (product, [samples, held_out]) in seen_products(float, model, node, batches, config, gptq.threads)? {
        let fitted = gptq.quantize(product.weight(), format, &samples, &held_out)?;
        weights.push(fitted.weights);
        fit.method = fit.method.max(fitted.method);
        fit.errors.iter_mut().zip(fitted.errors).for_each(|(sum, error)| *sum += error);
    }
    Ok((config.recurrent(node, float, weights)?, Some(fit)))
}

/// By product of the layer: the second moments of what it multiplies, of three in four sequences and of those held out.
fn moments(layer: &dyn Recurrent, model: &Model, node: &Node, batches: &[&[(&str, &Value)]], threads: usize) -> Result<Vec<[Moments; 2]>> {
    let pair = |product: &&Projection| Ok([Moments::new(product.in_features(), 1)?, Moments::new(product.in_features(), 1)?]);
    let mut moments = layer.products().iter().map(pair).collect::<Result<Vec<_>>>()?;
    let mut seen = 0;
    for batch in batches {
        let read = |i: usize| node.inputs().get(i).copied().flatten();
        let edges = [read(0), read(1), read(2), node.outputs().first().copied()];
        let [x, lengths, first, y] = values_of(model, edges, batch)?;
        let (Some(Value::F32(x)), Some(Value::F32(y))) = (&x, &y) else { continue };
        // Of lengths that follow from shapes nothing is shown; they are whole then.
        let lengths = lengths.as_ref().and_then(Value::get::<i32>).map(Tensor::as_slice);
        let first = match (read(2), first.as_ref().and_then(Value::get::<f32>)) {
            (None, _) => First::Zeros,
            (_, Some(first)) => First::Given(first),
            (_, None) => First::Unknown,
        };
        let passed = Passed::new(layer, x, lengths, first, y)?;
        for sequence in 0..passed.sequences() {
            let half = usize::from(seen % 4 == 3);
            seen += 1;
            for (moments, rows) in moments.iter_mut().zip(layer.multiplied(&passed, sequence, threads)?) {
                moments[half].rows(0).extend(rows);
                moments[half].add(0, threads, false)?;
            }
        }
    }
    Ok(moments)
}
