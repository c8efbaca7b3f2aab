//! Activations on their way into the workspace: converted to what the tile reads, transposed to NHWC, and padded.

use std::cell::RefCell;
use std::ops::Range;

use super::elementwise::ahead;
use super::geometry::{ImageLayout, Padded};
use super::memory::Aligned;
use super::operand::Codes;
use super::simd::{CodeGrid, Element, FRACTION, NEAR, Simd};
use super::threads::{self, Disjoint};

/// Elements below which a second thread costs more than it gives.
pub const GRAIN: usize = 64 * 1024;

/// How one element becomes one in the workspace.
pub trait Convert<L>: Copy + Sync {
    type In: Copy + Sync;
    fn convert(self, x: Self::In) -> L;

    /// [`Convert::convert`] of each element.
    #[inline(always)]
    fn slice<S: Simd>(self, _: S, src: &[Self::In], dst: &mut [L]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d = self.convert(s);
        }
    }
}

/// Unsigned codes as they are.
#[derive(Debug, Clone, Copy)]
pub struct Unsigned;

impl<L: Element> Convert<L> for Unsigned {
    type In = u8;
    #[inline(always)]
    fn convert(self, x: u8) -> L {
        L::from_unsigned(i32::from(x))
    }
}

/// Signed codes, moved up by 128.
#[derive(Debug, Clone, Copy)]
pub struct Signed;

impl<L: Element> Convert<L> for Signed {
    type In = i8;
    #[inline(always)]
    fn convert(self, x: i8) -> L {
        L::from_unsigned(i32::from(x as u8 ^ 0x80))
    }
}

/// Floats as they are.
#[derive(Debug, Clone, Copy)]
pub struct Same;

