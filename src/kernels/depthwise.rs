//! Depthwise convolution: each lane is a channel. Where the instruction set sums four products a lane, taps go in fours, interleaved
//! byte by byte; elsewhere, and for floats, they go one after the other.

use std::ops::Range;

use super::dot::Dot;
use super::geometry::Conv2dGeometry;
use super::ingest::PERMUTED_GROUP;
use super::memory::Aligned;
use super::output::Store;
use super::pack::PanelLayout;
use super::product::{GRAIN, Pixels, Rows};
use super::simd::{Element, Simd};
use super::threads;
use super::tile::{LaneTile, ROWS, Segment, Start};

/// Rows of a depthwise tile.
const MR: usize = 4;

/// Weights `[taps][channels]`, or, in fours of taps, `[block of channels][taps / 4][4][LANES][4]`.
#[derive(Debug, Clone)]
pub struct Lanes<W> {
    pub(super) data: Aligned,
    pub(super) taps: usize,
    pub(super) channels: usize,
    /// How often the channels stand in a block, where a block is that many pixels.
    pub(super) copies: usize,
    /// Lanes of a vector where taps go in fours, else 0.
    lanes: usize,
    /// Whether the fours are columns of a kernel of three rows and columns, whose words serve all windows that they are in.
    pub(super) by_column: bool,
    /// Sum of each channel's weights. Empty for floats.
    pub(super) col_sums: Box<[i32]>,
    weight: std::marker::PhantomData<W>,
}

impl<W: Element> Lanes<W> {
    /// Packs the weights of a depthwise convolution, `[channels][taps]`.
    pub fn pack(layout: PanelLayout, geometry: &Conv2dGeometry, weights: &[W]) -> Self {
        let (taps, channels, block) = (geometry.k(), geometry.out_channels, 4 * layout.lanes);
        // Few channels leave room for several pixels in a block, if those lie one after the other as their channels do.
        let side_by_side = geometry.stride[1] == 1 && channels.is_multiple_of(layout.lanes) && block.is_multiple_of(channels);
        let copies = if layout.quads && side_by_side { block / channels } else { 1 };
        // Fewer channels are better off tap by tap: at 16 there is little to gain, and weights of a whole block take five times the bytes.
        let lanes = if layout.quads && 8 * channels * copies >= 3 * block { layout.lanes } else { 0 };
        let by_column = geometry.kernel == [3, 3] && geometry.dilation[1] == 1;
        let len = if lanes > 0 { (channels * copies).next_multiple_of(block) * taps.next_multiple_of(4) } else { channels * taps };
        let col_sums = if W::SUMMED { weights.chunks_exact(taps).map(W::sum).collect() } else { Box::default() };
        let mut packed =
            Lanes { data: Aligned::zeroed::<W>(len), taps, channels, copies, lanes, by_column, col_sums, weight: std::marker::PhantomData };
        let mut data = std::mem::take(&mut packed.data);
        let memory = data.grow::<W>(len);
        for (i, &weight) in weights.iter().enumerate() {
            for copy in 0..copies {
                memory[packed.index(i / taps + copy * channels, i % taps)] = weight;
            }
            if packed.rest_of_two(i / taps) {
                memory[packed.index(i / taps + block / 2, i % taps)] = weight;
            }
        }
        packed.data = data;
        packed
    }

    /// Whether a channel is in a last block of at most half as many channels, which takes two pixels at a time, each with its weights.
    fn rest_of_two(&self, channel: usize) -> bool {
        let block = 4 * self.lanes;
        block > 0 && self.copies == 1 && channel / block == self.channels / block && self.channels % block <= block / 2
    }

    /// Whether taps go in fours.
    pub fn in_fours(&self) -> bool {
        self.lanes > 0
    }

    /// Where the weight of a channel (or of its copy) at a tap lies.
    fn index(&self, channel: usize, tap: usize) -> usize {
        if self.lanes == 0 {
            return tap * self.channels + channel;
        }
        // In-lane unpacking of bytes, then of pairs, leaves channels 16 l + 4 j .. 16 l + 4 j + 4 of a block in 128-bit lane l of vector j.
        let block = 4 * self.lanes;
        let (first, c) = (channel / block * self.taps.div_ceil(4), channel % block);
        let (vector, lane) = (c % 16 / 4, c / 16 * 4 + c % 4);
        let (four, at) = if self.by_column { (tap % 3, tap / 3) } else { (tap / 4, tap % 4) };
        (((first + four) * 4 + vector) * self.lanes + lane) * 4 + at
    }

    pub fn at(&self, channel: usize, tap: usize) -> W {
        self.data.as_slice::<W>()[self.index(channel, tap)]
    }

    /// Whether lines of `width` pixels may be read without the column of padding on each side of them, at stride one.
    pub fn pads(&self, width: usize) -> bool {
        self.lanes > 0 && self.by_column && (self.copies == 1 || self.copies == 2 && width.is_multiple_of(2))
    }

    /// Whether nothing is read past the channels of the last pixel of lines for which [`Lanes::pads`], where [`Store::rows_are_one`].
    pub fn reads_no_further(&self) -> bool {
        (self.channels * self.copies).is_multiple_of(4 * self.lanes)
    }

    /// Whether windows `step` pixels apart in lines of `width` pixels of output may be read from codes that are
    /// [`permute`](super::ingest::permute)d: every channel is in a block of whole groups of them, or in one of two pixels.
    pub fn takes_permuted(&self, step: usize, width: usize) -> bool {
        let block = 4 * self.lanes;
        self.lanes > 0
            && self.by_column
            && step <= 2
            && self.channels.is_multiple_of(PERMUTED_GROUP)
            && (self.channels.is_multiple_of(block) || width > 1)
    }

