//! Channels to pixels and back, and sequences backwards.

use super::walk::{Axis, Walk, strides};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::{Facts, Operation, check_arity};
use crate::nn::view::{Inputs, Outputs, physical_axis};
use crate::tensor::{DType, Shape};

/// Which of the numbers that make a channel is the slowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DepthOrder {
    /// The position in the block: channel `(dy * block + dx) * c + i`.
    #[default]
    BlockFirst,
    /// The channel that stays: channel `(i * block + dy) * block + dx`.
    ChannelFirst,
}

/// ONNX DepthToSpace: channels become blocks of pixels, `[n, c b b, h, w]` to `[n, c, h b, w b]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepthToSpace {
    block: usize,
    order: DepthOrder,
}

impl DepthToSpace {
    /// Blocks of this side, their position slowest in the channels (ONNX's mode `DCR`).
    ///
    /// # Errors
    /// [`Error::Parameter`] for a side of 0.
    pub fn new(block: usize) -> Result<Self> {
        check_block(block)?;
        Ok(DepthToSpace { block, order: DepthOrder::BlockFirst })
    }

    /// With another order of channels: [`DepthOrder::ChannelFirst`] is ONNX's mode `CRD`, PyTorch's pixel shuffle.
    #[must_use]
    pub fn with_order(self, order: DepthOrder) -> Self {
        DepthToSpace { order, ..self }
    }
}

/// ONNX SpaceToDepth: blocks of pixels become channels, `[n, c, h b, w b]` to `[n, c b b, h, w]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceToDepth {
    block: usize,
    order: DepthOrder,
}

impl SpaceToDepth {
    /// Blocks of this side, their position slowest in the channels.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a side of 0.
    pub fn new(block: usize) -> Result<Self> {
        check_block(block)?;
        Ok(SpaceToDepth { block, order: DepthOrder::BlockFirst })
    }

    /// With another order of channels: [`DepthOrder::ChannelFirst`] is ONNX's mode `CRD`, PyTorch's pixel unshuffle.
    #[must_use]
    pub fn with_order(self, order: DepthOrder) -> Self {
        SpaceToDepth { order, ..self }
    }
}

fn check_block(block: usize) -> Result<()> {
    // Its square is a factor of the number of channels.
    match block.checked_mul(block) {
        Some(1..) => Ok(()),
        _ => Err(Error::parameter("block size", block, "must be at least 1, and small enough to square")),
    }
}

fn image(shape: &Shape) -> Result<[usize; 4]> {
    shape.dims().try_into().map_err(|_| Error::shape("input", "[n, c, h, w]", shape.dims()))
}

/// Steps along n, c, h and w of an image whose dimensions in memory these are.
fn image_steps(dims: &[usize], channels_last: bool) -> Result<[isize; 4]> {
    let steps = strides(dims)?;
    Ok([0, 1, 2, 3].map(|axis| steps[physical_axis(axis, 4, channels_last)] as isize))
}

/// Between an image of `deep` channels (its steps) and one of `wide` pixels: all six axes, the output's order decides the walk.
fn blocks(
    [n, c, h, w]: [usize; 4],
    block: usize,
    order: DepthOrder,
    deep: [isize; 4],
    wide: [isize; 4],
    from_deep: bool,
    channels_last: bool,
) -> Result<Walk> {
    let b = block as isize;
    let (dy, dx, channel) = match order {
        DepthOrder::BlockFirst => (b * c as isize, c as isize, 1),
        DepthOrder::ChannelFirst => (b, 1, b * b),
    };
    let axis = |length: usize, deep: isize, wide: isize| {
        if from_deep { Axis { length, from: deep, to: wide } } else { Axis { length, from: wide, to: deep } }
    };
    let images = axis(n, deep[0], wide[0]);
    let channels = axis(c, channel * deep[1], wide[1]);
    let (rows, columns) = (axis(h, deep[2], b * wide[2]), axis(w, deep[3], b * wide[3]));
    let (down, right) = (axis(block, dy * deep[1], wide[2]), axis(block, dx * deep[1], wide[3]));
    match (from_deep, channels_last) {
        (true, true) => Walk::new([images, rows, down, columns, right, channels]),
        (true, false) => Walk::new([images, channels, rows, down, columns, right]),
        (false, true) => Walk::new([images, rows, columns, down, right, channels]),
        (false, false) => Walk::new([images, down, right, channels, rows, columns]),
    }
}

