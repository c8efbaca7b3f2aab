//! Depthwise convolution: each lane is a channel, taps one after the other.

use std::ops::Range;

use super::dot::Dot;
use super::output::Store;
use super::product::{GRAIN, Rows};
use super::simd::{Element, Simd};
use super::threads;
use super::tile::{LaneTile, ROWS, Segment, Start};
use super::workspace::Aligned;

/// Rows of a depthwise tile.
const MR: usize = 4;

/// Weights `[taps][channels]`.
#[derive(Debug, Clone)]
pub struct Lanes<W> {
    data: Aligned,
    channels: usize,
    /// Sum of each channel's weights. Empty for floats.
    col_sums: Box<[i32]>,
    weight: std::marker::PhantomData<W>,
}

impl<W: Element> Lanes<W> {
    /// Packs `at(channel, tap)`.
    pub fn pack(channels: usize, taps: usize, at: impl Fn(usize, usize) -> W) -> Self {
        let mut data = Aligned::zeroed::<W>(channels * taps);
        for (i, weight) in data.grow::<W>(channels * taps)[..channels * taps].iter_mut().enumerate() {
            *weight = at(i % channels, i / channels);
        }
        let mut lanes = Lanes { data, channels, col_sums: Box::default(), weight: std::marker::PhantomData };
        if W::SUMMED {
            let column = |c: usize| (0..taps).map(|t| W::sum(&[lanes.at(c, t)])).sum();
            lanes.col_sums = (0..channels).map(column).collect();
        }
        lanes
    }

    pub fn at(&self, channel: usize, tap: usize) -> W {
        self.data.as_slice::<W>()[tap * self.channels + channel]
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes() + self.col_sums.len() * size_of::<i32>()
    }
}

/// A depthwise convolution over a padded workspace that has every channel once per output channel.
pub struct DepthwiseProduct<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub simd: S,
    pub lhs: *const D::Lhs,
    pub rows: Rows,
    pub m: usize,
    /// Where each tap lies.
    pub taps: &'a [Segment],
    pub weights: &'a Lanes<D::Weight>,
    pub start: Start<'a>,
    pub store: T,
    pub dst: *mut T::Element,
}

// SAFETY: threads read `lhs` and write disjoint rows of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for DepthwiseProduct<'_, S, D, T> {}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> DepthwiseProduct<'_, S, D, T> {
    /// All tiles, on at most `threads` threads.
    ///
    /// # Safety
    /// - row `m` of `rows` is readable at every tap, for the channels and 64 bytes more;
    /// - there are as many taps as in the weights;
    /// - `start` and the stage have an element for each parameter that `rows` names, and one for each channel;
    /// - nobody else reads or writes `dst`, which has `m` rows of `channels` elements.
    pub unsafe fn run(&self, threads: usize) {
        let tiles = self.m.div_ceil(MR);
        // A product costs about eight times one of a dense convolution.
        let parts = threads::parts(threads, 8 * self.m * self.weights.channels * self.taps.len(), GRAIN);
        // SAFETY: the caller's promise; ranges of tiles are disjoint rows of `dst`.
        threads::split(tiles, parts, |tiles| unsafe { self.block(tiles) });
    }

    /// # Safety
    /// As for [`DepthwiseProduct::run`]; nobody else writes these tiles.
    unsafe fn block(&self, tiles: Range<usize>) {
        let channels = self.weights.channels;
        let (mut offsets, mut params) = ([0; ROWS], [0; ROWS]);
        for m in tiles.map(|tile| tile * MR) {
            let mr = (self.m - m).min(MR);
            self.rows.fill(m, mr, &mut offsets, &mut params);
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
                    m,
                    n,
                    columns,
                    dst: self.dst.wrapping_add(m * channels + n),
                    dst_stride: channels,
                };
                // SAFETY: rows, stage and `dst` by the caller's promise; weights have 64 bytes of slack behind the last.
                unsafe { self.simd.lane_tile(mr, columns.div_ceil(S::LANES), &tile) }
            }
        }
    }
}
