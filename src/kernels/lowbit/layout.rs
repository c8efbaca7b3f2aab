//! Where codes, scales and activations lie.

use std::ops::Range;

/// Vectors of columns in a panel.
pub const VECTORS: usize = 2;

/// Bytes of a lane's word: codes of four neighbours along k in the lowest bits, of the next four in the next bits.
pub const LANE: usize = 4;

/// Panels of columns, in each its groups: scales, then codes.
///
/// ```text
/// [panel][group]{ [vector][lane] scale, filled up to whole vectors; [step][word][vector][lane][4] codes }
/// ```
///
/// A step is a word of each lane: 4 codes of 8 bits, 8 of 4, 16 of 2. Of 3 bits it is three words and 32 codes: the lower two bits of
/// each in the first two words, the upper bits in the third. Groups are filled up to whole steps with code 0, and the activations there
/// with 0; the last panel is filled up to whole vectors.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub n: usize,
    pub k: usize,
    pub group: usize,
    pub bits: usize,
    pub lanes: usize,
    pub scale_bytes: usize,
}

impl Layout {
    /// Words of a lane in one step.
    pub const fn words(bits: usize) -> usize {
        if bits == 3 { 3 } else { 1 }
    }

    /// Fours of codes of a lane in one step.
    pub const fn parts(bits: usize) -> usize {
        if bits == 3 { 8 } else { 8 / bits }
    }

    /// Codes of a lane in one step.
    pub fn step(&self) -> usize {
        Self::parts(self.bits) * LANE
    }

    pub fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// The elements along k of group `g`.
    pub fn elements(&self, g: usize) -> Range<usize> {
        g * self.group..((g + 1) * self.group).min(self.k)
    }

    /// Elements along k of every group but the last, and of the last.
    pub fn lengths(&self) -> [usize; 2] {
        [self.group, self.k - self.groups().saturating_sub(1) * self.group]
    }

    /// Steps of every group but the last, and of the last.
    pub fn steps(&self) -> [usize; 2] {
        self.lengths().map(|elements| elements.div_ceil(self.step()))
    }

    /// Activations of a row, filled up to whole steps in each group.
    pub fn row(&self) -> usize {
        let [steps, last] = self.steps();
        (self.groups().saturating_sub(1) * steps + last) * self.step()
    }

    /// Whether rows of activations are as they come.
    pub fn is_plain(&self) -> bool {
        self.row() == self.k
    }

    /// Columns of a panel.
    pub fn nr(&self) -> usize {
        VECTORS * self.lanes
    }

    pub fn panels(&self) -> usize {
        self.n.div_ceil(self.nr())
    }

    /// Bytes of a group's scales.
    pub fn header(&self) -> usize {
        (self.nr() * self.scale_bytes).next_multiple_of(self.lanes * LANE)
    }

    /// Bytes of a step of k.
    pub fn step_bytes(&self) -> usize {
        Self::words(self.bits) * self.nr() * LANE
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        let [steps, last] = self.steps();
        match self.groups() {
            0 => 0,
            groups => groups * self.header() + ((groups - 1) * steps + last) * self.step_bytes(),
        }
    }

    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes()
    }

    /// Zero points of all panels, where each group has its own: `[panel][group][vector][lane]`.
    pub fn zero_points(&self) -> usize {
        self.panels() * self.nr() * self.groups()
    }

    /// Where group `g` of panel `panel` starts, in bytes.
    pub fn block(&self, panel: usize, g: usize) -> usize {
        panel * self.panel_bytes() + g * (self.header() + self.steps()[0] * self.step_bytes())
    }

    /// Where the zero point of group `g` and column `column` of panel `panel` stands.
    pub fn zero_at(&self, panel: usize, g: usize, column: usize) -> usize {
        (panel * self.groups() + g) * self.nr() + column
    }

    /// Panel and place in it of a column.
    pub fn place(&self, column: usize) -> (usize, usize) {
        (column / self.nr(), column % self.nr())
    }

    /// Writes code `i` of a group of place `lane` into its block, where zeros are.
    pub fn put(&self, block: &mut [u8], lane: usize, i: usize, code: u8) {
        let (low, [at, shift], [high, bit]) = self.code_at(lane, i);
        block[at] |= (code & low) << shift;
        if self.bits == 3 {
            block[high] |= code >> 2 << bit;
        }
    }

    /// Code `i` of a group of place `lane`.
    pub fn get(&self, block: &[u8], lane: usize, i: usize) -> u8 {
        let (low, [at, shift], [high, bit]) = self.code_at(lane, i);
        let code = block[at] >> shift & low;
        if self.bits == 3 { code | (block[high] >> bit & 1) << 2 } else { code }
    }

    /// The mask of a code's lower bits, their byte and shift, and those of its upper bit, of three.
    fn code_at(&self, lane: usize, i: usize) -> (u8, [usize; 2], [usize; 2]) {
        let (step, i) = (i / self.step(), i % self.step());
        let word = |word: usize| self.header() + step * self.step_bytes() + (word * self.nr() + lane) * LANE + i % LANE;
        let part = i / LANE;
        match self.bits {
            3 => (3, [word(part / 4), part % 4 * 2], [word(2), part]),
            bits => (0xff >> (8 - bits), [word(0), part * bits], [0, 0]),
        }
    }
}
