//! The weights of a convolution in the form that its kernel reads.

use super::depthwise::Lanes;
use super::geometry::{Conv2dGeometry, ImageLayout, ImageShape, Padded};
use super::grouped::GroupedLanes;
use super::grouped_words::GroupedWords;
use super::isa::Isa;
use super::pack::{Columns, PanelLayout, Panels, elements};
use super::simd::{Element, Simd};
use super::winograd_transforms::SUM_LIMIT;
use crate::error::{Error, Result};

/// The weights of a convolution, for one instruction set.
#[derive(Debug, Clone)]
pub(super) struct ConvWeights<W> {
    pub geometry: Conv2dGeometry,
    /// What runs instead, over blocks of pixels: the same sums.
    blocks: Option<Conv2dGeometry>,
    pub isa: Isa,
    /// Whether no sum can leave the bits that [`super::winograd`] keeps: of weights for its geometry.
    pub sums_are_narrow: bool,
    pub(super) packed: Packed<W>,
}

#[derive(Debug, Clone)]
pub(super) enum Packed<W> {
    Panels(Panels<W>),
    Depthwise(Lanes<W>),
    Grouped(GroupedLanes<W>),
    GroupedWords(GroupedWords<W>),
}

impl<W: Element> ConvWeights<W> {
    /// Packs OIHW weights.
    pub fn pack(isa: Isa, layout: fn(Isa) -> PanelLayout, geometry: &Conv2dGeometry, weights: &[W]) -> Result<Self> {
        let isa = isa.checked()?;
        geometry.validate()?;
        let expected = elements(&geometry.weight_shape())?;
        if weights.len() != expected {
            return Err(Error::length("weights", expected, weights.len()));
        }
        let blocks = geometry.of_blocks().filter(|_| isa == Isa::Amx && W::SUMMED);
        let packed = if let Some(blocks) = &blocks {
            let mut moved = vec![W::default(); elements(&blocks.weight_shape())?];
            weights.iter().enumerate().for_each(|(i, &weight)| moved[geometry.index_in_blocks(blocks, i)] = weight);
            let columns = Channels { weights: &moved, geometry: blocks };
            Packed::Panels(Panels::pack(isa, layout(isa), 1, blocks.out_channels, &blocks.runs(), columns))
        } else if geometry.is_depthwise() {
            Packed::Depthwise(Lanes::pack(layout(isa), geometry, weights))
        } else if GroupedWords::<W>::suits(layout(isa), geometry) {
            Packed::GroupedWords(GroupedWords::pack(layout(isa), geometry, &taps_of_channels(geometry, weights)))
        } else if GroupedLanes::<W>::suits(layout(isa), geometry) {
            Packed::Grouped(GroupedLanes::pack(layout(isa), geometry, &taps_of_channels(geometry, weights)))
        } else {
            let n = geometry.out_channels / geometry.groups;
            let columns = Channels { weights, geometry };
            Packed::Panels(Panels::pack(isa, layout(isa), geometry.groups, n, &geometry.runs(), columns))
        };
        let sums_are_narrow = geometry.is_plain_3x3() && are_narrow(weights, geometry.k());
        Ok(ConvWeights { geometry: geometry.clone(), blocks, isa, sums_are_narrow, packed })
    }

    /// The convolution that runs, and the workspace that it reads.
    pub fn running(&self, padded: Padded) -> (&Conv2dGeometry, Padded) {
        match &self.blocks {
            Some(blocks) => (blocks, padded.of_blocks()),
            None => (&self.geometry, padded),
        }
    }

    /// Whether lines are made of blocks of pixels.
    pub fn in_blocks(&self) -> bool {
        self.blocks.is_some()
    }

    pub fn bytes(&self) -> usize {
        match &self.packed {
            Packed::Panels(panels) => panels.bytes(),
            Packed::Depthwise(lanes) => lanes.bytes(),
            Packed::Grouped(lanes) => lanes.bytes(),
            Packed::GroupedWords(words) => words.bytes(),
        }
    }

