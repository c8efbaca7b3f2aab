//! Depthwise convolutions line by line: what is under a window stays in the first-level cache, or is read where it is.

use std::ops::Range;

use super::conv_weights::Packed;
use super::depthwise::DepthwiseProduct;
use super::dot::Dot;
use super::ingest::Fill;
use super::output::Store;
use super::product::Pixels;
use super::simd::{Element, Simd};
use super::strips::{Convolution, TAPS};
use super::tile::{Segment, Start};

/// Pixels of a line, and lines, from which on images are read without their padding: the lines at the top and the bottom are made as ever,
/// which in images of 7 x 7 takes longer than what it saves.
const UNPADDED: usize = 12;

/// Where a line's pixels are read.
#[derive(Clone, Copy)]
struct Taps {
    at: [Segment; TAPS],
    count: usize,
}

/// The same over lines that go round.
struct TurningTaps {
    taps: Taps,
    /// Which line of the window each is in, and what it has before it there.
    lines: [(usize, usize); TAPS],
    /// Lines that go round, and the elements of each.
    height: usize,
    row: usize,
}

impl TurningTaps {
    fn new(segments: &[Segment], height: usize, row: usize) -> TurningTaps {
        let mut lines = [(0, 0); TAPS];
        for (line, tap) in lines.iter_mut().zip(segments) {
            *line = (tap.offset / row, tap.offset % row);
        }
        TurningTaps { taps: Taps::over(segments, row, |down| down * row), lines, height, row }
    }

    /// Those of the window whose first line is in place `first`.
    fn starting_at(&mut self, first: usize) -> &[Segment] {
        for (tap, (down, before)) in self.taps.at[..self.taps.count].iter_mut().zip(&self.lines) {
            // Neither is as large as the height: no division, which takes longer than a few pixels.
            let line = first + down;
            tap.offset = (if line < self.height { line } else { line - self.height }) * self.row + before;
        }
        self.taps.get()
    }
}

impl Taps {
    /// Taps over lines of `row` elements, as they lie over lines that `line` tells the start of.
    fn over(segments: &[Segment], row: usize, line: impl Fn(usize) -> usize) -> Taps {
        let mut at = [Segment { offset: 0, words: 0 }; TAPS];
        for (at, tap) in at.iter_mut().zip(segments) {
            *at = Segment { offset: line(tap.offset / row) + tap.offset % row, words: tap.words };
        }
        Taps { at, count: segments.len() }
    }

    fn get(&self) -> &[Segment] {
        &self.at[..self.count]
    }
}

/// Images whose inner pixels are read where they are. Copying all lines takes a quarter of the time of a layer of stride 2. At stride 1 it
/// was faster with a copy, from which the windows of three lines read, than with what these edges cost; but see [`Convolution::unpadded`].
pub(super) struct InPlace<'a, L> {
    source: &'a [L],
    /// Elements of an input line.
    row: usize,
    /// Output pixels of a line under whose windows is no padding.
    inner: Range<usize>,
    taps: Taps,
    /// The pixels left and right of them.
    edges: [Edge; 2],
}

