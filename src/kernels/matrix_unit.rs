//! What a matrix unit does: it adds products of tiles to squares of sums in registers of its own.

/// Rows, and columns, of a tile of sums.
pub const TILE: usize = 16;

/// Rows, and columns, of a square: two tiles high and two wide.
pub const SIDE: usize = 2 * TILE;

/// Words of four activations that a tile holds of each row.
pub const TILE_WORDS: usize = 16;

/// Bytes of as many.
pub const TILE_BYTES: usize = 4 * TILE_WORDS;

/// What the tiles of a square hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquareShape {
    /// Rows of each half, 1 to [`TILE`].
    pub rows: usize,
    /// Words at the end of each segment that fill no tile, below [`TILE_WORDS`].
    pub rest: usize,
}

/// Products that a matrix unit adds to a square.
#[derive(Debug, Clone, Copy)]
// Where there is no matrix unit, nobody reads them.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub struct Steps {
    /// The first activation of each half's first row.
    pub halves: [*const u8; 2],
    /// Whether there is a second half.
    pub both: bool,
    /// Bytes from a row to the next.
    pub stride: usize,
    /// From their first word on: `[words][vectors * TILE][4]`.
    pub weights: *const i8,
    /// Tiles of columns: 1 or 2.
    pub vectors: usize,
    /// Tiles of words, or none: the words that fill no tile.
    pub tiles: usize,
    /// Whether there are such words in this square.
    pub rest: bool,
}

impl Steps {
    /// Goes on after some tiles of words, whose weights are `weight_step` bytes each.
    pub fn pass(&mut self, tiles: usize, weight_step: usize) {
        let bytes = tiles * TILE_BYTES;
        self.halves = [self.halves[0].wrapping_add(bytes), self.halves[1].wrapping_add(bytes)];
        self.weights = self.weights.wrapping_add(tiles * weight_step);
    }
}

/// A matrix unit: tiles of 8-bit activations and weights, and of their sums.
///
/// # Safety
/// [`MatrixUnit::store`] and [`MatrixUnit::exchange`] write all they name: it is read from memory that nothing else was written to.
pub unsafe trait MatrixUnit: Copy + Send + Sync + 'static {
    /// Makes this thread's unit ready for squares of a shape.
    fn begin(self, shape: SquareShape);
    /// The sums of all tiles become 0.
    ///
    /// # Safety
    /// After [`MatrixUnit::begin`], on the same thread.
    unsafe fn clear(self);
    /// Adds products to the sums.
    ///
    /// # Safety
    /// After [`MatrixUnit::begin`], on the same thread: `shape.rows` rows of each half are readable for as many words as `steps` has, and so are the weights.
    unsafe fn add(self, steps: &Steps);
    /// Writes the sums of a half, 0 or 1, and of the first or second tile of columns, to their place in `[2][TILE][SIDE]`.
    ///
    /// # Safety
    /// After [`MatrixUnit::begin`], on the same thread. `sums` is writable for a square, and starts a cache line.
    unsafe fn store(self, half: usize, vector: usize, sums: *mut i32);
    /// [`MatrixUnit::store`] of a whole square, and [`MatrixUnit::add`] of one tile of words to another that starts from 0: each tile of
    /// sums is stored just before the next square takes its register, so that neither the one nor the other waits for all four.
    ///
    /// # Safety
    /// As for both, whatever `steps.tiles` says; with `both` and two `vectors`, in a shape without a `rest`.
    unsafe fn exchange(self, steps: &Steps, sums: *mut i32);
    /// Asks for the line at `p`, which need not be valid, to come from memory to the second-level cache.
    fn prefetch(self, p: *const i8);
    /// Gives the unit back: the system need not keep what is in it any longer.
    fn end(self);
}

/// Where there is none.
#[derive(Debug, Clone, Copy)]
pub enum NoMatrixUnit {}

// SAFETY: there is no value to call it with.
unsafe impl MatrixUnit for NoMatrixUnit {
    fn begin(self, _: SquareShape) {
        match self {}
    }

    unsafe fn clear(self) {
        match self {}
    }

    unsafe fn add(self, _: &Steps) {
        match self {}
    }

    unsafe fn store(self, _: usize, _: usize, _: *mut i32) {
        match self {}
    }

    unsafe fn exchange(self, _: &Steps, _: *mut i32) {
        match self {}
    }

    fn prefetch(self, _: *const i8) {
        match self {}
    }

    fn end(self) {
        match self {}
    }
}
