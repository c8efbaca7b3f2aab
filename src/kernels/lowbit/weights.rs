//! Weights of few bits: what the caller has, and its packed form.

use std::sync::OnceLock;

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::kernels::isa::{Isa, Visitor};
use crate::kernels::memory::Aligned;
use crate::kernels::simd::Simd;
use crate::num::{bf16, f16, round_clamped};

/// What codes stand for, before the scale of their group.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Levels<'a> {
    /// The code as a number in two's complement.
    Signed,
    /// `code - zero_point`, one zero point for all: of codes that are symmetric around it, half of their number.
    ZeroPoint(u8),
    /// `code - zero_points[n][g]`, `[n, groups]`.
    ZeroPoints(&'a [u8]),
    /// `table[code]`, `2^bits` entries: up to 4 bits.
    Table(&'a [f32]),
}

/// A scale for each group of each column, `[n, groups]`, in the precision in which it is kept and streamed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum GroupScales<'a> {
    /// 32 bits.
    F32(&'a [f32]),
    /// IEEE 754 binary16.
    F16(&'a [f16]),
    /// The upper half of an f32.
    Bf16(&'a [bf16]),
}

impl GroupScales<'_> {
    /// Number of scales.
    pub fn len(&self) -> usize {
        match self {
            GroupScales::F32(scales) => scales.len(),
            GroupScales::F16(scales) => scales.len(),
            GroupScales::Bf16(scales) => scales.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Scale `index` as an f32, exactly.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            GroupScales::F32(scales) => scales[index],
            GroupScales::F16(scales) => scales[index].to_f32(),
            GroupScales::Bf16(scales) => scales[index].to_f32(),
        }
    }

    fn kind(&self) -> ScaleKind {
        match self {
            GroupScales::F32(_) => ScaleKind::F32,
            GroupScales::F16(_) => ScaleKind::F16,
            GroupScales::Bf16(_) => ScaleKind::Bf16,
        }
    }

    fn write(&self, index: usize, to: &mut [u8]) {
        match self {
            GroupScales::F32(scales) => to[..4].copy_from_slice(&scales[index].to_ne_bytes()),
            GroupScales::F16(scales) => to[..2].copy_from_slice(&scales[index].to_bits().to_ne_bytes()),
            GroupScales::Bf16(scales) => to[..2].copy_from_slice(&scales[index].to_bits().to_ne_bytes()),
        }
    }
}

/// How packed scales are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleKind {
    F32,
    F16,
    Bf16,
}

impl ScaleKind {
    fn bytes(self) -> usize {
        if self == ScaleKind::F32 { 4 } else { 2 }
    }

    fn read(self, from: &[u8]) -> f32 {
        match self {
            ScaleKind::F32 => f32::from_ne_bytes([from[0], from[1], from[2], from[3]]),
            ScaleKind::F16 => f16::from_ne_bytes([from[0], from[1]]).to_f32(),
            ScaleKind::Bf16 => bf16::from_ne_bytes([from[0], from[1]]).to_f32(),
        }
    }
}

/// Weights `[n, k]` of few bits, as the caller has them.
#[derive(Debug, Clone, Copy)]
pub struct LowBit<'a> {
    /// Columns of the product: outputs.
    pub n: usize,
    /// Products in each sum: inputs.
    pub k: usize,
    /// Bits of a code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Weights along k with one scale: a multiple of 4, or k (or more) for one scale for each column. The last group is shorter where
    /// it does not divide k.
    pub group: usize,
    /// `n * k` codes, one row of k after the other without gaps: code `i` takes the bits from `i * bits` on, counted from the lowest bit
    /// of the first byte.
    pub codes: &'a [u8],
    /// What the codes stand for.
    pub levels: Levels<'a>,
    /// `[n, ceil(k / group)]`.
    pub scales: GroupScales<'a>,
}

