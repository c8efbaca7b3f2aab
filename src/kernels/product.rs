//! The loops around the tiles: columns in blocks that stay in the cache, rows in even tiles, then panels, and innermost the tiles of a run.

use std::ops::Range;

use super::dot::Dot;
use super::few_words::are_few;
use super::output::Store;
use super::pack::Panels;
use super::simd::Simd;
use super::threads::{self, Phase};
use super::tile::{ROWS, RUN_ROWS, Segment, Start, Tile};

/// Half of a common second-level cache: weights of a column block stay there while the rows stream by. Twice as many where the rows
/// fit no such half, since they are read once for each block.
const BLOCK_BYTES: usize = 512 * 1024;

/// Outputs above this are fetched ahead: they fit no second-level cache.
const LARGE_OUTPUT_BYTES: usize = 2 << 20;

/// Products below which a second thread costs more than it gives: about 10 microseconds of work.
pub const GRAIN: usize = 2 << 20;

/// Products from which on each thread takes its share at once: about a millisecond of work.
const LONG: usize = 256 << 20;

/// Into how many runs a thread's share is cut, for others to take over if that thread is slow.
pub const RUNS: usize = 4;

/// How many products take as long as the memory takes for a weight that no cache of one core has.
const PRODUCTS_OF_WEIGHT: usize = 8;

/// Words of k up to which tiles are low, and go in runs of [`TILES`] with each panel.
const SHORT_WORDS: usize = 1024;

/// Weights from which on a panel that no tile has met is fetched ahead, while tiles meet the one before it: they lie in memory when their
/// turn in a network comes. Products of k = 512 at 7 x 7 pixels gained 14 % there, of 1024 and 2048 5 to 6 %; weights that are in a cache
/// anyhow lost nothing. Tiles of [few words](are_few) fetch none.
const FETCHED_BYTES: usize = 128 * 1024;

/// Tiles that share that, at least: fewer take no longer than what they would ask for.
const SHARES_MIN: usize = 3;

/// Tiles of a run.
const TILES: usize = 8;

/// Tiles that a panel meets in one run, or panels that a tile meets, at least: a run ends with a stage beside which nothing is multiplied.
const ACROSS_MIN: usize = 4;

/// How many times as fast as vectors a matrix unit is, about.
const MATRIX_UNIT: usize = 4;

/// Weights that stay in a common second-level cache from product to product, beside all else.
const WEIGHTS_BYTES: usize = 1 << 20;

/// Where the rows of a product start, in elements.
#[derive(Debug, Clone, Copy)]
pub enum Rows {
    /// Row `m` at `m * stride`; row `first` of the output is the first one.
    Strided { stride: usize, first: usize },
    /// Row `m` is output pixel `m` of a batch of images.
    Pixels(Pixels),
}

/// Output pixels over a padded NHWC workspace.
#[derive(Debug, Clone, Copy)]
pub struct Pixels {
    pub out_h: usize,
    pub out_w: usize,
    /// Elements from one output pixel's window to the next one's in its row, to the next row's, to the next image's.
    pub step_x: usize,
    pub step_y: usize,
    pub image: usize,
    /// The first pixel, of all images, and the first image.
    pub first_row: usize,
    pub first_image: usize,
}

impl Rows {
    /// Which row of the output the first one is.
    pub fn first(&self) -> usize {
        match *self {
            Rows::Strided { first, .. } => first,
            Rows::Pixels(pixels) => pixels.first_row,
        }
    }

