//! Squares of sums that a matrix unit has made: their output stage, some rows at a time.

use super::dot::Dot;
use super::matrix_unit::{SIDE, TILE};
use super::output::{Place, Store};
use super::simd::Simd;
use super::tile::{Start, Zero};

/// A square whose sums are in memory, or on the way there.
pub(super) struct Sums<'a, E> {
    pub sums: *const i32,
    /// Its rows, those of the first half, and which zero point and scale each has.
    pub rows: usize,
    pub first_half: usize,
    pub params: *const usize,
    pub start: Start<'a>,
    pub col_sums: *const i32,
    pub place: Place,
    pub dst: *mut E,
    pub dst_stride: usize,
}

impl<E: Copy + Send + Sync> Sums<'_, E> {
    /// All rows, with `NV` vectors of columns. Reads no sums yet.
    ///
    /// # Safety
    /// The columns are inside the stage, fill `NV` vectors but for lanes of the last, and have column sums; there is a row.
    #[inline(always)]
    pub unsafe fn unfinished<S: Simd, D: Dot<S>, T: Store<S, D::Acc, Element = E>, const NV: usize>(
        &self,
        simd: S,
        store: T,
    ) -> Unfinished<E, T::Columns, D::Acc, NV> {
        let place = self.place;
        // SAFETY: the caller's promise.
        let (columns, shared) = unsafe {
            let mut columns = [store.columns(simd, place.column, place.lanes::<S>(0)); NV];
            for v in 1..NV {
                columns[v] = store.columns(simd, place.column + v * S::LANES, place.lanes::<S>(v));
            }
            let alike = matches!(self.start.zero, Zero::Tensor(_)) && self.start.weight_zero.is_empty();
            (columns, alike.then(|| self.starts::<S, D, 1, NV>(simd, 0)[0]))
        };
        Unfinished { row: 0, end: self.first_half, sums: self.sums, dst: self.dst, columns, shared }
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
}

/// Rows of a square that waits, from one on.
pub(super) struct Unfinished<E, C, A, const NV: usize> {
    /// The first of them.
    row: usize,
    /// The end of its half.
    end: usize,
    /// Its sums, and where it goes.
    sums: *const i32,
    dst: *mut E,
    columns: [C; NV],
    /// What all rows start from, where that is the same.
    shared: Option<[A; NV]>,
}

impl<E: Copy + Send + Sync, C: Copy, A: Copy, const NV: usize> Unfinished<E, C, A, NV> {
    /// Whether no row is left.
    #[inline(always)]
    pub fn is_empty(&self, square: &Sums<'_, E>) -> bool {
        self.row == square.rows
    }

    /// The output stage of rows before `until`, and up to three more: four at a time, since what a row costs besides is as much as its
    /// vectors.
    ///
    /// # Safety
    /// `square` is what this was made of, and its sums are all in memory by now. Its rows and columns are inside the stage, `params` has one
    /// for each row, and `dst` is writable for them.
    #[inline(always)]
    pub unsafe fn finish<S: Simd, D: Dot<S, Acc = A>, T: Store<S, A, Element = E, Columns = C>>(
        &mut self,
        simd: S,
        store: T,
        square: &Sums<'_, E>,
        until: usize,
    ) {
        while self.row < until {
            // SAFETY: the caller's promise.
            unsafe {
                if self.row + 3 < self.end {
                    self.rows::<S, D, T, 4>(simd, store, square);
                } else if self.row + 1 < self.end {
                    self.rows::<S, D, T, 2>(simd, store, square);
                } else {
                    self.rows::<S, D, T, 1>(simd, store, square);
                }
            }
            if self.row == self.end {
                // The second half ends with the last row: of an odd number it repeats one.
                self.sums = square.sums.wrapping_add((TILE + 2 * square.first_half - square.rows) * SIDE);
                self.end = square.rows;
            }
        }
    }

    /// The output stage of `R` rows.
    ///
    /// # Safety
    /// As for [`Unfinished::finish`], and there are as many in this half.
    #[inline(always)]
    unsafe fn rows<S: Simd, D: Dot<S, Acc = A>, T: Store<S, A, Element = E, Columns = C>, const R: usize>(
        &mut self,
        simd: S,
        store: T,
        square: &Sums<'_, E>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = match self.shared {
                Some(shared) => [shared; R],
                None => square.starts::<S, D, R, NV>(simd, self.row),
            };
            let mut params = [0; R];
            for r in 0..R {
                params[r] = *square.params.add(self.row + r);
                for v in 0..NV {
                    acc[r][v] = D::add(simd, acc[r][v], D::matrix_sums(simd, self.sums.add(r * SIDE + v * S::LANES)));
                }
            }
            let place = Place { row: square.place.row + self.row, ..square.place };
            store.store(simd, &self.columns, params, acc, place, self.dst, square.dst_stride);
        }
        self.row += R;
        self.sums = self.sums.wrapping_add(R * SIDE);
        self.dst = self.dst.wrapping_add(R * square.dst_stride);
    }
}
