//! Sums and products of codes of two operands.

use super::{GRAIN, checked};
use crate::error::{Error, Result};
use crate::kernels::isa::{Isa, Visitor};
use crate::kernels::simd::{CodeGrid, Simd};
use crate::kernels::threads::{parts, split_rows};
use crate::num::U8Grid;

/// A function of two codes `a` and `b` on grids of their own, as a code on the output's.
///
/// ```text
/// sum:      clamp(round(f32(a - za) * (sa / s) + f32(b - zb) * (sb / s)) + z, lo, hi)
/// product:  clamp(round(f32((a - za) * (b - zb)) * (sa * sb / s)) + z, lo, hi)
/// ```
///
/// Multipliers, products and sums are each rounded to f32. The sum is that of [`Residual`](crate::kernels::Residual).
///
/// ```
/// use lowprec::{kernels::Pairwise, num::U8Grid};
/// let (a, b, sum) = (U8Grid::new(0.5, 10)?, U8Grid::new(0.25, 0)?, U8Grid::new(1.0, 100)?);
/// let mut y = [0; 3];
/// Pairwise::sum(a, b, sum)?.with_range(100, 255)?.run(&[10, 14, 0], &[0, 12, 4], &mut y, 1)?;
/// assert_eq!(y, [100, 105, 100]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pairwise {
    isa: Isa,
    function: Function,
    zero_points: [u8; 2],
    /// Those of the output: zero point, smallest and largest code.
    out: [u8; 3],
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Sum([f32; 2]),
    Product(f32),
}

impl Pairwise {
    /// The sum of the values.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `sa / s` or `sb / s` is above 2^64.
    pub fn sum(a: U8Grid, b: U8Grid, out: U8Grid) -> Result<Self> {
        let multipliers = [checked(a.scale() / out.scale())?, checked(b.scale() / out.scale())?];
        Ok(Pairwise::new(Function::Sum(multipliers), [a, b], out))
    }

    /// The product of the values.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `sa * sb / s` is above 2^64.
    pub fn product(a: U8Grid, b: U8Grid, out: U8Grid) -> Result<Self> {
        let multiplier = checked(a.scale() * b.scale() / out.scale())?;
        Ok(Pairwise::new(Function::Product(multiplier), [a, b], out))
    }

    fn new(function: Function, operands: [U8Grid; 2], out: U8Grid) -> Self {
        Pairwise { isa: Isa::best(), function, zero_points: operands.map(U8Grid::zero_point), out: [out.zero_point(), 0, 255] }
    }

    /// With other bounds than 0 and 255: a ReLU starts at the output's zero point.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `lo` is above `hi`.
    pub fn with_range(self, lo: u8, hi: u8) -> Result<Self> {
        match lo <= hi {
            true => Ok(Pairwise { out: [self.out[0], lo, hi], ..self }),
            false => Err(Error::parameter("code range", (lo, hi), "must not be empty: put the smaller bound first")),
        }
    }

    /// Smallest and largest code.
    pub fn range(self) -> (u8, u8) {
        (self.out[1], self.out[2])
    }

    /// On the instruction set `isa` instead of the fastest.
    ///
    /// # Errors
    /// [`Error::Isa`] when this processor lacks it.
    pub fn with_isa(self, isa: Isa) -> Result<Self> {
        Ok(Pairwise { isa: isa.checked()?, ..self })
    }

    /// `y[i]` of `a[i]` and `b[i]`, on at most so many threads.
    ///
    /// # Errors
    /// [`Error::Length`] when the slices are not of one length.
    pub fn run(&self, a: &[u8], b: &[u8], y: &mut [u8], threads: usize) -> Result<()> {
        for (what, got) in [("first operand", a.len()), ("second operand", b.len())] {
            if got != y.len() {
                return Err(Error::length(what, y.len(), got));
            }
        }
        split_rows(y, 1, parts(threads, a.len(), GRAIN), &|start, y: &mut [u8]| {
            let row = y.len();
            self.rows([a, b], y, row, [1, 1], &mut || [start, start]);
        });
        Ok(())
    }

    /// Rows of `row` codes, whose operands begin where `next` says, and follow at these steps: 1, or 0 for one code repeated.
    ///
    /// # Panics
    /// When a row of an operand leaves its slice.
    pub(crate) fn rows(&self, operands: [&[u8]; 2], y: &mut [u8], row: usize, steps: [usize; 2], next: &mut dyn FnMut() -> [usize; 2]) {
        if row == 0 {
            return;
        }
        let [zero_point, lo, hi] = self.out;
        let grid = CodeGrid { zero_point, lo, hi, flip: 0 };
        let zero_points = self.zero_points.map(i32::from);
        let shape = Shape { operands, zero_points, grid, row, steps };
        match self.function {
            Function::Sum(multipliers) => self.isa.visit(Rows { function: Sum(multipliers), shape, y, next }),
            Function::Product(multiplier) => self.isa.visit(Rows { function: Product(multiplier), shape, y, next }),
        }
    }
}

/// A function of two distances from zero points, in units of the output's scale.
trait Values: Copy {
    /// No result is farther from zero.
    fn bound(self) -> f32;
    fn of<S: Simd>(self, simd: S, a: S::I32, b: S::I32) -> S::F32;
}

#[derive(Clone, Copy)]
struct Sum([f32; 2]);

impl Values for Sum {
    fn bound(self) -> f32 {
        256.0 * (self.0[0] + self.0[1])
    }

