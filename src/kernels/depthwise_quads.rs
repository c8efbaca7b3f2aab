//! Depthwise convolution where an instruction sums four products a lane: taps in fours, interleaved byte by byte.

use std::ops::Range;

use super::depthwise::DepthwiseProduct;
use super::dot::Dot;
use super::output::{Destinations, NOTHING, PERMUTED, PERMUTED_PLAIN, PLAIN, Place, Store, WHOLE};
use super::simd::Simd;

/// Pixels of a block of channels before the next block: what a block needs to begin with takes as long as several pixels. 64 took 2 to 7 %
/// longer, 256 up to 2 %.
const RUN_PIXELS: usize = 1024;

// Which of the three columns of a window are also columns of the next one, or halves of others: as a constant, for a loop of its own.

/// None: all are read for each window.
const APART: u8 = 0;
/// The second and the third are the first and the second of the next window, one column on.
const NEXT: u8 = 1;
/// The third is the first of the next window, two columns on.
const SECOND: u8 = 2;
/// As [`SECOND`], of two pixels one column apart: the middle column is the second pixel of the first column and the first one of the third.
const MIDDLE_BETWEEN: u8 = 3;
/// Of two pixels two columns apart: the third column is the second pixel of the first column and the first one of the next window's first.
const LAST_BETWEEN: u8 = 4;

