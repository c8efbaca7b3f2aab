//! What a run costs by count: bytes, operations, and an estimate of the energy.

use std::collections::HashMap;

use crate::nn::{Edge, Layer, Model, Precision};
use crate::tensor::{DType, Shape};

/// Energy of one forward, by an estimate and not a measurement, in joules.
///
/// Costs of single operations are Horowitz's (ISSCC 2014, 45 nm, 0.9 V): a float multiply-accumulate 3.7 + 0.9 pJ, an
/// int8 one with a 32-bit sum 0.2 + 0.1 pJ; the last level of SRAM 100 pJ per 64 bits, DRAM 1.3 nJ per 64 bits (20 pJ a
/// bit). The overhead of a processor's instructions is left out, so absolute numbers are far too small; ratios between
/// two models are what this is for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Energy {
    /// Multiply-accumulates, and for int8 layers the quantization of every float input and the dequantization or requantization of
    /// every output (one float multiplication and addition each).
    pub compute: f64,
    /// Weights read once from DRAM: the regime of a large model at batch 1. A model that stays in cache doesn't pay it.
    pub weights: f64,
    /// Inputs read from and outputs written to SRAM, each in its type, and where an int8 layer quantizes floats, their codes written
    /// and read in addition.
    pub activations: f64,
}

const PICOJOULE: f64 = 1e-12;
const MAC_F32: f64 = 4.6 * PICOJOULE;
const MAC_INT8: f64 = 0.3 * PICOJOULE;
const CONVERSION: f64 = 4.6 * PICOJOULE;
const DRAM_BYTE: f64 = 1300.0 / 8.0 * PICOJOULE;
const SRAM_BYTE: f64 = 100.0 / 8.0 * PICOJOULE;

impl Energy {
    /// All three together, every weight coming from DRAM: a large model at batch 1, where it is nearly all of them.
    pub fn total(&self) -> f64 {
        self.compute + self.weights + self.activations
    }

    /// All three together, with the weights in SRAM: a model that stays in cache.
    pub fn total_in_cache(&self) -> f64 {
        self.compute + self.weights * (SRAM_BYTE / DRAM_BYTE) + self.activations
    }
}

/// Bytes, multiply-accumulates and estimated energy of one forward.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Cost {
    /// Bytes of everything that the layers hold in memory ([`Model::bytes`]).
    pub bytes: usize,
    /// Bytes of the same numbers at their bits, as a file has them ([`Model::stored_bytes`]).
    pub stored_bytes: usize,
    /// Multiply-accumulates in float.
    pub macs_f32: u64,
    /// Multiply-accumulates in int8.
    pub macs_int8: u64,
    /// The estimate.
    pub energy: Energy,
}

impl Cost {
    /// The cost of one forward whose values have these shapes.
    pub(crate) fn of(model: &Model, shapes: &HashMap<Edge, Shape>) -> Cost {
        let mut cost = Cost { bytes: model.bytes(), stored_bytes: model.stored_bytes(), ..Cost::default() };
        let elements = |edge: &Edge| shapes.get(edge).map_or(0, Shape::elements);
        let bytes = |edge: &Edge| elements(edge) * model.edge_type(*edge).bytes();
        for node in model.nodes() {
            let layer = node.layer();
            let macs: u64 = node.outputs().iter().filter_map(|edge| shapes.get(edge)).map(|shape| layer.macs(shape)).sum();
            // Floats that an integer layer quantizes on its way.
            let quantized: usize = node.reads().filter(|&edge| model.edge_type(edge) == DType::F32).map(|edge| elements(&edge)).sum();
            let written: usize = node.outputs().iter().map(elements).sum();
            let energy = &mut cost.energy;
            energy.weights += layer.bytes() as f64 * DRAM_BYTE;
            if !matches!(layer, Layer::Flatten { .. }) {
                let moved = node.reads().map(|edge| bytes(&edge)).chain(node.outputs().iter().map(bytes)).sum::<usize>();
                energy.activations += moved as f64 * SRAM_BYTE;
            }
            match layer.precision() {
                Precision::F32 => {
                    cost.macs_f32 += macs;
                    energy.compute += macs as f64 * MAC_F32;
                }
                Precision::Int8 => {
                    cost.macs_int8 += macs;
                    energy.compute += macs as f64 * MAC_INT8 + (quantized + written) as f64 * CONVERSION;
                    energy.activations += 2.0 * quantized as f64 * SRAM_BYTE;
                }
            }
        }
        cost
    }
}
