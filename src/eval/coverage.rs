//! How the values of a float model lie in the range of the codes that stand for them.

use crate::eval::histogram::Histogram;
use crate::num::U8Grid;

/// Values seen beside the range of a grid.
#[derive(Debug)]
pub(super) struct Coverage {
    grid: U8Grid,
    pub histogram: Histogram,
    min: f32,
    max: f32,
    values: usize,
    clipped: usize,
}

impl Coverage {
    pub fn new(grid: U8Grid) -> Self {
        let histogram = Histogram::new([grid.dequantize(0), grid.dequantize(255)], grid.scale());
        Coverage { grid, histogram, min: f32::INFINITY, max: f32::NEG_INFINITY, values: 0, clipped: 0 }
    }

    pub fn add(&mut self, values: &[f32]) {
        let half = self.grid.scale() / 2.0;
        let (lo, hi) = (self.grid.dequantize(0) - half, self.grid.dequantize(255) + half);
        self.histogram.add(values.iter().copied());
        for &x in values {
            self.clipped += usize::from(x < lo || x > hi);
            (self.min, self.max) = (self.min.min(x), self.max.max(x));
        }
        self.values += values.len();
    }

    /// Share of the values that lie beyond the range by more than half a step.
    pub fn clipped(&self) -> f64 {
        self.clipped as f64 / self.values.max(1) as f64
    }

    /// Share of the range in which no value lies, at its ends.
    pub fn unused(&self) -> f64 {
        let grid = self.grid;
        if self.values == 0 {
            return 1.0;
        }
        let (lo, hi) = (f64::from(grid.dequantize(0)), f64::from(grid.dequantize(255)));
        let used = f64::from(self.max).min(hi) - f64::from(self.min).max(lo);
        1.0 - (used / (hi - lo)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_range() {
        let grid = U8Grid::new(0.5, 55).unwrap(); // -27.5 to 100
        let mut coverage = Coverage::new(grid);
        assert_eq!(coverage.unused(), 1.0);
        coverage.add(&[0.0, 36.25, 100.2, 200.0]);
        assert_eq!(coverage.clipped(), 0.25);
        assert!((coverage.unused() - 27.5 / 127.5).abs() < 1e-9);
        coverage.add(&[-27.5, -28.0, 1.0, 2.0]);
        assert_eq!(coverage.clipped(), 0.25);
        assert_eq!(coverage.unused(), 0.0);
    }
}
