//! The level nearest to a value, for many values at once.

use crate::quant::level_search::Weighted;
use crate::quant::weights::alphabet::Alphabet;

/// Values taken at once: as many as fill a few registers of any instruction set.
const LANES: usize = 8;
/// Midpoints up to which it is quicker to compare with all of them.
const FEW: usize = 32;

/// Levels before they are scaled, ready for rounding.
#[derive(Debug, Clone)]
pub(crate) enum Nearest {
    Even(Even),
    Listed(Listed),
}

/// `k · step` for integers `k` from `low` to `high`, ties to the even one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Even {
    low: f32,
    high: f32,
    step: f32,
}

/// Levels one by one, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    levels: Vec<f32>,
    /// Between two levels, the largest value that has the lower one.
    last: Vec<f32>,
    /// Their codes.
    codes: Vec<u16>,
    /// Of small floats, the index of zero, and the code of the zero below it.
    negative_zero: Option<(u32, u16)>,
}

/// 1.5 · 2^23: of a sum with it, f32 keeps the integer nearest to the other summand, ties to even, in its lowest bits.
const ROUNDING: f32 = 12_582_912.0;

impl Even {
    /// Integers from `low` to `high`, of at most 22 bits.
    pub(crate) fn integers(low: i32, high: i32) -> Self {
        Even { low: low as f32, high: high as f32, step: 1.0 }
    }

    /// `x / scale / step` within bounds, NaN as it is. The step is a power of two, so the quotient is a product.
    #[inline(always)]
    fn quotient(self, x: f32, scale: f32) -> f32 {
        let v = x / scale * (1.0 / self.step);
        let v = if v < self.low { self.low } else { v };
        if v > self.high { self.high } else { v }
    }

    /// The code of `x`; of NaN, 0.
    #[inline(always)]
    pub(crate) fn code(self, x: f32, scale: f32) -> i32 {
        let v = self.quotient(x, scale);
        let v = if v.is_nan() { 0.0 } else { v };
        (v + ROUNDING).to_bits() as i32 - ROUNDING.to_bits() as i32
    }

    #[inline(always)]
    fn back(self, x: f32, scale: f32) -> f32 {
        scale * (((self.quotient(x, scale) + ROUNDING) - ROUNDING) * self.step)
    }

    /// `Σ w · (x - scale · level)²`, with the products as they will be: infinite where one is. At scale 0 all are 0.
    pub(crate) fn error(self, x: Weighted, scale: f32) -> f64 {
        if scale == 0.0 {
            return x.squares();
        }
        squared_error(x, |values| values.map(|x| self.back(x, scale)))
    }
}

impl Listed {
    /// The index of the level nearest to `v`.
    #[inline(always)]
    fn index(&self, v: f32) -> usize {
        self.last.partition_point(|&last| v > last)
    }

    #[inline(always)]
    fn indices(&self, v: [f32; LANES]) -> [u32; LANES] {
        let mut codes = [0; LANES];
        if self.last.len() > FEW {
            return v.map(|v| self.index(v) as u32);
        }
        for &last in &self.last {
            for i in 0..LANES {
                codes[i] += u32::from(v[i] > last);
            }
        }
        codes
    }

    /// The codes of `x / scale`.
    pub(crate) fn encode(&self, x: &[f32], scale: f32, codes: &mut [u16]) {
        let (blocks, rest) = x.as_chunks::<LANES>();
        let (coded, coded_rest) = codes.as_chunks_mut::<LANES>();
        let zero = self.codes[self.index(0.0)];
        let code = |v: f32, index: u32| match self.negative_zero {
            _ if v.is_nan() => zero,
            Some((zero, code)) if index == zero && v.is_sign_negative() => code,
            _ => self.codes[index as usize],
        };
        for (x, codes) in blocks.iter().zip(coded) {
            let v = x.map(|x| x / scale);
            let found = self.indices(v);
            for i in 0..LANES {
                codes[i] = code(v[i], found[i]);
            }
        }
        for (x, coded) in rest.iter().zip(coded_rest) {
            *coded = code(*x / scale, self.index(*x / scale) as u32);
        }
    }
}

impl Nearest {
    pub(crate) fn of(alphabet: &Alphabet) -> Self {
        if let Alphabet::Fixed { bits, step, narrow } = alphabet {
            let half = 1i32 << (bits - 1);
            return Nearest::Even(Even { step: *step, ..Even::integers(i32::from(*narrow) - half, half - 1) });
        }
        let levels = alphabet.levels();
        let last = |pair: &[f32]| {
            let midpoint = 0.5 * (f64::from(pair[0]) + f64::from(pair[1]));
            let near = midpoint as f32;
            let near = if f64::from(near) > midpoint { near.next_down() } else { near };
            // A tie may go to the upper level.
            if alphabet.value(alphabet.code(near)) > pair[0] { near.next_down() } else { near }
        };
        let last = levels.windows(2).map(last).collect();
        let codes = levels.iter().map(|&level| alphabet.code(level) as u16).collect();
        let zero = levels.iter().position(|&level| level == 0.0).filter(|_| matches!(alphabet, Alphabet::Float(_)));
        let negative_zero = zero.map(|zero| (zero as u32, alphabet.code(-0.0) as u16));
        Nearest::Listed(Listed { last, codes, negative_zero, levels })
    }

    /// As [`Even::error`].
    pub(crate) fn error(&self, x: Weighted, scale: f32) -> f64 {
        match self {
            Nearest::Even(even) => even.error(x, scale),
            Nearest::Listed(_) if scale == 0.0 => x.squares(),
            Nearest::Listed(listed) => squared_error(x, |values| {
                let codes = listed.indices(values.map(|x| x / scale));
                codes.map(|code| scale * listed.levels[code as usize])
            }),
        }
    }
}

/// `Σ w · (x - back(x))²`, in eight sums.
#[inline(always)]
fn squared_error(x: Weighted, back: impl Fn([f32; LANES]) -> [f32; LANES]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let mut add = |values: [f32; LANES], weights: Option<[f32; LANES]>| {
        let nearest = back(values);
        for i in 0..LANES {
            let off = f64::from(values[i]) - f64::from(nearest[i]);
            sums[i] += weights.map_or(off * off, |weights| f64::from(weights[i]) * off * off);
        }
    };
    let (blocks, rest) = x.values.as_chunks::<LANES>();
    let (weights, weights_rest) = x.weights.as_chunks::<LANES>();
    if weights.is_empty() {
        blocks.iter().for_each(|values| add(*values, None));
    } else {
        blocks.iter().zip(weights).for_each(|(values, weights)| add(*values, Some(*weights)));
    }
    if let Some(&first) = rest.first() {
        let mut values = [first; LANES];
        values[..rest.len()].copy_from_slice(rest);
        let nearest = back(values);
        for i in 0..rest.len() {
            let off = f64::from(values[i]) - f64::from(nearest[i]);
            sums[i] += weights_rest.get(i).map_or(1.0, |&w| f64::from(w)) * off * off;
        }
    }
    sums.iter().sum()
}
