//! The scale of least squared error for levels of any spacing, exactly.
//!
//! As `u = 1/s` grows, the level of a value moves outwards, and it does so only where `|x| · u` passes a midpoint between two levels.
//! Between two such breakpoints the error is a quadratic of the scale, with its minimum `Σ w x² - A² / B` at `A / B`, where
//! `A = Σ w x l` and `B = Σ w l²`. So the gain `A² / B` is wanted for every interval between breakpoints.
//!
//! **Any `u` at once.** With values sorted and their sums from each place to the end known, `A` and `B` take one search for each
//! midpoint, however many values there are.
//!
//! **What lies between two of them.** Passing the breakpoint at `u` adds `a` to `A` and `2 u a` to `B`, by what a midpoint is. So from
//! `(A0, B0)` at `u0` to `(A1, B1)` at `u1`, `B` as a function of `A` is convex, and above its tangents of slopes `2 u0` and `2 u1` at the
//! ends. `A² / B` is convex, so on these lines it is largest where they meet, or at an end: a ceiling that exceeds the ends by about
//! `(u1/u0 - 1)² / 2` of the gain. Intervals whose ceiling is above the best known are halved; of those with few breakpoints all are
//! tried. Nothing is left out that could be better.
//!
//! **Many grids at once.** Grids that differ only in how many levels they have on either side of zero (a zero point's, or a scale's below
//! zero) have sums of the same steps, only fewer or more of them.

mod track;

use track::{Side, Track};

/// Breakpoints that are tried one by one.
const FEW: u32 = 12;
/// Distance of neighbouring `u` near the best, as a share.
const NEAR: f64 = 0.08;
/// Farther off, the root of what is lacking, times this.
const FAR: f64 = 1.5;
/// Tracks: of all values, while either side's levels are the same; and of those above and below zero.
const BOTH: usize = 0;
const ABOVE: usize = 1;
const BELOW: usize = 2;

/// Values that share a scale, and their weights (none: all 1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weighted<'a> {
    pub values: &'a [f32],
    pub weights: &'a [f32],
}

impl Weighted<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (f64, f64)> {
        self.pairs().map(|(x, w)| (f64::from(x), f64::from(w)))
    }

    fn pairs(&self) -> impl Iterator<Item = (f32, f32)> {
        self.values.iter().enumerate().map(|(i, &x)| (x, self.weights.get(i).copied().unwrap_or(1.0)))
    }

    /// `Σ w x²`.
    pub(crate) fn squares(&self) -> f64 {
        self.iter().map(|(x, w)| w * x * x).sum()
    }

    /// The largest magnitude.
    pub(crate) fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |largest, x| if x.abs() > largest { x.abs() } else { largest })
    }
}

/// How many steps a grid has on either side of the levels nearest to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    pub above: usize,
    pub below: usize,
}

impl Reach {
    /// On the side of that track.
    fn of(self, track: usize) -> usize {
        if track == BELOW { self.below } else { self.above }
    }
}

/// A scale, and which of the grids asked for it goes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Found {
    pub scale: f64,
    pub grid: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    products: f64,
    squares: f64,
}

/// The sums at one `u`.
#[derive(Debug, Default)]
struct State {
    u: f64,
    /// Where the values of each track stand.
    at: [Vec<u32>; 3],
    /// Of each grid.
    sums: Vec<Sums>,
}

#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    u: f64,
    track: usize,
    step: usize,
    /// What passing it adds.
    adds: Sums,
}

#[derive(Debug, Clone, Copy)]
struct Best {
    gain: f64,
    found: Option<Found>,
}

impl Best {
    /// Keeps the larger gain.
    #[inline(always)]
    fn consider(&mut self, sums: Sums, grid: usize) {
        let Sums { products, squares } = sums;
        if products > 0.0 && products * products > self.gain * squares {
            let scale = products / squares;
            *self = Best { gain: products * scale, found: Some(Found { scale, grid }) };
        }
    }
}

/// Levels made ready for the search of `min over s > 0 of Σ w · (x - s · nearest level)²`. What is kept from one list of values to the
/// next is room.
#[derive(Debug)]
pub(crate) struct LevelSearch {
    above: Side,
    below: Side,
    /// Magnitude, sign and weight: floats from zero up are ordered as their bits are.
    sorted: Vec<u64>,
    tracks: [Track; 3],
    /// The first `used` are those at hand, of which the first ones ascend.
    states: Vec<State>,
    used: usize,
    /// Where every value has the last level.
    outermost: State,
    breakpoints: Vec<Breakpoint>,
    /// Of each track, the sums after as many steps.
    sums: [Vec<Sums>; 3],
}

