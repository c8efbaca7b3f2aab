//! The same work for each group. What comes out does not depend on the number of threads.

/// Weights below which other threads cost more than they save.
#[cfg(feature = "parallel")]
const FEW: usize = 1 << 14;

/// `work` of `0..groups`, in order, over the caller's rayon pool if the weights are many. A thread begins with `start` and keeps it.
pub(crate) fn map_groups<S, T: Send>(
    groups: usize,
    weights: usize,
    start: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, usize) -> T + Sync + Send,
) -> Vec<T> {
    #[cfg(feature = "parallel")]
    if weights >= FEW {
        use rayon::prelude::*;
        let few = (groups * (FEW / 4)).div_ceil(weights).max(1);
        return (0..groups).into_par_iter().with_min_len(few).map_init(start, work).collect();
    }
    let _ = weights;
    let mut kept = start();
    (0..groups).map(|group| work(&mut kept, group)).collect()
}

/// `work` with each of these parts and its index.
pub(crate) fn for_each_part<T: Send>(parts: Vec<&mut [T]>, work: impl Fn(usize, &mut [T]) + Sync + Send) {
    #[cfg(feature = "parallel")]
    if parts.iter().map(|part| part.len()).sum::<usize>() >= FEW {
        use rayon::prelude::*;
        let few = (parts.len() / 64).max(1);
        parts.into_par_iter().enumerate().with_min_len(few).for_each(|(i, part)| work(i, part));
        return;
    }
    parts.into_iter().enumerate().for_each(|(i, part)| work(i, part));
}
