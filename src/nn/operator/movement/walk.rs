//! Copies between two strided places: what most operators that move elements come down to.

use crate::error::{Error, Result};

/// Most axes that a copy may have after adjacent ones are merged.
pub(in crate::nn::operator) const AXES: usize = 12;

/// One axis of a copy: its length, and the steps in both places in elements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Axis {
    pub length: usize,
    pub from: isize,
    pub to: isize,
}

/// Axes of a copy, outermost first, merged where they lie together in both places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    axes: [Axis; AXES],
    rank: usize,
    empty: bool,
}

/// Runs the body with `$word` being an unsigned integer of so many bytes.
macro_rules! with_word {
    ($size:expr, $word:ident => $body:expr) => {
        match $size {
            1 => {
                type $word = u8;
                $body
            }
            2 => {
                type $word = u16;
                $body
            }
            4 => {
                type $word = u32;
                $body
            }
            _ => {
                type $word = u64;
                $body
            }
        }
    };
}
pub(in crate::nn::operator) use with_word;

/// Row-major steps of these dimensions, the first `dims.len()` entries.
///
/// # Errors
/// [`Error::Unsupported`] for more axes than there is room for.
pub(in crate::nn::operator) fn strides(dims: &[usize]) -> Result<[usize; AXES]> {
    check_rank(dims.len())?;
    let (mut strides, mut step) = ([0; AXES], 1usize);
    for (stride, &length) in strides[..dims.len()].iter_mut().zip(dims).rev() {
        *stride = step;
        // Of shapes that were checked; with a zero among them nothing is ever read.
        step = step.wrapping_mul(length);
    }
    Ok(strides)
}

/// # Errors
/// [`Error::Unsupported`] for more axes than there is room for.
pub(in crate::nn::operator) fn check_rank(rank: usize) -> Result<()> {
    match rank {
        0..=AXES => Ok(()),
        _ => Err(Error::Unsupported {
            what: format!("a tensor of {rank} axes"),
            way_out: format!("reshape it to at most {AXES}, merging axes that stay together"),
        }),
    }
}

impl Walk {
    /// # Errors
    /// [`Error::Unsupported`] when too many axes are left after merging.
    pub fn new(axes: impl IntoIterator<Item = Axis>) -> Result<Walk> {
        let mut walk = Walk { axes: [Axis::default(); AXES], rank: 0, empty: false };
        for axis in axes {
            match axis.length {
                0 => walk.empty = true,
                1 => {}
                _ if walk.empty => {}
                length => {
                    if let Some(last) = walk.axes[..walk.rank].last_mut()
                        && last.from == axis.from.wrapping_mul(length as isize)
                        && last.to == axis.to.wrapping_mul(length as isize)
                    {
                        *last = Axis { length: last.length * length, ..axis };
                        continue;
                    }
                    check_rank(walk.rank + 1)?;
                    walk.axes[walk.rank] = axis;
                    walk.rank += 1;
                }
            }
        }
        Ok(walk)
    }