impl LevelSearch {
    /// These levels, ascending.
    pub(crate) fn new(levels: &[f64]) -> Self {
        let midpoint = |j: usize| 0.5 * (levels[j] + levels[j + 1]);
        let midpoints: Vec<f64> = (0..levels.len().saturating_sub(1)).map(midpoint).collect();
        // On the way to zero, values above it end at the level above the last midpoint that is not above zero.
        let first = midpoints.partition_point(|&m| m <= 0.0);
        let last = midpoints.partition_point(|&m| m < 0.0);
        let above = Side::new(levels[first..].iter().map(|l| l + 0.0).collect(), midpoints[first..].to_vec());
        let below =
            Side::new(levels[..=last].iter().rev().map(|l| 0.0 - l).collect(), midpoints[..last].iter().rev().map(|m| -m).collect());
        LevelSearch::of(above, below)
    }

    /// The integers from `-reach` to `reach`.
    pub(crate) fn integers(reach: usize) -> Self {
        let side = || Side::new((0..=reach).map(|k| k as f64).collect(), (0..reach).map(|k| k as f64 + 0.5).collect());
        LevelSearch::of(side(), side())
    }

    fn of(above: Side, below: Side) -> Self {
        let (sorted, states, breakpoints) = (Vec::new(), Vec::new(), Vec::new());
        LevelSearch {
            above,
            below,
            sorted,
            tracks: Default::default(),
            states,
            used: 0,
            outermost: State::default(),
            breakpoints,
            sums: Default::default(),
        }
    }

    /// All levels.
    pub(crate) fn whole(&self) -> Reach {
        Reach { above: self.above.steps(), below: self.below.steps() }
    }

    /// The scale of least error over all of these grids, if that error is below `bound`.
    pub(crate) fn best(&mut self, x: Weighted, grids: &[Reach], bound: f64) -> Option<Found> {
        self.take(x, grids);
        let mut best = Best { gain: (x.squares() - bound).max(0.0), found: None };
        let (first, last) = self.interval(grids)?;
        self.used = 0;
        self.push(first, grids, &mut best);
        let mut outermost = std::mem::take(&mut self.outermost);
        self.fill(&mut outermost, f64::INFINITY, grids);
        while self.states[self.used - 1].u < last {
            let state = &self.states[self.used - 1];
            // Far from the best, a wide interval's ceiling is below it too, and at some distance that of all the rest (asked for late).
            let gain = state.sums.iter().map(Sums::gain).fold(0.0, f64::max);
            let lacking = if best.gain > 0.0 { (1.0 - gain / best.gain).max(0.0) } else { 0.0 };
            let hopeless = |(from, to): (&Sums, &Sums)| !exceeds(ceiling(*from, *to, state.u, f64::INFINITY), best.gain);
            if lacking > 0.25 * NEAR && state.sums.iter().zip(&outermost.sums).all(hopeless) {
                break;
            }
            let next = state.u * (1.0 + (FAR * lacking.sqrt()).clamp(NEAR, 1.0));
            self.push(next, grids, &mut best);
        }
        self.outermost = outermost;
        for i in 1..self.used {
            self.refine((i - 1, i), grids, &mut best);
        }
        best.found
    }

    /// Sorts the values onto tracks.
    fn take(&mut self, x: Weighted, grids: &[Reach]) {
        const SIGN: u64 = 1 << 31;
        self.sorted.clear();
        // The weight's sign bit is free for the value's.
        let key = |(x, w): (f32, f32)| {
            let below = if x < 0.0 { SIGN } else { 0 };
            u64::from(x.abs().to_bits()) << 32 | u64::from((w + 0.0).to_bits()) | below
        };
        self.sorted.extend(x.pairs().map(key));
        self.sorted.sort_unstable();
        let value = |key: &u64| (f64::from(f32::from_bits((key >> 32) as u32)), f64::from(f32::from_bits((key & (SIGN - 1)) as u32)));
        let least = |track: usize| grids.iter().map(|grid| grid.of(track)).min().unwrap_or(0);
        let most = |track: usize| grids.iter().map(|grid| grid.of(track)).max().unwrap_or(0);
        let shared = if self.above == self.below { least(ABOVE).min(least(BELOW)) } else { 0 };
        let both = if shared > 0 { &self.sorted[..] } else { &[] };
        self.tracks[BOTH].set(both.iter().map(value), (0, shared), shared);
        for (track, sign) in [(ABOVE, 0), (BELOW, SIGN)] {
            // No step further: nothing to follow.
            let list = if most(track) > shared || shared == 0 { &self.sorted[..] } else { &[] };
            let list = list.iter().filter(|key| *key & SIGN == sign).map(value);
            self.tracks[track].set(list, (shared, most(track)), least(track));
        }
    }

