//! Pooling over channels-last images.

use crate::error::{Error, Result};
use crate::kernels::{self, Largest, Mean, Pooling, Taps, mean_pixels, pool};
use crate::nn::operator;
use crate::tensor::elements;

/// Largest value of each window. Padding never wins; a window that holds NaN gives NaN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxPool2d {
    windows: Windows,
}

/// Mean of each window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvgPool2d {
    windows: Windows,
    count_include_pad: bool,
}

/// Mean of each channel over all pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GlobalAvgPool2d;

/// Where the windows of a pooling lie, along both axes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Windows {
    kernel: [usize; 2],
    stride: [usize; 2],
    // Top, left, bottom, right.
    padding: [usize; 4],
    dilation: [usize; 2],
    ceil_mode: bool,
}

impl Windows {
    fn new(kernel: [usize; 2]) -> Self {
        Windows { kernel, stride: kernel, padding: [0; 4], dilation: [1; 2], ceil_mode: false }
    }

    fn validate(&self) -> Result<()> {
        for (what, values) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if values.contains(&0) {
                return Err(Error::parameter(what, values, "must be at least 1 along both axes"));
            }
        }
        let [top, left, bottom, right] = self.padding;
        for (before, after, kernel) in [(top, bottom, self.kernel[0]), (left, right, self.kernel[1])] {
            if before.max(after) > kernel / 2 {
                return Err(Error::parameter("padding", self.padding, format!("must be at most half the kernel {:?}", self.kernel)));
            }
        }
        Ok(())
    }

    fn output_size(&self, h: usize, w: usize) -> Result<[usize; 2]> {
        self.validate()?;
        Ok([self.along(0, h)?, self.along(1, w)?])
    }

    /// PyTorch's rule: with `ceil_mode` the last window may hang over the end, if it starts inside the input or the
    /// padding before it.
    fn along(&self, axis: usize, length: usize) -> Result<usize> {
        let (before, after) = (self.padding[axis], self.padding[axis + 2]);
        let overflow = || Error::parameter("kernel", self.kernel, "is too large to address");
        let extent = (self.kernel[axis] - 1).checked_mul(self.dilation[axis]).and_then(|e| e.checked_add(1)).ok_or_else(overflow)?;
        let padded = length.checked_add(before + after).ok_or_else(overflow)?;
        let Some(room) = padded.checked_sub(extent).filter(|_| length > 0) else {
            let rule = format!("covers {extent} pixels along axis {axis}, more than the {padded} of the padded input");
            return Err(Error::parameter("kernel", self.kernel, rule));
        };
        let stride = self.stride[axis];
        let mut windows = if self.ceil_mode { room.div_ceil(stride) + 1 } else { room / stride + 1 };
        // Saturating: a stride may be larger than any image.
        if self.ceil_mode && (windows - 1).saturating_mul(stride) >= length + before {
            windows -= 1;
        }
        Ok(windows)
    }

    /// The taps of window `i` along an axis. The padding's are counted as pixels, without a dilation, which means have none of;
    /// what hangs over the padded end is not.
    fn inside(&self, axis: usize, i: usize, length: usize) -> Taps {
        let (start, dilation) = (i * self.stride[axis], self.dilation[axis]);
        let before = self.padding[axis];
        // A division takes as long as some taps do.
        let steps = |distance: usize| if dilation == 1 { distance } else { distance.div_ceil(dilation) };
        let skipped = steps(before.saturating_sub(start));
        let first = start + skipped * dilation;
        let taps = steps((length + before).saturating_sub(first));
        let padded = self.kernel[axis].min((length + before + self.padding[axis + 2]).saturating_sub(start));
        Taps { first: first.saturating_sub(before), count: taps.min(self.kernel[axis].saturating_sub(skipped)), padded }
    }

    /// Checks images and output, and pools them.
    fn pool(&self, pooling: impl Pooling<In = f32, Out = f32>, dims: [usize; 4], input: &[f32], output: &mut [f32]) -> Result<()> {
        let [n, h, w, c] = dims;
        let out = self.output_size(h, w)?;
        check(dims, input, [n, out[0], out[1], c], output)?;
        let (rows, columns) = (move |oy| self.inside(0, oy, h), move |ox| self.inside(1, ox, w));
        let windows = kernels::Windows { image: [h, w, c], out, dilation: self.dilation, rows, columns };
        pool(pooling, input, &windows, output, (1, usize::MAX));
        Ok(())
    }
}

