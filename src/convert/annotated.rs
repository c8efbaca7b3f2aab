//! Models that say where their values are rounded: those that another tool quantized.

use std::collections::HashMap;

use super::calibration::CodeRange;
use super::lower::{FileName, Lowering};
use super::roles::{Roles, Wishes, clamp, moves};
use crate::error::{Error, Result};
use crate::kernels::{Isa, PackedConv2d};
use crate::nn::quantized::largest_bias;
use crate::nn::{Edge, Layer, Model, Wiring};
use crate::num::NonFinite;
use crate::tensor::{DType, QuantizedTensor, Tensor};

/// What a quantized file says of a float model: where values are rounded, and to what.
#[derive(Debug, Default)]
pub(crate) struct Annotations {
    /// By edge: the codes to which the value there is rounded, for whoever reads it.
    pub ranges: HashMap<usize, CodeRange>,
    /// By edge: the file's names of the codes, and of the floats made of them, where it has any.
    pub names: HashMap<usize, [Option<FileName>; 2]>,
    /// By name of a node: the codes of its weights.
    pub weights: HashMap<String, QuantizedTensor<i8>>,
}

/// The model that computes in integers what `model` with its annotations says: a layer whose input is rounded and whose weights
/// are codes, and what stands between such layers. Whatever else reads a rounded value reads the rounded one.
///
/// # Errors
/// Those of the integer layers, for scales that are too far from each other.
pub(crate) fn integers(model: &Model, annotations: &Annotations, isa: Isa) -> Result<Model> {
    let wiring = Wiring::new(model);
    let nodes = model.nodes();
    let ranges = spread(model, &wiring, annotations.ranges.clone());
    let rounded = |edge: Edge| ranges.contains_key(&edge.index);
    let integer = |index: usize| match nodes[index].layer() {
        layer @ (Layer::Conv2d(_) | Layer::Linear(_)) => {
            let input = nodes[index].reads().next().and_then(|edge| ranges.get(&edge.index));
            annotations.weights.get(nodes[index].name()).zip(input).is_some_and(|(weights, input)| fits(layer, weights, *input, isa))
        }
        _ => nodes[index].outputs().iter().all(|&edge| rounded(edge)),
    };
    let roles = Roles::new(model, &wiring, &Wishes { integer: &integer, rounded: Some(&rounded), shapes: None });
    let lowering = Lowering {
        model,
        roles: &roles,
        ranges: &ranges,
        names: &annotations.names,
        rounds: true,
        replaced: &HashMap::new(),
        non_finite: NonFinite::Error,
        isa,
    };
    lowering.run(&mut |node, _| Ok(annotations.weights[node.name()].clone()))
}

/// The same ranges on further edges, where that changes no value. Rounding never swaps the order of two values, so
///
/// ```text
/// round(max(x, lo)) = max(round(x), round(lo))
/// ```
///
/// and what is rounded after a clamp, a MaxPool or a movement may be rounded before it as well, if nobody else sees it there. What
/// was rounded before a movement still is after it.
fn spread(model: &Model, wiring: &Wiring<'_>, mut ranges: HashMap<usize, CodeRange>) -> HashMap<usize, CodeRange> {
    for (index, node) in model.nodes().iter().enumerate().rev() {
        let (&[out], Some(from)) = (node.outputs(), node.reads().next()) else { continue };
        let Some(&range) = ranges.get(&out.index) else { continue };
        let given = wiring.constants[from.index].is_some() || model.edge_type(from) != DType::F32;
        if !given && !ranges.contains_key(&from.index) && wiring.is_private(from, index) {
            // A layer takes the clamp after it into its output stage.
            let fuses =
                wiring.producers[from.index].is_some_and(|at| matches!(model.nodes()[at].layer(), Layer::Conv2d(_) | Layer::Linear(_)));
            if moves(node.layer()) || (clamp(node, wiring).is_some() && !fuses) {
                ranges.insert(from.index, range);
            }
        }
    }
    for node in model.nodes().iter().filter(|node| moves(node.layer())) {
        let Some(&range) = node.reads().next().and_then(|from| ranges.get(&from.index)) else { continue };
        node.outputs().iter().for_each(|out| _ = ranges.entry(out.index).or_insert(range));
    }
    ranges
}

/// Whether the layer's sums, with its bias in their unit, stay within i32.
fn fits(layer: &Layer, weights: &QuantizedTensor<i8>, input: CodeRange, isa: Isa) -> bool {
    let (k, bias) = match layer {
        Layer::Conv2d(conv) => match PackedConv2d::pack_for(isa, conv.geometry(), &[]) {
            Err(Error::Accumulator { .. }) => return false,
            _ => (conv.geometry().k(), conv.bias()),
        },
        Layer::Linear(linear) => (linear.in_features(), linear.bias()),
        _ => return false,
    };
    let (limit, scales) = (largest_bias(k, matches!(layer, Layer::Linear(_))), weights.params().scales());
    let unit = |i: usize| f64::from(input.grid.scale()) * f64::from(scales[if scales.len() == 1 { 0 } else { i }]);
    let bias = bias.map_or(&[][..], Tensor::as_slice);
    limit > 0.0 && bias.iter().enumerate().all(|(i, &bias)| (f64::from(bias) / unit(i)).round_ties_even().abs() <= limit)
}
