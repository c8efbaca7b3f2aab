//! Weights into words: what lies together along k for each column, column after column.

use super::pack::WeightRows;
use super::simd::{Element, Simd};

/// What becomes of runs of k: words of `ku` steps, `width` columns side by side; the last word of a run is filled up by what is there.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    pub ku: usize,
    pub width: usize,
    pub runs: &'a [usize],
}

/// Columns of `k` weights into one panel's words.
#[inline(always)]
pub fn columns_into_words<S: Simd, W: Element>(simd: S, columns: &[W], k: usize, words: Words<'_>, packed: &mut [W]) {
    match words.ku {
        1 => columns_into::<S, W, 1>(simd, columns, k, words, packed),
        2 => columns_into::<S, W, 2>(simd, columns, k, words, packed),
        4 => columns_into::<S, W, 4>(simd, columns, k, words, packed),
        8 => columns_into::<S, W, 8>(simd, columns, k, words, packed),
        ku => unreachable!("a word has 1, 2, 4 or 8 elements, not {ku}"),
    }
}

#[inline(always)]
fn columns_into<S: Simd, W: Element, const KU: usize>(
    simd: S,
    columns: &[W],
    k: usize,
    Words { width, runs, .. }: Words<'_>,
    packed: &mut [W],
) {
    /// Words that are written for all columns before the next ones, so that what a word's columns share is still in the cache.
    const BLOCK: usize = 32;
    if k == 0 {
        return;
    }
    let (packed, _) = packed.as_chunks_mut::<KU>();
    let count = columns.len() / k;
    let (mut step, mut first) = (0, 0);
    for &run in runs {
        let words = run / KU;
        for block in (0..words).step_by(BLOCK) {
            let size = (words - block).min(BLOCK);
            let from = &columns[step + block * KU..];
            let packed = &mut packed[(first + block) * width..][..size * width];
            let (whole, high) = if S::TURNS && size_of::<[W; KU]>() == size_of::<f32>() {
                turn::<S, W, KU>(simd, from, k, (count, size), packed, width)
            } else {
                by_fours(from, k, (count, size), packed, width)
            };
            for c in 0..count {
                let from = from[c * k..][..size * KU].as_chunks::<KU>().0;
                let done = if c < whole { high } else { 0 };
                for (w, word) in from.iter().enumerate().skip(done) {
                    packed[w * width + c] = *word;
                }
            }
        }
        let rest = run % KU;
        if rest > 0 {
            for c in 0..count {
                let column = &columns[c * k + step + words * KU..][..rest];
                packed[(first + words) * width + c][..rest].copy_from_slice(column);
            }
        }
        step += run;
        first += run.div_ceil(KU);
    }
}

/// As many of `count` columns, `k` elements from one to the next, and of `size` words of each as whole squares of vectors take,
/// turned in registers, for words of four bytes: how many of both.
#[inline(always)]
fn turn<S: Simd, W: Element, const KU: usize>(
    simd: S,
    columns: &[W],
    k: usize,
    (count, size): (usize, usize),
    packed: &mut [[W; KU]],
    width: usize,
) -> (usize, usize) {
    let (whole, high) = (count / S::LANES * S::LANES, size / S::LANES * S::LANES);
    for c in (0..whole).step_by(S::LANES) {
        for w in (0..high).step_by(S::LANES) {
            let mut from = [std::ptr::null(); 16];
            for (lane, from) in from[..S::LANES].iter_mut().enumerate() {
                *from = columns[(c + lane) * k + w * KU..][..S::LANES * KU].as_ptr().cast();
            }
            let to = &mut packed[w * width + c..(w + S::LANES - 1) * width + c + S::LANES];
            // SAFETY: each slice of a column holds `LANES` words, of four bytes by the caller's choice, at any alignment, as does `to`,
            // which reaches from the first word's first column to the last word's last one.
            unsafe { simd.transpose_f32(&from, to.as_mut_ptr().cast(), width) }
        }
    }
    (whole, high)
}

