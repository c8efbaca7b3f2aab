//! The shape of a convolution, and of the images it reads.

use super::product::Pixels;
use super::tile::Segment;
use crate::error::{Error, Result};

/// Rows and columns of zeros (in codes: of zero points) around an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// So many: top, left, bottom, right.
    Fixed([usize; 4]),
    /// As many as make `ceil(size / stride)` outputs along each axis of at least one pixel; an odd one at the end. TensorFlow's "SAME",
    /// ONNX's `SAME_UPPER`.
    SameUpper,
    /// The same with an odd one at the beginning, ONNX's `SAME_LOWER`.
    SameLower,
}

impl Padding {
    /// None.
    pub const NONE: Padding = Padding::Fixed([0; 4]);
}

impl From<[usize; 4]> for Padding {
    fn from(padding: [usize; 4]) -> Self {
        Padding::Fixed(padding)
    }
}

/// Channels, kernel, stride, padding, dilation and groups of a two-dimensional convolution.
///
/// ```
/// use lowprec::kernels::Conv2dGeometry;
/// let g = Conv2dGeometry::new(3, 64, [7, 7]).with_stride([2, 2]).with_padding([3, 3, 3, 3]);
/// assert_eq!(g.output_size(224, 224)?, [112, 112]);
/// assert_eq!(g.weight_shape(), [64, 3, 7, 7]);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps between windows, down and to the right.
    pub stride: [usize; 2],
    /// Rows and columns added around the image.
    pub padding: Padding,
    /// Distance between taps, down and to the right.
    pub dilation: [usize; 2],
    /// Channels are cut into this many groups that don't see each other.
    pub groups: usize,
}

impl Conv2dGeometry {
    /// Stride 1, no padding, no dilation, one group.
    pub fn new(in_channels: usize, out_channels: usize, kernel: [usize; 2]) -> Self {
        Conv2dGeometry { in_channels, out_channels, kernel, stride: [1, 1], padding: Padding::NONE, dilation: [1, 1], groups: 1 }
    }

    /// With other strides.
    pub fn with_stride(self, stride: [usize; 2]) -> Self {
        Conv2dGeometry { stride, ..self }
    }

    /// With padding: top, left, bottom, right, or a rule that makes them.
    pub fn with_padding(self, padding: impl Into<Padding>) -> Self {
        Conv2dGeometry { padding: padding.into(), ..self }
    }

    /// With other dilations.
    pub fn with_dilation(self, dilation: [usize; 2]) -> Self {
        Conv2dGeometry { dilation, ..self }
    }

    /// With groups.
    pub fn with_groups(self, groups: usize) -> Self {
        Conv2dGeometry { groups, ..self }
    }

