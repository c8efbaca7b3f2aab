//! The pool's threads as helpers of one thread. They stay with it for a moment after its work is done, in case there is more: waking a
//! thread takes as long as a layer of a network.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::threads::{SPINS, wait_until};

/// How long a helper stays without work. Between the layers of a network, or the calls of a loop, pass some microseconds; then the pool
/// gets its thread back.
const STAY: Duration = Duration::from_micros(100);

/// How long a helper stays at most, but for the part it is at. Then it looks what else the pool has to do, and is asked again if that is
/// nothing.
const TERM: Duration = Duration::from_millis(2);

thread_local! {
    static TEAM: Arc<Team> = Arc::new(Team {
        owner: std::thread::current().id(),
        state: Mutex::new(State { jobs: Vec::new(), helpers: 0 }),
        published: AtomicUsize::new(0),
        asleep: AtomicBool::new(false),
        ended: Condvar::new(),
    });
}

/// Calls `f` on each of `0..parts`, on this thread and on those of rayon's current pool that come in time; a part that none of them has
/// begun is this thread's. `f` must not wait for another part to begin.
///
/// # Panics
/// When `f` does, after all parts that were begun have ended.
pub fn together(parts: usize, f: &(dyn Fn(usize) + Sync)) {
    match TEAM.try_with(Arc::clone) {
        Ok(team) => team.run(parts, f),
        // A thread that is about to end.
        Err(_) => (0..parts).for_each(f),
    }
}

/// A thread and its helpers.
struct Team {
    owner: ThreadId,
    state: Mutex<State>,
    /// Goes up with each job, which is what helpers look at while they have none.
    published: AtomicUsize,
    /// Whether the owner sleeps until a part has ended. It is set while the state is locked.
    asleep: AtomicBool,
    ended: Condvar,
}

struct State {
    /// The innermost last: a part may have parts.
    jobs: Vec<Job>,
    /// Those that are here, and those that the pool was asked for.
    helpers: usize,
}

/// Parts of which some may not have begun. What it points to lives while it is among a team's jobs, and then until nobody runs a part.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    shared: *const Shared,
    next: usize,
    parts: usize,
}

// SAFETY: what it points to may be shared between threads.
unsafe impl Send for Job {}

