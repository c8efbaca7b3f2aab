//! Levels learned from the values.

use crate::error::{Error, Result};

/// Distinct values up to which the partition is exact; above, they are first put into as many bins, whose moments are kept.
const EXACT: usize = 1 << 16;
/// Rounds of nearest level and mean after a partition of bins.
const ROUNDS: usize = 4;

/// The at most `levels` levels of least `Σ w · (x - nearest level)²`, ascending (Wang and Song 2011): exact, without a start
/// or a seed, by dynamic programming. Clusters of sorted values are neighbours, and the cost of the best `c` clusters of the
/// first `j` values, `D_c(j) = min over i of D_(c-1)(i) + cost(i, j)`, has its minimum at an `i` that never falls as `j`
/// grows: divide and conquer takes `O(levels · n · log n)`. With `zero`, one of the levels is exactly 0.
///
/// Fewer distinct values than levels come back as they are. Of more than 2^16 distinct values, bins are partitioned, and
/// the levels then improved on the values themselves. Without `weights` all are 1; values of weight 0 do not count.
///
/// ```
/// use lowprec::quant::kmeans;
/// assert_eq!(kmeans(&[1.0, 5.0, 1.5, 6.0, -3.0], None, 3, false)?, [-3.0, 1.25, 5.5]);
/// assert_eq!(kmeans(&[1.0, 5.0, 1.5, 6.0, 5.5], None, 3, true)?, [0.0, 1.25, 5.5]);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::Parameter`] for 0 or more than 256 levels and for weights that are negative or not finite, [`Error::NonFinite`],
/// [`Error::Length`] when there is not one weight for each value.
pub fn kmeans(values: &[f32], weights: Option<&[f32]>, levels: usize, zero: bool) -> Result<Vec<f32>> {
    if !(1..=256).contains(&levels) {
        return Err(Error::parameter("number of levels", levels, "must be 1 to 256"));
    }
    let points = Points::new(values, weights)?;
    let mut found = if points.distinct <= levels && (!zero || points.distinct < levels || points.has_zero()) {
        points.values.iter().map(|&x| x as f32).chain(zero.then_some(0.0)).collect()
    } else {
        let bins = points.binned();
        let mut means = bins.partition(levels, zero);
        for _ in 0..if bins.values.len() < points.values.len() { ROUNDS } else { 0 } {
            means = points.means(means, zero);
        }
        means.into_iter().map(|x| x as f32).collect::<Vec<_>>()
    };
    ascending(&mut found);
    if found.is_empty() {
        found.push(0.0);
    }
    Ok(found)
}

/// Levels with as many values around each: the means of `levels` parts of the sorted values that have the same weight.
/// With `zero`, the level nearest to 0 becomes 0.
///
/// # Errors
/// Those of [`kmeans`].
pub fn quantile_levels(values: &[f32], weights: Option<&[f32]>, levels: usize, zero: bool) -> Result<Vec<f32>> {
    if !(1..=256).contains(&levels) {
        return Err(Error::parameter("number of levels", levels, "must be 1 to 256"));
    }
    let points = Points::new(values, weights)?;
    let total: f64 = points.weights.iter().sum();
    let mut parts = vec![(0.0, 0.0); levels];
    let mut before = 0.0;
    for (&x, &w) in points.values.iter().zip(&points.weights) {
        let part = (((before + 0.5 * w) / total * levels as f64) as usize).min(levels - 1);
        parts[part].0 += w;
        parts[part].1 += w * x;
        before += w;
    }
    let mut found: Vec<f32> = parts.into_iter().filter(|part| part.0 > 0.0).map(|(mass, moment)| (moment / mass) as f32).collect();
    ascending(&mut found);
    if zero || found.is_empty() {
        match found.iter_mut().min_by(|a, b| a.abs().total_cmp(&b.abs())) {
            Some(nearest) => *nearest = 0.0,
            None => found.push(0.0),
        }
    }
    Ok(found)
}

/// Ascending, without equals; -0 is 0.
fn ascending(levels: &mut Vec<f32>) {
    levels.iter_mut().for_each(|level| *level += 0.0);
    levels.sort_by(f32::total_cmp);
    levels.dedup();
}

/// Distinct values in order, each with its weight; bins have the mean of theirs and what it leaves of their squares does not
/// depend on the partition.
struct Points {
    values: Vec<f64>,
    weights: Vec<f64>,
    distinct: usize,
}

