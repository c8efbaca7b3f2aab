//! `H = V D Vᵀ` with `V` unit upper triangular.

use super::Hessian;
use crate::kernels::math::vectorized;

/// The factor, and the order of columns in which it was made.
pub(super) struct Factor {
    /// Position by position the column of the weights.
    pub order: Vec<usize>,
    /// `V` row by row, in f32; zeros below the diagonal.
    pub values: Vec<f32>,
}

/// Times that damping is made ten times larger, and at least a millionth of the mean diagonal, before the factor is given up.
const RETRIES: usize = 8;

/// Columns of a block, whose products are subtracted together.
const BLOCK: usize = 64;

/// Columns that are subtracted from at a time: with those of a block they fit a second-level cache.
const TILE: usize = 512;

impl Factor {
    /// The factor of the damped Hessian; `None` when even heavy damping gives none (of inputs that are all zero, or beyond f64).
    pub fn new(hessian: &Hessian, damping: f64, by_diagonal: bool, threads: usize) -> Option<Self> {
        let d = hessian.width();
        let diagonal: Vec<f64> = hessian.diagonal().collect();
        let mean = diagonal.iter().sum::<f64>() / d.max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        let mut order: Vec<usize> = (0..d).collect();
        if by_diagonal {
            // Of equal ones the first: the order is the same everywhere.
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        }
        let mut damped = damping * mean;
        for _ in 0..=RETRIES {
            // Turned around, the upper factor is the common lower one. Inputs that are always zero have no error to feed back.
            let at = |i: usize| order[d - 1 - i];
            let mut lower: Vec<f64> = Vec::with_capacity(d * d);
            for i in 0..d {
                lower.extend((0..d).map(|j| hessian.as_slice()[at(i) * d + at(j)]));
                let entry = &mut lower[i * d + i];
                *entry = if *entry == 0.0 { mean } else { *entry } + damped;
            }
            if cholesky(&mut lower, d, threads) {
                let mut values = vec![0f32; d * d];
                for i in 0..d {
                    for j in 0..=i {
                        values[(d - 1 - i) * d + d - 1 - j] = (lower[i * d + j] / lower[j * d + j]) as f32;
                    }
                }
                return Some(Factor { order, values });
            }
            damped = (damped * 10.0).max(1e-6 * mean);
        }
        None
    }
}

/// The lower factor `L` of `A = L Lᵀ`, in place, block by block; what is above the diagonal stays. `false` when `A` is not positive definite.
fn cholesky(a: &mut [f64], d: usize, threads: usize) -> bool {
    for start in (0..d).step_by(BLOCK) {
        let end = (start + BLOCK).min(d);
        // The block on the diagonal.
        for j in start..end {
            let pivot = a[j * d + j];
            if !(pivot > 0.0 && pivot.is_finite()) {
                return false;
            }
            let pivot = pivot.sqrt();
            a[j * d + j] = pivot;
            for i in j + 1..end {
                a[i * d + j] /= pivot;
                let factor = a[i * d + j];
                for k in j + 1..=i {
                    a[i * d + k] -= factor * a[k * d + j];
                }
            }
        }
        // The rows below it, each solved by itself.
        let (above, below) = a.split_at_mut(end * d);
        let block = |j: usize, k: usize| above[j * d + k];
        // Its columns side by side: entries of one column follow each other.
        let by_column: Vec<f64> = (start..end).flat_map(|j| (start..end).map(move |k| block(k, j))).collect();
        for row in below.chunks_exact_mut(d) {
            for j in start..end {
                let column = &by_column[(j - start) * (end - start)..][..end - start];
                let solved = row[j] / column[j - start];
                row[j] = solved;
                row[j + 1..end].iter_mut().zip(&column[j + 1 - start..]).for_each(|(entry, x)| *entry -= solved * x);
            }
        }
        subtract_products(&mut a[end * d..], d, start..end, end, threads);
    }
    true
}

/// `A[i][j] -= Σ_k L[i][k] L[j][k]` over the columns `k`, for the rows given, which begin with row `first`, and `first <= j <= i`.
fn subtract_products(rows: &mut [f64], d: usize, columns: std::ops::Range<usize>, first: usize, threads: usize) {
    let count = rows.len() / d;
    // By column of the block, so that the inner loop is a sum of vectors.
    let by_column: Vec<f64> = columns.clone().flat_map(|k| rows.chunks_exact(d).map(move |row| row[k])).collect();
    // Some rows after one another, tile by tile, so that what is subtracted stays in the cache.
    let each = |(chunk, rows): (usize, &mut [f64])| {
        let row_of = |at: usize| chunk * ROWS + at;
        for tile in (0..count).step_by(TILE) {
            for (at, row) in rows.chunks_exact_mut(d).enumerate().filter(|(at, _)| row_of(*at) >= tile) {
                let (done, rest) = row.split_at_mut(first);
                let entries = &mut rest[tile..(tile + TILE).min(row_of(at) + 1)];
                subtract(entries, &done[columns.clone()], &|k| &by_column[k * count + tile..]);
            }
        }
    };
    #[cfg(feature = "parallel")]
    if count >= 256 && threads > 1 {
        use rayon::prelude::*;
        return rows.par_chunks_mut(ROWS * d).enumerate().for_each(each);
    }
    #[cfg(not(feature = "parallel"))]
    let _ = threads;
    rows.chunks_mut(ROWS * d).enumerate().for_each(each);
}

