//! Weights in panels: the order in which a tile reads them.

use super::PRODUCTS_MAX;
use super::isa::{Isa, Visitor};
use super::simd::{Dot, Element, Float, Simd};
use super::workspace::Aligned;
use crate::error::{Error, Result};

/// How the weights of a product lie in their slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightLayout {
    /// `[n, k]`, a row for each output: a linear layer in PyTorch, `Gemm` with `transB`.
    Nk,
    /// `[k, n]`, a column for each output: the right side of `MatMul`.
    Kn,
}

impl WeightLayout {
    fn index(self, n: usize, k: usize, (column, step): (usize, usize)) -> usize {
        match self {
            WeightLayout::Nk => column * k + step,
            WeightLayout::Kn => step * n + column,
        }
    }
}

/// What a tile asks of its panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PanelLayout {
    /// Columns of a vector. A panel has two vectors, the last one only one if that is enough.
    pub lanes: usize,
    /// Steps of k in a word.
    pub ku: usize,
}

struct LayoutOf {
    float: bool,
}

impl Visitor for LayoutOf {
    type Out = PanelLayout;
    fn visit<S: Simd>(self, _: S) -> PanelLayout {
        PanelLayout { lanes: S::LANES, ku: if self.float { <Float as Dot<S>>::KU } else { S::Int8::KU } }
    }
}

impl PanelLayout {
    pub fn int8(isa: Isa) -> Self {
        isa.visit(LayoutOf { float: false })
    }

    pub fn float(isa: Isa) -> Self {
        isa.visit(LayoutOf { float: true })
    }
}

/// Weights of `groups` products of `n` columns each, over the same runs of k: `[group][panel][word][column][ku]`.
///
/// Each run of k is filled up to whole words with zero weights, which make whatever the tile reads there irrelevant.
#[derive(Debug, Clone)]
pub struct Panels<W> {
    data: Aligned,
    layout: PanelLayout,
    n: usize,
    groups: usize,
    /// Words of k, over all runs.
    words: usize,
    /// Sum of each column's weights, groups one after the other. Empty for floats.
    col_sums: Box<[i32]>,
    weight: std::marker::PhantomData<W>,
}

impl<W: Element> Panels<W> {
    /// Packs `at(group, column, step)`, where the steps of k are cut into runs of `runs` lengths.
    pub fn pack(layout: PanelLayout, groups: usize, n: usize, runs: &[usize], at: impl Fn(usize, usize, usize) -> W) -> Self {
        let words = runs.iter().map(|run| run.div_ceil(layout.ku)).sum();
        let mut panels =
            Panels { data: Aligned::default(), layout, n, groups, words, col_sums: Box::default(), weight: std::marker::PhantomData };
        panels.data = Aligned::zeroed::<W>(groups * panels.group_len());
        let mut data = std::mem::take(&mut panels.data);
        let packed = data.grow::<W>(groups * panels.group_len());
        for group in 0..groups {
            panels.for_each(runs, |column, step, index| packed[group * panels.group_len() + index] = at(group, column, step));
        }
        panels.data = data;
        panels
    }

    /// Calls `f(column, step, index in the group)` for each weight.
    fn for_each(&self, runs: &[usize], mut f: impl FnMut(usize, usize, usize)) {
        let PanelLayout { lanes, ku } = self.layout;
        for column in 0..self.n {
            let panel = column / self.nr();
            let (start, width) = (self.panel_offset(panel), self.vectors(panel) * lanes);
            let (mut step, mut word) = (0, 0);
            for &run in runs {
                for i in 0..run {
                    f(column, step + i, start + ((word + i / ku) * width + column % self.nr()) * ku + i % ku);
                }
                step += run;
                word += run.div_ceil(ku);
            }
        }
    }

    /// Calls `f(group, column, step, weight)` for each weight.
    pub fn unpack(&self, runs: &[usize], mut f: impl FnMut(usize, usize, usize, W)) {
        for group in 0..self.groups {
            let weights = &self.data.as_slice::<W>()[group * self.group_len()..];
            self.for_each(runs, |column, step, index| f(group, column, step, weights[index]));
        }
    }