impl LowBit<'_> {
    /// The group that is kept: no longer than k.
    pub(in crate::kernels) fn group(&self) -> usize {
        self.group.min(self.k).max(1)
    }

    /// Code `index`, of all `n * k`.
    pub(in crate::kernels) fn code(&self, index: usize) -> u8 {
        let (bits, mask) = (self.bits as usize, 0xff >> (8 - self.bits));
        let (byte, shift) = (index * bits / 8, index * bits % 8);
        let low = self.codes[byte] >> shift;
        // Of 3 bits, some codes begin in one byte and end in the next.
        let high = if shift + bits > 8 { self.codes[byte + 1] << (8 - shift) } else { 0 };
        (low | high) & mask
    }

    /// What is added to a code in two's complement to make it unsigned, modulo the codes' number: half of that.
    pub(in crate::kernels) fn flip(&self) -> u8 {
        if self.levels == Levels::Signed { 1 << (self.bits - 1) } else { 0 }
    }

    fn check(&self) -> Result<()> {
        let LowBit { n, k, bits, group, codes, levels, scales } = *self;
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return Err(Error::parameter("bits of a code", bits, "must be 2, 3, 4 or 8"));
        }
        let count = n.checked_mul(k).filter(|count| *count <= usize::MAX / 64 && n <= usize::MAX / 64);
        let count = count.ok_or_else(|| Error::ShapeOverflow { shape: vec![n, k] })?;
        if group == 0 || (group < k && !group.is_multiple_of(4)) {
            return Err(Error::parameter("group size", group, format!("a multiple of 4, or k = {k} for one scale for each column")));
        }
        if self.group() > PackedLowBit::GROUP_MAX {
            return Err(Error::Accumulator { k: self.group(), limit: PackedLowBit::GROUP_MAX });
        }
        let bytes = stored(count, bits);
        if codes.len() != bytes {
            return Err(Error::length(format!("bytes of {n} x {k} codes of {bits} bits"), bytes, codes.len()));
        }
        let groups = n * k.div_ceil(self.group());
        if scales.len() != groups {
            return Err(Error::length("group scales", groups, scales.len()));
        }
        if let Some(i) = (0..groups).find(|&i| !scales.get(i).is_finite()) {
            return Err(Error::parameter("group scale", scales.get(i), format!("finite, and this is number {i} of {groups}")));
        }
        let largest = 0xff >> (8 - bits);
        let code = |index: usize, value: u8| Error::ZeroPoint { index, value: value.into(), qmin: 0, qmax: largest.into() };
        match levels {
            Levels::ZeroPoint(zero) if zero > largest => Err(code(0, zero)),
            Levels::Signed | Levels::ZeroPoint(_) => Ok(()),
            Levels::ZeroPoints(zeros) if zeros.len() != groups => Err(Error::length("group zero points", groups, zeros.len())),
            Levels::ZeroPoints(zeros) => match zeros.iter().position(|&zero| zero > largest) {
                Some(index) => Err(code(index, zeros[index])),
                None => Ok(()),
            },
            Levels::Table(_) if bits > 4 => Err(Error::parameter("bits of codes with a table", bits, "must be 2, 3 or 4")),
            Levels::Table(table) if table.len() != 1 << bits => Err(Error::length("table of levels", 1 << bits, table.len())),
            Levels::Table(table) => match table.iter().find(|x| !x.is_finite()) {
                Some(x) => Err(Error::parameter("table entry", x, "finite")),
                None => Ok(()),
            },
        }
    }
}

/// Bytes of `count` codes.
fn stored(count: usize, bits: u32) -> usize {
    // In u128, as 8 bits of the largest count are more than a usize has.
    (count as u128 * u128::from(bits)).div_ceil(8) as usize
}

/// The entries of a table as signed bytes, and their unit: `round(x / unit)` with `unit = max |x| / 127`, or 1 for a table of zeros.
fn table_codes(table: &[f32]) -> (Vec<i32>, f32) {
    let unit = table.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
    let unit = if unit > 0.0 { unit } else { 1.0 };
    (table.iter().map(|x| round_clamped(x / unit, -127, 127)).collect(), unit)
}

/// What the tiles make of codes.
#[derive(Debug, Clone, Copy)]
pub struct Decoding {
    /// For each code the unsigned byte that is multiplied: the code itself, or its entry plus 128.
    pub bytes: [u8; 16],
    /// Whether `bytes` says other than the code itself.
    pub looked_up: bool,
    /// What is subtracted from those bytes, where groups have no zero points of their own.
    pub zero_point: i32,
    /// What the integer sums are in units of, beside the scales.
    pub unit: f32,
    /// For each code of up to 4 bits its level in f32, less the zero point of its group where that has one; repeated where there are fewer.
    pub floats: [f32; 16],
    /// What makes a level of a code of 8 bits, where groups have no zero points of their own.
    pub shift: f32,
}