#[derive(Default)]
struct Shared {
    /// Parts that helpers have begun and not ended.
    running: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    fn take(&mut self) -> Option<usize> {
        (self.next < self.parts).then(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

impl Team {
    /// Nothing panics while it is held.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the owner.
    fn run(self: Arc<Self>, parts: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = Shared::default();
        // Whoever is in the pool is not its own helper.
        let pool = rayon::current_num_threads() - usize::from(rayon::current_thread_index().is_some());
        // SAFETY: the lifetime alone is another: `Published` takes the job back, and waits for its parts, before this function returns
        // or unwinds.
        let f_of_helpers = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(std::ptr::from_ref(f))
        };
        let missing = {
            let mut state = self.state();
            state.jobs.push(Job { f: f_of_helpers, shared: &shared, next: 1, parts });
            let missing = pool.min(parts - 1).saturating_sub(state.helpers);
            state.helpers += missing;
            self.published.fetch_add(1, Ordering::Release);
            missing
        };
        let published = Published { team: &self, shared: &shared };
        for _ in 0..missing {
            let team = Arc::clone(&self);
            rayon::spawn(move || team.help());
        }
        f(0);
        let own = || self.state().jobs.last_mut().and_then(Job::take);
        while let Some(part) = own() {
            f(part);
        }
        drop(published);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// A part of the innermost job that has one left, counted as running.
    fn begin(&self) -> Option<(Job, usize)> {
        self.state().jobs.iter_mut().rev().find_map(|job| {
            let part = job.take()?;
            // SAFETY: it is among the jobs, and they are locked.
            unsafe { (*job.shared).running.fetch_add(1, Ordering::Relaxed) };
            Some((*job, part))
        })
    }

    /// Of a helper: until there has been no part for it for a while, or its term ends.
    fn help(&self) {
        // Its owner may find in the queue of the pool what nobody came for.
        let stay = if std::thread::current().id() == self.owner { Duration::ZERO } else { STAY };
        let come = Instant::now();
        let mut busy = come;
        loop {
            let published = self.published.load(Ordering::Acquire);
            while let Some((job, part)) = self.begin() {
                // SAFETY: the part is counted as running, for which its owner waits.
                let (f, shared) = unsafe { (&*job.f, &*job.shared) };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(part))) {
                    shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                }
                // From here on the owner may go: the team alone is left.
                shared.running.fetch_sub(1, Ordering::SeqCst);
                if self.asleep.load(Ordering::SeqCst) {
                    // It sleeps once this is unlocked.
                    drop(self.state());
                    self.ended.notify_all();
                }
                busy = Instant::now();
            }
            let over = busy - come >= TERM;
            if over || !self.more(published, busy + stay) {
                let mut state = self.state();
                // What was published meanwhile counts on this one.
                if over || self.published.load(Ordering::Acquire) == published {
                    state.helpers -= 1;
                    return;
                }
            }
        }
    }

    /// Whether another job comes before `end`.
    fn more(&self, published: usize, end: Instant) -> bool {
        while Instant::now() < end {
            if wait_until(|| self.published.load(Ordering::Relaxed) != published, SPINS) {
                return true;
            }
            // Whom it waits for may have no other processor than this one.
            std::thread::yield_now();
        }
        false
    }
}

/// The innermost job, while others may begin parts of it.
struct Published<'a> {
    team: &'a Team,
    shared: &'a Shared,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.team.state().jobs.pop();
        let ended = || self.shared.running.load(Ordering::SeqCst) == 0;
        // Parts that began together end at about the same time.
        if wait_until(ended, SPINS) {
            return;
        }
        let since = Instant::now();
        while since.elapsed() < STAY {
            std::thread::yield_now();
            if wait_until(ended, SPINS) {
                return;
            }
        }
        let mut state = self.team.state();
        self.team.asleep.store(true, Ordering::SeqCst);
        while !ended() {
            state = self.team.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.team.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(parts: usize, f: impl Fn(usize) + Sync) {
        let times: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
        together(parts, &|part| {
            times[part].fetch_add(1, Ordering::Relaxed);
            f(part);
        });
        assert!(times.iter().all(|times| times.load(Ordering::Relaxed) == 1));
    }

    /// Each part once: at once after another, after the helpers have left, with parts of parts, from many threads, and in a pool.
    #[test]
    fn every_part_once() {
        let rounds = || {
            for round in 0..300 {
                counted(1 + round % 5, |_| ());
                counted(3, |part| counted(1 + part, |_| ()));
                if round % 100 == 0 {
                    std::thread::sleep(2 * STAY);
                }
            }
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(rounds))));
        rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(rounds);
    }

    /// What a part borrows is not touched after the call, be it the owner that sleeps while a helper works.
    #[test]
    fn parts_have_ended() {
        for _ in 0..5 {
            let running = AtomicUsize::new(0);
            let mut done = [false; 3];
            let to = super::super::threads::Disjoint::new(&mut done);
            together(3, &|part| {
                running.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(part as u64 * 3));
                // SAFETY: each part its own.
                unsafe { to.part(part..part + 1)[0] = true };
                running.fetch_sub(1, Ordering::SeqCst);
            });
            assert_eq!(running.into_inner(), 0);
            assert_eq!(done, [true; 3]);
        }
    }

    /// Whoever has work all the time does not keep the others of its pool from theirs.
    #[test]
    fn others_have_their_turn() {
        let (pool, asked) = (rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap(), Arc::new(AtomicBool::new(false)));
        let (send, answer) = std::sync::mpsc::channel();
        let owner = Arc::clone(&asked);
        pool.spawn(move || {
            let since = Instant::now();
            while !owner.load(Ordering::Relaxed) && since.elapsed() < Duration::from_secs(20) {
                // Long enough for the helper to take the other part each time.
                together(2, &|part| {
                    let begun = Instant::now();
                    while part == 0 && begun.elapsed() < Duration::from_micros(20) {}
                });
            }
            send.send(owner.load(Ordering::Relaxed)).unwrap();
        });
        std::thread::sleep(Duration::from_millis(20));
        pool.install(|| asked.store(true, Ordering::Relaxed));
        assert!(answer.recv().unwrap(), "the other thread's work came after it all");
    }

    /// Of the owner, of a helper, of both: passed on, and the next call is whole.
    #[test]
    fn panics_are_passed_on() {
        for bad in [0..1, 1..2, 0..2] {
            let caught = catch_unwind(|| {
                together(2, &|part| {
                    std::thread::sleep(Duration::from_millis(1));
                    assert!(!bad.contains(&part), "expected");
                });
            });
            assert!(caught.is_err());
            counted(4, |_| ());
        }
    }
}
