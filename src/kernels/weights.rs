//! Weights of products, packed once for an instruction set.

use super::elementwise::Extremes;
use super::ingest::Quantizer;
use super::isa::{Isa, Visitor};
use super::pack::{Columns, PanelLayout, Panels, WeightRows, elements};
use super::ranges::Range;
use super::simd::{Element, Simd};
use crate::error::{Error, Result};
use crate::num::affine_qparams;

/// What sums of products may be.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Largest magnitude of one product.
    pub product: usize,
    /// Products whose sum always fits i32.
    pub products: usize,
}

impl Bound {
    /// `|code - zero_point| <= 255`, `|weight| <= 128`: `65536 * 255 * 128 < 2^31`.
    pub const SYMMETRIC: Bound = Bound { product: 255 * 128, products: 65536 };
    /// The same where weights have zero points, `|weight - zero_point| <= 255`: `33025 * 255 * 255 < 2^31`.
    pub const ASYMMETRIC: Bound = Bound { product: 255 * 255, products: 33025 };

    /// That of weights with these zero points.
    fn of(zero_points: &[i32]) -> Bound {
        if zero_points.is_empty() { Bound::SYMMETRIC } else { Bound::ASYMMETRIC }
    }

    /// Into runs of which length k is cut: one, or several that start at whole words.
    fn chunk(&self, k: usize) -> usize {
        if k <= self.products { k.max(1) } else { self.products / 64 * 64 }
    }
}

/// How the weights of a product lie in their slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightLayout {
    /// `[n, k]`, a row for each output: a linear layer in PyTorch, `Gemm` with `transB`.
    Nk,
    /// `[k, n]`, a column for each output: the right side of `MatMul`.
    Kn,
}

/// Steps `start..` of the columns of a matrix.
struct Slice<'a, W> {
    weights: &'a [W],
    layout: WeightLayout,
    n: usize,
    k: usize,
    start: usize,
}

impl<W: Element> Columns<W> for Slice<'_, W> {
    #[inline(always)]
    fn columns<S: Simd>(&self, _: S, first: usize, k: usize, weights: &mut [W], _: &mut [f32]) {
        debug_assert!(self.layout == WeightLayout::Nk, "rows are packed as rows");
        if k == 0 {
            return;
        }
        for (c, column) in weights.chunks_exact_mut(k).enumerate() {
            column.copy_from_slice(&self.weights[(first + c) * self.k + self.start..][..k]);
        }
    }

    fn rows(&self) -> Option<impl WeightRows<W>> {
        (self.layout == WeightLayout::Kn).then_some(self)
    }
}

impl<W: Element> WeightRows<W> for &Slice<'_, W> {
    #[inline(always)]
    fn scales<S: Simd>(&self, _: S, _: usize, _: &mut [f32]) {}

    #[inline(always)]
    fn row<S: Simd>(&self, _: S, step: usize, first: usize, _: &[f32], weights: &mut [W]) {
        weights.copy_from_slice(&self.weights[(self.start + step) * self.n + first..][..weights.len()]);
    }
}

fn check_weights(len: usize, n: usize, k: usize) -> Result<()> {
    // Column sums need memory even where k is 0.
    let expected = elements(&[n, k]).and_then(|expected| elements(&[n, 16]).map(|_| expected))?;
    if len != expected { Err(Error::length("weights", expected, len)) } else { Ok(()) }
}

