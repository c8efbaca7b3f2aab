//! The weights that count in fits.

use std::borrow::Cow;

use crate::quant::level_search::Weighted;
use crate::quant::weights::grouping::Groups;

/// The finite weights that are not kept exactly, and their sensitivities, one group after the other.
pub(crate) struct Gathered<'a> {
    values: Cow<'a, [f32]>,
    /// Empty where all are 1.
    sensitivities: Cow<'a, [f32]>,
    /// Where each group begins, and where the last one ends.
    bounds: Vec<usize>,
}

impl<'a> Gathered<'a> {
    /// All of `x` but those of the indices `kept`, which ascend.
    pub(crate) fn new(x: &'a [f32], sensitivities: Option<&'a [f32]>, kept: &[usize], groups: Groups) -> Self {
        let mut bounds = Vec::with_capacity(groups.len() + 1);
        bounds.push(0);
        if kept.is_empty() && x.iter().all(|x| x.is_finite()) {
            bounds.extend((0..groups.len()).map(|group| groups.range(group).end));
            return Gathered { values: x.into(), sensitivities: sensitivities.unwrap_or_default().into(), bounds };
        }
        let (mut values, mut weights) = (Vec::with_capacity(x.len()), Vec::new());
        let mut kept = kept.iter().copied().peekable();
        for group in 0..groups.len() {
            for i in groups.range(group) {
                if kept.next_if_eq(&i).is_none() && x[i].is_finite() {
                    values.push(x[i]);
                    weights.extend(sensitivities.map(|list| list[i]));
                }
            }
            bounds.push(values.len());
        }
        Gathered { values: values.into(), sensitivities: weights.into(), bounds }
    }

    /// Number of groups.
    pub(crate) fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Number of weights.
    pub(crate) fn weights(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn group(&self, index: usize) -> Weighted<'_> {
        let range = self.bounds[index]..self.bounds[index + 1];
        Weighted { values: &self.values[range.clone()], weights: self.sensitivities.get(range).unwrap_or_default() }
    }

    pub(crate) fn all(&self) -> Vec<Weighted<'_>> {
        (0..self.len()).map(|i| self.group(i)).collect()
    }

    pub(crate) fn everything(&self) -> Weighted<'_> {
        Weighted { values: &self.values, weights: &self.sensitivities }
    }
}