    /// Whether the numbers make a convolution.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a zero, or for groups that don't divide the channels;
    /// [`Error::ShapeOverflow`] when the weights or a window have more elements than this machine can address.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
            ("groups", self.groups),
        ];
        for (what, value) in positive {
            if value == 0 {
                return Err(Error::parameter(what, value, "at least 1"));
            }
        }
        if !self.in_channels.is_multiple_of(self.groups) || !self.out_channels.is_multiple_of(self.groups) {
            let rule = format!("a divisor of both {} input and {} output channels", self.in_channels, self.out_channels);
            return Err(Error::parameter("groups", self.groups, rule));
        }
        super::pack::elements(&self.weight_shape())?;
        self.extent(0).and(self.extent(1)).map(|_| ()).ok_or_else(|| Error::ShapeOverflow { shape: self.weight_shape().to_vec() })
    }

    /// Lines under a window.
    pub(super) fn height(&self) -> usize {
        self.extent(0).expect("validated when the weights were packed")
    }

    /// Pixels that a dilated kernel spans along axis `axis`.
    fn extent(&self, axis: usize) -> Option<usize> {
        (self.kernel[axis] - 1).checked_mul(self.dilation[axis])?.checked_add(1)
    }

    /// Rows and columns added around an image of this height and width: top, left, bottom, right.
    ///
    /// # Errors
    /// As [`Conv2dGeometry::validate`], and [`Error::ShapeOverflow`] for sizes beyond what can be addressed.
    pub fn pads(&self, h: usize, w: usize) -> Result<[usize; 4]> {
        let before = match self.padding {
            Padding::Fixed(padding) => return Ok(padding),
            Padding::SameUpper => |pad: usize| pad / 2,
            Padding::SameLower => |pad: usize| pad.div_ceil(2),
        };
        self.validate()?;
        let mut pads = [0; 4];
        for (axis, size) in [h, w].into_iter().enumerate() {
            let last = (size.div_ceil(self.stride[axis]).max(1) - 1).checked_mul(self.stride[axis]);
            let extent = self.extent(axis).expect("validated above");
            let span = last.and_then(|last| last.checked_add(extent)).ok_or_else(|| Error::ShapeOverflow { shape: vec![h, w] })?;
            let pad = span.saturating_sub(size);
            (pads[axis], pads[axis + 2]) = (before(pad), pad - before(pad));
        }
        Ok(pads)
    }

    /// Height and width of the output: `(size + padding - dilation * (kernel - 1) - 1) / stride + 1`, rounded down.
    ///
    /// # Errors
    /// As [`Conv2dGeometry::validate`], and [`Error::Shape`] when the kernel is larger than the padded image.
    pub fn output_size(&self, h: usize, w: usize) -> Result<[usize; 2]> {
        self.validate()?;
        let (pads, mut out) = (self.pads(h, w)?, [0; 2]);
        for (axis, size) in [h, w].into_iter().enumerate() {
            let padding = pads[axis].checked_add(pads[axis + 2]);
            let padded = padding.and_then(|p| p.checked_add(size)).ok_or_else(|| Error::ShapeOverflow { shape: vec![h, w] })?;
            let extent = self.extent(axis).expect("validated above");
            if extent > padded {
                let what = ["height", "width"][axis];
                return Err(Error::shape("input", format!("a padded {what} of at least {extent}, which the kernel spans"), &[h, w]));
            }
            out[axis] = (padded - extent) / self.stride[axis] + 1;
        }
        Ok(out)
    }

    /// Shape of the weights: output channels, input channels of a group, kernel height, kernel width.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups.max(1), self.kernel[0], self.kernel[1]]
    }

    /// Multiply-accumulates for one image of `oh` x `ow` outputs.
    pub fn macs(&self, oh: usize, ow: usize) -> u64 {
        self.weight_shape().into_iter().chain([oh, ow]).fold(1, |n, d| n.saturating_mul(d as u64))
    }

    /// Whether each output channel reads one input channel alone.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups == self.in_channels && self.in_channels > 1
    }

    /// The same convolution over blocks of 2 x 2 pixels, as one pixel of four times the channels: for strides of two over a few channels, whose
    /// kernel rows are too short for a matrix unit. A stem of 7 x 7 x 3 has four runs of 48 elements instead of seven of 21.
    pub(super) fn of_blocks(&self) -> Option<Conv2dGeometry> {
        let suits = self.stride == [2, 2] && self.dilation == [1, 1] && self.groups == 1 && self.in_channels <= 4;
        let long = self.kernel.iter().all(|side| (5..=8).contains(side));
        (suits && long).then(|| Conv2dGeometry::new(4 * self.in_channels, self.out_channels, self.kernel.map(|side| side.div_ceil(2))))
    }

    /// Index in the OIHW weights of `blocks`, which is [`Conv2dGeometry::of_blocks`], of element `index` of these weights.
    pub(super) fn index_in_blocks(&self, blocks: &Conv2dGeometry, index: usize) -> usize {
        let ([_, channels, kh, kw], [_, deep, high, wide]) = (self.weight_shape(), blocks.weight_shape());
        let (x, y, row) = (index % kw, index / kw % kh, index / (kw * kh));
        let (channel, output) = (row % channels, row / channels);
        let channel = (2 * (y % 2) + x % 2) * channels + channel;
        ((output * deep + channel) * high + y / 2) * wide + x / 2
    }

    /// Whether it is a dense one of 3 x 3 pixels at stride one.
    pub(super) fn is_plain_3x3(&self) -> bool {
        self.kernel == [3, 3] && self.stride == [1, 1] && self.dilation == [1, 1] && self.groups == 1
    }

    /// Products in each sum.
    pub(crate) fn k(&self) -> usize {
        self.weight_shape()[1..].iter().product()
    }

    /// Whether the elements under a kernel row lie together: one run for each kernel row, else one for each tap.
    fn whole_rows(&self) -> bool {
        self.groups == 1 && self.dilation[1] == 1
    }

    /// Lengths of the runs of k, in the order of [`Conv2dGeometry::weight_index`].
    pub(super) fn runs(&self) -> Vec<usize> {
        let [_, channels, kh, kw] = self.weight_shape();
        if self.whole_rows() { vec![kw * channels; kh] } else { vec![channels; kh * kw] }
    }

    /// Whether every run of k fills whole words of `ku` elements.
    pub(super) fn runs_are_multiples_of(&self, ku: usize) -> bool {
        let [_, channels, _, kw] = self.weight_shape();
        (if self.whole_rows() { kw * channels } else { channels }).is_multiple_of(ku)
    }

    /// Index in OIHW weights of step `step` of k, which runs over kernel rows, kernel columns and channels.
    pub(super) fn weight_index(&self, out_channel: usize, step: usize) -> usize {
        let [_, channels, kh, kw] = self.weight_shape();
        let (tap, channel) = (step / channels, step % channels);
        (out_channel * channels + channel) * kh * kw + tap
    }

    /// The runs of k over a padded image: words of `ku` elements.
    pub(super) fn segments(&self, padded: &Padded, ku: usize, segments: &mut Vec<Segment>) {
        segments.clear();
        let [_, channels, kh, kw] = self.weight_shape();
        let pixel = padded.channels * padded.repeat;
        // A kernel of one row never takes its dilation, however large.
        let down = self.dilation[0].wrapping_mul(padded.row());
        for y in 0..kh {
            if self.whole_rows() {
                segments.push(Segment { offset: y * down, words: (kw * channels).div_ceil(ku) });
                continue;
            }
            segments.extend(
                (0..kw).map(|x| Segment { offset: y * down + x * self.dilation[1].wrapping_mul(pixel), words: channels.div_ceil(ku) }),
            );
        }
    }
}

