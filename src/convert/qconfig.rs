//! Who is quantized, and how: by default, by kind of layer, by name.

use std::fmt;

use crate::error::{Error, Result};
use crate::nn::quantized::{DYNAMIC_KINDS, DynamicScheme, STATIC_KINDS};
use crate::nn::{LayerKind, Model, Node, Pattern};
use crate::num::NonFinite;
use crate::quant::Scheme;
use crate::quant::observer::ObserverKind;
use crate::tensor::Granularity;

/// How a layer's weights and activations become codes in a static model.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StaticScheme {
    /// Weights: signed, symmetric, at most 8 bits, per tensor or per output channel (axis 0).
    pub weights: Scheme,
    /// Where the scales of the weights come from.
    pub weight_scales: WeightScales,
    /// What the layer writes, and what it reads where nobody else says how: at most 8 bits, per tensor.
    pub activations: Scheme,
    /// Finds scale and zero point of these values over all samples.
    pub activation_observer: ObserverKind,
}

impl Default for StaticScheme {
    /// Weights in -127..=127, symmetric, by their largest value in each output channel; activations in 0..=255, asymmetric, by
    /// the smallest and largest value seen.
    fn default() -> Self {
        StaticScheme {
            weights: Scheme::INT8_WEIGHT,
            weight_scales: WeightScales::Observed(ObserverKind::MinMax),
            activations: Scheme::UINT8_ACTIVATION,
            activation_observer: ObserverKind::MinMax,
        }
    }
}

impl StaticScheme {
    /// With weights of this scheme.
    #[must_use]
    pub fn with_weights(self, weights: Scheme) -> Self {
        StaticScheme { weights, ..self }
    }

    /// With scales of the weights found so.
    #[must_use]
    pub fn with_weight_scales(self, weight_scales: WeightScales) -> Self {
        StaticScheme { weight_scales, ..self }
    }

    /// With activations of this scheme.
    #[must_use]
    pub fn with_activations(self, activations: Scheme) -> Self {
        StaticScheme { activations, ..self }
    }

    /// With scales and zero points of activations found so.
    #[must_use]
    pub fn with_activation_observer(self, activation_observer: ObserverKind) -> Self {
        StaticScheme { activation_observer, ..self }
    }

    /// Whether the integer kernels can run it.
    ///
    /// # Errors
    /// Those of [`Scheme::validate`], and [`Error::Unsupported`] for a scheme that the integer kernels can't run, saying which they can.
    pub fn validate(&self) -> Result<()> {
        DynamicScheme { weights: self.weights, ..DynamicScheme::default() }.validate()?;
        self.activations.validate()?;
        self.activation_observer.validate()?;
        if let WeightScales::Observed(kind) = self.weight_scales {
            kind.validate()?;
        }
        if self.activations.bits() > 8 || self.activations.granularity() != Granularity::PerTensor {
            return Err(Error::Unsupported {
                what: format!("activations as {} in a static layer", self.activations),
                way_out: "use a scheme of at most 8 bits, per tensor".into(),
            });
        }
        Ok(())
    }
}

/// Where the scales of weights come from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum WeightScales {
    /// An observer that sees the weights.
    Observed(ObserverKind),
    /// The exact minimum of the squared error of each channel ([`least_squares`](crate::quant::least_squares())), half a second for a
    /// million weights of 8 bits.
    LeastSquares,
}

impl fmt::Display for WeightScales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightScales::Observed(kind) => kind.fmt(f),
            WeightScales::LeastSquares => f.write_str("least squares"),
        }
    }
}

/// What becomes of a layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum LayerConfig {
    /// Integers from end to end, with grids found by calibration: [`LayerKind::Conv2d`], [`LayerKind::Linear`], and what stands
    /// between them.
    Static(StaticScheme),
    /// Weights now, activations at run time, floats between: the kinds that [`quantize_dynamic`](crate::quantize_dynamic) takes.
    Dynamic(DynamicScheme),
    /// It stays as it is.
    Float,
}

