//! The three linear maps of a convolution of 3 x 3 by fewer products, in whole numbers.
//!
//! A tile of 4 x 4 outputs depends on 6 x 6 activations. Both polynomials, activations and kernel, are evaluated at the points 0, 1, -1, 2,
//! -2 and infinity of each axis, multiplied there, 36 products instead of 144, and brought back (Winograd 1980; Lavin and Gray 2015, "Fast
//! algorithms for convolutional neural networks", F(4x4, 3x3)). The usual maps have fractions in that of the kernel; here each of its rows
//! is multiplied by what makes it whole, and the map of the outputs bears the rest: along one axis the outputs come out 24-fold.
//!
//! Two outputs along an axis need four of the points, 0, 1, -1 and infinity, and come out 6-fold, from the same kernel.

use super::pairs::Pairs;
use super::simd::Simd;

/// Points of an axis.
pub const SIDE: usize = 6;

/// Products of a tile.
pub const POINTS: usize = SIDE * SIDE;

/// Whether a point is one of the four that two outputs along an axis need.
pub const fn is_shared(point: usize) -> bool {
    point < 3 || point == 5
}

/// Pixels of a tile along an axis.
pub const fn outputs(half: bool) -> usize {
    if half { 2 } else { 4 }
}

/// Six activations along an axis, or four, at the points; what is not needed is left as it was.
///
/// Of codes up to 255, both axes done, none is above 68 * 255, which fits 16 bits: no row's positive coefficients, and no row's negative
/// ones, sum up to more than 8, and those of products to no more than 8 * 8 + 2 * 2.
#[inline(always)]
pub fn activations<S: Simd, P: Pairs<S>, const HALF: bool>(simd: S, d: [P::Numbers; SIDE]) -> [P::Numbers; SIDE] {
    if HALF {
        return [
            P::sub_numbers(simd, d[0], d[2]),
            P::add_numbers(simd, d[1], d[2]),
            P::sub_numbers(simd, d[2], d[1]),
            d[3],
            d[4],
            P::sub_numbers(simd, d[3], d[1]),
        ];
    }
    let even = P::sub_numbers(simd, d[4], P::quadruple(simd, d[2]));
    let odd = P::sub_numbers(simd, d[3], P::quadruple(simd, d[1]));
    let (far_even, far_odd) = (P::sub_numbers(simd, d[4], d[2]), P::sub_numbers(simd, d[3], d[1]));
    let twice = P::add_numbers(simd, far_odd, far_odd);
    [
        P::add_numbers(simd, far_even, P::quadruple(simd, P::sub_numbers(simd, d[0], d[2]))),
        P::add_numbers(simd, even, odd),
        P::sub_numbers(simd, even, odd),
        P::add_numbers(simd, far_even, twice),
        P::sub_numbers(simd, far_even, twice),
        P::sub_numbers(simd, P::sub_numbers(simd, d[5], d[3]), P::quadruple(simd, far_odd)),
    ]
}

/// Three weights along an axis at the points, three times as large at 0 and infinity: up to 7 times the largest, of both axes 49 times.
#[inline(always)]
pub fn weights<S: Simd, P: Pairs<S>>(simd: S, [a, b, c]: [P::Numbers; 3]) -> [P::Numbers; SIDE] {
    let (near, far, twice) = (P::add_numbers(simd, a, c), P::add_numbers(simd, a, P::quadruple(simd, c)), P::add_numbers(simd, b, b));
    [
        P::add_numbers(simd, a, P::add_numbers(simd, a, a)),
        P::add_numbers(simd, near, b),
        P::sub_numbers(simd, near, b),
        P::add_numbers(simd, far, twice),
        P::sub_numbers(simd, far, twice),
        P::add_numbers(simd, c, P::add_numbers(simd, c, c)),
    ]
}

/// The outputs along an axis, four or two, from the products at its points: [`FOLD`] times as large, shifted up by [`shifts`].
#[inline(always)]
pub fn sums<S: Simd, P: Pairs<S>, const HALF: bool>(simd: S, m: [S::I32; SIDE]) -> [S::I32; 4] {
    if HALF {
        let (near_even, near_odd) = (simd.add_i32(m[1], m[2]), P::sub_i32(simd, m[1], m[2]));
        let (first, last) = (simd.add_i32(m[0], near_even), simd.add_i32(m[5], near_odd));
        let (first, last) = (simd.add_i32(first, simd.add_i32(first, near_even)), simd.add_i32(last, simd.add_i32(last, near_odd)));
        return [first, last, m[0], m[0]];
    }
    let (even, odd) = (sums_of_half::<S, P, 0>(simd, m), sums_of_half::<S, P, 1>(simd, m));
    [even[0], odd[0], even[1], odd[1]]
}

/// Outputs `FIRST` and `FIRST + 2` of the four that [`sums`] makes: the even ones and the odd ones share nothing.
#[inline(always)]
pub fn sums_of_half<S: Simd, P: Pairs<S>, const FIRST: usize>(simd: S, m: [S::I32; SIDE]) -> [S::I32; 2] {
    if FIRST == 0 {
        let (near, far) = (simd.add_i32(m[1], m[2]), simd.add_i32(m[3], m[4]));
        let first = P::sub_i32(simd, m[0], simd.add_i32(near, near));
        return [simd.add_i32(simd.add_i32(first, first), far), P::sub_i32(simd, far, near)];
    }
    let (near, far) = (P::sub_i32(simd, m[1], m[2]), P::sub_i32(simd, m[3], m[4]));
    let last = simd.add_i32(far, m[5]);
    [P::sub_i32(simd, far, simd.add_i32(near, near)), P::sub_i32(simd, simd.add_i32(last, last), near)]
}

/// By how many bits the outputs of [`sums`] are shifted up.
pub const fn shifts(half: bool) -> [u32; 4] {
    if half { [1, 1, 0, 0] } else { [3, 2, 1, 1] }
}

/// How many times as large the outputs of both axes are, beside what they are shifted up by: 3 for each.
const FOLD: i32 = 9;

/// What takes [`FOLD`] away in i32 that wraps: `FOLD * UNFOLD` is 1 modulo 2^32.
pub const UNFOLD: i32 = 954437177;

const _: () = assert!(FOLD.wrapping_mul(UNFOLD) == 1);

/// Sums from `-SUM_LIMIT` to below it come back whole: shifted up by 6 bits, which is the most, they still fit i32.
pub const SUM_LIMIT: i64 = 1 << 25;
