//! Memory of middling size, several pieces of it to a huge page.
//!
//! A network's weights are some hundred kilobytes to a layer, and pass through the processor once for each image: in small pages it looks
//! up every 4 KiB, and stops there with its own foresight. On Zen 4 the last layers of ResNet-50, of 1 to 2.4 MB each, take 3 to 10 % less
//! so, the whole network 1 to 1.5 %.
//!
//! The first [`ENOUGH`] bytes of such memory come from the allocator as they are: who has less is not made to hold a slab. A slab goes back
//! when no piece of it is left, but one.

use std::alloc::{Layout, alloc, dealloc};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sizes that get a piece, from [`ENOUGH`] on. Smaller ones gain little, and a small model would hold a whole huge page for them; larger ones have huge pages
/// of their own.
const PIECES: Range<usize> = 256 << 10..4 << 20;

/// A huge page of the common processors.
const HUGE: usize = 2 << 20;

/// A slab: of its huge pages those are there that were touched.
const SLAB: Layout = match Layout::from_size_align(4 * HUGE, HUGE) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// All bytes of one.
const WHOLE: Range<usize> = 0..SLAB.size();

/// Bytes of such memory, held outside of slabs, from which on there are slabs.
const ENOUGH: usize = SLAB.size();

static OUTSIDE: AtomicUsize = AtomicUsize::new(0);

/// Memory of middling size outside of slabs.
pub struct Outside(usize);

impl Outside {
    /// Counts so many bytes while it is there, if they are of middling size.
    pub fn new(bytes: usize) -> Outside {
        let counted = if PIECES.contains(&bytes) { bytes } else { 0 };
        OUTSIDE.fetch_add(counted, Ordering::Relaxed);
        Outside(counted)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        OUTSIDE.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Pieces lie at multiples of this.
const LINE: usize = 64;

struct Slab {
    start: NonNull<u8>,
    /// Bytes that no piece has, in order, none beside another.
    free: Vec<Range<usize>>,
}

// SAFETY: the memory is the slab's own; what has no piece is nobody's.
unsafe impl Send for Slab {}

static SLABS: Mutex<Vec<Slab>> = Mutex::new(Vec::new());

fn slabs() -> MutexGuard<'static, Vec<Slab>> {
    // Nothing that can panic leaves them halfway.
    SLABS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slab {
    /// A new one, whose first bytes are taken.
    fn with(taken: usize) -> Option<Slab> {
        // SAFETY: its size is not zero.
        let start = NonNull::new(unsafe { alloc(SLAB) })?;
        // SAFETY: a hint, which changes no content, for memory of whole pages that this slab owns.
        unsafe { libc::madvise(start.as_ptr().cast(), SLAB.size(), libc::MADV_HUGEPAGE) };
        let rest = taken..SLAB.size();
        Some(Slab { start, free: vec![rest] })
    }

    /// Takes the first bytes that fit: says where they start.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let at = self.free.iter().position(|free| free.len() >= bytes)?;
        let start = self.free[at].start;
        self.free[at].start += bytes;
        if self.free[at].is_empty() {
            self.free.remove(at);
        }
        Some(start)
    }

    /// Takes bytes back; says whether all are free.
    fn give(&mut self, bytes: Range<usize>) -> bool {
        let at = self.free.partition_point(|free| free.end < bytes.start);
        // What ends where these begin, and what begins where they end.
        let beside = self.free[at..].iter().take_while(|free| free.start <= bytes.end).count();
        let start = self.free[at..at + beside].first().map_or(bytes.start, |free| free.start.min(bytes.start));
        let end = self.free[at..at + beside].last().map_or(bytes.end, |free| free.end.max(bytes.end));
        self.free.splice(at..at + beside, std::iter::once(start..end));
        self.free == [WHOLE]
    }
}

/// A part of a slab: the owner's alone.
pub struct Piece {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its bytes, as a box does.
unsafe impl Send for Piece {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Piece {}

impl Piece {
    /// That many zeros, a multiple of a line; none where memory of this size does not come from slabs, or not yet, or there is no more of it.
    pub fn zeroed(bytes: usize) -> Option<Piece> {
        if PIECES.contains(&bytes) && OUTSIDE.load(Ordering::Relaxed) >= ENOUGH { Self::of_slab(bytes) } else { None }
    }

