//! Scratch memory that grows once and then stays.

use super::attention::HeadMemory;
use super::memory::Aligned;
use super::ranges::{Range, RangeLanes};
use super::tile::Segment;
use super::winograd::WinogradMemory;

/// Scratch memory of the kernels: it grows to what the largest call needed and never shrinks, so that calls of a size
/// it has seen allocate nothing. One for each caller at a time; any call may follow any other.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(super) codes: Aligned,
    /// A right-hand side that came at run time, packed.
    pub(super) panels: Aligned,
    pub(super) zero_points: Vec<i32>,
    pub(super) scales: Vec<f32>,
    /// Negative zero points.
    pub(super) negated_zero_points: Vec<f32>,
    pub(super) segments: Vec<Segment>,
    /// Ranges of rows.
    pub(super) ranges: Vec<Range>,
    /// Ranges of what a stage writes.
    pub(super) measured: Vec<RangeLanes>,
    /// What rows add to sums of weights with zero points.
    pub(super) row_terms: Vec<i32>,
    /// Sums over a run of k, and over all of them, where they may be beyond i32.
    pub(super) sums: Vec<i32>,
    pub(super) totals: Vec<i64>,
    /// What each thread keeps of a head of attention.
    pub(super) heads: Vec<HeadMemory>,
    /// Products on their way to where they are added.
    pub(crate) columns: Aligned,
    pub(super) winograd: WinogradMemory,
}

impl Workspace {
    /// Empty: the first calls grow it.
    pub fn new() -> Self {
        Workspace::default()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.bytes()
            + self.panels.bytes()
            + self.columns.bytes()
            + self.winograd.bytes()
            + self.heads.iter().map(HeadMemory::bytes).sum::<usize>()
            + self.zero_points.capacity() * size_of::<i32>()
            + (self.scales.capacity() + self.negated_zero_points.capacity()) * size_of::<f32>()
            + self.segments.capacity() * size_of::<Segment>()
            + (self.row_terms.capacity() + self.sums.capacity()) * size_of::<i32>()
            + self.ranges.capacity() * size_of::<Range>()
            + self.measured.capacity() * size_of::<RangeLanes>()
            + self.totals.capacity() * size_of::<i64>()
    }
}