impl From<&Windows> for operator::Windows {
    fn from(windows: &Windows) -> operator::Windows {
        let Windows { stride, padding, dilation, ceil_mode, .. } = *windows;
        operator::Windows::new().with_strides(stride).with_pads(padding).with_dilations(dilation).with_ceil_mode(ceil_mode)
    }
}

impl From<MaxPool2d> for operator::Pool {
    fn from(pool: MaxPool2d) -> operator::Pool {
        operator::Pool::max(pool.windows.kernel).with_windows((&pool.windows).into())
    }
}

impl From<AvgPool2d> for operator::Pool {
    fn from(pool: AvgPool2d) -> operator::Pool {
        let average = operator::Pool::average(pool.windows.kernel).with_windows((&pool.windows).into());
        average.with_count_include_pad(pool.count_include_pad)
    }
}

fn check(dims_in: [usize; 4], input: &[f32], dims_out: [usize; 4], output: &[f32]) -> Result<()> {
    for (what, dims, got) in [("input", dims_in, input.len()), ("output", dims_out, output.len())] {
        let expected = elements(&dims)?;
        if got != expected {
            return Err(Error::length(what, expected, got));
        }
    }
    Ok(())
}

macro_rules! window_builders {
    ($pool:ty) => {
        impl $pool {
            /// With this distance between windows (down, right) instead of the kernel's size.
            #[must_use]
            pub fn with_stride(mut self, stride: [usize; 2]) -> Self {
                self.windows.stride = stride;
                self
            }

            /// With this padding: top, left, bottom, right.
            #[must_use]
            pub fn with_padding(mut self, padding: [usize; 4]) -> Self {
                self.windows.padding = padding;
                self
            }

            /// With a last window that may hang over the end, by PyTorch's rule: it must start inside the input or the
            /// padding before it.
            #[must_use]
            pub fn with_ceil_mode(mut self, ceil_mode: bool) -> Self {
                self.windows.ceil_mode = ceil_mode;
                self
            }

            /// Rows and columns of a window.
            pub fn kernel(&self) -> [usize; 2] {
                self.windows.kernel
            }

            /// Distance between windows (down, right).
            pub fn stride(&self) -> [usize; 2] {
                self.windows.stride
            }

            /// Padding: top, left, bottom, right.
            pub fn padding(&self) -> [usize; 4] {
                self.windows.padding
            }

            /// Whether the last window may hang over the end.
            pub fn ceil_mode(&self) -> bool {
                self.windows.ceil_mode
            }

            /// Whether the numbers make windows.
            ///
            /// # Errors
            /// [`Error::Parameter`] for a zero, or for padding above half the kernel.
            pub fn validate(&self) -> Result<()> {
                self.windows.validate()
            }

            /// Height and width of the output for an input of `h x w`.
            ///
            /// # Errors
            /// [`Error::Parameter`] as for `validate`, or when a window is larger than the padded input.
            pub fn output_size(&self, h: usize, w: usize) -> Result<[usize; 2]> {
                self.windows.output_size(h, w)
            }
        }
    };
}
window_builders!(MaxPool2d);
window_builders!(AvgPool2d);

impl MaxPool2d {
    /// Windows of this height and width, side by side.
    pub fn new(kernel: [usize; 2]) -> Self {
        MaxPool2d { windows: Windows::new(kernel) }
    }

    /// Distance between the pixels of a window.
    pub fn dilation(&self) -> [usize; 2] {
        self.windows.dilation
    }

    /// With this distance between the pixels of a window.
    #[must_use]
    pub fn with_dilation(mut self, dilation: [usize; 2]) -> Self {
        self.windows.dilation = dilation;
        self
    }