/// 8-bit weights of a product, in the panels of one instruction set, with the sum of each column.
///
/// The packed form is a cache: it differs between processors and is never saved. Between one and a little more than
/// one byte per weight: the last columns fill up one vector.
///
/// ```
/// use lowprec::kernels::{Accumulate, Matrix, MatrixMut, PackedWeights, Per, WeightLayout, Workspace, gemm};
///
/// let weights = PackedWeights::pack(&[1, 2, 3, -1, 0, 1], 2, 3, WeightLayout::Nk)?;
/// let mut sums = [0i32; 2];
/// let lhs = Matrix::new(&[11u8, 12, 13], 1, 3)?;
/// let dst = MatrixMut::new(&mut sums, 1, 2)?;
/// gemm(lhs, Per::Tensor(10), &weights, &Accumulate, dst, &mut Workspace::new(), 1)?;
/// assert_eq!(sums, [1 + 2 * 2 + 3 * 3, -1 + 3]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PackedWeights {
    /// Runs of k whose sums fit i32, one after the other: one, unless k is above 65536 (33025 with zero points).
    chunks: Box<[Panels<i8>]>,
    chunk: usize,
    /// One for each column, or none.
    zero_points: Box<[i32]>,
    isa: Isa,
    n: usize,
    k: usize,
}

impl PackedWeights {
    /// For the fastest instruction set of this processor, [`Isa::best`].
    ///
    /// # Errors
    /// As [`PackedWeights::pack_for`].
    pub fn pack(codes: &[i8], n: usize, k: usize, layout: WeightLayout) -> Result<Self> {
        Self::pack_for(Isa::best(), codes, n, k, layout)
    }

    /// For the instruction set `isa`.
    ///
    /// # Errors
    /// [`Error::Isa`] when this processor lacks it, [`Error::Length`] when there are not `n * k` codes.
    pub fn pack_for(isa: Isa, codes: &[i8], n: usize, k: usize, layout: WeightLayout) -> Result<Self> {
        Self::pack_asymmetric_for(isa, codes, &[], n, k, layout)
    }

    /// Weights that stand for `codes - zero_points[n]`: one zero point for each column, or none at all.
    ///
    /// Zero points cost a pass over the activations, which sums their rows, and halve the k up to which `i32` is exact.
    ///
    /// # Errors
    /// As [`PackedWeights::pack_for`], and [`Error::Length`] for another number of zero points.
    pub fn pack_asymmetric_for(isa: Isa, codes: &[i8], zero_points: &[i8], n: usize, k: usize, layout: WeightLayout) -> Result<Self> {
        let isa = isa.checked()?;
        check_weights(codes.len(), n, k)?;
        if !zero_points.is_empty() && zero_points.len() != n {
            return Err(Error::length("weight zero points", n, zero_points.len()));
        }
        let zero_points: Box<[i32]> = zero_points.iter().map(|&z| i32::from(z)).collect();
        let chunk = Bound::of(&zero_points).chunk(k);
        let pack = |start: usize| {
            let columns = Slice { weights: codes, layout, n, k, start };
            Panels::pack(isa, PanelLayout::int8(isa), 1, n, &[(k - start).min(chunk)], columns)
        };
        let chunks = (0..k.max(1)).step_by(chunk).map(pack).collect();
        Ok(PackedWeights { chunks, chunk, zero_points, isa, n, k })
    }

    /// Quantizes float weights and packs them in one pass: symmetric codes -127 to 127, one scale for each column, which is
    /// [`affine_qparams`] of the column's range. Returns the weights and the scales.
    ///
    /// # Errors
    /// As [`PackedWeights::pack`], and [`Error::NonFinite`] for NaN and infinities.
    pub fn quantize(weights: &[f32], n: usize, k: usize, layout: WeightLayout) -> Result<(Self, Vec<f32>)> {
        Self::quantize_for(Isa::best(), weights, n, k, layout)
    }

