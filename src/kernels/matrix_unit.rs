//! The loops around a matrix unit: squares of sums that it makes in registers of its own, finished from memory.
//!
//! The unit adds products in tiles of its own beside the vectors, which finish one square while it makes the next: sums leave it
//! through memory, and their output stage takes as long as the products of a few hundred steps of k.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::dot::Dot;
use super::memory::Aligned;
use super::output::{Place, Store};
use super::product::{Product, Rows};
use super::simd::Simd;
use super::tile::{Segment, Start, Zero};

/// Rows, and columns, of a tile of sums.
pub const TILE: usize = 16;

/// Rows, and columns, of a square: two tiles high and two wide.
pub const SIDE: usize = 2 * TILE;

/// Words of four activations that a tile holds of each row.
pub const TILE_WORDS: usize = 16;

/// Bytes of as many.
const TILE_BYTES: usize = 4 * TILE_WORDS;

/// Rows of a product from which on a matrix unit is faster than vectors, which read weights as fast as memory gives them.
const ROWS_MIN: usize = 8;

/// Parts of a square's products between which some rows of the square before are finished.
const PARTS: usize = 16;

/// What the tiles of a square hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquareShape {
    /// Rows of each half, 1 to [`TILE`].
    pub rows: usize,
    /// Words at the end of each segment that fill no tile, below [`TILE_WORDS`].
    pub rest: usize,
}

/// Products that a matrix unit adds to a square.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// The first activation of each half's first row.
    pub halves: [*const u8; 2],
    /// Whether there is a second half.
    pub both: bool,
    /// Bytes from a row to the next.
    pub stride: usize,
    /// From their first word on: `[words][vectors * TILE][4]`.
    pub weights: *const i8,
    /// Tiles of columns: 1 or 2.
    pub vectors: usize,
    /// Tiles of words, or none: the words that fill no tile.
    pub tiles: usize,
    /// Whether there are such words in this square.
    pub rest: bool,
}

/// A matrix unit: tiles of 8-bit activations and weights, and of their sums.
pub trait MatrixUnit: Copy + Send + Sync + 'static {
    /// Makes this thread's unit ready for squares of a shape.
    fn begin(self, shape: SquareShape);
    /// The sums of all tiles become 0.
    fn clear(self);
    /// Adds products to the sums.
    ///
    /// # Safety
    /// After [`MatrixUnit::begin`]: `shape.rows` rows of each half are readable for as many words as `steps` has, and so are the weights.
    unsafe fn add(self, steps: &Steps);
    /// The sums of the first or both halves: `[2][TILE][SIDE]`.
    ///
    /// # Safety
    /// `sums` is writable for as many, and starts a cache line.
    unsafe fn sums(self, both: bool, vectors: usize, sums: *mut i32);
    /// Gives the unit back: the system need not keep what is in it any longer.
    fn end(self);
}

/// Where there is none.
#[derive(Debug, Clone, Copy)]
pub enum NoMatrixUnit {}

impl MatrixUnit for NoMatrixUnit {
    fn begin(self, _: SquareShape) {
        match self {}
    }

    fn clear(self) {
        match self {}
    }

    unsafe fn add(self, _: &Steps) {
        match self {}
    }

    unsafe fn sums(self, _: bool, _: usize, _: *mut i32) {
        match self {}
    }

    fn end(self) {
        match self {}
    }
}

thread_local! {
    /// Rows that do not lie evenly, put together. Kept, so that calls allocate nothing once they have run.
    static GATHERED: RefCell<Aligned> = RefCell::default();
}

/// Whether the rows of each half lie as far apart as the first two.
fn lie_evenly(offsets: &[usize], first_half: usize) -> bool {
    let Some(stride) = offsets.get(1).map(|second| second.wrapping_sub(offsets[0])) else { return true };
    let evenly = |rows: &[usize]| rows.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == stride);
    evenly(&offsets[..first_half]) && evenly(&offsets[offsets.len() - first_half..])
}

