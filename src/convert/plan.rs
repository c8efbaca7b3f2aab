//! What a configuration makes of a model: decided before any sample is seen, carried out after.

use std::collections::HashMap;
use std::fmt;

use super::calibration::{Calibration, CodeRange};
use super::lower::Lowering;
use super::qconfig::{LayerConfig, QConfig, StaticScheme, WeightScales};
use super::roles::{Form, Role, Roles, Wishes};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Isa};
use crate::nn::quantized::{DYNAMIC_KINDS, STATIC_KINDS, dynamic_obstacle, dynamic_twin, largest_bias, named};
use crate::nn::{Conversion, Edge, Layer, LayerKind, Model, Node, SkipReason, Skipped, Wiring, buffer_bytes, rewrite, shapes};
use crate::num::{NonFinite, U8Grid};
use crate::quant::least_squares;
use crate::tensor::{QParams, QuantizedTensor, Shape, Tensor};

/// Which nodes of a model will run in integers, which values calibration has to look at, and what stays, and why.
///
/// Made without a sample: a dry run. Its `Display` is a line a layer.
#[derive(Debug)]
pub struct StaticPlan {
    model: Model,
    roles: Roles,
    configs: Vec<LayerConfig>,
    /// By node: whether it becomes its dynamic twin.
    dynamic: Vec<bool>,
    /// Bytes of the buffers of a run, where shapes are known.
    memory: Option<usize>,
    /// Edges to observe, with the scheme for each.
    observed: Vec<(usize, StaticScheme)>,
    conversion: Conversion,
    non_finite: NonFinite,
}

/// A layer with weights in codes, and what its output stage does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Anchor<'a> {
    pub scheme: &'a StaticScheme,
    /// The edge where its codes come out, if it writes any.
    pub out: Option<usize>,
    /// The edge that its output stage writes, codes or not.
    pub end: usize,
    /// The edge that is added before rounding.
    pub residual: Option<usize>,
    pub activation: Activation,
}

impl StaticPlan {
    /// The plan for inputs of these shapes, in the model's order; without any shapes, sums are not fused into the layer before
    /// them.
    ///
    /// # Errors
    /// Those of [`QConfig::check`]; [`Error::NothingToQuantize`] when no layer would be quantized; of shapes that do not fit the
    /// model, naming the layer.
    pub fn new(model: &Model, config: &QConfig, shapes_in: &[Vec<usize>]) -> Result<Self> {
        config.check(model)?;
        let (prepared, folding) = rewrite::for_quantization(model)?;
        let mut conversion = model.conversion().cloned().unwrap_or_default();
        conversion.skipped.clear();
        conversion.folded.extend(folding.folded);
        conversion.skipped.extend(folding.stayed);
        let (known, memory) = match shapes_in {
            [] => (None, None),
            given => {
                if given.len() != prepared.inputs().len() {
                    return Err(Error::length("list of input shapes", prepared.inputs().len(), given.len()));
                }
                let given = given.iter().map(|dims| Shape::new(dims.clone())).collect::<Result<Vec<_>>>()?;
                (Some(shapes(&prepared, &given)?), Some(buffer_bytes(&prepared, &given)?))
            }
        };
        let nodes = prepared.nodes();
        let configs: Vec<LayerConfig> = nodes.iter().map(|node| config.of(node)).collect();
        let mut static_nodes = vec![false; nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            match obstacle(node, &configs[index]) {
                None => static_nodes[index] = matches!(configs[index], LayerConfig::Static(_)),
                Some(reason) => conversion.skipped.push(Skipped::new(node.name(), node.layer().kind(), reason)),
            }
        }
        let wiring = Wiring::new(&prepared);
        for (index, node) in nodes.iter().enumerate().filter(|(_, node)| STATIC_KINDS.contains(&node.layer().kind())) {
            if static_nodes[index] && node.reads().next().is_some_and(|edge| wiring.constants[edge.index].is_some()) {
                static_nodes[index] = false;
                let reason = SkipReason::Unsupported("its input is a constant".into());
                conversion.skipped.push(Skipped::new(node.name(), node.layer().kind(), reason));
            }
        }
        let wishes = Wishes { integer: &|index| static_nodes[index], rounded: None, shapes: known.as_deref() };
        let roles = Roles::new(&prepared, &wiring, &wishes);
        let skipped = |name: &str| conversion.skipped.iter().any(|skipped| skipped.name == name);
        let is_dynamic = |(index, node): (usize, &Node)| {
            matches!(configs[index], LayerConfig::Dynamic(_)) && DYNAMIC_KINDS.contains(&node.layer().kind()) && !skipped(node.name())
        };
        let dynamic: Vec<bool> = nodes.iter().enumerate().map(is_dynamic).collect();
        let takes_part = |index: usize| dynamic[index] || matches!(roles.roles[index], Role::Anchor(_));
        let quantized: Vec<String> =
            (0..nodes.len()).filter(|&index| takes_part(index)).map(|index| nodes[index].name().to_owned()).collect();
        if quantized.is_empty() {
            return Err(nothing(&prepared, &conversion));
        }
        conversion.quantized.extend(quantized);
        let observed = observed(&prepared, &roles, &configs);
        drop(wiring);
        Ok(StaticPlan { model: prepared, roles, configs, dynamic, memory, observed, conversion, non_finite: config.non_finite() })
    }

