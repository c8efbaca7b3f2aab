//! Scratch memory that grows once and then stays, and the aligned storage of packed weights.

use super::ranges::{Range, RangeLanes};
use super::simd::Element;
use super::tile::Segment;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: an array of bytes without padding: every bit pattern is valid, zeros included.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above, and it is Copy and 'static.
unsafe impl bytemuck::Pod for Line {}

/// Bytes that tiles may read past the last element: less than one vector.
const SLACK: usize = 64;

/// Elements in 64-byte aligned memory, with a readable line after the last.
#[derive(Clone, Default)]
pub struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// Room for `len` zeros of type `T`.
    pub fn zeroed<T: Element>(len: usize) -> Self {
        // From the allocator as zeros: writing them would touch every page once more than packing does.
        Aligned { lines: bytemuck::allocation::zeroed_vec(Self::lines::<T>(len)) }
    }

    fn lines<T: Element>(len: usize) -> usize {
        len.checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(SLACK))
            .expect("the tensors exist, so their size fits")
            .div_ceil(64)
    }

    /// Room for that many bytes, as far as there is memory: for lengths that nothing stands behind yet.
    ///
    /// # Errors
    /// Of an allocator that refuses.
    pub fn try_reserve(&mut self, bytes: usize) -> Result<(), std::collections::TryReserveError> {
        // One line more than the slack fills, so that no sum wraps: the allocator refuses such lengths.
        let lines = bytes / 64 + 2;
        self.lines.try_reserve_exact(lines.saturating_sub(self.lines.len()))
    }

    /// At least `len` elements; what is in them stays from before.
    pub fn grow<T: Element>(&mut self, len: usize) -> &mut [T] {
        let lines = Self::lines::<T>(len);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// All elements, the slack included.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    pub fn bytes(&self) -> usize {
        self.lines.len() * 64
    }
}

impl std::fmt::Debug for Aligned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aligned({} bytes)", self.bytes())
    }
}

/// Scratch memory of the kernels: it grows to what the largest call needed and never shrinks, so that calls of a size
/// it has seen allocate nothing. One for each caller at a time; any call may follow any other.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(super) codes: Aligned,
    /// A right-hand side that came at run time, packed.
    pub(super) panels: Aligned,
    pub(super) zero_points: Vec<i32>,
    pub(super) scales: Vec<f32>,
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
    /// Products on their way to where they are added.
    pub(crate) columns: Aligned,
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
            + self.zero_points.capacity() * size_of::<i32>()
            + self.scales.capacity() * size_of::<f32>()
            + self.segments.capacity() * size_of::<Segment>()
            + (self.row_terms.capacity() + self.sums.capacity()) * size_of::<i32>()
            + self.ranges.capacity() * size_of::<Range>()
            + self.measured.capacity() * size_of::<RangeLanes>()
            + self.totals.capacity() * size_of::<i64>()
    }
}