/// Which layer gets which [`LayerConfig`]: that of the last pattern that matches its name, else that of its kind, else the
/// default.
///
/// Without further words, convolutions and linear layers (and what stands between them) are static, and the layers that only
/// have a dynamic twin (transposed convolutions, LSTM, GRU, embeddings) get that.
///
/// ```
/// use lowprec::convert::{LayerConfig, QConfig, StaticScheme};
/// use lowprec::quant::observer::ObserverKind;
/// use lowprec::LayerKind;
/// let config = QConfig::new(StaticScheme::default().with_activation_observer(ObserverKind::Histogram))
///     .with_kind(LayerKind::Linear, LayerConfig::Dynamic(Default::default()))
///     .with_pattern("head.*", LayerConfig::Float)?;
/// # let _ = config;
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QConfig {
    default: StaticScheme,
    kinds: Vec<(LayerKind, LayerConfig)>,
    patterns: Vec<(Pattern, LayerConfig)>,
    non_finite: NonFinite,
}

impl Default for QConfig {
    fn default() -> Self {
        QConfig::new(StaticScheme::default())
    }
}

impl QConfig {
    /// Every layer static by this scheme, where it has a static twin.
    pub fn new(default: StaticScheme) -> Self {
        QConfig { default, kinds: Vec::new(), patterns: Vec::new(), non_finite: NonFinite::Error }
    }

    /// 8 bits, ranges by the smallest and largest value: the default. Of the README's four networks it keeps the most on three; where
    /// a few outliers stretch a range, [`QConfig::least_squares`] does.
    pub fn min_max() -> Self {
        QConfig::default()
    }

    /// 8 bits, ranges of activations by the least squared error of a histogram.
    pub fn least_squares() -> Self {
        QConfig::new(StaticScheme::default().with_activation_observer(ObserverKind::Histogram))
    }

    /// With ranges of activations found so by default; what kinds and patterns say otherwise stays.
    #[must_use]
    pub fn with_default_observer(mut self, observer: ObserverKind) -> Self {
        self.default.activation_observer = observer;
        self
    }

    /// Layers of this kind get this.
    #[must_use]
    pub fn with_kind(mut self, kind: LayerKind, config: LayerConfig) -> Self {
        self.kinds.retain(|(other, _)| *other != kind);
        self.kinds.push((kind, config));
        self
    }

    /// Layers whose name matches this glob ([`Pattern`]) get this, whatever their kind.
    ///
    /// # Errors
    /// Those of [`Pattern::new`].
    pub fn with_pattern(mut self, pattern: &str, config: LayerConfig) -> Result<Self> {
        self.patterns.push((Pattern::new(pattern)?, config));
        Ok(self)
    }

    /// What happens to NaN and infinities in weights and samples.
    #[must_use]
    pub fn with_non_finite(self, non_finite: NonFinite) -> Self {
        QConfig { non_finite, ..self }
    }

    /// The policy for NaN and infinities.
    pub fn non_finite(&self) -> NonFinite {
        self.non_finite
    }

    /// What a node gets. One that has neither twin is called static too where it may run in integers between layers that are.
    pub fn of(&self, node: &Node) -> LayerConfig {
        let kind = node.layer().kind();
        let named = self.patterns.iter().rev().find(|(pattern, _)| pattern.matches(node.name())).map(|(_, config)| config);
        let config = named.or_else(|| self.kinds.iter().find(|(other, _)| *other == kind).map(|(_, config)| config));
        match config {
            Some(config) => config.clone(),
            None if !STATIC_KINDS.contains(&kind) && DYNAMIC_KINDS.contains(&kind) => LayerConfig::Dynamic(DynamicScheme::default()),
            None => LayerConfig::Static(self.default.clone()),
        }
    }