    /// Where rows from `m` on start, and which zero point and scale they have.
    pub fn fill(&self, m: usize, offsets: &mut [usize], params: &mut [usize]) {
        let mr = offsets.len();
        match *self {
            Rows::Strided { stride, first } => {
                let mut at = m * stride;
                for i in 0..mr {
                    (offsets[i], params[i]) = (at, first + m + i);
                    // Beyond the last row it may be anything.
                    at = at.wrapping_add(stride);
                }
            }
            Rows::Pixels(p) => {
                let (mut x, mut y, mut image) = (m % p.out_w, m / p.out_w, 0);
                // Beside few words a division is noticed.
                if y >= p.out_h {
                    (y, image) = (y % p.out_h, y / p.out_h);
                }
                let mut at = image * p.image + y * p.step_y + x * p.step_x;
                for i in 0..mr {
                    (offsets[i], params[i]) = (at, p.first_image + image);
                    (x, at) = (x + 1, at.wrapping_add(p.step_x));
                    if x == p.out_w {
                        (x, y) = (0, y + 1);
                        if y == p.out_h {
                            (y, image) = (0, image + 1);
                        }
                        at = image.wrapping_mul(p.image).wrapping_add(y.wrapping_mul(p.step_y));
                    }
                }
            }
        }
    }
}

/// How a product is cut for threads: its tiles of rows, or its panels of columns, and where these are few, each in some pieces.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub parts: usize,
    pub phase: Phase,
    by_rows: bool,
    /// The panels that each tile meets, or the tiles that each panel meets.
    across: usize,
    /// Into how many items each tile or panel is cut.
    pieces: usize,
}

/// A product of rows in memory with packed weights.
pub struct Product<'a, S: Simd, D: Dot<S>, T: Store<S, D::Acc>> {
    pub simd: S,
    pub lhs: *const D::Lhs,
    pub rows: Rows,
    pub m: usize,
    pub segments: &'a [Segment],
    /// Elements from one group's activations to the next one's.
    pub group_step: usize,
    pub panels: &'a Panels<D::Weight>,
    pub start: Start<'a>,
    pub store: T,
    pub dst: *mut T::Element,
    pub dst_stride: usize,
}