    #[inline(always)]
    fn of<S: Simd>(self, simd: S, a: S::I32, b: S::I32) -> S::F32 {
        let a = simd.mul_f32(simd.to_f32(a), simd.splat_f32(self.0[0]));
        simd.add_f32(a, simd.mul_f32(simd.to_f32(b), simd.splat_f32(self.0[1])))
    }
}

#[derive(Clone, Copy)]
struct Product(f32);

impl Values for Product {
    fn bound(self) -> f32 {
        65536.0 * self.0
    }

    #[inline(always)]
    fn of<S: Simd>(self, simd: S, a: S::I32, b: S::I32) -> S::F32 {
        // At most 255 * 255: as exact in f32 as in integers, whose product takes two instructions where this takes one.
        simd.mul_f32(simd.mul_f32(simd.to_f32(a), simd.to_f32(b)), simd.splat_f32(self.0))
    }
}

/// Rows of two operands.
#[derive(Clone, Copy)]
struct Shape<'a> {
    operands: [&'a [u8]; 2],
    zero_points: [i32; 2],
    grid: CodeGrid,
    row: usize,
    steps: [usize; 2],
}

struct Rows<'a, F> {
    function: F,
    shape: Shape<'a>,
    y: &'a mut [u8],
    next: &'a mut dyn FnMut() -> [usize; 2],
}

/// The largest float below 2^31: what is above would not convert to i32.
const INTEGER_MAX: f32 = 2147483520.0;

impl<F: Values> Visitor for Rows<'_, F> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Rows { function, shape: Shape { operands: [a, b], zero_points, grid, row, steps }, y, next } = self;
        simd.vectorize(
            #[inline(always)]
            || {
                let loops = Loop { simd, function, zero_points, grid: simd.grid(grid), bounded: function.bound() < INTEGER_MAX };
                for y in y.chunks_exact_mut(row) {
                    let [a0, b0] = next();
                    match steps {
                        [0, _] => loops.row::<true, false>(&a[a0..][..1], &b[b0..][..row], y),
                        [_, 0] => loops.row::<false, true>(&a[a0..][..row], &b[b0..][..1], y),
                        _ => loops.row::<false, false>(&a[a0..][..row], &b[b0..][..row], y),
                    }
                }
            },
        );
    }
}

/// What stays in registers.
#[derive(Clone, Copy)]
struct Loop<S: Simd, F> {
    simd: S,
    function: F,
    zero_points: [i32; 2],
    grid: S::Grid,
    bounded: bool,
}

impl<S: Simd, F: Values> Loop<S, F> {
    /// One row; `A` and `B` say which operand is one code. Codes leave by saturating packs: narrowing float by float, as the
    /// compiler does with the plain loop, takes a third longer.
    #[inline(always)]
    fn row<const A: bool, const B: bool>(self, a: &[u8], b: &[u8], y: &mut [u8]) {
        let (simd, len) = (self.simd, y.len());
        assert!(a.len() >= if A { 1 } else { len } && b.len() >= if B { 1 } else { len });
        let mut done = 0;
        while done + 4 * S::LANES <= len {
            let mut q = [[simd.splat_i32(0); 2]; 2];
            for i in 0..4 {
                // SAFETY: four vectors are left in operands that are not one code.
                q[i / 2][i % 2] = unsafe { self.vector::<A, B>(a, b, done + i * S::LANES, S::LANES) };
            }
            // SAFETY: four vectors are left, as two rows next to each other.
            unsafe { simd.store_codes::<2, 2>(&q, self.grid, y.as_mut_ptr().add(done), 2 * S::LANES, 2 * S::LANES) }
            done += 4 * S::LANES;
        }
        while done < len {
            let lanes = S::LANES.min(len - done);
            // SAFETY: so many codes are left in `y`, and in operands that are not one code.
            unsafe {
                let q = self.vector::<A, B>(a, b, done, lanes);
                simd.store_codes::<1, 1>(&[[q]], self.grid, y.as_mut_ptr().add(done), 0, lanes);
            }
            done += lanes;
        }
    }

    /// Results from `at` on, as integers without their zero point.
    ///
    /// # Safety
    /// `at + lanes` codes are in the operands that are not one code.
    #[inline(always)]
    unsafe fn vector<const A: bool, const B: bool>(self, a: &[u8], b: &[u8], at: usize, lanes: usize) -> S::I32 {
        let simd = self.simd;
        // SAFETY: the caller's promise.
        let [a, b] = unsafe { [self.codes::<A>(a, 0, at, lanes), self.codes::<B>(b, 1, at, lanes)] };
        let x = self.function.of(simd, a, b);
        simd.round_i32(if self.bounded { x } else { simd.min_f32(x, simd.splat_f32(INTEGER_MAX)) })
    }

    /// Codes of operand `i` without their zero point.
    ///
    /// # Safety
    /// `at + lanes` codes are in `x`, unless it is one code.
    #[inline(always)]
    unsafe fn codes<const ONE: bool>(self, x: &[u8], i: usize, at: usize, lanes: usize) -> S::I32 {
        let codes = match ONE {
            true => self.simd.splat_i32(i32::from(x[0])),
            // SAFETY: the caller's promise.
            false => unsafe { self.simd.load_bytes(x.as_ptr().add(at), lanes) },
        };
        self.simd.add_i32(codes, self.simd.splat_i32(-self.zero_points[i]))
    }
}
