//! What the kernels take and give: matrices in slices, codes, and values per row.

use super::simd::Element;
use super::tile::Zero;
use crate::error::{Error, Result};

/// A code that activations are stored in: `u8` or `i8`. Sealed.
pub trait ActivationCode: Element + sealed::Sealed {
    /// Smallest code.
    const QMIN: i32;
    /// Largest code.
    const QMAX: i32;

    /// The code as a number.
    fn to_i32(self) -> i32;

    /// The code of a number within the range.
    #[doc(hidden)]
    fn from_i32(code: i32) -> Self;

    /// The same slice with its type as a value.
    #[doc(hidden)]
    fn erase(codes: &[Self]) -> Codes<'_>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for i8 {}
}

impl ActivationCode for u8 {
    const QMIN: i32 = 0;
    const QMAX: i32 = 255;

    #[inline]
    fn to_i32(self) -> i32 {
        i32::from(self)
    }

    #[inline]
    fn from_i32(code: i32) -> u8 {
        code as u8
    }

    fn erase(codes: &[u8]) -> Codes<'_> {
        Codes::U8(codes)
    }
}

impl ActivationCode for i8 {
    const QMIN: i32 = -128;
    const QMAX: i32 = 127;

    #[inline]
    fn to_i32(self) -> i32 {
        i32::from(self)
    }

    #[inline]
    fn from_i32(code: i32) -> i8 {
        code as i8
    }

    fn erase(codes: &[i8]) -> Codes<'_> {
        Codes::I8(codes)
    }
}

/// Activation codes of either type. The kernels work on unsigned codes: `i8` code `c` is the `u8` code `c + 128`,
/// its zero point moves likewise, and the sums stay the same.
#[derive(Debug, Clone, Copy)]
pub enum Codes<'a> {
    U8(&'a [u8]),
    I8(&'a [i8]),
}

impl Codes<'_> {
    /// What turns a zero point of these codes into one of unsigned codes.
    pub(super) fn offset(&self) -> i32 {
        match self {
            Codes::U8(_) => 0,
            Codes::I8(_) => 128,
        }
    }

    /// The zero points of unsigned codes, those per row in `memory`.
    pub(super) fn zero<'m>(&self, zero_point: Per<'_, i32>, memory: &'m mut Vec<i32>) -> Zero<'m> {
        match zero_point {
            Per::Tensor(z) => Zero::Tensor(z + self.offset()),
            Per::Row(zero_points) => {
                memory.clear();
                memory.extend(zero_points.iter().map(|z| z + self.offset()));
                Zero::Row(memory)
            }
        }
    }
}

/// One value for all rows of a product (all images of a convolution), or one each.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Per<'a, T> {
    /// The same for all.
    Tensor(T),
    /// One for each row of a product, or each image of a convolution.
    Row(&'a [T]),
}

impl<T: Copy> Per<'_, T> {
    /// The value of row `row`.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn get(&self, row: usize) -> T {
        match self {
            Per::Tensor(value) => *value,
            Per::Row(values) => values[row],
        }
    }

    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Per::Tensor(value) => std::slice::from_ref(value),
            Per::Row(values) => values,
        }
    }

    pub(super) fn check_len(&self, what: &'static str, rows: usize) -> Result<()> {
        match self {
            Per::Row(values) if values.len() != rows => Err(Error::length(what, rows, values.len())),
            _ => Ok(()),
        }
    }
}

/// Zero points: the right number of them, each a code of `T`.
pub(super) fn check_zero_points<T: ActivationCode>(zero_points: Per<'_, i32>, rows: usize) -> Result<()> {
    zero_points.check_len("zero points", rows)?;
    match zero_points.as_slice().iter().position(|z| !(T::QMIN..=T::QMAX).contains(z)) {
        Some(index) => Err(Error::ZeroPoint { index, value: zero_points.as_slice()[index], qmin: T::QMIN, qmax: T::QMAX }),
        None => Ok(()),
    }
}

