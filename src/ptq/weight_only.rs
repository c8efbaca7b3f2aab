//! Weight-only quantization: weights in any format, everything else as it was.

use super::layers::{Request, list, nothing};
use crate::error::{Error, Result};
use crate::nn::quantized::finite_bias;
use crate::nn::recurrent::{Recurrent, float_recurrent};
use crate::nn::weight_only::{Activations, Conv2d, Embedding, Linear};
use crate::nn::{Conversion, Layer, LayerKind, Model, Node, Pattern, Projection, SkipReason};
use crate::num::NonFinite;
use crate::progress::Progress;
use crate::quant::{Fit, QuantizedWeights, Rounding, WeightFormat, WeightQuantizer};
use crate::tensor::Tensor;

/// Which layers' weights get which [`WeightFormat`]: that of the last pattern that matches a name, else that of the kind, else the
/// default.
///
/// ```
/// use lowprec::LayerKind;
/// use lowprec::nn::weight_only::Activations;
/// use lowprec::ptq::WeightConfig;
/// let config = WeightConfig::new("int4:g32".parse()?)
///     .with_activations(Activations::Int8)
///     .with_kind(LayerKind::Embedding, Some("int8".parse()?))
///     .with_kind(LayerKind::Conv2d, None)
///     .with_pattern("head*", Some("nf4:g64".parse()?))?;
/// # let _ = config;
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WeightConfig {
    default: WeightFormat,
    kinds: Vec<(LayerKind, Option<WeightFormat>)>,
    patterns: Vec<(Pattern, Option<WeightFormat>)>,
    activations: Activations,
    rounding: Rounding,
    non_finite: NonFinite,
}

impl WeightConfig {
    /// The kinds whose weights can be quantized alone.
    pub const KINDS: &'static [LayerKind] = &[LayerKind::Conv2d, LayerKind::Linear, LayerKind::Embedding, LayerKind::Lstm, LayerKind::Gru];

    /// Every layer of [`WeightConfig::KINDS`] in this format.
    pub fn new(format: WeightFormat) -> Self {
        WeightConfig {
            default: format,
            kinds: Vec::new(),
            patterns: Vec::new(),
            activations: Activations::Float,
            rounding: Rounding::Nearest,
            non_finite: NonFinite::Error,
        }
    }

    /// Layers of this kind in this format, or left in float.
    #[must_use]
    pub fn with_kind(mut self, kind: LayerKind, format: Option<WeightFormat>) -> Self {
        self.kinds.retain(|(other, _)| *other != kind);
        self.kinds.push((kind, format));
        self
    }

    /// Layers whose name matches this glob ([`Pattern`]) in this format, or left in float, whatever their kind.
    ///
    /// # Errors
    /// Those of [`Pattern::new`].
    pub fn with_pattern(mut self, pattern: &str, format: Option<WeightFormat>) -> Result<Self> {
        self.patterns.push((Pattern::new(pattern)?, format));
        Ok(self)
    }

