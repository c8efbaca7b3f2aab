//! The scale of least squared error for levels of any spacing, exactly.

/// Breakpoints sorted in one go, or one for every other value if that is more.
const SLICE: usize = 1 << 14;
/// Scales whose error bounds what must be looked at.
const GRID: i32 = 14;

/// One half of a table: the levels of values above zero, or of those below, both with their signs turned.
#[derive(Debug, Default)]
struct Side {
    /// From the one nearest to zero outwards.
    levels: Vec<f64>,
    /// Midpoints between them, all above zero.
    thresholds: Vec<f64>,
    /// Of evenly spaced levels, one over the distance.
    even: Option<f64>,
    /// Where the first level stands whose double is none; where all have one, the number of levels.
    doubled: usize,
}

impl Side {
    fn new(levels: Vec<f64>, thresholds: Vec<f64>) -> Self {
        let is_level = |level: f64| levels.binary_search_by(|other| other.total_cmp(&level)).is_ok();
        let doubled = levels.iter().take_while(|level| is_level(2.0 * *level)).count();
        let distance = if levels.len() > 2 { levels[1] - levels[0] } else { 0.0 };
        let even = levels.windows(2).all(|pair| pair[1] - pair[0] == distance).then_some(1.0 / distance).filter(|_| distance > 0.0);
        Side { levels, thresholds, even, doubled }
    }

    /// Below this scale a value of magnitude `largest` gets a level whose double is none.
    fn largest_scale(&self, largest: f64) -> f64 {
        match self.doubled.checked_sub(1).map(|i| self.thresholds.get(i)) {
            None => f64::INFINITY,
            Some(threshold) => threshold.map_or(0.0, |threshold| largest / threshold),
        }
    }

    /// How many thresholds lie below `v`; at one of them, rounding may decide either way: both levels are as near.
    #[inline]
    fn step(&self, v: f64) -> usize {
        match self.even {
            Some(inverse) => (((v - self.thresholds[0]) * inverse + 1.0).max(0.0) as usize).min(self.thresholds.len()),
            None => self.thresholds.partition_point(|&t| t < v),
        }
    }
}

/// Levels `l`, ascending, made ready for the search of `min over s > 0 of Σ w · (x - s · nearest l)²`.
///
/// As `1/s` grows, the level of a value moves outwards, and it does so only where `|x| / s` passes a midpoint between two levels. Between two
/// such breakpoints the error is a quadratic of the scale, with its minimum `Σ w x² - A² / B` at `A / B`, where `A = Σ w x l` and
/// `B = Σ w l²`. So all scales are tried in the time that it takes to sort the breakpoints; whole intervals are left out where the
/// error at their beginning shows that none of their scales can be better than the best known.
#[derive(Debug)]
pub(crate) struct LevelSearch {
    above: Side,
    below: Side,
    /// The values at hand: those above zero first.
    points: Vec<Point>,
    breakpoints: Vec<Breakpoint>,
}

/// A value's magnitude, and its weight.
#[derive(Debug, Clone, Copy)]
struct Point {
    x: f64,
    w: f64,
}

#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    /// One over the scale.
    at: f64,
    /// What passing it adds to `A` and to `B`.
    products: f64,
    squares: f64,
}

/// Values that share a scale, and their weights (none: all 1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weighted<'a> {
    pub values: &'a [f32],
    pub weights: &'a [f32],
}

impl Weighted<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (f64, f64)> {
        let weight = |i: usize| self.weights.get(i).map_or(1.0, |&w| f64::from(w));
        self.values.iter().enumerate().map(move |(i, &x)| (f64::from(x), weight(i)))
    }

    /// `Σ w x²`.
    pub(crate) fn squares(&self) -> f64 {
        self.iter().map(|(x, w)| w * x * x).sum()
    }

    /// The largest magnitude.
    pub(crate) fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |largest, x| x.abs().max(largest))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    products: f64,
    squares: f64,
}

impl Sums {
    /// Keeps the largest gain `A² / B`, with its scale.
    #[inline(always)]
    fn consider(&self, best: &mut (f64, Option<f64>)) {
        if self.products > 0.0 && self.squares > 0.0 {
            let scale = self.products / self.squares;
            let gain = self.products * scale;
            if gain > best.0 {
                *best = (gain, Some(scale));
            }
        }
    }

    /// What a scale takes off `Σ w x²` with these levels.
    fn gain_at(&self, scale: f64) -> f64 {
        scale * (2.0 * self.products - scale * self.squares)
    }
}

impl LevelSearch {
    pub(crate) fn new(levels: &[f64]) -> Self {
        // On the way to zero, values above it end at the level above the last midpoint that is not above zero.
        let midpoint = |j: usize| 0.5 * (levels[j] + levels[j + 1]);
        let midpoints: Vec<f64> = (0..levels.len().saturating_sub(1)).map(midpoint).collect();
        let first = midpoints.partition_point(|&m| m <= 0.0);
        let last = midpoints.partition_point(|&m| m < 0.0);
        let above = Side::new(levels[first..].iter().map(|l| l + 0.0).collect(), midpoints[first..].to_vec());
        let below =
            Side::new(levels[..=last].iter().rev().map(|l| 0.0 - l).collect(), midpoints[..last].iter().rev().map(|m| -m).collect());
        LevelSearch { above, below, points: Vec::new(), breakpoints: Vec::new() }
    }

    /// The values of each side, with its levels.
    fn sides(&self, above: usize) -> [(&[Point], &Side); 2] {
        [(&self.points[..above], &self.above), (&self.points[above..], &self.below)]
    }

