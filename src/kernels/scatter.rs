//! The second half of a transposed convolution: products of pixels with all taps, added where the taps lie in the output.

use std::ops::Range;

use super::isa::{Isa, Visitor};
use super::simd::Simd;

/// Where taps of channels-last pixels lie in a channels-last output: tap `t` of pixel `p` along an axis at
/// `p * stride + t * dilation - padding`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scatter {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Top and left.
    pub padding: [usize; 2],
    /// Pixels in a row of the input.
    pub width: usize,
    /// Rows and columns of the output.
    pub out: [usize; 2],
    /// Channels of an output pixel, those that are written, and the first of them.
    pub channels: usize,
    pub group: usize,
    pub first: usize,
}

impl Scatter {
    /// Where a tap lies, if that is inside.
    #[inline(always)]
    fn place(&self, axis: usize, pixel: usize, tap: usize) -> Option<usize> {
        let at = (pixel * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.padding[axis])?;
        (at < self.out[axis]).then_some(at)
    }
}

/// A number that is added up.
pub(crate) trait Sum: Copy {
    fn plus(self, other: Self) -> Self;
}

impl Sum for f32 {
    #[inline(always)]
    fn plus(self, other: f32) -> f32 {
        self + other
    }
}

impl Sum for i32 {
    #[inline(always)]
    fn plus(self, other: i32) -> i32 {
        self.wrapping_add(other)
    }
}

/// Adds `columns` (for each pixel of the input's `rows`, for each tap, `group` channels) to one image `y`, pixel by pixel, so that
/// the order of additions does not depend on how rows are split over calls.
///
/// # Panics
/// When a slice is too short.
pub(crate) fn scatter<T: Sum>(columns: &[T], rows: Range<usize>, scatter: &Scatter, y: &mut [T]) {
    Isa::best().visit(Visit { columns, rows, scatter, y });
}

struct Visit<'a, T> {
    columns: &'a [T],
    rows: Range<usize>,
    scatter: &'a Scatter,
    y: &'a mut [T],
}

impl<T: Sum> Visitor for Visit<'_, T> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        let Visit { columns, rows, scatter, y } = self;
        let [kh, kw] = scatter.kernel;
        let pixel_size = kh * kw * scatter.group;
        simd.vectorize(
            #[inline(always)]
            || {
                let pixels = rows.flat_map(|row| (0..scatter.width).map(move |column| (row, column)));
                for ((row, column), products) in pixels.zip(columns.chunks_exact(pixel_size)) {
                    for ky in 0..kh {
                        let Some(oy) = scatter.place(0, row, ky) else { continue };
                        for kx in 0..kw {
                            let Some(ox) = scatter.place(1, column, kx) else { continue };
                            let at = (oy * scatter.out[1] + ox) * scatter.channels + scatter.first;
                            let from = &products[(ky * kw + kx) * scatter.group..][..scatter.group];
                            for (y, &x) in y[at..at + scatter.group].iter_mut().zip(from) {
                                *y = y.plus(x);
                            }
                        }
                    }
                }
            },
        );
    }
}
