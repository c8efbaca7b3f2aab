//! Weights in panels: the order in which a tile reads them.

use std::ops::Range;

use super::dot::{Dot, Float};
use super::interleave::{Words, columns_into_words, rows_into_words};
use super::isa::{Isa, Visitor};
use super::memory::Aligned;
use super::simd::{Element, Simd};
use super::threads::{self, Disjoint};
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
    /// Whether depthwise taps go in fours, and narrow groups by whole words.
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

    /// The weights again, if they lie row by row: a row for each step of k. Then [`Columns::columns`] is not asked.
    fn rows(&self) -> Option<impl WeightRows<W>> {
        None::<NoRows>
    }
}

/// Weights of which those of one step of k lie side by side.
pub trait WeightRows<W>: Sync {
    /// Writes what is found out about each of the columns `first..` into `scales`, if that is not empty.
    ///
    /// Runs inside [`Simd::vectorize`], as [`WeightRows::row`] does.
    fn scales<S: Simd>(&self, simd: S, first: usize, scales: &mut [f32]);

    /// Writes step `step` of the columns `first..`, of which these are the scales, if there are any.
    fn row<S: Simd>(&self, simd: S, step: usize, first: usize, scales: &[f32], weights: &mut [W]);
}

/// No [`WeightRows`].
pub enum NoRows {}

impl<W> WeightRows<W> for NoRows {
    fn scales<S: Simd>(&self, _: S, _: usize, _: &mut [f32]) {
        match *self {}
    }

    fn row<S: Simd>(&self, _: S, _: usize, _: usize, _: &[f32], _: &mut [W]) {
        match *self {}
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

impl Panels<f32> {
    /// Fills panels of one-element words from columns of k elements.
    pub fn fill_columns<'r, S: Simd>(&mut self, simd: S, column: impl Fn(usize) -> &'r [f32]) {
        let (nr, words, n) = (self.nr(), self.words, self.n);
        for panel in 0..self.panels() {
            let (start, width) = (self.panel_offset(panel), self.vectors(panel) * self.layout.lanes);
            let (first, columns) = (panel * nr, (n - panel * nr).min(nr));
            let packed = &mut self.data.grow::<f32>(0)[start..start + words * width];
            simd.vectorize(
                #[inline(always)]
                || {
                    for c0 in (0..width).step_by(S::LANES) {
                        let inside = columns.saturating_sub(c0).min(S::LANES);
                        for k0 in (0..words).step_by(S::LANES) {
                            let ks = k0..(k0 + S::LANES).min(words);
                            if inside == S::LANES && ks.len() == S::LANES && c0 + S::LANES <= width {
                                let mut from = [std::ptr::null(); 16];
                                (0..S::LANES).for_each(|c| from[c] = column(first + c0 + c)[ks.clone()].as_ptr());
                                let to = packed[k0 * width + c0..(ks.end - 1) * width + c0 + S::LANES].as_mut_ptr();
                                // SAFETY: each column has as many elements from k0 on, and the slice reaches from the first row's to the
                                // last row's last vector.
                                unsafe { simd.transpose_f32(&from, to, width) }
                                continue;
                            }
                            for c in 0..S::LANES.min(width - c0) {
                                let at = |k: usize| k * width + c0 + c;
                                if c < inside {
                                    ks.clone().zip(&column(first + c0 + c)[ks.clone()]).for_each(|(k, &value)| packed[at(k)] = value);
                                } else {
                                    ks.clone().for_each(|k| packed[at(k)] = 0.0);
                                }
                            }
                        }
                    }
                },
            );
        }
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

/// Columns that are packed together from rows: memory is read in as long runs as their words fit the cache beside.
const STRIP: usize = 4096;

impl<W: Element, C: Columns<W>> Visitor for Pack<'_, W, C> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Pack { panels, runs, columns, scales } = self;
        let k: usize = runs.iter().sum();
        let mut sums = vec![0; if W::SUMMED { panels.groups * panels.n } else { 0 }];
        let mut data = std::mem::take(&mut panels.data);
        {
            let len = panels.groups * panels.group_len();
            let to = Packing {
                scaled: !scales.is_empty(),
                packed: Disjoint::new(&mut data.grow::<W>(len)[..]),
                sums: Disjoint::new(&mut sums),
                scales: Disjoint::new(scales),
                panels: &*panels,
                runs,
            };
            let count = panels.groups * panels.panels();
            let parts = threads::parts_of_pool(panels.groups * panels.n * k, GRAIN);
            match columns.rows() {
                Some(rows) => threads::split(count, parts, |_, range| to.pack_rows(simd, &rows, k, range)),
                None => threads::split(count, parts, |_, range| to.pack_columns(simd, &columns, k, range)),
            }
        }
        panels.data = data;
        panels.col_sums = sums.into_boxed_slice();
    }
}

/// Panels that threads fill, each some of them.
struct Packing<'a, W> {
    panels: &'a Panels<W>,
    runs: &'a [usize],
    packed: Disjoint<'a, W>,
    sums: Disjoint<'a, i32>,
    scales: Disjoint<'a, f32>,
    scaled: bool,
}

