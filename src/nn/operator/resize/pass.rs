//! Axes of a resize one inside the other: a row of the outer axis is made, then the inner axes of that row.

use super::axis::OUTSIDE;
use crate::nn::operator::movement::walk::with_word;

/// An axis that is resized, among those that are not.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    /// Elements of axes between the resized one before and this.
    pub outer: usize,
    pub length: usize,
    pub out: usize,
    /// Elements of all axes after this, before and after they are resized.
    pub inner: usize,
    pub inner_out: usize,
    /// Input elements that make one of the output, and where the tables start.
    pub taps: usize,
    pub table: usize,
}

/// A float that is computed in.
pub(super) trait Number: bytemuck::Pod + std::ops::Mul<Output = Self> + std::ops::Add<Output = Self> {}
impl Number for f32 {}
impl Number for f64 {}

/// Indices and weights of all axes.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a, T> {
    pub indices: &'a [usize],
    pub weights: &'a [T],
    pub extrapolation: T,
}

/// `to[i] = Σ weight[k] * from[index[k] * to.len() + i]`, in the order of `k`.
fn weigh<T: Number>(from: &[T], indices: &[usize], weights: &[T], to: &mut [T]) {
    let row = |index: usize| &from[index * to.len()..][..to.len()];
    match (indices, weights) {
        (&[a, b], &[wa, wb]) => {
            let (a, b) = (row(a), row(b));
            for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
                *to = a * wa + b * wb;
            }
        }
        _ => {
            let row_length = to.len();
            for (k, (&index, &weight)) in indices.iter().zip(weights).enumerate() {
                let from = &from[index * row_length..][..row_length];
                match k {
                    0 => to.iter_mut().zip(from).for_each(|(to, &from)| *to = from * weight),
                    _ => to.iter_mut().zip(from).for_each(|(to, &from)| *to = *to + from * weight),
                }
            }
        }
    }
}

/// Interpolates along all levels; `rows` has room for one inner row of each but the last.
pub(super) fn interpolate<T: Number>(levels: &[Level], tables: Tables<'_, T>, from: &[T], to: &mut [T], rows: &mut [T]) {
    let Some((level, rest)) = levels.split_first() else {
        to.copy_from_slice(from);
        return;
    };
    let Level { outer, length, out, inner, inner_out, taps, table } = *level;
    let (indices, weights) = (&tables.indices[table..][..out * taps], &tables.weights[table..][..out * taps]);
    for o in 0..outer {
        let from = &from[o * length * inner..][..length * inner];
        let to = &mut to[o * out * inner_out..][..out * inner_out];
        for (j, (indices, weights)) in indices.chunks_exact(taps).zip(weights.chunks_exact(taps)).enumerate() {
            if indices[0] == OUTSIDE {
                to[j * inner_out..][..inner_out].fill(tables.extrapolation);
            } else if rest.is_empty() && inner == 1 {
                let terms = indices.iter().zip(weights).map(|(&index, &weight)| from[index] * weight);
                to[j] = terms.reduce(|a, b| a + b).expect("at least one tap");
            } else if rest.is_empty() {
                weigh(from, indices, weights, &mut to[j * inner_out..][..inner_out]);
            } else {
                let (row, rows) = rows.split_at_mut(inner);
                weigh(from, indices, weights, row);
                interpolate(rest, tables, row, &mut to[j * inner_out..][..inner_out], rows);
            }
        }
    }
}

/// Copies elements of `size` bytes along all levels, of which each has one index for each output element.
pub(super) fn pick(levels: &[Level], indices: &[usize], size: usize, outside: &[u8], from: &[u8], to: &mut [u8]) {
    let Some((level, rest)) = levels.split_first() else {
        to.copy_from_slice(from);
        return;
    };
    let Level { outer, length, out, inner, inner_out, table, .. } = *level;
    let own = &indices[table..][..out];
    let (inner_bytes, out_bytes) = (inner * size, inner_out * size);
    for o in 0..outer {
        let from = &from[o * length * inner_bytes..][..length * inner_bytes];
        let to = &mut to[o * out * out_bytes..][..out * out_bytes];
        if rest.is_empty() && inner == 1 && !own.contains(&OUTSIDE) {
            with_word!(size, Word => {
                let (from, to): (&[Word], &mut [Word]) = (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
                to.iter_mut().zip(own).for_each(|(to, &index)| *to = from[index]);
            });
            continue;
        }
        let mut before = OUTSIDE;
        for (j, &index) in own.iter().enumerate() {
            let at = j * out_bytes;
            if index == OUTSIDE {
                to[at..at + out_bytes].chunks_exact_mut(size).for_each(|to| to.copy_from_slice(outside));
            } else if index == before {
                to.copy_within(at - out_bytes..at, at);
            } else {
                let from = &from[index * inner_bytes..][..inner_bytes];
                pick(rest, indices, size, outside, from, &mut to[at..at + out_bytes]);
            }
            before = index;
        }
    }
}