impl Points {
    fn new(values: &[f32], weights: Option<&[f32]>) -> Result<Self> {
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::NonFinite { what: "values to cluster".into(), index, value: values[index] });
        }
        check_weights(values.len(), weights)?;
        let weight = |i: usize| weights.map_or(1.0, |weights| f64::from(weights[i]));
        let mut order: Vec<(f32, f64)> =
            values.iter().enumerate().map(|(i, &x)| (x + 0.0, weight(i))).filter(|point| point.1 > 0.0).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut points = Points { values: Vec::new(), weights: Vec::new(), distinct: 0 };
        for (x, w) in order {
            match points.values.last() {
                Some(&last) if last == f64::from(x) => *points.weights.last_mut().expect("as long as the values") += w,
                _ => {
                    points.values.push(f64::from(x));
                    points.weights.push(w);
                }
            }
        }
        points.distinct = points.values.len();
        Ok(points)
    }

    fn has_zero(&self) -> bool {
        self.values.binary_search_by(|x| x.total_cmp(&0.0)).is_ok()
    }

    /// These points if they are few, or their bins.
    fn binned(&self) -> Points {
        if self.values.len() <= EXACT {
            return Points { values: self.values.clone(), weights: self.weights.clone(), distinct: self.distinct };
        }
        let (low, high) = (self.values[0], self.values[self.values.len() - 1]);
        let mut bins = vec![(0.0, 0.0); EXACT];
        for (&x, &w) in self.values.iter().zip(&self.weights) {
            let bin = &mut bins[((x - low) / (high - low) * (EXACT - 1) as f64) as usize];
            *bin = (bin.0 + w, bin.1 + w * x);
        }
        let (weights, values) = bins.into_iter().filter(|bin| bin.0 > 0.0).map(|(mass, moment)| (mass, moment / mass)).unzip();
        Points { values, weights, distinct: self.distinct }
    }

    /// The means of the values nearest to each level; 0 stays if it must.
    fn means(&self, levels: Vec<f64>, zero: bool) -> Vec<f64> {
        let mut sums = vec![(0.0, 0.0); levels.len()];
        let mut at = 0;
        for (&x, &w) in self.values.iter().zip(&self.weights) {
            while at + 1 < levels.len() && x > 0.5 * (levels[at] + levels[at + 1]) {
                at += 1;
            }
            sums[at] = (sums[at].0 + w, sums[at].1 + w * x);
        }
        let mean = |(&level, (mass, moment)): (&f64, (f64, f64))| if mass > 0.0 && !(zero && level == 0.0) { moment / mass } else { level };
        levels.iter().zip(sums).map(mean).collect()
    }

    fn partition(&self, levels: usize, zero: bool) -> Vec<f64> {
        let n = self.values.len();
        // Centred, the difference of squares loses least; with zero as a level, zero is the centre.
        let total: f64 = self.weights.iter().sum();
        let mean = self.values.iter().zip(&self.weights).map(|(x, w)| x * w).sum::<f64>() / total;
        let sums = Moments::new(self, mean);
        let from_zero: Vec<f64> = std::iter::once(0.0)
            .chain(self.values.iter().zip(&self.weights).scan(0.0, |sum, (x, w)| {
                *sum += w * x * x;
                Some(*sum)
            }))
            .collect();
        let clusters = levels - usize::from(zero);
        // free[c]: best c clusters without the one of zero; fixed[c]: c clusters, and somewhere among them the one of zero.
        let none: Vec<f64> = (0..=n).map(|j| if j == 0 { 0.0 } else { f64::INFINITY }).collect();
        let mut free = Layer { cost: none, ..Layer::default() };
        let mut fixed = if zero { free.zeroed(&from_zero) } else { Layer::default() };
        let (mut frees, mut fixeds) = (Vec::new(), Vec::new());
        for _ in 0..clusters {
            let next_free = free.extended(&sums);
            let next_fixed = if zero { Layer::better(fixed.extended(&sums), next_free.zeroed(&from_zero)) } else { Layer::default() };
            // The way back needs no costs.
            frees.push(Layer { cost: Vec::new(), ..std::mem::replace(&mut free, next_free) });
            fixeds.push(Layer { cost: Vec::new(), ..std::mem::replace(&mut fixed, next_fixed) });
        }
        frees.push(free);
        fixeds.push(fixed);
        let (mut found, mut end, mut count, mut with_zero) = (Vec::new(), n, clusters, zero);
        while end > 0 && (count > 0 || with_zero) {
            let layer = if with_zero { &fixeds[count] } else { &frees[count] };
            let start = layer.from[end] as usize;
            if with_zero && layer.is_zero[end] {
                with_zero = false;
            } else {
                if start < end {
                    found.push(sums.mean(start, end) + mean);
                }
                count -= 1;
            }
            end = start;
        }
        found.extend(zero.then_some(0.0));
        found.sort_by(f64::total_cmp);
        found
    }
}

