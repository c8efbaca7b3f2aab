//! Depthwise convolution: each lane is a channel. Where the instruction set sums four products a lane, taps go in fours, interleaved
//! byte by byte; elsewhere, and for floats, they go one after the other.

use std::ops::Range;

use super::dot::Dot;
use super::geometry::Conv2dGeometry;
use super::memory::Aligned;
use super::output::{Place, Store};
use super::pack::PanelLayout;
use super::product::{GRAIN, Pixels, Rows};
use super::simd::{Element, Simd};
use super::threads;
use super::tile::{LaneTile, ROWS, Segment, Start};

/// Rows of a depthwise tile.
const MR: usize = 4;

/// Pixels of a block of channels before the next block: some more than make up for what a block needs to begin with.
const RUN_PIXELS: usize = 64;

/// Weights `[taps][channels]`, or, in fours of taps, `[block of channels][taps / 4][4][LANES][4]`.
#[derive(Debug, Clone)]
pub struct Lanes<W> {
    data: Aligned,
    taps: usize,
    channels: usize,
    /// How often the channels stand in a block, where a block is that many pixels.
    copies: usize,
    /// Lanes of a vector where taps go in fours, else 0.
    lanes: usize,
    /// Whether the fours are columns of a kernel of three rows and columns, whose words serve all windows that they are in.
    by_column: bool,
    /// Sum of each channel's weights. Empty for floats.
    col_sums: Box<[i32]>,
    weight: std::marker::PhantomData<W>,
}

impl<W: Element> Lanes<W> {
    /// Packs the weights of a depthwise convolution, `[channels][taps]`.
    pub fn pack(layout: PanelLayout, geometry: &Conv2dGeometry, weights: &[W]) -> Self {
        let (taps, channels, block) = (geometry.k(), geometry.out_channels, 4 * layout.lanes);
        // Few channels leave room for several pixels in a block, if those lie one after the other as their channels do.
        let side_by_side = geometry.stride[1] == 1 && channels.is_multiple_of(layout.lanes) && block.is_multiple_of(channels);
        let copies = if layout.quads && side_by_side { block / channels } else { 1 };
        // Less than half a block is better off tap by tap.
        let lanes = if layout.quads && 2 * channels * copies >= block { layout.lanes } else { 0 };
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
        }
        packed.data = data;
        packed
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
}

