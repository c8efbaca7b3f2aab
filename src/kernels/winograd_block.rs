//! What [`super::winograd`] does with some lines of tiles: to the points, products, and back.

use std::ops::Range;

use super::dot::Dot;
use super::output::{Place, Store};
use super::pack::Panels;
use super::pairs::Pairs;
use super::simd::Simd;
use super::strips::Convolution;
use super::tile::{Start, unroll};
use super::winograd_layout::{LINE, TilePlace, Tiles, Words};
use super::winograd_products::{Points, products};
use super::winograd_transforms::{self as transforms, POINTS, SIDE, is_shared};

/// Sums of a tile, `[point][column]` of a panel, and a line between tiles: see [`LINE`].
pub const fn sums_of_tile<S: Simd>() -> usize {
    POINTS * S::NV * S::LANES + LINE / 2
}

/// Some lines of tiles, and where their numbers are.
pub struct Block<'a, S: Simd, T: Store<S, S::I32>> {
    pub convolution: &'a Convolution<'a, S, S::Int8, T>,
    pub panels: &'a Panels<i8>,
    pub words: &'a Words<S>,
    pub tiles: Tiles,
    pub image: usize,
    /// The padded lines under them.
    pub lines: *const <S::Int8 as Dot<S>>::Lhs,
    pub line_count: usize,
    /// Whether the weights of a panel are at the points only while all tiles meet them.
    pub passing: bool,
    pub activations: *mut i16,
    /// Numbers from a point to the next.
    pub point: usize,
}

// SAFETY: threads read lines and weights, and write disjoint tiles of the activations and of `dst`.
unsafe impl<S: Simd, T: Store<S, S::I32>> Sync for Block<'_, S, T> {}