    fn sums(&self, above: usize, inverse: f64) -> Sums {
        let mut sums = Sums::default();
        for (points, side) in self.sides(above) {
            for &Point { x, w } in points {
                let level = side.levels[side.step(x * inverse)];
                sums.products += w * x * level;
                sums.squares += w * level * level;
            }
        }
        sums
    }

    /// The scale of least error if that is below `bound`.
    pub(crate) fn best_scale(&mut self, x: Weighted, bound: f64) -> Option<f64> {
        let squares = x.squares();
        self.points.clear();
        self.points.extend(x.iter().filter(|(x, _)| *x >= 0.0).map(|(x, w)| Point { x, w }));
        let above = self.points.len();
        self.points.extend(x.iter().filter(|(x, _)| *x < 0.0).map(|(x, w)| Point { x: -x, w }));
        let reach = |side: &Side| side.levels.last().copied().unwrap_or(0.0);
        let (largest, outermost) = (f64::from(x.largest()), reach(&self.above).max(reach(&self.below)));
        if !(largest > 0.0 && outermost > 0.0) {
            return None;
        }
        let nearest =
            [&self.above, &self.below].into_iter().filter_map(|side| side.thresholds.first()).copied().fold(f64::INFINITY, f64::min);
        // Beyond it every value has the level nearest to zero.
        let all_inner = if nearest.is_finite() { 1.001 * largest / nearest } else { largest / outermost };
        // Beyond it every value has a level whose double is one too, so half of the scale is as good.
        let ends =
            self.sides(above).map(|(points, side)| side.largest_scale(points.iter().fold(0.0, |largest, point| point.x.max(largest))));
        let first = all_inner.min(ends[0].max(ends[1]) * (1.0 + 1e-12));
        let mut best = (0.0, None);
        for i in 0..GRID {
            self.sums(above, outermost / largest * 0.6 * 0.86f64.powi(-i)).consider(&mut best);
        }
        let start = self.sums(above, 1.0 / first);
        start.consider(&mut best);
        let known = best.0.max(squares - bound);
        let smallest = self.smallest_scale(above, (largest / outermost).min(first), squares - known);
        let each = self.above.thresholds.len().max(self.below.thresholds.len()).max(1);
        let all = (x.values.len() * each) as f64;
        let target = x.values.len().div_ceil(2).max(SLICE) as f64;
        let norm = squares.sqrt();
        let mut scale = first;
        while scale > smallest {
            let sums = self.sums(above, 1.0 / scale);
            let [error, least] = [squares - sums.gain_at(scale), squares - known.max(best.0)].map(|error| error.max(0.0).sqrt());
            // With levels l at another scale s', |x - s l| <= |x - s' l| + |s - s'| |l|, and |s' l| <= |x| + |x - s' l|: so the root of
            // the error is not below `least` at any s' down to s / (1 + excluded). The rest is for rounding.
            let excluded = 0.999 * (error - least) / (norm + least);
            // What is swept at once: everything down to half of the scale, or less if the values are many.
            let slice = (target / all).clamp(1e-3, 1.0);
            let next = (scale / (1.0 + slice.max(excluded))).max(smallest);
            if excluded < slice {
                self.sweep(above, 1.0 / scale, 1.0 / next, &mut best);
            }
            scale = next;
        }
        best.1
    }

    /// Looks at all scales from `1 / from` down to `1 / to`.
    fn sweep(&mut self, above: usize, from: f64, to: f64, best: &mut (f64, Option<f64>)) {
        let mut breakpoints = std::mem::take(&mut self.breakpoints);
        breakpoints.clear();
        let mut sums = Sums::default();
        for (points, side) in self.sides(above) {
            for &Point { x, w } in points {
                let (first, end) = (side.step(x * from), x * to);
                let level = side.levels[first];
                sums.products += w * x * level;
                sums.squares += w * level * level;
                for (pair, threshold) in side.levels[first..].windows(2).zip(&side.thresholds[first..]).take_while(|(_, t)| **t < end) {
                    let (step, sum) = (pair[1] - pair[0], pair[1] + pair[0]);
                    breakpoints.push(Breakpoint { at: threshold / x, products: w * x * step, squares: w * step * sum });
                }
            }
        }
        breakpoints.sort_unstable_by_key(|breakpoint| breakpoint.at.to_bits());
        sums.consider(best);
        for breakpoint in &breakpoints {
            sums.products += breakpoint.products;
            sums.squares += breakpoint.squares;
            sums.consider(best);
        }
        self.breakpoints = breakpoints;
    }

    /// Below this scale clipping alone costs more than `bound`.
    fn smallest_scale(&self, above: usize, largest: f64, bound: f64) -> f64 {
        let clipped = |scale: f64| {
            let mut sum = 0.0;
            for (points, side) in self.sides(above) {
                let reach = scale * side.levels.last().copied().unwrap_or(0.0).max(0.0);
                sum += points.iter().map(|point| point.w * (point.x - reach).max(0.0).powi(2)).sum::<f64>();
            }
            sum
        };
        let (mut low, mut high) = (largest, largest);
        // Clipping everything costs Σ w x²; where not even that is above the bound, 2^-64 of the largest scale is small enough.
        while clipped(low) <= bound && low > largest * 2f64.powi(-64) {
            (low, high) = (0.5 * low, low);
        }
        for _ in 0..8 {
            let middle = (low * high).sqrt();
            if clipped(middle) > bound { low = middle } else { high = middle }
        }
        low
    }
}