impl Convert<f32> for Same {
    type In = f32;
    #[inline(always)]
    fn convert(self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn slice<S: Simd>(self, _: S, src: &[f32], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }
}

/// [`num::quantize`](crate::num::quantize) to unsigned codes, in forms that become vectors.
#[derive(Debug, Clone, Copy)]
pub struct Quantizer {
    scale: f32,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
}

impl Quantizer {
    /// Codes within 0..=255, the zero point among them.
    pub fn new(scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> Self {
        debug_assert!(0 <= qmin && qmin <= qmax && qmax <= 255 && (0..=255).contains(&zero_point));
        Quantizer { scale, zero_point, qmin, qmax }
    }

    #[inline(always)]
    pub fn code(self, x: f32) -> i32 {
        let (lo, hi) = ((self.qmin - self.zero_point) as f32, (self.qmax - self.zero_point) as f32);
        let x = x / self.scale;
        let x = if x.is_nan() { 0.0 } else { x };
        let x = if x < lo { lo } else { x };
        let x = if x > hi { hi } else { x };
        // SAFETY: not NaN, and within lo..=hi, which are integers from -255 to 255.
        unsafe { x.round_ties_even().to_int_unchecked::<i32>() + self.zero_point }
    }

    /// [`Quantizer::code`] of each value, for values that are not NaN; where `WITHIN`, of none that is more than a step
    /// above the grid, or below it but by rounding; [`permute`]d where `PERMUTED`.
    ///
    /// Where multiplication and addition fuse, there is no division: `x * (1 / scale) + zero_point + 1/2` in [`FRACTION`]s of a step, whose
    /// whole steps are the code. In these units the reciprocal errs by 1, the sum and its rounding to an integer by 1, and the quotient
    /// of floats, which the code is of, by 1/2. So a value may be on the other side of a tie only where what is left of a step,
    /// with half of [`NEAR`] added, is below that; and with it none is negative. One group of 64 in 128 has such a value, and is divided.
    #[inline(always)]
    pub fn codes<S: Simd, L: Element, const WITHIN: bool, const PERMUTED: bool>(self, simd: S, src: &[f32], dst: &mut [L]) {
        let len = src.len().min(dst.len());
        let mut done = 0;
        if let (Some(flip), true) = (L::BYTE_FLIP, (1e-18..1e18).contains(&self.scale) && S::FUSED) {
            let grid = simd.grid(CodeGrid { zero_point: 0, lo: self.qmin as u8, hi: self.qmax as u8, flip });
            let half = FRACTION / 2;
            let inverse = simd.splat_f32(1.0 / self.scale * FRACTION as f32);
            let shift = simd.splat_f32((self.zero_point * FRACTION + half + NEAR / 2) as f32);
            // In the middle of what has the first code, and the last: nothing there is near a tie.
            let (lowest, highest) = (simd.splat_i32(self.qmin * FRACTION + half), simd.splat_f32((self.qmax * FRACTION + half) as f32));
            let (ahead, whole) = (ahead(), len - len % (4 * S::LANES));
            while done < whole {
                // A loop of its own, out of which a near value leads: with the division in it, it takes a twentieth more.
                while done < whole {
                    for at in (0..4 * S::LANES).step_by(16) {
                        simd.prefetch(src.as_ptr().wrapping_add(done + at + ahead).cast());
                    }
                    let mut steps = [lowest; 4];
                    for v in 0..4 {
                        // SAFETY: four vectors are left in `src`.
                        let x = unsafe { simd.load_f32(src.as_ptr().add(done + v * S::LANES), S::LANES) };
                        let step = simd.mul_add_f32(x, inverse, shift);
                        steps[v] =
                            if WITHIN { simd.round_i32(step) } else { simd.max_i32(simd.round_i32(simd.min_f32(step, highest)), lowest) };
                    }
                    // SAFETY: four vectors are left in `dst`, whose elements are bytes.
                    if !unsafe { simd.store_whole_steps::<PERMUTED>(steps, grid, dst.as_mut_ptr().add(done).cast()) } {
                        break;
                    }
                    done += 4 * S::LANES;
                }
                let near = done..whole.min(done + 4 * S::LANES);
                self.divide(&src[near.clone()], &mut dst[near.clone()]);
                if PERMUTED {
                    permute(&mut dst[near.clone()]);
                }
                done = near.end;
            }
        }
        self.divide(&src[done..len], &mut dst[done..len]);
        if PERMUTED {
            permute(&mut dst[done..len]);
        }
    }

    /// [`Quantizer::code`] of each value, whatever it is.
    #[inline(always)]
    pub fn divide<L: Element>(self, src: &[f32], dst: &mut [L]) {
        for (code, &x) in dst.iter_mut().zip(src) {
            *code = L::from_unsigned(self.code(x));
        }
    }
}

/// Elements that are permuted by themselves.
pub const PERMUTED_GROUP: usize = 32;

/// In each group of [`PERMUTED_GROUP`] elements, fours as they lie in a table of four rows and two columns, column by column: of such codes the
/// sums of a depthwise convolution, whose taps are unpacked byte by byte, come out in halves of vectors that are columns in their order.
/// What is behind the last group stays as it is.
#[inline(always)]
pub fn permute<L: Element>(elements: &mut [L]) {
    for group in elements.as_chunks_mut::<PERMUTED_GROUP>().0 {
        let natural = *group;
        let (fours, natural) = (group.as_chunks_mut::<4>().0, natural.as_chunks::<4>().0);
        for i in 0..PERMUTED_GROUP / 4 {
            fours[i] = natural[2 * (i % 4) + i / 4];
        }
    }
}

impl<L: Element> Convert<L> for Quantizer {
    type In = f32;
    #[inline(always)]
    fn convert(self, x: f32) -> L {
        L::from_unsigned(self.code(x))
    }
}

/// A [`Quantizer`] for values none of which is NaN; where `WITHIN`, of the range that it was made for, so that no code is far from the grid.
/// Where `PERMUTED`, for slices of whole groups, whose codes are [`permute`]d.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<const WITHIN: bool, const PERMUTED: bool>(pub Quantizer);

impl<L: Element, const WITHIN: bool, const PERMUTED: bool> Convert<L> for Numbers<WITHIN, PERMUTED> {
    type In = f32;
    #[inline(always)]
    fn convert(self, x: f32) -> L {
        self.0.convert(x)
    }

    #[inline(always)]
    fn slice<S: Simd>(self, simd: S, src: &[f32], dst: &mut [L]) {
        debug_assert!(!PERMUTED || src.len().is_multiple_of(PERMUTED_GROUP));
        self.0.codes::<S, L, WITHIN, PERMUTED>(simd, src, dst);
    }
}

/// `m` rows of `k` elements, `stride` apart, into rows of `row >= k`: what lies between stays as it was, and meets zero weights.
#[allow(clippy::too_many_arguments)]
pub fn rows<'d, S: Simd, L: Element, C: Convert<L>>(
    simd: S,
    src: &[C::In],
    (m, k, stride): (usize, usize, usize),
    dst: &'d mut [L],
    row: usize,
    threads: usize,
    with: impl Fn(usize) -> C + Sync,
) -> &'d [L] {
    let to = Disjoint::new(dst);
    if k > 0 {
        threads::split(m, threads::parts(threads, m * k, GRAIN), |_, rows| {
            // SAFETY: ranges of rows are disjoint.
            let part = unsafe { to.part(rows.start * row..rows.end * row) };
            simd.vectorize(
                #[inline(always)]
                || {
                    for (i, dst) in rows.zip(part.chunks_exact_mut(row)) {
                        with(i).slice(simd, &src[i * stride..][..k], dst);
                    }
                },
            );
        });
    }
    dst
}