/// What the blocks of a line have in common: what their sums start from, and the parameters of the stage.
struct Finish<'a, T, A, W, C, const NV: usize> {
    /// That of the run's image.
    store: T,
    columns: &'a [C; NV],
    /// Whether the stage takes sums in the order of `interleaved`.
    in_order: bool,
    interleaved: [C; 4],
    start: [A; 4],
    params: [usize; 1],
    /// The word of a column of padding, the same for all channels.
    pad: W,
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
    /// Two pixels a block, of up to half as many channels; else 1, also where few channels make a line one row of blocks.
    pixels: usize,
    /// Elements from a block's window to that of the next one, or to that of its second pixel.
    step: usize,
    /// Elements from a block to the next one.
    dst_step: usize,
    lines: usize,
    /// Elements from a line's first block to that of the next line.
    line_step: usize,
    /// Output pixels of a line.
    out_w: usize,
    /// Whether the first and the last window have a column of padding that is not in memory.
    pads: [bool; 2],
}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> DepthwiseProduct<'_, S, D, T> {
    /// Lines of output pixels: some lines of a block of channels ([`RUN_PIXELS`]) before the next block.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::run`]; nobody else writes these lines.
    pub(super) unsafe fn lines(&self, lines: Range<usize>) {
        let (out_h, out_w, pixels) = (self.pixels.out_h, self.pixels.out_w, self.pixels);
        let (channels, block) = (self.weights.channels, 4 * S::LANES);
        debug_assert!(out_w > 0 && (self.pad.is_none() || self.weights.pads(out_w)) && !(self.permuted && self.pad.is_some()));
        let run_of = RUN_PIXELS.div_ceil(out_w);
        let mut line = lines.start;
        while line < lines.end {
            let (i, y) = (line / out_h, line % out_h);
            let count = run_of.min(lines.end - line).min(out_h - y);
            let lhs = self.lhs.wrapping_add(i * pixels.image + y * pixels.step_y);
            let dst = self.dst.wrapping_add(line * out_w * channels);
            let whole = Run {
                lhs,
                image: pixels.first_image + i,
                row: pixels.first_row + line * out_w,
                first: 0,
                columns: block,
                blocks: out_w,
                pixels: 1,
                step: pixels.step_x,
                dst_step: channels,
                lines: count,
                line_step: pixels.step_y,
                out_w,
                pads: [self.pad.is_some(); 2],
            };
            // SAFETY: the caller's promise on these lines and the channels of each run.
            let run = |run: Run<D::Lhs>, at: usize| unsafe { self.blocks(run, dst.wrapping_add(at)) };
            if self.weights.copies > 1 && self.store.rows_are_one() {
                // A line as one row, a block after the other, each some pixels.
                let (len, blocks) = (out_w * channels, out_w * channels / block);
                run(Run { blocks, step: block, dst_step: block, ..whole }, 0);
                if len % block > 0 && self.permuted {
                    // Some pixels once more, the same as before: what is permuted has whole blocks alone.
                    let row = whole.row + out_w - self.weights.copies;
                    run(Run { lhs: lhs.wrapping_add(len - block), row, blocks: 1, ..whole }, len - block);
                } else if len % block > 0 {
                    let (lhs, first) = (lhs.wrapping_add(blocks * block), blocks * block);
                    run(Run { lhs, first, columns: len % block, blocks: 1, step: 0, dst_step: 0, ..whole }, first);
                }
            } else {
                for first in (0..channels).step_by(block) {
                    let columns = (channels - first).min(block);
                    let one = Run { lhs: lhs.wrapping_add(first), first, columns, ..whole };
                    if columns > block / 2 || self.weights.copies > 1 {
                        run(one, first);
                        continue;
                    }
                    let (twos, last) = (out_w / 2, out_w - 1);
                    let [left, right] = one.pads;
                    run(Run { blocks: twos, pixels: 2, dst_step: 2 * channels, pads: [left, right && out_w % 2 == 0], ..one }, first);
                    if out_w % 2 > 0 && self.permuted {
                        let lhs = one.lhs.wrapping_add((last - 1).wrapping_mul(pixels.step_x));
                        run(Run { lhs, row: one.row + last - 1, blocks: 1, pixels: 2, ..one }, first + (last - 1) * channels);
                    } else if out_w % 2 > 0 {
                        let (lhs, pads) = (one.lhs.wrapping_add(last.wrapping_mul(pixels.step_x)), [left && last == 0, right]);
                        run(Run { lhs, row: one.row + last, blocks: 1, pads, ..one }, first + last * channels);
                    }
                }
            }
            line += count;
        }
    }

    /// # Safety
    /// As for [`DepthwiseProduct::run`], for the blocks of this run.
    unsafe fn blocks(&self, run: Run<D::Lhs>, dst: *mut T::Element) {
        if run.blocks == 0 {
            return;
        }
        let simd = self.simd;
        simd.vectorize(
            #[inline(always)]
            || {
                // SAFETY: the caller's promise.
                unsafe {
                    match (run.columns.div_ceil(S::LANES), run.pixels) {
                        (1, 1) => self.quads::<1, false>(run, dst),
                        (2, 1) => self.quads::<2, false>(run, dst),
                        (3, 1) => self.quads::<3, false>(run, dst),
                        (_, 1) => self.quads::<4, false>(run, dst),
                        (1, _) => self.quads::<1, true>(run, dst),
                        _ => self.quads::<2, true>(run, dst),
                    }
                }
            },
        )
    }

    /// A block of channels of some lines, in `NV` vectors of columns, of two pixels where `TWO`.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::blocks`].
    #[inline(always)]
    unsafe fn quads<const NV: usize, const TWO: bool>(&self, mut line: Run<D::Lhs>, mut dst: *mut T::Element) {
        let (simd, w) = (self.simd, self.weights);
        let block = 4 * S::LANES;
        // Channel of a column: the copies of few channels come round again.
        let channel = |column: usize| if w.copies > 1 { column % w.channels } else { column };
        let (params, store) = ([line.image; 1], self.store.only(line.image));
        let lanes = |v: usize| (line.columns - v * S::LANES).min(S::LANES);
        let permuted;
        // SAFETY: `columns` exist, and vectors of copies start at whole vectors of channels.
        unsafe {
            let first = channel(line.first);
            let mut columns = [store.columns(simd, first, lanes(0)); NV];
            let sums = |c: usize| w.col_sums.as_ptr().add(c);
            let mut start = [D::start::<1, 1>(simd, &self.start, (0, &params), sums(first), (first, lanes(0)))[0][0]; 4];
            for v in 1..NV {
                let c = channel(line.first + v * S::LANES);
                columns[v] = store.columns(simd, c, lanes(v));
                start[v] = D::start::<1, 1>(simd, &self.start, (0, &params), sums(c), (c, lanes(v)))[0][0];
            }
            // Of columns that are not there, whatever comes out is not stored.
            let mut all = [columns[0], columns[1 % NV], columns[2 % NV], columns[3 % NV]];
            if TWO {
                (all[2], all[3]) = (all[0], all[1]);
                (start[2], start[3]) = (start[0], start[1]);
            }
            let first_block = if w.copies > 1 { 0 } else { line.first / block };
            let mut weights = w.data.as_slice::<D::Weight>().as_ptr().add(first_block * w.taps.div_ceil(4) * 4 * block);
            let interleaved = if self.permuted { store.permuted(simd, &all) } else { store.interleaved(simd, &all) };
            let whole = NV == if TWO { 2 } else { 4 } && line.columns == NV * S::LANES && interleaved.is_some();
            let known = match if whole { store.known() } else { NOTHING } {
                WHOLE if self.permuted => PERMUTED,
                PLAIN if self.permuted => PERMUTED_PLAIN,
                known => known,
            };
            let start = if self.permuted { T::permuted_start(simd, start) } else { T::interleaved_start(simd, start) };
            if self.permuted {
                assert!(known == PERMUTED || known == PERMUTED_PLAIN, "what is permuted has whole blocks, and a stage that takes them");
                permuted = PermutedWeights::new(simd, weights.cast());
                weights = permuted.0.as_ptr().cast();
            }
            let (in_order, interleaved) = (interleaved.is_some(), interleaved.unwrap_or(all));
            let pad = D::same_taps(simd, self.pad.unwrap_or_default());
            let stage = Finish { store, columns: &columns, in_order, interleaved, start, params, pad };
            for _ in 0..line.lines {
                match known {
                    PLAIN => self.line::<NV, TWO, PLAIN>(&line, &stage, weights, dst),
                    WHOLE => self.line::<NV, TWO, WHOLE>(&line, &stage, weights, dst),
                    PERMUTED => self.line::<NV, TWO, PERMUTED>(&line, &stage, weights, dst),
                    PERMUTED_PLAIN => self.line::<NV, TWO, PERMUTED_PLAIN>(&line, &stage, weights, dst),
                    _ => self.line::<NV, TWO, NOTHING>(&line, &stage, weights, dst),
                }
                line.lhs = line.lhs.wrapping_add(line.line_step);
                line.row += line.out_w;
                dst = dst.wrapping_add(line.out_w * w.channels);
            }
        }
    }

    /// Blocks along a line.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::blocks`]; `weights` are those of the block, and `KNOWN` is true of the stage.
    #[inline(always)]
    unsafe fn line<const NV: usize, const TWO: bool, const KNOWN: u8>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, T, D::Acc, D::Word, T::Columns, NV>,
        weights: *const D::Weight,
        dst: *mut T::Element,
    ) {
        // A stage is known only where all four vectors (two, where `TWO`) are whole: of others nothing of what follows is compiled.
        if KNOWN != NOTHING && NV != if TWO { 2 } else { 4 } {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if !self.weights.by_column {
                return self.any_taps::<NV, TWO, KNOWN>(line, stage, weights, dst);
            }
            let column = self.taps[1].offset - self.taps[0].offset;
            if TWO {
                if line.step == column {
                    self.columns::<NV, TWO, MIDDLE_BETWEEN, KNOWN>(line, stage, weights, dst)
                } else if line.step == 2 * column {
                    self.columns::<NV, TWO, LAST_BETWEEN, KNOWN>(line, stage, weights, dst)
                } else {
                    self.columns::<NV, TWO, APART, NOTHING>(line, stage, weights, dst)
                }
            } else if line.step == column {
                self.columns::<NV, TWO, NEXT, KNOWN>(line, stage, weights, dst)
            } else if line.step == 2 * column && line.step == 4 * S::LANES {
                self.columns::<NV, TWO, MIDDLE_BETWEEN, KNOWN>(line, stage, weights, dst)
            } else if line.step == 2 * column {
                self.columns::<NV, TWO, SECOND, KNOWN>(line, stage, weights, dst)
            } else {
                self.columns::<NV, TWO, APART, NOTHING>(line, stage, weights, dst)
            }
        }
    }

    /// The words of some taps of a block, or of its two pixels.
    ///
    /// # Safety
    /// `4 * LANES` elements are readable at each tap; where `TWO`, half as many there and `step` further on.
    #[inline(always)]
    unsafe fn words<const N: usize, const TWO: bool>(&self, taps: [*const D::Lhs; N], step: usize) -> [D::Word; 4] {
        // SAFETY: the caller's promise.
        unsafe { if TWO { D::interleave_two(self.simd, taps, step) } else { D::interleave(self.simd, taps) } }
    }

    /// The words of column `c` in the window at `lhs`.
    ///
    /// # Safety
    /// There are nine taps, as for [`DepthwiseProduct::words`].
    #[inline(always)]
    unsafe fn column<const TWO: bool>(&self, lhs: *const D::Lhs, c: usize, step: usize) -> [D::Word; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            // The window of a first pixel may start before its image, with a column that is not read.
            let tap = |t: usize| lhs.wrapping_add(self.taps.get_unchecked(t).offset);
            self.words::<3, TWO>([tap(c), tap(3 + c), tap(6 + c)], step)
        }
    }

    /// [`DepthwiseProduct::line`] with taps in fours as they come.
    ///
    /// # Safety
    /// As there; `weights` are packed so.
    #[inline(always)]
    unsafe fn any_taps<const NV: usize, const TWO: bool, const KNOWN: u8>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, T, D::Acc, D::Word, T::Columns, NV>,
        weights: *const D::Weight,
        dst: *mut T::Element,
    ) {
        let simd = self.simd;
        let (four, taps) = (4 * S::LANES * D::KU, self.taps);
        let full = taps.len() / 4;
        for x in 0..line.blocks {
            let lhs = line.lhs.wrapping_add((x * line.pixels).wrapping_mul(line.step));
            let mut acc = stage.start;
            // SAFETY: the caller's promise; `taps` has `4 * full + rest` elements.
            unsafe {
                let tap = |t: usize| lhs.add(taps.get_unchecked(t).offset);
                for q in 0..full {
                    let taps = [tap(4 * q), tap(4 * q + 1), tap(4 * q + 2), tap(4 * q + 3)];
                    acc = D::quad(simd, acc, self.words::<4, TWO>(taps, line.step), weights.add(q * four));
                }
                let (t, weights) = (4 * full, weights.add(full * four));
                acc = match taps.len() % 4 {
                    1 => D::quad(simd, acc, self.words::<1, TWO>([tap(t)], line.step), weights),
                    2 => D::quad(simd, acc, self.words::<2, TWO>([tap(t), tap(t + 1)], line.step), weights),
                    3 => D::quad(simd, acc, self.words::<3, TWO>([tap(t), tap(t + 1), tap(t + 2)], line.step), weights),
                    _ => acc,
                };
                self.finish::<NV, TWO, KNOWN>(line, stage, x, acc, dst);
            }
        }
    }

    /// [`DepthwiseProduct::line`] of three columns of three taps: `WINDOWS` is [`APART`] or one of those after it.
    ///
    /// Unpacking is what bounds a depthwise kernel: a column is unpacked once, not in each of the windows that it is in.
    ///
    /// # Safety
    /// As there; `weights` are packed by column.
    #[inline(always)]
    unsafe fn columns<const NV: usize, const TWO: bool, const WINDOWS: u8, const KNOWN: u8>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, T, D::Acc, D::Word, T::Columns, NV>,
        weights: *const D::Weight,
        dst: *mut T::Element,
    ) {
        let simd = self.simd;
        let step = line.step.wrapping_mul(line.pixels);
        // SAFETY: the caller's promise: nine taps are readable for a block after each window's start, but for columns of padding, which are
        // not read; there are twelve vectors of weights.
        unsafe {
            let pad = [stage.pad; 4];
            let [left, right] = line.pads;
            let mut words = [pad; 3];
            if !left {
                words[0] = self.column::<TWO>(line.lhs, 0, line.step);
            } else if WINDOWS == MIDDLE_BETWEEN {
                let middle = self.column::<TWO>(line.lhs, 1, line.step);
                words[0] = halves::<S, D>(simd, pad, middle);
            }
            if WINDOWS == NEXT {
                words[1] = self.column::<TWO>(line.lhs, 1, line.step);
            }
            for x in 0..line.blocks {
                let (lhs, last) = (line.lhs.wrapping_add(x.wrapping_mul(step)), x + 1 == line.blocks);
                let mut next = words[0];
                match WINDOWS {
                    NEXT if last && right => words[2] = pad,
                    NEXT => words[2] = self.column::<TWO>(lhs, 2, line.step),
                    MIDDLE_BETWEEN if last && right => {
                        words[1] = self.column::<TWO>(lhs, 1, line.step);
                        words[2] = halves::<S, D>(simd, words[1], pad);
                    }
                    MIDDLE_BETWEEN => {
                        words[2] = self.column::<TWO>(lhs, 2, line.step);
                        words[1] = halves::<S, D>(simd, words[0], words[2]);
                    }
                    LAST_BETWEEN if !last => {
                        words[1] = self.column::<TWO>(lhs, 1, line.step);
                        next = self.column::<TWO>(lhs.wrapping_add(step), 0, line.step);
                        words[2] = halves::<S, D>(simd, words[0], next);
                    }
                    _ => {
                        if WINDOWS == APART {
                            words[0] = self.column::<TWO>(lhs, 0, line.step);
                        }
                        words[1] = self.column::<TWO>(lhs, 1, line.step);
                        words[2] = self.column::<TWO>(lhs, 2, line.step);
                    }
                }
                let mut acc = stage.start;
                for c in 0..3 {
                    // Weights stay in memory: with them the registers would not do, and what is spilled to the stack is not aligned.
                    acc = D::quad(simd, acc, words[c], weights.add(4 * c * S::LANES * D::KU));
                }
                self.finish::<NV, TWO, KNOWN>(line, stage, x, acc, dst);
                match WINDOWS {
                    NEXT => (words[0], words[1]) = (words[1], words[2]),
                    SECOND | MIDDLE_BETWEEN => words[0] = words[2],
                    LAST_BETWEEN => words[0] = next,
                    _ => {}
                }
            }
        }
    }

    /// Hands the sums of block `x` of a line to the output stage.
    ///
    /// # Safety
    /// As for [`DepthwiseProduct::line`].
    #[inline(always)]
    unsafe fn finish<const NV: usize, const TWO: bool, const KNOWN: u8>(
        &self,
        line: &Run<D::Lhs>,
        stage: &Finish<'_, T, D::Acc, D::Word, T::Columns, NV>,
        x: usize,
        acc: [D::Acc; 4],
        dst: *mut T::Element,
    ) {
        let channels = self.weights.channels;
        let at = dst.wrapping_add(x * line.dst_step);
        let to = if TWO { Destinations::Two(at, at.wrapping_add(channels)) } else { Destinations::One(at) };
        let place = match line.dst_step == line.pixels * channels {
            true => Place { row: line.row + x * line.pixels, column: line.first, columns: line.columns },
            false => Place { row: line.row, column: line.first + x * line.dst_step, columns: line.columns },
        };
        // SAFETY: the caller's promise on the stage and `dst`.
        unsafe {
            if KNOWN != NOTHING || stage.in_order {
                return stage.store.store_interleaved::<KNOWN>(self.simd, &stage.interleaved, acc, place, to);
            }
            let acc = T::natural(self.simd, acc);
            stage.store.store(self.simd, stage.columns, stage.params, [row(acc, 0)], place, at, 0);
            if let Destinations::Two(_, second) = to {
                let place = Place { row: place.row + 1, ..place };
                stage.store.store(self.simd, stage.columns, stage.params, [row(acc, 2)], place, second, 0);
            }
        }
    }
}

