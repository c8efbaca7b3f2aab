//! Models on their way out: saved, exported, compared, searched, reported.
#![cfg(all(feature = "onnx", feature = "safetensors"))]

#[path = "../nodes/mod.rs"]
mod nodes;
#[path = "../static_support/mod.rs"]
mod static_support;
#[path = "../support/mod.rs"]
mod support;

mod compared;
mod compressed;
mod exported;
mod isolated;
mod networks;
mod ranges;
mod reported;
mod saved;
mod saved_hostile;
mod searched;
mod several;
mod sizes;
mod weight_only;