    /// The model that calibration runs: batch norms folded, and functions that an exporter spelled out put together.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Names of the values that calibration has to look at, each with the scheme that it gets.
    pub fn observed(&self) -> impl Iterator<Item = (&str, &StaticScheme)> {
        self.observed.iter().map(|(edge, scheme)| (self.name(*edge), scheme))
    }

    /// Bytes of the buffers in which the float model runs for the shapes of the plan, all values shown; `None` without shapes.
    /// Observers hold up to some 50 kB a value more (histograms; others a few bytes).
    pub fn memory(&self) -> Option<usize> {
        self.memory
    }

    /// Whether the same nodes would run in integers, with the same fused, as by another plan of the same model.
    pub(crate) fn agrees(&self, other: &StaticPlan) -> bool {
        self.roles == other.roles
    }

    /// What will be quantized, folded and passed over.
    pub fn conversion(&self) -> &Conversion {
        &self.conversion
    }

    fn name(&self, edge: usize) -> &str {
        self.model.edge_name_of(edge)
    }

    /// The integer model, to run on `isa`.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a value that was not calibrated (a calibration without [shapes](Calibration::shapes) makes another plan than
    /// the one that it was made for), and for weights of a layer that is not static; [`Error::NonFinite`] for weights that are not finite; [`Error::Isa`]; inside
    /// an [`Error::Layer`] that names the layer.
    pub fn convert(&self, calibration: &Calibration, isa: Isa) -> Result<Model> {
        let mut ranges: HashMap<usize, CodeRange> = HashMap::new();
        for (edge, _) in &self.observed {
            let name = self.name(*edge);
            let params = calibration.get(name).ok_or_else(|| Error::Unknown {
                what: "calibrated value",
                name: name.to_owned(),
                present: calibration.activations().map(|(name, _)| name).collect(),
            })?;
            ranges.insert(*edge, CodeRange::new(params)?);
        }
        for (edge, whole) in self.joined() {
            if let Some(&range) = ranges.get(&whole) {
                ranges.insert(edge, range);
            }
        }
        let is_anchor = |node: usize| matches!(self.roles.roles[node], Role::Anchor(_));
        let anchors = || self.model.nodes().iter().enumerate().filter(|(index, _)| is_anchor(*index)).map(|(_, node)| node.name());
        if let Some(name) = calibration.weighted_layers().find(|&name| anchors().all(|anchor| anchor != name)) {
            return Err(Error::Unknown { what: "static layer", name: name.to_owned(), present: anchors().collect() });
        }
        let mut replaced = HashMap::new();
        for (index, node) in self.model.nodes().iter().enumerate() {
            if let (true, LayerConfig::Dynamic(scheme)) = (self.dynamic[index], &self.configs[index]) {
                replaced.insert(index, dynamic_twin(node.layer(), scheme, isa).map_err(|e| e.in_layer(node.name()))?);
            }
        }
        let names = HashMap::new();
        let lowering = Lowering {
            model: &self.model,
            roles: &self.roles,
            ranges: &ranges,
            names: &names,
            rounds: false,
            replaced: &replaced,
            non_finite: self.non_finite,
            isa,
        };
        let configs: HashMap<&str, &LayerConfig> = self.model.nodes().iter().map(Node::name).zip(&self.configs).collect();
        let lowered = lowering.run(&mut |node, input| match (calibration.weights(node.name()), configs[node.name()]) {
            (Some(codes), _) => Ok(codes.clone()),
            (None, LayerConfig::Static(scheme)) => weight_codes(node.layer(), scheme, self.non_finite, input),
            _ => unreachable!("an anchor is static"),
        })?;
        Ok(lowered.with_conversion(self.conversion.clone()))
    }

