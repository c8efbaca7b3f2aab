//! Depthwise convolution of floats, straight on NHWC images: each lane is a channel, and a window beyond the border has fewer taps.
//! A copy with padding would cost as much as the products.

use std::ops::Range;

use super::geometry::{Conv2dGeometry, Padded};
use super::output::{Place, Store};
use super::product::GRAIN;
use super::simd::Simd;
use super::threads;

/// Channels whose weights stay in the first-level cache while a line of pixels goes by.
const CHUNK: usize = 256;

/// A depthwise convolution with one output for each input channel.
pub(super) struct DirectDepthwise<'a, S: Simd, T: Store<S, S::F32>> {
    pub simd: S,
    pub lhs: &'a [f32],
    pub padded: &'a Padded,
    pub geometry: &'a Conv2dGeometry,
    pub out: [usize; 2],
    /// `[taps][channels]`, and a vector more.
    pub weights: &'a [f32],
    pub store: T,
    pub dst: *mut T::Element,
}

// SAFETY: threads write disjoint lines of `dst`, which outlives the call that borrows it.
unsafe impl<S: Simd, T: Store<S, S::F32>> Sync for DirectDepthwise<'_, S, T> {}

/// The taps of a window that are inside the image.
#[derive(Clone)]
struct Taps {
    ky: Range<usize>,
    kx: Range<usize>,
}

/// Some channels of some pixels of a line.
struct Spot {
    image: usize,
    y: usize,
    x: usize,
    n: usize,
    lanes: usize,
}

/// Positions from 0 to `out` whose windows lie inside `size` elements with `before` elements of padding before them.
fn inside(out: usize, size: usize, before: usize, stride: usize, extent: usize) -> Range<usize> {
    let first = before.div_ceil(stride).min(out);
    let end = (size + before).checked_sub(extent).map_or(0, |last| last / stride + 1);
    first..end.clamp(first, out)
}

/// Taps of the window at `at` that fall on one of `size` elements.
fn taps_inside(at: usize, before: usize, size: usize, taps: usize, dilation: usize) -> Range<usize> {
    let first = before.saturating_sub(at).div_ceil(dilation).min(taps);
    let end = (size + before).saturating_sub(at).div_ceil(dilation).clamp(first, taps);
    first..end
}

