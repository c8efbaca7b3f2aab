//! Grouped convolution with as many outputs as inputs to a group, four or eight: each lane keeps the word of activations that
//! lies there, and takes the weights of one output of its group after the other. Where [`super::grouped`] permutes activations for each
//! product, here sums are turned once, when they are all there.

use std::ops::Range;

use super::dot::Dot;
use super::geometry::Conv2dGeometry;
use super::memory::Aligned;
use super::output::{Destinations, NOTHING, Place, Store};
use super::pack::PanelLayout;
use super::product::{GRAIN, Pixels};
use super::simd::{Element, Simd};
use super::threads;
use super::tile::{Segment, Start, unroll};

/// Pixels of a tile: sixteen sums, beside four vectors of weights and one of activations. Six were 3 to 10 % slower on Zen 4.
const MR: usize = 4;

/// Activations of a word.
const KU: usize = 4;

/// Weights `[block][four outputs of a group][tap][output of the four][LANES][KU]`, where a block is `4 * LANES` channels, and a lane is a
/// word of a group's inputs.
#[derive(Debug, Clone)]
pub struct GroupedWords<W> {
    data: Aligned,
    lanes: usize,
    taps: usize,
    /// Channels of a group.
    group: usize,
    channels: usize,
    /// Sum of each channel's weights.
    col_sums: Box<[i32]>,
    weight: std::marker::PhantomData<W>,
}

impl<W: Element> GroupedWords<W> {
    /// Whether the geometry suits: more than half a block. Of groups of sixteen the sums are turned so often that a panel of each is as
    /// fast.
    pub fn suits(layout: PanelLayout, geometry: &Conv2dGeometry) -> bool {
        let [outputs, inputs] = [geometry.out_channels, geometry.in_channels].map(|channels| channels / geometry.groups);
        layout.quads && geometry.groups > 1 && outputs == inputs && [4, 8].contains(&inputs) && geometry.out_channels > 2 * layout.lanes
    }

    /// Packs weights `[out_channels][taps][channels of a group]`.
    pub fn pack(layout: PanelLayout, geometry: &Conv2dGeometry, weights: &[W]) -> Self {
        let (lanes, channels) = (layout.lanes, geometry.out_channels);
        let group = channels / geometry.groups;
        let taps = geometry.k() / group;
        let len = channels.next_multiple_of(4 * lanes) * group * taps;
        let mut packed = GroupedWords {
            data: Aligned::zeroed::<W>(len),
            lanes,
            taps,
            group,
            channels,
            col_sums: weights.chunks_exact(geometry.k()).map(W::sum).collect(),
            weight: std::marker::PhantomData,
        };
        let mut data = std::mem::take(&mut packed.data);
        let memory = data.grow::<W>(len);
        for (i, &weight) in weights.iter().enumerate() {
            memory[packed.position(i / geometry.k(), i % geometry.k())] = weight;
        }
        packed.data = data;
        packed
    }

    /// Where the weight of a channel at a step of k lies.
    fn position(&self, channel: usize, step: usize) -> usize {
        let (lanes, group, block) = (self.lanes, self.group, 4 * self.lanes);
        let (output, input, tap) = (channel % group, step % group, step / group);
        let lane = channel % block / group * (group / KU) + input / KU;
        let vector = ((channel / block * (group / 4) + output / 4) * self.taps + tap) * 4 + output % 4;
        (vector * lanes + lane) * KU + input % KU
    }

    /// The weight of a channel at a step of k: taps, then channels of its group.
    pub fn at(&self, channel: usize, step: usize) -> W {
        self.data.as_slice::<W>()[self.position(channel, step)]
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes() + self.col_sums.len() * size_of::<i32>()
    }
}

/// A grouped convolution over a padded workspace.
pub struct GroupedWordsProduct<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub simd: S,
    pub lhs: *const D::Lhs,
    pub pixels: Pixels,
    pub images: usize,
    /// Where each tap lies.
    pub taps: &'a [Segment],
    pub weights: &'a GroupedWords<D::Weight>,
    pub start: Start<'a>,
    pub store: T,
    pub dst: *mut T::Element,
}