    /// Pools channels-last images of `dims` = `[n, h, w, c]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ShapeOverflow`], and those of [`MaxPool2d::output_size`].
    pub fn forward(&self, input: &[f32], dims: [usize; 4], output: &mut [f32]) -> Result<()> {
        self.windows.pool(Largest, dims, input, output)
    }
}

impl AvgPool2d {
    /// Windows of this height and width, side by side; padding counts into the mean, as in PyTorch.
    pub fn new(kernel: [usize; 2]) -> Self {
        AvgPool2d { windows: Windows::new(kernel), count_include_pad: true }
    }

    /// Whether padding counts into the mean.
    pub fn count_include_pad(&self) -> bool {
        self.count_include_pad
    }

    /// With padding that counts into the mean, or not.
    #[must_use]
    pub fn with_count_include_pad(mut self, count_include_pad: bool) -> Self {
        self.count_include_pad = count_include_pad;
        self
    }

    /// Pools channels-last images of `dims` = `[n, h, w, c]`; sums run row by row, one addition at a time.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ShapeOverflow`], and those of [`AvgPool2d::output_size`].
    pub fn forward(&self, input: &[f32], dims: [usize; 4], output: &mut [f32]) -> Result<()> {
        self.windows.pool(Mean { include_pad: self.count_include_pad }, dims, input, output)
    }
}

impl GlobalAvgPool2d {
    /// Pools channels-last images of `dims` = `[n, h, w, c]` into `[n, 1, 1, c]`; the sum runs in f64, pixel by pixel.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ShapeOverflow`], and [`Error::Empty`] for images without a pixel.
    pub fn forward(&self, input: &[f32], dims: [usize; 4], output: &mut [f32]) -> Result<()> {
        let [n, h, w, c] = dims;
        check(dims, input, [n, 1, 1, c], output)?;
        if h * w == 0 {
            return Err(Error::Empty { what: "image to average".into(), way_out: "give images of at least one pixel" });
        }
        for (image, output) in input.chunks_exact((h * w * c).max(1)).zip(output.chunks_exact_mut(c.max(1))) {
            mean_pixels(image, output);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_wins_and_padding_never_does() {
        let pool = MaxPool2d::new([2, 2]).with_padding([1; 4]).with_stride([2, 2]);
        let mut y = [0.0; 4];
        pool.forward(&[-1.0, f32::NAN, -3.0, -4.0], [1, 2, 2, 1], &mut y).unwrap();
        assert!(y[1].is_nan());
        assert_eq!((y[0], y[2], y[3]), (-1.0, -3.0, -4.0));
    }

    #[test]
    fn impossible_windows_are_errors() {
        assert!(MaxPool2d::new([3, 3]).output_size(2, 9).is_err());
        assert!(MaxPool2d::new([0, 3]).output_size(9, 9).is_err());
        assert!(MaxPool2d::new([2, 2]).with_padding([2, 0, 0, 0]).output_size(9, 9).is_err());
        assert!(AvgPool2d::new([2, 2]).with_stride([0, 1]).output_size(9, 9).is_err());
        assert!(MaxPool2d::new([2, 2]).with_dilation([usize::MAX, 1]).output_size(9, 9).is_err());
        assert!(GlobalAvgPool2d.forward(&[], [1, 0, 3, 2], &mut [0.0; 2]).is_err());
        let endless = [0, usize::MAX / 2, usize::MAX / 2, 3];
        assert!(matches!(MaxPool2d::new([1, 1]).forward(&[], endless, &mut []), Err(Error::ShapeOverflow { .. })));
        assert!(matches!(GlobalAvgPool2d.forward(&[], endless, &mut []), Err(Error::ShapeOverflow { .. })));
        let stride = [usize::MAX - 1, usize::MAX / 2 + 1];
        assert_eq!(MaxPool2d::new([2, 2]).with_stride(stride).with_ceil_mode(true).output_size(usize::MAX / 2, 3).unwrap(), [1, 1]);
        assert!(MaxPool2d::new([2, 2]).forward(&[0.0; 3], [1, 2, 2, 1], &mut [0.0]).is_err());
    }
}
