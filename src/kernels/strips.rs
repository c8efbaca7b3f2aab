//! The loops of a convolution: strips of output lines, whose input lines are made just before they are read and stay in the cache.

use std::ops::Range;

use super::conv_weights::{ConvWeights, Packed};
use super::depthwise::DepthwiseProduct;
use super::dot::Dot;
use super::geometry::{Conv2dGeometry, Padded};
use super::grouped::GroupedProduct;
use super::grouped_words::GroupedWordsProduct;
use super::ingest::{self, Fill};
use super::memory::Aligned;
use super::output::Store;
use super::pack::Panels;
use super::product::{GRAIN, Pixels, Product, RUNS, Rows};
use super::simd::Simd;
use super::threads::{self, Disjoint, Phase};
use super::tile::{Segment, Start};

/// Bytes of input lines under a strip: a quarter of a common second-level cache, since a dense convolution reads its weights as often as
/// there are strips.
const STRIP_BYTES: usize = 256 * 1024;

/// Bytes of weights up to which strips are of [`SHORT_ELEMENTS`], as reading them again takes nothing.
const FEW_WEIGHTS: usize = 32 * 1024;

/// Elements of the input lines under such a strip: reading floats for the next strip and writing those of this one take turns. Alone, made
/// into codes, 16 to 96 channels at 112 x 112 took 222 microseconds so and 275 as one strip, 64 to 256 at 56 x 56 302 and 308.
const SHORT_ELEMENTS: usize = 64 * 1024;

/// Bytes of weights that leave no room in that cache for strips, or for weights that are read again: more lines stay there instead.
const LARGE_WEIGHTS: usize = 1 << 20;

/// The same for a convolution in narrow groups or of each channel by itself, whose weights are few. Where taps go in fours a block of channels
/// is read at a time, of which all lines of a window stay in a first-level cache; that all channels' do is not worth beginning with a block
/// more often: in strips of 32 KB, dynamic depthwise convolutions took up to a quarter longer. Where they do not it makes no odds, 2 to 3 %.
const GROUPED_BYTES: usize = 128 * 1024;

/// Output pixels of a run of a thread, at least.
const RUN_PIXELS: usize = 192;

/// Bytes of images that are made whole for a depthwise convolution; larger ones may go line by line, which keeps what is under a window in the
/// first-level cache.
const SMALL_BYTES: usize = 8 * 1024;

/// Pixels of an output line from which on they do, where taps go one after the other, or lines are read in place at strides above one: a
/// short line is soon done with a block of channels.
const LONG_LINE: usize = 48;

/// Most taps of a kernel that goes line by line.
pub(super) const TAPS: usize = 64;

/// Elements between the lines of two threads, which tiles may read past the last.
const SLACK: usize = 64;

/// Where the activations of a convolution are.
pub(super) enum Activations<'a, L> {
    /// Padded images, as the tiles read them.
    InPlace(&'a [L]),
    /// Nowhere yet: lines are made when they are needed. `source` are the images without padding, if they are NHWC and tiles can read them.
    Lines { fill: Fill<'a, L>, memory: &'a mut Aligned, source: Option<&'a [L]> },
}

/// A convolution of images that tiles can read, or whose lines can be made so.
pub(super) struct Convolution<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub simd: S,
    pub weights: &'a ConvWeights<D::Weight>,
    /// What runs, over `padded`: see [`ConvWeights::running`].
    pub geometry: &'a Conv2dGeometry,
    pub padded: &'a Padded,
    pub out: [usize; 2],
    pub start: Start<'a>,
    pub store: T,
    pub dst: *mut T::Element,
    /// See [`DepthwiseProduct::permuted`].
    pub permuted: bool,
}

// SAFETY: threads write disjoint lines of `dst`, which outlives the call that borrows it.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for Convolution<'_, S, D, T> {}

