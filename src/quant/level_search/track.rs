//! Values whose levels move outwards as the scale falls.

use super::{Breakpoint, Sums};

/// One half of a table: the levels of values above zero, or of those below, both with their signs turned.
#[derive(Debug, PartialEq)]
pub(super) struct Side {
    /// From the one nearest to zero outwards.
    levels: Vec<f64>,
    /// Midpoints between them, all above zero.
    midpoints: Vec<f64>,
    /// Differences of levels, and of their squares.
    steps: Vec<[f64; 2]>,
    /// Of evenly spaced levels, one over the distance.
    even: Option<f64>,
    /// Of the list up to each level, how many come before the first whose double is not on it.
    doubled: Vec<usize>,
}

impl Side {
    pub(super) fn new(levels: Vec<f64>, midpoints: Vec<f64>) -> Self {
        let steps: Vec<[f64; 2]> = levels.windows(2).map(|pair| [pair[1] - pair[0], (pair[1] - pair[0]) * (pair[1] + pair[0])]).collect();
        let even = steps.first().filter(|first| steps.iter().all(|step| step[0] == first[0])).map(|first| 1.0 / first[0]);
        let double = |level: &f64| levels.binary_search_by(|other| other.total_cmp(&(2.0 * *level))).ok();
        let doubles: Vec<usize> = levels.iter().map_while(double).collect();
        // Doubles ascend as levels do.
        let doubled = |last: usize| doubles.partition_point(|&double| double <= last);
        Side { doubled: (0..levels.len()).map(doubled).collect(), steps, even, midpoints, levels }
    }

    pub(super) fn steps(&self) -> usize {
        self.steps.len()
    }

    pub(super) fn level(&self, index: usize) -> f64 {
        self.levels.get(index).copied().unwrap_or(0.0)
    }

    pub(super) fn midpoint(&self, step: usize) -> Option<f64> {
        self.midpoints.get(step).copied()
    }

    /// How many midpoints lie below `v`; at one of them, rounding may decide either way: both levels are as near.
    #[inline(always)]
    fn reached(&self, v: f64) -> usize {
        match self.even {
            Some(inverse) => (((v - self.midpoints[0]) * inverse + 1.0).max(0.0) as usize).min(self.midpoints.len()),
            None => self.midpoints.partition_point(|&midpoint| midpoint < v),
        }
    }

    /// Below this scale a value of magnitude `largest` gets a level whose double is none, of those up to `last`.
    pub(super) fn largest_scale(&self, last: usize, largest: f64) -> f64 {
        match self.doubled.get(last).and_then(|count| count.checked_sub(1)) {
            None => f64::INFINITY,
            Some(step) if step < last => largest / self.midpoints[step],
            Some(_) => 0.0,
        }
    }
}

/// Magnitudes, ascending, and steps between levels: from `begin` to `end`.
///
/// Where values stand at a scale is kept for each step, how many values it is not below; or, where there are more steps than values, for
/// each value, how many steps lie below it.
#[derive(Debug, Default)]
pub(super) struct Track {
    values: Vec<f64>,
    /// Of each value, `w x` and as squares `w`.
    own: Vec<Sums>,
    /// The same, from each place to the end.
    outer: Vec<Sums>,
    pub begin: usize,
    pub end: usize,
    /// The first step after which sums are asked for.
    pub asked: usize,
    by_value: bool,
}

impl Track {
    /// Values with their weights, ascending, and steps. Sums will be asked for after `asked` steps or more.
    pub(super) fn set(&mut self, values: impl Iterator<Item = (f64, f64)>, (begin, end): (usize, usize), asked: usize) {
        self.values.clear();
        self.own.clear();
        for (x, w) in values {
            self.values.push(x);
            self.own.push(Sums { products: w * x, squares: w });
        }
        self.by_value = end - begin > 2 * self.values.len();
        (self.begin, self.end, self.asked) = (begin, end, if self.by_value { asked } else { begin });
        self.outer.clear();
        self.outer.resize(self.values.len() + 1, Sums::default());
        for i in (0..self.values.len()).rev() {
            self.outer[i] = self.own[i].and(self.outer[i + 1]);
        }
    }