    /// The weights, OIHW.
    pub fn unpack(&self) -> Vec<W> {
        let geometry = self.blocks.as_ref().unwrap_or(&self.geometry);
        let (n, k) = (geometry.out_channels / geometry.groups, geometry.k());
        let mut weights = vec![W::default(); geometry.out_channels * k];
        match &self.packed {
            Packed::Panels(panels) => panels.unpack(&geometry.runs(), |group, column, step, weight| {
                weights[geometry.weight_index(group * n + column, step)] = weight;
            }),
            Packed::Grouped(lanes) => {
                (0..weights.len()).for_each(|i| weights[geometry.weight_index(i / k, i % k)] = lanes.at(i / k, i % k))
            }
            Packed::GroupedWords(words) => {
                (0..weights.len()).for_each(|i| weights[geometry.weight_index(i / k, i % k)] = words.at(i / k, i % k))
            }
            Packed::Depthwise(lanes) => weights.iter_mut().enumerate().for_each(|(i, weight)| *weight = lanes.at(i / k, i % k)),
        }
        match &self.blocks {
            Some(blocks) => {
                let len = self.geometry.out_channels * self.geometry.k();
                (0..len).map(|i| weights[self.geometry.index_in_blocks(blocks, i)]).collect()
            }
            None => weights,
        }
    }

    /// Whether lines of `width` pixels of output may be made of permuted codes: see [`Lanes::takes_permuted`].
    pub fn takes_permuted(&self, padded: &Padded, width: usize) -> bool {
        let Packed::Depthwise(lanes) = &self.packed else { return false };
        padded.layout == ImageLayout::Nhwc && padded.repeat == 1 && lanes.takes_permuted(self.geometry.stride[1], width)
    }

    /// Whether rows of whole words can be read where the caller has them.
    pub fn reads_in_place(&self, shape: ImageShape, ku: usize) -> bool {
        let whole_words = self.geometry.runs_are_multiples_of(ku);
        let is_bare = matches!(self.geometry.pads(shape.h, shape.w), Ok([0, 0, 0, 0]));
        matches!(self.packed, Packed::Panels(_)) && self.blocks.is_none() && shape.layout == ImageLayout::Nhwc && is_bare && whole_words
    }
}

/// Whether the sum of unsigned codes and the weights of each output channel, `k` of them, keeps within [`SUM_LIMIT`].
fn are_narrow<W: Element>(weights: &[W], k: usize) -> bool {
    let fits = |channel: &[W]| {
        let (below, above) = channel.iter().fold((0, 0), |(below, above), weight| {
            let weight = i64::from(weight.summand());
            (below + weight.min(0), above + weight.max(0))
        });
        -255 * below <= SUM_LIMIT && 255 * above < SUM_LIMIT
    };
    W::SUMMED && k > 0 && weights.chunks_exact(k).all(fits)
}

/// OIHW weights as `[out_channels][taps][channels of a group]`.
fn taps_of_channels<W: Element>(geometry: &Conv2dGeometry, weights: &[W]) -> Vec<W> {
    let k = geometry.k();
    (0..weights.len()).map(|i| weights[geometry.weight_index(i / k, i % k)]).collect()
}

/// The output channels of OIHW weights.
struct Channels<'a, W> {
    weights: &'a [W],
    geometry: &'a Conv2dGeometry,
}

impl<W: Element> Columns<W> for Channels<'_, W> {
    #[inline(always)]
    fn columns<S: Simd>(&self, _: S, first: usize, k: usize, weights: &mut [W], _: &mut [f32]) {
        let [_, channels, kh, kw] = self.geometry.weight_shape();
        let taps = kh * kw;
        let from = &self.weights[first * k..][..weights.len()];
        match taps {
            1 => weights.copy_from_slice(from),
            // A number that the compiler knows.
            9 => taps_first(from, channels, 9, weights),
            _ => taps_first(from, channels, taps, weights),
        }
    }
}

/// Columns of `[channels][taps]` as `[taps][channels]`, all taps of a channel at a time.
#[inline(always)]
fn taps_first<W: Element>(from: &[W], channels: usize, taps: usize, weights: &mut [W]) {
    for (column, from) in weights.chunks_exact_mut(channels * taps).zip(from.chunks_exact(channels * taps)) {
        for (channel, from) in from.chunks_exact(taps).enumerate() {
            for (tap, weight) in from.iter().enumerate() {
                column[tap * channels + channel] = *weight;
            }
        }
    }
}