/// Output lines of an image, or whole images, whose input lines lie in memory from `lhs` on.
struct Strip<L> {
    lhs: *const L,
    images: Range<usize>,
    lines: Range<usize>,
}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Convolution<'_, S, D, T> {
    /// All images.
    ///
    /// # Safety
    /// Images in place are the padded ones, with 64 bytes more unless every run of k is a whole number of words of a dense
    /// convolution; lines are `permuted` only as [`DepthwiseProduct::run`] asks; `start` and the stage fit the images and the output channels; `dst` has all pixels of all channels, and nobody
    /// else uses it.
    pub unsafe fn run(&self, lhs: Activations<'_, D::Lhs>, segments: &mut Vec<Segment>, threads: usize) {
        let padded = self.padded;
        self.geometry.segments(padded, D::KU, segments);
        let (fill, memory, source) = match lhs {
            Activations::InPlace(lhs) => {
                assert!(lhs.len() >= padded.len(), "the padded images are there");
                // SAFETY: the caller's promise.
                return unsafe { self.whole(lhs.as_ptr(), segments, threads) };
            }
            Activations::Lines { fill, memory, source } => (fill, memory, source),
        };
        let long = self.out[1] >= LONG_LINE;
        let in_place = |source| self.unpadded(source).is_some() || long && self.in_place(source, segments).is_some();
        let by_line = match &self.weights.packed {
            // Else every line is made, some at a time: beginning with a block of channels in each line took up to a seventh longer.
            Packed::Depthwise(lanes) if lanes.in_fours() => segments.len() <= TAPS && source.is_some_and(in_place),
            Packed::Depthwise(_) => segments.len() <= TAPS && long,
            _ => false,
        };
        let (bytes, runs) = match &self.weights.packed {
            Packed::Depthwise(_) | Packed::Grouped(_) | Packed::GroupedWords(_) => (GROUPED_BYTES, RUNS),
            Packed::Panels(panels) => {
                let weights = panels.groups() * panels.group_len() * size_of::<D::Weight>();
                let bytes = if weights <= FEW_WEIGHTS {
                    SHORT_ELEMENTS * size_of::<D::Lhs>()
                } else if weights <= LARGE_WEIGHTS {
                    STRIP_BYTES
                } else {
                    4 * STRIP_BYTES
                };
                (bytes, if weights > STRIP_BYTES { 1 } else { RUNS })
            }
        };
        let strips = match by_line && padded.len() * size_of::<D::Lhs>() > SMALL_BYTES {
            true => Strips::lines(self.geometry, padded, self.out, threads::parts(threads, self.work(), GRAIN)),
            false => Strips::new(self.geometry, padded, self.out, bytes / size_of::<D::Lhs>(), (threads, runs), self.work()),
        };
        if strips.count <= 1 {
            // SAFETY: the caller's promise; the memory has slack behind its last element.
            return unsafe { self.filled(memory.grow(padded.len()), fill, segments, threads) };
        }
        let (parts, size) = (strips.parts, (strips.elements + SLACK).next_multiple_of(64));
        let memory = Disjoint::new(memory.grow(parts * size));
        threads::share(strips.count, parts, RUNS, |part, range| {
            // SAFETY: no two runs at a time are of the same part of the work, which has its own part of the memory.
            let lines = unsafe { memory.part(part * size..(part + 1) * size) };
            // SAFETY: the caller's promise; ranges of strips are disjoint lines of `dst`.
            unsafe {
                if strips.ring {
                    self.lines((part, range), lines, (fill, source), segments)
                } else {
                    self.part(&strips, (part, range), lines, fill, segments)
                }
            }
        });
    }

    /// All images, in a workspace of all their lines.
    ///
    /// # Safety
    /// As for [`Convolution::run`], with slack behind the workspace.
    unsafe fn filled(&self, memory: &mut [D::Lhs], fill: Fill<'_, D::Lhs>, segments: &[Segment], threads: usize) {
        let padded = self.padded;
        let whole = |lhs| Strip { lhs, images: 0..padded.images, lines: 0..self.out[0] };
        let Packed::Panels(panels) = &self.weights.packed else {
            let lhs = ingest::images(padded, memory, threads, fill);
            // SAFETY: the caller's promise.
            return unsafe { self.strip(self.store, whole(lhs.as_ptr()), segments, threads) };
        };
        let lines = ingest::Lines::new(padded, memory);
        let product = self.product(panels, self.laid(self.store, whole(lines.as_ptr())), segments);
        let cut = product.cut(threads);
        let filling = Phase { items: lines.count(), runs: RUNS };
        threads::phases([filling, cut.phase], cut.parts.max(lines.parts(threads)), |phase, part, range| match phase {
            // SAFETY: runs of a phase are disjoint.
            0 => unsafe { lines.fill(range, fill) },
            // SAFETY: nobody writes lines any more, `output_size` keeps every window inside of them, and runs are disjoint; no two at a time
            // are of the same part, of which there are no more than threads; the rest is the caller's promise.
            _ => unsafe { product.piece(&cut, part, range) },
        });
    }

    /// The dense convolution of a strip, whose lines need not be there yet.
    fn product<'s>(
        &'s self,
        panels: &'s Panels<D::Weight>,
        laid: Laid<'s, D::Lhs, T, T::Element>,
        segments: &'s [Segment],
    ) -> Product<'s, S, D, T> {
        let (geometry, Laid { lhs, rows, m, start, store, dst, .. }) = (self.geometry, laid);
        let group_step = geometry.in_channels / geometry.groups;
        let dst_stride = geometry.out_channels;
        Product { simd: self.simd, lhs, rows, m, segments, group_step, panels, start, store, dst, dst_stride }
    }

    /// About how many products of a dense convolution would take as long.
    fn work(&self) -> usize {
        let geometry = self.geometry;
        let [_, channels, kh, kw] = geometry.weight_shape();
        let products = (self.padded.images * self.out[0] * self.out[1] * geometry.out_channels).saturating_mul(channels * kh * kw);
        match self.weights.packed {
            Packed::Panels(_) => products,
            Packed::Depthwise(_) => products.saturating_mul(8),
            Packed::Grouped(_) => products.saturating_mul(2),
            Packed::GroupedWords(_) => products,
        }
    }

    /// Strips one after the other.
    ///
    /// # Safety
    /// As for [`Convolution::run`]; nobody else writes the lines of these strips.
    unsafe fn part(
        &self,
        strips: &Strips,
        (part, range): (usize, Range<usize>),
        memory: &mut [D::Lhs],
        fill: Fill<'_, D::Lhs>,
        segments: &[Segment],
    ) {
        let (row, geometry) = (self.padded.row(), self.geometry);
        let (height, step) = (geometry.height(), geometry.stride[0]);
        // The lines that are there, of which image.
        let mut there = (usize::MAX, 0..0);
        for strip in range {
            let (images, lines) = strips.strip(strip);
            let first = lines.start * step;
            let needed = first..(lines.end - 1) * step + height;
            for image in images.clone() {
                let memory = &mut memory[(image - images.start) * self.padded.height * row..];
                let mut from = needed.start;
                if there.0 == image && there.1.contains(&first) {
                    memory.copy_within((first - there.1.start) * row..there.1.len() * row, 0);
                    from = there.1.end;
                }
                for y in (from..needed.end).filter(|y| (y - first) % step < height) {
                    fill(image, y, &mut memory[(y - first) * row..][..row]);
                }
            }
            there = (images.end - 1, needed);
            if images.len() > 1 {
                there.0 = usize::MAX;
            }
            // SAFETY: the lines under the strip are there, and slack behind them; the rest is the caller's promise.
            unsafe { self.strip(self.store.part(part), Strip { lhs: memory.as_ptr(), images, lines }, segments, 1) }
        }
    }

    /// # Safety
    /// As for [`Convolution::run`], with the padded images at `lhs`.
    unsafe fn whole(&self, lhs: *const D::Lhs, segments: &[Segment], threads: usize) {
        let strip = Strip { lhs, images: 0..self.padded.images, lines: 0..self.out[0] };
        // SAFETY: the caller's promise.
        unsafe { self.strip(self.store, strip, segments, threads) }
    }

    /// # Safety
    /// As for [`Convolution::run`], for the images and lines of the strip: whole images where there are several.
    unsafe fn strip(&self, store: T, strip: Strip<D::Lhs>, segments: &[Segment], threads: usize) {
        if strip.images.is_empty() || strip.lines.is_empty() {
            return;
        }
        let (simd, laid) = (self.simd, self.laid(store, strip));
        match &self.weights.packed {
            // SAFETY: `output_size` keeps every window inside the padded image; the rest is the caller's promise.
            Packed::Panels(panels) => unsafe { self.product(panels, laid, segments).run(threads) },
            Packed::Grouped(lanes) => {
                let Laid { lhs, rows, m, start, store, dst, .. } = laid;
                let product = GroupedProduct::<S, D, T> { simd, lhs, rows, m, taps: segments, weights: lanes, start, store, dst };
                // SAFETY: as above; weights of groups are packed only where `GROUPS`.
                unsafe { product.run(threads) }
            }
            Packed::GroupedWords(weights) => {
                let Laid { lhs, pixels, images, start, store, dst, .. } = laid;
                let product = GroupedWordsProduct::<S, D, T> { simd, lhs, pixels, images, taps: segments, weights, start, store, dst };
                // SAFETY: as above; weights are packed so only where `QUADS`.
                unsafe { product.run(threads) }
            }
            Packed::Depthwise(lanes) => {
                let Laid { lhs, pixels, images, start, store, dst, .. } = laid;
                let (taps, weights, permuted) = (segments, lanes, self.permuted);
                let product =
                    DepthwiseProduct::<S, D, T> { simd, lhs, pixels, images, taps, weights, start, store, dst, pad: None, permuted };
                // SAFETY: as above.
                unsafe { product.run(threads) }
            }
        }
    }

    fn laid(&self, store: T, strip: Strip<D::Lhs>) -> Laid<'_, D::Lhs, T, T::Element> {
        let (geometry, Strip { lhs, images, lines }) = (self.geometry, strip);
        let [out_h, out_w] = self.out;
        let first_row = (images.start * out_h + lines.start) * out_w;
        let pixels = self.padded.pixels(geometry, [lines.len(), out_w], first_row, images.start);
        // One image has one zero point and one scale, which then need not be asked for in each row.
        let (start, store) = match images.len() {
            1 => (Start { zero: self.start.zero.only(images.start), ..self.start }, store.only(images.start)),
            _ => (self.start, store),
        };
        let rows = match images.len() == 1 && (lines.len() == 1 || pixels.step_y == out_w.wrapping_mul(pixels.step_x)) {
            true => Rows::Strided { stride: pixels.step_x, first: first_row },
            false => Rows::Pixels(pixels),
        };
        let dst = self.dst.wrapping_add(first_row * geometry.out_channels);
        Laid { lhs, pixels, images: images.len(), rows, m: images.len() * lines.len() * out_w, start, store, dst }
    }
}