// SAFETY: threads read `lhs` and write disjoint tiles of `dst`, both of which outlive the call that borrows them.
unsafe impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Sync for Product<'_, S, D, T> {}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Product<'_, S, D, T> {
    /// All tiles, on at most `threads` threads.
    ///
    /// # Safety
    /// - row `m` of `rows`, plus `group * group_step`, is readable at every word of every segment;
    /// - the segments have as many words as the panels;
    /// - `start` and the stage have an element for each parameter that `rows` names, and one for each column;
    /// - nobody else reads or writes `dst`, where the first row goes: `m` rows of `groups * n` elements, `dst_stride` apart.
    pub unsafe fn run(&self, threads: usize) {
        let cut = self.cut(threads);
        // SAFETY: the caller's promise; ranges are disjoint, and no two at a time are of the same part, of which there are no more than
        // threads.
        threads::phases([cut.phase], cut.parts, |_, part, range| unsafe { self.piece(&cut, part, range) });
    }

    /// How the product is cut for at most `threads` threads. Zero points, stage and pointers do not matter.
    pub fn cut(&self, threads: usize) -> Cut {
        let panels = self.panels.groups() * self.panels.panels();
        let unit = self.matrix_unit();
        let tiles = if unit.is_some() { self.m.div_ceil(self.square_rows()) } else { self.tiles() };
        if panels == 0 || tiles == 0 {
            return Cut { parts: 1, phase: Phase { items: 0, runs: 1 }, by_rows: true, across: 0, pieces: 1 };
        }
        let steps: usize = self.segments.iter().map(|s| s.words * D::KU).sum();
        let work = self.m * self.panels.n() * self.panels.groups() * steps.max(1);
        let weights = self.panels.groups() * self.panels.group_len() * size_of::<D::Weight>();
        let work = if unit.is_some() { work / MATRIX_UNIT } else { work }.max(PRODUCTS_OF_WEIGHT * weights);
        let parts = threads::parts(threads, work, GRAIN);
        // Waking a thread takes some ten microseconds, which weigh in a short product; in a long one, weights that are read again do.
        let runs = if work < LONG { RUNS } else { 1 };
        // Whichever of rows and columns cuts more evenly; at a tie rows, as then each thread reads its own activations and writes its own
        // lines. But a unit waits for weights that come from beyond a second-level cache: there each thread reads its own of those, even if
        // that cuts a little less evenly.
        let waste = |items: usize| items.div_ceil(parts) * parts * (panels * tiles / items);
        let by_rows = match unit {
            Some(_) if weights > WEIGHTS_BYTES => 9 * waste(tiles) < 8 * waste(panels),
            _ => waste(tiles) <= waste(panels),
        };
        let (items, across) = if by_rows { (tiles, panels) } else { (panels, tiles) };
        let pieces = if parts > 1 && runs > 1 { (parts * runs).div_ceil(items).min(across / ACROSS_MIN).max(1) } else { 1 };
        let items = items * pieces;
        Cut { parts: parts.min(items), phase: Phase { items, runs }, by_rows, across, pieces }
    }

    /// Some items of a cut of this product, by one part of those who share it.
    ///
    /// # Safety
    /// As for [`Product::run`], for these items; nobody else is the same part, below the number of threads, at the same time.
    pub unsafe fn piece(&self, cut: &Cut, part: usize, items: Range<usize>) {
        let &Cut { by_rows, across, pieces, .. } = cut;
        let mut at = items.start;
        while at < items.end {
            // Some whole ones, or what there is of one.
            let (first, piece, left) = (at / pieces, at % pieces, items.end - at);
            let (along, across) = if piece == 0 && left >= pieces {
                at += left / pieces * pieces;
                (first..first + left / pieces, 0..across)
            } else {
                let end = (piece + left).min(pieces);
                at += end - piece;
                (first..first + 1, across * piece / pieces..across * end / pieces)
            };
            let (tiles, panels) = if by_rows { (along, across) } else { (across, along) };
            match self.matrix_unit() {
                // SAFETY: the caller's promise; no two items have the same tile and panel.
                Some(unit) if D::MATRIX => unsafe { self.squares(unit, part, tiles, panels) },
                // Lists of eight tiles would be a good part of what a call of one costs.
                // SAFETY: as above.
                _ if self.is_short() && tiles.len() > 1 => unsafe { self.block::<TILES>(part, tiles, panels) },
                // SAFETY: as above.
                _ => unsafe { self.block::<1>(part, tiles, panels) },
            }
        }
    }

    /// Tiles of rows: even ones, and a single one as long as the rows fit.
    fn tiles(&self) -> usize {
        if self.m <= S::MR_MAX { self.m.min(1) } else { self.m.div_ceil(self.tile_rows()) }
    }

    /// Whether tiles are low and go in runs: of a longer k what is around its products takes no time worth saving.
    fn is_short(&self) -> bool {
        self.segments.iter().map(|s| s.words).sum::<usize>() <= SHORT_WORDS
    }

    /// Rows of a tile, about. Measured on Zen 4: runs of six rows are 2 to 5 % faster than single tiles of twelve at k from 256 to 2048,
    /// and 7 to 16 % at 16 to 64; of eight they lose 3 % to i32 at squares of 1024 and 2048, and without runs six are no faster than
    /// twelve.
    fn tile_rows(&self) -> usize {
        if self.is_short() { S::MR.min(*RUN_ROWS.end()) } else { S::MR }
    }

    /// Panels that `rows` rows go through before the next ones.
    pub(super) fn panels_of_block(&self, rows: usize) -> usize {
        let row_bytes = self.segments.iter().map(|s| s.words * D::KU).sum::<usize>() * size_of::<D::Lhs>();
        let bytes = if rows * row_bytes > BLOCK_BYTES { 2 * BLOCK_BYTES } else { BLOCK_BYTES };
        (bytes / self.panels.panel_bytes().max(1)).max(1)
    }

    /// Tiles in runs of `LONGEST` at most.
    ///
    /// # Safety
    /// As for [`Product::run`]; nobody else writes these tiles.
    unsafe fn block<const LONGEST: usize>(&self, part: usize, tiles: Range<usize>, panels: Range<usize>) {
        let (store, count, layout) = (self.store.part(part), self.tiles(), self.panels);
        // Divisions that a short tile would notice.
        let (n, nr, in_group) = (layout.n(), layout.nr(), layout.panels());
        let (group_len, panel_len) = (layout.group_len(), layout.panel_offset(1));
        let (weights, col_sums) = (layout.group(0), layout.col_sums());
        let large = self.m.saturating_mul(self.dst_stride) > LARGE_OUTPUT_BYTES / size_of::<T::Element>();
        // The higher tiles first, so that those of one height are in one run.
        let (low, more) = if count > 1 { (self.m / count, self.m % count) } else { (self.m, 0) };
        let top = |tile: usize| tile * low + tile.min(more);
        let fetched = S::PREFETCHES && size_of_val(weights) >= FETCHED_BYTES;
        let few = S::FEW_WORDS && D::EXACT && are_few(self.segments) && self.start.is_one();
        let block = self.panels_of_block(top(tiles.end) - top(tiles.start));
        let (mut offsets, mut params) = ([[0; ROWS]; LONGEST], [[0; ROWS]; LONGEST]);
        for first in panels.clone().step_by(block) {
            let at = (first / in_group, first % in_group);
            let (mut next, mut end) = (tiles.start, top(tiles.start));
            while next < tiles.end {
                let (m, mr) = (end, top(next + 1) - end);
                let mut run = 0;
                // Tiles of as many rows.
                while run == 0 || run < LONGEST && next < tiles.end && RUN_ROWS.contains(&mr) && top(next + 1) == end + mr {
                    self.rows.fill(end, &mut offsets[run][..mr], &mut params[run]);
                    (run, next, end) = (run + 1, next + 1, end + mr);
                }
                let rows = end - m;
                // Panels that no tile has met, if there are tiles enough for each to fetch a share.
                let new = fetched && m == top(tiles.start) && run >= SHARES_MIN;
                let dst = self.dst.wrapping_add(m * self.dst_stride);
                let mut tile = Tile::<S, D, T> {
                    lhs: self.lhs,
                    offsets: &offsets[..run],
                    params: &params[..run],
                    segments: self.segments,
                    weights: weights.as_ptr(),
                    start: self.start,
                    col_sums: col_sums.as_ptr(),
                    store,
                    m: self.rows.first() + m,
                    n: 0,
                    columns: 0,
                    dst,
                    dst_stride: self.dst_stride,
                    next_dst: std::ptr::null(),
                    next_weights: &[],
                };
                let (mut group, mut panel) = at;
                let last = (first + block).min(panels.end) - 1;
                for index in first..=last {
                    let column = panel * nr;
                    tile.lhs = self.lhs.wrapping_add(group * self.group_step);
                    tile.weights = weights[group * group_len + panel * panel_len..].as_ptr();
                    tile.n = group * n + column;
                    tile.columns = (n - column).min(nr);
                    tile.dst = dst.wrapping_add(tile.n);
                    if large {
                        // Columns further on, or the first ones of the rows below.
                        tile.next_dst = if index < last {
                            tile.dst.wrapping_add(tile.columns)
                        } else {
                            dst.wrapping_add(rows * self.dst_stride + at.0 * n + at.1 * nr)
                        };
                    }
                    tile.next_weights = &[];
                    if new && index + 1 < panels.end {
                        let (group, panel) = ((index + 1) / in_group, (index + 1) % in_group);
                        let rest = &weights[group * group_len + panel * panel_len..(group + 1) * group_len];
                        tile.next_weights = &rest[..panel_len.min(rest.len())];
                    }
                    if !col_sums.is_empty() {
                        tile.col_sums = col_sums[tile.n..].as_ptr();
                    }
                    // SAFETY: rows, stage and `dst` by the caller's promise; weights and column sums are those of this panel.
                    unsafe {
                        let nv = tile.columns.div_ceil(S::LANES);
                        if few {
                            self.simd.few_words(mr, nv, &tile);
                        } else {
                            self.simd.product_tile(mr, nv, &tile);
                        }
                        store.after(self.simd, tile.dst, self.dst_stride, rows, tile.columns);
                    }
                    panel += 1;
                    if panel == in_group {
                        (group, panel) = (group + 1, 0);
                    }
                }
            }
        }
    }
}
