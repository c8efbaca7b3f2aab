//! What samples show of a model's values, channel by channel.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::nn::{Edge, Executor, Layer, Model, Node};
use crate::num::NonFinite;
use crate::tensor::{Tensor, Value};

/// Of each channel of a value, over all samples and positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Statistics {
    /// Largest magnitude.
    pub largest: Vec<f64>,
    /// Least value; infinite where nothing was seen.
    pub least: Vec<f64>,
    /// Mean.
    pub mean: Vec<f64>,
    /// Mean square.
    pub square: Vec<f64>,
    /// Values of each channel that were seen.
    pub count: usize,
}

impl Statistics {
    pub fn new(channels: usize) -> Self {
        let zeros = vec![0.0; channels];
        Statistics { largest: zeros.clone(), least: vec![f64::INFINITY; channels], mean: zeros.clone(), square: zeros, count: 0 }
    }

    /// Takes in a value `[.., channels, inner]`.
    pub fn add(&mut self, x: &[f32], inner: usize) {
        let channels = self.mean.len();
        let count = x.len() / channels.max(1);
        if count == 0 {
            return;
        }
        let (mut sum, mut square) = (vec![0.0; channels], vec![0.0; channels]);
        for (i, run) in x.chunks_exact(inner.max(1)).enumerate() {
            let c = i % channels;
            for &x in run {
                let x = f64::from(x);
                sum[c] += x;
                square[c] += x * x;
                self.largest[c] = self.largest[c].max(x.abs());
                self.least[c] = self.least[c].min(x);
            }
        }
        let share = count as f64 / (self.count + count) as f64;
        let blend = |mean: &mut Vec<f64>, sum: Vec<f64>| {
            mean.iter_mut().zip(sum).for_each(|(mean, sum)| *mean += (sum / count as f64 - *mean) * share);
        };
        blend(&mut self.mean, sum);
        blend(&mut self.square, square);
        self.count += count;
    }
}

/// The channels of a layer's inputs, and whether they are the second axis, else the last.
fn read_by(layer: &Layer) -> Option<(usize, bool)> {
    match layer {
        Layer::Conv2d(conv) => Some((conv.geometry().in_channels, true)),
        Layer::Linear(linear) => Some((linear.in_features(), false)),
        Layer::BatchNorm2d(norm) => Some((norm.channels(), true)),
        _ => None,
    }
}

/// By node: what the float convolutions, linear layers and batch norms that are `wanted` read.
///
/// # Errors
/// Those of [`each_value`].
pub(super) fn of_inputs(model: &Model, wanted: impl Fn(usize) -> bool, batches: &[&[(&str, &Value)]]) -> Result<Vec<Option<Statistics>>> {
    let nodes = model.nodes();
    let mut found: Vec<Option<Statistics>> = vec![None; nodes.len()];
    let mut readers: HashMap<Edge, Vec<usize>> = HashMap::new();
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| wanted(*index)) {
        if let (Some(edge), Some((channels, _))) = (node.reads().next(), read_by(node.layer())) {
            found[index] = Some(Statistics::new(channels));
            readers.entry(edge).or_default().push(index);
        }
    }
    let edges: Vec<Edge> = readers.keys().copied().collect();
    each_value(model, &edges, batches, |edge, x| {
        for &index in &readers[&edge] {
            if let (Some(statistics), Some((_, second))) = (&mut found[index], read_by(nodes[index].layer())) {
                statistics.add(x.as_slice(), inner(x, second));
            }
        }
    })?;
    Ok(found)
}

/// Shows what the nodes that are `wanted` write, with the node's position.
///
/// # Errors
/// Those of [`each_value`].
pub(super) fn each_output(
    model: &Model,
    wanted: impl Fn(&Node) -> bool,
    batches: &[&[(&str, &Value)]],
    mut see: impl FnMut(usize, &Tensor),
) -> Result<()> {
    let writers: HashMap<Edge, usize> =
        model.nodes().iter().enumerate().filter(|(_, node)| wanted(node)).map(|(index, node)| (node.outputs()[0], index)).collect();
    let edges: Vec<Edge> = writers.keys().copied().collect();
    each_value(model, &edges, batches, |edge, x| see(writers[&edge], x))
}

/// Shows the values of these edges that are f32, batch by batch.
///
/// # Errors
/// [`Error::NonFinite`] for NaN and infinities, inside an [`Error::Layer`] that names the layer which wrote them; those of [`Model::run`].
pub(super) fn each_value(model: &Model, edges: &[Edge], batches: &[&[(&str, &Value)]], mut see: impl FnMut(Edge, &Tensor)) -> Result<()> {
    let by_name: HashMap<&str, Edge> = edges.iter().map(|&edge| (model.edge_name(edge), edge)).collect();
    let mut executor = Executor::new(model);
    for batch in batches {
        executor.run_with(batch, |tap| {
            let (Some(&edge), Some(x)) = (by_name.get(tap.edge), tap.value.get::<f32>()) else { return Ok(()) };
            NonFinite::Error.check(&format!("value `{}`", tap.edge), x.as_slice()).map_err(|error| match tap.node {
                Some(node) => error.in_layer(node.name()),
                None => error,
            })?;
            see(edge, x);
            Ok(())
        })?;
    }
    Ok(())
}

/// Values of a channel that lie together.
pub(super) fn inner(x: &Tensor, second: bool) -> usize {
    if second { x.dims().iter().skip(2).product() } else { 1 }
}

/// What the node reads first when the model runs on this batch; nothing after it runs.
pub(super) fn input_of(model: &Model, node: &Node, batch: &[(&str, &Value)]) -> Result<Option<Value>> {
    values_of(model, [node.reads().next()], batch).map(|[value]| value)
}

/// The values of these edges when the model runs on this batch, of which the last is made last; nothing after it runs. `None` for those
/// that are, and for values that follow from shapes and are known before anything runs.
pub(super) fn values_of<const N: usize>(model: &Model, edges: [Option<Edge>; N], batch: &[(&str, &Value)]) -> Result<[Option<Value>; N]> {
    let constant = |edge: Edge| model.constants().iter().find(|(other, _)| *other == edge).map(|(_, value)| value.clone());
    let mut found = edges.map(|edge| edge.and_then(constant));
    let Some(last) = edges.last().copied().flatten() else { return Ok(found) };
    if found[N - 1].is_some() {
        return Ok(found);
    }
    let run = Executor::new(model).run_with(batch, |tap| {
        for (edge, value) in edges.iter().zip(&mut found) {
            if edge.is_some_and(|edge| model.edge_name(edge) == tap.edge) {
                *value = Some(tap.value.clone());
            }
        }
        match model.edge_name(last) == tap.edge {
            true => Err(Error::Cancelled { stage: "read values", done: N, total: N }),
            false => Ok(()),
        }
    });
    match run {
        Err(error) if found[N - 1].is_none() => Err(error),
        _ => Ok(found),
    }
}
