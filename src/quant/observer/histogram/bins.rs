//! Counts and moments of values in bins whose width is a power of two.
//!
//! With the width `w = 2^e`, bin `k >= 0` holds `k w <= x < (k + 1) w`, and bin `-1 - k` the same below zero. All bins of
//! one width lie inside those of the double width, so widening adds bins in pairs and loses nothing. `e` and the first bin
//! follow from the range of what was seen, and so the counts are those of the values, whatever their order and however they
//! were cut.

use super::super::range::Range;
use crate::error::Result;
use crate::tensor::repeat;

/// What is known of the values in a bin: their number, and the sums of `u` and `u²`, where `u` in 0..1 is the distance from the
/// edge next to zero in widths.
///
/// Dimensionless, the sums lose nothing in widening but the last bit of an addition, whatever the size of the values.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(in super::super) struct Bin {
    pub count: u64,
    #[cfg_attr(feature = "serde", serde(with = "super::super::exact"))]
    pub sum: f64,
    #[cfg_attr(feature = "serde", serde(with = "super::super::exact"))]
    pub squares: f64,
}

/// The histogram of one scale. Zeros, which every grid has a code for, are counted apart.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "Stored"))]
pub(in super::super) struct Bins {
    limit: usize,
    range: Option<Range>,
    // Follows from range and limit.
    #[cfg_attr(feature = "serde", serde(skip_serializing))]
    layout: Option<Layout>,
    zeros: u64,
    bins: Vec<Bin>,
}

/// Exponent of the width, and the first bin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Layout {
    pub exponent: i32,
    pub first: i32,
    len: usize,
}

/// 2^exponent, for -1022..=1023.
pub(in super::super) fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The bin of `x`, given the reciprocal of the width, and the distance from its edge next to zero in widths.
#[inline(always)]
fn place(x: f32, inverse: f64) -> (i32, f64) {
    // Exact: a power of two, in f64. Below 2^24 by `Layout::of`; what is not finite lands anywhere and is not used.
    let widths = f64::from(x.abs()) * inverse;
    let whole = widths as i32;
    // !k = -1 - k for what is below zero.
    (whole ^ (x.to_bits() as i32 >> 31), widths - f64::from(whole))
}

impl Layout {
    /// The narrowest bins of which at most `limit` cover the range.
    fn of(range: Range, limit: usize) -> Layout {
        let largest = range.min.abs().max(range.max.abs());
        // Narrower than the last bit of the largest value they would be empty.
        let mut exponent = (largest.to_bits() >> 23) as i32 - 127 - 23;
        exponent = exponent.max(-149);
        loop {
            let inverse = power_of_two(-exponent);
            let (first, last) = (place(range.min, inverse).0, place(range.max, inverse).0);
            let len = (i64::from(last) - i64::from(first) + 1) as usize;
            if len <= limit {
                return Layout { exponent, first, len };
            }
            exponent += 1;
        }
    }
}

impl Bin {
    /// This bin in one of twice the width, in whose half next to zero it lies, or in the other.
    fn widened(self, outer: bool) -> Bin {
        let (n, shift) = (self.count as f64, f64::from(u8::from(outer)));
        Bin { count: self.count, sum: 0.5 * (self.sum + shift * n), squares: 0.25 * (self.squares + shift * (2.0 * self.sum + n)) }
    }

    #[inline(always)]
    fn take(&mut self, u: f64) {
        self.count += 1;
        self.sum += u;
        self.squares += u * u;
    }

    fn add(&mut self, other: Bin) {
        self.count = self.count.saturating_add(other.count);
        self.sum += other.sum;
        self.squares += other.squares;
    }
}

/// What a histogram becomes when it grows: apart from it, so that nothing has grown when memory is not enough.
#[derive(Debug)]
pub(in super::super) struct Widened {
    range: Range,
    layout: Layout,
    bins: Option<Vec<Bin>>,
}

/// Elements whose bins are found in one go, so that finding them vectorizes.
const CHUNK: usize = 256;
/// Runs that are too short for it.
const SHORT: usize = 32;

impl Bins {
    pub const MIN: usize = 16;
    pub const MAX: usize = 1 << 20;

    /// At most `limit` bins, between [`Bins::MIN`] and [`Bins::MAX`].
    pub fn new(limit: usize) -> Bins {
        Bins { limit, range: None, layout: None, zeros: 0, bins: Vec::new() }
    }

    /// The number of bins at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Range of all values, zeros among them.
    pub fn range(&self) -> Option<Range> {
        self.range
    }

    /// The number of values.
    pub fn total(&self) -> u64 {
        self.bins.iter().fold(self.zeros, |total, bin| total.saturating_add(bin.count))
    }

    pub fn layout(&self) -> Option<Layout> {
        self.layout
    }

    /// The bins above zero, or those below, outwards: the number of the first and the bins.
    pub fn outwards(&self, below: bool) -> (usize, impl ExactSizeIterator<Item = &Bin> + Clone) {
        let first = self.layout().map_or(0, |layout| layout.first);
        let negative = first.min(0).unsigned_abs() as usize;
        let middle = negative.min(self.bins.len());
        let (low, high) = self.bins.split_at(middle);
        let part = if below { low } else { high };
        // Either side begins at zero unless the range ends before it.
        let start = if below { negative - middle } else { first.max(0) as usize };
        let (forwards, backwards) = if below { (&[][..], part) } else { (part, &[][..]) };
        let len = part.len();
        let bins = (0..len).map(move |i| if forwards.is_empty() { &backwards[len - 1 - i] } else { &forwards[i] });
        (start, bins)
    }

