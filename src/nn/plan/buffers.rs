//! Which buffer each value lives in.

use super::schedule::Schedule;
use super::{Source, Step};

/// Numbers the buffers and returns their bytes. Each value takes a free one, freed after its last reader: the one freed last
/// of those that hold it (it may still be in cache), else the largest, grown. A sum fused into a layer is written over the
/// value that it adds, if nothing reads that any more.
pub(super) fn assign(schedule: &mut Schedule<'_>) -> Vec<usize> {
    let virtuals = &schedule.virtuals;
    // The step after which each value is free; beyond all for the outputs.
    let mut last_use: Vec<usize> = vec![0; virtuals.len()];
    for (at, step) in schedule.steps.iter().enumerate() {
        step.each_buffer(|v| last_use[v] = at);
    }
    for source in &schedule.outputs {
        if let Source::Buffer(v) = source {
            last_use[*v] = usize::MAX;
        }
    }
    let mut freed_at: Vec<Vec<usize>> = vec![Vec::new(); schedule.steps.len()];
    for (v, &last) in last_use.iter().enumerate() {
        if let Some(freed) = freed_at.get_mut(last) {
            freed.push(v);
        }
    }
    let (mut sizes, mut free): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut number: Vec<usize> = vec![usize::MAX; virtuals.len()];
    for (at, step) in schedule.steps.iter_mut().enumerate() {
        let mut taken_over = None;
        if let Step::Run { inputs, fused, targets, .. } = step
            && fused.residual
            && let Some(Some(operand)) = inputs.last()
            && let Source::Buffer(v) = operand.source
            && last_use[v] == at
            // Not while the layer itself reads it.
            && inputs[..inputs.len() - 1].iter().flatten().all(|other| other.source != operand.source)
        {
            number[targets[0].buffer] = number[v];
            taken_over = Some(v);
        }
        step.each_target(|v| {
            if number[v] == usize::MAX {
                let fitting = free.iter().rposition(|&b| sizes[b] >= virtuals[v]);
                let largest = || (0..free.len()).max_by_key(|&i| sizes[free[i]]);
                number[v] = match fitting.or_else(largest) {
                    Some(i) => free.remove(i),
                    None => {
                        sizes.push(0);
                        sizes.len() - 1
                    }
                };
                sizes[number[v]] = sizes[number[v]].max(virtuals[v]);
            }
        });
        free.extend(freed_at[at].iter().filter(|&&v| Some(v) != taken_over).map(|&v| number[v]));
    }
    let renumber = |source: &mut Source| {
        if let Source::Buffer(v) = source {
            *v = number[*v];
        }
    };
    for step in &mut schedule.steps {
        match step {
            Step::Reorder { from, to, .. } => {
                renumber(from);
                to.buffer = number[to.buffer];
            }
            Step::Run { inputs, targets, .. } => {
                inputs.iter_mut().flatten().for_each(|operand| renumber(&mut operand.source));
                targets.iter_mut().for_each(|target| target.buffer = number[target.buffer]);
            }
            Step::Pass { from, .. } => from.iter_mut().for_each(renumber),
        }
    }
    schedule.places.iter_mut().flatten().for_each(|place| place.sources_mut().for_each(renumber));
    schedule.outputs.iter_mut().for_each(renumber);
    sizes
}

impl Step {
    fn each_target(&self, mut f: impl FnMut(usize)) {
        match self {
            Step::Reorder { to, .. } => f(to.buffer),
            Step::Run { targets, .. } => targets.iter().for_each(|target| f(target.buffer)),
            Step::Pass { .. } => {}
        }
    }

    fn each_buffer(&self, mut f: impl FnMut(usize)) {
        let mut read = |source: Source| {
            if let Source::Buffer(v) = source {
                f(v);
            }
        };
        match self {
            Step::Reorder { from, .. } => read(*from),
            Step::Run { inputs, .. } => inputs.iter().flatten().for_each(|operand| read(operand.source)),
            Step::Pass { from, .. } => from.iter().for_each(|&source| read(source)),
        }
        self.each_target(f);
    }
}
