//! Grouped convolution with narrow groups: a vector's lanes are output channels of several groups, and each lane takes the word
//! of its own group, which a permutation brings there. A panel of each group alone would leave most lanes empty.

use std::ops::Range;

use super::dot::Dot;
use super::geometry::Conv2dGeometry;
use super::memory::Aligned;
use super::output::{Place, Store};
use super::pack::PanelLayout;
use super::product::{GRAIN, Rows};
use super::simd::{Element, Simd};
use super::threads;
use super::tile::{ROWS, Segment, Start, first, unroll};

/// Pixels of a tile.
const MR: usize = 8;

/// Weights `[vector][tap][word][LANES][KU]`, and where each lane finds its word.
#[derive(Debug, Clone)]
pub struct GroupedLanes<W> {
    data: Aligned,
    /// `[vector][word][LANES]`: words after the vector's first channel.
    index: Box<[u8]>,
    /// First input channel of each vector.
    first: Box<[u32]>,
    lanes: usize,
    /// Channels of a word.
    ku: usize,
    taps: usize,
    /// Words of a group's input channels.
    words: usize,
    channels: usize,
    /// Sum of each channel's weights. Empty for floats.
    col_sums: Box<[i32]>,
    weight: std::marker::PhantomData<W>,
}

impl<W: Element> GroupedLanes<W> {
    /// Whether the geometry suits these lanes: groups of whole words, so few channels that a vector of outputs reads at most a vector of
    /// inputs, and more than one group to a vector.
    pub fn suits(layout: PanelLayout, geometry: &Conv2dGeometry) -> bool {
        let [outputs, inputs] = [geometry.out_channels, geometry.in_channels].map(|channels| channels / geometry.groups);
        if !layout.groups
            || geometry.groups == 1
            || u32::try_from(geometry.in_channels).is_err()
            || inputs % layout.ku != 0
            || outputs >= layout.lanes
        {
            return false;
        }
        (0..geometry.out_channels).step_by(layout.lanes).all(|first| {
            let last = (first + layout.lanes - 1).min(geometry.out_channels - 1);
            (last / outputs - first / outputs + 1) * inputs / layout.ku <= layout.lanes
        })
    }

    /// Packs weights `[out_channels][taps][channels of a group]`.
    pub fn pack(layout: PanelLayout, geometry: &Conv2dGeometry, weights: &[W]) -> Self {
        let (lanes, channels) = (layout.lanes, geometry.out_channels);
        let (outputs, inputs) = (channels / geometry.groups, geometry.in_channels / geometry.groups);
        let ku = layout.ku;
        let (taps, words, vectors) = (geometry.k() / inputs, inputs / ku, channels.div_ceil(lanes));
        let group = |channel: usize| channel.min(channels - 1) / outputs;
        let first: Box<[u32]> = (0..vectors).map(|v| (group(v * lanes) * inputs) as u32).collect();
        let index = (0..vectors * words * lanes).map(|i| {
            let (v, word, lane) = (i / (words * lanes), i / lanes % words, i % lanes);
            ((group(v * lanes + lane) - group(v * lanes)) * words + word) as u8
        });
        let mut packed = GroupedLanes {
            index: index.collect(),
            data: Aligned::zeroed::<W>(vectors * taps * words * lanes * ku),
            first,
            lanes,
            ku,
            taps,
            words,
            channels,
            col_sums: if W::SUMMED { weights.chunks_exact(geometry.k()).map(W::sum).collect() } else { Box::default() },
            weight: std::marker::PhantomData,
        };
        let mut data = std::mem::take(&mut packed.data);
        let memory = data.grow::<W>(vectors * taps * words * lanes * ku);
        for (i, &weight) in weights.iter().enumerate() {
            memory[packed.position(i / geometry.k(), i % geometry.k())] = weight;
        }
        packed.data = data;
        packed
    }

    /// Where the weight of a channel at a step of k lies.
    fn position(&self, channel: usize, step: usize) -> usize {
        let (vector, lane) = (channel / self.lanes, channel % self.lanes);
        ((vector * self.taps * self.words + step / self.ku) * self.lanes + lane) * self.ku + step % self.ku
    }

    /// The weight of a channel at a step of k: taps, then channels of its group.
    pub fn at(&self, channel: usize, step: usize) -> W {
        self.data.as_slice::<W>()[self.position(channel, step)]
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes() + (self.col_sums.len() + self.index.len()) * size_of::<i32>() + self.first.len() * size_of::<usize>()
    }
}

