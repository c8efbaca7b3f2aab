//! Sums in a fixed order.
//!
//! Float addition is not associative, so the order is part of the result. Every reduction of the crate that could be
//! split (over threads, lanes or batches) follows the order stated here or at its function, whatever the machine.

/// Partial sums: enough lanes for the widest vectors, folded in one fixed order.
pub(crate) const LANES: usize = 16;

/// `Σ x` in f32: lane `l` of sixteen sums the elements `l, l + 16, l + 32, …` in order, and the lanes are folded in
/// halves, `l + (l + 8)`, then `l + (l + 4)`, and so on.
pub fn sum(x: &[f32]) -> f32 {
    fold(x.chunks(LANES), |lanes, chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x))
}

/// `Σ a · b` in f32, each product rounded, in the order of [`sum`].
///
/// # Panics
/// When the slices differ in length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "both sides of a dot product have one length");
    fold(a.chunks(LANES).zip(b.chunks(LANES)), |lanes, (a, b)| {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    })
}

/// `Σ x` in f64, one element after the other.
pub fn sum_f64(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x)).sum()
}

fn fold<C>(chunks: impl Iterator<Item = C>, mut add: impl FnMut(&mut [f32; LANES], C)) -> f32 {
    let mut lanes = [0.0; LANES];
    chunks.for_each(|chunk| add(&mut lanes, chunk));
    join(lanes, |a, b| a + b)
}

/// The lanes folded in halves.
#[inline(always)]
pub(crate) fn join<T: Copy>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        (0..width).for_each(|l| lanes[l] = f(lanes[l], lanes[l + width]));
        width /= 2;
    }
    lanes[0]
}

/// `f` folded over `x` from `start` in the order of [`sum`], and `join` over the lanes: for loops that become vectors.
#[inline(always)]
pub(crate) fn lanes<T: Copy, A: Copy>(x: &[T], start: A, f: impl Fn(A, T) -> A, last: impl Fn(A, A) -> A) -> A {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = f(lanes[l], chunk[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    join(lanes, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_stated_one() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 1.37).sin() * 10f32.powi(i % 7)).collect();
        let mut lanes = [0f32; 16];
        x.iter().enumerate().for_each(|(i, x)| lanes[i % 16] += x);
        let eight: Vec<f32> = (0..8).map(|l| lanes[l] + lanes[l + 8]).collect();
        let four: Vec<f32> = (0..4).map(|l| eight[l] + eight[l + 4]).collect();
        assert_eq!(sum(&x), (four[0] + four[2]) + (four[1] + four[3]));
        assert_eq!(dot(&x, &[1.0; 37]), sum(&x));
        assert!((f64::from(sum(&x)) - sum_f64(&x)).abs() < 1.0);
        assert_eq!((sum(&[]), dot(&[], &[])), (0.0, 0.0));
        assert_eq!(super::lanes(&x, 0.0, |a, x| a + x, |a, b| a + b), sum(&x));
    }
}
