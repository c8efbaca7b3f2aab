//! Attention: the scores of some rows, their softmax and the sum of values that they weigh, one after the other while the scores lie in
//! the first-level cache.

use super::dequantize::FloatStage;
use super::dot::Float;
use super::isa::{Isa, Visitor};
use super::matmul::fill;
use super::memory::Aligned;
use super::operand::{Matrix, check_threads};
use super::output::Activation;
use super::pack::{PanelLayout, Panels};
use super::product::{GRAIN, Product, Rows};
use super::simd::Simd;
use super::threads::{self, Disjoint};
use super::tile::{ROWS, Segment, Start, Zero};
use super::weights::WeightLayout;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::num::math;
use crate::num::reduce::{LANES, join};

/// What one head reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    /// `[rows, depth]`.
    pub query: Matrix<'a, f32>,
    /// `[keys, depth]`, or `[depth, keys]` as [`WeightLayout::Kn`].
    pub key: (Matrix<'a, f32>, WeightLayout),
    /// `[keys, width]` as [`WeightLayout::Kn`], or `[width, keys]`.
    pub value: (Matrix<'a, f32>, WeightLayout),
}

impl Head<'_> {
    /// Rows, keys, depth and width, if the matrices go together.
    fn shape(&self) -> Option<[usize; 4]> {
        let (keys, depth) = columns_and_steps(self.key);
        let (width, values) = columns_and_steps(self.value);
        (self.query.cols() == depth && keys == values).then_some([self.query.rows(), keys, depth, width])
    }
}

/// Columns and steps of k of the right side of a product.
fn columns_and_steps((matrix, layout): (Matrix<'_, f32>, WeightLayout)) -> (usize, usize) {
    match layout {
        WeightLayout::Nk => (matrix.rows(), matrix.cols()),
        WeightLayout::Kn => (matrix.cols(), matrix.rows()),
    }
}

/// Heads of one shape.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub heads: &'a [Head<'a>],
    /// What scores are multiplied by.
    pub scale: f32,
    /// What is added to the scaled scores of a head's row, one number for each key.
    pub mask: &'a (dyn Fn(usize, usize) -> Option<&'a [f32]> + Sync),
}

/// Where the rows of heads lie in the output, which they fill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scattered<'a> {
    /// Lengths of the axes that heads are counted along, the last one first to move, and elements from one entry to the next.
    pub heads: &'a [(usize, usize)],
    /// Elements from one row to the next.
    pub row: usize,
}

impl Scattered<'_> {
    /// Whether heads of `rows` rows of `width` elements fill `len` elements, each once.
    fn fills(&self, heads: usize, rows: usize, width: usize, len: usize) -> bool {
        let mut axes: Vec<(usize, usize)> =
            self.heads.iter().copied().chain([(rows, self.row)]).filter(|(length, _)| *length != 1).collect();
        axes.sort_by_key(|(_, step)| *step);
        let end = axes.iter().try_fold(width, |next, (length, step)| (*step == next).then(|| next.saturating_mul(*length)));
        end == Some(len) && self.heads.iter().map(|(length, _)| *length).product::<usize>() == heads
    }

    /// Where head `head` starts.
    fn start(&self, mut head: usize) -> usize {
        let mut at = 0;
        for (length, step) in self.heads.iter().rev() {
            at += head % length * step;
            head /= length;
        }
        at
    }
}

/// What a thread keeps of a head: keys and values as tiles read them, and the scores of some rows.
#[derive(Debug, Default)]
pub(super) struct HeadMemory {
    keys: Aligned,
    values: Aligned,
    scores: Aligned,
}

impl HeadMemory {
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes() + self.scores.bytes()
    }
}

/// `dst = softmax(query key^T * scale + mask) value` in f32, head by head.
///
/// Each score and each sum of values runs over its axis in order; weights are added lane by lane and divided out of the sums of values at
/// the end. A row does not depend on the other rows, nor on the number of threads. Instruction sets may differ in the last bits. A row
/// of scores with NaN, with `+∞`, or with nothing above `-∞` makes a row of NaN. Values beyond the largest float over the number of keys may
/// overflow before they are divided.
///
/// # Errors
/// [`Error::Shape`] when the heads' matrices do not go together, or do not fill `dst`; [`Error::Parameter`] for `threads == 0`.
pub(crate) fn attention(
    call: &Attention<'_>,
    dst: &mut [f32],
    place: Scattered<'_>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    attention_for(Isa::best(), call, dst, place, workspace, threads)
}