/// The rows of a square as a matrix unit reads them.
struct Source {
    /// The first activation of each half.
    halves: [*const u8; 2],
    stride: usize,
}

/// How the products of a square are cut.
#[derive(Clone, Copy)]
struct Plan {
    /// Whole tiles of words in a segment.
    tiles: usize,
    /// Words after them.
    rest: usize,
    /// Tiles of a part.
    together: usize,
    /// Parts of all segments.
    parts: usize,
}

impl Plan {
    /// For segments of as many words each.
    fn new(segments: &[Segment]) -> Plan {
        let (tiles, rest) = (segments[0].words / TILE_WORDS, segments[0].words % TILE_WORDS);
        let together = tiles.div_ceil((PARTS / segments.len()).max(1)).max(1);
        Plan { tiles, rest, together, parts: segments.len() * tiles.div_ceil(together).max(1) }
    }
}

/// A square to be made.
struct Making {
    steps: Steps,
    /// Whether its rows are a copy, whose segments follow each other.
    gathered: bool,
    sums: *mut i32,
    plan: Plan,
}

/// A square whose sums are in memory.
struct Sums<'a, E> {
    sums: *const i32,
    /// Its rows, those of the first half, and which zero point and scale each has.
    rows: usize,
    first_half: usize,
    params: *const usize,
    start: Start<'a>,
    col_sums: *const i32,
    place: Place,
    dst: *mut E,
    dst_stride: usize,
}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Product<'_, S, D, T> {
    /// The matrix unit, where the product is one for it.
    pub(super) fn matrix_unit(&self) -> Option<S::Matrix> {
        let words = self.segments.first().map_or(0, |segment| segment.words);
        let even = words > 0 && self.segments.iter().all(|segment| segment.words == words);
        self.simd.matrix_unit().filter(|_| D::MATRIX && self.m >= ROWS_MIN && even)
    }

    /// Rows of a square: as many in each, but where they are pixels, so many that those of a half lie evenly if that wastes little: a part
    /// of a line, or two lines.
    pub(super) fn square_rows(&self) -> usize {
        let even = |rows: usize| rows.div_ceil(rows.div_ceil(SIDE).max(1)).max(1);
        if let Rows::Pixels(pixels) = self.rows {
            let (line, part) = (pixels.out_w, even(pixels.out_w));
            if line <= TILE && 4 * line >= 3 * TILE {
                return 2 * line;
            }
            if line > TILE && line.is_multiple_of(part) && 4 * part >= 3 * SIDE {
                return part;
            }
        }
        even(self.m)
    }

    /// [`Product::block`] in squares.
    ///
    /// # Safety
    /// As there, and `D::MATRIX`.
    pub(super) unsafe fn squares(&self, unit: S::Matrix, part: usize, tiles: Range<usize>, panels: Range<usize>) {
        #[repr(align(64))]
        struct Memory([MaybeUninit<[i32; SIDE * SIDE]>; 2]);
        let (store, layout, height) = (self.store.part(part), self.panels, self.square_rows());
        let (n, nr, in_group) = (layout.n(), layout.nr(), layout.panels());
        let (group_len, panel_len) = (layout.group_len(), layout.panel_offset(1));
        let (weights, col_sums) = (layout.group(0), layout.col_sums());
        let block = self.panels_of_block(tiles.len() * height);
        let plans = [Plan::new(self.segments), Plan::new(&[self.one_segment()])];
        let mut gathered = GATHERED.take();
        let (mut offsets, mut params) = ([0; SIDE], [[0; SIDE]; 2]);
        let mut memory = Memory([MaybeUninit::uninit(); 2]);
        let mut waiting: Option<Sums<'_, T::Element>> = None;
        let (mut shape, mut turn) = (None, 0);
        for first in panels.clone().step_by(block) {
            let last = (first + block).min(panels.end) - 1;
            for (i, tile) in tiles.clone().enumerate() {
                let (m, end) = (tile * height, ((tile + 1) * height).min(self.m));
                let (rows, params) = (end - m, &mut params[i % 2]);
                self.rows.fill(m, &mut offsets[..rows], &mut params[..rows]);
                let first_half = if rows <= TILE { rows } else { rows.div_ceil(2) };
                let offsets = &offsets[..rows];
                let gather = !lie_evenly(offsets, first_half);
                let plan = plans[usize::from(gather)];
                let next = SquareShape { rows: first_half, rest: plan.rest };
                if shape != Some(next) {
                    unit.begin(next);
                    shape = Some(next);
                }
                let (mut group, mut panel) = (first / in_group, first % in_group);
                // SAFETY: the caller's promise on the rows.
                let mut source = unsafe { self.source(group, offsets, first_half, gather.then_some(&mut gathered)) };
                for _ in first..=last {
                    let column = panel * nr;
                    let place = Place { row: self.rows.first() + m, column: group * n + column, columns: (n - column).min(nr) };
                    let sums = memory.0[turn].as_mut_ptr().cast::<i32>();
                    let steps = Steps {
                        halves: source.halves,
                        both: rows > TILE,
                        stride: source.stride,
                        weights: weights[group * group_len + panel * panel_len..].as_ptr().cast(),
                        vectors: place.columns.div_ceil(S::LANES),
                        tiles: 0,
                        rest: plan.rest > 0,
                    };
                    // SAFETY: rows, stage and `dst` by the caller's promise; weights and column sums are those of this panel, and sums have
                    // memory of their own.
                    unsafe {
                        self.make(unit, store, Some(Making { steps, gathered: gather, sums, plan }), waiting.as_ref());
                        waiting = Some(Sums {
                            sums,
                            rows,
                            first_half,
                            params: params.as_ptr(),
                            start: self.start,
                            col_sums: if col_sums.is_empty() { col_sums.as_ptr() } else { col_sums[place.column..].as_ptr() },
                            place,
                            dst: self.dst.wrapping_add(m * self.dst_stride + place.column),
                            dst_stride: self.dst_stride,
                        });
                    }
                    turn = 1 - turn;
                    panel += 1;
                    if panel == in_group {
                        (group, panel) = (group + 1, 0);
                        if group < layout.groups() {
                            // SAFETY: as above; sums that wait do not need the rows that they were made of.
                            source = unsafe { self.source(group, offsets, first_half, gather.then_some(&mut gathered)) };
                        }
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.make(unit, store, None, waiting.as_ref()) }
        unit.end();
        GATHERED.set(gathered);
    }

    /// All segments, one after the other.
    fn one_segment(&self) -> Segment {
        Segment { offset: 0, words: self.segments.len() * self.segments[0].words }
    }

    /// Where a matrix unit reads the rows of a group: in place, or a copy in `gathered`.
    ///
    /// A copy is not worth it for the sake of full tiles, where segments are short: in a first layer of 7 x 7 x 3 it took three times as
    /// long as the seven tiles of a third each, since tiles wait until all the small writes under them have left for the cache.
    ///
    /// # Safety
    /// The rows at `offsets` are readable at every word of every segment.
    unsafe fn source(&self, group: usize, offsets: &[usize], first_half: usize, gathered: Option<&mut Aligned>) -> Source {
        let lhs = self.lhs.wrapping_add(group * self.group_step).cast::<u8>();
        let second = offsets.len() - first_half;
        let Some(gathered) = gathered else {
            let stride = if offsets.len() > 1 { offsets[1].wrapping_sub(offsets[0]) } else { 0 };
            return Source { halves: [lhs.wrapping_add(offsets[0]), lhs.wrapping_add(offsets[second])], stride };
        };
        let run = self.segments[0].words * D::KU;
        // Not a multiple of what collides in a first-level cache.
        let stride = (self.segments.len() * run).next_multiple_of(64) | 64;
        let memory = gathered.grow::<u8>(offsets.len() * stride);
        for (row, &offset) in memory.chunks_exact_mut(stride).zip(offsets) {
            for (row, segment) in row.chunks_exact_mut(run).zip(self.segments) {
                let from = lhs.wrapping_add(offset.wrapping_add(segment.offset));
                // SAFETY: the caller's promise; the copy is memory of its own.
                unsafe { from.copy_to_nonoverlapping(row.as_mut_ptr(), run) }
            }
        }
        Source { halves: [memory.as_ptr(), memory[second * stride..].as_ptr()], stride }
    }

    /// Makes the sums of a square and meanwhile finishes those that wait.
    ///
    /// # Safety
    /// As for [`Product::run`], for the rows and columns of both; `sums` is writable for a square.
    #[inline]
    unsafe fn make(&self, unit: S::Matrix, store: T, next: Option<Making>, waiting: Option<&Sums<'_, T::Element>>) {
        let simd = self.simd;
        // SAFETY: the caller's promise.
        simd.vectorize(
            #[inline(always)]
            || unsafe {
                match waiting {
                    Some(waiting) if waiting.place.columns > S::LANES => self.make_beside::<2>(unit, store, next, waiting),
                    Some(waiting) => self.make_beside::<1>(unit, store, next, waiting),
                    None => {
                        if let Some(next) = next {
                            self.sum(unit, next, || ());
                        }
                    }
                }
            },
        );
        if let Some(waiting) = waiting {
            // SAFETY: it is written.
            unsafe { store.after(simd, waiting.dst, waiting.dst_stride, waiting.rows, waiting.place.columns) }
        }
    }

    /// # Safety
    /// As for [`Product::make`], with `NV` vectors of columns that wait.
    #[inline(always)]
    unsafe fn make_beside<const NV: usize>(&self, unit: S::Matrix, store: T, next: Option<Making>, waiting: &Sums<'_, T::Element>) {
        let (simd, place) = (self.simd, waiting.place);
        // SAFETY: the caller's promise: the columns are inside the stage, and there are sums of them.
        let (columns, shared) = unsafe {
            let mut columns = [store.columns(simd, place.column, place.lanes::<S>(0)); NV];
            for v in 1..NV {
                columns[v] = store.columns(simd, place.column + v * S::LANES, place.lanes::<S>(v));
            }
            let alike = matches!(waiting.start.zero, Zero::Tensor(_)) && waiting.start.weight_zero.is_empty();
            (columns, alike.then(|| waiting.starts::<S, D, 1, NV>(simd, 0)[0]))
        };
        let pairs = waiting.pairs();
        let Some(next) = next else {
            // SAFETY: the caller's promise.
            return unsafe { waiting.finish::<S, D, T, NV>(simd, store, &columns, shared, 0..pairs) };
        };
        // Of pairs after each part, in fixed point.
        let share = (pairs << 16).div_ceil(next.plan.parts);
        let (mut due, mut done) = (0, 0);
        // SAFETY: as above.
        unsafe {
            self.sum(
                unit,
                next,
                #[inline(always)]
                || {
                    due += share;
                    let end = (due >> 16).min(pairs);
                    waiting.finish::<S, D, T, NV>(simd, store, &columns, shared, done..end);
                    done = end;
                },
            )
        }
        debug_assert_eq!(done, pairs);
    }

    /// Makes the sums of a square in some parts, and calls `between` after each.
    ///
    /// # Safety
    /// As for [`Product::make`].
    #[inline(always)]
    unsafe fn sum(&self, unit: S::Matrix, Making { mut steps, gathered, sums, plan }: Making, mut between: impl FnMut()) {
        let halves = steps.halves;
        let weight_step = TILE_BYTES * steps.vectors * S::LANES;
        unit.clear();
        let whole = [self.one_segment()];
        for &Segment { offset, .. } in if gathered { &whole } else { self.segments } {
            steps.halves = [halves[0].wrapping_add(offset), halves[1].wrapping_add(offset)];
            let mut left = plan.tiles;
            loop {
                steps.tiles = left.min(plan.together);
                if steps.tiles > 0 {
                    // SAFETY: the caller's promise.
                    unsafe { unit.add(&steps) }
                    let ahead = steps.tiles * TILE_BYTES;
                    steps.halves = [steps.halves[0].wrapping_add(ahead), steps.halves[1].wrapping_add(ahead)];
                    steps.weights = steps.weights.wrapping_add(steps.tiles * weight_step);
                    left -= steps.tiles;
                }
                if left == 0 && plan.rest > 0 {
                    steps.tiles = 0;
                    // SAFETY: as above.
                    unsafe { unit.add(&steps) }
                    steps.weights = steps.weights.wrapping_add(plan.rest * 4 * steps.vectors * S::LANES);
                }
                between();
                if left == 0 {
                    break;
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { unit.sums(steps.both, steps.vectors, sums) }
    }
}

impl<E: Copy + Send + Sync> Sums<'_, E> {
    /// Pairs of rows, the last one of a half perhaps a single row.
    fn pairs(&self) -> usize {
        self.first_half.div_ceil(2) + (self.rows - self.first_half).div_ceil(2)
    }

    /// The output stage of some pairs.
    ///
    /// # Safety
    /// The rows and columns are inside the stage, and `dst` is writable for them.
    #[inline(always)]
    unsafe fn finish<S: Simd, D: Dot<S>, T: Store<S, D::Acc, Element = E>, const NV: usize>(
        &self,
        simd: S,
        store: T,
        columns: &[T::Columns; NV],
        shared: Option<[D::Acc; NV]>,
        pairs: Range<usize>,
    ) {
        let first_pairs = self.first_half.div_ceil(2);
        for pair in pairs {
            // The second half ends with the last row: of an odd number it repeats one.
            let (row, end, at) = if pair < first_pairs {
                (2 * pair, self.first_half, 2 * pair)
            } else {
                let row = self.first_half + 2 * (pair - first_pairs);
                (row, self.rows, TILE + row - (self.rows - self.first_half))
            };
            // SAFETY: the caller's promise.
            unsafe {
                if row + 1 < end {
                    self.finish_rows::<S, D, T, 2, NV>(simd, store, columns, shared, row, at);
                } else {
                    self.finish_rows::<S, D, T, 1, NV>(simd, store, columns, shared, row, at);
                }
            }
        }
    }

    /// What the sums of rows from `row` on start from.
    ///
    /// # Safety
    /// There are `R` more rows, and sums of the columns.
    #[inline(always)]
    unsafe fn starts<S: Simd, D: Dot<S>, const R: usize, const NV: usize>(&self, simd: S, row: usize) -> [[D::Acc; NV]; R] {
        let mut params = [0; R];
        // SAFETY: the caller's promise.
        unsafe {
            for r in 0..R {
                params[r] = *self.params.add(row + r);
            }
            D::start(simd, &self.start, (self.place.row + row, &params), self.col_sums, (self.place.column, self.place.columns))
        }
    }

    /// The output stage of `R` rows from `row` on, whose sums are from row `at` on.
    ///
    /// # Safety
    /// There are as many rows, and `dst` is writable for them.
    #[inline(always)]
    unsafe fn finish_rows<S: Simd, D: Dot<S>, T: Store<S, D::Acc, Element = E>, const R: usize, const NV: usize>(
        &self,
        simd: S,
        store: T,
        columns: &[T::Columns; NV],
        shared: Option<[D::Acc; NV]>,
        row: usize,
        at: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = match shared {
                Some(shared) => [shared; R],
                None => self.starts::<S, D, R, NV>(simd, row),
            };
            let mut params = [0; R];
            for r in 0..R {
                params[r] = *self.params.add(row + r);
                for v in 0..NV {
                    acc[r][v] = D::add(simd, acc[r][v], D::matrix_sums(simd, self.sums.add((at + r) * SIDE + v * S::LANES)));
                }
            }
            let place = Place { row: self.place.row + row, ..self.place };
            store.store(simd, columns, params, acc, place, self.dst.wrapping_add(row * self.dst_stride), self.dst_stride);
        }
    }
}
