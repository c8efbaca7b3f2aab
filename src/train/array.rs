//! Float values between the layers of a network that trains.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::nn::reorder;
use crate::tensor::{Shape, Tensor};

/// A float value. An image `[n, c, h, w]` may lie channels-last, and is then held as `[n, h, w, c]`.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    held: Tensor,
    channels_last: bool,
}

impl Array {
    /// A value that lies row-major.
    pub fn row_major(value: Tensor) -> Self {
        Array { held: value, channels_last: false }
    }

    /// Images of `dims` = `[n, c, h, w]` that lie channels-last.
    pub fn images([n, c, h, w]: [usize; 4], data: Vec<f32>) -> Result<Self> {
        Ok(Array { held: Tensor::new([n, h, w, c], data)?, channels_last: true })
    }

    /// A value of these dimensions that lies as `like` does.
    pub fn like(like: &Array, data: Vec<f32>) -> Result<Self> {
        Ok(Array { held: Tensor::from_shape(like.held.shape().clone(), data)?, channels_last: like.channels_last })
    }

    pub fn dims(&self) -> Vec<usize> {
        match *self.held.dims() {
            [n, h, w, c] if self.channels_last => vec![n, c, h, w],
            ref dims => dims.to_vec(),
        }
    }

    /// `[n, c, h, w]`.
    pub fn image_dims(&self) -> Result<[usize; 4]> {
        let dims = self.dims();
        <[usize; 4]>::try_from(dims.as_slice()).map_err(|_| Error::shape("value", "[n, c, h, w]", &dims))
    }

    /// The elements as they lie.
    pub fn data(&self) -> &[f32] {
        self.held.as_slice()
    }

    /// The elements as they lie, for writing.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.held.as_mut_slice()
    }

    pub fn is_channels_last(&self) -> bool {
        self.channels_last
    }

    /// The value as it lies: an image that is channels-last with its axes in that order.
    pub fn held(&self) -> &Tensor {
        &self.held
    }

    /// The same value in that order; only images have two.
    pub fn in_order(&self, channels_last: bool) -> Result<Array> {
        if channels_last == self.channels_last || self.held.dims().len() != 4 {
            return Ok(self.clone());
        }
        let dims @ [n, c, h, w] = self.image_dims()?;
        let to = if channels_last { [n, h, w, c] } else { dims };
        // Of one channel or one pixel both orders are the same.
        if c == 1 || h * w == 1 {
            return Ok(Array { held: self.held.reshape(to)?, channels_last });
        }
        let mut data = vec![0.0; self.held.len()];
        match channels_last {
            true => reorder::nchw_to_nhwc(self.data(), dims, &mut data)?,
            false => reorder::nhwc_to_nchw(self.data(), dims, &mut data)?,
        }
        Ok(Array { held: Tensor::new(to, data)?, channels_last })
    }

    /// The elements pixel by pixel, the channels of each side by side: as they lie, of images that are channels-last and of rows; turned,
    /// of `[n, c, ..]` otherwise.
    pub fn by_pixel(&self) -> Cow<'_, [f32]> {
        match *self.held.dims() {
            [n, c, ref rest @ ..] if !self.channels_last && !rest.is_empty() => {
                Cow::Owned(swapped(self.data(), [n, c, rest.iter().product()]))
            }
            _ => Cow::Borrowed(self.data()),
        }
    }

    /// What was computed pixel by pixel, as `like` lies, which has the same dimensions.
    pub fn of_pixels(like: &Array, data: Vec<f32>) -> Result<Array> {
        match *like.held.dims() {
            [n, c, ref rest @ ..] if !like.channels_last && !rest.is_empty() => {
                Array::like(like, swapped(&data, [n, rest.iter().product(), c]))
            }
            _ => Array::like(like, data),
        }
    }

    /// The value row-major.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(self.in_order(false)?.held)
    }

    /// The same elements, row-major, under another shape.
    pub fn reshape(&self, shape: &Shape) -> Result<Array> {
        Ok(Array::row_major(self.to_tensor()?.reshape(shape.dims())?))
    }

    /// Adds a value of the same dimensions, in whatever order it lies.
    pub fn add(&mut self, other: &Array) -> Result<()> {
        let other = other.in_order(self.channels_last)?;
        if other.held.dims() != self.held.dims() {
            return Err(Error::shape("value to add", format!("{:?}", self.held.dims()), other.held.dims()));
        }
        self.data_mut().iter_mut().zip(other.data()).for_each(|(sum, x)| *sum += x);
        Ok(())
    }
}

/// `[n, rows, columns]` as `[n, columns, rows]`.
fn swapped(x: &[f32], [n, rows, columns]: [usize; 3]) -> Vec<f32> {
    let mut y = vec![0.0f32; x.len()];
    reorder::transpose(bytemuck::cast_slice(x), size_of::<f32>(), [n, rows, columns], bytemuck::cast_slice_mut(&mut y));
    y
}