    /// Edges that get the grid of what they are concatenated to, or of what is left of them within bounds, each with that edge, in the order
    /// in which to go: what is written for a whole alone is then only copied, and what a bound cuts off costs no codes.
    fn joined(&self) -> Vec<(usize, usize)> {
        let (wiring, mut joined) = (Wiring::new(&self.model), Vec::new());
        // Backwards: what is concatenated twice gets the grid of the last whole.
        for (index, node) in self.model.nodes().iter().enumerate().rev() {
            let parts: Vec<Edge> = match self.roles.roles[index] {
                Role::Follower(Form::Concat) => node.reads().collect(),
                Role::Follower(Form::Bound(at)) => node.inputs()[at].into_iter().collect(),
                _ => continue,
            };
            let own = |edge: &&Edge| self.roles.root[edge.index] == edge.index && wiring.is_private(**edge, index);
            joined.extend(parts.iter().filter(own).map(|edge| (edge.index, node.outputs()[0].index)));
        }
        joined
    }

    /// By edge that is rounded to codes where it stands: the observed edge whose grid it gets.
    pub(crate) fn grids(&self) -> HashMap<usize, usize> {
        let mut grids: HashMap<usize, usize> = self.observed.iter().map(|(edge, _)| (*edge, *edge)).collect();
        for (edge, whole) in self.joined() {
            if let Some(&grid) = grids.get(&whole) {
                grids.insert(edge, grid);
            }
        }
        grids
    }

    /// The edges to observe, with the scheme for each.
    pub(crate) fn observed_edges(&self) -> &[(usize, StaticScheme)] {
        &self.observed
    }

    /// By node: whether it runs in integers, by itself or inside another.
    pub(crate) fn is_integer(&self, node: usize) -> bool {
        self.roles.roles[node] != Role::Float
    }

    /// What a node with weights in codes does; `None` for another node.
    pub(crate) fn anchor(&self, node: usize) -> Option<Anchor<'_>> {
        let (Role::Anchor(group), LayerConfig::Static(scheme)) = (&self.roles.roles[node], &self.configs[node]) else { return None };
        let out = self.model.nodes()[group.last(node)].outputs()[0].index;
        let residual = group.residual.map(|(_, edge)| edge.index);
        Some(Anchor { scheme, out: self.roles.wanted[out].then_some(out), end: out, residual, activation: group.activation })
    }

    /// The names of the layers with weights in codes, in the order in which they run.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let nodes = self.model.nodes().iter().zip(&self.roles.roles);
        nodes.filter(|(_, role)| matches!(role, Role::Anchor(_))).map(|(node, _)| node.name().to_owned()).collect()
    }

    /// The codes that the configuration's rule gives a layer's weights when its input has this grid, and the least scale of each channel
    /// with which its bias fits.
    ///
    /// # Errors
    /// As [`StaticPlan::convert`]; [`Error::Unknown`] for a layer that is not static.
    pub(crate) fn weight_codes(&self, layer: &str, input: U8Grid) -> Result<(QuantizedTensor<i8>, Vec<f64>)> {
        let index = self.model.nodes().iter().position(|node| node.name() == layer);
        match index.map(|index| (&self.configs[index], self.model.nodes()[index].layer())) {
            Some((LayerConfig::Static(scheme), layer)) => {
                Ok((weight_codes(layer, scheme, self.non_finite, input)?, least_scales(layer, input)?))
            }
            _ => Err(Error::Unknown {
                what: "static layer",
                name: layer.to_owned(),
                present: self.anchors().iter().map(String::as_str).collect(),
            }),
        }
    }

    /// By channel with a bias of a static layer, the least scale of weights with which it fits when its input has this grid.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a node without weights in codes.
    pub(crate) fn least_scales(&self, node: usize, input: U8Grid) -> Result<Vec<f64>> {
        least_scales(self.model.nodes()[node].layer(), input)
    }

    /// The edge whose grid the codes of an edge have.
    pub(crate) fn root(&self, edge: usize) -> usize {
        self.roles.root[edge]
    }
}