impl<S: Simd, T: Store<S, S::F32>> DirectDepthwise<'_, S, T> {
    /// All pixels, on at most `threads` threads.
    ///
    /// # Safety
    /// `lhs` has the images of `padded` without their padding, NHWC; `weights` a weight of each tap for each channel; the stage fits the
    /// channels; nobody else uses `dst`, which has all pixels of all channels.
    pub unsafe fn run(&self, threads: usize) {
        let (lines, [_, out_w]) = (self.padded.images * self.out[0], self.out);
        let [h, w] = self.padded.input;
        assert!(self.lhs.len() >= self.padded.images * h * w * self.padded.channels, "the images are there");
        let work = 8 * lines * out_w * self.padded.channels * self.geometry.k();
        threads::split(lines, threads::parts(threads, work, GRAIN), |part, lines| {
            let store = self.store.part(part);
            for line in lines {
                // SAFETY: the caller's promise; ranges of lines are disjoint.
                self.simd.vectorize(
                    #[inline(always)]
                    || unsafe { self.line(store, line / self.out[0], line % self.out[0]) },
                );
            }
        });
    }

    /// # Safety
    /// As for [`DirectDepthwise::run`]; nobody else writes this line.
    #[inline(always)]
    unsafe fn line(&self, store: T, image: usize, y: usize) {
        let Conv2dGeometry { kernel: [kh, kw], stride: [sy, sx], dilation: [dy, dx], .. } = *self.geometry;
        let Padded { top, left, input: [h, w], channels, .. } = *self.padded;
        let ky = taps_inside(y * sy, top, h, kh, dy);
        let whole = inside(self.out[1], w, left, sx, (kw - 1) * dx + 1);
        let shared = kw == 3 && sx == 1 && dx == 1;
        for first in (0..channels).step_by(CHUNK) {
            let end = (first + CHUNK).min(channels);
            let mut x = 0;
            while x < self.out[1] {
                let left_inside = if whole.contains(&x) { whole.end - x } else { 0 };
                let kx = if left_inside > 0 { 0..kw } else { taps_inside(x * sx, left, w, kw, dx) };
                let taps = Taps { ky: ky.clone(), kx };
                let pixels = if left_inside >= 6 {
                    6
                } else if left_inside >= 3 && shared {
                    3
                } else {
                    1
                };
                let mut n = first;
                while n < end {
                    let spot = Spot { image, y, x, n, lanes: (channels - n).min(S::LANES) };
                    let full = spot.lanes == S::LANES;
                    let wide = pixels == 1 && n + 4 * S::LANES <= end;
                    // SAFETY: the caller's promise; these taps of these pixels are inside the image, three in a row where shared.
                    unsafe {
                        match (pixels, full) {
                            (6, true) if shared => self.tile::<6, 1, true, true>(store, &spot, &taps),
                            (6, true) => self.tile::<6, 1, false, true>(store, &spot, &taps),
                            (6, false) => self.tile::<6, 1, false, false>(store, &spot, &taps),
                            (3, true) => self.tile::<3, 1, true, true>(store, &spot, &taps),
                            (3, false) => self.tile::<3, 1, false, false>(store, &spot, &taps),
                            _ if wide => self.tile::<1, 4, false, true>(store, &spot, &taps),
                            (_, true) => self.tile::<1, 1, false, true>(store, &spot, &taps),
                            (_, false) => self.tile::<1, 1, false, false>(store, &spot, &taps),
                        }
                    }
                    n += if wide { 4 * S::LANES } else { S::LANES };
                }
                x += pixels;
            }
        }
    }

    /// `M` pixels of a line with the same taps, `NV` vectors of channels. `SHARED` says that windows are three wide and next to each
    /// other, so that each vector is loaded once for all windows that it is in; `FULL`, that all lanes are channels.
    ///
    /// # Safety
    /// As for [`DirectDepthwise::run`]; the taps of the `M` pixels are inside the image, three in each row of taps where `SHARED`, and so
    /// are the channels.
    #[inline(always)]
    unsafe fn tile<const M: usize, const NV: usize, const SHARED: bool, const FULL: bool>(&self, store: T, spot: &Spot, taps: &Taps) {
        let Conv2dGeometry { kernel: [_, kw], stride: [sy, sx], dilation: [dy, dx], .. } = *self.geometry;
        let Padded { top, left, input: [h, w], channels, .. } = *self.padded;
        let Spot { image, y, x, n, .. } = *spot;
        let lanes = if FULL { S::LANES } else { spot.lanes };
        let simd = self.simd;
        let mut acc = [[simd.splat_f32(0.0); NV]; M];
        for ky in taps.ky.clone() {
            let line = (image * h + y * sy + ky * dy - top) * w;
            // The first column may lie before the line, but no tap that is read does.
            let at = self.lhs.as_ptr().wrapping_add((line + x * sx).wrapping_sub(left).wrapping_mul(channels).wrapping_add(n));
            let weights = self.weights.as_ptr().wrapping_add(ky * kw * channels + n);
            // SAFETY: the caller's promise: taps inside the image, a weight for each channel and a vector more.
            unsafe {
                if SHARED {
                    let w0 = simd.load_f32(weights, S::LANES);
                    let w1 = simd.load_f32(weights.add(channels), S::LANES);
                    let w2 = simd.load_f32(weights.add(2 * channels), S::LANES);
                    let (mut x0, mut x1) = (simd.load_f32(at, S::LANES), simd.load_f32(at.add(channels), S::LANES));
                    for m in 0..M {
                        let x2 = simd.load_f32(at.add((m + 2) * channels), S::LANES);
                        acc[m][0] = simd.mul_add_f32(x0, w0, acc[m][0]);
                        acc[m][0] = simd.mul_add_f32(x1, w1, acc[m][0]);
                        acc[m][0] = simd.mul_add_f32(x2, w2, acc[m][0]);
                        (x0, x1) = (x1, x2);
                    }
                } else {
                    for kx in taps.kx.clone() {
                        for v in 0..NV {
                            let w = simd.load_f32(weights.add(kx * channels + v * S::LANES), S::LANES);
                            for m in 0..M {
                                let x = simd.load_f32(at.wrapping_add((m * sx + kx * dx) * channels + v * S::LANES), lanes);
                                acc[m][v] = simd.mul_add_f32(x, w, acc[m][v]);
                            }
                        }
                    }
                }
            }
        }
        let row = (image * self.out[0] + y) * self.out[1] + x;
        let columns = if NV == 1 { lanes } else { NV * S::LANES };
        let (dst, place) = (self.dst.wrapping_add(row * channels + n), Place { row, column: n, columns });
        // SAFETY: the caller's promise on the stage and `dst`.
        unsafe {
            let mut columns = [store.columns(simd, n, lanes); NV];
            for v in 1..NV {
                columns[v] = store.columns(simd, n + v * S::LANES, S::LANES);
            }
            store.store::<M, NV>(simd, &columns, [image; M], acc, place, dst, channels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_inside() {
        for (size, before, after, stride, taps, dilation) in
            [(7, 1, 1, 1, 3, 1), (8, 1, 0, 2, 3, 1), (5, 3, 4, 2, 2, 3), (1, 2, 2, 1, 5, 1), (4, 0, 0, 3, 1, 1)]
        {
            let extent = (taps - 1) * dilation + 1;
            let out = (size + before + after - extent) / stride + 1;
            let whole = inside(out, size, before, stride, extent);
            for at in 0..out {
                let there = |k: usize| (before..before + size).contains(&(at * stride + k * dilation));
                let expected: Vec<usize> = (0..taps).filter(|&k| there(k)).collect();
                assert_eq!(taps_inside(at * stride, before, size, taps, dilation).collect::<Vec<_>>(), expected);
                assert_eq!(whole.contains(&at), expected.len() == taps, "{at} of {out}");
            }
        }
    }
}