    pub(super) fn largest(&self) -> f64 {
        self.values.last().copied().unwrap_or(0.0)
    }

    pub(super) fn smallest_above_zero(&self) -> Option<f64> {
        self.values.get(self.values.partition_point(|x| *x == 0.0)).copied()
    }

    /// Where values stand at `u`, and the sums after as many steps as may be asked for.
    pub(super) fn place(&self, side: &Side, u: f64, at: &mut Vec<u32>, sums: &mut Vec<Sums>) {
        if self.by_value {
            self.place_values(side, u, at, sums);
        } else {
            self.place_steps(side, u, at, sums);
        }
    }

    /// What counts before any step.
    fn before(&self, side: &Side) -> Sums {
        let Sums { products, squares: weight } = self.outer[0];
        let level = if self.begin == 0 { side.level(0) } else { 0.0 };
        Sums { products: level * products, squares: level * level * weight }
    }

    fn place_steps(&self, side: &Side, u: f64, at: &mut Vec<u32>, sums: &mut Vec<Sums>) {
        let (midpoints, steps) = (&side.midpoints[self.begin..self.end], &side.steps[self.begin..self.end]);
        at.resize(midpoints.len(), 0);
        sums.resize(midpoints.len() + 1, Sums::default());
        let (mut sum, scale) = (self.before(side), 1.0 / u);
        sums[0] = sum;
        let places = at.iter_mut().zip(&mut sums[1..]);
        for ((&midpoint, &[level, square]), (at, after)) in midpoints.iter().zip(steps).zip(places) {
            // All values are searched, not those between the neighbours': a loop of one length, without a branch, waits for no other.
            let largest = midpoint * scale;
            let count = self.values.partition_point(|x| *x <= largest);
            let outer = self.outer[count];
            *at = count as u32;
            sum = sum.and(Sums { products: level * outer.products, squares: square * outer.squares });
            *after = sum;
        }
    }

    fn place_values(&self, side: &Side, u: f64, at: &mut Vec<u32>, sums: &mut Vec<Sums>) {
        let from = if self.begin == 0 { 0.0 } else { side.level(self.begin) };
        let mut sum = Sums::default();
        at.resize(self.values.len(), 0);
        for ((&x, own), at) in self.values.iter().zip(&self.own).zip(at.iter_mut()) {
            let reached = side.reached(x * u).clamp(self.begin, self.end);
            *at = reached as u32;
            let level = side.levels[reached.min(self.asked)];
            sum = sum.and(Sums { products: own.products * (level - from), squares: own.squares * (level - from) * (level + from) });
        }
        sums.clear();
        sums.push(sum);
        for step in self.asked..self.end {
            let [level, square] = side.steps[step];
            let outer = self.outer[at.partition_point(|&reached| reached as usize <= step)];
            sum = sum.and(Sums { products: level * outer.products, squares: square * outer.squares });
            sums.push(sum);
        }
    }

    /// What lies between two places.
    pub(super) fn breakpoints(&self, side: &Side, track: usize, low: &[u32], high: &[u32], into: &mut Vec<Breakpoint>) {
        let mut one = |value: usize, step: usize| {
            let ([level, square], own) = (side.steps[step], self.own[value]);
            let adds = Sums { products: level * own.products, squares: square * own.squares };
            into.push(Breakpoint { u: side.midpoints[step] / self.values[value], track, step, adds });
        };
        for (i, (&low, &high)) in low.iter().zip(high).enumerate() {
            if self.by_value {
                (low..high).for_each(|step| one(i, step as usize));
            } else {
                (high..low).for_each(|value| one(value as usize, self.begin + i));
            }
        }
    }
}