/// [`attention`] on an instruction set that is there.
fn attention_for(
    isa: Isa,
    call: &Attention<'_>,
    dst: &mut [f32],
    place: Scattered<'_>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    check_threads(threads)?;
    let Some(first) = call.heads.first() else { return Ok(()) };
    let shape = first.shape().filter(|shape| call.heads.iter().all(|head| head.shape() == Some(*shape)));
    let Some(shape @ [rows, keys, depth, width]) = shape else {
        return Err(Error::shape("heads", "queries, keys and values that go together", &[call.heads.len()]));
    };
    if dst.is_empty() || keys == 0 {
        dst.fill(0.0);
        return Ok(());
    }
    if !place.fills(call.heads.len(), rows, width, dst.len()) {
        return Err(Error::shape("output", format!("{} heads of {rows} x {width}", call.heads.len()), &[dst.len()]));
    }
    let work = (call.heads.len() * rows).saturating_mul(keys).saturating_mul(depth + width + 8);
    let parts = threads::parts(threads, work, GRAIN);
    workspace.heads.resize_with(parts.max(workspace.heads.len()), HeadMemory::default);
    isa.visit(Visit { isa, call, shape, dst: Disjoint::new(dst), place, memory: &mut workspace.heads, parts });
    Ok(())
}

struct Visit<'v, 'a> {
    isa: Isa,
    call: &'v Attention<'a>,
    shape: [usize; 4],
    dst: Disjoint<'v, f32>,
    place: Scattered<'v>,
    memory: &'v mut [HeadMemory],
    parts: usize,
}

impl Visitor for Visit<'_, '_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Visit { isa, call, shape: shape @ [rows, keys, depth, width], dst, place, memory, parts } = self;
        let blocks = rows.div_ceil(S::MR);
        let memory = Disjoint::new(memory);
        threads::split(call.heads.len() * blocks, parts, |part, range| {
            // SAFETY: each part of the work has a memory of its own.
            let memory = unsafe { &mut memory.part(part..part + 1)[0] };
            let packed = |memory: &mut Aligned, right, n, k| {
                let mut panels = Panels::in_memory(std::mem::take(memory), PanelLayout::float(isa), n, k);
                fill(simd, &mut panels, right);
                panels
            };
            let mut item = range.start;
            while item < range.end {
                let head = item / blocks;
                let Head { query, key, value } = call.heads[head];
                let keys_of_head = packed(&mut memory.keys, key, keys, depth);
                let values_of_head = packed(&mut memory.values, value, width, keys);
                let end = ((head + 1) * blocks).min(range.end);
                for block in item - head * blocks..end - head * blocks {
                    let block = Block {
                        rows: rows * block / blocks..rows * (block + 1) / blocks,
                        head,
                        query,
                        keys: &keys_of_head,
                        values: &values_of_head,
                    };
                    block.run(simd, call, shape, &mut memory.scores, (&dst, place));
                }
                memory.keys = keys_of_head.into_memory();
                memory.values = values_of_head.into_memory();
                item = end;
            }
        });
    }
}

/// As many rows of a head as a tile has.
struct Block<'a> {
    rows: std::ops::Range<usize>,
    head: usize,
    query: Matrix<'a, f32>,
    keys: &'a Panels<f32>,
    values: &'a Panels<f32>,
}

impl Block<'_> {
    fn run<S: Simd>(
        self,
        simd: S,
        call: &Attention<'_>,
        [_, keys, depth, width]: [usize; 4],
        scores: &mut Aligned,
        (dst, place): (&Disjoint<'_, f32>, Scattered<'_>),
    ) {
        let Block { rows, head, query, keys: keys_of_head, values, .. } = self;
        let m = rows.len();
        let stride = keys.next_multiple_of(LANES);
        let scores = &mut scores.grow::<f32>(m * stride)[..m * stride];
        let lhs = query.data().as_ptr().wrapping_add(rows.start * query.stride());
        // SAFETY: the block's rows are in the matrix, and the scores have as many rows of as many columns as there are keys.
        unsafe { multiply(simd, (lhs, query.stride()), (m, depth), keys_of_head, (scores.as_mut_ptr(), stride)) }
        // What is added of each row, and what becomes of that one row after the other: each waits for the other within a row.
        let (mut max, mut sums) = ([[f32::NEG_INFINITY; LANES]; ROWS], [[0.0; LANES]; ROWS]);
        simd.vectorize(
            #[inline(always)]
            || {
                for (i, (scores, max)) in scores.chunks_exact_mut(stride).zip(&mut max).enumerate() {
                    scaled(simd, &mut scores[..keys], (call.mask)(head, rows.start + i), call.scale, max);
                }
                let max = max.map(|max| join(max, |a, b| if b > a { b } else { a }));
                for ((scores, max), sums) in scores.chunks_exact_mut(stride).zip(max).zip(&mut sums) {
                    weigh::<S>(&mut scores[..keys], max, sums);
                }
            },
        );
        let start = place.start(head);
        let at = |i: usize| start + (rows.start + i) * place.row;
        // SAFETY: rows of heads fill the output, so that no other block has these elements; they are taken one row at a time.
        let row = |i: usize| unsafe { dst.part(at(i)..at(i) + width) };
        if m > 0 && width > 0 {
            // SAFETY: the scores are m rows of as many words as there are keys, and the rows of the output are this block's alone.
            unsafe { multiply(simd, (scores.as_ptr(), stride), (m, keys), values, (dst.at(at(0)), place.row)) }
        }
        simd.vectorize(
            #[inline(always)]
            || {
                for (i, factor) in sums.map(|sums| 1.0 / join(sums, |a, b| a + b)).into_iter().enumerate().take(m) {
                    row(i).iter_mut().for_each(|y| *y *= factor);
                }
            },
        );
    }
}

