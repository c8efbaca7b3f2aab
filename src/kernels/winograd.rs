//! Convolutions of 3 x 3 at stride one by a quarter of the products: tiles of 4 x 4 outputs, in whole numbers, so that sums are those of the
//! convolution itself, bit for bit.
//!
//! Activations and weights go to 36 points ([`super::winograd_transforms`]), where each point has a product of its own: all tiles times all output channels,
//! over 16-bit numbers ([`super::pairs`]), in i32 that wraps. What comes back is 576 times each sum modulo 2^32, which says it exactly while it fits 26 bits
//! ([`SUM_LIMIT`]): no calibration, no scales, no rounding. Wrapping is what makes this fit vectors: the products themselves need some 40 bits.
//!
//! An instruction multiplies half as many pairs as bytes, so 144 products against 36 pairs are at most twice as fast with VNNI, four times with AVX2.
//! Weights are brought to the points in each call, for a panel of columns at a time: kept, they would take eight bytes each, which come more slowly from
//! memory than they are made.

use std::ops::Range;

use super::conv_weights::{ConvWeights, Packed};
use super::dot::Dot;
use super::ingest::Fill;
use super::memory::Aligned;
use super::output::{Accumulate, Integers, Place, Store};
use super::pack::Panels;
use super::pairs::Pairs;
use super::product::{GRAIN, RUNS};
use super::simd::Simd;
use super::strips::{Activations, Convolution};
use super::threads::{self, Disjoint, Phase};
use super::tile::{ROWS, Segment, Start, Tile, Zero};
use super::winograd_transforms::{self as transforms, POINTS, SIDE, is_shared};

/// Activations at the points that lie in memory at a time: half of a common second-level cache.
const BLOCK_BYTES: usize = 72 * 1024;

/// Sums at the points that lie in memory at a time.
const SUMS_BYTES: usize = 64 * 1024;

/// Numbers of a cache line, put between points: else many of them would have the same place in a first-level cache.
const LINE: usize = 32;

/// Memory of such convolutions.
#[derive(Debug, Default)]
pub(super) struct WinogradMemory {
    /// `[point][tile][channel]`.
    activations: Aligned,
    /// `[panel][point][word][column][2]`: of all panels, or of one for each thread.
    weights: Aligned,
    /// `[thread][point][tile][column]`.
    sums: Aligned,
}

impl WinogradMemory {
    pub fn bytes(&self) -> usize {
        self.activations.bytes() + self.weights.bytes() + self.sums.bytes()
    }
}

/// Tiles along an axis: those of four outputs, and one of one or two behind them.
#[derive(Debug, Clone, Copy)]
struct Axis {
    whole: usize,
    half: usize,
}

impl Axis {
    fn new(outputs: usize) -> Axis {
        let rest = outputs % 4;
        Axis { whole: outputs / 4 + usize::from(rest == 3), half: usize::from(rest == 1 || rest == 2) }
    }

    /// Points along this axis, of all tiles.
    fn points(&self) -> usize {
        6 * self.whole + 4 * self.half
    }
}

/// Some lines of tiles of an image.
///
/// In this order: halves of lines, whole tiles, halves of columns, quarters. So the tiles of each point lie together: all have the points that halves have,
/// all but the quarters and the halves along one axis have those beside.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    /// The first line of tiles, and how many are whole.
    first: usize,
    whole: usize,
    half: usize,
    columns: Axis,
}

/// Where a tile's outputs are, and whether they are two along an axis.
#[derive(Debug, Clone, Copy)]
struct TilePlace {
    y: usize,
    x: usize,
    half: [bool; 2],
}

impl Tiles {
    fn len(&self) -> usize {
        (self.whole + self.half) * (self.columns.whole + self.columns.half)
    }

    /// Where the kinds end.
    fn ends(&self) -> [usize; 3] {
        let lower = self.half * self.columns.whole;
        let whole = lower + self.whole * self.columns.whole;
        [lower, whole, whole + self.whole * self.columns.half]
    }

