//! Convolutions of 3 x 3 at stride one by a quarter of the products: tiles of 4 x 4 outputs, in whole numbers, so that sums are those of
//! the convolution itself, bit for bit.
//!
//! Activations and weights go to 36 points ([`super::winograd_transforms`]), where each point has a product of its own: all tiles times all
//! output channels, over 16-bit numbers ([`super::pairs`]), in i32 that wraps. What comes back is 576 times each sum modulo 2^32 (144 and
//! 36 times where a tile has two outputs along an axis), which says it exactly while it fits 26 bits
//! ([`SUM_LIMIT`](super::winograd_transforms::SUM_LIMIT)): no calibration, no scales, no rounding. Wrapping is what makes this fit vectors:
//! the products themselves need some 40 bits.
//!
//! An instruction multiplies half as many pairs as bytes, so 144 products against 36 pairs are at most twice as fast with VNNI, four times
//! with AVX2. Weights are brought to the points in each call, for a panel of columns at a time, of small images half of the points at a
//! time: kept, they would take eight bytes each, and a network of such layers would wait for them to come from memory.

use std::ops::Range;

use super::conv_weights::{ConvWeights, Packed};
use super::dot::Dot;
use super::ingest::Fill;
use super::memory::Aligned;
use super::output::Store;
use super::pack::Panels;
use super::pairs::Pairs;
use super::product::{GRAIN, RUNS};
use super::simd::Simd;
use super::strips::{Activations, Convolution};
use super::threads::{self, Disjoint, Phase};
use super::tile::Segment;
use super::winograd_block::{Block, sums_of_tile};
use super::winograd_layout::{Axis, LINE, Tiles, Words};
use super::winograd_transforms::POINTS;

/// Activations at the points of an image that is not cut: half of a common second-level cache.
const IMAGE_BYTES: usize = 512 * 1024;

/// Those of a block of lines of tiles, of an image that is cut, for each thread. Of large images all these come from beyond the caches and
/// go there again with each convolution, and so small blocks win: 64 channels at 56 x 56 took 350 microseconds with 72 KB, alone, and a
/// tenth more with 512.
const BLOCK_BYTES: usize = 72 * 1024;

/// Sums at the points that lie in memory at a time, for a thread; up to twice as many of small images.
const SUMS_BYTES: usize = 64 * 1024;

/// Weights up to which they go to the points: 72 bytes there for nine of them, all at a time if images are cut.
const WEIGHTS_MAX: usize = 9 << 20;

/// Memory of such convolutions.
#[derive(Debug, Default)]
pub(super) struct WinogradMemory {
    /// `[point][tile][channel]`.
    activations: Aligned,
    /// `[panel][point][word][column][2]`: of all panels, or of one for each thread.
    weights: Aligned,
    /// `[thread][tile][point][column]`.
    sums: Aligned,
}

impl WinogradMemory {
    pub fn bytes(&self) -> usize {
        self.activations.bytes() + self.weights.bytes() + self.sums.bytes()
    }
}

/// Whether a convolution has this form, and it is faster so.
pub(super) fn is_faster<S: Simd>(simd: S, weights: &ConvWeights<i8>, images: usize, [out_h, out_w]: [usize; 2]) -> bool {
    let geometry = &weights.geometry;
    let whole_words = geometry.in_channels.is_multiple_of(4);
    let few = geometry.in_channels * geometry.out_channels <= WEIGHTS_MAX / 9;
    if !S::Pairs::AVAILABLE || simd.matrix_unit().is_some() || !weights.sums_are_narrow || !whole_words || !few {
        return false;
    }
    // In instructions for a lane, about, as measured on Zen 4: what brings activations, weights and sums to the points and back is most of
    // it where there are few channels or few tiles. A product of pairs is one where it is one of four bytes, too, else two.
    let [channels, n, images] = [geometry.in_channels, geometry.out_channels, images].map(|count| count as f64);
    let (lines, columns) = (Axis::new(out_h), Axis::new(out_w));
    let tiles = ((lines.whole + lines.half) * (columns.whole + columns.half)) as f64 * images;
    let points = (lines.points() * columns.points()) as f64 * images;
    let product = if S::Pairs::SPLIT { 1.0 } else { 2.0 };
    let all = product * 9.0 * (out_h * out_w) as f64 * images * channels * n / <S::Int8 as Dot<S>>::KU as f64;
    let fewer = product * 1.05 * points * channels * n / 2.0 + tiles * (120.0 * channels + 450.0 * n) + 100.0 * channels * n;
    // With bytes in vectors of eight lanes, what is measured is up to a fifth above that.
    fewer < all * if S::Pairs::SPLIT && S::LANES < 16 { 0.8 } else { 0.95 }
}

