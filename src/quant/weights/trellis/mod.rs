//! Codes that choose among twice as many levels as they have numbers, by the help of the codes before them.
//!
//! The levels, in order, are dealt to four subsets in turn, `level k` to subset `k mod 4`. Which subset a weight takes, the lowest bits of
//! its own code and of the [`MEMORY`] codes before it tell, by two parities; which of the subset's levels, the other bits of its code.
//! A weight alone so has as many levels to choose from as a plain code gives it, but a row of weights has many more points near it, and
//! the [`search`] for the nearest one looks at all of them. Trellis-coded quantization (Marcellin and Fischer 1990), with
//! Ungerboeck's code (1982) for the parities.
//!
//! The memory is empty at the start of a run: of so many whole groups that they have [`RUN`] weights.

mod fit;
mod search;

pub(crate) use fit::TrellisFitter;

use crate::error::Result;
use crate::quant::codebook::Table;
use crate::quant::weights::PackedCodes;
use crate::quant::weights::grouping::Groups;

/// Codes before a weight's own that its level depends on.
pub(crate) const MEMORY: usize = 8;
/// Contents of the memory.
const STATES: usize = 1 << MEMORY;
/// The parities that tell the subset, its upper bit first, of the lowest bits of a weight's code (bit 0) and of those before it. Both ends
/// count in the first and not in the second: two ways out of the same memory, or into the same, have subsets two apart, whose levels are
/// as far from each other as those of plain codes.
const PARITIES: [u32; 2] = [0o515, 0o362];
/// Weights after which the memory is emptied, or more: a search can begin there without knowing how another ended.
const RUN: usize = 4096;

/// The subset that the lowest bits of a code and of those before it tell.
fn subset(memory: usize) -> usize {
    const SUBSETS: [u8; 2 * STATES] = {
        let mut subsets = [0; 2 * STATES];
        let mut memory = 0;
        while memory < subsets.len() {
            let [upper, lower] = PARITIES;
            subsets[memory] = ((memory as u32 & upper).count_ones() % 2 * 2 + (memory as u32 & lower).count_ones() % 2) as u8;
            memory += 1;
        }
        subsets
    };
    SUBSETS[memory % SUBSETS.len()].into()
}

/// The levels of codes of 1 to 4 bits, ascending, twice as many as there are codes.
///
/// # Errors
/// [`Error::Parameter`](crate::Error::Parameter) for other numbers of bits.
pub(crate) fn levels(bits: u32) -> Result<Vec<f32>> {
    Ok(Table::Gauss(bits + 1).codebook()?.levels().to_vec())
}

/// Reads codes one after the other as the indices of their levels.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    groups: Groups,
    memory: usize,
}

impl Reader {
    /// Ready for the code of that flat index.
    pub(crate) fn at(codes: &PackedCodes, groups: Groups, index: usize) -> Self {
        let mut reader = Reader { groups, memory: 0 };
        if index < codes.len() {
            let start = run_start(groups, groups.of_weight(index)).max(index.saturating_sub(MEMORY));
            codes.iter_from(start).take(index - start).for_each(|code| reader.remember(code as usize));
        }
        reader
    }

    fn remember(&mut self, code: usize) {
        self.memory = (self.memory << 1 | code & 1) & (2 * STATES - 1);
    }

    /// Makes indices of levels of the next codes, all of one group; `first` when they are its first.
    pub(crate) fn indices(&mut self, group: usize, first: bool, codes: &mut [u16]) {
        if first && group.is_multiple_of(in_run(self.groups)) {
            self.memory = 0;
        }
        for code in codes {
            self.remember(usize::from(*code));
            *code = (*code >> 1 << 2) + subset(self.memory) as u16;
        }
    }
}

/// Groups of a run, but for the last.
pub(crate) fn in_run(groups: Groups) -> usize {
    RUN.div_ceil(groups.row_and_size()[1])
}

/// The flat index of the first weight of a group's run.
fn run_start(groups: Groups, group: usize) -> usize {
    groups.range(group - group % in_run(groups)).start
}