/// How images lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageLayout {
    /// Channel by channel: PyTorch and ONNX.
    Nchw,
    /// Pixel by pixel: what the kernels work on.
    Nhwc,
}

/// A batch of images; the geometry has their channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// Images.
    pub n: usize,
    /// Rows of pixels.
    pub h: usize,
    /// Columns of pixels.
    pub w: usize,
    /// How they lie in memory.
    pub layout: ImageLayout,
}

/// The NHWC workspace of a batch: the images with their padding around them.
#[derive(Debug, Clone, Copy)]
pub struct Padded {
    pub images: usize,
    pub channels: usize,
    /// How often each channel stands in the workspace: output channels per input channel of a depthwise convolution.
    pub repeat: usize,
    /// Height and width without padding.
    pub input: [usize; 2],
    pub layout: ImageLayout,
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

impl Padded {
    /// The workspace of `shape`, and the pixels of the output over it.
    pub fn new(geometry: &Conv2dGeometry, shape: ImageShape) -> Result<(Padded, [usize; 2])> {
        let out = geometry.output_size(shape.h, shape.w)?;
        let [top, left, bottom, right] = geometry.pads(shape.h, shape.w)?;
        let padded = Padded {
            images: shape.n,
            channels: geometry.in_channels,
            repeat: if geometry.is_depthwise() { geometry.out_channels / geometry.in_channels } else { 1 },
            input: [shape.h, shape.w],
            layout: shape.layout,
            top,
            left,
            height: top + shape.h + bottom,
            width: left + shape.w + right,
        };
        super::pack::elements(&[padded.height, padded.width, padded.channels, padded.repeat, 4, shape.n])?;
        super::pack::elements(&[out[0], out[1], geometry.out_channels, shape.n])?;
        Ok((padded, out))
    }

    /// The same workspace in blocks of 2 x 2 pixels: see [`Conv2dGeometry::of_blocks`].
    pub fn of_blocks(self) -> Padded {
        Padded { channels: 4 * self.channels, height: self.height.div_ceil(2), width: self.width.div_ceil(2), ..self }
    }

    /// Elements of one row of pixels.
    pub fn row(&self) -> usize {
        self.width * self.channels * self.repeat
    }

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.images * self.height * self.row()
    }

    /// Where the windows of `images` images start, and of as many of their lines as `out_h` says, of which the first is pixel
    /// `first_row` of image `first_image`.
    pub fn pixels(&self, geometry: &Conv2dGeometry, [out_h, out_w]: [usize; 2], first_row: usize, first_image: usize) -> Pixels {
        Pixels {
            out_h,
            out_w,
            // A stride beyond the image is never taken, however large.
            step_x: geometry.stride[1].wrapping_mul(self.channels * self.repeat),
            step_y: geometry.stride[0].wrapping_mul(self.row()),
            image: self.height * self.row(),
            first_row,
            first_image,
        }
    }
}