/// A strip as kernels see it: pixels are their rows.
struct Laid<'a, L, T, E> {
    lhs: *const L,
    pixels: Pixels,
    images: usize,
    rows: Rows,
    m: usize,
    start: Start<'a>,
    store: T,
    dst: *mut E,
}

/// How images are cut into strips.
struct Strips {
    /// Images of a strip; 1 where images are cut.
    images: usize,
    /// All images.
    of: usize,
    /// Strips of an image, or of each group of images.
    cuts: usize,
    /// Output lines of an image.
    lines: usize,
    /// Strips in all.
    count: usize,
    /// Elements of the input lines of the largest strip.
    elements: usize,
    /// Threads.
    parts: usize,
    /// Whether a strip is one output line, and input lines go round.
    ring: bool,
}

impl Strips {
    /// Strips whose input lines are at most `budget` elements where a window allows it.
    fn new(
        geometry: &Conv2dGeometry,
        padded: &Padded,
        [out_h, out_w]: [usize; 2],
        budget: usize,
        (threads, runs): (usize, usize),
        work: usize,
    ) -> Strips {
        let row = padded.row();
        let image = padded.height * row;
        let whole = Strips {
            images: padded.images.max(1),
            of: padded.images,
            cuts: 1,
            lines: out_h,
            count: 1,
            elements: padded.len(),
            parts: 1,
            ring: false,
        };
        if padded.len() <= budget || out_h * out_w == 0 || row == 0 {
            return whole;
        }
        let parts = threads::parts(threads, work, GRAIN);
        if 2 * image <= budget {
            let images = (budget / image).min(padded.images.div_ceil(parts));
            let count = padded.images.div_ceil(images);
            return Strips { images, count, elements: images * image, parts: parts.min(count), ..whole };
        }
        let (height, step) = (geometry.height(), geometry.stride[0]);
        // Not fewer pixels than fill some tiles.
        let lines = ((budget / row).saturating_sub(height) / step + 1).max(48usize.div_ceil(out_w)).min(out_h);
        let mut cuts = out_h.div_ceil(lines);
        if parts > 1 {
            // As many as threads take turns at, of some squares of pixels each.
            cuts = cuts.max((parts * runs).div_ceil(padded.images).min(out_h * out_w / RUN_PIXELS));
        }
        if !padded.images.is_multiple_of(parts) {
            cuts = cuts.next_multiple_of(parts);
        }
        let cuts = cuts.min(out_h);
        let lines = out_h.div_ceil(cuts);
        let count = cuts * padded.images;
        Strips { images: 1, cuts, count, elements: ((lines - 1) * step + height) * row, parts: parts.min(count), ..whole }
    }

    /// Every output line by itself.
    fn lines(geometry: &Conv2dGeometry, padded: &Padded, [out_h, _]: [usize; 2], parts: usize) -> Strips {
        let count = padded.images * out_h;
        let elements = geometry.height() * padded.row();
        Strips { images: 1, of: padded.images, cuts: out_h, lines: out_h, count, elements, parts: parts.min(count), ring: true }
    }

    /// The images and lines of strip `strip`.
    fn strip(&self, strip: usize) -> (Range<usize>, Range<usize>) {
        let (group, cut) = (strip / self.cuts, strip % self.cuts);
        let images = group * self.images..((group + 1) * self.images).min(self.of);
        (images, self.lines * cut / self.cuts..self.lines * (cut + 1) / self.cuts)
    }
}
