//! The tiles: some rows times one panel of columns, group after group.

use super::dot::SignedDot;
use super::layout::{LANE, Layout, VECTORS};
use super::weights::{Decoding, ScaleKind};
use crate::kernels::dequantize::FloatStage;
use crate::kernels::output::{Place, Store};
use crate::kernels::simd::Simd;
use crate::kernels::tile::unroll;

/// Where a panel's groups lie and how they are read.
#[derive(Clone, Copy)]
pub struct Groups<'a> {
    /// The panel's first group: scales, then codes.
    pub blocks: *const u8,
    /// The zero points of the panel's first group, or null.
    pub zero_points: *const u8,
    pub count: usize,
    /// Steps of every group but the last, and of the last.
    pub steps: [usize; 2],
    /// Elements along k of every group but the last, and of the last.
    pub elements: [usize; 2],
    /// Bytes of a group's scales.
    pub header: usize,
    pub scales: ScaleKind,
    pub decoding: &'a Decoding,
}

/// What becomes of a tile's sums.
#[derive(Clone, Copy)]
pub struct Sink<'a> {
    pub store: FloatStage<'a>,
    pub place: Place,
    pub dst: *mut f32,
    pub dst_stride: usize,
}

/// The arguments of one tile.
pub struct Tile<'a, L> {
    /// The first row's activations, those of the next one `lhs_stride` elements on.
    pub lhs: *const L,
    pub lhs_stride: usize,
    /// What the sums of each group start from, `[row][group]`: the activations' sum times -1 or the one zero point's negative.
    pub terms: *const i32,
    /// What sums are multiplied with: each row's, or where `by_group` those of each of its groups, `[row][group]`.
    pub row_scales: *const f32,
    /// The negative zero points of those scales' codes, which are whole numbers.
    pub negated_zero_points: *const f32,
    pub by_group: bool,
    /// The sum of each column's weights; not read where `by_group`.
    pub col_sums: *const f32,
    pub groups: Groups<'a>,
    pub sink: Sink<'a>,
}

/// A register of integers for each row and vector.
type Sums<S, const MR: usize> = [[<S as Simd>::I32; VECTORS]; MR];

/// A register of floats for each row and vector.
type Totals<S, const MR: usize> = [[<S as Simd>::F32; VECTORS]; MR];

/// The scale of a vector of columns.
///
/// # Safety
/// `LANES` scales are at `at`.
#[inline(always)]
unsafe fn scale<S: Simd>(simd: S, kind: ScaleKind, at: *const u8, vector: usize) -> S::F32 {
    // SAFETY: the caller's promise; no load asks for alignment.
    unsafe {
        match kind {
            ScaleKind::F32 => simd.load_f32(at.cast::<f32>().add(vector * S::LANES), S::LANES),
            ScaleKind::F16 => simd.load_f16(at.cast::<u16>().add(vector * S::LANES)),
            ScaleKind::Bf16 => {
                let bits = simd.load_halves(at.cast::<u16>().add(vector * S::LANES));
                simd.f32_of_bits(simd.shift_left_i32(bits, 16))
            }
        }
    }
}

