//! How far two results are apart: plain functions on slices. Sums run in f64, in order.

mod small_weights;

pub use small_weights::{flushed_fraction, mean_shift, relative_error_by_decile};

use crate::error::{Error, Result};

/// Signal to quantization noise, `10 · log10(Σ r² / Σ (r - a)²)`, in decibels.
///
/// Equal slices give `+∞` (also when both are all zero); noise on a signal that is all zero gives `-∞`; NaN anywhere
/// gives NaN.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn sqnr_db(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    let signal = reference.iter().map(|&r| f64::from(r) * f64::from(r)).sum();
    Ok(decibels(signal, squared_error(reference, approximation)?))
}

/// `10 · log10(signal / noise)` of two sums of squares, with the edges of [`sqnr_db`].
pub fn decibels(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

/// Mean squared error; 0 of nothing.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn mse(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    Ok(squared_error(reference, approximation)? / reference.len().max(1) as f64)
}

/// Largest absolute difference; NaN when one of the slices holds NaN where the other does not.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn max_abs_error(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    same_length(reference, approximation)?;
    let difference = |(r, a): (f64, f64)| if r == a || r.is_nan() && a.is_nan() { 0.0 } else { (r - a).abs() };
    Ok(pairs(reference, approximation).map(difference).fold(0.0, larger))
}

/// Largest absolute difference over the largest magnitude of the reference; the difference itself where that is zero.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn relative_error(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    let magnitude = reference.iter().map(|&r| f64::from(r).abs()).fold(0.0, larger);
    let error = max_abs_error(reference, approximation)?;
    Ok(if magnitude > 0.0 { error / magnitude } else { error })
}

/// Cosine of the angle between two vectors; 1 when both are zero, 0 when one is.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length.
pub fn cosine(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    same_length(reference, approximation)?;
    let (mut rr, mut aa, mut ra) = (0.0, 0.0, 0.0);
    for (r, a) in pairs(reference, approximation) {
        (rr, aa, ra) = (rr + r * r, aa + a * a, ra + r * a);
    }
    Ok(match (rr == 0.0, aa == 0.0) {
        (true, true) => 1.0,
        (false, false) => ra / (rr.sqrt() * aa.sqrt()),
        _ => 0.0,
    })
}

/// Mean over the rows of `Σ p · ln(p / q)`, in nats, where `p` and `q` are the softmax of a row of each; 0 of nothing.
///
/// # Errors
/// [`Error::Length`] when the slices differ in length or don't consist of rows of `classes`.
pub fn kl_divergence(reference: &[f32], approximation: &[f32], classes: usize) -> Result<f64> {
    same_length(reference, approximation)?;
    whole_rows(reference, classes)?;
    let rows = reference.len() / classes.max(1);
    let log_softmax = |row: &[f32], k: usize| {
        let max = row.iter().map(|&x| f64::from(x)).fold(f64::NEG_INFINITY, larger);
        f64::from(row[k]) - max - row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
    };
    let mut sum = 0.0;
    for (r, a) in reference.chunks_exact(classes.max(1)).zip(approximation.chunks_exact(classes.max(1))) {
        for k in 0..classes {
            let (p, q) = (log_softmax(r, k), log_softmax(a, k));
            let mass = p.exp();
            if mass > 0.0 {
                sum += mass * (p - q);
            }
        }
    }
    Ok(sum / rows.max(1) as f64)
}

/// Index of the largest value of each row of `classes`, the first of equals. NaN is never the largest; a row of nothing
/// but NaN gives 0.
///
/// # Errors
/// [`Error::Length`] when the slice doesn't consist of rows of `classes`.
pub fn top1(logits: &[f32], classes: usize) -> Result<Vec<usize>> {
    whole_rows(logits, classes)?;
    let largest = |row: &[f32]| {
        let mut best = 0;
        for (k, x) in row.iter().enumerate() {
            if *x > row[best] || row[best].is_nan() && !x.is_nan() {
                best = k;
            }
        }
        best
    };
    Ok(logits.chunks_exact(classes.max(1)).map(largest).collect())
}

fn squared_error(reference: &[f32], approximation: &[f32]) -> Result<f64> {
    same_length(reference, approximation)?;
    Ok(pairs(reference, approximation).map(|(r, a)| if r == a { 0.0 } else { (r - a) * (r - a) }).sum())
}

fn pairs<'a>(reference: &'a [f32], approximation: &'a [f32]) -> impl Iterator<Item = (f64, f64)> + 'a {
    reference.iter().zip(approximation).map(|(&r, &a)| (f64::from(r), f64::from(a)))
}

/// Unlike `f64::max`, keeps NaN.
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

fn same_length(reference: &[f32], approximation: &[f32]) -> Result<()> {
    match reference.len() == approximation.len() {
        true => Ok(()),
        false => Err(Error::length("approximation", reference.len(), approximation.len())),
    }
}

fn whole_rows(logits: &[f32], classes: usize) -> Result<()> {
    match if classes == 0 { logits.is_empty() } else { logits.len().is_multiple_of(classes) } {
        true => Ok(()),
        false => Err(Error::length(format!("rows of {classes} outputs"), logits.len().next_multiple_of(classes.max(1)), logits.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers() {
        assert_eq!(sqnr_db(&[3.0, 4.0], &[3.0, 4.5]).unwrap(), 20.0);
        assert_eq!(sqnr_db(&[0.0], &[0.0]).unwrap(), f64::INFINITY);
        assert_eq!(sqnr_db(&[0.0], &[1.0]).unwrap(), f64::NEG_INFINITY);
        assert!(sqnr_db(&[1.0], &[f32::NAN]).unwrap().is_nan());
        assert_eq!(mse(&[1.0, 2.0], &[1.0, 4.0]).unwrap(), 2.0);
        assert_eq!(max_abs_error(&[1.0, -2.0], &[1.5, 1.0]).unwrap(), 3.0);
        assert!(max_abs_error(&[1.0, 2.0], &[f32::NAN, 2.0]).unwrap().is_nan());
        assert_eq!(max_abs_error(&[f32::NAN, f32::INFINITY, 2.0], &[f32::NAN, f32::INFINITY, 1.0]).unwrap(), 1.0);
        assert_eq!(relative_error(&[1.0, -4.0], &[2.0, -4.0]).unwrap(), 0.25);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]).unwrap(), 0.0);
        assert_eq!(cosine(&[1.0, 1.0], &[2.0, 2.0]).map(|c| (c * 1e9).round()).unwrap(), 1e9);
        assert_eq!(top1(&[1.0, 3.0, 3.0, f32::NAN, -1.0, -2.0], 3).unwrap(), [1, 1]);
        // p = (1/2, 1/2), q = (3/4, 1/4): ln(2/3)/2 + ln(2)/2
        let kl = kl_divergence(&[0.0, 0.0], &[3f32.ln(), 0.0], 2).unwrap();
        assert!((kl - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-7, "{kl}");
        assert_eq!(kl_divergence(&[5.0, 1.0], &[5.0, 1.0], 2).unwrap(), 0.0);
    }

    #[test]
    fn lengths_are_checked() {
        assert!(mse(&[1.0], &[]).is_err());
        assert!(top1(&[1.0; 5], 3).is_err());
        assert!(kl_divergence(&[1.0; 4], &[1.0; 4], 3).is_err());
        assert!(top1(&[], 0).unwrap().is_empty());
    }
}
