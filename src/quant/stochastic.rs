//! Rounding by chance: right on average.

/// A number in `0..1` with 24 random bits, of this seed and index: the same whoever asks, in whatever order (SplitMix64 of
/// both).
///
/// ```
/// use lowprec::quant::random_unit;
/// assert_eq!(random_unit(7, 3), random_unit(7, 3));
/// assert_ne!(random_unit(7, 3), random_unit(7, 4));
/// ```
#[inline]
pub fn random_unit(seed: u64, index: u64) -> f32 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    // The seed is mixed first, or neighbouring seeds would be shifted copies of one another.
    let x = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (x >> 40) as f32 / (1u32 << 24) as f32
}

/// `step · floor(x / step + u)` with `u` from [`random_unit`] for `first`, `first + 1`, ...: a multiple of `step` next to `x`, which
/// is `x` on average, with a variance of at most `step² / 4`. Multiples stay what they are, NaN and infinities too. A list in
/// pieces, each with the index of its first element, gives what it gives at once. For updates of low-precision weights (Gupta et al. 2015).
///
/// ```
/// use lowprec::quant::round_stochastic;
/// let mut x = [0.25; 1000];
/// round_stochastic(&mut x, 1.0, 42, 0);
/// assert!(x.iter().all(|&x| x == 0.0 || x == 1.0));
/// assert!((x.iter().sum::<f32>() / 1000.0 - 0.25).abs() < 0.06);
/// ```
pub fn round_stochastic(x: &mut [f32], step: f32, seed: u64, first: u64) {
    for (index, x) in (first..).zip(x) {
        // In f64 the sum keeps all bits of both where there is a fraction to speak of.
        let quotient = f64::from(*x) / f64::from(step);
        if quotient.is_finite() {
            *x = ((quotient + f64::from(random_unit(seed, index))).floor() * f64::from(step)) as f32;
        }
    }
}

/// Which of two neighbouring levels a number becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// The nearer one.
    #[default]
    Nearest,
    /// One of them by chance, so that the mean is the number: the upper with the probability `(x - lower) / (upper - lower)`. Drawn
    /// by [`random_unit`] from the seed and the index of the element. Beyond the last level there is no chance.
    Stochastic {
        /// Of another tensor, choose another.
        seed: u64,
    },
}