/// The weights of a block of three columns of taps, as [`permute`](super::ingest::permute)d codes meet them.
#[repr(align(64))]
struct PermutedWeights([i32; 3 * 4 * 16]);

impl PermutedWeights {
    /// # Safety
    /// `weights` are as many words, in the order of [`Simd::interleave`].
    #[inline(always)]
    unsafe fn new<S: Simd>(simd: S, weights: *const i32) -> Self {
        assert_eq!(S::LANES, 16, "the order is that of vectors of four groups of four");
        let mut permuted = PermutedWeights([0; 3 * 4 * 16]);
        for (c, column) in permuted.0.chunks_exact_mut(4 * S::LANES).enumerate() {
            let mut words = [simd.splat_i32(0); 4];
            // SAFETY: the caller's promise; a column is four vectors.
            unsafe {
                for v in 0..4 {
                    words[v] = simd.load_i32(weights.add((4 * c + v) * S::LANES), S::LANES);
                }
                words = simd.permuted(simd.deinterleave(words));
                for v in 0..4 {
                    simd.store_i32(column.as_mut_ptr().add(v * S::LANES), words[v], S::LANES);
                }
            }
        }
        permuted
    }
}

/// The second halves of `a`, then the first of `b`.
#[inline(always)]
fn halves<S: Simd, D: Dot<S>>(simd: S, a: [D::Word; 4], b: [D::Word; 4]) -> [D::Word; 4] {
    let mut words = a;
    for j in 0..4 {
        words[j] = D::halves(simd, a[j], b[j]);
    }
    words
}

/// `NV` vectors from `first` on.
#[inline(always)]
fn row<A: Copy, const NV: usize>(acc: [A; 4], first: usize) -> [A; NV] {
    let mut row = [acc[0]; NV];
    // Not `copy_from_slice`, which was a call, with all registers saved around it.
    #[allow(clippy::manual_memcpy)]
    for v in 0..NV {
        row[v] = acc[(first + v) % 4];
    }
    row
}