    /// Copies elements of `size` bytes, from element `from_start` on to element `to_start` on.
    ///
    /// # Panics
    /// When the walk leaves a slice.
    pub fn copy(&self, size: usize, (from, from_start): (&[u8], usize), (to, to_start): (&mut [u8], usize)) {
        if self.empty {
            return;
        }
        with_word!(size, Word => {
            let (from, to): (&[Word], &mut [Word]) = (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
            self.copy_words((from, from_start as isize), (to, to_start as isize));
        });
    }

    fn copy_words<T: Copy + Default>(&self, (from, from_start): (&[T], isize), (to, to_start): (&mut [T], isize)) {
        let Some((&inner, outer)) = self.axes[..self.rank].split_last() else {
            to[to_start as usize] = from[from_start as usize];
            return;
        };
        let start = (from_start, to_start);
        if (inner.from, inner.to) == (1, 1) {
            return each(outer, start, |f, t| {
                to[t as usize..][..inner.length].copy_from_slice(&from[f as usize..][..inner.length]);
            });
        }
        // An axis that is contiguous where elements come from, against the innermost, which is where they go.
        let across = outer.iter().rposition(|axis| axis.from == 1 && axis.to > 0);
        if let Some(across) = across.filter(|_| inner.to == 1 && inner.from > 1) {
            let (rows, mut rest) = (outer[across], [Axis::default(); AXES]);
            rest[..across].copy_from_slice(&outer[..across]);
            rest[across..outer.len() - 1].copy_from_slice(&outer[across + 1..]);
            return each(&rest[..outer.len() - 1], start, |f, t| {
                transpose(&from[f as usize..], inner.from as usize, &mut to[t as usize..], rows.to as usize, rows.length, inner.length);
            });
        }
        each(outer, start, |f, t| {
            if inner.to == 1 {
                let to = &mut to[t as usize..][..inner.length];
                if inner.from == 0 {
                    return to.fill(from[f as usize]);
                }
                to.iter_mut().enumerate().for_each(|(i, to)| *to = from[(f + i as isize * inner.from) as usize]);
            } else {
                for i in 0..inner.length as isize {
                    to[(t + i * inner.to) as usize] = from[(f + i * inner.from) as usize];
                }
            }
        });
    }
}

/// Calls `body` with both positions of every point of the axes, the last axis fastest.
fn each(axes: &[Axis], (mut from, mut to): (isize, isize), mut body: impl FnMut(isize, isize)) {
    let mut counts = [0usize; AXES];
    loop {
        body(from, to);
        let mut at = axes.len();
        loop {
            if at == 0 {
                return;
            }
            at -= 1;
            let axis = axes[at];
            counts[at] += 1;
            from += axis.from;
            to += axis.to;
            if counts[at] < axis.length {
                break;
            }
            counts[at] = 0;
            from -= axis.from * axis.length as isize;
            to -= axis.to * axis.length as isize;
        }
    }
}

/// Side of the square that is transposed in registers.
const SIDE: usize = 8;
/// Rows that are walked together: as many cache lines as stay near.
const BAND: usize = 64;

/// `to[r * to_step + c] = from[c * from_step + r]` for `rows` x `columns`.
fn transpose<T: Copy + Default>(from: &[T], from_step: usize, to: &mut [T], to_step: usize, rows: usize, columns: usize) {
    for first in (0..columns).step_by(BAND) {
        let columns = first..columns.min(first + BAND);
        let mut row = 0;
        while row + SIDE <= rows {
            let mut column = columns.start;
            while column + SIDE <= columns.end {
                let mut square = [[T::default(); SIDE]; SIDE];
                for (i, line) in square.iter_mut().enumerate() {
                    line.copy_from_slice(&from[(column + i) * from_step + row..][..SIDE]);
                }
                for i in 0..SIDE {
                    let line: [T; SIDE] = std::array::from_fn(|j| square[j][i]);
                    to[(row + i) * to_step + column..][..SIDE].copy_from_slice(&line);
                }
                column += SIDE;
            }
            for column in column..columns.end {
                for i in 0..SIDE {
                    to[(row + i) * to_step + column] = from[column * from_step + row + i];
                }
            }
            row += SIDE;
        }
        for row in row..rows {
            for column in columns.clone() {
                to[row * to_step + column] = from[column * from_step + row];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_of_odd_lengths_in_every_size() {
        let dims = [3usize, 17, 1, 21];
        let from_steps = [17 * 21, 21, 21, 1];
        for perm in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 2, 1], [1, 0, 2, 3], [3, 0, 1, 2], [1, 3, 0, 2]] {
            let lengths = perm.map(|axis| dims[axis]);
            let to_steps = strides(&lengths).unwrap();
            let axes = (0..4).map(|i| Axis { length: lengths[i], from: from_steps[perm[i]], to: to_steps[i] as isize });
            let walk = Walk::new(axes).unwrap();
            for size in [1usize, 2, 4, 8] {
                let count = 3usize * 17 * 21;
                let words: Vec<u64> = (0..(count * size).div_ceil(8) as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
                let from = &bytemuck::cast_slice::<u64, u8>(&words)[..count * size];
                let mut result = vec![0u64; words.len()];
                let to = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut result)[..count * size];
                walk.copy(size, (from, 0), (to, 0));
                for (i, element) in to.chunks_exact(size).enumerate() {
                    let (mut rest, mut source) = (i, 0);
                    for axis in (0..4).rev() {
                        source += rest % lengths[axis] * from_steps[perm[axis]] as usize;
                        rest /= lengths[axis];
                    }
                    assert_eq!(element, &from[source * size..][..size], "{perm:?} of {size} bytes at {i}");
                }
            }
        }
    }

    #[test]
    fn axes_that_lie_together_merge() {
        let axes = [(2, 12, 12), (3, 4, 4), (4, 1, 1)].map(|(length, from, to)| Axis { length, from, to });
        assert_eq!(Walk::new(axes).unwrap().rank, 1);
        assert!(Walk::new([Axis { length: 2, from: 0, to: 7 }; AXES + 1]).is_err());
        let empty = Walk::new([Axis { length: 0, from: 1, to: 1 }]).unwrap();
        empty.copy(4, (&[], 0), (&mut [], 0));
    }
}
