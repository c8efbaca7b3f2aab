//! Dynamic quantization: weights now, activations at run time.

use crate::convert::fold_batch_norm;
use crate::error::{Error, Names, Result};
use crate::kernels::Isa;
use crate::nn::quantized::{self, DynamicScheme};
use crate::nn::{Conversion, Layer, LayerKind, Model, Node, Pattern, Precision, SkipReason, Skipped};
use crate::num::NonFinite;
use crate::progress::Progress;
use crate::quant::Scheme;
use crate::tensor::Tensor;

/// The kinds that have a dynamic int8 twin.
const KINDS: [LayerKind; 2] = [LayerKind::Conv2d, LayerKind::Linear];

/// Quantizes every layer of the given kinds to int8; `model` is untouched.
///
/// Batch norms are folded first. Weights become int8, symmetric, one scale per output channel. Activations are measured
/// and quantized when the model runs, asymmetric in 8 bits: per image for [`LayerKind::Conv2d`], per row for
/// [`LayerKind::Linear`], so a result never depends on the batch it came in. Products are integer with i32 sums; the
/// bias stays in f32; the result is dequantized where the sums are, so the layers around need no change.
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

    /// The scheme of the weights: signed, symmetric, at most 8 bits, per tensor or per output channel (axis 0).
    pub fn with_weights(mut self, scheme: Scheme) -> Self {
        self.scheme.weights = scheme;
        self
    }

    /// The scheme of the activations: unsigned, at most 8 bits, one range for each image (convolution) or row (linear).
    pub fn with_activations(mut self, scheme: Scheme) -> Self {
        self.scheme.activations = scheme;
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
    /// Those of [`quantize_dynamic`]; [`Error::Pattern`] for a pattern that matches no layer, [`Error::Unsupported`] for a
    /// scheme that the kernels can't run, [`Error::Isa`], [`Error::Cancelled`].
    pub fn apply(mut self, model: &Model) -> Result<Model> {
        self.check(model)?;
        let folded = fold_batch_norm(model)?;
        let mut conversion = folded.conversion().cloned().unwrap_or_default();
        // What an earlier verb passed over is this model's past; the result tells of this request.
        conversion.skipped.clear();
        conversion.absent = self.kinds.iter().copied().filter(|kind| !model.kinds().iter().any(|(k, _)| k == kind)).collect();
        let requested = folded.nodes().iter().filter(|node| self.kinds.contains(&node.layer().kind())).count();
        let (mut nodes, mut done, mut quantized) = (Vec::with_capacity(folded.nodes().len()), 0, 0);
        for node in folded.nodes() {
            let kind = node.layer().kind();
            if !self.kinds.contains(&kind) {
                nodes.push(node.clone());
                continue;
            }
            self.progress.step("quantize", node.name(), done, requested)?;
            done += 1;
            match self.quantize(node).map_err(|e| e.in_layer(node.name()))? {
                Ok(layer) => {
                    conversion.quantized.push(node.name().to_owned());
                    nodes.push(node.with_layer(layer));
                    quantized += 1;
                }
                Err(reason) => {
                    conversion.skipped.push(Skipped::new(node.name(), kind, reason));
                    nodes.push(node.clone());
                }
            }
        }
        if quantized == 0 {
            return Err(self.nothing(model, &conversion));
        }
        Ok(folded.with_nodes(nodes, Some(conversion)))
    }

    fn check(&self, model: &Model) -> Result<()> {
        if self.kinds.is_empty() {
            return Err(self.nothing(model, &Conversion::default()));
        }
        if let Some(kind) = self.kinds.iter().find(|kind| !KINDS.contains(kind)) {
            return Err(Error::Unsupported {
                what: format!("dynamic quantization of {kind}"),
                way_out: format!("these kinds can be: {}", list(&KINDS)),
            });
        }
        self.scheme.validate()?;
        if !self.isa.is_available() {
            let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            return Err(Error::Isa { isa: self.isa.name(), available: available.join(", ") });
        }
        for pattern in self.include.iter().chain(&self.exclude) {
            if !model.nodes().iter().any(|node| pattern.matches(node.name())) {
                let present = model.nodes().iter().map(Node::name).collect::<Names>();
                return Err(Error::Pattern { pattern: pattern.as_str().to_owned(), what: "layer", present });
            }
        }
        Ok(())
    }

    /// The layer's quantized twin, or why it stays as it is.
    fn quantize(&self, node: &Node) -> Result<Result<Layer, SkipReason>> {
        let layer = node.layer();
        if layer.precision() != Precision::F32 {
            return Ok(Err(SkipReason::AlreadyQuantized));
        }
        if !self.include.is_empty() && !self.include.iter().any(|pattern| pattern.matches(node.name())) {
            return Ok(Err(SkipReason::NotIncluded));
        }
        if let Some(pattern) = self.exclude.iter().find(|pattern| pattern.matches(node.name())) {
            return Ok(Err(SkipReason::Excluded(pattern.as_str().to_owned())));
        }
        let bias = |bias: Option<&'_ Tensor>| bias.map(|bias| bias.as_slice().to_vec());
        let twin = match layer {
            Layer::Conv2d(conv) => {
                let (weight, bias) = (conv.weight().as_slice(), bias(conv.bias()));
                quantized::Conv2d::from_float(conv.geometry(), weight, bias.as_deref(), &self.scheme, self.isa).map(Layer::from)
            }
            Layer::Linear(linear) => {
                let (weight, bias) = (linear.weight().as_slice(), bias(linear.bias()));
                let (k, n) = (linear.in_features(), linear.out_features());
                quantized::Linear::from_float(k, n, weight, bias.as_deref(), &self.scheme, self.isa).map(Layer::from)
            }
            other => return Ok(Err(SkipReason::Unsupported(format!("{} has no int8 twin", other.kind())))),
        };
        match twin {
            Ok(twin) => Ok(Ok(twin)),
            Err(error @ Error::Accumulator { .. }) => Ok(Err(SkipReason::Unsupported(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    fn nothing(&self, model: &Model, conversion: &Conversion) -> Error {
        let kinds: Vec<String> = model.kinds().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let mut present = if kinds.is_empty() { "no layers".to_owned() } else { kinds.join(", ") };
        for skipped in &conversion.skipped {
            present.push_str(&format!("; `{}` was passed over: {}", skipped.name, skipped.reason));
        }
        Error::NothingToQuantize { requested: if self.kinds.is_empty() { "no kind at all".into() } else { list(&self.kinds) }, present }
    }
}

fn list(kinds: &[LayerKind]) -> String {
    kinds.iter().map(LayerKind::to_string).collect::<Vec<_>>().join(", ")
}