    /// What products are made of: floats unless said otherwise.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        WeightConfig { activations, ..self }
    }

    /// How codes are rounded.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// How codes are rounded: to the nearest unless said otherwise. Of a stochastic rule each layer draws from a seed of its own.
    #[must_use]
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        WeightConfig { rounding, ..self }
    }

    /// What happens to NaN and infinities in the weights.
    #[must_use]
    pub fn with_non_finite(self, non_finite: NonFinite) -> Self {
        WeightConfig { non_finite, ..self }
    }

    /// The format of a layer's weights; `None` when it stays in float.
    pub fn format(&self, node: &Node) -> Option<&WeightFormat> {
        let kind = node.layer().kind();
        let named = self.patterns.iter().rev().find(|(pattern, _)| pattern.matches(node.name())).map(|(_, format)| format);
        let format = named.or_else(|| self.kinds.iter().find(|(other, _)| *other == kind).map(|(_, format)| format));
        format.map_or(Some(&self.default), Option::as_ref)
    }

    /// The same with the grids of codes with zero points and offsets chosen by half-quadratic splitting, where the format of a layer allows that
    /// and has another rule.
    pub(super) fn half_quadratic(&self, model: &Model) -> Option<Self> {
        let mut config = self.clone();
        let formats = config.kinds.iter_mut().map(|(_, format)| format).chain(config.patterns.iter_mut().map(|(_, format)| format));
        for format in formats.filter_map(Option::as_mut).chain([&mut config.default]) {
            if let Ok(other) = format.clone().with_fit(Fit::HalfQuadratic) {
                *format = other;
            }
        }
        let changes = |node: &Node| Self::KINDS.contains(&node.layer().kind()) && config.format(node) != self.format(node);
        model.nodes().iter().any(changes).then_some(config)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if let Some((kind, _)) = self.kinds.iter().find(|(kind, _)| !Self::KINDS.contains(kind)) {
            return Err(Error::Unsupported {
                what: format!("quantized weights of {kind}"),
                way_out: format!("these kinds can have them: {}", list(Self::KINDS)),
            });
        }
        let names: Vec<&str> = model.nodes().iter().filter(|node| Self::KINDS.contains(&node.layer().kind())).map(Node::name).collect();
        match self.patterns.iter().find(|(pattern, _)| !names.iter().any(|name| pattern.matches(name))) {
            _ if names.is_empty() => Err(nothing(model, Self::KINDS, &Conversion::default())),
            Some((pattern, _)) => Err(Error::Pattern {
                pattern: pattern.as_str().to_owned(),
                what: "layer whose weights can be quantized",
                present: names.into_iter().map(str::to_owned).collect(),
            }),
            None => Ok(()),
        }
    }

    fn passes_over(&self, node: &Node) -> Option<SkipReason> {
        match node.layer() {
            layer if layer.is_quantized() => Some(SkipReason::AlreadyQuantized),
            _ if self.format(node).is_none() => Some(SkipReason::Configured),
            _ => None,
        }
    }

    /// The layer with its weights rounded to their format.
    pub(super) fn twin(&self, node: &Node) -> Result<Layer> {
        let Some(format) = self.format(node) else { return Ok(node.layer().clone()) };
        let quantized = |weight: &Tensor, name: &str| {
            let rounding = match self.rounding {
                Rounding::Stochastic { seed } => Rounding::Stochastic { seed: seed_of(seed, name) },
                other => other,
            };
            WeightQuantizer::new(format.clone()).with_rounding(rounding).with_non_finite(self.non_finite).quantize(weight)
        };
        if let Some(layer) = float_recurrent(node.layer()) {
            let one = |(i, product): (usize, &Projection)| match product {
                Projection::Float(linear) => quantized(linear.weight(), &format!("{}.{i}", node.name())),
                _ => Err(self.no_weights(node)),
            };
            let weights: Vec<QuantizedWeights> = layer.products().into_iter().enumerate().map(one).collect::<Result<_>>()?;
            return self.recurrent(node, layer, weights);
        }
        match weight_of(node.layer()) {
            Some(weight) => self.layer(node, quantized(weight, node.name())?),
            None => Ok(node.layer().clone()),
        }
    }

    /// The recurrent layer with these weights of its products.
    pub(super) fn recurrent(&self, node: &Node, layer: &dyn Recurrent, weights: Vec<QuantizedWeights>) -> Result<Layer> {
        let products = layer.products().into_iter().zip(weights).map(|(product, weights)| {
            let Projection::Float(linear) = product else { return Err(self.no_weights(node)) };
            let bias = linear.bias().map(|bias| finite_bias(bias.as_slice(), self.non_finite)).transpose()?;
            Linear::new(weights, bias.as_deref(), self.activations).map(Projection::WeightOnly)
        });
        Ok(layer.with_products(products.collect::<Result<_>>()?))
    }

    fn no_weights(&self, node: &Node) -> Error {
        Error::Unsupported {
            what: format!("quantized weights of {}", node.layer().kind()),
            way_out: format!("these kinds can have them, where they are in float: {}", list(Self::KINDS)),
        }
    }

    /// The layer with these weights.
    pub(super) fn layer(&self, node: &Node, weights: QuantizedWeights) -> Result<Layer> {
        let bias = |bias: Option<&Tensor>| bias.map(|bias| finite_bias(bias.as_slice(), self.non_finite)).transpose();
        match node.layer() {
            Layer::Linear(linear) => Linear::new(weights, bias(linear.bias())?.as_deref(), self.activations).map(Layer::from),
            Layer::Conv2d(conv) => {
                Conv2d::new(conv.geometry().clone(), weights, bias(conv.bias())?.as_deref(), self.activations).map(Layer::from)
            }
            Layer::Embedding(_) => Embedding::new(weights).map(Layer::from),
            _ => Err(self.no_weights(node)),
        }
    }
}

/// The float weights of a layer of [`WeightConfig::KINDS`] that has but one product or table.
fn weight_of(layer: &Layer) -> Option<&Tensor> {
    match layer {
        Layer::Linear(linear) => Some(linear.weight()),
        Layer::Conv2d(conv) => Some(conv.weight()),
        Layer::Embedding(table) => Some(table.weight()),
        _ => None,
    }
}

/// A seed for each layer (FNV-1a of its name over the given one), so that no two draw the same numbers and none depends on the others.
fn seed_of(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Quantizes the weights of `model`'s layers and nothing else; `model` is untouched.
///
/// Batch norms are folded into the convolutions first. Weights are truly held in the bits of their format; how each format is multiplied is
/// told in [`weight_only`](crate::nn::weight_only). Activations and biases stay in f32, unless [`WeightConfig::with_activations`] says
/// that rows are quantized in the products.
///
/// What was quantized, and what was passed over and why, is in [`Model::conversion`].
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, x: &lowprec::Tensor) -> lowprec::Result<()> {
/// use lowprec::ptq::WeightConfig;
/// let small = lowprec::quantize_weights(model, &WeightConfig::new("int4:g32".parse()?))?;
/// let y = small.forward(x)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::NothingToQuantize`] when the model has no such layer or the configuration leaves them all as they are;
/// [`Error::Unsupported`] for a kind that can't have quantized weights, [`Error::Pattern`] for a pattern that matches no layer; those of
/// [`WeightQuantizer::quantize`], inside an [`Error::Layer`] that names the layer.
pub fn quantize_weights(model: &Model, config: &WeightConfig) -> Result<Model> {
    quantize_weights_with(model, config, Progress::silent())
}

/// [`quantize_weights`], each layer reported before it is quantized; it can be cancelled there.
///
/// # Errors
/// Those of [`quantize_weights`], and [`Error::Cancelled`].
pub fn quantize_weights_with(model: &Model, config: &WeightConfig, mut progress: Progress<'_>) -> Result<Model> {
    weights_request(model, config, &|node| config.twin(node), &mut progress)
}

/// The model with these twins of the layers whose weights the configuration quantizes.
pub(super) fn weights_request(
    model: &Model,
    config: &WeightConfig,
    twin: &dyn Fn(&Node) -> Result<Layer>,
    progress: &mut Progress<'_>,
) -> Result<Model> {
    config.check(model)?;
    let passes_over = |node: &Node| config.passes_over(node);
    let present = |kind: &LayerKind| model.kinds().iter().any(|(here, _)| here == kind);
    let kinds: Vec<LayerKind> = WeightConfig::KINDS.iter().copied().filter(present).collect();
    Request { kinds: &kinds, passes_over: &passes_over, twin }.apply(model, progress)
}