impl<S: Simd, T: Store<S, S::I32>> Block<'_, S, T> {
    /// Brings the activations of some tiles to the points.
    ///
    /// # Safety
    /// The lines are there, with a vector of channels behind them unless pixels are whole vectors; nobody else writes these tiles.
    #[inline(always)]
    pub unsafe fn activations(&self, tiles: Range<usize>) {
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
            // SAFETY: the pixels are inside the lines, and what is read behind them by the caller's promise; each point has memory for all
            // channels of the tile, filled up to whole vectors.
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
    pub unsafe fn weights(&self, panel: usize, half: usize, to: *mut i16) {
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
                // SAFETY: the panel has a vector of each word of each tap, four channels to one or two words; `to` has a vector of each
                // word of each point.
                unsafe {
                    let from = from.add(4 * four * columns + v * S::LANES * <S::Int8 as Dot<S>>::KU);
                    self.weights_of::<0, FIRST>(columns, from, to.add((words[0] * columns + v * S::LANES) * 2));
                    self.weights_of::<1, FIRST>(columns, from, to.add((words[1] * columns + v * S::LANES) * 2));
                }
            }
        }
    }

    /// One of the two vectors of words of four channels, for `LANES` of the panel's `columns`. Bound by its stores: asking for their lines
    /// ahead took as long.
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
    pub unsafe fn products(&self, panel: usize, half: usize, tiles: Range<usize>, weights: *const i16, sums: *mut i32) {
        let vectors = self.panels.vectors(panel);
        // The weights that go to the points next, a share along each run of points: they would come when nothing else is there to be done.
        let ahead = |panel: usize| self.panels.panel_offset(panel).min(self.panels.group_len());
        let ahead = if self.passing && tiles.start == 0 { ahead(panel + 1)..ahead(panel + 2) } else { 0..0 };
        let ahead = &self.panels.group(0)[ahead];
        let (simd, row) = (self.convolution.simd, self.words.row);
        let columns = vectors * S::LANES;
        let (runs, count) = &self.words.runs;
        let (first, end) = (half * POINTS / 2, (half + 1) * POINTS / 2);
        let having = |point: usize| {
            let having = self.tiles.with_point(point);
            having.start.max(tiles.start)..having.end.min(tiles.end)
        };
        let mut next = first;
        while next < end {
            let point = next;
            let rows = having(point);
            // Points of the same tiles.
            while next < end && having(next) == rows {
                next += 1;
            }
            let ahead = &ahead[ahead.len() * point / POINTS..ahead.len() * next / POINTS];
            let cuts = rows.len().div_ceil(S::MR_MAX);
            for cut in 0..cuts {
                let of_cut = rows.start + rows.len() * cut / cuts..rows.start + rows.len() * (cut + 1) / cuts;
                let points = Points {
                    count: next - point,
                    tiles: of_cut.len(),
                    vectors,
                    activations: self.activations.wrapping_add(point * self.point + of_cut.start * row),
                    row,
                    activations_step: self.point,
                    runs: &runs[..*count],
                    weights: weights.wrapping_add((point - first) * self.words.point(columns)),
                    weights_step: self.words.point(columns),
                    sums: sums.wrapping_add((of_cut.start - tiles.start) * sums_of_tile::<S>() + point * S::NV * S::LANES),
                    sums_row: sums_of_tile::<S>(),
                    sums_step: S::NV * S::LANES,
                    ahead: &ahead[ahead.len() * cut / cuts..ahead.len() * (cut + 1) / cuts],
                };
                // SAFETY: each tile has all words of its channels at each of its points, the panel's weights as many, and `sums` a row of
                // each.
                unsafe { products(simd, &points) }
            }
        }
    }

    /// Brings the sums of a panel's columns in some tiles back from the points, and hands them to the output stage.
    ///
    /// # Safety
    /// `sums` has them; nobody else writes these pixels of `dst` in these columns; the output stage is as [`Convolution::run`] asks.
    pub unsafe fn outputs(&self, panel: usize, tiles: Range<usize>, sums: *const i32, part: usize) {
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
            let (place, sums) = (self.tiles.place(tile), sums.wrapping_add((tile - tiles.start) * sums_of_tile::<S>()));
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
        let (lines, pixels) = (transforms::outputs(LOW).min(out_h - y0), transforms::outputs(NARROW).min(out_w - x0));
        for v in 0..NV {
            let (column, lanes) = (n + v * S::LANES, (columns - v * S::LANES).min(S::LANES));
            let stage = &stage[v..v + 1].try_into().expect("one of them");
            let line = |y: usize| {
                let place = Place { row: (self.image * out_h + y0 + y) * out_w + x0, column, columns: lanes };
                (place, self.convolution.dst.wrapping_add(place.row * stride + column))
            };
            if !LOW && !NARROW && lines == 4 && pixels == 4 {
                // Two lines at a time, since what comes down for four takes more registers than there are beside the stage's.
                unroll!(FIRST < 2; [0 1], {
                    let mut down = [[start[v]; SIDE]; 2];
                    for x in 0..SIDE {
                        // SAFETY: the sums of a tile are at each of its points.
                        let m = unsafe { self.column_of::<false>(x, start[v], sums.add(v * S::LANES)) };
                        [down[0][x], down[1][x]] = transforms::sums_of_half::<S, S::Pairs, FIRST>(simd, m);
                    }
                    unroll!(I < 2; [0 1], {
                        let acc = self.pixels_of::<false>(start[v], transforms::shifts(false)[FIRST + 2 * I], down[I]);
                        let ((place, dst), acc) = (line(FIRST + 2 * I), [[acc[0]], [acc[1]], [acc[2]], [acc[3]]]);
                        // SAFETY: these pixels are in the image, and these columns in the panel.
                        unsafe { store.store::<4, 1>(simd, stage, [self.image; 4], acc, place, dst, stride) }
                    });
                });
                continue;
            }
            // SAFETY: as above.
            let down = unsafe { self.lines_of::<LOW, NARROW>(start[v], sums.add(v * S::LANES)) };
            for y in 0..lines {
                let acc = self.pixels_of::<NARROW>(start[v], transforms::shifts(LOW)[y], down[y]);
                let (first, dst) = line(y);
                for x in 0..pixels {
                    let (place, dst) = (Place { row: first.row + x, ..first }, dst.wrapping_add(x * stride));
                    // SAFETY: as above.
                    unsafe { store.store::<1, 1>(simd, stage, [self.image], [[acc[x]]], place, dst, stride) }
                }
            }
        }
    }

    /// The sums of a vector of columns at a column of points of a tile; those that a half has not are `none`.
    ///
    /// # Safety
    /// `sums` is readable for a vector at each of the tile's points.
    #[inline(always)]
    unsafe fn column_of<const LOW: bool>(&self, x: usize, none: S::I32, sums: *const i32) -> [S::I32; SIDE] {
        let mut m = [none; SIDE];
        for y in 0..SIDE {
            if !LOW || is_shared(y) {
                // SAFETY: the caller's promise.
                m[y] = unsafe { self.convolution.simd.load_i32(sums.add((y * SIDE + x) * S::NV * S::LANES), S::LANES) };
            }
        }
        m
    }

    /// The sums of a vector of columns at a tile's points, brought back along the columns of points: for each line of pixels six.
    ///
    /// # Safety
    /// As for [`Block::column_of`].
    #[inline(always)]
    unsafe fn lines_of<const LOW: bool, const NARROW: bool>(&self, none: S::I32, sums: *const i32) -> [[S::I32; SIDE]; 4] {
        let mut down = [[none; SIDE]; 4];
        for x in 0..SIDE {
            if !NARROW || is_shared(x) {
                // SAFETY: the caller's promise.
                let m = unsafe { self.column_of::<LOW>(x, none, sums) };
                let m = transforms::sums::<S, S::Pairs, LOW>(self.convolution.simd, m);
                for y in 0..transforms::outputs(LOW) {
                    down[y][x] = m[y];
                }
            }
        }
        down
    }

    /// The sums of a line of pixels, each added to `start`, from what came down to that line, shifted up by `shift` bits there.
    #[inline(always)]
    fn pixels_of<const NARROW: bool>(&self, start: S::I32, shift: u32, m: [S::I32; SIDE]) -> [S::I32; 4] {
        let simd = self.convolution.simd;
        let unfold = simd.splat_i32(transforms::UNFOLD);
        let mut acc = transforms::sums::<S, S::Pairs, NARROW>(simd, m);
        for x in 0..transforms::outputs(NARROW) {
            let sum = S::Pairs::shift_down(simd, simd.mul_i32(acc[x], unfold), shift + transforms::shifts(NARROW)[x]);
            acc[x] = simd.add_i32(start, sum);
        }
        acc
    }
}
