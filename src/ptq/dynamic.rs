//! Dynamic quantization: weights now, activations at run time.

use super::layers::{Request, list, nothing};
use crate::error::{Error, Result};
use crate::kernels::{Isa, RangeOf};
use crate::nn::quantized::{self, DynamicScheme};
use crate::nn::{Conversion, LayerKind, Model, Node, Pattern, SkipReason};
use crate::num::NonFinite;
use crate::progress::Progress;
use crate::quant::Scheme;

/// Quantizes every layer of the given kinds to int8; `model` is untouched.
///
/// Batch norms are folded first, into the convolutions that are quantized and no others. Weights become int8, symmetric, one
/// scale per output channel. Activations are measured and quantized when the model runs, asymmetric in 8 bits: per image for
/// [`LayerKind::Conv2d`] and [`LayerKind::ConvTranspose2d`], per row for the others, so a result never depends on the batch it came in
/// ([`DynamicQuantization::with_range`] has ONNX's range for the whole tensor). Products are integer with i32 sums; the bias stays in
/// f32; the result is dequantized where the sums are, so the layers around need no change. Of [`LayerKind::Embedding`] the table alone
/// is quantized, each row as if it were a row of activations.
///
/// What was quantized, and what was passed over and why, is in [`Model::conversion`].
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model, x: &lowprec::Tensor) -> lowprec::Result<()> {
/// use lowprec::LayerKind;
/// let int8 = lowprec::quantize_dynamic(model, &[LayerKind::Conv2d])?;
/// let y = int8.forward(x)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::NothingToQuantize`] when `kinds` is empty or no layer of them can be quantized, listing the kinds present;
/// [`Error::Unsupported`] for a kind that has no int8 twin; [`Error::NonFinite`] for NaN or infinities in the weights,
/// inside an [`Error::Layer`] that names the layer.
pub fn quantize_dynamic(model: &Model, kinds: &[LayerKind]) -> Result<Model> {
    DynamicQuantization::new(kinds).apply(model)
}

/// [`quantize_dynamic`] with every choice open.
///
/// ```no_run
/// # fn of(model: &lowprec::nn::Model) -> lowprec::Result<()> {
/// use lowprec::ptq::DynamicQuantization;
/// use lowprec::{LayerKind, Scheme};
/// let int8 = DynamicQuantization::new(&[LayerKind::Conv2d, LayerKind::Linear])
///     .with_weights(Scheme::INT8_WEIGHT_PER_TENSOR)
///     .exclude("conv1")?
///     .exclude("*.downsample.*")?
///     .apply(model)?;
/// println!("{}", int8.conversion().unwrap());
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing happens until `apply`"]
pub struct DynamicQuantization<'p> {
    kinds: Vec<LayerKind>,
    scheme: DynamicScheme,
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    isa: Isa,
    progress: Progress<'p>,
}

impl<'p> DynamicQuantization<'p> {
    /// The kinds of layers that have a dynamic int8 twin.
    pub const KINDS: &'static [LayerKind] = &quantized::DYNAMIC_KINDS;

    /// The choices of [`quantize_dynamic`].
    pub fn new(kinds: &[LayerKind]) -> Self {
        DynamicQuantization {
            kinds: kinds.to_vec(),
            scheme: DynamicScheme::default(),
            include: Vec::new(),
            exclude: Vec::new(),
            isa: Isa::best(),
            progress: Progress::silent(),
        }
    }

    /// The scheme of the weights: signed, symmetric, at most 8 bits, per tensor or per output channel (axis 0). The tables of embeddings
    /// have its bits and granularity, and are asymmetric.
    pub fn with_weights(mut self, scheme: Scheme) -> Self {
        self.scheme.weights = scheme;
        self
    }

    /// The scheme of the activations: unsigned, at most 8 bits, one scale for each range.
    pub fn with_activations(mut self, scheme: Scheme) -> Self {
        self.scheme.activations = scheme;
        self
    }

    /// Over what the range of activations is taken: of each image (convolution) or row (linear, recurrent) unless said otherwise.
    ///
    /// With [`RangeOf::Tensor`] each input has one range for all that a run is given, as ONNX's DynamicQuantizeLinear has: an exported
    /// model then gives the same numbers. It costs accuracy (the largest sample takes the codes of all others:
    /// [`compare_ranges`](crate::eval::compare_ranges) says how much), and the result of a sample depends on its batch.
    pub fn with_range(mut self, range: RangeOf) -> Self {
        self.scheme.range = range;
        self
    }