/// Why a node can't become what it is configured to be; `None` when it can, or when it is one that only follows others.
fn obstacle(node: &Node, config: &LayerConfig) -> Option<SkipReason> {
    let layer = node.layer();
    let (kind, quantizable) = (layer.kind(), DYNAMIC_KINDS.contains(&layer.kind()));
    match config {
        _ if quantizable && layer.is_quantized() => Some(SkipReason::AlreadyQuantized),
        LayerConfig::Float => quantizable.then_some(SkipReason::Configured),
        LayerConfig::Static(_) if STATIC_KINDS.contains(&kind) => dynamic_obstacle(layer, Isa::Scalar).map(SkipReason::Unsupported),
        LayerConfig::Static(_) if quantizable => {
            Some(SkipReason::Unsupported(format!("{kind} has no static twin: configure it to be dynamic")))
        }
        LayerConfig::Dynamic(_) if quantizable => dynamic_obstacle(layer, Isa::Scalar).map(SkipReason::Unsupported),
        _ => None,
    }
}

fn nothing(model: &Model, conversion: &Conversion) -> Error {
    let mut present = model.kinds().iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
    for skipped in &conversion.skipped {
        present.push_str(&format!("; `{}` was passed over: {}", skipped.name, skipped.reason));
    }
    let kinds: Vec<String> = DYNAMIC_KINDS.iter().map(LayerKind::to_string).collect();
    Error::NothingToQuantize { requested: kinds.join(", "), present }
}