impl<S: Simd, T: Store<S, S::I32>> Convolution<'_, S, S::Int8, T> {
    /// [`Convolution::run`], by fewer products where that is faster.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn run_integers(
        &self,
        lhs: Activations<'_, <S::Int8 as Dot<S>>::Lhs>,
        segments: &mut Vec<Segment>,
        memory: &mut WinogradMemory,
        threads: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.weights.packed {
                Packed::Panels(panels) if is_faster(self.simd, self.weights, self.padded.images, self.out) => {
                    self.run_winograd(panels, lhs, memory, threads)
                }
                _ => self.run(lhs, segments, threads),
            }
        }
    }

    /// # Safety
    /// As for [`Convolution::run`]; `panels` are its weights, and [`is_faster`].
    unsafe fn run_winograd(
        &self,
        panels: &Panels<i8>,
        lhs: Activations<'_, <S::Int8 as Dot<S>>::Lhs>,
        memory: &mut WinogradMemory,
        threads: usize,
    ) {
        const {
            assert!(!S::Pairs::AVAILABLE || S::NV <= 2, "`Block::outputs` has panels of one vector and of two");
            assert!(!S::Pairs::AVAILABLE || SUMS_BYTES / (POINTS * S::NV * S::LANES * 4) >= S::MR_MAX, "a chunk has tiles for a product");
        }
        let (geometry, padded, [out_h, out_w]) = (self.geometry, self.padded, self.out);
        let (rows, columns) = (Axis::new(out_h), Axis::new(out_w));
        let (channels, row) = (geometry.in_channels, padded.row());
        let words = Words::<S>::new(channels);
        let across = columns.whole + columns.half;
        let work = padded.images.saturating_mul(rows.points() * columns.points()).saturating_mul(channels * geometry.out_channels) / 2;
        let parts = threads::parts(threads, work, GRAIN);
        let tile_lines = rows.whole + rows.half;
        let bytes = tile_lines * across * POINTS * words.row * size_of::<i16>();
        let cuts = if bytes <= IMAGE_BYTES { 1 } else { bytes.div_ceil(BLOCK_BYTES * parts).clamp(1, tile_lines) };
        let largest = tile_lines.div_ceil(cuts);
        // Tiles of each block, its chunks, and the tiles of the largest chunk.
        let most = largest * across;
        let fitting = SUMS_BYTES / (POINTS * panels.nr() * size_of::<i32>());
        let chunk = if most <= 2 * fitting { most } else { fitting / S::MR_MAX * S::MR_MAX };
        let (point, sums_len) = (most * words.row + LINE, chunk * sums_of_tile::<S>());
        let weights_len = POINTS * words.point(panels.nr());
        // Where all tiles meet a panel once, its weights are at the points only meanwhile.
        let passing = cuts * padded.images == 1 && panels.panels().is_multiple_of(parts);
        let WinogradMemory { activations, weights, sums } = memory;
        let activations = activations.grow::<i16>(POINTS * point).as_mut_ptr();
        let weights = Disjoint::new(weights.grow::<i16>(weights_len * if passing { parts } else { panels.panels() }));
        // Sums are written before they are read.
        let sums = Disjoint::new(sums.grow::<f32>(parts * sums_len));
        let lines_len = (4 * largest + 2).min(padded.height) * row;
        let (fill, lines, in_place) = match lhs {
            Activations::InPlace(lhs) => {
                let (len, vector) = (padded.len(), 4 * S::LANES);
                assert!(
                    lhs.len() >= len && channels.is_multiple_of(vector),
                    "the padded images are there, and nothing is read behind them"
                );
                (None, std::ptr::null(), lhs.as_ptr())
            }
            Activations::Lines { fill, memory, .. } => {
                let lines = Disjoint::new(memory.grow(lines_len + 4 * S::LANES));
                let at = lines.as_ptr();
                (Some((fill, lines)), at, std::ptr::null())
            }
        };
        for block in 0..cuts * padded.images {
            let (image, cut) = (block / cuts, block % cuts);
            let of_block = tile_lines * cut / cuts..tile_lines * (cut + 1) / cuts;
            let half = usize::from(of_block.end > rows.whole);
            let tiles = Tiles { first: of_block.start, whole: of_block.len() - half, half, columns };
            let first_line = 4 * of_block.start;
            let line_count = (4 * of_block.len() + 2).min(padded.height - first_line);
            let lines = match fill {
                Some(_) => lines,
                None => in_place.wrapping_add((image * padded.height + first_line) * row),
            };
            let block_sums = |part: usize| sums.at(part * sums_len).cast::<i32>();
            let chunks = tiles.len().div_ceil(chunk);
            let chunk_of = |i: usize| i * chunk..tiles.len().min((i + 1) * chunk);
            let of = Block { convolution: self, panels, words: &words, tiles, image, lines, line_count, passing, activations, point };
            let phases = [
                Phase { items: if fill.is_some() { line_count } else { 0 }, runs: RUNS },
                Phase { items: tiles.len(), runs: RUNS },
                Phase { items: if !passing && block == 0 { 2 * panels.panels() } else { 0 }, runs: RUNS },
                Phase { items: panels.panels() * if passing { 1 } else { chunks }, runs: RUNS },
            ];
            threads::phases(phases, parts, |phase, part, range| match (phase, &fill) {
                // SAFETY: runs of lines are disjoint.
                (0, Some((fill, to))) => unsafe { fill_lines(fill, to, (image, first_line), row, range) },
                // SAFETY: nobody writes lines any more, and a vector is readable behind them, or pixels are whole vectors; runs are
                // disjoint, and each tile has its own memory.
                (1, _) => self.simd.vectorize(
                    #[inline(always)]
                    || unsafe { of.activations(range) },
                ),
                // SAFETY: each half of a panel has its own memory.
                (2, _) => range.for_each(|item| unsafe { of.weights(item / 2, item % 2, weights.at(item * (weights_len / 2))) }),
                (3, _) if passing => {
                    let (to, sums) = (weights.at(part * weights_len), block_sums(part));
                    for panel in range {
                        // SAFETY: nobody writes activations at the points any more; no two runs at a time are of the same part, which has
                        // its own memory; panels are disjoint columns of `dst`.
                        unsafe {
                            if chunks == 1 {
                                for half in 0..2 {
                                    of.weights(panel, half, to);
                                    of.products(panel, half, 0..tiles.len(), to, sums);
                                }
                                of.outputs(panel, 0..tiles.len(), sums, part);
                                continue;
                            }
                            let halves = [to, to.add(weights_len / 2)];
                            (0..2).for_each(|half| of.weights(panel, half, halves[half]));
                            for of_chunk in (0..chunks).map(chunk_of) {
                                (0..2).for_each(|half| of.products(panel, half, of_chunk.clone(), halves[half], sums));
                                of.outputs(panel, of_chunk, sums, part);
                            }
                        }
                    }
                }
                (3, _) => {
                    for item in range {
                        let (panel, i) = (item / chunks, item % chunks);
                        let of_chunk = chunk_of(i);
                        // SAFETY: as above, and tiles disjoint pixels of `dst`; the weights of all panels are there, and nobody writes them
                        // any more.
                        unsafe {
                            for half in 0..2 {
                                let weights = weights.at((2 * panel + half) * (weights_len / 2));
                                of.products(panel, half, of_chunk.clone(), weights, block_sums(part));
                            }
                            of.outputs(panel, of_chunk, block_sums(part), part);
                        }
                    }
                }
                _ => {}
            });
        }
    }
}

/// Some lines of an image.
///
/// # Safety
/// Nobody else has the same lines at the time.
unsafe fn fill_lines<L>(fill: &Fill<'_, L>, to: &Disjoint<'_, L>, (image, first): (usize, usize), row: usize, lines: Range<usize>) {
    for line in lines {
        // SAFETY: the caller's promise.
        fill(image, first + line, unsafe { to.part(line * row..(line + 1) * row) });
    }
}
