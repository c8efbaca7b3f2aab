//! The error of one value, summed over batches.

use crate::metrics;

/// Sums of squares of a value and of its error, in f64.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    signal: f64,
    noise: f64,
    /// Of the value's own squares, and of its products with the reference.
    squares: f64,
    products: f64,
    /// Largest absolute error; NaN once there was one.
    pub largest: f64,
}

impl Sums {
    /// What is equal has no error, NaN and infinities too, and then they are no signal either: beside an infinite one every
    /// error would vanish. One that stands against something else is an infinite error.
    pub fn add(&mut self, reference: &[f32], value: &[f32]) {
        for (&r, &v) in reference.iter().zip(value) {
            let (r, v) = (f64::from(r), f64::from(v));
            let error = if r == v || r.is_nan() && v.is_nan() { 0.0 } else { (r - v).abs() };
            if r.is_finite() {
                self.signal += r * r;
            }
            if r.is_finite() && v.is_finite() {
                self.squares += v * v;
                self.products += r * v;
            }
            self.noise += if error.is_nan() { f64::INFINITY } else { error * error };
            if error > self.largest || error.is_nan() {
                self.largest = error;
            }
        }
    }

    pub fn sqnr_db(&self) -> f64 {
        metrics::decibels(self.signal, self.noise)
    }

    /// Cosine of the angle between the two, with the edges of [`metrics::cosine`]; what is not finite is left out.
    pub fn cosine(&self) -> f64 {
        match (self.signal == 0.0, self.squares == 0.0) {
            (true, true) => 1.0,
            (false, false) => self.products / (self.signal.sqrt() * self.squares.sqrt()),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(reference: &[f32], value: &[f32]) -> Sums {
        let mut sums = Sums::default();
        sums.add(reference, value);
        sums
    }

    #[test]
    fn equal_infinities_are_no_error_and_nan_is_the_worst() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let same = sums(&[inf, -inf, nan, 3.0, 4.0], &[inf, -inf, nan, 3.0, 4.5]);
        assert_eq!((same.sqnr_db(), same.largest), (20.0, 0.5));
        assert_eq!(sums(&[inf, 1.0], &[inf, 1.0]).sqnr_db(), f64::INFINITY);
        for (reference, value) in [(1.0, nan), (nan, 1.0), (1.0, inf), (inf, -inf), (inf, nan)] {
            let other = sums(&[1.0, reference, 2.0], &[1.0, value, 2.0]);
            assert_eq!(other.sqnr_db(), f64::NEG_INFINITY, "{reference} and {value}");
            assert!(!other.largest.is_finite(), "{reference} and {value}");
        }
        assert!(sums(&[nan, 1.0], &[1.0, 9.0]).largest.is_nan());
        assert!(sums(&[f32::MAX], &[f32::MIN]).largest > f64::from(f32::MAX));
    }
}
