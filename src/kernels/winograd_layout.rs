//! Where the tiles of [`super::winograd`] are, and in which order the numbers at their points lie.

use std::ops::Range;

use super::pairs::Pairs;
use super::simd::Simd;
use super::tile::Segment;
use super::winograd_transforms::{SIDE, is_shared};

/// Numbers of a cache line, put between points, and between the sums of tiles: else many of them would have the same place in a
/// first-level cache.
pub const LINE: usize = 32;

/// Tiles along an axis: those of four outputs, and one of one or two behind them.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    pub whole: usize,
    pub half: usize,
}

impl Axis {
    pub fn new(outputs: usize) -> Axis {
        let rest = outputs % 4;
        Axis { whole: outputs / 4 + usize::from(rest == 3), half: usize::from(rest == 1 || rest == 2) }
    }

    /// Points along this axis, of all tiles.
    pub fn points(&self) -> usize {
        6 * self.whole + 4 * self.half
    }
}

/// Some lines of tiles of an image.
///
/// In this order: halves of lines, whole tiles, halves of columns, quarters. So the tiles of each point lie together: all have the points
/// that halves have, all but the quarters and the halves along one axis have those beside.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    /// The first line of tiles, and how many are whole.
    pub first: usize,
    pub whole: usize,
    pub half: usize,
    pub columns: Axis,
}

/// Where a tile's outputs are, and whether they are two along an axis.
#[derive(Debug, Clone, Copy)]
pub struct TilePlace {
    pub y: usize,
    pub x: usize,
    pub half: [bool; 2],
}

impl Tiles {
    pub fn len(&self) -> usize {
        (self.whole + self.half) * (self.columns.whole + self.columns.half)
    }

    /// Where the kinds end.
    fn ends(&self) -> [usize; 3] {
        let lower = self.half * self.columns.whole;
        let whole = lower + self.whole * self.columns.whole;
        [lower, whole, whole + self.whole * self.columns.half]
    }

    pub fn place(&self, tile: usize) -> TilePlace {
        let ([lower, whole, right], Axis { whole: across, .. }) = (self.ends(), self.columns);
        let (line, column, half) = if tile < lower {
            (self.whole, tile, [true, false])
        } else if tile < whole {
            ((tile - lower) / across, (tile - lower) % across, [false, false])
        } else if tile < right {
            (tile - whole, across, [false, true])
        } else {
            (self.whole, across, [true, true])
        };
        TilePlace { y: 4 * (self.first + line), x: 4 * column, half }
    }

    /// The tiles that have a point.
    pub fn with_point(&self, point: usize) -> Range<usize> {
        let [lower, whole, right] = self.ends();
        match [is_shared(point / SIDE), is_shared(point % SIDE)] {
            [true, true] => 0..self.len(),
            [true, false] => 0..whole,
            [false, true] => lower..right,
            [false, false] => lower..whole,
        }
    }
}

/// In which order the channels lie at the points.
pub struct Words<S> {
    pub channels: usize,
    /// Numbers from a tile to the next.
    pub row: usize,
    /// Runs of words that lie together, up to three.
    pub runs: ([Segment; 3], usize),
    /// Words of all runs.
    pub count: usize,
    simd: std::marker::PhantomData<S>,
}

impl<S: Simd> Words<S> {
    pub fn new(channels: usize) -> Self {
        let vectors = 4 * S::LANES;
        let (whole, rest) = (channels / vectors * vectors, channels % vectors);
        let none = Segment { offset: 0, words: 0 };
        let runs = match rest {
            _ if !S::Pairs::SPLIT || rest == 0 => ([Segment { offset: 0, words: channels / 2 }, none, none], 1),
            _ => {
                let half = |i: usize| Segment { offset: whole + i * vectors / 2, words: rest / 4 };
                ([Segment { offset: 0, words: whole / 2 }, half(0), half(1)], 3)
            }
        };
        Words { channels, row: channels.next_multiple_of(vectors), runs, count: channels / 2, simd: std::marker::PhantomData }
    }

    /// Numbers from the weights of a point to those of the next, of `columns` columns.
    pub fn point(&self, columns: usize) -> usize {
        self.count * columns * 2 + LINE
    }

    /// The words of four channels, `4 * four` and those behind it.
    #[inline(always)]
    pub fn of_four(&self, four: usize) -> [usize; 2] {
        if !S::Pairs::SPLIT {
            return [2 * four, 2 * four + 1];
        }
        let (block, i) = (four / S::LANES, four % S::LANES);
        let first = block * 2 * S::LANES + i;
        [first, first + (self.channels / 4 - block * S::LANES).min(S::LANES)]
    }
}