/// Rows that are worked on after one another.
const ROWS: usize = 64;

/// `entries[j] -= Σ_k factors[k] · column(k)[j]`.
fn subtract<'x>(entries: &mut [f64], factors: &[f64], column: &dyn Fn(usize) -> &'x [f64]) {
    let n = entries.len();
    for (first, four) in (0..).step_by(4).zip(factors.chunks(4)) {
        let mut columns = [&column(first)[..n]; 4];
        for (i, slot) in columns.iter_mut().enumerate().take(four.len()).skip(1) {
            *slot = &column(first + i)[..n];
        }
        let mut by = [0.0; 4];
        by[..four.len()].copy_from_slice(four);
        let [x, y, z, u] = columns;
        vectorized(
            #[inline(always)]
            || {
                for (j, entry) in entries.iter_mut().enumerate() {
                    *entry -= by[0] * x[j] + by[1] * y[j] + by[2] * z[j] + by[3] * u[j];
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_singular_matrix_gets_more_damping() {
        // One sample alone, and some inputs that are always zero.
        for sample in [vec![1f32; 5], vec![2.0, 0.0, 4.0, 0.0, 8.0, 0.5]] {
            let mut hessian = Hessian::new(sample.len()).unwrap();
            hessian.add(&sample, 1).unwrap();
            for damping in [0.0, 1e-30] {
                let factor = Factor::new(&hessian, damping, true, 1).unwrap();
                assert!(factor.values.iter().all(|x| x.is_finite()), "{damping}: {:?}", factor.values);
            }
        }
        let mut nothing = Hessian::new(3).unwrap();
        nothing.add(&[0.0; 6], 1).unwrap();
        assert!(Factor::new(&nothing, 0.01, true, 1).is_none());
    }

    #[test]
    fn the_factor_gives_the_matrix_back() {
        for d in [1, 2, 31, 32, 33, 70, 300] {
            let rows = 2 * d + 3;
            let x: Vec<f32> = (0..rows * d).map(|i| ((i * i + 7 * i) as f32 * 0.37).sin() + 0.2).collect();
            let mut hessian = Hessian::new(d).unwrap();
            hessian.add(&x, 1).unwrap();
            for by_diagonal in [false, true] {
                let factor = Factor::new(&hessian, 0.0, by_diagonal, 1).unwrap();
                let v = |i: usize, j: usize| f64::from(factor.values[i * d + j]);
                // D from the last entry back: H_jj = D_j + Σ_{k>j} V_jk² D_k.
                let h = |i: usize, j: usize| hessian.as_slice()[factor.order[i] * d + factor.order[j]];
                let mut diagonal = vec![0.0; d];
                for j in (0..d).rev() {
                    assert_eq!(v(j, j), 1.0);
                    diagonal[j] = h(j, j) - (j + 1..d).map(|k| v(j, k) * v(j, k) * diagonal[k]).sum::<f64>();
                    assert!(diagonal[j] > 0.0);
                }
                for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))) {
                    let back: f64 = (i.max(j)..d).map(|k| v(i, k) * diagonal[k] * v(j, k)).sum();
                    assert!((back - h(i, j)).abs() < 1e-4 * h(0, 0).max(h(d - 1, d - 1)), "{d}: {i}, {j}: {back} for {}", h(i, j));
                    assert!(i <= j || v(i, j) == 0.0);
                }
            }
        }
    }

    /// Large enough for its columns to be shared out.
    #[test]
    #[cfg(feature = "parallel")]
    fn the_same_factor_on_any_number_of_threads() {
        let d = 700;
        let rows: Vec<f32> = (0..60 * d).map(|i| ((i * i % 9973) as f32 * 0.37).sin() + 0.2).collect();
        let mut hessian = Hessian::new(d).unwrap();
        hessian.add(&rows, 1).unwrap();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Factor::new(&hessian, 0.01, true, threads).unwrap().values)
        };
        let one = on(1);
        assert!(one == on(2) && one == on(3));
        // V D Vᵀ is the damped matrix, here and there.
        let factor = Factor::new(&hessian, 0.01, false, 2).unwrap();
        let v = |i: usize, j: usize| f64::from(factor.values[i * d + j]);
        let damping = 0.01 * hessian.diagonal().sum::<f64>() / d as f64;
        let h = |i: usize, j: usize| hessian.as_slice()[i * d + j] + if i == j { damping } else { 0.0 };
        let mut diagonal = vec![0.0; d];
        for j in (0..d).rev() {
            diagonal[j] = h(j, j) - (j + 1..d).map(|k| v(j, k) * v(j, k) * diagonal[k]).sum::<f64>();
        }
        for (i, j) in (0..d).step_by(13).flat_map(|i| (0..d).step_by(29).map(move |j| (i, j))) {
            let back: f64 = (i.max(j)..d).map(|k| v(i, k) * diagonal[k] * v(j, k)).sum();
            assert!((back - h(i, j)).abs() < 1e-4 * h(0, 0).max(h(d - 1, d - 1)), "{i}, {j}: {back} for {}", h(i, j));
        }
    }
}
