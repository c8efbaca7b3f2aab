//! Activations on their way into the workspace: converted to what the tile reads, transposed to NHWC, and padded.

use std::ops::Range;

use super::geometry::{ImageLayout, Padded};
use super::operand::Codes;
use super::simd::{Element, Simd};
use super::threads;

/// Elements below which a second thread costs more than it gives.
const GRAIN: usize = 64 * 1024;

/// How one element becomes one in the workspace.
pub trait Convert<L>: Copy + Sync {
    type In: Copy + Sync;
    fn convert(self, x: Self::In) -> L;
}

/// Unsigned codes as they are.
#[derive(Debug, Clone, Copy)]
pub struct Unsigned;

impl<L: Element> Convert<L> for Unsigned {
    type In = u8;
    #[inline(always)]
    fn convert(self, x: u8) -> L {
        L::from_code(i32::from(x))
    }
}

/// Signed codes, moved up by 128.
#[derive(Debug, Clone, Copy)]
pub struct Signed;

impl<L: Element> Convert<L> for Signed {
    type In = i8;
    #[inline(always)]
    fn convert(self, x: i8) -> L {
        L::from_code(i32::from(x as u8 ^ 0x80))
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
}

/// [`num::quantize`](crate::num::quantize) in a form that the compiler turns into vectors.
#[derive(Debug, Clone, Copy)]
pub struct Quantizer {
    scale: f32,
    zero_point: i32,
    lo: f32,
    hi: f32,
}

impl Quantizer {
    /// Codes are at most 16 bits wide, so that bounds are exact in f32 and rounded values fit i32.
    pub fn new(scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> Self {
        debug_assert!(qmin <= qmax && qmin >= -0x8000 && qmax <= 0xffff);
        Quantizer { scale, zero_point, lo: (qmin - zero_point) as f32, hi: (qmax - zero_point) as f32 }
    }

    #[inline(always)]
    pub fn code(self, x: f32) -> i32 {
        let x = x / self.scale;
        let x = if x.is_nan() { 0.0 } else { x };
        let x = if x < self.lo { self.lo } else { x };
        let x = if x > self.hi { self.hi } else { x };
        // SAFETY: not NaN, and within lo..=hi, which are integers of at most 18 bits.
        unsafe { x.round_ties_even().to_int_unchecked::<i32>() + self.zero_point }
    }
}

impl<L: Element> Convert<L> for Quantizer {
    type In = f32;
    #[inline(always)]
    fn convert(self, x: f32) -> L {
        L::from_code(self.code(x))
    }
}

/// A destination that threads write disjoint parts of.
struct Destination<L>(*mut L, usize);

// SAFETY: `part` hands out parts that the threads' ranges keep disjoint.
unsafe impl<L: Send> Sync for Destination<L> {}

impl<L> Destination<L> {
    /// # Safety
    /// No two threads ask for overlapping ranges.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, range: Range<usize>) -> &mut [L] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: inside the slice this was made of, which is borrowed for as long; not shared, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.end - range.start) }
    }
}

#[inline(always)]
fn convert<L, C: Convert<L>>(with: C, src: &[C::In], dst: &mut [L]) {
    for (d, &s) in dst.iter_mut().zip(src) {
        *d = with.convert(s);
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
    let to = Destination(dst.as_mut_ptr(), dst.len());
    if k > 0 {
        threads::split(m, threads::parts(threads, m * k, GRAIN), |rows| {
            // SAFETY: ranges of rows are disjoint.
            let part = unsafe { to.part(rows.start * row..rows.end * row) };
            simd.vectorize(
                #[inline(always)]
                || {
                    for (i, dst) in rows.zip(part.chunks_exact_mut(row)) {
                        convert(with(i), &src[i * stride..][..k], dst);
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

/// Images into a padded NHWC workspace; each channel `padded.repeat` times.
pub fn images<'d, S: Simd, L: Element, C: Convert<L>>(
    simd: S,
    src: &[C::In],
    padded: &Padded,
    dst: &'d mut [L],
    threads: usize,
    with: impl Fn(usize) -> (C, L) + Sync,
) -> &'d [L] {
    let to = Destination(dst.as_mut_ptr(), dst.len());
    let row = padded.row();
    if row > 0 {
        let lines = padded.images * padded.height;
        threads::split(lines, threads::parts(threads, lines * row, GRAIN), |lines| {
            // SAFETY: ranges of image rows are disjoint.
            let part = unsafe { to.part(lines.start * row..lines.end * row) };
            simd.vectorize(
                #[inline(always)]
                || {
                    for (line, dst) in lines.zip(part.chunks_exact_mut(row)) {
                        let (image, y) = (line / padded.height, line % padded.height);
                        let (with, pad) = with(image);
                        image_row(with, pad, src, padded, image, y, dst);
                    }
                },
            );
        });
    }
    dst
}

/// [`images`] of codes; padding is the zero point.
pub fn images_of_codes<'d, S: Simd, L: Element>(
    simd: S,
    codes: Codes<'_>,
    padded: &Padded,
    dst: &'d mut [L],
    threads: usize,
    pad: impl Fn(usize) -> i32 + Sync,
) -> &'d [L] {
    match codes {
        Codes::U8(codes) => images(simd, codes, padded, dst, threads, |image| (Unsigned, L::from_code(pad(image)))),
        Codes::I8(codes) => images(simd, codes, padded, dst, threads, |image| (Signed, L::from_code(pad(image)))),
    }
}

/// One row of the padded workspace.
#[inline(always)]
fn image_row<L: Element, C: Convert<L>>(with: C, pad: L, src: &[C::In], padded: &Padded, image: usize, y: usize, dst: &mut [L]) {
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
                convert(with, src, body);
            } else {
                for (dst, &s) in body.chunks_exact_mut(repeat).zip(src) {
                    dst.fill(with.convert(s));
                }
            }
        }
        ImageLayout::Nchw => {
            for c in 0..channels {
                let src = &src[((image * channels + c) * h + y) * w..][..w];
                transpose(with, src, body, c * repeat, wide, repeat);
            }
        }
    }
}

/// `dst[x * step + first..][..repeat] = src[x]`, converted in vectors first.
#[inline(always)]
fn transpose<L: Element, C: Convert<L>>(with: C, src: &[C::In], dst: &mut [L], first: usize, step: usize, repeat: usize) {
    const CHUNK: usize = 128;
    let mut buffer = [L::default(); CHUNK];
    for (src, dst) in src.chunks(CHUNK).zip(dst.chunks_mut(CHUNK * step)) {
        let buffer = &mut buffer[..src.len()];
        convert(with, src, buffer);
        for (pixel, &x) in dst.chunks_exact_mut(step).zip(buffer.iter()) {
            pixel[first..first + repeat].fill(x);
        }
    }
}
