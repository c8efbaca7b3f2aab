//! Splitting work over threads. The results never depend on it.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(feature = "parallel")]
use super::team;

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

/// A slice that threads write disjoint parts of, and read others.
pub struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `part` hands out parts that the threads' ranges keep disjoint; `read`, those that nobody writes, where `T` may be shared.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Disjoint { data: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Where the first element lies.
    pub fn as_ptr(&self) -> *const T {
        self.data
    }

    /// Where element `index` lies, for writes that stay in the slice and in the caller's part of it.
    ///
    /// # Panics
    /// When it is not inside the slice.
    pub fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len);
        self.data.wrapping_add(index)
    }

    /// # Panics
    /// When the range is not inside the slice.
    ///
    /// # Safety
    /// No part that lives at the same time overlaps.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T]
    where
        T: Sync,
    {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice this was made of, which is borrowed for as long; nobody writes it, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.data.add(range.start), range.end - range.start) }
    }

    /// # Panics
    /// When the range is not inside the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap, nor does what is read.
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
        return team::together(parts, &|i| f(i, range(i)));
    }
    (0..parts).for_each(|i| f(i, range(i)));
}

/// [`split`], each part in up to `runs` runs: a thread that is done takes over the last runs of one that woke late or was held up. What
/// nobody takes over stays with the same part from call to call, which for the caller's part is the same cache. `f` gets the part that
/// runs a range, not the one it came from: no two calls with one part at a time.
pub fn share(items: usize, parts: usize, runs: usize, f: impl Fn(usize, Range<usize>) + Sync) {
    phases([Phase { items, runs }], parts.min(items), |_, part, range| f(part, range));
}

/// Work that is shared between parts.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    pub items: usize,
    /// Into how many runs each part of it is cut, at most.
    pub runs: usize,
}

/// [`share`] of some phases in one visit to the pool, which costs a short call as much as its work. No run of a phase starts before all
/// of the phases before it are done, and it sees what those wrote. `f` gets the phase, too, and must not wait for other threads.
pub fn phases<const N: usize>(phases: [Phase; N], parts: usize, f: impl Fn(usize, usize, Range<usize>) + Sync) {
    if parts <= 1 {
        return (0..N).for_each(|phase| f(phase, 0, 0..phases[phase].items));
    }
    let runs = phases.map(|Phase { items, runs }| (parts * runs).min(items));
    debug_assert!(phases.iter().all(|phase| phase.runs > 0) && runs.iter().all(|&runs| u32::try_from(runs).is_ok()));
    let own = |all: usize, part: usize| all * part / parts..all * (part + 1) / parts;
    let left: Vec<Left> = runs.iter().flat_map(|&all| (0..parts).map(move |part| Left::new(own(all, part)))).collect();
    let done = [const { AtomicUsize::new(0) }; N];
    split(parts, parts, |_, mine| {
        for part in mine {
            for phase in 0..N {
                let (left, all, items) = (&left[phase * parts..][..parts], runs[phase], phases[phase].items);
                let stolen = || (1..parts).find_map(|i| left[(part + i) % parts].last());
                while let Some(run) = left[part].first().or_else(stolen) {
                    // Even if it panics: others must not wait for ever, and the pool passes the panic on.
                    let _done = Counted(&done[phase]);
                    f(phase, part, items * run / all..items * (run + 1) / all);
                }
                if phase + 1 < N {
                    // What is missing has been taken by threads that are at it: nobody waits for one that has not woken.
                    // They may have no other processor than this one.
                    while !wait_until(|| done[phase].load(Ordering::Acquire) == all, SPINS) {
                        std::thread::yield_now();
                    }
                }
            }
        }
    });
}

/// Counts one more when it goes.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Tries of [`wait_until`] between which a thread offers its processor to others: some microseconds.
pub(super) const SPINS: usize = 100;

/// Whether `ready` comes true in so many tries, for what takes other threads microseconds.
pub(super) fn wait_until(ready: impl Fn() -> bool, tries: usize) -> bool {
    (0..tries).any(|_| {
        std::hint::spin_loop();
        ready()
    })
}

