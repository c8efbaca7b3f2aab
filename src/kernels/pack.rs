//! Weights in panels: the order in which a tile reads them.

use super::dot::{Dot, Float};
use super::isa::{Isa, Visitor};
use super::simd::{Element, Simd};
use super::threads::{self, Disjoint};
use super::workspace::Aligned;
use crate::error::{Error, Result};

/// What a tile asks of its panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PanelLayout {
    /// Columns of a vector.
    pub lanes: usize,
    /// Vectors of a panel; the last panel has only as many as it needs.
    pub vectors: usize,
    /// Steps of k in a word.
    pub ku: usize,
    /// Whether depthwise taps go in fours.
    pub quads: bool,
    /// Whether lanes can take the words of several groups.
    pub groups: bool,
}

impl PanelLayout {
    pub fn int8(isa: Isa) -> Self {
        isa.visit(LayoutOf { float: false })
    }

    pub fn float(isa: Isa) -> Self {
        isa.visit(LayoutOf { float: true })
    }

    /// Columns of a full panel.
    pub fn nr(&self) -> usize {
        self.lanes * self.vectors
    }
}

struct LayoutOf {
    float: bool,
}

impl Visitor for LayoutOf {
    type Out = PanelLayout;
    fn visit<S: Simd>(self, _: S) -> PanelLayout {
        let (ku, quads, groups) = match self.float {
            true => (<Float as Dot<S>>::KU, false, <Float as Dot<S>>::GROUPS),
            false => (S::Int8::KU, S::Int8::QUADS, S::Int8::GROUPS),
        };
        PanelLayout { lanes: S::LANES, vectors: S::NV, ku, quads, groups }
    }
}

/// Where the weights of a panel's columns come from.
pub trait Columns<W>: Sized + Sync {
    /// Writes the weights of columns `first..` (of all groups) in the order of k, `k` for each column until `weights` is full, and what
    /// is found out about each column into `scales`, if that is not empty.
    ///
    /// Runs inside [`Simd::vectorize`], to be inlined there.
    fn columns<S: Simd>(&self, simd: S, first: usize, k: usize, weights: &mut [W], scales: &mut [f32]);
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
    /// Packs the columns, whose steps of k are cut into runs of `runs` lengths.
    pub fn pack(isa: Isa, layout: PanelLayout, groups: usize, n: usize, runs: &[usize], columns: impl Columns<W>) -> Self {
        Self::pack_scaled(isa, layout, groups, n, runs, columns, &mut [])
    }

    /// [`Panels::pack`], with a scale for each column of all groups.
    #[allow(clippy::too_many_arguments)]
    pub fn pack_scaled(
        isa: Isa,
        layout: PanelLayout,
        groups: usize,
        n: usize,
        runs: &[usize],
        columns: impl Columns<W>,
        scales: &mut [f32],
    ) -> Self {
        let words = runs.iter().map(|run| run.div_ceil(layout.ku)).sum();
        let mut panels =
            Panels { data: Aligned::default(), layout, n, groups, words, col_sums: Box::default(), weight: std::marker::PhantomData };
        panels.data = Aligned::zeroed::<W>(groups * panels.group_len());
        isa.visit(Pack { panels: &mut panels, runs, columns, scales });
        panels
    }

    /// Panels of one product with words of one element, over memory that [`Panels::into_memory`] hands back: still to be
    /// filled.
    pub fn in_memory(mut memory: Aligned, layout: PanelLayout, n: usize, k: usize) -> Self {
        debug_assert_eq!(layout.ku, 1);
        memory.grow::<W>(n.div_ceil(layout.lanes) * layout.lanes * k);
        Panels { data: memory, layout, n, groups: 1, words: k, col_sums: Box::default(), weight: std::marker::PhantomData }
    }

    pub fn into_memory(self) -> Aligned {
        self.data
    }

