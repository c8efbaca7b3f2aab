//! Is the quantized model as good, and what did it save? [`compare`] answers with a [`Report`]. Which layers may be quantized for the
//! accuracy that is asked for? [`quantize_to_target`] searches.
//!
//! **In**: the float model, the one made from it, inputs whose first axis counts the samples, and labels where there are some.
//! **Out**: plain numbers, `[float, quantized]`, and a text that shows them.
//!
//! - Of the output: the caller's own numbers ([`Comparison::with_metric`]); top-1 of both against the labels, how often the two agree, and the KL divergence of their softmaxes, when
//!   it is `[samples, classes]`; the SQNR always.
//! - Of every layer: `SQNR = 10 · log10(Σ y² / Σ (y - y')²)` in decibels, 6 dB a bit, errors made upstream
//!   included, and of the layer by itself, fed with what the float model feeds it: the whole of it, its weights alone, its input
//!   alone. The layer that loses most by itself is ranked first: those after a bad one carry its error, whatever they are like.
//! - And of each: cosine and largest error; the share of values that are clipped, and of the range of codes that is unused; bytes of the
//!   weights and time, before and after.
//! - Of one range for the whole tensor, as ONNX has it, beside one for each row or image: both against float ([`compare_ranges`]).
//! - Of the whole: bytes, multiply-accumulates by precision, an estimate of the energy ([`Energy`], after M. Horowitz,
//!   *Computing's energy problem*, ISSCC 2014), and the median time of a forward of each, taken in turn.
//!
//! NaN or an infinity where the float model has something else is the worst error there is (`-∞` dB); where both models hold
//! the same it is none.
//!
//! ```
//! use lowprec::nn::{Dim, Linear, Model};
//! use lowprec::{DType, LayerKind, Tensor};
//!
//! let mut net = Model::builder();
//! let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
//! let x = net.add("fc", Linear::new(Tensor::new([2, 2], vec![1.0, -1.0, -0.5, 2.0])?, None)?, &[x])?;
//! net.output("logits", x)?;
//! let model = net.build()?;
//! let int8 = lowprec::quantize_dynamic(&model, &[LayerKind::Linear])?;
//!
//! let samples = Tensor::new([3, 2], vec![1.0, 0.0, 0.0, 1.0, 2.0, -1.0])?;
//! let report = lowprec::compare(&model, &int8, &samples, Some(&[0, 1, 0]))?;
//! assert_eq!(report.accuracy(), Some([1.0, 1.0]));
//! assert_eq!(report.agreement(), Some(1.0));
//! assert!(report.sqnr_db > 30.0);
//! # Ok::<(), lowprec::Error>(())
//! ```

mod compare;
mod cost;
mod coverage;
mod display;
mod histogram;
mod html;
mod isolate;
mod ranges;
mod report;
mod rounded;
mod samples;
mod search;
mod sums;

pub use compare::{Comparison, compare};
pub use cost::{Cost, Energy};
pub use histogram::Histogram;
pub use ranges::{RangeReport, compare_ranges};
pub use report::{Classification, Errors, Isolated, LayerReport, RangeUse, Report};
pub use samples::Samples;
pub use search::{
    Choice, Measured, Mix, Objective, Outcome, SearchState, Sensitivity, TargetSearch, TradeOff, accuracy, agreement, quantize_to_target,
};
