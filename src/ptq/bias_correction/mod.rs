//! Bias correction: rounding moves the mean of what a layer writes, and its bias can take that back.
//!
//! Weights that were rounded, and inputs that are rounded, are off by something that does not average to zero over the inputs that a layer
//! really gets. Its mean over all samples and positions is known for each output channel, and a bias costs nothing:
//!
//! ```text
//! b'_c = b_c - E[ŷ_c - y_c]         y of the float layer, ŷ of the quantized one, both before the activation
//! ```
//!
//! (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.) The mean square of the error
//! falls by the square of its mean, whatever the rest of it looks like.
//!
//! - [`correct_biases`] measures it: layer by layer in the order in which they run, each on what those before it, already corrected, give.
//! - [`correct_biases_by_norms`] computes it without samples, for layers that read what a batch norm left: with `ε` the rounding error of a
//!   weight, `E[ŷ - y] = Σ ε · E[x]` over a channel's weights. Of a value with mean `β` and deviation `γ` that a clamp to `lo..=hi` holds,
//!   as if normally distributed (`lo = 0`, `hi = ∞` for ReLU, 6 for ReLU6; `φ` and `Φ` the normal density and distribution),
//!
//! ```text
//! E[x] = lo Φ(a) + hi (1 - Φ(b)) + β (Φ(b) - Φ(a)) + γ (φ(a) - φ(b))          a = (lo - β) / γ,  b = (hi - β) / γ
//! ```
//!
//! Both take the float model as it was quantized (equalized, if it was), and any model that came of it: dynamic, static, weights
//! alone. In a static one the bias is rounded to the unit of the sums again.
//!
//! ```no_run
//! # fn of(model: &lowprec::nn::Model, samples: &lowprec::Value) -> lowprec::Result<()> {
//! use lowprec::ptq::bias_correction::correct_biases;
//! let small = lowprec::quantize_weights(model, &lowprec::ptq::WeightConfig::new("int4:g32".parse()?))?;
//! let corrected = correct_biases(model, &small, &[&[("image", samples)]], Default::default())?;
//! println!("{corrected}");
//! # Ok(()) }
//! ```

mod measured;
mod moments;

pub use measured::correct_biases;
pub use moments::correct_biases_by_norms;

use std::fmt;

use crate::error::Result;
use crate::nn::{Layer, Model, Node, SkipReason, Skipped};

/// A model with corrected biases.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Corrected {
    /// The model.
    pub model: Model,
    /// Layers whose bias was corrected, in the order in which they run. Empty when none was.
    pub layers: Vec<LayerCorrection>,
    /// Quantized layers whose bias stayed, and why.
    pub passed_over: Vec<Skipped>,
}

/// A layer whose bias was corrected.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerCorrection {
    /// Its name.
    pub name: String,
    /// By output channel, what its bias was lowered by: the mean error.
    pub shifts: Vec<f64>,
    /// The mean error on samples held out, before and after: the root of the mean over channels of its square. `None` where it was
    /// computed and not measured.
    pub held_out: Option<[f64; 2]>,
}

impl LayerCorrection {
    /// The root of the mean over channels of the square of the mean error.
    pub fn shift(&self) -> f64 {
        root_mean_square(&self.shifts)
    }
}

fn root_mean_square(values: &[f64]) -> f64 {
    (values.iter().map(|x| x * x).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// A line a layer.
impl fmt::Display for Corrected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "corrected the biases of {} layers", self.layers.len())?;
        for layer in &self.layers {
            write!(f, "{}: by {:.3e}", layer.name, layer.shift())?;
            match layer.held_out {
                Some([before, after]) => writeln!(f, ", mean error on samples held out {before:.3e} -> {after:.3e}")?,
                None => writeln!(f)?,
            }
        }
        for skipped in &self.passed_over {
            writeln!(f, "passed over {} ({}): {}", skipped.name, skipped.kind, skipped.reason)?;
        }
        Ok(())
    }
}

/// The layers whose biases can be corrected: quantized, with a bias or room for one.
fn is_correctable(node: &Node) -> bool {
    node.layer().biased().is_some() && !matches!(node.layer(), Layer::Conv2d(_) | Layer::Linear(_))
}

/// The float layer of a quantized one, by its name, or why there is none.
fn float_twin<'m>(float: &'m Model, node: &Node) -> std::result::Result<&'m Node, SkipReason> {
    match float.node(node.name()) {
        None => Err(SkipReason::Unsupported("the float model has no layer of that name".into())),
        Some(twin) if twin.layer().is_quantized() => Err(SkipReason::AlreadyQuantized),
        Some(twin) if twin.layer().biased() != node.layer().biased() => {
            Err(SkipReason::Unsupported(format!("in the float model it is another layer ({})", twin.layer().kind())))
        }
        Some(twin) => Ok(twin),
    }
}

/// The layer with its bias lowered.
fn lowered(layer: &Layer, shifts: &[f64]) -> Result<Layer> {
    let old = |c: usize| layer.bias().map_or(0.0, |bias| f64::from(bias[c]));
    let bias: Vec<f32> = shifts.iter().enumerate().map(|(c, shift)| (old(c) - shift) as f32).collect();
    layer.with_bias(&bias)
}

/// Puts the corrected layer in its place, or notes why it can't be: a bias that its sums have no room for.
fn put(corrected: &mut Corrected, at: usize, layer: Result<Layer>, correction: LayerCorrection) {
    let node = &corrected.model.nodes()[at];
    match layer {
        Ok(layer) => {
            let mut nodes = corrected.model.nodes().to_vec();
            nodes[at] = nodes[at].with_layer(layer);
            corrected.model = corrected.model.with_nodes(nodes, corrected.model.conversion().cloned());
            corrected.layers.push(correction);
        }
        Err(error) => {
            let skipped = Skipped::new(node.name(), node.layer().kind(), SkipReason::Unsupported(error.to_string()));
            corrected.passed_over.push(skipped);
        }
    }
}
