//! Where values lie beside the codes that stand for them.

/// Bins of a [`Histogram`].
const BINS: usize = 64;

/// Numbers of values in 64 bins of one width, the first and the last taking what lies beyond them too.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Histogram {
    /// Where the first bin begins and the last one ends: a tenth of the range of codes around it, or a step where that is more.
    pub span: [f32; 2],
    /// The values of the first and the last code.
    pub codes: [f32; 2],
    /// Distance between two codes; 0 where they are not evenly spaced.
    pub step: f32,
    /// The values of all codes where they are not evenly spaced, ascending; none where each group of weights has values of its own.
    pub levels: Vec<f32>,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// An empty one around these codes.
    pub(super) fn new(codes: [f32; 2], step: f32) -> Self {
        let margin = ((codes[1] - codes[0]) / 10.0).max(step);
        Histogram { span: [codes[0] - margin, codes[1] + margin], codes, step, levels: Vec::new(), counts: vec![0; BINS] }
    }

    /// An empty one around codes of uneven distances, from the least to the largest.
    pub(super) fn uneven(codes: [f32; 2], levels: Vec<f32>) -> Self {
        let margin = if codes[0] < codes[1] { (codes[1] - codes[0]) / 10.0 } else { 1.0 };
        Histogram { span: [codes[0] - margin, codes[1] + margin], codes, step: 0.0, levels, counts: vec![0; BINS] }
    }

    /// NaN is counted in no bin.
    pub(super) fn add(&mut self, values: impl Iterator<Item = f32>) {
        let [from, to] = self.span;
        let bins = BINS as f32 / (to - from);
        for x in values.filter(|x| !x.is_nan()) {
            self.counts[(((x - from) * bins).max(0.0) as usize).min(BINS - 1)] += 1;
        }
    }

    /// Values in all bins.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_bin() {
        let mut histogram = Histogram::new([-10.0, 10.0], 0.1);
        histogram.add([-100.0, -12.0, f32::NEG_INFINITY, 0.1, 11.9, f32::INFINITY, f32::NAN].into_iter());
        assert_eq!((histogram.counts[0], histogram.counts[32], histogram.counts[63]), (3, 1, 2));
        assert_eq!(histogram.total(), 6);
    }
}