/// [`rows`] of codes.
pub fn rows_of_codes<'d, S: Simd, L: Element>(
    simd: S,
    codes: Codes<'_>,
    shape: (usize, usize, usize),
    dst: &'d mut [L],
    row: usize,
    threads: usize,
) -> &'d [L] {
    match codes {
        Codes::U8(codes) => rows(simd, codes, shape, dst, row, threads, |_| Unsigned),
        Codes::I8(codes) => rows(simd, codes, shape, dst, row, threads, |_| Signed),
    }
}

/// Makes a line of a padded image: which image, which line, and where.
pub type Fill<'a, L> = &'a (dyn Fn(usize, usize, &mut [L]) + Sync);

/// The workspace of padded images, line by line.
pub struct Lines<'a, L> {
    padded: &'a Padded,
    to: Disjoint<'a, L>,
}

impl<'a, L: Element> Lines<'a, L> {
    pub fn new(padded: &'a Padded, memory: &'a mut [L]) -> Self {
        Lines { padded, to: Disjoint::new(memory) }
    }

    /// Where the first one lies.
    pub fn as_ptr(&self) -> *const L {
        self.to.as_ptr()
    }

    pub fn count(&self) -> usize {
        if self.padded.row() == 0 { 0 } else { self.padded.images * self.padded.height }
    }

    /// Threads that filling them keeps busy.
    pub fn parts(&self, threads: usize) -> usize {
        threads::parts(threads, self.count() * self.padded.row(), GRAIN)
    }

    /// # Safety
    /// No two calls at a time have the same line.
    pub unsafe fn fill(&self, lines: Range<usize>, fill: Fill<'_, L>) {
        let Padded { height, .. } = *self.padded;
        let row = self.padded.row();
        // SAFETY: the caller's promise.
        let part = unsafe { self.to.part(lines.start * row..lines.end * row) };
        for (line, dst) in lines.zip(part.chunks_exact_mut(row.max(1))) {
            fill(line / height, line % height, dst);
        }
    }
}

/// Every line of padded images.
pub fn images<'d, L: Element>(padded: &Padded, dst: &'d mut [L], threads: usize, fill: Fill<'_, L>) -> &'d [L] {
    let lines = Lines::new(padded, dst);
    // SAFETY: ranges of lines are disjoint.
    threads::split(lines.count(), lines.parts(threads), |_, range| unsafe { lines.fill(range, fill) });
    dst
}

/// A line of a padded NHWC image, each channel `padded.repeat` times, from images in either layout.
pub fn line<S: Simd, L: Element, C: Convert<L>>(
    simd: S,
    (with, pad): (C, L),
    src: &[C::In],
    padded: &Padded,
    at: (usize, usize),
    dst: &mut [L],
) {
    simd.vectorize(
        #[inline(always)]
        || image_row(simd, (with, pad), src, padded, at, dst),
    )
}

thread_local! {
    /// A line on its way into blocks. Kept, so that calls allocate nothing once they have run.
    static PIXELS: RefCell<Aligned> = RefCell::default();
}

/// Line `y` of a workspace in blocks of 2 x 2 pixels ([`Padded::of_blocks`]), of the lines that `line` makes. What is beyond the last one, and
/// the last pixel, stays as it was, and meets zero weights.
pub fn line_of_blocks<L: Element>(padded: &Padded, y: usize, dst: &mut [L], line: impl Fn(usize, &mut [L])) {
    let mut memory = PIXELS.take();
    let pixels = &mut memory.grow::<L>(padded.row())[..padded.row()];
    for i in 0..2.min(padded.height - 2 * y) {
        line(2 * y + i, pixels);
        match padded.channels {
            1 => pairs::<L, 2>(pixels, dst, i),
            2 => pairs::<L, 4>(pixels, dst, i),
            3 => pairs::<L, 6>(pixels, dst, i),
            4 => pairs::<L, 8>(pixels, dst, i),
            more => unreachable!("blocks of {more} channels"),
        }
    }
    PIXELS.set(memory);
}

