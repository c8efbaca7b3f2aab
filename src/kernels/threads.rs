//! Splitting work over threads. The results never depend on it.

use std::marker::PhantomData;
use std::ops::Range;

/// Into how many parts `work` is cut: at most `threads`, and none smaller than `grain`.
pub fn parts(threads: usize, work: usize, grain: usize) -> usize {
    if cfg!(feature = "parallel") { threads.min(work / grain).max(1) } else { 1 }
}

/// [`parts`] for the threads of the caller's pool, which is not asked for (nor started) where the work is small.
pub fn parts_of_pool(work: usize, grain: usize) -> usize {
    #[cfg(feature = "parallel")]
    if work >= 2 * grain {
        return parts(rayon::current_num_threads(), work, grain);
    }
    let _ = (work, grain);
    1
}

/// A slice that threads write disjoint parts of.
pub struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `part` hands out parts that the threads' ranges keep disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Disjoint { data: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Panics
    /// When the range is not inside the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice this was made of, which is borrowed for as long; not shared, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.end - range.start) }
    }
}

/// Calls `f` on `parts` ranges that together are `0..items`, on the caller's thread and rayon's current pool, each with its index.
pub fn split(items: usize, parts: usize, f: impl Fn(usize, Range<usize>) + Sync) {
    let parts = parts.min(items).max(1);
    let range = |i: usize| items * i / parts..items * (i + 1) / parts;
    #[cfg(feature = "parallel")]
    if parts > 1 {
        let (f, range) = (&f, &range);
        rayon::scope(|scope| {
            for i in 1..parts {
                scope.spawn(move |_| f(i, range(i)));
            }
            f(0, range(0));
        });
        return;
    }
    (0..parts).for_each(|i| f(i, range(i)));
}

/// Calls `f` on `parts` pieces of `items`, each with the index of its first item.
pub fn split_mut<T: Send>(items: &mut [T], parts: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    split_rows(items, 1, parts, &f);
}

/// [`split_mut`] between rows of `row` items. Not generic over `f`, so that a pool's machinery is compiled once for each `T`.
pub fn split_rows<T: Send>(items: &mut [T], row: usize, parts: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
    let row = row.max(1);
    let size = (items.len() / row).div_ceil(parts.max(1)).max(1) * row;
    #[cfg(feature = "parallel")]
    if parts > 1 {
        rayon::scope(|scope| {
            for (i, piece) in items.chunks_mut(size).enumerate() {
                scope.spawn(move |_| f(i * size, piece));
            }
        });
        return;
    }
    items.chunks_mut(size).enumerate().for_each(|(i, piece)| f(i * size, piece));
}