    /// [`PackedWeights::quantize`] for the instruction set `isa`.
    ///
    /// # Errors
    /// As there, and [`Error::Isa`] when this processor lacks it.
    pub fn quantize_for(isa: Isa, weights: &[f32], n: usize, k: usize, layout: WeightLayout) -> Result<(Self, Vec<f32>)> {
        let isa = isa.checked()?;
        check_weights(weights.len(), n, k)?;
        let chunk = Bound::SYMMETRIC.chunk(k);
        let mut scales = vec![1.0; n];
        let mut chunks = Vec::new();
        for start in (0..k.max(1)).step_by(chunk) {
            let (columns, run) = (Quantized(Slice { weights, layout, n, k, start }), (k - start).min(chunk));
            chunks.push(Panels::pack_scaled(isa, PanelLayout::int8(isa), 1, n, &[run], columns, &mut scales));
        }
        if scales.iter().any(|scale| scale.is_nan()) {
            let (index, &value) = weights.iter().enumerate().find(|(_, x)| !x.is_finite()).expect("a column held it");
            return Err(Error::NonFinite { what: "weights".to_owned(), index, value });
        }
        let packed = PackedWeights { chunks: chunks.into(), chunk, zero_points: Box::default(), isa, n, k };
        Ok((packed, scales))
    }

    /// Columns: outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Products in each sum: inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The instruction set that runs them.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Zero points of the columns, or none.
    pub fn zero_points(&self) -> &[i32] {
        &self.zero_points
    }

    /// The kernel that runs them, as `u8i8-gemm-<rows>x<columns>x<k>-<isa>`, by the tile of a long k.
    pub fn kernel_name(&self) -> &'static str {
        self.isa.gemm_kernel()
    }

    /// Bytes held, column sums and zero points included.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Panels::bytes).sum::<usize>() + self.zero_points.len() * size_of::<i32>()
    }

    /// The codes, `[n, k]`.
    pub fn unpack(&self) -> Vec<i8> {
        let mut codes = vec![0; self.n * self.k];
        for (i, panels) in self.chunks.iter().enumerate() {
            let start = i * self.chunk;
            let run = (self.k - start).min(self.chunk);
            panels.unpack(&[run], |_, column, step, weight| codes[column * self.k + start + step] = weight);
        }
        codes
    }

    pub(super) fn bound(&self) -> Bound {
        Bound::of(&self.zero_points)
    }

    /// The panels of each run of k, with where it starts and its length.
    pub(super) fn chunks(&self) -> impl ExactSizeIterator<Item = (&Panels<i8>, usize, usize)> {
        let lengths = (0..self.chunks.len()).map(|i| (i * self.chunk, (self.k - i * self.chunk).min(self.chunk)));
        self.chunks.iter().zip(lengths).map(|(panels, (start, len))| (panels, start, len))
    }
}

/// Columns of float weights, quantized one by one over the whole of k. The scale of a column that is not finite is NaN.
struct Quantized<'a>(Slice<'a, f32>);

impl Columns<i8> for Quantized<'_> {
    #[inline(always)]
    fn columns<S: Simd>(&self, simd: S, first: usize, run: usize, codes: &mut [i8], scales: &mut [f32]) {
        let Slice { weights, k, start, .. } = self.0;
        for (c, scale) in scales.iter_mut().enumerate() {
            let column = &weights[(first + c) * k..][..k];
            let range = Extremes(column).visit(simd);
            *scale = scale_of(range);
            if range.finite {
                // As unsigned codes, which `codes` turns into signed ones.
                let quantizer = Quantizer::new(*scale, 128, 1, 255);
                quantizer.codes::<S, i8, true, false>(simd, &column[start..start + run], &mut codes[c * run..][..run]);
            }
        }
    }

    fn rows(&self) -> Option<impl WeightRows<i8>> {
        (self.0.layout == WeightLayout::Kn).then_some(self)
    }
}

/// The scale of a column for codes -127 to 127 around 0: NaN for one that is not finite.
fn scale_of(range: Range) -> f32 {
    if !range.finite {
        return f32::NAN;
    }
    let Range { min, max, .. } = range.closed();
    affine_qparams(min, max, -127, 127, true).0
}

/// Rows that are taken together, and how far ahead the next ones are asked for: the processor foresees only what lies together.
const TOGETHER: usize = 4;

