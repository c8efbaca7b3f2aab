//! The codes and scales of least error among all there are (Viterbi's algorithm).

use super::{MEMORY, PARITIES, STATES, subset};
use crate::kernels::Isa;

/// Scales of a group that are tried at once: each has a lane of the registers.
pub(crate) const LANES: usize = 8;
/// Weights between two contents of the memory whose costs are kept, for the way back.
const PIECE: usize = 128;
/// What stands for larger values, in units of a group's largest: beyond every level, near enough to tell levels apart.
const BEYOND: f32 = 16.0;
/// Units of neighbouring groups count as no further apart than the root of this.
const STEEPEST: f64 = 1e30;

const HALF: usize = STATES / 2;

/// A group of weights.
#[derive(Debug, Clone)]
pub(crate) struct Target<'a> {
    /// NaN counts as 0; of infinities, whatever their weight, the distance from the last level does, at a scale that is no one's.
    pub values: &'a [f32],
    /// Of squared errors, 0 to 1; where there are none, each 1.
    pub weights: &'a [f32],
    /// The largest magnitude of a value that has a weight.
    pub largest: f32,
    /// What may be its scale: one, or up to [`LANES`].
    pub scales: Vec<f32>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Path {
    /// Of each group, the index of its scale.
    pub scales: Vec<u8>,
    pub codes: Vec<u16>,
}

/// Costs of having come to each content of the memory, with each of `N` scales; the least is 0.
type Costs<const N: usize> = [[f32; N]; STATES];

/// Squared distances to the nearest level of each subset, with each of `N` scales.
type Distances<const N: usize> = [[f32; N]; 4];

/// A run from its first weight to its last.
struct Ahead {
    /// Of each group, the costs before it, and which of its scales a path takes that comes out with this memory.
    starts: Vec<(Costs<1>, [u8; STATES])>,
    ends: Costs<1>,
    error: f64,
}

/// Searches paths through the trellis.
pub(crate) struct Search {
    isa: Isa,
    levels: Vec<f32>,
    /// The memories with their oldest bit 0, by the subset that a code which ends in 0 takes there. One that ends in 1 takes the subset two
    /// further, and where the oldest bit is 1 it is the other way round.
    memories: [Vec<u8>; 4],
}

/// A target in units of its own, so that squares of all floats are floats.
struct Scaled<'a> {
    target: &'a Target<'a>,
    unit: f32,
}

impl Scaled<'_> {
    fn of<'a>(target: &'a Target<'a>) -> Scaled<'a> {
        // A power of two: quotients by it are exact. Of values far below every scale, what the least scale stands for: its square must be a
        // number.
        let least = target.scales.iter().copied().filter(|scale| *scale > 0.0).fold(f32::INFINITY, f32::min);
        let largest = if least.is_finite() { target.largest.max(least) } else { target.largest };
        let unit = if largest > 0.0 { f32::from_bits(largest.to_bits() & 0x7f80_0000) } else { 1.0 };
        Scaled { target, unit: if unit > 0.0 { unit } else { f32::MIN_POSITIVE } }
    }

    fn square(&self) -> f64 {
        f64::from(self.unit).powi(2)
    }

    fn scale(&self, index: usize) -> f32 {
        self.target.scales[index] / self.unit
    }

    /// A value.
    #[inline(always)]
    fn value(&self, index: usize) -> f32 {
        let x = self.target.values[index] / self.unit;
        if x.is_nan() { 0.0 } else { x.clamp(-BEYOND, BEYOND) }
    }

    #[inline(always)]
    fn weight(&self, index: usize) -> f32 {
        self.target.weights.get(index).copied().unwrap_or(1.0)
    }

    fn len(&self) -> usize {
        self.target.values.len()
    }
}

impl Search {
    /// For these levels, whose number is a multiple of 4.
    pub(crate) fn new(levels: &[f32]) -> Self {
        // What makes that so: both ends turn the upper parity, neither the lower one.
        const ENDS: u32 = 1 << MEMORY | 1;
        const { assert!(PARITIES[0] & ENDS == ENDS && PARITIES[1] & ENDS == 0) };
        let memories = std::array::from_fn(|of| (0..HALF).filter(|memory| subset(memory << 1) == of).map(|memory| memory as u8).collect());
        Search { isa: Isa::best(), levels: levels.to_vec(), memories }
    }