    /// What happens to NaN and infinities, in the weights now and in the activations at run time.
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.scheme.non_finite = policy;
        self
    }

    /// The instruction set to run on; the best of this processor unless said otherwise. The results are the same.
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa;
        self
    }

    /// Reports each layer before it is quantized, and can be cancelled there.
    pub fn with_progress(mut self, progress: Progress<'p>) -> Self {
        self.progress = progress;
        self
    }

    /// Takes only layers whose name matches this glob ([`Pattern`]) or another one given.
    ///
    /// # Errors
    /// Those of [`Pattern::new`].
    pub fn include(mut self, pattern: &str) -> Result<Self> {
        self.include.push(Pattern::new(pattern)?);
        Ok(self)
    }

    /// Leaves out layers whose name matches this glob ([`Pattern`]), included or not.
    ///
    /// # Errors
    /// Those of [`Pattern::new`].
    pub fn exclude(mut self, pattern: &str) -> Result<Self> {
        self.exclude.push(Pattern::new(pattern)?);
        Ok(self)
    }

    /// The quantized model.
    ///
    /// # Errors
    /// Those of [`quantize_dynamic`]; [`Error::Pattern`] for a pattern that matches no layer of the kinds asked for,
    /// [`Error::Unsupported`] for a scheme that the kernels can't run, [`Error::Isa`], [`Error::Cancelled`].
    pub fn apply(mut self, model: &Model) -> Result<Model> {
        let mut progress = std::mem::take(&mut self.progress);
        self.make(model, &mut progress)
    }

    /// [`DynamicQuantization::apply`] as often as wanted, reported to somebody else.
    ///
    /// # Errors
    /// As there.
    pub(super) fn make(&self, model: &Model, progress: &mut Progress<'_>) -> Result<Model> {
        self.check(model)?;
        let passes_over = |node: &Node| self.passes_over(node);
        let twin = |node: &Node| quantized::dynamic_twin(node.layer(), &self.scheme, self.isa);
        Request { kinds: &self.kinds, passes_over: &passes_over, twin: &twin }.apply(model, progress)
    }

    /// How weights and activations are quantized, and for what instruction set.
    pub(super) fn scheme(&self) -> (&DynamicScheme, Isa) {
        (&self.scheme, self.isa)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if self.kinds.is_empty() {
            return Err(nothing(model, &self.kinds, &Conversion::default()));
        }
        if let Some(kind) = self.kinds.iter().find(|kind| !Self::KINDS.contains(kind)) {
            return Err(Error::Unsupported {
                what: format!("dynamic quantization of {kind}"),
                way_out: format!("these kinds can be: {}", list(Self::KINDS)),
            });
        }
        self.scheme.validate()?;
        if !self.isa.is_available() {
            let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            return Err(Error::Isa { isa: self.isa.name(), available: available.join(", ") });
        }
        let names: Vec<&str> = model.nodes().iter().filter(|node| self.asks_for(node)).map(Node::name).collect();
        if names.is_empty() {
            return Err(nothing(model, &self.kinds, &Conversion::default()));
        }
        match self.include.iter().chain(&self.exclude).find(|pattern| !names.iter().any(|name| pattern.matches(name))) {
            Some(pattern) => Err(Error::Pattern {
                pattern: pattern.as_str().to_owned(),
                what: "layer of the kinds asked for",
                present: names.into_iter().collect(),
            }),
            None => Ok(()),
        }
    }

    fn asks_for(&self, node: &Node) -> bool {
        self.kinds.contains(&node.layer().kind())
    }

    /// Why a layer of a kind asked for stays as it is.
    fn passes_over(&self, node: &Node) -> Option<SkipReason> {
        let layer = node.layer();
        if layer.is_quantized() {
            return Some(SkipReason::AlreadyQuantized);
        }
        if !self.include.is_empty() && !self.include.iter().any(|pattern| pattern.matches(node.name())) {
            return Some(SkipReason::NotIncluded);
        }
        if let Some(pattern) = self.exclude.iter().find(|pattern| pattern.matches(node.name())) {
            return Some(SkipReason::Excluded(pattern.as_str().to_owned()));
        }
        quantized::dynamic_obstacle(layer, self.isa).map(SkipReason::Unsupported)
    }
}

/// The model with the ranges of all inputs that are quantized at run time taken over another part of them: what
/// [`DynamicQuantization::with_range`] would have made of the same weights, however those were chosen ([`gptq`](crate::ptq::gptq),
/// [`recipe`](crate::ptq::recipe)).
///
/// # Errors
/// [`Error::Unsupported`] when no layer quantizes its inputs at run time.
pub fn with_input_range(model: &Model, range: RangeOf) -> Result<Model> {
    let twin = |node: &Node| node.layer().with_input_range(range).map(|layer| node.with_layer(layer));
    if !model.nodes().iter().any(|node| node.layer().input_range().is_some()) {
        return Err(Error::Unsupported {
            what: "another range of inputs for a model that quantizes none when it runs".into(),
            way_out: "make one with `quantize_dynamic`".into(),
        });
    }
    let nodes = model.nodes().iter().map(|node| twin(node).unwrap_or_else(|| node.clone())).collect();
    Ok(model.with_nodes(nodes, model.conversion().cloned()))
}
