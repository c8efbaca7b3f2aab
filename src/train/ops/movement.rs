//! What moves elements moves their gradients back.

use super::{Backward, Differentiable, Forward, Held, evaluate, float};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::{Transpose, resolve_axis};
use crate::tensor::{Shape, Tensor};
use crate::train::array::Array;

/// The input under another shape: Flatten, Reshape, Squeeze, Unsqueeze, Identity, Dropout as inference has it.
#[derive(Debug)]
pub struct Renamed {
    layer: Layer,
}

impl Renamed {
    pub fn new(layer: &Layer) -> Self {
        Renamed { layer: layer.clone() }
    }
}

impl Differentiable for Renamed {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let dims = float(run.inputs, 0)?.dims();
        run.by_input[0] = Some(run.gradient.reshape(&Shape::new(dims)?)?);
        Ok(())
    }
}

/// Axes in another order; gradients go back by the inverse one.
#[derive(Debug)]
pub struct Transposed {
    layer: Layer,
    axes: Option<Vec<usize>>,
}

impl Transposed {
    pub fn new(layer: &Layer, transpose: &Transpose) -> Self {
        Transposed { layer: layer.clone(), axes: transpose.axes() }
    }
}

impl Differentiable for Transposed {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let back = match &self.axes {
            None => Transpose::new(),
            Some(axes) => {
                let mut inverse = vec![0i64; axes.len()];
                axes.iter().enumerate().for_each(|(to, &from)| inverse[from] = to as i64);
                Transpose::new().with_perm(inverse)
            }
        };
        run.by_input[0] = Some(evaluate(&Layer::from(back), &[Some(Held::Float(run.gradient.clone()))])?);
        Ok(())
    }
}

/// Several values as one along an axis.
#[derive(Debug)]
pub struct Joined {
    layer: Layer,
    axis: i64,
}

impl Joined {
    pub fn new(layer: &Layer, axis: i64) -> Self {
        Joined { layer: layer.clone(), axis }
    }
}

impl Differentiable for Joined {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let gradient: &Tensor = run.gradient.held();
        let axis = resolve_axis(self.axis, gradient.dims().len())?;
        let mut first = 0;
        for side in 0..run.inputs.len() {
            let length = float(run.inputs, side)?.dims()[axis];
            if run.wanted[side] {
                run.by_input[side] = Some(Array::row_major(gradient.slice(axis, first..first + length)?));
            }
            first += length;
        }
        Ok(())
    }
}
