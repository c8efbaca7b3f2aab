//! Second moments of a layer's inputs.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::{FloatEpilogue, Matrix, MatrixMut, WeightLayout, Workspace, matmul_f32};

/// `H = Σ x xᵀ` over input rows: half of the second derivative of the squared error of outputs with respect to the weights of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Hessian {
    width: usize,
    samples: usize,
    sums: Vec<f64>,
    /// The rows themselves while they are few: see [`FEW`].
    rows: Vec<f32>,
}

/// Rows whose products are added in f32 before they are added to the sums.
const ROWS: usize = 256;

/// Rows of a `FEW`th of their width and fewer are kept: products with them, and with them again, cost less than products with `H`.
const FEW: usize = 4;

impl Hessian {
    /// Of inputs of so many values, none seen yet.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] when its square can't be addressed.
    pub fn new(width: usize) -> Result<Self> {
        let cells = width.checked_mul(width).filter(|cells| *cells <= isize::MAX as usize / size_of::<f64>());
        let cells = cells.ok_or_else(|| Error::ShapeOverflow { shape: vec![width, width] })?;
        Ok(Hessian { width, samples: 0, sums: vec![0.0; cells], rows: Vec::new() })
    }

    /// Values of an input row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows seen.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Adds rows, one after the other.
    ///
    /// # Errors
    /// [`Error::Length`] when the last is not whole, [`Error::NonFinite`] for NaN and infinities, [`Error::Parameter`] for values whose
    /// squares are beyond f32; then nothing more is added.
    pub fn add(&mut self, rows: &[f32], threads: usize) -> Result<()> {
        let d = self.width;
        if d == 0 || !rows.len().is_multiple_of(d) {
            return Err(Error::length(format!("input rows of {d} values"), rows.len().next_multiple_of(d.max(1)), rows.len()));
        }
        crate::num::NonFinite::Error.check("input", rows)?;
        let (mut turned, mut product, mut workspace) = (Vec::new(), vec![0f32; d * d], Workspace::new());
        for rows in rows.chunks(ROWS * d) {
            let m = rows.len() / d;
            turned.clear();
            turned.extend((0..d * m).map(|i| rows[i % m * d + i / m]));
            let (lhs, rhs) = (Matrix::new(&turned, d, m)?, Matrix::new(rows, m, d)?);
            let dst = MatrixMut::new(&mut product, d, d)?;
            matmul_f32(lhs, rhs, WeightLayout::Kn, &FloatEpilogue::new(), dst, &mut workspace, threads)?;
            if let Some(i) = (0..d).find(|i| !product[i * (d + 1)].is_finite()) {
                let largest = rows.chunks(d).map(|row| row[i].abs()).fold(0.0, f32::max);
                return Err(Error::parameter("input to fit weights to", largest, "its square must lie within f32"));
            }
            // The product is symmetric but for the order of its sums: so that it is so exactly, one half counts.
            for i in 0..d {
                for j in 0..=i {
                    self.sums[i * d + j] += f64::from(product[i * d + j]);
                }
            }
            if self.rows.len() == self.samples * d {
                self.rows.extend_from_slice(rows);
            }
            self.samples += m;
            if self.samples * FEW > d {
                self.rows = Vec::new();
            }
        }
        for i in 0..d {
            for j in 0..i {
                self.sums[j * d + i] = self.sums[i * d + j];
            }
        }
        Ok(())
    }

    /// `H` in f64, row by row.
    pub fn as_slice(&self) -> &[f64] {
        &self.sums
    }

    /// The diagonal.
    pub fn diagonal(&self) -> impl Iterator<Item = f64> {
        (0..self.width).map(|i| self.sums[i * (self.width + 1)])
    }

    /// The rows, as long as they are few.
    fn rows(&self) -> Option<&[f32]> {
        (self.samples > 0 && self.rows.len() == self.samples * self.width).then_some(&self.rows[..])
    }

    /// The mean over samples of `|e x|²`, summed over the rows `e` of `errors`.
    ///
    /// # Errors
    /// [`Error::Length`] when the last row is not whole.
    pub fn error(&self, errors: &[f32], threads: usize) -> Result<f64> {
        let d = self.width;
        if d == 0 || self.samples == 0 {
            return Ok(0.0);
        }
        let mut sum = 0.0;
        if let Some(samples) = self.rows() {
            let (mut output, mut workspace) = (vec![0f32; ROWS * self.samples], Workspace::new());
            for rows in errors.chunks(ROWS * d) {
                let (m, n) = (rows.len() / d, self.samples);
                let (lhs, rhs) = (Matrix::new(rows, m, d)?, Matrix::new(samples, n, d)?);
                let dst = MatrixMut::new(&mut output[..m * n], m, n)?;
                matmul_f32(lhs, rhs, WeightLayout::Nk, &FloatEpilogue::new(), dst, &mut workspace, threads)?;
                sum += output[..m * n].iter().map(|&y| f64::from(y).powi(2)).sum::<f64>();
            }
            return Ok(sum / self.samples as f64);
        }
        let mut products = Products::new(self, threads);
        for rows in errors.chunks(ROWS * d) {
            let product = products.of(rows, 0..d)?;
            sum += rows.iter().zip(product).map(|(&e, &h)| f64::from(e) * f64::from(h)).sum::<f64>();
        }
        Ok(sum / self.samples as f64)
    }
}