/// `threads` as given, if it is at least one.
pub(super) fn check_threads(threads: usize) -> Result<()> {
    if threads == 0 { Err(Error::parameter("threads", threads, "at least 1, the caller's own")) } else { Ok(()) }
}

/// Elements that `rows` rows of `cols` with `stride` between them need.
fn extent(rows: usize, cols: usize, stride: usize) -> Result<usize> {
    if cols == 0 || rows == 0 {
        return Ok(0);
    }
    (rows - 1).checked_mul(stride).and_then(|x| x.checked_add(cols)).ok_or_else(|| Error::ShapeOverflow { shape: vec![rows, cols] })
}

fn check_matrix(len: usize, rows: usize, cols: usize, stride: usize) -> Result<()> {
    if stride < cols {
        return Err(Error::parameter("row stride", stride, format!("at least the {cols} columns of a row")));
    }
    let needed = extent(rows, cols, stride)?;
    if len < needed { Err(Error::length(format!("matrix of {rows} x {cols}, row stride {stride}"), needed, len)) } else { Ok(()) }
}

/// A row-major matrix in a slice.
///
/// ```
/// use lowprec::kernels::Matrix;
/// let data = [1u8, 2, 3, 4, 5, 6];
/// assert!(Matrix::new(&data, 2, 3).is_ok());
/// assert!(Matrix::new(&data, 2, 2)?.with_stride(3).is_ok());
/// assert!(Matrix::new(&data, 3, 3).is_err());
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// `rows` x `cols`, one row after the other.
    ///
    /// # Errors
    /// [`Error::Length`] when `data` is too short (more is allowed).
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        check_matrix(data.len(), rows, cols, cols)?;
        Ok(Matrix { data, rows, cols, stride: cols })
    }

    /// With row `i` at element `i * stride`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `stride < cols`, [`Error::Length`] when the slice is too short for it.
    pub fn with_stride(self, stride: usize) -> Result<Self> {
        check_matrix(self.data.len(), self.rows, self.cols, stride)?;
        Ok(Matrix { stride, ..self })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows, in elements.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `row`.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn row(&self, row: usize) -> &'a [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        if self.cols == 0 { &[] } else { &self.data[row * self.stride..][..self.cols] }
    }

    pub(super) fn data(&self) -> &'a [T] {
        self.data
    }
}

/// A row-major matrix in a slice, to be written.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// `rows` x `cols`, one row after the other.
    ///
    /// # Errors
    /// [`Error::Length`] when `data` is too short (more is allowed).
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        check_matrix(data.len(), rows, cols, cols)?;
        Ok(MatrixMut { data, rows, cols, stride: cols })
    }

    /// With row `i` at element `i * stride`; what lies between the rows is not touched.
    ///
    /// # Errors
    /// [`Error::Parameter`] when `stride < cols`, [`Error::Length`] when the slice is too short for it.
    pub fn with_stride(self, stride: usize) -> Result<Self> {
        check_matrix(self.data.len(), self.rows, self.cols, stride)?;
        Ok(MatrixMut { stride, ..self })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows, in elements.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    /// What is in row `row`.
    pub(super) fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        if self.cols == 0 { &[] } else { &self.data[row * self.stride..][..self.cols] }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }
}

/// Whether `lhs` (`m` x `k`) and `dst` (`m` x `n`) fit weights of `n` columns over `k`.
pub(super) fn check_product<A, B>(lhs: &Matrix<'_, A>, dst: &MatrixMut<'_, B>, n: usize, k: usize) -> Result<()> {
    if lhs.cols() != k {
        return Err(Error::shape("lhs", format!("[m, {k}], as the weights have k = {k}"), &[lhs.rows(), lhs.cols()]));
    }
    if dst.rows() != lhs.rows() || dst.cols() != n {
        return Err(Error::shape(
            "dst",
            format!("[{}, {n}], the rows of lhs and the columns of the weights", lhs.rows()),
            &[dst.rows(), dst.cols()],
        ));
    }
    Ok(())
}