    /// Columns of a full panel.
    pub fn nr(&self) -> usize {
        2 * self.layout.lanes
    }

    /// Panels of a group.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(self.nr())
    }

    /// Vectors of columns in panel `panel`.
    pub fn vectors(&self, panel: usize) -> usize {
        (self.n - panel * self.nr()).min(self.nr()).div_ceil(self.layout.lanes)
    }

    /// Where panel `panel` starts in its group: those before it are full.
    pub fn panel_offset(&self, panel: usize) -> usize {
        panel * self.nr() * self.words * self.layout.ku
    }

    fn group_len(&self) -> usize {
        self.n.div_ceil(self.layout.lanes) * self.layout.lanes * self.words * self.layout.ku
    }

    /// The panels of group `group`.
    pub fn group(&self, group: usize) -> &[W] {
        &self.data.as_slice::<W>()[group * self.group_len()..]
    }

    pub fn col_sums(&self) -> &[i32] {
        &self.col_sums
    }

    pub fn n(&self) -> usize {
        self.n
    }

    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Bytes of a full panel.
    pub fn panel_bytes(&self) -> usize {
        self.nr() * self.words * self.layout.ku * size_of::<W>()
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes() + self.col_sums.len() * size_of::<i32>()
    }
}

impl Panels<i8> {
    /// With the sum of each column, which takes the zero point of the activations out of the product.
    pub fn with_col_sums(mut self, runs: &[usize]) -> Self {
        let mut col_sums = vec![0; self.groups * self.n].into_boxed_slice();
        self.unpack(runs, |group, column, _, weight| col_sums[group * self.n + column] += i32::from(weight));
        self.col_sums = col_sums;
        self
    }
}

/// Whether sums over `k` products of 8-bit codes always fit i32.
pub(super) fn check_k(k: usize) -> Result<()> {
    if k > PRODUCTS_MAX { Err(Error::Accumulator { k, limit: PRODUCTS_MAX }) } else { Ok(()) }
}

pub(super) fn elements(shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })
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
    panels: Panels<i8>,
    isa: Isa,
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
    /// [`Error::Isa`] when this processor lacks it, [`Error::Length`] when there are not `n * k` codes,
    /// [`Error::Accumulator`] when `k` is above 65536.
    pub fn pack_for(isa: Isa, codes: &[i8], n: usize, k: usize, layout: WeightLayout) -> Result<Self> {
        let isa = isa.checked()?;
        check_k(k)?;
        let expected = elements(&[n, k])?;
        if codes.len() != expected {
            return Err(Error::length("weights", expected, codes.len()));
        }
        let panels = Panels::pack(PanelLayout::int8(isa), 1, n, &[k], |_, column, step| codes[layout.index(n, k, (column, step))]);
        Ok(PackedWeights { panels: panels.with_col_sums(&[k]), isa, k })
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

    /// The kernel that runs them, as `u8i8-gemm-<rows>x<columns>x<k>-<isa>`.
    pub fn kernel_name(&self) -> &'static str {
        match self.isa {
            Isa::Scalar => "u8i8-gemm-4x8x4-scalar",
            Isa::Avx2 => "u8i8-gemm-6x16x2-avx2",
            Isa::Avx512Vnni => "u8i8-gemm-14x32x4-avx512vnni",
        }
    }

    /// Bytes held, column sums included.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// The codes, `[n, k]`.
    pub fn unpack(&self) -> Vec<i8> {
        let mut codes = vec![0; self.n() * self.k];
        self.panels.unpack(&[self.k], |_, column, step, weight| codes[column * self.k + step] = weight);
        codes
    }

    pub(super) fn panels(&self) -> &Panels<i8> {
        &self.panels
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
        let expected = elements(&[n, k])?;
        if weights.len() != expected {
            return Err(Error::length("weights", expected, weights.len()));
        }
        let panels = Panels::pack(PanelLayout::float(isa), 1, n, &[k], |_, column, step| weights[layout.index(n, k, (column, step))]);
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