/// [`turn`] in squares of four, for words of any size: four are written together.
#[inline(always)]
fn by_fours<W: Element, const KU: usize>(
    columns: &[W],
    k: usize,
    (count, size): (usize, usize),
    packed: &mut [[W; KU]],
    width: usize,
) -> (usize, usize) {
    const SIDE: usize = 4;
    let (whole, high) = (count / SIDE * SIDE, size / SIDE * SIDE);
    for c in (0..whole).step_by(SIDE) {
        let squares = |c: usize| columns[c * k..][..size * KU].as_chunks::<KU>().0.as_chunks::<SIDE>().0;
        let rows = squares(c).iter().zip(squares(c + 1)).zip(squares(c + 2).iter().zip(squares(c + 3)));
        for (w, ((p, q), (r, s))) in rows.enumerate() {
            for i in 0..SIDE {
                packed[(w * SIDE + i) * width + c..][..SIDE].copy_from_slice(&[p[i], q[i], r[i], s[i]]);
            }
        }
    }
    (whole, high)
}

/// Rows, one for each step of k, into the words of panels side by side, from column `first` on, whose scales these are. `scratch` has
/// `ku` rows of all columns; `sums` are those of the columns, or none. All panels but the last are `words.width` wide, and that as much
/// of it as it needs.
#[inline(always)]
pub fn rows_into_words<S: Simd, W: Element>(
    simd: S,
    rows: &impl WeightRows<W>,
    at: (usize, &[f32]),
    words: Words<'_>,
    scratch: &mut [W],
    sums: &mut [i32],
    packed: &mut [&mut [W]],
) {
    match words.ku {
        1 => rows_into::<S, W, 1>(simd, rows, at, words, scratch, sums, packed),
        2 => rows_into::<S, W, 2>(simd, rows, at, words, scratch, sums, packed),
        4 => rows_into::<S, W, 4>(simd, rows, at, words, scratch, sums, packed),
        8 => rows_into::<S, W, 8>(simd, rows, at, words, scratch, sums, packed),
        ku => unreachable!("a word has 1, 2, 4 or 8 elements, not {ku}"),
    }
}

#[inline(always)]
fn rows_into<S: Simd, W: Element, const KU: usize>(
    simd: S,
    rows: &impl WeightRows<W>,
    (first, scales): (usize, &[f32]),
    Words { width, runs, .. }: Words<'_>,
    scratch: &mut [W],
    sums: &mut [i32],
    packed: &mut [&mut [W]],
) {
    let (count, total) = (scratch.len() / KU, runs.iter().map(|run| run.div_ceil(KU)).sum::<usize>());
    let (mut step, mut word) = (0, 0);
    for &run in runs {
        for begin in (0..run).step_by(KU) {
            let height = (run - begin).min(KU);
            for (i, into) in scratch.chunks_exact_mut(count).enumerate() {
                if i < height {
                    rows.row(simd, step + begin + i, first, scales, into);
                    for (sum, weight) in sums.iter_mut().zip(&*into) {
                        *sum += weight.summand();
                    }
                } else {
                    into.fill(W::default());
                }
            }
            let mut steps = [&scratch[..0]; KU];
            for (row, from) in steps.iter_mut().zip(scratch.chunks_exact(count)) {
                *row = from;
            }
            for (panel, packed) in packed.iter_mut().enumerate() {
                let (columns, wide) = ((count - panel * width).min(width), packed.len() / (total * KU));
                let packed = &mut packed.as_chunks_mut::<KU>().0[word * wide..][..columns];
                words_of_steps(simd, steps, panel * width, packed);
            }
            word += 1;
        }
        step += run;
    }
}

/// A word for each column from `first` on, of the steps of k that it is made of.
#[inline(always)]
fn words_of_steps<S: Simd, W: Element, const KU: usize>(simd: S, steps: [&[W]; KU], first: usize, words: &mut [[W; KU]]) {
    let mut done = 0;
    if KU == 4 && size_of::<W>() == 1 && cfg!(target_endian = "little") {
        debug_assert!(words.as_ptr().cast::<i32>().is_aligned());
        while done + S::LANES <= words.len() {
            let mut word = simd.splat_i32(0);
            for (i, step) in steps.iter().enumerate() {
                let bytes = step[first + done..][..S::LANES].as_ptr().cast();
                // SAFETY: as many elements, of one byte, are there.
                word = simd.or_i32(word, simd.shift_left_i32(unsafe { simd.load_bytes(bytes, S::LANES) }, 8 * i as u32));
            }
            // SAFETY: as many words of four bytes are left, aligned as panels are: to whole lines, of whole words.
            unsafe { simd.store_i32(words.as_mut_ptr().add(done).cast(), word, S::LANES) };
            done += S::LANES;
        }
    }
    for (c, word) in words.iter_mut().enumerate().skip(done) {
        for (weight, step) in word.iter_mut().zip(steps) {
            *weight = step[first + c];
        }
    }
}
