//! Windows that slide along axes, as convolutions and poolings have them.

use crate::error::{Error, Result};
use crate::kernels::Taps;

/// How padding is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AutoPad {
    /// It is given.
    #[default]
    NotSet,
    /// There is none.
    Valid,
    /// As much as makes `ceil(input / stride)` outputs, an odd one at the end.
    SameUpper,
    /// As much as makes `ceil(input / stride)` outputs, an odd one at the beginning.
    SameLower,
}

/// Strides, padding and dilations of windows over spatial axes, as ONNX has them. Lists that are empty stand for strides and
/// dilations of 1 and no padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    pub(super) strides: Vec<usize>,
    pub(super) pads: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    pub(super) auto_pad: AutoPad,
    pub(super) ceil_mode: bool,
}

impl Windows {
    /// Windows one element apart, without padding.
    pub fn new() -> Self {
        Windows::default()
    }

    /// With these distances between windows.
    #[must_use]
    pub fn with_strides(self, strides: impl Into<Vec<usize>>) -> Self {
        Windows { strides: strides.into(), ..self }
    }

    /// With this padding: before each axis, then after each.
    #[must_use]
    pub fn with_pads(self, pads: impl Into<Vec<usize>>) -> Self {
        Windows { pads: pads.into(), ..self }
    }

    /// With these distances between the elements of a window.
    #[must_use]
    pub fn with_dilations(self, dilations: impl Into<Vec<usize>>) -> Self {
        Windows { dilations: dilations.into(), ..self }
    }

    /// With padding that follows from the input's lengths.
    #[must_use]
    pub fn with_auto_pad(self, auto_pad: AutoPad) -> Self {
        Windows { auto_pad, ..self }
    }

    /// With a last window that may hang over the end, unless it would start in the padding there.
    #[must_use]
    pub fn with_ceil_mode(self, ceil_mode: bool) -> Self {
        Windows { ceil_mode, ..self }
    }

    pub(super) fn stride(&self, axis: usize) -> usize {
        self.strides.get(axis).copied().unwrap_or(1)
    }

    pub(super) fn dilation(&self, axis: usize) -> usize {
        self.dilations.get(axis).copied().unwrap_or(1)
    }

    /// Padding before and after an axis of `rank`, as given.
    pub(super) fn pads(&self, axis: usize, rank: usize) -> (usize, usize) {
        let at = |i: usize| self.pads.get(i).copied().unwrap_or(0);
        (at(axis), at(axis + rank))
    }

    /// Whether the lists belong to windows of `rank` axes and no stride or dilation is 0.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Parameter`].
    pub(super) fn check(&self, rank: usize) -> Result<()> {
        for (what, list, expected) in
            [("list of strides", &self.strides, rank), ("list of pads", &self.pads, 2 * rank), ("list of dilations", &self.dilations, rank)]
        {
            if !list.is_empty() && list.len() != expected {
                return Err(Error::length(what, expected, list.len()));
            }
        }
        match self.strides.contains(&0) || self.dilations.contains(&0) {
            true => Err(Error::parameter("strides and dilations", (&self.strides, &self.dilations), "must be at least 1")),
            false => Ok(()),
        }
    }

    /// The windows along axis `axis` of `rank` spatial ones, of `length` elements.
    ///
    /// # Errors
    /// [`Error::Parameter`] when not one window fits.
    pub(super) fn along(&self, axis: usize, rank: usize, kernel: usize, length: usize) -> Result<Along> {
        let (stride, dilation) = (self.stride(axis), self.dilation(axis));
        let overflow = || Error::parameter("kernel", kernel, "is too large to address");
        let Some(last) = kernel.checked_sub(1) else {
            return Err(Error::parameter("kernel", kernel, "must be at least 1"));
        };
        let extent = last.checked_mul(dilation).and_then(|e| e.checked_add(1)).ok_or_else(overflow)?;
        let (before, after) = match self.auto_pad {
            AutoPad::NotSet => self.pads(axis, rank),
            AutoPad::Valid => (0, 0),
            same => {
                let span = (length.div_ceil(stride).max(1) - 1) * stride;
                let pad = span.checked_add(extent).ok_or_else(overflow)?.saturating_sub(length);
                if same == AutoPad::SameUpper { (pad / 2, pad - pad / 2) } else { (pad - pad / 2, pad / 2) }
            }
        };
        let padded = before.checked_add(after).and_then(|pads| pads.checked_add(length)).ok_or_else(overflow)?;
        let Some(room) = padded.checked_sub(extent).filter(|_| isize::try_from(padded).is_ok()) else {
            let rule = format!("covers {extent} elements along spatial axis {axis}, more than the {padded} of the padded input");
            return Err(Error::parameter("kernel", kernel, rule));
        };
        let mut outputs = if self.ceil_mode { room.div_ceil(stride) + 1 } else { room / stride + 1 };
        // A stride may be larger than any axis.
        if self.ceil_mode && (outputs - 1).saturating_mul(stride) >= length + before {
            outputs -= 1;
        }
        Ok(Along { length, outputs, kernel, stride, dilation, before, after })
    }
}

/// Windows along one axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Along {
    pub length: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub before: usize,
    pub after: usize,
}

impl Along {
    /// Of window `i`, the elements inside the input: which tap is the first, where it lies, and how many there are at steps of
    /// the dilation.
    pub fn taps(&self, i: usize) -> (usize, usize, usize) {
        let start = i * self.stride;
        let skipped = self.steps(self.before.saturating_sub(start)).min(self.kernel);
        let first = start.saturating_add(skipped.saturating_mul(self.dilation));
        let count = self.steps((self.length + self.before).saturating_sub(first));
        (skipped, first.saturating_sub(self.before), count.min(self.kernel - skipped))
    }

    /// The taps of window `i`, as the kernels take them.
    pub fn window(&self, i: usize) -> Taps {
        let (_, first, count) = self.taps(i);
        Taps { first, count, padded: self.padded_count(i) }
    }

    /// Those of all windows.
    pub fn windows(&self) -> Vec<Taps> {
        (0..self.outputs).map(|i| self.window(i)).collect()
    }

    /// Steps of the dilation within a distance. A division takes as long as some taps do.
    fn steps(&self, distance: usize) -> usize {
        if self.dilation == 1 { distance } else { distance.div_ceil(self.dilation) }
    }

    /// Elements of window `i` in the padded input.
    pub fn padded_count(&self, i: usize) -> usize {
        let distance = (self.length + self.before + self.after).saturating_sub(i * self.stride);
        self.steps(distance).min(self.kernel)
    }
}