// SAFETY: threads read `lhs` and write disjoint rows of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for GroupedWordsProduct<'_, S, D, T> {}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> GroupedWordsProduct<'_, S, D, T> {
    /// All pixels, on at most `threads` threads.
    ///
    /// # Safety
    /// - [`Dot::QUADS`], and the weights were packed for these lanes;
    /// - each pixel is readable at every tap, for the channels and 64 bytes more;
    /// - there are as many taps as in the weights;
    /// - `start` and the stage have an element for each image, and one for each channel;
    /// - nobody else reads or writes `dst`, which has a row of `channels` elements for each pixel.
    pub unsafe fn run(&self, threads: usize) {
        let (w, pixels) = (self.weights, self.pixels.out_h * self.pixels.out_w);
        let parts = threads::parts(threads, self.images * pixels * w.channels * w.taps * w.group, GRAIN);
        let of_image = pixels.div_ceil(MR);
        threads::share(self.images * of_image, parts, 4, |part, tiles| {
            let (store, mut tile) = (self.store.part(part), tiles.start);
            while tile < tiles.end {
                let (image, first) = (tile / of_image, tile % of_image);
                let count = (tiles.end - tile).min(of_image - first);
                for channel in (0..w.channels).step_by(4 * S::LANES) {
                    // SAFETY: the caller's promise; ranges of tiles are disjoint rows of `dst`.
                    self.simd.vectorize(
                        #[inline(always)]
                        || unsafe {
                            match w.group / 4 {
                                1 => self.block::<1>(store, image, first..first + count, channel),
                                _ => self.block::<2>(store, image, first..first + count, channel),
                            }
                        },
                    );
                }
                tile += count;
            }
        });
    }

    /// A block of channels in some tiles of an image, of groups that have `WORDS` words.
    ///
    /// # Safety
    /// As for [`GroupedWordsProduct::run`]; nobody else writes these tiles.
    #[inline(always)]
    unsafe fn block<const WORDS: usize>(&self, store: T, image: usize, tiles: Range<usize>, channel: usize) {
        let (simd, w, pixels) = (self.simd, self.weights, self.pixels.out_h * self.pixels.out_w);
        let columns = (w.channels - channel).min(4 * S::LANES);
        let lanes = |v: usize| (columns - v * S::LANES).min(S::LANES);
        let params = [self.pixels.first_image + image];
        // SAFETY: the vectors up to `columns` exist, and the weights have as many blocks as the channels.
        let (stage, start, weights) = unsafe {
            let sums = |v: usize| w.col_sums.as_ptr().add(channel + v * S::LANES);
            let mut stage = [store.columns(simd, channel, lanes(0)); 4];
            let mut start = [D::start::<1, 1>(simd, &self.start, (0, &params), sums(0), (channel, lanes(0)))[0][0]; 4];
            for v in 1..columns.div_ceil(S::LANES) {
                let c = channel + v * S::LANES;
                stage[v] = store.columns(simd, c, lanes(v));
                start[v] = D::start::<1, 1>(simd, &self.start, (0, &params), sums(v), (c, lanes(v)))[0][0];
            }
            let weights = w.data.as_slice::<D::Weight>().as_ptr().add(channel * w.group * w.taps);
            (stage, T::interleaved_start(simd, start), weights)
        };
        let interleaved = store.interleaved(simd, &stage);
        let Pixels { out_w, step_x, step_y, image: step_image, first_row, .. } = self.pixels;
        let first = tiles.start * MR;
        let (mut x, mut line) = (first % out_w, image * step_image + first / out_w * step_y);
        for tile in tiles {
            let (m, mr) = (image * pixels + tile * MR, (pixels - tile * MR).min(MR));
            let mut offsets = [line + x * step_x; MR];
            for i in 0..MR {
                // A short tile computes its last pixel again in place of those that are missing.
                if i < mr {
                    offsets[i] = line + x * step_x;
                    x += 1;
                    if x == out_w {
                        // A stride beyond the image is never taken, however large.
                        (x, line) = (0, line.wrapping_add(step_y));
                    }
                } else {
                    offsets[i] = offsets[i - 1];
                }
            }
            // SAFETY: the caller's promise.
            let sums = unsafe { self.tile::<WORDS>(&offsets, channel, weights) };
            let (place, dst) = (Place { row: first_row + m, column: channel, columns }, self.dst.wrapping_add(m * w.channels + channel));
            // SAFETY: the caller's promise on the stage and `dst`.
            unsafe {
                if let Some(interleaved) = &interleaved {
                    unroll!(I < MR, {
                        if I < mr {
                            let mut acc = sums[I % MR];
                            for v in 0..4 {
                                acc[v] = D::add(simd, acc[v], start[v]);
                            }
                            let place = Place { row: place.row + I, ..place };
                            let to = Destinations::One(dst.wrapping_add(I * w.channels));
                            store.store_interleaved::<NOTHING>(simd, interleaved, acc, place, to);
                        }
                    });
                    continue;
                }
                for i in 0..mr {
                    let mut acc = sums[i];
                    for v in 0..4 {
                        acc[v] = D::add(simd, acc[v], start[v]);
                    }
                    let acc = T::natural(simd, acc);
                    for v in 0..columns.div_ceil(S::LANES) {
                        let place = Place { row: place.row + i, column: channel + v * S::LANES, columns: lanes(v) };
                        let dst = dst.wrapping_add(i * w.channels + v * S::LANES);
                        store.store(simd, &[stage[v]], params, [[acc[v]]], place, dst, 0);
                    }
                }
            }
        }
    }

    /// The sums of a block of channels at [`MR`] pixels, in the order of [`Simd::interleave`], without what they start from.
    ///
    /// # Safety
    /// As for [`GroupedWordsProduct::run`]; `weights` are those of the block.
    #[inline(always)]
    unsafe fn tile<const WORDS: usize>(&self, offsets: &[usize; MR], channel: usize, mut weights: *const D::Weight) -> [[D::Acc; 4]; MR] {
        let simd = self.simd;
        let mut sums = [[D::zero(simd); 4]; MR];
        for four in 0..WORDS {
            let mut acc = [[D::zero(simd); 4]; MR];
            for tap in self.taps {
                // SAFETY: there are four vectors of weights for each tap, and pixels are readable there for a vector from this channel on.
                unsafe {
                    let mut w = [D::weights(simd, weights); 4];
                    for j in 1..4 {
                        w[j] = D::weights(simd, weights.add(j * S::LANES * KU));
                    }
                    for i in 0..MR {
                        let words = D::words(simd, self.lhs.add(offsets[i] + tap.offset + channel));
                        for j in 0..4 {
                            acc[i][j] = D::dot(simd, acc[i][j], words, w[j]);
                        }
                    }
                    weights = weights.add(4 * S::LANES * KU);
                }
            }
            for i in 0..MR {
                // Lane `l` of the turned vector `v` is output `l % 4` of the four, in the word that was lane `l / 4 * 4 + v`.
                let [a, b, c, d] = D::turn(simd, acc[i]);
                match WORDS {
                    1 => sums[i] = [a, b, c, d],
                    _ => (sums[i][four % 2], sums[i][2 + four % 2]) = (D::add(simd, a, b), D::add(simd, c, d)),
                }
            }
        }
        sums
    }
}
