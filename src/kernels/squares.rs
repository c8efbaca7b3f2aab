//! The loops around a matrix unit: squares of sums that it makes in registers of its own, finished from memory.
//!
//! The unit adds products in tiles of its own beside the vectors, which finish one square while it makes the next: sums leave it
//! through memory, and their output stage takes as long as the products of a few hundred steps of k.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::dot::Dot;
use super::matrix_unit::{MatrixUnit, SIDE, SquareShape, Steps, TILE, TILE_BYTES, TILE_WORDS};
use super::memory::Aligned;
use super::output::{Place, Store};
use super::product::{Product, Rows};
use super::simd::Simd;
use super::square_sums::Sums;
use super::tile::Segment;

/// Rows of a product from which on a matrix unit is faster than vectors, which read weights as fast as memory gives them.
const ROWS_MIN: usize = 8;

/// Parts of a square's products between which some rows of the square before are finished.
const PARTS: usize = 16;

/// Words that the tiles of a segment hold, on average, from which on a matrix unit is faster: a tile takes as long with fewer.
const WORDS_MIN: usize = 5;

/// Squares of rows that go through a panel together, if there are not more, or if that takes less out of the second-level cache: windows
/// of neighbouring pixels share most of what is under them. Else each goes through all panels, and only the first one meets weights that
/// no cache has.
const BAND: usize = 8;

/// Bytes of a panel that stays in a common first-level cache while squares go through it.
const PANEL_BYTES: usize = 40 * 1024;

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

/// The rows of a square, as a matrix unit reads them.
#[derive(Clone, Copy)]
struct SquareRows {
    /// The first one.
    m: usize,
    rows: usize,
    /// Those of the first half, and of the second if there is one, which then may repeat some of the first.
    first_half: usize,
    /// Where each starts, in elements.
    offsets: [usize; SIDE],
    /// Whether they are read in a copy, where their segments follow each other.
    gathered: bool,
    /// The first activation of each half.
    halves: [*const u8; 2],
    stride: usize,
}

impl SquareRows {
    const NONE: SquareRows =
        SquareRows { m: 0, rows: 0, first_half: 0, offsets: [0; SIDE], gathered: false, halves: [std::ptr::null(); 2], stride: 0 };

    /// Those of a square among others of `height`, whose halves they have if they can: a unit is made ready for others no sooner than needed.
    /// Which zero point and scale each has, goes to `params`.
    fn set(&mut self, rows: &Rows, range: Range<usize>, height: usize, params: &mut [usize; SIDE]) {
        (self.m, self.rows) = (range.start, range.len());
        let half = if height > TILE { height.div_ceil(2) } else { height };
        self.first_half = half.min(self.rows);
        let offsets = &mut self.offsets[..self.rows];
        rows.fill(self.m, offsets, &mut params[..self.rows]);
        self.gathered = !lie_evenly(offsets, self.first_half);
    }
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
    /// For segments of as many words each, `joined` of which follow each other.
    fn new(joined: usize, segments: &[Segment]) -> Plan {
        let (words, count) = (segments[0].words * joined, segments.len() / joined);
        let (tiles, rest) = (words / TILE_WORDS, words % TILE_WORDS);
        let together = tiles.div_ceil((PARTS / count).max(1)).max(1);
        Plan { tiles, rest, together, parts: count * tiles.div_ceil(together).max(1) }
    }

    /// Whether sums of whole squares stay in the unit until the next one's first tiles of words. Where there is one tile of words alone,
    /// the next square's stores would find nothing beside which to leave.
    fn stays(&self) -> bool {
        self.rest == 0 && self.parts > 1
    }
}

/// A square to be made.
struct Making {
    steps: Steps,
    /// Whether its rows are a copy, whose segments follow each other.
    gathered: bool,
    sums: *mut i32,
    plan: Plan,
    /// Weights that are wanted later, and lines of them that are asked for with each part.
    ahead: (*const i8, usize),
}

