//! What became of small values.

use super::{pairs, same_length};
use crate::error::Result;

/// The share of the values other than zero that became zero; 0 where there is none.
///
/// ```
/// use lowprec::metrics::flushed_fraction;
/// assert_eq!(flushed_fraction(&[0.0, 0.1, -0.1, 2.0, 3.0], &[0.0, 0.0, -0.5, 2.0, 3.0])?, 0.25);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) when the slices differ in length.
pub fn flushed_fraction(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    same_length(reference, approximation)?;
    let (mut flushed, mut all) = (0usize, 0usize);
    for (_, a) in pairs(reference, approximation).filter(|(r, _)| *r != 0.0) {
        all += 1;
        flushed += usize::from(a == 0.0);
    }
    Ok(flushed as f64 / all.max(1) as f64)
}

/// The mean of `|r - a| / |r|` over each tenth of the values other than zero, those of smallest magnitude first: 1 where a
/// tenth was all flushed to zero. Where the number of values is no multiple of ten, tenths differ by one; of an empty tenth
/// it is 0. NaN counts as largest.
///
/// ```
/// use lowprec::metrics::relative_error_by_decile;
/// let weights: Vec<f32> = (1..=20).map(|i| i as f32).collect();
/// let halves: Vec<f32> = weights.iter().map(|&w| if w < 2.5 { 0.0 } else { w }).collect();
/// assert_eq!(relative_error_by_decile(&weights, &halves)?, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
/// # Ok::<(), lowprec::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) when the slices differ in length.
pub fn relative_error_by_decile(reference: &[f32], approximation: &[f32]) -> Result<[f64; 10]> {
    same_length(reference, approximation)?;
    let relative = |(r, a): (f64, f64)| (r.abs(), if r == a { 0.0 } else { (r - a).abs() / r.abs() });
    let mut all: Vec<(f64, f64)> = pairs(reference, approximation).filter(|(r, _)| *r != 0.0).map(relative).collect();
    // Equal magnitudes keep their order, so that the answer does not depend on the sort.
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(std::array::from_fn(|decile| {
        let part = &all[decile * all.len() / 10..(decile + 1) * all.len() / 10];
        part.iter().map(|(_, error)| error).sum::<f64>() / part.len().max(1) as f64
    }))
}

/// Mean of `a - r`, what the approximation adds on average; 0 of nothing.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) when the slices differ in length.
pub fn mean_shift(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    same_length(reference, approximation)?;
    Ok(pairs(reference, approximation).map(|(r, a)| a - r).sum::<f64>() / reference.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        assert_eq!(flushed_fraction(&[], &[]).unwrap(), 0.0);
        assert_eq!(flushed_fraction(&[0.0; 3], &[1.0; 3]).unwrap(), 0.0);
        assert_eq!(relative_error_by_decile(&[0.0, -2.0], &[1.0, -1.0]).unwrap()[9], 0.5);
        assert_eq!(relative_error_by_decile(&[0.0], &[1.0]).unwrap(), [0.0; 10]);
        assert_eq!(mean_shift(&[1.0, 2.0], &[1.5, 2.0]).unwrap(), 0.25);
        assert!(
            flushed_fraction(&[1.0], &[]).is_err() && relative_error_by_decile(&[1.0], &[]).is_err() && mean_shift(&[1.0], &[]).is_err()
        );
    }
}