/// Prefix sums of `w`, `w x` and `w x²`, centred.
struct Moments(Vec<[f64; 3]>);

impl Moments {
    fn new(points: &Points, centre: f64) -> Self {
        let mut sums = vec![[0.0; 3]];
        let mut sum = [0.0; 3];
        for (&x, &w) in points.values.iter().zip(&points.weights) {
            let x = x - centre;
            sum = [sum[0] + w, sum[1] + w * x, sum[2] + w * x * x];
            sums.push(sum);
        }
        Moments(sums)
    }

    fn mean(&self, i: usize, j: usize) -> f64 {
        (self.0[j][1] - self.0[i][1]) / (self.0[j][0] - self.0[i][0])
    }

    /// Squared distance of values `i..j` from their mean.
    fn cost(&self, i: usize, j: usize) -> f64 {
        if i >= j {
            return 0.0;
        }
        let [w, s, q] = [0, 1, 2].map(|m| self.0[j][m] - self.0[i][m]);
        (q - s * s / w).max(0.0)
    }
}

/// The least cost of the first `j` values for some number of clusters, and where the last of them begins.
#[derive(Default)]
struct Layer {
    cost: Vec<f64>,
    from: Vec<u32>,
    /// Whether the last cluster is that of zero; empty where none can be.
    is_zero: Vec<bool>,
}

impl Layer {
    /// With one more cluster at the end.
    fn extended(&self, sums: &Moments) -> Layer {
        let n = self.cost.len();
        let mut layer = Layer { cost: vec![f64::INFINITY; n], from: vec![0; n], is_zero: vec![false; n] };
        let mut open = vec![(0, n, 0, n - 1)];
        while let Some((begin, end, first, last)) = open.pop() {
            if begin >= end {
                continue;
            }
            let j = (begin + end) / 2;
            let mut best = (f64::INFINITY, first.min(j));
            for i in first..=last.min(j) {
                let cost = self.cost[i] + sums.cost(i, j);
                if cost < best.0 {
                    best = (cost, i);
                }
            }
            layer.cost[j] = best.0;
            layer.from[j] = best.1 as u32;
            open.push((begin, j, first, best.1));
            open.push((j + 1, end, best.1, last));
        }
        layer
    }

    /// With the cluster of zero at the end: its cost is a difference of prefix sums, so the best beginning is a running minimum.
    fn zeroed(&self, from_zero: &[f64]) -> Layer {
        let mut best = (f64::INFINITY, 0);
        let mut layer = Layer { is_zero: vec![true; self.cost.len()], ..Layer::default() };
        for (j, &square) in from_zero.iter().enumerate() {
            if self.cost[j] - square < best.0 {
                best = (self.cost[j] - square, j as u32);
            }
            layer.cost.push(best.0 + square);
            layer.from.push(best.1);
        }
        layer
    }

    fn better(mut a: Layer, b: Layer) -> Layer {
        for j in 0..a.cost.len() {
            if b.cost[j] < a.cost[j] {
                (a.cost[j], a.from[j], a.is_zero[j]) = (b.cost[j], b.from[j], b.is_zero[j]);
            }
        }
        a
    }
}

pub(crate) fn check_weights(values: usize, weights: Option<&[f32]>) -> Result<()> {
    let Some(weights) = weights else { return Ok(()) };
    if weights.len() != values {
        return Err(Error::length("list of sensitivities", values, weights.len()));
    }
    match weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
        Some(w) => Err(Error::parameter("sensitivity", w, "must be finite and not below zero")),
        None => Ok(()),
    }
}
