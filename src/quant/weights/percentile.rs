//! The value that so many percent of a list lie below.

/// The percentile of finite values, by a straight line between its neighbours in order: `x[i] + (r - i) · (x[i+1] - x[i])` at
/// `r = (n - 1) · percent / 100`, `i = floor(r)`. Of none 0.
pub(crate) fn percentile(values: impl Iterator<Item = f32>, percent: f64) -> f64 {
    let mut values: Vec<f32> = values.collect();
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let rank = last as f64 * (percent / 100.0).clamp(0.0, 1.0);
    let at = rank as usize;
    let (_, below, rest) = values.select_nth_unstable_by(at, f32::total_cmp);
    let below = f64::from(*below);
    let above = rest.iter().copied().min_by(f32::total_cmp).map_or(below, f64::from);
    below + (rank - at as f64) * (above - below)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    /// `numpy.percentile([3, -1, 7, 2.5, 0], p)`.
    #[test]
    fn as_numpy_has_it() {
        for (percent, expected) in [(0.0, -1.0), (10.0, -0.6), (50.0, 2.5), (75.0, 3.0), (99.0, 6.84), (100.0, 7.0)] {
            let found = percentile([3.0, -1.0, 7.0, 2.5, 0.0].into_iter(), percent);
            assert!((found - expected).abs() < 1e-12, "{percent}: {found}");
        }
        assert_eq!((percentile([].into_iter(), 50.0), percentile([2.0].into_iter(), 99.0)), (0.0, 2.0));
    }
}