impl<W: Element> Packing<'_, W> {
    /// Panel by panel: its columns into scratch that stays in the cache; from there into words.
    fn pack_columns<S: Simd>(&self, simd: S, columns: &impl Columns<W>, k: usize, range: Range<usize>) {
        let (panels, nr) = (self.panels, self.panels.nr());
        let mut scratch = vec![W::default(); nr.min(panels.n) * k];
        for index in range {
            let (group, panel) = (index / panels.panels(), index % panels.panels());
            let first = group * panels.n + panel * nr;
            let count = (panels.n - panel * nr).min(nr);
            // SAFETY: no two panels share columns or memory, and each is one thread's.
            let (packed, sums, scales) = unsafe { (self.panel(index), self.sums(first..first + count), self.scales(first..first + count)) };
            let scratch = &mut scratch[..count * k];
            simd.vectorize(
                #[inline(always)]
                || {
                    columns.columns(simd, first, k, scratch, scales);
                    if k > 0 {
                        for (sum, column) in sums.iter_mut().zip(scratch.chunks_exact(k)) {
                            *sum = W::sum(column);
                        }
                    }
                },
            );
            let words = Words { ku: panels.layout.ku, width: panels.vectors(panel) * panels.layout.lanes, runs: self.runs };
            simd.vectorize(
                #[inline(always)]
                || columns_into_words(simd, scratch, k, words, packed),
            );
        }
    }

    /// Some panels at a time, word by word: as many rows of them as a word has steps, into scratch and from there into each panel.
    fn pack_rows<S: Simd>(&self, simd: S, rows: &impl WeightRows<W>, k: usize, range: Range<usize>) {
        let (panels, nr) = (self.panels, self.panels.nr());
        assert_eq!(panels.groups, 1, "rows have the columns of one product");
        let mut scratch = Vec::new();
        let at_once = (STRIP / nr).max(1);
        for start in range.clone().step_by(at_once) {
            let strip = start..(start + at_once).min(range.end);
            let first = start * nr;
            let count = (strip.end * nr).min(panels.n) - first;
            // SAFETY: no two panels share columns or memory, and each is one thread's.
            let (sums, scales) = unsafe { (self.sums(first..first + count), self.scales(first..first + count)) };
            // SAFETY: as above.
            let mut packed: Vec<&mut [W]> = strip.map(|panel| unsafe { self.panel(panel) }).collect();
            scratch.resize(count * panels.layout.ku, W::default());
            let words = Words { ku: panels.layout.ku, width: nr, runs: self.runs };
            debug_assert_eq!(words.runs.iter().sum::<usize>(), k);
            simd.vectorize(
                #[inline(always)]
                || {
                    rows.scales(simd, first, scales);
                    rows_into_words(simd, rows, (first, scales), words, &mut scratch, sums, &mut packed);
                },
            );
        }
    }

    /// The memory of panel `index` of all groups.
    ///
    /// # Safety
    /// Nobody else asks for it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn panel(&self, index: usize) -> &mut [W] {
        let (panels, layout) = (self.panels, self.panels.layout);
        let (group, panel) = (index / panels.panels(), index % panels.panels());
        let start = group * panels.group_len() + panels.panel_offset(panel);
        // SAFETY: the caller's promise.
        unsafe { self.packed.part(start..start + panels.vectors(panel) * layout.lanes * panels.words * layout.ku) }
    }

    /// The sums of these columns, if there are any.
    ///
    /// # Safety
    /// Nobody else asks for them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn sums(&self, columns: Range<usize>) -> &mut [i32] {
        // SAFETY: the caller's promise.
        unsafe { self.sums.part(if W::SUMMED { columns } else { 0..0 }) }
    }

    /// The scales of these columns, if there are any.
    ///
    /// # Safety
    /// Nobody else asks for them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn scales(&self, columns: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.scales.part(if self.scaled { columns } else { 0..0 }) }
    }
}

pub(super) fn elements(shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| Error::ShapeOverflow { shape: shape.to_vec() })
}