impl Decoding {
    fn of(weights: &LowBit<'_>) -> Self {
        let mask = 0xff >> (8 - weights.bits);
        let index = |i: usize| i & mask;
        let uniform = |zero_point: u8| Decoding {
            bytes: std::array::from_fn(|i| index(i) as u8),
            looked_up: false,
            zero_point: zero_point.into(),
            unit: 1.0,
            floats: std::array::from_fn(|i| index(i) as f32 - f32::from(zero_point)),
            shift: -f32::from(zero_point),
        };
        match weights.levels {
            Levels::Signed => uniform(weights.flip()),
            Levels::ZeroPoint(zero) => uniform(zero),
            Levels::ZeroPoints(_) => uniform(0),
            Levels::Table(table) => {
                let (codes, unit) = table_codes(table);
                let bytes = std::array::from_fn(|i| (codes[index(i)] + 128) as u8);
                let floats = std::array::from_fn(|i| table[index(i)]);
                Decoding { bytes, looked_up: true, zero_point: 128, unit, floats, shift: 0.0 }
            }
        }
    }
}

/// Weights of 2, 3, 4 or 8 bits of a product, packed for one instruction set: the codes stay at their bits, and each group's scale stands
/// beside them.
///
/// The packed form is a cache: it differs between processors and is never saved. Columns are filled up to whole panels, groups to
/// whole steps of codes (4 of 8 bits, 8 of 4, 32 of 3, 16 of 2), a group's scales to whole vectors.
///
/// ```
/// use lowprec::kernels::{FloatEpilogue, GroupScales, Levels, LowBit, Matrix, MatrixMut, PackedLowBit, Workspace, gemm_low_bit_f32};
///
/// // Two columns over four inputs: [1, -2, 3, -4] * 0.5 and [7, 0, 0, -8] * 0.25.
/// let (codes, scales) = ([0xe1, 0xc3, 0x07, 0x80], [0.5f32, 0.25]);
/// let (levels, scales) = (Levels::Signed, GroupScales::F32(&scales));
/// let packed = PackedLowBit::pack(&LowBit { n: 2, k: 4, bits: 4, group: 4, codes: &codes, levels, scales })?;
/// let mut y = [0f32; 2];
/// let (lhs, dst) = (Matrix::new(&[1.0, 1.0, 0.0, 2.0], 1, 4)?, MatrixMut::new(&mut y, 1, 2)?);
/// gemm_low_bit_f32(lhs, &packed, &FloatEpilogue::new(), dst, &mut Workspace::new(), 1)?;
/// assert_eq!(y, [0.5 * (1.0 - 2.0 - 8.0), 0.25 * (7.0 - 16.0)]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PackedLowBit {
    isa: Isa,
    layout: Layout,
    blocks: Aligned,
    /// One for each group, where there are any.
    zero_points: Option<Aligned>,
    scales: ScaleKind,
    decoding: Decoding,
    /// What makes codes of those stored, see [`LowBit::flip`].
    flip: u8,
    /// The sum of each column's weights, in whole panels, from the first product on that needs it.
    col_sums: OnceLock<Vec<f32>>,
}

impl PackedLowBit {
    /// Most weights along k with one scale: their sums always fit i32, as `66048 * 255 * 127 < 2^31`.
    pub const GROUP_MAX: usize = 65536;

    /// For the fastest instruction set of this processor, [`Isa::best`].
    ///
    /// # Errors
    /// As [`PackedLowBit::pack_for`].
    pub fn pack(weights: &LowBit<'_>) -> Result<Self> {
        Self::pack_for(Isa::best(), weights)
    }