    /// The `u` to begin and to end with.
    fn interval(&self, grids: &[Reach]) -> Option<(f64, f64)> {
        let (mut first, mut last) = (f64::INFINITY, 0.0f64);
        let largest = self.tracks.iter().map(Track::largest).fold(0.0, f64::max);
        let smallest = self.tracks.iter().filter_map(Track::smallest_above_zero).fold(f64::INFINITY, f64::min);
        let nearest = [&self.above, &self.below].iter().filter_map(|side| side.midpoint(0)).fold(f64::INFINITY, f64::min);
        for grid in grids {
            let (mut from, mut outermost) = (0.0f64, 0.0f64);
            for (side, reach) in [(&self.above, grid.above), (&self.below, grid.below)] {
                outermost = outermost.max(side.level(reach));
                // At a larger scale every value has a level whose double is one too, so half of the scale is as good.
                from = from.max(side.largest_scale(reach, largest));
                last = last.max(reach.checked_sub(1).and_then(|step| side.midpoint(step)).unwrap_or(0.0) / smallest);
            }
            if !(largest > 0.0 && outermost > 0.0) {
                continue;
            }
            // At a larger scale every value has the level nearest to zero.
            let all_inner = if nearest.is_finite() { 1.001 * largest / nearest } else { largest / outermost };
            first = first.min(1.0 / all_inner.min(from * (1.0 + 1e-12)));
        }
        first.is_finite().then_some((first, last))
    }

    /// One more state.
    fn push(&mut self, u: f64, grids: &[Reach], best: &mut Best) {
        if self.states.len() == self.used {
            self.states.push(State::default());
        }
        let mut state = std::mem::take(&mut self.states[self.used]);
        self.fill(&mut state, u, grids);
        state.sums.iter().enumerate().for_each(|(grid, sums)| best.consider(*sums, grid));
        self.states[self.used] = state;
        self.used += 1;
    }

    fn fill(&mut self, state: &mut State, u: f64, grids: &[Reach]) {
        state.u = u;
        for track in [BOTH, ABOVE, BELOW] {
            let side = if track == BELOW { &self.below } else { &self.above };
            self.tracks[track].place(side, u, &mut state.at[track], &mut self.sums[track]);
        }
        let both = self.sums[BOTH].last().copied().unwrap_or_default();
        let after = |track: usize, grid: &Reach| self.sums[track][grid.of(track) - self.tracks[track].asked];
        state.sums.clear();
        state.sums.extend(grids.iter().map(|grid| both.and(after(ABOVE, grid)).and(after(BELOW, grid))));
    }

    /// Looks at all `u` between two states whose ceiling is above the best.
    fn refine(&mut self, (low, high): (usize, usize), grids: &[Reach], best: &mut Best) {
        let (from, to) = (&self.states[low], &self.states[high]);
        let (u0, u1) = (from.u, to.u);
        if !from.sums.iter().zip(&to.sums).any(|(from, to)| exceeds(ceiling(*from, *to, u0, u1), best.gain)) {
            return;
        }
        let between = |(low, high): (&Vec<u32>, &Vec<u32>)| low.iter().zip(high).map(|(low, high)| low.abs_diff(*high)).sum::<u32>();
        let middle = (u0 * u1).sqrt();
        if from.at.iter().zip(&to.at).map(between).sum::<u32>() <= FEW || !(middle > u0 && middle < u1) {
            self.sweep((low, high), grids, best);
            return;
        }
        let index = self.used;
        self.push(middle, grids, best);
        self.refine((low, index), grids, best);
        self.refine((index, high), grids, best);
        self.used = index;
    }

    /// Tries every interval between the breakpoints from one state to the other.
    fn sweep(&mut self, (low, high): (usize, usize), grids: &[Reach], best: &mut Best) {
        let (from, to) = (&self.states[low], &self.states[high]);
        self.breakpoints.clear();
        for track in [BOTH, ABOVE, BELOW] {
            let side = if track == BELOW { &self.below } else { &self.above };
            self.tracks[track].breakpoints(side, track, &from.at[track], &to.at[track], &mut self.breakpoints);
        }
        self.breakpoints.sort_unstable_by_key(|breakpoint| breakpoint.u.to_bits());
        for (index, (grid, sums)) in grids.iter().zip(&from.sums).enumerate() {
            let mut sums = *sums;
            for breakpoint in self.breakpoints.iter().filter(|breakpoint| breakpoint.step < grid.of(breakpoint.track)) {
                sums = sums.and(breakpoint.adds);
                best.consider(sums, index);
            }
        }
    }
}

impl Sums {
    #[inline(always)]
    fn and(self, other: Sums) -> Sums {
        Sums { products: self.products + other.products, squares: self.squares + other.squares }
    }

    fn gain(&self) -> f64 {
        if self.products > 0.0 { self.products * self.products / self.squares } else { 0.0 }
    }
}

/// Where the tangents at the ends meet.
#[inline(always)]
fn ceiling(from: Sums, to: Sums, u0: f64, u1: f64) -> Sums {
    let (products, squares) = (to.products - from.products, to.squares - from.squares);
    let part = if u1.is_finite() { ((2.0 * u1 * products - squares) / (2.0 * (u1 - u0))).clamp(0.0, products.max(0.0)) } else { products };
    Sums { products: from.products + part, squares: from.squares + 2.0 * u0 * part }
}

/// Whether these sums' gain is above this one by more than rounding.
#[inline(always)]
fn exceeds(sums: Sums, gain: f64) -> bool {
    sums.products > 0.0 && sums.products * sums.products > gain * (1.0 + 1e-15) * sums.squares
}