    /// `[taps][channels]`, and a vector more, where taps do not go in fours.
    pub fn by_tap(&self) -> &[W] {
        debug_assert_eq!(self.lanes, 0);
        self.data.as_slice()
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes() + self.col_sums.len() * size_of::<i32>()
    }
}

/// A depthwise convolution over a padded workspace that has every channel once per output channel.
pub struct DepthwiseProduct<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub simd: S,
    pub lhs: *const D::Lhs,
    pub pixels: Pixels,
    pub images: usize,
    /// Where each tap lies.
    pub taps: &'a [Segment],
    pub weights: &'a Lanes<D::Weight>,
    pub start: Start<'a>,
    pub store: T,
    pub dst: *mut T::Element,
    /// What is left and right of each line, a column on either side, where that is not in memory: see [`Lanes::pads`].
    pub pad: Option<D::Lhs>,
    /// Whether the codes are permuted, as [`Lanes::takes_permuted`] lets them be, for a stage that is [`Store::permuted`].
    pub permuted: bool,
}

// SAFETY: threads read `lhs` and write disjoint rows of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for DepthwiseProduct<'_, S, D, T> {}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> DepthwiseProduct<'_, S, D, T> {
    /// All pixels, on at most `threads` threads.
    ///
    /// # Safety
    /// - each pixel is readable at every tap, for the channels and 64 bytes more;
    /// - where there is a `pad`, the columns left and right of each line need not be readable; then [`Lanes::pads`] says so of these lines,
    ///   whose windows are one pixel apart, and nothing need be readable past the last pixel of all where [`Lanes::reads_no_further`] and
    ///   [`Store::rows_are_one`] say so;
    /// - codes are `permuted` only where [`Lanes::takes_permuted`] says so of these lines, there is no `pad`, and [`Store::permuted`] gives
    ///   columns to the stage of each image;
    /// - there are as many taps as in the weights;
    /// - `start` and the stage have an element for each image, and one for each channel;
    /// - nobody else reads or writes `dst`, which has a row of `channels` elements for each pixel.
    pub unsafe fn run(&self, threads: usize) {
        let m = self.images * self.pixels.out_h * self.pixels.out_w;
        // A product costs about eight times one of a dense convolution.
        let parts = threads::parts(threads, 8 * m * self.weights.channels * self.taps.len(), GRAIN);
        if parts <= 1 {
            // SAFETY: the caller's promise.
            return unsafe { self.here() };
        }
        if D::QUADS && self.weights.lanes > 0 {
            // SAFETY: the caller's promise; ranges of lines are disjoint rows of `dst`.
            threads::share(self.images * self.pixels.out_h, parts, 4, |part, lines| unsafe { self.part(part).lines(lines) });
        } else {
            // SAFETY: the caller's promise; ranges of tiles are disjoint rows of `dst`.
            threads::share(m.div_ceil(MR), parts, 4, |part, tiles| unsafe { self.part(part).block(tiles, m) });
        }
    }

    /// All pixels, here and now.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::run`].
    pub unsafe fn here(&self) {
        let m = self.images * self.pixels.out_h * self.pixels.out_w;
        // SAFETY: the caller's promise.
        unsafe {
            if D::QUADS && self.weights.lanes > 0 {
                self.lines(0..self.images * self.pixels.out_h)
            } else {
                self.block(0..m.div_ceil(MR), m)
            }
        }
    }

    /// The same for one part of the work.
    fn part(&self, part: usize) -> Self {
        let &DepthwiseProduct { simd, lhs, pixels, images, taps, weights, start, store, dst, pad, permuted } = self;
        DepthwiseProduct { simd, lhs, pixels, images, taps, weights, start, store: store.part(part), dst, pad, permuted }
    }

    /// Tiles of pixels, taps one after the other.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::run`]; nobody else writes these tiles.
    unsafe fn block(&self, tiles: Range<usize>, pixels: usize) {
        let channels = self.weights.channels;
        let rows = Rows::Pixels(self.pixels);
        let (mut offsets, mut params) = ([0; ROWS], [0; ROWS]);
        let (mut m, end) = (tiles.start * MR, (tiles.end * MR).min(pixels));
        while m < end {
            // A last short tile goes pixel by pixel: rare, and fewer tiles to compile.
            let mr = if end - m >= MR { MR } else { 1 };
            rows.fill(m, &mut offsets[..mr], &mut params);
            for n in (0..channels).step_by(2 * S::LANES) {
                let columns = (channels - n).min(2 * S::LANES);
                let col_sums = &self.weights.col_sums;
                let tile = LaneTile::<S, D, T> {
                    lhs: self.lhs.wrapping_add(n),
                    offsets: &offsets,
                    params: &params,
                    taps: self.taps,
                    weights: self.weights.data.as_slice::<D::Weight>()[n..].as_ptr(),
                    channels,
                    start: self.start,
                    col_sums: if col_sums.is_empty() { col_sums.as_ptr() } else { col_sums[n..].as_ptr() },
                    store: self.store,
                    m: self.pixels.first_row + m,
                    n,
                    columns,
                    dst: self.dst.wrapping_add(m * channels + n),
                    dst_stride: channels,
                };
                // SAFETY: rows, stage and `dst` by the caller's promise; weights have 64 bytes of slack behind the last.
                unsafe { self.simd.lane_tile(mr, columns.div_ceil(S::LANES), &tile) }
            }
            m += mr;
        }
    }
}