    /// For the instruction set `isa`.
    ///
    /// # Errors
    /// [`Error::Isa`] when this processor lacks it; [`Error::Length`] for codes, scales, zero points or a table of another length than
    /// the shape needs; [`Error::Parameter`] for other bits, for a group that is neither a multiple of 4 nor the whole of k, and for
    /// scales or table entries that are not finite; [`Error::ZeroPoint`] for one that is no code; [`Error::Accumulator`] for groups above
    /// 65536.
    pub fn pack_for(isa: Isa, weights: &LowBit<'_>) -> Result<Self> {
        let isa = isa.checked()?;
        weights.check()?;
        let LowBit { n, k, bits, levels, scales, .. } = *weights;
        let kind = scales.kind();
        let layout = Layout { n, k, group: weights.group(), bits: bits as usize, lanes: isa.visit(Lanes), scale_bytes: kind.bytes() };
        let mut blocks = Aligned::zeroed::<u8>(layout.bytes());
        let bytes = blocks.grow::<u8>(layout.bytes());
        let (groups, flip) = (layout.groups(), weights.flip());
        for column in 0..n {
            let (panel, lane) = layout.place(column);
            for g in 0..groups {
                let block = &mut bytes[layout.block(panel, g)..];
                scales.write(column * groups + g, &mut block[lane * kind.bytes()..]);
                for (i, k_at) in layout.elements(g).enumerate() {
                    layout.put(block, lane, i, weights.code(column * k + k_at) ^ flip);
                }
            }
        }
        let zero_points = match levels {
            Levels::ZeroPoints(zeros) => {
                let mut memory = Aligned::zeroed::<u8>(layout.zero_points());
                let bytes = memory.grow::<u8>(layout.zero_points());
                for (i, &zero) in zeros.iter().enumerate() {
                    let (panel, lane) = layout.place(i / groups);
                    bytes[layout.zero_at(panel, i % groups, lane)] = zero;
                }
                Some(memory)
            }
            _ => None,
        };
        Ok(PackedLowBit {
            isa,
            layout,
            blocks,
            zero_points,
            scales: kind,
            decoding: Decoding::of(weights),
            flip,
            col_sums: OnceLock::new(),
        })
    }

    /// Columns: outputs.
    pub fn n(&self) -> usize {
        self.layout.n
    }

    /// Products in each sum: inputs.
    pub fn k(&self) -> usize {
        self.layout.k
    }

    /// Weights along k with one scale; the last group may be shorter.
    pub fn group(&self) -> usize {
        self.layout.group
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.layout.bits
    }

    /// The instruction set that runs them.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes held; not counted is a cache that the first product of rows with a range each makes, four bytes a column.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.blocks.bytes() + self.zero_points.as_ref().map_or(0, Aligned::bytes)
    }

    /// The codes, `[n, k]`, stored as they were given.
    pub fn codes(&self) -> Vec<u8> {
        let Layout { n, k, bits, .. } = self.layout;
        let bytes = self.blocks.as_slice::<u8>();
        let mut codes = vec![0u8; stored(n * k, bits as u32)];
        for column in 0..n {
            let (panel, lane) = self.layout.place(column);
            for g in 0..self.layout.groups() {
                let block = &bytes[self.layout.block(panel, g)..];
                for (i, k_at) in self.layout.elements(g).enumerate() {
                    let code = self.layout.get(block, lane, i) ^ self.flip;
                    let at = (column * k + k_at) * bits;
                    codes[at / 8] |= code << (at % 8);
                    if at % 8 + bits > 8 {
                        codes[at / 8 + 1] |= code >> (8 - at % 8);
                    }
                }
            }
        }
        codes
    }

    /// The scales, `[n, groups]`.
    pub fn scales(&self) -> Vec<f32> {
        let bytes = self.blocks.as_slice::<u8>();
        let each = |column: usize, g: usize| {
            let (panel, lane) = self.layout.place(column);
            self.scales.read(&bytes[self.layout.block(panel, g) + lane * self.scales.bytes()..])
        };
        (0..self.n()).flat_map(|column| (0..self.layout.groups()).map(move |g| each(column, g))).collect()
    }

    /// The zero points, `[n, groups]`, where each group has its own.
    pub fn zero_points(&self) -> Option<Vec<u8>> {
        let bytes = self.zero_points.as_ref()?.as_slice::<u8>();
        let each = |column: usize, g: usize| {
            let (panel, lane) = self.layout.place(column);
            bytes[self.layout.zero_at(panel, g, lane)]
        };
        Some((0..self.n()).flat_map(|column| (0..self.layout.groups()).map(move |g| each(column, g))).collect())
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn blocks(&self) -> &[u8] {
        self.blocks.as_slice()
    }

    pub(super) fn zero_point_bytes(&self) -> Option<&[u8]> {
        self.zero_points.as_ref().map(Aligned::as_slice)
    }

    pub(super) fn scale_kind(&self) -> ScaleKind {
        self.scales
    }

    /// The sum of each column's weights, in whole panels: made by `make` the first time.
    pub(super) fn col_sums(&self, make: impl FnOnce() -> Vec<f32>) -> &[f32] {
        self.col_sums.get_or_init(make)
    }

    pub(super) fn decoding(&self) -> &Decoding {
        &self.decoding
    }
}

struct Lanes;

impl Visitor for Lanes {
    type Out = usize;
    fn visit<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}
