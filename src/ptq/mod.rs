//! Post-training quantization: verbs that take a trained model and return a quantized one.
//!
//! **In**: a float [`Model`](crate::nn::Model), borrowed, and the [`LayerKind`](crate::LayerKind)s to quantize. **Out**: a new
//! model with those layers in integers, all others as they were, and a [`Conversion`](crate::nn::Conversion) that names each
//! layer done or passed over. A request that nothing in the model answers is an error.
//!
//! - [`quantize_dynamic`]: weights in int8, activations measured and quantized at run time. Needs no data. Per image or row
//!   `x` and output channel `c` it computes
//!
//! ```text
//! x_q = round(x / s) + z            s, z from the range of x, at run time
//! w_q = round(w / s_c)              s_c = max |w| / 127 of the channel, once
//! y   = (Σ (x_q - z) · w_q) · (s · s_c) + bias
//! ```
//!
//! - [`quantize_static`]: weights in int8 and the grids of activations fixed beforehand, by observing samples; from layer to layer
//!   there are only codes. Faster than dynamic, since nothing is measured and nothing is float in between; and it needs samples
//!   like those to come. [`convert`](crate::convert) has the rules.
//!
//! ```text
//! y_q = clamp(round((Σ (x_q - z) · w_q + b_q) · (s · s_c / s_y)) + z_y)
//! ```
//!
//! - [`quantize_weights`]: weights in any [`WeightFormat`](crate::quant::WeightFormat), 8 bits down to 2, in groups, and activations
//!   as they were ([`weight_only`](crate::nn::weight_only)). Needs no data. For what is bound by reading weights: large layers, few rows.
//!
//! ```text
//! w_q = nearest level of w / s_g    s_g of the weight's group, once
//! y   = Σ_g s_g · (Σ x · level(w_q)) + bias
//! ```
//!
//! What makes the error smaller, each a verb of its own that takes a model and gives another:
//!
//! - before quantizing, [`equalize`](equalize::equalize): channels of like ranges, the same function;
//!   [`smooth_quant`](smooth_quant::smooth_quant): outliers of activations in the weights that read them, the same function too;
//!   [`awq::scale_channels`]: large activations in front of finely rounded weights, again the same; [`reestimate_norms`], where
//!   batch norms no longer fit what they read;
//! - while quantizing weights, [`gptq`]: codes chosen by what they do to a layer's outputs on samples; [`awq::clip_weights`]: ranges of groups,
//!   for less time; without samples [`Fit::HalfQuadratic`](crate::quant::Fit::HalfQuadratic) (HQQ); of static models below 8 bits,
//!   [`reconstruct`]: codes and scales learned by what they do to the outputs of a whole block, for more time;
//! - after quantizing, [`correct_biases`](bias_correction::correct_biases): means of outputs back where they were;
//!   [`distill`](distill::distill): of weights alone, scales, biases and norms tuned by what the whole model gives.
//!
//! ```
//! use lowprec::nn::{Dim, Linear, Model, SkipReason};
//! use lowprec::ptq::DynamicQuantization;
//! use lowprec::{DType, LayerKind, Precision, Tensor};
//!
//! let mut net = Model::builder();
//! let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(3)])?;
//! let linear = || Linear::new(Tensor::new([3, 3], vec![0.5, -1.0, 0.25, 1.0, 0.0, -0.5, 0.75, 0.1, 0.2])?, None);
//! let x = net.add("body", linear()?, &[x])?;
//! let x = net.add("head", linear()?, &[x])?;
//! net.output("y", x)?;
//!
//! let int8 = DynamicQuantization::new(&[LayerKind::Linear]).exclude("head")?.apply(&net.build()?)?;
//! assert_eq!(int8.node("body").unwrap().layer().precision(), Precision::Int8);
//! let conversion = int8.conversion().unwrap();
//! assert_eq!(conversion.quantized, ["body"]);
//! assert_eq!(conversion.skipped[0].reason, SkipReason::Excluded("head".into()));
//! # Ok::<(), lowprec::Error>(())
//! ```

pub mod awq;
pub mod bias_correction;
mod calibrate;
pub mod channel_scales;
pub mod distill;
mod dynamic;
pub mod equalize;
pub mod gptq;
mod layers;
mod norm_statistics;
pub mod recipe;
pub mod reconstruct;
pub mod smooth_quant;
mod statistics;
mod units;
mod weight_only;

pub use calibrate::{Calibrator, quantize_static};
pub use dynamic::{DynamicQuantization, quantize_dynamic, with_input_range};
pub use norm_statistics::{NormShift, Reestimated, reestimate_norms};
pub use weight_only::{WeightConfig, quantize_weights, quantize_weights_with};
