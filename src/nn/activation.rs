//! Elementwise layers and softmax, on slices.

use crate::error::{Error, Result};
use crate::kernels::rows;
use crate::tensor::elements;

/// `max(x, 0)`; NaN stays NaN.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn relu(input: &[f32], output: &mut [f32]) -> Result<()> {
    map(input, output, |x| if x < 0.0 { 0.0 } else { x })
}

/// `min(max(x, 0), 6)`; NaN stays NaN.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn relu6(input: &[f32], output: &mut [f32]) -> Result<()> {
    map(input, output, |x| x.clamp(0.0, 6.0))
}

/// `a + b`, element by element.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn add(a: &[f32], b: &[f32], output: &mut [f32]) -> Result<()> {
    same_length("second operand", a.len(), b.len())?;
    same_length("output", a.len(), output.len())?;
    for ((a, b), y) in a.iter().zip(b).zip(output) {
        *y = a + b;
    }
    Ok(())
}

/// `exp(x - max) / Σ exp(x - max)` along the middle axis of `(outer, length, inner)`; the sum runs in the order of
/// [`num::reduce::sum`](crate::num::reduce::sum) along a last axis (`inner` of 1), else in that of the axis.
///
/// A line that holds NaN, or `+∞`, or nothing above `-∞`, becomes NaN, as in PyTorch.
///
/// # Errors
/// [`Error::Length`] when a slice does not hold `outer * length * inner` elements, [`Error::ShapeOverflow`] when none could.
pub fn softmax(input: &[f32], lines: (usize, usize, usize), output: &mut [f32]) -> Result<()> {
    let (outer, length, inner) = lines;
    let expected = elements(&[outer, length, inner])?;
    same_length("input", expected, input.len())?;
    same_length("output", expected, output.len())?;
    rows::softmax(input, lines, false, output, 1);
    Ok(())
}

fn map(input: &[f32], output: &mut [f32], f: impl Fn(f32) -> f32) -> Result<()> {
    same_length("output", input.len(), output.len())?;
    for (x, y) in input.iter().zip(output) {
        *y = f(*x);
    }
    Ok(())
}

fn same_length(what: &str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::length(what, expected, got)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_nothing_fits_are_errors() {
        assert!(matches!(softmax(&[], (usize::MAX, 2, 2), &mut []), Err(Error::ShapeOverflow { .. })));
        assert!(matches!(softmax(&[0.0; 3], (1, 2, 2), &mut [0.0; 4]), Err(Error::Length { expected: 4, got: 3, .. })));
        // No line to sum, however many there are: nothing to walk over.
        assert!(softmax(&[], (usize::MAX / 4, 0, 1), &mut []).is_ok());
    }
}