    fn place(&self, tile: usize) -> TilePlace {
        let ([lower, whole, right], Axis { whole: across, .. }) = (self.ends(), self.columns);
        let (line, column, half) = if tile < lower {
            (self.whole, tile, [true, false])
        } else if tile < whole {
            ((tile - lower) / across, (tile - lower) % across, [false, false])
        } else if tile < right {
            (tile - whole, across, [false, true])
        } else {
            (self.whole, across, [true, true])
        };
        TilePlace { y: 4 * (self.first + line), x: 4 * column, half }
    }

    /// The tiles that have a point.
    fn with_point(&self, point: usize) -> Range<usize> {
        let [lower, whole, right] = self.ends();
        match [is_shared(point / SIDE), is_shared(point % SIDE)] {
            [true, true] => 0..self.len(),
            [true, false] => 0..whole,
            [false, true] => lower..right,
            [false, false] => lower..whole,
        }
    }
}

/// Whether a convolution has this form, and it is faster so.
pub(super) fn is_faster<S: Simd>(simd: S, weights: &ConvWeights<i8>, images: usize, [out_h, out_w]: [usize; 2]) -> bool {
    let geometry = &weights.geometry;
    let whole_words = geometry.in_channels.is_multiple_of(4);
    if !S::Pairs::AVAILABLE || simd.matrix_unit().is_some() || !weights.sums_are_narrow || !whole_words {
        return false;
    }
    // In instructions for a lane, about, as measured on Zen 4: what brings activations, weights and sums to the points and back is most of it where there
    // are few channels or few tiles. A product of pairs is one where it is one of four bytes, too, else two.
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
        let (geometry, padded, [out_h, out_w]) = (self.geometry, self.padded, self.out);
        let (rows, columns) = (Axis::new(out_h), Axis::new(out_w));
        let (channels, row) = (geometry.in_channels, padded.row());
        let words = Words::<S>::new(channels);
        let across = columns.whole + columns.half;
        let work = padded.images.saturating_mul(rows.points() * columns.points()).saturating_mul(channels * geometry.out_channels) / 2;
        let parts = threads::parts(threads, work, GRAIN);
        let tile_lines = rows.whole + rows.half;
        let bytes = tile_lines * across * POINTS * words.row * size_of::<i16>();
        let cuts = if bytes <= 512 * 1024 { 1 } else { bytes.div_ceil(BLOCK_BYTES * parts).clamp(1, tile_lines) };
        let largest = tile_lines.div_ceil(cuts);
        // Tiles of each block, its chunks, and the tiles of the largest chunk.
        let most = largest * across;
        let fitting = SUMS_BYTES / (POINTS * panels.nr() * size_of::<i32>());
        let chunk = if most <= 2 * fitting { most } else { fitting / S::MR_MAX * S::MR_MAX };
        let (point, sums_point) = (most * words.row + LINE, chunk * panels.nr() + LINE / 2);
        let weights_len = POINTS * words.point(panels.nr());
        // Where all tiles meet a panel once, its weights are at the points only meanwhile.
        let passing = cuts * padded.images == 1 && panels.panels().is_multiple_of(parts);
        let WinogradMemory { activations, weights, sums } = memory;
        let activations = activations.grow::<i16>(POINTS * point).as_mut_ptr();
        let weights = Disjoint::new(weights.grow::<i16>(weights_len * if passing { parts } else { panels.panels() }));
        // Sums are written before they are read.
        let sums = Disjoint::new(sums.grow::<f32>(parts * POINTS * sums_point));
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
            let block_sums = |part: usize| sums.at(part * POINTS * sums_point).cast::<i32>();
            let chunks = tiles.len().div_ceil(chunk);
            let chunk_of = |i: usize| i * chunk..tiles.len().min((i + 1) * chunk);
            let of = Block { convolution: self, panels, words: &words, tiles, image, lines, line_count, activations, point, sums_point };
            let phases = [
                Phase { items: if fill.is_some() { line_count } else { 0 }, runs: RUNS },
                Phase { items: tiles.len(), runs: RUNS },
                Phase { items: if !passing && block == 0 { 2 * panels.panels() } else { 0 }, runs: RUNS },
                Phase { items: panels.panels() * if passing { 1 } else { chunks }, runs: RUNS },
            ];
            threads::phases(phases, parts, |phase, part, range| match (phase, &fill) {
                (0, Some((fill, to))) => fill_lines(fill, to, (image, first_line), row, range),
                // SAFETY: lines are there, as nobody writes them any more; runs are disjoint, and each tile has its own memory.
                (1, _) => self.simd.vectorize(
                    #[inline(always)]
                    || unsafe { of.activations(range) },
                ),
                // SAFETY: each panel has its own memory.
                (2, _) => range.for_each(|item| unsafe { of.weights(item / 2, item % 2, weights.at(item * (weights_len / 2))) }),
                (3, _) if passing => {
                    let (to, sums) = (weights.at(part * weights_len), block_sums(part));
                    for panel in range {
                        // SAFETY: no two runs at a time are of the same part, which has its own memory; panels are disjoint columns of `dst`.
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
                        // SAFETY: as above; the weights of all panels are there, and nobody writes them any more.
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
fn fill_lines<L>(fill: &Fill<'_, L>, to: &Disjoint<'_, L>, (image, first): (usize, usize), row: usize, lines: Range<usize>) {
    for line in lines {
        // SAFETY: runs of lines are disjoint.
        fill(image, first + line, unsafe { to.part(line * row..(line + 1) * row) });
    }
}

/// In which order the channels lie at the points.
struct Words<S> {
    channels: usize,
    /// Numbers from a tile to the next.
    row: usize,
    /// Runs of words that lie together, up to three.
    runs: ([Segment; 3], usize),
    /// Words of all runs.
    count: usize,
    simd: std::marker::PhantomData<S>,
}

impl<S: Simd> Words<S> {
    fn new(channels: usize) -> Self {
        let vectors = 4 * S::LANES;
        let (whole, rest) = (channels / vectors * vectors, channels % vectors);
        let none = Segment { offset: 0, words: 0 };
        let runs = match rest {
            _ if !S::Pairs::SPLIT || rest == 0 => ([Segment { offset: 0, words: channels / 2 }, none, none], 1),
            _ => {
                let half = |i: usize| Segment { offset: whole + i * vectors / 2, words: rest / 4 };
                ([Segment { offset: 0, words: whole / 2 }, half(0), half(1)], 3)
            }
        };
        Words { channels, row: channels.next_multiple_of(vectors), runs, count: channels / 2, simd: std::marker::PhantomData }
    }

    /// Numbers from the weights of a point to those of the next, of `columns` columns.
    fn point(&self, columns: usize) -> usize {
        self.count * columns * 2 + LINE
    }

    /// The words of four channels, `4 * four` and those behind it.
    #[inline(always)]
    fn of_four(&self, four: usize) -> [usize; 2] {
        if !S::Pairs::SPLIT {
            return [2 * four, 2 * four + 1];
        }
        let (block, i) = (four / S::LANES, four % S::LANES);
        let first = block * 2 * S::LANES + i;
        [first, first + (self.channels / 4 - block * S::LANES).min(S::LANES)]
    }
}

/// Some lines of tiles, and where their numbers are.
struct Block<'a, S: Simd, T: Store<S, S::I32>> {
    convolution: &'a Convolution<'a, S, S::Int8, T>,
    panels: &'a Panels<i8>,
    words: &'a Words<S>,
    tiles: Tiles,
    image: usize,
    /// The padded lines under them.
    lines: *const <S::Int8 as Dot<S>>::Lhs,
    line_count: usize,
    activations: *mut i16,
    /// Numbers from a point to the next.
    point: usize,
    /// Sums from a point to the next.
    sums_point: usize,
}

// SAFETY: threads read lines and weights, and write disjoint tiles of the activations and of `dst`.
unsafe impl<S: Simd, T: Store<S, S::I32>> Sync for Block<'_, S, T> {}

impl<S: Simd, T: Store<S, S::I32>> Block<'_, S, T> {
    /// Brings the activations of some tiles to the points.
    ///
    /// # Safety
    /// The lines are there, with a vector of channels behind them unless pixels are whole vectors; nobody else writes these tiles.
    #[inline(always)]
    unsafe fn activations(&self, tiles: Range<usize>) {
        for tile in tiles {
            let place = self.tiles.place(tile);
            // SAFETY: the caller's promise.
            unsafe {
                match place.half {
                    [false, false] => self.activations_of::<false, false>(tile, place),
                    [false, true] => self.activations_of::<false, true>(tile, place),
                    [true, false] => self.activations_of::<true, false>(tile, place),
                    [true, true] => self.activations_of::<true, true>(tile, place),
                }
            }
        }
    }

    /// # Safety
    /// As for [`Block::activations`]; `place` is that of `tile`.
    #[inline(always)]
    unsafe fn activations_of<const LOW: bool, const NARROW: bool>(&self, tile: usize, place: TilePlace) {
        let padded = self.convolution.padded;
        let (row, width, channels) = (padded.row(), padded.width, padded.channels);
        // What is beyond the image meets only outputs that are not there: it may be anything.
        let (mut lines, mut columns) = ([0; SIDE], [0; SIDE]);
        for i in 0..SIDE {
            lines[i] = (place.y - 4 * self.tiles.first + i).min(self.line_count - 1) * row;
            columns[i] = (place.x + i).min(width - 1) * channels;
        }
        let to = self.activations.wrapping_add(tile * self.words.row);
        for channel in (0..channels).step_by(4 * S::LANES) {
            let to = to.wrapping_add(channel);
            // SAFETY: the pixels are inside the lines, and what is read behind them by the caller's promise; each point has memory for all channels of the
            // tile, filled up to whole vectors.
            unsafe {
                let from = self.lines.add(channel);
                self.half_of::<0, LOW, NARROW>(from, (&lines, &columns), to);
                self.half_of::<1, LOW, NARROW>(from, (&lines, &columns), to.add(2 * S::LANES));
            }
        }
    }

    /// One of the two vectors of numbers of `4 * LANES` channels of a tile.
    ///
    /// # Safety
    /// `from` is readable for these channels at each line and column, `to` writable for a vector at each point of the tile.
    #[inline(always)]
    unsafe fn half_of<const HALF: usize, const LOW: bool, const NARROW: bool>(
        &self,
        from: *const <S::Int8 as Dot<S>>::Lhs,
        (lines, columns): (&[usize; SIDE], &[usize; SIDE]),
        to: *mut i16,
    ) {
        let simd = self.convolution.simd;
        // SAFETY: the caller's promise.
        unsafe {
            let mut across = [[S::Pairs::activations(simd, from.add(lines[0] + columns[0]))[HALF]; SIDE]; SIDE];
            for y in 0..SIDE {
                if LOW && y > 3 {
                    continue;
                }
                let mut d = across[0];
                for x in 0..SIDE {
                    if !NARROW || x < 4 {
                        d[x] = S::Pairs::activations(simd, from.add(lines[y] + columns[x]))[HALF];
                    }
                }
                across[y] = transforms::activations::<S, S::Pairs, NARROW>(simd, d);
            }
            for x in 0..SIDE {
                if NARROW && !is_shared(x) {
                    continue;
                }
                let d = [across[0][x], across[1][x], across[2][x], across[3][x], across[4][x], across[5][x]];
                let d = transforms::activations::<S, S::Pairs, LOW>(simd, d);
                for y in 0..SIDE {
                    if !LOW || is_shared(y) {
                        S::Pairs::store_numbers(simd, to.add((y * SIDE + x) * self.point), d[y]);
                    }
                }
            }
        }
    }

    /// Brings the weights of a panel to half of the points: `0..18` or those behind.
    ///
    /// # Safety
    /// `to` is writable for them, and nobody else uses it.
    unsafe fn weights(&self, panel: usize, half: usize, to: *mut i16) {
        let simd = self.convolution.simd;
        // SAFETY: the caller's promise.
        unsafe {
            match half {
                0 => simd.vectorize(
                    #[inline(always)]
                    || self.weights_at::<0>(panel, to),
                ),
                _ => simd.vectorize(
                    #[inline(always)]
                    || self.weights_at::<3>(panel, to),
                ),
            }
        }
    }

    /// # Safety
    /// As for [`Block::weights`]: the points of three lines from `FIRST` on.
    #[inline(always)]
    unsafe fn weights_at<const FIRST: usize>(&self, panel: usize, to: *mut i16) {
        let vectors = self.panels.vectors(panel);
        let columns = vectors * S::LANES;
        let from = self.panels.group(0)[self.panels.panel_offset(panel)..].as_ptr();
        for four in 0..self.words.channels / 4 {
            let words = self.words.of_four(four);
            for v in 0..vectors {
                // SAFETY: the panel has a vector of each word of each tap, four channels to one or two words; `to` has a vector of each word of each point.
                unsafe {
                    let from = from.add(4 * four * columns + v * S::LANES * <S::Int8 as Dot<S>>::KU);
                    self.weights_of::<0, FIRST>(columns, from, to.add((words[0] * columns + v * S::LANES) * 2));
                    self.weights_of::<1, FIRST>(columns, from, to.add((words[1] * columns + v * S::LANES) * 2));
                }
            }
        }
    }

    /// One of the two vectors of words of four channels, for `LANES` of the panel's `columns`. Bound by its stores: asking for their lines ahead took as
    /// long.
    ///
    /// # Safety
    /// At each tap, `from` is readable for four channels; `to` is writable for a vector at each of these points.
    #[inline(always)]
    unsafe fn weights_of<const HALF: usize, const FIRST: usize>(&self, columns: usize, from: *const i8, to: *mut i16) {
        let simd = self.convolution.simd;
        let (step, tap, point) = (columns * <S::Int8 as Dot<S>>::KU, self.words.channels * columns, self.words.point(columns));
        // SAFETY: the caller's promise.
        unsafe {
            let mut down = [[S::Pairs::four_weights(simd, from, step)[HALF]; SIDE]; 3];
            for x in 0..3 {
                let mut w = [down[0][0]; 3];
                for y in 0..3 {
                    w[y] = S::Pairs::four_weights(simd, from.add((3 * y + x) * tap), step)[HALF];
                }
                down[x] = transforms::weights::<S, S::Pairs>(simd, w);
            }
            for y in 0..3 {
                let across = transforms::weights::<S, S::Pairs>(simd, [down[0][FIRST + y], down[1][FIRST + y], down[2][FIRST + y]]);
                for x in 0..SIDE {
                    S::Pairs::store_numbers(simd, to.add((y * SIDE + x) * point), across[x]);
                }
            }
        }
    }

    /// The products of a panel at half of the points of some tiles, whose weights are at `weights`.
    ///
    /// # Safety
    /// Activations and weights are at the points; nobody else uses `sums`.
    unsafe fn products(&self, panel: usize, half: usize, tiles: Range<usize>, weights: *const i16, sums: *mut i32) {
        let vectors = self.panels.vectors(panel);
        let ahead = &self.panels.group(0)[(self.panels.panel_offset(panel + 1)).min(self.panels.group_len())
            ..self.panels.panel_offset(panel + 2).min(self.panels.group_len())];
        let (simd, row, nr) = (self.convolution.simd, self.words.row, self.panels.nr());
        let columns = vectors * S::LANES;
        let (runs, count) = &self.words.runs;
        let mut offsets = [[0; ROWS]];
        for i in 0..S::MR_MAX {
            offsets[0][i] = i * row;
        }
        for i in 0..POINTS / 2 {
            let point = half * POINTS / 2 + i;
            for line in ahead[ahead.len() * point / POINTS..ahead.len() * (point + 1) / POINTS].chunks(64) {
                simd.prefetch(line.as_ptr().cast());
            }
            let having = self.tiles.with_point(point);
            let having = having.start.max(tiles.start)..having.end.min(tiles.end);
            let cuts = having.len().div_ceil(S::MR_MAX);
            for cut in 0..cuts {
                let of_cut = having.start + having.len() * cut / cuts..having.start + having.len() * (cut + 1) / cuts;
                let tile = Tile::<S, S::Pairs, Integers<&Accumulate>> {
                    lhs: self.activations.wrapping_add(point * self.point + of_cut.start * row),
                    offsets: &offsets,
                    params: &[[0; ROWS]],
                    segments: &runs[..*count],
                    weights: weights.wrapping_add(i * self.words.point(columns)),
                    start: Start::new(Zero::Tensor(0)),
                    col_sums: std::ptr::null(),
                    store: Integers(&Accumulate),
                    m: 0,
                    n: 0,
                    columns,
                    dst: sums.wrapping_add(point * self.sums_point + (of_cut.start - tiles.start) * nr),
                    dst_stride: nr,
                    next_dst: std::ptr::null(),
                    next_weights: &[],
                };
                // SAFETY: each tile has all words of its channels at each of its points, the panel's weights as many, and `sums` a row of each; pairs
                // start from zeros, without sums of columns, and this stage has no parameters.
                unsafe { simd.product_tile(of_cut.len(), vectors, &tile) }
            }
        }
    }

    /// Brings the sums of a panel's columns in some tiles back from the points, and hands them to the output stage.
    ///
    /// # Safety
    /// `sums` has them; nobody else writes these pixels of `dst` in these columns; the output stage is as [`Convolution::run`] asks.
    unsafe fn outputs(&self, panel: usize, tiles: Range<usize>, sums: *const i32, part: usize) {
        let (simd, store) = (self.convolution.simd, self.convolution.store.only(self.image).part(part));
        // SAFETY: the caller's promise.
        unsafe {
            match self.panels.vectors(panel) {
                1 => simd.vectorize(
                    #[inline(always)]
                    || self.outputs_of_panel::<1>(store, panel, tiles, sums),
                ),
                _ => simd.vectorize(
                    #[inline(always)]
                    || self.outputs_of_panel::<2>(store, panel, tiles, sums),
                ),
            }
        }
    }

    /// # Safety
    /// As for [`Block::outputs`]; the panel has `NV` vectors.
    #[inline(always)]
    unsafe fn outputs_of_panel<const NV: usize>(&self, store: T, panel: usize, tiles: Range<usize>, sums: *const i32) {
        let simd = self.convolution.simd;
        let n = panel * self.panels.nr();
        let columns = (self.panels.n() - n).min(NV * S::LANES);
        let lanes = |v: usize| (columns - v * S::LANES).min(S::LANES);
        let start = Start { zero: self.convolution.start.zero.only(self.image), ..self.convolution.start };
        let col_sums = self.panels.col_sums()[n..].as_ptr();
        // SAFETY: these columns are inside stage, sums of columns and bias.
        let (start, stage) = unsafe {
            let mut stage = [store.columns(simd, n, lanes(0)); NV];
            for v in 1..NV {
                stage[v] = store.columns(simd, n + v * S::LANES, lanes(v));
            }
            (S::Int8::start::<1, NV>(simd, &start, (0, &[self.image]), col_sums, (n, columns))[0], stage)
        };
        for tile in tiles.clone() {
            let (place, sums) = (self.tiles.place(tile), sums.wrapping_add((tile - tiles.start) * self.panels.nr()));
            let place_of = (place.y, place.x, n, columns);
            // SAFETY: the caller's promise.
            unsafe {
                match place.half {
                    [false, false] => self.outputs_of::<NV, false, false>((store, &stage), &start, place_of, sums),
                    [false, true] => self.outputs_of::<NV, false, true>((store, &stage), &start, place_of, sums),
                    [true, false] => self.outputs_of::<NV, true, false>((store, &stage), &start, place_of, sums),
                    [true, true] => self.outputs_of::<NV, true, true>((store, &stage), &start, place_of, sums),
                }
            }
        }
    }

    /// # Safety
    /// As for [`Block::outputs`], for the tile whose sums are at `sums`, and whose first pixel is at `y` and `x`.
    #[inline(always)]
    unsafe fn outputs_of<const NV: usize, const LOW: bool, const NARROW: bool>(
        &self,
        (store, stage): (T, &[T::Columns; NV]),
        start: &[S::I32; NV],
        (y0, x0, n, columns): (usize, usize, usize, usize),
        sums: *const i32,
    ) {
        let (simd, [out_h, out_w]) = (self.convolution.simd, self.convolution.out);
        let stride = self.panels.n();
        let mut acc = [[[start[0]; NV]; 4]; 4];
        for v in 0..NV {
            // SAFETY: the sums of a tile are at each of its points.
            let of_vector = unsafe { self.sums_of::<LOW, NARROW>(start[v], sums.add(v * S::LANES)) };
            for y in 0..transforms::outputs(LOW) {
                for x in 0..transforms::outputs(NARROW) {
                    acc[y][x][v] = of_vector[y][x];
                }
            }
        }
        let (lines, pixels) = (transforms::outputs(LOW).min(out_h - y0), transforms::outputs(NARROW).min(out_w - x0));
        for y in 0..lines {
            for x in (0..pixels).step_by(2) {
                let place = Place { row: (self.image * out_h + y0 + y) * out_w + x0 + x, column: n, columns };
                let dst = self.convolution.dst.wrapping_add(place.row * stride + n);
                // SAFETY: these pixels are in the image, and these columns in the panel.
                unsafe {
                    if x + 1 < pixels {
                        store.store(simd, stage, [self.image; 2], [acc[y][x], acc[y][x + 1]], place, dst, stride);
                    } else {
                        store.store(simd, stage, [self.image], [acc[y][x]], place, dst, stride);
                    }
                }
            }
        }
    }

    /// The sums of a vector of columns at a tile's pixels, each added to `start`.
    ///
    /// # Safety
    /// `sums` is readable for a vector at each of the tile's points.
    #[inline(always)]
    unsafe fn sums_of<const LOW: bool, const NARROW: bool>(&self, start: S::I32, sums: *const i32) -> [[S::I32; 4]; 4] {
        let simd = self.convolution.simd;
        let mut across = [[start; 4]; SIDE];
        for y in 0..SIDE {
            if LOW && !is_shared(y) {
                continue;
            }
            let mut m = [start; SIDE];
            for x in 0..SIDE {
                if !NARROW || is_shared(x) {
                    // SAFETY: the caller's promise.
                    m[x] = unsafe { simd.load_i32(sums.add((y * SIDE + x) * self.sums_point), S::LANES) };
                }
            }
            across[y] = transforms::sums::<S, S::Pairs, NARROW>(simd, m);
        }
        let unfold = simd.splat_i32(transforms::UNFOLD);
        let mut acc = [[start; 4]; 4];
        for x in 0..transforms::outputs(NARROW) {
            let m = [across[0][x], across[1][x], across[2][x], across[3][x], across[4][x], across[5][x]];
            let m = transforms::sums::<S, S::Pairs, LOW>(simd, m);
            for y in 0..transforms::outputs(LOW) {
                let shift = transforms::shifts(LOW)[y] + transforms::shifts(NARROW)[x];
                acc[y][x] = simd.add_i32(start, S::Pairs::shift_down(simd, simd.mul_i32(m[y], unfold), shift));
            }
        }
        acc
    }
}