/// Pixels of a line whose windows reach into padding.
struct Edge {
    /// Output pixels.
    pixels: Range<usize>,
    /// Columns of the padded image under them.
    columns: Range<usize>,
    taps: Taps,
}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Convolution<'_, S, D, T> {
    /// Output lines one after the other, of all images. Input lines go round: each takes the place of one that is no longer needed.
    ///
    /// # Safety
    /// As for [`Convolution::run`]; nobody else writes these lines. There are at most [`TAPS`] segments.
    pub(super) unsafe fn lines(
        &self,
        (part, range): (usize, Range<usize>),
        memory: &mut [D::Lhs],
        (fill, source): (Fill<'_, D::Lhs>, Option<&[D::Lhs]>),
        segments: &[Segment],
    ) {
        let (row, geometry) = (self.padded.row(), self.geometry);
        let (height, step) = (geometry.height(), geometry.stride[0]);
        let store = self.store.part(part);
        let in_place = source.and_then(|source| self.in_place(source, segments));
        let unpadded = source.and_then(|source| Some((source, self.unpadded(source)?)));
        let mut taps = TurningTaps::new(segments, height, row);
        // The lines that are there, of which image.
        let mut there = (usize::MAX, 0..0);
        let mut next = range.start;
        while next < range.end {
            let (line, image, y) = (next, next / self.out[0], next % self.out[0]);
            if let Some((source, inner)) = &unpadded
                && inner.contains(&y)
            {
                let count = (range.end - line).min(inner.end - y);
                // SAFETY: the caller's promise; these are inner lines.
                unsafe { self.lines_in_place(store, source, (image, y, count), segments) }
                next += count;
                continue;
            }
            next += 1;
            let needed = y * step..y * step + height;
            // Tiles read a little past what is under a window: there must be a line after it.
            let inside = self.padded.top..self.padded.top + self.padded.input[0] - usize::from(self.padded.input[0] > 0);
            if let Some(in_place) = &in_place
                && inside.start <= needed.start
                && needed.end <= inside.end
            {
                // SAFETY: the caller's promise; no window reaches above or below the image, and a line follows.
                unsafe { self.line_in_place(store, in_place, (image, y), memory) }
                there.0 = usize::MAX;
                continue;
            }
            let from = if there.0 == image { there.1.end.max(needed.start) } else { needed.start };
            for y in from..needed.end {
                fill(image, y, &mut memory[y % height * row..][..row]);
            }
            let turned = taps.starting_at(needed.start % height);
            there = (image, needed);
            // SAFETY: the lines under the window are there, and slack behind them; the rest is the caller's promise.
            unsafe { self.pixels(store, memory.as_ptr(), Lines::one(image, y, 0..self.out[1]), turned) }
        }
    }

    /// The output lines whose windows are inside of the image but for a column left and right of it, which the kernel knows, where it does.
    pub(super) fn unpadded(&self, source: &[D::Lhs]) -> Option<Range<usize>> {
        let (padded, geometry) = (self.padded, self.geometry);
        let Packed::Depthwise(weights) = &self.weights.packed else { return None };
        let [h, w] = padded.input;
        let whole = source.len() == padded.images * h * w * padded.channels;
        let same = geometry.kernel == [3, 3] && geometry.stride == [1, 1] && geometry.dilation == [1, 1] && self.out == padded.input;
        if !(D::QUADS
            && h.min(w) >= UNPADDED
            && whole
            && same
            && padded.repeat == 1
            && (padded.top, padded.left) == (1, 1)
            && weights.pads(w))
        {
            return None;
        }
        // Tiles may read a little past what is under a window: then there must be a line after it.
        let further = !(weights.reads_no_further() && self.store.rows_are_one());
        Some(1..h - 1 - usize::from(further))
    }

    /// `count` lines of an image from `y` on.
    ///
    /// # Safety
    /// As for [`Convolution::run`]; nobody else writes these lines, which are of those that [`Convolution::unpadded`] gave for `source`.
    unsafe fn lines_in_place(&self, store: T, source: &[D::Lhs], (image, y, count): (usize, usize, usize), segments: &[Segment]) {
        let ([h, w], channels) = (self.padded.input, self.padded.channels);
        let row = w * channels;
        // One pixel to the left of the line above.
        let lhs = source.as_ptr().wrapping_add((image * h + y - 1) * row).wrapping_sub(channels);
        let taps = Taps::over(segments, self.padded.row(), |down| down * row);
        let lines = Lines { image, y, count, pixels: 0..w, step_y: row, pad: Some(D::Lhs::from_unsigned(self.start.zero.get(image))) };
        // SAFETY: the lines above and below are there, and another one after them unless nothing is read further; the rest is the caller's
        // promise.
        unsafe { self.pixels(store, lhs, lines, taps.get()) }
    }

    /// How inner pixels are read where they are, if that is worth it.
    pub(super) fn in_place<'a>(&self, source: &'a [D::Lhs], segments: &[Segment]) -> Option<InPlace<'a, D::Lhs>> {
        let (padded, geometry) = (self.padded, self.geometry);
        let ([_, w], out_w, step) = (padded.input, self.out[1], geometry.stride[1]);
        let (row, columns) = (w * padded.channels, geometry.dilation[1].checked_mul(geometry.kernel[1] - 1)? + 1);
        let first = padded.left.div_ceil(step);
        // The last window that ends with the image.
        let end = ((padded.left + w).checked_sub(columns)? / step + 1).min(out_w);
        let whole = source.len() == padded.images * padded.input[0] * row;
        if geometry.stride == [1, 1] || !whole || padded.repeat != 1 || end < first + out_w / 2 || row * size_of::<D::Lhs>() < 64 {
            return None;
        }
        let under = |pixels: Range<usize>| match pixels.is_empty() {
            true => 0..0,
            false => pixels.start * step..(pixels.end - 1) * step + columns,
        };
        let edge = |pixels: Range<usize>| {
            let columns = under(pixels.clone());
            let wide = columns.len() * padded.channels;
            Edge { pixels, taps: Taps::over(segments, padded.row(), |down| down * wide), columns }
        };
        let edges = [edge(0..first), edge(end..out_w)];
        // Nor where a window lies in padding alone.
        if edges[0].columns.len() + edges[1].columns.len() > padded.width || edges[0].columns.end < padded.left {
            return None;
        }
        Some(InPlace { source, row, inner: first..end, taps: Taps::over(segments, padded.row(), |down| down * row), edges })
    }

    /// A line under whose windows is no padding above or below: its inner pixels in place, those at the edges over copies of what is under
    /// them.
    ///
    /// # Safety
    /// As for [`Convolution::run`]; nobody else writes this line. The input lines under it are there, and another one after them.
    unsafe fn line_in_place(&self, store: T, in_place: &InPlace<'_, D::Lhs>, (image, y): (usize, usize), mut memory: &mut [D::Lhs]) {
        let (padded, geometry) = (self.padded, self.geometry);
        let ([h, w], channels, step) = (padded.input, padded.channels, geometry.stride[1]);
        let first = (image * h + y * geometry.stride[0] - padded.top) * in_place.row;
        let lhs = in_place.source[first + (in_place.inner.start * step - padded.left) * channels..].as_ptr();
        // SAFETY: the windows of the inner pixels are inside the image.
        unsafe { self.pixels(store, lhs, Lines::one(image, y, in_place.inner.clone()), in_place.taps.get()) }
        for edge in in_place.edges.iter().filter(|edge| !edge.pixels.is_empty()) {
            let wide = edge.columns.len() * channels;
            let lines = &mut memory[..geometry.height() * wide];
            // Those of them that are inside the image.
            let inside = edge.columns.start.max(padded.left)..edge.columns.end.min(padded.left + w);
            let pad = D::Lhs::from_unsigned(self.start.zero.get(image));
            for (i, line) in lines.chunks_exact_mut(wide).enumerate() {
                let (left, rest) = line.split_at_mut((inside.start - edge.columns.start) * channels);
                let (body, right) = rest.split_at_mut(inside.len() * channels);
                let from = first + i * in_place.row + (inside.start - padded.left) * channels;
                body.copy_from_slice(&in_place.source[from..][..inside.len() * channels]);
                left.fill(pad);
                right.fill(pad);
            }
            // SAFETY: the copy has what is under the edge, and there is slack behind it, as both are not longer than the lines of a window.
            unsafe { self.pixels(store, memory.as_ptr(), Lines::one(image, y, edge.pixels.clone()), edge.taps.get()) }
            memory = &mut memory[geometry.height() * wide..];
        }
    }

    /// Some pixels of some lines, of which `lhs` is the start of the first one's window.
    ///
    /// # Safety
    /// As for [`Convolution::run`], for these pixels; nobody else writes them. Their windows lie at `taps` over `lhs`, each pixel as often
    /// as the workspace repeats its channels, and are as [`DepthwiseProduct::run`] asks.
    unsafe fn pixels(&self, store: T, lhs: *const D::Lhs, lines: Lines<D::Lhs>, taps: &[Segment]) {
        let (padded, geometry) = (self.padded, self.geometry);
        let Packed::Depthwise(weights) = &self.weights.packed else { unreachable!("only depthwise convolutions go line by line") };
        let Lines { image, y, count, pixels, step_y, pad } = lines;
        let first_row = (image * self.out[0] + y) * self.out[1] + pixels.start;
        let step_x = geometry.stride[1].wrapping_mul(padded.channels * padded.repeat);
        let product = DepthwiseProduct::<S, D, T> {
            simd: self.simd,
            lhs,
            pixels: Pixels { out_h: count, out_w: pixels.len(), step_x, step_y, image: 0, first_row, first_image: image },
            images: 1,
            taps,
            weights,
            start: Start { zero: self.start.zero.only(image), ..self.start },
            store: store.only(image),
            dst: self.dst.wrapping_add(first_row * geometry.out_channels),
            pad,
            permuted: self.permuted,
        };
        // SAFETY: the caller's promise.
        unsafe { product.here() }
    }
}

/// Pixels of output lines.
struct Lines<L> {
    image: usize,
    y: usize,
    count: usize,
    /// All of a line where there are several.
    pixels: Range<usize>,
    /// Elements from a line's windows to the next one's.
    step_y: usize,
    /// What is left and right of each line, where it is not in memory.
    pad: Option<L>,
}

impl<L> Lines<L> {
    fn one(image: usize, y: usize, pixels: Range<usize>) -> Self {
        Lines { image, y, count: 1, pixels, step_y: 0, pad: None }
    }
}