/// `m` rows of `k` floats times panels.
///
/// # Safety
/// There are as many rows `lhs.1` apart, and at `dst` as many, `dst.1` apart, of as many elements as the panels have columns; nobody else
/// uses those. The panels have `k` words.
unsafe fn multiply<S: Simd>(
    simd: S,
    (lhs, stride): (*const f32, usize),
    (m, k): (usize, usize),
    panels: &Panels<f32>,
    (dst, dst_stride): (*mut f32, usize),
) {
    let product = Product::<S, Float, _> {
        simd,
        lhs,
        rows: Rows::Strided { stride, first: 0 },
        m,
        segments: &[Segment { offset: 0, words: k }],
        group_step: 0,
        panels,
        start: Start::new(Zero::Tensor(0)),
        store: FloatStage { bias: None, accumulate: false, activation: Activation::None, measure: None, function: None },
        dst,
        dst_stride,
    };
    // SAFETY: the caller's promise; a word is one float, so nothing is read beyond a row.
    unsafe { product.run(1) }
}

/// Scores become `score * scale + mask`; the largest in each lane goes to `max`, if it is a number above `-∞`. In vectors by hand: of
/// loops over both slices the compiler made one for single numbers.
#[inline(always)]
fn scaled<S: Simd>(simd: S, scores: &mut [f32], mask: Option<&[f32]>, scale: f32, max: &mut [f32; LANES]) {
    let (factor, none) = (simd.splat_f32(scale), simd.splat_f32(f32::NEG_INFINITY));
    let mut largest = none;
    for first in (0..scores.len()).step_by(S::LANES) {
        let (lanes, at) = (S::LANES.min(scores.len() - first), scores[first..].as_mut_ptr());
        // SAFETY: as many scores are left from `first` on; the mask is as long, or the slice of it panics.
        unsafe {
            let x = simd.load_f32(at, lanes);
            let x = match mask {
                Some(mask) => simd.mul_add_f32(x, factor, simd.load_f32(mask[first..first + lanes].as_ptr(), lanes)),
                None => simd.mul_f32(x, factor),
            };
            simd.store_f32(at, x, lanes);
            // NaN is not above anything.
            largest = simd.max_f32(if lanes == S::LANES { x } else { simd.keep_f32(x, lanes, none) }, largest);
        }
    }
    // SAFETY: no instruction set has more than sixteen lanes.
    unsafe { simd.store_f32(max.as_mut_ptr(), largest, S::LANES) }
}