impl<S: Simd, D: Dot<S>, T: Store<S, D::Acc>> Product<'_, S, D, T> {
    /// The matrix unit, where the product is one for it.
    pub(super) fn matrix_unit(&self) -> Option<S::Matrix> {
        let words = self.segments.first().map_or(0, |segment| segment.words);
        let full = words > 0 && words >= WORDS_MIN * words.div_ceil(TILE_WORDS);
        let alike = self.segments.iter().all(|segment| segment.words == words);
        self.simd.matrix_unit().filter(|_| D::MATRIX && self.m >= ROWS_MIN && full && alike)
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

    /// [`Product::block`] in squares. Some squares of rows go through a panel together, while the next panel comes from memory: weights of a
    /// network are seldom in a cache when their layer's turn comes, and a unit this fast would wait for them.
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
        let overlap = self.segments.len() > 1 && layout.panel_bytes() <= PANEL_BYTES;
        let together = if tiles.len() <= BAND || overlap { BAND } else { 1 };
        let mut gathered = GATHERED.take();
        let plans = [Plan::new(1, self.segments), Plan::new(self.segments.len(), self.segments)];
        let mut band = [SquareRows::NONE; BAND];
        // Those of a square that waits stay as they are.
        let mut params = [[[0; SIDE]; BAND]; 2];
        let mut memory = Memory([MaybeUninit::uninit(); 2]);
        let mut waiting: Option<Sums<'_, T::Element>> = None;
        // Where sums go that are still in the unit.
        let mut leaving: Option<*mut i32> = None;
        let (mut shape, mut turn, mut odd) = (None, 0, false);
        for first in panels.clone().step_by(block) {
            let last = (first + block).min(panels.end) - 1;
            for start in tiles.clone().step_by(together) {
                let (band, params) = (&mut band[..(tiles.end - start).min(together)], &mut params[usize::from(odd)]);
                odd = !odd;
                for ((i, square), params) in band.iter_mut().enumerate().zip(&mut *params) {
                    let m = (start + i) * height;
                    square.set(&self.rows, m..(m + height).min(self.m), height, params);
                }
                let (mut group, mut panel) = (first / in_group, first % in_group);
                // SAFETY: the caller's promise on the rows.
                unsafe { self.find(group, band, &mut gathered) }
                // Lines of the next panel that are asked for beside each square, and with each of its parts.
                let ahead = if tiles.len() <= BAND { panel_len.div_ceil(64 * band.len()) } else { 0 };
                let ahead_of_part = plans.map(|plan| if ahead > 0 { ahead.div_ceil(plan.parts) } else { 0 });
                for index in first..=last {
                    let column = panel * nr;
                    let (column, columns) = (group * n + column, (n - column).min(nr));
                    let weights = weights[group * group_len + panel * panel_len..].as_ptr().cast::<i8>();
                    let vectors = columns.div_ceil(S::LANES);
                    for (i, square) in band.iter().enumerate() {
                        let plan = plans[usize::from(square.gathered)];
                        let next = SquareShape { rows: square.first_half, rest: plan.rest };
                        if shape != Some(next) {
                            if let Some(sums) = leaving.take() {
                                // SAFETY: room for a square, for whose shape the unit is still ready.
                                unsafe { leave(unit, sums) }
                            }
                            unit.begin(next);
                            shape = Some(next);
                        }
                        let place = Place { row: self.rows.first() + square.m, column, columns };
                        let sums = memory.0[turn].as_mut_ptr().cast::<i32>();
                        let steps = Steps {
                            halves: square.halves,
                            both: square.rows > square.first_half,
                            stride: square.stride,
                            weights,
                            vectors,
                            tiles: 0,
                            rest: plan.rest > 0,
                        };
                        let ahead_of_part = if index + 1 < panels.end { ahead_of_part[usize::from(square.gathered)] } else { 0 };
                        let ahead = (weights.wrapping_add(panel_len * vectors / S::NV + i * ahead * 64), ahead_of_part);
                        // SAFETY: rows, stage and `dst` by the caller's promise; weights and column sums are those of this panel, and sums
                        // have memory of their own.
                        unsafe {
                            let stays = plan.stays() && steps.both && steps.vectors == 2;
                            let making = Some(Making { steps, gathered: square.gathered, sums, plan, ahead });
                            if stays {
                                self.make::<true>(unit, store, making, leaving, waiting.as_ref());
                                leaving = Some(sums);
                            } else {
                                if let Some(sums) = leaving.take() {
                                    leave(unit, sums);
                                }
                                self.make::<false>(unit, store, making, None, waiting.as_ref());
                            }
                            waiting = Some(Sums {
                                sums,
                                rows: square.rows,
                                first_half: square.first_half,
                                params: params[i].as_ptr(),
                                start: self.start,
                                col_sums: col_sums[column..].as_ptr(),
                                place,
                                dst: self.dst.wrapping_add(square.m * self.dst_stride + column),
                                dst_stride: self.dst_stride,
                            });
                        }
                        turn = 1 - turn;
                    }
                    panel += 1;
                    if panel == in_group {
                        (group, panel) = (group + 1, 0);
                        if index < last {
                            // SAFETY: as above; sums that wait do not need the rows that they were made of.
                            unsafe { self.find(group, band, &mut gathered) }
                        }
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            if let Some(sums) = leaving {
                leave(unit, sums);
            }
            self.make::<false>(unit, store, None, None, waiting.as_ref());
        }
        unit.end();
        GATHERED.set(gathered);
    }

    /// Where a matrix unit reads the rows of squares, in a group: in place if those of each half lie evenly, else in a copy.
    ///
    /// A copy is not worth it for the sake of full tiles, where segments are short: in a first layer of 7 x 7 x 3 it took three times as
    /// long as the seven tiles of a third each, since tiles wait until all the small writes under them have left for the cache.
    ///
    /// # Safety
    /// The rows of the squares are readable at every word of every segment.
    unsafe fn find(&self, group: usize, band: &mut [SquareRows], gathered: &mut Aligned) {
        let lhs = self.lhs.wrapping_add(group * self.group_step).cast::<u8>();
        let mut copied = 0;
        for square in &mut *band {
            let second = square.rows - square.first_half;
            square.stride = if square.rows > 1 { square.offsets[1].wrapping_sub(square.offsets[0]) } else { 0 };
            square.halves = [lhs.wrapping_add(square.offsets[0]), lhs.wrapping_add(square.offsets[second])];
            copied += usize::from(square.gathered);
        }
        if copied == 0 {
            return;
        }
        let run = self.segments[0].words * D::KU;
        // Not a multiple of what collides in a first-level cache.
        let stride = (self.segments.len() * run).next_multiple_of(64) | 64;
        let copies = gathered.grow::<u8>(copied * SIDE * stride).chunks_exact_mut(SIDE * stride);
        for (square, copy) in band.iter_mut().filter(|square| square.gathered).zip(copies) {
            for (row, &offset) in copy.chunks_exact_mut(stride).zip(&square.offsets[..square.rows]) {
                for (row, segment) in row.chunks_exact_mut(run).zip(self.segments) {
                    let from = lhs.wrapping_add(offset.wrapping_add(segment.offset));
                    // SAFETY: the caller's promise; the copy is memory of its own.
                    unsafe { from.copy_to_nonoverlapping(row.as_mut_ptr(), run) }
                }
            }
            square.stride = stride;
            square.halves = [copy.as_ptr(), copy[(square.rows - square.first_half) * stride..].as_ptr()];
        }
    }

    /// Makes the sums of a square and meanwhile finishes those that wait.
    ///
    /// # Safety
    /// As for [`Product::run`], for the rows and columns of both; `sums` is writable for a square, and the unit ready for its shape. If
    /// it `STAYS`, it has both halves, two vectors of columns, no rest and a tile of words, and if there is a `leaving`, the unit holds the
    /// sums of the square that waits, of the same shape, which belong there. Else nothing is in the unit.
    #[inline]
    unsafe fn make<const STAYS: bool>(
        &self,
        unit: S::Matrix,
        store: T,
        next: Option<Making>,
        leaving: Option<*mut i32>,
        waiting: Option<&Sums<'_, T::Element>>,
    ) {
        let simd = self.simd;
        debug_assert!(leaving.is_none_or(|sums| STAYS && waiting.is_some_and(|waiting| waiting.sums == sums.cast_const())));
        // SAFETY: the caller's promise.
        simd.vectorize(
            #[inline(always)]
            || unsafe {
                match waiting {
                    Some(waiting) if waiting.place.columns > S::LANES => self.make_beside::<2, STAYS>(unit, store, next, leaving, waiting),
                    Some(waiting) => self.make_beside::<1, STAYS>(unit, store, next, leaving, waiting),
                    None => {
                        if let Some(next) = next {
                            self.sum::<STAYS>(unit, next, None, || ());
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
    unsafe fn make_beside<const NV: usize, const STAYS: bool>(
        &self,
        unit: S::Matrix,
        store: T,
        next: Option<Making>,
        leaving: Option<*mut i32>,
        waiting: &Sums<'_, T::Element>,
    ) {
        let simd = self.simd;
        // SAFETY: the caller's promise.
        let mut rest = unsafe { waiting.unfinished::<S, D, T, NV>(simd, store) };
        let Some(next) = next else {
            // SAFETY: the caller's promise.
            return unsafe { rest.finish::<S, D, T>(simd, store, waiting, waiting.rows) };
        };
        // Of rows in each pause, in fixed point.
        let share = ((waiting.rows as u32) << 16).div_ceil(next.pauses::<STAYS>() as u32);
        let mut due = 0u32;
        // SAFETY: as above.
        unsafe {
            self.sum::<STAYS>(
                unit,
                next,
                leaving,
                #[inline(always)]
                || {
                    due += share;
                    rest.finish::<S, D, T>(simd, store, waiting, ((due >> 16) as usize).min(waiting.rows));
                },
            )
        }
        debug_assert!(rest.is_empty(waiting));
    }

    /// Makes the sums of a square, in some parts, and has them leave tile by tile, or leaves them in the unit if it `STAYS`. Those of the
    /// square before, if they are there too, go to `leaving` as this one's first products take their registers. Calls `between` in each
    /// pause.
    ///
    /// Four tiles that leave at once take 66 cycles of a port that packing needs too, and the next square's first products wait for them;
    /// beside rows of the output stage, or the next products, they cost little. Tried and lost: sums that start in the unit from what the
    /// stage would add, loaded with a stride of 0 (5 % slower in a layer of 1x1, 64 to 256).
    ///
    /// # Safety
    /// As for [`Product::make`].
    #[inline(always)]
    unsafe fn sum<const STAYS: bool>(&self, unit: S::Matrix, next: Making, mut leaving: Option<*mut i32>, mut between: impl FnMut()) {
        let Making { mut steps, gathered, sums, plan, mut ahead } = next;
        let halves = steps.halves;
        let weight_step = TILE_BYTES * steps.vectors * S::LANES;
        if !STAYS || leaving.is_none() {
            // SAFETY: `squares` has made the unit ready.
            unsafe { unit.clear() }
        }
        let segments = if gathered { &[Segment { offset: 0, words: 0 }] } else { self.segments };
        for &Segment { offset, .. } in segments {
            steps.halves = [halves[0].wrapping_add(offset), halves[1].wrapping_add(offset)];
            let mut left = plan.tiles;
            loop {
                let mut tiles = left.min(plan.together);
                left -= tiles;
                if let Some(sums) = leaving.take().filter(|_| STAYS) {
                    // SAFETY: the caller's promise.
                    unsafe { unit.exchange(&steps, sums) }
                    steps.pass(1, weight_step);
                    tiles -= 1;
                }
                steps.tiles = tiles;
                if tiles > 0 {
                    // SAFETY: the caller's promise.
                    unsafe { unit.add(&steps) }
                    steps.pass(tiles, weight_step);
                }
                if left == 0 && plan.rest > 0 {
                    steps.tiles = 0;
                    // SAFETY: as above.
                    unsafe { unit.add(&steps) }
                    steps.weights = steps.weights.wrapping_add(plan.rest * 4 * steps.vectors * S::LANES);
                }
                for _ in 0..ahead.1 {
                    unit.prefetch(ahead.0);
                    ahead.0 = ahead.0.wrapping_add(64);
                }
                between();
                if left == 0 {
                    break;
                }
            }
        }
        if STAYS {
            return;
        }
        for half in 0..1 + usize::from(steps.both) {
            for vector in 0..steps.vectors {
                if (half, vector) != (0, 0) {
                    between();
                }
                // SAFETY: the caller's promise.
                unsafe { unit.store(half, vector, sums) }
            }
        }
    }
}

impl Making {
    /// After each part, and before each store but the first.
    fn pauses<const STAYS: bool>(&self) -> usize {
        let stores = self.steps.vectors * (1 + usize::from(self.steps.both));
        self.plan.parts + if STAYS { 0 } else { stores - 1 }
    }
}

/// Has the sums of a whole square leave the unit.
///
/// # Safety
/// It is ready for squares of that shape, and `sums` is writable for one.
unsafe fn leave<U: MatrixUnit>(unit: U, sums: *mut i32) {
    for (half, vector) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        // SAFETY: the caller's promise.
        unsafe { unit.store(half, vector, sums) }
    }
}
