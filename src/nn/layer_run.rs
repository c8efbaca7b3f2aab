//! One layer of a plan, on values whose types and shapes the planner worked out.

use crate::error::{Error, Result};
use crate::kernels::{ImageLayout, ImageShape, Workspace};
use crate::nn::Layer;
use crate::nn::activation::{add, relu, relu6, softmax};
use crate::nn::plan::Stage;
use crate::nn::view::{Inputs, ViewMut};

/// Runs one layer of floats on values whose types and shapes the planner worked out.
pub(super) fn run(
    layer: &Layer,
    inputs: Inputs<'_>,
    mut output: ViewMut<'_>,
    stage: Stage<'_>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let (view, fused) = (inputs.need(0)?, stage.fused);
    let image = || match *view.dims {
        [n, h, w, _] if inputs.channels_last() => Ok(ImageShape { n, h, w, layout: ImageLayout::Nhwc }),
        [n, _, h, w] => Ok(ImageShape { n, h, w, layout: ImageLayout::Nchw }),
        _ => Err(Error::shape("input", "[n, c, h, w]", view.dims)),
    };
    let rows = || view.dims.iter().rev().skip(1).product();
    let residual = || inputs.get(1).map(|residual| residual.bytes);
    match layer {
        Layer::Embedding(table) => return table.run(&view, &mut output),
        Layer::QuantizedEmbedding(table) => return table.run(&view, &mut output),
        Layer::WeightOnlyEmbedding(table) => return table.run(&view, &mut output),
        Layer::StaticConv2d(conv) => {
            return conv.forward(view.bytes, image()?, residual(), output.codes_or_floats(), workspace, threads);
        }
        Layer::StaticLinear(linear) => {
            return linear.forward(view.bytes, rows(), residual(), output.codes_or_floats(), workspace, threads);
        }
        _ => {}
    }
    let (x, y) = (view.f32(), output.f32());
    if fused.residual
        && let Some(residual) = inputs.get(inputs.count() - 1)
    {
        y.copy_from_slice(residual.f32());
    }
    let nhwc = || <[usize; 4]>::try_from(view.dims).map_err(|_| Error::shape("input", "[n, c, h, w]", view.dims));
    let pixels = || nhwc().map(|[n, h, w, _]| [n, h, w]);
    match layer {
        Layer::Conv2d(conv) => conv.run(x, image()?, stage, y, workspace, threads),
        Layer::QuantizedConv2d(conv) => conv.run(x, image()?, stage, y, workspace, threads),
        Layer::ConvTranspose2d(conv) => conv.run(x, pixels()?, fused.activation, y, workspace, threads),
        Layer::QuantizedConvTranspose2d(conv) => conv.run(x, pixels()?, fused.activation, y, workspace, threads),
        Layer::Linear(linear) => linear.run(x, rows(), fused, y, threads),
        Layer::QuantizedLinear(linear) => linear.run(x, rows(), stage, y, workspace, threads),
        Layer::WeightOnlyLinear(linear) => linear.run(x, rows(), fused, y, workspace, threads),
        Layer::WeightOnlyConv2d(conv) => conv.run(x, image()?, fused, y, workspace, threads),
        Layer::BatchNorm2d(norm) => norm.forward(x, y),
        Layer::Relu => relu(x, y),
        Layer::Relu6 => relu6(x, y),
        Layer::MaxPool2d(pool) => pool.forward(x, nhwc()?, y),
        Layer::AvgPool2d(pool) => pool.forward(x, nhwc()?, y),
        Layer::GlobalAvgPool2d(pool) => pool.forward(x, nhwc()?, y),
        Layer::Add => add(x, inputs.need(1)?.f32(), y),
        Layer::Softmax { axis } => softmax(x, around(view.dims, *axis), y),
        Layer::Flatten { .. }
        | Layer::Embedding(_)
        | Layer::QuantizedEmbedding(_)
        | Layer::WeightOnlyEmbedding(_)
        | Layer::StaticConv2d(_)
        | Layer::StaticLinear(_) => {
            unreachable!("the planner renames the value, and tables and codes ran above")
        }
        Layer::Lstm(_) | Layer::Gru(_) | Layer::Operator(_) => {
            unreachable!("these have several outputs")
        }
    }
}

/// Elements before `axis`, along it, and after it.
fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    (dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product())
}