// SAFETY: threads read `lhs` and write disjoint rows of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for DepthwiseProduct<'_, S, D, T> {}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> DepthwiseProduct<'_, S, D, T> {
    /// All pixels, on at most `threads` threads.
    ///
    /// # Safety
    /// - each pixel is readable at every tap, for the channels and 64 bytes more;
    /// - there are as many taps as in the weights;
    /// - `start` and the stage have an element for each image, and one for each channel;
    /// - nobody else reads or writes `dst`, which has a row of `channels` elements for each pixel.
    pub unsafe fn run(&self, threads: usize) {
        let m = self.images * self.pixels.out_h * self.pixels.out_w;
        // A product costs about eight times one of a dense convolution.
        let parts = threads::parts(threads, 8 * m * self.weights.channels * self.taps.len(), GRAIN);
        if D::QUADS && self.weights.lanes > 0 {
            // SAFETY: the caller's promise; ranges of lines are disjoint rows of `dst`.
            threads::share(self.images * self.pixels.out_h, parts, 4, |part, lines| unsafe { self.part(part).lines(lines) });
        } else {
            // SAFETY: the caller's promise; ranges of tiles are disjoint rows of `dst`.
            threads::share(m.div_ceil(MR), parts, 4, |part, tiles| unsafe { self.part(part).block(tiles, m) });
        }
    }

    /// The same for one part of the work.
    fn part(&self, part: usize) -> Self {
        let &DepthwiseProduct { simd, lhs, pixels, images, taps, weights, start, store, dst } = self;
        DepthwiseProduct { simd, lhs, pixels, images, taps, weights, start, store: store.part(part), dst }
    }

    /// Lines of output pixels, taps in fours: some lines of a block of channels before the next block, as what a block needs to begin with
    /// takes as long as several pixels.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::run`]; nobody else writes these lines.
    unsafe fn lines(&self, lines: Range<usize>) {
        let Pixels { out_h, out_w, step_x, step_y, image, first_row, first_image } = self.pixels;
        let (channels, block) = (self.weights.channels, 4 * S::LANES);
        let run_of = RUN_PIXELS.div_ceil(out_w.max(1));
        let mut line = lines.start;
        while line < lines.end {
            let (i, y) = (line / out_h, line % out_h);
            let count = run_of.min(lines.end - line).min(out_h - y);
            let lhs = self.lhs.wrapping_add(i * image + y * step_y);
            let dst = self.dst.wrapping_add(line * out_w * channels);
            let run = |first: usize, columns: usize, blocks: usize, step: usize, dst_step: usize| {
                let run = Run {
                    lhs: lhs.wrapping_add(first),
                    image: first_image + i,
                    row: first_row + line * out_w,
                    first,
                    columns,
                    blocks,
                    step,
                    dst_step,
                    lines: count,
                    line_step: step_y,
                    out_w,
                };
                // SAFETY: the caller's promise on these lines and these channels.
                unsafe { self.blocks(run, dst.wrapping_add(first)) }
            };
            if self.weights.copies > 1 && self.store.rows_are_one() {
                // A line as one row, a block after the other, each some pixels.
                let (len, whole) = (out_w * channels, out_w * channels / block);
                run(0, block, whole, block, block);
                if len % block > 0 {
                    run(whole * block, len % block, 1, 0, 0);
                }
            } else {
                for first in (0..channels).step_by(block) {
                    run(first, (channels - first).min(block), out_w, step_x, channels);
                }
            }
            line += count;
        }
    }

    /// # Safety
    /// As for [`DepthwiseProduct::run`], for the blocks of this run.
    unsafe fn blocks(&self, run: Run<D::Lhs>, dst: *mut T::Element) {
        let simd = self.simd;
        let columns = run.columns.min(self.weights.channels * self.weights.copies);
        simd.vectorize(
            #[inline(always)]
            || {
                // SAFETY: the caller's promise.
                unsafe {
                    match columns.div_ceil(S::LANES) {
                        1 => self.quads::<1>(run, dst),
                        2 => self.quads::<2>(run, dst),
                        3 => self.quads::<3>(run, dst),
                        _ => self.quads::<4>(run, dst),
                    }
                }
            },
        )
    }

    /// A block of channels of some lines, in `NV` vectors of columns.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::blocks`].
    #[inline(always)]
    unsafe fn quads<const NV: usize>(&self, mut line: Run<D::Lhs>, mut dst: *mut T::Element) {
        let (simd, w) = (self.simd, self.weights);
        let block = 4 * S::LANES;
        // Channel of a column: the copies of few channels come round again.
        let channel = |column: usize| if w.copies > 1 { column % w.channels } else { column };
        let params = [line.image; 1];
        let lanes = |v: usize| (line.columns - v * S::LANES).min(S::LANES);
        // SAFETY: `columns` exist, and vectors of copies start at whole vectors of channels.
        unsafe {
            let first = channel(line.first);
            let mut columns = [self.store.columns(simd, first, lanes(0)); NV];
            let sums = |c: usize| w.col_sums.as_ptr().add(c);
            let mut start = [D::start::<1, 1>(simd, &self.start, (0, &params), sums(first), (first, lanes(0)))[0][0]; 4];
            for v in 1..NV {
                let c = channel(line.first + v * S::LANES);
                columns[v] = self.store.columns(simd, c, lanes(v));
                start[v] = D::start::<1, 1>(simd, &self.start, (0, &params), sums(c), (c, lanes(v)))[0][0];
            }
            let start = T::interleaved_start(simd, start);
            // Of columns that are not there, whatever comes out is not stored.
            let all = [columns[0], columns[1 % NV], columns[2 % NV], columns[3 % NV]];
            let interleaved = self.store.interleaved(simd, &all);
            let first_block = if w.copies > 1 { 0 } else { line.first / block };
            let weights = w.data.as_slice::<D::Weight>().as_ptr().add(first_block * w.taps.div_ceil(4) * 4 * block);
            let stage = Finish { columns: &columns, interleaved: &interleaved, start, params };
            let column = if w.by_column { self.taps[1].offset - self.taps[0].offset } else { 0 };
            for _ in 0..line.lines {
                if !w.by_column {
                    self.any_taps(&line, &stage, weights, dst);
                } else if line.step == column {
                    self.columns::<NV, 2, false>(&line, &stage, weights, dst)
                } else if line.step == 2 * column && line.step == block {
                    self.columns::<NV, 1, true>(&line, &stage, weights, dst)
                } else if line.step == 2 * column {
                    self.columns::<NV, 1, false>(&line, &stage, weights, dst)
                } else {
                    self.columns::<NV, 0, false>(&line, &stage, weights, dst)
                }
                line.lhs = line.lhs.wrapping_add(line.line_step);
                line.row += line.out_w;
                dst = dst.wrapping_add(line.out_w * w.channels);
            }
        }
    }

    /// Blocks along a line, taps in fours as they come.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::blocks`]; `weights` are those of the block, packed so.
    #[inline(always)]
    unsafe fn any_taps<const NV: usize>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, D::Acc, T::Columns, NV>,
        weights: *const D::Weight,
        dst: *mut T::Element,
    ) {
        let step = 16 * S::LANES;
        let taps = self.taps;
        let full = taps.len() / 4;
        for x in 0..line.blocks {
            let lhs = line.lhs.wrapping_add(x * line.step);
            let mut acc = stage.start;
            // SAFETY: the caller's promise; `taps` has `4 * full + rest` elements.
            unsafe {
                let tap = |t: usize| lhs.add(taps.get_unchecked(t).offset);
                for q in 0..full {
                    D::quad::<4>(self.simd, &mut acc, [tap(4 * q), tap(4 * q + 1), tap(4 * q + 2), tap(4 * q + 3)], weights.add(q * step));
                }
                let (t, weights) = (4 * full, weights.add(full * step));
                match taps.len() % 4 {
                    1 => D::quad::<1>(self.simd, &mut acc, [tap(t)], weights),
                    2 => D::quad::<2>(self.simd, &mut acc, [tap(t), tap(t + 1)], weights),
                    3 => D::quad::<3>(self.simd, &mut acc, [tap(t), tap(t + 1), tap(t + 2)], weights),
                    _ => {}
                }
                self.finish(line, stage, x, acc, dst);
            }
        }
    }

    /// Blocks along a line, three columns of three taps; the last `REUSE` columns of a window are the first of the next. Where `HALVES`, a
    /// column is half a block wide: the middle one is the second half of the first block and the first of the last.
    ///
    /// Unpacking is what bounds a depthwise kernel: a column is unpacked once, not in each of the windows that it is in.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::blocks`]; `weights` are those of the block, packed by column.
    #[inline(always)]
    unsafe fn columns<const NV: usize, const REUSE: usize, const HALVES: bool>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, D::Acc, T::Columns, NV>,
        weights: *const D::Weight,
        dst: *mut T::Element,
    ) {
        if line.blocks == 0 {
            return;
        }
        let simd = self.simd;
        // SAFETY: the caller's promise: nine taps are readable for a block after each window's start, and there are twelve vectors of
        // weights.
        unsafe {
            let mut words = [D::interleave(simd, self.column(line.lhs, 0)); 3];
            if REUSE == 2 {
                words[1] = D::interleave(simd, self.column(line.lhs, 1));
            }
            for x in 0..line.blocks {
                let lhs = line.lhs.wrapping_add(x * line.step);
                let mut acc = stage.start;
                if HALVES {
                    words[2] = D::interleave(simd, self.column(lhs, 2));
                    for j in 0..4 {
                        words[1][j] = D::halves(simd, words[0][j], words[2][j]);
                    }
                }
                for c in 0..3 {
                    if c >= REUSE && !HALVES {
                        words[c] = D::interleave(simd, self.column(lhs, c));
                    }
                    // Weights stay in memory: with them the registers would not do, and what is spilled to the stack is not aligned.
                    for j in 0..4 {
                        acc[j] = D::dot(simd, acc[j], words[c][j], D::weights(simd, weights.add((4 * c + j) * S::LANES * D::KU)));
                    }
                }
                self.finish(line, stage, x, acc, dst);
                for c in 0..REUSE {
                    words[c] = words[c + 3 - REUSE];
                }
            }
        }
    }

    /// The taps of column `c` in the window at `lhs`.
    ///
    /// # Safety
    /// There are nine taps, readable after `lhs`.
    #[inline(always)]
    unsafe fn column(&self, lhs: *const D::Lhs, c: usize) -> [*const D::Lhs; 3] {
        // SAFETY: the caller's promise.
        unsafe {
            let tap = |t: usize| lhs.add(self.taps.get_unchecked(t).offset);
            [tap(c), tap(3 + c), tap(6 + c)]
        }
    }

    /// Hands the sums of block `x` of a line to the output stage.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::blocks`].
    #[inline(always)]
    unsafe fn finish<const NV: usize>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, D::Acc, T::Columns, NV>,
        x: usize,
        acc: [D::Acc; 4],
        dst: *mut T::Element,
    ) {
        let at = dst.wrapping_add(x * line.dst_step);
        let place = match line.dst_step == self.weights.channels {
            true => Place { row: line.row + x, column: line.first, columns: line.columns },
            false => Place { row: line.row, column: line.first + x * line.dst_step, columns: line.columns },
        };
        // SAFETY: the caller's promise on the stage and `dst`.
        unsafe {
            match stage.interleaved {
                Some(columns) => self.store.store_interleaved(self.simd, columns, acc, place, at),
                None => {
                    let acc = T::natural(self.simd, acc);
                    let mut row = [acc[0]; NV];
                    // Not `copy_from_slice`, which was a call, with all registers saved around it.
                    #[allow(clippy::manual_memcpy)]
                    for v in 1..NV {
                        row[v] = acc[v];
                    }
                    self.store.store(self.simd, stage.columns, stage.params, [row], place, at, 0);
                }
            }
        }
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

/// What the blocks of a line have in common: what their sums start from, and the parameters of the stage.
struct Finish<'a, A, C, const NV: usize> {
    columns: &'a [C; NV],
    interleaved: &'a Option<[C; 4]>,
    start: [A; 4],
    params: [usize; 1],
}

/// A block of channels along some lines of output pixels.
#[derive(Clone, Copy)]
struct Run<L> {
    /// The first pixel's first channel of the block.
    lhs: *const L,
    image: usize,
    /// First pixel, of all images.
    row: usize,
    /// First channel (of the line taken as one row, where channels are copied).
    first: usize,
    /// Channels of a block that are written.
    columns: usize,
    /// Blocks of a line.
    blocks: usize,
    /// Elements from a block to the next one.
    step: usize,
    dst_step: usize,
    lines: usize,
    /// Elements from a line's first block to that of the next line.
    line_step: usize,
    /// Output pixels of a line.
    out_w: usize,
}