/// Integer sums of each group, scaled and added in f32.
///
/// Zero points of activations meet the sums of weights: those of columns are kept ([`PackedLowBit::col_sums`]); those of groups, as many
/// bytes as a quarter of the weights, are found in each tile by one more product, with ones.
///
/// [`PackedLowBit::col_sums`]: super::weights::PackedLowBit::col_sums
///
/// Codes are unpacked for each tile of rows. Unpacking a panel's codes once for a hundred rows, into half of a first-level cache, was
/// 10 to 15 % slower on Zen 4: shifting and masking take no time from the multipliers, and twice the loads do.
///
/// # Safety
/// - `tile.by_group` is `GROUPED`;
/// - each of `MR` rows has its activations for every step of every group, a term for each group, and a scale and a zero point, or where `GROUPED`
///   one of each for each group; where not, there are col_sums for [`VECTORS`] vectors;
/// - the groups' bytes and zero points lie in memory as [`Layout`] says;
/// - the stage fits the place, which has at most [`VECTORS`] vectors; `dst` is writable for them in `MR` rows.
#[inline(always)]
pub unsafe fn integers<S: Simd, const BITS: usize, const LOOKUP: bool, const GROUPED: bool, const MR: usize>(simd: S, tile: &Tile<'_, i8>) {
    let groups = tile.groups;
    let decode = Decode::<S, BITS, LOOKUP>::new(simd, groups.decoding);
    let (mut block, mut zeros) = (groups.blocks, groups.zero_points);
    let mut acc: Totals<S, MR> = [[simd.splat_f32(0.0); VECTORS]; MR];
    let (words, parts) = (Layout::words(BITS) * VECTORS * S::LANES * LANE, Layout::parts(BITS) * LANE);
    let mut at = 0;
    for g in 0..groups.count {
        let steps = groups.steps[usize::from(g + 1 == groups.count)];
        // SAFETY: the caller's promise on terms, scales, activations and groups.
        unsafe {
            let (mut sums, mut columns) = starts::<S, GROUPED, MR>(simd, tile, g, steps * parts, &mut zeros);
            // One or two rows have so few sums that each would wait for its last step.
            let mut others = [[simd.splat_i32(0); VECTORS]; MR];
            let codes = block.add(groups.header);
            let lhs = (tile.lhs.add(at), tile.lhs_stride);
            if BITS == 4 && steps == COMMON {
                // Without a branch that is foreseen wrongly once for each group.
                unroll!(I < COMMON, {
                    let at = (lhs.0.add(I * parts), lhs.1);
                    decode.step::<GROUPED, MR>(simd, at, codes.add(I * words), &mut sums, &mut others, &mut columns);
                });
            } else {
                for i in 0..steps {
                    let at = (lhs.0.add(i * parts), lhs.1);
                    decode.step::<GROUPED, MR>(simd, at, codes.add(i * words), &mut sums, &mut others, &mut columns);
                }
            }
            at += steps * parts;
            if MR <= 2 {
                for m in 0..MR {
                    for v in 0..VECTORS {
                        sums[m][v] = simd.add_i32(sums[m][v], others[m][v]);
                    }
                }
            }
            for v in 0..VECTORS {
                let scale = scale(simd, groups.scales, block, v);
                if GROUPED {
                    let column = simd.to_f32(columns[v]);
                    for m in 0..MR {
                        let at = m * groups.count + g;
                        let (row, shift) = (simd.splat_f32(*tile.row_scales.add(at)), simd.splat_f32(*tile.negated_zero_points.add(at)));
                        let sum = simd.add_f32(simd.to_f32(sums[m][v]), simd.mul_f32(column, shift));
                        acc[m][v] = simd.add_f32(acc[m][v], simd.mul_f32(sum, simd.mul_f32(scale, row)));
                    }
                    continue;
                }
                for m in 0..MR {
                    acc[m][v] = simd.add_f32(acc[m][v], simd.mul_f32(simd.to_f32(sums[m][v]), scale));
                }
            }
            block = codes.add(steps * words);
        }
    }
    if !GROUPED {
        // SAFETY: the caller's promise.
        unsafe {
            let mut col_sums = [simd.splat_f32(0.0); VECTORS];
            for v in 0..VECTORS {
                col_sums[v] = simd.load_f32(tile.col_sums.add(v * S::LANES), S::LANES);
            }
            for m in 0..MR {
                let (scale, shift) = (simd.splat_f32(*tile.row_scales.add(m)), simd.splat_f32(*tile.negated_zero_points.add(m)));
                for v in 0..VECTORS {
                    acc[m][v] = simd.mul_f32(simd.add_f32(acc[m][v], simd.mul_f32(col_sums[v], shift)), scale);
                }
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { finish::<S>(simd, &tile.sink, acc.as_flattened()) }
}

/// Steps of the most common group, 32 weights of 4 bits.
const COMMON: usize = 4;

/// What makes operands of packed codes.
#[derive(Clone, Copy)]
struct Decode<S: Simd, const BITS: usize, const LOOKUP: bool> {
    mask: S::I32,
    ones: S::I32,
    table: S::I32,
}

impl<S: Simd, const BITS: usize, const LOOKUP: bool> Decode<S, BITS, LOOKUP> {
    #[inline(always)]
    fn new(simd: S, decoding: &Decoding) -> Self {
        let integers: [i32; 4] = bytemuck::cast(decoding.bytes);
        let lanes: [i32; 16] = std::array::from_fn(|i| integers[i % 4]);
        // SAFETY: no instruction set has more than sixteen lanes.
        let table = unsafe { simd.load_i32(lanes.as_ptr(), S::LANES) };
        let mask = simd.splat_i32(if BITS == 4 { 0x0f0f_0f0f } else { 0x0303_0303 });
        Decode { mask, ones: simd.splat_i32(0x0101_0101), table }
    }

    /// The unsigned bytes of four codes a lane, part `part` of a step whose words are `x`.
    #[inline(always)]
    fn part(self, simd: S, x: &[S::I32; 3], part: usize) -> S::I32 {
        let codes = match BITS {
            8 => x[0],
            3 => {
                let low = simd.and_i32(simd.shift_right_i32(x[part / 4], 2 * (part % 4) as u32), self.mask);
                let high = simd.and_i32(simd.shift_right_i32(x[2], part as u32), self.ones);
                simd.or_i32(low, simd.shift_left_i32(high, 2))
            }
            _ => simd.and_i32(simd.shift_right_i32(x[0], (BITS * part) as u32), self.mask),
        };
        if LOOKUP { simd.shuffle_bytes(self.table, codes) } else { codes }
    }

    /// One step of k.
    ///
    /// # Safety
    /// The rows have their activations at `lhs`, and a step's codes are at `codes`.
    #[inline(always)]
    unsafe fn step<const GROUPED: bool, const MR: usize>(
        self,
        simd: S,
        (lhs, stride): (*const i8, usize),
        codes: *const u8,
        sums: &mut Sums<S, MR>,
        others: &mut Sums<S, MR>,
        columns: &mut [S::I32; VECTORS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = words::<S, BITS>(simd, codes);
            unroll!(P < Layout::parts(BITS), {
                let w = [self.part(simd, &x[0], P), self.part(simd, &x[1], P)];
                for v in 0..if GROUPED { VECTORS } else { 0 } {
                    columns[v] = S::Int8::signed_dot::<true>(simd, columns[v], w[v], self.ones);
                }
                for m in 0..MR {
                    let word = simd.splat_i32(lhs.add(m * stride + P * LANE).cast::<i32>().read_unaligned());
                    let sums = if MR <= 2 && P % 2 == 1 { &mut others[m] } else { &mut sums[m] };
                    for v in 0..VECTORS {
                        sums[v] = if LOOKUP || BITS == 8 {
                            S::Int8::signed_dot::<true>(simd, sums[v], w[v], word)
                        } else {
                            S::Int8::signed_dot::<false>(simd, sums[v], w[v], word)
                        };
                    }
                }
            });
        }
    }
}

/// The words of a step, of each vector; where a step has but one, the others are not used.
///
/// # Safety
/// A step's codes are at `codes`.
#[inline(always)]
unsafe fn words<S: Simd, const BITS: usize>(simd: S, codes: *const u8) -> [[S::I32; 3]; VECTORS] {
    let mut x = [[simd.splat_i32(0); 3]; VECTORS];
    for (v, x) in x.iter_mut().enumerate() {
        for word in 0..Layout::words(BITS) {
            // SAFETY: the caller's promise.
            x[word] = unsafe { simd.load_i32(codes.cast::<i32>().add((word * VECTORS + v) * S::LANES), S::LANES) };
        }
    }
    x
}

/// What the sums of group `g` start from, and those of its weights over `filled` bytes; `zeros`, the zero points of that group if there
/// are any, moves on to the next.
///
/// # Safety
/// Each of `MR` rows has a term for the group, and its zero points are [`VECTORS`] vectors.
#[inline(always)]
unsafe fn starts<S: Simd, const GROUPED: bool, const MR: usize>(
    simd: S,
    tile: &Tile<'_, i8>,
    g: usize,
    filled: usize,
    zeros: &mut *const u8,
) -> (Sums<S, MR>, [S::I32; VECTORS]) {
    let mut sums = [[simd.splat_i32(0); VECTORS]; MR];
    let elements = tile.groups.elements[usize::from(g + 1 == tile.groups.count)];
    let mut columns = [simd.splat_i32(0); VECTORS];
    if GROUPED {
        let decoding = tile.groups.decoding;
        // Where a group is filled up, code 0 stands.
        let extra = i32::from(decoding.bytes[0]) * (filled - elements) as i32;
        columns = [simd.splat_i32(-(decoding.zero_point * elements as i32 + extra)); VECTORS];
    }
    // SAFETY: the caller's promise.
    unsafe {
        for m in 0..MR {
            sums[m] = [simd.splat_i32(*tile.terms.add(m * tile.groups.count + g)); VECTORS];
        }
        if !zeros.is_null() {
            for v in 0..VECTORS {
                let zero = simd.load_bytes(zeros.add(v * S::LANES), S::LANES);
                for m in 0..MR {
                    sums[m][v] = simd.mul_i32(sums[m][v], zero);
                }
                if GROUPED {
                    columns[v] = simd.mul_i32(zero, simd.splat_i32(-(elements as i32)));
                }
            }
            *zeros = zeros.add(VECTORS * S::LANES);
        }
    }
    (sums, columns)
}

/// Float sums of each group, scaled and added.
///
/// Each has two parts, of even and of odd steps along k: with one row, a single sum would wait for its last addition.
///
/// # Safety
/// As for [`integers`], but for terms and what rows have, which are not read.
#[inline(always)]
pub unsafe fn floats<S: Simd, const BITS: usize, const MR: usize>(simd: S, tile: &Tile<'_, f32>) {
    let groups = tile.groups;
    let (mut block, mut zeros) = (groups.blocks, groups.zero_points);
    let none = simd.splat_f32(0.0);
    let mut acc: Totals<S, MR> = [[none; VECTORS]; MR];
    let mut at = 0;
    for g in 0..groups.count {
        let steps = groups.steps[usize::from(g + 1 == groups.count)];
        // SAFETY: the caller's promise on activations and groups.
        unsafe {
            let mut shift = [simd.splat_f32(groups.decoding.shift); VECTORS];
            if !zeros.is_null() {
                for v in 0..VECTORS {
                    let zero = simd.to_f32(simd.load_bytes(zeros.add(v * S::LANES), S::LANES));
                    shift[v] = simd.mul_f32(zero, simd.splat_f32(-1.0));
                }
                zeros = zeros.add(VECTORS * S::LANES);
            }
            let mut sums = [[[none; VECTORS]; MR]; 2];
            let mut codes = block.add(groups.header);
            for _ in 0..steps {
                let x = words::<S, BITS>(simd, codes);
                unroll!(P < Layout::parts(BITS), {
                    unroll!(I < LANE, {
                        let mut w =
                            [level::<S, BITS>(simd, groups.decoding, &x[0], P, I), level::<S, BITS>(simd, groups.decoding, &x[1], P, I)];
                        if BITS == 8 || !groups.zero_points.is_null() {
                            w = [simd.add_f32(w[0], shift[0]), simd.add_f32(w[1], shift[1])];
                        }
                        for m in 0..MR {
                            let word = simd.splat_f32(*tile.lhs.add(m * tile.lhs_stride + at + P * LANE + I));
                            for v in 0..VECTORS {
                                sums[I % 2][m][v] = simd.mul_add_f32(word, w[v], sums[I % 2][m][v]);
                            }
                        }
                    });
                });
                at += Layout::parts(BITS) * LANE;
                codes = codes.add(Layout::words(BITS) * VECTORS * S::LANES * LANE);
            }
            for v in 0..VECTORS {
                let scale = scale(simd, groups.scales, block, v);
                for m in 0..MR {
                    acc[m][v] = simd.mul_add_f32(simd.add_f32(sums[0][m][v], sums[1][m][v]), scale, acc[m][v]);
                }
            }
            block = codes;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { finish::<S>(simd, &tile.sink, acc.as_flattened()) }
}

/// The table's entry for code `byte` of part `part` in each lane; of 8 bits the code itself. An index may have other bits above it, as
/// tables of fewer than sixteen entries are repeated.
#[inline(always)]
fn level<S: Simd, const BITS: usize>(simd: S, decoding: &Decoding, x: &[S::I32; 3], part: usize, byte: usize) -> S::F32 {
    let (part, byte) = (part as u32, 8 * byte as u32);
    match BITS {
        8 => simd.to_f32(simd.and_i32(simd.shift_right_i32(x[0], byte), simd.splat_i32(0xff))),
        3 => {
            let low = simd.and_i32(simd.shift_right_i32(x[part as usize / 4], byte + 2 * (part % 4)), simd.splat_i32(3));
            let high = simd.and_i32(simd.shift_right_i32(x[2], byte + part), simd.splat_i32(1));
            simd.lookup_f32(&decoding.floats, simd.or_i32(low, simd.shift_left_i32(high, 2)))
        }
        _ => simd.lookup_f32(&decoding.floats, simd.shift_right_i32(x[0], byte + BITS as u32 * part)),
    }
}

/// Hands the sums, [`VECTORS`] for each row, to the stage: once a tile, so it is compiled once.
///
/// # Safety
/// As for [`integers`].
#[inline(never)]
unsafe fn finish<S: Simd>(simd: S, sink: &Sink<'_>, acc: &[S::F32]) {
    simd.vectorize(
        #[inline(always)]
        // SAFETY: the caller's promise on the stage and `dst`; a place of one vector has no second one to write.
        || unsafe { if sink.place.columns > S::LANES { write::<S, 2>(simd, sink, acc) } else { write::<S, 1>(simd, sink, acc) } },
    )
}

/// # Safety
/// As for [`integers`], where the place has `NV` vectors.
#[inline(always)]
unsafe fn write<S: Simd, const NV: usize>(simd: S, sink: &Sink<'_>, acc: &[S::F32]) {
    let Sink { store, place, dst, dst_stride } = *sink;
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [Store::<S, S::F32>::columns(store, simd, place.column, place.lanes::<S>(0)); NV];
        for v in 1..NV {
            columns[v] = Store::<S, S::F32>::columns(store, simd, place.column + v * S::LANES, place.lanes::<S>(v));
        }
        for (m, acc) in acc.chunks_exact(VECTORS).enumerate() {
            let (row, dst) = (place.row + m, dst.add(m * dst_stride));
            let mut x = [acc[0]; NV];
            // Not `copy_from_slice`, which would be a call.
            #[allow(clippy::manual_memcpy)]
            for v in 1..NV {
                x[v] = acc[v];
            }
            store.store(simd, &columns, [row], [x], Place { row, ..place }, dst, dst_stride);
        }
    }
}