impl Operation for DepthToSpace {
    fn name(&self) -> &'static str {
        "DepthToSpace"
    }

    fn attributes(&self) -> Attributes {
        let mode = if self.order == DepthOrder::BlockFirst { "DCR" } else { "CRD" };
        Attributes::new().with("blocksize", self.block as i64).with("mode", mode)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let [n, c, h, w] = image(facts.shape(0)?)?;
        if c % (self.block * self.block) != 0 {
            let rule = format!("[n, a multiple of {}, h, w]", self.block * self.block);
            return Err(Error::shape("input", rule, &[n, c, h, w]));
        }
        let longer = |length: usize| length.checked_mul(self.block).ok_or(Error::ShapeOverflow { shape: vec![n, c, h, w] });
        Ok(vec![Shape::new([n, c / (self.block * self.block), longer(h)?, longer(w)?])?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y, last) = (inputs.need(0)?, outputs.get(0), inputs.channels_last());
        let [h, w] = [2, 3].map(|axis| x.dims[inputs.axis(axis, 4)]);
        let dims = [x.dims[0], y.dims[inputs.axis(1, 4)], h, w];
        let walk = blocks(dims, self.block, self.order, image_steps(x.dims, last)?, image_steps(y.dims, last)?, true, last)?;
        walk.copy(x.dtype.bytes(), (x.bytes, 0), (y.bytes, 0));
        Ok(())
    }
}

impl Operation for SpaceToDepth {
    fn name(&self) -> &'static str {
        "SpaceToDepth"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("blocksize", self.block as i64)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let [n, c, h, w] = image(facts.shape(0)?)?;
        if h % self.block != 0 || w % self.block != 0 {
            return Err(Error::shape("input", format!("[n, c, h, w], h and w multiples of {}", self.block), &[n, c, h, w]));
        }
        let channels = c.checked_mul(self.block * self.block).ok_or(Error::ShapeOverflow { shape: vec![n, c, h, w] })?;
        Ok(vec![Shape::new([n, channels, h / self.block, w / self.block])?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y, last) = (inputs.need(0)?, outputs.get(0), inputs.channels_last());
        let [h, w] = [2, 3].map(|axis| y.dims[inputs.axis(axis, 4)]);
        let dims = [x.dims[0], x.dims[inputs.axis(1, 4)], h, w];
        let (deep, wide) = (image_steps(y.dims, last)?, image_steps(x.dims, last)?);
        let walk = blocks(dims, self.block, self.order, deep, wide, false, last)?;
        walk.copy(x.dtype.bytes(), (x.bytes, 0), (y.bytes, 0));
        Ok(())
    }
}

/// ONNX ReverseSequence: in each sequence of the batch the first elements, as many as input 1 says, in reverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseSequence {
    time_axis: usize,
}

impl ReverseSequence {
    /// With time along this axis, 0 or 1, and the batch along the other.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another axis.
    pub fn new(time_axis: usize) -> Result<Self> {
        match time_axis {
            0 | 1 => Ok(ReverseSequence { time_axis }),
            _ => Err(Error::parameter("time_axis", time_axis, "must be 0 or 1, and batch_axis the other of them")),
        }
    }
}

impl Operation for ReverseSequence {
    fn name(&self) -> &'static str {
        "ReverseSequence"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("time_axis", self.time_axis as i64).with("batch_axis", 1 - self.time_axis as i64)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 2)?;
        crate::nn::operator::arguments::check_ints("sequence_lens", inputs, 1)?;
        Ok(inputs[0].into_iter().collect())
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (shape, lengths) = (facts.shape(0)?, facts.shape(1)?);
        if shape.rank() < 2 {
            return Err(Error::shape("input", "at least a time axis and a batch axis", shape.dims()));
        }
        let batch = shape.dims()[1 - self.time_axis];
        match lengths.dims() == [batch] {
            true => Ok(vec![shape.clone()]),
            false => Err(Error::shape("sequence_lens", format!("[{batch}], one for each sequence"), lengths.dims())),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let run = x.dims[2..].iter().product::<usize>() * x.dtype.bytes();
        let (times, steps) = (x.dims[self.time_axis], strides(&x.dims[..2])?);
        let (time_step, batch_step) = (steps[self.time_axis] * run, steps[1 - self.time_axis] * run);
        for (sequence, length) in inputs.need(1)?.ints()?.enumerate() {
            let Some(length) = usize::try_from(length).ok().filter(|&length| length <= times) else {
                return Err(Error::parameter("sequence_lens", length, format!("must lie within 0..={times}, the length of time")));
            };
            for time in 0..times {
                let from = if time < length { length - 1 - time } else { time };
                let (from, to) = (sequence * batch_step + from * time_step, sequence * batch_step + time * time_step);
                y.bytes[to..][..run].copy_from_slice(&x.bytes[from..][..run]);
            }
        }
        Ok(())
    }
}