/// Scores become `e^(score - max)`, added lane by lane.
#[inline(always)]
fn weigh<S: Simd>(scores: &mut [f32], max: f32, sums: &mut [f32; LANES]) {
    let mul_add = |a: f32, b: f32, c: f32| if S::FUSED { a.mul_add(b, c) } else { a * b + c };
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for x in chunks {
        for l in 0..LANES {
            x[l] = math::exp_of_negative_by(x[l] - max, mul_add);
            lanes[l] += x[l];
        }
    }
    for (x, sum) in rest.iter_mut().zip(&mut lanes) {
        *x = math::exp_of_negative_by(*x - max, mul_add);
        *sum += *x;
    }
    *sums = lanes;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// In double precision, and how far f32 may be from it: a score is off by as many roundings as it adds products, a weight by twice
    /// as much of itself, and the sum by as many roundings as there are keys.
    fn row_of(head: &Head<'_>, row: usize, scale: f32, mask: Option<&[f32]>) -> (Vec<f64>, f64) {
        let [_, keys, depth, width] = head.shape().unwrap();
        let at = |(matrix, layout): (Matrix<'_, f32>, WeightLayout), column: usize, step: usize| match layout {
            WeightLayout::Nk => f64::from(matrix.row(column)[step]),
            WeightLayout::Kn => f64::from(matrix.row(step)[column]),
        };
        let products = |key: usize| (0..depth).map(move |d| f64::from(head.query.row(row)[d]) * at(head.key, key, d) * f64::from(scale));
        let score = |key: usize| products(key).sum::<f64>() + mask.map_or(0.0, |mask| f64::from(mask[key]));
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let largest = (0..keys).map(|key| products(key).map(f64::abs).sum::<f64>()).fold(1.0, f64::max);
        let bound = f64::from(f32::EPSILON) * (2.0 * (depth + 4) as f64 * largest + (keys + 16) as f64);
        ((0..width).map(|w| (0..keys).map(|k| weights[k] * at(head.value, w, k)).sum::<f64>() / sum).collect(), bound)
    }

    #[test]
    fn every_instruction_set_attends() {
        for (i, [heads, rows, keys, depth, width]) in
            [[1, 1, 1, 1, 1], [2, 5, 7, 3, 17], [3, 33, 33, 16, 16], [2, 13, 70, 40, 33], [5, 130, 129, 40, 33]].into_iter().enumerate()
        {
            // The last one is for three threads, which do not have whole heads each.
            let work = heads * rows * keys * (depth + width + 8);
            assert_eq!(threads::parts(3, work, GRAIN), if i == 4 && cfg!(feature = "parallel") { 3 } else { 1 });
            let (queries, keys_of, values) =
                (numbers(heads * rows * depth, 1), numbers(heads * keys * depth, 2), numbers(heads * keys * width, 3));
            let masks: Vec<f32> = numbers(rows * keys, 4).into_iter().map(|x| if x > 0.5 { f32::NEG_INFINITY } else { 4.0 * x }).collect();
            // A key at least of each row may be seen.
            let masks: Vec<f32> = masks.iter().enumerate().map(|(i, &x)| if i % keys == 0 { 0.5 } else { x }).collect();
            let mask = |_: usize, row: usize| (i % 2 == 1).then(|| &masks[row * keys..(row + 1) * keys]);
            for layouts in [[WeightLayout::Nk, WeightLayout::Kn], [WeightLayout::Kn, WeightLayout::Nk]] {
                let matrix = |layout, x, [n, k]: [usize; 2]| match layout {
                    WeightLayout::Nk => (Matrix::new(x, n, k).unwrap(), layout),
                    WeightLayout::Kn => (Matrix::new(x, k, n).unwrap(), layout),
                };
                let all: Vec<Head<'_>> = (0..heads)
                    .map(|h| Head {
                        query: Matrix::new(&queries[h * rows * depth..][..rows * depth], rows, depth).unwrap(),
                        key: matrix(layouts[0], &keys_of[h * keys * depth..][..keys * depth], [keys, depth]),
                        value: matrix(layouts[1], &values[h * keys * width..][..keys * width], [width, keys]),
                    })
                    .collect();
                let masked = |head: usize, row: usize| mask(head, row);
                let call = Attention { heads: &all, scale: 1.7, mask: &masked };
                // Heads side by side in each row.
                let place = Scattered { heads: &[(heads, width)], row: heads * width };
                let exact: Vec<_> =
                    (0..heads * rows).map(|i| row_of(&all[i % heads], i / heads, call.scale, mask(i % heads, i / heads))).collect();
                for isa in Isa::available() {
                    let run = |threads: usize| {
                        let mut dst = vec![f32::NAN; heads * rows * width];
                        attention_for(isa, &call, &mut dst, place, &mut Workspace::new(), threads).unwrap();
                        dst
                    };
                    let dst = run(1);
                    for (i, (y, (exact, bound))) in dst.chunks_exact(width).zip(&exact).enumerate() {
                        for (w, (y, exact)) in y.iter().zip(exact).enumerate() {
                            let off = (f64::from(*y) - exact).abs();
                            assert!(off <= *bound, "{isa:?} head {} row {} column {w}: {y} for {exact}", i % heads, i / heads);
                        }
                    }
                    for threads in [2, 3] {
                        assert!(run(threads).iter().zip(&dst).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?} on {threads} threads");
                    }
                }
            }
        }
    }
}