/// A grouped convolution over a padded workspace.
pub struct GroupedProduct<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub simd: S,
    pub lhs: *const D::Lhs,
    pub rows: Rows,
    pub m: usize,
    /// Where each tap lies.
    pub taps: &'a [Segment],
    pub weights: &'a GroupedLanes<D::Weight>,
    pub start: Start<'a>,
    pub store: T,
    pub dst: *mut T::Element,
}

// SAFETY: threads read `lhs` and write disjoint rows of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for GroupedProduct<'_, S, D, T> {}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> GroupedProduct<'_, S, D, T> {
    /// All pixels, on at most `threads` threads.
    ///
    /// # Safety
    /// - [`Dot::GROUPS`], and the weights were packed for these lanes;
    /// - row `m` of `rows` is readable at every tap, for all channels and 64 bytes more;
    /// - there are as many taps as in the weights;
    /// - `start` and the stage have an element for each parameter that `rows` names, and one for each channel;
    /// - nobody else reads or writes `dst`, which has `m` rows of `channels` elements.
    pub unsafe fn run(&self, threads: usize) {
        let w = self.weights;
        let parts = threads::parts(threads, 2 * self.m * w.channels * w.taps * w.words * w.ku, GRAIN);
        // SAFETY: the caller's promise; ranges of tiles are disjoint rows of `dst`.
        threads::share(self.m.div_ceil(MR), parts, 4, |part, tiles| unsafe { self.block(self.store.part(part), tiles) });
    }

    /// # Safety
    /// As for [`GroupedProduct::run`]; nobody else writes these tiles.
    unsafe fn block(&self, store: T, tiles: Range<usize>) {
        let (mut offsets, mut params) = ([0; ROWS], [0; ROWS]);
        for m in tiles.map(|tile| tile * MR) {
            let mr = (self.m - m).min(MR);
            self.rows.fill(m, &mut offsets[..mr], &mut params);
            // A short tile computes its last pixel again in place of those that are missing.
            for i in mr..MR {
                (offsets[i], params[i]) = (offsets[mr - 1], params[mr - 1]);
            }
            // SAFETY: the caller's promise.
            self.simd.vectorize(
                #[inline(always)]
                || unsafe { self.tile(store, m, mr, &offsets, &params) },
            );
        }
    }

    /// `mr` pixels, all channels.
    ///
    /// # Safety
    /// As for [`GroupedProduct::run`]; `offsets` and `params` of [`MR`] pixels.
    #[inline(always)]
    unsafe fn tile(&self, store: T, m: usize, mr: usize, offsets: &[usize; ROWS], params: &[usize; ROWS]) {
        let (simd, w) = (self.simd, self.weights);
        let rows = first(params);
        for (v, &first) in w.first.iter().enumerate() {
            let n = v * S::LANES;
            let columns = (w.channels - n).min(S::LANES);
            // SAFETY: these columns exist; each pixel is readable for a vector of words from the group's first channel on, and the
            // weights and indices are those of this vector.
            unsafe {
                let mut acc =
                    D::start::<MR, 1>(simd, &self.start, (self.rows.first() + m, &rows), w.col_sums.as_ptr().wrapping_add(n), (n, columns));
                let mut weights = w.data.as_slice::<D::Weight>().as_ptr().add(v * w.taps * w.words * S::LANES * D::KU);
                for tap in self.taps {
                    for word in 0..w.words {
                        let index = simd.load_bytes(w.index.as_ptr().add((v * w.words + word) * S::LANES), S::LANES);
                        let lanes = D::weights(simd, weights);
                        for i in 0..MR {
                            let words = D::group_words(simd, self.lhs.add(offsets[i] + tap.offset + first as usize), index);
                            acc[i][0] = D::dot(simd, acc[i][0], words, lanes);
                        }
                        weights = weights.add(S::LANES * D::KU);
                    }
                }
                let stage = [store.columns(simd, n, columns)];
                let dst = self.dst.add(m * w.channels + n);
                unroll!(M < MR, {
                    if M < mr {
                        let place = Place { row: self.rows.first() + m + M, column: n, columns };
                        store.store(simd, &stage, [rows[M % MR]], [acc[M % MR]], place, dst.add(M * w.channels), 0);
                    }
                });
            }
        }
    }
}