    fn of_slab(bytes: usize) -> Option<Piece> {
        debug_assert!(bytes.is_multiple_of(LINE), "pieces end where the next may start");
        let taken = slabs().iter_mut().find_map(|slab| Some((slab.start, slab.take(bytes)?)));
        let (slab, at) = match taken {
            Some(taken) => taken,
            None => {
                // Without the lock, under which others wait: at worst two are made at a time.
                let slab = Slab::with(bytes)?;
                let start = slab.start;
                slabs().push(slab);
                (start, 0)
            }
        };
        // SAFETY: inside the slab; these bytes are nobody else's now, and it stays while it has a piece.
        let start = unsafe {
            let start = slab.add(at);
            start.as_ptr().write_bytes(0, bytes);
            start
        };
        Some(Piece { start, bytes })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the piece's own bytes, written when it was made.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed from the owner.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut slabs = slabs();
        let of = |slab: &Slab| self.start.addr().get().wrapping_sub(slab.start.addr().get());
        let index = slabs.iter().position(|slab| of(slab) < SLAB.size()).expect("a slab stays while it has a piece");
        let start = of(&slabs[index]);
        // One stays, for whoever makes and drops the same again and again.
        let enough = slabs[index].give(start..start + self.bytes) && slabs.iter().filter(|slab| slab.free == [WHOLE]).count() > 1;
        let slab = enough.then(|| slabs.swap_remove(index));
        drop(slabs);
        if let Some(slab) = slab {
            // SAFETY: allocated with this layout, and nobody has a piece of it.
            unsafe { dealloc(slab.start.as_ptr(), SLAB) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_are_zeros_of_middling_size() {
        let _outside: Vec<Outside> = (0..ENOUGH / PIECES.start).map(|_| Outside::new(PIECES.start)).collect();
        assert!(Piece::zeroed(PIECES.start - LINE).is_none() && Piece::zeroed(PIECES.end).is_none());
        // It keeps its slab, so that the others come back with what was in them.
        let _kept = Piece::zeroed(PIECES.start);
        for _ in 0..3 {
            let mut pieces: Vec<Piece> = (0..5).map(|i| Piece::zeroed(PIECES.end - LINE * (1 + i)).expect("there is memory")).collect();
            for (i, piece) in pieces.iter_mut().enumerate() {
                assert_eq!(piece.as_slice().len(), PIECES.end - LINE * (1 + i));
                assert!(piece.as_slice().iter().all(|&byte| byte == 0), "what was there before is gone");
                piece.as_mut_slice().fill(1 + i as u8);
            }
            for (i, piece) in pieces.iter().enumerate() {
                assert!(piece.as_slice().iter().all(|&byte| byte == 1 + i as u8), "no other piece has the same bytes");
            }
        }
    }

    proptest! {
        /// Pieces taken and given back in any order are disjoint, and leave one free range.
        #[test]
        fn what_is_given_back_is_whole(steps in prop::collection::vec((1usize..40, any::<prop::sample::Index>(), any::<bool>()), 1..60)) {
            let mut slab = Slab { start: NonNull::dangling(), free: vec![WHOLE] };
            let unit = PIECES.start / 2;
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (units, index, give) in steps {
                if give && !taken.is_empty() {
                    let bytes = taken.swap_remove(index.index(taken.len()));
                    prop_assert_eq!(slab.give(bytes), taken.is_empty());
                } else if let Some(start) = slab.take(units * unit) {
                    let bytes = start..start + units * unit;
                    prop_assert!(bytes.end <= SLAB.size());
                    prop_assert!(taken.iter().all(|other| other.end <= bytes.start || bytes.end <= other.start));
                    taken.push(bytes);
                } else {
                    prop_assert!(slab.free.iter().all(|free| free.len() < units * unit));
                }
                let free: usize = slab.free.iter().map(Range::len).sum();
                prop_assert_eq!(free + taken.iter().map(Range::len).sum::<usize>(), SLAB.size());
                prop_assert!(slab.free.windows(2).all(|pair| pair[0].end < pair[1].start), "in order, none beside another");
            }
            let last = taken.pop();
            taken.into_iter().for_each(|bytes| { slab.give(bytes); });
            prop_assert!(last.is_none_or(|bytes| slab.give(bytes)));
        }
    }
}