    /// How a layer that this makes static would have its input quantized at run time instead: with the same weights, the rest as this has it
    /// of the layer's kind, else of whatever it makes dynamic, else as is the default. `None` for one that is not static, or can't be dynamic.
    pub(crate) fn dynamic_instead(&self, node: &Node) -> Option<DynamicScheme> {
        let kind = node.layer().kind();
        let LayerConfig::Static(own) = self.of(node) else { return None };
        let of_kind = self.kinds.iter().filter(|(other, _)| *other == kind);
        let all = of_kind.chain(&self.kinds).map(|(_, config)| config).chain(self.patterns.iter().map(|(_, config)| config));
        let mut dynamic = all.filter_map(|config| if let LayerConfig::Dynamic(scheme) = config { Some(scheme) } else { None });
        let scheme = match dynamic.next() {
            Some(scheme) => scheme.clone(),
            None => DynamicScheme { non_finite: self.non_finite, ..DynamicScheme::default() },
        };
        DYNAMIC_KINDS.contains(&kind).then_some(DynamicScheme { weights: own.weights, ..scheme })
    }

    /// Whether it can be applied to this model.
    ///
    /// # Errors
    /// [`Error::Pattern`] for a pattern that matches no layer, [`Error::Unsupported`] for a scheme that the kernels can't run, a kind
    /// that is asked to be dynamic and can't, and one that has a dynamic twin alone and is asked to be static; those of
    /// [`Scheme::validate`] and of the observers' parameters.
    pub fn check(&self, model: &Model) -> Result<()> {
        let configs = self.kinds.iter().map(|(_, config)| config).chain(self.patterns.iter().map(|(_, config)| config));
        for config in configs {
            match config {
                LayerConfig::Static(scheme) => scheme.validate()?,
                LayerConfig::Dynamic(scheme) => scheme.validate()?,
                LayerConfig::Float => {}
            }
        }
        self.default.validate()?;
        let names = || model.nodes().iter().map(Node::name);
        for (pattern, config) in &self.patterns {
            let mut matching = model.nodes().iter().filter(|node| pattern.matches(node.name())).peekable();
            if matching.peek().is_none() {
                return Err(Error::Pattern { pattern: pattern.as_str().to_owned(), what: "layer", present: names().collect() });
            }
            if matches!(config, LayerConfig::Dynamic(_))
                && let Some(first) = matching.next()
                && !DYNAMIC_KINDS.contains(&first.layer().kind())
                && matching.all(|node| !DYNAMIC_KINDS.contains(&node.layer().kind()))
            {
                return Err(no_dynamic_twin(first.layer().kind()).in_layer(first.name()));
            }
        }
        let only_dynamic = |kind: &LayerKind| DYNAMIC_KINDS.contains(kind) && !STATIC_KINDS.contains(kind);
        let asked_static = self.kinds.iter().find(|(kind, config)| matches!(config, LayerConfig::Static(_)) && only_dynamic(kind));
        if let Some((kind, _)) = asked_static {
            return Err(Error::Unsupported {
                what: format!("static quantization of {kind}"),
                way_out: "let it be dynamic, or leave it in float".into(),
            });
        }
        match self.kinds.iter().find(|(kind, config)| matches!(config, LayerConfig::Dynamic(_)) && !DYNAMIC_KINDS.contains(kind)) {
            Some((kind, _)) => Err(no_dynamic_twin(*kind)),
            None => Ok(()),
        }
    }
}

fn no_dynamic_twin(kind: LayerKind) -> Error {
    Error::Unsupported {
        what: format!("dynamic quantization of {kind}"),
        way_out: format!("these kinds can be: {}", DYNAMIC_KINDS.map(|kind| kind.to_string()).join(", ")),
    }
}

impl fmt::Display for LayerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerConfig::Static(scheme) => {
                write!(f, "static, weights {} by {}, ", scheme.weights, scheme.weight_scales)?;
                write!(f, "activations {} by {}", scheme.activations, scheme.activation_observer)
            }
            LayerConfig::Dynamic(scheme) => write!(f, "dynamic, weights {}, activations {}", scheme.weights, scheme.activations),
            LayerConfig::Float => f.write_str("float"),
        }
    }
}

/// A line for the default, and one for each exception.
impl fmt::Display for QConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "by default: {}", LayerConfig::Static(self.default.clone()))?;
        self.kinds.iter().try_for_each(|(kind, config)| writeln!(f, "{kind}: {config}"))?;
        self.patterns.iter().try_for_each(|(pattern, config)| writeln!(f, "`{}`: {config}", pattern.as_str()))
    }
}