impl WeightRows<i8> for &Quantized<'_> {
    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, first: usize, scales: &mut [f32]) {
        let Slice { weights, n, k, .. } = self.0;
        let count = scales.len();
        // 0 * x is 0 for what is finite, else NaN, which stays.
        let (mut min, mut max, mut zero) = (vec![f32::INFINITY; count], vec![f32::NEG_INFINITY; count], vec![0f32; count]);
        for step in (0..k).step_by(TOGETHER) {
            for at in (0..count).step_by(S::LANES) {
                let lanes = (count - at).min(S::LANES);
                let (min, max, zero) = (min[at..].as_mut_ptr(), max[at..].as_mut_ptr(), zero[at..].as_mut_ptr());
                // SAFETY: `lanes` columns from `at` on are in the three vectors.
                let (mut low, mut high, mut sum) =
                    unsafe { (simd.load_f32(min, lanes), simd.load_f32(max, lanes), simd.load_f32(zero, lanes)) };
                for step in step..(step + TOGETHER).min(k) {
                    let row = weights[step * n + first + at..][..lanes].as_ptr();
                    simd.prefetch(row.wrapping_add(TOGETHER * n).cast());
                    // SAFETY: they are in the row too.
                    let x = unsafe { simd.load_f32(row, lanes) };
                    (low, high) = (simd.min_f32(x, low), simd.max_f32(x, high));
                    sum = simd.mul_add_f32(x, simd.splat_f32(0.0), sum);
                }
                // SAFETY: as above.
                unsafe {
                    simd.store_f32(min, low, lanes);
                    simd.store_f32(max, high, lanes);
                    simd.store_f32(zero, sum, lanes);
                }
            }
        }
        for (i, scale) in scales.iter_mut().enumerate() {
            *scale = scale_of(Range { min: min[i], max: max[i], finite: zero[i] == 0.0 });
        }
    }

    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, step: usize, first: usize, scales: &[f32], weights: &mut [i8]) {
        let row = &self.0.weights[(self.0.start + step) * self.0.n + first..][..weights.len()];
        for at in (0..row.len()).step_by(16) {
            simd.prefetch(row.as_ptr().wrapping_add(TOGETHER * self.0.n + at).cast());
        }
        for ((code, &x), &scale) in weights.iter_mut().zip(row).zip(scales) {
            *code = (Quantizer::new(scale, 128, 1, 255).code(x) - 128) as i8;
        }
    }
}

/// Float weights of a product, in the panels of one instruction set.
#[derive(Debug, Clone)]
pub struct PackedFloatWeights {
    panels: Panels<f32>,
    isa: Isa,
    k: usize,
}

impl PackedFloatWeights {
    /// For the fastest instruction set of this processor, [`Isa::best`].
    ///
    /// # Errors
    /// As [`PackedFloatWeights::pack_for`].
    pub fn pack(weights: &[f32], n: usize, k: usize, layout: WeightLayout) -> Result<Self> {
        Self::pack_for(Isa::best(), weights, n, k, layout)
    }

    /// For the instruction set `isa`.
    ///
    /// # Errors
    /// [`Error::Isa`] when this processor lacks it, [`Error::Length`] when there are not `n * k` weights.
    pub fn pack_for(isa: Isa, weights: &[f32], n: usize, k: usize, layout: WeightLayout) -> Result<Self> {
        let isa = isa.checked()?;
        check_weights(weights.len(), n, k)?;
        let panels = Panels::pack(isa, PanelLayout::float(isa), 1, n, &[k], Slice { weights, layout, n, k, start: 0 });
        Ok(PackedFloatWeights { panels, isa, k })
    }

    /// Columns: outputs.
    pub fn n(&self) -> usize {
        self.panels.n()
    }

    /// Products in each sum: inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The instruction set that runs them.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    pub(super) fn panels(&self) -> &Panels<f32> {
        &self.panels
    }
}