    /// Fills panels of one-element words from rows of `n` elements, one for each step of k.
    pub fn fill_rows<'r>(&mut self, row: impl Fn(usize) -> &'r [W])
    where
        W: 'r,
    {
        let (nr, words, n) = (self.nr(), self.words, self.n);
        for panel in 0..self.panels() {
            let (start, width) = (self.panel_offset(panel), self.vectors(panel) * self.layout.lanes);
            let (first, columns) = (panel * nr, (n - panel * nr).min(nr));
            let packed = &mut self.data.grow::<W>(0)[start..start + words * width];
            for (k, packed) in packed.chunks_exact_mut(width).enumerate() {
                packed[..columns].copy_from_slice(&row(k)[first..first + columns]);
                packed[columns..].fill(W::default());
            }
        }
    }

    /// Fills panels of one-element words from columns of k elements.
    pub fn fill_columns<'r>(&mut self, column: impl Fn(usize) -> &'r [W])
    where
        W: 'r,
    {
        /// Columns, and steps of k, that are transposed at once.
        const BLOCK: usize = 16;
        let (nr, words, n) = (self.nr(), self.words, self.n);
        for panel in 0..self.panels() {
            let (start, width) = (self.panel_offset(panel), self.vectors(panel) * self.layout.lanes);
            let (first, columns) = (panel * nr, (n - panel * nr).min(nr));
            let packed = &mut self.data.grow::<W>(0)[start..start + words * width];
            for c0 in (0..width).step_by(BLOCK) {
                for k0 in (0..words).step_by(BLOCK) {
                    let ks = k0..(k0 + BLOCK).min(words);
                    for c in c0..(c0 + BLOCK).min(width) {
                        if c >= columns {
                            ks.clone().for_each(|k| packed[k * width + c] = W::default());
                            continue;
                        }
                        for (k, &value) in ks.clone().zip(&column(first + c)[ks.clone()]) {
                            packed[k * width + c] = value;
                        }
                    }
                }
            }
        }
    }

    /// Calls `f(group, column, step, weight)` for each weight.
    pub fn unpack(&self, runs: &[usize], mut f: impl FnMut(usize, usize, usize, W)) {
        let PanelLayout { lanes, ku, .. } = self.layout;
        for group in 0..self.groups {
            let weights = &self.data.as_slice::<W>()[group * self.group_len()..];
            for column in 0..self.n {
                let panel = column / self.nr();
                let (start, width) = (self.panel_offset(panel), self.vectors(panel) * lanes);
                let (mut step, mut word) = (0, 0);
                for &run in runs {
                    for i in 0..run {
                        f(group, column, step + i, weights[start + ((word + i / ku) * width + column % self.nr()) * ku + i % ku]);
                    }
                    step += run;
                    word += run.div_ceil(ku);
                }
            }
        }
    }

    /// Columns of a full panel.
    pub fn nr(&self) -> usize {
        self.layout.nr()
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

    /// Weights of a group.
    pub fn group_len(&self) -> usize {
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

struct Pack<'a, W, C> {
    panels: &'a mut Panels<W>,
    runs: &'a [usize],
    columns: C,
    scales: &'a mut [f32],
}

/// Weights below which a second thread costs more than it gives.
const GRAIN: usize = 256 * 1024;

impl<W: Element, C: Columns<W>> Visitor for Pack<'_, W, C> {
    type Out = ();
    /// Panel by panel: its columns into scratch that stays in the cache; from there, in blocks of k, into words.
    fn visit<S: Simd>(self, simd: S) {
        let Pack { panels, runs, columns, scales } = self;
        let (n, nr, layout, group_len, words) = (panels.n, panels.nr(), panels.layout, panels.group_len(), panels.words);
        let k: usize = runs.iter().sum();
        let mut sums = vec![0; if W::SUMMED { panels.groups * n } else { 0 }];
        let mut data = std::mem::take(&mut panels.data);
        {
            let (panels, scaled) = (&*panels, !scales.is_empty());
            let packed = Disjoint::new(&mut data.grow::<W>(panels.groups * group_len)[..]);
            let (sums, scales) = (Disjoint::new(&mut sums), Disjoint::new(scales));
            let count = panels.groups * panels.panels();
            let parts = threads::parts_of_pool(panels.groups * n * k, GRAIN);
            threads::split(count, parts, |_, range| {
                let mut scratch = vec![W::default(); nr.min(n) * k];
                for index in range {
                    let (group, panel) = (index / panels.panels(), index % panels.panels());
                    let (first, width) = (panel * nr, panels.vectors(panel) * layout.lanes);
                    let columns_here = (n - first).min(nr);
                    let all = group * n + first..group * n + first + columns_here;
                    let start = group * group_len + panels.panel_offset(panel);
                    // SAFETY: no two panels share columns or memory.
                    let (packed, sums, scales) = unsafe {
                        let sums = sums.part(if W::SUMMED { all.clone() } else { 0..0 });
                        let scales = scales.part(if scaled { all.clone() } else { 0..0 });
                        (packed.part(start..start + width * words * layout.ku), sums, scales)
                    };
                    let scratch = &mut scratch[..columns_here * k];
                    simd.vectorize(
                        #[inline(always)]
                        || {
                            columns.columns(simd, all.start, k, scratch, scales);
                            if k > 0 {
                                for (sum, column) in sums.iter_mut().zip(scratch.chunks_exact(k)) {
                                    *sum = W::sum(column);
                                }
                            }
                        },
                    );
                    match layout.ku {
                        1 => interleave::<W, 1>(scratch, k, columns_here, runs, packed, width),
                        2 => interleave::<W, 2>(scratch, k, columns_here, runs, packed, width),
                        4 => interleave::<W, 4>(scratch, k, columns_here, runs, packed, width),
                        8 => interleave::<W, 8>(scratch, k, columns_here, runs, packed, width),
                        ku => unreachable!("a word has 1, 2, 4 or 8 elements, not {ku}"),
                    }
                }
            });
        }
        panels.data = data;
        panels.col_sums = sums.into_boxed_slice();
    }
}

/// `count` columns of `k` weights into words of `KU`, `width` columns a word.
fn interleave<W: Element, const KU: usize>(columns: &[W], k: usize, count: usize, runs: &[usize], packed: &mut [W], width: usize) {
    /// Words that are written for all columns before the next ones, so that what a word's columns share is still in the cache.
    const BLOCK: usize = 32;
    let (mut step, mut first) = (0, 0);
    for &run in runs {
        let words = run.div_ceil(KU);
        for block in (0..words).step_by(BLOCK) {
            let (start, end) = (block * KU, ((block + BLOCK) * KU).min(run));
            for c in 0..count {
                let column = &columns[c * k + step + start..c * k + step + end];
                let packed = &mut packed[((first + block) * width + c) * KU..];
                let whole = column.chunks_exact(KU);
                let (rest, at) = (whole.remainder(), whole.len() * width * KU);
                for (word, dst) in whole.zip(packed.chunks_mut(width * KU)) {
                    dst[..KU].copy_from_slice(word);
                }
                if !rest.is_empty() {
                    packed[at..at + rest.len()].copy_from_slice(rest);
                }
            }
        }
        step += run;
        first += words;
    }
}

pub(super) fn elements(shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })
}