    /// Of all ways to give the groups of a run scales from their lists and weights codes, that of least error.
    pub(crate) fn best(&self, run: &[Target<'_>]) -> Path {
        let Ahead { starts, ends, .. } = self.ahead(run);
        let mut memory = (0..STATES).min_by(|&a, &b| ends[a][0].total_cmp(&ends[b][0])).unwrap_or(0);
        let (mut scales, mut codes) = (vec![0; run.len()], vec![0; run.iter().map(|target| target.values.len()).sum()]);
        let mut end = codes.len();
        for (index, (start, taken)) in starts.into_iter().enumerate().rev() {
            let group = Scaled::of(&run[index]);
            scales[index] = taken[memory];
            let begin = end - group.len();
            memory = self.back(&group, group.scale(scales[index].into()), &start, memory, &mut codes[begin..end]);
            end = begin;
        }
        Path { scales, codes }
    }

    /// The error of the best path, `Σ w · (x - scale · level)²`.
    pub(crate) fn least_error(&self, run: &[Target<'_>]) -> f64 {
        self.ahead(run).error
    }

    fn ahead(&self, run: &[Target<'_>]) -> Ahead {
        let mut costs = [[f32::INFINITY]; STATES];
        costs[0] = [0.0];
        let (mut error, mut unit) = (0.0, 0.0);
        let mut starts = Vec::with_capacity(run.len());
        for target in run {
            let group = Scaled::of(target);
            if unit > 0.0 {
                let change = (unit / group.square()).clamp(1.0 / STEEPEST, STEEPEST) as f32;
                costs.iter_mut().for_each(|cost| cost[0] *= change);
            }
            unit = group.square();
            let start = costs;
            let (taken, added) = self.through(&group, &mut costs);
            starts.push((start, taken));
            error += added * unit;
        }
        Ahead { starts, ends: costs, error }
    }

    /// From costs before a group to those after it: the index of the scale that each takes, and what is to be added to all.
    fn through(&self, group: &Scaled<'_>, ends: &mut Costs<1>) -> ([u8; STATES], f64) {
        let known = group.target.scales.len();
        // Lanes that are left repeat the last.
        let scales: [f32; LANES] = std::array::from_fn(|lane| group.scale(lane.min(known - 1)));
        let mut costs: Costs<LANES> = ends.map(|[cost]| [cost; LANES]);
        let mut spare = costs;
        let mut taken = [0.0f64; LANES];
        self.isa.vectorized(
            #[inline(always)]
            || {
                for first in (0..group.len()).step_by(PIECE) {
                    for i in first..(first + PIECE).min(group.len()) {
                        self.step(&self.distances(group, i, &scales), &costs, &mut spare);
                        std::mem::swap(&mut costs, &mut spare);
                    }
                    take_least(&mut costs, &mut taken);
                }
            },
        );
        // What a lane gave up more than the lane that gave up least.
        let given = taken.iter().copied().fold(f64::INFINITY, f64::min);
        let offsets = taken.map(|taken| (taken - given) as f32);
        let mut chosen = [0; STATES];
        for ((end, chosen), costs) in ends.iter_mut().zip(&mut chosen).zip(&costs) {
            end[0] = f32::INFINITY;
            for (lane, &total) in sum(costs, &offsets)[..known].iter().enumerate() {
                if total < end[0] {
                    (end[0], *chosen) = (total, lane as u8);
                }
            }
        }
        let mut least = [0.0];
        take_least(ends, &mut least);
        (chosen, given + least[0])
    }

    /// Gives a group the codes that end in this memory; the memory that they begin in.
    fn back(&self, group: &Scaled<'_>, scale: f32, start: &Costs<1>, mut memory: usize, codes: &mut [u16]) -> usize {
        // The costs at the beginning of each piece, then, from the last piece to the first, those within.
        let (mut costs, mut spare) = (*start, *start);
        let mut marks = vec![costs];
        for i in 0..group.len().saturating_sub(1) / PIECE * PIECE {
            self.step(&self.distances(group, i, &[scale]), &costs, &mut spare);
            std::mem::swap(&mut costs, &mut spare);
            if (i + 1) % PIECE == 0 {
                take_least(&mut costs, &mut [0.0]);
                marks.push(costs);
            }
        }
        let mut trail = vec![*start; PIECE.min(group.len()) + 1];
        for (piece, (mark, codes)) in marks.iter().zip(codes.chunks_mut(PIECE)).enumerate().rev() {
            let first = piece * PIECE;
            trail[0] = *mark;
            self.isa.vectorized(
                #[inline(always)]
                || {
                    for i in 0..codes.len() {
                        let (before, after) = trail.split_at_mut(i + 1);
                        self.step(&self.distances(group, first + i, &[scale]), &before[i], &mut after[0]);
                    }
                },
            );
            for (i, code) in codes.iter_mut().enumerate().rev() {
                let distances = self.distances(group, first + i, &[scale]);
                let ways = [0, HALF].map(|oldest| {
                    let from = memory >> 1 | oldest;
                    let subset = subset(from << 1 | memory & 1);
                    (trail[i][from][0] + distances[subset][0], from, subset)
                });
                let (_, from, subset) = if ways[1].0 < ways[0].0 { ways[1] } else { ways[0] };
                *code = self.nearest(group.value(first + i), scale, subset) << 1 | (memory & 1) as u16;
                memory = from;
            }
        }
        memory
    }

    /// One weight further: of the two ways to each memory the better.
    #[inline(always)]
    fn step<const N: usize>(&self, distances: &Distances<N>, costs: &Costs<N>, next: &mut Costs<N>) {
        let (next, _) = next.as_chunks_mut::<2>();
        for (subset, memories) in self.memories.iter().enumerate() {
            let (zero, one) = (distances[subset], distances[subset ^ 2]);
            for memory in memories.iter().map(|&memory| usize::from(memory)) {
                let (early, late) = (&costs[memory], &costs[memory | HALF]);
                next[memory] = [least(sum(early, &zero), sum(late, &one)), least(sum(early, &one), sum(late, &zero))];
            }
        }
    }

    #[inline(always)]
    fn distances<const N: usize>(&self, group: &Scaled<'_>, index: usize, scales: &[f32; N]) -> Distances<N> {
        if group.target.values[index].is_infinite() {
            let last = [1.0 / self.levels.last().copied().unwrap_or(1.0); N];
            return self.squares(group.target.values[index].signum(), &last);
        }
        let weight = group.weight(index);
        self.squares(group.value(index), scales).map(|squares| squares.map(|square| weight * square))
    }

    #[inline(always)]
    fn squares<const N: usize>(&self, x: f32, scales: &[f32; N]) -> Distances<N> {
        let mut all = [[f32::INFINITY; N]; 4];
        for four in self.levels.as_chunks::<4>().0 {
            for (nearest, level) in all.iter_mut().zip(four) {
                *nearest = least(*nearest, scales.map(|scale| (x - scale * level) * (x - scale * level)));
            }
        }
        all
    }

    /// Which level of a subset is nearest.
    fn nearest(&self, x: f32, scale: f32, subset: usize) -> u16 {
        let square = |level: f32| (x - scale * level).powi(2);
        let levels = self.levels.iter().skip(subset).step_by(4).enumerate();
        levels.min_by(|a, b| square(*a.1).total_cmp(&square(*b.1))).map_or(0, |(index, _)| index as u16)
    }
}

#[inline(always)]
fn sum<const N: usize>(a: &[f32; N], b: &[f32; N]) -> [f32; N] {
    std::array::from_fn(|lane| a[lane] + b[lane])
}

/// The smaller of each pair, the first of equals.
#[inline(always)]
fn least<const N: usize>(a: [f32; N], b: [f32; N]) -> [f32; N] {
    std::array::from_fn(|lane| if b[lane] < a[lane] { b[lane] } else { a[lane] })
}

/// Takes the least cost of each lane from all of its costs.
#[inline(always)]
fn take_least<const N: usize>(costs: &mut [[f32; N]], taken: &mut [f64; N]) {
    let all = costs.iter().fold([f32::INFINITY; N], |all, costs| least(all, *costs));
    for costs in costs {
        *costs = std::array::from_fn(|lane| costs[lane] - all[lane]);
    }
    for (taken, least) in taken.iter_mut().zip(all) {
        *taken += f64::from(least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::weights::trellis::levels;

    #[test]
    fn every_instruction_set_finds_the_same_path() {
        let values: Vec<f32> = (0..700).map(|i| (i as f32 * 1.7).sin() * (i as f32 * 0.31).cos()).collect();
        let weights: Vec<f32> = (0..700).map(|i| (i % 7) as f32 / 6.0).collect();
        for (bits, size) in [(1, 700), (2, 20), (3, 300), (4, 7)] {
            let parts = values.chunks(size).zip(weights.chunks(size));
            let scales = |i: usize| (0..1 + i % LANES).map(|lane| 0.2 + 0.05 * lane as f32).collect();
            let target = |(i, (values, weights))| Target { values, weights, largest: 1.0, scales: scales(i) };
            let run: Vec<Target<'_>> = parts.enumerate().map(target).collect();
            let search = |isa| Search { isa, ..Search::new(&levels(bits).unwrap()) };
            let plain = search(Isa::Scalar);
            for isa in Isa::available() {
                assert_eq!(search(isa).best(&run), plain.best(&run), "{bits} bits, {isa:?}");
                assert_eq!(search(isa).least_error(&run), plain.least_error(&run), "{bits} bits, {isa:?}");
            }
        }
    }
}