/// Two pixels of `N` elements together, into half `i` of each block.
fn pairs<L: Element, const N: usize>(pixels: &[L], dst: &mut [L], i: usize) {
    let (pairs, last) = pixels.as_chunks::<N>();
    let blocks = dst.as_chunks_mut::<N>().0;
    for (block, pair) in blocks[i..].iter_mut().step_by(2).zip(pairs) {
        *block = *pair;
    }
    if !last.is_empty() {
        blocks[2 * pairs.len() + i][..last.len()].copy_from_slice(last);
    }
}

/// [`line`] of codes; padding is the zero point `pad`.
pub fn line_of_codes<S: Simd, L: Element>(simd: S, codes: Codes<'_>, pad: i32, padded: &Padded, at: (usize, usize), dst: &mut [L]) {
    let pad = L::from_unsigned(pad);
    match codes {
        Codes::U8(codes) => line(simd, (Unsigned, pad), codes, padded, at, dst),
        Codes::I8(codes) => line(simd, (Signed, pad), codes, padded, at, dst),
    }
}

/// One row of the padded workspace.
#[inline(always)]
fn image_row<S: Simd, L: Element, C: Convert<L>>(
    simd: S,
    (with, pad): (C, L),
    src: &[C::In],
    padded: &Padded,
    (image, y): (usize, usize),
    dst: &mut [L],
) {
    let Padded { channels, repeat, input: [h, w], .. } = *padded;
    let wide = channels * repeat;
    let (inside, outside) = match y.checked_sub(padded.top) {
        Some(y) if y < h => (y, false),
        _ => (0, true),
    };
    if outside {
        dst.fill(pad);
        return;
    }
    let y = inside;
    let (left, rest) = dst.split_at_mut(padded.left * wide);
    let (body, right) = rest.split_at_mut(w * wide);
    left.fill(pad);
    right.fill(pad);
    match padded.layout {
        ImageLayout::Nhwc => {
            let src = &src[(image * h + y) * w * channels..][..w * channels];
            if repeat == 1 {
                with.slice(simd, src, body);
            } else {
                for (dst, &s) in body.chunks_exact_mut(repeat).zip(src) {
                    dst.fill(with.convert(s));
                }
            }
        }
        ImageLayout::Nchw => {
            let line = |c: usize| &src[((image * channels + c) * h + y) * w..][..w];
            if channels == 3 && repeat == 1 {
                return interleave(simd, with, [line(0), line(1), line(2)], body);
            }
            for c in 0..channels {
                transpose(simd, with, line(c), body, (c * repeat, wide, repeat));
            }
        }
    }
}

/// Values that are converted in vectors before they are laid out.
const CHUNK: usize = 128;

/// `dst[x * N + c] = lines[c][x]`, for the channels of a picture: with their number known, the compiler makes vectors of it.
#[inline(always)]
fn interleave<S: Simd, L: Element, C: Convert<L>, const N: usize>(simd: S, with: C, lines: [&[C::In]; N], dst: &mut [L]) {
    let mut buffers = [[L::default(); CHUNK]; N];
    let width = lines[0].len();
    for start in (0..width).step_by(CHUNK) {
        let len = (width - start).min(CHUNK);
        for c in 0..N {
            with.slice(simd, &lines[c][start..start + len], &mut buffers[c][..len]);
        }
        let pixels = dst[start * N..(start + len) * N].as_chunks_mut::<N>().0;
        for i in 0..pixels.len().min(CHUNK) {
            for c in 0..N {
                pixels[i][c] = buffers[c][i];
            }
        }
    }
}

/// `dst[x * step + first..][..repeat] = src[x]`, converted in vectors first.
#[inline(always)]
fn transpose<S: Simd, L: Element, C: Convert<L>>(
    simd: S,
    with: C,
    src: &[C::In],
    dst: &mut [L],
    (first, step, repeat): (usize, usize, usize),
) {
    let mut buffer = [L::default(); CHUNK];
    for (src, dst) in src.chunks(CHUNK).zip(dst.chunks_mut(CHUNK * step)) {
        let buffer = &mut buffer[..src.len()];
        with.slice(simd, src, buffer);
        if repeat == 1 {
            // Not by `fill`, which calls the system's memset for every byte; nor by iterators, which are not inlined to where the
            // instruction set is enabled and become a call for each.
            for i in 0..buffer.len() {
                dst[i * step + first] = buffer[i];
            }
            continue;
        }
        for (pixel, &x) in dst.chunks_exact_mut(step).zip(buffer.iter()) {
            pixel[first..first + repeat].fill(x);
        }
    }
}
