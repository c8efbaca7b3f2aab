//! The integer layer that a fake-quantized one becomes, run on codes in training already.

use crate::convert::CodeRange;
use crate::error::Result;
use crate::kernels::{Activation, ImageLayout, ImageShape, Isa, Workspace, math};
use crate::nn::Layer;
use crate::nn::quantized::{StaticConv2d, StaticLinear, StaticOutput, StaticOutputMut};
use crate::num::U8Grid;
use crate::tensor::QuantizedTensor;
use crate::train::array::Array;
use crate::train::parameter::Parameter;

/// A convolution or linear layer that writes codes, with what its output stage does.
#[derive(Debug)]
pub struct IntegerLayer {
    pub node: usize,
    pub layer: Layer,
    /// Place of the bias.
    pub bias: Option<usize>,
    /// The edges that it reads and adds, each with the edge whose grid they have.
    pub input: (usize, usize),
    pub residual: Option<(usize, usize)>,
    pub activation: Activation,
}

/// The codes of a value that lies on the grid.
fn codes(value: &Array, grid: U8Grid, threads: usize) -> Vec<u8> {
    let mut codes = vec![0u8; value.data().len()];
    let (scale, zero_point) = (grid.scale(), f32::from(grid.zero_point()));
    math::map(
        value.data(),
        &mut codes,
        threads,
        #[inline(always)]
        move |x: f32| ((x / scale).round_ties_even() + zero_point) as u8,
    );
    codes
}

impl IntegerLayer {
    /// What the layer writes, as numbers, lying as `like` does; `None` while a grid that it reads is not known.
    #[allow(clippy::too_many_arguments)]
    pub fn run<'t>(
        &self,
        weights: &QuantizedTensor<i8>,
        parameters: &[Parameter],
        read: &dyn Fn(usize) -> Option<&'t Array>,
        range: &dyn Fn(usize) -> Option<CodeRange>,
        out: CodeRange,
        like: &Array,
        (workspace, threads): (&mut Workspace, usize),
    ) -> Result<Option<Array>> {
        let is_image = matches!(self.layer, Layer::Conv2d(_));
        let operand = |(edge, grid): (usize, usize)| -> Result<Option<(Array, U8Grid)>> {
            let (Some(value), Some(range)) = (read(edge), range(grid)) else { return Ok(None) };
            Ok(Some((value.in_order(is_image)?, range.grid)))
        };
        let Some((x, grid)) = operand(self.input)? else { return Ok(None) };
        let residual = match self.residual {
            Some(residual) => match operand(residual)? {
                None => return Ok(None),
                known => known,
            },
            None => None,
        };
        let (lo, hi) = out.after(self.activation);
        let output = StaticOutput::Codes { grid: out.grid, lo, hi };
        let bias = self.bias.map(|place| parameters[place].value().as_slice());
        let (input, added) = (codes(&x, grid, threads), residual.as_ref().map(|(value, grid)| codes(value, *grid, threads)));
        let mut y = vec![0u8; like.data().len()];
        let to = StaticOutputMut::Codes(&mut y);
        match &self.layer {
            Layer::Conv2d(conv) => {
                let mut layer = StaticConv2d::from_codes(conv.geometry(), weights, bias, grid, output, Isa::best())?;
                if let Some((_, grid)) = residual {
                    layer = layer.with_residual(grid)?;
                }
                let [n, _, h, w] = x.image_dims()?;
                let shape = ImageShape { n, h, w, layout: ImageLayout::Nhwc };
                layer.forward(&input, shape, added.as_deref(), to, workspace, threads)?;
            }
            _ => {
                let mut layer = StaticLinear::from_codes(weights, bias, grid, output, Isa::best())?;
                if let Some((_, grid)) = residual {
                    layer = layer.with_residual(grid)?;
                }
                let rows = x.data().len() / layer.in_features().max(1);
                layer.forward(&input, rows, added.as_deref(), to, workspace, threads)?;
            }
        }
        let (scale, zero_point) = (out.grid.scale(), f32::from(out.grid.zero_point()));
        let mut values = vec![0.0; y.len()];
        math::map(
            &y,
            &mut values,
            threads,
            #[inline(always)]
            move |code: u8| scale * (f32::from(code) - zero_point),
        );
        // Both lie channels-last where they are images.
        Array::like(&like.in_order(is_image)?, values).map(Some)
    }
}