/// Products of rows with columns of a Hessian, in f32.
pub(in crate::ptq) struct Products<'h> {
    width: usize,
    values: Cow<'h, [f32]>,
    /// The rows whose products `H` is, where they are few, and the errors' products with them.
    rows: Option<&'h [f32]>,
    inner: Vec<f32>,
    output: Vec<f32>,
    workspace: Workspace,
    threads: usize,
}

impl<'h> Products<'h> {
    pub fn new(hessian: &'h Hessian, threads: usize) -> Self {
        let values = hessian.sums.iter().map(|&x| x as f32).collect();
        let (inner, output, workspace) = (Vec::new(), Vec::new(), Workspace::new());
        Products { width: hessian.width, values: Cow::Owned(values), rows: hessian.rows(), inner, output, workspace, threads }
    }

    /// Another of the same Hessian, with memory of its own.
    pub fn beside(&self) -> Products<'_> {
        let (width, threads, rows) = (self.width, self.threads, self.rows);
        let (inner, output, workspace) = (Vec::new(), Vec::new(), Workspace::new());
        Products { width, values: Cow::Borrowed(&self.values), rows, inner, output, workspace, threads }
    }

    /// `H` in f32.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// `rows · H[columns, columns]`, rows as wide as the columns.
    pub fn within(&mut self, rows: &[f32], columns: Range<usize>) -> Result<&[f32]> {
        let (m, n) = (rows.len() / columns.len().max(1), columns.len());
        self.output.resize(m * n, 0.0);
        let lhs = Matrix::new(rows, m, n)?;
        let rhs = Matrix::new(&self.values[columns.start * self.width + columns.start..], n, n)?.with_stride(self.width)?;
        let dst = MatrixMut::new(&mut self.output, m, n)?;
        matmul_f32(lhs, rhs, WeightLayout::Kn, &FloatEpilogue::new(), dst, &mut self.workspace, self.threads)?;
        Ok(&self.output)
    }

    /// `rows · H[.., columns]`, rows as wide as `H`.
    pub fn of(&mut self, rows: &[f32], columns: Range<usize>) -> Result<&[f32]> {
        let (m, n) = (rows.len() / self.width.max(1), columns.len());
        self.output.resize(m * n, 0.0);
        let lhs = Matrix::new(rows, m, self.width)?;
        let rhs = Matrix::new(&self.values[columns.start..], self.width, n)?.with_stride(self.width)?;
        let dst = MatrixMut::new(&mut self.output, m, n)?;
        matmul_f32(lhs, rhs, WeightLayout::Kn, &FloatEpilogue::new(), dst, &mut self.workspace, self.threads)?;
        Ok(&self.output)
    }

    /// Begins to keep track of `errors`, rows as wide as `H`.
    pub fn track(&mut self, errors: &[f32]) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        let (m, n) = (errors.len() / self.width.max(1), rows.len() / self.width.max(1));
        self.inner.resize(m * n, 0.0);
        let (lhs, rhs) = (Matrix::new(errors, m, self.width)?, Matrix::new(rows, n, self.width)?);
        let dst = MatrixMut::new(&mut self.inner, m, n)?;
        matmul_f32(lhs, rhs, WeightLayout::Nk, &FloatEpilogue::new(), dst, &mut self.workspace, self.threads)
    }

    /// Some columns of the errors that are kept track of became larger by this much.
    pub fn changed(&mut self, by: &[f32], columns: Range<usize>) -> Result<()> {
        let Some(rows) = self.rows else { return Ok(()) };
        let (m, n) = (by.len() / columns.len().max(1), rows.len() / self.width.max(1));
        let lhs = Matrix::new(by, m, columns.len())?;
        let rhs = Matrix::new(&rows[columns.start..], n, columns.len())?.with_stride(self.width)?;
        let dst = MatrixMut::new(&mut self.inner, m, n)?;
        let add = FloatEpilogue::new().with_accumulate(true);
        matmul_f32(lhs, rhs, WeightLayout::Nk, &add, dst, &mut self.workspace, self.threads)
    }

    /// [`Products::of`] the errors that are kept track of.
    pub fn of_tracked(&mut self, errors: &[f32], columns: Range<usize>) -> Result<&[f32]> {
        let Some(rows) = self.rows else { return self.of(errors, columns) };
        let k = rows.len() / self.width.max(1);
        let (m, n) = (self.inner.len() / k.max(1), columns.len());
        self.output.resize(m * n, 0.0);
        let lhs = Matrix::new(&self.inner, m, k)?;
        let rhs = Matrix::new(&rows[columns.start..], k, n)?.with_stride(self.width)?;
        let dst = MatrixMut::new(&mut self.output, m, n)?;
        matmul_f32(lhs, rhs, WeightLayout::Kn, &FloatEpilogue::new(), dst, &mut self.workspace, self.threads)?;
        Ok(&self.output)
    }
}