/// Runs that nobody has taken yet: the first in the low half, the end in the high one.
struct Left(AtomicU64);

impl Left {
    fn new(runs: Range<usize>) -> Self {
        Left(AtomicU64::new(runs.start as u64 | (runs.end as u64) << 32))
    }

    /// Takes what `step` makes of the runs that are left.
    fn take(&self, step: impl Fn(u64, u64) -> (u64, u64, u64)) -> Option<usize> {
        let mut taken = 0;
        let next = |state: u64| {
            let (first, end) = (state & u64::from(u32::MAX), state >> 32);
            let (run, first, end) = (first < end).then(|| step(first, end))?;
            taken = run;
            Some(first | end << 32)
        };
        // No data passes through the counter: what threads write is ordered by their joining.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(|_| taken as usize)
    }

    fn first(&self) -> Option<usize> {
        self.take(|first, end| (first, first + 1, end))
    }

    fn last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, first, end - 1))
    }
}

/// Calls `f` on pieces of `items` in `parts` parts, each piece with the index of its first item.
pub fn split_mut<T: Send>(items: &mut [T], parts: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    split_rows(items, 1, parts, &f);
}

/// [`split_mut`] between rows of `row` items. Not generic over `f`, so that a pool's machinery is compiled once for each `T`.
pub fn split_rows<T: Send>(items: &mut [T], row: usize, parts: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
    let (row, to) = (row.max(1), Disjoint::new(items));
    if to.len == 0 {
        return;
    }
    share(to.len.div_ceil(row), parts, 4, |_, rows| {
        let (start, end) = (rows.start * row, (rows.end * row).min(to.len));
        // SAFETY: runs are disjoint.
        f(start, unsafe { to.part(start..end) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No run of a phase before all of the one before, whose writes it sees; a phase may be empty.
    #[test]
    fn phases_follow_each_other() {
        for (items, parts) in [([0, 0, 3], 2), ([5, 0, 7], 2), ([1, 40, 3], 4), ([100, 100, 100], 3), ([7, 7, 7], 1)] {
            let seen: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let total = AtomicUsize::new(0);
            phases(items.map(|items| Phase { items, runs: 4 }), parts, |phase, part, range| {
                assert!(part < parts);
                let before: usize = items[..phase].iter().sum();
                assert!(total.load(Ordering::Relaxed) >= before);
                if phase > 0 && part == 0 {
                    let done = |i: usize| (0..phase).filter(|&p| i < items[p]).count();
                    assert!(seen.iter().enumerate().all(|(i, times)| times.load(Ordering::Relaxed) >= done(i)));
                }
                // Long enough for other parts to wake, and longest in the run that the next phase has to wait for.
                let last = range.end == items[phase];
                std::thread::sleep(std::time::Duration::from_millis(if last { 10 } else { 1 }));
                for i in range {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                    total.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(total.into_inner(), items.iter().sum::<usize>());
        }
    }

    /// A run that panics holds nobody up.
    #[test]
    fn panics_are_passed_on() {
        let caught = std::panic::catch_unwind(|| {
            phases([Phase { items: 8, runs: 4 }; 2], 2, |phase, _, range| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                assert!(phase > 0 || !range.contains(&0), "expected");
            });
        });
        assert!(caught.is_err());
    }

    /// Every item once, whoever is held up; and no part is in two places at a time.
    #[test]
    fn shares_are_done_once() {
        for (items, parts, runs) in [(0, 2, 4), (1, 2, 4), (7, 3, 1), (24, 2, 4), (101, 4, 4), (5, 8, 3)] {
            let seen: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            let busy: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            share(items, parts, runs, |part, range| {
                assert_eq!(busy[part].fetch_add(1, Ordering::SeqCst), 0);
                if part == 1 {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                for i in range {
                    seen[i].fetch_add(1, Ordering::SeqCst);
                }
                busy[part].fetch_sub(1, Ordering::SeqCst);
            });
            assert!(seen.iter().all(|times| times.load(Ordering::SeqCst) == 1), "{items} {parts} {runs}");
        }
    }
}