    /// Pieces of the histogram that hold values, in their order: from, to, number. Zeros are a piece from 0 to 0; ends are
    /// cut to the range of what was seen.
    pub fn pieces(&self) -> Vec<(f64, f64, u64)> {
        let (Some(range), Some(layout)) = (self.range, self.layout()) else { return Vec::new() };
        let (width, ends) = (power_of_two(layout.exponent), (f64::from(range.min), f64::from(range.max)));
        let piece = |(i, bin): (usize, &Bin)| {
            let low = (f64::from(layout.first) + i as f64) * width;
            (low.max(ends.0), (low + width).min(ends.1), bin.count)
        };
        let mut pieces: Vec<_> = self.bins.iter().enumerate().filter(|(_, bin)| bin.count > 0).map(piece).collect();
        if self.zeros > 0 {
            let at = pieces.partition_point(|piece| piece.1 <= 0.0 && piece.0 < 0.0);
            pieces.insert(at, (0.0, 0.0, self.zeros));
        }
        pieces
    }

    /// The bins, and room for values of `range` among them.
    pub fn widened(&self, range: Range) -> Result<Widened> {
        let whole = self.range.map_or(range, |own| own.with(range));
        let to = Layout::of(whole, self.limit);
        if self.layout() == Some(to) {
            return Ok(Widened { range: whole, layout: to, bins: None });
        }
        let mut bins = repeat(Bin::default(), to.len, &[to.len])?;
        if let Some(from) = self.layout() {
            pour(&self.bins, from, &mut bins, to);
        }
        Ok(Widened { range: whole, layout: to, bins: Some(bins) })
    }

    /// Becomes what [`Bins::widened`] gave.
    pub fn widen(&mut self, Widened { range, layout, bins }: Widened) {
        (self.range, self.layout) = (Some(range), Some(layout));
        if let Some(bins) = bins {
            self.bins = bins;
        }
    }

    /// Counts these values, for whose range there is room. What is not finite is left out.
    pub fn count(&mut self, values: &[f32]) {
        let Some(layout) = self.layout() else { return };
        let inverse = power_of_two(-layout.exponent);
        if values.len() < SHORT {
            for &x in values.iter().filter(|x| x.is_finite()) {
                let (bin, u) = place(x, inverse);
                match x == 0.0 {
                    true => self.zeros += 1,
                    false => self.bins[(bin - layout.first) as usize].take(u),
                }
            }
            return;
        }
        let mut places = [(0i32, 0f64); CHUNK];
        for chunk in values.chunks(CHUNK) {
            let mut used = 0;
            for &x in chunk {
                let (bin, u) = place(x, inverse);
                places[used] = (bin.wrapping_sub(layout.first), u);
                used += usize::from(x != 0.0 && x.is_finite());
            }
            let finite = if used == chunk.len() { used } else { chunk.iter().filter(|x| x.is_finite()).count() };
            self.zeros += (finite - used) as u64;
            for &(bin, u) in &places[..used] {
                self.bins[bin as usize].take(u);
            }
        }
    }

    /// Takes in what another histogram counted.
    pub fn merge(&mut self, other: &Bins) -> Result<()> {
        if let (Some(range), Some(from)) = (other.range, other.layout()) {
            self.widen(self.widened(range)?);
            if let Some(to) = self.layout() {
                pour(&other.bins, from, &mut self.bins, to);
            }
            self.zeros = self.zeros.saturating_add(other.zeros);
        }
        Ok(())
    }
}

/// Adds bins to those of a layout that is as wide or wider and covers them.
fn pour(bins: &[Bin], from: Layout, into: &mut [Bin], to: Layout) {
    for (i, &bin) in bins.iter().enumerate().filter(|(_, bin)| bin.count > 0) {
        let (mut bin, mut index) = (bin, from.first + i as i32);
        for _ in from.exponent..to.exponent {
            // Outwards from zero: of the bins below it, -1 and -2 become -1, and -2 is the outer one.
            bin = bin.widened((index & 1 == 1) != (index < 0));
            index >>= 1;
        }
        into[(index - to.first) as usize].add(bin);
    }
}

/// [`Bins`] as they are read, before they are known to be such.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Stored {
    limit: usize,
    range: Option<Range>,
    zeros: u64,
    bins: Vec<Bin>,
}

#[cfg(feature = "serde")]
impl TryFrom<Stored> for Bins {
    type Error = String;

    fn try_from(Stored { limit, range, zeros, bins }: Stored) -> std::result::Result<Bins, String> {
        if !(Bins::MIN..=Bins::MAX).contains(&limit) {
            return Err(format!("{limit} bins of a histogram: there may be {} to {}", Bins::MIN, Bins::MAX));
        }
        let layout = range.map(|range| Layout::of(range, limit));
        let expected = layout.map_or(0, |layout| layout.len);
        if bins.len() != expected {
            return Err(format!("{} bins of a histogram whose range has {expected}", bins.len()));
        }
        // Sums of numbers between 0 and 1, and of their squares.
        let sound = |bin: &Bin| 0.0 <= bin.squares && bin.squares <= bin.sum && bin.sum <= bin.count as f64;
        let total = bins.iter().try_fold(zeros, |total, bin| total.checked_add(bin.count));
        match total.is_some() && bins.iter().all(sound) {
            true => Ok(Bins { limit, range, layout, zeros, bins }),
            false => Err("a bin of a histogram whose sums its values can't have".into()),
        }
    }
}