/// The edges whose codes somebody reads or an integer node writes, each with the scheme of the node that writes it (the last one of
/// those fused), or else of the first static one that reads it.
fn observed(model: &Model, roles: &Roles, configs: &[LayerConfig]) -> Vec<(usize, StaticScheme)> {
    let nodes = model.nodes();
    let mut scheme_of: HashMap<usize, &StaticScheme> = HashMap::new();
    for (node, config) in nodes.iter().zip(configs) {
        if let LayerConfig::Static(scheme) = config {
            scheme_of.extend(node.outputs().iter().map(|edge| (edge.index, scheme)));
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        let (Role::Anchor(_) | Role::Follower(_), LayerConfig::Static(scheme)) = (&roles.roles[index], &configs[index]) else { continue };
        for edge in node.reads() {
            scheme_of.entry(roles.root[edge.index]).or_insert(scheme);
        }
    }
    let mut found = vec![false; model.edge_count()];
    (0..found.len()).filter(|&edge| roles.wanted[edge]).for_each(|edge| found[roles.root[edge]] = true);
    let edges = (0..found.len()).filter(|&edge| found[edge]);
    edges.map(|edge| (edge, scheme_of.get(&edge).copied().cloned().unwrap_or_default())).collect()
}

/// Weights and bias.
fn parameters(layer: &Layer) -> Result<(&Tensor, Option<&Tensor>)> {
    match layer {
        Layer::Conv2d(conv) => Ok((conv.weight(), conv.bias())),
        Layer::Linear(linear) => Ok((linear.weight(), linear.bias())),
        other => Err(Error::Unsupported { what: format!("static quantization of {}", other.kind()), way_out: "leave it in float".into() }),
    }
}

/// By channel with a bias, the scale of weights with which it fits i32 in units of that scale and the input's.
fn least_scales(layer: &Layer, input: U8Grid) -> Result<Vec<f64>> {
    let (weight, bias) = parameters(layer)?;
    let limit = largest_bias(weight.len() / weight.dims()[0].max(1), matches!(layer, Layer::Linear(_)));
    let least = |&bias: &f32| f64::from(bias.abs()) / (f64::from(input.scale()) * limit.max(1.0));
    Ok(bias.map(Tensor::as_slice).unwrap_or_default().iter().map(least).map(|least| if least.is_finite() { least } else { 0.0 }).collect())
}

/// Codes of a layer's weights. A channel whose bias would not fit gets a larger scale.
fn weight_codes(layer: &Layer, scheme: &StaticScheme, non_finite: NonFinite, input: U8Grid) -> Result<QuantizedTensor<i8>> {
    let (weight, _) = parameters(layer)?;
    let params = match scheme.weight_scales {
        WeightScales::Observed(kind) => {
            let mut observer = kind.build(scheme.weights.granularity(), non_finite)?;
            observer.observe(weight).and_then(|()| observer.qparams(&scheme.weights))
        }
        WeightScales::LeastSquares => least_squares(weight, &scheme.weights, non_finite),
    };
    let params = params.map_err(|error| named("weight", error))?;
    let mut scales = params.scales().to_vec();
    for (channel, least) in least_scales(layer, input)?.into_iter().enumerate() {
        let scale = if scales.len() == 1 { &mut scales[0] } else { &mut scales[channel] };
        if f64::from(*scale) < least {
            *scale = (least as f32).next_up();
        }
    }
    let zero_points = params.zero_points().to_vec();
    let params = QParams::of_any_axis(scales, zero_points, params.granularity(), params.qmin(), params.qmax())?;
    QuantizedTensor::quantize_with(weight, &params, non_finite)
}

/// The model in integers, by what calibration found: [`StaticPlan::convert`] of the plan for the calibration's shapes, on the
/// fastest instruction set.
///
/// # Errors
/// Those of [`StaticPlan::new`] and [`StaticPlan::convert`].
pub fn convert(model: &Model, calibration: &Calibration, config: &QConfig) -> Result<Model> {
    StaticPlan::new(model, config, calibration.shapes())?.convert(calibration, Isa::best())
}

impl fmt::Display for StaticPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.model.nodes();
        let width = nodes.iter().map(|node| node.name().len()).max().unwrap_or(0);
        for (index, node) in nodes.iter().enumerate() {
            let role = match (&self.roles.roles[index], &self.configs[index]) {
                (Role::Anchor(group), _) => {
                    let fused: Vec<&str> = group.fused.iter().map(|&index| nodes[index].name()).collect();
                    if fused.is_empty() { "int8, static".into() } else { format!("int8, static, with {}", fused.join(", ")) }
                }
                (Role::Fused, _) => continue,
                (Role::Follower(Form::Function(_)), _) => "int8, by a table".into(),
                (Role::Follower(_), _) => "int8".into(),
                (Role::Mover, _) => "int8, moves codes".into(),
                (Role::Float, _) if self.dynamic[index] => "int8, dynamic".into(),
                (Role::Float, _) => "f32".to_owned(),
            };
            writeln!(f, "{:width$}  {:15} {role}", node.name(), node.layer().kind().to_string())?;
        }
        for skipped in &self.conversion.skipped {
            writeln!(f, "skipped {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
        }
        let memory = self.memory.map_or_else(String::new, |bytes| format!(", in {bytes} bytes of buffers"));
        writeln!(f, "{} values to calibrate{memory}", self.observed.len())
    }
}
