//! Whole networks: how they run, are quantized, and compared.

#[path = "../static_support/mod.rs"]
mod static_support;
#[path = "../support/mod.rs"]
mod support;

mod awq;
mod bias_correction;
mod compare;
#[cfg(feature = "safetensors")]
mod digits;
mod distill;
mod equalize;
mod executor;
#[cfg(feature = "safetensors")]
mod float_layers;
mod fusion;
mod gptq;
mod gptq_int8;
mod gptq_recurrent;
mod quantize_dynamic;
mod quantize_static;
mod quantize_weights;
mod ranges;
mod recipe;
mod reconstruct;
mod rewriting;
mod smooth_quant;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod static_digits;
mod static_graphs;
mod transposed_and_embedded;
#[cfg(feature = "parallel")]
mod verbs_on_threads;
