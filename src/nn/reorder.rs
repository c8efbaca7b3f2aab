//! Images from row-major `[n, c, h, w]` to channels-last `[n, h, w, c]` and back.

use crate::error::{Error, Result};
use crate::tensor::elements;

/// Rows and columns of the square that is transposed at once: 16 x 16 floats, 16 cache lines in and 16 out.
const BLOCK: usize = 16;

/// Rewrites images `[n, c, h, w]` (`dims`) as `[n, h, w, c]`.
///
/// # Errors
/// [`Error::Length`] when a slice does not hold `n * c * h * w` elements, [`Error::ShapeOverflow`] when none could.
pub fn nchw_to_nhwc(input: &[f32], dims: [usize; 4], output: &mut [f32]) -> Result<()> {
    let [n, c, h, w] = dims;
    elements(&dims)?;
    checked(input, [n, c, h * w], output)
}

/// Rewrites channels-last images as `[n, c, h, w]` (`dims`, in this order).
///
/// # Errors
/// [`Error::Length`] when a slice does not hold `n * c * h * w` elements, [`Error::ShapeOverflow`] when none could.
pub fn nhwc_to_nchw(input: &[f32], dims: [usize; 4], output: &mut [f32]) -> Result<()> {
    let [n, c, h, w] = dims;
    elements(&dims)?;
    checked(input, [n, h * w, c], output)
}

/// `n` matrices of `rows x cols` elements of `size` bytes, each transposed.
///
/// # Panics
/// When a slice does not hold them: the planner worked out both.
pub(crate) fn transpose(input: &[u8], size: usize, matrices: [usize; 3], output: &mut [u8]) {
    match size {
        1 => blocks::<u8>(input, matrices, output),
        2 => blocks(bytemuck::cast_slice::<u8, u16>(input), matrices, bytemuck::cast_slice_mut(output)),
        4 => blocks(bytemuck::cast_slice::<u8, u32>(input), matrices, bytemuck::cast_slice_mut(output)),
        _ => blocks(bytemuck::cast_slice::<u8, u64>(input), matrices, bytemuck::cast_slice_mut(output)),
    }
}

/// As [`transpose`]; the caller has checked that the numbers can be addressed.
fn checked(input: &[f32], [n, rows, cols]: [usize; 3], output: &mut [f32]) -> Result<()> {
    for (what, got) in [("images to reorder", input.len()), ("reordered images", output.len())] {
        if got != n * rows * cols {
            return Err(Error::length(what, n * rows * cols, got));
        }
    }
    blocks(input, [n, rows, cols], output);
    Ok(())
}

fn blocks<T: Copy>(input: &[T], [_, rows, cols]: [usize; 3], output: &mut [T]) {
    let size = (rows * cols).max(1);
    for (input, output) in input.chunks_exact(size).zip(output.chunks_exact_mut(size)) {
        for r0 in (0..rows).step_by(BLOCK) {
            for c0 in (0..cols).step_by(BLOCK) {
                for c in c0..cols.min(c0 + BLOCK) {
                    for r in r0..rows.min(r0 + BLOCK) {
                        output[c * rows + r] = input[r * cols + c];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for dims in [[2, 3, 4, 5], [1, 17, 16, 3], [3, 1, 2, 2], [0, 3, 4, 5], [2, 3, 0, 5]] {
            let [n, c, h, w] = dims;
            let x: Vec<f32> = (0..n * c * h * w).map(|i| i as f32).collect();
            let (mut y, mut z) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            nchw_to_nhwc(&x, dims, &mut y).unwrap();
            for (i, value) in y.iter().enumerate() {
                let (image, pixel, channel) = (i / (c * h * w), i / c % (h * w), i % c);
                assert_eq!(*value, x[(image * c + channel) * h * w + pixel]);
            }
            nhwc_to_nchw(&y, dims, &mut z).unwrap();
            assert_eq!(x, z);
        }
        assert!(nchw_to_nhwc(&[0.0; 5], [1, 2, 3, 1], &mut [0.0; 6]).is_err());
        let endless = [0, 1, usize::MAX, usize::MAX];
        assert!(matches!(nchw_to_nhwc(&[], endless, &mut []), Err(Error::ShapeOverflow { .. })));
        assert!(matches!(nhwc_to_nchw(&[], endless, &mut []), Err(Error::ShapeOverflow { .. })));
    }
}
